"""A small world for tests: a vehicle on a circle, its odometry, and cameras whose images say nothing.

`ScriptedLocalizer` is a whole localizer without a network: it answers with the truth plus seeded noise, which is what
tests of everything around a network need.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from vmloc_ros.config import InputConfig, ProjectionConfig
from vmloc_ros.geometry import Array, exp_se3, inverse, make_pose
from vmloc_ros.networks.vlocnet_config import MotionCard
from vmloc_ros.types import (
    CameraInfo,
    CameraMotion,
    CameraPrior,
    Event,
    EventKind,
    Frame,
    Mode,
    NoPose,
    OdometrySample,
    PinholeIntrinsics,
    PointField,
    PoseEstimate,
    RawCloud,
    RawImage,
    StaticTransform,
)

SECOND = 1_000_000_000
START_NS = 1_700_000_000 * SECOND
RADIUS_M = 40.0
SPEED_M_PER_S = 8.0
WIDTH, HEIGHT = 64, 48

T_BASE_CAMERA = make_pose(np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]]), [1.5, 0.0, 1.6])
T_BASE_LIDAR = make_pose(np.eye(3), [0.5, 0.1, 1.8])


def true_pose(stamp_ns: int) -> Array:
    """`T_map_base` on a circle."""
    angle = SPEED_M_PER_S / RADIUS_M * (stamp_ns - START_NS) / SECOND
    R = np.array([[math.cos(angle), -math.sin(angle), 0.0], [math.sin(angle), math.cos(angle), 0.0], [0.0, 0.0, 1.0]])
    return make_pose(R, [RADIUS_M * math.sin(angle), RADIUS_M * (1.0 - math.cos(angle)), 0.0])


def drifting_odometry(stamps_ns: list[int], drift: float = 0.02) -> list[Array]:
    """`T_odom_base`: increments too long by `drift`, with a constant error of the yaw rate."""
    poses, previous = [np.eye(4)], true_pose(stamps_ns[0])
    for stamp_ns in stamps_ns[1:]:
        now = true_pose(stamp_ns)
        step = np.linalg.solve(previous, now)
        step[:3, 3] *= 1.0 + drift
        poses.append(poses[-1] @ step @ exp_se3([0, 0, 0, 0, 0, 2e-4]))
        previous = now
    return poses


def image(stamp_ns: int, encoding: str = "rgb8", constant: bool = False) -> Event:
    channels = {"rgb8": 3, "bgr8": 3, "mono8": 1}.get(encoding, 3)
    rng = np.random.default_rng(stamp_ns % 2**32)
    data = (
        np.full(HEIGHT * WIDTH * channels, 90, np.uint8)
        if constant
        else rng.integers(0, 256, HEIGHT * WIDTH * channels, np.uint8)
    )
    raw = RawImage(stamp_ns, "camera_optical", HEIGHT, WIDTH, encoding, WIDTH * channels, False, data.tobytes())
    return Event(EventKind.IMAGE, stamp_ns, raw)


def camera_info(stamp_ns: int) -> Event:
    K = np.array([[50.0, 0.0, WIDTH / 2], [0.0, 50.0, HEIGHT / 2], [0.0, 0.0, 1.0]])
    P = np.column_stack([K, np.zeros(3)])
    info = CameraInfo(stamp_ns, "camera_optical", HEIGHT, WIDTH, "plumb_bob", (0.0,) * 5, K, np.eye(3), P)
    return Event(EventKind.CAMERA_INFO, stamp_ns, info)


def cloud(stamp_ns: int, points: int = 2000) -> Event:
    """Points of a wall 10 m ahead of the lidar."""
    rng = np.random.default_rng(1)
    xyz = np.column_stack([np.full(points, 10.0), rng.uniform(-8, 8, points), rng.uniform(-3, 3, points)]).astype(
        np.float32
    )
    fields = tuple(PointField(name, 4 * k, 7, 1) for k, name in enumerate("xyz"))
    raw = RawCloud(stamp_ns, "lidar", 1, points, fields, False, 12, 12 * points, xyz.tobytes())
    return Event(EventKind.CLOUD, stamp_ns, raw)


def odometry(stamp_ns: int, T_odom_base: Array, frame_id: str = "odom", child: str = "base_link") -> Event:
    return Event(EventKind.ODOMETRY, stamp_ns, OdometrySample(stamp_ns, frame_id, child, T_odom_base))


def mountings() -> list[Event]:
    return [
        Event(EventKind.STATIC_TRANSFORM, 0, StaticTransform("base_link", "camera_optical", T_BASE_CAMERA)),
        Event(EventKind.STATIC_TRANSFORM, 0, StaticTransform("base_link", "lidar", T_BASE_LIDAR)),
    ]


def drive(duration_s: float = 12.0, start_ns: int = START_NS, drift: float = 0.02) -> list[Event]:
    """Mountings, then odometry at 20 Hz, images at 10 Hz and clouds at 10 Hz out of step, sorted by stamp."""
    count = round(duration_s * 20)
    stamps = [start_ns + k * SECOND // 20 for k in range(count)]
    events = [odometry(s, T) for s, T in zip(stamps, drifting_odometry(stamps, drift), strict=True)]
    events += [e for s in stamps[::2] for e in (camera_info(s), image(s))]
    events += [cloud(s + 30_000_000) for s in stamps[:-1:2]]
    order = {EventKind.ODOMETRY: 0, EventKind.CAMERA_INFO: 1}
    return mountings() + sorted(events, key=lambda e: (e.stamp_ns, order.get(e.kind, 2)))


CAMERA = PinholeIntrinsics(WIDTH, HEIGHT, 50.0, 50.0, WIDTH / 2, HEIGHT / 2)


@dataclass(frozen=True)
class ScriptedCard:
    """The part of a model's card that the pipeline reads."""

    camera: PinholeIntrinsics = CAMERA
    input: InputConfig = field(default_factory=InputConfig)
    projection: ProjectionConfig = field(default_factory=ProjectionConfig)
    sha256: str = "5c" * 32
    motion: MotionCard | None = None


