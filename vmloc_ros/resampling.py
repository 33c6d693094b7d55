"""A camera's picture as another camera would have taken it from the same place: pixels are matched by their rays.

Both cameras are ideal and look the same way, so rows and columns are resampled apart from each other. Colour is
averaged over the pixels that a target pixel covers (interpolated where it covers less than one); depth takes the
nearest return of those whose centres it covers, and else of the pixel it lies in. No number is made up for what was not
seen.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from vmloc_ros.errors import ModelInputError
from vmloc_ros.types import Array, PinholeIntrinsics

EDGE_PX = 0.02
"""A target pixel may stick out of the source picture by so much of a source pixel, and still counts as seen."""


class Axis(NamedTuple):
    """How target pixels lie along an axis of the source: pixel i is centred at `scale * i + offset`.

    Attributes:
        scale: source pixels per target pixel.
        offset: where the centre of target pixel 0 lies, in source pixels.
        size, cells: pixels of the source and of the target.
    """

    scale: float
    offset: float
    size: int
    cells: int

    @property
    def centres(self) -> Array:
        """Of the target's pixels, in source pixels."""
        return np.asarray(self.scale * np.arange(self.cells) + self.offset, dtype=np.float64)

    @property
    def seen(self) -> NDArray[np.bool_]:
        """Target pixels that lie wholly in the source picture."""
        first, last = self.centres - 0.5 * self.scale, self.centres + 0.5 * self.scale
        return np.asarray((first >= -0.5 - EDGE_PX) & (last <= self.size - 0.5 + EDGE_PX))


def axes_between(source: PinholeIntrinsics, target: PinholeIntrinsics) -> tuple[Axis, Axis]:
    """The vertical and the horizontal axis.

    Raises:
        ModelInputError: focal lengths that are no positive numbers.
    """
    if not (np.isfinite([source.fx, source.fy, source.cx, source.cy]).all() and min(source.fx, source.fy) > 0.0):
        raise ModelInputError(f"camera_info: focal lengths {source.fx}, {source.fy} are not those of a camera")
    v, u = source.fy / target.fy, source.fx / target.fx
    return (
        Axis(v, source.cy - v * target.cy, source.height, target.height),
        Axis(u, source.cx - u * target.cx, source.width, target.width),
    )


def largest_shift_px(source: PinholeIntrinsics, target: PinholeIntrinsics) -> float:
    """How far apart the cameras see one ray, at most over the target's picture; in pixels of the target's size."""
    axes = axes_between(source.resized(target.width, target.height), target)
    return max(float(np.abs(axis.centres - np.arange(axis.cells)).max()) for axis in axes)


def resample_rgb(rgb: NDArray[np.uint8], source: PinholeIntrinsics, target: PinholeIntrinsics) -> NDArray[np.uint8]:
    """(H, W, 3) of the source to the target's size; black where the source sees nothing.

    Raises:
        ModelInputError: not an (H, W, 3) uint8 image of the source's size.
    """
    if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != np.uint8 or 0 in rgb.shape:
        raise ModelInputError(f"an image must be (H, W, 3) uint8, this one is {rgb.shape} {rgb.dtype}")
    rows, columns = axes_between(source.resized(rgb.shape[1], rgb.shape[0]), target)
    values = rgb.astype(np.float32).reshape(rgb.shape[0], -1)
    tall = (_weights(rows) @ values).reshape(rows.cells, rgb.shape[1], 3)
    wide = _weights(columns) @ tall.transpose(1, 0, 2).reshape(rgb.shape[1], -1)
    picture = wide.reshape(columns.cells, rows.cells, 3).transpose(1, 0, 2)
    return np.clip(np.rint(picture), 0.0, 255.0).astype(np.uint8)


def resample_depth(
    depth_m: NDArray[np.float32], source: PinholeIntrinsics, target: PinholeIntrinsics
) -> NDArray[np.float32]:
    """(H, W) metres along the optical axis to the target's size, 0 = no return. z is the same for both cameras.

    Args:
        depth_m: may have another size than the source's picture; it shows the same view.

    Raises:
        ModelInputError: not an (H, W) floating-point image.
    """
    if depth_m.ndim != 2 or depth_m.dtype.kind != "f" or 0 in depth_m.shape:
        raise ModelInputError(f"depth must be (H, W) float32 metres, this one is {depth_m.shape} {depth_m.dtype}")
    window = np.asarray(depth_m, dtype=np.float32)
    window = np.where(np.isfinite(window) & (window > 0.0), window, np.float32(np.inf))
    for number, axis in enumerate(axes_between(source.resized(depth_m.shape[1], depth_m.shape[0]), target)):
        window = _nearest_along(window, axis, number)
    return np.where(np.isfinite(window), window, np.float32(0.0)).astype(np.float32, copy=False)


def seen_by(source: PinholeIntrinsics, target: PinholeIntrinsics) -> NDArray[np.bool_]:
    """Which of the target's pixels (H, W) the source sees wholly."""
    rows, columns = axes_between(source, target)
    return np.logical_and(rows.seen[:, None], columns.seen[None, :])


def _weights(axis: Axis) -> csr_matrix:
    """(cells, size): each row the share of every source pixel in a target pixel; zeros outside of the picture."""
    width = max(axis.scale, 1.0)  # narrower than a pixel: a box of one pixel's width interpolates
    edges = np.arange(axis.size + 1) - 0.5
    first, last = axis.centres - 0.5 * width, axis.centres + 0.5 * width
    reach = int(np.ceil(width)) + 1
    starts = np.floor(first + 0.5).astype(int)
    pixels = starts[:, None] + np.arange(reach)
    inside = (pixels >= 0) & (pixels < axis.size)
    safe = np.clip(pixels, 0, axis.size - 1)
    overlap = np.minimum(last[:, None], edges[safe + 1]) - np.maximum(first[:, None], edges[safe])
    values = np.where(inside, np.maximum(overlap, 0.0), 0.0)
    total = values.sum(axis=1, keepdims=True)
    values = np.where(total >= 0.5 * width, values / np.maximum(total, 1e-9), values / width)  # at the border: what is
    rows = np.repeat(np.arange(axis.cells), reach)
    return csr_matrix((values.ravel().astype(np.float32), (rows, safe.ravel())), shape=(axis.cells, axis.size))


def _nearest_along(window: NDArray[np.float32], axis: Axis, number: int) -> NDArray[np.float32]:
    """The least value of the source pixels whose centres each target pixel covers; where it covers none, the value of
    the pixel that its centre lies in; infinite outside of the picture."""
    target_of = np.floor((np.arange(axis.size) - axis.offset) / axis.scale + 0.5)
    bounds = np.searchsorted(target_of, np.arange(axis.cells + 1))  # own pixels of target i: bounds[i] to bounds[i + 1]
    border = np.full_like(np.take(window, [0], axis=number), np.inf)
    covered = np.take(window, np.arange(bounds[0], bounds[-1]), axis=number)
    least = np.minimum.reduceat(np.concatenate([covered, border], axis=number), bounds[:-1] - bounds[0], axis=number)
    centre = np.floor(axis.centres + 0.5).astype(int)
    outside = (centre < 0) | (centre >= axis.size)
    inside = np.take(np.concatenate([window, border], axis=number), np.where(outside, axis.size, centre), axis=number)
    shape = (-1, 1) if number == 0 else (1, -1)
    return np.where((bounds[1:] > bounds[:-1]).reshape(shape), least, inside)
