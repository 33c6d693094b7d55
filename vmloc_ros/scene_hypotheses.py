"""Poses that a few cells of a scene-coordinate image suggest, and how many of the others agree with each.

A cell has a point in the map (what the network says), a ray through its centre, and a depth or none. Three cells with
depth give a pose in closed form (two orthonormal frames, one on each side); three cells without give up to four, by
the distances that solve the perspective three-point problem (J. A. Grunert, 1841; the quartic as in R. Haralick, C. Lee,
K. Ottenberg, M. Nolle, "Review and analysis of solutions of the three point perspective pose estimation problem", IJCV
1994, eqs. 9-10). Everything is one batch of tensors, so that it runs on any device, and the triples come from fixed
numbers: the same frame suggests the same poses, in whatever batch it comes.
"""

from __future__ import annotations

import math
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

DRAWN_PER_KEPT = 8
"""Triples with depth are looked at before a pose is made of any: so many for each one that is kept."""
LEAST_SINE = 0.05
"""Triples in which two sides stand at a smaller angle to each other are as good as on a line."""
_SEED = 20_241


class Sight(NamedTuple):
    """Cells as the solver works with them: B frames, N cells, float64; positions relative to a point of the frame's own.

    Attributes:
        points_BN3: means in the map's axes, metres.
        inverse_sigma_BN3: 1 / standard deviation of the means along the map's axes.
        rays_BN3: camera optical axes, z = 1.
        depth_BN: along the optical axis, metres; 0 = no return.
        depth_information_BN: 1 / variance of the depth; 0 = no return.
        usable_BN: 1 for cells that count, 0 for the others, whose numbers are harmless.
    """

    points_BN3: Tensor
    inverse_sigma_BN3: Tensor
    rays_BN3: Tensor
    depth_BN: Tensor
    depth_information_BN: Tensor
    usable_BN: Tensor


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
    """(3, count) numbers in [0, 1), always the same; the three of a column lie in different thirds, in any order.

    Cells are counted along the rows of the image, so that triples spread over it.
    """
    generator = torch.Generator().manual_seed(_SEED)
    first_N = (torch.arange(count) + torch.rand(count, generator=generator, dtype=torch.float64)) / count
    apart_2N = torch.rand(2, count, generator=generator, dtype=torch.float64) / 3.0
    offsets_3N = torch.stack([torch.zeros(count), 1.0 / 6.0 + apart_2N[0], 0.5 + apart_2N[1]])
    return ((first_N + offsets_3N) % 1.0).to(device)


def draw_triples(weights_BN: Tensor, count: int) -> Tensor:
    """Numbers of cells (B, 3, count), the likelier the higher their weight; cells of weight 0 never.

    Where no cell has a weight, whatever comes must be refused by the caller.
    """
    cumulated_BN = weights_BN.cumsum(-1)
    total_B1 = cumulated_BN[:, -1:]
    numbers_3H = _numbers(count, weights_BN.device)
    wanted_BM = numbers_3H.reshape(1, -1) * total_B1
    drawn_BM = torch.searchsorted(cumulated_BN, wanted_BM, right=True).clamp_(max=weights_BN.shape[1] - 1)
    return drawn_BM.unflatten(1, (3, count))


def _cell_weights(sight: Sight, counts_BN: Tensor, tolerance: Tolerance) -> Tensor:
    """By precision, as far as it matters: below the tolerance, a cell that is surer is no better."""
    variance_BN = sight.inverse_sigma_BN3.square().reciprocal().sum(-1)
    return counts_BN / (variance_BN + tolerance.metres**2)


def _picked(values_BND: Tensor, triples_B3H: Tensor) -> Tensor:
    """(B, 3, H, D): the triples' values."""
    index_BM1 = triples_B3H.flatten(1).unsqueeze(-1)
    return values_BND.gather(1, index_BM1.expand(-1, -1, values_BND.shape[2])).unflatten(1, triples_B3H.shape[1:])


