"""What every network takes: which sensors, at which size, and how depth is shown."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from vmloc_ros.config import StrictModel
from vmloc_ros.types import Modality

ModalityName = Literal["rgb", "depth"]
TrunkName = Literal["small", "resnet18", "resnet34", "resnet50"]


class InputShape(StrictModel):
    """The inputs of a network."""

    modalities: list[ModalityName] = Field(
        default_factory=lambda: list[ModalityName](("rgb", "depth")),
        min_length=1,
        description="Inputs that have an expert.",
    )
    width: int = Field(128, ge=16, le=2048, description="Columns of both inputs.")
    height: int = Field(96, ge=16, le=2048, description="Rows of both inputs.")
    depth_encoding: Literal["log", "image"] = Field(
        "log",
        description="What the depth encoder sees. log: normalised logarithm of the metres, and a channel that says "
        "where there is a return. image: a grey picture on three equal channels, as the paper and its code.",
    )
    depth_image_white_m: float = Field(
        80.0, gt=0.0, description="Depth encoding `image`: metres that are white; nearer is darker, farther white too."
    )
    depth_image_empty: Literal["black", "white"] = Field(
        "black", description="Depth encoding `image`: what a pixel without return looks like."
    )

    @model_validator(mode="after")
    def _no_repetition(self) -> Self:
        if len(set(self.modalities)) != len(self.modalities):
            raise ValueError("modalities names one twice")
        return self

    def has(self, modality: Modality) -> bool:
        """Whether this network has an expert for a modality."""
        return modality.value in self.modalities

    @property
    def depth_channels(self) -> int:
        """Channels that the depth encoder takes."""
        return 2 if self.depth_encoding == "log" else 3


class CameraAlone(InputShape):
    """The inputs of a network that knows nothing of depth."""

    modalities: list[ModalityName] = Field(
        default_factory=lambda: list[ModalityName](("rgb",)), description="The camera; there is no other expert."
    )

    @model_validator(mode="after")
    def _camera(self) -> Self:
        if self.modalities != ["rgb"]:
            raise ValueError("this architecture has an encoder for the camera alone: modalities is [rgb]")
        return self
