"""The camera's pose from cells whose places in the map are known roughly: with depth, without, or mixed.

For a cell whose surface lies at X ~ N(mean, diag(variance)) in the map, seen along d = R ray (ray z = 1) at a depth
l ~ N(depth, depth_variance), the residual is r = X - (C + depth d). With l marginalised, its information is

    W' = W - W d d' W / (d' W d + 1 / depth_variance),    W = diag(1 / variance).

A cell with a good depth counts in three dimensions (3D-3D alignment), one without any has 1 / depth_variance = 0 and
counts across its ray only (reprojection, in metres in the map): two ends of one estimator. The pose minimises the sum
of a robust loss of r' W' r: a start from `scene_hypotheses`, then iteratively re-weighted Gauss-Newton on SE(3).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from vmloc_ros.scene_hypotheses import Sight, Tolerance, best_poses

FRAMES_AT_ONCE = 32
"""Larger batches are solved in parts: all hypotheses times all cells are in memory at once."""
LEAST_PIVOT = 1e-5
"""Of the Cholesky factor of the information scaled to a diagonal of ones: below it a direction is not seen at all."""

TURN = 9.0
"""Squared whitened residual at which a cell's weight has fallen to a quarter.

Chosen with the loss, by experiment: Gaussian and Student-t errors, claims that are wrong for single cells or three
times too small for all, 30 and 60 % outliers, a quarter of the image moved together; against Cauchy's loss, Huber's,
and a flat top with steep sides.
"""
DOUBT = 3.0
"""Information that is not this many times what noise alone makes up is none."""
QUANTILE, MOST_SCATTER = 0.2, 9.0
"""Which quantile of the squared residuals tells how a frame's cells scatter (outliers are among the others), and the
most that is believed: three times the claimed standard deviation."""
QUANTILES = {2: 0.446287, 3: 1.005174}
MEDIANS = {2: 1.386294, 3: 2.365974}
"""Of the chi-square distributions with 2 and 3 degrees of freedom."""
GAIN = {2: 1.233773, 3: 1.409537}
"""What the weights are multiplied by, so that with Gaussian errors the information is the inverse of the estimate's
covariance: E[psi']^2 / (E[psi^2] E[w]) of one component, psi = w e (P. Huber, "Robust Statistics", 1981, ch. 3)."""


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
        hypotheses: triples of cells whose bearings are solved; with depth, eight times as many are looked at.
        iterations: of Gauss-Newton; always all of them.
        inlier_m, inlier_share: a cell agrees with a pose if its point lies nearer than inlier_m + inlier_share *
            (distance along the ray) to where the pose puts it; without a return, to its ray.
        depth_sigma_m, depth_sigma_share: standard deviation of a return: depth_sigma_m + depth_sigma_share * depth.
        close: of that, how far a cell may lie away until its weight has fallen to a quarter. Less is more exact where
            the tolerance is generous, and takes more steps.
        least_cells: usable cells, and cells that agree, below which there is no pose.
        enough_returns: frames with fewer returns start from bearings as well.
    """

    hypotheses: int = 64
    iterations: int = 6
    inlier_m: float = 0.1
    inlier_share: float = 0.02
    depth_sigma_m: float = 0.005
    depth_sigma_share: float = 0.002
    close: float = 1.0
    least_cells: int = 6
    enough_returns: int = 24


class Alignment(NamedTuple):
    """The poses of B frames; all but `inliers_BN` and `solved_B` in float64.

    Attributes:
        T_map_camera_B44: NaN where not solved.
        information_B66: of the right perturbation T Exp(d), d = (translation, rotation) in camera axes: J' W' J with
            the cells' robust weights, which fall to nothing for cells that do not agree; 0 where not solved.
        inliers_BN: cells that agree; none where not solved.
        share_B: of the usable cells, those that agree; 0 where not solved.
        residual_B: how the cells that agree scatter, by the median of their squared whitened residuals: 1 = as the
            network claims, 2 = twice as far. Infinite where not solved.
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
    frames, count = cells.depth_BN.shape
    if frames == 0 or count < settings.least_cells:
        return _nothing(cells)
    parts = [
        _align(Cells(*(tensor[first : first + FRAMES_AT_ONCE] for tensor in cells)), settings)
        for first in range(0, frames, FRAMES_AT_ONCE)
    ]
    return parts[0] if len(parts) == 1 else Alignment(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))


