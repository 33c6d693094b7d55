"""What every dataset (and every bag) offers: a stream of sensor events in order of stamp, and the truth.

Training, conversion to bags and evaluation all read this one stream, so that a network is trained on exactly the
frames that the node will build online.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from vmloc_ros.trajectory import Trajectory
from vmloc_ros.types import Event, StaticTransform


class Recording(Protocol):
    """One drive. Payloads are read from disk lazily, while the stream is walked.

    Attributes:
        name: for progress bars and error messages.
        frames: names of the frames that `static_transforms` and the events use
            (`base_link`, `camera_optical`, `lidar`, ...).
        skipped: what was left out so far, by reason (a file that is missing or truncated, a pose without truth).
    """

    name: str

    @property
    def skipped(self) -> dict[str, int]:
        """By reason, which names the first (a plain attribute will do)."""
        ...

    def static_transforms(self) -> list[StaticTransform]:
        """The mountings; the tree's root is `base_link`."""
        ...

    def events(self) -> Iterator[Event]:
        """All sensor events, sorted by stamp: images with their camera_info, clouds, odometry. Never static ones."""
        ...

    def event_count(self) -> int:
        """How many events `events` will give, at most (for progress bars)."""
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
