"""Observations that are no poses through the whole filter: order, recovery, honesty, planes and refusals."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from filter_events import PLAIN, T_MAP_ODOM, Event, assert_same, at, feed, measurement, odometry, truth
from hypothesis import given, settings
from hypothesis import strategies as st
from latent_world import FourierMap, Linear

from vmloc_ros.config import FilterConfig, FrameNames
from vmloc_ros.filter import flattened
from vmloc_ros.fusion import Fusion
from vmloc_ros.geometry import Array, exp_se3, inverse, log_quaternion, log_se3, rotation_from_log_quaternion
from vmloc_ros.types import Information, InitialPose, PoseMeasurement, Verdict

RATE_HZ = 30.0
SIGMA_Q = 1e-3
"""The paper's variance of the constant transition, for each picture: of metres and of log-quaternions."""
HANDHELD = FilterConfig(
    gap_noise_m_per_s=(SIGMA_Q * RATE_HZ / 2.0) ** 0.5,
    gap_noise_rad_per_s=2.0 * (SIGMA_Q * RATE_HZ / 2.0) ** 0.5,
    measurement_correlation_s=0.0,
    measurement_inflation=1.0,
    relocalize_span_s=0.4,
    initialize_after=1,
)
ROOM = FourierMap(64, 0)


def disguised(seconds: float, error: Array | None = None, dimensions: int = 12) -> PoseMeasurement:
    """A measurement with an observation that tells the very same."""
    offered = measurement(seconds, error)
    turned = np.linalg.qr(np.random.default_rng(0).normal(size=(dimensions, 6)))[0]
    A = turned @ np.linalg.cholesky(np.linalg.inv(offered.cov_66)).T
    return replace(offered, observation=Linear(offered.T_map_base, A, np.ones(dimensions)))


def drive(config: FilterConfig, with_observation: bool) -> Fusion:
    fusion = Fusion(config, FrameNames())
    rng = np.random.default_rng(3)
    for k in range(60):
        fusion.add_odometry(odometry(0.05 * k))
        if k % 4 == 0:
            error = rng.normal(size=6) * np.array([0.5, 0.5, 0.3, 0.02, 0.02, 0.03])
            made = disguised(0.05 * k, error)
            fusion.add_measurement(made if with_observation else replace(made, observation=None))
    return fusion


@pytest.mark.parametrize("config", [PLAIN, FilterConfig()], ids=["plain", "default"])
def test_a_linear_observation_is_the_pose_that_it_is(config: FilterConfig) -> None:
    """Through gate, weights, watch, hedge and odometry model."""
    seen, posed = drive(config, True), drive(config, False)
    assert_same(seen.state(), posed.state(), 1e-9)
    seen.flush()
    posed.flush()
    assert seen.counters() == posed.counters()


def hidden(seconds: float, rng: np.random.Generator) -> PoseMeasurement:
    """A measurement whose observation tells something else than its pose."""
    offered = measurement(seconds, rng.normal(size=6) * np.array([0.5, 0.5, 0.3, 0.02, 0.02, 0.03]))
    world = FourierMap(32, 5, per_metre=0.2, per_turn=0.7)
    return replace(offered, observation=world.seen(T_MAP_ODOM @ truth(seconds), 0.2, rng))


def test_without_observations_the_poses_are_compared() -> None:
    config = PLAIN.model_copy(update={"use_observations": False})
    rng = np.random.default_rng(0)
    events: list[Event] = [odometry(0.1 * k) for k in range(20)]
    seen = [hidden(0.2 * k, rng) for k in range(8)]
    off, posed, on = (Fusion(c, FrameNames()) for c in (config, PLAIN, PLAIN))
    feed(off, events + seen)
    feed(posed, events + [replace(made, observation=None) for made in seen])
    feed(on, events + seen)
    assert_same(off.state(), posed.state(), 0.0)
    ours, theirs = on.state(), posed.state()
    assert ours is not None
    assert theirs is not None
    assert np.abs(ours.T_map_base - theirs.T_map_base).max() > 0.01


