"""The error-state Kalman filter on SE(3): pure functions on a pose and a covariance.

The state is `T_map_base` with the perturbation on the right, `T = T_hat Exp(d)`, `d ~ N(0, P)`, ordered (translation,
rotation), in the body's axes. A measurement is a pose `Z` with `T = Z Exp(n)`, `n ~ N(0, R)`: the same convention.

Sources: J. Sola, J. Deray, D. Atchuthan, "A micro Lie theory for state estimation in robotics", arXiv:1812.01537
(section V: error propagation and the Jacobians); B. M. Bell, F. W. Cathey, "The iterated Kalman filter update as a
Gauss-Newton method", IEEE TAC 38(2), 1993; D. He, W. Xu, F. Zhang, "Kalman filters on differentiable manifolds",
arXiv:2102.03804 (section III-C: the iterated update on a manifold, with the Jacobian that carries the prior to the new
working point); P. D. Joseph's form of the covariance update (R. S. Bucy, P. D. Joseph, "Filtering for stochastic
processes", 1968); M. Roth, E. Ozkan, F. Gustafsson, "A Student's t filter for heavy tailed process and measurement
noise", ICASSP 2013.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vmloc_ros.errors import GeometryError
from vmloc_ros.geometry import exp_se3, inverse, log_se3, right_jacobian_inverse_se3

Array = NDArray[np.float64]

MAX_ITERATIONS = 15
CONVERGED = 1e-9
"""Metres and radians: a Gauss-Newton step below it ends the iteration."""
LINEAR_RAD = 0.05
LINEAR_M_RAD = 0.02
"""An innovation whose rotation is below the first, and whose rotation times its length is below the second, is small:
the update is then repeated once at the new working point, not until it converges."""
MIN_VARIANCE = 1e-12
MAX_VARIANCE = 1e12
"""Variances (m^2, rad^2) outside these are the mark of a sender that left them empty or overflowed."""
MAX_COORDINATE_M = 1e8

PLANE = (0, 1, 5)
"""Forward, left and yaw."""


def transport(T_prev_now: Array) -> Array:
    """`F = Ad(T_prev_now^-1)`, 6x6: carries a right perturbation of the previous pose to the present one.

    `T_prev Exp(d) T_prev_now = T_now Exp(F d)` (arXiv:1812.01537, section II-F and eq. 175).
    """
    R_transposed = T_prev_now[:3, :3].T
    x, y, z = T_prev_now[0, 3], T_prev_now[1, 3], T_prev_now[2, 3]
    F = np.zeros((6, 6))
    F[:3, :3] = R_transposed
    F[3:, 3:] = R_transposed
    F[:3, 3:] = R_transposed @ np.array([[0.0, z, -y], [-z, 0.0, x], [y, -x, 0.0]])
    return F


def predict_covariance(P_nn: Array, F_nn: Array, noise_n: Array) -> Array:
    """`F P F' + diag(noise)`: the noise is a right perturbation of the increment (arXiv:1812.01537, section V-B)."""
    predicted = F_nn @ P_nn @ F_nn.T
    predicted.ravel()[:: len(predicted) + 1] += noise_n
    return predicted


@dataclass(frozen=True, slots=True, eq=False)
class Innovation:
    """A measured pose against the predicted one, in `m` of the six directions (all, or those of the plane).

    Attributes:
        residual_m: `Log(T_hat^-1 Z)`.
        H_m6: minus its derivative by the perturbation of the pose.
        nis: its squared Mahalanobis distance under `H P H' + R`, of `m` degrees of freedom.
    """

    residual_m: Array
    H_m6: Array
    nis: float


def innovate(T: Array, P_nn: Array, Z: Array, R_66: Array, planar: bool = False) -> Innovation:
    """How far a measured pose is from the predicted one.

    With `T = T_hat Exp(d)`: `Log(T^-1 Z) = Log(Exp(-d) Exp(r)) ~= r - J_l^-1(r) d` (arXiv:1812.01537, section II-G),
    and it is `-n` where `d` is the true error: the noise needs no Jacobian.

    Args:
        T: predicted `T_map_base` (4, 4).
        P_nn: covariance of the state, whose first six are the pose's right perturbation.
        Z: measured `T_map_base` (4, 4).
        R_66: its covariance.
        planar: compare forward, left and yaw alone; both poses must lie in the plane.
    """
    residual, H = _difference(T, Z, planar)
    S = H @ P_nn[:6, :6] @ H.T + compared(R_66, planar)
    return Innovation(residual, H, float(residual @ np.linalg.solve(S, residual)))


def compared(R_66: Array, planar: bool) -> Array:
    """The part of a measurement's covariance in the directions that are compared."""
    return R_66[np.ix_(PLANE, PLANE)] if planar else R_66


