"""What an odometry does wrong in the same way all the time: too long, to one side, and turning.

Three numbers that the filter estimates along with the pose, where it is told to: the logarithm of the scale (the true
way is `exp(scale)` times the odometry's), the heading (the true direction of travel is turned left by it: a camera or
an axle that is mounted askew), and the yaw bias (the true turn is so many radians per metre more to the left). With
the odometry's increment `(R, t)` and `m` the metres driven, the corrected one is

    t' = exp(scale) R_z(heading) t,    R' = R R_z(bias m).

Augmenting the state with calibration parameters: S. Thrun, W. Burgard, D. Fox, "Probabilistic robotics", section 5.4;
for odometry: T. D. Larsen et al., "Location estimation for an autonomously guided vehicle using an augmented Kalman
filter to autocalibrate the odometry", FUSION 1998. The Jacobians are derived here and tested against differences.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from vmloc_ros.config import FilterConfig

Array = NDArray[np.float64]

SIZE = 3
"""Scale, heading, yaw bias."""
STATES = 6 + SIZE
"""Pose (translation, rotation) and the three numbers."""
UNCALIBRATED = np.zeros(SIZE)

_EYE = np.eye(STATES)


def prior_variances(config: FilterConfig) -> Array:
    """Variances (3,) of scale, heading and yaw bias before anything is known; 0 where one is not estimated."""
    deviations = (
        config.scale_deviation if config.estimate_scale else 0.0,
        config.heading_deviation_rad if config.estimate_heading else 0.0,
        config.yaw_bias_deviation_rad_per_m if config.estimate_yaw_bias else 0.0,
    )
    return np.array(deviations) ** 2


def corrected(T_prev_now: Array, metres: float, model_3: Array) -> tuple[Array, Array]:
    """The increment as the model mends it, and the matrix that carries the errors of pose and model over it.

    Args:
        T_prev_now: the odometry's increment (4, 4).
        metres: the way driven in it.
        model_3: log scale, heading (rad), yaw bias (rad/m).

    Returns:
        The corrected increment `X` (4, 4) and `F` (9, 9): `d_now = F d_prev` for right perturbations of the pose and
        additive ones of the model, to first order: `Ad(X^-1)` beside `d Log(X) / d model`.
    """
    scale, heading, bias = model_3.tolist()
    (r00, r01, r02, x), (r10, r11, r12, y), (r20, r21, r22, z), _ = T_prev_now.tolist()
    factor = math.exp(scale)
    cosine, sine = factor * math.cos(heading), factor * math.sin(heading)
    x, y, z = cosine * x - sine * y, sine * x + cosine * y, factor * z
    c, s = math.cos(bias * metres), math.sin(bias * metres)
    X = np.array(
        (
            (r00 * c + r01 * s, r01 * c - r00 * s, r02, x),
            (r10 * c + r11 * s, r11 * c - r10 * s, r12, y),
            (r20 * c + r21 * s, r21 * c - r20 * s, r22, z),
            (0.0, 0.0, 0.0, 1.0),
        )
    )
    R_transposed = X[:3, :3].T
    F = _EYE.copy()
    F[:3, :3] = R_transposed
    F[3:6, 3:6] = R_transposed
    # columns: rotation before (lever), scale, heading; all first in the axes before the increment
    F[:3, 3:8] = R_transposed @ np.array(((0.0, z, -y, x, -y), (-z, 0.0, x, y, x), (y, -x, 0.0, z, 0.0)))
    F[5, 8] = metres
    return X, F
