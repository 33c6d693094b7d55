"""What experts over scene coordinates are trained by.

Shapes: B samples, C cells, K anchors; R rows of a loss: the samples, once for each set of modalities that is judged.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.cluster.vq import kmeans2
from torch import Tensor, nn

from vmloc_ros.batches import Batch
from vmloc_ros.errors import TrainingError
from vmloc_ros.learning import Learning
from vmloc_ros.losses import vmloc_loss
from vmloc_ros.networks.config import Normalisation
from vmloc_ros.networks.inputs import centre_crop
from vmloc_ros.networks.scene_coordinates import CellExpert, CellMixture, SceneCoordinates
from vmloc_ros.samples import SampleStore
from vmloc_ros.scene_cells import SceneTargets, scene_targets
from vmloc_ros.training_config import ObjectiveConfig
from vmloc_ros.types import Modality

RGB, DEPTH = Modality.RGB.value, Modality.DEPTH.value
MOST_FRAMES = 1000
"""More training frames than this are thinned out evenly for the anchors."""
MOST_POINTS = 40_000
ROUNDS = 30
EPSILON = 1e-6
"""Under the root of a squared distance: its slope at 0 stays finite."""
BEARING_LIMIT = 0.5
"""Bearing errors (tangents) count as no larger than this: a point behind the camera has no bearing."""
NEAREST = 0.05
OVERLAP = 0.4
"""Deviation, in units of the map's scale, with which anchors share the points between them."""


