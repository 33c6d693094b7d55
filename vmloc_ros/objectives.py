"""The objective of a training, by the network's kind."""

from __future__ import annotations

import torch

from vmloc_ros.errors import ConfigError
from vmloc_ros.generative_objective import GenerativeObjective
from vmloc_ros.learning import Learning
from vmloc_ros.networks.build import build_network
from vmloc_ros.networks.generative_map import GenerativeMap
from vmloc_ros.networks.retrieval_config import RetrievalConfig
from vmloc_ros.networks.scene_coordinates import SceneCoordinates
from vmloc_ros.networks.vlocnet import VLocNet
from vmloc_ros.networks.vmloc import VMLoc
from vmloc_ros.objective import Objective
from vmloc_ros.scene_objective import SceneObjective
from vmloc_ros.training_config import TrainingConfig
from vmloc_ros.vlocnet_objective import VLocNetLearning


def build_objective(config: TrainingConfig) -> Learning:
    """A network with random weights, and what it is trained by.

    Raises:
        ConfigError: of retrieval, which has nothing to learn.
    """
    if isinstance(config.network, RetrievalConfig):
        raise ConfigError("network.architecture: retrieval has nothing to learn, and can have no training steps")
    network = build_network(config.network).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if isinstance(network, VMLoc):
        return Objective(network, config.objective)
    if isinstance(network, GenerativeMap):
        return GenerativeObjective(network, config.objective.generative_map)
    if isinstance(network, VLocNet):
        return VLocNetLearning(network, config.objective)
    if isinstance(network, SceneCoordinates):
        return SceneObjective(network, config.objective)
    raise TypeError(f"nothing to train a {type(network).__name__} by")
