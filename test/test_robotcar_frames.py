"""RobotCar as training sees it: labels at the image's own stamp, depth at the image's time, splits by name.

The traversals are written from a motion that is known at every instant, so that each law has an exact answer.
"""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from robotcar_folders import write_ins, write_vo

from vmloc_ros.assembly import LabelledFrame, labelled_frames
from vmloc_ros.commands.evaluate import reader_options
from vmloc_ros.config import LocalizerConfig, parse
from vmloc_ros.datasets.open import ROBOTCAR_SPLITS, open_recordings
from vmloc_ros.datasets.robotcar import RobotCarRecording
from vmloc_ros.datasets.robotcar_files import AXES, ENU_FROM_NED, base_from_stereo, pose_from_xyzrpy
from vmloc_ros.datasets.skips import LeftOut, refuse_broken
from vmloc_ros.datasets.town_drive import xyzrpy_from_poses
from vmloc_ros.errors import DatasetError
from vmloc_ros.geometry import Array, exp_se3, inverse, make_pose
from vmloc_ros.types import PinholeIntrinsics

START_US = 1_400_000_000_000_000
TWIST = np.array([8.0, 0.0, 0.1, 0.01, -0.02, 0.3])
T_MAP_START = make_pose(pose_from_xyzrpy([0, 0, 0, 0.02, -0.03, 0.7])[:3, :3], [120.0, -45.0, 3.0])
INS = (-1.7, 0.12, 1.19, -0.01, 0.04, 0.005)
LIDAR_MOUNTS = {
    "velodyne_left": (-0.6, -0.5, -0.2, 0.01, 0.05, 0.1),
    "ldmrs": (1.5, 0.02, 1.1, 0.0, 0.06, -0.02),
    "lms_front": (1.7, 0.2, 0.4, 0.03, -0.1, 0.05),
}
GOOD, BAD = "INS_SOLUTION_GOOD", "INS_BAD_GPS_AGREEMENT"


def true_pose(stamp_us: int) -> Array:
    """`T_map_base`: a bend that also climbs."""
    return T_MAP_START @ exp_se3((stamp_us - START_US) * 1e-6 * TWIST)


def ins_rows(stamps_us: list[int], outage: tuple[int, int] = (0, 0)) -> list[Any]:
    """Rows of `write_ins`; those of the outage say that they are not good, and are nonsense."""
    rows = []
    for stamp in stamps_us:
        T = true_pose(stamp)
        roll, pitch, yaw = xyzrpy_from_poses((ENU_FROM_NED.T @ T @ AXES)[None])[0, 3:].tolist()
        east, north, up = T[:3, 3].tolist()
        bad = outage[0] <= stamp < outage[1]
        rows.append((stamp, BAD if bad else GOOD, north + 999.0 * bad, east, -up, roll, pitch, yaw))
    return rows


def write_traversal(
    folder: Path, images_us: list[int], lidar: str = "velodyne_left", outage: tuple[int, int] = (0, 0), seed: int = 0
) -> list[Array]:
    """A traversal; returns the points (N, 3) in the map that its lidar has measured, per sweep."""
    rng = np.random.default_rng(seed)
    (folder / "stereo" / "centre").mkdir(parents=True)
    (folder / lidar).mkdir()
    for stamp in images_us:
        cv2.imwrite(str(folder / "stereo" / "centre" / f"{stamp}.png"), rng.integers(0, 255, (48, 64), dtype=np.uint8))
    T_base_stereo = base_from_stereo(pose_from_xyzrpy(INS))
    stereo = [true_pose(stamp) @ T_base_stereo for stamp in images_us]
    steps = [AXES @ inverse(one) @ other @ AXES for one, other in itertools.pairwise(stereo)]
    write_vo(folder / "vo" / "vo.csv", images_us, steps)
    write_ins(folder / "gps" / "ins.csv", ins_rows(list(range(START_US, images_us[-1] + 40_000, 20_000)), outage))
    (folder / "extrinsics").mkdir()
    (folder / "models").mkdir()
    mounts = {"stereo": (0.0,) * 6, "ins": INS, lidar: LIDAR_MOUNTS[lidar]}
    for name, numbers in mounts.items():
        (folder / "extrinsics" / f"{name}.txt").write_text(" ".join(map(str, numbers)) + "\n")
    (folder / "models" / "stereo_narrow_left.txt").write_text("50 50 31.5 23.5\n0 0 1 0\n1 0 0 0\n0 1 0 0\n0 0 0 1\n")
    T_base_lidar = T_base_stereo @ AXES @ pose_from_xyzrpy(LIDAR_MOUNTS[lidar])  # the lidar's own axes: z down
    measured = []
    for stamp in range(images_us[0] + 7_000, images_us[-1], 50_000):
        points = rng.uniform([6.0, -5.0, -2.0], [30.0, 5.0, 2.0], (80, 3))
        if lidar.startswith("lms"):
            points[:, 2] = 0.0
        measured.append(points @ (true_pose(stamp) @ T_base_lidar)[:3, :3].T + (true_pose(stamp) @ T_base_lidar)[:3, 3])
        grey = np.full((80, 1), 9.0)
        if lidar.startswith("velodyne"):
            content = np.hstack([points, grey]).T.astype("<f4").tobytes()
        else:
            content = (np.hstack([points[:, :2], grey]) if lidar.startswith("lms") else points).astype("<f8").tobytes()
        (folder / lidar / f"{stamp}.bin").write_bytes(content)
    return measured


