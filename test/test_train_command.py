"""From a small town to a model's folder and its evaluation: the commands as a user runs them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from pictures import TINY

from vmloc_ros import files
from vmloc_ros.assembly import labelled_frames
from vmloc_ros.checkpoint import CARD, CONFIG, METRICS, NEIGHBOURS, RETRIEVAL, WEIGHTS, load_card
from vmloc_ros.commands.calibrate import run_calibrate
from vmloc_ros.commands.evaluate import run_evaluate
from vmloc_ros.commands.town import run_town
from vmloc_ros.commands.train import run_train
from vmloc_ros.config import ModelConfig
from vmloc_ros.datasets.open import open_recordings
from vmloc_ros.errors import CheckpointError, ConfigError, DatasetError, TrainingError
from vmloc_ros.evaluation import frame_config
from vmloc_ros.localizer import VMLocLocalizer, load_localizer
from vmloc_ros.metrics import error_summary
from vmloc_ros.training import train
from vmloc_ros.trajectory import read_tum
from vmloc_ros.types import Mode, PoseEstimate


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("town") / "town"
    small = {"width": 64, "height": 48, "rings": 12, "columns": 60, "scanner_hz": 1.0}
    run_town(folder, seed=3, traversals=2, laps=0.12, loop_m=250.0, progress=False, workers=1, **small)
    return folder


def write_recipe(folder: Path, **changes: Any) -> Path:
    values: dict[str, Any] = {**TINY, "data": {"format": "town", "validation": ["traversal_01"]}}
    for key, value in changes.items():
        values[key] = {**values.get(key, {}), **value} if isinstance(value, dict) else value
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture(scope="module")
def model(town: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    return run_train(write_recipe(folder), town, folder / "model")


def test_a_models_folder_is_whole(model: Path) -> None:
    for name in (WEIGHTS, CARD, CONFIG, METRICS, RETRIEVAL, NEIGHBOURS, "training.png"):
        assert (model / name).stat().st_size > 0, name
    card = load_card(model)
    assert card.training["recordings"] == ["traversal_00"]
    assert card.training["validation_recordings"] == ["traversal_01"]
    assert card.scores["on"] == "the validation frames"
    assert card.projection.accumulate == "past"
    assert card.frames["map"] == "map"
    assert len(card.sha256) == 64
    assert card.camera.width == 36
    text = (model / CARD).read_text()
    assert str(model.parent) not in text  # nothing of this machine


def test_training_again_uses_the_prepared_samples_and_gives_the_same_weights(
    model: Path, town: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = (model / WEIGHTS).read_bytes()
    run_train(model.parent / "recipe.yaml", town, model)
    assert "prepared samples" in capfd.readouterr().err
    assert (model / WEIGHTS).read_bytes() == before


def test_a_killed_training_resumes_to_the_same_weights(
    model: Path, town: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut(*arguments: Any, **options: Any) -> Any:
        def tell(step: int, row: dict) -> None:
            if row["epoch"] == 4:
                raise KeyboardInterrupt

        return train(*arguments[:-1], tell, **options)

    recipe = write_recipe(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("vmloc_ros.commands.train.train", cut)
        with pytest.raises(KeyboardInterrupt):
            run_train(recipe, town, tmp_path / "model")
    assert not (tmp_path / "model" / WEIGHTS).exists()
    run_train(recipe, town, tmp_path / "model", resume=True)
    assert (tmp_path / "model" / WEIGHTS).read_bytes() == (model / WEIGHTS).read_bytes()


def test_evaluation_sees_what_the_node_would_see(model: Path, town: Path, tmp_path: Path) -> None:
    report = run_evaluate(model, town, "town", json=tmp_path / "report.json", recordings=["traversal_01"], device="cpu")
    assert json.loads((tmp_path / "report.json").read_text()) == report
    assert set(report["modes"]) == {"RGB_DEPTH", "RGB_ONLY", "DEPTH_ONLY"}
    assert report["retrieval"]["errors"]["n"] > 20
    both = report["modes"]["RGB_DEPTH"]
    assert both["nees"]["dof"] == 6
    # Training has scored the same frames through its cache: the two ways see the same pictures.
    trained = load_card(model).scores["RGB_DEPTH"]
    assert both["errors"]["n"] == trained["n"]
    assert both["errors"]["position_m"]["mean"] == pytest.approx(trained["position_m"]["mean"], rel=1e-3)
    assert both["errors"]["rotation_deg"]["mean"] == pytest.approx(trained["rotation_deg"]["mean"], rel=1e-3)


def test_evaluation_writes_report_trajectories_and_figures(model: Path, town: Path, tmp_path: Path) -> None:
    out = tmp_path / "evaluation"
    report = run_evaluate(model, town, "town", recordings=["traversal_01"], device="cpu", out=out)
    assert json.loads((out / "report.json").read_text()) == report
    truth = read_tum(out / "truth.tum")
    for name, mode in (("rgb_depth", "RGB_DEPTH"), ("rgb_only", "RGB_ONLY"), ("depth_only", "DEPTH_ONLY")):
        errors = error_summary(read_tum(out / f"{name}.tum"), truth)
        assert errors["n"] == report["modes"][mode]["errors"]["n"]
        assert errors["position_m"]["mean"] == pytest.approx(report["modes"][mode]["errors"]["position_m"]["mean"])
    assert (out / "retrieval.tum").is_file()
    for figure in ("trajectories.png", "errors.png"):
        assert (out / figure).read_bytes().startswith(b"\x89PNG")


def test_evaluation_arguments(model: Path, town: Path) -> None:
    report = run_evaluate(model, town, "town", ["rgb"], ["rgb:1"], recordings=["traversal_01"], device="cpu")
    assert set(report["modes"]) == {"RGB_ONLY"}
    assert report["corrupt"] == {"rgb": 1}
    with pytest.raises(ConfigError, match="traversal_07"):
        run_evaluate(model, town, "town", recordings=["traversal_07"])
    with pytest.raises(CheckpointError, match="no such model folder"):
        run_evaluate(model / "not", town, "town")
    with pytest.raises(DatasetError):
        run_evaluate(model, town / "nowhere", "town")


def test_estimates_are_of_the_camera_in_the_map(model: Path, town: Path) -> None:
    localizer = load_localizer(model, ModelConfig(device="cpu", threads=1))
    recording = open_recordings("town", town)[0]
    truth = []
    for item in labelled_frames(recording, frame_config(localizer.card)):
        answer = localizer.localize(item.frame)
        assert isinstance(answer, PoseEstimate)
        assert np.isfinite(answer.cov_66).all()
        truth.append(item.T_map_camera[:3, 3])
    span = np.ptp(np.array(truth), axis=0).max()
    assert span > 10.0
    assert np.linalg.norm(answer.T_map_camera[:3, 3] - truth[-1]) < 3.0 * span


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"data": {"validation": ["traversal_09"]}}, ConfigError, "no recording 'traversal_09'"),
        ({"data": {"train": ["traversal_00"], "validation": []}}, TrainingError, "validation frames cannot calibrate"),
        ({"data": {"validation": ["traversal_00", "traversal_01"]}}, ConfigError, "no recording is left"),
        ({"data": {"options": {"colour": 1}}}, DatasetError, "colour"),
        ({"data": {"format": "bag"}}, DatasetError, "holds no bag"),
    ],
)
def test_trainings_that_cannot_be(town: Path, tmp_path: Path, changes: dict, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        run_train(write_recipe(tmp_path, **changes), town, tmp_path / "model")
    assert not (tmp_path / "model" / WEIGHTS).exists()


def test_without_validation_the_card_says_so(town: Path, tmp_path: Path) -> None:
    recipe = write_recipe(
        tmp_path,
        data={"train": ["traversal_00"], "validation": []},
        calibration={"on_training": True},
        optimizer={"epochs": 1},
    )
    card = load_card(run_train(recipe, town, tmp_path / "model"))
    assert card.scores["on"] == "the training frames"
    assert card.training["validation_frames"] == 0


@pytest.fixture(scope="module")
def cross_fitted(town: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("folds")
    recipe = write_recipe(
        folder,
        data={"train": ["traversal_00"], "validation": [], "hold_out": ["0-0.7"], "test": ["traversal_01"]},
        calibration={"folds": [["1-1.6"], ["2-2.6"]], "fold_epochs": 1},
        optimizer={"epochs": 2},
    )
    return run_train(recipe, town, folder / "model")


def test_folds_calibrate_the_model(cross_fitted: Path) -> None:
    card = load_card(cross_fitted)
    both = card.calibration[Mode.RGB_DEPTH]
    folds = card.scores["folds"]
    assert [fold["blocks"] for fold in folds] == [["1-1.6"], ["2-2.6"]]
    assert both.frames == card.scores["RGB_DEPTH"]["n"] + sum(fold["RGB_DEPTH"]["n"] for fold in folds)
    assert both.judged is not None
    assert both.judged.blocks == 3
    assert card.training["recordings"] == ["traversal_00"]


def test_test_data_is_scored_and_nothing_else(cross_fitted: Path) -> None:
    card = load_card(cross_fitted)
    tested = card.scores["test"]
    assert tested["frames"] > card.training["validation_frames"]
    for mode in card.calibration:
        judged = tested[mode.value]["covariance"]
        assert judged["frames"] == tested[mode.value]["n"]
        assert set(judged["coverage"]) == {"50", "90", "95"}
    assert "traversal_01" not in (*card.training["recordings"], *card.training["validation_recordings"])


def test_finished_folds_are_kept(cross_fitted: Path, town: Path, capfd: pytest.CaptureFixture[str]) -> None:
    kept = {path: path.read_bytes() for path in sorted((cross_fitted / "work").glob("fold_*/weights.safetensors"))}
    assert len(kept) == 2
    before = load_card(cross_fitted)
    missing = next(iter(kept))
    missing.unlink()
    run_train(cross_fitted.parent / "recipe.yaml", town, cross_fitted, resume=True)
    said = capfd.readouterr().err
    assert "fold 2 of 2: finished before" in said
    assert "fold 1 of 2: training on" in said
    assert {path: path.read_bytes() for path in kept} == kept
    assert load_card(cross_fitted).calibration == before.calibration


def test_a_fold_must_hold_training_frames(town: Path, tmp_path: Path) -> None:
    recipe = write_recipe(
        tmp_path, data={"validation": [], "hold_out": ["0-0.7"]}, calibration={"folds": [["0.1-0.3"]]}
    )
    with pytest.raises(ConfigError, match="calibration.folds: 0.1-0.3 holds 0 training frames"):
        run_train(recipe, town, tmp_path / "model")


def test_a_model_is_calibrated_again_on_other_data(model: Path, town: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for name in (WEIGHTS, CARD, CONFIG, NEIGHBOURS):
        (folder / name).write_bytes((model / name).read_bytes())
    before = load_card(folder)
    card = run_calibrate(folder, town, "town", ["traversal_01"], device="cpu")
    assert load_card(folder) == card
    # The same frames that training had calibrated on: the same numbers.
    assert card.calibration[Mode.RGB_DEPTH].frames == before.calibration[Mode.RGB_DEPTH].frames
    again, first = (np.array(c.calibration[Mode.RGB_DEPTH].base_66) for c in (card, before))
    assert np.diag(again) == pytest.approx(np.diag(first), rel=0.05)
    assert card.scores["calibrated_on"]["recordings"] == ["traversal_01"]
    # A model without training latents, as an imported one: on the latent scatter, or with latents measured anew.
    files.write_yaml(
        folder / CARD, before.model_copy(update={"neighbours_sha256": "", "calibration": {}}).model_dump(mode="json")
    )
    assert run_calibrate(folder, town, "town", ["traversal_01"]).calibration[Mode.RGB_ONLY].evidence == "scatter"
    (folder / NEIGHBOURS).unlink()
    measured = run_calibrate(folder, town, "town", trained_on=["traversal_00"])
    assert measured.calibration[Mode.RGB_ONLY].evidence == "neighbours"
    assert isinstance(load_localizer(folder, ModelConfig(device="cpu", threads=1)), VMLocLocalizer)
    with pytest.raises(ConfigError, match="no recording 'traversal_09'"):
        run_calibrate(folder, town, "town", ["traversal_09"])
    with pytest.raises(ConfigError, match="stands in --trained-on too"):
        run_calibrate(folder, town, "town", ["traversal_00"], ["traversal_00"])
    with pytest.raises(ConfigError, match="no recording is left"):
        run_calibrate(folder, town, "town", trained_on=["traversal_00", "traversal_01"])


def test_training_latents_of_another_model_are_refused(model: Path, tmp_path: Path) -> None:
    for name in (WEIGHTS, CARD, NEIGHBOURS):
        (tmp_path / name).write_bytes((model / name).read_bytes())
    content = bytearray((tmp_path / NEIGHBOURS).read_bytes())
    content[-1] ^= 1
    (tmp_path / NEIGHBOURS).write_bytes(bytes(content))
    with pytest.raises(CheckpointError, match="its sha256 is not the one in the card"):
        load_localizer(tmp_path, ModelConfig(device="cpu"))
    (tmp_path / NEIGHBOURS).unlink()
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_localizer(tmp_path, ModelConfig(device="cpu"))
