"""What a localizer says to frames, and what the filter of a robot that stands still makes of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import chi2

from vmloc_ros.commands.strangers_frames import FIRST_NS, Stranger, at_place, kinds_of, without_unusable
from vmloc_ros.config import FilterConfig, FrameNames, LocalizerConfig
from vmloc_ros.errors import ModelInputError
from vmloc_ros.evaluation import only
from vmloc_ros.extrinsics import camera_prior, measured_base
from vmloc_ros.following import start_from
from vmloc_ros.fusion import Fusion
from vmloc_ros.geometry import Array, adjoint, inverse, log_se3, make_pose
from vmloc_ros.localizers.base import Localizer
from vmloc_ros.reasons import without_numbers
from vmloc_ros.trajectory import NANOSECONDS
from vmloc_ros.types import CameraPrior, Frame, InitialPose, Mode, NoPose, OdometrySample, PoseEstimate, Verdict

Answer = PoseEstimate | NoPose

OWN_CAMERA, MODEL_CAMERA = "own camera", "the model's camera"
OTHER_PLACE, NOISE, MASKED, INTACT = "other place", "noise", "masked", "intact"
RIGHT_WITHIN = float(chi2.ppf(0.999, 6))
"""A pose of a masked frame is right where the truth lies in the ellipsoid of 99.9 % of its own covariance."""
CAMERA_REASON = "the camera's view"
RIGHT = "right by what is left to see"
T_BASE_CAMERA = make_pose(np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]]), np.zeros(3))
"""Where the camera of the robot that stands still is mounted: it looks ahead from the base."""
ODOMETRY_EVERY_NS = NANOSECONDS // 10


@dataclass(frozen=True)
class Asked:
    """Frames of one kind that are shown in a row.

    Attributes:
        source: what they are called.
        kind: `other place`, `noise`, `masked`, or `intact`: the model's own, as they are, which it should answer.
        camera: with which intrinsics.
    """

    source: str
    kind: str
    camera: str
    strangers: Sequence[Stranger]


@dataclass(frozen=True)
class Robot:
    """Who is asked: a robot that stands still at a place of the map.

    Attributes:
        T_map_camera: the place.
        settings: of the frames' making, for what it would not take for a picture.
    """

    localizer: Localizer
    T_map_camera: Array
    filter: FilterConfig
    names: FrameNames
    settings: LocalizerConfig


class Witness:
    """Asks a localizer, remembers what it said, and hands on what is false.

    Attributes:
        said: every answer, in order.
        handed: the same without the right ones, which the filter is not to be blamed for.
    """

    def __init__(self, robot: Robot, strangers: Sequence[Stranger], advance: Callable[[], None]) -> None:
        self.said: list[Answer] = []
        self.handed: list[Answer] = []
        self._robot = robot
        self._strangers = strangers
        self._advance = advance

    def answer(self, frame: Frame, prior: CameraPrior | None) -> Answer:
        """To the next frame, asked as the pipeline asks; `prior` is what the filter knows of the camera."""
        self._advance()
        answer = self._ask(without_unusable(frame, self._robot.settings.input), prior)
        false = isinstance(answer, PoseEstimate) and is_false(answer, self._strangers[len(self.said)])
        self.said.append(answer)
        self.handed.append(answer if false or isinstance(answer, NoPose) else NoPose(frame.stamp_ns, RIGHT))
        return self.handed[-1]

    def _ask(self, frame: Frame, prior: CameraPrior | None) -> Answer:
        if frame.rgb is None and frame.depth_m is None:
            reasons = "; ".join(f"{modality.value}: {reason}" for modality, reason in frame.absent.items())
            return NoPose(frame.stamp_ns, f"no modality is present ({reasons})")
        try:
            return self._robot.localizer.localize(frame, prior)
        except ModelInputError as error:
            return NoPose(frame.stamp_ns, str(error))


def is_false(answer: PoseEstimate, stranger: Stranger) -> bool:
    """Whether a pose claims what cannot be known: any, or one whose covariance does not allow for its error."""
    if stranger.T_map_camera is None:
        return True
    error_6 = log_se3(inverse(answer.T_map_camera) @ stranger.T_map_camera)
    return bool(error_6 @ np.linalg.solve(answer.cov_66, error_6) > RIGHT_WITHIN)


def of_mode(asked: Asked, mode: Mode) -> list[Stranger]:
    """Those that have the sensors of a mode, with these alone."""
    shown = [(stranger, only(stranger.frame, mode)) for stranger in asked.strangers]
    return [Stranger(frame, stranger.kind, stranger.T_map_camera) for stranger, frame in shown if frame is not None]


def ask(robot: Robot, asked: Asked, mode: Mode, advance: Callable[[], None] = lambda: None) -> dict[str, Any]:
    """Shows the frames in one mode; what came of it, as in the report's `rows`."""
    strangers = of_mode(asked, mode)
    row: dict[str, Any] = {"source": asked.source, "kind": asked.kind, "camera": asked.camera, "mode": mode.value}
    if not strangers:
        return row | {"frames": 0}
    witness = Witness(robot, strangers, advance)
    frames = [at_place(stranger.frame, place) for place, stranger in enumerate(strangers)]
    robot.localizer.reset()
    told, moved_m = _through_filter(robot, frames, witness.answer, localized=True)
    again = iter(witness.handed)
    lost, _ = _through_filter(robot, frames, lambda frame, prior: next(again), localized=False)
    false = [isinstance(answer, PoseEstimate) for answer in witness.handed]
    reasons = Counter(without_numbers(answer.reason) for answer in witness.said if isinstance(answer, NoPose))
    by_camera = sum(CAMERA_REASON in answer.reason for answer in witness.said if isinstance(answer, NoPose))
    return row | {
        "frames": len(strangers),
        "refused_by_camera": by_camera,
        "claimed": sum(isinstance(answer, PoseEstimate) for answer in witness.said),
        "false": sum(false),
        "fused": told[f"verdict.{Verdict.FUSED.value}"],
        "relocalizations": told["relocalizations"],
        "widenings": told["widenings"],
        "moved_m": moved_m,
        "fused_from_nothing": lost[f"verdict.{Verdict.FUSED.value}"],
        "reasons": dict(reasons.most_common()),
        "false_by_kind": {
            kind: {
                "frames": sum(stranger.kind == kind for stranger in strangers),
                "false": sum(wrong for wrong, stranger in zip(false, strangers, strict=True) if stranger.kind == kind),
            }
            for kind in kinds_of(strangers)
        },
    }


