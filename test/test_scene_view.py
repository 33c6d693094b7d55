"""`vmloc scene-view`: the right frames, honest distances, and figures that show what the numbers say."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import cv2
import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from tiny_datasets import write_sequence
from typer.testing import CliRunner

from vmloc_ros import cli
from vmloc_ros.assembly import LabelledFrame
from vmloc_ros.commands.scene_look import Scene, distance_from_truth, restricted
from vmloc_ros.commands.scene_view import MAP_FRAMES, MOST_FRAMES, Found, Wanted, gather, run_scene_view
from vmloc_ros.commands.scene_view_tables import refusals
from vmloc_ros.commands.train import run_train
from vmloc_ros.errors import ConfigError
from vmloc_ros.geometry import Array, exp_se3
from vmloc_ros.localizers.inputs import Pictures
from vmloc_ros.plots_scene import (
    ABOVE,
    CellAnswers,
    KnownMap,
    SceneFrame,
    mean_colours,
    plot_scene_frame,
    plot_scene_map,
    up_of,
)
from vmloc_ros.types import Mode

SECOND = 1_000_000_000
GRID = (3, 4)
RECIPE: dict[str, Any] = {
    "name": "a wall",
    "seed": 1,
    "threads": 1,
    "data": {"format": "sevenscenes", "options": {"odometry": "none"}, "hold_out": ["8-15", "28-35"], "workers": 1},
    "localizer": {"input": {"depth_source": "depth"}},
    "network": {
        "architecture": "scene_coordinates", "width": 64, "height": 48, "channels": [8, 12, 16], "blocks": 1,
        "context": 4, "context_channels": [16], "hidden": [32],
    },
    "objective": {"samples": 1, "presence_as": "weighted"},
    "augmentation": {"noise": 0.01, "erase_chance": 0.0},
    "optimizer": {"epochs": 60, "batch_size": 8, "peak_learning_rate": 5e-3, "validate_every": 60},
    "calibration": {"min_frames": 8},
}  # fmt: skip


@pytest.fixture(scope="module")
def walk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("walk")
    write_sequence(folder, range(44))
    return folder


@pytest.fixture(scope="module")
def model(walk: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    return run_train(folder / "recipe.yaml", walk, folder / "wall")


def ink(path: Path) -> float:
    """Share of a picture's pixels that are not white."""
    picture = cv2.imread(str(path))
    assert picture is not None, f"{path} is not a picture"
    return float((picture < 250).any(axis=2).mean())


# --------------------------------------------------------------------------------------------- distances and directions


def random_cells(seed: int) -> tuple[Array, Array, Array, Array]:
    """Points where they truly are, rays, depths, and the camera's pose."""
    rng = np.random.default_rng(seed)
    T = exp_se3(rng.normal(0.0, 1.0, 6))
    rays = np.concatenate([rng.uniform(-0.6, 0.6, (30, 2)), np.ones((30, 1))], axis=1)
    depth = rng.uniform(1.0, 20.0, 30)
    return (rays * depth[:, None]) @ T[:3, :3].T + T[:3, 3], rays, depth, T


@given(st.integers(0, 1000))
def test_a_point_is_as_far_off_as_it_was_moved(seed: int) -> None:
    points, rays, depth, T = random_cells(seed)
    moved = np.random.default_rng(seed + 1).normal(0.0, 1.0, points.shape)
    apart, far = distance_from_truth(points + moved, rays, depth, T)
    assert np.allclose(apart, np.linalg.norm(moved, axis=1))
    assert np.allclose(far, np.linalg.norm(points - T[:3, 3], axis=1))


@given(st.integers(0, 1000), st.floats(0.2, 3.0))
def test_without_a_return_only_what_lies_across_the_ray_counts(seed: int, stretch: float) -> None:
    points, rays, depth, T = random_cells(seed)
    along = points + (stretch - 1.0) * (points - T[:3, 3])
    side = np.cross((points - T[:3, 3]), [0.3, -0.2, 0.9])
    side /= np.linalg.norm(side, axis=1, keepdims=True)
    none = np.zeros_like(depth)
    assert np.allclose(distance_from_truth(along, rays, none, T)[0], 0.0, atol=1e-9)
    assert np.allclose(distance_from_truth(along + 0.4 * side, rays, none, T)[0], 0.4)
    behind = T[:3, 3] - (points - T[:3, 3])
    assert np.allclose(distance_from_truth(behind, rays, none, T)[0], np.linalg.norm(points - T[:3, 3], axis=1))


