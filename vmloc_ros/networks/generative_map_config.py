"""Generative Map (M. Guo et al., arXiv:1902.11124): what its networks, objective and card can be told."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from vmloc_ros.config import StrictModel
from vmloc_ros.networks.inputs_config import CameraAlone


class GenerativeMapConfig(CameraAlone):
    """Image encoder, pose encoder, image decoder."""

    architecture: Literal["generative_map"] = Field("generative_map", description="A map that can be looked at.")
    width: int = Field(96, ge=16, le=2048, description="Columns of the input.")
    height: int = Field(96, ge=16, le=2048, description="Rows of the input.")
    latent: int = Field(128, ge=2, description="Dimensions of the latent space (the paper: 128 and 256).")


class GenerativeMapObjective(StrictModel):
    """How the map is learnt (eq. 3)."""


class MapCard(StrictModel):
    """What the card says of how well the map fits what is seen, measured on validation frames."""
