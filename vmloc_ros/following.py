"""A localizer and the filter over labelled drives, frame by frame in order, as the node would run them.

At each frame the odometry up to its stamp goes into the filter, the filter's pose becomes the localizer's prior, and
the answer is fused. What the filter knows at a frame rests on nothing later. Reported poses are `T_map_base`, as in the
reports of runs, unless the camera's are asked for: they differ by the mounting's lever arm.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from vmloc_ros.config import FilterConfig, FrameNames, LocalizerConfig, ModelConfig
from vmloc_ros.datasets.base import Recording
from vmloc_ros.errors import ConfigError, DatasetError
from vmloc_ros.evaluation import SENSOR_ABSENT, Answers, only
from vmloc_ros.extrinsics import camera_prior, measured_base
from vmloc_ros.fusion import Fusion
from vmloc_ros.geometry import Array, adjoint, inverse, log_quaternion, make_pose, rotation_from_log_quaternion
from vmloc_ros.localizers.base import Localizer
from vmloc_ros.network_odometry import NetworkOdometry, filter_of
from vmloc_ros.odometry_drift import Stretch
from vmloc_ros.samples import Labelled
from vmloc_ros.trajectory import NANOSECONDS, Trajectory
from vmloc_ros.types import (
    CameraPrior,
    EventKind,
    Frame,
    FusedState,
    InitialPose,
    Mode,
    NoPose,
    OdometrySample,
    PoseEstimate,
    Verdict,
)

OdometryKind = Literal["recording", "network", "none"]
MAX_GAP_S = 1.0
"""Frames further apart than this, or of another recording, start a new filter."""
LEAD_NS = NANOSECONDS
"""Odometry from so long before a stretch's first frame on is given to its filter."""
SIGMA_M, SIGMA_RAD = 0.1, 0.02
"""Deviations of a start pose that is the true one: as good as known."""


@dataclass(frozen=True, eq=False)
class Drive:
    """What belongs to a recording besides its frames.

    Attributes:
        T_base_camera: the mounting.
        odometry: in order of stamp; empty where there is none.
    """

    T_base_camera: Array
    odometry: tuple[OdometrySample, ...] = ()


@dataclass(frozen=True, eq=False)
class Start:
    """A pose that the filter is given at the first frame: the true one, moved.

    Attributes:
        deviation_6: added to the camera's state (x, y, z in metres, then the three entries of its log-quaternion), as
            in Generative Map's Table 3.
        cov_66: of the right perturbation of T_map_camera; the filter is told what that is at the base, which a turn
            of the camera moves.
    """

    deviation_6: Array
    cov_66: Array

    def pose(self, T_map_camera: Array) -> Array:
        """The moved pose."""
        return make_pose(
            rotation_from_log_quaternion(log_quaternion(T_map_camera[:3, :3]) + self.deviation_6[3:]),
            T_map_camera[:3, 3] + self.deviation_6[:3],
        )


def start_from(deviation_m: float, deviation_entries: float) -> Start:
    """A start whose position is off by so much along every axis of the map, or all six of whose entries are; its
    covariance says so.

    Raises:
        ConfigError: a number is not finite, or both are given.
    """
    if not np.isfinite([deviation_m, deviation_entries]).all():
        raise ConfigError("the deviation of the start must be a finite number")
    if deviation_m and deviation_entries:
        raise ConfigError("give the start's deviation in metres or in all six entries, not both")
    deviation_6 = np.array([deviation_m or deviation_entries] * 3 + [deviation_entries] * 3)
    sigma_m = max(SIGMA_M, abs(deviation_m), abs(deviation_entries))
    sigma_rad = max(SIGMA_RAD, 2.0 * abs(deviation_entries))
    return Start(deviation_6, np.diag([sigma_m**2] * 3 + [sigma_rad**2] * 3))


@dataclass(frozen=True, slots=True, eq=False)
class Followed:
    """One frame.

    Attributes:
        stretch: number of the part without a gap that it is in; `place` in it.
        T_map_camera, T_base_camera: the truth, and the mounting.
        answer: the network's.
        before, after: the filter's pose without and with the answer; None while it has none.
        dead: T_map_base of the odometry alone from the same start; None where it is not known.
    """

    recording: str
    stretch: int
    place: int
    stamp_ns: int
    T_map_camera: Array
    T_base_camera: Array
    answer: PoseEstimate | NoPose
    verdict: Verdict
    before: FusedState | None
    after: FusedState | None
    dead: Array | None

    @property
    def T_map_base(self) -> Array:
        """The truth."""
        return self.T_map_camera @ inverse(self.T_base_camera)


