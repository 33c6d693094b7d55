"""`vmloc fuse`: files in, a trajectory out; and what the defaults reach on the real LOOP recordings."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from vmloc_ros.commands.fuse import read_measurements, read_odometry, run_fuse
from vmloc_ros.errors import ConfigError, TrajectoryError, VmlocError
from vmloc_ros.geometry import Array, exp_se3, inverse, quaternion_from_pose
from vmloc_ros.trajectory import NANOSECONDS, Trajectory, read_tum, write_tum

SIGMA = np.array([0.5, 0.5, 0.2, 0.01, 0.01, 0.03])


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A drive of 40 s: truth, drifting odometry in another frame, noisy poses at 5 Hz (with and without deviations)."""
    folder, rng = tmp_path_factory.mktemp("fuse"), np.random.default_rng(0)
    truth, drifting = [exp_se3([50.0, 20.0, 1.0, 0.0, 0.0, 1.0])], [np.eye(4)]
    for k in range(799):
        step = exp_se3([0.3, 0.0, 0.0, 0.0, 0.0, 0.01 * np.sin(0.02 * k)])
        truth.append(truth[-1] @ step)
        drifting.append(drifting[-1] @ step @ exp_se3(rng.normal(size=6) * [0.02, 0.02, 0.005, 5e-4, 5e-4, 2e-3]))
    stamps = 1_700_000_000 * NANOSECONDS + np.arange(800, dtype=np.int64) * 50_000_000
    write_tum(folder / "truth.tum", Trajectory(stamps, np.array(truth)))
    write_tum(folder / "odometry.tum", Trajectory(stamps, np.array(drifting)))
    mounting = exp_se3([1.5, 0.2, 1.0, 0.0, 0.1, 1.5])
    write_tum(folder / "sensor.tum", Trajectory(stamps, np.array([inverse(mounting) @ T @ mounting for T in drifting])))
    np.savetxt(folder / "mounting.txt", [np.r_[mounting[:3, 3], quaternion_from_pose(mounting)]])
    poses = np.array([T @ exp_se3(SIGMA * rng.normal(size=6)) for T in truth[::4]])
    write_tum(folder / "poses.tum", Trajectory(stamps[::4], poses))
    lines = (folder / "poses.tum").read_text().splitlines()
    deviations = " ".join(str(value) for value in [0.5, 0.5, 0.2, 0.02, 0.02, 0.03])
    (folder / "poses14.txt").write_text("\n".join(f"{line} {deviations}" for line in lines) + "\n")
    return folder


def test_fusion_is_better_than_either(files: Path, tmp_path: Path) -> None:
    result = run_fuse(
        files / "odometry.tum",
        files / "poses14.txt",
        tmp_path / "fused.tum",
        truth=files / "truth.tum",
        json=tmp_path / "fused.json",
    )
    fused, poses, odometry = (result[name]["position_m"]["mean"] for name in ("fused", "poses", "odometry"))
    assert fused < 0.8 * poses
    assert fused < odometry
    assert (
        result["counters"]["verdict.fused"] + result["counters"]["verdict.gated"] == result["poses"]["samples"] == 200
    )
    assert json.loads((tmp_path / "fused.json").read_text()) == result
    trajectory = read_tum(tmp_path / "fused.tum")
    assert len(trajectory) == result["fused"]["samples"]
    assert set(trajectory.stamps_ns.tolist()) <= set(read_tum(files / "odometry.tum").stamps_ns.tolist())
    assert result["fused"]["n"] == len(trajectory)


