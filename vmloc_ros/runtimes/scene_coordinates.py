"""Scene coordinates: the network says where every cell lies, the solver finds the camera."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vmloc_ros.geometry import Array
from vmloc_ros.networks.config import Normalisation
from vmloc_ros.networks.scene_coordinates import SceneCoordinates, nearest_returns
from vmloc_ros.networks.scene_coordinates_config import SceneCard, SceneCoordinatesConfig, SceneLimits
from vmloc_ros.runtimes.graphs import CellsGraph, ask, named_pictures, shares_of
from vmloc_ros.runtimes.torch import RawPoses
from vmloc_ros.scene_alignment import Alignment, AlignmentSettings, Cells, align
from vmloc_ros.scene_belief import Agreement, agreement
from vmloc_ros.types import Modality, Mode

CLOSE_WITH_DEPTH, CLOSE_WITHOUT = 0.5, 1.0
"""Most cells lie this much nearer to the right pose than the farthest that still agree with it. Chosen on validation
drives of a town and a kitchen."""
UNMEASURED_INLIER = 0.06
"""Before a card has measured it, cells agree that lie within this share of the map's scale."""


@dataclass(frozen=True, eq=False)
class SceneReading:
    """What the network and the solver say about N frames.

    Attributes:
        cells: what every cell said.
        alignment: the camera that fits them best.
        shares: by expert, (N,), its part of the precision.
        context_ND: float32, what the cells were told of the whole image, modalities side by side.
        mode: what the frames showed.
    """

    cells: Cells
    alignment: Alignment
    shares: dict[str, Array]
    context_ND: NDArray[np.float32]
    mode: Mode


class CellNetwork(Protocol):
    """What says where cells lie, by whatever means.

    Attributes:
        device: where the solver runs as well.
        rays_12hw: directions through the cells' centres, see `SceneCoordinates.rays`.
        scale_m: metres of a network unit.
    """

    device: str
    config: SceneCoordinatesConfig
    rays_12hw: Tensor
    scale_m: float

    def ask(self, pictures: Mapping[str, NDArray[np.generic]]) -> Mapping[str, Tensor]:
        """What a `CellsGraph` says of pictures."""
        ...


