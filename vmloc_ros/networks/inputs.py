"""From a frame to what the encoders see. Training and every runtime go through this one file, and through `fitting`,
which cuts and resizes without PyTorch."""

from __future__ import annotations

import torch

from vmloc_ros.fitting import centre_crop, centre_window, fit_depth, fit_intrinsics, fit_rgb
from vmloc_ros.networks.config import Normalisation
from vmloc_ros.networks.inputs_config import InputShape
from vmloc_ros.types import Modality

__all__ = [
    "centre_crop",
    "centre_window",
    "fit_depth",
    "fit_intrinsics",
    "fit_rgb",
    "normalise",
    "normalise_depth",
    "normalise_depth_image",
    "normalise_rgb",
]

MIN_DEPTH_M = 0.05
"""Nearer returns are clamped to this before the logarithm."""


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


def normalise_depth_image(depth_NHW: torch.Tensor, normalisation: Normalisation, network: InputShape) -> torch.Tensor:
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


def normalise(modality: str, values: torch.Tensor, normalisation: Normalisation, network: InputShape) -> torch.Tensor:
    """What a modality's encoder sees, (N, C, H, W), of pictures (N, H, W, 3) or of metres (N, H, W)."""
    if modality == Modality.RGB.value:
        return normalise_rgb(values, normalisation)
    if network.depth_encoding == "image":
        return normalise_depth_image(values, normalisation, network)
    return normalise_depth(values, normalisation)
