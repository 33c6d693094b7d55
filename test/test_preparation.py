"""Prepared samples: the same in parts, in processes and after a kill as in one walk; what is broken is counted."""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pictures import tiny_config
from rich.console import Console

from vmloc_ros import division, piece_workers
from vmloc_ros.assembly import labelled_frames
from vmloc_ros.commands.town import run_town
from vmloc_ros.config import LocalizerConfig, TopicNames, parse
from vmloc_ros.datasets.base import Recording
from vmloc_ros.datasets.parts import WHOLE, Part
from vmloc_ros.datasets.robotcar import RobotCarRecording
from vmloc_ros.division import divide
from vmloc_ros.errors import DatasetError, SavedPoseError, TrainingError
from vmloc_ros.piece_workers import Job, Work
from vmloc_ros.preparation import prepare, process_count
from vmloc_ros.recordings import open_any
from vmloc_ros.samples import DEPTH, RGB, SampleStore, build_store
from vmloc_ros.training_config import TrainingConfig
from vmloc_ros.types import EventKind

QUIET = Console(quiet=True)
PROJECT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two drives of some seconds; their forward lidar and a scanner, at the usual rates."""
    folder = tmp_path_factory.mktemp("town") / "town"
    small = {"width": 48, "height": 36, "rings": 8, "columns": 40}
    run_town(folder, seed=3, traversals=2, laps=0.3, loop_m=250.0, progress=False, workers=1, **small)
    return folder


@pytest.fixture
def short_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of a second or so, so that a drive of ten seconds has several."""
    monkeypatch.setattr(division, "PART_NS", 1_200_000_000)
    monkeypatch.setattr(division, "PART_LEADS", 0)


def recipe(workers: int = 1, stride: int = 1, lidar: str = "velodyne_left", **localizer: Any) -> TrainingConfig:
    data = {"format": "town", "options": {"lidar": lidar}, "workers": workers, "frame_stride": stride}
    return tiny_config(data=data, localizer=localizer)


def opened(town: Path, config: TrainingConfig) -> list[Recording]:
    return open_any("town", town, TopicNames(), config.data.options)


def in_one_walk(folder: Path, town: Path, config: TrainingConfig) -> SampleStore:
    """The reference: every recording from its beginning to its end, one frame after the other."""
    frames = (
        (item.frame, item.T_map_camera, item.recording)
        for recording in opened(town, config)
        for index, item in enumerate(labelled_frames(recording, config.localizer))
        if index % config.data.frame_stride == 0
    )
    return build_store(folder, frames, *config.stored_size(), "reference")


def assert_same(one: SampleStore, other: SampleStore) -> None:
    assert one.recordings == other.recordings
    assert one.camera == other.camera
    for name in ("stamps_ns", "recording_of", "has_rgb", "has_depth", "T_map_camera", "rgb", "depth_m"):
        assert np.array_equal(getattr(one, name), getattr(other, name)), name


# --------------------------------------------------------------------------------------------------- parts of one walk


@pytest.mark.parametrize(
    ("lidar", "localizer", "stride"),
    [
        ("velodyne_left", {}, 1),
        ("velodyne_left", {"projection": {"window_s": 0.4}}, 3),
        ("lms_front", {"projection": {"accumulate": "around", "window_s": 0.5}}, 1),
    ],
)
def test_parts_give_the_samples_of_one_walk(
    town: Path, tmp_path: Path, short_parts: None, lidar: str, localizer: dict[str, Any], stride: int
) -> None:
    config = recipe(1, stride, lidar, **localizer)
    recordings = opened(town, config)
    parts = [divide(recording, config.localizer) for recording in recordings]
    assert min(len(one) for one in parts) >= 3
    store = prepare(config, recordings, tmp_path / "samples", QUIET)
    reference = in_one_walk(tmp_path / "reference", town, config)
    assert len(store) > 40
    assert store.has_depth.mean() > 0.9
    assert_same(store, reference)


