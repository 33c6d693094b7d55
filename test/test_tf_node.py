"""The node's /tf over DDS: corrections that do not jump under a controller; clocks slow, fast or standing."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs a ROS 2 client library")
pytest.importorskip("vmloc_msgs", reason="needs the message package vmloc_msgs")

from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseWithCovarianceStamped
from nav_msgs.msg import Path as PathMessage
from ros_graph import PATIENCE_S, Graph, running_node, wait_until
from rosgraph_msgs.msg import Clock
from tf2_msgs.msg import TFMessage
from vmloc_msgs.msg import LocalizationStatus
from worlds import SECOND, START_NS, drive, true_pose

from vmloc_ros.bag_writer import BagWriter
from vmloc_ros.geometry import Array, exp_se3, inverse, log_so3, pose_from_quaternion
from vmloc_ros.messages import stamp_ns
from vmloc_ros.ros import qos
from vmloc_ros.ros.conversions import pose_stamped, time_message
from vmloc_ros.ros.player import run_play
from vmloc_ros.types import Event, EventKind

LIMITS = {"max_correction_m_per_s": 0.5, "max_correction_rad_per_s": 0.1}
Poses = dict[int, Array]
"""Poses by stamp, in the order of their messages."""


@pytest.fixture
def graph() -> Iterator[Graph]:
    graph = Graph()
    yield graph
    graph.close()


@pytest.fixture(scope="module")
def bag(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight seconds of the test world; of every two seconds the camera and the lidar are silent for the last 1.3."""
    path = tmp_path_factory.mktemp("bags") / "drive"
    events = drive(8.0)
    with BagWriter(path) as writer:
        mountings = [event.payload for event in events if event.kind is EventKind.STATIC_TRANSFORM]
        writer.write_static_transforms(mountings, START_NS)
        for event in events:
            quiet = (event.stamp_ns - START_NS) / SECOND % 2.0 > 0.65 and event.kind is not EventKind.ODOMETRY
            if event.kind is not EventKind.STATIC_TRANSFORM and not quiet:
                writer.write(event)
    return path


def odometry(duration_s: float) -> list[Event]:
    return [event for event in drive(duration_s) if event.kind is EventKind.ODOMETRY]


def pose_of(pose: Any) -> Array:
    p, q = pose.position, pose.orientation
    return pose_from_quaternion([p.x, p.y, p.z], [q.x, q.y, q.z, q.w])


def transforms(messages: list[TFMessage], child: str) -> Poses:
    """Of one frame; a repeated stamp fails."""
    found: Poses = {}
    for transform in (t for message in messages for t in message.transforms if t.child_frame_id == child):
        stamp, t, q = stamp_ns(transform.header.stamp), transform.transform.translation, transform.transform.rotation
        assert stamp not in found, f"{child} twice at {stamp}"
        found[stamp] = pose_from_quaternion([t.x, t.y, t.z], [q.x, q.y, q.z, q.w])
    return found


def poses(messages: list[PoseWithCovarianceStamped]) -> Poses:
    return {stamp_ns(message.header.stamp): pose_of(message.pose.pose) for message in messages}


def corrections(robot: Poses, odom: Poses) -> Array:
    """(N, 3): by how many metres and radians the robot moved in the map beyond what its odometry did, and in how many
    seconds, from each of its poses to the next."""
    found = []
    for (before_ns, before), (now_ns, now) in pairwise(robot.items()):
        expected = before @ inverse(odom[before_ns]) @ odom[now_ns]
        turn = log_so3(expected[:3, :3].T @ now[:3, :3])
        metres = np.linalg.norm(now[:3, 3] - expected[:3, 3])
        found.append([metres, np.linalg.norm(turn), (now_ns - before_ns) / SECOND])
    return np.array(found)


def assert_within_limits(moved: Array) -> None:
    assert (moved[:, 0] <= LIMITS["max_correction_m_per_s"] * moved[:, 2] + 1e-6).all()
    assert (moved[:, 1] <= LIMITS["max_correction_rad_per_s"] * moved[:, 2] + 1e-6).all()


def arrived(stamp: int, *topics: list[Any]) -> bool:
    """Whether the poses or transforms of all topics have come to a stamp."""
    newest = [m.transforms[-1] if isinstance(m, TFMessage) else m for messages in topics for m in messages[-1:]]
    return len(newest) == len(topics) and all(stamp_ns(message.header.stamp) >= stamp for message in newest)


