"""The core's own objects: no ROS, no torch. Time is integer nanoseconds; poses are 4x4 float64 `T_target_source`.

Sensor payloads (`RawImage`, `RawCloud`, ...) keep the bytes as they came: storing one costs nothing, decoding is done
by whoever needs it (`images`, `clouds`), so that a frame which is never used is never decoded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


class Modality(StrEnum):
    RGB = "rgb"
    DEPTH = "depth"


class Mode(StrEnum):
    """What the pose rests on."""

    RGB_DEPTH = "RGB_DEPTH"
    RGB_ONLY = "RGB_ONLY"
    DEPTH_ONLY = "DEPTH_ONLY"
    DEAD_RECKONING = "DEAD_RECKONING"
    LOST = "LOST"


class Verdict(StrEnum):
    """What became of a measurement. `NO_POSE` and `PENDING` are never counted by the filter."""

    FUSED = "fused"
    GATED = "gated"
    TOO_OLD = "too_old"
    DUPLICATE = "duplicate"
    FUTURE = "future"
    NOT_FINITE = "not_finite"
    WRONG_FRAME = "wrong_frame"
    NO_POSE = "no_pose"
    PENDING = "pending"


# ---------------------------------------------------------------------------------------------------- sensor payloads


@dataclass(frozen=True, slots=True, eq=False)
class RawImage:
    """An uncompressed image (colour or depth) as the message carries it."""

    stamp_ns: int
    frame_id: str
    height: int
    width: int
    encoding: str
    step: int
    is_bigendian: bool
    data: Any  # a buffer of uint8


@dataclass(frozen=True, slots=True, eq=False)
class EncodedImage:
    """A compressed image (JPEG, PNG; `format` as in sensor_msgs/CompressedImage)."""

    stamp_ns: int
    frame_id: str
    format: str
    data: Any


@dataclass(frozen=True, slots=True)
class PointField:
    """One field of a point: `datatype` as numbered by sensor_msgs/PointField (7 = float32)."""

    name: str
    offset: int
    datatype: int
    count: int


@dataclass(frozen=True, slots=True, eq=False)
class RawCloud:
    """A point cloud as the message carries it."""

    stamp_ns: int
    frame_id: str
    height: int
    width: int
    fields: tuple[PointField, ...]
    is_bigendian: bool
    point_step: int
    row_step: int
    data: Any


@dataclass(frozen=True, slots=True, eq=False)
class RawScan:
    """A planar scan; the stamp is that of the first ray."""

    stamp_ns: int
    frame_id: str
    angle_min_rad: float
    angle_increment_rad: float
    time_increment_s: float
    range_min_m: float
    range_max_m: float
    ranges_m: Any  # N numbers


@dataclass(frozen=True, slots=True, eq=False)
class CameraInfo:
    """A calibration as sensor_msgs/CameraInfo has it; `roi` is (x, y, width, height), all 0 for the whole image."""

    stamp_ns: int
    frame_id: str
    height: int
    width: int
    distortion_model: str
    D: tuple[float, ...]
    K_33: Array
    R_33: Array
    P_34: Array
    binning_x: int = 0
    binning_y: int = 0
    roi: tuple[int, int, int, int] = (0, 0, 0, 0)


@dataclass(frozen=True, slots=True, eq=False)
class OdometrySample:
    """A pose of the base in the odometry frame; `twist_6` (linear, angular) and its covariance where they are given."""

    stamp_ns: int
    frame_id: str
    child_frame_id: str
    T_odom_base: Array
    twist_6: Array | None = None
    twist_cov_66: Array | None = None


@dataclass(frozen=True, slots=True, eq=False)
class InitialPose:
    """A pose set by hand; the covariance is of the right perturbation (body axes)."""

    stamp_ns: int
    frame_id: str
    T_map_base: Array
    cov_66: Array


@dataclass(frozen=True, slots=True, eq=False)
class StaticTransform:
    """A rigid mounting: `p_parent = T_parent_child @ p_child`."""

    parent: str
    child: str
    T_parent_child: Array


class EventKind(StrEnum):
    """The role of a payload: one topic of the node each."""

    IMAGE = "image"  # RawImage | EncodedImage
    DEPTH = "depth"  # RawImage | EncodedImage
    CLOUD = "points"  # RawCloud
    SCAN = "scan"  # RawScan
    CAMERA_INFO = "camera_info"  # CameraInfo
    ODOMETRY = "odom"  # OdometrySample
    INITIAL_POSE = "initialpose"  # InitialPose
    STATIC_TRANSFORM = "tf_static"  # StaticTransform
    TRUTH = "ground_truth"  # OdometrySample in the map's frame; the pipeline ignores it


@dataclass(frozen=True, slots=True, eq=False)
class Event:
    """One thing that arrived. `stamp_ns` is the payload's own stamp (0 for a static transform)."""

    kind: EventKind
    stamp_ns: int
    payload: Any


