"""The core's payloads to messages, for bags.

The message classes come from the caller (`types`: a name such as "sensor_msgs/msg/Image" to a class with keyword
arguments), so that this file knows neither the bag library nor rclpy. Functions return the type's name and the message.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from vmloc_ros.geometry import Array, quaternion_from_pose
from vmloc_ros.messages import split_stamp, wire_covariance
from vmloc_ros.types import (
    CameraInfo,
    EncodedImage,
    Event,
    EventKind,
    FusedState,
    InitialPose,
    Modality,
    OdometrySample,
    PoseMeasurement,
    RawCloud,
    RawImage,
    RawScan,
    StaticTransform,
    Status,
)

STATUS_TYPE = "vmloc_msgs/msg/LocalizationStatus"
STATUS_DEFINITION = """\
std_msgs/Header header
string mode
string verdict
string reason
bool has_pose
geometry_msgs/PoseWithCovariance pose
bool has_measurement
geometry_msgs/PoseWithCovariance measurement
float64 weight_rgb
float64 weight_depth
float64 weight_prior
float64 health
string absent_rgb
string absent_depth
float64 nis
uint32 dof
float64 latency_ms
bool is_frame
bool has_image
builtin_interfaces/Time image_stamp
builtin_interfaces/Time[] depth_stamps
string[] counter_names
uint64[] counter_values
"""
"""`msg/LocalizationStatus.msg` without its comments (a test compares them): bags carry the definition with the data."""

Message = tuple[str, Any]

UNKNOWN_TWIST = -1.0
"""First number of a twist's covariance where there is no twist, as in sensor_msgs/Imu."""


