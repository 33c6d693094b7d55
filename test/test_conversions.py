"""The core's objects as ROS messages: conventions, the path's bytes, flows."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs a ROS 2 client library")
pytest.importorskip("vmloc_msgs", reason="needs the message package vmloc_msgs")

from geometry_msgs.msg import PoseStamped
from hypothesis import given, settings
from hypothesis import strategies as st
from nav_msgs.msg import Path as PathMessage
from rclpy.serialization import deserialize_message, serialize_message

from vmloc_ros.geometry import Array, exp_se3, inverse, pose_from_quaternion
from vmloc_ros.images import decode_depth
from vmloc_ros.messages import covariance_from_wire, image_payload, initial_pose
from vmloc_ros.ros.conversions import (
    depth_image,
    header,
    pose_message,
    pose_stamped,
    status_message,
    time_message,
    transform_message,
)
from vmloc_ros.ros.flow import Flow
from vmloc_ros.ros.path import PathBuffer
from vmloc_ros.types import (
    FrameKey,
    FusedState,
    Modality,
    Mode,
    PoseMeasurement,
    Status,
    Verdict,
)

SECOND = 1_000_000_000
numbers = st.floats(-3.0, 3.0, allow_nan=False)
tangents = st.lists(numbers, min_size=6, max_size=6)


def some_covariance(seed: int) -> Array:
    A = np.random.default_rng(seed).normal(size=(6, 6))
    return np.asarray(A @ A.T + 0.1 * np.eye(6))


@given(tangents, st.integers(0, 2**61))
def test_poses_and_stamps_survive_the_way_through_a_message(tangent: list[float], stamp: int) -> None:
    T, cov_66 = exp_se3(tangent), some_covariance(3)
    back = initial_pose(pose_stamped(stamp, "map", T, cov_66))
    assert back.stamp_ns == stamp
    np.testing.assert_allclose(back.T_map_base, T, atol=1e-9)
    np.testing.assert_allclose(back.cov_66, cov_66, atol=1e-9)


def test_the_wire_carries_the_covariance_in_the_maps_axes() -> None:
    quarter_turn = pose_from_quaternion([5.0, 0.0, 0.0], [0.0, 0.0, np.sqrt(0.5), np.sqrt(0.5)])
    cov_66 = np.diag([4.0, 1.0, 0.5, 0.1, 0.2, 0.3])  # uncertain along the body's x, which is the map's y
    wire = np.reshape(pose_stamped(0, "map", quarter_turn, cov_66).pose.covariance, (6, 6))
    np.testing.assert_allclose(wire.diagonal(), [1.0, 4.0, 0.5, 0.2, 0.1, 0.3], atol=1e-12)
    np.testing.assert_allclose(covariance_from_wire(quarter_turn, wire.ravel()), cov_66, atol=1e-12)


def test_a_depth_image_has_nan_where_nothing_returned() -> None:
    depth_m = np.array([[0.0, 1.5], [80.0, 0.0], [2.0, 3.0]], np.float32)
    message = depth_image(7 * SECOND + 5, "camera_optical", depth_m)
    assert (message.height, message.width, message.step, message.encoding) == (3, 2, 8, "32FC1")
    assert (message.header.stamp.sec, message.header.stamp.nanosec) == (7, 5)
    values = np.frombuffer(message.data, np.float32).reshape(3, 2)
    np.testing.assert_array_equal(np.isnan(values), depth_m == 0.0)
    np.testing.assert_array_equal(decode_depth(image_payload(message)), depth_m)


def status(**changes: object) -> Status:
    content: dict[str, object] = {
        "stamp_ns": 3 * SECOND + 1,
        "mode": Mode.RGB_ONLY,
        "verdict": Verdict.GATED,
        "reason": "too far",
        "key": FrameKey(3 * SECOND + 1, 3 * SECOND + 1, (2 * SECOND, 2 * SECOND + 5)),
        "state": FusedState(3 * SECOND + 1, exp_se3([1, 2, 3, 0.1, 0.2, 0.3]), some_covariance(1), np.eye(4)),
        "measurement": PoseMeasurement(3 * SECOND + 1, exp_se3([1, 2, 4, 0.1, 0.2, 0.3]), some_covariance(2)),
        "expert_weights": {"rgb": 0.7, "prior": 0.3},
        "health": 0.9,
        "nis": 12.5,
        "dof": 6,
        "latency_ms": 33.0,
        "absent": {Modality.DEPTH: "no points came in time"},
        "counters": {"frames.paired": 4, "verdict.gated": 1},
    }
    return Status(**{**content, **changes})  # type: ignore[arg-type]


def test_a_status_message_has_every_field() -> None:
    message = status_message(status(), "map")
    assert (message.mode, message.verdict, message.reason) == ("RGB_ONLY", "gated", "too far")
    assert message.header == header(3 * SECOND + 1, "map")
    assert (message.weight_rgb, message.weight_depth, message.weight_prior) == (0.7, 0.0, 0.3)
    assert (message.nis, message.dof, message.latency_ms, message.health) == (12.5, 6, 33.0, 0.9)
    assert (message.absent_rgb, message.absent_depth) == ("", "no points came in time")
    assert message.is_frame
    assert message.has_image
    assert message.image_stamp == time_message(3 * SECOND + 1)
    assert list(message.depth_stamps) == [time_message(2 * SECOND), time_message(2 * SECOND + 5)]
    assert dict(zip(message.counter_names, message.counter_values, strict=True)) == {
        "frames.paired": 4,
        "verdict.gated": 1,
    }
    assert message.has_pose
    assert message.has_measurement
    assert message.pose.pose == pose_message(exp_se3([1, 2, 3, 0.1, 0.2, 0.3]))
    back = covariance_from_wire(exp_se3([1, 2, 4, 0.1, 0.2, 0.3]), message.measurement.covariance)
    np.testing.assert_allclose(back, some_covariance(2), atol=1e-9)
    serialize_message(message)


def test_a_heartbeat_while_lost_claims_no_pose() -> None:
    message = status_message(
        status(mode=Mode.LOST, key=None, state=None, measurement=None, nis=None, dof=0, expert_weights={}), "map"
    )
    assert {message.has_pose, message.has_measurement, message.is_frame, message.has_image} == {False}
    assert message.dof == 0


# ------------------------------------------------------------------------------------------------------------ the path


@settings(max_examples=40)
@given(st.integers(1, 12), st.integers(0, 60), st.sampled_from(["m", "map", "robot1/map", "a_rather_long_name"]))
def test_the_paths_bytes_are_the_message_that_rclpy_would_have_sent(capacity: int, poses: int, frame: str) -> None:
    buffer = PathBuffer(capacity, frame)
    expected = PathMessage(header=header(9 * SECOND, frame))
    for k in range(poses):
        T = exp_se3([0.5 * k, 0.1, 0.0, 0.0, 0.0, 0.05 * k])
        buffer.add(k * SECOND + 7, T)
        expected.poses.append(PoseStamped(header=header(k * SECOND + 7, frame), pose=pose_message(T)))
    expected.poses = expected.poses[-capacity:]
    assert len(buffer) == len(expected.poses)
    assert len(buffer.serialized(9 * SECOND)) == len(serialize_message(expected))  # its padding holds what memory held
    assert deserialize_message(buffer.serialized(9 * SECOND), PathMessage) == expected


def test_a_robot_that_stands_still_does_not_fill_its_path() -> None:
    buffer = PathBuffer(10, "map")
    for k in range(50):
        buffer.add(k, exp_se3([1.0 + 0.001 * (k % 2), 0, 0, 0, 0, 0]))
    assert len(buffer) == 1
    buffer.changed = False
    buffer.add(60, exp_se3([1.0, 0, 0, 0, 0, 0.2]))
    assert len(buffer) == 2
    assert buffer.changed
    buffer.clear()
    assert len(buffer) == 0


# ------------------------------------------------------------------------------------------------------------------ TF


def test_a_transform_message_is_the_pose_it_was_made_of() -> None:
    T = inverse(exp_se3([1, 2, 3, 0.4, 0.5, 0.6]))
    message = transform_message(5, "a", "b", T)
    t, q = message.transform.translation, message.transform.rotation
    np.testing.assert_allclose(pose_from_quaternion([t.x, t.y, t.z], [q.x, q.y, q.z, q.w]), T, atol=1e-12)


# --------------------------------------------------------------------------------------------------------------- flows


def test_a_flow_tells_losses_from_a_slow_replay_and_from_an_outage() -> None:
    period = SECOND // 16
    whole, slow, lossy, gap = Flow(), Flow(), Flow(), Flow()
    rng = np.random.default_rng(0)
    for k in range(160):
        whole.note(k * period, k / 16)
        slow.note(k * period, k / 4 - 30.0)
        if rng.random() < 0.3:
            lossy.note(k * period, k / 16)
        if not 40 < k < 100:
            gap.note(k * period, k / 16)
    now_s = 159 / 16
    assert whole.report(now_s).delivered == pytest.approx(1.0, abs=0.02)
    assert whole.report(now_s).sent_hz == pytest.approx(16.0)
    assert whole.report(now_s).rate_hz == pytest.approx(16.0, rel=0.1)
    assert slow.report(now_s).delivered == pytest.approx(1.0, abs=0.02)
    assert slow.report(now_s).rate_hz == pytest.approx(4.0, rel=0.1)
    assert gap.report(now_s).delivered == pytest.approx(1.0, abs=0.02)
    assert lossy.report(now_s).delivered < 0.5
    assert lossy.report(now_s, companion=whole).delivered == pytest.approx(lossy.count / 160, abs=0.02)
    assert Flow().report(now_s).silent_s is None
    assert whole.report(now_s + 3.0).silent_s == pytest.approx(3.0)
