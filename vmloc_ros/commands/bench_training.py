"""How fast a training step is, against the straightforward loop, and what ten latent samples cost over one.

The network is the paper's: two ResNet-34 at 256 x 256 pixels, D = 1024. Our side is the step of `vmloc train`: the
trunks run only on the samples that show their modality (3/5 both, 1/5 and 1/5 one alone, eq. 18), with the channels
last in memory. The straightforward loop is written here from the formulas as the published code goes about it: an
absent modality is a blank picture that is encoded like any other, plain memory layout, plain IWAE gradient, Adam. All
sides run alternately in one process, from pictures that are already prepared.
"""

from __future__ import annotations

import math
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from lightning_fabric import Fabric
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional
from torchvision import models

from vmloc_ros import files
from vmloc_ros.batches import Batch
from vmloc_ros.machines import PrecisionName, precision_of
from vmloc_ros.networks.config import NetworkConfig
from vmloc_ros.networks.vmloc import Present, VMLoc
from vmloc_ros.objective import Objective
from vmloc_ros.training import build_optimizer, training_step
from vmloc_ros.training_config import ObjectiveConfig, OptimizerConfig
from vmloc_ros.types import Modality

RGB, DEPTH = Modality.RGB.value, Modality.DEPTH.value
SCALE = 1e-6
"""lambda of eq. 15 in the published code."""
BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16"}


@dataclass(frozen=True)
class Case:
    """What is measured; frames come in fives, so that 3/5, 1/5 and 1/5 are whole numbers."""

    trunk: str = "resnet34"
    pixels: int = 256
    latent: int = 1024
    frames: int = 10
    samples: int = 10
    precision: PrecisionName = "32-true"


@dataclass(frozen=True, slots=True)
class TrainingRow:
    """Medians over the repetitions of one case.

    Attributes:
        precision: of all sides.
        samples_per_s, reference_samples_per_s: frames per second of our step and of the straightforward one.
        ratio: of these two.
        cost_of_k: our step's time with k latent samples over that with one.
    """

    precision: str
    samples_per_s: float
    reference_samples_per_s: float
    ratio: float
    cost_of_k: float


def bench_training(repeats: int, case: Case | None = None) -> TrainingRow:
    """Times one case; the first turn of every side only warms up."""
    case = case or Case()
    torch.manual_seed(0)
    pictures, position, log_quat = _frames(case)
    sides: list[Callable[[], object]] = [
        our_step(case, pictures, position, log_quat),
        our_step(replace(case, samples=1), pictures, position, log_quat),
        straightforward_step(case, pictures, position, log_quat),
    ]
    times: list[list[float]] = [[], [], []]
    for turn in range(repeats + 1):
        for side, spent in zip(sides, times, strict=True):
            start_s = time.perf_counter()
            side()
            if turn:
                spent.append(time.perf_counter() - start_s)
    ours, ours_k1, theirs = (statistics.median(spent) for spent in times)
    return TrainingRow(case.precision, case.frames / ours, case.frames / theirs, theirs / ours, ours / ours_k1)


def run_bench_training(
    quick: bool = False, json: Path | None = None, console: Console | None = None
) -> list[TrainingRow]:
    """Times float32, and bfloat16 where the CPU has it, prints a table and returns its rows.

    Args:
        quick: two repetitions in place of seven, and float32 alone.
        json: where the rows are written.
        console: where the table is printed.
    """
    console, rows = console or Console(), list[TrainingRow]()
    precisions: list[PrecisionName] = ["32-true"] if quick or not has_bfloat16() else ["32-true", "bf16-mixed"]
    with console.status("timing") as status:
        for precision in precisions:
            status.update(f"timing: training, {precision}")
            rows.append(bench_training(2 if quick else 7, Case(precision=precision)))
    table = Table("training, ResNet-34, 256 px, k = 10", "samples/s", "straightforward", "ratio", "k = 10 / k = 1")
    table.box = SIMPLE_HEAD
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        numbers = (row.samples_per_s, row.reference_samples_per_s, row.ratio, row.cost_of_k)
        table.add_row(f"{row.precision}, {torch.get_num_threads()} threads", *(f"{number:.2f}" for number in numbers))
    console.print(table)
    if json is not None:
        files.write_json(json, {"machine": platform.machine(), "training": [asdict(row) for row in rows]})
        console.print(f"wrote {json}", soft_wrap=True)
    return rows


def has_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 (elsewhere it is slower than float32, and not worth a measurement)."""
    about = Path("/proc/cpuinfo")
    return about.is_file() and bool(BFLOAT16_FLAGS & set(about.read_text(encoding="utf-8").split()))


def _frames(case: Case) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Pictures of both modalities for all frames, and their poses; random, because their content costs nothing."""
    shape = (case.frames, 3, case.pixels, case.pixels)
    pictures = {name: torch.randn(shape) for name in (RGB, DEPTH)}
    return pictures, torch.randn(case.frames, 3), 0.3 * torch.randn(case.frames, 3)


def _shown(case: Case) -> dict[str, Tensor]:
    """Rows that show each modality: the last fifth has no RGB, the fifth before it no depth."""
    fifth = case.frames // 5
    rows = torch.arange(case.frames)
    return {RGB: rows[:-fifth], DEPTH: torch.cat([rows[: -2 * fifth], rows[-fifth:]])}


