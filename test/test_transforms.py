"""What goes to /tf, message by message: stamps, frames, limited corrections, and what a reset does."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tf2_msgs", reason="needs ROS 2 messages")
pytest.importorskip("vmloc_msgs", reason="needs the message package vmloc_msgs")

from hypothesis import given
from hypothesis import strategies as st
from tf2_msgs.msg import TFMessage
from worlds import SECOND, SPEED_M_PER_S, START_NS, ScriptedLocalizer, drive, odometry

from vmloc_ros.config import LocalizerConfig, OutputConfig
from vmloc_ros.geometry import Array, exp_se3, make_pose, pose_from_quaternion
from vmloc_ros.messages import stamp_ns
from vmloc_ros.pipeline import Pipeline
from vmloc_ros.ros.transforms import LATE_NS, TransformSender
from vmloc_ros.types import EventKind, FusedState, OdometrySample


@dataclass
class Bench:
    """A sender with a clock that the test sets, and what it has sent."""

    output: dict[str, Any] = field(default_factory=dict)
    now_ns: int = 0
    messages: list[TFMessage] = field(default_factory=list)

    def __post_init__(self) -> None:
        config = LocalizerConfig(output=OutputConfig(**self.output))
        self.sender = TransformSender(self.messages.append, config, lambda: self.now_ns)

    def send(self, stamp: int, x: float = 0.0, odometry: float = 1.0, bridged: bool = False) -> bool:
        """Whether a state with `map -> odom` at x and the robot at `odometry` in odom led to a message."""
        before = len(self.messages)
        self.sender.send([fused(stamp, x, odometry)], bridged=bridged)
        return len(self.messages) > before

    @property
    def transforms(self) -> list[Any]:
        return [transform for message in self.messages for transform in message.transforms]

    @property
    def stamps(self) -> list[int]:
        return [stamp_ns(transform.header.stamp) for transform in self.transforms]

    @property
    def x(self) -> float:
        """Of the last transform."""
        return float(self.transforms[-1].transform.translation.x)


def fused(stamp: int, x: float = 0.0, odometry: float = 1.0) -> FusedState:
    T_map_odom, T_map_base = make_pose(np.eye(3), [x, 0, 0]), make_pose(np.eye(3), [x + odometry, 0, 0])
    return FusedState(stamp, T_map_base, np.eye(6), T_map_odom)


def pose_of(transform: Any) -> Array:
    t, q = transform.translation, transform.rotation
    return pose_from_quaternion([t.x, t.y, t.z], [q.x, q.y, q.z, q.w])


# ------------------------------------------------------------------------------------------------------- what, and when


@given(st.lists(st.integers(1, 20), max_size=30))
def test_a_stamp_is_never_repeated_and_never_goes_backwards(stamps: list[int]) -> None:
    bench = Bench()
    for stamp in stamps:
        bench.send(stamp)
    assert bench.stamps == sorted(set(bench.stamps))
    assert len(bench.stamps) + bench.sender.withheld["stamp"] == len(stamps)
    assert bench.stamps == [s for k, s in enumerate(stamps) if s > max(stamps[:k], default=0)]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("kind", ["map_odom", "map_base"])
@pytest.mark.parametrize("limit", [0.0, 0.5])
def test_nothing_that_is_not_finite_is_sent_and_nothing_is_spoilt_by_it(bad: float, kind: str, limit: float) -> None:
    bench = Bench({"publish_tf": kind, "max_correction_m_per_s": limit})
    assert not bench.send(START_NS, bad)
    assert bench.send(START_NS)
    assert not bench.send(START_NS + SECOND, odometry=bad)
    assert bench.sender.withheld == {"not_finite": 2}
    assert bench.send(START_NS + SECOND, 0.1)
    assert all(np.isfinite(pose_of(transform.transform)).all() for transform in bench.transforms)


def test_which_transforms_are_sent_is_configured() -> None:
    sample = OdometrySample(10, "odom", "base_link", exp_se3([1, 0, 0, 0, 0, 0]))
    foreign = OdometrySample(11, "odom", "wheel", exp_se3([1, 0, 0, 0, 0, 0]))

    def pairs(**output: object) -> list[tuple[str, str]]:
        bench = Bench(output)
        bench.sender.send([fused(10)], sample)
        bench.sender.send([], foreign)
        return [(t.header.frame_id, t.child_frame_id) for t in bench.transforms]

    assert pairs() == [("map", "odom")]
    assert pairs(publish_odom_tf=True) == [("map", "odom"), ("odom", "base_link")]
    assert pairs(publish_tf="map_base") == [("map", "base_link")]
    assert pairs(publish_tf="none") == []
    assert pairs(publish_tf="none", publish_odom_tf=True) == [("odom", "base_link")]


# ----------------------------------------------------------------------------------------------------- the node's clock


def test_what_is_ahead_of_the_nodes_clock_is_withheld_and_counted_and_sent_once_the_clock_has_come() -> None:
    bench = Bench({"future_tolerance_s": 0.5}, now_ns=START_NS)
    assert bench.send(START_NS + SECOND // 2)
    assert not bench.send(START_NS + SECOND // 2 + 1)
    assert bench.sender.withheld == {"future": 1}
    bench.now_ns += SECOND
    assert bench.send(START_NS + SECOND // 2 + 1), "withheld before, so no repetition"


def test_a_clock_that_does_not_run_yet_says_nothing() -> None:
    bench = Bench({"future_tolerance_s": 0.0}, now_ns=0)
    assert bench.send(START_NS)
    assert not bench.sender.withheld


def test_odometry_from_the_future_is_withheld_as_well() -> None:
    bench = Bench({"publish_odom_tf": True, "publish_tf": "none"}, now_ns=START_NS)
    bench.sender.send([], OdometrySample(START_NS + 2 * SECOND, "odom", "base_link", np.eye(4)))
    assert not bench.messages
    assert bench.sender.withheld == {"future": 1}


def test_what_is_withheld_earns_no_time_for_corrections_and_loses_none() -> None:
    """The limit follows what was sent: neither a withheld stamp nor its pose leaves a trace in it."""
    bench = Bench({"max_correction_m_per_s": 0.5}, now_ns=START_NS + SECOND)
    bench.send(START_NS)
    assert not bench.send(START_NS, 4.0)
    assert not bench.send(START_NS + 3 * SECOND, 4.0)
    assert bench.send(START_NS + SECOND, 4.0)
    assert bench.x == pytest.approx(0.5)


# -------------------------------------------------------------------------------------------------- limited corrections


@given(st.lists(st.tuples(st.integers(1, 400), st.floats(-20.0, 20.0)), min_size=1, max_size=30))
def test_map_to_odom_and_map_to_base_show_the_same_robot(steps: list[tuple[int, float]]) -> None:
    to_odom, to_base = (Bench({"publish_tf": k, "max_correction_m_per_s": 1.0}) for k in ("map_odom", "map_base"))
    stamp, odometry = START_NS, 0.0
    for milliseconds, x in steps:
        stamp, odometry = stamp + milliseconds * 1_000_000, odometry + 0.3
        for bench in (to_odom, to_base):
            assert bench.send(stamp, x, odometry)
        assert to_odom.x + odometry == pytest.approx(to_base.x, abs=1e-9)


@pytest.mark.parametrize("how", ["clear", "interrupt"])
def test_after_a_reset_or_a_loss_the_first_pose_is_shown_at_once(how: str) -> None:
    bench = Bench({"max_correction_m_per_s": 0.5})
    bench.send(START_NS)
    bench.send(START_NS + SECOND, 4.0)
    assert bench.x == pytest.approx(0.5)
    getattr(bench.sender, how)()
    bench.send(START_NS + SECOND, 4.0)
    assert bench.x == pytest.approx(0.5), "a repeated stamp is still withheld"
    bench.send(START_NS + SECOND + 1, 4.0)
    assert bench.x == pytest.approx(4.0)


def test_after_a_silence_in_which_the_robot_was_lost_the_first_pose_is_shown_at_once() -> None:
    lost_after_s = LocalizerConfig().filter.lost_odometry_gap_s
    bench = Bench({"max_correction_m_per_s": 0.5})
    bench.send(START_NS)
    bench.send(START_NS + round(lost_after_s * SECOND), 4.0)
    assert bench.x == pytest.approx(0.5 * lost_after_s)
    bench.send(START_NS + round(2.1 * lost_after_s * SECOND), 4.0)
    assert bench.x == pytest.approx(4.0)


def test_an_odometry_jump_that_the_filter_bridged_does_not_move_the_robot_on_tf() -> None:
    bench = Bench({"max_correction_m_per_s": 0.5})
    bench.send(START_NS, odometry=10.0)
    bench.send(START_NS + SECOND // 10, x=10.5, odometry=0.3, bridged=True)  # 10.0 -> 10.8 in the map
    assert bench.x + 0.3 == pytest.approx(10.8)


def test_what_the_pipeline_bridges_does_not_move_the_robot_on_tf() -> None:
    """The odometry's origin jumps by 3.6 m, which would glide at this limit: through the whole pipeline."""
    bench, pipeline = Bench({"max_correction_m_per_s": 0.5}), Pipeline(LocalizerConfig(), ScriptedLocalizer())
    shown, jump = [], make_pose(np.eye(3), [3.0, -2.0, 0.0])
    for event in drive(6.0):
        if event.kind is EventKind.ODOMETRY and event.stamp_ns >= START_NS + 4 * SECOND:
            event = odometry(event.stamp_ns, jump @ event.payload.T_odom_base)
        outputs = pipeline.add(event)
        outputs.extend(pipeline.drain())
        bench.sender.send(outputs.states, None, outputs.bridged)
        shown += [pose_of(bench.transforms[-1].transform) @ event.payload.T_odom_base for _ in outputs.states]
    assert pipeline.finish().statuses[-1].counters["odometry.jump"] == 1
    steps = [float(np.linalg.norm(after[:3, 3] - before[:3, 3])) for before, after in pairwise(shown)]
    assert len(steps) > 100
    assert max(steps) < 2.0 * SPEED_M_PER_S / 20.0


