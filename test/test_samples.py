"""The cache of prepared samples, the split, and batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import CAMERA, NORMALISATION, START_NS, build, drive, frame_at, pose_at, tiny_config
from scipy.spatial.transform import Rotation

from vmloc_ros.batches import (
    BatchMaker,
    Part,
    choose_presence,
    measure_normalisation,
    reference_rotation,
    targets,
    turned,
)
from vmloc_ros.config import parse
from vmloc_ros.errors import ConfigError, TrainingError
from vmloc_ros.geometry import exp_so3, log_so3, make_pose
from vmloc_ros.networks.config import NetworkConfig
from vmloc_ros.networks.inputs import fit_depth, fit_rgb, normalise_depth, normalise_rgb
from vmloc_ros.novel_views import ViewMover
from vmloc_ros.samples import DEPTH, Labelled, build_store, open_store
from vmloc_ros.split import block_numbers, positions_of, scored_samples, split
from vmloc_ros.training_config import DataConfig
from vmloc_ros.types import Frame

NETWORK = NetworkConfig()


def test_store_holds_what_it_was_given(tmp_path: Path) -> None:
    frames = [*drive(5, "a"), *drive(4, "b")]
    frames[2] = (frame_at(0.5, frames[2][0].stamp_ns, ("rgb",)), frames[2][1], "a")
    frames[7] = (frame_at(0.5, frames[7][0].stamp_ns, ("depth",)), frames[7][1], "b")
    frames.insert(3, (frame_at(0.5, 1, ()), pose_at(0.5), "a"))  # nothing in it: left out
    store = build_store(tmp_path / "cache", iter(frames), 27, 36, "key")
    frames.pop(3)
    assert len(store) == 9
    assert store.recordings == ["a", "b"]
    for index, (frame, T, name) in enumerate(frames):
        assert store.has_rgb[index] == (frame.rgb is not None)
        assert store.has_depth[index] == (frame.depth_m is not None)
        if frame.rgb is not None:
            assert np.array_equal(store.rgb[index], fit_rgb(frame.rgb, 27, 36))
        if frame.depth_m is not None:
            assert np.array_equal(store.depth_m[index], fit_depth(frame.depth_m, 27, 36).astype(np.float16))
        assert np.array_equal(store.T_map_camera[index], T)
        assert store.name(index) == f"{name}@{frame.stamp_ns}"
    assert store.camera == CAMERA.resized(36, 27)


def test_store_is_whole_or_not_there(tmp_path: Path) -> None:
    def breaking() -> Iterator[Labelled]:
        yield from drive(3)
        raise KeyboardInterrupt

    folder = tmp_path / "cache"
    with pytest.raises(KeyboardInterrupt):
        build_store(folder, breaking(), 27, 36, "key")
    assert not folder.exists()
    build_store(folder, drive(3), 27, 36, "key")
    assert open_store(folder, "key") is not None
    assert open_store(folder, "another") is None
    (folder / DEPTH).write_bytes((folder / DEPTH).read_bytes()[:-1])
    assert open_store(folder, "key") is None
    assert open_store(tmp_path / "nowhere", "key") is None


def test_store_refuses_nothing_and_mixed_cameras(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="no frame"):
        build_store(tmp_path / "cache", iter([]), 27, 36, "key")

    def mixed() -> Iterator[Labelled]:
        for number, (frame, T, name) in enumerate(drive(4)):
            camera = replace(CAMERA, fx=70.0) if number == 3 else CAMERA
            yield Frame(frame.key, camera, frame.rgb, frame.depth_m), T, name

    with pytest.raises(TrainingError, match="one model per camera"):
        build_store(tmp_path / "cache", mixed(), 27, 36, "key")


# --------------------------------------------------------------------------------------------------------------- split


def test_split_by_recording_and_by_seconds(tmp_path: Path) -> None:
    frames = [*drive(10, "a", START_NS), *drive(10, "b", START_NS + 10**12)]
    store = build_store(tmp_path / "cache", iter(frames), 27, 36, "key")
    data = parse(DataConfig, {"validation": ["b"]}, "test")
    train, validation = split(store, data, NETWORK)
    assert train.tolist() == list(range(10))
    assert validation.tolist() == list(range(10, 20))
    data = parse(DataConfig, {"hold_out": ["0.2-0.3"], "discard": ["0.4-0.5"]}, "test")
    train, validation = split(store, data, NETWORK)
    assert validation.tolist() == [2, 3, 12, 13]
    assert set(train) | set(validation) | {4, 5, 14, 15} == set(range(20))
    with pytest.raises(ConfigError, match="no frame lies in the block '7-8'"):
        split(store, parse(DataConfig, {"hold_out": ["7-8"]}, "test"), NETWORK)


def test_split_by_seven_scenes_frame_numbers(tmp_path: Path) -> None:
    numbers = [0, 1, 2, 50, 51, 52, 600, 649, 650]
    frames = [(frame_at(0.1, 10**18 + round(n * 1e9 / 30.0)), pose_at(0.1), "seq-03") for n in numbers]
    store = build_store(tmp_path / "cache", iter(frames), 27, 36, "key")
    data = parse(DataConfig, {"format": "sevenscenes", "hold_out": ["600-649", "51-51"]}, "test")
    assert positions_of(store, data).tolist() == numbers
    train, validation = split(store, data, NETWORK)
    assert [numbers[i] for i in validation] == [51, 600, 649]
    assert [numbers[i] for i in train] == [0, 1, 2, 50, 52, 650]


def test_test_data_is_neither_trained_nor_validated_on(tmp_path: Path) -> None:
    frames = [*drive(10, "a", START_NS), *drive(10, "b", START_NS + 10**12), *drive(10, "c", START_NS + 10**13)]
    store = build_store(tmp_path / "cache", iter(frames), 27, 36, "key")
    data = parse(DataConfig, {"validation": ["b"], "test": ["c"], "test_blocks": ["0.2-0.3"]}, "test")
    train, validation = split(store, data, NETWORK)
    tested = scored_samples(store, data, NETWORK)
    assert tested.tolist() == [2, 3, 12, 13, *range(20, 30)]
    assert sorted([*train, *validation, *tested]) == list(range(30))
    assert not len(scored_samples(store, DataConfig(), NETWORK))
    with pytest.raises(ConfigError, match="c stands in both validation and test"):
        parse(DataConfig, {"validation": ["c"], "test": ["c"]}, "test")
    with pytest.raises(ConfigError, match="no frame lies in the block '7-8'"):
        split(store, parse(DataConfig, {"test_blocks": ["7-8"]}, "test"), NETWORK)


def test_blocks_are_numbered_by_recording_and_stretch(tmp_path: Path) -> None:
    frames = [*drive(10, "a", START_NS), *drive(10, "b", START_NS + 10**12)]
    store = build_store(tmp_path / "cache", iter(frames), 27, 36, "key")
    numbers = block_numbers(store, DataConfig(), ["0.2-0.3", "0.5-0.6"])
    for inside in ([2, 3], [5, 6], [12, 13], [15, 16]):
        assert len(set(numbers[inside])) == 1
    assert len(set(numbers[[2, 5, 12, 15, 0, 10]])) == 6


def test_split_leaves_out_what_the_network_cannot_see(tmp_path: Path) -> None:
    frames = [(frame_at(0.1, n, (m,)), pose_at(0.1), "a") for n, m in enumerate(["rgb", "depth", "rgb"])]
    store = build_store(tmp_path / "cache", iter(frames), 27, 36, "key")
    only_rgb = NETWORK.model_copy(update={"modalities": ["rgb"]})
    assert split(store, DataConfig(), only_rgb)[0].tolist() == [0, 2]
    assert split(store, DataConfig(), NETWORK)[0].tolist() == [0, 1, 2]


# ------------------------------------------------------------------------------------------------------------- batches


def test_batches_are_made_again_from_the_same_seed(tmp_path: Path) -> None:
    config = tiny_config()
    store, normalisation = build(tmp_path / "cache", config)
    maker = BatchMaker(store, config, normalisation)
    samples = np.arange(12)
    one, two, other = maker.make(samples, (1, 2)), maker.make(samples, (1, 2)), maker.make(samples, (1, 3))
    for name, present in one.inputs.items():
        assert torch.equal(present.images_NCHW, two.inputs[name].images_NCHW)
        assert torch.equal(present.rows_N, two.inputs[name].rows_N)
    assert torch.equal(one.log_quat_B3, two.log_quat_B3)
    assert not torch.equal(one.log_quat_B3, other.log_quat_B3)
    assert one.position_B3.shape == (12, 3)
    assert one.inputs["rgb"].images_NCHW.shape[1:] == (3, 24, 32)


def test_without_augmentation_a_batch_is_what_the_runtime_sees(tmp_path: Path) -> None:
    off = {
        "margin": 0.0,
        "brightness": 0.0,
        "contrast": 0.0,
        "colour": 0.0,
        "noise": 0.0,
        "erase_chance": 0.0,
        "depth_noise": 0.0,
        "depth_dropout": 0.0,
    }
    config = tiny_config(augmentation=off, objective={"presence": [1.0, 0.0, 0.0]})
    store, normalisation = build(tmp_path / "cache", config)
    batch = BatchMaker(store, config, normalisation).make(np.arange(4), (0,))
    assert torch.allclose(
        batch.inputs["rgb"].images_NCHW, normalise_rgb(torch.from_numpy(store.rgb[:4].copy()), normalisation), atol=1e-4
    )
    assert torch.allclose(
        batch.inputs["depth"].images_NCHW,
        normalise_depth(torch.from_numpy(store.depth_m[:4].copy()), normalisation),
        atol=1e-4,
    )


def test_a_moved_sample_has_the_pose_that_it_is_shown_from(tmp_path: Path) -> None:
    """The label alone says how the recorded pixels were moved, in the whole batch and in each process's part."""
    quiet = dict.fromkeys(("margin", "brightness", "contrast", "colour", "noise", "erase_chance"), 0.0)
    quiet |= {"depth_noise": 0.0, "depth_dropout": 0.0, "move_chance": 0.7, "move_m": 0.2, "move_deg": 5.0}
    config = tiny_config(augmentation=quiet, objective={"presence": [1.0, 0.0, 0.0]})
    store, normalisation = build(tmp_path / "cache", config)
    batch = BatchMaker(store, config, normalisation).make(np.arange(8), (3,))
    reference = Rotation.from_quat(normalisation.rotation_reference_xyzw)
    still = 0
    for row in range(8):
        label = np.eye(4)
        label[:3, :3] = (reference * Rotation.from_rotvec(2.0 * batch.log_quat_B3[row].numpy())).as_matrix()
        label[:3, 3] = normalisation.position_mean_m + normalisation.position_scale_m * batch.position_B3[row].numpy()
        move = np.linalg.inv(store.T_map_camera[row]) @ label
        still += np.allclose(move, np.eye(4), atol=1e-5)
        shown, seen = ViewMover(store.camera).move(store.rgb[row], store.depth_m[row], move)
        expected = {"rgb": normalise_rgb(torch.from_numpy(shown[None]), normalisation)}
        expected["depth"] = normalise_depth(torch.from_numpy(seen[None]), normalisation)
        for name, images in expected.items():  # a pixel on an edge may fall to either side
            close = torch.isclose(batch.inputs[name].images_NCHW[row], images[0], atol=0.05)
            assert close.float().mean() > 0.97
    assert 0 < still < 8
    parts = [BatchMaker(store, config, normalisation, Part(i, 2)).make(np.arange(8), (3,)) for i in range(2)]
    assert torch.equal(torch.cat([part.position_B3 for part in parts]), batch.position_B3)
    images = torch.cat([part.inputs["rgb"].images_NCHW for part in parts])
    assert torch.equal(images, batch.inputs["rgb"].images_NCHW)


