"""The filter in trouble: lost and found again, every fault of the clock survived, no odometry at
all, and no more memory than at first."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from filter_events import (
    COV,
    PLAIN,
    SIGMA,
    START_NS,
    T_MAP_ODOM,
    assert_same,
    at,
    error_m,
    filled,
    measurement,
    odometry,
    truth,
)

from vmloc_ros.config import FilterConfig, FrameNames
from vmloc_ros.fusion import Fusion, OdometryVerdict
from vmloc_ros.geometry import exp_se3
from vmloc_ros.trajectory import NANOSECONDS
from vmloc_ros.types import OdometrySample, PoseMeasurement, Verdict

# ----- losing and finding


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


@pytest.mark.parametrize("offset", [[15.0, 0.0], [0.0, -30.0], [30.0, 30.0]])
def test_one_wrong_answer_after_a_silence_is_not_taken_for_certain(offset: list[float]) -> None:
    """Both silent for 8 s: the state is wide, and the first answer lies inside it, wrong by 15 to 42 m."""
    above_s = {}
    for share in (0.0, FilterConfig().outlier_share):
        fusion, rng, late = filled(FilterConfig(outlier_share=share), until_s=10.0), np.random.default_rng(0), []
        for k in range(360, 480):
            fusion.add_odometry(odometry(0.05 * k))
            if k >= 364 and k % 4 == 0:
                error = SIGMA * rng.normal(size=6)
                error[:2] += offset if k == 364 else [0.0, 0.0]
                fusion.add_measurement(measurement(0.05 * k, error))
            if k > 364:
                late.append(error_m(fusion.state(), 0.05 * k))
        above_s[share] = 0.05 * sum(error > 2.0 for error in late)
    assert above_s[0.0] > 2.0  # only a streak of refused ones gets it out
    assert above_s[FilterConfig().outlier_share] < 1.0


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


def test_a_backlog_of_odometry_does_not_reset_the_clock() -> None:
    """The measurements go on while the odometry hangs for longer than the window, then comes all at once."""
    fusion = filled()
    for k in range(26, 60):
        fusion.add_measurement(measurement(0.2 * k))
    verdicts = [fusion.add_odometry(odometry(0.05 * k)) for k in range(101, 240)]
    assert OdometryVerdict.CLOCK_RESET not in verdicts
    assert verdicts[0] is OdometryVerdict.TOO_OLD
    assert verdicts[-1] in (OdometryVerdict.USED, OdometryVerdict.GAP)
    assert fusion.epoch == 0
    assert error_m(fusion.state(), 11.95) < 0.5


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