def _difference(T: Array, Z: Array, planar: bool) -> tuple[Array, Array]:
    """`Log(T^-1 Z)` and minus its derivative by the right perturbation of T."""
    residual = log_se3(inverse(T) @ Z)
    H = right_jacobian_inverse_se3(-residual)  # J_l(r) = J_r(-r)
    return (residual[list(PLANE)], H[list(PLANE)]) if planar else (residual, H)


class Posterior(NamedTuple):
    """The state after an update: the pose, the covariance, and what is to be added to the states beyond the pose."""

    T: Array
    P_nn: Array
    shift: Array


def update(
    T: Array, P_nn: Array, Z: Array, R_66: Array, first: Innovation | None = None, planar: bool = False
) -> Posterior:
    """The state after a measured pose: Gauss-Newton on the posterior, Joseph form at the optimum.

    Minimises `|x - x_hat|^2_P + |Log(X^-1 Z)|^2_R` over states `x` with the pose `X`. At a working point `X = T Exp(d)`
    the prior's perturbation of the pose becomes `P_X = J_r(d) P J_r(d)'` (arXiv:2102.03804, section III-C), and the
    step is `e = K (r + H d) - d` with `K = P_X H' (H P_X H' + R)^-1` (`J_r(d) d = d` was used). States beyond the pose
    are a vector space: their `J_r` is the identity.

    Args:
        T: predicted `T_map_base` (4, 4).
        P_nn: covariance of the state (n >= 6): the pose first.
        Z: measured `T_map_base` (4, 4).
        R_66: its covariance, positive definite.
        first: the innovation at `T`, where it is known already.
        planar: use forward, left and yaw alone.
    """
    n = len(P_nn)
    X, d, P_X = T, np.zeros(n), P_nn
    if first is None:
        first = innovate(T, P_nn, Z, R_66, planar)
    residual, H = first.residual_m, first.H_m6
    R = compared(R_66, planar)
    turning = residual[2:] if planar else residual[3:]
    turn = math.sqrt(float(turning @ turning))
    moving = residual[:2] if planar else residual[:3]
    length = math.sqrt(float(moving @ moving))
    small = turn < LINEAR_RAD and turn * length < LINEAR_M_RAD
    for iteration in range(2 if small else MAX_ITERATIONS):
        if iteration:
            residual, H = _difference(X, Z, planar)
            J_r = np.eye(n)
            J_r[:6, :6] = np.linalg.inv(right_jacobian_inverse_se3(d[:6]))
            P_X = J_r @ P_nn @ J_r.T
        HP = H @ P_X[:6]
        K = np.linalg.solve(HP[:, :6] @ H.T + R, HP).T
        step = K @ (residual + H @ d[:6]) - d
        X = X @ exp_se3(step[:6])
        d[6:] += step[6:]
        if iteration and float(np.abs(step[:6]).max()) < CONVERGED:
            break
        d[:6] = log_se3(inverse(T) @ X)
    left = np.eye(n)
    left[:, :6] -= K @ H
    P_new = left @ P_X @ left.T + K @ R @ K.T
    return Posterior(tidy(X), 0.5 * (P_new + P_new.T), d[6:])


def flattened(T: Array, height_m: float) -> Array:
    """The pose in the plane `z = height_m` of the map with the same x, y and heading: roll and pitch are zero."""
    result = np.eye(4)
    heading = math.atan2(T[1, 0], T[0, 0])
    c, s = math.cos(heading), math.sin(heading)
    result[0, 0] = result[1, 1] = c
    result[0, 1], result[1, 0] = -s, s
    result[:2, 3] = T[:2, 3]
    result[2, 3] = height_m
    return result


def tidy(T: Array) -> Array:
    """A pose whose rotation has strayed by rounding, brought back: one Newton step of the polar decomposition,
    `R (3 I - R' R) / 2` (N. J. Higham, "Computing the polar decomposition", 1986), quadratically convergent."""
    R = T[:3, :3]
    result = T.copy()
    result[:3, :3] = 1.5 * R - 0.5 * (R @ (R.T @ R))
    return result


def robust_weight(nis: float, dof_of_tail: float, dimension: int = 6, power: float = 1.0, limit: float = 1.0) -> float:
    """Factor on a measurement's precision: `((v + n) / (v + nis))^power`, at most `limit`.

    Power 1 is Student's t with `v` degrees of freedom in `n` dimensions (M. Roth et al., above). Power 2 redescends as
    the kernel of S. Geman and D. E. McClure does ("Bayesian image analysis", 1985): a measurement far away loses its
    pull altogether. `v = 0` stands for the Gaussian, weight 1.
    """
    if dof_of_tail <= 0.0:
        return 1.0
    return float(min(limit, ((dof_of_tail + dimension) / (dof_of_tail + nis)) ** power))


