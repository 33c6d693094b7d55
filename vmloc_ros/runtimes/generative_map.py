"""A Generative Map run by PyTorch: read a frame, search the map for it, compare it with a pose, draw a view.

M. Guo et al., arXiv:1902.11124. Shapes: N frames, B poses, D latent dimensions, P places, K candidates per frame.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from vmloc_ros.errors import ModelInputError
from vmloc_ros.geometry import Array, is_pose
from vmloc_ros.networks.config import Normalisation
from vmloc_ros.networks.generative_map import GenerativeMap
from vmloc_ros.networks.inputs import normalise_rgb
from vmloc_ros.runtimes.latent_observation import POSE_VARIANCE, LatentMap, LatentObservation, Places, difference, moved
from vmloc_ros.runtimes.torch import RawPoses
from vmloc_ros.types import Modality

CANDIDATES = 6
"""Places of one frame that a search follows."""

SIFTING_STEPS, STEPS = 2, 6
"""Gauss-Newton steps of every candidate, and then of the best one."""

FIRST_DAMPING, LESS, MORE = 1e-3, 0.3, 10.0
"""Levenberg's share of the diagonal: at first, and times what after a step that helped or did not."""

LEAST_DEVIATION = 0.001
"""Of a standardised picture's colour, values in 0..1: a black picture fits nothing, instead of being divided by 0."""


class Reading(NamedTuple):
    """What the encoder says of N frames.

    Attributes:
        mean_ND, variance_ND: of q(z|I), float64.
        pictures_N3HW: the frames at the size of a view, values in 0..1.
    """

    mean_ND: Array
    variance_ND: Array
    pictures_N3HW: NDArray[np.float32]

    def row(self, index: int) -> Reading:
        """One of them."""
        one = slice(index, index + 1)
        return Reading(self.mean_ND[one], self.variance_ND[one], self.pictures_N3HW[one])


