"""RobotCar traversals: where their sensors are, the shared recordings, the stream, and what damaged folders give."""

from __future__ import annotations

import logging
import shutil
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
from robotcar_folders import write_ins, write_vo

from vmloc_ros.clouds import decode_cloud
from vmloc_ros.datasets.base import Recording
from vmloc_ros.datasets.robotcar import RobotCarRecording, read_ins_csv, read_vo_csv
from vmloc_ros.datasets.robotcar_files import (
    AXES,
    base_from_stereo,
    pose_from_xyzrpy,
    read_extrinsics,
    read_timestamps,
)
from vmloc_ros.datasets.robotcar_sensors import read_lidar
from vmloc_ros.errors import DatasetError
from vmloc_ros.geometry import Array, inverse
from vmloc_ros.images import decode_image
from vmloc_ros.types import EventKind

LOOPS = ("2014-06-26-08-53-56", "2014-06-26-09-24-58")
START_US = 1_400_000_000_000_000
STEP_US = 62_500
FRAMES = 6


@pytest.fixture
def traversal(tmp_path: Path) -> Path:
    """A whole, tiny traversal: six images of 8x6 pixels, six sweeps, odometry straight on at 1 m a step."""
    folder = tmp_path / "2015-01-01-00-00-00"
    (folder / "stereo" / "centre").mkdir(parents=True)
    (folder / "velodyne_left").mkdir()
    stamps = [START_US + k * STEP_US for k in range(FRAMES)]
    rng = np.random.default_rng(1)
    for k, stamp in enumerate(stamps):
        cv2.imwrite(str(folder / "stereo" / "centre" / f"{stamp}.png"), rng.integers(0, 255, (6, 8), dtype=np.uint8))
        points = np.array([[1.0 + k, 2.0, 3.0, 9.0], [4.0, 5.0, 6.0, 8.0]], dtype="<f4")
        (folder / "velodyne_left" / f"{stamp + 20_000}.bin").write_bytes(points.T.tobytes())
    for sensor, shift in (("stereo", 0), ("velodyne_left", 20_000)):
        lines = [f"{stamp + shift} 1\n" for stamp in stamps]
        (folder / f"{sensor}.timestamps").write_text("".join(lines))
    ahead = pose_from_xyzrpy([1.0, 0.0, 0.0, 0.0, 0.0, 0.0])
    write_vo(folder / "vo" / "vo.csv", stamps, [ahead] * (FRAMES - 1))
    good = "INS_SOLUTION_GOOD"
    write_ins(
        folder / "gps" / "ins.csv", [(START_US + k * 20_000, good, 0.1 * k, 0.0, 0.0, 0, 0, 0) for k in range(30)]
    )
    (folder / "extrinsics").mkdir()
    (folder / "models").mkdir()
    for name in ("stereo", "ins", "velodyne_left"):
        (folder / "extrinsics" / f"{name}.txt").write_text("0 0 0 0 0 0\n")
    (folder / "models" / "stereo_narrow_left.txt").write_text("10 10 3.5 2.5\n0 0 1 0\n1 0 0 0\n0 1 0 0\n0 0 0 1\n")
    return folder


def kinds(recording: Recording) -> Counter[EventKind]:
    return Counter(event.kind for event in recording.events())


# --------------------------------------------------------------------------------------------------------- the sensors


def test_camera_looks_forward_and_sits_where_the_calibration_says(shared_data: Path) -> None:
    recording = RobotCarRecording(shared_data / "robotcar" / "raw_images_2014-05-06")
    (camera,) = recording.static_transforms()
    assert (camera.parent, camera.child) == ("base_link", "camera_optical")
    T = camera.T_parent_child
    assert T[:3, 2] @ [1, 0, 0] > 0.99  # optical z is forward
    assert T[:3, 1] @ [0, 0, -1] > 0.99  # optical y is down
    T_vehicle_ins = read_extrinsics(shared_data / "robotcar" / "sdk" / "extrinsics" / "ins.txt")
    assert np.allclose(T_vehicle_ins, pose_from_xyzrpy([-1.7132, 0.1181, 1.1948, -0.0125, 0.04, 0.005]))
    assert np.allclose(T[:3, 3], (AXES @ inverse(T_vehicle_ins))[:3, 3])
    assert np.allclose(base_from_stereo(), base_from_stereo(T_vehicle_ins))


