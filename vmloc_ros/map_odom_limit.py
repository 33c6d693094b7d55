"""Corrections of `map -> odom` for those who steer by it: at most so many metres and radians per second.

A controller follows the robot's pose in the map, `T_map_base = T_map_odom T_odom_base`. What must not jump is therefore
the robot and not the frame `odom`: turning `map -> odom` by 0.01 rad about an origin 500 m away moves the robot by 5 m.
So the correction is measured, limited and interpolated at the robot's present place: the position along a straight
line, the rotation along the shortest arc (slerp), each of the two on its own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from vmloc_ros.geometry import exp_so3, inverse, log_so3, make_pose, orthonormalise
from vmloc_ros.trajectory import NANOSECONDS
from vmloc_ros.types import FusedState

Array = NDArray[np.float64]

GLIDE_AT_MOST_S = 10.0
"""A correction that would take longer than this is made at once: a robot that was carried away, or a lap put right."""


@dataclass(frozen=True, slots=True, eq=False)
class _Shown:
    """What was shown last, beside the filter's state that it stands for."""

    state: FusedState
    shown: FusedState


class MapOdomLimit:
    """Follows the filter's states at no more than the limits.

    Between two states the robot moves as its odometry says (where the odometry was not believed: as the filter says),
    and on top of that by a correction of at most `metres_per_s` and `radians_per_s` times the time between their
    stamps. Position and rotation are limited independently; a limit of 0 is none, so with one limit given the other
    part is the filter's at once.

    A state is shown as it is, at once,

    - when it is the first one, or the first one after `reset`;
    - when its stamp is older than the last one's, or newer by more than `restart_after_s`: nobody follows a transform
      that was gone for so long;
    - when what is shown would be further from the filter's than `GLIDE_AT_MOST_S` seconds of correcting, in position
      or in rotation. So it never is, whatever the filter does.

    These rules know nothing of where a correction comes from. A re-localization, or a pose set by hand, glides as any
    other correction does if it is small enough.

    Attributes:
        at_once: how many corrections were too far to glide.
        pending_m, pending_rad: how far the last pose shown is from the filter's.
    """

    def __init__(self, metres_per_s: float, radians_per_s: float, restart_after_s: float) -> None:
        self._metres_per_s = metres_per_s
        self._radians_per_s = radians_per_s
        self._restart_after_ns = round(restart_after_s * NANOSECONDS)
        self._last: _Shown | None = None
        self.at_once = 0
        self.pending_m = 0.0
        self.pending_rad = 0.0

    def reset(self) -> None:
        """Forgets what was shown: the next state is shown at once."""
        self._last = None
        self.pending_m = self.pending_rad = 0.0

    def follow(self, state: FusedState, bridged: bool = False) -> FusedState:
        """What to show for the filter's next state.

        Args:
            state: the filter's; every number in it is finite.
            bridged: the odometry's increment that led to it was not believed (`Outputs.bridged`). The robot did not
                move by it, so what is shown does not either.

        Returns:
            The state with `T_map_base` and `T_map_odom` as they are to be shown; `T_odom_base`, which leads from one to
            the other, is the same. The very same object where nothing is held back.
        """
        if self._metres_per_s <= 0.0 and self._radians_per_s <= 0.0:
            return state
        last, shown = self._last, state
        self.pending_m = self.pending_rad = 0.0
        if last is not None and 0 <= state.stamp_ns - last.state.stamp_ns <= self._restart_after_ns:
            shown = self._glide(last, state, bridged)
        self._last = _Shown(state, shown)
        return shown

    def _glide(self, last: _Shown, state: FusedState, bridged: bool) -> FusedState:
        T_base_odom = inverse(state.T_map_base) @ state.T_map_odom
        if bridged:
            uncorrected = last.shown.T_map_base @ inverse(last.state.T_map_base) @ state.T_map_base
        else:
            uncorrected = last.shown.T_map_odom @ inverse(T_base_odom)
        way_m = state.T_map_base[:3, 3] - uncorrected[:3, 3]
        turn_rad = log_so3(uncorrected[:3, :3].T @ state.T_map_base[:3, :3])
        metres, radians = float(np.linalg.norm(way_m)), float(np.linalg.norm(turn_rad))
        if not (_in_reach(metres, self._metres_per_s) and _in_reach(radians, self._radians_per_s)):
            self.at_once += 1
            return state
        elapsed_s = (state.stamp_ns - last.state.stamp_ns) / NANOSECONDS
        share_m = _share(metres, self._metres_per_s, elapsed_s)
        share_rad = _share(radians, self._radians_per_s, elapsed_s)
        if share_m == share_rad == 1.0:
            return state
        self.pending_m, self.pending_rad = (1.0 - share_m) * metres, (1.0 - share_rad) * radians
        T_map_base = orthonormalise(
            make_pose(
                uncorrected[:3, :3] @ exp_so3(share_rad * turn_rad),
                uncorrected[:3, 3] + share_m * way_m,
            )
        )
        return replace(state, T_map_base=T_map_base, T_map_odom=T_map_base @ T_base_odom)


def _in_reach(distance: float, per_s: float) -> bool:
    """Whether a correction can be made within `GLIDE_AT_MOST_S`; False where the distance is not a number."""
    return bool(np.isfinite(distance)) and (per_s <= 0.0 or distance <= per_s * GLIDE_AT_MOST_S)


def _share(distance: float, per_s: float, elapsed_s: float) -> float:
    """The part of a correction that may be made in `elapsed_s`, 0 to 1."""
    allowed = per_s * elapsed_s
    return 1.0 if per_s <= 0.0 or distance <= allowed else allowed / distance
