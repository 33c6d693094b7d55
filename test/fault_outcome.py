"""What one fault led to: everything that the node published, the laws that hold for it, and the time to recover."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from faulty_world import Faults
from geometry_msgs.msg import PoseWithCovarianceStamped
from nav_msgs.msg import Path as PathMessage
from sensor_msgs.msg import Image
from tf2_msgs.msg import TFMessage
from vmloc_msgs.msg import LocalizationStatus

from vmloc_ros.geometry import Array, pose_from_quaternion
from vmloc_ros.messages import stamp_ns
from vmloc_ros.types import Event, EventKind

HOLE_S = 0.4
"""Without a pose for longer than this (of data) nobody knows where the robot is."""
SETTLED_S = 1.5
"""By then the filter has started."""
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
    def transforms(self) -> list[Any]:
        """All transforms of /tf in order."""
        return [transform for message in self.tf for transform in message.transforms]

    def forget_first_round(self) -> None:
        """Drops the poses from before the data began again."""
        stamps = [stamp_ns(pose.header.stamp) for pose in self.poses]
        falls = [k for k in range(1, len(stamps)) if stamps[k] < stamps[k - 1]]
        del self.poses[: max(falls)]

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
        """Prints a row of docs/faults.md and holds the recovery against its limit; before the fault all was well."""
        before = self.errors(SETTLED_S, from_s)
        assert (before[:, 1] < limit_m).all(), f"{fault}: wrong before it: {before[before[:, 1] >= limit_m]}"
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
        assert [stamp_ns(p.header.stamp) for p in self.poses] == stamps, "~/pose and TF disagree"
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
            seen = counted[f"{name}.received"] + counted[f"rejected.{kind.value}_not_finite"]
            assert seen == self.sent[kind], f"{name}: {counted}"
        assert counted["frames.paired"] == counted["frames.inferred"] + counted["frames.stale"]
        assert counted["frames.inferred"] == len(self.frames)
        assert counted["frames.inferred"] == counted["frames.no_pose"] + self.total("verdict.")

    def total(self, prefix: str) -> int:
        """Sum of the counters whose names begin so."""
        return sum(count for name, count in self.counted.items() if name.startswith(prefix))

    def check_transforms(self, sent: Iterable[Event]) -> None:
        """`map -> odom` times the odometry that was sent is the pose, at every stamp."""
        T_odom_base = {e.stamp_ns: e.payload.T_odom_base for e in sent if e.kind is EventKind.ODOMETRY}
        for pose, transform in zip(self.poses, self.transforms, strict=True):
            T_map_base = transform_of(transform.transform) @ T_odom_base[stamp_ns(pose.header.stamp)]
            np.testing.assert_allclose(T_map_base, pose_of(pose.pose.pose), atol=1e-5)
