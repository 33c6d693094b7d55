"""Makes the pieces of prepared samples, in this process or in several. Imports no PyTorch: processes start quickly."""

from __future__ import annotations

import logging
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
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


def make_in_processes(
    work: Work,
    openers: list[Callable[[], Recording]],
    jobs: list[Job],
    processes: int,
    total: int,
    advance: Callable[[int], None],
) -> None:
    """Makes pieces in processes of one thread each; the first error ends it when the pieces under way are finished.

    Args:
        openers: of the recordings. What a process starts with must be small: one that dies while more is handed to it
            than a pipe holds leaves its parent waiting for ever.
        total: how many pieces there are, also those that are made already, for messages.
        advance: is told how many frames have been prepared.

    Raises:
        DatasetError, TrainingError: as the process met it; or the system has ended a process.
    """
    others = multiprocessing.active_children()
    longest_first = sorted(jobs, key=lambda job: job.part == WHOLE, reverse=True)
    try:
        with ProcessPoolExecutor(
            processes, multiprocessing.get_context("spawn"), _start_process, (work, openers)
        ) as pool:
            _wait_for_all(pool, longest_first, advance)
    except BrokenProcessPool as error:
        for child in multiprocessing.active_children():
            if child not in others:  # started while the pool broke: it would wait for work for ever
                child.terminate()
        done = total - sum(work.open(job) is None for job in jobs)
        raise TrainingError(
            f"a process that prepared samples was ended by the system, most likely for want of memory; {done} of "
            f"{total} pieces are finished and kept: set data.workers below {processes} and run the same command again"
        ) from error


def _wait_for_all(pool: ProcessPoolExecutor, jobs: list[Job], advance: Callable[[int], None]) -> None:
    with _single_threaded():
        waiting = _submitted(pool, jobs)
    for future in waiting:
        future.add_done_callback(lambda done: advance(0 if _failed(done) else done.result()))
    finished, _ = wait(waiting, return_when=FIRST_EXCEPTION)
    failed = next((future for future in finished if _failed(future)), None)
    if failed is not None:
        pool.shutdown(wait=True, cancel_futures=True)
        failed.result()


def _submitted(pool: ProcessPoolExecutor, jobs: list[Job]) -> set[Future[int]]:
    """Hands all jobs to the pool.

    Raises:
        BrokenProcessPool: a process has died. While the pool starts the next one it takes that one's handles away, and
            the start fails with an OSError that says nothing of it.
    """
    waiting: set[Future[int]] = set()
    for job in jobs:
        try:
            waiting.add(pool.submit(_make, job))
        except OSError as error:
            broken = next((f.exception() for f in waiting if f.done() and not f.cancelled() and f.exception()), None)
            if isinstance(broken, BrokenProcessPool):
                raise broken from error
            raise
    return waiting


def _failed(future: Future[int]) -> bool:
    return future.cancelled() or future.exception() is not None


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
    """What a process of the pool holds: recordings are opened when a first job is of them."""

    work: Work
    openers: list[Callable[[], Recording]]
    opened: dict[int, Recording] = field(default_factory=dict)

    def make(self, job: Job) -> int:
        if job.number not in self.opened:
            self.opened[job.number] = self.openers[job.number]()
        return self.work.make(job, self.opened[job.number])


_worker: list[_Worker] = []  # one per process of the pool


def _start_process(work: Work, openers: list[Callable[[], Recording]]) -> None:
    cv2.setNumThreads(1)
    logging.getLogger("vmloc_ros").setLevel(logging.ERROR)  # what is left out is reported once, by who started this
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    _worker.append(_Worker(work, openers))


def _leave_with_parent() -> None:
    """Nobody waits for the pieces of a command that was killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _make(job: Job) -> int:
    return _worker[0].make(job)
