"""`vmloc fuse`: the filter alone, on an odometry and on poses from files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vmloc_ros import files, metrics
from vmloc_ros.config import FilterConfig, FrameNames
from vmloc_ros.datasets.robotcar import read_vo_csv
from vmloc_ros.datasets.robotcar_files import base_from_stereo
from vmloc_ros.errors import ConfigError, GeometryError, TrajectoryError
from vmloc_ros.fusion import Fusion
from vmloc_ros.geometry import Array, inverse, pose_from_quaternion, rotate_covariance
from vmloc_ros.trajectory import Trajectory, read_tum, write_tum
from vmloc_ros.types import FusedState, OdometrySample, PoseMeasurement

FRAMES = FrameNames()
MODEL_NAMES = ("log_scale", "heading_rad", "yaw_bias_rad_per_m")
DEFAULT_SIGMA_M, DEFAULT_SIGMA_DEG = 1.0, 2.0


def run_fuse(
    odometry_path: Path,
    poses_path: Path,
    out_path: Path,
    sigma_m: float | None = None,
    sigma_deg: float | None = None,
    odometry_extrinsics: Sequence[float] | None = None,
    truth: Path | None = None,
    json: Path | None = None,
    config: FilterConfig | None = None,
) -> dict[str, Any]:
    """Fuses an odometry with absolute poses, in order of their stamps, and writes the fused trajectory.

    Each line of the result is what the filter knew at that stamp, with nothing later: the posterior at every stamp of
    either file, from the moment on when the filter had a pose.

    Args:
        odometry_path: a TUM file of `T_odom_base`, or a RobotCar `vo.csv`.
        poses_path: a TUM file of `T_map_base`, with six more columns of standard deviations (x y z in metres,
            rotation x y z in radians, fixed axes of the map) or without.
        out_path: the TUM file to write.
        sigma_m: standard deviation of the poses' position per axis, in place of the file's (1 m where it has none).
        sigma_deg: the same of the rotation, in degrees (2 degrees where the file has none).
        odometry_extrinsics: `x y z qx qy qz qw` of `T_base_sensor`, where the odometry is of a sensor's pose. By
            default the published calibration of RobotCar's stereo camera for a `.csv`, and the identity for a TUM file.
        truth: a TUM file of the true `T_map_base`, for errors and consistency in the result.
        json: where to write the result as well.
        config: the filter's parameters; the defaults if None.

    Returns:
        What was done: `poses`, `odometry`, `fused` (counts, and errors with `truth`), `odometry_model`, `nees`,
        `counters`.

    Raises:
        TrajectoryError, DatasetError: a file cannot be read.
        ConfigError: a deviation or extrinsics that cannot be used.
    """
    odometry = read_odometry(odometry_path, odometry_extrinsics)
    measurements = read_measurements(poses_path, sigma_m, sigma_deg)
    fusion = Fusion(config or FilterConfig(), FRAMES)
    states = list(fuse(fusion, odometry, measurements))
    if not states:
        raise TrajectoryError(f"{poses_path}: its {len(measurements)} poses never started the filter {_why(fusion)}")
    fused = Trajectory(
        np.array([state.stamp_ns for state in states], dtype=np.int64),
        np.array([state.T_map_base for state in states]),
    )
    write_tum(out_path, fused)
    result: dict[str, Any] = {
        "odometry": {"samples": len(odometry), "length_m": odometry.length_m()},
        "poses": {"samples": len(measurements)},
        "fused": {"samples": len(fused)},
        "odometry_model": _model(fusion),
        "counters": fusion.counters(),
    }
    if truth is not None:
        compare(result, read_tum(truth), odometry, measurements, states)
    if json is not None:
        files.write_json(json, result)
    return result


def _model(fusion: Fusion) -> dict[str, dict[str, float]]:
    """What the filter has found to be wrong with the odometry by the end, with its standard deviations."""
    values, deviations = fusion.odometry_model()
    return {
        name: {"value": float(value), "deviation": float(deviation)}
        for name, value, deviation in zip(MODEL_NAMES, values, deviations, strict=True)
    }


def _why(fusion: Fusion) -> str:
    counts = {name: count for name, count in fusion.counters().items() if count}
    return "(" + (", ".join(f"{name} {count}" for name, count in counts.items()) or "no data") + ")"


def read_odometry(path: Path, extrinsics: Sequence[float] | None = None) -> Trajectory:
    """`T_odom_base` of a TUM file or a RobotCar `vo.csv`; see `run_fuse` for the extrinsics."""
    if path.suffix == ".csv":
        trajectory, T_base_sensor = read_vo_csv(path), base_from_stereo()
    else:
        trajectory, T_base_sensor = read_tum(path), np.eye(4)
    if extrinsics is not None:
        if len(extrinsics) != 7:
            raise ConfigError(f"odometry extrinsics need x y z qx qy qz qw, seven numbers, not {len(extrinsics)}")
        try:
            T_base_sensor = pose_from_quaternion(extrinsics[:3], extrinsics[3:])
        except GeometryError as error:
            raise ConfigError(f"odometry extrinsics: {error}") from error
    return trajectory.transformed(T_base_sensor, inverse(T_base_sensor))


def read_measurements(
    path: Path, sigma_m: float | None = None, sigma_deg: float | None = None
) -> list[PoseMeasurement]:
    """Poses with covariances of a TUM file with or without six columns of deviations; see `run_fuse`."""
    for name, value in (("sigma-m", sigma_m), ("sigma-deg", sigma_deg)):
        if value is not None and not (np.isfinite(value) and value > 0.0):
            raise ConfigError(f"{name} must be a positive number, not {value}")
    trajectory = read_tum(path)
    deviations = _deviations(path, trajectory)
    if sigma_m is not None:
        deviations[:, :3] = sigma_m
    if sigma_deg is not None:
        deviations[:, 3:] = np.deg2rad(sigma_deg)
    return [
        PoseMeasurement(stamp_ns, T, rotate_covariance(np.diag(row**2), T[:3, :3].T))
        for stamp_ns, T, row in zip(trajectory.stamps_ns.tolist(), trajectory.poses_N44, deviations, strict=True)
    ]


def _deviations(path: Path, trajectory: Trajectory) -> Array:
    """(N, 6) standard deviations of the file's further columns, or the defaults where it has none.

    Raises:
        TrajectoryError: some lines have them and some not, or one is not a positive number.
    """
    rows: dict[str, list[str]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        words = line.split()
        if words and not words[0].startswith("#"):
            rows.setdefault(words[0], words[8:14])
    widths = {len(words) for words in rows.values()}
    if widths == {0}:
        return np.tile([DEFAULT_SIGMA_M] * 3 + [np.deg2rad(DEFAULT_SIGMA_DEG)] * 3, (len(trajectory), 1))
    if widths != {6}:
        raise TrajectoryError(f"{path}: every line needs 8 or 14 columns (the pose, then six standard deviations)")
    try:
        values = np.array([[float(word) for word in words] for words in rows.values()])
    except ValueError as error:
        raise TrajectoryError(f"{path}: a standard deviation is not a number ({error})") from error
    if len(values) != len(trajectory) or not (np.isfinite(values).all() and (values > 0.0).all()):
        raise TrajectoryError(f"{path}: standard deviations must be positive and finite, one row for each stamp")
    return values


def fuse(fusion: Fusion, odometry: Trajectory, measurements: Sequence[PoseMeasurement]) -> Iterator[FusedState]:
    """The filter's posterior at every stamp, of everything up to it."""
    samples = [
        OdometrySample(stamp_ns, FRAMES.odom, FRAMES.base, T)
        for stamp_ns, T in zip(odometry.stamps_ns.tolist(), odometry.poses_N44, strict=True)
    ]
    pending = iter(sorted(measurements, key=lambda measurement: measurement.stamp_ns))
    measurement = next(pending, None)
    for sample in samples:
        while measurement is not None and measurement.stamp_ns < sample.stamp_ns:
            fusion.add_measurement(measurement)
            yield from _posterior(fusion, measurement.stamp_ns)
            measurement = next(pending, None)
        fusion.add_odometry(sample)
        while measurement is not None and measurement.stamp_ns == sample.stamp_ns:
            fusion.add_measurement(measurement)
            measurement = next(pending, None)
        yield from _posterior(fusion, sample.stamp_ns)
    while measurement is not None:
        fusion.add_measurement(measurement)
        yield from _posterior(fusion, measurement.stamp_ns)
        measurement = next(pending, None)
    fusion.flush()


