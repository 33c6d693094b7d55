"""A node to try faults on: what it was sent, what it said, what it did, and how long it took to be right again.

Several tests share one node. Between them the reset service makes it forget everything but its calibration, and the
totals of before are subtracted.
"""

from __future__ import annotations

import contextlib
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray
from faulty_world import Faults
from geometry_msgs.msg import PoseWithCovarianceStamped
from nav_msgs.msg import Path as PathMessage
from ros_graph import Graph, NodeProcess, running_node, wait_until
from sensor_msgs.msg import Image
from std_srvs.srv import Trigger
from tf2_msgs.msg import TFMessage
from vmloc_msgs.msg import LocalizationStatus
from worlds import SECOND, START_NS, mountings, odometry

from vmloc_ros.geometry import Array, pose_from_quaternion
from vmloc_ros.messages import stamp_ns
from vmloc_ros.ros import qos
from vmloc_ros.types import Event, EventKind

SPEED = 5.0
HOLE_S = 0.4
"""Without a pose for longer than this (of data) nobody knows where the robot is."""
PROBE_NS = START_NS - 100_000 * SECOND
CARRIED = (EventKind.IMAGE, EventKind.CLOUD, EventKind.DEPTH, EventKind.SCAN)
RECEIVED = {EventKind.IMAGE: "images", EventKind.CLOUD: "clouds", EventKind.DEPTH: "depths", EventKind.SCAN: "scans"}


def pose_of(pose: Any) -> Array:
    """`T` of a geometry_msgs/Pose."""
    p, q = pose.position, pose.orientation
    return pose_from_quaternion([p.x, p.y, p.z], [q.x, q.y, q.z, q.w])


def transform_of(transform: Any) -> Array:
    """`T_parent_child` of a geometry_msgs/Transform."""
    t, q = transform.translation, transform.rotation
    return pose_from_quaternion([t.x, t.y, t.z], [q.x, q.y, q.z, q.w])


def totals(status: LocalizationStatus) -> Counter[str]:
    """The counters of a status."""
    return Counter(dict(zip(status.counter_names, status.counter_values, strict=True)))


def numbers(message: Any) -> Iterator[float]:
    """Every floating point number in a message, however deep."""
    if isinstance(message, float):
        yield message
    elif hasattr(message, "get_fields_and_field_types"):
        for name in message.get_fields_and_field_types():
            yield from numbers(getattr(message, name))
    elif not isinstance(message, str | bytes | bytearray) and hasattr(message, "__iter__"):
        for item in message:
            yield from numbers(item)


