"""Localization over scene coordinates: the network says where every cell lies, geometry finds the camera.

An answer that too few cells agree on is none: the frame gets no pose, and the reason. Where camera and depth together
are refused, depth may still know the place alone.
"""

from __future__ import annotations

import threading

import numpy as np
from scipy.stats import chi2

from vmloc_ros.checkpoint import ModelCard
from vmloc_ros.errors import CheckpointError
from vmloc_ros.geometry import adjoint, inverse
from vmloc_ros.localizers.inputs import FrameInputs, Pictures
from vmloc_ros.metrics import pose_error_6
from vmloc_ros.neighbours import scatter_evidence
from vmloc_ros.runtimes.scene_coordinates import SceneRuntime
from vmloc_ros.scene_belief import depth_problem
from vmloc_ros.types import CameraPrior, Frame, Modality, Mode, NoPose, PoseEstimate

MOST_DIFFERENCE = float(chi2.ppf(0.999, 6))


class SceneLocalizer:
    """Experts over scene coordinates; it has no memory. Implements `Localizer`."""

    def __init__(self, card: ModelCard, runtime: SceneRuntime, fallback: str = "") -> None:
        """
        Args:
            card: of the model, with its part `scene`.
            runtime: of its network.
            fallback: see `Localizer`.

        Raises:
            CheckpointError: the card does not say when an answer is believed.
        """
        if card.scene is None:
            raise CheckpointError(
                f"card.yaml of {card.name}: has no part `scene` (when answers are believed); take the card that "
                "`vmloc train` wrote beside the weights"
            )
        self.card = card
        self.device = runtime.device
        self.fallback = fallback
        runtime.scene = card.scene
        self._scene = card.scene
        self._runtime = runtime
        self._lock = threading.Lock()
        self._inputs = FrameInputs(card, by_rays=True)
        self._calibrations = {mode: calibration.rule() for mode, calibration in card.calibration.items()}

    def localize(self, frame: Frame, prior: CameraPrior | None = None) -> PoseEstimate | NoPose:
        """See `Localizer`; `prior` is not used."""
        seen = self._inputs.of(frame)
        if isinstance(seen, NoPose):
            return seen
        seen = without_empty_depth(seen)
        problem = "" if seen.depth_1HW is None else depth_problem(seen.depth_1HW[0], self._scene)
        if problem:
            return NoPose(frame.stamp_ns, problem)
        answer = self._answer(frame.stamp_ns, seen)
        if isinstance(answer, NoPose) and seen.mode is Mode.RGB_DEPTH and self.card.network.has(Modality.DEPTH):
            return self._by_depth_alone(frame.stamp_ns, seen, answer)
        return answer

    def _by_depth_alone(self, stamp_ns: int, seen: Pictures, refused: NoPose) -> PoseEstimate | NoPose:
        """What depth says where both sensors together are refused: a camera may be covered, or look at a screen.

        Not what the camera says where depth is at fault: a wrong camera_info, too, makes both refuse, and RGB alone is
        bad at noticing it. And where the camera alone knows another place, one of the two is wrong: none is believed.
        """
        depth = self._answer(stamp_ns, seen._replace(rgb_1HW3=None, mode=Mode.DEPTH_ONLY))
        if isinstance(depth, NoPose):
            return refused
        rgb = self._answer(stamp_ns, seen._replace(depth_1HW=None, mode=Mode.RGB_ONLY))
        return depth if isinstance(rgb, NoPose) or _agree(depth, rgb) else refused

    def _answer(self, stamp_ns: int, seen: Pictures) -> PoseEstimate | NoPose:
        """What the experts of some pictures say."""
        calibration = self._calibrations.get(seen.mode)
        limits = self._scene.limits.get(seen.mode.value)
        if calibration is None or limits is None:
            return NoPose(stamp_ns, f"the model's card has no calibration for {seen.mode}")
        with self._lock:
            reading = self._runtime.read(seen.rgb_1HW3, seen.depth_1HW, seen.seen_1HW)
            agreed = self._runtime.agreement(reading)
            raw = self._runtime.poses(reading, agreed)
        if agreed is None:
            return NoPose(stamp_ns, f"the model's card has no limits of belief for {seen.mode}")
        reason = agreed.reason(0, limits)
        if reason:
            return NoPose(stamp_ns, reason)
        cov_66 = calibration.covariance(raw.scatter_N66[0], scatter_evidence(raw.scatter_N66))
        if not (np.isfinite(raw.T_map_camera[0]).all() and np.isfinite(cov_66).all()):
            return NoPose(stamp_ns, "the network's output is not finite")
        return PoseEstimate(
            stamp_ns=stamp_ns,
            T_map_camera=raw.T_map_camera[0],
            cov_66=cov_66,
            expert_weights={name: float(part[0]) for name, part in raw.shares.items()},
            mode=seen.mode,
            health=float(agreed.health(limits)[0]),
        )

    def warm_up(self) -> None:
        """See `Localizer`."""
        with self._lock:
            for seen in self._inputs.blank():
                self._runtime.infer(seen.rgb_1HW3, seen.depth_1HW)

    def reset(self) -> None:
        """See `Localizer`."""


def without_empty_depth(seen: Pictures) -> Pictures:
    """A depth image without any return (what is not finite is none either) is as good as absent, beside a picture."""
    if seen.rgb_1HW3 is None or seen.depth_1HW is None or (seen.depth_1HW > 0.0).any():
        return seen
    return seen._replace(depth_1HW=None, mode=Mode.RGB_ONLY)


def _agree(one: PoseEstimate, other: PoseEstimate) -> bool:
    """Whether two answers can be of one place: the squared difference in units of both covariances (6 numbers)."""
    difference_6 = pose_error_6(one.T_map_camera, other.T_map_camera)
    back_66 = adjoint(inverse(one.T_map_camera) @ other.T_map_camera)
    cov_66 = one.cov_66 + back_66 @ other.cov_66 @ back_66.T
    return float(difference_6 @ np.linalg.solve(cov_66, difference_6)) < MOST_DIFFERENCE
