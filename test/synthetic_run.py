"""A made-up run with known errors: a loop of 60 s, drifting odometry, a noisy network, a good filter, three outages."""

from __future__ import annotations

import numpy as np

from vmloc_ros.geometry import Array, exp_se3, exp_so3, make_pose
from vmloc_ros.run_log import Outage, RunLog, trajectory_of
from vmloc_ros.trajectory import Trajectory
from vmloc_ros.types import FrameKey, FusedState, Modality, Mode, PoseMeasurement, Status, Verdict

START_NS = 1_700_000_000_000_000_000
SECOND = 1_000_000_000
DURATION_S = 60.0
OUTAGES = (Outage(12.0, 22.0, "rgb"), Outage(28.0, 38.0, "depth"), Outage(44.0, 49.0, "rgb+depth"))
NETWORK_SIGMA_M = 1.0
NETWORK_SIGMA_RAD = 0.03
FUSED_OFFSET_M = 0.3
"""The filter's pose stands this far to the left of the truth, always: its errors are known exactly."""


def true_pose(seconds: float) -> Array:
    """A loop of about 340 m with wiggles."""
    angle = 2.0 * np.pi * seconds / DURATION_S
    x, y = 60.0 * np.cos(angle) + 6.0 * np.cos(3 * angle), 42.0 * np.sin(angle)
    dx, dy = -60.0 * np.sin(angle) - 18.0 * np.sin(3 * angle), 42.0 * np.cos(angle)
    return make_pose(exp_so3([0.0, 0.0, np.arctan2(dy, dx)]), [x, y, 0.0])


def stamp(seconds: float) -> int:
    return START_NS + round(seconds * SECOND)


def true_trajectory(rate_hz: float = 20.0) -> Trajectory:
    times = np.arange(0.0, DURATION_S + 1e-9, 1.0 / rate_hz)
    return trajectory_of((stamp(t), true_pose(t)) for t in times)


def drifting_odometry(truth: Trajectory, drift: float = 0.03) -> Trajectory:
    """The truth's increments, `drift` too long and turned by 0.25 mrad per metre, from a frame of its own."""
    pose = make_pose(exp_so3([0.0, 0.0, 1.0]), [5.0, -3.0, 0.0])
    poses = [pose]
    for before, after in zip(truth.poses_N44, truth.poses_N44[1:], strict=False):
        step = np.linalg.inv(before) @ after
        length = float(np.linalg.norm(step[:3, 3]))
        step[:3, 3] *= 1.0 + drift
        pose = pose @ step @ make_pose(exp_so3([0.0, 0.0, 2.5e-4 * length]), np.zeros(3))
        poses.append(pose)
    return Trajectory(truth.stamps_ns, np.array(poses))


def missing(seconds: float) -> set[Modality]:
    names = "+".join(outage.missing for outage in OUTAGES if outage.from_s < seconds < outage.to_s)
    return {modality for modality in Modality if modality.value in names.split("+")}


def frame_status(seconds: float, rng: np.random.Generator, count: int) -> Status:
    """A frame's status, or a heartbeat where both modalities are missing."""
    gone = missing(seconds)
    sigma = np.array([NETWORK_SIGMA_M] * 3 + [NETWORK_SIGMA_RAD] * 3)
    T_network = true_pose(seconds) @ exp_se3(rng.normal(size=6) * sigma)
    T_fused = true_pose(seconds) @ make_pose(np.eye(3), [0.0, FUSED_OFFSET_M, 0.0])
    is_frame = len(gone) < 2
    mode = Mode.DEAD_RECKONING if not is_frame else Mode.RGB_DEPTH
    if is_frame and gone:
        mode = Mode.DEPTH_ONLY if Modality.RGB in gone else Mode.RGB_ONLY
    key = FrameKey(
        stamp(seconds),
        None if Modality.RGB in gone else stamp(seconds),
        () if Modality.DEPTH in gone else (stamp(seconds) - 60_000_000, stamp(seconds) - 10_000_000),
    )
    return Status(
        stamp_ns=stamp(seconds),
        mode=mode,
        verdict=Verdict.FUSED if is_frame else Verdict.NO_POSE,
        reason="" if is_frame else "no frame",
        key=key if is_frame else None,
        state=FusedState(stamp(seconds), T_fused, np.diag([0.09] * 3 + [1e-4] * 3), np.eye(4)),
        measurement=PoseMeasurement(stamp(seconds), T_network, np.diag(sigma**2)) if is_frame else None,
        expert_weights={"rgb": 0.5, "depth": 0.4, "prior": 0.1},
        health=1.0,
        nis=5.0 if is_frame else None,
        dof=6 if is_frame else 0,
        latency_ms=float(20.0 + 5.0 * rng.random()),
        absent=dict.fromkeys(gone, "not published"),
        counters={"images.received": count, "frames.paired": count, "frames.inferred": count, "frames.stale": 0,
                  "frames.no_pose": 0, "verdict.fused": count},
    )  # fmt: skip


def make_log(seed: int = 0, with_truth: bool = True) -> RunLog:
    rng = np.random.default_rng(seed)
    truth = true_trajectory()
    times = np.arange(1.0, DURATION_S - 0.05, 0.1)
    statuses = [frame_status(float(t), rng, i + 1) for i, t in enumerate(times)]
    offset = make_pose(np.eye(3), [0.0, FUSED_OFFSET_M, 0.0])
    return RunLog(
        statuses=statuses,
        live=truth.transformed(T_right=offset),
        odometry=drifting_odometry(truth),
        truth=truth if with_truth else None,
        start_ns=START_NS,
        outages=OUTAGES,
        published={"image": len(times), "points": len(times), "odom": len(truth)},
    )
