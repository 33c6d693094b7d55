"""The soak: on a fiftieth of its length, with every fault, its books balance and nothing grows; it sees failures."""

from __future__ import annotations

import gc
import sys
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, ModuleType

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from vmloc_ros import cli
from vmloc_ros.clock import ClockVerdict
from vmloc_ros.commands import soak as module
from vmloc_ros.commands.soak import Soak, resident_kib, run_soak
from vmloc_ros.commands.soak_drive import BLOCK_NS, FAULTS, START_NS, Drive, true_pose, true_poses
from vmloc_ros.commands.soak_report import Equation, SoakReport, Tenth
from vmloc_ros.errors import SetupError
from vmloc_ros.geometry import is_pose
from vmloc_ros.outputs import Outputs
from vmloc_ros.pipeline import Pipeline
from vmloc_ros.types import EventKind

ODOMETRY, FRAMES = 20_000, 2_000
ALLOWED_BYTES = 4_000
"""Of new counters and reasons. One pointer kept for each of the 1,200 frames between the two looks would be 9,600."""


def reachable_bytes(pipeline: Pipeline) -> int:
    """Size of everything that a pipeline holds, without its localizer, and without classes, functions and modules."""
    passed = (type, ModuleType, FunctionType, BuiltinFunctionType)
    seen, waiting, total = {id(pipeline), id(pipeline._localizer)}, [pipeline], 0
    while waiting:
        one = waiting.pop()
        total += sys.getsizeof(one)
        for other in gc.get_referents(one):
            if id(other) not in seen and not isinstance(other, passed):
                seen.add(id(other))
                waiting.append(other)
    return total


@dataclass(frozen=True)
class Run:
    """A whole run, and what the pipeline held after resets at four and at ten tenths of it."""

    soak: Soak
    report: SoakReport
    early_bytes: int
    late_bytes: int


@pytest.fixture(scope="module")
def run() -> Run:
    soak, held = Soak(seed=0), []
    for number, _ in enumerate(soak.run(ODOMETRY, FRAMES), start=1):
        if number in (4, 10):
            soak.pipeline.reset("what is left now is what nothing ever takes away")
            held.append(reachable_bytes(soak.pipeline))
    return Run(soak, soak.report(), *held)


def test_the_books_balance(run: Run) -> None:
    assert [e for e in run.report.equations if not e.holds] == []
    assert all(e.left > 0 for e in run.report.equations)
    assert run.report.not_finite == 0
    assert run.report.sent[EventKind.ODOMETRY] >= ODOMETRY
    assert run.report.counters["frames.inferred"] >= FRAMES


def test_every_fault_came_and_was_seen(run: Run) -> None:
    assert set(run.report.faults) == set(FAULTS)
    for name in (
        *(f"odometry.{verdict}" for verdict in ("jump", "gap", "frozen", "not_finite", "wrong_frame", "duplicate")),
        *(f"verdict.{verdict}" for verdict in ("fused", "gated", "too_old", "duplicate", "future", "not_finite")),
        *(f"rejected.{verdict.value}" for verdict in (ClockVerdict.ZERO, ClockVerdict.FUTURE, ClockVerdict.BACKWARD)),
        *("odometry.clock_reset", "frames.stale", "frames.no_pose", "rejected.image_constant", "rejected.depth"),
    ):
        assert run.report.counters[name] > 0, name
    assert set(run.report.answers) >= {"pose", "refused", "not finite", "repeated", "outlier", "stamped ahead"}


def test_the_filter_is_better_than_the_network_all_the_same(run: Run) -> None:
    network, fused = run.report.network, run.report.fused
    assert network is not None
    assert fused is not None
    assert fused.median < network.median
    assert fused.p95 < network.p95


def test_nothing_grows(run: Run) -> None:
    """After a reset everything that depends on the data is gone: what has grown since would grow for ever."""
    assert run.late_bytes - run.early_bytes < ALLOWED_BYTES


def test_what_grows_is_seen() -> None:
    soak = Soak(seed=0)
    early = reachable_bytes(soak.pipeline)
    soak.pipeline._queue._arrivals.update({START_NS + k: float(k) for k in range(1000)})
    assert reachable_bytes(soak.pipeline) - early > ALLOWED_BYTES


