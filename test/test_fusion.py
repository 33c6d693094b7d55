"""The filter with its history: the order of arrival does not matter, every measurement gets its verdict, every fault of
the odometry and of the clock is survived, and nothing that is not finite ever gets in."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vmloc_ros.config import FilterConfig, FrameNames
from vmloc_ros.fusion import Fusion, OdometryVerdict
from vmloc_ros.geometry import Array, exp_se3, inverse, is_pose, log_se3
from vmloc_ros.trajectory import NANOSECONDS
from vmloc_ros.types import FusedState, InitialPose, OdometrySample, PoseMeasurement, Verdict

START_NS = 1_700_000_000 * NANOSECONDS
T_MAP_ODOM = exp_se3([100.0, -50.0, 3.0, 0.0, 0.0, 0.7])
COV = np.diag([0.25, 0.25, 0.09, 4e-4, 4e-4, 1e-3])
SIGMA = np.sqrt(COV.diagonal())
# Start from the first measurement, which is what most tests want; white and Gaussian where laws are exact.
PLAIN = FilterConfig(
    initialize_after=1,
    student_t_dof=0.0,
    measurement_correlation_s=0.0,
    measurement_inflation=1.0,
    noise_m_per_m=0.03,
    noise_rad_per_m=0.004,
)

Event = OdometrySample | PoseMeasurement


def at(seconds: float) -> int:
    return START_NS + round(seconds * NANOSECONDS)


def truth(seconds: float) -> Array:
    """T_odom_base of a drive along a curve, 8 m/s."""
    return exp_se3([8.0 * seconds, 0.0, 0.0, 0.0, 0.0, 0.2 * seconds])


def odometry(seconds: float, pose: Array | None = None) -> OdometrySample:
    return OdometrySample(at(seconds), "odom", "base_link", truth(seconds) if pose is None else pose)


def measurement(
    seconds: float, error: Array | None = None, cov: Array = COV, source: str = "network"
) -> PoseMeasurement:
    pose = T_MAP_ODOM @ truth(seconds)
    return PoseMeasurement(at(seconds), pose if error is None else pose @ exp_se3(error), cov, source)


def filled(config: FilterConfig = PLAIN, until_s: float = 5.0, step_s: float = 0.05, every: int = 4) -> Fusion:
    """A filter after a drive with exact odometry and exact measurements."""
    fusion = Fusion(config, FrameNames())
    for k in range(round(until_s / step_s) + 1):
        assert fusion.add_odometry(odometry(k * step_s)) is OdometryVerdict.USED
        if k % every == 0:
            fusion.add_measurement(measurement(k * step_s))
    return fusion


def error_m(state: FusedState | None, seconds: float) -> float:
    assert state is not None
    return float(np.linalg.norm(state.T_map_base[:3, 3] - (T_MAP_ODOM @ truth(seconds))[:3, 3]))


def feed(fusion: Fusion, events: list[Event]) -> None:
    for event in events:
        if isinstance(event, OdometrySample):
            fusion.add_odometry(event)
        else:
            fusion.add_measurement(event)


def assert_same(a: FusedState | None, b: FusedState | None, tolerance: float) -> None:
    assert (a is None) == (b is None)
    if a is None or b is None:
        return
    assert a.stamp_ns == b.stamp_ns
    np.testing.assert_allclose(a.T_map_base, b.T_map_base, rtol=0.0, atol=tolerance)
    np.testing.assert_allclose(a.cov_66, b.cov_66, rtol=0.0, atol=tolerance)
    np.testing.assert_allclose(a.T_map_odom, b.T_map_odom, rtol=0.0, atol=tolerance)


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


# ----- starting, losing, finding


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


def test_kidnapped_robot_is_found_again() -> None:
    """Moved by 50 m with odometry that noticed nothing: re-localized within a stated number of measurements."""
    config = FilterConfig(relocalize_after=8, relocalize_span_s=1.0)
    fusion = filled(config, until_s=5.0)
    moved = exp_se3([30.0, 40.0, 0.0, 0.0, 0.0, 0.5])
    verdicts = []
    for k in range(101, 160):
        fusion.add_odometry(odometry(0.05 * k))
        if k % 4 == 0:
            z = measurement(0.05 * k)
            verdicts.append(fusion.add_measurement(replace(z, T_map_base=moved @ z.T_map_base)))
    found = [result.verdict for result in verdicts].index(Verdict.FUSED)
    assert found == 7
    assert "re-localized" in verdicts[found].reason
    assert all(result.verdict is Verdict.FUSED for result in verdicts[found:])
    state = fusion.state()
    assert state is not None
    np.testing.assert_allclose(state.T_map_base, moved @ T_MAP_ODOM @ truth(0.05 * 159), atol=0.2)
    fusion.flush()
    assert fusion.counters()["relocalizations"] == 1
    assert fusion.counters()["verdict.gated"] == 0  # those that brought it back count as fused in the end


def test_outliers_do_not_lead_astray() -> None:
    """30 % outliers of 30 m in random directions: refused, one by one."""
    rng = np.random.default_rng(3)
    fusion = filled(FilterConfig())
    errors = []
    for k in range(101, 500):
        seconds = 0.05 * k
        fusion.add_odometry(odometry(seconds))
        if k % 2 == 0:
            error = SIGMA * rng.normal(size=6)
            if rng.random() < 0.3:
                angle = rng.uniform(0, 2 * math.pi)
                error[:2] += [30.0 * math.cos(angle), 30.0 * math.sin(angle)]
            fusion.add_measurement(measurement(seconds, error))
        errors.append(error_m(fusion.state(), seconds))
    assert max(errors) < 1.5
    assert fusion.counters()["relocalizations"] == 0


def test_a_short_streak_of_wrong_measurements_does_not_lead_astray() -> None:
    config = FilterConfig(relocalize_after=8, relocalize_span_s=1.0)
    fusion = filled(config)
    wrong = exp_se3([40.0, 0.0, 0.0, 0.0, 0.0, 0.0])
    for k in range(101, 120):  # 19 measurements in a row that agree, but within 0.95 s
        fusion.add_odometry(odometry(0.05 * k))
        z = measurement(0.05 * k)
        assert fusion.add_measurement(replace(z, T_map_base=wrong @ z.T_map_base)).verdict is Verdict.GATED
    assert error_m(fusion.state(), 0.05 * 119) < 0.3
    fusion.add_odometry(odometry(6.0))
    assert fusion.add_measurement(measurement(6.0)).verdict is Verdict.FUSED


def test_lost_and_found() -> None:
    config = PLAIN.model_copy(update={"lost_after_s": 8.0, "lost_odometry_gap_s": 3.0})
    fusion = Fusion(config, FrameNames())
    assert fusion.is_lost(at(0.0))
    assert fusion.seconds_since_fused(at(0.0)) is None
    fusion = filled(config)
    assert not fusion.is_lost(at(5.0))
    assert fusion.seconds_since_fused(at(5.5)) == pytest.approx(0.5)
    assert fusion.is_lost(at(8.5))  # neither odometry nor measurements for 3 s
    for k in range(101, 250):
        fusion.add_odometry(odometry(0.05 * k))
    assert not fusion.is_lost(at(12.45))  # dead reckoning
    assert fusion.is_lost(at(13.5))  # for too long
    assert fusion.add_measurement(measurement(12.4)).verdict is Verdict.FUSED
    assert not fusion.is_lost(at(13.0))


def test_uncertainty_grows_without_measurements_and_shrinks_with_them() -> None:
    fusion = filled()
    traces = []
    for k in range(101, 200):
        fusion.add_odometry(odometry(0.05 * k))
        state = fusion.state()
        assert state is not None
        traces.append(float(np.trace(state.cov_66)))
    assert traces == sorted(traces)
    fusion.add_measurement(measurement(9.95))
    state = fusion.state()
    assert state is not None
    assert np.trace(state.cov_66) < traces[-1]


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


# ----- odometry's faults


def drive_on(
    fusion: Fusion, spoil: Callable[[float, Array], Array | None], until_s: float = 10.0, measure: bool = True
) -> list[OdometryVerdict]:
    """Drives on from 5 s with spoiled odometry and exact measurements; None: no sample."""
    verdicts = []
    for k in range(101, round(until_s / 0.05) + 1):
        seconds = 0.05 * k
        pose = spoil(seconds, truth(seconds))
        if pose is not None:
            verdicts.append(fusion.add_odometry(odometry(seconds, pose)))
        if measure and k % 4 == 0:
            fusion.add_measurement(measurement(seconds))
    return verdicts


@pytest.mark.parametrize(
    "jump", [[5.0, 0, 0, 0, 0, 0], [0, 5.0, 0, 0, 0, 0], [500.0, 0, 0, 0, 0, 2.0], [0, 0, 0, 0, 0, 3.0]]
)
def test_jump(jump: list[float]) -> None:
    """A jump of the odometry is refused, not followed; `odom` then means another frame, and map -> odom takes it up."""
    fusion = filled()
    offset = exp_se3(jump)
    verdicts = drive_on(fusion, lambda seconds, pose: offset @ pose if seconds > 6.0 else pose, measure=False)
    assert verdicts.count(OdometryVerdict.JUMP) == 1
    assert error_m(fusion.state(), 10.0) < 0.5  # bridged by the velocity before it
    fusion.add_measurement(measurement(9.9))
    state = fusion.state()
    assert state is not None
    np.testing.assert_allclose(state.T_map_odom @ offset, T_MAP_ODOM, atol=0.1)
    assert fusion.odometry.oldest_ns is not None
    fusion.flush()
    assert fusion.counters()["odometry.jump"] == 1


def test_restart_at_the_origin() -> None:
    fusion = filled()
    start = inverse(truth(6.0))
    verdicts = drive_on(fusion, lambda seconds, pose: start @ pose if seconds >= 6.0 else pose, measure=False)
    assert verdicts.count(OdometryVerdict.JUMP) == 1
    assert error_m(fusion.state(), 10.0) < 0.5
    assert fusion.odometry.pose_at(at(5.95)) is None  # nobody compares poses across the restart


def test_a_single_wild_sample() -> None:
    fusion = filled()
    wild = exp_se3([80.0, 0, 0, 0, 0, 0])
    drive_on(fusion, lambda seconds, pose: wild @ pose if abs(seconds - 6.0) < 0.01 else pose, measure=False)
    assert error_m(fusion.state(), 10.0) < 0.5
    fusion.flush()
    assert fusion.counters()["odometry.jump"] == 2


def test_a_frozen_source() -> None:
    """The same pose again and again at 8 m/s: not believed for long, and the measurements lead."""
    fusion = filled()
    frozen = truth(6.0)
    verdicts = drive_on(fusion, lambda seconds, pose: frozen if seconds > 6.0 else pose)
    assert OdometryVerdict.FROZEN in verdicts
    assert error_m(fusion.state(), 10.0) < 2.0


def test_a_stop_is_not_frozen() -> None:
    fusion = filled()
    pose, speed, seconds = truth(5.0), 8.0, 5.0
    for _ in range(200):
        seconds, speed = seconds + 0.05, max(speed - 0.3, 0.0)
        pose = pose @ exp_se3([0.05 * speed, 0, 0, 0, 0, 0])
        assert fusion.add_odometry(odometry(seconds, pose)) is OdometryVerdict.USED


def test_poses_repeated_by_a_fast_publisher_are_not_faults() -> None:
    """A driver that updates at 4 Hz and is published at 20 Hz gives steps; the distance comes out right."""
    fusion = filled()
    verdicts = drive_on(fusion, lambda seconds, pose: truth(math.floor(4 * seconds + 1e-6) / 4), measure=False)
    assert set(verdicts) <= {OdometryVerdict.USED, OdometryVerdict.JUMP}
    assert verdicts.count(OdometryVerdict.JUMP) <= 1
    assert error_m(fusion.state(), 10.0) < 1.0


def test_silence_is_bridged_and_widened() -> None:
    fusion, steady = filled(), filled()
    verdicts = drive_on(fusion, lambda seconds, pose: pose if seconds > 7.01 else None, measure=False)
    drive_on(steady, lambda seconds, pose: pose, measure=False)
    assert verdicts[0] is OdometryVerdict.GAP
    assert set(verdicts[1:]) == {OdometryVerdict.USED}
    gap, plain = fusion.state(), steady.state()
    assert gap is not None
    assert plain is not None
    assert gap.cov_66[0, 0] > plain.cov_66[0, 0] + 9.0
    assert error_m(gap, 10.0) < 0.1


def test_measurements_lead_while_the_odometry_is_silent() -> None:
    fusion = filled(FilterConfig())
    drive_on(fusion, lambda seconds, pose: None, until_s=20.0)
    state = fusion.state()
    assert state is not None
    assert error_m(state, 20.0) < 2.0
    assert not fusion.is_lost(at(20.0))
    assert fusion.add_odometry(odometry(20.05)) in (OdometryVerdict.GAP, OdometryVerdict.FUTURE)
    fusion.add_odometry(odometry(20.1))
    assert error_m(fusion.state(), 20.1) < 2.0


def test_both_silent_for_ten_seconds() -> None:
    fusion = filled(FilterConfig())
    assert fusion.is_lost(at(15.0))
    verdicts = [fusion.add_odometry(odometry(15.0 + 0.05 * k)) for k in range(5)]
    assert verdicts[:2] == [OdometryVerdict.FUTURE, OdometryVerdict.GAP]  # one sample alone is not believed
    assert fusion.add_measurement(measurement(15.2)).verdict is Verdict.FUSED
    assert not fusion.is_lost(at(15.2))
    assert error_m(fusion.state(), 15.2) < 0.6


@pytest.mark.parametrize(("frame", "child"), [("map", "base_link"), ("odom", "base_footprint"), ("", "")])
def test_odometry_of_another_frame(frame: str, child: str) -> None:
    fusion = filled()
    before = fusion.state()
    verdict = fusion.add_odometry(replace(odometry(5.05), frame_id=frame, child_frame_id=child))
    assert verdict is OdometryVerdict.WRONG_FRAME
    assert_same(fusion.state(), before, 0.0)


def test_odometry_twice_at_one_stamp() -> None:
    """The repeated sample counts once; of two that differ the same one wins in either order."""
    other = truth(5.05) @ exp_se3([0.01, 0.0, 0.0, 0.0, 0.0, 0.0])
    states = []
    for poses in ((truth(5.05), other), (other, truth(5.05))):
        fusion = filled()
        fusion.add_measurement(measurement(5.02))
        verdicts = [fusion.add_odometry(odometry(5.05, pose)) for pose in poses]
        assert verdicts == [OdometryVerdict.USED, OdometryVerdict.DUPLICATE]
        fusion.add_odometry(odometry(5.1))
        states.append(fusion.state())
    assert_same(states[0], states[1], 1e-12)


def test_twist_covariance() -> None:
    config = PLAIN.model_copy(update={"use_twist_covariance": True})
    grown = []
    for cov in (None, np.zeros((6, 6)), np.full((6, 6), np.nan), np.diag([4.0] * 3 + [0.04] * 3)):
        fusion = filled(config)
        fusion.add_odometry(replace(odometry(5.05), twist_cov_66=cov))
        state = fusion.state()
        assert state is not None
        grown.append(state.cov_66[0, 0])
    assert grown[0] == grown[1] == grown[2]  # empty or broken: the parameters
    assert grown[3] == pytest.approx(grown[0] + 4.0 * 0.05, rel=0.2)


# ----- clock


def test_bag_loop_is_a_clean_reset() -> None:
    fusion = filled(FilterConfig(), until_s=10.0)
    odometry_counted = fusion.counters()["odometry.used"]
    verdicts = [fusion.add_odometry(odometry(0.05 * k)) for k in range(3)]
    assert verdicts == [OdometryVerdict.TOO_OLD, OdometryVerdict.CLOCK_RESET, OdometryVerdict.USED]
    assert fusion.epoch == 1
    assert fusion.state() is None
    assert fusion.newest_ns == at(0.1)
    for k in range(3, 100):
        fusion.add_odometry(odometry(0.05 * k))
        if k % 4 == 0:
            fusion.add_measurement(measurement(0.05 * k))
    assert error_m(fusion.state(), 4.95) < 0.1
    counts = fusion.counters()
    assert counts["resets"] == 1
    assert counts["odometry.used"] > odometry_counted


@pytest.mark.parametrize("offset_s", [3600.0, -3600.0])
def test_clock_jump_of_an_hour(offset_s: float) -> None:
    fusion = filled(FilterConfig())
    verdicts = [fusion.add_odometry(odometry(5.0 + 0.05 * k, None)) for k in range(1, 3)]
    jumped = [
        fusion.add_odometry(replace(odometry(5.1 + 0.05 * k), stamp_ns=at(5.1 + offset_s + 0.05 * k)))
        for k in range(1, 4)
    ]
    assert verdicts == [OdometryVerdict.USED] * 2
    assert jumped[1] is OdometryVerdict.CLOCK_RESET
    assert jumped[2] is OdometryVerdict.USED


@pytest.mark.parametrize("stray_s", [-START_NS / NANOSECONDS, -100.0, 100.0, 1e9])
def test_a_stray_stamp_changes_nothing(stray_s: float) -> None:
    fusion = filled()
    before = fusion.state()
    verdict = fusion.add_odometry(replace(odometry(5.0), stamp_ns=at(stray_s)))
    assert verdict in (OdometryVerdict.TOO_OLD, OdometryVerdict.FUTURE)
    assert_same(fusion.state(), before, 0.0)
    for k in range(101, 110):
        assert fusion.add_odometry(odometry(0.05 * k)) is OdometryVerdict.USED
        fusion.add_odometry(replace(odometry(5.0), stamp_ns=at(stray_s)))
    assert fusion.epoch == 0


def test_late_measurements_do_not_reset_the_clock() -> None:
    fusion = filled(FilterConfig(), until_s=10.0)
    for k in range(20):
        assert fusion.add_measurement(measurement(1.0 + 0.1 * k)).verdict is Verdict.TOO_OLD
    assert fusion.epoch == 0


def test_reset() -> None:
    fusion = filled()
    fusion.reset("asked for")
    assert fusion.state() is None
    assert fusion.newest_ns is None
    assert len(fusion.odometry) == 0
    assert fusion.counters()["verdict.fused"] == 26  # the window's verdicts are final
    assert fusion.add_odometry(odometry(0.0)) is OdometryVerdict.USED  # any time will do


# ----- without any odometry


def test_without_odometry_it_follows_the_measurements() -> None:
    fusion, rng = Fusion(FilterConfig(), FrameNames()), np.random.default_rng(0)
    errors = []
    for k in range(200):
        seconds = 0.1 * k
        fusion.add_measurement(measurement(seconds, 0.3 * SIGMA * rng.normal(size=6)))
        if k > 20:
            errors.append(error_m(fusion.state(), seconds))
    assert np.mean(errors) < 2.0  # it lags: nothing tells it that it drives at 8 m/s
    state = fusion.state()
    assert state is not None
    np.testing.assert_array_equal(state.T_map_odom, state.T_map_base)
    assert not fusion.is_lost(at(19.9))
    assert fusion.is_lost(at(25.0))


def test_without_odometry_slow_measurements_and_a_loop() -> None:
    """One measurement a second is beyond the future tolerance; they bear each other out."""
    fusion = Fusion(PLAIN, FrameNames())
    verdicts = [fusion.add_measurement(measurement(float(k))).verdict for k in range(12)]
    assert Verdict.FUSED in verdicts[2:6]
    fusion = Fusion(PLAIN, FrameNames())
    for k in range(100):
        fusion.add_measurement(measurement(0.1 * k))
    again = [fusion.add_measurement(measurement(0.1 * k)).verdict for k in range(6)]
    assert again[:3] == [Verdict.TOO_OLD, Verdict.TOO_OLD, Verdict.FUSED]
    assert fusion.epoch == 1


# ----- memory


def test_memory_is_bounded() -> None:
    """A long drive leaves no more behind than a short one, also while lost, and in a flood of one instant."""
    fusion = Fusion(FilterConfig(), FrameNames())
    sizes = []
    for k in range(2000):
        fusion.add_odometry(odometry(0.02 * k, np.eye(4)))
        if k % 5 == 0:
            fusion.add_measurement(PoseMeasurement(at(0.02 * k), exp_se3([k, 0, 0, 0, 0, 0]), COV, source=f"{k % 50}"))
        sizes.append(len(fusion._history))
    assert max(sizes[500:]) <= max(sizes[:500]) + 1
    assert len(fusion.odometry) < 200


def test_flood_of_one_instant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmloc_ros.history.MAX_EVENTS", 50)
    fusion = Fusion(PLAIN, FrameNames())
    for k in range(500):
        fusion.add_odometry(OdometrySample(START_NS + k, "odom", "base_link", np.eye(4)))
    assert len(fusion._history) <= 51
    assert fusion.add_odometry(OdometrySample(START_NS + 1, "odom", "base_link", np.eye(4))) is OdometryVerdict.TOO_OLD
    fusion.flush()
    assert fusion.counters()["odometry.used"] == 500


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
