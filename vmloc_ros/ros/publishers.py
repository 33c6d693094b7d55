"""The node's outputs: what a pipeline's `Outputs` become on the ROS graph."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from dataclasses import replace

import numpy as np
from geometry_msgs.msg import PoseWithCovarianceStamped
from nav_msgs.msg import Odometry, Path
from rclpy.duration import Duration
from rclpy.lifecycle import LifecycleNode
from sensor_msgs.msg import Image
from tf2_msgs.msg import TFMessage
from vmloc_msgs.msg import LocalizationStatus

from vmloc_ros.config import LocalizerConfig
from vmloc_ros.geometry import Array
from vmloc_ros.network_odometry import ChainedPose
from vmloc_ros.outputs import Outputs
from vmloc_ros.ros import qos
from vmloc_ros.ros.conversions import depth_image, odometry_message, pose_stamped, status_message
from vmloc_ros.ros.flow import Flow
from vmloc_ros.ros.path import PathBuffer
from vmloc_ros.ros.transforms import TransformSender
from vmloc_ros.types import Frame, Mode, OdometrySample, Status

OUTPUT_DEPTH = 50
LARGEST_VARIANCE = 1e100
"""m^2, rad^2: no pose; and far enough from the largest number for sums of products."""


class Publishers:
    """Lifecycle publishers: they are silent until the node is active.

    States and resets come from the executor's thread, and with the network's odometry from the worker's; statuses and
    frames from both. Each has a lock of its own: odometry on its way to /tf does not wait for pictures.

    Attributes:
        last_status: the newest one, for diagnostics.
        camera_frame: the frame_id of ~/projected_depth and ~/predicted_view, as the images name it.
        view: the publisher of ~/predicted_view, see `PredictedView`.
        vo_flow: how regularly the network's own odometry comes.
        withheld: outputs that were not published because a number in them was not finite.
    """

    def __init__(self, node: LifecycleNode, config: LocalizerConfig) -> None:
        self._node = node
        self._config = config
        self._map = config.frames.map
        create = node.create_lifecycle_publisher
        self._tf = create(TFMessage, "/tf", qos.reliable(100))
        self._pose = create(PoseWithCovarianceStamped, "~/pose", qos.reliable(OUTPUT_DEPTH))
        self._network_pose = create(PoseWithCovarianceStamped, "~/network_pose", qos.reliable(OUTPUT_DEPTH))
        self._path = create(Path, "~/path", qos.latched())
        self._depth = create(Image, "~/projected_depth", qos.reliable(2))
        self._status = create(LocalizationStatus, "~/status", qos.reliable(OUTPUT_DEPTH))
        self._vo = create(Odometry, "~/vo", qos.reliable(OUTPUT_DEPTH))
        self.view = create(Image, "~/predicted_view", qos.reliable(2))
        clock = node.get_clock()
        self.transforms = TransformSender(self._tf.publish, config, lambda: int(clock.now().nanoseconds))
        self._path_buffer = PathBuffer(config.output.path_length, self._map)
        self._lock = threading.Lock()
        self._state_lock = threading.RLock()
        self.vo_flow = Flow()
        self._newest_ns = 0
        self.last_status: Status | None = None
        self.camera_frame = config.frames.camera
        self.withheld: Counter[str] = Counter()

    def destroy(self) -> None:
        """Takes the publishers off the graph."""
        publishers = (self._tf, self._pose, self._network_pose, self._path, self._depth, self._status, self._vo)
        for publisher in (*publishers, self.view):
            self._node.destroy_lifecycle_publisher(publisher)

    def publish(self, outputs: Outputs, sample: OdometrySample | None = None) -> None:
        """Publishes everything. `sample` is the odometry that led to it, for odom -> base where that is asked for."""
        with self._state_lock:
            if outputs.resets:
                self.clear()
            if any(status.mode is Mode.LOST for status in outputs.statuses):
                self.transforms.interrupt()
            for pose in outputs.vo:
                self._publish_vo(pose)
            self.transforms.send(outputs.states, sample, outputs.bridged)
            for state in outputs.states:
                if self._finite("pose", state.T_map_base, state.cov_66):
                    self._pose.publish(pose_stamped(state.stamp_ns, self._map, state.T_map_base, state.cov_66))
                    self._path_buffer.add(state.stamp_ns, state.T_map_base)
                    self._newest_ns = state.stamp_ns
        if outputs.frames or outputs.statuses:
            with self._lock:
                for frame in outputs.frames:
                    self._publish_depth(frame)
                for status in outputs.statuses:
                    self._publish_status(status)

    def _publish_vo(self, pose: ChainedPose) -> None:
        """The network's own odometry; where it is the filter's, nobody else broadcasts odom -> base."""
        if self._config.model.odometry == "network":
            self.transforms.send([], pose.sample)
        if self._finite("vo", pose.sample.T_odom_base, pose.cov_66):
            self._vo.publish(odometry_message(pose))
            self.vo_flow.note(pose.sample.stamp_ns, time.monotonic())

    def flush(self, seconds: float) -> None:
        """Waits until the reliable subscribers have what was published; before the publishers go."""
        self._status.wait_for_all_acked(Duration(nanoseconds=round(seconds * 1e9)))

    def clear(self) -> None:
        """Forgets path and stamps after a reset: the data's clock may have started over."""
        with self._state_lock:
            self.transforms.clear()
            self._path_buffer.clear()

    def publish_path(self) -> None:
        """Publishes the path if it has changed (latched: who comes late gets it as well)."""
        with self._state_lock:
            if self._path_buffer.changed:
                self._path_buffer.changed = False
                self._path.publish(self._path_buffer.serialized(self._newest_ns))

    def _publish_status(self, status: Status) -> None:
        self.last_status = status = self._sound(status)
        self._status.publish(status_message(status, self._map))
        if status.measurement is not None:
            self._network_pose.publish(
                pose_stamped(status.stamp_ns, self._map, status.measurement.T_map_base, status.measurement.cov_66)
            )

    def _sound(self, status: Status) -> Status:
        """The status without what is not finite: a frame whose answer was refused still has its line in the diary."""
        state, measurement = status.state, status.measurement
        if state is not None and not self._finite("status", state.T_map_base, state.cov_66):
            state = None
        if measurement is not None and not self._finite("network_pose", measurement.T_map_base, measurement.cov_66):
            measurement = None
        nis = status.nis if status.nis is not None and math.isfinite(status.nis) else None
        weights = {name: value for name, value in status.expert_weights.items() if math.isfinite(value)}
        health = status.health if math.isfinite(status.health) else 0.0
        return replace(status, state=state, measurement=measurement, nis=nis, expert_weights=weights, health=health)

    def _publish_depth(self, frame: Frame) -> None:
        wanted = self._config.output.publish_projected_depth and self._depth.get_subscription_count() > 0
        if frame.depth_m is not None and wanted:
            self._depth.publish(depth_image(frame.stamp_ns, self.camera_frame, frame.depth_m))

    def _finite(self, name: str, T: Array, cov_66: Array) -> bool:
        """Whether a pose can go out; a covariance near the largest number overflows when it is turned for the wire."""
        if bool(np.isfinite(T).all()) and float(np.abs(cov_66).max()) < LARGEST_VARIANCE:  # False for NaN
            return True
        self.withheld[name] += 1
        return False
