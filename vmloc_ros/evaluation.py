"""The network alone against the truth, per modality mode and corruption, as the papers compare (T_map_camera)."""

from __future__ import annotations

import heapq
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vmloc_ros import uncertainty
from vmloc_ros.checkpoint import ModelCard
from vmloc_ros.config import LocalizerConfig
from vmloc_ros.corruption import INTACT, Levels, condition_name, corrupted
from vmloc_ros.errors import ConfigError, DatasetError
from vmloc_ros.geometry import Array
from vmloc_ros.localizer import Localizer
from vmloc_ros.localizers.streams import Streams
from vmloc_ros.reasons import without_numbers
from vmloc_ros.retrieval import Retrieval
from vmloc_ros.samples import Labelled
from vmloc_ros.types import Frame, Modality, Mode, NoPose, PoseEstimate
from vmloc_ros.validation import error_summary, pose_errors

SENSORS = {
    Mode.RGB_DEPTH: (Modality.RGB, Modality.DEPTH),
    Mode.RGB_ONLY: (Modality.RGB,),
    Mode.DEPTH_ONLY: (Modality.DEPTH,),
}
SENSOR_ABSENT = "a sensor of this mode is absent"
WORST = 10
"""So many of the worst frames are kept with their pictures."""


@dataclass(frozen=True, eq=False)
class Errors:
    """Of N answers.

    Attributes:
        tangent_N6: log(T_hat^-1 T), right perturbation in camera axes: what the covariance is of.
        position_m, rotation_deg: (N,).
    """

    tangent_N6: Array
    position_m: Array
    rotation_deg: Array


@dataclass
class Answers:
    """A method's poses T_map_camera and what was true, gathered frame by frame.

    Attributes:
        frames: which frame of the evaluation each is of (stamps repeat where several recordings are evaluated).
        covariances: 6x6 each, or none at all.
        weights: share of each expert in the precision; none where the method has no experts.
        no_pose: frames without an answer, by reason (`reasons.without_numbers`).
        constant_66: the best constant covariance of the calibration frames, where the model's card has it.
    """

    estimates: list[Array] = field(default_factory=list)
    truths: list[Array] = field(default_factory=list)
    covariances: list[Array] = field(default_factory=list)
    stamps_ns: list[int] = field(default_factory=list)
    frames: list[int] = field(default_factory=list)
    weights: list[Mapping[str, float]] = field(default_factory=list)
    no_pose: Counter[str] = field(default_factory=Counter)
    constant_66: Array | None = None
    _known: Errors | None = field(default=None, init=False, repr=False, compare=False)

    def add(self, frame: int, stamp_ns: int, T_map_camera: Array, answer: PoseEstimate | NoPose | Array) -> None:
        """One answer to one frame: an estimate, a refusal, or a bare pose."""
        if isinstance(answer, NoPose):
            self.no_pose[without_numbers(answer.reason)] += 1
            return
        if isinstance(answer, PoseEstimate):
            self.covariances.append(answer.cov_66)
            self.weights.append(answer.expert_weights)
        self.estimates.append(answer.T_map_camera if isinstance(answer, PoseEstimate) else answer)
        self.truths.append(T_map_camera)
        self.stamps_ns.append(stamp_ns)
        self.frames.append(frame)

    def errors(self) -> Errors:
        """Of all answers, in their order; arrays of length 0 where there is none."""
        if not self.estimates:
            return Errors(np.empty((0, 6)), np.empty(0), np.empty(0))
        if self._known is None or len(self._known.position_m) != len(self.estimates):
            self._known = Errors(*pose_errors(np.array(self.estimates), np.array(self.truths)))
        return self._known

    def nees(self) -> Array:
        """Normalised estimation error squared (N,) of 6 degrees of freedom; needs covariances."""
        return uncertainty.nees(self.errors().tangent_N6, np.array(self.covariances))

    def report(self) -> dict[str, Any]:
        """As JSON: errors, refusals, and what the covariances and experts said; see docs/reading-a-run.md."""
        result: dict[str, Any] = {"errors": None, "no_pose": dict(self.no_pose)}
        if not self.estimates:
            return result
        errors = self.errors()
        result["errors"] = error_summary(errors.position_m, errors.rotation_deg)
        if self.covariances:
            covariances_N66, tangent_N6 = np.array(self.covariances), errors.tangent_N6
            nees_N = uncertainty.nees(tangent_N6, covariances_N66)
            result["nees"] = {"mean": float(nees_N.mean()), "median": float(np.median(nees_N)), "dof": 6}
            result["coverage"] = uncertainty.coverage(nees_N)
            result["log_likelihood"] = {
                "model": log_likelihood(tangent_N6, covariances_N66),
                "constant": None if self.constant_66 is None else log_likelihood(tangent_N6, self.constant_66),
                "own_constant": log_likelihood(tangent_N6, uncertainty.best_constant(tangent_N6)),
            }
        if self.weights:
            names = dict.fromkeys(name for weights in self.weights for name in weights)
            result["expert_weights"] = {n: float(np.mean([w.get(n, 0.0) for w in self.weights])) for n in names}
        return result


