"""The figure of a localizer that was followed: the paths from above, and the errors over the frames."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from vmloc_ros.evaluation import Answers
from vmloc_ros.following import Following
from vmloc_ros.plots import COLOURS, LABELS, SMALLEST, figure_file, log_limits

DOTS = {"network"}
"""Drawn as dots: nothing joins one answer to the next."""
LIMITS = {"m": (1e-3, 1e3), "deg": (1e-2, 180.0)}


def plot_tracking(path: Path, following: Following) -> Path:
    """Draws `T_map_base` of the truth, the network, the filter and dead reckoning from above, and their errors.

    Args:
        path: of the PNG.
        following: at least one frame.
    """
    methods = {
        "odometry": following.dead_reckoning(),
        "network": following.network(),
        "fused": following.fused(),
    }
    with figure_file(path, (10.4, 5.0)) as figure:
        grid = figure.add_gridspec(2, 2, width_ratios=(1.0, 1.25))
        above = figure.add_subplot(grid[:, 0])
        position, rotation = figure.add_subplot(grid[0, 1]), figure.add_subplot(grid[1, 1])
        _draw_paths(above, following, methods)
        _draw_errors(position, methods, "m")
        _draw_errors(rotation, methods, "deg")
        position.set_ylabel("position error")
        rotation.set_ylabel("rotation error")
        rotation.set_xlabel("frame")
        for axes in (position, rotation):
            for k, frame in enumerate(following.frames):
                if k and frame.place == 0:
                    axes.axvline(k - 0.5, color="#bbbbbb", lw=0.8)
        handles, labels = above.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8.5)
    return path


def _draw_paths(axes: Axes, following: Following, methods: dict[str, Answers]) -> None:
    """The view is that of the truth and the filter: wild answers of the network do not shrink it."""
    truth = np.array([frame.T_map_base[:2, 3] for frame in following.frames])
    axes.plot(*_cut(truth, following, range(len(truth))).T, color=COLOURS["truth"], lw=4.0, label=LABELS["truth"])
    framed = [truth]
    for name, answers in methods.items():
        if not answers.estimates:
            continue
        points = np.array([T[:2, 3] for T in answers.estimates])
        if name in DOTS:
            axes.plot(*points.T, "o", ms=2.5, color=COLOURS[name], label=LABELS[name])
        else:
            axes.plot(*_cut(points, following, answers.frames).T, color=COLOURS[name], lw=1.4, label=LABELS[name])
            framed += [points] if name == "fused" else []
    points = np.concatenate(framed)
    low, high = points.min(axis=0), points.max(axis=0)
    margin = 0.1 * max(float((high - low).max()), 1e-3)
    axes.set_xlim(low[0] - margin, high[0] + margin)
    axes.set_ylim(low[1] - margin, high[1] + margin)
    axes.set_aspect("equal", adjustable="box")
    axes.set_xlabel("x (m)")
    axes.set_ylabel("y (m)")


def _cut(points: np.ndarray, following: Following, frames: range | list[int]) -> np.ndarray:
    """The points with a hole where a new stretch begins, so that no line crosses it."""
    stretches = np.array([following.frames[k].stretch for k in frames])
    return np.insert(points, np.flatnonzero(np.diff(stretches)) + 1, np.nan, axis=0)


def _draw_errors(axes: Axes, methods: dict[str, Answers], unit: str) -> None:
    for name, answers in methods.items():
        errors = answers.errors()
        values = np.maximum(errors.position_m if unit == "m" else errors.rotation_deg, SMALLEST)
        if len(values):
            style = {"ls": "", "marker": "o", "ms": 2.0} if name in DOTS else {"lw": 1.4}
            axes.plot(answers.frames, values, color=COLOURS[name], **style)  # type: ignore[arg-type]
    log_limits(axes, unit, LIMITS[unit])
