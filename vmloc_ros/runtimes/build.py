"""What runs a network, by the network's kind."""

from __future__ import annotations

from torch import nn

from vmloc_ros.networks.config import Normalisation
from vmloc_ros.networks.generative_map import GenerativeMap
from vmloc_ros.networks.retrieval import RetrievalNetwork
from vmloc_ros.networks.scene_coordinates import SceneCoordinates
from vmloc_ros.networks.vlocnet import VLocNet
from vmloc_ros.networks.vmloc import VMLoc
from vmloc_ros.runtimes.generative_map import MapRuntime
from vmloc_ros.runtimes.retrieval import RetrievalRuntime
from vmloc_ros.runtimes.scene_coordinates import SceneRuntime
from vmloc_ros.runtimes.torch import Runtime, TorchRuntime
from vmloc_ros.runtimes.vlocnet import VLocNetRuntime


def build_runtime(network: nn.Module, normalisation: Normalisation, latent_samples: int, device: str) -> Runtime:
    """Eager PyTorch for a network that `build_network` made."""
    if isinstance(network, VMLoc):
        return TorchRuntime(network, normalisation, latent_samples, device)
    if isinstance(network, RetrievalNetwork):
        return RetrievalRuntime(network)
    if isinstance(network, GenerativeMap):
        return MapRuntime(network, normalisation, device)
    if isinstance(network, VLocNet):
        return VLocNetRuntime(network, normalisation, device)
    if isinstance(network, SceneCoordinates):
        return SceneRuntime(network, normalisation, device)
    raise TypeError(f"nothing to run a {type(network).__name__} with")
