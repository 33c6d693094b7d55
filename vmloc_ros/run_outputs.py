"""What a node put out, read back from the bag that recorded it: its diary and its live poses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vmloc_ros.bag_messages import STATUS_TYPE
from vmloc_ros.bags import SENSOR_KINDS, BagReader
from vmloc_ros.config import TopicNames
from vmloc_ros.errors import BagError, MessageError
from vmloc_ros.messages import frame_name, initial_pose, odometry_sample, stamp_ns
from vmloc_ros.run_log import Outage, RunCollector, RunLog
from vmloc_ros.types import (
    EventKind,
    FrameKey,
    FusedState,
    Modality,
    Mode,
    OdometrySample,
    PoseMeasurement,
    Status,
    Verdict,
)

UNKNOWN = np.full((4, 4), np.nan)
"""`T_map_odom` of states that are read back: the messages do not carry it."""


def read_outputs(bag: Path) -> tuple[list[Status], list[FusedState]]:
    """The statuses and the live poses of a recorded run.

    The live poses are those of the topic `pose` beside the status topic (`/localizer/status`, `/localizer/pose`).

    Raises:
        BagError: not a readable bag, no status topic or several of them, or a status that is malformed.
    """
    reader = BagReader(bag)
    names = [topic.name for topic in reader.topics if topic.msgtype == STATUS_TYPE]
    if len(names) != 1:
        raise BagError(f"{bag}: needs one topic of type {STATUS_TYPE}, has {len(names)}; {reader.listing()}")
    pose_topic = names[0].rpartition("/")[0] + "/pose"
    wanted = [names[0]] + [pose_topic for topic in reader.topics if topic.name == pose_topic]
    statuses: list[Status] = []
    live: list[FusedState] = []
    for topic, message in reader.decoded(wanted):
        try:
            if topic == pose_topic:
                pose = initial_pose(message)
                live.append(FusedState(pose.stamp_ns, pose.T_map_base, pose.cov_66, UNKNOWN))
            else:
                statuses.append(status_from_message(message))
        except (MessageError, ValueError) as error:
            raise BagError(f"{bag}: {topic}: {error}") from error
    if reader.rejected:
        first = next(iter(reader.first_rejected.values()))
        raise BagError(f"{bag}: {reader.rejected.total()} messages cannot be read; the first: {first}")
    return statuses, live


def read_vo(bag: Path) -> list[OdometrySample]:
    """The network's own odometry of a recorded run: the topic `vo` beside the status topic; empty where it has none.

    Raises:
        BagError: not a readable bag, or a message that is malformed.
    """
    reader = BagReader(bag)
    names = [t.name.rpartition("/")[0] + "/vo" for t in reader.topics if t.msgtype == STATUS_TYPE]
    wanted = [topic.name for topic in reader.topics if topic.name in names]
    samples = []
    for topic, message in reader.decoded(wanted) if wanted else ():
        try:
            samples.append(odometry_sample(message))
        except MessageError as error:
            raise BagError(f"{bag}: {topic}: {error}") from error
    return samples


def log_of_node_run(
    outputs: Path,
    inputs: Path,
    topics: TopicNames | None = None,
    outages: Sequence[Outage] | None = None,
    published: Mapping[str, int] | None = None,
) -> RunLog:
    """The log of a node's run, from the bag that it was fed with and the bag of what it put out.

    A robot without odometry of its own was driven by the network's, if that was recorded.

    Args:
        outputs: recorded topics of the node.
        inputs: the bag that was played: its odometry and ground truth.
        topics: their names in `inputs`.
        outages: seconds from the start of `inputs`; None: found in the diary.
        published: messages that the player sent, by `EventKind` value; None: all that `inputs` holds.

    Raises:
        BagError: either bag is unreadable, or `outputs` holds no diary.
    """
    statuses, live = read_outputs(outputs)
    reader = BagReader(inputs, topics)
    by_network = not reader.has(EventKind.ODOMETRY)
    collector = RunCollector(by_network)
    if by_network:
        collector.add_vo(read_vo(outputs))
    kinds = [kind for kind in (EventKind.ODOMETRY, EventKind.TRUTH) if reader.has(kind)]
    for event in reader.events(kinds) if kinds else ():
        collector.add_event(event)
    collector.add_outputs(statuses, live)
    if published is None:
        published = {kind.value: reader.count([kind]) for kind in SENSOR_KINDS if reader.has(kind)}
    return collector.finish(outages=outages, published=published, start_ns=reader.start_ns)


def status_from_message(message: Any) -> Status:
    """vmloc_msgs/LocalizationStatus to the core's own, covariances turned to body axes.

    Raises:
        MessageError: a pose or covariance that is none.
        ValueError: a mode or verdict that does not exist.
    """
    stamp = stamp_ns(message.header.stamp)
    state = measurement = None
    if message.has_pose:
        pose = initial_pose(_Stamped(message.header, message.pose))
        state = FusedState(stamp, pose.T_map_base, pose.cov_66, UNKNOWN)
    if message.has_measurement:
        pose = initial_pose(_Stamped(message.header, message.measurement))
        measurement = PoseMeasurement(stamp, pose.T_map_base, pose.cov_66, frame_id=frame_name(message.header.frame_id))
    absent = {Modality.RGB: message.absent_rgb, Modality.DEPTH: message.absent_depth}
    weights = {"rgb": message.weight_rgb, "depth": message.weight_depth, "prior": message.weight_prior}
    return Status(
        stamp_ns=stamp,
        mode=Mode(message.mode),
        verdict=Verdict(message.verdict),
        reason=message.reason,
        key=_frame_key(message, stamp) if message.is_frame else None,
        state=state,
        measurement=measurement,
        expert_weights={name: float(weight) for name, weight in weights.items() if weight},
        health=float(message.health),
        nis=float(message.nis) if message.dof else None,
        dof=int(message.dof),
        latency_ms=float(message.latency_ms),
        absent={modality: str(reason) for modality, reason in absent.items() if reason},
        counters=dict(zip(message.counter_names, (int(n) for n in message.counter_values), strict=True)),
    )


def _frame_key(message: Any, stamp: int) -> FrameKey:
    image_ns = stamp_ns(message.image_stamp) if message.has_image else None
    return FrameKey(stamp, image_ns, tuple(stamp_ns(item) for item in message.depth_stamps))


class _Stamped:
    """A pose with the header that stands beside it, as geometry_msgs/PoseWithCovarianceStamped has them."""

    def __init__(self, header: Any, pose: Any) -> None:
        self.header = header
        self.pose = pose
