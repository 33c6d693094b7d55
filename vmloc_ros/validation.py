"""A network's errors on stored samples, by modality mode: for choosing the best weights and for calibration."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from vmloc_ros.clips import predecessors
from vmloc_ros.errors import TrainingError
from vmloc_ros.geometry import Array, adjoint, inverse
from vmloc_ros.metrics import pose_error_6, spread
from vmloc_ros.networks.inputs import centre_crop
from vmloc_ros.networks.inputs_config import InputShape
from vmloc_ros.networks.vlocnet_config import MotionCard
from vmloc_ros.runtimes.torch import RawPoses, Runtime
from vmloc_ros.runtimes.vlocnet import VLocNetRuntime, motion_poses, motion_vectors
from vmloc_ros.samples import SampleStore
from vmloc_ros.types import Modality, Mode

CHUNK = 32
CHAIN = 20
"""So many motions in a row show how fast their errors add up."""
MIN_PAIRS = 7
"""Fewer do not span six dimensions."""


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
        refused: how many further frames got no pose; None where the network always answers.
    """

    tangent_N6: Array
    scatters_N66: Array
    position_m: Array
    rotation_deg: Array
    T_hat_N44: Array
    latents_ND: NDArray[np.float32]
    samples_N: NDArray[np.int64]
    refused: int | None = None

    def summary(self) -> dict[str, object]:
        """The `E` of the reports; with the frames that got no pose where there may be such, without errors where all
        are."""
        errors: dict[str, object] = {"n": 0}
        if len(self.samples_N):
            errors = error_summary(self.position_m, self.rotation_deg)
        return errors if self.refused is None else errors | {"no_pose": self.refused}


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
    runtime: Runtime,
    config: InputShape,
    store: SampleStore,
    samples: NDArray[np.int64],
    with_refused: bool = False,
) -> dict[Mode, ModeErrors]:
    """Errors without any augmentation, for every mode that at least one of the samples can show.

    Frames that the network refuses have no errors: they are counted. While a training chooses its best weights
    (`with_refused`) they count with their placeholder pose instead, or refusing the difficult frames would pay.

    VLocNet is told the previous pose as on a robot that has nothing else: its own answer to the frame before, which it
    gave without knowing an earlier one.

    Raises:
        TrainingError: an answer that is not finite; names the sample.
    """
    follows = runtime if isinstance(runtime, VLocNetRuntime) and runtime.takes_previous else None
    before = frames_before(follows, store) if follows else samples
    rows, columns = centre_crop(store.camera.height, store.camera.width, config.height, config.width)
    errors: dict[Mode, ModeErrors] = {}
    for mode, (rgb, depth) in mode_inputs(config).items():
        able = samples[(store.has_rgb[samples] | (not rgb)) & (store.has_depth[samples] | (not depth))]
        poses, scatters, latents, refusals = [], [], [], []
        for start in range(0, len(able), CHUNK):
            chunk = able[start : start + CHUNK]
            if follows:
                raw = _after_own_answers(follows, config, store, chunk, before[chunk])
            else:
                raw = runtime.infer(
                    store.rgb[chunk][:, rows, columns] if rgb else None,
                    store.depth_m[chunk][:, rows, columns] if depth else None,
                )
            poses.append(raw.T_map_camera)
            scatters.append(raw.scatter_N66)
            latents.append(raw.latents_ND)
            refusals.append(raw.refused_N)
        if poses:
            T_hat = np.concatenate(poses)
            _check_finite(T_hat, store, able)
            refused = None if refusals[0] is None else np.concatenate([item for item in refusals if item is not None])
            kept = np.ones(len(able), dtype=bool) if refused is None or with_refused else ~refused
            tangent, position, rotation = pose_errors(T_hat[kept], store.T_map_camera[able[kept]])
            errors[mode] = ModeErrors(
                tangent,
                np.concatenate(scatters)[kept],
                position,
                rotation,
                T_hat[kept],
                np.concatenate(latents)[kept],
                able[kept],
                None if refused is None else int(refused.sum()),
            )
    return errors


def _check_finite(T_hat_N44: Array, store: SampleStore, samples: NDArray[np.int64]) -> None:
    """Raises TrainingError, with the first sample's name, where an answer is not finite."""
    bad = np.flatnonzero(np.logical_not(np.isfinite(T_hat_N44).all(axis=(1, 2))))
    if len(bad):
        raise TrainingError(
            f"{store.name(int(samples[bad[0]]))}: the network's answer is not finite, nor are {len(bad) - 1} others; "
            "leave such frames out (data.discard), or lower optimizer.peak_learning_rate"
        )


