"""OdometryBuffer: any order of insertion, interpolation that never leaves the window, snapshots."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmloc_ros.errors import GeometryError
from vmloc_ros.geometry import exp_se3, interpolate
from vmloc_ros.odometry import OdometryBuffer, buffer_of
from vmloc_ros.trajectory import NANOSECONDS


def drive(count: int, seed: int = 0, step_ns: int = 20_000_000) -> list[tuple[int, np.ndarray]]:
    rng = np.random.default_rng(seed)
    pose, samples = np.eye(4), []
    for k in range(count):
        samples.append((1_000_000_000 + k * step_ns, pose))
        pose = pose @ exp_se3(rng.normal(size=6) * [0.3, 0.1, 0.1, 0.2, 0.2, 0.5])
    return samples


@settings(deadline=None, max_examples=40)
@given(order=st.permutations(range(20)), share=st.floats(0.0, 1.0))
def test_insertion_order_does_not_matter(order: list[int], share: float) -> None:
    samples = drive(20)
    shuffled, plain = OdometryBuffer(10.0), OdometryBuffer(10.0)
    for k in order:
        assert shuffled.insert(*samples[k])
    for sample in samples:
        assert plain.insert(*sample)
    stamp = samples[0][0] + round(share * (samples[-1][0] - samples[0][0]))
    np.testing.assert_array_equal(shuffled.pose_at(stamp), plain.pose_at(stamp))
    assert len(shuffled) == 20
    assert shuffled.newest_ns == samples[-1][0]
    assert shuffled.oldest_ns == samples[0][0]


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(0, 19 * 20_000_000), min_size=1, max_size=30))
def test_vectorised_equals_one_by_one(offsets: list[int]) -> None:
    samples = drive(20, seed=3)
    buffer = buffer_of([s for s, _ in samples], np.stack([p for _, p in samples]))
    stamps = [samples[0][0] + offset for offset in offsets]
    together = buffer.poses_at(stamps)
    assert together is not None
    assert together.shape == (len(stamps), 4, 4)
    for stamp, pose in zip(stamps, together, strict=True):
        np.testing.assert_allclose(pose, buffer.pose_at(stamp), atol=1e-12)


def test_exact_at_samples_and_between() -> None:
    samples = drive(5)
    buffer = buffer_of([s for s, _ in samples], np.stack([p for _, p in samples]))
    for stamp, pose in samples:
        np.testing.assert_array_equal(buffer.pose_at(stamp), pose)
    (a, T_a), (b, T_b) = samples[1:3]
    np.testing.assert_allclose(buffer.pose_at(a + (b - a) // 4), interpolate(T_a, T_b, 0.25), atol=1e-12)


def test_standing_still_and_half_turns() -> None:
    turned = exp_se3([0.0, 0.0, 0.0, 0.0, 0.0, np.pi - 1e-9])
    buffer = buffer_of([0, 100, 200], np.stack([np.eye(4), np.eye(4), turned]))
    np.testing.assert_array_equal(buffer.poses_at([50])[0], np.eye(4))
    np.testing.assert_allclose(buffer.poses_at([150])[0], buffer.pose_at(150), atol=1e-9)


def test_nothing_outside_and_nothing_clamped() -> None:
    samples = drive(5)
    buffer = buffer_of([s for s, _ in samples], np.stack([p for _, p in samples]))
    first, last = samples[0][0], samples[-1][0]
    assert buffer.pose_at(first - 1) is None
    assert buffer.pose_at(last + 1) is None
    assert buffer.poses_at([first, last + 1]) is None
    assert buffer.poses_at([first - 1, last]) is None
    assert buffer.covers(first)
    assert buffer.covers(last)
    assert not buffer.covers(last + 1)
    assert OdometryBuffer(1.0).pose_at(5) is None
    assert OdometryBuffer(1.0).poses_at([5]) is None
    assert buffer.poses_at([]).shape == (0, 4, 4)
    single = OdometryBuffer(1.0)
    single.insert(7, np.eye(4))
    np.testing.assert_array_equal(single.poses_at([7, 7]), np.tile(np.eye(4), (2, 1, 1)))
    assert single.poses_at([8]) is None


def test_gaps_are_not_bridged() -> None:
    buffer = OdometryBuffer(10.0, max_gap_s=0.5)
    for stamp in (0, 1 * NANOSECONDS):
        buffer.insert(stamp, np.eye(4))
    assert buffer.pose_at(NANOSECONDS // 2) is None
    assert buffer.poses_at([NANOSECONDS // 2]) is None
    assert buffer.poses_at([0, NANOSECONDS]) is not None  # the samples themselves are known


def test_window_is_bounded_and_stays_answerable() -> None:
    buffer = OdometryBuffer(1.0)
    for k in range(10_000):
        buffer.insert(k * 10_000_000, np.eye(4))
    assert len(buffer) <= 102
    newest = buffer.newest_ns
    assert newest is not None
    assert buffer.covers(newest - NANOSECONDS)
    assert not buffer.insert(newest - 2 * NANOSECONDS, np.eye(4))  # too old
    assert not buffer.insert(newest, np.eye(4))  # repeated stamp


def test_snapshot_is_independent_and_immutable() -> None:
    buffer = buffer_of([0, 100], np.stack([np.eye(4), np.eye(4)]))
    copy = buffer.snapshot()
    buffer.insert(200, np.eye(4))
    buffer.clear()
    assert copy.newest_ns == 100
    assert len(buffer) == 0
    with pytest.raises(TypeError):
        copy.insert(300, np.eye(4))
    with pytest.raises(TypeError):
        copy.clear()


def test_forgetting_before_a_jump_holds_for_late_samples() -> None:
    buffer = buffer_of([0, 100, 200], np.tile(np.eye(4), (3, 1, 1)))
    buffer.forget_before(200)
    assert buffer.oldest_ns == 200
    assert not buffer.insert(150, np.eye(4))
    buffer.forget_before(300)
    assert not buffer.insert(250, np.eye(4))
    assert buffer.insert(300, np.eye(4))
    buffer.clear()
    assert buffer.insert(1, np.eye(4))


@pytest.mark.parametrize("spoil", [np.nan, np.inf, 1e308])
def test_bad_poses_are_refused(spoil: float) -> None:
    pose = np.eye(4)
    pose[0, 0] = spoil
    with pytest.raises(GeometryError), np.errstate(all="ignore"):
        OdometryBuffer(1.0).insert(0, pose)


@pytest.mark.parametrize("arguments", [(0.0,), (float("nan"),), (1.0, 0.0)])
def test_bad_windows_are_refused(arguments: tuple[float, ...]) -> None:
    with pytest.raises(ValueError):
        OdometryBuffer(*arguments)
