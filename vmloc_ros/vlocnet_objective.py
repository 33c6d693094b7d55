"""What VLocNet is trained by: the geometric consistency loss (eq. 9) and the odometry loss (eq. 10).

A sample is a clip of two frames: the earlier one I_{t-1} and the later one I_t.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vmloc_ros.batches import Batch
from vmloc_ros.clips import predecessors
from vmloc_ros.errors import TrainingError
from vmloc_ros.learning import Learning
from vmloc_ros.losses import log_quaternion, log_quaternion_difference, norm
from vmloc_ros.networks.config import Normalisation
from vmloc_ros.networks.vlocnet import Head, VLocNet
from vmloc_ros.runtimes.vlocnet import motion_vectors
from vmloc_ros.samples import SampleStore
from vmloc_ros.training_config import ClipConfig, ObjectiveConfig
from vmloc_ros.types import Modality

GLOBAL, ODOMETRY = "global", "odometry"
GAP_TOLERANCE = 1.25
"""Frames may lie further apart than any training pair by this factor: drives are never quite regular."""
LEAST_DEVIATION = 1e-4, 1e-5
"""Of a training motion's translation (m) and half rotation vector: a cart on rails never moves sideways."""


class Pairs(NamedTuple):
    """This process's pairs of a batch, B of them; targets in network units.

    Attributes:
        images_NCHW: the earlier frames, then the later ones (2 B).
        position_N3, log_quat_N3: in that order too.
        which_B: which pairs of the whole batch they are.
        of: how many it has.
    """

    images_NCHW: Tensor
    position_N3: Tensor
    log_quat_N3: Tensor
    which_B: Tensor
    of: int