def hedged(prior: Array, T_prior: Array, posterior: Posterior, share: float) -> Array:
    """The covariance after an update with a measurement that is wrong with the probability `share`, unseen.

    The mixture of the updated state and the one before, by its first two moments about the updated one, as in
    probabilistic data association (Y. Bar-Shalom, E. Tse, "Tracking in a cluttered environment with probabilistic data
    association", Automatica 11(5), 1975): `(1 - e) P + e (P_prior + d d')`. It matters where the state was wide and has
    moved far: one answer alone must not make it certain. To first order in the turn between the two.

    Args:
        prior: covariance (n, n) before the update.
        T_prior: the pose before it.
        posterior: the state after it.
        share: `e`.
    """
    d = np.concatenate((log_se3(inverse(T_prior) @ posterior.T), posterior.shift))
    return np.asarray((1.0 - share) * posterior.P_nn + share * (prior + np.outer(d, d)))


def correlation_inflation(elapsed_s: float, correlation_s: float) -> float:
    """Factor on the covariance of one of many measurements whose errors are correlated in time.

    The mean of many samples of a first-order autoregressive error, `elapsed_s` apart, has `(1 + a) / (1 - a)` times the
    variance that white errors would give, `a = exp(-elapsed / correlation)` (G. E. P. Box, G. M. Jenkins, "Time series
    analysis", section 2.1: the variance of a mean). Capped at 1e4.
    """
    if correlation_s <= 0.0:
        return 1.0
    ratio = max(elapsed_s, 0.0) / correlation_s
    return min(1.0 / math.tanh(0.5 * ratio), 1e4) if ratio > 1e-6 else 1e4  # (1 + a) / (1 - a) = coth(ratio / 2)


def checked_pose(T: ArrayLike) -> Array:
    """A pose that the filter can use: the array itself, or its nearest pose where it was rounded to single precision.

    Raises:
        GeometryError: not 4x4, not finite, beyond 1e8 m, or not a rotation.
    """
    try:
        pose = np.asarray(T, dtype=np.float64)
        # plain floats: four times as fast as numpy, and no warnings
        (a, b, c, x), (d, e, f, y), (g, h, i, z), last = pose.tolist()
    except (TypeError, ValueError, OverflowError) as error:
        raise GeometryError(f"not a 4x4 pose ({error})") from error
    if pose.shape != (4, 4):
        raise GeometryError(f"pose has the shape {pose.shape}, not 4x4")
    size = abs(x) + abs(y) + abs(z)
    if not size < MAX_COORDINATE_M:  # also catches NaN
        raise GeometryError(f"position ({x:g}, {y:g}, {z:g}) is not finite or beyond {MAX_COORDINATE_M:g} m")
    skewness = (
        abs(a * a + b * b + c * c - 1.0)
        + abs(d * d + e * e + f * f - 1.0)
        + abs(a * d + b * e + c * f)
        + abs(g - (b * f - c * e))
        + abs(h - (c * d - a * f))
        + abs(i - (a * e - b * d))
    )
    if not skewness < 1e-3 or last != [0.0, 0.0, 0.0, 1.0]:
        raise GeometryError("rotation is not finite or not a rotation (a quaternion of zeros?)")
    return pose if skewness < 1e-12 else tidy(tidy(pose))


def six_by_six(S: ArrayLike) -> Array:
    """A copy of a covariance as float64 (6, 6), whatever its values.

    Raises:
        GeometryError: not numbers, or not 6x6.
    """
    try:
        S_66 = np.array(S, dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise GeometryError(f"not a 6x6 covariance ({error})") from error
    if S_66.shape != (6, 6):
        raise GeometryError(f"covariance has the shape {S_66.shape}, not 6x6")
    return S_66


def checked_covariance(S: ArrayLike) -> Array:
    """A covariance (6, 6) that the filter can use, exactly symmetric.

    Raises:
        GeometryError: not 6x6, not finite, a variance outside [1e-12, 1e12], not symmetric or not positive definite.
    """
    S_66 = six_by_six(S)
    if not np.isfinite(S_66).all():
        raise GeometryError("covariance is not finite")
    variances = S_66.diagonal()
    if variances.min() < MIN_VARIANCE:
        raise GeometryError(f"a variance is {variances.min():.3g}, below {MIN_VARIANCE:g}")
    if variances.max() > MAX_VARIANCE:
        raise GeometryError(f"a variance is {variances.max():.3g}, above {MAX_VARIANCE:g}")
    limits = np.sqrt(np.outer(variances, variances))
    if (np.abs(S_66) > 1.000001 * limits).any():
        raise GeometryError("a covariance is larger than its two variances allow")
    scale = 1.0 / np.sqrt(variances)
    correlation = S_66 * np.outer(scale, scale)
    if np.abs(correlation - correlation.T).max() > 1e-6:
        raise GeometryError("covariance is not symmetric")
    smallest = float(np.linalg.eigvalsh(correlation)[0])
    if smallest < 1e-9:
        raise GeometryError(f"covariance is not positive definite (least eigenvalue of its correlation {smallest:.3g})")
    return np.asarray(0.5 * (S_66 + S_66.T))