@pytest.mark.parametrize("up", list(ABOVE))
def test_a_picture_from_above_is_no_mirror_image(up: tuple[int, int]) -> None:
    right, away = (np.eye(3)[axis] for axis in ABOVE[up])
    assert np.array_equal(np.cross(right, away), up[1] * np.eye(3)[up[0]])


@given(st.integers(0, 1000))
def test_up_is_where_the_cameras_heads_point(seed: int) -> None:
    rng = np.random.default_rng(seed)
    upright = np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])
    poses = np.tile(np.eye(4), (20, 1, 1))
    for pose in poses:
        turn = exp_se3([0.0, 0.0, 0.0, 0.0, 0.0, rng.uniform(-3.0, 3.0)])  # about the map's z
        tilt = exp_se3([0.0, 0.0, 0.0, *rng.normal(0.0, 0.1, 3)])
        pose[:3, :3] = turn[:3, :3] @ upright @ tilt[:3, :3]
    assert up_of(poses) == (2, 1)
    assert up_of(np.eye(4)[None]) == (1, -1)


# ----------------------------------------------------------------------------------------------------- walking a drive


class Inputs:
    """Takes every frame."""

    def of(self, frame: Any) -> Pictures:
        return Pictures(None, np.full((1, 2, 2), float(frame.number)), Mode.DEPTH_ONLY)


