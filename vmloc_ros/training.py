"""Training in one visible loop: Lightning Fabric for devices and precision, everything else stands here."""

from __future__ import annotations

import csv
import io
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray
from torch import Tensor, nn

from vmloc_ros import files
from vmloc_ros.batches import Batch, BatchMaker, Part, epoch_batches, made_ahead
from vmloc_ros.checkpoint import METRICS, stored
from vmloc_ros.clips import Clips
from vmloc_ros.errors import TrainingError
from vmloc_ros.learning import Learning
from vmloc_ros.machines import failures_in_words, in_first_process, start, total
from vmloc_ros.networks.config import Normalisation
from vmloc_ros.networks.synchronised import synchronise
from vmloc_ros.objectives import build_objective
from vmloc_ros.runtimes.build import build_runtime
from vmloc_ros.samples import SampleStore
from vmloc_ros.training_config import OptimizerConfig, TrainingConfig
from vmloc_ros.training_state import Progress, State, load_state, save_state
from vmloc_ros.trunk_weights import load_trunk_weights
from vmloc_ros.types import Mode
from vmloc_ros.validation import ModeErrors, validate
from vmloc_ros.weight_average import WeightAverage

BAD_BATCH = "bad_batch.txt"
Row = dict[str, float | int | str]


@dataclass(frozen=True, eq=False)
class Trained:
    """What a training leaves behind.

    Attributes:
        tensors: the best weights, as they will be stored.
        progress: how it went.
        rows: metrics per epoch.
    """

    tensors: dict[str, Tensor]
    progress: Progress
    rows: list[Row]


def learning_rate(step: int, steps: int, config: OptimizerConfig) -> float:
    """Constant, or one cycle: a cosine up from peak/25, then down to peak/10^4 (Smith and Topin, arXiv:1708.07120).

    A pure function of the step, so that resuming needs no state.
    """
    if config.schedule == "constant":
        return config.peak_learning_rate
    peak, turn = config.peak_learning_rate, max(1.0, config.warm_up * steps)
    if step < turn:
        low, high, share = peak / 25.0, peak, step / turn
    else:
        low, high, share = peak, peak * 1e-4, (step - turn) / max(1.0, steps - turn)
    return low + (high - low) * 0.5 * (1.0 - math.cos(math.pi * min(1.0, share)))


def build_optimizer(parameters: Iterable[nn.Parameter], config: OptimizerConfig, device: str) -> torch.optim.Optimizer:
    """AdamW or Adam; weight decay on matrices and kernels only.

    On the CPU in one pass over the weights, several times as fast. That pass takes weight, gradient and moments to be
    laid out in memory alike, which `load_state` sees to.
    """
    parameters = list(parameters)
    matrices = [p for p in parameters if p.ndim >= 2]
    vectors = [p for p in parameters if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    algorithm = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}[config.algorithm]
    return algorithm(groups, lr=config.peak_learning_rate, fused=True if device == "cpu" else None)


def train(
    config: TrainingConfig,
    store: SampleStore,
    train_samples: NDArray[np.int64],
    validation_samples: NDArray[np.int64],
    normalisation: Normalisation,
    out: Path,
    key: str,
    resume: bool = False,
    tell: Callable[[int, Row], None] = lambda step, row: None,
    fabric: Fabric | None = None,
) -> Trained:
    """Trains from scratch, or from the last whole checkpoint.

    Args:
        config: everything it depends on, besides the samples.
        train_samples, validation_samples: indices into the store; without the latter the last weights are the best.
        out: metrics and checkpoints go there, each atomically; only the first process writes.
        key: of configuration and data; a state of another key is not resumed.
        tell: called after every step with the number of steps done and the epoch's row so far.
        fabric: as `machines.start` gives it, which is also the default.

    Returns:
        What it leaves behind; in processes other than the first, no tensors.

    Raises:
        TrainingError: too few samples, or a loss or gradient that is not finite (the batch's samples are saved by
            name), a full disk, too little memory, or another process's death.
        CheckpointError: nothing to resume, or of another configuration.
        ConfigError, SetupError: a device or precision that is not there.
    """
    if len(train_samples) < 2:
        raise TrainingError(f"{len(train_samples)} training samples are too few; check data.train and data.hold_out")
    with failures_in_words(out):
        fabric = fabric or start(config)
        loop = _Loop(config, store, train_samples, normalisation, out, fabric, resume)
        if resume:
            loop.restore(key)
        return loop.run(validation_samples, key, tell)


