"""How long errors last: the correlation time with which a filter that averages them stays honest.

The mean of many errors `x_k`, `step` apart and correlated by `rho_k`, has `g = 1 + 2 sum rho_k` times the variance that
independent ones would give (G. E. P. Box, G. M. Jenkins, "Time series analysis", section 2.1). A first-order
autoregressive process with the correlation time tau has `g = coth(step / 2 tau)`, which is
`filter.correlation_inflation`; of any other process, tau is defined by it. Errors are not centred: a constant offset is
an error that lasts. The sum ends at the first lag of at least `5 g / 2` (A. D. Sokal, "Monte Carlo methods in
statistical mechanics: foundations and new algorithms", 1989, section 3): what an autoregressive process has beyond it
is below one per cent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vmloc_ros.errors import TrajectoryError
from vmloc_ros.geometry import Array
from vmloc_ros.trajectory import NANOSECONDS

Indices = NDArray[np.int64]

WINDOW = 5.0
"""The sum of autocorrelations reaches over so many correlation times."""


@dataclass(frozen=True, eq=False)
class Times:
    """When errors were made.

    Attributes:
        seconds: (N,) from the start of each error's segment.
        segment: (N,) which segment an error belongs to, 0, 1, ...; those of a segment follow each other.
        lengths: (segments,) seconds.
        step_s: median time between neighbours.
    """

    seconds: Array
    segment: Indices
    lengths: Array
    step_s: float

    @classmethod
    def of(cls, drives: Sequence[Indices], gap_s: float) -> Times:
        """Of each drive's stamps in nanoseconds; a longer time than the gap parts a drive in two segments.

        Raises:
            TrajectoryError: no two errors follow each other within the gap.
        """
        seconds: list[Array] = []
        segments: list[Indices] = []
        lengths: list[float] = []
        steps: list[Array] = []
        for stamps_ns in drives:
            for part in np.split(stamps_ns, np.flatnonzero(np.diff(stamps_ns) > gap_s * NANOSECONDS) + 1):
                if len(part):
                    seconds.append((part - part[0]) / NANOSECONDS)
                    segments.append(np.full(len(part), len(lengths), dtype=np.int64))
                    lengths.append(float(seconds[-1][-1]))
                    steps.append(np.diff(seconds[-1]))
        every = np.concatenate(steps)
        if not (len(every) and np.median(every) > 0.0):
            raise TrajectoryError(f"hardly two errors follow each other within {gap_s:g} s; give a larger gap-s")
        return cls(np.concatenate(seconds), np.concatenate(segments), np.array(lengths), float(np.median(every)))

    @property
    def segments(self) -> int:
        """How many there are."""
        return len(self.lengths)

    @property
    def duration_s(self) -> float:
        """Of all segments together, without the gaps."""
        return float(self.lengths.sum())

    def cut(self, block_s: float) -> Indices:
        """(N,) which block an error belongs to: segments cut into equal parts of at least `block_s`, or left whole."""
        parts = np.maximum(1, np.floor(self.lengths / block_s)).astype(np.int64)
        first = np.concatenate([[0], np.cumsum(parts)[:-1]])
        length = np.maximum(self.lengths / parts, 1e-9)[self.segment]
        inside = np.minimum(np.floor(self.seconds / length).astype(np.int64), parts[self.segment] - 1)
        return np.asarray(np.unique(first[self.segment] + inside, return_inverse=True)[1])


def lag_products(values_Nd: Array, times: Times, longest: int, blocks_N: Indices) -> tuple[Array, Array]:
    """Sums of the products of errors that are 0, 1, ..., `longest` steps apart, and the number of pairs.

    Both (blocks, longest + 1), by the block of the earlier error. Pairs are of one segment; two errors less than half a
    step apart count as one step apart.
    """
    shape = (int(blocks_N.max()) + 1, longest + 1)
    sums, pairs = np.zeros(shape), np.zeros(shape)
    np.add.at(sums[:, 0], blocks_N, np.square(values_Nd).sum(axis=1))
    np.add.at(pairs[:, 0], blocks_N, 1.0)
    for offset in range(1, len(values_Nd)):
        apart = times.seconds[offset:] - times.seconds[:-offset]
        lags = np.maximum(1, np.rint(apart / times.step_s)).astype(np.int64)
        near = np.flatnonzero((times.segment[offset:] == times.segment[:-offset]) & (lags <= longest))
        if not len(near):
            break
        products = np.einsum("nd,nd->n", values_Nd[near], values_Nd[near + offset])
        np.add.at(sums, (blocks_N[near], lags[near]), products)
        np.add.at(pairs, (blocks_N[near], lags[near]), 1.0)
    return sums, pairs


def variance_growth(sums_K: Array, pairs_K: Array) -> Array:
    """`1 + 2 sum rho` up to lags 0, 1, ... (K,), from sums of products and numbers of pairs.

    Where no pair is a lag apart, its rho is interpolated from the lags around it.
    """
    known = pairs_K > 0
    rho = sums_K[known] / pairs_K[known] * (pairs_K[0] / sums_K[0])
    lags = np.arange(len(pairs_K))
    return np.asarray(2.0 * np.cumsum(np.interp(lags, lags[known], rho)) - 1.0)


def summed_lags(growth_K: Array) -> int | None:
    """Where the sum of autocorrelations ends (see the module); None: later than at the last lag that is given."""
    enough = np.flatnonzero(np.arange(len(growth_K)) >= 0.5 * WINDOW * np.maximum(growth_K, 1.0))
    return int(enough[0]) if len(enough) else None


def correlation_from_growth(growth: float, step_s: float) -> float:
    """tau with `coth(step / 2 tau) = growth`; 0 where the mean varies no more than that of white errors."""
    return 0.5 * step_s / math.atanh(1.0 / growth) if growth > 1.0 else 0.0


def correlation_time(values_Nd: Array, times: Times, what: str) -> tuple[float, int]:
    """(tau in seconds, lags that were summed).

    Raises:
        TrajectoryError: the sum does not end within half the longest segment.
    """
    limit = int(0.5 * times.lengths.max() / times.step_s)
    longest, whole = min(64, limit), np.zeros(len(values_Nd), dtype=np.int64)
    while longest >= 1:
        growth = variance_growth(*(part[0] for part in lag_products(values_Nd, times, longest, whole)))
        window = summed_lags(growth)
        if window is not None:
            return correlation_from_growth(float(growth[window]), times.step_s), window
        if longest == limit:
            break
        longest = min(2 * longest, limit)
    raise TrajectoryError(
        f"the {what} stay alike for half the longest drive ({0.5 * times.lengths.max():.1f} s), so how long cannot be "
        "told: give longer drives, and look for a constant offset between estimates and truth"
    )
