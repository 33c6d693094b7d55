"""Odometry of a colour and depth camera, by OpenCV's dense RGB-D alignment.

Method: F. Steinbruecker, J. Sturm, D. Cremers, "Real-time visual odometry from dense RGB-D images", ICCV workshops
2011, with a point-to-plane term on the depth, as in OpenCV's `Odometry` of the type RGB_DEPTH.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from vmloc_ros.geometry import Array, exp_se3, log_se3
from vmloc_ros.types import PinholeIntrinsics

WORKING_WIDTH = 320
"""Images are reduced to about this width. Measured on 7-Scenes redkitchen, frames 0-149 and 200-349: 3.4 mm a frame
as at 640 pixels (3.4 and 3.7 mm), in 12 ms a frame instead of 60 on one core."""
MILLIMETRES = np.float32(0.001)


BRIDGED_FRAMES = 30
"""A gap of up to a second (at 30 Hz) is aligned across; beyond, the pose stands still."""


class RgbdOdometry:
    """Motion between pairs of frames of one camera."""

    def __init__(self, intrinsics: PinholeIntrinsics) -> None:
        self._step = max(1, round(intrinsics.width / WORKING_WIDTH))
        self._size = (intrinsics.width // self._step, intrinsics.height // self._step)
        settings = cv2.OdometrySettings()
        settings.setCameraMatrix(intrinsics.resized(*self._size).matrix().astype(np.float32))
        self._engine = cv2.Odometry(cv2.OdometryType_RGB_DEPTH, settings, cv2.OdometryAlgoType_COMMON)

    def frame(self, color: bytes, depth_mm: NDArray[np.uint16]) -> cv2.OdometryFrame | None:
        """A frame of an encoded colour image and a depth image (H, W), 0 = no return; None if the image is broken."""
        bgr = cv2.imdecode(np.frombuffer(color, dtype=np.uint8), cv2.IMREAD_COLOR)
        if bgr is None or bgr.shape[:2] != depth_mm.shape:
            return None
        half, step = self._step // 2, self._step
        width, height = self._size
        depth_m = depth_mm[half::step, half::step][:height, :width].astype(np.float32) * MILLIMETRES
        depth_m[depth_m == 0.0] = np.nan
        return cv2.OdometryFrame(depth_m, cv2.resize(bgr, self._size, interpolation=cv2.INTER_AREA))

    def motion(self, first: cv2.OdometryFrame | None, second: cv2.OdometryFrame | None) -> Array | None:
        """`T_first_second` (camera axes), None where no alignment is found."""
        if first is None or second is None:
            return None
        self._engine.prepareFrames(second, first)
        found, T_first_second = self._engine.compute(second, first)
        pose = np.asarray(T_first_second, dtype=np.float64)
        return pose if found and pose.shape == (4, 4) and np.isfinite(pose).all() else None


class RgbdTracker:
    """Pose along one walk through a sequence. Without an alignment the last velocity goes on; over a gap longer than
    `BRIDGED_FRAMES` the pose stands still.

    Args:
        memory: motions by pair of indices, read and filled: a second walk computes nothing.
    """

    def __init__(self, intrinsics: PinholeIntrinsics, memory: dict[tuple[int, int], Array | None]) -> None:
        self._odometry = RgbdOdometry(intrinsics)
        self._memory = memory
        self._previous: tuple[int, bytes, NDArray[np.uint16]] | None = None
        self._prepared: tuple[int, cv2.OdometryFrame | None] | None = None
        self._velocity_6 = np.zeros(6)  # per frame
        self._T_start_camera = np.eye(4)

    def add(self, index: int, color: bytes, depth_mm: NDArray[np.uint16]) -> tuple[Array, bool]:
        """`T_start_camera` (camera axes) at a frame, and whether it rests on an alignment (the first always does)."""
        previous, self._previous = self._previous, (index, color, depth_mm)
        if previous is None or index - previous[0] > BRIDGED_FRAMES:
            self._velocity_6 = np.zeros(6)
            return self._T_start_camera.copy(), True
        pair, steps = (previous[0], index), index - previous[0]
        if pair not in self._memory:
            self._memory[pair] = self._align(previous, self._previous)
        T = self._memory[pair]
        tangent = steps * self._velocity_6 if T is None else log_se3(T)
        self._velocity_6 = tangent / steps
        self._T_start_camera = self._T_start_camera @ exp_se3(tangent)
        return self._T_start_camera.copy(), T is not None

    def _align(
        self, first: tuple[int, bytes, NDArray[np.uint16]], second: tuple[int, bytes, NDArray[np.uint16]]
    ) -> Array | None:
        if self._prepared is None or self._prepared[0] != first[0]:
            self._prepared = first[0], self._odometry.frame(first[1], first[2])
        earlier, later = self._prepared[1], self._odometry.frame(second[1], second[2])
        self._prepared = second[0], later
        return self._odometry.motion(earlier, later)
