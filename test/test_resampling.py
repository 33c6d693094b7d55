"""One camera's picture as another would have taken it: by rays, and nothing made up."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from vmloc_ros.errors import ModelInputError
from vmloc_ros.fitting import fit_intrinsics, fit_rgb
from vmloc_ros.resampling import axes_between, largest_shift_px, resample_depth, resample_rgb, seen_by
from vmloc_ros.types import PinholeIntrinsics

SOURCE = PinholeIntrinsics(64, 48, 50.0, 50.0, 30.0, 25.0)


def picture(seed: int = 0, camera: PinholeIntrinsics = SOURCE) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (camera.height, camera.width, 3), dtype=np.uint8)


def depths(seed: int = 0, camera: PinholeIntrinsics = SOURCE) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    depth = rng.uniform(1.0, 9.0, (camera.height, camera.width)).astype(np.float32)
    depth[rng.random(depth.shape) < 0.4] = 0.0
    return depth


def test_the_same_camera_sees_the_same() -> None:
    assert np.array_equal(resample_rgb(picture(), SOURCE, SOURCE), picture())
    assert np.array_equal(resample_depth(depths(), SOURCE, SOURCE), depths())
    assert seen_by(SOURCE, SOURCE).all()
    assert largest_shift_px(SOURCE, SOURCE) == 0.0


def test_a_smaller_picture_is_averaged_as_by_resizing() -> None:
    target = fit_intrinsics(SOURCE, 12, 16)
    assert np.abs(resample_rgb(picture(), SOURCE, target).astype(int) - fit_rgb(picture(), 12, 16)).max() <= 1


@given(st.integers(-20, 20), st.integers(-15, 15))
def test_a_window_that_is_cut_out_comes_back_to_its_place(x: int, y: int) -> None:
    """What lies outside is black, without return, and not seen."""
    target = SOURCE.cropped(x, y, 40, 30)
    wide = np.zeros((48 + 60, 64 + 60, 3), np.uint8)
    wide[30:-30, 30:-30] = picture()
    deep = np.zeros((48 + 60, 64 + 60), np.float32)
    deep[30:-30, 30:-30] = depths()
    inside = np.zeros(deep.shape, bool)
    inside[30:-30, 30:-30] = True
    window = slice(30 + y, 60 + y), slice(30 + x, 70 + x)
    assert np.array_equal(resample_rgb(picture(), SOURCE, target), wide[window])
    assert np.array_equal(resample_depth(depths(), SOURCE, target), deep[window])
    assert np.array_equal(seen_by(SOURCE, target), inside[window])


@given(st.floats(0.3, 3.0), st.floats(0.3, 3.0), st.integers(0, 9))
def test_depth_is_never_made_up(wider: float, higher: float, seed: int) -> None:
    """Every value is one of the source's; the nearest return of a larger picture survives."""
    target = PinholeIntrinsics(50, 40, 50.0 * wider, 50.0 * higher, 24.0, 20.0)
    result = resample_depth(depths(seed), SOURCE, target)
    assert np.isin(result, depths(seed)).all()
    covers = seen_by(target, SOURCE)  # source pixels that the target shows
    if max(wider, higher) < 1.0 and covers.any():
        shown = depths(seed)[covers]
        assert result[result > 0.0].min() <= shown[shown > 0.0].min()


@given(st.floats(-0.4, 0.4), st.floats(-0.4, 0.4), st.floats(0.4, 2.5))
def test_pixels_are_matched_by_their_rays(x: float, y: float, longer: float) -> None:
    """A picture whose colours are the rays' directions shows each ray its own colour, in whatever camera."""
    target = PinholeIntrinsics(30, 20, 40.0 * longer, 40.0 * longer, 14.5 + 10.0 * x, 9.5 + 10.0 * y)
    v, u = np.mgrid[0:48, 0:64]
    coloured = np.stack([(u - 30.0) / 50.0, (v - 25.0) / 50.0, 0.0 * u], -1) * 120.0 + 128.0
    result = resample_rgb(coloured.round().astype(np.uint8), SOURCE, target).astype(float)
    v, u = np.mgrid[0:20, 0:30]
    expected = np.stack([(u - target.cx) / target.fx, (v - target.cy) / target.fy], -1) * 120.0 + 128.0
    seen = seen_by(SOURCE, target)
    assert np.abs(result[..., :2] - expected)[seen].max(initial=0.0) <= 1.5


def test_nearest_of_the_returns_that_a_pixel_covers() -> None:
    depth = np.array([[5.0, 2.0, 0.0, 0.0], [np.nan, 3.0, np.inf, 7.0]], np.float32)
    camera = PinholeIntrinsics(4, 2, 4.0, 2.0, 1.5, 0.5)
    assert resample_depth(depth, camera, camera.resized(2, 1)).tolist() == [[2.0, 7.0]]


@pytest.mark.parametrize("fx", [0.0, -3.0, np.nan, np.inf])
def test_what_is_no_camera_is_refused(fx: float) -> None:
    with pytest.raises(ModelInputError, match="camera_info"):
        axes_between(PinholeIntrinsics(64, 48, fx, 50.0, 30.0, 25.0), SOURCE)


def test_what_is_no_picture_is_refused() -> None:
    with pytest.raises(ModelInputError, match="uint8"):
        resample_rgb(picture().astype(float), SOURCE, SOURCE)  # type: ignore[arg-type]
    with pytest.raises(ModelInputError, match="float32 metres"):
        resample_depth(picture()[..., 0], SOURCE, SOURCE)  # type: ignore[arg-type]
