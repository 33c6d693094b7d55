"""Batches of training samples, augmented. Everything random comes from one seed: a batch can be made again.

A process may make its part of a batch alone: all random choices are those of the whole batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation
from torch import Tensor

from vmloc_ros.augmentation import Draws, change_depth, change_rgb, draw, erase
from vmloc_ros.clips import Clips
from vmloc_ros.fitting import centre_crop, centre_window
from vmloc_ros.geometry import Array
from vmloc_ros.networks.config import Normalisation
from vmloc_ros.networks.inputs import MIN_DEPTH_M, normalise
from vmloc_ros.networks.scene_coordinates_config import SceneCoordinatesConfig
from vmloc_ros.networks.vmloc import Present
from vmloc_ros.novel_views import View, ViewMover, random_moves, right_turn, turned_cylinder, turns_by_columns
from vmloc_ros.samples import SampleStore
from vmloc_ros.scene_cells import SceneTargets, scene_targets
from vmloc_ros.training_config import TrainingConfig
from vmloc_ros.types import Modality


class Part(NamedTuple):
    """Part `number` of `of` of every batch: what one process trains on."""

    number: int = 0
    of: int = 1

    def rows(self, size: int) -> range:
        """Its rows of a batch of that size; the parts are of nearly equal size."""
        return range(size * self.number // self.of, size * (self.number + 1) // self.of)


class Batch(NamedTuple):
    """What one training step sees, in one process.

    Attributes:
        inputs: by modality that the whole batch shows, the samples here that show it (none, perhaps).
        position_B3, log_quat_B3: targets in network units.
        samples: their indices in the store.
        first: which row of the whole batch the first one here is.
        size: how many rows the whole batch has.
        clip: so many consecutive rows are frames of one drive, oldest first, seen with the same augmentation.
        scene: where in the map the cells of the samples lie; only for networks that learn that.
    """

    inputs: dict[str, Present]
    position_B3: Tensor
    log_quat_B3: Tensor
    samples: NDArray[np.int64]
    first: int
    size: int
    clip: int = 1
    scene: SceneTargets | None = None

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device."""
        inputs = {
            name: present._replace(images_NCHW=present.images_NCHW.to(device), rows_N=present.rows_N.to(device))
            for name, present in self.inputs.items()
        }
        return self._replace(
            inputs=inputs,
            position_B3=self.position_B3.to(device),
            log_quat_B3=self.log_quat_B3.to(device),
            scene=None if self.scene is None else self.scene.to(device),
        )


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


class Move(NamedTuple):
    """How a sample is moved before it is shown.

    Attributes:
        T_camera_moved: (4, 4).
        columns: of a cylindrical depth image that the same turn is, to the right.
    """

    T_camera_moved: Array
    columns: int


def column_deg(config: TrainingConfig) -> float:
    """Degrees that a column of the network's depth image spans; 0 where depth is seen as by a camera."""
    projection, network = config.localizer.projection, config.network
    if config.localizer.input.depth_source not in ("points", "scan") or projection.kind != "cylindrical":
        return 0.0
    _, _, width, _ = centre_window(projection.height, projection.width, network.height, network.width)
    return projection.azimuth_deg * width / projection.width / config.stored_size()[1]


