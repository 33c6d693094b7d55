"""The tree of mountings."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from latent_world import FourierMap

from vmloc_ros.errors import ConfigError, TransformError
from vmloc_ros.extrinsics import Extrinsics, measured_base, pose_from_list
from vmloc_ros.geometry import exp_se3, inverse
from vmloc_ros.types import Mode, PoseEstimate, StaticTransform


def mounted() -> tuple[Extrinsics, dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    poses = {name: exp_se3(rng.normal(size=6)) for name in ("mast", "camera", "lidar")}
    extrinsics = Extrinsics()
    extrinsics.add(StaticTransform("base_link", "mast", poses["mast"]))
    extrinsics.add(StaticTransform("mast", "camera", poses["camera"]))
    extrinsics.add(StaticTransform("base_link", "lidar", poses["lidar"]))
    return extrinsics, poses


def test_lookup_follows_the_tree_in_both_directions() -> None:
    extrinsics, T = mounted()
    np.testing.assert_allclose(extrinsics.lookup("base_link", "camera"), T["mast"] @ T["camera"], atol=1e-12)
    np.testing.assert_allclose(
        extrinsics.lookup("camera", "lidar"), inverse(T["mast"] @ T["camera"]) @ T["lidar"], atol=1e-12
    )
    np.testing.assert_array_equal(extrinsics.lookup("camera", "camera"), np.eye(4))


def test_a_missing_frame_is_named_with_those_that_are_known() -> None:
    extrinsics, _ = mounted()
    with pytest.raises(TransformError, match=r"base_link -> radar.*base_link, camera, lidar, mast"):
        extrinsics.lookup("base_link", "radar")
    with pytest.raises(TransformError, match="known frames: none"):
        Extrinsics().lookup("base_link", "camera")


def test_what_is_set_by_hand_wins() -> None:
    extrinsics, _ = mounted()
    by_hand = exp_se3(np.arange(6.0))
    extrinsics.fix("base_link", "camera", by_hand)
    np.testing.assert_array_equal(extrinsics.lookup("base_link", "camera"), by_hand)


def test_a_transform_that_is_not_rigid_is_refused() -> None:
    extrinsics = Extrinsics()
    for bad in (np.eye(4) * 2.0, np.full((4, 4), np.nan), np.diag([1.0, 1.0, -1.0, 1.0])):
        with pytest.raises(TransformError, match="a -> b"):
            extrinsics.add(StaticTransform("a", "b", bad))
    with pytest.raises(TransformError):
        extrinsics.add(StaticTransform("a", "a", np.eye(4)))


def test_parameters_are_checked_by_name() -> None:
    np.testing.assert_allclose(pose_from_list([1.0, 2.0, 3.0, 0.0, 0.0, 0.0, 2.0], "x")[:3, 3], [1.0, 2.0, 3.0])
    with pytest.raises(ConfigError, match=r"extrinsics\.base_to_lidar: needs 7"):
        pose_from_list([1.0, 2.0], "extrinsics.base_to_lidar")
    with pytest.raises(ConfigError, match="quaternion"):
        pose_from_list([0.0] * 7, "extrinsics.base_to_lidar")


@given(st.integers(0, 2**32 - 1))
def test_an_observation_of_the_camera_becomes_one_of_the_base(seed: int) -> None:
    """Gradient and information against differences of the cost and of what is expected, by the base's perturbation."""
    rng = np.random.default_rng(seed)
    T_base_camera, T_map_base = exp_se3(rng.normal(size=6)), exp_se3(rng.normal(size=6))
    world = FourierMap(16, seed % 7)
    seen = world.seen(T_map_base @ T_base_camera, 0.5, rng)
    estimate = PoseEstimate(1, T_map_base @ T_base_camera, np.eye(6), {}, Mode.RGB_ONLY, observation=seen)
    measured = measured_base(estimate, T_base_camera, "map")
    assert measured.observation is not None
    T = T_map_base @ exp_se3(0.1 * rng.normal(size=6))
    known = measured.observation.at(T)
    J, slope = np.empty((16, 6)), np.empty(6)
    for k in range(6):
        d = np.zeros(6)
        d[k] = 1e-6
        above, below = T @ exp_se3(d), T @ exp_se3(-d)
        J[:, k] = (world.expected(above @ T_base_camera) - world.expected(below @ T_base_camera)) / 2e-6
        slope[k] = (measured.observation.at(above).cost - measured.observation.at(below).cost) / 2e-6
    np.testing.assert_allclose(-2.0 * known.gradient_6, slope, rtol=1e-5, atol=1e-5 * np.abs(slope).max())
    np.testing.assert_allclose(known.information_66, J.T @ J / 0.25, atol=1e-6 * known.information_66.max())
    assert known.dof == 16
    assert known.cost == seen.at(T @ T_base_camera).cost


def test_without_an_observation_there_is_none() -> None:
    estimate = PoseEstimate(1, np.eye(4), np.eye(6), {}, Mode.RGB_ONLY)
    assert measured_base(estimate, exp_se3(np.arange(6.0)), "map").observation is None
