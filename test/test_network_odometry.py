"""The chain of a network's motions: the law of products, holes, late frames, and covariances against Monte Carlo."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from worlds import MOTION_COV, SECOND, START_NS, T_BASE_CAMERA, true_motion, true_pose

from vmloc_ros.config import FilterConfig, FrameNames, LocalizerConfig, ModelConfig
from vmloc_ros.geometry import Array, adjoint, exp_se3, inverse, log_se3
from vmloc_ros.increments import Segment
from vmloc_ros.network_odometry import ChainedPose, NetworkOdometry, filter_of
from vmloc_ros.odometry import buffer_of
from vmloc_ros.types import CameraMotion

CONFIG = FilterConfig()


def chain(config: FilterConfig = CONFIG) -> NetworkOdometry:
    return NetworkOdometry(config, FrameNames())


def stamp(frame: int) -> int:
    return START_NS + frame * SECOND // 10


def driven(begin: int, end: int) -> Array:
    """The base's true motion between two frames."""
    return inverse(true_pose(stamp(begin))) @ true_pose(stamp(end))


def fed(odometry: NetworkOdometry, motions: list[CameraMotion | None]) -> list[ChainedPose]:
    return [pose for motion in motions for pose in odometry.add(motion, T_BASE_CAMERA)]


def motions_of(frames: list[int], seed: int | None = None) -> list[CameraMotion | None]:
    return [true_motion(stamp(a), stamp(b), seed) for a, b in pairwise(frames)]


def test_the_product_of_the_motions_is_the_pose_of_the_base() -> None:
    motions = motions_of(list(range(30)), seed=3)
    poses = fed(chain(), [None, *motions])
    assert [p.sample.stamp_ns for p in poses] == [stamp(k) for k in range(30)]
    assert {(p.sample.frame_id, p.sample.child_frame_id) for p in poses} == {("odom", "base_link")}
    product = np.eye(4)
    for pose, motion in zip(poses, [None, *motions], strict=True):
        if motion is not None:
            product = product @ motion.T_begin_end
        expected = T_BASE_CAMERA @ product @ inverse(T_BASE_CAMERA)
        np.testing.assert_allclose(pose.sample.T_odom_base, expected, atol=1e-9)


def test_the_twist_takes_the_base_along_the_motion_and_carries_its_covariance() -> None:
    (motion,) = motions_of([0, 3])
    first, last = fed(chain(), [motion])
    seconds = 0.3
    assert first.sample.twist_6 is None
    assert last.sample.twist_6 is not None
    assert last.sample.twist_cov_66 is not None
    np.testing.assert_allclose(exp_se3(last.sample.twist_6 * seconds), driven(0, 3), atol=1e-12)
    turn = adjoint(T_BASE_CAMERA)
    np.testing.assert_allclose(last.sample.twist_cov_66 * seconds, turn @ MOTION_COV @ turn.T, rtol=1e-12)
    variances = np.diagonal(turn @ MOTION_COV @ turn.T)
    segment = Segment(first.sample, last.sample, CONFIG.model_copy(update={"use_twist_covariance": True}))
    assert segment.metres2 == pytest.approx(variances[:3].mean()), "the filter reads back the motion's own variance"
    assert segment.radians2 == pytest.approx(variances[3:].mean())


def test_the_covariances_are_those_of_noisy_drives() -> None:
    """Of the whole way, and of its last increment: 1000 drives of 8 noisy motions against what the chain says."""
    frames = list(range(9))
    ends, steps, said = [], [], None
    for seed in range(1000):
        poses = fed(chain(), motions_of(frames, seed))
        ends.append(log_se3(inverse(driven(0, 8)) @ poses[-1].sample.T_odom_base))
        step = inverse(poses[-2].sample.T_odom_base) @ poses[-1].sample.T_odom_base
        steps.append(log_se3(inverse(driven(7, 8)) @ step))
        said = poses[-1]
    assert said is not None
    assert said.sample.twist_cov_66 is not None
    for errors, cov_66 in ((ends, said.cov_66), (steps, said.sample.twist_cov_66 * 0.1)):
        whitened = np.linalg.solve(np.linalg.cholesky(cov_66), np.array(errors).T)
        # a sample covariance of 1000 draws: every entry within 5 of its deviations, sqrt(2 / 1000) on the diagonal
        np.testing.assert_allclose(np.cov(whitened), np.eye(6), atol=0.22)


