"""Weights that trunks start from: they arrive, in both encoders, and nothing else is taken for them."""

from __future__ import annotations

from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from pictures import TINY, build, tiny_config
from safetensors.torch import save_file
from torch import Tensor
from torchvision import models

from vmloc_ros.batches import measure_normalisation
from vmloc_ros.config import parse
from vmloc_ros.errors import CheckpointError, ConfigError, TrainingError
from vmloc_ros.networks.config import NetworkConfig
from vmloc_ros.networks.vmloc import VMLoc
from vmloc_ros.training import train
from vmloc_ros.training_config import TrainingConfig
from vmloc_ros.trunk_weights import PUBLISHED, check_trunk_weights, first_kernel, load_trunk_weights, trunk_names

RESNET = {**TINY["network"], "trunk": "resnet18", "grid_rows": 1, "grid_columns": 1}


def network_of(**changes: object) -> VMLoc:
    return VMLoc(parse(NetworkConfig, {**RESNET, **changes}, "test"))


@pytest.fixture(scope="module")
def published() -> dict[str, Tensor]:
    """A ResNet-18 of torchvision with numbers of its own."""
    torch.manual_seed(5)
    return models.resnet18(weights=None).state_dict()


@pytest.fixture(scope="module")
def file(published: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "resnet18.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in published.items()}, path)
    return path


def test_a_trunk_computes_what_the_resnet_does(published: dict[str, Tensor], file: Path) -> None:
    """Also in the depth encoder, where depth is a picture."""
    network = network_of(depth_encoding="image").eval()
    load_trunk_weights(network, str(file))
    resnet = models.resnet18(weights=None).eval()
    resnet.load_state_dict(published)
    resnet.fc = torch.nn.Identity()
    image = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        for encoder in network.encoders.values():
            assert torch.allclose(encoder.trunk(image).mean(dim=(2, 3)), resnet(image), atol=1e-5)


def test_depth_answers_equal_channels_as_a_grey_picture(published: dict[str, Tensor], file: Path) -> None:
    network = network_of().eval()
    load_trunk_weights(network, str(file))
    kernel = network.encoders["depth"].trunk.state_dict()["0.weight"]
    assert kernel.shape == (64, 2, 7, 7)
    grey = torch.randn(1, 1, 32, 32)
    expected = torch.nn.functional.conv2d(grey.expand(-1, 3, -1, -1), published["conv1.weight"])
    assert torch.allclose(torch.nn.functional.conv2d(grey.expand(-1, 2, -1, -1), kernel), expected, atol=1e-5)
    for channels in (1, 2, 4):
        assert torch.allclose(
            first_kernel(published["conv1.weight"], channels).sum(dim=1),
            published["conv1.weight"].sum(dim=1),
            atol=1e-6,
        )


def test_training_starts_from_the_file(file: Path, published: dict[str, Tensor], tmp_path: Path) -> None:
    """With a learning rate of next to nothing the weights are still the file's after an epoch."""
    config = tiny_config(
        network=RESNET,
        trunk_weights=str(file),
        storage="float32",
        optimizer={"epochs": 1, "peak_learning_rate": 1e-12, "weight_decay": 0.0},
    )
    store, _ = build(tmp_path / "cache", config, 8)
    indices = np.arange(len(store))
    trained = train(config, store, indices, indices, measure_normalisation(store, indices), tmp_path / "out", "key")
    names = [name for name in trunk_names(published) if name.endswith("weight")]
    assert len(names) > 30
    for name in names:
        tensor = trained.tensors[f"encoders.rgb.trunk.{name}"]
        assert torch.allclose(tensor, trunk_names(published)[name], atol=1e-6)


def test_none_leaves_the_network_alone() -> None:
    network = network_of()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    load_trunk_weights(network, "none")
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


def test_weights_of_another_network_are_refused(published: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"

    def refused(tensors: dict[str, Tensor]) -> str:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
        with pytest.raises(CheckpointError, match=r"weights\.safetensors: not the weights of network\.trunk") as caught:
            load_trunk_weights(network_of(), str(path))
        return str(caught.value)

    assert "'layer2.0.conv1.weight' is missing" in refused(
        {name: tensor for name, tensor in published.items() if name != "layer2.0.conv1.weight"}
    )
    assert "'bn1.bias' is (3,), not (64,)" in refused({**published, "bn1.bias": torch.zeros(3)})
    assert "'layer5.weight' has no place" in refused({**published, "layer5.weight": torch.zeros(3)})
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_trunk_weights(network_of(), str(tmp_path / "missing.safetensors"))


def test_a_pickle_is_refused(published: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save(published, tmp_path / "resnet18.pth")
    with pytest.raises(CheckpointError, match="is a pickle"):
        load_trunk_weights(network_of(), str(tmp_path / "resnet18.pth"))


def test_no_network_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: object, **options: object) -> None:
        assert options["weights_only"] is True
        raise URLError("Network is unreachable")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    with pytest.raises(TrainingError, match=r"resnet18-\w+\.pth.*unreachable.*checkpoints.*safetensors") as caught:
        check_trunk_weights(parse(NetworkConfig, RESNET, "test"), "imagenet")
    assert "\n" not in str(caught.value)


def test_imagenet_arrives(monkeypatch: pytest.MonkeyPatch, published: dict[str, Tensor]) -> None:
    """What torchvision's loader gives, under its names."""
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *args, **options: published)
    network = network_of()
    load_trunk_weights(network, "imagenet")
    assert torch.equal(
        network.encoders["rgb"].trunk.state_dict()["4.0.conv1.weight"], published["layer1.0.conv1.weight"]
    )
    assert set(PUBLISHED) == {"resnet18", "resnet34", "resnet50"}


def test_the_small_trunk_has_no_published_weights() -> None:
    with pytest.raises(ConfigError, match=r"trunk_weights is imagenet, but network\.trunk small has none"):
        parse(TrainingConfig, {"trunk_weights": "imagenet"}, "test")
