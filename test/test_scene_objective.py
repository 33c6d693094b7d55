"""Laws of what scene coordinates are learnt by: the likelihood, cells without return, shares, parts, and trainings."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scene_pictures import WALL_Z, scene_config, wall_store
from torch import Tensor

from vmloc_ros.batches import Batch, BatchMaker, Part, measure_normalisation
from vmloc_ros.errors import TrainingError
from vmloc_ros.networks.scene_coordinates import CellMixture
from vmloc_ros.objectives import build_objective
from vmloc_ros.samples import SampleStore
from vmloc_ros.scene_objective import SceneObjective, clustered, negative_log_likelihood
from vmloc_ros.training import Trained, train
from vmloc_ros.training_config import TrainingConfig

ALONE = {0: "rgb", 1: "depth"}
FRAMES = 16
VARIATIONAL = {"scene": {"likelihood": "variational"}}
OBJECTIVES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"presence_as": "weighted"}, {}),
    ({"presence_as": "drawn"}, {}),
    ({"presence_as": "weighted"}, {"anchors": 3}),
    ({"presence_as": "weighted", **VARIATIONAL}, {}),
    ({"presence_as": "drawn", "scene": {"likelihood": "variational", "reprojection_weight": 0.5}}, {}),
]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> SampleStore:
    """The first frame has no depth, the second no image."""
    return wall_store(tmp_path_factory.mktemp("wall") / "cache", scene_config(), FRAMES, ALONE)


def prepared(store: SampleStore, config: TrainingConfig, part: Part | None = None) -> tuple[SceneObjective, Batch]:
    """The same weights and batch for every part; batch norm as at run time."""
    torch.manual_seed(0)
    objective = build_objective(config)
    assert isinstance(objective, SceneObjective)
    samples = np.arange(len(store))
    normalisation = measure_normalisation(store, samples)
    objective.begin(store, samples, normalisation)
    objective.eval()
    return objective, BatchMaker(store, config, normalisation, part).make(samples, (3,))


def loss_of(objective: SceneObjective, batch: Batch, **more: bool) -> Tensor:
    torch.manual_seed(1)
    return objective(batch, **more)[0]


def mixture_of(mean: Tensor, variance: Tensor, logits: Tensor | None = None) -> CellMixture:
    """One cell of one frame with K anchors: mean and variance (K, 3), logits (K,)."""
    logits = mean.new_zeros(len(mean)) if logits is None else logits
    return CellMixture(logits[None, :, None], mean[None, :, :, None], variance[None, :, :, None], {})


def target_of(points: Tensor) -> Tensor:
    """(K, 3) as (1, K, 3, 1)."""
    return points[None, :, :, None]


# ---------------------------------------------------------------------------------------------------------- likelihood


def density(x_3: Tensor, mean_3: Tensor, variance_3: Tensor) -> float:
    """Laplace's in its isotropic form, normalised."""
    distance = math.sqrt(float(((x_3 - mean_3).square() / variance_3).sum()) + 1e-6)
    return math.exp(-distance) / (8.0 * math.pi * math.sqrt(float(variance_3.prod())))


@pytest.mark.parametrize("deviation", [0.2, 1.0, 3.0])
def test_the_density_integrates_to_the_same_whatever_the_deviation(deviation: float) -> None:
    """Else a cell would gain by being sure or unsure: 8 pi is what was left out."""
    radius = torch.linspace(0.0, 60.0 * deviation, 20_001, dtype=torch.double)
    mixture = mixture_of(torch.zeros(1, 3).double(), torch.full((1, 3), deviation**2).double())
    values = torch.stack([torch.exp(-negative_log_likelihood(mixture, target_of(torch.tensor([[float(r), 0.0, 0.0]]))))
                          for r in radius[::20]])[:, 0, 0]  # fmt: skip
    shells = 4.0 * math.pi * radius[::20].square() * values
    assert torch.trapezoid(shells, radius[::20]).item() == pytest.approx(8.0 * math.pi, rel=5e-3)


