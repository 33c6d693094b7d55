"""NaN, infinities and 1e308 in every number of every input, through the node over DDS."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs a ROS 2 client library")
pytest.importorskip("vmloc_msgs", reason="needs the message package vmloc_msgs")

from bad_numbers import BAD, message_of, places, put, spoiled_messages
from fault_bench import Extra, FaultBench, fault_bench
from fault_outcome import Outcome
from faulty_world import Faults, seconds_of
from tf2_msgs.msg import TFMessage
from worlds import RADIUS_M, SECOND, SPEED_M_PER_S, START_NS, camera_info, drive, mountings, true_pose

from vmloc_ros.types import Event, EventKind, InitialPose, OdometrySample

GOOD_M = 2.0


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultBench]:
    with fault_bench(tmp_path_factory.mktemp("node")) as bench:
        yield bench


def stamp(second: float) -> int:
    return START_NS + round(second * SECOND)


def finish(bench: FaultBench, fault: str, from_s: float = 1.0) -> Outcome:
    """Everything that was sent is accounted for, and the node never lost its way."""
    outcome = bench.end()
    outcome.check_outputs()
    outcome.check_counters()
    assert outcome.worst_m(from_s) < GOOD_M
    outcome.tell(fault, from_s, GOOD_M, within_s=0.3)
    return outcome


def full_odometry(second: float) -> Event:
    """A sample with everything that an Odometry can hold."""
    T_odom_base = np.linalg.solve(true_pose(START_NS), true_pose(stamp(second)))
    twist_6 = np.array([SPEED_M_PER_S, 0.0, 0.0, 0.0, 0.0, SPEED_M_PER_S / RADIUS_M])
    sample = OdometrySample(stamp(second), "odom", "base_link", T_odom_base, twist_6, np.diag([0.1] * 6))
    return Event(EventKind.ODOMETRY, sample.stamp_ns, sample)


def test_odometry(bench: FaultBench) -> None:
    """85 numbers: what is wrong with the pose refuses the sample, the rest is left out."""
    kinds = [(place, value) for place in places(message_of(full_odometry(0.0))) for value in BAD]
    extras = []
    for index, (place, value) in enumerate(kinds):
        second = 1.025 + 0.05 * index
        message = message_of(full_odometry(second))
        put(message, place, value)
        extras.append(Extra(second, EventKind.ODOMETRY, message))
    bench.begin()
    drives = drive(3.0 + 0.05 * len(kinds))
    exact = [full_odometry(seconds_of(e)) if e.kind is EventKind.ODOMETRY else e for e in drives]
    bench.play(exact, extras=extras)
    outcome = finish(bench, "a bad number in every odometry")
    poses = sum(place.startswith(("pose.pose.position", "pose.pose.orientation")) for place, _ in kinds)
    assert len(kinds) == 4 * 85
    assert outcome.counted["rejected.odom_not_finite"] + outcome.counted["odometry.not_finite"] == poses == 28
    assert outcome.counted["odometry.used"] == outcome.sent[EventKind.ODOMETRY] - 28


def test_camera_info(bench: FaultBench) -> None:
    """K, D, R and P: refused, and the good calibration before it stays."""
    spoiled = spoiled_messages(message_of(camera_info(START_NS)))
    extras = [Extra(1.01 + 0.05 * k, EventKind.CAMERA_INFO, message) for k, (_, message) in enumerate(spoiled)]
    bench.begin()
    bench.play(drive(9.0), extras=extras)
    outcome = finish(bench, "a bad number in every camera_info")
    assert outcome.counted["rejected.camera_info_not_finite"] >= 3 * 35


def test_initial_pose(bench: FaultBench) -> None:
    """A pose set by hand that is not one is not set."""
    pose = InitialPose(stamp(3.0), "map", true_pose(stamp(3.0)), np.diag([0.25] * 6))
    spoiled = spoiled_messages(message_of(Event(EventKind.INITIAL_POSE, pose.stamp_ns, pose)))
    extras = [Extra(3.01 + 0.02 * k, EventKind.INITIAL_POSE, message) for k, (_, message) in enumerate(spoiled)]
    bench.begin()
    bench.play(drive(8.0), extras=extras)
    bench.say("filter", "rejected.initialpose_not_finite", "not finite")
    outcome = finish(bench, "a bad number in every /initialpose")
    assert len(extras) == 4 * 43
    assert outcome.counted["initialpose.used"] == 0
    assert outcome.total("rejected.initialpose_") == len(extras)


def test_mountings(bench: FaultBench) -> None:
    """A mounting that is none does not replace the one that is."""
    extras = [Extra(3.01 + 0.02 * k, EventKind.STATIC_TRANSFORM, m) for k, m in enumerate(spoiled_mountings())]
    bench.begin()
    bench.play(drive(6.0), extras=extras)
    bench.say("transforms", "rejected.tf_static_not_finite", "not finite")
    outcome = finish(bench, "a bad number in every /tf_static")
    assert outcome.counted["rejected.tf_static_not_finite"] == len(extras) == 4 * 14


def spoiled_mountings() -> list[TFMessage]:
    """Both mountings, with a bad number each."""
    messages = []
    for event in mountings():
        (transform,) = message_of(event).transforms
        messages += [TFMessage(transforms=[spoiled]) for _, spoiled in spoiled_messages(transform)]
    return messages


def test_points(bench: FaultBench) -> None:
    """Clouds of NaN, of infinities and of 3e38 m: depth is absent, and the image is enough."""
    values = [np.nan, np.inf, -np.inf, np.float32(3e38)]
    events = []
    for index, event in enumerate(drive(6.0)):
        if event.kind is EventKind.CLOUD and 2.0 <= (event.stamp_ns - START_NS) / SECOND < 4.0:
            xyz = np.frombuffer(event.payload.data, np.float32).copy()
            xyz[(index // 5) % 2 :: 1 + (index // 5) % 2] = values[index % 4]
            event = replace(event, payload=replace(event.payload, data=xyz.tobytes()))
        events.append(event)
    bench.begin()
    bench.play(events)
    outcome = finish(bench, "bad numbers in every cloud for 2 s")
    assert outcome.counted["rejected.depth_empty"] > 0
    assert outcome.counted["verdict.fused"] == len(outcome.frames) == 60


def test_answers_of_the_network(bench: FaultBench) -> None:
    """The network's own pose or covariance, also of the very first answers."""
    parts = [(part, number) for part in ("pose", "covariance") for number in ("nan", "inf", "-inf", "1e308")]
    spoiled = [(round(begin + 0.1 * k, 1), *item) for begin in (0.0, 3.0) for k, item in enumerate(parts)]
    bench.begin(Faults(spoiled=tuple(spoiled)))
    bench.play(drive(6.0))
    bench.say("filter", "verdict.not_finite")
    outcome = finish(bench, "bad numbers in the network's answers", from_s=1.3)
    assert outcome.counted["verdict.not_finite"] == len(spoiled)
