"""From recordings to prepared samples: in parallel processes, part by part, resumed where it stopped.

A recording is divided into parts of time. Each part is walked through with a lead and a trail, so that pairing and
windows of clouds are as in one walk, and becomes a piece (`sample_pieces`). When all are there they are joined.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import multiprocessing
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from vmloc_ros import files
from vmloc_ros.assembly import labelled_frames
from vmloc_ros.datasets.base import Recording
from vmloc_ros.datasets.parts import WHOLE, Part
from vmloc_ros.datasets.skips import LeftOut, Skip, refuse_broken
from vmloc_ros.division import divide
from vmloc_ros.errors import TrainingError
from vmloc_ros.sample_pieces import Piece, join_pieces, open_piece
from vmloc_ros.samples import CAMERA, SampleStore, StoreWriter, open_store, room_on_disk
from vmloc_ros.training_config import TrainingConfig
from vmloc_ros.types import EventKind

EVENTS_PER_PROCESS = 1000
"""Less work than this is not worth the start of a process (which imports PyTorch)."""
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OPENCV_FOR_THREADS_NUM")
LEFT_OUT = "left_out"
LOCK = "lock"


def digest(*parts: Any) -> str:
    """Short hash of anything that is JSON."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def store_key(config: TrainingConfig, recordings: Sequence[Recording]) -> str:
    """What the prepared samples depend on."""
    sensors = config.localizer.model_dump(
        mode="json", include={"frames", "input", "projection", "pairing", "extrinsics"}
    )
    about = [(recording.name, recording.event_count()) for recording in recordings]
    options = config.data.model_dump(mode="json", include={"format", "options", "frame_stride"})
    return digest(sensors, about, options, config.stored_size())


@dataclass(frozen=True, slots=True)
class Job:
    """One piece that is to be made: of the recording with this number, in this folder."""

    number: int
    part: Part
    folder: Path


@dataclass(frozen=True, eq=False)
class Work:
    """What every process needs."""

    recordings: list[Recording]
    config: TrainingConfig
    key: str
    needed_bytes: int

    def make(self, job: Job, advance: Callable[[], None] = lambda: None) -> int:
        """Makes a piece; how many frames it has.

        Raises:
            DatasetError, TrainingError: with the file's name.
        """
        recording = self.recordings[job.number]
        rows, columns = self.config.stored_size()
        with (
            room_on_disk(job.folder, self.needed_bytes),
            files.whole_folder(job.folder) as partial,
            StoreWriter(partial, rows, columns) as writer,
        ):
            for item in labelled_frames(recording, self.config.localizer, job.part):
                writer.add(item.frame, item.T_map_camera, item.recording)
                advance()
            left_out = {reason: asdict(skip) for reason, skip in recording.skips.walked().items()}
            writer.finish(self.key, {LEFT_OUT: left_out})
        return writer.seen

    def open(self, job: Job) -> Piece | None:
        """A piece that has been made."""
        return open_piece(job.folder, self.recordings[job.number].name, self.key, *self.config.stored_size())


# --------------------------------------------------------------------------------------------------------- the command


def prepare(
    config: TrainingConfig,
    recordings: list[Recording],
    folder: Path,
    console: Console,
    allow_missing: bool = False,
) -> SampleStore:
    """The prepared samples: from the cache where it fits, else from the recordings.

    Args:
        folder: of the cache; the pieces are made in a folder beside it, `<folder>.parts`.
        allow_missing: go on although more than 1 % of the files are missing or unusable.

    Raises:
        DatasetError: a recording cannot be used, or too many of its files are missing or unusable (names the first).
        TrainingError: no frame, cameras that do not belong together, a full disk, a process that was killed.
    """
    key = store_key(config, recordings)
    pieces = folder.with_name(folder.name + ".parts")
    with _alone(pieces, console):
        store = open_store(folder, key)
        if store is not None:
            console.print(f"using {len(store)} prepared samples in {folder}")
        else:
            for recording in recordings:
                recording.truth()  # whatever is wrong with the labels is said before the long work
            refuse_broken([left_out_of(recording) for recording in recordings], allow_missing)
            store = _prepare(config, recordings, folder, pieces / key, console)
        shutil.rmtree(pieces, ignore_errors=True)
    left_out = _read_left_out(folder)
    for item in left_out:
        for reason, skip in item.skips.items():
            console.print(f"{item.recording}: skipped {skip.count} ({reason}, first: {skip.names[0]})", highlight=False)
    refuse_broken(left_out, allow_missing)
    return store


def left_out_of(recording: Recording) -> LeftOut:
    """What a recording has left out so far."""
    return LeftOut(recording.name, recording.file_count(), recording.skips.everything())


