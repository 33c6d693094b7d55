"""Faults of time and of the network, through the node over DDS. `pytest -s` prints the rows of docs/faults.md."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs a ROS 2 client library")
pytest.importorskip("vmloc_msgs", reason="needs the message package vmloc_msgs")

from fault_bench import FaultBench, fault_bench
from faulty_world import Faults, at, seconds_of, without
from ros_graph import wait_until
from worlds import SECOND, drive

from vmloc_ros.messages import stamp_ns
from vmloc_ros.types import Event, EventKind, InitialPose

GOOD_M = 2.0
"""The network's deviation is 0.5 m per axis; below this the robot is where the node says it is."""


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultBench]:
    with fault_bench(tmp_path_factory.mktemp("node")) as bench:
        yield bench


def frames(bench: FaultBench) -> list[Any]:
    """The statuses of frames so far."""
    return [status for status in bench.statuses if status.is_frame]


def test_no_fault(bench: FaultBench) -> None:
    """What the others are compared with."""
    bench.begin()
    events = drive(8.0)
    bench.play(events)
    outcome = bench.end()
    outcome.check_outputs()
    outcome.check_counters()
    outcome.check_transforms(events)
    assert outcome.counted["odometry.used"] == outcome.sent[EventKind.ODOMETRY]
    assert outcome.counted["verdict.fused"] == outcome.sent[EventKind.IMAGE]
    outcome.tell("none", 0.0, GOOD_M, within_s=1.0)


def test_out_of_order(bench: FaultBench) -> None:
    """Odometry, images and clouds, each up to half a second late."""
    events = [e for e in drive(10.0) if e.kind is not EventKind.STATIC_TRANSFORM]
    rng = np.random.default_rng(3)
    arrival_s = {id(e): seconds_of(e) + rng.uniform(0.0, 0.5) for e in events}
    bench.begin()
    bench.play(sorted(events, key=lambda e: arrival_s[id(e)]))
    outcome = bench.end()
    outcome.check_outputs()
    outcome.check_counters()
    outcome.check_transforms(events)
    assert outcome.counted["odometry.used"] == outcome.sent[EventKind.ODOMETRY]
    assert outcome.total("verdict.") == outcome.counted["verdict.fused"]
    assert outcome.counted["resets"] == 0
    outcome.tell("out of order within 0.5 s", 0.0, GOOD_M, within_s=2.0)


def test_duplicate(bench: FaultBench) -> None:
    bench.begin()
    events = drive(8.0)
    bench.play([event for event in events for _ in range(2)])
    bench.say("odometry", "odometry.duplicate", "duplicate")
    outcome = bench.end()
    outcome.check_outputs()
    outcome.check_counters()
    outcome.check_transforms(events)
    assert outcome.counted["odometry.duplicate"] == outcome.counted["odometry.used"] == 160
    assert outcome.counted["verdict.fused"] == len(outcome.frames) == 80
    outcome.tell("every message twice", 0.0, GOOD_M, within_s=1.0)


def test_outliers(bench: FaultBench) -> None:
    """30 m off in 30 % of the answers."""
    faults = Faults(outlier_share=0.3, outliers_from_s=4.0)
    bench.begin(faults)
    bench.play(drive(12.0))
    bench.say("filter", "verdict.gated")
    outcome = bench.end()
    outcome.check_outputs()
    outcome.check_counters()
    wild = {stamp_ns(p.header.stamp) for p in outcome.network if outcome.off_m(p) > 20.0}
    assert len(wild) >= 15
    assert {stamp_ns(s.header.stamp) for s in outcome.frames if s.verdict == "gated"} == wild
    assert outcome.counted["relocalizations"] == 0
    assert outcome.worst_m(4.0) < GOOD_M
    outcome.tell("30 m outliers at 30 %", 4.0, GOOD_M, within_s=0.1)


def test_camera_and_lidar_silent_for_ten_seconds(bench: FaultBench) -> None:
    """Dead reckoning bridges it, and says so."""
    bench.begin()
    bench.play(without(drive(20.0), (EventKind.IMAGE, EventKind.CAMERA_INFO, EventKind.CLOUD), 5.0, 15.0))
    bench.warn("filter", "dead reckoning")
    outcome = bench.end()
    outcome.check_outputs()
    outcome.check_counters()
    modes = {s.mode for s in outcome.statuses if 6.5 < outcome.faults.seconds(stamp_ns(s.header.stamp)) < 15.0}
    assert modes == {"DEAD_RECKONING"}
    assert len(outcome.errors(5.0, 15.0)) == 200, "the TF goes on with the odometry"
    before, after = (outcome.covariance_near(second) for second in (4.9, 14.9))
    assert np.trace(after) > 2.0 * np.trace(before)
    outcome.tell("camera and lidar silent for 10 s", 15.0, GOOD_M, within_s=2.0)


def test_everything_silent_for_ten_seconds(bench: FaultBench) -> None:
    """LOST, with no TF; the next poses of the network end it."""
    bench.begin()
    events = drive(20.0)
    bench.play([e for e in events if seconds_of(e) < 5.0])
    wait_until(lambda: bench.statuses[-1].mode == "LOST", "being lost")
    bench.warn("filter", "lost: ")
    poses = len(bench.poses)
    bench.play([e for e in events if seconds_of(e) >= 15.0])
    outcome = bench.end()
    outcome.check_outputs()
    outcome.check_counters()
    assert not len(outcome.errors(5.0, 15.0))
    assert poses == len(outcome.errors(0.0, 5.0))
    outcome.tell("everything silent for 10 s", 15.0, GOOD_M, within_s=2.0)


