"""A dataset's folder, as its publishers ship it, to recordings."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vmloc_ros.datasets.base import Recording
from vmloc_ros.errors import DatasetError

FORMATS = ("robotcar", "town", "kitti", "sevenscenes")
ROBOTCAR_PARTS = ("stereo.timestamps", "stereo", "mono_left.timestamps", "vo", "gps")


def open_recordings(format: str, source: Path, **options: Any) -> list[Recording]:
    """Opens one recording, or all those in a folder, in order of name.

    `source` is a RobotCar (or town) traversal, a KITTI drive or a 7-Scenes sequence, or a folder that holds several:
    those of KITTI then share the first drive's map; of 7-Scenes `split="train"` or `"test"` takes what the split file
    names.

    Args:
        options: of the recording's class (`RobotCarRecording`, `KittiRecording`, `SevenScenesRecording`); None means
            its default. `odometry` is understood by all: "vo" (RobotCar), "oxts", "kiss-icp" (KITTI), "rgbd"
            (7-Scenes), or "none" for the last two.

    Raises:
        DatasetError: an unknown format or option, no such folder, or nothing usable in it.
    """
    openers: dict[str, Callable[[Path, dict[str, Any]], list[Recording]]] = {
        "robotcar": _open_robotcar,
        "town": _open_robotcar,
        "kitti": _open_kitti,
        "sevenscenes": _open_seven_scenes,
    }
    if format not in openers:
        raise DatasetError(f"format {format!r} is not one of {', '.join(FORMATS)}")
    source = Path(source)
    if not source.is_dir():
        raise DatasetError(f"{source}: is not a folder")
    return openers[format](source, {name: value for name, value in options.items() if value is not None})


def _checked(kind: type, options: dict[str, Any], source: Path) -> dict[str, Any]:
    """Options that the class knows.

    Raises:
        DatasetError: another one.
    """
    known = list(inspect.signature(kind).parameters)[1:]
    for name in options:
        if name not in known:
            raise DatasetError(f"{source}: {kind.__name__} has no option {name!r}; it has {', '.join(known)}")
    return options


def _inside(source: Path, is_one: Callable[[Path], bool], what: str) -> list[Path]:
    """The folder itself, or those of its children that are such recordings."""
    if is_one(source):
        return [source]
    found = sorted(path for path in source.iterdir() if path.is_dir() and is_one(path))
    if not found:
        raise DatasetError(f"{source}: is not {what}, and holds none")
    return found


def _open_robotcar(source: Path, options: dict[str, Any]) -> list[Recording]:
    from vmloc_ros.datasets.robotcar import RobotCarRecording

    options = dict(options)
    odometry = options.pop("odometry", "vo")
    if odometry != "vo":
        raise DatasetError(f"{source}: RobotCar's odometry is vo (vo/vo.csv), not {odometry!r}")
    _checked(RobotCarRecording, options, source)
    folders = _inside(
        source,
        lambda folder: any((folder / part).exists() for part in ROBOTCAR_PARTS),
        f"a RobotCar traversal (with {', '.join(ROBOTCAR_PARTS)})",
    )
    return [RobotCarRecording(folder, **options) for folder in folders]


def _open_kitti(source: Path, options: dict[str, Any]) -> list[Recording]:
    from vmloc_ros.datasets.kitti import KittiRecording

    options = dict(_checked(KittiRecording, options, source))
    recordings: list[Recording] = []
    for folder in _inside(
        source,
        lambda folder: (folder / "image_02").is_dir() or (folder / "velodyne_points").is_dir(),
        "a KITTI raw drive (with image_02 or velodyne_points)",
    ):
        recording = KittiRecording(folder, **options)
        if recording.origin is not None:
            options.setdefault("origin", recording.origin)
        recordings.append(recording)
    return recordings


def _open_seven_scenes(source: Path, options: dict[str, Any]) -> list[Recording]:
    from vmloc_ros.datasets.seven_scenes import SevenScenesRecording, read_split

    options = dict(options)
    split = options.pop("split", None)
    _checked(SevenScenesRecording, options, source)
    if split is not None:
        if split not in ("train", "test"):
            raise DatasetError(f"split {split!r} is not train or test")
        return [SevenScenesRecording(source / name, **options) for name in read_split(source, split)]
    folders = _inside(
        source,
        lambda folder: next(folder.glob("frame-*"), None) is not None,
        "a 7-Scenes sequence (with frame-000000.color.png and so on)",
    )
    return [SevenScenesRecording(folder, **options) for folder in folders]
