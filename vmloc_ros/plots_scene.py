"""Figures of scene coordinates: what every cell of a frame says, and the map as the network knows it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, to_rgba
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from vmloc_ros.geometry import Array
from vmloc_ros.plots import COLOURS, draw_depth, figure_file, plain_numbers
from vmloc_ros.plots_evaluation import MODE_LABELS
from vmloc_ros.plots_worst import DENSE, DEPTH_COLOURS, NO_RETURN
from vmloc_ros.types import Mode

AGREES, VAGUE, DISAGREES, NOT_ASKED = "#0072b2", "#56b4e9", "#d55e00", "#9a9a9a"
"""Okabe and Ito's blues and vermilion."""
PANEL_WIDTH, PANEL_HEAD = 3.2, 0.35
"""Inches."""
LABEL = {"boxstyle": "circle,pad=0.2", "fc": "white", "ec": "#333333", "lw": 0.6}
CELL_PIXELS = 14
"""A cell's square, with a pixel left free around it."""
SHARE_OF_VIEW = 0.08
"""The length of a camera's wedge, of the picture's width."""
SEEN_SHARE = 0.9
"""The view of a frame's surroundings holds so much of what its cells truly see."""
ABOVE = {(2, 1): (0, 1), (2, -1): (1, 0), (1, 1): (2, 0), (1, -1): (0, 2), (0, 1): (1, 2), (0, -1): (2, 1)}
"""By the map's axis that points up and its sign: the axes to the right and up in a picture from above."""


@dataclass(frozen=True, eq=False)
class CellAnswers:
    """What one set of modalities says of a frame with N cells, and the pose that fits it best.

    Attributes:
        mode: which modalities.
        points_N3: means in the map, metres.
        deviation_N: root of the sum of the variances along the three axes, metres.
        apart_N: distance of the points from where they truly lie, metres.
        agrees_N: cells that agree with the pose that was found, and speak for it.
        vague_N: cells that lie where it puts them, but claim to know next to nothing.
        usable_N: cells that count.
        T_map_camera: the pose; None where there is none.
        caption: what came of it, in a few words.
    """

    mode: Mode
    points_N3: Array
    deviation_N: Array
    apart_N: Array
    agrees_N: NDArray[np.bool_]
    vague_N: NDArray[np.bool_]
    usable_N: NDArray[np.bool_]
    T_map_camera: Array | None
    caption: str


@dataclass(frozen=True, eq=False)
class SceneFrame:
    """A frame as a network over scene coordinates sees it.

    Attributes:
        name: which frame.
        rgb_HW3, depth_HW: at the network's size; None where absent.
        grid: rows and columns of cells; cells go row by row.
        rays_N3: through the cells' centres, camera optical axes, z = 1.
        has_return_N: cells with depth.
        T_true: T_map_camera.
        answers: of every set of modalities, the largest first.
        notes: lines about the frame.
    """

    name: str
    rgb_HW3: NDArray[np.uint8] | None
    depth_HW: NDArray[np.floating] | None
    grid: tuple[int, int]
    rays_N3: Array
    has_return_N: NDArray[np.bool_]
    T_true: Array
    answers: Sequence[CellAnswers]
    notes: Sequence[str]


@dataclass(frozen=True, eq=False)
class KnownMap:
    """The map as a network knows it: points that it gives on a drive, where its cells agree with their frame's pose.

    Attributes:
        points_M3: metres in the map.
        colours_M3: of the pictures, 0..1.
        path_K3: true positions of the camera.
        up: the map's axis that points up (0, 1, 2), and its sign.
    """

    points_M3: Array
    colours_M3: Array
    path_K3: Array
    up: tuple[int, int]


