"""The node of a robot that has a camera alone, over real DDS: the network's odometry, and the map's predicted view."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs a ROS 2 client library")
pytest.importorskip("vmloc_msgs", reason="needs the message package vmloc_msgs")

from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseWithCovarianceStamped
from nav_msgs.msg import Odometry
from ros_graph import Graph, running_node, wait_until
from sensor_msgs.msg import Image
from tf2_msgs.msg import TFMessage
from vmloc_msgs.msg import LocalizationStatus
from worlds import T_BASE_CAMERA, drive, true_pose

from vmloc_ros.config import LocalizerConfig, ModelConfig, OutputConfig
from vmloc_ros.errors import ConfigError
from vmloc_ros.geometry import Array, adjoint, inverse, pose_from_quaternion
from vmloc_ros.messages import stamp_ns
from vmloc_ros.ros.localizer_node import check_transforms
from vmloc_ros.types import EventKind

CAMERA_ALONE = {
    "model": {"path": "moving", "odometry": "network"},
    "input": {"depth_source": "none"},
    "output": {"publish_odom_tf": True, "predicted_view_rate_hz": 1000.0},
}


@pytest.fixture
def graph() -> Iterator[Graph]:
    graph = Graph()
    yield graph
    graph.close()


def matrix(position: Any, orientation: Any) -> Array:
    return pose_from_quaternion(
        [position.x, position.y, position.z], [orientation.x, orientation.y, orientation.z, orientation.w]
    )


def error_m(stamp: int, T_map_base: Array) -> float:
    return float(np.linalg.norm(T_map_base[:3, 3] - true_pose(stamp)[:3, 3]))


def test_a_camera_alone_is_localized_by_the_networks_odometry(graph: Graph, tmp_path: Path) -> None:
    tf = graph.collect(TFMessage, "/tf")
    vo = graph.collect(Odometry, "/localizer/vo")
    poses = graph.collect(PoseWithCovarianceStamped, "/localizer/pose")
    views = graph.collect(Image, "/localizer/predicted_view")
    statuses = graph.collect(LocalizationStatus, "/localizer/status")
    diagnostics = graph.collect(DiagnosticArray, "/diagnostics")
    kinds = (EventKind.ODOMETRY, EventKind.CLOUD)
    with running_node(tmp_path, CAMERA_ALONE) as node:
        wait_until(lambda: graph.node.count_publishers("/localizer/vo") == 1, "the node")
        wait_until(lambda: graph.node.count_subscribers("/image") == 1, "the subscription to /image")
        assert graph.node.count_subscribers("/odom") == 0
        graph.play([event for event in drive(6.0) if event.kind not in kinds])
        wait_until(lambda: len([s for s in statuses if s.is_frame]) == 60, "60 frames")
        wait_until(lambda: "vo.motions" in str(lines(diagnostics, "odometry")[-1:]), "the odometry in the diagnostics")
        assert node.end() == 0, node.output()
    assert len(vo) == 60
    assert {(o.header.frame_id, o.child_frame_id) for o in vo} == {("odom", "base_link")}
    assert [stamp_ns(o.header.stamp) for o in vo] == sorted({stamp_ns(o.header.stamp) for o in vo})
    twists = np.array([[o.twist.twist.linear.x, o.twist.twist.angular.z] for o in vo[1:]])
    np.testing.assert_allclose(twists.mean(axis=0), [8.0, 0.2], atol=0.1)
    lever = adjoint(T_BASE_CAMERA) @ np.diag([0.02**2] * 3 + [0.002**2] * 3) @ adjoint(T_BASE_CAMERA).T
    np.testing.assert_allclose(np.reshape(vo[-1].twist.covariance, (6, 6)), lever / 0.1, atol=1e-9)
    spread = [np.linalg.det(np.reshape(o.pose.covariance, (6, 6))) for o in vo]
    assert all(after > before for before, after in pairwise(spread[1:]))
    assert vo[0].twist.covariance[0] == -1.0
    by_child: dict[str, dict[int, Array]] = {"odom": {}, "base_link": {}}
    parents = {"odom": "map", "base_link": "odom"}
    for transform in (t for message in tf for t in message.transforms):
        assert transform.header.frame_id == parents[transform.child_frame_id]
        T = matrix(transform.transform.translation, transform.transform.rotation)
        by_child[transform.child_frame_id][stamp_ns(transform.header.stamp)] = T
    assert len(by_child["base_link"]) == 60
    assert len(poses) == len(by_child["odom"]) > 50
    for pose in poses:
        stamp, T_map_base = stamp_ns(pose.header.stamp), matrix(pose.pose.pose.position, pose.pose.pose.orientation)
        np.testing.assert_allclose(by_child["odom"][stamp] @ by_child["base_link"][stamp], T_map_base, atol=1e-6)
    late = [(stamp_ns(p.header.stamp), matrix(p.pose.pose.position, p.pose.pose.orientation)) for p in poses[-30:]]
    assert np.mean([error_m(stamp, T) for stamp, T in late]) < 1.0
    assert {s.verdict for s in statuses[20:] if s.is_frame} == {"fused"}
    expected = {stamp_ns(s.header.stamp): s.pose.pose for s in statuses if s.is_frame and s.has_pose}
    assert len(views) > 30
    for view in views:
        assert (view.encoding, view.height, view.width, view.header.frame_id) == ("rgb8", 8, 12, "camera_optical")
        seen = expected[stamp_ns(view.header.stamp)]
        camera = matrix(seen.position, seen.orientation) @ T_BASE_CAMERA
        np.testing.assert_array_equal(list(view.data[:3]), np.round(camera[:3, 3]) + 100.0)


def lines(arrays: list[DiagnosticArray], part: str) -> list[Any]:
    return [line for array in arrays for line in array.status if line.name == f"localizer: {part}"]


def test_beside_a_robots_odometry_vo_comes_as_well_and_no_transform_of_it(graph: Graph, tmp_path: Path) -> None:
    tf = graph.collect(TFMessage, "/tf")
    vo = graph.collect(Odometry, "/localizer/vo")
    statuses = graph.collect(LocalizationStatus, "/localizer/status")
    with running_node(tmp_path, {"model": {"path": "moving"}}) as node:
        graph.play(drive(2.0))
        wait_until(lambda: len(vo) == 20, "20 poses of the network's odometry")
        wait_until(lambda: len([s for s in statuses if s.is_frame]) == 20, "20 frames")
        assert node.end() == 0, node.output()
    assert {t.child_frame_id for message in tf for t in message.transforms} == {"odom"}
    exact = inverse(true_pose(stamp_ns(vo[0].header.stamp))) @ true_pose(stamp_ns(vo[-1].header.stamp))
    last = matrix(vo[-1].pose.pose.position, vo[-1].pose.pose.orientation)
    assert np.linalg.norm(last[:3, 3] - exact[:3, 3]) < 1.0


def test_a_model_without_motions_cannot_be_the_odometry(tmp_path: Path) -> None:
    parameters = {"model": {"path": "scripted", "odometry": "network"}, "output": {"publish_odom_tf": True}}
    with running_node(tmp_path, parameters) as node:
        assert node.process.wait(timeout=60.0) == 1
        assert "scripted has no odometry of its own" in node.output()
        assert "Traceback" not in node.output()


def test_a_map_to_odom_that_would_lead_nowhere_is_refused() -> None:
    model = ModelConfig(odometry="network")
    with pytest.raises(ConfigError, match="broadcasts odom -> base_link: set output.publish_odom_tf to true"):
        check_transforms(LocalizerConfig(model=model))
    check_transforms(LocalizerConfig(model=model, output=OutputConfig(publish_odom_tf=True)))
    check_transforms(LocalizerConfig(model=model, output=OutputConfig(publish_tf="map_base")))
    check_transforms(LocalizerConfig())
    with pytest.raises(ConfigError, match="two parents"):
        check_transforms(LocalizerConfig(output=OutputConfig(publish_tf="map_base", publish_odom_tf=True)))
