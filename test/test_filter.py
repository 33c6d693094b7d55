"""The filter's formulas: Jacobians against differences, the update against a batch solution, sound covariances."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import least_squares

from vmloc_ros.errors import GeometryError
from vmloc_ros.filter import (
    Posterior,
    checked_covariance,
    checked_pose,
    correlation_inflation,
    hedged,
    innovate,
    predict_covariance,
    robust_weight,
    tidy,
    transport,
    update,
)
from vmloc_ros.geometry import Array, exp_se3, inverse, is_pose, log_se3

seeds = st.integers(0, 2**32 - 1)


def random_covariance(rng: np.random.Generator, scale: float = 1.0) -> Array:
    A = rng.normal(size=(6, 6))
    return scale**2 * (A @ A.T / 6.0 + 0.1 * np.eye(6))


@given(seeds)
def test_transport_is_the_derivative_of_the_motion(seed: int) -> None:
    rng = np.random.default_rng(seed)
    T, step = exp_se3(rng.normal(size=6)), exp_se3(rng.normal(size=6))
    d = 1e-6 * rng.normal(size=6)
    moved = log_se3(inverse(T @ step) @ (T @ exp_se3(d) @ step))
    np.testing.assert_allclose(transport(step) @ d, moved, atol=1e-13)


@given(seeds)
def test_the_innovation_falls_by_h_times_the_error(seed: int) -> None:
    rng = np.random.default_rng(seed)
    T, Z = exp_se3(rng.normal(size=6)), exp_se3(rng.normal(size=6))
    if np.linalg.norm(log_se3(inverse(T) @ Z)[3:]) > 3.0:
        return  # the logarithm has no derivative at pi
    innovation = innovate(T, np.eye(6), Z, np.eye(6))
    numeric = np.empty((6, 6))
    for k in range(6):
        d = np.zeros(6)
        d[k] = 1e-6
        above, below = (log_se3(inverse(T @ exp_se3(s * d)) @ Z) for s in (1.0, -1.0))
        numeric[:, k] = (above - below) / 2e-6
    np.testing.assert_allclose(-innovation.H_m6, numeric, atol=1e-6)


def test_prediction_against_samples() -> None:
    rng = np.random.default_rng(5)
    step = exp_se3([1.0, 0.3, -0.2, 0.1, -0.2, 0.6])
    P, noise = random_covariance(rng, 0.01), np.array([1, 2, 3, 4, 5, 6.0]) * 1e-5
    predicted = predict_covariance(P, transport(step), noise)
    before = rng.multivariate_normal(np.zeros(6), P, 20_000)
    added = rng.normal(size=(20_000, 6)) * np.sqrt(noise)
    ends = np.array(
        [log_se3(inverse(step) @ exp_se3(d) @ step @ exp_se3(w)) for d, w in zip(before, added, strict=True)]
    )
    sigma = np.sqrt(predicted.diagonal())
    np.testing.assert_allclose(np.cov(ends.T) / np.outer(sigma, sigma), predicted / np.outer(sigma, sigma), atol=0.04)


@given(seeds)
def test_pure_translations_are_the_textbook_filter(seed: int) -> None:
    """Where only positions are uncertain the update must be the linear Kalman filter's."""
    rng = np.random.default_rng(seed)
    tiny = 1e-10
    P, R = np.eye(6) * tiny, np.eye(6) * tiny
    P[:3, :3], R[:3, :3] = random_covariance(rng)[:3, :3], random_covariance(rng)[:3, :3]
    T, Z = np.eye(4), np.eye(4)
    T[:3, 3], Z[:3, 3] = rng.normal(size=3), rng.normal(size=3)
    T_new, P_new, _ = update(T, P, Z, R)
    gain = P[:3, :3] @ np.linalg.inv(P[:3, :3] + R[:3, :3])
    np.testing.assert_allclose(T_new[:3, 3], T[:3, 3] + gain @ (Z - T)[:3, 3], atol=1e-6)
    np.testing.assert_allclose(P_new[:3, :3], (np.eye(3) - gain) @ P[:3, :3], atol=1e-6)


