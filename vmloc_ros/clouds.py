"""Point clouds and planar scans to arrays of points, with a time per point where the sensor gives one.

Times of points
---------------
Drivers agree neither on a name nor on a unit. The first of `TIME_FIELDS` that a cloud has is read, as float32, float64,
uint32 or int32, and understood by the first of these rules that puts every point within `FAR_S` of the header's stamp
and the nearest one within `NEAR_S` of it (a sweep contains its stamp, or begins or ends near it):

1. floats: seconds from the header's stamp (Velodyne's `time`);
2. float64: absolute, in seconds, milliseconds, microseconds or nanoseconds (Hesai, Robosense: s; Livox: ns);
3. floats: milliseconds, microseconds, nanoseconds from the header's stamp, if the sweep then takes `SHORTEST_SWEEP_S`
   (seconds of another clock would otherwise pass for microseconds);
4. integers called `t`, `offset_time`, `time_stamp`: nanoseconds from the stamp (Ouster, Livox, Autoware);
5. other integers: microseconds, else nanoseconds, from the stamp.

A field that no rule explains (a sensor's clock that is not the header's) is an error, never a guess; a reader that does
not need the times asks for `point_times=False`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vmloc_ros.buffers import byte_order, byte_view, require_size
from vmloc_ros.errors import MessageError
from vmloc_ros.types import PointField, RawCloud, RawScan

DATATYPES: dict[int, str] = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 8: "f8"}
"""sensor_msgs/PointField's numbers."""

TIME_FIELDS = ("t", "time", "timestamp", "offset_time", "time_stamp")
NANOSECOND_FIELDS = ("t", "offset_time", "time_stamp")
FAR_S = 2.0
NEAR_S = 0.25
SHORTEST_SWEEP_S = 0.001
NANOSECONDS = 1_000_000_000


@dataclass(frozen=True, slots=True, eq=False)
class Cloud:
    """Points of one message, in the sensor's axes.

    Attributes:
        xyz_N3: (N, 3) float32 metres, finite, without the zeros that stand for "no return".
        stamps_ns_N: (N,) int64 when each point was measured, or None where all were at `stamp_ns`.
    """

    stamp_ns: int
    frame_id: str
    xyz_N3: NDArray[np.float32]
    stamps_ns_N: NDArray[np.int64] | None = None


def decode_cloud(raw: RawCloud | RawScan, point_times: bool = True) -> Cloud:
    """The usable points of a message. Points that are not finite, or exactly zero, are left out.

    Args:
        raw: a PointCloud2 with any layout of fields (x, y, z as float32 or float64), or a LaserScan.
        point_times: whether to read the times of the points (see the module's text).

    Raises:
        MessageError: empty, truncated, sizes that disagree, fields missing or of a wrong type, times that fit no rule.
    """
    return _decode_scan(raw, point_times) if isinstance(raw, RawScan) else _decode_points(raw, point_times)


# -------------------------------------------------------------------------------------------------------- PointCloud2


def _decode_points(raw: RawCloud, point_times: bool) -> Cloud:
    what = f"point cloud of frame {raw.frame_id!r}"
    points = _structured(raw, what, point_times)
    xyz = np.empty((len(points), 3), dtype=np.float32)
    with np.errstate(over="ignore", invalid="ignore"):  # a float64 beyond float32 becomes infinite, and is left out
        for axis, name in enumerate("xyz"):
            xyz[:, axis] = points[name]
    usable = _is_usable(xyz)
    stamps = None
    for name in (points.dtype.names or ())[3:]:  # the field of times, if one was asked for and is there
        times = points[name]
        if times.dtype.kind == "f":
            usable &= np.isfinite(times)
        stamps = _absolute_times(times[usable], name, raw.stamp_ns, what)
    return Cloud(raw.stamp_ns, raw.frame_id, xyz if usable.all() else xyz[usable], stamps)


