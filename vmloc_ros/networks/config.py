"""What a network is, as data: its architecture and the numbers that bring sensors and poses into its range.

Both travel in the model's card, so that a trained model can be built again without the code that trained it.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from vmloc_ros.config import StrictModel
from vmloc_ros.types import Modality

ModalityName = Literal["rgb", "depth"]
TrunkName = Literal["small", "resnet18", "resnet34", "resnet50"]


class NetworkConfig(StrictModel):
    """VMLoc: one encoder per modality, their fusion, attention, two regressors.

    The ablations of the paper's Table 3 are the same network: `image` and `depth` name one modality, `attention` has
    `fusion: concatenation`, `poe` and `vmloc` differ in the objective alone.
    """

    architecture: Literal["vmloc"] = Field("vmloc", description="Which network; the card of a model names it.")
    modalities: list[ModalityName] = Field(
        default_factory=lambda: list[ModalityName](("rgb", "depth")),
        min_length=1,
        description="Inputs that have an expert.",
    )
    width: int = Field(128, ge=16, le=2048, description="Columns of both inputs.")
    height: int = Field(96, ge=16, le=2048, description="Rows of both inputs.")
    trunk: TrunkName = Field("small", description="Convolutional trunk of each encoder.")
    channels: list[int] = Field(
        default_factory=lambda: [24, 32, 64, 128],
        min_length=1,
        description="Trunk `small`: channels of the stem and of each stage; every one halves the image.",
    )
    blocks: int = Field(1, ge=1, le=8, description="Trunk `small`: residual blocks in each stage.")
    reduced: int = Field(
        48, ge=0, description="Channels after a 1x1 convolution before the grid is flattened; 0: none."
    )
    grid_rows: int = Field(3, ge=1, description="Rows of the average-pooled grid; 1x1 is the paper's global pooling.")
    grid_columns: int = Field(4, ge=1, description="Columns of that grid.")
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
    latent: int = Field(256, ge=2, description="Dimensions of the latent space (the paper: 1024).")
    fusion: Literal["poe", "concatenation"] = Field(
        "poe",
        description="poe: product of Gaussian experts and a standard normal prior. concatenation: every modality gives "
        "its part of the latent vector, without variance and without sampling; an absent one's part is zeros (the "
        "paper's ablation `attention`).",
    )
    initial_variance: float = Field(
        0.1, gt=0.0, le=1.0, description="Variance of every expert before training; the prior's is 1."
    )
    variance_floor: float = Field(
        1e-6, gt=0.0, le=1e-2, description="Added to softplus(raw), the variance of an expert, so that it is never 0."
    )
    latent_deviation: Literal["square_root", "published"] = Field(
        "square_root",
        description="Standard deviation of the joint Gaussian. square_root: of its variance. published: 0.001 times "
        "its variance, a mistake of the authors' code; only for networks that were trained so.",
    )
    latent_activation: Literal["none", "tanh"] = Field(
        "none", description="On the latent vector, before the attention (the authors' code: tanh; the paper: none)."
    )
    attention: bool = Field(True, description="The paper's self-attention on the latent vector (eqs. 16-17).")
    attention_divisor: int = Field(8, ge=1, description="The attention's inner size is `latent` divided by this.")
    hidden: int = Field(
        128,
        ge=0,
        description="Hidden units of each of the two pose regressors; 0: one linear layer (the authors' code).",
    )
    dropout: float = Field(0.1, ge=0.0, lt=1.0, description="Dropout before the regressors (the paper: 0.5).")

    @model_validator(mode="after")
    def _agree(self) -> NetworkConfig:
        if len(set(self.modalities)) != len(self.modalities):
            raise ValueError("modalities names one twice")
        if self.latent % self.attention_divisor:
            raise ValueError(f"attention_divisor {self.attention_divisor} does not divide latent {self.latent}")
        if self.fusion == "concatenation" and self.latent % len(self.modalities):
            raise ValueError(f"{len(self.modalities)} modalities cannot share latent {self.latent} in equal parts")
        return self

    def has(self, modality: Modality) -> bool:
        """Whether this network has an expert for a modality."""
        return modality.value in self.modalities

    @property
    def expert_latent(self) -> int:
        """Dimensions of what one encoder gives: all of the latent space, or its own part of it."""
        return self.latent if self.fusion == "poe" else self.latent // len(self.modalities)

    @property
    def depth_channels(self) -> int:
        """Channels that the depth encoder takes."""
        return 2 if self.depth_encoding == "log" else 3


class Normalisation(StrictModel):
    """Training-set statistics. Depth is normalised as log metres over its valid pixels, never with colour statistics.

    A pose is `p = position_mean_m + position_scale_m * network position` and
    `R = R(rotation_reference_xyzw) @ exp(2 * network log-quaternion)`, and the camera's is that times `mounting`.
    """

    rgb_mean: list[float] = Field(min_length=3, max_length=3, description="Mean of red, green, blue in 0..1.")
    rgb_std: list[float] = Field(min_length=3, max_length=3, description="Their standard deviations.")
    depth_log_mean: float = Field(description="Mean of log(depth / 1 m) over valid pixels.")
    depth_log_std: float = Field(gt=0.0, description="Its standard deviation.")
    depth_image_mean: list[float] = Field(
        default_factory=lambda: [0.5, 0.5, 0.5],
        min_length=3,
        max_length=3,
        description="Depth encoding `image`: mean grey in 0..1 of its channels; by default the range becomes [-1, 1].",
    )
    depth_image_std: list[float] = Field(
        default_factory=lambda: [0.5, 0.5, 0.5], min_length=3, max_length=3, description="Their standard deviations."
    )
    position_mean_m: list[float] = Field(min_length=3, max_length=3, description="Mean camera position in the map.")
    position_scale_m: float = Field(
        gt=0.0, description="One scale for the three axes, so that distances stay distances."
    )
    rotation_reference_xyzw: list[float] = Field(
        min_length=4,
        max_length=4,
        description="Rotation from which log-quaternions are measured: far from every trained rotation's antipode.",
    )
    mounting: list[float] = Field(
        default_factory=lambda: [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0],
        min_length=7,
        max_length=7,
        description="The camera in the frame whose pose the network gives, as x y z qx qy qz qw. Networks trained here "
        "give the camera's own; imported ones may give another body's.",
    )
