"""Odometry of a colour and depth camera, by OpenCV's dense RGB-D alignment.

Method: F. Steinbruecker, J. Sturm, D. Cremers, "Real-time visual odometry from dense RGB-D images", ICCV workshops
2011, with a point-to-plane term on the depth, as in OpenCV's `Odometry` of the type RGB_DEPTH.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from vmloc_ros.geometry import Array, exp_se3, inverse, log_se3
from vmloc_ros.types import PinholeIntrinsics

WORKING_WIDTH = 320
"""Images are reduced to about this width: on 7-Scenes as accurate as 640 pixels, in a fifth of the time."""
MILLIMETRES = np.float32(0.001)
MIN_GRADIENT = 1.0
"""OpenCV's 10 leaves out too much of a smooth scene."""
BRIDGED_FRAMES = 30
"""A gap of up to a second (at 30 Hz) is aligned across; beyond, the pose stands still."""
KEYFRAME_M, KEYFRAME_RAD = 0.03, 0.05
"""A keyframe is left after so much motion. Between neighbouring frames the noise of the depth pulls the alignment
towards no motion: over 30 frames of redkitchen, 200-349, chains of neighbours fall 15 % short and err by 43 mm,
chains of keyframes 5 % and 19 mm."""


class RgbdOdometry:
    """Motion between pairs of frames of one camera."""

    def __init__(self, intrinsics: PinholeIntrinsics) -> None:
        self._step = max(1, round(intrinsics.width / WORKING_WIDTH))
        self._size = (intrinsics.width // self._step, intrinsics.height // self._step)
        settings = cv2.OdometrySettings()
        settings.setCameraMatrix(intrinsics.resized(*self._size).matrix().astype(np.float32))
        levels = len(settings.getIterCounts())
        settings.setMinGradientMagnitudes(np.full((levels, 1), MIN_GRADIENT, dtype=np.float32))
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


@dataclass(frozen=True, eq=False)
class _Keyframe:
    """What frames are aligned with, and where it is."""

    index: int
    color: bytes
    depth_mm: NDArray[np.uint16]
    T_start_camera: Array


class RgbdTracker:
    """Pose along one walk through a sequence, frame by frame against a recent keyframe.

    Without an alignment the last velocity goes on; over a gap longer than `BRIDGED_FRAMES` the pose stands still.

    Args:
        memory: motions by pair of indices, read and filled: a second walk computes nothing.
    """

    def __init__(self, intrinsics: PinholeIntrinsics, memory: dict[tuple[int, int], Array | None]) -> None:
        self._odometry = RgbdOdometry(intrinsics)
        self._memory = memory
        self._key: _Keyframe | None = None
        self._prepared: tuple[int, cv2.OdometryFrame | None] | None = None
        self._last_index = 0
        self._velocity_6 = np.zeros(6)  # per frame
        self._T_start_camera = np.eye(4)

    def add(self, index: int, color: bytes, depth_mm: NDArray[np.uint16]) -> tuple[Array, bool]:
        """`T_start_camera` (camera axes) at a frame, and whether it rests on an alignment (the first always does)."""
        steps, self._last_index = index - self._last_index, index
        if self._key is None or steps > BRIDGED_FRAMES:
            self._velocity_6 = np.zeros(6)
            self._key = _Keyframe(index, color, depth_mm, self._T_start_camera)
            return self._T_start_camera.copy(), True
        T_key_camera = self._align(self._key, index, color, depth_mm)
        if T_key_camera is None:
            pose = self._T_start_camera @ exp_se3(steps * self._velocity_6)
        else:
            pose = self._key.T_start_camera @ T_key_camera
            self._velocity_6 = log_se3(inverse(self._T_start_camera) @ pose) / steps
        self._T_start_camera = pose
        if T_key_camera is None or _is_far(T_key_camera):
            self._key = _Keyframe(index, color, depth_mm, pose)
        return pose.copy(), T_key_camera is not None

    def _align(self, key: _Keyframe, index: int, color: bytes, depth_mm: NDArray[np.uint16]) -> Array | None:
        """`T_key_camera`, from memory where it is there."""
        pair = key.index, index
        if pair not in self._memory:
            if self._prepared is None or self._prepared[0] != key.index:
                self._prepared = key.index, self._odometry.frame(key.color, key.depth_mm)
            self._memory[pair] = self._odometry.motion(self._prepared[1], self._odometry.frame(color, depth_mm))
        return self._memory[pair]


def _is_far(T: Array) -> bool:
    tangent_6 = log_se3(T)
    return bool(np.linalg.norm(tangent_6[:3]) > KEYFRAME_M or np.linalg.norm(tangent_6[3:]) > KEYFRAME_RAD)