@settings(max_examples=8)
@given(st.randoms(use_true_random=False), st.sampled_from([PLAIN, FilterConfig(initialize_after=1)]))
def test_any_order_of_arrival_gives_one_answer(random: object, config: FilterConfig) -> None:
    rng = np.random.default_rng(1)
    events: list[Event] = [odometry(0.1 * k) for k in range(21)]
    events += [hidden(0.05 + 0.2 * k, rng) for k in range(10)]
    events.append(replace(hidden(1.05, rng), T_map_base=T_MAP_ODOM @ exp_se3([50.0, 0, 0, 0, 0, 1.0])))
    order = sorted(events, key=lambda event: event.stamp_ns)
    shuffled = list(events)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    first = next(k for k, event in enumerate(shuffled) if event.stamp_ns == at(0.0))
    shuffled.insert(0, shuffled.pop(first))
    straight, mixed = (Fusion(config.model_copy(update={"future_tolerance_s": 5.0}), FrameNames()) for _ in range(2))
    feed(straight, order)
    feed(mixed, shuffled)
    assert_same(straight.state(), mixed.state(), 1e-9 if config is PLAIN else 1e-6)
    straight.flush()
    mixed.flush()
    assert straight.counters() == mixed.counters()


def handheld(seconds: float) -> Array:
    """A camera carried about a room."""
    T = exp_se3(
        [0, 0, 0, 0.4 * np.sin(0.5 * seconds), 0.3 * np.sin(0.37 * seconds + 1.0), 0.6 * np.sin(0.31 * seconds)]
    )
    T[:3, 3] = 0.8 * np.sin(0.4 * seconds), 0.6 * np.cos(0.3 * seconds), 0.3 * np.sin(0.7 * seconds)
    return T


def watched(config: FilterConfig, deviation: float, frames: int = 120) -> tuple[Array, Array, Fusion]:
    """Errors (N, 6) and NEES (N) of a filter without odometry that starts beside the truth, surely.

    The deviation is added to all six: metres and log-quaternion. Each picture comes with the most likely pose.
    """
    rng, fusion = np.random.default_rng(7), Fusion(config, FrameNames())
    T = handheld(0.0)
    T[:3, :3] = rotation_from_log_quaternion(log_quaternion(T[:3, :3]) + deviation)
    T[:3, 3] += deviation
    fusion.set_pose(InitialPose(0, "map", T, np.diag([SIGMA_Q] * 3 + [4.0 * SIGMA_Q] * 3)))
    errors, nees = [], []
    for k in range(frames):
        T = handheld(k / RATE_HZ)
        seen = ROOM.seen(T, 0.7, rng)
        pose, cov_66 = seen.best(T)
        fusion.add_measurement(PoseMeasurement(at(k / RATE_HZ), pose, cov_66, observation=seen))
        state = fusion.state()
        assert state is not None
        d = log_se3(inverse(state.T_map_base) @ T)
        errors.append(d)
        nees.append(float(d @ np.linalg.solve(state.cov_66, d)))
    return np.array(errors), np.array(nees), fusion


def test_a_handheld_camera_is_tracked_without_odometry() -> None:
    errors, nees, fusion = watched(HANDHELD, 0.0)
    alone = np.sqrt(np.diag(ROOM.seen(handheld(0.0), 0.7, np.random.default_rng(0)).best(handheld(0.0))[1]))
    assert np.sqrt(np.mean(errors[30:] ** 2, axis=0)).sum() < 0.8 * alone.sum(), "better than single pictures"
    assert 1.5 < nees[30:].mean() < 9.0
    assert fusion.counters()["relocalizations"] == 0
    state = fusion.state()
    assert state is not None
    assert (np.sqrt(state.cov_66.diagonal()) < alone).all()


@pytest.mark.parametrize("deviation", [0.5, -0.5, 1.0, -1.0])
def test_a_wrong_start_is_made_good(deviation: float) -> None:
    """Table 3 of the Generative Map: within a tenth of the undeviated error after 50 pictures."""
    right, _, _ = watched(HANDHELD, 0.0)
    wrong, nees, fusion = watched(HANDHELD, deviation)
    for part in (slice(0, 3), slice(3, 6)):
        ours, theirs = (np.linalg.norm(e[50:, part], axis=1).mean() for e in (wrong, right))
        assert ours < 1.1 * theirs
    assert nees[50:].mean() < 9.0
    fusion.flush()
    assert fusion.counters()["relocalizations"] <= 1


def test_never_sure_in_a_hollow() -> None:
    """While the state is wrong by more than the observation can bridge, nothing is fused that would make it sure."""
    for deviation in (1.0, -1.0):
        errors, nees, _ = watched(HANDHELD, deviation, 8)
        assert np.linalg.norm(errors[-1]) > 0.5
        prior = watched(HANDHELD, deviation, 1)[1]
        assert nees[-1] < prior[0], "it gets less sure, not more"


