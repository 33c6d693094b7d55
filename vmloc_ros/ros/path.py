"""The path that was driven, bounded, and serialized without a Python object per pose.

A nav_msgs/Path of 2000 poses takes rclpy 36 ms to serialize, during which no odometry gets through to `/tf`. The poses
are therefore kept as rows of CDR (the wire format of DDS), and published as bytes: 0.1 ms.
"""

from __future__ import annotations

import struct

import numpy as np
from numpy.typing import NDArray

from vmloc_ros.geometry import Array, quaternion_from_pose, rotation_angle
from vmloc_ros.messages import split_stamp

MIN_STEP_M = 0.1
MIN_TURN_RAD = 0.1
CDR_LITTLE_ENDIAN = b"\x00\x01\x00\x00"


class PathBuffer:
    """Poses `T_map_base` at least 0.1 m or 0.1 rad apart, the newest `capacity` of them."""

    def __init__(self, capacity: int, frame_id: str) -> None:
        self._capacity = capacity
        self._frame_id = frame_id
        self._name = frame_id.encode() + b"\x00"
        self._row = _row_type(len(self._name))
        self._rows: NDArray[np.void] = np.zeros(2 * capacity, dtype=self._row)
        self._rows["length"] = len(self._name)
        self._rows["name"] = np.frombuffer(self._name, dtype=np.uint8)
        self._begin = self._end = 0
        self._last: Array | None = None
        self.changed = False

    def __len__(self) -> int:
        return self._end - self._begin

    def clear(self) -> None:
        """Forgets all poses."""
        self._begin = self._end = 0
        self._last = None
        self.changed = True

    def add(self, stamp_ns: int, T_map_base: Array) -> None:
        """Appends a pose, unless it is where the last one was."""
        last = self._last
        if last is not None:
            step_m = float(np.linalg.norm(T_map_base[:3, 3] - last[:3, 3]))
            if step_m < MIN_STEP_M and rotation_angle(last[:3, :3], T_map_base[:3, :3]) < MIN_TURN_RAD:
                return
        if self._end == len(self._rows):  # slide the newest half to the front: constant cost per pose
            kept = self._capacity - 1
            self._rows[:kept] = self._rows[self._end - kept :].copy()
            self._begin, self._end = 0, kept
        row = self._rows[self._end]
        row["sec"], row["nanosec"] = split_stamp(stamp_ns)
        row["numbers"][:3] = T_map_base[:3, 3]
        row["numbers"][3:] = quaternion_from_pose(T_map_base)
        self._end += 1
        self._begin = max(self._begin, self._end - self._capacity)
        self._last = T_map_base
        self.changed = True

    def serialized(self, stamp_ns: int) -> bytes:
        """nav_msgs/Path as CDR bytes, for `publisher.publish`."""
        sec, nanosec = split_stamp(stamp_ns)
        head = struct.pack("<iII", sec, nanosec, len(self._name)) + self._name
        head = _padded(head, 4) + struct.pack("<I", len(self))
        if not len(self):
            return CDR_LITTLE_ENDIAN + head
        rows = self._rows[self._begin : self._end]
        first = rows[0]  # it starts wherever the header ended; all others start at a multiple of eight
        head += struct.pack("<iII", first["sec"], first["nanosec"], len(self._name)) + self._name
        return CDR_LITTLE_ENDIAN + _padded(head, 8) + first["numbers"].tobytes() + rows[1:].tobytes()


def _padded(data: bytes, boundary: int) -> bytes:
    return data + b"\x00" * (-len(data) % boundary)


def _row_type(name_bytes: int) -> np.dtype[np.void]:
    """One geometry_msgs/PoseStamped in CDR that starts at a multiple of eight bytes."""
    numbers_at = -(-(12 + name_bytes) // 8) * 8
    return np.dtype(
        {
            "names": ["sec", "nanosec", "length", "name", "numbers"],
            "formats": ["<i4", "<u4", "<u4", ("u1", (name_bytes,)), ("<f8", (7,))],
            "offsets": [0, 4, 8, 12, numbers_at],
            "itemsize": numbers_at + 56,
        }
    )
