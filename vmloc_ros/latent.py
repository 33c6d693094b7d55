"""An observation that is no pose (a latent code, say) as the pose measurement that it is near the state.

The filter has a prior `T = T_hat Exp(d)`, `d ~ N(0, P)`. An observation `z = g(T) + n`, `n ~ N(0, R)`, of any number
of dimensions says by `Observation.at` how it fits a pose: `b = J' R^-1 r`, `L = J' R^-1 J` and `c = r' R^-1 r`.
Gauss-Newton on

    f(X) = |Log(T_hat^-1 X)|^2_P + c(X)

is the iterated form of the Kalman filter in latent space of M. Guo, S. Matthes, J. Ye, H. Shen, "A Generative Map for
Image-based Camera Localization", arXiv:1902.11124 (eqs. 6-8), in information form: `(P^-1 + L)^-1 b` is the `K r` of
its eq. 7 and `(P^-1 + L)^-1` the covariance of its eq. 8 (matrix inversion lemma), but everything is 6x6. (B. M. Bell,
F. W. Cathey, IEEE TAC 38(2), 1993, for the iteration; `filter` for the manifold.)

At the working point `X` where the iteration ends the observation is replaced by a measured pose with the same gradient
and the same information there:

    u = L^-1 b     Z = X Exp(u)     R_Z = H L^-1 H'     H = J_l^-1(u)

for `Log(X^-1 Z)` falls by `H d` where the pose moves by `d`: gradient `H' R_Z^-1 u = b` (`H u = u`), information
`H' R_Z^-1 H = L`. What follows is then the same as for every other measurement. An observation that is linear in
`Log(X^-1 Z)` is replaced without loss, wherever `X` is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vmloc_ros.errors import GeometryError
from vmloc_ros.filter import MAX_VARIANCE, MIN_VARIANCE, PLANE
from vmloc_ros.geometry import exp_se3, inverse, log_se3, right_jacobian_inverse_se3
from vmloc_ros.types import Information, Observation

Array = NDArray[np.float64]

MAX_EVALUATIONS = 12
"""Poses that the observation is compared with in one descent; one that has not converged by then is not used."""
NEAR_OPTIMUM = 0.1
"""Deviations of the posterior: a working point so near the optimum is good enough, the update goes on from there."""
MAX_STEP_RAD = 0.5
MAX_TURN_RAD = 2.5
"""A step is shortened to the first; a working point or a measured pose that is turned by more than the second against
the state is none: logarithms end at pi."""
SMALLEST_STEP = 1.0 / 16.0
SILENT = 1e-8
"""Information relative to the prior's: a direction with less says nothing, and gets so little."""
SILENT_OF_LARGEST = 1e-9
"""The same relative to the best known direction: rounding."""
WEAK = (1e-5, 1e-4, 1e-3, 1e-2)
"""Information relative to the prior's that a weak direction is given where its best fit would be turned too far."""
NEGATIVE = -1e-5
"""So much below zero may be the rounding of single precision (of an information whose diagonal is 1)."""
REMEMBERED = 32
"""Poses whose answers are kept for each observation."""


def checked_information(information: Information) -> Information:
    """What an observation says of a pose, in a form that the filter can use.

    Raises:
        GeometryError: a wrong shape, a number that is not finite, an information that is not symmetric, negative or
            above 1e12, a negative cost, or nothing observed.
    """
    gradient = np.asarray(information.gradient_6, dtype=np.float64)
    matrix = np.asarray(information.information_66, dtype=np.float64)
    if gradient.shape != (6,) or matrix.shape != (6, 6):
        raise GeometryError(f"observation: gradient {gradient.shape} and information {matrix.shape}, not (6,), (6, 6)")
    cost = float(information.cost)
    if not (np.isfinite(gradient).all() and np.isfinite(matrix).all() and np.isfinite(cost)):
        raise GeometryError("observation: gradient, information or cost is not finite")
    largest = matrix.diagonal()
    if largest.min() < 0.0 or largest.max() > 1.0 / MIN_VARIANCE:
        raise GeometryError(f"observation: an information is outside [0, {1.0 / MIN_VARIANCE:g}]")
    limits = np.sqrt(np.outer(largest, largest)) + 1e-9 * largest.max()
    if (np.abs(matrix - matrix.T) > 1e-6 * limits).any():
        raise GeometryError("observation: information is not symmetric")
    scale = 1.0 / np.sqrt(np.where(largest > 0.0, largest, 1.0))
    if float(np.linalg.eigvalsh(matrix * np.outer(scale, scale))[0]) < NEGATIVE:
        raise GeometryError("observation: information is negative in some direction")
    if cost < 0.0 or information.dof < 1:
        raise GeometryError(f"observation: cost {cost:g} is negative or nothing was observed (dof {information.dof})")
    return Information(gradient, 0.5 * (matrix + matrix.T), cost, int(information.dof))


