"""What a training step knows of the cells of its images: where in the map each of them truly lies."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vmloc_ros.geometry import Array
from vmloc_ros.networks.scene_coordinates import nearest_returns
from vmloc_ros.types import PinholeIntrinsics


class SceneTargets(NamedTuple):
    """Of B samples with C cells, row by row.

    Attributes:
        points_B3C: in the map, metres, float32; on the ray through the cell's centre, at the depth of the return
            nearest to it. Where there is none: the camera's position.
        known_BC: whether there is a return.
        shift_B2: columns and rows by which the input was cut out off the centre, to the right and down.
        T_map_camera_B44: of the camera that sees the cells, float32.
    """

    points_B3C: Tensor
    known_BC: Tensor
    shift_B2: Tensor
    T_map_camera_B44: Tensor

    def to(self, device: torch.device) -> SceneTargets:
        """The same on another device."""
        return SceneTargets(*(part.to(device) for part in self))


def scene_targets(
    depth_BHW: NDArray[np.floating],
    T_map_camera_B44: Array,
    shift_B2: NDArray[np.int64],
    camera: PinholeIntrinsics,
    cell: int,
) -> SceneTargets:
    """The targets of samples.

    Args:
        depth_BHW: metres along the optical axis as cut out for the network, without any noise; 0: no return.
        T_map_camera_B44: of the cameras that see them.
        shift_B2: see `SceneTargets`.
        camera: of an input that is cut out of the centre.
        cell: rows and columns of pixels of a cell.
    """
    depth_Bhw = nearest_returns(torch.from_numpy(np.asarray(depth_BHW, dtype=np.float32)), cell).numpy().astype(float)
    _, rows, columns = depth_Bhw.shape
    half = 0.5 * (cell - 1)
    u = (np.arange(columns) * cell + half + shift_B2[:, :1] - camera.cx) / camera.fx
    v = (np.arange(rows) * cell + half + shift_B2[:, 1:] - camera.cy) / camera.fy
    rays = np.ones((len(depth_Bhw), 3, rows, columns))
    rays[:, 0], rays[:, 1] = u[:, None, :], v[:, :, None]
    points = (rays * depth_Bhw[:, None]).reshape(len(depth_Bhw), 3, -1)
    in_map = T_map_camera_B44[:, :3, :3] @ points + T_map_camera_B44[:, :3, 3:]
    return SceneTargets(
        torch.from_numpy(in_map.astype(np.float32)),
        torch.from_numpy(depth_Bhw.reshape(len(depth_Bhw), -1) > 0.0),
        torch.from_numpy(shift_B2.astype(np.float32)),
        torch.from_numpy(T_map_camera_B44.astype(np.float32)),
    )