def test_kidnapping(bench: FaultBench) -> None:
    """The robot is carried away by 50 m, and its odometry does not notice."""
    bench.begin(Faults(kidnapped_at_s=4.0))
    bench.play(drive(12.0))
    bench.say("filter", "relocalizations", "re-localiz")
    outcome = bench.end()
    outcome.check_outputs()
    outcome.check_counters()
    assert outcome.counted["relocalizations"] == 1
    assert outcome.counted["verdict.gated"] > 0
    assert any("re-localized" in s.reason for s in outcome.frames)
    outcome.tell("kidnapping by 50 m", 4.0, GOOD_M, within_s=5.0)


@pytest.mark.parametrize("length_s", [4, 7], ids=["short", "long"])
def test_bag_loop(bench: FaultBench, length_s: int) -> None:
    """The same bag from its begin again: everything of the first round is forgotten."""
    bench.begin()
    events = drive(length_s)
    bench.play(events)
    wait_until(lambda: len(frames(bench)) == 10 * length_s, "the first round's frames")
    bench.play(events)
    bench.say("filter", "resets")
    outcome = bench.end()
    outcome.check_outputs(falls=1)
    outcome.check_counters()
    assert outcome.counted["resets"] == 1
    assert "reset: the" in outcome.log
    assert "clock" in outcome.log
    outcome.forget_first_round()
    outcome.tell(f"bag of {length_s} s that loops", 0.0, GOOD_M, within_s=1.0)


@pytest.mark.parametrize("jump_s", [3600.0, -3600.0], ids=["forwards", "backwards"])
def test_clock_jump(bench: FaultBench, jump_s: float) -> None:
    """Every clock is set by an hour while the robot drives on."""
    bench.begin(Faults(clock_jump_s=jump_s))
    events = [e for e in drive(9.0) if e.kind is not EventKind.STATIC_TRANSFORM]
    bench.play([e for e in events if seconds_of(e) < 4.0])
    wait_until(lambda: len(frames(bench)) == 40, "the frames before")
    later = [at(e, e.stamp_ns + round(jump_s * SECOND)) for e in events if seconds_of(e) >= 4.0]
    bench.play(later)
    word = "future" if jump_s > 0 else "backwards"
    refused = "rejected.stamp_from_the_future" if jump_s > 0 else "rejected.stamp_backwards"
    bench.say("filter", refused, word)
    outcome = bench.end()
    outcome.check_outputs(falls=int(jump_s < 0))
    outcome.check_counters()
    assert outcome.counted[refused] == 2
    outcome.tell(f"clock set by {jump_s / 3600:+.0f} h", 4.0, GOOD_M, within_s=1.0)


def test_wrong_frame_ids(bench: FaultBench) -> None:
    """Two seconds in which every message names a frame that is not the robot's."""
    bench.begin()
    wrong = {
        EventKind.ODOMETRY: {"frame_id": "map"},
        EventKind.IMAGE: {"frame_id": "camera_of_another_robot"},
        EventKind.CLOUD: {"frame_id": "lidar_of_another_robot"},
    }
    events = []
    for event in drive(10.0):
        changed = wrong.get(event.kind) if 4.0 <= seconds_of(event) < 6.0 else None
        events.append(replace(event, payload=replace(event.payload, **changed)) if changed else event)
    bench.play(events)
    bench.say("odometry", "odometry.wrong_frame", "wrong_frame")
    bench.say("depth", "rejected.depth", "depth")
    outcome = bench.end()
    outcome.check_outputs()
    outcome.check_counters()
    assert outcome.counted["odometry.wrong_frame"] == 40
    assert outcome.counted["frames.no_pose"] == 20
    assert any("lidar_of_another_robot" in s.absent_depth for s in outcome.frames)
    refused = [s for s in outcome.frames if s.verdict == "no_pose"]
    assert all("camera_of_another_robot" in s.reason for s in refused)
    assert {outcome.faults.seconds(stamp_ns(s.header.stamp)) // 2 for s in refused} == {2.0}
    outcome.tell("wrong frame ids for 2 s", 6.0, GOOD_M, within_s=1.0)


@pytest.mark.parametrize("pose_frame", ["odom", ""])
def test_wrong_frame_of_the_initial_pose(bench: FaultBench, pose_frame: str) -> None:
    bench.begin()
    events = [e for e in drive(4.0) if e.kind is EventKind.ODOMETRY]
    wrong = InitialPose(events[20].stamp_ns, pose_frame, np.eye(4), np.eye(6))
    bench.play([*events[:20], Event(EventKind.INITIAL_POSE, events[20].stamp_ns, wrong), *events[20:40]])
    bench.say("filter", "rejected.initialpose_wrong_frame", "the map is 'map'")
    outcome = bench.end()
    assert not outcome.poses
    assert outcome.counted["rejected.initialpose_wrong_frame"] == 1
