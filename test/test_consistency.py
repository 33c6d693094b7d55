"""Whether measurements still fit: the noise level and the pull, and what the filter makes of them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from filter_events import COV, PLAIN, SIGMA, T_MAP_ODOM, at, error_m, filled, measurement, odometry, truth
from hypothesis import given
from hypothesis import strategies as st

from vmloc_ros.config import FilterConfig
from vmloc_ros.consistency import CLIPPED_AT, NO_PULL, Pull, noise_level, pulled, scatter, variance_of_mean
from vmloc_ros.fusion import Fusion
from vmloc_ros.geometry import Array, inverse
from vmloc_ros.types import FusedState, PoseMeasurement, Verdict

WINDOW_S = 4.0
EYE = np.eye(6)
WATCHFUL = PLAIN.model_copy(update={"divergence_window_s": WINDOW_S})


def fold(residuals: list[Array], step_s: float, window_s: float = WINDOW_S) -> Pull:
    """The running means after these innovations."""
    pull = NO_PULL
    for residual in residuals:
        pull = pulled(pull, residual, EYE, step_s, window_s)
    return pull


# ----- the noise level


@given(st.floats(0.1, 50.0), st.floats(0.01, 3.0))
def test_a_constant_level_is_found_and_stays(value: float, step_s: float) -> None:
    level = 1.0
    for _ in range(round(40.0 / step_s) + 1):
        level = noise_level(level, step_s, value, 2.0)
    assert level == pytest.approx(value, rel=1e-3, abs=1e-6)


def test_without_a_memory_it_is_the_last_one() -> None:
    assert noise_level(7.0, 0.1, 3.0, 0.0) == 3.0


@given(st.floats(0.05, 1.0), st.integers(2, 8))
def test_the_level_depends_on_time_not_on_the_rate(step_s: float, parts: int) -> None:
    once = noise_level(1.0, step_s, 5.0, 2.0)
    many = 1.0
    for _ in range(parts):
        many = noise_level(many, step_s / parts, 5.0, 2.0)
    assert many == pytest.approx(once, rel=1e-9)


# ----- the pull


def test_the_mean_of_equal_innovations_is_theirs() -> None:
    residual = np.array([1.0, -0.5, 0.2, 0.0, 0.1, 0.3])
    pull = fold([residual] * 100, 0.1)
    np.testing.assert_allclose(pull.sum_6 / pull.filled, residual, atol=1e-12)
    assert pull.filled == pytest.approx(1.0 - math.exp(-10.0 / WINDOW_S))
    assert scatter(pull, EYE, 6, 0.3) == 1.0  # all to one side: no scatter


@given(st.floats(CLIPPED_AT, 1e6))
def test_one_wild_innovation_counts_no_more_than_the_limit(length: float) -> None:
    far = np.array([length, 0, 0, 0, 0, 0.0])
    pull = fold([np.zeros(6)] * 50 + [far], 0.1)
    assert pull.sum_6[0] == pytest.approx(CLIPPED_AT * (1.0 - math.exp(-0.1 / WINDOW_S)), rel=1e-9)


@pytest.mark.parametrize("correlation_s", [0.0, 0.5, 2.0])
def test_variance_of_the_mean_against_samples(correlation_s: float) -> None:
    """The spread of the running mean over many runs of correlated errors is the one that is stated."""
    rng, step_s, runs = np.random.default_rng(0), 0.1, 2000
    keep = math.exp(-step_s / correlation_s) if correlation_s else 0.0
    gain = 1.0 - math.exp(-step_s / WINDOW_S)
    error, mean = rng.normal(size=runs), np.zeros(runs)
    for _ in range(400):
        error = keep * error + math.sqrt(1.0 - keep * keep) * rng.normal(size=runs)
        mean = (1.0 - gain) * mean + gain * error
    assert np.var(mean) == pytest.approx(variance_of_mean(step_s, correlation_s, WINDOW_S), rel=0.15)


@pytest.mark.parametrize("size", [0.5, 1.0, 1.6])
def test_scatter_is_the_variance_of_errors_that_cancel(size: float) -> None:
    """White errors of `size` standard deviations: their variance, or 1 where they are smaller than claimed."""
    rng = np.random.default_rng(1)
    share = variance_of_mean(0.1, 0.0, 40.0)
    found = scatter(fold([size * rng.normal(size=6) for _ in range(4000)], 0.1, 40.0), EYE, 6, share)
    assert found == pytest.approx(max(1.0, size**2), rel=0.1)


# ----- in the filter


def slipping(fusion: Fusion, from_s: float, until_s: float, slip: float) -> list[float]:
    """Drives on with an odometry that sees only a part of the way and noisy measurements; errors after each sample."""
    rng, errors = np.random.default_rng(3), []
    pose = truth(from_s)
    for k in range(round(from_s / 0.05) + 1, round(until_s / 0.05) + 1):
        seconds = 0.05 * k
        step = inverse(truth(seconds - 0.05)) @ truth(seconds)
        step[:3, 3] *= slip
        pose = pose @ step
        fusion.add_odometry(odometry(seconds, pose))
        if k % 4 == 0:
            fusion.add_measurement(measurement(seconds, SIGMA * rng.normal(size=6)))
        errors.append(error_m(fusion.state(), seconds))
    return errors


def test_an_odometry_that_slips_unseen_widens_the_state() -> None:
    """Wheels that spin: every increment looks sound. Without the watch the error stays large, with it it does not."""
    watched, unwatched = filled(WATCHFUL), filled(PLAIN)
    with_watch, without = slipping(watched, 5.0, 15.0, 0.8), slipping(unwatched, 5.0, 15.0, 0.8)
    watched.flush()
    assert watched.counters()["widenings"] >= 1
    assert np.mean(with_watch) < 0.7 * np.mean(without)


def test_sound_drives_are_never_widened() -> None:
    for seed in range(5):
        rng, fusion = np.random.default_rng(seed), filled(WATCHFUL)
        for k in range(101, 1201):
            seconds = 0.05 * k
            fusion.add_odometry(odometry(seconds))
            if k % 4 == 0:
                fusion.add_measurement(measurement(seconds, SIGMA * rng.normal(size=6)))
        fusion.flush()
        assert fusion.counters()["widenings"] == 0, seed


def widened_in_bad_stretches() -> int:
    """How many of ten drives are, when positions are off by three times their claim of 5 m for 10 s, for 2 s alike."""
    config = WATCHFUL.model_copy(update={"measurement_correlation_s": 2.0, "student_t_dof": 2.0, "robust_power": 2.0})
    size, keep, found = 10.0 * SIGMA * [3.0, 3.0, 0.3, 0.3, 0.3, 0.3], math.exp(-0.05 / 2.0), 0
    for seed in range(10):
        rng, fusion, error = np.random.default_rng(seed), filled(config), np.zeros(6)
        for k in range(101, 301):
            fusion.add_odometry(odometry(0.05 * k))
            error = keep * error + math.sqrt(1.0 - keep**2) * rng.normal(size=6)
            fusion.add_measurement(measurement(0.05 * k, size * error, cov=100.0 * COV))
        fusion.flush()
        found += fusion.counters()["widenings"] > 0
    return found


def test_a_bad_stretch_is_no_pull(monkeypatch: pytest.MonkeyPatch) -> None:
    assert widened_in_bad_stretches() == 0
    monkeypatch.setattr("vmloc_ros.consistency.scatter", lambda *_: 1.0)
    assert widened_in_bad_stretches() >= 3


def test_widening_keeps_the_pose_and_grows_the_covariance_along_the_pull() -> None:
    fusion = filled(WATCHFUL.model_copy(update={"measurement_correlation_s": 1.0, "relocalize_after": 1000}))
    before: FusedState | None = None
    for k in range(1, 200):
        seconds = 5.0 + 0.05 * k
        fusion.add_odometry(odometry(seconds))
        pose = T_MAP_ODOM @ truth(seconds)
        pose[1, 3] += 4.0  # to the map's left; outside the gate, which must not blind the watch
        result = fusion.add_measurement(PoseMeasurement(at(seconds), pose, COV))
        state = fusion.state()
        assert state is not None
        if "widened" in result.reason:
            assert before is not None
            turn_before, turn = before.T_map_base[:3, :3], state.T_map_base[:3, :3]
            grown = turn @ state.cov_66[:3, :3] @ turn.T - turn_before @ before.cov_66[:3, :3] @ turn_before.T
            assert grown[1, 1] > 4 * abs(grown[0, 0])
            return
        before = state
    pytest.fail("four metres to one side for ten seconds were never noticed")


def test_a_fitting_measurement_of_a_bad_stretch_tells_less() -> None:
    """Twelve seconds of errors of twice their claim, then one without error: with the level its information is less."""
    gained = {}
    for level_s in (0.0, 4.0):
        update = {"noise_level_s": level_s, "student_t_dof": 2.0, "robust_power": 2.0}
        rng, fusion = np.random.default_rng(0), filled(FilterConfig.model_validate(PLAIN.model_dump() | update))
        for k in range(101, 341):
            fusion.add_odometry(odometry(0.05 * k))
            fusion.add_measurement(measurement(0.05 * k, 2.0 * SIGMA * rng.normal(size=6)))
        before = fusion.state()
        assert fusion.add_measurement(measurement(17.0)).verdict is Verdict.FUSED
        after = fusion.state()
        assert before is not None
        assert after is not None
        gained[level_s] = float(np.trace(np.linalg.inv(after.cov_66) - np.linalg.inv(before.cov_66)))
    assert 0.0 < gained[4.0] < 0.5 * gained[0.0]
