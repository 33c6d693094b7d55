"""The figure of a comparison: errors by variant and mode, the seeds as dots."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from vmloc_ros.comparison import INTACT, RETRIEVAL_NAME, Variant
from vmloc_ros.comparison_tables import MODE_NAMES
from vmloc_ros.plots import COLOURS, LABELS, figure_file
from vmloc_ros.plots_evaluation import MODE_COLOURS

QUANTITIES = (
    ("position error (m)", "mean_m", "median_m", "fused_m"),
    ("rotation error (deg)", "mean_deg", "median_deg", "fused_deg"),
)
ROOM = 1.1
"""The axes end a tenth beyond the longest bar."""


def plot_comparison(path: Path, variants: Sequence[Variant], frames: str) -> Path:
    """Draws horizontal bars, a column of panels per mode: the mean light, the median dark, every seed a dot, the mean
    with the filter a diamond.

    Args:
        path: of the PNG.
        variants: those without any finished run, and modes that nobody has, are left out.
        frames: name of the set of frames.
    """
    systems = [v for v in variants if v.finished and v.name != RETRIEVAL_NAME]
    baseline = next((v for v in variants if v.finished and v.name == RETRIEVAL_NAME), None)
    modes = [m for m in MODE_NAMES if any(v.number(frames, m, INTACT, "mean_m") is not None for v in systems)]
    size = (1.4 + 3.2 * max(1, len(modes)), 1.6 + 2.0 * max(1.0, 0.16 * len(systems)) + 0.3 * len(systems))
    with figure_file(path, size) as figure:
        grid = figure.subplots(len(QUANTITIES), max(1, len(modes)), sharey=True, squeeze=False)
        for row, (label, mean, median, fused) in zip(grid, QUANTITIES, strict=True):
            for axes, mode in zip(row, modes, strict=True):
                _draw_bars(axes, systems, frames, mode, mean, median, fused)
                _draw_baseline(axes, baseline, frames, median)
                axes.set_xlabel(label)
        for axes, mode in zip(grid[0], modes, strict=True):
            axes.set_title(MODE_NAMES[mode])
        grid[0][0].set_yticks(range(len(systems)), [variant.name for variant in systems])
        grid[0][0].set_ylim(len(systems) - 0.4, -0.6)
        handles: list[Patch | Line2D] = [
            Patch(color="#444444", alpha=0.35, lw=0, label="mean over frames"),
            Patch(color="#444444", lw=0, label="median over frames"),
            Line2D([], [], ls="", marker="o", ms=4, mfc="white", mec="#222222", label="each seed's"),
        ]
        if any(v.number(frames, m, INTACT, "fused_m") is not None for v in systems for m in modes):
            label, colour = "mean, with the filter", COLOURS["fused"]
            handles.append(Line2D([], [], ls="", marker="D", ms=5.5, mfc=colour, mec="white", label=label))
        if baseline is not None:
            handles.append(Line2D([], [], color=COLOURS["retrieval"], ls="--", label=f"{LABELS['retrieval']}, median"))
        figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=8.5)
    return path


def _draw_bars(
    axes: Axes, systems: Sequence[Variant], frames: str, mode: str, mean: str, median: str, fused: str
) -> None:
    colour = MODE_COLOURS[mode.lower()]
    for place, variant in enumerate(systems):
        for name, height, alpha, dots in ((mean, 0.76, 0.35, -0.29), (median, 0.4, 1.0, 0.0)):
            value = variant.number(frames, mode, INTACT, name)
            if value is None:
                continue
            axes.barh(place, value.mean, height=height, color=colour, alpha=alpha, lw=0)
            if len(value.values) > 1:
                line = [place + dots] * len(value.values)
                axes.plot(value.values, line, "o", ms=3.5, mfc="white", mec="#222222", mew=0.8)
        filtered = variant.number(frames, mode, INTACT, fused)
        if filtered is not None:
            axes.plot(filtered.mean, place, "D", ms=5.5, mfc=COLOURS["fused"], mec="white", mew=0.8, zorder=4)
        if variant.number(frames, mode, INTACT, mean) is None:
            axes.text(
                0.02,
                place,
                "no answer",
                transform=axes.get_yaxis_transform(),
                va="center",
                fontsize=7.5,
                color="#777777",
            )
    axes.grid(axis="y", visible=False)
    axes.set_xlim(0.0, max(axes.dataLim.x1, 1e-3) * ROOM)


def _draw_baseline(axes: Axes, baseline: Variant | None, frames: str, median: str) -> None:
    """A line where the nearest training image stands; it does not stretch the panel."""
    value = baseline.number(frames, "RGB_ONLY", INTACT, median) if baseline is not None else None
    if value is not None and value.mean <= axes.get_xlim()[1]:
        axes.axvline(value.mean, color=COLOURS["retrieval"], ls="--", lw=1.3)
