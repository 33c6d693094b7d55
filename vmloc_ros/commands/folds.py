"""Cross-fitting: further networks that leave blocks out of their training, for errors to calibrate on.

With little data every block that is held out is missed by the training. A fold's network is trained like the model, but
without the fold's blocks; its errors on them stand for the model's errors on unseen data. Finished folds are kept.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray
from rich.console import Console
from safetensors.torch import save as save_safetensors
from torch import Tensor

from vmloc_ros import files
from vmloc_ros.batches import measure_normalisation
from vmloc_ros.calibration import CalibrationFrames, calibration_frames
from vmloc_ros.checkpoint import fill_network, read_tensors
from vmloc_ros.commands.card_parts import measure_belief
from vmloc_ros.errors import ConfigError
from vmloc_ros.localizer import choose_device
from vmloc_ros.neighbour_file import measure_neighbours
from vmloc_ros.networks.build import build_network
from vmloc_ros.networks.config import Normalisation
from vmloc_ros.preparation import digest
from vmloc_ros.runtimes.build import build_runtime
from vmloc_ros.runtimes.torch import Runtime
from vmloc_ros.samples import SampleStore
from vmloc_ros.split import block_numbers, in_blocks, positions_of
from vmloc_ros.training import Row, train
from vmloc_ros.training_config import TrainingConfig
from vmloc_ros.training_state import STATE, WORK
from vmloc_ros.types import Mode
from vmloc_ros.validation import validate

MARK, WEIGHTS = "fold.json", "weights.safetensors"
Teller = Callable[[int, Row], None]


@dataclass(frozen=True, eq=False)
class Fold:
    """A finished fold.

    Attributes:
        blocks: that its network was trained without.
        frames: its errors on them, by mode.
        scores: of these, as in the card.
    """

    blocks: list[str]
    frames: dict[Mode, CalibrationFrames]
    scores: dict[str, Any]


@dataclass(frozen=True, eq=False)
class FoldTraining:
    """What is needed to train the folds of a model.

    Attributes:
        train_samples, validation_samples: the model's; the latter choose the best weights of the folds too.
        out: the model's folder.
        key: of the samples.
        told: a progress bar for a number of frames.
    """

    config: TrainingConfig
    store: SampleStore
    train_samples: NDArray[np.int64]
    validation_samples: NDArray[np.int64]
    out: Path
    key: str
    fabric: Fabric
    console: Console
    told: Callable[[Console, TrainingConfig, int], AbstractContextManager[Teller]]

    def check(self) -> None:
        """Refuses folds that hold no training frame, before any training.

        Raises:
            ConfigError: a block that does not exist, or lies in what is held out, tested or discarded.
        """
        for blocks in self.config.calibration.folds:
            own, rest = self._parts(blocks)
            if not len(own) or len(rest) < 2:
                raise ConfigError(
                    f"calibration.folds: {', '.join(blocks)} holds {len(own)} training frames and leaves {len(rest)}; "
                    "name blocks that are trained on (not those of hold_out, test_blocks or discard)"
                )

    def run(self) -> list[Fold]:
        """Trains the folds that are not finished yet; in processes other than the first the result is empty.

        Raises:
            TrainingError, CheckpointError: as `training.train`.
        """
        folds = []
        for number, blocks in enumerate(self.config.calibration.folds):
            fold = self._fold(number, blocks)
            if fold is not None:
                folds.append(fold)
        return folds

    def _parts(self, blocks: list[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The training samples inside and outside of some blocks."""
        inside = in_blocks(positions_of(self.store, self.config.data), blocks)[self.train_samples]
        return self.train_samples[inside], self.train_samples[~inside]

    def _fold(self, number: int, blocks: list[str]) -> Fold | None:
        own, rest = self._parts(blocks)
        config, folder = self._config(), self.out / WORK / f"fold_{number}"
        key = digest(config.model_dump(mode="json", exclude={"data": {"workers"}}), self.key, blocks)
        normalisation = measure_normalisation(self.store, rest)
        mark = self.fabric.broadcast(read_mark(folder), src=0)
        name = f"fold {number + 1} of {len(self.config.calibration.folds)}"
        if mark == {"key": key, "finished": True} and (folder / WEIGHTS).is_file():
            self.console.print(f"{name}: finished before")
        else:
            going_on = mark is not None and mark.get("key") == key and (folder / STATE).is_file()
            if self.fabric.is_global_zero:
                files.write_json(folder / MARK, {"key": key, "finished": False})
            self.console.print(f"{name}: training on {len(rest)} frames, without {', '.join(blocks)}")
            with self.told(self.console, config, len(rest)) as tell:
                trained = train(
                    config,
                    self.store,
                    rest,
                    self.validation_samples,
                    normalisation,
                    folder,
                    key,
                    going_on,
                    tell,
                    self.fabric,
                )
            if self.fabric.is_global_zero:
                files.write_bytes(folder / WEIGHTS, save_safetensors(trained.tensors))
                files.write_json(folder / MARK, {"key": key, "finished": True})
        if not self.fabric.is_global_zero:
            return None
        return self._judged(blocks, folder / WEIGHTS, own, rest, normalisation)

    def _config(self) -> TrainingConfig:
        """A fold's configuration: the model's, with its own number of passes."""
        calibration, epochs = self.config.calibration, self.config.calibration.fold_epochs
        optimizer = self.config.optimizer.model_copy(update={"epochs": epochs} if epochs else {})
        plain = calibration.model_copy(update={"folds": [], "fold_epochs": 0})
        return self.config.model_copy(update={"optimizer": optimizer, "calibration": plain})

    def _judged(
        self,
        blocks: list[str],
        weights: Path,
        own: NDArray[np.int64],
        rest: NDArray[np.int64],
        normalisation: Normalisation,
    ) -> Fold:
        runtime = stored_runtime(self.config, read_tensors(weights)[0], normalisation, weights)
        measure_belief(runtime, self.store, own)
        errors = validate(runtime, self.config.network, self.store, own)
        known = (
            measure_neighbours(runtime, self.config.network, self.store, rest)
            if self.config.calibration.neighbours
            else {}
        )
        frames = calibration_frames(errors, known, block_numbers(self.store, self.config.data, blocks))
        scores = {"blocks": blocks, **{mode.value: error.summary() for mode, error in errors.items()}}
        return Fold(blocks, frames, scores)


def stored_runtime(
    config: TrainingConfig, tensors: dict[str, Tensor], normalisation: Normalisation, source: Path
) -> Runtime:
    """A runtime for weights as they are stored, which half of them are at half precision.

    Raises:
        CheckpointError: they are not of the configuration's network.
    """
    network = build_network(config.network)
    fill_network(network, {name: t.float() if t.dtype is torch.float16 else t for name, t in tensors.items()}, source)
    return build_runtime(network, normalisation, config.calibration.latent_samples, choose_device(config.device)[0])


def read_mark(folder: Path) -> dict[str, Any] | None:
    """What is known of a fold's folder; None where there is nothing that can be understood."""
    try:
        mark = json.loads((folder / MARK).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return mark if isinstance(mark, dict) else None
