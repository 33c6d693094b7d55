"""Heavy-tailed errors: how heavy, and what a filter with robust weights has to add to their covariance.

Errors are whitened, e of d components, `q = |e|^2`. The filter divides their covariance by the weight
`w = min(limit, ((v + d) / (v + nis))^power)` with `nis = q / c`, which is `filter.robust_weight`.

- v and s^2 are the likeliest of a multivariate Student t with zero mean and the scale matrix `s^2 I` (K. L. Lange,
  R. J. A. Little, J. M. G. Taylor, "Robust statistical modeling using the t distribution", JASA 84, 1989).
- c: a pose fused from n independent errors is the root of `sum w e = 0`. Its variance is `B / (n A^2)` with
  `B = E[w^2 q] / d` and `A = E[w + 2 w' nis / d]` (P. J. Huber, "Robust estimation of a location parameter", Annals of
  Mathematical Statistics 35, 1964); the filter claims `c / (n E[w])`. c is where the two agree: the mean NEES over d
  for Gaussian errors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq, minimize
from scipy.special import digamma, gammaln
from scipy.stats import chi2

from vmloc_ros.correlation import Indices
from vmloc_ros.errors import GeometryError
from vmloc_ros.geometry import Array

SEARCHED_LOGS = 5.0
"""How far from the mean and the median NEES an inflation is looked for, as a logarithm."""


@dataclass(frozen=True, slots=True)
class Weighting:
    """How the filter weighs measurements: `min(limit, ((v + d) / (v + nis))^power)`, `filter.robust_weight` of many.

    Attributes:
        power: `robust_power`; 1 for Student's t.
        limit: `max_robust_weight`.
    """

    power: float = 1.0
    limit: float = 1.0

    def weights(self, nis_N: Array, dof: float, dimension: int) -> Array:
        """(N,); 1 for the Gaussian, `dof` 0."""
        if dof <= 0.0:
            return np.ones_like(nis_N)
        return np.minimum(self.limit, ((dof + dimension) / (dof + nis_N)) ** self.power)

    def slopes(self, nis_N: Array, dof: float, dimension: int) -> Array:
        """(N,) derivatives of the weights by `nis`; `dof` above 0."""
        weights = self.weights(nis_N, dof, dimension)
        return np.where(weights < self.limit, -self.power * weights / (dof + nis_N), 0.0)


STUDENT = Weighting()
"""Student's weight, at most 1."""


def fit_student_t(q_N: Array, dimension: int, counts_N: Indices | None = None) -> tuple[float, float]:
    """The likeliest (v, s^2) of a Student t whose squared whitened errors are `q_N`; v between 0.1 and 10^4.

    Args:
        q_N: squared norms, most of them above zero.
        dimension: of the errors.
        counts_N: how often each occurred; once if None.
    """
    unit = float(np.median(q_N)) / float(chi2.median(dimension))
    ratios = q_N / unit
    half = 0.5 * dimension

    def objective(x: Array) -> tuple[float, Array]:
        v, scale2 = float(np.exp(x[0])), float(np.exp(x[1]))
        distance = ratios / (v * scale2)
        logs = np.log1p(distance)
        share = distance / (1.0 + distance)
        mean_log, mean_share = (float(np.average(part, weights=counts_N)) for part in (logs, share))
        top = 0.5 * v + half
        value = gammaln(top) - gammaln(0.5 * v) - half * (math.log(v) + x[1]) - top * mean_log
        by_v = 0.5 * (digamma(top) - digamma(0.5 * v)) - half / v - 0.5 * mean_log + top * mean_share / v
        return -float(value), -np.array([by_v * v, top * mean_share - half])

    bounds = [(math.log(0.1), math.log(1e4)), (-12.0, 12.0)]
    start = np.array([math.log(5.0), 0.0])
    found = minimize(objective, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"ftol": 1e-12})
    return float(np.exp(found.x[0])), unit * float(np.exp(found.x[1]))


def consistent_inflation(
    q_N: Array, dof: float, dimension: int, weighting: Weighting = STUDENT, counts_N: Indices | None = None
) -> float:
    """The factor c on the claimed covariance with which the filter is as sure as it may be, for independent errors.

    Solves `c / E[w] = E[w^2 q] / (d A^2)`; see the module. The right side over the left tends to 0 where c is so large
    that every error counts as small. Weights that redescend make it 0 again where every error counts as an outlier: the
    largest solution is taken.

    Raises:
        GeometryError: no solution.
    """

    def mean(values: Array) -> float:
        return float(np.average(values, weights=counts_N))

    def excess(log_c: float) -> float:
        nis = q_N * math.exp(-log_c)
        weights = weighting.weights(nis, dof, dimension)
        slopes = weighting.slopes(nis, dof, dimension)
        sensitivity = mean(weights + 2.0 * slopes * nis / dimension)
        return math.log(mean(weights * weights * nis) * mean(weights) / (dimension * sensitivity**2))

    average = mean(q_N) / dimension
    if dof <= 0.0:
        return average
    high = math.log(average) + SEARCHED_LOGS
    last = math.log(float(np.median(q_N)) / dimension) - 2.0 * SEARCHED_LOGS
    while high > last:
        low = high - SEARCHED_LOGS / 10.0
        if excess(low) > 0.0:
            return math.exp(brentq(excess, low, high, xtol=1e-8))
        high = low
    raise GeometryError("no factor on the covariances makes the filter's weights honest for these errors")
