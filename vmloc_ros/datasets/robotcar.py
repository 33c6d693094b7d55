"""A traversal of the Oxford RobotCar dataset, in the folders that its publishers ship, as a `Recording`.

Coordinates: map is east, north, up from one UTM origin for all traversals; base_link is the INS turned to x forward,
y left, z up; the visual odometry, given between stereo frames, is moved to base_link by the extrinsics.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vmloc_ros.datasets.base import Timeline
from vmloc_ros.datasets.parts import WHOLE, Part
from vmloc_ros.datasets.robotcar_files import (
    AXES,
    MICROSECOND_NS,
    OXFORD_ORIGIN_UTM,
    CameraModel,
    base_from_stereo,
    load_ins,
    load_vo,
    read_camera_model,
    read_extrinsics,
    read_ins_csv,
    read_timestamps,
    read_vo_csv,
)
from vmloc_ros.datasets.robotcar_sensors import (
    camera_info,
    read_bayer_png,
    read_distortion_lut,
    read_lidar,
    undistort,
)
from vmloc_ros.datasets.skips import Skips
from vmloc_ros.errors import DatasetError
from vmloc_ros.geometry import Array, inverse
from vmloc_ros.images import decode_image
from vmloc_ros.trajectory import NANOSECONDS, Trajectory
from vmloc_ros.types import Event, EventKind, OdometrySample, PointField, RawCloud, RawImage, StaticTransform

__all__ = ["LIDARS", "RobotCarRecording", "read_ins_csv", "read_vo_csv"]

log = logging.getLogger(__name__)

MAP, ODOM, BASE, CAMERA, LIDAR = "map", "odom", "base_link", "camera_optical", "lidar"

LIDARS = ("velodyne_left", "velodyne_right", "ldmrs", "lms_front", "lms_rear")

MODELS = {
    "stereo/left": "stereo_wide_left",
    "stereo/centre": "stereo_narrow_left",
    "stereo/right": "stereo_wide_right",
    "mono_left": "mono_left",
    "mono_rear": "mono_rear",
    "mono_right": "mono_right",
}
"""Which model the publishers' kit takes for which image folder."""

FLOAT32_FIELDS = tuple(PointField(name, 4 * k, 7, 1) for k, name in enumerate(("x", "y", "z", "intensity")))


