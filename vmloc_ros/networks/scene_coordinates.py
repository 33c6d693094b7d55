"""Experts over scene coordinates: for every cell of an image, a Gaussian over where in the map it lies.

VMLoc's fusion (K. Zhou, C. Chen et al., AAAI 2021, eqs. 4-5) moved from one latent vector per image to every cell's map
coordinate: precisions of the modalities that are there add up, the prior's included. What a cell's expert knows with
several anchors is a mixture, one Gaussian about each anchor; the product is taken anchor by anchor.

Shapes: B frames, N of them with a modality, K anchors, C = rows x columns of cells, row by row. Coordinates are in
network units about each anchor: `metres = anchor + scale * units`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from vmloc_ros.errors import ModelInputError
from vmloc_ros.networks.encoders import ResidualBlock
from vmloc_ros.networks.scene_coordinates_config import SceneCoordinatesConfig
from vmloc_ros.networks.vmloc import Present
from vmloc_ros.types import Modality

LARGEST_LOG_DEVIATION = 2.0
"""A cell that knows nothing is e^2 units wide, wider than the prior."""
FARTHEST_M = 1000.0


class CellExpert(NamedTuple):
    """One modality's opinion on the cells of the N samples that have it.

    Attributes:
        logits_NKC: how likely each anchor is (softmax over K).
        mean_NK3C, logvar_NK3C: of the coordinate about each anchor, network units by map axis.
        context_ND: what the cells were told of the whole image.
        rows_N: which samples of the batch these are.
    """

    logits_NKC: Tensor
    mean_NK3C: Tensor
    logvar_NK3C: Tensor
    context_ND: Tensor
    rows_N: Tensor


class CellMixture(NamedTuple):
    """The product of the experts: per cell a mixture of Gaussians over the anchors.

    Attributes:
        logits_BKC, mean_BK3C, variance_BK3C: as of the experts.
        shares: by modality (B,), its part of the precision of the likeliest anchor, averaged over cells and axes.
    """

    logits_BKC: Tensor
    mean_BK3C: Tensor
    variance_BK3C: Tensor
    shares: Mapping[str, Tensor]


class ImageNorm(nn.BatchNorm2d):
    """Batch norm of one number per channel and image (N, C, 1, 1).

    A training batch may show a modality in a single image, which has no variance: that is normalised as at run time.
    """

    def forward(self, x_NC11: Tensor) -> Tensor:
        """The same shape."""
        if self.training and len(x_NC11) == 1:
            mean, variance = self.running_mean, self.running_var
            return functional.batch_norm(x_NC11, mean, variance, self.weight, self.bias, False, 0.0, self.eps)
        return super().forward(x_NC11)


class CellEncoder(nn.Module):
    """Trunk, context, and the head that runs on every cell."""

    def __init__(self, config: SceneCoordinatesConfig, inputs: int, extra: int) -> None:
        """
        Args:
            config: of the network.
            inputs: channels of the image.
            extra: channels that each cell's head is told besides: its ray, and for depth its point.
        """
        super().__init__()
        self._config = config
        stem, *stages = config.channels
        layers: list[nn.Module] = [
            nn.Conv2d(inputs, stem, 5, 2, 2, bias=False),
            nn.BatchNorm2d(stem),
            nn.ReLU(inplace=True),
        ]
        channels = stem
        for number, outputs in enumerate(stages):
            layers.append(ResidualBlock(channels, outputs, 2))
            last = number == len(stages) - 1
            layers += [ResidualBlock(outputs, outputs, 1) for _ in range(config.blocks - 1 if last else 0)]
            channels = outputs
        self.trunk = nn.Sequential(*layers)
        self.context: nn.Module | None = None
        if config.context:
            self.context = context_branch(config, channels)
        head: list[nn.Module] = []
        width = channels + extra + config.context
        for units in config.hidden:
            head += [nn.Conv2d(width, units, 1, bias=False), nn.BatchNorm2d(units), nn.ReLU(inplace=True)]
            width = units
        self.head = nn.Sequential(*head)
        self.last = nn.Conv2d(width, config.anchors * 7, 1)
        self._floor = math.log(config.least_deviation)
        nn.init.normal_(self.last.weight, std=0.1 / math.sqrt(width))
        # The bounded log-deviation starts at log(initial_deviation).
        start = (math.log(config.initial_deviation) - self._floor) / (LARGEST_LOG_DEVIATION - self._floor)
        start = min(max(start, 1e-3), 1.0 - 1e-3)
        with torch.no_grad():
            bias = torch.zeros(7 * config.anchors)
            bias[4 * config.anchors :] = math.log(start / (1.0 - start))
            self.last.bias = nn.Parameter(bias)

    def forward(self, images_NCHW: Tensor, extra_NEhw: Tensor, rows_N: Tensor) -> CellExpert:
        """The expert. The trunk may run in mixed precision, the last layer never does: bfloat16 has eight bits."""
        features = self.trunk(images_NCHW)
        told = [features, extra_NEhw.to(features.dtype)]
        context_ND = features.new_zeros(len(features), 0)
        if self.context is not None:
            context_ND = self.context(features)
            told.append(context_ND[:, :, None, None].expand(-1, -1, *features.shape[2:]))
        cells = self.head(torch.cat([part.to(features.dtype) for part in told], dim=1)).float()
        anchors = self._config.anchors
        with torch.autocast(images_NCHW.device.type, enabled=False):
            raw_NDC = self.last(cells).flatten(2)
            logits, mean, spread = raw_NDC.split([anchors, 3 * anchors, 3 * anchors], dim=1)
            # Bounded on both sides: a variance that runs away to 0 or infinity takes the training with it.
            log_deviation = self._floor + (LARGEST_LOG_DEVIATION - self._floor) * torch.sigmoid(spread)
        return CellExpert(
            logits, mean.unflatten(1, (anchors, 3)), 2.0 * log_deviation.unflatten(1, (anchors, 3)), context_ND, rows_N
        )


def context_branch(config: SceneCoordinatesConfig, channels: int) -> nn.Sequential:
    """From a trunk's features to what every cell is told of the whole image, (N, context)."""
    layers: list[nn.Module] = []
    for outputs in config.context_channels:
        layers.append(ResidualBlock(channels, outputs, 2))
        channels = outputs
    grid = (config.context_rows, config.context_columns)
    return nn.Sequential(
        *layers,
        nn.AdaptiveAvgPool2d(grid),
        nn.Conv2d(channels, config.context, grid, bias=False),
        ImageNorm(config.context),
        nn.ReLU(inplace=True),
        nn.Flatten(),
    )


