"""`vmloc evaluate`: the network alone, per modality mode and corruption, beside the retrieval baseline."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from vmloc_ros import files
from vmloc_ros.assembly import labelled_frames
from vmloc_ros.checkpoint import CONFIG, RETRIEVAL, ModelCard
from vmloc_ros.commands.evaluate_tables import print_evaluation
from vmloc_ros.config import LocalizerConfig, ModelConfig, load_config, parse, read_yaml
from vmloc_ros.corruption import parse_conditions
from vmloc_ros.datasets.base import Recording
from vmloc_ros.datasets.skips import refuse_broken
from vmloc_ros.errors import ConfigError
from vmloc_ros.evaluation import Evaluation, evaluate, frame_config, modes_for
from vmloc_ros.localizer import load_localizer
from vmloc_ros.preparation import left_out_of
from vmloc_ros.progress import progress_bar
from vmloc_ros.recordings import LABEL_OPTIONS, TOPIC_OPTIONS, open_any
from vmloc_ros.retrieval import Retrieval
from vmloc_ros.run_log import trajectory_of
from vmloc_ros.samples import Labelled
from vmloc_ros.trajectory import write_tum

SENSOR_OPTIONS = ("lidar", "camera", "focal_px", *TOPIC_OPTIONS, *LABEL_OPTIONS)
"""Options of a reader that say which sensors are looked at: by default those of the training."""


def run_evaluate(
    model: Path,
    source: Path,
    format: str,
    modalities: Sequence[str] = (),
    corrupt: Sequence[str] = (),
    json: Path | None = None,
    recordings: Sequence[str] = (),
    options: dict[str, Any] | None = None,
    device: str = "auto",
    out: Path | None = None,
    seed: int = 0,
    allow_missing: bool = False,
    config: Path | None = None,
) -> dict[str, Any]:
    """Evaluates a model on recordings and prints tables; returns the report.

    Args:
        model: its folder.
        source, format: the recordings, as for `vmloc train`.
        modalities: which sensors are there (`rgb`, `depth`); empty: all that the model has experts for.
        corrupt: `rgb:1` (masked), `depth:2` (missing) together, or `all` for the paper's Table 4 in one pass.
        json: where the report is written.
        recordings: names; empty: all.
        options: further arguments of the dataset's reader.
        out: folder that receives `report.json`, trajectories T_map_camera (TUM) of every mode, and figures.
        seed: of the masks' places.
        allow_missing: go on although more than 1 % of the recordings' files are missing or unusable; they are counted
            in the report in any case.
        config: a parameter file as the node takes it, for names of topics and frames and for mountings; by default
            those of the training.

    Raises:
        CheckpointError, ConfigError, DatasetError: with the file or the argument.
    """
    console = Console(stderr=True)
    localizer = load_localizer(model, ModelConfig(path=str(model), device=device, runtime="auto"))
    if localizer.fallback:
        console.print(localizer.fallback)
    used = list(modalities) or list(localizer.card.network.modalities)
    modes, conditions = modes_for(localizer.card, used), parse_conditions(corrupt, used)
    settings = settings_of(model, localizer.card, config)
    given = reader_options(model, format, options or {})
    chosen = choose(open_any(format, source, settings.topics, given, settings.frames.base), source, recordings)
    refuse_broken([left_out_of(recording) for recording in chosen], allow_missing)
    retrieval = Retrieval(model / RETRIEVAL) if (model / RETRIEVAL).is_file() else None
    localizer.warm_up()
    with progress_bar(console) as bar:
        task = bar.add_task("evaluating frame", total=None)
        frames = _frames(chosen, settings, allow_missing)
        result = evaluate(localizer, frames, modes, conditions, retrieval, seed, lambda: bar.advance(task))
    report = {
        "model": localizer.card.name,
        "sha256": localizer.card.sha256,
        "recordings": [recording.name for recording in chosen],
        "seed": seed,
        "skipped": {recording.name: dict(recording.skipped) for recording in chosen if recording.skipped},
        **result.report(),
    }
    print_evaluation(report)
    if json is not None:
        files.write_json(json, report)
        console.print(f"wrote {json}", soft_wrap=True, highlight=False)
    if out is not None:
        names = write_evaluation(out, result, report)
        console.print(f"wrote {out}: {', '.join(names)}", soft_wrap=True, highlight=False)
    return report


def reader_options(model: Path, format: str, given: dict[str, Any]) -> dict[str, Any]:
    """The reader's options: those given, and the sensors of the model's training where they are not given.

    7-Scenes is read without its odometry, which is computed image by image and which no frame of it needs. A split of
    RobotCar means its test part.
    """
    options: dict[str, Any] = {"odometry": "none"} if format == "sevenscenes" else {}
    if format == "robotcar" and "split" in given:
        options["part"] = "test"
    config = model / CONFIG
    data = read_yaml(config).get("data") if config.is_file() else None
    if isinstance(data, dict) and data.get("format") == format and isinstance(data.get("options"), dict):
        options |= {name: data["options"][name] for name in SENSOR_OPTIONS if name in data["options"]}
    return options | given


def settings_of(model: Path, card: ModelCard, config: Path | None) -> LocalizerConfig:
    """How frames are built: from the sensors of the model's card, with the names and mountings of `config` (None: of
    the training).

    Raises:
        ConfigError: the file cannot be used.
    """
    given = LocalizerConfig()
    if config is not None:
        given = load_config(config)
    elif (model / CONFIG).is_file():
        given = parse(LocalizerConfig, read_yaml(model / CONFIG).get("localizer") or {}, str(model / CONFIG))
    names = ("frames", "topics", "pairing", "extrinsics")
    return frame_config(card).model_copy(update={name: getattr(given, name) for name in names})


def choose(opened: Sequence[Recording], source: Path, names: Sequence[str]) -> list[Recording]:
    """The recordings of these names, all if none is given.

    Raises:
        ConfigError: there is no such recording.
    """
    there = [recording.name for recording in opened]
    unknown = [name for name in names if name not in there]
    if unknown:
        raise ConfigError(f"there is no recording {unknown[0]!r} in {source}; there are {', '.join(there)}")
    return [recording for recording in opened if not names or recording.name in names]


def write_evaluation(out: Path, result: Evaluation, report: dict[str, Any]) -> list[str]:
    """Writes the report, the trajectories of the first condition and the figures; returns what it wrote.

    Trajectories are `truth.tum`, one file per mode, `retrieval.tum` and `nearest_pose.tum`; of several recordings each
    has a folder of its own.
    """
    from vmloc_ros.plots_evaluation import answered, plot_evaluation

    files.write_json(out / "report.json", report)
    names = dict.fromkeys(frame.recording for frame in result.frames)
    for recording in names:
        folder = out / recording.replace("/", "_") if len(names) > 1 else out
        inside = {k for k, frame in enumerate(result.frames) if frame.recording == recording}
        truth = [result.frames[k] for k in sorted(inside)]
        write_tum(folder / "truth.tum", trajectory_of((frame.stamp_ns, frame.T_map_camera) for frame in truth))
        for name, answers in answered(result).items():
            poses = zip(answers.frames, answers.stamps_ns, answers.estimates, strict=True)
            own = trajectory_of((stamp_ns, T) for k, stamp_ns, T in poses if k in inside)
            if len(own):
                write_tum(folder / f"{name}.tum", own)
    return ["report.json", "trajectories", *(path.name for path in plot_evaluation(out, result))]


def _frames(recordings: Sequence[Recording], config: LocalizerConfig, allow_missing: bool) -> Iterator[Labelled]:
    """All frames; at their end everybody knows what could not be read.

    Raises:
        DatasetError: that is too much.
    """
    for recording in recordings:
        for item in labelled_frames(recording, config):
            yield item.frame, item.T_map_camera, item.recording
    refuse_broken([left_out_of(recording) for recording in recordings], allow_missing)