def log_likelihood(tangent_N6: Array, covariance: Array) -> float:
    """Mean Gaussian log-likelihood of errors under covariances (N, 6, 6), or under one for all (6, 6)."""
    covariances_N66 = np.broadcast_to(covariance, (len(tangent_N6), 6, 6))
    return float(uncertainty.gaussian_log_likelihood(tangent_N6, covariances_N66).mean())


@dataclass(frozen=True, eq=False)
class Condition:
    """One degree of corruption: per mode the model's answers, and the retrieval baseline's on the same images."""

    levels: Levels
    modes: dict[Mode, Answers]
    retrieval: Answers | None

    @property
    def name(self) -> str:
        """`none`, `rgb:1`, ..."""
        return condition_name(self.levels)

    def report(self) -> dict[str, Any]:
        """`{"corrupt", "modes": {MODE: ...}, "retrieval"}`, with the share of frames on which a mode is better."""
        modes = {mode.value: answers.report() for mode, answers in self.modes.items()}
        if self.retrieval is not None and self.retrieval.estimates:
            looked_up = self.retrieval.errors()
            place = {frame: k for k, frame in enumerate(self.retrieval.frames)}
            for mode, answers in self.modes.items():
                ours = [k for k, frame in enumerate(answers.frames) if frame in place]
                theirs = [place[answers.frames[k]] for k in ours]
                errors = answers.errors()
                for key, own, other in (
                    ("beats_retrieval", errors.position_m, looked_up.position_m),
                    ("beats_retrieval_rotation", errors.rotation_deg, looked_up.rotation_deg),
                ):
                    modes[mode.value][key] = float(np.mean(own[ours] < other[theirs])) if ours else None
        return {
            "corrupt": {modality.value: level for modality, level in self.levels.items()},
            "modes": modes,
            "retrieval": None if self.retrieval is None else self.retrieval.report(),
        }


@dataclass(frozen=True, slots=True, eq=False)
class TrueFrame:
    """Which frame, and where its camera was."""

    recording: str
    stamp_ns: int
    T_map_camera: Array


@dataclass(frozen=True, slots=True, eq=False)
class WorstFrame:
    """A frame that the network got badly wrong, as it was shown, and what the network said."""

    index: int
    shown: Frame
    estimate: PoseEstimate


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What was measured.

    Attributes:
        frames: all frames with truth, in their order.
        conditions: at least one.
        nearest_pose: the training pose nearest in position to the truth, whatever its image looks like: no retrieval
            can be nearer; None where the model has no training poses.
        worst: in the first condition, largest position error first; each frame with all the sensors that it has.
    """

    frames: list[TrueFrame]
    conditions: list[Condition]
    nearest_pose: Answers | None
    worst: list[WorstFrame]

    def report(self) -> dict[str, Any]:
        """As JSON; the first condition at the top level, all of them under `corruptions` where there are several."""
        result = {"frames": len(self.frames), **self.conditions[0].report()}
        result["nearest_pose"] = None if self.nearest_pose is None else self.nearest_pose.report()
        if len(self.conditions) > 1:
            result["corruptions"] = {condition.name: condition.report() for condition in self.conditions}
        result["worst"] = self._worst_report()
        return result

    def _worst_report(self) -> list[dict[str, Any]]:
        others = {"retrieval": self.conditions[0].retrieval, "nearest_pose": self.nearest_pose}
        tables = {}
        for name, answers in others.items():
            if answers is not None:
                errors = answers.errors()
                tables[name] = {
                    frame: (float(errors.position_m[k]), float(errors.rotation_deg[k]))
                    for k, frame in enumerate(answers.frames)
                }
        return [worst_entry(worst, self.frames[worst.index], tables) for worst in self.worst]


def worst_entry(
    worst: WorstFrame, true: TrueFrame, tables: Mapping[str, Mapping[int, tuple[float, float]]]
) -> dict[str, Any]:
    """What the report says about one of the worst frames. Sigmas are the roots of the covariance blocks' traces: the
    root mean square error that the network expected."""
    one = Answers()
    one.add(worst.index, true.stamp_ns, true.T_map_camera, worst.estimate)
    errors, cov_66 = one.errors(), worst.estimate.cov_66
    entry: dict[str, Any] = {
        "recording": true.recording,
        "stamp_ns": true.stamp_ns,
        "mode": worst.estimate.mode.value,
        "position_m": float(errors.position_m[0]),
        "rotation_deg": float(errors.rotation_deg[0]),
        "sigma_m": float(np.sqrt(np.trace(cov_66[:3, :3]))),
        "sigma_deg": float(np.rad2deg(np.sqrt(np.trace(cov_66[3:, 3:])))),
        "nees": float(one.nees()[0]),
    }
    for name, table in tables.items():
        if worst.index in table:
            entry[f"{name}_m"], entry[f"{name}_deg"] = table[worst.index]
    return entry


class _Worst:
    """Keeps the frames of the largest position errors, so that their pictures need not be decoded again."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._heap: list[tuple[float, int, WorstFrame]] = []

    def offer(self, error_m: float, frame: WorstFrame) -> None:
        """Of equal errors the earlier frame stays."""
        if self._count:
            push = heapq.heappush if len(self._heap) < self._count else heapq.heappushpop
            push(self._heap, (error_m, -frame.index, frame))

    def frames(self) -> list[WorstFrame]:
        """Largest error first."""
        return [frame for _, _, frame in sorted(self._heap, reverse=True, key=lambda item: item[:2])]


