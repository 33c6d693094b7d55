"""The real node with a scripted network in place of a trained one: `scripted_node.py PARAMETERS [ROS arguments]`.

The model's path says how the network behaves: `scripted`; `slow` (takes 0.3 s per frame); `failing` (raises once);
`missing` (cannot be loaded); `silent` (never has an answer); `silent_other` (the same, of another training);
`moving` (also tells motions, and has a map that can be looked at);
`FOLDER/faulty` (goes wrong as `FOLDER` says, see `faulty_world`).
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from faulty_world import FaultyLocalizer
from worlds import MovingLocalizer, ScriptedCard, ScriptedLocalizer

from vmloc_ros.config import ModelConfig, ProjectionConfig
from vmloc_ros.errors import CheckpointError, ConfigError, VmlocError
from vmloc_ros.ros.node import run_node
from vmloc_ros.types import CameraPrior, Frame, NoPose, PoseEstimate

if TYPE_CHECKING:
    from vmloc_ros.localizer import Localizer


@dataclass
class SlowLocalizer(ScriptedLocalizer):
    def localize(self, frame: Frame, prior: CameraPrior | None = None) -> PoseEstimate | NoPose:
        time.sleep(0.3)
        return super().localize(frame, prior)


@dataclass
class FailingLocalizer(ScriptedLocalizer):
    def localize(self, frame: Frame, prior: CameraPrior | None = None) -> PoseEstimate | NoPose:
        if len(self.seen) == 5:
            self.seen.append(frame)
            raise RuntimeError("the sixth frame is unlucky")
        return super().localize(frame, prior)


@dataclass
class SilentLocalizer(ScriptedLocalizer):
    def localize(self, frame: Frame, prior: CameraPrior | None = None) -> PoseEstimate | NoPose:
        return NoPose(frame.stamp_ns, "silent, as the test wants it")


@dataclass
class OtherSilentLocalizer(SilentLocalizer):
    card: ScriptedCard = field(default_factory=lambda: ScriptedCard(sha256="a7" * 32))


def load(path: Path, config: ModelConfig) -> Localizer:
    if path.name == "faulty":
        return FaultyLocalizer(folder=path.parent)  # type: ignore[return-value]
    if path.name == "cylindrical":
        card = ScriptedCard(projection=ProjectionConfig(kind="cylindrical", width=192))
        return ScriptedLocalizer(card=card)  # type: ignore[return-value]
    kinds = {
        "scripted": ScriptedLocalizer,
        "slow": SlowLocalizer,
        "failing": FailingLocalizer,
        "silent": SilentLocalizer,
        "silent_other": OtherSilentLocalizer,
        "moving": MovingLocalizer,
    }
    if path.name not in kinds:
        raise CheckpointError(f"{path}/model.safetensors: is missing")
    if config.odometry == "network" and path.name != "moving":
        raise ConfigError(f"model.odometry is network, but {path} has no odometry of its own (no motion in its card)")
    fallback = "cuda:0 was asked for, but there is none: running on the CPU" if config.device == "cuda:0" else ""
    return kinds[path.name](fallback=fallback)  # type: ignore[return-value]


if __name__ == "__main__":
    try:
        sys.exit(run_node(Path(sys.argv[1]), sys.argv[2:], load))
    except VmlocError as error:
        print(f"vmloc: {error}", file=sys.stderr)
        sys.exit(1)
