"""Makes the pieces of prepared samples, in this process or in several. Imports no PyTorch: processes start quickly."""

from __future__ import annotations

import copy
import logging
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path

import cv2

from vmloc_ros import files
from vmloc_ros.assembly import labelled_frames
from vmloc_ros.config import LocalizerConfig
from vmloc_ros.datasets.base import Recording
from vmloc_ros.datasets.parts import WHOLE, Part
from vmloc_ros.errors import TrainingError
from vmloc_ros.sample_pieces import Piece, open_piece
from vmloc_ros.samples import StoreWriter, room_on_disk

THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OPENCV_FOR_THREADS_NUM")
LEFT_OUT = "left_out"
"""Under this name a piece tells what its walk has left out."""


@dataclass(frozen=True, slots=True)
class Job:
    """One piece that is to be made: of the recording with this number, in this folder."""

    number: int
    part: Part
    folder: Path


@dataclass(frozen=True, eq=False)
class Work:
    """What every process needs.

    Attributes:
        names: of all recordings; a job says which by its number.
        config: how sensor messages become frames.
        size: rows and columns of the stored samples.
        key: what the samples depend on.
        needed_bytes: what all samples may take on the disk, for messages.
    """

    names: list[str]
    config: LocalizerConfig
    size: tuple[int, int]
    key: str
    needed_bytes: int

    def make(self, job: Job, recording: Recording, advance: Callable[[], None] = lambda: None) -> int:
        """Makes a piece; how many frames it has.

        Raises:
            DatasetError, TrainingError: with the file's name.
        """
        with (
            room_on_disk(job.folder, self.needed_bytes),
            files.whole_folder(job.folder) as partial,
            StoreWriter(partial, *self.size) as writer,
        ):
            for item in labelled_frames(recording, self.config, job.part):
                writer.add(item.frame, item.T_map_camera, item.recording)
                advance()
            left_out = {reason: asdict(skip) for reason, skip in recording.skips.walked().items()}
            writer.finish(self.key, {LEFT_OUT: left_out})
        return writer.seen

    def open(self, job: Job) -> Piece | None:
        """A piece that has been made."""
        return open_piece(job.folder, self.names[job.number], self.key, *self.size)


class _EndedError(Exception):
    """A process ended before it had answered."""


def make_in_processes(
    work: Work,
    openers: list[Callable[[], Recording]],
    jobs: list[Job],
    processes: int,
    total: int,
    advance: Callable[[int], None],
) -> None:
    """Makes pieces in processes of one thread each; the first error ends it when the pieces under way are finished.

    Every process has a pipe of its own and shares no lock and no queue with another, so that one that is killed, at
    whatever moment, is seen as the end of its pipe and holds nobody up. (The pool of `concurrent.futures` waits for
    ever for a process that it was just starting when another one died.)

    Args:
        openers: of the recordings.
        processes: how many; not more than there are jobs.
        total: how many pieces there are, also those that are made already, for messages.
        advance: is told how many frames have been prepared.

    Raises:
        DatasetError, TrainingError: as the process met it; or the system has ended a process.
    """
    longest_first = sorted(jobs, key=lambda job: job.part == WHOLE, reverse=True)
    try:
        with _started(processes) as pipes:
            for pipe in pipes:
                _tell(pipe, (work, openers))
            _make_all(pipes, deque(longest_first), advance)
    except _EndedError as error:
        done = total - sum(work.open(job) is None for job in jobs)
        raise TrainingError(
            f"a process that prepared samples was ended by the system, most likely for want of memory; {done} of "
            f"{total} pieces are finished and kept: set data.workers below {processes} and run the same command again"
        ) from error


@contextmanager
def _started(count: int) -> Iterator[list[Connection]]:
    """Pipes to so many processes, which are gone when the block ends: what they have finished is on the disk."""
    context = multiprocessing.get_context("spawn")
    pipes: list[Connection] = []
    children: list[SpawnProcess] = []
    try:
        with _single_threaded():
            for _ in range(count):
                ours, theirs = context.Pipe()
                pipes.append(ours)
                with theirs:  # once the child has it, only the child does: its death is the end of the pipe
                    child = context.Process(target=_serve, args=(theirs,), daemon=True)
                    child.start()  # with little data: a child that dies now does not leave us writing for ever
                    children.append(child)
        yield pipes
    finally:
        for child in children:
            child.kill()
        for child in children:
            child.join()
        for pipe in pipes:
            pipe.close()


def _make_all(pipes: list[Connection], waiting: deque[Job], advance: Callable[[int], None]) -> None:
    """Gives every process one job after the other.

    Raises:
        _EndedError: a process was killed; at once.
        Exception: the first that a process met, when all of them have answered.
    """
    failed: Exception | None = None
    busy = pipes[: len(waiting)]
    for pipe in busy:
        _tell(pipe, waiting.popleft())
    while busy:
        ready = multiprocessing.connection.wait(busy)
        for pipe in [pipe for pipe in busy if pipe in ready]:
            answer = _hear(pipe)
            if isinstance(answer, Exception):
                failed = failed or answer
                waiting.clear()
            else:
                advance(answer)
            if waiting:
                _tell(pipe, waiting.popleft())
            else:
                busy.remove(pipe)
    if failed is not None:
        raise failed


def _tell(pipe: Connection, what: object) -> None:
    try:
        pipe.send(what)
    except OSError as error:
        raise _EndedError from error


def _hear(pipe: Connection) -> int | Exception:
    """How many frames the piece has, or what went wrong."""
    try:
        answer: int | Exception = pipe.recv()
    except (EOFError, OSError) as error:
        raise _EndedError from error
    return answer


@contextmanager
def _single_threaded() -> Iterator[None]:
    """Processes that are started in this block begin with one thread per library."""
    before = {name: os.environ.get(name) for name in THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@dataclass(frozen=True, eq=False)
class _Worker:
    """What a process holds: recordings are opened when a first job is of them."""

    work: Work
    openers: list[Callable[[], Recording]]
    opened: dict[int, Recording] = field(default_factory=dict)

    def make(self, job: Job) -> int:
        if job.number not in self.opened:
            self.opened[job.number] = self.openers[job.number]()
        return self.work.make(job, self.opened[job.number])


def _serve(pipe: Connection) -> None:
    """What a process does: it is told the work, and then one job after the other, until it is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who started this hears it too, and ends this
    cv2.setNumThreads(1)
    logging.getLogger("vmloc_ros").setLevel(logging.ERROR)  # what is left out is reported once, by who started this
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    try:
        worker = _Worker(*pipe.recv())
        while True:
            job = pipe.recv()
            pipe.send(_answer(worker, job))
    except (EOFError, ConnectionError):
        return  # nobody is there any more


def _answer(worker: _Worker, job: Job) -> int | Exception:
    """The number of frames, or the error with a note of the place where it happened."""
    try:
        return worker.make(job)
    except Exception as error:  # noqa: BLE001 - who started this raises it
        place = traceback.format_exc()
        if not _can_be_sent(error):
            return RuntimeError(f"in a process that prepared samples: {place}")
        error.add_note(place)
        return error


def _can_be_sent(error: Exception) -> bool:
    """Whether an error survives the pipe: one that takes further arguments may be sent and yet not be made again.

    A deep copy is made in the same way as what comes out of a pipe.
    """
    try:
        copy.deepcopy(error)
    except Exception:  # noqa: BLE001 - whatever the error's own constructor raises
        return False
    return True


def _leave_with_parent() -> None:
    """Nobody waits for the pieces of a command that was killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
