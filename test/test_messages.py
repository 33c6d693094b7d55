"""Messages by attribute: plain namespaces stand for rclpy's and the bag library's."""

from __future__ import annotations

import array
import math
from types import SimpleNamespace as Message
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from vmloc_ros import messages
from vmloc_ros.errors import MessageError
from vmloc_ros.geometry import adjoint, exp_se3, log_so3, make_pose
from vmloc_ros.types import EncodedImage, EventKind, RawImage

NAN = math.nan


def header(stamp_ns: int = 1_500_000_000_250_000_001, frame_id: str = "camera_optical") -> Message:
    sec, nanosec = messages.split_stamp(stamp_ns)
    return Message(stamp=Message(sec=sec, nanosec=nanosec), frame_id=frame_id)


def image(**changes: Any) -> Message:
    msg = Message(header=header(), height=2, width=3, encoding="rgb8", step=9, is_bigendian=0, data=bytes(range(18)))
    vars(msg).update(changes)
    return msg


def cloud(**changes: Any) -> Message:
    fields = [Message(name=name, offset=4 * i, datatype=7, count=1) for i, name in enumerate("xyz")]
    msg = Message(
        header=header(frame_id="/lidar"), height=2, width=2, fields=fields, is_bigendian=False, point_step=12,
        row_step=32, data=bytes(64), is_dense=False,
    )  # fmt: skip
    vars(msg).update(changes)
    return msg


def scan(**changes: Any) -> Message:
    msg = Message(
        header=header(), angle_min=-1.0, angle_max=1.0, angle_increment=0.5, time_increment=1e-4, scan_time=0.02,
        range_min=0.1, range_max=30.0, ranges=array.array("f", [1.0, NAN, math.inf, 2.5, 3.0]), intensities=[],
    )  # fmt: skip
    vars(msg).update(changes)
    return msg


def pose(position: tuple[float, ...] = (1.0, 2.0, 3.0), quat: tuple[float, ...] = (0.0, 0.0, 0.6, 0.8)) -> Message:
    return Message(
        position=Message(**dict(zip("xyz", position, strict=True))),
        orientation=Message(**dict(zip("xyzw", quat, strict=True))),
    )


def odometry(covariance: Any = None, speed: float = 4.0, **changes: Any) -> Message:
    twist = Message(linear=Message(x=speed, y=0.0, z=0.0), angular=Message(x=0.0, y=0.0, z=0.5))
    numbers = np.diag([0.1, 0.1, 0.1, 0.01, 0.01, 0.01]).ravel() if covariance is None else covariance
    msg = Message(
        header=header(frame_id="odom"), child_frame_id="/base_link",
        pose=Message(pose=pose(), covariance=np.zeros(36)), twist=Message(twist=twist, covariance=numbers),
    )  # fmt: skip
    vars(msg).update(changes)
    return msg


def camera_info(**changes: Any) -> Message:
    msg = Message(
        header=header(), height=480, width=640, distortion_model="plumb_bob", d=[0.1, 0.0, 0.0, 0.0, 0.0],
        k=[500.0, 0.0, 320.0, 0.0, 500.0, 240.0, 0.0, 0.0, 1.0], r=np.eye(3).ravel(), p=np.eye(3, 4).ravel(),
        binning_x=2, binning_y=0, roi=Message(x_offset=8, y_offset=4, height=100, width=200, do_rectify=True),
    )  # fmt: skip
    vars(msg).update(changes)
    return msg


@given(st.integers(-(2**31) * 10**9, 2**31 * 10**9 - 1))
@settings(deadline=None)
def test_stamps_round_trip_and_nanoseconds_are_never_negative(nanoseconds: int) -> None:
    sec, nanosec = messages.split_stamp(nanoseconds)
    assert 0 <= nanosec < 10**9
    assert messages.stamp_ns(Message(sec=sec, nanosec=nanosec)) == nanoseconds


