"""Laws of the network over scene coordinates: experts, their product, rays, and what an answer is."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pictures import NORMALISATION
from scene_pictures import NETWORK, scene_config
from torch import Tensor, nn

from vmloc_ros.checkpoint import stored
from vmloc_ros.config import parse
from vmloc_ros.errors import ConfigError, ModelInputError
from vmloc_ros.networks.inputs import normalise_depth
from vmloc_ros.networks.scene_coordinates import (
    CellExpert,
    CellMixture,
    ImageNorm,
    SceneCoordinates,
    product_of_cells,
)
from vmloc_ros.networks.scene_coordinates_config import SceneCoordinatesConfig
from vmloc_ros.networks.synchronised import SynchronisedBatchNorm2d, synchronise
from vmloc_ros.networks.vmloc import Present
from vmloc_ros.types import PinholeIntrinsics

CAMERA = PinholeIntrinsics(48, 36, 40.0, 41.0, 23.1, 17.7)
SEEDS = st.integers(0, 2**31)


def network_of(seed: int = 0, **changes: object) -> SceneCoordinates:
    """Random weights, louder than new ones, and a map and a camera to go with them."""
    torch.manual_seed(seed)
    network = SceneCoordinates(parse(SceneCoordinatesConfig, {**NETWORK, **changes}, "test"))
    for encoder in network.encoders.values():
        encoder.last.weight.data *= 10.0
    network.anchors.copy_(10.0 * torch.randn(3 * network.config.anchors))
    network.scale.fill_(2.5)
    network.camera.copy_(torch.tensor([CAMERA.fx, CAMERA.fy, CAMERA.cx, CAMERA.cy]))
    network.depth_log.copy_(torch.tensor([1.0, 0.5]))
    return network.eval()


def pictures(count: int, seed: int = 0) -> dict[str, Tensor]:
    """Normalised colour and depth of `count` samples; some pixels without return."""
    generator = torch.Generator().manual_seed(seed)
    logs = torch.randn(count, 36, 48, generator=generator)
    valid = (torch.rand(count, 36, 48, generator=generator) > 0.5).float()
    rgb = torch.randn(count, 3, 36, 48, generator=generator)
    return {"rgb": rgb, "depth": torch.stack([logs * valid, valid], dim=1)}


def present(images: Tensor, rows: list[int] | None = None) -> Present:
    """Those of some rows; by default of all."""
    index = torch.tensor(list(range(len(images))) if rows is None else rows, dtype=torch.long)
    return Present(images[index], index)


def asked(network: SceneCoordinates, inputs: Mapping[str, Present], batch: int) -> CellMixture:
    with torch.inference_mode():
        return network.fuse(network.encode(inputs, network.rays()), batch)


def expert(seed: int, anchors: int = 2, rows: list[int] | None = None, cells: int = 5) -> CellExpert:
    """A made-up opinion about the cells of some samples."""
    generator = torch.Generator().manual_seed(seed)
    index = torch.tensor([0, 1, 2] if rows is None else rows, dtype=torch.long)
    shape = (len(index), anchors, 3, cells)
    return CellExpert(
        torch.randn(len(index), anchors, cells, generator=generator, dtype=torch.double),
        torch.randn(shape, generator=generator, dtype=torch.double),
        2.0 * torch.randn(shape, generator=generator, dtype=torch.double),
        torch.zeros(len(index), 0),
        index,
    )


def assert_same(one: CellMixture, other: CellMixture, atol: float = 0.0) -> None:
    for first, second in zip(one[:3], other[:3], strict=True):
        torch.testing.assert_close(first, second, rtol=0.0, atol=atol)


ANCHORED, UNSURE = network_of(anchors=3).double(), network_of(least_deviation=0.01)

# ------------------------------------------------------------------------------------------------------------- product


def test_the_product_is_that_of_gaussians_with_the_prior() -> None:
    """The prior N(0, 1), N(2, 1/2) and N(-1, 1/4) give N(0, 1/7); the logarithms of the chances add up."""
    experts = {}
    for name, mean, variance, logit in (("rgb", 2.0, 0.5, 0.3), ("depth", -1.0, 0.25, -1.0)):
        part = expert(0, anchors=1)
        experts[name] = part._replace(
            mean_NK3C=torch.full_like(part.mean_NK3C, mean),
            logvar_NK3C=torch.full_like(part.mean_NK3C, np.log(variance)),
            logits_NKC=torch.full_like(part.logits_NKC, logit),
        )
    product = product_of_cells(experts, 3)
    assert torch.allclose(product.mean_BK3C, torch.zeros(1, dtype=torch.double), atol=1e-12)
    assert torch.allclose(product.variance_BK3C, torch.tensor(1.0 / 7.0, dtype=torch.double))
    assert torch.allclose(product.logits_BKC, torch.tensor(-0.7, dtype=torch.double))
    assert product.shares["rgb"].tolist() == pytest.approx([2 / 7] * 3)
    assert product.shares["depth"].tolist() == pytest.approx([4 / 7] * 3)


@given(SEEDS, st.integers(1, 3))
def test_the_product_is_surer_than_each_expert(seed: int, anchors: int) -> None:
    """In every coordinate of every cell, and than the prior; it lies between the three."""
    experts = {"rgb": expert(seed, anchors), "depth": expert(seed + 1, anchors)}
    product = product_of_cells(experts, 3)
    means = [torch.zeros_like(product.mean_BK3C)]
    assert (product.variance_BK3C < 1.0).all()
    for one in experts.values():
        assert (product.variance_BK3C < one.logvar_NK3C.exp()).all()
        means.append(one.mean_NK3C)
    spread = torch.stack(means)
    assert (product.mean_BK3C >= spread.amin(dim=0) - 1e-9).all()
    assert (product.mean_BK3C <= spread.amax(dim=0) + 1e-9).all()
    shares = torch.stack(list(product.shares.values()))
    assert ((shares > 0.0) & (shares < 1.0)).all()
    assert (shares.sum(dim=0) < 1.0).all()  # the rest is the prior's


@given(SEEDS)
def test_the_order_of_experts_does_not_matter(seed: int) -> None:
    experts = {"rgb": expert(seed), "depth": expert(seed + 1, rows=[0, 2]), "lidar": expert(seed + 2, rows=[1])}
    expected = product_of_cells(experts, 3)
    for order in permutations(experts):
        assert_same(product_of_cells({name: experts[name] for name in order}, 3), expected, atol=1e-12)


@given(SEEDS, st.sets(st.integers(0, 2)))
def test_an_absent_expert_is_one_that_was_never_sent(seed: int, shown: set[int]) -> None:
    """Sample by sample, exactly: whoever has no depth has the product without it."""
    rgb, rows = expert(seed), sorted(shown)
    depth = expert(seed + 1, rows=rows)
    mixed = product_of_cells({"rgb": rgb, "depth": depth}, 3)
    alone = product_of_cells({"rgb": rgb}, 3)
    both = product_of_cells({"rgb": CellExpert(*(part[rows] for part in rgb[:4]), torch.arange(len(rows))),
                             "depth": depth._replace(rows_N=torch.arange(len(rows)))}, len(rows))  # fmt: skip
    for part, without, with_depth in zip(mixed[:3], alone[:3], both[:3], strict=True):
        absent = [row for row in range(3) if row not in shown]
        assert torch.equal(part[absent], without[absent])
        assert torch.equal(part[rows], with_depth)
    assert mixed.shares["depth"][[row for row in range(3) if row not in shown]].abs().sum() == 0.0


def test_a_sample_that_shows_nothing_keeps_the_prior() -> None:
    product = product_of_cells({"rgb": expert(0, rows=[0, 2])}, 3)
    assert (product.mean_BK3C[1] == 0.0).all()
    assert (product.variance_BK3C[1] == 1.0).all()
    assert (product.logits_BKC[1] == 0.0).all()


# ------------------------------------------------------------------------------------------------------------- network


@pytest.mark.parametrize("anchors", [1, 3])
def test_mixed_presence_is_each_sample_on_its_own(anchors: int) -> None:
    network, images = network_of(anchors=anchors), pictures(4)
    mixed = asked(network, {"rgb": present(images["rgb"], [0, 1, 3]), "depth": present(images["depth"], [1, 2])}, 4)
    shown = [("rgb",), ("rgb", "depth"), ("depth",), ("rgb",)]
    for row, names in enumerate(shown):
        own = asked(network, {name: present(images[name][row : row + 1]) for name in names}, 1)
        assert_same(CellMixture(*(part[row : row + 1] for part in mixed[:3]), {}), own, atol=2e-5)


def test_a_permutation_of_the_samples_permutes_the_answers() -> None:
    network, images, order = network_of(anchors=2), pictures(5), torch.tensor([3, 0, 4, 1, 2])
    answers = [
        network.answer(asked(network, {name: present(values[index]) for name, values in images.items()}, 5))
        for index in (torch.arange(5), order)
    ]
    for one, other in zip(*answers, strict=True):
        torch.testing.assert_close(one[order], other, rtol=1e-5, atol=1e-4)


@given(SEEDS, st.lists(st.floats(-100.0, 100.0), min_size=3, max_size=3))
def test_anchors_that_move_take_the_answers_with_them(seed: int, by: list[float]) -> None:
    network = ANCHORED
    mixture = product_of_cells({"rgb": expert(seed, anchors=3)}, 3)
    points, variance = network.answer(mixture)
    anchors = network.anchors
    try:
        network.anchors = anchors + torch.tensor(by, dtype=torch.double).repeat(3)
        points_moved, variance_moved = network.answer(mixture)
    finally:
        network.anchors = anchors
    torch.testing.assert_close(points_moved, points + torch.tensor(by, dtype=torch.double), rtol=0.0, atol=1e-9)
    assert torch.equal(variance, variance_moved)


def test_an_answer_is_the_likeliest_anchors_gaussian_in_metres() -> None:
    network = ANCHORED
    mixture = product_of_cells({"rgb": expert(4, anchors=3)}, 3)
    points, variance = network.answer(mixture)
    anchors = network.anchors.reshape(3, 3)
    for b in range(3):
        for c in range(5):
            best = int(mixture.logits_BKC[b, :, c].argmax())
            expected = anchors[best] + 2.5 * mixture.mean_BK3C[b, best, :, c]
            assert torch.allclose(points[b, c], expected)
            assert torch.allclose(variance[b, c], 2.5**2 * mixture.variance_BK3C[b, best, :, c])


def test_rays_go_through_the_middle_of_the_cells() -> None:
    """And a picture that was cut out further to the right sees what lies further to the right."""
    network = network_of()
    rays = network.rays()[0]
    assert rays.shape == (2, 9, 12)
    for row, column in ((0, 0), (4, 7), (8, 11)):
        u, v = column * 4 + 1.5, row * 4 + 1.5  # between the 2nd and the 3rd of four pixels
        expected = [(u - CAMERA.cx) / CAMERA.fx, (v - CAMERA.cy) / CAMERA.fy]
        assert rays[:, row, column].tolist() == pytest.approx(expected, abs=1e-6)
    shifted = network.rays(torch.tensor([[4.0, -8.0], [0.0, 0.0]]))
    assert torch.allclose(shifted[0, :, 2:, :-1], rays[:, :-2, 1:], atol=1e-6)
    assert torch.equal(shifted[1], rays)


def test_the_depth_expert_is_told_the_cells_points() -> None:
    """In units of the map: the return nearest to the centre, on the ray; nothing, and that there is nothing."""
    network = network_of()
    metres = torch.zeros(1, 36, 48)
    metres[0, 5, 6] = 7.5
    normalisation = NORMALISATION.model_copy(update={"depth_log_mean": 1.0, "depth_log_std": 0.5})
    points = network._cell_points(normalise_depth(metres, normalisation), network.rays())[0]
    expected = torch.cat([network.rays()[0, :, 1, 1], torch.ones(1)]) * 7.5 / 2.5
    assert points[:, 1, 1].tolist() == pytest.approx([*expected.tolist(), 1.0], rel=1e-5)
    points[:, 1, 1] = 0.0
    assert (points == 0.0).all()


def test_what_it_has_no_expert_for_is_refused() -> None:
    network, images = network_of(modalities=["rgb"]), pictures(2)
    with pytest.raises(ModelInputError, match="no expert for depth"):
        network.encode({"depth": present(images["depth"])}, network.rays())
    with pytest.raises(ModelInputError, match="no modality"):
        network.encode({}, network.rays())
    with pytest.raises(ModelInputError, match="no modality"):
        network.encode({"rgb": present(images["rgb"], [])}, network.rays())


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["rgb", "depth"])
def test_what_is_not_finite_does_not_come_out_as_a_finite_point(name: str, bad: float) -> None:
    """Every cell that saw the pixel, by its own view or by the context, is not finite; other samples are untouched."""
    network, images = network_of(), pictures(2)
    clean = network.answer(asked(network, {n: present(v) for n, v in images.items()}, 2))[0]
    images[name][0, 0, 3, 5] = bad
    if name == "depth":
        images[name][0, 1, 3, 5] = 1.0
    points, variance = network.answer(asked(network, {n: present(v) for n, v in images.items()}, 2))
    finite = torch.isfinite(points[0]).all(dim=1) & torch.isfinite(variance[0]).all(dim=1)
    assert not finite[1]  # the cell of that pixel
    untouched = torch.isclose(points[0], clean[0], atol=1e-4).all(dim=1)
    assert (~finite | untouched).all()
    torch.testing.assert_close(points[1], clean[1], rtol=1e-5, atol=1e-4)


def test_weights_stored_in_half_precision_keep_the_answers() -> None:
    """In a map a kilometre away: what is in metres (anchors, scale, camera) is not rounded, nor is the last bias."""
    network = network_of(anchors=4)
    network.anchors += torch.tensor([1000.123, -2000.456, 12.3]).repeat(4)
    tensors = {name: stored(tensor, "float16") for name, tensor in network.state_dict().items()}
    for name in ("anchors", "scale", "camera", "depth_log", "encoders.rgb.last.bias"):
        assert torch.equal(tensors[name], network.state_dict()[name])
    assert tensors["encoders.rgb.last.weight"].dtype == torch.float16
    again = copy.deepcopy(network)
    again.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    inputs = {name: present(values) for name, values in pictures(3).items()}
    mixtures = [asked(one, inputs, 3) for one in (network, again)]
    assert (mixtures[0].mean_BK3C - mixtures[1].mean_BK3C).abs().max() < 0.02
    assert (mixtures[0].variance_BK3C.log() - mixtures[1].variance_BK3C.log()).abs().max() < 0.05


def test_it_starts_as_sure_as_it_is_told() -> None:
    torch.manual_seed(0)
    config = parse(SceneCoordinatesConfig, {**NETWORK, "initial_deviation": 0.3}, "test")
    network = SceneCoordinates(config).eval()
    experts = network.encode({name: present(values) for name, values in pictures(2).items()}, network.rays())
    for one in experts.values():
        assert (0.5 * one.logvar_NK3C).exp().median().item() == pytest.approx(0.3, rel=0.15)


@given(st.floats(-1e6, 1e6))
def test_no_cell_is_surer_than_the_least_deviation(raw: float) -> None:
    network = UNSURE
    encoder = network.encoders["rgb"]
    with torch.inference_mode():
        encoder.last.bias[4:] = raw
        own = encoder(torch.zeros(1, 3, 36, 48), network.rays(), torch.arange(1))
    deviation = (0.5 * own.logvar_NK3C).exp()
    assert deviation.min() >= 0.01 * (1 - 1e-5)
    assert deviation.max() <= np.exp(2.0) * (1 + 1e-5)


# ------------------------------------------------------------------------------------------------ training and machines


def test_a_single_image_can_be_trained_on() -> None:
    """A batch may show a modality once; that image has no variance among images, and is taken as at run time."""
    norm = ImageNorm(4)
    norm.running_mean += torch.arange(4.0)
    x = torch.randn(1, 4, 1, 1)
    assert torch.equal(norm.train()(x), norm.eval()(x))
    assert torch.equal(norm.running_mean, torch.arange(4.0))
    network = network_of().train()
    experts = network.encode({n: present(v) for n, v in pictures(1).items()}, network.rays())
    sum(one.mean_NK3C.square().sum() for one in experts.values()).backward()
    assert all(p.grad is None or bool(torch.isfinite(p.grad).all()) for p in network.parameters())


def test_several_images_are_normalised_as_by_torch() -> None:
    ours, theirs, x = ImageNorm(4), nn.BatchNorm2d(4), torch.randn(5, 4, 1, 1)
    assert torch.equal(ours(x), theirs(x))
    assert torch.equal(ours.running_var, theirs.running_var)


def test_every_norm_has_a_counterpart_for_several_processes() -> None:
    plain = network_of()
    twin = copy.deepcopy(plain)
    synchronise(twin)
    assert list(twin.state_dict()) == list(plain.state_dict())
    norms = [module for module in twin.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms
    assert all(isinstance(norm, SynchronisedBatchNorm2d) for norm in norms)
    inputs = {name: present(values) for name, values in pictures(2).items()}
    assert_same(asked(twin, inputs, 2), asked(plain, inputs, 2))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"width": 50}, "multiple of the cell's size, 4"),
        ({"height": 38}, "multiple of the cell's size, 4"),
        ({"depth_encoding": "image"}, "depth_encoding is log"),
        ({"hidden": [0]}, "at least one channel"),
        ({"modalities": ["rgb", "rgb"]}, "twice"),
    ],
)
def test_contradictions_are_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        scene_config(network=changes)
