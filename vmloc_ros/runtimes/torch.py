"""The network run by PyTorch, on the CPU or a GPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation
from torch import Tensor

from vmloc_ros.geometry import Array
from vmloc_ros.networks.config import Normalisation
from vmloc_ros.networks.vmloc import VMLoc
from vmloc_ros.runtimes.graphs import PosesGraph, ask, named_pictures, shares_of


@dataclass(frozen=True, eq=False)
class RawPoses:
    """What a network says about N frames.

    Attributes:
        T_map_camera: (N, 4, 4) float64, decoded from the latent mean.
        scatter_N66: covariance of the poses of the latent samples about it (right perturbation, camera axes).
        shares: by expert, (N,): its part of the precision.
        latents_ND: float32, the latent means.
        refused_N: frames whose numbers must not be believed (their pose is a placeholder); None: there are none.
    """

    T_map_camera: Array
    scatter_N66: Array
    shares: dict[str, Array]
    latents_ND: NDArray[np.float32]
    refused_N: NDArray[np.bool_] | None = None


class Runtime(Protocol):
    """One way to run a network. Inputs have the network's size; frames of one call have the same modalities."""

    device: str

    def infer(self, rgb_NHW3: NDArray[np.uint8] | None, depth_NHW: NDArray[np.floating] | None) -> RawPoses:
        """The poses of N frames; an absent modality is None."""
        ...


class TorchRuntime:
    """Eager PyTorch. Deterministic: the pose is that of the latent mean, the scatter comes from fixed noise."""

    def __init__(self, network: VMLoc, normalisation: Normalisation, latent_samples: int, device: str = "cpu") -> None:
        self.device = device
        self._config = network.config
        self._normalisation = normalisation
        graph = PosesGraph(network, normalisation, latent_samples)
        self._graph = graph.to(device=device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]

    def infer(self, rgb_NHW3: NDArray[np.uint8] | None, depth_NHW: NDArray[np.floating] | None) -> RawPoses:
        """See `Runtime`.

        Raises:
            ModelInputError: no modality, sizes that disagree, or one the network has no expert for.
        """
        pictures = named_pictures(self._config, rgb_NHW3, depth_NHW)
        return raw_poses(ask(self._graph, pictures, self.device), self._normalisation)


def raw_poses(said: Mapping[str, Tensor], normalisation: Normalisation) -> RawPoses:
    """Poses from what a `PosesGraph` says."""
    position, log_quat = (said[name].double().cpu().numpy() for name in ("position", "log_quat"))
    return RawPoses(
        *poses_and_scatter(position, log_quat, normalisation),
        dict(shares_of(said)),
        said["mean"].float().cpu().numpy(),
    )


def poses_and_scatter(position_KN3: Array, log_quat_KN3: Array, normalisation: Normalisation) -> tuple[Array, Array]:
    """Camera poses (N, 4, 4) of the first row, and the second moment (N, 6, 6) of the others about it, in camera axes.

    Without other rows (a latent without variance) the scatter is zero. Frames whose numbers are not all finite come out
    as NaN.
    """
    finite_KN3 = np.isfinite(position_KN3) & np.isfinite(log_quat_KN3)
    bad_N = np.logical_not(finite_KN3.all(axis=2).all(axis=0)).reshape(-1)
    position_KN3 = np.where(bad_N[:, None], 0.0, position_KN3)
    log_quat_KN3 = np.where(bad_N[:, None], 0.0, log_quat_KN3)
    reference = Rotation.from_quat(normalisation.rotation_reference_xyzw)
    mounted, lever_3 = Rotation.from_quat(normalisation.mounting[3:]), np.array(normalisation.mounting[:3])
    samples, count = position_KN3.shape[:2]
    rotations = reference * Rotation.from_rotvec(2.0 * log_quat_KN3.reshape(-1, 3))
    R_KN33 = (rotations * mounted).as_matrix().reshape(samples, count, 3, 3)
    arm_KN3 = rotations.apply(lever_3).reshape(samples, count, 3)
    poses = np.tile(np.eye(4), (count, 1, 1))
    poses[:, :3, :3] = R_KN33[0]
    position_N3 = np.array(normalisation.position_mean_m) + normalisation.position_scale_m * position_KN3[0]
    poses[:, :3, 3] = position_N3 + arm_KN3[0]
    if samples == 1:
        poses[bad_N, :3] = np.nan
        return poses, np.where(bad_N[:, None, None], np.nan, np.zeros((count, 6, 6)))
    offsets = np.empty((samples - 1, count, 6))
    moved = normalisation.position_scale_m * (position_KN3[1:] - position_KN3[0]) + arm_KN3[1:] - arm_KN3[0]
    offsets[..., :3] = np.einsum("kni,nij->knj", moved, R_KN33[0])
    relative = np.einsum("nji,knjl->knil", R_KN33[0], R_KN33[1:])
    offsets[..., 3:] = Rotation.from_matrix(relative.reshape(-1, 3, 3)).as_rotvec().reshape(samples - 1, count, 3)
    scatter = np.einsum("kni,knj->nij", offsets, offsets) / (samples - 1)
    poses[bad_N, :3], scatter[bad_N] = np.nan, np.nan
    return poses, scatter
