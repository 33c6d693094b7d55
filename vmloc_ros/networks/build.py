"""A network from its configuration."""

from __future__ import annotations

from typing import assert_never

from torch import nn

from vmloc_ros.networks.config import AnyNetwork, NetworkConfig
from vmloc_ros.networks.generative_map import GenerativeMap
from vmloc_ros.networks.generative_map_config import GenerativeMapConfig
from vmloc_ros.networks.retrieval import RetrievalNetwork
from vmloc_ros.networks.retrieval_config import RetrievalConfig
from vmloc_ros.networks.scene_coordinates import SceneCoordinates
from vmloc_ros.networks.scene_coordinates_config import SceneCoordinatesConfig
from vmloc_ros.networks.vlocnet import VLocNet
from vmloc_ros.networks.vlocnet_config import VLocNetConfig
from vmloc_ros.networks.vmloc import VMLoc


def build_network(config: AnyNetwork) -> nn.Module:
    """The network of a configuration, with random weights."""
    if isinstance(config, NetworkConfig):
        return VMLoc(config)
    if isinstance(config, RetrievalConfig):
        return RetrievalNetwork(config)
    if isinstance(config, GenerativeMapConfig):
        return GenerativeMap(config)
    if isinstance(config, VLocNetConfig):
        return VLocNet(config)
    if isinstance(config, SceneCoordinatesConfig):
        return SceneCoordinates(config)
    assert_never(config)