def whitened(S: Array) -> Array:
    return np.linalg.inv(np.linalg.cholesky(S))


@given(seeds, st.floats(0.01, 0.5))
def test_update_finds_the_most_likely_pose(seed: int, scale: float) -> None:
    """Also for large innovations the result minimises the two squared Mahalanobis distances."""
    rng = np.random.default_rng(seed)
    T, P, R = exp_se3(rng.normal(size=6)), random_covariance(rng, 0.5 * scale), random_covariance(rng, 0.5 * scale)
    Z = T @ exp_se3(scale * rng.normal(size=6))
    if np.linalg.norm(log_se3(inverse(T) @ Z)[3:]) > 2.0:
        return
    WP, WR = whitened(P), whitened(R)

    def residuals(d: Array) -> Array:
        X = T @ exp_se3(d)
        return np.concatenate([WP @ log_se3(inverse(T) @ X), WR @ log_se3(inverse(X) @ Z)])

    best = least_squares(residuals, np.zeros(6), xtol=1e-14, ftol=1e-14, gtol=1e-14)
    T_new, P_new, _ = update(T, P, Z, R)
    found = log_se3(inverse(T) @ T_new)
    assert 2.0 * best.cost >= np.sum(residuals(found) ** 2) - 1e-3 * (1.0 + best.cost)
    if scale < 0.2:
        error = whitened(P_new) @ (found - best.x)
        assert np.abs(error).max() < 0.01  # of a standard deviation


def test_a_drive_agrees_with_its_batch_solution() -> None:
    """The last pose and covariance of a filtered drive are those of the whole graph's least squares."""
    for seed in range(5):
        rng = np.random.default_rng(seed)
        step, noise = exp_se3([1.0, 0.0, 0.0, 0.0, 0.0, 0.1]), np.array([2e-4, 1e-4, 1e-4, 1e-5, 1e-5, 2e-5])
        P0, R = random_covariance(rng, 0.05), random_covariance(rng, 0.05)
        truth = [np.eye(4) @ exp_se3(rng.multivariate_normal(np.zeros(6), P0))]
        increments, measured = [], []
        for _ in range(6):
            truth.append(truth[-1] @ step)
            increments.append(step @ exp_se3(rng.normal(size=6) * np.sqrt(noise)))
            measured.append(truth[-1] @ exp_se3(rng.multivariate_normal(np.zeros(6), R)))
        T, P = np.eye(4), P0
        for increment, Z in zip(increments, measured, strict=True):
            T, P = T @ increment, predict_covariance(P, transport(increment), noise)
            T, P, _ = update(T, P, Z, R)
        T_batch, P_batch = batch_solution(P0, increments, noise, measured, R)
        sigma = np.sqrt(P_batch.diagonal())
        assert np.abs(log_se3(inverse(T_batch) @ T) / sigma).max() < 0.05
        np.testing.assert_allclose(P / np.outer(sigma, sigma), P_batch / np.outer(sigma, sigma), atol=0.02)


def batch_solution(
    P0: Array, increments: list[Array], noise: Array, measured: list[Array], R: Array
) -> tuple[Array, Array]:
    W0, WR, WQ = whitened(P0), whitened(R), np.diag(1.0 / np.sqrt(noise))
    guesses = [np.eye(4)]
    for increment in increments:
        guesses.append(guesses[-1] @ increment)

    def poses(x: Array) -> list[Array]:
        return [guess @ exp_se3(d) for guess, d in zip(guesses, x.reshape(-1, 6), strict=True)]

    def residuals(x: Array) -> Array:
        X = poses(x)
        parts = [W0 @ log_se3(X[0])]
        for k, (increment, Z) in enumerate(zip(increments, measured, strict=True)):
            parts += [WQ @ log_se3(inverse(increment) @ inverse(X[k]) @ X[k + 1]), WR @ log_se3(inverse(Z) @ X[k + 1])]
        return np.concatenate(parts)

    solved = least_squares(residuals, np.zeros(6 * len(guesses)), xtol=1e-12, ftol=1e-12)
    guesses = poses(solved.x)  # the covariance of the perturbation at the optimum
    J = least_squares(residuals, np.zeros(6 * len(guesses)), max_nfev=1).jac
    return guesses[-1], np.linalg.inv(J.T @ J)[-6:, -6:]


