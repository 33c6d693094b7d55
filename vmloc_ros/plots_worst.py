"""The contact sheet of the frames that a network got most wrong: what it saw, what it said, how sure it was."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize

from vmloc_ros.evaluation import Evaluation
from vmloc_ros.plots import draw_depth_dots, figure_file
from vmloc_ros.trajectory import NANOSECONDS
from vmloc_ros.types import Frame

SHEET = "worst.png"
PANELS = 4
"""Pictures side by side: of two frames with image and depth, or of four with one of them."""
PICTURE_WIDTH, LINE_HEIGHT, BAR_HEIGHT = 2.7, 0.2, 0.5
"""Inches."""
DEPTH_COLOURS, NO_RETURN = "plasma_r", "#b4b4b4"
"""Near is bright, far is dark, as in `plots.draw_depth`."""
DOT_SIZE = 1.2
DENSE = 0.25
"""With returns in more of its pixels than this, depth is drawn as an image, else as dots."""


def plot_worst(path: Path, result: Evaluation) -> Path:
    """Draws the worst frames, largest position error first, numbered as in the report; one depth scale for all.

    Raises:
        ValueError: there is none.
    """
    entries = result.report()["worst"]
    if not entries:
        raise ValueError("there is no frame to draw")
    shown = [worst.shown for worst in result.worst]
    kinds = [name for name in ("rgb", "depth_m") if any(getattr(frame, name) is not None for frame in shown)]
    depths = [frame.depth_m[frame.depth_m > 0] for frame in shown if frame.depth_m is not None]
    far_m = float(np.percentile(np.concatenate([*depths, [1e-3]]), 97))
    columns = min(PANELS // len(kinds), len(entries))
    rows = -(-len(entries) // columns)
    captions = [caption(number, entry, narrow=len(kinds) == 1) for number, entry in enumerate(entries, 1)]
    height = PICTURE_WIDTH * max(_aspect(frame) for frame in shown)
    height += LINE_HEIGHT * max(text.count("\n") + 1 for text in captions)
    size = (columns * len(kinds) * PICTURE_WIDTH, rows * height + (BAR_HEIGHT if depths else 0.0))
    with figure_file(path, size) as figure:
        grid = figure.subplots(rows, columns * len(kinds), squeeze=False)
        for axes in grid.flat:
            axes.set_axis_off()
        for index, frame in enumerate(shown):
            row, column = divmod(index, columns)
            panels = grid[row, column * len(kinds) : (column + 1) * len(kinds)]
            for axes, kind in zip(panels, kinds, strict=True):
                if kind == "rgb":
                    _draw_rgb(axes, frame)
                else:
                    _draw_depth(axes, frame, far_m)
            panels[0].set_title(captions[index], fontsize=7.5, fontweight="normal")
        if depths:
            scale = ScalarMappable(Normalize(0.0, far_m), DEPTH_COLOURS)
            bar = figure.colorbar(scale, ax=grid, location="bottom", shrink=0.4, aspect=40, pad=0.01)
            bar.set_label("depth (m)", fontsize=8)
            bar.ax.tick_params(labelsize=8)
    return path


def caption(number: int, entry: Mapping[str, Any], narrow: bool = False) -> str:
    """Which frame; the error, and what the network expected; what the training set has to offer.

    Three lines over two pictures; over one (`narrow`) a line for each.
    """
    seconds, rest_ns = divmod(int(entry["stamp_ns"]), NANOSECONDS)
    which = f"{number}.  {entry['recording']}  {seconds}.{rest_ns // 1_000_000:03d} s"
    error = f"error {entry['position_m']:.3f} m, {entry['rotation_deg']:.2f} deg"
    stated = f"stated sigma {entry['sigma_m']:.3f} m, {entry['sigma_deg']:.2f} deg; NEES {entry['nees']:.1f}"
    known = [
        f"nearest training {what} {entry[f'{name}_m']:.3f} m, {entry[f'{name}_deg']:.2f} deg"
        for name, what in (("retrieval", "image"), ("nearest_pose", "pose"))
        if f"{name}_m" in entry
    ]
    together = "\n" if narrow else "; "
    return "\n".join([which, together.join([error, stated]), together.join(known)]).rstrip("\n")


def _aspect(frame: Frame) -> float:
    """Height over width of the first picture that the frame has."""
    image = frame.rgb if frame.rgb is not None else frame.depth_m
    return 0.75 if image is None else image.shape[0] / image.shape[1]


def _draw_rgb(axes: Axes, frame: Frame) -> None:
    if frame.rgb is None:
        _draw_absence(axes, "no image")
    else:
        axes.imshow(frame.rgb)


def _draw_depth(axes: Axes, frame: Frame, far_m: float) -> None:
    """A depth camera's image with grey where nothing came back; the few returns of a lidar as dots over the image."""
    if frame.depth_m is None:
        _draw_absence(axes, "no depth")
    elif np.count_nonzero(frame.depth_m) > DENSE * frame.depth_m.size:
        colours = colormaps[DEPTH_COLOURS].with_extremes(bad=NO_RETURN)
        axes.imshow(np.ma.masked_where(frame.depth_m <= 0, frame.depth_m), cmap=colours, vmin=0.0, vmax=far_m)
    else:
        black = np.zeros((*frame.depth_m.shape, 3), dtype=np.uint8)
        draw_depth_dots(axes, black if frame.rgb is None else frame.rgb, frame.depth_m, far_m, DOT_SIZE)


def _draw_absence(axes: Axes, words: str) -> None:
    axes.text(0.5, 0.5, words, transform=axes.transAxes, ha="center", va="center", fontsize=8.5, color="#666666")
