"""Clouds and scans: any layout gives back the points that went in; any damage is named."""

from __future__ import annotations

import contextlib
import math
from array import array

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from vmloc_ros.clouds import DATATYPES, TIME_FIELDS, Cloud, decode_cloud
from vmloc_ros.errors import MessageError
from vmloc_ros.types import PointField, RawCloud, RawScan

STAMP_NS = 1_700_000_000_123_456_789
XYZ = np.random.default_rng(2).normal(size=(12, 3)).astype(np.float32)
NUMBER_OF = {kind: number for number, kind in DATATYPES.items()}


def raw_cloud(
    columns: dict[str, NDArray],
    *,
    height: int = 1,
    gap: int = 0,
    row_padding: int = 0,
    is_bigendian: bool = False,
    order: list[str] | None = None,
    stamp_ns: int = STAMP_NS,
) -> RawCloud:
    """A message whose fields lie in `order`, `gap` bytes before each, and whose rows are padded."""
    names = order or list(columns)
    sign = ">" if is_bigendian else "<"
    fields, offset = [], 0
    for name in names:
        kind = columns[name].dtype.str[1:]
        fields.append(PointField(name, offset + gap, NUMBER_OF[kind], 1))
        offset += gap + columns[name].dtype.itemsize
    count = len(columns[names[0]])
    width = count // height
    rows = np.full((height, width * offset + row_padding), 0xEE, dtype=np.uint8)
    points = rows[:, : width * offset].reshape(height, width, offset)
    for field in fields:
        column = columns[field.name].astype(columns[field.name].dtype.newbyteorder(sign))
        size = column.dtype.itemsize
        points[:, :, field.offset : field.offset + size] = column.reshape(height, width, 1).view(np.uint8)
    rows[:, : width * offset] = points.reshape(height, -1)
    return RawCloud(
        stamp_ns, "lidar", height, width, tuple(fields), is_bigendian, offset, rows.shape[1], rows.tobytes()
    )


def axes(xyz: NDArray, kinds: tuple[str, str, str] = ("f4", "f4", "f4")) -> dict[str, NDArray]:
    return {name: xyz[:, k].astype(kinds[k]) for k, name in enumerate("xyz")}


def with_time(name: str, values: NDArray) -> RawCloud:
    return raw_cloud(axes(XYZ[: len(values)]) | {name: values})


@settings(deadline=None)
@given(
    order=st.permutations(["x", "y", "z", "intensity", "ring"]),
    kinds=st.tuples(*[st.sampled_from(["f4", "f8"])] * 3),
    height=st.sampled_from([1, 3, 4]),
    gap=st.integers(0, 5),
    row_padding=st.integers(0, 7),
    is_bigendian=st.booleans(),
)
def test_any_layout_gives_back_the_points(
    order: list[str], kinds: tuple[str, str, str], height: int, gap: int, row_padding: int, is_bigendian: bool
) -> None:
    columns = axes(XYZ, kinds) | {"intensity": np.ones(12, "f4"), "ring": np.arange(12, dtype="u2")}
    message = raw_cloud(
        columns, height=height, gap=gap, row_padding=row_padding, is_bigendian=is_bigendian, order=order
    )
    cloud = decode_cloud(message)
    assert (cloud.stamp_ns, cloud.frame_id, cloud.stamps_ns_N) == (STAMP_NS, "lidar", None)
    assert cloud.xyz_N3.dtype == np.float32
    np.testing.assert_array_equal(cloud.xyz_N3, XYZ)


@pytest.mark.parametrize("kind", ["f4", "f8"])
def test_missing_returns_are_left_out_with_their_times(kind: str) -> None:
    xyz = XYZ.astype(kind)
    xyz[1, 0], xyz[3, 1], xyz[5, 2], xyz[7] = math.nan, math.inf, -math.inf, 0.0
    if kind == "f8":
        xyz[8, 0] = 1e300  # infinite as float32
    times = np.arange(12, dtype="u4") * 1000
    cloud = decode_cloud(raw_cloud(axes(xyz, (kind,) * 3) | {"t": times}))
    kept = [0, 2, 4, 6, 9, 10, 11] if kind == "f8" else [0, 2, 4, 6, 8, 9, 10, 11]
    np.testing.assert_array_equal(cloud.xyz_N3, XYZ[kept])
    np.testing.assert_array_equal(cloud.stamps_ns_N, STAMP_NS + times[kept].astype(np.int64))


def test_cloud_without_a_single_return_has_no_points() -> None:
    cloud = decode_cloud(raw_cloud(axes(np.full((4, 3), np.nan)) | {"time": np.zeros(4, "f4")}))
    assert cloud.xyz_N3.shape == (0, 3)
    assert cloud.stamps_ns_N is not None
    assert len(cloud.stamps_ns_N) == 0


# -------------------------------------------------------------------------------------------------------------- times

OFFSETS_NS = np.array([0, 1_000_000, 50_000_000, 99_000_000], dtype=np.int64)


