"""A latent code for `vmloc bench`: what the filter does with it is timed, not the network that made it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from vmloc_ros.geometry import Array, inverse, log_se3
from vmloc_ros.types import Information, Observation

LATENT = 256
"""Dimensions of the Generative Map's latent code for a street."""


@dataclass(frozen=True, slots=True, eq=False)
class LatentCode:
    """`J Log(X^-1 T_0) + noise` in D dimensions, of the diagonal covariance `variance_D`."""

    T_0: Array
    J_D6: Array
    variance_D: Array
    noise_D: Array

    def seen(self, T: Array, rng: np.random.Generator) -> LatentCode:
        """The code of a pose, with noise."""
        return replace(self, T_0=T, noise_D=rng.normal(0.0, np.sqrt(self.variance_D)))

    def at(self, T_map_body: Array) -> Information:
        """How it fits a pose: see `types.Observation`."""
        residual = self.noise_D + self.J_D6 @ log_se3(inverse(T_map_body) @ self.T_0)
        weighted = self.J_D6 / self.variance_D[:, None]
        cost = float(residual @ (residual / self.variance_D))
        return Information(weighted.T @ residual, weighted.T @ self.J_D6, cost, len(residual))

    def textbook_update(self, P_66: Array) -> tuple[Array, Array]:
        """Shift and covariance by eqs. 6-8 of the Generative Map, with the inverse of a DxD matrix."""
        J = self.J_D6
        gain = P_66 @ J.T @ np.linalg.inv(J @ P_66 @ J.T + np.diag(self.variance_D))
        return gain @ self.noise_D, P_66 - gain @ J @ P_66


def latent_code(deviations_6: Array, rng: np.random.Generator) -> LatentCode:
    """A code that tells a pose about as well as a measured one with these standard deviations."""
    J_D6 = rng.normal(size=(LATENT, 6)) / (deviations_6 * np.sqrt(LATENT))
    return LatentCode(np.eye(4), J_D6, rng.uniform(0.5, 2.0, LATENT), np.zeros(LATENT))


class MapCode:
    """What an untrained Generative Map of a street would see: as much work as with a trained one."""

    def __init__(self, centre_m: Array, radius_m: float) -> None:
        """Where the street is."""
        import torch  # only here: the rest of the table does without

        from vmloc_ros.networks.config import Normalisation
        from vmloc_ros.networks.generative_map import GenerativeMap
        from vmloc_ros.networks.generative_map_config import GenerativeMapConfig
        from vmloc_ros.runtimes.generative_map import LatentMap

        torch.manual_seed(0)
        normalisation = Normalisation(
            rgb_mean=[0.5] * 3,
            rgb_std=[0.25] * 3,
            depth_log_mean=1.0,
            depth_log_std=1.0,
            position_mean_m=centre_m.tolist(),
            position_scale_m=radius_m,
            rotation_reference_xyzw=[0.0, 0.0, 0.0, 1.0],
        )
        self._map = LatentMap(GenerativeMap(GenerativeMapConfig(latent=LATENT)), normalisation)

    def seen(self, T: Array, rng: np.random.Generator) -> Observation:
        """The code of a pose, with noise."""
        from vmloc_ros.runtimes.generative_map import LatentObservation

        code_D = self._map.expected(T[None])[0] + rng.normal(0.0, 0.1, LATENT)
        return LatentObservation(self._map, code_D, np.full(LATENT, 0.01), 0.01)
