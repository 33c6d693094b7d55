"""KITTI raw: stamps, coordinates, calibration, odometry; with a tiny drive on a circle and the shared one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny_datasets import ORIGIN, PERIOD_NS, START_NS, T_VELO_IMU, imu_pose, kitti_scan, write_drive

from vmloc_ros.bags import BagReader
from vmloc_ros.clouds import decode_cloud
from vmloc_ros.commands.convert import run_convert
from vmloc_ros.datasets.kitti import KittiRecording
from vmloc_ros.datasets.kitti_files import NO_STAMP, read_calibration, read_oxts, read_timestamps, turn_fraction
from vmloc_ros.datasets.open import open_recordings
from vmloc_ros.errors import DatasetError
from vmloc_ros.geometry import inverse, log_so3
from vmloc_ros.images import decode_image
from vmloc_ros.projection import project_pinhole
from vmloc_ros.trajectory import read_tum
from vmloc_ros.types import Event, EventKind, PinholeIntrinsics


def of_kind(events: list[Event], kind: EventKind) -> list[Event]:
    return [event for event in events if event.kind is kind]


@pytest.fixture
def drive(tmp_path: Path) -> Path:
    return write_drive(tmp_path / "2011_09_26")


def test_the_stream(drive: Path) -> None:
    recording = KittiRecording(drive)
    events = list(recording.events())
    assert recording.skipped == {}
    assert len(events) == recording.event_count() == 24
    stamps = [event.stamp_ns for event in events]
    assert stamps == sorted(stamps)
    assert of_kind(events, EventKind.IMAGE)[2].stamp_ns == START_NS + 2 * PERIOD_NS
    assert decode_image(of_kind(events, EventKind.IMAGE)[2].payload)[0, 0].tolist() == [40, 40, 40]
    cloud = decode_cloud(of_kind(events, EventKind.CLOUD)[1].payload)
    assert np.array_equal(cloud.xyz_N3, kitti_scan(1)[:, :3])


def test_truth_and_odometry_of_a_circle(drive: Path) -> None:
    """The Mercator projection and the integration both give the circle that was driven, at the lidar."""
    recording = KittiRecording(drive)
    T_imu_velo = inverse(T_VELO_IMU)
    truth = recording.truth()
    for index in range(6):
        expected = imu_pose(index) @ T_imu_velo
        assert np.allclose(truth.poses_N44[index], expected, atol=1e-4)
    samples = [event.payload for event in of_kind(list(recording.events()), EventKind.ODOMETRY)]
    for index, sample in enumerate(samples):
        expected = T_VELO_IMU @ imu_pose(index) @ T_imu_velo
        assert np.allclose(sample.T_odom_base, expected, atol=1e-9)
        # the twist is of the lidar, which swings outside the IMU's circle
        ahead = inverse(sample.T_odom_base) @ (T_VELO_IMU @ imu_pose(index) @ imu_pose(1) @ T_imu_velo)
        assert np.allclose(sample.twist_6[:3] * 0.1, ahead[:3, 3], atol=0.02)
        assert np.allclose(sample.twist_6[3:] * 0.1, log_so3(ahead[:3, :3]), atol=1e-9)


def test_points_have_times_from_the_rear_clockwise(drive: Path) -> None:
    around = np.array([[-1, 0.001, 0], [0, 1, 0], [1, 0, 0], [0, -1, 0], [-1, -0.001, 0]], dtype=np.float32)
    assert np.allclose(turn_fraction(around), [0.0, 0.25, 0.5, 0.75, 1.0], atol=1e-3)
    cloud = decode_cloud(of_kind(list(KittiRecording(drive).events()), EventKind.CLOUD)[0].payload)
    assert cloud.stamps_ns_N is not None
    begin, end = START_NS - 48_000_000, START_NS + 52_000_000
    assert cloud.stamps_ns_N.min() >= begin
    assert cloud.stamps_ns_N.max() <= end
    assert cloud.stamps_ns_N.max() - cloud.stamps_ns_N.min() > 90_000_000
    plain = KittiRecording(drive, point_times=False)
    assert decode_cloud(of_kind(list(plain.events()), EventKind.CLOUD)[0].payload).stamps_ns_N is None


def test_missing_and_broken_files(drive: Path) -> None:
    (drive / "image_02" / "data" / "0000000001.png").unlink()
    (drive / "velodyne_points" / "data" / "0000000002.bin").write_bytes(b"\0" * 33)
    (drive / "velodyne_points" / "data" / "0000000003.bin").write_bytes(b"")
    (drive / "oxts" / "data" / "0000000001.txt").write_text("49.0 8.4 nan\n")
    (drive / "oxts" / "data" / "0000000002.txt").unlink()
    (drive / "velodyne_points" / "timestamps_start.txt").unlink()
    recording = KittiRecording(drive)
    for _ in range(2):
        events = list(recording.events())
        counts = {name.split(" (first")[0]: count for name, count in recording.skipped.items()}
        assert counts == {
            "image_02 files missing": 1,
            "scans unusable": 2,
            "oxts packets unusable": 1,
            "oxts files missing": 1,
            "times of points missing": 1,
        }
    assert len(of_kind(events, EventKind.CLOUD)) == 4
    assert len(of_kind(events, EventKind.ODOMETRY)) == 4
    assert any("0000000001.png" in name for name in recording.skipped)
    assert not recording.truth().covers(START_NS + 8 * PERIOD_NS)


def test_empty_lines_stand_for_lost_scans(drive: Path) -> None:
    """As in the real drive 0009: indices keep their lines."""
    folder = drive / "velodyne_points"
    for name in ("timestamps", "timestamps_start", "timestamps_end"):
        lines = (folder / f"{name}.txt").read_text().splitlines()
        lines[2] = ""
        (folder / f"{name}.txt").write_text("\n".join(lines) + "\n")
    (folder / "data" / "0000000002.bin").unlink()
    stamps = read_timestamps(folder / "timestamps.txt")
    assert stamps[2] == NO_STAMP
    assert stamps[3] == START_NS + 3 * PERIOD_NS + 2_000_000
    recording = KittiRecording(drive)
    clouds = of_kind(list(recording.events()), EventKind.CLOUD)
    assert [event.stamp_ns for event in clouds] == [s for i, s in enumerate(stamps.tolist()) if i != 2]
    assert recording.skipped == {"velodyne_points files missing (first: 0000000002.bin)": 1}


def test_a_part_of_a_drive(drive: Path) -> None:
    recording = KittiRecording(drive, start_s=0.2, duration_s=0.2)
    events = list(recording.events())
    images = of_kind(events, EventKind.IMAGE)
    assert [(event.stamp_ns - START_NS) // PERIOD_NS for event in images] == [2, 3, 4]
    first = of_kind(events, EventKind.ODOMETRY)[0]
    assert first.stamp_ns == START_NS + 2 * PERIOD_NS
    assert np.allclose(first.payload.T_odom_base, np.eye(4), atol=1e-12)
    assert len(recording.truth()) == 6
    with pytest.raises(DatasetError, match="chosen part"):
        KittiRecording(drive, start_s=60.0)


def test_drives_of_a_day_share_a_map(drive: Path) -> None:
    second = drive.with_name("2011_09_26_drive_0002_sync")
    write_drive(drive.parent / "other").rename(second)
    path = second / "oxts" / "data" / "0000000000.txt"
    path.unlink()  # this drive's first packet is another one
    one, other = open_recordings("kitti", drive.parent)
    assert (one.name, other.name) == (drive.name, second.name)
    assert np.allclose(one.truth().poses_N44[1:], other.truth().poses_N44, atol=1e-6)
    alone = KittiRecording(second)
    assert not np.allclose(alone.truth().poses_N44[0], other.truth().poses_N44[0], atol=0.1)
    assert one.card()["origin"] == {
        "latitude_deg": ORIGIN[0],
        "longitude_deg": ORIGIN[1],
        "altitude_m": ORIGIN[2],
    }


@pytest.mark.parametrize(
    ("file", "text", "match"),
    [
        ("calib_velo_to_cam.txt", None, r"calib_velo_to_cam\.txt: cannot be read"),
        ("calib_velo_to_cam.txt", "R: 1 0 0 0 1 0 0 0 2\nT: 0 0 0\n", "no rotation"),
        ("calib_imu_to_velo.txt", "R: 1 0 0\n", "R needs 9"),
        ("calib_cam_to_cam.txt", "S_rect_02: 3 4\n", "P_rect_02"),
        ("calib_imu_to_velo.txt", "R: 1 0 0 0 1 0 0 0 one\nT: 0 0 0\n", "not a list of numbers"),
    ],
)
def test_calibrations_that_are_not_whole(drive: Path, file: str, text: str | None, match: str) -> None:
    path = drive.parent / file
    if text is None:
        path.unlink()
    else:
        path.write_text(text)
    with pytest.raises(DatasetError, match=match):
        KittiRecording(drive)


def test_errors_name_the_folder(tmp_path: Path, drive: Path) -> None:
    with pytest.raises(DatasetError, match="not a folder"):
        KittiRecording(tmp_path / "nothing")
    with pytest.raises(DatasetError, match="oxts, kiss-icp, none"):
        KittiRecording(drive, odometry="wheel")
    with pytest.raises(DatasetError, match="holds none"):
        open_recordings("kitti", drive / "oxts")
    (drive / "image_02" / "timestamps.txt").write_text("yesterday\n")
    with pytest.raises(DatasetError, match=r"timestamps\.txt:1: is not a date"):
        KittiRecording(drive)


def test_tilt_turns_the_level_velocity_into_the_imu(tmp_path: Path) -> None:
    """Driving straight up a ramp: forward is level, the IMU is pitched, so it moves along its own x and z."""
    pitch = -0.2  # nose up: x forward, y left
    values = [49.0, 8.0, 100.0, 0.0, pitch, 0.5, 0.0, 0.0, 5.0 * np.cos(0.2), 0.0, 5.0 * np.sin(0.2)]
    path = tmp_path / "packet.txt"
    path.write_text(" ".join(map(str, [*values, *[0.0] * 14])))
    packet = read_oxts(path)
    assert np.allclose(packet.twist_imu_6, [5.0, 0, 0, 0, 0, 0], atol=1e-12)
    assert packet.R_enu_imu[2, 0] == pytest.approx(np.sin(0.2))


# --------------------------------------------------------------------------------------------------------- the real one


@pytest.fixture(scope="module")
def real_drive(shared_data: Path) -> Path:
    return shared_data / "kitti_raw" / "2011_09_26" / "2011_09_26_drive_0009_sync"


@pytest.fixture(scope="module")
def real_bag(real_drive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    bag = tmp_path_factory.mktemp("kitti") / "bag"
    result = run_convert("kitti", real_drive, bag, duration_s=0.55, progress=False)
    assert {name: result.written[name] for name in ("/image", "/camera_info", "/points")} == {
        "/image": 6, "/camera_info": 6, "/points": 6,
    }  # fmt: skip
    return bag


def numbers(path: Path, name: str) -> np.ndarray:
    (line,) = [line for line in path.read_text().splitlines() if line.startswith(name + ":")]
    return np.array([float(word) for word in line.split(":")[1].split()])


def test_projection_agrees_with_the_formula_of_kitti(real_drive: Path, real_bag: Path) -> None:
    """x = P_rect_02 R_rect_00 T_velo_to_cam X, from the calibration files, against what a bag's user computes."""
    day = real_drive.parent
    rect, velo = np.eye(4), np.eye(4)
    rect[:3, :3] = numbers(day / "calib_cam_to_cam.txt", "R_rect_00").reshape(3, 3)
    velo[:3, :3] = numbers(day / "calib_velo_to_cam.txt", "R").reshape(3, 3)
    velo[:3, 3] = numbers(day / "calib_velo_to_cam.txt", "T")
    P = numbers(day / "calib_cam_to_cam.txt", "P_rect_02").reshape(3, 4) @ rect @ velo
    reader = BagReader(real_bag)
    mounts = {mount.child: mount.T_parent_child for mount in reader.static_transforms()}
    info = next(iter(reader.events([EventKind.CAMERA_INFO]))).payload
    camera = PinholeIntrinsics(
        info.width, info.height, info.P_34[0, 0], info.P_34[1, 1], info.P_34[0, 2], info.P_34[1, 2]
    )
    cloud = decode_cloud(next(iter(reader.events([EventKind.CLOUD]))).payload)
    homogeneous = np.column_stack([cloud.xyz_N3.astype(float), np.ones(len(cloud.xyz_N3))])
    u, v, z = P @ homogeneous.T
    u, v = u / z, v / z
    T_camera_lidar = inverse(mounts["camera_optical"]) @ mounts["lidar"]
    ours = homogeneous @ T_camera_lidar[:3].T
    depth = project_pinhole(ours.astype(np.float32), camera, 2.0, 80.0)
    seen = (z > 2.0) & (u > 0) & (u < camera.width - 1) & (v > 0) & (v < camera.height - 1)
    assert seen.sum() > 15000
    U = camera.fx * ours[:, 0] / ours[:, 2] + camera.cx
    V = camera.fy * ours[:, 1] / ours[:, 2] + camera.cy
    assert np.abs(U - u)[seen].max() < 0.05
    assert np.abs(V - v)[seen].max() < 0.05
    rows, columns = np.nonzero(depth)
    assert len(rows) > 15000
    by_pixel = {(int(c), int(r)): float(depth[r, c]) for r, c in zip(rows, columns, strict=True)}
    matched = 0
    for k in np.flatnonzero(seen):
        pixel = int(np.floor(u[k] + 0.5)), int(np.floor(v[k] + 0.5))
        matched += any(
            abs(by_pixel.get((pixel[0] + dx, pixel[1] + dy), np.inf)) <= z[k] + 0.02
            for dx in (-1, 0, 1) for dy in (-1, 0, 1)
            if abs(pixel[0] + dx - u[k]) <= 0.55 and abs(pixel[1] + dy - v[k]) <= 0.55
        )  # fmt: skip
    assert matched == seen.sum()  # every point is in the image, within half a pixel, or behind a nearer one


