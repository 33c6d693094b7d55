"""What a run of the localizer left behind: its diary of statuses, its live poses, and the inputs they are judged by.

A `RunLog` comes from a pipeline in this process (`RunCollector`) or from the outputs that a node's run recorded
(`run_outputs.log_of_node_run`); reports and figures are made from it and do not know the difference.
"""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from vmloc_ros import files
from vmloc_ros.errors import TrajectoryError
from vmloc_ros.geometry import Array, inverse
from vmloc_ros.trajectory import NANOSECONDS, Trajectory
from vmloc_ros.types import Event, EventKind, FrameKey, FusedState, Modality, OdometrySample, Status

BOTH_MISSING = f"{Modality.RGB.value}+{Modality.DEPTH.value}"
FRAME_COLUMNS = ("stamp_ns", "image_stamp_ns", "depth_stamps_ns", "mode", "verdict", "latency_ms")


@dataclass(frozen=True, slots=True)
class Outage:
    """A time without a modality, in seconds from the run's start; `missing` is `rgb`, `depth` or `rgb+depth`."""

    from_s: float
    to_s: float
    missing: str


@dataclass(frozen=True, eq=False)
class RunLog:
    """One run.

    Attributes:
        statuses: the diary, in the order in which it was written.
        live: `T_map_base` at every accepted odometry sample, as published then.
        odometry: `T_odom_base`, of the network where it was the filter's; None where there was none.
        truth: `T_map_base`; None where the input had none.
        start_ns: the stamp that the outages' seconds count from.
        outages: when which modality was missing.
        published: messages that were sent to the localizer, by `EventKind` value.
        retrieval: `T_map_base` of the retrieval baseline; None where the model has none.
    """

    statuses: Sequence[Status]
    live: Trajectory
    odometry: Trajectory | None
    truth: Trajectory | None
    start_ns: int
    outages: Sequence[Outage] = ()
    published: Mapping[str, int] = field(default_factory=dict)
    retrieval: Trajectory | None = None

    @property
    def frames(self) -> list[Status]:
        """The statuses that belong to a frame."""
        return [status for status in self.statuses if status.key is not None]

    @property
    def counters(self) -> Mapping[str, int]:
        """The last totals that the localizer gave."""
        return self.statuses[-1].counters if self.statuses else {}

    def fused(self) -> Trajectory:
        """The filter's pose at every frame and heartbeat, as known when its status was written."""
        return trajectory_of((s.state.stamp_ns, s.state.T_map_base) for s in self.statuses if s.state is not None)

    def network(self) -> Trajectory:
        """The network's own poses `T_map_base`."""
        return trajectory_of((s.stamp_ns, s.measurement.T_map_base) for s in self.frames if s.measurement is not None)

    def dead_reckoning(self) -> Trajectory | None:
        """Odometry from the true start: `T_map_base(t0) T_odom_base(t0)^-1 T_odom_base(t)`, None without either.

        t0 is the first odometry stamp at which the truth is known.
        """
        if self.odometry is None or self.truth is None:
            return None
        for index, stamp_ns in enumerate(self.odometry.stamps_ns.tolist()):
            if self.truth.covers(stamp_ns):
                T_map_odom = self.truth.interpolate(stamp_ns) @ inverse(self.odometry.poses_N44[index])
                later = Trajectory(
                    self.odometry.stamps_ns[index:], self.odometry.poses_N44[index:], self.odometry.max_gap_s
                )
                return later.transformed(T_left=T_map_odom)
        return None


def trajectory_of(poses: Iterable[tuple[int, Array]]) -> Trajectory:
    """A trajectory of poses in any order; of several at one stamp the last given stays."""
    by_stamp = dict(poses)
    stamps = sorted(by_stamp)
    stacked = np.array([by_stamp[stamp] for stamp in stamps]) if stamps else np.empty((0, 4, 4))
    return Trajectory(np.array(stamps, dtype=np.int64), stacked)