@pytest.mark.parametrize(
    "name",
    [
        *("odometry.used", "odometry.duplicate", "rejected.stamp_zero", "verdict.fused", "verdict.too_old"),
        *("frames.no_pose", "frames.stale", "frames.paired", "frames.inferred", "images.received", "clouds.received"),
    ],
)
@pytest.mark.parametrize("off", [-1, 1])
def test_one_that_is_missing_or_too_many_is_told(
    run: Run, monkeypatch: pytest.MonkeyPatch, name: str, off: int
) -> None:
    counters = run.soak.pipeline.counters()
    monkeypatch.setattr(run.soak.pipeline, "counters", lambda: counters | {name: counters[name] + off})
    assert any(not equation.holds for equation in run.soak.report().equations)


def test_a_number_that_is_not_finite_is_told() -> None:
    soak = Soak(seed=1)
    for _ in soak.run(200, 1):
        pass
    state = soak.pipeline._fusion.state()
    assert state is not None
    for broken in (
        replace(state, cov_66=np.full((6, 6), np.nan)),
        replace(state, T_map_base=np.full((4, 4), np.inf)),
        replace(state, T_map_odom=np.full((4, 4), np.nan)),
    ):
        soak._look(Outputs(states=[broken]))
    assert any("3 poses" in line for line in soak.report().failures)


def test_the_same_seed_gives_the_same_counters_and_another_one_others() -> None:
    def totals(seed: int) -> dict[str, int]:
        soak = Soak(seed)
        for _ in soak.run(1_500, 10):
            pass
        return dict(soak.report().counters)

    assert totals(3) == totals(3)
    assert totals(3) != totals(4)


@pytest.mark.parametrize(("last_kib", "failures"), [(101_900, 0), (102_000, 1)])
def test_two_percent_more_memory_after_the_first_tenth_is_a_failure(run: Run, last_kib: int, failures: int) -> None:
    tenths = (Tenth(1, 1.0, 100_000), Tenth(2, 2.0, last_kib), Tenth(3, 3.0, 100_000))
    report = replace(run.report, tenths=tenths)
    assert len(report.failures) == failures
    assert report.growth == pytest.approx(last_kib / 100_000 - 1.0)


def test_it_prints_and_writes_what_it_found(tmp_path: Path) -> None:
    console = Console(record=True, width=120)
    report = run_soak(300, 5, 0, tmp_path / "soak.json", console, progress=False)
    text, written = console.export_text(), (tmp_path / "soak.json").read_text("utf-8")
    assert text.count("MiB") == 10
    for equation in report.equations:
        assert f"{equation.words}: {equation.left} = {equation.right}" in text
        assert equation.words in written


def test_a_failure_is_exit_status_1(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for report, status in ((run.report, 0), (replace(run.report, equations=(Equation("a = b", 1, 2),)), 1)):
        steady = replace(report, tenths=(Tenth(1, 1.0, 1), Tenth(2, 2.0, 1)))
        monkeypatch.setattr(module, "run_soak", lambda *_, found=steady: found)
        assert CliRunner().invoke(cli.app, ["soak"]).exit_code == status


def test_memory_is_that_of_this_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = resident_kib()
    block = np.ones(8 << 20)
    assert resident_kib() - before > (block.nbytes >> 10) // 2
    monkeypatch.setattr(module, "MEMORY_FILE", tmp_path / "nothing")
    with pytest.raises(SetupError, match=r"nothing.*Linux"):
        resident_kib()


# --------------------------------------------------------------------------------------------------------------- drive


def test_the_truth_is_smooth_and_repeats_with_every_lap() -> None:
    stamps_ns = START_NS + np.arange(0, 100_000_000_000, 10_000_000)
    poses = true_poses(stamps_ns)
    assert all(is_pose(pose) for pose in poses[::50])
    speeds = np.linalg.norm(np.diff(poses[:, :3, 3], axis=0), axis=1) / 0.01
    assert speeds.min() > 3.6
    assert speeds.max() < 7.6
    np.testing.assert_allclose(true_pose(START_NS + 36 * 100_000_000_000), poses[0], atol=1e-9)


def test_messages_arrive_in_order_but_where_blocks_meet() -> None:
    last_ns = 0
    for arrival in islice(Drive(0).arrivals(), 12_000):
        assert arrival.arrival_ns > last_ns - BLOCK_NS // 20
        last_ns = max(last_ns, arrival.arrival_ns)


def test_a_run_stops_at_every_tenth_and_reaches_both_targets() -> None:
    soak = Soak(seed=5)
    seen = list(soak.run(1_000, 150))
    assert all(tenth.odometry >= n for tenth, n in zip(seen, range(100, 1_001, 100), strict=True))
    assert soak.report().counters["frames.inferred"] >= 150
