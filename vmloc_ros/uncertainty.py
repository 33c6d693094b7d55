"""How sure a pose is: the covariance of a frame from what its mode's calibration has measured, and how true it was.

A covariance is of the right perturbation `T = T_hat Exp(d)`, d = (translation, rotation) in camera axes (m, rad). What
a calibration's numbers are fitted to, and how, stands in `covariance_fit`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import chi2

from vmloc_ros.errors import GeometryError
from vmloc_ros.geometry import Array
from vmloc_ros.neighbours import Evidence

FLOOR_6 = np.array([1e-3, 1e-3, 1e-3, 1e-4, 1e-4, 1e-4])
"""Standard deviations (m, rad) below which no network is believed."""
SCATTER_LIMIT = 30.0
RATIO_LIMIT = 12.0
"""A frame this many times as unfamiliar as the median is as unfamiliar as can be."""


@dataclass(frozen=True, eq=False)
class Calibration:
    """What turns a frame's evidence into its covariance; see `ModeCalibration` in the model's card.

        S = (base + share * shape) * ratio(spread)^exponent * ratio(distance)^distance_exponent
            * max(1, ratio(disagreement)^disagreement_exponent) + floor

    Ratios are to the medians on calibration frames. The first models have neither shape nor distance, later ones no
    exponent of the spread.

    Attributes:
        base_66: covariance of a familiar frame.
        exponent, spread_median, limit: of the size of the latent scatter.
        spread_p95, distance_p95: on calibration frames; beyond them the health falls.
        share: of the evidence's shape.
        distance_median, distance_exponent: of how unfamiliar a frame is.
        disagreement_median, disagreement_exponent: of the size of the shape in position.
    """

    base_66: Array
    exponent: float
    spread_median: float
    spread_p95: float
    limit: float = SCATTER_LIMIT
    share: float = 0.0
    distance_median: float = 1.0
    distance_exponent: float = 0.0
    distance_p95: float = np.inf
    disagreement_median: float = 1.0
    disagreement_exponent: float = 0.0

    def covariance(self, scatter_66: Array, evidence: Evidence | None = None) -> Array:
        """6x6 of one frame: symmetric, positive definite, finite.

        Args:
            scatter_66: of the frame's latent samples.
            evidence: of this one frame; only for calibrations with a share or exponents of it.
        """
        inner, factor = self.base_66, 1.0
        if self.exponent:
            ratio = np.clip(spread(scatter_66, self.base_66) / self.spread_median, 1.0 / self.limit, self.limit)
            factor = float(ratio**self.exponent)
        if evidence is not None:
            inner = inner + self.share * evidence.shape_N66[0]
            factor *= float(
                evidence_growth(
                    evidence,
                    (self.distance_median, self.distance_exponent),
                    (self.disagreement_median, self.disagreement_exponent),
                )[0]
            )
        return 0.5 * factor * (inner + inner.T) + np.diag(FLOOR_6**2)

    def health(self, scatter_66: Array, evidence: Evidence | None = None) -> float:
        """1 for a frame as calibration frames are, falling towards 0 beyond the 95th percentile there."""
        values = [(spread(scatter_66, self.base_66), self.spread_p95)]
        if evidence is not None:
            values.append((float(evidence.distance_N[0]), self.distance_p95))
        return min(1.0 if value <= limit else limit / value for value, limit in values)


def evidence_growth(evidence: Evidence, distance: tuple[float, float], disagreement: tuple[float, float]) -> Array:
    """By how much each frame's covariance grows with its evidence (N,), from (median, exponent) of both measures."""
    return growth(evidence.distance_N / distance[0], distance[1]) * np.maximum(
        growth(evidence.disagreement_N / disagreement[0], disagreement[1]), 1.0
    )


def growth(ratios_N: Array, exponent: float) -> Array:
    """`ratio^exponent` with ratios that are believed up to RATIO_LIMIT and down to its inverse."""
    return np.asarray(np.clip(ratios_N, 1.0 / RATIO_LIMIT, RATIO_LIMIT) ** exponent)


def spread(scatter_66: Array, base_66: Array) -> float:
    """Size of a scatter in units of the mode's usual error, positions and rotations alike (dimensionless)."""
    position = np.trace(scatter_66[:3, :3]) / np.trace(base_66[:3, :3])
    rotation = np.trace(scatter_66[3:, 3:]) / np.trace(base_66[3:, 3:])
    return float(np.sqrt(0.5 * (position + rotation)) + 1e-9)


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
