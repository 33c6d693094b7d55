"""Retrieval run by numpy: one product of a matrix with the thumbnails that are asked about."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vmloc_ros.errors import ModelInputError
from vmloc_ros.networks.retrieval import RetrievalNetwork, normalised, thumbnail
from vmloc_ros.runtimes.torch import RawPoses
from vmloc_ros.types import Modality


class RetrievalRuntime:
    """Always on the CPU. The latent of an image is its normalised thumbnail, so that what is measured on latents (how
    far the nearest training image is, where the next ones were taken) tells how sure an answer is."""

    def __init__(self, network: RetrievalNetwork) -> None:
        self.device = "cpu"
        self._config = network.config
        self._thumbnails_KD = normalised(network.thumbnails.cpu().numpy())
        self._poses_K44 = network.poses()

    def infer(self, rgb_NHW3: NDArray[np.uint8] | None, depth_NHW: NDArray[np.floating] | None) -> RawPoses:
        """See `Runtime`. The scatter is zero. A picture of one colour has a latent of zeros and any pose: see
        `localizers.retrieval`.

        Raises:
            ModelInputError: no colour images, or depth, or images of another size.
        """
        if rgb_NHW3 is None or depth_NHW is not None:
            raise ModelInputError("retrieval looks up colour images, and nothing else")
        if rgb_NHW3.shape[1:3] != (self._config.height, self._config.width):
            raise ModelInputError(
                f"rgb is {rgb_NHW3.shape[1:3]}, the network takes {self._config.height}x{self._config.width}"
            )
        count = len(rgb_NHW3)
        latents_ND = normalised(np.stack([thumbnail(image) for image in rgb_NHW3]))
        nearest_N = np.argmax(latents_ND @ self._thumbnails_KD.T, axis=1)
        shares = {Modality.RGB.value: np.ones(count)}
        return RawPoses(self._poses_K44[nearest_N], np.zeros((count, 6, 6)), shares, latents_ND)