class VLocNetLearning(Learning):
    """VLocNet with its learned weights s_x and s_q, one pair for each task."""

    network: VLocNet
    reference_xyzw: Tensor
    position_scale_m: Tensor

    def __init__(self, network: VLocNet, config: ObjectiveConfig) -> None:
        """
        Raises:
            TrainingError: clips that are not pairs.
        """
        super().__init__()
        if config.clip.frames != 2:
            raise TrainingError(
                f"objective.clip.frames is {config.clip.frames}; VLocNet learns from pairs: set it to 2"
            )
        self.network = network
        self._config, self._clip = config.vlocnet, config.clip
        own = config.vlocnet
        if own.weights == "learned":
            self.pose_scales = nn.Parameter(torch.tensor([config.beta_0, config.gamma_0]))
            if network.config.odometry:
                self.motion_scales = nn.Parameter(torch.tensor([own.odometry_s_x, own.odometry_s_q]))
        self.register_buffer("reference_xyzw", torch.tensor([0.0, 0.0, 0.0, 1.0]))
        self.register_buffer("position_scale_m", torch.ones(()))

    def begin(self, store: SampleStore, samples: NDArray[np.int64], normalisation: Normalisation) -> None:
        """Takes the units of poses, and measures the training motions, of which the network keeps the statistics."""
        self.reference_xyzw.copy_(torch.tensor(normalisation.rotation_reference_xyzw))
        self.position_scale_m.fill_(normalisation.position_scale_m)
        earlier, later = training_pairs(store, samples, self._clip)
        motions_N6 = motion_vectors(store.T_map_camera[earlier], store.T_map_camera[later])
        deviation = motions_N6.std(axis=0).reshape(2, 3)
        one_of_each = np.maximum(np.sqrt(np.square(deviation).mean(axis=1)), LEAST_DEVIATION)  # lengths stay lengths
        longest_s = float((store.stamps_ns[later] - store.stamps_ns[earlier]).max()) / 1e9
        network = self.network
        network.motion_mean.copy_(torch.from_numpy(motions_N6.mean(axis=0)))
        network.motion_deviation.copy_(torch.from_numpy(np.repeat(one_of_each, 3)))
        network.max_gap_s.fill_(GAP_TOLERANCE * longest_s)

    def forward(
        self, batch: Batch, importance: bool = True, touch_all: bool = False, task: str = ""
    ) -> tuple[Tensor, Tensor]:
        """The loss of one task or (task "") the sum of both, and the same negated for the report.

        Of a part of a batch it is that part's share, as all random choices are those of the whole batch.
        """
        pairs = pairs_of(batch)
        loss = torch.zeros((), device=self.reference_xyzw.device)
        count = len(pairs.which_B)
        shared: Tensor | None = None
        if task in ("", GLOBAL):
            shared, features = self.network.global_features(pairs.images_NCHW)
            loss = loss + self._pose_loss(pairs, features)
        if self.network.config.odometry and task in ("", ODOMETRY):
            later = self.network.shared_features(pairs.images_NCHW[count:]) if shared is None else shared[count:]
            loss = loss + self._motion_loss(pairs, later)
        if touch_all:
            loss = loss + sum(0.0 * parameter.sum() for parameter in self.parameters())
        return loss, -loss.detach()

    def tasks(self) -> dict[str, list[nn.Parameter]]:
        """One optimizer; or one for each task, which have the shared stages in common."""
        if self._config.optimisation == "joint" or not self.network.config.odometry:
            return super().tasks()
        network = self.network
        odometry = {
            id(parameter)
            for part in (network.now, network.before, network.pair, network.motion_head)
            for parameter in part.parameters()
        }
        learned = self._config.weights == "learned"
        both = {
            id(parameter)
            for stage in network.stages[: network.config.shared_stages]
            for parameter in stage.parameters()
        }
        parameters = list(network.parameters())
        return {
            GLOBAL: [p for p in parameters if id(p) not in odometry] + ([self.pose_scales] if learned else []),
            ODOMETRY: [p for p in parameters if id(p) in odometry | both] + ([self.motion_scales] if learned else []),
        }

    def scales(self) -> dict[str, float]:
        """s_x and s_q of the poses and of the odometry, where they are learned."""
        named = {"": getattr(self, "pose_scales", None), "odometry_": getattr(self, "motion_scales", None)}
        return {
            f"{prefix}{name}": value
            for prefix, values in named.items()
            if values is not None
            for name, value in zip(("s_x", "s_q"), values.detach().tolist(), strict=True)
        }

    # -------------------------------------------------------------------------------------------------- the two losses

    def _pose_loss(self, pairs: Pairs, features_NCHW: Tensor) -> Tensor:
        """Eq. 9; without geometric consistency eq. 4; with fixed weights eq. 3."""
        network, config, count = self.network, self._config, len(pairs.which_B)
        previous_N7 = self._previous(pairs, features_NCHW) if network.config.previous_pose else None
        latent = network.latent(features_NCHW, previous_N7)
        position, log_quat = network.pose(latent, self._keep(network.head, pairs, 2))
        x = norm(position - pairs.position_N3, "l2")
        q = norm(log_quaternion_difference(log_quat, pairs.log_quat_N3), "l2")
        total = 1.0 + config.earlier_weight
        x, q = ((config.earlier_weight * term[:count] + term[count:]) / total for term in (x, q))
        if config.geometric_consistency:
            predicted = self._motion(position, log_quat)
            true = self._motion(pairs.position_N3, pairs.log_quat_N3)
            x, q = (term + norm(one - other, "l2") for term, one, other in zip((x, q), predicted, true, strict=True))
        return self._weighted(x, q, getattr(self, "pose_scales", None)).sum() / pairs.of

    def _motion_loss(self, pairs: Pairs, shared_NCHW: Tensor) -> Tensor:
        """Eq. 10, in units of the training motions."""
        network, count = self.network, len(pairs.which_B)
        before = network.before_features(pairs.images_NCHW[:count])
        latent = network.motion_latent(before, network.now_features(shared_NCHW))
        translation, rotation = network.motion(latent, self._keep(network.motion_head, pairs, 1))
        way, turn = self._motion(pairs.position_N3, pairs.log_quat_N3)
        true = (torch.cat([way * self.position_scale_m, turn], dim=1) - network.motion_mean) / network.motion_deviation
        x, q = norm(translation - true[:, :3], "l2"), norm(rotation - true[:, 3:], "l2")
        return self._weighted(x, q, getattr(self, "motion_scales", None)).sum() / pairs.of

    def _weighted(self, x_B: Tensor, q_B: Tensor, scales_2: Tensor | None) -> Tensor:
        """Position and rotation terms together, (B,)."""
        if scales_2 is None:
            return x_B + self._config.beta * q_B
        s_x, s_q = scales_2
        return x_B * torch.exp(-s_x) + s_x + q_B * torch.exp(-s_q) + s_q

    def _previous(self, pairs: Pairs, features_NCHW: Tensor) -> Tensor:
        """What is fed as the previous poses (2 B, 7): none to the earlier frames; to the later ones the earlier's true
        pose with noise, or the network's own answer, or none by chance."""
        config, count, device = self._config, len(pairs.which_B), features_NCHW.device
        noise = torch.randn((pairs.of, 6), device=device)[pairs.which_B]
        known = (torch.rand((pairs.of, 1), device=device) >= config.previous_absent)[pairs.which_B].float()
        if config.previous == "own":
            with torch.no_grad():
                answer = self.network.pose(self.network.latent(features_NCHW[:count], None))
            position, log_quat = (value.float() for value in answer)
        else:
            half_rad = 0.5 * math.radians(config.previous_noise_deg)
            position = pairs.position_N3[:count] + noise[:, :3] * (config.previous_noise_m / self.position_scale_m)
            log_quat = pairs.log_quat_N3[:count] + noise[:, 3:] * half_rad
        given = torch.cat([position, log_quat, known], dim=1)
        return torch.cat([torch.zeros_like(given), given])

    def _keep(self, head: Head, pairs: Pairs, frames: int) -> Tensor | None:
        """Dropout's choices for so many frames of each pair: those of the whole batch, of which these are some."""
        p = self.network.config.dropout
        if not (self.training and p):
            return None
        drawn = torch.rand((frames, pairs.of, head.fc1.out_features), device=pairs.which_B.device)[:, pairs.which_B]
        return (drawn >= p).flatten(0, 1) / (1.0 - p)

    def _motion(self, position_N3: Tensor, log_quat_N3: Tensor) -> tuple[Tensor, Tensor]:
        """The motion from the earlier to the later poses: `camera_motion` of both halves."""
        count = len(position_N3) // 2
        with torch.autocast(position_N3.device.type, enabled=False):
            return camera_motion(
                position_N3[:count], log_quat_N3[:count], position_N3[count:], log_quat_N3[count:], self.reference_xyzw
            )