@pytest.mark.parametrize(
    "data",
    [
        bytes(range(18)), bytearray(range(18)), memoryview(bytes(range(18))), array.array("B", range(18)),
        np.arange(18, dtype=np.uint8), np.arange(18, dtype=np.uint8).reshape(2, 9), list(range(18)),
    ],
)  # fmt: skip
def test_image_takes_any_buffer(data: Any) -> None:
    payload = messages.image_payload(image(data=data))
    assert (payload.height, payload.width, payload.step, payload.encoding) == (2, 3, 9, "rgb8")
    assert payload.data.tolist() == list(range(18))
    assert payload.stamp_ns == 1_500_000_000_250_000_001


def test_image_is_not_copied() -> None:
    buffer = array.array("B", range(18))
    payload = messages.image_payload(image(data=buffer))
    buffer[5] = 200
    assert payload.data[5] == 200


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"data": b""}, "empty"),
        ({"height": 0}, "empty"),
        ({"width": 0}, "empty"),
        ({"data": bytes(17)}, "sizes"),
        ({"height": 2**31, "step": 2**31}, "sizes"),
        ({"step": 2}, "sizes"),
    ],
)
def test_unusable_images_say_why(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(MessageError) as caught:
        messages.image_payload(image(**changes))
    assert caught.value.reason == reason


def test_compressed_image_is_told_by_its_format() -> None:
    msg = Message(header=header(), format="jpeg", data=b"\xff\xd8")
    payload = messages.event_from_message(EventKind.IMAGE, msg).payload
    assert isinstance(payload, EncodedImage)
    assert payload.format == "jpeg"
    assert isinstance(messages.event_from_message(EventKind.DEPTH, image()).payload, RawImage)
    with pytest.raises(MessageError, match="empty"):
        messages.compressed_payload(Message(header=header(), format="jpeg", data=b""))


def test_camera_info_keeps_region_and_binning() -> None:
    info = messages.camera_info_payload(camera_info())
    assert info.roi == (8, 4, 200, 100)
    assert (info.binning_x, info.binning_y) == (2, 0)
    assert info.K_33[1, 2] == 240.0
    assert info.P_34.shape == (3, 4)
    assert info.D[0] == 0.1


@pytest.mark.parametrize("changes", [{"k": [1.0] * 8}, {"p": [NAN] * 12}, {"d": [math.inf]}])
def test_unusable_camera_info(changes: dict[str, Any]) -> None:
    with pytest.raises(MessageError):
        messages.camera_info_payload(camera_info(**changes))


def test_cloud_with_padded_rows_and_a_slash_in_its_frame() -> None:
    payload = messages.cloud_payload(cloud())
    assert payload.frame_id == "lidar"
    assert [item.name for item in payload.fields] == ["x", "y", "z"]
    assert payload.row_step == 32


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"data": bytes(63)}, "sizes"),
        ({"row_step": 23}, "sizes"),
        ({"point_step": 0}, "sizes"),
        ({"width": 0}, "empty"),
        ({"data": b""}, "empty"),
        ({"height": 2**31 - 1, "width": 2**31 - 1, "row_step": 2**31 * 12}, "sizes"),
        ({"point_step": 8, "row_step": 16}, "fields"),
        ({"fields": [Message(name="x", offset=0, datatype=9, count=1)]}, "fields"),
    ],
)
def test_unusable_clouds_say_why(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(MessageError) as caught:
        messages.cloud_payload(cloud(**changes))
    assert caught.value.reason == reason


def test_scan_may_hold_rays_without_return() -> None:
    payload = messages.scan_payload(scan())
    assert len(payload.ranges_m) == 5
    assert payload.ranges_m.dtype == np.float32
    assert payload.time_increment_s == 1e-4


@pytest.mark.parametrize(
    "changes",
    [{"ranges": []}, {"angle_min": NAN}, {"time_increment": math.inf}, {"range_max": NAN}, {"angle_increment": 0.0}],
)
def test_unusable_scans(changes: dict[str, Any]) -> None:
    with pytest.raises(MessageError):
        messages.scan_payload(scan(**changes))


def test_odometry() -> None:
    sample = messages.odometry_sample(odometry())
    assert (sample.frame_id, sample.child_frame_id) == ("odom", "base_link")
    assert sample.T_odom_base[:3, 3].tolist() == [1.0, 2.0, 3.0]
    assert log_so3(sample.T_odom_base[:3, :3])[2] == pytest.approx(2 * math.asin(0.6))
    assert sample.twist_6 is not None
    assert sample.twist_6.tolist() == [4.0, 0.0, 0.0, 0.0, 0.0, 0.5]
    assert sample.twist_cov_66 is not None
    assert sample.twist_cov_66[3, 3] == 0.01


def test_odometry_without_twist_or_covariance() -> None:
    assert messages.odometry_sample(odometry(covariance=np.zeros(36))).twist_cov_66 is None
    assert messages.odometry_sample(odometry(covariance=np.full(36, NAN))).twist_cov_66 is None
    marked = np.zeros(36)
    marked[0] = -1.0
    assert messages.odometry_sample(odometry(covariance=marked)).twist_6 is None
    silent = messages.odometry_sample(odometry(speed=NAN))
    assert silent.twist_6 is None
    assert silent.twist_cov_66 is None


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (pose(position=(NAN, 0.0, 0.0)), "not_finite"),
        (pose(position=(0.0, -math.inf, 0.0)), "not_finite"),
        (pose(position=(0.0, 0.0, 1e308)), "not_finite"),  # its products would not be
        (pose(quat=(0.0, 0.0, NAN, 1.0)), "not_finite"),
        (pose(quat=(0.0, 0.0, 0.0, 0.0)), "zero_quaternion"),
    ],
)
def test_odometry_without_a_pose_says_why(bad: Message, reason: str) -> None:
    with pytest.raises(MessageError) as caught:
        messages.odometry_sample(odometry(pose=Message(pose=bad, covariance=np.zeros(36))))
    assert caught.value.reason == reason