def plot_scene_frame(path: Path, frame: SceneFrame) -> Path:
    """Draws what the frame shows, and a row for each set of modalities: what its cells claim, how far they truly are
    off (both on one logarithmic scale), and which agree with the pose.

    Cells without a return have a dot, and are judged by the distance of their point from the true ray.
    """
    rows, (height, width) = len(frame.answers), _size(frame)
    panel = PANEL_WIDTH * height / width + PANEL_HEAD
    with figure_file(path, (3.0 * PANEL_WIDTH, (rows + 1) * panel + 0.9)) as figure:
        grid = figure.subplots(rows + 1, 3, squeeze=False)
        for axes in grid.flat:
            axes.set_axis_off()
        _draw_inputs(grid[0], frame)
        values = np.concatenate([part[a.usable_N] for a in frame.answers for part in (a.deviation_N, a.apart_N)])
        low, high = np.percentile(np.maximum(values, 1e-4), (2.0, 98.0)) if len(values) else (0.1, 1.0)
        scale = LogNorm(float(low), max(float(high), 1.5 * float(low)))
        for panels, answers in zip(grid[1:], frame.answers, strict=True):
            name = MODE_LABELS[answers.mode.value.lower()]
            for axes, values, what in (
                (panels[0], answers.deviation_N, "stated deviation"),
                (panels[1], answers.apart_N, "distance from the truth"),
            ):
                image = _draw_cells(axes, frame, answers, values, scale)
                axes.set_title(f"{name}: {what}" if axes is panels[0] else what, fontsize=9)
            _draw_dots(panels[1], frame)
            _draw_agreement(panels[2], frame, answers)
            panels[2].set_title(answers.caption, fontsize=9, fontweight="normal")
        bar = figure.colorbar(image, ax=grid[1:, :], location="bottom", shrink=0.5, aspect=50, pad=0.02)
        plain_numbers(bar.ax.xaxis, "m")
        bar.ax.tick_params(labelsize=8)
        bar.set_label("of a cell's point in the map", fontsize=8.5)
        figure.legend(handles=_handles(frame), loc="outside lower center", ncols=5, fontsize=8.5)
    return path


