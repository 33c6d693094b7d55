"""SO(3) and SE(3) as laws: logarithm and exponential, adjoint, Jacobians against differences; from 0 up to pi."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from vmloc_ros.errors import GeometryError
from vmloc_ros.geometry import (
    Array,
    adjoint,
    exp_se3,
    exp_so3,
    interpolate,
    inverse,
    is_pose,
    log_quaternion,
    log_se3,
    log_so3,
    make_pose,
    orthonormalise,
    pose_from_quaternion,
    quaternion_from_pose,
    right_jacobian_inverse_se3,
    right_jacobian_so3,
    rotate_covariance,
    rotation_angle,
    rotation_from_log_quaternion,
    skew,
)

seeds = st.integers(0, 2**32 - 1)
# Where closed forms hand over to series, and both ends.
angles = st.one_of(
    st.floats(0.0, math.pi),
    st.sampled_from(
        [0.0, 1e-300, 1e-12, 1e-8, 9.9e-5, 1.01e-4, 9.9e-4, 1.01e-3, 0.0499, 0.0501, 0.099, 0.101, 2.0, 2.2]
    ),
    st.floats(1e-9, 1e-3).map(lambda gap: math.pi - gap),
)


def axis(seed: int) -> Array:
    direction = np.random.default_rng(seed).normal(size=3)
    return direction / np.linalg.norm(direction)


def random_pose(seed: int, angle: float = 1.0) -> Array:
    return exp_se3(np.concatenate([np.random.default_rng(seed + 1).normal(size=3), angle * axis(seed)]))


@given(seeds, angles)
def test_so3_logarithm_undoes_exponential(seed: int, angle: float) -> None:
    rotvec = angle * axis(seed)
    R = exp_so3(rotvec)
    assert np.abs(R @ R.T - np.eye(3)).max() < 1e-14
    assert np.linalg.det(R) == pytest.approx(1.0)
    back = log_so3(R)
    np.testing.assert_allclose(exp_so3(back), R, atol=1e-12)
    if angle < math.pi - 1e-6:
        np.testing.assert_allclose(back, rotvec, atol=1e-9)
    if 0.0 < angle < 1e-3:
        assert np.linalg.norm(back) == pytest.approx(angle, rel=1e-9)


@given(seeds)
def test_half_turns_have_a_logarithm(seed: int) -> None:
    n = axis(seed)
    R = 2.0 * np.outer(n, n) - np.eye(3)
    rotvec = log_so3(R)
    assert np.linalg.norm(rotvec) == pytest.approx(math.pi)
    np.testing.assert_allclose(np.abs(rotvec @ n), math.pi, rtol=1e-9)
    np.testing.assert_allclose(exp_so3(rotvec), R, atol=1e-9)


@given(seeds, angles, st.floats(1e-3, 1e4))
def test_se3_logarithm_undoes_exponential(seed: int, angle: float, length: float) -> None:
    tangent = np.concatenate([length * axis(seed + 7), angle * axis(seed)])
    T = exp_se3(tangent)
    assert is_pose(T, 1e-12)
    np.testing.assert_allclose(exp_se3(log_se3(T)), T, atol=1e-10 * (1.0 + length))
    if angle < 3.0:
        np.testing.assert_allclose(log_se3(T), tangent, atol=1e-9 * (1.0 + length))


@given(seeds)
def test_exponential_against_its_series(seed: int) -> None:
    tangent = np.random.default_rng(seed).normal(size=6)
    generator = np.zeros((4, 4))
    generator[:3, :3], generator[:3, 3] = skew(tangent[3:]), tangent[:3]
    total, term = np.eye(4), np.eye(4)
    for k in range(1, 40):
        term = term @ generator / k
        total += term
    np.testing.assert_allclose(exp_se3(tangent), total, atol=1e-9)


@given(seeds)
def test_skew_is_the_cross_product(seed: int) -> None:
    a, b = np.random.default_rng(seed).normal(size=(2, 3))
    np.testing.assert_allclose(skew(a) @ b, np.cross(a, b), atol=1e-14)


@given(seeds)
def test_inverse(seed: int) -> None:
    T = random_pose(seed)
    np.testing.assert_allclose(T @ inverse(T), np.eye(4), atol=1e-14)
    np.testing.assert_allclose(inverse(inverse(T)), T, atol=1e-14)


@given(seeds, angles)
def test_adjoint_moves_perturbations_across(seed: int, angle: float) -> None:
    T, d = random_pose(seed, angle), np.random.default_rng(seed).normal(size=6)
    np.testing.assert_allclose(T @ exp_se3(d) @ inverse(T), exp_se3(adjoint(T) @ d), atol=1e-10)


@given(seeds)
def test_adjoint_is_a_homomorphism(seed: int) -> None:
    A, B = random_pose(seed), random_pose(seed + 3)
    np.testing.assert_allclose(adjoint(A @ B), adjoint(A) @ adjoint(B), atol=1e-12)
    np.testing.assert_allclose(adjoint(inverse(A)), np.linalg.inv(adjoint(A)), atol=1e-12)


@given(seeds, angles)
def test_right_jacobian_so3_against_differences(seed: int, angle: float) -> None:
    w = angle * axis(seed)
    numeric = np.empty((3, 3))
    for k in range(3):
        step = np.zeros(3)
        step[k] = 1e-6
        ahead, behind = (log_so3(exp_so3(w).T @ exp_so3(w + sign * step)) for sign in (1.0, -1.0))
        numeric[:, k] = (ahead - behind) / 2e-6
    np.testing.assert_allclose(right_jacobian_so3(w), numeric, atol=1e-8)


@given(seeds, angles, st.floats(0.01, 100.0))
@example(seed=0, angle=0.0, length=1.0)
def test_right_jacobian_inverse_se3_against_differences(seed: int, angle: float, length: float) -> None:
    if angle > 3.0:
        return  # the logarithm jumps at pi
    x = np.concatenate([length * axis(seed + 5), angle * axis(seed)])
    numeric = np.empty((6, 6))
    for k in range(6):
        step = np.zeros(6)
        step[k] = 1e-6
        ahead, behind = (log_se3(exp_se3(x) @ exp_se3(sign * step)) for sign in (1.0, -1.0))
        numeric[:, k] = (ahead - behind) / 2e-6
    np.testing.assert_allclose(right_jacobian_inverse_se3(x), numeric, atol=3e-7 * (1.0 + length))


@pytest.mark.parametrize("border", [1e-3, 0.05])
def test_jacobian_has_no_step_where_series_end(border: float) -> None:
    direction = np.array([3.0, -2.0, 5.0, *axis(3)])
    below, above = (
        right_jacobian_inverse_se3(direction * [1, 1, 1, *[border * (1.0 + sign * 1e-9)] * 3]) for sign in (-1.0, 1.0)
    )
    np.testing.assert_allclose(above, below, atol=1e-8)


@given(seeds)
def test_quaternions_round_trip(seed: int) -> None:
    T = random_pose(seed, np.random.default_rng(seed).uniform(0, math.pi))
    quat = quaternion_from_pose(T)
    assert quat[3] >= 0.0
    np.testing.assert_allclose(pose_from_quaternion(T[:3, 3], quat), T, atol=1e-12)
    np.testing.assert_allclose(pose_from_quaternion(T[:3, 3], -7.0 * quat), T, atol=1e-12)  # any scale, either sign


@pytest.mark.parametrize(
    ("translation", "quat"),
    [
        ([0, 0, 0], [0, 0, 0, 0]),
        ([0, 0, 0], [1e-9, 0, 0, 0]),
        ([0, 0, 0], [math.nan, 0, 0, 1]),
        ([math.inf, 0, 0], [0, 0, 0, 1]),
        ([0, 0, 0], [1e308, 1e308, 0, 0]),
    ],
)
def test_bad_quaternions_are_refused(translation: list[float], quat: list[float]) -> None:
    with pytest.raises(GeometryError):
        pose_from_quaternion(translation, quat)


@given(seeds, angles)
def test_log_quaternion_is_half_the_rotation_vector(seed: int, angle: float) -> None:
    R = exp_so3(angle * axis(seed))
    half = log_quaternion(R)
    assert np.linalg.norm(half) <= 0.5 * math.pi + 1e-9
    np.testing.assert_allclose(rotation_from_log_quaternion(half), R, atol=1e-9)
    quat = quaternion_from_pose(make_pose(R, [0, 0, 0]))  # VMLoc's own form: log q = v / |v| acos(w)
    if 1e-3 < angle < math.pi - 1e-3:
        expected = quat[:3] / np.linalg.norm(quat[:3]) * math.acos(min(quat[3], 1.0))
        np.testing.assert_allclose(half, expected, atol=1e-6)


@given(seeds, st.floats(0.0, 1.0))
def test_interpolation(seed: int, share: float) -> None:
    A, B = random_pose(seed), random_pose(seed + 1)
    np.testing.assert_allclose(interpolate(A, B, 0.0), A, atol=1e-14)
    np.testing.assert_allclose(interpolate(A, B, 1.0), B, atol=1e-9)
    middle = interpolate(A, B, share)
    assert is_pose(middle, 1e-9)
    np.testing.assert_allclose(middle, interpolate(B, A, 1.0 - share), atol=1e-8)
    whole = rotation_angle(A[:3, :3], B[:3, :3])
    assert rotation_angle(A[:3, :3], middle[:3, :3]) == pytest.approx(share * whole, abs=1e-7)


@given(seeds, st.floats(0.0, 0.05))
def test_orthonormalise(seed: int, noise: float) -> None:
    T = random_pose(seed)
    rough = T.copy()
    rough[:3, :3] += noise * np.random.default_rng(seed).normal(size=(3, 3))
    found = orthonormalise(rough)
    assert is_pose(found, 1e-12)
    np.testing.assert_allclose(found, T, atol=6.0 * noise + 1e-12)


@pytest.mark.parametrize(
    "T", [np.eye(3), np.zeros((4, 4)), np.diag([1.0, 1, -1, 1]), 2 * np.eye(4), np.full((4, 4), math.nan)]
)
def test_is_pose_knows_what_is_none(T: Array) -> None:
    assert not is_pose(T)
    assert is_pose(np.eye(4))


def test_rotated_covariance_is_not_the_adjoint() -> None:
    """Fixed axes turn both blocks alike; turning back gives the body's again."""
    rng = np.random.default_rng(0)
    A = rng.normal(size=(6, 6))
    S, T = A @ A.T, random_pose(4)
    turned = rotate_covariance(S, T[:3, :3])
    np.testing.assert_allclose(turned[:3, :3], T[:3, :3] @ S[:3, :3] @ T[:3, :3].T, atol=1e-12)
    np.testing.assert_allclose(turned[3:, :3], T[:3, :3] @ S[3:, :3] @ T[:3, :3].T, atol=1e-12)
    np.testing.assert_allclose(rotate_covariance(turned, T[:3, :3].T), S, atol=1e-12)
    assert np.abs(turned - adjoint(T) @ S @ adjoint(T).T).max() > 0.1
