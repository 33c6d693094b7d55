"""A pose graph: measured poses and the ways between them, solved at once (MapNet+PGO, S. Brahmbhatt et al., CVPR 2018).

The paper minimises absolute and relative errors of the last seven poses; here both are Gaussian factors with their own
covariances, and GTSAM solves them (F. Dellaert and GTSAM contributors, https://github.com/borglab/gtsam). Everywhere
the perturbation is on the right; only the order differs: GTSAM's is (rotation, translation), ours the other.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vmloc_ros.errors import GeometryError, SetupError
from vmloc_ros.geometry import Array, adjoint, inverse, log_se3, right_jacobian_inverse_se3
from vmloc_ros.odometry_model import SIZE, UNCALIBRATED, corrected

ROTATION_FIRST = np.array([3, 4, 5, 0, 1, 2])
"""From our order (translation, rotation) to GTSAM's; its own inverse."""
MAX_ITERATIONS = 50
MIN_VARIANCE = 1e-12
"""Of what is as good as known, so that no covariance is singular."""


@dataclass(frozen=True, slots=True, eq=False)
class Anchor:
    """A measured pose of one node; `cov_66` is of its right perturbation (body axes)."""

    node: int
    T_map_body: Array
    cov_66: Array


@dataclass(frozen=True, slots=True, eq=False)
class Way:
    """The odometry from a node to the next: `T_prev_now`, its length, and the covariance of its right perturbation."""

    T_prev_now: Array
    metres: float
    cov_66: Array


@dataclass(frozen=True, slots=True, eq=False)
class Solution:
    """The most likely poses.

    Attributes:
        poses_N44: `T_map_body` of every node.
        covariances: (6, 6) of the right perturbation (body axes), by the nodes that were asked for.
        model_3: log scale, heading (rad) and yaw bias (rad/m) of the odometry; zeros where they were not asked for.
    """

    poses_N44: Array
    covariances: Mapping[int, Array]
    model_3: Array


def load_gtsam() -> Any:
    """The library, which only pose graphs need.

    Raises:
        SetupError: it is not installed.
    """
    try:
        return importlib.import_module("gtsam")
    except ImportError as error:
        raise SetupError(f"pose graphs need GTSAM: pip install vmloc_ros[batch] ({error})") from error


def solve(
    guess_N44: Array,
    anchors: Sequence[Anchor],
    ways: Sequence[Way],
    judged: Sequence[int],
    kernel: float = 0.0,
    model_variances_3: Array | None = None,
    model_guess_3: Array = UNCALIBRATED,
) -> Solution:
    """The poses that fit the anchors and the ways best, by Levenberg-Marquardt.

    Args:
        guess_N44: where to start; N nodes.
        anchors: at least one.
        ways: N - 1, from every node to the next.
        judged: the nodes whose covariances are wanted.
        kernel: an anchor `r` standard deviations off (the norm of all six) counts `1 / (1 + (r / kernel)^2)`, Cauchy's
            kernel; 0: all count alike.
        model_variances_3: estimate scale, heading and yaw bias of the odometry as well (see `odometry_model`), known by
            these variances beforehand; None: they are zero.
        model_guess_3: where to start with these.

    Raises:
        SetupError: GTSAM is not installed.
        GeometryError: nothing is anchored, numbers of nodes and ways that disagree, or numbers that cannot be solved.
    """
    if not anchors or len(ways) != len(guess_N44) - 1:
        raise GeometryError(f"{len(anchors)} anchors and {len(ways)} ways are no graph of {len(guess_N44)} poses")
    gtsam = load_gtsam()
    graph, guess, model = gtsam.NonlinearFactorGraph(), gtsam.Values(), len(guess_N44)
    for node, T in enumerate(guess_N44):
        guess.insert(node, gtsam.Pose3(T))
    for anchor in anchors:
        noise = _gaussian(gtsam, anchor.cov_66)
        if kernel > 0.0:
            noise = gtsam.noiseModel.Robust.Create(gtsam.noiseModel.mEstimator.Cauchy.Create(kernel), noise)
        graph.add(gtsam.PriorFactorPose3(anchor.node, gtsam.Pose3(anchor.T_map_body), noise))
    for node, way in enumerate(ways):
        noise = _gaussian(gtsam, way.cov_66)
        if model_variances_3 is None:
            graph.add(gtsam.BetweenFactorPose3(node, node + 1, gtsam.Pose3(way.T_prev_now), noise))
        else:
            graph.add(_calibrating_factor(gtsam, node, model, way, noise))
    if model_variances_3 is not None:
        deviations = gtsam.noiseModel.Diagonal.Variances(np.maximum(model_variances_3, MIN_VARIANCE))
        graph.add(gtsam.PriorFactorVector(model, np.zeros(SIZE), deviations))
        guess.insert(model, np.asarray(model_guess_3))
    parameters = gtsam.LevenbergMarquardtParams()
    parameters.setMaxIterations(MAX_ITERATIONS)
    parameters.setRelativeErrorTol(1e-8)
    try:
        best = gtsam.LevenbergMarquardtOptimizer(graph, guess, parameters).optimize()
        marginals: Any = gtsam.Marginals(graph, best) if len(judged) else None
        covariances = {node: reordered(marginals.marginalCovariance(node)) for node in judged}
    except (RuntimeError, ValueError) as error:
        raise GeometryError(f"the pose graph cannot be solved ({str(error).strip().splitlines()[0]})") from error
    poses = np.array([best.atPose3(node).matrix() for node in range(len(guess_N44))])
    if not (np.isfinite(poses).all() and all(np.isfinite(cov).all() for cov in covariances.values())):
        raise GeometryError("the pose graph's solution is not finite")
    return Solution(poses, covariances, UNCALIBRATED if model_variances_3 is None else best.atVector(model))


