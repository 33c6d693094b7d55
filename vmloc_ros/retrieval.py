"""The baseline that every localizer must beat: the pose of the training image that looks most alike.

It goes with every model, as a file of its own; `networks.retrieval` compares alike, and is a model like any other.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save as save_safetensors
from scipy.spatial.transform import Rotation

from vmloc_ros import files
from vmloc_ros.checkpoint import read_tensors
from vmloc_ros.errors import CheckpointError
from vmloc_ros.geometry import Array, pose_from_quaternion
from vmloc_ros.networks.inputs import fit_rgb
from vmloc_ros.networks.retrieval import normalised, thumbnail
from vmloc_ros.samples import SampleStore

__all__ = ["Retrieval", "normalised", "thumbnail", "write_retrieval"]

MAX_IMAGES = 4000
"""More training images are thinned out evenly."""


def write_retrieval(path: Path, store: SampleStore, samples: NDArray[np.int64]) -> int:
    """Writes the thumbnails and poses of the samples that have an image; returns how many (0: no file)."""
    samples = samples[store.has_rgb[samples]]
    samples = samples[:: max(1, -(-len(samples) // MAX_IMAGES))]
    if not len(samples):
        return 0
    poses = store.T_map_camera[samples]
    tensors = {
        "thumbnails": torch.from_numpy(np.stack([thumbnail(store.rgb[index]) for index in samples])),
        "positions_m": torch.from_numpy(poses[:, :3, 3].copy()),
        "quats_xyzw": torch.from_numpy(Rotation.from_matrix(poses[:, :3, :3]).as_quat()),
        "input_size": torch.tensor([store.camera.height, store.camera.width]),
    }
    files.write_bytes(path, save_safetensors(tensors))
    return len(samples)


class Retrieval:
    """Training images to look up."""

    def __init__(self, path: Path) -> None:
        """
        Raises:
            CheckpointError: missing, truncated, or without the tensors that `write_retrieval` writes.
        """
        tensors, _ = read_tensors(path)
        try:
            self._thumbnails = normalised(tensors["thumbnails"].numpy())
            self._positions = tensors["positions_m"].double().numpy()
            self._quats = tensors["quats_xyzw"].double().numpy()
            self._rows, self._columns = (int(v) for v in tensors["input_size"])
        except (KeyError, ValueError) as error:
            raise CheckpointError(f"{path}: lacks {error}; train again to write it") from error
        count = len(self._thumbnails)
        if not count or self._positions.shape != (count, 3) or self._quats.shape != (count, 4):
            raise CheckpointError(f"{path}: holds {count} thumbnails for {len(self._positions)} poses; train again")

    def __len__(self) -> int:
        return len(self._thumbnails)

    def nearest_pose(self, T_map_camera: Array) -> Array:
        """The training pose nearest in position, whatever its image looks like: no look-up can be nearer.

        It may look another way. Of several at one place it is the one that is turned least.
        """
        position, quat = T_map_camera[:3, 3], Rotation.from_matrix(T_map_camera[:3, :3]).as_quat()
        distance_N = np.linalg.norm(self._positions - position, axis=1)
        index = int(np.lexsort((-np.abs(self._quats @ quat), distance_N))[0])
        return pose_from_quaternion(self._positions[index], self._quats[index])

    def nearest(self, rgb: NDArray[np.uint8]) -> Array:
        """T_map_camera of the training image most like this one."""
        query = normalised(thumbnail(fit_rgb(rgb, self._rows, self._columns))[None])[0]
        index = int(np.argmax(self._thumbnails @ query))
        return pose_from_quaternion(self._positions[index], self._quats[index])
