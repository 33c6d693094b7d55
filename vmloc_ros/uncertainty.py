"""How sure a pose is: a constant 6x6 per modality mode, measured on validation frames, scaled by the latent scatter.

The scatter is the covariance of the poses of a few latent samples about the pose of the latent mean, as right
perturbations in camera axes. It ranks frames well and is badly scaled; so it only scales what validation has measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import chi2

from vmloc_ros.errors import GeometryError
from vmloc_ros.geometry import Array

STUDENT_DOF = 5.0
"""Of the robust covariance fit: a few gross errors must not blow up every frame's covariance."""
CLIPPED_NEES = 60.0
"""Ten times its expectation: beyond it an error is an outlier that the filter's gate is for."""
FLOOR_6 = np.array([1e-3, 1e-3, 1e-3, 1e-4, 1e-4, 1e-4])
"""Standard deviations (m, rad) below which no network is believed."""
EXPONENTS = np.arange(0.0, 2.01, 0.1)
SCATTER_LIMIT = 30.0


@dataclass(frozen=True, eq=False)
class Calibration:
    """What turns a frame's scatter into its covariance; see `ModeCalibration` in the model's card.

    Attributes:
        base_66: covariance of a frame of median scatter.
        exponent: of the ratio of scatters.
        spread_median, spread_p95: of `spread` on the validation frames.
        limit: the largest ratio of scatters that is believed.
    """

    base_66: Array
    exponent: float
    spread_median: float
    spread_p95: float
    limit: float = SCATTER_LIMIT

    def covariance(self, scatter_66: Array) -> Array:
        """6x6 of one frame: symmetric, positive definite, finite."""
        ratio = float(np.clip(spread(scatter_66, self.base_66) / self.spread_median, 1.0 / self.limit, self.limit))
        scaled = self.base_66 * ratio**self.exponent
        return 0.5 * (scaled + scaled.T) + np.diag(FLOOR_6**2)

    def health(self, scatter_66: Array) -> float:
        """1 for a scatter as on validation frames, falling towards 0 beyond the 95th percentile there."""
        value = spread(scatter_66, self.base_66)
        return 1.0 if value <= self.spread_p95 else float(self.spread_p95 / value)


def spread(scatter_66: Array, base_66: Array) -> float:
    """Size of a scatter in units of the mode's usual error, positions and rotations alike (dimensionless)."""
    position = np.trace(scatter_66[:3, :3]) / np.trace(base_66[:3, :3])
    rotation = np.trace(scatter_66[3:, 3:]) / np.trace(base_66[3:, 3:])
    return float(np.sqrt(0.5 * (position + rotation)) + 1e-9)


def robust_covariance(errors_N6: Array, iterations: int = 30) -> tuple[Array, float]:
    """Maximum-likelihood scale matrix of a zero-mean Student-t (dof 5), and the mean log-likelihood.

    Source: K. Lange, R. Little, J. Taylor, "Robust statistical modeling using the t distribution", JASA 1989 (EM).
    """
    count, size = errors_N6.shape
    scale = errors_N6.T @ errors_N6 / count + np.diag(FLOOR_6**2)
    for _ in range(iterations):
        distance = np.einsum("ni,ni->n", errors_N6, np.linalg.solve(scale, errors_N6.T).T)
        weights = (STUDENT_DOF + size) / (STUDENT_DOF + distance)
        scale = (errors_N6 * weights[:, None]).T @ errors_N6 / count + np.diag(FLOOR_6**2)
    distance = np.einsum("ni,ni->n", errors_N6, np.linalg.solve(scale, errors_N6.T).T)
    likelihood = (
        -0.5 * np.linalg.slogdet(scale)[1] - 0.5 * (STUDENT_DOF + size) * np.log1p(distance / STUDENT_DOF).mean()
    )
    return scale, float(likelihood)