def test_a_quaternion_that_is_not_normalised_is_normalised() -> None:
    sample = messages.odometry_sample(odometry(pose=Message(pose=pose(quat=(0.0, 0.0, 6.0, 8.0)), covariance=[])))
    assert np.allclose(sample.T_odom_base[:3, :3] @ sample.T_odom_base[:3, :3].T, np.eye(3), atol=1e-15)


def test_a_message_of_another_type_is_refused() -> None:
    for kind in (EventKind.IMAGE, EventKind.CLOUD, EventKind.ODOMETRY, EventKind.SCAN, EventKind.INITIAL_POSE):
        with pytest.raises(MessageError) as caught:
            messages.event_from_message(kind, Message(header=header()))
        assert caught.value.reason == "wrong_type"
    with pytest.raises(MessageError):
        messages.event_from_message(EventKind.STATIC_TRANSFORM, Message(transforms=[]))


def transform(parent: str, child: str, quat: tuple[float, ...] = (0.0, 0.0, 0.0, 1.0)) -> Message:
    moved = pose(quat=quat)
    return Message(
        header=header(frame_id=parent),
        child_frame_id=child,
        transform=Message(translation=moved.position, rotation=moved.orientation),
    )


def test_static_transforms_and_one_broken_link() -> None:
    msg = Message(transforms=[transform("/base_link", "camera"), transform("base_link", "arm", (0.0,) * 4)])
    refused: list[MessageError] = []
    (good,) = messages.static_transforms(msg, refused.append)
    assert (good.parent, good.child) == ("base_link", "camera")
    assert good.T_parent_child[:3, 3].tolist() == [1.0, 2.0, 3.0]
    assert [error.reason for error in refused] == ["zero_quaternion"]
    assert "arm" in str(refused[0])
    with pytest.raises(MessageError):
        messages.static_transforms(msg)
    with pytest.raises(MessageError, match="different frames"):
        messages.static_transforms(Message(transforms=[transform("camera", "camera")]))


