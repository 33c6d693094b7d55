"""Exported models: ONNX Runtime and PyTorch give the same poses, and an export that does not is never written."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pictures import NORMALISATION, TINY, card_of, frame_at
from scene_pictures import NETWORK, wall_frame, wall_pose

from vmloc_ros.checkpoint import ModelCard, load_card, save_model
from vmloc_ros.commands.export import difference, made_up, run_export, window_means
from vmloc_ros.config import ModelConfig, parse
from vmloc_ros.errors import CheckpointError, ConfigError, ModelInputError, SetupError
from vmloc_ros.geometry import inverse, log_se3
from vmloc_ros.localizer import load_localizer
from vmloc_ros.localizers.inputs import FrameInputs, Pictures
from vmloc_ros.networks.build import build_network
from vmloc_ros.networks.config import NetworkConfig
from vmloc_ros.networks.retrieval_config import RetrievalConfig
from vmloc_ros.networks.scene_coordinates import SceneCoordinates
from vmloc_ros.networks.scene_coordinates_config import SceneCard, SceneCoordinatesConfig, SceneLimits
from vmloc_ros.networks.vmloc import VMLoc
from vmloc_ros.runtimes.graphs import CellsGraph, PosesGraph
from vmloc_ros.runtimes.onnx import load_library, open_exported
from vmloc_ros.scene_cells import scene_targets
from vmloc_ros.types import Frame, Mode, NoPose, PoseEstimate

for library in ("onnx", "onnxruntime"):
    pytest.importorskip(library, reason="ONNX is not installed: pip install -e .[onnx]", exc_type=ImportError)

BY_TORCH = ModelConfig(device="cpu", threads=1)
BY_ONNX = BY_TORCH.model_copy(update={"runtime": "onnx"})
SHOWN = (("rgb", "depth"), ("rgb",), ("depth",))
CONFIG = parse(NetworkConfig, TINY["network"], "test")
SHARES = (0.3, 0.6)


def save(folder: Path, config: NetworkConfig, seed: int = 0) -> Path:
    """A VMLoc that was never trained."""
    torch.manual_seed(seed)
    save_model(folder, VMLoc(config).state_dict(), card_of(config, NORMALISATION), "float32")
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("model"), CONFIG)


@pytest.fixture(scope="module")
def exported(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_export(model, tmp_path_factory.mktemp("exported") / "onnx").folder


def scene_card(config: SceneCoordinatesConfig) -> ModelCard:
    """A card that believes nearly everything."""
    limits = SceneLimits(inlier_m=0.5, least_share=0.2, most_deviation=1e3, most_residual=1e3)
    card = card_of(config, NORMALISATION, margin=0.0)  # type: ignore[arg-type]
    return card.model_copy(update={"scene": SceneCard(limits=dict.fromkeys(map(str, card.calibration), limits))})


def pictures_of(card: ModelCard, frame: Frame) -> Pictures:
    seen = FrameInputs(card).of(frame)
    assert isinstance(seen, Pictures)
    return seen


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that knows two pictures of a wall by heart, with either modality."""
    folder = tmp_path_factory.mktemp("scene")
    config = SceneCoordinatesConfig.model_validate(NETWORK | {"anchors": 2})
    card = scene_card(config)
    torch.manual_seed(0)
    network = SceneCoordinates(config).eval()
    camera = card.camera
    network.camera.copy_(torch.tensor([camera.fx, camera.fy, camera.cx, camera.cy]))
    network.scale.fill_(4.0)
    network.anchors.copy_(torch.tensor([-0.5, 0.0, 3.0, 0.5, 0.0, 3.0]))
    seen = [pictures_of(card, wall_frame(share, 1)) for share in SHARES]
    rgb, depth = (np.concatenate([getattr(one, name) for one in seen]) for name in ("rgb_1HW3", "depth_1HW"))
    poses = np.stack([wall_pose(share) for share in SHARES])
    true_B3C = scene_targets(depth, poses, np.zeros((2, 2), np.int64), camera, config.cell).points_B3C
    graph = CellsGraph(network, card.normalisation)
    tensors = {"rgb": torch.from_numpy(rgb), "depth": torch.from_numpy(depth)}
    optimizer = torch.optim.Adam(network.parameters(), 0.01)
    for step in range(150):
        said = graph({name: tensors[name] for name in SHOWN[step % 3]})
        optimizer.zero_grad()
        deviation = said["variance"].sqrt()
        loss = (said["points"] - true_B3C.transpose(1, 2)).abs() / deviation + deviation.log()
        loss.mean().backward()
        optimizer.step()
    save_model(folder, network.state_dict(), card, "float32")
    return folder


