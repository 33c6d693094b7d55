"""What a training says when the machine cannot go on, and that nothing finished is lost."""

from __future__ import annotations

import errno
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import build, tiny_config

from vmloc_ros.batches import measure_normalisation
from vmloc_ros.errors import ConfigError, SetupError, TrainingError
from vmloc_ros.machines import failures_in_words, start
from vmloc_ros.samples import SampleStore
from vmloc_ros.training import Row, Trained, train


@pytest.fixture(scope="module")
def store_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("store") / "cache"
    return folder


@pytest.fixture(scope="module")
def store(store_folder: Path) -> SampleStore:
    return build(store_folder, tiny_config(), 24)[0]


@pytest.fixture
def fill_disk() -> Iterator[Callable[[], None]]:
    """Makes the disk as good as full: no file may grow beyond 4 KB (Python ignores the signal that comes with it)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_one_line_and_the_last_checkpoint_stays(
    store: SampleStore, tmp_path: Path, fill_disk: Callable[[], None]
) -> None:
    samples = np.arange(len(store))
    normalisation = measure_normalisation(store, samples)

    def run(out: Path, resume: bool = False, tell: Callable[[int, Row], None] = lambda step, row: None) -> Trained:
        return train(tiny_config(), store, samples, samples, normalisation, out, "key", resume, tell)

    def fill_up(step: int, row: Row) -> None:
        if row["epoch"] == 3:  # there is a checkpoint of the second
            fill_disk()

    with pytest.raises(TrainingError, match=r"disk is full.*make room.*--resume"):
        run(tmp_path / "full", tell=fill_up)
    assert not list((tmp_path / "full").rglob("*.part"))
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    resumed, whole = run(tmp_path / "full", resume=True), run(tmp_path / "whole")
    assert all(torch.equal(whole.tensors[name], resumed.tensors[name]) for name in whole.tensors)


def test_too_little_memory_is_one_line(store: SampleStore, store_folder: Path, tmp_path: Path) -> None:
    """In a process whose address space ends 300 MB above what it has when the training begins."""
    config = tiny_config(network={"latent": 2048, "hidden": 2048}, objective={"samples": 2000})
    job = {"store": str(store_folder), "trainings": {str(tmp_path): config.model_dump(mode="json")}}
    job |= {"resume": False, "die_at": -1, "memory_mb": 300}
    (tmp_path / "job.json").write_text(json.dumps(job))
    command = [sys.executable, str(Path(__file__).with_name("training_process.py")), str(tmp_path / "job.json")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "too little memory: lower optimizer.batch_size" in done.stderr


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "the disk is full"),
        (MemoryError("Unable to allocate 3.1 GiB for an array"), "too little memory.*3.1 GiB"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), "too little memory.*2.00 GiB"),
    ],
)
def test_failures_of_the_machine_are_put_in_words(error: Exception, message: str, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=message), failures_in_words(tmp_path):
        raise error


@pytest.mark.parametrize("error", [FileNotFoundError(errno.ENOENT, "no"), RuntimeError("shapes"), ValueError("value")])
def test_other_errors_stay_what_they_are(error: Exception, tmp_path: Path) -> None:
    with pytest.raises(type(error)) as caught, failures_in_words(tmp_path):
        raise error
    assert caught.value is error


def test_a_gpu_that_is_not_there_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SetupError, match="no GPU: set device to cpu"):
        start(tiny_config(device="cuda"))
    assert start(tiny_config(device="auto")).device.type == "cpu"


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SetupError, match="2 processes on this machine, but 1 GPUs"):
        start(tiny_config(device="cuda"))


@pytest.mark.parametrize(
    ("values", "message"), [({"device": "tpu"}, "not cpu, cuda or auto"), ({"precision": "16-mixed"}, "needs a GPU")]
)
def test_what_the_cpu_cannot_do_is_refused(values: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        start(tiny_config(**values))


class Echo(torch.nn.Module):
    """Gives back what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def forward(self, targets: torch.Tensor) -> torch.Tensor:
        return targets


def test_labels_are_not_rounded_in_mixed_precision() -> None:
    """In bfloat16 a position of 40 m is off by up to 0.1 m."""
    fabric = start(tiny_config(precision="bf16-mixed"))
    model = fabric.setup(Echo())
    targets = torch.tensor([1.2345678])
    assert torch.equal(model(targets), targets)
