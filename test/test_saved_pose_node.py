"""The saved pose through the node, over real DDS: killed and started again, another model, a disk that fails."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs a ROS 2 client library")
pytest.importorskip("vmloc_msgs", reason="needs the message package vmloc_msgs")

from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseWithCovarianceStamped
from ros_graph import Graph, NodeProcess, running_node, wait_until
from saved_poses import content
from std_srvs.srv import Trigger
from tf2_msgs.msg import TFMessage
from vmloc_msgs.msg import LocalizationStatus
from worlds import SECOND, START_NS, drifting_odometry, drive, true_pose

from vmloc_ros.messages import stamp_ns
from vmloc_ros.saved_pose import read_saved_pose, write_saved_pose
from vmloc_ros.types import Event, EventKind, InitialPose

KILLED_AT_S = 8.0


@contextlib.contextmanager
def fresh_graph() -> Iterator[Graph]:
    """One per life of the node: a participant that has never heard of the process that was killed."""
    graph = Graph()
    try:
        yield graph
    finally:
        graph.close()


def started(folder: Path, saved: Path, model: str) -> contextlib.AbstractContextManager[NodeProcess]:
    folder.mkdir()
    return running_node(folder, {"model": {"path": model}, "saved_pose": {"path": str(saved)}})


def newest_ns(saved: Path) -> int:
    content = read_saved_pose(saved)
    return 0 if content is None else content.stamp_ns


def line_of(arrays: list[DiagnosticArray], part: str) -> Any:
    """The newest diagnostics of a part, with its values as a dictionary."""
    found = [line for array in arrays for line in array.status if line.name == f"localizer: {part}"]
    return found[-1] if found else None


def values_of(arrays: list[DiagnosticArray], part: str) -> dict[str, str]:
    line = line_of(arrays, part)
    return {} if line is None else {value.key: value.value for value in line.values}


def counters(status: LocalizationStatus) -> dict[str, int]:
    return dict(zip(status.counter_names, status.counter_values, strict=True))


def after_the_kill(events: list[Event], pause_s: float) -> list[Event]:
    return [e for e in events if not 0 < e.stamp_ns < START_NS + round((KILLED_AT_S + pause_s) * SECOND)]


def test_killed_in_mid_drive_and_started_again_it_has_a_pose_within_2_s_of_data(tmp_path: Path) -> None:
    """The second life's network is silent, so that nothing but the saved pose can have given one."""
    saved, events = tmp_path / "state" / "pose.json", drive(13.0)
    with fresh_graph() as graph, started(tmp_path / "first", saved, "scripted") as node:
        graph.play([e for e in events if e.stamp_ns < START_NS + round(KILLED_AT_S * SECOND)])
        wait_until(lambda: newest_ns(saved) > START_NS + 5 * SECOND, "a saved pose of the drive")
        assert node.end(signal.SIGKILL) == -signal.SIGKILL
    with fresh_graph() as graph, started(tmp_path / "second", saved, "silent") as node:
        poses = graph.collect(PoseWithCovarianceStamped, "/localizer/pose")
        transforms = graph.collect(TFMessage, "/tf")
        statuses = graph.collect(LocalizationStatus, "/localizer/status")
        diagnostics = graph.collect(DiagnosticArray, "/diagnostics")
        node.wait_for("active;")
        rest = after_the_kill(events, pause_s=1.0)
        graph.play(rest)
        first_ns = min(e.stamp_ns for e in rest if e.kind is EventKind.ODOMETRY)
        wait_until(lambda: len(poses) > 60, "poses of the saved one")
        wait_until(lambda: values_of(diagnostics, "saved pose").get("used") == "1", "the use in the diagnostics")
        assert node.end() == 0, node.output()
    assert stamp_ns(poses[0].header.stamp) - first_ns <= 2 * SECOND
    assert transforms
    for pose in poses:
        seen, truth = pose.pose.pose.position, true_pose(stamp_ns(pose.header.stamp))[:3, 3]
        assert np.hypot(seen.x - truth[0], seen.y - truth[1]) < 2.5
    assert counters(statuses[-1])["saved_pose.used"] == 1
    assert {s.mode for s in statuses if stamp_ns(s.header.stamp) > first_ns + SECOND} == {"DEAD_RECKONING"}
    assert "the odometry ran on" in node.output()


