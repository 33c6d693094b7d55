"""Where the cells of an image truly lie: laws of returns, rays and targets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pictures import tiny_config
from scene_pictures import WALL_Z, scene_config, wall_store

from vmloc_ros.batches import BatchMaker, Part, measure_normalisation
from vmloc_ros.geometry import Array, exp_se3, inverse
from vmloc_ros.networks.scene_coordinates import nearest_returns
from vmloc_ros.objectives import build_objective
from vmloc_ros.samples import SampleStore
from vmloc_ros.scene_cells import SceneTargets, scene_targets
from vmloc_ros.scene_objective import SceneObjective
from vmloc_ros.types import PinholeIntrinsics

CAMERA = PinholeIntrinsics(24, 16, 20.0, 22.0, 11.0, 8.3)
CELL = 4
POSES = st.builds(
    lambda t, w: exp_se3(np.array([*t, *w])),
    st.tuples(*[st.floats(-50, 50)] * 3),
    st.tuples(*[st.floats(-1.5, 1.5)] * 3),
)
DEPTHS = arrays(np.float32, (2, 16, 24), elements=st.sampled_from([0.0, 0.0, 0.5, 1.0, 2.5, 7.0, 40.0]))
SHIFTS = st.tuples(st.integers(-3, 3), st.integers(-3, 3))


def targets(depth: Array, T: Array, shift: tuple[int, int] = (0, 0)) -> SceneTargets:
    """Targets of one frame or two of the same pose."""
    count = len(depth)
    return scene_targets(depth, np.repeat(T[None], count, 0), np.tile(shift, (count, 1)), CAMERA, CELL)


def nearest_by_hand(block: Array) -> float:
    """The return nearest to the centre of a cell, of equally near ones the first row by row."""
    middle = 0.5 * (len(block) - 1)
    returns = [((r - middle) ** 2 + (c - middle) ** 2, r, c) for (r, c), value in np.ndenumerate(block) if value > 0.0]
    return float(block[min(returns)[1:]]) if returns else 0.0


# ------------------------------------------------------------------------------------------------------------- returns


@given(DEPTHS, st.sampled_from([2, 4, 8]))
def test_a_cells_return_is_the_one_nearest_to_its_centre(depth: Array, cell: int) -> None:
    found = nearest_returns(torch.from_numpy(depth), cell).numpy()
    assert found.shape == (2, 16 // cell, 24 // cell)
    for (n, row, column), value in np.ndenumerate(found):
        block = depth[n, row * cell : (row + 1) * cell, column * cell : (column + 1) * cell]
        assert value == nearest_by_hand(block)


@pytest.mark.parametrize("bad", [float("nan"), -1.0, float("inf"), -float("inf")])
def test_what_is_no_depth_is_no_return(bad: float) -> None:
    depth = torch.full((1, 4, 4), bad)
    assert nearest_returns(depth, 4).item() == 0.0
    depth[0, 3, 0] = 2.0
    assert nearest_returns(depth, 4).item() == 2.0


# ------------------------------------------------------------------------------------------------------------- targets


@given(DEPTHS, POSES, SHIFTS)
def test_targets_are_seen_through_their_cells_at_their_depth(depth: Array, T: Array, shift: tuple[int, int]) -> None:
    found = targets(depth, T, shift)
    returns = nearest_returns(torch.from_numpy(depth), CELL).flatten(1).numpy()
    np.testing.assert_array_equal(found.known_BC.numpy(), returns > 0.0)
    in_camera = inverse(T)[:3, :3] @ found.points_B3C.numpy().astype(float) + inverse(T)[:3, 3:]
    np.testing.assert_allclose(in_camera[:, 2], returns, atol=1e-4)
    rows, columns = np.divmod(np.arange(returns.shape[1]), 24 // CELL)
    for n in range(2):
        seen = returns[n] > 0.0
        x, y, z = in_camera[n][:, seen]
        pixel_u = CAMERA.fx * x / z + CAMERA.cx - shift[0]  # of the window that was cut out
        pixel_v = CAMERA.fy * y / z + CAMERA.cy - shift[1]
        np.testing.assert_allclose(pixel_u, columns[seen] * CELL + 1.5, atol=5e-3)
        np.testing.assert_allclose(pixel_v, rows[seen] * CELL + 1.5, atol=5e-3)
        np.testing.assert_allclose(
            found.points_B3C[n][:, ~found.known_BC[n]], np.tile(T[:3, 3:], (~seen).sum()), atol=1e-4
        )


@given(arrays(np.float32, (1, 24, 32), elements=st.sampled_from([0.0, 1.0, 3.0, 9.0])), POSES)
def test_a_window_shifted_by_whole_cells_shows_the_same_points(large: Array, T: Array) -> None:
    centred = targets(large[:, 4:20, 4:28], T)
    shifted = targets(large[:, 8:24, 0:24], T, (-CELL, CELL))
    grid = (3, 16 // CELL, 24 // CELL)
    for one, other in (
        (centred.points_B3C, shifted.points_B3C),
        (centred.known_BC[:, None], shifted.known_BC[:, None]),
    ):
        one, other = (part[0].expand(3, -1).reshape(grid) for part in (one, other))
        assert torch.allclose(one[:, 1:, :-1].float(), other[:, :-1, 1:].float(), atol=1e-4)


@given(DEPTHS, POSES, POSES)
def test_moving_the_map_moves_the_targets(depth: Array, T: Array, moved: Array) -> None:
    one, other = targets(depth, T), targets(depth, moved @ T)
    expected = moved[:3, :3] @ one.points_B3C.numpy().astype(float) + moved[:3, 3:]
    np.testing.assert_allclose(other.points_B3C.numpy(), expected, atol=2e-3)


# ------------------------------------------------------------------------------------------------------------- batches


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> SampleStore:
    return wall_store(tmp_path_factory.mktemp("wall") / "cache", scene_config(), 12, {3: "rgb", 7: "depth"})


@pytest.mark.parametrize(
    ("augmentation", "tolerance_m"),
    [
        ({"margin": 0.5}, 0.01),
        ({"margin": 0.5, "turn_labels": False, "depth_noise": 0.3, "depth_dropout": 0.9}, 0.01),
        ({"move_chance": 1.0, "move_m": 0.2, "move_deg": 5.0}, 0.06),
        ({"move_chance": 1.0, "move_m": 0.0, "move_deg": 8.0}, 0.06),
    ],
    ids=["cropped", "noisy", "moved", "turned"],
)
def test_targets_lie_on_the_wall_whatever_was_done_to_the_picture(
    store: SampleStore, augmentation: dict[str, float], tolerance_m: float, tmp_path: Path
) -> None:
    """Depth is stored with 11 bits, and a moved view has the depth of the nearest pixel that moved there."""
    config = scene_config(augmentation=augmentation)
    if augmentation.get("margin"):
        store = wall_store(tmp_path / "cache", config, 12, {3: "rgb", 7: "depth"})
    samples = np.arange(len(store))
    normalisation = measure_normalisation(store, samples)
    objective = build_objective(config)
    assert isinstance(objective, SceneObjective)
    objective.begin(store, samples, normalisation)
    batch = BatchMaker(store, config, normalisation).make(samples, (5,))
    scene = batch.scene
    assert scene is not None
    known = scene.known_BC
    assert not known[3].any()  # it has no depth
    assert known[samples != 3].float().mean() > 0.8
    height = scene.points_B3C[:, 2]
    assert (height[known] - WALL_Z).abs().max() < tolerance_m
    # The rays that the network is told go through the targets, from the camera that saw them.
    R, t = scene.T_map_camera_B44[:, :3, :3], scene.T_map_camera_B44[:, :3, 3:]
    in_camera = R.transpose(1, 2) @ (scene.points_B3C - t)
    rays = objective.network.rays(scene.shift_B2).flatten(2)
    off = (in_camera[:, :2] / in_camera[:, 2:].clamp_min(1e-3) - rays).abs().amax(dim=1)
    assert off[known].max() < 1e-4
    moved = (scene.T_map_camera_B44 - torch.from_numpy(store.T_map_camera).float()).abs().amax(dim=(1, 2))
    assert bool((moved > 0.0).any()) == ("move_chance" in augmentation)


def test_the_parts_of_a_batch_have_its_targets(store: SampleStore) -> None:
    config = scene_config(augmentation={"move_chance": 0.5, "move_deg": 5.0})
    samples = np.arange(len(store))
    normalisation = measure_normalisation(store, samples)
    whole = BatchMaker(store, config, normalisation).make(samples, (7,)).scene
    parts = [BatchMaker(store, config, normalisation, Part(index, 5)).make(samples, (7,)).scene for index in range(5)]
    assert whole is not None
    for number, expected in enumerate(whole):
        assert torch.equal(torch.cat([part[number] for part in parts if part is not None]), expected)


def test_other_networks_have_no_targets(store: SampleStore) -> None:
    samples = np.arange(len(store))
    batch = BatchMaker(store, tiny_config(), measure_normalisation(store, samples)).make(samples, (7,))
    assert batch.scene is None
    assert batch.to(torch.device("cpu")).scene is None