class Broken:
    """Answers with what is no number: everywhere, or only beside one pose."""

    def __init__(self, but_at: Array | None = None) -> None:
        self.but_at = but_at

    def at(self, T_map_body: Array) -> Information:
        if self.but_at is not None and np.array_equal(T_map_body, self.but_at):
            return Information(np.zeros(6), np.eye(6), 1.0, 6)
        return Information(np.full(6, np.nan), np.eye(6), 1.0, 6)


@pytest.mark.parametrize("everywhere", [True, False])
def test_what_is_not_finite_leaves_the_state_alone(everywhere: bool) -> None:
    fusion = drive(PLAIN, True)
    offered = measurement(2.95, np.full(6, 0.01))
    before = fusion.state_at(at(2.95))
    result = fusion.add_measurement(replace(offered, observation=Broken(None if everywhere else offered.T_map_base)))
    assert result.verdict is Verdict.NOT_FINITE
    assert "observation" in result.reason
    assert_same(fusion.state_at(at(2.95)), before, 0.0)
    fusion.flush()
    assert fusion.counters()["verdict.not_finite"] == 1


def test_information_that_is_not_symmetric_is_refused() -> None:
    class Skewed:
        def at(self, T_map_body: Array) -> Information:
            return Information(np.zeros(6), np.eye(6) + np.diag(np.full(5, 0.1), 1), 1.0, 6)

    fusion = drive(PLAIN, True)
    result = fusion.add_measurement(replace(measurement(2.95), observation=Skewed()))
    assert result.verdict is Verdict.NOT_FINITE
    assert "not symmetric" in result.reason


def test_what_fits_nowhere_near_counts_as_its_pose() -> None:
    """And is told: in the reason, and in the counters."""
    fusion, posed = drive(PLAIN, True), drive(PLAIN, True)
    elsewhere = T_MAP_ODOM @ truth(2.95) @ exp_se3([0.5, 0.5, 0, 0, 0, 0])

    class Far:
        """No gradient where the state is, and a much better fit at the pose that comes along."""

        def at(self, T_map_body: Array) -> Information:
            cost = 1.0 if np.array_equal(T_map_body, elsewhere) else 1e3
            return Information(np.zeros(6), 1e4 * np.eye(6), cost, 64)

    made = replace(measurement(2.95), T_map_base=elsewhere)
    result = fusion.add_measurement(replace(made, observation=Far()))
    posed.add_measurement(made)
    assert result.verdict is Verdict.FUSED
    assert "by its pose" in result.reason
    assert_same(fusion.state(), posed.state(), 0.0)
    fusion.flush()
    assert fusion.counters()["observations_as_poses"] == 1


def test_in_the_plane() -> None:
    """The state stays there, and what the observation says of height, roll and pitch does not matter."""
    config = PLAIN.model_copy(update={"planar": True, "planar_height_m": 0.4})
    world = FourierMap(48, 2, per_metre=0.3, per_turn=0.5)
    rng, fusion = np.random.default_rng(4), Fusion(config, FrameNames())
    errors, squares = [], []
    for k in range(80):
        fusion.add_odometry(odometry(0.05 * k))
        T = flattened(T_MAP_ODOM @ truth(0.05 * k), 0.4)
        if k % 4 == 0:
            seen = world.seen(T, 0.4, rng)
            start = T @ exp_se3([0, 0, 0.1, 0.02, -0.02, 0.0])
            result = fusion.add_measurement(
                PoseMeasurement(at(0.05 * k), start, np.diag([0.3] * 3 + [0.02] * 3), observation=seen)
            )
            assert result.verdict is Verdict.FUSED
            assert result.dof == 3
        state = fusion.state()
        assert state is not None
        np.testing.assert_allclose(state.T_map_base, flattened(state.T_map_base, 0.4), atol=1e-12)
        d = log_se3(inverse(state.T_map_base) @ T)[[0, 1, 5]]
        errors.append(d)
        squares.append(d @ np.linalg.solve(state.cov_66[np.ix_([0, 1, 5], [0, 1, 5])], d))
    assert np.abs(np.array(errors)[20:]).max() < 0.5
    assert 0.5 < np.mean(squares[20:]) < 9.0


def test_duplicates_are_known_by_their_pose() -> None:
    fusion = drive(PLAIN, True)
    made = disguised(2.95)
    assert fusion.add_measurement(made).verdict is Verdict.FUSED
    assert fusion.add_measurement(made).verdict is Verdict.DUPLICATE
