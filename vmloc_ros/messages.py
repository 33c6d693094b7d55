"""Messages of ROS 2 to the core's payloads and back, by attribute names alone.

Works on whatever has the attributes of `sensor_msgs`, `nav_msgs`, `geometry_msgs` and `tf2_msgs`: the messages of rclpy
and those that a bag library deserialises. Neither is imported. Sizes are checked here, once, before anything is
computed from them; buffers are taken over without a copy. Every refusal is a `MessageError` whose `reason` is a key for
counters: `empty`, `sizes`, `fields`, `frames`, `not_finite`, `zero_quaternion`, `covariance`, `wrong_type`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vmloc_ros.errors import MessageError
from vmloc_ros.geometry import Array, pose_from_quaternion
from vmloc_ros.types import (
    CameraInfo,
    EncodedImage,
    Event,
    EventKind,
    InitialPose,
    OdometrySample,
    PointField,
    RawCloud,
    RawImage,
    RawScan,
    StaticTransform,
)

NANOSECONDS = 1_000_000_000

POINT_FIELD_BYTES = {1: 1, 2: 1, 3: 2, 4: 2, 5: 4, 6: 4, 7: 4, 8: 8}
"""Bytes of sensor_msgs/PointField's data types: int8, uint8, int16, uint16, int32, uint32, float32, float64."""

FARTHEST_M = 1e8
"""A coordinate beyond this is the mark of an overflow: its products would not be finite."""


# -------------------------------------------------------------------------------------------------------- small things


def stamp_ns(stamp: Any) -> int:
    """Nanoseconds of a builtin_interfaces/Time."""
    return int(stamp.sec) * NANOSECONDS + int(stamp.nanosec)


def split_stamp(nanoseconds: int) -> tuple[int, int]:
    """(sec, nanosec) of builtin_interfaces/Time; nanosec is never negative."""
    return divmod(int(nanoseconds), NANOSECONDS)


def frame_name(frame_id: str) -> str:
    """A frame's name without the leading slash that ROS 1 recordings carry and tf2 refuses."""
    return str(frame_id).removeprefix("/")


def byte_buffer(data: Any) -> NDArray[np.uint8]:
    """The bytes of `bytes`, `array.array`, `memoryview` or an ndarray, as uint8 without a copy; lists are copied."""
    return _buffer(data, np.dtype(np.uint8))


def _buffer(data: Any, dtype: np.dtype[Any]) -> NDArray[Any]:
    if isinstance(data, np.ndarray):
        return data.reshape(-1) if data.dtype == dtype else data.reshape(-1).astype(dtype)
    try:
        view = memoryview(data)
    except TypeError:
        return np.asarray(list(data), dtype=dtype)
    if view.nbytes == 0:
        return np.empty(0, dtype=dtype)
    if view.itemsize != dtype.itemsize and view.format not in ("B", "b", "c"):
        return np.asarray(view).astype(dtype)
    return np.frombuffer(view, dtype=dtype)


def _numbers(values: Iterable[float], count: int, name: str) -> Array:
    """`count` finite numbers."""
    numbers = np.asarray(values if isinstance(values, np.ndarray) else list(values), dtype=np.float64).reshape(-1)
    if len(numbers) != count:
        raise MessageError(f"{name} has {len(numbers)} numbers, needs {count}", "sizes")
    if not np.isfinite(numbers).all():
        raise MessageError(f"{name} is not finite: {numbers.tolist()}", "not_finite")
    return numbers


def _pose(position: Any, orientation: Any, name: str) -> Array:
    """4x4 pose of a geometry_msgs position (or translation) and quaternion."""
    translation = (float(position.x), float(position.y), float(position.z))
    quat_xyzw = (float(orientation.x), float(orientation.y), float(orientation.z), float(orientation.w))
    norm = math.sqrt(sum(value * value for value in quat_xyzw))
    if not (math.isfinite(norm) and all(abs(value) <= FARTHEST_M for value in translation)):  # NaN is not
        raise MessageError(
            f"{name}: pose is not finite, or farther than {FARTHEST_M:g} m (position {translation}, "
            f"quaternion {quat_xyzw})",
            "not_finite",
        )
    if norm < 1e-6:
        raise MessageError(
            f"{name}: quaternion is zero, which is no rotation; the sender must fill orientation.w", "zero_quaternion"
        )
    return pose_from_quaternion(translation, quat_xyzw)


