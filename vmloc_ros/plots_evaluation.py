"""Figures of an evaluation: what each mode of a network, and the nearest training image, say frame by frame."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vmloc_ros.plots import COLOURS, LABELS, figure_file, log_limits, pose_errors
from vmloc_ros.trajectory import NANOSECONDS, Trajectory

MODE_COLOURS = {
    "rgb_depth": "#00528f",
    "rgb_only": "#e69f00",
    "depth_only": "#009e73",
    "retrieval": COLOURS["retrieval"],
}
MODE_LABELS = {
    "rgb_depth": "both",
    "rgb_only": "RGB alone",
    "depth_only": "depth alone",
    "retrieval": LABELS["retrieval"],
}


def plot_evaluation(folder: Path, truth: Trajectory, estimates: Mapping[str, Trajectory]) -> list[Path]:
    """Draws `trajectories.png` (from above) and `errors.png` (position and rotation over time) into `folder`.

    Args:
        truth: T_map_camera of every frame.
        estimates: T_map_camera by mode (`rgb_depth`, `rgb_only`, `depth_only`) and `retrieval`; empty ones are skipped.

    Returns:
        The files written.
    """
    drawn = {name: poses for name, poses in estimates.items() if len(poses)}
    with figure_file(folder / "trajectories.png", (7.6, 6.4)) as figure:
        _draw_paths(figure.add_subplot(), truth, drawn)
    with figure_file(folder / "errors.png", (9.6, 5.6)) as figure:
        _draw_errors(figure, truth, drawn)
    return [folder / "trajectories.png", folder / "errors.png"]


def _draw_paths(axes: Axes, truth: Trajectory, estimates: Mapping[str, Trajectory]) -> None:
    path = truth.poses_N44[:, :2, 3]
    axes.plot(*path.T, ".", ms=4, color=COLOURS["truth"], label=LABELS["truth"], zorder=2)
    for name, poses in estimates.items():
        axes.plot(*poses.poses_N44[:, :2, 3].T, ".", ms=2.5, mew=0, color=MODE_COLOURS[name], label=MODE_LABELS[name])
    low, high = path.min(axis=0), path.max(axis=0)
    margin = 0.1 * max(float((high - low).max()), 1e-3)  # wild answers do not shrink the picture
    axes.set_xlim(low[0] - margin, high[0] + margin)
    axes.set_ylim(low[1] - margin, high[1] + margin)
    axes.set_aspect("equal", adjustable="box")
    axes.set_xlabel("x in map (m)")
    axes.set_ylabel("y in map (m)")
    axes.set_title("The camera from above, frame by frame")
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=8.5, markerscale=2.0)


def _draw_errors(figure: Figure, truth: Trajectory, estimates: Mapping[str, Trajectory]) -> None:
    position, rotation = figure.subplots(2, 1, sharex=True)
    for name, poses in estimates.items():
        stamps_ns, metres, degrees = pose_errors(poses, truth)
        seconds = (stamps_ns - int(truth.stamps_ns[0])) / NANOSECONDS
        for axes, values in ((position, metres), (rotation, degrees)):
            axes.plot(seconds, values, ".", ms=3.2, mew=0, color=MODE_COLOURS[name], label=MODE_LABELS[name])
    for axes, unit, limits in ((position, "m", (0.001, 300.0)), (rotation, "deg", (0.01, 180.0))):
        log_limits(axes, unit, limits)
        axes.margins(x=0.01)
    position.set_title("Error of the camera's pose")
    position.set_ylabel("position error")
    rotation.set_ylabel("rotation error")
    rotation.set_xlabel("time since the first frame (s)")
    handles, labels = position.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8.5, markerscale=2.0)
