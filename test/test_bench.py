"""The benchmarks measure what they say; how fast it is, is not a test's business."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from vmloc_ros.commands import bench, bench_training
from vmloc_ros.commands.bench_latent import latent_code
from vmloc_ros.commands.bench_scene import WRONG_SHARE, SceneFrame
from vmloc_ros.commands.bench_scene_network import PublishedFromPictures, SceneFromPictures
from vmloc_ros.errors import CheckpointError
from vmloc_ros.filter import checked_pose
from vmloc_ros.geometry import inverse, log_se3
from vmloc_ros.scene_alignment import align
from vmloc_ros.types import Verdict


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


def test_late_poses_are_a_second_late_and_really_fused() -> None:
    drive = bench._Drive()
    for _ in range(20):
        drive.advance()
        newest_ns = drive.fusion.newest_ns
        assert newest_ns is not None
        assert newest_ns - drive._poses[0][0] == 1_000_000_000
        assert drive.measure_late().verdict is Verdict.FUSED
    drive.fusion.flush()
    counters = drive.fusion.counters()
    refused = {name: n for name, n in counters.items() if n and name not in ("verdict.fused", "odometry.used")}
    assert refused == {}
    assert counters["verdict.fused"] == 40


@pytest.mark.parametrize("by_a_map", [False, True])
def test_latent_codes_are_really_fused(by_a_map: bool) -> None:
    drive = bench._Drive(bench.MapCode(bench.DRIVE_CENTRE_M, bench.DRIVE_RADIUS_M) if by_a_map else None)
    for _ in range(20):
        drive.look()
        result = drive.measure_latent()
        assert result.verdict is Verdict.FUSED
        assert "by its pose" not in result.reason


def test_latent_codes_tell_what_the_textbook_says() -> None:
    rng, P = np.random.default_rng(0), np.diag(bench.LATE_DEVIATIONS**2)
    code = latent_code(bench.LATE_DEVIATIONS, rng).seen(np.eye(4), rng)
    known = code.at(np.eye(4))
    shift, P_new = code.textbook_update(P)
    np.testing.assert_allclose(np.linalg.inv(P_new), np.linalg.inv(P) + known.information_66, rtol=1e-6, atol=1e-2)
    np.testing.assert_allclose(shift, P_new @ known.gradient_6, atol=1e-9)


def test_the_odometry_that_is_timed_is_as_messages_give_it() -> None:
    """The filter takes the poses as they are: bringing stray rotations back would be timed as well."""
    drive = bench._Drive()
    drive.prepare(2_000)
    assert all(checked_pose(sample.T_odom_base) is sample.T_odom_base for sample in drive._prepared)


def test_what_prepares_a_turn_comes_before_both_sides() -> None:
    calls: list[str] = []
    bench.timed(
        "part", "ours", lambda: calls.append("a"), "theirs", lambda: calls.append("b"), 3, lambda: calls.append("-")
    )
    assert calls == ["-", "a", "b"] * 4


def test_the_whole_benchmark_with_the_packaged_model(tmp_path: Path, project_root: Path) -> None:
    console = Console(record=True, width=120)
    rows = bench.run_bench(project_root / "models" / "town", quick=True, json=tmp_path / "bench.json", console=console)
    assert {row.part for row in rows} == {"projection", "image", "filter", "scene alignment", "network", "pipeline"}
    written = json.loads((tmp_path / "bench.json").read_text())
    assert [row["name"] for row in written["rows"]] == [row.name for row in rows]
    text = console.export_text()
    assert "ratio" in text
    assert "message to pose" in text
    assert [(row.name, row.limit_ms) for row in rows if row.limit_ms is not None] == [
        ("an odometry sample", 0.04),
        ("a pose 1 s late, 100 samples again", 2.5),
        ("latent update, 256 dimensions", 2.0),
        ("latent update, 256 dimensions, by a map's network", 2.0),
        ("scene alignment, 300 cells with depth", 3.0),
        ("scene alignment, 300 cells without", 3.0),
    ]


def test_all_solve_the_scene_that_is_timed() -> None:
    for frame, reference in ((SceneFrame(True), "numpy_ransac"), (SceneFrame(False), "opencv_pnp")):
        found = align(frame.cells, frame.settings)
        assert found.share_B.item() == pytest.approx(1.0 - WRONG_SHARE, abs=0.1)
        for T in (found.T_map_camera_B44[0].numpy(), getattr(frame, reference)()):
            error_6 = log_se3(inverse(T) @ frame.T_map_camera)
            assert np.linalg.norm(error_6[:3]) < 0.05
            assert np.linalg.norm(error_6[3:]) < 0.02


def test_a_scene_is_really_found_from_pictures() -> None:
    """Both sides of the comparison give a pose: one by geometry, one by regression."""
    ours, theirs = SceneFromPictures(), PublishedFromPictures()
    found = ours.read().alignment
    assert bool(found.solved_B)
    assert found.share_B.item() > 0.6
    np.testing.assert_allclose(found.T_map_camera_B44[0].numpy(), ours.T_map_camera, atol=0.05)
    assert np.isfinite(theirs.infer().T_map_camera).all()


def test_a_missing_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=str(tmp_path)):
        bench.network_rows(tmp_path / "nothing", 0.0)


SMALL = bench_training.Case(trunk="resnet18", pixels=32, latent=32, frames=5)


def test_training_sides_are_timed() -> None:
    row = bench_training.bench_training(1, SMALL)
    assert row.ratio == pytest.approx(row.samples_per_s / row.reference_samples_per_s)
    assert all(math.isfinite(value) and value > 0.0 for value in (row.samples_per_s, row.ratio, row.cost_of_k))


def test_our_side_leaves_out_what_is_not_shown() -> None:
    """Three of five samples show both modalities, one each alone; nothing else is encoded."""
    shown = bench_training._shown(SMALL)
    assert shown["rgb"].tolist() == [0, 1, 2, 3]
    assert shown["depth"].tolist() == [0, 1, 2, 4]


def test_both_training_sides_really_learn() -> None:
    """The straightforward loop is no straw man that computes something else: its loss falls on the five frames."""
    torch.manual_seed(0)
    frames = bench_training._frames(SMALL)
    theirs = bench_training.straightforward_step(SMALL, *frames)
    losses = [float(theirs()) for _ in range(12)]  # type: ignore[arg-type]
    assert np.mean(losses[-3:]) < np.mean(losses[:3])
    ours = bench_training.our_step(SMALL, *frames)
    steps = [ours() for _ in range(12)]
    assert all(problem == "" for _, _, problem in steps)  # type: ignore[misc]
    assert np.mean([step[0] for step in steps[-3:]]) < np.mean([step[0] for step in steps[:3]])  # type: ignore[index]


def test_the_straightforward_product_is_the_papers() -> None:
    means, variances = ([torch.full((1, 1), v) for v in values] for values in ((0.0, 2.0, -1.0), (1.0, 0.5, 0.25)))
    mean, variance = bench_training.product_with_prior(means[1:], variances[1:])
    assert (mean.item(), variance.item()) == pytest.approx((0.0, 1.0 / 7.0))
