"""Poses that a few cells of a scene-coordinate image suggest, and how many of the others agree with each.

A cell has a point in the map (what the network says), a ray through its centre, and a depth or none. Three cells with
depth give a pose in closed form (two orthonormal frames, one on each side); three cells without give up to four, by
the distances that solve the perspective three-point problem (J. A. Grunert, 1841; the quartic as in R. Haralick,
C. Lee, K. Ottenberg, M. Nolle, "Review and analysis of solutions of the three point perspective pose estimation
problem", IJCV 1994). Everything is one batch of tensors, so that it runs on any device, and the triples come from fixed
numbers: the same frame suggests the same poses, in whatever batch it comes.
"""

from __future__ import annotations

import math
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

DRAWN_PER_TRIPLE = 8
"""Looking whether the sides of a triple with depth fit costs next to nothing: so many times more are drawn."""
KEPT_SHARE = 4
"""All cells are asked about one pose for so many triples: the others have been found worse with less work."""
LEAST_SINE = 0.05
"""Triples in which two sides stand at a smaller angle to each other are as good as on a line."""
JUDGES = 64
"""Cells that tell which of the many poses of bearings are worth a look by all."""
_SEED, _WHOLE = 20_241, 2.0**30


class Sight(NamedTuple):
    """Cells as the solver works with them: B frames, N cells, float64; positions about a point of the frame's own.

    Cells come last: long rows are what a processor is quick with.

    Attributes:
        points_B3N: means in the map's axes, metres.
        inverse_sigma_B3N: 1 / standard deviation of the means along the map's axes.
        rays_B3N: camera optical axes, z = 1.
        depth_B1N: along the optical axis, metres; 0 = no return.
        depth_information_B1N: 1 / variance of the depth; 0 = no return.
        usable_B1N: 1 for cells that count, 0 for the others, whose numbers are harmless.
    """

    points_B3N: Tensor
    inverse_sigma_B3N: Tensor
    rays_B3N: Tensor
    depth_B1N: Tensor
    depth_information_B1N: Tensor
    usable_B1N: Tensor


class Tolerance(NamedTuple):
    """A point agrees with a pose if it lies nearer than `metres + share * distance` to where the pose puts it."""

    metres: float
    share: float


class Poses(NamedTuple):
    """K poses for each of B frames, and which of them mean anything."""

    R_BK33: Tensor
    centre_BK3: Tensor
    valid_BK: Tensor


@cache
def _numbers(count: int, device: torch.device) -> Tensor:
    """(1, 3 * count) numbers in [0, 1), always the same: three rows; those of a column lie apart.

    Cells are counted along the rows of the image, so that triples spread over it.
    """
    generator = torch.Generator().manual_seed(_SEED)
    random_3H = torch.rand(3, count, generator=generator, dtype=torch.float64)
    first_H = (torch.arange(count) + random_3H[0]) / count
    rows_3H = torch.stack([first_H, first_H + (0.5 + random_3H[1]) / 3.0, first_H + (1.5 + random_3H[2]) / 3.0])
    return (rows_3H % 1.0).reshape(1, -1).to(device)


def _drawn(weights_BN: Tensor, numbers_1M: Tensor) -> Tensor:
    """Numbers of cells (B, M), the likelier the higher their weight, and never those of weight 0.

    Weights are made whole numbers, whose sums are exact: else the draw would depend on the order in which a GPU adds.
    Where no cell has a weight, whatever comes is to be refused by the caller.
    """
    most_B1 = weights_BN.amax(-1, keepdim=True).clamp(min=1e-300)
    cumulated_BN = (weights_BN * (_WHOLE / most_B1)).long().cumsum(-1)
    wanted_BM = (numbers_1M * cumulated_BN[:, -1:]).long()
    return torch.searchsorted(cumulated_BN, wanted_BM, right=True).clamp_(max=weights_BN.shape[1] - 1)


def _triples(weights_BN: Tensor, values_BDN: Tensor, count: int) -> Tensor:
    """(B, D, 3, count): the values of three cells each, drawn by weight."""
    drawn_BM = _drawn(weights_BN, _numbers(count, weights_BN.device))
    return _picked(values_BDN, drawn_BM).unflatten(2, (3, count))


def _picked(values_BDN: Tensor, index_BM: Tensor) -> Tensor:
    return values_BDN.gather(2, index_BM.unsqueeze(1).expand(-1, values_BDN.shape[1], -1))


def _precision(sight: Sight, counted_B1N: Tensor, tolerance: Tolerance) -> Tensor:
    """Weights (B, N), as far as precision matters: below the tolerance, a cell that is surer is no better."""
    variance_B1N = sight.inverse_sigma_B3N.square().reciprocal().sum(1, keepdim=True)
    return (counted_B1N / (variance_B1N + tolerance.metres**2)).squeeze(1)


