"""A Generative Map run by PyTorch: read a frame, search the map for it, compare it with a pose, draw a view.

M. Guo et al., arXiv:1902.11124. Shapes: N frames, B poses, D latent dimensions, P places, K candidates per frame.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation
from scipy.special import expit
from torch import nn

from vmloc_ros.errors import ModelInputError
from vmloc_ros.geometry import Array, is_pose, skew
from vmloc_ros.networks.config import Normalisation
from vmloc_ros.networks.generative_map import GenerativeMap
from vmloc_ros.networks.inputs import normalise_rgb
from vmloc_ros.runtimes.torch import RawPoses
from vmloc_ros.types import Information, Modality

POSE_VARIANCE = 1.0
"""Of p(z|p), fixed in training."""

CANDIDATES = 6
"""Places of one frame that a search follows."""

SIFTING_STEPS, STEPS = 2, 6
"""Gauss-Newton steps of every candidate, and then of the best one."""

FIRST_DAMPING, LESS, MORE = 1e-3, 0.3, 10.0
"""Levenberg's share of the diagonal: at first, and times what after a step that helped or did not."""

NEIGHBOURS, REACH = 32, 3.0
"""How far from a place a search expects to end: so many times as far as this many places next to it are, direction by
direction. This prior keeps what the picture says nothing of (a car never rises or rolls) as the training camera had it.
"""

TURN_UNIT_RAD = 1.0
"""A turn that counts as much as a network unit (the training's extent) where neighbours are looked for."""

LEAST_DEVIATION = 0.001
"""Of a standardised picture's colour, values in 0..1: a black picture fits nothing, instead of being divided by 0."""


TURNS_333 = np.stack([skew(axis) for axis in np.eye(3)])
"""Slopes of a rotation matrix by turns about its own axes: `d(R Exp(w)) = R TURNS[k] dw_k`."""


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


class LatentMap:
    """g: from camera poses to expected latents, in double precision, and its Jacobian by the pose's right perturbation.

    Forward-mode differentiation by hand: every layer maps values (B, n) and their six slopes (B, 6, n). PyTorch's own
    (`torch.func.jacfwd`), which the tests hold it against, takes several times as long for a single pose. Pure
    functions; any thread.
    """

    def __init__(self, network: GenerativeMap, normalisation: Normalisation) -> None:
        self._config = network.config
        linear = [layer for layer in network.pose.layers if isinstance(layer, nn.Linear)]
        self._weights = [layer.weight.detach().double().cpu().numpy().T.copy() for layer in linear]
        self._biases = [layer.bias.detach().double().cpu().numpy() for layer in linear]
        self._mean_3 = np.array(normalisation.position_mean_m)
        self._scale = normalisation.position_scale_m
        self._R_reference_map = Rotation.from_quat(normalisation.rotation_reference_xyzw).as_matrix().T

    def network_pose(self, T_map_camera_B44: Array) -> tuple[Array, Array]:
        """Positions (B, 3) in network units and rotations (B, 3, 3) from the reference."""
        position_B3 = (T_map_camera_B44[:, :3, 3] - self._mean_3) / self._scale
        return position_B3, self._R_reference_map @ T_map_camera_B44[:, :3, :3]

    def expected(self, T_map_camera_B44: Array) -> Array:
        """g of camera poses (B, D)."""
        return self._through_layers(*self._features(T_map_camera_B44, slopes=False))[0]

    def expected_and_jacobian(self, T_map_camera_B44: Array) -> tuple[Array, Array]:
        """g (B, D) and its Jacobian (B, 6, D), transposed, by the right perturbation of the pose (camera axes)."""
        return self._through_layers(*self._features(T_map_camera_B44, slopes=True))

    def _features(self, T_map_camera_B44: Array, slopes: bool) -> tuple[Array, Array]:
        """As `PoseEncoder.features`, and their slopes (B, 6, n), or (B, 0, n) where they are not wanted."""
        position_B3, R_B33 = self.network_pose(T_map_camera_B44)
        count = len(position_B3)
        move_B63 = np.zeros((count, 6, 3))
        move_B63[:, :3] = np.swapaxes(T_map_camera_B44[:, :3, :3], 1, 2) / self._scale
        if self._config.pose_features == "plain":
            half_B3 = 0.5 * Rotation.from_matrix(R_B33).as_rotvec()
            turn_B63 = np.zeros((count, 6, 3))
            turn_B63[:, 3:] = 0.5 * np.swapaxes(right_jacobian_inverses(2.0 * half_B3), 1, 2)
            values = np.concatenate([position_B3, half_B3], axis=1)
            rises = np.concatenate([move_B63, turn_B63], axis=2)
        else:
            turn_B69 = np.zeros((count, 6, 9))
            turn_B69[:, 3:] = np.einsum("bij,kjl->bkil", R_B33, TURNS_333).reshape(count, 3, 9)
            position = _waves(position_B3, move_B63, self._config.position_octaves)
            rotation = _waves(R_B33.reshape(count, 9), turn_B69, self._config.rotation_octaves)
            values = np.concatenate([position[0], rotation[0]], axis=1)
            rises = np.concatenate([position[1], rotation[1]], axis=2)
        return values, rises if slopes else rises[:, :0]

    def _through_layers(self, values_BN: Array, slopes_B6N: Array) -> tuple[Array, Array]:
        for number, (weight, bias) in enumerate(zip(self._weights, self._biases, strict=True)):
            if number:  # SiLU between the layers
                gate = expit(values_BN)
                slopes_B6N = slopes_B6N * (gate * (1.0 + values_BN * (1.0 - gate)))[:, None]
                values_BN = values_BN * gate
            count, rows, width = slopes_B6N.shape
            slopes_B6N = (slopes_B6N.reshape(count * rows, width) @ weight).reshape(count, rows, weight.shape[1])
            values_BN = values_BN @ weight + bias
        return values_BN, slopes_B6N


