"""Figures are written whole, are pictures, and say in words what they cannot draw."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import cv2
import numpy as np
import pytest
from matplotlib.figure import Figure
from synthetic_run import make_log

from vmloc_ros import plots
from vmloc_ros.errors import TrainingError, TrajectoryError
from vmloc_ros.report import write_run
from vmloc_ros.run_log import trajectory_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run")
    write_run(make_log(), path)
    return path


def ink(path: Path) -> float:
    """Share of a picture's pixels that are not white."""
    picture = cv2.imread(str(path))
    assert picture is not None, f"{path} is not a picture"
    return float((picture < 250).any(axis=2).mean())


def test_a_run_gives_three_figures(folder: Path) -> None:
    written = plots.plot_run(folder)
    assert [path.name for path in written] == ["trajectories.png", "errors.png", "error_curves.png"]
    for path in written:
        assert 0.01 < ink(path) < 0.6
    assert not list(folder.glob("*.part"))


def test_trajectories_have_equal_axes_and_a_clear_legend(folder: Path) -> None:
    axes = Figure().subplots()
    plots.draw_trajectories(axes, plots.read_run(folder))
    assert axes.get_aspect() == 1.0
    legend = axes.get_legend()
    assert legend is not None
    labels = [text.get_text() for text in legend.get_texts()]
    assert labels == ["truth", "start", plots.LABELS["network"], plots.LABELS["odometry"], "fused", "no camera",
                      "no depth", "neither"]  # fmt: skip


def test_wild_network_poses_are_counted_and_do_not_shrink_the_picture(tmp_path: Path) -> None:
    log = make_log()
    wild = log.statuses[5]
    assert wild.measurement is not None
    far = wild.measurement.T_map_base.copy()
    far[:3, 3] = [9e4, 0.0, 0.0]
    statuses = list(log.statuses)
    statuses[5] = dataclasses.replace(wild, measurement=dataclasses.replace(wild.measurement, T_map_base=far))
    write_run(dataclasses.replace(log, statuses=statuses), tmp_path)
    axes = Figure().subplots()
    plots.draw_trajectories(axes, plots.read_run(tmp_path))
    assert axes.get_xlim()[1] < 200.0
    assert any("1 of 540 network poses" in text.get_text() for text in axes.texts)


def test_outages_are_shaded_at_their_time(folder: Path) -> None:
    figure = Figure()
    run = plots.read_run(folder)
    plots.draw_errors(figure, run)
    for axes in figure.axes:
        spans = sorted((patch.get_x(), patch.get_x() + patch.get_width()) for patch in axes.patches)
        assert spans == [(12.0, 22.0), (28.0, 38.0), (44.0, 49.0)]
        assert axes.get_yscale() == "log"


def test_error_curves_end_at_one(folder: Path) -> None:
    figure = Figure()
    plots.draw_error_curves(figure, plots.read_run(folder))
    for axes in figure.axes:
        for line in axes.get_lines():
            shares = np.asarray(line.get_ydata(), dtype=float)
            assert shares[-1] == pytest.approx(1.0)
            assert (np.diff(shares) > 0).all()


def test_a_run_without_truth_draws_its_path_only(tmp_path: Path) -> None:
    write_run(dataclasses.replace(make_log(), truth=None), tmp_path)
    assert [path.name for path in plots.plot_run(tmp_path)] == ["trajectories.png"]


def test_a_robot_that_stood_still_can_be_drawn(tmp_path: Path) -> None:
    log = make_log()
    still = [
        dataclasses.replace(s, measurement=None, state=dataclasses.replace(s.state, T_map_base=np.eye(4)))
        for s in log.statuses
        if s.state is not None
    ]
    truth = trajectory_of((status.stamp_ns, np.eye(4)) for status in still)
    write_run(dataclasses.replace(log, statuses=still, truth=truth, odometry=truth, live=truth), tmp_path)
    assert len(plots.plot_run(tmp_path)) == 3


def test_folders_without_a_run_are_named(tmp_path: Path) -> None:
    with pytest.raises(TrajectoryError, match=r"report\.json"):
        plots.plot_run(tmp_path)
    write_run(make_log(), tmp_path)
    for path in tmp_path.glob("*.tum"):
        path.unlink()
    with pytest.raises(TrajectoryError, match="holds no trajectory"):
        plots.plot_run(tmp_path)


def test_training_curves(tmp_path: Path) -> None:
    table = tmp_path / "metrics.csv"
    rows = [
        f"{epoch},{3.0 / (epoch + 1) - 1.0},{'' if epoch % 2 else 2.0 / (epoch + 1)},{epoch}s" for epoch in range(9)
    ]
    table.write_text("epoch,train_loss,position_m,took\n" + "\n".join(rows) + "\n")
    assert ink(plots.plot_training(table)) > 0.01


@pytest.mark.parametrize(
    ("content", "words"), [("", "no row"), ("epoch,seconds\n1,2\n", "no column"), (None, "cannot be read")]
)
def test_trainings_that_cannot_be_drawn_are_named(tmp_path: Path, content: str | None, words: str) -> None:
    table = tmp_path / "metrics.csv"
    if content is not None:
        table.write_text(content)
    with pytest.raises(TrainingError, match=words):
        plots.plot_training(table)


def test_the_overview_shows_image_and_depth(folder: Path, tmp_path: Path) -> None:
    rgb = np.full((60, 80, 3), 120, dtype=np.uint8)
    depth_m = np.zeros((30, 40), dtype=np.float32)
    depth_m[10:20:3, ::3] = 12.0
    with_depth = plots.plot_overview(tmp_path / "a.png", folder, rgb, depth_m)
    assert ink(with_depth) > 0.1
    assert ink(plots.plot_overview(tmp_path / "b.png", folder, rgb, np.zeros_like(depth_m))) > 0.1
    assert ink(plots.plot_overview(tmp_path / "c.png", folder, rgb, None)) > 0.05
    assert with_depth.read_bytes() != (tmp_path / "b.png").read_bytes()
