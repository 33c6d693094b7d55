"""From stored messages to the frame that a network sees; the same code online, in replay and in training."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vmloc_ros.accumulation import accumulate
from vmloc_ros.camera import Rectifier, same_calibration
from vmloc_ros.clock import ClockVerdict
from vmloc_ros.clouds import Cloud, decode_cloud
from vmloc_ros.config import InputConfig, LocalizerConfig, ProjectionConfig
from vmloc_ros.datasets.base import Recording
from vmloc_ros.datasets.parts import WHOLE, Part
from vmloc_ros.errors import CameraError, MessageError, TransformError
from vmloc_ros.extrinsics import Extrinsics, pose_from_list
from vmloc_ros.frame_source import FrameParts, FrameSource
from vmloc_ros.geometry import Array, inverse, transform_points
from vmloc_ros.images import decode_depth, decode_image
from vmloc_ros.projection import project_cylindrical, project_pinhole
from vmloc_ros.types import (
    CameraInfo,
    EncodedImage,
    EventKind,
    Frame,
    FrameKey,
    Modality,
    PinholeIntrinsics,
    RawCloud,
    RawImage,
    RawScan,
)

CONSTANT_STRIDE = 4
"""Every so many pixels are looked at to see whether an image is constant, or the same as before."""
FROZEN_FRAMES, FROZEN_M = 3, 0.5
"""So many times the very same picture while the odometry moved so far: the camera is dead, and its driver is not."""


BUILT_BEFORE_NS = 1_000_000_000
"""Frames of so much time before a part are built and forgotten: a frozen camera shows by the frames before."""


class Assembler:
    """Decodes, rectifies and projects. Not thread-safe: it belongs to the one worker."""

    def __init__(self, config: LocalizerConfig, extrinsics: Extrinsics, model_camera: PinholeIntrinsics | None) -> None:
        """
        Args:
            config: of the whole localizer.
            extrinsics: shared with whoever receives /tf_static.
            model_camera: the camera that the model was trained with: the view in which depth is shown as long as no
                camera_info has come (a robot that has only its lidar).
        """
        self._config = config
        self._extrinsics = extrinsics
        self._model_camera = model_camera
        self._rectifier: tuple[CameraInfo, Rectifier] | None = None
        self._decoded: dict[int, Cloud] = {}
        self._points = 0
        self._repeated: tuple[int, int, Array | None] = (0, 0, None)
        self.rejected: Counter[str] = Counter()
        self.problems: dict[str, str] = {}
        for name, values, source in (
            ("base_to_camera", config.extrinsics.base_to_camera, self.camera_frame(None)),
            ("base_to_lidar", config.extrinsics.base_to_lidar, LIDAR_BY_HAND),
        ):
            if values:
                extrinsics.fix(config.frames.base, source, pose_from_list(values, f"extrinsics.{name}"))

    def camera_frame(self, parts: FrameParts | None) -> str:
        """The optical frame's name: the parameter, else the image's, else the camera_info's, else the default."""
        if self._config.extrinsics.base_to_camera:
            return CAMERA_BY_HAND
        names = [self._config.frames.camera]
        if parts is not None:
            names += [part.frame_id for part in (parts.image, parts.info) if part is not None]
        return next((name for name in names if name), "camera_optical")

    def T_base_camera(self, parts: FrameParts | None) -> Array:
        """Mounting of the camera.

        Raises:
            TransformError: it is not known.
        """
        return self._extrinsics.lookup(self._config.frames.base, self.camera_frame(parts))

    def build(self, parts: FrameParts) -> Frame:
        """The frame. A modality that cannot be had is absent, with the reason; nothing is raised for bad messages."""
        absent: dict[Modality, str] = {}
        rgb = self._rgb(parts, absent)
        intrinsics = self._intrinsics(parts, rgb)
        depth_m: NDArray[np.float32] | None = None
        if self._config.input.depth_source != "none":
            if not parts.depths:
                absent[Modality.DEPTH] = f"no {self._config.input.depth_source} came in time"
            else:
                depth_m = self._depth(parts, intrinsics, absent)
        else:
            absent[Modality.DEPTH] = "input.depth_source is none"
        return Frame(parts.key, intrinsics or UNKNOWN_CAMERA, rgb, depth_m, absent)

    def _reject(self, what: str, error: Exception) -> str:
        self.rejected[what] += 1
        self.problems[what] = str(error)
        return str(error)

    def _rgb(self, parts: FrameParts, absent: dict[Modality, str]) -> NDArray[np.uint8] | None:
        if parts.image is None:
            absent[Modality.RGB] = "no image came in time" if self._config.input.use_image else "input.use_image is off"
            return None
        try:
            rgb = decode_image(parts.image)
        except MessageError as error:
            absent[Modality.RGB] = self._reject("image", error)
            return None
        deviation = float(rgb[::CONSTANT_STRIDE, ::CONSTANT_STRIDE].mean(axis=2).std())
        if deviation < self._config.input.constant_image_deviation:
            self.rejected["image_constant"] += 1
            self.problems["image"] = absent[Modality.RGB] = f"image is constant (deviation {deviation:.2f} of 255)"
            return None
        frozen = self._frozen(parts, rgb)
        if frozen:
            self.rejected["image_frozen"] += 1
            self.problems["image"] = absent[Modality.RGB] = frozen
            return None
        if parts.info is None:
            if not self._config.input.image_rectified:
                absent[Modality.RGB] = self._reject("camera_info", CameraError("camera_info has not come"))
                return None
            return rgb
        try:
            rgb = self._rectify(parts.info).rectify(rgb)
        except CameraError as error:
            absent[Modality.RGB] = self._reject("camera_info", error)
            return None
        self.problems.pop("image", None)
        self.problems.pop("camera_info", None)
        return rgb

    def _frozen(self, parts: FrameParts, rgb: NDArray[np.uint8]) -> str:
        """Why a picture cannot be of this moment: it is the last one again, although the robot has moved."""
        mark = zlib.crc32(rgb[::CONSTANT_STRIDE, ::CONSTANT_STRIDE].tobytes())
        T_odom_base = parts.odometry.pose_at(parts.key.stamp_ns)
        last, times, T_odom_first = self._repeated
        if mark != last:
            times, T_odom_first = 0, T_odom_base
        self._repeated = (mark, times + 1, T_odom_first)
        if times + 1 < FROZEN_FRAMES or T_odom_first is None or T_odom_base is None:
            return ""
        moved_m = float(np.linalg.norm(T_odom_base[:3, 3] - T_odom_first[:3, 3]))
        if moved_m < FROZEN_M:
            return ""
        return f"image is frozen: the same picture {times + 1} times while the odometry moved {moved_m:.1f} m"

    def _rectify(self, info: CameraInfo) -> Rectifier:
        known = self._rectifier
        if known is None or not same_calibration(known[0], info):
            known = self._rectifier = (info, Rectifier(info, self._config.input.image_rectified))
        return known[1]

    def _intrinsics(self, parts: FrameParts, rgb: NDArray[np.uint8] | None) -> PinholeIntrinsics | None:
        if parts.info is not None:
            try:
                return self._rectify(parts.info).intrinsics
            except CameraError as error:
                self._reject("camera_info", error)
        self.problems.setdefault("camera_info", "no usable camera_info: depth is shown in the model's own camera")
        camera = self._model_camera
        if camera is not None and rgb is not None:
            return camera.resized(rgb.shape[1], rgb.shape[0])
        return camera

    def _depth(
        self, parts: FrameParts, intrinsics: PinholeIntrinsics | None, absent: dict[Modality, str]
    ) -> NDArray[np.float32] | None:
        try:
            if isinstance(parts.depths[0], RawImage | EncodedImage):
                depth_m = self._depth_image(parts.depths[0], parts.info)
            else:
                depth_m = self._project(parts, intrinsics)
        except (CameraError, TransformError) as error:
            absent[Modality.DEPTH] = self._reject("depth", error)
            return None
        except MessageError as error:  # a cloud was counted when it could not be decoded
            by_clouds = isinstance(parts.depths[0], RawCloud | RawScan)
            absent[Modality.DEPTH] = str(error) if by_clouds else self._reject("depth", error)
            return None
        returns = int(np.count_nonzero(depth_m))
        if returns < self._config.input.min_depth_returns:
            self.rejected["depth_empty"] += 1
            self.problems["depth"] = absent[Modality.DEPTH] = self._emptiness(returns)
            return None
        self.problems.pop("depth", None)
        return depth_m

    def _emptiness(self, returns: int) -> str:
        """Why a depth image counts as empty; says so where the geometry is to blame."""
        text = f"depth is empty ({returns} returns)"
        if self._points >= 10 * self._config.input.min_depth_returns:
            text += (
                f": of {self._points} points next to none lies in the camera's view; check the mountings, and give a "
                "scanner that looks sideways projection.accumulate: around"
            )
        return text

    def _depth_image(self, payload: RawImage | EncodedImage, info: CameraInfo | None) -> NDArray[np.float32]:
        self._points = 0
        depth_m = decode_depth(payload)
        if info is not None:
            depth_m = self._rectify(info).rectify_depth(depth_m)
        elif not self._config.input.image_rectified:
            raise CameraError("depth image: without a camera_info it cannot be undistorted")
        limit = self._config.projection
        depth_m[(depth_m < limit.min_range_m) | (depth_m > limit.max_range_m)] = 0.0
        return depth_m

    def _project(self, parts: FrameParts, intrinsics: PinholeIntrinsics | None) -> NDArray[np.float32]:
        config = self._config.projection
        clouds = self._clouds(parts)
        lidar = LIDAR_BY_HAND if self._config.extrinsics.base_to_lidar else clouds[0].frame_id
        T_base_lidar = self._extrinsics.lookup(self._config.frames.base, lidar)
        points = accumulate(clouds, parts.key.stamp_ns, parts.odometry, T_base_lidar, config)
        self._points = len(points.xyz_base_N3)
        reasons = "; ".join(f"{reason} ({count})" for reason, count in points.reasons.items() if count)
        if reasons:
            self.problems["points"] = f"left out: {reasons}"
        else:
            self.problems.pop("points", None)
        if reasons and not len(points.xyz_base_N3):
            raise MessageError(f"no cloud could be used: {reasons}")
        if config.kind == "cylindrical":
            return project_cylindrical(
                transform_points(inverse(T_base_lidar), points.xyz_base_N3),
                config.width,
                config.height,
                config.azimuth_deg,
                (config.lowest_deg, config.highest_deg),
                config.min_range_m,
                config.max_range_m,
            )
        if intrinsics is None:
            raise CameraError("no camera_info has come and the model's card names no camera: depth has no view")
        xyz_camera = transform_points(inverse(self.T_base_camera(parts)), points.xyz_base_N3)
        return project_pinhole(
            xyz_camera, intrinsics.resized(config.width, config.height), config.min_range_m, config.max_range_m
        )

    def _clouds(self, parts: FrameParts) -> list[Cloud]:
        """The frame's clouds that can be decoded; a damaged one is counted and costs only itself.

        Raises:
            MessageError: not one of them can.
        """
        clouds, last = [], None
        for payload in parts.depths:
            try:
                if isinstance(payload, RawCloud | RawScan):
                    clouds.append(self._cloud(payload))
            except MessageError as error:
                last = error
                self._reject("depth", error)
        if not clouds:
            raise last or MessageError("points are configured, but a depth image came")
        return clouds

    def _cloud(self, payload: RawCloud | RawScan) -> Cloud:
        cloud = self._decoded.get(payload.stamp_ns)
        if cloud is None:
            cloud = decode_cloud(payload, self._config.projection.point_times)
            if self._config.projection.accumulate == "around" or self._config.input.depth_source == "scan":
                self._decoded[payload.stamp_ns] = cloud  # windows overlap: decode each cloud once
                while len(self._decoded) > 4096:
                    del self._decoded[min(self._decoded)]
        return cloud

    def clear(self) -> None:
        """Forgets decoded clouds (stamps mean something else after a reset of the clock)."""
        self._decoded.clear()
        self._repeated = (0, 0, None)