# ------------------------------------------------------------------------------------------------------------- images


def image_payload(msg: Any) -> RawImage:
    """sensor_msgs/Image. The encoding is judged by whoever decodes.

    Raises:
        MessageError: no pixels, or fewer bytes than `height * step`.
    """
    height, width, step = int(msg.height), int(msg.width), int(msg.step)
    data = byte_buffer(msg.data)
    if height <= 0 or width <= 0 or len(data) == 0:
        raise MessageError(f"image is empty ({width}x{height}, {len(data)} bytes)", "empty")
    if step < width:
        raise MessageError(f"image row of {width} pixels in a step of {step} bytes", "sizes")
    if len(data) < height * step:
        raise MessageError(
            f"image is truncated: {height} rows of {step} bytes need {height * step}, got {len(data)}", "sizes"
        )
    return RawImage(
        stamp_ns(msg.header.stamp),
        frame_name(msg.header.frame_id),
        height,
        width,
        str(msg.encoding),
        step,
        bool(msg.is_bigendian),
        data,
    )


def compressed_payload(msg: Any) -> EncodedImage:
    """sensor_msgs/CompressedImage.

    Raises:
        MessageError: no data.
    """
    data = byte_buffer(msg.data)
    if len(data) == 0:
        raise MessageError("compressed image is empty", "empty")
    return EncodedImage(stamp_ns(msg.header.stamp), frame_name(msg.header.frame_id), str(msg.format), data)


def camera_info_payload(msg: Any) -> CameraInfo:
    """sensor_msgs/CameraInfo; whether it is a usable camera is judged by `camera.Rectifier`.

    Raises:
        MessageError: K, R or P of the wrong length, or a number that is not finite.
    """
    distortion = np.asarray(list(msg.d), dtype=np.float64)
    if not np.isfinite(distortion).all():
        raise MessageError(f"camera_info: distortion is not finite: {distortion.tolist()}", "not_finite")
    roi = msg.roi
    return CameraInfo(
        stamp_ns=stamp_ns(msg.header.stamp),
        frame_id=frame_name(msg.header.frame_id),
        height=int(msg.height),
        width=int(msg.width),
        distortion_model=str(msg.distortion_model),
        D=tuple(distortion.tolist()),
        K_33=_numbers(msg.k, 9, "camera_info: K").reshape(3, 3),
        R_33=_numbers(msg.r, 9, "camera_info: R").reshape(3, 3),
        P_34=_numbers(msg.p, 12, "camera_info: P").reshape(3, 4),
        binning_x=int(msg.binning_x),
        binning_y=int(msg.binning_y),
        roi=(int(roi.x_offset), int(roi.y_offset), int(roi.width), int(roi.height)),
    )


# -------------------------------------------------------------------------------------------------------------- lidar


def cloud_payload(msg: Any) -> RawCloud:
    """sensor_msgs/PointCloud2.

    Raises:
        MessageError: no points, a field outside the point or of an unknown type, or sizes that disagree
            (`row_step < width * point_step`, fewer bytes than `height * row_step`).
    """
    height, width = int(msg.height), int(msg.width)
    point_step, row_step = int(msg.point_step), int(msg.row_step)
    data = byte_buffer(msg.data)
    if height * width <= 0 or len(data) == 0:
        raise MessageError(f"cloud is empty ({width}x{height} points, {len(data)} bytes)", "empty")
    if point_step <= 0 or row_step < width * point_step:
        raise MessageError(f"cloud row of {width} points of {point_step} bytes in a row_step of {row_step}", "sizes")
    if len(data) < height * row_step:
        raise MessageError(
            f"cloud is truncated: {height} rows of {row_step} bytes need {height * row_step}, got {len(data)}", "sizes"
        )
    fields = []
    for item in msg.fields:
        name, offset, datatype, count = str(item.name), int(item.offset), int(item.datatype), int(item.count)
        size = POINT_FIELD_BYTES.get(datatype)
        if size is None:
            raise MessageError(f"cloud field {name!r} has the unknown data type {datatype}", "fields")
        if offset < 0 or offset + size * max(count, 1) > point_step:
            raise MessageError(
                f"cloud field {name!r} ({size * max(count, 1)} bytes at {offset}) lies outside the point's "
                f"{point_step} bytes",
                "fields",
            )
        fields.append(PointField(name, offset, datatype, count))
    return RawCloud(
        stamp_ns(msg.header.stamp),
        frame_name(msg.header.frame_id),
        height,
        width,
        tuple(fields),
        bool(msg.is_bigendian),
        point_step,
        row_step,
        data,
    )


