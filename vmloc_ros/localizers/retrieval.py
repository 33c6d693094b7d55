"""Looking frames up among training images; it has no memory."""

from __future__ import annotations

from collections.abc import Mapping

from vmloc_ros.checkpoint import ModelCard
from vmloc_ros.localizers.inputs import FrameInputs
from vmloc_ros.localizers.single_frame import VMLocLocalizer
from vmloc_ros.neighbours import Neighbours
from vmloc_ros.networks.retrieval import constant, thumbnail
from vmloc_ros.runtimes.retrieval import RetrievalRuntime
from vmloc_ros.types import CameraPrior, Frame, Mode, NoPose, PoseEstimate


class RetrievalLocalizer:
    """As a network for single frames, but it has no answer to a picture that shows one colour and nothing else."""

    def __init__(
        self,
        card: ModelCard,
        runtime: RetrievalRuntime,
        fallback: str = "",
        neighbours: Mapping[Mode, Neighbours] | None = None,
    ) -> None:
        self.card = card
        self.device = runtime.device
        self.fallback = fallback
        self._inputs = FrameInputs(card)
        self._found = VMLocLocalizer(card, runtime, fallback, neighbours)

    def localize(self, frame: Frame, prior: CameraPrior | None = None) -> PoseEstimate | NoPose:
        """See `Localizer`; `prior` is not used."""
        seen = self._inputs.of(frame)
        if isinstance(seen, NoPose):
            return seen
        if seen.rgb_1HW3 is not None and constant(thumbnail(seen.rgb_1HW3[0])[None])[0]:
            return NoPose(frame.stamp_ns, "the picture is of one colour: it looks like no training image")
        return self._found.localize(frame, prior)

    def warm_up(self) -> None:
        """See `Localizer`."""
        self._found.warm_up()

    def reset(self) -> None:
        """See `Localizer`."""
