"""One's own drive: a bag is trained on, measured with and localized in, whatever topic says where the robot was."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import worlds
import yaml
from pictures import TINY

from vmloc_ros.assembly import labelled_frames
from vmloc_ros.bag_messages import MessageBuilder
from vmloc_ros.bag_recording import BagRecording
from vmloc_ros.bag_writer import typestore
from vmloc_ros.bags import BagReader, BagWriter
from vmloc_ros.checkpoint import load_card
from vmloc_ros.commands.evaluate import run_evaluate
from vmloc_ros.commands.localize import run_localize
from vmloc_ros.commands.train import run_train
from vmloc_ros.config import LocalizerConfig, TopicNames
from vmloc_ros.errors import DatasetError
from vmloc_ros.geometry import Array, exp_se3, inverse, make_pose, quaternion_from_pose
from vmloc_ros.recordings import open_any
from vmloc_ros.types import EncodedImage, Event, EventKind, OdometrySample, StaticTransform

TOPICS = TopicNames(image="front/image", odom="wheel/odom", points="lidar/points", camera_info="front/camera_info")
"""Not the defaults."""
T_BASE_TRACKER = make_pose(np.eye(3), [0.2, -0.4, 1.9]) @ exp_se3([0, 0, 0, 0.1, -0.2, 0.7])
Labels = Callable[[BagWriter, int], None]


def compressed(event: Event) -> Event:
    """The picture of an image event as a PNG."""
    raw = event.payload
    pixels = np.frombuffer(raw.data, np.uint8).reshape(raw.height, raw.width, 3)
    _, content = cv2.imencode(".png", pixels[:, :, ::-1])
    return Event(EventKind.IMAGE, event.stamp_ns, EncodedImage(event.stamp_ns, raw.frame_id, "png", content.tobytes()))


def write_drive(path: Path, label: Labels, seconds: float = 5.0, mounts: tuple[StaticTransform, ...] = ()) -> Path:
    """A drive with compressed images, labelled at 10 Hz."""
    with BagWriter(path, TOPICS) as writer:
        events = worlds.drive(seconds)
        fixed = [event.payload for event in events if event.kind is EventKind.STATIC_TRANSFORM]
        writer.write_static_transforms([*fixed, *mounts], worlds.START_NS)
        for event in events:
            if event.kind is EventKind.STATIC_TRANSFORM:
                continue
            writer.write(compressed(event) if event.kind is EventKind.IMAGE else event)
            if event.kind is EventKind.IMAGE:
                label(writer, event.stamp_ns)
    return path


def as_odometry(topic: str, body: str, T_base_body: Array) -> Labels:
    build = MessageBuilder(typestore().types)

    def label(writer: BagWriter, stamp_ns: int) -> None:
        sample = OdometrySample(stamp_ns, "world", body, worlds.true_pose(stamp_ns) @ T_base_body)
        writer.write_message(topic, build.event(Event(EventKind.ODOMETRY, stamp_ns, sample)), stamp_ns)

    return label


def as_pose_with_covariance(topic: str, T_base_body: Array) -> Labels:
    def label(writer: BagWriter, stamp_ns: int) -> None:
        writer.write_pose(topic, stamp_ns, "world", worlds.true_pose(stamp_ns) @ T_base_body, np.eye(6))

    return label


def as_pose(topic: str, T_base_body: Array) -> Labels:
    build = MessageBuilder(typestore().types)

    def label(writer: BagWriter, stamp_ns: int) -> None:
        name = "geometry_msgs/msg/PoseStamped"
        pose = build.pose(worlds.true_pose(stamp_ns) @ T_base_body)
        writer.write_message(
            topic, (name, build.make(name, header=build.header(stamp_ns, "world"), pose=pose)), stamp_ns
        )

    return label


TRACKER = StaticTransform("base_link", "tracker", T_BASE_TRACKER)


def quaternion_list(T: Array) -> list[float]:
    return [*T[:3, 3].tolist(), *(float(value) for value in quaternion_from_pose(T))]


LABELS: dict[str, tuple[Labels, tuple[StaticTransform, ...], dict[str, Any]]] = {
    "odometry of the base": (as_odometry("/truth", "base_link", np.eye(4)), (), {}),
    "odometry of a tracker, on /tf_static": (as_odometry("/truth", "tracker", T_BASE_TRACKER), (TRACKER,), {}),
    "odometry of a tracker, by hand": (
        as_odometry("/truth", "tracker", T_BASE_TRACKER), (), {"base_to_truth": quaternion_list(T_BASE_TRACKER)},
    ),
    "pose of the base": (as_pose("/truth", np.eye(4)), (), {}),
    "pose of a tracker, named": (as_pose("/truth", T_BASE_TRACKER), (TRACKER,), {"truth_frame": "tracker"}),
    "pose with covariance of a tracker, by hand": (
        as_pose_with_covariance("/truth", T_BASE_TRACKER), (), {"base_to_truth": quaternion_list(T_BASE_TRACKER)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", LABELS)
def test_every_label_places_the_camera(tmp_path: Path, kind: str) -> None:
    label, mounts, options = LABELS[kind]
    bag = write_drive(tmp_path / "drive", label, 2.0, mounts)
    (recording,) = open_any("bag", bag, TOPICS, {"truth_topic": "/truth", **options})
    frames = list(labelled_frames(recording, LocalizerConfig()))
    assert len(frames) > 15
    for item in frames:
        expected = worlds.true_pose(item.frame.stamp_ns) @ worlds.T_BASE_CAMERA
        error = inverse(expected) @ item.T_map_camera
        assert np.abs(error - np.eye(4)).max() < (1e-6 if item.frame.rgb is not None else 0.02)
    said = str(recording.card()["label"])
    assert "/truth" in said
    assert ("tracker" in said) == ("odometry of a tracker" in kind or "truth_frame" in options)


def test_a_label_that_cannot_be_used_is_explained(tmp_path: Path) -> None:
    bag = write_drive(tmp_path / "drive", as_odometry("/truth", "tracker", T_BASE_TRACKER), 1.0)
    (recording,) = open_any("bag", bag, TOPICS, {})
    with pytest.raises(DatasetError) as raised:
        recording.truth()
    text = str(raised.value)
    assert "no topic /ground_truth" in text
    assert "truth_topic: /truth [nav_msgs/msg/Odometry] x10, /wheel/odom [nav_msgs/msg/Odometry] x20" in text
    (recording,) = open_any("bag", bag, TOPICS, {"truth_topic": "/truth"})
    with pytest.raises(DatasetError, match=r"poses of 'tracker', and its place on 'base_link' .*base_to_truth"):
        recording.truth()
    with pytest.raises(DatasetError, match=r"no option 'truth'; it has .*truth_topic"):
        open_any("bag", bag, TOPICS, {"truth": "/truth"})
    silent = tmp_path / "silent"
    with BagWriter(silent, TOPICS) as writer:
        writer.write(worlds.camera_info(worlds.START_NS))
    with pytest.raises(DatasetError, match=r"No topic could serve .*it holds /front/camera_info"):
        BagRecording(silent, TOPICS).truth()


def test_broken_messages_count_as_broken(tmp_path: Path) -> None:
    bag = write_drive(tmp_path / "whole", as_pose("/truth", np.eye(4)), 2.0)
    with BagWriter(tmp_path / "drive") as writer:
        for message in BagReader(bag).messages():
            cut = message.topic == "/lidar/points" and message.log_ns // 100_000_000 % 3 == 0
            writer.write_raw(message.topic, message.msgtype, message.data[: 40 if cut else None], message.log_ns)
    (recording,) = open_any("bag", tmp_path / "drive", TOPICS, {"truth_topic": "truth"})
    list(labelled_frames(recording, LocalizerConfig()))
    broken = [skip for skip in recording.skips.everything().values() if skip.broken]
    assert len(broken) == 1
    assert 0 < broken[0].count < 20
    assert recording.file_count() == recording.event_count()


def test_from_a_drive_to_a_trajectory(tmp_path: Path) -> None:
    """Train on a bag, measure with it, localize in it: the commands of docs/train-your-own.md."""
    bag = write_drive(tmp_path / "drive", as_odometry("/truth", "tracker", T_BASE_TRACKER), 5.0, (TRACKER,))
    sensors = {"topics": TOPICS.model_dump()}
    recipe = tmp_path / "recipe.yaml"
    data = {"format": "bag", "options": {"truth_topic": "/truth"}, "hold_out": ["3-4.9"]}
    values = {**TINY, "data": data, "localizer": sensors, "optimizer": {"epochs": 1, "batch_size": 8}}
    recipe.write_text(yaml.safe_dump(values))
    model = run_train(recipe, bag, tmp_path / "model")
    card = load_card(model)
    assert card.training["recordings"] == ["drive"]
    assert card.frames["label"] == "/truth: poses of tracker, base base_link"
    report = run_evaluate(model, bag, "bag", device="cpu", out=tmp_path / "evaluation")  # topics as in training
    assert json.loads((tmp_path / "evaluation" / "report.json").read_text())["recordings"] == ["drive"]
    assert report["recordings"] == ["drive"]
    robot = tmp_path / "robot.yaml"
    robot.write_text(yaml.safe_dump({**sensors, "input": card.input.model_dump()}))
    result = run_localize(bag, model, tmp_path / "run", config=robot, plots=False, progress=False)
    assert result.counters["frames.inferred"] > 40
    assert (tmp_path / "run" / "fused.tum").is_file()
