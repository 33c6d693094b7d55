"""Pose graphs: the solution by GTSAM, in this project's conventions, and what their covariances claim."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmloc_ros.errors import GeometryError, SetupError
from vmloc_ros.geometry import Array, adjoint, exp_se3, inverse, log_se3
from vmloc_ros.odometry_model import corrected
from vmloc_ros.pose_graph import Anchor, Way, at_least, effective_number, load_gtsam, solve, variance_of

SIGMAS = np.array([0.3, 0.5, 0.2, 0.02, 0.03, 0.05])


@pytest.fixture
def gtsam() -> ModuleType:
    return pytest.importorskip("gtsam", reason="GTSAM is not installed: pip install -e .[batch]", exc_type=ImportError)


def covariance(rng: np.random.Generator, scale: float = 1.0) -> Array:
    mixed = rng.normal(size=(6, 6)) * 0.3 + np.eye(6)
    return scale**2 * (SIGMAS[:, None] * (mixed @ mixed.T) * SIGMAS[None, :])


def driven(rng: np.random.Generator, count: int) -> tuple[Array, list[Way]]:
    """True poses of a bend, and the exact way between them."""
    poses = [exp_se3(rng.normal(size=6))]
    ways = []
    for _ in range(count - 1):
        step = exp_se3(np.array([1.0, 0.1, 0.0, 0.0, 0.02, 0.1]) * rng.uniform(0.5, 1.5, 6))
        ways.append(Way(step, float(np.linalg.norm(step[:3, 3])), covariance(rng, 0.1)))
        poses.append(poses[-1] @ step)
    return np.array(poses), ways


def test_without_noise_the_truth_is_the_solution(gtsam: ModuleType) -> None:
    rng = np.random.default_rng(0)
    truth, ways = driven(rng, 6)
    guess = np.array([T @ exp_se3(0.2 * rng.normal(size=6)) for T in truth])
    anchors = [Anchor(k, truth[k], covariance(rng)) for k in (0, 3)]
    found = solve(guess, anchors, ways, [5], kernel=2.0)
    np.testing.assert_allclose(found.poses_N44, truth, atol=1e-6)


def test_two_opinions_on_one_pose_are_their_product(gtsam: ModuleType) -> None:
    """In (translation, rotation) order and body axes: a node anchored once, and once over a way that is known."""
    rng = np.random.default_rng(1)
    truth, (way,) = driven(rng, 2)
    known = Way(way.T_prev_now, way.metres, 1e-9 * np.eye(6))
    one, two = covariance(rng, 0.1), covariance(rng, 0.1)
    found = solve(truth, [Anchor(0, truth[0], one), Anchor(1, truth[1], two)], [known], [1])
    over = adjoint(inverse(way.T_prev_now))
    expected = np.linalg.inv(np.linalg.inv(over @ one @ over.T) + np.linalg.inv(two))
    np.testing.assert_allclose(found.covariances[1], expected, rtol=1e-2, atol=1e-7)
    anchored = solve(truth, [Anchor(0, truth[0], one)], [way], [0, 1])
    np.testing.assert_allclose(anchored.covariances[0], one, rtol=1e-6, atol=1e-12)
    carried = over @ one @ over.T + way.cov_66
    np.testing.assert_allclose(anchored.covariances[1], carried, rtol=1e-6, atol=1e-12)


def test_covariances_are_those_of_the_errors(gtsam: ModuleType) -> None:
    """Mean NEES of the last pose over many drawn graphs: 6, within five standard errors."""
    rng, count, values = np.random.default_rng(2), 150, []
    truth, ways = driven(rng, 5)
    R = covariance(rng, 0.3)
    draw = np.linalg.cholesky(R)
    for _ in range(count):
        anchors = [Anchor(k, truth[k] @ exp_se3(draw @ rng.normal(size=6)), R) for k in range(5)]
        drawn = [
            Way(w.T_prev_now @ exp_se3(np.linalg.cholesky(w.cov_66) @ rng.normal(size=6)), w.metres, w.cov_66)
            for w in ways
        ]
        found = solve(np.array([a.T_map_body for a in anchors]), anchors, drawn, [4])
        d = log_se3(inverse(found.poses_N44[4]) @ truth[4])
        values.append(float(d @ np.linalg.solve(found.covariances[4], d)))
    assert abs(np.mean(values) - 6.0) < 5.0 * np.sqrt(12.0 / count)


def test_one_wrong_pose_among_many_is_outvoted(gtsam: ModuleType) -> None:
    rng = np.random.default_rng(3)
    truth, ways = driven(rng, 7)
    R = np.diag(SIGMAS**2)
    wrong = truth[6] @ exp_se3([30.0, 0.0, 0.0, 0.0, 0.0, 0.5])
    anchors = [Anchor(k, wrong if k == 6 else truth[k], R) for k in range(7)]
    guess = np.array([a.T_map_body for a in anchors])
    errors = {
        kernel: float(np.linalg.norm((inverse(solve(guess, anchors, ways, [], kernel).poses_N44[6]) @ truth[6])[:3, 3]))
        for kernel in (0.0, 3.0)
    }
    assert errors[3.0] < 0.2
    assert errors[0.0] > 10.0 * errors[3.0]


def test_the_odometrys_faults_are_found(gtsam: ModuleType) -> None:
    """Three per cent too short, to one side, and turning: the exact ways are those of the model that is found."""
    rng = np.random.default_rng(4)
    truth, ways = driven(rng, 30)
    faults = np.array([0.03, -0.02, 0.002])
    moved = [truth[0]]
    for way in ways:
        moved.append(moved[-1] @ corrected(way.T_prev_now, way.metres, faults)[0])
    anchors = [Anchor(k, moved[k], 1e-6 * np.eye(6)) for k in range(0, 30, 3)]
    found = solve(np.array(moved), anchors, ways, [29], model_variances_3=np.array([1.0, 1.0, 0.1]) ** 2)
    np.testing.assert_allclose(found.model_3, faults, atol=1e-4)
    np.testing.assert_allclose(found.poses_N44, np.array(moved), atol=1e-4)


@pytest.mark.parametrize(
    ("anchors", "ways", "words"),
    [
        ([], 1, "0 anchors"),
        ([Anchor(0, np.eye(4), np.eye(6))], 0, "0 ways"),
        ([Anchor(0, np.eye(4), np.zeros((6, 6)))], 1, "positive definite"),
        ([Anchor(0, np.eye(4), np.full((6, 6), np.nan))], 1, "positive definite|solved|finite"),
    ],
)
def test_what_cannot_be_solved_says_so(gtsam: ModuleType, anchors: list[Anchor], ways: int, words: str) -> None:
    with pytest.raises(GeometryError, match=words):
        solve(np.tile(np.eye(4), (2, 1, 1)), anchors, [Way(np.eye(4), 0.0, np.eye(6))] * ways, [1])


def test_without_gtsam_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str, package: str | None = None) -> Any:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(SetupError, match=r"pip install vmloc_ros\[batch\]"):
        load_gtsam()


# ------------------------------------------------------------------------------------------- what does not need GTSAM


@given(st.lists(st.floats(0.01, 5.0), min_size=1, max_size=12), st.floats(0.05, 10.0))
def test_effective_number_is_the_precision_of_the_best_mean(steps: list[float], correlation_s: float) -> None:
    times = np.cumsum([0.0, *steps])
    C = np.exp(-np.abs(times[:, None] - times[None, :]) / correlation_s)
    number = effective_number(times, correlation_s)
    ones = np.ones(len(times))
    assert number == pytest.approx(float(ones @ np.linalg.solve(C, ones)), rel=1e-6)
    assert 1.0 <= number <= len(times) + 1e-9
    assert effective_number(times, 0.0) == len(times)


@given(st.integers(0, 2**32 - 1))
def test_at_least_is_below_neither(seed: int) -> None:
    rng = np.random.default_rng(seed)
    cov, floor = covariance(rng), covariance(rng)
    result = at_least(cov, floor)
    for lower in (cov, floor):
        assert np.linalg.eigvalsh((result - lower) / np.outer(SIGMAS, SIGMAS)).min() > -1e-9
    np.testing.assert_allclose(at_least(4.0 * cov, cov), 4.0 * cov, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(at_least(0.25 * cov, cov), cov, rtol=1e-9, atol=1e-12)


def test_variance_of_is_never_singular() -> None:
    assert np.allclose(np.diag(variance_of(2.0, 0.1)), [4.0] * 3 + [0.01] * 3)
    np.linalg.cholesky(variance_of(0.0, 0.0))
