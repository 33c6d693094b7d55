"""SO(3) and SE(3) on plain float64 arrays.

Poses are 4x4 matrices named `T_target_source`: `p_target = T_target_source @ p_source`. Tangent vectors are
ordered (translation, rotation). Perturbations stand on the right: `T = T_hat @ exp_se3(d)`, so `d` is in the axes of
the source (body) frame. Formulas: J. Sola, J. Deray, D. Atchuthan, "A micro Lie theory for state estimation in
robotics", arXiv:1812.01537 (equation numbers below are that paper's).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.transform import Rotation

from vmloc_ros.errors import GeometryError

Array = NDArray[np.float64]

SMALL_ANGLE_RAD = 1e-4
"""Below it the closed forms are replaced by their Taylor series (the next term is below 1e-17)."""


def skew(vector_3: ArrayLike) -> Array:
    """The 3x3 matrix with `skew(a) @ b == cross(a, b)`."""
    x, y, z = (float(v) for v in np.asarray(vector_3, dtype=float))
    return np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])


def _series(angle: float) -> tuple[float, float, float]:
    """sin(a)/a, (1-cos(a))/a^2, (a-sin(a))/a^3, exact to 1e-15 down to zero."""
    square = angle * angle
    if angle < SMALL_ANGLE_RAD:
        return 1.0 - square / 6.0, 0.5 - square / 24.0, 1.0 / 6.0 - square / 120.0
    if angle < 0.1:  # the closed form of the third loses digits to cancellation
        third = 1.0 / 6.0 - square / 120.0 + square**2 / 5040.0 - square**3 / 362880.0 + square**4 / 39916800.0
    else:
        third = (angle - math.sin(angle)) / (square * angle)
    half = math.sin(0.5 * angle)
    return math.sin(angle) / angle, 2.0 * half * half / square, third


def exp_so3(rotvec: ArrayLike) -> Array:
    """Rotation matrix of a rotation vector (radians), Rodrigues' formula (eq. 132)."""
    vector = np.asarray(rotvec, dtype=float)
    a, b, _ = _series(math.sqrt(float(vector @ vector)))
    cross = skew(vector)
    return np.eye(3) + a * cross + b * (cross @ cross)


def log_so3(R: ArrayLike) -> Array:
    """Rotation vector (radians, norm at most pi) of a rotation matrix; stable at 0 and at pi."""
    matrix = np.asarray(R, dtype=float)
    vee = 0.5 * np.array([matrix[2, 1] - matrix[1, 2], matrix[0, 2] - matrix[2, 0], matrix[1, 0] - matrix[0, 1]])
    sine = math.sqrt(float(vee @ vee))
    cosine = 0.5 * (matrix[0, 0] + matrix[1, 1] + matrix[2, 2] - 1.0)
    if cosine < -0.5:  # near pi the sine carries no sign that can be trusted: let the quaternion decide
        return np.asarray(Rotation.from_matrix(matrix).as_rotvec(), dtype=float)
    angle = math.atan2(sine, cosine)
    scale = 1.0 + angle * angle / 6.0 if angle < SMALL_ANGLE_RAD else angle / sine
    return np.asarray(scale * vee, dtype=float)


def make_pose(R: ArrayLike, translation_3: ArrayLike) -> Array:
    """4x4 pose from a rotation matrix and a translation."""
    pose = np.eye(4)
    pose[:3, :3] = R
    pose[:3, 3] = translation_3
    return pose


def inverse(T: Array) -> Array:
    """`T_b_a` from `T_a_b`."""
    pose = np.eye(4)
    R_transposed = T[:3, :3].T
    pose[:3, :3] = R_transposed
    pose[:3, 3] = -R_transposed @ T[:3, 3]
    return pose


def exp_se3(tangent_6: ArrayLike) -> Array:
    """Pose of a tangent vector (translation, rotation) (eq. 172)."""
    tangent = np.asarray(tangent_6, dtype=float)
    rotvec = tangent[3:]
    a, b, c = _series(math.sqrt(float(rotvec @ rotvec)))
    cross = skew(rotvec)
    squared = cross @ cross
    pose = np.eye(4)
    pose[:3, :3] += a * cross + b * squared
    pose[:3, 3] = tangent[:3] + b * (cross @ tangent[:3]) + c * (squared @ tangent[:3])
    return pose


