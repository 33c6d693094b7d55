"""The device a training runs on, its processes, and what the machine says when it cannot go on, in words."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments import TorchElasticEnvironment
from lightning_fabric.plugins.precision import MixedPrecision, Precision
from lightning_fabric.strategies import DDPStrategy
from torch import Tensor, distributed

from vmloc_ros.errors import ConfigError, SetupError, TrainingError
from vmloc_ros.training_config import TrainingConfig

T = TypeVar("T")

PrecisionName = Literal["32-true", "bf16-mixed", "16-mixed"]

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NO_MEMORY = ("can't allocate memory", "out of memory", "bad_alloc")
"""How torch's allocators and the C++ library put it; none of them has a type of its own."""
LONGEST_WAIT = timedelta(hours=24)
"""How long a process waits for the first one to prepare the data. One that dies ends the others at once."""


def process_count() -> int:
    """How many processes this training has, as torchrun told this one; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def start(config: TrainingConfig) -> Fabric:
    """Lightning Fabric for a configuration's device and precision, joined with the other processes of the training.

    Processes are those that torchrun started (it says so in `WORLD_SIZE`, `RANK` and the like), one per device.

    Raises:
        ConfigError: an unknown device, or a precision that the device has not.
        SetupError: no GPU, or fewer than processes.
    """
    device = _device(config)
    if device == "cpu" and config.precision == "16-mixed":
        raise ConfigError("precision: 16-mixed needs a GPU; on the CPU take bf16-mixed or 32-true")
    count = process_count()
    if count == 1:
        return Fabric(accelerator=device, devices=1, plugins=[precision_of(config.precision, device)])
    here = int(os.environ.get("LOCAL_WORLD_SIZE", count))
    if device == "cuda" and here > torch.cuda.device_count():
        raise SetupError(
            f"{here} processes on this machine, but {torch.cuda.device_count()} GPUs: start one process per GPU "
            "(torchrun --nproc-per-node)"
        )
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    strategy = DDPStrategy(timeout=LONGEST_WAIT)
    fabric = Fabric(
        accelerator=device,
        devices=here,
        num_nodes=count // here,
        strategy=strategy,
        plugins=[precision_of(config.precision, device), TorchElasticEnvironment()],
    )
    fabric.launch()
    return fabric


class MixedInside(MixedPrecision):
    """Mixed precision inside the network alone.

    Fabric's own also rounds every tensor that is handed in. A position of 40 m in bfloat16 is off by up to 0.1 m, and
    these would be the labels.
    """

    def convert_input(self, data: Any) -> Any:
        """What is handed in, as it is: autocast rounds where it multiplies."""
        return data


def precision_of(name: PrecisionName, device: str) -> Precision:
    """How numbers are kept in a training."""
    return Precision() if name == "32-true" else MixedInside(name, device)


def _device(config: TrainingConfig) -> str:
    """Fabric's accelerator: cpu or cuda. Raises as `start`."""
    if config.device not in ("cpu", "cuda", "auto"):
        raise ConfigError(f"device: {config.device!r} is not cpu, cuda or auto")
    if config.device == "cuda" and not torch.cuda.is_available():
        raise SetupError(
            "device is cuda, but PyTorch finds no GPU: set device to cpu or auto, or install the driver and a PyTorch "
            "built for it"
        )
    return "cuda" if config.device != "cpu" and torch.cuda.is_available() else "cpu"


def total(fabric: Fabric, own: Tensor) -> list[float]:
    """The sum of a vector over the processes; all of them must ask."""
    values = own.detach().double()
    if fabric.world_size > 1:
        distributed.all_reduce(values)
    return [float(value) for value in values.tolist()]


def in_first_process(fabric: Fabric, work: Callable[[], T]) -> T | None:
    """Does the work in the first process while the others wait for it; they get None.

    Raises:
        TrainingError: in the others, when the work failed.
    """
    result, failed = None, torch.ones(1, device=fabric.device)
    if fabric.is_global_zero:
        try:
            result = work()
            failed.zero_()
        finally:
            total(fabric, failed)
    elif total(fabric, 0.0 * failed)[0]:
        raise TrainingError(f"process {fabric.global_rank}: the first process stopped; its message says why")
    return result


@contextmanager
def failures_in_words(out: Path) -> Iterator[None]:
    """Turns a full disk, too little memory and another process's death into one line that says what to do.

    Raises:
        TrainingError: instead of those.
    """
    resume = "what was written before is whole: go on with --resume"
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        raise TrainingError(
            f"{error.filename or out}: the disk is full ({error.strerror}); make room, {resume}"
        ) from error
    except (MemoryError, RuntimeError) as error:
        text = str(error)
        if isinstance(error, MemoryError) or any(words in text.lower() for words in NO_MEMORY):
            raise TrainingError(
                "too little memory: lower optimizer.batch_size, objective.samples or the network's size, or take "
                f"precision bf16-mixed ({text.strip().partition(chr(10))[0][:160]}); {resume}"
            ) from error
        if distributed.is_initialized() and ("gloo" in text or isinstance(error, distributed.DistError)):
            raise TrainingError(
                f"process {distributed.get_rank()}: another process of this training died; its message says why, and "
                f"{resume}"
            ) from error
        raise