def pairs_of(batch: Batch) -> Pairs:
    """The pairs of a batch of clips of two frames; one that lacks a picture is left out.

    Raises:
        TrainingError: the labels have come in half precision: the motion between two frames is lost in that.
    """
    if batch.position_B3.dtype is not torch.float32:
        raise TrainingError(
            f"the labels have come as {batch.position_B3.dtype}, which rounds the motion between two frames away: set "
            "precision to 32-true"
        )
    present = batch.inputs[Modality.RGB.value]
    there = torch.full((len(batch.samples),), -1, dtype=torch.long, device=present.rows_N.device)
    there[present.rows_N] = torch.arange(len(present.rows_N), device=there.device)
    of_pair_B2 = there.reshape(-1, 2)
    whole = torch.nonzero((of_pair_B2 >= 0).all(dim=1))[:, 0]
    images = present.images_NCHW[of_pair_B2[whole].T.flatten()]
    rows = torch.cat([2 * whole, 2 * whole + 1])
    return Pairs(
        images.contiguous(memory_format=torch.channels_last),
        batch.position_B3[rows],
        batch.log_quat_B3[rows],
        whole + batch.first // 2,
        batch.size // 2,
    )


def camera_motion(
    position_B3: Tensor, log_quat_B3: Tensor, next_position_B3: Tensor, next_log_quat_B3: Tensor, reference_xyzw: Tensor
) -> tuple[Tensor, Tensor]:
    """The motion between two poses in the first one's axes: R'(q_1) (x_2 - x_1), and the logarithm of q_1^-1 q_2.

    Eq. 5 as printed subtracts positions in the map's axes, while its label is in the previous camera's.

    Args:
        position_B3, next_position_B3: any unit of length.
        log_quat_B3, next_log_quat_B3: of rotations `reference * exp`.
        reference_xyzw: see `Normalisation.rotation_reference_xyzw`.

    Returns:
        Translation (B, 3) in the same unit, and half the rotation vector (B, 3).
    """
    back_B4 = conjugate(exponential(log_quat_B3))
    way_B3 = rotate(conjugate(reference_xyzw).expand_as(back_B4), next_position_B3 - position_B3)
    return rotate(back_B4, way_B3), log_quaternion(product(back_B4, exponential(next_log_quat_B3)))


