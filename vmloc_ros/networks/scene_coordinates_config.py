"""Experts over scene coordinates: what the network, its objective and its card can be told."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from vmloc_ros.config import StrictModel
from vmloc_ros.networks.inputs_config import InputShape


class SceneCoordinatesConfig(InputShape):
    """One fully convolutional encoder per modality; every cell of the image says where in the map it lies."""

    architecture: Literal["scene_coordinates"] = Field(
        "scene_coordinates", description="Where in the map every cell of the image lies; the pose follows by geometry."
    )
    width: int = Field(160, ge=32, le=2048, description="Columns of both inputs, a multiple of the cell's size.")
    height: int = Field(120, ge=32, le=2048, description="Rows of both inputs, likewise.")
    channels: list[int] = Field(
        default_factory=lambda: [32, 48, 128],
        min_length=1,
        max_length=5,
        description="Of the stem and of each stage; every one halves the image, so three make cells of 8x8 pixels.",
    )
    blocks: int = Field(3, ge=1, le=8, description="Residual blocks in the last stage; the earlier ones have one.")
    depth_fill: int = Field(
        1,
        ge=1,
        le=15,
        description="Odd: the depth encoder also sees the average of the returns in a window of so many pixels, which "
        "hides where exactly a sparse lidar's rays went; 1: not.",
    )
    context: int = Field(
        96,
        ge=0,
        description="Numbers about the whole image that every cell is told, so that what repeats in a building or a "
        "street is told apart; 0: none.",
    )
    context_channels: list[int] = Field(
        default_factory=lambda: [128, 160],
        max_length=4,
        description="Of further stages on the way to the context, each halving the grid once more; none: the cells' "
        "own features are pooled.",
    )
    context_rows: int = Field(3, ge=1, description="Rows of the pooled grid that the context is made of.")
    context_columns: int = Field(4, ge=1, description="Columns of that grid.")
    hidden: list[int] = Field(
        default_factory=lambda: [256, 256],
        min_length=1,
        description="Units of each cell's hidden layers (1x1 convolutions).",
    )
    anchors: int = Field(
        1,
        ge=1,
        le=256,
        description="Points of the map, clustered from the training data. Each cell gives a Gaussian about every "
        "anchor and how likely each is: a map of 300 m keeps the precision of a room. 1: a single Gaussian.",
    )
    initial_deviation: float = Field(
        0.5, gt=0.0, le=10.0, description="Standard deviation of every cell before training, in units of the map's."
    )
    least_deviation: float = Field(
        1e-3, gt=0.0, le=0.1, description="No cell is surer than this, in units of the map's scale."
    )

    @model_validator(mode="after")
    def _whole_cells(self) -> Self:
        for name, size in (("width", self.width), ("height", self.height)):
            if size % self.cell:
                raise ValueError(f"{name} {size} is no multiple of the cell's size, {self.cell} pixels")
        if self.depth_fill % 2 == 0:
            raise ValueError(f"depth_fill {self.depth_fill} has no middle pixel: take an odd number")
        if self.depth_encoding != "log":
            raise ValueError("scene coordinates need metres: depth_encoding is log")
        if min([*self.hidden, *self.channels, *self.context_channels]) < 1:
            raise ValueError("every layer needs at least one channel")
        return self

    @property
    def cell(self) -> int:
        """Rows and columns of pixels that make a cell."""
        return int(2 ** len(self.channels))

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of cells."""
        return self.height // self.cell, self.width // self.cell


class SceneLoss(StrictModel):
    """How scene coordinates are learnt. Chances of `presence` are the weights of the product and of each expert."""

    likelihood: Literal["robust", "variational"] = Field(
        "robust",
        description="robust: Laplace's density of each cell's distance, in units of its own deviation. variational: "
        "VMLoc's importance-weighted objective (eqs. 13-15) on samples of every cell's coordinate; with one anchor.",
    )
    empty_weight: float = Field(
        0.05,
        ge=0.0,
        description="Cells without a return are drawn to the prior's variance, so that sky and glass do not invent "
        "points.",
    )
    reprojection_weight: float = Field(
        0.0,
        ge=0.0,
        description="Cells without a return are also judged by where the true camera would see their point; 0: not.",
    )


class SceneLimits(StrictModel):
    """What an answer must show to be believed, with one set of modalities; measured on validation frames."""

    inlier_m: float = Field(0.1, gt=0.0, description="A cell this far from where the pose puts it still agrees.")
    inlier_share: float = Field(0.02, ge=0.0, description="And by so much more for every metre of distance.")
    least_share: float = Field(0.3, ge=0.0, le=1.0, description="Share of the cells that must agree with the pose.")
    share_median: float = Field(0.8, ge=0.0, le=1.0, description="The median of that share; the health is 1 there.")
    share_p5: float = Field(0.5, ge=0.0, le=1.0, description="The 5th percentile of that share.")
    most_deviation: float = Field(
        4.0,
        gt=0.0,
        description="A cell whose claimed deviation is larger, in units of the distance at which it still agrees, does "
        "not count as agreeing: it would agree with anything.",
    )
    most_residual: float = Field(
        10.0, gt=0.0, description="Largest size of the agreeing cells' residuals, in units of their own deviations."
    )
    most_camera_change: list[float] = Field(
        default_factory=lambda: [10.0, 10.0, 10.0],
        min_length=3,
        max_length=3,
        description="How much another camera may fit better than the one of camera_info: log of its focal length, and "
        "shift of its principal point to the right and down, in focal lengths.",
    )
    most_camera_surprise: float = Field(
        1e6, gt=0.0, description="Largest such change in units of its own deviation, as the cells claim to know it."
    )
    frames: int = Field(0, ge=0, description="Validation frames behind these numbers.")
    strangers: dict[str, float] = Field(
        default_factory=dict,
        description="Frames that show no place of the map, made of validation frames, by kind: the 99th percentile of "
        "the share of cells that agreed on a pose.",
    )


class SceneCard(StrictModel):
    """What the card says of scene coordinates, measured on validation frames."""

    limits: dict[str, SceneLimits] = Field(description="By mode.")
    depth_low_m: float = Field(0.0, ge=0.0, description="Median depth of a training frame: its 1st percentile.")
    depth_high_m: float = Field(1e6, gt=0.0, description="Its 99th percentile.")
