"""The localizer: deterministic, honest about what it lacks, and safe to share between threads."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pictures import CAMERA, NORMALISATION, TINY, card_of, frame_at

from vmloc_ros.assembly import UNKNOWN_CAMERA
from vmloc_ros.checkpoint import save_model
from vmloc_ros.config import ModelConfig, parse
from vmloc_ros.errors import CheckpointError, ConfigError, ModelInputError
from vmloc_ros.geometry import exp_se3, exp_so3, inverse, is_pose, log_so3, quaternion_from_pose
from vmloc_ros.localizer import Localizer, choose_device, load_localizer
from vmloc_ros.networks.config import NetworkConfig
from vmloc_ros.networks.inputs import fit_rgb
from vmloc_ros.networks.vmloc import VMLoc
from vmloc_ros.runtimes.torch import TorchRuntime, poses_and_scatter
from vmloc_ros.types import Frame, Mode, NoPose, PoseEstimate

CONFIG = parse(NetworkConfig, TINY["network"], "test")
ON_CPU = ModelConfig(device="cpu", threads=1)
MODES = {("rgb", "depth"): Mode.RGB_DEPTH, ("rgb",): Mode.RGB_ONLY, ("depth",): Mode.DEPTH_ONLY}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model")
    save_model(path, VMLoc(CONFIG).state_dict(), card_of(CONFIG, NORMALISATION), "float32")
    return path


@pytest.fixture
def localizer(folder: Path) -> Localizer:
    return load_localizer(folder, ON_CPU)


def pose(localizer: Localizer, frame: Frame) -> PoseEstimate:
    answer = localizer.localize(frame)
    assert isinstance(answer, PoseEstimate)
    return answer


@pytest.mark.parametrize("modalities", MODES)
def test_estimates_are_whole(localizer: Localizer, modalities: tuple[str, ...]) -> None:
    localizer.warm_up()
    answer = pose(localizer, frame_at(0.3, 123, modalities))
    assert answer.stamp_ns == 123
    assert answer.mode is MODES[modalities]
    assert is_pose(answer.T_map_camera)
    assert np.array_equal(answer.cov_66, answer.cov_66.T)
    assert np.isfinite(answer.cov_66).all()
    assert np.linalg.eigvalsh(answer.cov_66).min() > 0.0
    assert set(answer.expert_weights) == {*modalities, "prior"}
    assert sum(answer.expert_weights.values()) == pytest.approx(1.0)
    assert 0.0 < answer.health <= 1.0


def test_answers_are_deterministic_and_have_no_memory(folder: Path, localizer: Localizer) -> None:
    frames = [frame_at(share, 5, m) for share in (0.1, 0.9) for m in MODES]
    first = [pose(localizer, frame) for frame in frames]
    localizer.reset()
    backwards = [pose(localizer, frame) for frame in reversed(frames)][::-1]
    loaded_again = [pose(load_localizer(folder, ON_CPU), frame) for frame in frames]
    for one, two, three in zip(first, backwards, loaded_again, strict=True):
        for other in (two, three):
            assert np.array_equal(one.T_map_camera, other.T_map_camera)
            assert np.array_equal(one.cov_66, other.cov_66)
    assert not np.array_equal(first[0].T_map_camera, first[3].T_map_camera)


def test_threads_share_one_localizer(localizer: Localizer) -> None:
    frames = [frame_at(share, 5) for share in np.linspace(0, 1, 16)]
    alone = [pose(localizer, frame).T_map_camera for frame in frames]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda frame: pose(localizer, frame).T_map_camera, frames))
    assert all(np.array_equal(a, b) for a, b in zip(alone, together, strict=True))


def test_an_absent_modality_changes_nothing_else(localizer: Localizer) -> None:
    """Whatever stood in the place of what is absent."""
    sent = frame_at(0.4, 5)
    never = frame_at(0.4, 5, ("rgb",))
    removed = replace(sent, depth_m=None)
    assert np.array_equal(pose(localizer, never).T_map_camera, pose(localizer, removed).T_map_camera)
    assert not np.array_equal(pose(localizer, sent).T_map_camera, pose(localizer, never).T_map_camera)


def test_no_modality_is_no_pose_with_the_reason(localizer: Localizer) -> None:
    answer = localizer.localize(frame_at(0.4, 5, ()))
    assert isinstance(answer, NoPose)
    assert "rgb: not sent" in answer.reason
    assert answer.stamp_ns == 5


def test_a_camera_with_another_view_is_refused(localizer: Localizer) -> None:
    frame = frame_at(0.4, 5)
    narrow = localizer.localize(replace(frame, intrinsics=replace(CAMERA, fx=80.0, fy=80.0)))
    assert isinstance(narrow, NoPose)
    assert "view does not fit" in narrow.reason
    pose(localizer, replace(frame, intrinsics=replace(CAMERA, fx=52.0)))
    pose(localizer, replace(frame, intrinsics=UNKNOWN_CAMERA))


def test_a_wide_image_is_cut_as_in_training(localizer: Localizer) -> None:
    """Columns outside the network's aspect ratio are not looked at."""
    frame = frame_at(0.4, 5, ("rgb",))
    assert frame.rgb is not None
    wide = np.zeros((48, 84, 3), np.uint8)
    wide[:, 10:74] = frame.rgb
    camera = replace(CAMERA, width=84, cx=CAMERA.cx + 10)
    assert np.array_equal(fit_rgb(wide, 27, 36), fit_rgb(frame.rgb, 27, 36))
    answer = pose(localizer, replace(frame, rgb=wide, intrinsics=camera))
    assert np.array_equal(answer.T_map_camera, pose(localizer, frame).T_map_camera)


