"""The monitor: exactly what measurements have corrected, wherever the robot is and however it drives."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmloc_ros.config import MonitorConfig
from vmloc_ros.geometry import Array, exp_se3, rotation_angle
from vmloc_ros.monitor import KEPT, Difference, Monitor

SECOND = 1_000_000_000
CONFIG = MonitorConfig(window_s=2.0)
DT_NS = SECOND // 20

tangents = st.lists(st.floats(-2.0, 2.0), min_size=6, max_size=6)
directions = st.lists(st.floats(-1.0, 1.0), min_size=3, max_size=3).filter(lambda v: float(np.linalg.norm(v)) > 0.1)


def drive(seed: int, count: int) -> list[Array]:
    """`T_odom_base` of a robot that moves in all six degrees of freedom."""
    rng = np.random.default_rng(seed)
    poses = [exp_se3(rng.normal(size=6))]
    for _ in range(count - 1):
        poses.append(poses[-1] @ exp_se3(rng.normal(size=6) * np.array([0.4, 0.1, 0.1, 0.02, 0.02, 0.1])))
    return poses


def watched(
    odometry: list[Array],
    T_map_odom: Callable[[int], Array],
    monitor: Monitor | None = None,
    jumps: tuple[int, ...] = (),
) -> tuple[Monitor, list[Difference | None]]:
    """A monitor that was shown a drive, and what it said after every sample; `T_map_odom` is the filter's by sample."""
    monitor = monitor or Monitor(CONFIG)
    said = []
    for k, T_odom_base in enumerate(odometry):
        if k in jumps:
            monitor.exclude()
        monitor.add(SECOND + k * DT_NS, T_map_odom(k) @ T_odom_base, T_odom_base)
        said.append(monitor.difference)
    return monitor, said


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), tangents)
def test_poses_that_follow_the_odometry_differ_by_nothing(seed: int, start: list[float]) -> None:
    T_map_odom = exp_se3(start)
    monitor, said = watched(drive(seed, 90), lambda k: T_map_odom)
    assert said[0] is None
    last = said[-1]
    assert last is not None
    assert (last.metres, last.radians) == (pytest.approx(0.0, abs=1e-9), pytest.approx(0.0, abs=1e-9))
    assert last.span_s == pytest.approx(CONFIG.window_s)
    assert (monitor.exceeded, monitor.count) == (False, 0)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), directions, st.floats(0.0, 20.0), st.integers(1, 79))
def test_a_correction_shows_as_what_it_is_whatever_the_robot_drives(
    seed: int, direction: list[float], metres: float, when: int
) -> None:
    shift = np.eye(4)
    shift[:3, 3] = metres * np.array(direction) / np.linalg.norm(direction)
    monitor, said = watched(drive(seed, 80), lambda k: shift if k >= when else np.eye(4))
    window = round(CONFIG.window_s * SECOND / DT_NS)
    for k, difference in enumerate(said[1:], start=1):
        assert difference is not None
        expected = metres if when <= k < when + window else 0.0
        assert difference.metres == pytest.approx(expected, abs=1e-8)
        assert difference.radians == pytest.approx(0.0, abs=1e-8)
    assert monitor.count == (metres > CONFIG.max_difference_m)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), tangents, tangents)
def test_neither_the_choice_of_the_map_nor_of_the_odometrys_frame_matters(
    seed: int, turn_map: list[float], turn_odom: list[float]
) -> None:
    rng = np.random.default_rng(seed)
    odometry = drive(seed, 60)
    filter_s = [exp_se3(0.1 * rng.normal(size=6)) for _ in odometry]
    T_map, T_odom = exp_se3(turn_map), exp_se3(turn_odom)
    _, said = watched(odometry, lambda k: filter_s[k])
    _, elsewhere = watched([T_odom @ T for T in odometry], lambda k: T_map @ filter_s[k] @ np.linalg.inv(T_odom))
    for one, other in zip(said[1:], elsewhere[1:], strict=True):
        assert one is not None
        assert other is not None
        assert other.metres == pytest.approx(one.metres, abs=1e-8)
        assert other.radians == pytest.approx(one.radians, abs=1e-7)


def test_a_turn_is_measured_at_the_robots_place() -> None:
    """`map -> odom` turns about a far origin: the robot stays where it is, and only turns."""
    far = np.eye(4)
    far[:3, 3] = 1000.0, 500.0, 0.0
    about_robot = far @ exp_se3([0, 0, 0, 0, 0, 0.3]) @ np.linalg.inv(far)
    monitor, said = watched([far] * 10, lambda k: about_robot if k >= 5 else np.eye(4))
    assert said[-1] is not None
    assert said[-1].metres == pytest.approx(0.0, abs=1e-9)
    assert said[-1].radians == pytest.approx(0.3)
    assert monitor.exceeded


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), tangents, st.integers(1, 78))
def test_a_jump_of_the_odometry_is_excluded_and_a_correction_after_it_is_not(
    seed: int, jump: list[float], when: int
) -> None:
    true, T_jump = drive(seed, 80), exp_se3(jump)
    odometry = [T_jump @ T if k >= when else T for k, T in enumerate(true)]
    correction = np.eye(4)
    correction[:3, 3] = 0.0, 3.0, 4.0

    def held(k: int) -> Array:  # the filter bridges the jump, and is corrected by 5 m at the end
        T = np.linalg.inv(T_jump) if k >= when else np.eye(4)
        return correction @ T if k == 79 else T

    _, said = watched(odometry, held, jumps=(when,))
    for difference in said[1:79]:
        assert difference is not None
        assert difference.metres == pytest.approx(0.0, abs=1e-8)
        assert difference.radians == pytest.approx(0.0, abs=1e-7)
    assert said[79] is not None
    assert said[79].metres == pytest.approx(5.0)
    _, believed = watched(odometry, held)
    assert believed[when] is not None
    assert believed[when].radians == pytest.approx(rotation_angle(np.eye(3), T_jump[:3, :3]), abs=1e-7)


def test_memory_is_bounded_and_a_fast_odometry_shows_the_same() -> None:
    monitor, shift = Monitor(CONFIG), exp_se3([0, 4.0, 0, 0, 0, 0])
    for k in range(20_000):  # at 2 kHz
        monitor.add(SECOND + k * SECOND // 2000, shift if k >= 18_000 else np.eye(4), np.eye(4))
    assert len(monitor._poses) <= KEPT + 1
    assert monitor.difference is not None
    assert monitor.difference.metres == pytest.approx(4.0)
    assert monitor.difference.span_s == pytest.approx(CONFIG.window_s, rel=2.0 / KEPT)


def test_it_starts_anew_after_a_silence_and_when_told_and_passes_over_what_is_not_newer() -> None:
    monitor, far = Monitor(CONFIG), exp_se3([50.0, 0, 0, 0, 0, 0])
    monitor.add(SECOND, np.eye(4), np.eye(4))
    monitor.add(SECOND + 1, far, np.eye(4))
    assert monitor.exceeded
    monitor.add(SECOND, np.eye(4), np.eye(4))
    assert monitor.exceeded
    monitor.add(4 * SECOND, np.eye(4), np.eye(4))  # of a silence of 3 s nothing is known
    assert (monitor.difference, monitor.exceeded, monitor.count) == (None, False, 1)
    monitor.add(5 * SECOND, far, np.eye(4))
    assert (monitor.exceeded, monitor.count) == (True, 2)
    monitor.clear()
    monitor.add(SECOND, np.eye(4), np.eye(4))  # an earlier time: the clock has started over
    assert (monitor.difference, monitor.exceeded, monitor.count) == (None, False, 2)