@dataclass(frozen=True, eq=False)
class Following:
    """What came of it.

    Attributes:
        frames: in their order.
        odometry: what the filter was driven by.
        counters: of all filters and of the localizer, added up.
    """

    frames: list[Followed]
    odometry: OdometryKind
    counters: dict[str, int]

    def network(self, camera: bool = False) -> Answers:
        """The network's own answers, as T_map_base or as T_map_camera; it may have been told the filter's pose."""
        answers = Answers()
        for k, frame in enumerate(self.frames):
            answer = frame.answer
            if camera:
                answers.add(k, frame.stamp_ns, frame.T_map_camera, answer)
                continue
            if isinstance(answer, PoseEstimate):
                seen = measured_base(answer, frame.T_base_camera, "map")
                answer = replace(answer, T_map_camera=seen.T_map_base, cov_66=seen.cov_66)
            answers.add(k, frame.stamp_ns, frame.T_map_base, answer)
        return answers

    def fused(self, camera: bool = False, from_place: int = 0) -> Answers:
        """The filter's poses with each frame's answer, as T_map_base or as T_map_camera.

        Args:
            camera: the camera's poses, to be compared with the network's.
            from_place: frames of a stretch before this one are left out.
        """
        answers = Answers()
        for k, frame in enumerate(self.frames):
            if frame.place < from_place:
                continue
            if frame.after is None:
                answers.add(k, frame.stamp_ns, frame.T_map_base, NoPose(frame.stamp_ns, "the filter has no pose"))
                continue
            T, cov_66, true = frame.after.T_map_base, frame.after.cov_66, frame.T_map_base
            if camera:
                prior = camera_prior(frame.after, frame.T_base_camera)
                T, cov_66, true = prior.T_map_camera, prior.cov_66, frame.T_map_camera
            answers.add(k, frame.stamp_ns, true, T)
            answers.covariances.append(cov_66)
        return answers

    def dead_reckoning(self) -> Answers:
        """T_map_base of the odometry alone."""
        answers = Answers()
        for k, frame in enumerate(self.frames):
            unknown = NoPose(frame.stamp_ns, "no odometry")
            answers.add(k, frame.stamp_ns, frame.T_map_base, unknown if frame.dead is None else frame.dead)
        return answers

    def motion_stretches(self) -> list[Stretch]:
        """The network's motions, chained as far as each begins where the one before ended; of the camera."""
        true = {(frame.stretch, frame.stamp_ns): frame.T_map_camera for frame in self.frames}
        runs: list[list[tuple[int, Array, Array]]] = []
        for frame in self.frames:
            motion = frame.answer.motion
            begin = None if motion is None else true.get((frame.stretch, motion.begin_ns))
            if motion is None or begin is None or motion.end_ns != frame.stamp_ns:
                continue
            if not runs or runs[-1][-1][0] != motion.begin_ns or runs[-1][-1][1] is not begin:
                runs.append([(motion.begin_ns, begin, np.eye(4))])
            runs[-1].append((frame.stamp_ns, frame.T_map_camera, runs[-1][-1][2] @ motion.T_begin_end))
        return [
            Stretch(
                np.array([stamp_ns for stamp_ns, _, _ in run], dtype=np.int64),
                np.array([T for _, T, _ in run]),
                np.array([T for _, _, T in run]),
            )
            for run in runs
        ]


def drive_of(recording: Recording, stamp_ns: int, T_map_camera: Array, with_odometry: bool) -> Drive:
    """The mounting and the odometry of a recording.

    The mounting is what lies between the recording's truth and a frame's label.

    Args:
        stamp_ns, T_map_camera: of any frame of it.

    Raises:
        DatasetError: the truth is not known at that frame.
    """
    truth = recording.truth()
    if not truth.covers(stamp_ns):
        raise DatasetError(f"{recording.name}: no truth at {stamp_ns} ns, where a frame has a label; prepare it again")
    T_base_camera = inverse(truth.interpolate(stamp_ns)) @ T_map_camera
    if not with_odometry:
        return Drive(T_base_camera)
    samples = (event.payload for event in recording.events() if event.kind is EventKind.ODOMETRY)
    return Drive(T_base_camera, tuple(sorted(samples, key=lambda sample: int(sample.stamp_ns))))