class Remembered:
    """An observation, checked, with the answers for the last poses that it was asked about.

    A late event makes the filter step through its history again: where the state is the same, so is the answer.
    """

    def __init__(self, observation: Observation) -> None:
        self._observation = observation
        self._answers: dict[bytes, Information] = {}

    def at(self, T_map_body: Array) -> Information:
        """How it fits a pose.

        Raises:
            GeometryError: what the observation answers cannot be used, see `checked_information`.
        """
        key = T_map_body.tobytes()
        answer = self._answers.get(key)
        if answer is None:
            answer = checked_information(self._observation.at(T_map_body))
            if len(self._answers) >= REMEMBERED:
                self._answers.clear()
            self._answers[key] = answer
        return answer


@dataclass(frozen=True, slots=True, eq=False)
class Compressed:
    """An observation as a measured pose.

    Attributes:
        T_map_base: `Z`.
        cov_66: `R_Z`, times the inflation. In planar mode its other directions are of no meaning and carry 1.
        rank: how many directions the observation says something about.
        excess: by how much the observation's best fit near the state is worse than its fit at the pose that came with
            it, as a squared Mahalanobis distance; 0 for a linear observation.
    """

    T_map_base: Array
    cov_66: Array
    rank: int
    excess: float


@dataclass(frozen=True, slots=True, eq=False)
class _Point:
    """A working point: `d` from the predicted pose, the prior's covariance carried there, and what is known there."""

    X: Array
    d: Array
    P_X: Array
    information: Information
    gradient: Array
    matrix: Array
    value: float


class _Posterior:
    """`f(X)` of the module's description, in all six directions or those of the plane."""

    def __init__(self, observation: Observation, T: Array, P_66: Array, share: float, planar: bool) -> None:
        """`share`: factor on the observation's information."""
        self.rows = list(PLANE) if planar else list(range(6))
        self._block = np.ix_(self.rows, self.rows)
        self._observation, self._T, self._share = observation, T, share
        self._inverse = inverse(T)
        self._P = P_66[self._block]

    def at(self, X: Array) -> _Point:
        """The posterior at a pose."""
        offset = np.zeros(6) if X is self._T else log_se3(self._inverse @ X)
        d = offset[self.rows]
        P_X = self._P
        if d.any():
            J_r = np.linalg.inv(right_jacobian_inverse_se3(offset)[self._block])
            P_X = J_r @ P_X @ J_r.T
        known = self._observation.at(X)
        value = float(d @ np.linalg.solve(self._P, d)) + self._share * known.cost
        return _Point(X, d, P_X, known, known.gradient_6[self.rows], known.information_66[self._block], value)

    def step(self, point: _Point) -> tuple[Array, float]:
        """The Gauss-Newton step from a working point, and its squared length in deviations of the posterior.

        The minimum of `|e + d|^2_{P_X} - 2 b' e + e' L e`: `(I + P_X L) e = P_X b - d`, where L may be singular.
        """
        b, L = self._share * point.gradient, self._share * point.matrix
        e = np.linalg.solve(np.eye(len(b)) + point.P_X @ L, point.P_X @ b - point.d)
        return np.asarray(e), float(e @ (b - np.linalg.solve(point.P_X, point.d)))

    def moved(self, point: _Point, e: Array) -> Array:
        """`X Exp(e)`."""
        step = np.zeros(6)
        step[self.rows] = e
        return point.X @ exp_se3(step)

    def turn_rad(self, d: Array) -> float:
        """By how much a tangent vector turns."""
        return float(np.linalg.norm(d[2:] if len(d) == len(PLANE) else d[3:]))