def our_step(case: Case, pictures: dict[str, Tensor], position: Tensor, log_quat: Tensor) -> Callable[[], object]:
    """The step of `vmloc train`, ready to be called."""
    network = NetworkConfig.model_validate(
        {
            "width": case.pixels, "height": case.pixels, "trunk": case.trunk, "depth_encoding": "image",
            "grid_rows": 1, "grid_columns": 1, "reduced": 0, "latent": case.latent, "hidden": case.latent,
            "dropout": 0.5,
        }
    )  # fmt: skip
    objective = Objective(
        VMLoc(network).to(memory_format=torch.channels_last),  # type: ignore[call-overload]
        ObjectiveConfig(samples=case.samples, latent_weight=SCALE),
    )
    config = OptimizerConfig()
    fabric = Fabric(accelerator="cpu", devices=1, plugins=[precision_of(case.precision, "cpu")])
    model, optimizer = fabric.setup(objective, build_optimizer(objective.parameters(), config, "cpu"))
    inputs = {
        name: Present(pictures[name][rows].contiguous(memory_format=torch.channels_last), rows)
        for name, rows in _shown(case).items()
    }
    batch = Batch(inputs, position, log_quat, np.arange(case.frames), 0, case.frames)
    return lambda: training_step(fabric, model, optimizer, batch, True, config.clip_norm)


# ------------------------------------------------------------------------------------------- the straightforward loop


class StraightforwardNetwork(nn.Module):
    """VMLoc as its published code goes about it: both trunks on every sample, one linear layer per regressor."""

    def __init__(self, trunk: str, latent: int) -> None:
        super().__init__()
        build = {"resnet18": models.resnet18, "resnet34": models.resnet34}[trunk]
        trunks = {name: build(weights=None) for name in (RGB, DEPTH)}
        features = trunks[RGB].fc.in_features
        for network in trunks.values():
            network.fc = nn.Identity()  # type: ignore[assignment]
        self.trunks = nn.ModuleDict(trunks)
        self.means = nn.ModuleDict({name: nn.Linear(features, latent) for name in (RGB, DEPTH)})
        self.raws = nn.ModuleDict({name: nn.Linear(features, latent) for name in (RGB, DEPTH)})
        inner = latent // 8
        self.theta, self.phi, self.g = (nn.Linear(latent, inner) for _ in range(3))
        self.out = nn.Linear(inner, latent)
        self.dropout = nn.Dropout(0.5)
        self.position, self.rotation = nn.Linear(latent, 3), nn.Linear(latent, 3)
        self.beta, self.gamma = nn.Parameter(torch.tensor(0.0)), nn.Parameter(torch.tensor(-3.0))

    def encode(self, pictures: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Mean and variance (B, D) of the product of the prior and both experts, blank pictures included."""
        means, variances = [], []
        for name, picture in pictures.items():
            features = self.trunks[name](picture)
            means.append(self.means[name](features))
            variances.append(functional.softplus(self.raws[name](features)) + 1e-6)
        return product_with_prior(means, variances)

    def decode(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Position and log-quaternion (N, 3) of latent vectors (N, D)."""
        z = torch.tanh(z)
        attention = torch.softmax(self.theta(z)[:, :, None] * self.phi(z)[:, None, :], dim=2)
        z = self.dropout(z + self.out(torch.bmm(attention, self.g(z)[:, :, None])[:, :, 0]))
        return self.position(z), self.rotation(z)


def product_with_prior(means: list[Tensor], variances: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and variance of a product of Gaussians and a standard normal (eqs. 4-5)."""
    precisions = torch.stack([torch.ones_like(means[0]), *(1.0 / variance for variance in variances)])
    weighted = torch.stack([torch.zeros_like(means[0]), *means]) * precisions
    return weighted.sum(dim=0) / precisions.sum(dim=0), 1.0 / precisions.sum(dim=0)


def straightforward_step(
    case: Case, pictures: dict[str, Tensor], position: Tensor, log_quat: Tensor
) -> Callable[[], object]:
    """A step of the straightforward loop (eqs. 6-8, 11, 15 by automatic differentiation alone), ready to be called."""
    network = StraightforwardNetwork(case.trunk, case.latent)
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-5)
    blank = {name: torch.zeros_like(picture) for name, picture in pictures.items()}
    for name, rows in _shown(case).items():
        blank[name][rows] = pictures[name][rows]

    def step() -> float:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=case.precision == "bf16-mixed"):
            mean, variance = network.encode(blank)
            z = mean + variance.sqrt() * torch.randn(case.samples, *mean.shape)
            p, q = (pose.unflatten(0, z.shape[:2]) for pose in network.decode(z.flatten(0, 1)))
            loss = (p - position).abs().mean(dim=2) * torch.exp(-network.beta) + network.beta
            loss = loss + (q - log_quat).abs().mean(dim=2) * torch.exp(-network.gamma) + network.gamma
            prior = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(dim=2)
            posterior = torch.distributions.Normal(mean, variance.sqrt()).log_prob(z).sum(dim=2)
            bound = torch.logsumexp(SCALE * (prior - posterior) - loss, dim=0) - math.log(case.samples)
        loss = -bound.mean()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return loss.item()

    return step
