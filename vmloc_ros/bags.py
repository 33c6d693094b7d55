"""Rosbag2 recordings (MCAP and sqlite3) read without a ROS installation, by the library `rosbags`.

Reading is by roles: `config.TopicNames` says which topic is the image, the odometry, and so on. A leading slash
does not matter, and `<topic>/compressed` stands in for an image topic that is not there. Writing is in `bag_writer`.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rosbags.interfaces import Connection, QosDurability
from rosbags.rosbag2 import Reader
from rosbags.serde import SerdeError

from vmloc_ros.bag_messages import STATUS_TYPE
from vmloc_ros.bag_writer import BagWriter, one_line, role_topics, typestore
from vmloc_ros.config import TopicNames
from vmloc_ros.errors import BagError, MessageError
from vmloc_ros.messages import event_from_message, stamp_ns, static_transforms
from vmloc_ros.trajectory import Trajectory
from vmloc_ros.types import Event, EventKind, FrameKey, StaticTransform

__all__ = ["BagMessage", "BagReader", "BagTopic", "BagWriter", "role_topics"]

IMAGE_TYPES = ("sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage")
LABEL_TYPES = (
    "nav_msgs/msg/Odometry",
    "geometry_msgs/msg/PoseStamped",
    "geometry_msgs/msg/PoseWithCovarianceStamped",
)
"""What can say where the robot was."""
ROLE_TYPES: dict[EventKind, tuple[str, ...]] = {
    EventKind.IMAGE: IMAGE_TYPES,
    EventKind.DEPTH: IMAGE_TYPES,
    EventKind.CLOUD: ("sensor_msgs/msg/PointCloud2",),
    EventKind.SCAN: ("sensor_msgs/msg/LaserScan",),
    EventKind.CAMERA_INFO: ("sensor_msgs/msg/CameraInfo",),
    EventKind.ODOMETRY: ("nav_msgs/msg/Odometry",),
    EventKind.TRUTH: LABEL_TYPES,
    EventKind.INITIAL_POSE: ("geometry_msgs/msg/PoseWithCovarianceStamped",),
    EventKind.STATIC_TRANSFORM: ("tf2_msgs/msg/TFMessage",),
}
"""What a role's topic may hold."""

SENSOR_KINDS = tuple(kind for kind in ROLE_TYPES if kind is not EventKind.STATIC_TRANSFORM)
SERDE_ERRORS = (SerdeError, struct.error, ValueError, IndexError, KeyError, TypeError, AssertionError, MemoryError)


def _deserialize(message: BagMessage) -> Any:
    try:
        return typestore().deserialize_cdr(memoryview(message.data), message.msgtype)
    except SERDE_ERRORS as error:
        raise MessageError(f"{message.msgtype} cannot be deserialized ({one_line(error)})", "serialization") from error


def _latched(connection: Connection) -> bool:
    profiles = getattr(connection.ext, "offered_qos_profiles", ())
    return any(profile.durability is QosDurability.TRANSIENT_LOCAL for profile in profiles)


# ------------------------------------------------------------------------------------------------------------- reading


@dataclass(frozen=True, order=True)
class BagTopic:
    """One topic of a bag. `latched`: offered transient_local, so a late subscriber gets the last message."""

    name: str
    msgtype: str
    count: int
    latched: bool


class BagMessage(NamedTuple):
    """One message as it was recorded; `data` is CDR with its four bytes of encapsulation."""

    topic: str
    msgtype: str
    data: bytes
    log_ns: int