def _waves(x_BN: Array, rise_B6N: Array, octaves: int) -> tuple[Array, Array]:
    """As `networks.generative_map.waves`, and its slopes."""
    factors = [np.pi * 2.0**k for k in range(octaves)]
    sines, cosines = [np.sin(f * x_BN) for f in factors], [np.cos(f * x_BN) for f in factors]
    rising = [f * cosine[:, None] * rise_B6N for f, cosine in zip(factors, cosines, strict=True)]
    falling = [-f * sine[:, None] * rise_B6N for f, sine in zip(factors, sines, strict=True)]
    return np.concatenate([x_BN, *sines, *cosines], axis=1), np.concatenate([rise_B6N, *rising, *falling], axis=2)


def right_jacobian_inverses(rotvec_B3: Array) -> Array:
    """`log(Exp(w) Exp(d)) ~= w + J_r^-1(w) d` (B, 3, 3) (eq. 144 of `geometry`'s source)."""
    angle_B = np.linalg.norm(rotvec_B3, axis=1)
    small_B = angle_B < 1e-3
    safe_B = np.where(small_B, 1.0, angle_B)
    factor_B = (1.0 - 0.5 * safe_B * np.cos(0.5 * safe_B) / np.sin(0.5 * safe_B)) / np.square(safe_B)
    factor_B = np.where(small_B, 1.0 / 12.0 + np.square(angle_B) / 720.0, factor_B)
    cross_B33 = np.einsum("bk,kij->bij", rotvec_B3, TURNS_333)
    return np.eye(3) + 0.5 * cross_B33 + factor_B[:, None, None] * (cross_B33 @ cross_B33)


class LatentObservation:
    """One frame's latent, to be compared with what a pose makes one expect (eq. 6-8 in information form).

    The residual is `mu_z - g(T)`. Its variance is the encoder's plus the pose encoder's, times the model's inflation:
    `mu_z` and `g(T)` both err. (The paper takes the encoder's alone, which its own objective keeps below the other.)
    See `types.Observation`; it is of the camera's pose.
    """

    def __init__(self, latent_map: LatentMap, mean_D: Array, variance_D: Array, inflation: float) -> None:
        self._map = latent_map
        self._mean_D = mean_D
        self._weight_D = 1.0 / (inflation * (variance_D + POSE_VARIANCE))

    def at(self, T_map_body: Array) -> Information:
        """How it fits a pose of the camera. The cost grows with the latent's size, not with its cube."""
        expected_BD, jacobian_B6D = self._map.expected_and_jacobian(T_map_body[None])
        residual_D, jacobian_6D = self._mean_D - expected_BD[0], jacobian_B6D[0]
        weighted_6D = jacobian_6D * self._weight_D
        return Information(
            weighted_6D @ residual_D,
            weighted_6D @ jacobian_6D.T,
            float(self._weight_D @ np.square(residual_D)),
            len(residual_D),
        )


