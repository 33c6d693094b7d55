"""One frame from pictures to pose for `vmloc bench`: scene coordinates, and VMLoc as its paper describes it.

Both are built as they are at run time, with random weights: the numbers cost nothing, but the solver's work depends on
them. So the whole network over scene coordinates runs, then what it said is put aside, and the solver gets cells of a
room as a trained network would tell them.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vmloc_ros.commands.bench_scene import COLUMNS, ROWS, SceneFrame
from vmloc_ros.networks.config import NetworkConfig, Normalisation
from vmloc_ros.networks.scene_coordinates import SceneCoordinates
from vmloc_ros.networks.scene_coordinates_config import SceneCoordinatesConfig
from vmloc_ros.networks.vmloc import VMLoc
from vmloc_ros.runtimes.scene_coordinates import EagerCells, SceneReading, SceneRuntime
from vmloc_ros.runtimes.torch import RawPoses, TorchRuntime

LATENT_SAMPLES = 16
"""Of VMLoc's covariance, as `vmloc train` sets it."""
NORMALISATION = Normalisation(
    rgb_mean=[0.5] * 3,
    rgb_std=[0.25] * 3,
    depth_log_mean=1.0,
    depth_log_std=0.5,
    position_mean_m=[0.0] * 3,
    position_scale_m=1.0,
    rotation_reference_xyzw=[0.0, 0.0, 0.0, 1.0],
)


class ToldCells:
    """The network is asked, and answers with a room's cells. Implements `CellNetwork`."""

    def __init__(self, network: EagerCells, told: SceneFrame) -> None:
        self._network, self._told = network, told
        self.device, self.config = network.device, network.config
        self.rays_12hw, self.scale_m = network.rays_12hw, network.scale_m

    def ask(self, pictures: Mapping[str, NDArray[np.generic]]) -> Mapping[str, Tensor]:
        """See `CellNetwork`."""
        said = self._network.ask(pictures)
        return {**said, "points": self._told.cells.points_BN3, "variance": self._told.cells.variance_BN3}


class SceneFromPictures:
    """Scene coordinates with the default configuration, and one frame of both modalities."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        config, told = SceneCoordinatesConfig(), SceneFrame(depth=True)
        if config.grid != (ROWS, COLUMNS):
            raise ValueError(f"the room has {ROWS}x{COLUMNS} cells, the network {config.grid[0]}x{config.grid[1]}")
        network = SceneCoordinates(config)
        first, last = (told.cells.rays_BN3[0, index, :2] for index in (0, -1))
        pixels = config.cell * (torch.tensor([COLUMNS, ROWS]) - 1)
        centre = 0.5 * (torch.tensor([config.width, config.height]) - 1)
        network.camera.copy_(torch.cat([pixels / (last - first), centre]))
        rng = np.random.default_rng(0)
        self.T_map_camera = told.T_map_camera
        self._rgb = rng.integers(0, 256, (1, config.height, config.width, 3), dtype=np.uint8)
        cells_m = told.cells.depth_BN.reshape(1, ROWS, COLUMNS).numpy()
        self._depth_m = cells_m.repeat(config.cell, axis=1).repeat(config.cell, axis=2)
        self._runtime = SceneRuntime(ToldCells(EagerCells(network, NORMALISATION, "cpu"), told), NORMALISATION)

    def read(self) -> SceneReading:
        """Network and solver."""
        return self._runtime.read(self._rgb, self._depth_m)


class PublishedFromPictures:
    """VMLoc with two ResNet-34 at 256x256 in eager PyTorch, and one frame of both modalities."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        config = NetworkConfig(
            width=256,
            height=256,
            trunk="resnet34",
            grid_rows=1,
            grid_columns=1,
            reduced=0,
            depth_encoding="image",
            latent=1024,
            hidden=1024,
            dropout=0.5,
        )
        rng = np.random.default_rng(0)
        self._rgb = rng.integers(0, 256, (1, 256, 256, 3), dtype=np.uint8)
        self._depth_m = rng.uniform(2.0, 60.0, (1, 256, 256)).astype(np.float32)
        self._runtime = TorchRuntime(VMLoc(config), NORMALISATION, LATENT_SAMPLES, "cpu")

    def infer(self) -> RawPoses:
        """The pose and the scatter of the latent samples."""
        return self._runtime.infer(self._rgb, self._depth_m)
