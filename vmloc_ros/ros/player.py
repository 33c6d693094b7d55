"""`vmloc play`: a bag's messages on the ROS graph, as they were serialized and at the pace they were recorded."""

from __future__ import annotations

import importlib
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import rclpy
from rclpy.context import Context
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.signals import SignalHandlerOptions
from rosgraph_msgs.msg import Clock

from vmloc_ros.bags import BagMessage, BagReader, BagTopic
from vmloc_ros.errors import BagError, ConfigError
from vmloc_ros.files import write_json
from vmloc_ros.messages import split_stamp
from vmloc_ros.ros import qos
from vmloc_ros.ros.profile import use_dds_profile
from vmloc_ros.ros.signals import StopRequest

NANOSECONDS = 1_000_000_000
CLOCK_NS = 5_000_000
"""/clock advances in steps of at least so much data time."""
PUBLISHER_DEPTH = 100
LATCHED_DEPTH = 100
SETTLE_S = 0.5
"""A subscriber that the publisher has found may need this much longer to find the publisher."""
STEADY_S = 1.0
"""Subscribers are complete when none has come for so long."""
LATE_S = 0.05


@dataclass(frozen=True)
class Drop:
    """Messages of a topic that are left out, in seconds from the start of the bag: an outage made on purpose."""

    topic: str
    from_s: float
    to_s: float


@dataclass
class PlaySummary:
    """What was played.

    Attributes:
        published: messages by topic.
        dropped: messages left out by topic (`Drop`).
        skipped: topics left out, with the reason (a message type that is not installed).
        loops: how often the bag was begun.
        duration_s: of data, by the bag's own log times.
        wall_s: that it took, without waiting for subscribers.
        late_max_ms: the worst delay of a message against its plan.
        late: messages more than 50 ms behind their plan.
        start_ns: log time of the first message of the bag's section: what the drops' seconds count from.
    """

    published: dict[str, int] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    loops: int = 0
    duration_s: float = 0.0
    wall_s: float = 0.0
    late_max_ms: float = 0.0
    late: int = 0
    start_ns: int = 0

    @property
    def total(self) -> int:
        """All published messages."""
        return sum(self.published.values())


Progress = Callable[[float, int], None]
"""Told of the seconds of data played and of the messages published so far."""


def run_play(
    bag: Path,
    rate: float = 1.0,
    clock: bool = False,
    loop: bool = False,
    start_s: float = 0.0,
    duration_s: float | None = None,
    topics: Sequence[str] | None = None,
    drop: Sequence[Drop | tuple[str, float, float]] = (),
    delay_s: float = 0.0,
    wait_for_subscribers_s: float = 0.0,
    wait_topics: Sequence[str] | None = None,
    linger_s: float = 0.5,
    remap: Sequence[str] = (),
    json_file: Path | None = None,
    progress: Progress | None = None,
) -> PlaySummary:
    """Plays a bag until its end, or until SIGINT or SIGTERM.

    Args:
        bag: folder or file, MCAP or sqlite3.
        rate: speed; 2 is twice as fast as recorded.
        clock: publish /clock with the bag's time.
        loop: begin again at the end, for ever.
        start_s: seconds of the bag to leave out at its beginning; what was latched in them (/tf_static) is sent
            all the same.
        duration_s: seconds to play; None: to the end.
        topics: names to play; None: all.
        drop: outages, in seconds from the start of the *bag*.
        delay_s: wait before the first message.
        wait_for_subscribers_s: wait at most so long until the subscribers have come.
        wait_topics: those that must have a subscriber; None: any, and until no further one has come for a second.
        linger_s: stay on the graph so long after the last message, for what is reliable to be delivered.
        remap: ROS remappings, `from:=to`.
        json_file: where the summary is written.
        progress: told about every tenth of a second.

    Raises:
        BagError: not a bag, damaged, or a topic that is not in it.
        ConfigError: a rate, a time or a drop that makes no sense.
    """
    reader = BagReader(Path(bag))
    plan = _Plan.checked(reader, rate, start_s, duration_s, topics, drop)
    use_dds_profile()
    with StopRequest() as stop, ros_node("vmloc_player", remap) as node:
        player = _Player(node, reader, plan, stop, progress)
        if wait_for_subscribers_s > 0.0:
            player.wait_for_subscribers(wait_for_subscribers_s, wait_topics)
        stop.wait(delay_s)
        player.play(clock, loop)
        stop.wait(linger_s)
    if json_file is not None:
        write_json(json_file, asdict(player.summary))
    return player.summary


