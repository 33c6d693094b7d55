"""A wall with a picture on it, seen from poses nearby: colour, depth and pose agree to the last pixel."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from pictures import CAMERA, START_NS, STEP_NS, TINY

from vmloc_ros.config import parse
from vmloc_ros.geometry import Array, exp_se3
from vmloc_ros.samples import Labelled, SampleStore, build_store
from vmloc_ros.training_config import TrainingConfig
from vmloc_ros.types import Frame, FrameKey, Modality

WALL_Z = 3.0
"""The wall is the map's plane z = 3 m; the cameras stand about its origin and look along z."""
NETWORK: dict[str, Any] = {
    "architecture": "scene_coordinates",
    "width": 48,
    "height": 36,
    "channels": [8, 12],
    "blocks": 1,
    "context": 8,
    "context_channels": [12],
    "context_rows": 2,
    "context_columns": 3,
    "hidden": [16],
}


def scene_config(**changes: Any) -> TrainingConfig:
    """A tiny configuration; a section given as a mapping changes only the keys it names."""
    values = {**TINY, "network": NETWORK, "augmentation": {"erase_chance": 0.0}}
    for key, value in changes.items():
        values[key] = {**values.get(key, {}), **value} if isinstance(value, dict) else value
    return parse(TrainingConfig, values, "test")


def wall_pose(share: float) -> Array:
    """T_map_camera: sideways along the wall, a little turned."""
    return exp_se3([1.5 * share - 0.75, 0.2 * np.sin(5.0 * share), 0.3 * share, 0.02, 0.1 * share, 0.05 * share])


def wall_frame(share: float, stamp_ns: int, modalities: tuple[str, ...] = ("rgb", "depth")) -> Frame:
    """What the camera sees there."""
    T = wall_pose(share)
    v, u = np.mgrid[0 : CAMERA.height, 0 : CAMERA.width].astype(float)
    rays = np.stack([(u - CAMERA.cx) / CAMERA.fx, (v - CAMERA.cy) / CAMERA.fy, np.ones_like(u)], axis=-1) @ T[:3, :3].T
    depth = (WALL_Z - T[2, 3]) / rays[..., 2]
    x, y = (T[k, 3] + depth * rays[..., k] for k in (0, 1))
    rgb = np.stack(
        [127 + 60 * np.sin(2 * x + k) * np.cos(3 * y - k) + 50 * np.sin(5 * x + 2 * k) for k in range(3)], -1
    )
    absent = {m: "not sent" for m in Modality if m.value not in modalities}
    return Frame(
        FrameKey(stamp_ns, stamp_ns if "rgb" in modalities else None),
        CAMERA,
        rgb.astype(np.uint8) if "rgb" in modalities else None,
        depth.astype(np.float32) if "depth" in modalities else None,
        absent,
    )


def wall_drive(count: int, alone: dict[int, str] | None = None) -> Iterator[Labelled]:
    """Labelled frames; those of `alone` show one modality only."""
    for index in range(count):
        share, name = index / max(1, count - 1), (alone or {}).get(index)
        shown = ("rgb", "depth") if name is None else (name,)
        yield wall_frame(share, START_NS + index * STEP_NS, shown), wall_pose(share), "drive"


def wall_store(folder: Path, config: TrainingConfig, count: int, alone: dict[int, str] | None = None) -> SampleStore:
    """Prepared samples of the wall."""
    return build_store(folder, wall_drive(count, alone), *config.stored_size(), "key")