def test_the_covariance_of_the_way_only_grows() -> None:
    poses = fed(chain(), [*motions_of(list(range(20)), seed=1), None, *motions_of(list(range(25, 40)), seed=2)])
    determinants = [np.linalg.slogdet(p.cov_66)[1] for p in poses[1:]]
    assert all(after > before for before, after in pairwise(determinants))
    assert all(np.array_equal(p.cov_66, p.cov_66.T) for p in poses)


def test_a_hole_holds_the_pose_goes_on_from_there_and_is_counted_once() -> None:
    odometry = chain()
    before = fed(odometry, motions_of(list(range(6))))
    assert fed(odometry, [None, None, None]) == []
    after = fed(odometry, motions_of(list(range(20, 24))))
    assert odometry.counters()["vo.gaps"] == 1
    assert after[0].sample.stamp_ns == stamp(20)
    np.testing.assert_array_equal(after[0].sample.T_odom_base, before[-1].sample.T_odom_base)
    np.testing.assert_allclose(after[-1].sample.T_odom_base, driven(0, 5) @ driven(20, 23), atol=1e-9)


def test_a_hole_is_as_uncertain_as_the_way_that_was_driven_in_it() -> None:
    """The filter reads a variance from the sample at the end of the hole that covers the way at the last speed."""
    last, first = fed(chain(), [*motions_of([0, 1]), *motions_of([9, 10])])[1:3]
    segment = Segment(last.sample, first.sample, CONFIG.model_copy(update={"use_twist_covariance": True}))
    assert segment.metres2 == pytest.approx((3.0**2 + 8.0**2) * 0.8**2, rel=0.01)
    assert segment.radians2 > (0.2 * 0.8) ** 2
    assert np.linalg.norm(driven(1, 9)[:3, 3]) < np.sqrt(segment.metres2)


