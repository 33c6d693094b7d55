"""The training loop: it learns, is reproducible, resumes exactly, and stops on NaN by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pictures import build, tiny_config

from vmloc_ros.batches import measure_normalisation
from vmloc_ros.checkpoint import METRICS
from vmloc_ros.errors import CheckpointError, TrainingError
from vmloc_ros.losses import geometric_loss
from vmloc_ros.networks.vmloc import VMLoc
from vmloc_ros.runtimes.torch import TorchRuntime
from vmloc_ros.samples import SampleStore
from vmloc_ros.training import BAD_BATCH, Trained, learning_rate, read_rows, train
from vmloc_ros.training_config import OptimizerConfig, TrainingConfig
from vmloc_ros.training_state import STATE
from vmloc_ros.types import Mode
from vmloc_ros.validation import validate
from vmloc_ros.weight_average import WeightAverage


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> SampleStore:
    return build(tmp_path_factory.mktemp("store") / "cache", tiny_config(), 24)[0]


class PowerCutError(Exception):
    """Stands for the power going out."""


def run(store: SampleStore, out: Path, config: TrainingConfig | None = None, **more: Any) -> Trained:
    config = config or tiny_config()
    indices = np.arange(len(store))
    normalisation = measure_normalisation(store, indices[:16])
    more.setdefault("key", "key")
    return train(config, store, indices[:16], indices[16:], normalisation, out, **more)


def same(a: Trained, b: Trained) -> bool:
    return set(a.tensors) == set(b.tensors) and all(torch.equal(a.tensors[name], b.tensors[name]) for name in a.tensors)


@pytest.mark.parametrize("presence_as", ["drawn", "weighted"])
def test_same_seed_same_weights(store: SampleStore, tmp_path: Path, presence_as: str) -> None:
    config = tiny_config(objective={"presence_as": presence_as})
    one, two = run(store, tmp_path / "one", config), run(store, tmp_path / "two", config)
    assert same(one, two)
    other = run(store, tmp_path / "three", tiny_config(seed=1, objective={"presence_as": presence_as}))
    assert not same(one, other)


@pytest.mark.parametrize(
    ("stop_at", "optimizer"),  # in the third epoch and the fourth; checkpoints are after the second
    [(5, {}), (6, {"ema": 0.9}), (7, {"algorithm": "adam", "schedule": "constant"})],
)
def test_resuming_gives_the_same_weights(store: SampleStore, tmp_path: Path, stop_at: int, optimizer: dict) -> None:
    config = tiny_config(optimizer=optimizer)
    whole = run(store, tmp_path / "whole", config)

    def cut(step: int, row: dict) -> None:
        if step == stop_at:
            raise PowerCutError

    with pytest.raises(PowerCutError):
        run(store, tmp_path / "cut", config, tell=cut)
    resumed = run(store, tmp_path / "cut", config, resume=True)
    assert same(whole, resumed)
    assert resumed.progress.epoch == 4
    metrics = [read_rows(tmp_path / name / METRICS, 10) for name in ("whole", "cut")]
    assert [row["loss"] for row in metrics[0]] == [row["loss"] for row in metrics[1]]
    again = run(store, tmp_path / "cut", config, resume=True)  # of a finished one: nothing is left to do
    assert same(whole, again)


def test_resuming_refuses_what_does_not_fit(store: SampleStore, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nothing to resume"):
        run(store, tmp_path, resume=True)
    run(store, tmp_path)
    with pytest.raises(CheckpointError, match="another configuration"):
        run(store, tmp_path, resume=True, key="other")
    content = (tmp_path / STATE).read_bytes()
    (tmp_path / STATE).write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match="truncated"):
        run(store, tmp_path, resume=True)


def test_a_tiny_network_overfits_eight_samples(tmp_path: Path) -> None:
    off = dict.fromkeys(
        ("brightness", "contrast", "colour", "noise", "erase_chance", "depth_noise", "depth_dropout"), 0.0
    )
    config = tiny_config(
        augmentation={**off, "margin": 0.0},
        network={"dropout": 0.0},
        objective={"presence_as": "weighted"},
        optimizer={"epochs": 10, "batch_size": 8, "validate_every": 10, "peak_learning_rate": 5e-3},
    )
    store, normalisation = build(tmp_path / "cache", config, 8)
    indices = np.arange(8)
    trained = train(config, store, np.tile(indices, 25), indices, normalisation, tmp_path, "key")
    network = VMLoc(config.network)
    network.load_state_dict({k: v.float() if v.dtype is torch.float16 else v for k, v in trained.tensors.items()})
    errors = validate(TorchRuntime(network, normalisation, 4), config.network, store, indices)
    assert set(errors) == {Mode.RGB_DEPTH, Mode.RGB_ONLY, Mode.DEPTH_ONLY}
    for mode, error in errors.items():
        assert error.position_m.mean() < 0.25, mode  # of a route of 4 m
        assert error.rotation_deg.mean() < 3.0, mode


def test_the_best_validation_is_kept(store: SampleStore, tmp_path: Path) -> None:
    trained = run(store, tmp_path, tiny_config(optimizer={"epochs": 6, "validate_every": 1}))
    scores = [row["score"] for row in trained.rows]
    assert trained.progress.best_epoch == 1 + int(np.argmin(scores))
    assert trained.progress.best_score == min(scores)


def test_training_stops_early_and_stays_stopped(
    store: SampleStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two validations in a row without a better score end it; resuming does not begin again."""
    scores = iter([3.0, 1.0, 2.0, 1.5])
    monkeypatch.setattr("vmloc_ros.training.overall", lambda errors: next(scores))
    config = tiny_config(optimizer={"epochs": 9, "validate_every": 1, "patience": 2})
    trained = run(store, tmp_path, config)
    assert (trained.progress.epoch, trained.progress.best_epoch) == (4, 2)
    again = run(store, tmp_path, config, resume=True)
    assert same(trained, again)


