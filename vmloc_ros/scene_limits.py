"""Measures when answers over scene coordinates are believed: on validation frames, and on strangers made of them.

A cell agrees with a pose if it lies as near to it as most cells of validation frames lie to the truth. A frame is
believed if as many of its cells agree as of frames that were localized rightly, and more than of frames that show no
place of the map. Such strangers are made of the validation frames themselves, so that every training has them:
mirrored left to right and top to bottom (turned upside down they are what a camera that hangs there sees), strips of
frames from far apart side by side, one frame's picture with another's depth, and noise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import nnls
from torch import Tensor

from vmloc_ros.errors import TrainingError
from vmloc_ros.geometry import Array
from vmloc_ros.networks.inputs import centre_crop
from vmloc_ros.networks.scene_coordinates_config import SceneCard, SceneLimits
from vmloc_ros.runtimes.scene_coordinates import SceneReading, SceneRuntime
from vmloc_ros.samples import SampleStore
from vmloc_ros.scene_alignment import Cells, align
from vmloc_ros.scene_belief import agreement, deviation_ratio
from vmloc_ros.types import Mode
from vmloc_ros.validation import mode_inputs, pose_errors

CHUNK = 32
MOST_FRAMES, MOST_STRANGERS = 200, 32
"""More validation frames, and more strangers of a kind, are thinned out evenly."""
AGREEING_SHARE = 0.78
"""Of the cells of validation frames, this share lies nearer to the truth than a cell that agrees may."""
RANGE_BINS = 6
MOST_OF_SCALE, MOST_SHARE = 0.5, 0.15
"""Cells that lie farther off than this share of the map's scale, and of their distance, agree with nothing."""
RIGHT = 8.0
"""A validation frame is localized rightly if its errors are below this many times the median's."""
CAMERA_MARGIN, LEAST_CHANGE, LEAST_SURPRISE = 1.3, 0.04, 6.0
"""A frame's cells may ask for another camera by so many times as much as 99 % of frames localized rightly do, and by so
much in any case (see `scene_camera`)."""
STRIPS = 4
SEED = 11


@dataclass(frozen=True, eq=False)
class Sights:
    """What N frames show, at the network's size; an absent modality is None."""

    rgb_NHW3: NDArray[np.uint8] | None
    depth_NHW: NDArray[np.float32] | None

    def changed(self, change: Callable[[NDArray[Any]], NDArray[Any]]) -> Sights:
        """With the same done to both."""
        return Sights(
            None if self.rgb_NHW3 is None else np.ascontiguousarray(change(self.rgb_NHW3)),
            None if self.depth_NHW is None else np.ascontiguousarray(change(self.depth_NHW)),
        )


