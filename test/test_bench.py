"""The benchmarks measure what they say; how fast it is, is not a test's business."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from rich.console import Console

from vmloc_ros.commands import bench
from vmloc_ros.errors import CheckpointError


def test_both_sides_are_timed_alternately() -> None:
    calls: list[str] = []
    row = bench.timed("part", "ours", lambda: calls.append("a"), "theirs", lambda: calls.append("b"), 4)
    assert calls == ["a", "b"] * 5, "one turn to warm up, then four"
    assert row.ratio == pytest.approx(row.reference_ms / row.ms)


@pytest.mark.parametrize("rows", [bench.image_rows, bench.filter_rows], ids=["images", "filter"])
def test_rows_are_finite(rows: object) -> None:
    for row in rows(0.0):  # type: ignore[operator]
        assert row.ms > 0.0
        assert math.isfinite(row.ratio)


def test_late_poses_are_really_fused() -> None:
    drive = bench._Drive(bench.exp_se3([0.1, 0.0, 0.0, 0.0, 0.0, 0.005]))
    drive.start_late(0.2)
    for _ in range(80):
        drive.measure(0.2)
    counters = drive._fusion.counters()
    refused = {name: n for name, n in counters.items() if n and name not in ("verdict.fused", "odometry.used")}
    assert refused == {}
    assert counters["verdict.fused"] > 60


def test_the_whole_benchmark_with_the_packaged_model(tmp_path: Path, project_root: Path) -> None:
    console = Console(record=True, width=120)
    rows = bench.run_bench(project_root / "models" / "town", quick=True, json=tmp_path / "bench.json", console=console)
    assert {row.part for row in rows} == {"projection", "image", "filter", "network", "pipeline"}
    written = json.loads((tmp_path / "bench.json").read_text())
    assert [row["name"] for row in written["rows"]] == [row.name for row in rows]
    text = console.export_text()
    assert "ratio" in text
    assert "message to pose" in text


def test_a_missing_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=str(tmp_path)):
        bench.network_rows(tmp_path / "nothing", 0.0)
