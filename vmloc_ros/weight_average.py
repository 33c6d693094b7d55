"""The exponential moving average of a network's weights (Polyak and Juditsky 1992): less noisy than the last step's."""

from __future__ import annotations

import copy

import torch
from torch import nn


class WeightAverage:
    """A copy of a network in training that follows it slowly.

    Attributes:
        network: the average; never trained, in evaluation mode.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self._followed = network
        self._decay = decay

    @torch.no_grad()
    def update(self, step: int) -> None:
        """After training step `step` (from 0): average += (1 - d) (weights - average), batch norm's statistics as well.

        d = min(decay, (1 + step) / (10 + step)): the random weights of the beginning are soon forgotten. It depends on
        the step alone, so that resuming needs no state besides the average.
        """
        decay = min(self._decay, (1.0 + step) / (10.0 + step))
        averages, currents = [], []
        for average, current in zip(
            self.network.state_dict().values(), self._followed.state_dict().values(), strict=True
        ):
            if average.is_floating_point():
                averages.append(average)
                currents.append(current)
            else:
                average.copy_(current)
        torch._foreach_lerp_(averages, currents, 1.0 - decay)
