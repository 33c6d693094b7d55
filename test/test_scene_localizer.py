"""A localizer over scene coordinates: other cameras, bad input, and no pose where there is none."""

from __future__ import annotations

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from painted_world import CAMERA, ColourReader, frame_of, localizer_of, pose_at, reader, shown, store_of
from pictures import NORMALISATION

from vmloc_ros.assembly import UNKNOWN_CAMERA
from vmloc_ros.errors import CheckpointError
from vmloc_ros.localizers.inputs import FrameInputs, Pictures
from vmloc_ros.localizers.scene_coordinates import SceneLocalizer
from vmloc_ros.runtimes.scene_coordinates import SceneRuntime
from vmloc_ros.types import Frame, Mode, NoPose, PoseEstimate
from vmloc_ros.uncertainty import nees
from vmloc_ros.validation import pose_errors

BOTH, RGB, DEPTH = ("rgb", "depth"), ("rgb",), ("depth",)
SHARES = (0.15, 0.5, 0.85)


@pytest.fixture(scope="module")
def network() -> ColourReader:
    return reader()


@pytest.fixture(scope="module")
def localizer(network: ColourReader, tmp_path_factory: pytest.TempPathFactory) -> SceneLocalizer:
    return localizer_of(network, store_of(tmp_path_factory.mktemp("painted") / "store", 28))


def pose_of(localizer: SceneLocalizer, frame: Frame) -> PoseEstimate:
    answer = localizer.localize(frame)
    assert isinstance(answer, PoseEstimate), answer
    return answer


def refusal_of(localizer: SceneLocalizer, frame: Frame) -> str:
    answer = localizer.localize(frame)
    assert isinstance(answer, NoPose), f"{answer.mode} with health {answer.health:.2f}"
    return answer.reason


def errors_of(answer: PoseEstimate, share: float) -> tuple[float, float, float]:
    """Metres, degrees, NEES / 6."""
    tangent, position, rotation = pose_errors(answer.T_map_camera[None], pose_at(share)[None])
    return float(position[0]), float(rotation[0]), float(nees(tangent, answer.cov_66[None])[0]) / 6.0


def with_depth(frame: Frame, change: Callable[[np.ndarray], np.ndarray]) -> Frame:
    assert frame.depth_m is not None
    return replace(frame, depth_m=change(frame.depth_m).astype(np.float32))


@pytest.mark.parametrize("modalities", [BOTH, RGB])
@pytest.mark.parametrize("share", SHARES)
def test_what_is_seen_is_localized(localizer: SceneLocalizer, share: float, modalities: tuple[str, ...]) -> None:
    answer = pose_of(localizer, frame_of(pose_at(share), modalities))
    position_m, rotation_deg, squared = errors_of(answer, share)
    assert position_m < 0.08
    assert rotation_deg < 2.0
    assert squared < 10.0
    assert answer.health > 0.5
    assert set(answer.expert_weights) == set(modalities)
    assert answer.mode is (Mode.RGB_DEPTH if modalities == BOTH else Mode.RGB_ONLY)


def test_answers_have_no_memory_and_threads_share_one_localizer(localizer: SceneLocalizer) -> None:
    frames = [frame_of(pose_at(share), modalities) for share in SHARES for modalities in (BOTH, RGB)]
    alone = [pose_of(localizer, frame) for frame in frames]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(partial(pose_of, localizer), reversed(frames)))[::-1]
    for one, other in zip(alone, together, strict=True):
        assert np.array_equal(one.T_map_camera, other.T_map_camera)
        assert np.array_equal(one.cov_66, other.cov_66)


# ------------------------------------------------------------------------------------------------ rays, not pixels


def resized(frame: Frame, width: int, height: int) -> Frame:
    assert frame.rgb is not None
    depth = None
    if frame.depth_m is not None:
        depth = cv2.resize(frame.depth_m, (width, height), interpolation=cv2.INTER_NEAREST)
    rgb = np.asarray(cv2.resize(frame.rgb, (width, height), interpolation=cv2.INTER_AREA), np.uint8)
    return replace(frame, intrinsics=frame.intrinsics.resized(width, height), rgb=rgb, depth_m=depth)


