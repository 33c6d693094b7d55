"""Encoders: an image to the mean and log-variance of a Gaussian over the latent space (VMLoc, "Feature Encoders")."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision import models

from vmloc_ros.networks.config import NetworkConfig

ActivationName = Literal["relu", "elu"]


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; the first may halve the image."""

    def __init__(self, inputs: int, outputs: int, stride: int, activation: ActivationName = "relu") -> None:
        super().__init__()
        self.activation = functional.elu if activation == "elu" else functional.relu
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C', H / stride, W / stride)."""
        inner = self.activation(self.norm1(self.conv1(x_NCHW)))
        return self.activation(self.norm2(self.conv2(inner)) + self.shortcut(x_NCHW))


def build_trunk(config: NetworkConfig, inputs: int) -> tuple[nn.Module, int]:
    """A convolutional trunk for `inputs` channels, and how many channels it gives. No weights are downloaded."""
    if config.trunk == "small":
        stem, *stages = config.channels
        layers: list[nn.Module] = [
            nn.Conv2d(inputs, stem, 5, 2, 2, bias=False),
            nn.BatchNorm2d(stem),
            nn.ReLU(inplace=True),
        ]
        channels = stem
        for outputs in stages:
            layers.append(ResidualBlock(channels, outputs, 2))
            layers += [ResidualBlock(outputs, outputs, 1) for _ in range(config.blocks - 1)]
            channels = outputs
        return nn.Sequential(*layers), channels
    resnet = {"resnet18": models.resnet18, "resnet34": models.resnet34, "resnet50": models.resnet50}[config.trunk]
    network = resnet(weights=None)
    channels = network.fc.in_features
    if inputs != 3:
        network.conv1 = nn.Conv2d(inputs, 64, 7, 2, 3, bias=False)
    return nn.Sequential(*list(network.children())[:-2]), channels


class Encoder(nn.Module):
    """Trunk, pooled grid, and two parallel linear heads; with `fusion: concatenation` the head of the mean alone.

    The grid keeps *where* things are in the image; global pooling (1x1) is the paper's.
    """

    def __init__(self, config: NetworkConfig, inputs: int) -> None:
        super().__init__()
        self.trunk, channels = build_trunk(config, inputs)
        self.reduce: nn.Module = nn.Identity()
        if config.reduced:
            self.reduce = nn.Sequential(
                nn.Conv2d(channels, config.reduced, 1, bias=False),
                nn.BatchNorm2d(config.reduced),
                nn.ReLU(inplace=True),
            )
            channels = config.reduced
        self.pool = nn.AdaptiveAvgPool2d((config.grid_rows, config.grid_columns))
        features = channels * config.grid_rows * config.grid_columns
        self.floor = config.variance_floor
        self.mean = nn.Linear(features, config.expert_latent)
        self.variance: nn.Linear | None = None
        if config.fusion == "poe":
            self.variance = nn.Linear(features, config.expert_latent)
            nn.init.normal_(self.variance.weight, std=0.1 / math.sqrt(features))
            nn.init.constant_(self.variance.bias, math.log(math.expm1(config.initial_variance)))

    def forward(self, x_NCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Mean (N, D) and log-variance (N, D) = log(softplus(raw) + floor); minus infinity where there is no variance.

        The trunk may run in mixed precision; the heads never do (bfloat16 has eight bits for a position).
        """
        features = torch.flatten(self.pool(self.reduce(self.trunk(x_NCHW))), 1).float()
        with torch.autocast(x_NCHW.device.type, enabled=False):
            mean = self.mean(features)
            if self.variance is None:
                return mean, torch.full_like(mean, -math.inf)
            return mean, torch.log(functional.softplus(self.variance(features)) + self.floor)
