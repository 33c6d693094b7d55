"""Figures of runs and trainings. The only file that uses matplotlib; it draws into files and needs no display."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import matplotlib

matplotlib.use("Agg")  # before pyplot: there may be no display

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from numpy.typing import NDArray

from vmloc_ros import metrics
from vmloc_ros.errors import TrainingError, TrajectoryError
from vmloc_ros.report import TRAJECTORY_NAMES, Report, read_report
from vmloc_ros.trajectory import NANOSECONDS, Trajectory, read_tum

COLOURS = {
    "truth": "#9a9a9a",
    "odometry": "#d55e00",
    "network": "#56b4e9",
    "fused": "#00528f",
    "retrieval": "#b07aa1",
}
"""Okabe and Ito's palette (distinguishable to colour-blind readers), a darker blue for the result."""

LABELS = {
    "truth": "truth",
    "odometry": "odometry alone (dead reckoning)",
    "network": "network, frame by frame",
    "fused": "fused",
    "retrieval": "nearest training image",
}
SHADES = {"rgb": "#e69f00", "depth": "#009e73", "rgb+depth": "#cc3311"}
MISSING = {"rgb": "no camera", "depth": "no depth", "rgb+depth": "neither"}

SMALLEST = 1e-4
"""Errors below 0.1 mm or 0.0001 deg are drawn as that: a logarithm knows no zero."""

STYLE: dict[str, Any] = {
    "figure.dpi": 110,
    "savefig.dpi": 160,
    "savefig.bbox": "tight",
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "lines.solid_capstyle": "round",
}


@dataclass(frozen=True, eq=False)
class RunFiles:
    """What a run wrote, read back: its trajectories (those that it has) by name, and its report."""

    trajectories: dict[str, Trajectory]
    report: Report


def read_run(folder: Path) -> RunFiles:
    """A run's folder.

    Raises:
        TrajectoryError: the report is missing or malformed, or there is no trajectory at all.
    """
    report = read_report(folder)
    found = {name: read_tum(folder / f"{name}.tum") for name in TRAJECTORY_NAMES if (folder / f"{name}.tum").is_file()}
    if not found:
        raise TrajectoryError(f"{folder}: holds no trajectory ({', '.join(f'{n}.tum' for n in TRAJECTORY_NAMES)})")
    return RunFiles(found, report)


def plot_run(folder: Path) -> list[Path]:
    """Draws `trajectories.png`, `errors.png` and `error_curves.png` beside a run's report; the last two need truth.

    Returns:
        The files written.
    """
    run = read_run(folder)
    written = []
    with figure_file(folder / "trajectories.png", (7.6, 6.4)) as figure:
        draw_trajectories(figure.add_subplot(), run)
    written.append(folder / "trajectories.png")
    if "truth" in run.trajectories and len(run.trajectories) > 1:
        with figure_file(folder / "errors.png", (9.6, 5.6)) as figure:
            draw_errors(figure, run)
        with figure_file(folder / "error_curves.png", (9.0, 3.6)) as figure:
            draw_error_curves(figure, run)
        written += [folder / "errors.png", folder / "error_curves.png"]
    return written


@contextmanager
def figure_file(path: Path, size_inches: tuple[float, float]) -> Iterator[Figure]:
    """A figure in our style, saved whole or not at all."""
    with plt.rc_context(cast(Any, STYLE)):
        figure = plt.figure(figsize=size_inches, layout="constrained")
        try:
            yield figure
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_name(path.name + ".part")
            figure.savefig(partial, format="png", facecolor="white", metadata={"Software": "vmloc"})
            partial.replace(path)
        finally:
            plt.close(figure)


# ------------------------------------------------------------------------------------------------------- trajectories


