"""The files of a KITTI raw drive: calibrations, timestamps, OXTS packets, Velodyne scans.

Formats and formulas: A. Geiger, P. Lenz, C. Stiller, R. Urtasun, "Vision meets robotics: the KITTI dataset", IJRR 2013,
and the publishers' development kit (Mercator projection, order of the angles).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from vmloc_ros.errors import DatasetError
from vmloc_ros.geometry import Array, inverse, make_pose

EARTH_RADIUS_M = 6378137.0
NANOSECONDS = 1_000_000_000
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
NO_STAMP = -1
OXTS_NUMBERS = 25
"""As many of a packet's 30 numbers are floats; the rest are states of the receiver."""


@dataclass(frozen=True, eq=False)
class Calibration:
    """Of the rectified camera 02 and the Velodyne.

    Attributes:
        K_33: the rectified camera's matrix; (height, width) of its images.
        T_camera_velo: into camera 02's own rectified frame (its optical centre, not camera 00's).
        T_velo_imu: from the IMU's frame (x forward, y left, z up).
    """

    K_33: Array
    height: int
    width: int
    T_camera_velo: Array
    T_velo_imu: Array


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path}: cannot be read ({error})") from error


def _entries(path: Path) -> dict[str, str]:
    pairs = (line.partition(":") for line in _text(path).splitlines())
    return {name.strip(): value for name, separator, value in pairs if separator}


def _matrix(path: Path, entries: dict[str, str], name: str, shape: tuple[int, ...]) -> Array:
    """One entry's numbers."""
    if name not in entries:
        raise DatasetError(f"{path}: has no entry {name}")
    try:
        numbers = np.array([float(word) for word in entries[name].split()])
    except ValueError as error:
        raise DatasetError(f"{path}: {name} is not a list of numbers ({error})") from error
    if numbers.size != math.prod(shape) or not np.isfinite(numbers).all():
        raise DatasetError(f"{path}: {name} needs {math.prod(shape)} finite numbers, has {numbers.size}")
    return numbers.reshape(shape)


def _rigid(path: Path) -> Array:
    """A 4x4 pose of a calibration file's R and T."""
    entries = _entries(path)
    R = _matrix(path, entries, "R", (3, 3))
    if np.abs(R @ R.T - np.eye(3)).max() > 1e-3 or np.linalg.det(R) < 0.0:
        raise DatasetError(f"{path}: R is no rotation")
    return make_pose(Rotation.from_matrix(R).as_matrix(), _matrix(path, entries, "T", (3,)))


def read_calibration(folder: Path) -> Calibration:
    """`calib_cam_to_cam.txt`, `calib_velo_to_cam.txt`, `calib_imu_to_velo.txt` of a day's folder.

    P_rect_02 = K [I | t] projects from camera 00's rectified frame; `t` is moved into the transform, so that the
    image's frame is camera 02's own and `K` alone projects.

    Raises:
        DatasetError: a file or an entry is missing or malformed.
    """
    path = folder / "calib_cam_to_cam.txt"
    entries = _entries(path)
    P = _matrix(path, entries, "P_rect_02", (3, 4))
    R_rect = _matrix(path, entries, "R_rect_00", (3, 3))
    width, height = (int(value) for value in _matrix(path, entries, "S_rect_02", (2,)))
    K = P[:, :3]
    if K[0, 0] <= 0.0 or K[1, 1] <= 0.0 or width <= 0 or height <= 0:
        raise DatasetError(f"{path}: P_rect_02 or S_rect_02 is of no camera")
    T_camera_rect = make_pose(np.eye(3), np.linalg.solve(K, P[:, 3]))
    T_rect_camera0 = make_pose(Rotation.from_matrix(R_rect).as_matrix(), np.zeros(3))
    T_camera_velo = T_camera_rect @ T_rect_camera0 @ _rigid(folder / "calib_velo_to_cam.txt")
    return Calibration(K, height, width, T_camera_velo, _rigid(folder / "calib_imu_to_velo.txt"))


def read_timestamps(path: Path) -> NDArray[np.int64]:
    """Nanoseconds (UTC) of lines such as `2011-09-26 13:08:24.967930880`, one per index.

    A drive that lost scans has empty lines in their place: they give `NO_STAMP`.

    Raises:
        DatasetError: missing, empty, or a line that is no date.
    """
    stamps = []
    for number, line in enumerate(_text(path).removesuffix("\n").split("\n"), 1):
        if not line.strip():
            stamps.append(NO_STAMP)
            continue
        whole, _, decimals = line.strip().partition(".")
        try:
            moment = datetime.strptime(whole, "%Y-%m-%d %H:%M:%S").replace(tzinfo=UTC)
            stamps.append(round((moment - EPOCH).total_seconds()) * NANOSECONDS + int((decimals + "0" * 9)[:9]))
        except ValueError as error:
            raise DatasetError(f"{path}:{number}: is not a date ({error})") from error
    if all(stamp == NO_STAMP for stamp in stamps):
        raise DatasetError(f"{path}: holds no timestamp")
    return np.array(stamps, dtype=np.int64)


