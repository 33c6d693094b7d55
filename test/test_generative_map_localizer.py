"""A Generative Map as a user has it: trained, loaded, localizing, looked at."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pictures import NORMALISATION, START_NS, TINY, build
from test_generative_map import SMALL, small_map
from tiny_datasets import camera_pose, write_sequence

from vmloc_ros import files
from vmloc_ros.assembly import labelled_frames
from vmloc_ros.checkpoint import CARD, load_card
from vmloc_ros.commands.evaluate import settings_of
from vmloc_ros.commands.map_view import psnr_db, relit, run_path, run_score, run_view, score, sheet
from vmloc_ros.commands.train import run_train
from vmloc_ros.config import ModelConfig, parse
from vmloc_ros.datasets.open import open_recordings
from vmloc_ros.errors import CheckpointError, ConfigError
from vmloc_ros.geometry import log_se3, quaternion_from_pose
from vmloc_ros.localizer import load_localizer
from vmloc_ros.localizers.base import ReadableMap
from vmloc_ros.localizers.generative_map import FITS_NOWHERE, MapLocalizer, health, measure_map
from vmloc_ros.networks.generative_map_config import MapCard
from vmloc_ros.runtimes.generative_map import MapRuntime, Reading
from vmloc_ros.training_config import TrainingConfig
from vmloc_ros.trajectory import Trajectory, write_tum
from vmloc_ros.types import Frame, Mode, NoPose, PoseEstimate

FRAMES = 80
RECIPE: dict[str, Any] = {
    **TINY,
    "name": "a wall",
    "network": {**SMALL, "channels": 32, "places": 60},
    "localizer": {"input": {"depth_source": "none"}},
    "data": {"format": "sevenscenes", "options": {"odometry": "none"}, "hold_out": ["20-27", "50-57"]},
    "objective": {"generative_map": {"view_weight": 1.0, "contrast_weight": 3.0}},
    "augmentation": {"noise": 0.01, "erase_chance": 0.0, "brightness": 0.05, "contrast": 0.05},
    "optimizer": {
        "epochs": 90,
        "batch_size": 8,
        "validate_every": 90,
        "clip_norm": 1e4,
        "peak_learning_rate": 5e-3,
    },
}


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scene")
    write_sequence(folder, range(FRAMES))
    return folder


@pytest.fixture(scope="module")
def model(scene: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(RECIPE))
    return run_train(recipe, scene, folder / "model")


@pytest.fixture(scope="module")
def localizer(model: Path) -> MapLocalizer:
    loaded = load_localizer(model, ModelConfig(path=str(model), device="cpu", threads=1))
    assert isinstance(loaded, MapLocalizer)
    assert isinstance(loaded, ReadableMap)
    loaded.warm_up()
    return loaded


@pytest.fixture(scope="module")
def frames(scene: Path, model: Path, localizer: MapLocalizer) -> list[Frame]:
    (recording,) = open_recordings("sevenscenes", scene, odometry="none")
    return [item.frame for item in labelled_frames(recording, settings_of(model, localizer.card, None))]


def test_a_trained_map_localizes_unseen_frames_without_any_prior(localizer: MapLocalizer, frames: list[Frame]) -> None:
    errors, health_of = [], []
    for index in range(20, 28):
        answer = localizer.localize(frames[index])
        assert isinstance(answer, PoseEstimate), answer
        errors.append(np.linalg.norm(answer.T_map_camera[:3, 3] - camera_pose(index)[:3, 3]))
        health_of.append(answer.health)
        assert (np.linalg.eigvalsh(answer.cov_66) > 0.0).all()
        assert sum(answer.expert_weights.values()) == pytest.approx(1.0)
    way = np.linalg.norm(camera_pose(FRAMES)[:3, 3] - camera_pose(0)[:3, 3])
    assert np.median(errors) < 0.1 * way
    assert 0.0 < min(health_of) <= max(health_of) <= 1.0


def test_the_observation_pulls_a_wrong_pose_towards_the_truth(localizer: MapLocalizer, frames: list[Frame]) -> None:
    better = 0
    for index in range(50, 58):
        answer = localizer.localize(frames[index])
        assert isinstance(answer, PoseEstimate)
        assert answer.observation is not None
        start = camera_pose(index + 10)
        found = answer.observation.at(start)
        better += float(found.gradient_6 @ log_se3(np.linalg.inv(start) @ camera_pose(index))) > 0.0
        assert answer.observation.at(answer.T_map_camera).cost < found.cost
    assert better >= 7


def test_the_same_frame_has_the_same_answer(localizer: MapLocalizer, frames: list[Frame]) -> None:
    one, _, again = (localizer.localize(frames[index]) for index in (3, 70, 3))
    assert isinstance(one, PoseEstimate)
    assert isinstance(again, PoseEstimate)
    assert np.array_equal(one.T_map_camera, again.T_map_camera)
    assert np.array_equal(one.cov_66, again.cov_66)


def test_a_picture_of_something_else_fits_nowhere(localizer: MapLocalizer, frames: list[Frame]) -> None:
    assert frames[0].rgb is not None
    noise = np.random.default_rng(0).integers(0, 256, frames[0].rgb.shape, dtype=np.uint8)
    for strange in (cv2.blur(noise, (25, 25)), np.zeros_like(noise)):
        answer = localizer.localize(replace(frames[0], rgb=strange))
        assert isinstance(answer, NoPose), answer.health
        assert "fits nowhere" in answer.reason
    blind = localizer.localize(replace(frames[0], rgb=None))
    assert isinstance(blind, NoPose)


def test_the_card_says_how_well_the_map_fits(model: Path) -> None:
    card = load_card(model)
    assert card.map is not None
    assert card.map.frames == 16
    assert 0.0 < card.map.mismatch_median < card.map.mismatch_p95
    assert list(card.calibration) == [Mode.RGB_ONLY]
    values = yaml.safe_load((model / CARD).read_text())
    del values["map"]
    other = model.parent / "without"
    other.mkdir()
    for path in model.iterdir():
        if path.is_file():
            (other / path.name).write_bytes(path.read_bytes())
    files.write_yaml(other / CARD, values)
    with pytest.raises(CheckpointError, match="no part `map`"):
        load_localizer(other, ModelConfig(path=str(other), device="cpu"))


@given(st.floats(0.0, 2.0), st.floats(0.0, 2.0))
def test_health_falls_with_the_mismatch(one: float, other: float) -> None:
    card = MapCard(mismatch_median=0.4, mismatch_p95=0.5)
    assert health(0.4, card) == 1.0
    assert health(0.5, card) == pytest.approx(0.5)
    assert (health(one, card) >= health(other, card)) or one > other
    assert health(0.9, card) < FITS_NOWHERE
    assert health(1.4, MapCard(mismatch_median=1.0, mismatch_p95=1.3)) == 0.0  # alike in nothing, however poor the map


@pytest.mark.parametrize("factor", [1.0, 9.0])
def test_the_inflation_is_what_the_latents_err_more_than_they_say(tmp_path: Path, factor: float) -> None:
    """Frames whose latents err by `factor` times the variance that an observation of them claims."""
    config = parse(TrainingConfig, {**TINY, "network": SMALL, "localizer": {"input": {"depth_source": "none"}}}, "test")
    store, _ = build(tmp_path / "store", config, 400)
    runtime = MapRuntime(small_map(gain=300.0), NORMALISATION)
    rng, given_out = np.random.default_rng(2), iter(range(0, 400, 32))

    def read(rgb_NHW3: np.ndarray) -> Reading:
        start = next(given_out)
        mean = runtime.latent_map.expected(store.T_map_camera[start : start + 32])
        mean += rng.normal(size=mean.shape) * np.sqrt(factor * 1.3)
        return Reading(mean, np.full_like(mean, 0.3), np.zeros((len(mean), 3, 16, 32), np.float32))

    runtime.read = read  # type: ignore[method-assign]
    assert measure_map(runtime, store, np.arange(400)).inflation == pytest.approx(factor, rel=0.15)


# ------------------------------------------------------------------------------------------------------------- map-view


def test_views_beat_the_mean_training_picture(model: Path, scene: Path, tmp_path: Path) -> None:
    report = run_score(
        model, scene, "sevenscenes", options={"frames": "20-27"}, out=tmp_path / "s.png", json=tmp_path / "s.json"
    )
    assert report["frames"] == 8
    assert report["psnr_db"]["gain"] > 1.0
    assert json.loads((tmp_path / "s.json").read_text()) == report
    assert cv2.imread(str(tmp_path / "s.png")).shape == (3 * 64 + 2 * 4, 6 * 128 + 5 * 4, 3)  # 8 pairs, 6 in a row


def test_a_view_of_a_pose_and_along_a_path(model: Path, scene: Path, tmp_path: Path, localizer: MapLocalizer) -> None:
    pose = camera_pose(24)
    words = " ".join(f"{value:.9f}" for value in [*pose[:3, 3], *quaternion_from_pose(pose)])
    run_view(model, words, tmp_path / "one.png")
    drawn = cv2.cvtColor(cv2.imread(str(tmp_path / "one.png")), cv2.COLOR_BGR2RGB)
    assert np.abs(drawn[::4, ::4].astype(int) - localizer.view(pose)).max() <= 1
    told = run_view(model, words, tmp_path / "two.png", scene, "sevenscenes")
    assert "0.00 m and 0.0 deg away" in told
    assert cv2.imread(str(tmp_path / "two.png")).shape == (64, 2 * 128 + 4, 3)
    stamps = START_NS + 10**8 * np.arange(FRAMES)
    write_tum(tmp_path / "path.tum", Trajectory(stamps, np.array([camera_pose(k) for k in range(FRAMES)])))
    assert "24 views of 80 poses" in run_path(model, tmp_path / "path.tum", tmp_path / "three.png")
    assert cv2.imread(str(tmp_path / "three.png")).shape == (4 * 64 + 3 * 4, 6 * 128 + 5 * 4, 3)


def test_another_latent_size_is_said_when_the_model_is_loaded(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    shutil.copytree(model, folder, ignore=shutil.ignore_patterns("work"))
    card = yaml.safe_load((folder / CARD).read_text())
    card["network"]["latent"] *= 2
    (folder / CARD).write_text(yaml.safe_dump(card))
    with pytest.raises(CheckpointError, match="of another architecture"):
        load_localizer(folder, ModelConfig(path=str(folder), device="cpu", threads=1))


def test_what_cannot_be_looked_at_is_said(model: Path, tmp_path: Path, project_root: Path) -> None:
    with pytest.raises(ConfigError, match="7 numbers"):
        run_view(model, "1 2 3", tmp_path / "x.png")
    with pytest.raises(ConfigError, match="is not `x y z"):
        run_view(model, "1 2 3 a", tmp_path / "x.png")
    with pytest.raises(ConfigError, match="draws no views"):
        run_view(project_root / "models" / "town", "0 0 0 0 0 0 1", tmp_path / "x.png")
    assert not (tmp_path / "x.png").exists()


def test_psnr_and_light() -> None:
    seen = np.random.default_rng(0).uniform(0.2, 0.8, (3, 8, 8, 3)).astype(np.float32)
    assert psnr_db(seen + np.float32(0.1), seen) == pytest.approx([20.0] * 3, abs=1e-3)
    assert np.allclose(relit(0.5 * seen + 0.1, seen), seen, atol=1e-5)
    assert np.allclose(relit(1.0 - seen, seen), seen.mean(axis=(1, 2), keepdims=True), atol=1e-5)  # no negatives
    whole = (255 * seen).astype(np.uint8)
    found = score(whole, whole, np.full((8, 8, 3), 128, np.uint8))
    assert found["psnr_db"]["view"] == pytest.approx(100.0)
    assert found["mismatch"]["median"] == pytest.approx(0.0, abs=0.01)
    assert sheet([whole[0]], 4).shape == (32, 32, 3)
