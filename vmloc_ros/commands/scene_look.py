"""What a model over scene coordinates says of one frame: of every cell, and of the pose that fits them.

Poses are `T_map_camera`: the camera's optical frame (x right, y down, z forward) in the map.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from vmloc_ros.assembly import LabelledFrame
from vmloc_ros.checkpoint import fill_network, load_model
from vmloc_ros.commands.scene_view_tables import notes_of
from vmloc_ros.errors import ConfigError
from vmloc_ros.evaluation import only
from vmloc_ros.geometry import Array, rotation_angle
from vmloc_ros.localizer import choose_device, use_threads
from vmloc_ros.localizers.inputs import FrameInputs, Pictures
from vmloc_ros.localizers.scene_coordinates import SceneLocalizer, without_empty_depth
from vmloc_ros.networks.build import build_network
from vmloc_ros.networks.scene_coordinates import nearest_returns
from vmloc_ros.plots_scene import CellAnswers, SceneFrame
from vmloc_ros.runtimes.build import build_runtime
from vmloc_ros.runtimes.scene_coordinates import SceneReading, SceneRuntime
from vmloc_ros.scene_alignment import align
from vmloc_ros.scene_belief import agreement, deviation_ratio
from vmloc_ros.trajectory import NANOSECONDS
from vmloc_ros.types import Mode, NoPose, PoseEstimate

REPEATED = 5
"""Times are the shortest of so many: the machine has other work."""


class Scene(NamedTuple):
    """A model over scene coordinates, opened."""

    localizer: SceneLocalizer
    runtime: SceneRuntime
    inputs: FrameInputs


def open_scene(model: Path, device: str = "auto") -> Scene:
    """A trained model over scene coordinates.

    Raises:
        CheckpointError: see `load_localizer`; or the card does not say when answers are believed.
        ConfigError: a model of another kind.
    """
    chosen_device, _ = choose_device(device)
    card, tensors = load_model(model)
    network = build_network(card.network)
    fill_network(network, tensors, model)
    use_threads(0)
    runtime = build_runtime(network, card.normalisation, card.latent_samples, chosen_device)
    if not isinstance(runtime, SceneRuntime):
        raise ConfigError(
            f"{model}: a {card.network.architecture} network has no cells to look at; give the folder of a trained "
            "scene_coordinates model"
        )
    return Scene(SceneLocalizer(card, runtime), runtime, FrameInputs(card, by_rays=True))


def look_at(
    scene: Scene, item: LabelledFrame, modes: Sequence[Mode], number: int, first_ns: int
) -> tuple[SceneFrame | None, dict[str, Any]]:
    """What there is to draw of a frame (None: the network cannot take it), and the numbers."""
    seconds = (item.frame.stamp_ns - first_ns) / NANOSECONDS
    entry: dict[str, Any] = {"number": number, "stamp_ns": item.frame.stamp_ns, "seconds": seconds, "modes": {}}
    whole = scene.inputs.of(item.frame)
    if isinstance(whole, NoPose):
        entry["reason"] = whole.reason
        return None, entry
    rows, columns = scene.runtime.config.grid
    depth_N = np.zeros(rows * columns)
    if whole.depth_1HW is not None:
        metres = torch.from_numpy(np.asarray(whole.depth_1HW, dtype=np.float32))
        depth_N = nearest_returns(metres, scene.runtime.config.cell).flatten().double().numpy()
    answers, rays_N3 = list[CellAnswers](), np.zeros((rows * columns, 3))
    for mode in modes:
        shown = only(item.frame, mode)
        pictures = None if shown is None else scene.inputs.of(shown)
        if shown is None or pictures is None or isinstance(pictures, NoPose):
            continue
        said = cells_of(scene.runtime, without_empty_depth(pictures))
        if said.seen.mode is not mode:
            continue
        rays_N3 = said.rays_N3
        apart_N, _ = distance_from_truth(said.points_N3, rays_N3, depth_N, item.T_map_camera)
        numbers = numbers_of(scene.runtime, said, apart_N, item.T_map_camera)
        numbers |= claim(scene.localizer.localize(shown))
        entry["modes"][mode.value.lower()] = numbers
        answers.append(_cell_answers(said, apart_N, numbers))
    if not answers:
        entry["reason"] = "it has none of the modalities that are asked for: " + ", ".join(
            f"{name}: {reason}" for name, reason in item.frame.absent.items()
        )
        return None, entry
    name = f"{item.recording}, frame {number} at {seconds:.1f} s"
    notes = notes_of(entry["modes"])
    rgb = None if whole.rgb_1HW3 is None else whole.rgb_1HW3[0]
    depth = None if whole.depth_1HW is None else whole.depth_1HW[0]
    frame = SceneFrame(name, rgb, depth, (rows, columns), rays_N3, depth_N > 0.0, item.T_map_camera, answers, notes)
    return frame, entry


class Said(NamedTuple):
    """What network and solver say of one frame with N cells, in numpy.

    Attributes:
        seen: the pictures that were shown.
        reading: all of it.
        points_N3, deviation_N: means in the map and the root of the sum of their variances, metres.
        rays_N3, depth_N, usable_N: as in `Cells`.
        agrees_N: cells that speak for the pose.
        vague_N: cells that lie where it puts them, but claim to know so little that they would agree with anything.
        share: of the usable cells, those that speak for the pose.
    """

    seen: Pictures
    reading: SceneReading
    points_N3: Array
    deviation_N: Array
    rays_N3: Array
    depth_N: Array
    usable_N: NDArray[np.bool_]
    agrees_N: NDArray[np.bool_]
    vague_N: NDArray[np.bool_]
    share: float


def read(runtime: SceneRuntime, seen: Pictures) -> SceneReading:
    """What network and solver say of a frame's pictures."""
    return runtime.read(seen.rgb_1HW3, seen.depth_1HW, seen.seen_1HW)