def calibrate(errors_N6: Array, scatters_N66: Array) -> Calibration:
    """Fits a mode's calibration to the validation errors (right perturbations, camera axes) and scatters.

    The exponent maximises a Student-t likelihood; then the whole is scaled so that the mean NEES, each clipped at ten
    times its expectation, is 6.

    Raises:
        GeometryError: no errors, or numbers that are not finite.
    """
    if len(errors_N6) == 0 or not (np.isfinite(errors_N6).all() and np.isfinite(scatters_N66).all()):
        raise GeometryError(f"cannot calibrate on {len(errors_N6)} errors; all must be finite")
    reference, _ = robust_covariance(errors_N6)
    best: tuple[float, float, Array, Array] | None = None
    spreads = np.array([spread(scatter, reference) for scatter in scatters_N66])
    ratios = np.clip(spreads / np.median(spreads), 1.0 / SCATTER_LIMIT, SCATTER_LIMIT)
    for exponent in EXPONENTS:
        factors = ratios**exponent
        scale, likelihood = robust_covariance(errors_N6 / np.sqrt(factors)[:, None])
        likelihood -= 3.0 * float(np.log(factors).mean())
        if best is None or likelihood > best[0]:
            best = likelihood, float(exponent), scale, factors
    assert best is not None  # EXPONENTS is not empty
    _, exponent, scale, factors = best
    distance = np.einsum("ni,ni->n", errors_N6, np.linalg.solve(scale, errors_N6.T).T) / factors
    base = scale * _nees_scale(distance)
    spreads = np.array([spread(scatter, base) for scatter in scatters_N66])
    return Calibration(base, exponent, float(np.median(spreads)), float(np.percentile(spreads, 95.0)))


def _nees_scale(distance_N: Array) -> float:
    """The s for which mean(min(distance / s, CLIPPED_NEES)) is 6 (bisection; it falls with s)."""
    low, high = 1e-6, 1e6
    for _ in range(80):
        middle = float(np.sqrt(low * high))
        if np.minimum(distance_N / middle, CLIPPED_NEES).mean() > 6.0:
            low = middle
        else:
            high = middle
    return float(np.sqrt(low * high))


def nees(errors_N6: Array, covariances_N66: Array) -> Array:
    """Normalised estimation error squared of each frame, `d' S^-1 d` (N,); its mean is 6 where `S` is honest.

    Raises:
        numpy.linalg.LinAlgError: a covariance is singular.
    """
    solved = np.linalg.solve(covariances_N66, errors_N6[..., None])[..., 0]
    return np.asarray(np.einsum("ni,ni->n", errors_N6, solved))


def coverage(nees_N: Array, dof: int = 6, levels: Sequence[float] = (0.5, 0.9, 0.95)) -> dict[str, float]:
    """Share of the frames whose error lies in the ellipsoid that holds 50, 90, 95 % of a Gaussian's (chi-square).

    Keys are the levels in percent: "50", "90", "95".

    Raises:
        ValueError: no frame.
    """
    if len(nees_N) == 0:
        raise ValueError("no frame to measure the coverage on")
    return {f"{100.0 * level:g}": float(np.mean(nees_N <= chi2.ppf(level, dof))) for level in levels}


def gaussian_log_likelihood(errors_N6: Array, covariances_N66: Array) -> Array:
    """log N(d; 0, S) of each frame (N,), natural logarithm, units of metres and radians.

    Raises:
        numpy.linalg.LinAlgError: a covariance is singular.
    """
    size = errors_N6.shape[-1]
    log_determinant = np.linalg.slogdet(covariances_N66)[1]
    return -0.5 * (nees(errors_N6, covariances_N66) + log_determinant + size * np.log(2.0 * np.pi))


def best_constant(errors_N6: Array) -> Array:
    """The one covariance (6, 6) under which zero-mean Gaussian errors are likeliest: their second moment, and FLOOR_6.

    Raises:
        GeometryError: no errors, or numbers that are not finite.
    """
    if len(errors_N6) == 0 or not np.isfinite(errors_N6).all():
        raise GeometryError(f"cannot fit a covariance to {len(errors_N6)} errors; all must be finite")
    return np.asarray(errors_N6.T @ errors_N6 / len(errors_N6) + np.diag(FLOOR_6**2))
