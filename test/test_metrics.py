"""Error summaries and consistency, on trajectories whose errors are known."""

from __future__ import annotations

import numpy as np
import pytest

from vmloc_ros import metrics
from vmloc_ros.errors import TrajectoryError
from vmloc_ros.geometry import adjoint, exp_se3
from vmloc_ros.trajectory import Trajectory


def circle(count: int = 400, step_m: float = 0.5) -> Trajectory:
    poses = [np.eye(4)]
    for _ in range(count - 1):
        poses.append(poses[-1] @ exp_se3([step_m, 0, 0, 0, 0, 0.02]))
    return Trajectory(np.arange(count, dtype=np.int64) * 100_000_000, np.array(poses))


def test_known_errors() -> None:
    truth = circle()
    shift = [exp_se3([0.1 * k, 0, 0, 0, 0, 0.01 * k]) for k in range(11)]
    estimates = Trajectory(
        truth.stamps_ns[:11], np.array([T @ s for T, s in zip(truth.poses_N44, shift, strict=False)])
    )
    summary = metrics.error_summary(estimates, truth)
    assert summary["n"] == 11
    assert set(summary) == {"position_m", "rotation_deg", "n"}
    position, rotation = summary["position_m"], summary["rotation_deg"]
    assert position["mean"] == pytest.approx(0.5, rel=1e-2)
    assert position["median"] == pytest.approx(0.5, rel=1e-2)
    assert position["p95"] == pytest.approx(0.95, rel=1e-2)
    assert position["max"] == pytest.approx(1.0, rel=1e-2)
    assert rotation["max"] == pytest.approx(np.rad2deg(0.1), rel=1e-6)
    assert rotation["mean"] == pytest.approx(np.rad2deg(0.05), rel=1e-6)


def test_truth_is_interpolated_and_gaps_are_refused() -> None:
    truth = circle()
    between = Trajectory(
        truth.stamps_ns[:5] + 50_000_000,
        np.array([truth.interpolate(s + 50_000_000) for s in truth.stamps_ns[:5].tolist()]),
    )
    assert metrics.error_summary(between, truth)["position_m"]["max"] < 1e-12
    outside = Trajectory(truth.stamps_ns[-3:] + 50_000_000, truth.poses_N44[-3:])
    with pytest.raises(TrajectoryError):
        metrics.error_summary(outside, truth)
    assert len(metrics.covered(outside, truth)) == 2
    with pytest.raises(TrajectoryError):
        metrics.error_summary(metrics.covered(Trajectory(np.array([-5]), np.eye(4)[None]), truth), truth)
    with pytest.raises(ValueError, match="no value"):
        metrics.spread([])


def test_nees_of_honest_covariances() -> None:
    """The mean over many draws is the number of components, whichever of them are taken."""
    rng = np.random.default_rng(0)
    A = 0.1 * rng.normal(size=(6, 6))
    S, T = A @ A.T + 1e-4 * np.eye(6), exp_se3([3.0, 1, 2, 0.3, 0.2, 0.5])
    draws = [T @ exp_se3(d) for d in rng.multivariate_normal(np.zeros(6), S, 4000)]
    for components in ((0, 1, 2, 3, 4, 5), (0, 1, 2), metrics.PLANAR, (5,)):
        values = [metrics.nees(T, S, T_true, components) for T_true in draws]
        assert np.mean(values) == pytest.approx(len(components), rel=0.1)


def test_nees_does_not_depend_on_where_the_body_is_measured() -> None:
    S, T, T_true = (
        np.diag([0.1, 0.2, 0.3, 0.01, 0.02, 0.03]),
        exp_se3([1, 2, 3, 0.1, 0, 0.2]),
        exp_se3([1.2, 2, 3, 0.1, 0.1, 0.2]),
    )
    mounting = exp_se3([0.5, -1.0, 2.0, 1.0, 0.5, 0.2])
    turn = adjoint(np.linalg.inv(mounting))
    assert metrics.nees(T @ mounting, turn @ S @ turn.T, T_true @ mounting) == pytest.approx(metrics.nees(T, S, T_true))
    with pytest.raises(np.linalg.LinAlgError):
        metrics.nees(T, np.zeros((6, 6)), T_true)


def test_aligned_error_forgets_a_rigid_offset() -> None:
    truth = circle()
    moved = truth.transformed(exp_se3([10.0, -20.0, 3.0, 0.1, 0.2, 2.0]))
    assert metrics.error_summary(moved, truth)["position_m"]["mean"] > 5.0
    assert metrics.ate_aligned(moved, truth)["rmse"] < 1e-9
    assert metrics.rpe(moved, truth, per_m=50.0)["rmse"] < 1e-9


def test_relative_error_is_the_drift() -> None:
    """Odometry that is 1 % too long drifts by about 1 m in 100 m."""
    truth = circle(800)
    poses = [np.eye(4)]
    for _ in range(799):
        poses.append(poses[-1] @ exp_se3([0.505, 0, 0, 0, 0, 0.0202]))
    drift = metrics.rpe(Trajectory(truth.stamps_ns, np.array(poses)), truth, per_m=20.0)
    assert 0.05 < drift["mean"] < 0.5


def test_what_evo_cannot_compare_is_refused() -> None:
    truth = circle(10)
    with pytest.raises(TrajectoryError):
        metrics.ate_aligned(Trajectory(truth.stamps_ns[:2], truth.poses_N44[:2]), truth)
    with pytest.raises(TrajectoryError):
        metrics.rpe(truth, truth, per_m=1000.0)


def test_the_binomial_band_holds_its_share() -> None:
    rng = np.random.default_rng(0)
    shares = np.array([0.0, 0.05, 0.5, 0.9, 1.0])
    low, high = metrics.binomial_band(shares, 200)
    drawn = rng.binomial(200, shares, (4000, len(shares))) / 200
    inside = ((drawn >= low) & (drawn <= high)).mean(axis=0)
    assert (inside >= 0.94).all()
    assert (inside[1:4] < 0.99).all()
    assert (low[[0, 4]] == shares[[0, 4]]).all()
    assert (high[[0, 4]] == shares[[0, 4]]).all()
    wider = metrics.binomial_band(shares, 50)
    assert (wider[0] <= low).all()
    assert (wider[1] >= high).all()
    with pytest.raises(ValueError, match="trial"):
        metrics.binomial_band(shares, 0)