def cells_of(runtime: SceneRuntime, seen: Pictures) -> Said:
    """What network and solver say of a frame's pictures, and which cells speak for the pose."""
    reading = read(runtime, seen)
    cells, found, limits = reading.cells, reading.alignment, runtime.limits(seen.mode)
    near_N = found.inliers_BN[0].cpu().numpy()
    vague_N, share = np.zeros_like(near_N), float(found.share_B[0])
    if limits is not None and bool(found.solved_B[0]):
        ratio_NC = deviation_ratio(cells, found.T_map_camera_B44, limits.inlier_m, limits.inlier_share)
        vague_N = near_N & ~(ratio_NC[0] <= limits.most_deviation).cpu().numpy()
        share = float(agreement(cells, found, limits).share_N[0])
    return Said(
        seen,
        reading,
        cells.points_BN3[0].double().cpu().numpy(),
        np.sqrt(cells.variance_BN3[0].double().cpu().numpy().sum(axis=1)),
        cells.rays_BN3[0].double().cpu().numpy(),
        cells.depth_BN[0].double().cpu().numpy(),
        cells.usable_BN[0].cpu().numpy(),
        near_N & ~vague_N,
        vague_N,
        share,
    )


def distance_from_truth(points_N3: Array, rays_N3: Array, depth_N: Array, T_map_camera: Array) -> tuple[Array, Array]:
    """How far points lie from where they truly are (N,), metres; and how far from the camera that is (N,).

    Without a return (depth 0) nobody knows how far away the surface is: then it is the distance from the ray, in front
    of the camera.

    Args:
        points_N3: in the map.
        rays_N3: camera optical axes, z = 1.
        depth_N: along the optical axis.
        T_map_camera: the true pose.
    """
    seen_N3 = (points_N3 - T_map_camera[:3, 3]) @ T_map_camera[:3, :3]
    along_N = np.maximum((seen_N3 * rays_N3).sum(axis=1) / np.square(rays_N3).sum(axis=1), 0.0)
    true_N3 = np.where(depth_N > 0.0, depth_N, along_N)[:, None] * rays_N3
    return np.linalg.norm(seen_N3 - true_N3, axis=1).astype(float), np.linalg.norm(true_N3, axis=1).astype(float)


