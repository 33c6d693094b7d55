"""Training on several processes: real ones, with gloo on the CPU, against one process."""

from __future__ import annotations

import copy
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pictures import START_NS, drive, frame_at, tiny_config
from safetensors.torch import load_file
from scene_pictures import scene_config, wall_store
from torch import distributed, nn
from training_process import LOSSES, WEIGHTS

from vmloc_ros.batches import BatchMaker, Part, measure_normalisation
from vmloc_ros.checkpoint import METRICS
from vmloc_ros.errors import TrainingError
from vmloc_ros.networks.synchronised import synchronise
from vmloc_ros.networks.vmloc import Present, VMLoc
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


def test_two_processes_learn_scene_coordinates_as_one_does(tmp_path: Path) -> None:
    """Where many frames lack a modality, and with the variational likelihood, whose noise is the whole batch's."""
    store = tmp_path / "store"
    alone_in = {index: ("rgb", "depth")[index % 2] for index in range(FRAMES) if index not in (2, 5, 9)}
    common = {"storage": "float32", "optimizer": {"epochs": 1, "batch_size": 4, "validate_every": 1}}
    drawn = scene_config(objective={"presence_as": "drawn", "scene": {"likelihood": "variational"}}, **common)
    weighted = scene_config(objective={"presence_as": "weighted"}, network={"anchors": 2}, **common)
    wall_store(store, drawn, FRAMES, alone_in)
    trainings = {tmp_path / "drawn": drawn, tmp_path / "weighted": weighted}
    results = launch(trainings, store)
    assert [status for status, _ in results] == [0, 0], results
    for folder, config in trainings.items():
        trained, losses = alone(config, store, tmp_path / f"{folder.name}_alone")
        np.testing.assert_allclose(json.loads((folder / LOSSES).read_text()), losses, rtol=1e-4, atol=1e-4)
        weights = load_file(folder / WEIGHTS)
        assert set(weights) == set(trained.tensors)
        assert torch.equal(weights["anchors"], trained.tensors["anchors"])


def test_a_process_that_dies_ends_the_others_and_the_training_goes_on_where_it_was(
    store_folder: Path, tmp_path: Path
) -> None:
    """One line, not a hang; resumed by two processes, the losses are those of one that was never interrupted."""
    config = config_of(optimizer={"validate_every": 1})
    folder = tmp_path / "cut"
    survivor, dead = launch({folder: config}, store_folder, die_at=5)
    assert dead[0] < 0
    assert survivor[0] == 1
    assert survivor[1].count("\n") == 1
    assert "another process of this training died" in survivor[1]
    results = launch({folder: config}, store_folder, resume=True)
    assert [status for status, _ in results] == [0, 0], results
    _, losses = alone(config, store_folder, tmp_path / "alone")
    np.testing.assert_allclose(json.loads((folder / LOSSES).read_text()), losses[3:], rtol=1e-4, atol=1e-4)


@given(st.integers(1, 40), st.integers(1, 8))
def test_parts_are_the_whole(size: int, processes: int) -> None:
    rows = [row for index in range(processes) for row in Part(index, processes).rows(size)]
    assert rows == list(range(size))
    lengths = [len(Part(index, processes).rows(size)) for index in range(processes)]
    assert max(lengths) - min(lengths) <= 1


@pytest.mark.parametrize("presence_as", ["drawn", "weighted"])
def test_the_parts_of_a_batch_are_the_batch(store_folder: Path, presence_as: str) -> None:
    """Every picture and label is the same, whoever prepares it, and every process knows what the whole batch shows."""
    store, config = open_store(store_folder, "key"), config_of(objective={"presence_as": presence_as})
    assert store is not None
    samples = np.arange(len(store))
    normalisation = measure_normalisation(store, samples)
    whole = BatchMaker(store, config, normalisation).make(samples, (7,))
    parts = [BatchMaker(store, config, normalisation, Part(index, 3)).make(samples, (7,)) for index in range(3)]
    assert torch.equal(torch.cat([part.position_B3 for part in parts]), whole.position_B3)
    assert torch.equal(torch.cat([part.log_quat_B3 for part in parts]), whole.log_quat_B3)
    for name, present in whole.inputs.items():
        assert not present.elsewhere
        assert torch.equal(torch.cat([part.inputs[name].images_NCHW for part in parts]), present.images_NCHW)
        rows = [part.inputs[name].rows_N + part.first for part in parts]
        assert torch.equal(torch.cat(rows), present.rows_N)
    assert {name for part in parts for name in part.inputs} == set(whole.inputs)


def test_batches_too_small_to_share_are_refused(store_folder: Path, tmp_path: Path) -> None:
    store = open_store(store_folder, "key")
    assert store is not None
    samples = np.arange(len(store))
    normalisation = measure_normalisation(store, samples)
    many = SimpleNamespace(global_rank=0, world_size=9)
    with pytest.raises(TrainingError, match=r"cannot be shared by 9 processes.*optimizer\.batch_size"):
        train(config_of(), store, samples, samples, normalisation, tmp_path, "key", fabric=many)  # type: ignore[arg-type]


def test_synchronised_batch_norm_keeps_names_weights_and_evaluation() -> None:
    plain = VMLoc(config_of().network)
    twin = copy.deepcopy(plain)
    synchronise(twin)
    assert list(twin.state_dict()) == list(plain.state_dict())
    assert [name for name, _ in twin.named_parameters()] == [name for name, _ in plain.named_parameters()]
    assert not any(type(module) is nn.BatchNorm2d for module in twin.modules())
    rgb = torch.randn(3, 3, 24, 32)
    inputs = {"rgb": Present(rgb, torch.arange(3))}
    assert torch.equal(plain.eval()(inputs, 3).mean_BD, twin.eval()(inputs, 3).mean_BD)


def test_a_batch_norm_without_counterpart_is_refused() -> None:
    with pytest.raises(TypeError, match="BatchNorm1d"):
        synchronise(nn.Sequential(nn.BatchNorm1d(3)))


@pytest.fixture
def single_process_group() -> Iterator[None]:
    """A group of this process alone: what is summed over it stays what it is."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.usefixtures("single_process_group")
def test_synchronised_batch_norm_is_torchs() -> None:
    """Values, gradients and running statistics for a group of one; two processes are tested above."""
    torch.manual_seed(0)
    plain = nn.Sequential(nn.BatchNorm2d(5))
    nn.init.normal_(plain[0].weight)
    nn.init.normal_(plain[0].bias)
    twin = copy.deepcopy(plain)
    synchronise(twin)
    x = 3.0 + 2.0 * torch.randn(4, 5, 6, 7)
    results = []
    for network in (plain, twin):
        own = x.clone().requires_grad_()
        y = network(own)
        (y * torch.linspace(-1, 1, y.numel()).reshape(y.shape)).sum().backward()
        results.append([y, own.grad, network[0].weight.grad, network[0].bias.grad, *network.buffers()])
    for ours, theirs in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    empty = torch.zeros(0, 5, 6, 7, requires_grad=True)
    twin(empty).sum().backward()  # a part without rows takes part, and spoils nothing
    assert all(bool(torch.isfinite(buffer).all()) for buffer in twin.buffers())
