"""`vmloc map-view`: what a Generative Map expects to see from a pose, along a path, and how well that fits a drive.

Poses are `T_map_camera`: the camera's optical frame (x right, y down, z forward) in the map. Pictures are written as
PNG, enlarged by whole pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from scipy.spatial.transform import Rotation

from vmloc_ros import files
from vmloc_ros.assembly import LabelledFrame, labelled_frames
from vmloc_ros.commands.evaluate import choose, reader_options, settings_of
from vmloc_ros.config import ModelConfig
from vmloc_ros.errors import ConfigError
from vmloc_ros.extrinsics import pose_from_list
from vmloc_ros.geometry import Array
from vmloc_ros.localizer import load_localizer
from vmloc_ros.localizers.generative_map import MapLocalizer
from vmloc_ros.progress import progress_bar
from vmloc_ros.recordings import open_any
from vmloc_ros.runtimes.generative_map import mismatch
from vmloc_ros.trajectory import read_tum
from vmloc_ros.types import NoPose

ENLARGED = 4
GAP = 4
"""White pixels between the pictures of a sheet."""
SHEET_COLUMNS, SHEET_PICTURES = 6, 24
METRES_PER_RADIAN = 10.0
"""A turn by a radian counts as much as so many metres, where the frame nearest to a pose is looked for."""

Pictures = NDArray[np.uint8]


def open_map(model: Path, device: str = "auto") -> MapLocalizer:
    """A trained Generative Map.

    Raises:
        CheckpointError: see `load_localizer`.
        ConfigError: a model of another kind, which draws no views.
    """
    localizer = load_localizer(model, ModelConfig(path=str(model), device=device))
    if not isinstance(localizer, MapLocalizer):
        raise ConfigError(
            f"{model}: a {localizer.card.network.architecture} network draws no views; give the folder of a trained "
            "generative_map"
        )
    return localizer


def run_view(
    model: Path,
    pose: str,
    out: Path,
    like: Path | None = None,
    format: str = "town",
    recordings: Sequence[str] = (),
    options: dict[str, Any] | None = None,
    device: str = "auto",
) -> str:
    """Writes the view from one pose, to the right of the nearest frame of `like` if given; returns a line about it.

    Args:
        model: its folder.
        pose: T_map_camera as `x y z qx qy qz qw`.
        out: PNG to write.
        like, format, recordings, options: recordings to take the nearest frame from, as for `vmloc evaluate`.

    Raises:
        ConfigError, CheckpointError, DatasetError: with the argument or the file.
    """
    T_map_camera = pose_from_list(_numbers(pose), "--pose")
    localizer = open_map(model, device)
    expected = localizer.view(T_map_camera)
    if like is None:
        write_picture(out, sheet([expected], 1))
        return f"wrote {out}"
    best, distance = None, np.inf
    for item in _frames(localizer, model, like, format, recordings, options):
        apart = _apart(item.T_map_camera, T_map_camera)
        if apart < distance and item.frame.rgb is not None:
            best, distance = item, apart
    if best is None:
        raise ConfigError(f"{like}: no frame with a picture")
    seen = localizer.picture(best.frame)
    if isinstance(seen, NoPose):
        raise ConfigError(f"{best.recording}@{best.frame.stamp_ns}: {seen.reason}")
    write_picture(out, sheet([seen, expected], 2))
    metres = float(np.linalg.norm(best.T_map_camera[:3, 3] - T_map_camera[:3, 3]))
    turn = Rotation.from_matrix(best.T_map_camera[:3, :3].T @ T_map_camera[:3, :3]).magnitude()
    return (
        f"wrote {out}: {best.recording}@{best.frame.stamp_ns}, {metres:.2f} m and {np.rad2deg(turn):.1f} deg away | "
        "the view"
    )


def run_path(
    model: Path, path: Path, out: Path, mounting: str = "", count: int = SHEET_PICTURES, device: str = "auto"
) -> str:
    """Writes a contact sheet of views along a trajectory; returns a line about it.

    Args:
        path: TUM file of `T_map_camera`; of `T_map_base` with a `mounting`.
        out: PNG to write.
        mounting: T_base_camera as `x y z qx qy qz qw`; empty: the file has the camera's poses.
        count: at most so many views, at equal numbers of poses from each other.

    Raises:
        TrajectoryError, ConfigError, CheckpointError: with the file or argument.
    """
    poses_N44 = read_tum(path).poses_N44
    if mounting:
        poses_N44 = poses_N44 @ pose_from_list(_numbers(mounting), "--mounting")
    localizer = open_map(model, device)
    chosen = np.unique(np.linspace(0, len(poses_N44) - 1, min(count, len(poses_N44))).round().astype(int))
    write_picture(out, sheet(list(localizer.views(poses_N44[chosen])), SHEET_COLUMNS))
    return f"wrote {out}: {len(chosen)} views of {len(poses_N44)} poses, row by row"


def run_score(
    model: Path,
    source: Path,
    format: str,
    recordings: Sequence[str] = (),
    options: dict[str, Any] | None = None,
    out: Path | None = None,
    json: Path | None = None,
    device: str = "auto",
) -> dict[str, Any]:
    """How well views from the true poses of a drive fit what was seen there, beside the mean training picture.

    Args:
        source, format, recordings, options: as for `vmloc evaluate`.
        out: PNG of a contact sheet, pairs of seen | expected; none without.
        json: where the numbers are written.

    Returns:
        `psnr_db` of `view` and `mean_picture` and their difference, over the pictures as they are, and with the light
        of the seen picture (each colour of the drawn one times a gain, plus an offset, by least squares: both are
        drawn in the training data's light, which is not the drive's); and the `mismatch` as the localizer has it.

    Raises:
        ConfigError, CheckpointError, DatasetError: with the argument or the file.
    """
    console = Console(stderr=True)
    localizer = open_map(model, device)
    seen, poses, left_out = list[Pictures](), list[Array](), 0
    with progress_bar(console) as bar:
        task = bar.add_task("looking at frame", total=None)
        for item in _frames(localizer, model, source, format, recordings, options):
            bar.advance(task)
            picture = localizer.picture(item.frame)
            if isinstance(picture, NoPose):
                left_out += 1
                continue
            seen.append(picture)
            poses.append(item.T_map_camera)
    if not seen:
        raise ConfigError(f"{source}: no frame with a picture that the network can take")
    expected = np.concatenate([localizer.views(np.array(poses[k : k + 64])) for k in range(0, len(poses), 64)])
    report = {"frames": len(seen), "left_out": left_out, **score(np.array(seen), expected, localizer.mean_picture())}
    if json is not None:
        files.write_json(json, report)
    if out is not None:
        chosen = np.unique(np.linspace(0, len(seen) - 1, SHEET_PICTURES).round().astype(int))
        write_picture(out, sheet([side for k in chosen for side in (seen[k], expected[k])], SHEET_COLUMNS))
    return report


def score(seen_NHW3: Pictures, expected_NHW3: Pictures, mean_HW3: Pictures) -> dict[str, Any]:
    """The numbers of `run_score`, means over the frames."""
    seen, expected = (values.astype(np.float32) / 255.0 for values in (seen_NHW3, expected_NHW3))
    mean = np.broadcast_to(mean_HW3.astype(np.float32) / 255.0, seen.shape)
    result: dict[str, Any] = {}
    for name, change in (("psnr_db", lambda drawn: drawn), ("psnr_db_in_its_light", lambda drawn: relit(drawn, seen))):
        view, plain = float(psnr_db(change(expected), seen).mean()), float(psnr_db(change(mean), seen).mean())
        result[name] = {"view": view, "mean_picture": plain, "gain": view - plain}
    apart = mismatch(np.moveaxis(seen, -1, 1), np.moveaxis(expected, -1, 1))
    result["mismatch"] = {"median": float(np.median(apart)), "p95": float(np.quantile(apart, 0.95))}
    return result


def psnr_db(drawn_NHW3: NDArray[np.float32], seen_NHW3: NDArray[np.float32]) -> Array:
    """Peak signal to noise ratio of pictures with values in 0..1 (N,), at most 100."""
    error_N = np.square(drawn_NHW3 - seen_NHW3, dtype=float).mean(axis=(1, 2, 3))
    return np.asarray(-10.0 * np.log10(np.maximum(error_N, 1e-10)), dtype=float)


def relit(drawn_NHW3: NDArray[np.float32], seen_NHW3: NDArray[np.float32]) -> NDArray[np.float32]:
    """Drawn pictures with every colour scaled (not turned into its negative) and shifted to fit the seen ones best."""
    middle = drawn_NHW3.mean(axis=(1, 2), keepdims=True)
    target = seen_NHW3.mean(axis=(1, 2), keepdims=True)
    centred = drawn_NHW3 - middle
    power = np.square(centred).mean(axis=(1, 2), keepdims=True)
    gain = (centred * (seen_NHW3 - target)).mean(axis=(1, 2), keepdims=True) / np.maximum(power, 1e-9)
    return np.asarray(np.maximum(gain, 0.0) * centred + target, dtype=np.float32)


def sheet(pictures: Sequence[Pictures], columns: int) -> Pictures:
    """Pictures of one size row by row on white, `columns` side by side."""
    height, width = pictures[0].shape[:2]
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    height, width = ENLARGED * height, ENLARGED * width
    canvas = np.full((rows * (height + GAP) - GAP, columns * (width + GAP) - GAP, 3), 255, dtype=np.uint8)
    for index, picture in enumerate(pictures):
        y, x = (index // columns) * (height + GAP), (index % columns) * (width + GAP)
        canvas[y : y + height, x : x + width] = picture.repeat(ENLARGED, axis=0).repeat(ENLARGED, axis=1)
    return canvas


def write_picture(path: Path, rgb_HW3: Pictures) -> None:
    """A PNG, atomically."""
    _, encoded = cv2.imencode(".png", cv2.cvtColor(rgb_HW3, cv2.COLOR_RGB2BGR))
    files.write_bytes(path, encoded.tobytes())


def _frames(
    localizer: MapLocalizer,
    model: Path,
    source: Path,
    format: str,
    recordings: Sequence[str],
    options: dict[str, Any] | None,
) -> Iterator[LabelledFrame]:
    settings = settings_of(model, localizer.card, None)
    given = reader_options(model, format, options or {})
    opened = open_any(format, source, settings.topics, given, settings.frames.base)
    for recording in choose(opened, source, recordings):
        yield from labelled_frames(recording, settings)


def _apart(T_one: Array, T_other: Array) -> float:
    turn = Rotation.from_matrix(T_one[:3, :3].T @ T_other[:3, :3]).magnitude()
    return float(np.linalg.norm(T_one[:3, 3] - T_other[:3, 3]) + METRES_PER_RADIAN * turn)


def _numbers(text: str) -> list[float]:
    try:
        return [float(word) for word in text.split()]
    except ValueError:
        raise ConfigError(f"{text!r} is not `x y z qx qy qz qw`") from None