def exponential(log_quat_3: Tensor) -> Tensor:
    """Unit quaternions xyzw (..., 4) of log-quaternions (..., 3); finite gradients at 0."""
    square = log_quat_3.square().sum(dim=-1, keepdim=True)
    tiny = square < 1e-12
    length = torch.where(tiny, torch.ones_like(square), square).sqrt()
    factor = torch.where(tiny, 1.0 - square / 6.0, torch.sin(length) / length)
    return torch.cat([factor * log_quat_3, torch.where(tiny, 1.0 - square / 2.0, torch.cos(length))], dim=-1)


def conjugate(quat_xyzw: Tensor) -> Tensor:
    """Of unit quaternions the inverse."""
    return torch.cat([-quat_xyzw[..., :3], quat_xyzw[..., 3:]], dim=-1)


def product(a_xyzw: Tensor, b_xyzw: Tensor) -> Tensor:
    """Hamilton's product (..., 4): first b, then a."""
    a, b, u, v = a_xyzw[..., :3], b_xyzw[..., :3], a_xyzw[..., 3:], b_xyzw[..., 3:]
    vector = u * b + v * a + torch.linalg.cross(a, b)
    return torch.cat([vector, u * v - (a * b).sum(dim=-1, keepdim=True)], dim=-1)


def rotate(quat_xyzw: Tensor, vector_3: Tensor) -> Tensor:
    """Vectors (..., 3) turned by unit quaternions (..., 4)."""
    axis, u = quat_xyzw[..., :3], quat_xyzw[..., 3:]
    twice = 2.0 * torch.linalg.cross(axis, vector_3)
    return vector_3 + u * twice + torch.linalg.cross(axis, twice)


def training_pairs(
    store: SampleStore, samples: NDArray[np.int64], clip: ClipConfig
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Sample numbers (N,) of the earlier and the later frames of pairs that end at `samples`, at every spacing.

    Raises:
        TrainingError: there is none.
    """
    before = predecessors(store, np.arange(len(store)), clip.max_gap_s)
    earlier, pairs = samples, list[NDArray[np.int64]]()
    for spacing in range(1, clip.largest_spacing + 1):
        earlier = np.where(earlier >= 0, before[earlier], -1)
        if spacing >= clip.spacing:
            pairs.append(np.stack([earlier, samples])[:, earlier >= 0])
    found = np.concatenate(pairs, axis=1)
    if not found.size:
        raise TrainingError(f"no two frames are at most objective.clip.max_gap_s = {clip.max_gap_s:g} s apart")
    return found[0], found[1]