@pytest.mark.parametrize(
    ("name", "values", "first_ns", "tolerance_ns"),
    [
        ("time", (OFFSETS_NS / 1e9).astype("f4"), 0, 10),
        ("time", ((OFFSETS_NS / 1e9) - 0.1).astype("f4"), -100_000_000, 10),  # Velodyne: up to the stamp
        ("t", OFFSETS_NS.astype("u4"), 0, 0),  # Ouster
        ("offset_time", OFFSETS_NS.astype("u4"), 0, 0),  # Livox
        ("time_stamp", OFFSETS_NS.astype("u4"), 0, 0),  # Autoware
        ("time", (OFFSETS_NS // 1000).astype("u4"), 0, 0),  # microseconds
        ("timestamp", (OFFSETS_NS // 1000 - 50_000).astype("i4"), -50_000_000, 0),
        ("time", OFFSETS_NS.astype("u4"), 0, 0),  # nanoseconds: too long for microseconds
        ("timestamp", STAMP_NS / 1e9 + OFFSETS_NS / 1e9, 0, 300),  # Hesai, Robosense: absolute seconds
        ("timestamp", STAMP_NS / 1e9 + OFFSETS_NS / 1e9 - 0.1, -100_000_000, 300),  # a stamp at the sweep's end
        ("timestamp", STAMP_NS / 1e6 + OFFSETS_NS / 1e6, 0, 300),
        ("timestamp", STAMP_NS / 1e3 + OFFSETS_NS / 1e3, 0, 300),
        ("timestamp", (STAMP_NS + OFFSETS_NS).astype("f8"), 0, 300),  # Livox: absolute nanoseconds
        ("time", (OFFSETS_NS / 1e6).astype("f4"), 0, 10),  # milliseconds
        ("offset_time", OFFSETS_NS.astype("f4"), 0, 10),
    ],
)
def test_conventions_of_drivers(name: str, values: NDArray, first_ns: int, tolerance_ns: int) -> None:
    stamps = decode_cloud(with_time(name, values)).stamps_ns_N
    assert stamps is not None
    assert stamps.dtype == np.int64
    assert np.abs(stamps - (STAMP_NS + first_ns + OFFSETS_NS)).max() <= tolerance_ns


def test_short_sweep_in_a_nanosecond_field_stays_nanoseconds() -> None:
    """Livox's smallest packets last less than the 2 ms that would also be 2 s of microseconds."""
    stamps = decode_cloud(with_time("offset_time", np.array([0, 99_000], "u4"))).stamps_ns_N
    np.testing.assert_array_equal(stamps, [STAMP_NS, STAMP_NS + 99_000])


@pytest.mark.parametrize("name", TIME_FIELDS)
@pytest.mark.parametrize(
    "values",
    [
        np.array([12345.0, 12345.1]),  # seconds since the sensor was switched on
        np.array([STAMP_NS / 1e9 - 37.0, STAMP_NS / 1e9 - 36.9]),  # another time scale
        np.array([0.0, 1e18]),
    ],
)
def test_foreign_clock_is_refused_by_name(name: str, values: NDArray) -> None:
    message = with_time(name, values)
    with pytest.raises(MessageError, match=f"field '{name}'.*synchronised"):
        decode_cloud(message)
    assert decode_cloud(message, point_times=False).stamps_ns_N is None


def test_point_without_a_finite_time_is_left_out() -> None:
    cloud = decode_cloud(with_time("time", np.array([0.0, np.nan, 0.01], "f4")))
    np.testing.assert_array_equal(cloud.xyz_N3, XYZ[[0, 2]])


# --------------------------------------------------------------------------------------------------------------- scans


def scan(ranges: object, **changes: float) -> RawScan:
    values = {"angle_min_rad": -1.0, "angle_increment_rad": 0.25, "time_increment_s": 0.0} | changes
    values = {"range_min_m": 0.1, "range_max_m": 30.0} | values
    return RawScan(STAMP_NS, "laser", ranges_m=ranges, **values)


@pytest.mark.parametrize("wrap", [list, lambda r: array("f", r), lambda r: np.array(r, np.float32)])
def test_rays_become_points_of_the_scan_plane(wrap: type) -> None:
    cloud = decode_cloud(scan(wrap([1.0, 0.05, math.nan, math.inf, 31.0, 2.0, -1.0, 30.0])))
    assert cloud.stamps_ns_N is None
    angles = -1.0 + 0.25 * np.array([0, 5, 7])
    expected = np.array([1.0, 2.0, 30.0])[:, None] * np.column_stack([np.cos(angles), np.sin(angles), 0 * angles])
    np.testing.assert_allclose(cloud.xyz_N3, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("increment_s", [2e-5, -2e-5])
def test_rays_have_their_own_times(increment_s: float) -> None:
    cloud = decode_cloud(scan([1.0, math.nan, 3.0], time_increment_s=increment_s))
    np.testing.assert_array_equal(cloud.stamps_ns_N, [STAMP_NS, STAMP_NS + round(2 * increment_s * 1e9)])
    assert decode_cloud(scan([1.0], time_increment_s=increment_s), point_times=False).stamps_ns_N is None


def test_scan_without_upper_limit() -> None:
    assert len(decode_cloud(scan([1.0, 500.0, math.inf], range_max_m=math.inf)).xyz_N3) == 2


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (scan([]), "empty"),
        (scan(["a"]), "not numbers"),
        (scan([1.0], angle_min_rad=math.nan), "angle_min is nan"),
        (scan([1.0], angle_increment_rad=math.inf), "angle_increment is inf"),
        (scan([1.0], time_increment_s=math.nan), "time_increment is nan"),
        (scan([1.0], range_min_m=math.nan), "range_min is nan"),
        (scan([1.0], range_max_m=math.nan), "range_max nan"),
        (scan([1.0], range_max_m=0.0), "range_max 0.0 is not above"),
        (scan([1.0, 2.0], time_increment_s=30.0), "makes a scan of 30 s"),
    ],
)
def test_bad_scans_are_named(message: RawScan, words: str) -> None:
    with pytest.raises(MessageError, match=words):
        decode_cloud(message)


# -------------------------------------------------------------------------------------------------------------- errors


def changed(**changes: object) -> RawCloud:
    good = raw_cloud(axes(XYZ), height=3, row_padding=4)
    names = ("stamp_ns", "frame_id", "height", "width", "fields", "is_bigendian", "point_step", "row_step", "data")
    return RawCloud(**({name: getattr(good, name) for name in names} | changes))


def xyz_fields(**z: int) -> tuple[PointField, ...]:
    last = {"offset": 8, "datatype": 7, "count": 1} | z
    return PointField("x", 0, 7, 1), PointField("y", 4, 7, 1), PointField("z", **last)


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (changed(width=0), "empty"),
        (changed(height=0, data=b""), "empty"),
        (changed(data=b""), "truncated, has 0 bytes instead of 156"),
        (changed(data=bytes(155)), "truncated"),
        (changed(data=bytes(157)), "too long"),
        (changed(height=4), "truncated"),
        (changed(width=5), "row_step 52 is less than width 5 x point_step 12"),
        (changed(point_step=0), "point_step 0"),
        (changed(data="text"), "not a contiguous buffer"),
        (changed(fields=()), "no field 'x'.*none"),
        (changed(fields=xyz_fields()[:2]), "no field 'z' .fields: x, y"),
        (changed(fields=xyz_fields(datatype=5)), "'z' has datatype 5 .i4"),
        (changed(fields=xyz_fields(datatype=77)), "datatype 77 .unknown"),
        (changed(fields=xyz_fields(offset=9)), "'z' at offset 9 ends outside"),
        (changed(fields=xyz_fields(offset=-1)), "offset -1"),
        (changed(fields=xyz_fields(datatype=8)), "ends outside the point of 12 bytes"),
        (changed(fields=xyz_fields(count=3)), "3 values per point"),
        (changed(fields=(*xyz_fields(), PointField("t", 0, 2, 1))), "'t' has datatype 2"),
    ],
)
def test_bad_clouds_are_named(message: RawCloud, words: str) -> None:
    with pytest.raises(MessageError, match=words):
        decode_cloud(message)


SIZES = st.integers(-1, 20) | st.sampled_from([2**31, 2**32 - 1])
FIELDS = st.builds(
    PointField, st.sampled_from(["x", "y", "z", "t", "time"]), SIZES, st.integers(0, 9), st.integers(0, 2)
)
GOOD_FIELDS = st.tuples(FIELDS).map(lambda extra: (*xyz_fields(), *extra))


@settings(deadline=None, max_examples=300)
@given(
    height=SIZES,
    width=SIZES,
    fields=st.lists(FIELDS, max_size=6).map(tuple) | GOOD_FIELDS,
    is_bigendian=st.booleans(),
    point_step=SIZES,
    row_step=SIZES,
    data=st.binary(max_size=120),
    fits=st.booleans(),
)
def test_garbled_clouds(
    height: int,
    width: int,
    fields: tuple[PointField, ...],
    is_bigendian: bool,
    point_step: int,
    row_step: int,
    data: bytes,
    fits: bool,
) -> None:
    if fits:  # sizes that agree, so that the bytes themselves are looked at
        height, width, point_step = 1, len(data) // 12, 12
        row_step = len(data)
    message = RawCloud(STAMP_NS, "lidar", height, width, fields, is_bigendian, point_step, row_step, data)
    with contextlib.suppress(MessageError):
        assert_sound(decode_cloud(message))


@settings(deadline=None, max_examples=200)
@given(
    st.lists(st.floats(width=32), max_size=10),
    st.tuples(*[st.floats()] * 5),
    st.sampled_from([0, STAMP_NS, -(2**62)]),
)
def test_garbled_scans(ranges: list[float], numbers: tuple[float, ...], stamp_ns: int) -> None:
    with contextlib.suppress(MessageError):
        assert_sound(decode_cloud(RawScan(stamp_ns, "laser", *numbers, ranges)))


def assert_sound(cloud: Cloud) -> None:
    assert cloud.xyz_N3.dtype == np.float32
    assert np.isfinite(cloud.xyz_N3).all()
    assert cloud.stamps_ns_N is None or len(cloud.stamps_ns_N) == len(cloud.xyz_N3)
