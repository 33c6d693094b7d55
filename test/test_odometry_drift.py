"""VLocNet's Table III: percent of translation and degrees per metre, on drives whose drift is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmloc_ros.errors import TrajectoryError
from vmloc_ros.geometry import Array, exp_se3, make_pose
from vmloc_ros.odometry_drift import (
    Stretch,
    default_lengths,
    held_velocity_drift,
    lengths_for,
    mean_motion_drift,
    mean_twist,
    odometry_drift,
    true_twists,
)

STEP_NS = 100_000_000
FORWARD = np.array([8.0, 0.0, 0.0, 0.0, 0.0, 0.0])


def driven(twists_N6: Array) -> Array:
    """Poses (N + 1, 4, 4) of a body that moves by each twist for 0.1 s."""
    poses = [np.eye(4)]
    for twist in twists_N6:
        poses.append(poses[-1] @ exp_se3(0.1 * twist))
    return np.array(poses)


def stretch(true_N6: Array, odom_N6: Array) -> Stretch:
    return Stretch(1_000 + STEP_NS * np.arange(len(true_N6) + 1), driven(true_N6), driven(odom_N6))


def wandering(count: int, seed: int) -> Array:
    """Twists of a drive that changes its speed and its direction."""
    rng = np.random.default_rng(seed)
    changes = np.cumsum(rng.normal(0.0, [0.3, 0.02, 0.02, 0.005, 0.005, 0.05], (count, 6)), axis=0)
    return FORWARD + changes


@settings(max_examples=10)
@given(st.integers(0, 1000))
def test_a_perfect_odometry_has_no_drift_whatever_its_frame(seed: int) -> None:
    twists = wandering(80, seed)
    T_other = exp_se3(np.random.default_rng(seed).normal(size=6))
    one = stretch(twists, twists)
    drift = odometry_drift([Stretch(one.stamps_ns, one.T_true_N44, T_other @ one.T_odom_N44)])
    assert drift.translation_percent == pytest.approx(0.0, abs=1e-9)
    assert drift.rotation_deg_per_m == pytest.approx(0.0, abs=1e-5)


@pytest.mark.parametrize("scale", [0.9, 1.02, 2.0])
def test_a_wrong_scale_is_that_many_percent(scale: float) -> None:
    twists = np.tile(FORWARD, (200, 1))
    drift = odometry_drift([stretch(twists, scale * twists)], (10.0, 50.0, 1000.0))
    assert drift.translation_percent == pytest.approx(100.0 * abs(scale - 1.0))
    assert drift.translation_percent_by == (pytest.approx(100.0 * abs(scale - 1.0)),) * 2 + (None,)
    assert drift.rotation_deg_per_m == pytest.approx(0.0, abs=1e-6)
    assert drift.segments[2] == 0


@pytest.mark.parametrize("degrees_per_m", [0.05, -0.5])
def test_a_yaw_bias_is_that_many_degrees_per_metre(degrees_per_m: float) -> None:
    twists = np.tile(FORWARD, (100, 1))
    turning = twists + np.array([0, 0, 0, 0, 0, np.deg2rad(degrees_per_m) * FORWARD[0]])
    drift = odometry_drift([stretch(twists, turning)], (5.0, 20.0))
    assert drift.rotation_deg_per_m_by == (pytest.approx(abs(degrees_per_m)), pytest.approx(abs(degrees_per_m)))
    assert drift.translation_percent_by[0] is not None
    assert drift.translation_percent_by[1] is not None
    assert drift.translation_percent_by[0] < drift.translation_percent_by[1]  # to the side it grows with the square


def test_every_segment_of_a_length_counts_once_and_none_crosses_a_gap() -> None:
    twists = np.tile(FORWARD, (100, 1))  # 0.8 m a step
    one = odometry_drift([stretch(twists, twists)], (8.0, 16.0))
    assert one.segments == (91, 81)
    two = odometry_drift([stretch(twists[:50], twists[:50]), stretch(twists[50:], twists[50:])], (8.0, 16.0))
    assert two.segments == (82, 62)
    assert two.report()["segments"] == 144


def test_the_mean_over_all_lengths_counts_every_segment_alike() -> None:
    true, odom = wandering(120, 1), wandering(120, 2)
    drift = odometry_drift([stretch(true, odom)])
    values = [value for value in drift.translation_percent_by if value is not None]
    weighted = sum(v * n for v, n in zip(values, drift.segments, strict=False)) / sum(drift.segments)
    assert drift.translation_percent == pytest.approx(weighted)


def test_constant_velocity_guesses_are_exact_where_the_velocity_is_constant() -> None:
    twist = np.array([8.0, 0.1, 0.0, 0.01, 0.0, 0.2])
    one = stretch(np.tile(twist, (120, 1)), wandering(120, 3))
    assert mean_twist([one]) == pytest.approx(twist)
    assert true_twists(one) == pytest.approx(np.tile(twist, (121, 1)))
    for drift in (mean_motion_drift([one], mean_twist([one], 2.0)), held_velocity_drift([one])):
        assert drift.translation_percent == pytest.approx(0.0, abs=1e-6)
        assert drift.rotation_deg_per_m == pytest.approx(0.0, abs=1e-4)


def test_the_beginning_alone_is_guessed_from() -> None:
    twists = np.concatenate([np.tile(FORWARD, (20, 1)), np.tile(2.0 * FORWARD, (60, 1))])
    one = stretch(twists, twists)
    assert mean_twist([one], 2.0) == pytest.approx(FORWARD)
    assert mean_twist([one]) == pytest.approx(1.75 * FORWARD)
    slow = mean_motion_drift([one], mean_twist([one], 2.0), (4.0,))
    assert slow.translation_percent is not None
    assert 25.0 < slow.translation_percent < 50.0  # right at first, half of the way later
    held = held_velocity_drift([one], (4.0,))
    assert held.translation_percent is not None
    assert held.translation_percent < 0.2 * slow.translation_percent  # wrong only across the change


@given(st.floats(0.05, 1e5))
def test_default_lengths_fit_the_path(path_m: float) -> None:
    lengths = default_lengths(path_m)
    assert len(lengths) == 8
    assert lengths[-1] <= path_m
    assert np.diff(lengths) == pytest.approx(np.full(7, lengths[0]))


def test_default_lengths_of_a_room_a_street_and_kitti() -> None:
    assert default_lengths(17.0) == pytest.approx([1, 2, 3, 4, 5, 6, 7, 8])
    assert default_lengths(0.9) == pytest.approx([0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4])
    assert default_lengths(385.0) == pytest.approx([10, 20, 30, 40, 50, 60, 70, 80])
    assert default_lengths(30_000.0)[-1] == pytest.approx(800.0)


def test_what_cannot_be_measured_is_refused() -> None:
    still = np.tile(np.eye(4), (3, 1, 1))
    with pytest.raises(TrajectoryError, match="nothing has moved"):
        lengths_for([Stretch(np.arange(3), still, still)])
    with pytest.raises(TrajectoryError, match="two stamps at least"):
        Stretch(np.arange(1), still[:1], still[:1])
    with pytest.raises(TrajectoryError, match="increase"):
        Stretch(np.array([1, 1, 2]), still, still)
    with pytest.raises(TrajectoryError, match="positive"):
        odometry_drift([stretch(wandering(9, 0), wandering(9, 0))], (0.0,))
    with pytest.raises(TrajectoryError, match="no motion"):
        mean_twist([])


def test_a_body_that_turns_on_the_spot_has_no_way() -> None:
    turned = np.array([make_pose(exp_se3([0, 0, 0, 0, 0, 0.1 * k])[:3, :3], np.zeros(3)) for k in range(5)])
    with pytest.raises(TrajectoryError, match="no length"):
        odometry_drift([Stretch(np.arange(5), turned, turned)])