# ------------------------------------------------------------------------------------------------------------- frames


@dataclass(frozen=True, slots=True)
class PinholeIntrinsics:
    """An ideal camera: `u = fx x/z + cx`, `v = fy y/z + cy`, pixel centres at whole numbers."""

    width: int
    height: int
    fx: float
    fy: float
    cx: float
    cy: float

    def resized(self, width: int, height: int) -> PinholeIntrinsics:
        """The same camera after the whole image was resized (pixel centres at whole numbers: hence the halves)."""
        sx, sy = width / self.width, height / self.height
        return PinholeIntrinsics(
            width, height, self.fx * sx, self.fy * sy, (self.cx + 0.5) * sx - 0.5, (self.cy + 0.5) * sy - 0.5
        )

    def cropped(self, x: int, y: int, width: int, height: int) -> PinholeIntrinsics:
        """The same camera after cutting out a window whose upper left pixel is (x, y)."""
        return PinholeIntrinsics(width, height, self.fx, self.fy, self.cx - x, self.cy - y)

    def matrix(self) -> Array:
        """The 3x3 camera matrix."""
        return np.array([[self.fx, 0.0, self.cx], [0.0, self.fy, self.cy], [0.0, 0.0, 1.0]])


@dataclass(frozen=True, slots=True)
class FrameKey:
    """Which messages make up a frame, by stamp: enough to build the same frame again from a recording."""

    stamp_ns: int
    image_stamp_ns: int | None
    depth_stamps_ns: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """What a localizer sees at one instant.

    Attributes:
        rgb: (H, W, 3) uint8, rectified, or None when absent.
        depth_m: (H, W) float32 metres along the optical axis, 0 = no return, or None when absent. It has its own size,
            and shows the same view as `rgb` (same rays at the image's corners).
        intrinsics: of the rectified image at `rgb`'s size (of the depth image where there is no rgb).
        absent: why a modality is absent.
    """

    key: FrameKey
    intrinsics: PinholeIntrinsics
    rgb: NDArray[np.uint8] | None
    depth_m: NDArray[np.float32] | None
    absent: Mapping[Modality, str] = field(default_factory=dict)

    @property
    def stamp_ns(self) -> int:
        return self.key.stamp_ns

    @property
    def mode(self) -> Mode:
        if self.rgb is not None:
            return Mode.RGB_ONLY if self.depth_m is None else Mode.RGB_DEPTH
        return Mode.LOST if self.depth_m is None else Mode.DEPTH_ONLY


# ---------------------------------------------------------------------------------------------------------- estimates


@dataclass(frozen=True, slots=True, eq=False)
class CameraPrior:
    """What the filter knows of the camera at a frame's stamp, before that frame.

    `cov_66` is of the right perturbation of `T_map_camera` (camera axes). `T_odom_camera` is where the odometry alone
    has the camera: differences of it over time are the odometry's.
    """

    stamp_ns: int
    T_map_camera: Array
    cov_66: Array
    T_odom_camera: Array


