"""Cambridge Landmarks: the lists' convention, what is missing or wrong, and the way to a model and to a bag."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import cv2
import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pictures import TINY
from scipy.spatial.transform import Rotation
from tiny_datasets import FOCAL, HEIGHT, WIDTH, camera_pose, render

from vmloc_ros.assembly import labelled_frames
from vmloc_ros.bag_recording import BagRecording
from vmloc_ros.checkpoint import load_card
from vmloc_ros.commands.convert import run_convert
from vmloc_ros.commands.evaluate import run_evaluate
from vmloc_ros.commands.train import run_train
from vmloc_ros.config import LocalizerConfig, TopicNames, parse
from vmloc_ros.datasets.cambridge import CambridgeRecording, stamps_of
from vmloc_ros.datasets.cambridge_files import image_size, parse_line, read_focal_lengths
from vmloc_ros.datasets.open import open_recordings
from vmloc_ros.errors import ConfigError, DatasetError
from vmloc_ros.geometry import Array, exp_se3, inverse
from vmloc_ros.images import decode_image
from vmloc_ros.recordings import open_any
from vmloc_ros.types import EventKind

HEADER = "Visual Landmark Dataset V1\nImageFile, Camera Position [X Y Z W P Q R]\n\n"
IMAGE_ONLY = parse(LocalizerConfig, {"input": {"depth_source": "none"}}, "test")
SCENE = {"train": {"seq2": range(1, 41), "seq3": range(41, 71)}, "test": {"seq1": range(5, 65, 3)}}
Sequences = Mapping[str, Mapping[str, range]]


def line_of(name: str, T_map_camera: Array) -> str:
    """As the publishers write: the centre, and the rotation from the map to the camera."""
    x, y, z, w = Rotation.from_matrix(T_map_camera[:3, :3].T).as_quat()
    numbers = [*T_map_camera[:3, 3], w, x, y, z]
    return f"{name} {' '.join(f'{number:.6f}' for number in numbers)}\n"


def write_scene(folder: Path, sequences: Sequences, suffix: str = "png", nvm: bool = True) -> Path:
    """A scene in front of the wavy wall."""
    cameras = []
    for split, parts in sequences.items():
        lines = []
        for sequence, indices in parts.items():
            (folder / sequence).mkdir(parents=True, exist_ok=True)
            for index in indices:
                name = f"{sequence}/frame{index:05d}"
                cv2.imwrite(str(folder / f"{name}.{suffix}"), render(index)[0])
                lines.append(line_of(f"{name}.png", camera_pose(index)))
                cameras.append(f"{name}.jpg\t{FOCAL + index // 3 % 3 - 1} 1 0 0 0 0 0 0 -0.05 0\n")
        (folder / f"dataset_{split}.txt").write_text(HEADER + "".join(lines))
    if nvm:
        text = f"NVM_V3 \n\n{len(cameras)}\n{''.join(cameras)}\n1\n0 0 0 10 20 30 1 0 0 1.5 2.5\n\n0\n"
        (folder / "reconstruction.nvm").write_text(text)
    return folder


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scene(tmp_path_factory.mktemp("cambridge") / "ShopFacade", SCENE)


def edit(path: Path, number: int, text: str) -> None:
    lines = path.read_text().splitlines(keepends=True)
    lines[number - 1] = text + "\n"
    path.write_text("".join(lines))


# ------------------------------------------------------------------------------------------------------------ the lists


def test_a_published_line_is_of_an_upright_camera_that_looks_at_the_shop() -> None:
    """ShopFacade seq1/frame00001, as quoted in vislearn/LessMore issue 2."""
    quat = "0.712261 0.682691 -0.123193 0.106962"
    T_map_camera = parse_line(f"seq1/frame00001.png -0.157816 -10.413150 1.832074 {quat}", "").T_map_camera
    assert T_map_camera is not None
    right, down, forward = T_map_camera[:3, :3].T
    assert down[2] < -0.99  # the map's z is up
    assert abs(forward[2]) < 0.1
    assert forward @ -T_map_camera[:3, 3] > 9.0  # ten metres before the origin, which lies ahead
    assert abs(right[2]) < 0.1


coordinates = st.floats(-500.0, 500.0)
turns = st.floats(-3.1, 3.1)


@given(st.lists(coordinates, min_size=3, max_size=3), st.lists(turns, min_size=3, max_size=3), st.booleans())
def test_a_pose_survives_its_line(position: list[float], turn: list[float], negative: bool) -> None:
    T_map_camera = np.eye(4)
    T_map_camera[:3, :3], T_map_camera[:3, 3] = Rotation.from_rotvec(turn).as_matrix(), position
    name, *numbers = line_of("seq 1/frame00001.png", T_map_camera).rsplit(maxsplit=7)
    if negative:  # q and -q are one rotation
        numbers[3:] = [f"{-float(number)}" for number in numbers[3:]]
    item = parse_line(" ".join([name, *numbers]), "")
    assert item.image == PurePosixPath("seq 1/frame00001.png")
    assert item.T_map_camera is not None
    assert np.allclose(item.T_map_camera, T_map_camera, atol=5e-6)


words = st.one_of(st.floats().map(str), st.sampled_from(["", "nan", "0", "1", "-inf", "1e400", "x", "../a.png", "/a"]))


@given(st.one_of(st.text(), st.lists(words, max_size=9).map(" ".join)))
def test_any_line_is_a_finite_pose_or_a_problem(text: str) -> None:
    item = parse_line(text, "list:4")
    assert (item.T_map_camera is None) == bool(item.problem)
    if item.T_map_camera is not None:
        assert np.isfinite(item.T_map_camera).all()
        assert item.image is not None
        assert ".." not in item.image.parts


def test_stamps_are_of_the_images_numbers() -> None:
    numbered = [PurePosixPath(f"a/frame{n:05d}.png") for n in (1, 2, 7)]
    assert np.diff(stamps_of(numbered)).tolist() == [500_000_000, 2_500_000_000]
    for others in (["a/x1.png", "a/y1.png"], ["a/x1.png", "a/y.png"]):
        assert np.diff(stamps_of([PurePosixPath(name) for name in others])).tolist() == [500_000_000]


# ------------------------------------------------------------------------------------------------------- the recordings


def test_a_scene_is_one_recording_per_list_and_folder(scene: Path) -> None:
    recordings = open_recordings("cambridge", scene)
    assert [recording.name for recording in recordings] == ["train_seq2", "train_seq3", "test_seq1"]
    assert [r.name for r in open_recordings("cambridge", scene, split="test", odometry="none")] == ["test_seq1"]
    assert [r.name for r in open_recordings("cambridge", scene / "seq3")] == ["train_seq3"]


def test_frames_show_the_images_at_their_poses(scene: Path) -> None:
    recording = CambridgeRecording(scene, "test", "seq1")
    frames = list(labelled_frames(recording, IMAGE_ONLY))
    assert recording.skipped == {}
    assert recording.file_count() == len(frames) == len(SCENE["test"]["seq1"])
    assert len(list(recording.events())) == recording.event_count()
    for item, index in zip(frames, SCENE["test"]["seq1"], strict=True):
        assert item.frame.rgb is not None
        assert np.array_equal(item.frame.rgb, render(index)[0][..., ::-1])
        assert np.allclose(item.T_map_camera, camera_pose(index), atol=5e-6)
    card = recording.card()
    assert card["gravity_aligned"] is False
    assert "20 images in reconstruction.nvm" in str(card["focal_length"])
    size_and_view = (recording.intrinsics.width, recording.intrinsics.height, recording.intrinsics.fx)
    assert size_and_view == (WIDTH, HEIGHT, FOCAL)


def test_a_part_of_a_recording(scene: Path) -> None:
    recording = CambridgeRecording(scene, "train", "seq2", start_s=2.0, duration_s=1.5)
    (stamps,) = recording.timeline().values()
    whole = CambridgeRecording(scene, "train", "seq2").timeline()[EventKind.IMAGE]
    assert stamps.tolist() == whole[4:8].tolist()
    with pytest.raises(DatasetError, match="no usable line in the chosen part"):
        CambridgeRecording(scene, "train", "seq2", start_s=1e4)


def test_jpeg_images_stand_in_for_the_listed_png(tmp_path: Path) -> None:
    folder = write_scene(tmp_path, {"train": {"seq1": range(3)}}, suffix="jpg")
    recording = CambridgeRecording(folder, "train", "seq1")
    images = [event.payload for event in recording.events() if event.kind is EventKind.IMAGE]
    assert [image.format for image in images] == ["jpeg"] * 3
    assert decode_image(images[0]).shape == (HEIGHT, WIDTH, 3)
    assert recording.skipped == {}


def test_what_is_wrong_is_counted_and_named_and_the_rest_is_read(tmp_path: Path) -> None:
    folder = write_scene(tmp_path, {"train": {"seq1": range(10), "seq2": range(3)}})
    text = folder / "dataset_train.txt"
    edit(text, 5, "seq1/frame00001.png 1 2 3 nan 0 0 0")
    edit(text, 6, "seq1/frame00002.png 1 2 3 0 0 0 0")
    edit(text, 7, "seq1/frame00003.png 1 2 3 1 0 0")
    edit(text, 8, line_of("seq1/frame00000.png", camera_pose(0)).strip())
    (folder / "seq1" / "frame00005.png").unlink()
    (folder / "seq1" / "frame00006.png").write_bytes(b"")
    cv2.imwrite(str(folder / "seq1" / "frame00007.png"), np.zeros((HEIGHT // 2, WIDTH // 2, 3), np.uint8))
    recording = CambridgeRecording(folder, "train", "seq1")
    for _ in range(2):  # the second walk must not count twice
        frames = list(labelled_frames(recording, IMAGE_ONLY))
        counts = {name.split(" (first")[0]: count for name, count in recording.skipped.items()}
        assert counts == {
            "lines unusable": 3,
            "images listed twice": 1,
            "images missing": 1,
            "images that are neither PNG nor JPEG": 1,
            "images of another size": 1,
        }
    assert len(frames) == 3
    assert recording.file_count() == 10
    assert any("dataset_train.txt:5" in name for name in recording.skipped)
    assert CambridgeRecording(folder, "train", "seq2").skipped == {}


def test_a_list_without_its_header_or_without_lines(tmp_path: Path) -> None:
    folder = write_scene(tmp_path, {"train": {"seq1": range(2)}})
    text = folder / "dataset_train.txt"
    lines = text.read_text().splitlines(keepends=True)
    text.write_text("".join(lines[3:]))
    with pytest.raises(DatasetError, match=r"dataset_train\.txt:1: is a pose"):
        open_recordings("cambridge", folder)
    text.write_text(HEADER)
    with pytest.raises(DatasetError, match="holds no line"):
        open_recordings("cambridge", folder)
    text.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DatasetError, match="cannot be read"):
        open_recordings("cambridge", folder)


def test_focal_lengths(tmp_path: Path) -> None:
    folder = write_scene(tmp_path, {"train": {"seq1": range(3)}}, nvm=False)
    with pytest.raises(DatasetError, match="focal_px"):
        CambridgeRecording(folder, "train", "seq1")
    assert CambridgeRecording(folder, "train", "seq1", focal_px=123).intrinsics.fy == 123.0
    for wrong in (0.0, -5, float("nan"), "wide", True):
        with pytest.raises(DatasetError, match="focal_px must be"):
            CambridgeRecording(folder, "train", "seq1", focal_px=wrong)  # type: ignore[arg-type]
    nvm = folder / "reconstruction.nvm"
    nvm.write_text("NVM_V3\n\n1\nseq9/frame00001.jpg 1670 1 0 0 0 0 0 0 0 0\n")
    with pytest.raises(DatasetError, match="has no image of train_seq1"):
        CambridgeRecording(folder, "train", "seq1")
    for text, place in (
        ("PLY\n1\n", ":1"),
        ("NVM_V3\n\nmany\n", ":3"),
        ("NVM_V3\n\n2\na.jpg 1670 1 0 0 0 0 0 0 0 0\n", ":4"),
        ("NVM_V3\n\n1\na.jpg -5 1 0 0 0 0 0 0 0 0\n", ":4"),
        ("NVM_V3\n\n1\na.jpg 1670 1 0\n", ":4"),
        ("", ":0"),
    ):
        nvm.write_text(text)
        with pytest.raises(DatasetError, match=r"reconstruction\.nvm" + place):
            read_focal_lengths(nvm)


def test_what_cannot_be_opened(scene: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="ShopFacade"):
        open_recordings("cambridge", scene.parent)
    with pytest.raises(DatasetError, match="give a scene"):
        open_recordings("cambridge", tmp_path)
    with pytest.raises(DatasetError, match="split 'both'"):
        open_recordings("cambridge", scene, split="both")
    with pytest.raises(DatasetError, match="no option 'lidar'"):
        open_recordings("cambridge", scene, lidar="none")
    with pytest.raises(DatasetError, match="no odometry"):
        open_recordings("cambridge", scene, odometry="rgbd")
    (scene / "videos").mkdir(exist_ok=True)
    with pytest.raises(DatasetError, match="no image of this folder"):
        open_recordings("cambridge", scene / "videos")
    with pytest.raises(DatasetError, match="names no image"):
        CambridgeRecording(scene, "train", "seq1")


@pytest.mark.parametrize("suffix", ["png", "jpg"])
@pytest.mark.parametrize("size", [(7, 5), (640, 480)])
def test_the_size_is_read_from_the_header(suffix: str, size: tuple[int, int]) -> None:
    _, content = cv2.imencode(f".{suffix}", np.zeros((size[1], size[0], 3), np.uint8))
    assert image_size(content.tobytes()) == size
    for end in range(20):
        assert image_size(content.tobytes()[:end]) is None


@given(st.binary(max_size=60), st.sampled_from([b"", b"\xff\xd8", b"\x89PNG\r\n\x1a\n"]))
def test_any_bytes_have_a_size_or_none(content: bytes, head: bytes) -> None:
    size = image_size(head + content)
    assert size is None or min(size) >= 0


# ------------------------------------------------------------------------------------------------- onwards from a scene


def test_a_scene_is_trained_on_and_measured_with(scene: Path, tmp_path: Path) -> None:
    values: dict[str, Any] = {
        **TINY,
        "network": {**TINY["network"], "modalities": ["rgb"]},
        "localizer": {"input": {"depth_source": "none"}},
        "data": {"format": "cambridge", "options": {"split": "train"}, "validation": ["train_seq3"]},
    }
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(values))
    model = run_train(recipe, scene, tmp_path / "model")
    card = load_card(model)
    assert card.training["recordings"] == ["train_seq2"]
    assert card.frames["gravity_aligned"] == "False"
    assert "non-commercial" in card.licence
    assert card.training_camera.fx == pytest.approx(FOCAL * card.training_camera.width / WIDTH)
    report = run_evaluate(model, scene, "cambridge", options={"split": "test"}, device="cpu")
    assert report["recordings"] == ["test_seq1"]
    errors = report["modes"]["RGB_ONLY"]["errors"]
    assert errors["n"] == len(SCENE["test"]["seq1"])
    assert errors["position_m"]["mean"] < 0.5  # the scene is that wide


def test_a_model_of_a_scene_names_its_recordings(scene: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    data = {"format": "cambridge", "validation": ["train_seq9"]}
    recipe.write_text(yaml.safe_dump({**TINY, "data": data}))
    with pytest.raises(ConfigError, match="train_seq2, train_seq3, test_seq1"):
        run_train(recipe, scene, tmp_path / "model")


def test_a_folder_becomes_a_bag(scene: Path, tmp_path: Path) -> None:
    result = run_convert("cambridge", scene / "seq1", tmp_path / "bag", progress=False)
    count = len(SCENE["test"]["seq1"])
    assert result.written == {"/camera_info": count, "/ground_truth": count, "/image": count, "/tf_static": 1}
    assert result.notes == ["no odometry: localization needs /odom from somewhere else"]
    copy = open_any("bag", tmp_path / "bag", TopicNames(), {})[0]
    assert isinstance(copy, BagRecording)
    assert copy.card()["scene"] == "ShopFacade"
    original = CambridgeRecording(scene, "test", "seq1")
    assert np.allclose(copy.truth().poses_N44, original.truth().poses_N44, atol=1e-9)
    images = [event.payload for event in copy.events() if event.kind is EventKind.IMAGE]
    assert np.array_equal(decode_image(images[1]), render(SCENE["test"]["seq1"][1])[0][..., ::-1])
    with pytest.raises(DatasetError, match="holds 3 recordings"):
        run_convert("cambridge", scene, tmp_path / "other", progress=False)


def test_poses_of_the_base_and_of_the_camera_belong_together(scene: Path) -> None:
    recording = CambridgeRecording(scene, "train", "seq2")
    (mount,) = recording.static_transforms()
    truth = recording.truth()
    T_map_camera = truth.poses_N44[0] @ mount.T_parent_child
    assert np.allclose(T_map_camera, camera_pose(1), atol=5e-6)
    forward = exp_se3([1.0, 0, 0, 0, 0, 0])  # the base's x is where the camera looks
    moved = inverse(T_map_camera) @ truth.poses_N44[0] @ forward @ mount.T_parent_child
    assert np.allclose(moved[:3, 3], [0.0, 0.0, 1.0], atol=1e-9)