def measure_scene(runtime: SceneRuntime, store: SampleStore, samples: NDArray[np.int64]) -> SceneCard:
    """When answers are believed, in every mode that the samples show; and the range of their depth.

    Args:
        runtime: of the weights as they are stored. It keeps the limits: its poses are refused by them from now on.
        store: with the true poses.
        samples: validation frames, in any order.

    Raises:
        TrainingError: in a mode, not a single frame is localized.
    """
    low_m, high_m = depth_range(store, samples)
    card = runtime.scene = SceneCard(limits={}, depth_low_m=low_m, depth_high_m=high_m)
    for mode, (rgb, depth) in mode_inputs(runtime.config).items():
        able = samples[(store.has_rgb[samples] | (not rgb)) & (store.has_depth[samples] | (not depth))]
        if not len(able):
            continue
        able = able[:: -(-len(able) // MOST_FRAMES)]
        readings = _read(runtime, _sights(runtime, store, able, rgb, depth))
        depth_NC = _depth_of_cells(runtime, store, able)
        limits = _tolerance(readings, depth_NC, store.T_map_camera[able], MOST_OF_SCALE * runtime.scale_m)
        card = runtime.scene = card.model_copy(update={"limits": card.limits | {mode.value: limits}})
        limits = _judged(runtime, mode, readings, store.T_map_camera[able], limits)
        few = able[:: -(-len(able) // MOST_STRANGERS)]
        strangers = {
            kind: _shares(runtime, mode, sights, limits)
            for kind, sights in made_strangers(
                _sights(runtime, store, few, rgb, depth), store.T_map_camera[few], low_m, high_m
            ).items()
        }
        limits = _separated(limits, strangers)
        card = runtime.scene = card.model_copy(update={"limits": card.limits | {mode.value: limits}})
    return card


def depth_range(store: SampleStore, samples: NDArray[np.int64]) -> tuple[float, float]:
    """The 1st and 99th percentile of the frames' median depths, metres."""
    able = samples[store.has_depth[samples]]
    medians = []
    for index in able[:: -(-max(1, len(able)) // MOST_FRAMES)]:
        depth = np.asarray(store.depth_m[index], dtype=np.float64)
        if (depth > 0.0).any():
            medians.append(float(np.median(depth[depth > 0.0])))
    if not medians:
        return 0.0, 1e6
    low_m, high_m = np.percentile(medians, [1.0, 99.0])
    return float(low_m), float(high_m)


def _sights(runtime: SceneRuntime, store: SampleStore, samples: NDArray[np.int64], rgb: bool, depth: bool) -> Sights:
    config = runtime.config
    rows, columns = centre_crop(store.camera.height, store.camera.width, config.height, config.width)
    return Sights(
        np.asarray(store.rgb[samples][:, rows, columns]) if rgb else None,
        np.asarray(store.depth_m[samples][:, rows, columns], dtype=np.float32) if depth else None,
    )


def _read(runtime: SceneRuntime, sights: Sights) -> list[SceneReading]:
    """What network and solver say, a chunk of frames each."""
    rgb, depth = sights.rgb_NHW3, sights.depth_NHW
    count = len(rgb) if rgb is not None else len(depth) if depth is not None else 0
    chunks = [slice(start, start + CHUNK) for start in range(0, count, CHUNK)]
    return [
        runtime.read(None if rgb is None else rgb[chunk], None if depth is None else depth[chunk]) for chunk in chunks
    ]


def _joined(readings: list[SceneReading]) -> Cells:
    return Cells(*(torch.cat(parts) for parts in zip(*(reading.cells for reading in readings), strict=True)))


def _depth_of_cells(runtime: SceneRuntime, store: SampleStore, samples: NDArray[np.int64]) -> Tensor:
    """Depth of every cell (N, C), also where the mode does not show it; 0 where there is none."""
    depth = _sights(runtime, store, samples, rgb=False, depth=True).depth_NHW
    assert depth is not None
    return runtime.cell_depths(depth)


def _tolerance(readings: list[SceneReading], depth_NC: Tensor, T_N44: Array, most_m: float) -> SceneLimits:
    """Within how much of the truth most cells lie, nearby (at most `most_m`) and per metre of distance.

    Cells that the network is shown without depth are judged across their rays, as the solver does. Where an expert has
    not learnt the map the tolerance stays that of one which has: else its cells would agree with any pose.
    """
    cells, T = _joined(readings), torch.from_numpy(T_N44).to(depth_NC.device)
    away_NC3 = (cells.points_BN3.double() - T[:, None, :3, 3]) @ T[:, :3, :3]
    rays_NC3, depth = cells.rays_BN3.double(), depth_NC.double()
    length_NC = rays_NC3.square().sum(dim=2).sqrt()
    along_NC = torch.where(
        cells.depth_BN > 0.0, cells.depth_BN.double(), ((away_NC3 * rays_NC3).sum(dim=2) / length_NC**2).clamp_min(0.0)
    )
    distance_NC = (away_NC3 - along_NC[..., None] * rays_NC3).square().sum(dim=2).sqrt()
    known = ((depth > 0.0) & cells.usable_BN).cpu().numpy()
    distance, reach = distance_NC.cpu().numpy()[known], (depth * length_NC).cpu().numpy()[known]
    if not len(distance):
        raise TrainingError("no validation frame has depth: when answers are believed cannot be measured")
    said = np.isfinite(distance)
    distance, reach = distance[said], reach[said]
    if not len(distance):
        return SceneLimits()  # not one answer is finite: nothing can be localized either
    parts = np.array_split(np.argsort(reach), RANGE_BINS)
    parts = [part for part in parts if len(part)]
    far = np.array([np.median(reach[part]) for part in parts])
    most = np.array([np.quantile(distance[part], AGREEING_SHARE) for part in parts])
    # A far bin must not decide about a near one: relative errors are what is fitted.
    (base, slope), _ = nnls(np.stack([1.0 / most, far / most], axis=1), np.ones(len(most)))
    return SceneLimits(
        inlier_m=float(np.clip(base, 1e-3, most_m)), inlier_share=min(float(slope), MOST_SHARE), frames=len(T_N44)
    )


def _judged(
    runtime: SceneRuntime, mode: Mode, readings: list[SceneReading], T_N44: Array, limits: SceneLimits
) -> SceneLimits:
    """The limits that frames give which are localized rightly: solved again, with the measured tolerance.

    `least_share` is what 99 % of them reach; `_separated` then sets it against the strangers.
    """
    cells = _joined(readings)
    found = align(cells, runtime.settings(mode))
    solved_N = found.solved_B.cpu().numpy()
    if not solved_N.any():
        raise TrainingError(
            f"{mode}: not one of {len(T_N44)} validation frames could be localized; the network has not learnt the "
            "scene: train longer (optimizer.epochs), and check depth, mountings and poses of the training data"
        )
    _, position_m, rotation_deg = pose_errors(found.T_map_camera_B44.double().cpu().numpy()[solved_N], T_N44[solved_N])
    right = (position_m <= RIGHT * np.median(position_m)) & (rotation_deg <= RIGHT * np.median(rotation_deg))
    right_N = solved_N.copy()
    right_N[solved_N] = right
    ratio_NC = deviation_ratio(cells, found.T_map_camera_B44, limits.inlier_m, limits.inlier_share)
    agreeing_NC = found.inliers_BN & torch.from_numpy(right_N).to(found.inliers_BN.device)[:, None]
    ratios = ratio_NC[agreeing_NC].cpu().numpy()
    residuals = found.residual_B.double().cpu().numpy()[right_N]
    limits = limits.model_copy(
        update={
            "most_deviation": max(float(np.quantile(ratios, 0.98)), 1e-3) if len(ratios) else limits.most_deviation,
            "most_residual": 2.0 * max(float(np.quantile(residuals, 0.99)), 1e-3),
        }
    )
    said = agreement(cells, found, limits, runtime.settings(mode))
    change = CAMERA_MARGIN * np.quantile(np.abs(said.change_N3[right_N]), 0.99, axis=0)
    surprise = CAMERA_MARGIN * float(np.quantile(said.surprise_N[right_N], 0.99))
    limits = limits.model_copy(
        update={
            "most_camera_change": np.maximum(change, LEAST_CHANGE).tolist(),
            "most_camera_surprise": max(surprise, LEAST_SURPRISE),
        }
    )
    shares = said.share_N[right_N]
    low, lowest, middle = np.percentile(shares, [5.0, 1.0, 50.0])
    return limits.model_copy(
        update={"share_median": float(middle), "share_p5": float(low), "least_share": float(lowest)}
    )


def _shares(runtime: SceneRuntime, mode: Mode, sights: Sights, limits: SceneLimits) -> Array:
    """The share of agreeing cells of each frame (0 where there is no pose), also where it is refused anyway."""
    settings = runtime.settings(mode)
    said = [agreement(reading.cells, reading.alignment, limits, settings) for reading in _read(runtime, sights)]
    return np.concatenate([item.share_N for item in said])


def _separated(limits: SceneLimits, strangers: dict[str, Array]) -> SceneLimits:
    """The least share halfway between strangers (the 99th percentile of the worst kind) and frames localized rightly
    (their 1st). Where these overlap it is still halfway, but never above the latter's 5th percentile: a map that looks
    like its own mirror image must not refuse itself."""
    known = {kind: float(np.percentile(shares, 99.0)) for kind, shares in strangers.items() if len(shares)}
    middle = 0.5 * (limits.least_share + max(known.values(), default=0.0))
    return limits.model_copy(update={"least_share": min(middle, limits.share_p5), "strangers": known})


def made_strangers(sights: Sights, T_N44: Array, low_m: float, high_m: float) -> dict[str, Sights]:
    """Frames that show no place of the map, made of frames that do; always the same.

    Args:
        sights: N frames.
        T_N44: where they were taken.
        low_m, high_m: range of the depth of noise.
    """
    rng = np.random.default_rng(SEED)
    strangers = {
        "mirrored": sights.changed(lambda images: images[:, :, ::-1]),
        "flipped": sights.changed(lambda images: images[:, ::-1]),
        "noise": Sights(
            None if sights.rgb_NHW3 is None else _noise(rng, sights.rgb_NHW3.shape, 0.0, 255.0).astype(np.uint8),
            None if sights.depth_NHW is None else _noise(rng, sights.depth_NHW.shape, low_m, high_m).astype(np.float32),
        ),
    }
    far = _far_frames(T_N44)
    if far is not None:
        strangers["strips"] = sights.changed(lambda images: _strips(images, far))
        if sights.rgb_NHW3 is not None and sights.depth_NHW is not None:
            strangers["other_depth"] = Sights(sights.rgb_NHW3, sights.depth_NHW[far[-1]])
    return strangers


def _far_frames(T_N44: Array) -> NDArray[np.int64] | None:
    """For every frame as many others as there are strips (STRIPS, N), taken far from it, the farthest last; None where
    there are too few."""
    if len(T_N44) < 2 * STRIPS:
        return None
    positions = T_N44[:, :3, 3]
    distance = np.linalg.norm(positions[:, None] - positions, axis=2)
    ranks = np.linspace(0.5, 1.0, STRIPS) * (len(T_N44) - 1)
    return np.asarray(np.argsort(distance, axis=1, kind="stable")[:, np.rint(ranks).astype(int)].T)


def _strips(images: NDArray[Any], far: NDArray[np.int64]) -> NDArray[Any]:
    """Upright strips of frames from far apart side by side, each where it does not belong."""
    result = images.copy()
    edges = np.linspace(0, images.shape[2], STRIPS + 1).round().astype(int)
    width = int(np.diff(edges).min())
    for number, frames in enumerate(far):
        source = edges[(number + 1) % STRIPS]
        result[:, :, edges[number] : edges[number] + width] = images[frames, :, source : source + width]
    return result


def _noise(rng: np.random.Generator, shape: tuple[int, ...], low: float, high: float) -> Array:
    """Every other image white noise, every other one smooth, over the whole range."""
    values = rng.uniform(0.0, 1.0, shape)
    for index in range(0, len(values), 2):
        smooth = cv2.GaussianBlur(values[index], (0, 0), shape[2] / 16.0)
        spread = smooth.std() + 1e-9
        values[index] = np.clip(0.5 + 0.25 * (smooth - smooth.mean()) / spread, 0.0, 1.0)
    return np.asarray(low + (high - low) * values)
