"""When answers over scene coordinates are believed: measured, and strangers told apart from the map."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from painted_world import CONFIG, SIGMA_M, localizer_of, pose_at, reader, store_of
from pictures import NORMALISATION

from vmloc_ros.commands.trained_model import check_answers, credulous_lines
from vmloc_ros.errors import TrainingError
from vmloc_ros.geometry import Array
from vmloc_ros.networks.scene_coordinates_config import SceneCard, SceneLimits
from vmloc_ros.runtimes.scene_coordinates import SceneRuntime
from vmloc_ros.samples import SampleStore
from vmloc_ros.scene_belief import Agreement, depth_problem
from vmloc_ros.scene_limits import Sights, made_strangers, measure_scene
from vmloc_ros.types import Mode
from vmloc_ros.validation import ModeErrors, validate

COUNT = 24
EVERY = np.arange(COUNT)
CARD = SceneCard(limits={}, depth_low_m=2.0, depth_high_m=8.0)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> SampleStore:
    return store_of(tmp_path_factory.mktemp("painted") / "store", COUNT)


@pytest.fixture(scope="module")
def limits(store: SampleStore) -> SceneLimits:
    return measure_scene(SceneRuntime(reader(), NORMALISATION), store, EVERY).limits[Mode.RGB_ONLY.value]


def test_frames_of_the_map_pass_and_strangers_do_not(limits: SceneLimits) -> None:
    assert limits.frames == COUNT
    assert set(limits.strangers) == {"mirrored", "flipped", "noise", "strips"}
    assert max(limits.strangers.values()) < limits.least_share < limits.share_p5 <= limits.share_median


def test_the_tolerance_is_what_most_cells_need(limits: SceneLimits) -> None:
    """Cells that err by a few centimetres everywhere: as far as that, and hardly more for distant ones."""
    assert 0.5 * SIGMA_M < limits.inlier_m + 3.0 * limits.inlier_share < 3.0 * SIGMA_M
    assert limits.inlier_share < 0.02


def test_the_runtime_keeps_the_limits_and_refuses_by_them(store: SampleStore) -> None:
    runtime = SceneRuntime(reader(), NORMALISATION)
    card = measure_scene(runtime, store, EVERY)
    assert runtime.scene == card
    depth = np.median(np.asarray(store.depth_m, dtype=float), axis=(1, 2))
    assert depth.min() <= card.depth_low_m < card.depth_high_m <= depth.max()
    errors = validate(runtime, CONFIG, store, EVERY)[Mode.RGB_ONLY]
    assert errors.refused is not None
    assert errors.refused <= 1
    runtime.scene = card.model_copy(
        update={"limits": {"RGB_ONLY": card.limits["RGB_ONLY"].model_copy(update={"least_share": 0.8})}}
    )
    strict = validate(runtime, CONFIG, store, EVERY)[Mode.RGB_ONLY]
    every = validate(runtime, CONFIG, store, EVERY, with_refused=True)[Mode.RGB_ONLY]
    assert strict.refused is not None
    assert 0 < strict.refused == COUNT - len(strict.samples_N)
    assert every.refused == strict.refused
    assert len(every.samples_N) == COUNT
    assert strict.summary()["no_pose"] == strict.refused


def test_measuring_twice_gives_the_same(store: SampleStore, limits: SceneLimits) -> None:
    again = measure_scene(SceneRuntime(reader(), NORMALISATION), store, EVERY)
    assert again.limits[Mode.RGB_ONLY.value] == limits


def test_a_network_that_has_learnt_nothing(store: SampleStore) -> None:
    """While it is trained its frames count with a placeholder; in the end there is nothing to measure."""
    network = reader()
    network.broken = 10_000
    runtime = SceneRuntime(network, NORMALISATION)
    errors = validate(runtime, CONFIG, store, EVERY, with_refused=True)[Mode.RGB_ONLY]
    assert errors.refused == COUNT
    assert np.isfinite(errors.tangent_N6).all()
    assert np.allclose(errors.T_hat_N44[:, :3, 3], NORMALISATION.position_mean_m)
    nothing = validate(runtime, CONFIG, store, EVERY)[Mode.RGB_ONLY]
    assert nothing.summary() == {"n": 0, "no_pose": COUNT}
    with pytest.raises(TrainingError, match="RGB_ONLY: not one of 24 validation frames"):
        measure_scene(runtime, store, EVERY)


def test_a_network_whose_points_lie_anywhere_refuses_its_strangers_too(store: SampleStore) -> None:
    """It claims little: whatever it believes, no more than a fifth of its own frames are lost."""
    network = reader()
    network.noise_m = 1.0
    runtime = SceneRuntime(network, NORMALISATION)
    card = measure_scene(runtime, store, EVERY)
    errors = validate(runtime, CONFIG, store, EVERY)[Mode.RGB_ONLY]
    assert errors.refused is not None
    assert errors.refused <= COUNT // 5
    assert card.limits[Mode.RGB_ONLY.value].inlier_m > 0.3


def test_too_few_answers_cannot_be_calibrated() -> None:
    nothing: dict[str, Any] = {name: np.zeros((3, 1)) for name in ("scatters_N66", "T_hat_N44", "latents_ND")}
    errors = ModeErrors(np.zeros((3, 6)), position_m=np.zeros(3), rotation_deg=np.zeros(3), samples_N=np.arange(3),
                        refused=40, **nothing)  # fmt: skip
    with pytest.raises(TrainingError, match="RGB_ONLY: 3 of 43 validation frames get a pose, and 20 are needed"):
        check_answers({Mode.RGB_ONLY: errors}, 20)
    check_answers({Mode.RGB_ONLY: errors}, 3)


def test_a_mode_that_believes_strangers_is_named(store: SampleStore, limits: SceneLimits) -> None:
    card = localizer_of(reader(), store).card
    assert credulous_lines(card) == []
    fooled = limits.model_copy(update={"strangers": {"mirrored": 0.9, "noise": 0.0}})
    scene = SceneCard(limits={"RGB_ONLY": fooled, "RGB_DEPTH": limits})
    (line,) = credulous_lines(card.model_copy(update={"scene": scene}))
    assert "RGB_ONLY" in line
    assert "mirrored 0.90" in line


# ---------------------------------------------------------------------------------------------------------- strangers


def sights(count: int) -> tuple[Sights, Array]:
    """Frames whose every pixel says which frame and column it is of."""
    columns = np.broadcast_to(np.arange(40), (count, 8, 40))
    numbers = np.broadcast_to(np.arange(count)[:, None, None], (count, 8, 40))
    pictures = np.stack([columns, numbers, 0 * columns], axis=-1).astype(np.uint8)
    poses = np.array([pose_at(share) for share in np.linspace(0.0, 1.0, count)])
    return Sights(pictures, (1.0 + columns).astype(np.float32)), poses


def test_strangers_are_always_the_same_and_none_is_a_frame_of_the_map() -> None:
    given_sights, poses = sights(12)
    one, other = (made_strangers(given_sights, poses, 1.0, 5.0) for _ in range(2))
    assert set(one) == {"mirrored", "flipped", "noise", "strips", "other_depth"}
    for kind, frames in one.items():
        assert frames.rgb_NHW3 is not None
        assert frames.depth_NHW is not None
        assert np.array_equal(frames.rgb_NHW3, other[kind].rgb_NHW3)  # type: ignore[arg-type]
        assert np.array_equal(frames.depth_NHW, other[kind].depth_NHW)  # type: ignore[arg-type]
        assert frames.rgb_NHW3.shape == (12, 8, 40, 3)
        assert np.isfinite(frames.depth_NHW).all()


def test_strips_are_of_different_frames_and_none_is_in_its_place() -> None:
    strips = made_strangers(*sights(12), 1.0, 5.0)["strips"].rgb_NHW3
    assert strips is not None
    assert (strips[:, 0, :, 0] != np.arange(40)).all()
    assert all(len(np.unique(frame[..., 1])) >= 3 for frame in strips)


def test_with_few_frames_there_are_no_strips() -> None:
    assert set(made_strangers(*sights(4), 1.0, 5.0)) == {"mirrored", "flipped", "noise"}


# ----------------------------------------------------------------------------------------------------- what is believed


@given(st.floats(2.0, 8.0), st.integers(0, 9))
def test_depth_of_the_scene_is_no_problem_and_in_another_unit_it_is(middle_m: float, seed: int) -> None:
    depth = np.random.default_rng(seed).uniform(0.5 * middle_m, 1.5 * middle_m, (12, 16))
    depth[::3] = 0.0
    assert depth_problem(depth, CARD) == ""
    for scale in (0.3, 3.0):  # another room, not another unit
        assert depth_problem(scale * depth, CARD) == ""
    assert "1000 times too large" in depth_problem(1000.0 * depth, CARD)
    assert "millimetres" in depth_problem(1000.0 * depth, CARD)
    assert "1000 times too small" in depth_problem(0.001 * depth, CARD)


def test_depth_without_a_return_or_without_a_shape() -> None:
    assert "no return" in depth_problem(np.zeros((4, 4)), CARD)
    assert "constant" in depth_problem(np.full((4, 4), 3.0), CARD)
    assert depth_problem(np.array([[0.0, 3.0], [0.0, 0.0]]), CARD) == ""  # one return is no constant image


def agreement_of(share: float, residual: float = 1.0, change: float = 0.0, solved: bool = True) -> Agreement:
    numbers = np.array([share]), np.array([residual]), np.array([solved])
    return Agreement(*numbers, np.array([[change, 0.0, 0.0]]), np.array([1.0]), np.ones(1))


@given(st.floats(0.0, 1.0), st.floats(0.0, 30.0), st.floats(-0.5, 0.5), st.booleans())
def test_whatever_is_refused_has_a_reason_and_only_that(
    share: float, residual: float, change: float, solved: bool
) -> None:
    limits = SceneLimits(least_share=0.4, share_median=0.8, most_camera_change=[0.2, 0.2, 0.2])
    said = agreement_of(share, residual, change, solved)
    assert bool(said.refused(limits)[0]) == bool(said.reason(0, limits))
    assert 0.0 <= said.health(limits)[0] <= 1.0


def test_health_falls_to_nothing_at_the_limit() -> None:
    limits = SceneLimits(least_share=0.4, share_median=0.8)
    shares = (0.4, 0.6, 0.8, 0.95)
    assert [float(agreement_of(share).health(limits)[0]) for share in shares] == pytest.approx([0.0, 0.5, 1.0, 1.0])


def test_reasons_name_what_is_wrong(tmp_path: Path) -> None:
    limits = SceneLimits(least_share=0.4, most_residual=3.0, most_camera_change=[0.2, 0.2, 0.2])
    assert "12 % of the cells agree on a pose, 40 % are needed" in agreement_of(0.12).reason(0, limits)
    assert "no pose agrees" in agreement_of(0.0, solved=False).reason(0, limits)
    assert "scatter 5.0 times" in agreement_of(0.9, residual=5.0).reason(0, limits)
    assert "focal length 0.67 times as long" in agreement_of(0.9, change=0.4).reason(0, limits)
