"""Laws of the network: product of experts, absent modalities, attention, inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import NORMALISATION, TINY

from vmloc_ros.config import parse
from vmloc_ros.errors import ConfigError, ModelInputError
from vmloc_ros.networks.attention import LatentAttention
from vmloc_ros.networks.config import NetworkConfig
from vmloc_ros.networks.encoders import Encoder
from vmloc_ros.networks.experts import PRIOR, Expert, product_of_experts
from vmloc_ros.networks.inputs import (
    centre_window,
    fit_depth,
    fit_intrinsics,
    fit_rgb,
    normalise,
    normalise_depth,
    normalise_depth_image,
)
from vmloc_ros.networks.vmloc import Present, VMLoc
from vmloc_ros.training_config import load_training_config
from vmloc_ros.types import PinholeIntrinsics

CONFIG = parse(NetworkConfig, TINY["network"], "test")


def expert(mean: float, variance: float, rows: list[int]) -> Expert:
    size = (len(rows), 1)
    return Expert(
        torch.full(size, mean, dtype=torch.float64),
        torch.full(size, variance, dtype=torch.float64).log(),
        torch.tensor(rows),
    )


def test_product_of_experts_fixture() -> None:
    """(0, 1), (2, 0.5), (-1, 0.25): the prior is the first of them."""
    like = torch.zeros(1, dtype=torch.float64)
    three = product_of_experts({"rgb": expert(2.0, 0.5, [0]), "depth": expert(-1.0, 0.25, [0])}, 1, 1, like)
    assert three.mean_BD.item() == pytest.approx(0.0, abs=1e-12)
    assert three.variance_BD.item() == pytest.approx(1.0 / 7.0)
    two = product_of_experts({"rgb": expert(2.0, 0.5, [0])}, 1, 1, like)
    assert two.mean_BD.item() == pytest.approx(4.0 / 3.0)
    assert two.variance_BD.item() == pytest.approx(1.0 / 3.0)
    assert {name: share.item() for name, share in three.shares.items()} == pytest.approx(
        {"rgb": 2 / 7, "depth": 4 / 7, PRIOR: 1 / 7}
    )


@given(
    st.lists(
        st.tuples(
            st.floats(-5, 5), st.floats(1e-3, 10), st.booleans(), st.floats(-5, 5), st.floats(1e-3, 10), st.booleans()
        ),
        min_size=1,
        max_size=5,
    )
)
def test_product_of_a_mixed_batch_is_that_of_each_sample(rows: list[tuple]) -> None:
    like = torch.zeros(1, dtype=torch.float64)

    def experts(samples: list[int]) -> dict[str, Expert]:
        result = {}
        for name, at in (("rgb", 0), ("depth", 3)):
            chosen = [(new, rows[old]) for new, old in enumerate(samples) if rows[old][at + 2]]
            if chosen:
                values = torch.tensor([[r[at], r[at + 1]] for _, r in chosen], dtype=torch.float64)
                index = torch.tensor([new for new, _ in chosen])
                result[name] = Expert(values[:, :1], values[:, 1:].log(), index)
        return result

    whole = product_of_experts(experts(list(range(len(rows)))), len(rows), 1, like)
    for index in range(len(rows)):
        alone = product_of_experts(experts([index]), 1, 1, like)
        assert torch.equal(whole.mean_BD[index], alone.mean_BD[0])
        assert torch.equal(whole.variance_BD[index], alone.variance_BD[0])
        assert sum(share[index].item() for share in whole.shares.values()) == pytest.approx(1.0)
        assert 0.0 < whole.variance_BD[index].item() <= 1.0  # the prior never lets it grow


def images(seed: int, count: int, config: NetworkConfig = CONFIG) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    size = (config.height, config.width)
    rgb = torch.randint(0, 256, (count, *size, 3), generator=generator, dtype=torch.uint8)
    depth = 10.0 * torch.rand(count, *size, generator=generator)
    return normalise("rgb", rgb, NORMALISATION, config), normalise("depth", depth, NORMALISATION, config)


def with_changes(**changes: Any) -> NetworkConfig:
    return parse(NetworkConfig, {**TINY["network"], **changes}, "test")


VARIANTS = [
    {},
    {"fusion": "concatenation"},
    {"depth_encoding": "image", "latent_activation": "tanh", "hidden": 0},
    {"fusion": "concatenation", "depth_encoding": "image", "attention": False},
    {"latent_deviation": "published"},
]


@pytest.mark.parametrize("changes", VARIANTS)
def test_an_absent_modality_equals_one_never_sent(changes: dict[str, Any]) -> None:
    """In a batch where others have it, and against any picture that might have stood in its place."""
    torch.manual_seed(0)
    config = with_changes(**changes)
    network = VMLoc(config).eval()
    rgb, depth = images(1, 3, config)
    with torch.inference_mode():
        mixed = network({"rgb": Present(rgb, torch.arange(3)), "depth": Present(depth[:1], torch.tensor([1]))}, 3)
        never = network({"rgb": Present(rgb, torch.arange(3))}, 3)
        blank = network({"rgb": Present(rgb, torch.arange(3)), "depth": Present(0 * depth, torch.arange(3))}, 3)
        alone = network({"depth": Present(depth[:1], torch.tensor([0]))}, 1)
    for row in (0, 2):
        assert torch.equal(mixed.mean_BD[row], never.mean_BD[row])
        assert torch.equal(mixed.variance_BD[row], never.variance_BD[row])
        assert mixed.shares["depth"][row] == 0.0
    assert not torch.allclose(mixed.mean_BD[1], never.mean_BD[1])
    assert not torch.allclose(blank.mean_BD, never.mean_BD)  # a zero image would be an opinion
    assert (alone.variance_BD >= mixed.variance_BD[1]).all()  # fewer experts, less sure
    assert "rgb" not in alone.shares


def test_absent_modality_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, int] = {}
    forward = Encoder.forward

    def counted(self: Encoder, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        seen[str(x.shape[1])] = len(x)
        return forward(self, x)

    monkeypatch.setattr(Encoder, "forward", counted)
    rgb, depth = images(1, 4)
    network = VMLoc(CONFIG).eval()
    network({"rgb": Present(rgb, torch.arange(4)), "depth": Present(depth[:1], torch.tensor([3]))}, 4)
    assert seen == {"3": 4, "2": 1}
    seen.clear()
    network({"rgb": Present(rgb, torch.arange(4)), "depth": Present(depth[:0], torch.arange(0))}, 4)
    assert seen == {"3": 4}


def test_network_refuses_what_it_has_no_expert_for() -> None:
    _, depth = images(0, 1)
    network = VMLoc(CONFIG.model_copy(update={"modalities": ["rgb"]}))
    with pytest.raises(ModelInputError, match="depth"):
        network({"depth": Present(depth, torch.arange(1))}, 1)
    with pytest.raises(ModelInputError, match="no modality"):
        network({}, 1)


def test_shapes_and_initial_variance() -> None:
    torch.manual_seed(0)
    network = VMLoc(CONFIG)
    rgb, depth = images(0, 2)
    posterior = network({"rgb": Present(rgb, torch.arange(2)), "depth": Present(depth, torch.arange(2))}, 2)
    z = posterior.sample(torch.randn(5, 2, CONFIG.latent))
    position, log_quat = network.decode(z)
    assert z.shape == (5, 2, CONFIG.latent)
    assert position.shape == log_quat.shape == (5, 2, 3)
    _, logvar = network.encoders["rgb"](rgb)
    assert logvar.exp().mean().item() == pytest.approx(CONFIG.initial_variance, rel=0.5)


@pytest.mark.parametrize("changes", VARIANTS)
def test_every_variant_gives_poses_of_samples(changes: dict[str, Any]) -> None:
    config = with_changes(**changes)
    torch.manual_seed(0)
    network = VMLoc(config).eval()
    rgb, depth = images(0, 2, config)
    posterior = network({"rgb": Present(rgb, torch.arange(2)), "depth": Present(depth, torch.arange(2))}, 2)
    position, log_quat = network.decode(posterior.sample(torch.randn(5, 2, config.latent)))
    assert posterior.mean_BD.shape == posterior.variance_BD.shape == (2, config.latent)
    assert position.shape == log_quat.shape == (5, 2, 3)
    assert torch.allclose(sum(posterior.shares.values(), torch.zeros(2)), torch.ones(2))


def test_concatenation_is_a_point_of_two_parts() -> None:
    config = with_changes(fusion="concatenation")
    torch.manual_seed(0)
    network = VMLoc(config).eval()
    rgb, depth = images(1, 2, config)
    with torch.inference_mode():
        posterior = network({"rgb": Present(rgb, torch.arange(2)), "depth": Present(depth[:1], torch.tensor([1]))}, 2)
        halves = [network.encoders["rgb"](rgb)[0], network.encoders["depth"](depth[:1])[0]]
    part = config.latent // 2
    assert torch.equal(posterior.mean_BD[:, :part], halves[0])
    assert torch.equal(posterior.mean_BD[1, part:], halves[1][0])
    assert torch.equal(posterior.mean_BD[0, part:], torch.zeros(part))  # absent
    assert torch.equal(posterior.variance_BD, torch.zeros_like(posterior.mean_BD))
    assert torch.equal(posterior.sample(torch.randn(3, 2, config.latent)), posterior.mean_BD.expand(3, -1, -1))
    shares = {name: share.tolist() for name, share in posterior.shares.items()}
    assert shares == {"rgb": [1.0, 0.5], "depth": [0.0, 0.5], PRIOR: [0.0, 0.0]}


def test_one_layer_on_a_squashed_latent() -> None:
    network = VMLoc(with_changes(latent_activation="tanh", hidden=0, attention=False)).eval()
    z = 3.0 * torch.randn(4, CONFIG.latent)
    for branch, output in zip((network.position, network.rotation), network.decode(z), strict=True):
        (layer,) = branch
        assert torch.allclose(output, torch.tanh(z) @ layer.weight.T + layer.bias, atol=1e-6)


def test_the_papers_network_builds(project_root: Path) -> None:
    """ResNet-34, 256 pixels, 1024 dimensions, ten samples."""
    config = load_training_config(project_root / "models" / "vmloc_paper.yaml").network
    network = VMLoc(config).eval()
    rgb, depth = images(0, 2, config)
    assert rgb.shape == depth.shape == (2, 3, 256, 256)
    with torch.inference_mode():
        posterior = network({"rgb": Present(rgb, torch.arange(2)), "depth": Present(depth[:1], torch.tensor([0]))}, 2)
        position, log_quat = network.decode(posterior.sample(torch.randn(10, 2, 1024)))
    assert posterior.mean_BD.shape == (2, 1024)
    assert position.shape == log_quat.shape == (10, 2, 3)
    heads = sum(p.numel() for part in (network.position, network.rotation) for p in part.parameters())
    trunks_and_fusion = sum(p.numel() for p in network.parameters()) - heads
    assert 45.0e6 < trunks_and_fusion < 45.4e6  # the authors' network has 45.2 million


def test_samples_have_the_posteriors_own_deviation() -> None:
    posterior = product_of_experts({"rgb": expert(2.0, 0.5, [0])}, 1, 1, torch.zeros(1, dtype=torch.float64))
    noise = torch.randn(40000, 1, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    z = posterior.sample(noise)
    assert z.mean().item() == pytest.approx(4 / 3, abs=0.01)
    assert z.var().item() == pytest.approx(1 / 3, rel=0.02)


@pytest.mark.parametrize("trunk", ["resnet18", "resnet50"])
def test_resnet_trunks_by_configuration(trunk: str) -> None:
    config = parse(NetworkConfig, {**TINY["network"], "trunk": trunk, "grid_rows": 1, "grid_columns": 1}, "test")
    network = VMLoc(config).eval()
    rgb, depth = images(0, 1)
    with torch.inference_mode():
        both = {"rgb": Present(rgb, torch.arange(1)), "depth": Present(depth, torch.arange(1))}
        assert network(both, 1).mean_BD.shape == (1, config.latent)


def test_attention_is_equations_16_and_17() -> None:
    torch.manual_seed(3)
    attention = LatentAttention(24, 8).double()
    z = torch.randn(2, 24, dtype=torch.float64)
    assert torch.equal(attention(z), z)  # untrained: the identity
    torch.nn.init.normal_(attention.alpha.weight)
    weights = attention.map(z)
    assert weights.shape == (2, 3, 3)
    assert torch.allclose(weights.sum(dim=2), torch.ones(2, 3, dtype=torch.float64))
    for b in range(2):
        theta, phi, g = (layer(z[b]).detach() for layer in (attention.theta, attention.phi, attention.g))
        rows = [torch.softmax(theta[i] * phi, dim=0) @ g for i in range(3)]
        expected = attention.alpha.weight @ torch.stack(rows) + attention.alpha.bias + z[b]
        assert torch.allclose(attention(z)[b], expected)


def test_configuration_refuses_contradictions() -> None:
    with pytest.raises(ConfigError, match="does not divide"):
        parse(NetworkConfig, {"latent": 30, "attention_divisor": 8}, "test")
    with pytest.raises(ConfigError, match="cannot share latent 15"):
        parse(NetworkConfig, {"latent": 15, "attention_divisor": 5, "fusion": "concatenation"}, "test")
    with pytest.raises(ConfigError, match="twice"):
        parse(NetworkConfig, {"modalities": ["rgb", "rgb"]}, "test")
    with pytest.raises(ConfigError, match="did you mean 'latent'"):
        parse(NetworkConfig, {"latnet": 30}, "test")


# -------------------------------------------------------------------------------------------------------------- inputs


@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 60), st.integers(1, 60))
def test_centre_window_has_the_aspect_and_touches_the_border(height: int, width: int, rows: int, columns: int) -> None:
    x, y, w, h = centre_window(height, width, rows, columns)
    assert w == width or h == height
    assert 1 <= w <= width
    assert 1 <= h <= height
    assert 0 <= x <= width - w
    assert abs((width - w) - 2 * x) <= 1
    assert abs((height - h) - 2 * y) <= 1
    assert abs(w * rows - h * columns) <= max(rows, columns)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 20), st.integers(1, 20), st.integers(0, 5))
def test_depth_is_the_nearest_return_and_never_invented(h: int, w: int, rows: int, columns: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    depth = rng.choice(np.array([0.0, np.nan, np.inf, -1.0, 2.5, 7.0, 30.0], np.float32), (h, w))
    x, y, width, height = centre_window(h, w, rows, columns)
    window = depth[y : y + height, x : x + width]
    result = fit_depth(depth, rows, columns)
    assert result.shape == (rows, columns)
    assert result.dtype == np.float32
    valid = window[np.isfinite(window) & (window > 0)]
    assert np.isin(result, [0.0, *valid.tolist()]).all()
    if height >= rows and width >= columns:  # every pixel lies in one cell, whose minimum it bounds
        for r in range(rows):
            for c in range(columns):
                cell = window[
                    r * height // rows : (r + 1) * height // rows, c * width // columns : (c + 1) * width // columns
                ]
                there = cell[np.isfinite(cell) & (cell > 0)]
                assert result[r, c] == (there.min() if there.size else 0.0)


def test_fit_keeps_the_view_of_the_intrinsics() -> None:
    """A point's pixel in the small image is where the small camera projects it."""
    camera = PinholeIntrinsics(160, 96, 120.0, 118.0, 81.0, 46.0)
    fitted = fit_intrinsics(camera, 24, 32)
    assert (fitted.width, fitted.height) == (32, 24)
    rgb = np.zeros((96, 160, 3), np.uint8)
    rgb[40:44, 100:104] = 255
    small = fit_rgb(rgb, 24, 32)[..., 0].astype(float)
    v, u = (np.indices(small.shape) * small).sum(axis=(1, 2)) / small.sum()
    ray = ((101.5 - camera.cx) / camera.fx, (41.5 - camera.cy) / camera.fy)
    assert fitted.fx * ray[0] + fitted.cx == pytest.approx(u, abs=0.05)
    assert fitted.fy * ray[1] + fitted.cy == pytest.approx(v, abs=0.05)


