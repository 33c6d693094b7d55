"""What a network is, as data: its architecture and the numbers that bring sensors and poses into its range.

Both travel in the model's card, so that a trained model can be built again without the code that trained it.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from vmloc_ros.config import StrictModel
from vmloc_ros.networks.generative_map_config import GenerativeMapConfig
from vmloc_ros.networks.inputs_config import InputShape, ModalityName, TrunkName
from vmloc_ros.networks.retrieval_config import RetrievalConfig
from vmloc_ros.networks.scene_coordinates_config import SceneCoordinatesConfig
from vmloc_ros.networks.vlocnet_config import VLocNetConfig

__all__ = ["AnyNetwork", "ModalityName", "NetworkConfig", "Normalisation", "TrunkName"]


class NetworkConfig(InputShape):
    """VMLoc: one encoder per modality, their fusion, attention, two regressors.

    The ablations of the paper's Table 3 are the same network: `image` and `depth` name one modality, `attention` has
    `fusion: concatenation`, `poe` and `vmloc` differ in the objective alone. So are PoseNet17, AtLoc and MapNet.
    """

    architecture: Literal["vmloc"] = Field("vmloc", description="Which network; the card of a model names it.")
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
    latent_activation: Literal["none", "tanh", "relu"] = Field(
        "none",
        description="On the latent vector, before the attention (VMLoc's code: tanh, its paper: none; PoseNet17, AtLoc "
        "and MapNet: relu).",
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
        if self.latent % self.attention_divisor:
            raise ValueError(f"attention_divisor {self.attention_divisor} does not divide latent {self.latent}")
        if self.fusion == "concatenation" and self.latent % len(self.modalities):
            raise ValueError(f"{len(self.modalities)} modalities cannot share latent {self.latent} in equal parts")
        return self

    @property
    def expert_latent(self) -> int:
        """Dimensions of what one encoder gives: all of the latent space, or its own part of it."""
        return self.latent if self.fusion == "poe" else self.latent // len(self.modalities)


def _architecture(value: Any) -> str:
    """Which network a configuration describes; one that does not say is VMLoc."""
    named = value.get("architecture", "vmloc") if isinstance(value, dict) else getattr(value, "architecture", "vmloc")
    return str(named)


AnyNetwork = Annotated[
    Annotated[NetworkConfig, Tag("vmloc")]
    | Annotated[VLocNetConfig, Tag("vlocnet")]
    | Annotated[GenerativeMapConfig, Tag("generative_map")]
    | Annotated[RetrievalConfig, Tag("retrieval")]
    | Annotated[SceneCoordinatesConfig, Tag("scene_coordinates")],
    Discriminator(_architecture),
]
"""A network of any kind; `architecture` says which."""


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
