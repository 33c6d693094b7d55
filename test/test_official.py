"""Checkpoints of the authors' code: the converted network computes their formula, and nothing in a file is executed."""

from __future__ import annotations

import os
import re
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from robotcar_folders import write_ins
from scipy.spatial.transform import Rotation
from torch import Tensor
from torch.nn import functional

from vmloc_ros.checkpoint import load_model
from vmloc_ros.commands.import_vmloc import run_import
from vmloc_ros.config import ModelConfig
from vmloc_ros.datasets.robotcar import CAMERA, RobotCarRecording
from vmloc_ros.datasets.robotcar_files import OXFORD_ORIGIN_UTM
from vmloc_ros.datasets.town import SENSOR_EXTRINSICS
from vmloc_ros.errors import CheckpointError, ConfigError, DatasetError
from vmloc_ros.localizer import load_localizer
from vmloc_ros.networks.config import Normalisation
from vmloc_ros.networks.inputs import normalise_depth_image, normalise_rgb
from vmloc_ros.networks.vmloc import Present, VMLoc
from vmloc_ros.official import (
    OfficialCheckpoint,
    check_tensors,
    convert,
    official_network,
    read_checkpoint,
    read_statistics,
    robotcar_convention,
    seven_scenes_convention,
)
from vmloc_ros.runtimes.torch import TorchRuntime
from vmloc_ros.types import PinholeIntrinsics

State = dict[str, Tensor]
POSES = np.array([[0.3, -0.2, 1.1], [1.0, 2.0, 0.5]])
PICTURES = np.array([[0.49, 0.50, 0.56], [0.09, 0.08, 0.11]])
KINECT = PinholeIntrinsics(640, 480, 585.0, 585.0, 320.0, 240.0)
MODALITIES = [("rgb", "depth"), ("rgb",), ("depth",)]

# ------------------------------------------------------------------------------- their network, from its formulas alone


