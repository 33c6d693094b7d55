"""`vmloc smooth`: the most likely whole drive, from an odometry and poses in files; what `vmloc fuse` cannot wait for.

The filter's model of odometry and of a network's errors (`FilterConfig`), solved at once: every pose is told by what
comes after it as well. Robust weights by iterative reweighting (P. W. Holland, R. E. Welsch, 1977), each of them the
filter's own, of the residual of the smoothed pose.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import chi2

from vmloc_ros import files, metrics
from vmloc_ros.commands.fuse import (
    FRAMES,
    MODEL_NAMES,
    compare,
    fuse,
    nees_summary,
    read_measurements,
    read_odometry,
)
from vmloc_ros.config import FilterConfig
from vmloc_ros.errors import ConfigError, TrajectoryError
from vmloc_ros.filter import correlation_inflation, robust_weight
from vmloc_ros.fusion import Fusion
from vmloc_ros.geometry import Array, inverse, log_se3
from vmloc_ros.increments import Segment
from vmloc_ros.moment import Moment
from vmloc_ros.odometry_model import UNCALIBRATED, prior_variances
from vmloc_ros.pose_graph import MIN_VARIANCE, Anchor, Way, load_gtsam, solve
from vmloc_ros.replay import Replay
from vmloc_ros.trajectory import NANOSECONDS, Trajectory, read_tum, write_tum
from vmloc_ros.types import FusedState, OdometrySample, PoseMeasurement

ROUNDS = 12
SETTLED_M = 0.02
"""Reweighting ends when no pose moves further than this, or after so many rounds."""


class Chain(NamedTuple):
    """Dead reckoning at every stamp of the odometry, and of the measurements between them.

    Attributes:
        stamps_ns: (N,).
        T_start_N44: since the start; the odometry with its faults bridged, as the filter does.
        variances_N2: accumulated, of positions (m^2) and rotations (rad^2).
    """

    stamps_ns: NDArray[np.int64]
    T_start_N44: Array
    variances_N2: Array

    def ways(self) -> list[Way]:
        """From every stamp to the next."""
        result = []
        for k, (before, now) in enumerate(pairwise(self.T_start_N44)):
            T = inverse(before) @ now
            variances = np.maximum(self.variances_N2[k + 1] - self.variances_N2[k], MIN_VARIANCE)
            result.append(Way(T, float(np.linalg.norm(T[:3, 3])), np.diag(np.repeat(variances, 3))))
        return result


def run_smooth(
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
    """Smooths an odometry and absolute poses into one trajectory, at every stamp of either that the odometry covers.

    Arguments, files and result are those of `commands.fuse.run_fuse`; `smoothed` stands for `fused`, whose errors are
    there as well, for it is where the search begins.

    Raises:
        TrajectoryError, DatasetError: a file cannot be read, or no pose lies within the odometry's time.
        ConfigError: a deviation or extrinsics that cannot be used, or `filter.planar`.
        SetupError: GTSAM is not installed.
        GeometryError: the graph has no solution.
    """
    load_gtsam()
    config = config or FilterConfig()
    if config.planar:
        raise ConfigError("vmloc smooth has no planar mode: set filter.planar to false")
    odometry = read_odometry(odometry_path, odometry_extrinsics)
    measurements = read_measurements(poses_path, sigma_m, sigma_deg)
    inside = [z for z in measurements if odometry.stamps_ns[0] <= z.stamp_ns <= odometry.stamps_ns[-1]]
    if not inside:
        raise TrajectoryError(f"{poses_path}: none of its {len(measurements)} poses lies within the odometry's time")
    fusion = Fusion(config, FRAMES)
    filtered = list(fuse(fusion, odometry, measurements))
    chain = dead_reckoning(odometry, inside, config)
    states, model, rounds = smoothed(chain, inside, beginning(chain, filtered, inside), config)
    track = Trajectory(chain.stamps_ns, np.array([state.T_map_base for state in states]))
    write_tum(out_path, track)
    result: dict[str, Any] = {
        "odometry": {"samples": len(odometry), "length_m": odometry.length_m()},
        "poses": {"samples": len(measurements)},
        "fused": {"samples": len(filtered)},
        "smoothed": {"samples": len(states)},
        "odometry_model": dict(zip(MODEL_NAMES, model.tolist(), strict=True)),
        "counters": {"rounds": rounds, "poses.outside": len(measurements) - len(inside)},
    }
    if truth is not None:
        true = read_tum(truth)
        compare(result, true, odometry, measurements, filtered)
        result["smoothed"] |= metrics.error_summary(metrics.covered(track, true), true)
        result["nees"] = nees_summary(states, true)
    if json is not None:
        files.write_json(json, result)
    return result


def dead_reckoning(odometry: Trajectory, measurements: Sequence[PoseMeasurement], config: FilterConfig) -> Chain:
    """The odometry, judged and bridged as in the filter, at its own stamps and at the measurements'."""
    replay = Replay(config)
    samples = [
        OdometrySample(stamp_ns, FRAMES.odom, FRAMES.base, T)
        for stamp_ns, T in zip(odometry.stamps_ns.tolist(), odometry.poses_N44, strict=True)
    ]
    waiting = sorted({z.stamp_ns for z in measurements} - {sample.stamp_ns for sample in samples}, reverse=True)
    moment = replay.odometry(Moment(samples[0].stamp_ns, still_ns=samples[0].stamp_ns), samples[0], None)
    moments = [moment]
    for before, now in pairwise(samples):
        segment = Segment(before, now, config)
        while waiting and waiting[-1] < now.stamp_ns:
            moment = replay.advance(moment, waiting.pop(), segment)
            moments.append(moment)
        moment = replay.odometry(moment, now, segment)
        moments.append(moment)
    return Chain(
        np.array([m.stamp_ns for m in moments], dtype=np.int64),
        np.array([m.T_start_base for m in moments]),
        np.array([[m.metres2, m.radians2] for m in moments]),
    )