def test_inputs_refuse_wrong_arrays() -> None:
    with pytest.raises(ModelInputError, match="uint8"):
        fit_rgb(np.zeros((4, 4), np.uint8), 2, 2)
    with pytest.raises(ModelInputError, match="float32 metres"):
        fit_depth(np.zeros((4, 4), np.uint16), 2, 2)


@settings(max_examples=20)
@given(st.floats(0.01, 200.0))
def test_depth_channels(metres: float) -> None:
    depth = torch.tensor([[[metres, 0.0]]])
    scaled, valid = normalise_depth(depth, NORMALISATION)[0]
    expected = (np.log(max(metres, 0.05)) - NORMALISATION.depth_log_mean) / NORMALISATION.depth_log_std
    assert scaled[0, 0].item() == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert scaled[0, 1].item() == 0.0
    assert valid[0].tolist() == [1.0, 0.0]


@settings(max_examples=20)
@given(st.floats(0.01, 200.0), st.floats(0.2, 100.0), st.sampled_from(["black", "white"]))
def test_depth_as_a_picture(metres: float, white_m: float, empty: str) -> None:
    """Three equal channels in [-1, 1], brighter with distance, white from `white_m` on."""
    config = with_changes(depth_encoding="image", depth_image_white_m=white_m, depth_image_empty=empty)
    image = normalise_depth_image(torch.tensor([[[metres, 0.0, white_m]]]), NORMALISATION, config)
    assert image.shape == (1, 3, 1, 3)
    for channel in image[0]:
        assert channel[0, 0].item() == pytest.approx(2.0 * min(metres / white_m, 1.0) - 1.0, abs=1e-5)
        assert channel[0, 1].item() == (1.0 if empty == "white" else -1.0)
        assert channel[0, 2].item() == pytest.approx(1.0, abs=1e-6)
