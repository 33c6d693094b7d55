"""The node as a process, over real DDS: life cycle, inputs, outputs, bad input, clean ends."""

from __future__ import annotations

import itertools
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs a ROS 2 client library")
pytest.importorskip("vmloc_msgs", reason="needs the message package vmloc_msgs")

from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseWithCovarianceStamped
from nav_msgs.msg import Odometry
from nav_msgs.msg import Path as PathMessage
from rcl_interfaces.srv import GetParameters, SetParameters
from rclpy.parameter import Parameter
from ros_graph import Graph, running_node, wait_until
from sensor_msgs.msg import CompressedImage, Image
from std_srvs.srv import Trigger
from tf2_msgs.msg import TFMessage
from vmloc_msgs.msg import LocalizationStatus
from worlds import SECOND, START_NS, drive, image, mountings, true_pose

from vmloc_ros.geometry import Array, pose_from_quaternion
from vmloc_ros.messages import stamp_ns
from vmloc_ros.ros import qos
from vmloc_ros.types import EventKind


@pytest.fixture
def graph() -> Iterator[Graph]:
    graph = Graph()
    yield graph
    graph.close()


def pose_of(pose: Any) -> Array:
    p, q = pose.position, pose.orientation
    return pose_from_quaternion([p.x, p.y, p.z], [q.x, q.y, q.z, q.w])


def counters(status: LocalizationStatus) -> dict[str, int]:
    return dict(zip(status.counter_names, status.counter_values, strict=True))


def lines(arrays: list[DiagnosticArray], part: str) -> list[Any]:
    """All lines of a part."""
    return [line for array in arrays for line in array.status if line.name == f"localizer: {part}"]


def diagnostic(arrays: list[DiagnosticArray], part: str) -> Any:
    """The newest line of a part, None if there is none yet."""
    found = lines(arrays, part)
    return found[-1] if found else None


def level(line: Any) -> int:
    return -1 if line is None else int(line.level[0])


def test_the_life_cycle_is_managed_from_outside(graph: Graph, tmp_path: Path) -> None:
    with running_node(tmp_path, {"autostart": False}) as node:
        assert graph.state() == "unconfigured"
        assert graph.change_state("configure")
        assert graph.state() == "inactive"
        assert graph.node.count_subscribers("/image") == 0
        refused = graph.call(
            SetParameters,
            "/localizer/set_parameters",
            SetParameters.Request(parameters=[Parameter("filter.window_s", value=4.0).to_parameter_msg()]),
        ).results[0]
        assert not refused.successful
        assert "deactivate" in refused.reason
        assert graph.change_state("activate")
        assert graph.state() == "active"
        wait_until(lambda: graph.node.count_subscribers("/image") == 1, "the subscription to /image")
        assert graph.change_state("deactivate")
        wait_until(lambda: graph.node.count_subscribers("/image") == 0, "the end of the subscription")
        assert graph.change_state("activate")
        assert graph.change_state("deactivate")
        assert graph.change_state("cleanup")
        assert graph.state() == "unconfigured"
        accepted = graph.call(
            SetParameters,
            "/localizer/set_parameters",
            SetParameters.Request(parameters=[Parameter("filter.window_s", value=4.0).to_parameter_msg()]),
        ).results[0]
        assert accepted.successful, accepted.reason
        assert graph.change_state("configure")
        assert node.end(signal.SIGTERM) == 0, node.output()


