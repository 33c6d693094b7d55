"""Retrieval as a model: it finds its own images, keeps its poses, says nothing of a wall, and runs like every model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import NORMALISATION, build, drive, tiny_config
from safetensors.torch import load, save
from tiny_datasets import write_sequence

from vmloc_ros.checkpoint import WEIGHTS, load_card, stored
from vmloc_ros.commands.compare import run_compare
from vmloc_ros.commands.convert import run_convert
from vmloc_ros.commands.evaluate import run_evaluate
from vmloc_ros.commands.localize import run_localize
from vmloc_ros.commands.train import keep_images, run_train
from vmloc_ros.config import ModelConfig
from vmloc_ros.errors import CheckpointError, ConfigError, ModelInputError
from vmloc_ros.files import write_yaml
from vmloc_ros.geometry import Array, exp_se3
from vmloc_ros.localizer import load_localizer
from vmloc_ros.networks.build import build_network
from vmloc_ros.networks.retrieval import COLUMNS, ROWS, RetrievalNetwork
from vmloc_ros.networks.retrieval_config import RetrievalConfig
from vmloc_ros.objectives import build_objective
from vmloc_ros.runtimes.build import build_runtime
from vmloc_ros.runtimes.retrieval import RetrievalRuntime
from vmloc_ros.types import Frame, FrameKey, Mode, NoPose, PinholeIntrinsics, PoseEstimate

CONFIG = RetrievalConfig(width=32, height=24, images=12)


def pictures(count: int, seed: int = 0) -> np.ndarray:
    """(N, 24, 32, 3), smooth and far from black and white."""
    coarse = np.random.default_rng(seed).integers(60, 190, (count, 6, 8, 3)).astype(np.uint8)
    return coarse.repeat(4, axis=1).repeat(4, axis=2)


def poses(count: int, away_m: float = 0.0) -> Array:
    return np.array([exp_se3([away_m + 0.37 * k, -away_m, 0.1, 0.1 * k, 0.2, -0.1]) for k in range(count)])


def runtime_of(images: np.ndarray, T_map_camera: Array, config: RetrievalConfig = CONFIG) -> RetrievalRuntime:
    network = build_network(config)
    assert isinstance(network, RetrievalNetwork)
    thumbnails = images.reshape(len(images), ROWS, 24 // ROWS, COLUMNS, 32 // COLUMNS, 3).mean(axis=(2, 4))
    network.keep(thumbnails.astype(np.uint8), T_map_camera)
    runtime = build_runtime(network, NORMALISATION, 4, "cpu")
    assert isinstance(runtime, RetrievalRuntime)
    return runtime


@given(st.integers(1, 12), st.floats(0.4, 1.3), st.integers(-20, 20))
@settings(max_examples=30)
def test_every_kept_image_is_found_whatever_its_brightness_and_contrast(count: int, gain: float, offset: int) -> None:
    images, T = pictures(count), poses(count)
    changed = np.clip((images.astype(float) - 125.0) * gain + 125.0 + offset, 0, 255).astype(np.uint8)
    raw = runtime_of(images, T).infer(changed, None)
    assert np.allclose(raw.T_map_camera, T, atol=1e-9)
    assert np.allclose(np.linalg.norm(raw.latents_ND, axis=1), 1.0, atol=1e-5)


def test_more_images_than_are_kept_are_thinned_out_evenly() -> None:
    images, T = pictures(45), poses(45)
    found = runtime_of(images, T).infer(images, None).T_map_camera
    kept = [k for k in range(45) if np.allclose(found[k], T[k], atol=1e-9)]
    assert len(kept) == CONFIG.images
    assert kept[0] == 0
    assert kept[-1] == 44
    assert set(np.diff(kept)) <= {3, 4, 5}


def test_poses_a_thousand_kilometres_away_are_stored_exactly() -> None:
    T = poses(5, 1e6)
    network = build_network(CONFIG)
    assert isinstance(network, RetrievalNetwork)
    network.keep(np.zeros((5, ROWS, COLUMNS, 3), np.uint8), T)
    tensors = load(save({name: stored(tensor, "float16") for name, tensor in network.state_dict().items()}))
    again = build_network(CONFIG)
    assert isinstance(again, RetrievalNetwork)
    again.load_state_dict(tensors)
    assert np.allclose(again.poses()[[0, -1]], T[[0, -1]], rtol=0.0, atol=1e-9)


def test_numbers_stay_finite_whatever_the_picture() -> None:
    blank = np.zeros((1, 24, 32, 3), np.uint8)
    raw = runtime_of(np.concatenate([blank, pictures(2)]), poses(3)).infer(blank, None)
    assert np.isfinite(raw.T_map_camera).all()
    assert np.array_equal(raw.latents_ND, np.zeros_like(raw.latents_ND))


def test_other_inputs_are_refused() -> None:
    runtime, images = runtime_of(pictures(3), poses(3)), pictures(2)
    for rgb, depth in ((None, np.ones((2, 24, 32), np.float32)), (images, np.ones((2, 24, 32), np.float32))):
        with pytest.raises(ModelInputError, match="colour images"):
            runtime.infer(rgb, depth)
    with pytest.raises(ModelInputError, match="the network takes 24x32"):
        runtime.infer(images[:, :12], None)


def retrieval_values(**changes: Any) -> dict[str, Any]:
    network = {"architecture": "retrieval", "width": 32, "height": 24, "images": 40}
    return {"network": network, "localizer": {"input": {"depth_source": "none"}}, **changes}


def test_nothing_is_learnt(tmp_path: Path) -> None:
    config = tiny_config()
    config = config.model_copy(update={"network": CONFIG})
    store, normalisation = build(tmp_path / "cache", config, 40)
    every = np.arange(40)
    given = (config, CONFIG, store, every[::2], every[1::2], normalisation, tmp_path)
    trained, again = keep_images(*given), keep_images(*given)
    assert trained.progress.epoch == 0
    assert trained.rows[0]["images"] == CONFIG.images
    assert all(np.array_equal(trained.tensors[name], again.tensors[name]) for name in trained.tensors)
    with pytest.raises(ConfigError, match="nothing to learn"):
        build_objective(config)


@pytest.mark.parametrize(
    ("calibration", "message"), [({"folds": [["1-2"]]}, "calibration.folds"), ({"on_training": True}, "on_training")]
)
def test_what_only_a_training_has_is_refused(tmp_path: Path, calibration: dict[str, Any], message: str) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(retrieval_values(calibration=calibration)))
    with pytest.raises(ConfigError, match=message):
        run_train(recipe, tmp_path, tmp_path / "model")


# ---------------------------------------------------------------------------------------------------- like other models


@pytest.fixture(scope="module")
def sequence(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sequence(tmp_path_factory.mktemp("scene"), range(60))


@pytest.fixture(scope="module")
def model(sequence: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    data = {"format": "sevenscenes", "options": {"odometry": "none"}, "hold_out": ["20-29", "40-49"]}
    values = retrieval_values(name="found", threads=1, data=data, calibration={"min_frames": 8})
    (folder / "recipe.yaml").write_text(yaml.safe_dump(values))
    return run_train(folder / "recipe.yaml", sequence, folder / "found")


def test_its_evaluation_says_what_its_card_says(model: Path, sequence: Path) -> None:
    card = load_card(model)
    assert card.training["epochs"] == 0
    report = run_evaluate(model, sequence, "sevenscenes", options={"frames": "20-29,40-49"}, device="cpu")
    errors, scores = report["modes"]["RGB_ONLY"]["errors"], card.scores["RGB_ONLY"]
    assert errors["n"] == scores["n"] == 20
    assert errors["position_m"]["mean"] == pytest.approx(scores["position_m"]["mean"], rel=1e-6)
    assert report["modes"]["RGB_ONLY"]["nees"]["dof"] == 6


def test_its_answers_are_training_poses_with_a_covariance(model: Path) -> None:
    localizer = load_localizer(model, ModelConfig(device="cpu", threads=1))
    localizer.warm_up()
    known = build_network(localizer.card.network)
    assert isinstance(known, RetrievalNetwork)
    known.load_state_dict(load((model / WEIGHTS).read_bytes()))
    for frame, _, _ in drive(5):
        camera = localizer.card.camera.resized(frame.intrinsics.width, frame.intrinsics.height)
        seen = Frame(frame.key, camera, frame.rgb, None, {})
        answer, again = localizer.localize(seen), localizer.localize(seen)
        assert isinstance(answer, PoseEstimate)
        assert isinstance(again, PoseEstimate)
        assert np.array_equal(answer.cov_66, again.cov_66)
        assert np.abs(known.poses() - answer.T_map_camera).max(axis=(1, 2)).min() < 1e-12
        assert np.linalg.eigvalsh(answer.cov_66).min() > 0.0
        assert answer.mode is Mode.RGB_ONLY


def test_a_card_of_another_number_of_images_is_refused(model: Path, tmp_path: Path) -> None:
    card = load_card(model)
    changed = card.model_copy(update={"network": card.network.model_copy(update={"images": 41})})
    for name in ("neighbours.safetensors", WEIGHTS):
        (tmp_path / name).write_bytes((model / name).read_bytes())
    write_yaml(tmp_path / "card.yaml", changed.model_dump(mode="json"))
    with pytest.raises(CheckpointError, match="another architecture"):
        load_localizer(tmp_path, ModelConfig(device="cpu"))


def test_it_localizes_in_a_bag_and_is_compared(model: Path, sequence: Path, tmp_path: Path) -> None:
    run_convert("sevenscenes", sequence, tmp_path / "bag", progress=False)
    result = run_localize(tmp_path / "bag", model, tmp_path / "run", plots=False, progress=False)
    assert result.counters["frames.inferred"] > 40
    report = run_compare([model], sequence, tmp_path / "table", format="sevenscenes", options={"odometry": "none"})
    assert report["failed"] == []
    assert [run["variant"] for run in report["runs"]] == ["found", "retrieval"]


@pytest.mark.parametrize("colour", [(0, 0, 0), (128, 128, 128), (255, 0, 0)])
def test_a_picture_of_one_colour_has_no_pose(model: Path, colour: tuple[int, int, int]) -> None:
    localizer = load_localizer(model, ModelConfig(device="cpu", threads=1))
    camera = localizer.card.camera
    rgb = np.full((camera.height, camera.width, 3), colour, np.uint8)
    answer = localizer.localize(Frame(FrameKey(1, 1), camera, rgb, None, {}))
    assert isinstance(answer, NoPose)
    assert "one colour" in answer.reason


def test_frames_of_another_camera_are_refused(model: Path) -> None:
    localizer = load_localizer(model, ModelConfig(device="cpu", threads=1))
    wide = PinholeIntrinsics(160, 120, 60.0, 60.0, 80.0, 60.0)
    rgb = np.random.default_rng(0).integers(0, 255, (120, 160, 3), dtype=np.uint8)
    answer = localizer.localize(Frame(FrameKey(1, 1), wide, rgb, None, {}))
    assert isinstance(answer, NoPose)
    assert "camera" in answer.reason
