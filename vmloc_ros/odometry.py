"""Odometry over a sliding window of time: poses `T_odom_base` at any stamp inside it."""

from __future__ import annotations

import bisect
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vmloc_ros.errors import GeometryError
from vmloc_ros.geometry import SMALL_ANGLE_RAD, Array, interpolate, is_pose, log_so3
from vmloc_ros.trajectory import NANOSECONDS


class OdometryBuffer:
    """Poses `T_odom_base` of the last `window_s` seconds, inserted in any order, asked for at any stamp between.

    Between neighbours the rotation is interpolated by slerp and the position linearly; nothing is extrapolated or
    clamped, and pairs further apart than `max_gap_s` are not bridged. Not safe for two threads at once: hand
    `snapshot()` to the other one.
    """

    def __init__(self, window_s: float, max_gap_s: float = float("inf")) -> None:
        if not window_s > 0.0 or not max_gap_s > 0.0:
            raise ValueError(f"window_s and max_gap_s must be positive, not {window_s} and {max_gap_s}")
        self.window_s = window_s
        self.max_gap_s = max_gap_s
        self._window_ns = min(round(window_s * NANOSECONDS), 2**62) if window_s < 1e9 else 2**62
        self._max_gap_ns = round(max_gap_s * NANOSECONDS) if max_gap_s < 1e9 else 2**62
        self._stamps: list[int] = []
        self._poses: list[Array] = []
        self._floor_ns: int | None = None
        self._frozen = False

    def __len__(self) -> int:
        return len(self._stamps)

    @property
    def newest_ns(self) -> int | None:
        return self._stamps[-1] if self._stamps else None

    @property
    def oldest_ns(self) -> int | None:
        return self._stamps[0] if self._stamps else None

    def insert(self, stamp_ns: int, T_odom_base: Array) -> bool:
        """Stores a pose; False where it is older than the window (or than `forget_before`) or its stamp is known.

        Raises:
            GeometryError: not a finite 4x4 rigid transform.
        """
        if not is_pose(T_odom_base, 1e-4):
            raise GeometryError(f"odometry at {stamp_ns / NANOSECONDS:.3f} s is not a finite rigid transform")
        return self.insert_checked(stamp_ns, T_odom_base)

    def insert_checked(self, stamp_ns: int, T_odom_base: Array) -> bool:
        """`insert` for a pose that the caller has checked already (the filter's hot path). The array is not copied."""
        if self._frozen:
            raise TypeError("this is a snapshot: insert into the buffer that it was taken of")
        stamps = self._stamps
        if not stamps:
            if self._floor_ns is not None and stamp_ns < self._floor_ns:
                return False
            stamps.append(stamp_ns)
            self._poses.append(T_odom_base)
            return True
        if stamp_ns > stamps[-1]:
            stamps.append(stamp_ns)
            self._poses.append(T_odom_base)
            self._prune(stamp_ns - self._window_ns)
            return True
        if stamp_ns < stamps[-1] - self._window_ns or (self._floor_ns is not None and stamp_ns < self._floor_ns):
            return False
        index = bisect.bisect_left(stamps, stamp_ns)
        if stamps[index] == stamp_ns:
            return False
        stamps.insert(index, stamp_ns)
        self._poses.insert(index, T_odom_base)
        return True

    def _prune(self, before_ns: int) -> None:
        """Drops what is older, but keeps one sample at or before the edge, so that the whole window has answers."""
        stamps = self._stamps
        if len(stamps) > 1 and stamps[1] <= before_ns:
            keep_from = bisect.bisect_right(stamps, before_ns) - 1
            del stamps[:keep_from], self._poses[:keep_from]

    def forget_before(self, stamp_ns: int) -> None:
        """Drops everything older than a stamp, also what arrives later: the odometry has jumped or restarted."""
        index = bisect.bisect_left(self._stamps, stamp_ns)
        del self._stamps[:index], self._poses[:index]
        self._floor_ns = stamp_ns

    def clear(self) -> None:
        """Forgets everything."""
        if self._frozen:
            raise TypeError("this is a snapshot: clear the buffer that it was taken of")
        self._stamps.clear()
        self._poses.clear()
        self._floor_ns = None

    def covers(self, stamp_ns: int) -> bool:
        """Whether `pose_at` has an answer."""
        return self._bracket(stamp_ns) is not None

    def _bracket(self, stamp_ns: int) -> tuple[int, int] | None:
        stamps = self._stamps
        if not stamps or stamp_ns < stamps[0] or stamp_ns > stamps[-1]:
            return None
        after = bisect.bisect_left(stamps, stamp_ns)
        if stamps[after] == stamp_ns:
            return after, after
        if stamps[after] - stamps[after - 1] > self._max_gap_ns:
            return None
        return after - 1, after

    def pose_at(self, stamp_ns: int) -> Array | None:
        """`T_odom_base` (4, 4) at a stamp; None outside the window or in a gap."""
        bracket = self._bracket(stamp_ns)
        if bracket is None:
            return None
        before, after = bracket
        if before == after:
            return self._poses[before].copy()
        start, end = self._stamps[before], self._stamps[after]
        return interpolate(self._poses[before], self._poses[after], (stamp_ns - start) / (end - start))

    def poses_at(self, stamps_ns_N: ArrayLike) -> Array | None:
        """`T_odom_base` (N, 4, 4) at many stamps in any order; None where one is outside the window or in a gap."""
        queries = np.asarray(stamps_ns_N, dtype=np.int64).reshape(-1)
        if len(queries) == 0:
            return np.empty((0, 4, 4))
        if not self._stamps or queries.min() < self._stamps[0] or queries.max() > self._stamps[-1]:
            return None
        first = max(bisect.bisect_right(self._stamps, int(queries.min())) - 1, 0)
        last = bisect.bisect_left(self._stamps, int(queries.max())) + 1
        stamps = np.array(self._stamps[first:last], dtype=np.int64)
        if len(stamps) == 1:
            return np.tile(self._poses[first], (len(queries), 1, 1))
        before = np.clip(np.searchsorted(stamps, queries, side="right") - 1, 0, len(stamps) - 2)
        elapsed, spans = queries - stamps[before], np.diff(stamps)
        inside = (elapsed != 0) & (elapsed != spans[before])
        if (spans[before[inside]] > self._max_gap_ns).any():
            return None
        return _between(np.stack(self._poses[first:last]), before, elapsed / spans[before])

    def snapshot(self) -> OdometryBuffer:
        """An immutable copy, safe to use from another thread (the pose arrays are shared and never written to)."""
        copy = OdometryBuffer(self.window_s, self.max_gap_s)
        copy._stamps, copy._poses = list(self._stamps), list(self._poses)
        copy._floor_ns, copy._frozen = self._floor_ns, True
        return copy

    def extended(self, stamp_ns: int, T_odom_base: Array) -> OdometryBuffer:
        """An immutable copy with one pose more (one that is predicted: the buffer itself holds what was measured)."""
        copy = self.snapshot()
        copy._frozen = False
        copy.insert(stamp_ns, T_odom_base)
        copy._frozen = True
        return copy


