"""Laws of the Generative Map: poses and features, the observation and its Jacobian, eq. 3, the search."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from pictures import NORMALISATION, TINY, build
from scipy.spatial.transform import Rotation

from vmloc_ros.batches import BatchMaker, Part
from vmloc_ros.checkpoint import stored
from vmloc_ros.config import parse
from vmloc_ros.errors import ConfigError, ModelInputError
from vmloc_ros.generative_objective import GenerativeObjective, divergence_from_unit
from vmloc_ros.geometry import Array, exp_se3, log_se3
from vmloc_ros.losses import log_quaternion
from vmloc_ros.networks.generative_map import GenerativeMap, matrix_quaternion, rotation_matrix
from vmloc_ros.networks.generative_map_config import GenerativeMapConfig, GenerativeMapObjective
from vmloc_ros.objectives import build_objective
from vmloc_ros.runtimes.generative_map import MapRuntime, Reading, mismatch
from vmloc_ros.runtimes.latent_observation import LatentMap, LatentObservation, difference, moved
from vmloc_ros.training_config import TrainingConfig

SMALL = {
    "architecture": "generative_map",
    "modalities": ["rgb"],
    "width": 32,
    "height": 24,
    "picture_width": 32,
    "picture_height": 16,
    "latent": 16,
    "channels": 16,
    "pose_hidden": [32],
    "position_octaves": 2,
    "places": 30,
}
RECIPE = {**TINY, "network": SMALL, "localizer": {"input": {"depth_source": "none"}}}
FEATURES = st.sampled_from(["plain", "fourier"])
VECTORS = st.tuples(*[st.floats(-1.0, 1.0)] * 3).map(np.array)
POSES = st.builds(lambda t, w: exp_se3(np.concatenate([4.0 * t, 1.5 * w])), VECTORS, VECTORS)


def small_map(features: str = "fourier", seed: int = 0, gain: float = 1.0) -> GenerativeMap:
    """A map with random weights, whose latents are `gain` times as far apart as those of new weights."""
    torch.manual_seed(seed)
    network = GenerativeMap(parse(GenerativeMapConfig, {**SMALL, "pose_features": features}, "test"))
    last = network.pose.layers[-1]
    assert isinstance(last, torch.nn.Linear)
    last.weight.data *= gain
    quats = Rotation.random(30, random_state=seed).as_quat()
    positions = np.random.default_rng(seed).normal(size=(30, 3))
    network.places.copy_(torch.from_numpy(np.concatenate([positions, quats], axis=1).ravel()))
    return network.eval()


def reading_of(mean_ND: Array, variance: float = 0.3) -> Reading:
    return Reading(mean_ND, np.full_like(mean_ND, variance), np.zeros((len(mean_ND), 3, 16, 32), np.float32))


# --------------------------------------------------------------------------------------------------------------- poses


@given(VECTORS, st.floats(0.0, np.pi))
@example(np.array([1.0, 0.0, 0.0]), np.pi)
@example(np.array([0.0, 0.0, 0.0]), 0.0)
def test_rotations_and_quaternions_are_the_known_ones(axis: Array, angle: float) -> None:
    rotvec = axis / max(float(np.linalg.norm(axis)), 1e-9) * angle
    rotation = Rotation.from_rotvec(rotvec)
    R = rotation_matrix(torch.from_numpy(0.5 * rotvec[None]))
    assert np.allclose(R[0].numpy(), rotation.as_matrix(), atol=1e-7)
    quat = matrix_quaternion(torch.from_numpy(rotation.as_matrix()[None]))
    assert abs(float(quat[0].numpy() @ rotation.as_quat())) == pytest.approx(1.0, abs=1e-9)
    again = Rotation.from_rotvec(2.0 * log_quaternion(quat)[0].numpy())
    assert (again.inv() * rotation).magnitude() < 1e-6


@given(FEATURES, POSES, st.integers(0, 3))
def test_double_precision_says_what_the_network_says(features: str, T: Array, seed: int) -> None:
    network = small_map(features, seed)
    own = LatentMap(network, NORMALISATION)
    position_13, R_133 = (torch.from_numpy(values).float() for values in own.network_pose(T[None]))
    with torch.no_grad():
        assert np.allclose(own.expected(T[None]), network.pose(position_13, R_133).numpy(), atol=2e-5)
    with_slopes = own.expected_and_jacobian(T[None])[0]  # in one product with them: summed in another order
    assert np.allclose(own.expected(T[None]), with_slopes, rtol=1e-12, atol=1e-12)


# --------------------------------------------------------------------------------------------------------- observation


@given(FEATURES, POSES, st.integers(0, 3))
def test_the_jacobian_is_that_of_finite_differences(features: str, T: Array, seed: int) -> None:
    own = LatentMap(small_map(features, seed), NORMALISATION)
    _, jacobian_B6D = own.expected_and_jacobian(T[None])
    step = 1e-5
    forwards, backwards = ([T @ exp_se3(sign * step * axis) for axis in np.eye(6)] for sign in (1.0, -1.0))
    slopes_6D = (own.expected(np.array(forwards)) - own.expected(np.array(backwards))) / (2.0 * step)
    assert np.abs(jacobian_B6D[0] - slopes_6D).max() < 1e-4 * np.abs(slopes_6D).max()


@given(FEATURES, POSES)
def test_the_jacobian_is_that_of_autodiff(features: str, T: Array) -> None:
    network = small_map(features)
    own = LatentMap(network, NORMALISATION)
    encoder = network.pose.double()
    position_13, R_133 = (torch.from_numpy(values) for values in own.network_pose(T[None]))
    R_map_camera = torch.from_numpy(T[:3, :3].copy())

    def g(d_6: torch.Tensor) -> torch.Tensor:
        x, y, z = d_6[3:]
        zero = torch.zeros_like(x)
        cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero]).unflatten(0, (3, 3))
        there = position_13 + (R_map_camera @ d_6[:3]) / NORMALISATION.position_scale_m
        result: torch.Tensor = encoder(there, R_133 @ torch.linalg.matrix_exp(cross))[0]
        return result

    jacobian_D6 = torch.func.jacfwd(g)(torch.zeros(6, dtype=torch.float64)).detach().numpy()
    assert np.allclose(own.expected_and_jacobian(T[None])[1][0], jacobian_D6.T, rtol=1e-8, atol=1e-10)


@given(POSES, st.integers(0, 5))
def test_the_information_form_is_the_papers_kalman_filter(T: Array, seed: int) -> None:
    """Eqs. 6-8 in the latent space against 6x6: the same posterior."""
    rng = np.random.default_rng(seed)
    own = LatentMap(small_map(gain=5.0), NORMALISATION)
    mean_D, variance_D = rng.normal(size=16), rng.uniform(0.01, 0.9, 16)
    found = LatentObservation(own, mean_D, variance_D, 2.5).at(T)
    expected_BD, jacobian_B6D = own.expected_and_jacobian(T[None])
    J, R = jacobian_B6D[0].T, np.diag(2.5 * (variance_D + 1.0))
    root = rng.normal(size=(6, 6))
    P = root @ root.T + 0.1 * np.eye(6)
    K = P @ J.T @ np.linalg.inv(J @ P @ J.T + R)
    after = np.linalg.inv(np.linalg.inv(P) + found.information_66)
    assert np.allclose(after, P - K @ J @ P, rtol=1e-8, atol=1e-8 * np.abs(P).max())
    assert np.allclose(after @ found.gradient_6, K @ (mean_D - expected_BD[0]), rtol=1e-8, atol=1e-8)
    assert found.dof == 16
    assert found.cost == pytest.approx((mean_D - expected_BD[0]) @ np.linalg.solve(R, mean_D - expected_BD[0]))


@given(POSES)
def test_the_places_add_what_is_known_of_where_cameras_can_be(T: Array) -> None:
    """A quadratic about the nearest place: nothing at the place itself, and beside it the way back."""
    runtime = MapRuntime(small_map(gain=5.0), NORMALISATION)
    mean_D, variance_D = np.zeros(16), np.full(16, 0.2)
    alone = LatentObservation(runtime.latent_map, mean_D, variance_D, 1.0)
    both = LatentObservation(runtime.latent_map, mean_D, variance_D, 1.0, runtime.places)
    place = runtime.places.nearest(T)
    step_6 = np.linalg.solve(runtime.places.near_66, both.at(T).gradient_6 - alone.at(T).gradient_6)
    assert np.allclose(moved(T[None], step_6[None])[0], place, atol=1e-6)
    assert both.at(place).cost == pytest.approx(alone.at(place).cost)
    assert both.at(T).dof == alone.at(T).dof + 6


@given(POSES, POSES)
def test_a_step_leads_to_where_its_difference_was_taken(T: Array, other: Array) -> None:
    assert np.allclose(moved(T[None], difference(T[None], other[None]))[0], other, atol=1e-9)


# -------------------------------------------------------------------------------------------------------------- search


def test_a_place_is_found_by_its_own_latent() -> None:
    runtime = MapRuntime(small_map(gain=20.0), NORMALISATION)
    places_P44 = runtime.places.poses_P44
    found = runtime.search(reading_of(runtime.latent_map.expected(places_P44)))
    assert np.allclose(found.T_map_camera, places_P44, atol=1e-6)
    assert (np.linalg.eigvalsh(found.scatter_N66) > 0.0).all()


def test_gauss_newton_goes_to_the_pose_between_the_places() -> None:
    runtime = MapRuntime(small_map(gain=200.0), NORMALISATION)
    rng = np.random.default_rng(1)
    offsets_P6 = rng.normal(size=(30, 6)) * ([0.05] * 3 + [0.02] * 3)
    truth_P44 = np.array([T @ exp_se3(d) for T, d in zip(runtime.places.poses_P44, offsets_P6, strict=True)])
    found = runtime.search(reading_of(runtime.latent_map.expected(truth_P44)))
    left_P = [np.linalg.norm(log_se3(np.linalg.inv(a) @ b)) for a, b in zip(found.T_map_camera, truth_P44, strict=True)]
    assert np.median(left_P) < 0.1 * np.median(np.linalg.norm(offsets_P6, axis=1))


def test_frames_do_not_know_of_each_other() -> None:
    runtime = MapRuntime(small_map(gain=20.0), NORMALISATION)
    rgb = np.random.default_rng(0).integers(0, 256, (5, 24, 32, 3), dtype=np.uint8)
    together = runtime.infer(rgb, None)
    for index in range(5):
        alone = runtime.infer(rgb[index : index + 1], None)
        assert np.allclose(alone.T_map_camera[0], together.T_map_camera[index], atol=1e-4)
        assert np.allclose(alone.latents_ND[0], together.latents_ND[index], atol=1e-5)


def test_a_latent_that_is_not_finite_gives_no_pose_and_spoils_no_other() -> None:
    runtime = MapRuntime(small_map(gain=20.0), NORMALISATION)
    means_ND = runtime.latent_map.expected(runtime.places.poses_P44[:3])
    means_ND[1, 4] = np.nan
    found = runtime.search(reading_of(means_ND))
    assert np.isnan(found.T_map_camera[1, :3]).all()
    assert np.allclose(found.T_map_camera[[0, 2]], runtime.places.poses_P44[[0, 2]], atol=1e-6)


def test_wrong_inputs_are_refused() -> None:
    runtime = MapRuntime(small_map(), NORMALISATION)
    rgb = np.zeros((1, 24, 32, 3), np.uint8)
    with pytest.raises(ModelInputError, match="colour picture"):
        runtime.infer(None, np.ones((1, 24, 32), np.float32))
    with pytest.raises(ModelInputError, match="colour picture"):
        runtime.infer(rgb, np.ones((1, 24, 32), np.float32))
    with pytest.raises(ModelInputError, match="24x32"):
        runtime.infer(rgb[:, :20], None)
    with pytest.raises(ModelInputError, match="rigid"):
        runtime.views(np.full((1, 4, 4), np.nan))


# ------------------------------------------------------------------------------------------------------------ pictures


@given(st.floats(0.3, 1.5), st.floats(-0.1, 0.1), st.integers(0, 9))
def test_the_mismatch_does_not_see_the_light(gain: float, offset: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    picture = rng.uniform(0.2, 0.8, (1, 3, 16, 32)).astype(np.float32)
    other = rng.uniform(0.2, 0.8, (1, 3, 16, 32)).astype(np.float32)
    assert mismatch(picture, (gain * picture + offset).astype(np.float32))[0] < 0.1
    assert 1.2 < mismatch(picture, other)[0] < 1.5
    assert mismatch(picture, np.full_like(picture, 0.5))[0] > 1.4  # a blank one fits nothing


# ------------------------------------------------------------------------------------------------------------ training


def test_the_divergence_is_torchs() -> None:
    torch.manual_seed(0)
    mean, variance, expected = torch.randn(5, 16), torch.rand(5, 16) + 0.1, torch.randn(5, 16)
    normal = torch.distributions.Normal
    known = torch.distributions.kl_divergence(normal(mean, variance.sqrt()), normal(expected, 1.0)).sum(dim=1)
    assert torch.allclose(divergence_from_unit(mean, variance, expected), known, rtol=1e-5)
    assert torch.all(divergence_from_unit(mean, torch.ones_like(variance), mean) == 0.0)


def test_what_the_network_keeps_of_the_training_data(tmp_path: Path) -> None:
    config = parse(TrainingConfig, RECIPE, "test")
    store, normalisation = build(tmp_path / "store", config)
    learning = build_objective(config)
    assert isinstance(learning, GenerativeObjective)
    learning.begin(store, np.arange(0, 40, 2), normalisation)  # 20 frames for 30 places: some are there twice
    for name, tensor in learning.network.state_dict().items():
        if name in ("places", "mean_picture"):
            assert torch.equal(stored(tensor, "float16"), tensor), name  # nothing is lost in the file
    places_P44 = MapRuntime(learning.network, normalisation).places.poses_P44
    distance_PN = np.abs(places_P44[:, None] - store.T_map_camera[None, ::2]).max(axis=(2, 3))
    assert distance_PN.min(axis=1).max() < 1e-5
    assert set(distance_PN.argmin(axis=1)) == set(range(20))
    mean = learning.network.mean_picture.reshape(3, 16, 32)
    colours = store.rgb[::2].reshape(-1, 3).mean(axis=0) / 255.0
    assert np.allclose(mean.mean(dim=(1, 2)).numpy(), colours, atol=0.02)


def test_parts_of_a_batch_add_up_to_the_whole(tmp_path: Path) -> None:
    terms = {"view_weight": 0.5, "contrast_weight": 2.0, "jitter_position": [0.01] * 3, "jitter_rotation": [0.1] * 3}
    config = parse(TrainingConfig, {**RECIPE, "objective": {"generative_map": terms}}, "test")
    store, normalisation = build(tmp_path / "store", config)
    learning = build_objective(config).eval()  # batch norm's statistics are the trained ones: rows are independent
    learning.begin(store, np.arange(40), normalisation)
    parts = [Part(), Part(0, 2), Part(1, 2)]
    found = []
    for part in parts:
        batch = BatchMaker(store, config, normalisation, part).make(np.arange(7), (1, 2))
        torch.manual_seed(5)
        found.append(torch.stack(learning(batch)))
    assert torch.allclose(found[0], found[1] + found[2], rtol=1e-4)
    found[0][0].backward()
    assert all(parameter.grad is not None for parameter in learning.parameters())


def test_the_weights_say_what_counts(tmp_path: Path) -> None:
    """The bound is eq. 2 whatever is minimised; the loss is its negative for the paper's weights."""
    config = parse(TrainingConfig, RECIPE, "test")
    store, normalisation = build(tmp_path / "store", config)
    network = small_map()
    batch = BatchMaker(store, config, normalisation).make(np.arange(6), (1, 2))
    results = {}
    for name, objective in {
        "paper": GenerativeMapObjective(),
        "more": GenerativeMapObjective(kl_weight=3.0),
        "sharper": GenerativeMapObjective(log_variance=-4.0),
    }.items():
        torch.manual_seed(5)
        results[name] = [value.item() for value in GenerativeObjective(network, objective).eval()(batch)]
    assert results["paper"][0] == pytest.approx(-results["paper"][1])
    assert results["more"][1] == pytest.approx(results["paper"][1])
    assert results["more"][0] > results["paper"][0]  # by twice the divergence, which is never negative
    assert results["sharper"][1] < results["paper"][1]  # of random weights: errors count more


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"modalities": ["rgb", "depth"]}, "camera alone"),
        ({"picture_width": 40}, "multiple of 16"),
        ({"pose_hidden": [0]}, "at least one unit"),
        ({"channels": 20}, "multiple of 8"),
        ({"latent_size": 4}, "latent"),
    ],
)
def test_configurations_that_contradict_themselves_are_refused(changes: dict[str, object], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        parse(GenerativeMapConfig, {**SMALL, **changes}, "test")
