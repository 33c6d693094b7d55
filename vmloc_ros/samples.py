"""Training samples: every frame is prepared once and kept in a memory-mapped cache; augmentation works on batches.

The cache holds `rgb.u8` (N, H, W, 3), `depth.f16` (N, H, W) in metres and `samples.npz` (poses, stamps, presence,
recordings), at a size slightly larger than the network's, so that crops can be taken.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vmloc_ros import files
from vmloc_ros.errors import TrainingError
from vmloc_ros.geometry import Array
from vmloc_ros.networks.inputs import fit_depth, fit_intrinsics, fit_rgb
from vmloc_ros.types import Frame, PinholeIntrinsics

INDEX = "samples.npz"
CAMERA = "camera.json"
RGB = "rgb.u8"
DEPTH = "depth.f16"
MAX_FOCAL_CHANGE = 0.05
"""Training frames whose relative focal length differs by more than this do not belong in one model."""

Labelled = tuple[Frame, Array, str]
"""A frame, T_map_camera, and its recording's name."""


@dataclass(frozen=True, eq=False)
class SampleStore:
    """Prepared samples.

    Attributes:
        rgb: (N, H, W, 3) uint8, memory-mapped; zeros where `has_rgb` is false (never shown to a network).
        depth_m: (N, H, W) float16 metres, memory-mapped, likewise.
        has_rgb, has_depth: (N,) bool.
        T_map_camera: (N, 4, 4).
        stamps_ns: (N,).
        recordings: names; `recording_of` (N,) indexes them.
        camera: of the stored size.
    """

    rgb: NDArray[np.uint8]
    depth_m: NDArray[np.float16]
    has_rgb: NDArray[np.bool_]
    has_depth: NDArray[np.bool_]
    T_map_camera: Array
    stamps_ns: NDArray[np.int64]
    recordings: list[str]
    recording_of: NDArray[np.int64]
    camera: PinholeIntrinsics

    def __len__(self) -> int:
        return len(self.stamps_ns)

    def name(self, index: int) -> str:
        """`recording@stamp`, for messages."""
        return f"{self.recordings[int(self.recording_of[index])]}@{int(self.stamps_ns[index])}"


def build_store(
    folder: Path,
    frames: Iterable[Labelled],
    rows: int,
    columns: int,
    key: str,
    advance: Callable[[], None] = lambda: None,
) -> SampleStore:
    """Prepares all frames into a cache folder, which appears under its name only when it is whole.

    Args:
        folder: of the cache.
        frames: with at least one modality each; others are left out.
        rows, columns: stored size.
        key: what the samples depend on; `open_store` compares it.
        advance: called once per frame (progress).

    Raises:
        TrainingError: there is no frame, or cameras that do not belong together.
    """
    poses: list[Array] = []
    stamps: list[int] = []
    present: list[tuple[bool, bool]] = []
    names: list[str] = []
    camera: PinholeIntrinsics | None = None
    with files.whole_folder(folder) as partial:
        with (partial / RGB).open("wb") as rgb_file, (partial / DEPTH).open("wb") as depth_file:
            for frame, T_map_camera, name in frames:
                advance()
                if frame.rgb is None and frame.depth_m is None:
                    continue
                camera = _same_camera(camera, fit_intrinsics(frame.intrinsics, rows, columns), name)
                rgb = np.zeros((rows, columns, 3), np.uint8) if frame.rgb is None else fit_rgb(frame.rgb, rows, columns)
                depth = (
                    np.zeros((rows, columns), np.float32)
                    if frame.depth_m is None
                    else fit_depth(frame.depth_m, rows, columns)
                )
                rgb_file.write(rgb.tobytes())
                depth_file.write(np.minimum(depth, 65000.0).astype(np.float16).tobytes())
                poses.append(T_map_camera)
                stamps.append(frame.stamp_ns)
                present.append((frame.rgb is not None, frame.depth_m is not None))
                names.append(name)
        if camera is None:
            raise TrainingError("no frame with a pose and an image or depth was found; check --data and the sensors")
        recordings = list(dict.fromkeys(names))
        np.savez(
            partial / INDEX,
            T_map_camera=np.stack(poses),
            stamps_ns=np.array(stamps, dtype=np.int64),
            present=np.array(present, dtype=bool),
            recording_of=np.array([recordings.index(name) for name in names], dtype=np.int64),
        )
        values = {name: getattr(camera, name) for name in ("width", "height", "fx", "fy", "cx", "cy")}
        files.write_json(partial / CAMERA, {"key": key, "camera": values, "recordings": recordings})
    store = open_store(folder, key)
    if store is None:
        raise TrainingError(f"{folder}: the cache that was just written cannot be read; is the disk full?")
    return store


def _same_camera(first: PinholeIntrinsics | None, camera: PinholeIntrinsics, name: str) -> PinholeIntrinsics:
    if first is None:
        return camera
    if abs(camera.fx / first.fx - 1.0) > MAX_FOCAL_CHANGE or abs(camera.fy / first.fy - 1.0) > MAX_FOCAL_CHANGE:
        raise TrainingError(
            f"{name}: focal length {camera.fx:.1f} px at the network's size, other recordings have {first.fx:.1f}; "
            "train one model per camera"
        )
    return first


def open_store(folder: Path, key: str) -> SampleStore | None:
    """The cache, or None where there is none, it is not whole, or it was made from something else."""
    try:
        about = json.loads((folder / CAMERA).read_text(encoding="utf-8"))
        if about["key"] != key:
            return None
        with np.load(folder / INDEX, allow_pickle=False) as index:
            arrays = {name: index[name] for name in ("T_map_camera", "stamps_ns", "present", "recording_of")}
        camera = PinholeIntrinsics(**about["camera"])
        count, rows, columns = len(arrays["stamps_ns"]), camera.height, camera.width
        rgb = np.memmap(folder / RGB, np.uint8, "r", shape=(count, rows, columns, 3))
        depth = np.memmap(folder / DEPTH, np.float16, "r", shape=(count, rows, columns))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return SampleStore(
        rgb,
        depth,
        arrays["present"][:, 0],
        arrays["present"][:, 1],
        arrays["T_map_camera"],
        arrays["stamps_ns"],
        list(about["recordings"]),
        arrays["recording_of"],
        camera,
    )
