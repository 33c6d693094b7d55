"""Rosbag2 recordings (MCAP) written without a ROS installation, by the library `rosbags`.

A bag is written into a folder `<name>.part` beside its place and takes its name when it is complete: a run that is
killed leaves no half bag under the final name.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from rosbags.interfaces import (
    Connection,
    Qos,
    QosDurability,
    QosHistory,
    QosLiveliness,
    QosReliability,
    QosTime,
)
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore

from vmloc_ros.bag_messages import STATUS_DEFINITION, STATUS_TYPE, Message, MessageBuilder
from vmloc_ros.config import TopicNames
from vmloc_ros.errors import BagError
from vmloc_ros.files import whole_folder
from vmloc_ros.geometry import Array
from vmloc_ros.types import EncodedImage, Event, EventKind, OdometrySample, StaticTransform, Status

QUEUE = 100
CARD = "vmloc_card"
"""Key of the recording's card in the metadata's custom data."""
_FOREVER = QosTime(9223372036, 854775807)


def role_topics(topics: TopicNames) -> dict[EventKind, str]:
    """Every role's topic with a leading slash."""
    names = {
        EventKind.IMAGE: topics.image,
        EventKind.DEPTH: topics.depth,
        EventKind.CLOUD: topics.points,
        EventKind.SCAN: topics.scan,
        EventKind.CAMERA_INFO: topics.camera_info,
        EventKind.ODOMETRY: topics.odom,
        EventKind.TRUTH: topics.ground_truth,
        EventKind.INITIAL_POSE: "initialpose",
        EventKind.STATIC_TRANSFORM: "tf_static",
    }
    return {kind: "/" + name.lstrip("/") for kind, name in names.items()}


def one_line(error: BaseException) -> str:
    """An error's text without line breaks; its class where it has none."""
    return " ".join(str(error).split()) or type(error).__name__


@functools.cache
def typestore() -> Typestore:
    """ROS 2 Kilted's messages (the same on the wire as Jazzy's) and ours."""
    store = get_typestore(Stores.ROS2_KILTED)
    store.register(get_types_from_msg(STATUS_DEFINITION, STATUS_TYPE))
    return store


def _offered(latched: bool) -> Qos:
    """What a replay should offer: reliable always (it is compatible with every subscriber)."""
    return Qos(
        QosHistory.KEEP_LAST,
        1 if latched else QUEUE,
        QosReliability.RELIABLE,
        QosDurability.TRANSIENT_LOCAL if latched else QosDurability.VOLATILE,
        _FOREVER,
        _FOREVER,
        QosLiveliness.AUTOMATIC,
        _FOREVER,
        False,
    )


def check_target(path: Path, overwrite: bool) -> None:
    """Raises:
    BagError: a bag cannot or must not be written there.
    """
    if path.suffix in (".mcap", ".db3"):
        raise BagError(f"{path}: a bag is a folder; give a name without {path.suffix}")
    if not path.exists():
        return
    if not path.is_dir() or (any(path.iterdir()) and not (path / "metadata.yaml").exists()):
        raise BagError(f"{path}: exists and is not a bag; give another name")
    if not overwrite:
        raise BagError(f"{path}: exists already; remove it, give another name, or allow overwriting")