def _inverse_factor(angle: float) -> float:
    """The factor of the squared cross matrix in the inverse Jacobians of a rotation by `angle` (eqs. 144, 146)."""
    if angle < 1e-3:
        return 1.0 / 12.0 + angle * angle / 720.0
    return (1.0 - 0.5 * angle * math.cos(0.5 * angle) / math.sin(0.5 * angle)) / (angle * angle)


def log_se3(T: Array) -> Array:
    """Tangent vector (translation, rotation) of a pose (eq. 173); `exp_se3(log_se3(T)) == T`."""
    rotvec = log_so3(T[:3, :3])
    cross = skew(rotvec)
    factor = _inverse_factor(math.sqrt(float(rotvec @ rotvec)))
    translation = T[:3, 3]
    result = np.empty(6)
    result[:3] = translation - 0.5 * (cross @ translation) + factor * (cross @ (cross @ translation))
    result[3:] = rotvec
    return result


def transform_points(T: Array, xyz_N3: NDArray[np.float32]) -> NDArray[np.float32]:
    """Points (N, 3) moved by a pose, in single precision: clouds are large and millimetres are enough."""
    single = T.astype(np.float32)
    return np.asarray(xyz_N3 @ single[:3, :3].T + single[:3, 3], dtype=np.float32)


def adjoint(T: Array) -> Array:
    """6x6 adjoint, order (translation, rotation): `T exp(d) T^-1 == exp(adjoint(T) d)` (eq. 175)."""
    result = np.zeros((6, 6))
    R = T[:3, :3]
    result[:3, :3] = R
    result[3:, 3:] = R
    result[:3, 3:] = skew(T[:3, 3]) @ R
    return result


def right_jacobian_so3(rotvec: ArrayLike) -> Array:
    """`exp(w + dw) ~= exp(w) exp(J_r dw)` (eq. 143)."""
    vector = np.asarray(rotvec, dtype=float)
    _, b, c = _series(math.sqrt(float(vector @ vector)))
    cross = skew(vector)
    return np.eye(3) - b * cross + c * (cross @ cross)


def right_jacobian_inverse_se3(tangent_6: ArrayLike) -> Array:
    """`log(exp(x) exp(d)) ~= x + J_r^-1(x) d`, order (translation, rotation) (eqs. 179-180, 144)."""
    tangent = np.asarray(tangent_6, dtype=float)
    rho, theta = tangent[:3], tangent[3:]
    cross = skew(theta)
    factor = _inverse_factor(math.sqrt(float(theta @ theta)))
    J_inverse = np.eye(3) + 0.5 * cross + factor * (cross @ cross)
    Q = _left_q(-rho, -theta)  # J_r(x) = J_l(-x)
    result = np.zeros((6, 6))
    result[:3, :3] = J_inverse
    result[3:, 3:] = J_inverse
    result[:3, 3:] = -J_inverse @ Q @ J_inverse
    return result


def _left_q(rho: Array, theta: Array) -> Array:
    """The coupling block Q of the left Jacobian of SE(3) (eq. 180)."""
    angle = math.sqrt(float(theta @ theta))
    P, W = skew(rho), skew(theta)
    if angle < 0.05:
        square = angle * angle
        second, third = 1.0 / 6.0 - square / 120.0, 1.0 / 24.0 - square / 720.0
        fourth = 1.0 / 120.0 - square / 2520.0
    else:
        square = angle * angle
        second = (angle - math.sin(angle)) / (square * angle)
        third = (0.5 * square + math.cos(angle) - 1.0) / (square * square)
        fourth = 0.5 * (third + 3.0 * (angle - math.sin(angle) - square * angle / 6.0) / (square * square * angle))
    WP, PW = W @ P, P @ W
    return (
        0.5 * P
        + second * (WP + PW + W @ PW)
        + third * (W @ WP + PW @ W - 3.0 * W @ PW)
        + fourth * (W @ PW @ W + W @ W @ PW)
    )


