"""Figures of an evaluation: each is a picture, shows every frame, and says what the numbers say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from drawn_poses import DrawnPoses, two_drives
from matplotlib.figure import Figure
from pictures import build, tiny_config

from vmloc_ros import plots_evaluation as plots
from vmloc_ros.corruption import TABLE_4
from vmloc_ros.evaluation import Evaluation, evaluate
from vmloc_ros.plots_reliability import LEVELS, PARTS, draw_reliability, probabilities
from vmloc_ros.plots_worst import caption, plot_worst
from vmloc_ros.retrieval import Retrieval, write_retrieval
from vmloc_ros.samples import Labelled
from vmloc_ros.types import Mode

MODES = [Mode.RGB_DEPTH, Mode.RGB_ONLY, Mode.DEPTH_ONLY]
NAMES = ["rgb_depth", "rgb_only", "depth_only", "retrieval", "nearest_pose"]


@pytest.fixture(scope="module")
def retrieval(tmp_path_factory: pytest.TempPathFactory) -> Retrieval:
    folder = tmp_path_factory.mktemp("retrieval")
    store, _ = build(folder / "cache", tiny_config(), 40)
    write_retrieval(folder / "retrieval", store, np.arange(0, 40, 4))
    return Retrieval(folder / "retrieval")


@pytest.fixture(scope="module")
def result(retrieval: Retrieval) -> Evaluation:
    return evaluate(DrawnPoses(two_drives()), two_drives(), MODES, TABLE_4, retrieval)


def ink(path: Path) -> float:
    """Share of a picture's pixels that are not white."""
    picture = cv2.imread(str(path))
    assert picture is not None, f"{path} is not a picture"
    return float((picture < 250).any(axis=2).mean())


def test_an_evaluation_gives_its_figures(result: Evaluation, tmp_path: Path) -> None:
    written = plots.plot_evaluation(tmp_path, result)
    names = ["trajectories", "errors", "error_curves", "reliability", "corruptions", "worst"]
    assert [path.name for path in written] == [f"{name}.png" for name in names]
    for path in written:
        assert 0.01 < ink(path) < 0.9, path
    assert not list(tmp_path.glob("*.part"))


def test_one_condition_without_covariances_gives_fewer_figures(retrieval: Retrieval, tmp_path: Path) -> None:
    answered = evaluate(DrawnPoses(two_drives(4)), two_drives(4), [Mode.RGB_ONLY], retrieval=retrieval)
    assert "corruptions.png" not in [path.name for path in plots.plot_evaluation(tmp_path, answered)]
    missing = evaluate(DrawnPoses(two_drives(4)), two_drives(4), [Mode.RGB_ONLY], [TABLE_4[2]])
    assert plots.plot_evaluation(tmp_path / "none", missing) == []


def test_every_method_has_its_panel_over_the_truth(result: Evaluation) -> None:
    figure = Figure()
    methods = plots.answered(result)
    assert list(methods) == NAMES
    plots.draw_paths(figure, result, methods)
    assert [axes.get_title(loc="center") or axes.get_title(loc="left") for axes in figure.axes] == [
        plots.MODE_LABELS[name] for name in NAMES
    ]
    for axes in figure.axes:
        assert axes.get_aspect() == 1.0
        truth, estimates = axes.get_lines()
        assert len(truth.get_xdata()) == len(estimates.get_xdata()) == 80  # type: ignore[arg-type]


def test_wild_answers_are_counted_and_do_not_shrink_the_picture() -> None:
    wild = evaluate(DrawnPoses(two_drives(), errors=1e4), two_drives(), [Mode.RGB_DEPTH])
    figure = Figure()
    plots.draw_paths(figure, wild, plots.answered(wild))
    assert figure.axes[0].get_xlim()[1] < 20.0
    assert "of 80 lie outside" in figure.axes[0].texts[0].get_text()


def test_recordings_follow_each_other_in_time(result: Evaluation) -> None:
    seconds, starts = plots.seconds_of(result)
    assert [name for name, _ in starts] == ["forwards", "backwards"]
    assert (np.diff(seconds) > 0).all()
    assert seconds[0] == 0.0
    assert seconds[40] == starts[1][1] > seconds[39]
    figure = Figure()
    plots.draw_errors_over_time(figure, result, plots.answered(result))
    assert {text.get_text().strip() for text in figure.axes[1].texts} == {"forwards", "backwards"}
    assert all(axes.get_yscale() == "log" for axes in figure.axes)


def test_error_curves_reach_every_frame_at_the_largest_error(result: Evaluation) -> None:
    figure = Figure()
    methods = plots.answered(result)
    plots.draw_error_curves(figure, methods)
    for axes, what in zip(figure.axes, ("position_m", "rotation_deg"), strict=True):
        assert axes.get_xscale() == "log"
        for line, answers in zip(axes.get_lines(), methods.values(), strict=True):
            shares, values = (np.asarray(data, dtype=float) for data in (line.get_ydata(), line.get_xdata()))
            assert shares[-1] == pytest.approx(1.0)
            assert values[-1] == pytest.approx(max(getattr(answers.errors(), what).max(), 1e-4))


