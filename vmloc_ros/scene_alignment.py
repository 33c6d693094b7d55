"""The camera's pose from cells whose places in the map are known roughly: with depth, without, or mixed.

For a cell whose surface lies at X ~ N(mean, diag(variance)) in the map, seen along the ray d = R ray (ray z = 1) at a depth
l ~ N(depth, depth_variance), the residual is r = X - (C + depth d). With l marginalised, its information is

    W' = W - W d d' W / (d' W d + 1 / depth_variance),    W = diag(1 / variance).

A cell with a good depth counts in three dimensions (3D-3D alignment), one without any has 1 / depth_variance = 0 and
counts across its ray only (reprojection, in metres in the map): two ends of one estimator. The pose minimises the sum of a
robust loss of r' W' r: a start from `scene_hypotheses`, then iteratively re-weighted Gauss-Newton on SE(3).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from vmloc_ros.scene_hypotheses import Sight, Tolerance, best_poses

FRAMES_AT_ONCE = 32
"""Larger batches are solved in parts: all hypotheses times all cells are in memory at once."""
LEAST_PIVOT = 1e-5
"""Of the Cholesky factor of the information scaled to a diagonal of ones: below it a direction is not seen at all."""


class Cells(NamedTuple):
    """What is known about the cells of B images, N each, all on one device.

    Cells with a number that is not finite, a variance or ray's z that is not positive, or a negative depth never agree
    with a pose, but they are not forgotten either: where usable, they count in the share of cells that should agree.

    Attributes:
        points_BN3: means in the map, metres.
        variance_BN3: along the map's axes, m^2, > 0.
        rays_BN3: through the cells' centres, camera optical axes, z = 1.
        depth_BN: metres along the optical axis; 0 = no return.
        usable_BN: bool: cells that count at all (others lie outside of the picture, are masked, ...).
    """

    points_BN3: Tensor
    variance_BN3: Tensor
    rays_BN3: Tensor
    depth_BN: Tensor
    usable_BN: Tensor


@dataclass(frozen=True)
class AlignmentSettings:
    """How a pose is looked for.

    Attributes:
        hypotheses: triples of cells that are tried.
        iterations: of Gauss-Newton; always all of them.
        inlier_m, inlier_share: a cell agrees with a pose if its point lies nearer than inlier_m + inlier_share * (distance
            along the ray) to where the pose puts it; without a return, to its ray.
        depth_sigma_m, depth_sigma_share: standard deviation of a return: depth_sigma_m + depth_sigma_share * depth.
        least_cells: usable cells, and cells that agree, below which there is no pose.
        enough_returns: frames with fewer returns start from bearings as well.
    """

    hypotheses: int = 64
    iterations: int = 8
    inlier_m: float = 0.1
    inlier_share: float = 0.02
    depth_sigma_m: float = 0.01
    depth_sigma_share: float = 0.01
    least_cells: int = 6
    enough_returns: int = 24


class Alignment(NamedTuple):
    """The poses of B frames; all but `inliers_BN` and `solved_B` in float64.

    Attributes:
        T_map_camera_B44: NaN where not solved.
        information_B66: of the right perturbation T Exp(d), d = (translation, rotation) in camera axes: J' W' J with the
            cells' robust weights; 0 where not solved.
        inliers_BN: cells that agree.
        share_B: of the usable cells, those that agree.
        residual_B: root mean square of a whitened residual's component over the cells that agree: 1 = they scatter as the
            network claims. Infinite where not solved.
        distance_B: median over the usable cells of the distance of their point from where the pose puts it, metres.
            Infinite where not solved.
        solved_B: whether there is a pose.
    """

    T_map_camera_B44: Tensor
    information_B66: Tensor
    inliers_BN: Tensor
    share_B: Tensor
    residual_B: Tensor
    distance_B: Tensor
    solved_B: Tensor


@torch.no_grad()
def align(cells: Cells, settings: AlignmentSettings) -> Alignment:
    """The pose of every frame from its cells alone: no other frame of the batch changes it, nor does an earlier call.

    Never raises because of the cells' values: a frame without enough cells that agree is not solved.
    """
    parts = [
        _align(Cells(*(tensor[first : first + FRAMES_AT_ONCE] for tensor in cells)), settings)
        for first in range(0, max(1, len(cells.points_BN3)), FRAMES_AT_ONCE)
    ]
    return parts[0] if len(parts) == 1 else Alignment(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))


def _align(cells: Cells, settings: AlignmentSettings) -> Alignment:
    sight, middle_B13 = _sight(cells, settings)
    tolerance = Tolerance(settings.inlier_m, settings.inlier_share)
    start = best_poses(sight, settings.hypotheses, tolerance, settings.enough_returns)
    R_B33 = start.R_BK33[:, 0].nan_to_num(0.0)
    centre_B13 = start.centre_BK3.nan_to_num(0.0)
    for _ in range(settings.iterations):
        system = _normal_equations(R_B33, centre_B13, sight)
        R_B33, centre_B13 = _moved(R_B33, centre_B13, system)
    return _judged(R_B33, centre_B13, sight, middle_B13, cells.usable_BN, start.valid_BK[:, 0], settings)


def _sight(cells: Cells, settings: AlignmentSettings) -> tuple[Sight, Tensor]:
    """The cells in float64 about the middle of each frame's points (B, 1, 3); those that are no good made harmless."""
    points, variance, rays = (tensor.double() for tensor in cells[:3])
    depth_BN = cells.depth_BN.double()
    # x * 0 is 0 for finite numbers only: one pass finds whatever is not finite
    broken_BN = ((points + variance + rays) * 0.0).sum(-1) + depth_BN * 0.0
    positive_BN = torch.minimum(variance.amin(-1), rays[..., 2]) > 0.0
    good_BN = cells.usable_BN & (broken_BN == 0.0) & positive_BN & (depth_BN >= 0.0)
    usable_BN = good_BN.double()
    good_BN1 = good_BN.unsqueeze(-1)
    points = torch.where(good_BN1, points, 0.0)
    count_B11 = usable_BN.sum(1)[:, None, None].clamp(min=1.0)
    middle_B13 = points.sum(1, keepdim=True) / count_B11
    depth_BN = torch.where(good_BN, depth_BN, 0.0)
    sigma_BN = settings.depth_sigma_m + settings.depth_sigma_share * depth_BN
    sight = Sight(
        points - middle_B13,
        torch.where(good_BN1, variance, 1.0).rsqrt(),
        torch.where(good_BN1, rays, 1.0),
        depth_BN,
        torch.where(depth_BN > 0.0, sigma_BN.square().reciprocal(), 0.0),
        usable_BN,
    )
    return sight, middle_B13


