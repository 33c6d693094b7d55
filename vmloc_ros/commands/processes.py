"""Child processes that are watched, end together, and never outlive whoever started them."""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from vmloc_ros.errors import SetupError

PR_SET_PDEATHSIG = 1
MAX_DOMAIN = 101
SHOWN_LINES = 15
POLL_S = 0.05


@dataclass
class Child:
    """One process and the file that its words go to."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    def text(self) -> str:
        """What it has said so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def last_lines(self) -> str:
        """The end of what it said, indented."""
        lines = [line for line in self.text().splitlines() if line.strip()][-SHOWN_LINES:]
        return "\n".join(f"  {self.name}| {line}" for line in lines) or f"  {self.name}| (it said nothing)"


class ProcessError(SetupError):
    """A child ended, or was silent, when it should not have been; `detail` holds its last lines."""

    def __init__(self, message: str, detail: str) -> None:
        super().__init__(message)
        self.detail = detail


class Processes:
    """Starts children as `python -m <module> ...`, each in its own session with its own log file.

    Leaving the `with` block ends every child that still runs: SIGINT first, SIGKILL after `grace_s`. Should this
    process be killed itself, the kernel ends the children.
    """

    def __init__(self, logs: Path, environment: Mapping[str, str], grace_s: float = 10.0) -> None:
        self._logs = logs
        self._environment = dict(environment)
        self._grace_s = grace_s
        self.children: dict[str, Child] = {}
        logs.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end_all()

    def start(self, name: str, arguments: Sequence[str], module: str = "vmloc_ros.cli") -> Child:
        """Starts a child; its standard output and error go to `<logs>/<name>.log`."""
        log = self._logs / f"{name}.log"
        with log.open("wb") as stream:
            process = subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                env={**self._environment, "PYTHONUNBUFFERED": "1"},
                start_new_session=True,  # Ctrl-C in the terminal reaches us alone; we end the children in order
                preexec_fn=_child_setup(),
            )
        self.children[name] = Child(name, process, log)
        return self.children[name]

    def check(self, *names: str) -> None:
        """Makes sure that children still run.

        Raises:
            ProcessError: names the first that does not.
        """
        for name in names:
            child = self.children[name]
            status = child.process.poll()
            if status is not None:
                raise ProcessError(f"the {name} ended early with exit status {status}", child.last_lines())

    def wait_for(self, name: str, ready: Callable[[Child], bool], what: str, timeout_s: float) -> None:
        """Waits until a child is ready, while all others must keep running.

        Raises:
            ProcessError: it ended, or took longer than `timeout_s`.
        """
        deadline = time.monotonic() + timeout_s
        child = self.children[name]
        while not ready(child):
            self.check(*[other for other, item in self.children.items() if item.process.returncode is None])
            self.check(name)
            if time.monotonic() > deadline:
                raise ProcessError(f"the {name} was not {what} within {timeout_s:.0f} s", child.last_lines())
            time.sleep(POLL_S)

    def stop(self, name: str) -> None:
        """Ends a child by one SIGINT and demands exit status 0.

        Raises:
            ProcessError: another status, or it had to be killed.
        """
        child = self.children[name]
        if child.process.poll() is None:
            child.process.send_signal(signal.SIGINT)
        self.finished(name, self._grace_s)

    def finished(self, name: str, timeout_s: float) -> None:
        """Waits for a child to end by itself and demands exit status 0.

        Raises:
            ProcessError: another status, or it takes longer.
        """
        child = self.children[name]
        try:
            status = child.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            child.process.kill()
            child.process.wait()
            raise ProcessError(f"the {name} did not end within {timeout_s:.0f} s", child.last_lines()) from None
        if status != 0:
            raise ProcessError(f"the {name} ended with exit status {status}", child.last_lines())

    def end_all(self) -> None:
        """Ends whatever still runs, without complaint."""
        running = [child.process for child in self.children.values() if child.process.poll() is None]
        for process in running:
            process.send_signal(signal.SIGINT)
        deadline = time.monotonic() + self._grace_s
        for process in running:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _child_setup() -> Callable[[], None]:
    """What a child runs before it becomes its command.

    It can be interrupted, also where this process cannot (a shell starts `command &` in a script with SIGINT ignored,
    which children inherit); and it asks for SIGTERM when its parent dies (Linux only).
    """
    # looked up here: little may be done between fork and exec
    prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None

    def prepare() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        if prctl is not None:
            prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM))

    return prepare


@contextmanager
def private_graph() -> Iterator[dict[str, str]]:
    """This process's environment with a ROS graph of its own, which does not leave the machine.

    The domain is held by a lock on a file until the block ends. Domains above 101 are left alone: their ports lie
    among those that the kernel hands out.

    Raises:
        SetupError: all domains are taken.
    """
    folder = Path(tempfile.gettempdir()) / f"vmloc_ros_domains_{os.getuid()}"
    folder.mkdir(exist_ok=True)
    for domain in range(1, MAX_DOMAIN + 1):
        with (folder / str(domain)).open("ab") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            environment = dict(os.environ)
            environment.update(ROS_DOMAIN_ID=str(domain), ROS_AUTOMATIC_DISCOVERY_RANGE="LOCALHOST")
            for name in ("ROS_STATIC_PEERS", "ROS_LOCALHOST_ONLY", "ROS_NAMESPACE"):
                environment.pop(name, None)
            yield environment
            return
    raise SetupError(f"all ROS domains are taken ({folder}); end the demos that still run")