def cropped(frame: Frame, x: int, y: int, width: int, height: int) -> Frame:
    assert frame.rgb is not None
    window = slice(y, y + height), slice(x, x + width)
    depth = None if frame.depth_m is None else frame.depth_m[window]
    return replace(
        frame, intrinsics=frame.intrinsics.cropped(x, y, width, height), rgb=frame.rgb[window], depth_m=depth
    )


@pytest.mark.parametrize("modalities", [BOTH, RGB])
@settings(max_examples=12, deadline=None)
@given(x=st.integers(0, 50), y=st.integers(0, 40), size=st.floats(0.55, 1.0), scale=st.floats(0.6, 1.4))
def test_another_camera_gets_the_same_pose(
    localizer: SceneLocalizer, modalities: tuple[str, ...], x: int, y: int, size: float, scale: float
) -> None:
    """Cut out anywhere and resized by any factor, differently in both directions: a hand's breadth at 3 m."""
    frame = frame_of(pose_at(0.5), modalities)
    width, height = int((CAMERA.width - x) * size), int((CAMERA.height - y) * size)
    other = resized(cropped(frame, x, y, width, height), round(width * scale), round(height * scale * 0.9))
    answer = localizer.localize(other)
    if isinstance(answer, NoPose):
        assert size * size * (1 - x / CAMERA.width) * (1 - y / CAMERA.height) < 0.5, answer.reason
        return
    position_m, rotation_deg, squared = errors_of(answer, 0.5)
    assert squared < 12.0 or (position_m < 0.1 and rotation_deg < 2.0)
    assert position_m < 0.3


def test_the_training_cameras_frames_are_not_resampled(localizer: SceneLocalizer) -> None:
    """The same view takes the path of training, bit for bit."""
    by_rays, as_trained = FrameInputs(localizer.card, by_rays=True), FrameInputs(localizer.card)
    frame = frame_of(pose_at(0.4))
    for same_view in (frame, replace(frame, intrinsics=replace(CAMERA, cx=CAMERA.cx + 0.01))):
        one, other = by_rays.of(same_view), as_trained.of(same_view)
        assert isinstance(one, Pictures)
        assert isinstance(other, Pictures)
        assert one.seen_1HW is None
        assert np.array_equal(one.rgb_1HW3, other.rgb_1HW3)  # type: ignore[arg-type]
        assert np.array_equal(one.depth_1HW, other.depth_1HW)  # type: ignore[arg-type]


def test_a_camera_that_sees_too_little_of_the_training_view_is_refused(localizer: SceneLocalizer) -> None:
    assert "covers" in refusal_of(localizer, cropped(frame_of(pose_at(0.5)), 0, 0, 70, 60))


def test_without_a_calibration_there_is_no_pose(localizer: SceneLocalizer) -> None:
    for modalities in (BOTH, RGB):
        frame = replace(frame_of(pose_at(0.5), modalities), intrinsics=UNKNOWN_CAMERA)
        assert "camera_info" in refusal_of(localizer, frame)


@pytest.mark.parametrize("modalities", [BOTH, RGB])
@pytest.mark.parametrize(("longer", "right"), [(1.5, 0.0), (0.67, 0.0), (1.0, 0.25)])
def test_camera_info_of_another_camera_is_never_a_certain_wrong_pose(
    localizer: SceneLocalizer, modalities: tuple[str, ...], longer: float, right: float
) -> None:
    camera = replace(CAMERA, fx=longer * CAMERA.fx, fy=longer * CAMERA.fy, cx=CAMERA.cx + right * CAMERA.fx)
    for share in SHARES:
        answer = localizer.localize(replace(frame_of(pose_at(share), modalities), intrinsics=camera))
        if isinstance(answer, NoPose):
            assert "camera_info" in answer.reason or "does not fit the map" in answer.reason
        else:
            assert errors_of(answer, share)[2] < 3.0


# ------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize("modalities", [BOTH, DEPTH])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda depth: 1000.0 * depth, "1000 times too large .* millimetres"),
        (lambda depth: depth / 1000.0, "1000 times too small"),
        (lambda depth: 0.0 * depth + 3.2, "depth is constant"),
    ],
)
def test_depth_that_cannot_be_is_refused_by_name(
    localizer: SceneLocalizer, modalities: tuple[str, ...], change: Callable[[np.ndarray], np.ndarray], words: str
) -> None:
    reason = refusal_of(localizer, with_depth(frame_of(pose_at(0.5), modalities), change))
    assert re.search(words, reason), reason


