"""A localizer whose last answers are joined by odometry before the newest is given out (MapNet+PGO).

S. Brahmbhatt et al., CVPR 2018: the poses of a sliding window of seven frames are optimised at run time together with
the visual odometry between them. Here the odometry is the filter's (`CameraPrior.T_odom_camera`), and the pose that is
given out is the newest: nothing waits for later frames.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Self

import numpy as np

from vmloc_ros.errors import GeometryError
from vmloc_ros.geometry import Array, inverse, log_so3
from vmloc_ros.localizers.base import Localizer, Remembering
from vmloc_ros.pose_graph import Anchor, Way, at_least, effective_number, load_gtsam, solve, variance_of
from vmloc_ros.pose_graph_config import PoseGraphConfig
from vmloc_ros.trajectory import NANOSECONDS
from vmloc_ros.types import CameraPrior, Frame, NoPose, PoseEstimate

COUNTED = ("smoothed", "no_odometry", "gaps", "jumps", "still", "backwards", "failed")
STILL = 1e-9
"""Metres and radians. A filter without odometry holds the odometry's pose: that it has not moved says nothing."""


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """One answer of the network, and where the odometry had the camera then."""

    estimate: PoseEstimate
    T_odom_camera: Array

    @property
    def stamp_ns(self) -> int:
        return self.estimate.stamp_ns


class PoseGraphLocalizer:
    """Smooths another localizer's answers over `PoseGraphConfig.window` of them.

    The answer is the newest pose of the graph. Its covariance is the graph's marginal, kept honest twice, for errors of
    neighbouring frames are alike. Every pose of the window enters with its covariance times N over the number of
    independent errors that N correlated ones amount to. And the answer never claims more than the network does of this
    frame: consecutive answers share their window, so a filter that takes them for the network's would otherwise count
    the same frames again with each of them.

    Without odometry, after a gap, or where the odometry was reset, the network's answer is given as it is, and a new
    window begins; `counters` say how often.
    """

    def __init__(self, inner: Localizer, config: PoseGraphConfig) -> None:
        """
        Raises:
            SetupError: GTSAM is not installed.
        """
        load_gtsam()
        self.card, self.device, self.fallback = inner.card, inner.device, inner.fallback
        self._inner, self._config = inner, config
        self._window: list[Seen] = []
        self._counts: Counter[str] = Counter()

    def localize(self, frame: Frame, prior: CameraPrior | None = None) -> PoseEstimate | NoPose:
        """See `Localizer`; the odometry comes with `prior`."""
        answer = self._inner.localize(frame, prior)
        if isinstance(answer, NoPose):
            return answer
        if prior is None:
            self._window.clear()
            self._counts["no_odometry"] += 1
            return answer
        self._add(Seen(answer, prior.T_odom_camera))
        if len(self._window) == 1:
            return answer
        try:
            smoothed = newest(self._window, self._config)
        except GeometryError:  # e.g. a covariance that is none: the filter will say so of the answer itself
            self._counts["failed"] += 1
            self._window.clear()
            return answer
        self._counts["smoothed"] += 1
        return smoothed

    def _add(self, seen: Seen) -> None:
        """Takes an answer into the window, which it may begin anew."""
        window, config = self._window, self._config
        if window:
            why = break_between(window[-1], seen, config)
            if why:
                self._counts[why] += 1
                window.clear()
        close_ns = config.spacing_s * NANOSECONDS
        if len(window) > 1 and window[-1].stamp_ns - window[-2].stamp_ns < close_ns:
            window.pop()  # it was there as the newest
        window.append(seen)
        del window[: -config.window]

    def warm_up(self) -> None:
        """See `Localizer`."""
        self._inner.warm_up()

    def reset(self) -> None:
        """See `Localizer`."""
        self._inner.reset()
        self._window.clear()

    def fork(self) -> Self:
        """See `Remembering`."""
        inner = self._inner.fork() if isinstance(self._inner, Remembering) else self._inner
        return type(self)(inner, self._config)

    def counters(self) -> dict[str, int]:
        """`graph.smoothed` answers; those without odometry; and the windows that were ended by a gap, a jump of the
        odometry or of the clock, an odometry that stands still, or a graph without solution."""
        own = {f"graph.{name}": self._counts[name] for name in COUNTED}
        return {**self._inner.counters(), **own} if isinstance(self._inner, Remembering) else own


def break_between(before: Seen, now: Seen, config: PoseGraphConfig) -> str:
    """Why the odometry between two answers cannot be used; empty if it can."""
    seconds = (now.stamp_ns - before.stamp_ns) / NANOSECONDS
    if seconds <= 0.0:
        return "backwards"
    if seconds > config.max_gap_s:
        return "gaps"
    if np.abs(now.T_odom_camera - before.T_odom_camera).max() < STILL:
        return "still"
    metres = float(np.linalg.norm(now.T_odom_camera[:3, 3] - before.T_odom_camera[:3, 3]))
    return "jumps" if not metres <= config.max_speed_m_per_s * seconds else ""


def way_between(before: Seen, now: Seen, config: PoseGraphConfig) -> Way:
    """The odometry between two answers, and how sure it is."""
    T = inverse(before.T_odom_camera) @ now.T_odom_camera
    seconds = (now.stamp_ns - before.stamp_ns) / NANOSECONDS
    metres, radians = float(np.linalg.norm(T[:3, 3])), float(np.linalg.norm(log_so3(T[:3, :3])))
    metres2 = config.noise_m_per_m**2 * metres + config.noise_m_per_s**2 * seconds
    radians2 = (
        config.noise_rad_per_m**2 * metres + config.noise_rad_per_rad**2 * radians + config.noise_rad_per_s**2 * seconds
    )
    return Way(T, metres, variance_of(math.sqrt(metres2), math.sqrt(radians2)))


def newest(window: Sequence[Seen], config: PoseGraphConfig) -> PoseEstimate:
    """The last of some answers as all of them together tell it.

    Raises:
        GeometryError: the graph has no solution.
    """
    seconds = np.array([seen.stamp_ns - window[0].stamp_ns for seen in window]) / NANOSECONDS
    growth = len(window) / effective_number(seconds, config.correlation_s)
    anchors = [
        Anchor(node, seen.estimate.T_map_camera, growth * seen.estimate.cov_66) for node, seen in enumerate(window)
    ]
    ways = [way_between(before, now, config) for before, now in pairwise(window)]
    guess = np.array([seen.estimate.T_map_camera for seen in window])
    last = len(window) - 1
    solution = solve(guess, anchors, ways, [last], config.kernel)
    estimate = window[-1].estimate
    return replace(
        estimate,
        T_map_camera=solution.poses_N44[last],
        cov_66=at_least(solution.covariances[last], estimate.cov_66),
    )
