"""Observations that are no poses, for tests: one that is linear in the pose, and random Fourier features of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vmloc_ros.geometry import Array, exp_se3, inverse, log_se3, right_jacobian_inverse_se3, skew
from vmloc_ros.types import Information


def information(residual_D: Array, J_D6: Array, variance_D: Array) -> Information:
    """`J' R^-1 r` and the rest, for a diagonal R."""
    weighted = J_D6 / variance_D[:, None]
    return Information(
        weighted.T @ residual_D, weighted.T @ J_D6, float(residual_D @ (residual_D / variance_D)), len(residual_D)
    )


@dataclass(frozen=True)
class Linear:
    """`A Log(X^-1 Z)` in D dimensions: a measured pose in disguise, of the information `A' R^-1 A`."""

    Z: Array
    A_D6: Array
    variance_D: Array

    def at(self, T_map_body: Array) -> Information:
        offset = log_se3(inverse(T_map_body) @ self.Z)
        H = right_jacobian_inverse_se3(-offset)
        return information(self.A_D6 @ offset, self.A_D6 @ H, self.variance_D)


class FourierMap:
    """`g(T) = sqrt(2 / D) cos(W (position, rotation matrix) + phase)`: not linear, with hollows far from the truth."""

    def __init__(self, dimensions: int, seed: int, per_metre: float = 0.7, per_turn: float = 0.7) -> None:
        rng = np.random.default_rng(seed)
        scale = np.repeat([per_metre, per_turn], [3, 9])
        self.W = rng.normal(size=(dimensions, 12)) * scale
        self.phase = rng.uniform(0.0, 2.0 * np.pi, dimensions)
        self.factor = np.sqrt(2.0)

    def _angles(self, T: Array) -> Array:
        return self.W[:, :3] @ T[:3, 3] + self.W[:, 3:] @ T[:3, :3].ravel() + self.phase

    def expected(self, T: Array) -> Array:
        return self.factor * np.cos(self._angles(T))

    def jacobian(self, T: Array) -> Array:
        """By the right perturbation: the position moves by `R dt`, the rotation by `R [dw]x`."""
        R = T[:3, :3]
        turned = np.column_stack([(R @ skew(axis)).ravel() for axis in np.eye(3)])
        inner = np.hstack([self.W[:, :3] @ R, self.W[:, 3:] @ turned])
        return np.asarray(-self.factor * np.sin(self._angles(T))[:, None] * inner)

    def seen(self, T: Array, deviation: float, rng: np.random.Generator) -> FourierObservation:
        """What is observed at a pose, with noise."""
        noise = rng.normal(0.0, deviation, len(self.phase))
        return FourierObservation(self, self.expected(T) + noise, np.full(len(self.phase), deviation**2))


@dataclass(frozen=True)
class FourierObservation:
    """A noisy sample of a `FourierMap`."""

    map: FourierMap
    z_D: Array
    variance_D: Array

    def at(self, T_map_body: Array) -> Information:
        return information(self.z_D - self.map.expected(T_map_body), self.map.jacobian(T_map_body), self.variance_D)

    def best(self, start: Array, steps: int = 8) -> tuple[Array, Array]:
        """The most likely pose near `start`, and its covariance: what a network's search would answer."""
        T = start
        for _ in range(steps):
            known = self.at(T)
            T = T @ exp_se3(np.linalg.solve(known.information_66, known.gradient_6))
        return T, np.linalg.inv(self.at(T).information_66)
