"""The few numbers of a covariance model, fitted to errors whose truth is known.

Of a frame with evidence (V, distance, disagreement):

    S = g (B + c V) + floor,    g = r(distance)^a * max(1, r(disagreement))^b,    r(x) = clip(x / median)

B is what remains for a familiar frame, c V has the shape of the evidence, g lets both grow. B and c maximise the
Gaussian likelihood; a and b are given. B is drawn to one size in position and one in rotation, the more so the fewer
independent errors there are: frames that follow each other err alike, and 50 of them fix no 6x6 matrix.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from vmloc_ros.errors import GeometryError
from vmloc_ros.geometry import Array
from vmloc_ros.neighbours import Evidence
from vmloc_ros.uncertainty import FLOOR_6, evidence_growth

PRIOR_STRENGTH = 10.0
"""How many independent errors the isotropic prior of B is worth."""
MAX_FRAMES = 600
"""More frames are thinned out evenly for the fit: neighbouring ones say nearly the same."""
SHARE_LOGS = (-12.0, 8.0)
"""Bounds of log c."""
_BELOW = np.tril_indices(6, -1)


@dataclass(frozen=True, eq=False)
class CovarianceModel:
    """B, c, a and b of the module's formula, and the medians that distances are compared with."""

    base_66: Array
    share: float
    distance_median: float
    distance_exponent: float
    disagreement_median: float
    disagreement_exponent: float

    def growth(self, evidence: Evidence) -> Array:
        """g of each frame (N,)."""
        return evidence_growth(
            evidence,
            (self.distance_median, self.distance_exponent),
            (self.disagreement_median, self.disagreement_exponent),
        )

    def covariances(self, evidence: Evidence) -> Array:
        """(N, 6, 6)."""
        inner = self.base_66 + self.share * evidence.shape_N66
        return np.asarray(self.growth(evidence)[:, None, None] * inner + np.diag(FLOOR_6**2))