def _nothing(cells: Cells) -> Alignment:
    frames, usable_BN = len(cells.depth_BN), cells.usable_BN
    zeros_B = torch.zeros(frames, dtype=torch.float64, device=usable_BN.device)
    return Alignment(
        torch.full((frames, 4, 4), torch.nan).to(zeros_B),
        torch.zeros(frames, 6, 6).to(zeros_B),
        torch.zeros_like(usable_BN),
        zeros_B,
        zeros_B + torch.inf,
        zeros_B + torch.inf,
        zeros_B > 0.0,
    )


def _align(cells: Cells, settings: AlignmentSettings) -> Alignment:
    sight, middle_B31 = _sight(cells, settings)
    tolerance = Tolerance(settings.inlier_m, settings.inlier_share)
    start = best_poses(sight, settings.hypotheses, tolerance, settings.enough_returns)
    scatter = _scatter(sight, settings)
    R_B33, centre_B31 = start.R_BK33[:, 0].nan_to_num(0.0), start.centre_BK3.mT.nan_to_num(0.0)
    for _ in range(settings.iterations):
        R_B33, centre_B31 = _moved(R_B33, centre_B31, _normal_equations(R_B33, centre_B31, sight, scatter))
    return _judged(R_B33, centre_B31, sight, scatter, middle_B31, cells.usable_BN, start.valid_BK[:, 0], settings)


def _sight(cells: Cells, settings: AlignmentSettings) -> tuple[Sight, Tensor]:
    """The cells in float64 about the middle of each frame's points (B, 3, 1); those that are no good made harmless."""
    points, variance, rays = (
        tensor.mT.to(torch.float64, memory_format=torch.contiguous_format) for tensor in cells[:3]
    )
    depth_B1N, usable_B1N = cells.depth_BN.double().unsqueeze(1), cells.usable_BN.unsqueeze(1)
    # 0 * x is 0 for finite numbers only: whatever is not finite is found in one pass
    numbers_B1N = ((points + variance + rays).sum(1, keepdim=True) + depth_B1N) * 0.0
    positive_B1N = torch.minimum(variance.amin(1, keepdim=True), rays[:, 2:]) > 0.0
    good_B1N = usable_B1N & (numbers_B1N == 0.0) & positive_B1N & (depth_B1N >= 0.0)
    points = torch.where(good_B1N, points, 0.0)
    middle_B31 = points.sum(2, keepdim=True) / good_B1N.sum(2, keepdim=True).clamp(min=1)
    depth_B1N = torch.where(good_B1N, depth_B1N, 0.0)
    depth_sigma_B1N = settings.depth_sigma_m + settings.depth_sigma_share * depth_B1N
    sight = Sight(
        points - middle_B31,
        torch.where(good_B1N, variance, 1.0).rsqrt(),
        torch.where(good_B1N, rays, 1.0),
        depth_B1N,
        torch.where(depth_B1N > 0.0, depth_sigma_B1N.square().reciprocal(), 0.0),
        good_B1N.double(),
    )
    return sight, middle_B31


class _Scatter(NamedTuple):
    """What the squares of whitened residuals are measured by: they have 3 degrees of freedom, 2 without a return.

    Attributes:
        per_quantile_B1N: 1 / the `QUANTILE` of the chi-square distribution.
        unusable_B1N: 0, or infinite for cells that do not count: added, it sorts them to the end.
        rank_B11: of the `QUANTILE` among the usable cells.
        root_gain_B1N: root of `GAIN`; 0 for cells that do not count.
        four_per_dof_B1N: 4 / degrees of freedom.
        close_m, close_share: metres at which a weight has fallen to a quarter, and so much more per metre of depth.
    """

    per_quantile_B1N: Tensor
    unusable_B1N: Tensor
    rank_B11: Tensor
    root_gain_B1N: Tensor
    four_per_dof_B1N: Tensor
    close_m: float
    close_share: float


