"""Odometry of a 3-D lidar by the library `kiss-icp`.

Method: I. Vizzo et al., "KISS-ICP: in defense of point-to-point ICP", IEEE RA-L 2023.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from vmloc_ros.errors import SetupError
from vmloc_ros.geometry import Array, inverse

VOXEL_M = 1.0


Scan = tuple[NDArray[np.float32], NDArray[np.float32] | None]


class ScanMatcher:
    """Registers one scan after the other; one thread, so that a repetition gives the same poses.

    Args:
        first: the first two scans, from which the speed at the start is taken: otherwise the first scan, whose points
            cannot be de-skewed yet, shifts all poses by half a turn's motion.

    Raises:
        SetupError: the library is not installed.
    """

    def __init__(self, first: list[Scan]) -> None:
        self._engine = self._new_engine()
        for scan in first:
            self.add(*scan)
        T_first_second = self._engine.last_delta
        if first:
            self._engine = self._new_engine()
            self._engine.last_delta = T_first_second
            self._engine.last_pose = inverse(T_first_second)  # so that the first scan's predicted pose is identity

    @staticmethod
    def _new_engine() -> Any:
        try:
            from kiss_icp.config import KISSConfig
            from kiss_icp.kiss_icp import KissICP
        except ImportError as error:
            raise SetupError(
                f"odometry kiss-icp needs the library kiss-icp ({error}); install it or take another odometry"
            ) from error
        config = KISSConfig()
        config.mapping.voxel_size = VOXEL_M
        config.registration.max_num_threads = 1
        return KissICP(config)

    def add(self, xyz_N3: NDArray[np.float32], fraction_N: NDArray[np.float32] | None) -> Array:
        """`T_first_current` of the lidar at this scan's end.

        Args:
            xyz_N3: points in the lidar's axes.
            fraction_N: when in the turn each point was measured, 0 to 1; None: all at once, no de-skewing.
        """
        times = np.ones(len(xyz_N3)) if fraction_N is None else fraction_N.astype(np.float64)
        self._engine.register_frame(xyz_N3.astype(np.float64), times)
        return np.array(self._engine.last_pose, dtype=np.float64)
