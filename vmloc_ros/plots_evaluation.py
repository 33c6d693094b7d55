"""Figures of an evaluation: what each mode of a network, and the nearest training image, say frame by frame."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator
from scipy.ndimage import median_filter

from vmloc_ros.corruption import INTACT, touched
from vmloc_ros.evaluation import SENSORS, Answers, Condition, Evaluation
from vmloc_ros.geometry import Array
from vmloc_ros.plots import COLOURS, LABELS, SMALLEST, figure_file, log_limits, plain_numbers
from vmloc_ros.plots_reliability import draw_reliability
from vmloc_ros.plots_worst import SHEET, plot_worst
from vmloc_ros.trajectory import NANOSECONDS
from vmloc_ros.types import Modality, Mode

RETRIEVAL, NEAREST_POSE = "retrieval", "nearest_pose"
MODE_COLOURS = {
    "rgb_depth": "#00528f",
    "rgb_only": "#e69f00",
    "depth_only": "#009e73",
    RETRIEVAL: COLOURS["retrieval"],
    NEAREST_POSE: "#8c8c8c",
}
MODE_LABELS = {
    "rgb_depth": "both",
    "rgb_only": "RGB alone",
    "depth_only": "depth alone",
    RETRIEVAL: LABELS["retrieval"],
    NEAREST_POSE: "nearest training pose",
}
CONDITION_LABELS = {
    "none": "intact",
    "rgb:1": "RGB\nmasked",
    "rgb:2": "RGB\nmissing",
    "depth:1": "depth\nmasked",
    "depth:2": "depth\nmissing",
}
FEW_FRAMES, SHORT_MEDIAN, LONG_MEDIAN = 200, 5, 15
"""Of fewer frames the dots are larger and the running median is shorter."""
MANY_RECORDINGS = 8
"""So many recordings are named where the time axis passes from one to the next."""


def plot_evaluation(folder: Path, result: Evaluation) -> list[Path]:
    """Draws the figures of the first condition into `folder`, and `corruptions.png` where there are several.

    `trajectories.png` (from above), `errors.png` (over time), `error_curves.png` (cumulative), `reliability.png` (where
    there are covariances) and `worst.png`.

    Returns:
        The files written; none where nothing was answered.
    """
    methods = answered(result)
    if not methods:
        return []
    seen = {name: answers for name, answers in methods.items() if name != NEAREST_POSE}
    with figure_file(folder / "trajectories.png", (3.1 * len(seen) + 0.6, 3.9)) as figure:
        draw_paths(figure, result, seen)
    with figure_file(folder / "errors.png", (9.6, 5.6)) as figure:
        draw_errors_over_time(figure, result, seen)
    with figure_file(folder / "error_curves.png", (9.0, 3.8)) as figure:
        draw_error_curves(figure, methods)
    written = [folder / name for name in ("trajectories.png", "errors.png", "error_curves.png")]
    sure = {name: answers for name, answers in methods.items() if answers.covariances}
    if sure:
        with figure_file(folder / "reliability.png", (9.6, 4.0)) as figure:
            draw_reliability(figure, sure, MODE_COLOURS, MODE_LABELS)
        written.append(folder / "reliability.png")
    if len(result.conditions) > 1:
        with figure_file(folder / "corruptions.png", (9.0, 4.2)) as figure:
            draw_corruptions(figure, result.conditions)
        written.append(folder / "corruptions.png")
    if result.worst:
        written.append(plot_worst(folder / SHEET, result))
    return written


def name_of(mode: Mode) -> str:
    """Of a mode in figures and in file names: `rgb_depth`."""
    return mode.value.lower()


def answered(result: Evaluation) -> dict[str, Answers]:
    """The methods of the first condition that answered at least one frame, by name: modes, retrieval, nearest pose."""
    methods = by_name(result.conditions[0])
    if result.nearest_pose is not None:
        methods[NEAREST_POSE] = result.nearest_pose
    return methods


def by_name(condition: Condition, whole: bool = True) -> dict[str, Answers]:
    """A condition's modes and retrieval (or only those that it touches), as far as they answered at least one frame."""
    methods = {
        name_of(mode): a for mode, a in condition.modes.items() if whole or touched(condition.levels, SENSORS[mode])
    }
    if condition.retrieval is not None and (whole or condition.levels.get(Modality.RGB, INTACT)):
        methods[RETRIEVAL] = condition.retrieval
    return {name: answers for name, answers in methods.items() if answers.estimates}


