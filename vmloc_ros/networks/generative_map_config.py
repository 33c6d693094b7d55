"""Generative Map (M. Guo et al., arXiv:1902.11124): what its networks, objective and card can be told."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from vmloc_ros.config import StrictModel
from vmloc_ros.networks.inputs_config import CameraAlone

SMALLEST = 16
"""Four layers halve a picture four times: sizes of what is drawn are multiples of this."""


class GenerativeMapConfig(CameraAlone):
    """Image encoder, pose encoder, image decoder."""

    architecture: Literal["generative_map"] = Field("generative_map", description="A map that can be looked at.")
    width: int = Field(96, ge=16, le=2048, description="Columns of the input.")
    height: int = Field(96, ge=16, le=2048, description="Rows of the input.")
    picture_width: int = Field(64, ge=16, le=512, description="Columns of the drawn view, a multiple of 16.")
    picture_height: int = Field(64, ge=16, le=512, description="Rows of the drawn view, a multiple of 16.")
    latent: int = Field(128, ge=2, description="Dimensions of the latent space (the paper: 128 and 256).")
    channels: int = Field(
        128,
        ge=8,
        multiple_of=8,
        description="Of the smallest grid, at the encoder's end and the decoder's start; every doubling of the grid "
        "halves them (the paper: 512, which is DC-GAN's).",
    )
    pose_features: Literal["plain", "fourier"] = Field(
        "fourier",
        description="What the pose encoder is shown. plain: position and log-quaternion (the paper). fourier: "
        "position, rotation matrix, and sines and cosines of them: they resolve a long route, and do not jump at half "
        "a turn.",
    )
    position_octaves: int = Field(
        5, ge=0, le=12, description="Sines of pi 2^k times the position in network units, k below this."
    )
    rotation_octaves: int = Field(1, ge=0, le=8, description="Likewise of the rotation matrix's entries.")
    pose_hidden: list[int] = Field(
        default_factory=lambda: [512, 512],
        min_length=1,
        description="Units of the pose encoder's hidden layers (the paper: one of 512).",
    )
    standardised: bool = Field(
        True,
        description="The encoder sees every picture with zero mean and unit deviation of each colour: exposure and the "
        "light's tint say nothing of the place. The paper: false.",
    )
    initial_variance: float = Field(0.1, gt=0.0, le=1.0, description="Of q(z|I) before training.")
    variance_floor: float = Field(1e-4, gt=0.0, le=1e-2, description="Added to softplus(raw), the variance of q(z|I).")
    places: int = Field(
        2048, ge=1, le=65536, description="Training poses that the network keeps: where a search without prior starts."
    )

    @field_validator("picture_width", "picture_height")
    @classmethod
    def _halves(cls, value: int) -> int:
        if value % SMALLEST:
            raise ValueError(f"{value} is no multiple of {SMALLEST}")
        return value

    @field_validator("pose_hidden")
    @classmethod
    def _units(cls, value: list[int]) -> list[int]:
        if min(value) < 1:
            raise ValueError("every hidden layer needs at least one unit")
        return value


class GenerativeMapObjective(StrictModel):
    """How the map is learnt: eq. 3, and what may be added to it."""

    log_variance: float = Field(
        -3.0, ge=-12.0, le=4.0, description="Logarithm of the pictures' variance, values in -1..1 (the paper: -3)."
    )
    kl_weight: float = Field(1.0, ge=0.0, description="Of KL(q(z|I) || p(z|p)) in eq. 3 (the paper: 1).")
    view_weight: float = Field(
        0.0,
        ge=0.0,
        description="Of a second reconstruction, from g(p) instead of a sample of q(z|I): what is shown to a person "
        "who asks for a pose (the paper: 0).",
    )
    contrast_weight: float = Field(
        0.0,
        ge=0.0,
        description="Of -log of the frame's own pose among `contrast_places` others under N(g(p), 1): the latents of "
        "different places move apart (the paper: 0).",
    )
    contrast_places: int = Field(128, ge=1, description="Places drawn anew in every step for that.")
    jitter_position: list[float] = Field(
        default_factory=lambda: [0.0, 0.0, 0.0],
        min_length=3,
        max_length=3,
        description="Deviations of noise on the positions that the pose encoder is shown in training, along the map's "
        "axes in network units. Where no camera was ever moved (a car never rises) this keeps the map from inventing "
        "what would be seen there (the paper: 0).",
    )
    jitter_rotation: list[float] = Field(
        default_factory=lambda: [0.0, 0.0, 0.0],
        min_length=3,
        max_length=3,
        description="Likewise of the rotation, in radians about the camera's axes (pitch, yaw, roll).",
    )

    @field_validator("jitter_position", "jitter_rotation")
    @classmethod
    def _deviations(cls, value: list[float]) -> list[float]:
        if min(value) < 0.0:
            raise ValueError("deviations cannot be negative")
        return value


class MapCard(StrictModel):
    """What the card says of how well the map fits what is seen, measured on validation frames."""

    inflation: float = Field(
        1.0, gt=0.0, description="What the latent's variances are multiplied by, so that an update's NEES is 6."
    )
    nees: float = Field(6.0, ge=0.0, description="Mean NEES (6 numbers) of the updates with it.")
    mismatch_median: float = Field(
        0.1, gt=0.0, description="Median difference between seen and expected picture at the answer, values in 0..1."
    )
    mismatch_p95: float = Field(0.2, gt=0.0, description="Its 95th percentile; beyond it the health falls.")
    frames: int = Field(0, ge=0, description="Frames behind these numbers.")
