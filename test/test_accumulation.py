"""Accumulation: a world that stands still, seen by a lidar that does not, must come out standing still."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from vmloc_ros.accumulation import (
    CLOUD_EMPTY,
    CLOUD_UNCOVERED,
    FRAME_UNCOVERED,
    POINTS_UNCOVERED,
    TOO_MANY,
    accumulate,
)
from vmloc_ros.clouds import Cloud
from vmloc_ros.config import ProjectionConfig
from vmloc_ros.geometry import exp_se3, inverse
from vmloc_ros.odometry import OdometryBuffer

START_NS = 1_700_000_000_000_000_000
SECOND = 1_000_000_000
TWIST = np.array([9.0, 0.3, -0.1, 0.02, -0.03, 0.8])  # m/s and rad/s: a brisk curve
T_ODOM_START = exp_se3([400.0, -250.0, 3.0, 0.1, -0.05, 2.0])
T_BASE_LIDAR = exp_se3([1.2, -0.4, 1.7, 0.02, -0.3, 1.1])
CONFIG = ProjectionConfig()


def base_at(seconds: float) -> NDArray[np.float64]:
    """`T_odom_base`: a screw motion, so that the truth is exact at any time."""
    return T_ODOM_START @ exp_se3(TWIST * seconds)


@functools.cache
def odometry() -> OdometryBuffer:
    """200 Hz, a second before and after the start."""
    buffer = OdometryBuffer(10.0)
    for tick in range(-200, 201):
        buffer.insert(START_NS + tick * SECOND // 200, base_at(tick / 200))
    return buffer.snapshot()


def sweep(seconds: NDArray[np.float64], seed: int, reach_m: float = 40.0) -> tuple[NDArray[np.float64], NDArray]:
    """Points of the world (odometry axes) measured one after the other, and what the lidar says of them."""
    world = np.random.default_rng(seed).uniform(-reach_m, reach_m, (len(seconds), 3)) + T_ODOM_START[:3, 3]
    measured = [
        (inverse(base_at(t) @ T_BASE_LIDAR) @ np.append(point, 1.0))[:3]
        for t, point in zip(seconds.tolist(), world, strict=True)
    ]
    return world, np.array(measured, dtype=np.float32)


def in_base(world: NDArray[np.float64], seconds: float) -> NDArray[np.float64]:
    T = inverse(base_at(seconds))
    return world @ T[:3, :3].T + T[:3, 3]


def stamps_of(seconds: NDArray[np.float64]) -> NDArray[np.int64]:
    return START_NS + np.rint(seconds * SECOND).astype(np.int64)


def cloud_at(seconds: float, seed: int = 0, count: int = 50) -> tuple[NDArray[np.float64], Cloud]:
    """A cloud whose points were all measured at once."""
    world, xyz = sweep(np.full(count, seconds), seed)
    return world, Cloud(START_NS + round(seconds * SECOND), "lidar", xyz)


@given(st.floats(-0.5, 0.5), st.floats(-0.3, 0.3), st.sampled_from(["sorted", "reversed", "shuffled"]))
def test_static_world_stands_still_when_a_moving_lidar_sweeps_it(frame_s: float, begin_s: float, order: str) -> None:
    rng = np.random.default_rng(1)
    seconds = begin_s + np.linspace(0.0, 0.1, 120)
    if order != "sorted":
        seconds = seconds[::-1] if order == "reversed" else rng.permutation(seconds)
    world, xyz = sweep(seconds, 2)
    cloud = Cloud(START_NS + round(begin_s * SECOND), "lidar", xyz, stamps_of(seconds))
    result = accumulate([cloud], START_NS + round(frame_s * SECOND), odometry(), T_BASE_LIDAR, CONFIG)
    assert (result.clouds_used, result.reasons) == (1, {})
    assert result.xyz_base_N3.dtype == np.float32
    np.testing.assert_allclose(result.xyz_base_N3, in_base(world, frame_s), atol=2e-3)
    # The test's own sense: without the times the same points are off by what the robot drove.
    skewed = accumulate([Cloud(cloud.stamp_ns, "lidar", xyz)], START_NS, odometry(), T_BASE_LIDAR, CONFIG)
    assert np.abs(skewed.xyz_base_N3 - in_base(world, 0.0)).max() > 0.5


def test_clouds_of_a_window_meet_in_one_frame() -> None:
    pairs = [cloud_at(seconds, seed) for seed, seconds in enumerate((-0.4, -0.1, 0.0, 0.25))]
    clouds = [cloud for _, cloud in pairs]
    result = accumulate(clouds[::-1], START_NS, odometry(), T_BASE_LIDAR, CONFIG)
    expected = np.concatenate([in_base(world, 0.0) for world, _ in pairs])
    assert result.clouds_used == 4
    np.testing.assert_allclose(result.xyz_base_N3, expected, atol=1e-3)


def test_mixed_window_of_timed_and_untimed_clouds() -> None:
    seconds = np.linspace(-0.1, 0.0, 300)
    timed_world, xyz = sweep(seconds, 3)
    world, plain = cloud_at(-0.3, 4)
    clouds = [Cloud(START_NS - SECOND // 10, "lidar", xyz, stamps_of(seconds)), plain]
    result = accumulate(clouds, START_NS, odometry(), T_BASE_LIDAR, CONFIG)
    np.testing.assert_allclose(result.xyz_base_N3, in_base(np.concatenate([world, timed_world]), 0.0), atol=2e-3)


def test_all_times_equal_is_one_pose() -> None:
    world, plain = cloud_at(0.05, 6)
    stamps = np.full(len(world), plain.stamp_ns, dtype=np.int64)
    timed = Cloud(plain.stamp_ns - 7, "lidar", plain.xyz_N3, stamps)
    result = accumulate([timed], START_NS, odometry(), T_BASE_LIDAR, CONFIG)
    np.testing.assert_allclose(result.xyz_base_N3, in_base(world, 0.0), atol=1e-3)


@pytest.mark.parametrize("buffer", [OdometryBuffer(1.0), odometry()])
def test_without_motion_compensation_only_the_mounting_counts(buffer: OdometryBuffer) -> None:
    seconds = np.linspace(0, 0.1, 20)
    _, xyz = sweep(seconds, 0)
    clouds = [Cloud(START_NS + 5 * SECOND, "lidar", xyz, stamps_of(seconds))]
    config = ProjectionConfig(motion_compensation=False)
    result = accumulate(clouds, START_NS, buffer, T_BASE_LIDAR, config)
    np.testing.assert_allclose(result.xyz_base_N3, xyz @ T_BASE_LIDAR[:3, :3].T + T_BASE_LIDAR[:3, 3], atol=1e-4)
    assert result.reasons == {}


# ------------------------------------------------------------------------------------------------ what is left out


def test_frame_outside_the_odometry_has_no_points() -> None:
    result = accumulate([cloud_at(0.0)[1]] * 2, START_NS + 2 * SECOND, odometry(), T_BASE_LIDAR, CONFIG)
    assert result.xyz_base_N3.shape == (0, 3)
    assert (result.clouds_used, result.reasons) == (0, {FRAME_UNCOVERED: 2})


def test_no_odometry_at_all() -> None:
    result = accumulate([cloud_at(0.0)[1]], START_NS, OdometryBuffer(1.0), T_BASE_LIDAR, CONFIG)
    assert result.reasons == {FRAME_UNCOVERED: 1}


def test_clouds_outside_the_odometry_are_left_out_and_counted() -> None:
    world, good = cloud_at(0.0)
    clouds = [cloud_at(-1.5)[1], good, cloud_at(1.2)[1]]
    seconds = np.linspace(1.1, 1.2, 10)
    clouds.append(Cloud(START_NS, "lidar", sweep(seconds, 0)[1], stamps_of(seconds)))
    result = accumulate(clouds, START_NS, odometry(), T_BASE_LIDAR, CONFIG)
    assert (result.clouds_used, result.reasons) == (1, {CLOUD_UNCOVERED: 3})
    np.testing.assert_allclose(result.xyz_base_N3, in_base(world, 0.0), atol=1e-3)


def test_points_newer_than_the_odometry_are_left_out_and_counted() -> None:
    seconds = np.linspace(0.95, 1.05, 101)
    world, xyz = sweep(seconds, 8)
    cloud = Cloud(START_NS + round(0.95 * SECOND), "lidar", xyz, stamps_of(seconds))
    result = accumulate([cloud], START_NS + SECOND, odometry(), T_BASE_LIDAR, CONFIG)
    assert result.reasons == {POINTS_UNCOVERED: 50}
    np.testing.assert_allclose(result.xyz_base_N3, in_base(world[:51], 1.0), atol=2e-3)


def test_cloud_in_a_gap_of_the_odometry_is_left_out() -> None:
    buffer = OdometryBuffer(10.0, max_gap_s=0.1)
    for tick in [*range(-100, -40), *range(100)]:
        buffer.insert(START_NS + tick * SECOND // 100, base_at(tick / 100))
    world, good = cloud_at(0.1)
    result = accumulate([cloud_at(-0.2)[1], good], START_NS, buffer, T_BASE_LIDAR, CONFIG)
    assert (result.clouds_used, result.reasons) == (1, {CLOUD_UNCOVERED: 1})
    np.testing.assert_allclose(result.xyz_base_N3, in_base(world, 0.0), atol=1e-3)


def test_empty_cloud_is_counted() -> None:
    empty = Cloud(START_NS, "lidar", np.empty((0, 3), np.float32), np.empty(0, np.int64))
    result = accumulate([empty], START_NS, odometry(), T_BASE_LIDAR, CONFIG)
    assert (result.clouds_used, result.reasons) == (0, {CLOUD_EMPTY: 1})
    assert accumulate([], START_NS, odometry(), T_BASE_LIDAR, CONFIG).reasons == {}


@pytest.mark.parametrize("motion_compensation", [True, False])
@pytest.mark.parametrize("limit", [1, 30, 50, 51, 99, 120, 1000])
def test_too_many_points_lose_the_oldest(limit: int, motion_compensation: bool) -> None:
    pairs = [cloud_at(seconds, seed) for seed, seconds in enumerate((-0.2, 0.0))]
    everything = ProjectionConfig(motion_compensation=motion_compensation)
    whole = accumulate([cloud for _, cloud in pairs], START_NS, odometry(), T_BASE_LIDAR, everything)
    config = ProjectionConfig(max_points=limit, motion_compensation=motion_compensation)
    result = accumulate([cloud for _, cloud in pairs], START_NS, odometry(), T_BASE_LIDAR, config)
    np.testing.assert_allclose(result.xyz_base_N3, whole.xyz_base_N3[-min(limit, 100) :], atol=1e-4)
    assert result.reasons == ({TOO_MANY: 100 - limit} if limit < 100 else {})


def test_too_many_points_of_a_sweep_lose_those_measured_first() -> None:
    seconds = np.random.default_rng(0).permutation(np.linspace(0.0, 0.1, 60))
    world, xyz = sweep(seconds, 9)
    cloud = Cloud(START_NS, "lidar", xyz, stamps_of(seconds))
    result = accumulate([cloud], START_NS, odometry(), T_BASE_LIDAR, ProjectionConfig(max_points=25))
    newest = np.sort(np.argsort(seconds)[-25:])
    np.testing.assert_allclose(result.xyz_base_N3, in_base(world[newest], 0.0), atol=2e-3)
