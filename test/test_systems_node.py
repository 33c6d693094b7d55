"""Every system on the same rails: each is trained by changing one configuration, and localizes the same drive as a node
over DDS."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from geometry_msgs.msg import PoseWithCovarianceStamped
from ros_graph import Graph, running_node, wait_until
from sensor_msgs.msg import Image
from tiny_datasets import camera_pose, write_sequence
from vmloc_msgs.msg import LocalizationStatus

from vmloc_ros.commands.train import run_train
from vmloc_ros.config import TopicNames
from vmloc_ros.geometry import Array, inverse, pose_from_quaternion, rotation_angle
from vmloc_ros.images import decode_image
from vmloc_ros.recordings import open_any
from vmloc_ros.ros import qos
from vmloc_ros.types import Event, EventKind, OdometrySample, RawImage

FRAMES = 90
PERIOD_NS = 33_333_333
REGRESSION = {
    "modalities": ["rgb"], "width": 64, "height": 48, "channels": [12, 16, 24], "grid_rows": 2, "grid_columns": 3,
    "reduced": 16, "latent": 64, "fusion": "concatenation", "latent_activation": "relu", "attention": False,
    "hidden": 32, "dropout": 0.0,
}  # fmt: skip
SYSTEMS: dict[str, dict[str, Any]] = {
    "vmloc": {
        "network": {"width": 64, "height": 48, "channels": [12, 16, 24], "latent": 32, "hidden": 32, "dropout": 0.0},
        "objective": {"samples": 2, "importance_after": 1.0, "scales": "per_case", "presence_as": "weighted"},
        "localizer": {"input": {"depth_source": "depth"}},
    },
    "posenet17": {"network": REGRESSION},
    "atloc": {"network": REGRESSION | {"attention": True}},
    "mapnet_pgo": {
        "network": REGRESSION,
        "objective": {"samples": 1, "clip": {"frames": 2, "spacing": 1}, "relative": {"weight": 1.0}},
        "pose_graph": {"window": 5},
    },
    "vlocnet": {
        "network": {"architecture": "vlocnet", "width": 64, "height": 48, "channels": [12, 16, 24], "hidden": 64},
        "objective": {"clip": {"frames": 2}},
    },
    "generative_map": {
        "network": {
            "architecture": "generative_map", "width": 64, "height": 48, "picture_width": 32, "picture_height": 32,
            "latent": 24, "channels": 32, "pose_hidden": [64], "places": 128,
        },
    },
    "retrieval": {"network": {"architecture": "retrieval", "width": 64, "height": 48}},
    "scene_coordinates": {
        "network": {
            "architecture": "scene_coordinates", "width": 64, "height": 48, "channels": [12, 16, 24], "blocks": 1,
            "context": 8, "context_channels": [16], "context_rows": 2, "context_columns": 2, "hidden": [32],
        },
        "objective": {"presence": [0.4, 0.3, 0.3], "presence_as": "weighted"},
        "localizer": {"input": {"depth_source": "depth"}},
        "calibration": {"min_frames": 10},  # a frame may be refused
    },
}  # fmt: skip
DEPTH_UNTIL = {"vmloc": FRAMES, "scene_coordinates": 2 * FRAMES // 3}
"""The first frame whose depth is not sent; other systems are sent none."""
COMMON: dict[str, Any] = {
    "seed": 1,
    "data": {"format": "sevenscenes", "options": {"odometry": "none"}, "hold_out": ["20-29", "55-64"], "workers": 1},
    "localizer": {"input": {"depth_source": "none"}},
    "objective": {"samples": 1},
    "augmentation": {"noise": 0.01, "erase_chance": 0.0},
    "optimizer": {"epochs": 60, "batch_size": 8, "peak_learning_rate": 3e-3, "validate_every": 60},
}


@pytest.fixture(scope="module")
def drive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A slow walk along a wall."""
    folder = tmp_path_factory.mktemp("walk")
    write_sequence(folder, range(FRAMES))
    return folder


@pytest.fixture
def graph() -> Iterator[Graph]:
    graph = Graph()
    yield graph
    graph.close()


