"""Projection: the same as a loop over the points, and the same as KITTI's own formula."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from vmloc_ros.camera import Rectifier
from vmloc_ros.geometry import inverse, make_pose
from vmloc_ros.projection import project_cylindrical, project_pinhole
from vmloc_ros.types import CameraInfo, PinholeIntrinsics

CAMERA = PinholeIntrinsics(width=12, height=9, fx=8.0, fy=7.0, cx=5.7, cy=4.2)
POINTS = arrays(np.float32, st.tuples(st.integers(0, 40), st.just(3)), elements=st.floats(-20, 20, width=32))
WILD = arrays(np.float32, st.tuples(st.integers(0, 20), st.just(3)), elements=st.floats(width=32))


def pinhole_by_loop(xyz: NDArray[np.float32], near: float, far: float) -> NDArray[np.float32]:
    image = np.zeros((CAMERA.height, CAMERA.width), dtype=np.float32)
    single = np.float32
    for x, y, z in xyz:
        square = x * x + y * y + z * z
        if not (z > 0 and single(near * near) <= square <= single(far * far)):
            continue
        u = math.floor(x / z * single(CAMERA.fx) + single(CAMERA.cx + 0.5))
        v = math.floor(y / z * single(CAMERA.fy) + single(CAMERA.cy + 0.5))
        if 0 <= u < CAMERA.width and 0 <= v < CAMERA.height and (image[v, u] == 0 or z < image[v, u]):
            image[v, u] = z
    return image


@given(POINTS, st.sampled_from([0.0, 0.5, 5.0]), st.sampled_from([8.0, 80.0]))
def test_pinhole_equals_a_loop_over_the_points(xyz: NDArray[np.float32], near: float, far: float) -> None:
    with np.errstate(over="ignore", divide="ignore"):
        expected = pinhole_by_loop(np.where(np.abs(xyz) < 1e-6, np.float32(0), xyz), near, far)
    image = project_pinhole(np.where(np.abs(xyz) < 1e-6, np.float32(0), xyz), CAMERA, near, far)
    assert image.dtype == np.float32
    np.testing.assert_array_equal(image, expected)


@given(st.integers(0, CAMERA.width - 1), st.integers(0, CAMERA.height - 1), st.floats(1, 50), st.floats(-0.49, 0.49))
def test_point_belongs_to_the_nearest_pixel_centre(u: int, v: int, z: float, off: float) -> None:
    point = [(u + off - CAMERA.cx) / CAMERA.fx * z, (v - off - CAMERA.cy) / CAMERA.fy * z, z]
    image = project_pinhole(np.array([point], np.float32), CAMERA, 0.1, 200.0)
    assert image[v, u] == np.float32(z)
    assert np.count_nonzero(image) == 1


@given(POINTS, st.randoms(use_true_random=False))
def test_order_of_the_points_does_not_matter(xyz: NDArray[np.float32], random: object) -> None:
    shuffled = xyz[random.sample(range(len(xyz)), len(xyz))]  # type: ignore[attr-defined]
    for project in (
        lambda points: project_pinhole(points, CAMERA, 0.5, 80.0),
        lambda points: project_cylindrical(points, 16, 8),
    ):
        np.testing.assert_array_equal(project(xyz), project(shuffled))


@given(WILD, st.sampled_from([0.5, 80.0, 1e200]))
def test_no_number_is_wild_enough_to_break_it(xyz: NDArray[np.float32], far: float) -> None:
    for image in (project_pinhole(xyz, CAMERA, 0.1, far), project_cylindrical(xyz, 16, 8, max_range_m=far)):
        assert np.isfinite(image).all()
        assert (image >= 0).all()


def test_nothing_gives_an_empty_image() -> None:
    nothing = np.empty((0, 3), np.float32)
    assert not project_pinhole(nothing, CAMERA, 0.5, 80.0).any()
    assert project_cylindrical(nothing, 20, 10).shape == (10, 20)


def test_smaller_image_of_the_same_camera_keeps_the_nearest() -> None:
    """Projecting into a camera of half the size is taking the nearest of every 2x2 pixels."""
    xyz = np.random.default_rng(5).uniform([-8, -6, 0.5], [8, 6, 20], (4000, 3)).astype(np.float32)
    full = PinholeIntrinsics(64, 48, 40.0, 40.0, 31.3, 23.1)
    big = project_pinhole(xyz, full, 0.1, 100.0)
    small = project_pinhole(xyz, full.resized(32, 24), 0.1, 100.0)
    blocks = np.where(big == 0, np.inf, big).reshape(24, 2, 32, 2).min(axis=(1, 3))
    assert (small == np.where(np.isinf(blocks), 0, blocks)).mean() > 0.999  # but for rounding on a pixel's edge


# --------------------------------------------------------------------------------------------------------- cylindrical


def cylindrical_by_loop(
    xyz: NDArray[np.float32], width: int, height: int, azimuth: float, elevation: tuple[float, float]
) -> tuple[NDArray[np.float64], bool]:
    """MV3D's formula in double precision; also whether every point is clear of a pixel's edge."""
    image, clear = np.zeros((height, width)), True
    for x, y, z in xyz.astype(float):
        distance = math.sqrt(x * x + y * y + z * z)
        column = (math.radians(azimuth) / 2 - math.atan2(y, x)) / math.radians(azimuth) * width
        row = (math.radians(elevation[1]) - math.atan2(z, math.hypot(x, y))) / math.radians(elevation[1] - elevation[0])
        row *= height
        clear &= abs(column - round(column)) > 1e-4 and abs(row - round(row)) > 1e-4
        u, v = math.floor(column), math.floor(row)
        if distance > 0 and 0 <= u < width and 0 <= v < height and (image[v, u] == 0 or distance < image[v, u]):
            image[v, u] = distance
    return image, clear


@given(
    POINTS.map(lambda xyz: xyz + np.float32(0.0123)),
    st.sampled_from([360.0, 90.0]),
    st.sampled_from([(-25, 3), (-60, 70)]),
)
def test_cylindrical_equals_a_loop_over_the_points(
    xyz: NDArray[np.float32], azimuth: float, elevation: tuple[float, float]
) -> None:
    expected, clear = cylindrical_by_loop(xyz, 24, 8, azimuth, elevation)
    image = project_cylindrical(xyz, 24, 8, azimuth_deg=azimuth, elevation_deg=elevation)
    if clear:
        np.testing.assert_allclose(image, expected, rtol=1e-5)
    else:
        assert np.count_nonzero(image) <= len(xyz)


@pytest.mark.parametrize(
    ("point", "row", "column"),
    [
        ((10, -0.01, 0.01), 3, 20),  # straight ahead: the middle
        ((0.01, 10, 0.01), 3, 10),  # left: a quarter
        ((-0.01, -10, 0.01), 3, 30),
        ((-10, 0.01, 0.01), 3, 0),  # behind: the seam
        ((-10, -0.01, 0.01), 3, 39),
        ((10, -0.01, 3.0), 0, 20),  # up is up
        ((10, -0.01, -3.0), 7, 20),
    ],
)
def test_directions_of_the_cylinder(point: tuple[float, float, float], row: int, column: int) -> None:
    image = project_cylindrical(np.array([point], np.float32), 40, 8, elevation_deg=(-20.0, 20.0))
    assert np.argwhere(image).tolist() == [[row, column]]
    assert image[row, column] == pytest.approx(np.linalg.norm(point))


def test_seam_belongs_to_the_image() -> None:
    behind = np.array([[-10, 0.0, 1], [-10, -0.0, 1], [-10, 1e-6, 1], [-10, -1e-6, 1]], np.float32)
    for point in behind:
        assert np.count_nonzero(project_cylindrical(point[None], 1023, 8)) == 1


@pytest.mark.parametrize("limits", [(5.0, 80.0), (0.0, 2.0)])
def test_ranges_outside_the_limits_are_left_out(limits: tuple[float, float]) -> None:
    xyz = np.array([[3.0, 0, 0], [0, 0, 3.0]], np.float32)
    assert not project_cylindrical(xyz, 10, 5, min_range_m=limits[0], max_range_m=limits[1]).any()
    assert not project_pinhole(xyz, CAMERA, *limits).any()


@pytest.mark.parametrize(("azimuth", "elevation"), [(0.0, (-20, 20)), (361.0, (-20, 20)), (90.0, (20, -20))])
def test_impossible_views_are_refused(azimuth: float, elevation: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="no such view"):
        project_cylindrical(np.zeros((1, 3), np.float32), 10, 5, azimuth, elevation)


# --------------------------------------------------------------------------------------------------------- real lidar


def kitti_calibration(path: Path) -> dict[str, NDArray]:
    lines = (
        line.split(":", 1) for line in path.read_text().splitlines() if not line.startswith(("calib_time", "corner"))
    )
    return {name: np.array(values.split(), dtype=float) for name, values in lines}


def test_kitti_lands_where_its_own_formula_says(shared_data: Path) -> None:
    """`P_rect_02 R_rect_00 Tr_velo_to_cam p`, to half a pixel: what rounding to a pixel leaves."""
    day = shared_data / "kitti_raw" / "2011_09_26"
    cameras, mounting = (kitti_calibration(day / f"calib_{name}.txt") for name in ("cam_to_cam", "velo_to_cam"))
    P = cameras["P_rect_02"].reshape(3, 4)
    T_cam_velo = make_pose(cameras["R_rect_00"].reshape(3, 3), np.zeros(3)) @ make_pose(
        mounting["R"].reshape(3, 3), mounting["T"]
    )
    width, height = (int(side) for side in cameras["S_rect_02"])
    info = CameraInfo(0, "cam_0_rectified", height, width, "plumb_bob", (), P[:, :3], np.eye(3), P)
    rectifier = Rectifier(info, rectified=True)
    bins = sorted((day / "2011_09_26_drive_0009_sync" / "velodyne_points" / "data").glob("*.bin"))
    xyz = np.fromfile(bins[7], np.float32).reshape(-1, 4)[:, :3]

    projected = np.column_stack([xyz, np.ones(len(xyz))]).astype(float) @ (P @ T_cam_velo).T
    depth, uv = projected[:, 2], projected[:, :2] / projected[:, 2:]
    T_camera_velo = inverse(rectifier.T_frame_camera) @ T_cam_velo
    in_camera = (xyz @ T_camera_velo[:3, :3].T + T_camera_velo[:3, 3]).astype(np.float32)
    image = project_pinhole(in_camera, rectifier.intrinsics, 0.5, 120.0)

    assert np.count_nonzero(image) > 15_000
    visible = np.flatnonzero((depth > 0.5) & (uv > -0.5).all(axis=1) & (uv < [width - 0.5, height - 0.5]).all(axis=1))
    rows, columns = np.nonzero(image)
    by_depth = visible[np.argsort(depth[visible])]
    for row, column in zip(rows[::50].tolist(), columns[::50].tolist(), strict=True):
        value = image[row, column]
        near = by_depth[slice(*np.searchsorted(depth[by_depth], [value - 1e-3, value + 1e-3]))]
        assert np.abs(uv[near] - [column, row]).max(axis=1).min() <= 0.5 + 1e-3
    nearest = image[np.rint(uv[visible, 1]).astype(int), np.rint(uv[visible, 0]).astype(int)]
    assert (nearest <= depth[visible] + 1e-3).mean() > 0.999  # every point is there, or a nearer one
