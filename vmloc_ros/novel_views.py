"""Views that were never recorded: a sample moved to a pose nearby, its pixels by their own depth.

A pose network interpolates between its training poses, and one drive gives it a thin thread of them. Depth says
where every pixel goes when the camera moves a little, so every recorded frame stands for a neighbourhood of poses.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from vmloc_ros.geometry import Array
from vmloc_ros.types import PinholeIntrinsics

NEAREST_M = 0.05
"""Points nearer to the moved camera than this are not shown."""

View = tuple[NDArray[np.uint8], NDArray[np.float32]]
"""Colour (H, W, 3) and depth (H, W) in metres, 0 = no return."""


def fill_nearest(depth_m: NDArray[np.float32]) -> NDArray[np.float32]:
    """Depth (H, W) with every pixel that has no return (0) given the depth of the nearest one that has.

    An image without any return comes out at 1 m: turning a camera needs no depth.
    """
    holes = depth_m <= 0.0
    if not holes.any():
        return depth_m
    if holes.all():
        return np.ones_like(depth_m)
    _, labels = cv2.distanceTransformWithLabels(
        holes.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_3, labelType=cv2.DIST_LABEL_PIXEL
    )
    labels = np.asarray(labels, dtype=np.int64)
    values = np.zeros(int(labels.max()) + 1, np.float32)
    values[labels[~holes]] = depth_m[~holes]
    return np.asarray(values[labels], dtype=np.float32)


BEHIND_M = np.float32(1e-6)
"""Depth of what lies behind the camera, or beside it: far out of every picture."""
FARTHEST_M = np.float32(1e6)
CRACK = np.ones((3, 3), np.uint8)
"""A surface that comes nearer is torn into points; between them, what lies behind it must not be seen."""


def random_moves(count: int, metres: float, degrees: float, generator: np.random.Generator) -> Array:
    """T_camera_moved (N, 4, 4): shifted by up to `metres` along, and turned by up to `degrees` about, each axis."""
    moves = np.tile(np.eye(4), (count, 1, 1))
    moves[:, :3, 3] = generator.uniform(-metres, metres, (count, 3))
    turns = generator.uniform(-degrees, degrees, (count, 3))
    moves[:, :3, :3] = Rotation.from_rotvec(turns, degrees=True).as_matrix()
    return moves


class ViewMover:
    """Shows samples of one camera from other poses."""

    def __init__(self, camera: PinholeIntrinsics) -> None:
        self._camera = camera
        v, u = np.mgrid[0 : camera.height, 0 : camera.width].astype(np.float32)
        self._rays = (
            np.stack([(u - camera.cx) / camera.fx, (v - camera.cy) / camera.fy, np.ones_like(u)], axis=-1)
            .reshape(-1, 3)
            .astype(np.float32)
        )

    def move(self, rgb: NDArray[np.uint8], depth_m: NDArray[np.floating], T_camera_moved: Array) -> View:
        """Colour and depth as the moved camera would have seen them.

        What it would see beyond the borders of the recorded view is black, and has no return.
        """
        depth = np.asarray(depth_m, dtype=np.float32)
        R = T_camera_moved[:3, :3].astype(np.float32)
        t = T_camera_moved[:3, 3].astype(np.float32)
        moved = self._depth_of(np.asarray((self._rays * fill_nearest(depth).reshape(-1, 1) - t) @ R, np.float32))
        x, y = self._pixels(np.asarray((self._rays * moved.reshape(-1, 1)) @ R.T + t, np.float32))
        shown = cv2.remap(rgb, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
        valid = cv2.remap((depth > 0.0).astype(np.uint8), x, y, cv2.INTER_NEAREST, borderMode=cv2.BORDER_CONSTANT)
        return np.asarray(shown, np.uint8), np.where(np.asarray(valid) > 0, moved, np.float32(0.0))

    def _depth_of(self, points_N3: NDArray[np.float32]) -> NDArray[np.float32]:
        """Depth image (H, W) of points in the camera's axes, the nearest of each pixel; every pixel has one."""
        c, z = self._camera, points_N3[:, 2]
        x, y = self._pixels(points_N3)
        u, v = np.rint(x.reshape(-1)), np.rint(y.reshape(-1))
        seen = (z > NEAREST_M) & (u >= 0) & (u < c.width) & (v >= 0) & (v < c.height)
        index = (v[seen] * c.width + u[seen]).astype(np.int64)
        order = np.argsort(-z[seen], kind="stable")  # the nearest is written last
        depth = np.full(c.height * c.width, FARTHEST_M, np.float32)
        depth[index[order]] = z[seen][order]
        opened = np.asarray(cv2.morphologyEx(depth.reshape(c.height, c.width), cv2.MORPH_OPEN, CRACK), np.float32)
        return fill_nearest(np.where(opened < FARTHEST_M, opened, np.float32(0.0)))

    def turn(self, rgb: NDArray[np.uint8], T_camera_moved: Array) -> NDArray[np.uint8]:
        """Colour as the camera would have seen it if it had only been turned: a homography, whatever the depth."""
        x, y = self._pixels(self._rays @ T_camera_moved[:3, :3].astype(np.float32).T)
        return np.asarray(cv2.remap(rgb, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT), dtype=np.uint8)

    def _pixels(self, points_N3: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Where the camera sees points: columns and rows (H, W)."""
        c = self._camera
        z = np.maximum(points_N3[:, 2], BEHIND_M)
        columns = (points_N3[:, 0] / z * np.float32(c.fx) + np.float32(c.cx)).astype(np.float32)
        rows = (points_N3[:, 1] / z * np.float32(c.fy) + np.float32(c.cy)).astype(np.float32)
        return columns.reshape(c.height, c.width), rows.reshape(c.height, c.width)


def turns_by_columns(
    count: int, degrees: float, column_deg: float, generator: np.random.Generator
) -> NDArray[np.int64]:
    """Turns to the right by up to `degrees` (N,), in whole columns of a cylindrical image."""
    most = int(degrees / column_deg)
    return generator.integers(-most, most + 1, count)


def turned_cylinder(range_m: NDArray[np.floating], columns: int, all_around: bool) -> NDArray[np.float32]:
    """A cylindrical image (H, W) as the lidar would have made it if it had been turned to the right about its axis.

    Args:
        columns: by how many columns.
        all_around: the view is of 360 degrees; otherwise what comes into view at the border has no return.
    """
    moved = np.roll(np.asarray(range_m, dtype=np.float32), -columns, axis=1)
    if not all_around and columns > 0:
        moved[:, -columns:] = 0.0
    elif not all_around and columns < 0:
        moved[:, :-columns] = 0.0
    return moved


def right_turn(radians: float) -> Array:
    """T_camera_moved (4, 4) of a camera turned to the right about its vertical axis (optical axes: y down)."""
    T = np.eye(4)
    T[:3, :3] = Rotation.from_rotvec([0.0, radians, 0.0]).as_matrix()
    return T
