"""VMLoc (K. Zhou, C. Chen et al., AAAI 2021): encoders, fusion, attention, pose regressors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vmloc_ros.errors import ModelInputError
from vmloc_ros.networks.attention import LatentAttention
from vmloc_ros.networks.config import NetworkConfig
from vmloc_ros.networks.encoders import Encoder
from vmloc_ros.networks.experts import Expert, Posterior, concatenate, product_of_experts
from vmloc_ros.types import Modality

PUBLISHED_DEVIATION = 1e-3
"""What the authors' code multiplies the joint *variance* by to get a standard deviation."""


class Present(NamedTuple):
    """The normalised images of one modality that are there, and the rows of the batch they belong to.

    Attributes:
        images_NCHW: N <= B of them.
        rows_N: int64, strictly increasing.
        elsewhere: other processes hold more of them: then the encoder runs even on N = 0 (batch norm is over them all).
    """

    images_NCHW: Tensor
    rows_N: Tensor
    elsewhere: bool = False


class VMLoc(nn.Module):
    """Pose from any non-empty subset of modalities.

    `forward` gives the posterior over the latent space; `decode` gives the pose of latent vectors. Network units: see
    `Normalisation`.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        channels = {Modality.RGB.value: 3, Modality.DEPTH.value: config.depth_channels}
        self.encoders = nn.ModuleDict({name: Encoder(config, channels[name]) for name in config.modalities})
        self.activation = {"none": nn.Identity, "tanh": nn.Tanh, "relu": nn.ReLU}[config.latent_activation]()
        self.attention: nn.Module = (
            LatentAttention(config.latent, config.attention_divisor) if config.attention else nn.Identity()
        )
        self.dropout = nn.Dropout(config.dropout)
        self.position = self._regressor()
        self.rotation = self._regressor()

    def _regressor(self) -> nn.Sequential:
        """Two fully connected layers with a ReLU between them; without hidden units one, as in the published code."""
        if not self.config.hidden:
            return nn.Sequential(nn.Linear(self.config.latent, 3))
        return nn.Sequential(
            nn.Linear(self.config.latent, self.config.hidden), nn.ReLU(), nn.Linear(self.config.hidden, 3)
        )

    @property
    def is_sampled(self) -> bool:
        """Whether the latent has a variance; without one all samples of it are its mean."""
        return self.config.fusion == "poe"

    def forward(self, inputs: Mapping[str, Present], batch: int) -> Posterior:
        """The joint posterior of B samples; a sample that has no modality at all keeps the prior.

        Raises:
            ModelInputError: a modality this network has no expert for, or nothing at all.
        """
        return self.fuse(self.encode(inputs), batch)

    def encode(self, inputs: Mapping[str, Present]) -> dict[str, Expert]:
        """One expert per modality that at least one sample has. Raises as `forward`."""
        unknown = set(inputs) - set(self.encoders)
        if unknown:
            raise ModelInputError(f"this network has no expert for {', '.join(sorted(unknown))}")
        experts: dict[str, Expert] = {}
        for name, present in inputs.items():
            if len(present.rows_N) or present.elsewhere:
                mean, logvar = self.encoders[name](present.images_NCHW)
                experts[name] = Expert(mean, logvar, present.rows_N)
        if not experts:
            raise ModelInputError("no modality is present")
        return experts

    def fuse(self, experts: Mapping[str, Expert], batch: int) -> Posterior:
        """The joint posterior of some experts, for B samples."""
        config, like = self.config, next(iter(experts.values())).mean_ND
        if config.fusion == "concatenation":
            return concatenate(experts, config.modalities, batch, config.expert_latent, like)
        posterior = product_of_experts(experts, batch, config.latent, like)
        if config.latent_deviation == "published":
            return replace(posterior, variance_BD=(PUBLISHED_DEVIATION * posterior.variance_BD).square())
        return posterior

    def decode(self, z_D: Tensor, keep_D: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Position and log-quaternion (..., 3), in network units, of latent vectors (..., D).

        Args:
            z_D: the latent vectors.
            keep_D: dropout's choices, 0 or 1 / (1 - p), in the shape of `z_D`; by default they are drawn here.
        """
        flat = z_D.reshape(-1, self.config.latent)
        shape = (*z_D.shape[:-1], 3)
        with torch.autocast(z_D.device.type, enabled=False):
            features = self.attention(self.activation(flat))
            features = self.dropout(features) if keep_D is None else features * keep_D.reshape(features.shape)
            return self.position(features).reshape(shape), self.rotation(features).reshape(shape)