class SceneObjective(Learning):
    """The network, and a robust likelihood of where its cells lie: of the product of the experts, and of each alone."""

    network: SceneCoordinates

    def __init__(self, network: SceneCoordinates, config: ObjectiveConfig) -> None:
        super().__init__()
        self.network = network
        self._config = config
        self._own = config.scene
        if self._own.likelihood == "variational":
            self.beta = nn.Parameter(torch.zeros(1))

    def begin(self, store: SampleStore, samples: NDArray[np.int64], normalisation: Normalisation) -> None:
        """Fills in the camera, the range of depth, and the anchors: clusters of what the training frames see.

        Raises:
            TrainingError: no training frame has depth.
        """
        network, config = self.network, self.network.config
        rows, columns = centre_crop(store.camera.height, store.camera.width, config.height, config.width)
        camera = store.camera.cropped(columns.start, rows.start, config.width, config.height)
        network.camera.copy_(torch.tensor([camera.fx, camera.fy, camera.cx, camera.cy]))
        network.depth_log.copy_(torch.tensor([normalisation.depth_log_mean, normalisation.depth_log_std]))
        able = samples[store.has_depth[samples]]
        if not len(able):
            raise TrainingError(
                "no training frame has depth, from which scene coordinates are learnt: set localizer.input.depth_source"
            )
        able = able[:: -(-len(able) // MOST_FRAMES)]
        depth = np.stack([np.asarray(store.depth_m[index][rows, columns], dtype=np.float32) for index in able])
        seen = scene_targets(depth, store.T_map_camera[able], np.zeros((len(able), 2), np.int64), camera, config.cell)
        points = seen.points_B3C.transpose(1, 2)[seen.known_BC].double().numpy()
        if len(points) < config.anchors:
            raise TrainingError(f"the training frames show {len(points)} points, for {config.anchors} anchors")
        points = points[:: -(-len(points) // MOST_POINTS)]
        anchors, scale = clustered(points, config.anchors)
        network.anchors.copy_(torch.from_numpy(anchors).float().flatten())
        network.scale.fill_(scale)

    def forward(
        self, batch: Batch, importance: bool = True, touch_all: bool = False, task: str = ""
    ) -> tuple[Tensor, Tensor]:
        """The loss to minimise and its negative as a bound (detached), per cell and frame, of this part of a batch.

        It is that part's share: the sum over the parts is what the whole batch gives, whose latent noise every process
        draws and takes its own rows of.

        Args:
            batch: with `scene`.
            importance: of the variational likelihood, see `losses.vmloc_loss`.
            touch_all: give every parameter a gradient, 0 to an encoder whose modality the whole batch lacks.
            task: there is one only.

        Raises:
            TrainingError: a batch without targets.
        """
        scene = batch.scene
        if scene is None:
            raise TrainingError("this batch has no targets of scene coordinates")
        experts = self.network.encode(batch.inputs, self.network.rays(scene.shift_B2))
        count = len(batch.samples)
        total = scene.points_B3C.new_zeros(())
        for subset, share_B in self._rows(experts, count, batch.size):
            mixture = self.network.fuse(subset, count)
            total = total + self._loss(mixture, batch, scene, share_B, importance)
        bound = -total.detach()
        if touch_all:
            idle = [encoder for name, encoder in self.network.encoders.items() if name not in experts]
            total = total + sum(0.0 * p.sum() for encoder in idle for p in encoder.parameters())
        return total, bound

    def _rows(
        self, experts: dict[str, CellExpert], count: int, size: int
    ) -> list[tuple[dict[str, CellExpert], Tensor]]:
        """Which experts are multiplied, and each sample's share in that loss; all shares of a batch sum to 1.

        Drawn presence: the product of what each sample shows. Weighted: that, and every expert alone.
        """
        device = self.network.anchors.device
        has = {name: torch.zeros(count, device=device) for name in (RGB, DEPTH)}
        for name, expert in experts.items():
            has[name][expert.rows_N] = 1.0
        if self._config.presence_as == "drawn" or len(experts) == 1:
            shown = ((has[RGB] + has[DEPTH]) > 0.0).float()
            return [(experts, shown / size)]
        both, rgb, depth = self._config.presence
        chances = [both * has[RGB] * has[DEPTH], rgb * has[RGB], depth * has[DEPTH]]
        total = torch.stack(chances).sum(dim=0).clamp_min(1e-9) * size
        subsets = [experts, {RGB: experts[RGB]}, {DEPTH: experts[DEPTH]}]
        return [(subset, chance / total) for subset, chance in zip(subsets, chances, strict=True)]

    def _loss(
        self, mixture: CellMixture, batch: Batch, scene: SceneTargets, share_B: Tensor, importance: bool
    ) -> Tensor:
        """The samples' loss: the mean over the cells with a return, and what is asked of those without.

        A frame without any return says nothing about its cells: its depth was never taken.
        """
        known_BC = scene.known_BC.float()
        weight_BC = share_B[:, None] * known_BC / known_BC.sum(dim=1, keepdim=True).clamp_min(1.0)
        target_BK3C = self._targets(scene)
        if self._own.likelihood == "variational":
            loss = self._variational(mixture, batch, target_BK3C, weight_BC, importance)
        else:
            loss = (weight_BC * negative_log_likelihood(mixture, target_BK3C)).sum()
        empty_BC = 1.0 - known_BC
        empty_BC = share_B[:, None] * empty_BC / empty_BC.sum(dim=1, keepdim=True).clamp_min(1.0)
        if self._own.empty_weight:
            wide_BC = mixture.variance_BK3C.log().square().mean(dim=(1, 2))
            taken_B1 = scene.known_BC.any(dim=1, keepdim=True)
            loss = loss + self._own.empty_weight * (empty_BC * taken_B1 * wide_BC).sum()
        if self._own.reprojection_weight:
            loss = loss + self._own.reprojection_weight * (empty_BC * self._bearing_loss(mixture, scene)).sum()
        return loss

    def _targets(self, scene: SceneTargets) -> Tensor:
        """The true coordinates about every anchor, network units (B, K, 3, C)."""
        anchors_K31 = self.network.anchors.unflatten(0, (-1, 3))[:, :, None]
        result: Tensor = (scene.points_B3C[:, None] - anchors_K31) / self.network.scale
        return result

    def _variational(
        self, mixture: CellMixture, batch: Batch, target_BK3C: Tensor, weight_BC: Tensor, importance: bool
    ) -> Tensor:
        """VMLoc's objective (eqs. 13-15) with cells in the place of frames.

        A sample of a cell's coordinate is judged by eq. 11 with its distance in the place of the pose's errors:
        `|z - x| exp(-beta) + beta`.
        """
        config = self._config
        mean, variance, target = (
            part[:, 0].transpose(1, 2).flatten(0, 1) for part in (mixture.mean_BK3C, mixture.variance_BK3C, target_BK3C)
        )
        whole = (config.samples, batch.size, weight_BC.shape[1], 3)
        own = slice(batch.first, batch.first + len(batch.samples))
        noise = torch.randn(whole, dtype=mean.dtype, device=mean.device)[:, own].flatten(1, 2)

        def loss_of(z_KMD: Tensor) -> Tensor:
            distance = ((z_KMD - target).square().sum(dim=-1) + EPSILON).sqrt()
            return distance * torch.exp(-self.beta) + self.beta

        rule = config.encoder_gradient if importance else "elbo"
        return vmloc_loss(mean, variance, noise, loss_of, config.latent_weight, rule, weight_BC.flatten())[0]

    def _bearing_loss(self, mixture: CellMixture, scene: SceneTargets) -> Tensor:
        """How far from its ray each cell's point is seen by the true camera (B, C): tangents, up to BEARING_LIMIT."""
        points_BC3, _ = self.network.answer(mixture)
        R_B33, t_B3 = scene.T_map_camera_B44[:, :3, :3], scene.T_map_camera_B44[:, :3, 3]
        seen_BC3 = (points_BC3 - t_B3[:, None]) @ R_B33
        rays_B2C = self.network.rays(scene.shift_B2).flatten(2)
        ahead_BC = seen_BC3[..., 2].clamp_min(NEAREST)
        off_BC = (seen_BC3[..., :2] / ahead_BC[..., None] - rays_B2C.transpose(1, 2)).square().sum(dim=2)
        return (off_BC + EPSILON).sqrt().clamp_max(BEARING_LIMIT)

    def unseen(self, batch: Batch) -> list[nn.Module]:
        """Encoders of modalities that no sample of the whole batch shows."""
        return [encoder for name, encoder in self.network.encoders.items() if name not in batch.inputs]

    def scales(self) -> dict[str, float]:
        """See `Learning`."""
        return {"beta": float(self.beta.detach())} if self._own.likelihood == "variational" else {}


def negative_log_likelihood(mixture: CellMixture, target_BK3C: Tensor) -> Tensor:
    """How badly each cell's mixture tells the true coordinate (B, C), constants left out.

    Each component is Laplace's density in its isotropic form, `exp(-m) / |S|^(1/2)` with Mahalanobis' distance `m`: it
    is heavy-tailed, so that a cell across the border of two surfaces costs its distance and not its square.

    With several anchors, those near the true point answer for it: `sum_k q_k (-log p_k(x) - log pi_k)` with shares `q`
    that fall with the distance of anchor k. That is an upper bound of the mixture's negative log-likelihood (up to the
    entropy of `q`), and its gradient never fades: the likelihood itself lets a cell that knows nothing explain every
    point by wide Gaussians about any anchor, and stay so.
    """
    squared = ((target_BK3C - mixture.mean_BK3C).square() / mixture.variance_BK3C).sum(dim=2)
    cost_BKC = (squared + EPSILON).sqrt() + 0.5 * mixture.variance_BK3C.log().sum(dim=2)
    if cost_BKC.shape[1] == 1:
        return cost_BKC[:, 0]
    share_BKC = torch.softmax(-target_BK3C.square().sum(dim=2) / (2.0 * OVERLAP**2), dim=1)
    return (share_BKC * (cost_BKC - torch.log_softmax(mixture.logits_BKC, dim=1))).sum(dim=1)


def clustered(points_N3: NDArray[np.float64], count: int) -> tuple[NDArray[np.float64], float]:
    """Centres of clusters (K, 3), and the root mean square distance of the points from theirs. Always the same."""
    if count == 1:
        centres = points_N3.mean(axis=0, keepdims=True)
        nearest = centres
    else:
        centres, labels = kmeans2(points_N3, count, ROUNDS, minit="++", seed=np.random.default_rng(0))
        nearest = centres[labels]
    distance = np.sqrt(np.square(points_N3 - nearest).sum(axis=1).mean())
    return centres, max(float(distance), 1e-3)
