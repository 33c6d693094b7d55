"""The node's subscriptions: every callback turns a message into an event and hands it on, nothing else."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from geometry_msgs.msg import PoseWithCovarianceStamped
from nav_msgs.msg import Odometry
from rclpy.node import Node
from rclpy.qos import QoSProfile
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, LaserScan, PointCloud2
from tf2_msgs.msg import TFMessage

from vmloc_ros.config import LocalizerConfig
from vmloc_ros.errors import MessageError
from vmloc_ros.messages import event_from_message, static_transforms
from vmloc_ros.ros import qos
from vmloc_ros.ros.flow import Flow
from vmloc_ros.types import Event, EventKind

LATCHED_DEPTH = 100
"""How many publishers of /tf_static a robot may have."""

Refuse = Callable[[EventKind, MessageError], None]


@dataclass(frozen=True)
class Input:
    """One subscription to make; names without a slash are relative and can be remapped."""

    kind: EventKind
    topic: str
    message: type
    quality: QoSProfile


def wanted(config: LocalizerConfig) -> list[Input]:
    """The inputs that a configuration asks for."""
    topics, source = config.topics, config.input.depth_source
    found = []
    if config.input.use_image:
        found.append(Input(EventKind.IMAGE, topics.image, _image_type(topics.image), qos.sensor()))
    if config.input.use_image or source != "none":
        found.append(Input(EventKind.CAMERA_INFO, topics.camera_info, CameraInfo, qos.sensor(50)))
    if source == "points":
        found.append(Input(EventKind.CLOUD, topics.points, PointCloud2, qos.sensor()))
    elif source == "scan":
        found.append(Input(EventKind.SCAN, topics.scan, LaserScan, qos.sensor(100)))
    elif source == "depth":
        found.append(Input(EventKind.DEPTH, topics.depth, _image_type(topics.depth), qos.sensor()))
    if config.model.odometry == "topic":
        found.append(Input(EventKind.ODOMETRY, topics.odom, Odometry, qos.sensor(qos.ODOMETRY_DEPTH)))
    found.append(Input(EventKind.INITIAL_POSE, "/initialpose", PoseWithCovarianceStamped, qos.reliable()))
    found.append(Input(EventKind.STATIC_TRANSFORM, "/tf_static", TFMessage, qos.latched(LATCHED_DEPTH)))
    return found


def _image_type(topic: str) -> type:
    return CompressedImage if topic.endswith("/compressed") else Image


class Inputs:
    """The live subscriptions.

    Attributes:
        flows: how every input arrives, by kind.
        topics: the resolved topic of every input.
    """

    def __init__(self, node: Node, config: LocalizerConfig, on_event: Callable[[Event], None], refuse: Refuse) -> None:
        """
        Args:
            node: what the subscriptions are made on. Their QoS can be overridden by parameters (`qos_overrides.*`).
            config: says which inputs there are.
            on_event: gets every event, in the executor's thread.
            refuse: is told of every message that could not become one.
        """
        self._node = node
        self._on_event = on_event
        self._refuse = refuse
        self.flows = {item.kind: Flow() for item in wanted(config)}
        self._subscriptions = [
            node.create_subscription(
                item.message,
                item.topic,
                self._callback(item.kind),
                item.quality,
                qos_overriding_options=QoSOverridingOptions.with_default_policies(),
            )
            for item in wanted(config)
        ]
        self.topics = {
            item.kind: subscription.topic_name
            for item, subscription in zip(wanted(config), self._subscriptions, strict=True)
        }

    def destroy(self) -> None:
        """Ends the subscriptions."""
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)
        self._subscriptions.clear()

    def _callback(self, kind: EventKind) -> Callable[[Any], None]:
        if kind is EventKind.STATIC_TRANSFORM:
            return self._on_static_transforms
        flow = self.flows[kind]

        def on_message(message: Any) -> None:
            try:
                event = event_from_message(kind, message)
            except MessageError as error:
                flow.note(0, time.monotonic())
                self._refuse(kind, error)
                return
            flow.note(event.stamp_ns, time.monotonic())
            self._on_event(event)

        return on_message

    def _on_static_transforms(self, message: Any) -> None:
        def refuse(error: MessageError) -> None:
            self._refuse(EventKind.STATIC_TRANSFORM, error)

        for transform in static_transforms(message, refuse):
            self._on_event(Event(EventKind.STATIC_TRANSFORM, 0, transform))
