"""One localizer for several streams of frames that are asked about in turn."""

from __future__ import annotations

from collections.abc import Hashable

from vmloc_ros.localizers.base import Localizer, Remembering


class Streams:
    """A localizer for each of several streams of frames that are asked about in turn.

    One with a memory has a fork for each stream, so that each remembers its own frames alone; one without is the same
    for all. Everything is forgotten where another recording begins.
    """

    def __init__(self, localizer: Localizer) -> None:
        self._localizer = localizer
        self._forks: dict[Hashable, Localizer] = {}
        self._recording: str | None = None

    def enter(self, recording: str) -> None:
        """The next frames are of this recording."""
        if recording != self._recording:
            for localizer in (self._localizer, *self._forks.values()):
                localizer.reset()
        self._recording = recording

    def of(self, stream: Hashable) -> Localizer:
        """Whom to ask about a stream's next frame."""
        if not isinstance(self._localizer, Remembering):
            return self._localizer
        if stream not in self._forks:
            self._forks[stream] = forked(self._localizer)
        return self._forks[stream]


def forked(localizer: Localizer) -> Localizer:
    """The same model with a memory of its own, where it has one."""
    return localizer.fork() if isinstance(localizer, Remembering) else localizer
