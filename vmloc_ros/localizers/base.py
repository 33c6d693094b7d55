"""What a localizer is: frames in, poses out; and what some localizers can do besides."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from vmloc_ros.geometry import Array
from vmloc_ros.types import CameraPrior, Frame, NoPose, PoseEstimate

if TYPE_CHECKING:  # PyTorch takes seconds to import, and what a localizer can do is asked without one
    from vmloc_ros.checkpoint import ModelCard


class Localizer(Protocol):
    """What the pipeline needs.

    Attributes:
        card: of the model.
        device: where it runs (`cpu`, `cuda:0`).
        fallback: why it does not run where it was asked to; empty when it does.
    """

    card: ModelCard
    device: str
    fallback: str

    def localize(self, frame: Frame, prior: CameraPrior | None = None) -> PoseEstimate | NoPose:
        """The pose of the frame's camera in the map. `prior` is what the filter knows of it before this frame.

        Deterministic: the same frames since `reset` give the same answers. Any thread, one at a time.
        """
        ...

    def warm_up(self) -> None:
        """Runs once on made-up input in every mode, so that the first real frame is not slower than the rest."""
        ...

    def reset(self) -> None:
        """Forgets earlier frames."""
        ...


@runtime_checkable
class Remembering(Protocol):
    """A localizer whose answers depend on earlier frames."""

    def fork(self) -> Self:
        """The same model with a memory of its own, empty: for another stream of frames."""
        ...

    def counters(self) -> dict[str, int]:
        """Totals since the start, e.g. `motion.gaps`: how often frames lay too far apart to be compared."""
        ...


@runtime_checkable
class ReadableMap(Protocol):
    """A localizer that can show what it expects to see."""

    def view(self, T_map_camera: Array) -> NDArray[np.uint8]:
        """The expected picture (H, W, 3) from a camera pose."""
        ...
