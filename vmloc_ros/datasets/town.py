"""Writes traversals of the synthetic town in the Oxford RobotCar dataset's own on-disk format.

What is written goes through exactly the code that reads a real traversal (`datasets.robotcar`): raw Bayer images, a
lookup table for undistortion (the town's lens is ideal, so the table is the identity), planar float32 lidar files,
visual odometry with drift, INS rows in a north-east-down world. The truth in `gps/ins.csv` is the pose that the
images and sweeps were rendered from; all points of a sweep are taken at the stamp in its name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from vmloc_ros.config import StrictModel
from vmloc_ros.datasets.robotcar_files import AXES, ENU_FROM_NED, OXFORD_ORIGIN_UTM
from vmloc_ros.datasets.town_drive import (
    SENSOR_EXTRINSICS,
    Drive,
    VoDrift,
    draw_light,
    mounting,
    visual_odometry,
    xyzrpy_from_poses,
)
from vmloc_ros.datasets.town_layout import SKIES, build_scene
from vmloc_ros.datasets.town_render import Light, Renderer
from vmloc_ros.datasets.town_scene import Scene
from vmloc_ros.geometry import Array, inverse
from vmloc_ros.types import PinholeIntrinsics

FIRST_STAMP_US = 1_600_000_000_000_000
BETWEEN_TRAVERSALS_US = 3_600_000_000
INS_HZ = 50.0
CHUNK = 24

OPTICAL = np.array([[0.0, 0, 1, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]])
"""`T_camera_optical`, as in the dataset's model files."""


class TownConfig(StrictModel):
    """What town, and how it is driven through."""

    seed: int = Field(1, ge=0, description="Everything follows from it.")
    traversals: int = Field(5, ge=1, le=1000, description="How many drives.")
    first: int = Field(0, ge=0, le=1000, description="Number of the first drive: earlier ones are not written.")
    loop_m: float = Field(350.0, ge=250.0, le=1000.0, description="Length of the closed road.")
    laps: float = Field(1.1, gt=0.0, description="How often a drive goes round.")
    width: int = Field(320, ge=32, le=4096, description="Image columns (even).", multiple_of=2)
    height: int = Field(240, ge=32, le=4096, description="Image rows (even).", multiple_of=2)
    image_hz: float = Field(10.0, gt=0.0, le=100.0, description="Images per second.")
    lidar_hz: float = Field(10.0, gt=0.0, le=100.0, description="Sweeps of the forward lidar per second.")
    scanner_hz: float = Field(25.0, gt=0.0, le=100.0, description="Scans of the push-broom scanner per second.")
    rings: int = Field(32, ge=1, le=128, description="Rings of the forward lidar, from -22 to +16 degrees.")
    columns: int = Field(200, ge=2, le=4000, description="Columns of the forward lidar, from -50 to +50 degrees.")
    lidar_range_m: float = Field(80.0, gt=0.0, description="Farther surfaces give no return.")
    lidar_noise_m: float = Field(0.02, ge=0.0, description="Deviation of a range.")
    lidar_dropout: float = Field(0.03, ge=0.0, lt=1.0, description="Share of returns that get lost.")
    drift: VoDrift = Field(default_factory=VoDrift)

    def camera(self) -> PinholeIntrinsics:
        """The camera: RobotCar's own field of view."""
        focal = 964.828979 / 1280.0 * self.width
        return PinholeIntrinsics(
            self.width, self.height, focal, focal, 643.788025 / 1280.0 * self.width, 484.40799 / 960.0 * self.height
        )


@dataclass(frozen=True)
class Traversal:
    """One drive's plan: everything that a worker needs to write any of its frames."""

    number: int
    drive: Drive
    light: Light
    stamps_us: dict[str, NDArray[np.int64]]
    start_us: int

    def poses(self, stamps_us: NDArray[np.int64]) -> Array:
        """`T_map_base` at stamps."""
        return self.drive.poses((stamps_us - self.start_us).astype(np.float64) * 1e-6)


