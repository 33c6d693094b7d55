"""Nearest-neighbour retrieval as a model: what it can be told."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from vmloc_ros.networks.inputs_config import CameraAlone


class RetrievalConfig(CameraAlone):
    """The pose of the training image that looks most alike."""

    architecture: Literal["retrieval"] = Field("retrieval", description="Nothing is learnt: training images are kept.")
