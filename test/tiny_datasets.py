"""Small recordings in the publishers' layouts, with exactly known motion: a 7-Scenes sequence and a KITTI drive."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from pathlib import Path

import cv2
import numpy as np

from vmloc_ros.geometry import Array, exp_se3, inverse, make_pose

FOCAL, WIDTH, HEIGHT = 150.0, 160, 120

# ------------------------------------------------------------------------------------------------------------- 7-Scenes


def camera_pose(index: int) -> Array:
    """`T_map_camera` of frame `index`: a slow, uneven motion in front of a wall."""
    return exp_se3([0.5, -0.2, 0.1, 0.3, 0.2, 0.1]) @ exp_se3(
        [0.006 * index, 0.002 * index, 0.004 * index, 0.001 * index, 0.002 * index, 0.0]
    )


def render(index: int) -> tuple[np.ndarray, np.ndarray]:
    """(bgr, depth in mm) of a wavy wall with a smooth pattern, seen by the camera of frame `index`."""
    T_scene_camera = inverse(camera_pose(0)) @ camera_pose(index)
    v, u = np.mgrid[0:HEIGHT, 0:WIDTH].astype(float)
    rays = np.stack([(u - WIDTH / 2) / FOCAL, (v - HEIGHT / 2) / FOCAL, np.ones_like(u)], axis=-1)
    directions = rays @ T_scene_camera[:3, :3].T
    origin = T_scene_camera[:3, 3]
    depth = np.full(u.shape, 2.0)
    for _ in range(30):  # fixed point: the wall is z = 2 + waves(x, y), and waves are gentle
        x, y = (origin[k] + depth * directions[..., k] for k in (0, 1))
        wall = 2.0 + 0.25 * np.sin(2.0 * x) * np.cos(1.5 * y + 0.5) + 0.2 * x
        depth = (wall - origin[2]) / directions[..., 2]
    x, y = (origin[k] + depth * directions[..., k] for k in (0, 1))
    pattern = [
        127 + 60 * np.sin(9 * x + k) * np.cos(7 * y - k) + 50 * np.sin(23 * x + 17 * y + 2 * k) for k in range(3)
    ]
    return np.clip(np.stack(pattern, axis=-1), 0, 255).astype(np.uint8), np.rint(1000 * depth).astype(np.uint16)


def write_sequence(folder: Path, indices: range | list[int], suffix: str = "png") -> Path:
    """A sequence `folder/seq-01` with camera-intrinsics.txt beside it."""
    sequence = folder / "seq-01"
    sequence.mkdir(parents=True)
    np.savetxt(folder / "camera-intrinsics.txt", [[FOCAL, 0, WIDTH / 2], [0, FOCAL, HEIGHT / 2], [0, 0, 1]], fmt="%.9e")
    for index in indices:
        bgr, depth_mm = render(index)
        cv2.imwrite(str(sequence / f"frame-{index:06d}.color.{suffix}"), bgr)
        cv2.imwrite(str(sequence / f"frame-{index:06d}.depth.png"), depth_mm)
        np.savetxt(sequence / f"frame-{index:06d}.pose.txt", camera_pose(index), fmt="%.9e")
    return sequence


# ---------------------------------------------------------------------------------------------------------------- KITTI

START_NS = 1_317_042_504_000_000_000
PERIOD_NS = 100_000_000
SPEED_M_PER_S, TURN_RAD_PER_S = 9.0, 0.25
ORIGIN = (49.0, 8.4, 115.0)
T_VELO_IMU = make_pose(np.eye(3), [-0.8, 0.3, -0.8])
KITTI_SIZE = (80, 30)


def imu_pose(index: int) -> Array:
    """`T_map_imu` on a circle, level, the map's origin at index 0."""
    return make_pose(np.eye(3), [0.0, 0.0, 0.0]) @ exp_se3(
        index * PERIOD_NS / 1e9 * np.array([SPEED_M_PER_S, 0.0, 0.0, 0.0, 0.0, TURN_RAD_PER_S])
    )


