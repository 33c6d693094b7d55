"""Non-local self-attention on a latent vector (VMLoc eqs. 16-17; AtLoc; Wang et al. 2018)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class LatentAttention(nn.Module):
    """a = softmax((W_theta z)(W_phi z)^T) W_g z;  Att(z) = W_alpha a + z.

    The map is (d, d) with d = D / divisor, and its rows sum to 1 (softmax over the last axis). W_alpha starts at zero:
    an untrained attention is the identity.
    """

    def __init__(self, latent: int, divisor: int) -> None:
        super().__init__()
        inner = latent // divisor
        self.theta = nn.Linear(latent, inner)
        self.phi = nn.Linear(latent, inner)
        self.g = nn.Linear(latent, inner)
        self.alpha = nn.Linear(inner, latent)
        nn.init.zeros_(self.alpha.weight)
        nn.init.zeros_(self.alpha.bias)

    def map(self, z_BD: Tensor) -> Tensor:
        """The attention map (B, d, d)."""
        return torch.softmax(self.theta(z_BD).unsqueeze(2) * self.phi(z_BD).unsqueeze(1), dim=2)

    def forward(self, z_BD: Tensor) -> Tensor:
        """(B, D) to (B, D)."""
        a_Bd = torch.bmm(self.map(z_BD), self.g(z_BD).unsqueeze(2)).squeeze(2)
        return self.alpha(a_Bd) + z_BD