class BagWriter:
    """Writes one MCAP bag; to be used in a `with` block, from one thread at a time.

    Leaving the block by an error (or being killed) leaves what stood under the name before.
    """

    def __init__(self, path: Path, topics: TopicNames | None = None, overwrite: bool = False) -> None:
        """Raises:
        BagError: something is there already: a bag (without `overwrite`) or, in any case, something else.
        """
        self.path = Path(path)
        check_target(self.path, overwrite)
        self.counts: dict[str, int] = {}
        self._roles = role_topics(topics or TopicNames())
        self._store = typestore()
        self._build = MessageBuilder(self._store.types)
        self._connections: dict[str, Connection] = {}
        self._stack = ExitStack()
        self._writer: Writer | None = None

    def __enter__(self) -> Self:
        folder = self._stack.enter_context(whole_folder(self.path))
        inner = folder / self.path.name  # the library makes its own folder and names the file after it
        self._stack.callback(_unwrap, inner, folder)
        self._writer = self._stack.enter_context(
            Writer(inner, version=Writer.VERSION_LATEST, storage_plugin=StoragePlugin.MCAP)
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer = None
        self._stack.__exit__(kind, error, trace)

    def set_card(self, card: Mapping[str, object]) -> None:
        """What a map's user must know (origin, axes, licence), kept in the bag's metadata."""
        if self._writer is None:
            raise BagError(f"{self.path}: is not open for writing")
        self._writer.set_custom_data(CARD, json.dumps(card))

    # ---------------------------------------------------------------------------------------------------- in general

    def write_raw(
        self, topic: str, msgtype: str, data: bytes | memoryview, log_ns: int, latched: bool | None = None
    ) -> None:
        """A message that is serialized already (CDR). `latched`: by default only /tf_static.

        Raises:
            BagError: outside the `with` block, an unknown message type (see `register`), one topic with two types,
                or a disk that is full.
        """
        if self._writer is None:
            raise BagError(f"{self.path}: is not open for writing")
        topic = "/" + topic.lstrip("/")
        try:
            connection = self._connections.get(topic)
            if connection is None:
                connection = self._connect(topic, msgtype, latched)
            elif connection.msgtype != msgtype:
                raise BagError(f"{self.path}: {topic} holds {connection.msgtype}, and cannot hold {msgtype} as well")
            self._writer.write(connection, log_ns, data)
        except OSError as error:
            raise BagError(f"{self.path}: cannot be written ({error})") from error
        self.counts[topic] += 1

    def _connect(self, topic: str, msgtype: str, latched: bool | None) -> Connection:
        assert self._writer is not None
        if msgtype not in self._store.types:
            raise BagError(f"{self.path}: the message type {msgtype} of {topic} is unknown; register its definition")
        qos = _offered(topic == "/tf_static" if latched is None else latched)
        connection = self._writer.add_connection(topic, msgtype, typestore=self._store, offered_qos_profiles=[qos])
        self._connections[topic] = connection
        self.counts[topic] = 0
        return connection

    def register(self, msgtype: str, definition: str) -> None:
        """Makes a message type known by the text of its .msg file.

        Raises:
            BagError: not a message definition, or another one than is known.
        """
        try:
            self._store.register(get_types_from_msg(definition, msgtype))
        except Exception as error:  # the library's parser has a family of errors of its own
            raise BagError(f"{msgtype}: its definition cannot be used ({one_line(error)})") from error

    def write_message(self, topic: str, message: Message, log_ns: int, latched: bool | None = None) -> None:
        """A message of `MessageBuilder` under a topic."""
        msgtype, content = message
        self.write_raw(topic, msgtype, self._store.serialize_cdr(content, msgtype), log_ns, latched)

    # -------------------------------------------------------------------------------------------------------- inputs

    def write(self, event: Event, log_ns: int | None = None) -> None:
        """A sensor event under its role's topic, as arrived at `log_ns` (by default at its own stamp).

        An `EncodedImage` goes to `<topic>/compressed`.
        """
        log_ns = event.stamp_ns if log_ns is None else log_ns
        if event.kind is EventKind.STATIC_TRANSFORM:
            self.write_static_transforms([event.payload], log_ns)
            return
        topic = self._roles[event.kind]
        if isinstance(event.payload, EncodedImage) and not topic.endswith("/compressed"):
            topic += "/compressed"
        self.write_message(topic, self._build.event(event), log_ns)

    def write_static_transforms(self, transforms: Iterable[StaticTransform], log_ns: int) -> None:
        """/tf_static, one latched message: give all the mountings at once."""
        self.write_message("/tf_static", self._build.transforms(log_ns, transforms), log_ns, latched=True)

    def write_transform(self, stamp_ns: int, parent: str, child: str, T_parent_child: Array) -> None:
        """/tf, one moving transform."""
        message = self._build.transforms(stamp_ns, [StaticTransform(parent, child, T_parent_child)])
        self.write_message("/tf", message, stamp_ns)

    # ------------------------------------------------------------------------------------------------------- outputs

    def write_pose(
        self, topic: str, stamp_ns: int, frame_id: str, T: Array, cov_66: Array, log_ns: int | None = None
    ) -> None:
        """geometry_msgs/PoseWithCovarianceStamped; `cov_66` of the right perturbation, turned to the wire's axes."""
        message = self._build.pose_stamped(stamp_ns, frame_id, T, cov_66)
        self.write_message(topic, message, stamp_ns if log_ns is None else log_ns)

    def write_odometry(self, topic: str, sample: OdometrySample, cov_66: Array) -> None:
        """nav_msgs/Odometry; `cov_66` of the right perturbation of `T_odom_base`, turned to the wire's axes."""
        self.write_message(topic, self._build.odometry(sample, cov_66), sample.stamp_ns)

    def write_path(self, topic: str, stamp_ns: int, frame_id: str, poses: Iterable[tuple[int, Array]]) -> None:
        """nav_msgs/Path of (stamp, pose)."""
        self.write_message(topic, self._build.path(stamp_ns, frame_id, poses), stamp_ns)

    def write_status(self, topic: str, status: Status, map_frame: str, log_ns: int | None = None) -> None:
        """vmloc_msgs/LocalizationStatus."""
        message = self._build.status(status, map_frame)
        self.write_message(topic, message, status.stamp_ns if log_ns is None else log_ns)

    def write_diagnostics(
        self, stamp_ns: int, parts: Iterable[tuple[str, int, str, Mapping[str, object]]], topic: str = "/diagnostics"
    ) -> None:
        """diagnostic_msgs/DiagnosticArray of (name, level, message, values) each."""
        self.write_message(topic, self._build.diagnostics(stamp_ns, parts), stamp_ns)


def _unwrap(inner: Path, folder: Path) -> None:
    """Moves the library's files up into the folder that will take the bag's name."""
    for item in inner.iterdir():
        os.replace(item, folder / item.name)
    inner.rmdir()
