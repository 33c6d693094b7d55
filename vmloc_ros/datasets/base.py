"""What every dataset (and every bag) offers: a stream of sensor events in order of stamp, and the truth.

Training, conversion to bags and evaluation all read this one stream, so that a network is trained on exactly the
frames that the node will build online.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from vmloc_ros.datasets.parts import WHOLE, Part
from vmloc_ros.datasets.skips import Skips
from vmloc_ros.trajectory import Trajectory
from vmloc_ros.types import Event, EventKind, StaticTransform

Timeline = dict[EventKind, NDArray[np.int64]]
"""Stamps of events by kind, sorted."""


class Recording(Protocol):
    """One drive. Payloads are read from disk lazily, while the stream is walked.

    Attributes:
        name: for progress bars and error messages.
        frames: names of the frames that `static_transforms` and the events use
            (`base_link`, `camera_optical`, `lidar`, ...).
        skips: what was left out so far; whoever builds frames of the events adds to it.
    """

    name: str

    skips: Skips

    @property
    def skipped(self) -> dict[str, int]:
        """What was left out so far, by reason, which names the first."""
        ...

    def static_transforms(self) -> list[StaticTransform]:
        """The mountings; the tree's root is `base_link`."""
        ...

    def events(self, part: Part = WHOLE) -> Iterator[Event]:
        """All sensor events of a part, sorted by stamp: images with their camera_info, clouds, odometry. Never static
        ones. A new walk forgets what an earlier one has counted in `skips`."""
        ...

    def timeline(self) -> Timeline:
        """Stamps of what `events` may give, without reading it.

        Empty where a walk cannot begin in the middle (odometry that is computed on the way, a bag).
        """
        ...

    def file_count(self) -> int:
        """How many files (in a bag, messages) the recording promises, whether they are there or not."""
        ...

    def event_count(self) -> int:
        """How many events `events` will give, at most (for progress bars)."""
        ...

    def again(self) -> Callable[[], Recording]:
        """Opens the same recording once more, in another process: small, and without what this one has read."""
        ...

    def truth(self) -> Trajectory:
        """`T_map_base` over time; gaps without truth are not bridged (see `Trajectory.interpolate`).

        Raises:
            DatasetError: the recording has no truth.
        """
        ...

    def card(self) -> dict[str, object]:
        """What a map's user must know: UTM origin, alignment with gravity, licence."""
        ...