def test_depth_without_a_return_is_absent(localizer: SceneLocalizer) -> None:
    """Beside a picture it changes nothing; alone it is a reason."""
    nothing = partial(np.full_like, fill_value=np.nan)
    alone = pose_of(localizer, frame_of(pose_at(0.5), RGB))
    beside = pose_of(localizer, with_depth(frame_of(pose_at(0.5)), nothing))
    assert beside.mode is Mode.RGB_ONLY
    assert np.array_equal(beside.T_map_camera, alone.T_map_camera)
    assert "no return" in refusal_of(localizer, with_depth(frame_of(pose_at(0.5), DEPTH), nothing))


def test_depth_that_contradicts_the_picture_is_refused(localizer: SceneLocalizer) -> None:
    frame = frame_of(pose_at(0.5))
    elsewhere = shown(pose_at(0.0))[1] + 1.0
    for change in (np.fliplr, lambda depth: 1.4 * depth, lambda _: elsewhere):
        assert "does not fit the map" in refusal_of(localizer, with_depth(frame, change))


@pytest.mark.parametrize("modalities", [BOTH, RGB])
def test_pictures_of_no_place_are_refused(localizer: SceneLocalizer, modalities: tuple[str, ...]) -> None:
    rng = np.random.default_rng(0)
    frame = frame_of(pose_at(0.5), modalities)
    assert frame.rgb is not None
    pictures = [
        frame.rgb[:, ::-1],
        frame.rgb[::-1],
        rng.integers(0, 256, frame.rgb.shape, dtype=np.uint8),
        np.full_like(frame.rgb, 90),
        np.concatenate([frame.rgb[:, 100:], frame.rgb[:, :100]], axis=1),
    ]
    for picture in pictures:
        assert "does not fit" in refusal_of(localizer, replace(frame, rgb=np.ascontiguousarray(picture)))


def test_what_the_network_cannot_say_counts_against_the_frame(
    localizer: SceneLocalizer, network: ColourReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    frame = frame_of(pose_at(0.5))
    monkeypatch.setattr(network, "broken", 20)
    assert errors_of(pose_of(localizer, frame), 0.5)[0] < 0.1
    for broken in (150, 180):
        monkeypatch.setattr(network, "broken", broken)
        assert "does not fit the map" in refusal_of(localizer, frame)


@pytest.mark.parametrize(
    ("rgb", "depth", "expected"),
    [
        (None, 0.0, Mode.DEPTH_ONLY),  # a covered camera
        (0.01, 0.0, Mode.DEPTH_ONLY),  # both know the place
        (2.0, 0.0, None),  # two places: one of them is wrong
        (0.0, None, None),  # the camera alone is bad at noticing a wrong camera_info
        (None, None, None),
    ],
)
def test_depth_may_know_what_both_together_do_not(
    localizer: SceneLocalizer,
    monkeypatch: pytest.MonkeyPatch,
    rgb: float | None,
    depth: float | None,
    expected: Mode | None,
) -> None:
    """`rgb`, `depth`: how far from the truth each alone puts the camera; None: refused."""
    frame = frame_of(pose_at(0.5))
    known = pose_of(localizer, frame)

    def answer(stamp_ns: int, seen: Pictures) -> PoseEstimate | NoPose:
        off = {Mode.RGB_ONLY: rgb, Mode.DEPTH_ONLY: depth}.get(seen.mode)
        if off is None:
            return NoPose(stamp_ns, f"{seen.mode} is refused")
        T = pose_at(0.5)
        T[0, 3] += off
        return replace(known, T_map_camera=T, cov_66=1e-4 * np.eye(6), mode=seen.mode)

    network = localizer.card.network.model_copy(update={"modalities": ["rgb", "depth"]})
    monkeypatch.setattr(localizer, "card", localizer.card.model_copy(update={"network": network}))
    monkeypatch.setattr(localizer, "_answer", answer)
    found = localizer.localize(frame)
    if expected is None:
        assert isinstance(found, NoPose)
        assert found.reason == "RGB_DEPTH is refused"
    else:
        assert isinstance(found, PoseEstimate)
        assert found.mode is expected


def test_a_card_without_limits_is_refused(localizer: SceneLocalizer) -> None:
    with pytest.raises(CheckpointError, match="scene"):
        SceneLocalizer(localizer.card.model_copy(update={"scene": None}), SceneRuntime(reader(), NORMALISATION))
