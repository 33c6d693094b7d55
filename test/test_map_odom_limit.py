"""Laws of the limited `map -> odom`: what a controller sees of corrections, and what it never sees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from vmloc_ros.geometry import Array, exp_se3, inverse, is_pose, log_so3
from vmloc_ros.map_odom_limit import GLIDE_AT_MOST_S, MapOdomLimit
from vmloc_ros.types import FusedState

SECOND = 1_000_000_000
START_NS = 1_700_000_000 * SECOND
RESTART_S = 3.0


def exact(*numbers: float) -> Array:
    return exp_se3(list(numbers))


@dataclass(frozen=True)
class Moment:
    """The filter's transform and the odometry's pose at one stamp."""

    stamp_ns: int
    T_map_odom: Array
    T_odom_base: Array
    bridged: bool = False

    @property
    def state(self) -> FusedState:
        return FusedState(self.stamp_ns, self.T_map_odom @ self.T_odom_base, np.eye(6), self.T_map_odom)


def tangents(metres: float, radians: float) -> st.SearchStrategy[Array]:
    number = st.floats(-1.0, 1.0, allow_subnormal=False)
    scale = np.array([metres] * 3 + [radians] * 3)
    return st.lists(number, min_size=6, max_size=6).map(lambda numbers: exp_se3(np.array(numbers) * scale))


poses = tangents(1000.0, 1.7)
increments = tangents(1.0, 0.2)
corrections = st.one_of(st.just(np.eye(4)), tangents(0.1, 0.01), tangents(3.0, 0.5), tangents(30.0, 1.7))
steps_s = st.one_of(st.floats(0.001, 0.2), st.floats(0.2, RESTART_S))
limits = st.floats(0.05, 2.0)
limits_or_none = st.one_of(st.just(0.0), limits)


@st.composite
def drives(draw: st.DrawFn, bridged: bool = False) -> list[Moment]:
    """Odometry that moves, and corrections of the robot's place, seldom none and seldom huge."""
    stamp_ns, T_map_base, T_odom_base = START_NS, draw(poses), draw(poses)
    moments = []
    for _ in range(draw(st.integers(2, 15))):
        step, jumped = draw(increments), bridged and draw(st.booleans())
        T_map_base = T_map_base @ step @ draw(corrections)
        T_odom_base = T_odom_base @ (draw(tangents(100.0, 1.7)) if jumped else step)
        moments.append(Moment(stamp_ns, T_map_base @ inverse(T_odom_base), T_odom_base, jumped))
        stamp_ns += round(draw(steps_s) * SECOND)
    return moments


def run(limit: MapOdomLimit, moments: Sequence[Moment]) -> list[FusedState]:
    return [limit.follow(moment.state, moment.bridged) for moment in moments]


def apart(T_a: Array, T_b: Array) -> tuple[float, float]:
    """Metres and radians between two poses of the robot in the map."""
    turn = log_so3(T_a[:3, :3].T @ T_b[:3, :3])
    return float(np.linalg.norm(T_a[:3, 3] - T_b[:3, 3])), float(np.linalg.norm(turn))


@given(drives(), limits_or_none, limits_or_none)
def test_corrections_move_the_robot_no_faster_than_the_limits_or_all_the_way(
    moments: list[Moment], metres_per_s: float, radians_per_s: float
) -> None:
    limit = MapOdomLimit(metres_per_s, radians_per_s, RESTART_S)
    first = moments[0].state
    before, at_once = limit.follow(first), limit.at_once
    assert before is first
    for earlier, moment in pairwise(moments):
        shown = limit.follow(moment.state)
        metres, radians = apart(before.T_map_odom @ moment.T_odom_base, shown.T_map_base)
        elapsed_s = (moment.stamp_ns - earlier.stamp_ns) / SECOND
        if limit.at_once == at_once:
            assert metres_per_s == 0.0 or metres <= metres_per_s * elapsed_s + 1e-8
            assert radians_per_s == 0.0 or radians <= radians_per_s * elapsed_s + 1e-8
        else:
            assert apart(shown.T_map_base, moment.state.T_map_base) == (0.0, 0.0)
        before, at_once = shown, limit.at_once