def test_lidar_points_land_where_the_extrinsics_say(traversal: Path) -> None:
    (traversal / "extrinsics" / "velodyne_left.txt").write_text("-0.6 -0.3 -0.2 0 0 3.1415926535897931\n")
    (traversal / "extrinsics" / "ins.txt").write_text("-1.7 0.1 1.2 0 0 0\n")
    recording = RobotCarRecording(traversal)
    lidar = next(t for t in recording.static_transforms() if t.child == "lidar").T_parent_child
    event = next(event for event in recording.events() if event.kind is EventKind.CLOUD)
    point = np.append(decode_cloud(event.payload).xyz_N3[0], 1.0)
    in_vehicle = np.array([-0.6 - 1.0, -0.3 - 2.0, -0.2 + 3.0])  # the file's (1, 2, 3), turned by 180 degrees
    in_ins = in_vehicle - [-1.7, 0.1, 1.2]
    assert np.allclose((lidar @ point)[:3], in_ins * [1, -1, -1], atol=1e-6)


# ------------------------------------------------------------------------------------------------ the shared recordings


def aligned_rmse_m(estimate_N2: Array, truth_N2: Array) -> float:
    """After the best rotation and shift in the plane."""
    a, b = estimate_N2 - estimate_N2.mean(axis=0), truth_N2 - truth_N2.mean(axis=0)
    U, _, Vt = np.linalg.svd(b.T @ a)
    R = U @ np.diag([1.0, np.linalg.det(U @ Vt)]) @ Vt
    return float(np.sqrt(np.mean(np.sum((b - a @ R.T) ** 2, axis=1))))


@pytest.mark.parametrize("name", LOOPS)
def test_loop_traversal_agrees_with_its_ins(shared_data: Path, name: str) -> None:
    folder = shared_data / "robotcar" / "loop" / name
    recording = RobotCarRecording(folder)
    truth = recording.truth()
    odometry = [event.payload for event in recording.events() if event.kind is EventKind.ODOMETRY]
    images = read_timestamps(folder / "stereo.timestamps")
    assert {sample.stamp_ns for sample in odometry} <= set(images.tolist())
    poses = np.array([sample.T_odom_base for sample in odometry])
    length = np.linalg.norm(np.diff(poses[:, :3, 3], axis=0), axis=1).sum()
    assert 1015.0 < length < 1025.0
    assert 1015.0 < read_vo_csv(folder / "vo" / "vo.csv").length_m() < 1025.0
    at_images = np.array([truth.interpolate(stamp)[:3, 3] for stamp in images.tolist() if truth.covers(stamp)])
    assert 1001.0 < np.linalg.norm(np.diff(at_images, axis=0), axis=1).sum() < 1018.0
    known = [k for k, sample in enumerate(odometry) if truth.covers(sample.stamp_ns)]
    true = np.array([truth.interpolate(odometry[k].stamp_ns) for k in known])
    assert 7.0 < aligned_rmse_m(poses[known, :2, 3], true[:, :2, 3]) < 8.5
    assert recording.skipped["INS rows that are not INS_SOLUTION_GOOD (first: gps/ins.csv)"] in (802, 307)


@pytest.mark.parametrize("name", LOOPS)
def test_moving_the_odometry_to_base_link_explains_what_the_ins_sees(shared_data: Path, name: str) -> None:
    """Over 20 steps the INS's own motion is met better than by the camera's motion, or by the inverse mounting."""
    folder = shared_data / "robotcar" / "loop" / name
    truth, vo = read_ins_csv(folder / "gps" / "ins.csv"), read_vo_csv(folder / "vo" / "vo.csv")

    def error_m(T_base_stereo: Array) -> float:
        odometry = vo.transformed(T_base_stereo, inverse(T_base_stereo))
        errors = []
        for k in range(0, len(vo) - 20, 20):
            start, end = int(vo.stamps_ns[k]), int(vo.stamps_ns[k + 20])
            if truth.covers(start) and truth.covers(end):
                true = inverse(truth.interpolate(start)) @ truth.interpolate(end)
                seen = inverse(odometry.poses_N44[k]) @ odometry.poses_N44[k + 20]
                errors.append(float(np.linalg.norm((inverse(true) @ seen)[:3, 3])))
        assert len(errors) > 100
        return float(np.mean(errors))

    right = error_m(base_from_stereo())
    assert right < 0.35
    assert right < 0.75 * error_m(np.eye(4))
    assert right < 0.75 * error_m(inverse(base_from_stereo()))