def plan_traversal(config: TownConfig, scene: Scene, number: int) -> Traversal:
    """Start, speed, wander, light and stamps of a traversal; sensors are out of phase with each other."""
    rng = np.random.default_rng([config.seed, 3, number])
    drive = Drive(rng, scene.loop, config.laps)
    light = draw_light(rng, number % len(SKIES))
    start = FIRST_STAMP_US + number * BETWEEN_TRAVERSALS_US
    end = start + round(drive.duration_s * 1e6)
    stamps = {}
    for sensor, rate in (
        ("stereo", config.image_hz),
        ("velodyne_left", config.lidar_hz),
        ("lms_front", config.scanner_hz),
    ):
        first = start + 100_000 + round(float(rng.uniform(0.0, 1.0)) * 1e6 / rate)
        nominal = np.arange(first, end - 100_000, 1e6 / rate)
        stamps[sensor] = np.round(nominal + rng.uniform(-400.0, 400.0, len(nominal))).astype(np.int64)
    stamps["ins"] = np.arange(start, end + 20_000, round(1e6 / INS_HZ), dtype=np.int64)
    return Traversal(number, drive, light, stamps, start)


def write_town(folder: Path, config: TownConfig, workers: int, done: Callable[[int, int], None]) -> Scene:
    """Fills `folder` with `traversal_00`, ... and the calibration beside them; `done(so_far, total)` tells progress."""
    scene = build_scene(config.seed, config.loop_m)
    _write_calibration(folder, config)
    plans = [plan_traversal(config, scene, number) for number in drive_numbers(config)]
    for plan in plans:
        _write_tables(folder / traversal_name(plan.number), config, plan)
    jobs = list(_jobs(plans))
    total = sum(len(job[2]) for job in jobs)
    so_far = 0
    if workers <= 1:
        worker = Worker(folder, config, scene)
        for job in jobs:
            so_far += worker.run(*job)
            done(so_far, total)
        return scene
    with ProcessPoolExecutor(workers, get_context("spawn"), _start_worker, (folder, config)) as pool:
        for count in pool.map(_run_job, jobs):
            so_far += count
            done(so_far, total)
    return scene


def drive_numbers(config: TownConfig) -> range:
    """The drives that are written. A drive does not depend on which others are."""
    return range(config.first, config.first + config.traversals)


def traversal_name(number: int) -> str:
    return f"traversal_{number:02d}"


def _jobs(plans: list[Traversal]) -> Iterator[tuple[int, str, list[int]]]:
    """(traversal, sensor, indices) in pieces that keep workers evenly busy."""
    for plan in plans:
        for sensor, size in (("stereo", CHUNK), ("velodyne_left", CHUNK), ("lms_front", 8 * CHUNK)):
            count = len(plan.stamps_us[sensor])
            for first in range(0, count, size):
                yield plan.number, sensor, list(range(first, min(first + size, count)))


# ------------------------------------------------------------------------------------------------------------ workers


