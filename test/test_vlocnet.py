"""VLocNet's network and objective: what depends on what, and the laws of its losses."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pictures import build, tiny_config
from safetensors.torch import save_file
from scipy.spatial.transform import Rotation
from torch import Tensor
from torchvision import models

from vmloc_ros.batches import BatchMaker, Part, targets
from vmloc_ros.clips import Clips
from vmloc_ros.comparison import load_plan
from vmloc_ros.config import parse
from vmloc_ros.errors import CheckpointError, ConfigError, TrainingError
from vmloc_ros.networks.build import build_network
from vmloc_ros.networks.config import Normalisation
from vmloc_ros.networks.vlocnet import VLocNet, correlation
from vmloc_ros.networks.vlocnet_config import VLocNetConfig
from vmloc_ros.runtimes.vlocnet import motion_poses, motion_vectors
from vmloc_ros.samples import SampleStore
from vmloc_ros.training_config import ClipConfig, TrainingConfig, load_training_config
from vmloc_ros.trunk_weights import load_trunk_weights
from vmloc_ros.vlocnet_objective import (
    GAP_TOLERANCE,
    GLOBAL,
    ODOMETRY,
    VLocNetLearning,
    camera_motion,
    conjugate,
    exponential,
    pairs_of,
    product,
    rotate,
    training_pairs,
)

MODELS = Path(__file__).resolve().parents[1] / "models"
NETWORK: dict[str, Any] = {
    "architecture": "vlocnet",
    "modalities": ["rgb"],
    "width": 32,
    "height": 24,
    "channels": [4, 6, 8],
    "shared_stages": 1,
    "reduced": 0,
    "grid_rows": 2,
    "grid_columns": 2,
    "hidden": 12,
    "dropout": 0.0,
}

RESNET: dict[str, Any] = {
    "architecture": "vlocnet",
    "trunk": "resnet18",
    "width": 32,
    "height": 24,
    "grid_rows": 1,
    "grid_columns": 1,
    "reduced": 0,
    "hidden": 8,
}


def pair_config(network: dict[str, Any] | None = None, objective: dict[str, Any] | None = None) -> TrainingConfig:
    """The tiny VLocNet of these tests."""
    values = tiny_config().model_dump(exclude={"network", "objective"})
    return TrainingConfig.model_validate(
        values
        | {"network": {**NETWORK, **(network or {})}}
        | {"objective": {"clip": {"frames": 2}, "vlocnet": objective or {}}}
    )


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[SampleStore, Normalisation]:
    """A drive of 24 frames."""
    folder: Path = tmp_path_factory.mktemp("store") / "cache"
    return build(folder, pair_config(), 24)


def learning(world: tuple[SampleStore, Normalisation], config: TrainingConfig) -> VLocNetLearning:
    torch.manual_seed(0)
    network = build_network(config.network)
    assert isinstance(network, VLocNet)
    result = VLocNetLearning(network, config.objective)
    result.begin(world[0], np.arange(len(world[0])), world[1])
    return result


def maker(world: tuple[SampleStore, Normalisation], config: TrainingConfig, part: Part | None = None) -> BatchMaker:
    store, normalisation = world
    clips = Clips(store, np.arange(len(store)), config.objective.clip)
    return BatchMaker(store, config, normalisation, part, clips)


def pictures(count: int, seed: int = 0) -> Tensor:
    return torch.randn((count, 3, 24, 32), generator=torch.Generator().manual_seed(seed))


# ------------------------------------------------------------------------------------------------------------- network


def test_an_unknown_previous_pose_does_not_matter_and_a_known_one_does() -> None:
    torch.manual_seed(1)
    network = VLocNet(VLocNetConfig.model_validate(NETWORK)).eval()
    features = network.see(pictures(2)).pose_NCHW
    none = network.latent(features, None)
    unknown = torch.tensor([[3.0, -2.0, 1.0, 0.3, 0.2, 0.1, 0.0]]).repeat(2, 1)
    assert torch.equal(none, network.latent(features, unknown))
    garbage = torch.full((2, 7), math.nan)
    garbage[:, 6] = 0.0
    assert torch.equal(none, network.latent(features, garbage))
    known = unknown.clone()
    known[0, 6] = 1.0
    changed = network.latent(features, known)
    assert not torch.allclose(changed[0], none[0])
    assert torch.allclose(changed[1], none[1], atol=1e-6)


def test_the_odometry_looks_at_both_pictures_and_the_pose_only_at_one() -> None:
    torch.manual_seed(1)
    network = VLocNet(VLocNetConfig.model_validate(NETWORK)).eval()
    one, other, third = (network.see(pictures(1, seed)) for seed in range(3))
    assert one.before_NCHW is not None
    assert other.before_NCHW is not None
    assert other.now_NCHW is not None
    assert third.now_NCHW is not None
    motion = network.motion_latent(one.before_NCHW, other.now_NCHW)
    assert not torch.allclose(motion, network.motion_latent(other.before_NCHW, other.now_NCHW))
    assert not torch.allclose(motion, network.motion_latent(one.before_NCHW, third.now_NCHW))


@pytest.mark.parametrize("shared", [0, 1, 2])
def test_the_later_frame_shares_its_first_stages_with_the_global_stream_and_the_earlier_none(shared: int) -> None:
    network = VLocNet(VLocNetConfig.model_validate(NETWORK | {"shared_stages": shared}))
    seen = network.see(pictures(2))
    assert seen.now_NCHW is not None
    assert seen.before_NCHW is not None
    seen.now_NCHW.sum().backward()
    touched = [all(p.grad is not None for p in stage.parameters()) for stage in network.stages]
    assert touched == [k < shared for k in range(2)]
    network.zero_grad()
    network.see(pictures(2)).before_NCHW.sum().backward()  # type: ignore[union-attr]
    assert all(p.grad is None for stage in network.stages for p in stage.parameters())
    assert all(p.grad is not None for stage in network.before for p in stage.parameters())


def test_both_streams_of_the_odometry_start_alike() -> None:
    network = VLocNet(VLocNetConfig.model_validate(NETWORK)).eval()
    seen = network.see(pictures(2))
    assert seen.now_NCHW is not None
    assert seen.before_NCHW is not None
    assert torch.equal(seen.now_NCHW, seen.before_NCHW)


@pytest.mark.parametrize("trunk", ["resnet18", "resnet50"])
def test_a_resnet_is_fused_before_its_last_stage(trunk: str) -> None:
    config = VLocNetConfig.model_validate(
        {"trunk": trunk, "width": 64, "height": 48, "grid_rows": 1, "grid_columns": 1, "reduced": 0, "hidden": 8}
        | {"shared_stages": 3, "previous_channels": 4}
    )
    network = VLocNet(config).eval()
    with torch.inference_mode():
        seen = network.see(torch.zeros(1, 3, 48, 64))
        assert seen.pose_NCHW.shape[2:] == (3, 4)
        assert seen.before_NCHW is not None
        assert seen.now_NCHW is not None
        assert seen.before_NCHW.shape == seen.now_NCHW.shape == seen.pose_NCHW.shape
        position, _ = network.pose(network.latent(seen.pose_NCHW, torch.ones(1, 7)))
        translation, _ = network.motion(network.motion_latent(seen.before_NCHW, seen.now_NCHW))
    assert position.shape == translation.shape == (1, 3)
    assert not any(isinstance(module, torch.nn.ReLU) for module in network.modules())


def test_without_odometry_there_is_no_stream_for_it() -> None:
    network = VLocNet(VLocNetConfig.model_validate(NETWORK | {"odometry": False, "previous_pose": False}))
    assert not [name for name, _ in network.named_parameters() if "before" in name or "pair" in name or "fuse" in name]


def test_correlation_is_highest_where_a_shifted_map_fits() -> None:
    before = torch.randn((1, 32, 9, 11), generator=torch.Generator().manual_seed(3))
    now = torch.roll(before, (-1, 2), dims=(2, 3))  # now[y, x] = before[y + 1, x - 2]
    inner = correlation(before, now, 2)[0, :, 3:-3, 3:-3].mean(dim=(1, 2))
    assert int(inner.argmax()) == (1 + 2) * 5 + (-2 + 2)


def test_imagenet_s_weights_go_to_all_streams_and_widened_units_keep_their_further_channels(tmp_path: Path) -> None:
    torch.manual_seed(3)
    resnet = models.resnet18(weights=None).eval()
    save_file({name: tensor.contiguous() for name, tensor in resnet.state_dict().items()}, tmp_path / "w.safetensors")
    network = VLocNet(
        VLocNetConfig.model_validate({**RESNET, "activation": "relu", "shared_stages": 2, "previous_channels": 5})
    ).eval()
    random_7 = network.last[0].conv1.weight[:, 256:].clone()  # type: ignore[index]
    load_trunk_weights(network, str(tmp_path / "w.safetensors"))
    image = pictures(2)
    with torch.inference_mode():
        stem = resnet.maxpool(resnet.relu(resnet.bn1(resnet.conv1(image))))
        expected = resnet.layer3(resnet.layer2(resnet.layer1(stem)))
        seen = network.see(image)
    for features in seen:
        assert features is not None
        assert torch.allclose(features, expected, atol=1e-5)
    for stage, extra in ((network.last, 5), (network.pair[0], 256)):
        kernel = stage[0].conv1.weight  # type: ignore[index]
        assert kernel.shape[1] == 256 + extra
        assert torch.equal(kernel[:, :256], resnet.layer4[0].conv1.weight)
    assert torch.equal(network.last[0].conv1.weight[:, 256:], random_7)  # type: ignore[index]
    other = VLocNet(VLocNetConfig.model_validate(RESNET | {"trunk": "resnet34"}))
    with pytest.raises(CheckpointError, match=r"layer1\.2"):
        load_trunk_weights(other, str(tmp_path / "w.safetensors"))


@pytest.mark.parametrize(
    "wrong",
    [
        {"joined_stages": 3},
        {"shared_stages": 3},
        {"modalities": ["depth"]},
        {"odometry_channels": [4, 4]},
        {"channels": [4, 8]},
    ],
)
def test_networks_that_cannot_be_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        VLocNetConfig.model_validate(NETWORK | wrong)


# ----------------------------------------------------------------------------------------------------------- objective


def test_single_frames_and_a_network_that_could_not_start_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"clip\.frames"):
        parse(TrainingConfig, {"network": NETWORK, "localizer": {"input": {"depth_source": "none"}}}, "test")
    with pytest.raises(ValueError, match="could not start"):
        pair_config(objective={"previous_absent": 0.0, "earlier_weight": 0.0})
    pair_config({"previous_pose": False}, {"previous_absent": 0.0, "earlier_weight": 0.0})


def test_the_ablations_are_the_papers_table_five_and_change_one_thing_at_a_time() -> None:
    plan = load_plan(MODELS / "ablation_vlocnet.yaml")
    found = {run.variant: run.config for run in plan}
    told = {}
    for name, config in found.items():
        assert isinstance(config.network, VLocNetConfig)
        own = config.objective.vlocnet
        told[name] = (config.network.activation, config.network.previous_pose, own.geometric_consistency, own.weights)
    assert told["m1"] == ("relu", False, False, "fixed")
    assert told["m2"] == ("elu", False, False, "fixed")
    assert told["m3"] == ("elu", True, True, "fixed")
    assert told["m4"] == told["multitask"] == ("elu", True, True, "learned")
    assert [getattr(found[f"m{k}"].network, "odometry", None) for k in (1, 2, 3, 4)] == [False] * 4
    assert told["inconsistent"] == ("elu", True, False, "learned")
    assert told["no_previous"] == ("elu", False, True, "learned")
    assert {found[name].objective.vlocnet.optimisation for name in ("multitask", "joint")} == {"alternating", "joint"}


def test_the_paper_s_recipe_is_the_paper_s() -> None:
    config = load_training_config(MODELS / "vlocnet_paper.yaml")
    network = config.network
    assert isinstance(network, VLocNetConfig)
    assert (network.trunk, network.activation, network.width, network.height) == ("resnet50", "elu", 224, 224)
    assert config.stored_size() == (256, 256)
    assert (network.shared_stages, network.joined_after, network.hidden, network.dropout) == (3, 4, 1024, 0.2)
    assert (config.optimizer.algorithm, config.optimizer.batch_size) == ("adam", 32)
    assert config.optimizer.peak_learning_rate == pytest.approx(1e-4)


vectors = st.lists(st.floats(-0.8, 0.8), min_size=3, max_size=3).map(np.array)


@given(vectors, vectors)
def test_quaternions_are_those_of_scipy(one: np.ndarray, other: np.ndarray) -> None:
    a, b = Rotation.from_rotvec(2 * one), Rotation.from_rotvec(2 * other)
    qa, qb = (exponential(torch.from_numpy(v)) for v in (one, other))
    assert np.allclose(Rotation.from_quat(product(qa, qb)).as_matrix(), (a * b).as_matrix(), atol=1e-9)
    assert np.allclose(rotate(conjugate(qa), torch.from_numpy(other)), a.inv().apply(other), atol=1e-9)


@given(st.lists(vectors, min_size=5, max_size=5))
def test_a_camera_s_motion_is_in_the_earlier_camera_s_axes(numbers: list[np.ndarray]) -> None:
    """Against matrices, with poses in network units about any reference rotation."""
    reference, first, second = (Rotation.from_rotvec(2 * v) for v in numbers[:3])
    poses = np.tile(np.eye(4), (2, 1, 1))
    poses[:, :3, :3] = [(reference * first).as_matrix(), (reference * second).as_matrix()]
    poses[:, :3, 3] = 3.0 * np.array(numbers[3:])
    expected = motion_vectors(poses[:1], poses[1:])[0]
    log = [torch.from_numpy(0.5 * item.as_rotvec())[None] for item in (first, second)]
    place = [torch.from_numpy(pose[:3, 3])[None] for pose in poses]
    way, turn = camera_motion(place[0], log[0], place[1], log[1], torch.from_numpy(reference.as_quat()))
    assert np.allclose(way[0], expected[:3], atol=1e-9)
    assert np.allclose(exponential(turn[0]), exponential(torch.from_numpy(expected[3:])), atol=1e-9)
    assert np.allclose(poses[:1] @ motion_poses(expected[None]), poses[1:], atol=1e-9)


class _Oracle(VLocNetLearning):
    """Its network answers what it is told."""

    def answer(self, position: Tensor, log_quat: Tensor) -> None:
        self.network.pose = lambda latent, keep=None: (position, log_quat)  # type: ignore[method-assign, assignment]


@pytest.mark.parametrize("consistent", [True, False])
def test_the_loss_is_zero_at_the_truth_and_consistency_forgives_a_common_shift(
    world: tuple[SampleStore, Normalisation], consistent: bool
) -> None:
    config = pair_config(objective={"weights": "fixed", "geometric_consistency": consistent})
    batch = maker(world, config).make(np.arange(1, 9), (1,))
    torch.manual_seed(0)
    objective = _Oracle(VLocNet(config.network), config.objective)  # type: ignore[arg-type]
    objective.begin(world[0], np.arange(24), world[1])
    pairs = pairs_of(batch)
    objective.answer(pairs.position_N3, pairs.log_quat_N3)
    assert objective(batch, task=GLOBAL)[0].item() == pytest.approx(0.0, abs=1e-4)
    shift = torch.tensor([0.3, 0.4, 0.0])
    objective.answer(pairs.position_N3 + shift, pairs.log_quat_N3)
    assert objective(batch, task=GLOBAL)[0].item() == pytest.approx(0.5, abs=1e-4)
    apart = shift * torch.cat([torch.zeros(8), torch.ones(8)])[:, None]
    objective.answer(pairs.position_N3 + apart, pairs.log_quat_N3)
    assert objective(batch, task=GLOBAL)[0].item() == pytest.approx(0.25 + 0.5 * consistent, abs=1e-3)


def test_parts_of_a_batch_add_up_to_the_whole(world: tuple[SampleStore, Normalisation]) -> None:
    config = pair_config({"dropout": 0.2})
    objective = learning(world, config)
    for module in objective.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()  # its statistics are made common elsewhere
    samples = np.arange(1, 12)
    losses = []
    for parts in (1, 3):
        total = 0.0
        for number in range(parts):
            torch.manual_seed(7)
            batch = maker(world, config, Part(number, parts)).make(samples, (4,))
            total += objective(batch)[0].item()
        losses.append(total)
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_alternating_tasks_change_their_own_parameters_and_share_the_first_stages(
    world: tuple[SampleStore, Normalisation],
) -> None:
    config = pair_config()
    objective = learning(world, config)
    batch = maker(world, config).make(np.arange(1, 9), (1,))
    tasks = objective.tasks()
    shared = {id(p) for p in objective.network.stages[0].parameters()}
    ids = {name: {id(p) for p in some} for name, some in tasks.items()}
    assert ids[GLOBAL] & ids[ODOMETRY] == shared
    assert ids[GLOBAL] | ids[ODOMETRY] == {id(p) for p in objective.parameters()}
    for name in (GLOBAL, ODOMETRY):
        objective.zero_grad()
        objective(batch, task=name)[0].backward()
        assert {id(p) for p in objective.parameters() if p.grad is not None} == ids[name]
    together = objective(batch)[0]
    assert list(learning(world, pair_config(objective={"optimisation": "joint"})).tasks()) == [""]
    assert math.isfinite(together.item())


def test_learned_weights_are_stationary_at_the_logarithm_of_their_errors(
    world: tuple[SampleStore, Normalisation],
) -> None:
    """d/ds (L e^-s + s) = 0 where s = log L: the weight of a term is the inverse of what it still errs."""
    objective = learning(world, pair_config())
    x, q = torch.tensor([0.2, 0.6]), torch.tensor([0.02, 0.02])
    scales = torch.tensor([math.log(0.4), math.log(0.02)], requires_grad=True)
    objective._weighted(x, q, scales).mean().backward()
    assert scales.grad is not None
    assert torch.allclose(scales.grad, torch.zeros(2), atol=1e-6)


def test_the_network_learns_the_units_of_its_motions_from_the_training_pairs(
    world: tuple[SampleStore, Normalisation],
) -> None:
    store, _ = world
    config = pair_config()
    network = learning(world, config).network
    earlier, later = training_pairs(store, np.arange(24), config.objective.clip)
    assert (later - earlier == 1).all()
    assert len(later) == 23
    motions = motion_vectors(store.T_map_camera[earlier], store.T_map_camera[later])
    assert np.allclose(network.motion_mean, motions.mean(axis=0), atol=1e-6)
    assert float(network.max_gap_s) == pytest.approx(GAP_TOLERANCE * 0.1)
    wide = config.objective.clip.model_copy(update={"max_spacing": 3})
    assert set((np.subtract(*training_pairs(store, np.arange(24), wide)[::-1])).tolist()) == {1, 2, 3}


@pytest.mark.parametrize("source", ["truth", "own"])
def test_the_earlier_frame_is_answered_without_a_previous_pose(
    world: tuple[SampleStore, Normalisation], source: str
) -> None:
    config = pair_config(objective={"previous": source, "previous_noise_m": 0.0, "previous_noise_deg": 0.0})
    objective = learning(world, config)
    pairs = pairs_of(maker(world, config).make(np.arange(1, 9), (1,)))
    features = objective.network.global_features(pairs.images_NCHW)[1]
    given_N7 = objective._previous(pairs, features)
    assert (given_N7[:8] == 0.0).all()
    if source == "truth":
        assert torch.equal(given_N7[8:, :3], pairs.position_N3[:8])
        position, log_quat = targets(world[0].T_map_camera[:1], world[1])
        assert position.shape == log_quat.shape == (1, 3)
    else:
        assert not torch.allclose(given_N7[8:, :3], pairs.position_N3[:8])
        assert not given_N7.requires_grad


def test_rounded_labels_and_clips_that_are_no_pairs_are_refused(world: tuple[SampleStore, Normalisation]) -> None:
    config = pair_config()
    batch = maker(world, config).make(np.arange(1, 9), (1,))
    with pytest.raises(TrainingError, match="32-true"):
        pairs_of(batch._replace(position_B3=batch.position_B3.bfloat16()))
    triples = config.objective.model_copy(update={"clip": ClipConfig(frames=3)})
    with pytest.raises(TrainingError, match="set it to 2"):
        VLocNetLearning(VLocNet(config.network), triples)  # type: ignore[arg-type]


def test_a_pair_that_lacks_a_picture_is_left_out(world: tuple[SampleStore, Normalisation]) -> None:
    config = pair_config()
    batch = maker(world, config).make(np.arange(1, 5), (1,))
    present = batch.inputs["rgb"]
    rows = torch.tensor([0, 1, 2, 4, 5, 6, 7])  # the second pair's later frame has none
    some = batch._replace(inputs={"rgb": present._replace(images_NCHW=present.images_NCHW[rows], rows_N=rows)})
    pairs = pairs_of(some)
    assert pairs.which_B.tolist() == [0, 2, 3]
    assert pairs.of == 4
    whole = pairs_of(batch)
    kept = [0, 2, 3, 4, 6, 7]
    assert torch.equal(pairs.images_NCHW, whole.images_NCHW[kept])
    assert torch.equal(pairs.position_N3, whole.position_N3[kept])
