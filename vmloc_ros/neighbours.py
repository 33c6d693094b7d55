"""What the latent space says about a pose: where the training frames nearest to it were taken.

A network that sees something unfamiliar still answers. Its latent mean then lies far from every training latent, or
among training frames that were taken at several places. Both are measured here, without the truth.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from vmloc_ros.errors import GeometryError
from vmloc_ros.geometry import Array

NEIGHBOURS = 16
"""How many training frames are asked. On the synthetic town 8, 16 and 32 gave nearly the same likelihood."""


@dataclass(frozen=True, eq=False)
class Evidence:
    """What is known of the errors of N frames without the truth.

    Attributes:
        shape_N66: a covariance up to a factor: the neighbours' poses about the estimate, or the latent samples'.
        distance_N: how unfamiliar the frame is (dimensionless for neighbours, metres for latent samples), > 0.
    """

    shape_N66: Array
    distance_N: Array

    @property
    def disagreement_N(self) -> Array:
        """Root mean square distance in metres between the estimate and what `shape` is made of."""
        return np.asarray(np.sqrt(np.trace(self.shape_N66[:, :3, :3], axis1=1, axis2=2)) + 1e-9)

    def __len__(self) -> int:
        return len(self.distance_N)

    def __getitem__(self, frames: NDArray[np.bool_] | NDArray[np.int64]) -> Evidence:
        return Evidence(self.shape_N66[frames], self.distance_N[frames])


def scatter_evidence(scatters_N66: Array) -> Evidence:
    """Evidence of a network without training latents: the scatter of its latent samples, and its size in metres."""
    return Evidence(scatters_N66, np.sqrt(np.trace(scatters_N66[:, :3, :3], axis1=1, axis2=2)) + 1e-9)


@dataclass(frozen=True, eq=False)
class Neighbours:
    """The latent means of training frames, of one set of modalities.

    Attributes:
        latents_MD: float32.
        T_map_camera: (M, 4, 4), where these frames were truly taken.
    """

    latents_MD: NDArray[np.float32]
    T_map_camera: Array
    _squares_M: NDArray[np.float32] = field(init=False, repr=False)
    _spread: float = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.latents_MD.ndim != 2 or len(self.latents_MD) < 2 or self.T_map_camera.shape[1:] != (4, 4):
            shapes = f"{self.latents_MD.shape} and {self.T_map_camera.shape}"
            raise GeometryError(f"latents and poses of shapes {shapes} are no neighbours; (M, D) and (M, 4, 4) are")
        if len(self.latents_MD) != len(self.T_map_camera):
            raise GeometryError(f"{len(self.latents_MD)} latents have {len(self.T_map_camera)} poses")
        squares = np.square(self.latents_MD, dtype=np.float32).sum(axis=1)
        spread = float(np.sqrt(np.square(self.latents_MD - self.latents_MD.mean(axis=0)).sum(axis=1).mean()))
        object.__setattr__(self, "_squares_M", squares)
        object.__setattr__(self, "_spread", max(spread, 1e-9))

    def evidence(self, latents_ND: NDArray[np.floating], T_hat_N44: Array) -> Evidence:
        """The nearest training frames' poses about N estimates.

        The shape is the second moment of `(R_hat' (t_j - t_hat), log(R_hat' R_j))` over the nearest frames j, in camera
        axes (m, rad). The distance is to the nearest latent, in units of the training latents' root mean square
        distance from their mean, so that networks can be compared.
        """
        latents = np.asarray(latents_ND, dtype=np.float32)
        squared = np.square(latents).sum(axis=1)[:, None] + self._squares_M - 2.0 * latents @ self.latents_MD.T
        count = min(NEIGHBOURS, len(self.latents_MD))
        nearest = np.argpartition(squared, count - 1, axis=1)[:, :count]
        smallest = np.maximum(np.take_along_axis(squared, nearest, axis=1).min(axis=1), 0.0).astype(float)
        R, poses = T_hat_N44[:, :3, :3], self.T_map_camera[nearest]
        offsets = np.empty((*nearest.shape, 6))
        offsets[..., :3] = np.einsum("nji,nkj->nki", R, poses[:, :, :3, 3] - T_hat_N44[:, None, :3, 3])
        relative = np.einsum("nji,nkjl->nkil", R, poses[:, :, :3, :3])
        offsets[..., 3:] = Rotation.from_matrix(relative.reshape(-1, 3, 3)).as_rotvec().reshape(*nearest.shape, 3)
        shape = np.einsum("nki,nkj->nij", offsets, offsets) / count
        return Evidence(shape, np.sqrt(smallest) / self._spread + 1e-9)
