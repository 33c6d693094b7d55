"""The objective's equations, in float64."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation
from torch import Tensor

from vmloc_ros.geometry import log_quaternion as log_quaternion_numpy
from vmloc_ros.losses import (
    decoder_loss,
    encoder_factor,
    geometric_loss,
    importance_bound,
    log_normal,
    log_quaternion,
    log_quaternion_difference,
    log_weights,
    motion_errors_in_camera,
    motion_errors_in_map,
    norm,
    normalised_weights,
    quaternion,
    vmloc_loss,
)

Poses = tuple[Tensor, Tensor]

angles = st.one_of(st.floats(0.0, math.pi), st.sampled_from([0.0, 1e-12, 1e-8, 1e-4, math.pi - 1e-9, math.pi]))
axes = st.tuples(st.floats(-1, 1), st.floats(-1, 1), st.floats(-1, 1)).filter(lambda a: np.linalg.norm(a) > 0.1)


@given(angles, axes, st.booleans())
def test_log_quaternion_is_half_the_rotation_vector_everywhere(angle: float, axis: tuple, flip: bool) -> None:
    rotation = Rotation.from_rotvec(angle * np.array(axis) / np.linalg.norm(axis))
    quat = torch.tensor(rotation.as_quat() * (-1.0 if flip else 1.0), requires_grad=True)
    result = log_quaternion(quat)
    result.sum().backward()
    assert torch.isfinite(result).all()
    assert torch.isfinite(quat.grad).all()
    back = Rotation.from_rotvec(2.0 * result.detach().numpy())
    assert (back.inv() * rotation).magnitude() < 1e-7
    assert result.norm().item() <= math.pi / 2 + 1e-9
    if angle < math.pi - 1e-3:
        assert np.allclose(result.detach().numpy(), log_quaternion_numpy(rotation.as_matrix()), atol=1e-7)


@given(angles, axes, angles, axes)
def test_rotation_difference_does_not_see_the_border(a: float, axis_a: tuple, b: float, axis_b: tuple) -> None:
    """The error is that of the nearer logarithm of the same rotation: never more than the plain difference."""
    predicted, target = (
        torch.tensor(0.5 * angle * np.array(axis) / np.linalg.norm(axis), requires_grad=True)
        for angle, axis in ((a, axis_a), (b, axis_b))
    )
    difference = log_quaternion_difference(predicted, target)
    plain = (predicted - target).norm().item()
    assert difference.norm().item() <= plain + 1e-9
    difference.square().sum().backward()
    assert torch.isfinite(predicted.grad).all()
    if b < 0.9:
        assert torch.equal(difference, predicted - target)


def test_rotation_across_the_border_is_near() -> None:
    predicted, target = torch.tensor([0.0, 0.0, 1.56]), torch.tensor([0.0, 0.0, -1.56])  # 178.8 and -178.8 degrees
    assert log_quaternion_difference(predicted, target).norm().item() == pytest.approx(math.pi - 3.12, abs=1e-5)


def test_geometric_loss_is_equation_11() -> None:
    p, q = torch.tensor([[3.0, 4.0, 0.0]]), torch.tensor([[0.1, 0.0, 0.0]])
    beta, gamma = torch.tensor(-1.0), torch.tensor(-3.0)
    loss = geometric_loss(p, q, torch.zeros(1, 3), torch.zeros(1, 3), beta, gamma)
    assert loss.item() == pytest.approx(5 * math.e - 1 + 0.1 * math.exp(3) - 3, rel=1e-5)
    loss = geometric_loss(p, q, torch.zeros(1, 3), torch.zeros(1, 3), beta, gamma, "l1")
    assert loss.item() == pytest.approx(7 * math.e - 1 + 0.1 * math.exp(3) - 3, rel=1e-5)


def test_geometric_loss_gradients_against_differences() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(4, 3, generator=generator, dtype=torch.float64) for _ in range(4)]
    inputs[3][0] = torch.tensor([0.0, 0.0, 1.5])  # near the border
    scalars = [torch.tensor(v, dtype=torch.float64) for v in (0.3, -1.2)]
    arguments = [x.requires_grad_() for x in (*inputs, *scalars)]
    assert torch.autograd.gradcheck(lambda *a: geometric_loss(*a), arguments)


def test_norm_has_no_nan_gradient_at_zero() -> None:
    x = torch.zeros(2, 3, requires_grad=True)
    norm(x, "l2").sum().backward()
    assert torch.equal(x.grad, torch.zeros(2, 3))


def test_beta_settles_at_the_logarithm_of_the_mean_error() -> None:
    """e^beta is a mean norm, not a standard deviation."""
    beta = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    errors = torch.tensor([[1.0, 0, 0], [3.0, 0, 0]], dtype=torch.float64)
    zero = torch.zeros(2, 3, dtype=torch.float64)
    optimum = math.log(2.0)
    loss = geometric_loss(errors, zero, zero, zero, beta, torch.tensor(0.0, dtype=torch.float64)).mean()
    loss.backward()
    assert beta.grad.item() == pytest.approx(1.0 - 2.0 * math.exp(-0.7))
    with torch.no_grad():
        betas = [torch.tensor(b, dtype=torch.float64) for b in (optimum - 0.1, optimum, optimum + 0.1)]
        at = [geometric_loss(errors, zero, zero, zero, b, torch.tensor(0.0)).mean().item() for b in betas]
    assert at[1] < min(at[0], at[2])


@given(st.floats(-3, 3), st.floats(-2, 2), st.floats(0.05, 5))
def test_log_normal_against_torch(z: float, mean: float, variance: float) -> None:
    expected = torch.distributions.Normal(mean, math.sqrt(variance)).log_prob(torch.tensor(z)).item()
    value = log_normal(*(torch.tensor([x], dtype=torch.float64) for x in (z, mean, variance))).item()
    assert value == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_log_weights_are_equation_15() -> None:
    generator = torch.Generator().manual_seed(2)
    z = torch.randn(3, 2, 4, generator=generator, dtype=torch.float64)
    mean, variance = z[0] + 0.1, torch.full((2, 4), 0.3, dtype=torch.float64)
    loss = torch.rand(3, 2, generator=generator, dtype=torch.float64)
    normal = torch.distributions.Normal
    expected = -loss + 0.2 * (normal(0.0, 1.0).log_prob(z).sum(-1) - normal(mean, variance.sqrt()).log_prob(z).sum(-1))
    assert torch.allclose(log_weights(loss, z, mean, variance, 0.2), expected)


def test_bound_tightens_with_more_samples() -> None:
    """Equation 6, on a Gaussian whose log-evidence is known."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(64, 20000, 1, generator=generator, dtype=torch.float64)
    zero, one = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    log_w = log_weights(-log_normal(z, one, 0.5 * one), z, zero, one, 1.0)  # q = prior; p(y | z) = N(1; z, 1/2)
    bounds = [importance_bound(log_w[:k]).mean().item() for k in (1, 4, 16, 64)]
    truth = log_normal(one, zero, 1.5 * one).item()
    assert bounds == sorted(bounds)
    assert bounds[-1] == pytest.approx(truth, abs=0.02)
    assert bounds[0] < truth - 0.3


