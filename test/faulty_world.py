"""A world in which things go wrong, told by a file that the test writes and the node's scripted network reads.

The test and the node are two processes. Both take the truth from the same `Faults`, so a kidnapped robot is where the
network says it is, and a clock that was set by an hour does not move the robot.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
from worlds import SECOND, START_NS, ScriptedLocalizer, true_pose

from vmloc_ros.files import write_json
from vmloc_ros.geometry import Array
from vmloc_ros.types import CameraPrior, Event, EventKind, Frame, NoPose, PoseEstimate

FILE = "faults.json"


def seconds_of(event: Event) -> float:
    """When an event happens, in seconds of the drive."""
    return (event.stamp_ns - START_NS) / SECOND


def without(events: Iterable[Event], kinds: Iterable[EventKind], from_s: float, to_s: float) -> list[Event]:
    """A drive in which some sensors are silent for a while."""
    silent = set(kinds)
    return [e for e in events if e.kind not in silent or not from_s <= seconds_of(e) < to_s]


def at(event: Event, stamp_ns: int) -> Event:
    """The same message with another stamp."""
    return replace(event, stamp_ns=stamp_ns, payload=replace(event.payload, stamp_ns=stamp_ns))


@dataclass(frozen=True)
class Faults:
    """What is wrong with the world and its network. Times are seconds of the drive, from `START_NS`.

    Attributes:
        delay_s: how long every answer takes, in wall time.
        outlier_share: so many of the answers from `outliers_from_s` on are `outlier_m` off, each in another direction.
        kidnapped_at_s: when the robot is carried away, by `kidnapped_m` along the map's x axis; its odometry does not
            notice.
        clock_jump_s: by how much clocks are set; stamps on the far side of half of it are of after the jump.
        spoiled: answers that hold a number which is none: (time, "pose" or "covariance", the number by name).
    """

    delay_s: float = 0.0
    outlier_share: float = 0.0
    outliers_from_s: float = 0.0
    outlier_m: float = 30.0
    kidnapped_at_s: float | None = None
    kidnapped_m: float = 50.0
    clock_jump_s: float = 0.0
    spoiled: tuple[tuple[float, str, str], ...] = ()

    def write(self, folder: Path) -> None:
        """For the node that reads `folder`."""
        write_json(folder / FILE, asdict(self))

    @classmethod
    def read(cls, folder: Path) -> Faults:
        """What `write` wrote."""
        content = json.loads((folder / FILE).read_text())
        return cls(**content | {"spoiled": tuple(tuple(item) for item in content["spoiled"])})

    def seconds(self, stamp_ns: int) -> float:
        """The time of the drive that a stamp means, whatever the clock was set to."""
        seconds = (stamp_ns - START_NS) / SECOND
        jumped = self.clock_jump_s != 0.0 and abs(seconds) > 0.5 * abs(self.clock_jump_s)
        return seconds - self.clock_jump_s if jumped else seconds

    def true_pose(self, stamp_ns: int) -> Array:
        """`T_map_base`, with the kidnapping."""
        seconds = self.seconds(stamp_ns)
        T_map_base = true_pose(START_NS + round(seconds * SECOND))
        if self.kidnapped_at_s is not None and seconds >= self.kidnapped_at_s:
            T_map_base[0, 3] += self.kidnapped_m
        return T_map_base


@dataclass
class FaultyLocalizer(ScriptedLocalizer):
    """The scripted network in a faulty world; reads `folder` anew for every frame."""

    folder: Path = field(default_factory=Path)

    def localize(self, frame: Frame, prior: CameraPrior | None = None) -> PoseEstimate | NoPose:
        faults = Faults.read(self.folder)
        time.sleep(faults.delay_s)
        answer = super().localize(frame, prior)
        assert isinstance(answer, PoseEstimate)
        seconds = faults.seconds(frame.stamp_ns)
        moved = faults.true_pose(frame.stamp_ns) @ np.linalg.inv(true_pose(frame.stamp_ns))
        rng = np.random.default_rng([7, frame.stamp_ns % 2**32])
        if seconds >= faults.outliers_from_s and rng.uniform() < faults.outlier_share:
            direction = rng.normal(size=3)
            moved[:3, 3] += faults.outlier_m * direction / np.linalg.norm(direction)
        T_map_camera, cov_66 = moved @ answer.T_map_camera, answer.cov_66.copy()
        for at_s, part, number in faults.spoiled:
            if abs(seconds - at_s) < 1e-6:
                (T_map_camera if part == "pose" else cov_66)[0, -1 if part == "pose" else 0] = float(number)
        return replace(answer, T_map_camera=T_map_camera, cov_66=cov_66)
