"""Poses of cells with known places: exact, honest about their errors, robust, and the same whatever stands beside."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scene_world import batch_of, cells_of, random_pose, rays, room_depths
from scipy import integrate, stats

from vmloc_ros import scene_alignment
from vmloc_ros.geometry import Array, inverse, log_se3
from vmloc_ros.scene_alignment import Alignment, AlignmentSettings, Cells, align
from vmloc_ros.scene_hypotheses import _drawn, quartic_roots, three_point_ranges

SETTINGS = AlignmentSettings()
WITH_OR_WITHOUT = pytest.mark.parametrize("depth", [True, False], ids=["depth", "rays"])


def frames(count: int, seed: int = 0, **options: object) -> tuple[list[Array], Cells]:
    """Poses, and what is seen from them."""
    rng = np.random.default_rng(seed)
    poses = [random_pose(rng) for _ in range(count)]
    return poses, batch_of([cells_of(T, rng, **options) for T in poses])  # type: ignore[arg-type]


def errors(found: Alignment, poses: list[Array]) -> Array:
    """Tangent vectors (B, 6) from the found poses to the true ones."""
    assert found.solved_B.all()
    return np.array(
        [log_se3(inverse(T.numpy()) @ truth) for T, truth in zip(found.T_map_camera_B44, poses, strict=True)]
    )


def squares(found: Alignment, poses: list[Array]) -> Array:
    """Normalised estimation errors squared (B,)."""
    error_B6 = errors(found, poses)
    return np.einsum("bi,bij,bj->b", error_B6, found.information_B66.numpy(), error_B6)


def same(found: Alignment, expected: Alignment, tolerance: float = 1e-7) -> None:
    """Equal results, to rounding."""
    for name in ("T_map_camera_B44", "share_B", "residual_B", "distance_B"):
        mine, other = getattr(found, name), getattr(expected, name)
        torch.testing.assert_close(mine, other, rtol=tolerance, atol=tolerance, equal_nan=True)
    diagonal_B6 = expected.information_B66.diagonal(dim1=1, dim2=2).clamp(min=1e-300).sqrt()
    scale_B66 = diagonal_B6.unsqueeze(1) * diagonal_B6.unsqueeze(2)
    assert ((found.information_B66 - expected.information_B66) / scale_B66).abs().max() < 100.0 * tolerance
    assert found.solved_B.equal(expected.solved_B)


# ------------------------------------------------------------------------------------------------------------ accuracy


@WITH_OR_WITHOUT
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), reach=st.sampled_from([1.0, 30.0, 1000.0]))
def test_exact_cells_give_the_exact_pose(depth: bool, seed: int, reach: float) -> None:
    rng = np.random.default_rng(seed)
    T = random_pose(rng, reach)
    found = align(cells_of(T, rng, sigma_m=0.0, depth=depth), SETTINGS)
    assert np.abs(errors(found, [T])).max() < 1e-9
    assert found.share_B.item() == 1.0
    assert found.residual_B.item() < 1e-9
    assert found.distance_B.item() < 1e-9


@WITH_OR_WITHOUT
def test_the_information_is_that_of_the_errors(depth: bool) -> None:
    poses, cells = frames(200, depth=depth)
    found = align(cells, SETTINGS)
    assert 0.8 * 6.0 < squares(found, poses).mean() < 1.25 * 6.0
    assert found.residual_B.mean().item() == pytest.approx(1.0, abs=0.1)


@WITH_OR_WITHOUT
def test_a_network_that_is_too_sure_of_everything_is_not_believed(depth: bool) -> None:
    """Twice the claimed errors: the pose is hardly worse than with true claims, and its covariance fits."""
    poses, cells = frames(100, depth=depth, sigma_m=0.03)
    bold = cells._replace(variance_BN3=cells.variance_BN3 / 4.0)
    found = align(bold, SETTINGS)
    assert squares(found, poses).mean() < 2.0 * 6.0
    ratio = (
        np.linalg.norm(errors(found, poses), axis=1).mean()
        / np.linalg.norm(errors(align(cells, SETTINGS), poses), axis=1).mean()
    )
    assert ratio < 1.15
    assert found.residual_B.mean().item() > 1.5


@pytest.mark.parametrize(("depth", "outliers"), [(True, 0.4), (False, 0.3)], ids=["depth", "rays"])
def test_gross_outliers_hardly_matter(depth: bool, outliers: float) -> None:
    poses, clean = frames(60, seed=3, depth=depth)
    _, dirty = frames(60, seed=3, depth=depth, outliers=outliers)
    found = align(dirty, SETTINGS)
    with_B, without_B = (np.linalg.norm(errors(a, poses)[:, :3], axis=1) for a in (found, align(clean, SETTINGS)))
    fewer = 1.0 / np.sqrt(1.0 - outliers)  # what leaving those cells out would cost
    assert with_B.mean() < 1.3 * fewer * without_B.mean()
    assert with_B.max() < 3.0 * fewer * without_B.max()
    assert found.share_B.mean().item() == pytest.approx((1.0 - outliers), abs=0.06)


def test_returns_help() -> None:
    poses, seen = frames(60, seed=5)
    blind = seen._replace(depth_BN=torch.zeros_like(seen.depth_BN))
    with_depth, without = (errors(align(cells, SETTINGS), poses) for cells in (seen, blind))
    assert np.linalg.norm(with_depth[:, :3], axis=1).mean() < 0.85 * np.linalg.norm(without[:, :3], axis=1).mean()


@pytest.mark.parametrize("returns", [3, 12, 40])
def test_a_few_returns_among_bearings(returns: int) -> None:
    """Both kinds of starts compete, and both kinds of cells count."""
    poses, cells = frames(40, seed=6, outliers=0.25)
    kept = torch.zeros_like(cells.usable_BN)
    kept[:, torch.randperm(kept.shape[1], generator=torch.Generator().manual_seed(0))[:returns]] = True
    found = align(cells._replace(depth_BN=cells.depth_BN * kept), SETTINGS)
    assert np.linalg.norm(errors(found, poses)[:, :3], axis=1).max() < 0.06


def test_returns_of_infinite_variance_are_bearings() -> None:
    _, cells = frames(10, seed=7)
    vague = AlignmentSettings(depth_sigma_m=float("inf"))
    blind = cells._replace(depth_BN=torch.zeros_like(cells.depth_BN))
    same(align(cells, vague), align(blind, SETTINGS))
    wrong = cells._replace(depth_BN=cells.depth_BN * 3.0)
    same(align(wrong, vague), align(blind, SETTINGS))


# ---------------------------------------------------------------------------------------------------------- invariance


@WITH_OR_WITHOUT
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_moving_the_map_moves_the_pose(depth: bool, seed: int) -> None:
    """With standard deviations alike on all axes, for else they would have to turn with the map."""
    rng = np.random.default_rng(seed)
    T, move = random_pose(rng), random_pose(rng, 100.0)
    cells = cells_of(T, rng, depth=depth, anisotropic=False, outliers=0.2)
    R, t = torch.from_numpy(move[:3, :3]), torch.from_numpy(move[:3, 3])
    before, after = align(cells, SETTINGS), align(cells._replace(points_BN3=cells.points_BN3 @ R.T + t), SETTINGS)
    moved = before._replace(T_map_camera_B44=torch.from_numpy(move) @ before.T_map_camera_B44)
    same(after, moved)


@WITH_OR_WITHOUT
def test_the_order_of_the_cells_does_not_matter(depth: bool) -> None:
    """Other triples are drawn; the pose that they lead to is the same."""
    _, cells = frames(20, seed=8, depth=depth, outliers=0.3)
    order = torch.randperm(cells.depth_BN.shape[1], generator=torch.Generator().manual_seed(1))
    found = align(Cells(*(tensor[:, order] for tensor in cells)), SETTINGS)
    expected = align(cells, SETTINGS)
    same(found, expected, tolerance=1e-4)
    assert (found.inliers_BN != expected.inliers_BN[:, order]).float().mean() < 0.002


@WITH_OR_WITHOUT
def test_cells_that_do_not_count_change_nothing(depth: bool) -> None:
    _, cells = frames(8, seed=9, depth=depth, outliers=0.2)
    _, others = frames(8, seed=10, depth=depth)
    others = others._replace(usable_BN=torch.zeros_like(others.usable_BN))
    others.points_BN3[:, ::3] = torch.nan
    others.variance_BN3[:, 1::3] = 0.0
    both = Cells(*(torch.cat(pair, 1) for pair in zip(cells, others, strict=True)))
    found = align(both, SETTINGS)
    same(found, align(cells, SETTINGS))
    assert not found.inliers_BN[:, cells.depth_BN.shape[1] :].any()


def test_the_frames_beside_do_not_matter() -> None:
    """Frames with returns, without, with a few, hopeless ones, and more of them than are solved at once."""
    _, seen = frames(12, seed=11, outliers=0.3)
    _, blind = frames(12, seed=12, depth=False, outliers=0.3)
    _, few = frames(12, seed=13)
    few.depth_BN[:, 10:] = 0.0
    _, hopeless = frames(3, seed=14)
    hopeless.points_BN3[:] = torch.nan
    batch = batch_of([seen, blind, few, hopeless])
    together = align(batch, SETTINGS)
    assert together.solved_B.tolist() == [True] * 36 + [False] * 3
    for index in range(0, 39, 2):
        alone = align(Cells(*(tensor[index : index + 1] for tensor in batch)), SETTINGS)
        same(alone, Alignment(*(tensor[index : index + 1] for tensor in together)))


@WITH_OR_WITHOUT
def test_the_same_call_gives_the_same_bits(depth: bool) -> None:
    _, cells = frames(3, seed=15, depth=depth, outliers=0.4)
    first, second = align(cells, SETTINGS), align(cells, SETTINGS)
    assert all(a.equal(b) for a, b in zip(first, second, strict=True))


@WITH_OR_WITHOUT
def test_more_steps_change_nothing(depth: bool) -> None:
    _, cells = frames(30, seed=19, depth=depth, outliers=0.3)
    few, many = align(cells, SETTINGS), align(cells, replace(SETTINGS, iterations=50))
    difference_B = (few.T_map_camera_B44 - many.T_map_camera_B44)[:, :3, 3].norm(dim=1)
    assert difference_B.max() < 1e-4  # metres, of errors of a centimetre


def test_a_first_call_in_inference_mode_spoils_nothing() -> None:
    """What is kept between calls must not be a tensor that only inference may touch."""
    settings = replace(SETTINGS, hypotheses=SETTINGS.hypotheses + 1)
    _, cells = frames(1, seed=20, depth=False)
    with torch.inference_mode():
        inside = align(Cells(*(tensor.clone() for tensor in cells)), settings)
    outside = align(cells, settings)
    assert inside.T_map_camera_B44.equal(outside.T_map_camera_B44)


def test_single_precision_is_enough() -> None:
    _, cells = frames(10, seed=16)
    single = Cells(*(tensor.float() for tensor in cells[:4]), cells.usable_BN)
    found = align(single, SETTINGS)
    assert found.T_map_camera_B44.dtype == torch.float64
    same(found, align(cells, SETTINGS), tolerance=1e-4)


# ------------------------------------------------------------------------------------------------------ hopeless frames


def unsolved(found: Alignment) -> None:
    """Not solved, and said so in every field."""
    assert not found.solved_B.any()
    assert found.T_map_camera_B44.isnan().all()
    assert not found.information_B66.any()
    assert not found.inliers_BN.any()
    assert not found.share_B.any()
    assert found.residual_B.isposinf().all()
    assert found.distance_B.isposinf().all()


@WITH_OR_WITHOUT
def test_random_points_have_few_that_agree(depth: bool) -> None:
    _, cells = frames(20, seed=17, depth=depth)
    noise = torch.rand(cells.points_BN3.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    found = align(cells._replace(points_BN3=8.0 * noise - 4.0), SETTINGS)
    assert found.share_B.max() < 0.2
    assert (found.distance_B > 0.3).all()


@WITH_OR_WITHOUT
@pytest.mark.parametrize(
    ("field", "value"),
    [(field, value) for field in Cells._fields[:4] for value in (np.nan, np.inf)]
    + [(field, -1.0) for field in Cells._fields[1:4]],  # a point may be anywhere
)
def test_broken_cells_never_agree_but_count(depth: bool, field: str, value: float) -> None:
    """Every tenth cell is broken: the pose is that of the others, and a tenth of the share is missing."""
    poses, cells = frames(4, seed=18, depth=depth, sigma_m=0.0)
    broken = getattr(cells, field).clone()
    if field == "rays_BN3":
        broken[:, ::10, 2] = value
    else:
        broken[:, ::10] = value
    found = align(cells._replace(**{field: broken}), SETTINGS)
    assert np.abs(errors(found, poses)).max() < 1e-9
    assert not found.inliers_BN[:, ::10].any()
    torch.testing.assert_close(found.share_B, torch.full((4,), 0.9, dtype=torch.float64))
    unsolved(align(cells._replace(**{field: torch.full_like(broken, value)}), SETTINGS))


@WITH_OR_WITHOUT
@pytest.mark.parametrize("cells_left", [0, 1, 2, 5])
def test_too_few_cells_give_no_pose(depth: bool, cells_left: int) -> None:
    _, cells = frames(3, depth=depth, sigma_m=0.0)
    few = torch.zeros_like(cells.usable_BN)
    few[:, 30 : 30 + cells_left] = True
    unsolved(align(cells._replace(usable_BN=few), SETTINGS))
    unsolved(align(Cells(*(tensor[:, :cells_left] for tensor in cells)), SETTINGS))
    assert len(align(Cells(*(tensor[:0] for tensor in cells)), SETTINGS).solved_B) == 0


@WITH_OR_WITHOUT
@pytest.mark.parametrize("sigma", [0.0, 0.03])
def test_a_line_gives_no_pose_or_a_vague_one(depth: bool, sigma: float) -> None:
    """All points on a line in space: turning about it cannot be seen."""
    rng = np.random.default_rng(0)
    vague = 0
    for _ in range(10):
        T = random_pose(rng)
        start, end = rng.uniform([-0.5, -0.4, 1.5], [-0.2, 0.4, 3.0]), rng.uniform([0.2, -0.4, 1.5], [0.5, 0.4, 3.0])
        seen_N3 = start + np.linspace(0.0, 1.0, 300)[:, None] * (end - start)
        points_N3 = seen_N3 @ T[:3, :3].T + T[:3, 3] + rng.normal(0.0, 1.0, (300, 3)) * sigma
        arrays = points_N3, np.full((300, 3), 0.03**2), seen_N3 / seen_N3[:, 2:], seen_N3[:, 2] * depth
        cells = Cells(*(torch.from_numpy(array)[None] for array in arrays), torch.ones(1, 300, dtype=torch.bool))
        found = align(cells, SETTINGS)
        if found.solved_B.item():
            deviations = np.sqrt(np.linalg.eigvalsh(np.linalg.inv(found.information_B66[0].numpy())))
            assert deviations.max() > 0.5
        else:
            vague += 1
            unsolved(found)
    assert vague == 10 or sigma > 0.0


@WITH_OR_WITHOUT
def test_one_point_everywhere_gives_no_pose(depth: bool) -> None:
    _, cells = frames(4, depth=depth)
    unsolved(align(cells._replace(points_BN3=torch.ones_like(cells.points_BN3)), SETTINGS))
    one = Cells(*(tensor[:, 40:41].expand(-1, 50, *tensor.shape[2:]) for tensor in cells))
    unsolved(align(one, SETTINGS))


def test_what_lies_behind_the_camera_never_agrees() -> None:
    """Bearings turned round: the lines are the same, the points lie on their other halves."""
    rng = np.random.default_rng(1)
    T = random_pose(rng)
    cells = cells_of(T, rng, sigma_m=0.0, depth=False)
    mirrored = 2.0 * torch.from_numpy(T[:3, 3]) - cells.points_BN3
    found = align(cells._replace(points_BN3=mirrored), SETTINGS)
    if found.solved_B.item():
        assert found.share_B.item() < 0.5
        assert np.linalg.norm(log_se3(inverse(found.T_map_camera_B44[0].numpy()) @ T)) > 0.1


# -------------------------------------------------------------------------------------------------------------- pieces


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-5.0, 5.0), min_size=4, max_size=4, unique=True), st.floats(0.1, 3.0))
def test_all_real_roots_are_found(roots: list[float], scale: float) -> None:
    """As far as they can be told: where two lie close together, only the place is sure."""
    found = quartic_roots(torch.from_numpy(scale * np.poly(roots))).numpy()
    for root in roots:
        others = np.delete(np.array(roots), roots.index(root)) - root
        near = max(1e-6, min(1.0, 1e-11 / max(1e-300, float(np.abs(np.prod(others))))))
        assert np.abs(found - root).min() < max(near, 1e-2 if np.abs(others).min() < 0.05 else near)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**31))
def test_three_bearings_have_the_solutions_that_opencv_finds(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rays_33 = np.column_stack([rng.uniform(-0.7, 0.7, (3, 2)), np.ones(3)])
    seen_33 = rays_33 * rng.uniform(1.0, 5.0, (3, 1))
    T = random_pose(rng)
    points_33 = seen_33 @ T[:3, :3].T + T[:3, 3]
    _, turns, shifts = cv2.solveP3P(points_33, rays_33[:, :2].copy(), np.eye(3), None, flags=cv2.SOLVEPNP_P3P)
    theirs = [
        np.linalg.norm(points_33 @ cv2.Rodrigues(w)[0].T + t.T, axis=1) for w, t in zip(turns, shifts, strict=True)
    ]
    unit_33 = rays_33 / np.linalg.norm(rays_33, axis=1, keepdims=True)
    arrays = (torch.from_numpy(array.T.copy())[None, :, :, None] for array in (points_33, unit_33))
    ours_43 = three_point_ranges(*arrays)[0, :, 0].numpy().T
    for ranges in [np.linalg.norm(seen_33, axis=1), *theirs]:
        assert np.nanmin(np.abs(ours_43 - ranges).max(1)) < 2e-2 * ranges.max()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from([0.0, 1e-3, 1.0, 7.0]), min_size=1, max_size=20).filter(any), st.integers(0, 2**31))
def test_cells_are_drawn_by_weight(weights: list[float], seed: int) -> None:
    """With many numbers that fill [0, 1) evenly, each cell comes as often as its weight says; those of 0 never."""
    numbers = (torch.arange(20_000, dtype=torch.float64)[None] + 0.5) / 20_000
    weights_1N = torch.tensor([weights], dtype=torch.float64) * (1.0 + seed)
    shares = torch.bincount(_drawn(weights_1N, numbers)[0], minlength=len(weights)) / 20_000
    torch.testing.assert_close(shares, (weights_1N / weights_1N.sum())[0].float(), rtol=0.0, atol=1e-4)
    assert not shares[weights_1N[0] == 0.0].any()


@pytest.mark.parametrize("dof", [2, 3])
def test_the_constants_are_those_of_the_chi_square_distribution(dof: int) -> None:
    chi2, c2 = stats.chi2(dof), scene_alignment.TURN
    assert scene_alignment.QUANTILES[dof] == pytest.approx(chi2.ppf(scene_alignment.QUANTILE), rel=1e-5)
    assert scene_alignment.MEDIANS[dof] == pytest.approx(chi2.median(), rel=1e-5)

    def mean(function: object) -> float:
        return float(integrate.quad(lambda x: function(x) * chi2.pdf(x), 0.0, np.inf)[0])  # type: ignore[operator]

    slope = mean(lambda x: (1 + x / c2) ** -2 - 4 * x / (dof * c2) * (1 + x / c2) ** -3)
    spread = mean(lambda x: x / dof * (1 + x / c2) ** -4)
    gain = slope**2 / (spread * mean(lambda x: (1 + x / c2) ** -2))
    assert scene_alignment.GAIN[dof] == pytest.approx(gain, rel=1e-5)


def test_the_made_up_room_is_in_front_of_the_camera() -> None:
    depth_N = room_depths(np.random.default_rng(0), rays())
    assert depth_N.min() > 0.5
    assert depth_N.max() < 6.0
    assert depth_N.std() > 0.3
