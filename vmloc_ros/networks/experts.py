"""Fusion of the modalities' opinions: product of Gaussian experts with a standard normal prior (VMLoc eqs. 4-5; Hinton
1999; Wu and Goodman 2018), or plain concatenation (the paper's ablation "attention").

A modality that a sample lacks contributes *no* expert to it: its encoder never runs on that sample.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

PRIOR = "prior"


@dataclass(frozen=True, eq=False)
class Expert:
    """One modality's opinion on the samples that have it.

    Attributes:
        mean_ND, logvar_ND: over the latent space, for N samples; with concatenation over the modality's own part of it,
            with a log-variance of minus infinity: a point, not a Gaussian.
        rows_N: which samples of the batch these are (int64).
    """

    mean_ND: Tensor
    logvar_ND: Tensor
    rows_N: Tensor


@dataclass(frozen=True, eq=False)
class Posterior:
    """The joint Gaussian q(z | x).

    Attributes:
        mean_BD, variance_BD: its parameters. A variance of 0 everywhere (concatenation) makes every sample the mean.
        shares: by expert (modalities and "prior"), (B,): its part of the precision, averaged over the dimensions; they
            sum to 1 and are 0 for an absent modality.
    """

    mean_BD: Tensor
    variance_BD: Tensor
    shares: Mapping[str, Tensor]

    def sample(self, noise_KBD: Tensor) -> Tensor:
        """z = mu + sigma * eps with the *true* standard deviation (the paper's "eps * mu + sigma" is a misprint)."""
        return self.mean_BD + self.variance_BD.sqrt() * noise_KBD


def product_of_experts(experts: Mapping[str, Expert], batch: int, latent: int, like: Tensor) -> Posterior:
    """Precisions add up, the prior's 1 included; the mean is the precision-weighted one.

    Args:
        experts: by modality; a sample that no expert names gets the prior.
        batch, latent: B and D.
        like: gives dtype and device.
    """
    precision = torch.ones(batch, latent, dtype=like.dtype, device=like.device)
    weighted = torch.zeros_like(precision)
    parts: dict[str, Tensor] = {PRIOR: torch.ones_like(precision)}
    for name, expert in experts.items():
        T_ND = torch.exp(-expert.logvar_ND).to(precision.dtype)
        parts[name] = torch.zeros_like(parts[PRIOR]).index_add(0, expert.rows_N, T_ND)
        precision = precision + parts[name]
        weighted = weighted.index_add(0, expert.rows_N, T_ND * expert.mean_ND.to(precision.dtype))
    shares = {name: (part / precision).mean(dim=1) for name, part in parts.items()}
    return Posterior(weighted / precision, 1.0 / precision, shares)


def concatenate(
    experts: Mapping[str, Expert], modalities: Sequence[str], batch: int, part: int, like: Tensor
) -> Posterior:
    """Every modality's features in its own part of the latent vector; zeros where a sample lacks the modality.

    The latent is a point: its variance is 0, so that samples of it do not scatter. Nothing weighs the modalities
    against each other; the shares only say which were there, all alike ("prior" for a sample without any).

    Args:
        experts: by modality.
        modalities: all of the network's, in the order of the parts.
        batch, part: B, and the dimensions of one part; D is `part` times the number of modalities.
        like: gives dtype and device.
    """
    parts, present = [], {}
    for name in modalities:
        empty = torch.zeros(batch, part, dtype=like.dtype, device=like.device)
        expert = experts.get(name)
        parts.append(empty if expert is None else empty.index_add(0, expert.rows_N, expert.mean_ND.to(like.dtype)))
        if expert is not None:
            ones = torch.ones(len(expert.rows_N), dtype=like.dtype, device=like.device)
            present[name] = torch.zeros(batch, dtype=like.dtype, device=like.device).index_add(0, expert.rows_N, ones)
    mean = torch.cat(parts, dim=1)
    count = torch.stack(list(present.values())).sum(dim=0)
    shares = {PRIOR: (count == 0).to(like.dtype)}
    shares |= {name: there / count.clamp_min(1.0) for name, there in present.items()}
    return Posterior(mean, torch.zeros_like(mean), shares)
