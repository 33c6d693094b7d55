"""Training in one visible loop: Lightning Fabric for devices and precision, everything else stands here."""

from __future__ import annotations

import csv
import io
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray
from torch import Tensor, nn

from vmloc_ros import files
from vmloc_ros.batches import Batch, BatchMaker
from vmloc_ros.checkpoint import METRICS, stored
from vmloc_ros.errors import TrainingError
from vmloc_ros.networks.config import Normalisation
from vmloc_ros.networks.vmloc import VMLoc
from vmloc_ros.objective import CASES, Objective
from vmloc_ros.runtimes.torch import TorchRuntime
from vmloc_ros.samples import SampleStore
from vmloc_ros.training_config import OptimizerConfig, TrainingConfig
from vmloc_ros.training_state import Progress, load_state, save_state
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


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """AdamW or Adam; weight decay on matrices and kernels only."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    algorithm = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}[config.algorithm]
    return algorithm(groups, lr=config.peak_learning_rate)


def epoch_batches(samples: NDArray[np.int64], config: TrainingConfig, epoch: int) -> list[NDArray[np.int64]]:
    """This epoch's batches of sample indices, of nearly equal size, shuffled by seed and epoch alone."""
    order = np.random.default_rng((config.seed, epoch)).permutation(samples)
    return np.array_split(order, max(1, round(len(order) / config.optimizer.batch_size)))


def made_ahead(maker: BatchMaker, batches: list[NDArray[np.int64]], seed: tuple[int, ...]) -> Iterator[Batch]:
    """The epoch's batches; each is made by a second thread while the step before it runs."""
    with ThreadPoolExecutor(1) as pool:
        upcoming: Future[Batch] = pool.submit(maker.make, batches[0], (*seed, 0))
        for index in range(len(batches)):
            batch = upcoming.result()
            if index + 1 < len(batches):
                upcoming = pool.submit(maker.make, batches[index + 1], (*seed, index + 1))
            yield batch


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
) -> Trained:
    """Trains from scratch, or from the last whole checkpoint.

    Args:
        config: everything it depends on, besides the samples.
        train_samples, validation_samples: indices into the store; without the latter the last weights are the best.
        out: metrics and checkpoints go there, each atomically.
        key: of configuration and data; a state of another key is not resumed.
        tell: called after every step with the number of steps done and the epoch's row so far.

    Raises:
        TrainingError: too few samples, or a loss that is not finite (the batch's samples are saved by name).
        CheckpointError: nothing to resume, or of another configuration.
    """
    if len(train_samples) < 2:
        raise TrainingError(f"{len(train_samples)} training samples are too few; check data.train and data.hold_out")
    torch.manual_seed(config.seed)
    fabric = Fabric(accelerator=config.device, devices=1, precision=config.precision)
    objective = Objective(VMLoc(config.network).to(memory_format=torch.channels_last), config.objective)  # type: ignore[call-overload]
    if not resume:
        load_trunk_weights(objective.network, config.trunk_weights)
    optimizer = build_optimizer(objective, config.optimizer)
    average = WeightAverage(objective.network, config.optimizer.ema) if config.optimizer.ema else None
    judged = average.network if average else objective.network
    progress, best, rows = Progress(), dict[str, Tensor](), list[Row]()
    if resume:
        progress, best = load_state(out, key, objective, optimizer, average.network if average else None)
        rows = read_rows(out / METRICS, progress.epoch)
    model, optimizer = fabric.setup(objective, optimizer)
    judged.to(fabric.device)
    maker = BatchMaker(store, config, normalisation)
    for epoch in range(progress.epoch, config.optimizer.epochs):
        if 0 < config.optimizer.patience <= progress.unimproved:
            break
        started = time.monotonic()
        row = _epoch(fabric, model, optimizer, maker, config, epoch, train_samples, store, out, tell, average)
        last = epoch + 1 == config.optimizer.epochs
        if last or (epoch + 1) % config.optimizer.validate_every == 0:
            errors = _validated(judged, config, normalisation, store, validation_samples)
            score = overall(errors) if errors else -float(epoch)
            row |= _validation_row(errors, score)
            if progress.best_score is None or score <= progress.best_score:
                progress.best_score, progress.best_epoch, progress.unimproved = score, epoch + 1, 0
                best = {name: tensor.detach().cpu().clone() for name, tensor in judged.state_dict().items()}
            else:
                progress.unimproved += 1
        progress.epoch = epoch + 1
        progress.seconds += time.monotonic() - started
        rows.append(row)
        write_rows(out / METRICS, rows)
        if "score" in row or last:
            save_state(out, key, objective, optimizer, best, progress, average.network if average else None)
    return Trained({name: stored(tensor, config.storage) for name, tensor in best.items()}, progress, rows)


