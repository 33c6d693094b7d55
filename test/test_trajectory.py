"""Trajectories: interpolation that never bridges a gap, TUM files exact to the nanosecond."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmloc_ros.errors import TrajectoryError
from vmloc_ros.geometry import exp_se3, interpolate
from vmloc_ros.trajectory import NANOSECONDS, Trajectory, read_tum, stamp_from_text, write_tum


def drive(count: int = 10, step_s: float = 0.1, start_ns: int = 1_403_772_869_030_401_123) -> Trajectory:
    rng = np.random.default_rng(1)
    poses = [np.eye(4)]
    for _ in range(count - 1):
        poses.append(poses[-1] @ exp_se3(rng.normal(size=6) * [0.5, 0.1, 0.1, 0.1, 0.1, 0.3]))
    return Trajectory(start_ns + np.arange(count, dtype=np.int64) * round(step_s * NANOSECONDS), np.array(poses))


@settings(max_examples=50)
@given(
    stamps=st.lists(st.integers(0, 2**62), min_size=1, max_size=8, unique=True),
    seed=st.integers(0, 2**32 - 1),
)
def test_tum_files_round_trip(stamps: list[int], seed: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    rng = np.random.default_rng(seed)
    poses = np.array([exp_se3(rng.normal(size=6) * [1000, 1000, 100, 1, 1, 1]) for _ in stamps])
    path = tmp_path_factory.getbasetemp() / "round_trip.tum"
    write_tum(path, Trajectory(np.array(sorted(stamps), dtype=np.int64), poses))
    back = read_tum(path)
    assert back.stamps_ns.tolist() == sorted(stamps)  # to the nanosecond
    np.testing.assert_allclose(back.poses_N44, poses, atol=1e-8)


@given(st.integers(0, 2**62))
def test_stamps_do_not_pass_through_floats(stamp_ns: int) -> None:
    assert stamp_from_text(f"{stamp_ns // NANOSECONDS}.{stamp_ns % NANOSECONDS:09d}") == stamp_ns


@pytest.mark.parametrize(
    ("text", "stamp_ns"),
    [
        ("0", 0),
        ("12", 12 * NANOSECONDS),
        ("12.", 12 * NANOSECONDS),
        ("0.5", 500_000_000),
        ("1403772869.030401", 1_403_772_869_030_401_000),
        ("1.0000000019", 1_000_000_001),
        ("1e3", 1000 * NANOSECONDS),
        (".25", 250_000_000),
        ("-0.5", -500_000_000),
        ("-1.25", -1_250_000_000),
        ("1.403772869030401e9", 1_403_772_869_030_401_000),
    ],
)
def test_stamps_as_people_write_them(text: str, stamp_ns: int) -> None:
    assert abs(stamp_from_text(text) - stamp_ns) <= (200 if "e" in text else 0)


def test_negative_stamps_round_trip(tmp_path: Path) -> None:
    stamps = np.array([-1_500_000_000, -1, 0, 1], dtype=np.int64)
    write_tum(tmp_path / "a.tum", Trajectory(stamps, np.tile(np.eye(4), (4, 1, 1))))
    assert (tmp_path / "a.tum").read_text().startswith("-1.500000000 ")
    assert read_tum(tmp_path / "a.tum").stamps_ns.tolist() == stamps.tolist()


@given(st.integers(0, 8), st.floats(0.0, 1.0))
def test_interpolation(index: int, share: float) -> None:
    trajectory = drive()
    a, b = (int(s) for s in trajectory.stamps_ns[index : index + 2])
    stamp = a + round(share * (b - a))
    expected = interpolate(trajectory.poses_N44[index], trajectory.poses_N44[index + 1], (stamp - a) / (b - a))
    np.testing.assert_allclose(trajectory.interpolate(stamp), expected, atol=1e-9)
    np.testing.assert_array_equal(trajectory.interpolate(a), trajectory.poses_N44[index])
    np.testing.assert_array_equal(trajectory.interpolate(b), trajectory.poses_N44[index + 1])


def test_gaps_and_the_outside_are_refused() -> None:
    trajectory = Trajectory(np.array([0, 1, 4]) * NANOSECONDS, np.tile(np.eye(4), (3, 1, 1)), max_gap_s=1.0)
    assert trajectory.covers(NANOSECONDS // 2)
    for stamp in (-1, 2 * NANOSECONDS, 4 * NANOSECONDS + 1):
        assert not trajectory.covers(stamp)
        with pytest.raises(TrajectoryError):
            trajectory.interpolate(stamp)
    assert trajectory.covers(4 * NANOSECONDS)
    assert trajectory.covers(NANOSECONDS)
    empty = Trajectory(np.empty(0, dtype=np.int64), np.empty((0, 4, 4)))
    assert not empty.covers(0)
    assert empty.length_m() == 0.0


def test_interpolated_pose_is_the_callers_own() -> None:
    trajectory = drive()
    trajectory.interpolate(int(trajectory.stamps_ns[0]))[0, 3] = 99.0
    assert trajectory.poses_N44[0, 0, 3] == 0.0


def test_length_and_transforms() -> None:
    trajectory = drive()
    left, right = exp_se3([1.0, 2, 3, 0.1, 0.2, 0.3]), exp_se3([0.5, 0, 0, 0, 0, 1.0])
    moved = trajectory.transformed(left, right)
    np.testing.assert_allclose(moved.poses_N44[3], left @ trajectory.poses_N44[3] @ right)
    assert trajectory.transformed(left).length_m() == pytest.approx(trajectory.length_m())
    assert len(moved) == len(trajectory)


@pytest.mark.parametrize(
    ("stamps", "poses"),
    [
        ([1, 1], np.tile(np.eye(4), (2, 1, 1))),
        ([2, 1], np.tile(np.eye(4), (2, 1, 1))),
        ([1], np.tile(np.eye(4), (2, 1, 1))),
        ([1], np.full((1, 4, 4), np.nan)),
    ],
)
def test_what_is_no_trajectory_is_refused(stamps: list[int], poses: np.ndarray) -> None:
    with pytest.raises(TrajectoryError):
        Trajectory(np.array(stamps, dtype=np.int64), poses)


GOOD = "1.5 1 2 3 0 0 0 1"


def test_reading_what_others_write(tmp_path: Path) -> None:
    """Comments, blank lines, further columns, unsorted and repeated stamps, quaternions of any length."""
    path = tmp_path / "a.tum"
    path.write_text(f"# a comment\n\n2.5 4 5 6 0 0 0 2 extra columns\n{GOOD}\n{GOOD}\n")
    trajectory = read_tum(path)
    assert trajectory.stamps_ns.tolist() == [1_500_000_000, 2_500_000_000]
    np.testing.assert_array_equal(trajectory.poses_N44[:, :3, 3], [[1, 2, 3], [4, 5, 6]])
    np.testing.assert_allclose(trajectory.poses_N44[1, :3, :3], np.eye(3))


@pytest.mark.parametrize(
    "line",
    [
        "1.5 1 2 3 0 0 0",
        "1.5 1 2 nan 0 0 0 1",
        "1.5 1 2 inf 0 0 0 1",
        "1.5 1 2 3 0 0 0 0",
        "1.5 1 2 x 0 0 0 1",
        "nan 1 2 3 0 0 0 1",
        "inf 1 2 3 0 0 0 1",
        "1e300 1 2 3 0 0 0 1",
        "1e12 1 2 3 0 0 0 1",
        "abc 1 2 3 0 0 0 1",
    ],
)
def test_bad_lines_are_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "bad.tum"
    path.write_text(f"{GOOD}\n{line}\n")
    with pytest.raises(TrajectoryError, match=r"bad\.tum:2"):
        read_tum(path)


def test_bad_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty.tum").write_text("# nothing\n")
    (tmp_path / "binary.tum").write_bytes(b"\xff\xfe\x00")
    for name in ("empty.tum", "binary.tum", "missing.tum"):
        with pytest.raises(TrajectoryError, match=name):
            read_tum(tmp_path / name)


def test_writing_is_atomic_and_makes_the_folder(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.tum"
    write_tum(path, drive())
    write_tum(path, drive(5))
    assert len(read_tum(path)) == 5
    assert [item.name for item in path.parent.iterdir()] == ["b.tum"]
