"""The one pipeline of the node, of `vmloc localize` and of the tests: stamped events in, poses and verdicts out.

`add` is cheap and may be called from any thread; `take` and `process` belong to one worker, which runs the network.
Called one after the other (`run`) they give the trajectory that the node gives.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from vmloc_ros.assembly import Assembler, sensor_mismatches
from vmloc_ros.clock import ClockVerdict
from vmloc_ros.config import LocalizerConfig
from vmloc_ros.diary import Diary
from vmloc_ros.errors import ModelInputError, TransformError
from vmloc_ros.extrinsics import camera_prior, measured_base
from vmloc_ros.frame_queue import FrameQueue
from vmloc_ros.frame_source import FrameParts, FrameSource
from vmloc_ros.fusion import Fusion, OdometryVerdict
from vmloc_ros.geometry import Array, inverse
from vmloc_ros.increments import BELIEVED
from vmloc_ros.localizers.base import Remembering
from vmloc_ros.monitor import Difference, Monitor
from vmloc_ros.network_odometry import NetworkOdometry, filter_of
from vmloc_ros.outputs import Note, Outputs
from vmloc_ros.pose_keeper import PoseKeeper
from vmloc_ros.types import (
    CameraMotion,
    CameraPrior,
    Event,
    EventKind,
    Frame,
    FrameKey,
    FusedState,
    InitialPose,
    MeasurementResult,
    NoPose,
    OdometrySample,
    PoseEstimate,
    StaticTransform,
    Verdict,
)

if TYPE_CHECKING:  # PyTorch takes seconds to import, and a pipeline needs it only if its localizer does
    from vmloc_ros.localizer import Localizer

NANOSECONDS = 1_000_000_000
ALWAYS_COUNTED = ("frames.inferred", "frames.no_pose")
NOT_TAKEN = (
    OdometryVerdict.NOT_FINITE,
    OdometryVerdict.WRONG_FRAME,
    OdometryVerdict.DUPLICATE,
    OdometryVerdict.TOO_OLD,
    OdometryVerdict.FUTURE,
)  # odometry that changes nothing, as if it had not come
RECEIVED = {EventKind.IMAGE: "images", EventKind.DEPTH: "depths", EventKind.CLOUD: "clouds", EventKind.SCAN: "scans"}


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
        self._by_network = config.model.odometry == "network"
        settings = filter_of(config, localizer.card.motion.max_gap_s if localizer.card.motion else None)
        self._fusion = Fusion(settings, config.frames)
        self._vo = NetworkOdometry(settings, config.frames)
        self._assembler = Assembler(config, self._source.extrinsics, localizer.card.camera)
        self._queue = FrameQueue(config.model.max_pending_frames, config.pairing.overdue_s, only)
        self._counts: Counter[str] = Counter()
        self._notes: deque[Note] = deque(maxlen=100)
        self._diary = Diary(config, self._fusion, self.counters, self._notes.append)
        self._monitor = Monitor(config.monitor)
        self._keeper = PoseKeeper(config, localizer.card.sha256, self._notes.append)
        self._last_arrival_s = time.monotonic()
        self._busy = False
        self._forget = False
        self._epoch = self._fusion.epoch
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
            if self._fusion.epoch != self._epoch:  # a measurement has told the filter that its clock has jumped
                self._source.clear()
                outputs.extend(self._forget_the_past(self._fusion.reset_reason))
            if event.kind in RECEIVED:
                self._counts[f"{RECEIVED[event.kind]}.received"] += 1
            verdict = self._source.add(event)
            if verdict is ClockVerdict.RESET:
                outputs.extend(self._start_over("the data's clock went backwards (a bag that loops?)"))
            elif verdict is not ClockVerdict.OK:
                self._counts[f"rejected.{verdict.value}"] += 1
                self.problems[event.kind.value] = f"{verdict.value}: stamp {event.stamp_ns / NANOSECONDS:.3f} s"
                return outputs
            if event.kind is EventKind.ODOMETRY and self._by_network:
                self._counts["odometry.ignored"] += 1
            elif event.kind is EventKind.ODOMETRY:
                taken, given = self._add_odometry(event.payload)
                outputs.extend(given)
                outputs.states += self._live_state(event.payload) if taken else []
            elif event.kind in RECEIVED:
                self._queue.arrived(event.stamp_ns, self._last_arrival_s)
            self._release()
            waiting = bool(self._queue or self._busy or self._source.pairing.waiting)
            outputs.statuses += self._diary.heartbeat(self._source.clock.now_ns, waiting)
            return self._with_notes(outputs)

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
        resumed_ns = self._keeper.used_ns
        if result.verdict is Verdict.FUSED and resumed_ns is not None and 0 < pose.stamp_ns <= resumed_ns:
            # a pose set by hand wins over the saved one, also where it was stamped before the first odometry
            result = self._fusion.set_pose(replace(pose, stamp_ns=resumed_ns + 1))
        if result.verdict is not Verdict.FUSED:
            self._counts[f"rejected.initialpose_{result.verdict.value}"] += 1
            self.problems["initialpose"] = result.reason
            return Outputs()
        self.problems.pop("initialpose", None)
        self._counts["initialpose.used"] += 1
        return Outputs()

    def _add_odometry(self, sample: OdometrySample) -> tuple[bool, Outputs]:
        """A sample into the filter: whether it was taken, and what came of it beside the live pose."""
        verdict = self._fusion.add_odometry(sample)
        outputs = Outputs(bridged=verdict not in BELIEVED)
        if verdict is OdometryVerdict.CLOCK_RESET:
            self._source.clear()
            self._source.clock.observe(sample.stamp_ns)
            outputs.extend(self._forget_the_past(self._fusion.reset_reason))
        elif verdict is OdometryVerdict.JUMP:
            self._source.odometry.clear()  # poses on the two sides of a jump say nothing of the motion between them
        if verdict is OdometryVerdict.USED:
            self.problems.pop("odometry", None)
        else:
            self.problems["odometry"] = f"odometry {verdict.value} at {sample.stamp_ns / NANOSECONDS:.3f} s"
        if verdict in NOT_TAKEN:
            return False, outputs
        self._source.odometry.insert(sample.stamp_ns, sample.T_odom_base)
        if self._keeper.waiting:
            self._keeper.resume(sample, self._fusion)
        if verdict not in (*BELIEVED, OdometryVerdict.CLOCK_RESET):
            self._monitor.exclude()
        return True, outputs

    def _add_motion(self, motion: CameraMotion | None, T_base_camera: Array) -> tuple[OdometrySample | None, Outputs]:
        """The network's own odometry: given out, and into the filter where it is the filter's.

        Returns:
            The newest sample that the filter has taken, and what came of all.
        """
        newest, outputs = None, Outputs(vo=self._vo.add(motion, T_base_camera))
        if self._vo.problem:
            self.problems["vo"] = self._vo.problem
        elif outputs.vo:
            self.problems.pop("vo", None)
        for pose in list(outputs.vo) if self._by_network else ():
            taken, given = self._add_odometry(pose.sample)
            outputs.extend(given)
            newest = pose.sample if taken else newest
        return newest, outputs

    def _live_state(self, sample: OdometrySample) -> list[FusedState]:
        """The pose at an odometry sample that was taken; none while lost, or where the sample is not the newest."""
        state = self._fusion.state()
        if state is None or state.stamp_ns != sample.stamp_ns or self._fusion.is_lost(sample.stamp_ns):
            return []
        T_odom_base = inverse(state.T_map_odom) @ state.T_map_base
        self._monitor.add(state.stamp_ns, state.T_map_base, T_odom_base)
        self._keeper.offer(state, T_odom_base)
        return [state]

    # ---------------------------------------------------------------------------------------------------- frames out

    def _release(self, everything: bool = False) -> None:
        keys = self._source.ready(everything)
        self._queue.put(keys, self._source.clock.now_ns, self._last_arrival_s, everything)

    def take(self) -> FrameKey | None:
        """The next frame for the worker, None if there is none."""
        with self._lock:
            return self._queue.first()

    def process(self, key: FrameKey) -> Outputs:
        """Builds a frame, runs the network on it and fuses the answer. One worker only."""
        with self._lock:
            job = self._queue.remove(key)
            if job is None:
                return Outputs()  # it went stale between `take` and here
            self._busy = True
            if self._forget:
                self._assembler.clear()  # here, not where the reset happens: assembler and network are the worker's own
                self._localizer.reset()
                self._forget = False
            parts = self._source.gather(key)
            if self._by_network and (ahead := self._vo.predicted(key.stamp_ns)) is not None:
                parts = replace(parts, odometry=parts.odometry.extended(key.stamp_ns, ahead))
            prior, epoch = self._fusion.state_at(key.stamp_ns), self._fusion.epoch
        try:
            return self._infer_and_fuse(parts, prior, job.arrived_s, epoch)
        finally:
            self._busy = False

    def _infer_and_fuse(self, parts: FrameParts, prior: FusedState | None, arrived_s: float, epoch: int) -> Outputs:
        frame = self._assembler.build(parts)
        mounting, unmounted = None, ""
        try:
            mounting = self._T_base_camera = self._assembler.T_base_camera(parts)
        except TransformError as error:
            unmounted = self.problems["transforms"] = str(error)
        known = camera_prior(prior, mounting) if prior is not None and mounting is not None else None
        answer = self._estimate(frame, known)
        estimate = answer if isinstance(answer, PoseEstimate) else None
        measurement, no_pose = None, answer.reason if isinstance(answer, NoPose) else unmounted
        if estimate is not None and mounting is not None:
            measurement = measured_base(estimate, mounting, self._config.frames.map)
        with self._lock:
            self._counts["frames.inferred"] += 1
            newest, outputs = None, Outputs(frames=[frame])
            if epoch != self._fusion.epoch:  # a bag has looped meanwhile: the answer belongs to another time
                measurement, no_pose = None, "the filter has started over while the network worked"
            elif mounting is not None:
                newest, given = self._add_motion(answer.motion, mounting)
                outputs.extend(given)
            if measurement is None:
                self._counts["frames.no_pose"] += 1
                self.problems["network"] = no_pose
                result = MeasurementResult(Verdict.NO_POSE, no_pose)
            else:
                self.problems.pop("transforms", None)
                result = self._fusion.add_measurement(measurement)
            if newest is not None:
                outputs.states += self._live_state(newest)
            now_ns = self._source.clock.now_ns or frame.stamp_ns
            outputs.statuses.append(self._diary.of_frame(frame, estimate, measurement, result, arrived_s, now_ns))
            return outputs

    def _estimate(self, frame: Frame, prior: CameraPrior | None) -> PoseEstimate | NoPose:
        if frame.rgb is None and frame.depth_m is None:
            reasons = "; ".join(f"{modality.value}: {reason}" for modality, reason in frame.absent.items())
            return NoPose(frame.stamp_ns, f"no modality is present ({reasons})")
        try:
            return self._localizer.localize(frame, prior)
        except ModelInputError as error:
            return NoPose(frame.stamp_ns, str(error))

    # ------------------------------------------------------------------------------------------------ silence, resets

    def tick(self) -> Outputs:
        """For a timer: when every input is silent, nothing else releases the frames that wait, or says so."""
        with self._lock:
            outputs = Outputs()
            silent_s = time.monotonic() - self._last_arrival_s
            now_ns = self._source.clock.now_ns
            if now_ns is not None and silent_s >= 2.0 * self._config.pairing.overdue_s:
                self._release(everything=True)
                if silent_s >= max(1.0, self._config.output.heartbeat_s):
                    now_ns += round(silent_s * NANOSECONDS)
                    outputs.statuses.append(self._diary.idle(now_ns, "every input is silent"))
            return self._with_notes(outputs)

    def _with_notes(self, outputs: Outputs) -> Outputs:
        while self._notes:
            outputs.notes.append(self._notes.popleft())
        return outputs

    def reset(self, reason: str) -> Outputs:
        """Forgets state, history, waiting frames and the saved pose; counters, calibration and mountings stay."""
        with self._lock:
            self._source.clear()
            self._keeper.forget()
            return self._start_over(reason)

    def _start_over(self, reason: str) -> Outputs:
        self._fusion.reset(reason)
        return self._forget_the_past(reason)

    def _forget_the_past(self, reason: str) -> Outputs:
        """Everything beside the filter that must not outlive a reset."""
        self._epoch = self._fusion.epoch
        self._vo.break_off()
        self._source.odometry.clear()
        self._queue.clear()
        self._forget = True
        self._diary.clear()
        self._monitor.clear()
        return Outputs(resets=[reason])

    def finish(self) -> Outputs:
        """The data has ended: processes what still waits, gives every measurement its final verdict, saves the pose.

        The last status carries the final totals. Only when no worker runs any more.
        """
        with self._lock:
            self._release(everything=True)
        outputs = self.drain()
        with self._lock:
            self._fusion.flush()
            now_ns = self._source.clock.now_ns
            self._keeper.finish()
            if now_ns is not None:
                outputs.statuses.append(self._diary.idle(now_ns, "the data has ended"))
            return self._with_notes(outputs)

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
            totals |= {"frames.paired": self._queue.paired, "frames.stale": self._queue.stale}
            pairing = self._source.pairing
            totals |= {"messages.repeated": pairing.repeated, "messages.forgotten": pairing.forgotten}
            totals |= {"monitor.exceeded": self._monitor.count} | self._keeper.counters() | self._vo.counters()
            if isinstance(self._localizer, Remembering):
                totals |= self._localizer.counters()
            for what, count in self._assembler.rejected.items():
                totals[f"rejected.{what}"] = totals.get(f"rejected.{what}", 0) + count
            return totals

    def current_problems(self) -> dict[str, str]:
        """What is wrong at present, by part, for diagnostics."""
        with self._lock:
            lost = {"lost": self._diary.lost} if self._diary.lost else {}
            return self._assembler.problems | self.problems | lost | self._keeper.problems()

    def difference(self) -> Difference | None:
        """How far the filter's motion is from dead reckoning's over the monitor's window; None while lost."""
        with self._lock:
            return None if self._diary.lost else self._monitor.difference

    def odometry_model(self) -> tuple[Array, Array]:
        """What the odometry does wrong all the time, and how well that is known; see `Fusion.odometry_model`."""
        with self._lock:
            return self._fusion.odometry_model()