# ---------------------------------------------------------------------------------------------------------------- OXTS


@dataclass(frozen=True, eq=False)
class OxtsPacket:
    """What the inertial system says at one instant.

    Attributes:
        lat_deg, lon_deg, alt_m: of the IMU.
        R_enu_imu: attitude (x forward, y left, z up in east, north, up).
        twist_imu_6: velocity (m/s) and turn rate (rad/s) in the IMU's axes.
    """

    lat_deg: float
    lon_deg: float
    alt_m: float
    R_enu_imu: Array
    twist_imu_6: Array

    def position(self, origin: tuple[float, float, float]) -> Array:
        """East, north, up of an origin (lat_deg, lon_deg, alt_m), by the Mercator projection of the publishers."""
        return _mercator(self.lat_deg, self.lon_deg, self.alt_m, origin[0]) - _mercator(*origin, origin[0])


def _mercator(lat_deg: float, lon_deg: float, alt_m: float, scale_lat_deg: float) -> Array:
    scale = math.cos(math.radians(scale_lat_deg))
    east = scale * EARTH_RADIUS_M * math.radians(lon_deg)
    north = scale * EARTH_RADIUS_M * math.log(math.tan(math.radians(45.0 + 0.5 * lat_deg)))
    return np.array([east, north, alt_m])


def read_oxts(path: Path) -> OxtsPacket:
    """One packet. Velocities are forward, left, up of a level vehicle, and are turned into the IMU's axes.

    Raises:
        DatasetError: missing, or its first 25 numbers are not finite numbers.
    """
    words = _text(path).split()
    try:
        values = [float(word) for word in words[:OXTS_NUMBERS]]
    except ValueError as error:
        raise DatasetError(f"{path}: is not an OXTS packet ({error})") from error
    if len(values) < OXTS_NUMBERS or not np.isfinite(values).all() or abs(values[0]) >= 89.0:
        raise DatasetError(f"{path}: an OXTS packet needs 25 finite numbers, latitude first")
    roll, pitch, yaw = values[3:6]
    tilt = Rotation.from_euler("ZYX", [0.0, pitch, roll])
    R_enu_imu = (Rotation.from_rotvec([0.0, 0.0, yaw]) * tilt).as_matrix()
    velocity = tilt.inv().apply(values[8:11])
    return OxtsPacket(values[0], values[1], values[2], R_enu_imu, np.r_[velocity, values[17:20]])


# ------------------------------------------------------------------------------------------------------------ Velodyne


def read_scan(path: Path) -> NDArray[np.float32]:
    """(N, 4) float32: x, y, z in metres (velodyne axes: x forward, y left, z up), reflectance.

    Raises:
        DatasetError: missing, empty, or not whole points.
    """
    try:
        size = path.stat().st_size
        if size == 0 or size % 16:
            raise DatasetError(f"{path}: {size} bytes are not whole points of 16 bytes: empty or truncated")
        return np.fromfile(path, dtype="<f4").reshape(-1, 4)
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read ({error})") from error


def turn_fraction(xyz_N3: NDArray[np.float32]) -> NDArray[np.float32]:
    """When in a turn each point was measured, 0 to 1 (N,).

    The scanner turns clockwise seen from above, from the rear by the left to the front (where it triggers the cameras)
    and on. The direction was checked on drive 0009: scans 0.8 s apart, each corrected for the vehicle's motion, fit
    better so than uncorrected (83 against 81 % of points within 10 cm), and worse the other way (78 %).
    """
    return np.asarray(0.5 - np.arctan2(xyz_N3[:, 1], xyz_N3[:, 0]) / (2.0 * np.pi), dtype=np.float32)


def T_map_imu(packet: OxtsPacket, origin: tuple[float, float, float]) -> Array:
    """Pose of the IMU in the local map (east, north, up)."""
    return make_pose(packet.R_enu_imu, packet.position(origin))


def imu_from_velo(calibration: Calibration) -> Array:
    """`T_imu_velo`."""
    return inverse(calibration.T_velo_imu)
