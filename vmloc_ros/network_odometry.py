"""A network's motions between frames, chained to the smooth frame `odom`: odometry for a robot that has none.

A motion `T_begin_end` of the camera, mounted at `T_base_camera = M`, is `M T_begin_end M^-1` of the base, and its right
perturbation `d` is `Ad(M) d` there (J. Sola, J. Deray, D. Atchuthan, arXiv:1812.01537, eq. 175). The chain multiplies
the motions on the right; its own right perturbation is carried over each by `Ad(T_begin_end^-1)`.

The pose never jumps: where a motion is missing the chain holds and goes on later from where it was. What the robot has
driven meanwhile is not in it, and the covariance of the sample after the hole says so.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

import numpy as np

from vmloc_ros.config import FilterConfig, FrameNames, LocalizerConfig
from vmloc_ros.errors import GeometryError
from vmloc_ros.filter import checked_covariance, checked_pose, transport
from vmloc_ros.geometry import Array, adjoint, exp_se3, inverse, log_se3, orthonormalise
from vmloc_ros.trajectory import NANOSECONDS
from vmloc_ros.types import CameraMotion, OdometrySample

REWOUND = 3
"""So many motions in a row that go on from each other, all older than the filter's window, are a clock set back."""
LARGEST_RATE = 9e5
"""m^2/s, rad^2/s: the filter takes a twist covariance from 1e6 on as the mark of one that is not known."""
COUNTED = ("motions", "gaps", "late", "refused")


@dataclass(frozen=True, slots=True, eq=False)
class ChainedPose:
    """One sample of the chain.

    Attributes:
        sample: `T_odom_base`; the twist is the motion's mean over its time, and its covariance times that time is the
            motion's (that is how the filter reads it: `filter.use_twist_covariance`). The first sample, and the one
            at the end of a hole, have no twist.
        cov_66: of the whole way since the chain began, right perturbation of `T_odom_base` (body axes); it only grows.
    """

    sample: OdometrySample
    cov_66: Array


