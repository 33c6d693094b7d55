"""The one pipeline of the node, of `vmloc localize` and of the tests: stamped events in, poses and verdicts out.

`add` is cheap and may be called from any thread; `take` and `process` belong to one worker, which runs the network.
Called one after the other (`run`) they give the trajectory that the node gives.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmloc_ros.assembly import Assembler, sensor_mismatches
from vmloc_ros.clock import ClockVerdict
from vmloc_ros.config import LocalizerConfig
from vmloc_ros.errors import ModelInputError, TransformError
from vmloc_ros.frame_source import FrameParts, FrameSource
from vmloc_ros.fusion import Fusion, OdometryVerdict
from vmloc_ros.geometry import Array, adjoint, inverse
from vmloc_ros.increments import BELIEVED
from vmloc_ros.outputs import Outputs
from vmloc_ros.types import (
    Event,
    EventKind,
    Frame,
    FrameKey,
    FusedState,
    InitialPose,
    MeasurementResult,
    Mode,
    NoPose,
    OdometrySample,
    PoseEstimate,
    PoseMeasurement,
    StaticTransform,
    Status,
    Verdict,
)

if TYPE_CHECKING:  # PyTorch takes seconds to import, and a pipeline needs it only if its localizer does
    from vmloc_ros.localizer import Localizer

NANOSECONDS = 1_000_000_000
ALWAYS_COUNTED = ("frames.paired", "frames.inferred", "frames.stale", "frames.no_pose")
RECEIVED = {EventKind.IMAGE: "images", EventKind.DEPTH: "depths", EventKind.CLOUD: "clouds", EventKind.SCAN: "scans"}


@dataclass(frozen=True, slots=True)
class _Job:
    key: FrameKey
    arrived_s: float


class Pipeline:
    """See the module's docstring.

    Attributes:
        problems: what is wrong at present, by part (`image`, `depth`, `transforms`, ...), for diagnostics.
    """

    def __init__(self, config: LocalizerConfig, localizer: Localizer, only: Iterable[FrameKey] | None = None) -> None:
        """
        Args:
            config: everything that can be told.
            localizer: a loaded model.
            only: use exactly these frames instead of pairing messages by their arrival (`vmloc localize --use-stamps`).
        """
        self._config = config
        self._localizer = localizer
        self._lock = threading.RLock()
        self._source = FrameSource(config)
        self._fusion = Fusion(config.filter, config.frames)
        self._assembler = Assembler(config, self._source.extrinsics, localizer.card.camera)
        self._pending: deque[_Job] = deque()
        self._only = None if only is None else deque(sorted(only, key=lambda key: key.stamp_ns))
        self._arrivals: dict[int, float] = {}
        self._counts: Counter[str] = Counter()
        self._last_status_ns: int | None = None
        self._last_arrival_s = time.monotonic()
        self._fused_mode: Mode | None = None
        self._busy = False
        self._forget = False
        self._T_base_camera: Array | None = None
        self.problems: dict[str, str] = {}
        mismatches = sensor_mismatches(config, localizer.card.input, localizer.card.projection)
        if mismatches:
            self.problems["sensors"] = "; ".join(mismatches)

    # ------------------------------------------------------------------------------------------------------ events in

    def add(self, event: Event) -> Outputs:
        """Takes one event: stores it, releases frames, and lets odometry through to the filter."""
        with self._lock:
            self._last_arrival_s = time.monotonic()
            if event.kind is EventKind.STATIC_TRANSFORM:
                return self._add_transform(event.payload)
            if event.kind is EventKind.INITIAL_POSE:
                return self._set_pose(event.payload)
            if event.kind is EventKind.TRUTH:
                return Outputs()
            outputs = Outputs()
            if event.kind in RECEIVED:
                self._counts[f"{RECEIVED[event.kind]}.received"] += 1
            verdict = self._source.add(event)
            if verdict is ClockVerdict.RESET:
                outputs.extend(self._start_over("the data's clock went backwards (a bag that loops?)"))
            elif verdict is not ClockVerdict.OK:
                self._counts[f"rejected.{verdict.value}"] += 1
                self.problems[event.kind.value] = f"{verdict.value}: stamp {event.stamp_ns / NANOSECONDS:.3f} s"
                return outputs
            if event.kind is EventKind.ODOMETRY:
                outputs.extend(self._add_odometry(event.payload))
            elif event.kind in RECEIVED:
                self._arrivals[event.stamp_ns] = self._last_arrival_s
                while len(self._arrivals) > 256:
                    del self._arrivals[next(iter(self._arrivals))]
            self._release(self._source.ready())
            outputs.extend(self._heartbeat())
            return outputs

    def count_rejection(self, what: str, reason: str) -> None:
        """Counts a message that could not even become an event (a conversion that failed)."""
        with self._lock:
            self._counts[f"rejected.{what}"] += 1
            self.problems[what] = reason

    def T_base_camera(self) -> Array | None:
        """Mounting of the camera of the last frame, None as long as it is not known."""
        return self._T_base_camera

    def set_extrinsic(self, parent: str, child: str, T_parent_child: Array) -> None:
        """A mounting, as from /tf_static."""
        self.add(Event(EventKind.STATIC_TRANSFORM, 0, StaticTransform(parent, child, T_parent_child)))

    def _add_transform(self, transform: StaticTransform) -> Outputs:
        try:
            self._source.extrinsics.add(transform)
        except TransformError as error:
            self.count_rejection("static_transform", str(error))
        return Outputs()

    def _set_pose(self, pose: InitialPose) -> Outputs:
        result = self._fusion.set_pose(pose)
        if result.verdict is not Verdict.FUSED:
            self._counts[f"rejected.initialpose_{result.verdict.value}"] += 1
            self.problems["initialpose"] = result.reason
            return Outputs()
        self.problems.pop("initialpose", None)
        self._counts["initialpose.used"] += 1
        return Outputs()

    def _add_odometry(self, sample: OdometrySample) -> Outputs:
        verdict = self._fusion.add_odometry(sample)
        outputs = Outputs(bridged=verdict not in BELIEVED)
        if verdict is OdometryVerdict.CLOCK_RESET:
            outputs.resets.append("the odometry's clock went backwards")
            self._source.odometry.clear()
        elif verdict is OdometryVerdict.JUMP:
            self._source.odometry.clear()  # poses on the two sides of a jump say nothing of the motion between them
        if verdict in (OdometryVerdict.USED, OdometryVerdict.GAP, OdometryVerdict.JUMP, OdometryVerdict.CLOCK_RESET):
            self._source.odometry.insert(sample.stamp_ns, sample.T_odom_base)
            self.problems.pop("odometry", None)
        if verdict is not OdometryVerdict.USED:
            self.problems["odometry"] = f"odometry {verdict.value} at {sample.stamp_ns / NANOSECONDS:.3f} s"
        state = self._fusion.state()
        if state is not None and state.stamp_ns == sample.stamp_ns and not self._fusion.is_lost(sample.stamp_ns):
            outputs.states.append(state)
        return outputs

    # ---------------------------------------------------------------------------------------------------- frames out

    def _release(self, keys: list[FrameKey], everything: bool = False) -> None:
        if self._only is not None:
            keys = self._recorded(everything)
        for key in keys:
            self._counts["frames.paired"] += 1
            arrived = self._arrivals.get(key.stamp_ns, self._last_arrival_s)
            self._pending.append(_Job(key, arrived))
        if self._only is None:
            while len(self._pending) > self._config.model.max_pending_frames:
                self._pending.popleft()
                self._counts["frames.stale"] += 1

    def _recorded(self, everything: bool) -> list[FrameKey]:
        """Recorded frames whose messages, and the odometry around them, must have come by now."""
        assert self._only is not None
        wait_ns = round(self._config.pairing.overdue_s * NANOSECONDS)
        now_ns, keys = self._source.clock.now_ns, []
        while self._only and now_ns is not None:
            newest_ns = max(self._only[0].stamp_ns, *self._only[0].depth_stamps_ns, 0)
            if not everything and now_ns < newest_ns + wait_ns:
                break
            keys.append(self._only.popleft())
        return keys

    def take(self) -> FrameKey | None:
        """The next frame for the worker, None if there is none."""
        with self._lock:
            return self._pending[0].key if self._pending else None

    def process(self, key: FrameKey) -> Outputs:
        """Builds a frame, runs the network on it and fuses the answer. One worker only."""
        with self._lock:
            job = next((job for job in self._pending if job.key is key), None)
            if job is None:
                return Outputs()  # it went stale between `take` and here
            self._pending.remove(job)
            self._busy = True
            if self._forget:
                self._assembler.clear()  # here, not where the reset happens: the assembler is the worker's own
                self._forget = False
            parts = self._source.gather(key)
            prior = self._fusion.state_at(key.stamp_ns)
        try:
            return self._infer_and_fuse(parts, prior, job.arrived_s)
        finally:
            self._busy = False

    def _infer_and_fuse(self, parts: FrameParts, prior: FusedState | None, arrived_s: float) -> Outputs:
        frame = self._assembler.build(parts)
        answer = self._estimate(frame, prior)
        estimate = answer if isinstance(answer, PoseEstimate) else None
        measurement, no_pose = None, answer.reason if isinstance(answer, NoPose) else ""
        try:
            self._T_base_camera = self._assembler.T_base_camera(parts)
            if estimate is not None:
                measurement = self._to_base(estimate, self._T_base_camera)
        except TransformError as error:
            no_pose = no_pose or str(error)
            self.problems["transforms"] = str(error)
        with self._lock:
            self._counts["frames.inferred"] += 1
            if measurement is None:
                self._counts["frames.no_pose"] += 1
                result = MeasurementResult(Verdict.NO_POSE, no_pose)
            else:
                self.problems.pop("transforms", None)
                result = self._fusion.add_measurement(measurement)
            status = self._frame_status(frame, estimate, measurement, result, arrived_s)
            return Outputs(statuses=[status], frames=[frame])

    def _estimate(self, frame: Frame, prior: FusedState | None) -> PoseEstimate | NoPose:
        if frame.rgb is None and frame.depth_m is None:
            reasons = "; ".join(f"{modality.value}: {reason}" for modality, reason in frame.absent.items())
            return NoPose(frame.stamp_ns, f"no modality is present ({reasons})")
        try:
            return self._localizer.localize(frame, prior)
        except ModelInputError as error:
            self.problems["network"] = str(error)
            return NoPose(frame.stamp_ns, str(error))

    def _to_base(self, estimate: PoseEstimate, T_base_camera: Array) -> PoseMeasurement:
        """`T_map_base` and its covariance: camera axes to body axes by the adjoint of the mounting."""
        turn = adjoint(T_base_camera)
        return PoseMeasurement(
            estimate.stamp_ns,
            estimate.T_map_camera @ inverse(T_base_camera),
            turn @ estimate.cov_66 @ turn.T,
            frame_id=self._config.frames.map,
        )

    # -------------------------------------------------------------------------------------------------------- statuses

    def _frame_status(
        self,
        frame: Frame,
        estimate: PoseEstimate | None,
        measurement: PoseMeasurement | None,
        result: MeasurementResult,
        arrived_s: float,
    ) -> Status:
        now_ns = max(self._source.clock.now_ns or frame.stamp_ns, frame.stamp_ns)
        if result.verdict is Verdict.FUSED:
            self._fused_mode = frame.mode
        mode = self._mode(now_ns)
        self._last_status_ns = max(self._last_status_ns or 0, frame.stamp_ns)
        return Status(
            stamp_ns=frame.stamp_ns,
            mode=mode,
            verdict=result.verdict,
            reason=result.reason,
            key=frame.key,
            state=self._fusion.state_at(frame.stamp_ns) if mode is not Mode.LOST else None,
            measurement=measurement,
            expert_weights=estimate.expert_weights if estimate else {},
            health=estimate.health if estimate else 0.0,
            nis=result.nis,
            dof=result.dof,
            latency_ms=1e3 * (time.monotonic() - arrived_s),
            absent=frame.absent,
            counters=self.counters(),
        )

    def _mode(self, now_ns: int) -> Mode:
        """What the pose rests on: the last fused frame's modalities as long as it is recent."""
        if self._fusion.state() is None or self._fusion.is_lost(now_ns):
            return Mode.LOST
        since_s = self._fusion.seconds_since_fused(now_ns)
        if self._fused_mode is None or since_s is None or since_s > self._config.filter.dead_reckoning_after_s:
            return Mode.DEAD_RECKONING
        return self._fused_mode

    def _heartbeat(self) -> Outputs:
        """A status when no frame has given one for a while (data time): the diary has no holes."""
        now_ns = self._source.clock.now_ns
        if now_ns is None:
            return Outputs()
        if self._last_status_ns is None:
            self._last_status_ns = now_ns
        waiting = self._pending or self._busy or self._source.pairing.waiting
        if waiting or now_ns - self._last_status_ns < self._config.output.heartbeat_s * NANOSECONDS:
            return Outputs()
        self._last_status_ns = now_ns
        return Outputs(statuses=[self._idle_status(now_ns, "no frame")])

    def _idle_status(self, now_ns: int, reason: str) -> Status:
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
            counters=self.counters(),
        )

    # ------------------------------------------------------------------------------------------------ silence, resets

    def tick(self) -> Outputs:
        """For a timer: when every input is silent, nothing else releases the frames that wait, or says so."""
        with self._lock:
            silent_s = time.monotonic() - self._last_arrival_s
            now_ns = self._source.clock.now_ns
            if now_ns is None or silent_s < 2.0 * self._config.pairing.overdue_s:
                return Outputs()
            self._release(self._source.ready(everything=True))
            if silent_s < max(1.0, self._config.output.heartbeat_s):
                return Outputs()
            return Outputs(
                statuses=[self._idle_status(now_ns + round(silent_s * NANOSECONDS), "every input is silent")]
            )

    def reset(self, reason: str) -> Outputs:
        """Forgets state, history and waiting frames; counters, calibration and mountings stay."""
        with self._lock:
            self._source.clear()
            return self._start_over(reason)

    def _start_over(self, reason: str) -> Outputs:
        self._fusion.reset(reason)
        self._localizer.reset()
        self._source.odometry.clear()
        self._pending.clear()
        self._arrivals.clear()
        self._forget = True
        self._last_status_ns = None
        self._fused_mode = None
        self._counts["resets"] += 1
        return Outputs(resets=[reason])

    def finish(self) -> Outputs:
        """The data has ended: processes what still waits and gives every measurement its final verdict.

        The last status carries the final totals. Only when no worker runs any more.
        """
        with self._lock:
            self._release(self._source.ready(everything=True), everything=True)
        outputs = self.drain()
        with self._lock:
            self._fusion.flush()
            now_ns = self._source.clock.now_ns
            if now_ns is not None:
                outputs.statuses.append(self._idle_status(now_ns, "the data has ended"))
        return outputs

    def drain(self) -> Outputs:
        """Processes every frame that waits; for callers without a worker thread."""
        outputs = Outputs()
        while (key := self.take()) is not None:
            outputs.extend(self.process(key))
        return outputs

    def run(self, events: Iterable[Event]) -> Iterator[Outputs]:
        """Everything in one thread, every frame used: what `vmloc localize` and the tests do."""
        for event in events:
            outputs = self.add(event)
            outputs.extend(self.drain())
            yield outputs
        yield self.finish()

    def counters(self) -> dict[str, int]:
        """Totals since the start: `images.received`, `frames.stale`, `verdict.fused`, `odometry.jump`, ..."""
        with self._lock:
            totals = dict.fromkeys(ALWAYS_COUNTED, 0) | dict(self._counts) | self._fusion.counters()
            for what, count in self._assembler.rejected.items():
                totals[f"rejected.{what}"] = totals.get(f"rejected.{what}", 0) + count
            return totals

    def current_problems(self) -> dict[str, str]:
        """What is wrong at present, by part, for diagnostics."""
        with self._lock:
            return self._assembler.problems | self.problems
