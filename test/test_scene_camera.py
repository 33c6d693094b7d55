"""Cells tell what is wrong with a calibration: how long its focal length is, and where its principal point lies."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scene_world import batch_of, cells_of, random_pose

from vmloc_ros.scene_alignment import AlignmentSettings, Cells, align
from vmloc_ros.scene_camera import camera_fit

SETTINGS = AlignmentSettings()


def seen_with(cells: Cells, longer: float, right: float = 0.0, down: float = 0.0) -> Cells:
    """The cells with the rays of a camera_info whose focal length is too long and whose principal point is off."""
    rays = cells.rays_BN3.clone()
    rays[..., 0] = rays[..., 0] / longer - right
    rays[..., 1] = rays[..., 1] / longer - down
    return cells._replace(rays_BN3=rays)


def world(seed: int, depth: bool, sigma_m: float = 0.02) -> Cells:
    rng = np.random.default_rng(seed)
    return cells_of(random_pose(rng), rng, sigma_m=sigma_m, depth=depth)


@pytest.mark.parametrize("depth", [True, False])
def test_the_right_camera_is_no_surprise(depth: bool) -> None:
    """Three numbers, whose errors the cells know: the squares of the surprise are chi-square with 3 degrees."""
    frames = batch_of([world(seed, depth) for seed in range(60)])
    fit = camera_fit(frames, align(frames, SETTINGS), SETTINGS)
    assert 1.5 < float(fit.surprise_N.square().mean()) < 6.0
    assert float(fit.change_N3.abs().median()) < 0.02


@settings(max_examples=10, deadline=None)
@given(st.floats(0.8, 1.25), st.floats(-0.1, 0.1), st.floats(-0.1, 0.1), st.integers(0, 9))
def test_a_wrong_camera_is_found(longer: float, right: float, down: float, seed: int) -> None:
    """From a pose that makes up for it as far as a pose can."""
    cells = seen_with(world(seed, depth=False, sigma_m=0.002), longer, right, down)
    found = align(cells, AlignmentSettings(inlier_m=0.5))
    fit = camera_fit(cells, found, SETTINGS)
    expected = torch.tensor([np.log(longer), right, down]).double()
    assert torch.allclose(fit.change_N3[0], expected, atol=0.03)


def test_a_wrong_camera_surprises() -> None:
    for longer, right in ((1.5, 0.0), (0.7, 0.0), (1.0, 0.15)):
        cells = seen_with(world(3, depth=False), longer, right)
        fit = camera_fit(cells, align(cells, SETTINGS), SETTINGS)
        assert float(fit.surprise_N[0]) > 10.0


def test_frames_do_not_change_each_other_and_nothing_is_raised() -> None:
    good, bad = world(1, depth=True), world(2, depth=False)
    bad = bad._replace(points_BN3=torch.full_like(bad.points_BN3, torch.nan))
    both = batch_of([good, bad])
    alone = camera_fit(good, align(good, SETTINGS), SETTINGS)
    together = camera_fit(both, align(both, SETTINGS), SETTINGS)
    assert torch.allclose(together.change_N3[:1], alone.change_N3, atol=1e-9)
    assert float(together.surprise_N[1]) == 0.0  # without a pose there is nothing to say
    assert bool(together.change_N3.isfinite().all())
