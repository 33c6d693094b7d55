"""A drive for tests of the filter: exact odometry along a curve, its measurements, and what the filter made of them."""

from __future__ import annotations

import numpy as np

from vmloc_ros.config import FilterConfig, FrameNames
from vmloc_ros.fusion import Fusion, OdometryVerdict
from vmloc_ros.geometry import Array, exp_se3
from vmloc_ros.trajectory import NANOSECONDS
from vmloc_ros.types import FusedState, OdometrySample, PoseMeasurement

START_NS = 1_700_000_000 * NANOSECONDS
T_MAP_ODOM = exp_se3([100.0, -50.0, 3.0, 0.0, 0.0, 0.7])
COV = np.diag([0.25, 0.25, 0.09, 4e-4, 4e-4, 1e-3])
SIGMA = np.sqrt(COV.diagonal())
# Start from the first measurement, which is what most tests want; white and Gaussian where laws are exact.
PLAIN = FilterConfig(
    initialize_after=1,
    student_t_dof=0.0,
    measurement_correlation_s=0.0,
    measurement_inflation=1.0,
    noise_m_per_m=0.03,
    noise_rad_per_m=0.004,
    estimate_scale=False,
    estimate_heading=False,
    estimate_yaw_bias=False,
    noise_level_s=0.0,
    divergence_window_s=0.0,
    robust_power=1.0,
    max_robust_weight=1.0,
)

Event = OdometrySample | PoseMeasurement


def at(seconds: float) -> int:
    return START_NS + round(seconds * NANOSECONDS)


def truth(seconds: float) -> Array:
    """T_odom_base of a drive along a curve, 8 m/s."""
    return exp_se3([8.0 * seconds, 0.0, 0.0, 0.0, 0.0, 0.2 * seconds])


def odometry(seconds: float, pose: Array | None = None) -> OdometrySample:
    return OdometrySample(at(seconds), "odom", "base_link", truth(seconds) if pose is None else pose)


def measurement(
    seconds: float, error: Array | None = None, cov: Array = COV, source: str = "network"
) -> PoseMeasurement:
    pose = T_MAP_ODOM @ truth(seconds)
    return PoseMeasurement(at(seconds), pose if error is None else pose @ exp_se3(error), cov, source)


def filled(config: FilterConfig = PLAIN, until_s: float = 5.0, step_s: float = 0.05, every: int = 4) -> Fusion:
    """A filter after a drive with exact odometry and exact measurements."""
    fusion = Fusion(config, FrameNames())
    for k in range(round(until_s / step_s) + 1):
        assert fusion.add_odometry(odometry(k * step_s)) is OdometryVerdict.USED
        if k % every == 0:
            fusion.add_measurement(measurement(k * step_s))
    return fusion


def error_m(state: FusedState | None, seconds: float) -> float:
    assert state is not None
    return float(np.linalg.norm(state.T_map_base[:3, 3] - (T_MAP_ODOM @ truth(seconds))[:3, 3]))


def feed(fusion: Fusion, events: list[Event]) -> None:
    for event in events:
        if isinstance(event, OdometrySample):
            fusion.add_odometry(event)
        else:
            fusion.add_measurement(event)


def assert_same(a: FusedState | None, b: FusedState | None, tolerance: float) -> None:
    assert (a is None) == (b is None)
    if a is None or b is None:
        return
    assert a.stamp_ns == b.stamp_ns
    np.testing.assert_allclose(a.T_map_base, b.T_map_base, rtol=0.0, atol=tolerance)
    np.testing.assert_allclose(a.cov_66, b.cov_66, rtol=0.0, atol=tolerance)
    np.testing.assert_allclose(a.T_map_odom, b.T_map_odom, rtol=0.0, atol=tolerance)
