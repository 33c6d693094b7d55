"""Generative Map (M. Guo et al., arXiv:1902.11124): image encoder q(z|I), pose encoder p(z|p), image decoder p(I|z).

Shapes: B frames, D latent dimensions, P places. Pictures are drawn with values in -1..1 (DC-GAN ends in a tanh).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from vmloc_ros.losses import log_quaternion
from vmloc_ros.networks.generative_map_config import SMALLEST, GenerativeMapConfig

LEAK = 0.2
"""Slope of the encoder's leaky ReLUs below zero, as DC-GAN's."""

LEAST_DEVIATION = 1e-2
"""Of a standardised colour, in network units: a black picture stays finite."""


def rotation_matrix(log_quat_B3: Tensor) -> Tensor:
    """Rotation matrices (B, 3, 3) of log-quaternions (half the rotation vector), without any branch at 0."""
    half = log_quat_B3.square().sum(dim=-1, keepdim=True).clamp_min(1e-16).sqrt()
    x, y, z = (torch.sinc(half / math.pi) * log_quat_B3).unbind(-1)
    return quaternion_matrix(torch.stack([x, y, z, torch.cos(half[..., 0])], dim=-1))


def quaternion_matrix(quat_xyzw_B4: Tensor) -> Tensor:
    """Rotation matrices (B, 3, 3) of unit quaternions (B, 4)."""
    x, y, z, w = quat_xyzw_B4.unbind(-1)
    rows = [
        1.0 - 2.0 * (y * y + z * z), 2.0 * (x * y - z * w), 2.0 * (x * z + y * w),
        2.0 * (x * y + z * w), 1.0 - 2.0 * (x * x + z * z), 2.0 * (y * z - x * w),
        2.0 * (x * z - y * w), 2.0 * (y * z + x * w), 1.0 - 2.0 * (x * x + y * y),
    ]  # fmt: skip
    return torch.stack(rows, dim=-1).unflatten(-1, (3, 3))


def matrix_quaternion(R_B33: Tensor) -> Tensor:
    """Unit quaternions xyzw (B, 4) of rotation matrices; differentiable, also at half a turn.

    Each of the four columns is the quaternion times 4 of its own numbers: the longest one loses no digits.
    """
    a, b, c, d, e, f, g, h, i = R_B33.flatten(-2).unbind(-1)
    columns = torch.stack(
        [
            torch.stack([1.0 + a - e - i, b + d, c + g, h - f], dim=-1),
            torch.stack([b + d, 1.0 - a + e - i, f + h, c - g], dim=-1),
            torch.stack([c + g, f + h, 1.0 - a - e + i, d - b], dim=-1),
            torch.stack([h - f, c - g, d - b, 1.0 + a + e + i], dim=-1),
        ],
        dim=-2,
    )
    longest = torch.diagonal(columns, dim1=-2, dim2=-1).argmax(dim=-1)
    chosen = torch.take_along_dim(columns, longest[..., None, None], dim=-2).squeeze(-2)
    return chosen / chosen.square().sum(dim=-1, keepdim=True).sqrt()


class PoseEncoder(nn.Module):
    """g: what is seen from a pose, as the mean of p(z|p), whose variance is 1.

    Smooth (SiLU), because the filter follows its gradient.
    """

    def __init__(self, config: GenerativeMapConfig) -> None:
        super().__init__()
        self._config = config
        layers: list[nn.Module] = []
        width = 6
        if config.pose_features == "fourier":
            width = 3 * (1 + 2 * config.position_octaves) + 9 * (1 + 2 * config.rotation_octaves)
        for units in config.pose_hidden:
            layers += [nn.Linear(width, units), nn.SiLU()]
            width = units
        self.layers = nn.Sequential(*layers, nn.Linear(width, config.latent))

    def features(self, position_B3: Tensor, R_B33: Tensor) -> Tensor:
        """What the first layer sees of positions in network units and rotations from the reference."""
        config = self._config
        if config.pose_features == "plain":
            return torch.cat([position_B3, log_quaternion(matrix_quaternion(R_B33))], dim=-1)
        entries_B9 = R_B33.flatten(-2)
        return torch.cat(
            [waves(position_B3, config.position_octaves), waves(entries_B9, config.rotation_octaves)], dim=-1
        )

    def forward(self, position_B3: Tensor, R_B33: Tensor) -> Tensor:
        """The means (B, D)."""
        result: Tensor = self.layers(self.features(position_B3, R_B33))
        return result


def waves(x_BN: Tensor, octaves: int) -> Tensor:
    """x, sin(pi 2^k x) and cos(pi 2^k x) for k below `octaves`: (B, N (1 + 2 octaves))."""
    scaled = [math.pi * 2.0**k * x_BN for k in range(octaves)]
    return torch.cat([x_BN, *(torch.sin(s) for s in scaled), *(torch.cos(s) for s in scaled)], dim=-1)


class ImageEncoder(nn.Module):
    """q(z|I): DC-GAN's discriminator with two linear heads."""

    def __init__(self, config: GenerativeMapConfig) -> None:
        super().__init__()
        self._standardised = config.standardised
        self._floor = config.variance_floor
        channels = [3, config.channels // 8, config.channels // 4, config.channels // 2, config.channels]
        layers: list[nn.Module] = []
        for index in range(4):
            layers.append(nn.Conv2d(channels[index], channels[index + 1], 4, 2, 1, bias=index == 0))
            if index:  # DC-GAN: none on the first layer
                layers.append(nn.BatchNorm2d(channels[index + 1]))
            layers.append(nn.LeakyReLU(LEAK, inplace=True))
        self.trunk = nn.Sequential(*layers)
        features = config.channels * (config.height // SMALLEST) * (config.width // SMALLEST)
        self.mean = nn.Linear(features, config.latent)
        self.variance = nn.Linear(features, config.latent)
        nn.init.normal_(self.variance.weight, std=0.1 / math.sqrt(features))
        nn.init.constant_(self.variance.bias, math.log(math.expm1(config.initial_variance)))

    def forward(self, images_NCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance (N, D). The trunk may run in mixed precision, the heads never do."""
        if self._standardised:
            variance, mean = torch.var_mean(images_NCHW, dim=(2, 3), keepdim=True, correction=0)
            images_NCHW = (images_NCHW - mean) / (variance.sqrt() + LEAST_DEVIATION)
        features = torch.flatten(self.trunk(images_NCHW), 1).float()
        with torch.autocast(images_NCHW.device.type, enabled=False):
            return self.mean(features), functional.softplus(self.variance(features)) + self._floor


class ImageDecoder(nn.Module):
    """The mean of p(I|z): DC-GAN's generator."""

    def __init__(self, config: GenerativeMapConfig) -> None:
        super().__init__()
        self._grid = (config.channels, config.picture_height // SMALLEST, config.picture_width // SMALLEST)
        self.first = nn.Linear(config.latent, math.prod(self._grid))
        channels = [config.channels, config.channels // 2, config.channels // 4, config.channels // 8, 3]
        layers: list[nn.Module] = [nn.BatchNorm2d(channels[0]), nn.ReLU(inplace=True)]
        for index in range(4):
            last = index == 3
            layers.append(nn.ConvTranspose2d(channels[index], channels[index + 1], 4, 2, 1, bias=last))
            layers += [] if last else [nn.BatchNorm2d(channels[index + 1]), nn.ReLU(inplace=True)]
        self.layers = nn.Sequential(*layers)

    def forward(self, z_BD: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) in -1..1, float32."""
        grid = self.first(z_BD).unflatten(1, self._grid).contiguous(memory_format=torch.channels_last)
        return torch.tanh(self.layers(grid).float())


class GenerativeMap(nn.Module):
    """The three networks, and what a search and a comparison need to know of the training data.

    Attributes:
        places: position in network units and quaternion xyzw from the reference, of P training poses; flat (P * 7),
            because flat arrays are stored in single precision.
        mean_picture: of the training frames, values in 0..1, flat (3 * H * W).
        colour_mean, colour_deviation: (3,), of the encoder's input, values in 0..1: what turns it into a picture again.
    """

    places: Tensor
    mean_picture: Tensor
    colour_mean: Tensor
    colour_deviation: Tensor

    def __init__(self, config: GenerativeMapConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = ImageEncoder(config)
        self.pose = PoseEncoder(config)
        self.decoder = ImageDecoder(config)
        nowhere = torch.tensor([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0])
        self.register_buffer("places", nowhere.repeat(config.places))
        self.register_buffer("mean_picture", torch.full((3 * config.picture_height * config.picture_width,), 0.5))
        self.register_buffer("colour_mean", torch.full((3,), 0.5))
        self.register_buffer("colour_deviation", torch.full((3,), 0.25))

    def place_poses(self) -> tuple[Tensor, Tensor]:
        """Positions (P, 3) and rotations (P, 3, 3) of the places."""
        places_P7 = self.places.unflatten(0, (-1, 7))
        return places_P7[:, :3], quaternion_matrix(places_P7[:, 3:])

    def pictures(self, images_NCHW: Tensor) -> Tensor:
        """The encoder's input as it would have been drawn: (N, 3, rows, columns), values in -1..1."""
        config = self.config
        colours = images_NCHW.float() * self.colour_deviation[:, None, None] + self.colour_mean[:, None, None]
        size = config.picture_height, config.picture_width
        small = functional.interpolate(colours, size, mode="bilinear", align_corners=False, antialias=True)
        return 2.0 * small.clamp(0.0, 1.0) - 1.0

    def views(self, position_B3: Tensor, R_B33: Tensor) -> Tensor:
        """What is expected from poses: (B, 3, rows, columns), values in -1..1."""
        result: Tensor = self.decoder(self.pose(position_B3, R_B33))
        return result
