"""From a frame to what the encoders see. Training and every runtime go through this one file.

Both modalities are cut to the network's aspect ratio around the image's centre and resized; nothing is stretched.
Colour is averaged over the pixels it covers. Depth takes the *nearest* valid return of the cell it covers (a sparse
lidar image keeps all its structure; no value is invented between a near and a far surface).
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from vmloc_ros.errors import ModelInputError
from vmloc_ros.networks.config import NetworkConfig, Normalisation
from vmloc_ros.types import Modality, PinholeIntrinsics

MIN_DEPTH_M = 0.05
"""Nearer returns are clamped to this before the logarithm."""


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


def normalise_rgb(rgb_NHW3: torch.Tensor, normalisation: Normalisation) -> torch.Tensor:
    """uint8, or float in 0..255, to (N, 3, H, W) float32 of zero mean and unit deviation over the training set."""
    mean = torch.tensor(normalisation.rgb_mean, device=rgb_NHW3.device) * 255.0
    std = torch.tensor(normalisation.rgb_std, device=rgb_NHW3.device) * 255.0
    return ((rgb_NHW3.float() - mean) / std).permute(0, 3, 1, 2)


def normalise_depth(depth_NHW: torch.Tensor, normalisation: Normalisation) -> torch.Tensor:
    """Metres (0 = no return) to (N, 2, H, W): normalised log depth (0 where invalid) and validity."""
    depth = depth_NHW.float()
    valid = (depth > 0.0).float()
    scaled = (depth.clamp_min(MIN_DEPTH_M).log() - normalisation.depth_log_mean) / normalisation.depth_log_std
    return torch.stack([scaled * valid, valid], dim=1)


def normalise_depth_image(
    depth_NHW: torch.Tensor, normalisation: Normalisation, network: NetworkConfig
) -> torch.Tensor:
    """Metres (0 = no return) to (N, 3, H, W): the picture of depth that the paper's network is fed with.

    Grey is depth / `depth_image_white_m`, at most 1, on three equal channels; then `(grey - mean) / std` by channel. A
    pixel without return is black or white, as the configuration says: the encoder cannot tell it from a very near or a
    far one. The published code does the same to 8-bit pictures, with the colour images' statistics.
    """
    depth = depth_NHW.float()
    grey = (depth / network.depth_image_white_m).clamp_max(1.0)
    if network.depth_image_empty == "white":
        grey = torch.where(depth > 0.0, grey, 1.0)
    mean = torch.tensor(normalisation.depth_image_mean, device=depth.device).view(1, 3, 1, 1)
    std = torch.tensor(normalisation.depth_image_std, device=depth.device).view(1, 3, 1, 1)
    return (grey.unsqueeze(1) - mean) / std


def normalise(
    modality: str, values: torch.Tensor, normalisation: Normalisation, network: NetworkConfig
) -> torch.Tensor:
    """What a modality's encoder sees, (N, C, H, W), of pictures (N, H, W, 3) or of metres (N, H, W)."""
    if modality == Modality.RGB.value:
        return normalise_rgb(values, normalisation)
    if network.depth_encoding == "image":
        return normalise_depth_image(values, normalisation, network)
    return normalise_depth(values, normalisation)