def buffer_of(stamps_ns: Sequence[int] | NDArray[np.int64], poses_N44: Array) -> OdometryBuffer:
    """A buffer that holds a whole trajectory (no window), for tools that work on recordings."""
    buffer = OdometryBuffer(1e9)
    for stamp_ns, pose in zip(stamps_ns, poses_N44, strict=True):
        buffer.insert(int(stamp_ns), pose)
    return buffer


def _between(poses_K44: Array, before_N: NDArray[np.int64], share_N: Array) -> Array:
    """Slerp and linear interpolation at `share` of the way from pose `before` to the next one, for many at once."""
    R = poses_K44[:, :3, :3]
    rotvecs = np.zeros((len(R) - 1, 3))
    for k in np.unique(before_N).tolist():  # a few samples serve the many points of a cloud
        rotvecs[k] = log_so3(R[k].T @ R[k + 1])
    angles = np.linalg.norm(rotvecs, axis=1)
    axes = rotvecs / np.maximum(angles, SMALL_ANGLE_RAD * 1e-12)[:, None]
    cross = np.zeros((len(axes), 3, 3))
    cross[:, 0, 1], cross[:, 0, 2], cross[:, 1, 2] = -axes[:, 2], axes[:, 1], -axes[:, 0]
    cross -= cross.transpose(0, 2, 1)
    # R_before (I + sin(a) K + (1 - cos(a)) K^2): the products with R are taken once per sample, not once per point
    R_cross = R[:-1] @ cross
    R_cross_cross = R_cross @ cross
    turned = share_N * angles[before_N]
    poses = np.zeros((len(before_N), 4, 4))
    poses[:, :3, :3] = R[before_N]
    poses[:, :3, :3] += np.sin(turned)[:, None, None] * R_cross[before_N]
    poses[:, :3, :3] += (2.0 * np.sin(0.5 * turned) ** 2)[:, None, None] * R_cross_cross[before_N]
    positions = poses_K44[:, :3, 3]
    poses[:, :3, 3] = positions[before_N] + share_N[:, None] * (positions[before_N + 1] - positions[before_N])
    poses[:, 3, 3] = 1.0
    return poses