def apart(one: PoseEstimate, other: PoseEstimate) -> float:
    """Metres and radians between two poses, whichever is more."""
    return float(np.abs(log_se3(inverse(one.T_map_camera) @ other.T_map_camera)).max())


def test_an_exported_vmloc_gives_the_same_answers(model: Path, exported: Path) -> None:
    torch_one, onnx_one = load_localizer(model, BY_TORCH), load_localizer(exported, BY_ONNX)
    onnx_one.warm_up()
    loaded_again = load_localizer(exported, BY_ONNX)
    for modalities in SHOWN:
        for share in (0.1, 0.7):
            frame = frame_at(share, 5, modalities)
            one, other = torch_one.localize(frame), onnx_one.localize(frame)
            assert isinstance(one, PoseEstimate)
            assert isinstance(other, PoseEstimate)
            assert apart(one, other) < 1e-4
            assert other.mode is one.mode
            assert other.cov_66 == pytest.approx(one.cov_66, rel=1e-3, abs=1e-6)
            assert other.expert_weights == pytest.approx(one.expert_weights, abs=1e-5)
            again = loaded_again.localize(frame)
            assert isinstance(again, PoseEstimate)
            assert np.array_equal(again.T_map_camera, other.T_map_camera)
            assert np.array_equal(again.cov_66, other.cov_66)


def test_exported_scene_coordinates_give_the_same_answers(scene: Path) -> None:
    folder = run_export(scene).folder
    assert folder == scene / "onnx"
    torch_one, onnx_one = load_localizer(scene, BY_TORCH), load_localizer(folder, BY_ONNX)
    onnx_one.warm_up()
    for modalities in SHOWN:
        for share in SHARES:
            frame = wall_frame(share, 5, modalities)
            one, other = torch_one.localize(frame), onnx_one.localize(frame)
            assert isinstance(one, PoseEstimate), modalities
            assert isinstance(other, PoseEstimate), modalities
            assert apart(one, other) < 1e-4, modalities
            assert other.cov_66 == pytest.approx(one.cov_66, rel=1e-2, abs=1e-6)
            assert other.expert_weights == pytest.approx(one.expert_weights, abs=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {"fusion": "concatenation"},
        {"depth_encoding": "image", "attention": False, "latent_activation": "tanh"},
        {"grid_rows": 1, "grid_columns": 1, "modalities": ["rgb"], "reduced": 4, "hidden": 0},
    ],
    ids=["concatenation", "pictures of depth", "camera alone"],
)
def test_every_kind_of_vmloc_exports(tmp_path: Path, changes: dict[str, object]) -> None:
    """The export itself compares; a card with what it found is the proof."""
    config = parse(NetworkConfig, TINY["network"] | changes, "test")
    written = run_export(save(tmp_path, config))
    assert written.card.exported is not None
    assert set(written.differences) == ({"rgb.onnx"} if "modalities" in changes else set(written.megabytes))
    assert max(written.differences.values()) < 1e-4


def test_frames_together_are_answered_as_one_by_one(exported: Path) -> None:
    card = load_card(exported)
    runtime, pictures = open_exported(exported, card, 1), made_up(card.network)
    together = runtime.infer(pictures["rgb"], pictures["depth"])  # type: ignore[arg-type]
    assert len(together.T_map_camera) == len(pictures["rgb"]) > 1
    for k in range(len(pictures["rgb"])):
        alone = runtime.infer(pictures["rgb"][k : k + 1], pictures["depth"][k : k + 1])  # type: ignore[arg-type]
        assert np.array_equal(alone.T_map_camera[0], together.T_map_camera[k])
        assert np.array_equal(alone.latents_ND[0], together.latents_ND[k])
        assert np.array_equal(alone.scatter_N66[0], together.scatter_N66[k])


def test_an_export_that_says_something_else_is_refused(model: Path, exported: Path) -> None:
    """As when an exporter drops an operation."""
    torch.manual_seed(1)
    other = PosesGraph(VMLoc(CONFIG), NORMALISATION, 6).eval()
    content = (exported / "rgb.onnx").read_bytes()
    with pytest.raises(CheckpointError, match=r"disagree on .* by .* are accepted; nothing was written"):
        difference(content, other, ("rgb",), CONFIG, "other")
    card = load_card(exported).exported
    assert card is not None
    assert all(0.0 <= value < 1e-5 for value in card.difference.values())