class NetworkOdometry:
    """Chains motions. Not safe for two threads at once: the pipeline holds its lock."""

    def __init__(self, config: FilterConfig, frames: FrameNames) -> None:
        """
        Args:
            config: how far a robot may have gone in a hole (`gap_noise_*`), and `max_odometry_gap_s`.
            frames: the names of `odom` and `base`.
        """
        self._config = config
        self._frames = frames
        self._window_ns = round(config.window_s * NANOSECONDS)
        self._counts = Counter(dict.fromkeys(COUNTED, 0))
        self._T_odom_base = np.eye(4)
        self._cov_66 = np.zeros((6, 6))
        self._end_ns: int | None = None
        self._twist_6 = np.zeros(6)
        self._broken = False
        self._late: list[CameraMotion] = []
        self.problem = ""

    def add(self, motion: CameraMotion | None, T_base_camera: Array) -> list[ChainedPose]:
        """What a frame tells of the way since the one before it.

        Args:
            motion: of the camera; None where the frame could not be compared with one before. A motion that begins
                before the chain's end counts from there on, one that ends there or before is late and changes nothing.
            T_base_camera: the mounting.

        Returns:
            The pose at the motion's end; before it the one at its beginning, where the chain begins or goes on after
            a hole. Nothing where nothing is known.
        """
        if motion is None:
            self._broken = self._broken or self._end_ns is not None
            return []
        motion = self._sound(motion)
        if motion is None or (self._is_late(motion) and not self._rewound(motion)):
            return []
        self._late.clear()
        chained = self._goes_on_from(motion.begin_ns)
        end_ns, begin_ns = motion.end_ns, self._end_ns
        assert begin_ns is not None
        T_camera, cov_66 = _rest(motion, begin_ns)
        turn = adjoint(T_base_camera)
        T_begin_end = T_base_camera @ T_camera @ inverse(T_base_camera)
        chained.append(self._append(T_begin_end, turn @ cov_66 @ turn.T, end_ns))
        return chained

    def _sound(self, motion: CameraMotion) -> CameraMotion | None:
        """The motion with its arrays checked; None, counted and with a `problem`, where it is none."""
        try:
            if motion.end_ns <= motion.begin_ns:
                raise GeometryError(f"it ends at {motion.end_ns} ns and begins at {motion.begin_ns} ns")
            T, cov_66 = checked_pose(motion.T_begin_end), checked_covariance(motion.cov_66)
        except GeometryError as error:
            self._counts["refused"] += 1
            self._broken = self._broken or self._end_ns is not None
            self.problem = f"the network's motion is refused: {error}"
            return None
        self.problem = ""
        return CameraMotion(int(motion.begin_ns), int(motion.end_ns), T, cov_66)

    def _is_late(self, motion: CameraMotion) -> bool:
        return self._end_ns is not None and motion.end_ns <= self._end_ns

    def _rewound(self, motion: CameraMotion) -> bool:
        """Whether a late motion shows that the clock was set back: then the chain goes on in the new time."""
        assert self._end_ns is not None
        self._counts["late"] += 1
        if self._late and motion.begin_ns != self._late[-1].end_ns:
            self._late.clear()
        if motion.end_ns < self._end_ns - self._window_ns:
            self._late.append(motion)
        if len(self._late) < REWOUND:
            return False
        self.break_off()
        return True

    def _goes_on_from(self, begin_ns: int) -> list[ChainedPose]:
        """Brings the chain's end to where a motion begins; gives the pose there if it was not known before."""
        if self._end_ns is None:
            self._end_ns = begin_ns
            self._broken = False
            return [self._chained(None, None)]
        if begin_ns <= self._end_ns:
            self._broken = False
            return []
        self._counts["gaps"] += 1
        self._broken = False
        seconds = (begin_ns - self._end_ns) / NANOSECONDS
        config = self._config
        metres = math.hypot(config.gap_noise_m_per_s, *self._twist_6[:3])
        radians = math.hypot(config.gap_noise_rad_per_s, *self._twist_6[3:])
        # deviations that grow with time: it may have gone on as it went, or turned into any direction
        rates = np.minimum(np.array([metres**2] * 3 + [radians**2] * 3) * seconds, LARGEST_RATE)
        self._cov_66 = self._cov_66 + np.diag(rates * seconds)
        self._end_ns, self._twist_6 = begin_ns, np.zeros(6)
        return [self._chained(None, np.diag(rates))]

    def _append(self, T_begin_end: Array, cov_66: Array, end_ns: int) -> ChainedPose:
        assert self._end_ns is not None
        seconds = (end_ns - self._end_ns) / NANOSECONDS
        carry = transport(T_begin_end)
        grown = carry @ self._cov_66 @ carry.T + cov_66
        self._T_odom_base = orthonormalise(self._T_odom_base @ T_begin_end)
        self._cov_66 = 0.5 * (grown + grown.T)
        self._twist_6 = log_se3(T_begin_end) / seconds
        self._end_ns = end_ns
        self._counts["motions"] += 1
        return self._chained(self._twist_6, cov_66 / seconds)

    def _chained(self, twist_6: Array | None, twist_cov_66: Array | None) -> ChainedPose:
        assert self._end_ns is not None
        frames = self._frames
        sample = OdometrySample(self._end_ns, frames.odom, frames.base, self._T_odom_base, twist_6, twist_cov_66)
        return ChainedPose(sample, self._cov_66)

    def predicted(self, stamp_ns: int) -> Array | None:
        """`T_odom_base` a little ahead of the chain's end, at the last twist; None where that is too far or unknown."""
        if self._end_ns is None or self._broken:
            return None
        ahead_s = (stamp_ns - self._end_ns) / NANOSECONDS
        if not 0.0 < ahead_s <= self._config.max_odometry_gap_s:
            return None
        return self._T_odom_base @ exp_se3(self._twist_6 * ahead_s)

    def break_off(self) -> None:
        """The past counts no more (a reset, another clock): the next motion goes on from this pose, at any stamp."""
        self._end_ns, self._twist_6, self._broken = None, np.zeros(6), False
        self._late.clear()

    def counters(self) -> dict[str, int]:
        """Totals: `vo.motions` chained, `vo.gaps` between them, `vo.late` motions and `vo.refused` ones; empty as long
        as no motion has come."""
        if not any(self._counts.values()):
            return {}
        return {f"vo.{name}": count for name, count in self._counts.items()}


def filter_of(config: LocalizerConfig, max_gap_s: float | None) -> FilterConfig:
    """The filter's parameters for the odometry that is chosen.

    The network's has a covariance that was calibrated on validation data: it is used in place of the noise per metre.
    And a motion over a longer time is no silence as long as the training knew such (`max_gap_s`, of the model's card).
    """
    if config.model.odometry != "network":
        return config.filter
    longest_s = max(config.filter.max_odometry_gap_s, max_gap_s or 0.0)
    return config.filter.model_copy(update={"use_twist_covariance": True, "max_odometry_gap_s": longest_s})


def _rest(motion: CameraMotion, begin_ns: int) -> tuple[Array, Array]:
    """The part of a motion from `begin_ns` inside it to its end, at a constant twist, and its share of the covariance
    (white noise adds up over time)."""
    if begin_ns <= motion.begin_ns:
        return motion.T_begin_end, motion.cov_66
    share = (motion.end_ns - begin_ns) / (motion.end_ns - motion.begin_ns)
    return exp_se3(share * log_se3(motion.T_begin_end)), share * motion.cov_66
