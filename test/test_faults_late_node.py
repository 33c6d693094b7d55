"""A network that is slow, through the node over DDS: its answers are of the past, and may be of a time that is gone."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest

pytest.importorskip("rclpy", reason="needs a ROS 2 client library")
pytest.importorskip("vmloc_msgs", reason="needs the message package vmloc_msgs")

from fault_bench import FaultBench, fault_bench
from faulty_world import Faults
from worlds import drive

GOOD_M = 2.0


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultBench]:
    """A node whose network is slow: one frame may wait."""
    with fault_bench(tmp_path_factory.mktemp("slow"), {"model": {"max_pending_frames": 1}}) as bench:
        yield bench


def test_answers_one_second_late(bench: FaultBench) -> None:
    """A pose belongs to its image's stamp, however late it comes. (At 8 m/s a second is 8 m.)"""
    speed = 4.0
    bench.begin(Faults(delay_s=1.0 / speed))
    bench.play(drive(14.0), speed, ahead_s=math.inf)
    bench.say("network", "frames.stale", "slower than the camera")
    outcome = bench.end()
    outcome.check_outputs()
    outcome.check_counters()
    assert outcome.counted["verdict.fused"] >= 8
    assert min(s.latency_ms for s in outcome.frames) >= 250.0
    assert max(outcome.off_m(pose) for pose in outcome.network) < 2.5
    outcome.tell("answers 1 s late, one a second", 0.0, GOOD_M, within_s=6.0)


def test_bag_loop_while_the_network_works(bench: FaultBench) -> None:
    """An answer of the first round comes after the reset: it is nothing to the second round."""
    bench.begin(Faults(delay_s=0.15))
    events, speed = drive(7.0), 5.0
    bench.play(events, speed, ahead_s=math.inf)
    bench.play(events, speed, ahead_s=math.inf)
    outcome = bench.end()
    outcome.check_outputs(falls=1)
    outcome.check_counters()
    assert outcome.counted["resets"] == 1
    assert outcome.counted["verdict.future"] == 0
    outcome.forget_first_round()
    outcome.tell("bag loop while the network works", 0.0, GOOD_M, within_s=6.0)