class RobotCarRecording:
    """One traversal: `RobotCarRecording(folder)` implements `datasets.base.Recording`.

    Every part may be missing; what is there is used, and what is left out is counted in `skipped` (the reason names the
    first file). Images come out rectified (rgb8) where the model's `*_distortion_lut.bin` is found, and otherwise raw
    (Bayer) with one warning, because the model file has no distortion. All points of a lidar file carry the stamp in
    its name: the dataset has no time per point; they are turned to x forward, y left, z up. The planar LMS files hold
    Cartesian points, without rays that did not return and without firing angles, so they come out as clouds (z = 0): a
    scan with an angular grid would move the points.

    Args:
        folder: the traversal (`stereo.timestamps`, `stereo/centre/`, `vo/vo.csv`, `gps/ins.csv`, ...).
        lidar: one of `LIDARS`, "none", or "auto" for the first of them that is there.
        camera: image folder, a key of `MODELS`.
        start_s, duration_s: what part to read, in seconds from the recording's first stamp.
        extrinsics, models: folders; by default searched in the traversal, its parents, and `sdk` folders there.
        origin_utm: easting, northing, altitude of the map's origin.

    Raises:
        DatasetError: nothing usable, or a part that was asked for by name is not there.
    """

    def __init__(
        self,
        folder: Path,
        lidar: str = "auto",
        camera: str = "stereo/centre",
        start_s: float = 0.0,
        duration_s: float | None = None,
        extrinsics: Path | None = None,
        models: Path | None = None,
        origin_utm: tuple[float, float, float] = OXFORD_ORIGIN_UTM,
    ) -> None:
        self._again = partial(
            RobotCarRecording, folder, lidar, camera, start_s, duration_s, extrinsics, models, origin_utm
        )
        self.folder = Path(folder)
        self.name = self.folder.name
        self.camera = camera
        self.origin_utm = origin_utm
        if not self.folder.is_dir():
            raise DatasetError(f"{self.folder}: is not a folder; give one RobotCar traversal")
        if camera not in MODELS:
            raise DatasetError(f"camera {camera!r} is not one of {', '.join(MODELS)}")
        self.skips = Skips(str(self.folder))
        self._extrinsics = self._find("extrinsics", extrinsics)
        self._models = self._find("models", models)
        self.lidar = self._choose_lidar(lidar)
        self._T_base_stereo = base_from_stereo(self._read_extrinsics("ins"))
        self._transforms: list[StaticTransform] = []
        self._promised = 0
        self._images = self._list_files(self.camera, ".png", self.camera.split("/")[0])
        self._model, self._lut = self._load_model()
        self._clouds = self._list_clouds()
        self._odometry = self._load_odometry()
        self._truth = self._load_truth()
        self._cut(start_s, duration_s)
        self.skips.keep()

    # ------------------------------------------------------------------------------------------------- the protocol

    @property
    def skipped(self) -> dict[str, int]:
        """What was left out so far, by reason."""
        return self.skips.by_reason()

    def static_transforms(self) -> list[StaticTransform]:
        """Mountings of the camera (optical axes) and the lidar, where they are used."""
        return list(self._transforms)

    def events(self, part: Part = WHOLE) -> Iterator[Event]:
        """Odometry, clouds, camera_info and images, sorted by stamp; files are read when their turn comes."""
        self.skips.restart(part)
        queue: list[tuple[int, int, int]] = [(stamp, 0, k) for k, stamp in enumerate(self._odometry.stamps_ns.tolist())]
        queue += [(stamp, 1, k) for k, (stamp, _) in enumerate(self._clouds)]
        queue += [(stamp, 2, k) for k, (stamp, _) in enumerate(self._images)]
        readers: tuple[Callable[[int, int], Iterator[Event]], ...] = (self._sample, self._cloud, self._image)
        for stamp, reader, index in sorted(entry for entry in queue if part.reads(entry[0])):
            yield from readers[reader](stamp, index)

    def event_count(self) -> int:
        """How many events `events` gives at most."""
        return len(self._odometry) + len(self._clouds) + 2 * len(self._images)

    def timeline(self) -> Timeline:
        """Stamps of images, clouds and odometry."""
        return {
            EventKind.IMAGE: np.array([stamp for stamp, _ in self._images], dtype=np.int64),
            EventKind.CLOUD: np.array([stamp for stamp, _ in self._clouds], dtype=np.int64),
            EventKind.ODOMETRY: self._odometry.stamps_ns,
        }

    def file_count(self) -> int:
        """Images and clouds, of the whole traversal."""
        return self._promised

    def again(self) -> Callable[[], RobotCarRecording]:
        """Opens the same recording once more."""
        return self._again

    def truth(self) -> Trajectory:
        """`T_map_base` of `gps/ins.csv`, without the rows that the INS itself calls bad.

        Raises:
            DatasetError: no `gps/ins.csv`, or nothing sound in it.
        """
        if isinstance(self._truth, DatasetError):
            raise self._truth
        return self._truth

    def card(self) -> dict[str, object]:
        """Origin, axes, and whether the images are undistorted."""
        easting, northing, altitude = self.origin_utm
        return {
            "dataset": "Oxford RobotCar format",
            "traversal": self.name,
            "utm_origin": {"zone": "30U", "easting_m": easting, "northing_m": northing, "altitude_m": altitude},
            "axes": "map: east, north, up; base_link: INS, x forward, y left, z up",
            "gravity_aligned": True,
            "camera": self.camera,
            "lidar": self.lidar,
            "images_undistorted": self._lut is not None,
            "odometry": "vo/vo.csv",
            "licence": "recordings of the Oxford RobotCar Dataset: CC BY-NC-SA 4.0",
        }

    # ------------------------------------------------------------------------------------------------- construction

    def _find(self, kind: str, given: Path | None) -> Path | None:
        """The folder `extrinsics` or `models`: as given, or near the traversal."""
        if given is not None:
            if not Path(given).is_dir():
                raise DatasetError(f"{given}: is not a folder (given for {kind})")
            return Path(given)
        here = self.folder.resolve()
        for place in (here, *list(here.parents)[:2]):
            for inner in ("", "sdk", "robotcar-dataset-sdk"):
                if (place / inner / kind).is_dir():
                    return place / inner / kind
        return None

    def _read_extrinsics(self, name: str) -> Array:
        if self._extrinsics is None:
            raise DatasetError(
                f"{self.folder}: no folder `extrinsics` with {name}.txt here, in the two folders above, or in `sdk` "
                "there; give it explicitly"
            )
        return read_extrinsics(self._extrinsics / f"{name}.txt")

    def _choose_lidar(self, lidar: str) -> str:
        if lidar == "auto":
            return next((name for name in LIDARS if (self.folder / name).is_dir()), "none")
        if lidar not in (*LIDARS, "none"):
            raise DatasetError(f"lidar {lidar!r} is not one of {', '.join(LIDARS)}, auto, none")
        if lidar != "none" and not (self.folder / lidar).is_dir():
            raise DatasetError(f"{self.folder / lidar}: no such folder; this traversal has no {lidar}")
        return lidar

    def _list_files(self, sensor: str, ending: str, stamps_name: str) -> list[tuple[int, Path]]:
        """The files that are there; those that the sensor's timestamps promise besides are counted as missing."""
        found = _stamped(self.folder / sensor, ending)
        self._promised += len(found)
        stamps_file = self.folder / f"{stamps_name}.timestamps"
        if not stamps_file.is_file():
            return found  # the names are the stamps
        try:
            promised = read_timestamps(stamps_file)
        except DatasetError as error:
            self.skips.add("timestamps unusable; files are dated by their names", str(error))
            return found
        missing = np.setdiff1d(promised, [stamp for stamp, _ in found])
        if len(missing):
            name = f"{sensor}/{int(missing[0]) // MICROSECOND_NS}{ending}"
            self._promised += len(missing)
            self.skips.add(f"{sensor} files missing", name, len(missing), broken=True)
        return found

    def _list_clouds(self) -> list[tuple[int, Path]]:
        if self.lidar == "none":
            return []
        T_base_vehicle = self._T_base_stereo @ AXES  # vehicle axes still forward, right, down
        T_base_lidar = T_base_vehicle @ self._read_extrinsics(self.lidar) @ AXES
        self._transforms.append(StaticTransform(BASE, LIDAR, T_base_lidar))
        return self._list_files(self.lidar, ".bin", self.lidar)

    def _load_odometry(self) -> Trajectory:
        path = self.folder / "vo" / "vo.csv"
        try:
            if not path.is_file():
                raise DatasetError(f"{path}: no such file")
            stereo, counts = load_vo(path)
        except DatasetError as error:
            self.skips.add("odometry missing or unusable", str(error))
            return Trajectory(np.empty(0, dtype=np.int64), np.empty((0, 4, 4)))
        for reason, count in counts.items():
            self.skips.add(reason, "vo/vo.csv", count)
        return stereo.transformed(self._T_base_stereo, inverse(self._T_base_stereo))

    def _load_truth(self) -> Trajectory | DatasetError:
        try:
            trajectory, dropped = load_ins(self.folder / "gps" / "ins.csv", self.origin_utm)
        except DatasetError as error:
            return error  # whoever asks for the truth is told
        for reason, count in dropped.items():
            self.skips.add(reason, "gps/ins.csv", count)
        return trajectory

    def _load_model(self) -> tuple[CameraModel | None, NDArray[np.float32] | None]:
        """The camera's model and lookup table; its mounting goes into the transforms."""
        name = MODELS[self.camera]
        if not self._images:
            return None, None
        try:
            if self._models is None:
                raise DatasetError(f"{self.folder}: no models/{name}.txt here or above; give the folder of models")
            model = read_camera_model(self._models / f"{name}.txt")
            T_camera_vehicle = self._read_extrinsics(self.camera.split("/")[0])
        except DatasetError as error:
            self.skips.add("images without calibration", str(error), len(self._images), broken=True)
            self._images = []
            return None, None
        T_base_camera = self._T_base_stereo @ AXES @ inverse(T_camera_vehicle) @ model.T_camera_optical
        self._transforms.append(StaticTransform(BASE, CAMERA, T_base_camera))
        try:
            return model, read_distortion_lut(self._models / f"{name}_distortion_lut.bin")
        except DatasetError as error:
            log.warning("%s: images stay raw, not undistorted: no usable lookup table (%s)", self.folder, error)
            return model, None

    def _cut(self, start_s: float, duration_s: float | None) -> None:
        """Keeps what lies in the asked part; the odometry then starts there."""
        firsts = [items[0][0] for items in (self._images, self._clouds) if items]
        firsts += self._odometry.stamps_ns[:1].tolist()
        if not firsts:
            raise DatasetError(
                f"{self.folder}: no image, no cloud and no odometry that can be used ({', '.join(self.skipped)})"
            )
        begin = min(firsts) + round(start_s * NANOSECONDS)
        end = np.iinfo(np.int64).max if duration_s is None else begin + round(duration_s * NANOSECONDS)
        self._images = [item for item in self._images if begin <= item[0] <= end]
        self._clouds = [item for item in self._clouds if begin <= item[0] <= end]
        kept = (self._odometry.stamps_ns >= begin) & (self._odometry.stamps_ns <= end)
        poses = self._odometry.poses_N44[kept]
        if len(poses):
            poses = inverse(poses[0]) @ poses
        self._odometry = Trajectory(self._odometry.stamps_ns[kept], poses)
        if not (self._images or self._clouds or len(poses)):
            raise DatasetError(f"{self.folder}: nothing at start {start_s} s, duration {duration_s} s")

    # --------------------------------------------------------------------------------------------------- the payloads

    def _sample(self, stamp_ns: int, index: int) -> Iterator[Event]:
        sample = OdometrySample(stamp_ns, ODOM, BASE, self._odometry.poses_N44[index])
        yield Event(EventKind.ODOMETRY, stamp_ns, sample)

    def _cloud(self, stamp_ns: int, index: int) -> Iterator[Event]:
        path = self._clouds[index][1]
        try:
            points = read_lidar(path, self.lidar)
        except DatasetError as error:
            self.skips.add("clouds unusable", str(error), broken=True, stamp_ns=stamp_ns)
            return
        points[:, 1:3] *= -1.0  # to y left, z up: what the lidar frame of a ROS robot has
        count = len(points)
        cloud = RawCloud(stamp_ns, LIDAR, 1, count, FLOAT32_FIELDS, False, 16, 16 * count, points.tobytes())
        yield Event(EventKind.CLOUD, stamp_ns, cloud)

    def _image(self, stamp_ns: int, index: int) -> Iterator[Event]:
        assert self._model is not None
        path = self._images[index][1]
        try:
            bayer = read_bayer_png(path)
            height, width = bayer.shape
            if height % 2 or width % 2:
                raise DatasetError(f"{path}: {width}x{height} pixels are no whole Bayer cells")
            if self._lut is not None and self._lut.shape[1] != height * width:
                raise DatasetError(f"{path}: {width}x{height} pixels do not fit the table of {self._lut.shape[1]}")
        except DatasetError as error:
            self.skips.add("images unusable", str(error), broken=True, stamp_ns=stamp_ns)
            return
        encoding = "bayer_gbrg8" if self.camera.startswith("stereo") else "bayer_rggb8"
        image = RawImage(stamp_ns, CAMERA, height, width, encoding, width, False, bayer.tobytes())
        if self._lut is not None:
            rgb = undistort(decode_image(image), self._lut)
            image = RawImage(stamp_ns, CAMERA, height, width, "rgb8", 3 * width, False, rgb.tobytes())
        info = camera_info(stamp_ns, CAMERA, width, height, self._model)
        yield Event(EventKind.CAMERA_INFO, stamp_ns, info)
        yield Event(EventKind.IMAGE, stamp_ns, image)


def _stamped(folder: Path, ending: str) -> list[tuple[int, Path]]:
    """Files named by microseconds, sorted by stamp in nanoseconds."""
    name = re.compile(r"\d+" + re.escape(ending))
    files = [path for path in folder.iterdir() if name.fullmatch(path.name)] if folder.is_dir() else []
    return sorted((int(path.stem) * MICROSECOND_NS, path) for path in files)
