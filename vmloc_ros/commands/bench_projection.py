"""How long lidar points take to become a depth image, against straightforward numpy timed in the same run."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vmloc_ros.accumulation import accumulate
from vmloc_ros.clouds import Cloud
from vmloc_ros.config import ProjectionConfig
from vmloc_ros.geometry import Array, exp_se3, inverse
from vmloc_ros.odometry import OdometryBuffer
from vmloc_ros.projection import project_cylindrical, project_pinhole
from vmloc_ros.types import PinholeIntrinsics

CAMERA = PinholeIntrinsics(width=341, height=256, fx=250.0, fy=250.0, cx=170.0, cy=127.5)
SWEEP_NS = 100_000_000
MIN_RANGE_M, MAX_RANGE_M = 0.5, 80.0


@dataclass(frozen=True, slots=True)
class BenchRow:
    """One line of `vmloc bench`: medians in milliseconds, `ratio` = reference_ms / ms (more is better)."""

    name: str
    ms: float
    reference_ms: float
    ratio: float


def bench_projection(points: int = 60_000, repeats: int = 30, seed: int = 0) -> list[BenchRow]:
    """Times projection and de-skewing of one sweep on the calling thread.

    Every point is in view, the worst case. Both sides of a pair run alternately, so that what else the machine does
    hits both.
    """
    rng = np.random.default_rng(seed)
    depth = rng.uniform(2.0, 60.0, points)
    pixel = rng.uniform([0.0, 0.0], [CAMERA.width - 1.0, CAMERA.height - 1.0], (points, 2))
    rays = (pixel - [CAMERA.cx, CAMERA.cy]) / [CAMERA.fx, CAMERA.fy]
    optical = np.column_stack([rays * depth[:, None], depth]).astype(np.float32)
    around = rng.uniform([-40.0, -40.0, -3.0], [40.0, 40.0, 3.0], (points, 3)).astype(np.float32)
    stamps_ns = np.sort(rng.integers(0, SWEEP_NS, points))
    cloud, odometry = Cloud(0, "lidar", around, stamps_ns), _odometry()
    # What is timed is the movement: every point, whatever the default limit.
    config = ProjectionConfig(max_points=points)
    size = f"{points} points"
    view = f"{CAMERA.width}x{CAMERA.height}"
    pairs: list[tuple[str, Callable[[], object], Callable[[], object]]] = [
        (
            f"pinhole depth image {view} of {size}",
            lambda: project_pinhole(optical, CAMERA, MIN_RANGE_M, MAX_RANGE_M),
            lambda: pinhole_reference(optical, CAMERA, MIN_RANGE_M, MAX_RANGE_M),
        ),
        (
            f"cylindrical image 1024x64 of {size}",
            lambda: project_cylindrical(around, 1024, 64),
            lambda: cylindrical_reference(around, 1024, 64),
        ),
        (
            f"motion compensation and de-skewing of {size}",
            lambda: accumulate([cloud], SWEEP_NS // 2, odometry, np.eye(4), config),
            lambda: deskew_reference(cloud, SWEEP_NS // 2, odometry),
        ),
    ]
    return [_timed(name, ours, reference, repeats) for name, ours, reference in pairs]


def _timed(name: str, ours: Callable[[], object], reference: Callable[[], object], repeats: int) -> BenchRow:
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(repeats + 1):
        for work, spent in zip((ours, reference), times, strict=True):
            start = time.perf_counter()
            work()
            if turn:  # the first turn warms caches up
                spent.append(1e3 * (time.perf_counter() - start))
    ms, reference_ms = statistics.median(times[0]), statistics.median(times[1])
    return BenchRow(name, ms, reference_ms, reference_ms / ms)


def _odometry() -> OdometryBuffer:
    """Driving and turning, at 100 Hz."""
    buffer = OdometryBuffer(10.0)
    pose = np.eye(4)
    for stamp_ns in range(-SWEEP_NS, 2 * SWEEP_NS + 1, 10_000_000):
        buffer.insert(stamp_ns, pose)
        pose = pose @ exp_se3([0.1, 0.0, 0.0, 0.0, 0.0, 0.005])
    return buffer


def pinhole_reference(
    xyz_N3: NDArray[np.float32], camera: PinholeIntrinsics, min_range_m: float, max_range_m: float
) -> NDArray[np.float32]:
    """As one would write it: multiply by the camera matrix, sort by pixel and depth, take the first of each pixel."""
    distance = np.linalg.norm(xyz_N3, axis=1)
    points = xyz_N3[(xyz_N3[:, 2] > 0) & (distance >= min_range_m) & (distance <= max_range_m)]
    projected = points @ camera.matrix().T
    pixel = np.floor(projected[:, :2] / projected[:, 2:] + 0.5).astype(int)
    inside = (pixel >= 0).all(axis=1) & (pixel < [camera.width, camera.height]).all(axis=1)
    index = pixel[inside, 1] * camera.width + pixel[inside, 0]
    return _first_of_each(index, points[inside, 2], camera.height, camera.width)


def cylindrical_reference(xyz_N3: NDArray[np.float32], width: int, height: int) -> NDArray[np.float32]:
    """The formula in float64, then the same sort."""
    x, y, z = xyz_N3.astype(float).T
    low, high = np.radians([-30.0, 15.0])
    column = np.floor((np.pi - np.arctan2(y, x)) / (2 * np.pi / width)).astype(int).clip(0, width - 1)
    row = np.floor((high - np.arctan2(z, np.sqrt(x**2 + y**2))) / ((high - low) / height)).astype(int)
    inside = (row >= 0) & (row < height)
    distance = np.linalg.norm(xyz_N3, axis=1)
    return _first_of_each((row * width + column)[inside], distance[inside], height, width)


def _first_of_each(
    index: NDArray[np.int_], distance: NDArray[np.float32], height: int, width: int
) -> NDArray[np.float32]:
    order = np.lexsort((distance, index))
    index, distance = index[order], distance[order]
    first = np.concatenate([[True], index[1:] != index[:-1]])
    image = np.zeros(height * width, dtype=np.float32)
    image[index[first]] = distance[first]
    return image.reshape(height, width)


def deskew_reference(cloud: Cloud, stamp_ns: int, odometry: OdometryBuffer) -> Array:
    """One pose per point."""
    T_odom_frame = odometry.pose_at(stamp_ns)
    T_odom_base = None if cloud.stamps_ns_N is None else odometry.poses_at(cloud.stamps_ns_N)
    if T_odom_frame is None or T_odom_base is None:
        raise ValueError("the odometry does not cover the cloud")
    T_frame_base = inverse(T_odom_frame) @ T_odom_base
    return np.einsum("nij,nj->ni", T_frame_base[:, :3, :3], cloud.xyz_N3) + T_frame_base[:, :3, 3]
