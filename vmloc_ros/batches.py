"""Batches of training samples, augmented. Everything random comes from one seed: a batch can be made again."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation
from torch import Tensor

from vmloc_ros.geometry import Array
from vmloc_ros.networks.config import Normalisation
from vmloc_ros.networks.inputs import MIN_DEPTH_M, normalise
from vmloc_ros.networks.vmloc import Present
from vmloc_ros.samples import SampleStore
from vmloc_ros.training_config import AugmentationConfig, TrainingConfig
from vmloc_ros.types import Modality


class Batch(NamedTuple):
    """What one training step sees.

    Attributes:
        inputs: by modality, only the samples that show it.
        position_B3, log_quat_B3: targets in network units.
        samples: their indices in the store.
    """

    inputs: dict[str, Present]
    position_B3: Tensor
    log_quat_B3: Tensor
    samples: NDArray[np.int64]

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device."""
        inputs = {k: Present(p.images_NCHW.to(device), p.rows_N.to(device)) for k, p in self.inputs.items()}
        return Batch(inputs, self.position_B3.to(device), self.log_quat_B3.to(device), self.samples)


def measure_normalisation(store: SampleStore, indices: NDArray[np.int64]) -> Normalisation:
    """Statistics of the training samples (at most 500 of them for the pictures)."""
    some = indices[:: max(1, len(indices) // 500)]
    with_rgb, with_depth = some[store.has_rgb[some]], some[store.has_depth[some]]
    rgb_mean, rgb_std = np.full(3, 0.5), np.full(3, 0.25)
    if len(with_rgb):
        pixels = store.rgb[with_rgb].reshape(-1, 3).astype(np.float32) / 255.0
        rgb_mean, rgb_std = pixels.mean(axis=0), np.maximum(pixels.std(axis=0), 0.02)
    log_mean, log_std = 1.0, 1.0
    if len(with_depth):
        depth = store.depth_m[with_depth].astype(np.float32)
        logs = np.log(np.maximum(depth[depth > 0.0], MIN_DEPTH_M))
        if len(logs):
            log_mean, log_std = float(logs.mean()), max(float(logs.std()), 0.05)
    poses = store.T_map_camera[indices]
    mean = poses[:, :3, 3].mean(axis=0)
    scale = float(np.sqrt(np.square(poses[:, :3, 3] - mean).mean()))
    return Normalisation(
        rgb_mean=[float(v) for v in rgb_mean],
        rgb_std=[float(v) for v in rgb_std],
        depth_log_mean=log_mean,
        depth_log_std=log_std,
        position_mean_m=[float(v) for v in mean],
        position_scale_m=max(scale, 1e-3),
        rotation_reference_xyzw=[float(v) for v in reference_rotation(poses)],
    )


def reference_rotation(poses_N44: Array, candidates: int = 200) -> Array:
    """The training rotation (quaternion xyzw) whose antipodes are least visited by the training rotations.

    Log-quaternions measured from it stay away from the border of their ball, where they jump. A route that turns by a
    full circle must cross the border; then it does so where it spends least time (in a bend).
    """
    quats = Rotation.from_matrix(poses_N44[:, :3, :3]).as_quat()
    some = quats[:: max(1, len(quats) // candidates)]
    cosines = np.abs(some @ quats.T)  # |cos(angle / 2)|: 0 at the antipode
    cost = np.exp(-np.square(cosines / 0.2)).sum(axis=1) - 1e-3 * cosines.mean(axis=1)
    best = some[int(np.argmin(cost))]
    return np.asarray(best if best[3] >= 0.0 else -best, dtype=float)


def choose_presence(
    store: SampleStore, samples: NDArray[np.int64], config: TrainingConfig, generator: np.random.Generator
) -> dict[str, NDArray[np.bool_]]:
    """Which modalities each sample shows (eq. 18); a sample never loses its only one."""
    draw = generator.random(len(samples))
    both, rgb_only, _ = config.objective.presence
    show = {Modality.RGB.value: draw < both + rgb_only, Modality.DEPTH.value: (draw < both) | (draw >= both + rgb_only)}
    has = {Modality.RGB.value: store.has_rgb[samples], Modality.DEPTH.value: store.has_depth[samples]}
    names = config.network.modalities
    if len(names) == 1 or config.objective.presence_as == "weighted":
        return {name: has[name] for name in names}
    alone = has["rgb"] ^ has["depth"]
    return {name: has[name] & (show[name] | alone) for name in names}


def targets(poses_N44: Array, normalisation: Normalisation) -> tuple[Tensor, Tensor]:
    """Positions and log-quaternions (N, 3) in network units, hemisphere w >= 0 about the reference rotation."""
    mean = np.array(normalisation.position_mean_m)
    position = (poses_N44[:, :3, 3] - mean) / normalisation.position_scale_m
    reference = Rotation.from_quat(normalisation.rotation_reference_xyzw)
    log_quat = 0.5 * (reference.inv() * Rotation.from_matrix(poses_N44[:, :3, :3])).as_rotvec()
    return torch.from_numpy(position).float(), torch.from_numpy(log_quat).float()


class BatchMaker:
    """Makes augmented training batches out of a store."""

    def __init__(self, store: SampleStore, config: TrainingConfig, normalisation: Normalisation) -> None:
        self._store = store
        self._config = config
        self._normalisation = normalisation

    def make(self, samples: NDArray[np.int64], seed: tuple[int, ...]) -> Batch:
        """One batch; the same samples and seed give the same batch."""
        generator = np.random.default_rng(seed)
        torch_generator = torch.Generator().manual_seed(int(generator.integers(2**62)))
        network, augmentation = self._config.network, self._config.augmentation
        free_y = self._store.camera.height - network.height
        free_x = self._store.camera.width - network.width
        y = generator.integers(0, free_y + 1, len(samples))
        x = generator.integers(0, free_x + 1, len(samples))
        poses = self._store.T_map_camera[samples]
        if augmentation.turn_labels:
            poses = turned(poses, x - free_x // 2, y - free_y // 2, self._store.camera.fx, self._store.camera.fy)
        inputs = {}
        for name, shown in choose_presence(self._store, samples, self._config, generator).items():
            rows = np.flatnonzero(shown)
            if not len(rows):
                continue
            source = self._store.rgb if name == Modality.RGB else self._store.depth_m
            crops = np.stack(
                [source[samples[r], y[r] : y[r] + network.height, x[r] : x[r] + network.width] for r in rows]
            )
            values = torch.from_numpy(crops).float()
            change = change_rgb if name == Modality.RGB else change_depth
            images = normalise(name, change(values, augmentation, torch_generator), self._normalisation, network)
            erase(images, augmentation, generator)
            images = images.contiguous(memory_format=torch.channels_last)
            inputs[name] = Present(images, torch.from_numpy(rows))
        position, log_quat = targets(poses, self._normalisation)
        return Batch(inputs, position, log_quat, samples)


def turned(poses_N44: Array, dx_N: NDArray[np.int64], dy_N: NDArray[np.int64], fx: float, fy: float) -> Array:
    """The poses of the cameras that a crop shifted by (dx, dy) pixels belongs to.

    A window shifted to the right is, to first order, what the camera would see turned to the right about its y axis;
    shifted down, turned about its negative x axis (optical axes: x right, y down, z forward).
    """
    turn = Rotation.from_rotvec(np.stack([-np.arctan(dy_N / fy), np.arctan(dx_N / fx), np.zeros(len(dx_N))], axis=1))
    result = poses_N44.copy()
    result[:, :3, :3] = poses_N44[:, :3, :3] @ turn.as_matrix()
    return result


def _uniform(count: int, spread: float, generator: torch.Generator, channels: int = 1) -> Tensor:
    """1 +- spread, shaped (count, 1, 1, channels)."""
    return 1.0 + spread * (2.0 * torch.rand(count, 1, 1, channels, generator=generator) - 1.0)


def change_rgb(rgb_NHW3: Tensor, config: AugmentationConfig, generator: torch.Generator) -> Tensor:
    """Brightness, contrast, colour and noise, each sample its own; 0..255 in and out."""
    count = len(rgb_NHW3)
    gain = _uniform(count, config.brightness, generator) * _uniform(count, config.colour, generator, 3)
    contrast = _uniform(count, config.contrast, generator)
    mean = rgb_NHW3.mean(dim=(1, 2, 3), keepdim=True)
    changed = (rgb_NHW3 - mean) * (contrast * gain) + mean * gain
    if config.noise > 0.0:
        changed += 255.0 * config.noise * torch.randn(changed.shape, generator=generator)
    return changed.clamp_(0.0, 255.0)


def change_depth(depth_NHW: Tensor, config: AugmentationConfig, generator: torch.Generator) -> Tensor:
    """Relative noise, and some returns dropped; metres, 0 = no return."""
    if config.depth_noise > 0.0:
        depth_NHW = depth_NHW * (1.0 + config.depth_noise * torch.randn(depth_NHW.shape, generator=generator))
    if config.depth_dropout > 0.0:
        share = config.depth_dropout * torch.rand(len(depth_NHW), 1, 1, generator=generator)
        depth_NHW = depth_NHW * (torch.rand(depth_NHW.shape, generator=generator) >= share)
    return depth_NHW.clamp_min(0.0)


def erase(images_NCHW: Tensor, config: AugmentationConfig, generator: np.random.Generator) -> None:
    """Sets one box to zero (the mean colour, or no return) in some of the normalised images, in place."""
    count, _, height, width = images_NCHW.shape
    for n in np.flatnonzero(generator.random(count) < config.erase_chance):
        h = 1 + int(generator.random() * config.erase_share * (height - 1))
        w = 1 + int(generator.random() * config.erase_share * (width - 1))
        y, x = int(generator.integers(0, height - h + 1)), int(generator.integers(0, width - w + 1))
        images_NCHW[n, :, y : y + h, x : x + w] = 0.0