@given(drives(bridged=True), limits_or_none, limits_or_none)
def test_what_is_shown_is_a_pose_beside_the_filters_with_the_odometry_untouched(
    moments: list[Moment], metres_per_s: float, radians_per_s: float
) -> None:
    limit = MapOdomLimit(metres_per_s, radians_per_s, RESTART_S)
    for moment in moments:
        shown = limit.follow(moment.state, moment.bridged)
        assert is_pose(shown.T_map_base)
        assert is_pose(shown.T_map_odom)
        assert shown.stamp_ns == moment.stamp_ns
        np.testing.assert_allclose(inverse(shown.T_map_odom) @ shown.T_map_base, moment.T_odom_base, atol=1e-8)
        metres, radians = apart(shown.T_map_base, moment.state.T_map_base)
        np.testing.assert_allclose((metres, radians), (limit.pending_m, limit.pending_rad), atol=1e-6)
        assert metres <= metres_per_s * GLIDE_AT_MOST_S + 1e-6, "a part without a limit is the filter's at once"
        assert radians <= radians_per_s * GLIDE_AT_MOST_S + 1e-6


@given(drives(bridged=True))
def test_without_limits_the_filters_own_state_is_shown(moments: list[Moment]) -> None:
    limit = MapOdomLimit(0.0, 0.0, RESTART_S)
    for moment in moments:
        state = moment.state
        assert limit.follow(state, moment.bridged) is state
    assert limit.at_once == 0


@given(poses, poses, tangents(1.0, 0.3), limits, limits, st.lists(st.floats(0.01, 1.0), min_size=1, max_size=30))
def test_a_standing_robot_comes_nearer_at_exactly_the_limits(
    T_map_odom: Array,
    T_odom_base: Array,
    correction: Array,
    metres_per_s: float,
    radians_per_s: float,
    pauses_s: list[float],
) -> None:
    limit = MapOdomLimit(metres_per_s, radians_per_s, RESTART_S)
    T_map_base = T_map_odom @ T_odom_base
    limit.follow(Moment(START_NS, T_map_odom, T_odom_base).state)
    metres, radians = apart(T_map_base, T_map_base @ correction)
    far = metres > metres_per_s * GLIDE_AT_MOST_S or radians > radians_per_s * GLIDE_AT_MOST_S
    target, stamp_ns = T_map_base @ correction @ inverse(T_odom_base), START_NS
    for pause_s in pauses_s:
        stamp_ns += round(pause_s * SECOND)
        shown = limit.follow(Moment(stamp_ns, target, T_odom_base).state)
        elapsed_s = 0.0 if far else (stamp_ns - START_NS) / SECOND
        expected = (max(metres - metres_per_s * elapsed_s, 0.0), max(radians - radians_per_s * elapsed_s, 0.0))
        left = apart(shown.T_map_base, T_map_base @ correction)
        np.testing.assert_allclose(left, (0.0, 0.0) if far else expected, atol=1e-6)
    assert limit.at_once == far


@given(drives(), limits, limits)
def test_it_arrives_at_a_transform_that_stands_while_the_robot_drives_on(
    moments: list[Moment], metres_per_s: float, radians_per_s: float
) -> None:
    """The rotation first, for as long as it is wrong the drive adds to the error of the position; then the position."""
    limit = MapOdomLimit(metres_per_s, radians_per_s, RESTART_S)
    run(limit, moments)
    stamp_ns, T_odom_base = moments[-1].stamp_ns, moments[-1].T_odom_base
    for _ in range(round(2 * GLIDE_AT_MOST_S / 0.1) + 4):
        stamp_ns += SECOND // 10
        T_odom_base = T_odom_base @ exact(0.02, 0.0, 0.0, 0.0, 0.0, 0.05)
        state = Moment(stamp_ns, moments[-1].T_map_odom, T_odom_base).state
        shown = limit.follow(state)
    assert shown is state
    assert (limit.pending_m, limit.pending_rad) == (0.0, 0.0)


@given(drives(), poses, poses, limits, limits)
def test_where_the_maps_and_the_odometrys_origins_are_makes_no_difference_to_the_robot(
    moments: list[Moment], T_other_map: Array, T_odom_other: Array, metres_per_s: float, radians_per_s: float
) -> None:
    elsewhere = [
        Moment(m.stamp_ns, T_other_map @ m.T_map_odom @ T_odom_other, inverse(T_odom_other) @ m.T_odom_base)
        for m in moments
    ]
    here, there = (MapOdomLimit(metres_per_s, radians_per_s, RESTART_S) for _ in range(2))
    for one, other in zip(run(here, moments), run(there, elsewhere), strict=True):
        np.testing.assert_allclose(T_other_map @ one.T_map_base, other.T_map_base, atol=1e-5)


