"""How far an odometry drifts, by the length of the way: percent of translation and degrees per metre (VLocNet, Table
III), beside the guesses of constant velocity that it has to beat.

The measure is KITTI's (A. Geiger, P. Lenz, R. Urtasun, "Are we ready for autonomous driving?", CVPR 2012): every
segment of the path with one of several lengths, wherever it begins; the error is that of the pose of its end in its
beginning, divided by the length of the segment's own path (the nominal length is passed by up to one frame's way).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vmloc_ros.errors import TrajectoryError
from vmloc_ros.geometry import Array, exp_se3, inverse, log_se3, log_so3
from vmloc_ros.trajectory import NANOSECONDS

STEPS = 8
"""So many lengths, in equal steps."""
STEPS_M = (100.0, 10.0, *(base * 10.0**-power for power in range(9) for base in (1.0, 0.5, 0.2)))
"""Between two lengths, descending: 100, 10, 1, 0.5, 0.2, 0.1, ..."""
BEGINNING_S = 10.0
"""A drive's beginning, whose mean motion is one of the guesses."""
VELOCITY_OVER_S = 0.2
"""The true velocity at an instant is taken from so long before it: from one frame to the next a reference jitters."""

Ends = NDArray[np.int64]
Motions = Callable[[Ends, Ends], Array]
"""From the indices where M segments begin and end to their poses T_begin_end (M, 4, 4)."""


@dataclass(frozen=True, eq=False)
class Stretch:
    """A part of a drive without a gap.

    Attributes:
        stamps_ns: (N,) increasing, two at least.
        T_true_N44: the body's true poses in any fixed frame.
        T_odom_N44: what the odometry says, in a fixed frame of its own.
    """

    stamps_ns: NDArray[np.int64]
    T_true_N44: Array
    T_odom_N44: Array

    def __post_init__(self) -> None:
        count = len(self.stamps_ns)
        if count < 2 or len(self.T_true_N44) != count or len(self.T_odom_N44) != count:
            raise TrajectoryError(
                f"a stretch needs two stamps at least and two poses for each, not {count} stamps with "
                f"{len(self.T_true_N44)} and {len(self.T_odom_N44)} poses"
            )
        if not (np.diff(self.stamps_ns) > 0).all():
            raise TrajectoryError("a stretch's stamps must increase")

    def way_m(self) -> Array:
        """Length (N,) of the true path up to each pose."""
        steps = np.linalg.norm(np.diff(self.T_true_N44[:, :3, 3], axis=0), axis=1)
        return np.concatenate([[0.0], np.cumsum(steps)])


@dataclass(frozen=True)
class Drift:
    """Mean errors of all segments, and of those of each length; None where there is no segment.

    Attributes:
        lengths_m: nominal.
        segments: how many of each length.
        translation_percent, rotation_deg_per_m: over all segments of all lengths, as Table III has them.
        translation_percent_by, rotation_deg_per_m_by: for each length.
    """

    lengths_m: tuple[float, ...]
    segments: tuple[int, ...]
    translation_percent: float | None
    rotation_deg_per_m: float | None
    translation_percent_by: tuple[float | None, ...]
    rotation_deg_per_m_by: tuple[float | None, ...]

    def report(self) -> dict[str, Any]:
        """As JSON."""
        by_length = [
            {"length_m": length, "segments": count, "translation_percent": translation, "rotation_deg_per_m": rotation}
            for length, count, translation, rotation in zip(
                self.lengths_m, self.segments, self.translation_percent_by, self.rotation_deg_per_m_by, strict=True
            )
        ]
        return {
            "translation_percent": self.translation_percent,
            "rotation_deg_per_m": self.rotation_deg_per_m,
            "segments": sum(self.segments),
            "by_length": by_length,
        }


def default_lengths(path_m: float) -> tuple[float, ...]:
    """Eight equal steps of the largest of 100, 10, 1, 0.5, 0.2, 0.1, ... m that is at most a tenth of the path.

    1 to 8 m in a room (10 to 100 m driven), 10 to 80 m outdoors (100 m to 1 km), 100 to 800 m, KITTI's, for all beyond.

    Raises:
        TrajectoryError: nothing has moved.
    """
    step_m = next((step for step in STEPS_M if 10.0 * step <= path_m * (1.0 + 1e-9)), None)
    if step_m is None:
        raise TrajectoryError("the path has no length: nothing has moved, so drift over a way has no meaning")
    return tuple(step_m * number for number in range(1, STEPS + 1))


def lengths_for(stretches: Sequence[Stretch]) -> tuple[float, ...]:
    """`default_lengths` of the longest stretch. Raises TrajectoryError where there is none, or nothing has moved."""
    return default_lengths(max((float(stretch.way_m()[-1]) for stretch in stretches), default=0.0))


# ---------------------------------------------------------------------------------------------------------- the measure


def odometry_drift(stretches: Sequence[Stretch], lengths_m: Sequence[float] = ()) -> Drift:
    """Drift of the odometry.

    Args:
        stretches: no segment reaches from one into another.
        lengths_m: positive; empty: `lengths_for` the stretches.

    Raises:
        TrajectoryError: a length that is not positive, or none given and nothing has moved.
    """
    return _drift(stretches, lengths_m, [_between(stretch.T_odom_N44) for stretch in stretches])