def test_a_drive_over_dds_gives_tf_poses_path_and_status(graph: Graph, tmp_path: Path) -> None:
    tf = graph.collect(TFMessage, "/tf")
    poses = graph.collect(PoseWithCovarianceStamped, "/localizer/pose")
    network = graph.collect(PoseWithCovarianceStamped, "/localizer/network_pose")
    paths = graph.collect(PathMessage, "/localizer/path", qos.latched())
    depths = graph.collect(Image, "/localizer/projected_depth")
    statuses = graph.collect(LocalizationStatus, "/localizer/status")
    diagnostics = graph.collect(DiagnosticArray, "/diagnostics")
    with running_node(tmp_path, {"output": {"publish_odom_tf": True, "path_rate_hz": 5.0}}) as node:
        wait_until(lambda: graph.node.count_publishers("/localizer/status") == 1, "the node")
        graph.play(drive(8.0))
        wait_until(lambda: len([s for s in statuses if s.is_frame]) == 80, "80 frames")
        wait_until(lambda: level(diagnostic(diagnostics, "filter")) == 0, "good diagnostics of the filter")
        assert "yaw_bias_deg_per_m" in str(diagnostic(diagnostics, "odometry"))
        assert node.end() == 0, node.output()
    assert counters(statuses[-1])["frames.stale"] == 0
    assert {s.verdict for s in statuses[20:] if s.is_frame} == {"fused"}
    assert statuses[-1].mode == "RGB_DEPTH"
    assert len(network) == 80
    by_child: dict[str, list[Any]] = {"odom": [], "base_link": []}
    for message in tf:
        for transform in message.transforms:
            by_child[transform.child_frame_id].append(transform)
    for transforms in by_child.values():
        stamps = [stamp_ns(t.header.stamp) for t in transforms]
        assert stamps == sorted(set(stamps)), "TF repeats a stamp or goes backwards"
    assert len(by_child["base_link"]) == 160
    assert {t.header.frame_id for t in by_child["odom"]} == {"map"}
    assert len(poses) == len(by_child["odom"]) > 120
    late = poses[-40:]
    errors = [np.linalg.norm(pose_of(p.pose.pose)[:3, 3] - true_pose(stamp_ns(p.header.stamp))[:3, 3]) for p in late]
    assert float(np.mean(errors)) < 1.0
    odom = {stamp_ns(t.header.stamp): t.transform for t in by_child["base_link"]}
    for pose, transform in zip(late, by_child["odom"][-40:], strict=True):
        T_map_odom = transform_pose(transform.transform)
        T_odom_base = transform_pose(odom[stamp_ns(pose.header.stamp)])
        np.testing.assert_allclose(T_map_odom @ T_odom_base, pose_of(pose.pose.pose), atol=1e-6)
    covariance = np.reshape(late[-1].pose.covariance, (6, 6))
    assert (np.linalg.eigvalsh(covariance) > 0.0).all()
    assert len(paths[-1].poses) > 30
    assert paths[-1].header.frame_id == paths[-1].poses[-1].header.frame_id == "map"
    np.testing.assert_allclose(pose_of(paths[-1].poses[-1].pose)[:3, 3], pose_of(poses[-1].pose.pose)[:3, 3], atol=0.2)
    values = np.frombuffer(depths[-1].data, np.float32)
    assert (depths[-1].encoding, depths[-1].header.frame_id) == ("32FC1", "camera_optical")
    assert np.isnan(values).any()
    assert np.nanmin(values) > 0.0


def transform_pose(transform: Any) -> Array:
    t, q = transform.translation, transform.rotation
    return pose_from_quaternion([t.x, t.y, t.z], [q.x, q.y, q.z, q.w])


def test_map_to_base_can_be_broadcast_directly(graph: Graph, tmp_path: Path) -> None:
    tf = graph.collect(TFMessage, "/tf")
    with running_node(tmp_path, {"output": {"publish_tf": "map_base"}}) as node:
        graph.play(drive(2.0))
        wait_until(lambda: len(tf) > 20, "transforms")
        assert node.end() == 0
    transforms = [t for message in tf for t in message.transforms]
    assert {(t.header.frame_id, t.child_frame_id) for t in transforms} == {("map", "base_link")}
    last = transforms[-1]
    error_m = np.linalg.norm(transform_pose(last.transform)[:3, 3] - true_pose(stamp_ns(last.header.stamp))[:3, 3])
    assert error_m < 1.5


ENCODINGS = ("rgb8", "bgr8", "rgba8", "bgra8", "mono8", "bayer_rggb8", "bayer_bggr8", "bayer_gbrg8", "bayer_grbg8")


