"""Saved poses for the tests of what reads and writes them."""

from __future__ import annotations

import numpy as np

from vmloc_ros.config import FrameNames
from vmloc_ros.geometry import Array, inverse
from vmloc_ros.saved_pose import SavedPose, saved_pose
from vmloc_ros.types import FusedState

MODEL = "5c" * 32
"""The scripted localizer's."""
FRAMES = FrameNames()


def some_covariance(seed: int = 0) -> Array:
    """A covariance (6, 6) with correlations."""
    A = 0.3 * np.random.default_rng(seed).normal(size=(6, 6))
    return np.asarray(A @ A.T + 0.01 * np.eye(6))


def content(T_map_base: Array, T_odom_base: Array, stamp_ns: int, seed: int = 0) -> SavedPose:
    """What a node with the scripted localizer would have saved."""
    state = FusedState(stamp_ns, T_map_base, some_covariance(seed), T_map_base @ inverse(T_odom_base))
    return saved_pose(state, T_odom_base, MODEL, FRAMES)
