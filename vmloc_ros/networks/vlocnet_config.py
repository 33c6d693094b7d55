"""VLocNet (A. Valada, N. Radwan, W. Burgard, ICRA 2018): what its network, objective and card can be told."""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field, field_validator, model_validator

from vmloc_ros.config import StrictModel
from vmloc_ros.networks.inputs_config import CameraAlone, TrunkName

RESNET_STAGES = 5
"""Res1 (the first convolution and the pooling) to Res5."""


class VLocNetConfig(CameraAlone):
    """The global pose stream, and the Siamese odometry stream beside it.

    Stages are counted as the paper's Res1 to Res5; those of the trunk `small` are its entries of `channels`, from 1.
    The paper's ablations are the same network: M1 is `activation: relu` without `previous_pose` and `odometry`, M2 the
    same with ELUs, M3 and M4 have the previous pose.
    """

    architecture: Literal["vlocnet"] = Field("vlocnet", description="Two frames and the previous pose.")
    trunk: TrunkName = Field("small", description="Convolutional trunk of each stream (the paper: resnet50).")
    channels: list[int] = Field(
        default_factory=lambda: [16, 32, 64, 128],
        min_length=3,
        description="Trunk `small`: channels of the stem and of each stage; every one halves the image.",
    )
    activation: Literal["elu", "relu"] = Field("elu", description="After the convolutions (the paper: elu; M1: relu).")
    previous_pose: bool = Field(True, description="Fuse the pose of the frame before, ahead of the last stage.")
    previous_channels: int = Field(
        0, ge=0, description="Channels of the map that the previous pose becomes; 0: as the features' (the paper)."
    )
    odometry: bool = Field(True, description="The Siamese stream that tells the motion since the frame before.")
    shared_stages: int = Field(
        2, ge=0, description="So many first stages serve the current frame in both tasks (the paper's best: 3, Res3)."
    )
    joined_stages: int = Field(
        0,
        ge=0,
        description="After so many stages the features of the two frames are put together; 0: all but the last (the "
        "paper). Small pictures want it earlier, where features still tell where things are.",
    )
    correlation: int = Field(
        0,
        ge=0,
        le=8,
        description="Beside the two frames' features the odometry sees how alike they are when one is shifted by up to "
        "so many places; 0: not (the paper).",
    )
    odometry_channels: list[int] = Field(
        default_factory=list, description="Trunk `small`: channels of the stages after that; empty: as in `channels`."
    )
    reduced: int = Field(
        48, ge=0, description="Channels after a 1x1 convolution before the grid is flattened; 0: none (the paper)."
    )
    grid_rows: int = Field(3, ge=1, description="Rows of the average-pooled grid; 1x1 is the paper's global pooling.")
    grid_columns: int = Field(4, ge=1, description="Columns of that grid.")
    hidden: int = Field(256, ge=2, description="Units of the inner-product layer fc1 of either task (the paper: 1024).")
    dropout: float = Field(0.0, ge=0.0, lt=1.0, description="Dropout before the regressors (the paper: 0.2).")

    @property
    def stages(self) -> int:
        """How many stages the trunk has."""
        return len(self.channels) if self.trunk == "small" else RESNET_STAGES

    @property
    def joined_after(self) -> int:
        """The stage after which the odometry's two streams are one."""
        return self.joined_stages or self.stages - 1

    @model_validator(mode="after")
    def _agree(self) -> VLocNetConfig:
        if self.joined_after >= self.stages:
            raise ValueError(f"joined_stages {self.joined_stages} leaves no stage of the trunk's {self.stages}")
        if self.odometry and self.shared_stages > self.joined_after:
            raise ValueError(
                f"shared_stages {self.shared_stages} goes beyond the {self.joined_after} stages before the odometry's "
                "streams are joined"
            )
        if self.odometry_channels and (
            self.trunk != "small" or len(self.odometry_channels) != self.stages - self.joined_after
        ):
            raise ValueError(
                f"odometry_channels is for the {self.stages - self.joined_after} stages of a small trunk after "
                f"joined_stages, and has {len(self.odometry_channels)} entries"
            )
        return self


class VLocNetObjective(StrictModel):
    """How VLocNet is trained."""

    optimisation: Literal["joint", "alternating"] = Field(
        "alternating", description="One optimizer on the sum of the tasks, or one for each, step by step in turn."
    )
    weights: Literal["learned", "fixed"] = Field(
        "learned",
        description="Of position and rotation: learned s_x, s_q that start at objective.beta_0 and gamma_0 (eq. 9), or "
        "1 and `beta` (eq. 3; M1 to M3).",
    )
    beta: float = Field(1.0, gt=0.0, description="Weight of the rotation where the weights are fixed.")
    geometric_consistency: bool = Field(
        True, description="Compare the motion between the two predicted poses with the true one (eqs. 5 to 9)."
    )
    earlier_weight: float = Field(
        1.0,
        ge=0.0,
        description="Weight of the loss of the pair's earlier frame, whose pose is told without a previous one (the "
        "paper: 0).",
    )
    previous: Literal["truth", "own"] = Field(
        "truth",
        description="The previous pose in training: the true one, with noise (the paper: without), or what the network "
        "answers itself to the earlier frame.",
    )
    previous_noise_m: float = Field(
        1.0, ge=0.0, description="Deviation of the noise on a true previous position, per axis (the paper: 0)."
    )
    previous_noise_deg: float = Field(5.0, ge=0.0, description="And on its rotation, per axis (the paper: 0).")
    previous_absent: float = Field(
        0.3, ge=0.0, le=1.0, description="Chance that there is none: a start, or a gap before the frame (the paper: 0)."
    )
    odometry_s_x: float = Field(0.0, description="Initial learned weight of the odometry's translation (eq. 10).")
    odometry_s_q: float = Field(0.0, description="And of its rotation; motions are in units of their deviation.")


class MotionCard(StrictModel):
    """What the card says of a network's own odometry.

    A frame is compared with the one before it if that is at most `max_gap_s` older.
    """

    max_gap_s: float = Field(gt=0.0, description="Longest time between two frames of a training pair.")
    cov_66: list[list[float]] = Field(
        description="Covariance of an increment (x, y, z, rot x, rot y, rot z; camera axes, right perturbation)."
    )
    inflation: float = Field(
        1.0,
        ge=1.0,
        description="Part of cov_66: what the covariance of one increment was multiplied by, because the errors of "
        "consecutive ones are alike and so add up faster than independent ones.",
    )
    pairs: int = Field(0, ge=0, description="Pairs of validation frames behind these numbers.")

    @field_validator("cov_66")
    @classmethod
    def _covariance(cls, value: list[list[float]]) -> list[list[float]]:
        if len(value) != 6 or any(len(row) != 6 for row in value):
            raise ValueError("must be 6 rows of 6 numbers")
        matrix = np.array(value)
        if not np.isfinite(matrix).all() or np.linalg.eigvalsh(0.5 * (matrix + matrix.T)).min() <= 0.0:
            raise ValueError("must be finite and positive definite")
        return value
