"""From recordings to prepared samples: in parallel processes, part by part, resumed where it stopped.

A recording is divided into parts of time. Each part is walked through with a lead and a trail, so that pairing and
windows of clouds are as in one walk, and becomes a piece (`sample_pieces`). When all are there they are joined.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from vmloc_ros.datasets.base import Recording
from vmloc_ros.datasets.skips import LeftOut, Skip, refuse_broken, too_broken
from vmloc_ros.division import divide
from vmloc_ros.errors import TrainingError
from vmloc_ros.piece_workers import LEFT_OUT, Job, Work, make_in_processes
from vmloc_ros.progress import progress_bar
from vmloc_ros.sample_pieces import Piece, join_pieces
from vmloc_ros.samples import CAMERA, SampleStore, open_store
from vmloc_ros.training_config import TrainingConfig
from vmloc_ros.types import EventKind

EVENTS_PER_PROCESS = 1000
"""Less work than this is not worth the start of a process."""
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
        if store is not None and (allow_missing or not too_broken(_read_left_out(folder))):
            console.print(f"using {len(store)} prepared samples in {folder}")
        else:  # also where too much was broken: it may have been restored meanwhile
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
    names = [recording.name for recording in recordings]
    needed_bytes = 2 * 5 * rows * columns * expected  # pieces, and all of them joined
    work = Work(names, config.localizer, (rows, columns), store_key(config, recordings), needed_bytes)
    missing = [job for job in jobs if work.open(job) is None]
    if len(missing) < len(jobs):
        console.print(f"{len(jobs) - len(missing)} of {len(jobs)} pieces are prepared already")
    with progress_bar(console) as bar:
        task = bar.add_task("preparing", total=None)

        def advance(frames: int) -> None:
            bar.advance(task, frames)

        processes = process_count(config, recordings, missing)
        if processes > 1:
            openers = [recording.again() for recording in recordings]
            make_in_processes(work, openers, missing, processes, len(jobs), advance)
        else:
            for job in missing:
                work.make(job, recordings[job.number], lambda: advance(1))
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
