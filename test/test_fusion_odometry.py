"""Faults of odometry: each is detected, counted and survived; the increment is refused or widened, never believed."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from filter_events import (
    PLAIN,
    T_MAP_ODOM,
    assert_same,
    at,
    error_m,
    filled,
    measurement,
    odometry,
    truth,
)
from hypothesis import given
from hypothesis import strategies as st

from vmloc_ros.config import FilterConfig, FrameNames
from vmloc_ros.fusion import Fusion, OdometryVerdict
from vmloc_ros.geometry import Array, exp_se3, inverse
from vmloc_ros.increments import JUMPS_REMEMBERED, Segment, count_jumps
from vmloc_ros.types import OdometrySample, Verdict

USED = OdometryVerdict.USED


def drive_on(
    fusion: Fusion, spoil: Callable[[float, Array], Array | None], until_s: float = 10.0, measure: bool = True
) -> list[OdometryVerdict]:
    """Drives on from 5 s with spoiled odometry and exact measurements; None: no sample."""
    verdicts = []
    for k in range(101, round(until_s / 0.05) + 1):
        seconds = 0.05 * k
        pose = spoil(seconds, truth(seconds))
        if pose is not None:
            verdicts.append(fusion.add_odometry(odometry(seconds, pose)))
        if measure and k % 4 == 0:
            fusion.add_measurement(measurement(seconds))
    return verdicts


@pytest.mark.parametrize(
    "jump", [[5.0, 0, 0, 0, 0, 0], [0, 5.0, 0, 0, 0, 0], [500.0, 0, 0, 0, 0, 2.0], [0, 0, 0, 0, 0, 3.0]]
)
def test_jump(jump: list[float]) -> None:
    """A jump of the odometry is refused, not followed; `odom` then means another frame, and map -> odom takes it up."""
    fusion = filled()
    offset = exp_se3(jump)
    verdicts = drive_on(fusion, lambda seconds, pose: offset @ pose if seconds > 6.0 else pose, measure=False)
    assert verdicts.count(OdometryVerdict.JUMP) == 1
    assert error_m(fusion.state(), 10.0) < 0.5  # bridged by the velocity before it
    fusion.add_measurement(measurement(9.9))
    state = fusion.state()
    assert state is not None
    np.testing.assert_allclose(state.T_map_odom @ offset, T_MAP_ODOM, atol=0.1)
    assert fusion.odometry.oldest_ns is not None
    fusion.flush()
    assert fusion.counters()["odometry.jump"] == 1


def test_restart_at_the_origin() -> None:
    fusion = filled()
    start = inverse(truth(6.0))
    verdicts = drive_on(fusion, lambda seconds, pose: start @ pose if seconds >= 6.0 else pose, measure=False)
    assert verdicts.count(OdometryVerdict.JUMP) == 1
    assert error_m(fusion.state(), 10.0) < 0.5
    assert fusion.odometry.pose_at(at(5.95)) is None  # nobody compares poses across the restart


def test_a_single_wild_sample() -> None:
    fusion = filled()
    wild = exp_se3([80.0, 0, 0, 0, 0, 0])
    drive_on(fusion, lambda seconds, pose: wild @ pose if abs(seconds - 6.0) < 0.01 else pose, measure=False)
    assert error_m(fusion.state(), 10.0) < 0.5
    fusion.flush()
    assert fusion.counters()["odometry.jump"] == 2


def test_a_frozen_source() -> None:
    """The same pose again and again at 8 m/s: not believed for long, and the measurements lead."""
    fusion = filled()
    frozen = truth(6.0)
    verdicts = drive_on(fusion, lambda seconds, pose: frozen if seconds > 6.0 else pose)
    assert OdometryVerdict.FROZEN in verdicts
    assert error_m(fusion.state(), 10.0) < 2.0


def test_a_frozen_source_that_catches_up() -> None:
    """What it missed has been bridged and measured already: the increment that catches up is refused."""
    fusion = filled()
    verdicts = drive_on(fusion, lambda seconds, pose: truth(6.0) if 6.0 <= seconds < 9.0 else pose)
    assert verdicts.count(OdometryVerdict.JUMP) == 1
    assert OdometryVerdict.FROZEN in verdicts
    assert error_m(fusion.state(), 10.0) < 0.5


def by_twist(seconds: float, linear: float = 8.0) -> OdometrySample:
    """A sample whose pose never changes, and whose twist tells the drive."""
    sample = odometry(seconds, np.eye(4))
    return replace(sample, twist_6=np.array([linear, 0.0, 0.0, 0.0, 0.0, 0.2]))


def test_twist_only() -> None:
    """Detected, counted, and the twist is used, with wider noise, as long as the pose stands still."""
    fusion = Fusion(PLAIN, FrameNames())
    fusion.add_odometry(by_twist(0.0))
    fusion.add_measurement(measurement(0.0))
    for k in range(1, 41):
        fusion.add_odometry(by_twist(0.05 * k))
    fusion.add_measurement(measurement(2.0))
    before = fusion.state()
    assert before is not None
    verdicts = [fusion.add_odometry(by_twist(2.0 + 0.05 * k)) for k in range(1, 101)]
    assert set(verdicts) == {OdometryVerdict.TWIST_ONLY}
    assert error_m(fusion.state(), 7.0) < 0.5
    believed = filled(PLAIN, 7.0, every=1000).state()
    state = fusion.state()
    assert believed is not None
    assert state is not None
    assert state.cov_66[0, 0] > before.cov_66[0, 0]
    fusion.flush()
    assert fusion.counters()["odometry.twist_only"] >= 100


def test_a_pose_that_comes_alive_after_twist_only_is_not_driven_twice() -> None:
    fusion = Fusion(PLAIN, FrameNames())
    fusion.add_odometry(by_twist(0.0))
    for k in range(1, 101):
        fusion.add_odometry(by_twist(0.05 * k))
        if k % 4 == 0:
            fusion.add_measurement(measurement(0.05 * k))
    assert fusion.add_odometry(odometry(5.05)) is OdometryVerdict.JUMP
    assert error_m(fusion.state(), 5.05) < 1.0


@pytest.mark.parametrize(
    "twist", [[1e308] * 6, [61.0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 1e4], [np.nan] * 6, [np.inf] * 6]
)
def test_an_impossible_twist_is_never_driven_by(twist: list[float]) -> None:
    """Beside a pose that stands: nothing moves, and nothing that is not finite gets in."""
    fusion = Fusion(PLAIN, FrameNames())
    fusion.add_odometry(odometry(0.0, np.eye(4)))
    fusion.add_measurement(measurement(0.0))
    for k in range(1, 60):
        sample = replace(odometry(0.05 * k, np.eye(4)), twist_6=np.array(twist))
        assert fusion.add_odometry(sample) is OdometryVerdict.USED
    state = fusion.state()
    assert state is not None
    np.testing.assert_allclose(state.T_map_base, T_MAP_ODOM, atol=1e-9)
    assert np.isfinite(state.cov_66).all()


def test_a_standing_robot_that_says_so_is_not_twist_only() -> None:
    fusion = Fusion(PLAIN, FrameNames())
    samples = [replace(odometry(0.05 * k, np.eye(4)), twist_6=np.zeros(6)) for k in range(100)]
    assert {fusion.add_odometry(sample) for sample in samples} == {OdometryVerdict.USED}


def erratic(seconds: float, pose: Array, rng: np.random.Generator) -> Array:
    """Between 6 and 9 s every pose is off by metres, each by others."""
    return pose @ exp_se3([*rng.normal(0.0, 3.0, 2), 0.0, 0.0, 0.0, 0.0]) if 6.0 <= seconds < 9.0 else pose


def test_an_erratic_odometry_is_not_believed_between_its_jumps() -> None:
    """A visual odometry that has lost its track: some of its increments look sound. The measurements lead."""
    fusion, rng, errors = filled(), np.random.default_rng(0), []
    verdicts = []
    for k in range(101, 261):
        seconds = 0.05 * k
        verdicts.append(fusion.add_odometry(odometry(seconds, erratic(seconds, truth(seconds), rng))))
        if k % 4 == 0:
            fusion.add_measurement(measurement(seconds))
        errors.append(error_m(fusion.state(), seconds))
    assert verdicts.count(OdometryVerdict.JUMP) > 20
    assert OdometryVerdict.ERRATIC in verdicts
    assert max(errors) < 4.0  # a quarter of a second at 8 m/s, and twice that
    calm = [seconds for seconds, verdict in zip(np.arange(101, 261) * 0.05, verdicts, strict=True) if verdict is USED]
    assert min(seconds for seconds in calm if seconds > 9.0) < 11.0
    assert error_m(fusion.state(), 13.0) < 0.2


def test_a_jump_and_back_is_not_erratic() -> None:
    fusion = filled()
    wild = exp_se3([80.0, 0, 0, 0, 0, 0])
    verdicts = drive_on(fusion, lambda seconds, pose: wild @ pose if abs(seconds - 6.0) < 0.01 else pose, measure=False)
    assert OdometryVerdict.ERRATIC not in verdicts


@given(st.lists(st.tuples(st.floats(0.0, 10.0), st.booleans()), max_size=30))
def test_the_count_of_jumps_fades_and_is_bounded(steps: list[tuple[float, bool]]) -> None:
    count = 0.0
    for elapsed_s, jumped in steps:
        before, count = count, count_jumps(count, elapsed_s, jumped)
        assert 0.0 <= count <= min(before + jumped, JUMPS_REMEMBERED)
    assert count_jumps(count, 60.0, False) < 1e-9


def test_a_stop_is_not_frozen() -> None:
    fusion = filled()
    pose, speed, seconds = truth(5.0), 8.0, 5.0
    for _ in range(200):
        seconds, speed = seconds + 0.05, max(speed - 0.3, 0.0)
        pose = pose @ exp_se3([0.05 * speed, 0, 0, 0, 0, 0])
        assert fusion.add_odometry(odometry(seconds, pose)) is OdometryVerdict.USED


def test_the_same_pose_twice_is_no_motion() -> None:
    """Exactly, wherever the robot is: the product of a pose with its inverse has rounding in it on some processors."""
    for k in range(200):
        pose = truth(0.37 * k)
        segment = Segment(odometry(0.0, pose), odometry(0.05, pose.copy()), PLAIN)
        assert segment.repeated
        assert segment.metres == 0.0
        assert segment.radians == 0.0
    assert not Segment(odometry(0.0), odometry(1e-6), PLAIN).repeated


def test_poses_repeated_by_a_fast_publisher_are_not_faults() -> None:
    """A driver that updates at 4 Hz and is published at 20 Hz gives steps; the distance comes out right."""
    fusion = filled()
    verdicts = drive_on(fusion, lambda seconds, pose: truth(math.floor(4 * seconds + 1e-6) / 4), measure=False)
    assert set(verdicts) <= {OdometryVerdict.USED, OdometryVerdict.JUMP}
    assert verdicts.count(OdometryVerdict.JUMP) <= 1
    assert error_m(fusion.state(), 10.0) < 1.0


def test_silence_is_bridged_and_widened() -> None:
    fusion, steady = filled(), filled()
    verdicts = drive_on(fusion, lambda seconds, pose: pose if seconds > 7.01 else None, measure=False)
    drive_on(steady, lambda seconds, pose: pose, measure=False)
    assert verdicts[0] is OdometryVerdict.GAP
    assert set(verdicts[1:]) == {OdometryVerdict.USED}
    gap, plain = fusion.state(), steady.state()
    assert gap is not None
    assert plain is not None
    assert gap.cov_66[0, 0] > plain.cov_66[0, 0] + 9.0
    assert error_m(gap, 10.0) < 0.1


def test_measurements_lead_while_the_odometry_is_silent() -> None:
    fusion = filled(FilterConfig())
    drive_on(fusion, lambda seconds, pose: None, until_s=20.0)
    state = fusion.state()
    assert state is not None
    assert error_m(state, 20.0) < 2.0
    assert not fusion.is_lost(at(20.0))
    assert fusion.add_odometry(odometry(20.05)) in (OdometryVerdict.GAP, OdometryVerdict.FUTURE)
    fusion.add_odometry(odometry(20.1))
    assert error_m(fusion.state(), 20.1) < 2.0


def test_both_silent_for_ten_seconds() -> None:
    fusion = filled(FilterConfig())
    assert fusion.is_lost(at(15.0))
    verdicts = [fusion.add_odometry(odometry(15.0 + 0.05 * k)) for k in range(5)]
    assert verdicts[:2] == [OdometryVerdict.FUTURE, OdometryVerdict.GAP]  # one sample alone is not believed
    assert fusion.add_measurement(measurement(15.2)).verdict is Verdict.FUSED
    assert not fusion.is_lost(at(15.2))
    assert error_m(fusion.state(), 15.2) < 0.6


@pytest.mark.parametrize(("frame", "child"), [("map", "base_link"), ("odom", "base_footprint"), ("", "")])
def test_odometry_of_another_frame(frame: str, child: str) -> None:
    fusion = filled()
    before = fusion.state()
    verdict = fusion.add_odometry(replace(odometry(5.05), frame_id=frame, child_frame_id=child))
    assert verdict is OdometryVerdict.WRONG_FRAME
    assert_same(fusion.state(), before, 0.0)


def test_odometry_twice_at_one_stamp() -> None:
    """The repeated sample counts once; of two that differ the same one wins in either order."""
    other = truth(5.05) @ exp_se3([0.01, 0.0, 0.0, 0.0, 0.0, 0.0])
    states = []
    for poses in ((truth(5.05), other), (other, truth(5.05))):
        fusion = filled()
        fusion.add_measurement(measurement(5.02))
        verdicts = [fusion.add_odometry(odometry(5.05, pose)) for pose in poses]
        assert verdicts == [OdometryVerdict.USED, OdometryVerdict.DUPLICATE]
        fusion.add_odometry(odometry(5.1))
        states.append(fusion.state())
    assert_same(states[0], states[1], 1e-12)


def test_twist_covariance() -> None:
    config = PLAIN.model_copy(update={"use_twist_covariance": True})
    grown = []
    for cov in (None, np.zeros((6, 6)), np.full((6, 6), np.nan), np.diag([4.0] * 3 + [0.04] * 3)):
        fusion = filled(config)
        fusion.add_odometry(replace(odometry(5.05), twist_cov_66=cov))
        state = fusion.state()
        assert state is not None
        grown.append(state.cov_66[0, 0])
    assert grown[0] == grown[1] == grown[2]  # empty or broken: the parameters
    assert grown[3] == pytest.approx(grown[0] + 4.0 * 0.05, rel=0.2)
