"""Scene coordinates run by PyTorch: the network says where every cell lies, the solver finds the camera."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vmloc_ros.errors import ModelInputError
from vmloc_ros.geometry import Array
from vmloc_ros.networks.config import Normalisation
from vmloc_ros.networks.inputs import normalise
from vmloc_ros.networks.scene_coordinates import SceneCoordinates, nearest_returns
from vmloc_ros.networks.scene_coordinates_config import SceneCard, SceneLimits
from vmloc_ros.networks.vmloc import Present
from vmloc_ros.runtimes.torch import RawPoses
from vmloc_ros.scene_alignment import Alignment, AlignmentSettings, Cells, align
from vmloc_ros.scene_belief import agreement
from vmloc_ros.types import Modality, Mode

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


class SceneRuntime:
    """Eager PyTorch, on the CPU or a GPU. Deterministic.

    Attributes:
        scene: limits that decide whether cells agree; None before they have been measured (in training).
    """

    def __init__(
        self,
        network: SceneCoordinates,
        normalisation: Normalisation,
        device: str = "cpu",
        scene: SceneCard | None = None,
    ) -> None:
        self.device = device
        self.scene = scene
        self.config = network.config
        self._network = network.to(device=device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
        self._normalisation = normalisation
        with torch.inference_mode():
            self._rays_2hw = self._network.rays()
        self._scale_m = float(network.scale)

    def limits(self, mode: Mode) -> SceneLimits | None:
        """When an answer in a mode is believed; None where that has not been measured."""
        return None if self.scene is None else self.scene.limits.get(mode.value)

    def settings(self, mode: Mode) -> AlignmentSettings:
        """What the solver is told for frames of a mode."""
        limits = self.limits(mode)
        if limits is None:
            return AlignmentSettings(inlier_m=UNMEASURED_INLIER * self._scale_m)
        return AlignmentSettings(inlier_m=limits.inlier_m, inlier_share=limits.inlier_share)

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
        config, inputs = self.config, dict[str, Present]()
        counts = {len(array) for array in (rgb_NHW3, depth_NHW) if array is not None}
        if len(counts) != 1:
            raise ModelInputError("no modality is present" if not counts else "modalities of different frame counts")
        count = counts.pop()
        rows_N = torch.arange(count, device=self.device)
        for modality, array in ((Modality.RGB, rgb_NHW3), (Modality.DEPTH, depth_NHW)):
            if array is None:
                continue
            if array.shape[1:3] != (config.height, config.width):
                raise ModelInputError(
                    f"{modality} is {array.shape[1:3]}, the network takes {config.height}x{config.width}"
                )
            values = torch.from_numpy(np.array(array)).to(self.device)
            images = normalise(modality.value, values, self._normalisation, config)
            inputs[modality.value] = Present(images.contiguous(memory_format=torch.channels_last), rows_N)
        with torch.inference_mode():
            experts = self._network.encode(inputs, self._rays_2hw)
            mixture = self._network.fuse(experts, count)
            points_NC3, variance_NC3 = self._network.answer(mixture)
            cells = self._cells(points_NC3, variance_NC3, depth_NHW, seen_NHW)
            alignment = align(cells, self.settings(_mode(inputs)))
        context_ND = torch.cat([expert.context_ND.float() for expert in experts.values()], dim=1)
        shares = {name: share.double().cpu().numpy() for name, share in mixture.shares.items()}
        return SceneReading(cells, alignment, shares, context_ND.cpu().numpy(), _mode(inputs))

    def _cells(
        self,
        points_NC3: Tensor,
        variance_NC3: Tensor,
        depth_NHW: NDArray[np.floating] | None,
        seen_NHW: NDArray[np.bool_] | None,
    ) -> Cells:
        """What the solver takes."""
        count, cell = len(points_NC3), self.config.cell
        rays_13C = torch.cat([self._rays_2hw, torch.ones_like(self._rays_2hw[:, :1])], dim=1).flatten(2)
        depth_NC, usable_NC = points_NC3.new_zeros(points_NC3.shape[:2]), torch.isfinite(points_NC3).all(dim=2)
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

    def poses(self, reading: SceneReading) -> RawPoses:
        """The poses of a reading, see `infer`."""
        found = reading.alignment
        solved_N = found.solved_B.cpu().numpy()
        limits = self.limits(reading.mode)
        refused_N = ~solved_N if limits is None else agreement(reading.cells, found, limits).refused(limits)
        T_N44, information_N66 = (
            found.T_map_camera_B44.double().cpu().numpy(),
            found.information_B66.double().cpu().numpy(),
        )
        nowhere = np.eye(4)
        nowhere[:3, 3] = self._normalisation.position_mean_m
        T_N44[~solved_N], information_N66[~solved_N] = nowhere, np.eye(6) / self._scale_m**2
        scatter_N66 = np.asarray(np.linalg.inv(information_N66), dtype=float)
        return RawPoses(T_N44, scatter_N66, reading.shares, reading.context_ND, refused_N)


def _mode(inputs: dict[str, Present]) -> Mode:
    if len(inputs) == 2:
        return Mode.RGB_DEPTH
    return Mode.RGB_ONLY if Modality.RGB.value in inputs else Mode.DEPTH_ONLY