def test_a_model_of_one_modality_can_be_written(model: Path, tmp_path: Path) -> None:
    folder = run_export(model, tmp_path / "camera", ["rgb"]).folder
    assert sorted(path.name for path in folder.glob("*.onnx")) == ["rgb.onnx"]
    localizer = load_localizer(folder, BY_ONNX)
    whole = load_localizer(model, BY_TORCH).localize(frame_at(0.4, 5, ("rgb",)))
    answer = localizer.localize(frame_at(0.4, 5))
    assert isinstance(whole, PoseEstimate)
    assert isinstance(answer, PoseEstimate)
    assert answer.mode is Mode.RGB_ONLY
    assert apart(whole, answer) < 1e-4
    assert isinstance(localizer.localize(frame_at(0.4, 5, ("depth",))), NoPose)
    depth = made_up(CONFIG)["depth"]
    with pytest.raises(ModelInputError, match="without a graph for depth: it has rgb.onnx"):
        open_exported(folder, localizer.card, 1).infer(None, depth)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="--modalities lidar: the model has no expert for it"):
        run_export(model, tmp_path / "lidar", ["lidar"])


def test_what_a_folder_holds_and_what_is_asked_for_must_agree(model: Path, exported: Path) -> None:
    with pytest.raises(CheckpointError, match=r"without weights: set model\.runtime to onnx"):
        load_localizer(exported, BY_TORCH)
    with pytest.raises(CheckpointError, match="names no ONNX files; write them with `vmloc export"):
        load_localizer(model, BY_ONNX)
    by_folder = BY_TORCH.model_copy(update={"runtime": "auto"})
    frame = frame_at(0.2, 5)
    for folder, asked in ((model, BY_TORCH), (exported, BY_ONNX)):
        one, other = (load_localizer(folder, config).localize(frame) for config in (asked, by_folder))
        assert isinstance(one, PoseEstimate)
        assert isinstance(other, PoseEstimate)
        assert np.array_equal(one.T_map_camera, other.T_map_camera)
    on_a_gpu = load_localizer(exported, BY_ONNX.model_copy(update={"device": "cuda:0"}))
    assert on_a_gpu.device == "cpu"
    assert "exported models run on the CPU" in on_a_gpu.fallback


def test_a_damaged_export_is_refused(exported: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(exported, folder)
    content = (folder / "depth.onnx").read_bytes()
    (folder / "depth.onnx").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(CheckpointError, match=r"depth\.onnx: its sha256 is not the one in card\.yaml"):
        load_localizer(folder, BY_ONNX)
    (folder / "depth.onnx").unlink()
    with pytest.raises(CheckpointError, match=r"depth\.onnx: cannot be read"):
        load_localizer(folder, BY_ONNX)


def test_only_an_earlier_export_is_replaced(model: Path, exported: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is the model itself"):
        run_export(model, model)
    (tmp_path / "diary.txt").write_text("dear diary", "utf-8")
    with pytest.raises(ConfigError, match="holds something other than an exported model"):
        run_export(model, tmp_path)
    assert (tmp_path / "diary.txt").read_text("utf-8") == "dear diary"
    folder = tmp_path / "again"
    shutil.copytree(exported, folder)
    run_export(model, folder, ["depth"])
    assert sorted(path.name for path in folder.glob("*.onnx")) == ["depth.onnx"]


def test_other_architectures_are_refused_by_name(tmp_path: Path) -> None:
    config = RetrievalConfig(width=32, height=24, images=12)
    save_model(tmp_path, build_network(config).state_dict(), card_of(config, NORMALISATION), "float32")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="retrieval cannot be exported, only vmloc and scene_coordinates"):
        run_export(tmp_path)


def test_a_missing_library_is_named_with_its_cure() -> None:
    with pytest.raises(SetupError, match=r"need onnx_of_tomorrow: pip install 'vmloc_ros\[onnx\]'"):
        load_library("onnx_of_tomorrow")


@given(st.integers(1, 40), st.data())
def test_window_means_are_adaptive_pooling(inputs: int, data: st.DataObject) -> None:
    outputs = data.draw(st.integers(1, inputs))
    row = torch.arange(float(inputs)).square().reshape(1, 1, inputs)
    pooled = torch.nn.functional.adaptive_avg_pool1d(row, outputs)
    assert torch.allclose(window_means(inputs, outputs) @ row.flatten(), pooled.flatten(), rtol=1e-5)
