"""What a Generative Map is trained by: eq. 3 of M. Guo et al., arXiv:1902.11124, and what may be added to it.

Shapes: B frames, D latent dimensions, K places, N numbers of a picture.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation
from torch import Tensor

from vmloc_ros.batches import Batch, targets
from vmloc_ros.learning import Learning
from vmloc_ros.losses import log_normal
from vmloc_ros.networks.config import Normalisation
from vmloc_ros.networks.generative_map import GenerativeMap, rotation_matrix
from vmloc_ros.networks.generative_map_config import GenerativeMapObjective
from vmloc_ros.networks.inputs import centre_crop, normalise_rgb
from vmloc_ros.samples import SampleStore
from vmloc_ros.types import Modality

CHUNK = 128
MOST_PICTURES = 2048
"""More training frames than this are thinned out evenly for the mean picture."""


class GenerativeObjective(Learning):
    """The three networks of a Generative Map, trained together."""

    network: GenerativeMap

    def __init__(self, network: GenerativeMap, config: GenerativeMapObjective) -> None:
        super().__init__()
        self.network = network
        self._config = config

    def begin(self, store: SampleStore, samples: NDArray[np.int64], normalisation: Normalisation) -> None:
        """Fills in what the network keeps of the training data: places, mean picture, the scale of its colours."""
        network, config = self.network, self.network.config
        network.colour_mean.copy_(torch.tensor(normalisation.rgb_mean))
        network.colour_deviation.copy_(torch.tensor(normalisation.rgb_std))
        thinned = samples[np.linspace(0, len(samples) - 1, config.places).round().astype(int)]
        position, log_quat = targets(store.T_map_camera[thinned], normalisation)
        quats = torch.from_numpy(Rotation.from_rotvec(2.0 * log_quat.numpy()).as_quat()).float()
        network.places.copy_(torch.cat([position, quats], dim=1).flatten())
        shown = samples[:: -(-len(samples) // MOST_PICTURES)]
        rows, columns = centre_crop(store.camera.height, store.camera.width, config.height, config.width)
        total = torch.zeros_like(network.mean_picture)
        for start in range(0, len(shown), CHUNK):
            rgb = torch.from_numpy(np.array(store.rgb[shown[start : start + CHUNK]][:, rows, columns]))
            total += network.pictures(normalise_rgb(rgb, normalisation)).flatten(1).sum(dim=0)
        network.mean_picture.copy_(0.5 * total / len(shown) + 0.5)

    def forward(
        self, batch: Batch, importance: bool = True, touch_all: bool = False, task: str = ""
    ) -> tuple[Tensor, Tensor]:
        """Eq. 3 with its weights, and the bound of eq. 2 (log p(I|p), natural logarithm, per frame; detached).

        Both are sums over the picture's numbers and the latent's dimensions, as in the paper. Of a part of a batch they
        are that part's share; its random choices are those of the whole batch.

        Args:
            batch: this process's part.
            importance, touch_all, task: not used; there is one task, one sample per frame, and every parameter is used.
        """
        config, network = self._config, self.network
        present = batch.inputs[Modality.RGB.value]
        own = batch.first + present.rows_N
        noise_BD = self._noise(batch, own, network.config.latent)
        mean_BD, variance_BD = network.encoder(present.images_NCHW)
        with torch.autocast(noise_BD.device.type, enabled=False):  # bfloat16 has eight bits for a position
            expected_BD = network.pose(*self._poses(batch, own, present.rows_N))
        z_BD = mean_BD + variance_BD.sqrt() * noise_BD
        seen_BN = network.pictures(present.images_NCHW).flatten(1)
        latents = [z_BD, expected_BD] if config.view_weight else [z_BD]
        drawn = network.decoder(torch.cat(latents)).flatten(1).split(len(z_BD))
        variance = torch.tensor(config.log_variance, device=seen_BN.device).exp()
        reconstruction_B = -log_normal(seen_BN, drawn[0], variance)
        divergence_B = divergence_from_unit(mean_BD, variance_BD, expected_BD)
        loss_B = reconstruction_B + config.kl_weight * divergence_B
        if config.view_weight:
            loss_B = loss_B - config.view_weight * log_normal(seen_BN, drawn[1], variance)
        if config.contrast_weight:
            loss_B = loss_B + config.contrast_weight * self._contrast(mean_BD, expected_BD)
        bound_B = -(reconstruction_B + divergence_B).detach()
        return loss_B.sum() / batch.size, bound_B.sum() / batch.size

    def _noise(self, batch: Batch, own: Tensor, width: int) -> Tensor:
        """Standard normal numbers (B, width): this part's rows of the whole batch's."""
        return torch.randn(batch.size, width, device=batch.position_B3.device)[own]

    def _poses(self, batch: Batch, own: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The positions and rotations that the pose encoder is shown: the frames', with the configured noise."""
        position_B3, R_B33 = batch.position_B3[rows].float(), rotation_matrix(batch.log_quat_B3[rows].float())
        moves_3, turns_3 = position_B3.new_tensor([self._config.jitter_position, self._config.jitter_rotation])
        position_B3 = position_B3 + moves_3 * self._noise(batch, own, 3)
        turn_B33 = rotation_matrix(0.5 * turns_3 * self._noise(batch, own, 3))
        return position_B3, R_B33 @ turn_B33

    def _contrast(self, mean_BD: Tensor, expected_BD: Tensor) -> Tensor:
        """-log of the own pose's share of N(mu; g(p), 1) among it and places drawn at random (B,)."""
        position_P3, R_P33 = self.network.place_poses()
        drawn_K = torch.randint(len(position_P3), (self._config.contrast_places,), device=mean_BD.device)
        with torch.autocast(mean_BD.device.type, enabled=False):
            others_KD = self.network.pose(position_P3[drawn_K], R_P33[drawn_K])
            own_B1 = -0.5 * (mean_BD - expected_BD).square().sum(dim=1, keepdim=True)
            apart_BK = mean_BD.square().sum(dim=1, keepdim=True) + others_KD.square().sum(dim=1)
            others_BK = mean_BD @ others_KD.T - 0.5 * apart_BK
        return torch.logsumexp(torch.cat([own_B1, others_BK], dim=1), dim=1) - own_B1[:, 0]


def divergence_from_unit(mean_BD: Tensor, variance_BD: Tensor, expected_BD: Tensor) -> Tensor:
    """KL(N(mean, diag variance) || N(expected, 1)), summed over the dimensions (B,): the second term of eq. 3."""
    return 0.5 * ((mean_BD - expected_BD).square() + variance_BD - variance_BD.log() - 1.0).sum(dim=1)