def values(arrays: list[DiagnosticArray], part: str) -> dict[str, str]:
    """Of the newest line of a part, with its message; empty before there is one."""
    found = [line for array in arrays[-1:] for line in array.status if line.name == f"localizer: {part}"]
    return {"message": found[0].message, **{v.key: v.value for v in found[0].values}} if found else {}


def sent_by_hand(graph: Graph, diagnostics: list[DiagnosticArray], number: int, stamp: int, T: Array) -> None:
    """Publishes on /initialpose and waits until the node has used the `number`-th such pose."""
    cov_66 = np.diag([0.04] * 3 + [0.01] * 3)
    graph.publisher(PoseWithCovarianceStamped, "/initialpose").publish(pose_stamped(stamp, "map", T, cov_66))
    used = str(number)
    wait_until(lambda: values(diagnostics, "filter").get("initialpose.used") == used, f"use of initial pose {number}")


def test_a_pose_that_jumps_by_3_m_glides_under_a_controller_and_one_of_30_m_is_shown_at_once(
    graph: Graph, tmp_path: Path
) -> None:
    tf = graph.collect(TFMessage, "/tf")
    estimates = graph.collect(PoseWithCovarianceStamped, "/localizer/pose")
    diagnostics = graph.collect(DiagnosticArray, "/diagnostics")
    samples = odometry(18.0)
    batches = samples[:40], samples[40:320], samples[320:]
    moves = np.eye(4), exp_se3([1.0, 2.8, 0.0, 0.0, 0.0, 0.15]), exp_se3([0.0, 30.0, 0.0, 0.0, 0.0, 0.0])
    with running_node(tmp_path, {"output": {"publish_odom_tf": True, **LIMITS}}) as node:
        for number, (batch, move) in enumerate(zip(batches, moves, strict=True)):
            T_map_base = pose_of(estimates[-1].pose.pose) if estimates else true_pose(START_NS)
            stamp = stamp_ns(estimates[-1].header.stamp) if estimates else START_NS
            sent_by_hand(graph, diagnostics, number + 1, stamp, T_map_base @ move)
            graph.play(batch, speed=6.0)
            wait_until(lambda batch=batch: arrived(batch[-1].stamp_ns, estimates, tf), f"poses of batch {number}")
        wait_until(lambda: values(diagnostics, "transforms")["corrections_at_once"] == "1", "the jump in diagnostics")
        assert node.end() == 0, node.output()
    odom, map_odom, filtered = transforms(tf, "base_link"), transforms(tf, "odom"), poses(estimates)
    for event in samples:
        np.testing.assert_allclose(odom.get(event.stamp_ns, event.payload.T_odom_base), event.payload.T_odom_base)
    assert list(map_odom) == list(filtered) == list(odom)
    shown = {stamp: T_map_odom @ odom[stamp] for stamp, T_map_odom in map_odom.items()}
    jumps, moved = corrections(filtered, odom), corrections(shown, odom)
    near, far = np.flatnonzero(jumps[:, 0] > 1.0).tolist()
    assert jumps[near, 0] == pytest.approx(np.hypot(1.0, 2.8), abs=0.1)
    assert_within_limits(np.delete(moved, far, axis=0))
    assert moved[far, 0] > 25.0
    stamps = list(shown)
    for index in (near, far, far + 1, -1):  # before the first jump, after 14 s of gliding, at once, and at the end
        np.testing.assert_allclose(shown[stamps[index]], filtered[stamps[index]], atol=1e-6)


