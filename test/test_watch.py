"""A status in a few numbers, for a person and for a program."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from synthetic_run import make_log, true_pose

pytest.importorskip("rclpy", reason="needs a ROS 2 client library")
pytest.importorskip("vmloc_msgs", reason="needs the message package vmloc_msgs")

from vmloc_ros.errors import ConfigError
from vmloc_ros.ros.watch import run_watch, sight
from vmloc_ros.types import FusedState, Mode


def test_sight_of_a_pose() -> None:
    status = make_log().statuses[0]
    assert status.state is not None
    cov_66 = np.diag([0.04, 0.25, 0.01, 1.0, 1.0, 1.0])
    seen = sight(dataclasses.replace(status, state=FusedState(status.stamp_ns, true_pose(7.0), cov_66, np.eye(4))))
    assert (seen.x_m, seen.y_m, seen.z_m) == pytest.approx(tuple(true_pose(7.0)[:3, 3]))
    forward = true_pose(7.0)[:2, 0]
    assert seen.heading_deg == pytest.approx(np.degrees(np.arctan2(forward[1], forward[0])))
    assert seen.sigma_m == pytest.approx(0.5)
    assert json.loads(seen.json()) == dataclasses.asdict(seen)
    for word in (f"{seen.stamp_ns / 1e9:.3f}", "RGB_DEPTH", "fused", "sigma  0.50 m"):
        assert word in seen.line()


def test_sight_of_a_lost_localizer() -> None:
    seen = sight(dataclasses.replace(make_log().statuses[0], mode=Mode.LOST, state=None))
    assert "no pose" in seen.line()
    assert json.loads(seen.json())["x_m"] is None


def test_watching_has_an_end_also_when_nothing_comes() -> None:
    lines: list[str] = []
    assert run_watch("/nobody/status", duration_s=0.3, tell=lines.append) == 0
    assert lines == []
    with pytest.raises(ConfigError, match="duration"):
        run_watch(duration_s=0.0)
