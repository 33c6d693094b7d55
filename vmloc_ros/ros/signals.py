"""One clean way to stop: SIGINT and SIGTERM ask, the loop ends by itself, the exit code is 0."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from types import FrameType, TracebackType
from typing import Any

SLICE_S = 0.05
EXIT_WITH_PARENT = "VMLOC_EXIT_WITH_PARENT"
_PR_SET_PDEATHSIG = 1


def exit_with_parent() -> None:
    """Where the launch file asks for it: gets a SIGTERM when launch dies, which would leave its processes behind.

    `ros2 launch` passes SIGINT on to its processes, but on SIGTERM it just ends. Linux only; elsewhere nothing happens.
    """
    if os.environ.get(EXIT_WITH_PARENT) == "1" and sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)


class StopRequest:
    """While the block runs, SIGINT and SIGTERM only set a flag (a second one too: launch and the terminal both send).

    After a signal they stay ignored: the process is about to end, and a second one must not spoil its exit status.
    rclpy's own handlers would close the DDS context at once, and nothing could be published or written any more. In a
    thread other than the main one signals cannot be caught; then only `set` stops.
    """

    def __init__(self) -> None:
        self._stop = False  # not an Event: its lock could be held by the very thread that the handler interrupts
        self._signalled = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        exit_with_parent()
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_IGN if self._signalled else handler)
        self._previous.clear()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._stop = self._signalled = True

    def set(self) -> None:
        """Asks to stop, as a signal would."""
        self._stop = True

    def is_set(self) -> bool:
        """Whether somebody has asked."""
        return self._stop

    def wait(self, seconds: float) -> bool:
        """Sleeps, but not past a request to stop; returns whether there was one."""
        end = time.monotonic() + seconds
        while not self._stop and (rest := end - time.monotonic()) > 0.0:
            time.sleep(min(rest, SLICE_S))
        return self._stop
