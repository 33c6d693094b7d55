"""The model of the measurements' errors: what is put in comes out, and a filter that is told so is honest."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from scipy.signal import lfilter
from synthetic_run import make_log
from typer.testing import CliRunner

from vmloc_ros import cli
from vmloc_ros.bag_writer import BagWriter
from vmloc_ros.commands.error_model import run_error_model
from vmloc_ros.config import FilterConfig, load_config
from vmloc_ros.correlation import Times, correlation_from_growth, correlation_time
from vmloc_ros.error_model import (
    ErrorModel,
    ErrorSeries,
    Estimate,
    errors_of,
    estimate,
    whiten,
)
from vmloc_ros.errors import BagError, ConfigError, GeometryError, TrajectoryError
from vmloc_ros.filter import correlation_inflation, innovate, robust_weight, update
from vmloc_ros.geometry import Array, exp_se3, quaternion_from_pose
from vmloc_ros.heavy_tails import Weighting, consistent_inflation, fit_student_t
from vmloc_ros.trajectory import NANOSECONDS, Trajectory, stamp_to_text, write_tum
from vmloc_ros.types import PoseMeasurement

START_NS = 1_700_000_000 * NANOSECONDS
SIGMA = np.array([0.5, 0.4, 0.2, 0.02, 0.01, 0.03])
QUIET = Console(quiet=True)


def autoregressive(count: int, step_s: float, tau_s: float, rng: np.random.Generator) -> Array:
    """(count, 6) of unit variance; independent for a correlation time of 0."""
    keep = float(np.exp(-step_s / tau_s)) if tau_s > 0.0 else 0.0
    noise = rng.normal(size=(count, 6)) * np.sqrt(1.0 - keep * keep)
    noise[0] = rng.normal(size=6)
    return np.asarray(lfilter([1.0], [1.0, -keep], noise, axis=0))


def heavy_tailed(count: int, dof: float, rng: np.random.Generator) -> Array:
    """(count, 6) independent errors of a Student t."""
    return rng.normal(size=(count, 6)) / np.sqrt(rng.chisquare(dof, count) / dof)[:, None]


def series(whitened_N6: Array, step_s: float = 0.1, stamps_ns: Array | None = None) -> ErrorSeries:
    """Errors that are such once divided by the deviations that are claimed for them."""
    count = len(whitened_N6)
    stamps = START_NS + np.round(np.arange(count) * step_s * NANOSECONDS).astype(np.int64)
    return ErrorSeries(
        stamps if stamps_ns is None else stamps_ns,
        whitened_N6 * SIGMA,
        np.broadcast_to(np.diag(SIGMA**2), (count, 6, 6)),
    )


def contains(part: Estimate, value: float) -> bool:
    return part.low <= value <= part.high


# ------------------------------------------------------------------------------------------------- what is put in


@pytest.mark.parametrize(("tau_s", "seed"), [(0.5, 0), (2.0, 1)])
def test_lasting_gaussian_errors(tau_s: float, seed: int) -> None:
    model = estimate([series(autoregressive(6000, 0.1, tau_s, np.random.default_rng(seed)))], replicates=20)
    for group in model.groups.values():
        assert group.correlation_s.value == pytest.approx(tau_s, rel=0.3)
        assert group.dof.value == 0.0
        assert group.dof.high == np.inf
        assert group.inflation.value == pytest.approx(1.0, rel=0.2)
        assert group.inflation.value == pytest.approx(group.nees_ratio)
    assert model.samples == 6000
    assert model.segments == 1
    assert model.duration_s == pytest.approx(599.9)
    assert model.step_s == pytest.approx(0.1)


def test_intervals_hold_the_truth_nearly_as_often_as_they_say() -> None:
    """Nominally 95 of 100; fewer where 200 s hold 200 correlation times."""
    held = 0
    for seed in range(12):
        errors = autoregressive(2000, 0.1, 1.0, np.random.default_rng(seed))
        for group in estimate([series(errors)], seed=seed, replicates=60).groups.values():
            held += contains(group.correlation_s, 1.0) + contains(group.inflation, 1.0)
            assert group.correlation_s.high < 3.0 * group.correlation_s.low
    print(f"{held} of 72 intervals hold the truth")
    assert held >= 54


@pytest.mark.parametrize("dof", [2.0, 4.0, 8.0])
def test_heavy_tails(dof: float) -> None:
    model = estimate([series(1.5 * heavy_tailed(4000, dof, np.random.default_rng(3)))], replicates=40)
    pose = model.groups["pose"]
    assert contains(pose.dof, dof)
    assert pose.dof.value == pytest.approx(dof, rel=0.15)
    assert pose.scale2.value == pytest.approx(1.5**2, rel=0.1)
    assert pose.correlation_s.value < 0.1


def test_a_gross_outlier_in_thirty_does_not_hide_the_correlation() -> None:
    """As on RobotCar: a plain autocorrelation of these errors is that of their outliers, which do not last."""
    rng = np.random.default_rng(4)
    errors = autoregressive(6000, 0.1, 2.0, rng)
    gross = rng.random(6000) < 0.03
    errors[gross] += 20.0 * rng.normal(size=(int(gross.sum()), 6))
    found = estimate([series(errors)], replicates=20).groups["pose"]
    assert found.correlation_s.value == pytest.approx(2.0, rel=0.3)
    assert 0.0 < found.dof.value < 10.0
    assert found.inflation.value < 2.0 < 5.0 < found.nees_ratio


def test_a_claim_too_small_or_too_large_moves_the_inflation_alone() -> None:
    rng = np.random.default_rng(5)
    errors = autoregressive(2000, 0.1, 0.5, rng) * (heavy_tailed(2000, 4.0, rng)[:, :1] ** 2 + 0.5)
    plain = estimate([series(errors)], replicates=20).groups["pose"]
    for scale in (0.01, 3.0):
        scaled = estimate([series(scale * errors)], replicates=20).groups["pose"]
        for name in ("inflation", "scale2"):
            one, other = getattr(plain, name), getattr(scaled, name)
            np.testing.assert_allclose(
                [other.value, other.low, other.high], scale**2 * np.array([one.value, one.low, one.high]), rtol=1e-3
            )
        assert scaled.dof.value == pytest.approx(plain.dof.value, rel=1e-3)
        assert scaled.correlation_s.value == pytest.approx(plain.correlation_s.value, rel=1e-3)


def test_axes_of_any_covariance() -> None:
    """Errors drawn from full 6x6 covariances that differ from sample to sample are honest in each group."""
    rng = np.random.default_rng(6)
    factors = rng.normal(size=(3000, 6, 6)) * SIGMA[:, None]
    errors = np.einsum("nij,nj->ni", factors, rng.normal(size=(3000, 6)))
    drive = series(np.zeros((3000, 6)))
    model = estimate([ErrorSeries(drive.stamps_ns, errors, factors @ factors.transpose(0, 2, 1))], replicates=20)
    for group in model.groups.values():
        assert group.nees_ratio == pytest.approx(1.0, rel=0.06)
        assert group.dof.value == 0.0


# -------------------------------------------------------------------------------------------------------------- time


def tau_of(values: Array, seconds: Array, gap_s: float = 5.0) -> float:
    stamps = START_NS + np.round(seconds * NANOSECONDS).astype(np.int64)
    return correlation_time(values, Times.of([stamps], gap_s), "errors")[0]


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.0, 1.0))
def test_time_backwards_is_the_same(seed: int, jitter: float) -> None:
    rng = np.random.default_rng(seed)
    seconds = np.cumsum(0.1 * (1.0 + jitter * rng.random(600)))
    values = autoregressive(600, 0.1, 0.3, rng)
    assert tau_of(values[::-1], seconds[-1] - seconds[::-1]) == pytest.approx(tau_of(values, seconds), rel=1e-6)


def test_half_the_errors_last_as_long() -> None:
    rng = np.random.default_rng(7)
    values, seconds = autoregressive(20000, 0.1, 2.0, rng), 0.1 * np.arange(20000)
    assert tau_of(values, seconds) == pytest.approx(2.0, rel=0.1)
    assert tau_of(values[::2], seconds[::2]) == pytest.approx(tau_of(values, seconds), rel=0.05)
    some = np.sort(rng.choice(20000, 10000, replace=False))  # irregular
    assert tau_of(values[some], seconds[some]) == pytest.approx(tau_of(values, seconds), rel=0.1)


def test_nothing_is_correlated_across_a_gap() -> None:
    """Drives, and one drive with gaps, are the same; in whatever order. Without the gaps it is another record."""
    rng = np.random.default_rng(8)
    pieces = [autoregressive(500, 0.1, 1.0, rng) for _ in range(12)]
    far = [series(piece, stamps_ns=START_NS + 10**11 * k + 10**8 * np.arange(500)) for k, piece in enumerate(pieces)]
    as_drives = estimate(far, replicates=20)
    one = ErrorSeries(
        *(np.concatenate([getattr(f, n) for f in far]) for n in ("stamps_ns", "errors_N6", "covariances_N66"))
    )
    as_gaps = estimate([one], replicates=20)
    assert as_gaps.as_dict() == as_drives.as_dict()
    assert as_gaps.segments == 12
    assert as_gaps.duration_s == pytest.approx(12 * 49.9)
    shuffled = [far[k] for k in rng.permutation(12)]
    again = estimate(shuffled, replicates=20).groups["pose"].correlation_s.value
    assert again == pytest.approx(as_drives.groups["pose"].correlation_s.value, rel=1e-9)
    # glued together without a gap, the ends of pieces would be compared: another answer
    glued = series(np.concatenate(pieces))
    assert estimate([glued], replicates=20).groups["pose"].correlation_s.value != pytest.approx(again, rel=1e-6)


def test_the_correlation_time_is_the_one_that_the_filter_uses() -> None:
    for step_s, tau_s in ((0.1, 2.0), (1.0, 0.5), (0.05, 0.05)):
        assert correlation_from_growth(correlation_inflation(step_s, tau_s), step_s) == pytest.approx(tau_s)
    assert correlation_from_growth(0.7, 0.1) == 0.0


def test_the_weights_are_the_filters() -> None:
    nis = np.array([0.5, 3.0, 7.0, 50.0, 1e4])  # not 0 and 6, where weights have a kink
    for dof, power, limit in itertools.product((0.0, 2.0, 7.5), (1.0, 2.0), (1.0, 4.0)):
        weighting = Weighting(power, limit)
        weights = weighting.weights(nis, dof, 6)
        np.testing.assert_allclose(weights, [robust_weight(value, dof, 6, power, limit) for value in nis], rtol=1e-12)
        if dof:
            steps = [weighting.weights(nis + step, dof, 6) for step in (1e-6, -1e-6)]
            np.testing.assert_allclose(weighting.slopes(nis, dof, 6), (steps[0] - steps[1]) / 2e-6, atol=1e-6)


# -------------------------------------------------------------------------------------------------------- honesty


@pytest.mark.parametrize(
    ("dof", "tau_s", "weighting"),
    [(0.0, 0.5, Weighting()), (8.0, 0.0, Weighting()), (8.0, 0.0, Weighting(2.0, 4.0))],
)
def test_a_filter_with_these_parameters_is_honest(dof: float, tau_s: float, weighting: Weighting) -> None:
    """Of a pose that stands still, after 100 measurements: the mean NEES over many runs is 6, give or take a third.

    The claimed covariance is too small by a factor of 4, the errors last, or have heavy tails.
    """
    rng, step_s = np.random.default_rng(9), 0.1

    def draw(count: int) -> Array:
        return 2.0 * (heavy_tailed(count, dof, rng) if dof else autoregressive(count, step_s, tau_s, rng))

    found = estimate([series(draw(8000), step_s)], weighting=weighting, replicates=20).parameters()
    v, c = found["student_t_dof"], found["measurement_inflation"]
    k = correlation_inflation(step_s, found["measurement_correlation_s"])
    nees = []
    for _ in range(60):
        T, P = np.eye(4), np.diag(SIGMA**2) * 1e4
        for error in draw(100) * 1e-2 * SIGMA:  # small, so that the pose is linear in its errors
            Z, R = exp_se3(-error), np.diag((1e-2 * SIGMA) ** 2) * c
            innovation = innovate(T, P, Z, R)
            weight = robust_weight(innovation.nis, v, 6, weighting.power, weighting.limit)
            T, P, _ = update(T, P, Z, R * k / weight, innovation)
        d = np.append(T[:3, 3], [T[2, 1], T[0, 2], T[1, 0]])
        nees.append(d @ np.linalg.solve(P, d))
    assert np.mean(nees) == pytest.approx(6.0, rel=0.33)


def test_inflation_of_gaussian_errors_is_their_mean_nees() -> None:
    q = np.random.default_rng(10).chisquare(6, 5000)
    assert consistent_inflation(q, 0.0, 6) == pytest.approx(q.mean() / 6)
    assert consistent_inflation(q, 1e4, 6) == pytest.approx(q.mean() / 6, rel=0.01)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.5, 20.0), st.sampled_from([3, 6]))
def test_errors_that_occurred_twice_are_counted_twice(seed: int, dof: float, dimension: int) -> None:
    rng = np.random.default_rng(seed)
    q = dimension * rng.f(dimension, dof, 200)
    counts = 1 + rng.multinomial(200, np.full(200, 1 / 200))
    long = np.repeat(q, counts)
    unit = np.median(long) / np.median(q)  # the fit starts at the median: the same end from another start
    assert 0.1 < unit < 10.0
    np.testing.assert_allclose(fit_student_t(q, dimension, counts), fit_student_t(long, dimension), rtol=0.02)
    np.testing.assert_allclose(
        consistent_inflation(q, dof, dimension, counts_N=counts), consistent_inflation(long, dof, dimension), rtol=1e-6
    )


# --------------------------------------------------------------------------------------------------------- refusals


def test_too_little_is_refused() -> None:
    rng = np.random.default_rng(11)
    for drives in ([], [series(rng.normal(size=(99, 6)))]):
        with pytest.raises(TrajectoryError, match="at least 100"):
            estimate(drives)
    with pytest.raises(TrajectoryError, match="independent stretches"):
        estimate([series(autoregressive(300, 0.1, 1.5, np.random.default_rng(1)))])
    with pytest.raises(TrajectoryError, match="gap-s"):
        estimate([series(rng.normal(size=(200, 6)), step_s=10.0)])


def test_a_constant_offset_never_ends() -> None:
    errors = np.random.default_rng(12).normal(size=(500, 6))
    errors[:, 0] += 20.0
    with pytest.raises(TrajectoryError, match="constant offset"):
        estimate([series(errors)])


@pytest.mark.parametrize("gap_s", [0.0, -1.0, float("nan"), float("inf")])
def test_a_gap_must_be_a_time(gap_s: float) -> None:
    with pytest.raises(ConfigError, match="gap-s"):
        estimate([series(np.ones((200, 6)))], gap_s)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_refused(value: float) -> None:
    good = series(np.random.default_rng(13).normal(size=(200, 6)))
    errors, covariances = good.errors_N6.copy(), good.covariances_N66.copy()
    errors[7, 3] = value
    covariances[8, 1, 1] = value
    for broken in (
        ErrorSeries(good.stamps_ns, errors, good.covariances_N66),
        ErrorSeries(good.stamps_ns, good.errors_N6, covariances),
    ):
        with pytest.raises(GeometryError, match="not finite"):
            estimate([broken])


def test_what_is_no_covariance_or_no_error_is_refused() -> None:
    good = series(np.random.default_rng(14).normal(size=(200, 6)))
    with pytest.raises(GeometryError, match="positive definite"):
        whiten(good.errors_N6, -good.covariances_N66, (0, 1, 2))
    with pytest.raises(GeometryError, match="zero"):
        estimate([series(np.zeros((200, 6)))])
    with pytest.raises(TrajectoryError, match="sort"):
        estimate([ErrorSeries(good.stamps_ns[::-1], good.errors_N6, good.covariances_N66)])


def test_errors_are_taken_where_the_truth_is_known() -> None:
    stamps = START_NS + 10**8 * np.arange(50)
    truth = Trajectory(stamps[:30], np.array([exp_se3([0.1 * k, 0, 0, 0, 0, 0.01 * k]) for k in range(30)]))
    d = np.array([0.3, -0.1, 0.2, 0.01, 0.02, -0.03])
    poses = [truth.interpolate(int(stamp)) @ exp_se3(-d) for stamp in stamps[:30]]
    measurements = [PoseMeasurement(int(s), T, np.eye(6)) for s, T in zip(stamps[:30], poses, strict=True)]
    measurements += [PoseMeasurement(int(s), np.eye(4), np.eye(6)) for s in stamps[30:]]
    found = errors_of(measurements[::-1], truth)
    np.testing.assert_array_equal(found.stamps_ns, stamps[:30])
    np.testing.assert_allclose(found.errors_N6, np.tile(d, (30, 1)), atol=1e-9)
    with pytest.raises(TrajectoryError, match="same clock"):
        errors_of(measurements[30:], truth)


# ------------------------------------------------------------------------------------------------------------ command


@pytest.fixture(scope="module")
def drive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """truth.tum and poses.txt (14 columns) of a drive of 150 s, errors twice their deviations; plain.tum has 8."""
    folder, rng = tmp_path_factory.mktemp("error_model"), np.random.default_rng(15)
    errors = 2.0 * autoregressive(1500, 0.1, 0.4, rng)
    rows: dict[str, list[str]] = {"truth.tum": [], "poses.txt": [], "plain.tum": []}
    for k, error in enumerate(errors):
        T = exp_se3([0.5 * k, 0.02 * k, 0.0, 0.0, 0.0, 0.0])  # no turn: the map's axes are the body's
        stamp = stamp_to_text(START_NS + 10**8 * k)
        for name, pose in (("truth.tum", T), ("plain.tum", T @ exp_se3(-error * SIGMA))):
            numbers = " ".join(f"{value:.9f}" for value in (*pose[:3, 3], *quaternion_from_pose(pose)))
            rows[name].append(f"{stamp} {numbers}")
    rows["poses.txt"] = [f"{row} {' '.join(map(str, SIGMA))}" for row in rows["plain.tum"]]
    for name, lines in rows.items():
        (folder / name).write_text("\n".join(lines) + "\n")
    return folder


def test_the_command_writes_what_the_node_reads(drive: Path, tmp_path: Path) -> None:
    out, numbers = tmp_path / "filter.yaml", tmp_path / "model.json"
    words = ["error-model", drive / "poses.txt", "--truth", drive / "truth.tum", "--out", out, "--json", numbers]
    result = CliRunner().invoke(cli.app, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    assert out.read_text() in result.stdout  # the printed snippet is the file
    assert f"wrote {out}" in result.stdout
    content, settings_ = yaml.safe_load(out.read_text()), load_config(out).filter
    assert list(content) == ["/**"]
    model = json.loads(numbers.read_text())
    assert content["/**"]["ros__parameters"]["filter"] == model["parameters"]
    assert settings_.measurement_inflation == pytest.approx(4.0, rel=0.25)
    assert settings_.measurement_correlation_s == pytest.approx(0.4, rel=0.4)
    assert settings_.student_t_dof == 0.0
    assert model["pose"]["dof"] == {"value": 0.0, "low": model["pose"]["dof"]["low"], "high": None}
    assert model["samples"] == 1500


def test_several_drives_rest_on_more(drive: Path, tmp_path: Path) -> None:
    later = tmp_path / "poses.txt"
    later.write_text((drive / "poses.txt").read_text())
    one = run_error_model([drive / "poses.txt"], [drive / "truth.tum"], console=QUIET)
    two = run_error_model([drive / "poses.txt", later], [drive / "truth.tum"] * 2, console=QUIET)
    assert (two.samples, two.segments, two.blocks) == (2 * one.samples, 2, 2 * one.blocks)
    assert two.groups["pose"].correlation_s.value == pytest.approx(one.groups["pose"].correlation_s.value)


def test_the_folder_of_a_run_has_everything(tmp_path: Path) -> None:
    """The diary's measurements with their covariances, against the run's own truth: white errors, honestly claimed."""
    log = make_log()
    assert log.truth is not None
    with BagWriter(tmp_path / "outputs") as writer:
        for status in log.statuses:
            writer.write_status("/localizer/status", status, "map")
    write_tum(tmp_path / "truth.tum", log.truth)
    model = run_error_model([tmp_path], console=QUIET)
    measured = [status for status in log.statuses if status.measurement is not None]
    assert model.samples == len(measured) < len(log.statuses)
    pose = model.groups["pose"]
    assert pose.dof.value == 0.0
    assert pose.inflation.value == pytest.approx(1.0, rel=0.2)
    assert pose.correlation_s.value < 0.1


def test_deviations_may_be_given_and_are_never_made_up(drive: Path) -> None:
    with pytest.raises(ConfigError, match=r"plain\.tum: has no standard deviations"):
        run_error_model([drive / "plain.tum"], [drive / "truth.tum"], sigma_m=1.0, console=QUIET)
    given = run_error_model([drive / "plain.tum"], [drive / "truth.tum"], sigma_m=10.0, sigma_deg=90.0, console=QUIET)
    assert given.parameters()["measurement_inflation"] < 0.05


def test_what_the_node_would_refuse_is_not_written(drive: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.yaml"
    with pytest.raises(ConfigError, match="measurement_inflation"):
        run_error_model(
            [drive / "plain.tum"], [drive / "truth.tum"], sigma_m=1e-5, sigma_deg=1e-5, out=out, console=QUIET
        )
    assert not out.exists()


def test_wrong_files_are_named(drive: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--truth"):
        run_error_model([drive / "poses.txt"], console=QUIET)
    with pytest.raises(ConfigError, match="twice"):
        run_error_model([drive / "poses.txt"] * 2, [drive / "truth.tum"] * 2, console=QUIET)
    with pytest.raises(TrajectoryError, match=r"nothing\.txt"):
        run_error_model([tmp_path / "nothing.txt"], [drive / "truth.tum"], console=QUIET)
    with pytest.raises(TrajectoryError, match=r"nothing\.tum"):
        run_error_model([drive / "poses.txt"], [tmp_path / "nothing.tum"], console=QUIET)
    with pytest.raises(BagError, match="outputs"):
        run_error_model([tmp_path], console=QUIET)
    other = tmp_path / "other.tum"
    other.write_text("1.0 0 0 0 0 0 0 1\n2.0 0 0 0 0 0 0 1\n")
    with pytest.raises(TrajectoryError, match=r"poses\.txt: the truth shares no stamp"):
        run_error_model([drive / "poses.txt"], [other], out=tmp_path / "out.yaml", console=QUIET)
    assert not (tmp_path / "out.yaml").exists()


def test_the_loops_simulated_poses(shared_data: Path) -> None:
    """Known from how they were made: errors last 2 s, their size wanders, 3 % are gross, 6 m is claimed for 4.6 m."""
    loops = sorted((shared_data / "robotcar" / "loop").glob("*/simulated"))
    if not loops:
        pytest.skip("no simulated poses")
    model: ErrorModel = run_error_model(
        [loop / "network_poses.txt" for loop in loops],
        [loop / "ground_truth.tum" for loop in loops],
        config=FilterConfig(robust_power=1.0, max_robust_weight=1.0),
        console=QUIET,
    )
    assert contains(model.groups["pose"].correlation_s, 2.0)
    assert model.groups["position"].dof.high < model.groups["rotation"].dof.low
    assert model.groups["pose"].inflation.high < 1.0 < model.groups["pose"].nees_ratio
