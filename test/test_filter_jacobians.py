"""The filter's derivatives against central differences: each formula linearises what its docstring says it does.

`test_filter.py` has the derivative of the transport and of the innovation by the state, `test_geometry.py` those of the
exponential map; here are the rest, and the update as a whole: the gradient and the curvature of what it minimises.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from differences import jacobian
from hypothesis import assume, given
from hypothesis import strategies as st

from vmloc_ros.filter import (
    PLANE,
    correlation_inflation,
    flattened,
    innovate,
    predict_covariance,
    robust_weight,
    tidy,
    transport,
    update,
)
from vmloc_ros.geometry import Array, exp_se3, exp_so3, inverse, log_se3, skew
from vmloc_ros.odometry_model import STATES, corrected

seeds = st.integers(0, 2**32 - 1)
lengths_m = st.floats(0.01, 30.0)
NEAR_PI_RAD = 3.0
"""The logarithm has no derivative at pi."""


def random_covariance(rng: np.random.Generator, metres: float, radians: float, further: int = 0) -> Array:
    """A full covariance of deviations of about these sizes; of `further` states about 0.03."""
    A = rng.normal(size=(6 + further, 6 + further))
    sigma = np.concatenate([np.repeat([metres, radians], 3), np.full(further, 0.03)])
    return np.outer(sigma, sigma) * (A @ A.T / len(A) + 0.1 * np.eye(len(A)))


def random_pose(rng: np.random.Generator, length_m: float) -> Array:
    return exp_se3(rng.normal(size=6) * np.repeat([length_m, 1.0], 3))


# ---------------------------------------------------------------------------------------------------------- prediction


@given(seeds, lengths_m)
def test_prediction_is_the_linearised_motion(seed: int, length_m: float) -> None:
    """`(T Exp(d)) (M Exp(w))` about `T M`: by `d` it is the transport, by the increment's noise `w` the identity."""
    rng = np.random.default_rng(seed)
    T, M = random_pose(rng, length_m), random_pose(rng, length_m)

    def moved(d: Array, w: Array) -> Array:
        return log_se3(inverse(T @ M) @ T @ exp_se3(d) @ M @ exp_se3(w))

    by_state = jacobian(lambda d: moved(d, np.zeros(6)))
    by_noise = jacobian(lambda w: moved(np.zeros(6), w))
    np.testing.assert_allclose(transport(M), by_state, atol=1e-7 * (1.0 + length_m))
    np.testing.assert_allclose(by_noise, np.eye(6), atol=1e-7 * (1.0 + length_m))

    P, noise = random_covariance(rng, 0.3, 0.02), rng.uniform(1e-6, 1e-2, 6)
    expected = by_state @ P @ by_state.T + by_noise @ np.diag(noise) @ by_noise.T
    sigma = np.sqrt(expected.diagonal())
    difference = predict_covariance(P, transport(M), noise) - expected
    assert np.abs(difference / np.outer(sigma, sigma)).max() < 1e-5


@given(seeds, lengths_m, st.booleans())
def test_the_odometry_model_is_linearised_with_the_motion(seed: int, length_m: float, small: bool) -> None:
    """`T Exp(d) X(model + m)` about `T X(model)`, by `(d, m)`; the model itself stays."""
    rng = np.random.default_rng(seed)
    T, M = random_pose(rng, length_m), random_pose(rng, length_m)
    metres = float(np.linalg.norm(M[:3, 3]))
    model = rng.normal(size=3) * (1e-3 if small else 0.2) * np.array([1.0, 1.0, 1.0 / (1.0 + metres)])
    X, F = corrected(M, metres, model)

    def moved(d: Array) -> Array:
        X_moved, _ = corrected(M, metres, model + d[6:])
        return np.concatenate([log_se3(inverse(T @ X) @ T @ exp_se3(d[:6]) @ X_moved), d[6:]])

    np.testing.assert_allclose(F, jacobian(moved, STATES), atol=1e-6 * (1.0 + length_m))


def test_a_model_without_faults_changes_nothing() -> None:
    M = exp_se3([1.0, 0.2, -0.1, 0.1, -0.2, 0.3])
    X, F = corrected(M, 1.0, np.zeros(3))
    np.testing.assert_array_equal(X, M)
    np.testing.assert_allclose(F[:6, :6], transport(M), atol=1e-15)


# ---------------------------------------------------------------------------------------------------------- innovation


@given(seeds, lengths_m)
def test_the_innovation_is_linear_in_the_noise_at_the_truth(seed: int, length_m: float) -> None:
    """With `X = Z Exp(n)` the residual at the true pose `X` is `-n`, not to first order only: `R` needs no Jacobian."""
    rng = np.random.default_rng(seed)
    X, R = random_pose(rng, length_m), random_covariance(rng, 1.0, 0.3)
    n = rng.normal(size=6) * np.repeat([length_m, 0.5], 3)
    assume(np.linalg.norm(n[3:]) < NEAR_PI_RAD)
    innovation = innovate(X, np.eye(6), X @ exp_se3(-n), R)
    np.testing.assert_allclose(innovation.residual_m, -n, atol=1e-9 * (1.0 + length_m))


@given(seeds, st.floats(0.01, 1.5))
def test_nis_is_the_distance_under_the_linearised_covariance(seed: int, turn_rad: float) -> None:
    rng = np.random.default_rng(seed)
    T = random_pose(rng, 10.0)
    P, R = random_covariance(rng, 1.0, 0.3), random_covariance(rng, 1.0, 0.3)
    r = rng.normal(size=6)
    r[3:] *= turn_rad / np.linalg.norm(r[3:])
    Z = T @ exp_se3(r)
    H = -jacobian(lambda d: log_se3(inverse(T @ exp_se3(d)) @ Z))
    expected = r @ np.linalg.inv(H @ P @ H.T + R) @ r
    assert innovate(T, P, Z, R).nis == pytest.approx(expected, rel=1e-5)