def frames_of(folder: Path, lidar: str, **localizer: Any) -> tuple[RobotCarRecording, list[LabelledFrame]]:
    projection = {"width": 64, "height": 48, **localizer.pop("projection", {})}
    recording = RobotCarRecording(folder, lidar=lidar)
    return recording, list(labelled_frames(recording, parse(LocalizerConfig, {"projection": projection}, "test")))


@settings(max_examples=5)
@given(st.integers(0, 19_999), st.integers(40_000, 90_000))
def test_labels_are_the_pose_at_the_images_own_stamp(
    tmp_path_factory: pytest.TempPathFactory, phase_us: int, step_us: int
) -> None:
    """A shift by one image would be half a metre; by one row of the INS, 16 cm."""
    folder = tmp_path_factory.mktemp("traversal")
    images = [START_US + phase_us + k * step_us for k in range(12)]
    write_traversal(folder, images)
    recording, frames = frames_of(folder, "velodyne_left")
    T_base_camera = next(t for t in recording.static_transforms() if t.child == "camera_optical").T_parent_child
    assert [item.frame.key.image_stamp_ns for item in frames] == [1000 * stamp for stamp in images]
    for item, stamp in zip(frames, images, strict=True):
        error = inverse(true_pose(stamp) @ T_base_camera) @ item.T_map_camera
        assert np.abs(error - np.eye(4)).max() < 1e-3


@pytest.mark.parametrize("lidar", list(LIDAR_MOUNTS))
@pytest.mark.parametrize("accumulate", ["past", "around"])
def test_depth_is_of_the_images_time_for_every_lidar(tmp_path: Path, lidar: str, accumulate: str) -> None:
    """Sweeps before (and after) the image, moved along the odometry: each return is a point of the world, seen there.

    Left where they were measured, the points of the first sweep of a window would be off by more than a metre.
    """
    images = [START_US + 11_000 + k * 62_500 for k in range(16)]
    world = np.concatenate(write_traversal(tmp_path, images, lidar))
    window = {"accumulate": accumulate, "window_s": 0.2}
    _, frames = frames_of(tmp_path, lidar, projection=window)
    camera = PinholeIntrinsics(64, 48, 50.0, 50.0, 31.5, 23.5)
    with_depth = [item for item in frames[5:-5] if item.frame.depth_m is not None]
    assert len(with_depth) == 6
    for item in with_depth:
        assert item.frame.depth_m is not None
        T = inverse(item.T_map_camera)
        seen = world @ T[:3, :3].T + T[:3, 3]
        seen = seen[seen[:, 2] > 0.5]
        u = camera.fx * seen[:, 0] / seen[:, 2] + camera.cx
        v = camera.fy * seen[:, 1] / seen[:, 2] + camera.cy
        rows, columns = np.nonzero(item.frame.depth_m)
        assert len(rows) > 60
        for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
            near = (np.abs(u - column) <= 1.0) & (np.abs(v - row) <= 1.0)
            assert near.any()
            assert np.abs(seen[near, 2] - item.frame.depth_m[row, column]).min() < 0.01