CAMERA_BY_HAND = "<extrinsics.base_to_camera>"
LIDAR_BY_HAND = "<extrinsics.base_to_lidar>"
UNKNOWN_CAMERA = PinholeIntrinsics(1, 1, 1.0, 1.0, 0.0, 0.0)
"""Stands in a frame that has an image but no calibration: networks that need rays refuse it."""


def sensor_mismatches(config: LocalizerConfig, input: InputConfig, projection: ProjectionConfig) -> list[str]:
    """Where the sensors are used otherwise than in the model's training, each with the cure; empty if nowhere.

    A sensor that is switched off is not a mismatch: it is an absent modality.
    """
    names = []
    if config.input.use_image:
        names.append("input.image_rectified")
    if config.input.depth_source != "none":
        names.append("input.depth_source")
        if config.input.depth_source != "depth":
            names += ["projection.kind", "projection.accumulate", "projection.window_s"]
        if projection.kind == "cylindrical":
            names += ["projection.azimuth_deg", "projection.lowest_deg", "projection.highest_deg"]
    trained_sections = {"input": input, "projection": projection}
    found = []
    for name in names:
        section, key = name.split(".")
        ours, trained = getattr(getattr(config, section), key), getattr(trained_sections[section], key)
        if ours != trained:
            found.append(f"{name} is {ours}, but the model was trained with {trained}: set it so, or train again")
    return found