# ------------------------------------------------------------------------------------------------------------- resets


def test_a_reset_lets_an_old_time_begin_but_no_late_message_through() -> None:
    """A bag that loops starts seconds earlier. After the reset service time goes on, and a message that came late must
    not send the transform's stamp backwards."""
    bench = Bench()
    bench.send(START_NS)
    bench.sender.clear()
    assert not bench.send(START_NS - LATE_NS)
    assert not bench.send(START_NS)
    assert bench.send(START_NS - 5 * SECOND)
    assert bench.send(START_NS - LATE_NS), "the new time passes the old one"
    assert bench.send(START_NS)
    assert not bench.send(START_NS - 5 * SECOND), "one reset is one step back"


Action = tuple[str, int, float]


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("send"), st.integers(-8000, 8000), st.sampled_from([0.0, 3.0, float("nan")])),
            st.tuples(st.sampled_from(["clear", "interrupt"]), st.just(0), st.just(0.0)),
            st.tuples(st.just("clock"), st.integers(-8000, 8000), st.just(0.0)),
        ),
        max_size=60,
    )
)
def test_whatever_comes_tf_is_clean(actions: list[Action]) -> None:
    """Finite, never ahead of the clock, one step back at most for every reset, and everything accounted for."""
    bench = Bench({"max_correction_m_per_s": 0.5, "future_tolerance_s": 1.0}, now_ns=START_NS)
    offered, resets, falls, last = 0, 0, 0, 0
    for what, milliseconds, x in actions:
        stamp = START_NS + milliseconds * 1_000_000
        if what == "clock":
            bench.now_ns = stamp
        elif what == "send":
            offered += 1
            if bench.send(stamp, x):
                assert stamp <= bench.now_ns + SECOND
                assert stamp != last
                if stamp < last:
                    falls += 1
                    assert falls <= resets
                    assert last - stamp > LATE_NS
                last = stamp
        else:
            resets += what == "clear"
            getattr(bench.sender, what)()
    assert all(np.isfinite(pose_of(transform.transform)).all() for transform in bench.transforms)
    assert len(bench.messages) + sum(bench.sender.withheld.values()) == offered
    assert sum(after < before for before, after in pairwise(bench.stamps)) == falls
