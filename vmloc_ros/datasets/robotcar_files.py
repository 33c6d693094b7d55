"""The files of the Oxford RobotCar dataset, one reader each.

The dataset's axes are robotics' older ones: x forward, y right, z down, for vehicle, sensors and INS alike; the world
is north, east, down. `AXES` turns them into ROS's (x forward, y left, z up). The "vehicle" is the stereo camera.
Formats: W. Maddern, G. Pascoe, C. Linegar, P. Newman, "1 Year, 1000 km: The Oxford RobotCar Dataset", IJRR 2017, and
its documentation.
"""

from __future__ import annotations

import csv
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from vmloc_ros.errors import DatasetError
from vmloc_ros.geometry import Array, exp_se3, inverse, log_se3, make_pose, orthonormalise
from vmloc_ros.trajectory import Trajectory

log = logging.getLogger(__name__)

AXES = np.diag([1.0, -1.0, -1.0, 1.0])
"""Forward-right-down to forward-left-up, and back."""

ENU_FROM_NED = np.array([[0.0, 1, 0, 0], [1, 0, 0, 0], [0, 0, -1, 0], [0, 0, 0, 1]])

OXFORD_ORIGIN_UTM = (620_000.0, 5_736_000.0, 110.0)
"""Easting, northing (zone 30U) and altitude of the map's origin. One for all traversals, so that they share a map."""

STEREO_TO_INS_XYZRPY = (-1.7132, 0.1181, 1.1948, -0.0125, 0.0400, 0.0050)
"""The calibration that the dataset publishes as `extrinsics/ins.txt`; for a `vo.csv` that stands alone."""

MICROSECOND_NS = 1000
GOOD = "INS_SOLUTION_GOOD"


@dataclass(frozen=True, eq=False)
class CameraModel:
    """A `models/*.txt`: ideal pinhole, and the turn from optical axes to the camera's own (x forward)."""

    fx: float
    fy: float
    cx: float
    cy: float
    T_camera_optical: Array


def pose_from_xyzrpy(xyzrpy: tuple[float, ...] | list[float] | Array) -> Array:
    """Pose of (x, y, z, roll, pitch, yaw): `R = Rz(yaw) Ry(pitch) Rx(roll)`, as everywhere in this dataset."""
    x, y, z, roll, pitch, yaw = (float(value) for value in xyzrpy)
    return make_pose(Rotation.from_euler("ZYX", [yaw, pitch, roll]).as_matrix(), [x, y, z])


def base_from_stereo(T_vehicle_ins: Array | None = None) -> Array:
    """`T_base_stereo`, both x forward, y left, z up; base_link is the INS."""
    T = pose_from_xyzrpy(STEREO_TO_INS_XYZRPY) if T_vehicle_ins is None else T_vehicle_ins
    return np.asarray(AXES @ inverse(T) @ AXES, dtype=float)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path}: cannot be read ({error})") from error


def _numbers(path: Path) -> list[float]:
    try:
        values = [float(word) for word in _text(path).split()]
    except ValueError as error:
        raise DatasetError(f"{path}: holds something that is not a number ({error})") from error
    if not np.isfinite(values).all():
        raise DatasetError(f"{path}: holds a number that is not finite")
    return values


def read_extrinsics(path: Path) -> Array:
    """The pose in an `extrinsics/*.txt` (`x y z roll pitch yaw`), in the dataset's axes.

    Of a lidar or the INS it is `T_vehicle_sensor`; of a camera the publishers' kit uses it as `T_camera_vehicle`.

    Raises:
        DatasetError: missing, or not six finite numbers.
    """
    values = _numbers(path)
    if len(values) != 6:
        raise DatasetError(f"{path}: needs six numbers (x y z roll pitch yaw), has {len(values)}")
    return pose_from_xyzrpy(values)


