"""The files of Cambridge Landmarks: lists of images with their poses, and the reconstruction they come from.

`dataset_train.txt` and `dataset_test.txt` hold three header lines, then `seq2/frame00001.png X Y Z W P Q R`. The header
does not say what the numbers are. They are VisualSFM's: X Y Z is the camera's centre in the map, W P Q R the quaternion
(w first) of the rotation *from the map to the camera* (x right, y down, z forward). NVM files hold the same (readme of
the Aachen data, quoted in tsattler/visuallocalizationbenchmark issue 22), and the public code of ACE reads these very
lists so (nianticlabs/ace, datasets/setup_cambridge.py). A line that was published (vislearn/LessMore issue 2: the first
image of ShopFacade's seq1) agrees: read so, the camera stands upright and looks level, with the map's z up.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath

import numpy as np
from scipy.spatial.transform import Rotation

from vmloc_ros.errors import DatasetError
from vmloc_ros.geometry import Array, make_pose

SPLITS = ("train", "test")
HEADER_LINES = 3
MAX_QUATERNION_ERROR = 1e-2
MAX_POSITION_M = 1e4
"""Where a reconstruction went wrong, single poses lie further away (ACE leaves them out as well)."""


@dataclass(frozen=True, eq=False)
class Listed:
    """One line of a list.

    Attributes:
        place: file and line number, for messages.
        image: relative to the scene; None where the line cannot be read.
        T_map_camera: (4, 4), or None with the `problem`.
    """

    place: str
    image: PurePosixPath | None
    T_map_camera: Array | None
    problem: str = ""


def list_path(scene: Path, split: str) -> Path:
    """Where the list of a split is."""
    return scene / f"dataset_{split}.txt"


def parse_line(text: str, place: str) -> Listed:
    """One line: the image, and `T_map_camera` (optical frame) of its position and quaternion."""
    words = text.rsplit(maxsplit=7)
    try:
        numbers = [float(word) for word in words[1:]]
    except ValueError as error:
        return Listed(place, None, None, str(error))
    if len(words) != 8:
        return Listed(place, None, None, f"{len(words)} words instead of an image and seven numbers")
    image = PurePosixPath(words[0].replace("\\", "/"))
    if image.is_absolute() or ".." in image.parts:
        return Listed(place, None, None, f"the image {words[0]!r} lies outside of the scene")
    position, quat_wxyz = np.array(numbers[:3]), np.array(numbers[3:])
    if not np.isfinite(numbers).all():
        return Listed(place, image, None, "a number that is not finite")
    if abs(math.hypot(*quat_wxyz) - 1.0) > MAX_QUATERNION_ERROR:
        return Listed(place, image, None, f"a quaternion of length {math.hypot(*quat_wxyz):g}")
    if np.abs(position).max() > MAX_POSITION_M:
        return Listed(place, image, None, f"a position further than {MAX_POSITION_M:g} m away")
    R_camera_map = Rotation.from_quat(quat_wxyz, scalar_first=True).as_matrix()
    return Listed(place, image, make_pose(R_camera_map.T, position))


def read_list(scene: Path, split: str) -> dict[str, list[Listed]]:
    """The lines of a list by the folder of their images ("seq2"), in the file's order; a line that cannot be read is
    with the one before it.

    Raises:
        DatasetError: no such list, not a text, without its header, or empty.
    """
    path = list_path(scene, split)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path}: cannot be read ({error}); it must list the images of {split}") from error
    for number, line in enumerate(lines[:HEADER_LINES], 1):
        if parse_line(line, "").image is not None:
            raise DatasetError(f"{path}:{number}: is a pose, but the first {HEADER_LINES} lines are a header; add it")
    sequences: dict[str, list[Listed]] = {}
    unread: list[Listed] = []
    folder: str | None = None
    for number, line in enumerate(lines[HEADER_LINES:], HEADER_LINES + 1):
        if not line.strip():
            continue
        item = parse_line(line, f"{path.name}:{number}")
        if item.image is not None:
            folder = str(item.image.parent)
            sequences.setdefault(folder, []).extend(unread)
            unread.clear()
        (unread if folder is None else sequences[folder]).append(item)
    if not sequences:
        raise DatasetError(f"{path}: holds no line `seq1/frame00001.png X Y Z W P Q R` after its header")
    return sequences


def find_scene(source: Path) -> tuple[Path, str]:
    """The scene that a folder is or lies in, and the folder's place in it ("." for the scene itself).

    Raises:
        DatasetError: neither.
    """
    for scene in (source, *source.absolute().parents[:2]):
        if any(list_path(scene, split).is_file() for split in SPLITS):
            return scene, "." if scene is source else source.absolute().relative_to(scene).as_posix()
    scenes = sorted(path.parent.name for split in SPLITS for path in source.glob(f"*/{list_path(Path(), split).name}"))
    if scenes:
        names = ", ".join(dict.fromkeys(scenes))
        raise DatasetError(f"{source}: holds the scenes {names}; a model is of one scene: give one of these folders")
    raise DatasetError(f"{source}: holds no dataset_train.txt or dataset_test.txt; give a scene such as KingsCollege")


def read_focal_lengths(path: Path) -> dict[str, float]:
    """Focal lengths in pixels by image, without its suffix (the images were JPEG when they were reconstructed).

    An NVM file (VisualSFM) holds `NVM_V3`, the number of images, and for each
    `name focal qw qx qy qz cx cy cz distortion 0`; the points after them are not read.

    Raises:
        DatasetError: cannot be read, or is not such a file (names the line).
    """
    number, focal_px = 0, {}
    try:
        with path.open(encoding="utf-8", errors="replace") as stream:
            lines = ((i, line.strip()) for i, line in enumerate(stream, 1) if line.strip())
            number, first = next(lines)
            number, count = next(lines)
            if not first.startswith("NVM_V3"):
                raise DatasetError(f"{path}:1: is not a reconstruction of VisualSFM (NVM_V3)")
            for at, line in islice(lines, int(count)):
                number = at
                name, *numbers = line.rsplit(maxsplit=10)
                focal = float(numbers[0])
                if len(numbers) != 10 or not (math.isfinite(focal) and focal > 0.0):
                    raise ValueError("no name, focal length and nine further numbers")
                focal_px[str(PurePosixPath(name.replace("\\", "/")).with_suffix(""))] = focal
            if len(focal_px) != int(count):
                raise ValueError(f"{len(focal_px)} images instead of {count}")
    except (ValueError, IndexError, StopIteration) as error:
        raise DatasetError(f"{path}:{number}: is not what an NVM file has there ({error}); copy it again") from error
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read ({error.strerror})") from error
    return focal_px


def image_size(content: bytes) -> tuple[int, int] | None:
    """Width and height of a PNG or JPEG file by its header; None for anything else."""
    if content[:8] == b"\x89PNG\r\n\x1a\n" and len(content) >= 24:
        return int.from_bytes(content[16:20], "big"), int.from_bytes(content[20:24], "big")
    at = 2 if content[:2] == b"\xff\xd8" else len(content)
    while at + 9 <= len(content) and content[at] == 0xFF:
        marker = content[at + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # a start of frame
            return int.from_bytes(content[at + 7 : at + 9], "big"), int.from_bytes(content[at + 5 : at + 7], "big")
        at += 1 if marker == 0xFF else 2 + int.from_bytes(content[at + 2 : at + 4], "big")
    return None