def training_step(
    fabric: Fabric,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    importance: bool,
    clip_norm: float,
    task: str = "",
) -> tuple[float, float, str]:
    """One step of a `Learning` and one of its optimizers, as `fabric.setup` gave them.

    Returns:
        The whole batch's loss and bound, and what was not finite ("loss", "gradient" or nothing): then no weight has
        changed.
    """
    own_loss, own_bound = model(batch.to(fabric.device), importance, fabric.world_size > 1, task)
    loss, bound = total(fabric, torch.stack([own_loss, own_bound]))
    if not math.isfinite(loss):
        return loss, bound, "loss"
    model.zero_grad()
    fabric.backward(own_loss * fabric.world_size)  # the processes' gradients are averaged, and these add up
    for part in cast(Learning, model.module).unseen(batch):
        part.zero_grad()  # zeros are not the same as none: no moment or weight decays without a sample
    norm = fabric.clip_gradients(model, optimizer, max_norm=clip_norm, error_if_nonfinite=False)
    scaler = getattr(fabric.strategy.precision, "scaler", None)  # it leaves out a step that overflows, and scales less
    if scaler is None and norm is not None and not math.isfinite(norm.item()):
        return loss, bound, "gradient"
    optimizer.step()
    return loss, bound, ""


class _Loop:
    """A training under way, in one process."""

    def __init__(
        self,
        config: TrainingConfig,
        store: SampleStore,
        samples: NDArray[np.int64],
        normalisation: Normalisation,
        out: Path,
        fabric: Fabric,
        resume: bool,
    ) -> None:
        clips = Clips(store, samples, config.objective.clip) if config.objective.clip.frames > 1 else None
        samples = samples if clips is None else clips.usable
        self._config, self._store, self._samples, self._out = config, store, samples, out
        self._normalisation, self._fabric = normalisation, fabric
        self._maker = BatchMaker(store, config, normalisation, Part(fabric.global_rank, fabric.world_size), clips)
        if len(epoch_batches(samples, config, 0)[-1]) < fabric.world_size:
            raise TrainingError(
                f"batches of {config.optimizer.batch_size} cannot be shared by {fabric.world_size} processes: raise "
                "optimizer.batch_size"
            )
        torch.manual_seed(config.seed)
        objective = build_objective(config)
        if not resume:  # the first process's weights become everyone's
            objective.begin(store, samples, normalisation)
            in_first_process(fabric, lambda: load_trunk_weights(objective.network, config.trunk_weights))
        if fabric.world_size > 1:
            synchronise(objective)
        averaged = config.optimizer.ema and fabric.is_global_zero
        self._average = WeightAverage(objective.network, config.optimizer.ema) if averaged else None
        self._objective = objective
        tasks = objective.tasks()
        optimizers = [build_optimizer(some, config.optimizer, fabric.device.type) for some in tasks.values()]
        self._model, *ready = fabric.setup(objective, *optimizers)
        self._optimizers = dict(zip(tasks, ready, strict=True))
        self._judged = self._average.network.to(fabric.device) if self._average else objective.network
        self._progress, self._best, self._rows = Progress(), dict[str, Tensor](), list[Row]()

    def restore(self, key: str) -> None:
        """Goes back to the last whole checkpoint. Raises CheckpointError as `load_state`."""
        average = self._average.network if self._average else None
        state = load_state(self._out, key, self._objective, list(self._optimizers.values()), average)
        self._progress, self._best = state.progress, state.best
        self._fabric.strategy.precision.load_state_dict(state.precision)
        self._rows = read_rows(self._out / METRICS, self._progress.epoch)

    def run(self, validation: NDArray[np.int64], key: str, tell: Callable[[int, Row], None]) -> Trained:
        """The epochs that are left; the first process judges and writes after every one of them."""
        config, progress, fabric = self._config.optimizer, self._progress, self._fabric
        while progress.epoch < config.epochs and not self._has_converged():
            started = time.monotonic()
            row = self._epoch(progress.epoch, tell)
            progress.epoch += 1
            if fabric.is_global_zero:
                judge = progress.epoch == config.epochs or progress.epoch % config.validate_every == 0
                if judge:
                    row |= self._judge(validation)
                progress.seconds += time.monotonic() - started
                self._rows.append(row)
                write_rows(self._out / METRICS, self._rows)
                if judge:
                    self._save(key)
        best = self._best if fabric.is_global_zero else {}
        return Trained({k: stored(v, self._config.storage) for k, v in best.items()}, progress, self._rows)

    def _has_converged(self) -> bool:
        """Whether validations have not improved for too long; the first process knows, and the others learn it here."""
        enough = 0 < self._config.optimizer.patience <= self._progress.unimproved
        vote = torch.tensor([float(enough and self._fabric.is_global_zero)], device=self._fabric.device)
        return total(self._fabric, vote)[0] > 0.0

    def _epoch(self, epoch: int, tell: Callable[[int, Row], None]) -> Row:
        """One pass over the samples; returns its metrics."""
        config = self._config
        torch.manual_seed(int(np.random.default_rng((config.seed, epoch, 1)).integers(2**62)))  # dropout, latent noise
        batches = epoch_batches(self._samples, config, epoch)
        steps = len(batches) * config.optimizer.epochs
        losses, bounds, waited, started = list[float](), list[float](), 0.0, time.monotonic()
        self._model.train()
        asked = time.monotonic()
        row: Row = {"epoch": epoch + 1}
        for index, batch in enumerate(made_ahead(self._maker, batches, (config.seed, epoch, 2))):
            waited += time.monotonic() - asked
            step = epoch * len(batches) + index
            rate = learning_rate(step, steps, config.optimizer)
            task = list(self._optimizers)[step % len(self._optimizers)]
            optimizer = self._optimizers[task]
            for group in optimizer.param_groups:
                group["lr"] = rate
            importance = step >= config.objective.importance_after * steps
            loss, bound, problem = training_step(
                self._fabric, self._model, optimizer, batch, importance, config.optimizer.clip_norm, task
            )
            if problem:
                self._refuse(batches[index], problem, epoch)
            if self._average is not None:
                self._average.update(step)
            losses.append(loss)
            bounds.append(bound)
            row |= {"learning_rate": rate, "loss": float(np.mean(losses)), "bound": float(np.mean(bounds))}
            tell(step + 1, row)
            asked = time.monotonic()
        seconds = time.monotonic() - started
        speed: Row = {"samples_per_s": len(self._samples) / seconds, "data_wait_share": waited / seconds}
        return row | self._objective.scales() | speed

    def _refuse(self, samples: NDArray[np.int64], what: str, epoch: int) -> None:
        """Saves the names of a batch whose loss or gradient is not finite, and stops."""
        names = [self._store.name(int(index)) for index in samples]
        if self._fabric.is_global_zero:
            files.write_text(self._out / BAD_BATCH, "\n".join(names) + "\n")
        raise TrainingError(
            f"the {what} is not finite in epoch {epoch + 1}; the batch's {len(names)} samples ({names[0]}, ...) are "
            f"named in {self._out / BAD_BATCH}; the last checkpoint is kept: lower optimizer.peak_learning_rate or "
            "remove bad samples"
        )

    def _judge(self, validation: NDArray[np.int64]) -> Row:
        """Validates, and keeps the weights if they are the best so far. Returns the validation's metrics."""
        errors = self._validated(validation)
        progress = self._progress
        score = overall(errors) if errors else -float(progress.epoch)
        if progress.best_score is None or score <= progress.best_score:
            progress.best_score, progress.best_epoch, progress.unimproved = score, progress.epoch, 0
            self._best = {name: tensor.detach().cpu().clone() for name, tensor in self._judged.state_dict().items()}
        else:
            progress.unimproved += 1
        return _validation_row(errors, score)

    def _validated(self, samples: NDArray[np.int64]) -> dict[Mode, ModeErrors]:
        """Validation errors; nothing where there is no validation data."""
        if not len(samples):
            return {}
        device = str(next(self._judged.parameters()).device)
        latent = self._config.calibration.latent_samples
        runtime = build_runtime(self._judged, self._normalisation, latent, device)
        return validate(runtime, self._config.network, self._store, samples, with_refused=True)

    def _save(self, key: str) -> None:
        """The checkpoint to resume from."""
        average = self._average.network if self._average else None
        state = State(self._progress, self._best, self._fabric.strategy.precision.state_dict())
        save_state(self._out, key, self._objective, list(self._optimizers.values()), state, average)


