"""A moved camera sees what geometry says: planes keep their equation, a turn is a homography, nothing is invented."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from vmloc_ros.novel_views import (
    ViewMover,
    fill_nearest,
    random_moves,
    right_turn,
    turned_cylinder,
    turns_by_columns,
)
from vmloc_ros.projection import project_cylindrical
from vmloc_ros.types import PinholeIntrinsics

CAMERA = PinholeIntrinsics(64, 48, 60.0, 60.0, 31.5, 23.5)
MOVER = ViewMover(CAMERA)
SMALL_TURNS = st.tuples(*[st.floats(-0.15, 0.15)] * 3)
SMALL_SHIFTS = st.tuples(*[st.floats(-0.2, 0.2)] * 3)


def rays() -> np.ndarray:
    """Of unit depth, (H, W, 3)."""
    v, u = np.mgrid[0 : CAMERA.height, 0 : CAMERA.width].astype(float)
    return np.stack([(u - CAMERA.cx) / CAMERA.fx, (v - CAMERA.cy) / CAMERA.fy, np.ones_like(u)], axis=-1)


def plane_depth(normal: np.ndarray, offset: float) -> np.ndarray:
    """Depth image of the plane normal . x = offset."""
    return (offset / (rays() @ normal)).astype(np.float32)


def smooth_picture() -> np.ndarray:
    """Colours that change slowly, so that a pixel's rounding changes them little."""
    v, u = np.mgrid[0 : CAMERA.height, 0 : CAMERA.width]
    return np.stack([3 * u, 4 * v, 2 * u + v], axis=-1).astype(np.uint8)


def pose(turn: tuple[float, float, float], shift: tuple[float, float, float]) -> np.ndarray:
    T = np.eye(4)
    T[:3, :3] = Rotation.from_rotvec(turn).as_matrix()
    T[:3, 3] = shift
    return T


@given(st.integers(0, 2**32 - 1), st.floats(0.0, 0.9))
@settings(max_examples=25, deadline=None)
def test_not_moved_is_not_changed_where_surfaces_are_smooth(seed: int, missing: float) -> None:
    generator = np.random.default_rng(seed)
    rgb = generator.integers(0, 256, (CAMERA.height, CAMERA.width, 3), dtype=np.uint8)
    depth = plane_depth(np.array([0.2, 0.1, 1.0]), 3.0)
    depth[generator.random(depth.shape) < missing] = 0.0
    shown, seen = MOVER.move(rgb, depth, np.eye(4))
    np.testing.assert_array_equal(shown, rgb)
    assert (seen[depth == 0.0] == 0.0).all()
    np.testing.assert_allclose(seen[depth > 0.0], depth[depth > 0.0], rtol=0.05)


@given(SMALL_TURNS, SMALL_SHIFTS, st.tuples(st.floats(-0.3, 0.3), st.floats(-0.3, 0.3)))
@settings(max_examples=40, deadline=None)
def test_a_plane_stays_that_plane(
    turn: tuple[float, float, float], shift: tuple[float, float, float], slope: tuple[float, float]
) -> None:
    normal = np.array([*slope, 1.0])
    T = pose(turn, shift)
    _, seen = MOVER.move(smooth_picture(), plane_depth(normal, 3.0), T)
    points = rays() * seen[..., None] @ T[:3, :3].T + T[:3, 3]
    on = seen > 0.0
    assert on.mean() > 0.3
    distances = np.abs(points[on] @ normal - 3.0) / np.linalg.norm(normal)
    assert np.percentile(distances, 95) < 0.06  # half a pixel of 1/20 m at 3 m