@dataclass(frozen=True, slots=True, eq=False)
class CameraMotion:
    """What two frames say of the way between them: `T_begin_end`, the camera at `end_ns` in the camera's frame at
    `begin_ns`; `cov_66` is of its right perturbation (camera axes at the end)."""

    begin_ns: int
    end_ns: int
    T_begin_end: Array
    cov_66: Array


@dataclass(frozen=True, slots=True, eq=False)
class Information:
    """What an observation says about a pose, to first order in the pose's right perturbation `d` (6).

    The observation's squared distance is `cost - 2 gradient_6' d + d' information_66 d`: `gradient_6 = J' R^-1 r` and
    `information_66 = J' R^-1 J` of the residual `r` and the Jacobian `J` of what is expected.

    Attributes:
        gradient_6, information_66: see above.
        cost: `r' R^-1 r` at this pose.
        dof: how many numbers were observed.
    """

    gradient_6: Array
    information_66: Array
    cost: float
    dof: int


class Observation(Protocol):
    """A measurement that is no pose, but can be compared with what a pose makes one expect."""

    def at(self, T_map_body: Array) -> Information:
        """How it fits a pose of the body that it is of (camera or base). A pure function; any thread."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class PoseEstimate:
    """A localizer's answer. `cov_66` is of the right perturbation of `T_map_camera` (camera axes).

    `expert_weights` are shares of precision by modality (with "prior"), summing to 1; `health` is 1 for as good as in
    training and falls towards 0. A network with an odometry of its own adds `motion`. One that observes something else
    than a pose adds `observation` (of the camera's pose), which the filter then prefers to `T_map_camera`.
    """

    stamp_ns: int
    T_map_camera: Array
    cov_66: Array
    expert_weights: Mapping[str, float]
    mode: Mode
    health: float = 1.0
    motion: CameraMotion | None = None
    observation: Observation | None = None


@dataclass(frozen=True, slots=True)
class NoPose:
    """A localizer's honest refusal; two frames may tell a motion all the same."""

    stamp_ns: int
    reason: str
    motion: CameraMotion | None = None


@dataclass(frozen=True, slots=True, eq=False)
class PoseMeasurement:
    """What the filter fuses. `cov_66` is of the right perturbation of `T_map_base` (body axes).

    Where there is an `observation` (of the base's pose) the filter compares that with its state; the pose starts it and
    finds it again.
    """

    stamp_ns: int
    T_map_base: Array
    cov_66: Array
    source: str = "network"
    frame_id: str = "map"
    observation: Observation | None = None


@dataclass(frozen=True, slots=True, eq=False)
class MeasurementResult:
    """The provisional verdict on a measurement: `nis` is the normalised innovation squared with `dof` degrees."""

    verdict: Verdict
    reason: str = ""
    nis: float | None = None
    dof: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class FusedState:
    """The filter's pose at one instant. `cov_66` is of the right perturbation (body axes)."""

    stamp_ns: int
    T_map_base: Array
    cov_66: Array
    T_map_odom: Array


@dataclass(frozen=True, slots=True, eq=False)
class Status:
    """One line of the localizer's diary: a frame's fate, or a heartbeat when no frame comes.

    `state` is the filter's pose at `stamp_ns` after everything up to it that has arrived; None while lost. `key` is the
    frame's, None in a heartbeat. `counters` are totals since the start.
    """

    stamp_ns: int
    mode: Mode
    verdict: Verdict
    reason: str
    key: FrameKey | None
    state: FusedState | None
    measurement: PoseMeasurement | None
    expert_weights: Mapping[str, float]
    health: float
    nis: float | None
    dof: int
    latency_ms: float
    absent: Mapping[Modality, str]
    counters: Mapping[str, int]
