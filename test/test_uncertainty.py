"""Calibrated covariances."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import multivariate_normal

from vmloc_ros.errors import GeometryError
from vmloc_ros.neighbours import Evidence
from vmloc_ros.uncertainty import (
    Calibration,
    best_constant,
    coverage,
    gaussian_log_likelihood,
    nees,
    spread,
)

BASE = np.diag([0.5, 0.2, 1.0, 0.01, 0.03, 0.02]) ** 2


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


finite = st.floats(1e-9, 1e6)


@given(finite, finite, st.floats(0.0, 5.0), st.floats(0.0, 3.0), st.floats(0.0, 1.0), st.integers(0, 1000))
@settings(max_examples=60)
def test_covariance_of_any_evidence_is_whole(
    distance: float, size: float, share: float, a: float, b: float, seed: int
) -> None:
    """Symmetric, positive definite, finite; and more unfamiliar or more torn evidence never means more certain."""
    A = np.random.default_rng(seed).normal(size=(6, 6))
    shape = size * (A @ A.T)
    calibration = Calibration(
        BASE,
        0.0,
        1.0,
        2.0,
        share=share,
        distance_median=0.3,
        distance_exponent=a,
        distance_p95=0.9,
        disagreement_median=2.0,
        disagreement_exponent=b,
    )
    evidence = Evidence(shape[None], np.array([distance]))
    S = calibration.covariance(0.1 * BASE, evidence)
    assert np.isfinite(S).all()
    assert np.array_equal(S, S.T)
    assert np.linalg.eigvalsh(S).min() > 0.0
    assert 0.0 < calibration.health(0.1 * BASE, evidence) <= 1.0
    farther = Evidence(shape[None], np.array([2.0 * distance]))
    torn = Evidence(4.0 * shape[None], np.array([distance]))
    for worse in (farther, torn):
        assert np.linalg.eigvalsh(calibration.covariance(0.1 * BASE, worse) - S).min() >= -1e-9 * np.trace(S)
        assert calibration.health(0.1 * BASE, worse) <= calibration.health(0.1 * BASE, evidence)


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
