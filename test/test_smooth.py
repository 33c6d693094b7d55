"""`vmloc smooth`: files in, the most likely drive out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from vmloc_ros.cli.entry import app
from vmloc_ros.commands import smooth
from vmloc_ros.commands.fuse import read_measurements, read_odometry
from vmloc_ros.commands.smooth import correlation_growth, dead_reckoning, robust_weights, run_smooth
from vmloc_ros.config import FilterConfig
from vmloc_ros.errors import ConfigError, TrajectoryError
from vmloc_ros.filter import correlation_inflation, robust_weight
from vmloc_ros.geometry import exp_se3, inverse
from vmloc_ros.trajectory import NANOSECONDS, Trajectory, read_tum, write_tum

SIGMA = np.array([0.5, 0.5, 0.2, 0.02, 0.02, 0.03])
START_NS, COUNT = 1_700_000_000 * NANOSECONDS, 160


@pytest.fixture
def _gtsam() -> None:
    pytest.importorskip("gtsam", reason="GTSAM is not installed: pip install -e .[batch]", exc_type=ImportError)


@pytest.fixture(scope="module")
def drive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """16 s at 5 m/s: truth, odometry that is 3 % short, poses at 5 Hz between its stamps, of which two are far off."""
    folder, rng = tmp_path_factory.mktemp("smooth"), np.random.default_rng(0)
    truth, odometry = [exp_se3([50.0, 20.0, 1.0, 0.0, 0.0, 1.0])], [np.eye(4)]
    for k in range(COUNT - 1):
        way = np.array([0.5, 0.0, 0.0, 0.0, 0.0, 0.03 * np.sin(0.05 * k)])
        truth.append(truth[-1] @ exp_se3(way))
        noise = rng.normal(size=6) * [0.01, 0.01, 0.005, 5e-4, 5e-4, 1e-3]
        odometry.append(odometry[-1] @ exp_se3(way * [0.97, 1, 1, 1, 1, 1]) @ exp_se3(noise))
    stamps = START_NS + np.arange(COUNT, dtype=np.int64) * 100_000_000
    true = Trajectory(stamps, np.array(truth))
    write_tum(folder / "truth.tum", true)
    write_tum(folder / "odometry.tum", Trajectory(stamps, np.array(odometry)))
    between = stamps[:-1:2] + 30_000_000
    poses = [true.interpolate(int(stamp)) @ exp_se3(SIGMA * rng.normal(size=6)) for stamp in between]
    for k in (20, 50):
        poses[k] = poses[k] @ exp_se3([0.0, 40.0, 0.0, 0.0, 0.0, 1.0])
    write_tum(folder / "poses.tum", Trajectory(between, np.array(poses)))
    lines = (folder / "poses.tum").read_text().splitlines()
    (folder / "poses14.txt").write_text("".join(f"{line} {' '.join(map(str, SIGMA))}\n" for line in lines))
    return folder


@pytest.mark.usefixtures("_gtsam")
def test_knowing_what_comes_later_is_better(drive: Path, tmp_path: Path) -> None:
    """Than the filter, which is better than the poses; at every stamp of either file."""
    result = run_smooth(
        drive / "odometry.tum",
        drive / "poses14.txt",
        tmp_path / "smoothed.tum",
        truth=drive / "truth.tum",
        json=tmp_path / "smoothed.json",
        config=FilterConfig(measurement_correlation_s=0.0, measurement_inflation=1.0),
    )
    errors = {name: result[name]["position_m"]["mean"] for name in ("poses", "fused", "smoothed")}
    print(errors, result["nees"], result["odometry_model"])
    assert errors["smoothed"] < errors["fused"] < errors["poses"]
    assert result["smoothed"]["position_m"]["max"] < 1.0  # the outliers are 40 m off
    assert 0.2 < result["nees"]["pose"]["mean"] / 6.0 < 2.0
    assert result["odometry_model"]["log_scale"] == pytest.approx(-np.log(0.97), abs=0.015)
    assert json.loads((tmp_path / "smoothed.json").read_text()) == result
    track = read_tum(tmp_path / "smoothed.tum")
    stamps = {*read_tum(drive / "odometry.tum").stamps_ns.tolist(), *read_tum(drive / "poses.tum").stamps_ns.tolist()}
    assert track.stamps_ns.tolist() == sorted(stamps)


@pytest.mark.usefixtures("_gtsam")
def test_the_command_says_what_it_did(drive: Path, tmp_path: Path) -> None:
    lines = (drive / "poses14.txt").read_text().splitlines()
    (tmp_path / "two.txt").write_text("\n".join([lines[3], lines[12]]))  # too few to start the filter
    arguments = ["smooth", str(drive / "odometry.tum"), str(tmp_path / "two.txt"), "--out", str(tmp_path / "out.tum")]
    outcome = CliRunner().invoke(app, [*arguments, "--truth", str(drive / "truth.tum")])
    assert outcome.exit_code == 0, outcome.output
    assert "fused: 0 samples\n" in outcome.output
    assert f"smoothed: {COUNT + 2} samples, mean error" in outcome.output
    assert len(read_tum(tmp_path / "out.tum")) == COUNT + 2


@pytest.mark.usefixtures("_gtsam")
def test_what_cannot_be_smoothed_is_refused(drive: Path, tmp_path: Path) -> None:
    poses = read_tum(drive / "poses.tum")
    write_tum(tmp_path / "later.tum", Trajectory(poses.stamps_ns + 10**12, poses.poses_N44))
    with pytest.raises(TrajectoryError, match="later.tum: none of its 80 poses"):
        run_smooth(drive / "odometry.tum", tmp_path / "later.tum", tmp_path / "out.tum")
    with pytest.raises(ConfigError, match="planar"):
        run_smooth(drive / "odometry.tum", drive / "poses.tum", tmp_path / "out.tum", config=FilterConfig(planar=True))
    assert not (tmp_path / "out.tum").exists()


def test_dead_reckoning_is_the_odometry_where_nothing_is_wrong(drive: Path) -> None:
    odometry, measurements = read_odometry(drive / "odometry.tum"), read_measurements(drive / "poses.tum")
    chain = dead_reckoning(odometry, measurements, FilterConfig())
    assert chain.stamps_ns.tolist() == sorted({*odometry.stamps_ns.tolist(), *(z.stamp_ns for z in measurements)})
    expected = [inverse(odometry.poses_N44[0]) @ odometry.interpolate(stamp) for stamp in chain.stamps_ns.tolist()]
    np.testing.assert_allclose(chain.T_start_N44, expected, atol=1e-9)
    assert (np.diff(chain.variances_N2, axis=0) > 0.0).all()
    jumping = odometry.poses_N44.copy()
    jumping[80:] = exp_se3([500.0, 0.0, 0.0, 0.0, 0.0, 1.0]) @ jumping[80:]
    bridged = dead_reckoning(Trajectory(odometry.stamps_ns, jumping), measurements, FilterConfig())
    ways = np.array([np.linalg.norm(way.T_prev_now[:3, 3]) for way in bridged.ways()])
    assert ways.max() < 1.0
    widest = int(np.argmax(np.diff(bridged.variances_N2[:, 0])))
    assert bridged.stamps_ns[widest + 1] in (odometry.stamps_ns[80], odometry.stamps_ns[80] - 70_000_000)


@given(st.lists(st.floats(0.01, 3.0), min_size=1, max_size=20), st.integers(0, 2**32 - 1))
def test_weights_are_the_filters_of_the_mean_about_each_pose(steps: list[float], seed: int) -> None:
    """Against the sums written out."""
    config, seconds = FilterConfig(), np.cumsum([0.0, *steps])
    squares = np.random.default_rng(seed).chisquare(6, len(seconds)) * 3.0
    clipped = np.minimum(squares, smooth.chi2.ppf(config.gate_probability, 6))
    fade = np.exp(-np.abs(seconds[:, None] - seconds[None, :]) / config.noise_level_s)
    level = fade @ clipped / fade.sum(axis=1)
    expected = [
        robust_weight(max(one, mean), config.student_t_dof, 6, config.robust_power, config.max_robust_weight)
        for one, mean in zip(squares, level, strict=True)
    ]
    np.testing.assert_allclose(robust_weights(squares, seconds, config), expected, rtol=1e-9)
    assert (robust_weights(squares, seconds, FilterConfig(student_t_dof=0.0)) == 1.0).all()
    growth = correlation_growth(seconds, 1.5)
    assert growth[1:] == pytest.approx([correlation_inflation(dt, 1.5) for dt in np.diff(seconds)])
    assert growth[0] == growth[1]
