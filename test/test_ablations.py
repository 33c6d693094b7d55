"""The paper's ablations are configurations: each builds, trains, is calibrated, saved, loaded, and localizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pictures import build, card_of, frame_at, tiny_config

from vmloc_ros.batches import BatchMaker, measure_normalisation
from vmloc_ros.checkpoint import fill_network, save_model
from vmloc_ros.config import ModelConfig
from vmloc_ros.localizer import load_localizer
from vmloc_ros.losses import geometric_loss
from vmloc_ros.networks.vmloc import VMLoc
from vmloc_ros.objective import Objective
from vmloc_ros.runtimes.torch import TorchRuntime
from vmloc_ros.training import train
from vmloc_ros.types import PoseEstimate
from vmloc_ros.validation import mode_inputs, validate

ABLATIONS: dict[str, dict[str, Any]] = {
    "image": {"network": {"modalities": ["rgb"]}},
    "depth": {"network": {"modalities": ["depth"]}},
    "attention": {"network": {"fusion": "concatenation"}},
    "poe": {"objective": {"samples": 1, "importance_after": 1.0}},
    "vmloc": {"objective": {"samples": 10}},
    "atloc": {"network": {"fusion": "concatenation", "modalities": ["rgb"], "hidden": 0}},
    "as published": {
        "network": {
            "latent_activation": "tanh",
            "hidden": 0,
            "depth_encoding": "image",
            "latent_deviation": "published",
        }
    },
}


@pytest.mark.parametrize("presence_as", ["drawn", "weighted"])
@pytest.mark.parametrize("name", ABLATIONS)
def test_every_ablation_learns_and_localizes(name: str, presence_as: str, tmp_path: Path) -> None:
    changes = ABLATIONS[name]
    config = tiny_config(
        network=changes.get("network", {}),
        objective={**changes.get("objective", {}), "presence_as": presence_as},
        storage="float32",
    )
    store, normalisation = build(tmp_path / "cache", config, 16)
    indices = np.arange(len(store))
    trained = train(config, store, indices, indices, measure_normalisation(store, indices), tmp_path / "out", "key")
    assert trained.rows[-1]["loss"] < trained.rows[0]["loss"]

    network = VMLoc(config.network)
    fill_network(network, trained.tensors, tmp_path)
    errors = validate(TorchRuntime(network, normalisation, 4), config.network, store, indices)
    assert set(errors) == set(mode_inputs(config.network))
    for mode in errors.values():
        assert np.isfinite(mode.scatters_N66).all()
        assert bool(mode.scatters_N66.any()) == (config.network.fusion == "poe")

    save_model(tmp_path / "model", trained.tensors, card_of(config.network, normalisation), "float32")
    localizer = load_localizer(tmp_path / "model", ModelConfig(device="cpu", threads=1))
    localizer.warm_up()
    for mode, shown in mode_inputs(config.network).items():
        modalities = tuple(m for m, there in zip(("rgb", "depth"), shown, strict=True) if there)
        answer = localizer.localize(frame_at(0.3, 5, modalities))
        assert isinstance(answer, PoseEstimate)
        assert answer.mode is mode
        assert np.linalg.eigvalsh(answer.cov_66).min() > 0.0
        assert sum(answer.expert_weights.values()) == pytest.approx(1.0)


def test_a_latent_without_variance_is_trained_on_its_poses_alone(tmp_path: Path) -> None:
    """Neither the number of samples nor lambda count, whatever the gradient's rule."""
    losses = []
    for samples, weight, rule in ((1, 0.0, "plain"), (10, 1.0, "paper"), (3, 1e-4, "unbiased")):
        config = tiny_config(
            network={"fusion": "concatenation", "dropout": 0.0},
            objective={"samples": samples, "latent_weight": weight, "encoder_gradient": rule},
        )
        store, normalisation = build(tmp_path / rule, config, 8)
        batch = BatchMaker(store, config, normalisation).make(np.arange(8), (3,))
        torch.manual_seed(0)
        objective = Objective(VMLoc(config.network), config.objective)
        loss, bound = objective(batch)
        loss.backward()
        position, log_quat = objective.network.decode(objective.network(batch.inputs, 8).mean_BD)
        expected = geometric_loss(
            position, log_quat, batch.position_B3, batch.log_quat_B3, objective.beta, objective.gamma
        ).mean()
        assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
        assert bound.item() == pytest.approx(-expected.item(), rel=1e-5)
        losses.append(loss.item())
        gradients = [p.grad for p in objective.network.parameters() if p.grad is not None]
        assert all(bool(torch.isfinite(g).all()) for g in gradients)
        assert any(bool(g.any()) for g in gradients)
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-5)