def test_every_image_encoding_reaches_the_network_and_others_are_counted_by_name(graph: Graph, tmp_path: Path) -> None:
    statuses = graph.collect(LocalizationStatus, "/localizer/status")
    diagnostics = graph.collect(DiagnosticArray, "/diagnostics")
    with running_node(tmp_path, {"input": {"depth_source": "none"}}) as node:
        publisher = graph.publisher(Image, "/image")
        for number, encoding in enumerate((*ENCODINGS, "yuv420_exotic")):
            publisher.publish(colour_image(encoding, START_NS + number * SECOND // 10))
            time.sleep(0.05)
        wait_until(lambda: len([s for s in statuses if s.is_frame]) == len(ENCODINGS) + 1, "a status per image")
        frames = [s for s in statuses if s.is_frame]
        assert [s.absent_rgb for s in frames[:-1]] == [""] * len(ENCODINGS)
        assert "yuv420_exotic" in frames[-1].absent_rgb
        wait_until(lambda: "yuv420_exotic" in str(diagnostic(diagnostics, "camera")), "the encoding in the diagnostics")
        assert {level(line) for line in lines(diagnostics, "camera") if "yuv420_exotic" in line.message} <= {1, 3}
        assert node.end() == 0


def colour_image(encoding: str, stamp: int) -> Image:
    channels = {"rgb8": 3, "bgr8": 3, "rgba8": 4, "bgra8": 4}.get(encoding, 1)
    data = np.random.default_rng(0).integers(0, 256, 48 * 64 * channels, np.uint8).tobytes()
    message = Image(height=48, width=64, encoding=encoding, step=64 * channels)
    message.data.frombytes(data)
    message.header.frame_id = "camera_optical"
    message.header.stamp.sec, message.header.stamp.nanosec = divmod(stamp, SECOND)
    return message


def test_compressed_images_come_through_their_own_topic(graph: Graph, tmp_path: Path) -> None:
    import cv2

    statuses = graph.collect(LocalizationStatus, "/localizer/status")
    parameters = {"input": {"depth_source": "none"}, "topics": {"image": "camera/image/compressed"}}
    with running_node(tmp_path, parameters, ["--ros-args", "-r", "__ns:=/robot1"]) as node:
        statuses = graph.collect(LocalizationStatus, "/robot1/localizer/status")
        publisher = graph.publisher(CompressedImage, "/robot1/camera/image/compressed")
        pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
        message = CompressedImage(format="png")
        message.data.frombytes(cv2.imencode(".png", pixels)[1].tobytes())
        message.header.stamp.sec = START_NS // SECOND
        time.sleep(1.0)  # the node has just begun to listen
        publisher.publish(message)
        wait_until(lambda: any(s.is_frame for s in statuses), "a frame")
        assert [s.absent_rgb for s in statuses if s.is_frame] == [""]
        assert node.end() == 0


def test_bad_messages_are_counted_and_named_and_the_node_goes_on(graph: Graph, tmp_path: Path) -> None:
    statuses = graph.collect(LocalizationStatus, "/localizer/status")
    diagnostics = graph.collect(DiagnosticArray, "/diagnostics")
    poses = graph.collect(PoseWithCovarianceStamped, "/localizer/pose")
    events = drive(6.0)
    with running_node(tmp_path) as node:
        graph.play(events[: len(events) // 2])
        for message in bad_odometry():
            graph.publisher(Odometry, "/odom").publish(message)
        for message in bad_images():
            graph.publisher(Image, "/image").publish(message)
        graph.send([image(0), image(START_NS + 3600 * SECOND), image(START_NS - 3600 * SECOND)])
        wait_until(lambda: "not_finite" in str(diagnostic(diagnostics, "odometry")), "the NaN in the diagnostics")
        graph.play([e for e in events[len(events) // 2 :] if e.kind is not EventKind.STATIC_TRANSFORM])
        wait_until(lambda: len([s for s in statuses if s.is_frame]) >= 55, "frames after the bad ones")
        assert node.end() == 0, node.output()
    counts = counters(statuses[-1])
    assert counts["rejected.odom_not_finite"] == 1
    assert counts["rejected.odom_zero_quaternion"] == 1
    assert counts["odometry.wrong_frame"] == 1
    assert counts["rejected.image_sizes"] == 1
    assert counts["rejected.image_empty"] == 1
    assert counts["rejected.stamp_zero"] == 1
    assert counts["rejected.stamp_from_the_future"] == 1
    assert counts["rejected.stamp_backwards"] == 1
    assert counts.get("resets", 0) == 0
    numbers = np.array([[*pose_of(p.pose.pose).ravel(), *p.pose.covariance] for p in poses])
    assert np.isfinite(numbers).all()
    assert "quaternion is zero" in node.output()


def bad_odometry() -> Iterator[Odometry]:
    for kind in ("nan", "zero", "frame"):
        message = Odometry(child_frame_id="base_link" if kind != "frame" else "somewhere")
        message.header.frame_id = "odom"
        message.header.stamp.sec = START_NS // SECOND + 3
        message.pose.pose.orientation.w = 0.0 if kind == "zero" else 1.0
        message.pose.pose.position.x = float("nan") if kind == "nan" else 0.0
        yield message


def bad_images() -> Iterator[Image]:
    truncated = colour_image("rgb8", START_NS + 3 * SECOND)
    truncated.data = truncated.data[:1000]
    yield truncated
    empty = colour_image("rgb8", START_NS + 3 * SECOND)
    empty.height = 0
    yield empty


def test_a_bag_that_loops_resets_and_tf_follows_the_new_time(graph: Graph, tmp_path: Path) -> None:
    tf = graph.collect(TFMessage, "/tf")
    statuses = graph.collect(LocalizationStatus, "/localizer/status")
    long_ago = drive(7.0)
    with running_node(tmp_path) as node:
        graph.play(long_ago, speed=5.0)
        wait_until(lambda: len([s for s in statuses if s.is_frame]) >= 69, "the first round")
        first_round = len(tf)
        graph.play([e for e in long_ago if e.kind is not EventKind.STATIC_TRANSFORM], speed=5.0)
        wait_until(lambda: len(tf) > first_round + 50, "transforms of the second round")
        assert node.end() == 0
    stamps = [stamp_ns(t.header.stamp) for message in tf for t in message.transforms]
    falls = sum(after < before for before, after in itertools.pairwise(stamps))
    assert falls == 1
    assert len(set(stamps[:first_round])) == first_round
    assert counters(statuses[-1])["resets"] == 1
    assert "went backwards" in node.output()


def test_reset_service_and_initial_pose(graph: Graph, tmp_path: Path) -> None:
    statuses = graph.collect(LocalizationStatus, "/localizer/status")
    poses = graph.collect(PoseWithCovarianceStamped, "/localizer/pose")
    diagnostics = graph.collect(DiagnosticArray, "/diagnostics")
    odometry_only = [e for e in drive(8.0) if e.kind is EventKind.ODOMETRY]
    with running_node(tmp_path) as node:
        initial = graph.publisher(PoseWithCovarianceStamped, "/initialpose")
        graph.send(mountings())
        graph.play(odometry_only[:40])
        wait_until(lambda: any(s.mode == "LOST" for s in statuses), "being lost")
        assert not poses
        initial.publish(initial_pose("odom", 2))
        wait_until(lambda: "odom" in str(diagnostic(diagnostics, "filter")), "the refusal in the diagnostics")
        assert not poses
        initial.publish(initial_pose("map", 2))
        time.sleep(0.3)
        graph.play(odometry_only[40:80])
        wait_until(lambda: len(poses) >= 38, "poses from the set one")
        last = poses[-1]
        np.testing.assert_allclose(
            pose_of(last.pose.pose)[:3, 3], true_pose(stamp_ns(last.header.stamp))[:3, 3], atol=1.0
        )
        answer = graph.call(Trigger, "/localizer/reset", Trigger.Request())
        assert answer.success, answer.message
        before = len(poses)
        graph.play(odometry_only[80:120])
        time.sleep(0.3)
        assert len(poses) == before, "poses although everything was forgotten"
        assert node.end() == 0


def initial_pose(frame: str, seconds: float) -> PoseWithCovarianceStamped:
    stamp = START_NS + round(seconds * SECOND)
    T = true_pose(stamp)
    message = PoseWithCovarianceStamped()
    message.header.frame_id = frame
    message.header.stamp.sec, message.header.stamp.nanosec = divmod(stamp, SECOND)
    message.pose.pose.position.x, message.pose.pose.position.y = float(T[0, 3]), float(T[1, 3])
    angle = float(np.arctan2(T[1, 0], T[0, 0]))
    message.pose.pose.orientation.z, message.pose.pose.orientation.w = np.sin(angle / 2), np.cos(angle / 2)
    covariance = np.zeros(36)
    covariance[[0, 7, 35]] = 0.25, 0.25, 0.07  # as RViz sends it: nothing for z, roll and pitch
    message.pose.covariance = covariance
    return message


def test_a_slow_network_drops_stale_frames_and_does_not_hold_up_tf(graph: Graph, tmp_path: Path) -> None:
    statuses = graph.collect(LocalizationStatus, "/localizer/status")
    poses = graph.collect(PoseWithCovarianceStamped, "/localizer/pose")
    diagnostics = graph.collect(DiagnosticArray, "/diagnostics")
    parameters = {"model": {"path": "slow", "max_pending_frames": 2}, "filter": {"initialize_after": 1}}
    with running_node(tmp_path, parameters) as node:
        graph.play(drive(4.0), speed=1.0)
        wait_until(lambda: len(poses) > 60, "poses at the odometry's rate")
        wait_until(lambda: "slower than the camera" in str(diagnostic(diagnostics, "network")), "the warning")
        assert node.end() == 0, node.output()
    assert counters(statuses[-1])["frames.stale"] > 10


def test_a_frame_that_fails_unexpectedly_is_shown_and_does_not_end_the_node(graph: Graph, tmp_path: Path) -> None:
    statuses = graph.collect(LocalizationStatus, "/localizer/status")
    diagnostics = graph.collect(DiagnosticArray, "/diagnostics")
    with running_node(tmp_path, {"model": {"path": "failing"}}) as node:
        graph.play(drive(3.0))
        wait_until(lambda: len([s for s in statuses if s.is_frame]) == 29, "all the other frames")
        wait_until(lambda: level(diagnostic(diagnostics, "network")) == 2, "an error in the diagnostics")
        assert "the sixth frame is unlucky" in node.output()
        assert node.end() == 0


def test_a_fallback_to_the_cpu_is_in_the_diagnostics(graph: Graph, tmp_path: Path) -> None:
    diagnostics = graph.collect(DiagnosticArray, "/diagnostics")
    with running_node(tmp_path, {"model": {"path": "scripted", "device": "cuda:0"}}) as node:
        wait_until(lambda: level(diagnostic(diagnostics, "network")) == 1, "a warning")
        line = diagnostic(diagnostics, "network")
        assert "running on the CPU" in line.message
        assert {value.key: value.value for value in line.values}["device"] == "cpu"
        for part in ("camera", "depth", "odometry"):
            assert level(diagnostic(diagnostics, part)) == 3
            assert "no publisher" in diagnostic(diagnostics, part).message
        assert node.end() == 0


@pytest.mark.parametrize(
    ("parameters", "complaint"),
    [
        ({"model": {"path": "missing"}}, "missing/model.safetensors: is missing"),
        ({"extrinsics": {"base_to_camera": []}}, "leave the line out"),
    ],
)
def test_what_cannot_start_says_why_in_one_line_and_exits_with_1(
    tmp_path: Path, parameters: dict[str, Any], complaint: str
) -> None:
    with running_node(tmp_path, parameters) as node:
        assert node.process.wait(timeout=60.0) == 1
        assert complaint in node.output()
        assert "Traceback" not in node.output()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_node_in_order_whatever_it_is_doing(graph: Graph, tmp_path: Path, number: int) -> None:
    statuses = graph.collect(LocalizationStatus, "/localizer/status")
    parameters = {"model": {"path": "slow", "max_pending_frames": 4}, "input": {"depth_source": "none"}}
    with running_node(tmp_path, parameters) as node:
        graph.send([*mountings(), *(image(START_NS + k * SECOND // 10) for k in range(4))])
        wait_until(lambda: any(s.is_frame for s in statuses), "the first frame")
        node.process.send_signal(number)
        time.sleep(0.05)
        assert node.end(number) == 0, node.output()  # twice: launch and the terminal both send it
        wait_until(lambda: len([s for s in statuses if s.is_frame]) == 4, "the frames that were waiting")
        assert "Traceback" not in node.output()


def test_parameters_have_descriptions_and_whole_numbers_do(graph: Graph, tmp_path: Path) -> None:
    parameters = {"filter": {"window_s": 4}, "extrinsics": {"base_to_camera": [0, 0, 0, 0, 0, 0, 1]}}
    with running_node(tmp_path, parameters) as node:
        node.wait_for("active")
        names = ["filter.window_s", "extrinsics.base_to_camera", "frames.map", "model.threads"]
        values = graph.call(GetParameters, "/localizer/get_parameters", GetParameters.Request(names=names)).values
        assert values[0].double_value == 4.0
        assert list(values[1].double_array_value) == [0.0] * 6 + [1.0]
        assert (values[2].string_value, values[3].integer_value) == ("map", 0)
        assert node.end() == 0
