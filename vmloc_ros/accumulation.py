"""Several clouds, measured while the robot drives, as one: every point where the base saw it at one instant.

A point measured at time t is moved by `T_base(frame)_odom @ T_odom_base(t) @ T_base_lidar`. Where a cloud has a time
per point this takes the skew of the sweep out as well (motion compensation and de-skewing are one formula).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from vmloc_ros.clouds import Cloud
from vmloc_ros.config import ProjectionConfig
from vmloc_ros.geometry import Array, inverse, transform_points
from vmloc_ros.odometry import OdometryBuffer

KNOT_NS = 10_000_000
"""Poses are computed so often inside a sweep and blended between: at 1 rad/s and 80 m the error is 1 mm."""
MAX_KNOTS = 256

FRAME_UNCOVERED = "odometry does not cover the frame's stamp"
CLOUD_UNCOVERED = "odometry does not cover a cloud's stamp"
POINTS_UNCOVERED = "points measured outside the odometry's time"
CLOUD_EMPTY = "cloud without a usable point"
TOO_MANY = "points beyond max_points"


@dataclass(frozen=True, slots=True, eq=False)
class Accumulated:
    """Points of several clouds in the base's axes at the frame's stamp.

    Attributes:
        xyz_base_N3: (N, 3) float32 metres, clouds from old to new.
        clouds_used: how many clouds gave points.
        reasons: what was left out, and how many of it (clouds, or points where the reason says points).
    """

    xyz_base_N3: NDArray[np.float32]
    clouds_used: int
    reasons: dict[str, int] = field(default_factory=dict)


def accumulate(
    clouds: Sequence[Cloud], stamp_ns: int, odometry: OdometryBuffer, T_base_lidar: Array, config: ProjectionConfig
) -> Accumulated:
    """Moves all points to where they are in the base's axes at `stamp_ns`, as if the world stood still.

    With `motion_compensation` a cloud (or, in a cloud with times, a point) outside the odometry's time is left out and
    counted: put where it does not belong it would be a wall that is not there. Without, points only go through the
    mounting, and neither odometry nor times are looked at. Beyond `max_points` the oldest points are left out.

    Args:
        clouds: any order; all of one lidar.
        stamp_ns: the frame's.
        odometry: poses `T_odom_base` over the clouds' and the frame's time.
        T_base_lidar: mounting of the lidar.
        config: `motion_compensation` and `max_points`.
    """
    reasons: Counter[str] = Counter()
    usable = sorted((cloud for cloud in clouds if len(cloud.xyz_N3)), key=lambda cloud: cloud.stamp_ns)
    reasons[CLOUD_EMPTY] = len(clouds) - len(usable)
    if not config.motion_compensation:
        parts = [transform_points(T_base_lidar, cloud.xyz_N3) for cloud in _newest(usable, config.max_points, reasons)]
        return _joined(parts, reasons)
    T_odom_frame = odometry.pose_at(stamp_ns)
    if T_odom_frame is None:
        reasons[FRAME_UNCOVERED] = len(usable)
        return _joined([], reasons)
    covered = [part for cloud in usable if (part := _covered(cloud, odometry, reasons)) is not None]
    kept = _newest(covered, config.max_points, reasons)
    parts = []
    for cloud, T_odom_base_K44 in zip(kept, _poses(kept, odometry), strict=True):
        if T_odom_base_K44 is None:
            reasons[CLOUD_UNCOVERED] += 1
            continue
        parts.append(_deskewed(cloud, inverse(T_odom_frame) @ T_odom_base_K44 @ T_base_lidar))
    return _joined(parts, reasons)


def _joined(parts: list[NDArray[np.float32]], reasons: Counter[str]) -> Accumulated:
    points = np.concatenate(parts) if parts else np.empty((0, 3), dtype=np.float32)
    return Accumulated(points, len(parts), {reason: count for reason, count in reasons.items() if count})


def _covered(cloud: Cloud, odometry: OdometryBuffer, reasons: Counter[str]) -> Cloud | None:
    """The part of a cloud that lies in the odometry's time: the last points of a sweep may be newer than it."""
    oldest, newest = odometry.oldest_ns, odometry.newest_ns
    if oldest is None or newest is None:
        return None
    if cloud.stamps_ns_N is None:
        if oldest <= cloud.stamp_ns <= newest:
            return cloud
        reasons[CLOUD_UNCOVERED] += 1
        return None
    if oldest <= cloud.stamps_ns_N.min() and cloud.stamps_ns_N.max() <= newest:
        return cloud
    inside = (cloud.stamps_ns_N >= oldest) & (cloud.stamps_ns_N <= newest)
    if not inside.any():
        reasons[CLOUD_UNCOVERED] += 1
        return None
    reasons[POINTS_UNCOVERED] += len(inside) - int(np.count_nonzero(inside))
    return _taken(cloud, inside)