def scan_payload(msg: Any) -> RawScan:
    """sensor_msgs/LaserScan. Single ranges may be NaN or infinite; the angles may not.

    Raises:
        MessageError: no ranges, or angles, time increment or range limits that are not numbers.
    """
    ranges_m = _buffer(msg.ranges, np.dtype(np.float32))
    if len(ranges_m) == 0:
        raise MessageError("scan has no ranges", "empty")
    angles = (float(msg.angle_min), float(msg.angle_increment), float(msg.time_increment))
    limits = (float(msg.range_min), float(msg.range_max))
    if not all(map(math.isfinite, angles)) or any(map(math.isnan, limits)):
        raise MessageError(
            f"scan: angle_min, angle_increment, time_increment {angles} and range limits {limits} must be numbers",
            "not_finite",
        )
    if angles[1] == 0.0 and len(ranges_m) > 1:
        raise MessageError(f"scan: {len(ranges_m)} ranges with an angle_increment of 0", "sizes")
    return RawScan(stamp_ns(msg.header.stamp), frame_name(msg.header.frame_id), *angles, *limits, ranges_m)


# -------------------------------------------------------------------------------------------------------------- poses


def odometry_sample(msg: Any) -> OdometrySample:
    """nav_msgs/Odometry.

    A twist that is not finite is left out (`None`): senders mark with NaN what they do not measure; a covariance that
    starts with -1 says the same (the convention of sensor_msgs/Imu, and what our bags write). A twist covariance
    that is all zero, negative on its diagonal or not finite means "unknown" and is left out as well.

    Raises:
        MessageError: the pose is not finite (`not_finite`) or its quaternion is zero (`zero_quaternion`).
    """
    pose, twist = msg.pose.pose, msg.twist.twist
    T_odom_base = _pose(pose.position, pose.orientation, "odometry")
    linear, angular = twist.linear, twist.angular
    twist_6 = np.array([linear.x, linear.y, linear.z, angular.x, angular.y, angular.z], dtype=np.float64)
    covariance = np.array(msg.twist.covariance, dtype=np.float64)
    known = covariance.size == 36 and bool(np.isfinite(covariance).all()) and bool(covariance.any())
    twist_cov_66 = covariance.reshape(6, 6) if known else None
    if twist_cov_66 is not None and (twist_cov_66.diagonal() < 0.0).any():
        twist_cov_66 = None
    given = bool(np.isfinite(twist_6).all()) and not (covariance.size > 0 and covariance[0] == -1.0)
    return OdometrySample(
        stamp_ns(msg.header.stamp),
        frame_name(msg.header.frame_id),
        frame_name(msg.child_frame_id),
        T_odom_base,
        twist_6 if given else None,
        twist_cov_66 if given else None,
    )


def truth_sample(msg: Any) -> OdometrySample:
    """Where a body was in the map: nav_msgs/Odometry, or geometry_msgs/PoseStamped or PoseWithCovarianceStamped, which
    do not say whose pose it is (`child_frame_id` is empty).

    Raises:
        MessageError: as `odometry_sample`.
    """
    if hasattr(msg, "child_frame_id"):
        return odometry_sample(msg)
    pose = msg.pose.pose if hasattr(msg.pose, "pose") else msg.pose
    T_map_body = _pose(pose.position, pose.orientation, "ground truth")
    return OdometrySample(stamp_ns(msg.header.stamp), frame_name(msg.header.frame_id), "", T_map_body)


def initial_pose(msg: Any) -> InitialPose:
    """geometry_msgs/PoseWithCovarianceStamped; the covariance is turned to the inside convention.

    Raises:
        MessageError: a pose that is not finite or has a zero quaternion, or a covariance that is none.
    """
    pose = msg.pose.pose
    T_map_base = _pose(pose.position, pose.orientation, "initial pose")
    return InitialPose(
        stamp_ns(msg.header.stamp),
        frame_name(msg.header.frame_id),
        T_map_base,
        covariance_from_wire(T_map_base, msg.pose.covariance),
    )