def beginning(chain: Chain, filtered: Sequence[FusedState], measurements: Sequence[PoseMeasurement]) -> Array:
    """Where the search begins, (N, 4, 4): the filter's poses, elsewhere the nearest of them carried on by the chain;
    without any the first measurement."""
    known = {state.stamp_ns: state.T_map_base for state in filtered}
    if not known:
        known = {measurements[0].stamp_ns: measurements[0].T_map_base}
    stamps = chain.stamps_ns.tolist()
    places = np.array([k for k, stamp in enumerate(stamps) if stamp in known])
    every = np.arange(len(stamps))
    after = np.minimum(np.searchsorted(places, every), len(places) - 1)
    before = np.maximum(after - 1, 0)
    closer = every - places[before] < places[after] - every
    nearest = np.where(closer, places[before], places[after]).tolist()
    T_start = chain.T_start_N44
    return np.array([known[stamps[n]] @ inverse(T_start[n]) @ T_start[k] for k, n in enumerate(nearest)])


def smoothed(
    chain: Chain, measurements: Sequence[PoseMeasurement], guess_N44: Array, config: FilterConfig
) -> tuple[list[FusedState], Array, int]:
    """Poses and covariances at every stamp of the chain, the odometry's model, and how many rounds it took."""
    node_of = {stamp: k for k, stamp in enumerate(chain.stamps_ns.tolist())}
    measured = sorted(measurements, key=lambda z: z.stamp_ns)
    nodes = [node_of[z.stamp_ns] for z in measured]
    seconds = np.array([z.stamp_ns - measured[0].stamp_ns for z in measured]) / NANOSECONDS
    inflated = [z.cov_66 * config.measurement_inflation for z in measured]
    growth = correlation_growth(seconds, config.measurement_correlation_s)
    variances = prior_variances(config)
    model_variances = variances if variances.any() else None
    ways, poses, model, rounds = chain.ways(), guess_N44, UNCALIBRATED, 0
    while True:
        rounds += 1
        squares = np.array(
            [_square(poses[k], z.T_map_base, R) for k, z, R in zip(nodes, measured, inflated, strict=True)]
        )
        weights = robust_weights(squares, seconds, config)
        anchors = [
            Anchor(k, z.T_map_base, R * (g / w))
            for k, z, R, g, w in zip(nodes, measured, inflated, growth, weights, strict=True)
        ]
        found = solve(poses, anchors, ways, [], 0.0, model_variances, model)
        moved = float(np.linalg.norm(found.poses_N44[:, :3, 3] - poses[:, :3, 3], axis=1).max())
        poses, model = found.poses_N44, found.model_3
        if moved < SETTLED_M or rounds == ROUNDS:
            break
    found = solve(poses, anchors, ways, range(len(poses)), 0.0, model_variances, model)
    states = [
        FusedState(stamp, T, found.covariances[k], T @ inverse(chain.T_start_N44[k]))
        for k, (stamp, T) in enumerate(zip(chain.stamps_ns.tolist(), found.poses_N44, strict=True))
    ]
    return states, found.model_3, rounds


def correlation_growth(seconds_N: Array, correlation_s: float) -> Array:
    """(N,) factors on the covariances of measurements at these times (ascending), as in the filter; the first is
    treated like the second."""
    if len(seconds_N) < 2:
        return np.ones(len(seconds_N))
    factors = [correlation_inflation(dt, correlation_s) for dt in np.diff(seconds_N).tolist()]
    return np.array([factors[0], *factors])


def robust_weights(squares_N: Array, seconds_N: Array, config: FilterConfig) -> Array:
    """(N,) the filter's weights: of a measurement's squared distance, or of the mean about it where that is larger.

    The mean is over `noise_level_s` to both sides; one distance counts in it at most as much as the gate allows.
    """
    if config.student_t_dof <= 0.0:
        return np.ones(len(squares_N))
    level = squares_N
    if config.noise_level_s > 0.0:
        clipped = np.minimum(squares_N, chi2.ppf(config.gate_probability, 6))
        keep = np.exp(-np.diff(seconds_N) / config.noise_level_s)
        sums = _faded(clipped, keep) + _faded(clipped[::-1], keep[::-1])[::-1] - clipped
        counts = np.ones_like(clipped)
        level = sums / (_faded(counts, keep) + _faded(counts, keep[::-1])[::-1] - counts)
    return np.array(
        [
            robust_weight(nis, config.student_t_dof, 6, config.robust_power, config.max_robust_weight)
            for nis in np.maximum(squares_N, level).tolist()
        ]
    )


def _faded(values_N: Array, keep: Array) -> Array:
    """Sums of all values so far, each faded by what lies between (`keep`, N - 1)."""
    result, total = np.empty(len(values_N)), 0.0
    for k, value in enumerate(values_N.tolist()):
        total = value + (total * float(keep[k - 1]) if k else 0.0)
        result[k] = total
    return result


def _square(T: Array, T_measured: Array, cov_66: Array) -> float:
    """Squared Mahalanobis distance of a measured pose."""
    d = log_se3(inverse(T) @ T_measured)
    square = float(d @ np.linalg.solve(cov_66, d))
    return square if math.isfinite(square) else math.inf
