"""Conversion: what is in a dataset is in the bag, what is broken is counted, what is killed leaves nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from tiny_datasets import HEIGHT, PERIOD_NS, START_NS, WIDTH, render, write_drive, write_sequence

from vmloc_ros.bag_recording import BagRecording
from vmloc_ros.bags import BagReader
from vmloc_ros.commands.convert import run_convert
from vmloc_ros.datasets.kitti import KittiRecording
from vmloc_ros.datasets.seven_scenes import SevenScenesRecording
from vmloc_ros.errors import BagError, DatasetError
from vmloc_ros.images import decode_depth, decode_image
from vmloc_ros.types import EventKind

PROJECT = Path(__file__).resolve().parents[1]


def test_seven_scenes_to_a_bag(tmp_path: Path) -> None:
    sequence = write_sequence(tmp_path / "scene", range(4))
    result = run_convert("sevenscenes", sequence, tmp_path / "bag", progress=False)
    assert result.written == {
        "/camera_info": 4, "/depth": 4, "/ground_truth": 4, "/image": 4, "/odom": 4, "/tf": 4, "/tf_static": 1,
    }  # fmt: skip
    assert result.skipped == {}
    assert result.notes == []
    reader = BagReader(result.bag)
    images = list(reader.events([EventKind.IMAGE]))
    assert images[1].payload.encoding == "rgb8"
    assert np.array_equal(decode_image(images[1].payload), render(1)[0][..., ::-1])
    depths = list(reader.events([EventKind.DEPTH]))
    assert np.allclose(decode_depth(depths[2].payload), render(2)[1] / 1000.0)
    original = SevenScenesRecording(sequence)
    assert np.allclose(reader.truth().poses_N44, original.truth().poses_N44, atol=1e-12)
    assert reader.truth().stamps_ns.tolist() == original.truth().stamps_ns.tolist()
    tf = [message for topic, message in reader.decoded(["/tf"])]
    assert tf[0].transforms[0].header.frame_id == "odom"
    assert tf[0].transforms[0].child_frame_id == "base_link"


def test_a_bag_is_the_same_recording(tmp_path: Path) -> None:
    """Training on the bag sees what training on the dataset sees."""
    drive = write_drive(tmp_path / "day")
    run_convert("kitti", drive, tmp_path / "bag", progress=False)
    original, copy = KittiRecording(drive), BagRecording(tmp_path / "bag")
    assert copy.card()["drive"] == original.name
    assert copy.card()["bag"] == "bag"
    for one, other in zip(original.static_transforms(), copy.static_transforms(), strict=True):
        assert (one.parent, one.child) == (other.parent, other.child)
        assert np.allclose(one.T_parent_child, other.T_parent_child, atol=1e-12)
    events = list(zip(original.events(), copy.events(), strict=True))
    assert len(events) == copy.event_count() == 24
    for one, other in events:
        assert (one.kind, one.stamp_ns) == (other.kind, other.stamp_ns)
        if one.kind is EventKind.CLOUD:
            assert bytes(one.payload.data) == bytes(other.payload.data)
        elif one.kind is EventKind.ODOMETRY:
            assert np.allclose(one.payload.T_odom_base, other.payload.T_odom_base, atol=1e-12)
            assert np.allclose(one.payload.twist_6, other.payload.twist_6)
        elif one.kind is EventKind.IMAGE:
            assert np.array_equal(decode_image(one.payload), decode_image(other.payload))
    assert np.allclose(original.truth().poses_N44, copy.truth().poses_N44, atol=1e-12)


def test_compressed_images_stay_as_they_are(tmp_path: Path) -> None:
    sequence = write_sequence(tmp_path / "scene", range(2), suffix="jpg")
    run_convert("sevenscenes", sequence, tmp_path / "bag", compressed=True, odometry="none", progress=False)
    reader = BagReader(tmp_path / "bag")
    assert reader.topic_of(EventKind.IMAGE) == "/image/compressed"
    image = next(iter(reader.events([EventKind.IMAGE]))).payload
    assert bytes(image.data) == (sequence / "frame-000000.color.jpg").read_bytes()
    assert decode_image(image).shape == (HEIGHT, WIDTH, 3)


def test_broken_files_are_left_out_and_told(tmp_path: Path) -> None:
    sequence = write_sequence(tmp_path / "scene", range(4))
    whole = (sequence / "frame-000001.color.png").read_bytes()
    (sequence / "frame-000001.color.png").write_bytes(whole[: len(whole) // 2])
    (sequence / "frame-000002.color.png").write_bytes(b"no image at all")
    for path in sequence.glob("*.pose.txt"):
        path.unlink()
    result = run_convert("sevenscenes", sequence, tmp_path / "bag", odometry="none", progress=False)
    assert result.written["/image"] == 2
    assert result.written["/depth"] == 4
    counts = {name.split(" (first")[0]: count for name, count in result.skipped.items()}
    assert counts == {"pose files missing": 4, "images that cannot be decoded": 2}
    assert [note.split(":")[0] for note in result.notes] == ["no ground truth", "no odometry"]


def test_a_part_with_truth_on_both_sides(tmp_path: Path) -> None:
    drive = write_drive(tmp_path / "day", frames=30)
    result = run_convert("kitti", drive, tmp_path / "bag", start_s=1.0, duration_s=0.5, progress=False)
    reader = BagReader(result.bag)
    stamps = [(event.stamp_ns - START_NS) // PERIOD_NS for event in reader.events([EventKind.IMAGE])]
    assert stamps == [10, 11, 12, 13, 14, 15]
    truth = reader.truth()
    assert (truth.stamps_ns[0] - START_NS) // PERIOD_NS == 5
    assert (truth.stamps_ns[-1] - START_NS) // PERIOD_NS == 20
    order = [message.log_ns for message in reader.messages()]
    assert order == sorted(order)
    assert result.duration_s == pytest.approx(0.5, abs=0.01)


def test_what_cannot_be_converted(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="is not a folder"):
        run_convert("kitti", tmp_path / "nothing", tmp_path / "bag", progress=False)
    with pytest.raises(DatasetError, match="not one of robotcar, town, kitti, sevenscenes"):
        run_convert("nuscenes", tmp_path, tmp_path / "bag", progress=False)
    drive = write_drive(tmp_path / "day")
    write_drive(tmp_path / "day2").rename(tmp_path / "day" / "2011_09_26_drive_0002_sync")
    with pytest.raises(DatasetError, match=r"2 recordings \(2011_09_26_drive_0001_sync, .*give one"):
        run_convert("kitti", tmp_path / "day", tmp_path / "bag", progress=False)
    assert not (tmp_path / "bag").exists()
    run_convert("kitti", drive, tmp_path / "bag", progress=False)
    with pytest.raises(BagError, match="exists already"):
        run_convert("kitti", drive, tmp_path / "bag", progress=False)
    result = run_convert("kitti", drive, tmp_path / "bag", overwrite=True, odometry="none", progress=False)
    assert "/odom" not in result.written
    assert result.bytes > 10_000
    assert result.as_dict()["bag"] == str(tmp_path / "bag")


def test_a_killed_conversion_leaves_no_bag(tmp_path: Path) -> None:
    drive = write_drive(tmp_path / "day", frames=400)
    script = (
        "import sys; from pathlib import Path; from vmloc_ros.commands.convert import run_convert\n"
        "while True: run_convert('kitti', Path(sys.argv[1]), Path(sys.argv[2]), overwrite=True, progress=False)\n"
    )
    bag = tmp_path / "out" / "bag"
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(drive), str(bag)],
        env=os.environ | {"PYTHONPATH": str(PROJECT)},
        stderr=subprocess.DEVNULL,
    )
    partial = tmp_path / "out" / "bag.part"
    try:
        end = time.monotonic() + 60.0
        while not partial.is_dir() and time.monotonic() < end and process.poll() is None:
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
    assert partial.is_dir() or bag.is_dir()
    if bag.is_dir():  # only a whole one can stand there
        assert BagReader(bag).count([EventKind.IMAGE]) == 400


# --------------------------------------------------------------------------------------------------- shared recordings


def test_a_block_of_redkitchen(shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "sevenscenes_redkitchen"
    result = run_convert("sevenscenes", source, tmp_path / "bag", frames="200-214", progress=False)
    assert result.skipped == {}
    assert result.written["/image"] == result.written["/depth"] == result.written["/odom"] == 15
    reader = BagReader(result.bag)
    truth = reader.truth()
    samples = [event.payload for event in reader.events([EventKind.ODOMETRY])]
    moved = np.linalg.norm(samples[-1].T_odom_base[:3, 3] - samples[0].T_odom_base[:3, 3])
    true = np.linalg.norm(truth.poses_N44[-1, :3, 3] - truth.poses_N44[0, :3, 3])
    assert moved == pytest.approx(true, abs=0.04)


def test_odometry_and_truth_of_robotcar_loop(shared_data: Path, tmp_path: Path) -> None:
    """The traversals have no images here: what there is converts, and has the lengths that were driven."""
    source = shared_data / "robotcar" / "loop" / "2014-06-26-08-53-56"
    extrinsics = shared_data / "robotcar" / "sdk" / "extrinsics"
    result = run_convert("robotcar", source, tmp_path / "bag", extrinsics=extrinsics, progress=False)
    assert set(result.written) == {"/ground_truth", "/odom", "/tf", "/tf_static"} or set(result.written) == {
        "/ground_truth", "/odom", "/tf",
    }  # fmt: skip
    reader = BagReader(result.bag)
    poses = np.array([event.payload.T_odom_base[:3, 3] for event in reader.events([EventKind.ODOMETRY])])
    assert 1010.0 < np.linalg.norm(np.diff(poses, axis=0), axis=1).sum() < 1030.0
    assert 995.0 < reader.truth().length_m() < 1023.0


def test_a_town_passes_through_the_code_of_robotcar(tmp_path: Path) -> None:
    from vmloc_ros.commands.town import run_town

    run_town(
        tmp_path / "town", seed=2, traversals=1, loop_m=250.0, laps=0.04, width=64, height=48, columns=40, rings=8,
        workers=1, progress=False,
    )  # fmt: skip
    result = run_convert("town", tmp_path / "town", tmp_path / "bag", progress=False)
    assert result.skipped == {}
    assert result.written["/image"] == result.written["/camera_info"] > 5
    assert result.written["/points"] > 5
    assert result.written["/odom"] == result.written["/tf"] > 5
    recording = BagRecording(result.bag)
    assert {mount.child for mount in recording.static_transforms()} == {"camera_optical", "lidar"}
    truth = recording.truth()
    images = [event for event in recording.events() if event.kind is EventKind.IMAGE]
    assert all(truth.covers(event.stamp_ns) for event in images)
    assert decode_image(images[0].payload).shape == (48, 64, 3)
    assert recording.card()["dataset"] == "Oxford RobotCar format"