def test_wrong_arrays_are_no_pose(localizer: Localizer) -> None:
    frame = frame_at(0.4, 5)
    answer = localizer.localize(replace(frame, depth_m=np.zeros((3, 3), np.uint16)))
    assert isinstance(answer, NoPose)
    assert "float32" in answer.reason


@pytest.mark.parametrize("branch", ["position", "rotation"])
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_output_that_is_not_finite_is_no_pose(branch: str, value: float) -> None:
    torch.manual_seed(0)
    network = VMLoc(CONFIG)
    with torch.no_grad():
        getattr(network, branch)[2].bias[0] = value
    from vmloc_ros.localizer import VMLocLocalizer

    card = card_of(CONFIG, NORMALISATION)
    answer = VMLocLocalizer(card, TorchRuntime(network, card.normalisation, 4)).localize(frame_at(0.4, 5))
    assert isinstance(answer, NoPose)
    assert "not finite" in answer.reason


def test_a_mode_without_calibration_is_refused_at_loading(tmp_path: Path) -> None:
    torch.manual_seed(0)
    card = card_of(CONFIG, NORMALISATION)
    card = card.model_copy(update={"calibration": {Mode.RGB_DEPTH: card.calibration[Mode.RGB_DEPTH]}})
    save_model(tmp_path, VMLoc(CONFIG).state_dict(), card, "float32")
    with pytest.raises(CheckpointError, match="no calibration for RGB_ONLY, DEPTH_ONLY"):
        load_localizer(tmp_path, ON_CPU)


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("cpu") == choose_device("auto") == ("cpu", "")
    device, reason = choose_device("cuda:1")
    assert device == "cpu"
    assert "no CUDA device" in reason
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert choose_device("auto") == choose_device("cuda") == ("cuda:0", "")
    assert "only 1 GPUs" in choose_device("cuda:1")[1]
    with pytest.raises(ConfigError, match="tpu"):
        choose_device("tpu")


def test_runtime_refuses_wrong_sizes() -> None:
    runtime = TorchRuntime(VMLoc(CONFIG), NORMALISATION, 4)
    with pytest.raises(ModelInputError, match="takes 24x32"):
        runtime.infer(np.zeros((1, 8, 8, 3), np.uint8), None)
    with pytest.raises(ModelInputError, match="no modality"):
        runtime.infer(None, None)
    with pytest.raises(ModelInputError, match="different frame counts"):
        runtime.infer(np.zeros((1, 24, 32, 3), np.uint8), np.zeros((2, 24, 32), np.float32))


def test_a_batch_gives_the_same_poses_as_single_frames() -> None:
    torch.manual_seed(0)
    runtime = TorchRuntime(VMLoc(CONFIG), NORMALISATION, 4)
    rgb = np.random.default_rng(0).integers(0, 256, (3, 24, 32, 3), dtype=np.uint8)
    batch = runtime.infer(rgb, None)
    for n in range(3):
        alone = runtime.infer(rgb[n : n + 1], None)
        assert np.allclose(alone.T_map_camera[0], batch.T_map_camera[n], atol=1e-5)
        assert np.allclose(alone.scatter_N66[0], batch.scatter_N66[n], atol=1e-6)


def test_scatter_is_of_right_perturbations() -> None:
    """Samples made as T exp(d) in network units give back the second moment of d."""
    rng = np.random.default_rng(0)
    log_quat = np.array([0.3, -0.2, 0.5])
    R = exp_so3(2 * log_quat)
    d = 1e-3 * rng.normal(size=(50, 6))
    position = np.vstack([np.zeros(3), d[:, :3] @ R.T / NORMALISATION.position_scale_m])
    rotations = np.vstack([log_quat, [0.5 * log_so3(R @ exp_so3(x)) for x in d[:, 3:]]])
    poses, scatter = poses_and_scatter(position[:, None], rotations[:, None], NORMALISATION)
    assert np.allclose(poses[0, :3, :3], R)
    assert np.allclose(scatter[0], d.T @ d / 50, atol=1e-9)


@given(st.integers(0, 10_000))
def test_a_mounting_moves_poses_and_their_scatter(seed: int) -> None:
    """As if every sample's pose had been moved by itself: T_camera = T_output T_output_camera."""
    rng = np.random.default_rng(seed)
    M = exp_se3(rng.normal(size=6))
    mounted = NORMALISATION.model_copy(update={"mounting": [*M[:3, 3].tolist(), *quaternion_from_pose(M).tolist()]})
    position, log_quat = 0.3 * rng.normal(size=(5, 2, 3)), 0.2 * rng.normal(size=(5, 2, 3))
    poses, scatter = poses_and_scatter(position, log_quat, mounted)
    for n in range(2):
        samples = [poses_and_scatter(position[[k]], log_quat[[k]], NORMALISATION)[0][n] @ M for k in range(5)]
        assert np.allclose(poses[n], samples[0], atol=1e-9)
        relative = [inverse(samples[0]) @ T for T in samples[1:]]
        offsets = np.array([[*T[:3, 3], *log_so3(T[:3, :3])] for T in relative])
        assert np.allclose(scatter[n], offsets.T @ offsets / 4, atol=1e-9)


def test_without_samples_the_scatter_is_zero() -> None:
    position, log_quat = np.full((1, 2, 3), 0.1), np.full((1, 2, 3), 0.2)
    position[0, 1, 0] = np.nan
    poses, scatter = poses_and_scatter(position, log_quat, NORMALISATION)
    assert is_pose(poses[0])
    assert not scatter[0].any()
    assert np.isnan(poses[1, :3]).all()
    assert np.isnan(scatter[1]).all()