def _epoch(
    fabric: Fabric,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    maker: BatchMaker,
    config: TrainingConfig,
    epoch: int,
    samples: NDArray[np.int64],
    store: SampleStore,
    out: Path,
    tell: Callable[[int, Row], None],
    average: WeightAverage | None,
) -> Row:
    """One pass over the samples; returns its metrics."""
    torch.manual_seed(int(np.random.default_rng((config.seed, epoch, 1)).integers(2**62)))  # dropout, latent noise
    batches = epoch_batches(samples, config, epoch)
    steps = len(batches) * config.optimizer.epochs
    losses, bounds, waited, started = list[float](), list[float](), 0.0, time.monotonic()
    model.train()
    asked = time.monotonic()
    row: Row = {"epoch": epoch + 1}
    for index, batch in enumerate(made_ahead(maker, batches, (config.seed, epoch, 2))):
        waited += time.monotonic() - asked
        step = epoch * len(batches) + index
        rate = learning_rate(step, steps, config.optimizer)
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss, bound = model(batch.to(fabric.device), step >= config.objective.importance_after * steps)
        if not math.isfinite(loss.item()):
            _refuse(batch, store, out, epoch)
        optimizer.zero_grad()
        fabric.backward(loss)
        fabric.clip_gradients(model, optimizer, max_norm=config.optimizer.clip_norm, error_if_nonfinite=False)
        optimizer.step()
        if average is not None:
            average.update(step)
        losses.append(loss.item())
        bounds.append(bound.item())
        row |= {"learning_rate": rate, "loss": float(np.mean(losses)), "bound": float(np.mean(bounds))}
        tell(step + 1, row)
        asked = time.monotonic()
    seconds = time.monotonic() - started
    weights: Row = {}
    for name, values in model.named_parameters():
        kind = name.rpartition(".")[2]
        if kind in ("beta", "gamma"):
            suffixes = [f"_{case.value}" for case in CASES] if len(values) > 1 else [""]
            weights |= {kind + suffix: float(v) for suffix, v in zip(suffixes, values.detach(), strict=True)}
    return row | weights | {"samples_per_s": len(samples) / seconds, "data_wait_share": waited / seconds}


def _refuse(batch: Batch, store: SampleStore, out: Path, epoch: int) -> None:
    """Saves the names of a batch whose loss is not finite, and stops."""
    names = [store.name(int(index)) for index in batch.samples]
    files.write_text(out / BAD_BATCH, "\n".join(names) + "\n")
    raise TrainingError(
        f"the loss is not finite in epoch {epoch + 1}; the batch's {len(names)} samples ({names[0]}, ...) are named in "
        f"{out / BAD_BATCH}; the last checkpoint is kept: lower optimizer.peak_learning_rate or remove bad samples"
    )


def stored_runtime(network: VMLoc, config: TrainingConfig, normalisation: Normalisation, device: str) -> TorchRuntime:
    """A runtime for a network."""
    return TorchRuntime(network, normalisation, config.calibration.latent_samples, device)


def _validated(
    network: VMLoc, config: TrainingConfig, normalisation: Normalisation, store: SampleStore, samples: NDArray[np.int64]
) -> dict[Mode, ModeErrors]:
    """Validation errors of a network in training; nothing where there is no validation data."""
    if not len(samples):
        return {}
    device = str(next(network.parameters()).device)
    errors = validate(stored_runtime(network, config, normalisation, device), config.network, store, samples)
    return errors


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
