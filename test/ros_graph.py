"""Tests' side of a real ROS graph: a node that sends and listens, and the localizer as a process of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import rclpy
import yaml
from lifecycle_msgs.srv import ChangeState, GetState
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile
from rclpy.signals import SignalHandlerOptions
from rclpy.task import Future

from vmloc_ros.bag_messages import MessageBuilder
from vmloc_ros.bag_writer import typestore
from vmloc_ros.ros import qos
from vmloc_ros.ros.player import message_class
from vmloc_ros.types import Event, EventKind

TEST = Path(__file__).resolve().parent
PROJECT = TEST.parent
PATIENCE_S = 40.0
"""Only an upper limit: what is waited for comes in a second, but the machine may be busy with something else."""
SETTLE_S = 0.3
"""A subscriber that the publisher has found may need a little longer to find the publisher."""
DEEP = ("image", "camera_info", "points", "scan", "depth", "odom", "initialpose")
DEEP_QUEUES = {f"/{name}": {"subscription": {"depth": 500}} for name in DEEP}
"""Drives are sent at a multiple of their pace to a process that the machine may stop for a second."""

INPUT_TOPICS = {
    EventKind.IMAGE: "/image",
    EventKind.CAMERA_INFO: "/camera_info",
    EventKind.CLOUD: "/points",
    EventKind.SCAN: "/scan",
    EventKind.DEPTH: "/depth",
    EventKind.ODOMETRY: "/odom",
    EventKind.INITIAL_POSE: "/initialpose",
    EventKind.STATIC_TRANSFORM: "/tf_static",
}


def wait_until(condition: Callable[[], bool], what: str, patience_s: float = PATIENCE_S) -> None:
    """Polls; fails with `what` when it takes too long."""
    deadline = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {patience_s:.0f} s in vain: {what}"
        time.sleep(0.01)


class Graph:
    """A node of the test, spinning in a thread."""

    def __init__(self) -> None:
        self.context = Context()
        rclpy.init(args=[], context=self.context, signal_handler_options=SignalHandlerOptions.NO)
        self.node = Node("tester", context=self.context, enable_rosout=False, start_parameter_services=False)
        self._executor = SingleThreadedExecutor(context=self.context)
        self._executor.add_node(self.node)
        self._publishers: dict[str, Any] = {}
        self._build = MessageBuilder(typestore().types)
        self._thread = threading.Thread(target=self._spin, daemon=True)
        self._stopping = False
        self._thread.start()

    def _spin(self) -> None:
        while not self._stopping:
            self._executor.spin_once(timeout_sec=0.05)

    def close(self) -> None:
        self._stopping = True
        self._thread.join()
        self._executor.shutdown()
        self.node.destroy_node()
        self.context.try_shutdown()

    def collect(self, message: type, topic: str, profile: QoSProfile | None = None) -> list[Any]:
        """A list that grows with every message of a topic."""
        received: list[Any] = []
        self.node.create_subscription(message, topic, received.append, profile or qos.reliable(1000))
        return received

    def publisher(self, message: type, topic: str) -> Any:
        """A publisher that somebody listens to."""
        if topic not in self._publishers:
            self._settle([self._create(message, topic)])
        return self._publishers[topic]

    def _create(self, message: type, topic: str) -> Any:
        profile = qos.latched(10) if topic == "/tf_static" else qos.reliable(1000)
        self._publishers[topic] = self.node.create_publisher(message, topic, profile)
        return self._publishers[topic]

    def _settle(self, publishers: list[Any]) -> None:
        for publisher in publishers:
            wait_until(lambda p=publisher: p.get_subscription_count() > 0, f"a subscriber of {publisher.topic_name}")
        time.sleep(SETTLE_S)
        inputs = {publisher.topic_name for publisher in publishers} & set(INPUT_TOPICS.values())
        if inputs and self.node.count_services("/localizer/get_state"):
            self.state()  # an answer shows that a busy machine let the localizer run since

    def prepare(self, events: list[Event]) -> None:
        """Publishers for all that is going to be sent, found by their subscribers."""
        topics = {INPUT_TOPICS[event.kind]: event for event in events}
        new = [topic for topic in topics if topic not in self._publishers]
        if new:
            self._settle([self._create(message_class(self._message(topics[topic])[0]), topic) for topic in new])

    def send(self, events: Iterable[Event], pause_s: float = 0.0) -> None:
        """Publishes events as messages, on the topics that the node has by default."""
        events = list(events)
        self.prepare(events)
        for event in events:
            self._send(event)
            time.sleep(pause_s)

    def play(self, events: Iterable[Event], speed: float = 4.0) -> None:
        """Publishes a drive at a multiple of its own pace."""
        events = list(events)
        self.prepare(events)
        first_ns = min(event.stamp_ns for event in events if event.stamp_ns)
        begin_s = time.monotonic()
        for event in events:
            wait_s = (event.stamp_ns - first_ns) / 1e9 / speed - (time.monotonic() - begin_s)
            if wait_s > 0.0:
                time.sleep(wait_s)
            self._send(event)

    def _message(self, event: Event) -> tuple[str, Any]:
        if event.kind is EventKind.STATIC_TRANSFORM:
            return self._build.transforms(0, [event.payload])
        return self._build.event(event)

    def _send(self, event: Event) -> None:
        msgtype, content = self._message(event)
        data = bytes(typestore().serialize_cdr(content, msgtype))
        self._publishers[INPUT_TOPICS[event.kind]].publish(data)

    def call(self, service: type, name: str, request: Any) -> Any:
        """A service's answer."""
        client = self.node.create_client(service, name)
        wait_until(client.service_is_ready, f"the service {name}")
        future: Future = client.call_async(request)
        wait_until(future.done, f"an answer of {name}")
        self.node.destroy_client(client)
        return future.result()

    def state(self, node: str = "/localizer") -> str:
        """A lifecycle node's state."""
        return str(self.call(GetState, f"{node}/get_state", GetState.Request()).current_state.label)

    def change_state(self, label: str, node: str = "/localizer") -> bool:
        """Triggers a lifecycle transition; whether it succeeded."""
        request = ChangeState.Request()
        request.transition.label = label
        ids = {"configure": 1, "cleanup": 2, "activate": 3, "deactivate": 4, "unconfigured_shutdown": 5}
        request.transition.id = ids[label]
        return bool(self.call(ChangeState, f"{node}/change_state", request).success)