def _taken(cloud: Cloud, which: NDArray[np.bool_] | NDArray[np.intp] | slice) -> Cloud:
    stamps = None if cloud.stamps_ns_N is None else cloud.stamps_ns_N[which]
    return Cloud(cloud.stamp_ns, cloud.frame_id, cloud.xyz_N3[which], stamps)


def _newest(clouds: list[Cloud], max_points: int, reasons: Counter[str]) -> list[Cloud]:
    """Clouds by stamp, cut from the old end to at most `max_points`; the cloud at the cut loses its oldest points."""
    kept: list[Cloud] = []
    room = max_points
    for cloud in reversed(clouds):
        count = len(cloud.xyz_N3)
        if count > room:
            reasons[TOO_MANY] += count - room
            if room == 0:
                continue
            if cloud.stamps_ns_N is None:
                cloud = _taken(cloud, slice(count - room, None))
            else:
                cloud = _taken(cloud, np.sort(np.argsort(cloud.stamps_ns_N, kind="stable")[count - room :]))
            count = room
        kept.append(cloud)
        room -= count
    return kept[::-1]


def _knots(cloud: Cloud) -> NDArray[np.int64]:
    """The instants at which poses are computed: one without times, else evenly from the first point's to the last's."""
    if cloud.stamps_ns_N is None:
        return np.array([cloud.stamp_ns], dtype=np.int64)
    first, last = int(cloud.stamps_ns_N.min()), int(cloud.stamps_ns_N.max())
    if first == last:
        return np.array([first], dtype=np.int64)
    count = min(2 + (last - first) // KNOT_NS, MAX_KNOTS)
    return first + np.arange(count, dtype=np.int64) * (last - first) // (count - 1)


def _poses(clouds: list[Cloud], odometry: OdometryBuffer) -> list[Array | None]:
    """`T_odom_base` (K, 4, 4) at every cloud's knots, None where it falls into a gap of the odometry.

    All are asked for at once (a push-broom window has hundreds of scans); only if one is missing, each by itself.
    """
    knots = [_knots(cloud) for cloud in clouds]
    if not knots:
        return []
    together = odometry.poses_at(np.concatenate(knots))
    if together is None:
        return [odometry.poses_at(stamps) for stamps in knots]
    return list(np.split(together, np.cumsum([len(stamps) for stamps in knots])[:-1]))


def _deskewed(cloud: Cloud, T_base_lidar_K44: Array) -> NDArray[np.float32]:
    """Every point moved by the pose at its own time, blended between the two neighbouring knots' poses."""
    count = len(T_base_lidar_K44)
    if count == 1 or cloud.stamps_ns_N is None:
        return transform_points(T_base_lidar_K44[0], cloud.xyz_N3)
    first, last = cloud.stamps_ns_N.min(), cloud.stamps_ns_N.max()
    place = (cloud.stamps_ns_N - first) * ((count - 1) / float(last - first))
    segment = np.minimum(place.astype(np.intp), count - 2)
    share = (place - segment).astype(np.float32)[:, None]
    # Points of one segment are moved together; most sensors deliver them in the order of time.
    order = None if (segment[1:] >= segment[:-1]).all() else np.argsort(segment, kind="stable")
    xyz, ordered = (cloud.xyz_N3, segment) if order is None else (cloud.xyz_N3[order], segment[order])
    share = share if order is None else share[order]
    bounds = np.searchsorted(ordered, np.arange(count))
    moved = np.empty_like(xyz)
    for k in range(count - 1):
        part = slice(bounds[k], bounds[k + 1])
        early = transform_points(T_base_lidar_K44[k], xyz[part])
        late = transform_points(T_base_lidar_K44[k + 1], xyz[part])
        moved[part] = early + share[part] * (late - early)
    if order is None:
        return moved
    result = np.empty_like(moved)
    result[order] = moved
    return result
