"""Cambridge Landmarks in its publishers' layout, as `Recording`s: one per list (train, test) and folder of images.

    KingsCollege/dataset_train.txt dataset_test.txt    three header lines, then `seq2/frame00001.png X Y Z W P Q R`
    KingsCollege/seq1/frame00001.png ...               1920x1080; videos/ is not read
    KingsCollege/reconstruction.nvm                    VisualSFM's reconstruction: the focal length of every image

Source: A. Kendall, M. Grimes, R. Cipolla, "PoseNet", ICCV 2015; what the numbers mean is in `cambridge_files`.

There is no time: image number n is stamped 1e9 s + n / 2 s, since the videos were sampled at 2 Hz. base_link is the
camera turned to x forward, z up at the optical centre. There is no depth and no odometry. Lens distortion is left as it
is. Whether the map is aligned with gravity is not said.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np

from vmloc_ros.datasets.base import Timeline
from vmloc_ros.datasets.cambridge_files import (
    SPLITS,
    Listed,
    image_size,
    list_path,
    read_focal_lengths,
    read_list,
)
from vmloc_ros.datasets.parts import WHOLE, Part
from vmloc_ros.datasets.seven_scenes import BASE, CAMERA, FIRST_NS, T_BASE_CAMERA
from vmloc_ros.datasets.skips import Skips
from vmloc_ros.errors import DatasetError
from vmloc_ros.geometry import Array, inverse
from vmloc_ros.trajectory import Trajectory
from vmloc_ros.types import CameraInfo, EncodedImage, Event, EventKind, PinholeIntrinsics, StaticTransform

NVM = "reconstruction.nvm"
SUFFIXES = (".png", ".jpg", ".jpeg")
PERIOD_NS = 500_000_000
TRUTH_GAP_S = 0.75


@dataclass(frozen=True, eq=False)
class _Frame:
    """One usable line: where its image lies (None: nowhere), and its pose."""

    image: Path | None
    T_map_camera: Array


class CambridgeRecording:
    """The images of one folder in one list: implements `datasets.base.Recording`; called `train_seq2` and so on.

    Images pass as the files are (`EncodedImage`). Lines that cannot be used, images that are missing, unreadable or of
    another size than the first are skipped and counted.

    Args:
        scene: the scene's folder, with the lists.
        split: "train" or "test": which list.
        sequence: folder of the images in the scene.
        focal_px: focal length in pixels at the images' size; None: the median of reconstruction.nvm over the images.
        start_s, duration_s: what part to read, in seconds from the first image.

    Raises:
        DatasetError: no such list or folder, nothing usable in it (or in the chosen part), no focal length.
    """

    def __init__(
        self,
        scene: Path,
        split: str,
        sequence: str,
        focal_px: float | None = None,
        start_s: float = 0.0,
        duration_s: float | None = None,
    ) -> None:
        self._again = partial(CambridgeRecording, scene, split, sequence, focal_px, start_s, duration_s)
        self.scene, self.split, self.sequence = Path(scene), split, sequence
        self.name = "_".join([split, *PurePosixPath(sequence).parts])
        self.skips = Skips(f"{self.scene / sequence} ({split})")
        if split not in SPLITS:
            raise DatasetError(f"split {split!r} is not {' or '.join(SPLITS)} (Cambridge Landmarks)")
        lines = read_list(self.scene, split).get(sequence)
        if lines is None:
            raise DatasetError(f"{list_path(self.scene, split)}: names no image in the folder {sequence!r}")
        self._frames = self._list(lines, start_s, duration_s)
        width, height = self._size()
        focal, self._focal_source = self._focal(focal_px)
        self.intrinsics = PinholeIntrinsics(width, height, focal, focal, width / 2, height / 2)
        self.skips.keep()

    # ------------------------------------------------------------------------------------------------- the protocol

    @property
    def skipped(self) -> dict[str, int]:
        """What was left out, by reason."""
        return self.skips.by_reason()

    def static_transforms(self) -> list[StaticTransform]:
        """The camera in its own body."""
        return [StaticTransform(BASE, CAMERA, T_BASE_CAMERA.copy())]

    def events(self, part: Part = WHOLE) -> Iterator[Event]:
        """For every image its camera_info and itself, of one stamp."""
        self.skips.restart(part)
        for stamp_ns, frame in self._frames.items():
            if frame.image is None or not part.reads(stamp_ns):
                continue
            content = self._read(frame.image, stamp_ns)
            if content is not None:
                kind = "png" if frame.image.suffix.lower() == ".png" else "jpeg"
                yield Event(EventKind.CAMERA_INFO, stamp_ns, self._camera_info(stamp_ns))
                yield Event(EventKind.IMAGE, stamp_ns, EncodedImage(stamp_ns, CAMERA, kind, content))

    def event_count(self) -> int:
        """How many events `events` gives at most."""
        return 2 * len(self._frames)

    def timeline(self) -> Timeline:
        """Stamps of the images."""
        stamps = [stamp_ns for stamp_ns, frame in self._frames.items() if frame.image is not None]
        return {EventKind.IMAGE: np.array(stamps, dtype=np.int64)}

    def file_count(self) -> int:
        """Lines of the list, each of which promises an image."""
        return self._lines

    def again(self) -> Callable[[], CambridgeRecording]:
        """Opens the same recording once more."""
        return self._again

    def truth(self) -> Trajectory:
        """`T_map_base` of the list's poses."""
        poses = [frame.T_map_camera @ inverse(T_BASE_CAMERA) for frame in self._frames.values()]
        return Trajectory(np.array(list(self._frames), dtype=np.int64), np.array(poses), TRUTH_GAP_S)

    def card(self) -> dict[str, object]:
        """Axes, focal length and licence."""
        return {
            "dataset": "Cambridge Landmarks",
            "scene": self.scene.resolve().name,
            "sequence": self.sequence,
            "axes": "map: the reconstruction's own; base_link: the camera turned to x forward, y left, z up",
            "gravity_aligned": False,
            "stamps": "1e9 s + image number / 2 s",
            "focal_length": f"{self.intrinsics.fx:.1f} px ({self._focal_source}); lens distortion is left as it is",
            "odometry": "none",
            "licence": "the publishers' (University of Cambridge, non-commercial research); see the dataset's page",
        }

    # ------------------------------------------------------------------------------------------------- construction

    def _list(self, lines: list[Listed], start_s: float, duration_s: float | None) -> dict[int, _Frame]:
        """Usable lines by stamp, in order."""
        known: dict[PurePosixPath, Listed] = {}
        for line in lines:
            if line.image is None or line.T_map_camera is None:
                self.skips.add("lines unusable", f"{line.place}: {line.problem}", broken=True)
            elif line.image in known:
                self.skips.add("images listed twice", f"{line.place}: {line.image}", broken=True)
            else:
                known[line.image] = line
        stamps = stamps_of(list(known))
        begin_ns = min(stamps, default=0) + round(start_s * 1e9)
        end_ns = math.inf if duration_s is None else begin_ns + duration_s * 1e9
        frames: dict[int, _Frame] = {}
        self._lines = len(lines) - len(known)
        for stamp_ns, (image, line) in sorted(zip(stamps, known.items(), strict=True), key=lambda item: item[0]):
            if begin_ns <= stamp_ns <= end_ns and line.T_map_camera is not None:
                self._lines += 1
                path = self._find(image)
                if path is None:
                    self.skips.add("images missing", f"{self.scene / image} ({line.place})", broken=True)
                frames[stamp_ns] = _Frame(path, line.T_map_camera)
        if not frames:
            raise DatasetError(f"{self.scene / self.sequence} ({self.split}): no usable line in the chosen part")
        return frames

    def _find(self, image: PurePosixPath) -> Path | None:
        """The image under its own suffix, else under another: some copies of the dataset hold JPEG files."""
        suffixes = (image.suffix, *(suffix for suffix in SUFFIXES if suffix != image.suffix))
        return next((path for suffix in suffixes if (path := self.scene / image.with_suffix(suffix)).is_file()), None)

    def _size(self) -> tuple[int, int]:
        """Of the first image that can be read."""
        for frame in self._frames.values():
            try:
                size = image_size(frame.image.read_bytes()) if frame.image else None
            except OSError:
                continue
            if size is not None and min(size) > 0:
                return size
        raise DatasetError(f"{self.scene / self.sequence} ({self.split}): not one image can be read")

    def _focal(self, given_px: float | None) -> tuple[float, str]:
        """Focal length and where it comes from."""
        if given_px is not None:
            if isinstance(given_px, bool) or not isinstance(given_px, (int, float)) or not 0.0 < given_px < math.inf:
                raise DatasetError(f"focal_px must be a positive number of pixels, not {given_px!r}")
            return float(given_px), "option focal_px"
        path = self.scene / NVM
        known = read_focal_lengths(path) if path.is_file() else {}
        images = [f.image.relative_to(self.scene).with_suffix("").as_posix() for f in self._frames.values() if f.image]
        found = [known[image] for image in images if image in known]
        if found:
            return statistics.median(found), f"median of {len(found)} images in {NVM}"
        what = f"has no image of {self.name}" if known else "is not there"
        raise DatasetError(
            f"{path}: {what}, so the focal length is not known: give the option focal_px, in pixels (about 1675 for "
            "the publishers' images of 1920x1080)"
        )

    # --------------------------------------------------------------------------------------------------- the payloads

    def _camera_info(self, stamp_ns: int) -> CameraInfo:
        K = self.intrinsics.matrix()
        P = np.column_stack([K, np.zeros(3)])
        size = self.intrinsics.height, self.intrinsics.width
        return CameraInfo(stamp_ns, CAMERA, *size, "plumb_bob", (0.0,) * 5, K, np.eye(3), P)

    def _read(self, path: Path, stamp_ns: int) -> bytes | None:
        try:
            content = path.read_bytes()
        except OSError as error:
            self.skips.add("images unreadable", f"{path} ({error.strerror})", broken=True, stamp_ns=stamp_ns)
            return None
        size = image_size(content)
        if size is None:
            self.skips.add("images that are neither PNG nor JPEG", str(path), broken=True, stamp_ns=stamp_ns)
            return None
        expected = self.intrinsics.width, self.intrinsics.height
        if size != expected:
            name = f"{path} ({size[0]}x{size[1]}, the first is {expected[0]}x{expected[1]})"
            self.skips.add("images of another size", name, broken=True, stamp_ns=stamp_ns)
            return None
        return content


def stamps_of(images: list[PurePosixPath]) -> list[int]:
    """Nanoseconds by the numbers at the end of the images' names; by their order where one has none or two agree."""
    found = [re.search(r"(\d+)$", image.stem) for image in images]
    numbers = [int(match[1]) for match in found if match]
    if len(set(numbers)) != len(images):
        numbers = list(range(len(images)))
    return [FIRST_NS + number * PERIOD_NS for number in numbers]
