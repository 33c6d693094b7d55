"""From a frame's images to the size that is stored or shown to a network.

Both modalities are cut to the wanted aspect ratio around the image's centre and resized; nothing is stretched. Colour
is averaged over the pixels it covers. Depth takes the *nearest* valid return of the cell it covers (a sparse lidar
image keeps all its structure; no value is invented between a near and a far surface). No PyTorch here: processes
that only prepare samples do without it.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from vmloc_ros.errors import ModelInputError
from vmloc_ros.types import PinholeIntrinsics


def centre_window(height: int, width: int, rows: int, columns: int) -> tuple[int, int, int, int]:
    """Largest window (x, y, width, height) around the centre of an image with the aspect ratio of rows x columns."""
    window_width = min(width, max(1, round(height * columns / rows)))
    window_height = min(height, max(1, round(width * rows / columns)))
    return (width - window_width) // 2, (height - window_height) // 2, window_width, window_height


def fit_rgb(rgb: NDArray[np.uint8], rows: int, columns: int) -> NDArray[np.uint8]:
    """(H, W, 3) to (rows, columns, 3): centre window, averaged.

    Raises:
        ModelInputError: not an (H, W, 3) uint8 image.
    """
    if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != np.uint8 or 0 in rgb.shape:
        raise ModelInputError(f"an image must be (H, W, 3) uint8, this one is {rgb.shape} {rgb.dtype}")
    x, y, width, height = centre_window(rgb.shape[0], rgb.shape[1], rows, columns)
    window = np.ascontiguousarray(rgb[y : y + height, x : x + width])
    if window.shape[:2] == (rows, columns):
        return window
    mode = cv2.INTER_AREA if width >= columns else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(window, (columns, rows), interpolation=mode), dtype=np.uint8)


def fit_depth(depth_m: NDArray[np.float32], rows: int, columns: int) -> NDArray[np.float32]:
    """(H, W) to (rows, columns) metres, 0 = no return: centre window, the nearest valid return of each cell.

    Raises:
        ModelInputError: not an (H, W) floating-point image.
    """
    if depth_m.ndim != 2 or depth_m.dtype.kind != "f" or 0 in depth_m.shape:
        raise ModelInputError(f"depth must be (H, W) float32 metres, this one is {depth_m.shape} {depth_m.dtype}")
    x, y, width, height = centre_window(depth_m.shape[0], depth_m.shape[1], rows, columns)
    window = np.asarray(depth_m[y : y + height, x : x + width], dtype=np.float32)
    window = np.where(np.isfinite(window) & (window > 0.0), window, np.float32(np.inf))
    for axis, (size, cells) in enumerate(((height, rows), (width, columns))):
        if size >= cells:
            window = np.minimum.reduceat(window, (np.arange(cells) * size) // cells, axis=axis)
        else:
            window = np.take(window, (np.arange(cells) * size) // cells, axis=axis)
    return np.where(np.isfinite(window), window, np.float32(0.0)).astype(np.float32, copy=False)


def fit_intrinsics(camera: PinholeIntrinsics, rows: int, columns: int) -> PinholeIntrinsics:
    """The camera whose picture `fit_rgb` and `fit_depth` make."""
    x, y, width, height = centre_window(camera.height, camera.width, rows, columns)
    return camera.cropped(x, y, width, height).resized(columns, rows)


def centre_crop(height: int, width: int, rows: int, columns: int) -> tuple[slice, slice]:
    """The window without any shift, out of the slightly larger image that training crops from."""
    y, x = (height - rows) // 2, (width - columns) // 2
    return slice(y, y + rows), slice(x, x + columns)
