"""VLocNet run by PyTorch: pictures, the poses before them and the motions between them."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation
from torch import Tensor

from vmloc_ros.batches import targets
from vmloc_ros.errors import ModelInputError
from vmloc_ros.geometry import Array
from vmloc_ros.networks.config import Normalisation
from vmloc_ros.networks.inputs import normalise_rgb
from vmloc_ros.networks.vlocnet import Seen, VLocNet
from vmloc_ros.runtimes.torch import RawPoses, poses_and_scatter
from vmloc_ros.types import Modality


class VLocNetRuntime:
    """Eager PyTorch, deterministic, without memory: who asks keeps what was `Seen`.

    Attributes:
        max_gap_s: frames further apart than this are not compared.
        takes_previous: whether the previous pose makes a difference.
        has_odometry: whether `motions` can be asked.
    """

    def __init__(self, network: VLocNet, normalisation: Normalisation, device: str = "cpu") -> None:
        self.device = device
        self._network = network.to(device=device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
        self._normalisation = normalisation
        self._mean_6 = network.motion_mean.double().cpu().numpy()
        self._deviation_6 = network.motion_deviation.double().cpu().numpy()
        self.max_gap_s = float(network.max_gap_s)
        self.takes_previous = network.config.previous_pose
        self.has_odometry = network.config.odometry

    def infer(self, rgb_NHW3: NDArray[np.uint8] | None, depth_NHW: NDArray[np.floating] | None) -> RawPoses:
        """See `Runtime`: the poses of frames of which nothing is known before them.

        Raises:
            ModelInputError: no picture, a depth image, or another size than the network's.
        """
        if rgb_NHW3 is None or depth_NHW is not None:
            raise ModelInputError("VLocNet takes a camera's picture, and nothing else")
        return self.poses(self.see(rgb_NHW3, odometry=False))

    def see(self, rgb_NHW3: NDArray[np.uint8], odometry: bool = True) -> Seen:
        """The features of N pictures, with those of the odometry's streams or without.

        Raises:
            ModelInputError: another size than the network's.
        """
        config = self._network.config
        if rgb_NHW3.shape[1:3] != (config.height, config.width):
            raise ModelInputError(
                f"{Modality.RGB} is {rgb_NHW3.shape[1:3]}, the network takes {config.height}x{config.width}"
            )
        tensor = torch.from_numpy(np.array(rgb_NHW3)).to(self.device)
        images = normalise_rgb(tensor, self._normalisation).contiguous(memory_format=torch.channels_last)
        with torch.inference_mode():
            if odometry and self.has_odometry:
                return self._network.see(images)
            return Seen(self._network.global_features(images)[1])

    def poses(self, seen: Seen, T_previous_N44: Array | None = None) -> RawPoses:
        """The camera poses of N frames.

        Args:
            seen: of them.
            T_previous_N44: `T_map_camera` of the frame before each; NaN, or no array at all, where it is not known.
        """
        previous = None
        if T_previous_N44 is not None and self.takes_previous:
            previous = self._previous(T_previous_N44).to(self.device)
        with torch.inference_mode():
            latent = self._network.latent(seen.pose_NCHW, previous)
            position, log_quat = self._network.pose(latent)
        T, scatter = poses_and_scatter(
            position.double().cpu().numpy()[None], log_quat.double().cpu().numpy()[None], self._normalisation
        )
        return RawPoses(T, scatter, {Modality.RGB.value: np.ones(len(T))}, latent.float().cpu().numpy())

    def motions(self, before: Seen, now: Seen) -> Array:
        """`T_prev_now` (N, 4, 4) between frames and those before them; NaN where the output is not finite.

        Raises:
            ModelInputError: a network without odometry, or features that were made without it.
        """
        if before.before_NCHW is None or now.now_NCHW is None:
            raise ModelInputError("these features have no odometry stream")
        with torch.inference_mode():
            outputs = self._network.motion(self._network.motion_latent(before.before_NCHW, now.now_NCHW))
        units_N6 = torch.cat(outputs, dim=1).double().cpu().numpy()
        return motion_poses(self._mean_6 + self._deviation_6 * units_N6)

    def _previous(self, T_previous_N44: Array) -> Tensor:
        """Previous poses in network units, and whether each is known (N, 7)."""
        known_N = np.asarray(np.isfinite(T_previous_N44).all(axis=(1, 2)))
        poses = np.where(known_N[:, None, None], T_previous_N44, np.eye(4))
        position, log_quat = targets(poses, self._normalisation)
        return torch.cat([position, log_quat, torch.from_numpy(known_N).float()[:, None]], dim=1)


def motion_vectors(T_map_before_N44: Array, T_map_now_N44: Array) -> Array:
    """Translation and half the rotation vector (N, 6) of `T_before_now`."""
    R_before_map = np.swapaxes(T_map_before_N44[:, :3, :3], 1, 2)
    way = np.einsum("nij,nj->ni", R_before_map, T_map_now_N44[:, :3, 3] - T_map_before_N44[:, :3, 3])
    turn = Rotation.from_matrix(R_before_map @ T_map_now_N44[:, :3, :3]).as_rotvec()
    return np.concatenate([way, 0.5 * turn], axis=1)


def motion_poses(motions_N6: Array) -> Array:
    """The poses (N, 4, 4) of such vectors; NaN where one is not finite."""
    finite_N = np.asarray(np.isfinite(motions_N6).all(axis=1))
    vectors = np.where(finite_N[:, None], motions_N6, 0.0)
    poses = np.tile(np.eye(4), (len(motions_N6), 1, 1))
    poses[:, :3, :3] = Rotation.from_rotvec(2.0 * vectors[:, 3:]).as_matrix()
    poses[:, :3, 3] = vectors[:, :3]
    poses[np.logical_not(finite_N), :3] = np.nan
    return poses
