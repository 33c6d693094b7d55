"""The data's clock: one odd stamp is refused, several that agree are believed."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmloc_ros.clock import ClockVerdict, DataClock

SECOND = 1_000_000_000


def test_zero_and_negative_stamps_are_refused() -> None:
    clock = DataClock()
    assert clock.observe(0) is ClockVerdict.ZERO
    assert clock.observe(-5) is ClockVerdict.ZERO
    assert clock.now_ns is None


def test_small_disorder_is_normal_and_time_never_goes_back() -> None:
    clock = DataClock()
    for stamp in (10 * SECOND, 9 * SECOND, 11 * SECOND, 8 * SECOND):
        assert clock.observe(stamp) is ClockVerdict.OK
    assert clock.now_ns == 11 * SECOND


@pytest.mark.parametrize(("odd", "verdict"), [(3700, ClockVerdict.FUTURE), (100, ClockVerdict.BACKWARD)])
def test_a_single_odd_stamp_is_refused_and_forgotten(odd: int, verdict: ClockVerdict) -> None:
    clock = DataClock()
    for second in range(1000, 1010):
        assert clock.observe(second * SECOND) is ClockVerdict.OK
        assert clock.observe(odd * SECOND) is verdict
    assert clock.now_ns == 1009 * SECOND


def test_a_bag_that_loops_resets_after_three_messages() -> None:
    clock = DataClock()
    clock.observe(1000 * SECOND)
    verdicts = [clock.observe(stamp * SECOND) for stamp in (900, 900, 901, 902)]
    assert verdicts == [ClockVerdict.BACKWARD, ClockVerdict.BACKWARD, ClockVerdict.RESET, ClockVerdict.OK]
    assert clock.now_ns == 902 * SECOND


def test_data_that_resumes_after_a_silence_is_believed_without_a_reset() -> None:
    clock = DataClock()
    clock.observe(1000 * SECOND)
    verdicts = [clock.observe(stamp * SECOND) for stamp in (1060, 1060, 1061, 1062)]
    assert verdicts == [ClockVerdict.FUTURE, ClockVerdict.FUTURE, ClockVerdict.OK, ClockVerdict.OK]
    assert clock.now_ns == 1062 * SECOND


def test_odd_stamps_that_disagree_with_each_other_never_win() -> None:
    clock = DataClock()
    clock.observe(1000 * SECOND)
    for k in range(20):
        assert clock.observe((10_000 + 1000 * k) * SECOND) is ClockVerdict.FUTURE
    assert clock.now_ns == 1000 * SECOND


@given(st.lists(st.integers(1, 4_000_000_000 * SECOND), max_size=40))
@settings(deadline=None, max_examples=100)
def test_whatever_comes_the_clock_holds_a_stamp_that_was_sent(stamps: list[int]) -> None:
    clock = DataClock()
    for stamp in stamps:
        clock.observe(stamp)
        assert clock.now_ns in stamps
