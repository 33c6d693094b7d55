"""The node's outputs: what a pipeline's `Outputs` become on the ROS graph."""

from __future__ import annotations

import threading
from collections import Counter

import numpy as np
from geometry_msgs.msg import PoseWithCovarianceStamped
from nav_msgs.msg import Path
from rclpy.duration import Duration
from rclpy.lifecycle import LifecycleNode
from sensor_msgs.msg import Image
from tf2_msgs.msg import TFMessage
from vmloc_msgs.msg import LocalizationStatus

from vmloc_ros.config import LocalizerConfig
from vmloc_ros.geometry import Array
from vmloc_ros.outputs import Outputs
from vmloc_ros.ros import qos
from vmloc_ros.ros.conversions import depth_image, pose_stamped, status_message
from vmloc_ros.ros.path import PathBuffer
from vmloc_ros.ros.transforms import TransformSender
from vmloc_ros.types import Frame, Mode, OdometrySample, Status

OUTPUT_DEPTH = 50


class Publishers:
    """Lifecycle publishers: they are silent until the node is active.

    States and resets come from the executor's thread only, statuses and frames from the worker's as well, so only the
    latter are guarded.

    Attributes:
        last_status: the newest one, for diagnostics.
        camera_frame: the frame_id of ~/projected_depth, as the images name it.
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
        clock = node.get_clock()
        self.transforms = TransformSender(self._tf.publish, config, lambda: int(clock.now().nanoseconds))
        self._path_buffer = PathBuffer(config.output.path_length, self._map)
        self._lock = threading.Lock()
        self._newest_ns = 0
        self.last_status: Status | None = None
        self.camera_frame = config.frames.camera
        self.withheld: Counter[str] = Counter()

    def destroy(self) -> None:
        """Takes the publishers off the graph."""
        for publisher in (self._tf, self._pose, self._network_pose, self._path, self._depth, self._status):
            self._node.destroy_lifecycle_publisher(publisher)

    def publish(self, outputs: Outputs, sample: OdometrySample | None = None) -> None:
        """Publishes everything. `sample` is the odometry that led to it, for odom -> base where that is asked for."""
        if outputs.resets:
            self.clear()
        if any(status.mode is Mode.LOST for status in outputs.statuses):
            self.transforms.interrupt()
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

    def flush(self, seconds: float) -> None:
        """Waits until the reliable subscribers have what was published; before the publishers go."""
        self._status.wait_for_all_acked(Duration(nanoseconds=round(seconds * 1e9)))

    def clear(self) -> None:
        """Forgets path and stamps after a reset: the data's clock may have started over."""
        self.transforms.clear()
        self._path_buffer.clear()

    def publish_path(self) -> None:
        """Publishes the path if it has changed (latched: who comes late gets it as well)."""
        if self._path_buffer.changed:
            self._path_buffer.changed = False
            self._path.publish(self._path_buffer.serialized(self._newest_ns))

    def _publish_status(self, status: Status) -> None:
        self.last_status = status
        poses = [status.state, status.measurement]
        if not all(p is None or self._finite("status", p.T_map_base, p.cov_66) for p in poses):
            return
        self._status.publish(status_message(status, self._map))
        if status.measurement is not None:
            self._network_pose.publish(
                pose_stamped(status.stamp_ns, self._map, status.measurement.T_map_base, status.measurement.cov_66)
            )

    def _publish_depth(self, frame: Frame) -> None:
        wanted = self._config.output.publish_projected_depth and self._depth.get_subscription_count() > 0
        if frame.depth_m is not None and wanted:
            self._depth.publish(depth_image(frame.stamp_ns, self.camera_frame, frame.depth_m))

    def _finite(self, name: str, *arrays: Array) -> bool:
        if all(bool(np.isfinite(array).all()) for array in arrays):
            return True
        self.withheld[name] += 1
        return False
