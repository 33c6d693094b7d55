"""The part of a network's run that can leave Python: from pictures as the camera gives them to what the network says.

PyTorch runs these modules as they are; `vmloc export` writes them as ONNX. What has loops and decisions (poses from
numbers, the solver over scene coordinates) stays outside. Shapes: N frames, K latent samples, C cells, D dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vmloc_ros.errors import ModelInputError
from vmloc_ros.networks.config import Normalisation
from vmloc_ros.networks.inputs import normalise
from vmloc_ros.networks.inputs_config import InputShape
from vmloc_ros.networks.scene_coordinates import SceneCoordinates
from vmloc_ros.networks.vmloc import Present, VMLoc
from vmloc_ros.types import Modality

LATENT_SEED = 20210204
"""Of the latent samples behind every covariance: the same for every frame, so that a frame has one answer."""

SHARE = "share_"
"""What the names of the experts' shares begin with."""


class PosesGraph(nn.Module):
    """VMLoc, with the fixed samples that its covariance rests on."""

    noise_KD: Tensor

    def __init__(self, network: VMLoc, normalisation: Normalisation, latent_samples: int) -> None:
        super().__init__()
        self.network = network
        self._normalisation = normalisation
        generator = torch.Generator().manual_seed(LATENT_SEED)
        noise = torch.randn(latent_samples // 2 + latent_samples % 2, network.config.latent, generator=generator)
        noise_KD = torch.cat([noise, -noise])[:latent_samples]  # antithetic: the mean is exact
        self.register_buffer("noise_KD", noise_KD, persistent=False)

    def forward(self, pictures: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What the network says, in network units.

        Args:
            pictures: `rgb` (N, H, W, 3) uint8, `depth` (N, H, W) metres; what is absent is left out.

        Returns:
            `mean` and `variance` (N, D) of the latent; `position` and `log_quat` (1 + K, N, 3) of the mean and of the
            samples (1, N, 3 where the latent has no variance); `share_X` (N,) of every expert X.
        """
        inputs, count = _present(pictures, self._normalisation, self.network.config)
        posterior = self.network(inputs, count)
        z = posterior.mean_BD.unsqueeze(0)
        if self.network.is_sampled:
            z = torch.cat([z, posterior.sample(self.noise_KD.unsqueeze(1))])
        position, log_quat = self.network.decode(z)
        said = {"mean": posterior.mean_BD, "variance": posterior.variance_BD, "position": position}
        said["log_quat"] = log_quat
        return said | {f"{SHARE}{name}": share for name, share in posterior.shares.items()}


class CellsGraph(nn.Module):
    """Experts over scene coordinates, up to what the solver takes."""

    rays_12hw: Tensor

    def __init__(self, network: SceneCoordinates, normalisation: Normalisation) -> None:
        super().__init__()
        self.network = network
        self._normalisation = normalisation
        with torch.no_grad():
            self.register_buffer("rays_12hw", network.rays(), persistent=False)

    def forward(self, pictures: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What the network says.

        Args:
            pictures: as of `PosesGraph`.

        Returns:
            `points` (N, C, 3) in the map, metres, and `variance` (N, C, 3) of them; `context` (N, D), what the cells
            were told of the whole image, modalities side by side; `share_X` (N,) of every expert X.
        """
        inputs, count = _present(pictures, self._normalisation, self.network.config)
        experts = self.network.encode(inputs, self.rays_12hw)
        mixture = self.network.fuse(experts, count)
        points_NC3, variance_NC3 = self.network.answer(mixture)
        context_ND = torch.cat([expert.context_ND.float() for expert in experts.values()], dim=1)
        said = {"points": points_NC3, "variance": variance_NC3, "context": context_ND}
        return said | {f"{SHARE}{name}": share for name, share in mixture.shares.items()}


def _present(
    pictures: Mapping[str, Tensor], normalisation: Normalisation, network: InputShape
) -> tuple[dict[str, Present], int]:
    """The normalised images, and how many frames there are."""
    count = len(next(iter(pictures.values())))
    inputs = {}
    for name, values in pictures.items():
        images = normalise(name, values, normalisation, network).contiguous(memory_format=torch.channels_last)
        inputs[name] = Present(images, torch.arange(count, device=values.device))
    return inputs, count


def named_pictures(
    network: InputShape, rgb_NHW3: NDArray[np.uint8] | None, depth_NHW: NDArray[np.floating] | None
) -> dict[str, NDArray[np.generic]]:
    """The arrays that are there, by modality, colour first.

    Raises:
        ModelInputError: none, of different frame counts, or of another size than the network's.
    """
    found: dict[str, NDArray[np.generic]] = {
        modality.value: array
        for modality, array in ((Modality.RGB, rgb_NHW3), (Modality.DEPTH, depth_NHW))
        if array is not None
    }
    counts = {len(array) for array in found.values()}
    if len(counts) != 1:
        raise ModelInputError("no modality is present" if not counts else "modalities of different frame counts")
    for name, array in found.items():
        if array.shape[1:3] != (network.height, network.width):
            raise ModelInputError(f"{name} is {array.shape[1:3]}, the network takes {network.height}x{network.width}")
    return found


def ask(graph: nn.Module, pictures: Mapping[str, NDArray[np.generic]], device: str) -> dict[str, Tensor]:
    """What a graph says of some frames, run by PyTorch."""
    with torch.inference_mode():
        tensors = {name: torch.from_numpy(np.array(array)).to(device) for name, array in pictures.items()}
        said: dict[str, Tensor] = graph(tensors)
    return said


def shares_of(said: Mapping[str, Tensor]) -> dict[str, NDArray[np.float64]]:
    """By expert, its part of the precision (N,)."""
    return {
        name.removeprefix(SHARE): share.double().cpu().numpy() for name, share in said.items() if name.startswith(SHARE)
    }
