"""`vmloc train`: from recordings to a model's folder."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from vmloc_ros import __version__, files
from vmloc_ros.batches import measure_normalisation
from vmloc_ros.calibration import (
    calibrate_mode,
    calibration_frames,
    calibration_lines,
    cut_blocks,
    inflated,
    judge,
    judgement_text,
    pooled,
)
from vmloc_ros.checkpoint import (
    CONFIG,
    METRICS,
    RETRIEVAL,
    CameraCard,
    Judgement,
    ModeCalibration,
    ModelCard,
    save_model,
)
from vmloc_ros.commands.folds import Fold, FoldTraining, stored_runtime
from vmloc_ros.datasets.base import Recording
from vmloc_ros.errors import ConfigError, TrainingError
from vmloc_ros.localizer import modes_of
from vmloc_ros.machines import failures_in_words, in_first_process, start
from vmloc_ros.neighbour_file import measure_neighbours, write_neighbours
from vmloc_ros.neighbours import Neighbours
from vmloc_ros.networks.config import Normalisation
from vmloc_ros.plots import plot_training
from vmloc_ros.preparation import digest, prepare, store_key
from vmloc_ros.recordings import open_any
from vmloc_ros.retrieval import write_retrieval
from vmloc_ros.runtimes.torch import TorchRuntime
from vmloc_ros.samples import SampleStore, open_store
from vmloc_ros.split import block_numbers, split, tested_samples
from vmloc_ros.training import Row, Trained, train
from vmloc_ros.training_config import DataConfig, TrainingConfig, load_training_config
from vmloc_ros.training_state import WORK
from vmloc_ros.trunk_weights import check_trunk_weights
from vmloc_ros.types import Mode
from vmloc_ros.validation import ModeErrors, validate

SAMPLES = "samples"


def run_train(
    config_path: Path,
    data: Path,
    out: Path,
    resume: bool = False,
    samples: Path | None = None,
    allow_missing: bool = False,
) -> Path:
    """Trains a model and writes its folder; returns the folder.

    Args:
        config_path: a `TrainingConfig` as YAML.
        data: the recordings' folder as its publishers ship it.
        out: receives model.safetensors, card.yaml, config.yaml, metrics.csv, retrieval.safetensors and training.png.
        resume: go on from the last whole checkpoint in `out`; the result is that of a training never interrupted.
        samples: folder of the prepared samples, which several trainings may share; by default inside `out`.
        allow_missing: train although more than 1 % of the recordings' files are missing or unusable.

    Raises:
        ConfigError, DatasetError, TrainingError, CheckpointError: with the file or key.
    """
    config = load_training_config(config_path)
    with failures_in_words(out):
        fabric = start(config)
        console = Console(stderr=True, quiet=not fabric.is_global_zero)
        torch.set_num_threads(config.threads or torch.get_num_threads())
        if not resume:
            check_trunk_weights(config.network, config.trunk_weights)
        topics, base = config.localizer.topics, config.localizer.frames.base
        found = open_any(config.data.format, data, topics, config.data.options, base)
        recordings = choose_recordings(found, config.data)
        store = _shared_store(config, recordings, samples or out / WORK / SAMPLES, fabric, console, allow_missing)
        train_samples, validation_samples = split(store, config.data, config.network)
        key_of_samples = store_key(config, recordings)
        folds = FoldTraining(
            config, store, train_samples, validation_samples, out, key_of_samples, fabric, console, _told
        )
        check_sizes(config, train_samples, validation_samples)
        folds.check()
        normalisation = measure_normalisation(store, train_samples)
        key = digest(config.model_dump(mode="json", exclude={"data": {"workers"}}), key_of_samples)
        if fabric.is_global_zero:
            files.write_yaml(out / CONFIG, config.model_dump(mode="json"))
        console.print(f"training on {len(train_samples)} frames, validating on {len(validation_samples)}")
        with _told(console, config, len(train_samples)) as tell:
            trained = train(
                config, store, train_samples, validation_samples, normalisation, out, key, resume, tell, fabric=fabric
            )
        cross_fitted = folds.run()
        if not fabric.is_global_zero:
            return out
        card = finish(
            config, recordings, store, train_samples, validation_samples, normalisation, trained, out, cross_fitted
        )
    console.print(score_lines(card), soft_wrap=True, highlight=False)
    console.print(f"wrote {out}")
    return out


def _shared_store(
    config: TrainingConfig,
    recordings: list[Recording],
    folder: Path,
    fabric: Fabric,
    console: Console,
    allow_missing: bool,
) -> SampleStore:
    """The prepared samples: the first process sees to them, the others open what it made.

    Raises:
        TrainingError: another machine does not see the folder.
    """
    prepared = in_first_process(fabric, lambda: prepare(config, recordings, folder, console, allow_missing))
    store = prepared or open_store(folder, store_key(config, recordings))
    if store is None:
        raise TrainingError(
            f"{folder}: process {fabric.global_rank} does not see the prepared samples; --out (or --samples) must be "
            "on storage that all machines share"
        )
    return store


@contextmanager
def _told(console: Console, config: TrainingConfig, frames: int) -> Iterator[Callable[[int, Row], None]]:
    """A progress bar, and the function that moves it."""
    steps = max(1, round(frames / config.optimizer.batch_size)) * config.optimizer.epochs
    with _progress(console) as bar:
        task = bar.add_task("training", total=None)

        def tell(step: int, row: Row) -> None:
            if bar.tasks[task].total is None:  # steps done before a resumption say nothing about the speed
                bar.reset(task, total=steps, completed=step)
            text = f"training: epoch {row['epoch']}, loss {row['loss']:.3f}"
            bar.update(task, completed=step, description=text)

        yield tell


def choose_recordings(recordings: list[Recording], data: DataConfig) -> list[Recording]:
    """The recordings to read, training ones first.

    Raises:
        ConfigError: a name that does not exist, or nothing to train on.
    """
    names = [recording.name for recording in recordings]
    for name in (*data.train, *data.validation, *data.test, *data.ignore):
        if name not in names:
            raise ConfigError(f"data: there is no recording {name!r}; there are {', '.join(names)}")
    chosen = data.train or [name for name in names if name not in (*data.validation, *data.test, *data.ignore)]
    if not chosen:
        raise ConfigError("data: no recording is left to train on")
    return [recording for recording in recordings if recording.name in (*chosen, *data.validation, *data.test)]


def check_sizes(
    config: TrainingConfig, train_samples: NDArray[np.int64], validation_samples: NDArray[np.int64]
) -> None:
    """Refuses what could not be finished, before the long work."""
    if not len(train_samples):
        raise TrainingError("no training sample is left; check data.train, data.hold_out and the sensors")
    if not config.calibration.on_training and len(validation_samples) < config.calibration.min_frames:
        raise TrainingError(
            f"{len(validation_samples)} validation frames cannot calibrate the covariance "
            f"(calibration.min_frames is {config.calibration.min_frames}); name recordings in data.validation or "
            "blocks in data.hold_out, or set calibration.on_training"
        )


def finish(
    config: TrainingConfig,
    recordings: list[Recording],
    store: SampleStore,
    train_samples: NDArray[np.int64],
    validation_samples: NDArray[np.int64],
    normalisation: Normalisation,
    trained: Trained,
    out: Path,
    folds: Sequence[Fold] = (),
) -> ModelCard:
    """Scores and calibrates the weights as they will be stored, and writes the model's folder."""
    runtime = stored_runtime(config, trained.tensors, normalisation, out)
    on_training = config.calibration.on_training
    errors = validate(runtime, config.network, store, train_samples if on_training else validation_samples)
    neighbours: dict[Mode, Neighbours] = {}
    if config.calibration.neighbours and not on_training:  # a training frame is its own nearest neighbour
        neighbours = measure_neighbours(runtime, config.network, store, train_samples)
    calibration = calibrated(config, store, errors, neighbours, folds)
    about = recordings[0].card()
    card = ModelCard(
        name=config.name,
        network=config.network,
        normalisation=normalisation,
        training_camera=CameraCard(**asdict(store.camera)),
        crop_margin=config.augmentation.margin,
        frames={"map": config.localizer.frames.map, "camera": "camera optical frame (x right, y down, z forward)"}
        | {name: str(value) for name, value in about.items() if name != "licence"},
        input=config.localizer.input,
        projection=config.localizer.projection,
        latent_samples=config.calibration.latent_samples,
        calibration=calibration,
        scores={
            "on": "the training frames" if on_training else "the validation frames",
            **{mode.value: error.summary() for mode, error in errors.items()},
            **({"folds": [fold.scores for fold in folds]} if folds else {}),
            **scores_on_test(runtime, config, store, neighbours, calibration, errors),
        },
        training=provenance(config, store, train_samples, validation_samples, trained),
        licence=str(about.get("licence", "")),
    )
    missing = [mode for mode in modes_of(card) if mode not in card.calibration]
    if missing:
        raise TrainingError(f"no validation frame shows {', '.join(missing)}: its covariance cannot be calibrated")
    if neighbours:
        card = card.model_copy(update={"neighbours_sha256": write_neighbours(out, neighbours)})
    card = save_model(out, trained.tensors, card, config.storage)
    write_retrieval(out / RETRIEVAL, store, train_samples)
    plot_training(out / METRICS)
    return card