def test_corruptions_show_what_they_touch(result: Evaluation) -> None:
    figure = Figure()
    plots.draw_corruptions(figure, result.conditions)
    per_spread = 3  # a line, a dot and a diamond
    shown = [
        ["rgb_depth", "rgb_only", "depth_only", "retrieval"],
        ["rgb_depth", "rgb_only", "retrieval"],
        ["depth_only"],
        ["rgb_depth", "depth_only"],
        ["rgb_only"],
    ]
    for index, (condition, names) in enumerate(zip(result.conditions, shown, strict=True)):
        assert list(plots.by_name(condition, whole=index == 0)) == names
    borders = len(result.conditions) - 1
    for axes in figure.axes:
        assert len(axes.get_lines()) == per_spread * sum(map(len, shown)) + borders


# ---------------------------------------------------------------------------------------------------------- reliability


def single_mode(frames: list[Labelled], overconfidence: float = 1.0) -> Evaluation:
    return evaluate(DrawnPoses(frames, overconfidence=overconfidence), frames, [Mode.RGB_DEPTH])


@pytest.mark.parametrize("part", PARTS)
def test_true_covariances_lie_on_the_diagonal_and_bold_ones_below(part: str) -> None:
    frames = two_drives(400)
    for overconfidence, inside in ((1.0, True), (1.5, False)):
        answers = single_mode(frames, overconfidence).conditions[0].modes[Mode.RGB_DEPTH]
        values, nees = probabilities(answers, PARTS[part])
        shares = np.searchsorted(np.sort(values), LEVELS, side="right") / len(values)
        assert (np.abs(shares - LEVELS).max() < 0.05) == inside  # Kolmogorov: 0.048 is 5 % of 800 true frames
        assert nees == pytest.approx(overconfidence**2, rel=0.1)


def test_the_reliability_figure_names_its_modes_and_its_band(result: Evaluation) -> None:
    figure = Figure()
    methods = {n: a for n, a in plots.answered(result).items() if a.covariances}
    draw_reliability(figure, methods, plots.MODE_COLOURS, plots.MODE_LABELS)
    assert [axes.get_title(loc="left") or axes.get_title() for axes in figure.axes] == list(PARTS)
    legend = figure.axes[0].get_legend()
    assert legend is not None
    for text, mode in zip(legend.get_texts(), MODES, strict=True):
        nees = result.report()["modes"][mode]["nees"]["mean"] / 6.0
        assert text.get_text().endswith(f": {nees:.2f}")
    assert "80 independent frames" in figure.legends[0].get_texts()[1].get_text()


# --------------------------------------------------------------------------------------------------------- worst frames


def test_captions_say_which_frame_how_wrong_and_how_sure(result: Evaluation) -> None:
    entry = result.report()["worst"][0]
    lines = caption(1, entry).splitlines()
    assert lines[0].startswith(f"1.  {entry['recording']}  17000000")
    assert f"{entry['position_m']:.3f} m" in lines[1]
    assert f"stated sigma {entry['sigma_m']:.3f} m" in lines[1]
    assert f"NEES {entry['nees']:.1f}" in lines[1]
    assert f"nearest training image {entry['retrieval_m']:.3f} m" in lines[2]
    bare = {key: value for key, value in entry.items() if not key.startswith(("retrieval", "nearest"))}
    assert caption(1, bare).splitlines() == lines[:2]
    assert len(lines) == 3
    assert caption(1, entry, narrow=True).replace("\n", "; ") == "; ".join(lines)


@pytest.mark.parametrize("absent", ["rgb", "depth_m"])
def test_sheets_of_one_sensor_and_of_dense_or_sparse_depth(absent: str, tmp_path: Path) -> None:
    frames = [(replace(frame, **{absent: None}), T, name) for frame, T, name in two_drives(3)]
    one = evaluate(DrawnPoses(frames), frames, MODES)
    assert ink(plot_worst(tmp_path / "one.png", one)) > 0.2
    if absent == "rgb":
        sparse = []
        for frame, T, name in frames:
            depth_m = np.zeros_like(frame.depth_m)
            depth_m[::8, ::8] = 5.0
            sparse.append((replace(frame, depth_m=depth_m), T, name))
        dots = evaluate(DrawnPoses(sparse), sparse, MODES)
        assert ink(plot_worst(tmp_path / "dots.png", dots)) > 0.2


def test_a_sheet_needs_a_frame(tmp_path: Path) -> None:
    missing = evaluate(DrawnPoses(two_drives(4)), two_drives(4), [Mode.RGB_ONLY], [TABLE_4[2]])
    with pytest.raises(ValueError, match="no frame"):
        plot_worst(tmp_path / "none.png", missing)
    assert not (tmp_path / "none.png").exists()