@contextmanager
def _alone(pieces: Path, console: Console) -> Iterator[None]:
    """Only one process prepares samples for a folder; another one waits and finds them."""
    pieces.mkdir(parents=True, exist_ok=True)
    with (pieces / LOCK).open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            console.print(f"another command prepares samples in {pieces}: waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _prepare(
    config: TrainingConfig, recordings: list[Recording], folder: Path, pieces: Path, console: Console
) -> SampleStore:
    """Makes the pieces that are missing, and joins all."""
    rows, columns = config.stored_size()
    for stale in [path for path in pieces.parent.iterdir() if path.is_dir() and path != pieces]:
        shutil.rmtree(stale)
    jobs = [
        Job(number, part, pieces / f"{number:03d}_{index:04d}")
        for number, recording in enumerate(recordings)
        for index, part in enumerate(divide(recording, config.localizer))
    ]
    images = [len(recording.timeline().get(EventKind.IMAGE, ())) for recording in recordings]
    expected = sum(count or recording.event_count() for count, recording in zip(images, recordings, strict=True))
    work = Work(recordings, config, store_key(config, recordings), 2 * 5 * rows * columns * expected)
    missing = [job for job in jobs if work.open(job) is None]
    if len(missing) < len(jobs):
        console.print(f"{len(jobs) - len(missing)} of {len(jobs)} pieces are prepared already")
    with _progress(console) as bar:
        task = bar.add_task("preparing", total=None)

        def advance(frames: int) -> None:
            bar.advance(task, frames)

        processes = process_count(config, recordings, missing)
        if processes > 1:
            _in_processes(work, missing, processes, len(jobs), advance)
        else:
            for job in missing:
                work.make(job, lambda: advance(1))
    made = [_made(work, job) for job in jobs]
    left_out = _left_out(recordings, jobs, made)
    return join_pieces(folder, made, rows, columns, work.key, config.data.frame_stride, {LEFT_OUT: left_out})


def _made(work: Work, job: Job) -> Piece:
    piece = work.open(job)
    if piece is None:
        raise TrainingError(f"{job.folder}: the piece that was just written cannot be read; is the disk damaged?")
    return piece


def _left_out(recordings: list[Recording], jobs: list[Job], pieces: list[Piece]) -> list[dict[str, Any]]:
    """What the listing and all walks left out, as JSON; the recordings' own counts are brought up to date."""
    for recording in recordings:
        recording.skips.restart()
    for job, piece in zip(jobs, pieces, strict=True):
        recordings[job.number].skips.take(_skips(piece.about[LEFT_OUT]))
    return [asdict(left_out_of(recording)) for recording in recordings]


def _skips(stored: dict[str, Any]) -> dict[str, Skip]:
    return {
        reason: Skip(int(item["count"]), tuple(item["names"]), bool(item["broken"])) for reason, item in stored.items()
    }


def _read_left_out(folder: Path) -> list[LeftOut]:
    """What was left out when a cache was made."""
    stored = json.loads((folder / CAMERA).read_text(encoding="utf-8")).get("about", {}).get(LEFT_OUT, [])
    return [LeftOut(item["recording"], int(item["files"]), _skips(item["skips"])) for item in stored]


# ----------------------------------------------------------------------------------------------------------- processes


def process_count(config: TrainingConfig, recordings: list[Recording], jobs: list[Job]) -> int:
    """How many processes: as the configuration says, else one a core as far as there is work for it."""
    wanted = config.data.workers
    if not wanted:
        events = sum(recordings[number].event_count() for number in {job.number for job in jobs})
        wanted = min(len(os.sched_getaffinity(0)), max(1, events // EVENTS_PER_PROCESS))
    return min(wanted, len(jobs))


def _in_processes(work: Work, jobs: list[Job], processes: int, total: int, advance: Callable[[int], None]) -> None:
    """Makes pieces in processes of one thread each; the first error ends it when the pieces under way are finished."""
    longest_first = sorted(jobs, key=lambda job: job.part == WHOLE, reverse=True)
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), _start_process, (work,)) as pool:
        with _single_threaded():
            waiting = {pool.submit(_make, job) for job in longest_first}
        for future in waiting:
            future.add_done_callback(lambda done: advance(0 if _failed(done) else done.result()))
        finished, _ = wait(waiting, return_when=FIRST_EXCEPTION)
        failed = next((future for future in finished if _failed(future)), None)
        if failed is None:
            return
        pool.shutdown(wait=True, cancel_futures=True)
    error = failed.exception()
    if isinstance(error, BrokenProcessPool):
        done = total - sum(work.open(job) is None for job in jobs)
        raise TrainingError(
            f"a process that prepared samples was ended by the system, most likely for want of memory; {done} of "
            f"{total} pieces are finished and kept: set data.workers below {processes} and run the same command again"
        ) from error
    assert error is not None
    raise error


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


_work: list[Work] = []  # one per process of the pool


def _start_process(work: Work) -> None:
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    logging.getLogger("vmloc_ros").setLevel(logging.ERROR)  # what is left out is reported once, by who started this
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    _work.append(work)


def _leave_with_parent() -> None:
    """Nobody waits for the pieces of a command that was killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _make(job: Job) -> int:
    return _work[0].make(job)


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    )