def read_camera_model(path: Path) -> CameraModel:
    """A `models/*.txt`: `fx fy cx cy`, then the 4x4 `T_camera_optical`.

    Raises:
        DatasetError: missing, not 20 finite numbers, or no camera.
    """
    values = _numbers(path)
    if len(values) != 20 or values[0] <= 0.0 or values[1] <= 0.0:
        raise DatasetError(f"{path}: needs `fx fy cx cy` (fx, fy > 0) and a 4x4 pose; has {len(values)} numbers")
    return CameraModel(values[0], values[1], values[2], values[3], np.array(values[4:]).reshape(4, 4))


def read_timestamps(path: Path) -> NDArray[np.int64]:
    """Stamps in nanoseconds of a `*.timestamps` file (`microseconds chunk` a line), sorted, repeated ones once.

    Raises:
        DatasetError: missing, or a line that does not start with a whole number.
    """
    stamps = []
    for number, line in enumerate(_text(path).splitlines(), 1):
        words = line.split()
        if not words:
            continue
        if not words[0].isdigit():
            raise DatasetError(f"{path}:{number}: needs microseconds first, has {words[0]!r}")
        stamps.append(int(words[0]) * MICROSECOND_NS)
    return np.unique(np.array(stamps, dtype=np.int64))


def _rows(path: Path, needed: tuple[str, ...]) -> Iterator[list[str]]:
    """The needed columns of a CSV file with a header; rows that are cut short come as empty lists."""
    lines = csv.reader(_text(path).splitlines())
    header = next(lines, None)
    if not header:
        raise DatasetError(f"{path}: is empty; it needs a header with {', '.join(needed)}")
    missing = [name for name in needed if name not in header]
    if missing:
        raise DatasetError(f"{path}: has no column {missing[0]!r} (it has {', '.join(header)})")
    columns = [header.index(name) for name in needed]
    for row in lines:
        if row:
            yield [row[column] for column in columns] if len(row) == len(header) else []


def _parse(rows: Iterator[list[str]], stamps: int) -> tuple[NDArray[np.int64], Array, int]:
    """Whole numbers (the first columns) and floats (the rest) of the sound rows, sorted by the first; dropped count."""
    whole: list[list[int]] = []
    real: list[list[float]] = []
    dropped = 0
    for row in rows:
        try:
            integers, floats = [int(word) for word in row[:stamps]], [float(word) for word in row[stamps:]]
        except ValueError:
            dropped += 1
            continue
        if not row or not np.isfinite(floats).all():
            dropped += 1
            continue
        whole.append(integers)
        real.append(floats)
    if not whole:
        return np.empty((0, stamps), dtype=np.int64), np.empty((0, 6)), dropped
    integers_NS, floats_N = np.array(whole, dtype=np.int64), np.array(real)
    _, first = np.unique(integers_NS[:, 0], return_index=True)
    return integers_NS[first], floats_N[first], dropped + len(whole) - len(first)


def load_ins(
    path: Path, origin_utm: tuple[float, float, float] = OXFORD_ORIGIN_UTM
) -> tuple[Trajectory, dict[str, int]]:
    """`T_map_base` of a `gps/ins.csv`, and how many rows were dropped for what.

    map: east, north, up from `origin_utm` (easting, northing, altitude); base: the INS with x forward, y left, z up.

    Raises:
        DatasetError: unreadable, no sound row, or further than 100 km from the origin.
    """
    names = ("timestamp", "northing", "easting", "down", "roll", "pitch", "yaw")
    bad_status = 0

    def sound() -> Iterator[list[str]]:
        nonlocal bad_status
        for row in _rows(path, (*names, "ins_status")):
            if row and row[-1] != GOOD:
                bad_status += 1
            else:
                yield row[:-1]

    stamps_us, values, broken = _parse(sound(), 1)
    dropped = {f"INS rows that are not {GOOD}": bad_status, "INS rows that are cut short or repeated": broken}
    dropped = {reason: count for reason, count in dropped.items() if count}
    for reason, count in dropped.items():
        log.warning("%s: dropped %d %s", path, count, reason)
    if not len(stamps_us):
        raise DatasetError(f"{path}: holds no sound row")
    easting, northing, altitude = origin_utm
    position = np.column_stack([values[:, 1] - easting, values[:, 0] - northing, -values[:, 2] - altitude])
    if float(np.abs(position).max()) > 100_000.0:
        raise DatasetError(f"{path}: lies over 100 km from the map's origin {origin_utm}; give the right origin")
    poses = np.tile(np.eye(4), (len(values), 1, 1))
    R_ned_ins = Rotation.from_euler("ZYX", values[:, [5, 4, 3]]).as_matrix()
    poses[:, :3, :3] = ENU_FROM_NED[:3, :3] @ R_ned_ins @ AXES[:3, :3]
    poses[:, :3, 3] = position
    return Trajectory(stamps_us[:, 0] * MICROSECOND_NS, poses), dropped


