"""`vmloc convert`: a dataset as its publishers ship it, to a rosbag2 (MCAP)."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from vmloc_ros.bags import BagWriter
from vmloc_ros.datasets.base import Recording
from vmloc_ros.datasets.open import open_recordings
from vmloc_ros.errors import DatasetError, MessageError
from vmloc_ros.images import decode_image
from vmloc_ros.progress import progress_bar
from vmloc_ros.trajectory import Trajectory
from vmloc_ros.types import EncodedImage, Event, EventKind, OdometrySample, RawImage

TRUTH_MARGIN_NS = 500_000_000
"""Truth is written for this long before the first and after the last sensor event, so that it can be interpolated."""


@dataclass
class ConvertResult:
    """What was written, and what was not.

    Attributes:
        written: messages by topic.
        skipped: what the dataset lacks or what could not be read, by reason.
        notes: what a user should know (no ground truth, no odometry).
        duration_s: from the first to the last sensor event; wall_s: how long converting took.
    """

    bag: Path
    recording: str
    written: dict[str, int] = field(default_factory=dict)
    skipped: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    duration_s: float = 0.0
    bytes: int = 0
    wall_s: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {**vars(self), "bag": str(self.bag)}


def run_convert(
    format: str,
    source: Path,
    bag: Path,
    odometry: str | None = None,
    start_s: float = 0.0,
    duration_s: float | None = None,
    compressed: bool = False,
    overwrite: bool = False,
    progress: bool = True,
    **options: Any,
) -> ConvertResult:
    """Converts one recording to a bag: /image, /camera_info, /points or /depth, /odom, /ground_truth, /tf, /tf_static.

    Args:
        format: robotcar, town, kitti, sevenscenes or cambridge.
        source: one recording of it, or a folder that holds exactly one.
        odometry: vo (robotcar, town), oxts or kiss-icp (kitti), rgbd (sevenscenes), or none (these and
            cambridge, which has no other); None: the first of these.
        start_s, duration_s: what part of the recording.
        compressed: keep images that are files (JPEG, PNG) as they are, under /image/compressed.
        overwrite: replace a bag that is there.
        options: of the recording's class (`lidar`, `camera`, `frames`, ...).

    Raises:
        DatasetError: nothing usable, or several recordings. BagError: the bag cannot be written there.
    """
    began = time.monotonic()
    recordings = open_recordings(
        format, source, odometry=odometry, start_s=start_s or None, duration_s=duration_s, **options
    )
    if len(recordings) > 1:
        names = ", ".join(recording.name for recording in recordings)
        raise DatasetError(f"{source}: holds {len(recordings)} recordings ({names}); give one of them")
    recording = recordings[0]
    result = ConvertResult(Path(bag), recording.name)
    truth = _truth(recording, result)
    with (
        BagWriter(bag, overwrite=overwrite) as writer,
        progress_bar(Console(stderr=True), progress) as bar,
    ):
        task = bar.add_task(f"convert {recording.name}", total=recording.event_count())
        writer.set_card(recording.card())
        _Conversion(recording, writer, truth, compressed, result).run(lambda: bar.advance(task))
        result.written = dict(sorted(writer.counts.items()))
    for reason, count in recording.skipped.items():
        result.skipped[reason] = result.skipped.get(reason, 0) + count
    result.bytes = sum(path.stat().st_size for path in result.bag.iterdir())
    result.wall_s = time.monotonic() - began
    return result


def _truth(recording: Recording, result: ConvertResult) -> Trajectory | None:
    try:
        return recording.truth()
    except DatasetError as error:
        result.notes.append(f"no ground truth: {error}")
        return None


class _Conversion:
    """One walk through a recording, merged with its truth."""

    def __init__(
        self,
        recording: Recording,
        writer: BagWriter,
        truth: Trajectory | None,
        compressed: bool,
        result: ConvertResult,
    ) -> None:
        self._recording = recording
        self._writer = writer
        self._truth = truth
        self._compressed = compressed
        self._result = result
        self._unreadable: Counter[str] = Counter()

    def run(self, advance: Any) -> None:
        first_ns = last_ns = None
        with_odometry = False
        pending: Iterator[Event] = iter(())
        next_truth: Event | None = None
        for event in self._recording.events():
            advance()
            usable = self._usable(event)
            if usable is None:
                continue
            if first_ns is None:
                first_ns = usable.stamp_ns
                self._writer.write_static_transforms(self._recording.static_transforms(), first_ns - TRUTH_MARGIN_NS)
                pending = self._truth_events(first_ns - TRUTH_MARGIN_NS)
                next_truth = next(pending, None)
            while next_truth is not None and next_truth.stamp_ns <= usable.stamp_ns:
                self._writer.write(next_truth)
                next_truth = next(pending, None)
            last_ns = usable.stamp_ns
            self._writer.write(usable)
            if usable.kind is EventKind.ODOMETRY:
                with_odometry = True
                sample: OdometrySample = usable.payload
                self._writer.write_transform(
                    sample.stamp_ns, sample.frame_id, sample.child_frame_id, sample.T_odom_base
                )
        if first_ns is None or last_ns is None:
            raise DatasetError(f"{self._recording.name}: holds nothing that can be converted")
        while next_truth is not None and next_truth.stamp_ns <= last_ns + TRUTH_MARGIN_NS:
            self._writer.write(next_truth)
            next_truth = next(pending, None)
        self._result.duration_s = (last_ns - first_ns) / 1e9
        self._result.skipped.update(self._unreadable)
        if not with_odometry:
            self._result.notes.append("no odometry: localization needs /odom from somewhere else")

    def _usable(self, event: Event) -> Event | None:
        """The event as it is written: images decoded once, so that no broken one gets into the bag."""
        payload = event.payload
        if event.kind is not EventKind.IMAGE or not isinstance(payload, EncodedImage):
            return event
        try:
            rgb = decode_image(payload)
        except MessageError as error:
            key = f"images that cannot be decoded (first: {event.stamp_ns / 1e9:.3f} s, {error})"
            self._unreadable[next(iter(self._unreadable), key)] += 1
            return None
        if self._compressed:
            return event
        height, width = rgb.shape[:2]
        image = RawImage(payload.stamp_ns, payload.frame_id, height, width, "rgb8", 3 * width, False, rgb.data)
        return Event(EventKind.IMAGE, event.stamp_ns, image)

    def _truth_events(self, from_ns: int) -> Iterator[Event]:
        if self._truth is None:
            return
        for stamp_ns, T in zip(self._truth.stamps_ns.tolist(), self._truth.poses_N44, strict=True):
            if stamp_ns >= from_ns:
                yield Event(EventKind.TRUTH, stamp_ns, OdometrySample(stamp_ns, "map", "base_link", T))
