"""Prepared samples in pieces: each is a small cache of a part of a recording, and together they are joined into one.

A piece appears under its name only when it is whole. A preparation that was killed therefore goes on with the pieces
that are missing.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vmloc_ros import files
from vmloc_ros.errors import TrainingError
from vmloc_ros.geometry import Array
from vmloc_ros.samples import (
    CAMERA,
    DEPTH,
    NO_FRAME,
    NOT_WHOLE,
    RGB,
    SampleStore,
    free_bytes,
    just_written,
    read_arrays,
    room_on_disk,
    same_camera,
    write_index,
)
from vmloc_ros.types import PinholeIntrinsics


@dataclass(frozen=True, eq=False)
class Piece:
    """A part of a recording's frames, prepared.

    Attributes:
        numbers: (N,) of each stored frame, its place among all frames of the part, also those that are not stored.
        seen: how many frames the part has.
        about: what its maker left in it.
    """

    folder: Path
    recording: str
    T_map_camera: Array
    stamps_ns: NDArray[np.int64]
    present: NDArray[np.bool_]
    numbers: NDArray[np.int64]
    seen: int
    camera: PinholeIntrinsics | None
    about: dict[str, Any]

    def __len__(self) -> int:
        return len(self.stamps_ns)

    def chosen(self, first: int, stride: int) -> NDArray[np.int64]:
        """Indices of every n-th frame, where `first` frames of the recording came before this part."""
        return np.flatnonzero((first + self.numbers) % stride == 0)


def open_piece(folder: Path, recording: str, key: str, rows: int, columns: int) -> Piece | None:
    """A piece, or None where there is none, it is not whole, or it was made from something else."""
    try:
        stored = json.loads((folder / CAMERA).read_text(encoding="utf-8"))
        if stored["key"] != key:
            return None
        arrays = read_arrays(folder, ("T_map_camera", "stamps_ns", "present", "numbers"))
        camera = None if stored["camera"] is None else PinholeIntrinsics(**stored["camera"])
        sizes = [(folder / name).stat().st_size for name in (RGB, DEPTH)]
        pixels = len(arrays["stamps_ns"]) * rows * columns
        if sizes != [3 * pixels, 2 * pixels]:
            return None
        about = dict(stored["about"])
        return Piece(folder, recording, **arrays, seen=int(about["seen"]), camera=camera, about=about)
    except (*NOT_WHOLE, TypeError):
        return None


def join_pieces(
    folder: Path, pieces: Sequence[Piece], rows: int, columns: int, key: str, stride: int, about: dict[str, Any]
) -> SampleStore:
    """One cache of all pieces, those of a recording one after the other.

    Args:
        folder: of the cache; what stands there is replaced when the new one is whole. The pieces stay.
        rows, columns: stored size.
        stride: take every n-th frame of each recording.

    Raises:
        TrainingError: no frame, cameras that do not belong together, or a disk that has not enough room.
    """
    chosen = list(_chosen(pieces, stride))
    count = sum(len(rows_taken) for _, rows_taken in chosen)
    if not count:
        raise TrainingError(NO_FRAME)
    camera: PinholeIntrinsics | None = None
    for piece, _ in chosen:
        if piece.camera is not None:
            camera = same_camera(camera, piece.camera, piece.recording)
    needed = 5 * rows * columns * count
    if free_bytes(folder) < needed:
        raise TrainingError(
            f"{folder}: the disk has {free_bytes(folder) / 1e6:.0f} MB left, and the prepared samples need "
            f"{needed / 1e6:.0f} MB; what is prepared is kept: make room and run the same command again"
        )
    names = list(dict.fromkeys(piece.recording for piece, taken in chosen if len(taken)))
    with room_on_disk(folder, needed), files.whole_folder(folder) as partial:
        for name, pixel_bytes in ((RGB, 3 * rows * columns), (DEPTH, 2 * rows * columns)):
            _copy_pixels(partial / name, chosen, name, pixel_bytes)
        arrays = {
            name: np.concatenate([getattr(piece, name)[taken] for piece, taken in chosen])
            for name in ("T_map_camera", "stamps_ns", "present")
        }
        arrays["recording_of"] = np.concatenate(
            [np.full(len(taken), names.index(piece.recording), np.int64) for piece, taken in chosen if len(taken)]
        )
        write_index(partial, arrays, camera, names, key, about)
    return just_written(folder, key)


def _chosen(pieces: Sequence[Piece], stride: int) -> Iterator[tuple[Piece, NDArray[np.int64]]]:
    """Pieces with the indices of their frames that are taken, counted through each recording."""
    before: dict[str, int] = {}
    for piece in pieces:
        first = before.get(piece.recording, 0)
        before[piece.recording] = first + piece.seen
        yield piece, piece.chosen(first, stride)


def _copy_pixels(path: Path, chosen: Sequence[tuple[Piece, NDArray[np.int64]]], name: str, frame_bytes: int) -> None:
    """One pixel file out of those of the pieces."""
    with path.open("wb") as out:
        for piece, taken in chosen:
            with (piece.folder / name).open("rb") as source:
                if len(taken) == len(piece):
                    shutil.copyfileobj(source, out, 1 << 20)
                    continue
                for index in taken.tolist():
                    source.seek(index * frame_bytes)
                    out.write(source.read(frame_bytes))