def _scatter(sight: Sight, settings: AlignmentSettings) -> _Scatter:
    has_return_B1N = sight.depth_information_B1N > 0.0
    return _Scatter(
        torch.where(has_return_B1N, 1.0 / QUANTILES[3], 1.0 / QUANTILES[2]),
        torch.where(sight.usable_B1N > 0.0, 0.0, torch.inf),
        (sight.usable_B1N.sum(2, keepdim=True) * QUANTILE).long(),
        torch.where(has_return_B1N, GAIN[3] ** 0.5, GAIN[2] ** 0.5) * sight.usable_B1N,
        torch.where(has_return_B1N, 4.0 / 3.0, 4.0 / 2.0),
        settings.close * settings.inlier_m,
        settings.close * settings.inlier_share,
    )


def _root_weight(square_B1N: Tensor, metres_B1N: Tensor, depth_B1N: Tensor, scatter: _Scatter) -> tuple[Tensor, Tensor]:
    """Root of the weights w = gain / s / (1 + e^2 / (c^2 s))^2 / (1 + (m / t)^2)^2 (S. Geman, D. McClure, 1987).

    c^2 is `TURN`, e the whitened and m the metric residual (squared: `square_B1N`, `metres_B1N`), t is how far a cell
    that agrees may lie away, times `AlignmentSettings.close`. Networks say too wide a variance more often than too
    narrow a one, and what agrees closely with a pose is right more often than it claims: with e alone the errors of a
    network of a street were twice as large.

    s >= 1 is how much more than claimed the frame's closest cells scatter (squared): a network that is too sure of a
    whole frame would else have all its good cells taken for outliers, and the pose for a certain one.

    The second number (B, 1, 1) is what a step is to be stretched by: re-weighting alone goes only sum w' / sum w of the
    way, w' = w + 2 e^2 dw/de^2 / dof being the loss's mean second derivative. With it, six steps do what twenty did.
    """
    sorted_B1N = (square_B1N * scatter.per_quantile_B1N + scatter.unusable_B1N).sort(2).values
    s_B11 = sorted_B1N.gather(2, scatter.rank_B11).clamp_(1.0, MOST_SCATTER)
    per_sum_B1N = 1.0 / (square_B1N + TURN * s_B11)
    allowed_B1N = (scatter.close_m + scatter.close_share * depth_B1N).square()
    per_metric_B1N = 1.0 / (metres_B1N + allowed_B1N)
    root_B1N = scatter.root_gain_B1N * (depth_B1N > 0.0) * (TURN * s_B11.sqrt() * per_sum_B1N)
    root_B1N = root_B1N * (allowed_B1N * per_metric_B1N)
    weight_B1N = root_B1N * root_B1N
    total_B11 = weight_B1N.sum(2, keepdim=True)
    bend_B1N = (square_B1N * per_sum_B1N + metres_B1N * per_metric_B1N) * scatter.four_per_dof_B1N
    bent_B11 = weight_B1N @ bend_B1N.mT
    return root_B1N, total_B11 / torch.maximum(total_B11 - bent_B11, 0.5 * total_B11)


class _System(NamedTuple):
    """The normal equations at a pose.

    Attributes:
        G_B77: [[H, g], [g', cost]] with H = sum w J' W' J and g = sum w J' W' r.
        square_B1N: r' W' r.
        turned_B33N: the rotation's part of the cells' weighted Jacobians, which is proportional to their depth.
        depth_B1N, depth_information_B1N: that depth, and 1 / its variance.
        stretch_B11: see `_root_weight`.
    """

    G_B77: Tensor
    square_B1N: Tensor
    turned_B33N: Tensor
    depth_B1N: Tensor
    depth_information_B1N: Tensor
    stretch_B11: Tensor