def test_decoder_gradient_is_the_bounds() -> None:
    log_w = torch.randn(5, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64, requires_grad=True)
    decoder_loss(log_w).backward()
    gradient = log_w.grad.clone()
    log_w.grad = None
    (-importance_bound(log_w).mean()).backward()
    assert torch.allclose(gradient, log_w.grad)
    shares = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64)
    log_w.grad = None
    decoder_loss(log_w, shares).backward()
    assert torch.allclose(log_w.grad.sum(dim=0), -shares)


def test_encoder_factors() -> None:
    weights = normalised_weights(torch.randn(4, 2, generator=torch.Generator().manual_seed(0)))
    assert torch.allclose(weights.sum(dim=0), torch.ones(2))
    assert torch.equal(encoder_factor(weights, 0.3, "paper"), weights)
    assert torch.equal(encoder_factor(weights, 0.3, "plain"), torch.ones_like(weights))
    assert torch.allclose(encoder_factor(weights, 0.3, "unbiased"), 0.7 + 0.3 * weights)
    assert torch.allclose(encoder_factor(weights, 1.0, "unbiased"), weights)


AT = {"mean": 0.4, "logvar": -0.7}
"""Of the posterior at which gradients are compared."""
FRAMES = 40000
"""Repetitions of every Monte Carlo estimate."""


