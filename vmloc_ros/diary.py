"""The diary: what the pose rests on, why there is none, and one status for every frame or heartbeat."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from vmloc_ros.config import LocalizerConfig
from vmloc_ros.fusion import Fusion
from vmloc_ros.outputs import Note
from vmloc_ros.trajectory import NANOSECONDS
from vmloc_ros.types import (
    Frame,
    MeasurementResult,
    Mode,
    PoseEstimate,
    PoseMeasurement,
    Status,
    Verdict,
)

MAX_NUMBER = 1e100


class Diary:
    """Statuses and modes. Not safe for two threads at once: the pipeline holds its lock.

    Attributes:
        lost: why the last status said LOST, and what to do; empty when it did not.
    """

    def __init__(
        self,
        config: LocalizerConfig,
        fusion: Fusion,
        counters: Callable[[], dict[str, int]],
        tell: Callable[[Note], None],
    ) -> None:
        """
        Args:
            config: everything that can be told.
            fusion: the filter that is reported on.
            counters: gives the totals of a status.
            tell: takes a note for the log when localization is lost or found.
        """
        self._config = config
        self._fusion = fusion
        self._counters = counters
        self._tell = tell
        self._last_ns: int | None = None
        self._fused_mode: Mode | None = None
        self._located = False
        self.lost = ""

    def clear(self) -> None:
        """After a reset: time and mode are forgotten. That the pose is gone has been said with the reset."""
        self._last_ns = None
        self._fused_mode = None
        self._located = False
        self.lost = ""

    def of_frame(
        self,
        frame: Frame,
        estimate: PoseEstimate | None,
        measurement: PoseMeasurement | None,
        result: MeasurementResult,
        arrived_s: float,
        now_ns: int,
    ) -> Status:
        """The status of a frame, with the filter's pose at the frame's stamp.

        Args:
            frame: what the network saw.
            estimate: its answer, if it had one.
            measurement: the answer as the filter got it; one that is not finite does not go on.
            result: what became of it.
            arrived_s: when the frame's last message came (`time.monotonic`).
            now_ns: the newest stamp of the data.
        """
        if result.verdict is Verdict.FUSED:
            self._fused_mode = frame.mode
        mode = self._mode(now_ns)
        # A frame of the time before a reset may lie far ahead of the data: it must not silence the heartbeat.
        self._last_ns = max(self._last_ns or 0, min(frame.stamp_ns, now_ns))
        return Status(
            stamp_ns=frame.stamp_ns,
            mode=mode,
            verdict=result.verdict,
            reason=result.reason,
            key=frame.key,
            state=self._fusion.state_at(frame.stamp_ns) if mode is not Mode.LOST else None,
            measurement=measurement if measurement is not None and _has_numbers(measurement) else None,
            expert_weights=estimate.expert_weights if estimate else {},
            health=estimate.health if estimate else 0.0,
            nis=result.nis,
            dof=result.dof,
            latency_ms=1e3 * (time.monotonic() - arrived_s),
            absent=frame.absent,
            counters=self._counters(),
        )

    def heartbeat(self, now_ns: int | None, waiting: bool) -> list[Status]:
        """A status when no frame has given one for `output.heartbeat_s` of data, so that the diary has no holes.

        `waiting`: frames are on their way, and their statuses come first. Without any data there is none.
        """
        if now_ns is None:
            return []
        if self._last_ns is None:
            self._last_ns = now_ns
        if waiting or now_ns - self._last_ns < self._config.output.heartbeat_s * NANOSECONDS:
            return []
        self._last_ns = now_ns
        return [self.idle(now_ns, "no frame")]

    def idle(self, now_ns: int, reason: str) -> Status:
        """A status without a frame."""
        mode = self._mode(now_ns)
        state = self._fusion.state() if mode is not Mode.LOST else None
        return Status(
            stamp_ns=state.stamp_ns if state else now_ns,
            mode=mode,
            verdict=Verdict.NO_POSE,
            reason=reason,
            key=None,
            state=state,
            measurement=None,
            expert_weights={},
            health=0.0,
            nis=None,
            dof=0,
            latency_ms=0.0,
            absent={},
            counters=self._counters(),
        )

    def _mode(self, now_ns: int) -> Mode:
        """What the pose rests on: the last fused frame's modalities as long as it is recent."""
        self.lost = self._why_lost(now_ns)
        if self._located and self.lost:
            self._tell(Note(f"lost: {self.lost}", warning=True))
        elif not self._located and not self.lost:
            self._tell(Note(f"localized at {now_ns / NANOSECONDS:.3f} s"))
        self._located = not self.lost
        if self.lost:
            return Mode.LOST
        since_s = self._fusion.seconds_since_fused(now_ns)
        if self._fused_mode is None or since_s is None or since_s > self._config.filter.dead_reckoning_after_s:
            return Mode.DEAD_RECKONING
        return self._fused_mode

    def _why_lost(self, now_ns: int) -> str:
        """Why there is no pose to rely on, and the way out; empty where there is one."""
        limits = self._config.filter
        if self._fusion.state() is None:
            return (
                f"no pose yet; {limits.initialize_after} measurements that agree, or one pose on /initialpose, give it"
            )
        if not self._fusion.is_lost(now_ns):
            return ""
        since_s = self._fusion.seconds_since_fused(now_ns) or 0.0
        if since_s > limits.lost_after_s:
            return (
                f"no measurement has been fused for {since_s:.1f} s (filter.lost_after_s is {limits.lost_after_s:g}); "
                "the next one that is ends it: check camera and lidar, or set the pose on /initialpose"
            )
        by_network = self._config.model.odometry == "network"
        source = "a motion of the network (model.odometry: network)" if by_network else "odometry"
        check = "the camera and the rate of its frames" if by_network else "the odometry's topic"
        return (
            f"neither {source} nor a fused measurement for more than {limits.lost_odometry_gap_s:g} s "
            f"(filter.lost_odometry_gap_s); the next one ends it: check {check}"
        )


def _has_numbers(measurement: PoseMeasurement) -> bool:
    """Whether a measurement is finite, also after its covariance has been turned to other axes."""
    arrays = (measurement.T_map_base, measurement.cov_66)
    return all(bool(np.abs(array).max() < MAX_NUMBER) for array in arrays)  # NaN is not
