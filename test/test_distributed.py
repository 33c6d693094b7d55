"""Training on several processes: real ones, with gloo on the CPU, against one process."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pictures import START_NS, drive, frame_at, tiny_config
from safetensors.torch import load_file
from training_process import LOSSES, WEIGHTS

from vmloc_ros.batches import measure_normalisation
from vmloc_ros.checkpoint import METRICS
from vmloc_ros.samples import build_store, open_store
from vmloc_ros.training import Trained, read_rows, train
from vmloc_ros.training_config import TrainingConfig

FRAMES = 13
"""Not a multiple of anything: batches and parts are of unequal size."""


@pytest.fixture(scope="module")
def store_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Frames of which many lack a modality, so that a process's part of a batch may not show it at all."""
    folder: Path = tmp_path_factory.mktemp("store") / "cache"
    frames = list(drive(FRAMES))
    for index in range(FRAMES):
        if index not in (2, 5, 9):
            modality = ("rgb", "depth")[index % 2]
            frames[index] = (frame_at(index / 12, START_NS + index, (modality,)), frames[index][1], "drive")
    build_store(folder, iter(frames), *tiny_config().stored_size(), "key")
    return folder


def config_of(**changes: Any) -> TrainingConfig:
    """Two epochs of three or four steps."""
    optimizer = {"epochs": 2, "batch_size": 4, "validate_every": 2} | changes.pop("optimizer", {})
    return tiny_config(storage="float32", optimizer=optimizer, **changes)


def launch(
    trainings: dict[Path, TrainingConfig], store: Path, resume: bool = False, die_at: int = -1
) -> list[tuple[int, str]]:
    """Runs two processes of `training_process.py`, as torchrun would; gives their exit statuses and errors."""
    job = {
        "store": str(store),
        "trainings": {str(folder): config.model_dump(mode="json") for folder, config in trainings.items()},
        "resume": resume,
        "die_at": die_at,
    }
    for folder in trainings:
        folder.mkdir(exist_ok=True)
    job_file = next(iter(trainings)) / "job.json"
    job_file.write_text(json.dumps(job))
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    command = [sys.executable, str(Path(__file__).with_name("training_process.py")), str(job_file)]
    running = []
    for rank in range(2):
        about = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
        about |= {"RANK": rank, "LOCAL_RANK": rank, "OMP_NUM_THREADS": 1}
        environment = os.environ | {name: str(value) for name, value in about.items()}
        running.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    errors = [process.communicate(timeout=300)[1] for process in running]
    return [(process.returncode, error) for process, error in zip(running, errors, strict=True)]


def alone(config: TrainingConfig, store_folder: Path, out: Path) -> tuple[Trained, list[float]]:
    """The same training in this process, and its loss after every step."""
    store = open_store(store_folder, "key")
    assert store is not None
    losses, samples = list[float](), np.arange(len(store))
    normalisation = measure_normalisation(store, samples)
    trained = train(
        config,
        store,
        samples,
        samples,
        normalisation,
        out,
        "key",
        tell=lambda _, row: losses.append(float(row["loss"])),
    )
    return trained, losses


def test_two_processes_compute_what_one_does(store_folder: Path, tmp_path: Path) -> None:
    """The same losses at equal global batch, step by step, and then the same weights; only the first process writes."""
    scales = {"scales": "per_case"}
    trainings = {
        tmp_path / "drawn": config_of(objective={**scales, "presence_as": "drawn"}),
        tmp_path / "weighted": config_of(objective={**scales, "presence_as": "weighted"}, optimizer={"ema": 0.9}),
    }
    results = launch(trainings, store_folder)
    assert [status for status, _ in results] == [0, 0], results
    assert [error for _, error in results] == ["", ""]
    for folder, config in trainings.items():
        trained, losses = alone(config, store_folder, tmp_path / "alone")
        np.testing.assert_allclose(json.loads((folder / LOSSES).read_text()), losses, rtol=1e-5, atol=1e-5)
        assert len(losses) == 6
        weights = load_file(folder / WEIGHTS)
        assert set(weights) == set(trained.tensors)
        for name, expected in trained.tensors.items():
            # Adam's first steps have the sign of the gradient: where it is next to nothing, rounding decides
            assert (weights[name] - expected).abs().float().mean() < 1e-4, name
        assert len(read_rows(folder / METRICS, 10)) == 2
