"""A network's errors on stored samples, by modality mode: for choosing the best weights and for calibration."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from vmloc_ros.geometry import Array
from vmloc_ros.metrics import pose_error_6, spread
from vmloc_ros.networks.inputs import centre_crop
from vmloc_ros.networks.inputs_config import InputShape
from vmloc_ros.runtimes.torch import Runtime
from vmloc_ros.samples import SampleStore
from vmloc_ros.types import Modality, Mode

CHUNK = 32


@dataclass(frozen=True, eq=False)
class ModeErrors:
    """Of the N frames that have a mode's modalities.

    Attributes:
        tangent_N6: log(T_hat^-1 T) in camera axes: what the covariance is of.
        scatters_N66: of the latent samples.
        position_m, rotation_deg: (N,).
        T_hat_N44: the estimates.
        latents_ND: the latent means.
        samples_N: which samples of the store these frames are.
    """

    tangent_N6: Array
    scatters_N66: Array
    position_m: Array
    rotation_deg: Array
    T_hat_N44: Array
    latents_ND: NDArray[np.float32]
    samples_N: NDArray[np.int64]

    def summary(self) -> dict[str, object]:
        """The `E` of the reports."""
        return error_summary(self.position_m, self.rotation_deg)


def error_summary(position_m: Array, rotation_deg: Array) -> dict[str, object]:
    """`E` of the reports: mean, median, 95th percentile and maximum, and how many."""
    return {"position_m": spread(position_m), "rotation_deg": spread(rotation_deg), "n": len(position_m)}


def pose_errors(T_hat_N44: Array, T_N44: Array) -> tuple[Array, Array, Array]:
    """Tangent errors (N, 6), position errors in metres and rotation errors in degrees (N,)."""
    tangent = np.array([pose_error_6(T_hat, T) for T_hat, T in zip(T_hat_N44, T_N44, strict=True)]).reshape(-1, 6)
    position = np.linalg.norm(T_hat_N44[:, :3, 3] - T_N44[:, :3, 3], axis=1)
    relative = np.einsum("nji,njk->nik", T_hat_N44[:, :3, :3], T_N44[:, :3, :3])
    return tangent, position, np.rad2deg(Rotation.from_matrix(relative).magnitude())


def mode_inputs(config: InputShape) -> dict[Mode, tuple[bool, bool]]:
    """The modes a network can answer in, and whether each shows colour and depth."""
    rgb, depth = config.has(Modality.RGB), config.has(Modality.DEPTH)
    modes = {Mode.RGB_DEPTH: (True, True), Mode.RGB_ONLY: (True, False), Mode.DEPTH_ONLY: (False, True)}
    return {mode: (r, d) for mode, (r, d) in modes.items() if (rgb or not r) and (depth or not d)}


def validate(
    runtime: Runtime, config: InputShape, store: SampleStore, samples: NDArray[np.int64]
) -> dict[Mode, ModeErrors]:
    """Errors without any augmentation, for every mode that at least one of the samples can show."""
    rows, columns = centre_crop(store.camera.height, store.camera.width, config.height, config.width)
    errors: dict[Mode, ModeErrors] = {}
    for mode, (rgb, depth) in mode_inputs(config).items():
        able = samples[(store.has_rgb[samples] | (not rgb)) & (store.has_depth[samples] | (not depth))]
        poses, scatters, latents = [], [], []
        for start in range(0, len(able), CHUNK):
            chunk = able[start : start + CHUNK]
            raw = runtime.infer(
                store.rgb[chunk][:, rows, columns] if rgb else None,
                store.depth_m[chunk][:, rows, columns] if depth else None,
            )
            poses.append(raw.T_map_camera)
            scatters.append(raw.scatter_N66)
            latents.append(raw.latents_ND)
        if poses:
            T_hat = np.concatenate(poses)
            tangent, position, rotation = pose_errors(T_hat, store.T_map_camera[able])
            errors[mode] = ModeErrors(
                tangent, np.concatenate(scatters), position, rotation, T_hat, np.concatenate(latents), able
            )
    return errors
