"""`vmloc strangers`: how often a model claims a pose where it cannot know one, and how often the node would believe it.

A frame is asked about with every set of sensors that it has. The answers go through the filter of a robot that stands
still in the middle of the model's map, and knows it: the node would fuse what its gate lets through, and what it starts
over from because wrong answers agree with each other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from vmloc_ros import files
from vmloc_ros.checkpoint import RETRIEVAL, ModelCard
from vmloc_ros.commands.drives import filter_of
from vmloc_ros.commands.evaluate import reader_options, settings_of
from vmloc_ros.commands.strangers_asked import (
    INTACT,
    MASKED,
    MODEL_CAMERA,
    NOISE,
    OTHER_PLACE,
    OWN_CAMERA,
    Asked,
    Robot,
    ask,
    of_mode,
)
from vmloc_ros.commands.strangers_frames import (
    Stranger,
    as_by_model,
    frames_of,
    masked_frames,
    noise_frames,
)
from vmloc_ros.commands.strangers_tables import print_strangers
from vmloc_ros.config import FrameNames, ModelConfig
from vmloc_ros.datasets.open import FORMATS
from vmloc_ros.errors import ConfigError, DatasetError
from vmloc_ros.geometry import Array, pose_from_quaternion
from vmloc_ros.localizer import load_localizer, modes_of
from vmloc_ros.progress import progress_bar
from vmloc_ros.recordings import BAG, open_any
from vmloc_ros.retrieval import Retrieval


def run_strangers(
    model: Path,
    sources: Sequence[str] = (),
    own: str | None = None,
    noise: int = 100,
    masked: int = 100,
    frames: int = 100,
    seed: int = 1,
    options: Mapping[str, Any] | None = None,
    config: Path | None = None,
    device: str = "auto",
    json: Path | None = None,
) -> dict[str, Any]:
    """Shows a model what it cannot know and prints what it said; returns the report.

    Args:
        model: its folder.
        sources: other places, `FORMAT:PATH` as for `vmloc evaluate`.
        own: the model's own place, for frames of it behind a black box.
        noise, masked: so many made-up frames of each; masked ones need `own`.
        frames: of each source at most so many, evenly.
        seed: of noise and masks.
        options: of the readers, by name, or `FORMAT:NAME` for those of one format.
        config: a parameter file for the filter; None: that of the training.
        json: where the report is written.

    Raises:
        CheckpointError, ConfigError, DatasetError: with the file or the argument.
    """
    console = Console(stderr=True)
    given, own_given = [split_source(text) for text in sources], split_source(own) if own else None
    if not given and own_given is None and noise < 1:
        raise ConfigError("there is nothing to show: give --source FORMAT:PATH, --own FORMAT:PATH or --noise")
    if min(noise, masked) < 0 or frames < 1:
        raise ConfigError("--noise and --masked must not be negative, --frames must be positive")
    localizer = load_localizer(model, ModelConfig(path=str(model), device=device))
    settings = settings_of(model, localizer.card, None)
    robot = Robot(localizer, standing_place(model, localizer.card), filter_of(model, config), FrameNames(), settings)
    known = dict(options or {})
    asked: list[Asked] = []
    for format, path in given:
        asked += other_place(robot, format, path, reader_options(model, format, options_for(format, known)), frames)
    asked += made_up(robot, noise, seed)
    if own_given is not None and masked:
        format, path = own_given
        given_options = reader_options(model, format, options_for(format, known))
        asked += own_place(robot, format, path, given_options, masked, seed)
    localizer.warm_up()
    modes = modes_of(localizer.card)
    with progress_bar(console) as bar:
        task = bar.add_task("asking frame", total=sum(len(of_mode(one, mode)) for one in asked for mode in modes))
        rows = [ask(robot, one, mode, lambda: bar.advance(task)) for one in asked for mode in modes]
    report = {
        "model": localizer.card.name,
        "architecture": localizer.card.network.architecture,
        "sha256": localizer.card.sha256,
        "seed": seed,
        "T_map_camera": robot.T_map_camera.tolist(),
        "rows": [row for row in rows if row["frames"]],
    }
    report["totals"] = totals(report["rows"])
    print_strangers(report)
    if json is not None:
        files.write_json(json, report)
        console.print(f"wrote {json}", soft_wrap=True, highlight=False)
    return report


def split_source(text: str) -> tuple[str, Path]:
    """Format and folder.

    Raises:
        ConfigError: not of the form `FORMAT:PATH`.
    """
    format, separator, path = text.partition(":")
    if format not in (*FORMATS, BAG) or not separator or not path:
        raise ConfigError(f"{text!r} is not FORMAT:PATH; formats are {', '.join((*FORMATS, BAG))}")
    return format, Path(path)


def options_for(format: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Those for all, and those for this format alone, which win."""
    general = {name: value for name, value in options.items() if ":" not in name}
    own = {name.partition(":")[2]: value for name, value in options.items() if name.partition(":")[0] == format}
    return general | {name: value for name, value in own.items() if name}