def plot_scene_map(path: Path, known: KnownMap, frames: Sequence[SceneFrame]) -> Path:
    """Draws the known map from above with the cameras of the frames, and the surroundings of each frame: its points as
    the first set of modalities gives them, the true and the found camera.
    """
    columns = min(max(len(frames), 1), 2)
    rows = -(-len(frames) // columns)
    with figure_file(path, (5.0 + 3.6 * columns, max(5.4, 3.5 * rows + 0.6))) as figure:
        grid = figure.add_gridspec(max(rows, 1), columns + 1, width_ratios=(1.5, *[1.0] * columns))
        whole = figure.add_subplot(grid[:, 0])
        _draw_known(whole, known, 1.0)
        right, up = _axes(known)
        whole.plot(known.path_K3[:, right], known.path_K3[:, up], "-", color="#333333", lw=1.0)
        _frame_view(whole, np.concatenate([known.path_K3, _middle_points(known)])[:, [right, up]])
        for number, frame in enumerate(frames, 1):
            _draw_camera(whole, frame, frame.T_true, known, COLOURS["fused"])
            at = frame.T_true[:3, 3] - SHARE_OF_VIEW * 0.4 * np.ptp(whole.get_xlim()) * frame.T_true[:3, 2]
            whole.text(at[right], at[up], str(number), fontsize=8.5, ha="center", va="center", bbox=LABEL)
            near = figure.add_subplot(grid[(number - 1) // columns, 1 + (number - 1) % columns])
            _draw_surroundings(near, known, frame)
            near.set_title(f"{number}: {frame.name}", fontsize=9)
        for axes in figure.axes:
            axes.set_xlabel(f"{'xyz'[right]} in map (m)")
            axes.set_ylabel(f"{'xyz'[up]} in map (m)")
        whole.set_title("The map as the network knows it, from above")
        figure.legend(handles=_map_handles(), loc="outside lower center", ncols=5, fontsize=8.5)
    return path


def up_of(T_map_camera_N44: Array) -> tuple[int, int]:
    """The map's axis that is nearest to up, and its sign: cameras stand upright on average, y down."""
    up_3 = -T_map_camera_N44[:, :3, 1].mean(axis=0)
    axis = int(np.abs(up_3).argmax())
    return axis, 1 if up_3[axis] >= 0.0 else -1


# -------------------------------------------------------------------------------------------------- what a frame shows


def _size(frame: SceneFrame) -> tuple[int, int]:
    """Rows and columns of the pictures."""
    image = frame.rgb_HW3 if frame.rgb_HW3 is not None else frame.depth_HW
    return frame.grid if image is None else (image.shape[0], image.shape[1])


def _draw_inputs(panels: Sequence[Axes], frame: SceneFrame) -> None:
    if frame.rgb_HW3 is not None:
        panels[0].imshow(frame.rgb_HW3)
    panels[0].set_title("colour" if frame.rgb_HW3 is not None else "no colour", fontsize=9)
    if frame.depth_HW is not None:
        _draw_depth(panels[1], frame.rgb_HW3, frame.depth_HW.astype(np.float32))
    panels[1].set_title("depth" if frame.depth_HW is not None else "no depth", fontsize=9)
    panels[2].set_title(frame.name, fontsize=9)
    panels[2].text(0.0, 0.97, "\n".join(frame.notes), transform=panels[2].transAxes, va="top", fontsize=8)


def _draw_depth(axes: Axes, rgb_HW3: NDArray[np.uint8] | None, depth_HW: NDArray[np.float32]) -> None:
    """Dense depth as an image, the few returns of a lidar as dots over the picture."""
    if np.count_nonzero(depth_HW) <= DENSE * depth_HW.size:
        draw_depth(axes, np.zeros((*depth_HW.shape, 3), np.uint8) if rgb_HW3 is None else rgb_HW3, depth_HW)
        return
    colours = colormaps[DEPTH_COLOURS].with_extremes(bad=NO_RETURN)
    far_m = float(np.percentile(depth_HW[depth_HW > 0.0], 97))
    image = axes.imshow(np.ma.masked_where(depth_HW <= 0.0, depth_HW), cmap=colours, vmin=0.0, vmax=far_m)
    bar = axes.figure.colorbar(image, ax=axes, location="right", shrink=0.8, aspect=25, pad=0.02)
    bar.ax.tick_params(labelsize=7)
    bar.set_label("m", fontsize=7)


def _draw_cells(axes: Axes, frame: SceneFrame, answers: CellAnswers, values_N: Array, scale: LogNorm) -> Any:
    """Cells as squares over the picture's extent; those that do not count stay white."""
    height, width = _size(frame)
    shown = np.ma.masked_where(~answers.usable_N, np.maximum(values_N, 1e-4)).reshape(frame.grid)
    return axes.imshow(shown, cmap="viridis_r", norm=scale, extent=(-0.5, width - 0.5, height - 0.5, -0.5))


def _centres(frame: SceneFrame) -> tuple[Array, Array]:
    """Columns and rows of the cells' centres in the picture (N,)."""
    (height, width), (rows, columns) = _size(frame), frame.grid
    v, u = np.indices(frame.grid).reshape(2, -1)
    return (u + 0.5) * width / columns - 0.5, (v + 0.5) * height / rows - 0.5


def _draw_dots(axes: Axes, frame: SceneFrame) -> None:
    """On cells without a return."""
    u, v = _centres(frame)
    none = ~frame.has_return_N
    axes.plot(u[none], v[none], ".", ms=4.0, mew=0, color="#cc3311")


def _draw_agreement(axes: Axes, frame: SceneFrame, answers: CellAnswers) -> None:
    """The picture in grey, and on it the cells that agree and those that do not."""
    height, width = _size(frame)
    if answers.mode is not Mode.DEPTH_ONLY and frame.rgb_HW3 is not None:
        axes.imshow(frame.rgb_HW3.mean(axis=2), cmap="gray", vmin=0, vmax=255)
    squares = np.zeros((*frame.grid, CELL_PIXELS, CELL_PIXELS, 4))
    kinds = (
        (answers.agrees_N, AGREES),
        (answers.vague_N, VAGUE),
        (answers.usable_N & ~answers.agrees_N & ~answers.vague_N, DISAGREES),
        (~answers.usable_N, NOT_ASKED),
    )
    for chosen_N, colour in kinds:
        squares[chosen_N.reshape(frame.grid), 1:-1, 1:-1] = to_rgba(colour, 0.55)
    picture = squares.swapaxes(1, 2).reshape(frame.grid[0] * CELL_PIXELS, frame.grid[1] * CELL_PIXELS, 4)
    axes.imshow(picture, interpolation="nearest", extent=(-0.5, width - 0.5, height - 0.5, -0.5))


def _handles(frame: SceneFrame) -> list[Line2D]:
    square: dict[str, Any] = {"ls": "none", "marker": "s", "ms": 7, "alpha": 0.75}
    handles = [
        Line2D([], [], color=AGREES, label="agrees with the pose", **square),
        Line2D([], [], color=DISAGREES, label="does not", **square),
    ]
    if any(answers.vague_N.any() for answers in frame.answers):
        handles.insert(1, Line2D([], [], color=VAGUE, label="agrees, but claims next to nothing", **square))
    if not all(answers.usable_N.all() for answers in frame.answers):
        handles.append(Line2D([], [], color=NOT_ASKED, label="does not count", **square))
    if not frame.has_return_N.all():
        dot: dict[str, Any] = {"ls": "none", "marker": ".", "ms": 5, "color": "#cc3311"}
        handles.append(Line2D([], [], label="no return: distance from the true ray", **dot))
    return handles


# ------------------------------------------------------------------------------------------------------------- the map


def _axes(known: KnownMap) -> tuple[int, int]:
    return ABOVE[known.up]


def _middle_points(known: KnownMap) -> Array:
    """The map's points without the few that lie far out."""
    if not len(known.points_M3):
        return known.path_K3
    low, high = np.percentile(known.points_M3, (1.0, 99.0), axis=0)
    return known.points_M3[((known.points_M3 >= low) & (known.points_M3 <= high)).all(axis=1)]


def _draw_known(axes: Axes, known: KnownMap, size: float) -> None:
    """Points from the lowest to the highest, as one sees them from above."""
    right, up = _axes(known)
    order = np.argsort(known.points_M3[:, known.up[0]] * known.up[1])
    points, colours = known.points_M3[order], known.colours_M3[order]
    axes.scatter(points[:, right], points[:, up], s=size, c=colours, lw=0, rasterized=True)


def _frame_view(axes: Axes, points_N2: Array) -> None:
    low, high = points_N2.min(axis=0), points_N2.max(axis=0)
    half = 0.55 * max(float((high - low).max()), 1e-2)
    middle = 0.5 * (low + high)
    axes.set_xlim(middle[0] - half, middle[0] + half)
    axes.set_ylim(middle[1] - half, middle[1] + half)
    axes.set_aspect("equal", adjustable="box")


def _draw_surroundings(axes: Axes, known: KnownMap, frame: SceneFrame) -> None:
    right, up = _axes(known)
    answers = frame.answers[0]
    distance_N = np.linalg.norm(answers.points_N3 - frame.T_true[:3, 3], axis=1)[answers.usable_N]
    reach = float(np.quantile(distance_N, SEEN_SHARE)) if len(distance_N) else 1.0
    ahead = frame.T_true[:3, 2] * 0.5 * reach
    middle = frame.T_true[:3, 3] + ahead
    _draw_known(axes, known, 2.0)
    axes.collections[0].set_alpha(0.35)
    for chosen, colour in ((answers.usable_N & ~answers.agrees_N, DISAGREES), (answers.agrees_N, AGREES)):
        points = answers.points_N3[chosen]
        axes.scatter(points[:, right], points[:, up], s=7, color=colour, lw=0, alpha=0.9)
    corners = np.array([middle - 0.7 * reach, middle + 0.7 * reach])
    _frame_view(axes, corners[:, [right, up]])
    _draw_camera(axes, frame, frame.T_true, known, "#000000", wide=True)
    if answers.T_map_camera is not None:
        _draw_camera(axes, frame, answers.T_map_camera, known, "#cc79a7")


def _draw_camera(
    axes: Axes, frame: SceneFrame, T_map_camera: Array, known: KnownMap, colour: str, wide: bool = False
) -> None:
    """A wedge: the camera's place, and the directions to the left and right ends of its view."""
    right, up = _axes(known)
    length = SHARE_OF_VIEW * np.ptp(axes.get_xlim())
    ends = np.array([[frame.rays_N3[:, 0].min(), 0.0, 1.0], [frame.rays_N3[:, 0].max(), 0.0, 1.0]]) * length
    left_end, right_end = ends @ T_map_camera[:3, :3].T + T_map_camera[:3, 3]
    corners = np.array([left_end, T_map_camera[:3, 3], right_end])
    axes.plot(corners[:, right], corners[:, up], "-", color=colour, lw=3.2 if wide else 1.5, solid_joinstyle="round")


def _map_handles() -> list[Line2D]:
    dot: dict[str, Any] = {"ls": "none", "marker": "o", "ms": 4}
    return [
        Line2D([], [], color="#777777", label="points over the drive, in the picture's colours", **dot),
        Line2D([], [], color=AGREES, label="of the frame, agrees", **dot),
        Line2D([], [], color=DISAGREES, label="does not", **dot),
        Line2D([], [], color="#000000", lw=3.2, label="true camera"),
        Line2D([], [], color="#cc79a7", lw=1.5, label="found camera"),
    ]


def mean_colours(rgb_HW3: NDArray[np.uint8] | None, grid: tuple[int, int]) -> Array:
    """Each cell's mean colour (N, 3), 0..1; grey without a picture."""
    rows, columns = grid
    if rgb_HW3 is None:
        return np.full((rows * columns, 3), 0.6)
    height, width = rgb_HW3.shape[0] // rows, rgb_HW3.shape[1] // columns
    blocks = rgb_HW3[: rows * height, : columns * width].reshape(rows, height, columns, width, 3)
    return np.asarray(blocks.mean(axis=(1, 3)).reshape(-1, 3) / 255.0, dtype=float)
