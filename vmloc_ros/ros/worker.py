"""The one thread that runs the network."""

from __future__ import annotations

import threading
import traceback
from collections import deque
from collections.abc import Callable

from vmloc_ros.outputs import Outputs
from vmloc_ros.pipeline import Pipeline

IDLE_S = 0.2


class Worker:
    """Takes frames from the pipeline, processes them, and hands on what comes out.

    Attributes:
        failures: frames that ended in an exception which nobody foresaw; the thread goes on with the next one.
        latencies_ms: of the last frames, from the arrival of their last message to their status.
    """

    def __init__(self, pipeline: Pipeline, publish: Callable[[Outputs], None], complain: Callable[[str], None]) -> None:
        self._pipeline = pipeline
        self._publish = publish
        self._complain = complain
        self._work = threading.Event()
        self._stopping = False
        self.failures = 0
        self.latencies_ms: deque[float] = deque(maxlen=200)
        self._thread = threading.Thread(target=self._run, name="inference", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def wake(self) -> None:
        """Says that a frame may be waiting."""
        self._work.set()

    def stop(self) -> None:
        """Ends the thread after the frame that it is working on."""
        self._stopping = True
        self._work.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._stopping:
            self._work.wait(IDLE_S)
            self._work.clear()
            while not self._stopping and self._step():
                pass

    def _step(self) -> bool:
        """Processes one frame; whether there was one."""
        key = self._pipeline.take()
        if key is None:
            return False
        try:
            outputs = self._pipeline.process(key)
            self.latencies_ms += [status.latency_ms for status in outputs.statuses if status.key is not None]
            self._publish(outputs)
        except Exception:  # noqa: BLE001 - one frame must not end the localization; it is counted and shown
            self.failures += 1
            self._complain(f"frame at {key.stamp_ns / 1e9:.3f} s failed:\n{traceback.format_exc()}")
        return True
