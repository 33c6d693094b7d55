"""A drive through the town: where the vehicle is at any time, what its odometry makes of it, and in what light."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from pydantic import Field
from scipy.spatial.transform import Rotation

from vmloc_ros.config import StrictModel
from vmloc_ros.datasets.robotcar_files import pose_from_xyzrpy
from vmloc_ros.datasets.town_render import Light
from vmloc_ros.datasets.town_scene import Loop
from vmloc_ros.geometry import Array, exp_so3, inverse, make_pose

LANE_M = 1.5
BASE_HEIGHT_M = 0.45


class VoDrift(StrictModel):
    """Errors of the visual odometry. `scale` and `yaw_rad_per_m` keep their size and take a sign per traversal."""

    scale: float = Field(0.015, ge=0.0, description="Relative error of every distance driven.")
    yaw_rad_per_m: float = Field(1.0e-4, ge=0.0, description="Yaw that is gained per metre.")
    noise_m: float = Field(0.004, ge=0.0, description="White position deviation per sqrt(metre), each axis.")
    noise_rad: float = Field(4.0e-4, ge=0.0, description="White rotation deviation per sqrt(metre), each axis.")


LOOP_DRIFT = VoDrift(scale=0.046, yaw_rad_per_m=2.5e-4)
"""As bad as RobotCar's LOOP: relative poses over 100 m are wrong by 4 % on the town's road, whose 100 m are a bent
path of some 85 m as the crow flies."""


@dataclass(frozen=True)
class _Wave:
    size: float
    rate: float
    phase: float

    def at(self, x: Array) -> Array:
        return np.asarray(self.size * np.sin(self.rate * x + self.phase))

    def integral(self, x: Array) -> Array:
        return np.asarray(self.size / self.rate * (np.cos(self.phase) - np.cos(self.rate * x + self.phase)))


class Drive:
    """One traversal, smooth and exact at any time: `poses(t)` is `T_map_base` (x forward, y left, z up; INS)."""

    def __init__(self, rng: np.random.Generator, loop: Loop, laps: float) -> None:
        self._loop = loop
        self.start_m = float(rng.uniform(0.0, loop.length_m))
        self.speed = float(rng.uniform(7.6, 8.4))
        phases = rng.uniform(0.0, 2.0 * np.pi, 9)
        self._speed_waves = [_Wave(1.0, 2.0 * np.pi / 17.0, phases[0]), _Wave(0.55, 2.0 * np.pi / 6.3, phases[1])]
        wander = float(rng.uniform(0.5, 1.2))
        self._wander = [
            _Wave(0.65 * wander, 2.0 * np.pi / 58.0, phases[2]),
            _Wave(0.35 * wander, 2.0 * np.pi / 23.0, phases[3]),
        ]
        self._roll = [_Wave(0.008, 2.0 * np.pi / 2.9, phases[4]), _Wave(0.004, 2.0 * np.pi / 1.1, phases[5])]
        self._pitch = [_Wave(0.006, 2.0 * np.pi / 3.7, phases[6]), _Wave(0.003, 2.0 * np.pi / 0.9, phases[7])]
        self._heave = [_Wave(0.02, 2.0 * np.pi / 1.7, phases[8])]
        self.duration_s = self._duration(laps * loop.length_m)

    def _duration(self, length_m: float) -> float:
        low, high = 0.0, 2.0 * length_m / self.speed + 10.0
        for _ in range(60):
            middle = 0.5 * (low + high)
            low, high = (middle, high) if float(self.driven(np.array(middle))) < length_m else (low, middle)
        return high

    def driven(self, t: Array) -> Array:
        """Metres along the centre line since the start; the speed stays between 6 and 10 m/s."""
        return np.asarray(self.speed * t + sum(wave.integral(t) for wave in self._speed_waves))

    def _position(self, t: Array) -> Array:
        s = self.start_m + self.driven(t)
        lateral = np.asarray(LANE_M + sum(wave.at(s) for wave in self._wander))
        return np.asarray(self._loop.point(s) + lateral[..., None] * self._loop.normal(s))

    def poses(self, t_N: Array) -> Array:
        """(N, 4, 4) poses at times in seconds since the start."""
        step = 1e-3
        ahead = self._position(t_N + step) - self._position(t_N - step)
        yaw = np.arctan2(ahead[:, 1], ahead[:, 0])
        pitch, roll = (sum(wave.at(t_N) for wave in waves) for waves in (self._pitch, self._roll))
        poses = np.tile(np.eye(4), (len(t_N), 1, 1))
        poses[:, :3, :3] = Rotation.from_euler("ZYX", np.column_stack([yaw, pitch, roll])).as_matrix()
        poses[:, :2, 3] = self._position(t_N)
        poses[:, 2, 3] = BASE_HEIGHT_M + sum(wave.at(t_N) for wave in self._heave)
        return poses


def visual_odometry(rng: np.random.Generator, poses_N44: Array, T_vehicle_ins: Array, drift: VoDrift) -> Array:
    """(N-1, 4, 4): the pose of each stereo frame in the one before it (x forward, y right, z down), with drift.

    Args:
        poses_N44: `T_map_base` at the images' stamps.
    """
    flip = np.diag([1.0, -1.0, -1.0, 1.0])
    stereo = poses_N44 @ (flip @ inverse(T_vehicle_ins))
    scale = 1.0 + drift.scale * float(rng.choice([-1.0, 1.0]))
    yaw = drift.yaw_rad_per_m * float(rng.choice([-1.0, 1.0]))
    steps = []
    for before, after in pairwise(stereo):
        step = inverse(before) @ after
        length = float(np.linalg.norm(step[:3, 3]))
        shift = rng.normal(0.0, drift.noise_m, 3) * np.sqrt(length)
        turn = rng.normal(0.0, drift.noise_rad, 3) * np.sqrt(length) + np.array([0.0, 0.0, yaw * length])
        steps.append(make_pose(step[:3, :3] @ exp_so3(turn), scale * step[:3, 3] + shift))
    return np.array(steps)


def xyzrpy_from_poses(poses_N44: Array) -> Array:
    """(N, 6) x, y, z, roll, pitch, yaw: the inverse of `pose_from_xyzrpy`."""
    angles = Rotation.from_matrix(poses_N44[:, :3, :3]).as_euler("ZYX")
    return np.column_stack([poses_N44[:, :3, 3], angles[:, ::-1]])


def draw_light(rng: np.random.Generator, sky: int) -> Light:
    """The weather of a traversal under one of the skies: 0 clear, 1 broken clouds, 2 overcast."""
    sun = (0.55, 0.40, 0.12)[sky] * float(rng.uniform(0.85, 1.15))
    warm = float(rng.uniform(-0.06, 0.06))
    return Light(
        sun_azimuth_rad=float(rng.uniform(0.0, 2.0 * np.pi)),
        sun_elevation_rad=float(rng.uniform(0.5, 1.0)),
        sun=sun,
        ambient=(0.62, 0.70, 0.84)[sky],
        gain=float(rng.uniform(0.82, 1.12)),
        contrast=float(rng.uniform(0.88, 1.1)),
        white_3=(1.0 + warm, 1.0, 1.0 - warm),
        haze_m=float(rng.uniform(350.0, 900.0)),
        sky=sky,
        noise=float(rng.uniform(1.5, 3.0)),
    )


SENSOR_EXTRINSICS = {
    "stereo": (0.0, 0.0, 0.0, 0.0, 0.0, 0.0),
    "ins": (-1.7132, 0.1181, 1.1948, -0.0125, 0.0400, 0.0050),
    "velodyne_left": (-0.15, 0.04, -0.32, 0.004, 0.012, -0.006),
    "lms_front": (1.7589, 0.2268, 1.0411, -0.0437, -1.4572, 0.0356),
}
"""Mountings (x y z roll pitch yaw in the vehicle's axes: forward, right, down). The lidar sits above the camera."""


def mounting(name: str) -> Array:
    """`T_vehicle_sensor`."""
    return pose_from_xyzrpy(SENSOR_EXTRINSICS[name])
