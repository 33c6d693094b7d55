"""Points to range images: a pinhole view, and the cylindrical view of the VMLoc paper. The nearest return wins.

Empty pixels are 0. No interpolation, no splatting: every value is the depth of one point that falls into the pixel.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from vmloc_ros.types import PinholeIntrinsics


def project_pinhole(
    xyz_camera_N3: NDArray[np.float32], camera: PinholeIntrinsics, min_range_m: float, max_range_m: float
) -> NDArray[np.float32]:
    """Depth image of points given in the camera's optical axes (x right, y down, z forward).

    A point belongs to the pixel whose centre is nearest, `floor(f x / z + c + 0.5)`; points that are behind, outside,
    not finite, or whose distance from the optical centre is not within the two ranges are left out.

    Returns:
        (camera.height, camera.width) float32 metres along the optical axis, 0 = no return.
    """
    xyz = np.asarray(xyz_camera_N3, dtype=np.float32)
    x, y, z = xyz[:, 0], xyz[:, 1], xyz[:, 2]
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        u = x / z
        u *= np.float32(camera.fx)
        u += np.float32(camera.cx + 0.5)
        v = y / z
        v *= np.float32(camera.fy)
        v += np.float32(camera.cy + 0.5)
        inside = (z > 0.0) & (u >= 0.0) & (u < camera.width) & (v >= 0.0) & (v < camera.height)
    kept = np.flatnonzero(inside & _in_range(xyz, min_range_m, max_range_m))
    # u and v are not negative here: cutting the decimals off is the floor.
    pixel = v[kept].astype(np.intp) * camera.width + u[kept].astype(np.intp)
    return _nearest(pixel, z[kept], camera.height, camera.width)


def project_cylindrical(
    xyz_N3: NDArray[np.float32],
    width: int,
    height: int,
    azimuth_deg: float = 360.0,
    elevation_deg: tuple[float, float] = (-30.0, 15.0),
    min_range_m: float = 0.0,
    max_range_m: float = math.inf,
) -> NDArray[np.float32]:
    """Range image of points given in the lidar's axes (x forward, y left, z up), unrolled from a cylinder.

    The front view of Chen et al., "Multi-View 3D Object Detection Network for Autonomous Driving" (MV3D), CVPR 2017,
    section 3.1, which VMLoc uses: `c = floor(atan2(y, x) / d_theta)`, `r = floor(atan2(z, sqrt(x^2 + y^2)) / d_phi)`.
    Here columns and rows are counted from the upper left as in an image: straight ahead is the middle column, left is
    left, up is up; `d_theta = azimuth_deg / width`, `d_phi` the span of `elevation_deg` over `height`.

    Args:
        xyz_N3: (N, 3) metres.
        width: columns.
        height: rows.
        azimuth_deg: width of the view, centred straight ahead; 360 is all around.
        elevation_deg: lowest and highest elevation of the view (the sensor's beams).
        min_range_m: nearer points are left out.
        max_range_m: farther points are left out.

    Returns:
        (height, width) float32: distance from the lidar in metres, 0 = no return. (Not the depth along an axis: a view
        all around has none.)
    """
    if not 0.0 < azimuth_deg <= 360.0 or not -90.0 <= elevation_deg[0] < elevation_deg[1] <= 90.0:
        raise ValueError(f"no such view: azimuth {azimuth_deg}, elevation {elevation_deg} degrees")
    xyz = np.asarray(xyz_N3, dtype=np.float32)
    xyz = xyz[_in_range(xyz, min_range_m, max_range_m)]
    x, y, z = xyz[:, 0], xyz[:, 1], xyz[:, 2]
    level = np.hypot(x, y)
    half_width = math.radians(azimuth_deg) / 2.0
    lowest, highest = (math.radians(angle) for angle in elevation_deg)
    column = np.floor((half_width - np.arctan2(y, x)) * np.float32(width / (2.0 * half_width)))
    row = np.floor((highest - np.arctan2(z, level)) * np.float32(height / (highest - lowest)))
    if azimuth_deg == 360.0:  # straight behind is the seam: rounding may put it one column outside
        column = np.clip(column, 0, width - 1)
    kept = np.flatnonzero((column >= 0) & (column < width) & (row >= 0) & (row < height))
    pixel = row[kept].astype(np.intp) * width + column[kept].astype(np.intp)
    return _nearest(pixel, np.hypot(level[kept], z[kept]), height, width)


def _in_range(xyz: NDArray[np.float32], min_range_m: float, max_range_m: float) -> NDArray[np.bool_]:
    """Whether points are finite and their distance is positive and within the limits."""
    x, y, z = xyz[:, 0], xyz[:, 1], xyz[:, 2]
    with np.errstate(invalid="ignore", over="ignore"):
        square = x * x
        square += y * y
        square += z * z
        near, far = min_range_m * min_range_m, max_range_m * max_range_m
        return np.asarray((square > 0.0) & (square < np.inf) & (square >= near) & (square <= far), dtype=bool)


def _nearest(pixel: NDArray[np.intp], distance: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    """The smallest distance of every pixel. `minimum.at` is exact whatever the order, and faster than any sort."""
    image = np.full(height * width, np.inf, dtype=np.float32)
    np.minimum.at(image, pixel, distance)
    image[np.isinf(image)] = 0.0
    return image.reshape(height, width)
