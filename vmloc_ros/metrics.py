"""How far estimated poses are from the true ones, and whether their covariances told so."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binom

from vmloc_ros.errors import TrajectoryError
from vmloc_ros.geometry import Array, inverse, log_se3, rotation_angle
from vmloc_ros.trajectory import Trajectory

PLANAR = (0, 1, 5)
"""Forward, left and yaw: the part of a pose that a ground vehicle steers."""


def pose_errors(estimates: Trajectory, truth: Trajectory) -> tuple[Array, Array]:
    """Position errors (N,) in metres and rotation errors (N,) in degrees, against the truth interpolated to each stamp.

    Raises:
        TrajectoryError: a stamp lies outside the truth or in a gap of it.
    """
    position, rotation = np.empty(len(estimates)), np.empty(len(estimates))
    for k, (stamp_ns, T) in enumerate(zip(estimates.stamps_ns.tolist(), estimates.poses_N44, strict=True)):
        T_true = truth.interpolate(stamp_ns)
        position[k] = np.linalg.norm(T[:3, 3] - T_true[:3, 3])
        rotation[k] = np.rad2deg(rotation_angle(T_true[:3, :3], T[:3, :3]))
    return position, rotation


def spread(values: ArrayLike) -> dict[str, float]:
    """Mean, median, 95th percentile and maximum.

    Raises:
        ValueError: no value.
    """
    numbers = np.asarray(values, dtype=float)
    if numbers.size == 0:
        raise ValueError("no value to summarise")
    return {
        "mean": float(numbers.mean()),
        "median": float(np.median(numbers)),
        "p95": float(np.percentile(numbers, 95.0)),
        "max": float(numbers.max()),
    }


def binomial_band(shares: ArrayLike, count: int, confidence: float = 0.95) -> tuple[Array, Array]:
    """Lower and upper ends of the central interval in which an empirical share lies with `confidence`.

    Args:
        shares: true probabilities of an event, in [0, 1].
        count: of independent trials, at least 1.

    Raises:
        ValueError: no trial.
    """
    if count < 1:
        raise ValueError("a share needs at least one trial")
    tail, probabilities = 0.5 * (1.0 - confidence), np.asarray(shares, dtype=float)
    low, high = (binom.ppf(q, count, probabilities) / count for q in (tail, 1.0 - tail))
    return np.clip(low, 0.0, 1.0), np.clip(high, 0.0, 1.0)


def error_summary(estimates: Trajectory, truth: Trajectory) -> dict[str, Any]:
    """`E` of the design: `{"position_m": {mean, median, p95, max}, "rotation_deg": {...}, "n"}`, without alignment.

    Raises:
        TrajectoryError: no estimate, or a stamp outside the truth (see `covered`).
    """
    if len(estimates) == 0:
        raise TrajectoryError("there is no estimate to compare with the truth")
    position, rotation = pose_errors(estimates, truth)
    return {"position_m": spread(position), "rotation_deg": spread(rotation), "n": len(estimates)}


def covered(estimates: Trajectory, truth: Trajectory) -> Trajectory:
    """The estimates at whose stamps the truth is known."""
    keep = np.array([truth.covers(stamp) for stamp in estimates.stamps_ns.tolist()], dtype=bool)
    return Trajectory(estimates.stamps_ns[keep], estimates.poses_N44[keep], estimates.max_gap_s)


def pose_error_6(T: Array, T_true: Array) -> Array:
    """`Log(T^-1 T_true)`: the right perturbation (translation, rotation) that the estimate lacks."""
    return log_se3(inverse(T) @ T_true)


def nees(T: Array, cov_66: Array, T_true: Array, components: tuple[int, ...] = (0, 1, 2, 3, 4, 5)) -> float:
    """Normalised estimation error squared, `d' S^-1 d`; its mean is the number of components where `S` is honest.

    Y. Bar-Shalom, X. R. Li, T. Kirubarajan, "Estimation with applications to tracking and navigation", section 5.4.

    Args:
        T: estimated pose (4, 4).
        cov_66: covariance of its right perturbation.
        T_true: true pose (4, 4).
        components: which of (x, y, z, rot x, rot y, rot z), body axes; the others are marginalised.

    Raises:
        numpy.linalg.LinAlgError: the covariance is singular.
    """
    index = list(components)
    error = pose_error_6(T, T_true)[index]
    return float(error @ np.linalg.solve(cov_66[np.ix_(index, index)], error))


def ate_aligned(estimates: Trajectory, truth: Trajectory) -> dict[str, float]:
    """Absolute trajectory error in metres after a rigid alignment (Umeyama, no scale), by `evo`: `rmse`, `mean`, ...

    Raises:
        TrajectoryError: fewer than three stamps at which the truth is known, or an alignment that is not determined.
    """
    from evo.core import metrics as evo_metrics
    from evo.core.geometry import GeometryException

    reference, estimate = _evo_pair(estimates, truth)
    try:
        estimate.align(reference)
    except GeometryException as error:
        raise TrajectoryError(f"the trajectories cannot be aligned ({error})") from error
    ape = evo_metrics.APE(evo_metrics.PoseRelation.translation_part)
    ape.process_data((reference, estimate))
    return {name: float(value) for name, value in ape.get_all_statistics().items()}


def rpe(estimates: Trajectory, truth: Trajectory, per_m: float = 100.0) -> dict[str, float]:
    """Relative pose error over `per_m` metres of path, by `evo`: the drift in metres (`rmse`, `mean`, ...).

    Raises:
        TrajectoryError: fewer than three stamps at which the truth is known, or a path shorter than `per_m`.
    """
    from evo.core import metrics as evo_metrics
    from evo.core.filters import FilterException

    pair = _evo_pair(estimates, truth)
    error = evo_metrics.RPE(evo_metrics.PoseRelation.translation_part, per_m, evo_metrics.Unit.meters, all_pairs=True)
    try:
        error.process_data(pair)
    except FilterException as problem:
        raise TrajectoryError(f"the path is shorter than {per_m:g} m ({problem})") from problem
    return {name: float(value) for name, value in error.get_all_statistics().items()}


def _evo_pair(estimates: Trajectory, truth: Trajectory) -> tuple[Any, Any]:
    """Truth and estimates at the same stamps, as evo's paths."""
    from evo.core.trajectory import PoseTrajectory3D

    known = covered(estimates, truth)
    if len(known) < 3:
        raise TrajectoryError(f"the truth is known at {len(known)} of {len(estimates)} stamps; three are needed")
    seconds: NDArray[np.float64] = (known.stamps_ns - known.stamps_ns[0]) / 1e9
    reference = PoseTrajectory3D(poses_se3=[truth.interpolate(s) for s in known.stamps_ns.tolist()], timestamps=seconds)
    return reference, PoseTrajectory3D(poses_se3=list(known.poses_N44), timestamps=seconds)