def test_processes_give_the_samples_of_one_walk(town: Path, tmp_path: Path, short_parts: None) -> None:
    config = recipe(workers=2)
    store = prepare(config, opened(town, config), tmp_path / "samples", QUIET)
    assert_same(store, in_one_walk(tmp_path / "reference", town, config))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["reference", "samples"]  # no piece is left


def test_a_gap_of_the_camera_is_prepared_as_in_one_walk(town: Path, tmp_path: Path, short_parts: None) -> None:
    """Two seconds without images are frames of depth alone: nothing is cut there."""
    damaged = tmp_path / "town"
    shutil.copytree(town, damaged)
    shutil.rmtree(damaged / "traversal_01")
    images = sorted((damaged / "traversal_00" / "stereo" / "centre").iterdir())
    gone = images[20:40]
    for path in gone:
        path.unlink()
    (damaged / "traversal_00" / "stereo.timestamps").unlink()  # nobody promised those
    config = recipe()
    (recording,) = opened(damaged, config)
    for part in divide(recording, config.localizer)[1:]:
        assert not int(gone[0].stem) * 1000 - part.trail_ns < part.begin_ns < int(gone[-1].stem) * 1000 + part.lead_ns
    store = prepare(config, [recording], tmp_path / "samples", QUIET)
    assert (~store.has_rgb).sum() > 10
    assert_same(store, in_one_walk(tmp_path / "reference", damaged, config))


def test_parts_cover_the_time_once(town: Path, short_parts: None) -> None:
    config = LocalizerConfig()
    recording = RobotCarRecording(town / "traversal_00")
    parts = divide(recording, config)
    images = recording.timeline()[EventKind.IMAGE].tolist()
    for stamp_ns in images:
        assert sum(part.holds(stamp_ns) for part in parts) == 1
    assert [part.begin_ns for part in parts[1:]] == [part.end_ns for part in parts[:-1]]
    assert all(part.begin_ns in images for part in parts[1:])
    blind = parse(LocalizerConfig, {"input": {"use_image": False}}, "test")
    assert divide(recording, blind) == [WHOLE]


def test_a_part_reads_only_its_own_files(town: Path, tmp_path: Path) -> None:
    """Files outside a part may even be gone, and their faults are not the part's."""
    folder = tmp_path / "traversal"
    shutil.copytree(town / "traversal_00", folder)
    for kind in ("extrinsics", "models"):
        shutil.copytree(town / kind, folder / kind)
    images = sorted((folder / "stereo" / "centre").iterdir())
    recording = RobotCarRecording(folder, lidar="none")
    for path in (images[3], images[30]):
        path.write_bytes(b"")
    begin_ns, end_ns = int(images[25].stem) * 1000, int(images[35].stem) * 1000
    part = Part(begin_ns, end_ns, begin_ns - int(images[2].stem) * 1000, 0)
    stamps = [event.stamp_ns for event in recording.events(part) if event.kind is EventKind.IMAGE]
    assert stamps == [int(path.stem) * 1000 for path in images[2:35] if path not in (images[3], images[30])]
    (skip,) = recording.skips.walked().values()  # the other one lies in the lead: it is the part's before
    assert (skip.count, skip.broken) == (1, True)
    assert images[30].name in skip.names[0]


# ------------------------------------------------------------------------------------------------------- interruptions


def test_a_killed_preparation_goes_on_with_the_missing_pieces(town: Path, tmp_path: Path, short_parts: None) -> None:
    script = f"""
        import sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from pathlib import Path
        from test_preparation import QUIET, opened, recipe
        from vmloc_ros import division
        from vmloc_ros.preparation import prepare
        division.PART_NS, division.PART_LEADS = 1_200_000_000, 0
        config = recipe()
        prepare(config, opened(Path({str(town)!r}), config), Path({str(tmp_path / "samples")!r}), QUIET)
    """
    environment = os.environ | {"PYTHONPATH": str(PROJECT)}
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], env=environment) as process:
        until = time.monotonic() + 120.0
        while len(whole_pieces(tmp_path)) < 2 and process.poll() is None and time.monotonic() < until:
            time.sleep(0.005)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "samples").exists()
    before = {path.name: path.stat().st_mtime_ns for path in whole_pieces(tmp_path)}
    assert before
    config = recipe()
    recordings = opened(town, config)
    walked = []
    for recording in recordings:
        recording.events = counting(recording.events, walked)  # type: ignore[method-assign]
    store = prepare(config, recordings, tmp_path / "samples", QUIET)
    assert len(walked) == sum(len(divide(recording, config.localizer)) for recording in recordings) - len(before)
    assert_same(store, in_one_walk(tmp_path / "reference", town, config))