def test_presence_has_the_chances_of_equation_18(tmp_path: Path) -> None:
    config = tiny_config()
    frames = list(drive(30))
    frames[0] = (frame_at(0.0, START_NS, ("rgb",)), frames[0][1], "drive")
    frames[1] = (frame_at(0.0, START_NS + 1, ("depth",)), frames[1][1], "drive")
    store = build_store(tmp_path / "cache", iter(frames), *config.stored_size(), "key")
    generator = np.random.default_rng(0)
    samples = np.tile(np.arange(30), 400)
    shown = choose_presence(store, samples, config, generator)
    whole = samples > 1
    both = (shown["rgb"] & shown["depth"])[whole].mean()
    assert both == pytest.approx(0.6, abs=0.02)
    assert (shown["rgb"] & ~shown["depth"])[whole].mean() == pytest.approx(0.2, abs=0.02)
    assert (shown["rgb"] | shown["depth"]).all()  # nobody loses the only one
    assert not shown["depth"][samples == 0].any()
    assert not shown["rgb"][samples == 1].any()


def test_targets_are_inverted_by_the_runtime(tmp_path: Path) -> None:
    from vmloc_ros.runtimes.torch import poses_and_scatter

    poses = np.stack([pose_at(share) for share in np.linspace(0, 1, 7)])
    position, log_quat = (t.double().numpy()[None] for t in targets(poses, NORMALISATION))
    back, _ = poses_and_scatter(np.repeat(position, 2, 0), np.repeat(log_quat, 2, 0), NORMALISATION)
    assert np.allclose(back, poses, atol=1e-6)