def test_a_robot_that_was_lost_is_shown_where_it_is_found_at_once(graph: Graph, tmp_path: Path) -> None:
    """Lost because nothing was fused, with the odometry going on: the TF stops for a second, and 3 m do not glide."""
    tf = graph.collect(TFMessage, "/tf")
    estimates = graph.collect(PoseWithCovarianceStamped, "/localizer/pose")
    statuses = graph.collect(LocalizationStatus, "/localizer/status")
    diagnostics = graph.collect(DiagnosticArray, "/diagnostics")
    samples = odometry(4.0)
    with running_node(tmp_path, {"output": LIMITS, "filter": {"lost_after_s": 2.0}}) as node:
        sent_by_hand(graph, diagnostics, 1, START_NS, true_pose(START_NS))
        graph.play(samples[:60], speed=6.0)
        wait_until(lambda: values(diagnostics, "odometry").get("received") == "60", "the odometry's way to the node")
        assert statuses[-1].mode == "LOST"
        last_ns = stamp_ns(estimates[-1].header.stamp)
        moved = true_pose(samples[59].stamp_ns) @ exp_se3([0.0, 3.0, 0.0, 0.0, 0.0, 0.0])
        sent_by_hand(graph, diagnostics, 2, samples[59].stamp_ns, moved)
        graph.play(samples[60:], speed=6.0)
        wait_until(lambda: arrived(samples[-1].stamp_ns, estimates, tf), "poses after the loss")
        assert node.end() == 0, node.output()
    assert (last_ns - START_NS) / SECOND == pytest.approx(2.0, abs=0.2)
    sent = {event.stamp_ns: event.payload.T_odom_base for event in samples}
    for stamp, T_map_odom in transforms(tf, "odom").items():
        np.testing.assert_allclose(T_map_odom @ sent[stamp], poses(estimates)[stamp], atol=1e-6)


def test_what_the_network_corrects_moves_the_robot_no_faster_than_the_limits(graph: Graph, tmp_path: Path) -> None:
    """The scripted network errs by half a metre: with the noise of the odometry set high the filter follows it."""
    tf = graph.collect(TFMessage, "/tf")
    estimates = graph.collect(PoseWithCovarianceStamped, "/localizer/pose")
    restless = {"noise_m_per_m": 0.5, "measurement_inflation": 1.0, "measurement_correlation_s": 0.0}
    with running_node(tmp_path, {"output": {"publish_odom_tf": True, **LIMITS}, "filter": restless}) as node:
        wait_until(lambda: graph.node.count_publishers("/tf") == 1, "the node")
        graph.play(drive(6.0))
        wait_until(lambda: arrived(START_NS + round(5.95 * SECOND), estimates, tf), "poses up to the end")
        assert node.end() == 0, node.output()
    odom, map_odom = transforms(tf, "base_link"), transforms(tf, "odom")
    assert_within_limits(corrections({stamp: T @ odom[stamp] for stamp, T in map_odom.items()}, odom))
    free = corrections(poses(estimates), odom)
    assert (free[:, 0] > 2.0 * LIMITS["max_correction_m_per_s"] * free[:, 2]).sum() > 5, "nothing was limited"


