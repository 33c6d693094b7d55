"""The files of a RobotCar traversal one by one: the publishers' conventions, and what damage gives."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from robotcar_folders import INS_HEADER, write_ins, write_vo

from vmloc_ros.datasets.robotcar import read_ins_csv, read_vo_csv
from vmloc_ros.datasets.robotcar_files import (
    AXES,
    OXFORD_ORIGIN_UTM,
    load_ins,
    load_vo,
    pose_from_xyzrpy,
    read_camera_model,
    read_extrinsics,
    read_timestamps,
)
from vmloc_ros.datasets.robotcar_sensors import read_bayer_png, read_distortion_lut, read_lidar, undistort
from vmloc_ros.datasets.town_drive import xyzrpy_from_poses
from vmloc_ros.errors import DatasetError, TrajectoryError
from vmloc_ros.geometry import exp_se3, log_so3

# ---------------------------------------------------------------------------------------------------- the conventions


@given(st.lists(st.floats(-1.2, 1.2), min_size=6, max_size=6))
def test_xyzrpy_round_trip(values: list[float]) -> None:
    assert np.allclose(xyzrpy_from_poses(pose_from_xyzrpy(values)[None])[0], values, atol=1e-12)


def test_rotations_are_right_handed_about_forward_right_down() -> None:
    """Yaw turns forward to the right, pitch lifts the nose (z is down)."""
    assert np.allclose(pose_from_xyzrpy([0, 0, 0, 0, 0, np.pi / 2])[:3, 0], [0, 1, 0], atol=1e-12)
    assert np.allclose(pose_from_xyzrpy([0, 0, 0, 0, np.pi / 2, 0])[:3, 0], [0, 0, -1], atol=1e-12)


def test_map_is_enu_and_base_is_flu(tmp_path: Path) -> None:
    good = "INS_SOLUTION_GOOD"
    path = tmp_path / "gps" / "ins.csv"
    write_ins(path, [(0, good, 10, 3, -2, 0, 0, 0), (20_000, good, 10, 3, -2, 0, 0, np.pi / 2)])
    north, east = read_ins_csv(path).poses_N44
    assert np.allclose(north[:3, 3], [3, 10, 2], atol=1e-6)
    assert np.allclose(north[:3, :3], [[0, -1, 0], [1, 0, 0], [0, 0, 1]], atol=1e-9)  # facing north, left is west
    assert np.allclose(east[:3, :3], np.eye(3), atol=1e-9)  # yaw 90 degrees: facing east


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1))
def test_vo_is_integrated_from_the_earlier_to_the_later_camera(
    tmp_path_factory: pytest.TempPathFactory, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    steps = [exp_se3(rng.normal(0.0, 0.3, 6)) for _ in range(5)]
    path = tmp_path_factory.mktemp("vo") / "vo.csv"
    write_vo(path, [1000 + 50 * k for k in range(6)], steps)
    vo = read_vo_csv(path)
    assert vo.stamps_ns.tolist() == [(1000 + 50 * k) * 1000 for k in range(6)]
    expected = np.eye(4)
    for k, step in enumerate(steps, 1):
        expected = expected @ step
        assert np.allclose(vo.poses_N44[k], AXES @ expected @ AXES, atol=1e-9)


# ------------------------------------------------------------------------------------------------------ single files


def test_lidar_formats(tmp_path: Path) -> None:
    path = tmp_path / "1.bin"
    values = np.arange(12.0)
    path.write_bytes(values.astype("<f4").tobytes())
    assert read_lidar(path, "velodyne_right").tolist() == [[0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8, 11]]
    path.write_bytes(values.astype("<f8").tobytes())
    assert read_lidar(path, "ldmrs")[:2].tolist() == [[0, 1, 2, 0], [3, 4, 5, 0]]
    assert read_lidar(path, "lms_front")[:2].tolist() == [[0, 1, 0, 2], [3, 4, 0, 5]]
    with pytest.raises(DatasetError, match=r"2\.bin"):
        read_lidar(tmp_path / "2.bin", "ldmrs")


def test_ins_rows_that_are_bad_are_dropped_and_their_time_is_a_gap(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good, bad = "INS_SOLUTION_GOOD", "INS_BAD_GPS_AGREEMENT"
    path = tmp_path / "ins.csv"
    rows = [(k * 100_000, bad if 10 <= k < 25 else good, 0.1 * k, 0.0, 0.0, 0.0, 0.0, 0.0) for k in range(40)]
    write_ins(path, rows)
    path.write_text(path.read_text() + "4000000,INS_SOLUTION_GOOD,51")  # the recorder died here
    with caplog.at_level(logging.WARNING):
        truth, dropped = load_ins(path)
    assert list(dropped.values()) == [15, 1]
    assert len(caplog.records) == 2
    assert len(truth) == 25
    assert truth.covers(950_000 * 1000 - 50_000_000)
    with pytest.raises(TrajectoryError):
        truth.interpolate(1_700_000_000)


def test_ins_yaw_across_pi_is_interpolated_the_short_way(tmp_path: Path) -> None:
    good = "INS_SOLUTION_GOOD"
    path = tmp_path / "ins.csv"
    write_ins(path, [(0, good, 0, 0, 0, 0, 0, np.pi - 0.01), (20_000, good, 0, 0, 0, 0, 0, -np.pi + 0.01)])
    truth = read_ins_csv(path)
    turned = log_so3(truth.poses_N44[0][:3, :3].T @ truth.interpolate(10_000_000)[:3, :3])
    assert np.linalg.norm(turned) == pytest.approx(0.01, abs=1e-9)


def test_missing_vo_rows_are_bridged_by_the_velocity_and_counted(tmp_path: Path) -> None:
    step = pose_from_xyzrpy([1.0, 0.0, 0.0, 0.0, 0.0, 0.02])
    stamps = [1000 * k for k in range(12)]
    path = tmp_path / "vo.csv"
    write_vo(path, stamps, [step] * 11)
    whole = read_vo_csv(path)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:4] + lines[7:]))  # three rows are gone
    bridged, counts = load_vo(path)
    assert list(counts.values()) == [1]
    assert set(bridged.stamps_ns.tolist()) == set(whole.stamps_ns.tolist()) - {4_000_000, 5_000_000}
    assert np.allclose(bridged.poses_N44[-1], whole.poses_N44[-1], atol=1e-9)
    path.write_text("".join(lines[:4] + lines[2:]))  # two rows are there twice
    assert np.allclose(load_vo(path)[0].poses_N44, whole.poses_N44)


def test_vo_rows_that_make_no_sense_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "vo.csv"
    header = "source_timestamp,destination_timestamp,x,y,z,roll,pitch,yaw\n"
    rows = [
        "1000,0,1,0,0,0,0,0",
        "2000,1000,nan,0,0,0,0,0",
        "2000,1000,1,0",
        "2000,1000,1,0,0,0,0,0",
        "2500,1500,1,0,0,0,0,0",
    ]
    path.write_text(header + "\n".join(rows))
    vo, counts = load_vo(path)
    assert vo.stamps_ns.tolist() == [0, 1_000_000, 2_000_000]
    assert list(counts.values()) == [3]


@pytest.mark.parametrize(
    ("reader", "content", "message"),
    [
        (read_extrinsics, "1 2 3", "six numbers"),
        (read_extrinsics, "1 2 3 4 5 x", "not a number"),
        (read_extrinsics, "1 2 3 4 5 nan", "not finite"),
        (read_camera_model, "1 2 3 4", "4x4 pose"),
        (read_camera_model, "0 " * 20, "fx, fy > 0"),
        (read_timestamps, "12 1\nxx 1\n", ":2:"),
        (read_vo_csv, "", "is empty"),
        (read_vo_csv, "a,b\n1,2\n", "no column 'source_timestamp'"),
        (read_ins_csv, INS_HEADER, "no sound row"),
        (read_distortion_lut, "1234567", "truncated"),
        (read_bayer_png, "", "is not a PNG"),
    ],
)
def test_malformed_files_are_named(tmp_path: Path, reader, content: str, message: str) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "the_file"
    path.write_text(content)
    with pytest.raises(DatasetError, match="the_file") as caught:
        reader(path)
    assert message in str(caught.value)
    path.unlink()
    with pytest.raises(DatasetError, match="the_file"):
        reader(path)


def test_ins_of_another_country_needs_its_own_origin(tmp_path: Path) -> None:
    path = tmp_path / "ins.csv"
    write_ins(path, [(0, "INS_SOLUTION_GOOD", 200_000.0, 0, 0, 0, 0, 0)])
    with pytest.raises(DatasetError, match="origin"):
        read_ins_csv(path)
    easting, northing, altitude = OXFORD_ORIGIN_UTM
    there = read_ins_csv(path, (easting, northing + 200_000.0, altitude))
    assert np.allclose(there.poses_N44[0][:3, 3], 0.0, atol=1e-6)


def test_undistortion_by_the_identity_changes_nothing() -> None:
    rgb = np.random.default_rng(0).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    rows, columns = np.mgrid[0:6, 0:8]
    assert (undistort(rgb, np.stack([columns.ravel(), rows.ravel()]).astype(np.float32)) == rgb).all()