def counting(events: Any, walked: list[Part]) -> Any:
    """The same stream, with a note of every walk."""

    def noted(part: Part = WHOLE) -> Any:
        walked.append(part)
        return events(part)

    return noted


def whole_pieces(folder: Path) -> list[Path]:
    return [path.parent for path in folder.glob("samples.parts/*/*/camera.json") if path.parent.suffix != ".part"]


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """The system writes no file beyond this size: what a disk's quota does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_one_line_and_costs_nothing_finished(town: Path, tmp_path: Path, short_parts: None) -> None:
    config = recipe()
    recordings = opened(town, config)
    sizes = [5 * 27 * 36 * 15]  # a piece has ten frames and a bit, all samples more
    with (
        largest_file(3 * sizes[0]),
        pytest.raises(TrainingError, match=r"samples: the disk is full .*MB are free") as raised,
    ):
        prepare(config, recordings, tmp_path / "samples", QUIET)
    assert "\n" not in str(raised.value)
    pieces = sum(len(divide(recording, config.localizer)) for recording in recordings)
    assert len(whole_pieces(tmp_path)) == pieces
    assert not (tmp_path / "samples").exists()
    with largest_file(1000), pytest.raises(TrainingError, match=r"the disk is full .* that the samples need"):
        prepare(config, recordings, tmp_path / "other", QUIET)
    assert_same(
        prepare(config, recordings, tmp_path / "samples", QUIET), in_one_walk(tmp_path / "reference", town, config)
    )


def test_errors_in_a_process_keep_their_type_and_text(town: Path, tmp_path: Path, short_parts: None) -> None:
    """A recording without a mounting for its camera, found only when its first frame is built."""
    config = recipe(workers=2, frames={"base": "nowhere"})
    from vmloc_ros.errors import TransformError

    with pytest.raises(TransformError, match="nowhere -> camera_optical"):
        prepare(config, opened(town, config), tmp_path / "samples", QUIET)


def test_a_process_ended_by_the_system_is_one_line(town: Path, tmp_path: Path, short_parts: None) -> None:
    config = recipe(workers=2)
    script = f"""
        import os, signal, sys, threading, time
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from pathlib import Path
        from multiprocessing import active_children
        from test_preparation import QUIET, opened, recipe
        from vmloc_ros import division
        from vmloc_ros.errors import TrainingError
        from vmloc_ros.preparation import prepare

        def kill_one():
            while not active_children():
                time.sleep(0.01)
            os.kill(active_children()[0].pid, signal.SIGKILL)

        if __name__ == "__main__":
            division.PART_NS, division.PART_LEADS = 1_200_000_000, 0
            config = recipe(workers=2)
            threading.Thread(target=kill_one, daemon=True).start()
            try:
                prepare(config, opened(Path({str(town)!r}), config), Path({str(tmp_path / "samples")!r}), QUIET)
            except TrainingError as error:
                print(error)
    """
    path = tmp_path / "killed.py"
    path.write_text(textwrap.dedent(script))
    environment = os.environ | {"PYTHONPATH": str(PROJECT)}
    run = subprocess.run(
        [sys.executable, str(path)], env=environment, check=False, timeout=200, capture_output=True, text=True
    )
    assert "ended by the system" in run.stdout, run.stderr
    assert run.stdout.count("\n") == 1
    assert "set data.workers below 2" in run.stdout
    assert_same(
        prepare(config, opened(town, config), tmp_path / "samples", QUIET),
        in_one_walk(tmp_path / "reference", town, config),
    )


KILLED_PROCESS = """
import multiprocessing, os, signal
from pathlib import Path
from typing import Any, cast
from vmloc_ros import piece_workers
from vmloc_ros.datasets.parts import WHOLE
from vmloc_ros.errors import TrainingError