def draw_trajectories(axes: Axes, run: RunFiles, legend_below: bool = False) -> None:
    """All paths from above, equal axes; the outages lie as coloured bands under the truth (or the fused path)."""
    paths = {name: path.poses_N44[:, :2, 3] for name, path in run.trajectories.items()}
    _draw_outage_bands(axes, run)
    if "truth" in paths:
        axes.plot(*paths["truth"].T, color=COLOURS["truth"], lw=4.0, alpha=0.75, label=LABELS["truth"], zorder=2)
        axes.plot(*paths["truth"][0], "o", ms=7, mfc="white", mec="#333333", mew=1.4, label="start", zorder=6)
    if "network" in paths:
        x, y = paths["network"].T
        axes.scatter(x, y, s=5, color=COLOURS["network"], lw=0, alpha=0.8, label=LABELS["network"], zorder=3)
    if "odometry" in paths:
        axes.plot(
            *paths["odometry"].T, color=COLOURS["odometry"], lw=1.3, ls=(0, (5, 2)), label=LABELS["odometry"], zorder=4
        )
    if "fused" in paths:
        axes.plot(*paths["fused"].T, color=COLOURS["fused"], lw=1.6, label=LABELS["fused"], zorder=5)
    _fit_view(axes, paths)
    axes.set_xlabel("x in map (m)")
    axes.set_ylabel("y in map (m)")
    axes.set_title("The run from above")
    handles, _ = axes.get_legend_handles_labels()
    handles += _outage_handles(run)
    where: dict[str, Any] = {"loc": "center left", "bbox_to_anchor": (1.01, 0.5)}
    if legend_below:
        where = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.12), "ncols": 3, "columnspacing": 1.2}
    axes.legend(handles=handles, fontsize=8.5, handlelength=1.8, scatterpoints=3, markerscale=1.3, **where)


def _draw_outage_bands(axes: Axes, run: RunFiles) -> None:
    base = run.trajectories.get("truth", run.trajectories.get("fused"))
    if base is None:
        return
    seconds = (base.stamps_ns - run.report.start_ns) / NANOSECONDS
    for outage in run.report.outages:
        inside = (seconds >= outage.from_s) & (seconds <= outage.to_s)
        if inside.any():
            axes.plot(*base.poses_N44[inside, :2, 3].T, color=_shade(outage.missing), lw=13, alpha=0.28, zorder=1)


def _fit_view(axes: Axes, paths: dict[str, NDArray[np.float64]]) -> None:
    """Equal axes around what matters: wild answers of the network do not shrink the picture, they are counted."""
    framed = [path for name, path in paths.items() if name in ("truth", "fused", "odometry")] or list(paths.values())
    points = np.concatenate(framed)
    low, high = points.min(axis=0), points.max(axis=0)
    margin = 0.08 * max(float((high - low).max()), 1e-3)
    axes.set_xlim(low[0] - margin, high[0] + margin)
    axes.set_ylim(low[1] - margin, high[1] + margin)
    axes.set_aspect("equal", adjustable="box")
    if "network" in paths:
        seen = ((paths["network"] >= low - margin) & (paths["network"] <= high + margin)).all(axis=1)
        outside = int((~seen).sum())
        if outside:
            axes.text(
                0.99,
                0.01,
                f"{outside} of {len(seen)} network poses lie outside",
                transform=axes.transAxes,
                ha="right",
                va="bottom",
                fontsize=7.5,
                color="#666666",
            )


# --------------------------------------------------------------------------------------------------------- errors


def draw_errors(figure: Figure, run: RunFiles) -> None:
    """Position and rotation errors over time on logarithmic axes, outages shaded."""
    truth = run.trajectories["truth"]
    position, rotation = figure.subplots(2, 1, sharex=True)
    for name in ("network", "odometry", "fused"):
        if name not in run.trajectories:
            continue
        stamps_ns, metres, degrees = pose_errors(run.trajectories[name], truth)
        if len(stamps_ns) == 0:
            continue
        seconds = (stamps_ns - run.report.start_ns) / NANOSECONDS
        for axes, values in ((position, metres), (rotation, degrees)):
            if name == "network":
                axes.plot(seconds, values, ".", ms=3.2, mew=0, color=COLOURS[name], alpha=0.85, label=LABELS[name])
            else:
                dash: Any = (0, (5, 2)) if name == "odometry" else "-"
                axes.plot(seconds, values, ls=dash, lw=1.5, color=COLOURS[name], label=LABELS[name])
    for axes, unit, limits in ((position, "m", (0.01, 300.0)), (rotation, "deg", (0.01, 180.0))):
        log_limits(axes, unit, limits)
        _shade_outages(axes, run)
        axes.margins(x=0.01)
    position.set_title("Error against the truth")
    position.set_ylabel("position error")
    rotation.set_ylabel("rotation error")
    rotation.set_xlabel("time since the start (s)")
    handles, _ = position.get_legend_handles_labels()
    figure.legend(handles=[*handles, *_outage_handles(run)], loc="outside lower center", ncols=6, fontsize=8.5)