class Worker:
    """Renders and writes frames; holds the town of its process."""

    def __init__(self, folder: Path, config: TownConfig, scene: Scene) -> None:
        cv2.setNumThreads(1)
        self.folder, self.config, self.scene = folder, config, scene
        self._plans: dict[int, tuple[Traversal, Renderer]] = {}
        self._lidar_rays = lidar_rays(config)
        angles = np.deg2rad(np.arange(-135.0, 135.25, 0.5))
        self._scanner_rays = np.column_stack([np.cos(angles), np.sin(angles), np.zeros_like(angles)])

    def run(self, number: int, sensor: str, indices: list[int]) -> int:
        """Writes some frames of one sensor; how many."""
        if number not in self._plans:
            plan = plan_traversal(self.config, self.scene, number)
            self._plans = {number: (plan, Renderer(self.scene, plan.light))}
        plan, renderer = self._plans[number]
        stamps = plan.stamps_us[sensor][indices]
        write = {"stereo": self._image, "velodyne_left": self._sweep, "lms_front": self._scan}[sensor]
        for index, stamp, pose in zip(indices, stamps.tolist(), plan.poses(stamps), strict=True):
            rng = np.random.default_rng([self.config.seed, 4, number, len(sensor), index])
            write(self.folder / traversal_name(number), rng, renderer, pose, stamp)
        return len(indices)

    def _image(self, folder: Path, rng: np.random.Generator, renderer: Renderer, pose: Array, stamp: int) -> None:
        T_map_camera = pose @ AXES @ inverse(mounting("ins")) @ OPTICAL
        rgb, _ = renderer.image(T_map_camera, self.config.camera())
        noise = rng.standard_normal((self.config.height, self.config.width), dtype=np.float32)
        bayer = np.clip(np.round(mosaic(rgb) + renderer.light.noise * noise), 0.0, 255.0).astype(np.uint8)
        _, content = cv2.imencode(".png", bayer, [cv2.IMWRITE_PNG_COMPRESSION, 1])
        (folder / "stereo" / "centre" / f"{stamp}.png").write_bytes(content.tobytes())

    def _sweep(self, folder: Path, rng: np.random.Generator, renderer: Renderer, pose: Array, stamp: int) -> None:
        points, grey = self._returns(
            rng, renderer, pose @ AXES @ inverse(mounting("ins")) @ mounting("velodyne_left"), True
        )
        planar = np.vstack([points.T, grey]).astype("<f4")
        (folder / "velodyne_left" / f"{stamp}.bin").write_bytes(planar.tobytes())

    def _scan(self, folder: Path, rng: np.random.Generator, renderer: Renderer, pose: Array, stamp: int) -> None:
        points, grey = self._returns(
            rng, renderer, pose @ AXES @ inverse(mounting("ins")) @ mounting("lms_front"), False
        )
        triples = np.column_stack([points[:, :2], grey]).astype("<f8")
        (folder / "lms_front" / f"{stamp}.bin").write_bytes(triples.tobytes())

    def _returns(
        self, rng: np.random.Generator, renderer: Renderer, T_map_sensor: Array, forward: bool
    ) -> tuple[Array, NDArray[np.float32]]:
        """Points (N, 3) in the sensor's axes, and reflectances, of the rays that return."""
        rays = self._lidar_rays if forward else self._scanner_rays
        limit = self.config.lidar_range_m if forward else min(50.0, self.config.lidar_range_m)
        groups = max(1, len(rays) // (320 if forward else 60))
        ranges, grey = renderer.ranges(T_map_sensor[:3, 3], rays @ T_map_sensor[:3, :3].T, limit, groups)
        kept = np.isfinite(ranges) & (rng.random(len(rays)) >= self.config.lidar_dropout)
        noisy = ranges[kept] + rng.normal(0.0, self.config.lidar_noise_m, int(kept.sum()))
        return rays[kept] * noisy[:, None], grey[kept]


def lidar_rays(config: TownConfig) -> Array:
    """Unit vectors (columns x rings, 3) in the lidar's axes (x forward, y right, z down), column by column."""
    down = np.deg2rad(np.linspace(-16.0, 22.0, config.rings))[None, :]
    across = np.deg2rad(np.linspace(-50.0, 50.0, config.columns))[:, None]
    x, y, z = np.cos(down) * np.cos(across), np.cos(down) * np.sin(across), np.sin(down) + 0.0 * across
    return np.stack([x, y, z], axis=-1).reshape(-1, 3)


def mosaic(rgb: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The raw samples of the dataset's Bayer pattern: rows of green, blue and rows of red, green."""
    raw = rgb[:, :, 1].astype(np.float32)
    raw[0::2, 1::2] = rgb[0::2, 1::2, 2]
    raw[1::2, 0::2] = rgb[1::2, 0::2, 0]
    return raw


_worker: list[Worker] = []  # one per process of the pool


def _start_worker(folder: Path, config: TownConfig) -> None:
    _worker.append(Worker(folder, config, build_scene(config.seed, config.loop_m)))


def _run_job(job: tuple[int, str, list[int]]) -> int:
    return _worker[0].run(*job)


# -------------------------------------------------------------------------------------------------------------- tables


def _write_calibration(folder: Path, config: TownConfig) -> None:
    """`extrinsics/` and `models/` in the publishers' text formats."""
    for name in ("extrinsics", "models"):
        (folder / name).mkdir()
    for name, numbers in SENSOR_EXTRINSICS.items():
        (folder / "extrinsics" / f"{name}.txt").write_text(" ".join(f"{value:g}" for value in numbers) + "\n")
    camera = config.camera()
    lines = [f"{camera.fx:.6f} {camera.fy:.6f} {camera.cx:.6f} {camera.cy:.6f}"]
    lines += [" ".join(f"{value:.6f}" for value in row) for row in OPTICAL]
    (folder / "models" / "stereo_narrow_left.txt").write_text("\n".join(lines) + "\n")
    rows, columns = np.mgrid[0 : config.height, 0 : config.width]
    table = np.stack([columns.ravel(), rows.ravel()]).astype("<f8")
    (folder / "models" / "stereo_narrow_left_distortion_lut.bin").write_bytes(table.tobytes())


def _write_tables(folder: Path, config: TownConfig, plan: Traversal) -> None:
    """Everything of a traversal that is text."""
    for name in ("stereo/centre", "velodyne_left", "lms_front", "vo", "gps"):
        (folder / name).mkdir(parents=True)
    for sensor in ("stereo", "velodyne_left", "lms_front"):
        lines = [f"{stamp} 1\n" for stamp in plan.stamps_us[sensor].tolist()]
        (folder / f"{sensor}.timestamps").write_text("".join(lines))
    stamps = plan.stamps_us["stereo"]
    rng = np.random.default_rng([config.seed, 5, plan.number])
    steps = visual_odometry(rng, plan.poses(stamps), mounting("ins"), config.drift)
    lines = ["source_timestamp,destination_timestamp,x,y,z,roll,pitch,yaw\n"]
    for source, destination, row in zip(
        stamps[1:].tolist(), stamps[:-1].tolist(), xyzrpy_from_poses(steps).tolist(), strict=True
    ):
        lines.append(f"{source},{destination}," + ",".join(f"{value:.9e}" for value in row) + "\n")
    (folder / "vo" / "vo.csv").write_text("".join(lines))
    (folder / "gps" / "ins.csv").write_text(_ins_table(plan))


def _ins_table(plan: Traversal) -> str:
    """`gps/ins.csv`: north, east, down; latitude and longitude by the tangent plane at the map's origin."""
    stamps = plan.stamps_us["ins"]
    poses = plan.poses(stamps)
    t, step = (stamps - plan.start_us).astype(np.float64) * 1e-6, 1e-3
    velocity = (plan.drive.poses(t + step)[:, :3, 3] - plan.drive.poses(t - step)[:, :3, 3]) / (2.0 * step)
    easting, northing, altitude = OXFORD_ORIGIN_UTM
    angles = xyzrpy_from_poses(ENU_FROM_NED.T @ poses @ AXES)[:, 3:]
    header = (
        "timestamp,ins_status,latitude,longitude,altitude,northing,easting,down,utm_zone,"
        "velocity_north,velocity_east,velocity_down,roll,pitch,yaw\n"
    )
    lines = [header]
    for stamp, (x, y, z), (east, north, up), rpy in zip(
        stamps.tolist(), poses[:, :3, 3].tolist(), velocity.tolist(), angles.tolist(), strict=True
    ):
        lines.append(
            f"{stamp},INS_SOLUTION_GOOD,{51.7651 + y / 111_260.0:.8f},{-1.2613 + x / 68_950.0:.8f},{z + altitude:.6f},"
            f"{y + northing:.6f},{x + easting:.6f},{-z - altitude:.6f},30U,{north:.6f},{east:.6f},{-up:.6f},"
            + ",".join(f"{value:.8f}" for value in rpy)
            + "\n"
        )
    return "".join(lines)
