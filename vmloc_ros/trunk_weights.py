"""Weights that a training's trunks start from: learnt on ImageNet (as in the paper), or from a file."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision import models

from vmloc_ros.checkpoint import read_tensors
from vmloc_ros.errors import CheckpointError, TrainingError
from vmloc_ros.networks.build import build_network
from vmloc_ros.networks.config import AnyNetwork, NetworkConfig
from vmloc_ros.networks.encoders import Encoder, build_trunk
from vmloc_ros.networks.vlocnet import VLocNet
from vmloc_ros.networks.vmloc import VMLoc

NONE, IMAGENET = "none", "imagenet"
PUBLISHED = {
    "resnet18": models.ResNet18_Weights.IMAGENET1K_V1,
    "resnet34": models.ResNet34_Weights.IMAGENET1K_V1,
    "resnet50": models.ResNet50_Weights.IMAGENET1K_V1,
}
PARTS = {"conv1": "0", "bn1": "1", "layer1": "4", "layer2": "5", "layer3": "6", "layer4": "7"}
"""Torchvision's names of a ResNet's parts, and their places in our trunk (2 and 3: ReLU and pooling, no weights)."""
FIRST = "0.weight"
"""The first convolution, in our trunk's names."""
HEAD = "fc."
"""The classifier of a published ResNet, which no trunk has."""


def load_trunk_weights(network: nn.Module, source: str) -> None:
    """Fills the trunks of all encoders (of VLocNet those of all streams); their heads stay as they are.

    The depth encoder takes the same weights. Where its input has not three channels, every channel of its first
    convolution gets the mean of the three colour kernels, times 3 / channels: channels that are all equal are answered
    as a grey picture was.

    Args:
        network: changed in place.
        source: `none`; `imagenet`: torchvision's, which it downloads once; else a safetensors file with a ResNet's
            weights under torchvision's names.

    Raises:
        CheckpointError: a file that cannot be read or is of another network (names the first tensor that does not fit).
        TrainingError: the download failed.
    """
    if source == NONE:
        return
    assert isinstance(network, VMLoc | VLocNet)
    tensors = _published(network.config.trunk) if source == IMAGENET else read_tensors(Path(source).expanduser())[0]
    trunk = trunk_names(tensors)
    if isinstance(network, VLocNet):
        _fill_streams(network, trunk, source)
        return
    for encoder in network.encoders.values():
        assert isinstance(encoder, Encoder)
        _fill(encoder, trunk, source)


def check_trunk_weights(config: AnyNetwork, source: str) -> None:
    """Raises what `load_trunk_weights` would, before the long work of a training."""
    if source != NONE:
        load_trunk_weights(build_network(config), source)


def trunk_names(resnet: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors under torchvision's names, under our trunk's; the classifier is left out, unknown names stay."""
    renamed = {}
    for name, tensor in resnet.items():
        part, _, rest = name.partition(".")
        if not name.startswith(HEAD):
            renamed[f"{PARTS[part]}.{rest}" if part in PARTS else name] = tensor
    return renamed


def _fill(encoder: Encoder, tensors: dict[str, Tensor], source: str) -> None:
    """Loads one trunk."""
    expected = encoder.trunk.state_dict()
    given = dict(tensors)
    if FIRST in given and given[FIRST].ndim == 4 and given[FIRST].shape[1] == 3 != expected[FIRST].shape[1]:
        given[FIRST] = first_kernel(given[FIRST], expected[FIRST].shape[1])
    encoder.trunk.load_state_dict(fitting(given, expected, source))


def _fill_streams(network: VLocNet, tensors: dict[str, Tensor], source: str) -> None:
    """Loads the same trunk into the global stream and into the odometry's.

    The first unit after a fusion takes more channels than a ResNet's: the weights go to its first channels, and those
    of the previous pose's map, or of the second picture, keep their random ones.
    """
    config = network.config
    plain = build_trunk(NetworkConfig(trunk=config.trunk), 3)[0].state_dict()
    checked = fitting(tensors, plain, source)
    streams: list[tuple[int, nn.Module]] = list(enumerate([*network.stages, network.last]))
    if config.odometry:
        streams += enumerate(network.now, start=config.shared_stages)
        streams += enumerate(network.before)
        streams += enumerate(network.pair, start=config.joined_after)
    for number, stage in streams:
        prefix = f"{number + 3}." if number else ""  # of layer1 to layer4; the first stage's parts have their own names
        for name, tensor in stage.state_dict().items():
            loaded = checked[prefix + name]
            own = tensor[:, : loaded.shape[1]] if tensor.ndim == 4 else tensor
            own.copy_(loaded)


def fitting(given: dict[str, Tensor], expected: dict[str, Tensor], source: str) -> dict[str, Tensor]:
    """Weights of a trunk, every name and shape exactly. Raises CheckpointError."""
    given = dict(given)
    for name, tensor in expected.items():
        there = given.get(name)
        if there is None and name.endswith("num_batches_tracked"):
            given[name] = tensor  # a counter that no computation uses; some files leave it out
        elif there is None or there.shape != tensor.shape:
            found = "is missing" if there is None else f"is {tuple(there.shape)}, not {tuple(tensor.shape)}"
            raise CheckpointError(
                f"{source}: not the weights of network.trunk: {_published_name(name)!r} {found}; give a safetensors "
                "file with torchvision's names and the trunk that it is of"
            )
    superfluous = sorted(set(given) - set(expected))
    if superfluous:
        raise CheckpointError(
            f"{source}: not the weights of network.trunk: {_published_name(superfluous[0])!r} has no place there"
        )
    return given


def first_kernel(colour_O3HW: Tensor, channels: int) -> Tensor:
    """The first convolution for another number of channels: the colours' mean in each, the sum over channels kept."""
    return colour_O3HW.mean(dim=1, keepdim=True).repeat(1, channels, 1, 1) * (3.0 / channels)


def _published_name(name: str) -> str:
    """Torchvision's name of a tensor of our trunk."""
    places = {place: part for part, place in PARTS.items()}
    place, _, rest = name.partition(".")
    return f"{places[place]}.{rest}" if place in places else name


def _published(trunk: str) -> dict[str, Tensor]:
    """Torchvision's weights, from its cache or downloaded."""
    weights = PUBLISHED[trunk]
    try:
        return dict(weights.get_state_dict(progress=False, check_hash=True, weights_only=True))
    except (OSError, RuntimeError) as error:  # no network, a full disk, a download that is cut short
        name = weights.url.rpartition("/")[2]
        raise TrainingError(
            f"trunk_weights: imagenet: cannot download {weights.url} ({error}); put {name} into "
            f"{Path(torch.hub.get_dir()) / 'checkpoints'}, give a safetensors file, or set trunk_weights: none"
        ) from error
