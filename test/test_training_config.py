"""The training configuration and the recipes that ship with the project."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmloc_ros.commands.trained_model import input_of
from vmloc_ros.config import parse
from vmloc_ros.errors import ConfigError
from vmloc_ros.training_config import TrainingConfig, load_training_config, parse_range

MODELS = Path(__file__).resolve().parents[1] / "models"


@pytest.mark.parametrize(
    "path", sorted([*MODELS.glob("vmloc_*.yaml"), *MODELS.glob("scene_*.yaml")]), ids=lambda path: path.stem
)
def test_shipped_recipes_are_valid(path: Path) -> None:
    config = load_training_config(path)
    assert config.name == path.stem
    rows, columns = config.stored_size()
    assert rows >= config.network.height
    assert columns >= config.network.width


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"networks": {}}, "did you mean 'network'|unknown key 'networks'"),
        ({"optimizer": {"epoch": 3}}, r"did you mean 'optimizer\.epochs'"),
        ({"optimizer": {"epochs": "3"}}, "optimizer.epochs"),
        ({"objective": {"presence": [0.5, 0.2, 0.2]}}, "sum to 1"),
        ({"data": {"hold_out": ["600"]}}, "not a range"),
        ({"data": {"hold_out": ["9-3"]}}, "not a range"),
        ({"data": {"train": ["a"], "validation": ["a"]}}, "both train and validation"),
        ({"localizer": {"input": {"depth_source": "none"}}}, "depth_source is none"),
        ({"localizer": {"input": {"use_image": False}}}, "use_image is false"),
        ({"localizer": {"projection": {"kind": "cylindrical"}}}, r"augmentation\.margin to 0"),
        (
            {
                "localizer": {"projection": {"kind": "cylindrical"}},
                "augmentation": {"margin": 0.0, "move_chance": 0.5},
            },
            "move_m to 0",
        ),
        ({"calibration": {"on_training": True}, "data": {"hold_out": ["1-2"]}}, "on_training"),
        ({"calibration": {"on_training": True, "folds": [["1-2"]]}}, "without calibration.folds"),
        ({"calibration": {"folds": [["1-2"], []]}}, "at least one block"),
        ({"calibration": {"folds": [["2-1"]]}}, "not a range"),
        ({"data": {"test_blocks": ["2-1"]}}, "not a range"),
    ],
)
def test_contradictions_are_refused(values: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(TrainingConfig, values, "recipe.yaml")


SCENE: dict = {"network": {"architecture": "scene_coordinates"}}
RGB_ALONE: dict = {"network": {"architecture": "scene_coordinates", "modalities": ["rgb"]}}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"localizer": {"input": {"depth_source": "none"}}}, r"localizer\.input\.depth_source must not be none"),
        ({**RGB_ALONE, "localizer": {"input": {"depth_source": "none"}}}, r"from depth.*depth_source must not be none"),
        (
            {"localizer": {"projection": {"kind": "cylindrical"}}, "augmentation": {"margin": 0.0}},
            r"localizer\.projection\.kind must be pinhole, it is cylindrical",
        ),
        ({**RGB_ALONE, "localizer": {"projection": {"kind": "cylindrical"}}}, "kind must be pinhole"),
        ({"objective": {"clip": {"frames": 2}}}, r"objective\.clip\.frames must be 1, it is 2"),
        ({"objective": {"relative": {"weight": 1.0}, "clip": {"frames": 2}}}, r"clip\.frames must be 1"),
        (
            {
                "network": {"architecture": "scene_coordinates", "anchors": 8},
                "objective": {"scene": {"likelihood": "variational"}},
            },
            r"network\.anchors must be 1, it is 8",
        ),
        ({"trunk_weights": "imagenet"}, "scene_coordinates has no ResNet trunk: remove it"),
        ({"network": {"architecture": "scene_coordinates", "latent": 64}}, r"unknown key 'network\..*latent'"),
        ({"network": {"architecture": "scene_coordinates", "trunk": "resnet18"}}, r"unknown key 'network\..*trunk'"),
        ({"objective": {"scene": {"likelyhood": "robust"}}}, r"did you mean 'objective\.scene\.likelihood'"),
        ({"objective": {"scene": {"empty_weight": -1.0}}}, r"objective\.scene\.empty_weight"),
    ],
)
def test_scene_coordinates_need_pinhole_depth_and_single_frames(values: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(TrainingConfig, {**SCENE, **values}, "recipe.yaml")


@pytest.mark.parametrize(
    "values",
    [
        {},
        RGB_ALONE,
        {"network": {"architecture": "scene_coordinates", "modalities": ["depth"]}},
        {"objective": {"scene": {"likelihood": "variational"}}},
        {"augmentation": {"move_chance": 0.5, "turn_labels": False}},
        {"localizer": {"input": {"depth_source": "depth"}, "projection": {"kind": "cylindrical"}}},  # of no points
        {"pose_graph": {"window": 5}},
    ],
)
def test_scene_coordinates_that_make_sense_are_taken(values: dict) -> None:
    parse(TrainingConfig, {**SCENE, **values}, "recipe.yaml")


@pytest.mark.parametrize("modalities", [["rgb"], ["depth"], ["rgb", "depth"]])
def test_a_model_waits_for_the_depth_that_it_has_an_expert_for(modalities: list[str]) -> None:
    """The training prepares depth all the same: that is where the targets come from."""
    config = parse(TrainingConfig, {"network": {**SCENE["network"], "modalities": modalities}}, "recipe.yaml")
    assert config.localizer.input.depth_source == "points"
    assert input_of(config).depth_source == ("points" if "depth" in modalities else "none")
    assert input_of(config).use_image


def test_ranges() -> None:
    assert parse_range("600-649") == (600.0, 649.0)
    assert parse_range("0.5-2") == (0.5, 2.0)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing\.yaml"):
        load_training_config(tmp_path / "nothing.yaml")
