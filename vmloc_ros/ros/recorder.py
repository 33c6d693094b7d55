"""`vmloc record`: topics of the ROS graph into an MCAP bag, serialized as they come."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, ReliabilityPolicy

from vmloc_ros.bag_writer import BagWriter, typestore
from vmloc_ros.errors import BagError, ConfigError
from vmloc_ros.files import write_json
from vmloc_ros.ros import qos
from vmloc_ros.ros.player import message_class, ros_node
from vmloc_ros.ros.profile import interface_file, use_dds_profile
from vmloc_ros.ros.signals import StopRequest

DISCOVERY_S = 0.2
SPIN_S = 0.05
DEPTH = 200
NEVER = ("/rosout", "/parameter_events")
"""The graph's own chatter: recorded only when it is named."""


@dataclass
class RecordSummary:
    """What was recorded: messages by topic, and the topics that could not be, with the reason."""

    recorded: dict[str, int] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    duration_s: float = 0.0

    @property
    def total(self) -> int:
        """All recorded messages."""
        return sum(self.recorded.values())


def run_record(
    bag: Path,
    topics: Sequence[str] | None = None,
    regex: str | None = None,
    duration_s: float | None = None,
    overwrite: bool = False,
    json_file: Path | None = None,
    progress: Callable[[float, int], None] | None = None,
    started: Callable[[], None] | None = None,
) -> RecordSummary:
    """Records until SIGINT or SIGTERM (or for `duration_s`); the bag takes its name when it is whole.

    Args:
        bag: folder to write.
        topics: names; with neither names nor `regex`, everything but /rosout and /parameter_events.
        regex: names that match it wholly, as well.
        duration_s: how long; None: until a signal.
        overwrite: whether a bag of this name may be replaced.
        json_file: where the summary is written.
        progress: told about the seconds and messages so far.
        started: called once the node is on the graph and looks for topics.

    Raises:
        BagError: something is there already, or the disk is full.
        ConfigError: the expression is none.
    """
    wanted = _wanted(topics, regex)
    use_dds_profile()
    with StopRequest() as stop, ros_node("vmloc_recorder") as node, BagWriter(Path(bag), overwrite=overwrite) as writer:
        recorder = _Recorder(node, writer, wanted)
        recorder.run(stop, duration_s, progress, started)
    if json_file is not None:
        write_json(json_file, asdict(recorder.summary))
    return recorder.summary


def _wanted(topics: Sequence[str] | None, regex: str | None) -> Callable[[str], bool]:
    names = {"/" + name.lstrip("/") for name in topics or ()}
    try:
        expression = re.compile(regex) if regex is not None else None
    except re.error as error:
        raise ConfigError(f"regex: {regex!r} is no regular expression ({error})") from error

    def wanted(name: str) -> bool:
        if not names and expression is None:
            return name not in NEVER
        return name in names or (expression is not None and expression.fullmatch(name) is not None)

    return wanted


class _Recorder:
    def __init__(self, node: Node, writer: BagWriter, wanted: Callable[[str], bool]) -> None:
        self._node = node
        self._writer = writer
        self._wanted = wanted
        self._error: BagError | None = None
        self._known: set[str] = set()
        self.summary = RecordSummary()

    def run(
        self,
        stop: StopRequest,
        duration_s: float | None,
        progress: Callable[[float, int], None] | None,
        started: Callable[[], None] | None,
    ) -> None:
        """Spins until it is time to stop, then takes what has arrived already."""
        executor = SingleThreadedExecutor(context=self._node.context)
        executor.add_node(self._node)
        begin_s, looked_s = time.monotonic(), 0.0
        if started is not None:
            started()
        while not stop.is_set() and self._error is None:
            now_s = time.monotonic()
            if duration_s is not None and now_s - begin_s >= duration_s:
                break
            if now_s - looked_s >= DISCOVERY_S:
                looked_s = now_s
                self._look()
                if progress is not None:
                    progress(now_s - begin_s, self.summary.total)
            executor.spin_once(timeout_sec=SPIN_S)
        self._take_the_rest(executor)
        self.summary.duration_s = time.monotonic() - begin_s
        executor.shutdown()
        if self._error is not None:
            raise self._error

    def _take_the_rest(self, executor: SingleThreadedExecutor) -> None:
        before = -1
        while self._error is None and self.summary.total != before:
            before = self.summary.total
            executor.spin_once(timeout_sec=0.0)

    def _look(self) -> None:
        """Subscribes to what is new on the graph."""
        for name, types in self._node.get_topic_names_and_types():
            if name in self._known or not self._wanted(name):
                continue
            publishers = self._node.get_publishers_info_by_topic(name)
            if not publishers:
                continue  # only subscribers so far: what it is offered as is not known yet
            self._known.add(name)
            try:
                self._subscribe(name, types[0], publishers)
            except BagError as error:
                self.summary.skipped[name] = str(error)
                self._node.get_logger().warning(f"{name} is left out: {error}")

    def _subscribe(self, name: str, msgtype: str, publishers: Sequence[Any]) -> None:
        """As reliable and as latched as *all* publishers of the topic are, so that every one of them matches."""
        profile = qos.reliable(DEPTH)
        if any(info.qos_profile.reliability == ReliabilityPolicy.BEST_EFFORT for info in publishers):
            profile = qos.sensor(DEPTH)
        latched = all(info.qos_profile.durability == DurabilityPolicy.TRANSIENT_LOCAL for info in publishers)
        if latched:
            profile.durability = DurabilityPolicy.TRANSIENT_LOCAL
        kind = message_class(msgtype)
        learn(self._writer, msgtype)
        self.summary.recorded[name] = 0

        def on_message(data: bytes) -> None:
            if self._error is not None:
                return
            try:
                self._writer.write_raw(name, msgtype, data, time.time_ns(), latched)
            except BagError as error:
                self._error = error
                return
            self.summary.recorded[name] += 1

        self._node.create_subscription(kind, name, on_message, profile, raw=True)


def learn(writer: BagWriter, msgtype: str) -> None:
    """Makes a message type and those inside it known to the bag library, from the installed .msg files.

    Raises:
        BagError: its definition is not installed.
    """
    if msgtype in typestore().types:
        return
    definition = interface_file(msgtype).read_text(encoding="utf-8")
    package = msgtype.split("/")[0]
    for line in definition.splitlines():
        field_type = re.match(r"\s*([A-Za-z][\w/]*)", line.split("#")[0])
        if field_type is None:
            continue
        name = field_type[1]
        if "/" in name:
            learn(writer, "/msg/".join(name.replace("/msg/", "/").split("/")))
        elif name[0].isupper() and name != msgtype.split("/")[-1]:
            learn(writer, f"{package}/msg/{name}")
    writer.register(msgtype, definition)