def _is_usable(xyz: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Finite and not the origin: organised clouds mark a missing return by NaN, or by zeros."""
    with np.errstate(over="ignore", invalid="ignore"):
        size = np.abs(xyz[:, 0]) + np.abs(xyz[:, 1]) + np.abs(xyz[:, 2])
    return np.asarray((size > 0.0) & (size < np.inf), dtype=bool)


def _structured(raw: RawCloud, what: str, point_times: bool) -> NDArray[np.void]:
    """The cloud's bytes as records (x, y, z and, if wanted and there, a time), checked first, without row padding."""
    if raw.width <= 0 or raw.height <= 0:
        raise MessageError(f"{what}: is empty ({raw.width}x{raw.height} points)")
    if raw.point_step <= 0 or raw.row_step < raw.width * raw.point_step:
        raise MessageError(
            f"{what}: row_step {raw.row_step} is less than width {raw.width} x point_step {raw.point_step}"
        )
    data = byte_view(raw.data, what)
    require_size(data, raw.row_step * raw.height, what, f"row_step {raw.row_step} x height {raw.height}")
    names, formats, offsets = [], [], []
    for item in _needed_fields(raw, what, point_times):
        names.append(item.name)
        formats.append(byte_order(raw.is_bigendian) + DATATYPES[item.datatype])
        offsets.append(item.offset)
    dtype = np.dtype({"names": names, "formats": formats, "offsets": offsets, "itemsize": raw.point_step})
    records = np.ndarray((raw.height, raw.width), dtype, data, strides=(raw.row_step, raw.point_step))
    return records.reshape(-1)


def _needed_fields(raw: RawCloud, what: str, point_times: bool) -> Iterator[PointField]:
    """x, y, z, then the field of times if there is one; each checked to lie within a point."""
    by_name = {item.name: item for item in raw.fields}
    time_name = next((name for name in TIME_FIELDS if name in by_name), None) if point_times else None
    for name in ("x", "y", "z", *([time_name] if time_name else [])):
        if name not in by_name:
            found = ", ".join(by_name) or "none"
            raise MessageError(f"{what}: has no field {name!r} (fields: {found})")
        item = by_name[name]
        allowed = ("f4", "f8", "u4", "i4") if name == time_name else ("f4", "f8")
        kind = DATATYPES.get(item.datatype)
        if kind is None or kind not in allowed:
            raise MessageError(
                f"{what}: field {name!r} has datatype {item.datatype} ({kind or 'unknown'}), not one of "
                f"{', '.join(allowed)}"
            )
        if item.count not in (0, 1):
            raise MessageError(f"{what}: field {name!r} has {item.count} values per point instead of one")
        if item.offset < 0 or item.offset + int(kind[1]) > raw.point_step:
            raise MessageError(
                f"{what}: field {name!r} at offset {item.offset} ends outside the point of {raw.point_step} bytes"
            )
        yield item


def _absolute_times(times: NDArray[np.generic], name: str, stamp_ns: int, what: str) -> NDArray[np.int64] | None:
    """(N,) int64 nanoseconds by the rules of the module's text."""
    if len(times) == 0:
        return np.empty(0, dtype=np.int64)
    values = times.astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):  # garbage may be as large as it likes
        for offsets_s in _readings(values, times.dtype, name, stamp_ns):
            size = np.abs(offsets_s)
            if size.max() <= FAR_S and size.min() <= NEAR_S:
                return stamp_ns + np.rint(offsets_s * NANOSECONDS).astype(np.int64)
    raise MessageError(
        f"{what}: field {name!r} ({times.dtype.name}, {values.min():.9g} to {values.max():.9g}) is no time near the "
        f"header's stamp of {stamp_ns / NANOSECONDS:.3f} s in any unit; is the sensor's clock synchronised?"
    )


def _readings(values: NDArray[np.float64], dtype: np.dtype, name: str, stamp_ns: int) -> Iterator[NDArray[np.float64]]:
    """Seconds from the header's stamp, one reading after the other in the order of the rules."""
    if dtype.kind == "f":
        yield values
        if dtype.itemsize == 8:
            for per_second in (1, 1_000, 1_000_000, NANOSECONDS):
                # The stamp in the field's own unit first: the difference of two large numbers keeps the digits.
                whole = stamp_ns * per_second // NANOSECONDS
                rest = (stamp_ns * per_second - whole * NANOSECONDS) / NANOSECONDS
                yield ((values - whole) - rest) / per_second
        span = np.ptp(values)
        yield from (values / unit for unit in (1_000, 1_000_000, NANOSECONDS) if span / unit >= SHORTEST_SWEEP_S)
    elif name in NANOSECOND_FIELDS:
        yield values / NANOSECONDS
    else:
        yield values / 1_000_000
        yield values / NANOSECONDS


# ---------------------------------------------------------------------------------------------------------- LaserScan


def _decode_scan(raw: RawScan, point_times: bool) -> Cloud:
    """Rays to points in the scanner's plane (z = 0); a range outside the scan's own limits is no return."""
    what = f"scan of frame {raw.frame_id!r}"
    try:
        ranges = np.asarray(raw.ranges_m, dtype=np.float64).reshape(-1)
    except (TypeError, ValueError) as error:
        raise MessageError(f"{what}: ranges are not numbers ({error})") from error
    if len(ranges) == 0:
        raise MessageError(f"{what}: is empty (no ranges)")
    for label, value in (
        ("angle_min", raw.angle_min_rad),
        ("angle_increment", raw.angle_increment_rad),
        ("time_increment", raw.time_increment_s),
        ("range_min", raw.range_min_m),
    ):
        if not np.isfinite(value):
            raise MessageError(f"{what}: {label} is {value}")
    if not raw.range_max_m >= raw.range_min_m:
        raise MessageError(f"{what}: range_max {raw.range_max_m} is not above range_min {raw.range_min_m}")
    sweep_s = raw.time_increment_s * (len(ranges) - 1)
    if point_times and abs(sweep_s) > FAR_S:
        raise MessageError(f"{what}: time_increment {raw.time_increment_s:g} s makes a scan of {sweep_s:g} s")
    with np.errstate(invalid="ignore"):
        seen = (ranges >= raw.range_min_m) & (ranges <= raw.range_max_m) & (ranges > 0.0) & (ranges < np.inf)
    ray = np.flatnonzero(seen)
    angle = raw.angle_min_rad + raw.angle_increment_rad * ray
    xyz = np.zeros((len(ray), 3), dtype=np.float32)
    xyz[:, 0] = ranges[ray] * np.cos(angle)
    xyz[:, 1] = ranges[ray] * np.sin(angle)
    stamps = None
    if point_times and raw.time_increment_s != 0.0:
        stamps = raw.stamp_ns + np.rint(ray * (raw.time_increment_s * NANOSECONDS)).astype(np.int64)
    return Cloud(raw.stamp_ns, raw.frame_id, xyz, stamps)
