"""`vmloc train`: from recordings to a model's folder."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
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
from vmloc_ros.checkpoint import (
    CONFIG,
    METRICS,
    RETRIEVAL,
    CameraCard,
    ModeCalibration,
    ModelCard,
    fill_network,
    save_model,
)
from vmloc_ros.datasets.base import Recording
from vmloc_ros.errors import ConfigError, TrainingError
from vmloc_ros.localizer import choose_device, modes_of
from vmloc_ros.machines import failures_in_words, in_first_process, start
from vmloc_ros.networks.config import Normalisation
from vmloc_ros.networks.vmloc import VMLoc
from vmloc_ros.plots import plot_training
from vmloc_ros.preparation import digest, prepare, store_key
from vmloc_ros.recordings import open_any
from vmloc_ros.retrieval import write_retrieval
from vmloc_ros.runtimes.torch import TorchRuntime
from vmloc_ros.samples import SampleStore, open_store
from vmloc_ros.split import split
from vmloc_ros.training import Row, Trained, train
from vmloc_ros.training_config import DataConfig, TrainingConfig, load_training_config
from vmloc_ros.training_state import WORK
from vmloc_ros.trunk_weights import check_trunk_weights
from vmloc_ros.types import Mode
from vmloc_ros.uncertainty import calibrate
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
        check_sizes(config, train_samples, validation_samples)
        normalisation = measure_normalisation(store, train_samples)
        key = digest(config.model_dump(mode="json", exclude={"data": {"workers"}}), store_key(config, recordings))
        if fabric.is_global_zero:
            files.write_yaml(out / CONFIG, config.model_dump(mode="json"))
        console.print(f"training on {len(train_samples)} frames, validating on {len(validation_samples)}")
        with _told(console, config, len(train_samples)) as tell:
            trained = train(
                config, store, train_samples, validation_samples, normalisation, out, key, resume, tell, fabric=fabric
            )
        if not fabric.is_global_zero:
            return out
        card = finish(config, recordings, store, train_samples, validation_samples, normalisation, trained, out)
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
    for name in (*data.train, *data.validation, *data.ignore):
        if name not in names:
            raise ConfigError(f"data: there is no recording {name!r}; there are {', '.join(names)}")
    chosen = data.train or [name for name in names if name not in (*data.validation, *data.ignore)]
    if not chosen:
        raise ConfigError("data: no recording is left to train on")
    return [recording for recording in recordings if recording.name in (*chosen, *data.validation)]


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
) -> ModelCard:
    """Scores and calibrates the weights as they will be stored, and writes the model's folder."""
    network = VMLoc(config.network)
    fill_network(
        network, {name: t.float() if t.dtype is torch.float16 else t for name, t in trained.tensors.items()}, out
    )
    runtime = TorchRuntime(network, normalisation, config.calibration.latent_samples, choose_device(config.device)[0])
    judged = train_samples if config.calibration.on_training else validation_samples
    errors = validate(runtime, config.network, store, judged)
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
        calibration=calibrations(
            errors, config.calibration.training_inflation if config.calibration.on_training else 1.0
        ),
        scores={
            "on": "the training frames" if config.calibration.on_training else "the validation frames",
            **{mode.value: error.summary() for mode, error in errors.items()},
        },
        training=provenance(config, store, train_samples, validation_samples, trained),
        licence=str(about.get("licence", "")),
    )
    missing = [mode for mode in modes_of(card) if mode not in card.calibration]
    if missing:
        raise TrainingError(f"no validation frame shows {', '.join(missing)}: its covariance cannot be calibrated")
    card = save_model(out, trained.tensors, card, config.storage)
    write_retrieval(out / RETRIEVAL, store, train_samples)
    plot_training(out / METRICS)
    return card


def calibrations(errors: dict[Mode, ModeErrors], inflation: float) -> dict[Mode, ModeCalibration]:
    """Per mode what the card holds."""
    result = {}
    for mode, error in errors.items():
        fitted = calibrate(error.tangent_N6, error.scatters_N66)
        result[mode] = ModeCalibration(
            base_66=(inflation * fitted.base_66).tolist(),
            exponent=fitted.exponent,
            spread_median=fitted.spread_median / inflation**0.5,  # the spread is measured in units of the base
            spread_p95=fitted.spread_p95 / inflation**0.5,
            limit=fitted.limit,
            frames=len(error.position_m),
        )
    return result


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
    """The scores as text, one line per mode."""
    lines = [f"scores on {card.scores['on']}:"]
    for mode in card.calibration:
        error = card.scores[mode.value]
        position, rotation = error["position_m"], error["rotation_deg"]
        lines.append(
            f"  {mode.value:10s} mean {position['mean']:.3f} m {rotation['mean']:.2f} deg, "
            f"median {position['median']:.3f} m {rotation['median']:.2f} deg, "
            f"p95 {position['p95']:.3f} m {rotation['p95']:.2f} deg"
        )
    return "\n".join(lines)


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    )
