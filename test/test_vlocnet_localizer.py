"""VLocNet on a robot and in validation: what is remembered, what a gap does, and how sure the odometry is."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from pictures import START_NS, STEP_NS, build, card_of, drive, frame_at
from test_vlocnet import NETWORK, pair_config

from vmloc_ros.checkpoint import ModelCard, save_model
from vmloc_ros.config import ModelConfig
from vmloc_ros.errors import ConfigError, ModelInputError, TrainingError
from vmloc_ros.geometry import Array, adjoint, exp_se3, inverse
from vmloc_ros.localizer import load_localizer
from vmloc_ros.localizers.base import Remembering
from vmloc_ros.localizers.vlocnet import VLocNetLocalizer
from vmloc_ros.networks.config import Normalisation
from vmloc_ros.networks.vlocnet import VLocNet
from vmloc_ros.networks.vlocnet_config import MotionCard, VLocNetConfig
from vmloc_ros.runtimes.vlocnet import VLocNetRuntime
from vmloc_ros.samples import SampleStore
from vmloc_ros.training import train
from vmloc_ros.types import CameraPrior, Frame, Mode, NoPose, PoseEstimate
from vmloc_ros.validation import CHAIN, MotionErrors, motion_card, validate, validate_motions

CONFIG = VLocNetConfig.model_validate(NETWORK)
ON_CPU = ModelConfig(device="cpu", threads=1)
FRAMES = [frame for frame, _, _ in drive(12)]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[SampleStore, Normalisation]:
    folder: Path = tmp_path_factory.mktemp("store") / "cache"
    return build(folder, pair_config(), 12)


@pytest.fixture(scope="module")
def network(world: tuple[SampleStore, Normalisation]) -> VLocNet:
    torch.manual_seed(0)
    result = VLocNet(CONFIG)
    result.max_gap_s.fill_(0.15)
    result.motion_deviation.fill_(0.1)
    return result


@pytest.fixture(scope="module")
def card(world: tuple[SampleStore, Normalisation]) -> ModelCard:
    motion = MotionCard(max_gap_s=0.15, cov_66=(0.01 * np.eye(6)).tolist())
    return card_of(CONFIG, world[1]).model_copy(update={"motion": motion})  # type: ignore[arg-type]


@pytest.fixture
def runtime(network: VLocNet, world: tuple[SampleStore, Normalisation]) -> VLocNetRuntime:
    return VLocNetRuntime(network, world[1])


def localizer(
    card: ModelCard, runtime: VLocNetRuntime, previous: Literal["filter", "own", "none"] = "own"
) -> VLocNetLocalizer:
    return VLocNetLocalizer(card, runtime, previous)


def pose(item: VLocNetLocalizer, frame: Frame, prior: CameraPrior | None = None) -> PoseEstimate:
    answer = item.localize(frame, prior)
    assert isinstance(answer, PoseEstimate)
    return answer


def at(frame: Frame, stamp_ns: int) -> Frame:
    return replace(frame, key=replace(frame.key, stamp_ns=stamp_ns))


def prior_of(stamp_ns: int, T_map_camera: Array, T_odom_camera: Array) -> CameraPrior:
    return CameraPrior(stamp_ns, T_map_camera, 0.01 * np.eye(6), T_odom_camera)


# ----------------------------------------------------------------------------------------------------------- localizer


def test_the_same_frames_give_the_same_answers_and_a_motion_from_the_second_on(
    card: ModelCard, runtime: VLocNetRuntime
) -> None:
    item = localizer(card, runtime)
    item.warm_up()
    first = [pose(item, frame) for frame in FRAMES[:4]]
    item.reset()
    again = [pose(item, frame) for frame in FRAMES[:4]]
    for one, other in zip(first, again, strict=True):
        assert np.array_equal(one.T_map_camera, other.T_map_camera)
        assert (one.motion is None) == (other.motion is None)
    assert first[0].motion is None
    for before, now in itertools.pairwise(first):
        assert now.motion is not None
        assert (now.motion.begin_ns, now.motion.end_ns) == (before.stamp_ns, now.stamp_ns)
    assert item.counters() == {"motion.gaps": 0}


@pytest.mark.parametrize("step_ns", [2 * STEP_NS, -STEP_NS, 0])
def test_after_a_gap_a_frame_is_a_first_one_and_the_gap_is_counted(
    card: ModelCard, runtime: VLocNetRuntime, step_ns: int
) -> None:
    item, fresh = localizer(card, runtime), localizer(card, runtime)
    pose(item, FRAMES[0])
    late = at(FRAMES[5], FRAMES[0].stamp_ns + step_ns)
    answer = pose(item, late)
    assert answer.motion is None
    assert np.array_equal(answer.T_map_camera, pose(fresh, late).T_map_camera)
    assert item.counters() == {"motion.gaps": 1}
    assert pose(item, at(FRAMES[6], late.stamp_ns + STEP_NS)).motion is not None
    item.reset()
    pose(item, FRAMES[0])
    assert item.counters() == {"motion.gaps": 1}  # a reset is no gap


def test_a_frame_without_a_picture_is_passed_over(card: ModelCard, runtime: VLocNetRuntime) -> None:
    wide = card.model_copy(update={"motion": MotionCard(max_gap_s=0.25, cov_66=np.eye(6).tolist())})
    item = localizer(wide, runtime)
    pose(item, FRAMES[0])
    assert isinstance(item.localize(frame_at(0.5, START_NS + STEP_NS, ("depth",))), NoPose)
    motion = pose(item, FRAMES[2]).motion
    assert motion is not None
    assert motion.begin_ns == FRAMES[0].stamp_ns


def test_the_previous_pose_is_the_own_answer_the_filter_s_or_none(card: ModelCard, runtime: VLocNetRuntime) -> None:
    own, none, told = (localizer(card, runtime, kind) for kind in ("own", "none", "filter"))  # type: ignore[arg-type]
    alone = localizer(card, runtime, "none")
    for item in (own, none):
        pose(item, FRAMES[0])
    assert not np.allclose(pose(own, FRAMES[1]).T_map_camera, pose(none, FRAMES[1]).T_map_camera)
    alone.reset()
    assert np.array_equal(pose(alone, FRAMES[1]).T_map_camera, pose(localizer(card, runtime), FRAMES[1]).T_map_camera)
    T_before, T_odom_before = exp_se3([1.0, 0.2, 0.0, 0.0, 0.3, 0.0]), exp_se3([5.0, 1.0, 2.0, 0.1, 0.0, 0.3])
    step = exp_se3([0.3, 0.0, 0.1, 0.0, 0.05, 0.0])
    pose(told, FRAMES[0], prior_of(START_NS, exp_se3([9.0, 0.0, 0.0, 0.0, 0.0, 0.0]), T_odom_before))
    answer = pose(told, FRAMES[1], prior_of(FRAMES[1].stamp_ns, T_before @ step, T_odom_before @ step))
    seen = runtime.see(told._inputs.of(FRAMES[1]).rgb_1HW3)  # type: ignore[union-attr, arg-type]
    assert np.allclose(answer.T_map_camera, runtime.poses(seen, T_before[None]).T_map_camera[0], atol=1e-5)
    told.reset()
    pose(told, FRAMES[0])
    first = pose(alone, FRAMES[1])  # no prior, nothing told
    assert np.array_equal(pose(told, FRAMES[1]).T_map_camera, first.T_map_camera)


def test_a_fork_has_a_memory_of_its_own(card: ModelCard, runtime: VLocNetRuntime) -> None:
    item = localizer(card, runtime)
    assert isinstance(item, Remembering)
    pose(item, FRAMES[0])
    fork = item.fork()
    assert pose(fork, FRAMES[1]).motion is None
    assert pose(item, FRAMES[1]).motion is not None


def test_a_model_without_motion_cannot_be_the_robot_s_odometry(
    card: ModelCard, network: VLocNet, tmp_path: Path
) -> None:
    save_model(tmp_path, network.state_dict(), card, "float32")
    loaded = load_localizer(tmp_path, ON_CPU.model_copy(update={"odometry": "network"}))
    assert isinstance(loaded, VLocNetLocalizer)
    assert pose(loaded, FRAMES[0]).motion is None
    assert pose(loaded, FRAMES[1]).motion is not None
    save_model(tmp_path, network.state_dict(), card.model_copy(update={"motion": None}), "float32")
    with pytest.raises(ConfigError, match=r"model\.odometry.*vlocnet"):
        load_localizer(tmp_path, ON_CPU.model_copy(update={"odometry": "network"}))
    assert isinstance(load_localizer(tmp_path, ON_CPU), VLocNetLocalizer)


def test_what_the_network_cannot_take_is_refused(runtime: VLocNetRuntime) -> None:
    with pytest.raises(ModelInputError, match="picture"):
        runtime.infer(None, np.ones((1, 24, 32), np.float32))
    with pytest.raises(ModelInputError, match="24x32"):
        runtime.see(np.zeros((1, 32, 24, 3), np.uint8))


# ---------------------------------------------------------------------------------------------------------- validation


def test_validation_answers_after_the_own_answer_to_the_frame_before_whatever_else_is_asked(
    runtime: VLocNetRuntime, world: tuple[SampleStore, Normalisation]
) -> None:
    store, _ = world
    whole = validate(runtime, CONFIG, store, np.arange(12))[Mode.RGB_ONLY]
    some = validate(runtime, CONFIG, store, np.array([7, 0, 3]))[Mode.RGB_ONLY]
    assert np.allclose(whole.T_hat_N44[[7, 0, 3]], some.T_hat_N44, atol=1e-5)
    pictures = np.array(store.rgb[:2, 1:25, 2:34])
    alone = runtime.infer(pictures, None).T_map_camera
    assert np.allclose(whole.T_hat_N44[0], alone[0], atol=1e-5)
    assert np.allclose(whole.T_hat_N44[1], runtime.poses(runtime.see(pictures[1:]), alone[:1]).T_map_camera, atol=1e-5)


def test_motions_are_those_between_neighbours_in_a_drive(
    runtime: VLocNetRuntime, world: tuple[SampleStore, Normalisation]
) -> None:
    store, _ = world
    found = validate_motions(runtime, CONFIG, store, np.array([5, 4, 0, 9]))
    assert found.samples_N.tolist() == [4, 5, 9]
    assert found.follows_N.tolist() == [False, True, False]
    expected = np.linalg.inv(store.T_map_camera[[3, 4, 8]]) @ store.T_map_camera[[4, 5, 9]]
    assert np.allclose(found.T_true_N44, expected, atol=1e-9)


def test_an_answer_that_is_not_finite_is_named(world: tuple[SampleStore, Normalisation]) -> None:
    store, normalisation = world
    broken = VLocNet(CONFIG)
    broken.max_gap_s.fill_(0.15)
    torch.nn.init.constant_(broken.motion_head.position.bias, math.nan)
    runtime = VLocNetRuntime(broken, normalisation)
    assert np.isfinite(validate(runtime, CONFIG, store, np.arange(12))[Mode.RGB_ONLY].T_hat_N44).all()
    with pytest.raises(TrainingError, match="drive@"):
        validate_motions(runtime, CONFIG, store, np.arange(12))
    torch.nn.init.constant_(broken.head.position.bias, math.nan)
    with pytest.raises(TrainingError, match="drive@"):
        validate(VLocNetRuntime(broken, normalisation), CONFIG, store, np.arange(12))


def made_errors(count: int, bias: float, seed: int = 0) -> MotionErrors:
    """A straight drive whose increments are told with noise, and with a bias forwards."""
    generator = np.random.default_rng(seed)
    true = np.tile(exp_se3([0.0, 0.0, 0.8, 0.0, 0.0, 0.0]), (count, 1, 1))
    noise = 0.01 * generator.standard_normal((count, 6))
    noise[:, 2] += bias
    hat = np.array([T @ exp_se3(-d) for T, d in zip(true, noise, strict=True)])
    return MotionErrors(np.arange(count), hat, true, np.arange(count) > 0)


def test_the_covariance_of_an_increment_covers_chained_ones() -> None:
    fair = motion_card(made_errors(2000, 0.0), 0.15)
    assert np.allclose(fair.cov_66, 1e-4 * fair.inflation * np.eye(6), atol=2e-5)
    assert fair.inflation < 1.3
    biased = made_errors(2000, 0.03)
    card = motion_card(biased, 0.15)
    assert card.inflation > 1.5
    total, back = np.zeros((6, 6)), adjoint(inverse(exp_se3([0.0, 0.0, 0.8, 0.0, 0.0, 0.0])))
    for _ in range(CHAIN):
        total = back @ total @ back.T + np.array(card.cov_66)
    assert np.sqrt(total[2, 2]) * 3.0 > CHAIN * 0.03


def test_too_few_pairs_are_refused_and_lonely_ones_are_taken_to_err_alike() -> None:
    with pytest.raises(TrainingError, match="validation"):
        motion_card(made_errors(5, 0.0), 0.15)
    lonely = replace(made_errors(40, 0.0), follows_N=np.zeros(40, dtype=bool))
    assert motion_card(lonely, 0.15).inflation == CHAIN


@pytest.mark.parametrize("optimisation", ["joint", "alternating"])
def test_training_resumes_exactly_and_keeps_the_units_of_motions(
    world: tuple[SampleStore, Normalisation], tmp_path: Path, optimisation: str
) -> None:
    store, normalisation = world
    config = pair_config(objective={"optimisation": optimisation}).model_copy(update={"storage": "float32"})
    optimizer = config.optimizer.model_copy(update={"epochs": 2, "validate_every": 1, "batch_size": 4})
    config = config.model_copy(update={"optimizer": optimizer})
    samples, judged = np.arange(10), np.arange(6, 12)
    whole = train(config, store, samples, judged, normalisation, tmp_path / "whole", "key")

    class StopError(Exception):
        pass

    def stop_in_the_second_epoch(step: int, row: object) -> None:
        if step == 4:
            raise StopError

    with pytest.raises(StopError):
        train(config, store, samples, judged, normalisation, tmp_path / "cut", "key", tell=stop_in_the_second_epoch)
    resumed = train(config, store, samples, judged, normalisation, tmp_path / "cut", "key", resume=True)
    assert whole.tensors.keys() == resumed.tensors.keys()
    assert all(torch.equal(whole.tensors[name], resumed.tensors[name]) for name in whole.tensors)
    assert float(whole.tensors["max_gap_s"]) == pytest.approx(0.125)