def pose_errors(
    estimates: Trajectory, truth: Trajectory
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Stamps (K,), position errors in metres (K,) and rotation errors in degrees (K,), where the truth is known.

    For drawing on logarithmic axes: none is below `SMALLEST`.
    """
    known = metrics.covered(estimates, truth)
    metres, degrees = metrics.pose_errors(known, truth)
    return known.stamps_ns, np.maximum(metres, SMALLEST), np.maximum(degrees, SMALLEST)


def log_limits(axes: Axes, unit: str, limits: tuple[float, float]) -> None:
    """A logarithmic y axis, cut at what still means something."""
    drawn = [np.asarray(line.get_ydata(), dtype=float) for line in axes.get_lines()]
    values = np.concatenate(drawn) if drawn else np.array([1.0])
    low = float(np.clip(np.percentile(values, 1), limits[0], limits[1] / 100))
    high = float(np.clip(values.max(), 10 * low, limits[1]))
    axes.set_yscale("log")
    axes.set_ylim(0.7 * low, 1.5 * high)
    plain_numbers(axes.yaxis, unit)


def plain_numbers(axis: Axis, unit: str) -> None:
    """Labels a logarithmic axis with 0.1 m, 0.2 m, 0.5 m, 1 m instead of powers of ten."""
    low, high = axis.get_view_interval()
    subdivisions = (1.0, 2.0, 5.0) if high < 1e3 * low else (1.0,)
    axis.set_major_locator(LogLocator(base=10.0, subs=subdivisions, numticks=20))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} {unit}".rstrip()))
    axis.set_minor_formatter(NullFormatter())


def _shade_outages(axes: Axes, run: RunFiles) -> None:
    for outage in run.report.outages:
        axes.axvspan(outage.from_s, outage.to_s, color=_shade(outage.missing), alpha=0.16, lw=0, zorder=0)


def _shade(missing: str) -> str:
    return SHADES.get(missing, "#888888")


def _outage_handles(run: RunFiles) -> list[Patch]:
    kinds = dict.fromkeys(outage.missing for outage in run.report.outages)
    return [Patch(color=_shade(kind), alpha=0.28, lw=0, label=MISSING.get(kind, f"no {kind}")) for kind in kinds]


def draw_error_curves(figure: Figure, run: RunFiles) -> None:
    """Which share of the poses has at most which error."""
    truth = run.trajectories["truth"]
    left, right = figure.subplots(1, 2, sharey=True)
    for name in ("retrieval", "network", "odometry", "fused"):
        if name not in run.trajectories:
            continue
        _, metres, degrees = pose_errors(run.trajectories[name], truth)
        for axes, values in ((left, metres), (right, degrees)):
            if len(values):
                share = np.arange(1, len(values) + 1) / len(values)
                axes.step(np.sort(values), share, where="post", lw=1.7, color=COLOURS[name], label=LABELS[name])
    for axes, unit, what in ((left, "m", "position error"), (right, "deg", "rotation error")):
        axes.set_xscale("log")
        drawn = [np.asarray(line.get_xdata(), dtype=float) for line in axes.get_lines()]
        if drawn:
            values = np.concatenate(drawn)
            low = max(float(np.percentile(values, 1)), 1e-3)
            axes.set_xlim(low, max(float(values.max()) * 1.2, 10.0 * low))
        plain_numbers(axes.xaxis, unit)
        axes.set_xlabel(what)
        axes.set_ylim(0.0, 1.02)
    left.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f} %"))
    left.set_ylabel("share of poses")
    left.set_title("Poses with at most this error")
    handles, _ = left.get_legend_handles_labels()
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=8.5)


# ------------------------------------------------------------------------------------------------------- training


def plot_training(metrics_csv: Path, out: Path | None = None) -> Path:
    """Draws a training's `metrics.csv` as `training.png` beside it: panels for losses, metres and degrees.

    Raises:
        TrainingError: missing, or no column of numbers.
    """
    columns = _read_columns(metrics_csv)
    axis_name = next((name for name in ("epoch", "step", "seconds") if name in columns), None)
    panels: dict[str, list[str]] = {"loss": [], "position error (m)": [], "rotation error (deg)": []}
    for name in columns:
        if "loss" in name:
            panels["loss"].append(name)
        elif name.endswith("_m"):
            panels["position error (m)"].append(name)
        elif name.endswith("_deg"):
            panels["rotation error (deg)"].append(name)
    panels = {title: names for title, names in panels.items() if names}
    if not panels:
        raise TrainingError(f"{metrics_csv}: has no column named *loss*, *_m or *_deg (has {', '.join(columns)})")
    target = out if out is not None else metrics_csv.with_name("training.png")
    with figure_file(target, (4.2 * len(panels), 3.5)) as figure:
        for axes, (title, names) in zip(np.atleast_1d(figure.subplots(1, len(panels))), panels.items(), strict=True):
            for name in names:
                values = columns[name]
                there = np.isfinite(values)
                ticks = columns[axis_name] if axis_name else np.arange(len(values), dtype=float)
                axes.plot(ticks[there], values[there], lw=1.5, label=name)
                if (values[there] > 0).all() and title != "loss":
                    axes.set_yscale("log")
                    plain_numbers(axes.yaxis, "")
            axes.set_title(title)
            axes.set_xlabel(axis_name or "row")
            axes.legend(fontsize=7.5)
    return target


def _read_columns(path: Path) -> Mapping[str, NDArray[np.float64]]:
    """A CSV table's columns; an empty cell is NaN, a column with text is left out."""
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            rows = list(csv.DictReader(stream))
    except (OSError, UnicodeDecodeError) as error:
        raise TrainingError(f"{path}: cannot be read ({error})") from error
    if not rows:
        raise TrainingError(f"{path}: holds no row yet")
    columns = {}
    for name in rows[0]:
        try:
            columns[name] = np.array([float(row[name]) if row[name] else np.nan for row in rows])
        except (TypeError, ValueError):
            continue
    return columns


# -------------------------------------------------------------------------------------------------- camera and map


def plot_overview(
    out: Path,
    folder: Path,
    rgb: NDArray[np.uint8],
    depth_m: NDArray[np.float32] | None,
    depth_title: str = "lidar in the image",
) -> Path:
    """The picture of what the localizer does: what it sees on the left, where that took it on the right.

    Args:
        out: the PNG to write.
        folder: the run's folder.
        rgb: (H, W, 3) the camera's image.
        depth_m: (h, w) metres in the same view, 0 = no return; None for a robot that has only the camera.
        depth_title: what the depth image shows.
    """
    run = read_run(folder)
    with figure_file(out, (10.2, 5.2)) as figure:
        left, right = cast(Any, figure.subfigures(1, 2, width_ratios=(1.0, 1.6)))
        pictures = left.subplots(1 if depth_m is None else 2, 1, squeeze=False)[:, 0]
        pictures[0].imshow(rgb)
        pictures[0].set_title("camera")
        if depth_m is not None:
            draw_depth(pictures[1], rgb, depth_m)
            pictures[1].set_title(depth_title)
        for axes in pictures:
            axes.set_axis_off()
        draw_trajectories(right.subplots(), run, legend_below=True)
    return out


def draw_depth(axes: Axes, rgb: NDArray[np.uint8], depth_m: NDArray[np.float32]) -> None:
    """Depth returns as coloured dots over the darkened image: near is bright, far is dark blue."""
    if (depth_m > 0).any():
        dots = draw_depth_dots(axes, rgb, depth_m, float(np.percentile(depth_m[depth_m > 0], 97)))
        bar = axes.figure.colorbar(dots, cax=axes.inset_axes((0.62, 0.07, 0.34, 0.03)), orientation="horizontal")
        bar.ax.tick_params(labelsize=7, colors="white", length=2, pad=1)
        bar.ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} m"))
        bar.ax.xaxis.tick_top()
        bar.outline.set_visible(False)
    else:
        draw_depth_dots(axes, rgb, depth_m, 1.0)


def draw_depth_dots(
    axes: Axes, rgb: NDArray[np.uint8], depth_m: NDArray[np.float32], far_m: float, size: float = 2.4
) -> PathCollection:
    """The dots of `draw_depth` on a scale from 0 to `far_m` metres, and the image under them; returns the dots."""
    height, width = rgb.shape[:2]
    rows, columns = np.nonzero(depth_m > 0)
    axes.imshow(np.asarray(rgb.mean(axis=2) * 0.35, dtype=np.uint8), cmap="gray", vmin=0, vmax=255)
    values = depth_m[rows, columns]
    order = np.argsort(-values)  # the nearest are drawn last, on top
    x = (columns[order] + 0.5) * width / depth_m.shape[1] - 0.5
    y = (rows[order] + 0.5) * height / depth_m.shape[0] - 0.5
    dots = axes.scatter(x, y, c=values[order], s=size, lw=0, cmap="plasma_r", vmin=0.0, vmax=far_m)
    axes.set_xlim(-0.5, width - 0.5)
    axes.set_ylim(height - 0.5, -0.5)
    return dots