@given(seeds)
def test_covariances_stay_covariances(seed: int) -> None:
    rng = np.random.default_rng(seed)
    T, P = exp_se3(rng.normal(size=6)), random_covariance(rng)
    for _ in range(20):
        step = exp_se3(rng.normal(size=6) * 0.3)
        T, P = T @ step, predict_covariance(P, transport(step), np.full(6, 1e-4))
        R = random_covariance(rng, 10.0 ** rng.uniform(-3, 2))
        before = np.linalg.eigvalsh(np.linalg.inv(P))
        T, P, _ = update(T, P, T @ exp_se3(rng.multivariate_normal(np.zeros(6), P)), R)
        np.testing.assert_array_equal(P, P.T)
        assert np.linalg.eigvalsh(P)[0] > 0.0
        assert is_pose(T, 1e-9)
        assert np.isfinite(before).all()


def test_an_update_tells_more_than_the_prior() -> None:
    rng = np.random.default_rng(0)
    P, R = random_covariance(rng), random_covariance(rng)
    _, P_new, _ = update(np.eye(4), P, np.eye(4), R)
    assert np.linalg.eigvalsh(P - P_new)[0] > 0.0
    assert np.linalg.eigvalsh(R - P_new)[0] > 0.0
    np.testing.assert_allclose(np.linalg.inv(P_new), np.linalg.inv(P) + np.linalg.inv(R), rtol=1e-9)


@given(seeds)
def test_tidy_makes_a_rotation_of_a_rounded_one(seed: int) -> None:
    rng = np.random.default_rng(seed)
    T = exp_se3(rng.normal(size=6))
    rough = T.copy()
    rough[:3] += 1e-5 * rng.normal(size=(3, 4))
    assert is_pose(tidy(tidy(rough)), 1e-12)
    np.testing.assert_allclose(tidy(rough), T, atol=1e-4)


def test_robust_weight() -> None:
    assert robust_weight(1e9, 0.0) == 1.0  # off
    assert robust_weight(0.0, 4.0) == 1.0  # never more than its claim
    assert robust_weight(36.0, 4.0) == pytest.approx(10.0 / 40.0)
    weights = [robust_weight(nis, 4.0) for nis in (6.0, 10.0, 100.0, 1e6)]
    assert weights == sorted(weights, reverse=True)
    assert weights[-1] < 1e-4


@given(st.floats(0.01, 20.0), st.floats(0.1, 10.0))
def test_correlation_inflation_is_the_variance_of_a_mean(elapsed_s: float, correlation_s: float) -> None:
    a = math.exp(-elapsed_s / correlation_s)
    factor = correlation_inflation(elapsed_s, correlation_s)
    assert factor == pytest.approx(min((1 + a) / (1 - a), 1e4), rel=1e-6)
    assert factor >= 1.0


def test_correlation_inflation_at_its_ends() -> None:
    assert correlation_inflation(0.1, 0.0) == 1.0
    assert correlation_inflation(0.0, 1.0) == 1e4
    assert correlation_inflation(-1.0, 1.0) == 1e4
    assert correlation_inflation(100.0, 1.0) == pytest.approx(1.0)