def draw_paths(figure: Figure, result: Evaluation, methods: Mapping[str, Answers]) -> None:
    """A panel per method: its positions from above, a dot per frame, over the true ones."""
    path = np.array([frame.T_map_camera[:2, 3] for frame in result.frames])
    span_m = max(float(np.ptp(path, axis=0).max()), 1e-3)
    usual_m = max(float(np.median(answers.errors().position_m)) for answers in methods.values())
    half = 0.5 * span_m + max(0.12 * span_m, min(2.0 * usual_m, span_m))  # wild answers do not shrink the picture
    centre = 0.5 * (path.min(axis=0) + path.max(axis=0))
    panels = np.atleast_1d(figure.subplots(1, len(methods), sharex=True, sharey=True))
    for axes, (name, answers) in zip(panels, methods.items(), strict=True):
        xy = np.array(answers.estimates)[:, :2, 3]
        axes.plot(*path.T, ".", ms=4, mew=0, color=COLOURS["truth"], alpha=0.6, label=LABELS["truth"])
        axes.plot(*xy.T, ".", ms=3, mew=0, color=MODE_COLOURS[name])
        outside = int((np.abs(xy - centre) > half).any(axis=1).sum())
        if outside:
            where: dict[str, Any] = {"transform": axes.transAxes, "ha": "right", "va": "bottom"}
            axes.text(0.99, 0.01, f"{outside} of {len(xy)} lie outside", fontsize=7.5, color="#666666", **where)
        axes.set_title(MODE_LABELS[name])
        axes.set_aspect("equal", adjustable="box")
        axes.set_xlabel("x in map (m)")
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.yaxis.set_major_locator(MaxNLocator(5))
    panels[0].set_xlim(centre[0] - half, centre[0] + half)
    panels[0].set_ylim(centre[1] - half, centre[1] + half)
    panels[0].set_ylabel("y in map (m)")
    panels[0].legend(loc="upper left", fontsize=8, markerscale=2.0, handletextpad=0.2)


def seconds_of(result: Evaluation) -> tuple[Array, list[tuple[str, float]]]:
    """Seconds (N,) of all frames, recordings one after the other in the order of evaluation, and where each begins."""
    names = dict.fromkeys(frame.recording for frame in result.frames)
    stamps_ns = np.array([frame.stamp_ns for frame in result.frames], dtype=np.int64)
    recording = np.array([list(names).index(frame.recording) for frame in result.frames])
    seconds, starts, end = np.empty(len(stamps_ns)), [], 0.0
    for index, name in enumerate(names):
        inside = recording == index
        own = (stamps_ns[inside] - stamps_ns[inside].min()) / NANOSECONDS
        starts.append((name, end))
        seconds[inside] = end + own
        end += 1.03 * float(own.max()) + 0.1  # a little room between two recordings
    return seconds, starts


def draw_errors_over_time(figure: Figure, result: Evaluation, methods: Mapping[str, Answers]) -> None:
    """Position and rotation errors on logarithmic axes: a dot per frame, a line for the running median."""
    seconds, starts = seconds_of(result)
    few = len(seconds) < FEW_FRAMES
    dots: dict[str, Any] = {"ms": 4.5, "alpha": 0.6} if few else {"ms": 3.0, "alpha": 0.4}
    window = SHORT_MEDIAN if few else LONG_MEDIAN
    position, rotation = figure.subplots(2, 1, sharex=True)
    for name, answers in methods.items():
        errors, style = answers.errors(), {"color": MODE_COLOURS[name]}
        recordings = np.array([result.frames[k].recording for k in answers.frames])
        for axes, values in ((position, errors.position_m), (rotation, errors.rotation_deg)):
            drawn = np.maximum(values, SMALLEST)
            axes.plot(seconds[answers.frames], drawn, ".", mew=0, **dots, **style)
            for recording, _ in starts:
                own = recordings == recording
                line = median_filter(drawn[own], window, mode="nearest") if own.any() else drawn[own]
                label = MODE_LABELS[name] if recording == starts[0][0] else None
                axes.plot(seconds[answers.frames][own], line, lw=1.4, label=label, **style)
    for axes, unit, limits in ((position, "m", (0.001, 300.0)), (rotation, "deg", (0.01, 180.0))):
        log_limits(axes, unit, limits)
        axes.margins(x=0.01)
        for name, start_s in starts[: MANY_RECORDINGS if len(starts) > 1 else 0]:
            axes.axvline(start_s, color="#b0b0b0", lw=0.8, zorder=0)
            if axes is rotation:
                at: Any = axes.get_xaxis_transform()
                axes.text(start_s, 0.99, f" {name}", transform=at, va="top", fontsize=7, color="#666666")
    position.set_title(f"Error of the camera's pose; lines: running median of {window} frames")
    position.set_ylabel("position error")
    rotation.set_ylabel("rotation error")
    rotation.set_xlabel("time since the first frame" + (", recordings one after another (s)" if starts[1:] else " (s)"))
    handles, labels = position.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8.5)


