"""How regularly a topic arrives, compared with what its own stamps say was sent."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np

WINDOW_S = 10.0
MAX_KEPT = 4000
MIN_MESSAGES = 8
OUTAGE_NS = 1_500_000_000
"""A longer hole in the stamps is a sensor that stopped, not a transport that loses."""


@dataclass(frozen=True)
class FlowReport:
    """One topic at one moment.

    Attributes:
        count: messages since the start.
        rate_hz: arrivals per second of wall time.
        sent_hz: the sender's rate by the stamps; None when too few have come to tell.
        delivered: share of the sent messages that have arrived; None when it cannot be told.
        silent_s: wall time since the last arrival; None when none has come.
    """

    count: int
    rate_hz: float
    sent_hz: float | None
    delivered: float | None
    silent_s: float | None


class Flow:
    """Arrivals of one topic in the last ten seconds."""

    def __init__(self) -> None:
        self.count = 0
        self._arrivals: deque[tuple[float, int]] = deque(maxlen=MAX_KEPT)

    def note(self, stamp_ns: int, now_s: float) -> None:
        """A message with this stamp has arrived at `now_s` (monotonic)."""
        self.count += 1
        self._arrivals.append((now_s, stamp_ns))

    def report(self, now_s: float, companion: Flow | None = None) -> FlowReport:
        """The state now.

        Args:
            now_s: monotonic time.
            companion: a small topic that is sent once per message of this one (camera_info): it is not lost, and tells
                how many were sent even when the stamps that arrive are too few to tell.
        """
        silent_s = now_s - self._arrivals[-1][0] if self._arrivals else None
        recent = self._recent(now_s)
        rate_hz = len(recent) / min(WINDOW_S, max(now_s - recent[0][0], 1.0)) if recent else 0.0
        sent_hz, delivered = _by_stamps([stamp for _, stamp in recent])
        if companion is not None:
            sent = len(companion._recent(now_s))
            if sent >= MIN_MESSAGES:
                share = len(recent) / sent
                delivered = share if delivered is None else min(delivered, share)
        return FlowReport(self.count, rate_hz, sent_hz, delivered, silent_s)

    def _recent(self, now_s: float) -> list[tuple[float, int]]:
        return [item for item in tuple(self._arrivals) if now_s - item[0] <= WINDOW_S]


def _by_stamps(stamps_ns: list[int]) -> tuple[float | None, float | None]:
    """(rate by the shortest steps between stamps, share of the stamps on that grid that are there)."""
    if len(stamps_ns) < MIN_MESSAGES:
        return None, None
    steps = np.diff(np.unique(np.array(stamps_ns, dtype=np.int64)))
    steps = steps[(steps > 0) & (steps < OUTAGE_NS)]
    if len(steps) < MIN_MESSAGES - 1:
        return None, None
    period_ns = float(np.percentile(steps, 10))
    return 1e9 / period_ns, min(1.0, len(steps) * period_ns / float(steps.sum()))