vectors = st.lists(st.floats(-3.0, 3.0), min_size=6, max_size=6)


@given(vectors, st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=60)
def test_covariance_to_the_wire_and_back(tangent: list[float], seed: int) -> None:
    T = exp_se3(tangent)
    root = np.random.default_rng(seed).normal(size=(6, 6))
    cov_66 = root @ root.T
    wire = messages.wire_covariance(T, cov_66)
    assert len(wire) == 36
    assert np.allclose(messages.covariance_from_wire(T, wire), cov_66, atol=1e-9)


def test_wire_covariance_is_that_of_fixed_axes() -> None:
    """Perturbs a pose in the body's axes and measures spread in the map's: a law, not the formula again."""
    rng = np.random.default_rng(5)
    T = make_pose(Rotation.from_rotvec([0.4, -0.3, 2.0]).as_matrix(), [30.0, -20.0, 5.0])
    root = np.diag([0.02, 0.001, 0.003, 0.002, 0.0005, 0.004])
    cov_66 = root @ root.T
    samples = []
    for draw in rng.normal(size=(4000, 6)) @ root:
        moved = T @ exp_se3(draw)
        samples.append(np.r_[moved[:3, 3] - T[:3, 3], log_so3(moved[:3, :3] @ T[:3, :3].T)])
    measured = np.cov(np.array(samples).T)
    wire = np.array(messages.wire_covariance(T, cov_66)).reshape(6, 6)
    deviation = np.sqrt(np.diag(wire))
    assert np.allclose(measured / np.outer(deviation, deviation), wire / np.outer(deviation, deviation), atol=0.08)
    assert not np.allclose(wire, adjoint(T) @ cov_66 @ adjoint(T).T, atol=1e-6)  # the lever arm has no place in it


@pytest.mark.parametrize("values", [[0.0] * 35, [NAN] * 36, [-1.0, *[0.0] * 35], [1.0, 0.5, *[0.0] * 34]])
def test_what_is_no_covariance(values: list[float]) -> None:
    with pytest.raises(MessageError):
        messages.covariance_from_wire(np.eye(4), values)


def test_initial_pose_of_rviz() -> None:
    numbers = np.zeros(36)
    numbers[[0, 7, 35]] = 0.25, 0.09, 0.068
    msg = Message(header=header(frame_id="map"), pose=Message(pose=pose(quat=(0.0, 0.0, 1.0, 1.0)), covariance=numbers))
    payload = messages.event_from_message(EventKind.INITIAL_POSE, msg).payload
    assert payload.frame_id == "map"
    assert payload.cov_66[0, 0] == pytest.approx(0.09)  # the robot looks along y: forward is the map's y
    assert payload.cov_66[1, 1] == pytest.approx(0.25)


def test_rclpy_and_bag_messages_are_read_alike() -> None:
    sensor_msgs = pytest.importorskip("sensor_msgs.msg", reason="needs the ROS 2 message packages")
    stores = pytest.importorskip("rosbags.typesys")
    types = stores.get_typestore(stores.Stores.ROS2_KILTED).types
    live = sensor_msgs.Image(height=2, width=3, encoding="mono8", step=3, data=array.array("B", range(6)))
    live.header.stamp.sec, live.header.stamp.nanosec, live.header.frame_id = 7, 8, "cam"
    stamp = types["builtin_interfaces/msg/Time"](sec=7, nanosec=8)
    stored = types["sensor_msgs/msg/Image"](
        header=types["std_msgs/msg/Header"](stamp=stamp, frame_id="cam"), height=2, width=3, encoding="mono8", step=3,
        is_bigendian=0, data=np.arange(6, dtype=np.uint8),
    )  # fmt: skip
    one, other = messages.image_payload(live), messages.image_payload(stored)
    assert one.data.tolist() == other.data.tolist()
    for name in ("stamp_ns", "frame_id", "height", "width", "step", "encoding", "is_bigendian"):
        assert getattr(one, name) == getattr(other, name)
