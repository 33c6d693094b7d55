"""`vmloc soak`: a long drive with faults through the whole pipeline at full speed, and whether its books balance.

The pipeline is the node's, with the filter's default parameters; the messages and the network are those of
`soak_drive`. What is held against each other at the end:

- every odometry message is refused by its stamp, or has one verdict of the filter;
- every frame that was paired was inferred or went stale;
- every frame that was inferred has one verdict, or no pose, and one status;
- no pose that left the pipeline has a number that is not finite;
- resident memory after the first tenth grows by less than 2 %.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from vmloc_ros import files
from vmloc_ros.clock import ClockVerdict
from vmloc_ros.commands.soak_drive import T_BASE_CAMERA, T_BASE_LIDAR, Card, Drive, ErringLocalizer, true_pose
from vmloc_ros.commands.soak_report import Equation, Errors, SoakReport, Tenth, print_soak
from vmloc_ros.config import InputConfig, LocalizerConfig, ProjectionConfig
from vmloc_ros.errors import SetupError
from vmloc_ros.geometry import Array
from vmloc_ros.outputs import Outputs
from vmloc_ros.pipeline import RECEIVED, Pipeline
from vmloc_ros.progress import progress_bar
from vmloc_ros.types import EventKind, FusedState, Status

MEMORY_FILE = Path("/proc/self/status")
TENTHS = 10
ERROR_BINS_M = np.concatenate([[0.0], np.geomspace(1e-3, 1e5, 801)])


def run_soak(
    odometry: int = 1_000_000,
    poses: int = 100_000,
    seed: int = 0,
    json: Path | None = None,
    console: Console | None = None,
    progress: bool = True,
) -> SoakReport:
    """Drives until both numbers are reached, prints what it found, and returns it.

    Args:
        odometry: at least so many odometry messages (100 in a second of data).
        poses: the network answers at least so many frames (a little less than 10 in a second of data).
        seed: of the drive, its faults and the network's errors: the same seed, the same counters.
        json: where the numbers are written.
        console: where tables are printed.
        progress: draws a progress bar.

    Raises:
        SetupError: the system does not tell how much memory a process has.
    """
    console = console or Console()
    resident_kib()  # before the work: where it cannot be told, the run would be for nothing
    soak = Soak(seed)
    with progress_bar(console, progress) as bar:
        task = bar.add_task("soak", total=odometry)
        for tenth in soak.run(odometry, poses):
            bar.update(task, completed=tenth.odometry)
            bar.console.print(
                f"{tenth.odometry:>10} odometry messages  {tenth.seconds:7.1f} s  {tenth.resident_kib / 1024:7.1f} MiB",
                highlight=False,
            )
    report = soak.report()
    print_soak(report, console)
    if json is not None:
        failures = {"growth": report.growth, "failures": report.failures}
        files.write_json(json, {"seed": seed, **asdict(report), **failures})
        console.print(f"wrote {json}", soft_wrap=True)
    return report


def resident_kib() -> int:
    """Resident memory of this process in KiB, as Linux tells it.

    Raises:
        SetupError: on another system.
    """
    try:
        lines = MEMORY_FILE.read_text("ascii").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))
    except (OSError, StopIteration):
        raise SetupError(
            f"vmloc soak reads its memory from {MEMORY_FILE}, which only Linux has; run it there"
        ) from None


def soak_config() -> LocalizerConfig:
    """The defaults, but for pictures so small that the filter and the books are what takes time."""
    return LocalizerConfig(
        input=InputConfig(min_depth_returns=10, constant_image_deviation=2.0),
        projection=ProjectionConfig(width=32, height=24),
    )


class Soak:
    """One drive through one pipeline, with one worker. Everything but the report is of constant size.

    The worker is the caller's own thread: while the network works on a frame, `ErringLocalizer` lets the messages in
    that would arrive meanwhile.
    """

    def __init__(self, seed: int) -> None:
        config = soak_config()
        self.drive = Drive(seed)
        card = Card(input=config.input, projection=config.projection)
        self.localizer = ErringLocalizer(seed, card, self._pass_time)
        self.pipeline = Pipeline(config, self.localizer)  # type: ignore[arg-type]  # a localizer without a network
        self.pipeline.set_extrinsic("base_link", "camera_optical", T_BASE_CAMERA)
        self.pipeline.set_extrinsic("base_link", "lidar", T_BASE_LIDAR)
        self._arrivals = self.drive.arrivals()
        self._now_ns = 0
        self._sent: Counter[str] = Counter()
        self._sensors_refused = 0
        self._statuses = self._not_finite = 0
        self._network, self._fused = _Histogram(), _Histogram()
        self._tenths: list[Tenth] = []
        self._begin_s = time.monotonic()

    def run(self, odometry: int, poses: int) -> Iterable[Tenth]:
        """Drives until so much odometry has been sent and so many frames inferred, then ends the data."""
        for tenth in range(1, TENTHS + 1):
            while self.odometry_sent < odometry * tenth // TENTHS:
                self._go_on()
            while tenth == TENTHS and self.pipeline.counters()["frames.inferred"] < poses:
                self._go_on()
            if tenth == TENTHS:
                self._look(self.pipeline.finish())
            self._tenths.append(Tenth(self.odometry_sent, time.monotonic() - self._begin_s, resident_kib()))
            yield self._tenths[-1]

    @property
    def odometry_sent(self) -> int:
        return self._sent[EventKind.ODOMETRY.value]

    def _go_on(self) -> None:
        """The next message, and the network's work on the frames that it releases."""
        self._take_one()
        while (key := self.pipeline.take()) is not None:
            self._look(self.pipeline.process(key))

    def _pass_time(self, nanoseconds: int) -> None:
        """Lets the messages in that arrive in this time."""
        until_ns = self._now_ns + nanoseconds
        while self._now_ns < until_ns:
            self._take_one()

    def _take_one(self) -> None:
        arrival = next(self._arrivals)
        self._now_ns = max(self._now_ns, arrival.arrival_ns)
        event = arrival.event
        self._sent[event.kind.value] += 1
        before = self._refused() if event.kind in RECEIVED else 0
        self._look(self.pipeline.add(event))
        if event.kind in RECEIVED:
            self._sensors_refused += self._refused() - before

    def _refused(self) -> int:
        """Messages of any kind that were refused by their stamp."""
        counters = self.pipeline.counters()
        return sum(counters.get(f"rejected.{verdict.value}", 0) for verdict in ClockVerdict)

    # ------------------------------------------------------------------------------------------------- what comes out

    def _look(self, outputs: Outputs) -> None:
        for state in outputs.states:
            self._check(state)
        for status in outputs.statuses:
            self._check(status.state)
            if status.key is not None:
                self._statuses += 1
                self._measure(status)

    def _check(self, state: FusedState | None) -> None:
        if state is not None:
            arrays = (state.T_map_base, state.cov_66, state.T_map_odom)
            self._not_finite += not all(np.isfinite(array).all() for array in arrays)

    def _measure(self, status: Status) -> None:
        truth = true_pose(status.stamp_ns)
        if status.state is not None:
            self._fused.add(_distance(status.state.T_map_base, truth))
        measurement = status.measurement
        if measurement is not None and measurement.stamp_ns == status.stamp_ns:
            self._network.add(_distance(measurement.T_map_base, truth))

    def report(self) -> SoakReport:
        """What was found, after `run`."""
        counters = self.pipeline.counters()
        verdicts, increments = (_sum(counters, prefix) for prefix in ("verdict.", "odometry."))
        refused = self._refused() - self._sensors_refused
        inferred, paired, stale = (counters[f"frames.{name}"] for name in ("inferred", "paired", "stale"))
        received = {kind: self._sent[kind.value] for kind in (EventKind.IMAGE, EventKind.CLOUD)}
        equations = (
            Equation("odometry sent = refused by its stamp + odometry.*", self.odometry_sent, refused + increments),
            Equation("frames.paired = frames.inferred + frames.stale", paired, inferred + stale),
            Equation("frames.inferred = verdict.* + frames.no_pose", inferred, verdicts + counters["frames.no_pose"]),
            Equation("frames.inferred = statuses of frames", inferred, self._statuses),
            *(
                Equation(f"{kind.value} sent = {RECEIVED[kind]}.received", n, counters[f"{RECEIVED[kind]}.received"])
                for kind, n in received.items()
            ),
        )
        return SoakReport(
            tuple(self._tenths), equations, self._not_finite, dict(sorted(counters.items())), dict(self._sent),
            dict(self.localizer.answers), dict(self.drive.blocks), self._network.summary(), self._fused.summary(),
            time.monotonic() - self._begin_s,
        )  # fmt: skip


@dataclass
class _Histogram:
    """Errors of any number in memory of constant size."""

    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(len(ERROR_BINS_M) + 1, np.int64))
    total: float = 0.0
    largest: float = 0.0

    def add(self, metres: float) -> None:
        """Takes an error; one that is not finite is left out."""
        if np.isfinite(metres):
            self.counts[np.searchsorted(ERROR_BINS_M, metres)] += 1
            self.total += metres
            self.largest = max(self.largest, metres)

    def summary(self) -> Errors | None:
        """None where there are none."""
        n = int(self.counts.sum())
        if n == 0:
            return None
        reached = np.cumsum(self.counts)
        median, p95 = (
            float(ERROR_BINS_M[min(int(np.searchsorted(reached, share * n)), len(ERROR_BINS_M) - 1)])
            for share in (0.5, 0.95)
        )
        return Errors(n, self.total / n, median, p95, self.largest)


def _distance(T: Array, T_true: Array) -> float:
    return float(np.linalg.norm(T[:3, 3] - T_true[:3, 3]))


def _sum(counters: Mapping[str, int], prefix: str) -> int:
    return sum(count for name, count in counters.items() if name.startswith(prefix))