def follow(
    localizer: Localizer,
    frames: Iterable[Labelled],
    drives: Mapping[str, Drive],
    odometry: OdometryKind = "recording",
    config: FilterConfig | None = None,
    names: FrameNames | None = None,
    start: Start | None = None,
    mode: Mode | None = None,
    advance: Callable[[], None] = lambda: None,
) -> Following:
    """Runs a localizer and the filter over frames.

    Args:
        localizer: is reset at the beginning of every stretch.
        frames: (frame, T_map_camera, recording), in order of stamp within each recording.
        drives: by recording.
        odometry: what drives the filter: the recording's, the network's own motions (with their covariances), or
            nothing: the pose is held.
        config: of the filter.
        names: of the frames that the odometry is between.
        start: a pose that the filter is given at the beginning of every stretch; None: it starts from the answers.
        mode: show these sensors alone; None: all that a frame has.
        advance: called once per frame.

    Raises:
        ConfigError: a recording of `frames` that `drives` does not have, or that has no odometry.
    """
    settings = config or FilterConfig()
    motion, gap_s = localizer.card.motion, MAX_GAP_S
    if odometry != "recording":  # nothing but frames tells the filter that time passes
        longest_s = motion.max_gap_s if odometry == "network" and motion is not None else 0.0
        gap_s = min(MAX_GAP_S, max(settings.future_tolerance_s, longest_s))
    if odometry == "network":
        driven = LocalizerConfig(filter=settings, model=ModelConfig(odometry="network"))
        settings = filter_of(driven, None if motion is None else motion.max_gap_s)
    result: list[Followed] = []
    totals: Counter[str] = Counter()
    at_hand: _Stretch | None = None
    for frame, T_map_camera, recording in frames:
        advance()
        if at_hand is None or not at_hand.goes_on(recording, frame.stamp_ns, gap_s):
            if at_hand is not None:
                totals.update(at_hand.finish())
            drive = _drive(drives, recording, odometry)
            number = 0 if not result else result[-1].stretch + 1
            localizer.reset()
            at_hand = _Stretch(localizer, drive, recording, number, odometry, settings, names or FrameNames(), start)
        shown = frame if mode is None else only(frame, mode)
        result.append(at_hand.step(frame.stamp_ns, shown, T_map_camera))
    if at_hand is not None:
        totals.update(at_hand.finish())
    return Following(result, odometry, dict(totals))


def _drive(drives: Mapping[str, Drive], recording: str, odometry: OdometryKind) -> Drive:
    if recording not in drives:
        raise ConfigError(f"{recording}: its mounting is not known; there are {', '.join(drives) or 'no drives'}")
    if odometry == "recording" and not drives[recording].odometry:
        raise ConfigError(f"{recording}: the recording has no odometry; use the network's (network) or none")
    return drives[recording]


