"""Starting from nothing and finding back: measurements that agree among themselves, moved to one time by odometry."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from vmloc_ros.filter import correlation_inflation, predict_covariance, transport, update
from vmloc_ros.geometry import inverse, log_se3
from vmloc_ros.trajectory import NANOSECONDS

Array = NDArray[np.float64]

MAX_AGE_S = 30.0
"""Candidates older than this are forgotten."""


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """A measurement that was not fused.

    Attributes:
        stamp_ns: its stamp.
        key: what names it uniquely.
        T_map_base: the measured pose.
        cov_66: its covariance (right perturbation).
        T_start_base: the dead-reckoned pose at its stamp, in a frame that never jumps.
        metres2, radians2: the dead reckoning's accumulated variances at its stamp.
        agrees: keys of the earlier candidates that it agrees with (keys, for a chain of references would never end).
    """

    stamp_ns: int
    key: tuple[object, ...]
    T_map_base: Array
    cov_66: Array
    T_start_base: Array
    metres2: float
    radians2: float
    agrees: frozenset[tuple[object, ...]] = frozenset()

    def moved(self, T_start_base: Array, metres2: float, radians2: float) -> tuple[Array, Array]:
        """Pose and covariance after the odometry has gone on to `T_start_base` and to these accumulated variances."""
        T_then_now = inverse(self.T_start_base) @ T_start_base
        noise = np.repeat([max(metres2 - self.metres2, 0.0), max(radians2 - self.radians2, 0.0)], 3)
        return self.T_map_base @ T_then_now, predict_covariance(self.cov_66, transport(T_then_now), noise)


def agree(earlier: Candidate, later: Candidate, gate: float) -> bool:
    """Whether two measurements of different times are of the same place, by the chi-square `gate` on their distance."""
    T, P = earlier.moved(later.T_start_base, later.metres2, later.radians2)
    difference = log_se3(inverse(T) @ later.T_map_base)
    try:
        return bool(difference @ np.linalg.solve(P + later.cov_66, difference) <= gate)
    except np.linalg.LinAlgError:
        return False


def join(candidates: Sequence[Candidate], new: Candidate, gate: float, limit: int) -> tuple[Candidate, ...]:
    """The candidates with a further one, which learns whom it agrees with; beyond `limit` the oldest are forgotten."""
    young = [c for c in candidates if new.stamp_ns - c.stamp_ns <= MAX_AGE_S * NANOSECONDS]
    kept = young[max(0, len(young) + 1 - limit) :]
    return (*kept, replace(new, agrees=frozenset(c.key for c in kept if agree(c, new, gate))))


def agreeing(candidates: Sequence[Candidate]) -> tuple[Candidate, ...]:
    """The newest candidate with all those that agree with it and with each other (taken greedily, the newest first), in
    order of time."""
    chosen: list[Candidate] = []
    for candidate in reversed(candidates):
        if all(candidate.key in other.agrees for other in chosen):
            chosen.append(candidate)
    return tuple(reversed(chosen))


def fused(candidates: Sequence[Candidate], correlation_s: float) -> tuple[Array, Array]:
    """Pose and covariance, at the last candidate's time, of all of them together."""
    last = candidates[-1]
    now = (last.T_start_base, last.metres2, last.radians2)
    T, P = candidates[0].moved(*now)
    for before, candidate in pairwise(candidates):
        elapsed_s = (candidate.stamp_ns - before.stamp_ns) / NANOSECONDS
        Z, R = candidate.moved(*now)
        T, P, _ = update(T, P, Z, R * correlation_inflation(elapsed_s, correlation_s))
    return T, P