def frames(count: int) -> Iterator[LabelledFrame]:
    """Ten a second, numbered."""
    for number in range(count):
        frame = SimpleNamespace(number=number, stamp_ns=5 * SECOND + number * SECOND // 10)
        yield LabelledFrame(cast(Any, frame), np.eye(4), "drive")


def walked(count: int, wanted: Wanted) -> Found:
    stamps = np.array([0, 5 * SECOND, 5 * SECOND + (count - 1) * SECOND // 10])
    recording = SimpleNamespace(name="drive", truth=lambda: SimpleNamespace(stamps_ns=stamps))
    scene = Scene(cast(Any, None), cast(Any, None), cast(Any, Inputs()))
    return gather(frames(count), wanted, cast(Any, recording), scene, lambda: None)


@given(st.integers(1, 700))
def test_a_drive_of_any_length_is_thinned_evenly(count: int) -> None:
    kept = [int(seen.depth_1HW[0, 0, 0]) for seen, _ in walked(count, Wanted((0,))).thinned]  # type: ignore[index]
    assert min(count, MAP_FRAMES) <= len(kept) <= 2 * MAP_FRAMES
    assert kept[0] == 0
    assert len(set(np.diff(kept).tolist())) <= 1, "steps of one length"
    assert kept[-1] + (kept[1] - kept[0] if len(kept) > 1 else 1) > count - 1, "up to the end"


@given(st.integers(0, 99), st.floats(0.0, 9.9))
def test_the_frames_that_were_asked_for_are_shown(number: int, seconds: float) -> None:
    found = walked(100, Wanted((number,), (seconds,)))
    (nearest,) = walked(100, Wanted((), (seconds,))).wanted
    assert abs(nearest - 10.0 * seconds) <= 0.5 + 1e-6
    assert set(found.wanted) == {number, nearest}
    assert all(cast(Any, item.frame).number == key for key, item in found.wanted.items())


def test_three_frames_are_shown_unasked() -> None:
    assert list(walked(101, Wanted()).wanted) == [25, 50, 75]


@pytest.mark.parametrize(
    ("wanted", "words"),
    [(Wanted((100,)), "frames 0 to 99"), (Wanted((), (30.0,)), "100 from 0 to 9.9 s"), (Wanted((-1,)), "0 to 99")],
)
def test_a_frame_that_is_not_there_is_said(wanted: Wanted, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        walked(100, wanted)
    with pytest.raises(ConfigError, match="no frame"):
        walked(0, wanted)


def test_only_the_asked_modalities_draw_the_map() -> None:
    seen = Pictures(np.zeros((1, 2, 2, 3), np.uint8), np.ones((1, 2, 2)), Mode.RGB_DEPTH)
    assert restricted(seen, [Mode.RGB_ONLY])[1:3] == (None, Mode.RGB_ONLY)
    assert restricted(seen, [Mode.DEPTH_ONLY]).rgb_1HW3 is None
    assert restricted(seen, [Mode.RGB_DEPTH, Mode.RGB_ONLY]).mode is Mode.RGB_DEPTH
    dark = seen._replace(rgb_1HW3=None, mode=Mode.DEPTH_ONLY)
    assert restricted(dark, [Mode.RGB_ONLY]) is dark


# -------------------------------------------------------------------------------------------------------------- figures


def drawn_frame(solved: bool = True) -> SceneFrame:
    """A made-up frame: half of its cells agree, one does not count, three have no return."""
    count = GRID[0] * GRID[1]
    rng = np.random.default_rng(3)
    v, u = np.indices(GRID).reshape(2, -1)
    rays = np.stack([(u - 1.5) / 4.0, (v - 1.0) / 4.0, np.ones(count)], axis=1)
    has_return, usable = np.arange(count) > 2, np.arange(count) > 0
    agrees, vague = (np.arange(count) > 5) & solved, (np.arange(count) == 4) & solved
    answers = [
        CellAnswers(
            mode, 5.0 * rays, rng.uniform(0.01, 1.0, count), rng.uniform(0.01, 1.0, count), agrees, vague, usable,
            np.eye(4) if solved else None, "what came of it",
        )
        for mode in (Mode.RGB_DEPTH, Mode.RGB_ONLY)
    ]  # fmt: skip
    rgb = rng.integers(0, 255, (24, 32, 3)).astype(np.uint8)
    depth = np.where(rng.uniform(0.0, 1.0, (24, 32)) < 0.2, 5.0, 0.0)
    return SceneFrame("frame 1", rgb, depth, GRID, rays, has_return, np.eye(4), answers, ["a note", "another"])


def colours_of(path: Path) -> set[tuple[int, int, int]]:
    picture = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
    return set(map(tuple, np.unique(picture.reshape(-1, 3), axis=0).tolist()))


@pytest.mark.parametrize("absent", ["", "rgb_HW3", "depth_HW"])
def test_a_frame_is_drawn_whatever_it_lacks(absent: str, tmp_path: Path) -> None:
    frame = drawn_frame() if not absent else replace(drawn_frame(), **{absent: None})
    assert 0.1 < ink(plot_scene_frame(tmp_path / "f.png", frame)) < 0.95
    assert not list(tmp_path.glob("*.part"))


def test_a_refused_frame_and_dense_depth_are_drawn(tmp_path: Path) -> None:
    frame = replace(drawn_frame(solved=False), depth_HW=np.full((24, 32), 3.0), has_return_N=np.ones(12, bool))
    nothing = [replace(a, usable_N=np.zeros(12, bool), agrees_N=np.zeros(12, bool)) for a in frame.answers]
    for number, shown in enumerate((frame, replace(frame, answers=nothing))):
        assert 0.1 < ink(plot_scene_frame(tmp_path / f"{number}.png", shown)) < 0.95
        known = KnownMap(np.zeros((0, 3)), np.zeros((0, 3)), np.array([[0.0, 0.0, 0.0], [1.0, 0.0, 2.0]]), (1, -1))
        assert 0.01 < ink(plot_scene_map(tmp_path / "map.png", known, [shown])) < 0.9


def test_the_map_shows_the_camera_where_it_was_found(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    points = rng.uniform(-4.0, 4.0, (300, 3))
    known = KnownMap(points, np.full((300, 3), 0.7), np.array([[0.0, 0.0, 0.0], [1.0, 0.0, 2.0]]), (1, -1))
    found_colour = (0xCC, 0x79, 0xA7)
    legend = plot_scene_map(tmp_path / "none.png", known, [drawn_frame(solved=False)])
    shown = plot_scene_map(tmp_path / "map.png", known, [drawn_frame(), drawn_frame()])
    count = {p: int((cv2.imread(str(p))[..., ::-1] == found_colour).all(axis=2).sum()) for p in (legend, shown)}
    assert count[shown] > 2 * count[legend], "drawn in both views, and not where there is no pose"


def test_a_cell_s_colour_is_its_mean() -> None:
    rgb = np.zeros((6, 8, 3), np.uint8)
    rgb[:3, 4:, 0] = 255
    rgb[3, 0] = 204
    assert np.allclose(mean_colours(rgb, (2, 2))[:, 0], [0.0, 1.0, 0.8 / 12.0, 0.0])
    assert len(mean_colours(None, (2, 2))) == 4


# ---------------------------------------------------------------------------------------------------------- the command


def test_the_command_shows_what_the_model_says(model: Path, walk: Path, tmp_path: Path) -> None:
    out, numbers = tmp_path / "view", tmp_path / "view.json"
    words = ["scene-view", model, walk, "--format", "sevenscenes", "--frame", "10", "--at", "1", "--device", "cpu"]
    result = CliRunner().invoke(cli.app, [str(word) for word in [*words, "--out", out, "--json", numbers]])
    assert result.exit_code == 0, result.output
    report = json.loads(numbers.read_text())
    assert report == json.loads((out / "report.json").read_text())
    assert [entry["number"] for entry in report["frames"]] == [10, 30]
    assert sorted(path.name for path in out.iterdir()) == [
        "frame_00010.png", "frame_00030.png", "map.png", "report.json",
    ]  # fmt: skip
    for entry in report["frames"]:
        both, rgb, depth = (entry["modes"][name] for name in ("rgb_depth", "rgb_only", "depth_only"))
        assert [one["cells"] for one in (both, rgb, depth)] == [48, 48, 48]
        assert both["returns"] == depth["returns"] == 48
        assert rgb["returns"] == 0
        assert both["stated_m"] < min(rgb["stated_m"], depth["stated_m"]), "a product is surer than its experts"
        assert set(both["expert_weights"]) == {"rgb", "depth"}
        assert both["position_m"] < 0.1
        assert both["apart_m"] < 0.15
        assert all(one["network_ms"] >= 0.0 and one["solver_ms"] > 0.0 for one in (both, rgb, depth))
    for path in out.glob("*.png"):
        assert 0.02 < ink(path) < 0.95


def test_a_refused_pose_is_told_with_its_reason(model: Path, walk: Path, tmp_path: Path) -> None:
    """A model that believes nothing, asked with depth alone: the pose's errors are shown all the same."""
    strict = tmp_path / "strict"
    strict.mkdir()
    for path in model.iterdir():
        if path.is_file():
            (strict / path.name).write_bytes(path.read_bytes())
    card = yaml.safe_load((strict / "card.yaml").read_text())
    for limits in card["scene"]["limits"].values():
        limits["most_residual"] = 1e-9
    (strict / "card.yaml").write_text(yaml.safe_dump(card))
    report = run_scene_view(
        strict, walk, "sevenscenes", tmp_path / "view", wanted=Wanted((10,)), modalities=["depth"], device="cpu"
    )
    ((mode, depth),) = report["frames"][0]["modes"].items()
    assert mode == "depth_only", "only what was asked for"
    assert depth["pose"] is False
    assert depth["position_m"] < 0.1
    assert "sigma_m" not in depth
    assert refusals(report) == [("frame 10, depth alone", depth["reason"])]


def test_what_cannot_be_looked_at_is_said(model: Path, walk: Path, tmp_path: Path, project_root: Path) -> None:
    with pytest.raises(ConfigError, match="vmloc network has no cells"):
        run_scene_view(project_root / "models" / "town", walk, "sevenscenes", tmp_path / "x")
    with pytest.raises(ConfigError, match=f"at most {MOST_FRAMES}"):
        run_scene_view(model, walk, "sevenscenes", tmp_path / "x", wanted=Wanted(tuple(range(9))))
    with pytest.raises(ConfigError, match="no recording 'other'"):
        run_scene_view(model, walk, "sevenscenes", tmp_path / "x", recording="other", device="cpu")
    assert not (tmp_path / "x").exists()