def _after_own_answers(
    runtime: VLocNetRuntime,
    config: InputShape,
    store: SampleStore,
    samples: NDArray[np.int64],
    before_N: NDArray[np.int64],
) -> RawPoses:
    """The poses of frames with a picture, each after the network's own answer to the one before it (-1: none)."""
    previous = np.full((len(samples), 4, 4), np.nan)
    known = before_N >= 0
    if known.any():
        earlier = runtime.see(_pictures(config, store, before_N[known]), odometry=False)
        previous[known] = runtime.poses(earlier).T_map_camera
    return runtime.poses(runtime.see(_pictures(config, store, samples), odometry=False), previous)


def frames_before(runtime: VLocNetRuntime, store: SampleStore) -> NDArray[np.int64]:
    """For every sample of a store (N,) the one before it; -1 where one lacks a picture or they lie too far apart."""
    before = predecessors(store, np.arange(len(store)), runtime.max_gap_s)
    return np.where((before >= 0) & store.has_rgb & store.has_rgb[before], before, -1)


def _pictures(config: InputShape, store: SampleStore, samples: NDArray[np.int64]) -> NDArray[np.uint8]:
    """The pictures of samples, cut as on a robot."""
    rows, columns = centre_crop(store.camera.height, store.camera.width, config.height, config.width)
    return np.asarray(store.rgb[samples][:, rows, columns])


@dataclass(frozen=True, eq=False)
class MotionErrors:
    """Of the N samples that can be compared with the frame before them.

    Attributes:
        samples_N: which samples of the store they are, in order of recording and time.
        T_hat_N44: the network's `T_prev_now`.
        T_true_N44: the true ones.
        follows_N: whether the frame before is the sample before in this list: the motions can be chained.
    """

    samples_N: NDArray[np.int64]
    T_hat_N44: Array
    T_true_N44: Array
    follows_N: NDArray[np.bool_]


def validate_motions(
    runtime: VLocNetRuntime, config: InputShape, store: SampleStore, samples: NDArray[np.int64]
) -> MotionErrors:
    """What the odometry stream says of the way from the frame before each sample, where there is one."""
    every_before = frames_before(runtime, store)
    able = samples[(every_before[samples] >= 0)]
    able = able[np.lexsort((store.stamps_ns[able], store.recording_of[able]))]
    before = every_before[able]
    motions = [np.zeros((0, 4, 4))]
    for start in range(0, len(able), CHUNK):
        chunk = slice(start, start + CHUNK)
        pictures = (_pictures(config, store, before[chunk]), _pictures(config, store, able[chunk]))
        motions.append(runtime.motions(*(runtime.see(item) for item in pictures)))
    _check_finite(np.concatenate(motions), store, able)
    true = motion_poses(motion_vectors(store.T_map_camera[before], store.T_map_camera[able]))
    follows = np.concatenate([[False], before[1:] == able[:-1]])[: len(able)]
    return MotionErrors(able, np.concatenate(motions), true, follows)


def motion_card(errors: MotionErrors, max_gap_s: float) -> MotionCard:
    """How sure the odometry is of an increment, from its errors on frames it was not trained on.

    Consecutive errors are alike (a speed that is underestimated stays so for seconds), but whoever chains increments
    adds their covariances as if they were independent. So the covariance of one increment is multiplied by what the
    chained ones' mean NEES asks for; where no `CHAIN` of them are in a row by `CHAIN`, as if they all erred alike.

    Raises:
        TrainingError: too few pairs.
    """
    count = len(errors.samples_N)
    if count < MIN_PAIRS:
        raise TrainingError(
            f"{count} validation frames follow another; {MIN_PAIRS} are needed for the covariance of the odometry: "
            "give longer stretches in data.validation or hold_out, or set network.odometry to false"
        )
    tangents = np.array([pose_error_6(T, true) for T, true in zip(errors.T_hat_N44, errors.T_true_N44, strict=True)])
    cov_66 = tangents.T @ tangents / count
    nees = [_chained_nees(errors, start, cov_66) for start in range(0, count - CHAIN + 1, CHAIN // 2)]
    known = [value for value in nees if value is not None]
    inflation = max(1.0, float(np.mean(known)) / 6.0) if known else float(CHAIN)
    return MotionCard(max_gap_s=max_gap_s, cov_66=(inflation * cov_66).tolist(), inflation=inflation, pairs=count)


def _chained_nees(errors: MotionErrors, start: int, cov_66: Array) -> float | None:
    """Squared error of `CHAIN` motions in a row, in units of the covariance that independent ones would have; None
    where they are not in a row."""
    if not errors.follows_N[start + 1 : start + CHAIN].all():
        return None
    T_hat, T_true, total_66 = np.eye(4), np.eye(4), np.zeros((6, 6))
    for index in range(start, start + CHAIN):
        back_66 = adjoint(inverse(errors.T_hat_N44[index]))
        total_66 = back_66 @ total_66 @ back_66.T + cov_66
        T_hat, T_true = T_hat @ errors.T_hat_N44[index], T_true @ errors.T_true_N44[index]
    error_6 = pose_error_6(T_hat, T_true)
    return float(error_6 @ np.linalg.solve(total_66, error_6))