class NodeProcess:
    """The localizer as a process, with a scripted network, or as its users start it (`trained`)."""

    def __init__(
        self,
        folder: Path,
        parameters: dict[str, Any] | None = None,
        arguments: Iterable[str] = (),
        trained: bool = False,
    ) -> None:
        self.file = folder / "parameters.yaml"
        content = {**(parameters or {}), "qos_overrides": DEEP_QUEUES}
        content["model"] = {"path": "scripted", "max_pending_frames": 200, **content.get("model", {})}
        self.file.write_text(yaml.safe_dump({"/**": {"ros__parameters": content}}))
        self.log = folder / "node.log"
        scripted = [str(TEST / "scripted_node.py"), str(self.file)]
        as_users_do = ["-m", "vmloc_ros.cli", "node", "--params", str(self.file)]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, *(as_users_do if trained else scripted), *arguments],
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=PROJECT,
                env={**os.environ, "PYTHONPATH": f"{PROJECT}:{TEST}", "PYTHONUNBUFFERED": "1"},
            )

    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def wait_for(self, text: str) -> None:
        """Until the log says so."""
        wait_until(lambda: text in self.output() or self.process.poll() is not None, f"{text!r} in the node's log")
        assert text in self.output(), self.output()

    def end(self, number: int = signal.SIGINT) -> int:
        """Sends a signal; the exit status."""
        self.process.send_signal(number)
        return self.process.wait(timeout=PATIENCE_S)


@contextlib.contextmanager
def running_node(
    folder: Path, parameters: dict[str, Any] | None = None, arguments: Iterable[str] = (), trained: bool = False
) -> Iterator[NodeProcess]:
    """A node that is killed if the test does not end it."""
    node = NodeProcess(folder, parameters, arguments, trained)
    try:
        yield node
    finally:
        if node.process.poll() is None:
            node.process.kill()
            node.process.wait()