def train(name: str, drive: Path, folder: Path) -> Path:
    config = folder / f"{name}.yaml"
    config.write_text(yaml.safe_dump(COMMON | {"name": name} | SYSTEMS[name]))
    return run_train(config, drive, folder / name)


def events_of(drive: Path, odometry: bool, depth_until: int) -> list[Event]:
    """The drive as messages; its odometry is the truth, from where the walk began. Depth fails at some frame."""
    (recording,) = open_any("sevenscenes", drive, TopicNames(), {"odometry": "none"})
    events = [Event(EventKind.STATIC_TRANSFORM, 0, transform) for transform in recording.static_transforms()]
    truth = recording.truth()
    start = inverse(truth.poses_N44[0])
    for event in recording.events():
        if event.kind is EventKind.IMAGE and odometry:
            T_odom_base = start @ truth.interpolate(event.stamp_ns)
            sample = OdometrySample(event.stamp_ns, "odom", "base_link", T_odom_base)
            events.append(Event(EventKind.ODOMETRY, event.stamp_ns, sample))
        sent = event.kind is not EventKind.DEPTH or event.stamp_ns < truth.stamps_ns[0] + depth_until * PERIOD_NS
        if event.kind is not EventKind.TRUTH and sent:
            events.append(as_raw(event))
    return events


def as_raw(event: Event) -> Event:
    """Pictures as they come on the topic `image`."""
    if event.kind is not EventKind.IMAGE:
        return event
    rgb, frame = decode_image(event.payload), event.payload.frame_id
    rows, columns = rgb.shape[:2]
    raw = RawImage(event.stamp_ns, frame, rows, columns, "rgb8", 3 * columns, False, rgb.tobytes())
    return Event(EventKind.IMAGE, event.stamp_ns, raw)


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_node_with_each_system_localizes_the_same_drive(
    name: str, drive: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    model = train(name, drive, tmp_path)
    graph: Graph = request.getfixturevalue("graph")
    parameters: dict[str, Any] = {"model": {"path": str(model), "device": "cpu", "threads": 1}}
    if name == "vlocnet":
        parameters["model"]["odometry"] = "network"
        parameters["output"] = {"publish_odom_tf": True}
    statuses = graph.collect(LocalizationStatus, "/localizer/status")
    poses = graph.collect(PoseWithCovarianceStamped, "/localizer/network_pose")
    views = graph.collect(Image, "/localizer/predicted_view", qos.reliable(10))
    with running_node(tmp_path, parameters, trained=True) as node:
        node.wait_for("active")
        graph.play(events_of(drive, name != "vlocnet", DEPTH_UNTIL.get(name, 0)), speed=0.5)
        wait_until(lambda: len([s for s in statuses if s.verdict == "fused"]) > FRAMES // 2, "fused frames")
        assert node.end() == 0, node.output()
    errors = [error_of(message) for message in poses]
    assert np.median([m for m, _ in errors]) < 0.08, f"{name}: {np.median(errors, axis=0)} over a walk of 0.6 m"
    assert all(np.isfinite(message.pose.covariance).all() for message in poses)
    if name == "scene_coordinates":
        assert {s.mode for s in statuses if s.verdict == "fused"} == {"RGB_DEPTH", "RGB_ONLY"}
    if name == "generative_map":
        assert views
        assert views[-1].encoding == "rgb8"
        assert views[-1].width == 32


def error_of(message: PoseWithCovarianceStamped) -> tuple[float, float]:
    """Metres and radians; base_link is the camera turned, in its centre."""
    stamp = message.header.stamp.sec * 10**9 + message.header.stamp.nanosec
    index = round((stamp - 10**18) / 1e9 * 30.0)
    p, q = message.pose.pose.position, message.pose.pose.orientation
    T: Array = pose_from_quaternion([p.x, p.y, p.z], [q.x, q.y, q.z, q.w])
    truth = camera_pose(index)
    return float(np.linalg.norm(T[:3, 3] - truth[:3, 3])), rotation_angle(T[:3, :3], truth[:3, :3])
