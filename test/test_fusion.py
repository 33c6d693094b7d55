"""The filter with its history: the order of arrival does not matter, every measurement gets its verdict, nothing that
is not finite ever gets in, and the covariance is honest. `test_fusion_faults.py` has the faults that it survives."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from filter_events import (
    COV,
    PLAIN,
    SIGMA,
    T_MAP_ODOM,
    Event,
    assert_same,
    at,
    error_m,
    feed,
    filled,
    measurement,
    odometry,
    truth,
)
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vmloc_ros.config import FilterConfig, FrameNames
from vmloc_ros.fusion import Fusion, OdometryVerdict
from vmloc_ros.geometry import Array, exp_se3, inverse, is_pose, log_se3
from vmloc_ros.trajectory import NANOSECONDS
from vmloc_ros.types import InitialPose, OdometrySample, PoseMeasurement, Verdict

# ----- the order of arrival


def shuffle(events: list[Event], seed: int) -> list[Event]:
    return [events[k] for k in np.random.default_rng(seed).permutation(len(events))]


def noisy_events(seed: int) -> list[Event]:
    """1.5 s of odometry (a jump, missing samples) and of measurements (outliers, repeated stamps, several sources)."""
    rng = np.random.default_rng(seed)
    events: list[Event] = []
    offset = np.eye(4)
    jump_at = rng.integers(5, 25)
    for k in range(30):
        if k == jump_at and seed % 3 == 0:
            offset = exp_se3([7.0, -3.0, 0.0, 0.0, 0.0, 1.0])
        if rng.random() > 0.1:
            events.append(odometry(0.05 * k, offset @ truth(0.05 * k)))
    for _ in range(15):
        seconds = 0.025 * int(rng.integers(0, 60))
        scale = 12.0 if rng.random() < 0.3 else 1.0
        source = "network" if rng.random() < 0.7 else "retrieval"
        events.append(measurement(seconds, scale * SIGMA * rng.normal(size=6), source=source))
    events.append(replace(events[-1], source="third"))
    return events


@settings(max_examples=25)
@given(seed=st.integers(0, 10_000), robust=st.booleans(), start=st.sampled_from([1, 3]))
def test_any_order_of_arrival_is_the_sorted_one(seed: int, robust: bool, start: int) -> None:
    config = FilterConfig(
        initialize_after=start,
        student_t_dof=4.0 if robust else 0.0,
        measurement_correlation_s=1.0 if robust else 0.0,
        future_tolerance_s=3.0,
        relocalize_after=3,
        relocalize_span_s=0.2,
    )
    events = noisy_events(seed)
    in_order, shuffled = Fusion(config, FrameNames()), Fusion(config, FrameNames())
    feed(in_order, sorted(events, key=lambda event: (event.stamp_ns, isinstance(event, PoseMeasurement))))
    feed(shuffled, shuffle(events, seed))
    tolerance = 1e-6 if robust else 1e-9
    assert_same(shuffled.state(), in_order.state(), tolerance)
    for seconds in (0.3, 0.987654321, 1.2, 1.45):
        assert_same(shuffled.state_at(at(seconds)), in_order.state_at(at(seconds)), tolerance)
    in_order.flush()
    shuffled.flush()
    assert shuffled.counters() == in_order.counters()


@settings(max_examples=10)
@given(st.permutations(range(8)))
def test_delayed_measurements_arriving_in_any_order(order: list[int]) -> None:
    """All odometry first, the measurements of the past second after it."""
    rng = np.random.default_rng(0)
    late = [measurement(4.0 + 0.11 * k, SIGMA * rng.normal(size=6)) for k in range(8)]
    fusion, reference = filled(), filled()
    feed(reference, list(late))
    feed(fusion, [late[k] for k in order])
    assert_same(fusion.state(), reference.state(), 1e-9)


def test_a_measurement_at_a_sample_updates_that_sample() -> None:
    """Posterior at the stamp: the measurement counts, whichever of the two came first."""
    for measured_first in (False, True):
        fusion = filled()
        pair: list[Event] = [odometry(5.05), measurement(5.05, np.array([0.5, 0.0, 0.0, 0.0, 0.0, 0.0]))]
        before = fusion.state()
        feed(fusion, pair[::-1] if measured_first else pair)
        state = fusion.state()
        assert before is not None
        assert state is not None
        assert state.stamp_ns == at(5.05)
        assert state.cov_66[0, 0] < before.cov_66[0, 0]
        assert error_m(state, 5.05) > 1e-3
        assert_same(state, fusion.state_at(at(5.05)), 0.0)


def test_a_measurement_between_samples_is_taken_at_its_own_stamp() -> None:
    """With exact odometry a measurement of any stamp says the same of the present."""
    for seconds in (4.51, 4.5254321, 4.549):
        fusion = filled()
        fusion.add_measurement(measurement(seconds, cov=1e-4 * COV))
        assert error_m(fusion.state(), 5.0) < 2e-3
        assert error_m(fusion.state_at(at(seconds)), seconds) < 2e-3


def test_a_measurement_ahead_of_the_odometry_waits_for_it() -> None:
    fusion, reference = filled(), filled()
    ahead = measurement(5.08, np.array([0.3, 0.0, 0.0, 0.0, 0.0, 0.05]))
    assert fusion.add_measurement(ahead).verdict is Verdict.FUSED
    state = fusion.state()
    assert state is not None
    assert state.stamp_ns == at(5.0)  # the live pose stays where the odometry is
    feed(fusion, [odometry(5.05), odometry(5.1)])
    feed(reference, [odometry(5.05), odometry(5.1), ahead])
    assert_same(fusion.state(), reference.state(), 1e-12)


def test_posterior_at_a_stamp_holds_nothing_later() -> None:
    fusion = filled()
    before = fusion.state_at(at(4.5))
    fusion.add_measurement(measurement(4.8, np.array([0.5, 0.2, 0.0, 0.0, 0.0, 0.0])))
    assert_same(fusion.state_at(at(4.5)), before, 0.0)
    assert fusion.state_at(at(1.0)) is None  # left the window
    assert fusion.state_at(at(5.4)) is not None  # coasting
    assert fusion.state_at(at(5.6)) is None


def test_map_to_odom() -> None:
    fusion = filled()
    state = fusion.state()
    assert state is not None
    np.testing.assert_allclose(state.T_map_odom @ truth(5.0), state.T_map_base, atol=1e-9)
    np.testing.assert_allclose(state.T_map_odom, T_MAP_ODOM, atol=1e-6)
    fusion.add_odometry(odometry(5.05))
    after = fusion.state()
    assert after is not None
    np.testing.assert_allclose(after.T_map_odom, state.T_map_odom, atol=1e-9)  # odometry alone does not move it


# ----- verdicts


def test_every_verdict_and_its_number() -> None:
    fusion = filled()
    gross = fusion.add_measurement(measurement(4.9, np.array([30.0, 0, 0, 0, 0, 0])))
    assert gross.verdict is Verdict.GATED
    assert gross.nis is not None
    assert f"{gross.nis:.1f}" in gross.reason
    assert gross.dof == 6
    good = measurement(4.95)
    assert fusion.add_measurement(good).verdict is Verdict.FUSED
    again = fusion.add_measurement(good)
    assert again.verdict is Verdict.DUPLICATE
    old = fusion.add_measurement(measurement(1.9))
    assert old.verdict is Verdict.TOO_OLD
    assert "3.1" in old.reason
    ahead = fusion.add_measurement(measurement(5.7))
    assert ahead.verdict is Verdict.FUTURE
    assert "0.7" in ahead.reason
    foreign = fusion.add_measurement(replace(measurement(4.9), frame_id="odom"))
    assert foreign.verdict is Verdict.WRONG_FRAME
    assert "odom" in foreign.reason
    broken = fusion.add_measurement(replace(measurement(4.9), cov_66=np.full((6, 6), np.nan)))
    assert broken.verdict is Verdict.NOT_FINITE
    fusion.flush()
    counts = fusion.counters()
    for verdict in (Verdict.GATED, *(result.verdict for result in (again, old, ahead, foreign, broken))):
        assert counts[f"verdict.{verdict.value}"] == 1, verdict
    assert counts["verdict.fused"] == 26 + 1


@settings(max_examples=15)
@given(seed=st.integers(0, 10_000))
def test_the_counters_add_up(seed: int) -> None:
    """Every measurement and every sample is counted once, with its final verdict."""
    fusion = Fusion(FilterConfig(), FrameNames())
    events = shuffle(noisy_events(seed), seed)
    for k in range(0, 16, 2):  # repeated ones, and ones of quite other times
        offset_s = (0, 9, -9, 900)[(seed + k) // 3 % 4]
        events.insert(3 * k, replace(events[k], stamp_ns=events[k].stamp_ns + offset_s * NANOSECONDS))
    feed(fusion, events)
    fusion.flush()
    counts = fusion.counters()
    measured = sum(isinstance(event, PoseMeasurement) for event in events)
    assert sum(count for name, count in counts.items() if name.startswith("verdict.")) == measured
    assert sum(count for name, count in counts.items() if name.startswith("odometry.")) == len(events) - measured
    assert all(count >= 0 for count in counts.values())


def test_a_replay_revises_verdicts() -> None:
    """What was gated because an earlier measurement was still under way is fused in the end."""
    fusion = Fusion(PLAIN, FrameNames())
    for k in range(41):
        fusion.add_odometry(odometry(0.05 * k))
    wrong, right = np.array([20.0, 0, 0, 0, 0, 0]), 100.0 * COV
    fusion.add_measurement(measurement(0.5, wrong, 1e-2 * COV))  # a confident start at a wrong place
    assert fusion.add_measurement(measurement(1.0)).verdict is Verdict.GATED
    fusion.set_pose(InitialPose(at(0.7), "map", T_MAP_ODOM @ truth(0.7), right))
    fusion.flush()
    assert fusion.counters()["verdict.fused"] == 2
    assert fusion.counters()["verdict.gated"] == 0
    assert error_m(fusion.state(), 2.0) < 0.1


# ----- nothing that is not finite

weird = st.sampled_from([math.nan, math.inf, -math.inf, 1e308, -1e308, 0.0, -1.0, 1e-320, 1e30])


@st.composite
def spoiled_arrays(draw: st.DrawFn, base: Array) -> Array:
    """An array with some numbers spoiled, symmetrically or not."""
    array = base.copy()
    for _ in range(draw(st.integers(1, 4))):
        row, column = draw(st.integers(0, len(base) - 1)), draw(st.integers(0, len(base) - 1))
        array[row, column] = draw(weird)
        if draw(st.booleans()):
            array[column, row] = array[row, column]
    return array


def assert_sound(fusion: Fusion) -> None:
    state = fusion.state()
    if state is not None:
        for array in (state.T_map_base, state.cov_66, state.T_map_odom):
            assert np.isfinite(array).all()
        assert is_pose(state.T_map_base, 1e-9)
        assert np.linalg.eigvalsh(state.cov_66)[0] > -1e-9 * np.abs(state.cov_66).max()


@pytest.mark.filterwarnings("error")
@settings(max_examples=80)
@given(
    pose=spoiled_arrays(T_MAP_ODOM @ truth(4.9)),
    cov=spoiled_arrays(COV),
    which=st.sampled_from(["pose", "cov", "both"]),
    first=st.booleans(),
    how=st.sampled_from(["measurement", "odometry", "initial"]),
)
@example(pose=np.eye(4), cov=np.zeros((6, 6)), which="cov", first=True, how="initial")
@example(pose=np.zeros((4, 4)), cov=COV, which="pose", first=True, how="odometry")
@example(
    pose=np.eye(4), cov=np.diag([1e12, 1e-12, 1e12, 1e-12, 1e12, 1e-12]), which="cov", first=True, how="measurement"
)
@example(
    pose=np.eye(4), cov=np.diag([1e12, 1e-12, 1e12, 1e-12, 1e12, 1e-12]), which="cov", first=False, how="measurement"
)
def test_nothing_unsound_enters(pose: Array, cov: Array, which: str, first: bool, how: str) -> None:
    """NaN, infinities, overflow, zero and negative variances, asymmetry, no rotation: also in the first message."""
    fusion = Fusion(PLAIN, FrameNames()) if first else filled(every=10, step_s=0.1)
    bad_pose = pose if which != "cov" else T_MAP_ODOM @ truth(4.9)
    bad_cov = cov if which != "pose" else COV
    if how == "odometry":
        fusion.add_odometry(odometry(5.1, pose))
    elif how == "initial":
        fusion.set_pose(InitialPose(at(5.0), "map", bad_pose, bad_cov))
    else:
        fusion.add_measurement(PoseMeasurement(at(4.9), bad_pose, bad_cov))
    assert_sound(fusion)
    for k in range(1, 20):  # and life goes on
        fusion.add_odometry(odometry(5.1 + 0.1 * k))
        fusion.add_measurement(measurement(5.1 + 0.1 * k))
        assert_sound(fusion)


@pytest.mark.parametrize("pose", [np.eye(3), "pose", [[1.0]], np.zeros((4, 4)), np.full((4, 4), "x")])
def test_what_is_no_array_of_numbers_is_refused(pose: object) -> None:
    fusion = Fusion(PLAIN, FrameNames())
    assert fusion.add_odometry(odometry(0.0, pose)) is OdometryVerdict.NOT_FINITE  # type: ignore[arg-type]
    assert fusion.add_measurement(PoseMeasurement(at(0.0), pose, COV)).verdict is Verdict.NOT_FINITE  # type: ignore[arg-type]
    assert fusion.add_measurement(PoseMeasurement(at(0.0), np.eye(4), pose)).verdict is Verdict.NOT_FINITE  # type: ignore[arg-type]
    assert fusion.set_pose(InitialPose(at(0.0), "map", pose, COV)).verdict is Verdict.NOT_FINITE  # type: ignore[arg-type]
    assert fusion.set_pose(InitialPose(at(0.0), "map", np.eye(4), pose)).verdict is Verdict.NOT_FINITE  # type: ignore[arg-type]
    assert fusion.state() is None


# ----- starting


def test_starts_from_measurements_that_agree() -> None:
    """An outlier among the first ones does not start the filter; the measurements that did count as fused."""
    fusion = Fusion(FilterConfig(initialize_after=3), FrameNames())
    results = []
    for k in range(40):
        fusion.add_odometry(odometry(0.05 * k))
        if k % 4 == 0:
            outlier = np.array([40.0, 0, 0, 0, 0, 0]) if k in (0, 8) else None
            results.append(fusion.add_measurement(measurement(0.05 * k, outlier)).verdict)
    expected = [Verdict.PENDING] * 4 + [Verdict.FUSED]
    assert results[:5] == expected
    assert error_m(fusion.state(), 1.95) < 0.2
    fusion.flush()
    counts = fusion.counters()
    assert counts["verdict.gated"] == 2
    assert counts["verdict.fused"] == 8


def test_starting_pose_is_moved_by_the_odometry() -> None:
    """Slow measurements of a moving robot agree only because the odometry moves them."""
    fusion = Fusion(FilterConfig(initialize_after=3), FrameNames())
    for k in range(101):
        fusion.add_odometry(odometry(0.1 * k))
        if k in (0, 50, 100):
            fusion.add_measurement(measurement(0.1 * k))
    assert error_m(fusion.state(), 10.0) < 0.2


def test_random_poses_never_start_it() -> None:
    fusion, rng = Fusion(FilterConfig(initialize_after=3), FrameNames()), np.random.default_rng(0)
    for k in range(100):
        fusion.add_odometry(odometry(0.05 * k))
        fusion.add_measurement(measurement(0.05 * k, rng.uniform(-1000, 1000, size=6) * [1, 1, 1, 0, 0, 0]))
    assert fusion.state() is None
    assert fusion.is_lost(at(5.0))
    fusion.flush()
    assert fusion.counters()["verdict.gated"] == 100


def test_set_pose_starts_and_moves_the_filter() -> None:
    fusion = Fusion(FilterConfig(), FrameNames())
    kept = fusion.set_pose(InitialPose(0, "map", T_MAP_ODOM, COV))
    assert kept.verdict is Verdict.FUSED
    assert fusion.state() is None
    fusion.add_odometry(odometry(0.0))
    assert error_m(fusion.state(), 0.0) < 1e-9
    for k in range(1, 50):
        fusion.add_odometry(odometry(0.05 * k))
    elsewhere = exp_se3([500.0, 0, 0, 0, 0, 1.0])
    fusion.set_pose(InitialPose(at(2.0), "map", elsewhere, COV))
    state = fusion.state()
    assert state is not None
    np.testing.assert_allclose(state.T_map_base, elsewhere @ inverse(truth(2.0)) @ truth(2.45), atol=1e-9)
    assert fusion.set_pose(InitialPose(0, "map", elsewhere, COV)).verdict is Verdict.FUSED  # stamp zero: now
    state = fusion.state()
    assert state is not None
    np.testing.assert_allclose(state.T_map_base, elsewhere, atol=1e-9)
    assert fusion.set_pose(InitialPose(at(-9.0), "map", elsewhere, COV)).verdict is Verdict.TOO_OLD
    assert fusion.set_pose(InitialPose(at(99.0), "map", elsewhere, COV)).verdict is Verdict.FUTURE
    assert fusion.set_pose(InitialPose(at(2.0), "odom", elsewhere, COV)).verdict is Verdict.WRONG_FRAME


def test_rviz_leaves_variances_at_zero() -> None:
    fusion = filled()
    cov = np.diag([0.25, 0.25, 0.0, 0.0, 0.0, 0.07])
    result = fusion.set_pose(InitialPose(0, "map", T_MAP_ODOM, cov))
    assert result.verdict is Verdict.FUSED
    assert "3 zero variances" in result.reason
    state = fusion.state()
    assert state is not None
    np.testing.assert_allclose(state.cov_66.diagonal(), [0.25, 0.25, 25.0, 0.04, 0.04, 0.07])


# ----- robust weighting


def test_correlated_measurements_inform_less() -> None:
    """A hundred measurements within the errors' correlation time are hardly more than one."""
    white = filled(PLAIN, until_s=1.0, step_s=0.01, every=1)
    correlated = filled(PLAIN.model_copy(update={"measurement_correlation_s": 10.0}), until_s=1.0, step_s=0.01, every=1)
    a, b = white.state(), correlated.state()
    assert a is not None
    assert b is not None
    assert a.cov_66[0, 0] < COV[0, 0] / 20
    assert COV[0, 0] / 2 < b.cov_66[0, 0] < 1.5 * COV[0, 0]


