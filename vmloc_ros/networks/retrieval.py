"""Training images to look up, as a network whose weights are their thumbnails and poses.

Images are compared as 16x12 thumbnails of zero mean and unit length, so brightness and contrast do not matter.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation
from torch import Tensor, nn

from vmloc_ros.geometry import Array
from vmloc_ros.networks.retrieval_config import RetrievalConfig

ROWS, COLUMNS = 12, 16
MIN_DEVIATION = 0.5
"""A thumbnail that varies by less than this (of 255) in every colour shows nothing that could be recognised."""


def thumbnail(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(H, W, 3) to (12, 16, 3)."""
    return np.asarray(cv2.resize(image, (COLUMNS, ROWS), interpolation=cv2.INTER_AREA), dtype=np.uint8)


def normalised(thumbnails: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(N, 12, 16, 3) to (N, 576), zero mean and unit length each; a constant image gives zeros."""
    flat = thumbnails.reshape(len(thumbnails), -1).astype(np.float32)
    flat -= flat.mean(axis=1, keepdims=True)
    return np.asarray(flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6), dtype=np.float32)


def constant(thumbnails: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Which of (N, 12, 16, 3) thumbnails show one colour and nothing else (N,)."""
    return np.asarray(thumbnails.std(axis=(1, 2)).max(axis=1) < MIN_DEVIATION)


class RetrievalNetwork(nn.Module):
    """Training images: K thumbnails and the poses T_map_camera that they were taken from; nothing is learnt.

    The poses are kept as vectors, in double precision: matrices may be stored at half precision, which is half a metre
    a kilometre from the map's origin.
    """

    thumbnails: Tensor
    positions_m: Tensor
    quats_xyzw: Tensor

    def __init__(self, config: RetrievalConfig) -> None:
        super().__init__()
        self.config = config
        count = config.images
        self.register_buffer("thumbnails", torch.zeros(count, ROWS, COLUMNS, 3, dtype=torch.uint8))
        self.register_buffer("positions_m", torch.zeros(3 * count, dtype=torch.float64))
        self.register_buffer("quats_xyzw", torch.tensor([0.0, 0.0, 0.0, 1.0], dtype=torch.float64).repeat(count))

    def keep(self, thumbnails: NDArray[np.uint8], T_map_camera: Array) -> None:
        """Takes N images (N, 12, 16, 3) and their poses (N, 4, 4), N >= 1, in the place of what was kept."""
        rows = np.linspace(0, len(thumbnails) - 1, self.config.images).round().astype(int)
        quats = Rotation.from_matrix(T_map_camera[rows, :3, :3]).as_quat()
        self.thumbnails.copy_(torch.from_numpy(thumbnails[rows]))
        self.positions_m.copy_(torch.from_numpy(T_map_camera[rows, :3, 3].reshape(-1)))
        self.quats_xyzw.copy_(torch.from_numpy(quats.reshape(-1)))

    def poses(self) -> Array:
        """T_map_camera of the images that are kept, (K, 4, 4)."""
        result = np.tile(np.eye(4), (self.config.images, 1, 1))
        result[:, :3, 3] = self.positions_m.cpu().numpy().reshape(-1, 3)
        result[:, :3, :3] = Rotation.from_quat(self.quats_xyzw.cpu().numpy().reshape(-1, 4)).as_matrix()
        return result
