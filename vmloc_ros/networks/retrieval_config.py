"""Nearest-neighbour retrieval as a model: what it can be told."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from vmloc_ros.networks.inputs_config import CameraAlone


class RetrievalConfig(CameraAlone):
    """The pose of the training image that looks most alike."""

    architecture: Literal["retrieval"] = Field("retrieval", description="Nothing is learnt: training images are kept.")
    images: int = Field(
        4000,
        ge=2,
        le=1_000_000,
        description="Images that are kept, at 632 bytes each: spread evenly over the training images where these are "
        "more; where they are fewer some are kept twice, which changes no answer.",
    )