def smooth_distance(z: Tensor) -> Tensor:
    """The loss of decoding z by z itself, y = 1: a norm without its kink, so that differences are good to h^2."""
    return 2.0 * torch.sqrt((z[..., 0] - 1.0).square() + 0.05)


def common_noise(samples: int) -> Tensor:
    """The same random numbers for everything that is compared."""
    return torch.randn(samples, FRAMES, 1, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


def encoder_gradients(rule: str, scale: float, samples: int) -> Tensor:
    """Per-frame gradients (FRAMES, 2) of the loss for a scalar mean and log-variance."""
    mean, logvar = (torch.full((FRAMES, 1), v, dtype=torch.float64, requires_grad=True) for v in AT.values())
    loss, _ = vmloc_loss(mean, logvar.exp(), common_noise(samples), smooth_distance, scale, rule)  # type: ignore[arg-type]
    loss.backward()
    return FRAMES * torch.cat([mean.grad, logvar.grad], dim=1)


def mean_bound(mean: float, logvar: float, scale: float, samples: int) -> float:
    """Equation 7 over the common noise, from its definition alone."""
    means, variances = (torch.full((FRAMES, 1), v, dtype=torch.float64) for v in (mean, math.exp(logvar)))
    z = means + variances.sqrt() * common_noise(samples)
    return importance_bound(log_weights(smooth_distance(z), z, means, variances, scale)).mean().item()


def gradient_of_the_bound(scale: float, samples: int, h: float = 1e-4) -> Tensor:
    """Of minus equation 7, by central differences over the common noise."""
    slopes = []
    for name in AT:
        above, below = ({**AT, name: AT[name] + sign * h} for sign in (1.0, -1.0))
        slopes.append(
            -(mean_bound(**above, scale=scale, samples=samples) - mean_bound(**below, scale=scale, samples=samples))
            / (2 * h)
        )
    return torch.tensor(slopes, dtype=torch.float64)


SCALES_AND_SAMPLES = [(scale, samples) for scale in (1.0, 0.1, 1e-6) for samples in (1, 10)]


@pytest.mark.parametrize(("scale", "samples"), SCALES_AND_SAMPLES)
def test_unbiased_gradient_is_that_of_the_bound(scale: float, samples: int) -> None:
    """The plain estimator (eq. 8) is the bound's own slope; the doubly reparameterised one has its expectation.

    Both are estimated from the same noise: the error bar is of their difference. It must be small against the gradient,
    or the comparison would say nothing. `pytest -s` shows the numbers.
    """
    slope = gradient_of_the_bound(scale, samples)
    plain, unbiased = (encoder_gradients(rule, scale, samples) for rule in ("plain", "unbiased"))
    assert torch.allclose(plain.mean(dim=0), slope, rtol=1e-6, atol=1e-7)
    difference = unbiased - plain
    error = difference.std(dim=0) / math.sqrt(FRAMES)
    for index, name in enumerate(AT):
        print(
            f"lambda {scale:g}, k {samples}, d/d {name}: slope of the bound {slope[index]:+.5f}, unbiased "
            f"{unbiased[:, index].mean():+.5f}, difference {difference[:, index].mean():+.5f} +- {error[index]:.5f}"
        )
    assert (difference.mean(dim=0).abs() < 4.5 * error + 1e-9).all()
    assert (error < 0.05 * slope.abs().max()).all()


@pytest.mark.parametrize("samples", [1, 10])
def test_unbiased_gradient_varies_less_than_the_plain_one(samples: int) -> None:
    plain, unbiased = (encoder_gradients(rule, 1.0, samples).var(dim=0) for rule in ("plain", "unbiased"))
    print(f"lambda 1, k {samples}: variance plain {plain.tolist()}, unbiased {unbiased.tolist()}")
    assert (unbiased < plain).all()


@pytest.mark.parametrize("scale", [1.0, 0.1, 1e-6])
def test_ten_samples_bound_tighter_than_one(scale: float) -> None:
    """Equation 6 for every lambda, beyond the error bar of the difference over common noise."""
    means, variances = (torch.full((FRAMES, 1), v, dtype=torch.float64) for v in (AT["mean"], math.exp(AT["logvar"])))
    z = means + variances.sqrt() * common_noise(10)
    log_w = log_weights(smooth_distance(z), z, means, variances, scale)
    gain = importance_bound(log_w) - importance_bound(log_w[:1])
    error = gain.std() / math.sqrt(FRAMES)
    print(f"lambda {scale:g}: the bound gains {gain.mean():.5f} +- {error:.5f} from k = 10")
    assert gain.mean() > 4.5 * error


def test_elbo_is_the_mean_of_single_sample_bounds() -> None:
    """Before importance counts: samples alike, the expectation of the plain gradient of a single sample."""
    single, elbo = encoder_gradients("plain", 0.1, 1), encoder_gradients("elbo", 0.1, 10)
    error = torch.sqrt(single.var(dim=0) / len(single) + elbo.var(dim=0) / len(elbo))
    assert ((single.mean(dim=0) - elbo.mean(dim=0)).abs() < 5.0 * error).all()
    assert (elbo.var(dim=0) < single.var(dim=0)).all()


def test_the_papers_rule_is_biased_for_a_small_lambda() -> None:
    plain, paper = (encoder_gradients(rule, 1e-6, 10) for rule in ("plain", "paper"))
    assert abs(paper[:, 0].mean()) < 0.4 * abs(plain[:, 0].mean())


def scaled_distance(scale: Tensor, z: Tensor) -> Tensor:
    return (scale * z - 1.0).square().sum(-1)


def test_decoder_gets_single_weights_whatever_the_encoders_get() -> None:
    """Equation 14 beside equation 13, from one backward pass."""
    gradients = []
    for rule in ("plain", "paper", "unbiased"):
        generator = torch.Generator().manual_seed(3)
        noise = torch.randn(6, 50, 2, generator=generator, dtype=torch.float64)
        mean = torch.zeros(50, 2, dtype=torch.float64, requires_grad=True)
        scale = torch.tensor(1.3, dtype=torch.float64, requires_grad=True)
        distance = partial(scaled_distance, scale)
        loss, _ = vmloc_loss(mean, torch.ones_like(mean), noise, distance, 0.5, rule)  # type: ignore[arg-type]
        loss.backward()
        gradients.append(scale.grad)
    assert torch.allclose(gradients[0], gradients[1])
    assert torch.allclose(gradients[0], gradients[2])


# ------------------------------------------------------------------------------- MapNet's motions between neighbours


REFERENCE = Rotation.from_rotvec([0.3, -1.1, 0.7])


def clip_of(seed: int, frames: int = 4, rotation: float = 0.8) -> Poses:
    """Network positions and log-quaternions (2, frames, 3) of two random clips, float64."""
    generator = torch.Generator().manual_seed(seed)
    position = torch.randn(2, frames, 3, generator=generator, dtype=torch.float64)
    return position, rotation * (torch.rand(2, frames, 3, generator=generator, dtype=torch.float64) - 0.5)


def as_matrices(poses: Poses) -> np.ndarray:
    """(2, frames, 4, 4) in a map of the network's units."""
    position, log_quat = (part.numpy() for part in poses)
    result = np.tile(np.eye(4), (*position.shape[:2], 1, 1))
    turns = REFERENCE * Rotation.from_rotvec(2.0 * log_quat.reshape(-1, 3))
    result[..., :3, :3] = turns.as_matrix().reshape(*position.shape[:2], 3, 3)
    result[..., :3, 3] = position
    return result


def as_network(poses: np.ndarray) -> Poses:
    turns = REFERENCE.inv() * Rotation.from_matrix(poses[..., :3, :3].reshape(-1, 3, 3))
    log_quat = 0.5 * turns.as_rotvec().reshape(*poses.shape[:2], 3)
    return torch.from_numpy(poses[..., :3, 3].copy()), torch.from_numpy(log_quat)


def in_camera(poses: Poses, true: Poses) -> Poses:
    return motion_errors_in_camera(*poses, *true, torch.from_numpy(REFERENCE.as_quat()))


def errors_of(kind: str, poses: Poses, true: Poses) -> Poses:
    return motion_errors_in_map(*poses, *true) if kind == "map" else in_camera(poses, true)


@pytest.mark.parametrize("kind", ["map", "camera"])
def test_true_motions_have_no_error(kind: str) -> None:
    poses = clip_of(0)
    p, q = errors_of(kind, poses, poses)
    assert p.shape == q.shape == (2, 3, 3)
    assert max(p.abs().max(), q.abs().max()) < 1e-9


def test_motions_in_the_map_do_not_see_a_common_offset() -> None:
    (position, log_quat), true = clip_of(1), clip_of(2)
    plain = motion_errors_in_map(position, log_quat, *true)
    shifted = motion_errors_in_map(position + torch.tensor([3.0, -2.0, 1.0]), log_quat + 0.01, *true)
    for one, other in zip(plain, shifted, strict=True):
        assert torch.allclose(one, other)
    expected = (position[:, 1:] - position[:, :-1]) - (true[0][:, 1:] - true[0][:, :-1])
    assert torch.allclose(plain[0], expected)


@given(st.integers(0, 2**32 - 1))
def test_motions_in_camera_axes_are_those_of_the_poses(seed: int) -> None:
    """Against products of matrices; and another choice of the map's axes, for the predicted poses alone, changes
    nothing."""
    poses, true = clip_of(seed), clip_of(seed + 1)
    p, q = in_camera(poses, true)
    motions = [np.linalg.inv(T[:, :-1]) @ T[:, 1:] for T in (as_matrices(poses), as_matrices(true))]
    assert np.allclose(p.numpy(), motions[0][..., :3, 3] - motions[1][..., :3, 3], atol=1e-8)
    turns = [Rotation.from_matrix(m[..., :3, :3].reshape(-1, 3, 3)).as_rotvec().reshape(2, 3, 3) for m in motions]
    small = (np.linalg.norm(turns, axis=-1) < 0.5 * math.pi).all(axis=0)  # else another logarithm may be nearer
    assert np.allclose(q.numpy()[small], 0.5 * (turns[0] - turns[1])[small], atol=1e-6)
    other_map = np.eye(4)
    other_map[:3, :3] = Rotation.random(random_state=seed % 2**31).as_matrix()
    other_map[:3, 3] = [5.0, -1.0, 2.0]
    moved = in_camera(as_network(other_map @ as_matrices(poses)), true)
    assert np.allclose(moved[0].numpy(), p.numpy(), atol=1e-7)
    assert np.allclose(moved[1].numpy()[small], q.numpy()[small], atol=1e-6)


@pytest.mark.parametrize("kind", ["map", "camera"])
def test_motions_do_not_see_the_border(kind: str) -> None:
    """A drive that turns through the border of the ball: the logarithm jumps, the motion does not."""
    turns = torch.zeros(1, 4, 3, dtype=torch.float64)
    turns[0, :, 2] = torch.tensor([1.5, 1.55, 1.6, 1.65])
    across = turns.clone()
    across[0, 2:, 2] -= math.pi  # the same rotations, by their logarithms on the hemisphere w >= 0
    position = torch.zeros_like(turns)
    _, q = errors_of(kind, (position, turns), (position, across))
    assert q.abs().max() < 1e-6


@pytest.mark.parametrize("kind", ["map", "camera"])
def test_gradients_of_motions(kind: str) -> None:
    poses, true = clip_of(3), clip_of(4)
    inputs = [part.requires_grad_() for part in poses]
    assert torch.autograd.gradcheck(lambda position, log_quat: errors_of(kind, (position, log_quat), true), inputs)
    standing = [torch.zeros(1, 2, 3, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    still = (standing[0].detach(), standing[1].detach())
    p, q = errors_of(kind, (standing[0], standing[1]), still)
    (p.sum() + q.sum()).backward()
    for part in standing:
        assert part.grad is not None
        assert torch.isfinite(part.grad).all()


@given(angles.filter(lambda angle: angle < math.pi - 1e-6), axes)
def test_quaternion_is_the_inverse_of_its_logarithm(angle: float, axis: tuple) -> None:
    log_quat = torch.tensor(0.5 * angle * np.array(axis) / np.linalg.norm(axis))
    quat = quaternion(log_quat)
    assert quat.norm().item() == pytest.approx(1.0, abs=1e-9)
    assert torch.allclose(log_quaternion(quat), log_quat, atol=1e-9)