def test_the_average_of_the_weights_is_what_is_kept(store: SampleStore, tmp_path: Path) -> None:
    """Same steps, other weights; with a decay of next to nothing the average is the weights themselves."""
    plain = run(store, tmp_path / "plain")
    nearly, slow = (run(store, tmp_path / str(d), tiny_config(optimizer={"ema": d})) for d in (1e-12, 0.9))
    assert [row["loss"] for row in slow.rows] == [row["loss"] for row in plain.rows]
    assert same(nearly, plain)
    assert not same(slow, plain)


def test_weight_average_is_the_exponential_one() -> None:
    network = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    follower = WeightAverage(network, 0.5)
    expected = {name: tensor.clone().double() for name, tensor in network.state_dict().items()}
    for step in range(20):
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(torch.randn_like(parameter))
        network(torch.randn(8, 2))
        follower.update(step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = {k: decay * v + (1 - decay) * network.state_dict()[k] for k, v in expected.items()}
    average = follower.network.state_dict()
    for name in ("0.weight", "1.running_var", "1.bias"):
        assert torch.allclose(average[name].double(), expected[name], atol=1e-5)
    assert average["1.num_batches_tracked"] == 20
    assert not any(p.requires_grad for p in follower.network.parameters())


def test_single_modality_networks_train(store: SampleStore, tmp_path: Path) -> None:
    trained = run(store, tmp_path, tiny_config(network={"modalities": ["depth"]}))
    assert not any(name.startswith("encoders.rgb") for name in trained.tensors)
    assert "DEPTH_ONLY_mean_m" in trained.rows[-1]
    assert "RGB_ONLY_mean_m" not in trained.rows[-1]


def test_nan_stops_with_the_names(store: SampleStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0

    def poisoned(*arguments: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return geometric_loss(*arguments) * (float("nan") if calls == 6 else 1.0)

    monkeypatch.setattr("vmloc_ros.objective.geometric_loss", poisoned)
    with pytest.raises(TrainingError, match=r"epoch 3.*bad_batch\.txt"):
        run(store, tmp_path)
    names = (tmp_path / BAD_BATCH).read_text().split()
    assert len(names) == 8
    assert set(names) <= {store.name(index) for index in range(16)}
    assert (tmp_path / STATE).is_file()  # the checkpoint after the second epoch


def test_a_gradient_that_is_not_finite_stops_before_it_reaches_the_weights(
    store: SampleStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss is a number, its gradient is not; what the last checkpoint holds is what a resumption goes on with."""
    whole, calls = run(store, tmp_path / "whole"), 0

    def poisoned(*arguments: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        loss = geometric_loss(*arguments)
        return loss + (0.0 * loss).sqrt() if calls == 6 else loss

    with monkeypatch.context() as patch:
        patch.setattr("vmloc_ros.objective.geometric_loss", poisoned)
        with pytest.raises(TrainingError, match=r"the gradient is not finite in epoch 3.*bad_batch\.txt"):
            run(store, tmp_path / "bad")
    assert len((tmp_path / "bad" / BAD_BATCH).read_text().split()) == 8
    assert same(whole, run(store, tmp_path / "bad", resume=True))


def test_too_few_samples(store: SampleStore, tmp_path: Path) -> None:
    indices = np.arange(len(store))
    normalisation = measure_normalisation(store, indices)
    with pytest.raises(TrainingError, match="too few"):
        train(tiny_config(), store, indices[:1], indices[1:], normalisation, tmp_path, "key")


def test_one_cycle_rises_and_falls() -> None:
    config = OptimizerConfig(peak_learning_rate=1e-3, warm_up=0.2)
    rates = [learning_rate(step, 100, config) for step in range(101)]
    assert rates[0] == pytest.approx(4e-5)
    assert max(rates) == rates[20] == pytest.approx(1e-3)
    assert rates[:21] == sorted(rates[:21])
    assert rates[20:] == sorted(rates[20:], reverse=True)
    assert rates[-1] == pytest.approx(1e-7)
