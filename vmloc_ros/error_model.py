"""How heavy-tailed a network's errors are and how long they last, from errors whose truth is known.

The filter takes a measurement with the claimed covariance S for one with `c S k / w`: c is `measurement_inflation`;
`k = coth(dt / 2 tau)` with tau = `measurement_correlation_s`; the robust weight w has v = `student_t_dof`. Here v, c
and tau are chosen such that the covariance of what it fuses is true, from whitened errors
`e = L^-1 Log(T_hat^-1 T_true)` with `S = L L'`.

- v is the most likely one of a multivariate Student t with the scale matrix `s^2 S`, and c the one with which the
  filter's weights are honest; how, stands in `heavy_tails`.
- tau is that of the influences `w e` (see `correlation`), because they are what is averaged. They are bounded, so
  outliers do not hide the correlation.
- Intervals are percentiles over resampled blocks of time (E. Carlstein, "The use of subseries values for estimating the
  variance of a general statistic from a stationary sequence", Annals of Statistics 14, 1986); a pair of errors belongs
  to the block of its earlier one (H. R. Kuensch, "The jackknife and the bootstrap for general stationary observations",
  Annals of Statistics 17, 1989).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vmloc_ros.correlation import (
    WINDOW,
    Indices,
    Times,
    correlation_from_growth,
    correlation_time,
    lag_products,
    summed_lags,
    variance_growth,
)
from vmloc_ros.errors import ConfigError, GeometryError, TrajectoryError
from vmloc_ros.geometry import Array
from vmloc_ros.heavy_tails import STUDENT, Weighting, consistent_inflation, fit_student_t
from vmloc_ros.metrics import pose_error_6
from vmloc_ros.trajectory import Trajectory
from vmloc_ros.types import PoseMeasurement

GROUPS: dict[str, tuple[int, ...]] = {"pose": (0, 1, 2, 3, 4, 5), "position": (0, 1, 2), "rotation": (3, 4, 5)}
"""What is estimated: the whole pose, which is what the filter weighs, and for comparison its two halves."""
GAUSSIAN_DOF = 30.0
"""A Student t of more degrees of freedom than this is reported as the Gaussian, 0."""
MIN_SAMPLES = 100
MIN_BLOCKS = 6
"""With fewer independent stretches of time an interval would be guessed."""
BLOCK_CORRELATIONS = 6.0
"""A block is so many times as long as what it must hold together: an error, or a stretch of large errors."""
REPLICATES = 200
CONFIDENCE = 0.95


@dataclass(frozen=True, eq=False)
class ErrorSeries:
    """Errors of one drive: `Log(T_hat^-1 T_true)` (N, 6) in m and rad, body axes, the covariances (N, 6, 6) that were
    claimed for them, and their stamps (N,), which do not decrease."""

    stamps_ns: Indices
    errors_N6: Array
    covariances_N66: Array


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value and its 95 % interval. Of `dof`, the value 0 and the end `inf` stand for the Gaussian."""

    value: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float | None]:
        """For JSON; an end that is not finite is null."""
        return {
            "value": self.value,
            "low": self.low if math.isfinite(self.low) else None,
            "high": self.high if math.isfinite(self.high) else None,
        }


@dataclass(frozen=True, slots=True)
class GroupModel:
    """The model of a group of components.

    Attributes:
        dof: v of the Student t; 0: Gaussian.
        scale2: s^2, the factor on the claimed covariance that gives the Student t's scale matrix.
        inflation: c, the factor with which the filter's covariance is true.
        correlation_s: tau. The weights that c and tau rest on are those of the group's own size.
        nees_ratio: mean NEES over the number of components, outliers and all; 1 where the claim is honest and Gaussian.
        offset_share: squared mean of the whitened errors over their mean square: 1 for errors that are all one offset.
    """

    dof: Estimate
    scale2: Estimate
    inflation: Estimate
    correlation_s: Estimate
    nees_ratio: float
    offset_share: float

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        names = ("dof", "scale2", "inflation", "correlation_s")
        numbers = {"nees_ratio": self.nees_ratio, "offset_share": self.offset_share}
        return {name: getattr(self, name).as_dict() for name in names} | numbers


