"""Cameras: OpenCV's own undistortion as the reference, and the pixel laws against images that were really resized."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from vmloc_ros.camera import Rectifier, same_calibration
from vmloc_ros.errors import CameraError
from vmloc_ros.geometry import inverse
from vmloc_ros.types import CameraInfo, PinholeIntrinsics

WIDTH, HEIGHT = 160, 120
K = np.array([[140.0, 0, 81.3], [0, 138.0, 58.6], [0, 0, 1]])
MODELS = {
    "plumb_bob": (-0.31, 0.12, 0.002, -0.001, -0.02),
    "rational_polynomial": (0.5, 0.2, 0.001, -0.002, 0.05, 0.9, 0.3, 0.1),
    "equidistant": (0.05, -0.02, 0.01, -0.003),
}
RNG = np.random.default_rng(11)
TEXTURE = cv2.resize(RNG.integers(0, 256, (12, 16, 3), dtype=np.uint8), (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)


def camera_info(**changes: object) -> CameraInfo:
    values: dict = {
        "stamp_ns": 1,
        "frame_id": "camera_optical",
        "height": HEIGHT,
        "width": WIDTH,
        "distortion_model": "plumb_bob",
        "D": MODELS["plumb_bob"],
        "K_33": K,
        "R_33": np.eye(3),
        "P_34": np.hstack([np.diag([150.0, 149.0, 1.0]) + [[0, 0, 80.0], [0, 0, 60.0], [0, 0, 0]], np.zeros((3, 1))]),
    }
    return CameraInfo(**(values | changes))


def blob(camera: PinholeIntrinsics, ray: tuple[float, float], sigma: float) -> NDArray[np.float32]:
    """A soft spot where a camera sees a ray."""
    u, v = camera.fx * ray[0] + camera.cx, camera.fy * ray[1] + camera.cy
    y, x = np.mgrid[: camera.height, : camera.width]
    return np.exp(-0.5 * ((x - u) ** 2 + (y - v) ** 2) / sigma**2).astype(np.float32)


def centroid(image: NDArray) -> tuple[float, float]:
    y, x = np.mgrid[: image.shape[0], : image.shape[1]]
    return float((image * x).sum() / image.sum()), float((image * y).sum() / image.sum())


def seen_at(camera: PinholeIntrinsics, ray: tuple[float, float]) -> tuple[float, float]:
    return camera.fx * ray[0] + camera.cx, camera.fy * ray[1] + camera.cy


FULL = PinholeIntrinsics(WIDTH, HEIGHT, 140.0, 138.0, 81.3, 58.6)
RAY = (0.083, -0.051)


@pytest.mark.parametrize(("width", "height"), [(80, 60), (40, 30), (320, 240), (80, 120), (32, 40)])
def test_resized_is_what_resizing_does(width: int, height: int) -> None:
    smaller = cv2.resize(blob(FULL, RAY, 8.0), (width, height), interpolation=cv2.INTER_AREA)
    assert centroid(smaller) == pytest.approx(seen_at(FULL.resized(width, height), RAY), abs=0.02)


def test_cropped_is_what_slicing_does() -> None:
    part = blob(FULL, RAY, 3.0)[20:110, 55:150]
    assert centroid(part) == pytest.approx(seen_at(FULL.cropped(55, 20, 95, 90), RAY), abs=1e-3)


@pytest.mark.parametrize("model", ["plumb_bob", "rational_polynomial"])
def test_undistortion_agrees_with_opencv(model: str) -> None:
    rectifier = Rectifier(camera_info(distortion_model=model, D=MODELS[model]), rectified=False)
    expected = cv2.undistort(TEXTURE, K, np.array(MODELS[model]))
    assert np.abs(rectifier.rectify(TEXTURE).astype(int) - expected).max() <= 1
    assert rectifier.intrinsics == FULL


def test_fisheye_agrees_with_opencv() -> None:
    rectifier = Rectifier(camera_info(distortion_model="equidistant", D=MODELS["equidistant"]), rectified=False)
    expected = cv2.fisheye.undistortImage(TEXTURE, K, np.array(MODELS["equidistant"]), Knew=K)
    assert np.abs(rectifier.rectify(TEXTURE).astype(int) - expected).max() <= 1


@pytest.mark.parametrize("model", sorted(MODELS))
def test_undistorted_point_is_seen_where_the_pinhole_says(model: str) -> None:
    """Independent of any undistortion: the forward model places a spot, rectifying brings it to the ideal place."""
    D = np.array(MODELS[model])
    point = np.array([[[*RAY, 1.0]]])
    project = cv2.fisheye.projectPoints if model == "equidistant" else cv2.projectPoints
    u, v = project(point, np.zeros(3), np.zeros(3), K, D)[0].reshape(2)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    spot = (255 * np.exp(-0.5 * ((x - u) ** 2 + (y - v) ** 2) / 3.0**2)).astype(np.uint8)
    rectifier = Rectifier(camera_info(distortion_model=model, D=MODELS[model]), rectified=False)
    found = centroid(rectifier.rectify(np.dstack([spot] * 3))[..., 0].astype(float))
    assert found == pytest.approx(seen_at(rectifier.intrinsics, RAY), abs=0.15)


def test_rectified_images_pass_through_with_p() -> None:
    rectifier = Rectifier(camera_info(), rectified=True)
    assert rectifier.rectify(TEXTURE) is TEXTURE
    assert rectifier.intrinsics == PinholeIntrinsics(WIDTH, HEIGHT, 150.0, 149.0, 80.0, 60.0)


@pytest.mark.parametrize(("model", "D"), [("plumb_bob", ()), ("plumb_bob", (0.0,) * 5), ("", ()), ("", (0.0,) * 5)])
def test_no_distortion_costs_nothing(model: str, D: tuple[float, ...]) -> None:
    rectifier = Rectifier(camera_info(distortion_model=model, D=D, R_33=np.zeros((3, 3))), rectified=False)
    assert rectifier.rectify(TEXTURE) is TEXTURE


def test_maps_are_computed_once() -> None:
    rectifier = Rectifier(camera_info(), rectified=False)
    first = rectifier.rectify(TEXTURE)
    maps = dict(rectifier._maps)
    np.testing.assert_array_equal(rectifier.rectify(TEXTURE), first)
    assert all(rectifier._maps[key][0] is maps[key][0] for key in maps)
    assert len(rectifier._maps) == 1


# ------------------------------------------------------------------------------------------------- region and binning


@pytest.mark.parametrize("rectified", [True, False])
def test_region_and_binning_agree_with_the_images(rectified: bool) -> None:
    """A spot at a known ray, cut out and binned as a sensor does it."""
    info = camera_info(D=(), roi=(40, 20, 97, 81), binning_x=2, binning_y=3)
    full = Rectifier(camera_info(D=()), rectified).intrinsics
    binned = blob(full, RAY, 6.0)[20:101, 40:136].reshape(27, 3, 48, 2).mean(axis=(1, 3))
    camera = Rectifier(info, rectified).intrinsics
    assert (camera.width, camera.height) == (48, 27)
    assert centroid(binned) == pytest.approx(seen_at(camera, RAY), abs=0.01)


def test_undistorting_a_region_is_the_region_of_the_undistorted() -> None:
    region, binning = (30, 24, 96, 72), 2
    x, y, width, height = region

    def read_out(image: NDArray) -> NDArray:
        part = image[y : y + height, x : x + width].astype(float)
        return part.reshape(height // binning, binning, width // binning, binning, 3).mean(axis=(1, 3))

    small = Rectifier(camera_info(roi=region, binning_x=binning, binning_y=binning), rectified=False)
    ours = small.rectify(read_out(TEXTURE).astype(np.uint8)).astype(float)
    expected = read_out(Rectifier(camera_info(), rectified=False).rectify(TEXTURE))
    assert np.abs(ours - expected)[6:-6, 6:-6].mean() < 2.0


def test_half_given_region_reaches_to_the_edge() -> None:
    camera = Rectifier(camera_info(roi=(60, 20, 0, 0)), rectified=True).intrinsics
    assert (camera.width, camera.height) == (100, 100)


@pytest.mark.parametrize("binning", [0, 1])
def test_binning_of_none_is_one(binning: int) -> None:
    assert Rectifier(camera_info(binning_x=binning, binning_y=binning), rectified=False).intrinsics == FULL


# -------------------------------------------------------------------------------------------------------------- depth


def test_depth_is_moved_and_never_mixed() -> None:
    depth = np.where(RNG.random((HEIGHT, WIDTH)) < 0.5, 0, RNG.uniform(1, 60, (HEIGHT, WIDTH))).astype(np.float32)
    moved = Rectifier(camera_info(), rectified=False).rectify_depth(depth)
    assert moved.dtype == np.float32
    assert np.isin(moved, np.append(np.unique(depth), 0.0)).all()
    assert 0.3 < np.count_nonzero(moved) / moved.size < 0.7
    maps = cv2.initUndistortRectifyMap(K, np.array(MODELS["plumb_bob"]), np.eye(3), K, (WIDTH, HEIGHT), cv2.CV_32FC1)
    assert (moved == cv2.remap(depth, *maps, cv2.INTER_NEAREST)).mean() > 0.98


def test_depth_of_an_ideal_camera_is_untouched() -> None:
    depth = np.ones((HEIGHT, WIDTH), np.float32)
    assert Rectifier(camera_info(), rectified=True).rectify_depth(depth) is depth


def test_smaller_depth_image_shows_the_same_view() -> None:
    full = np.linspace(1, 40, WIDTH, dtype=np.float32)[None].repeat(HEIGHT, axis=0)
    rectifier = Rectifier(camera_info(), rectified=False)
    small = rectifier.rectify_depth(cv2.resize(full, (WIDTH // 2, HEIGHT // 2), interpolation=cv2.INTER_AREA))
    expected = cv2.resize(rectifier.rectify_depth(full), (WIDTH // 2, HEIGHT // 2), interpolation=cv2.INTER_AREA)
    assert np.abs(small - expected)[5:-5, 5:-5].max() < 0.6  # a pixel is 0.5 m of this ramp


@pytest.mark.parametrize("model", ["plumb_bob", "equidistant"])
def test_turned_camera_sees_a_plane_at_one_depth(model: str) -> None:
    """A wall parallel to the image plane of the *turned* camera: every pixel there has the same depth."""
    R = Rotation.from_rotvec([0.05, -0.12, 0.03]).as_matrix()
    D = np.array(MODELS[model])
    pixels = np.stack(np.meshgrid(np.arange(WIDTH), np.arange(HEIGHT)), axis=-1).reshape(-1, 1, 2).astype(float)
    undistort = cv2.fisheye.undistortPoints if model == "equidistant" else cv2.undistortPoints
    rays = np.column_stack([undistort(pixels, K, D).reshape(-1, 2), np.ones(WIDTH * HEIGHT)])
    wall_m = 5.0
    depth = (wall_m / (rays @ R[2])).reshape(HEIGHT, WIDTH).astype(np.float32)
    info = camera_info(R_33=R, distortion_model=model, D=MODELS[model])
    moved = Rectifier(info, rectified=False).rectify_depth(depth)
    assert np.count_nonzero(moved) > 0.5 * moved.size
    assert np.abs(moved[moved > 0] - wall_m).max() < 0.03


def test_turned_image_agrees_with_opencv() -> None:
    R = Rotation.from_rotvec([0.02, 0.05, -0.04]).as_matrix()
    maps = cv2.initUndistortRectifyMap(K, np.array(MODELS["plumb_bob"]), R, K, (WIDTH, HEIGHT), cv2.CV_32FC1)
    ours = Rectifier(camera_info(R_33=R), rectified=False).rectify(TEXTURE)
    assert np.abs(ours.astype(int) - cv2.remap(TEXTURE, *maps, cv2.INTER_LINEAR))[4:-4, 4:-4].mean() < 0.5


# ---------------------------------------------------------------------------------------------------- optical centre


@given(st.lists(st.floats(-60, 60), min_size=3, max_size=3), st.lists(st.floats(-3, 3), min_size=2, max_size=2))
def test_fourth_column_of_p_is_where_the_camera_is(column: list[float], xy: list[float]) -> None:
    """P applied to a point of the header's frame is the ideal camera applied to the point in the camera's frame."""
    P = camera_info().P_34.copy()
    P[:, 3] = column[0], column[1], column[2] / 60
    rectifier = Rectifier(camera_info(P_34=P), rectified=True)
    point = np.array([*xy, 7.0, 1.0])
    expected = P @ point
    x, y, z = (inverse(rectifier.T_frame_camera) @ point)[:3]
    camera = rectifier.intrinsics
    assert camera.fx * x / z + camera.cx == pytest.approx(expected[0] / expected[2], abs=1e-6)
    assert camera.fy * y / z + camera.cy == pytest.approx(expected[1] / expected[2], abs=1e-6)


# -------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("rectified", [True, False])
def test_image_that_does_not_fit_names_both_sizes(rectified: bool) -> None:
    rectifier = Rectifier(camera_info(), rectified)
    with pytest.raises(CameraError, match=r"80x60.*160x120"):
        rectifier.rectify(TEXTURE[::2, ::2])
    with pytest.raises(CameraError, match=r"160x60.*160x120"):
        rectifier.rectify_depth(np.zeros((60, 160), np.float32))
    with pytest.raises(CameraError, match="0x0"):
        rectifier.rectify_depth(np.zeros((0, 0), np.float32))


def with_value(matrix: NDArray, row: int, column: int, value: float) -> NDArray:
    changed = matrix.copy()
    changed[row, column] = value
    return changed


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"K_33": np.zeros((3, 3))}, "K has focal lengths 0, 0.*image_rectified true uses P"),
        ({"K_33": with_value(K, 0, 0, -140.0)}, "must be positive"),
        ({"K_33": with_value(K, 0, 2, math.nan)}, "K holds a number that is not finite"),
        ({"K_33": with_value(K, 0, 1, 3.0)}, "skew"),
        ({"K_33": with_value(K, 2, 2, 0.0)}, "last row"),
        ({"K_33": np.eye(4)}, "shape"),
        ({"D": (math.inf, 0.0, 0.0, 0.0, 0.0)}, "D holds"),
        ({"D": (0.1, 0.2, 0.3)}, "D has 3"),
        ({"distortion_model": "equidistant"}, "D has 5"),
        ({"distortion_model": "rational_polynomial"}, "D has 5"),
        ({"distortion_model": "kannala"}, "'kannala' is unknown"),
        ({"distortion_model": ""}, "'' is unknown"),
        ({"R_33": 2.0 * np.eye(3)}, "not a rotation"),
        ({"R_33": np.diag([1.0, 1.0, -1.0])}, "not a rotation"),
        ({"R_33": np.full((3, 3), np.nan)}, "R is not a finite"),
        ({"width": 0}, "no image size"),
        ({"roi": (100, 0, 100, 50)}, "not inside"),
        ({"roi": (-1, 0, 10, 50)}, "not inside"),
        ({"binning_x": 161}, "leaves nothing"),
        ({"width": 40000, "height": 100}, "larger than"),
    ],
)
def test_bad_calibrations_are_named(changes: dict, words: str) -> None:
    with pytest.raises(CameraError, match=words):
        Rectifier(camera_info(**changes), rectified=False)


def test_uncalibrated_p_is_named() -> None:
    with pytest.raises(CameraError, match=r"P has focal lengths 0, 0.*image_rectified false uses K"):
        Rectifier(camera_info(P_34=np.zeros((3, 4))), rectified=True)


def test_same_calibration_ignores_only_the_stamp() -> None:
    assert same_calibration(camera_info(), camera_info(stamp_ns=99, K_33=K.copy()))
    for changes in ({"K_33": 2 * K}, {"D": ()}, {"roi": (1, 1, 5, 5)}, {"width": 10}, {"R_33": np.zeros((3, 3))}):
        assert not same_calibration(camera_info(), camera_info(**changes))


NUMBERS = st.floats() | st.sampled_from([0.0, 1.0, 100.0])


@settings(deadline=None, max_examples=200)
@given(
    rectified=st.booleans(),
    model=st.sampled_from([*MODELS, "", "?"]),
    D=st.lists(NUMBERS, max_size=9),
    K_values=st.lists(NUMBERS, min_size=4, max_size=4),
    R=st.sampled_from([np.eye(3), np.zeros((3, 3)), np.full((3, 3), 1e300)]),
    column=st.lists(NUMBERS, min_size=3, max_size=3),
    size=st.tuples(st.integers(-1, 20), st.integers(-1, 20)),
    roi=st.tuples(*[st.integers(-2, 22)] * 4),
    binning=st.tuples(st.integers(-1, 4), st.integers(-1, 4)),
)
def test_garbled_calibrations(
    rectified: bool,
    model: str,
    D: list[float],
    K_values: list[float],
    R: NDArray,
    column: list[float],
    size: tuple[int, int],
    roi: tuple[int, int, int, int],
    binning: tuple[int, int],
) -> None:
    matrix = np.array([[K_values[0], 0, K_values[2]], [0, K_values[1], K_values[3]], [0, 0, 1]])
    info = CameraInfo(
        0, "c", size[1], size[0], model, tuple(D), matrix, R, np.column_stack([matrix, column]), *binning, roi
    )
    try:
        rectifier = Rectifier(info, rectified)
    except CameraError:
        return
    camera = rectifier.intrinsics
    image = np.zeros((camera.height, camera.width, 3), np.uint8)
    assert rectifier.rectify(image).shape == image.shape
    assert rectifier.rectify_depth(image[..., 0].astype(np.float32)).shape == image.shape[:2]
