"""What /diagnostics says of the odometry's model and of a filter that was pulled away."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("vmloc_msgs", reason="needs a ROS 2 client library and vmloc_msgs")

from vmloc_ros.config import FilterConfig, LocalizerConfig, ModelConfig
from vmloc_ros.odometry_model import prior_variances
from vmloc_ros.ros.diagnostics import Diagnostics, Snapshot
from vmloc_ros.ros.flow import FlowReport
from vmloc_ros.types import EventKind, Mode, Status, Verdict

INPUTS = (EventKind.IMAGE, EventKind.CAMERA_INFO, EventKind.CLOUD, EventKind.ODOMETRY)
FLOWS = {kind: FlowReport(100, 20.0, 20.0, 1.0, 0.01) for kind in INPUTS}
STATUS = Status(1, Mode.RGB_DEPTH, Verdict.FUSED, "", None, None, None, {}, 1.0, None, 0, 0.0, {}, {})  # all is well
TOPIC, BY_NETWORK = LocalizerConfig(), LocalizerConfig(model=ModelConfig(odometry="network"))
PRIOR = np.sqrt(prior_variances(FilterConfig()))


def part(reporter: Diagnostics, name: str, config: LocalizerConfig = TOPIC, **values: Any) -> Any:
    inputs = [kind for kind in INPUTS if kind is not EventKind.ODOMETRY or config is TOPIC]
    flows = {kind: FLOWS[kind] for kind in inputs}
    snapshot = Snapshot("active", flows=flows, topics={kind: f"/{kind.value}" for kind in inputs}, **values)
    array = reporter.report(snapshot, config, 0)
    return next(status for status in array.status if status.name.endswith(f": {name}"))


def values_of(status: Any) -> dict[str, str]:
    return {pair.key: pair.value for pair in status.values}


def test_the_odometrys_model_is_told_in_units_that_people_read() -> None:
    model = np.array([np.log(1.02), np.radians(1.5), np.radians(-0.01)])
    status = part(Diagnostics("localizer"), "odometry", odometry_model=(model, 0.1 * PRIOR))
    assert values_of(status)["scale"].startswith("1.0200 +- 0.0030")
    assert values_of(status)["heading_deg"].startswith("1.50 +-")
    assert values_of(status)["yaw_bias_deg_per_m"].startswith("-0.0100 +-")
    assert "far from" not in status.message


@pytest.mark.parametrize(("index", "cause"), [(0, "wheel radius"), (1, "mounting"), (2, "gyroscope")])
def test_an_odometry_far_from_what_was_allowed_is_a_warning(index: int, cause: str) -> None:
    model = np.zeros(3)
    model[index] = -4.0 * PRIOR[index]
    status = part(Diagnostics("localizer"), "odometry", odometry_model=(model, 0.1 * PRIOR))
    assert cause in status.message


def test_a_widened_state_is_a_warning_while_it_is_news() -> None:
    reporter = Diagnostics("localizer")
    assert "widened" not in part(reporter, "filter", counters={"widenings": 0}, last_status=STATUS).message
    status = part(reporter, "filter", counters={"widenings": 1}, last_status=STATUS)
    assert "the odometry must be wrong" in status.message
    for _ in range(20):
        last = part(reporter, "filter", counters={"widenings": 1}, last_status=STATUS)
    assert "the odometry must be wrong" not in last.message
    assert values_of(last)["widenings"] == "1"


def test_the_networks_odometry_has_its_rate_and_gaps_and_no_topic() -> None:
    reporter, flow = Diagnostics("localizer"), FlowReport(40, 9.5, 10.0, 0.95, 0.1)
    status = part(
        reporter, "odometry", BY_NETWORK, vo=flow, counters={"vo.motions": 40, "vo.gaps": 0, "motion.gaps": 1}
    )
    assert status.message == "ok"
    values = values_of(status)
    assert values["source"] == "network"
    assert values["vo.rate_hz"] == "9.50"
    assert (values["vo.motions"], values["motion.gaps"]) == ("40", "1")
    assert "topic" not in values
    status = part(reporter, "odometry", BY_NETWORK, vo=flow, counters={"vo.motions": 41, "vo.gaps": 2})
    assert status.message.startswith("2 gaps: frames too far apart")


def test_a_network_that_tells_no_motion_is_said() -> None:
    silent = FlowReport(40, 0.0, None, None, 4.0)
    never = FlowReport(0, 0.0, None, None, None)
    assert "for 4.0 s: see camera" in part(Diagnostics("localizer"), "odometry", BY_NETWORK, vo=silent).message
    status = part(Diagnostics("localizer"), "odometry", BY_NETWORK, vo=never)
    assert "no motion yet" in status.message
    assert int(status.level[0]) == 3


def test_a_refused_motion_is_said_in_its_own_words() -> None:
    said = {"vo": "the network's motion is refused: covariance is not finite"}
    flow = FlowReport(40, 9.5, 10.0, 0.95, 0.1)
    status = part(Diagnostics("localizer"), "odometry", BY_NETWORK, vo=flow, counters={"vo.refused": 1}, problems=said)
    assert said["vo"] in status.message


def test_beside_a_robots_odometry_the_networks_stands_with_the_network() -> None:
    flow = FlowReport(40, 9.5, 10.0, 0.95, 0.1)
    values = values_of(part(Diagnostics("localizer"), "network", vo=flow, counters={"vo.motions": 40}))
    assert (values["vo.motions"], values["vo.rate_hz"]) == ("40", "9.50")
    none = FlowReport(0, 0.0, None, None, None)
    assert not any(name.startswith("vo.") for name in values_of(part(Diagnostics("localizer"), "network", vo=none)))