def reordered(S_66: Array) -> Array:
    """Between (translation, rotation) and (rotation, translation)."""
    return np.asarray(S_66)[np.ix_(ROTATION_FIRST, ROTATION_FIRST)]


def _gaussian(gtsam: Any, cov_66: Array) -> Any:
    """GTSAM's noise model of one of our covariances.

    Raises:
        GeometryError: it is not one.
    """
    try:
        np.linalg.cholesky(cov_66)
    except np.linalg.LinAlgError as error:
        raise GeometryError("a covariance of the pose graph is not positive definite") from error
    return gtsam.noiseModel.Gaussian.Covariance(reordered(cov_66))


def _calibrating_factor(gtsam: Any, node: int, model: int, way: Way, noise: Any) -> Any:
    """Between two poses and the odometry's model: `Log(X(model)^-1 T_prev^-1 T_now)`.

    Its derivatives (J. Sola et al., arXiv:1812.01537, section II-G): by the present pose `J_r^-1`, by the previous one
    the same after `-Ad(T_now^-1 T_prev)`, by the model `-J_l^-1` after that of the increment.
    """

    def residual(_: Any, values: Any, jacobians: list[Array] | None) -> Array:
        moved = inverse(values.atPose3(node).matrix()) @ values.atPose3(node + 1).matrix()
        step, F = corrected(way.T_prev_now, way.metres, values.atVector(model))
        r = log_se3(inverse(step) @ moved)
        if jacobians is not None:
            by_pose = right_jacobian_inverse_se3(r)
            jacobians[0] = reordered(-by_pose @ adjoint(inverse(moved)))
            jacobians[1] = reordered(by_pose)
            jacobians[2] = (-right_jacobian_inverse_se3(-r) @ F[:6, 6:])[ROTATION_FIRST]
        return r[ROTATION_FIRST]

    return gtsam.CustomFactor(noise, [node, node + 1, model], residual)


def effective_number(seconds_N: Array, correlation_s: float) -> float:
    """As how many independent errors N errors at these times count, whose correlation is `exp(-|dt| / correlation_s)`.

    `1' C^-1 1`, the precision of their best mean over that of one: 1 for errors that never change, N for white ones.
    """
    if correlation_s <= 0.0:
        return float(len(seconds_N))
    apart = np.diff(np.sort(seconds_N)) / correlation_s
    # C^-1 of an exponential correlation is tridiagonal: every further error adds (1 - a) / (1 + a) = tanh(dt / 2 tau)
    return 1.0 + float(np.tanh(0.5 * apart).sum())


def at_least(cov_66: Array, floor_66: Array) -> Array:
    """A covariance that is nowhere below either of the two.

    Where `floor^-1/2 cov floor^-1/2` has an eigenvalue below 1 it is raised to 1.
    """
    L = np.linalg.cholesky(floor_66)
    inner = np.linalg.solve(L, np.linalg.solve(L, cov_66).T)
    values, vectors = np.linalg.eigh(0.5 * (inner + inner.T))
    axes = L @ vectors
    result = (axes * np.maximum(values, 1.0)) @ axes.T
    return np.asarray(0.5 * (result + result.T))


def variance_of(deviation_m: float, deviation_rad: float) -> Array:
    """(6, 6) of the same deviation along every axis of translation, and of rotation."""
    variances = np.repeat([max(deviation_m, math.sqrt(MIN_VARIANCE)), max(deviation_rad, math.sqrt(MIN_VARIANCE))], 3)
    return np.diag(np.square(variances))