def calibrated(
    config: TrainingConfig,
    store: SampleStore,
    errors: dict[Mode, ModeErrors],
    neighbours: dict[Mode, Neighbours],
    folds: Sequence[Fold],
) -> dict[Mode, ModeCalibration]:
    """Per mode what the card holds: fitted to the judged frames and the folds', block by block."""
    numbers = block_numbers(store, config.data, config.data.hold_out)
    if not folds:
        judged = np.unique(np.concatenate([error.samples_N for error in errors.values()]))
        numbers[judged] = cut_blocks(numbers[judged], store.stamps_ns[judged] / 1e9)
    frames = pooled([calibration_frames(errors, neighbours, numbers), *(fold.frames for fold in folds)])
    result = {mode: calibrate_mode(item) for mode, item in frames.items()}
    if config.calibration.on_training:
        return {mode: inflated(item, config.calibration.training_inflation) for mode, item in result.items()}
    return result


def scores_on_test(
    runtime: TorchRuntime,
    config: TrainingConfig,
    store: SampleStore,
    neighbours: dict[Mode, Neighbours],
    calibration: dict[Mode, ModeCalibration],
    known: dict[Mode, ModeErrors],
) -> dict[str, Any]:
    """`{"test": {MODE: errors and how true their covariances are}}` of what was never trained, chosen or calibrated on;
    nothing where the configuration names nothing."""
    samples = tested_samples(store, config.data, config.network)
    if not len(samples):
        return {}
    errors = validate(runtime, config.network, store, samples)
    frames = calibration_frames(
        errors, neighbours, block_numbers(store, config.data, [*config.data.test_blocks, *config.data.hold_out])
    )
    scores: dict[str, Any] = {"frames": len(samples)}
    for mode, error in errors.items():
        scores[mode.value] = error.summary()
        if mode in calibration:
            truth = judge(frames[mode], calibration[mode], known[mode].tangent_N6)
            scores[mode.value]["covariance"] = truth.model_dump(mode="json")
    return {"test": scores}


