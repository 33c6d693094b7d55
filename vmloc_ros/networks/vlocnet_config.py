"""VLocNet (A. Valada, N. Radwan, W. Burgard, ICRA 2018): what its network, objective and card can be told."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from vmloc_ros.config import StrictModel
from vmloc_ros.networks.inputs_config import CameraAlone, TrunkName


class VLocNetConfig(CameraAlone):
    """The global pose stream, and the Siamese odometry stream beside it."""

    architecture: Literal["vlocnet"] = Field("vlocnet", description="Two frames and the previous pose.")
    trunk: TrunkName = Field("small", description="Convolutional trunk of each stream (the paper: resnet50).")


class VLocNetObjective(StrictModel):
    """How VLocNet is trained."""

    optimisation: Literal["joint", "alternating"] = Field(
        "alternating", description="One optimizer on the sum of the tasks, or one for each, step by step in turn."
    )


class MotionCard(StrictModel):
    """What the card says of a network's own odometry.

    A frame is compared with the one before it if that is at most `max_gap_s` older.
    """

    max_gap_s: float = Field(gt=0.0, description="Longest time between two frames of a training pair.")
    cov_66: list[list[float]] = Field(
        description="Covariance of an increment (x, y, z, rot x, rot y, rot z; camera axes, right perturbation)."
    )