def test_student_weight_limits_what_one_measurement_can_do() -> None:
    shifts = []
    for dof in (0.0, 2.0):
        fusion = filled(PLAIN.model_copy(update={"student_t_dof": dof}))
        fusion.add_measurement(measurement(5.0, np.array([2.2, 0, 0, 0, 0, 0]), source="other"))
        shifts.append(error_m(fusion.state(), 5.0))
    assert 0.0 < shifts[1] < 0.6 * shifts[0]


# ----- consistency


def test_consistent_over_many_drives() -> None:
    """Simulated with its own noise model, the filter's mean NEES is that of an honest covariance."""
    values = []
    config = PLAIN.model_copy(update={"noise_m_per_m": 0.05, "noise_rad_per_m": 0.01, "noise_rad_per_rad": 0.0})
    for seed in range(20):
        rng = np.random.default_rng(seed)
        fusion = Fusion(config, FrameNames())
        pose, drifting, step_m = np.eye(4), np.eye(4), 0.4
        for k in range(100):
            if k:
                step = exp_se3([step_m, 0.0, 0.0, 0.0, 0.0, 0.02])
                pose = pose @ step
                drifting = drifting @ step @ exp_se3(math.sqrt(step_m) * rng.normal(size=6) * ([0.05] * 3 + [0.01] * 3))
            fusion.add_odometry(OdometrySample(at(0.05 * k), "odom", "base_link", drifting))
            if k % 10 == 0:
                z = pose @ exp_se3(SIGMA * rng.normal(size=6))
                fusion.add_measurement(PoseMeasurement(at(0.05 * k), z, COV))
        state = fusion.state()
        assert state is not None
        error = log_se3(inverse(state.T_map_base) @ pose)
        values.append(float(error @ np.linalg.solve(state.cov_66, error)))
    # 20 times 6 degrees of freedom: the mean's 99.9 % interval
    assert 3.8 < np.mean(values) < 8.8