def draw_error_curves(figure: Figure, methods: Mapping[str, Answers]) -> None:
    """Which share of the answers has at most which error."""
    panels = figure.subplots(1, 2, sharey=True)
    for name, answers in methods.items():
        errors = answers.errors()
        share = np.arange(1, len(answers.frames) + 1) / len(answers.frames)
        style: Any = {"lw": 1.2, "ls": (0, (4, 2))} if name == NEAREST_POSE else {"lw": 1.7}
        for axes, values in zip(panels, (errors.position_m, errors.rotation_deg), strict=True):
            drawn = np.maximum(np.sort(values), SMALLEST)
            axes.step(drawn, share, where="post", color=MODE_COLOURS[name], label=MODE_LABELS[name], **style)
    for axes, unit, what in zip(panels, ("m", "deg"), ("position error", "rotation error"), strict=True):
        values = np.concatenate([np.asarray(line.get_xdata(), dtype=float) for line in axes.get_lines()])
        axes.set_xscale("log")
        low = max(float(np.percentile(values, 1)), 10.0 * SMALLEST)
        axes.set_xlim(low, max(1.2 * float(values.max()), 10.0 * low))
        plain_numbers(axes.xaxis, unit)
        axes.tick_params(axis="x", labelsize=8.5)
        axes.set_xlabel(what)
        axes.set_ylim(0.0, 1.02)
    panels[0].yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f} %"))
    panels[0].set_ylabel("share of frames")
    panels[0].set_title("Frames with at most this error")
    figure.legend(handles=panels[0].get_lines(), loc="outside lower center", ncols=5, fontsize=8.5)


def draw_corruptions(figure: Figure, conditions: Sequence[Condition]) -> None:
    """Median (dot), mean (diamond) and 95th percentile (end of the line) of every mode that a condition touches."""
    columns = [by_name(condition, whole=index == 0) for index, condition in enumerate(conditions)]
    panels = figure.subplots(1, 2)
    for axes, unit, what in zip(panels, ("m", "deg"), ("position_m", "rotation_deg"), strict=True):
        for column, methods in enumerate(columns):
            for place, (name, answers) in enumerate(methods.items()):
                x = column + 0.17 * (place - 0.5 * (len(methods) - 1))
                _draw_spread(axes, x, getattr(answers.errors(), what), MODE_COLOURS[name])
        axes.set_yscale("log")
        axes.margins(y=0.08)
        plain_numbers(axes.yaxis, unit)
        axes.set_xticks(range(len(conditions)))
        axes.set_xlim(-0.5, len(conditions) - 0.5)
        axes.set_xticklabels([CONDITION_LABELS.get(c.name, c.name) for c in conditions], fontsize=8.5)
        axes.grid(axis="x", visible=False)
        for border in range(1, len(conditions)):
            axes.axvline(border - 0.5, color="#e6e6e6", lw=0.7, zorder=0)
    panels[0].set_ylabel("position error")
    panels[1].set_ylabel("rotation error")
    panels[0].set_title("Errors with degraded input")
    drawn = {name for methods in columns for name in methods}
    handles = [
        Line2D([], [], marker="o", color=colour, lw=2.0, ms=5.5, label=MODE_LABELS[name])
        for name, colour in MODE_COLOURS.items()
        if name in drawn
    ]
    grey: dict[str, Any] = {"color": "#555555", "ls": "none"}
    handles += [
        Line2D([], [], marker="o", ms=5.5, label="median", **grey),
        Line2D([], [], marker="D", mfc="white", mew=1.2, ms=4.5, label="mean", **grey),
        Line2D([], [], color="#555555", lw=2.0, alpha=0.55, label="to the 95th percentile"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=7, fontsize=8)


def _draw_spread(axes: Axes, x: float, values: Array, colour: str) -> None:
    median, mean, p95 = np.maximum([np.median(values), values.mean(), np.percentile(values, 95)], SMALLEST)
    axes.plot([x, x], [median, p95], "-", color=colour, lw=2.0, alpha=0.55)
    axes.plot(x, median, "o", color=colour, ms=5.5)
    axes.plot(x, mean, "D", color=colour, mfc="white", mew=1.2, ms=4.5)
