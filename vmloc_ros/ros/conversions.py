"""The core's objects to ROS messages. Covariances go out in the wire's convention (`messages.wire_covariance`)."""

from __future__ import annotations

from array import array

import numpy as np
from builtin_interfaces.msg import Time
from geometry_msgs.msg import (
    Pose,
    PoseWithCovariance,
    PoseWithCovarianceStamped,
    TransformStamped,
    Twist,
    TwistWithCovariance,
    Vector3,
)
from nav_msgs.msg import Odometry
from numpy.typing import NDArray
from sensor_msgs.msg import Image
from std_msgs.msg import Header
from vmloc_msgs.msg import LocalizationStatus

from vmloc_ros.bag_messages import UNKNOWN_TWIST
from vmloc_ros.geometry import Array, quaternion_from_pose
from vmloc_ros.messages import split_stamp, wire_covariance
from vmloc_ros.network_odometry import ChainedPose
from vmloc_ros.types import Modality, Status


def time_message(stamp_ns: int) -> Time:
    """builtin_interfaces/Time of integer nanoseconds."""
    sec, nanosec = split_stamp(stamp_ns)
    return Time(sec=sec, nanosec=nanosec)


def header(stamp_ns: int, frame_id: str) -> Header:
    """std_msgs/Header."""
    return Header(stamp=time_message(stamp_ns), frame_id=frame_id)


def pose_message(T: Array) -> Pose:
    """geometry_msgs/Pose."""
    message = Pose()
    position, orientation = message.position, message.orientation
    position.x, position.y, position.z = (float(value) for value in T[:3, 3])
    orientation.x, orientation.y, orientation.z, orientation.w = (float(value) for value in quaternion_from_pose(T))
    return message


def transform_message(stamp_ns: int, parent: str, child: str, T_parent_child: Array) -> TransformStamped:
    """geometry_msgs/TransformStamped."""
    message = TransformStamped(header=header(stamp_ns, parent), child_frame_id=child)
    translation, rotation = message.transform.translation, message.transform.rotation
    translation.x, translation.y, translation.z = (float(value) for value in T_parent_child[:3, 3])
    rotation.x, rotation.y, rotation.z, rotation.w = (float(value) for value in quaternion_from_pose(T_parent_child))
    return message


def pose_with_covariance(T: Array, cov_66: Array) -> PoseWithCovariance:
    """geometry_msgs/PoseWithCovariance; `cov_66` is of the right perturbation (body axes)."""
    return PoseWithCovariance(pose=pose_message(T), covariance=wire_covariance(T, cov_66))


def pose_stamped(stamp_ns: int, frame_id: str, T: Array, cov_66: Array) -> PoseWithCovarianceStamped:
    """geometry_msgs/PoseWithCovarianceStamped; `cov_66` is of the right perturbation (body axes)."""
    return PoseWithCovarianceStamped(header=header(stamp_ns, frame_id), pose=pose_with_covariance(T, cov_66))


def odometry_message(pose: ChainedPose) -> Odometry:
    """nav_msgs/Odometry; the twist and its covariance are in the base's axes. Where there is no twist its covariance
    begins with -1."""
    sample = pose.sample
    twist, covariance = Twist(), np.zeros(36)
    if sample.twist_6 is None or sample.twist_cov_66 is None:
        covariance[0] = UNKNOWN_TWIST
    else:
        u, v, w, p, q, r = sample.twist_6.tolist()
        twist = Twist(linear=Vector3(x=u, y=v, z=w), angular=Vector3(x=p, y=q, z=r))
        covariance = sample.twist_cov_66.ravel()
    return Odometry(
        header=header(sample.stamp_ns, sample.frame_id),
        child_frame_id=sample.child_frame_id,
        pose=pose_with_covariance(sample.T_odom_base, pose.cov_66),
        twist=TwistWithCovariance(twist=twist, covariance=covariance),
    )


def colour_image(stamp_ns: int, frame_id: str, rgb: NDArray[np.uint8]) -> Image:
    """sensor_msgs/Image rgb8 of an (H, W, 3) picture."""
    height, width, _ = rgb.shape
    message = Image(header=header(stamp_ns, frame_id), height=height, width=width, encoding="rgb8", step=3 * width)
    message.data = array("B", np.ascontiguousarray(rgb, dtype=np.uint8).tobytes())
    return message


def depth_image(stamp_ns: int, frame_id: str, depth_m: NDArray[np.float32]) -> Image:
    """sensor_msgs/Image 32FC1 in metres; "no return" (0) becomes NaN, as REP-118 wants it."""
    height, width = depth_m.shape
    values = np.where(depth_m > 0.0, depth_m, np.float32(np.nan)).astype("<f4")
    message = Image(header=header(stamp_ns, frame_id), height=height, width=width, encoding="32FC1", step=4 * width)
    message.data = array("B", values.tobytes())
    return message


def status_message(status: Status, map_frame: str) -> LocalizationStatus:
    """vmloc_msgs/LocalizationStatus."""
    message = LocalizationStatus(
        header=header(status.stamp_ns, map_frame),
        mode=status.mode.value,
        verdict=status.verdict.value,
        reason=status.reason,
        weight_rgb=float(status.expert_weights.get(Modality.RGB.value, 0.0)),
        weight_depth=float(status.expert_weights.get(Modality.DEPTH.value, 0.0)),
        weight_prior=float(status.expert_weights.get("prior", 0.0)),
        health=float(status.health),
        absent_rgb=status.absent.get(Modality.RGB, ""),
        absent_depth=status.absent.get(Modality.DEPTH, ""),
        nis=float(status.nis) if status.nis is not None else 0.0,
        dof=int(status.dof) if status.nis is not None else 0,
        latency_ms=float(status.latency_ms),
        is_frame=status.key is not None,
        counter_names=list(status.counters),
        counter_values=[int(value) for value in status.counters.values()],
    )
    if status.state is not None:
        message.has_pose = True
        message.pose = pose_with_covariance(status.state.T_map_base, status.state.cov_66)
    if status.measurement is not None:
        message.has_measurement = True
        message.measurement = pose_with_covariance(status.measurement.T_map_base, status.measurement.cov_66)
    if status.key is not None:
        message.has_image = status.key.image_stamp_ns is not None
        message.image_stamp = time_message(status.key.image_stamp_ns or 0)
        message.depth_stamps = [time_message(stamp_ns) for stamp_ns in status.key.depth_stamps_ns]
    return message