class RunCollector:
    """Gathers a `RunLog` while a run goes on: give it every event that goes in and everything that comes out."""

    def __init__(self, odometry_by_network: bool = False) -> None:
        """
        Args:
            odometry_by_network: the run's odometry was the network's own (`add_vo`): that of the events is left out.
        """
        self._by_network = odometry_by_network
        self._statuses: list[Status] = []
        self._live: list[FusedState] = []
        self._odometry: list[tuple[int, Array]] = []
        self._truth: list[tuple[int, Array]] = []
        self._published: dict[str, int] = {}
        self._start_ns: int | None = None

    def add_event(self, event: Event) -> None:
        """Counts an input; keeps it where it is odometry or truth. Poses that are not finite are left out."""
        self._published[event.kind.value] = self._published.get(event.kind.value, 0) + 1
        if event.kind is not EventKind.STATIC_TRANSFORM and event.stamp_ns > 0:
            self._start_ns = event.stamp_ns if self._start_ns is None else min(self._start_ns, event.stamp_ns)
        if event.kind in (EventKind.ODOMETRY, EventKind.TRUTH) and isinstance(event.payload, OdometrySample):
            kept = self._odometry if event.kind is EventKind.ODOMETRY else self._truth
            if event.kind is EventKind.ODOMETRY and self._by_network:
                return
            if np.isfinite(event.payload.T_odom_base).all():
                kept.append((event.stamp_ns, event.payload.T_odom_base))

    def add_outputs(self, statuses: Iterable[Status], live: Iterable[FusedState]) -> None:
        """Appends what the pipeline or the node put out."""
        self._statuses += statuses
        self._live += live

    def add_vo(self, samples: Iterable[OdometrySample]) -> None:
        """Appends the network's own odometry; kept where it was the run's."""
        if self._by_network:
            self._odometry += [(sample.stamp_ns, sample.T_odom_base) for sample in samples]

    def finish(
        self,
        truth: Trajectory | None = None,
        outages: Sequence[Outage] | None = None,
        retrieval: Trajectory | None = None,
        published: Mapping[str, int] | None = None,
        start_ns: int | None = None,
    ) -> RunLog:
        """The log. What is not given comes from the events: truth, counts and start; outages from the frames."""
        if start_ns is None:
            start_ns = self._start_ns if self._start_ns is not None else 0
        if truth is None and self._truth:
            truth = trajectory_of(self._truth)
        if outages is None:
            outages = detect_outages(self._statuses, start_ns)
        return RunLog(
            statuses=list(self._statuses),
            live=trajectory_of((state.stamp_ns, state.T_map_base) for state in self._live),
            odometry=trajectory_of(self._odometry) if self._odometry else None,
            truth=truth,
            start_ns=start_ns,
            outages=tuple(outages),
            published=dict(self._published if published is None else published),
            retrieval=retrieval,
        )


def detect_outages(statuses: Sequence[Status], start_ns: int, at_least_s: float = 1.5) -> list[Outage]:
    """Times of at least `at_least_s` in which the frames lacked a modality that the run has at other times."""
    stamps = [status.stamp_ns for status in statuses]
    if not stamps:
        return []
    present: dict[Modality, list[int]] = {Modality.RGB: [], Modality.DEPTH: []}
    for status in statuses:
        if status.key is None:
            continue
        if status.key.image_stamp_ns is not None and Modality.RGB not in status.absent:
            present[Modality.RGB].append(status.stamp_ns)
        if status.key.depth_stamps_ns and Modality.DEPTH not in status.absent:
            present[Modality.DEPTH].append(status.stamp_ns)
    gaps = {
        modality: list(_gaps(sorted(seen), min(stamps), max(stamps), at_least_s))
        for modality, seen in present.items()
        if seen
    }
    borders = sorted({border for spans in gaps.values() for span in spans for border in span})
    outages = []
    for begin, end in itertools.pairwise(borders):
        missing = [m.value for m, spans in gaps.items() if any(a <= begin and end <= b for a, b in spans)]
        if missing and end - begin >= at_least_s * NANOSECONDS:
            outages.append(Outage((begin - start_ns) / NANOSECONDS, (end - start_ns) / NANOSECONDS, "+".join(missing)))
    return outages


def _gaps(seen: list[int], first: int, last: int, at_least_s: float) -> Iterator[tuple[int, int]]:
    edges = [first, *seen, last]
    for begin, end in itertools.pairwise(edges):
        if end - begin >= at_least_s * NANOSECONDS:
            yield begin, end


def write_frames_csv(path: Path, frames: Sequence[Status]) -> None:
    """Writes which messages made up each frame (what `--use-stamps` reads back) and what became of it."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(FRAME_COLUMNS)
    for status in frames:
        if status.key is not None:
            image = "" if status.key.image_stamp_ns is None else str(status.key.image_stamp_ns)
            depth = " ".join(str(stamp) for stamp in status.key.depth_stamps_ns)
            table.writerow(
                [status.key.stamp_ns, image, depth, status.mode.value, status.verdict.value, f"{status.latency_ms:.3f}"]
            )
    files.write_text(path, text.getvalue())


def read_frames_csv(path: Path) -> list[FrameKey]:
    """The frames of a run, in the order in which it used them. `path` is the run's folder or its `frames.csv`.

    Raises:
        TrajectoryError: missing, or not such a table.
    """
    table = path / "frames.csv" if path.is_dir() else path
    try:
        with table.open(newline="", encoding="utf-8") as stream:
            rows = list(csv.DictReader(stream))
    except (OSError, UnicodeDecodeError) as error:
        raise TrajectoryError(f"{table}: cannot be read ({error}); give the folder that a run wrote") from error
    keys = []
    for number, row in enumerate(rows, 2):
        try:
            image = int(row["image_stamp_ns"]) if row["image_stamp_ns"] else None
            depth = tuple(int(stamp) for stamp in row["depth_stamps_ns"].split())
            keys.append(FrameKey(int(row["stamp_ns"]), image, depth))
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            raise TrajectoryError(f"{table}:{number}: not a row of frames.csv ({error!r})") from error
    if not keys:
        raise TrajectoryError(f"{table}: holds no frame")
    return keys