class BatchMaker:
    """Makes augmented training batches, or one process's part of each, out of a store."""

    def __init__(
        self,
        store: SampleStore,
        config: TrainingConfig,
        normalisation: Normalisation,
        part: Part | None = None,
        clips: Clips | None = None,
    ) -> None:
        """
        Args:
            store, config, normalisation: what the batches are made of.
            part: of every batch; by default all of it.
            clips: samples stand for clips that end at them; by default for themselves.
        """
        self._clips = clips
        self._store = store
        self._config = config
        self._normalisation = normalisation
        self._part = part or Part()
        self._mover = ViewMover(store.camera)
        self._column_deg = column_deg(config)

    def make(self, samples: NDArray[np.int64], seed: tuple[int, ...]) -> Batch:
        """This process's part of one batch; the same samples and seed give the same batch, in as many parts."""
        generator = np.random.default_rng(seed)
        clip, rows = 1, self._part.rows(len(samples))
        count = len(samples)
        if self._clips is not None:
            chosen = self._clips.rows(samples, generator)
            samples, clip = chosen.ravel(), chosen.shape[1]
            rows = range(rows.start * clip, rows.stop * clip)
        size = len(samples)
        free_y = self._store.camera.height - self._config.network.height
        free_x = self._store.camera.width - self._config.network.width
        y = np.repeat(generator.integers(0, free_y + 1, count), clip)
        x = np.repeat(generator.integers(0, free_x + 1, count), clip)
        dense = np.asarray(self._store.has_depth[samples].reshape(count, clip).all(axis=1))
        drawn = self._moves(dense, generator)
        moves = {row * clip + k: move for row, move in drawn.items() for k in range(clip)}
        views = self._views(samples, {row: moves[row] for row in rows if row in moves})
        inputs = {}
        for name, shown in choose_presence(self._store, samples, self._config, generator).items():
            draws = draw(count, generator)
            if clip > 1:
                draws = draws.in_clips(clip)
            if shown.any():
                here = np.flatnonzero(shown[rows.start : rows.stop]) + rows.start
                images = self._images(name, samples, here, y, x, draws, views)
                elsewhere = len(here) < np.count_nonzero(shown)
                inputs[name] = Present(images, torch.from_numpy(here - rows.start), bool(elsewhere))
        own = slice(rows.start, rows.stop)
        poses, camera = self._store.T_map_camera[samples[own]], self._store.camera
        for row in views:
            poses[row - rows.start] @= moves[row].T_camera_moved
        scene = self._scene(samples, rows, y, x, views, poses)
        if self._config.augmentation.turn_labels:
            poses = turned(poses, x[own] - free_x // 2, y[own] - free_y // 2, camera.fx, camera.fy)
        return Batch(inputs, *targets(poses, self._normalisation), samples[own], rows.start, size, clip, scene)

    def _scene(
        self,
        samples: NDArray[np.int64],
        rows: range,
        y: NDArray[np.int64],
        x: NDArray[np.int64],
        views: Mapping[int, View],
        poses_N44: Array,
    ) -> SceneTargets | None:
        """Where the cells of these rows lie, from depth without noise; None for networks that do not learn it."""
        network, camera = self._config.network, self._store.camera
        if not isinstance(network, SceneCoordinatesConfig):
            return None
        depth = np.zeros((len(rows), network.height, network.width), np.float32)
        for image, row in zip(depth, rows, strict=True):
            source = views[row][1] if row in views else self._store.depth_m[samples[row]]
            image[:] = source[y[row] : y[row] + network.height, x[row] : x[row] + network.width]
        down, right = centre_crop(camera.height, camera.width, network.height, network.width)
        own = slice(rows.start, rows.stop)
        shift = np.stack([x[own] - right.start, y[own] - down.start], axis=1)
        centred = camera.cropped(right.start, down.start, network.width, network.height)
        return scene_targets(depth, poses_N44, shift, centred, network.cell)

    def _moves(self, dense: NDArray[np.bool_], generator: np.random.Generator) -> dict[int, Move]:
        """By row (a clip, or a sample): how those are moved that are to be shown from a pose nearby.

        Args:
            dense: by row, whether all its frames have depth; without it a camera can be turned but not moved.
            generator: of the choices.
        """
        augmentation, size = self._config.augmentation, len(dense)
        if not augmentation.move_chance:
            return {}
        chosen = generator.random(size) < augmentation.move_chance
        if self._column_deg:
            columns = turns_by_columns(size, augmentation.move_deg, self._column_deg, generator)
            turns = [right_turn(np.deg2rad(count * self._column_deg)) for count in columns]
            return {int(row): Move(turns[row], int(columns[row])) for row in np.flatnonzero(chosen)}
        moves = random_moves(size, augmentation.move_m, augmentation.move_deg, generator)
        able = dense | (augmentation.move_m == 0.0)
        return {int(row): Move(moves[row], 0) for row in np.flatnonzero(chosen & able)}

    def _views(self, samples: NDArray[np.int64], moves: Mapping[int, Move]) -> dict[int, View]:
        """By row: colour and depth of the samples as the moved sensors would have seen them."""
        store, all_around = self._store, self._config.localizer.projection.azimuth_deg == 360.0
        if self._column_deg:
            return {
                row: (
                    self._mover.turn(store.rgb[samples[row]], move.T_camera_moved),
                    turned_cylinder(store.depth_m[samples[row]], move.columns, all_around),
                )
                for row, move in moves.items()
            }
        return {
            row: self._mover.move(store.rgb[samples[row]], store.depth_m[samples[row]], move.T_camera_moved)
            for row, move in moves.items()
        }

    def _images(
        self,
        name: str,
        samples: NDArray[np.int64],
        rows: NDArray[np.int64],
        y: NDArray[np.int64],
        x: NDArray[np.int64],
        draws: Draws,
        views: Mapping[int, View],
    ) -> Tensor:
        """Some rows, cut out at (x, y), changed and normalised, (N, C, H, W) with the channels last in memory."""
        network, augmentation = self._config.network, self._config.augmentation
        is_rgb = name == Modality.RGB
        source = self._store.rgb if is_rgb else self._store.depth_m
        crops = np.empty((len(rows), network.height, network.width, *source.shape[3:]), source.dtype)
        for crop, row in zip(crops, rows.tolist(), strict=True):
            image = views[row][0 if is_rgb else 1] if row in views else source[samples[row]]
            crop[:] = image[y[row] : y[row] + network.height, x[row] : x[row] + network.width]
        values = torch.from_numpy(crops).float()
        draws = draws.of(rows)
        changed = change_rgb(values, augmentation, draws) if is_rgb else change_depth(values, augmentation, draws)
        images = normalise(name, changed, self._normalisation, network)
        erase(images, augmentation, draws)
        return images.contiguous(memory_format=torch.channels_last)


def turned(poses_N44: Array, dx_N: NDArray[np.int64], dy_N: NDArray[np.int64], fx: float, fy: float) -> Array:
    """The poses of the cameras that a crop shifted by (dx, dy) pixels belongs to.

    A window shifted to the right is, to first order, what the camera would see turned to the right about its y axis;
    shifted down, turned about its negative x axis (optical axes: x right, y down, z forward).
    """
    turn = Rotation.from_rotvec(np.stack([-np.arctan(dy_N / fy), np.arctan(dx_N / fx), np.zeros(len(dx_N))], axis=1))
    result = poses_N44.copy()
    result[:, :3, :3] = poses_N44[:, :3, :3] @ turn.as_matrix()
    return result


def epoch_batches(samples: NDArray[np.int64], config: TrainingConfig, epoch: int) -> list[NDArray[np.int64]]:
    """This epoch's batches of sample indices, of nearly equal size, shuffled by seed and epoch alone."""
    order = np.random.default_rng((config.seed, epoch)).permutation(samples)
    return np.array_split(order, max(1, round(len(order) / config.optimizer.batch_size)))


def made_ahead(maker: BatchMaker, batches: list[NDArray[np.int64]], seed: tuple[int, ...]) -> Iterator[Batch]:
    """The epoch's batches; each is made by a second thread while the step before it runs.

    That thread uses one core only: more would take them from the step, and wait for each other.
    """
    with ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        upcoming: Future[Batch] = pool.submit(maker.make, batches[0], (*seed, 0))
        for index in range(len(batches)):
            batch = upcoming.result()
            if index + 1 < len(batches):
                upcoming = pool.submit(maker.make, batches[index + 1], (*seed, index + 1))
            yield batch