def effective_count(errors_N6: Array, blocks_N: NDArray[np.int64]) -> float:
    """How many independent errors there are in sequences of errors: n / (1 + 2 sum of autocorrelations) of each block.

    Errors are scaled to unit mean square per axis over all blocks and not centred, so an error that a whole block
    shares counts once. Source: the variance of a mean of correlated values, e.g. G. Box, G. Jenkins, "Time series
    analysis", section 2.1.
    """
    scaled = errors_N6 / np.sqrt(np.square(errors_N6).mean(axis=0) + FLOOR_6**2)
    total = 0.0
    for block in np.unique(blocks_N):
        sequence = scaled[blocks_N == block]
        power, correlated = float(np.square(sequence).sum()), 0.0
        for lag in range(1, len(sequence) // 2):
            value = float((sequence[lag:] * sequence[:-lag]).sum()) / max(power, 1e-12)
            if value < 0.05:
                break
            correlated += value
        total += max(1.0, len(sequence) / (1.0 + 2.0 * correlated))
    return total


def fit_covariance(
    errors_N6: Array, evidence: Evidence, blocks_N: NDArray[np.int64], exponents: tuple[float, float]
) -> CovarianceModel:
    """Fits B and c.

    Args:
        errors_N6: right perturbations `log(T_hat^-1 T)`, camera axes (m, rad), in order of time within a block.
        evidence: of the same frames.
        blocks_N: which stretch of data a frame belongs to.
        exponents: a and b.

    Raises:
        GeometryError: fewer than two errors, or numbers that are not finite.
    """
    numbers = (errors_N6, evidence.shape_N66, evidence.distance_N)
    if len(errors_N6) < 2 or not all(np.isfinite(part).all() for part in numbers):
        raise GeometryError(f"cannot fit a covariance to {len(errors_N6)} errors; two are needed, and all finite")
    units = np.sqrt(np.square(errors_N6).mean(axis=0) + FLOOR_6**2)
    model = CovarianceModel(
        np.diag(units**2),
        0.0,
        float(np.median(evidence.distance_N)),
        exponents[0],
        float(np.median(evidence.disagreement_N)),
        exponents[1],
    )
    every = -(-len(errors_N6) // MAX_FRAMES)
    likelihood = _Likelihood(errors_N6[::every], evidence.shape_N66[::every], model.growth(evidence)[::every])
    plain_3 = likelihood.fit_isotropic(units)
    isotropic = np.diag(np.exp(np.repeat(plain_3[:2], 3)))
    independent = effective_count(errors_N6, blocks_N)
    base, share = likelihood.fit_full(isotropic, plain_3[2], PRIOR_STRENGTH / independent)
    widening = _predictive_widening(independent)
    return CovarianceModel(
        widening * base,
        widening * share,
        model.distance_median,
        exponents[0],
        model.disagreement_median,
        exponents[1],
    )


def _predictive_widening(independent: float) -> float:
    """(n + 2) / n: what comes next varies more than the n independent errors that a variance was estimated from."""
    return (independent + 2.0) / independent


def _minimum(
    objective: Callable[[Array], tuple[float, Array]], start: Array, bounds: list[tuple[float, float]]
) -> Array:
    """Where an objective, given with its gradient, is smallest; the last digits of a likelihood are worth nothing."""
    found = minimize(
        objective, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 120, "ftol": 1e-7}
    )
    return np.asarray(found.x)


class _Likelihood:
    """Mean negative log-likelihood of zero-mean Gaussian errors, with its gradient."""

    def __init__(self, errors_N6: Array, shape_N66: Array, growth_N: Array) -> None:
        self._errors, self._shape, self._growth = errors_N6, shape_N66, growth_N[:, None, None]

    def value(self, base_66: Array, share: float) -> tuple[float, Array, float]:
        """The value, its gradient by B, and by c."""
        S = self._growth * (base_66 + share * self._shape) + np.diag(FLOOR_6**2)
        inverse = np.linalg.inv(S)
        solved = np.einsum("nij,nj->ni", inverse, self._errors)
        distance = np.einsum("ni,ni->n", self._errors, solved)
        value = 0.5 * float((distance + np.linalg.slogdet(S)[1]).mean())
        slope = 0.5 * self._growth * (inverse - solved[:, :, None] * solved[:, None, :])
        return value, slope.mean(axis=0), float(np.einsum("nij,nij->n", slope, self._shape).mean())

    def fit_isotropic(self, units_6: Array) -> Array:
        """(log of B's position variance, of its rotation variance, log c)."""

        def objective(x: Array) -> tuple[float, Array]:
            variances, share = np.exp(np.repeat(x[:2], 3)), float(np.exp(x[2]))
            value, slope_66, slope_c = self.value(np.diag(variances), share)
            parts = np.diag(slope_66) * variances
            return value, np.array([parts[:3].sum(), parts[3:].sum(), slope_c * share])

        sizes = np.square(units_6)
        start = np.array([np.log(sizes[:3].mean()), np.log(sizes[3:].mean()), -3.0])
        bounds = [(start[0] - 4.0, start[0] + 1.0), (start[1] - 4.0, start[1] + 1.0), SHARE_LOGS]
        return _minimum(objective, start, bounds)

    def fit_full(self, isotropic_66: Array, log_share: float, strength: float) -> tuple[Array, float]:
        """B and c.

        B = D T E^2 T' D with D the roots of the isotropic B, T unit lower triangular, E = diag(exp(d)). A Gaussian
        prior on d and T's other entries, centred on 0, draws B to the isotropic one; `strength` is the weight of half
        the sum of their squares against the mean log-likelihood.
        """
        D, count = np.sqrt(isotropic_66), len(_BELOW[0])

        def factors(x: Array) -> tuple[Array, Array]:
            T = np.eye(6)
            T[_BELOW] = x[:count]
            return T, np.exp(x[count:-1])

        def objective(x: Array) -> tuple[float, Array]:
            (T, E), share = factors(x), float(np.exp(x[-1]))
            K = T * E
            value, slope_66, slope_c = self.value(D @ K @ K.T @ D, share)
            slope_K = 2.0 * D @ slope_66 @ D @ K
            slope = np.concatenate([(slope_K * E)[_BELOW], (slope_K * K).sum(axis=0), [slope_c * share]])
            slope[:-1] += strength * x[:-1]
            return value + 0.5 * strength * float(np.square(x[:-1]).sum()), slope

        start = np.append(np.zeros(count + 6), log_share)
        bounds = [(-50.0, 50.0)] * count + [(-6.0, 6.0)] * 6 + [SHARE_LOGS]
        found = _minimum(objective, start, bounds)
        T, E = factors(found)
        return np.asarray(D @ (T * E) @ (T * E).T @ D), float(np.exp(found[-1]))
