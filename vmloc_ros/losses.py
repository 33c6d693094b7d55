"""The objective of VMLoc as pure functions (equations of K. Zhou, C. Chen et al., AAAI 2021).

Shapes: K samples, B frames, D latent dimensions. The bound is maximised; every `*_loss` is to be minimised.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

Distance = Literal["l1", "l2"]
EncoderGradient = Literal["plain", "paper", "unbiased"]
Rule = Literal["plain", "paper", "unbiased", "elbo"]

SMOOTH = 1e-12
"""Under the square root of a Euclidean norm, so that its gradient at zero is zero and not NaN."""


def norm(difference: Tensor, kind: Distance) -> Tensor:
    """Length of (..., 3) vectors: Euclidean, or the sum of absolute values (as in the published code)."""
    if kind == "l1":
        return difference.abs().sum(dim=-1)
    return torch.sqrt(difference.square().sum(dim=-1) + SMOOTH)


def log_quaternion(quat_xyzw: Tensor) -> Tensor:
    """Logarithm of unit quaternions (..., 4), eq. 12, on the hemisphere w >= 0: half the rotation vector, norm <= pi/2.

    Finite with finite gradients at 0 and at pi: atan2 takes the place of the clamped arc cosine.
    """
    quat = torch.where(quat_xyzw[..., 3:] < 0.0, -quat_xyzw, quat_xyzw)
    v, u = quat[..., :3], quat[..., 3:]
    square = v.square().sum(dim=-1, keepdim=True)
    tiny = square < 1e-12
    length = torch.where(tiny, torch.ones_like(square), square).sqrt()
    return v * torch.where(tiny, 1.0 / u.clamp_min(0.5), torch.atan2(length, u) / length)


def log_quaternion_difference(predicted: Tensor, target: Tensor) -> Tensor:
    """Predicted less target log-quaternion (..., 3), taking whichever logarithm of the target is nearer.

    q and -q are one rotation; their logarithms v and v - pi v/|v| lie on opposite sides of the ball. A route that turns
    by a full circle crosses that border somewhere, and without this it would be punished there for a right answer. Off
    the border this is the plain difference of eq. 11.
    """
    square = target.square().sum(dim=-1, keepdim=True)
    length = torch.sqrt(square + SMOOTH)
    other = target * (1.0 - math.pi / length)
    plain, across = predicted - target, predicted - other
    take_other = across.square().sum(dim=-1, keepdim=True) < plain.square().sum(dim=-1, keepdim=True)
    return torch.where(take_other & (square > 0.25), across, plain)


def weighted_norms(p: Tensor, q: Tensor, beta: Tensor, gamma: Tensor, distance: Distance) -> Tensor:
    """|p| e^-beta + beta + |q| e^-gamma + gamma, the form of eq. 11, of errors (..., 3)."""
    return norm(p, distance) * torch.exp(-beta) + beta + norm(q, distance) * torch.exp(-gamma) + gamma


def geometric_loss(
    position: Tensor,
    log_quat: Tensor,
    target_position: Tensor,
    target_log_quat: Tensor,
    beta: Tensor,
    gamma: Tensor,
    distance: Distance = "l2",
) -> Tensor:
    """L_p of eq. 11, per sample (...,): |p - p*| e^-beta + beta + |log q - log q*| e^-gamma + gamma."""
    q = log_quaternion_difference(log_quat, target_log_quat)
    return weighted_norms(position - target_position, q, beta, gamma, distance)


def quaternion(log_quat: Tensor) -> Tensor:
    """Unit quaternions xyzw (..., 4) of logarithms (..., 3), the inverse of eq. 12; finite gradients at zero."""
    length = torch.sqrt(log_quat.square().sum(dim=-1, keepdim=True) + SMOOTH)
    return torch.cat([log_quat * (torch.sin(length) / length), torch.cos(length)], dim=-1)


def turned_back(quat_xyzw: Tensor, vector: Tensor) -> Tensor:
    """`R(q)^T v` of vectors (..., 3) and as many unit quaternions xyzw (..., 4), or one (4,)."""
    axis, w = -quat_xyzw[..., :3].expand_as(vector), quat_xyzw[..., 3:]
    twice = 2.0 * torch.linalg.cross(axis, vector)
    return vector + w * twice + torch.linalg.cross(axis, twice)


def quaternion_between(first: Tensor, second: Tensor) -> Tensor:
    """`q_first^-1 q_second` of unit quaternions xyzw (..., 4)."""
    v, w = -first[..., :3], first[..., 3:]
    u, s = second[..., :3], second[..., 3:]
    vector = w * u + s * v + torch.linalg.cross(v, u)
    return torch.cat([vector, w * s - (v * u).sum(dim=-1, keepdim=True)], dim=-1)


def motion_errors_in_map(
    position: Tensor, log_quat: Tensor, target_position: Tensor, target_log_quat: Tensor
) -> tuple[Tensor, Tensor]:
    """MapNet's `v_ij - v_ij*` (S. Brahmbhatt et al., CVPR 2018, eq. 3) of neighbours: v_ij = (t_j - t_i, w_j - w_i).

    That is how the errors of two neighbours differ, so that a target whose logarithm lies across the border of the ball
    (see `log_quaternion_difference`) is no error here either.

    Args:
        position, log_quat, target_position, target_log_quat: (..., n, 3), the frames of a clip, oldest first.

    Returns:
        Of positions and log-quaternions, (..., n - 1, 3).
    """
    p, q = position - target_position, log_quaternion_difference(log_quat, target_log_quat)
    return p[..., 1:, :] - p[..., :-1, :], q[..., 1:, :] - q[..., :-1, :]


def motion_errors_in_camera(
    position: Tensor,
    log_quat: Tensor,
    target_position: Tensor,
    target_log_quat: Tensor,
    reference_xyzw: Tensor,
) -> tuple[Tensor, Tensor]:
    """The same of the motions themselves, in the axes of the earlier camera: `R_i^T (t_j - t_i)` and `log(q_i^-1 q_j)`.

    They do not change with the choice of the map's axes, and a turn is a turn wherever it happens.

    Args:
        position, log_quat, target_position, target_log_quat: as in `motion_errors_in_map`.
        reference_xyzw: (4,), the rotation that log-quaternions are measured from (`Normalisation`).
    """

    def motion(p: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        quat = quaternion(w)
        way = turned_back(reference_xyzw, p[..., 1:, :] - p[..., :-1, :])
        return turned_back(quat[..., :-1, :], way), quaternion_between(quat[..., :-1, :], quat[..., 1:, :])

    way, turn = motion(position, log_quat)
    true_way, true_turn = motion(target_position, target_log_quat)
    return way - true_way, log_quaternion_difference(log_quaternion(turn), log_quaternion(true_turn))


def log_normal(z: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """log N(z; mean, diag variance), summed over the last axis."""
    return -0.5 * ((z - mean).square() / variance + variance.log() + math.log(2.0 * math.pi)).sum(dim=-1)


def log_weights(loss_KB: Tensor, z_KBD: Tensor, mean_BD: Tensor, variance_BD: Tensor, scale: float) -> Tensor:
    """log w of eq. 15: -L_p + lambda (log p(z) - log q(z | x)), prior p = N(0, I).

    For the doubly reparameterised gradients `mean_BD` and `variance_BD` must be detached: the score term of eq. 8 then
    vanishes, and the gradient reaches the encoders through z alone. Without lambda the densities do not count: a latent
    without variance (`fusion: concatenation`) has none.
    """
    if scale == 0.0:
        return -loss_KB
    prior = log_normal(z_KBD, torch.zeros_like(mean_BD), torch.ones_like(variance_BD))
    return -loss_KB + scale * (prior - log_normal(z_KBD, mean_BD, variance_BD))


def importance_bound(log_w_KB: Tensor) -> Tensor:
    """log (1/k) sum_i w_i of eq. 7, per frame (B,)."""
    return torch.logsumexp(log_w_KB, dim=0) - math.log(log_w_KB.shape[0])


def normalised_weights(log_w_KB: Tensor) -> Tensor:
    """w~_i = w_i / sum_j w_j, detached."""
    return torch.softmax(log_w_KB.detach(), dim=0)


def decoder_loss(log_w_KB: Tensor, share_B: Tensor | None = None, weights_KB: Tensor | None = None) -> Tensor:
    """Its gradient for the decoder is that of eq. 14 (negated): sum_i w~_i grad log w_i.

    Averaged over the frames, or summed with the shares given. Other weights of the samples than w~ may be given.
    """
    weights_KB = normalised_weights(log_w_KB) if weights_KB is None else weights_KB
    loss_B = -(weights_KB * log_w_KB).sum(dim=0)
    return loss_B.mean() if share_B is None else (share_B * loss_B).sum()


def encoder_factor(weights_KB: Tensor, scale: float, rule: Rule) -> Tensor:
    """What the gradient that flows into z_i, which already carries w~_i, is to be multiplied by (K, B).

    `paper` (eq. 13) gives w~^2 in all; that is unbiased only for lambda = 1. `unbiased` gives (1 - lambda) w~ +
    lambda w~^2: the score term E[w~ lambda dlog q] equals E[lambda w~ (1 - w~) dlog w/dz dz/dphi]. `plain` leaves it.
    """
    if rule == "paper":
        return weights_KB
    if rule == "unbiased":
        return (1.0 - scale) + scale * weights_KB
    return torch.ones_like(weights_KB)


def vmloc_loss(
    mean_BD: Tensor,
    variance_BD: Tensor,
    noise_KBD: Tensor,
    loss_of: Callable[[Tensor], Tensor],
    scale: float,
    rule: Rule,
    share_B: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Algorithm 1's objective: one backward pass gives eq. 14 to the decoder and eq. 13 (or its like) to the encoders.

    Args:
        mean_BD, variance_BD: of the joint posterior.
        noise_KBD: standard normal.
        loss_of: decodes z (K, B, D) to the geometric loss (K, B).
        scale: lambda.
        rule: `plain` keeps the score term (eq. 8); `paper` and `unbiased` drop it and weight what flows into z; `elbo`
            weights all samples alike: the mean of k single-sample bounds (eq. 3), whose score term is zero on average.
        share_B: weight of every frame, summing to 1; by default all alike.

    Returns:
        The loss to minimise (its *gradient* is the meaning; its value the weighted -log w), and the bound of eq. 7.
    """
    z_KBD = mean_BD + variance_BD.sqrt() * noise_KBD
    plain = rule == "plain"
    q_mean, q_variance = (mean_BD, variance_BD) if plain else (mean_BD.detach(), variance_BD.detach())
    log_w_KB = log_weights(loss_of(z_KBD), z_KBD, q_mean, q_variance, scale)
    equal_KB = torch.full_like(log_w_KB, 1.0 / len(log_w_KB)) if rule == "elbo" else None
    if rule in ("paper", "unbiased") and z_KBD.requires_grad:
        factor_KB1 = encoder_factor(normalised_weights(log_w_KB), scale, rule).unsqueeze(-1)
        z_KBD.register_hook(lambda gradient: gradient * factor_KB1)
    bound_B = importance_bound(log_w_KB.detach())
    return decoder_loss(log_w_KB, share_B, equal_KB), bound_B.mean() if share_B is None else (share_B * bound_B).sum()
