"""Poses over time: interpolation that never bridges a gap, and TUM files."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from vmloc_ros.errors import TrajectoryError
from vmloc_ros.geometry import Array, interpolate

NANOSECONDS = 1_000_000_000


@dataclass(frozen=True, eq=False)
class Trajectory:
    """Poses `T_parent_body` (N, 4, 4) at strictly increasing `stamps_ns` (N,).

    Pairs of neighbours further apart than `max_gap_s` are not interpolated.
    """

    stamps_ns: NDArray[np.int64]
    poses_N44: Array
    max_gap_s: float = 1.0

    def __post_init__(self) -> None:
        if len(self.stamps_ns) != len(self.poses_N44):
            raise TrajectoryError(f"{len(self.stamps_ns)} stamps for {len(self.poses_N44)} poses")
        if len(self.stamps_ns) > 1 and not (np.diff(self.stamps_ns) > 0).all():
            raise TrajectoryError("a trajectory's stamps must increase; sort them and drop the repeated ones first")
        if not np.isfinite(self.poses_N44).all():
            raise TrajectoryError("a trajectory holds a pose that is not finite")

    def __len__(self) -> int:
        return len(self.stamps_ns)

    def covers(self, stamp_ns: int) -> bool:
        """Whether `interpolate` has an answer."""
        return self._bracket(stamp_ns) is not None

    def _bracket(self, stamp_ns: int) -> tuple[int, int] | None:
        if len(self.stamps_ns) == 0:
            return None
        after = int(np.searchsorted(self.stamps_ns, stamp_ns))
        if after < len(self.stamps_ns) and int(self.stamps_ns[after]) == stamp_ns:
            return after, after
        if after == 0 or after == len(self.stamps_ns):
            return None
        if int(self.stamps_ns[after] - self.stamps_ns[after - 1]) > self.max_gap_s * NANOSECONDS:
            return None
        return after - 1, after

    def interpolate(self, stamp_ns: int) -> Array:
        """Pose at a stamp: exact at the trajectory's own, slerp and linear between neighbours.

        Raises:
            TrajectoryError: outside the trajectory, or in a gap longer than `max_gap_s`.
        """
        bracket = self._bracket(stamp_ns)
        if bracket is None:
            raise TrajectoryError(f"no pose at {stamp_ns / NANOSECONDS:.3f} s: outside the trajectory or in a gap")
        before, after = bracket
        if before == after:
            return self.poses_N44[before].copy()
        start, end = int(self.stamps_ns[before]), int(self.stamps_ns[after])
        return interpolate(self.poses_N44[before], self.poses_N44[after], (stamp_ns - start) / (end - start))

    def length_m(self) -> float:
        """Length of the path."""
        return float(np.linalg.norm(np.diff(self.poses_N44[:, :3, 3], axis=0), axis=1).sum())

    def transformed(self, T_left: Array | None = None, T_right: Array | None = None) -> Trajectory:
        """`T_left @ T @ T_right` for every pose."""
        poses = self.poses_N44
        if T_left is not None:
            poses = T_left @ poses
        if T_right is not None:
            poses = poses @ T_right
        return Trajectory(self.stamps_ns, poses, self.max_gap_s)


def write_tum(path: Path, trajectory: Trajectory) -> None:
    """Writes `stamp_s x y z qx qy qz qw` lines, nine decimals of time, atomically."""
    quats = Rotation.from_matrix(trajectory.poses_N44[:, :3, :3]).as_quat() if len(trajectory) else np.empty((0, 4))
    lines = []
    for stamp_ns, pose, quat in zip(trajectory.stamps_ns.tolist(), trajectory.poses_N44, quats, strict=True):
        numbers = " ".join(f"{value:.9f}" for value in (*pose[:3, 3], *(quat if quat[3] >= 0 else -quat)))
        lines.append(f"{stamp_to_text(stamp_ns)} {numbers}\n")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".part")
    partial.write_text("".join(lines), encoding="ascii")
    os.replace(partial, path)


def stamp_to_text(stamp_ns: int) -> str:
    """Seconds with nine decimals."""
    sign = "-" if stamp_ns < 0 else ""
    return f"{sign}{abs(stamp_ns) // NANOSECONDS}.{abs(stamp_ns) % NANOSECONDS:09d}"


def stamp_from_text(text: str) -> int:
    """Nanoseconds of a decimal number of seconds, without going through a float (which has only 200 ns today).

    Raises:
        ValueError, OverflowError: not a number, not finite, or beyond 64 bits of nanoseconds.
    """
    sign = -1 if text.startswith("-") else 1
    whole, _, decimals = text.removeprefix("-").partition(".")
    if whole.isdecimal() and (not decimals or decimals.isdecimal()):
        stamp_ns = sign * (int(whole) * NANOSECONDS + int((decimals + "000000000")[:9]))
    else:
        stamp_ns = round(float(text) * NANOSECONDS)
    if not -(2**63) <= stamp_ns < 2**63:
        raise OverflowError(f"{text} seconds do not fit 64 bits of nanoseconds")
    return stamp_ns


def read_tum(path: Path, max_gap_s: float = 1.0) -> Trajectory:
    """Reads a TUM file (further columns are ignored).

    Raises:
        TrajectoryError: missing, or a line that has fewer than eight numbers, is not finite or has a zero quaternion.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TrajectoryError(f"{path}: cannot be read ({error})") from error
    stamps, numbers = [], []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        try:
            stamp, row = stamp_from_text(words[0]), [float(word) for word in words[1:8]]
        except (ValueError, OverflowError) as error:
            raise TrajectoryError(f"{path}:{number}: not a TUM line ({error})") from error
        if len(row) != 7 or not np.isfinite(row).all() or np.linalg.norm(row[3:]) < 1e-6:
            raise TrajectoryError(f"{path}:{number}: needs `stamp x y z qx qy qz qw`, finite, with a quaternion")
        stamps.append(stamp)
        numbers.append(row)
    if not stamps:
        raise TrajectoryError(f"{path}: holds no pose")
    stamps_ns, first = np.unique(np.array(stamps, dtype=np.int64), return_index=True)
    values = np.array(numbers)[first]
    poses = np.tile(np.eye(4), (len(values), 1, 1))
    poses[:, :3, :3] = Rotation.from_quat(values[:, 3:]).as_matrix()
    poses[:, :3, 3] = values[:, :3]
    return Trajectory(stamps_ns, poses, max_gap_s)
