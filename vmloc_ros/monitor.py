"""Compares the filter's motion with dead reckoning's over a sliding window of data time.

Both tell how the robot moved from `t - w` to `t`; they differ by what measurements have corrected meanwhile:
`E = (T_odom_base(t-w)^-1 T_odom_base(t))^-1 (T_map_base(t-w)^-1 T_map_base(t))`. With `T_map_odom = T_map_base
T_odom_base^-1` that is `T_odom_base(t)^-1 T_map_odom(t-w)^-1 T_map_odom(t) T_odom_base(t)`: the change of
`map -> odom` at the robot's place, in its own axes. A filter that follows wrong measurements, or odometry that breaks
unnoticed, shows here first (Autoware's `pose_instability_detector` compares the same two).
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vmloc_ros.config import MonitorConfig
from vmloc_ros.geometry import inverse
from vmloc_ros.trajectory import NANOSECONDS

Array = NDArray[np.float64]

KEPT = 250
"""So many poses are kept of a window, however fast the odometry comes."""


@dataclass(frozen=True, slots=True)
class Difference:
    """How far the two motions differ over the last `span_s` seconds (at most the window)."""

    span_s: float
    metres: float
    radians: float


class Monitor:
    """See the module's docstring. Not safe for two threads at once.

    Attributes:
        difference: at the newest pose; None before there are two.
        exceeded: it is beyond a limit.
        count: how often it has gone beyond one.
    """

    def __init__(self, config: MonitorConfig) -> None:
        self._config = config
        self._window_ns = round(config.window_s * NANOSECONDS)
        self._poses: deque[tuple[int, Array]] = deque()  # T_odom_map, without the odometry's jumps
        self._last: tuple[int, Array, Array] | None = None
        self._T_fix: Array | None = None
        self._excluded = False
        self.difference: Difference | None = None
        self.exceeded = False
        self.count = 0

    def clear(self) -> None:
        """Forgets the poses: the data's clock or the filter has started over. The count stays."""
        self._poses.clear()
        self._last = self.difference = None
        self._T_fix = None
        self._excluded = self.exceeded = False

    def exclude(self) -> None:
        """The odometry's motion up to the next pose is not believed (a jump): there, the filter's stands for both."""
        self._excluded = True

    def add(self, stamp_ns: int, T_map_base: Array, T_odom_base: Array) -> None:
        """Takes the filter's pose at an odometry sample, as it was known then. One that is not newer is passed over.

        After a silence longer than the window the comparison starts anew.
        """
        last = self._last
        if last is not None and stamp_ns <= last[0]:
            return
        if last is not None and stamp_ns - last[0] > self._window_ns:
            self.clear()
        elif last is not None and self._excluded:
            T_moved = inverse(last[1]) @ T_map_base
            self._T_fix = last[2] @ T_moved @ inverse(T_odom_base)
        self._excluded = False
        if self._T_fix is not None:
            T_odom_base = self._T_fix @ T_odom_base
        self._last = (stamp_ns, T_map_base, T_odom_base)
        self._keep(stamp_ns, T_map_base, T_odom_base)
        self._compare(stamp_ns, T_map_base, T_odom_base)

    def _keep(self, stamp_ns: int, T_map_base: Array, T_odom_base: Array) -> None:
        poses = self._poses
        while poses and poses[0][0] < stamp_ns - self._window_ns:
            poses.popleft()
        if not poses or stamp_ns - poses[-1][0] >= self._window_ns / KEPT:
            poses.append((stamp_ns, T_odom_base @ inverse(T_map_base)))

    def _compare(self, stamp_ns: int, T_map_base: Array, T_odom_base: Array) -> None:
        begin_ns, T_odom_map = self._poses[0]
        if begin_ns == stamp_ns:
            return
        E = inverse(T_odom_base) @ T_odom_map @ T_map_base
        # plain floats: this is done at every odometry sample
        (r00, r01, r02, x), (r10, r11, r12, y), (r20, r21, r22, z), _ = E.tolist()
        metres = math.hypot(x, y, z)
        radians = math.atan2(math.hypot(r21 - r12, r02 - r20, r10 - r01), r00 + r11 + r22 - 1.0)
        self.difference = Difference((stamp_ns - begin_ns) / NANOSECONDS, metres, radians)
        exceeded = metres > self._config.max_difference_m or radians > self._config.max_difference_rad
        self.count += exceeded and not self.exceeded
        self.exceeded = exceeded