class MapRuntime:
    """Eager PyTorch. The pose is the best one of a search; the scatter is the inverse of the information there."""

    def __init__(self, network: GenerativeMap, normalisation: Normalisation, device: str = "cpu") -> None:
        self.device = device
        self.latent_map = LatentMap(network, normalisation)
        self._network = network.to(device=device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
        self._normalisation = normalisation
        self.config = network.config
        self.places = Places(network, normalisation)
        self._expected_PD = self.latent_map.expected(self.places.poses_P44)
        self._anywhere_66 = np.diag(1.0 / np.square(self.places.unit_6))

    @property
    def mean_picture_HW3(self) -> NDArray[np.float32]:
        """The mean training picture, values in 0..1: what a map without any knowledge of the pose would show."""
        config = self.config
        flat = self._network.mean_picture.cpu().numpy()
        return np.moveaxis(flat.reshape(3, config.picture_height, config.picture_width), 0, -1)

    def infer(self, rgb_NHW3: NDArray[np.uint8] | None, depth_NHW: NDArray[np.floating] | None) -> RawPoses:
        """See `Runtime`.

        Raises:
            ModelInputError: no picture, a depth image, or another size than the network's.
        """
        if rgb_NHW3 is None or depth_NHW is not None:
            raise ModelInputError("a Generative Map takes a colour picture and nothing else")
        return self.search(self.read(rgb_NHW3))

    def read(self, rgb_NHW3: NDArray[np.uint8]) -> Reading:
        """The latents of frames. Raises ModelInputError as `infer`."""
        config = self.config
        if rgb_NHW3.shape[1:3] != (config.height, config.width):
            raise ModelInputError(f"rgb is {rgb_NHW3.shape[1:3]}, the network takes {config.height}x{config.width}")
        images = normalise_rgb(torch.from_numpy(np.array(rgb_NHW3)).to(self.device), self._normalisation)
        with torch.inference_mode():
            mean_ND, variance_ND = self._network.encoder(images.contiguous(memory_format=torch.channels_last))
            pictures = 0.5 * self._network.pictures(images) + 0.5
        return Reading(mean_ND.double().cpu().numpy(), variance_ND.double().cpu().numpy(), pictures.cpu().numpy())

    def observation(self, reading: Reading, inflation: float) -> LatentObservation:
        """What one frame's reading says of a pose."""
        return LatentObservation(self.latent_map, reading.mean_ND[0], reading.variance_ND[0], inflation, self.places)

    def search(self, reading: Reading) -> RawPoses:
        """Where in the map frames were taken, without any prior: the places whose latents fit best, then Gauss-Newton
        from each of them; the one that fits best goes on."""
        count = len(reading.mean_ND)
        finite_N = np.asarray(np.isfinite(reading.mean_ND + reading.variance_ND).all(axis=1))
        mean_ND = np.where(finite_N[:, None], reading.mean_ND, 0.0)
        weight_ND = 1.0 / (np.where(finite_N[:, None], reading.variance_ND, 1.0) + POSE_VARIANCE)
        candidates = min(CANDIDATES, len(self.places.poses_P44))
        distance_NP = weight_ND @ np.square(self._expected_PD).T - 2.0 * (weight_ND * mean_ND) @ self._expected_PD.T
        best_NK = np.argsort(distance_NP, axis=1, kind="stable")[:, :candidates]
        start_B44 = self.places.poses_P44[best_NK.ravel()]
        means_BD, weights_BD = (np.repeat(values, candidates, axis=0) for values in (mean_ND, weight_ND))
        sifted = self._refine(start_B44, start_B44, means_BD, weights_BD, self.places.near_66, SIFTING_STEPS)
        chosen = np.argmin(sifted.cost_B.reshape(count, -1), axis=1) + candidates * np.arange(count)
        best, start_N44 = sifted.T_B44[chosen], start_B44[chosen]
        found = self._refine(best, start_N44, mean_ND, weight_ND, self.places.near_66, STEPS)
        T_N44 = found.T_B44
        scatter_N66 = np.asarray(np.linalg.inv(found.information_B66), dtype=float)
        T_N44[~finite_N, :3], scatter_N66[~finite_N] = np.nan, np.nan
        return RawPoses(T_N44, scatter_N66, {Modality.RGB.value: np.ones(count)}, reading.mean_ND.astype(np.float32))

    def refined(self, reading: Reading, start_N44: Array) -> tuple[Array, Array]:
        """Where frames fit best near given poses (N, 4, 4), and their information there (N, 6, 6).

        With next to no prior: a deviation of the training's extent (1 network unit) and 1 rad.
        """
        weight_ND = 1.0 / (reading.variance_ND + POSE_VARIANCE)
        steps = SIFTING_STEPS + STEPS
        found = self._refine(start_N44, start_N44, reading.mean_ND, weight_ND, self._anywhere_66, steps)
        return found.T_B44, found.information_B66 - self._anywhere_66

    def _refine(
        self, T_B44: Array, start_B44: Array, mean_BD: Array, weight_BD: Array, prior_66: Array, steps: int
    ) -> _Fit:
        """Gauss-Newton with Levenberg's damping, all candidates at once, under a prior about where each started."""
        current = self._fit(T_B44, start_B44, mean_BD, weight_BD, prior_66)
        damping_B = np.full(len(start_B44), FIRST_DAMPING)
        for _ in range(steps):
            diagonal_B6 = np.diagonal(current.information_B66, axis1=1, axis2=2) * damping_B[:, None]
            damped_B66 = current.information_B66 + diagonal_B6[:, :, None] * np.eye(6)
            step_B6 = np.linalg.solve(damped_B66, current.gradient_B6[:, :, None])[:, :, 0]
            tried = self._fit(moved(current.T_B44, step_B6), start_B44, mean_BD, weight_BD, prior_66)
            better_B = tried.cost_B < current.cost_B
            current = _Fit(
                *(
                    np.where(better_B.reshape(-1, *[1] * (new.ndim - 1)), new, old)
                    for new, old in zip(tried, current, strict=True)
                )
            )
            damping_B = np.where(better_B, damping_B * LESS, damping_B * MORE)
        return current

    def _fit(self, T_B44: Array, start_B44: Array, mean_BD: Array, weight_BD: Array, prior_66: Array) -> _Fit:
        expected_BD, jacobian_B6D = self.latent_map.expected_and_jacobian(T_B44)
        residual_BD = mean_BD - expected_BD
        weighted_B6D = jacobian_B6D * weight_BD[:, None]
        back_B6 = difference(T_B44, start_B44)
        return _Fit(
            T_B44,
            (weight_BD * np.square(residual_BD)).sum(axis=1) + np.einsum("bi,ij,bj->b", back_B6, prior_66, back_B6),
            (weighted_B6D @ residual_BD[:, :, None])[:, :, 0] + back_B6 @ prior_66,
            weighted_B6D @ np.swapaxes(jacobian_B6D, 1, 2) + prior_66,
        )

    def views(self, T_map_camera_B44: Array) -> NDArray[np.float32]:
        """What the map expects to see from camera poses: (B, 3, H, W), values in 0..1.

        Raises:
            ModelInputError: not rigid transforms.
        """
        if not all(is_pose(T) for T in T_map_camera_B44):
            raise ModelInputError("a view is drawn from a rigid transform T_map_camera of finite numbers")
        position_B3, R_B33 = self.latent_map.network_pose(T_map_camera_B44)
        with torch.inference_mode():
            where = (torch.from_numpy(values).float().to(self.device) for values in (position_B3, R_B33))
            drawn = self._network.views(*where)
        return np.asarray((0.5 * drawn + 0.5).cpu().numpy(), dtype=np.float32)


class _Fit(NamedTuple):
    """B candidates of a search: pose, squared distance with the prior's, gradient and information as `Information`."""

    T_B44: Array
    cost_B: Array
    gradient_B6: Array
    information_B66: Array


def mismatch(seen_N3HW: NDArray[np.float32], expected_N3HW: NDArray[np.float32]) -> Array:
    """How far pictures are from what was expected (N,): `sqrt(2 (1 - r))` with their correlation `r`, the mean of the
    three colours'. That is the RMS difference after every colour of both was brought to zero mean and unit deviation,
    so exposure and the light's tint do not count. 0: alike; 1.4: nothing in common, as with a blank picture.
    """
    seen, expected = (_standardised(pictures) for pictures in (seen_N3HW, expected_N3HW))
    correlation_N = (seen * expected).mean(axis=(1, 2, 3))
    return np.asarray(np.sqrt(np.maximum(2.0 * (1.0 - correlation_N), 0.0)), dtype=float)


def _standardised(pictures_N3HW: NDArray[np.float32]) -> Array:
    """Every colour of every picture with zero mean and unit deviation; a blank one stays zero."""
    centred = pictures_N3HW.astype(float) - pictures_N3HW.mean(axis=(2, 3), keepdims=True)
    variance = np.square(centred).mean(axis=(2, 3), keepdims=True)
    return np.asarray(centred / np.sqrt(variance + LEAST_DEVIATION**2), dtype=float)