def _oxts_line(index: int) -> str:
    pose = imu_pose(index)
    scale = math.cos(math.radians(ORIGIN[0])) * 6378137.0
    lon = ORIGIN[1] + math.degrees(pose[0, 3] / scale)
    north = scale * math.log(math.tan(math.radians(45.0 + ORIGIN[0] / 2))) + pose[1, 3]
    lat = 2.0 * (math.degrees(math.atan(math.exp(north / scale))) - 45.0)
    yaw = math.atan2(pose[1, 0], pose[0, 0])
    values = [lat, lon, ORIGIN[2] + pose[2, 3], 0.0, 0.0, yaw, 0.0, 0.0, SPEED_M_PER_S, 0.0, 0.0]
    values += [0.0] * 6 + [0.0, 0.0, TURN_RAD_PER_S] + [0.0] * 5
    return " ".join(f"{value:.13f}" for value in values) + " 4 7 4 4 0\n"


def _date(stamp_ns: int) -> str:
    moment = datetime.fromtimestamp(stamp_ns // 1_000_000_000, UTC)
    return f"{moment:%Y-%m-%d %H:%M:%S}.{stamp_ns % 1_000_000_000:09d}\n"


def kitti_scan(index: int) -> np.ndarray:
    """(N, 4) float32 around the scanner."""
    rng = np.random.default_rng(index)
    points = rng.uniform([-20, -20, -1.5, 0], [20, 20, 2, 1], (400, 4))
    return points.astype("<f4")


def write_drive(day: Path, frames: int = 6) -> Path:
    """A drive `day/2011_09_26_drive_0001_sync` with the calibrations in `day`."""
    drive = day / "2011_09_26_drive_0001_sync"
    focal, (width, height) = 60.0, KITTI_SIZE
    baseline = -0.06 * focal
    (day / "x").parent.mkdir(parents=True, exist_ok=True)
    (day / "calib_cam_to_cam.txt").write_text(
        f"calib_time: 09-Jan-2012 13:57:47\nR_rect_00: {' '.join(f'{v:.9e}' for v in np.eye(3).ravel())}\n"
        f"S_rect_02: {width:.6e} {height:.6e}\n"
        f"P_rect_02: {focal} 0 {width / 2} {baseline} 0 {focal} {height / 2} 0 0 0 1 0\n"
    )
    (day / "calib_velo_to_cam.txt").write_text("R: 0 -1 0 0 0 -1 1 0 0\nT: 0.0 -0.08 -0.27\n")
    (day / "calib_imu_to_velo.txt").write_text("R: 1 0 0 0 1 0 0 0 1\nT: -0.8 0.3 -0.8\n")
    for part in ("image_02", "velodyne_points", "oxts"):
        (drive / part / "data").mkdir(parents=True)
    stamps = [START_NS + index * PERIOD_NS for index in range(frames)]
    (drive / "image_02" / "timestamps.txt").write_text("".join(_date(s) for s in stamps))
    (drive / "oxts" / "timestamps.txt").write_text("".join(_date(s) for s in stamps))
    for name, offset in (("", 2_000_000), ("_start", -48_000_000), ("_end", 52_000_000)):
        text = "".join(_date(s + offset) for s in stamps)
        (drive / "velodyne_points" / f"timestamps{name}.txt").write_text(text)
    for index in range(frames):
        image = np.full((height, width, 3), 20 * (index % 12), dtype=np.uint8)
        cv2.imwrite(str(drive / "image_02" / "data" / f"{index:010d}.png"), image)
        kitti_scan(index).tofile(drive / "velodyne_points" / "data" / f"{index:010d}.bin")
        (drive / "oxts" / "data" / f"{index:010d}.txt").write_text(_oxts_line(index))
    return drive