@given(SMALL_TURNS)
@settings(max_examples=25, deadline=None)
def test_a_turn_is_a_homography_whatever_the_depth(turn: tuple[float, float, float]) -> None:
    T = pose(turn, (0.0, 0.0, 0.0))
    K = CAMERA.matrix()
    homography = K @ T[:3, :3] @ np.linalg.inv(K)
    size = (CAMERA.width, CAMERA.height)
    expected = cv2.warpPerspective(smooth_picture(), homography, size, flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
    inside = cv2.warpPerspective(
        np.ones((CAMERA.height, CAMERA.width), np.uint8), homography, size, flags=cv2.WARP_INVERSE_MAP
    )
    inside = cv2.erode(inside, np.ones((3, 3), np.uint8), borderValue=0) > 0
    shown, _ = MOVER.move(smooth_picture(), np.zeros((CAMERA.height, CAMERA.width), np.float32), T)
    for picture in (shown, MOVER.turn(smooth_picture(), T)):
        difference = np.abs(picture.astype(int) - expected.astype(int)).max(axis=2)
        assert np.percentile(difference[inside], 99) <= 3


def test_what_stands_in_front_hides_what_is_behind() -> None:
    depth = np.full((CAMERA.height, CAMERA.width), 4.0, np.float32)
    depth[16:32, 20:44] = 1.0
    rgb = np.where(depth[..., None] == 1.0, np.uint8(250), np.uint8(20)).repeat(3, axis=2)
    shown, seen = MOVER.move(rgb, depth, pose((0.0, 0.0, 0.0), (0.0, 0.0, 0.3)))
    rows, columns = slice(18, 30), slice(22, 42)  # grown by 1 / 0.7, this part is the near box's whole
    assert (shown[rows, columns] > 200).all()
    np.testing.assert_allclose(seen[rows, columns], 0.7, atol=1e-5)


def test_holes_take_the_nearest_return() -> None:
    depth = np.zeros((5, 7), np.float32)
    depth[2, 1], depth[2, 5] = 2.0, 3.0
    filled = fill_nearest(depth)
    assert (filled[:, :3] == 2.0).all()
    assert (filled[:, 4:] == 3.0).all()
    np.testing.assert_array_equal(fill_nearest(np.zeros((3, 3), np.float32)), np.ones((3, 3)))


@pytest.mark.parametrize(("metres", "degrees"), [(0.0, 10.0), (0.3, 0.0), (0.2, 5.0)])
def test_moves_stay_in_their_box_and_fill_it(metres: float, degrees: float) -> None:
    T = random_moves(2000, metres, degrees, np.random.default_rng(1))
    turns = Rotation.from_matrix(T[:, :3, :3]).as_rotvec(degrees=True)
    for values, limit in ((T[:, :3, 3], metres), (turns, degrees)):
        assert np.abs(values).max() <= limit + 1e-9
        assert np.abs(values).max(axis=0).min() >= 0.95 * limit


@given(st.integers(-20, 20), st.sampled_from([360.0, 100.0]), st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_a_turned_lidar_sees_its_cylinder_shifted(columns: int, azimuth_deg: float, seed: int) -> None:
    """The vehicle's turn to the right by whole columns, done to the points, is the shifted image."""
    generator = np.random.default_rng(seed)
    width, height, around = 72, 16, azimuth_deg == 360.0
    step = np.deg2rad(azimuth_deg / width)
    places = generator.integers(0, width, 300)
    azimuth = np.deg2rad(azimuth_deg) / 2.0 - (places + generator.uniform(0.1, 0.9, 300)) * step
    ranges = generator.uniform(2.0, 30.0, 300)
    points = np.stack([ranges * np.cos(azimuth), ranges * np.sin(azimuth), generator.uniform(-0.4, 0.2, 300)], axis=1)
    turn = Rotation.from_rotvec([0.0, 0.0, columns * step])  # lidar axes: z up; what it sees turns to the left
    before, after = (
        project_cylindrical(xyz.astype(np.float32), width, height, azimuth_deg) for xyz in (points, turn.apply(points))
    )
    np.testing.assert_allclose(turned_cylinder(before, columns, around), after, rtol=1e-5)


def test_a_right_turn_brings_what_is_right_to_the_middle() -> None:
    np.testing.assert_allclose(right_turn(0.3)[:3, :3] @ [0.0, 0.0, 1.0], [np.sin(0.3), 0.0, np.cos(0.3)], atol=1e-12)


@pytest.mark.parametrize(("degrees", "most"), [(6.0, 3), (1.9, 0)])
def test_turns_are_whole_columns(degrees: float, most: int) -> None:
    turns = turns_by_columns(500, degrees, 2.0, np.random.default_rng(0))
    assert set(turns.tolist()) == set(range(-most, most + 1))