def provenance(
    config: TrainingConfig,
    store: SampleStore,
    train_samples: NDArray[np.int64],
    validation_samples: NDArray[np.int64],
    trained: Trained,
) -> dict[str, Any]:
    """Where the weights come from: enough to make them again from the same data."""
    train_names = sorted({store.recordings[i] for i in store.recording_of[train_samples]})
    validation_names = sorted({store.recordings[i] for i in store.recording_of[validation_samples]})
    return {
        "format": config.data.format,
        "recordings": train_names,
        "validation_recordings": validation_names,
        "hold_out": list(config.data.hold_out),
        "frames": len(train_samples),
        "validation_frames": len(validation_samples),
        "seed": config.seed,
        "epochs": trained.progress.epoch,
        "best_epoch": trained.progress.best_epoch,
        "seconds": round(trained.progress.seconds, 1),
        "stored_as": config.storage,
        "vmloc_ros": __version__,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def score_lines(card: ModelCard) -> str:
    """The scores as text, one line per mode; then how true the covariances are, and the scores on test data."""
    lines = [f"scores on {card.scores['on']}:", *_error_lines(card, card.scores)]
    lines += calibration_lines(card.calibration)
    tested = card.scores.get("test")
    if tested:
        lines += [f"scores on {tested['frames']} test frames:", *_error_lines(card, tested)]
        for mode in card.calibration:
            if mode.value in tested:
                lines.append(f"  {mode.value:10s} {judgement_text(Judgement(**tested[mode.value]['covariance']))}")
    return "\n".join(lines)


def _error_lines(card: ModelCard, scores: dict[str, Any]) -> list[str]:
    lines = []
    for mode in card.calibration:
        if mode.value not in scores:
            continue
        error = scores[mode.value]
        position, rotation = error["position_m"], error["rotation_deg"]
        lines.append(
            f"  {mode.value:10s} mean {position['mean']:.3f} m {rotation['mean']:.2f} deg, "
            f"median {position['median']:.3f} m {rotation['median']:.2f} deg, "
            f"p95 {position['p95']:.3f} m {rotation['p95']:.2f} deg"
        )
    return lines


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    )