class _System(NamedTuple):
    """Gauss-Newton's normal equations, and what the cells have to do with them."""

    H_B66: Tensor
    g_B6: Tensor
    whitened_BN3: Tensor
    weight_BN: Tensor
    square_BN: Tensor
    depth_BN: Tensor
    away_BN3: Tensor
    direction_BN3: Tensor


def _normal_equations(R_B33: Tensor, centre_B13: Tensor, sight: Sight) -> _System:
    """H = sum w J' W' J and g = -sum w J' W' r at a pose, w the robust weights.

    W' = P' P with P = (I - k u u') W^(1/2), u = W^(1/2) d and k such that (I - k u u')^2 = I - u u' / (u' u + q),
    q = 1 / depth_variance. J is taken at the likeliest depth between the cell's return and its point, which makes g the
    exact gradient: W' depends on the pose, too.
    """
    inverse_BN3, q_BN = sight.inverse_sigma_BN3, sight.depth_information_BN
    direction_BN3 = sight.rays_BN3 @ R_B33.mT
    away_BN3 = sight.points_BN3 - centre_B13
    u_BN3, v_BN3 = direction_BN3 * inverse_BN3, away_BN3 * inverse_BN3
    uu_BN, uv_BN = (u_BN3 * u_BN3).sum(-1), (u_BN3 * v_BN3).sum(-1)
    sum_BN = uu_BN + q_BN
    depth_BN = (uv_BN + q_BN * sight.depth_BN) / sum_BN
    ku_BN3 = u_BN3 * ((1.0 - (q_BN / sum_BN).sqrt()) / uu_BN).unsqueeze(-1)
    e_BN3 = v_BN3 - sight.depth_BN.unsqueeze(-1) * u_BN3 - ku_BN3 * (uv_BN - sight.depth_BN * uu_BN).unsqueeze(-1)
    square_BN = (e_BN3 * e_BN3).sum(-1)
    weight_BN = robust_weight(square_BN, sight) * (depth_BN > 0.0)
    A_BN33 = inverse_BN3.unsqueeze(-1) * R_B33.unsqueeze(1)
    uA_BN3 = (u_BN3 * inverse_BN3) @ R_B33
    P_BN33 = A_BN33 - ku_BN3.unsqueeze(-1) * uA_BN3.unsqueeze(-2)
    seen_BN13 = (sight.rays_BN3 * depth_BN.unsqueeze(-1)).unsqueeze(-2)
    J_BN37 = torch.cat([-P_BN33, torch.linalg.cross(P_BN33, seen_BN13), e_BN3.unsqueeze(-1)], -1)
    J_BM7 = (J_BN37 * weight_BN.sqrt()[..., None, None]).flatten(1, 2)
    G_B77 = J_BM7.mT @ J_BM7
    return _System(
        G_B77[:, :6, :6], -G_B77[:, :6, 6], e_BN3, weight_BN, square_BN, depth_BN, away_BN3, direction_BN3
    )


KERNEL = ["plateau", 9.0, False]


