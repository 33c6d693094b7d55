"""When an answer over scene coordinates is believed: how much of what was seen agrees with the pose that was found.

The solver finds a pose for anything. It is believed where enough of the frame's cells agree with it, by a distance that
was measured on validation frames and does not grow with what the network claims: a cell that says "somewhere, within
two metres" and lies near by chance agrees with nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vmloc_ros.geometry import Array
from vmloc_ros.networks.scene_coordinates_config import SceneCard, SceneLimits
from vmloc_ros.scene_alignment import Alignment, AlignmentSettings, Cells
from vmloc_ros.scene_camera import camera_fit

CONSTANT_SHARE = 1e-3
"""A depth image whose returns differ by less than this share of their median is constant: no surface is so flat."""


@dataclass(frozen=True, eq=False)
class Agreement:
    """What speaks for the poses of N frames.

    Attributes:
        share_N: of the cells that count, those that agree with the pose and claim to know where they are.
        residual_N: size of the agreeing cells' residuals, in units of their own deviations; infinite without a pose.
        solved_N: whether the solver has found a pose at all.
        change_N3, surprise_N: by how much another camera would fit better, see `scene_camera`.
        usable_N: share of the image's cells that count: below 1 where a camera sees less than the training's.
    """

    share_N: Array
    residual_N: Array
    solved_N: NDArray[np.bool_]
    change_N3: Array
    surprise_N: Array
    usable_N: Array

    def refused(self, limits: SceneLimits) -> NDArray[np.bool_]:
        """Which frames get no pose (N,)."""
        enough_N = (self.share_N >= limits.least_share) & (self.residual_N <= limits.most_residual)
        return np.asarray(~(self.solved_N & enough_N) | self.other_camera(limits))

    def other_camera(self, limits: SceneLimits) -> NDArray[np.bool_]:
        """Which frames another camera than that of camera_info would explain much better (N,).

        The limits are those of whole images; fewer cells tell a camera less exactly.
        """
        wider_N = 1.0 / np.sqrt(np.maximum(self.usable_N, 1e-3))
        changed_N = (np.abs(self.change_N3) > wider_N[:, None] * np.array(limits.most_camera_change)).any(axis=1)
        return np.asarray(self.solved_N & (changed_N | (self.surprise_N > wider_N * limits.most_camera_surprise)))

    def reason(self, frame: int, limits: SceneLimits) -> str:
        """Why a frame gets no pose, for a person; empty where it gets one."""
        if not self.solved_N[frame]:
            return "the scene does not fit the map: no pose agrees with what the cells of the image show"
        share, residual = float(self.share_N[frame]), float(self.residual_N[frame])
        if share < limits.least_share:
            return (
                f"the scene does not fit the map: {100.0 * share:.0f} % of the cells agree on a pose, "
                f"{100.0 * limits.least_share:.0f} % are needed"
            )
        if residual > limits.most_residual:
            return (
                f"the scene does not fit the map: the agreeing cells scatter {residual:.1f} times as widely as they "
                f"claim, {limits.most_residual:.1f} times are believed"
            )
        if self.other_camera(limits)[frame]:
            longer, right, down = self.change_N3[frame]
            return (
                "the scene does not fit camera_info: a camera with a focal length "
                f"{np.exp(-longer):.2f} times as long and a principal point {right:+.2f} and {down:+.2f} focal lengths "
                "further to the right and down would; is it the camera_info of this camera?"
            )
        return ""

    def health(self, limits: SceneLimits) -> Array:
        """(N,): 1 where as many cells agree as on validation frames usually, 0 at the limit of belief."""
        range_of_share = max(limits.share_median - limits.least_share, 1e-6)
        return np.asarray(np.clip((self.share_N - limits.least_share) / range_of_share, 0.0, 1.0))


def deviation_ratio(cells: Cells, T_map_camera_N44: Tensor, inlier_m: float, inlier_share: float) -> Tensor:
    """Each cell's claimed deviation (all axes together) in units of the distance within which it agrees (N, C)."""
    away_NC3 = cells.points_BN3.double() - T_map_camera_N44[:, None, :3, 3]
    allowed_NC = inlier_m + inlier_share * away_NC3.square().sum(dim=2).sqrt()
    return cells.variance_BN3.double().sum(dim=2).sqrt() / allowed_NC


def agreement(
    cells: Cells, found: Alignment, limits: SceneLimits, settings: AlignmentSettings | None = None
) -> Agreement:
    """What speaks for the poses that a solver has found with some settings (None: the default's)."""
    with torch.inference_mode():
        ratio_NC = deviation_ratio(cells, found.T_map_camera_B44, limits.inlier_m, limits.inlier_share)
        agreeing_NC = found.inliers_BN & (ratio_NC <= limits.most_deviation)  # NaN agrees with nothing
        share_N = agreeing_NC.sum(dim=1) / cells.usable_BN.sum(dim=1).clamp_min(1)
        fit = camera_fit(cells, found, settings or AlignmentSettings())
    return Agreement(
        share_N.double().cpu().numpy(),
        found.residual_B.double().cpu().numpy(),
        found.solved_B.cpu().numpy(),
        fit.change_N3.cpu().numpy(),
        fit.surprise_N.cpu().numpy(),
        cells.usable_BN.double().mean(dim=1).cpu().numpy(),
    )


def depth_problem(depth_HW: NDArray[np.floating], card: SceneCard) -> str:
    """Why a depth image cannot be one of this scene, whatever it shows; empty if nothing is wrong.

    A robot whose depth is in the wrong unit is set up wrongly, and its poses must not depend on whether its camera
    makes up for that: the reason names the cure.

    Args:
        depth_HW: metres, 0 = no return.
        card: with the range of depth of the frames that the model knows.
    """
    returns = depth_HW[depth_HW > 0.0].astype(np.float64)
    if not len(returns):
        return "depth has no return"
    middle = float(np.median(returns))
    known = f"the model knows medians of {card.depth_low_m:.3g} to {card.depth_high_m:.3g} m"
    usual = float(np.sqrt(card.depth_low_m * card.depth_high_m))
    for factor, cure in ((1000.0, "is it in millimetres?"), (0.001, "is it in kilometres, or scaled twice?")):
        outside = middle > card.depth_high_m if factor > 1.0 else middle < card.depth_low_m
        if usual > 0.0 and outside and abs(np.log(middle / (usual * factor))) < 0.5 * np.log(1000.0):
            size = "large" if factor > 1.0 else "small"
            return f"depth looks 1000 times too {size} (median {middle:.3g} m, {known}): {cure}"
    if len(returns) > 1 and float(np.ptp(returns)) <= CONSTANT_SHARE * middle:
        return f"depth is constant ({middle:.3g} m everywhere)"
    return ""
