"""Microsoft 7-Scenes in its publishers' layout (`seq-01/frame-000000.color.png` and so on), as a `Recording`.

Source: J. Shotton et al., "Scene coordinate regression forests for camera relocalization in RGB-D images", CVPR 2013.
The dataset has no time: frame i is stamped 1e9 s + i / 30 s. base_link is the camera turned to x forward, z up at the
optical centre. The map is the dataset's own, which gravity is not aligned with.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from vmloc_ros.datasets.base import Timeline
from vmloc_ros.datasets.parts import WHOLE, Part
from vmloc_ros.datasets.rgbd_odometry import RgbdTracker
from vmloc_ros.datasets.skips import Skips
from vmloc_ros.errors import DatasetError
from vmloc_ros.geometry import Array, inverse, make_pose
from vmloc_ros.trajectory import Trajectory
from vmloc_ros.types import (
    CameraInfo,
    EncodedImage,
    Event,
    EventKind,
    OdometrySample,
    PinholeIntrinsics,
    RawImage,
    StaticTransform,
)

MAP, ODOM, BASE, CAMERA = "map", "odom", "base_link", "camera_optical"
ODOMETRIES = ("rgbd", "none")

FIRST_NS = 1_000_000_000 * 1_000_000_000
FRAMES_PER_S = 30
OFFICIAL_SIZE = (640, 480)
OFFICIAL_FOCAL = 585.0
INVALID_DEPTHS = (65535,)
"""Besides 0; the official convention, which some copies of the dataset replace by 0."""
TRUTH_GAP_S = 0.25

T_BASE_CAMERA = make_pose([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]], np.zeros(3))
"""x right, y down, z forward to x forward, y left, z up."""

_FRAME = re.compile(r"frame-(\d+)\.(color\.png|color\.jpe?g|depth\.png|pose\.txt)")


def stamp_of(index: int) -> int:
    """Nanoseconds of a frame's index."""
    return FIRST_NS + (index * 1_000_000_000 + FRAMES_PER_S // 2) // FRAMES_PER_S


def parse_frames(text: str) -> list[tuple[int, int]]:
    """ "0-149,200-349" (both ends included; a single number is a frame) to ranges; "" means all.

    Raises:
        DatasetError: anything else.
    """
    ranges = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        match = re.fullmatch(r"(\d+)(?:\s*-\s*(\d+))?", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if last < first:
            raise DatasetError(f"frames {text!r}: {part!r} is not a range such as 0-149")
        ranges.append((first, last))
    return ranges


@dataclass
class _Files:
    """What one frame has."""

    color: Path | None = None
    depth: Path | None = None
    pose: Path | None = None


class SevenScenesRecording:
    """One sequence: `SevenScenesRecording(folder)` implements `datasets.base.Recording`.

    Colour images pass as the files are (`EncodedImage`), depth as 16UC1 with both invalid values turned to 0. The
    odometry "rgbd" is computed while the stream is walked (12 ms a frame) and kept for the next walk. Files that are
    missing or unreadable are skipped and counted.

    Args:
        folder: the sequence, such as `redkitchen/seq-01`.
        frames: which indices to take, such as "0-149,200-349"; "" for all. A gap in them is a gap in the odometry.
        odometry: "rgbd" or "none".
        start_s, duration_s: what part to read, in seconds from the first of those frames.

    Raises:
        DatasetError: no such folder, or no frame in it (or in the chosen part).
    """

    def __init__(
        self,
        folder: Path,
        frames: str = "",
        odometry: str = "rgbd",
        start_s: float = 0.0,
        duration_s: float | None = None,
    ) -> None:
        self._again = partial(SevenScenesRecording, folder, frames, odometry, start_s, duration_s)
        self.folder = Path(folder)
        if odometry not in ODOMETRIES:
            raise DatasetError(f"odometry {odometry!r} is not one of {', '.join(ODOMETRIES)} (7-Scenes)")
        self.odometry = odometry
        self.name = f"{self.folder.resolve().parent.name}/{self.folder.resolve().name}"
        self.skips = Skips(str(self.folder))
        self._frames = self._list(parse_frames(frames), start_s, duration_s)
        self._poses = self._read_poses()
        self.intrinsics = self._read_intrinsics()
        self.skips.keep()
        self._motions: dict[tuple[int, int], Array | None] = {}

    # ------------------------------------------------------------------------------------------------- the protocol

    @property
    def skipped(self) -> dict[str, int]:
        """What was left out, by reason."""
        return self.skips.by_reason()

    def static_transforms(self) -> list[StaticTransform]:
        """The camera in its own body."""
        return [StaticTransform(BASE, CAMERA, T_BASE_CAMERA.copy())]

    def events(self, part: Part = WHOLE) -> Iterator[Event]:
        """For every frame odometry, depth, camera_info, image, all of one stamp."""
        self.skips.restart(part)
        tracker = RgbdTracker(self.intrinsics, self._motions) if self.odometry == "rgbd" else None
        for index, files in self._frames.items():
            stamp_ns = stamp_of(index)
            if not part.reads(stamp_ns):
                continue
            depth_mm = self._read_depth(files.depth, stamp_ns) if files.depth else None
            color = self._read_color(files.color, stamp_ns) if files.color else None
            if tracker is not None and color is not None and depth_mm is not None:
                T_start_camera, aligned = tracker.add(index, color, depth_mm)
                if not aligned:
                    self.skips.add("frames without RGB-D alignment", f"frame-{index:06d}", stamp_ns=stamp_ns)
                T_odom_base = T_BASE_CAMERA @ T_start_camera @ inverse(T_BASE_CAMERA)
                yield Event(EventKind.ODOMETRY, stamp_ns, OdometrySample(stamp_ns, ODOM, BASE, T_odom_base))
            if depth_mm is not None:
                height, width = depth_mm.shape
                data = depth_mm.astype("<u2").tobytes()
                image = RawImage(stamp_ns, CAMERA, height, width, "16UC1", 2 * width, False, data)
                yield Event(EventKind.DEPTH, stamp_ns, image)
            yield Event(EventKind.CAMERA_INFO, stamp_ns, self._camera_info(stamp_ns))
            if color is not None:
                assert files.color is not None
                kind = "png" if files.color.suffix == ".png" else "jpeg"
                yield Event(EventKind.IMAGE, stamp_ns, EncodedImage(stamp_ns, CAMERA, kind, color))

    def event_count(self) -> int:
        """How many events `events` gives at most."""
        return (4 if self.odometry == "rgbd" else 3) * len(self._frames)

    def timeline(self) -> Timeline:
        """Stamps of colour and depth images; empty with RGB-D odometry, which must see every frame."""
        if self.odometry == "rgbd":
            return {}
        stamps = {
            EventKind.IMAGE: [stamp_of(index) for index, files in self._frames.items() if files.color],
            EventKind.DEPTH: [stamp_of(index) for index, files in self._frames.items() if files.depth],
        }
        return {kind: np.array(values, dtype=np.int64) for kind, values in stamps.items()}

    def file_count(self) -> int:
        """Colour, depth and pose of every frame."""
        return 3 * len(self._frames)

    def again(self) -> Callable[[], SevenScenesRecording]:
        """Opens the same recording once more."""
        return self._again

    def truth(self) -> Trajectory:
        """`T_map_base` of the pose files.

        Raises:
            DatasetError: not one usable pose.
        """
        if not self._poses:
            raise DatasetError(f"{self.folder}: holds no usable pose file")
        stamps = np.array([stamp_of(index) for index in self._poses], dtype=np.int64)
        return Trajectory(stamps, np.array(list(self._poses.values())), TRUTH_GAP_S)

    def card(self) -> dict[str, object]:
        """Axes and licence."""
        return {
            "dataset": "7-Scenes",
            "sequence": self.name,
            "axes": "map: the dataset's own; base_link: the camera turned to x forward, y left, z up",
            "gravity_aligned": False,
            "stamps": "1e9 s + index / 30 s",
            "odometry": "OpenCV RGB-D odometry" if self.odometry == "rgbd" else "none",
            "licence": "Microsoft Research Licence Agreement, non-commercial",
        }

    # ------------------------------------------------------------------------------------------------- construction

    def _list(self, ranges: list[tuple[int, int]], start_s: float, duration_s: float | None) -> dict[int, _Files]:
        if not self.folder.is_dir():
            raise DatasetError(f"{self.folder}: is not a folder; give one sequence, such as redkitchen/seq-01")
        frames: dict[int, _Files] = {}
        for path in sorted(self.folder.iterdir()):
            match = _FRAME.fullmatch(path.name)
            if match:
                setattr(frames.setdefault(int(match[1]), _Files()), match[2].split(".")[0], path)
        if not frames:
            raise DatasetError(f"{self.folder}: holds no frame-000000.color.png and the like")
        if ranges:
            everything = f"{min(frames)}-{max(frames)}"
            frames = {i: f for i, f in frames.items() if any(first <= i <= last for first, last in ranges)}
            if not frames:
                raise DatasetError(f"{self.folder}: none of the chosen frames is among its {everything}")
        begin = min(frames) + start_s * FRAMES_PER_S
        end = begin + (math.inf if duration_s is None else duration_s * FRAMES_PER_S)
        frames = {i: f for i, f in frames.items() if begin <= i <= end}
        if not frames:
            raise DatasetError(f"{self.folder}: no frame between {start_s} s and {start_s} s + {duration_s} s")
        for index, files in sorted(frames.items()):
            for part in ("color", "depth", "pose"):
                if getattr(files, part) is None:
                    self.skips.add(f"{part} files missing", f"frame-{index:06d}", broken=True)
        return dict(sorted(frames.items()))

    def _read_poses(self) -> dict[int, Array]:
        poses = {}
        for index, files in self._frames.items():
            if files.pose is None:
                continue
            try:
                poses[index] = read_pose(files.pose) @ inverse(T_BASE_CAMERA)
            except DatasetError as error:
                self.skips.add("poses unusable", str(error), broken=True)
        return poses

    def _read_intrinsics(self) -> PinholeIntrinsics:
        """From `camera-intrinsics.txt` beside or in the sequence, else the official ones."""
        width, height = self._size()
        for place in (self.folder, self.folder.resolve().parent):
            path = place / "camera-intrinsics.txt"
            if path.is_file():
                K = _numbers(path)
                if K.shape != (3, 3) or not (np.isfinite(K).all() and K[0, 0] > 0 and K[1, 1] > 0):
                    raise DatasetError(f"{path}: is not a camera matrix of three rows of three numbers")
                return PinholeIntrinsics(width, height, *(float(K[i, j]) for i, j in ((0, 0), (1, 1), (0, 2), (1, 2))))
        if (width, height) != OFFICIAL_SIZE:
            raise DatasetError(
                f"{self.folder}: images are {width}x{height}; the official calibration is of 640x480, so a "
                "camera-intrinsics.txt (a 3x3 camera matrix) is needed beside the sequence"
            )
        return PinholeIntrinsics(width, height, OFFICIAL_FOCAL, OFFICIAL_FOCAL, width / 2, height / 2)

    def _size(self) -> tuple[int, int]:
        for files in self._frames.values():
            for path in (files.depth, files.color):
                image: Any = _decode(path) if path else None
                if image is not None:
                    return int(image.shape[1]), int(image.shape[0])
        raise DatasetError(f"{self.folder}: not one image can be read")

    # --------------------------------------------------------------------------------------------------- the payloads

    def _camera_info(self, stamp_ns: int) -> CameraInfo:
        K = self.intrinsics.matrix()
        P = np.column_stack([K, np.zeros(3)])
        size = self.intrinsics.height, self.intrinsics.width
        return CameraInfo(stamp_ns, CAMERA, *size, "plumb_bob", (0.0,) * 5, K, np.eye(3), P)

    def _read_color(self, path: Path, stamp_ns: int) -> bytes | None:
        try:
            content = path.read_bytes()
        except OSError as error:
            self.skips.add("color files unreadable", f"{path.name} ({error})", broken=True, stamp_ns=stamp_ns)
            return None
        if not content:
            self.skips.add("color files empty", path.name, broken=True, stamp_ns=stamp_ns)
            return None
        return content

    def _read_depth(self, path: Path, stamp_ns: int) -> NDArray[np.uint16] | None:
        image: Any = _decode(path)
        if image is None or image.ndim != 2 or image.dtype != np.uint16:
            self.skips.add("depth files that are not 16-bit PNG", path.name, broken=True, stamp_ns=stamp_ns)
            return None
        for value in INVALID_DEPTHS:
            image[image == value] = 0
        return np.asarray(image)


# ----------------------------------------------------------------------------------------------------------- the files


def _decode(path: Path) -> Any:
    """The image as stored, or None."""
    try:
        content = np.fromfile(path, dtype=np.uint8)
    except OSError:
        return None
    return cv2.imdecode(content, cv2.IMREAD_UNCHANGED) if len(content) else None


def _numbers(path: Path) -> Array:
    """A table of numbers.

    Raises:
        DatasetError: cannot be read, or rows of different length.
    """
    try:
        rows = [[float(word) for word in line.split()] for line in path.read_text(encoding="ascii").splitlines()]
        return np.array([row for row in rows if row], dtype=np.float64)
    except (OSError, UnicodeDecodeError, ValueError) as error:  # 7-Scenes writes NaN as -1.#IND in places
        raise DatasetError(f"{path}: is not a table of numbers ({error})") from error


def read_pose(path: Path) -> Array:
    """`T_map_camera` (4x4) of a pose file.

    Raises:
        DatasetError: not four rows of four finite numbers, or its upper left is no rotation (to 1e-2).
    """
    T = _numbers(path)
    if T.shape != (4, 4) or not np.isfinite(T).all():
        raise DatasetError(f"{path}: is not four rows of four finite numbers")
    R = T[:3, :3]
    if np.abs(R @ R.T - np.eye(3)).max() > 1e-2 or np.linalg.det(R) < 0.0:
        raise DatasetError(f"{path}: its upper left 3x3 part is no rotation")
    return make_pose(Rotation.from_matrix(R).as_matrix(), T[:3, 3])


def read_split(scene: Path, split: str) -> list[str]:
    """Sequence folders named by `TrainSplit.txt` or `TestSplit.txt` (lines such as "sequence1").

    Raises:
        DatasetError: no such file, or a line without a number.
    """
    path = scene / f"{split.capitalize()}Split.txt"
    try:
        lines = path.read_text(encoding="ascii").split()
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path}: cannot be read ({error}); give a sequence folder instead of a split") from error
    numbers = [re.fullmatch(r"sequence(\d+)", line) for line in lines]
    if not numbers or None in numbers:
        raise DatasetError(f"{path}: its lines must read sequence1, sequence2, ...")
    return [f"seq-{int(match[1]):02d}" for match in numbers if match]
