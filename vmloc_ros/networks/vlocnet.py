"""VLocNet (A. Valada, N. Radwan, W. Burgard, ICRA 2018): the global pose stream and the Siamese odometry stream."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision import models

from vmloc_ros.networks.encoders import ResidualBlock
from vmloc_ros.networks.vlocnet_config import VLocNetConfig

PREVIOUS = 7
"""Numbers of a previous pose: position and log-quaternion in network units, and whether it is known."""


class Seen(NamedTuple):
    """What the streams make of N pictures before anything else is known.

    Attributes:
        pose_NCHW: of the global stream, before its last stage.
        now_NCHW: of the odometry stream for a picture that is the later one of a pair; None without odometry.
        before_NCHW: for one that is the earlier one.
    """

    pose_NCHW: Tensor
    now_NCHW: Tensor | None = None
    before_NCHW: Tensor | None = None


class VLocNet(nn.Module):
    """The pose of a picture, given the pose of the one before it or not, and the motion between the two.

    Poses are in network units (see `Normalisation`). A motion is `T_prev_now` (camera axes): translation in metres and
    half the rotation vector, less `motion_mean`, in units of `motion_deviation`. These two, and `max_gap_s`, the
    longest time between two frames that may be compared, are those of the training pairs, stored with the weights.
    """

    motion_mean: Tensor
    motion_deviation: Tensor
    max_gap_s: Tensor

    def __init__(self, config: VLocNetConfig) -> None:
        super().__init__()
        self.config = config
        shared, joined = config.shared_stages, config.joined_after
        fused = previous_channels(config) if config.previous_pose else 0
        self.stages = nn.ModuleList(trunk_stages(config, range(config.stages - 1)))
        self.last = trunk_stages(config, range(config.stages - 1, config.stages), extra=fused)[0]
        self.fuse = nn.Linear(PREVIOUS, fused * _area(config)) if fused else None
        self.head = Head(config, stage_channels(config)[-1])
        if config.odometry:
            self.now = nn.ModuleList(trunk_stages(config, range(shared, joined)))
            self.before = nn.ModuleList(trunk_stages(config, range(joined)))
            extra = stage_channels(config)[joined - 1] + shifts(config.correlation)
            channels = odometry_channels(config)
            self.pair = nn.ModuleList(trunk_stages(config, range(joined, config.stages), extra, channels))
            self._start_alike()
            self.motion_head = Head(config, channels[-1])
        self.register_buffer("motion_mean", torch.zeros(6))
        self.register_buffer("motion_deviation", torch.ones(6))
        self.register_buffer("max_gap_s", torch.zeros(()))

    def _start_alike(self) -> None:
        """The stream of the earlier frame starts with the later one's weights, as both do from ImageNet's: what differs
        between their features is then what has moved, and from there each learns its own."""
        later = [*self.stages[: self.config.shared_stages], *self.now]
        for own, other in zip(self.before, later, strict=True):
            own.load_state_dict(other.state_dict())

    def see(self, rgb_NCHW: Tensor) -> Seen:
        """Everything that the streams make of normalised pictures (N, 3, H, W) alone."""
        shared, features = self.global_features(rgb_NCHW)
        if not self.config.odometry:
            return Seen(features)
        return Seen(features, self.now_features(shared), self.before_features(rgb_NCHW))

    def global_features(self, rgb_NCHW: Tensor) -> tuple[Tensor, Tensor]:
        """The global stream after the stages that both tasks share, and before its last stage."""
        shared = self.shared_features(rgb_NCHW)
        features = shared
        for stage in self.stages[self.config.shared_stages :]:
            features = stage(features)
        return shared, features

    def shared_features(self, rgb_NCHW: Tensor) -> Tensor:
        """The first stages, which both tasks share."""
        for stage in self.stages[: self.config.shared_stages]:
            rgb_NCHW = stage(rgb_NCHW)
        return rgb_NCHW

    def now_features(self, shared_NCHW: Tensor) -> Tensor:
        """The odometry stream of the later picture, from the shared features on."""
        for stage in self.now:
            shared_NCHW = stage(shared_NCHW)
        return shared_NCHW

    def before_features(self, rgb_NCHW: Tensor) -> Tensor:
        """The odometry stream of the earlier picture, which shares nothing (the paper's section III-C)."""
        for stage in self.before:
            rgb_NCHW = stage(rgb_NCHW)
        return rgb_NCHW

    def latent(self, pose_NCHW: Tensor, previous_N7: Tensor | None) -> Tensor:
        """fc1 (N, hidden), of the global stream's features and the previous poses.

        Args:
            pose_NCHW: of `see`.
            previous_N7: position, log-quaternion, and 1 where it is known; the first six do not matter where the last
                is 0. None: none is known.
        """
        if self.fuse is not None:
            count, _, rows, columns = pose_NCHW.shape
            if previous_N7 is None:
                previous_N7 = pose_NCHW.new_zeros((count, PREVIOUS), dtype=torch.float32)
            with torch.autocast(pose_NCHW.device.type, enabled=False):
                known_N7 = torch.where(previous_N7[:, 6:] > 0.0, previous_N7, torch.zeros_like(previous_N7))
                fused = self.fuse(known_N7).reshape(count, -1, rows, columns)
            pose_NCHW = torch.cat([pose_NCHW, fused.to(pose_NCHW.dtype)], dim=1)
        return self.head.inner(self.last(pose_NCHW))

    def pose(self, latent_ND: Tensor, keep_ND: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Position and log-quaternion (N, 3) in network units; `keep_ND` is dropout's choices, 0 or 1 / (1 - p)."""
        return self.head.regress(latent_ND, keep_ND)

    def motion_latent(self, before_NCHW: Tensor, now_NCHW: Tensor) -> Tensor:
        """The odometry's fc1 (N, hidden), of the two streams' features."""
        maps = [before_NCHW, now_NCHW]
        if self.config.correlation:
            maps.append(correlation(before_NCHW, now_NCHW, self.config.correlation))
        features = torch.cat(maps, dim=1)
        for stage in self.pair:
            features = stage(features)
        return self.motion_head.inner(features)

    def motion(self, latent_ND: Tensor, keep_ND: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Translation and rotation (N, 3) of `T_prev_now` in motion units; `keep_ND` as in `pose`."""
        return self.motion_head.regress(latent_ND, keep_ND)


def shifts(radius: int) -> int:
    """Channels of a correlation map."""
    return (2 * radius + 1) ** 2 if radius else 0


def correlation(before_NCHW: Tensor, now_NCHW: Tensor, radius: int) -> Tensor:
    """Mean product over the channels of one map with the other shifted, (N, (2 r + 1)^2, H, W); 0 beyond the border.

    A. Dosovitskiy et al., FlowNet, ICCV 2015, eq. 1, for single places.
    """
    rows, columns = now_NCHW.shape[2:]
    padded = functional.pad(before_NCHW, (radius,) * 4)
    size = 2 * radius + 1
    products = [
        (now_NCHW * padded[:, :, dy : dy + rows, dx : dx + columns]).mean(dim=1)
        for dy in range(size)
        for dx in range(size)
    ]
    return torch.stack(products, dim=1)


class Head(nn.Module):
    """Pooled grid, the inner-product layer fc1, and fc2 and fc3 for position and rotation."""

    def __init__(self, config: VLocNetConfig, channels: int) -> None:
        super().__init__()
        self.activation = functional.elu if config.activation == "elu" else functional.relu
        self.reduce: nn.Module = nn.Identity()
        if config.reduced:
            act: nn.Module = nn.ELU() if config.activation == "elu" else nn.ReLU()
            self.reduce = nn.Sequential(
                nn.Conv2d(channels, config.reduced, 1, bias=False), nn.BatchNorm2d(config.reduced), act
            )
            channels = config.reduced
        self.pool = nn.AdaptiveAvgPool2d((config.grid_rows, config.grid_columns))
        self.fc1 = nn.Linear(channels * config.grid_rows * config.grid_columns, config.hidden)
        self.position = nn.Linear(config.hidden, 3)
        self.rotation = nn.Linear(config.hidden, 3)

    def inner(self, features_NCHW: Tensor) -> Tensor:
        """(N, C, H, W) to (N, hidden). Never in mixed precision: bfloat16 has eight bits for a position."""
        grid = torch.flatten(self.pool(self.reduce(features_NCHW)), 1).float()
        with torch.autocast(grid.device.type, enabled=False):
            return self.activation(self.fc1(grid))

    def regress(self, latent_ND: Tensor, keep_ND: Tensor | None) -> tuple[Tensor, Tensor]:
        """(N, hidden) to two times (N, 3)."""
        with torch.autocast(latent_ND.device.type, enabled=False):
            kept = latent_ND if keep_ND is None else latent_ND * keep_ND
            return self.position(kept), self.rotation(kept)


def stage_channels(config: VLocNetConfig) -> list[int]:
    """What every stage of the global stream gives."""
    if config.trunk == "small":
        return config.channels
    return [64, 256, 512, 1024, 2048] if config.trunk == "resnet50" else [64, 64, 128, 256, 512]


def odometry_channels(config: VLocNetConfig) -> list[int]:
    """The same of the odometry stream, whose stages after the joint may have other channels."""
    channels = stage_channels(config)
    return channels[: config.joined_after] + (config.odometry_channels or channels[config.joined_after :])


def previous_channels(config: VLocNetConfig) -> int:
    """Channels of the map that a previous pose becomes."""
    return config.previous_channels or stage_channels(config)[-2]


def _area(config: VLocNetConfig) -> int:
    """Places in the features before the last stage; every halving rounds up."""
    strides = [2] * len(config.channels) if config.trunk == "small" else [4, 1, 2, 2, 2]
    scale = 1
    for stride in strides[:-1]:
        scale *= stride
    return -(-config.height // scale) * -(-config.width // scale)


def trunk_stages(
    config: VLocNetConfig, which: range, extra: int = 0, channels: list[int] | None = None
) -> list[nn.Module]:
    """Stages of a trunk by number (from 0), with random weights.

    Args:
        config: which trunk.
        which: the numbers.
        extra: further channels that the first of them takes.
        channels: of all stages; by default those of the global stream. Trunk `small` only.
    """
    if config.trunk == "small":
        channels = channels or config.channels
        return [
            _small_stage(config, 3 if k == 0 else channels[k - 1], channels[k], k == 0, extra * (k == which.start))
            for k in which
        ]
    resnet = {"resnet18": models.resnet18, "resnet34": models.resnet34, "resnet50": models.resnet50}[config.trunk]
    network = resnet(weights=None)
    first = nn.Sequential(network.conv1, network.bn1, network.relu, network.maxpool)
    every = [first, network.layer1, network.layer2, network.layer3, network.layer4]
    stages: list[nn.Module] = [every[k] for k in which]
    if stages and extra:
        _widen(stages[0], extra)
    if config.activation == "elu":
        for stage in stages:
            _with_elu(stage)
    return stages


def _small_stage(config: VLocNetConfig, inputs: int, outputs: int, stem: bool, extra: int) -> nn.Module:
    if not stem:
        return ResidualBlock(inputs + extra, outputs, 2, config.activation)
    act: nn.Module = nn.ELU(inplace=True) if config.activation == "elu" else nn.ReLU(inplace=True)
    return nn.Sequential(nn.Conv2d(inputs, outputs, 5, 2, 2, bias=False), nn.BatchNorm2d(outputs), act)


def _widen(stage: nn.Module, extra: int) -> None:
    """Lets the first unit of a ResNet's stage take further channels."""
    unit = stage[0]  # type: ignore[index]
    for owner, name in ((unit, "conv1"), (unit.downsample, "0")):
        conv = getattr(owner, name)
        wide = nn.Conv2d(
            conv.in_channels + extra, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, bias=False
        )
        setattr(owner, name, wide)


def _with_elu(module: nn.Module) -> None:
    """Replaces every ReLU by an ELU."""
    for name, child in module.named_children():
        if isinstance(child, nn.ReLU):
            setattr(module, name, nn.ELU(inplace=True))
        else:
            _with_elu(child)
