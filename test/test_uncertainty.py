"""Calibrated covariances."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import multivariate_normal

from vmloc_ros.errors import GeometryError
from vmloc_ros.uncertainty import (
    Calibration,
    best_constant,
    calibrate,
    coverage,
    gaussian_log_likelihood,
    nees,
    robust_covariance,
    spread,
)

BASE = np.diag([0.5, 0.2, 1.0, 0.01, 0.03, 0.02]) ** 2


def errors_and_scatters(count: int, exponent: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Gaussian errors whose covariance follows the scatter's size with a given exponent."""
    rng = np.random.default_rng(seed)
    ratios = np.exp(rng.normal(size=count))
    errors = rng.multivariate_normal(np.zeros(6), BASE, size=count) * ratios[:, None] ** (0.5 * exponent)
    return errors, 0.1 * BASE[None] * ratios[:, None, None] ** 2


@pytest.mark.parametrize("exponent", [0.0, 1.0, 2.0])
def test_calibration_finds_what_the_scatter_says(exponent: float) -> None:
    errors, scatters = errors_and_scatters(2000, exponent)
    calibration = calibrate(errors, scatters)
    assert calibration.exponent == pytest.approx(exponent, abs=0.2)
    fresh, fresh_scatters = errors_and_scatters(2000, exponent, seed=1)
    nees = [e @ np.linalg.solve(calibration.covariance(s), e) for e, s in zip(fresh, fresh_scatters, strict=True)]
    assert np.mean(nees) == pytest.approx(6.0, rel=0.15)


def test_gross_errors_do_not_blow_up_the_covariance() -> None:
    errors, scatters = errors_and_scatters(1000, 0.0)
    clean = calibrate(errors, scatters)
    errors[:20] *= 100.0
    dirty = calibrate(errors, scatters)
    growth = np.trace(dirty.base_66[:3, :3]) / np.trace(clean.base_66[:3, :3])
    assert 1.0 < growth < 2.0


@given(
    st.lists(st.floats(0.0, 1e6), min_size=6, max_size=6),
    st.floats(0.0, 2.0),
    st.integers(0, 1000),
)
@settings(max_examples=60)
def test_covariance_is_symmetric_positive_and_finite(diagonal: list[float], exponent: float, seed: int) -> None:
    A = np.random.default_rng(seed).normal(size=(6, 6))
    calibration = Calibration(A @ A.T + 0.01 * np.eye(6), exponent, 0.7, 1.5)
    scatter = np.diag(diagonal)
    S = calibration.covariance(scatter)
    assert np.isfinite(S).all()
    assert np.array_equal(S, S.T)
    assert np.linalg.eigvalsh(S).min() > 0.0
    assert 0.0 < calibration.health(scatter) <= 1.0


def test_more_scatter_never_means_more_certain() -> None:
    calibration = Calibration(BASE, 1.0, 0.5, 1.0)
    scatters = [BASE * f for f in (0.0, 0.01, 0.25, 1.0, 100.0, 1e9)]
    sizes = [np.trace(calibration.covariance(s)) for s in scatters]
    health = [calibration.health(s) for s in scatters]
    assert sizes == sorted(sizes)
    assert health == sorted(health, reverse=True)
    assert health[0] == 1.0
    assert spread(BASE, BASE) == pytest.approx(1.0)


def test_robust_covariance_of_a_student_t() -> None:
    rng = np.random.default_rng(0)
    gaussian = rng.multivariate_normal(np.zeros(6), BASE, size=20000)
    heavy = gaussian / np.sqrt(rng.chisquare(5.0, size=(20000, 1)) / 5.0)
    scale, _ = robust_covariance(heavy)
    assert np.diag(scale) == pytest.approx(np.diag(BASE), rel=0.05)


def test_calibration_refuses_what_it_cannot_use() -> None:
    errors, scatters = errors_and_scatters(10, 0.0)
    with pytest.raises(GeometryError, match="finite"):
        calibrate(errors * np.nan, scatters)
    with pytest.raises(GeometryError, match="0 errors"):
        calibrate(errors[:0], scatters[:0])


def test_measures_of_honest_covariances() -> None:
    """Errors drawn from their covariances: NEES 6, coverage as promised, likelihood as scipy computes it."""
    rng = np.random.default_rng(3)
    factors = np.linalg.cholesky(BASE * np.exp(rng.normal(size=(4000, 1, 1))))
    covariances = factors @ factors.transpose(0, 2, 1)
    errors = np.einsum("nij,nj->ni", factors, rng.normal(size=(4000, 6)))
    distance = nees(errors, covariances)
    assert distance.mean() == pytest.approx(6.0, abs=0.2)
    covered = coverage(distance)
    assert list(covered) == ["50", "90", "95"]
    assert list(covered.values()) == pytest.approx([0.5, 0.9, 0.95], abs=0.03)
    likelihood = gaussian_log_likelihood(errors, covariances)
    expected = [multivariate_normal.logpdf(e, np.zeros(6), S) for e, S in zip(errors[:20], covariances, strict=False)]
    assert likelihood[:20] == pytest.approx(expected)
    constant = np.broadcast_to(best_constant(errors), covariances.shape)
    assert gaussian_log_likelihood(errors, constant).mean() < likelihood.mean()
    assert nees(errors, constant).mean() == pytest.approx(6.0, rel=0.01)
    for other in (0.8, 1.25):
        assert (
            gaussian_log_likelihood(errors, other * constant).mean() < gaussian_log_likelihood(errors, constant).mean()
        )


def test_measures_refuse_nothing() -> None:
    with pytest.raises(ValueError, match="no frame"):
        coverage(np.array([]))
    with pytest.raises(GeometryError, match="0 errors"):
        best_constant(np.empty((0, 6)))
