"""The objective of a training step: the network, the learned weights of eq. 11, and the modality cases of eq. 18.

MapNet's second term (S. Brahmbhatt et al., CVPR 2018, eq. 3) stands here too: where the samples are clips, the motion
between neighbouring frames of a clip is compared with the true one.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from vmloc_ros.batches import Batch
from vmloc_ros.learning import Learning
from vmloc_ros.losses import (
    geometric_loss,
    motion_errors_in_camera,
    motion_errors_in_map,
    vmloc_loss,
    weighted_norms,
)
from vmloc_ros.networks.config import Normalisation
from vmloc_ros.networks.experts import Expert
from vmloc_ros.networks.vmloc import VMLoc
from vmloc_ros.samples import SampleStore
from vmloc_ros.training_config import ObjectiveConfig
from vmloc_ros.types import Modality, Mode

CASES = (Mode.RGB_DEPTH, Mode.RGB_ONLY, Mode.DEPTH_ONLY)
RGB, DEPTH = Modality.RGB.value, Modality.DEPTH.value


class Objective(Learning):
    """VMLoc with beta and gamma (one of each, or one per case); its forward is Algorithm 1's objective.

    Attributes:
        reference_xyzw: (4,), what log-quaternions are measured from; only where motions are compared in camera axes.
    """

    network: VMLoc
    reference_xyzw: Tensor

    def __init__(self, network: VMLoc, config: ObjectiveConfig) -> None:
        super().__init__()
        self.network = network
        pairs = len(CASES) if config.scales == "per_case" else 1
        self.beta = nn.Parameter(torch.full((pairs,), config.beta_0))
        self.gamma = nn.Parameter(torch.full((pairs,), config.gamma_0))
        relative = config.relative
        if relative.weight > 0.0 and relative.scales == "own":
            self.motion_beta = nn.Parameter(torch.full((pairs,), relative.beta_0))
            self.motion_gamma = nn.Parameter(torch.full((pairs,), relative.gamma_0))
        if relative.weight > 0.0 and relative.frame == "camera":
            self.register_buffer("reference_xyzw", torch.tensor([0.0, 0.0, 0.0, 1.0]))
        self._config = config

    def begin(self, store: SampleStore, samples: NDArray[np.int64], normalisation: Normalisation) -> None:
        """See `Learning`: motions in camera axes need to know what rotations are measured from."""
        if hasattr(self, "reference_xyzw"):
            self.reference_xyzw.copy_(torch.tensor(normalisation.rotation_reference_xyzw))

    def forward(
        self, batch: Batch, importance: bool = True, touch_all: bool = False, task: str = ""
    ) -> tuple[Tensor, Tensor]:
        """The loss to minimise, and the importance-weighted bound (detached).

        Of a part of a batch it is that part's share: the sum over the parts is what the whole batch gives, whose random
        choices (latent noise, dropout) every process draws and takes its own rows of.

        Args:
            batch: this process's part.
            importance: whether samples count by importance (eq. 7), or alike (the ELBO).
            touch_all: give every parameter a gradient (0 to an encoder whose modality the whole batch lacks), because
                what averages the gradients of several processes waits for all of them.
            task: there is one only.
        """
        config, count = self._config, len(batch.samples)
        experts = self.network.encode(batch.inputs)
        rows = self._rows(experts, count, batch.size)
        posteriors = [self.network.fuse(subset, count) for subset, _, _ in rows]
        mean = torch.cat([posterior.mean_BD for posterior in posteriors])
        variance = torch.cat([posterior.variance_BD for posterior in posteriors])
        share = torch.cat([share_B for _, share_B, _ in rows])
        case = torch.cat([case_B for _, _, case_B in rows]) if len(self.beta) > 1 else torch.zeros_like(share).long()
        position_target = batch.position_B3.repeat(len(rows), 1)
        log_quat_target = batch.log_quat_B3.repeat(len(rows), 1)
        sampled = self.network.is_sampled  # else a point: one sample says all, and it has no density to weigh
        whole = (config.samples if sampled else 1, len(rows), batch.size, mean.shape[1])
        own = slice(batch.first, batch.first + count)
        noise = torch.randn(whole, dtype=mean.dtype, device=mean.device)[:, :, own].flatten(1, 2)
        dropout = self.network.dropout.p if self.training else 0.0
        keep = (torch.rand(whole, device=mean.device) >= dropout)[:, :, own] / (1.0 - dropout) if dropout else None

        def loss_of(z_KBD: Tensor) -> Tensor:
            position, log_quat = self.network.decode(z_KBD, keep)
            beta, gamma = self.beta[case], self.gamma[case]
            loss = geometric_loss(position, log_quat, position_target, log_quat_target, beta, gamma, config.distance)
            if config.relative.weight > 0.0:
                poses = (position, log_quat, position_target, log_quat_target)
                loss = loss + config.relative.weight * self._motion_loss(poses, case, share > 0.0, batch.clip)
            return loss

        rule = config.encoder_gradient if importance and sampled else "elbo"
        weight = config.latent_weight if sampled else 0.0
        loss, bound = vmloc_loss(mean, variance, noise, loss_of, weight, rule, share)
        idle = [encoder for name, encoder in self.network.encoders.items() if touch_all and name not in experts]
        return loss + sum(0.0 * p.sum() for encoder in idle for p in encoder.parameters()), bound

    def _motion_loss(
        self, poses: tuple[Tensor, Tensor, Tensor, Tensor], case: Tensor, counts: Tensor, clip: int
    ) -> Tensor:
        """MapNet's term (K, R), in the row of the later frame of each pair: the rows' mean is the pairs' mean.

        Args:
            poses: position and log-quaternion (K, R, 3), and their targets (R, 3); rows are whole clips.
            case: (R,), which pair of scales.
            counts: (R,), whether a row shows anything; a frame that does not has no motion either.
            clip: frames of a clip.
        """
        config = self._config
        position, log_quat, *targets = (some.unflatten(-2, (-1, clip)) for some in poses)
        if config.relative.frame == "camera":
            p, q = motion_errors_in_camera(position, log_quat, targets[0], targets[1], self.reference_xyzw)
        else:
            p, q = motion_errors_in_map(position, log_quat, targets[0], targets[1])
        own = config.relative.scales == "own"
        beta, gamma = (self.motion_beta, self.motion_gamma) if own else (self.beta, self.gamma)
        later = case.view(-1, clip)[:, 1:]
        loss = weighted_norms(p, q, beta[later], gamma[later], config.distance)
        counts = counts.view(-1, clip)
        loss = loss * (counts[:, 1:] & counts[:, :-1]) * (clip / (clip - 1.0))
        return functional.pad(loss, (1, 0)).flatten(-2)

    def unseen(self, batch: Batch) -> list[nn.Module]:
        """Encoders of modalities that no sample of the whole batch shows."""
        return [encoder for name, encoder in self.network.encoders.items() if name not in batch.inputs]

    def scales(self) -> dict[str, float]:
        """beta and gamma, by case where there are several, and those of the motion."""
        result: dict[str, float] = {}
        learned = {"beta": self.beta, "gamma": self.gamma}
        if hasattr(self, "motion_beta"):
            learned |= {"motion_beta": self.motion_beta, "motion_gamma": self.motion_gamma}
        for name, values in ((name, values.detach().tolist()) for name, values in learned.items()):
            suffixes = [f"_{case.value}" for case in CASES] if len(values) > 1 else [""]
            result |= {name + suffix: value for suffix, value in zip(suffixes, values, strict=True)}
        return result

    def _rows(
        self, experts: dict[str, Expert], count: int, size: int
    ) -> list[tuple[dict[str, Expert], Tensor, Tensor]]:
        """What is decoded of `count` samples: experts, each sample's share in the loss, and its case (in `CASES`).

        The shares of all processes' samples, `size` of them, sum to 1.

        Drawn presence: every sample once, in the case that was drawn for it. Weighted presence: every sample in all
        three cases, with the chances of those that it can show.
        """
        has = {name: torch.zeros(count, device=self.beta.device) for name in (RGB, DEPTH)}
        for name, expert in experts.items():
            has[name][expert.rows_N] = 1.0
        if self._config.presence_as == "drawn" or len(experts) == 1:
            case_B = (has[RGB] == 0) * 2 + ((has[RGB] == 1) & (has[DEPTH] == 0)) * 1
            return [(experts, torch.full_like(has[RGB], 1.0 / size), case_B)]
        both, rgb, depth = self._config.presence
        chances = [both * has[RGB] * has[DEPTH], rgb * has[RGB], depth * has[DEPTH]]
        total = torch.stack(chances).sum(dim=0).clamp_min(1e-9) * size
        subsets = [experts, {RGB: experts[RGB]}, {DEPTH: experts[DEPTH]}]
        return [
            (subset, chance / total, torch.full((count,), index, device=chance.device))
            for index, (subset, chance) in enumerate(zip(subsets, chances, strict=True))
        ]