def overall(errors: dict[Mode, ModeErrors]) -> float:
    """One number to choose the best weights by: the mean logarithm of all modes' mean errors."""
    means = [value for mode in errors.values() for value in (mode.position_m.mean(), mode.rotation_deg.mean())]
    return float(np.log(np.maximum(means, 1e-9)).mean())


def _validation_row(errors: dict[Mode, ModeErrors], score: float) -> Row:
    if not errors:
        return {"score": ""}
    row: Row = {"score": score}
    for mode, error in errors.items():
        row[f"{mode.value}_mean_m"] = float(error.position_m.mean())
        row[f"{mode.value}_median_m"] = float(np.median(error.position_m))
        row[f"{mode.value}_mean_deg"] = float(error.rotation_deg.mean())
        row[f"{mode.value}_median_deg"] = float(np.median(error.rotation_deg))
    return row


def write_rows(path: Path, rows: list[Row]) -> None:
    """Metrics as CSV, atomically."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    files.write_text(path, text.getvalue())


def read_rows(path: Path, epochs: int) -> list[Row]:
    """The first `epochs` rows of a metrics file; none where there is no such file."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as stream:
        rows = [{k: v for k, v in row.items() if v != ""} for row in csv.DictReader(stream)]
    return [dict(row) for row in rows[:epochs]]