class BagReader:
    """One bag: a folder with metadata.yaml, or a single .mcap or .db3 file.

    Attributes:
        rejected: messages that could not be converted, counted by "<topic>: <reason>" while they are read.
        first_rejected: the first of each, in words.
        on_reject: is told of each of them as well, with its topic.
        start_ns, end_ns: first and last arrival (log time); 0 for an empty bag.
    """

    def __init__(self, path: Path, topics: TopicNames | None = None) -> None:
        """Opens the bag once to read its table of contents.

        Raises:
            BagError: missing, truncated, or of an unknown storage; or a role's topic holds something else.
        """
        self.path = Path(path)
        self.rejected: Counter[str] = Counter()
        self.first_rejected: dict[str, str] = {}
        self.on_reject: Callable[[str, MessageError], None] | None = None
        with self._opened() as reader:
            self.topics = sorted(
                BagTopic(item.topic, item.msgtype, item.msgcount, _latched(item)) for item in reader.connections
            )
            self.message_count = sum(topic.count for topic in self.topics)
            self.start_ns = reader.start_time if self.message_count else 0
            self.end_ns = reader.end_time - 1 if self.message_count else 0
            self.custom_data: dict[str, str] = dict(reader.storage.metadata.custom or {})
        self._roles = self._find_roles(role_topics(topics or TopicNames()))

    @contextmanager
    def _opened(self) -> Iterator[Reader]:
        """The library's reader, open."""
        path = self.path
        if not path.exists():
            raise BagError(f"{path}: there is no such bag")
        if path.is_dir() and not (path / "metadata.yaml").exists():
            files = sorted(item.name for item in path.iterdir() if item.suffix in (".mcap", ".db3"))
            hint = f"run `ros2 bag reindex` on it or give the file {files[0]} itself" if files else "it is not a bag"
            raise BagError(f"{path}: has no metadata.yaml; {hint}")
        try:
            reader = Reader(path)
            reader.open()
        except Exception as error:  # whatever a parser says about bytes that are not what they should be
            raise BagError(
                f"{path}: cannot be read as a rosbag2 in MCAP or sqlite3 ({one_line(error)}); "
                "a recording that was cut off can be repaired by `ros2 bag reindex` or `mcap recover`"
            ) from error
        try:
            yield reader
        finally:
            reader.close()

    def _find_roles(self, wanted: Mapping[EventKind, str]) -> dict[EventKind, str]:
        types = {topic.name: topic.msgtype for topic in self.topics}
        found = {}
        for kind, name in wanted.items():
            compressed = f"{name}/compressed"
            if name not in types and kind in (EventKind.IMAGE, EventKind.DEPTH) and compressed in types:
                name = compressed
            if name not in types:
                continue
            if types[name] not in ROLE_TYPES[kind]:
                raise BagError(
                    f"{self.path}: topic {name} holds {types[name]}, but the role {kind.value!r} needs "
                    f"{' or '.join(ROLE_TYPES[kind])}; name another topic in the configuration's topics"
                )
            found[kind] = name
        self._wanted = dict(wanted)
        return found

    def has(self, kind: EventKind) -> bool:
        """Whether the role's topic is in the bag."""
        return kind in self._roles

    def topic_of(self, kind: EventKind) -> str | None:
        """The topic that plays the role, None if there is none."""
        return self._roles.get(kind)

    def count(self, kinds: Iterable[EventKind]) -> int:
        """How many messages the roles' topics hold."""
        names = {self._roles[kind] for kind in kinds if kind in self._roles}
        return sum(topic.count for topic in self.topics if topic.name in names)

    def require(self, *kinds: EventKind) -> None:
        """Raises:
        BagError: a role has no topic; lists what there is.
        """
        for kind in kinds:
            if kind not in self._roles:
                raise BagError(f"{self.path}: has no topic {self._wanted[kind]} ({kind.value}); {self.listing()}")

    def listing(self) -> str:
        """What is in the bag, in one line."""
        if not self.topics:
            return "it holds no topics"
        return "it holds " + ", ".join(f"{topic.name} [{topic.msgtype}] x{topic.count}" for topic in self.topics)

    def messages(
        self, topics: Collection[str] | None = None, start_ns: int | None = None, stop_ns: int | None = None
    ) -> Iterator[BagMessage]:
        """Serialized messages in order of arrival; `start_ns` (inclusive) and `stop_ns` (exclusive) in log time.

        Raises:
            BagError: a topic that is not there, or damaged data (after the messages before the damage).
        """
        wanted = None if topics is None else {"/" + name.lstrip("/") for name in topics}
        if wanted and (missing := sorted(wanted - {topic.name for topic in self.topics})):
            raise BagError(f"{self.path}: has no topic {', '.join(missing)}; {self.listing()}")
        with self._opened() as reader:
            connections = [item for item in reader.connections if wanted is None or item.topic in wanted]
            if not connections:
                return
            stream = reader.messages(connections, start_ns, stop_ns)
            number = 0
            while True:
                try:
                    connection, log_ns, data = next(stream)
                except StopIteration:
                    return
                except Exception as error:  # as above
                    raise BagError(f"{self.path}: damaged after {number} messages ({one_line(error)})") from error
                number += 1
                yield BagMessage(connection.topic, connection.msgtype, data, log_ns)

    def decoded(self, topics: Collection[str]) -> Iterator[tuple[str, Any]]:
        """(topic, message) of any topics, in order of arrival; unusable messages are counted.

        Raises:
            BagError: as `messages`.
        """
        for message in self.messages(topics):
            try:
                content = _deserialize(message)
            except MessageError as error:
                self._reject(message.topic, error)
            else:
                yield message.topic, content

    def events(
        self,
        kinds: Collection[EventKind] = SENSOR_KINDS,
        start_ns: int | None = None,
        stop_ns: int | None = None,
    ) -> Iterator[Event]:
        """The roles' messages in order of arrival, with the stamps of their headers; unusable ones are counted.

        Static transforms are not among them: they hold for the whole bag, see `static_transforms`.

        Raises:
            BagError: none of the roles has a topic, or damaged data.
        """
        for event, _ in self.timed_events(kinds, start_ns, stop_ns):
            yield event

    def timed_events(
        self, kinds: Collection[EventKind], start_ns: int | None = None, stop_ns: int | None = None
    ) -> Iterator[tuple[Event, int]]:
        """As `events`, each with its time of arrival (ns)."""
        roles = {name: kind for kind, name in self._roles.items() if kind in kinds}
        if not roles:
            names = ", ".join(self._wanted[kind] for kind in kinds)
            raise BagError(f"{self.path}: has none of the topics {names}; {self.listing()}")
        for message in self.messages(list(roles), start_ns, stop_ns):
            try:
                event = event_from_message(roles[message.topic], _deserialize(message))
            except MessageError as error:
                self._reject(message.topic, error)
            else:
                yield event, message.log_ns

    def _reject(self, topic: str, error: MessageError) -> None:
        if self.on_reject is not None:
            self.on_reject(topic, error)
        key = f"{topic}: {error.reason}"
        self.rejected[key] += 1
        self.first_rejected.setdefault(key, str(error))

    def static_transforms(self) -> list[StaticTransform]:
        """All of /tf_static; the last one of a child frame wins. Unusable ones are counted."""
        topic = self._roles.get(EventKind.STATIC_TRANSFORM)
        found: dict[str, StaticTransform] = {}
        for message in self.messages([topic]) if topic else ():
            try:
                for item in static_transforms(_deserialize(message), lambda error: self._reject(topic or "", error)):
                    found[item.child] = item
            except MessageError as error:
                self._reject(message.topic, error)
        return list(found.values())

    def truth(self, max_gap_s: float = 1.0) -> Trajectory:
        """Poses of the ground-truth topic: `T_map_body`, the body being the one that its messages name.

        Raises:
            BagError: there is no such topic (names those that could serve), or not one usable message.
        """
        if not self.has(EventKind.TRUTH):
            raise BagError(
                f"{self.path}: has no ground truth: no topic {self._wanted[EventKind.TRUTH]}. {self.label_listing()}"
            )
        poses = {event.stamp_ns: event.payload.T_odom_base for event in self.events([EventKind.TRUTH])}
        if not poses:
            raise BagError(f"{self.path}: topic {self._roles[EventKind.TRUTH]} has no usable message")
        stamps = sorted(poses)
        return Trajectory(np.array(stamps, dtype=np.int64), np.array([poses[stamp] for stamp in stamps]), max_gap_s)

    def label_listing(self) -> str:
        """Which of the bag's topics could say where the robot was, in one line."""
        usable = [topic for topic in self.topics if topic.msgtype in LABEL_TYPES and topic.count]
        if not usable:
            return f"No topic could serve instead (of type {', '.join(LABEL_TYPES)}); {self.listing()}"
        names = ", ".join(f"{topic.name} [{topic.msgtype}] x{topic.count}" for topic in usable)
        return f"What could serve, by the option truth_topic: {names}"

    def label_body(self) -> str:
        """The frame whose poses the ground-truth topic gives, as its first usable message names it; "" if it does not.

        Raises:
            BagError: damaged data.
        """
        first = next(iter(self.events([EventKind.TRUTH])), None)
        return "" if first is None else str(first.payload.child_frame_id)

    def frame_keys(self) -> list[FrameKey]:
        """Which messages a recorded run made its frames of: from every LocalizationStatus of a frame.

        Raises:
            BagError: the bag holds no such topic.
        """
        names = [topic.name for topic in self.topics if topic.msgtype == STATUS_TYPE]
        if not names:
            raise BagError(f"{self.path}: holds no topic of type {STATUS_TYPE}; {self.listing()}")
        keys = []
        for message in self.messages(names):
            try:
                status: Any = _deserialize(message)
            except MessageError as error:
                self._reject(message.topic, error)
                continue
            if status.is_frame:
                image_ns = stamp_ns(status.image_stamp) if status.has_image else None
                depths = tuple(stamp_ns(stamp) for stamp in status.depth_stamps)
                keys.append(FrameKey(stamp_ns(status.header.stamp), image_ns, depths))
        return keys