def test_raw_images_have_true_colours_and_are_not_undistorted(
    shared_data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        recording = RobotCarRecording(shared_data / "robotcar" / "raw_images_2014-05-06")
        events = list(recording.events())
    assert sum("not undistorted" in record.message for record in caplog.records) == 1
    assert recording.card()["images_undistorted"] is False
    images = [event.payload for event in events if event.kind is EventKind.IMAGE]
    infos = [event.payload for event in events if event.kind is EventKind.CAMERA_INFO]
    assert len(images) == len(infos) == 6
    assert {(image.width, image.height, image.encoding) for image in images} == {(1280, 960, "bayer_gbrg8")}
    assert infos[0].K_33[0, 0] == pytest.approx(964.828979)
    last = decode_image(images[-1])
    car = last[424:446, 678:708].reshape(-1, 3).mean(axis=0)  # a red one
    hedge = last[280:340, 470:560].reshape(-1, 3).mean(axis=0)
    assert car[0] > car[1] + 25.0
    assert hedge[1] > hedge[0] > hedge[2] + 8.0


def test_raw_images_are_undistorted_through_a_lookup_table(shared_data: Path, tmp_path: Path) -> None:
    """The table shifts by half a pixel and by three rows: what comes out must be that, whatever the lens was."""
    source = shared_data / "robotcar"
    models = tmp_path / "models"
    shutil.copytree(source / "sdk" / "models", models, copy_function=shutil.copyfile)
    rows, columns = np.mgrid[0:960, 0:1280].astype("<f8")
    table = np.stack([(columns + 0.5).ravel(), (rows + 3.0).ravel()])
    (models / "stereo_narrow_left_distortion_lut.bin").write_bytes(table.tobytes())
    folder = source / "raw_images_2014-05-06"
    raw = next(e.payload for e in RobotCarRecording(folder).events() if e.kind is EventKind.IMAGE)
    recording = RobotCarRecording(folder, models=models)
    flat = next(e.payload for e in recording.events() if e.kind is EventKind.IMAGE)
    assert flat.encoding == "rgb8"
    assert recording.card()["images_undistorted"] is True
    before, after = decode_image(raw).astype(float), decode_image(flat).astype(float)
    expected = 0.5 * (before[3:, :-1] + before[3:, 1:])
    assert np.abs(after[:-3, :-1] - expected).max() <= 1.0
    assert (after[-3:] == 0.0).all()  # outside the raw image


# ----------------------------------------------------------------------------------------------------------- the stream


def test_stream_is_sorted_whole_and_repeatable(traversal: Path) -> None:
    recording: Recording = RobotCarRecording(traversal)
    first, second = list(recording.events()), list(recording.events())
    assert [e.stamp_ns for e in first] == sorted(e.stamp_ns for e in first) == [e.stamp_ns for e in second]
    assert kinds(recording) == dict.fromkeys(
        (EventKind.IMAGE, EventKind.CAMERA_INFO, EventKind.CLOUD, EventKind.ODOMETRY), FRAMES
    )
    assert recording.event_count() == len(first)
    assert recording.skipped == {}
    assert all(event.stamp_ns == event.payload.stamp_ns for event in first)
    assert {t.child for t in recording.static_transforms()} == {"camera_optical", "lidar"}
    assert recording.truth().covers(first[0].stamp_ns)
    assert recording.card()["utm_origin"] == {
        "zone": "30U", "easting_m": 620_000.0, "northing_m": 5_736_000.0, "altitude_m": 110.0
    }  # fmt: skip


def test_a_part_of_the_time_starts_its_odometry_at_the_identity(traversal: Path) -> None:
    recording = RobotCarRecording(traversal, start_s=0.1, duration_s=0.15)
    begin, end = START_US * 1000 + 100_000_000, START_US * 1000 + 250_000_000
    events = list(recording.events())
    assert events
    assert all(begin <= event.stamp_ns <= end for event in events)
    odometry = [event.payload for event in events if event.kind is EventKind.ODOMETRY]
    assert np.allclose(odometry[0].T_odom_base, np.eye(4))
    assert np.allclose(odometry[-1].T_odom_base[:3, 3], [len(odometry) - 1, 0, 0])
    with pytest.raises(DatasetError, match="nothing at start"):
        RobotCarRecording(traversal, start_s=100.0)


def test_files_are_read_when_their_turn_comes(traversal: Path) -> None:
    recording = RobotCarRecording(traversal)
    stream = recording.events()
    next(stream)
    for path in sorted((traversal / "stereo" / "centre").iterdir())[2:]:
        path.unlink()
    assert sum(event.kind is EventKind.IMAGE for event in stream) == 2
    (reason,) = recording.skipped
    assert recording.skipped[reason] == FRAMES - 2
    assert str(START_US + 2 * STEP_US) in reason


@pytest.mark.parametrize("damage", ["truncated", "empty", "not a PNG", "missing", "colour", "odd size"])
def test_a_damaged_image_is_counted_and_the_rest_converts(traversal: Path, damage: str) -> None:
    path = traversal / "stereo" / "centre" / f"{START_US + STEP_US}.png"
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "colour":
        cv2.imwrite(str(path), np.zeros((6, 8, 3), np.uint8))
    elif damage == "odd size":
        cv2.imwrite(str(path), np.zeros((5, 7), np.uint8))
    else:
        path.write_bytes({"truncated": content[:-9], "empty": b"", "not a PNG": b"GIF89a" + content}[damage])
    recording = RobotCarRecording(traversal)
    counts = kinds(recording)
    assert counts[EventKind.IMAGE] == counts[EventKind.CAMERA_INFO] == FRAMES - 1
    assert counts[EventKind.CLOUD] == counts[EventKind.ODOMETRY] == FRAMES
    (reason,) = recording.skipped
    assert recording.skipped[reason] == 1
    assert path.name in reason


@pytest.mark.parametrize("content", [b"", b"\0" * 17])
def test_a_damaged_sweep_is_counted_and_the_rest_converts(traversal: Path, content: bytes) -> None:
    path = traversal / "velodyne_left" / f"{START_US + 20_000}.bin"
    path.write_bytes(content)
    recording = RobotCarRecording(traversal)
    assert kinds(recording)[EventKind.CLOUD] == FRAMES - 1
    (reason,) = recording.skipped
    assert path.name in reason
    with pytest.raises(DatasetError, match=path.name):
        read_lidar(path, "velodyne_left")


def test_missing_parts_are_counted_and_only_nothing_is_refused(traversal: Path) -> None:
    (traversal / "stereo.timestamps").unlink()
    shutil.rmtree(traversal / "velodyne_left")
    shutil.rmtree(traversal / "gps")
    recording = RobotCarRecording(traversal)
    assert kinds(recording) == {EventKind.IMAGE: FRAMES, EventKind.CAMERA_INFO: FRAMES, EventKind.ODOMETRY: FRAMES}
    with pytest.raises(DatasetError, match=r"ins\.csv"):
        recording.truth()
    (traversal / "models" / "stereo_narrow_left.txt").unlink()
    recording = RobotCarRecording(traversal)
    assert kinds(recording) == {EventKind.ODOMETRY: FRAMES}
    assert list(recording.skipped.values()) == [FRAMES]
    assert "stereo_narrow_left.txt" in next(iter(recording.skipped))
    (traversal / "vo" / "vo.csv").write_text("")
    with pytest.raises(DatasetError, match="no image, no cloud and no odometry"):
        RobotCarRecording(traversal)


def test_what_is_asked_for_by_name_must_be_there(traversal: Path, tmp_path: Path) -> None:
    for options, message in (
        ({"lidar": "ldmrs"}, "ldmrs: no such folder"),
        ({"lidar": "sonar"}, "is not one of velodyne_left"),
        ({"camera": "stereo/middle"}, "is not one of stereo/left"),
        ({"extrinsics": tmp_path / "nowhere"}, "nowhere: is not a folder"),
    ):
        with pytest.raises(DatasetError, match=message):
            RobotCarRecording(traversal, **options)  # type: ignore[arg-type]
    with pytest.raises(DatasetError, match="is not a folder"):
        RobotCarRecording(tmp_path / "nothing")
    shutil.rmtree(traversal / "extrinsics")
    with pytest.raises(DatasetError, match=r"ins\.txt"):
        RobotCarRecording(traversal)


def test_calibration_is_found_in_an_sdk_folder_beside_the_traversal(traversal: Path) -> None:
    sdk = traversal.parent / "sdk"
    sdk.mkdir()
    for kind in ("extrinsics", "models"):
        shutil.move(traversal / kind, sdk / kind)
    assert len(RobotCarRecording(traversal).static_transforms()) == 2
