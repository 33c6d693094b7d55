"""What the pipeline puts out."""

from __future__ import annotations

from dataclasses import dataclass, field

from vmloc_ros.network_odometry import ChainedPose
from vmloc_ros.types import Frame, FusedState, Status


@dataclass(frozen=True, slots=True)
class Note:
    """A line for the log."""

    text: str
    warning: bool = False


@dataclass
class Outputs:
    """What came of one call; empty when nothing happened.

    Attributes:
        states: the live pose, one per accepted odometry sample.
        statuses: one per frame, with the filter's pose at the frame's stamp, and heartbeats.
        frames: the frames that were built.
        resets: reasons for which the past was forgotten.
        bridged: the odometry's increment that led to `states` was not believed (a jump, a frozen source): the filter
            moved without it.
        notes: what is worth a line in the log.
        vo: the network's own odometry, where it has one: a pose per frame that it could compare with one before.
    """

    states: list[FusedState] = field(default_factory=list)
    statuses: list[Status] = field(default_factory=list)
    frames: list[Frame] = field(default_factory=list)
    resets: list[str] = field(default_factory=list)
    bridged: bool = False
    notes: list[Note] = field(default_factory=list)
    vo: list[ChainedPose] = field(default_factory=list)

    def extend(self, other: Outputs) -> None:
        """Appends what another call gave."""
        self.states += other.states
        self.statuses += other.statuses
        self.frames += other.frames
        self.resets += other.resets
        self.notes += other.notes
        self.vo += other.vo
        self.bridged = self.bridged or other.bridged
