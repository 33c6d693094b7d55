"""What a training minimises: one class for each kind of network, all used alike by the training loop."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from vmloc_ros.batches import Batch
from vmloc_ros.networks.config import Normalisation
from vmloc_ros.samples import SampleStore


class Learning(nn.Module, ABC):
    """A network and what it is judged by in training.

    Attributes:
        network: what is kept in the end; everything else here (learned weights of the loss) is not.
    """

    network: nn.Module

    @abstractmethod
    def forward(
        self, batch: Batch, importance: bool = True, touch_all: bool = False, task: str = ""
    ) -> tuple[Tensor, Tensor]:
        """The loss to minimise and a bound to report (detached), of this process's part of a batch.

        Args:
            batch: see `batches.Batch`; of clips where the objective says so.
            importance: whether samples of the latent count by importance (VMLoc).
            touch_all: give every parameter a gradient, 0 to those that are not used.
            task: one of `tasks`.
        """

    def begin(self, store: SampleStore, samples: NDArray[np.int64], normalisation: Normalisation) -> None:
        """Told the training samples before the first step of a training that is not resumed."""

    def tasks(self) -> dict[str, list[nn.Parameter]]:
        """By name the parameters that each task's optimizer changes; the steps take turns. Most have one task."""
        return {"": list(self.parameters())}

    def unseen(self, batch: Batch) -> list[nn.Module]:
        """Parts of the network that this batch says nothing about: their gradients are dropped, so that no moment or
        weight decays."""
        return []

    def scales(self) -> dict[str, float]:
        """Learned weights of the loss, for the metrics."""
        return {}
