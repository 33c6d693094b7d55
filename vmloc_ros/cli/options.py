"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

Json = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Also write the numbers as JSON.")]
Config = Annotated[
    Path | None, typer.Option("--config", "--params", metavar="FILE", help="Parameters, as for the node.")
]


class DatasetFormat(StrEnum):
    """Whose on-disk layout a dataset has."""

    robotcar = "robotcar"
    town = "town"
    kitti = "kitti"
    sevenscenes = "sevenscenes"
    cambridge = "cambridge"


class RecordingFormat(StrEnum):
    """Whose on-disk layout recordings have; `bag`: one's own, rosbag2."""

    robotcar = "robotcar"
    town = "town"
    kitti = "kitti"
    sevenscenes = "sevenscenes"
    cambridge = "cambridge"
    bag = "bag"


def parsed_options(texts: Sequence[str]) -> dict[str, Any]:
    """`NAME=VALUE`, values as in YAML (numbers, lists, text)."""
    import yaml

    options = {}
    for text in texts:
        name, separator, value = text.partition("=")
        if not separator or not name:
            raise typer.BadParameter(f"{text!r} is not NAME=VALUE")
        try:
            options[name] = yaml.safe_load(value)
        except yaml.YAMLError:
            options[name] = value
    return options


class OfficialData(StrEnum):
    """What an official checkpoint was trained on."""

    sevenscenes = "sevenscenes"
    robotcar = "robotcar"


class Grey(StrEnum):
    """The ends of a picture's range."""

    black = "black"
    white = "white"


class TrackOdometry(StrEnum):
    """What drives the filter that a model is followed with."""

    recording = "recording"
    network = "network"
    none = "none"


class PreviousPose(StrEnum):
    """What a network that takes the previous pose is given."""

    filter = "filter"
    own = "own"
    none = "none"


def say_wrote(path: Path | None, content: Mapping[str, Any]) -> None:
    """Writes JSON where a path is given, and says so."""
    if path is not None:
        from vmloc_ros.files import write_json

        write_json(path, content)
        print(f"wrote {path}")
