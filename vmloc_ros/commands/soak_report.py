"""What a soak found, and how it is shown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

MAX_GROWTH = 0.02
"""By so much resident memory may grow after the first tenth, as a share."""


@dataclass(frozen=True, slots=True)
class Tenth:
    """Where the run stood when another tenth of the odometry had been sent."""

    odometry: int
    seconds: float
    resident_kib: int


@dataclass(frozen=True, slots=True)
class Equation:
    """Two totals that must be the same."""

    words: str
    left: int
    right: int

    @property
    def holds(self) -> bool:
        return self.left == self.right


@dataclass(frozen=True, slots=True)
class Errors:
    """Distances from the truth (m); quantiles are those of a histogram with bins of 2.3 %."""

    n: int
    mean: float
    median: float
    p95: float
    max: float


@dataclass(frozen=True, slots=True)
class SoakReport:
    """What `run_soak` found.

    Attributes:
        tenths: memory and time along the run.
        equations: of the counters.
        not_finite: states with a number that is not finite.
        counters: the pipeline's totals.
        sent: messages by kind.
        answers: the network's by kind.
        faults: ten-second blocks by fault.
        network, fused: errors of the network's answers that are finite and stamped as they should be, and of the
            filter at the frames' stamps; None where there are none.
        seconds: the whole run took.
    """

    tenths: tuple[Tenth, ...]
    equations: tuple[Equation, ...]
    not_finite: int
    counters: Mapping[str, int]
    sent: Mapping[str, int]
    answers: Mapping[str, int]
    faults: Mapping[str, int]
    network: Errors | None
    fused: Errors | None
    seconds: float

    @property
    def growth(self) -> float:
        """By how much the largest resident memory after the first tenth is above that of its end, as a share."""
        first, *later = (tenth.resident_kib for tenth in self.tenths)
        return max(later, default=first) / first - 1.0

    @property
    def failures(self) -> list[str]:
        """What must not be, a line each."""
        lines = [f"{e.words}: {e.left} is not {e.right}" for e in self.equations if not e.holds]
        if self.not_finite:
            lines.append(f"{self.not_finite} poses left the pipeline with a number that is not finite")
        if self.growth >= MAX_GROWTH:
            lines.append(
                f"resident memory has grown by {100.0 * self.growth:.1f} % after the first tenth; less than "
                f"{100.0 * MAX_GROWTH:.0f} % is allowed"
            )
        return lines


def print_soak(report: SoakReport, console: Console) -> None:
    """Counts, errors, equations, speed and memory; what failed comes last."""
    for title, counts in (
        ("messages", report.sent),
        ("blocks of ten seconds, by fault", report.faults),
        ("answers of the network", report.answers),
        ("counters", {name: count for name, count in report.counters.items() if count}),
    ):
        words = ", ".join(f"{name} {count}" for name, count in counts.items())
        console.print(f"{title}: {words}", soft_wrap=True, highlight=False)
    table = Table("", "n", "mean", "median", "p95", "max", box=SIMPLE_HEAD, title="distance from the truth (m)")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, errors in (("network", report.network), ("fused, at the frames", report.fused)):
        if errors is not None:
            values = (errors.mean, errors.median, errors.p95, errors.max)
            table.add_row(name, str(errors.n), *(f"{value:.2f}" for value in values))
    console.print(table)
    for equation in report.equations:
        sign = "=" if equation.holds else "is not"
        console.print(f"{equation.words}: {equation.left} {sign} {equation.right}", soft_wrap=True, highlight=False)
    odometry, frames = report.tenths[-1].odometry, report.counters["frames.inferred"]
    console.print(
        f"{odometry} odometry messages and {frames} frames in {report.seconds:.0f} s "
        f"({odometry / report.seconds:.0f} and {frames / report.seconds:.0f} a second); resident memory "
        f"{100.0 * report.growth:+.2f} % after the first tenth; {report.not_finite} states not finite",
        soft_wrap=True,
        highlight=False,
    )
    for failure in report.failures:
        console.print(f"failed: {failure}", soft_wrap=True, highlight=False)
