"""A user's own drive: a bag as a `datasets.base.Recording`, labelled by any topic that says where the robot was."""

from __future__ import annotations

import heapq
import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from vmloc_ros.bag_writer import CARD
from vmloc_ros.bags import SENSOR_KINDS, BagReader
from vmloc_ros.config import TopicNames
from vmloc_ros.datasets.base import Timeline
from vmloc_ros.datasets.parts import WHOLE, Part
from vmloc_ros.datasets.skips import Skips
from vmloc_ros.errors import BagError, DatasetError, MessageError, TransformError
from vmloc_ros.extrinsics import Extrinsics, pose_from_list
from vmloc_ros.geometry import Array, inverse
from vmloc_ros.trajectory import Trajectory
from vmloc_ros.types import Event, EventKind, StaticTransform

REORDER_NS = 2_000_000_000
"""How much later than its neighbours' a message may arrive, for a stream that is sorted by stamp."""


class BagRecording:
    """A bag, to train on or to measure with.

    The stream is sorted by the headers' stamps within `REORDER_NS` of arrival; what comes later is skipped and
    counted, and so are messages that cannot be used (as broken ones).

    The label is the topic `topics.ground_truth`: nav_msgs/Odometry, PoseStamped or PoseWithCovarianceStamped. Its
    messages give poses of a body in a map. The body is `truth_frame`, else what the messages name (Odometry's
    child_frame_id), else the base. Where it is not the base, its mounting is `base_to_truth`, else comes from
    /tf_static.

    Args:
        path: a folder with metadata.yaml, or a single .mcap or .db3 file.
        topics: names of the topics.
        start_s, duration_s: what part to read, in seconds of arrival since the bag's start.
        base: frame of the robot's body.
        truth_frame, base_to_truth: see above; the latter as `x y z qx qy qz qw`.
        truth_max_gap_s: labels further apart than this are not interpolated.

    Raises:
        BagError: as `BagReader`; or the bag has no sensor topic.
    """

    def __init__(
        self,
        path: Path,
        topics: TopicNames | None = None,
        start_s: float = 0.0,
        duration_s: float | None = None,
        base: str = "base_link",
        truth_frame: str = "",
        base_to_truth: Sequence[float] = (),
        truth_max_gap_s: float = 1.0,
    ) -> None:
        self._again = partial(
            BagRecording, path, topics, start_s, duration_s, base, truth_frame, base_to_truth, truth_max_gap_s
        )
        self.reader = BagReader(path, topics)
        self.name = Path(path).name
        self.skips = Skips(str(path))
        self.reader.on_reject = self._reject
        self._kinds = [kind for kind in SENSOR_KINDS if kind not in (EventKind.TRUTH, EventKind.INITIAL_POSE)]
        if not any(self.reader.has(kind) for kind in self._kinds):
            raise BagError(f"{path}: has none of the configured sensor topics; {self.reader.listing()}")
        self._start_ns = self.reader.start_ns + round(start_s * 1e9)
        self._stop_ns = None if duration_s is None else self._start_ns + round(duration_s * 1e9)
        self._base, self._truth_frame, self._truth_max_gap_s = base, truth_frame, truth_max_gap_s
        self._T_base_truth = pose_from_list(base_to_truth, "base_to_truth") if base_to_truth else None
        self._truth: Trajectory | None = None

    @property
    def skipped(self) -> dict[str, int]:
        """What was left out, by reason."""
        return self.skips.by_reason()

    def _reject(self, topic: str, error: MessageError) -> None:
        self.skips.add(f"{topic}: {error.reason}", str(error), broken=True)

    def static_transforms(self) -> list[StaticTransform]:
        """/tf_static of the bag."""
        return self.reader.static_transforms()

    def events(self, part: Part = WHOLE) -> Iterator[Event]:
        """All sensor events, sorted by stamp."""
        self.skips.restart(part)
        return (event for event in self._sorted() if part.reads(event.stamp_ns))

    def _sorted(self) -> Iterator[Event]:
        waiting: list[tuple[int, int, int, Event]] = []
        released_ns = -(2**63)
        stream = self.reader.timed_events(self._kinds, self._start_ns, self._stop_ns)
        for number, (event, log_ns) in enumerate(stream):
            if event.stamp_ns < released_ns:
                self.skips.add(f"{event.kind.value} arrived too late to be sorted", f"stamp {event.stamp_ns}")
                continue
            heapq.heappush(waiting, (event.stamp_ns, number, log_ns, event))
            while waiting[0][2] < log_ns - REORDER_NS:  # the earliest stamp has waited long enough
                released_ns, _, _, first = heapq.heappop(waiting)
                yield first
        while waiting:
            yield heapq.heappop(waiting)[3]

    def event_count(self) -> int:
        """The sensor topics' messages, of the whole bag."""
        return self.reader.count(self._kinds)

    def file_count(self) -> int:
        """The same: a bag's messages are what other recordings' files are."""
        return self.event_count()

    def timeline(self) -> Timeline:
        """Empty: messages stand in a bag by arrival, not by stamp, so it is walked from its beginning."""
        return {}

    def again(self) -> Callable[[], BagRecording]:
        """Opens the same recording once more."""
        return self._again

    def truth(self) -> Trajectory:
        """`T_map_base` by the label's topic.

        Raises:
            DatasetError: there is no such topic (names those that could serve), or nobody knows where on the robot the
                body is that it speaks of.
        """
        if self._truth is None:
            try:
                poses = self.reader.truth(self._truth_max_gap_s)
                self._truth = poses.transformed(T_right=inverse(self._mounting()))
            except BagError as error:
                raise DatasetError(str(error)) from error
            self.skips.keep()
        return self._truth

    def label_frame(self) -> str:
        """The body whose poses the label gives."""
        return self._truth_frame or self.reader.label_body() or self._base

    def _mounting(self) -> Array:
        """`T_base_body` of the label's body."""
        body = self.label_frame()
        known = Extrinsics()
        if self._T_base_truth is not None:
            known.fix(self._base, body, self._T_base_truth)
            if body == self._base:
                return self._T_base_truth
        for transform in self.static_transforms():
            known.add(transform)
        try:
            return known.lookup(self._base, body)
        except TransformError as error:
            raise DatasetError(
                f"{self.reader.path}: the label {self.reader.topic_of(EventKind.TRUTH)} gives poses of {body!r}, and "
                f"its place on {self._base!r} is not known ({error}); give the option base_to_truth "
                "(x y z qx qy qz qw), or truth_frame if it means another frame"
            ) from error

    def label(self) -> str:
        """The label in words, for reports and cards; "" where there is none."""
        topic = self.reader.topic_of(EventKind.TRUTH)
        if topic is None:
            return ""
        given = " by base_to_truth" if self._T_base_truth is not None else ""
        return f"{topic}: poses of {self.label_frame()}{given}, base {self._base}"

    def card(self) -> dict[str, object]:
        """The card that `vmloc convert` left in the bag; other bags say nothing about their map."""
        unknown: dict[str, object] = {"dataset": "bag", "gravity_aligned": None, "licence": "the recorder's"}
        try:
            stored = json.loads(self.reader.custom_data.get(CARD, "{}"))
        except ValueError as error:
            raise BagError(f"{self.reader.path}: the card in its metadata is not JSON ({error})") from error
        return {**(stored or unknown), "bag": self.name, "label": self.label()}