def random_state(latent: int, seed: int = 0) -> State:
    """Their 452 names and shapes, with numbers that keep a signal alive through 34 layers."""
    generator = torch.Generator().manual_seed(seed)
    state: State = {}

    def normal(name: str, *shape: int, deviation: float) -> None:
        state[name] = deviation * torch.randn(shape, generator=generator)

    def batch_norm(name: str, channels: int) -> None:
        state[f"{name}.weight"] = 0.8 + 0.4 * torch.rand(channels, generator=generator)
        state[f"{name}.running_var"] = 0.5 + torch.rand(channels, generator=generator)
        normal(f"{name}.bias", channels, deviation=0.1)
        normal(f"{name}.running_mean", channels, deviation=0.1)
        state[f"{name}.num_batches_tracked"] = torch.tensor(7)

    def convolution(name: str, outputs: int, inputs: int, size: int) -> None:
        normal(name, outputs, inputs, size, size, deviation=(1.0 / (inputs * size * size)) ** 0.5)

    def linear(name: str, outputs: int, inputs: int, deviation: float) -> None:
        normal(f"{name}.weight", outputs, inputs, deviation=deviation)
        normal(f"{name}.bias", outputs, deviation=0.1)

    for encoder in ("image_encoder", "depth_encoders"):
        trunk = f"feature_extractor.{encoder}.feature_extractor"
        convolution(f"{trunk}.0.weight", 64, 3, 7)
        batch_norm(f"{trunk}.1", 64)
        inputs = 64
        for stage, (outputs, blocks) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3)), 4):
            for block in range(blocks):
                name = f"{trunk}.{stage}.{block}"
                convolution(f"{name}.conv1.weight", outputs, inputs, 3)
                batch_norm(f"{name}.bn1", outputs)
                convolution(f"{name}.conv2.weight", outputs, outputs, 3)
                batch_norm(f"{name}.bn2", outputs)
                if outputs != inputs:
                    convolution(f"{name}.downsample.0.weight", outputs, inputs, 1)
                    batch_norm(f"{name}.downsample.1", outputs)
                inputs = outputs
        linear(f"feature_extractor.{encoder}.fc1", latent, 512, 0.003)
        linear(f"feature_extractor.{encoder}.fc2", latent, 512, 0.006)
    for name in ("g", "theta", "phi"):
        linear(f"att.{name}", latent // 8, latent, latent**-0.5)
    linear("att.W", latent, latent // 8, (latent // 8) ** -0.5)
    linear("fc_xyz1", 3, latent, latent**-0.5)
    linear("fc_wpqr1", 3, latent, 0.3 * latent**-0.5)
    return state


def trunk_of(state: State, name: str, x: Tensor) -> Tensor:
    """ResNet-34 with the running statistics, averaged over the picture: (N, 512)."""

    def batch_norm(at: str, x: Tensor) -> Tensor:
        mean, variance = state[f"{at}.running_mean"], state[f"{at}.running_var"]
        return functional.batch_norm(x, mean, variance, state[f"{at}.weight"], state[f"{at}.bias"], False, 0.1, 1e-5)

    x = functional.conv2d(x, state[f"{name}.0.weight"], stride=2, padding=3)
    x = functional.max_pool2d(functional.relu(batch_norm(f"{name}.1", x)), 3, 2, 1)
    for stage, blocks in ((4, 3), (5, 4), (6, 6), (7, 3)):
        for block in range(blocks):
            at, stride = f"{name}.{stage}.{block}", 2 if block == 0 and stage > 4 else 1
            shortcut = x
            if f"{at}.downsample.0.weight" in state:
                shortcut = functional.conv2d(x, state[f"{at}.downsample.0.weight"], stride=stride)
                shortcut = batch_norm(f"{at}.downsample.1", shortcut)
            inner = functional.conv2d(x, state[f"{at}.conv1.weight"], stride=stride, padding=1)
            inner = functional.conv2d(
                functional.relu(batch_norm(f"{at}.bn1", inner)), state[f"{at}.conv2.weight"], padding=1
            )
            x = functional.relu(batch_norm(f"{at}.bn2", inner) + shortcut)
    return x.mean(dim=(2, 3))


def official_latent(state: State, images: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and variance of the product: precisions add up, a standard normal expert among them."""
    precision, weighted = torch.ones(()), torch.zeros(())
    for modality, encoder in (("rgb", "image_encoder"), ("depth", "depth_encoders")):
        if modality in images:
            at = f"feature_extractor.{encoder}"
            features = trunk_of(state, f"{at}.feature_extractor", images[modality])
            mean, raw = (features @ state[f"{at}.fc{k}.weight"].T + state[f"{at}.fc{k}.bias"] for k in (1, 2))
            variance = torch.log(functional.softplus(raw) + 1e-6).exp() + 1e-8
            precision, weighted = precision + 1.0 / variance, weighted + mean / variance
    return weighted / precision, 1.0 / precision


def official_output(state: State, z: Tensor) -> Tensor:
    """tanh, attention with the map softmax(phi theta^T), one linear layer each: (N, 6)."""
    z = torch.tanh(z)
    g, theta, phi = (z @ state[f"att.{name}.weight"].T + state[f"att.{name}.bias"] for name in ("g", "theta", "phi"))
    rows = torch.einsum("nij,nj->ni", torch.softmax(phi[:, :, None] * theta[:, None, :], dim=-1), g)
    z = rows @ state["att.W.weight"].T + state["att.W.bias"] + z
    heads = [z @ state[f"{name}.weight"].T + state[f"{name}.bias"] for name in ("fc_xyz1", "fc_wpqr1")]
    return torch.cat(heads, dim=1)


@pytest.fixture(scope="module")
def state() -> State:
    return random_state(1024)


@pytest.fixture(scope="module")
def converted(state: State) -> tuple[VMLoc, Normalisation]:
    """Our network of that state, as of 7-Scenes."""
    checkpoint = OfficialCheckpoint(state, check_tensors(state, Path("state")), None, None, None)
    tensors, normalisation = convert(checkpoint, seven_scenes_convention(KINECT), POSES, PICTURES)
    network = VMLoc(official_network(checkpoint.latent, 0.255, "white")).eval()
    network.load_state_dict(tensors)
    return network, normalisation


@pytest.fixture(scope="module")
def small() -> State:
    """A state with a small latent space; to be copied before it is changed."""
    return random_state(16)


@pytest.fixture(scope="module")
def file(small: State, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole checkpoint as their training saves it: a module's state, with the versions that a module adds."""
    path = tmp_path_factory.mktemp("official") / "red_kitchen.pth.tar"
    saved = OrderedDict(small)
    saved._metadata = OrderedDict({"": {"version": 1}})  # type: ignore[attr-defined]
    optimiser = {"state": {0: {"step": 3, "exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 5e-5, "params": [0]}]}
    criterion = {"sax": torch.tensor([0.5]), "saq": torch.tensor([-3.5])}
    torch.save(
        {"epoch": 295, "model_state_dict": saved, "optim_state_dict": optimiser, "criterion_state_dict": criterion},
        path,
    )
    return path


def pictures(count: int = 2, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Colour pictures, and depth with returns on both sides of white, and with none."""
    rng = np.random.default_rng(seed)
    rgb = rng.integers(0, 256, (count, 256, 256, 3), dtype=np.uint8)
    depth = rng.choice(np.array([0.0, 0.05, 0.12, 0.3, 4.0], np.float32), (count, 256, 256))
    return rgb, depth


def official_pictures(rgb: np.ndarray, depth: np.ndarray) -> dict[str, Tensor]:
    """What their reader makes of 7-Scenes: everything over 255 mm, and 65535, is white; one normalisation for both."""
    millimetres = np.where(depth > 0.0, np.rint(1000.0 * depth), 65535)
    grey = np.repeat(np.minimum(millimetres, 255)[..., None], 3, axis=-1)
    normal = [(picture / 255.0 - PICTURES[0]) / np.sqrt(PICTURES[1]) for picture in (rgb, grey)]
    return {
        name: torch.from_numpy(picture.transpose(0, 3, 1, 2)).float()
        for name, picture in zip(("rgb", "depth"), normal, strict=True)
    }


# ----------------------------------------------------------------------------------------------------------------- laws


@pytest.mark.parametrize("modalities", MODALITIES)
def test_the_converted_network_computes_the_official_formula(
    state: State, converted: tuple[VMLoc, Normalisation], modalities: tuple[str, ...]
) -> None:
    assert len(state) == 452
    network, normalisation = converted
    rgb, depth = pictures()
    theirs = {name: image for name, image in official_pictures(rgb, depth).items() if name in modalities}
    ours = {"rgb": normalise_rgb(torch.from_numpy(rgb), normalisation)}
    ours["depth"] = normalise_depth_image(torch.from_numpy(depth), normalisation, network.config)
    with torch.inference_mode():
        mean, variance = official_latent(state, theirs)
        posterior = network({name: Present(ours[name], torch.arange(2)) for name in modalities}, 2)
        output = official_output(state, mean).double().numpy()
    assert float(mean.std()) > 0.1  # the comparison says something
    assert float(variance.min()) < 0.5 < float(variance.max())
    assert torch.allclose(posterior.mean_BD, mean, rtol=0.0, atol=1e-6)
    assert torch.allclose(posterior.variance_BD.sqrt() / 1e-3, variance, rtol=0.0, atol=1e-6)
    raw = TorchRuntime(network, normalisation, 8).infer(
        rgb if "rgb" in modalities else None, depth if "depth" in modalities else None
    )
    assert np.allclose(raw.T_map_camera[:, :3, 3], output[:, :3] * POSES[1] + POSES[0], rtol=0.0, atol=1e-5)
    R = Rotation.from_rotvec(2.0 * output[:, 3:]).as_matrix()  # exp of a pure quaternion: half the rotation vector
    assert np.allclose(raw.T_map_camera[:, :3, :3], R, rtol=0.0, atol=1e-5)


def test_samples_scatter_as_in_the_published_code(state: State, converted: tuple[VMLoc, Normalisation]) -> None:
    """Their sampler's deviation is 0.001 times the variance; the regressors have never seen more."""
    network, _ = converted
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        posterior = network({"rgb": Present(image, torch.arange(1))}, 1)
        _, variance = official_latent(state, {"rgb": image})
        moved = posterior.sample(torch.ones(1, 1, 1024)) - posterior.mean_BD
    assert torch.allclose(moved[0], 1e-3 * variance, rtol=0.0, atol=1e-6)


def constant_network(small: State, output_6: np.ndarray) -> State:
    """Their network with an answer that does not depend on what it sees."""
    state = dict(small)
    for name, values in (("fc_xyz1", output_6[:3]), ("fc_wpqr1", output_6[3:])):
        state[f"{name}.weight"] = torch.zeros(3, 16)
        state[f"{name}.bias"] = torch.from_numpy(values).float()
    return state


def test_robotcar_poses_become_those_of_our_reader(small: State, tmp_path: Path) -> None:
    """A network that answers exactly its label, (northing, easting, altitude) and the INS's rotation, is right."""
    stamp, (north, east, down), rpy = 1_403_774_700_000_000, (120.0, 250.0, -0.5), (0.03, -0.02, 2.4)
    write_ins(tmp_path / "drive" / "gps" / "ins.csv", [
        (stamp + k * 20_000, "INS_SOLUTION_GOOD", north, east, down, *rpy) for k in range(-5, 6)
    ])  # fmt: skip
    write_kit(tmp_path)
    (tmp_path / "drive" / "stereo" / "centre").mkdir(parents=True)
    (tmp_path / "drive" / "stereo" / "centre" / f"{stamp}.png").write_bytes(b"")
    (tmp_path / "drive" / "stereo.timestamps").write_text(f"{stamp} 1\n")
    recording = RobotCarRecording(tmp_path / "drive", lidar="none")
    mounting = next(t.T_parent_child for t in recording.static_transforms() if t.child == CAMERA)
    expected = recording.truth().interpolate(stamp * 1000) @ mounting

    easting, northing, altitude = OXFORD_ORIGIN_UTM
    stats = np.array([[northing + 90.0, easting + 200.0, altitude], [110.0, 98.5, 1.4]])
    label = np.array([north + northing, east + easting, -(down - altitude)])
    log_quat = 0.5 * Rotation.from_euler("ZYX", rpy[::-1]).as_rotvec()
    state = constant_network(small, np.concatenate([(label - stats[0]) / stats[1], log_quat]))
    convention = robotcar_convention(tmp_path)
    tensors, normalisation = convert(OfficialCheckpoint(state, 16, None, None, None), convention, stats, PICTURES)
    network = VMLoc(official_network(16, 50.0, "black"))
    network.load_state_dict(tensors)
    raw = TorchRuntime(network, normalisation, 4).infer(pictures(1)[0], None)
    assert np.allclose(raw.T_map_camera[0], expected, atol=1e-4)
    assert np.abs(raw.scatter_N66[0]).max() < 1e-9  # the answer does not depend on the latent


def write_kit(folder: Path) -> None:
    """The development kit's text files, with mountings that turn and move."""
    (folder / "extrinsics").mkdir(parents=True)
    (folder / "models").mkdir()
    for name in ("ins", "stereo"):
        (folder / "extrinsics" / f"{name}.txt").write_text(" ".join(str(v) for v in SENSOR_EXTRINSICS[name]))
    model = "983.0 983.0 643.0 493.0\n0 0 1 0\n1 0 0 0\n0 1 0 0\n0 0 0 1\n"
    (folder / "models" / "stereo_narrow_left.txt").write_text(model)


# ---------------------------------------------------------------------------------------------------------------- files


class RunsCode:
    """Unpickled, it would make a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_file_that_wants_to_run_code_is_refused(tmp_path: Path, legacy: bool) -> None:
    path, marker = tmp_path / "evil.pth.tar", tmp_path / "marker"
    content = {"model_state_dict": {}, "epoch": RunsCode(marker)}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CheckpointError, match=r"evil\.pth\.tar.*nothing else is ever unpickled"):
        read_checkpoint(path)
    assert not marker.exists()
    torch.load(path, weights_only=False)
    assert marker.exists()  # the file was able to


def test_torch_load_stands_in_one_place(project_root: Path) -> None:
    calls = [
        (path.name, call)
        for path in sorted((project_root / "vmloc_ros").rglob("*.py"))
        for call in re.findall(r"torch\.load\(.*", path.read_text(encoding="utf-8"))
    ]
    assert [(name, "weights_only=True" in call) for name, call in calls] == [("official.py", True)]


def without(name: str) -> Callable[[State], object]:
    return lambda state: state.pop(name)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (without("att.W.bias"), r"'att\.W\.bias' is missing, not \(16,\)"),
        (without("feature_extractor.image_encoder.fc1.weight"), "only the authors' mode `vmloc`"),
        (lambda s: s.update({"fc_xyz1.weight": torch.zeros(4, 16)}), r"'fc_xyz1\.weight' is \(4, 16\), not \(3, 16\)"),
        (lambda s: s.update({"fc_wpqr2.bias": torch.zeros(3)}), r"'fc_wpqr2\.bias' has no place"),
        (lambda s: s.update({"att.g.bias": torch.full((2,), torch.nan)}), r"'att\.g\.bias' holds NaN"),
        (lambda s: s.update({"position.0.bias": s.pop("fc_xyz1.bias")}), r"'fc_xyz1\.bias' is missing"),
    ],
)
def test_the_first_wrong_tensor_is_named(small: State, spoil: Callable[[State], object], says: str) -> None:
    state = dict(small)
    assert check_tensors(state, Path("a.pth.tar")) == 16
    spoil(state)
    with pytest.raises(CheckpointError, match=rf"a\.pth\.tar.*{says}"):
        check_tensors(state, Path("a.pth.tar"))


def test_old_files_and_those_of_several_gpus_are_read(small: State, tmp_path: Path) -> None:
    """The format before PyTorch 1.6, and the prefix that DataParallel puts before every name."""
    content = {"model_state_dict": {f"module.{name}": tensor for name, tensor in small.items()}}
    torch.save(content, tmp_path / "old.pth.tar", _use_new_zipfile_serialization=False)
    checkpoint = read_checkpoint(tmp_path / "old.pth.tar")
    assert (checkpoint.latent, checkpoint.epoch, checkpoint.beta, checkpoint.gamma) == (16, None, None, None)
    assert all(torch.equal(checkpoint.tensors[name], tensor) for name, tensor in small.items())


def test_files_that_are_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        read_checkpoint(tmp_path / "missing.pth.tar")
    (tmp_path / "text").write_text("not a checkpoint")
    with pytest.raises(CheckpointError, match="not a checkpoint of tensors alone"):
        read_checkpoint(tmp_path / "text")
    torch.save({"weights": torch.zeros(2)}, tmp_path / "other")
    with pytest.raises(CheckpointError, match="model_state_dict"):
        read_checkpoint(tmp_path / "other")


def test_statistics_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "stats.txt"
    path.write_text("0.5 0.5 0.5\n0.1 0.1 0.1\n")
    assert read_statistics(path, "image statistics").tolist() == [[0.5] * 3, [0.1] * 3]
    for text in ("0.5 0.5 0.5\n", "0 0 0\n1 1 0\n", "0 0 0\n1 1 nan\n", "a b c\n1 1 1\n"):
        path.write_text(text)
        with pytest.raises(DatasetError, match="stats.txt.*image statistics"):
            read_statistics(path, "image statistics")


# -------------------------------------------------------------------------------------------------------------- command


@pytest.fixture(scope="module")
def stats(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("stats")
    np.savetxt(folder / "pose_stats.txt", POSES)
    np.savetxt(folder / "stats.txt", PICTURES)
    return {"pose_stats": folder / "pose_stats.txt", "image_stats": folder / "stats.txt"}


def test_import_writes_a_model_that_asks_for_its_calibration(
    file: Path, stats: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "kitchen"
    run_import(file, out, "sevenscenes", **stats)
    card, tensors = load_model(out)
    VMLoc(card.network).load_state_dict(tensors)
    assert card.name == "red_kitchen"
    assert card.calibration == {}
    assert card.scores == {}
    assert (card.training["epoch"], card.training["beta"], card.training["gamma"]) == (295, 0.5, -3.5)
    assert card.camera.width == card.camera.height == 256
    assert card.camera.fx == pytest.approx(585.0 * 256 / 480)
    assert card.input.depth_source == "depth"
    with pytest.raises(CheckpointError, match=rf"no calibration.*`vmloc calibrate {re.escape(str(out))} SRC --format"):
        load_localizer(out, ModelConfig(device="cpu", threads=1))
    before = (out / "card.yaml").read_bytes()
    with pytest.raises(CheckpointError, match="holds a model already"):
        run_import(file, out, "sevenscenes", **stats)
    assert (out / "card.yaml").read_bytes() == before


def test_import_of_robotcar_knows_the_kit(file: Path, stats: dict[str, Path], tmp_path: Path) -> None:
    write_kit(tmp_path / "kit")
    card = run_import(file, tmp_path / "loop", "robotcar", **stats, sdk=tmp_path / "kit", depth_white_m=50.0, name="a")
    assert card.name == "a"
    assert card.camera.fx == pytest.approx(983.0 * 256 / 960)
    assert card.input.depth_source == "points"
    assert card.network.depth_image_empty == "black"


@pytest.mark.parametrize(
    ("source", "options", "says"),
    [
        ("robotcar", {"depth_white_m": 50.0}, "--sdk is missing"),
        ("robotcar", {"sdk": Path("kit"), "camera": "1 1 1 1 1 1"}, "--camera is for sevenscenes"),
        ("sevenscenes", {"sdk": Path("kit")}, "--sdk is for robotcar"),
        ("sevenscenes", {"camera": "640 480 585"}, "not six numbers"),
        ("sevenscenes", {"camera": "640 480 0 585 1 1"}, "below one pixel"),
        ("sevenscenes", {"depth_white_m": 0.0}, "not a depth"),
    ],
)
def test_import_refuses_contradictory_options(
    stats: dict[str, Path], tmp_path: Path, source: Any, options: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        run_import(tmp_path / "a.pth.tar", tmp_path / "out", source, **stats, **options)
    assert not (tmp_path / "out").exists()


def test_robotcar_asks_for_the_depth_that_is_white(stats: dict[str, Path], tmp_path: Path) -> None:
    write_kit(tmp_path)
    with pytest.raises(ConfigError, match="--depth-white-m is missing"):
        run_import(tmp_path / "a.pth.tar", tmp_path / "out", "robotcar", **stats, sdk=tmp_path)