def pose_from_quaternion(translation_3: ArrayLike, quat_xyzw: ArrayLike) -> Array:
    """4x4 pose of a translation and a quaternion, which is normalised.

    Raises:
        GeometryError: a number is not finite, or the quaternion's norm is below 1e-6.
    """
    translation = np.asarray(translation_3, dtype=float)
    x, y, z, w = (float(v) for v in np.asarray(quat_xyzw, dtype=float))
    norm = math.sqrt(x * x + y * y + z * z + w * w)
    if not (math.isfinite(norm) and np.isfinite(translation).all()):
        raise GeometryError(f"pose is not finite: position {translation}, quaternion {[x, y, z, w]}")
    if norm < 1e-6:
        raise GeometryError("quaternion is zero: it has no direction; the sender must fill orientation.w")
    x, y, z, w = x / norm, y / norm, z / norm, w / norm
    pose = np.eye(4)
    pose[0, :3] = 1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)
    pose[1, :3] = 2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)
    pose[2, :3] = 2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)
    pose[:3, 3] = translation
    return pose


def quaternion_from_pose(T: Array) -> Array:
    """Quaternion xyzw of a pose's rotation, on the hemisphere w >= 0.

    By the largest of the four squares, so that nothing small is divided by (S. W. Shepperd, "Quaternion from rotation
    matrix", J. Guidance and Control, 1978). Plain floats: ten times faster than scipy, and every odometry sample
    needs two.
    """
    (r00, r01, r02, _), (r10, r11, r12, _), (r20, r21, r22, _) = T[:3].tolist()
    trace = r00 + r11 + r22
    largest = max(trace, r00, r11, r22)
    if largest == trace:
        quat = (r21 - r12, r02 - r20, r10 - r01, 1.0 + trace)
    elif largest == r00:
        quat = (1.0 + r00 - r11 - r22, r01 + r10, r02 + r20, r21 - r12)
    elif largest == r11:
        quat = (r01 + r10, 1.0 - r00 + r11 - r22, r12 + r21, r02 - r20)
    else:
        quat = (r02 + r20, r12 + r21, 1.0 - r00 - r11 + r22, r10 - r01)
    norm = math.sqrt(sum(value * value for value in quat))
    sign = -1.0 if quat[3] < 0.0 else 1.0
    return np.array([sign * value / norm for value in quat])


def log_quaternion(R: ArrayLike) -> Array:
    """The papers' logarithm of a unit quaternion: *half* the rotation vector (VMLoc eq. 12), hemisphere w >= 0."""
    return 0.5 * log_so3(R)


def rotation_from_log_quaternion(log_quat_3: ArrayLike) -> Array:
    """Inverse of `log_quaternion`."""
    return exp_so3(2.0 * np.asarray(log_quat_3, dtype=float))


def interpolate(T_a: Array, T_b: Array, share: float) -> Array:
    """Pose at `share` of the way from `T_a` (0) to `T_b` (1): rotation by slerp, position linearly."""
    pose = np.eye(4)
    pose[:3, :3] = T_a[:3, :3] @ exp_so3(share * log_so3(T_a[:3, :3].T @ T_b[:3, :3]))
    pose[:3, 3] = (1.0 - share) * T_a[:3, 3] + share * T_b[:3, 3]
    return pose


def rotation_angle(R_a: Array, R_b: Array) -> float:
    """Angle in radians between two rotations, exact near zero."""
    return float(np.linalg.norm(log_so3(R_a.T @ R_b)))


def orthonormalise(T: Array) -> Array:
    """The nearest pose with a proper rotation; keeps long products of poses from drifting."""
    U, _, Vt = np.linalg.svd(T[:3, :3])
    R = U @ np.diag([1.0, 1.0, float(np.sign(np.linalg.det(U @ Vt)))]) @ Vt
    return make_pose(R, T[:3, 3])


def is_pose(T: ArrayLike, tolerance: float = 1e-6) -> bool:
    """Whether an array is a finite 4x4 rigid transform."""
    matrix = np.asarray(T, dtype=float)
    if matrix.shape != (4, 4) or not np.isfinite(matrix).all():
        return False
    R = matrix[:3, :3]
    return bool(
        np.abs(R @ R.T - np.eye(3)).max() < tolerance
        and np.linalg.det(R) > 0.0
        and np.array_equal(matrix[3], [0.0, 0.0, 0.0, 1.0])
    )


def rotate_covariance(cov_66: Array, R: Array) -> Array:
    """`blkdiag(R, R) S blkdiag(R, R)'`: body axes to the fixed axes of the header's frame (REP-103), or back with R.T.

    This is *not* the adjoint: the wire's covariance is of the position and of small rotations about fixed axes through
    the body's own origin.
    """
    block = np.zeros((6, 6))
    block[:3, :3] = R
    block[3:, 3:] = R
    return block @ cov_66 @ block.T