def mean_motion_drift(stretches: Sequence[Stretch], twist_6: Array, lengths_m: Sequence[float] = ()) -> Drift:
    """The same of the guess that the body always moves by one twist (see `mean_twist`)."""

    def guess(stretch: Stretch) -> Motions:
        seconds = stretch.stamps_ns / NANOSECONDS - stretch.stamps_ns[0] / NANOSECONDS
        return lambda begin, end: _exp(twist_6 * (seconds[end] - seconds[begin])[:, None])

    return _drift(stretches, lengths_m, [guess(stretch) for stretch in stretches])


def held_velocity_drift(stretches: Sequence[Stretch], lengths_m: Sequence[float] = ()) -> Drift:
    """The same of the guess that the true velocity at a segment's beginning is held to its end."""

    def guess(stretch: Stretch) -> Motions:
        twists_N6 = true_twists(stretch)
        seconds = (stretch.stamps_ns - stretch.stamps_ns[0]) / NANOSECONDS
        return lambda begin, end: _exp(twists_N6[begin] * (seconds[end] - seconds[begin])[:, None])

    return _drift(stretches, lengths_m, [guess(stretch) for stretch in stretches])


def true_twists(stretch: Stretch) -> Array:
    """The true velocity (N, 6) at each stamp, body axes, m/s and rad/s: over the last 0.2 s, at the very beginning over
    the first 0.2 s."""
    over_ns = round(VELOCITY_OVER_S * NANOSECONDS)
    stamps = stretch.stamps_ns
    begin = np.searchsorted(stamps, stamps - over_ns, side="right") - 1
    end = np.arange(len(stamps))
    first = begin < 0
    begin = np.minimum(np.where(first, 0, begin), np.maximum(end - 1, 0))
    end = np.where(first, max(1, int(np.searchsorted(stamps, stamps[0] + over_ns))), end)
    end = np.minimum(end, len(stamps) - 1)
    motions = _between(stretch.T_true_N44)(begin, end)
    seconds = (stamps[end] - stamps[begin]) / NANOSECONDS
    return np.array([log_se3(T) for T in motions]) / seconds[:, None]


def mean_twist(stretches: Sequence[Stretch], first_s: float = math.inf) -> Array:
    """Mean true velocity (6,) in body axes, m/s and rad/s: of training drives, or of the first seconds of a drive.

    Args:
        stretches: in order of time; those after `first_s` of driving do not count.
        first_s: how much counts.

    Raises:
        TrajectoryError: there is no stretch.
    """
    total_6, driven_s = np.zeros(6), 0.0
    for stretch in stretches:
        count = len(stretch.stamps_ns)
        steps = _between(stretch.T_true_N44)(np.arange(count - 1), np.arange(1, count))
        for T, seconds in zip(steps, np.diff(stretch.stamps_ns) / NANOSECONDS, strict=True):
            if driven_s >= first_s:
                break
            total_6 += log_se3(T)
            driven_s += float(seconds)
    if driven_s == 0.0:
        raise TrajectoryError("there is no motion whose mean could be taken")
    return total_6 / driven_s


def _drift(stretches: Sequence[Stretch], lengths_m: Sequence[float], guesses: Sequence[Motions]) -> Drift:
    chosen = tuple(float(length) for length in lengths_m) or lengths_for(stretches)
    if not all(length > 0.0 for length in chosen):
        raise TrajectoryError(f"lengths of segments must be positive, not {chosen}")
    translations: list[Array] = []
    rotations: list[Array] = []
    for length_m in chosen:
        found = [_errors(stretch, length_m, guess) for stretch, guess in zip(stretches, guesses, strict=True)]
        translations.append(np.concatenate([np.empty(0), *(percent for percent, _ in found)]))
        rotations.append(np.concatenate([np.empty(0), *(degrees for _, degrees in found)]))
    return Drift(
        chosen,
        tuple(len(values) for values in translations),
        _mean(np.concatenate(translations)),
        _mean(np.concatenate(rotations)),
        tuple(_mean(values) for values in translations),
        tuple(_mean(values) for values in rotations),
    )


def _errors(stretch: Stretch, length_m: float, guess: Motions) -> tuple[Array, Array]:
    """Percent and degrees per metre of every segment of one length (M,)."""
    way_m = stretch.way_m()
    end = np.searchsorted(way_m, way_m + length_m * (1.0 - 1e-9))  # a sum of steps is never exactly a length
    begin = np.flatnonzero(end < len(way_m))
    end = end[begin]
    if not len(begin):
        return np.empty(0), np.empty(0)
    T_error = _inverses(guess(begin, end)) @ _between(stretch.T_true_N44)(begin, end)
    segment_m = way_m[end] - way_m[begin]
    angles = np.array([float(np.linalg.norm(log_so3(T[:3, :3]))) for T in T_error])
    return 100.0 * np.linalg.norm(T_error[:, :3, 3], axis=1) / segment_m, np.rad2deg(angles) / segment_m


def _mean(values: Array) -> float | None:
    return float(values.mean()) if len(values) else None


def _between(T_N44: Array) -> Motions:
    return lambda begin, end: _inverses(T_N44[begin]) @ T_N44[end]


def _inverses(T_N44: Array) -> Array:
    return np.array([inverse(T) for T in T_N44]).reshape(-1, 4, 4)


def _exp(tangent_N6: Array) -> Array:
    return np.array([exp_se3(tangent) for tangent in tangent_N6]).reshape(-1, 4, 4)
