"""What to believe of an odometry increment: its noise, and the faults that real odometry has.

A segment lies between two odometry samples that are neighbours in time. Whether it is believed depends on nothing but
the segment and on the last motion that was believed before it, so a replay comes to the same verdict whatever the order
of arrival.

Every noise is a variance that adds up over parts of a segment, so that a measurement in its middle changes nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from vmloc_ros.config import FilterConfig
from vmloc_ros.geometry import exp_se3, interpolate, inverse, log_se3
from vmloc_ros.trajectory import NANOSECONDS
from vmloc_ros.types import OdometrySample

Array = NDArray[np.float64]

JUMP_TOLERANCE_RAD = 0.5
"""A turn may exceed what the limits allow by this much (jitter of stamps) before it counts as a jump."""
FROZEN_FROM_M_PER_S = 2.0
"""Repeated poses after a motion faster than this are a frozen source rather than a robot that stopped at once."""
TWIST_FROM_M_PER_S, TWIST_FROM_RAD_PER_S = 0.05, 0.02
"""A twist above either of these, beside a pose that never changes, is of a source that fills in its twist alone."""
TWIST_WIDENED = 4.0
"""Factor on the variances of a way that a twist alone tells: it is sampled, not integrated by its sender."""
BLIND_CORRELATION_S = 1.0
"""For so long the unknown velocity of a robot without odometry is taken as constant; later it is redrawn."""


class OdometryVerdict(StrEnum):
    """What became of an odometry sample, or of the increment that leads to it."""

    USED = "used"
    JUMP = "jump"  # the increment is refused and bridged by the last believed velocity; the new pose is the new anchor
    GAP = "gap"  # a long silence: the increment is used with widened noise
    FROZEN = "frozen"  # the same pose again and again after a fast motion: held, with widened noise
    TWIST_ONLY = "twist_only"  # the same pose again and again while the twist moves: the twist is used, widened
    ERRATIC = "erratic"  # sound by itself, but among jumps: nothing is believed until it has been calm; held, widened
    NOT_FINITE = "not_finite"
    WRONG_FRAME = "wrong_frame"
    DUPLICATE = "duplicate"
    TOO_OLD = "too_old"
    FUTURE = "future"  # a stamp far ahead that the next sample did not confirm
    CLOCK_RESET = "clock_reset"


ERRATIC_ABOVE, JUMPS_REMEMBERED, JUMP_MEMORY_S = 2.0, 4.0, 2.0
"""A count of jumps that fades with the last and never exceeds the second: above the first (three in quick succession)
the odometry is erratic. One jump and back are two; after the last of many it takes 1.4 s to be believed again."""
BELIEVED = (OdometryVerdict.USED, OdometryVerdict.GAP)


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """A part of a segment: the increment, the way driven in it (m) and two variances (m^2, rad^2)."""

    T: Array
    metres: float
    metres2: float
    radians2: float


@dataclass(frozen=True, slots=True, eq=False)
class Motion:
    """The last believed motion.

    Attributes:
        T: the increment.
        seconds: the time it took, with the time before it in which the same pose was repeated.
        end_ns: when it ended.
        velocity: metres per second, body axes.
    """

    T: Array
    seconds: float
    end_ns: int
    velocity: tuple[float, float, float]


class Segment:
    """The increment between two neighbouring odometry samples; `repeated`: both hold the very same pose."""

    __slots__ = ("T", "_whole", "begin", "dt_s", "end", "metres", "metres2", "radians", "radians2", "repeated", "xyz")

    def __init__(self, begin: OdometrySample, end: OdometrySample, config: FilterConfig) -> None:
        self.begin = begin
        self.end = end
        self.dt_s = (end.stamp_ns - begin.stamp_ns) / NANOSECONDS
        # Of the very same pose twice the product is the identity but for rounding, which depends on the processor.
        repeated = bool((begin.T_odom_base == end.T_odom_base).all())
        self.T = np.eye(4) if repeated else inverse(begin.T_odom_base) @ end.T_odom_base
        self.repeated = repeated
        (r00, r01, r02, x), (r10, r11, r12, y), (r20, r21, r22, z), _ = self.T.tolist()
        self.metres = math.sqrt(x * x + y * y + z * z)
        sine = 0.5 * math.sqrt((r21 - r12) ** 2 + (r02 - r20) ** 2 + (r10 - r01) ** 2)
        self.radians = math.atan2(sine, 0.5 * (r00 + r11 + r22 - 1.0))
        self.xyz = (x, y, z)
        self.metres2, self.radians2 = self._noise(config)
        self._whole: Step | None = None

    def _noise(self, config: FilterConfig) -> tuple[float, float]:
        if config.use_twist_covariance and self.end.twist_cov_66 is not None:
            variances = np.diagonal(self.end.twist_cov_66).tolist()
            if all(0.0 < value < 1e6 for value in variances):  # all zero, or -1 first, is how ROS says "not known"
                return sum(variances[:3]) / 3.0 * self.dt_s, sum(variances[3:]) / 3.0 * self.dt_s
        return variances_of_way(self.metres, self.radians, self.dt_s, config)

    def twist_moves(self, config: FilterConfig) -> bool:
        """Whether the twist at its end says that the robot moves, and no faster than it can."""
        twist = self.end.twist_6
        if twist is None:
            return False
        u, v, w, p, q, r = twist.tolist()
        speed, turn = math.hypot(u, v, w), math.hypot(p, q, r)
        possible = speed <= config.max_speed_m_per_s and turn <= config.max_turn_rad_per_s
        return possible and (speed > TWIST_FROM_M_PER_S or turn > TWIST_FROM_RAD_PER_S)

    def motion(self, still_s: float) -> Motion:
        """The motion of this segment, after `still_s` in which a slow source had repeated its pose."""
        seconds = self.dt_s + still_s
        x, y, z = self.xyz
        return Motion(self.T, seconds, self.end.stamp_ns, (x / seconds, y / seconds, z / seconds))

    def whole(self) -> Step:
        """The segment from end to end."""
        if self._whole is None:
            self._whole = Step(self.T, self.metres, self.metres2, self.radians2)
        return self._whole

    def part(self, from_ns: int, to_ns: int) -> Step:
        """The segment between two stamps inside it, by the interpolated poses."""
        begin_ns, end_ns = self.begin.stamp_ns, self.end.stamp_ns
        if from_ns == begin_ns and to_ns == end_ns:
            return self.whole()
        span = end_ns - begin_ns
        T_begin, T_end = self.begin.T_odom_base, self.end.T_odom_base
        T_from = T_begin if from_ns == begin_ns else interpolate(T_begin, T_end, (from_ns - begin_ns) / span)
        T_to = T_end if to_ns == end_ns else interpolate(T_begin, T_end, (to_ns - begin_ns) / span)
        T = inverse(T_from) @ T_to
        share = (to_ns - from_ns) / span
        return Step(T, share * self.metres, share * self.metres2, share * self.radians2)

    def by_twist(self, from_ns: int, to_ns: int, config: FilterConfig) -> Step:
        """The way between two stamps inside it as the twist at its end tells it, with wider noise."""
        assert self.end.twist_6 is not None
        seconds = (to_ns - from_ns) / NANOSECONDS
        way = self.end.twist_6 * seconds
        metres, radians = float(np.linalg.norm(way[:3])), float(np.linalg.norm(way[3:]))
        metres2, radians2 = variances_of_way(metres, radians, seconds, config)
        return Step(exp_se3(way), metres, TWIST_WIDENED * metres2, TWIST_WIDENED * radians2)

    def motion_by_twist(self) -> Motion:
        """The motion that the twist at its end tells of."""
        assert self.end.twist_6 is not None
        u, v, w = self.end.twist_6[:3].tolist()
        return Motion(exp_se3(self.end.twist_6 * self.dt_s), self.dt_s, self.end.stamp_ns, (u, v, w))


def variances_of_way(metres: float, radians: float, seconds: float, config: FilterConfig) -> tuple[float, float]:
    """Variances (m^2, rad^2) of a way driven, by the parameters per metre, radian and second."""
    metres2 = config.noise_m_per_m**2 * metres + config.noise_m_per_s**2 * seconds
    radians2 = (
        config.noise_rad_per_m**2 * metres + config.noise_rad_per_rad**2 * radians + config.noise_rad_per_s**2 * seconds
    )
    return metres2, radians2


def judge(
    segment: Segment,
    motion: Motion | None,
    still_s: float,
    config: FilterConfig,
    before: OdometryVerdict = OdometryVerdict.USED,
) -> OdometryVerdict:
    """Whether an increment can be believed.

    Args:
        segment: the increment.
        motion: the last believed motion before it, None where there is none.
        still_s: for how long the same pose has been repeated since then; a slow source then moves in steps.
        config: the limits.
        before: the verdict on the segment before.
    """
    if segment.repeated:
        known = before is OdometryVerdict.TWIST_ONLY or still_s > config.max_odometry_gap_s
        if known and segment.twist_moves(config):
            return OdometryVerdict.TWIST_ONLY
    elif before in (OdometryVerdict.FROZEN, OdometryVerdict.TWIST_ONLY):
        return OdometryVerdict.JUMP  # what it catches up with has been bridged already
    dt, tolerance = segment.dt_s, config.jump_tolerance_m
    if (
        segment.metres > config.max_speed_m_per_s * (dt + still_s) + tolerance
        or segment.radians > config.max_turn_rad_per_s * (dt + still_s) + JUMP_TOLERANCE_RAD
    ):
        return OdometryVerdict.JUMP
    if dt > config.max_odometry_gap_s:
        return OdometryVerdict.GAP
    if motion is None:
        return OdometryVerdict.USED
    (x, y, z), (u, v, w) = segment.xyz, motion.velocity
    surprise = min(math.hypot(x - u * t, y - v * t, z - w * t) for t in ((dt, dt + still_s) if still_s else (dt,)))
    if surprise > tolerance:  # else not even instant acceleration makes it a jump
        age_s = (segment.begin.stamp_ns - motion.end_ns) / NANOSECONDS
        if surprise > tolerance + config.max_acceleration_m_per_s2 * (dt + still_s) * (dt + age_s):
            return OdometryVerdict.JUMP
    was_fast = u * u + v * v + w * w > FROZEN_FROM_M_PER_S**2
    if was_fast and segment.repeated and still_s > config.max_odometry_gap_s:
        return OdometryVerdict.FROZEN
    return OdometryVerdict.USED


def count_jumps(jumps: float, elapsed_s: float, jumped: bool) -> float:
    """The fading count of jumps after `elapsed_s` more, and perhaps one more jump."""
    return min(jumps * math.exp(-elapsed_s / JUMP_MEMORY_S) + jumped, JUMPS_REMEMBERED)


def blind_growth(before_s: float, after_s: float) -> float:
    """Square seconds by which `deviation per second` squared is multiplied while blind from `before_s` to `after_s`.

    `t^2` as long as the unknown velocity stays the same, then its tangent: independent draws add their variances.
    """

    def total(t: float) -> float:
        return t * t if t < BLIND_CORRELATION_S else BLIND_CORRELATION_S * (2.0 * t - BLIND_CORRELATION_S)

    return total(after_s) - total(before_s)


def widened(step: Step, before_s: float, after_s: float, config: FilterConfig) -> Step:
    """A step whose variances are those of a gap as well."""
    growth = blind_growth(before_s, after_s)
    return Step(
        step.T,
        step.metres,
        step.metres2 + config.gap_noise_m_per_s**2 * growth,
        step.radians2 + config.gap_noise_rad_per_s**2 * growth,
    )


def coasting(motion: Motion | None, from_ns: int, to_ns: int, config: FilterConfig) -> Step:
    """The step of a robot without believable odometry: it keeps the last believed velocity for `max_odometry_gap_s`,
    then stands still. Carries no noise of its own: see `widened`."""
    moving_ns = 0
    if motion is not None:
        until_ns = motion.end_ns + round(config.max_odometry_gap_s * NANOSECONDS)
        moving_ns = max(min(to_ns, until_ns) - from_ns, 0)
    if motion is None or moving_ns == 0:
        return Step(np.eye(4), 0.0, 0.0, 0.0)
    T = exp_se3(log_se3(motion.T) * (moving_ns / NANOSECONDS / motion.seconds))
    return Step(T, float(np.linalg.norm(T[:3, 3])), 0.0, 0.0)
