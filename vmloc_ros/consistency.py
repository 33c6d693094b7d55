"""Whether a source's measurements still fit the filter: how bad they are of late, and whether they all point elsewhere.

Two running means over a source's innovations. The *noise level* is that of their squared Mahalanobis distance: a
network that is bad in one street is bad for seconds, and a single good-looking answer there is luck. (Estimating the
noise from innovations: R. K. Mehra, "Approaches to adaptive filtering", IEEE TAC 17(5), 1972.) The *pull* is that of
the innovations themselves, clipped so that no single one decides: as long as the filter is right it stays within what
its covariance and the correlated noise allow; when it leaves that, the odometry has led the filter away unseen, and
the covariance has to grow as in fading filters (D. H. Zhou, P. M. Frank, "Strong tracking filtering of nonlinear
time-varying stochastic systems with coloured noise", Int. J. Control 65(2), 1996).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import chi2

from vmloc_ros.config import FilterConfig
from vmloc_ros.filter import PLANE, Innovation, compared
from vmloc_ros.trajectory import NANOSECONDS

Array = NDArray[np.float64]

CLIPPED_AT = 6.0
"""Standard deviations of a measurement's own noise: what a farther one counts."""
SILENCE_S = 60.0
"""A longer silence says no more about the noise level than this one."""
PULL_PROBABILITY = 0.999
"""A mean innovation outside this share of what the covariances allow is a pull."""
ENOUGH = 0.4
"""So much of the window must be filled before the pull is judged."""


@dataclass(frozen=True, slots=True, eq=False)
class Pull:
    """The running mean of a source's clipped innovations, and of their squares; immutable.

    Attributes:
        sum_6: of the innovations, in the axes of the map, translation then rotation.
        squares: of their squared distances under the measurements' own covariances.
        filled: the weight of both sums, 0 to 1.
    """

    sum_6: Array
    squares: float
    filled: float


NO_PULL = Pull(np.zeros(6), 0.0, 0.0)


@dataclass(frozen=True, slots=True, eq=False)
class Trend:
    """What a source's recent innovations say; immutable.

    Attributes:
        stamp_ns: of its last measurement that was compared with the filter.
        level: running mean of the squared distance per degree of freedom, 1 where the covariances are true.
        pull: where they point.
    """

    stamp_ns: int
    level: float
    pull: Pull

    def without_pull(self) -> Trend:
        """After a re-localization: where the measurements pulled before says nothing any more."""
        return Trend(self.stamp_ns, self.level, NO_PULL)


def noise_level(level: float, elapsed_s: float, nis_per_dof: float, memory_s: float) -> float:
    """The running mean of the squared distance after one more; `memory_s` is the time constant."""
    if memory_s <= 0.0:
        return nis_per_dof
    keep = math.exp(-min(elapsed_s, SILENCE_S) / memory_s)
    return keep * level + (1.0 - keep) * nis_per_dof


def pulled(pull: Pull, residual_6: Array, R_66: Array, elapsed_s: float, window_s: float) -> Pull:
    """The running means after one more innovation.

    Args:
        pull: what was known before.
        residual_6: the measurement's innovation in the axes of the map.
        R_66: its own covariance in these axes.
        elapsed_s: since the last measurement of the source; beyond a sixth of the window it counts no more.
        window_s: the running means' time constant.
    """
    square = float(residual_6 @ np.linalg.solve(R_66, residual_6))
    gain = 1.0 - math.exp(-min(elapsed_s / window_s, 1.0 / 6.0))
    share = min(1.0, CLIPPED_AT / math.sqrt(square)) if square > 0.0 else 1.0
    return Pull(
        (1.0 - gain) * pull.sum_6 + gain * share * residual_6,
        (1.0 - gain) * pull.squares + gain * share * share * square,
        (1.0 - gain) * pull.filled + gain,
    )


def scatter(pull: Pull, R_66: Array, dof: int, share: float) -> float:
    """By how much the innovations scatter about their mean more than they claim, as a factor on their variance; >= 1.

    Errors that are large for a while, but not all to one side, are no pull. Of errors of variance 1 whose running mean
    has the variance `share`, `1 - share` is left about the mean.
    """
    mean_6 = pull.sum_6 / pull.filled
    about_mean = pull.squares / pull.filled - float(mean_6 @ np.linalg.solve(R_66, mean_6))
    return max(1.0, about_mean / (dof * (1.0 - share)))


def variance_of_mean(elapsed_s: float, correlation_s: float, window_s: float) -> float:
    """Variance of the running mean of innovations whose own is 1.

    `tau / (tau + W)` for a first-order autoregressive error of correlation time `tau` seen without interruption through
    an exponential window of time constant `W`; `g / (2 - g)` for white errors with the gain `g`. The larger one.
    """
    gain = 1.0 - math.exp(-min(elapsed_s / window_s, 1.0 / 6.0))
    return max(correlation_s / (correlation_s + window_s), gain / (2.0 - gain))


class Watch:
    """Keeps the trends of the sources, by the parameters that the configuration gives."""

    def __init__(self, config: FilterConfig) -> None:
        self._config = config
        self._rows = list(PLANE) if config.planar else list(range(6))
        self._gate = float(chi2.ppf(config.gate_probability, len(self._rows)))
        self._pull_gate = float(chi2.ppf(PULL_PROBABILITY, len(self._rows)))

    def note(
        self,
        before: Trend | None,
        stamp_ns: int,
        T: Array,
        P_nn: Array,
        R_66: Array,
        innovation: Innovation,
        dof: int | None = None,
    ) -> tuple[Trend, Array | None]:
        """The source's trend after one more measurement, and the pull (body axes) where it cannot be explained.

        Args:
            before: the source's trend so far.
            stamp_ns: of the measurement.
            T, P_nn: the predicted state.
            R_66: the measurement's covariance, inflated, in the body's axes.
            innovation: how far it is from the state.
            dof: in how many directions it tells anything; by default in all that are compared.
        """
        config, window_s = self._config, self._config.divergence_window_s
        elapsed_s = (stamp_ns - before.stamp_ns) / NANOSECONDS if before else SILENCE_S
        level = before.level if before else 1.0
        if innovation.nis <= self._gate:  # what is gated is no noise of this source
            level = noise_level(level, elapsed_s, innovation.nis / (dof or len(self._rows)), config.noise_level_s)
        if window_s <= 0.0:
            return Trend(stamp_ns, level, NO_PULL), None
        turn = np.zeros((6, 6))
        turn[:3, :3] = turn[3:, 3:] = T[:3, :3]
        residual = np.zeros(6)
        residual[self._rows] = innovation.residual_m
        R_map = turn @ R_66 @ turn.T
        pull = pulled(before.pull if before else NO_PULL, turn @ residual, R_map, elapsed_s, window_s)
        mean_6 = turn.T @ pull.sum_6 / pull.filled
        mean, H = mean_6[self._rows], innovation.H_m6
        share = variance_of_mean(elapsed_s, config.measurement_correlation_s, window_s)
        share *= scatter(pull, R_map, len(self._rows), share)
        S = H @ P_nn[:6, :6] @ H.T + share * compared(R_66, config.planar)
        if pull.filled > ENOUGH and float(mean @ np.linalg.solve(S, mean)) > self._pull_gate:
            return Trend(stamp_ns, level, NO_PULL), mean_6
        return Trend(stamp_ns, level, pull), None
