"""What a person sees while the node finds its way: one line that follows it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from rich.console import Console
from rich.live import Live
from rich.text import Text

from vmloc_ros.commands.processes import Child
from vmloc_ros.commands.tables import MISSING
from vmloc_ros.run_log import Outage
from vmloc_ros.trajectory import NANOSECONDS, Trajectory

PRINT_EVERY_S = 10.0
"""Of the drive, where there is no terminal to draw on."""


class LiveView:
    """One line that follows the node: time, mode, how far it is from the truth."""

    def __init__(self, truth: Trajectory, start_ns: int, length_s: float, outages: Sequence[Outage]) -> None:
        self._truth = truth
        self._start_ns = start_ns
        self._length_s = length_s
        self._outages = outages
        self._read = 0
        self._errors: list[float] = []
        self._live: Live | None = None
        self._console = Console()
        self._last_printed_s = -math.inf

    @contextmanager
    def shown(self, console: Console) -> Iterator[None]:
        """Shows the line while the block runs: in place on a terminal, else every ten seconds of the drive."""
        self._console = console
        if not console.is_terminal:
            yield
            return
        with Live(Text("waiting for the first pose"), console=console, refresh_per_second=10) as self._live:
            yield

    def update(self, watch: Child) -> None:
        """Takes what the watcher has said since the last time."""
        whole, _, _ = watch.text()[self._read :].rpartition("\n")  # the last line may still be being written
        self._read += len(whole) + 1 if whole else 0
        for line in whole.splitlines():
            try:
                seen = json.loads(line)
            except ValueError:
                continue  # of the log
            if isinstance(seen, dict) and "stamp_ns" in seen:
                self._show(seen)

    def _show(self, seen: dict[str, Any]) -> None:
        second = (seen["stamp_ns"] - self._start_ns) / NANOSECONDS
        error = self._error_of(seen)
        if error is not None:
            self._errors.append(error)
        failing = [MISSING[o.missing] for o in self._outages if o.from_s <= second < o.to_s]
        line = Text(f"  {second:5.1f} / {self._length_s:.0f} s  {seen['mode']:14s}")
        if error is not None:
            mean = float(np.mean(self._errors))
            line.append(f" error {error:5.2f} m (mean {mean:.2f} m), sigma {seen['sigma_m']:.1f} m")
        else:
            line.append(" no pose" if self._errors else " no pose yet")
        line.append(f"  {failing[0]}" if failing else "", style="bold yellow")
        if self._live is not None:
            self._live.update(line)
        elif second - self._last_printed_s >= PRINT_EVERY_S:
            self._last_printed_s = second
            self._console.print(line)

    def _error_of(self, seen: dict[str, Any]) -> float | None:
        if seen["x_m"] is None or not self._truth.covers(seen["stamp_ns"]):
            return None
        true = self._truth.interpolate(seen["stamp_ns"])[:3, 3]
        return float(np.linalg.norm(true - [seen["x_m"], seen["y_m"], seen["z_m"]]))