def _frames(corners_B3H3: Tensor) -> tuple[Tensor, Tensor]:
    """Axes (B, H, 3, 3) in columns that stand on triangles, and the sine of the angle at their first corner."""
    side_BH3 = corners_B3H3[:, 1] - corners_B3H3[:, 0]
    other_BH3 = corners_B3H3[:, 2] - corners_B3H3[:, 0]
    normal_BH3 = torch.linalg.cross(side_BH3, other_BH3)
    lengths_BH3 = torch.stack([side_BH3, other_BH3, normal_BH3], 2).square().sum(-1).sqrt()
    x_BH3 = side_BH3 / lengths_BH3[..., :1]
    z_BH3 = normal_BH3 / lengths_BH3[..., 2:]
    axes_BH33 = torch.stack([x_BH3, torch.linalg.cross(z_BH3, x_BH3), z_BH3], -1)
    return axes_BH33, lengths_BH3[..., 2] / (lengths_BH3[..., 0] * lengths_BH3[..., 1])


def poses_of_triangles(map_B3H3: Tensor, camera_B3H3: Tensor) -> Poses:
    """The pose that lays each triangle seen from the camera onto its triangle in the map, middle on middle.

    Triangles that are nearly a line on either side, and those that are not finite, are not valid.
    """
    axes_BH33, sine_BH = _frames(torch.cat([map_B3H3, camera_B3H3]))
    frames = len(map_B3H3)
    R_BH33 = axes_BH33[:frames] @ axes_BH33[frames:].mT
    middle_BH3 = map_B3H3.mean(1) - (R_BH33 @ camera_B3H3.mean(1).unsqueeze(-1)).squeeze(-1)
    valid_BH = (torch.minimum(sine_BH[:frames], sine_BH[frames:]) > LEAST_SINE) & middle_BH3.isfinite().all(-1)
    return Poses(R_BH33, middle_BH3, valid_BH)


def poses_with_depth(sight: Sight, count: int, tolerance: Tolerance) -> Poses:
    """Poses (count per frame) of three cells with returns.

    Of `DRAWN_PER_KEPT` times as many triples, those are kept whose sides are as long in the map as they are seen,
    for their size; triples whose sides differ by more than the corners' tolerances are not valid.
    """
    returns_BN = sight.usable_BN * (sight.depth_information_BN > 0.0)
    drawn_B3M = draw_triples(_cell_weights(sight, returns_BN, tolerance), DRAWN_PER_KEPT * count)
    seen_BN3 = sight.rays_BN3 * sight.depth_BN.unsqueeze(-1)
    both_B3M6 = _picked(torch.cat([sight.points_BN3, seen_BN3], -1), drawn_B3M)
    sides_B3M23 = (both_B3M6 - both_B3M6.roll(1, 1)).unflatten(-1, (2, 3))
    lengths_B3M2 = sides_B3M23.square().sum(-1).sqrt()
    mismatch_BM = (lengths_B3M2[..., 0] - lengths_B3M2[..., 1]).abs().amax(1)
    reach_BM = both_B3M6[..., 5].sum(1) * (2.0 / 3.0)
    allowed_BM = 2.0 * tolerance.metres + tolerance.share * reach_BM
    size_BM = lengths_B3M2.amin((1, 3))
    rank_BM = torch.where(mismatch_BM < allowed_BM, (mismatch_BM + tolerance.metres) / size_BM, torch.inf)
    least_BH, best_BH = rank_BM.topk(count, largest=False)
    kept_B3H6 = both_B3M6.gather(2, best_BH[:, None, :, None].expand(-1, 3, -1, 6))
    poses = poses_of_triangles(kept_B3H6[..., :3], kept_B3H6[..., 3:])
    enough_B1 = returns_BN.sum(1, keepdim=True) >= 3
    return poses._replace(valid_BK=poses.valid_BK & least_BH.isfinite() & enough_B1)