def test_truth_of_the_shared_drive(real_drive: Path) -> None:
    truth = KittiRecording(real_drive).truth()
    derived = read_tum(real_drive.parents[1] / "derived" / "oxts_gt_velo_tum.txt")
    relative = inverse(truth.poses_N44[0]) @ truth.poses_N44
    assert np.abs(relative[: len(derived)] - derived.poses_N44).max() < 1e-4
    assert np.abs(truth.stamps_ns[: len(derived)] - derived.stamps_ns).max() < 1000


@pytest.mark.parametrize("odometry", ["oxts", "kiss-icp"])
def test_odometry_of_the_shared_drive(real_drive: Path, odometry: str) -> None:
    if odometry == "kiss-icp":
        pytest.importorskip("kiss_icp", reason="kiss-icp is an extra")
    recording = KittiRecording(real_drive, odometry=odometry, duration_s=1.0)
    truth = recording.truth()
    samples = of_kind(list(recording.events()), EventKind.ODOMETRY)
    samples = [event for event in samples if truth.covers(event.stamp_ns)]
    first, last = samples[0], samples[-1]
    moved = inverse(first.payload.T_odom_base) @ last.payload.T_odom_base
    true = inverse(truth.interpolate(first.stamp_ns)) @ truth.interpolate(last.stamp_ns)
    error = inverse(true) @ moved
    assert np.linalg.norm(true[:3, 3]) > 8.0
    assert np.linalg.norm(error[:3, 3]) < 0.03 * np.linalg.norm(true[:3, 3])
    again = of_kind(list(recording.events()), EventKind.ODOMETRY)
    assert np.array_equal(
        again[-1].payload.T_odom_base, of_kind(list(recording.events()), EventKind.ODOMETRY)[-1].payload.T_odom_base
    )


def test_the_real_calibration(real_drive: Path) -> None:
    calibration = read_calibration(real_drive.parent)
    assert (calibration.width, calibration.height) == (1242, 375)
    centre = inverse(calibration.T_camera_velo)[:3, 3]
    assert np.allclose(centre, [0.27, 0.06, -0.08], atol=0.08)  # camera 02 is ahead of the lidar and to its left
