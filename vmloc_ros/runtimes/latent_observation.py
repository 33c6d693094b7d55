"""What a Generative Map expects at a pose, its slope there, and where its cameras can be: frames are compared with it.

M. Guo et al., arXiv:1902.11124, section 3.3. Shapes: B poses, D latent dimensions, P places. NumPy in double precision:
for a single pose PyTorch's own calls would take longer than the arithmetic.
"""

from __future__ import annotations

import numpy as np
from scipy.spatial.transform import Rotation
from scipy.special import expit
from torch import nn

from vmloc_ros.geometry import Array, skew
from vmloc_ros.networks.config import Normalisation
from vmloc_ros.networks.generative_map import GenerativeMap
from vmloc_ros.types import Information

POSE_VARIANCE = 1.0
"""Of p(z|p), fixed in training."""

NEIGHBOURS, REACH = 32, 3.0
"""How far from a place a camera may be expected: so many times as far as this many places next to it are, direction by
direction. This prior keeps what the picture says nothing of (a car never rises or rolls) as the training camera had it.
"""

SAMPLED = 256
"""So many places are asked for their neighbours."""

TURN_UNIT_RAD = 1.0
"""A turn that counts as much as a network unit (the training's extent) where neighbours are looked for."""

TURNS_333 = np.stack([skew(axis) for axis in np.eye(3)])
"""Slopes of a rotation matrix by turns about its own axes: `d(R Exp(w)) = R TURNS[k] dw_k`."""


class LatentMap:
    """g: from camera poses to expected latents, in double precision, and its Jacobian by the pose's right perturbation.

    Forward-mode differentiation by hand: every layer maps values (B, n) and their six slopes (B, 6, n). PyTorch's own
    (`torch.func.jacfwd`), which the tests hold it against, takes several times as long for a single pose. Pure
    functions; any thread.
    """

    def __init__(self, network: GenerativeMap, normalisation: Normalisation) -> None:
        self._config = network.config
        linear = [layer for layer in network.pose.layers if isinstance(layer, nn.Linear)]
        self._weights = [layer.weight.detach().double().cpu().numpy() for layer in linear]  # (outputs, inputs)
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
            both = np.concatenate([values_BN[:, None], slopes_B6N], axis=1).reshape(count * (rows + 1), width)
            # in this order twice as fast for a few rows as `both @ weight.T`: the large matrix is not copied
            both = (weight @ both.T).T.reshape(count, rows + 1, len(weight))
            values_BN, slopes_B6N = both[:, 0] + bias, both[:, 1:]
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


class Places:
    """The training poses that a network keeps: where a search starts, and where a camera of this map can be at all.

    Attributes:
        poses_P44: T_map_camera.
        near_66: information of the prior about a camera's pose, given the place nearest to it (see `REACH`): a step
            from the one to the other is zero with this.
        unit_6: network units in metres and radians.
    """

    def __init__(self, network: GenerativeMap, normalisation: Normalisation) -> None:
        position_P3, R_P33 = (values.double().cpu().numpy() for values in network.place_poses())
        reference = Rotation.from_quat(normalisation.rotation_reference_xyzw).as_matrix()
        self.poses_P44 = np.tile(np.eye(4), (len(position_P3), 1, 1))
        self.poses_P44[:, :3, :3] = reference @ R_P33
        self.poses_P44[:, :3, 3] = (
            np.array(normalisation.position_mean_m) + normalisation.position_scale_m * position_P3
        )
        self.unit_6 = np.array([normalisation.position_scale_m] * 3 + [TURN_UNIT_RAD] * 3)
        self._quats_P4 = Rotation.from_matrix(self.poses_P44[:, :3, :3]).as_quat()
        self.near_66 = self._prior()

    def distances(self, T_map_camera: Array) -> Array:
        """How far a pose is from every place (P,): in network units, turns as `TURN_UNIT_RAD` says."""
        apart_P = np.linalg.norm(self.poses_P44[:, :3, 3] - T_map_camera[:3, 3], axis=1)
        cosine_P = np.abs(self._quats_P4 @ Rotation.from_matrix(T_map_camera[:3, :3]).as_quat())
        turn_P = 2.0 * np.arccos(np.minimum(cosine_P, 1.0))
        return np.asarray(apart_P / self.unit_6[0] + turn_P / self.unit_6[3])

    def nearest(self, T_map_camera: Array) -> Array:
        """The place nearest to a pose (4, 4)."""
        place: Array = self.poses_P44[int(np.argmin(self.distances(T_map_camera)))]
        return place

    def _prior(self) -> Array:
        """See `near_66`; a millionth of a unit's square is added, so that places on a line will do."""
        scatter_66 = np.zeros((6, 6))
        chosen = np.unique(np.linspace(0, len(self.poses_P44) - 1, SAMPLED).round().astype(int))
        for place_44 in self.poses_P44[chosen]:
            near_N = np.argsort(self.distances(place_44), kind="stable")[1 : NEIGHBOURS + 1]
            steps_N6 = difference(np.repeat(place_44[None], len(near_N), axis=0), self.poses_P44[near_N])
            scatter_66 += steps_N6.T @ steps_N6 / max(1, len(near_N)) / len(chosen)
        return np.asarray(np.linalg.inv(REACH**2 * scatter_66 + 1e-6 * np.diag(np.square(self.unit_6))), dtype=float)


class LatentObservation:
    """One frame's latent, to be compared with what a pose makes one expect (eq. 6-8 in information form).

    The residual is `mu_z - g(T)`. Its variance is the encoder's plus the pose encoder's, times the model's inflation:
    `mu_z` and `g(T)` both err. (The paper takes the encoder's alone, which its own objective keeps below the other.)
    See `types.Observation`; it is of the camera's pose.
    """

    def __init__(
        self,
        latent_map: LatentMap,
        mean_D: Array,
        variance_D: Array,
        inflation: float,
        places: Places | None = None,
    ) -> None:
        """
        Args:
            latent_map: what is expected.
            mean_D, variance_D: of q(z|I).
            inflation: of the variance.
            places: observe as well that the camera is where cameras of this map can be: six more numbers, the step to
                the nearest place. A picture alone does not tell height and roll where training never varied them.
        """
        self._map = latent_map
        self._mean_D = mean_D
        self._weight_D = 1.0 / (inflation * (variance_D + POSE_VARIANCE))
        self._places = places

    def at(self, T_map_body: Array) -> Information:
        """How it fits a pose of the camera. The cost grows with the latent's size, not with its cube."""
        expected_BD, jacobian_B6D = self._map.expected_and_jacobian(T_map_body[None])
        residual_D, jacobian_6D = self._mean_D - expected_BD[0], jacobian_B6D[0]
        weighted_6D = jacobian_6D * self._weight_D
        gradient_6, information_66 = weighted_6D @ residual_D, weighted_6D @ jacobian_6D.T
        cost = float(self._weight_D @ np.square(residual_D))
        if self._places is None:
            return Information(gradient_6, information_66, cost, len(residual_D))
        near_66 = self._places.near_66
        back_6 = difference(T_map_body[None], self._places.nearest(T_map_body)[None])[0]
        gradient_6 = gradient_6 + near_66 @ back_6
        return Information(
            gradient_6, information_66 + near_66, cost + float(back_6 @ near_66 @ back_6), len(residual_D) + 6
        )


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