def read_ins_csv(path: Path, origin_utm: tuple[float, float, float] = OXFORD_ORIGIN_UTM) -> Trajectory:
    """`T_map_base` of a `gps/ins.csv` (see `load_ins`); rows whose status is not good are dropped with a warning."""
    return load_ins(path, origin_utm)[0]


def load_vo(path: Path) -> tuple[Trajectory, dict[str, int]]:
    """`T_odom_stereo` of a `vo/vo.csv`, both x forward, y left, z up, starting at the identity; and its gaps by kind.

    A row holds the pose of the camera at `source_timestamp` (the later one) in its own frame at
    `destination_timestamp`, x forward, y right, z down. Where a row is missing, the mean velocity of the rows on
    both sides bridges the gap, so that the path stays whole; a gap over `Trajectory.max_gap_s` is not interpolated.

    Raises:
        DatasetError: unreadable, or no sound row.
    """
    names = ("source_timestamp", "destination_timestamp", "x", "y", "z", "roll", "pitch", "yaw")
    stamps_us, values, broken = _parse(_rows(path, names), 2)
    forward = stamps_us[:, 0] > stamps_us[:, 1]
    stamps_us, values, broken = stamps_us[forward], values[forward], broken + int((~forward).sum())
    if not len(stamps_us):
        raise DatasetError(f"{path}: holds no sound row")
    steps = np.tile(np.eye(4), (len(values), 1, 1))
    steps[:, :3, :3] = Rotation.from_euler("ZYX", values[:, [5, 4, 3]]).as_matrix()
    steps[:, :3, 3] = values[:, :3]
    steps = AXES @ steps @ AXES
    poses, stamps = [np.eye(4)], [int(stamps_us[0, 1])]
    bridged = 0
    for k, (source, destination) in enumerate(stamps_us.tolist()):
        if destination > stamps[-1]:
            poses.append(poses[-1] @ _bridge(stamps_us, steps, k, destination - stamps[-1]))
            stamps.append(destination)
            bridged += 1
        elif destination < stamps[-1]:
            broken += 1  # overlaps the row before it: two claims on the same time
            continue
        poses.append(poses[-1] @ steps[k])
        stamps.append(source)
    counts = {"VO gaps, bridged by the velocity around them": bridged, "VO rows that are cut short or overlap": broken}
    counts = {reason: count for reason, count in counts.items() if count}
    for reason, count in counts.items():
        log.warning("%s: %d %s", path, count, reason)
    poses_N44 = np.array([orthonormalise(pose) for pose in poses])
    return Trajectory(np.array(stamps, dtype=np.int64) * MICROSECOND_NS, poses_N44), counts


def _bridge(stamps_us: NDArray[np.int64], steps: Array, k: int, gap_us: int) -> Array:
    """Motion over a gap before row `k`, at the mean velocity of the rows before and after it."""
    velocities = [log_se3(steps[row]) / float(stamps_us[row, 0] - stamps_us[row, 1]) for row in (k - 1, k) if row >= 0]
    return exp_se3(np.mean(velocities, axis=0) * gap_us)


def read_vo_csv(path: Path) -> Trajectory:
    """`T_odom_stereo` of a `vo/vo.csv` in ROS's axes (see `load_vo`); `base_from_stereo` moves it to base_link."""
    return load_vo(path)[0]
