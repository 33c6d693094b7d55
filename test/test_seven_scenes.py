"""7-Scenes: the layout, both invalid depth values, what is missing, and the odometry."""

from __future__ import annotations

import itertools
from pathlib import Path

import cv2
import numpy as np
import pytest
from tiny_datasets import FOCAL, HEIGHT, WIDTH, camera_pose, render, write_sequence

from vmloc_ros.assembly import labelled_frames
from vmloc_ros.config import LocalizerConfig, parse
from vmloc_ros.datasets.open import open_recordings
from vmloc_ros.datasets.seven_scenes import T_BASE_CAMERA, SevenScenesRecording, parse_frames, stamp_of
from vmloc_ros.errors import DatasetError
from vmloc_ros.geometry import Array, inverse, log_so3
from vmloc_ros.images import decode_depth, decode_image
from vmloc_ros.types import Event, EventKind


def of_kind(events: list[Event], kind: EventKind) -> list[Event]:
    return [event for event in events if event.kind is kind]


def motions(events: list[Event]) -> list[Array]:
    poses = [event.payload.T_odom_base for event in of_kind(events, EventKind.ODOMETRY)]
    return [inverse(one) @ other for one, other in itertools.pairwise(poses)]


@pytest.fixture(scope="module")
def sequence(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sequence(tmp_path_factory.mktemp("scene"), range(8))


def test_the_stream_of_a_whole_sequence(sequence: Path) -> None:
    recording = SevenScenesRecording(sequence)
    events = list(recording.events())
    assert recording.skipped == {}
    assert len(events) == recording.event_count() == 32
    assert [event.stamp_ns for event in events] == sorted(event.stamp_ns for event in events)
    assert {event.stamp_ns for event in events} == {stamp_of(index) for index in range(8)}
    assert stamp_of(3) == 10**18 + 10**8
    info = of_kind(events, EventKind.CAMERA_INFO)[0].payload
    assert (info.width, info.height, info.K_33[0, 0], info.P_34[1, 2]) == (WIDTH, HEIGHT, FOCAL, HEIGHT / 2)
    assert decode_image(of_kind(events, EventKind.IMAGE)[0].payload).shape == (HEIGHT, WIDTH, 3)
    assert 1.0 < decode_depth(of_kind(events, EventKind.DEPTH)[0].payload).mean() < 3.0
    assert recording.card()["gravity_aligned"] is False


def test_poses_are_of_the_camera_turned_to_x_forward(sequence: Path) -> None:
    recording = SevenScenesRecording(sequence)
    (mount,) = recording.static_transforms()
    assert (mount.parent, mount.child) == ("base_link", "camera_optical")
    assert np.allclose(mount.T_parent_child[:3, 2], [1, 0, 0])  # the optical axis looks forward
    assert np.allclose(mount.T_parent_child[:3, 1], [0, 0, -1])  # image rows go down
    truth = recording.truth()
    assert np.allclose(truth.interpolate(stamp_of(5)) @ mount.T_parent_child, camera_pose(5), atol=1e-7)


def test_odometry_follows_the_camera(sequence: Path) -> None:
    recording = SevenScenesRecording(sequence)
    found = motions(list(recording.events()))
    truth = [T_BASE_CAMERA @ inverse(camera_pose(i)) @ camera_pose(i + 1) @ inverse(T_BASE_CAMERA) for i in range(7)]
    for T, G in zip(found, truth, strict=True):
        error = inverse(G) @ T
        assert np.linalg.norm(error[:3, 3]) < 0.25 * np.linalg.norm(G[:3, 3])
        assert np.degrees(np.linalg.norm(log_so3(error[:3, :3]))) < 0.2
    again = motions(list(recording.events()))
    assert np.array_equal(found, again)


def test_a_walk_that_was_broken_off_changes_nothing(sequence: Path) -> None:
    recording = SevenScenesRecording(sequence)
    stream = recording.events()
    for _ in range(14):
        next(stream)
    assert np.array_equal(motions(list(recording.events())), motions(list(SevenScenesRecording(sequence).events())))


def test_a_gap_in_the_frames_is_a_gap_in_the_odometry(tmp_path: Path) -> None:
    sequence = write_sequence(tmp_path, [0, 1, 2, 60, 61])
    recording = SevenScenesRecording(sequence)
    events = list(recording.events())
    steps = motions(events)
    assert np.allclose(steps[2], np.eye(4), atol=1e-12)  # nobody knows what happened; the silence says so
    assert np.linalg.norm(steps[3][:3, 3]) > 0.003
    stamps = [event.stamp_ns for event in of_kind(events, EventKind.ODOMETRY)]
    assert stamps[3] - stamps[2] == stamp_of(60) - stamp_of(2)
    assert not recording.truth().covers((stamps[2] + stamps[3]) // 2)


def test_both_values_of_invalid_depth(tmp_path: Path) -> None:
    sequence = write_sequence(tmp_path, range(2))
    path = sequence / "frame-000000.depth.png"
    depth_mm = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    depth_mm[:10], depth_mm[10:20], depth_mm[20, 0] = 0, 65535, 300
    cv2.imwrite(str(path), depth_mm)
    recording = SevenScenesRecording(sequence, odometry="none")
    payload = of_kind(list(recording.events()), EventKind.DEPTH)[0].payload
    stored = np.frombuffer(payload.data, "<u2").reshape(HEIGHT, WIDTH)
    assert (stored[:20] == 0).all()
    assert (stored[20:] > 0).all()
    depth_m = decode_depth(payload)
    assert depth_m[20, 0] == pytest.approx(0.3)  # 16 bits, not 8
    assert depth_m[20:].max() < 4.0


def test_missing_and_broken_files_are_counted_and_the_rest_is_read(tmp_path: Path) -> None:
    sequence = write_sequence(tmp_path, range(8))
    (sequence / "frame-000001.color.png").unlink()
    (sequence / "frame-000002.depth.png").unlink()
    (sequence / "frame-000003.pose.txt").unlink()
    (sequence / "frame-000004.pose.txt").write_text("1 0 0 0\n0 1 0 0\n0 0 -1.#IND 0\n0 0 0 1\n")
    whole = (sequence / "frame-000005.depth.png").read_bytes()
    (sequence / "frame-000005.depth.png").write_bytes(whole[: len(whole) // 2])
    (sequence / "frame-000006.color.png").write_bytes(b"")
    (sequence / "frame-000007.pose.txt").write_text("0 0 0 0\n" * 4)
    recording = SevenScenesRecording(sequence)
    for _ in range(2):  # the second walk must not count twice
        events = list(recording.events())
        counts = {name.split(" (first")[0]: count for name, count in recording.skipped.items()}
        assert counts["color files missing"] == 1
        assert counts["depth files missing"] == 1
        assert counts["pose files missing"] == 1
        assert counts["poses unusable"] == 2
        assert counts["color files empty"] == 1
    assert any("frame-000003" in name for name in recording.skipped)
    assert len(of_kind(events, EventKind.IMAGE)) == 6
    assert len(recording.truth()) == 5
    assert len(of_kind(events, EventKind.DEPTH)) >= 6


@pytest.mark.parametrize(
    ("text", "ranges"), [("", []), ("0-149", [(0, 149)]), (" 3, 10 - 12 ,7", [(3, 3), (10, 12), (7, 7)])]
)
def test_ranges_of_frames(text: str, ranges: list[tuple[int, int]]) -> None:
    assert parse_frames(text) == ranges


@pytest.mark.parametrize("text", ["a", "5-3", "1-2-3", "-4", "1:5"])
def test_what_is_no_range(text: str) -> None:
    with pytest.raises(DatasetError, match="0-149"):
        parse_frames(text)


def test_a_part_of_a_sequence(sequence: Path) -> None:
    recording = SevenScenesRecording(sequence, frames="0-2,5", odometry="none")
    assert len({event.stamp_ns for event in recording.events()}) == 4
    assert len(recording.truth()) == 4
    late = SevenScenesRecording(sequence, odometry="none", start_s=0.1, duration_s=0.1)
    assert {event.stamp_ns for event in late.events()} == {stamp_of(i) for i in (3, 4, 5, 6)}
    with pytest.raises(DatasetError, match="0-7"):
        SevenScenesRecording(sequence, frames="100-200")
    with pytest.raises(DatasetError, match="no frame between"):
        SevenScenesRecording(sequence, start_s=100.0)


def test_errors_name_the_folder_and_what_to_do(tmp_path: Path, sequence: Path) -> None:
    with pytest.raises(DatasetError, match="not a folder"):
        SevenScenesRecording(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match=r"frame-000000\.color\.png"):
        SevenScenesRecording(tmp_path / "empty")
    with pytest.raises(DatasetError, match="rgbd, none"):
        SevenScenesRecording(sequence, odometry="vo")
    other = write_sequence(tmp_path / "small", range(1))
    (tmp_path / "small" / "camera-intrinsics.txt").unlink()
    with pytest.raises(DatasetError, match=r"160x120; .*camera-intrinsics\.txt"):
        SevenScenesRecording(other)
    (tmp_path / "small" / "camera-intrinsics.txt").write_text("585 0 320\n")
    with pytest.raises(DatasetError, match="camera matrix"):
        SevenScenesRecording(other)


def test_the_official_layout_with_its_splits(tmp_path: Path) -> None:
    scene = tmp_path / "stairs"
    for number in (1, 2, 4):
        write_sequence(tmp_path / f"part{number}", range(2)).rename(tmp_path / f"part{number}" / f"seq-{number:02d}")
        scene.mkdir(exist_ok=True)
        (tmp_path / f"part{number}" / f"seq-{number:02d}").rename(scene / f"seq-{number:02d}")
    (tmp_path / "part1" / "camera-intrinsics.txt").rename(scene / "camera-intrinsics.txt")
    (scene / "TrainSplit.txt").write_text("sequence2\r\nsequence4 \n")
    (scene / "TestSplit.txt").write_text("sequence1\n")
    names = [recording.name for recording in open_recordings("sevenscenes", scene, odometry="none")]
    assert names == ["stairs/seq-01", "stairs/seq-02", "stairs/seq-04"]
    train = open_recordings("sevenscenes", scene, split="train")
    assert [recording.name for recording in train] == ["stairs/seq-02", "stairs/seq-04"]
    (scene / "TestSplit.txt").write_text("first\n")
    with pytest.raises(DatasetError, match="sequence1, sequence2"):
        open_recordings("sevenscenes", scene, split="test")
    with pytest.raises(DatasetError, match="not train or test"):
        open_recordings("sevenscenes", scene, split="validation")
    with pytest.raises(DatasetError, match="has no option 'lidar'"):
        open_recordings("sevenscenes", scene, lidar="ldmrs")


def test_a_folder_of_all_scenes_names_them(tmp_path: Path) -> None:
    scenes = ["chess", "fire", "heads", "office", "pumpkin", "redkitchen", "stairs"]
    for name in scenes[1:]:
        write_sequence(tmp_path / name, range(1))
    (tmp_path / "chess").mkdir()
    (tmp_path / "chess" / "TrainSplit.txt").write_text("sequence1\n")
    for options in ({}, {"split": "train"}):
        with pytest.raises(DatasetError, match=f"holds the scenes {', '.join(scenes)}; a model is of one scene"):
            open_recordings("sevenscenes", tmp_path, **options)
    assert len(open_recordings("sevenscenes", tmp_path / "fire")) == 1
    assert len(open_recordings("sevenscenes", tmp_path / "fire" / "seq-01")) == 1


@pytest.mark.parametrize("suffix", ["png", "jpg", "jpeg"])
def test_colours_of_every_suffix_become_frames(tmp_path: Path, suffix: str) -> None:
    """Colour and depth of one frame, its pose and 16 bits of depth, as training sees them."""
    sequence = write_sequence(tmp_path, range(3), suffix)
    path = sequence / "frame-000001.depth.png"
    depth_mm = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    depth_mm[:10], depth_mm[10:20] = 0, 65535
    cv2.imwrite(str(path), depth_mm)
    recording = SevenScenesRecording(sequence, odometry="none")
    config = parse(LocalizerConfig, {"input": {"depth_source": "depth"}}, "test")
    frames = list(labelled_frames(recording, config))
    assert [item.frame.stamp_ns for item in frames] == [stamp_of(k) for k in range(3)]
    for index, item in enumerate(frames):
        assert item.frame.rgb is not None
        assert item.frame.depth_m is not None
        assert item.frame.rgb.shape == (HEIGHT, WIDTH, 3)
        assert np.allclose(item.T_map_camera, camera_pose(index), atol=1e-7)
        expected = render(index)[1] / 1000.0
        expected[: 20 * (index == 1)] = 0.0
        assert np.allclose(item.frame.depth_m, expected, atol=1e-6)
    assert recording.skipped == {}


def test_broken_files_are_told_from_frames_without_a_pose(tmp_path: Path) -> None:
    sequence = write_sequence(tmp_path, range(6), "jpg")
    (sequence / "frame-000001.color.jpg").unlink()
    content = (sequence / "frame-000003.color.jpg").read_bytes()
    (sequence / "frame-000003.color.jpg").write_bytes(content[: len(content) // 2])
    recording = SevenScenesRecording(sequence, odometry="none")
    config = parse(LocalizerConfig, {"input": {"depth_source": "depth"}}, "test")
    frames = list(labelled_frames(recording, config))
    # A depth image amid images is no frame of its own (see `Pairing`): frame 1 is not there, frame 3 is depth alone.
    assert [item.frame.stamp_ns for item in frames] == [stamp_of(k) for k in (0, 2, 3, 4, 5)]
    assert [item.frame.rgb is None for item in frames] == [False, False, True, False, False]
    skips = recording.skips.everything()
    assert {reason: (skip.count, skip.broken) for reason, skip in skips.items()} == {
        "color files missing": (1, True),
        "image": (1, True),
    }
    assert "truncated JPEG" in skips["image"].names[0]
    assert str(stamp_of(3)) in skips["image"].names[0]


def test_stairs_in_the_official_layout(shared_data: Path) -> None:
    scene = shared_data / "sevenscenes_stairs" / "microsoft" / "stairs"
    train = open_recordings("sevenscenes", scene, split="train", odometry="none")
    test = open_recordings("sevenscenes", scene, split="test", odometry="none")
    assert {r.name for r in train} | {r.name for r in test} == {f"stairs/seq-{k:02d}" for k in range(1, 5)}
    events = list(train[0].events())
    assert len(events) == 9
    depths = [decode_depth(event.payload) for event in of_kind(events, EventKind.DEPTH)]
    assert max(depth.max() for depth in depths) < 20.0  # 65535 would be 65.5 m
    info = of_kind(events, EventKind.CAMERA_INFO)[0].payload
    assert (info.K_33[0, 0], info.K_33[0, 2], info.K_33[1, 2]) == (585.0, 320.0, 240.0)


def test_redkitchen_odometry_in_millimetres(shared_data: Path) -> None:
    """Real frames: mean error against the dataset's poses, which are good to about a millimetre themselves."""
    folder = shared_data / "sevenscenes_redkitchen" / "seq-01"
    recording = SevenScenesRecording(folder, frames="0-39")
    events = list(recording.events())
    truth = recording.truth()
    errors = []
    samples = of_kind(events, EventKind.ODOMETRY)
    for (one, other), T in zip(itertools.pairwise(samples), motions(events), strict=True):
        G = inverse(truth.interpolate(one.stamp_ns)) @ truth.interpolate(other.stamp_ns)
        errors.append(np.linalg.norm((inverse(G) @ T)[:3, 3]))
    assert recording.skipped == {}
    assert np.mean(errors) < 0.004
