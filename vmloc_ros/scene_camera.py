"""Whether a calibration is that of the camera: scene coordinates tell which rays the cells would need.

With the pose, three more numbers are fitted that a wrong `camera_info` gets wrong: by which factor the rays are too
narrow (a focal length that is too long), and how far they should be shifted to the right and down (a principal point).
A wrong focal length looks much like a camera that stands elsewhere, and a shift like one that is turned, but not quite:
what remains is found here. The ray of a cell becomes

    d = R (s x + u, s y + v, 1)

and everything else is as in `scene_alignment`, whose residual is differentiated by log s, u and v as well.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vmloc_ros.scene_alignment import Alignment, AlignmentSettings, Cells

ITERATIONS = 3
PRIOR_SIGMA = 0.5
"""Of the three numbers: wide, so that a frame which cannot tell them (a wall from the front) says nothing."""
PLATEAU = 9.0
"""Squared whitened residuals up to here count fully, larger ones less and less."""
LARGEST_CHANGE = 1.5
TINY = 1e-12


class CameraFit(NamedTuple):
    """What N frames say of their camera, float64.

    Attributes:
        change_N3: log of the factor by which the rays should be wider, and their shift to the right and down
            (tangents).
        surprise_N: size of that change in units of its own deviations; 0 where there is no pose.
    """

    change_N3: Tensor
    surprise_N: Tensor


class _Rays(NamedTuple):
    """The cells in float64, (N, 3 or 1, C); those that are no good are harmless and have `counts_N1C` 0."""

    points_N3C: Tensor
    inverse_sigma_N3C: Tensor
    rays_N3C: Tensor
    depth_N1C: Tensor
    depth_information_N1C: Tensor
    counts_N1C: Tensor


@torch.no_grad()
def camera_fit(cells: Cells, found: Alignment, settings: AlignmentSettings) -> CameraFit:
    """Fits pose and camera together, from the poses that were found with the camera as it is said to be."""
    T_N44 = torch.where(
        found.solved_B[:, None, None], found.T_map_camera_B44, torch.eye(4).to(found.T_map_camera_B44)
    ).double()
    R_N33, centre_N31 = T_N44[:, :3, :3], T_N44[:, :3, 3:]
    rays = _rays(cells, settings)
    change_N3 = torch.zeros_like(centre_N31[..., 0])
    prior_9 = change_N3.new_tensor([TINY] * 6 + [PRIOR_SIGMA**-2] * 3)
    for step in range(ITERATIONS + 1):
        G_N1010 = _equations(R_N33, centre_N31, change_N3, rays)
        H_N99 = G_N1010[:, :9, :9] + torch.diag(prior_9)
        if step == ITERATIONS:
            break
        slope_N9 = G_N1010[:, :9, 9]
        slope_N9[:, 6:] += prior_9[6:] * change_N3
        d_N9 = torch.linalg.solve_ex(H_N99, -slope_N9)[0].nan_to_num(0.0, 0.0, 0.0)
        centre_N31 = centre_N31 + R_N33 @ d_N9[:, :3, None]
        R_N33 = R_N33 @ _turn(d_N9[:, 3:6].clamp(-0.5, 0.5))
        change_N3 = (change_N3 + d_N9[:, 6:]).clamp(-LARGEST_CHANGE, LARGEST_CHANGE)
    pose_N63 = torch.linalg.solve_ex(H_N99[:, :6, :6], H_N99[:, :6, 6:])[0]
    own_N33 = H_N99[:, 6:, 6:] - H_N99[:, 6:, :6] @ pose_N63
    squared_N = (change_N3[:, None] @ own_N33 @ change_N3[..., None]).flatten().nan_to_num(0.0)
    return CameraFit(change_N3, torch.where(found.solved_B, squared_N.clamp_min(0.0).sqrt(), 0.0))


def _rays(cells: Cells, settings: AlignmentSettings) -> _Rays:
    points, variance, rays = (tensor.mT.double() for tensor in cells[:3])
    depth_N1C, usable_N1C = cells.depth_BN.double().unsqueeze(1), cells.usable_BN.unsqueeze(1)
    finite_N1C = ((points + variance + rays).sum(1, keepdim=True) + depth_N1C).isfinite()
    good_N1C = usable_N1C & finite_N1C & (variance.amin(1, keepdim=True) > 0.0)
    depth_N1C = torch.where(good_N1C, depth_N1C, 0.0)
    sigma_N1C = settings.depth_sigma_m + settings.depth_sigma_share * depth_N1C
    return _Rays(
        torch.where(good_N1C, points, 0.0),
        torch.where(good_N1C, variance, 1.0).rsqrt(),
        torch.where(good_N1C, rays, 1.0),
        depth_N1C,
        torch.where(depth_N1C > 0.0, sigma_N1C.square().reciprocal(), 0.0),
        good_N1C.double(),
    )


def _equations(R_N33: Tensor, centre_N31: Tensor, change_N3: Tensor, cells: _Rays) -> Tensor:
    """[[H, g], [g', cost]] (N, 10, 10) of pose (right perturbation) and camera, see `scene_alignment`."""
    wider_N31 = torch.cat([change_N3[:, :1], change_N3[:, :1], torch.zeros_like(change_N3[:, :1])], 1).exp()[..., None]
    shift_N31 = torch.cat([change_N3[:, 1:], torch.zeros_like(change_N3[:, :1])], 1)[..., None]
    wide_N3C = cells.rays_N3C * wider_N31
    ray_N3C = wide_N3C + shift_N31
    inverse_N3C, q_N1C, given_N1C = cells.inverse_sigma_N3C, cells.depth_information_N1C, cells.depth_N1C
    u_N3C, v_N3C = (R_N33 @ ray_N3C) * inverse_N3C, (cells.points_N3C - centre_N31) * inverse_N3C
    uu_N1C, uv_N1C = (u_N3C * u_N3C).sum(1, keepdim=True), (u_N3C * v_N3C).sum(1, keepdim=True)
    sum_N1C = uu_N1C + q_N1C
    depth_N1C = (uv_N1C + q_N1C * given_N1C) / sum_N1C
    k_N1C = (1.0 - (q_N1C / sum_N1C).sqrt()) / uu_N1C
    e_N3C = v_N3C - (given_N1C + k_N1C * (uv_N1C - given_N1C * uu_N1C)) * u_N3C
    square_N1C = (e_N3C * e_N3C).sum(1, keepdim=True)
    root_weight_N1C = (PLATEAU / square_N1C.clamp_min(PLATEAU)) * cells.counts_N1C * (depth_N1C > 0.0)
    uA_N3C = R_N33.mT @ (u_N3C * inverse_N3C)
    # axes of the camera first, then those of the map
    P_N33C = R_N33.mT.unsqueeze(-1) * inverse_N3C.unsqueeze(1) - uA_N3C.unsqueeze(2) * (k_N1C * u_N3C).unsqueeze(1)
    P_N33C = P_N33C * root_weight_N1C.unsqueeze(1)
    turned_N33C = torch.linalg.cross(P_N33C, (ray_N3C * depth_N1C).unsqueeze(2).expand_as(P_N33C), dim=1)
    along_N33C = -P_N33C * depth_N1C.unsqueeze(1)
    widened_N13C = (along_N33C[:, :2] * wide_N3C[:, :2, None]).sum(1, keepdim=True)
    error_N13C = (e_N3C * root_weight_N1C).unsqueeze(1)
    J_N10M = torch.cat([-P_N33C, turned_N33C, widened_N13C, along_N33C[:, :2], error_N13C], 1).flatten(2)
    return J_N10M @ J_N10M.mT


def _turn(angles_N3: Tensor) -> Tensor:
    """Rotations (N, 3, 3) by Cayley's formula, which agrees with the exponential to second order."""
    x, y, z = (0.5 * angles_N3).unbind(1)
    zero = torch.zeros_like(x)
    skew_N33 = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], 1).unflatten(1, (3, 3))
    squared_N11 = (x * x + y * y + z * z)[:, None, None]
    return torch.eye(3).to(skew_N33) + (2.0 / (1.0 + squared_N11)) * (skew_N33 + skew_N33 @ skew_N33)