@dataclass
class ScriptedLocalizer:
    """Answers the truth plus noise of the stated deviations; keeps what it was shown."""

    sigma_m: float = 0.5
    sigma_rad: float = 0.02
    seed: int = 0
    card: ScriptedCard = field(default_factory=ScriptedCard)
    seen: list[Frame] = field(default_factory=list)
    resets: int = 0
    device: str = "cpu"
    fallback: str = ""

    def localize(self, frame: Frame, prior: CameraPrior | None = None) -> PoseEstimate | NoPose:
        self.seen.append(frame)
        if frame.mode is Mode.LOST:
            raise AssertionError("a frame without any modality must not reach the network")
        rng = np.random.default_rng([self.seed, frame.stamp_ns % 2**32])
        sigma = np.array([self.sigma_m] * 3 + [self.sigma_rad] * 3)
        T_map_camera = true_pose(frame.stamp_ns) @ T_BASE_CAMERA @ exp_se3(rng.normal(size=6) * sigma)
        return PoseEstimate(
            frame.stamp_ns, T_map_camera, np.diag(sigma**2), {"rgb": 0.6, "depth": 0.3, "prior": 0.1}, frame.mode
        )

    def warm_up(self) -> None:
        return

    def reset(self) -> None:
        self.resets += 1


MOTION_GAP_S = 0.35
MOTION_SIGMA_M, MOTION_SIGMA_RAD = 0.02, 0.002
MOTION_COV = np.diag([MOTION_SIGMA_M**2] * 3 + [MOTION_SIGMA_RAD**2] * 3)
MOVING_CARD = ScriptedCard(motion=MotionCard(max_gap_s=MOTION_GAP_S, cov_66=MOTION_COV.tolist()))


@dataclass
class MovingLocalizer(ScriptedLocalizer):
    """Also tells the motion since the frame before it, of the stated covariance, and has a map that can be looked at.

    `exact`: the motions are the truth's.
    """

    card: ScriptedCard = field(default_factory=lambda: MOVING_CARD)
    exact: bool = False
    gaps: int = 0
    last_ns: int | None = None

    def localize(self, frame: Frame, prior: CameraPrior | None = None) -> PoseEstimate | NoPose:
        return replace(super().localize(frame, prior), motion=self._motion(frame.stamp_ns))

    def _motion(self, stamp_ns: int) -> CameraMotion | None:
        begin_ns, self.last_ns = self.last_ns, stamp_ns
        if begin_ns is None:
            return None
        if not begin_ns < stamp_ns <= begin_ns + MOTION_GAP_S * SECOND:
            self.gaps += 1
            return None
        return true_motion(begin_ns, stamp_ns, None if self.exact else self.seed)

    def view(self, T_map_camera: Array) -> NDArray[np.uint8]:
        """One colour: x, y and z of the camera, 1 m a step."""
        colour = np.clip(np.round(T_map_camera[:3, 3]) + 100.0, 0.0, 255.0).astype(np.uint8)
        return np.tile(colour, (8, 12, 1))

    def fork(self) -> Self:
        return replace(self, seen=[], gaps=0, last_ns=None)

    def counters(self) -> dict[str, int]:
        return {"motion.gaps": self.gaps}

    def reset(self) -> None:
        super().reset()
        self.last_ns = None


def true_motion(begin_ns: int, end_ns: int, seed: int | None = None) -> CameraMotion:
    """`T_begin_end` of the camera on the circle; with a seed, with noise of `MOTION_COV`."""
    T_begin, T_end = true_pose(begin_ns) @ T_BASE_CAMERA, true_pose(end_ns) @ T_BASE_CAMERA
    noise = np.zeros(6)
    if seed is not None:
        rng = np.random.default_rng([seed, 1, end_ns % 2**32])
        noise = rng.normal(size=6) * np.sqrt(MOTION_COV.diagonal())
    return CameraMotion(begin_ns, end_ns, inverse(T_begin) @ T_end @ exp_se3(noise), MOTION_COV)


def repeated(events: list[Event], times: int) -> Iterator[Event]:
    """The same bag again and again, stamps and all."""
    for _ in range(times):
        yield from events