def only(frame: Frame, mode: Mode) -> Frame | None:
    """The frame as a robot that has only this mode's sensors sees it; None where it lacks one of them."""
    rgb = frame.rgb if mode is not Mode.DEPTH_ONLY else None
    depth = frame.depth_m if mode is not Mode.RGB_ONLY else None
    shown = Frame(frame.key, frame.intrinsics, rgb, depth, frame.absent)
    return shown if shown.mode is mode else None


def modes_for(card: ModelCard, modalities: Sequence[str]) -> list[Mode]:
    """The modes that can be evaluated with some modalities.

    Raises:
        ConfigError: one that the model has no expert for, or none.
    """
    for name in modalities:
        if name not in card.network.modalities:
            raise ConfigError(f"--modalities {name}: the model has experts for {', '.join(card.network.modalities)}")
    chosen = [mode for mode, sensors in SENSORS.items() if all(s.value in modalities for s in sensors)]
    if not chosen:
        raise ConfigError("--modalities is empty; give rgb, depth or both")
    return chosen


def evaluate(
    localizer: Localizer,
    frames: Iterable[Labelled],
    modes: Sequence[Mode],
    conditions: Sequence[Levels] = ({},),
    retrieval: Retrieval | None = None,
    seed: int = 0,
    advance: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Runs a localizer on labelled frames, once per mode and condition, in one pass: every frame is made once.

    A localizer with a memory sees every mode and condition as a stream of its own (see `Streams`).

    Args:
        frames: (frame, T_map_camera, recording) as `samples.Labelled`, those of a recording in order.
        modes: a frame that lacks a mode's sensors is left out of that mode.
        conditions: how the frames are corrupted before.
        retrieval: the baseline, and the training poses.
        seed: of the mask's place.
        advance: called once per frame.

    Raises:
        DatasetError: there was no frame at all.
    """
    constants = {
        mode: np.array(calibration.constant_66)
        for mode, calibration in localizer.card.calibration.items()
        if calibration.constant_66 is not None
    }
    looked_up = [Answers() if retrieval is not None else None for _ in conditions]
    measured = [
        Condition(levels, {mode: Answers(constant_66=constants.get(mode)) for mode in modes}, answers)
        for levels, answers in zip(conditions, looked_up, strict=True)
    ]
    nearest_pose = Answers() if retrieval is not None else None
    true: list[TrueFrame] = []
    worst, streams = _Worst(WORST), Streams(localizer)
    for index, (frame, T_map_camera, recording) in enumerate(frames):
        advance()
        streams.enter(recording)
        true.append(TrueFrame(recording, frame.stamp_ns, T_map_camera))
        known: dict[Any, tuple[Frame | None, PoseEstimate | NoPose]] = {}
        found: dict[int, NDArray[np.float64]] = {}
        for condition in measured:
            seen = corrupted(frame, condition.levels, seed)
            for mode, answers in condition.modes.items():
                case = (mode, *(condition.levels.get(sensor, INTACT) for sensor in SENSORS[mode]))
                if case not in known:  # of the conditions that show the network the same, one is enough
                    known[case] = _ask(streams.of(case), only(seen, mode), frame.stamp_ns)
                answers.add(index, frame.stamp_ns, T_map_camera, known[case][1])
            if retrieval is not None and condition.retrieval is not None and seen.rgb is not None:
                level = condition.levels.get(Modality.RGB, INTACT)
                if level not in found:
                    found[level] = retrieval.nearest(seen.rgb)
                condition.retrieval.add(index, frame.stamp_ns, T_map_camera, found[level])
        if retrieval is not None and nearest_pose is not None:
            nearest_pose.add(index, frame.stamp_ns, T_map_camera, retrieval.nearest_pose(T_map_camera))
        for shown, answer in itertools.islice(known.values(), len(modes)):  # the first condition's
            if shown is not None and isinstance(answer, PoseEstimate):
                error_m = float(np.linalg.norm(answer.T_map_camera[:3, 3] - T_map_camera[:3, 3]))
                worst.offer(error_m, WorstFrame(index, shown, answer))
                break
    if not true:
        raise DatasetError("there was no frame with a true pose to evaluate on; check the source and the sensors")
    return Evaluation(true, measured, nearest_pose, worst.frames())


def _ask(localizer: Localizer, shown: Frame | None, stamp_ns: int) -> tuple[Frame | None, PoseEstimate | NoPose]:
    """What the localizer was shown, and its answer."""
    return shown, NoPose(stamp_ns, SENSOR_ABSENT) if shown is None else localizer.localize(shown)


def frame_config(card: ModelCard) -> LocalizerConfig:
    """How frames are built for a model: as in its training."""
    return LocalizerConfig(input=card.input, projection=card.projection)
