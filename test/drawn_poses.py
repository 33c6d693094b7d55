"""A localizer whose errors are drawn from the covariances that it states, and drives that it knows."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from pictures import NORMALISATION, START_NS, STEP_NS, TINY, card_of, frame_at, pose_at

from vmloc_ros.checkpoint import ModelCard
from vmloc_ros.config import parse
from vmloc_ros.geometry import Array, exp_se3
from vmloc_ros.networks.config import NetworkConfig
from vmloc_ros.samples import Labelled
from vmloc_ros.types import CameraPrior, Frame, FrameKey, Mode, NoPose, PoseEstimate

CARD = card_of(parse(NetworkConfig, TINY["network"], "test"), NORMALISATION)
SIGMAS = np.array([0.3, 0.2, 0.1, 0.02, 0.03, 0.01])
SHARES = {
    Mode.RGB_DEPTH: {"rgb": 0.6, "depth": 0.3, "prior": 0.1},
    Mode.RGB_ONLY: {"rgb": 0.9, "prior": 0.1},
    Mode.DEPTH_ONLY: {"depth": 0.8, "prior": 0.2},
}


def two_drives(count: int = 40) -> list[Labelled]:
    """The bend forwards and backwards, as two recordings whose frames have the same stamps (as those of 7-Scenes)."""
    frames = []
    for number, name in enumerate(("forwards", "backwards")):
        for index in range(count):
            share = (index if number == 0 else count - 1 - index) / (count - 1)
            stamp_ns = START_NS + index * STEP_NS
            key = FrameKey(stamp_ns, stamp_ns, (number,))
            frames.append((replace(frame_at(share, stamp_ns), key=key), pose_at(share), name))
    return frames


@dataclass
class DrawnPoses:
    """Answers the truth of frames it knows, moved by a draw from the covariance that it states.

    Attributes:
        frames: those it knows.
        errors: what the drawn errors are multiplied by.
        overconfidence: what the stated standard deviations are divided by.
        varied: whether frames differ in how sure they are (by a factor of 1 to 10).
        shown: every frame it was asked about.
    """

    frames: list[Labelled]
    errors: float = 1.0
    overconfidence: float = 1.0
    varied: bool = True
    card: ModelCard = CARD
    device: str = "cpu"
    fallback: str = ""
    shown: list[Frame] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._truth = {frame.key: T for frame, T, _ in self.frames}

    def localize(self, frame: Frame, prior: CameraPrior | None = None) -> PoseEstimate | NoPose:
        self.shown.append(frame)
        rng = np.random.default_rng([frame.stamp_ns, *frame.key.depth_stamps_ns, len(frame.mode.value)])
        sigmas = SIGMAS * (10.0 ** rng.uniform() if self.varied else 1.0)
        T = self._truth[frame.key] @ exp_se3(-self.errors * sigmas * rng.normal(size=6))
        cov_66: Array = np.diag((sigmas / self.overconfidence) ** 2)
        return PoseEstimate(frame.stamp_ns, T, cov_66, SHARES[frame.mode], frame.mode)

    def warm_up(self) -> None:
        return

    def reset(self) -> None:
        return