def _returns(sight: Sight) -> Tensor:
    return sight.usable_B1N * (sight.depth_information_B1N > 0.0)


def poses_of_triangles(map_B33H: Tensor, camera_B33H: Tensor) -> Poses:
    """The pose that lays each triangle seen from the camera onto its triangle in the map, middle on middle.

    Args:
        map_B33H, camera_B33H: coordinates, corners, triangles.

    Returns:
        Their poses. Triangles that are nearly a line on either side, or not finite, are not valid.
    """
    frames, corners_C33H = len(map_B33H), torch.cat([map_B33H, camera_B33H])
    side_C3H, other_C3H = (corners_C33H[:, :, 1:] - corners_C33H[:, :, :1]).unbind(2)
    normal_C3H = torch.linalg.cross(side_C3H, other_C3H, dim=1)
    vectors_C33H = torch.stack([side_C3H, normal_C3H, other_C3H], 2)
    lengths_C13H = vectors_C33H.square().sum(1, keepdim=True).sqrt()
    x_C3H, z_C3H = (vectors_C33H[:, :, :2] / lengths_C13H[:, :, :2]).unbind(2)
    axes_C33H = torch.stack([x_C3H, torch.linalg.cross(z_C3H, x_C3H, dim=1), z_C3H], 2)
    axes_CH33 = axes_C33H.permute(0, 3, 1, 2)
    R_BH33 = axes_CH33[:frames] @ axes_CH33[frames:].mT
    middle_CH31 = corners_C33H.mean(2).mT.unsqueeze(-1)
    centre_BH3 = (middle_CH31[:frames] - R_BH33 @ middle_CH31[frames:]).squeeze(-1)
    sine_CH = lengths_C13H[:, 0, 1] / (lengths_C13H[:, 0, 0] * lengths_C13H[:, 0, 2])
    valid_BH = (torch.minimum(sine_CH[:frames], sine_CH[frames:]) > LEAST_SINE) & centre_BH3.sum(-1).isfinite()
    return Poses(R_BH33, centre_BH3, valid_BH)