@contextmanager
def ros_node(name: str, remap: Sequence[str] = ()) -> Iterator[Node]:
    """A node of its own context, which rclpy's signal handlers do not touch."""
    context = Context()
    arguments = ["--ros-args", *(word for rule in remap for word in ("-r", rule))] if remap else []
    rclpy.init(args=arguments, context=context, signal_handler_options=SignalHandlerOptions.NO)
    try:
        node = Node(name, context=context, enable_rosout=False, start_parameter_services=False)
        yield node
        node.destroy_node()
    finally:
        context.try_shutdown()


def message_class(msgtype: str) -> type[Any]:
    """The rclpy class of `package/msg/Name`.

    Raises:
        BagError: it is not installed.
    """
    if not re.fullmatch(r"\w+/msg/\w+", msgtype):
        raise BagError(f"{msgtype}: is not a message type")
    package, _, name = msgtype.split("/")
    try:
        return getattr(importlib.import_module(f"{package}.msg"), name)  # type: ignore[no-any-return]
    except (ImportError, AttributeError) as error:
        raise BagError(f"{msgtype}: the message package is not installed ({error})") from error


@dataclass(frozen=True)
class _Plan:
    rate: float
    start_ns: int
    stop_ns: int
    topics: tuple[BagTopic, ...]
    drops: tuple[Drop, ...]

    @classmethod
    def checked(
        cls,
        reader: BagReader,
        rate: float,
        start_s: float,
        duration_s: float | None,
        names: Sequence[str] | None,
        drops: Sequence[Drop | tuple[str, float, float]],
    ) -> _Plan:
        if not 0.0 < rate < 1000.0:
            raise ConfigError(f"rate: must be more than 0 and less than 1000, not {rate}")
        if start_s < 0.0 or (duration_s is not None and duration_s <= 0.0):
            raise ConfigError(f"start and duration: cannot be negative (got {start_s} s and {duration_s} s)")
        known = {topic.name: topic for topic in reader.topics}
        chosen = [_absolute(name) for name in names] if names is not None else sorted(known)
        outages = [item if isinstance(item, Drop) else Drop(*item) for item in drops]
        outages = [Drop(_absolute(item.topic), item.from_s, item.to_s) for item in outages]
        for name in (*chosen, *(item.topic for item in outages)):
            if name not in known:
                raise BagError(f"{reader.path}: has no topic {name}; {reader.listing()}")
        for item in outages:
            if not item.from_s < item.to_s:
                raise ConfigError(f"drop of {item.topic}: from {item.from_s} s to {item.to_s} s is no time")
        start_ns = reader.start_ns + round(start_s * NANOSECONDS)
        end_ns = reader.end_ns + 1
        stop_ns = end_ns if duration_s is None else min(end_ns, start_ns + round(duration_s * NANOSECONDS))
        if start_ns >= end_ns:
            length_s = (reader.end_ns - reader.start_ns) / NANOSECONDS
            raise ConfigError(f"start: {start_s} s is behind the end of {reader.path}, which is {length_s:.1f} s long")
        return cls(rate, start_ns, stop_ns, tuple(known[name] for name in chosen), tuple(outages))


def _absolute(name: str) -> str:
    return "/" + name.lstrip("/")


