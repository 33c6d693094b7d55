"""A dataset's folder, as its publishers ship it, to recordings."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vmloc_ros.datasets.base import Recording
from vmloc_ros.errors import DatasetError

FORMATS = ("robotcar", "town", "kitti", "sevenscenes", "cambridge")
ROBOTCAR_SPLITS: dict[str, dict[str, tuple[str, ...]]] = {
    "loop": {
        "train": ("2014-06-26-09-24-58", "2014-06-26-08-53-56"),
        "test": ("2014-06-23-15-41-25", "2014-06-23-15-36-04"),
    },
    "full": {
        "train": ("2014-11-28-12-07-13", "2014-12-02-15-30-08"),
        "test": ("2014-12-09-13-21-02", "2014-12-12-10-45-15"),
    },
}
"""The traversals of the papers' LOOP (test: LOOP1, LOOP2) and FULL (test: FULL1, FULL2)."""
ROBOTCAR_PARTS = ("stereo.timestamps", "stereo", "mono_left.timestamps", "vo", "gps")


def open_recordings(format: str, source: Path, **options: Any) -> list[Recording]:
    """Opens one recording, or all those in a folder, in order of name.

    `source` is a RobotCar (or town) traversal, a KITTI drive or a 7-Scenes sequence, or a folder that holds several:
    those of KITTI then share the first drive's map; of 7-Scenes `split="train"` or `"test"` takes what the split file
    names, of Cambridge Landmarks (a scene, or one of its folders of images) what is in the list of this name; of
    RobotCar `split="loop"` or `"full"` takes the papers' traversals, with `part="train"` (the default) or `"test"`, and
    looks at no other.

    Args:
        options: of the recording's class (`RobotCarRecording`, `KittiRecording`, `SevenScenesRecording`,
            `CambridgeRecording`); None means
            its default. `odometry` is understood by all: "vo" (RobotCar), "oxts", "kiss-icp" (KITTI), "rgbd"
            (7-Scenes), or "none" for the last two and Cambridge Landmarks, which has none.

    Raises:
        DatasetError: an unknown format or option, no such folder, or nothing usable in it.
    """
    openers: dict[str, Callable[[Path, dict[str, Any]], list[Recording]]] = {
        "robotcar": _open_robotcar,
        "town": _open_robotcar,
        "kitti": _open_kitti,
        "sevenscenes": _open_seven_scenes,
        "cambridge": _open_cambridge,
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
    split, part = options.pop("split", None), options.pop("part", None)
    _checked(RobotCarRecording, options, source)
    if split is not None:
        folders = _robotcar_split(source, split, part or "train")
    elif part is not None:
        raise DatasetError(
            f"{source}: part {part!r} is of a split; give split ({' or '.join(ROBOTCAR_SPLITS)}) as well"
        )
    else:
        folders = _inside(source, _is_traversal, f"a RobotCar traversal (with {', '.join(ROBOTCAR_PARTS)})")
    return [RobotCarRecording(folder, **options) for folder in folders]


def _is_traversal(folder: Path) -> bool:
    return any((folder / part).exists() for part in ROBOTCAR_PARTS)


def _robotcar_split(source: Path, split: str, part: str) -> list[Path]:
    """The folders of a split's traversals.

    Raises:
        DatasetError: no such split, or a traversal that is not there.
    """
    if split not in ROBOTCAR_SPLITS:
        raise DatasetError(f"split {split!r} is not {' or '.join(ROBOTCAR_SPLITS)} (RobotCar)")
    if part not in ROBOTCAR_SPLITS[split]:
        raise DatasetError(f"part {part!r} is not {' or '.join(ROBOTCAR_SPLITS[split])} (RobotCar's {split})")
    names = ROBOTCAR_SPLITS[split][part]
    missing = [name for name in names if not _is_traversal(source / name)]
    if missing:
        raise DatasetError(
            f"{source}: has no traversal {', '.join(missing)}, which {split.upper()}'s {part} part needs "
            f"({', '.join(names)}); give the folder that holds them all"
        )
    return [source / name for name in names]


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
    scenes = _scenes(source)
    if scenes:
        raise DatasetError(
            f"{source}: holds the scenes {', '.join(scenes)}; a model is of one scene: give one of these folders"
        )
    if split is not None:
        if split not in ("train", "test"):
            raise DatasetError(f"split {split!r} is not train or test")
        return [SevenScenesRecording(source / name, **options) for name in read_split(source, split)]
    folders = _inside(
        source,
        _is_sequence,
        "a 7-Scenes sequence (with frame-000000.color.png and so on)",
    )
    return [SevenScenesRecording(folder, **options) for folder in folders]


def _open_cambridge(source: Path, options: dict[str, Any]) -> list[Recording]:
    from vmloc_ros.datasets.cambridge import CambridgeRecording
    from vmloc_ros.datasets.cambridge_files import SPLITS, find_scene, list_path, read_list

    options = dict(options)
    odometry, split = options.pop("odometry", "none"), options.pop("split", None)
    if odometry != "none":
        raise DatasetError(f"{source}: Cambridge Landmarks has no odometry ({odometry!r}); odometry is none")
    if split not in (None, *SPLITS):
        raise DatasetError(f"split {split!r} is not {' or '.join(SPLITS)}")
    known = ("focal_px", "start_s", "duration_s")
    for name in options:
        if name not in known:
            raise DatasetError(
                f"{source}: Cambridge Landmarks has no option {name!r}; it has split, {', '.join(known)}"
            )
    scene, folder = find_scene(source)
    splits = [split] if split else [name for name in SPLITS if list_path(scene, name).is_file()]
    recordings: list[Recording] = [
        CambridgeRecording(scene, name, sequence, **options)
        for name in splits
        for sequence in sorted(read_list(scene, name))
        if folder in (".", sequence)
    ]
    if not recordings:
        raise DatasetError(
            f"{source}: no image of this folder is listed in {' or '.join(f'dataset_{n}.txt' for n in splits)}"
        )
    return recordings


def _is_sequence(folder: Path) -> bool:
    return next(folder.glob("frame-*"), None) is not None


def _scenes(source: Path) -> list[str]:
    """Names of the scenes in a folder that holds scenes instead of sequences; none if it is a scene or a sequence."""
    if _is_sequence(source):
        return []
    children = sorted(path for path in source.iterdir() if path.is_dir())
    if any(_is_sequence(path) for path in children):
        return []
    return [
        path.name
        for path in children
        if (path / "TrainSplit.txt").is_file() or any(_is_sequence(inner) for inner in path.iterdir() if inner.is_dir())
    ]
