"""Runs a long command with its progress shown in one line and its whole output in a log file."""

from __future__ import annotations

import queue
import shlex
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import IO

# Without a terminal there is no line to rewrite: one line in this many seconds says that the work goes on.
QUIET_INTERVAL_S = 15.0
LINE_WIDTH = 100


class CommandError(Exception):
    """A command failed; the message holds the end of what it said."""


def run_visibly(command: list[str], environment: Mapping[str, str], folder: Path, log: Path) -> None:
    """Runs a command, appends its output to `log`, and shows its latest line with the time it has taken.

    Raises:
        CommandError: it did not start or did not exit with 0.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as stream:
        stream.write(f"\n$ {shlex.join(command)}\n")
        try:
            process = subprocess.Popen(
                command, env=dict(environment), cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT, text=True, errors="replace", close_fds=False,
            )  # fmt: skip
        except OSError as error:
            raise CommandError(f"{command[0]} cannot be run: {error.strerror}") from error
        with process:
            try:
                last_lines = _follow(process, stream)
            except BaseException:
                process.terminate()
                raise
    if process.returncode:
        said = "\n".join(f"  {line}" for line in last_lines)
        raise CommandError(f"`{shlex.join(command)}` failed ({process.returncode}):\n{said}\nAll of it: {log}")


def _follow(process: subprocess.Popen[str], stream: IO[str]) -> deque[str]:
    """Shows and logs the output until the process ends; returns its last lines."""
    lines: queue.Queue[str | None] = queue.Queue()
    threading.Thread(target=_read, args=(process, lines), daemon=True).start()
    last_lines: deque[str] = deque(maxlen=25)
    display = _Display()
    while True:
        try:
            line = lines.get(timeout=1.0)
        except queue.Empty:
            display.show(last_lines[-1] if last_lines else "")
            continue
        if line is None:
            break
        stream.write(line)
        stream.flush()
        if line.strip():
            last_lines.append(line.rstrip())
            display.show(last_lines[-1])
    process.wait()
    display.clear()
    return last_lines


def _read(process: subprocess.Popen[str], lines: queue.Queue[str | None]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        lines.put(line)
    lines.put(None)


class _Display:
    """One line that is rewritten on a terminal, and printed now and then elsewhere."""

    def __init__(self) -> None:
        self._terminal = sys.stdout.isatty()
        self._started = self._shown = time.monotonic()

    def show(self, text: str) -> None:
        now = time.monotonic()
        line = f"      {now - self._started:4.0f} s  {' '.join(text.split())}"[:LINE_WIDTH]
        if self._terminal:
            sys.stdout.write(f"\r\033[K{line}")
            sys.stdout.flush()
        elif now - self._shown >= QUIET_INTERVAL_S:
            self._shown = now
            print(line, flush=True)

    def clear(self) -> None:
        if self._terminal:
            sys.stdout.write("\r\033[K")
            sys.stdout.flush()
