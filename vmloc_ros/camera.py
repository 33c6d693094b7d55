"""Calibrated cameras: from what `sensor_msgs/CameraInfo` says to an ideal pinhole image.

Pixel centres are at whole numbers. A region of interest and binning are undone by the laws of
`PinholeIntrinsics.cropped` and `resized`, so a binned pixel's centre is the centre of the pixels that it sums.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from vmloc_ros.errors import CameraError
from vmloc_ros.geometry import Array
from vmloc_ros.types import CameraInfo, PinholeIntrinsics

PLUMB_BOB = "plumb_bob"
RATIONAL = "rational_polynomial"
EQUIDISTANT = "equidistant"

COEFFICIENTS: dict[str, tuple[int, ...]] = {PLUMB_BOB: (4, 5), RATIONAL: (8, 12, 14), EQUIDISTANT: (4,)}
"""Distortion model: how many coefficients D may have, in OpenCV's order."""

MAX_SIDE = 32766
"""OpenCV's `remap` counts pixels in 16 bits."""


class Rectifier:
    """Turns one camera's images into those of an ideal pinhole camera; the maps are computed once per image size.

    With `rectified` the images are so already: `P` describes them, they pass through, and their size is checked.
    Without, `K` and `D` describe them; they are undistorted, keeping the focal lengths and principal point of `K`,
    and turned by `R` where it is a rotation other than identity (stereo), because the header's frame is then that of
    the turned camera. A region of interest and binning of the calibration are honoured.

    Attributes:
        intrinsics: of the images that `rectify` gives.
        T_frame_camera: (4, 4) the optical centre in the frame that the header names: identity, except for a camera
            whose `P` has a fourth column (the right one of a stereo pair, KITTI's colour cameras).
    """

    def __init__(self, info: CameraInfo, rectified: bool) -> None:
        """Prepares for one calibration.

        Raises:
            CameraError: no size, a focal length that is not positive, numbers that are not finite, an `R` that is no
                rotation, an unknown distortion model or a wrong number of its coefficients, a region of interest
                outside the sensor.
        """
        self._name = f"camera_info of frame {info.frame_id!r}"
        if info.width <= 0 or info.height <= 0:
            raise CameraError(
                f"{self._name}: has no image size ({info.width}x{info.height}); the camera is uncalibrated"
            )
        full = self._pinhole(info, rectified)
        self.intrinsics = self._as_read_out(full, info)
        self.T_frame_camera = self._optical_centre(info)
        self._R = np.eye(3) if rectified else self._rotation(info)
        self._distortion = None if rectified else self._coefficients(info)
        self._is_ideal = self._distortion is None and np.array_equal(self._R, np.eye(3))
        self._equidistant = info.distortion_model == EQUIDISTANT
        self._maps: dict[tuple[int, int, bool], tuple[Any, Any]] = {}

    def rectify(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The ideal camera's image, (H, W, C) uint8; black where the real camera saw nothing.

        An ideal camera's image is given back as it is, not copied.

        Raises:
            CameraError: the image's size is not the calibration's (says both).
        """
        height, width = image.shape[:2]
        if (width, height) != (self.intrinsics.width, self.intrinsics.height):
            raise CameraError(
                f"image of {width}x{height} pixels does not fit the {self._name}, which is for "
                f"{self.intrinsics.width}x{self.intrinsics.height} (after region of interest and binning)"
            )
        if self._is_ideal:
            return image
        map_xy, map_fraction = self._maps_for(width, height, nearest=False)
        return np.asarray(cv2.remap(image, map_xy, map_fraction, cv2.INTER_LINEAR), dtype=np.uint8)

    def rectify_depth(self, depth_m: NDArray[np.float32]) -> NDArray[np.float32]:
        """The ideal camera's depth image, (H, W) float32 metres, 0 = no return.

        Every value is some pixel's own (nearest neighbour): averaging would invent surfaces between two, and a number
        where there is none. A depth image that is smaller or larger than the camera's may come, if its sides are in
        the same proportion (to a pixel): it shows the same view.

        Raises:
            CameraError: the size is not in the calibration's proportion (says both).
        """
        height, width = depth_m.shape
        full = self.intrinsics
        if width <= 0 or height <= 0 or abs(width * full.height - height * full.width) >= max(full.width, full.height):
            raise CameraError(
                f"depth image of {width}x{height} pixels does not show the view of the {self._name}, which is for "
                f"{full.width}x{full.height} (after region of interest and binning)"
            )
        if self._is_ideal:
            return depth_m
        map_xy, map_fraction = self._maps_for(width, height, nearest=True)
        moved = np.asarray(cv2.remap(depth_m, map_xy, map_fraction, cv2.INTER_NEAREST), dtype=np.float32)
        if not np.array_equal(self._R, np.eye(3)):
            moved = moved * self._depth_factor(full.resized(width, height))
        return moved

    # ------------------------------------------------------------------------------------------------ the calibration

    def _pinhole(self, info: CameraInfo, rectified: bool) -> PinholeIntrinsics:
        """The camera of the whole sensor, from `P` or from `K`."""
        letter, matrix = ("P", info.P_34) if rectified else ("K", info.K_33)
        values = np.asarray(matrix, dtype=float)
        if values.shape != ((3, 4) if rectified else (3, 3)):
            raise CameraError(f"{self._name}: {letter} has shape {values.shape}")
        if not np.isfinite(values).all():
            raise CameraError(f"{self._name}: {letter} holds a number that is not finite")
        fx, fy, skew = float(values[0, 0]), float(values[1, 1]), float(values[0, 1])
        if fx <= 0.0 or fy <= 0.0:
            other = "image_rectified false uses K" if rectified else "image_rectified true uses P"
            raise CameraError(
                f"{self._name}: {letter} has focal lengths {fx:g}, {fy:g}; they must be positive. The camera is "
                f"uncalibrated, or {other}"
            )
        if abs(skew) > 1e-6 * fx or abs(values[1, 0]) > 1e-6 * fx:
            raise CameraError(f"{self._name}: {letter} has a skew of {skew:g}, which is not supported")
        if not np.allclose(values[2, :3], [0.0, 0.0, 1.0]):
            raise CameraError(f"{self._name}: the last row of {letter} is {values[2, :3].tolist()}, not 0 0 1")
        return PinholeIntrinsics(info.width, info.height, fx, fy, float(values[0, 2]), float(values[1, 2]))

    def _as_read_out(self, full: PinholeIntrinsics, info: CameraInfo) -> PinholeIntrinsics:
        """The camera after its region of interest and its binning (0 means 1)."""
        x, y, width, height = info.roi
        camera = full
        if (x, y, width, height) != (0, 0, 0, 0):
            width, height = width or full.width - x, height or full.height - y
            if min(x, y) < 0 or min(width, height) <= 0 or x + width > full.width or y + height > full.height:
                raise CameraError(
                    f"{self._name}: region of interest {info.roi} (x, y, width, height) is not inside "
                    f"{full.width}x{full.height}"
                )
            camera = full.cropped(x, y, width, height)
        bin_x, bin_y = info.binning_x or 1, info.binning_y or 1
        if bin_x < 0 or bin_y < 0 or camera.width // bin_x == 0 or camera.height // bin_y == 0:
            raise CameraError(f"{self._name}: binning {bin_x}x{bin_y} leaves nothing of {camera.width}x{camera.height}")
        if (bin_x, bin_y) != (1, 1):
            # Columns that do not fill a binned pixel are cut off first, so that the scale is the binning exactly.
            columns, rows = camera.width // bin_x, camera.height // bin_y
            camera = camera.cropped(0, 0, columns * bin_x, rows * bin_y).resized(columns, rows)
        if max(camera.width, camera.height) > MAX_SIDE:
            raise CameraError(f"{self._name}: {camera.width}x{camera.height} is larger than {MAX_SIDE} on a side")
        return camera

    def _optical_centre(self, info: CameraInfo) -> Array:
        """`P = K' [I | t]`: a point of the header's frame is at p + t in the camera's."""
        P = np.asarray(info.P_34, dtype=float)
        T = np.eye(4)
        if P.shape == (3, 4) and np.isfinite(P).all() and P[0, 0] > 0.0 and P[1, 1] > 0.0 and P[2, 2] == 1.0:
            T[:3, 3] = -np.linalg.solve(P[:, :3], P[:, 3])
        return T

    def _rotation(self, info: CameraInfo) -> Array:
        R = np.asarray(info.R_33, dtype=float)
        if R.shape != (3, 3) or not np.isfinite(R).all():
            raise CameraError(f"{self._name}: R is not a finite 3x3 matrix")
        if not R.any():  # drivers that never calibrated leave it zero
            return np.eye(3)
        if np.abs(R @ R.T - np.eye(3)).max() > 1e-3 or np.linalg.det(R) < 0.0:
            raise CameraError(f"{self._name}: R is not a rotation")
        return np.eye(3) if np.abs(R - np.eye(3)).max() < 1e-9 else R

    def _coefficients(self, info: CameraInfo) -> Array | None:
        """The distortion as OpenCV takes it, None where there is none."""
        D = np.asarray(info.D, dtype=float)
        if not np.isfinite(D).all():
            raise CameraError(f"{self._name}: D holds a number that is not finite")
        if info.distortion_model not in COEFFICIENTS:
            if not D.any() and not info.distortion_model:
                return None
            known = ", ".join(COEFFICIENTS)
            raise CameraError(f"{self._name}: distortion model {info.distortion_model!r} is unknown; known are {known}")
        counts = COEFFICIENTS[info.distortion_model]
        if len(D) not in counts and len(D) != 0:
            raise CameraError(
                f"{self._name}: D has {len(D)} coefficients, {info.distortion_model} {' or '.join(map(str, counts))}"
            )
        # Equidistant with zeros is still a fisheye: r = f theta.
        if info.distortion_model == EQUIDISTANT:
            return D if len(D) else np.zeros(4)
        return D if D.any() else None

    # ------------------------------------------------------------------------------------------------------- the maps

    def _maps_for(self, width: int, height: int, nearest: bool) -> tuple[Any, Any]:
        key = (width, height, nearest)
        if key not in self._maps:
            camera = self.intrinsics.resized(width, height).matrix()
            size = (width, height)
            if self._equidistant:
                maps = cv2.fisheye.initUndistortRectifyMap(
                    camera, self._distortion, self._R, camera, size, cv2.CV_32FC1
                )
            else:
                maps = cv2.initUndistortRectifyMap(camera, self._distortion, self._R, camera, size, cv2.CV_32FC1)
            # Fixed point: three times faster to apply, exact to 1/32 pixel.
            fixed = cv2.convertMaps(maps[0], maps[1], cv2.CV_16SC2, nninterpolation=nearest)
            self._maps[key] = (fixed[0], fixed[1])  # without a second one where the nearest pixel is taken
        return self._maps[key]

    def _depth_factor(self, camera: PinholeIntrinsics) -> NDArray[np.float32]:
        """Depth along the turned optical axis over depth along the real one, for every pixel of the turned image."""
        u, v = np.meshgrid(np.arange(camera.width), np.arange(camera.height))
        rays = np.stack([(u - camera.cx) / camera.fx, (v - camera.cy) / camera.fy, np.ones(u.shape)], axis=-1)
        depth_before = (
            rays @ self._R[:, 2]
        )  # third row of R transposed: from the turned camera's axes to the real one's
        with np.errstate(divide="ignore"):
            return np.where(depth_before > 0.0, 1.0 / depth_before, 0.0).astype(np.float32)


def same_calibration(a: CameraInfo, b: CameraInfo) -> bool:
    """Whether two camera_infos (one comes with every image) differ in nothing but their stamps."""
    return (
        (a.frame_id, a.width, a.height, a.distortion_model, a.binning_x, a.binning_y, a.roi)
        == (b.frame_id, b.width, b.height, b.distortion_model, b.binning_x, b.binning_y, b.roi)
        and np.array_equal(a.D, b.D)
        and np.array_equal(a.K_33, b.K_33)
        and np.array_equal(a.R_33, b.R_33)
        and np.array_equal(a.P_34, b.P_34)
    )