@dataclass(frozen=True, slots=True, eq=False)
class LabelledFrame:
    """A frame and the true pose of its camera (optical frame) in the map."""

    frame: Frame
    T_map_camera: Array
    recording: str


def labelled_frames(recording: Recording, config: LocalizerConfig, part: Part = WHOLE) -> Iterator[LabelledFrame]:
    """Every frame of a recording, or of a part of it, exactly as the node would build it, with the truth at its stamp.

    What is left out is counted in `recording.skips`: frames without truth (gaps of the INS), and what the assembler
    rejects; an image that cannot be decoded counts as a broken file.
    """
    source = FrameSource(config)
    for transform in recording.static_transforms():
        source.extrinsics.add(transform)
    assembler = Assembler(config, source.extrinsics, None)
    truth = recording.truth()

    def labelled(keys: list[FrameKey]) -> Iterator[LabelledFrame]:
        for key in keys:
            inside = part.holds(key.stamp_ns)
            if not inside and not part.begin_ns - BUILT_BEFORE_NS <= key.stamp_ns < part.begin_ns:
                continue
            if not truth.covers(key.stamp_ns):
                recording.skips.add("no truth", f"{recording.name}@{key.stamp_ns}", stamp_ns=key.stamp_ns)
                continue
            parts = source.gather(key)
            T_map_camera = truth.interpolate(key.stamp_ns) @ assembler.T_base_camera(parts)
            before = assembler.rejected.copy()
            frame = assembler.build(parts)
            for what, count in (assembler.rejected - before).items():
                why = frame.absent.get(Modality.RGB if what.startswith("image") else Modality.DEPTH, what)
                name = f"{recording.name}@{key.stamp_ns}: {why}"
                recording.skips.add(what, name, count, broken=what == "image", stamp_ns=key.stamp_ns)
            if inside:
                yield LabelledFrame(frame, T_map_camera, recording.name)

    for event in recording.events(part):
        if source.add(event) is ClockVerdict.OK and event.kind is EventKind.ODOMETRY:
            source.odometry.insert(event.stamp_ns, event.payload.T_odom_base)
        yield from labelled(source.ready())
    yield from labelled(source.ready(everything=True))
