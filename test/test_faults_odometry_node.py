"""Faults of the odometry, through the node over DDS. `pytest -s` prints the rows of docs/faults.md."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs a ROS 2 client library")
pytest.importorskip("vmloc_msgs", reason="needs the message package vmloc_msgs")

from fault_bench import FaultBench, fault_bench
from fault_outcome import Outcome
from faulty_world import seconds_of, without
from worlds import RADIUS_M, SPEED_M_PER_S, drive

from vmloc_ros.geometry import Array, exp_se3, inverse
from vmloc_ros.types import Event, EventKind

GOOD_M = 2.0
FAULT_S = 4.0
"""When the faults begin: the filter is settled by then."""


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultBench]:
    with fault_bench(tmp_path_factory.mktemp("node")) as bench:
        yield bench


def spoiled(events: list[Event], change: Callable[[float, Array], Array], from_s: float = FAULT_S) -> list[Event]:
    """The drive with another pose in the odometry from some time on."""
    return [
        replace(e, payload=replace(e.payload, T_odom_base=change(seconds_of(e), e.payload.T_odom_base)))
        if e.kind is EventKind.ODOMETRY and seconds_of(e) >= from_s - 1e-6
        else e
        for e in events
    ]


def odometry_at(events: list[Event], second: float) -> Array:
    """`T_odom_base` of the first sample at or after a time of the drive."""
    return next(e.payload.T_odom_base for e in events if e.kind is EventKind.ODOMETRY and seconds_of(e) > second - 1e-6)


def run(bench: FaultBench, events: list[Event]) -> Outcome:
    """Plays a drive and holds what came out against the laws."""
    bench.begin()
    bench.play(events)
    outcome = bench.end()
    outcome.check_outputs()
    outcome.check_counters()
    outcome.check_transforms(events)
    return outcome


def test_jump_of_five_metres(bench: FaultBench) -> None:
    """Refused and bridged; `map -> odom` takes it up at once, and the robot does not move by it."""
    leap = exp_se3([5.0, 0.0, 0.0, 0.0, 0.0, 0.0])
    outcome = run(bench, spoiled(drive(9.0), lambda second, pose: leap @ pose))
    bench.say("odometry", "odometry.jump")
    assert outcome.counted["odometry.jump"] == 1
    assert outcome.worst_m(FAULT_S) < GOOD_M
    outcome.tell("odometry jumps by 5 m", FAULT_S, GOOD_M, within_s=0.1)


def test_restart_at_the_origin(bench: FaultBench) -> None:
    events = drive(9.0)
    back = inverse(odometry_at(events, FAULT_S))
    outcome = run(bench, spoiled(events, lambda second, pose: back @ pose))
    bench.say("odometry", "odometry.jump")
    assert outcome.counted["odometry.jump"] == 1
    assert outcome.worst_m(FAULT_S) < GOOD_M
    outcome.tell("odometry restarts at its origin", FAULT_S, GOOD_M, within_s=0.1)


@pytest.mark.parametrize("catches_up", [False, True], ids=["goes on from there", "catches up"])
def test_frozen_for_four_seconds(bench: FaultBench, catches_up: bool) -> None:
    """The same pose again and again while the robot drives on: the network leads. Then the odometry goes on, from the
    pose where it stood or from where it would have been."""
    events = drive(13.0)
    stuck = odometry_at(events, FAULT_S)
    again = np.eye(4) if catches_up else stuck @ inverse(odometry_at(events, 8.0))
    outcome = run(bench, spoiled(events, lambda second, pose: stuck if second < 7.99 else again @ pose))
    bench.say("odometry", "odometry.frozen")
    assert outcome.counted["odometry.frozen"] > 40
    how = "catches up" if catches_up else "goes on from there"
    outcome.tell(f"odometry frozen for 4 s, then {how}", FAULT_S, GOOD_M, within_s=6.0)


def test_erratic_for_three_seconds(bench: FaultBench) -> None:
    """A visual odometry that has lost its track: every pose is off by metres, each by others."""
    rng = np.random.default_rng(0)

    def change(second: float, pose: Array) -> Array:
        return pose @ exp_se3([*rng.normal(0.0, 3.0, 2), 0.0, 0.0, 0.0, 0.0]) if second < FAULT_S + 3.0 else pose

    outcome = run(bench, spoiled(drive(12.0), change))
    bench.say("odometry", "odometry.erratic")
    assert outcome.counted["odometry.jump"] > 20
    assert outcome.counted["odometry.erratic"] > 0
    assert outcome.counted["odometry.used"] > 100  # believed again
    assert outcome.worst_m(FAULT_S) < 6.0
    outcome.tell("odometry erratic for 3 s", FAULT_S, GOOD_M, within_s=6.0)


def test_silent_for_four_seconds(bench: FaultBench) -> None:
    """Without odometry there is no TF; with it both are back."""
    events = without(drive(13.0), [EventKind.ODOMETRY], FAULT_S, 8.0)
    outcome = run(bench, events)
    bench.say("odometry", "odometry.gap")
    assert outcome.counted["odometry.gap"] == 1
    assert not len(outcome.errors(FAULT_S, 8.0))
    assert outcome.counted["verdict.fused"] > 120
    outcome.tell("odometry silent for 4 s", 8.0, GOOD_M, within_s=0.5)


def test_not_finite_for_two_seconds(bench: FaultBench) -> None:
    """Every pose holds a NaN."""
    nan = np.full((4, 4), np.nan)
    nan[:3, :3] = np.eye(3)
    outcome = run(bench, spoiled(drive(9.0), lambda second, pose: nan if second < 6.0 else pose))
    bench.say("odometry", "rejected.odom_not_finite")
    assert outcome.counted["rejected.odom_not_finite"] == 40
    outcome.tell("odometry NaN for 2 s", 6.0, GOOD_M, within_s=0.5)


def with_twist(events: list[Event], stuck_from_s: float) -> list[Event]:
    """The drive with the true twist in its odometry, and a pose that does not move from some time on."""
    twist_6 = np.array([SPEED_M_PER_S, 0.0, 0.0, 0.0, 0.0, SPEED_M_PER_S / RADIUS_M])
    stuck = odometry_at(events, stuck_from_s)
    moving = [
        replace(e, payload=replace(e.payload, twist_6=twist_6)) if e.kind is EventKind.ODOMETRY else e for e in events
    ]
    return spoiled(moving, lambda second, pose: stuck, stuck_from_s)


@pytest.mark.parametrize("stuck_from_s", [0.0, FAULT_S], ids=["from the begin", "in mid-drive"])
def test_twist_only(bench: FaultBench, stuck_from_s: float) -> None:
    """A driver that fills the twist alone: the pose stays the identity, or stops."""
    outcome = run(bench, with_twist(drive(14.0), stuck_from_s))
    bench.say("odometry", "odometry.twist_only")
    assert outcome.counted["odometry.twist_only"] > 140
    assert outcome.counted["odometry.jump"] == 0
    outcome.tell(f"odometry with a twist alone from {stuck_from_s:g} s on", stuck_from_s, GOOD_M, within_s=3.0)