class MapRuntime:
    """Eager PyTorch. The pose is the best one of a search; the scatter is the inverse of the information there."""

    def __init__(self, network: GenerativeMap, normalisation: Normalisation, device: str = "cpu") -> None:
        self.device = device
        self.latent_map = LatentMap(network, normalisation)
        self._network = network.to(device=device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
        self._normalisation = normalisation
        self.config = network.config
        position_P3, R_P33 = (values.double().cpu().numpy() for values in network.place_poses())
        self.places_P44 = np.tile(np.eye(4), (len(position_P3), 1, 1))
        reference = Rotation.from_quat(normalisation.rotation_reference_xyzw).as_matrix()
        self.places_P44[:, :3, :3] = reference @ R_P33
        self.places_P44[:, :3, 3] = (
            np.array(normalisation.position_mean_m) + normalisation.position_scale_m * position_P3
        )
        self._expected_PD = self.latent_map.expected(self.places_P44)
        unit_6 = np.array([normalisation.position_scale_m] * 3 + [TURN_UNIT_RAD] * 3)
        self._near_66 = prior_near_places(self.places_P44, unit_6)
        self._anywhere_66 = np.diag(1.0 / np.square(unit_6))

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
        return LatentObservation(self.latent_map, reading.mean_ND[0], reading.variance_ND[0], inflation)

    def search(self, reading: Reading) -> RawPoses:
        """Where in the map frames were taken, without any prior: the places whose latents fit best, then Gauss-Newton
        from each of them; the one that fits best goes on."""
        count = len(reading.mean_ND)
        finite_N = np.asarray(np.isfinite(reading.mean_ND + reading.variance_ND).all(axis=1))
        mean_ND = np.where(finite_N[:, None], reading.mean_ND, 0.0)
        weight_ND = 1.0 / (np.where(finite_N[:, None], reading.variance_ND, 1.0) + POSE_VARIANCE)
        candidates = min(CANDIDATES, len(self.places_P44))
        distance_NP = weight_ND @ np.square(self._expected_PD).T - 2.0 * (weight_ND * mean_ND) @ self._expected_PD.T
        best_NK = np.argsort(distance_NP, axis=1, kind="stable")[:, :candidates]
        start_B44 = self.places_P44[best_NK.ravel()]
        means_BD, weights_BD = (np.repeat(values, candidates, axis=0) for values in (mean_ND, weight_ND))
        sifted = self._refine(start_B44, start_B44, means_BD, weights_BD, self._near_66, SIFTING_STEPS)
        chosen = np.argmin(sifted.cost_B.reshape(count, -1), axis=1) + candidates * np.arange(count)
        best, start_N44 = sifted.T_B44[chosen], start_B44[chosen]
        found = self._refine(best, start_N44, mean_ND, weight_ND, self._near_66, STEPS)
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


def prior_near_places(places_P44: Array, unit_6: Array) -> Array:
    """Information (6, 6) of the prior that a search has about a pose, given a place near it (see `REACH`).

    Args:
        places_P44: the places.
        unit_6: what counts as one, by direction; a millionth of it is added, so that places on a line will do.
    """
    quats_P4 = Rotation.from_matrix(places_P44[:, :3, :3]).as_quat()
    scatter_66 = np.zeros((6, 6))
    chosen = np.unique(np.linspace(0, len(places_P44) - 1, 256).round().astype(int))
    for index in chosen:
        apart_P = np.linalg.norm(places_P44[:, :3, 3] - places_P44[index, :3, 3], axis=1) / unit_6[0]
        turn_P = 2.0 * np.arccos(np.minimum(np.abs(quats_P4 @ quats_P4[index]), 1.0)) / unit_6[3]
        near = np.argsort(apart_P + turn_P, kind="stable")[1 : NEIGHBOURS + 1]
        steps_N6 = difference(np.repeat(places_P44[index : index + 1], len(near), axis=0), places_P44[near])
        scatter_66 += steps_N6.T @ steps_N6 / max(1, len(near)) / len(chosen)
    return np.asarray(np.linalg.inv(REACH**2 * scatter_66 + 1e-6 * np.diag(np.square(unit_6))), dtype=float)


class _Fit(NamedTuple):
    """B candidates of a search: pose, squared distance with the prior's, gradient and information as `Information`."""

    T_B44: Array
    cost_B: Array
    gradient_B6: Array
    information_B66: Array


def moved(T_B44: Array, step_B6: Array) -> Array:
    """Poses moved by right perturbations (translation and rotation apart: to first order `T Exp(step)`)."""
    result = T_B44.copy()
    result[:, :3, 3] += np.einsum("bij,bj->bi", T_B44[:, :3, :3], step_B6[:, :3])
    result[:, :3, :3] = T_B44[:, :3, :3] @ Rotation.from_rotvec(step_B6[:, 3:]).as_matrix()
    return result


def difference(from_B44: Array, to_B44: Array) -> Array:
    """The steps (B, 6) with `moved(from, step) == to`."""
    back_B33 = np.swapaxes(from_B44[:, :3, :3], 1, 2)
    apart_B3 = to_B44[:, :3, 3] - from_B44[:, :3, 3]
    turn_B3 = Rotation.from_matrix(back_B33 @ to_B44[:, :3, :3]).as_rotvec()
    return np.concatenate([np.einsum("bij,bj->bi", back_B33, apart_B3), turn_B3], axis=1)


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
