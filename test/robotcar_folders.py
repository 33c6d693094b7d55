"""The CSV files of a RobotCar traversal, written from poses in the publishers' conventions."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from vmloc_ros.datasets.robotcar_files import OXFORD_ORIGIN_UTM
from vmloc_ros.datasets.town_drive import xyzrpy_from_poses
from vmloc_ros.geometry import Array

INS_HEADER = (
    "timestamp,ins_status,latitude,longitude,altitude,northing,easting,down,utm_zone,"
    "velocity_north,velocity_east,velocity_down,roll,pitch,yaw\n"
)


def write_ins(path: Path, rows: list[tuple[int, str, float, float, float, float, float, float]]) -> None:
    """Rows of (microseconds, status, north, east, down from the map's origin, roll, pitch, yaw)."""
    easting, northing, altitude = OXFORD_ORIGIN_UTM
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [
        f"{t},{status},51.7,-1.2,0,{n + northing},{e + easting},{d - altitude},30U,0,0,0,{roll},{pitch},{yaw}\n"
        for t, status, n, e, d, roll, pitch, yaw in rows
    ]
    path.write_text(INS_HEADER + "".join(lines))


def write_vo(path: Path, stamps_us: list[int], steps: list[Array]) -> None:
    """One row a step: the pose of the later camera in the earlier one (x forward, y right, z down)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = xyzrpy_from_poses(np.array(steps)).tolist()
    lines = ["source_timestamp,destination_timestamp,x,y,z,roll,pitch,yaw\n"]
    for before, after, row in zip(stamps_us[:-1], stamps_us[1:], rows, strict=True):
        lines.append(f"{after},{before}," + ",".join(f"{value:.12e}" for value in row) + "\n")
    path.write_text("".join(lines))