@dataclass
class Outcome:
    """What one fault led to.

    Attributes:
        faults: the world's, which knows the truth.
        poses, network, tf, statuses, paths, depths: everything the node published.
        counted: how much every counter has grown; verdicts are final.
        sent: messages by kind.
        log: what the node has logged.
    """

    faults: Faults
    poses: list[PoseWithCovarianceStamped]
    network: list[PoseWithCovarianceStamped]
    tf: list[TFMessage]
    statuses: list[LocalizationStatus]
    paths: list[PathMessage]
    depths: list[Image]
    counted: Counter[str]
    sent: Counter[EventKind]
    log: str

    @property
    def frames(self) -> list[LocalizationStatus]:
        """The statuses of frames, without heartbeats."""
        return [status for status in self.statuses if status.is_frame]

    @property
    def distinct_poses(self) -> list[PoseWithCovarianceStamped]:
        """The first of the poses with one stamp."""
        pairs = itertools.pairwise([None, *self.poses])
        return [pose for before, pose in pairs if before is None or before.header.stamp != pose.header.stamp]

    @property
    def transforms(self) -> list[Any]:
        """All transforms of /tf in order."""
        return [transform for message in self.tf for transform in message.transforms]

    def errors(self, from_s: float = -np.inf, to_s: float = np.inf) -> Array:
        """(N, 2) of ~/pose: seconds of the drive, metres off the truth."""
        rows = []
        for pose in self.poses:
            stamp = stamp_ns(pose.header.stamp)
            rows.append((self.faults.seconds(stamp), self.off_m(pose)))
        table = np.array(rows).reshape(-1, 2)
        return np.asarray(table[(table[:, 0] >= from_s) & (table[:, 0] < to_s)])

    def off_m(self, pose: PoseWithCovarianceStamped) -> float:
        """How far from the truth a pose is."""
        T_map_base = self.faults.true_pose(stamp_ns(pose.header.stamp))
        return float(np.linalg.norm(pose_of(pose.pose.pose)[:3, 3] - T_map_base[:3, 3]))

    def worst_m(self, from_s: float = -np.inf, to_s: float = np.inf) -> float:
        """The largest error in a span of the drive; a span without a pose is an error of the test."""
        errors = self.errors(from_s, to_s)
        assert len(errors), f"no pose between {from_s} and {to_s} s"
        return float(errors[:, 1].max())

    def covariance_near(self, second: float) -> Array:
        """The covariance (6, 6) of ~/pose nearest to a time of the drive."""
        poses = {abs(self.faults.seconds(stamp_ns(p.header.stamp)) - second): p for p in self.poses}
        return np.reshape(poses[min(poses)].pose.covariance, (6, 6))

    def recovery_s(self, from_s: float, limit_m: float) -> float:
        """Data time from `from_s` until the pose is there and below `limit_m`, for good; infinite if it never is.

        The poses are looked at in order of arrival, so those of a bag's second round can be asked for alone.
        """
        good_since, before_s = np.inf, from_s - HOLE_S
        for seconds, error_m in self.errors(from_s):
            if error_m >= limit_m:
                good_since = np.inf
            elif not np.isfinite(good_since) or seconds - before_s > HOLE_S:
                good_since = seconds
            before_s = seconds
        return float(good_since - from_s)

    def tell(self, fault: str, from_s: float, limit_m: float, within_s: float) -> float:
        """Prints a row of docs/faults.md and holds the recovery against its limit."""
        recovery_s = self.recovery_s(from_s, limit_m)
        worst_m = float(self.errors(from_s)[:, 1].max(initial=0.0))
        print(
            f"\nFAULT {fault}: below {limit_m:g} m for good {recovery_s:.2f} s after it (limit {within_s:g} s), ",
            end="",
        )
        print(f"worst {worst_m:.1f} m, " + ", ".join(f"{k}: {n}" for k, n in sorted(self.counted.items()) if n))
        assert recovery_s <= within_s, f"{fault}: {recovery_s:.2f} s until below {limit_m} m"
        return recovery_s

    # ------------------------------------------------------------------------------------------------------------ laws

    def check_outputs(self, falls: int = 0) -> None:
        """Nothing that is not finite; TF stamps never repeat, and fall back only where the data did."""
        for message in (*self.poses, *self.network, *self.tf, *self.statuses, *self.paths):
            assert np.isfinite(list(numbers(message))).all(), f"not finite: {message}"
        for image in self.depths:
            assert not np.isinf(np.frombuffer(image.data, np.float32)).any()
        assert {(t.header.frame_id, t.child_frame_id) for t in self.transforms} <= {("map", "odom")}
        stamps = [stamp_ns(t.header.stamp) for t in self.transforms]
        assert sum(after == before for before, after in itertools.pairwise(stamps)) == 0, "TF repeats a stamp"
        assert sum(after < before for before, after in itertools.pairwise(stamps)) == falls, "TF goes backwards"
        assert [stamp_ns(p.header.stamp) for p in self.distinct_poses] == stamps, "~/pose and TF disagree"
        for pose in self.poses:
            cov_66 = np.reshape(pose.pose.covariance, (6, 6))
            assert np.linalg.eigvalsh(0.5 * (cov_66 + cov_66.T)).min() > 0.0

    def check_counters(self) -> None:
        """Whatever was sent is accounted for, message by message."""
        counted = self.counted
        odd_stamps = sum(n for name, n in counted.items() if name.startswith("rejected.stamp_"))
        odometries = self.total("odometry.") + self.total("rejected.odom_")
        assert odometries <= self.sent[EventKind.ODOMETRY] <= odometries + odd_stamps
        for kind, name in RECEIVED.items():
            refused = sum(counted[f"rejected.{kind.value}_{why}"] for why in ("empty", "sizes", "fields", "not_finite"))
            assert counted[f"{name}.received"] + refused == self.sent[kind], f"{name}: {counted}"
        assert counted["frames.paired"] == counted["frames.inferred"] + counted["frames.stale"]
        assert counted["frames.inferred"] == len(self.frames)
        assert counted["frames.inferred"] == counted["frames.no_pose"] + self.total("verdict.")

    def total(self, prefix: str) -> int:
        """Sum of the counters whose names begin so."""
        return sum(count for name, count in self.counted.items() if name.startswith(prefix))

    def check_transforms(self, sent: Iterable[Event]) -> None:
        """`map -> odom` times the odometry that was sent is the pose, at every stamp."""
        T_odom_base = {e.stamp_ns: e.payload.T_odom_base for e in sent if e.kind is EventKind.ODOMETRY}
        for pose, transform in zip(self.distinct_poses, self.transforms, strict=True):
            T_map_base = transform_of(transform.transform) @ T_odom_base[stamp_ns(pose.header.stamp)]
            np.testing.assert_allclose(T_map_base, pose_of(pose.pose.pose), atol=1e-5)


