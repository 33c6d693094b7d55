"""Pose regression from a single frame; it has no memory."""

from __future__ import annotations

import threading
from collections.abc import Mapping

import numpy as np

from vmloc_ros.checkpoint import ModelCard
from vmloc_ros.localizers.inputs import FrameInputs
from vmloc_ros.neighbour_file import evidence_for
from vmloc_ros.neighbours import Neighbours
from vmloc_ros.runtimes.torch import Runtime
from vmloc_ros.types import CameraPrior, Frame, Mode, NoPose, PoseEstimate


class VMLocLocalizer:
    """VMLoc, and what is VMLoc by configuration: PoseNet17, AtLoc, MapNet."""

    def __init__(
        self,
        card: ModelCard,
        runtime: Runtime,
        fallback: str = "",
        neighbours: Mapping[Mode, Neighbours] | None = None,
    ) -> None:
        self.card = card
        self.device = runtime.device
        self.fallback = fallback
        self._runtime = runtime
        self._lock = threading.Lock()
        self._inputs = FrameInputs(card)
        self._calibrations = {mode: calibration.rule() for mode, calibration in card.calibration.items()}
        self._neighbours = neighbours or {}

    def localize(self, frame: Frame, prior: CameraPrior | None = None) -> PoseEstimate | NoPose:
        """See `Localizer`; `prior` is not used."""
        seen = self._inputs.of(frame)
        if isinstance(seen, NoPose):
            return seen
        calibration = self._calibrations.get(seen.mode)
        if calibration is None:
            return NoPose(frame.stamp_ns, f"the model's card has no calibration for {seen.mode}")
        with self._lock:
            raw = self._runtime.infer(seen.rgb_1HW3, seen.depth_1HW)
        T, scatter = raw.T_map_camera[0], raw.scatter_N66[0]
        if not (np.isfinite(T).all() and np.isfinite(scatter).all()):
            return NoPose(frame.stamp_ns, "the network's output is not finite")
        evidence = evidence_for(self.card.calibration[seen.mode].evidence, self._neighbours.get(seen.mode), raw)
        return PoseEstimate(
            stamp_ns=frame.stamp_ns,
            T_map_camera=T,
            cov_66=calibration.covariance(scatter, evidence),
            expert_weights={name: float(share[0]) for name, share in raw.shares.items()},
            mode=seen.mode,
            health=calibration.health(scatter, evidence),
        )

    def warm_up(self) -> None:
        """See `Localizer`."""
        with self._lock:
            for seen in self._inputs.blank():
                self._runtime.infer(seen.rgb_1HW3, seen.depth_1HW)

    def reset(self) -> None:
        """See `Localizer`."""