def poses_of_bearings(sight: Sight, count: int, tolerance: Tolerance) -> Poses:
    """Poses (4 * count per frame) of three cells by their rays alone."""
    triples_B3H = draw_triples(_cell_weights(sight, sight.usable_BN, tolerance), count)
    map_B3H3 = _picked(sight.points_BN3, triples_B3H)
    rays_B3H3 = _picked(sight.rays_BN3, triples_B3H)
    unit_B3H3 = rays_B3H3 / rays_B3H3.square().sum(-1, keepdim=True).sqrt()
    ranges_B3H4 = three_point_ranges(map_B3H3, unit_B3H3)
    camera_B3M3 = (ranges_B3H4.unsqueeze(-1) * unit_B3H3.unsqueeze(3)).flatten(2, 3)
    poses = poses_of_triangles(map_B3H3.repeat_interleave(4, 2), camera_B3M3)
    in_front_BM = (ranges_B3H4 > 0.0).all(1).flatten(1)
    enough_B1 = sight.usable_BN.sum(1, keepdim=True) >= 3
    return poses._replace(valid_BK=poses.valid_BK & in_front_BM & enough_B1)


def three_point_ranges(map_B3H3: Tensor, unit_B3H3: Tensor) -> Tensor:
    """Distances (B, 3, H, 4) of three points along their unit bearings; NaN or negative where there is no such solution.

    Grunert's quartic in v = s3 / s1. Of a pair of complex roots the real part is taken: with noise, two solutions
    that nearly coincide become such a pair, and what is close by is good enough for a start.
    """
    around_B3H3 = (map_B3H3.roll(-1, 1) - map_B3H3.roll(1, 1)).square().sum(-1)
    cosines_B3H = (unit_B3H3.roll(-1, 1) * unit_B3H3.roll(1, 1)).sum(-1)
    a2, b2, c2 = around_B3H3.unbind(1)  # squared sides opposite to corners 1, 2, 3
    cos_a, cos_b, cos_c = cosines_B3H.unbind(1)
    a, c = a2 / b2, c2 / b2
    m, s = a - c, a + c
    quartic = (
        (m - 1.0) ** 2 - 4.0 * c * cos_a**2,
        4.0 * (m * (1.0 - m) * cos_b - (1.0 - s) * cos_a * cos_c + 2.0 * c * cos_a**2 * cos_b),
        2.0
        * (
            m * m - 1.0 + 2.0 * m * m * cos_b**2 + 2.0 * (1.0 - c) * cos_a**2
            - 4.0 * s * cos_a * cos_b * cos_c + 2.0 * (1.0 - a) * cos_c**2
        ),
        4.0 * (-m * (1.0 + m) * cos_b + 2.0 * a * cos_c**2 * cos_b - (1.0 - s) * cos_a * cos_c),
        (1.0 + m) ** 2 - 4.0 * a * cos_c**2,
    )  # fmt: skip
    v = quartic_roots(torch.stack(quartic, -1))
    m, cos_a, cos_b, cos_c = (value.unsqueeze(-1) for value in (m, cos_a, cos_b, cos_c))
    u = ((m - 1.0) * v * v - 2.0 * m * cos_b * v + 1.0 + m) / (2.0 * (cos_c - v * cos_a))
    first = (b2.unsqueeze(-1) / (1.0 + v * v - 2.0 * v * cos_b)).sqrt()
    return torch.stack([first, u * first, v * first], 1)