def _normal_equations(R_B33: Tensor, centre_B31: Tensor, sight: Sight, scatter: _Scatter) -> _System:
    """Gauss-Newton's equations for the robust sum of r' W' r.

    W' = P' P with P = (I - k u u') W^(1/2), u = W^(1/2) d and k such that (I - k u u')^2 = I - u u' / (u' u + q),
    q = 1 / depth_variance. J is taken at the likeliest depth between the cell's return and its point, which makes g the
    exact gradient: W' depends on the pose, too. Cells behind the camera have no weight.
    """
    inverse_B3N, q_B1N, given_B1N = sight.inverse_sigma_B3N, sight.depth_information_B1N, sight.depth_B1N
    u_B3N = (R_B33 @ sight.rays_B3N) * inverse_B3N
    v_B3N = (sight.points_B3N - centre_B31) * inverse_B3N
    uu_B1N, uv_B1N = (u_B3N * u_B3N).sum(1, keepdim=True), (u_B3N * v_B3N).sum(1, keepdim=True)
    sum_B1N = uu_B1N + q_B1N
    depth_B1N = (uv_B1N + q_B1N * given_B1N) / sum_B1N
    k_B1N = (1.0 - (q_B1N / sum_B1N).sqrt()) / uu_B1N
    e_B3N = v_B3N - (given_B1N + k_B1N * (uv_B1N - given_B1N * uu_B1N)) * u_B3N
    square_B1N = (e_B3N * e_B3N).sum(1, keepdim=True)
    metres_B1N = (e_B3N / inverse_B3N).square().sum(1, keepdim=True)
    root_weight_B1N, stretch_B11 = _root_weight(square_B1N, metres_B1N, depth_B1N, scatter)
    uA_B3N = R_B33.mT @ (u_B3N * inverse_B3N)
    # axes of the camera first, then those of the map
    P_B33N = R_B33.mT.unsqueeze(-1) * inverse_B3N.unsqueeze(1) - uA_B3N.unsqueeze(2) * (k_B1N * u_B3N).unsqueeze(1)
    P_B33N *= root_weight_B1N.unsqueeze(1)
    seen_B31N = (sight.rays_B3N * depth_B1N).unsqueeze(2)
    turned_B33N = torch.linalg.cross(P_B33N, seen_B31N.expand_as(P_B33N), dim=1)
    J_B7M = torch.cat([-P_B33N, turned_B33N, (e_B3N * root_weight_B1N).unsqueeze(1)], 1).flatten(2)
    return _System(J_B7M @ J_B7M.mT, square_B1N, turned_B33N, depth_B1N, sum_B1N, stretch_B11)


@cache
def _skew(device: torch.device) -> Tensor:
    """(3, 9): a vector times it is the vector's skew matrix, row by row."""
    matrix = torch.zeros(3, 9, dtype=torch.float64, device=device)
    for axis, entry, sign in ((0, 5, -1), (0, 7, 1), (1, 2, 1), (1, 6, -1), (2, 1, -1), (2, 3, 1)):
        matrix[axis, entry] = sign
    return matrix


def _moved(R_B33: Tensor, centre_B31: Tensor, system: _System) -> tuple[Tensor, Tensor]:
    """The pose after a step; the rotation by Cayley's formula, which agrees with the exponential to second order."""
    H_B66 = system.G_B77[:, :6, :6].clone()
    H_B66.diagonal(dim1=1, dim2=2).mul_(1.0 + 1e-9).add_(1e-12)  # a direction that is not seen stays as it is
    step_B61 = torch.linalg.solve_ex(H_B66, -system.stretch_B11 * system.G_B77[:, :6, 6:])[0].nan_to_num_(0.0, 0.0, 0.0)
    half_B13 = 0.5 * step_B61[:, 3:].mT
    skew_B33 = (half_B13 @ _skew(half_B13.device)).unflatten(2, (3, 3)).squeeze(1)
    turn_B33 = skew_B33 + skew_B33 @ skew_B33
    turn_B33 *= 2.0 / (1.0 + half_B13 @ half_B13.mT)
    return R_B33 + R_B33 @ turn_B33, centre_B31 + R_B33 @ step_B61[:, :3]


def _spurious(system: _System) -> Tensor:
    """The part of H (B, 6, 6) that the noise of the depths makes up.

    A rotation's effect grows with the depth, and H has its square, which noise makes larger by its variance. About a
    line of points, where rotations have no effect at all, H would have nothing but that: about 1 per cell.
    """
    per_depth_B1N = 1.0 / (system.depth_B1N.clamp(min=1e-6) * system.depth_information_B1N.sqrt())
    noise_B3M = (system.turned_B33N * per_depth_B1N.unsqueeze(1)).flatten(2)
    return torch.nn.functional.pad(noise_B3M @ noise_B3M.mT, (3, 0, 3, 0))


