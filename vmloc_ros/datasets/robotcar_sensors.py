"""The sensor files of the Oxford RobotCar dataset: raw images, lookup tables of the lens, lidar points."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from vmloc_ros.datasets.robotcar_files import CameraModel
from vmloc_ros.errors import DatasetError
from vmloc_ros.types import CameraInfo

PNG_END = b"IEND\xaeB`\x82"


def camera_info(stamp_ns: int, frame_id: str, width: int, height: int, model: CameraModel) -> CameraInfo:
    """The calibration of an ideal image; of a raw one it is all that the model file knows: no distortion."""
    K = np.array([[model.fx, 0.0, model.cx], [0.0, model.fy, model.cy], [0.0, 0.0, 1.0]])
    P = np.column_stack([K, np.zeros(3)])
    return CameraInfo(stamp_ns, frame_id, height, width, "plumb_bob", (0.0,) * 5, K, np.eye(3), P)


def read_bayer_png(path: Path) -> NDArray[np.uint8]:
    """A raw image (height, width) of 8-bit Bayer samples.

    Raises:
        DatasetError: missing, empty, truncated, not a PNG, or not 8-bit grey.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read ({error})") from error
    if not content.startswith(b"\x89PNG\r\n\x1a\n"):
        raise DatasetError(f"{path}: is not a PNG ({len(content)} bytes)")
    if not content.endswith(PNG_END):
        raise DatasetError(f"{path}: is truncated ({len(content)} bytes without a PNG's end)")
    image: Any = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    if image is None or image.ndim != 2 or image.dtype != np.uint8:
        raise DatasetError(f"{path}: is not one channel of 8 bits, as the dataset's raw Bayer images are")
    return image


def read_distortion_lut(path: Path) -> NDArray[np.float32]:
    """A `*_distortion_lut.bin` as (2, pixels): for every pixel of the ideal image, its column and row in the raw one.

    Raises:
        DatasetError: missing, empty, or not two equal rows of float64.
    """
    try:
        values = np.fromfile(path, dtype="<f8")
        size = path.stat().st_size
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read ({error})") from error
    if size == 0 or size % 16:
        raise DatasetError(f"{path}: {size} bytes are not two equal rows of float64; the file is truncated")
    return values.reshape(2, -1).astype(np.float32)


def undistort(rgb: NDArray[np.uint8], lut: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The ideal image: every pixel is sampled (linearly, black outside) where the lookup table (2, pixels) says."""
    height, width = rgb.shape[:2]
    columns, rows = lut.reshape(2, height, width)
    return np.asarray(cv2.remap(rgb, columns, rows, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT), dtype=np.uint8)


def read_lidar(path: Path, lidar: str) -> NDArray[np.float32]:
    """A lidar file as (N, 4) float32: x, y, z in metres in the sensor's own axes (z down), and intensity.

    Velodyne: float32, four rows (x, y, z, intensity). LD-MRS: float64, x y z a point, intensity 0. LMS: float64,
    x y reflectance a point, z = 0.

    Raises:
        DatasetError: missing, empty, or of a size that holds no whole number of points.
    """
    velodyne = lidar.startswith("velodyne")
    try:
        values = np.fromfile(path, dtype="<f4" if velodyne else "<f8")
        size = path.stat().st_size
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read ({error})") from error
    point_bytes = 16 if velodyne else 24
    if size == 0 or size % point_bytes:
        raise DatasetError(f"{path}: {size} bytes are not whole points of {point_bytes} bytes: empty or truncated")
    if velodyne:
        return np.ascontiguousarray(values.reshape(4, -1).T, dtype=np.float32)
    triples = values.reshape(-1, 3)
    points = np.zeros((len(triples), 4), dtype=np.float32)
    points[:, :2] = triples[:, :2]
    points[:, 2 if lidar == "ldmrs" else 3] = triples[:, 2]
    return points