def test_the_pose_of_another_model_is_refused_and_said(tmp_path: Path) -> None:
    saved, events = tmp_path / "pose.json", drive(3.0)
    before = START_NS - SECOND
    write_saved_pose(saved, content(true_pose(before), drifting_odometry([before])[0], before))
    with fresh_graph() as graph, started(tmp_path / "node", saved, "silent_other") as node:
        poses = graph.collect(PoseWithCovarianceStamped, "/localizer/pose")
        statuses = graph.collect(LocalizationStatus, "/localizer/status")
        diagnostics = graph.collect(DiagnosticArray, "/diagnostics")
        node.wait_for("was saved with another model")
        wait_until(lambda: "another model" in str(line_of(diagnostics, "saved pose")), "the refusal in the diagnostics")
        graph.play(events)
        wait_until(lambda: len([s for s in statuses if s.is_frame]) == 30, "the frames")
        wait_until(lambda: "no pose yet" in str(line_of(diagnostics, "filter")), "why there is no pose")
        line = line_of(diagnostics, "filter")
        assert node.end() == 0, node.output()
    assert not poses
    assert counters(statuses[-1])["saved_pose.refused"] == 1
    assert line.level[0] == 2
    assert "/initialpose" in line.message


def test_an_orderly_end_keeps_the_last_pose_and_a_reset_forgets_it(tmp_path: Path) -> None:
    saved, events = tmp_path / "pose.json", drive(5.0)
    last_ns = max(e.stamp_ns for e in events if e.kind is EventKind.ODOMETRY)
    with fresh_graph() as graph, started(tmp_path / "first", saved, "scripted") as node:
        poses = graph.collect(PoseWithCovarianceStamped, "/localizer/pose")
        graph.play(events)
        wait_until(lambda: bool(poses) and stamp_ns(poses[-1].header.stamp) == last_ns, "the last pose")
        assert node.end() == 0, node.output()
    assert newest_ns(saved) == last_ns
    with fresh_graph() as graph, started(tmp_path / "second", saved, "silent") as node:
        node.wait_for("active;")
        assert graph.call(Trigger, "/localizer/reset", Trigger.Request()).success
        wait_until(lambda: not saved.exists(), "the end of the file")
        assert node.end() == 0, node.output()


def test_a_disk_that_fails_is_a_warning_and_localization_goes_on(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("where a folder should be")
    with fresh_graph() as graph, started(tmp_path / "node", tmp_path / "file" / "pose.json", "scripted") as node:
        poses = graph.collect(PoseWithCovarianceStamped, "/localizer/pose")
        statuses = graph.collect(LocalizationStatus, "/localizer/status")
        diagnostics = graph.collect(DiagnosticArray, "/diagnostics")
        graph.play(drive(4.0))
        wait_until(lambda: len([s for s in statuses if s.is_frame]) == 40, "the frames")
        wait_until(lambda: "cannot be written" in str(line_of(diagnostics, "saved pose")), "the warning")
        assert "Traceback" not in node.output()
        assert node.end() == 0, node.output()
    assert len(poses) > 40
    assert counters(statuses[-1])["saved_pose.failed"] >= 1
    assert "set saved_pose.path elsewhere" in node.output()


def by_hand(stamp: int, offset_m: float) -> Event:
    """A pose on /initialpose, so far from the truth along the map's x."""
    T_map_base = true_pose(stamp)
    T_map_base[0, 3] += offset_m
    return Event(EventKind.INITIAL_POSE, stamp, InitialPose(stamp, "map", T_map_base, 0.01 * np.eye(6)))


def test_the_monitor_warns_of_a_pose_that_moves_otherwise_than_the_odometry(tmp_path: Path) -> None:
    parameters = {"model": {"path": "silent"}, "monitor": {"window_s": 60.0}}
    odometry = [e for e in drive(4.0) if e.kind is EventKind.ODOMETRY]
    with fresh_graph() as graph, running_node(tmp_path, parameters) as node:
        diagnostics = graph.collect(DiagnosticArray, "/diagnostics")
        poses = graph.collect(PoseWithCovarianceStamped, "/localizer/pose")
        graph.send([by_hand(odometry[0].stamp_ns, 0.0), odometry[0]])
        graph.play(odometry[1:30])
        wait_until(lambda: len(poses) > 25, "poses of the one set by hand")
        graph.send([by_hand(odometry[29].stamp_ns, 20.0)])
        graph.play(odometry[30:])
        wait_until(lambda: "otherwise than" in str(line_of(diagnostics, "monitor")), "the monitor's warning")
        line, values = line_of(diagnostics, "monitor"), values_of(diagnostics, "monitor")
        assert node.end() == 0, node.output()
    assert line.level[0] == 1
    assert float(values["difference_m"]) == pytest.approx(20.0, abs=1.0)
    assert values["exceeded"] == "1"
