"""Random changes of training pictures. Every sample's changes follow from its own numbers and seed alone.

So a picture is changed in the same way whatever other samples are prepared beside it: a process that holds a part of a
batch prepares that part, and training on several processes sees the pictures that one process would.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vmloc_ros.geometry import Array
from vmloc_ros.training_config import AugmentationConfig

CONTRAST, BRIGHTNESS, COLOUR = slice(0, 1), slice(1, 2), slice(2, 5)
DROPOUT, ERASE, BOX = 5, 6, slice(7, 11)
"""What the uniform numbers of a sample are for."""


class Draws(NamedTuple):
    """The random choices for N pictures of one modality.

    Attributes:
        uniform_NU: (N, 11) in [0, 1); see `CONTRAST` and the others.
        seeds_N: of the numbers per pixel.
    """

    uniform_NU: Array
    seeds_N: NDArray[np.int64]

    def of(self, rows: NDArray[np.int64]) -> Draws:
        """Those of some pictures."""
        return Draws(self.uniform_NU[rows], self.seeds_N[rows])

    def in_clips(self, frames: int) -> Draws:
        """Those of clips: alike for all frames of one, but for the numbers per pixel (noise does not stand still)."""
        seeds = self.seeds_N[:, None] + 2 * np.arange(frames)
        return Draws(np.repeat(self.uniform_NU, frames, axis=0), seeds.ravel())

    def spread(self, which: slice, width: float) -> Tensor:
        """1 +- width, shaped (N, 1, 1, 1 or 3)."""
        return torch.from_numpy(1.0 + width * (2.0 * self.uniform_NU[:, None, None, which] - 1.0)).float()

    def per_pixel(self, shape: tuple[int, ...], normal: bool) -> Tensor:
        """Standard normal, or uniform, numbers (N, *shape) float32."""
        result, generator = torch.empty(len(self.seeds_N), *shape), torch.Generator()
        for picture, seed in zip(result, self.seeds_N, strict=True):
            generator.manual_seed(int(seed) + normal)
            (torch.randn if normal else torch.rand)(picture.shape, generator=generator, out=picture)
        return result


def draw(count: int, generator: np.random.Generator) -> Draws:
    """The choices for `count` pictures."""
    return Draws(generator.random((count, BOX.stop)), generator.integers(2**62, size=count))


def change_rgb(rgb_NHW3: Tensor, config: AugmentationConfig, draws: Draws) -> Tensor:
    """Brightness, contrast, colour and noise; 0..255 float32 in and out. The input is used up."""
    gain = draws.spread(BRIGHTNESS, config.brightness) * draws.spread(COLOUR, config.colour)
    contrast = draws.spread(CONTRAST, config.contrast)
    mean = rgb_NHW3.mean(dim=(1, 2, 3), keepdim=True)
    changed = rgb_NHW3.mul_(contrast * gain).add_(mean * gain * (1.0 - contrast))
    if config.noise > 0.0:
        changed.add_(draws.per_pixel(tuple(changed.shape[1:]), normal=True), alpha=255.0 * config.noise)
    return changed.clamp_(0.0, 255.0)


def change_depth(depth_NHW: Tensor, config: AugmentationConfig, draws: Draws) -> Tensor:
    """Relative noise, and some returns dropped; metres float32, 0 = no return. The input is used up."""
    shape = tuple(depth_NHW.shape[1:])
    if config.depth_noise > 0.0:
        depth_NHW.addcmul_(depth_NHW, draws.per_pixel(shape, normal=True), value=config.depth_noise)
    if config.depth_dropout > 0.0:
        share = torch.from_numpy(config.depth_dropout * draws.uniform_NU[:, DROPOUT, None, None]).float()
        depth_NHW.mul_(draws.per_pixel(shape, normal=False) >= share)
    return depth_NHW.clamp_min_(0.0)


def erase(images_NCHW: Tensor, config: AugmentationConfig, draws: Draws) -> None:
    """Sets one box to zero (the mean colour, or no return) in some of the normalised images, in place."""
    _, _, height, width = images_NCHW.shape
    for n in np.flatnonzero(draws.uniform_NU[:, ERASE] < config.erase_chance):
        tall, wide, down, right = draws.uniform_NU[n, BOX]
        h, w = 1 + int(tall * config.erase_share * (height - 1)), 1 + int(wide * config.erase_share * (width - 1))
        y, x = int(down * (height - h + 1)), int(right * (width - w + 1))
        images_NCHW[n, :, y : y + h, x : x + w] = 0.0
