"""What an odometry does wrong all the time: the correction, its derivatives, and that the filter finds it."""

from __future__ import annotations

import math

import numpy as np
import pytest
from filter_events import COV, at
from hypothesis import given
from hypothesis import strategies as st

from vmloc_ros.config import FilterConfig, FrameNames
from vmloc_ros.fusion import Fusion
from vmloc_ros.geometry import Array, exp_se3, inverse, is_pose, log_se3
from vmloc_ros.odometry_model import UNCALIBRATED, corrected, prior_variances
from vmloc_ros.types import OdometrySample, PoseMeasurement

seeds = st.integers(0, 10_000)
STEP = 1e-6


def drawn(seed: int) -> tuple[Array, float, Array]:
    """An increment, the way in it, and a model."""
    rng = np.random.default_rng(seed)
    return (
        exp_se3(rng.normal(size=6) * [1, 1, 1, 0.5, 0.5, 0.5]),
        rng.uniform(0, 2),
        rng.normal(size=3) * [0.3, 0.3, 0.1],
    )


@given(seeds)
def test_an_odometry_without_faults_stays_as_it_is(seed: int) -> None:
    T, metres, _ = drawn(seed)
    X, _ = corrected(T, metres, UNCALIBRATED)
    np.testing.assert_allclose(X, T, atol=1e-15)


@given(seeds)
def test_the_correction_is_a_pose_and_scales_the_way(seed: int) -> None:
    T, metres, model = drawn(seed)
    X, _ = corrected(T, metres, model)
    assert is_pose(X, 1e-9)
    assert np.linalg.norm(X[:3, 3]) == pytest.approx(math.exp(model[0]) * np.linalg.norm(T[:3, 3]))
    turned = log_se3(inverse(T) @ X)[3:]
    np.testing.assert_allclose(turned, [0, 0, model[2] * metres], atol=1e-12)


@given(seeds)
def test_the_matrix_is_the_derivative(seed: int) -> None:
    """By central differences: `T Exp(d) X(model + m)` against `T X(model)`, for the pose and for the model."""
    T, metres, model = drawn(seed)
    before = exp_se3(np.random.default_rng(seed + 1).normal(size=6))
    X, F = corrected(T, metres, model)
    numeric = np.zeros((6, 9))
    for k in range(9):
        ends = []
        for sign in (1.0, -1.0):
            d = np.zeros(9)
            d[k] = sign * STEP
            moved, _ = corrected(T, metres, model + d[6:])
            ends.append(log_se3(inverse(before @ X) @ before @ exp_se3(d[:6]) @ moved))
        numeric[:, k] = (ends[0] - ends[1]) / (2 * STEP)
    np.testing.assert_allclose(F[:6], numeric, atol=1e-7)
    np.testing.assert_array_equal(F[6:], np.eye(9)[6:])


def test_only_what_is_asked_for_is_estimated() -> None:
    assert prior_variances(FilterConfig(estimate_scale=False))[0] == 0.0
    assert prior_variances(FilterConfig(estimate_heading=False))[1] == 0.0
    assert prior_variances(FilterConfig(estimate_yaw_bias=False))[2] == 0.0
    assert (prior_variances(FilterConfig()) > 0.0).all()


def driven(config: FilterConfig, faults: Array, seed: int = 0, seconds: float = 120.0) -> tuple[Fusion, list[float]]:
    """Laps with an odometry of these faults (log scale, heading, yaw bias) and white measurements twice a second.

    Returns:
        The filter, and its errors of position (m) in the last third.
    """
    rng, fusion, sigma = np.random.default_rng(seed), Fusion(config, FrameNames()), np.sqrt(COV.diagonal())
    T_true, T_odom, errors = exp_se3([10.0, 5.0, 0.0, 0.0, 0.0, 1.0]), np.eye(4), []
    for k in range(round(10 * seconds)):
        fusion.add_odometry(OdometrySample(at(0.1 * k), "odom", "base_link", T_odom))
        if k % 5 == 0:
            Z = T_true @ exp_se3(sigma * rng.normal(size=6))
            fusion.add_measurement(PoseMeasurement(at(0.1 * k), Z, COV))
        state = fusion.state()
        if state is not None and k > 20 / 3 * seconds:
            errors.append(float(np.linalg.norm(state.T_map_base[:3, 3] - T_true[:3, 3])))
        true_step = exp_se3([0.8, 0.0, 0.0, 0.0, 0.0, 0.03 * math.sin(0.01 * k)])
        # the odometry sees what the correction makes the truth of
        c, s = math.cos(faults[1]), math.sin(faults[1])
        step = true_step.copy()
        step[:2, 3] = math.exp(-faults[0]) * np.array([[c, s], [-s, c]]) @ true_step[:2, 3]
        step[:3, :3] = true_step[:3, :3] @ exp_se3([0, 0, 0, 0, 0, -faults[2] * 0.8 * math.exp(-faults[0])])[:3, :3]
        T_true, T_odom = T_true @ true_step, T_odom @ step
    return fusion, errors


FAULTS = np.array([-0.02, 0.03, 3e-4])
CONFIG = FilterConfig(
    measurement_correlation_s=0.0, student_t_dof=0.0, measurement_inflation=1.0, noise_rad_per_m=0.001
)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_filter_finds_scale_heading_and_yaw_bias(seed: int) -> None:
    fusion, _ = driven(CONFIG, FAULTS, seed)
    model, deviations = fusion.odometry_model()
    assert (deviations < 0.5 * np.sqrt(prior_variances(CONFIG))).all()
    assert (np.abs(model - FAULTS) < 3.5 * deviations).all(), (model, deviations)


def test_an_odometry_whose_faults_are_known_carries_further() -> None:
    off = CONFIG.model_copy(update={"estimate_scale": False, "estimate_heading": False, "estimate_yaw_bias": False})
    _, with_model = driven(CONFIG, FAULTS)
    _, without = driven(off, FAULTS)
    assert np.mean(with_model) < 0.75 * np.mean(without)


def test_what_is_not_estimated_never_moves() -> None:
    config = CONFIG.model_copy(update={"estimate_heading": False})
    fusion, _ = driven(config, FAULTS, seconds=40.0)
    model, deviations = fusion.odometry_model()
    assert model[1] == 0.0
    assert deviations[1] == 0.0
    assert model[0] != 0.0
