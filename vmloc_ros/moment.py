"""What the filter knows at one instant."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from vmloc_ros.consistency import Trend
from vmloc_ros.geometry import inverse
from vmloc_ros.increments import Motion, OdometryVerdict, Segment
from vmloc_ros.odometry_model import UNCALIBRATED
from vmloc_ros.relocalization import Candidate
from vmloc_ros.types import OdometrySample

Array = NDArray[np.float64]
Key = tuple[object, ...]
"""(stamp, rank, source, content): what puts the events of the filter's history in order."""


@dataclass(frozen=True, slots=True, eq=False)
class Memory:
    """What only measurements change.

    Attributes:
        fused_ns: stamp of the last fused measurement (or of a pose set by hand).
        by_source: the same for each source.
        candidates: measurements that were not fused since then.
        trends: how each source's measurements have fitted of late.
    """

    fused_ns: int | None = None
    by_source: tuple[tuple[str, int], ...] = ()
    candidates: tuple[Candidate, ...] = ()
    trends: tuple[tuple[str, Trend], ...] = ()


@dataclass(slots=True, eq=False)
class Moment:
    """What the filter knows at one stamp. Treated as immutable.

    Attributes:
        stamp_ns: the time.
        T_map_base: the pose; None before there is one.
        model_3: what the odometry does wrong, see `odometry_model`.
        cov_99: covariance of the pose's right perturbation and of the model; None before there is a pose.
        T_start_base: dead reckoning since the start: the odometry with its faults bridged. It never jumps.
        metres2, radians2: its accumulated variances.
        sample: the last odometry sample up to here.
        T_start_sample: `T_start_base` at that sample.
        motion: the last believed motion.
        still_ns: since when the odometry has repeated the same pose.
        blind_s: for how long no increment has been believed.
        jumps: how often the odometry has jumped of late, see `increments.count_jumps`.
        segment, verdict: the segment of odometry that leads here, and what became of it.
        memory: what only measurements change.
    """

    stamp_ns: int
    T_map_base: Array | None = None
    model_3: Array = field(default_factory=lambda: UNCALIBRATED)
    cov_99: Array | None = None
    T_start_base: Array = field(default_factory=lambda: np.eye(4))
    metres2: float = 0.0
    radians2: float = 0.0
    sample: OdometrySample | None = None
    T_start_sample: Array = field(default_factory=lambda: np.eye(4))
    motion: Motion | None = None
    still_ns: int = 0
    blind_s: float = 0.0
    jumps: float = 0.0
    segment: Segment | None = None
    verdict: OdometryVerdict = OdometryVerdict.USED
    memory: Memory = Memory()

    @property
    def T_odom_base(self) -> Array:
        """The odometry's own pose at this stamp (interpolated, bridged or held); the identity without odometry."""
        if self.sample is None:
            return np.eye(4)
        if self.stamp_ns == self.sample.stamp_ns:
            return self.sample.T_odom_base
        return self.sample.T_odom_base @ inverse(self.T_start_sample) @ self.T_start_base

    def copied(self) -> Moment:
        """A moment to be changed by the step that makes it (several times as fast as `dataclasses.replace`)."""
        return Moment(
            self.stamp_ns,
            self.T_map_base,
            self.model_3,
            self.cov_99,
            self.T_start_base,
            self.metres2,
            self.radians2,
            self.sample,
            self.T_start_sample,
            self.motion,
            self.still_ns,
            self.blind_s,
            self.jumps,
            self.segment,
            self.verdict,
            self.memory,
        )