@given(drives(), limits, limits, st.lists(st.tuples(st.booleans(), poses), min_size=15, max_size=15))
def test_odometry_that_jumps_does_not_move_the_robot(
    moments: list[Moment], metres_per_s: float, radians_per_s: float, jumps: list[tuple[bool, Array]]
) -> None:
    """Increments that the filter did not believe: wherever they lead, what is shown of the robot is the same."""
    shown = []
    for other in (False, True):
        limit, T_odom_base, poses_shown = MapOdomLimit(metres_per_s, radians_per_s, RESTART_S), np.eye(4), []
        for earlier, moment, (jumped, jump) in zip(moments, moments[1:], jumps[1:], strict=False):
            step = jump if jumped and other else inverse(earlier.T_odom_base) @ moment.T_odom_base
            T_odom_base = T_odom_base @ step
            T_map_odom = moment.state.T_map_base @ inverse(T_odom_base)
            state = Moment(moment.stamp_ns, T_map_odom, T_odom_base).state
            poses_shown.append(limit.follow(state, jumped).T_map_base)
        shown.append(poses_shown)
    np.testing.assert_allclose(shown[0], shown[1], atol=1e-5)


@given(drives(), limits, limits, corrections)
def test_without_a_time_between_two_states_nothing_is_corrected(
    moments: list[Moment], metres_per_s: float, radians_per_s: float, correction: Array
) -> None:
    limit = MapOdomLimit(metres_per_s, radians_per_s, RESTART_S)
    shown = run(limit, moments)[-1]
    at_once, last = limit.at_once, moments[-1]
    moved = Moment(last.stamp_ns, last.T_map_odom @ last.T_odom_base @ correction @ inverse(last.T_odom_base),
                   last.T_odom_base)  # fmt: skip
    again = limit.follow(moved.state)
    if limit.at_once == at_once:
        np.testing.assert_allclose(again.T_map_base, shown.T_map_base, atol=1e-8)
    else:
        np.testing.assert_allclose(again.T_map_base, moved.state.T_map_base, atol=1e-12)


@given(drives(), limits, limits, st.sampled_from(["reset", "backwards", "silence"]), st.integers(1, 10 * SECOND))
def test_what_starts_over_shows_the_filters_state_at_once(
    moments: list[Moment], metres_per_s: float, radians_per_s: float, kind: str, nanoseconds: int
) -> None:
    limit = MapOdomLimit(metres_per_s, radians_per_s, RESTART_S)
    run(limit, moments)
    at_once = limit.at_once
    if kind == "reset":
        limit.reset()
    offset_ns = {"reset": 1, "backwards": -nanoseconds, "silence": round(RESTART_S * SECOND) + nanoseconds}[kind]
    state = Moment(moments[-1].stamp_ns + offset_ns, exact(9.0, 8.0, 7.0, 0.6, 0.5, 0.4), exact(1, 2, 3, 1, 1, 1)).state
    assert limit.follow(state) is state
    assert limit.at_once == at_once, "nothing was followed, so nothing was cut short"


def test_a_kidnapped_robot_is_shown_where_it_is_and_a_small_correction_glides() -> None:
    limit = MapOdomLimit(0.5, 0.2, RESTART_S)
    limit.follow(Moment(START_NS, np.eye(4), np.eye(4)).state)
    small = limit.follow(Moment(START_NS + SECOND, exact(4.9, 0, 0, 0, 0, 0), np.eye(4)).state)
    np.testing.assert_allclose(small.T_map_base[:3, 3], [0.5, 0.0, 0.0], atol=1e-12)
    assert limit.at_once == 0
    far = Moment(START_NS + 2 * SECOND, exact(50.0, 0, 0, 0, 0, 0), np.eye(4)).state
    assert limit.follow(far) is far
    assert limit.at_once == 1
    turned = Moment(START_NS + 3 * SECOND, exact(50.0, 0, 0, 0, 0, 2.1), np.eye(4)).state
    assert limit.follow(turned) is turned
    assert limit.at_once == 2


def test_a_turn_about_a_far_origin_is_limited_by_what_it_does_to_the_robot() -> None:
    """0.01 rad of `map -> odom` about an origin 400 m away: 4 m for the robot, which an interpolated transform, at
    0.2 rad/s, would make within a twentieth of a second."""
    limit = MapOdomLimit(0.5, 0.2, RESTART_S)
    T_odom_base = exact(400.0, 0, 0, 0, 0, 0)
    limit.follow(Moment(START_NS, np.eye(4), T_odom_base).state)
    shown = limit.follow(Moment(START_NS + SECOND // 10, exact(0, 0, 0, 0, 0, 0.01), T_odom_base).state)
    metres, radians = apart(T_odom_base, shown.T_map_base)
    np.testing.assert_allclose(metres, 0.05, atol=1e-9)
    np.testing.assert_allclose(radians, 0.01, atol=1e-9)