def robust_weight(square_BN: Tensor, sight: Sight) -> Tensor:
    kind, c2, scaled = KERNEL
    if scaled:
        values = torch.where(sight.usable_BN > 0, square_BN, torch.nan)
        med = values.nanmedian(-1, keepdim=True).values
        square_BN = square_BN / (med / 2.0).clamp(min=1.0)
    if kind == "plateau":
        w = (c2 / square_BN).clamp(max=1.0).square()
    elif kind == "huber":
        w = (c2 / square_BN).clamp(max=1.0).sqrt()
    elif kind == "gm":
        w = (1.0 + square_BN / c2).reciprocal().square()
    elif kind == "cauchy":
        w = (1.0 + square_BN / c2).reciprocal()
    return w * sight.usable_BN


_SKEW = torch.zeros(3, 9, dtype=torch.float64)
for _axis, _entry, _sign in ((0, 5, -1), (0, 7, 1), (1, 2, 1), (1, 6, -1), (2, 1, -1), (2, 3, 1)):
    _SKEW[_axis, _entry] = _sign


def _moved(R_B33: Tensor, centre_B13: Tensor, system: _System) -> tuple[Tensor, Tensor]:
    """The pose after a step; the rotation by Cayley's formula, which agrees with the exponential to second order."""
    H = system.H_B66
    diagonal = H.diagonal(dim1=1, dim2=2)
    damped = H + torch.diag_embed(diagonal * 1e-9 + 1e-12)
    step_B6 = torch.linalg.solve_ex(damped, system.g_B6)[0].nan_to_num(0.0, 0.0, 0.0)
    centre_B13 = centre_B13 + step_B6[:, None, :3] @ R_B33.mT
    half_B3 = 0.5 * step_B6[:, 3:]
    skew_B33 = (half_B3 @ _SKEW.to(half_B3.device)).unflatten(1, (3, 3))
    factor_B11 = 2.0 / (1.0 + half_B3.square().sum(1))[:, None, None]
    return R_B33 + R_B33 @ (factor_B11 * (skew_B33 + skew_B33 @ skew_B33)), centre_B13


def _judged(
    R_B33: Tensor,
    centre_B13: Tensor,
    sight: Sight,
    middle_B13: Tensor,
    usable_BN: Tensor,
    started_B: Tensor,
    settings: AlignmentSettings,
) -> Alignment:
    """Which cells agree with the poses, how well they are determined, and whether they count as solved."""
    system = _normal_equations(R_B33, centre_B13, sight)
    has_return_BN = sight.depth_information_BN > 0.0
    along_BN = (system.away_BN3 * system.direction_BN3).sum(-1) / sight.rays_BN3.square().sum(-1)
    reached_BN = torch.where(has_return_BN, sight.depth_BN, along_BN.clamp(min=0.0)).unsqueeze(-1)
    seen_BN3 = reached_BN * system.direction_BN3
    distance_BN = (system.away_BN3 - seen_BN3).square().sum(-1).sqrt()
    allowed_BN = settings.inlier_m + settings.inlier_share * seen_BN3.square().sum(-1).sqrt()
    inliers_BN = (distance_BN < allowed_BN) & (along_BN > 0.0) & (sight.usable_BN > 0.0)
    count_B = inliers_BN.sum(1)
    asked_B = usable_BN.sum(1)
    distance_BN = torch.where(sight.usable_BN > 0.0, distance_BN, torch.inf)
    distance_B = torch.where(usable_BN, distance_BN, torch.nan).nanmedian(1).values
    weight_BN = inliers_BN * system.weight_BN
    components_BN = 2.0 + (system.direction_BN3.square().sum(-1) > 0.0) * has_return_BN
    residual_B = ((weight_BN * system.square_BN).sum(1) / (weight_BN * components_BN).sum(1)).sqrt()
    scale_B6 = system.H_B66.diagonal(dim1=1, dim2=2).clamp(min=0.0).sqrt()
    scaled_B66 = system.H_B66 / (scale_B6.unsqueeze(1) * scale_B6.unsqueeze(2))
    factor_B66, failed_B = torch.linalg.cholesky_ex(scaled_B66)
    pivot_B = factor_B66.diagonal(dim1=1, dim2=2).amin(1)
    centre_B3 = (centre_B13 + middle_B13).squeeze(1)
    finite_B = centre_B3.isfinite().all(1) & R_B33.isfinite().all(-1).all(-1) & residual_B.isfinite()
    enough_B = (count_B >= settings.least_cells) & (asked_B >= settings.least_cells)
    solved_B = started_B & enough_B & finite_B & (failed_B == 0) & (pivot_B > LEAST_PIVOT)
    T_B44 = torch.zeros(len(R_B33), 4, 4, dtype=torch.float64, device=R_B33.device)
    T_B44[:, :3, :3], T_B44[:, :3, 3], T_B44[:, 3, 3] = R_B33, centre_B3, 1.0
    yes_B11 = solved_B[:, None, None]
    return Alignment(
        torch.where(yes_B11, T_B44, torch.nan),
        torch.where(yes_B11, system.H_B66, 0.0),
        inliers_BN & solved_B.unsqueeze(1),
        torch.where(solved_B, count_B / asked_B.clamp(min=1), 0.0),
        torch.where(solved_B, residual_B, torch.inf),
        torch.where(solved_B, distance_B.nan_to_num(torch.inf), torch.inf),
        solved_B,
    )
