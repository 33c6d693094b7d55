"""Frames that wait for the network: a short queue whose oldest gives way, or exactly the frames of an earlier run."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from vmloc_ros.types import FrameKey

NANOSECONDS = 1_000_000_000
KEPT_ARRIVALS = 256


@dataclass(frozen=True, slots=True)
class Job:
    """A frame, and when its last message came (`time.monotonic`)."""

    key: FrameKey
    arrived_s: float


class FrameQueue:
    """Not safe for two threads at once: the pipeline holds its lock.

    Attributes:
        paired: frames that were put in.
        stale: frames that gave way.
    """

    def __init__(self, limit: int, overdue_s: float, only: Iterable[FrameKey] | None) -> None:
        """
        Args:
            limit: so many frames wait at most; one more drops the oldest.
            overdue_s: by this much data time after a recorded frame its messages must have come.
            only: use exactly these frames, all of them, instead of those that are offered.
        """
        self._limit = limit
        self._wait_ns = round(overdue_s * NANOSECONDS)
        self._only = None if only is None else deque(sorted(only, key=lambda key: key.stamp_ns))
        self._jobs: deque[Job] = deque()
        self._arrivals: dict[int, float] = {}
        self.paired = 0
        self.stale = 0

    def __len__(self) -> int:
        return len(self._jobs)

    def clear(self) -> None:
        """Forgets what waits: frames of a past that counts no more have gone stale."""
        self.stale += len(self._jobs)
        self._jobs.clear()
        self._arrivals.clear()

    def arrived(self, stamp_ns: int, now_s: float) -> None:
        """A message of this stamp came."""
        self._arrivals[stamp_ns] = now_s
        while len(self._arrivals) > KEPT_ARRIVALS:
            del self._arrivals[next(iter(self._arrivals))]

    def put(self, keys: list[FrameKey], now_ns: int | None, now_s: float, everything: bool = False) -> None:
        """Frames that wait for no more messages.

        Args:
            keys: the frames.
            now_ns: the newest stamp of the data.
            now_s: for a frame whose messages' arrival is not known.
            everything: no more data comes: recorded frames need not wait for theirs.
        """
        if self._only is not None:
            keys = self._recorded(self._only, now_ns, everything)
        for key in keys:
            self._jobs.append(Job(key, self._arrivals.get(key.stamp_ns, now_s)))
        self.paired += len(keys)
        while self._only is None and len(self._jobs) > self._limit:
            self._jobs.popleft()
            self.stale += 1

    def _recorded(self, only: deque[FrameKey], now_ns: int | None, everything: bool) -> list[FrameKey]:
        """Recorded frames whose messages, and the odometry around them, must have come by now."""
        keys: list[FrameKey] = []
        while only and now_ns is not None:
            newest_ns = max(only[0].stamp_ns, *only[0].depth_stamps_ns, 0)
            if not everything and now_ns < newest_ns + self._wait_ns:
                break
            keys.append(only.popleft())
        return keys

    def first(self) -> FrameKey | None:
        """The frame that has waited longest."""
        return self._jobs[0].key if self._jobs else None

    def remove(self, key: FrameKey) -> Job | None:
        """Takes a frame out; None where it went stale meanwhile."""
        job = next((job for job in self._jobs if job.key is key), None)
        if job is not None:
            self._jobs.remove(job)
        return job