@dataclass(frozen=True, slots=True)
class ErrorModel:
    """What `estimate` found: a model for each of `GROUPS`, and what it rests on.

    Attributes:
        samples, segments: errors, and stretches of them without a gap.
        duration_s: of the segments together.
        step_s: median time between errors.
        blocks: of time, that were resampled for the pose's intervals.
    """

    groups: dict[str, GroupModel]
    samples: int
    segments: int
    duration_s: float
    step_s: float
    blocks: int

    def parameters(self) -> dict[str, float]:
        """The filter's parameters, by name, three digits each."""
        pose = self.groups["pose"]
        values = {
            "measurement_inflation": pose.inflation.value,
            "measurement_correlation_s": pose.correlation_s.value,
            "student_t_dof": pose.dof.value,
        }
        return {name: float(f"{value:.3g}") for name, value in values.items()}

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "parameters": self.parameters(),
            **{name: group.as_dict() for name, group in self.groups.items()},
            "samples": self.samples,
            "segments": self.segments,
            "duration_s": self.duration_s,
            "step_s": self.step_s,
            "blocks": self.blocks,
        }


def errors_of(measurements: Sequence[PoseMeasurement], truth: Trajectory) -> ErrorSeries:
    """The errors of poses at whose stamps the truth is known, in order of time.

    Raises:
        TrajectoryError: the truth is known at no stamp.
    """
    known = sorted((m for m in measurements if truth.covers(m.stamp_ns)), key=lambda m: m.stamp_ns)
    if not known:
        raise TrajectoryError("the truth shares no stamp with the poses: are both in the same clock?")
    return ErrorSeries(
        np.array([m.stamp_ns for m in known], dtype=np.int64),
        np.array([pose_error_6(m.T_map_base, truth.interpolate(m.stamp_ns)) for m in known]),
        np.array([m.cov_66 for m in known]),
    )


# ------------------------------------------------------------------------------------------------------------ the model


def estimate(
    series: Sequence[ErrorSeries],
    gap_s: float = 5.0,
    weighting: Weighting = STUDENT,
    seed: int = 0,
    replicates: int = REPLICATES,
) -> ErrorModel:
    """The model of all drives together.

    Args:
        series: one for each drive.
        gap_s: errors further apart are of different segments, between which nothing is taken for correlated.
        weighting: how the filter weighs.
        seed: of the resampling.
        replicates: how often blocks are resampled.

    Raises:
        ConfigError: a gap that is not positive.
        TrajectoryError: too few errors, or errors that stay correlated for so long that the data cannot tell how long.
        GeometryError: errors or covariances that are not finite, covariances that are not positive definite, or no
            error at all.
    """
    if not (math.isfinite(gap_s) and gap_s > 0.0):
        raise ConfigError(f"gap-s must be a positive number of seconds, not {gap_s}")
    for drive in series:
        _check(drive)
    count = sum(len(drive.stamps_ns) for drive in series)
    if count < MIN_SAMPLES:
        raise TrajectoryError(f"{count} errors with known truth are too few; the model needs at least {MIN_SAMPLES}")
    times = Times.of([drive.stamps_ns for drive in series], gap_s)
    errors = np.concatenate([drive.errors_N6 for drive in series])
    covariances = np.concatenate([drive.covariances_N66 for drive in series])
    groups, blocks = {}, {}
    for name, components in GROUPS.items():
        whitened = whiten(errors, covariances, components)
        rng = np.random.default_rng(seed)
        groups[name], blocks[name] = _group_model(name, whitened, times, weighting, rng, replicates)
    return ErrorModel(groups, count, times.segments, times.duration_s, times.step_s, blocks["pose"])


def _check(drive: ErrorSeries) -> None:
    if not (np.isfinite(drive.errors_N6).all() and np.isfinite(drive.covariances_N66).all()):
        raise GeometryError("an error or a covariance is not finite; leave such estimates out")
    if (np.diff(drive.stamps_ns) < 0).any():
        raise TrajectoryError("the errors' stamps go back; sort them")


