"""Training samples: every frame is prepared once and kept in a memory-mapped cache; augmentation works on batches.

The cache holds `rgb.u8` (N, H, W, 3), `depth.f16` (N, H, W) in metres and `samples.npz` (poses, stamps, presence,
recordings), at a size slightly larger than the network's, so that crops can be taken.
"""

from __future__ import annotations

import errno
import json
import shutil
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from vmloc_ros import files
from vmloc_ros.errors import TrainingError
from vmloc_ros.fitting import fit_depth, fit_intrinsics, fit_rgb
from vmloc_ros.geometry import Array
from vmloc_ros.types import Frame, PinholeIntrinsics

INDEX = "samples.npz"
CAMERA = "camera.json"
RGB = "rgb.u8"
DEPTH = "depth.f16"
MAX_FOCAL_CHANGE = 0.05
"""Training frames whose relative focal length differs by more than this do not belong in one model."""

CAMERA_FIELDS = ("width", "height", "fx", "fy", "cx", "cy")
NO_FRAME = "no frame with a pose and an image or depth was found; check --data and the sensors"
NOT_WHOLE = (OSError, ValueError, KeyError, zipfile.BadZipFile)
"""What reading a folder that is not whole may raise."""
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

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


class StoreWriter:
    """Fills a cache folder, frame by frame; to be used in a `with` block, inside `files.whole_folder`.

    Attributes:
        seen: how many frames were given; those without any modality are counted, but not stored.
    """

    def __init__(self, folder: Path, rows: int, columns: int) -> None:
        self._folder, self._rows, self._columns = folder, rows, columns
        self._poses: list[Array] = []
        self._stamps: list[int] = []
        self._present: list[tuple[bool, bool]] = []
        self._names: list[str] = []
        self._numbers: list[int] = []
        self._camera: PinholeIntrinsics | None = None
        self.seen = 0

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._rgb = stack.enter_context((self._folder / RGB).open("wb"))
            self._depth = stack.enter_context((self._folder / DEPTH).open("wb"))
            self._files = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._files.close()

    def __len__(self) -> int:
        return len(self._stamps)

    def add(self, frame: Frame, T_map_camera: Array, name: str) -> None:
        """Appends a frame of the recording `name`.

        Raises:
            TrainingError: its camera is another than the frames' before.
        """
        self.seen += 1
        if frame.rgb is None and frame.depth_m is None:
            return
        size = self._rows, self._columns
        self._camera = same_camera(self._camera, fit_intrinsics(frame.intrinsics, *size), name)
        rgb = np.zeros((*size, 3), np.uint8) if frame.rgb is None else fit_rgb(frame.rgb, *size)
        depth = np.zeros(size, np.float32) if frame.depth_m is None else fit_depth(frame.depth_m, *size)
        self._rgb.write(rgb.tobytes())
        self._depth.write(np.minimum(depth, 65000.0).astype(np.float16).tobytes())
        self._poses.append(T_map_camera)
        self._stamps.append(frame.stamp_ns)
        self._present.append((frame.rgb is not None, frame.depth_m is not None))
        self._names.append(name)
        self._numbers.append(self.seen - 1)

    def finish(self, key: str, about: Mapping[str, Any]) -> None:
        """Writes what belongs to the pixels: poses, stamps, the camera, and `about` (JSON)."""
        self._rgb.flush()
        self._depth.flush()
        recordings = list(dict.fromkeys(self._names))
        arrays = {
            "T_map_camera": np.array(self._poses).reshape(-1, 4, 4),
            "stamps_ns": np.array(self._stamps, dtype=np.int64),
            "present": np.array(self._present, dtype=bool).reshape(-1, 2),
            "recording_of": np.array([recordings.index(name) for name in self._names], dtype=np.int64),
            "numbers": np.array(self._numbers, dtype=np.int64),
        }
        write_index(self._folder, arrays, self._camera, recordings, key, {**about, "seen": self.seen})


def write_index(
    folder: Path,
    arrays: Mapping[str, Any],
    camera: PinholeIntrinsics | None,
    recordings: list[str],
    key: str,
    about: Mapping[str, Any],
) -> None:
    """The files of a cache folder beside its pixels."""
    np.savez(folder / INDEX, **arrays)
    values = None if camera is None else {name: getattr(camera, name) for name in CAMERA_FIELDS}
    files.write_json(folder / CAMERA, {"key": key, "camera": values, "recordings": recordings, "about": dict(about)})


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
        TrainingError: there is no frame, cameras that do not belong together, or a disk that is full.
    """
    with room_on_disk(folder), files.whole_folder(folder) as partial, StoreWriter(partial, rows, columns) as writer:
        for frame, T_map_camera, name in frames:
            advance()
            writer.add(frame, T_map_camera, name)
        if not len(writer):
            raise TrainingError(NO_FRAME)
        writer.finish(key, {})
    return just_written(folder, key)


def just_written(folder: Path, key: str) -> SampleStore:
    """Opens a cache that has been written.

    Raises:
        TrainingError: it cannot be read.
    """
    store = open_store(folder, key)
    if store is None:
        raise TrainingError(f"{folder}: the cache that was just written cannot be read; is the disk damaged?")
    return store


@contextmanager
def room_on_disk(folder: Path, needed_bytes: int = 0) -> Iterator[None]:
    """Turns a disk that is full into one line.

    Args:
        folder: what is written; what stood there before stays.
        needed_bytes: how much that may take in all, for the message; 0 if nobody knows.

    Raises:
        TrainingError: there is no room, or the limit of a quota or of a file's size is reached.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        needed = f" of the up to {needed_bytes / 1e6:.0f} MB that the samples need" if needed_bytes else ""
        raise TrainingError(
            f"{folder}: the disk is full ({error.strerror}), {free_bytes(folder) / 1e6:.0f} MB are free{needed}; what "
            "is finished is kept: make room and run the same command again"
        ) from error


def free_bytes(folder: Path) -> int:
    """Room on the disk where `folder` is, or will be."""
    place = next((place for place in (folder, *folder.absolute().parents) if place.exists()), Path("/"))
    return shutil.disk_usage(place).free


def same_camera(first: PinholeIntrinsics | None, camera: PinholeIntrinsics, name: str) -> PinholeIntrinsics:
    """The first of the frames' cameras.

    Raises:
        TrainingError: the other one is not like it.
    """
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
        arrays = read_arrays(folder, ("T_map_camera", "stamps_ns", "present", "recording_of"))
        camera = PinholeIntrinsics(**about["camera"])
        count, rows, columns = len(arrays["stamps_ns"]), camera.height, camera.width
        rgb = np.memmap(folder / RGB, np.uint8, "r", shape=(count, rows, columns, 3))
        depth = np.memmap(folder / DEPTH, np.float16, "r", shape=(count, rows, columns))
    except (*NOT_WHOLE, TypeError):
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


def read_arrays(folder: Path, names: Iterable[str]) -> dict[str, NDArray[Any]]:
    """Arrays of a cache folder's index.

    Raises:
        NOT_WHOLE: it is not there, not whole, or lacks one.
    """
    with np.load(folder / INDEX, allow_pickle=False) as index:
        return {name: index[name] for name in names}
