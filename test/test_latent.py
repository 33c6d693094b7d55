"""An observation as a pose measurement: the same answer as the textbook's, whatever it leaves out."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from latent_world import FourierMap, Linear, information

from vmloc_ros.errors import GeometryError
from vmloc_ros.filter import innovate, update
from vmloc_ros.geometry import Array, exp_se3, inverse, log_se3, right_jacobian_inverse_se3
from vmloc_ros.latent import Remembered, checked_information, compress
from vmloc_ros.types import Information

seeds = st.integers(0, 2**32 - 1)
GATE = 27.9


def random_covariance(rng: np.random.Generator, scale: float) -> Array:
    A = rng.normal(size=(6, 6))
    return scale**2 * (A @ A.T / 6.0 + 0.1 * np.eye(6))


@given(seeds, st.integers(6, 256), st.floats(0.02, 1.0))
def test_a_linear_observation_is_the_pose_that_it_is(seed: int, dimensions: int, scale: float) -> None:
    """Without loss: pose, covariance, distance and posterior are those of the measured pose, far away or near."""
    rng = np.random.default_rng(seed)
    T, P = exp_se3(rng.normal(size=6)), random_covariance(rng, 0.5 * scale)
    A, variance = rng.normal(size=(dimensions, 6)) / 0.3, rng.uniform(0.5, 2.0, dimensions)
    A[:6] += 5.0 * np.eye(6)
    R = np.linalg.inv(A.T @ (A / variance[:, None]))
    offset = scale * rng.normal(size=6)
    if np.linalg.norm(offset[3:]) > 2.0:
        return
    Z = T @ exp_se3(offset)
    found = compress(Linear(Z, A, variance), Z, T, P, 1.5, 7.0, GATE)
    assert found is not None
    np.testing.assert_allclose(found.T_map_base, Z, atol=1e-9)
    np.testing.assert_allclose(found.cov_66, 1.5 * R, atol=1e-9 * R.max())
    assert found.rank == 6
    assert found.excess == pytest.approx(0.0, abs=1e-6)
    ours, theirs = update(T, P, found.T_map_base, found.cov_66), update(T, P, Z, 1.5 * R)
    np.testing.assert_allclose(ours.T, theirs.T, atol=1e-9)
    np.testing.assert_allclose(ours.P_nn, theirs.P_nn, atol=1e-9)
    nis = innovate(T, P, found.T_map_base, found.cov_66).nis
    assert nis == pytest.approx(innovate(T, P, Z, 1.5 * R).nis, rel=1e-6)


class Shifted:
    """`z - J p` of the position alone: linear in the whole space."""

    def __init__(self, z_D: Array, J_D3: Array, variance_D: Array) -> None:
        self.z_D, self.J_D3, self.variance_D = z_D, J_D3, variance_D

    def at(self, T_map_body: Array) -> Information:
        J_D6 = np.hstack([self.J_D3 @ T_map_body[:3, :3], np.zeros_like(self.J_D3)])
        return information(self.z_D - self.J_D3 @ T_map_body[:3, 3], J_D6, self.variance_D)


@given(seeds, st.one_of(st.integers(1, 4), st.integers(5, 256)))
def test_the_posterior_is_the_papers(seed: int, dimensions: int) -> None:
    """Eqs. 6-8 of the Generative Map in the observed space, from one number to 256, rank-deficient or not."""
    rng = np.random.default_rng(seed)
    T, P = np.eye(4), np.eye(6) * 1e-10
    T[:3, 3] = rng.normal(size=3)
    P[:3, :3] = random_covariance(rng, 0.3)[:3, :3]
    J, variance = rng.normal(size=(dimensions, 3)), rng.uniform(0.5, 2.0, dimensions)
    z = J @ (T[:3, 3] + 0.3 * rng.normal(size=3)) + rng.normal(size=dimensions) * np.sqrt(variance)
    K = P[:3, :3] @ J.T @ np.linalg.inv(J @ P[:3, :3] @ J.T + np.diag(variance))
    best = T[:3, 3] + np.linalg.pinv(J) @ (z - J @ T[:3, 3])
    Z = T.copy()
    Z[:3, 3] = best
    found = compress(Shifted(z, J, variance), Z, T, P, 1.0, 1.0, 1e9)
    assert found is not None
    assert found.rank == min(dimensions, 3)
    X, P_new, _ = update(T, P, found.T_map_base, found.cov_66)
    np.testing.assert_allclose(X[:3, 3], T[:3, 3] + K @ (z - J @ T[:3, 3]), atol=1e-8)
    np.testing.assert_allclose(P_new[:3, :3], P[:3, :3] - K @ J @ P[:3, :3], atol=1e-8)
    np.testing.assert_allclose(P_new[3:, 3:], P[3:, 3:], atol=1e-16)


@given(seeds, st.sets(st.integers(0, 5), min_size=1, max_size=5))
def test_what_is_not_observed_stays_as_it_was(seed: int, observed: set[int]) -> None:
    """Small numbers, so that the space is flat: the other directions keep their place and their variance."""
    rng = np.random.default_rng(seed)
    deviations = rng.uniform(0.5e-4, 2e-4, 6)
    T, P = exp_se3(rng.normal(size=6)), np.diag(deviations**2)
    seen = sorted(observed)
    other = [k for k in range(6) if k not in observed]
    A = np.zeros((9, 6))
    A[:, seen] = rng.normal(size=(9, len(seen))) / 1e-4
    Z = T @ exp_se3(1e-4 * rng.normal(size=6))
    found = compress(Linear(Z, A, np.ones(9)), Z, T, P, 1.0, 1.0, GATE)
    assert found is not None
    assert found.rank == len(seen)
    assert np.linalg.eigvalsh(found.cov_66)[0] > 0.0
    X, P_new, _ = update(T, P, found.T_map_base, found.cov_66)
    assert np.abs(log_se3(inverse(T) @ X)[other] / deviations[other]).max() < 1e-3
    np.testing.assert_allclose(P_new.diagonal()[other], P.diagonal()[other], rtol=1e-3)
    assert (P_new.diagonal()[seen] < 0.9 * P.diagonal()[seen]).all()


@given(seeds)
def test_working_points_are_optima_of_the_posterior(seed: int) -> None:
    """For an observation that is not linear: the update ends where no step of the true posterior goes anywhere."""
    rng = np.random.default_rng(seed)
    world = FourierMap(48, seed % 5)
    truth = exp_se3(0.5 * rng.normal(size=6))
    P = random_covariance(rng, 0.1)
    T = truth @ exp_se3(rng.multivariate_normal(np.zeros(6), P))
    seen = world.seen(truth, 0.3, rng)
    pose, _ = seen.best(truth)
    found = compress(seen, pose, T, P, 1.0, 1.0, GATE)
    if found is None:
        return  # a hollow
    X, P_new, _ = update(T, P, found.T_map_base, found.cov_66)
    d = log_se3(inverse(T) @ X)
    J_r = np.linalg.inv(right_jacobian_inverse_se3(d))
    known = seen.at(X)
    slope = known.gradient_6 - np.linalg.solve(J_r @ P @ J_r.T, d)
    assert slope @ P_new @ slope < 0.1**2  # a tenth of a deviation from the optimum
    assert np.linalg.eigvalsh(P - P_new)[0] > -1e-6


def test_a_fit_that_is_better_elsewhere_counts_there() -> None:
    """A wide prior: Gauss-Newton from the state ends in a hollow, so it starts again from the pose that came along."""
    world = FourierMap(48, 0)
    hollows = 0
    for seed in range(30):
        rng = np.random.default_rng(seed)
        truth = exp_se3(0.3 * rng.normal(size=6))
        T = truth @ exp_se3(np.concatenate([rng.normal(size=3), rng.normal(size=3)]))
        if np.linalg.norm(log_se3(inverse(T) @ truth)[3:]) > 2.0:
            continue
        seen = world.seen(truth, 0.3, rng)
        pose, _ = seen.best(truth)
        found = compress(seen, pose, T, np.eye(6), 1.0, 1.0, GATE)
        if found is None:
            hollows += 1
            continue
        X, P, _ = update(T, np.eye(6), found.T_map_base, found.cov_66)
        d = log_se3(inverse(X) @ truth)
        assert d @ np.linalg.solve(P, d) < 30.0, "an answer is near the truth, by its own covariance"
    assert hollows <= 5


class TwoHollows:
    """Fits best half a turn and a metre away, and nearly as well at the identity: a place that looks alike."""

    best = exp_se3([1.0, 1.0, 1.0, 0.0, 0.0, 2.9])

    def at(self, T_map_body: Array) -> Information:
        ends = [(18.0, np.eye(4)), (8.0, self.best)]
        cost, bottom = min((c + 400.0 * np.sum(log_se3(inverse(E) @ T_map_body) ** 2), c) for c, E in ends)
        end = next(E for c, E in ends if c == bottom)
        return Information(-400.0 * log_se3(inverse(end) @ T_map_body), 400.0 * np.eye(6), float(cost), 134)


def test_a_likelier_pose_is_not_passed_over_for_the_nearest_hollow() -> None:
    """Where the state is known the hollow at it counts. Where it is not the pose that came along does: from half a turn
    away no step of this filter leads to it, so it has to be compared as a pose."""
    near = compress(TwoHollows(), TwoHollows.best, np.eye(4), 0.01 * np.eye(6), 1.0, 1.0, GATE)
    assert near is not None
    np.testing.assert_allclose(near.T_map_base, np.eye(4), atol=1e-6)
    wide = np.diag([1.0] * 3 + [4.0] * 3)
    assert compress(TwoHollows(), TwoHollows.best, np.eye(4), wide, 1.0, 1.0, GATE) is None


class Flat:
    """Says nothing anywhere, but would rather be elsewhere."""

    def at(self, T_map_body: Array) -> Information:
        return Information(np.zeros(6), np.zeros((6, 6)), 10.0, 4)


class Wrong:
    """A gradient that points the wrong way: no step makes it better."""

    def at(self, T_map_body: Array) -> Information:
        d = log_se3(T_map_body)
        return Information(1e3 * d + 50.0, 1e2 * np.eye(6), float(1e3 * d @ d + 1e2 * np.abs(d).sum()), 6)


@pytest.mark.parametrize("observation", [Flat(), Wrong()])
def test_what_leads_nowhere_is_not_used(observation: Flat | Wrong) -> None:
    assert compress(observation, np.eye(4), np.eye(4), np.eye(6), 1.0, 1.0, GATE) is None


def test_answers_are_remembered() -> None:
    asked = []

    class Counting(Flat):
        def at(self, T_map_body: Array) -> Information:
            asked.append(T_map_body)
            return super().at(T_map_body)

    remembered, T = Remembered(Counting()), exp_se3(np.arange(6.0))
    assert remembered.at(T) is remembered.at(T.copy())
    assert len(asked) == 1
    for k in range(200):
        remembered.at(exp_se3([float(k), 0, 0, 0, 0, 0]))
    remembered.at(T)
    assert len(asked) == 202, "only the last ones are kept"


def spoiled(index: tuple[int, int], value: float) -> Array:
    S = np.eye(6)
    S[index] = value
    return S


@pytest.mark.parametrize(
    "information",
    [
        *(Information(np.zeros(6), spoiled((2, 2), v), 1.0, 8) for v in (np.nan, np.inf, -1.0, 1e13)),
        *(Information(np.zeros(6), spoiled((0, 1), v), 1.0, 8) for v in (0.5, np.nan, 1e3)),
        Information(np.zeros(6), 1.5 * np.eye(6) - 0.5, 1.0, 8),
        Information(np.full(6, np.nan), np.eye(6), 1.0, 8),
        Information(np.zeros(5), np.eye(6), 1.0, 8),
        Information(np.zeros(6), np.eye(5), 1.0, 8),
        Information(np.zeros(6), np.eye(6), np.nan, 8),
        Information(np.zeros(6), np.eye(6), -1.0, 8),
        Information(np.zeros(6), np.eye(6), 1.0, 0),
    ],
)
def test_what_is_no_information_is_refused(information: Information) -> None:
    with pytest.raises(GeometryError, match="observation"):
        checked_information(information)


@given(seeds, st.integers(0, 6))
def test_singular_information_is_taken_also_in_single_precision(seed: int, rank: int) -> None:
    J = np.random.default_rng(seed).normal(size=(rank, 6)).astype(np.float32) * np.float32(30.0)
    matrix = (J.T @ J).astype(np.float64)
    taken = checked_information(Information(np.zeros(6), matrix, 1.0, max(rank, 1)))
    np.testing.assert_allclose(taken.information_66, matrix, atol=1e-3)


def test_a_weak_direction_does_not_spoil_the_others() -> None:
    """Roll is next to unknown, and fits best half a turn away: it moves as the textbook says, and so does the rest."""
    P = np.diag([0.1, 0.1, 0.1, 0.02, 0.02, 0.02]) ** 2
    A = np.diag([1 / 0.05, 1 / 0.05, 1 / 0.05, 1 / 4.0, 1 / 0.01, 1 / 0.01])
    offset = np.array([0.05, -0.05, 0.02, 0.0, 0.01, -0.01])

    class Rolled:
        """`offset` off, and 3 rad more of roll than the state, to first order."""

        def at(self, T_map_body: Array) -> Information:
            d = log_se3(T_map_body)
            return information(A @ (offset + np.array([0, 0, 0, 3.0, 0, 0]) - d), A, np.ones(6))

    pose = exp_se3(offset)
    found = compress(Rolled(), pose, np.eye(4), P, 1.0, 1.0, GATE)
    assert found is not None
    assert found.rank == 6
    X, P_new, _ = update(np.eye(4), P, found.T_map_base, found.cov_66)
    gain = P @ np.linalg.inv(P + np.linalg.inv(A @ A))
    expected = gain @ (offset + np.array([0, 0, 0, 3.0, 0, 0]))
    np.testing.assert_allclose(log_se3(X), expected, atol=2e-3)
    np.testing.assert_allclose(P_new, P - gain @ P, atol=2e-3 * P.diagonal().max())
