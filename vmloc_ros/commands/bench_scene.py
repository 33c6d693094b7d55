"""Cells of a made-up frame for `vmloc bench`, and what a plain program would do with them.

The references solve the same problem with less: the numpy one takes no account of how sure the cells are, OpenCV's has
no covariance either.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
from scipy.spatial.transform import Rotation

from vmloc_ros.geometry import Array, make_pose
from vmloc_ros.scene_alignment import AlignmentSettings, Cells

ROWS, COLUMNS = 15, 20
SIGMA_M, WRONG_SHARE = 0.03, 0.2
REACH_M = 0.1
"""How far a point may be from where a pose puts it, for the references."""
TRIPLES = 64


class SceneFrame:
    """300 cells of a room, of which a fifth is wrong.

    Attributes:
        T_map_camera: the truth.
        cells: for the solver (B = 1).
    """

    def __init__(self, depth: bool) -> None:
        """With returns or without."""
        rng = np.random.default_rng(0)
        x, y = np.meshgrid(np.linspace(-0.57, 0.57, COLUMNS), np.linspace(-0.43, 0.43, ROWS))
        self._rays_N3 = np.stack([x.ravel(), y.ravel(), np.ones(x.size)], 1)
        depth_N = rng.uniform(1.0, 4.0, x.size)
        self._seen_N3 = self._rays_N3 * depth_N[:, None]
        self.T_map_camera = make_pose(Rotation.random(random_state=rng).as_matrix(), rng.uniform(-3.0, 3.0, 3))
        R, centre = self.T_map_camera[:3, :3], self.T_map_camera[:3, 3]
        self._points_N3 = self._seen_N3 @ R.T + centre + rng.normal(0.0, SIGMA_M, self._seen_N3.shape)
        wrong = rng.permutation(x.size)[: round(WRONG_SHARE * x.size)]
        self._points_N3[wrong] = rng.uniform(-6.0, 6.0, (len(wrong), 3))
        variance_N3 = np.full_like(self._points_N3, SIGMA_M**2)
        arrays = self._points_N3, variance_N3, self._rays_N3, depth_N * depth
        points, variance, rays, depths = (torch.from_numpy(array).float()[None] for array in arrays)
        self.cells = Cells(points, variance, rays, depths, torch.ones(1, x.size, dtype=torch.bool))
        self.settings = AlignmentSettings(inlier_m=REACH_M)

    def numpy_ransac(self) -> Array:
        """The pose by depth: as many triples as the solver takes, one after the other, and a fit to all that agree."""
        rng, best, most = np.random.default_rng(0), np.zeros(len(self._points_N3), dtype=bool), -1
        for _ in range(TRIPLES):
            picked = rng.choice(len(self._points_N3), 3, replace=False)
            agree = self._agreeing(_fitted(self._seen_N3[picked], self._points_N3[picked]))
            if agree.sum() > most:
                best, most = agree, int(agree.sum())
        return _fitted(self._seen_N3[best], self._points_N3[best])

    def _agreeing(self, T: Array) -> np.ndarray:
        off_N3 = self._seen_N3 @ T[:3, :3].T + T[:3, 3] - self._points_N3
        return np.asarray(np.einsum("ni,ni->n", off_N3, off_N3) < REACH_M**2)

    def opencv_pnp(self) -> Array:
        """The pose by rays: OpenCV's RANSAC over three points, and its refinement over all that agree."""
        image_N2, K = np.ascontiguousarray(self._rays_N3[:, :2]), np.eye(3)
        _, turn, shift, agree = cv2.solvePnPRansac(
            self._points_N3, image_N2, K, None, iterationsCount=TRIPLES, reprojectionError=0.05, flags=cv2.SOLVEPNP_P3P
        )
        agree = agree.ravel()
        turn, shift = cv2.solvePnPRefineLM(self._points_N3[agree], image_N2[agree], K, None, turn, shift)
        R = np.asarray(cv2.Rodrigues(turn)[0], dtype=float).T
        return make_pose(R, -R @ np.asarray(shift).ravel())


def _fitted(seen_M3: Array, points_M3: Array) -> Array:
    """The pose that brings points onto points in the least squares' sense (W. Kabsch, 1976)."""
    seen_3, points_3 = seen_M3.mean(0), points_M3.mean(0)
    U, _, Vt = np.linalg.svd((points_M3 - points_3).T @ (seen_M3 - seen_3))
    R = U @ np.diag([1.0, 1.0, float(np.sign(np.linalg.det(U @ Vt)))]) @ Vt
    return make_pose(R, points_3 - R @ seen_3)
