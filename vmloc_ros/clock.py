"""Time as the data tells it: which stamps to believe, and when the data has started over."""

from __future__ import annotations

from enum import StrEnum

NANOSECONDS = 1_000_000_000


class ClockVerdict(StrEnum):
    OK = "ok"
    ZERO = "stamp_zero"
    FUTURE = "stamp_from_the_future"
    BACKWARD = "stamp_backwards"
    RESET = "clock_reset"


class DataClock:
    """The newest stamp of all topics, guarded against stamps that no other message bears out.

    A stamp more than `jump_s` ahead of or behind the newest one is refused, unless `confirmations` messages in a row
    agree on the new time: then the data has jumped (a bag that loops, a clock that was set), which is a reset.
    """

    def __init__(self, jump_s: float = 5.0, confirmations: int = 3) -> None:
        self._jump_ns = round(jump_s * NANOSECONDS)
        self._confirmations = confirmations
        self._odd: list[int] = []
        self.now_ns: int | None = None

    def observe(self, stamp_ns: int) -> ClockVerdict:
        """Takes the stamp of a message that has just arrived."""
        if stamp_ns <= 0:
            return ClockVerdict.ZERO
        if self.now_ns is None:
            self.now_ns = stamp_ns
            return ClockVerdict.OK
        ahead_ns = stamp_ns - self.now_ns
        if abs(ahead_ns) <= self._jump_ns:
            self._odd.clear()
            self.now_ns = max(self.now_ns, stamp_ns)
            return ClockVerdict.OK
        if self._odd and abs(stamp_ns - self._odd[-1]) > self._jump_ns:
            self._odd.clear()
        self._odd.append(stamp_ns)
        if len(self._odd) < self._confirmations:
            return ClockVerdict.FUTURE if ahead_ns > 0 else ClockVerdict.BACKWARD
        self.now_ns = max(self._odd)
        self._odd.clear()
        # A silence of all sensors also ends with a jump ahead. Nothing then needs to be forgotten: the filter's own
        # odometry gap widens what is uncertain. Only time that runs backwards makes the past worthless.
        return ClockVerdict.OK if ahead_ns > 0 else ClockVerdict.RESET

    def clear(self) -> None:
        """Forgets the time."""
        self._odd.clear()
        self.now_ns = None