def numbers_of(runtime: SceneRuntime, said: Said, apart_N: Array, T_true: Array) -> dict[str, Any]:
    """What the solver found, how far the cells are off, and how long it took. What is not there is left out.

    Args:
        apart_N: distance of the cells' points from the truth.
        T_true: T_map_camera.
    """
    found, usable_N = said.reading.alignment, said.usable_N
    settings = runtime.settings(said.seen.mode)
    off_N, far_N = distance_from_truth(said.points_N3, said.rays_N3, said.depth_N, T_true)
    near_N = off_N < settings.inlier_m + settings.inlier_share * far_N
    solver_ms = _milliseconds(lambda: align(said.reading.cells, settings))
    both_ms = _milliseconds(lambda: read(runtime, said.seen))
    some = bool(usable_N.any())
    numbers = {
        "cells": int(usable_N.sum()),
        "returns": int((usable_N & (said.depth_N > 0.0)).sum()),
        "share": said.share,
        "share_near_truth": float(near_N[usable_N].mean()) if some else 0.0,
        "stated_m": float(np.median(said.deviation_N[usable_N])) if some else 0.0,
        "apart_m": float(np.median(apart_N[usable_N])) if some else 0.0,
        "expert_weights": {name: float(part[0]) for name, part in said.reading.shares.items()},
        "network_ms": max(both_ms - solver_ms, 0.0),
        "solver_ms": solver_ms,
    }
    if not bool(found.solved_B[0]):
        return numbers
    T = found.T_map_camera_B44[0].cpu().numpy()
    return numbers | {
        "residual": float(found.residual_B[0]),
        "position_m": float(np.linalg.norm(T[:3, 3] - T_true[:3, 3])),
        "rotation_deg": float(np.rad2deg(rotation_angle(T_true[:3, :3], T[:3, :3]))),
    }


def claim(answer: PoseEstimate | NoPose) -> dict[str, Any]:
    """What the localizer makes of it: the pose's deviations, or why there is none."""
    if isinstance(answer, NoPose):
        return {"pose": False, "reason": answer.reason}
    sigma_6 = np.sqrt(np.diagonal(answer.cov_66))
    return {
        "pose": True,
        "sigma_m": float(np.linalg.norm(sigma_6[:3])),
        "sigma_deg": float(np.rad2deg(np.linalg.norm(sigma_6[3:]))),
        "health": float(answer.health),
    }


def _cell_answers(said: Said, apart_N: Array, numbers: dict[str, Any]) -> CellAnswers:
    found = said.reading.alignment
    solved = bool(found.solved_B[0])
    caption = f"{100.0 * said.share:.0f} % agree"
    caption += f"; {numbers['position_m']:.3f} m, {numbers['rotation_deg']:.2f} deg off" if solved else "; no pose fits"
    return CellAnswers(
        said.seen.mode,
        said.points_N3,
        said.deviation_N,
        apart_N,
        said.agrees_N,
        said.vague_N,
        said.usable_N,
        found.T_map_camera_B44[0].cpu().numpy() if solved else None,
        caption if numbers["pose"] or not solved else caption + "; refused",
    )


def restricted(seen: Pictures, modes: Sequence[Mode]) -> Pictures:
    """The pictures with only those modalities that any of the modes has, where that leaves something."""
    rgb = seen.rgb_1HW3 if any(mode is not Mode.DEPTH_ONLY for mode in modes) else None
    depth = seen.depth_1HW if any(mode is not Mode.RGB_ONLY for mode in modes) else None
    if rgb is None and depth is None:
        return seen
    mode = {(True, True): Mode.RGB_DEPTH, (True, False): Mode.RGB_ONLY}.get(
        (rgb is not None, depth is not None), Mode.DEPTH_ONLY
    )
    return seen._replace(rgb_1HW3=rgb, depth_1HW=depth, mode=mode)


def _milliseconds(call: Callable[[], object]) -> float:
    """The shortest of a few calls."""
    times = []
    for _ in range(REPEATED):
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return 1e3 * min(times)