class _Player:
    def __init__(
        self, node: Node, reader: BagReader, plan: _Plan, stop: StopRequest, progress: Progress | None
    ) -> None:
        self._node = node
        self._reader = reader
        self._plan = plan
        self._stop = stop
        self._progress = progress
        self.summary = PlaySummary(start_ns=reader.start_ns)
        self._publishers: dict[str, Publisher[Any]] = {}
        for topic in plan.topics:
            try:
                kind = message_class(topic.msgtype)
            except BagError as error:
                self.summary.skipped[topic.name] = str(error)
                node.get_logger().warning(f"{topic.name} is left out: {error}")
                continue
            quality = qos.latched(LATCHED_DEPTH) if self._latched(topic) else qos.reliable(PUBLISHER_DEPTH)
            self._publishers[topic.name] = node.create_publisher(kind, topic.name, quality)
            self.summary.published[topic.name] = 0
        self._dropped = {item.topic: [d for d in plan.drops if d.topic == item.topic] for item in plan.drops}

    @staticmethod
    def _latched(topic: BagTopic) -> bool:
        return topic.latched or topic.name == "/tf_static"

    # --------------------------------------------------------------------------------------------------- subscribers

    def wait_for_subscribers(self, seconds: float, topics: Sequence[str] | None) -> None:
        """Waits until they have come, then a little for them to have noticed."""
        deadline = time.monotonic() + seconds
        wanted = None if topics is None else [_absolute(name) for name in topics if _absolute(name) in self._publishers]
        before, since = -1, time.monotonic()
        while time.monotonic() < deadline and not self._stop.wait(0.02):
            if wanted is not None:
                if all(self._publishers[name].get_subscription_count() > 0 for name in wanted):
                    break
                continue
            now = sum(publisher.get_subscription_count() for publisher in self._publishers.values())
            if now != before:
                before, since = now, time.monotonic()
            elif now > 0 and time.monotonic() - since > STEADY_S:
                break
        alone = [name for name in wanted or [] if self._publishers[name].get_subscription_count() == 0]
        if alone:
            self._node.get_logger().warning(f"nobody subscribes to {', '.join(alone)} after {seconds:.0f} s")
        self._stop.wait(SETTLE_S)

    # -------------------------------------------------------------------------------------------------------- playing

    def play(self, clock: bool, loop: bool) -> None:
        """Once or for ever; everything is in `summary` afterwards."""
        clock_publisher = self._node.create_publisher(Clock, "/clock", qos.reliable()) if clock else None
        begin = time.perf_counter()
        while not self._stop.is_set():
            self.summary.loops += 1
            self._play_once(clock_publisher)
            if not loop:
                break
        self.summary.wall_s = time.perf_counter() - begin

    def _play_once(self, clock_publisher: Publisher[Any] | None) -> None:
        plan = self._plan
        names = list(self._publishers)
        if not names:
            return
        self._send_latched_before_start()
        begin_s, clock_ns, told_s = time.perf_counter(), 0, 0.0
        for message in self._reader.messages(names, plan.start_ns, plan.stop_ns):
            due_s = (message.log_ns - plan.start_ns) / NANOSECONDS / plan.rate
            self._wait_until(begin_s + due_s)
            if self._stop.is_set():
                return
            if clock_publisher is not None and message.log_ns >= clock_ns + CLOCK_NS:
                clock_ns = message.log_ns
                clock_publisher.publish(_clock_message(clock_ns))
            self._send(message)
            self.summary.duration_s = (message.log_ns - plan.start_ns) / NANOSECONDS
            late_s = time.perf_counter() - begin_s - due_s
            self.summary.late_max_ms = max(self.summary.late_max_ms, 1e3 * late_s)
            self.summary.late += late_s > LATE_S
            if self._progress is not None and due_s - told_s > 0.1:
                told_s = due_s
                self._progress(self.summary.duration_s, self.summary.total)

    def _send(self, message: BagMessage) -> None:
        seconds = (message.log_ns - self._reader.start_ns) / NANOSECONDS
        if any(drop.from_s <= seconds < drop.to_s for drop in self._dropped.get(message.topic, ())):
            self.summary.dropped[message.topic] = self.summary.dropped.get(message.topic, 0) + 1
            return
        self._publishers[message.topic].publish(bytes(message.data))
        self.summary.published[message.topic] += 1

    def _send_latched_before_start(self) -> None:
        """What was latched before the section that is played holds in it as well."""
        plan = self._plan
        latched = [topic.name for topic in plan.topics if self._latched(topic) and topic.name in self._publishers]
        if latched and plan.start_ns > self._reader.start_ns:
            for message in self._reader.messages(latched, None, plan.start_ns):
                self._send(message)

    def _wait_until(self, due_s: float) -> None:
        wait_s = due_s - time.perf_counter()
        if wait_s > 0.0:
            self._stop.wait(wait_s)


def _clock_message(stamp_ns: int) -> Clock:
    message = Clock()
    message.clock.sec, message.clock.nanosec = split_stamp(stamp_ns)
    return message