def test_a_hole_of_days_is_still_a_number_that_the_filter_takes() -> None:
    later = START_NS + 10 * 86_400 * SECOND
    poses = fed(chain(), [*motions_of([0, 1]), true_motion(later, later + SECOND // 10)])
    segment = Segment(poses[1].sample, poses[2].sample, CONFIG.model_copy(update={"use_twist_covariance": True}))
    assert segment.metres2 > 1e10


@settings(max_examples=60, deadline=None)
@given(order=st.permutations(list(range(1, 12))))
def test_frames_in_any_order_never_put_the_chain_beside_the_truth(order: list[int]) -> None:
    """Each frame is compared with the one that came before it, if that was older; what is late changes nothing.

    On the circle the twist is constant, so that the part of a motion inside which the chain ends is exact as well.
    """
    odometry, last, poses = chain(), 0, []
    for frame in order:
        motion = true_motion(stamp(last), stamp(frame)) if last < frame else None
        poses += fed(odometry, [motion])
        last = frame
    stamps = [p.sample.stamp_ns for p in poses]
    assert stamps == sorted(set(stamps))
    assert stamps[-1] == stamp(11)
    assert odometry.counters()["vo.gaps"] == 0
    begin = (stamps[0] - START_NS) * 10 // SECOND
    for pose in poses:
        end = (pose.sample.stamp_ns - START_NS) * 10 // SECOND
        np.testing.assert_allclose(pose.sample.T_odom_base, driven(begin, end), atol=1e-9)


def test_a_repeated_motion_changes_nothing() -> None:
    motions = motions_of(list(range(6)))
    odometry = chain()
    poses = fed(odometry, [m for m in motions for _ in range(2)])
    np.testing.assert_allclose(poses[-1].sample.T_odom_base, driven(0, 5), atol=1e-9)
    assert len(poses) == 6
    assert odometry.counters()["vo.late"] == 5
    assert odometry.counters()["vo.gaps"] == 0


def test_a_motion_that_begins_before_the_chains_end_counts_from_there_on() -> None:
    poses = fed(chain(), [*motions_of([0, 3]), *motions_of([1, 5])])
    np.testing.assert_allclose(poses[-1].sample.T_odom_base, driven(0, 5), atol=1e-9)
    turn = adjoint(T_BASE_CAMERA)
    assert poses[-1].sample.twist_cov_66 is not None
    np.testing.assert_allclose(poses[-1].sample.twist_cov_66 * 0.2, 0.5 * turn @ MOTION_COV @ turn.T, rtol=1e-9)


def test_after_a_reset_it_goes_on_from_its_pose_at_any_stamp() -> None:
    odometry = chain()
    before = fed(odometry, motions_of([50, 51, 52]))
    odometry.break_off()
    after = fed(odometry, motions_of([0, 1]))
    assert [p.sample.stamp_ns for p in after] == [stamp(0), stamp(1)]
    np.testing.assert_array_equal(after[0].sample.T_odom_base, before[-1].sample.T_odom_base)
    assert odometry.counters()["vo.gaps"] == 0


def test_a_clock_set_back_beyond_the_filters_window_is_followed_after_three_motions() -> None:
    odometry = chain()
    before = fed(odometry, motions_of([50, 51]))
    poses = fed(odometry, motions_of([1, 2, 3, 4, 5]))
    assert [p.sample.stamp_ns for p in poses] == [stamp(k) for k in (3, 4, 5)]
    expected = before[-1].sample.T_odom_base @ driven(3, 5)
    np.testing.assert_allclose(poses[-1].sample.T_odom_base, expected, atol=1e-9)


def test_late_motions_that_do_not_go_on_from_each_other_are_no_other_clock() -> None:
    odometry = chain()
    fed(odometry, motions_of([50, 51]))
    assert fed(odometry, [true_motion(stamp(k), stamp(k + 1)) for k in (1, 5, 9, 12)]) == []
    assert [p.sample.stamp_ns for p in fed(odometry, motions_of([51, 52]))] == [stamp(52)]


def spoiled(what: str) -> CameraMotion:
    T, cov_66 = np.eye(4), MOTION_COV.copy()
    if what == "pose":
        T[0, 3] = np.nan
    elif what == "rotation":
        T[:3, :3] *= 2.0
    elif what == "covariance":
        cov_66[4, 4] = np.inf
    elif what == "negative":
        cov_66[0, 0] = -1.0
    return CameraMotion(stamp(5), stamp(5) if what == "time" else stamp(6), T, cov_66)


@pytest.mark.parametrize("what", ["pose", "rotation", "covariance", "negative", "time"])
def test_a_motion_that_is_none_is_refused_counted_and_named(what: str) -> None:
    odometry = chain()
    fed(odometry, motions_of([3, 4, 5]))
    assert fed(odometry, [spoiled(what)]) == []
    assert odometry.counters()["vo.refused"] == 1
    assert odometry.problem.startswith("the network's motion is refused: ")
    (pose,) = fed(odometry, motions_of([5, 6]))
    np.testing.assert_allclose(pose.sample.T_odom_base, driven(3, 6), atol=1e-9)
    assert odometry.problem == ""


def test_it_is_predicted_a_little_ahead_and_not_over_a_hole() -> None:
    odometry = chain()
    assert odometry.predicted(stamp(1)) is None
    fed(odometry, motions_of([0, 1, 2]))
    ahead = odometry.predicted(stamp(4))
    assert ahead is not None
    np.testing.assert_allclose(ahead, driven(0, 4), atol=1e-9)
    assert odometry.predicted(stamp(2)) is None
    assert odometry.predicted(stamp(2) + SECOND) is None
    fed(odometry, [None])
    assert odometry.predicted(stamp(4)) is None


def test_it_counts_nothing_as_long_as_a_model_gives_no_motions() -> None:
    odometry = chain()
    assert fed(odometry, [None, None]) == []
    assert odometry.counters() == {}


def test_the_filter_takes_the_calibrated_covariance_and_the_trainings_gap_only_for_the_networks_odometry() -> None:
    topic = LocalizerConfig()
    network = LocalizerConfig(model=ModelConfig(odometry="network"))
    assert filter_of(topic, 1.2) is topic.filter
    assert filter_of(network, 1.2).use_twist_covariance
    assert filter_of(network, 1.2).max_odometry_gap_s == 1.2
    assert filter_of(network, 0.1).max_odometry_gap_s == network.filter.max_odometry_gap_s
    assert filter_of(network, None).max_odometry_gap_s == network.filter.max_odometry_gap_s


def test_an_odometry_extended_by_a_predicted_pose_leaves_the_measured_one_as_it_was() -> None:
    measured = buffer_of([stamp(0), stamp(1)], np.stack([driven(0, 0), driven(0, 1)]))
    longer = measured.extended(stamp(2), driven(0, 2))
    found = longer.pose_at(stamp(2))
    assert found is not None
    np.testing.assert_array_equal(found, driven(0, 2))
    assert measured.newest_ns == stamp(1)
    with pytest.raises(TypeError, match="snapshot"):
        longer.insert(stamp(3), np.eye(4))