class MessageBuilder:
    """Builds messages out of the caller's message classes."""

    def __init__(self, types: Mapping[str, Callable[..., Any]]) -> None:
        self._types = types

    def make(self, name: str, /, **fields: Any) -> Any:
        """A message of the type `name`; all its fields are needed."""
        return self._types[name](**fields)

    # ------------------------------------------------------------------------------------------------------- pieces

    def time(self, stamp_ns: int) -> Any:
        sec, nanosec = split_stamp(stamp_ns)
        return self.make("builtin_interfaces/msg/Time", sec=sec, nanosec=nanosec)

    def header(self, stamp_ns: int, frame_id: str) -> Any:
        return self.make("std_msgs/msg/Header", stamp=self.time(stamp_ns), frame_id=frame_id)

    def vector(self, values_3: Iterable[float], name: str = "Vector3") -> Any:
        x, y, z = (float(value) for value in values_3)
        return self.make(f"geometry_msgs/msg/{name}", x=x, y=y, z=z)

    def quaternion(self, T: Array) -> Any:
        x, y, z, w = (float(value) for value in quaternion_from_pose(T))
        return self.make("geometry_msgs/msg/Quaternion", x=x, y=y, z=z, w=w)

    def pose(self, T: Array) -> Any:
        return self.make(
            "geometry_msgs/msg/Pose", position=self.vector(T[:3, 3], "Point"), orientation=self.quaternion(T)
        )

    def pose_with_covariance(self, T: Array, cov_66: Array | None) -> Any:
        """`cov_66` is the inside one (right perturbation, body axes); None: zeros."""
        numbers = np.zeros(36) if cov_66 is None else np.array(wire_covariance(T, cov_66))
        return self.make("geometry_msgs/msg/PoseWithCovariance", pose=self.pose(T), covariance=numbers)

    # ------------------------------------------------------------------------------------------------------ sensors

    def image(self, payload: RawImage | EncodedImage) -> Message:
        header = self.header(payload.stamp_ns, payload.frame_id)
        data = np.frombuffer(payload.data, dtype=np.uint8)
        if isinstance(payload, EncodedImage):
            name = "sensor_msgs/msg/CompressedImage"
            return name, self.make(name, header=header, format=payload.format, data=data)
        name = "sensor_msgs/msg/Image"
        return name, self.make(
            name,
            header=header,
            height=payload.height,
            width=payload.width,
            encoding=payload.encoding,
            is_bigendian=int(payload.is_bigendian),
            step=payload.step,
            data=data,
        )

    def camera_info(self, payload: CameraInfo) -> Message:
        x, y, width, height = payload.roi
        roi = self.make(
            "sensor_msgs/msg/RegionOfInterest",
            x_offset=x,
            y_offset=y,
            height=height,
            width=width,
            do_rectify=any(payload.roi),
        )
        name = "sensor_msgs/msg/CameraInfo"
        return name, self.make(
            name,
            header=self.header(payload.stamp_ns, payload.frame_id),
            height=payload.height,
            width=payload.width,
            distortion_model=payload.distortion_model,
            d=np.array(payload.D, dtype=np.float64),
            k=payload.K_33.ravel().astype(np.float64),
            r=payload.R_33.ravel().astype(np.float64),
            p=payload.P_34.ravel().astype(np.float64),
            binning_x=payload.binning_x,
            binning_y=payload.binning_y,
            roi=roi,
        )

    def cloud(self, payload: RawCloud) -> Message:
        fields = [
            self.make(
                "sensor_msgs/msg/PointField",
                name=item.name,
                offset=item.offset,
                datatype=item.datatype,
                count=item.count,
            )
            for item in payload.fields
        ]
        name = "sensor_msgs/msg/PointCloud2"
        return name, self.make(
            name,
            header=self.header(payload.stamp_ns, payload.frame_id),
            height=payload.height,
            width=payload.width,
            fields=fields,
            is_bigendian=payload.is_bigendian,
            point_step=payload.point_step,
            row_step=payload.row_step,
            data=np.frombuffer(payload.data, dtype=np.uint8),
            is_dense=False,  # points may be NaN: nobody has looked
        )

    def scan(self, payload: RawScan) -> Message:
        ranges_m = np.asarray(payload.ranges_m, dtype=np.float32)
        name = "sensor_msgs/msg/LaserScan"
        return name, self.make(
            name,
            header=self.header(payload.stamp_ns, payload.frame_id),
            angle_min=payload.angle_min_rad,
            angle_max=payload.angle_min_rad + payload.angle_increment_rad * (len(ranges_m) - 1),
            angle_increment=payload.angle_increment_rad,
            time_increment=payload.time_increment_s,
            scan_time=payload.time_increment_s * len(ranges_m),
            range_min=payload.range_min_m,
            range_max=payload.range_max_m,
            ranges=ranges_m,
            intensities=np.empty(0, dtype=np.float32),
        )

    def odometry(self, payload: OdometrySample, cov_66: Array | None = None) -> Message:
        """`cov_66` is of `T_odom_base` (right perturbation, body axes); None: zeros."""
        twist_6 = np.zeros(6) if payload.twist_6 is None else payload.twist_6
        covariance = np.zeros(36) if payload.twist_cov_66 is None else payload.twist_cov_66.ravel()
        if payload.twist_6 is None:
            covariance = np.full(36, 0.0)
            covariance[0] = UNKNOWN_TWIST
        twist = self.make("geometry_msgs/msg/Twist", linear=self.vector(twist_6[:3]), angular=self.vector(twist_6[3:]))
        name = "nav_msgs/msg/Odometry"
        return name, self.make(
            name,
            header=self.header(payload.stamp_ns, payload.frame_id),
            child_frame_id=payload.child_frame_id,
            pose=self.pose_with_covariance(payload.T_odom_base, cov_66),
            twist=self.make("geometry_msgs/msg/TwistWithCovariance", twist=twist, covariance=covariance),
        )

    def event(self, event: Event) -> Message:
        """The message of a sensor event.

        Raises:
            KeyError: a static transform, which has no message of its own (see `transforms`).
        """
        payload = event.payload
        if event.kind is EventKind.INITIAL_POSE:
            assert isinstance(payload, InitialPose)
            return self.pose_stamped(payload.stamp_ns, payload.frame_id, payload.T_map_base, payload.cov_66)
        builders: dict[EventKind, Callable[[Any], Message]] = {
            EventKind.IMAGE: self.image,
            EventKind.DEPTH: self.image,
            EventKind.CLOUD: self.cloud,
            EventKind.SCAN: self.scan,
            EventKind.CAMERA_INFO: self.camera_info,
            EventKind.ODOMETRY: self.odometry,
            EventKind.TRUTH: self.odometry,
        }
        return builders[event.kind](payload)

    # ------------------------------------------------------------------------------------------------------ outputs

    def transforms(self, stamp_ns: int, transforms: Iterable[StaticTransform]) -> Message:
        """tf2_msgs/TFMessage with one stamp for all."""
        items = [
            self.make(
                "geometry_msgs/msg/TransformStamped",
                header=self.header(stamp_ns, item.parent),
                child_frame_id=item.child,
                transform=self.make(
                    "geometry_msgs/msg/Transform",
                    translation=self.vector(item.T_parent_child[:3, 3]),
                    rotation=self.quaternion(item.T_parent_child),
                ),
            )
            for item in transforms
        ]
        return "tf2_msgs/msg/TFMessage", self.make("tf2_msgs/msg/TFMessage", transforms=items)

    def pose_stamped(self, stamp_ns: int, frame_id: str, T: Array, cov_66: Array) -> Message:
        name = "geometry_msgs/msg/PoseWithCovarianceStamped"
        return name, self.make(name, header=self.header(stamp_ns, frame_id), pose=self.pose_with_covariance(T, cov_66))

    def path(self, stamp_ns: int, frame_id: str, poses: Iterable[tuple[int, Array]]) -> Message:
        items = [
            self.make("geometry_msgs/msg/PoseStamped", header=self.header(stamp, frame_id), pose=self.pose(T))
            for stamp, T in poses
        ]
        return "nav_msgs/msg/Path", self.make("nav_msgs/msg/Path", header=self.header(stamp_ns, frame_id), poses=items)

    def diagnostics(self, stamp_ns: int, parts: Iterable[tuple[str, int, str, Mapping[str, object]]]) -> Message:
        """diagnostic_msgs/DiagnosticArray of (name, level, message, values) each."""
        statuses = [
            self.make(
                "diagnostic_msgs/msg/DiagnosticStatus",
                level=level,
                name=part,
                message=message,
                hardware_id="",
                values=[
                    self.make("diagnostic_msgs/msg/KeyValue", key=key, value=str(value))
                    for key, value in values.items()
                ],
            )
            for part, level, message, values in parts
        ]
        name = "diagnostic_msgs/msg/DiagnosticArray"
        return name, self.make(name, header=self.header(stamp_ns, ""), status=statuses)

    def status(self, status: Status, map_frame: str) -> Message:
        """vmloc_msgs/LocalizationStatus."""
        state: FusedState | None = status.state
        measurement: PoseMeasurement | None = status.measurement
        key, weights, unity = status.key, status.expert_weights, np.eye(4)
        image_ns = key.image_stamp_ns if key is not None else None
        return STATUS_TYPE, self.make(
            STATUS_TYPE,
            header=self.header(status.stamp_ns, map_frame),
            mode=str(status.mode),
            verdict=str(status.verdict),
            reason=status.reason,
            has_pose=state is not None,
            pose=self.pose_with_covariance(state.T_map_base, state.cov_66)
            if state
            else self.pose_with_covariance(unity, None),
            has_measurement=measurement is not None,
            measurement=self.pose_with_covariance(measurement.T_map_base, measurement.cov_66)
            if measurement
            else self.pose_with_covariance(unity, None),
            weight_rgb=float(weights.get("rgb", 0.0)),
            weight_depth=float(weights.get("depth", 0.0)),
            weight_prior=float(weights.get("prior", 0.0)),
            health=float(status.health),
            absent_rgb=status.absent.get(Modality.RGB, ""),
            absent_depth=status.absent.get(Modality.DEPTH, ""),
            nis=float(status.nis or 0.0),
            dof=int(status.dof),
            latency_ms=float(status.latency_ms),
            is_frame=key is not None,
            has_image=image_ns is not None,
            image_stamp=self.time(image_ns or 0),
            depth_stamps=[self.time(stamp) for stamp in (key.depth_stamps_ns if key is not None else ())],
            counter_names=list(status.counters),
            counter_values=np.array(list(status.counters.values()), dtype=np.uint64),
        )
