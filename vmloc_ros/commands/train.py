"""`vmloc train`: from recordings to a model's folder."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray
from rich.console import Console

from vmloc_ros import files
from vmloc_ros.batches import measure_normalisation
from vmloc_ros.checkpoint import CONFIG, METRICS, stored
from vmloc_ros.commands.folds import FoldTraining, stored_runtime
from vmloc_ros.commands.trained_model import finish, score_lines
from vmloc_ros.datasets.base import Recording
from vmloc_ros.errors import ConfigError, TrainingError
from vmloc_ros.machines import failures_in_words, in_first_process, start
from vmloc_ros.networks.config import Normalisation
from vmloc_ros.networks.inputs import centre_crop
from vmloc_ros.networks.retrieval import RetrievalNetwork, thumbnail
from vmloc_ros.networks.retrieval_config import RetrievalConfig
from vmloc_ros.preparation import digest, prepare, store_key
from vmloc_ros.progress import progress_bar
from vmloc_ros.recordings import open_any
from vmloc_ros.samples import SampleStore, open_store
from vmloc_ros.split import split
from vmloc_ros.training import Row, Trained, overall, train, write_rows
from vmloc_ros.training_config import DataConfig, TrainingConfig, load_training_config
from vmloc_ros.training_state import WORK, Progress
from vmloc_ros.trunk_weights import check_trunk_weights
from vmloc_ros.validation import validate

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
    check_retrieval(config)
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
        if isinstance(config.network, RetrievalConfig):
            trained = keep_images(config, config.network, store, train_samples, validation_samples, normalisation, out)
            if fabric.is_global_zero:
                write_rows(out / METRICS, trained.rows)
        else:
            given = (config, store, train_samples, validation_samples, normalisation, out, key, resume)
            with _told(console, config, len(train_samples)) as tell:
                trained = train(*given, tell, fabric=fabric)
        cross_fitted = folds.run()
        if not fabric.is_global_zero:
            return out
        card = finish(
            config, recordings, store, train_samples, validation_samples, normalisation, trained, out, cross_fitted
        )
    console.print(score_lines(card), soft_wrap=True, highlight=False)
    console.print(f"wrote {out}")
    return out


def check_retrieval(config: TrainingConfig) -> None:
    """Refuses what is said of a training where there is none.

    Raises:
        ConfigError: names the key.
    """
    if not isinstance(config.network, RetrievalConfig):
        return
    if config.calibration.folds:
        raise ConfigError("calibration.folds: retrieval trains no networks; take blocks out with data.hold_out")
    if config.calibration.on_training:
        raise ConfigError(
            "calibration.on_training: retrieval finds every training image itself, without an error; name recordings "
            "in data.validation or blocks in data.hold_out"
        )


def keep_images(
    config: TrainingConfig,
    network_config: RetrievalConfig,
    store: SampleStore,
    train_samples: NDArray[np.int64],
    validation_samples: NDArray[np.int64],
    normalisation: Normalisation,
    out: Path,
) -> Trained:
    """The "training" of retrieval: images and poses are kept, and judged as they are stored."""
    started = time.monotonic()
    network = RetrievalNetwork(network_config)
    rows, columns = centre_crop(store.camera.height, store.camera.width, network_config.height, network_config.width)
    thumbnails = np.stack([thumbnail(store.rgb[index][rows, columns]) for index in train_samples])
    network.keep(thumbnails, store.T_map_camera[train_samples])
    tensors = {name: stored(tensor, config.storage) for name, tensor in network.state_dict().items()}
    runtime = stored_runtime(config, tensors, normalisation, out)
    errors = validate(runtime, network_config, store, validation_samples)
    row: Row = {"epoch": 0, "images": min(len(train_samples), network_config.images)}
    for mode, error in errors.items():
        row |= {f"{mode.value}_mean_m": float(error.position_m.mean())}
        row |= {f"{mode.value}_mean_deg": float(error.rotation_deg.mean())}
    return Trained(tensors, Progress(best_score=overall(errors), seconds=time.monotonic() - started), [row])


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
    with progress_bar(console) as bar:
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
