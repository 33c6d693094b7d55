"""Planar mode: z, roll and pitch are what they are told to be, whatever odometry and measurements say of them."""

from __future__ import annotations

import numpy as np
from filter_events import COV, PLAIN, SIGMA, at, measurement, odometry, truth
from hypothesis import given, settings
from hypothesis import strategies as st

from vmloc_ros.config import FrameNames
from vmloc_ros.filter import PLANE, flattened, innovate, update
from vmloc_ros.fusion import Fusion
from vmloc_ros.geometry import Array, exp_se3, is_pose, log_se3
from vmloc_ros.types import FusedState, InitialPose, Verdict

HEIGHT_M = 1.5
PLANAR = PLAIN.model_copy(update={"planar": True, "planar_height_m": HEIGHT_M})
seeds = st.integers(0, 10_000)


def assert_in_plane(state: FusedState) -> None:
    T = state.T_map_base
    assert is_pose(T, 1e-9)
    np.testing.assert_allclose(T[2], [0, 0, 1, HEIGHT_M], atol=1e-12)
    np.testing.assert_allclose(T[:, 2], [0, 0, 1, 0], atol=1e-12)
    inside = state.cov_66[np.ix_(PLANE, PLANE)]
    assert np.linalg.eigvalsh(inside)[0] > 0.0
    outside = state.cov_66.diagonal()[2:5]
    assert (outside > 0.0).all()
    assert (outside < 1e-6).all()


@given(seeds)
def test_flattened_keeps_place_and_heading(seed: int) -> None:
    rng = np.random.default_rng(seed)
    pose = exp_se3(rng.normal(size=6) * [10, 10, 1, 0.3, 0.3, 2.0])
    flat = flattened(pose, HEIGHT_M)
    np.testing.assert_allclose(flat[:2, 3], pose[:2, 3])
    assert abs(flat[0, 0] * pose[1, 0] - flat[1, 0] * pose[0, 0]) < 1e-12
    np.testing.assert_allclose(flattened(flat, HEIGHT_M), flat, atol=1e-15)


@settings(max_examples=20)
@given(seeds)
def test_a_drive_with_errors_out_of_the_plane_stays_in_it(seed: int) -> None:
    """Odometry that climbs and rolls, measurements that are high and tilted, with robust weights and calibration on."""
    rng = np.random.default_rng(seed)
    config = PLANAR.model_copy(update={"estimate_scale": True, "estimate_heading": True, "estimate_yaw_bias": True})
    fusion, tilt = Fusion(config, FrameNames()), np.eye(4)
    for k in range(80):
        seconds = 0.05 * k
        tilt = tilt @ exp_se3([0, 0, 0.02, 0.002, 0.004, 0])
        fusion.add_odometry(odometry(seconds, truth(seconds) @ tilt))
        if k % 4 == 0:
            fusion.add_measurement(measurement(seconds, 1.5 * SIGMA * rng.normal(size=6)))
        state = fusion.state()
        if state is not None:
            assert_in_plane(state)


@given(seeds)
def test_the_update_is_the_planar_one(seed: int) -> None:
    """The optimum of the planar problem: its gradient vanishes, and z, roll and pitch are not touched."""
    rng = np.random.default_rng(seed)
    T = flattened(exp_se3(rng.normal(size=6) * [5, 5, 0, 0, 0, 2]), 0.0)
    Z = T @ exp_se3(np.array([0.4, 0.3, 0, 0, 0, 0.2]) * rng.normal(size=6))
    P, rows = np.zeros((9, 9)), list(PLANE)
    A = rng.normal(size=(3, 3))
    P[np.ix_(rows, rows)] = A @ A.T * 0.05 + np.eye(3) * 0.01
    R = COV
    X, P_new, _ = update(T, P, Z, R, planar=True)
    np.testing.assert_allclose(X[2], [0, 0, 1, 0], atol=1e-12)

    def cost(d: Array) -> float:
        full = np.zeros(6)
        full[rows] = d
        Y = X @ exp_se3(full)
        prior, seen = log_se3(np.linalg.inv(T) @ Y)[rows], log_se3(np.linalg.inv(Y) @ Z)[rows]
        inside = P[np.ix_(rows, rows)]
        return float(prior @ np.linalg.solve(inside, prior) + seen @ np.linalg.solve(R[np.ix_(rows, rows)], seen))

    gradient = [(cost(d) - cost(-d)) / 2e-5 for d in 1e-5 * np.eye(3)]
    np.testing.assert_allclose(gradient, 0.0, atol=1e-3 * (1.0 + cost(np.zeros(3))))
    assert np.linalg.det(P_new[np.ix_(rows, rows)]) < np.linalg.det(P[np.ix_(rows, rows)])


def test_the_distance_has_three_degrees_of_freedom() -> None:
    fusion = Fusion(PLANAR, FrameNames())
    fusion.add_odometry(odometry(0.0))
    fusion.add_measurement(measurement(0.0))
    result = fusion.add_measurement(measurement(0.0, 0.1 * SIGMA))
    assert (result.verdict, result.dof) == (Verdict.FUSED, 3)
    high = fusion.add_measurement(measurement(0.0, np.array([0, 0, 50.0, 0, 0, 0])))
    assert high.verdict is Verdict.FUSED  # z is not compared
    assert innovate(np.eye(4), np.eye(9), np.eye(4), COV, planar=True).residual_m.shape == (3,)


def test_a_pose_set_by_hand_is_put_into_the_plane() -> None:
    fusion = Fusion(PLANAR, FrameNames())
    fusion.add_odometry(odometry(0.0))
    fusion.set_pose(InitialPose(at(0.0), "map", exp_se3([3, 4, 9, 0.2, 0.1, 1.0]), COV))
    state = fusion.state()
    assert state is not None
    assert_in_plane(state)
