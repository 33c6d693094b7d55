"""Calibration by blocks: evidence from neighbours, the fit of a covariance model, and what is said about its truth."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmloc_ros.calibration import (
    EXPONENTS,
    PART_S,
    WANTED_BLOCKS,
    CalibrationFrames,
    calibrate_mode,
    calibration_lines,
    cut_blocks,
    inflated,
    judge,
    leave_one_out,
    pooled,
)
from vmloc_ros.covariance_fit import effective_count, fit_covariance
from vmloc_ros.errors import GeometryError
from vmloc_ros.geometry import Array, exp_se3
from vmloc_ros.neighbours import NEIGHBOURS, Evidence, Neighbours
from vmloc_ros.types import Mode
from vmloc_ros.uncertainty import nees

BASE = np.diag([0.5, 0.2, 1.0, 0.01, 0.03, 0.02]) ** 2


def world(
    count: int, seed: int, share: float = 0.5, exponent: float = 1.0, kind: str = "neighbours"
) -> CalibrationFrames:
    """Independent errors of covariance (BASE + share V) distance^exponent, in four blocks."""
    rng = np.random.default_rng(seed)
    factors = np.sqrt(np.diag(BASE)) * rng.normal(size=(count, 3, 6))
    shape = np.einsum("nki,nkj->nij", factors, factors) / 3.0
    distance = 0.3 * np.exp(0.5 * rng.normal(size=count))
    S = (BASE + share * shape) * (distance / 0.3)[:, None, None] ** exponent
    errors = np.einsum("nij,nj->ni", np.linalg.cholesky(S), rng.normal(size=(count, 6)))
    blocks = np.arange(count) * 4 // count
    return CalibrationFrames(errors, 0.1 * shape, Evidence(shape, distance), blocks, kind)


# ---------------------------------------------------------------------------------------------------------- neighbours


def line(count: int) -> tuple[Array, Array]:
    """Latents and poses along a line."""
    shares = np.linspace(0.0, 1.0, count)
    poses = np.stack([exp_se3([10.0 * s, 0.0, 0.0, 0.0, 0.0, 0.3 * s]) for s in shares])
    return np.stack([np.cos(3.0 * shares), np.sin(3.0 * shares), shares], axis=1).astype(np.float32), poses


def test_a_training_frame_is_near_itself_and_a_strange_one_is_far() -> None:
    latents, poses = line(100)
    known = Neighbours(latents, poses)
    at_home = known.evidence(latents[40:41], poses[40:41])
    strange = known.evidence(latents[40:41] + 5.0, poses[40:41])
    assert at_home.distance_N[0] < 1e-3
    assert strange.distance_N[0] > 1.0
    assert at_home.disagreement_N[0] < 2.0


def test_neighbours_elsewhere_show_in_the_shape() -> None:
    """A pose that its neighbours do not share: the shape says by how much and along which axis of the camera."""
    latents, poses = line(200)
    known = Neighbours(latents, poses)
    wrong = poses[100] @ exp_se3([0.0, 7.0, 0.0, 0.0, 0.0, 0.0])
    shape = known.evidence(latents[100:101], wrong[None]).shape_N66[0]
    assert np.sqrt(shape[1, 1]) == pytest.approx(7.0, rel=0.1)
    assert shape[1, 1] > 20.0 * shape[2, 2]
    assert np.allclose(shape, shape.T)


@given(st.integers(2, 60), st.floats(0.1, 10.0))
@settings(max_examples=10)
def test_distances_do_not_depend_on_the_latents_unit(count: int, unit: float) -> None:
    """Networks whose latent spaces have another scale and origin say the same."""
    latents, poses = line(count)
    asked = latents[: min(count, 5)] + 0.1
    one = Neighbours(latents, poses).evidence(asked, poses[: len(asked)])
    other = Neighbours(latents * np.float32(unit), poses).evidence(asked * np.float32(unit), poses[: len(asked)])
    assert other.distance_N == pytest.approx(one.distance_N, rel=1e-2, abs=1e-3)
    assert np.isfinite(one.shape_N66).all()
    assert len(one) == len(asked)


def test_neighbours_have_a_pose_each() -> None:
    latents, poses = line(2 * NEIGHBOURS)
    with pytest.raises(GeometryError, match="31 poses"):
        Neighbours(latents, poses[1:])
    with pytest.raises(GeometryError, match="no neighbours"):
        Neighbours(latents[:1], poses[:1])


# ------------------------------------------------------------------------------------------------------------- the fit


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_the_fit_finds_what_made_the_errors(share: float) -> None:
    frames = world(1500, 0, share)
    model = fit_covariance(frames.errors_N6, frames.evidence, frames.blocks_N, (1.0, 0.0))
    assert np.diag(model.base_66) == pytest.approx(np.diag(BASE), rel=0.35)
    assert model.share == pytest.approx(share, abs=0.15)
    fresh = world(1500, 1, share)
    assert nees(fresh.errors_N6, model.covariances(fresh.evidence)).mean() == pytest.approx(6.0, rel=0.08)


@pytest.mark.parametrize("count", [50, 400])
def test_few_frames_are_enough_to_be_true(count: int) -> None:
    ratios = []
    for seed in range(4):
        frames, fresh = world(count, seed), world(1000, 100 + seed)
        model = fit_covariance(frames.errors_N6, frames.evidence, frames.blocks_N, (1.0, 0.0))
        ratios.append(nees(fresh.errors_N6, model.covariances(fresh.evidence)).mean() / 6.0)
    assert 0.7 < np.mean(ratios) < 1.4


def test_one_error_repeated_is_not_taken_for_many() -> None:
    """A block whose frames all err alike: the covariance stays wide in the directions it says nothing about."""
    rng = np.random.default_rng(0)
    error = np.array([0.1, 0.0, 0.0, 0.02, 0.0, 0.0])
    errors = error + 1e-3 * rng.normal(size=(50, 6)) * np.array([1, 1, 1, 0.1, 0.1, 0.1])
    evidence = Evidence(np.tile(1e-4 * np.eye(6), (50, 1, 1)), np.full(50, 0.3))
    blocks = np.zeros(50, dtype=np.int64)
    assert effective_count(errors, blocks) < 3.0
    S = fit_covariance(errors, evidence, blocks, (1.0, 0.5)).covariances(evidence)[0]
    turned = np.array([0.0, 0.1, 0.0, 0.0, 0.02, 0.0])
    assert turned @ np.linalg.solve(S, turned) < 60.0
    second_moment = errors.T @ errors / 50 + 1e-6 * np.eye(6)
    assert turned @ np.linalg.solve(second_moment, turned) > 1000.0  # what the best constant would say


def test_independent_errors_all_count() -> None:
    errors = np.random.default_rng(0).normal(size=(400, 6))
    blocks = np.zeros(400, dtype=np.int64)
    assert effective_count(errors, blocks) == pytest.approx(400.0, rel=0.2)
    assert effective_count(np.repeat(errors[:40], 10, axis=0), blocks) == pytest.approx(40.0, rel=0.4)


def test_the_fit_refuses_what_it_cannot_use() -> None:
    frames = world(20, 0)
    with pytest.raises(GeometryError, match="finite"):
        fit_covariance(frames.errors_N6 * np.nan, frames.evidence, frames.blocks_N, (1.0, 0.0))
    one = frames.only(np.arange(20) == 0)
    with pytest.raises(GeometryError, match="1 errors"):
        fit_covariance(one.errors_N6, one.evidence, one.blocks_N, (1.0, 0.0))


# -------------------------------------------------------------------------------------------------------------- blocks


@given(
    st.lists(st.tuples(st.integers(1, 40), st.floats(0.05, 2.0)), min_size=1, max_size=6),
)
@settings(max_examples=25)
def test_blocks_are_cut_only_where_they_are_few(lengths: list[tuple[int, float]]) -> None:
    blocks = np.repeat(np.arange(len(lengths)), [count for count, _ in lengths])
    seconds = np.concatenate([100.0 * i + step * np.arange(count) for i, (count, step) in enumerate(lengths)])
    parts = cut_blocks(blocks, seconds)
    if len(lengths) >= WANTED_BLOCKS:
        assert np.array_equal(parts, blocks)
    for part in np.unique(parts):
        assert len(np.unique(blocks[parts == part])) == 1  # no part reaches into another block
    durations = {b: np.ptp(seconds[blocks == b]) for b in np.unique(blocks)}
    for block, duration in durations.items():
        assert len(np.unique(parts[blocks == block])) <= max(1.0, duration / PART_S)


def test_pooled_blocks_stay_apart() -> None:
    one, two = {Mode.RGB_ONLY: world(40, 0)}, {Mode.RGB_ONLY: world(60, 1)}
    both = pooled([one, two])[Mode.RGB_ONLY]
    assert len(both) == 100
    assert len(np.unique(both.blocks_N)) == 8
    assert np.array_equal(both.errors_N6[40:], two[Mode.RGB_ONLY].errors_N6)
    mixed = pooled([one, {Mode.RGB_ONLY: world(60, 1, kind="scatter")}])[Mode.RGB_ONLY]
    assert len(mixed) == 40


# ---------------------------------------------------------------------------------------------------------- judgements


def test_true_covariances_are_judged_true_and_beat_the_constant() -> None:
    calibration = calibrate_mode(world(480, 0))
    judged = calibration.judged
    assert judged is not None
    assert (judged.blocks, judged.frames) == (4, 480)
    assert judged.nees == pytest.approx(1.0, abs=0.15)
    assert list(judged.coverage.values()) == pytest.approx([0.5, 0.9, 0.95], abs=0.06)
    assert judged.log_likelihood > judged.own_constant > judged.constant - 0.1
    assert calibration.unverified == ""
    again = judge(world(480, 1), calibration, world(480, 0).errors_N6)
    assert again.nees == pytest.approx(1.0, abs=0.15)
    assert again.log_likelihood > again.constant


def test_a_block_unlike_the_others_shows_in_the_judgement() -> None:
    frames = world(240, 0)
    frames.errors_N6[frames.blocks_N == 2] *= 4.0
    assert leave_one_out(frames, (1.0, 0.0)).nees > 1.5


def test_exponents_are_chosen_on_blocks_left_out() -> None:
    assert calibrate_mode(world(480, 0, exponent=2.0)).distance_exponent == 2.0
    assert calibrate_mode(world(480, 0, exponent=1.0)).distance_exponent == 1.0
    assert calibrate_mode(world(480, 0, exponent=0.0, kind="scatter")).distance_exponent == 0.0


def test_a_single_block_works_and_says_that_it_is_not_verified() -> None:
    frames = world(100, 0)
    single = CalibrationFrames(
        frames.errors_N6, frames.scatters_N66, frames.evidence, np.zeros(100, dtype=np.int64), frames.kind
    )
    calibration = calibrate_mode(single)
    assert calibration.judged is None
    assert "one block of 100 frames" in calibration.unverified
    assert calibration.distance_exponent == EXPONENTS["neighbours"][0][0]
    (line,) = calibration_lines({Mode.RGB_ONLY: calibration, Mode.DEPTH_ONLY: calibration})
    assert line.startswith("warning: covariances of RGB_ONLY, DEPTH_ONLY are not verified")
    assert calibration_lines({Mode.RGB_ONLY: calibrate_mode(frames)})[0].startswith("covariances on blocks")


def test_inflation_multiplies_every_covariance() -> None:
    frames = world(200, 0)
    plain = calibrate_mode(frames)
    wide = inflated(plain, 9.0)
    for index in range(5):
        evidence, scatter = frames.evidence[np.array([index])], frames.scatters_N66[index]
        one, other = plain.rule().covariance(scatter, evidence), wide.rule().covariance(scatter, evidence)
        assert other == pytest.approx(9.0 * one, rel=1e-2, abs=1e-5)
        assert wide.rule().health(scatter, evidence) == pytest.approx(plain.rule().health(scatter, evidence))
    assert "training frames" in wide.unverified