# -------------------------------------------------------------------------------------------------------------- update


@given(seeds, st.floats(0.001, 0.3), st.floats(0.1, 10.0), st.sampled_from([6, 9]), st.booleans())
def test_the_update_ends_where_the_gradient_is_zero(
    seed: int, sigma_rad: float, m_per_rad: float, states: int, planar: bool
) -> None:
    """`|x - x_hat|^2_P + |Log(X^-1 Z)|^2_R` has no slope at the updated state, and its curvature (of Gauss-Newton)
    is the inverse of the updated covariance. So the prior is carried to the new working point rightly (`J_r`), also
    where the innovation turns by a radian, and two steps are enough where it is small. In the plane as in space, with
    states beyond the pose (correlated with it) as without."""
    rng = np.random.default_rng(seed)
    P = random_covariance(rng, m_per_rad * sigma_rad, sigma_rad, states - 6)
    R = random_covariance(rng, m_per_rad * sigma_rad, sigma_rad)
    T, directions = random_pose(rng, 10.0), list(range(6))
    error = np.linalg.cholesky(P[:6, :6] + R) @ rng.normal(size=6)
    if planar:
        T, directions, outside = flattened(T, 1.0), list(PLANE), [2, 3, 4]
        P[outside], P[:, outside], error[outside] = 0.0, 0.0, 0.0
        P[outside, outside] = 1e-9
    Z = T @ exp_se3(error)
    assume(np.linalg.norm(error[3:]) < 1.5)
    X, P_new, shift = update(T, P, Z, R, planar=planar)
    whiten_P, whiten_R = (np.linalg.inv(np.linalg.cholesky(S)) for S in (P, R[np.ix_(directions, directions)]))

    def residuals(e: Array) -> Array:
        moved = X @ exp_se3(e[:6])
        prior = np.concatenate([log_se3(inverse(T) @ moved), shift + e[6:]])
        return np.concatenate([whiten_P @ prior, whiten_R @ log_se3(inverse(moved) @ Z)[directions]])

    J = jacobian(residuals, states, step=1e-5 * min(1.0, 10.0 * sigma_rad))
    information = J.T @ J
    root = np.linalg.cholesky(information).T
    left_over = root @ np.linalg.solve(information, J.T @ residuals(np.zeros(states)))
    assert np.abs(left_over).max() < 1e-4, "standard deviations from the optimum"
    np.testing.assert_allclose(np.linalg.eigvalsh(root @ P_new @ root.T), np.ones(states), atol=1e-3)


@given(seeds)
def test_tidy_keeps_turns_and_removes_the_rest(seed: int) -> None:
    """About a rotation `R`, in first order: `R (I + S + W)` with symmetric `S` and antisymmetric `W` becomes
    `R (I + W)`, and the translation stays."""
    rng = np.random.default_rng(seed)
    R, A = exp_so3(rng.normal(size=3)), rng.normal(size=(3, 3))
    turn, step = skew(rng.normal(size=3)), 1e-5

    def tidied(amount: float) -> Array:
        T = np.eye(4)
        T[:3, :3] = R @ (np.eye(3) + amount * (A + A.T + turn))
        T[:3, 3] = [1.0, 2.0, 3.0]
        return tidy(T)

    derivative = (tidied(step) - tidied(-step)) / (2.0 * step)
    np.testing.assert_allclose(derivative[:3, :3], R @ turn, atol=1e-6)
    np.testing.assert_array_equal(derivative[:, 3], np.zeros(4))


# ------------------------------------------------------------------------------------------------------------- weights


def student_cost(nis: float, dof: float) -> float:
    """Student's t: its negative logarithm, but for a constant."""
    return 0.5 * (dof + 6.0) * math.log1p(nis / dof)


def redescending_cost(nis: float, dof: float) -> float:
    """Geman's and McClure's kernel, scaled to the same slope at `nis = 6`. It has a limit."""
    return -0.5 * (dof + 6.0) ** 2 / (dof + nis)


@pytest.mark.parametrize(("power", "cost"), [(1.0, student_cost), (2.0, redescending_cost)])
@given(dof=st.floats(0.5, 30.0), nis=st.floats(0.01, 1e4))
def test_robust_weight_is_the_slope_of_the_cost(
    power: float, cost: Callable[[float, float], float], dof: float, nis: float
) -> None:
    """Iteratively reweighted least squares: the weight is twice the derivative of the cost by the squared distance."""
    step = 1e-4 * nis
    slope = (cost(nis + step, dof) - cost(nis - step, dof)) / (2.0 * step)
    assert robust_weight(nis, dof, power=power, limit=1e9) == pytest.approx(2.0 * slope, rel=1e-5)
    assert robust_weight(nis, dof, power=power) == min(1.0, robust_weight(nis, dof, power=power, limit=1e9))


@given(st.floats(0.02, 5.0), st.floats(0.2, 5.0))
def test_correlation_inflation_is_the_sum_of_the_autocorrelations(elapsed_s: float, correlation_s: float) -> None:
    """The variance of a mean of `n` samples tends to `sum of rho(k)`, `k` from -inf to inf, times the white one's."""
    lags = np.arange(1, 20_000)
    total = 1.0 + 2.0 * np.exp(-lags * elapsed_s / correlation_s).sum()
    assert correlation_inflation(elapsed_s, correlation_s) == pytest.approx(total, rel=1e-9)