def _posterior(fusion: Fusion, stamp_ns: int) -> Iterator[FusedState]:
    state = fusion.state_at(stamp_ns)
    if state is not None and not fusion.is_lost(stamp_ns):
        yield state


def compare(
    result: dict[str, Any],
    truth: Trajectory,
    odometry: Trajectory,
    measurements: Sequence[PoseMeasurement],
    states: Sequence[FusedState],
) -> None:
    """Adds errors and consistency to the result, at the stamps where the truth is known."""
    poses = Trajectory(
        np.array([m.stamp_ns for m in measurements], dtype=np.int64), np.array([m.T_map_base for m in measurements])
    )
    fused = Trajectory(np.array([s.stamp_ns for s in states], dtype=np.int64), np.array([s.T_map_base for s in states]))
    dead = metrics.covered(odometry, truth)
    if len(dead):  # dead reckoning from the true start
        T_map_odom = truth.interpolate(int(dead.stamps_ns[0])) @ inverse(dead.poses_N44[0])
        result["odometry"] |= metrics.error_summary(dead.transformed(T_map_odom), truth)
    for name, trajectory in (("poses", poses), ("fused", fused)) if states else (("poses", poses),):
        known = metrics.covered(trajectory, truth)
        if len(known) == 0:
            raise TrajectoryError("the truth shares no stamp with the poses: are both in the same clock?")
        result[name] |= metrics.error_summary(known, truth)
    if states:
        result["nees"] = nees_summary(states, truth)


def nees_summary(states: Sequence[FusedState], truth: Trajectory) -> dict[str, dict[str, float]]:
    """Mean NEES of the whole pose, of the position, and of the planar pose (forward, left, yaw), with their degrees."""
    parts = {"pose": (0, 1, 2, 3, 4, 5), "position": (0, 1, 2), "planar": metrics.PLANAR}
    known = [(state, truth.interpolate(state.stamp_ns)) for state in states if truth.covers(state.stamp_ns)]
    return {
        name: {
            "mean": float(np.mean([metrics.nees(s.T_map_base, s.cov_66, T_true, part) for s, T_true in known])),
            "dof": float(len(part)),
        }
        for name, part in parts.items()
    }