def _descend(posterior: _Posterior, start: Array) -> _Point | None:
    """Gauss-Newton with halved steps; None where it does not converge or turns too far."""
    point = posterior.at(start)
    evaluations = 1
    while posterior.turn_rad(point.d) < MAX_TURN_RAD:
        e, squared_length = posterior.step(point)
        if squared_length <= NEAR_OPTIMUM**2:
            return point
        share = min(1.0, MAX_STEP_RAD / max(posterior.turn_rad(e), 1e-9))
        smallest = share * SMALLEST_STEP
        while True:
            if evaluations == MAX_EVALUATIONS or share < smallest:
                return None
            trial = posterior.at(posterior.moved(point, share * e))
            evaluations += 1
            if trial.value < point.value:
                break
            share *= 0.5
        point = trial
    return None


def compress(
    observation: Observation,
    pose: Array,
    T: Array,
    P_66: Array,
    inflation: float,
    correlation: float,
    gate: float,
    planar: bool = False,
) -> Compressed | None:
    """An observation as the pose measurement that it is near the state.

    The descent starts at the state. Where the observation fits that end much worse than the pose that came with it, or
    that pose is the likelier one under the prior (a wide one: the filter may have been set half a turn off), it starts
    again from there, and the better of the two ends counts.

    Args:
        observation: of the base's pose.
        pose: the pose that came with it (4, 4); in planar mode in the plane.
        T, P_66: the predicted state.
        inflation: factor on the observation's covariance.
        correlation: a further one for errors that are alike in time. It takes part in finding the working point; in
            the result it is left to the caller.
        gate: squared Mahalanobis distance.
        planar: use forward, left and yaw alone.

    Returns:
        None where the observation is of no use near the state: no convergence, nothing that it says there, a fit that
        is worse by more than `gate` than the one at the pose that came with it, or an end that is less likely than that
        pose. The caller then has the pose.

    Raises:
        GeometryError: the observation's answer cannot be used.
        LinAlgError: the prior is numerically singular.
    """
    posterior = _Posterior(observation, T, P_66, 1.0 / (inflation * correlation), planar)
    there = posterior.at(pose)
    found = []
    for start in (T, pose):
        point = _descend(posterior, start)
        if point is not None:
            compressed = _as_pose(posterior, point, there.information.cost, inflation)
            if compressed is not None:
                found.append((point.value, compressed))
        if found and found[0][1].excess <= gate and found[0][0] <= there.value:
            break
    if not found:
        return None
    value, nearest = min(found, key=lambda item: item[0])
    return nearest if nearest.excess <= gate and value <= there.value else None


def _as_pose(posterior: _Posterior, point: _Point, best_cost: float, inflation: float) -> Compressed | None:
    """The measured pose with the observation's gradient and information at a working point.

    In units of the prior's deviations there (`P_X = C C'`) directions with next to no information are told from the
    others; they get no innovation, and a variance of 1e8 of the prior's. None where there are no others, or where the
    measured pose would be turned too far. (A direction so weak that its best fit lies half a turn away keeps its
    gradient, with a little more information than it has: logarithms end at pi.)
    """
    C = np.linalg.cholesky(point.P_X)
    ratios, V = np.linalg.eigh(C.T @ point.matrix @ C / inflation)
    axes = C @ V
    known = ratios > max(SILENT, SILENT_OF_LARGEST * float(ratios[-1]))
    if not known.any():
        return None
    slopes = np.where(known, axes.T @ point.gradient, 0.0) / inflation
    least = max(SILENT, float(point.P_X.diagonal().max()) / MAX_VARIANCE)
    for floor in (least, *WEAK):
        inverses = 1.0 / np.maximum(np.where(known, ratios, least), np.where(known, floor, least))
        u = axes @ (inverses * slopes)
        if posterior.turn_rad(u) < MAX_TURN_RAD:
            break
    else:
        return None
    tangent = np.zeros(6)
    tangent[posterior.rows] = u
    block = np.ix_(posterior.rows, posterior.rows)
    HC = right_jacobian_inverse_se3(-tangent)[block] @ axes  # J_l^-1(u) = J_r^-1(-u)
    cov_66 = np.eye(6)
    cov_66[block] = (HC * inverses) @ HC.T
    least_cost = point.information.cost - float(point.gradient @ u)
    excess = max(0.0, least_cost - best_cost) / inflation
    return Compressed(point.X @ exp_se3(tangent), 0.5 * (cov_66 + cov_66.T), int(known.sum()), excess)