def quartic_roots(coefficients_5: Tensor) -> Tensor:
    """Real parts (..., 4) of the roots of polynomials of degree 4, coefficients (..., 5) from the highest down.

    L. Ferrari's way, with one step of Newton's on every root. Not finite where the first coefficient is 0.
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
    m = cube - k / cube - p / 3.0
    twice = torch.sqrt(2.0 * m)
    inner_2 = torch.stack([twice, -twice], -1)
    outer_2 = torch.sqrt(-(2.0 * (p + m).unsqueeze(-1) + 2.0 * q.unsqueeze(-1) / inner_2))
    y_4 = 0.5 * torch.cat([inner_2 + outer_2, inner_2 - outer_2], -1).real
    x = y_4 - 0.25 * b.unsqueeze(-1)
    b, c, d, e = (value.unsqueeze(-1) for value in (b, c, d, e))
    value = (((x + b) * x + c) * x + d) * x + e
    slope = ((4.0 * x + 3.0 * b) * x + 2.0 * c) * x + d
    better = x - value / slope
    return torch.where(better.isfinite() & ((better - x).abs() < 0.1 * (1.0 + x.abs())), better, x)


def disagreement(poses: Poses, sight: Sight, tolerance: Tolerance) -> Tensor:
    """(B, K): the sum over cells of min((distance / tolerance)^2, 1), in float32; infinite for poses that are not valid.

    The distance is of the cell's point from where the pose puts it; without a return, from the ray in front of the camera.
    """
    single = torch.float32
    has_return_BN1 = (sight.depth_information_BN > 0.0).unsqueeze(-1)
    length_BN1 = sight.rays_BN3.square().sum(-1, keepdim=True).sqrt()
    depth_BN1 = torch.where(has_return_BN1, sight.depth_BN.unsqueeze(-1), 0.0)
    seen_B13N = (sight.rays_BN3 * depth_BN1).to(single).mT.unsqueeze(1)
    R_BK33 = poses.R_BK33.to(single)
    offset_BK31 = R_BK33.mT @ poses.centre_BK3.to(single).unsqueeze(-1)
    points_B3N = sight.points_BN3.to(single).mT
    away_BK3N = (R_BK33.mT.flatten(1, 2) @ points_B3N).unflatten(1, offset_BK31.shape[1:3])
    away_BK3N -= offset_BK31
    away_BK3N -= seen_B13N
    x, y, z = away_BK3N.unbind(2)
    allowed_B1N = (tolerance.metres + tolerance.share * depth_BN1 * length_BN1).to(single).mT
    square_BKN = x * x + y * y + z * z
    if not bool(has_return_BN1.all()):
        along = torch.where(has_return_BN1, 0.0, sight.rays_BN3 / length_BN1).to(single).mT.unsqueeze(1).unbind(2)
        along_BKN = (x * along[0] + y * along[1] + z * along[2]).clamp_(min=0.0)
        square_BKN = square_BKN - along_BKN * along_BKN
        allowed_BKN = allowed_B1N + tolerance.share * along_BKN
    else:
        allowed_BKN = allowed_B1N
    truncated_BKN = (square_BKN / (allowed_BKN * allowed_BKN)).clamp_(max=1.0)
    sum_BK = (truncated_BKN @ sight.usable_BN.to(single).unsqueeze(-1)).squeeze(-1)
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
    returns_B = (sight.usable_BN * (sight.depth_information_BN > 0.0)).sum(1)
    few_B = returns_B < enough_returns
    kinds = []
    if bool((returns_B >= 3).any()):
        kinds.append(poses_with_depth(sight, count, tolerance))
    if not kinds or bool(few_B.any()):
        bearings = poses_of_bearings(sight, count, tolerance)
        kinds.append(bearings._replace(valid_BK=bearings.valid_BK & few_B.unsqueeze(1)))
    poses = kinds[0] if len(kinds) == 1 else Poses(*(torch.cat(parts, 1) for parts in zip(*kinds, strict=True)))
    best_B1 = disagreement(poses, sight, tolerance).argmin(1, keepdim=True)
    return Poses(
        poses.R_BK33.gather(1, best_B1[..., None, None].expand(-1, -1, 3, 3)),
        poses.centre_BK3.gather(1, best_B1[..., None].expand(-1, -1, 3)),
        poses.valid_BK.gather(1, best_B1),
    )