def static_transforms(msg: Any, refuse: Callable[[MessageError], None] | None = None) -> list[StaticTransform]:
    """tf2_msgs/TFMessage.

    Args:
        refuse: is told of every transform that is unusable, and the others are returned. Without it the first raises:
            one broken link of a robot must not hide its camera's mounting from a caller who counts.

    Raises:
        MessageError: a transform that is not finite, has a zero quaternion, or names no frame.
    """
    found = []
    for item in msg.transforms:
        parent, child = frame_name(item.header.frame_id), frame_name(item.child_frame_id)
        try:
            if not parent or not child or parent == child:
                raise MessageError(f"transform from {parent!r} to {child!r} needs two different frames", "frames")
            T = _pose(item.transform.translation, item.transform.rotation, f"transform {parent} -> {child}")
        except MessageError as error:
            if refuse is None:
                raise
            refuse(error)
        else:
            found.append(StaticTransform(parent, child, T))
    return found


# --------------------------------------------------------------------------------------------------------- covariances


def wire_covariance(T: Array, cov_66: Array) -> list[float]:
    """36 numbers of geometry_msgs/PoseWithCovariance (REP-103: fixed axes of the header's frame, row-major).

    `cov_66` is of the right perturbation `T exp_se3(d)`, in the body's axes. To first order the position moves by
    `R d_t` and the rotation about fixed axes by `R d_r`; hence `blkdiag(R, R) S blkdiag(R, R)'`, not the adjoint.
    """
    turned = _turn(T[:3, :3], np.asarray(cov_66, dtype=np.float64))
    return [float(value) for value in (0.5 * (turned + turned.T)).ravel()]


def covariance_from_wire(T: Array, values_36: Iterable[float]) -> Array:
    """The right perturbation's 6x6 covariance (body axes) from the 36 numbers of a message.

    Raises:
        MessageError: not 36 finite numbers, not symmetric to 1e-3 of its scale, or a negative variance.
    """
    wire = _numbers(values_36, 36, "covariance").reshape(6, 6)
    scale = float(np.abs(wire).max())
    if (wire.diagonal() < 0.0).any() or np.abs(wire - wire.T).max() > 1e-3 * scale:
        raise MessageError("covariance has a negative variance or is not symmetric", "covariance")
    return _turn(T[:3, :3].T, 0.5 * (wire + wire.T))


def _turn(R: Array, cov_66: Array) -> Array:
    """`blkdiag(R, R) S blkdiag(R, R)'`."""
    block = np.zeros((6, 6))
    block[:3, :3] = block[3:, 3:] = R
    return np.asarray(block @ cov_66 @ block.T)


# -------------------------------------------------------------------------------------------------------------- events


def image_or_compressed(msg: Any) -> RawImage | EncodedImage:
    """Whichever of the two image messages it is."""
    return compressed_payload(msg) if hasattr(msg, "format") else image_payload(msg)


_CONVERTERS: dict[EventKind, Callable[[Any], Any]] = {
    EventKind.IMAGE: image_or_compressed,
    EventKind.DEPTH: image_or_compressed,
    EventKind.CLOUD: cloud_payload,
    EventKind.SCAN: scan_payload,
    EventKind.CAMERA_INFO: camera_info_payload,
    EventKind.ODOMETRY: odometry_sample,
    EventKind.INITIAL_POSE: initial_pose,
    EventKind.TRUTH: truth_sample,
}


def event_from_message(kind: EventKind, msg: Any) -> Event:
    """A message in the role `kind`, as an event (for /tf_static, which holds many, see `static_transforms`).

    Raises:
        MessageError: unusable, or not of the role's type (`wrong_type`).
    """
    converter = _CONVERTERS.get(kind)
    if converter is None:
        raise MessageError(f"no single event comes from a message in the role {kind.value!r}", "wrong_type")
    try:
        payload = converter(msg)
    except (AttributeError, TypeError, ValueError, OverflowError) as error:
        raise MessageError(f"{type(msg).__name__} cannot be read as {kind.value!r}: {error}", "wrong_type") from error
    return Event(kind, payload.stamp_ns, payload)