def _through_filter(
    robot: Robot, frames: Sequence[Frame], answer_to: Callable[[Frame, CameraPrior | None], Answer], localized: bool
) -> tuple[dict[str, int], float]:
    """The filter's counts after the answers to all frames, while the odometry stands still, and how far in metres it
    has at most been from the robot's place.

    Args:
        localized: the filter is given the robot's place a second before the first frame; or it knows nothing.
    """
    fusion, moved_m = Fusion(robot.filter, robot.names), 0.0
    stamp_ns, T_map_base = FIRST_NS - NANOSECONDS, robot.T_map_camera @ inverse(T_BASE_CAMERA)
    if localized:
        turn, known = adjoint(T_BASE_CAMERA), start_from(0.0, 0.0)
        fusion.set_pose(InitialPose(stamp_ns, robot.names.map, T_map_base, turn @ known.cov_66 @ turn.T))
    for frame in frames:
        while stamp_ns <= frame.stamp_ns:
            fusion.add_odometry(OdometrySample(stamp_ns, robot.names.odom, robot.names.base, np.eye(4)))
            stamp_ns += ODOMETRY_EVERY_NS
        state = fusion.state_at(frame.stamp_ns)
        answer = answer_to(frame, None if state is None else camera_prior(state, T_BASE_CAMERA))
        if isinstance(answer, PoseEstimate):
            fusion.add_measurement(measured_base(answer, T_BASE_CAMERA, robot.names.map))
        if (after := fusion.state_at(frame.stamp_ns)) is not None:
            moved_m = max(moved_m, float(np.linalg.norm(after.T_map_base[:3, 3] - T_map_base[:3, 3])))
    fusion.flush()
    return fusion.counters(), moved_m