class SceneCoordinates(nn.Module):
    """All experts, and what is known of the map and of the camera.

    Attributes:
        anchors: (K * 3,) flat, because flat arrays are stored in single precision; metres in the map.
        scale: (1,), metres of a network unit.
        camera: (4,), fx, fy, cx, cy in pixels of the network's input.
        depth_log: (2,), mean and standard deviation of the logarithm of depth, as in `Normalisation`.
    """

    anchors: Tensor
    scale: Tensor
    camera: Tensor
    depth_log: Tensor

    def __init__(self, config: SceneCoordinatesConfig) -> None:
        super().__init__()
        self.config = config
        extra = {Modality.RGB.value: 2, Modality.DEPTH.value: 2 + 4}
        channels = {Modality.RGB.value: 3, Modality.DEPTH.value: 4 if config.depth_fill > 1 else 2}
        self.encoders = nn.ModuleDict(
            {name: CellEncoder(config, channels[name], extra[name]) for name in config.modalities}
        )
        self.register_buffer("anchors", torch.zeros(3 * config.anchors))
        self.register_buffer("scale", torch.ones(1))
        self.register_buffer(
            "camera", torch.tensor([config.width, config.width, 0.5 * config.width, 0.5 * config.height]).float()
        )
        self.register_buffer("depth_log", torch.tensor([1.0, 1.0]))

    def rays(self, shift_B2: Tensor | None = None) -> Tensor:
        """Directions through the cells' centres, x / z and y / z, (B, 2, rows, columns); B is 1 without shifts.

        Args:
            shift_B2: columns and rows by which an input was cut out further to the right and down (training).
        """
        rows, columns = self.config.grid
        fx, fy, cx, cy = self.camera.unbind()
        half = 0.5 * (self.config.cell - 1)
        x = torch.arange(columns, device=self.camera.device) * self.config.cell + half
        y = torch.arange(rows, device=self.camera.device) * self.config.cell + half
        shift_B2 = self.camera.new_zeros(1, 2) if shift_B2 is None else shift_B2
        u = ((x + shift_B2[:, :1] - cx) / fx)[:, None, :].expand(-1, rows, -1)
        v = ((y + shift_B2[:, 1:] - cy) / fy)[:, :, None].expand(-1, -1, columns)
        return torch.stack([u, v], dim=1)

    def encode(self, inputs: Mapping[str, Present], rays_B2hw: Tensor) -> dict[str, CellExpert]:
        """The expert of every modality that at least one sample has.

        Args:
            inputs: normalised images by modality.
            rays_B2hw: of all B samples, or of one for all.

        Raises:
            ModelInputError: a modality this network has no expert for, or nothing at all.
        """
        unknown = set(inputs) - set(self.encoders)
        if unknown:
            raise ModelInputError(f"this network has no expert for {', '.join(sorted(unknown))}")
        experts = {}
        for name, present in inputs.items():
            if not len(present.rows_N) and not present.elsewhere:
                continue
            own = rays_B2hw[present.rows_N] if len(rays_B2hw) > 1 else rays_B2hw.expand(len(present.rows_N), -1, -1, -1)
            images, extra = present.images_NCHW, own
            if name == Modality.DEPTH.value:
                extra = torch.cat([own, self._cell_points(images, own)], dim=1)
                images = thickened(images, self.config.depth_fill)
            experts[name] = self.encoders[name](images, extra, present.rows_N)
        if not experts:
            raise ModelInputError("no modality is present")
        return experts

    def _cell_points(self, images_NCHW: Tensor, rays_N2hw: Tensor) -> Tensor:
        """What depth says of each cell in camera axes (N, 4, h, w): x, y, z in network units, and whether it does."""
        logs_NHW = images_NCHW[:, 0].float() * self.depth_log[1] + self.depth_log[0]
        metres = torch.where(images_NCHW[:, 1] > 0.5, logs_NHW.exp(), 0.0).clamp(0.0, FARTHEST_M)
        depth_Nhw = nearest_returns(metres, self.config.cell)
        points = torch.cat([rays_N2hw, torch.ones_like(rays_N2hw[:, :1])], dim=1) * depth_Nhw[:, None] / self.scale
        return torch.cat([points, (depth_Nhw[:, None] > 0.0).to(points.dtype)], dim=1)

    def fuse(self, experts: Mapping[str, CellExpert], batch: int) -> CellMixture:
        """The product of the experts that are given, and of the prior."""
        return product_of_cells(experts, batch)

    def answer(self, mixture: CellMixture) -> tuple[Tensor, Tensor]:
        """The likeliest anchor's Gaussian of each cell, in the map: means in metres and variances (B, C, 3)."""
        best_BC = mixture.logits_BKC.argmax(dim=1)
        chosen = best_BC[:, None, None, :].expand(-1, 1, 3, -1)
        mean = torch.gather(mixture.mean_BK3C, 1, chosen)[:, 0].transpose(1, 2)
        variance = torch.gather(mixture.variance_BK3C, 1, chosen)[:, 0].transpose(1, 2)
        return self.anchors.unflatten(0, (-1, 3))[best_BC] + self.scale * mean, self.scale.square() * variance