class EagerCells:
    """The network run by PyTorch, on the CPU or a GPU."""

    def __init__(self, network: SceneCoordinates, normalisation: Normalisation, device: str) -> None:
        graph = CellsGraph(network, normalisation)
        self._graph = graph.to(device=device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
        self.device, self.config = device, network.config
        self.rays_12hw, self.scale_m = self._graph.rays_12hw, float(network.scale)

    def ask(self, pictures: Mapping[str, NDArray[np.generic]]) -> Mapping[str, Tensor]:
        """See `CellNetwork`."""
        return ask(self._graph, pictures, self.device)


class SceneRuntime:
    """A network over scene coordinates and the solver. Deterministic.

    Attributes:
        scene: limits that decide whether cells agree; None before they have been measured (in training).
        scale_m: metres of a network unit.
    """

    def __init__(
        self,
        network: SceneCoordinates | CellNetwork,
        normalisation: Normalisation,
        device: str = "cpu",
        scene: SceneCard | None = None,
    ) -> None:
        """
        Args:
            network: PyTorch's, which is run here on `device`; or what runs one somewhere of its own.
            normalisation: of the network.
            device: `cpu` or `cuda:n`.
            scene: see above.
        """
        if isinstance(network, SceneCoordinates):
            network = EagerCells(network, normalisation, device)
        self.device = network.device
        self.scene = scene
        self.config = network.config
        self._network = network
        self._normalisation = normalisation
        self.scale_m = network.scale_m

    def limits(self, mode: Mode) -> SceneLimits | None:
        """When an answer in a mode is believed; None where that has not been measured."""
        return None if self.scene is None else self.scene.limits.get(mode.value)

    def settings(self, mode: Mode) -> AlignmentSettings:
        """What the solver is told for frames of a mode."""
        limits = self.limits(mode)
        if limits is None:
            return AlignmentSettings(inlier_m=UNMEASURED_INLIER * self.scale_m)
        close = CLOSE_WITHOUT if mode is Mode.RGB_ONLY else CLOSE_WITH_DEPTH
        return AlignmentSettings(inlier_m=limits.inlier_m, inlier_share=limits.inlier_share, close=close)

    def infer(self, rgb_NHW3: NDArray[np.uint8] | None, depth_NHW: NDArray[np.floating] | None) -> RawPoses:
        """See `Runtime`. The scatter is the inverse of the information at the solution.

        A frame that has no solution gets a pose all the same, the middle of the map, and is `refused`; so is one whose
        pose is not to be believed by the limits in `scene`, where these have been measured.

        Raises:
            ModelInputError: no modality, or another size than the network's.
        """
        return self.poses(self.read(rgb_NHW3, depth_NHW))

    def read(
        self,
        rgb_NHW3: NDArray[np.uint8] | None,
        depth_NHW: NDArray[np.floating] | None,
        seen_NHW: NDArray[np.bool_] | None = None,
    ) -> SceneReading:
        """What network and solver say.

        Args:
            rgb_NHW3, depth_NHW: of the network's size, as the training camera would have seen it; None where absent.
            seen_NHW: which pixels there are; a cell that is not all there does not count. By default all are.

        Raises:
            ModelInputError: as `infer`.
        """
        pictures = named_pictures(self.config, rgb_NHW3, depth_NHW)
        mode = _mode(pictures)
        said = self._network.ask(pictures)
        with torch.inference_mode():
            cells = self._cells(said["points"], said["variance"], depth_NHW, seen_NHW)
            alignment = align(cells, self.settings(mode))
        return SceneReading(cells, alignment, dict(shares_of(said)), said["context"].cpu().numpy(), mode)

    def _cells(
        self,
        points_NC3: Tensor,
        variance_NC3: Tensor,
        depth_NHW: NDArray[np.floating] | None,
        seen_NHW: NDArray[np.bool_] | None,
    ) -> Cells:
        """What the solver takes."""
        count, cell = len(points_NC3), self.config.cell
        rays_12hw = self._network.rays_12hw
        rays_13C = torch.cat([rays_12hw, torch.ones_like(rays_12hw[:, :1])], dim=1).flatten(2)
        depth_NC = points_NC3.new_zeros(points_NC3.shape[:2])
        usable_NC = torch.ones_like(depth_NC, dtype=torch.bool)  # what is not finite agrees with nothing, and counts
        if depth_NHW is not None:
            depth_NC = self.cell_depths(depth_NHW)
        if seen_NHW is not None:
            seen = torch.from_numpy(seen_NHW).to(self.device)
            usable_NC = usable_NC & seen.unflatten(2, (-1, cell)).unflatten(1, (-1, cell)).all(dim=4).all(
                dim=2
            ).flatten(1)
        return Cells(points_NC3, variance_NC3, rays_13C.transpose(1, 2).expand(count, -1, -1), depth_NC, usable_NC)

    def cell_depths(self, depth_NHW: NDArray[np.floating]) -> Tensor:
        """Depth of every cell (N, C), metres; 0 where there is no return."""
        metres = torch.from_numpy(np.array(depth_NHW, dtype=np.float32)).to(self.device)
        return nearest_returns(metres, self.config.cell).flatten(1)

    def agreement(self, reading: SceneReading) -> Agreement | None:
        """What speaks for the poses of a reading; None where limits have not been measured."""
        limits = self.limits(reading.mode)
        if limits is None:
            return None
        return agreement(reading.cells, reading.alignment, limits, self.settings(reading.mode))

    def poses(self, reading: SceneReading, agreed: Agreement | None = None) -> RawPoses:
        """The poses of a reading, see `infer`.

        Args:
            reading: of N frames.
            agreed: what `agreement` has said of it, where it has been asked.
        """
        found = reading.alignment
        solved_N = found.solved_B.cpu().numpy()
        limits, agreed = self.limits(reading.mode), agreed or self.agreement(reading)
        refused_N = ~solved_N if limits is None or agreed is None else agreed.refused(limits)
        T_N44, information_N66 = (
            found.T_map_camera_B44.double().cpu().numpy(),
            found.information_B66.double().cpu().numpy(),
        )
        nowhere = np.eye(4)
        nowhere[:3, 3] = self._normalisation.position_mean_m
        T_N44[~solved_N], information_N66[~solved_N] = nowhere, np.eye(6) / self.scale_m**2
        scatter_N66 = np.asarray(np.linalg.inv(information_N66), dtype=float)
        return RawPoses(T_N44, scatter_N66, reading.shares, reading.context_ND, refused_N)


def _mode(pictures: Mapping[str, NDArray[np.generic]]) -> Mode:
    if len(pictures) == 2:
        return Mode.RGB_DEPTH
    return Mode.RGB_ONLY if Modality.RGB.value in pictures else Mode.DEPTH_ONLY
