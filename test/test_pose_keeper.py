"""The keeper of the saved pose, in the pipeline: a second run goes on where the first ended; disks may fail."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from saved_poses import content
from worlds import SECOND, START_NS, ScriptedLocalizer, drive, odometry, true_pose

from vmloc_ros import pose_keeper
from vmloc_ros.config import FilterConfig, LocalizerConfig, SavedPoseConfig
from vmloc_ros.geometry import Array, exp_se3, make_pose
from vmloc_ros.outputs import Note, Outputs
from vmloc_ros.pipeline import Pipeline
from vmloc_ros.saved_pose import SavedPose, read_saved_pose, write_saved_pose
from vmloc_ros.types import CameraPrior, Event, EventKind, Frame, FusedState, InitialPose, Mode, NoPose

PATIENCE_S = 30.0


class Silent(ScriptedLocalizer):
    """A network without an answer: only the saved pose can give one."""

    def localize(self, frame: Frame, prior: CameraPrior | None = None) -> NoPose:
        return NoPose(frame.stamp_ns, "silent")


def config_with(path: Path, **options: Any) -> LocalizerConfig:
    return LocalizerConfig(saved_pose=SavedPoseConfig(path=str(path), **options))


def run(pipeline: Pipeline, events: Iterable[Event], finish: bool = True) -> Outputs:
    total = Outputs()
    for event in events:
        total.extend(pipeline.add(event))
        total.extend(pipeline.drain())
    if finish:
        total.extend(pipeline.finish())
    return total


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.002)


def split(events: list[Event], at_s: float, gap_s: float = 0.0) -> tuple[list[Event], list[Event]]:
    """A drive before and after the node was off; mountings come again."""
    begin_ns = START_NS + round(at_s * SECOND)
    end_ns = begin_ns + round(gap_s * SECOND)
    return [e for e in events if e.stamp_ns < begin_ns], [e for e in events if not 0 < e.stamp_ns < end_ns]


def error_m(state: FusedState, T_map_base: Array | None = None) -> float:
    truth = true_pose(state.stamp_ns) if T_map_base is None else T_map_base
    return float(np.linalg.norm(state.T_map_base[:3, 3] - truth[:3, 3]))


def texts(outputs: Outputs) -> str:
    return "\n".join(note.text for note in outputs.notes)


@pytest.mark.parametrize("gap_s", [0.0, 3.0])
def test_a_second_run_goes_on_where_the_first_ended_though_its_network_is_silent(tmp_path: Path, gap_s: float) -> None:
    before, after = split(drive(14.0), 8.0, gap_s)
    config = config_with(tmp_path / "pose.json")
    first = Pipeline(config, ScriptedLocalizer())
    run(first, before)
    counts = first.counters()
    assert counts["saved_pose.written"] >= 1
    assert counts["saved_pose.used"] == counts["saved_pose.refused"] == counts["saved_pose.failed"] == 0
    second = Pipeline(config, Silent())
    outputs = run(second, after)
    assert second.counters()["saved_pose.used"] == 1
    first_odometry = next(e.stamp_ns for e in after if e.kind is EventKind.ODOMETRY)
    assert outputs.states[0].stamp_ns == first_odometry
    assert max(error_m(s) for s in outputs.states) < 1.5 + 0.1 * gap_s
    assert "the odometry ran on" in texts(outputs)
    assert {s.mode for s in outputs.statuses[3:]} == {Mode.DEAD_RECKONING}


def test_without_a_path_nothing_is_read_written_or_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pipeline = Pipeline(LocalizerConfig(), ScriptedLocalizer())
    run(pipeline, drive(3.0))
    assert not list(tmp_path.iterdir())
    assert not [name for name in pipeline.counters() if name.startswith("saved_pose")]
    assert not [t for t in threading.enumerate() if t.name == "saved pose"]


def test_it_is_written_as_often_as_asked_while_the_drive_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "pose.json"
    pipeline = Pipeline(config_with(path, every_s=0.5), ScriptedLocalizer())
    stamps = set()
    for event in drive(6.0):
        written = pipeline.counters()["saved_pose.written"]
        pipeline.add(event)
        pipeline.drain()
        due = pipeline._keeper._handed_ns
        if due is not None and due not in stamps:
            stamps.add(due)
            wait_until(lambda n=written: pipeline.counters()["saved_pose.written"] > n, "written")
            assert read_saved_pose(path).stamp_ns == due  # type: ignore[union-attr]
    assert 9 <= len(stamps) <= 12
    assert min(np.diff(sorted(stamps))) >= SECOND // 2
    pipeline.finish()
    last = read_saved_pose(path)
    assert last is not None
    assert last.stamp_ns == max(e.stamp_ns for e in drive(6.0) if e.kind is EventKind.ODOMETRY)


@pytest.mark.parametrize("garbage", [b"", b"{}", b"\x00" * 500, b'{"format_version": 1'])
def test_garbage_is_refused_and_the_drive_is_localized_all_the_same(tmp_path: Path, garbage: bytes) -> None:
    path = tmp_path / "pose.json"
    path.write_bytes(garbage)
    pipeline = Pipeline(config_with(path), ScriptedLocalizer())
    assert "saved_pose_refused" in pipeline.current_problems()
    outputs = run(pipeline, drive(5.0))
    assert pipeline.counters()["saved_pose.refused"] == 1
    assert "saved pose not used" in texts(outputs)
    assert outputs.statuses[-3].mode is Mode.RGB_DEPTH
    assert read_saved_pose(path) is not None


@pytest.mark.parametrize(
    ("shift_s", "changes", "word"),
    [
        (-3600.0, {}, "the data starts over"),
        (301.0, {}, "max_age_s"),
        (2.0, {"model_sha256": "a7" * 32}, "another model"),
        (2.0, {"map_frame": "site"}, "frames.map"),
    ],
)
def test_a_pose_that_does_not_fit_is_refused_by_name(
    tmp_path: Path, shift_s: float, changes: dict[str, str], word: str
) -> None:
    path = tmp_path / "pose.json"
    saved = content(true_pose(START_NS), np.eye(4), START_NS - round(shift_s * SECOND))
    write_saved_pose(path, saved.model_copy(update=changes))
    pipeline = Pipeline(config_with(path), Silent())
    outputs = run(pipeline, drive(2.0))
    counts = pipeline.counters()
    assert (counts["saved_pose.refused"], counts["saved_pose.used"]) == (1, 0)
    assert outputs.states == []
    assert word in texts(outputs)
    assert word in pipeline.current_problems()["saved_pose_refused"]


def test_a_bag_that_is_played_again_is_localized_by_the_network_alone(tmp_path: Path) -> None:
    config = config_with(tmp_path / "pose.json")
    run(Pipeline(config, ScriptedLocalizer()), drive(6.0))
    again = Pipeline(config, ScriptedLocalizer())
    outputs = run(again, drive(6.0))
    assert again.counters()["saved_pose.refused"] == 1
    assert "the data starts over" in texts(outputs)
    alone = run(Pipeline(LocalizerConfig(), ScriptedLocalizer()), drive(6.0))
    assert [s.stamp_ns for s in outputs.states] == [s.stamp_ns for s in alone.states]
    np.testing.assert_array_equal(outputs.states[-1].T_map_base, alone.states[-1].T_map_base)


@pytest.mark.parametrize("early", [True, False])
def test_a_pose_set_by_hand_wins_over_the_saved_one(tmp_path: Path, early: bool) -> None:
    path = tmp_path / "pose.json"
    write_saved_pose(path, content(exp_se3([70, 0, 0, 0, 0, 0]), exp_se3([50, 0, 0, 0, 0, 0]), START_NS - SECOND))
    by_hand = InitialPose(START_NS - SECOND // 10, "map", exp_se3([3, 4, 0, 0, 0, 1.0]), np.diag([0.1] * 6))
    pipeline = Pipeline(config_with(path), Silent())
    events = [
        Event(EventKind.INITIAL_POSE, by_hand.stamp_ns, by_hand),
        odometry(START_NS, exp_se3([51, 0, 0, 0, 0, 0])),
    ]
    outputs = run(pipeline, events if early else events[::-1], finish=False)
    outputs.extend(run(pipeline, [odometry(START_NS + SECOND // 20, exp_se3([51, 0, 0, 0, 0, 0]))]))
    assert pipeline.counters()["saved_pose.used"] == (0 if early else 1)
    assert ("not needed" in texts(outputs)) is early
    np.testing.assert_allclose(outputs.states[-1].T_map_base, by_hand.T_map_base, atol=1e-9)


def test_a_robot_that_was_moved_while_off_is_found_by_the_streak(tmp_path: Path) -> None:
    """The odometry ran on and says that it stood; in truth it was carried 200 m."""
    path = tmp_path / "pose.json"
    events = drive(10.0)
    first_odometry = next(e for e in events if e.kind is EventKind.ODOMETRY)
    T_odom = exp_se3([50, 0, 0, 0, 0, 0.5])
    events = [
        replace(e, payload=replace(e.payload, T_odom_base=T_odom @ e.payload.T_odom_base))
        if e.kind is EventKind.ODOMETRY
        else e
        for e in events
    ]
    wrong = make_pose(np.eye(3), [200.0, 0.0, 0.0]) @ true_pose(START_NS)
    write_saved_pose(path, content(wrong, T_odom, first_odometry.stamp_ns - 5 * SECOND))
    pipeline = Pipeline(config_with(path), ScriptedLocalizer())
    outputs = run(pipeline, events)
    counts = pipeline.counters()
    assert counts["saved_pose.used"] == 1
    assert counts["relocalizations"] == 1
    assert error_m(outputs.states[0]) > 190.0
    found = next(s.stamp_ns for s in outputs.states if error_m(s) < 2.0)
    assert found - START_NS <= 5 * SECOND  # filter.relocalize_span_s, and the time of a few frames
    assert all(error_m(s) < 2.0 for s in outputs.states if s.stamp_ns >= found)


def test_an_odometry_that_was_restarted_as_well_leaves_a_wide_pose_that_the_network_corrects(tmp_path: Path) -> None:
    """The saved pose is 10 m off, and the odometry begins at its origin: nothing says how the robot moved."""
    path, events = tmp_path / "pose.json", drive(5.0)
    off = make_pose(np.eye(3), [6.0, 8.0, 0.0]) @ true_pose(START_NS)
    write_saved_pose(path, content(off, exp_se3([50, 0, 0, 0, 0, 0.5]), START_NS - 10 * SECOND))
    pipeline = Pipeline(config_with(path), ScriptedLocalizer())
    outputs = run(pipeline, events)
    assert "not evident" in texts(outputs)
    assert outputs.states[0].stamp_ns == START_NS
    assert error_m(outputs.states[0]) == pytest.approx(10.0)
    assert np.sqrt(outputs.states[0].cov_66.diagonal()[:3]).min() > 25.0
    assert pipeline.counters()["relocalizations"] == 0
    assert all(error_m(s) < 2.0 for s in outputs.states if s.stamp_ns > START_NS + SECOND)


def test_a_disk_that_fails_is_said_once_counted_always_and_holds_nothing_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = threading.Event()
    full.set()

    def write(path: Path, saved: SavedPose) -> None:
        if full.is_set():
            raise OSError(28, "No space left on device")
        write_saved_pose(path, saved)

    monkeypatch.setattr(pose_keeper, "write_saved_pose", write)
    pipeline = Pipeline(config_with(tmp_path / "pose.json", every_s=0.2), ScriptedLocalizer())
    outputs = Outputs()
    for event in drive(5.0):
        outputs.extend(pipeline.add(event))
        outputs.extend(pipeline.drain())
        wait_until(lambda: pipeline._keeper._task is None, "the disk's thread")
    wait_until(lambda: pipeline.counters()["saved_pose.failed"] > 10, "failures")
    assert "No space left on device" in pipeline.current_problems()["saved_pose_failed"]
    outputs.extend(pipeline.add(odometry(START_NS + 6 * SECOND, drive(6.0)[-1].payload.T_odom_base)))
    assert texts(outputs).count("No space left") == 1
    assert len(outputs.states) > 80
    full.clear()
    pipeline.add(odometry(START_NS + 7 * SECOND, np.eye(4)))
    pipeline.finish()
    assert pipeline.counters()["saved_pose.written"] >= 1
    assert "saved_pose_failed" not in pipeline.current_problems()


def test_a_folder_that_cannot_be_made_is_a_failure_by_name(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    pipeline = Pipeline(config_with(tmp_path / "file" / "pose.json"), ScriptedLocalizer())
    outputs = run(pipeline, drive(3.0))
    counts = pipeline.counters()
    assert counts["saved_pose.failed"] >= 1
    assert counts["saved_pose.written"] == 0
    assert "set saved_pose.path elsewhere" in texts(outputs)


def test_a_disk_that_hangs_holds_up_neither_odometry_nor_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = threading.Event()
    monkeypatch.setattr(pose_keeper, "write_saved_pose", lambda path, saved: release.wait(PATIENCE_S))
    monkeypatch.setattr(pose_keeper, "PATIENCE_S", 0.05)
    pipeline = Pipeline(config_with(tmp_path / "pose.json", every_s=0.1), ScriptedLocalizer())
    outputs = run(pipeline, drive(4.0))  # would not come back if anything waited
    assert len(outputs.states) > 60
    assert pipeline.counters()["saved_pose.failed"] == 1
    assert "does not answer" in texts(outputs)
    release.set()


def test_a_pose_that_the_file_cannot_hold_is_a_failure_and_the_next_is_written(tmp_path: Path) -> None:
    notes: list[Note] = []
    keeper = pose_keeper.PoseKeeper(config_with(tmp_path / "pose.json"), "5c" * 32, notes.append)
    bad = FusedState(START_NS, np.full((4, 4), np.nan), np.eye(6), np.eye(4))
    keeper.offer(bad, np.eye(4))
    wait_until(lambda: keeper.counters()["saved_pose.failed"] == 1, "the failure")
    keeper.offer(replace(bad, stamp_ns=2**63), np.eye(4))
    keeper.offer(replace(bad, stamp_ns=2**63, T_map_base=np.eye(4)), np.eye(4))
    keeper.offer(FusedState(START_NS + SECOND, np.eye(4), np.eye(6), np.eye(4)), np.eye(4))
    keeper.finish()
    assert keeper.counters()["saved_pose.written"] == 1
    assert [note.warning for note in notes] == [True]


def test_a_pose_given_up_by_hand_does_not_come_back(tmp_path: Path) -> None:
    path = tmp_path / "pose.json"
    pipeline = Pipeline(config_with(path), ScriptedLocalizer())
    run(pipeline, drive(4.0), finish=False)
    wait_until(path.exists, "the file")
    pipeline.reset("asked for")
    pipeline.finish()
    assert not path.exists()


def test_the_last_good_pose_stays_while_lost(tmp_path: Path) -> None:
    path = tmp_path / "pose.json"
    config = config_with(path, every_s=0.1).model_copy(update={"filter": FilterConfig(lost_after_s=2.0)})
    pipeline = Pipeline(config, ScriptedLocalizer())
    sensors = (EventKind.IMAGE, EventKind.CLOUD)
    outputs = run(pipeline, [e for e in drive(12.0) if e.kind not in sensors or e.stamp_ns < START_NS + 5 * SECOND])
    assert outputs.statuses[-1].mode is Mode.LOST
    kept = read_saved_pose(path)
    assert kept is not None
    assert kept.stamp_ns == outputs.states[-1].stamp_ns < START_NS + 7.1 * SECOND
