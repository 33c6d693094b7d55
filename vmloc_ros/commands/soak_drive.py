"""What a soak drives with: sensor messages without end, made as they are needed, and a network that errs like one.

The vehicle goes round a figure of eight; where it is depends on the stamp alone, so the truth is known without being
kept. Messages are made in blocks of ten seconds, most of which have a fault: each of `FAULTS` once, then drawn.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import count

import numpy as np
from numpy.typing import NDArray

from vmloc_ros.config import InputConfig, ProjectionConfig
from vmloc_ros.geometry import Array, exp_se3, make_pose, orthonormalise
from vmloc_ros.trajectory import NANOSECONDS
from vmloc_ros.types import (
    CameraInfo,
    CameraPrior,
    Event,
    EventKind,
    Frame,
    NoPose,
    OdometrySample,
    PinholeIntrinsics,
    PointField,
    PoseEstimate,
    RawCloud,
    RawImage,
)

START_NS = 1_700_000_000 * NANOSECONDS
LAP_S = 100
"""A lap of the figure of eight; a clock that is set by whole laps leaves the vehicle where it is."""
BLOCK_SAMPLES, ODOMETRY_NS, FRAME_NS = 1000, 10_000_000, 100_000_000
BLOCK_NS = BLOCK_SAMPLES * ODOMETRY_NS
HOUR_NS = 3600 * NANOSECONDS
WIDTH, HEIGHT = 32, 24
CAMERA = PinholeIntrinsics(WIDTH, HEIGHT, 25.0, 25.0, WIDTH / 2, HEIGHT / 2)
T_BASE_CAMERA = make_pose([[0, 0, 1], [-1, 0, 0], [0, -1, 0]], [1.5, 0.0, 1.6])
T_BASE_LIDAR = make_pose(np.eye(3), [0.5, 0.1, 1.8])
CLAIMED = np.array([0.5] * 3 + [0.02] * 3)
"""Deviations that the network claims (m, rad; camera axes)."""
CORRELATION_S = 2.0

FAULTS = {
    "none": 8.0, "shuffled": 3.0, "repeated": 2.0, "stray stamps": 2.0, "all silent": 1.0,
    "odometry jumps": 2.0, "odometry restarts": 1.0, "odometry frozen": 1.0, "odometry silent": 1.0,
    "odometry not finite": 1.0, "odometry of another frame": 1.0,
    "camera silent": 1.0, "camera constant": 1.0, "lidar silent": 1.0, "lidar damaged": 1.0,
    "bag loops by 4 s": 0.3, "bag loops by 30 s": 0.3, "clock set back 1 h": 0.2, "clock set ahead 1 h": 0.2,
}  # fmt: skip
"""How often a block has which fault, as shares of their sum."""
CLOCK_STEPS_NS = {
    "all silent": 8 * NANOSECONDS,
    "bag loops by 4 s": -4 * NANOSECONDS,
    "bag loops by 30 s": -30 * NANOSECONDS,
    "clock set back 1 h": -HOUR_NS,
    "clock set ahead 1 h": HOUR_NS,
}
"""What is added to the stamps where such a block begins."""


def true_poses(stamps_ns: NDArray[np.int64]) -> Array:
    """`T_map_base` (N, 4, 4) at stamps (N,): 3.6 to 7.6 m/s, rolling and pitching a little."""
    phase = (stamps_ns % (LAP_S * NANOSECONDS)) * (2.0 * math.pi / (LAP_S * NANOSECONDS))
    yaw = np.arctan2(2.0 * 40.0 * np.cos(2.0 * phase), 90.0 * np.cos(phase))
    pitch, roll = 0.03 * np.sin(3.0 * phase), 0.02 * np.cos(5.0 * phase)
    cy, sy, cp, sp, cr, sr = np.cos(yaw), np.sin(yaw), np.cos(pitch), np.sin(pitch), np.cos(roll), np.sin(roll)
    T = np.zeros((len(stamps_ns), 4, 4))
    T[:, 0, :3] = np.stack([cy * cp, cy * sp * sr - sy * cr, cy * sp * cr + sy * sr], axis=1)
    T[:, 1, :3] = np.stack([sy * cp, sy * sp * sr + cy * cr, sy * sp * cr - cy * sr], axis=1)
    T[:, 2, :3] = np.stack([-sp, cp * sr, cp * cr], axis=1)
    T[:, :3, 3] = np.stack([90.0 * np.sin(phase), 40.0 * np.sin(2.0 * phase), 2.0 * np.sin(phase)], axis=1)
    T[:, 3, 3] = 1.0
    return T


def true_pose(stamp_ns: int) -> Array:
    """`T_map_base` (4, 4) at one stamp."""
    return true_poses(np.array([stamp_ns]))[0]


@dataclass(frozen=True, slots=True, eq=False)
class Arrival:
    """A message, and when it arrives on a clock that nothing sets."""

    arrival_ns: int
    event: Event


class Drive:
    """See the module's docstring. Holds one block of messages.

    Attributes:
        blocks: how many blocks had which fault.
    """

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng([seed, 0])
        self._begin_ns = 0  # of the next block, on the clock that nothing sets
        self._offset_ns = START_NS
        self._T_odom_base = np.eye(4)
        xyz = self._rng.uniform([10.0, -5.0, -3.0], [20.0, 5.0, 3.0], (120, 3)).astype(np.float32)
        self._points = xyz.tobytes()
        self.blocks: Counter[str] = Counter()

    def arrivals(self) -> Iterator[Arrival]:
        """Messages in order of arrival, for ever."""
        names = tuple(FAULTS)
        shares = np.array(list(FAULTS.values())) / sum(FAULTS.values())
        for number in count():
            fault = names[number if number < len(names) else self._rng.choice(len(names), p=shares)]
            self.blocks[fault] += 1
            yield from self._block(fault)

    def _block(self, fault: str) -> list[Arrival]:
        step_ns = CLOCK_STEPS_NS.get(fault, 0)
        if fault == "all silent":  # time itself goes on
            self._begin_ns += step_ns
        else:
            self._offset_ns += step_ns
        arrivals = [*self._odometry(fault), *self._sensors(fault)]
        if fault == "repeated":
            chosen = self._rng.random(len(arrivals)) < 0.05
            arrivals += [
                replace(a, arrival_ns=a.arrival_ns + 5_000_000) for a, c in zip(arrivals, chosen, strict=True) if c
            ]
        elif fault == "shuffled":
            delays_ns = self._rng.integers(0, 400_000_000, len(arrivals)).tolist()
            arrivals = [replace(a, arrival_ns=a.arrival_ns + d) for a, d in zip(arrivals, delays_ns, strict=True)]
        elif fault == "stray stamps":
            chosen = self._rng.random(len(arrivals)) < 0.01
            arrivals = [self._astray(a) if c else a for a, c in zip(arrivals, chosen, strict=True)]
        self._begin_ns += BLOCK_NS
        return sorted(arrivals, key=lambda a: a.arrival_ns)

    def _astray(self, arrival: Arrival) -> Arrival:
        event = arrival.event
        stamp_ns = (0, event.stamp_ns + HOUR_NS, event.stamp_ns - HOUR_NS)[self._rng.integers(3)]
        moved = replace(event, stamp_ns=stamp_ns, payload=replace(event.payload, stamp_ns=stamp_ns))
        return Arrival(arrival.arrival_ns, moved)

    # -------------------------------------------------------------------------------------------------------- odometry

    def _odometry(self, fault: str) -> list[Arrival]:
        """A block of odometry: 2 % too long, turning a little, noisy, at 100 Hz with a millisecond of jitter."""
        rng, n = self._rng, BLOCK_SAMPLES
        times_ns = self._begin_ns + np.arange(n) * ODOMETRY_NS + rng.integers(0, 1_000_000, n)
        stamps_ns = times_ns + self._offset_ns
        truth = true_poses(np.concatenate([[self._begin_ns + self._offset_ns - ODOMETRY_NS], stamps_ns]))
        steps = np.linalg.inv(truth[:-1]) @ truth[1:]
        steps[:, :3, 3] *= 1.02
        errors = rng.normal(0.0, [2e-3, 2e-3, 1e-3, 1e-4, 1e-4, 2e-4], (n, 6)) + [0, 0, 0, 0, 0, 2e-5]
        poses = np.empty((n, 4, 4))
        T = self._T_odom_base
        for k in range(n):
            T = poses[k] = T @ steps[k] @ exp_se3(errors[k])
        self._T_odom_base = orthonormalise(T)
        kept = self._break_odometry(fault, poses)
        frames = ["odom"] * n
        if fault == "odometry of another frame":
            frames = ["somewhere" if other else "odom" for other in rng.random(n) < 0.05]
        return [
            Arrival(
                int(times_ns[k]) + 2_000_000,
                Event(
                    EventKind.ODOMETRY,
                    int(stamps_ns[k]),
                    OdometrySample(int(stamps_ns[k]), frames[k], "base_link", poses[k].copy()),
                ),
            )
            for k in kept
        ]

    def _break_odometry(self, fault: str, poses_N44: Array) -> list[int]:
        """Puts the block's fault into the poses, in place; gives the samples that are sent."""
        rng, n = self._rng, len(poses_N44)
        begin = int(rng.integers(n // 4, n // 2))
        if fault == "odometry jumps":
            poses_N44[begin:] = exp_se3([*rng.normal(0.0, 10.0, 3), 0.0, 0.0, rng.normal()]) @ poses_N44[begin:]
            self._T_odom_base = poses_N44[-1].copy()
        elif fault == "odometry restarts":
            poses_N44[begin:] = np.linalg.inv(poses_N44[begin]) @ poses_N44[begin:]
            self._T_odom_base = poses_N44[-1].copy()
        elif fault == "odometry frozen":
            poses_N44[begin : begin + n // 3] = poses_N44[begin]
        elif fault == "odometry not finite":
            for k in np.flatnonzero(rng.random(n) < 0.05):
                poses_N44[k, rng.integers(3), rng.integers(4)] = (math.nan, math.inf, -1e308)[rng.integers(3)]
        elif fault == "odometry silent":
            return [k for k in range(n) if not begin <= k < begin + n // 3]
        return list(range(n))

    # --------------------------------------------------------------------------------------------------------- sensors

    def _sensors(self, fault: str) -> list[Arrival]:
        """The camera's and the lidar's messages of a block, 10 Hz each, and the camera's calibration."""
        times_ns = range(self._begin_ns, self._begin_ns + BLOCK_NS, FRAME_NS)
        pixels = self._rng.integers(0, 256, (len(times_ns), 3 * WIDTH * HEIGHT), np.uint8)
        broken = range(len(times_ns) // 4, 3 * len(times_ns) // 4)
        arrivals = [Arrival(self._begin_ns, camera_info(self._begin_ns + self._offset_ns))]
        for k, time_ns in enumerate(times_ns):
            image_ns, cloud_ns = time_ns + 33_000_000, time_ns + 3_000_000
            if not (fault == "camera silent" and k in broken):
                data = b"\x5a" * (3 * WIDTH * HEIGHT) if fault == "camera constant" and k in broken else pixels[k]
                arrivals.append(Arrival(image_ns + 15_000_000, image(image_ns + self._offset_ns, bytes(data))))
            if not (fault == "lidar silent" and k in broken):
                points = self._points[:-5] if fault == "lidar damaged" and k in broken else self._points
                arrivals.append(Arrival(cloud_ns + 20_000_000, cloud(cloud_ns + self._offset_ns, points)))
        return arrivals


def image(stamp_ns: int, data: bytes) -> Event:
    """A picture of these pixels."""
    raw = RawImage(stamp_ns, "camera_optical", HEIGHT, WIDTH, "rgb8", 3 * WIDTH, False, data)
    return Event(EventKind.IMAGE, stamp_ns, raw)


def cloud(stamp_ns: int, data: bytes) -> Event:
    """A cloud of 120 points; one whose data is shorter is damaged."""
    fields = tuple(PointField(name, 4 * k, 7, 1) for k, name in enumerate("xyz"))
    return Event(EventKind.CLOUD, stamp_ns, RawCloud(stamp_ns, "lidar", 1, 120, fields, False, 12, 1440, data))


def camera_info(stamp_ns: int) -> Event:
    """The calibration of `CAMERA`."""
    K = CAMERA.matrix()
    P = np.column_stack([K, np.zeros(3)])
    info = CameraInfo(stamp_ns, "camera_optical", HEIGHT, WIDTH, "plumb_bob", (0.0,) * 5, K, np.eye(3), P)
    return Event(EventKind.CAMERA_INFO, stamp_ns, info)


# ------------------------------------------------------------------------------------------------------------- network


@dataclass(frozen=True, slots=True)
class Card:
    """What the pipeline reads of a model's card."""

    camera: PinholeIntrinsics = CAMERA
    input: InputConfig = field(default_factory=InputConfig)
    projection: ProjectionConfig = field(default_factory=ProjectionConfig)
    sha256: str = "50" * 32
    motion: None = None


class ErringLocalizer:
    """A localizer without a network: the truth with errors that are correlated, heavy-tailed and sometimes absurd.

    While it works, time goes on: `meanwhile` is told for how many nanoseconds, as a network on its own thread would let
    further messages in. Mostly 30 to 90 ms, one time in 200 a second, one in 2000 more than the filter's history.

    Attributes:
        answers: how many answers were of which kind.
    """

    device = "cpu"
    fallback = ""

    def __init__(self, seed: int, card: Card, meanwhile: Callable[[int], None]) -> None:
        self.card = card
        self.answers: Counter[str] = Counter()
        self._rng = np.random.default_rng([seed, 1])
        self._meanwhile = meanwhile
        self._bias_6 = np.zeros(6)
        self._last: PoseEstimate | None = None

    def localize(self, frame: Frame, prior: CameraPrior | None = None) -> PoseEstimate | NoPose:
        """The answer to a frame. Errors are of the camera's axes."""
        rng = self._rng
        latency_ns = int(rng.integers(30_000_000, 90_000_000))
        slow = rng.random()
        if slow < 0.0055:
            latency_ns = NANOSECONDS if slow >= 0.0005 else 4 * NANOSECONDS
        kind = self._kind(rng.random())
        answer = self._answer(frame, kind)
        self.answers[kind] += 1
        self._meanwhile(latency_ns)
        return answer

    def _kind(self, draw: float) -> str:
        for kind, share in (
            ("refused", 0.01),
            ("not finite", 0.01),
            ("repeated", 0.005),
            ("stamped ahead", 0.005),
            ("stamped 10 s ago", 0.005),
            ("outlier", 0.05),
        ):
            if draw < share and not (kind == "repeated" and self._last is None):
                return kind
            draw -= share
        return "pose"

    def _answer(self, frame: Frame, kind: str) -> PoseEstimate | NoPose:
        if kind == "refused":
            return NoPose(frame.stamp_ns, "not sure")
        if kind == "repeated" and self._last is not None:
            return self._last
        rng, stamp_ns = self._rng, frame.stamp_ns
        kept = math.exp(-FRAME_NS / NANOSECONDS / CORRELATION_S)
        self._bias_6 = kept * self._bias_6 + math.sqrt(1.0 - kept * kept) * rng.normal(0.0, 0.7 * CLAIMED)
        error = self._bias_6 + 0.5 * CLAIMED * rng.standard_t(4.0, 6)
        if kind == "outlier":
            error[:3] += rng.normal(0.0, 30.0, 3)
        T, cov = true_pose(stamp_ns) @ T_BASE_CAMERA @ exp_se3(error), np.diag(CLAIMED**2)
        if kind == "not finite":
            bad = (math.nan, math.inf, -math.inf)[rng.integers(3)]
            (T if rng.random() < 0.5 else cov)[rng.integers(3), rng.integers(4)] = bad
        elif kind == "stamped ahead":
            stamp_ns += 5 * NANOSECONDS
        elif kind == "stamped 10 s ago":
            stamp_ns -= 10 * NANOSECONDS
        answer = PoseEstimate(stamp_ns, T, cov, {"rgb": 0.6, "depth": 0.3, "prior": 0.1}, frame.mode)
        if kind == "pose":
            self._last = answer
        return answer

    def warm_up(self) -> None:
        """Nothing to load."""

    def reset(self) -> None:
        """The data has started over; the error stays what it is."""
        self._last = None
