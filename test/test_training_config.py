"""The training configuration and the recipes that ship with the project."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmloc_ros.config import parse
from vmloc_ros.errors import ConfigError
from vmloc_ros.training_config import TrainingConfig, load_training_config, parse_range

MODELS = Path(__file__).resolve().parents[1] / "models"


@pytest.mark.parametrize("path", sorted(MODELS.glob("vmloc_*.yaml")), ids=lambda path: path.stem)
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


def test_ranges() -> None:
    assert parse_range("600-649") == (600.0, 649.0)
    assert parse_range("0.5-2") == (0.5, 2.0)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing\.yaml"):
        load_training_config(tmp_path / "nothing.yaml")