def _agreement(R_B33: Tensor, centre_B31: Tensor, sight: Sight, settings: AlignmentSettings) -> tuple[Tensor, Tensor]:
    """How far (B, N) the cells' points lie from where the pose puts them, metres, and which agree with it."""
    away_B3N = R_B33.mT @ (sight.points_B3N - centre_B31)
    ray_B1N = sight.rays_B3N.square().sum(1, keepdim=True)
    along_B1N = (away_B3N * sight.rays_B3N).sum(1, keepdim=True) / ray_B1N
    depth_B1N = torch.where(sight.depth_information_B1N > 0.0, sight.depth_B1N, along_B1N.clamp(min=0.0))
    distance_B1N = (away_B3N - depth_B1N * sight.rays_B3N).square_().sum(1, keepdim=True).sqrt()
    allowed_B1N = settings.inlier_m + settings.inlier_share * depth_B1N * ray_B1N.sqrt()
    inliers_B1N = (distance_B1N < allowed_B1N) & (along_B1N > 0.0) & (sight.usable_B1N > 0.0)
    return distance_B1N.squeeze(1), inliers_B1N.squeeze(1)


def _judged(
    R_B33: Tensor,
    centre_B31: Tensor,
    sight: Sight,
    scatter: _Scatter,
    middle_B31: Tensor,
    usable_BN: Tensor,
    started_B: Tensor,
    settings: AlignmentSettings,
) -> Alignment:
    """Which cells agree with the poses, how well they are determined, and whether they count as solved."""
    system = _normal_equations(R_B33, centre_B31, sight, scatter)
    H_B66, spurious_B66 = system.G_B77[:, :6, :6], _spurious(system)
    distance_BN, inliers_BN = _agreement(R_B33, centre_B31, sight, settings)
    count_B, asked_B = inliers_BN.sum(1), usable_BN.sum(1)
    distance_BN = torch.where(usable_BN, distance_BN + scatter.unusable_B1N.squeeze(1), torch.nan)
    median_1N = torch.where(sight.depth_information_B1N > 0.0, MEDIANS[3], MEDIANS[2]).squeeze(1)
    whitened_BN = torch.where(inliers_BN, system.square_B1N.squeeze(1) / median_1N, torch.nan)
    distance_B, residual_B = torch.stack([distance_BN, whitened_BN]).nanmedian(2).values
    scale_B16 = H_B66.diagonal(dim1=1, dim2=2).unsqueeze(1).rsqrt()
    sure_B66 = (H_B66 - DOUBT * spurious_B66) * scale_B16 * scale_B16.mT
    factor_B66, failed_B = torch.linalg.cholesky_ex(sure_B66)
    pivot_B = factor_B66.diagonal(dim1=1, dim2=2).amin(1)
    T_B34 = torch.cat([R_B33, centre_B31 + middle_B31], 2)
    finite_B = (T_B34.sum((1, 2)) + system.G_B77.sum((1, 2)) + residual_B).isfinite()
    solved_B = started_B & finite_B & (count_B >= settings.least_cells) & (failed_B == 0) & (pivot_B > LEAST_PIVOT)
    last_B14 = torch.eye(4, dtype=T_B34.dtype, device=T_B34.device)[3:].expand(len(T_B34), 1, 4)
    yes_B11 = solved_B[:, None, None]
    return Alignment(
        torch.where(yes_B11, torch.cat([T_B34, last_B14], 1), torch.nan),
        torch.where(yes_B11, H_B66 - spurious_B66, 0.0),
        inliers_BN & solved_B.unsqueeze(1),
        torch.where(solved_B, count_B / asked_B.clamp(min=1).double(), 0.0),
        torch.where(solved_B, residual_B.sqrt(), torch.inf),
        torch.where(solved_B, distance_B, torch.inf),
        solved_B,
    )