@dataclass
class FaultBench:
    """A running node, and everything it publishes."""

    graph: Graph
    node: NodeProcess
    folder: Path
    faults: Faults = field(default_factory=Faults)

    def __post_init__(self) -> None:
        collect = self.graph.collect
        self.poses = collect(PoseWithCovarianceStamped, "/localizer/pose")
        self.network = collect(PoseWithCovarianceStamped, "/localizer/network_pose")
        self.tf = collect(TFMessage, "/tf")
        self.statuses = collect(LocalizationStatus, "/localizer/status")
        self.paths = collect(PathMessage, "/localizer/path", qos.latched())
        self.depths = collect(Image, "/localizer/projected_depth")
        self.diagnostics = collect(DiagnosticArray, "/diagnostics")
        self._before: Counter[str] = Counter()
        self._sent: Counter[EventKind] = Counter()
        self._log_begin = 0
        self._probes = 0

    def begin(self, faults: Faults | None = None) -> None:
        """A new fault on a node that knows nothing but its calibration."""
        self.faults = faults or Faults()
        self.faults.write(self.folder)
        self._before = self._probe()
        for received in (self.poses, self.network, self.tf, self.statuses, self.paths, self.depths):
            received.clear()
        self._sent.clear()
        self._log_begin = len(self.node.output())

    def play(self, events: Iterable[Event], speed: float = SPEED) -> None:
        """Sends a drive (without its mountings, which the node has)."""
        events = [event for event in events if event.kind is not EventKind.STATIC_TRANSFORM]
        self._sent.update(event.kind for event in events)
        self.graph.play(events, speed)

    def count_sent(self, kind: EventKind, count: int = 1) -> None:
        """For messages that the test has published itself."""
        self._sent[kind] += count

    def end(self) -> Outcome:
        """Waits until every message was seen and every frame processed, and takes the final counters."""
        mark = len(self.statuses)
        with contextlib.suppress(AssertionError):  # what is missing says more
            wait_until(lambda: self._missing(self.statuses[mark:]) == "", "the end of the work")
        missing = self._missing(self.statuses[mark:])
        assert not missing, missing
        published = [list(x) for x in (self.poses, self.network, self.tf, self.statuses, self.paths, self.depths)]
        after = self._probe()
        after.subtract(self._before)
        after.subtract({"resets": 2, "odometry.wrong_frame": 2})  # the probe's own
        log = self.node.output()[self._log_begin :]
        return Outcome(self.faults, *published, after, Counter(self._sent), log)

    def _missing(self, statuses: list[LocalizationStatus]) -> str:
        """What the node still has to do, by a status that it gives when every input is silent; empty: nothing."""
        silent = [s for s in statuses if s.reason == "every input is silent"]
        if not silent:
            return "a status in the silence after the drive"
        now = totals(silent[-1])
        now.subtract(self._before)
        seen = [now[f"{name}.received"] + now[f"rejected.{kind.value}_empty"] for kind, name in RECEIVED.items()]
        sent = [self._sent[kind] for kind in RECEIVED]
        frames = len([s for s in self.statuses if s.is_frame])
        done = now["frames.inferred"] + now["frames.stale"]
        if seen == sent and done == now["frames.paired"] and frames == now["frames.inferred"]:
            return ""
        return f"received {seen} of {sent}, frames {frames}: {dict(now)}"

    def say(self, part: str, counter: str, text: str = "") -> Any:
        """Waits for a line of /diagnostics with a counter that has grown; with `text` it must warn in these words."""

        def found() -> list[Any]:
            grown = [line for line in lines(self.diagnostics, part) if self._grown(line, counter)]
            return [line for line in grown if not text or (line.level[0] in (1, 2) and text in line.message)]

        wait_until(lambda: bool(found()), f"{counter} and {text!r} in the diagnostics of {part}")
        return found()[-1]

    def _grown(self, line: Any, counter: str) -> bool:
        values = {value.key: value.value for value in line.values}
        return int(values.get(counter, 0)) > self._before[counter]

    def _probe(self) -> Counter[str]:
        """The totals with every verdict final.

        A reset makes them final. Two samples of odometry, of a frame that is refused at once, then lead to a heartbeat.
        """
        self._reset()
        self._probes += 1
        stamp = PROBE_NS + self._probes * 10 * SECOND
        stray = [odometry(stamp + k * SECOND, np.eye(4), frame_id="probe") for k in range(2)]
        self.graph.send(stray)

        def answers() -> list[LocalizationStatus]:
            return [
                s for s in self.statuses if s.reason == "no frame" and stamp_ns(s.header.stamp) == stray[1].stamp_ns
            ]

        wait_until(lambda: bool(answers()), "a heartbeat")
        counted = totals(answers()[-1])
        self._reset()
        return counted

    def _reset(self) -> None:
        answer = self.graph.call(Trigger, "/localizer/reset", Trigger.Request())
        assert answer.success, answer.message


def lines(arrays: Iterable[DiagnosticArray], part: str) -> list[Any]:
    """All lines of a part."""
    return [line for array in list(arrays) for line in array.status if line.name == f"localizer: {part}"]


@contextmanager
def fault_bench(folder: Path, parameters: dict[str, Any] | None = None) -> Iterator[FaultBench]:
    """A node in a faulty world, with its mountings; it must end in order."""
    graph = Graph()
    Faults().write(folder)
    parameters = dict(parameters or {})
    parameters["model"] = {"path": str(folder / "faulty"), **parameters.get("model", {})}
    try:
        with running_node(folder, parameters) as node:
            bench = FaultBench(graph, node, folder)
            node.wait_for("active;")
            graph.send(mountings())
            yield bench
            assert node.end() == 0, node.output()
            assert "Traceback" not in node.output()
    finally:
        graph.close()
