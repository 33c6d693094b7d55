"""What `vmloc train` leaves behind: the model's folder, with its scores, its covariances and where it comes from."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vmloc_ros import __version__
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
    METRICS,
    RETRIEVAL,
    CameraCard,
    Judgement,
    ModeCalibration,
    ModelCard,
    save_model,
)
from vmloc_ros.commands.card_parts import card_parts, measure_belief
from vmloc_ros.commands.folds import Fold, stored_runtime
from vmloc_ros.config import InputConfig
from vmloc_ros.datasets.base import Recording
from vmloc_ros.errors import TrainingError
from vmloc_ros.localizer import modes_of
from vmloc_ros.neighbour_file import measure_neighbours, write_neighbours
from vmloc_ros.neighbours import Neighbours
from vmloc_ros.networks.config import Normalisation
from vmloc_ros.plots import plot_training
from vmloc_ros.retrieval import write_retrieval
from vmloc_ros.runtimes.torch import Runtime
from vmloc_ros.samples import SampleStore
from vmloc_ros.split import block_numbers, scored_samples
from vmloc_ros.training import Trained
from vmloc_ros.training_config import TrainingConfig
from vmloc_ros.types import Modality, Mode
from vmloc_ros.validation import ModeErrors, validate


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
    judged_samples = train_samples if on_training else validation_samples
    measure_belief(runtime, store, judged_samples)
    errors = validate(runtime, config.network, store, judged_samples)
    check_answers(errors, min(config.calibration.min_frames, len(judged_samples)) // 2)  # a few may be refused
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
        input=input_of(config),
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
        pose_graph=config.pose_graph,
        **card_parts(config.network, runtime, store, judged_samples),
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


def input_of(config: TrainingConfig) -> InputConfig:
    """What a robot with this model listens to. Without an expert for depth it waits for none, though the training may
    have learnt from it."""
    if config.network.has(Modality.DEPTH):
        return config.localizer.input
    return config.localizer.input.model_copy(update={"depth_source": "none"})


def check_answers(errors: dict[Mode, ModeErrors], least: int) -> None:
    """Refuses a model that refuses nearly all validation frames: there is nothing to calibrate it on.

    Raises:
        TrainingError: names the mode and the counts.
    """
    for mode, error in errors.items():
        if error.refused and len(error.samples_N) < least:
            raise TrainingError(
                f"{mode}: {len(error.samples_N)} of {len(error.samples_N) + error.refused} validation frames get a "
                f"pose, and {least} are needed to calibrate its covariance: the network has not learnt the scene; "
                "train longer (optimizer.epochs), and check depth, mountings and poses of the data"
            )


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
    runtime: Runtime,
    config: TrainingConfig,
    store: SampleStore,
    neighbours: dict[Mode, Neighbours],
    calibration: dict[Mode, ModeCalibration],
    known: dict[Mode, ModeErrors],
) -> dict[str, Any]:
    """`{"test": {MODE: errors and how true their covariances are}}` of what was never trained, chosen or calibrated on;
    nothing where the configuration names nothing."""
    samples = scored_samples(store, config.data, config.network)
    if not len(samples):
        return {}
    errors = validate(runtime, config.network, store, samples)
    frames = calibration_frames(
        errors, neighbours, block_numbers(store, config.data, [*config.data.test_blocks, *config.data.hold_out])
    )
    scores: dict[str, Any] = {"frames": len(samples)}
    for mode, error in errors.items():
        scores[mode.value] = error.summary()
        if mode in calibration and len(error.samples_N):
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
    lines += credulous_lines(card)
    tested = card.scores.get("test")
    if tested:
        lines += [f"scores on {tested['frames']} test frames:", *_error_lines(card, tested)]
        for mode in card.calibration:
            if "covariance" in tested.get(mode.value, {}):
                lines.append(f"  {mode.value:10s} {judgement_text(Judgement(**tested[mode.value]['covariance']))}")
    return "\n".join(lines)


def credulous_lines(card: ModelCard) -> list[str]:
    """A warning for every mode that cannot tell strangers from frames of the map (see `scene_limits`)."""
    lines = []
    for mode, limits in (card.scene.limits if card.scene else {}).items():
        fooled = [f"{kind} {share:.2f}" for kind, share in limits.strangers.items() if share > limits.least_share]
        if fooled:
            lines.append(
                f"warning: {mode} believes frames of no place of the map: {limits.least_share:.2f} of the cells must "
                f"agree, and on made-up frames they do ({', '.join(fooled)}); train longer, or with more frames"
            )
    return lines


def _error_lines(card: ModelCard, scores: dict[str, Any]) -> list[str]:
    lines = []
    for mode in card.calibration:
        if mode.value not in scores:
            continue
        error = scores[mode.value]
        refused = f", no pose for {error['no_pose']} frames" if error.get("no_pose") else ""
        if not error["n"]:
            lines.append(f"  {mode.value:10s} no frame has an error{refused}")
            continue
        position, rotation = error["position_m"], error["rotation_deg"]
        lines.append(
            f"  {mode.value:10s} mean {position['mean']:.3f} m {rotation['mean']:.2f} deg, "
            f"median {position['median']:.3f} m {rotation['median']:.2f} deg, "
            f"p95 {position['p95']:.3f} m {rotation['p95']:.2f} deg{refused}"
        )
    return lines