def test_outages_of_the_ins_are_dropped_and_counted_not_bridged(tmp_path: Path) -> None:
    images = [START_US + 11_000 + k * 62_500 for k in range(64)]
    outage = (START_US + 1_000_000, START_US + 2_500_000)
    write_traversal(tmp_path, images, outage=outage)
    recording, frames = frames_of(tmp_path, "velodyne_left")
    inside = [stamp for stamp in images if outage[0] - 20_000 < stamp < outage[1]]
    assert [item.frame.stamp_ns // 1000 for item in frames] == [stamp for stamp in images if stamp not in inside]
    assert all(np.isfinite(item.T_map_camera).all() for item in frames)
    skips = recording.skips.everything()
    assert skips["no truth"].count == len(inside) == 24
    assert skips[f"INS rows that are not {GOOD}"].count == 75
    assert recording.file_count() == len(images) + len(list((tmp_path / "velodyne_left").iterdir()))
    refuse_broken([LeftOut(recording.name, recording.file_count(), skips)], allow=False)  # no file is broken


# -------------------------------------------------------------------------------------------------------- LOOP and FULL


def write_odometry_only(folder: Path) -> None:
    """The least that is a traversal."""
    stamps = [START_US, START_US + 62_500]
    write_vo(folder / "vo" / "vo.csv", stamps, [pose_from_xyzrpy([1.0, 0, 0, 0, 0, 0])])


@pytest.fixture
def traversals(tmp_path: Path) -> Path:
    for parts in ROBOTCAR_SPLITS.values():
        for names in parts.values():
            for name in names:
                write_odometry_only(tmp_path / name)
    (tmp_path / "extrinsics").mkdir()
    (tmp_path / "extrinsics" / "ins.txt").write_text("0 0 0 0 0 0\n")
    write_odometry_only(tmp_path / "2015-01-01-00-00-00")
    return tmp_path


@pytest.mark.parametrize("split", ["loop", "full"])
@pytest.mark.parametrize("part", ["train", "test"])
def test_splits_take_their_traversals_and_read_no_other(traversals: Path, split: str, part: str) -> None:
    wanted = ROBOTCAR_SPLITS[split][part]
    for path in traversals.glob("2*/vo/vo.csv"):
        if path.parent.parent.name not in wanted:
            path.write_text("")  # whoever reads it is refused
    options = {"split": split} if part == "train" else {"split": split, "part": part}
    assert tuple(recording.name for recording in open_recordings("robotcar", traversals, **options)) == wanted


def test_the_splits_are_those_of_the_papers() -> None:
    assert ROBOTCAR_SPLITS["loop"]["train"] == ("2014-06-26-09-24-58", "2014-06-26-08-53-56")
    assert ROBOTCAR_SPLITS["loop"]["test"] == ("2014-06-23-15-41-25", "2014-06-23-15-36-04")
    assert ROBOTCAR_SPLITS["full"]["train"] == ("2014-11-28-12-07-13", "2014-12-02-15-30-08")
    assert ROBOTCAR_SPLITS["full"]["test"] == ("2014-12-09-13-21-02", "2014-12-12-10-45-15")


def test_a_missing_traversal_is_named(traversals: Path, tmp_path: Path) -> None:
    shutil.rmtree(traversals / "2014-06-26-08-53-56")
    with pytest.raises(DatasetError, match=r"no traversal 2014-06-26-08-53-56, which LOOP's train part needs"):
        open_recordings("robotcar", traversals, split="loop")
    assert len(open_recordings("robotcar", traversals, split="loop", part="test")) == 2
    for options, message in (
        ({"split": "long"}, "'long' is not loop or full"),
        ({"split": "loop", "part": "validation"}, "'validation' is not train or test"),
        ({"part": "test"}, "give split"),
    ):
        with pytest.raises(DatasetError, match=message):
            open_recordings("robotcar", traversals, **options)


def test_evaluation_of_a_split_takes_its_test_part(tmp_path: Path) -> None:
    assert reader_options(tmp_path, "robotcar", {"split": "loop"}) == {"split": "loop", "part": "test"}
    assert reader_options(tmp_path, "robotcar", {"split": "loop", "part": "train"})["part"] == "train"
    assert "part" not in reader_options(tmp_path, "sevenscenes", {"split": "test"})
