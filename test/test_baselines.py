"""The baselines are configurations of one network: what their papers have can be said, and differs where it has to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from vmloc_ros.config import read_yaml
from vmloc_ros.networks.attention import LatentAttention
from vmloc_ros.networks.build import build_network
from vmloc_ros.networks.config import NetworkConfig
from vmloc_ros.networks.vmloc import Present, VMLoc
from vmloc_ros.objective import Objective
from vmloc_ros.objectives import build_objective
from vmloc_ros.training_config import TrainingConfig, load_training_config

MODELS = Path(__file__).resolve().parents[1] / "models"
METHODS = ("posenet17", "atloc", "mapnet", "mapnet_pgo")
PLACES = ("town", "redkitchen")


def recipe(name: str) -> TrainingConfig:
    return load_training_config(MODELS / f"{name}.yaml")


def differences(one: Any, other: Any, at: str = "") -> set[str]:
    """Keys in which two mappings differ, with dots between their levels."""
    if isinstance(one, dict) and isinstance(other, dict):
        return {
            key
            for name in one | other
            for key in differences(one.get(name), other.get(name), f"{at}.{name}".strip("."))
        }
    return set() if one == other else {at}


@pytest.mark.parametrize("name", [f"{method}_{place}" for method in METHODS for place in PLACES])
def test_recipes_are_of_the_camera_alone(name: str) -> None:
    config = recipe(name)
    assert config.name == name
    assert isinstance(config.network, NetworkConfig)
    assert (config.network.modalities, config.network.fusion) == (["rgb"], "concatenation")
    assert config.localizer.input.depth_source == "none"
    assert config.objective.samples == 1
    assert config.network.latent_activation == "relu"
    assert config.data.validation or config.data.hold_out
    assert not set(config.data.validation) & set(config.data.test)


@pytest.mark.parametrize("place", PLACES)
def test_recipes_differ_in_the_method_alone(place: str) -> None:
    files = {method: read_yaml(MODELS / f"{method}_{place}.yaml") for method in METHODS}
    assert differences(files["posenet17"], files["atloc"]) == {"name", "network.attention"}
    mapnet = differences(files["posenet17"], files["mapnet"])
    assert {key for key in mapnet if not key.startswith("optimizer.")} == {
        "name",
        "objective.clip",
        "objective.relative",
    }
    assert differences(files["mapnet"], files["mapnet_pgo"]) == {"name", "pose_graph", "localizer.filter"}


@pytest.mark.parametrize("place", PLACES)
def test_the_filter_behind_a_pose_graph_knows_how_long_its_errors_last(place: str) -> None:
    """Those of the network, and half of the window that consecutive answers share."""
    config, alone = recipe(f"mapnet_pgo_{place}"), recipe(f"mapnet_{place}")
    graph = config.pose_graph
    assert graph is not None
    lasting = graph.correlation_s + 0.5 * (graph.window - 1) * graph.spacing_s
    assert config.localizer.filter.measurement_correlation_s == pytest.approx(lasting)
    assert alone.localizer.filter.measurement_correlation_s == graph.correlation_s


@pytest.mark.parametrize("method", ["posenet17", "atloc", "mapnet"])
def test_paper_recipes_have_the_papers_parts(method: str) -> None:
    config = recipe(f"{method}_paper")
    network = config.network
    assert isinstance(network, NetworkConfig)
    assert (network.trunk, network.latent, network.hidden, network.dropout) == ("resnet34", 2048, 0, 0.5)
    assert config.trunk_weights == "imagenet"
    assert network.attention == (method == "atloc")
    assert (config.objective.relative.weight > 0.0) == (method == "mapnet")
    with torch.device("meta"):
        built = build_network(network)
    assert isinstance(built, VMLoc)
    assert sum(1 for module in built.modules() if isinstance(module, LatentAttention)) == (method == "atloc")
    # ResNet-34 without its classifier, 2048 features, two linear layers; AtLoc: four more matrices of 2048 x 256
    parts = {"trunk": 21_284_672, "features": 512 * 2048 + 2048, "pose": 2 * (2048 * 3 + 3)}
    parts["attention"] = (3 * (2048 * 256 + 256) + 256 * 2048 + 2048) if method == "atloc" else 0
    assert sum(p.numel() for p in built.parameters()) == sum(parts.values())


def test_features_pass_a_relu_before_dropout_and_the_last_layers() -> None:
    """posenet: relu(fc(pool(trunk))), dropout, one linear layer each; written out once more."""
    config = NetworkConfig(
        modalities=["rgb"],
        width=32,
        height=32,
        channels=[8, 12],
        reduced=0,
        grid_rows=1,
        grid_columns=1,
        latent=16,
        fusion="concatenation",
        latent_activation="relu",
        attention=False,
        hidden=0,
        dropout=0.5,
    )
    torch.manual_seed(0)
    network = VMLoc(config).eval()
    images = torch.randn(3, 3, 32, 32)
    posterior = network({"rgb": Present(images, torch.arange(3))}, 3)
    position, log_quat = network.decode(posterior.mean_BD)
    encoder = network.encoders["rgb"]
    features = nn.functional.relu(encoder.mean(encoder.trunk(images).mean(dim=(2, 3))))  # type: ignore[operator, union-attr]
    assert torch.allclose(position, network.position[0](features), atol=1e-6)  # type: ignore[index]
    assert torch.allclose(log_quat, network.rotation[0](features), atol=1e-6)  # type: ignore[index]
    assert (posterior.mean_BD < 0.0).any()  # else the law would hold without the ReLU
    network.train()
    torch.manual_seed(1)
    dropped = network.decode(posterior.mean_BD)[0]
    assert not torch.allclose(dropped, position)


def test_training_starts_from_the_papers_weights() -> None:
    """Sums over axes with beta_0 + log 3 have the gradients of means with beta_0."""
    objective = build_objective(recipe("posenet17_town"))
    assert isinstance(objective, Objective)
    assert objective.scales() == pytest.approx({"beta": 0.0, "gamma": -3.0})
    paper = recipe("mapnet_paper").objective
    error = np.array([0.3, -0.2, 0.9])
    for ours, theirs in ((paper.beta_0, 0.0), (paper.gamma_0, -3.0), (paper.relative.gamma_0, -3.0)):
        assert np.exp(-ours) * np.abs(error).sum() == pytest.approx(np.exp(-theirs) * np.abs(error).mean(), rel=1e-4)
