"""VLocNet on a robot: the pose of a frame given the pose of the one before it, and the motion between the two."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Literal, NamedTuple, Self

import numpy as np

from vmloc_ros.checkpoint import ModelCard
from vmloc_ros.geometry import Array, inverse
from vmloc_ros.localizers.inputs import FrameInputs
from vmloc_ros.neighbour_file import evidence_for
from vmloc_ros.neighbours import Neighbours
from vmloc_ros.networks.vlocnet import Seen
from vmloc_ros.runtimes.vlocnet import VLocNetRuntime
from vmloc_ros.types import CameraMotion, CameraPrior, Frame, Mode, NoPose, PoseEstimate

PreviousPose = Literal["filter", "own", "none"]
NANOSECONDS = 1_000_000_000


class _Last(NamedTuple):
    """What is kept of the frame before.

    Attributes:
        stamp_ns: its stamp.
        seen: its features.
        T_map_camera: the network's own answer; None where it had none.
        T_odom_camera: where the odometry had the camera; None where there was no prior.
    """

    stamp_ns: int
    seen: Seen
    T_map_camera: Array | None
    T_odom_camera: Array | None


class VLocNetLocalizer:
    """Keeps the features of one frame, the last one it was shown.

    A frame that lies further from it than the card's `motion.max_gap_s`, or not after it, is answered like a first one:
    without a previous pose and without a motion. That is counted.
    """

    def __init__(
        self,
        card: ModelCard,
        runtime: VLocNetRuntime,
        previous_pose: PreviousPose = "filter",
        fallback: str = "",
        neighbours: Mapping[Mode, Neighbours] | None = None,
    ) -> None:
        """
        Args:
            card: of the model.
            runtime: runs it.
            previous_pose: `filter`: the filter's pose at the previous frame, if it has one. `own`: the last answer.
            fallback: see `Localizer`.
            neighbours: training latents for the covariance.
        """
        self.card = card
        self.device = runtime.device
        self.fallback = fallback
        self._runtime = runtime
        self._previous_pose = previous_pose
        self._lock = threading.Lock()
        self._inputs = FrameInputs(card)
        self._calibration = card.calibration[Mode.RGB_ONLY].rule()
        self._neighbours = neighbours or {}
        self._max_gap_s = runtime.max_gap_s if card.motion is None else card.motion.max_gap_s
        self._last: _Last | None = None
        self._gaps = 0

    def localize(self, frame: Frame, prior: CameraPrior | None = None) -> PoseEstimate | NoPose:
        """See `Localizer`. A frame without a usable picture is passed over: the next one is compared with the last good
        one, if that is near enough."""
        pictures = self._inputs.of(frame)
        if isinstance(pictures, NoPose) or pictures.rgb_1HW3 is None:
            return pictures if isinstance(pictures, NoPose) else NoPose(frame.stamp_ns, "no picture")
        with self._lock:
            last = self._within_reach(frame.stamp_ns)
            seen = self._runtime.see(pictures.rgb_1HW3)
            raw = self._runtime.poses(seen, self._previous(last, prior))
            motion = self._motion(last, seen, frame.stamp_ns)
            T = raw.T_map_camera[0]
            finite = bool(np.isfinite(T).all())
            T_odom = None if prior is None else prior.T_odom_camera
            self._last = _Last(frame.stamp_ns, seen, T, T_odom) if finite else None
        if not finite:
            return NoPose(frame.stamp_ns, "the network's output is not finite", motion)
        mode = Mode.RGB_ONLY
        evidence = evidence_for(self.card.calibration[mode].evidence, self._neighbours.get(mode), raw)
        scatter = raw.scatter_N66[0]
        return PoseEstimate(
            stamp_ns=frame.stamp_ns,
            T_map_camera=T,
            cov_66=self._calibration.covariance(scatter, evidence),
            expert_weights={name: float(share[0]) for name, share in raw.shares.items()},
            mode=mode,
            health=self._calibration.health(scatter, evidence),
            motion=motion,
        )

    def warm_up(self) -> None:
        """See `Localizer`."""
        with self._lock:
            for pictures in self._inputs.blank():
                assert pictures.rgb_1HW3 is not None
                seen = self._runtime.see(pictures.rgb_1HW3)
                self._runtime.poses(seen, np.eye(4)[None])
                if self._runtime.has_odometry:
                    self._runtime.motions(seen, seen)

    def reset(self) -> None:
        """See `Localizer`; totals stay."""
        with self._lock:
            self._last = None

    def fork(self) -> Self:
        """See `Remembering`; the weights are shared."""
        return type(self)(self.card, self._runtime, self._previous_pose, self.fallback, self._neighbours)

    def counters(self) -> dict[str, int]:
        """See `Remembering`."""
        return {"motion.gaps": self._gaps}

    def _within_reach(self, stamp_ns: int) -> _Last | None:
        """The frame before, if it can be compared with one at `stamp_ns`; else it is forgotten, and counted."""
        if self._last is not None and not 0 < stamp_ns - self._last.stamp_ns <= self._max_gap_s * NANOSECONDS:
            self._gaps += 1
            self._last = None
        return self._last

    def _previous(self, last: _Last | None, prior: CameraPrior | None) -> Array | None:
        """The pose of the frame before, (1, 4, 4), as the configuration wants it; None where it is not known.

        The filter's is what it knows now, taken back to that frame by the odometry: it has fused that frame meanwhile.
        """
        if last is None or self._previous_pose == "none":
            return None
        if self._previous_pose == "own":
            return None if last.T_map_camera is None else last.T_map_camera[None]
        if prior is None or last.T_odom_camera is None:
            return None
        return (prior.T_map_camera @ inverse(prior.T_odom_camera) @ last.T_odom_camera)[None]

    def _motion(self, last: _Last | None, seen: Seen, stamp_ns: int) -> CameraMotion | None:
        """The way from the frame before to this one, where the card says how sure that is."""
        if last is None or self.card.motion is None:
            return None
        T_begin_end = self._runtime.motions(last.seen, seen)[0]
        if not np.isfinite(T_begin_end).all():
            return None
        return CameraMotion(last.stamp_ns, stamp_ns, T_begin_end, np.array(self.card.motion.cov_66))