def whiten(errors_N6: Array, covariances_N66: Array, components: tuple[int, ...]) -> Array:
    """`L^-1 d` (N, n) of n components, with their own covariance `L L'`: the others are marginalised.

    Raises:
        GeometryError: a covariance that is not positive definite.
    """
    index = list(components)
    try:
        L = np.linalg.cholesky(covariances_N66[:, index][:, :, index])
    except np.linalg.LinAlgError as error:
        raise GeometryError("a claimed covariance is not positive definite") from error
    return np.asarray(np.linalg.solve(L, errors_N6[:, index, None])[..., 0])


def _group_model(
    name: str, whitened_Nd: Array, times: Times, weighting: Weighting, rng: np.random.Generator, replicates: int
) -> tuple[GroupModel, int]:
    """The model of one group, and how many blocks its intervals rest on."""
    q, dimension = np.square(whitened_Nd).sum(axis=1), whitened_Nd.shape[1]
    if not np.median(q) > 0.0:
        raise GeometryError("most errors are exactly zero: are the estimates the truth itself?")
    dof, scale2, inflation = _spread(q, dimension, weighting)
    weights = weighting.weights(q / inflation, dof, dimension)
    influence = weights[:, None] * whitened_Nd
    tau_s, window = correlation_time(influence, times, f"errors ({name})")
    lasting_s = tau_s
    if weights.min() < weights.max():  # a stretch of large errors may outlast a single one: blocks hold it together
        sizes = (weights - weights.mean())[:, None]
        lasting_s = max(tau_s, correlation_time(sizes, times, f"error sizes ({name})")[0])
    blocks = times.cut(max(BLOCK_CORRELATIONS * lasting_s, WINDOW * times.step_s))
    number = int(blocks.max()) + 1
    if number < MIN_BLOCKS:
        raise TrajectoryError(
            f"the errors ({name}) are alike for {lasting_s:.2g} s: {times.duration_s:.0f} s hold {number} "
            f"independent stretches, and {MIN_BLOCKS} are needed; give more or longer drives"
        )
    # lags beyond the window, because other blocks may choose a longer one
    sums, pairs = lag_products(influence, times, 2 * window, blocks)
    found = []
    for chosen in rng.multinomial(number, np.full(number, 1.0 / number), size=replicates):
        growth = variance_growth(chosen @ sums, chosen @ pairs)
        end = summed_lags(growth)
        tau = correlation_from_growth(float(growth[-1 if end is None else end]), times.step_s)
        found.append((*_spread(q, dimension, weighting, chosen[blocks]), tau))
    drawn = np.array(found)
    drawn[drawn[:, 0] == 0.0, 0] = np.inf  # the Gaussian lies beyond the heavy tails
    tail = 50.0 * (1.0 - CONFIDENCE)
    low, high = np.percentile(drawn, [tail, 100.0 - tail], axis=0, method="nearest")
    offset = float(np.square(whitened_Nd.mean(axis=0)).sum() / q.mean())
    model = GroupModel(
        dof=Estimate(dof, float(low[0]), float(high[0])),
        scale2=Estimate(scale2, float(low[1]), float(high[1])),
        inflation=Estimate(inflation, float(low[2]), float(high[2])),
        correlation_s=Estimate(tau_s, float(low[3]), float(high[3])),
        nees_ratio=float(q.mean()) / dimension,
        offset_share=offset,
    )
    return model, number


# ------------------------------------------------------------------------------------------------------ tail and spread


def _spread(
    q_N: Array, dimension: int, weighting: Weighting, counts_N: Indices | None = None
) -> tuple[float, float, float]:
    """(v or 0, s^2, c) of squared whitened errors that occurred so often."""
    if counts_N is not None:
        q_N, counts_N = q_N[counts_N > 0], counts_N[counts_N > 0]
    dof, scale2 = fit_student_t(q_N, dimension, counts_N)
    if dof > GAUSSIAN_DOF:
        dof, scale2 = 0.0, float(np.average(q_N, weights=counts_N)) / dimension
    return dof, scale2, consistent_inflation(q_N, dof, dimension, weighting, counts_N)