def test_result_holds_nothing_later(files: Path, tmp_path: Path) -> None:
    """Cutting the files short does not change what came before."""
    run_fuse(files / "odometry.tum", files / "poses14.txt", tmp_path / "whole.tum")
    for name in ("odometry.tum", "poses14.txt"):
        lines = (files / name).read_text().splitlines()
        (tmp_path / name).write_text("\n".join(lines[: len(lines) // 2]) + "\n")
    run_fuse(tmp_path / "odometry.tum", tmp_path / "poses14.txt", tmp_path / "half.tum")
    whole, half = read_tum(tmp_path / "whole.tum"), read_tum(tmp_path / "half.tum")
    np.testing.assert_array_equal(whole.stamps_ns[: len(half)], half.stamps_ns)
    np.testing.assert_allclose(whole.poses_N44[: len(half)], half.poses_N44, atol=1e-8)


def test_extrinsics_move_the_odometry_to_the_base(files: Path) -> None:
    base = read_odometry(files / "odometry.tum")
    sensor = read_odometry(files / "sensor.tum", np.loadtxt(files / "mounting.txt").tolist())
    np.testing.assert_allclose(sensor.poses_N44, base.poses_N44, atol=1e-6)


def test_deviations_come_from_the_file_or_the_options(files: Path) -> None:
    def deviations(name: str, *sigmas: float | None) -> Array:
        measurement = read_measurements(files / name, *sigmas)[0]
        return np.sqrt(measurement.cov_66.diagonal())

    np.testing.assert_allclose(deviations("poses.tum"), [1.0] * 3 + [np.deg2rad(2.0)] * 3)
    np.testing.assert_allclose(deviations("poses.tum", 0.3, 5.0), [0.3] * 3 + [np.deg2rad(5.0)] * 3)
    np.testing.assert_allclose(deviations("poses14.txt"), [0.5, 0.5, 0.2, 0.02, 0.02, 0.03], rtol=0.05)
    np.testing.assert_allclose(deviations("poses14.txt", 0.3), [0.3, 0.3, 0.3, 0.02, 0.02, 0.03], rtol=0.05)


def test_deviations_are_of_the_maps_axes(tmp_path: Path) -> None:
    """A body that looks to +y has the map's x at its right."""
    path = tmp_path / "poses.txt"
    quat = quaternion_from_pose(exp_se3([0, 0, 0, 0, 0, np.pi / 2]))
    path.write_text(f"1.0 0 0 0 {' '.join(map(str, quat))} 3 2 1 0.3 0.2 0.1\n")
    variances = read_measurements(path)[0].cov_66.diagonal()
    np.testing.assert_allclose(variances, np.array([2, 3, 1, 0.2, 0.3, 0.1]) ** 2, atol=1e-9)


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_bad_options_are_refused(files: Path, tmp_path: Path, value: float) -> None:
    with pytest.raises(ConfigError, match="sigma-m"):
        run_fuse(files / "odometry.tum", files / "poses.tum", tmp_path / "a.tum", sigma_m=value)
    with pytest.raises(ConfigError, match="extrinsics"):
        read_odometry(files / "odometry.tum", [value, 0, 0, 0, 0, 0, 0])
    with pytest.raises(ConfigError, match="extrinsics"):
        read_odometry(files / "odometry.tum", [0, 0, 0])
    assert not (tmp_path / "a.tum").exists()


@pytest.mark.parametrize("tail", ["1 1 1", "1 1 1 1 1 x", "1 1 1 1 1 0", "1 1 1 1 1 nan"])
def test_bad_deviations_name_the_file(tmp_path: Path, tail: str) -> None:
    path = tmp_path / "poses.txt"
    path.write_text(f"1.0 0 0 0 0 0 0 1 1 1 1 1 1 1\n2.0 0 0 0 0 0 0 1 {tail}\n")
    with pytest.raises(TrajectoryError, match=r"poses\.txt"):
        read_measurements(path)


def test_files_that_share_no_time_are_refused(files: Path, tmp_path: Path) -> None:
    (tmp_path / "poses.tum").write_text("1.0 0 0 0 0 0 0 1\n")
    with pytest.raises(TrajectoryError, match="never started"):
        run_fuse(files / "odometry.tum", tmp_path / "poses.tum", tmp_path / "out.tum")
    with pytest.raises(TrajectoryError, match="shares no stamp"):
        run_fuse(files / "odometry.tum", files / "poses.tum", tmp_path / "out.tum", truth=tmp_path / "poses.tum")
    with pytest.raises(VmlocError, match=r"missing\.tum"):
        run_fuse(tmp_path / "missing.tum", files / "poses.tum", tmp_path / "out.tum")


@pytest.mark.parametrize("traversal", ["2014-06-26-08-53-56", "2014-06-26-09-24-58"])
def test_loop_with_the_defaults(shared_data: Path, tmp_path: Path, traversal: str) -> None:
    """Real visual odometry and simulated network errors: what the defaults reach (docs state the numbers)."""
    folder = shared_data / "robotcar" / "loop" / traversal
    if not folder.is_dir():
        pytest.skip(f"the shared LOOP recordings are not here: {folder}")
    result = run_fuse(
        folder / "vo" / "vo.csv",
        folder / "simulated" / "network_poses.txt",
        tmp_path / "fused.tum",
        truth=folder / "simulated" / "ground_truth.tum",
    )
    poses, fused = result["poses"]["position_m"], result["fused"]["position_m"]
    assert fused["mean"] < 0.40 * poses["mean"]
    assert fused["p95"] < 9.0
    for part in ("pose", "position", "planar"):
        assert 0.5 < result["nees"][part]["mean"] / result["nees"][part]["dof"] < 2.0, part
    assert result["counters"]["relocalizations"] == 0
    assert result["counters"]["widenings"] == 0