def die():
    os.kill(os.getpid(), signal.SIGKILL)


class Opener:
    def __init__(self, large):
        self.large = large

    def __call__(self):
        die()

    def __setstate__(self, state):
        if WHEN == "told":
            die()
        self.__dict__.update(state)


if __name__ == "__mp_main__" and WHEN == "start" and multiprocessing.current_process().name.endswith("-1"):
    die()
if __name__ == "__main__":
    work = piece_workers.Work(["a"], cast(Any, None), (3, 4), "key", 0)
    jobs = [piece_workers.Job(0, WHOLE, Path("nowhere") / str(index)) for index in range(5)]
    try:
        piece_workers.make_in_processes(work, [Opener(bytes(1_000_000))], jobs, 2, 7, print)
    except TrainingError as error:
        print(error)
    print(len(multiprocessing.active_children()), "left")
"""


@pytest.mark.parametrize("when", ["start", "told", "work"])
def test_a_process_may_be_killed_at_any_moment(tmp_path: Path, when: str) -> None:
    """Before it has read what it is to do (more than a pipe holds), while it reads that, and at work."""
    path = tmp_path / "killed.py"
    path.write_text(f"WHEN = {when!r}\n{KILLED_PROCESS}")
    environment = os.environ | {"PYTHONPATH": str(PROJECT)}
    run = subprocess.run(
        [sys.executable, str(path)], env=environment, check=False, timeout=200, capture_output=True, text=True
    )
    (line, left) = run.stdout.splitlines()
    assert "ended by the system" in line, run.stderr
    assert "2 of 7 pieces are finished" in line
    assert left == "0 left"
    assert run.stderr == ""


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (DatasetError("a.csv: is cut short"), DatasetError),
        (SavedPoseError("a.yaml: is of another model", "model"), RuntimeError),  # it can be sent, and not be received
    ],
)
def test_every_error_can_be_read_by_who_started_the_process(error: Exception, expected: type[Exception]) -> None:
    def failing() -> Recording:
        raise error

    worker = piece_workers._Worker(Work(["a"], LocalizerConfig(), (3, 4), "key", 0), [failing])
    ours, theirs = multiprocessing.Pipe()
    with ours, theirs:
        theirs.send(piece_workers._answer(worker, Job(0, WHOLE, Path("nowhere"))))
        answer = ours.recv()
    assert type(answer) is expected
    assert str(error) in str(answer)
    assert "in failing" in "\n".join([str(answer), *getattr(answer, "__notes__", [])])  # the place


def test_how_many_processes(town: Path) -> None:
    recordings = opened(town, recipe())
    jobs = [Job(0, WHOLE, Path("a")), Job(1, WHOLE, Path("b")), Job(1, WHOLE, Path("c"))]
    assert process_count(recipe(workers=2), recordings, jobs) == 2
    assert process_count(recipe(workers=8), recordings, jobs) == 3  # no more than there are pieces
    assert process_count(recipe(workers=0), recordings, jobs[:1]) == 1


# -------------------------------------------------------------------------------------------------------- broken files


@pytest.fixture
def damaged(town: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "town"
    shutil.copytree(town, folder)
    return folder


def break_images(town: Path, count: int) -> list[Path]:
    """Every third image of the first drive is cut short, so many of them."""
    images = sorted((town / "traversal_00" / "stereo" / "centre").iterdir())[3 : 3 + 3 * count : 3]
    for path in images:
        path.write_bytes(path.read_bytes()[:-20])
    return images


def test_a_few_broken_files_are_named_and_left_out(damaged: Path, tmp_path: Path, short_parts: None) -> None:
    (broken, other) = break_images(damaged, 2)
    config = recipe()
    recordings = opened(damaged, config)
    with (tmp_path / "said").open("w") as stream:
        store = prepare(config, recordings, tmp_path / "samples", Console(file=stream, width=1000))
    assert "traversal_00: skipped 2 (images unusable, first: " in (tmp_path / "said").read_text()
    assert broken.name in (tmp_path / "said").read_text()
    (count,) = recordings[0].skipped.values()
    assert count == 2  # each once, although parts overlap
    assert {int(path.stem) * 1000 for path in (broken, other)}.isdisjoint(store.stamps_ns[store.has_rgb].tolist())
    assert_same(store, in_one_walk(tmp_path / "reference", damaged, config))


@pytest.mark.parametrize("how", ["truncated", "missing"])
def test_too_many_broken_files_are_refused_unless_allowed(damaged: Path, tmp_path: Path, how: str) -> None:
    files = sum(recording.file_count() for recording in opened(damaged, recipe()))
    broken = break_images(damaged, files // 100 + 1)
    if how == "missing":
        for path in broken:
            path.unlink()
    config = recipe()
    message = rf"{len(broken)} of {files} files are missing or unusable .*{broken[0].name}.*--allow-missing"
    for _ in range(2):  # what was prepared does not change that
        with pytest.raises(DatasetError, match=message):
            prepare(config, opened(damaged, config), tmp_path / "samples", QUIET)
    assert (tmp_path / "samples").exists() == (how == "truncated")  # missing ones are found before the long work
    store = prepare(config, opened(damaged, config), tmp_path / "samples", QUIET, allow_missing=True)
    assert_same(store, in_one_walk(tmp_path / "reference", damaged, config))


def test_what_is_restored_is_prepared_again(damaged: Path, town: Path, tmp_path: Path) -> None:
    config = recipe()
    broken = break_images(damaged, 10)
    with pytest.raises(DatasetError, match="10 of"):
        prepare(config, opened(damaged, config), tmp_path / "samples", QUIET)
    for path in broken:
        shutil.copyfile(town / path.relative_to(damaged), path)
    store = prepare(config, opened(damaged, config), tmp_path / "samples", QUIET)
    assert_same(store, in_one_walk(tmp_path / "reference", town, config))


def test_outages_of_the_ins_are_no_broken_files(damaged: Path, tmp_path: Path, short_parts: None) -> None:
    """A third of the rows without a solution: those frames are left out and counted, and nothing is refused."""
    path = damaged / "traversal_00" / "gps" / "ins.csv"
    lines = path.read_text().splitlines(keepends=True)
    first, last = len(lines) // 3, 2 * len(lines) // 3
    lines[first:last] = [line.replace("INS_SOLUTION_GOOD", "INS_BAD_GPS_AGREEMENT") for line in lines[first:last]]
    path.write_text("".join(lines))
    config = recipe()
    recordings = opened(damaged, config)
    store = prepare(config, recordings, tmp_path / "samples", QUIET)
    skips = recordings[0].skips.everything()
    assert skips["INS rows that are not INS_SOLUTION_GOOD"].count == last - first
    images = len(recordings[0].timeline()[EventKind.IMAGE])
    kept = int((store.recording_of == 0).sum())
    assert skips["no truth"].count == images - kept > 10
    assert not any(skip.broken for skip in skips.values())
    assert_same(store, in_one_walk(tmp_path / "reference", damaged, config))


def test_a_piece_that_is_not_whole_is_made_again(town: Path, tmp_path: Path, short_parts: None) -> None:
    config = recipe()
    recordings = opened(town, config)
    with largest_file(3 * 5 * 27 * 36 * 15), pytest.raises(TrainingError):
        prepare(config, recordings, tmp_path / "samples", QUIET)
    pieces = whole_pieces(tmp_path)
    (pieces[0] / RGB).write_bytes((pieces[0] / RGB).read_bytes()[:-1])
    (pieces[1] / DEPTH).unlink()
    (pieces[2] / "camera.json").write_text(json.dumps({"key": "another"}))
    assert_same(
        prepare(config, recordings, tmp_path / "samples", QUIET), in_one_walk(tmp_path / "reference", town, config)
    )
