"""`vmloc calibrate`: measures the covariances of an existing model on other data and rewrites its card."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from vmloc_ros import files
from vmloc_ros.assembly import labelled_frames
from vmloc_ros.calibration import calibrate_mode, calibration_frames, calibration_lines, cut_blocks
from vmloc_ros.checkpoint import CARD, ModelCard, fill_network, load_model
from vmloc_ros.commands.card_parts import card_parts, measure_belief
from vmloc_ros.commands.evaluate import choose, reader_options, settings_of
from vmloc_ros.config import LocalizerConfig
from vmloc_ros.datasets.base import Recording
from vmloc_ros.errors import ConfigError
from vmloc_ros.localizer import choose_device, modes_of
from vmloc_ros.localizers.inputs import MAX_FOCAL_RATIO
from vmloc_ros.neighbour_file import measure_neighbours, read_neighbours, write_neighbours
from vmloc_ros.neighbours import Neighbours
from vmloc_ros.networks.build import build_network
from vmloc_ros.progress import progress_bar
from vmloc_ros.recordings import open_any
from vmloc_ros.runtimes.build import build_runtime
from vmloc_ros.runtimes.torch import Runtime
from vmloc_ros.samples import Labelled, SampleStore, build_store
from vmloc_ros.types import Mode
from vmloc_ros.validation import validate

MIN_FRAMES = 20


def run_calibrate(
    model: Path,
    source: Path,
    format: str,
    recordings: Sequence[str] = (),
    trained_on: Sequence[str] = (),
    options: dict[str, Any] | None = None,
    device: str = "auto",
    config: Path | None = None,
) -> ModelCard:
    """Calibrates a model on data it was not trained on; returns the card it has written.

    Args:
        model: its folder; only the card is rewritten, and the training latents with `trained_on`.
        source: of the data, in `format`.
        recordings: names of those to calibrate on; empty: all, less those of `trained_on`.
        trained_on: names of recordings that the model was trained on, to measure its training latents anew. Without
            them a model that has none is calibrated on the scatter of its latent samples.
        options: of the reader.
        device: auto, cpu or cuda:n.
        config: a parameter file with names of topics and mountings, as for `vmloc evaluate`.

    Raises:
        CheckpointError, ConfigError, DatasetError: with the file or the argument.
    """
    console = Console(stderr=True)
    card, tensors = load_model(model)
    network = build_network(card.network)
    fill_network(network, tensors, model)
    runtime = build_runtime(network, card.normalisation, card.latent_samples, choose_device(device)[0])
    settings = settings_of(model, card, config)
    given = reader_options(model, format, options or {})
    opened = open_any(format, source, settings.topics, given, settings.frames.base)
    both = sorted(set(recordings) & set(trained_on))
    if both:
        raise ConfigError(
            f"--recording {both[0]} stands in --trained-on too; calibrate on data that was not trained on"
        )
    names = list(recordings) or [recording.name for recording in opened if recording.name not in trained_on]
    if not names:
        raise ConfigError(f"{source}: no recording is left to calibrate on; name one with --recording")
    chosen = choose(opened, source, names)
    with tempfile.TemporaryDirectory() as scratch:
        if trained_on:
            store = _samples(card, choose(opened, source, trained_on), settings, Path(scratch) / "trained", console)
            neighbours = measure_neighbours(runtime, card.network, store, np.arange(len(store)))
        else:
            neighbours = read_neighbours(model, card)
        store = _samples(card, chosen, settings, Path(scratch) / "judged", console)
        card = recalibrated(card, runtime, store, neighbours)
    if trained_on and neighbours:
        card = card.model_copy(update={"neighbours_sha256": write_neighbours(model, neighbours)})
    files.write_yaml(model / CARD, card.model_dump(mode="json"))
    for line in calibration_lines(card.calibration):
        console.print(line, soft_wrap=True, highlight=False)
    if not neighbours and card.scene is None:
        console.print("note: the model has no training latents; --trained-on NAME measures them", soft_wrap=True)
    console.print(f"wrote {model / CARD}", soft_wrap=True, highlight=False)
    return card


def recalibrated(
    card: ModelCard, runtime: Runtime, store: SampleStore, neighbours: dict[Mode, Neighbours]
) -> ModelCard:
    """The card with a calibration on all samples of a store.

    Raises:
        ConfigError: too few frames, or none of a mode that the model can answer in.
    """
    measure_belief(runtime, store, np.arange(len(store)))
    errors = validate(runtime, card.network, store, np.arange(len(store)))
    for mode in modes_of(card):
        count = len(errors[mode].samples_N) if mode in errors else 0
        if count < MIN_FRAMES:
            raise ConfigError(f"{count} frames show {mode}; {MIN_FRAMES} are needed to calibrate: give more recordings")
    blocks = cut_blocks(store.recording_of, store.stamps_ns / 1e9)
    frames = calibration_frames(errors, neighbours, blocks)
    calibration = {mode: calibrate_mode(item) for mode, item in frames.items()}
    scores = {
        "recordings": list(store.recordings),
        "frames": len(store),
        **{mode.value: error.summary() for mode, error in errors.items()},
    }
    parts = card_parts(card.network, runtime, store, np.arange(len(store)))
    return card.model_copy(
        update={"calibration": calibration, "scores": {**card.scores, "calibrated_on": scores}, **parts}
    )


def _samples(
    card: ModelCard, recordings: Sequence[Recording], settings: LocalizerConfig, folder: Path, console: Console
) -> SampleStore:
    """The frames of some recordings at the size that the network crops from.

    Raises:
        ConfigError: another camera's view than the training's.
    """
    with progress_bar(console) as bar:
        task = bar.add_task("preparing frame", total=None)
        rows, width = card.camera.height, card.camera.width
        store = build_store(folder, _frames(recordings, settings), rows, width, card.sha256, lambda: bar.advance(task))
    ratio = store.camera.fx / card.camera.fx
    if not 1.0 / MAX_FOCAL_RATIO < ratio < MAX_FOCAL_RATIO:
        raise ConfigError(
            f"{recordings[0].name}: its camera's focal length is {ratio:.2f} times the training camera's; calibrate "
            "with the camera that the model was trained with"
        )
    return store


def _frames(recordings: Sequence[Recording], settings: LocalizerConfig) -> Iterator[Labelled]:
    for recording in recordings:
        for item in labelled_frames(recording, settings):
            yield item.frame, item.T_map_camera, item.recording