def test_a_shifted_crop_is_a_turned_camera() -> None:
    """A far point seen at the crop's centre lies on the turned camera's axis."""
    fx, fy = 50.0, 55.0
    T = pose_at(0.3)
    turned_T = turned(T[None], np.array([6]), np.array([-4]), fx, fy)[0]
    ray = np.array([6 / fx, -4 / fy, 1.0])
    expected = T[:3, :3] @ ray / np.linalg.norm(ray)
    assert turned_T[:3, 2] == pytest.approx(expected, abs=2e-3)
    assert np.array_equal(turned_T[:3, 3], T[:3, 3])


def test_reference_rotation_keeps_a_full_circle_off_the_border() -> None:
    """Three directions driven long, one bend short: the border falls where the fewest frames are."""
    yaws = np.concatenate([np.full(50, 0.0), np.full(50, 1.57), np.full(50, 3.14), np.linspace(3.14, 6.28, 20)])
    poses = np.stack([make_pose(exp_so3([0, 0, yaw]), [0, 0, 0]) for yaw in yaws])
    from vmloc_ros.geometry import pose_from_quaternion

    R = pose_from_quaternion(np.zeros(3), reference_rotation(poses))[:3, :3]
    angles = np.array([np.linalg.norm(log_so3(R.T @ pose[:3, :3])) for pose in poses])
    assert (angles > 2.8).mean() < 0.1


def test_normalisation_is_of_the_samples(tmp_path: Path) -> None:
    config = tiny_config()
    store, normalisation = build(tmp_path / "cache", config)
    indices = np.arange(len(store))
    rgb = store.rgb[:].reshape(-1, 3) / 255.0
    depth = store.depth_m[:].astype(float)
    assert normalisation.rgb_mean == pytest.approx(rgb.mean(axis=0), abs=1e-3)
    assert normalisation.depth_log_mean == pytest.approx(np.log(depth[depth > 0]).mean(), abs=1e-3)
    position, _ = targets(store.T_map_camera, normalisation)
    assert position.mean(dim=0).abs().max() < 1e-5
    assert position.square().mean().sqrt().item() == pytest.approx(1.0, abs=1e-4)
    assert measure_normalisation(store, indices) == normalisation