@pytest.mark.parametrize(("rate", "duration_s"), [(0.2, 1.35), (5.0, 7.35)])
def test_it_localizes_by_a_clock_that_runs_slowly_or_fast(
    graph: Graph, tmp_path: Path, bag: Path, rate: float, duration_s: float
) -> None:
    tf = graph.collect(TFMessage, "/tf")
    estimates = graph.collect(PoseWithCovarianceStamped, "/localizer/pose")
    statuses = graph.collect(LocalizationStatus, "/localizer/status")
    paths = graph.collect(PathMessage, "/localizer/path", qos.latched())
    diagnostics = graph.collect(DiagnosticArray, "/diagnostics")
    with running_node(tmp_path, {"use_sim_time": True, "output": {"publish_odom_tf": True, **LIMITS}}) as node:
        wait_until(lambda: graph.node.count_publishers("/localizer/status") == 1, "the node")
        run_play(
            bag,
            rate=rate,
            clock=True,
            duration_s=duration_s,
            wait_for_subscribers_s=PATIENCE_S,
            wait_topics=["/image", "/camera_info", "/points", "/odom"],
        )
        end_ns = START_NS + round(duration_s * SECOND)
        wait_until(lambda: arrived(end_ns - SECOND // 20, estimates, tf), "the last pose")
        wait_until(lambda: bool(paths) and paths[-1].header.stamp == estimates[-1].header.stamp, "the path up to it")
        wait_until(lambda: stamp_ns(diagnostics[-1].header.stamp) > end_ns - SECOND // 4, "the clock in diagnostics")
        assert "withheld.future" not in values(diagnostics, "filter")
        assert node.end() == 0, node.output()
    assert stamp_ns(diagnostics[-1].header.stamp) <= end_ns
    sent = {event.stamp_ns for event in odometry(8.0)}
    odom, map_odom, filtered = transforms(tf, "base_link"), transforms(tf, "odom"), poses(estimates)
    assert set(odom) <= sent
    assert list(map_odom) == sorted(map_odom) == list(filtered)
    assert len(filtered) > 0.5 * len(odom)
    assert_within_limits(corrections({stamp: T @ odom[stamp] for stamp, T in map_odom.items()}, odom))
    errors_m = [np.linalg.norm(T[:3, 3] - true_pose(stamp)[:3, 3]) for stamp, T in filtered.items()]
    assert np.mean(errors_m[-10:]) < 1.5
    silences = [s for s in statuses if s.reason == "no frame"]
    assert silences, "a heartbeat while the camera and the lidar are silent"
    assert all(START_NS < stamp_ns(s.header.stamp) <= end_ns for s in silences)


def test_what_is_ahead_of_the_clock_is_withheld_from_tf_alone_and_diagnostics_say_why(
    graph: Graph, tmp_path: Path
) -> None:
    tf = graph.collect(TFMessage, "/tf")
    estimates = graph.collect(PoseWithCovarianceStamped, "/localizer/pose")
    diagnostics = graph.collect(DiagnosticArray, "/diagnostics")
    samples = odometry(4.0)

    def set_clock(seconds: float) -> None:
        time = START_NS + round(seconds * SECOND)
        graph.publisher(Clock, "/clock").publish(Clock(clock=time_message(time)))
        wait_until(lambda: bool(diagnostics) and stamp_ns(diagnostics[-1].header.stamp) == time, "the node's clock")

    with running_node(tmp_path, {"use_sim_time": True, "output": {"future_tolerance_s": 0.5}}) as node:
        sent_by_hand(graph, diagnostics, 1, START_NS, true_pose(START_NS))
        graph.play(samples[:20], speed=6.0)
        wait_until(lambda: arrived(samples[19].stamp_ns, estimates), "poses before the clock runs")
        set_clock(1.0)
        graph.play(samples[20:60], speed=6.0)
        wait_until(lambda: arrived(samples[59].stamp_ns, estimates), "poses, which nothing holds back")
        ahead = str(sum(stamp > START_NS + 1.5 * SECOND for stamp in poses(estimates)))
        wait_until(lambda: values(diagnostics, "filter").get("withheld.future") == ahead, "the count")
        assert "use_sim_time" in values(diagnostics, "transforms")["message"]
        set_clock(3.0)
        graph.play(samples[60:70], speed=6.0)
        wait_until(lambda: arrived(samples[69].stamp_ns, estimates, tf), "poses after the clock has come")
        assert node.end() == 0, node.output()
    seconds = [(stamp - START_NS) / SECOND for stamp in poses(estimates)]
    shown = [(stamp - START_NS) / SECOND for stamp in transforms(tf, "odom")]
    assert shown == [s for s in seconds if s <= 1.5 or s >= 3.0]
    assert int(ahead) > 20


def test_a_bag_that_loops_begins_on_tf_where_the_filter_begins(graph: Graph, tmp_path: Path, bag: Path) -> None:
    """And nothing of the first round follows the second one's beginning: a listener that has cleared its buffer would
    refuse all that comes after it."""
    tf = graph.collect(TFMessage, "/tf")
    estimates = graph.collect(PoseWithCovarianceStamped, "/localizer/pose")
    with running_node(tmp_path, {"use_sim_time": True, "output": LIMITS}) as node:
        wait_until(lambda: graph.node.count_publishers("/localizer/status") == 1, "the node")
        for _ in range(2):
            estimates.clear()
            run_play(
                bag,
                rate=4.0,
                clock=True,
                wait_for_subscribers_s=PATIENCE_S,
                wait_topics=["/image", "/camera_info", "/points", "/odom"],
            )
            wait_until(lambda: arrived(START_NS + round(7.95 * SECOND), estimates, tf), "poses up to the end")
        assert node.end() == 0, node.output()
    sent = {event.stamp_ns: event.payload.T_odom_base for event in odometry(8.0)}
    stamps = [stamp_ns(t.header.stamp) for message in tf for t in message.transforms]
    falls = [k for k, (before, after) in enumerate(pairwise(stamps), 1) if after < before]
    assert len(falls) == 1
    second, filtered = transforms(tf[falls[0] :], "odom"), poses(estimates)
    first_ns = next(iter(second))
    np.testing.assert_allclose(second[first_ns] @ sent[first_ns], filtered[first_ns], atol=1e-6)
