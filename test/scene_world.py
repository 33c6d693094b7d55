"""Made-up rooms and streets for tests: cells of an image whose places in the map a network would have said."""

from __future__ import annotations

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from vmloc_ros.geometry import Array, make_pose
from vmloc_ros.scene_alignment import AlignmentSettings, Cells

ROWS, COLUMNS = 15, 20


def rays(rows: int = ROWS, columns: int = COLUMNS, half_width: float = 0.57) -> Array:
    """Rays (rows * columns, 3) through the cells of an image with square cells, z = 1."""
    half_height = half_width * rows / columns
    x, y = np.meshgrid(np.linspace(-half_width, half_width, columns), np.linspace(-half_height, half_height, rows))
    return np.stack([x.ravel(), y.ravel(), np.ones(x.size)], 1)


def random_pose(rng: np.random.Generator, reach_m: float = 5.0) -> Array:
    """Any orientation, anywhere in a cube about the map's origin."""
    return make_pose(Rotation.random(random_state=rng).as_matrix(), rng.uniform(-reach_m, reach_m, 3))


def room_depths(rng: np.random.Generator, rays_N3: Array) -> Array:
    """Depths (N,) of a room's walls and floor and of boxes before them, metres."""
    depth_N = np.full(len(rays_N3), np.inf)
    for normal, distance in (
        (np.array([0.0, 0.1, 1.0]), rng.uniform(3.0, 4.0)),
        (np.array([1.0, 0.0, 0.3]), rng.uniform(1.5, 2.0)),
        (np.array([-1.0, 0.0, 0.2]), rng.uniform(1.5, 2.0)),
        (np.array([0.0, 1.0, 0.1]), rng.uniform(0.9, 1.2)),
    ):
        towards_N = rays_N3 @ normal
        with np.errstate(divide="ignore"):
            depth_N = np.where(towards_N > 0.0, np.minimum(depth_N, distance / towards_N), depth_N)
    for _ in range(4):
        near = np.abs(rays_N3[:, :2] - rng.uniform(-0.5, 0.5, 2)).max(1) < rng.uniform(0.08, 0.2)
        depth_N = np.where(near, np.minimum(depth_N, rng.uniform(1.0, 2.5)), depth_N)
    return depth_N


def cells_of(
    T_map_camera: Array,
    rng: np.random.Generator,
    sigma_m: float = 0.03,
    depth: bool = True,
    outliers: float = 0.0,
    settings: AlignmentSettings | None = None,
    anisotropic: bool = True,
    rows: int = ROWS,
    columns: int = COLUMNS,
) -> Cells:
    """One frame (B = 1) of a room seen from a pose, float64.

    Args:
        T_map_camera: where the camera is.
        rng: for the room and for the noise.
        sigma_m: typical standard deviation of the points; 0 = exact points and depths, which claim 1 cm.
        depth: whether the cells have returns.
        outliers: share of cells whose point lies anywhere in the room, and which claim to be as sure as the others.
        settings: whose depth noise the depths have; by default the default's.
        anisotropic: whether the standard deviations differ between axes (and cells) by up to a factor of 2 each way.
        rows, columns: of cells.
    """
    settings = settings or AlignmentSettings()
    rays_N3 = rays(rows, columns)
    true_N = room_depths(rng, rays_N3)
    points_N3 = (rays_N3 * true_N[:, None]) @ T_map_camera[:3, :3].T + T_map_camera[:3, 3]
    sigma_N3 = np.full_like(points_N3, sigma_m or 0.01)
    if anisotropic:
        sigma_N3 *= 2.0 ** rng.uniform(-1.0, 1.0, sigma_N3.shape)
    noise = 1.0 if sigma_m else 0.0
    points_N3 = points_N3 + noise * sigma_N3 * rng.normal(size=sigma_N3.shape)
    depth_sigma_N = settings.depth_sigma_m + settings.depth_sigma_share * true_N
    seen_N = true_N + noise * depth_sigma_N * rng.normal(size=len(true_N))
    wrong = rng.permutation(len(rays_N3))[: round(outliers * len(rays_N3))]
    points_N3[wrong] = T_map_camera[:3, 3] + rng.uniform(-4.0, 4.0, (len(wrong), 3))
    arrays = points_N3, sigma_N3**2, rays_N3, seen_N if depth else np.zeros(len(seen_N))
    tensors = [torch.from_numpy(np.ascontiguousarray(array))[None] for array in arrays]
    return Cells(tensors[0], tensors[1], tensors[2], tensors[3], torch.ones(1, len(rays_N3), dtype=torch.bool))


def batch_of(frames: list[Cells]) -> Cells:
    """Frames of equally many cells in one batch."""
    return Cells(*(torch.cat(tensors) for tensors in zip(*frames, strict=True)))