def test_correlation_inflation_against_samples() -> None:
    """The mean of many autoregressive errors scatters as the inflated variance says."""
    rng = np.random.default_rng(1)
    step_s, correlation_s, count, runs = 0.25, 1.0, 400, 2000
    a = math.exp(-step_s / correlation_s)
    value, total = rng.normal(size=runs), np.zeros(runs)
    for _ in range(count):
        value = a * value + math.sqrt(1 - a * a) * rng.normal(size=runs)
        total += value
    expected = correlation_inflation(step_s, correlation_s) / count
    assert np.var(total / count) == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize(
    ("index", "value"),
    [
        ((0, 3), np.nan),
        ((0, 0), np.inf),
        ((0, 0), 1e308),
        ((0, 3), 1e308),
        ((1, 1), 2.0),
        ((3, 3), 0.5),
        ((2, 2), -1.0),
    ],
)
def test_what_is_no_pose_is_refused(index: tuple[int, int], value: float) -> None:
    T = np.eye(4)
    T[index] = value
    with pytest.raises(GeometryError):
        checked_pose(T)


@pytest.mark.parametrize("T", [np.zeros((4, 4)), np.eye(3), np.eye(5), None, "pose", [[1]], np.diag([1.0, 1, -1, 1])])
def test_what_has_not_the_form_of_a_pose_is_refused(T: object) -> None:
    with pytest.raises(GeometryError):
        checked_pose(T)  # type: ignore[arg-type]


def test_poses_in_single_precision_are_taken() -> None:
    T = exp_se3([1.0, 2.0, 3.0, 0.3, -0.2, 0.9])
    assert checked_pose(T) is T
    taken = checked_pose(T.astype(np.float32))
    assert is_pose(taken, 1e-14)
    np.testing.assert_allclose(taken, T, atol=1e-6)


def spoiled(index: tuple[int, int], value: float) -> Array:
    S = np.eye(6)
    S[index] = value
    return S


@pytest.mark.parametrize(
    "S",
    [
        *(spoiled((2, 2), value) for value in (np.nan, np.inf, 1e308, 0.0, -1.0, 1e-300)),
        *(spoiled((0, 1), value) for value in (0.5, np.nan, 1e308)),
        np.ones((6, 6)),
        np.eye(5),
        None,
        "covariance",
    ],
)
def test_what_is_no_covariance_is_refused(S: object) -> None:
    with pytest.raises(GeometryError):
        checked_covariance(S)  # type: ignore[arg-type]


def test_a_good_covariance_is_taken() -> None:
    S = random_covariance(np.random.default_rng(2), 0.3)
    np.testing.assert_allclose(checked_covariance(S), S, rtol=1e-15)
    wide = np.diag([1e-9, 1.0, 1e9, 1e-6, 1e-3, 10.0])
    np.testing.assert_array_equal(checked_covariance(wide), wide)


@settings(max_examples=15)
@given(seeds, st.floats(0.0, 0.4))
def test_hedging_is_the_spread_of_two_beliefs(seed: int, share: float) -> None:
    """Against the second moment, about the updated state, of samples of the mixture (translations alone)."""
    rng = np.random.default_rng(seed)
    prior, after = np.eye(6) * 1e-6, np.eye(6) * 1e-8
    prior[:3, :3], after[:3, :3] = random_covariance(rng)[:3, :3], 0.1 * random_covariance(rng)[:3, :3]
    T, X = np.eye(4), np.eye(4)
    X[:3, 3] = rng.normal(size=3)
    P = hedged(prior, T, Posterior(X, after, np.zeros(0)), share)
    wrong = rng.random(40_000) < share
    drawn = np.where(
        wrong[:, None],
        rng.multivariate_normal(-X[:3, 3], prior[:3, :3], 40_000),
        rng.multivariate_normal(np.zeros(3), after[:3, :3], 40_000),
    )
    expected = drawn.T @ drawn / len(drawn)
    np.testing.assert_allclose(P[:3, :3], expected, atol=0.06 * np.abs(P[:3, :3]).max())
    assert np.linalg.eigvalsh(P)[0] > 0.0