class _Stretch:
    """One filter over frames without a gap."""

    def __init__(
        self,
        localizer: Localizer,
        drive: Drive,
        recording: str,
        number: int,
        odometry: OdometryKind,
        config: FilterConfig,
        names: FrameNames,
        start: Start | None,
    ) -> None:
        self._localizer = localizer
        self._drive = drive
        self._recording = recording
        self._number = number
        self._odometry = odometry
        self._names = names
        self._start = start
        self._fusion = Fusion(config, names)
        self._chain = NetworkOdometry(config, names)
        self._stamps = [int(sample.stamp_ns) for sample in drive.odometry]
        self._fed = 0
        self._place = 0
        self._newest_ns = 0
        self._reckoned = _Reckoning(odometry, drive)

    def goes_on(self, recording: str, stamp_ns: int, gap_s: float) -> bool:
        """Whether a frame belongs to it."""
        return recording == self._recording and 0 < stamp_ns - self._newest_ns <= gap_s * NANOSECONDS

    def step(self, stamp_ns: int, shown: Frame | None, T_map_camera: Array) -> Followed:
        """One more frame; `shown` is None where it lacks the sensors."""
        fusion, T_base_camera = self._fusion, self._drive.T_base_camera
        T_start = T_map_camera if self._start is None else self._start.pose(T_map_camera)
        if self._odometry == "recording":
            self._feed(stamp_ns)
        if self._place == 0 and self._start is not None:
            turn = adjoint(T_base_camera)
            cov_66 = turn @ self._start.cov_66 @ turn.T
            pose = InitialPose(stamp_ns, self._names.map, T_start @ inverse(T_base_camera), cov_66)
            fusion.set_pose(pose)
        state = fusion.state_at(stamp_ns)
        prior = None if state is None else camera_prior(state, T_base_camera)
        answer = self._ask(shown, stamp_ns, prior)
        if self._odometry == "network":
            for pose_there in self._chain.add(answer.motion, T_base_camera):
                fusion.add_odometry(pose_there.sample)
                self._reckoned.chained.append(pose_there.sample)
            state = fusion.state_at(stamp_ns)
        verdict = Verdict.NO_POSE
        if isinstance(answer, PoseEstimate):
            verdict = fusion.add_measurement(measured_base(answer, T_base_camera, self._names.map)).verdict
        after = None if fusion.is_lost(stamp_ns) else fusion.state_at(stamp_ns)
        dead = self._reckoned.at(stamp_ns, T_start @ inverse(T_base_camera))
        place, self._place, self._newest_ns = self._place, self._place + 1, stamp_ns
        return Followed(
            self._recording,
            self._number,
            place,
            stamp_ns,
            T_map_camera,
            T_base_camera,
            answer,
            verdict,
            state,
            after,
            dead,
        )

    def _feed(self, stamp_ns: int) -> None:
        """The recording's odometry up to a stamp."""
        if self._place == 0:
            self._fed = bisect_left(self._stamps, stamp_ns - LEAD_NS)
        until = bisect_right(self._stamps, stamp_ns)
        for sample in self._drive.odometry[self._fed : until]:
            self._fusion.add_odometry(sample)
        self._fed = max(self._fed, until)

    def _ask(self, shown: Frame | None, stamp_ns: int, prior: CameraPrior | None) -> PoseEstimate | NoPose:
        if shown is None:
            return NoPose(stamp_ns, SENSOR_ABSENT)
        return self._localizer.localize(shown, prior)

    def finish(self) -> dict[str, int]:
        """The final counts."""
        self._fusion.flush()
        return self._fusion.counters() | self._chain.counters()


class _Reckoning:
    """The odometry alone, hung up at the start's pose where it is first known."""

    def __init__(self, odometry: OdometryKind, drive: Drive) -> None:
        self._odometry = odometry
        self._recorded: Trajectory | None = None
        if odometry == "recording":
            by_stamp = {int(sample.stamp_ns): sample.T_odom_base for sample in drive.odometry}
            stamps = np.array(list(by_stamp), dtype=np.int64)
            self._recorded = Trajectory(stamps, np.array(list(by_stamp.values())), MAX_GAP_S)
        self._T_map_odom: Array | None = None
        self._starts: dict[int, Array] = {}
        self.chained: list[OdometrySample] = []

    def at(self, stamp_ns: int, T_start: Array) -> Array | None:
        """T_map_base at a frame; `T_start` is where it would be hung up at this frame."""
        if self._T_map_odom is None:
            self._starts[stamp_ns] = T_start
            self._T_map_odom = self._hung_up(stamp_ns, T_start)
        T_odom_base = self._T_odom_base(stamp_ns)
        if self._T_map_odom is None or T_odom_base is None:
            return T_start if len(self._starts) == 1 and stamp_ns in self._starts else None
        return self._T_map_odom @ T_odom_base

    def _hung_up(self, stamp_ns: int, T_start: Array) -> Array | None:
        if self._odometry == "network":  # its first motion begins at an earlier frame
            first = next((sample for sample in self.chained if sample.stamp_ns in self._starts), None)
            return None if first is None else self._starts[first.stamp_ns] @ inverse(first.T_odom_base)
        T_odom_base = self._T_odom_base(stamp_ns)
        return None if T_odom_base is None else T_start @ inverse(T_odom_base)

    def _T_odom_base(self, stamp_ns: int) -> Array | None:
        if self._odometry == "none":
            return np.eye(4)
        if self._recorded is None:
            return self.chained[-1].T_odom_base if self.chained else None
        return self._recorded.interpolate(stamp_ns) if self._recorded.covers(stamp_ns) else None