def poses_with_depth(sight: Sight, count: int, tolerance: Tolerance) -> Poses:
    """Poses (one in `KEPT_SHARE` of `count` per frame) of three cells with returns.

    Of `DRAWN_PER_TRIPLE * count` triples, those are kept whose sides are as long in the map as they are seen, for their
    size; triples with a side that differs by more than the tolerances of its ends are not valid.
    """
    returns_B1N = _returns(sight)
    values_B6N = torch.cat([sight.points_B3N, sight.rays_B3N * sight.depth_B1N], 1)
    weights_BN = _precision(sight, returns_B1N, tolerance)
    drawn_B63M = _triples(weights_BN, values_B6N, DRAWN_PER_TRIPLE * count)
    sides_B233M = (drawn_B63M - drawn_B63M.roll(1, 2)).unflatten(1, (2, 3))
    lengths_B23M = sides_B233M.square().sum(2).sqrt()
    mismatch_BM = (lengths_B23M[:, 0] - lengths_B23M[:, 1]).abs().amax(1)
    allowed_BM = drawn_B63M[:, 5].sum(1) * (tolerance.share * 2.0 / 3.0) + 2.0 * tolerance.metres
    size_BM = lengths_B23M.amin((1, 2))
    rank_BM = torch.where(mismatch_BM < allowed_BM, (mismatch_BM + tolerance.metres) / size_BM, torch.inf)
    least_BH, best_BH = rank_BM.topk(max(1, count // KEPT_SHARE), largest=False)
    kept_B63H = drawn_B63M.gather(3, best_BH[:, None, None].expand(-1, 6, 3, -1))
    poses = poses_of_triangles(kept_B63H[:, :3], kept_B63H[:, 3:])
    enough_B1 = returns_B1N.sum(2) >= 3
    return poses._replace(valid_BK=poses.valid_BK & least_BH.isfinite() & enough_B1)


def poses_of_bearings(sight: Sight, judges_BDN: Tensor, count: int, tolerance: Tolerance) -> Poses:
    """Poses (one in `KEPT_SHARE` of `count` per frame) of three cells each by their rays alone.

    Every triple gives up to four; those are kept that `JUDGES` of the cells like best (`judges_of`: all cells).
    """
    unit_B3N = sight.rays_B3N / sight.rays_B3N.square().sum(1, keepdim=True).sqrt()
    weights_BN = _precision(sight, sight.usable_B1N, tolerance)
    drawn_B63H = _triples(weights_BN, torch.cat([sight.points_B3N, unit_B3N], 1), count)
    map_B33H, unit_B33H = drawn_B63H[:, :3], drawn_B63H[:, 3:]
    ranges_B3H4 = three_point_ranges(map_B33H, unit_B33H)
    camera_B33M = (ranges_B3H4.unsqueeze(1) * unit_B33H.unsqueeze(4)).flatten(3)
    poses = poses_of_triangles(map_B33H.repeat_interleave(4, 3), camera_B33M)
    in_front_BM = (ranges_B3H4.amin(1) > 0.0).flatten(1)
    enough_B1 = sight.usable_B1N.sum(2) >= 3
    poses = poses._replace(valid_BK=poses.valid_BK & in_front_BM & enough_B1)
    judges_1J = (torch.arange(JUDGES, device=unit_B3N.device) + 0.5)[None] / JUDGES
    index_BJ = _drawn(sight.usable_B1N.squeeze(1), judges_1J)
    disagreement_BM = disagreement(poses, _picked(judges_BDN, index_BJ), tolerance.share)
    return _chosen(poses, disagreement_BM.topk(max(1, count // KEPT_SHARE), largest=False).indices)


def _chosen(poses: Poses, index_BK: Tensor) -> Poses:
    return Poses(
        poses.R_BK33.gather(1, index_BK[..., None, None].expand(-1, -1, 3, 3)),
        poses.centre_BK3.gather(1, index_BK[..., None].expand(-1, -1, 3)),
        poses.valid_BK.gather(1, index_BK),
    )


def three_point_ranges(map_B33H: Tensor, unit_B33H: Tensor) -> Tensor:
    """Distances (B, 3, H, 4) of three points along their unit bearings; NaN or negative: there is no such solution.

    Grunert's quartic in v = s3 / s1. Of a pair of complex roots the real part is taken: with noise, two solutions
    that nearly coincide become such a pair, and what is close by is good enough for a start.

    Args:
        map_B33H, unit_B33H: coordinates, corners, triples.
    """
    squares_B3H = (map_B33H.roll(-1, 2) - map_B33H.roll(1, 2)).square().sum(1)
    cosines_B3H = (unit_B33H.roll(-1, 2) * unit_B33H.roll(1, 2)).sum(1)
    a, b, c = squares_B3H.unbind(1)  # of the sides opposite to corners 1, 2, 3
    cos_a, cos_b, cos_c = cosines_B3H.unbind(1)
    a, c, square_b = a / b, c / b, b
    m, s, aa, cc = a - c, a + c, cos_a * cos_a, cos_c * cos_c
    mixed = (1.0 - s) * cos_a * cos_c
    quartic = (
        (m - 1.0).square() - 4.0 * c * aa,
        4.0 * ((m - m * m + 2.0 * c * aa) * cos_b - mixed),
        2.0
        * (
            m * m
            - 1.0
            + 2.0 * ((m * cos_b).square() + (1.0 - c) * aa + (1.0 - a) * cc)
            - 4.0 * s * cos_a * cos_b * cos_c
        ),
        4.0 * ((2.0 * a * cc - m - m * m) * cos_b - mixed),
        (1.0 + m).square() - 4.0 * a * cc,
    )
    v = quartic_roots(torch.stack(quartic, -1))
    m, cos_a, cos_b, cos_c, square_b = (value.unsqueeze(-1) for value in (m, cos_a, cos_b, cos_c, square_b))
    u = ((m - 1.0) * v * v - 2.0 * m * cos_b * v + 1.0 + m) / (2.0 * (cos_c - v * cos_a))
    first = (square_b / (1.0 + v * v - 2.0 * v * cos_b)).sqrt()
    return torch.stack([first, u * first, v * first], 1)


def quartic_roots(coefficients_5: Tensor) -> Tensor:
    """Real parts (..., 4) of the roots of polynomials of degree 4, coefficients (..., 5) from the highest down.

    L. Ferrari's way. Not finite where the first coefficient is 0.
    """
    b, c, d, e = (coefficients_5[..., 1:] / coefficients_5[..., :1]).unbind(-1)
    square = b * b
    p = c - 0.375 * square
    q = d - 0.5 * b * c + 0.125 * square * b
    r = e - 0.25 * b * d + square * c / 16.0 - 3.0 / 256.0 * square * square
    # m^3 + p m^2 + (p^2/4 - r) m - q^2/8 = 0 has a real root m >= 0; in complex numbers no case has to be told apart.
    k = (-p * p / 12.0 - r) / 3.0
    h = (p * r / 3.0 - p * p * p / 108.0 - 0.125 * q * q) / 2.0
    root = torch.sqrt(torch.complex(h * h + k * k * k, torch.zeros_like(h)))
    sign = torch.where(h > 0.0, -1.0, 1.0)  # of the two, the one that does not cancel
    cube = (-h + sign * root) ** (1.0 / 3.0)
    m = cube - k / _not_zero(cube) - p / 3.0  # three equal roots: k is 0 as well
    twice = torch.sqrt(2.0 * m)
    inner_2 = torch.stack([twice, -twice], -1)
    outer_2 = torch.sqrt(-(2.0 * (p + m).unsqueeze(-1) + 2.0 * q.unsqueeze(-1) / _not_zero(inner_2)))
    return 0.5 * torch.cat([inner_2 + outer_2, inner_2 - outer_2], -1).real - 0.25 * b.unsqueeze(-1)


def _not_zero(values: Tensor) -> Tensor:
    """The same, with 1 in the place of 0."""
    return torch.where(values == 0.0, torch.ones_like(values), values)


def judges_of(sight: Sight, tolerance: Tolerance) -> Tensor:
    """What `disagreement` needs of the cells: (B, 12, N) in float32.

    Rows: the point, and a 1; where the camera sees it (0 without a return); the ray's direction (0 with a return); the
    tolerance as far as it is known before the pose; whether the cell is usable.
    """
    has_return_B1N = sight.depth_information_B1N > 0.0
    length_B1N = sight.rays_B3N.square().sum(1, keepdim=True).sqrt()
    depth_B1N = torch.where(has_return_B1N, sight.depth_B1N, 0.0)
    rows = (
        sight.points_B3N,
        torch.ones_like(depth_B1N),
        sight.rays_B3N * depth_B1N,
        torch.where(has_return_B1N, 0.0, sight.rays_B3N / length_B1N),
        tolerance.metres + tolerance.share * depth_B1N * length_B1N,
        sight.usable_B1N,
    )
    return torch.cat(rows, 1).float()


def disagreement(poses: Poses, judges_BDN: Tensor, share: float) -> Tensor:
    """(B, K): the sum over cells of min((distance / tolerance)^2, 1), in float32; infinite where a pose is not valid.

    The distance is of the cell's point from where the pose puts it; without a return, from the part of the ray in
    front of the camera.

    Args:
        poses: K for each frame.
        judges_BDN: see `judges_of`.
        share: by which the tolerance grows along a ray without a return.
    """
    R_BK33 = poses.R_BK33.mT
    T_BK34 = torch.cat([R_BK33, -R_BK33 @ poses.centre_BK3.unsqueeze(-1)], -1).float()
    away_BK3N = (T_BK34.flatten(1, 2) @ judges_BDN[:, :4]).unflatten(1, (-1, 3))
    away_BK3N -= judges_BDN[:, 4:7].unsqueeze(1)
    x, y, z = away_BK3N.unbind(2)
    i, j, k = judges_BDN[:, 7:10].unsqueeze(1).unbind(2)
    along_BKN = (x * i + y * j + z * k).clamp_(min=0.0)
    square_BKN = x * x + y * y + z * z - along_BKN * along_BKN
    allowed_BKN = judges_BDN[:, 10:11] + share * along_BKN
    truncated_BKN = (square_BKN / (allowed_BKN * allowed_BKN)).clamp_(max=1.0)
    sum_BK = (truncated_BKN @ judges_BDN[:, 11:].mT).squeeze(-1)
    return torch.where(poses.valid_BK & sum_BK.isfinite(), sum_BK, math.inf)


def best_poses(sight: Sight, count: int, tolerance: Tolerance, enough_returns: int) -> Poses:
    """For every frame the pose (K = 1) that most of its cells agree with; not valid where nothing suggests one.

    Args:
        sight: the cells.
        count: triples per frame and kind.
        tolerance: when a cell agrees.
        enough_returns: frames with so many cells with returns are solved by these; in the others the poses of bearings
            compete with them.
    """
    returns_B = _returns(sight).sum((1, 2))
    few_B = returns_B < enough_returns
    judges_BDN = judges_of(sight, tolerance)
    kinds = []
    if bool((returns_B >= 3).any()):
        kinds.append(poses_with_depth(sight, count, tolerance))
    if not kinds or bool(few_B.any()):
        bearings = poses_of_bearings(sight, judges_BDN, count, tolerance)
        kinds.append(bearings._replace(valid_BK=bearings.valid_BK & few_B.unsqueeze(1)))
    poses = kinds[0] if len(kinds) == 1 else Poses(*(torch.cat(parts, 1) for parts in zip(*kinds, strict=True)))
    best_B1 = disagreement(poses, judges_BDN, tolerance.share).argmin(1, keepdim=True)
    return _chosen(poses, best_B1)