def standing_place(model: Path, card: ModelCard) -> Array:
    """The training pose of the camera nearest to the middle of the map, where a network that guesses is least wrong."""
    known = card.normalisation
    middle = pose_from_quaternion(known.position_mean_m, known.rotation_reference_xyzw)
    path = model / RETRIEVAL
    return Retrieval(path).nearest_pose(middle) if path.is_file() else middle


# -------------------------------------------------------------------------------------------------------- what is shown


def other_place(robot: Robot, format: str, path: Path, options: dict[str, Any], count: int) -> list[Asked]:
    """A source with its own camera, and as the model's camera would have shown it.

    Raises:
        DatasetError: it holds no frame.
    """
    found, name = opened(robot, format, path, options, count), f"{format} {path.name}"
    alike = [replace(one, frame=as_by_model(one.frame, robot.localizer.card)) for one in found]
    return [Asked(name, OTHER_PLACE, OWN_CAMERA, found), Asked(name, OTHER_PLACE, MODEL_CAMERA, alike)]


def made_up(robot: Robot, count: int, seed: int) -> list[Asked]:
    """Noise."""
    strangers = noise_frames(robot.localizer.card, count, seed)
    return [Asked(NOISE, NOISE, MODEL_CAMERA, strangers)] if strangers else []


def own_place(robot: Robot, format: str, path: Path, options: dict[str, Any], count: int, seed: int) -> list[Asked]:
    """The model's own place: as it is, for it should not be refused, and behind a black box.

    Raises:
        DatasetError: it holds no frame with truth.
    """
    found, name = opened(robot, format, path, options, count, with_truth=True), f"{format} {path.name}"
    masked = masked_frames(found, robot.localizer.card, seed)
    return [Asked(name, MASKED, MODEL_CAMERA, masked), Asked(name, INTACT, OWN_CAMERA, found)]


def opened(
    robot: Robot, format: str, path: Path, options: dict[str, Any], count: int, with_truth: bool = False
) -> list[Stranger]:
    """Frames of a source.

    Raises:
        DatasetError: it cannot be read, or there is none that could be shown.
    """
    recordings = open_any(format, path, robot.settings.topics, options, robot.settings.frames.base)
    found = frames_of(recordings, robot.settings, format, count, with_truth)
    if not found:
        raise DatasetError(f"{path}: there is no frame in it that can be shown; check the format and its options")
    return found


def totals(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, int]]:
    """By mode, of all that should be refused, as the model's camera shows it."""
    result: dict[str, dict[str, int]] = {}
    for row in rows:
        if row["kind"] == INTACT or row["camera"] != MODEL_CAMERA:
            continue
        entry = result.setdefault(row["mode"], dict.fromkeys(("frames", "false", "fused", "fused_from_nothing"), 0))
        for name in entry:
            entry[name] += row[name]
    return result