@given(st.integers(0, 2**31))
def test_with_one_anchor_it_is_minus_the_log_density(seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    mean, variance, x = torch.randn(1, 3, generator=g), torch.rand(1, 3, generator=g) + 0.01, torch.randn(1, 3)
    value = negative_log_likelihood(mixture_of(mean, variance), target_of(x)).item()
    assert value == pytest.approx(-math.log(8.0 * math.pi * density(x[0], mean[0], variance[0])), abs=1e-4)


@given(st.integers(0, 2**31), st.integers(2, 6))
def test_with_several_it_is_no_less_than_that_of_the_mixture(seed: int, count: int) -> None:
    """The mixture's likelihood as a plain sum over the anchors; a bound may lie above it, never below."""
    g = torch.Generator().manual_seed(seed)
    anchors, mean = torch.randn(count, 3, generator=g), 0.3 * torch.randn(count, 3, generator=g)
    variance, logits, point = torch.rand(count, 3, generator=g) + 0.01, torch.randn(count, generator=g), torch.randn(3)
    chances = torch.softmax(logits, dim=0)
    total = sum(
        float(chance) * density(point, anchor + m, v)
        for chance, anchor, m, v in zip(chances, anchors, mean, variance, strict=True)
    )
    value = negative_log_likelihood(mixture_of(mean, variance, logits), target_of(point - anchors)).item()
    assert value >= -math.log(8.0 * math.pi * total) - 1e-4
    order = torch.randperm(count, generator=g)
    mixed = mixture_of(mean[order], variance[order], logits[order])
    assert negative_log_likelihood(mixed, target_of((point - anchors)[order])).item() == pytest.approx(value, abs=1e-4)


@given(st.integers(0, 2**31), st.integers(1, 4))
def test_it_is_least_at_the_truth(seed: int, count: int) -> None:
    """Of all means that a cell may have, the true point costs least; and on the way there it falls."""
    g = torch.Generator().manual_seed(seed)
    anchors, point = torch.randn(count, 3, generator=g), torch.randn(3, generator=g)
    variance, logits, off = torch.rand(count, 3, generator=g) + 0.01, torch.randn(count, generator=g), torch.randn(3)
    target = target_of(point - anchors)
    costs = [
        negative_log_likelihood(mixture_of(point - anchors + share * off, variance, logits), target).item()
        for share in (0.0, 0.1, 0.3, 1.0, 3.0)
    ]
    assert costs == sorted(costs)
    assert costs[0] < costs[-1]


@given(st.floats(0.05, 2.0))
def test_the_best_deviation_is_that_of_the_error(distance: float) -> None:
    """Laplace in three dimensions: a third of the distance; neither surer nor less sure."""
    log_deviation = torch.tensor(math.log(distance / 3.0), dtype=torch.double, requires_grad=True)
    variance = torch.exp(2.0 * log_deviation).expand(1, 3)
    x = torch.tensor([[distance, 0.0, 0.0]], dtype=torch.double)
    negative_log_likelihood(mixture_of(torch.zeros_like(x), variance), target_of(x)).sum().backward()
    assert log_deviation.grad is not None
    assert abs(log_deviation.grad.item()) < 1e-4


# --------------------------------------------------------------------------------------------------- cells and samples


def spread_gradient(objective: SceneObjective, batch: Batch) -> Tensor:
    """How the loss changes with the log-variance of every cell of the product (B, C); negative: it gains by width."""
    with torch.no_grad():
        mixture = objective.network.fuse(
            objective.network.encode(batch.inputs, objective.network.rays()), len(batch.samples)
        )
    log_variance = mixture.variance_BK3C.log().requires_grad_()
    scene, share = batch.scene, torch.full((len(batch.samples),), 1.0 / len(batch.samples))
    assert scene is not None
    loss = objective._loss(mixture._replace(variance_BK3C=log_variance.exp()), batch, scene, share, True)
    (gradient,) = torch.autograd.grad(loss, log_variance)
    return gradient.sum(dim=(1, 2))


def test_cells_without_return_become_wider_where_depth_was_taken(store: SampleStore) -> None:
    """A frame that has no depth at all says nothing of its cells."""
    for weight in (0.0, 0.1):
        objective, batch = prepared(store, scene_config(objective={"scene": {"empty_weight": weight}}))
        scene = batch.scene
        assert scene is not None
        known = scene.known_BC.clone()
        known[2, :20] = False
        batch = batch._replace(scene=scene._replace(known_BC=known))
        gradient = spread_gradient(objective, batch)
        if weight:
            assert (gradient[2, :20] < 0.0).all()
        else:
            assert (gradient[2, :20] == 0.0).all()
        assert (gradient[0] == 0.0).all()
        assert (gradient[2, 20:] != 0.0).any()


def test_reprojection_turns_points_towards_their_rays(store: SampleStore) -> None:
    """Those without return, and only those; a step down its slope brings them nearer to where they are seen."""
    config = scene_config(objective={"scene": {"reprojection_weight": 1.0, "empty_weight": 0.0}})
    objective, batch = prepared(store, config)
    scene = batch.scene
    assert scene is not None
    truth = scene.points_B3C + 0.2 * torch.randn(scene.points_B3C.shape, generator=torch.Generator().manual_seed(0))
    mean = ((truth[:, None] - objective.network.anchors.reshape(1, 1, 3, 1)) / objective.network.scale).detach()
    known = scene.known_BC.clone()
    known[2:, ::2] = False
    scene = scene._replace(known_BC=known)
    logits = torch.zeros(FRAMES, 1, mean.shape[3])
    mixture = CellMixture(logits, mean.requires_grad_(), torch.ones_like(mean), {})
    before = objective._bearing_loss(mixture, scene)
    share = torch.full((FRAMES,), 1.0 / FRAMES)
    without = SceneObjective(objective.network, scene_config(objective={"scene": {"empty_weight": 0.0}}).objective)
    difference = objective._loss(mixture, batch, scene, share, True) - without._loss(mixture, batch, scene, share, True)
    (gradient,) = torch.autograd.grad(difference, mean)
    assert gradient[2:, :, :, 1::2].abs().max() < 1e-6
    unknown = torch.zeros_like(known)
    unknown[2:, ::2] = True
    step = 0.02 * gradient / gradient.norm(dim=2, keepdim=True).clamp_min(1e-12)
    after = objective._bearing_loss(mixture._replace(mean_BK3C=mean.detach() - step), scene)
    assert (after < before)[unknown].float().mean() > 0.95
    true = CellMixture(logits, (scene.points_B3C[:, None] - objective.network.anchors.reshape(1, 1, 3, 1))
                       / objective.network.scale, torch.ones_like(mean), {})  # fmt: skip
    assert objective._bearing_loss(true, scene)[2:].max() < 0.002


@pytest.mark.parametrize(("objective", "network"), OBJECTIVES)
def test_gradients_reach_both_encoders(store: SampleStore, objective: dict[str, Any], network: dict[str, Any]) -> None:
    learning, batch = prepared(store, scene_config(objective=objective, network=network))
    loss_of(learning, batch).backward()
    for encoder in learning.network.encoders.values():
        gradients = [p.grad for p in encoder.parameters() if p.grad is not None]
        assert gradients
        assert all(bool(torch.isfinite(g).all()) for g in gradients)
        assert sum(float(g.abs().sum()) for g in gradients) > 0.0


def test_weighted_cases_are_the_expectation_of_drawn_ones(store: SampleStore) -> None:
    config = scene_config(objective={"presence_as": "weighted", "presence": [0.5, 0.3, 0.2]})
    objective, batch = prepared(store, config)
    assert batch.scene is not None
    experts = objective.network.encode(batch.inputs, objective.network.rays(batch.scene.shift_B2))
    rows = objective._rows(experts, FRAMES, FRAMES)
    shares = FRAMES * torch.stack([share for _, share in rows])
    assert torch.allclose(shares.sum(dim=0), torch.ones(FRAMES))
    assert torch.allclose(shares[:, 0], torch.tensor([0.0, 1.0, 0.0]))  # it has only its image
    assert torch.allclose(shares[:, 1], torch.tensor([0.0, 0.0, 1.0]))
    assert torch.allclose(shares[:, 5], torch.tensor([0.5, 0.3, 0.2]))
    assert [set(subset) for subset, _ in rows] == [{"rgb", "depth"}, {"rgb"}, {"depth"}]


def test_a_batch_without_targets_is_refused(store: SampleStore) -> None:
    objective, batch = prepared(store, scene_config())
    with pytest.raises(TrainingError, match="no targets"):
        objective(batch._replace(scene=None))


# --------------------------------------------------------------------------------------------------------------- parts


@pytest.mark.parametrize(("objective", "network"), OBJECTIVES)
def test_losses_of_parts_add_up(store: SampleStore, objective: dict[str, Any], network: dict[str, Any]) -> None:
    """As many as there are samples; and so do the bounds and the gradients. The noise is the whole batch's."""
    config = scene_config(objective={**objective, "samples": 3}, network=network)
    learning, batch = prepared(store, config)
    whole = loss_of(learning, batch)
    whole.backward()
    expected = {name: p.grad for name, p in learning.named_parameters()}
    learning, _ = prepared(store, config)
    total = 0.0
    for number in range(FRAMES):
        _, part = prepared(store, config, Part(number, FRAMES))
        loss = loss_of(learning, part, touch_all=True)
        loss.backward()  # gradients add up
        total += loss.item()
    assert total == pytest.approx(whole.item(), rel=1e-4)
    for name, parameter in learning.named_parameters():
        assert parameter.grad is not None, f"{name}: what averages gradients waits for all of them"
        if expected[name] is not None:
            scale = float(expected[name].abs().max())
            assert torch.allclose(parameter.grad, expected[name], rtol=1e-2, atol=1e-3 * scale + 1e-7), name


def test_what_a_batch_does_not_show_is_named(store: SampleStore) -> None:
    """Its gradients, zeros with `touch_all`, are then dropped, so that no weight decays."""
    objective, batch = prepared(store, scene_config())
    alone = batch._replace(inputs={"rgb": batch.inputs["rgb"]})
    assert objective.unseen(batch) == []
    assert objective.unseen(alone) == [objective.network.encoders["depth"]]
    loss_of(objective, alone).backward()
    assert all(p.grad is None for p in objective.network.encoders["depth"].parameters())
    loss_of(objective, alone, touch_all=True).backward()
    grads = [p.grad for p in objective.network.encoders["depth"].parameters()]
    assert all(g is not None and not bool(g.any()) for g in grads)


# ------------------------------------------------------------------------------------------------------------- anchors


def test_the_start_knows_camera_and_map(store: SampleStore) -> None:
    objective, _ = prepared(store, scene_config(network={"anchors": 4}))
    network = objective.network
    camera = store.camera.cropped(3, 2, 48, 36)  # the middle of the 54x40 that are stored
    assert network.camera.tolist() == pytest.approx([camera.fx, camera.fy, camera.cx, camera.cy])
    anchors = network.anchors.reshape(4, 3)
    assert (anchors[:, 2] - WALL_Z).abs().max() < 0.05  # means of points on the wall
    spread = torch.pdist(anchors).min()
    assert 0.2 < network.scale.item() < 2.0
    assert spread > network.scale.item()
    normalisation = measure_normalisation(store, np.arange(len(store)))
    expected = [normalisation.depth_log_mean, normalisation.depth_log_std]
    assert network.depth_log.tolist() == pytest.approx(expected)


def test_training_frames_without_depth_are_refused(tmp_path: Path) -> None:
    store = wall_store(tmp_path / "cache", scene_config(), 4, dict.fromkeys(range(4), "rgb"))
    with pytest.raises(TrainingError, match=r"localizer\.input\.depth_source"):
        prepared(store, scene_config())


@given(st.integers(0, 2**31), st.integers(1, 5))
def test_clusters_are_always_the_same(seed: int, count: int) -> None:
    """Each is the mean of the points that are nearest to it, and the scale is how far those are."""
    points = np.random.default_rng(seed).normal(size=(60, 3)) * [5.0, 1.0, 1.0]
    centres, scale = clustered(points, count)
    again, _ = clustered(points, count)
    np.testing.assert_array_equal(centres, again)
    assert np.isfinite(centres).all()
    distance = np.linalg.norm(points[:, None] - centres, axis=2).min(axis=1)
    assert scale == pytest.approx(np.sqrt(np.square(distance).mean()), rel=0.05)


@pytest.mark.filterwarnings("ignore:invalid value|One of the clusters")
def test_points_in_one_place_have_clusters_too() -> None:
    centres, scale = clustered(np.tile([[1.0, 2.0, 3.0]], (50, 1)), 3)
    assert np.isfinite(centres).all()
    assert scale == pytest.approx(1e-3)


# ----------------------------------------------------------------------------------------------------------- trainings


def run(store: SampleStore, out: Path, config: TrainingConfig, **more: Any) -> Trained:
    samples = np.arange(len(store))
    normalisation = measure_normalisation(store, samples)
    return train(config, store, samples, np.empty(0, dtype=np.int64), normalisation, out, "key", **more)


def test_training_goes_on_where_it_was(store: SampleStore, tmp_path: Path) -> None:
    """The same weights whether interrupted or not, camera and anchors among them; another seed gives others."""
    config = scene_config(network={"anchors": 2}, objective={"presence_as": "weighted"}, storage="float32")

    class PowerCutError(Exception):
        pass

    def cut(step: int, row: object) -> None:
        if step == 5:  # the checkpoint is after the second epoch of two steps
            raise PowerCutError

    whole = run(store, tmp_path / "whole", config).tensors
    with pytest.raises(PowerCutError):
        run(store, tmp_path / "cut", config, tell=cut)
    resumed = run(store, tmp_path / "cut", config, resume=True).tensors
    other = run(store, tmp_path / "other", config.model_copy(update={"seed": 1})).tensors
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert torch.equal(whole["anchors"], other["anchors"])
    assert not torch.equal(whole["encoders.rgb.last.weight"], other["encoders.rgb.last.weight"])


@pytest.mark.parametrize("objective", [{}, VARIATIONAL], ids=["robust", "variational"])
def test_cells_learn_where_they_lie(store: SampleStore, tmp_path: Path, objective: dict[str, Any]) -> None:
    """Of the product and of each expert alone, in metres; one anchor in the middle knows nothing."""
    config = scene_config(
        objective={"presence_as": "weighted", **objective},
        augmentation={"noise": 0.0, "depth_dropout": 0.0},
        optimizer={"epochs": 30, "peak_learning_rate": 1e-2, "validate_every": 30, "batch_size": 8},
        storage="float32",
    )
    trained = run(store, tmp_path / "trained", config)
    learning, batch = prepared(store, config)
    scene = batch.scene
    assert scene is not None

    def errors() -> dict[str, float]:
        with torch.no_grad():
            experts = learning.network.encode(batch.inputs, learning.network.rays(scene.shift_B2))
            result = {}
            for name, subset in ({"both": experts} | {name: {name: one} for name, one in experts.items()}).items():
                points, _ = learning.network.answer(learning.network.fuse(subset, FRAMES))
                off = (points.transpose(1, 2) - scene.points_B3C).norm(dim=1)[2:]
                result[name] = float(off[scene.known_BC[2:]].median())
        return result

    before = errors()
    learning.network.load_state_dict(trained.tensors)
    after = errors()
    assert after["both"] < 0.3 * before["both"], (before, after)
    assert all(after[name] < 0.8 * before[name] for name in before), (before, after)
    assert trained.rows[-1]["loss"] < trained.rows[0]["loss"]
    assert ("beta" in trained.rows[-1]) == bool(objective)