def product_of_cells(experts: Mapping[str, CellExpert], batch: int) -> CellMixture:
    """Precisions add up, the prior's 1 included; so do the logarithms of the anchors' chances.

    Args:
        experts: by modality; one at least.
        batch: B. A sample that no expert names gets the prior.
    """
    first = next(iter(experts.values()))
    logits = first.logits_NKC.new_zeros(batch, *first.logits_NKC.shape[1:])
    precision = first.mean_NK3C.new_ones(batch, *first.mean_NK3C.shape[1:])
    weighted = torch.zeros_like(precision)
    parts: dict[str, Tensor] = {}
    for name, expert in experts.items():
        own = torch.exp(-expert.logvar_NK3C)
        if len(expert.rows_N) == batch:  # all of them, in order
            parts[name] = own
            logits, weighted = logits + expert.logits_NKC, weighted + own * expert.mean_NK3C
        else:
            parts[name] = torch.zeros_like(precision).index_add(0, expert.rows_N, own)
            logits = logits.index_add(0, expert.rows_N, expert.logits_NKC)
            weighted = weighted.index_add(0, expert.rows_N, own * expert.mean_NK3C)
        precision = precision + parts[name]
    best = logits.argmax(dim=1)[:, None, None, :].expand(-1, 1, 3, -1)
    shares = {
        name: torch.gather(part.detach() / precision.detach(), 1, best).mean(dim=(1, 2, 3))
        for name, part in parts.items()
    }
    return CellMixture(logits, weighted / precision, 1.0 / precision, shares)


def thickened(images_N2HW: Tensor, window: int) -> Tensor:
    """Depth images (log depth, validity) with two more channels: both averaged over the returns of a window.

    A lidar's returns fall elsewhere in every image of the same wall; their average hardly does. A window of 1 changes
    nothing.
    """
    if window == 1:
        return images_N2HW
    near = functional.avg_pool2d(images_N2HW * images_N2HW[:, 1:], window, 1, window // 2)
    mean, density = near.split(1, dim=1)
    return torch.cat([images_N2HW, mean / density.clamp_min(1e-3), density], dim=1)


def nearest_returns(depth_NHW: Tensor, cell: int) -> Tensor:
    """Each cell's depth (N, H / cell, W / cell): of the return nearest to its centre, 0 where it has none.

    Of returns that are equally near the first counts, row by row, so that the answer is always the same. A depth that
    is not positive and finite is no return.
    """
    depth_NHW = torch.where((depth_NHW > 0.0) & (depth_NHW < math.inf), depth_NHW, 0.0)
    blocks = depth_NHW.unflatten(2, (-1, cell)).unflatten(1, (-1, cell)).transpose(2, 3).flatten(3)
    offset = torch.arange(cell, device=depth_NHW.device) - 0.5 * (cell - 1)
    distance = (offset[:, None].square() + offset.square()).flatten()
    rank = torch.argsort(torch.argsort(distance, stable=True))
    chosen = torch.where(blocks > 0.0, rank, cell * cell).argmin(dim=3, keepdim=True)
    return torch.gather(blocks, 3, chosen)[..., 0]
