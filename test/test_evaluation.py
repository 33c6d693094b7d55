"""Evaluation, corruption and the retrieval baseline."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import NORMALISATION, TINY, build, card_of, drive, frame_at, pose_at, tiny_config

from vmloc_ros.checkpoint import ModelCard
from vmloc_ros.config import parse
from vmloc_ros.corruption import corrupted, parse_corruption
from vmloc_ros.errors import CheckpointError, ConfigError, DatasetError
from vmloc_ros.evaluation import evaluate, frame_config, modes_for, only
from vmloc_ros.geometry import exp_se3
from vmloc_ros.networks.config import NetworkConfig
from vmloc_ros.retrieval import Retrieval, normalised, write_retrieval
from vmloc_ros.types import Frame, FusedState, Modality, Mode, NoPose, PoseEstimate
from vmloc_ros.validation import error_summary, pose_errors

CARD = card_of(parse(NetworkConfig, TINY["network"], "test"), NORMALISATION)
MODES = [Mode.RGB_DEPTH, Mode.RGB_ONLY, Mode.DEPTH_ONLY]


class Offset:
    """Answers the truth moved by one metre along the camera's x axis; says it is sure to half a metre."""

    card: ModelCard = CARD
    device = "cpu"
    fallback = ""

    def localize(self, frame: Frame, prior: FusedState | None = None) -> PoseEstimate | NoPose:
        if frame.mode is Mode.DEPTH_ONLY:
            return NoPose(frame.stamp_ns, "too dark")
        share = (frame.stamp_ns - 1_700_000_000_000_000_000) / 100_000_000 / 39
        T = pose_at(share) @ exp_se3([1.0, 0, 0, 0, 0, 0])
        return PoseEstimate(frame.stamp_ns, T, 0.25 * np.eye(6), {"prior": 1.0}, frame.mode)

    def warm_up(self) -> None:
        return

    def reset(self) -> None:
        return


def test_errors_and_nees_per_mode() -> None:
    report = evaluate(Offset(), drive(40), MODES).report()
    both = report["modes"]["RGB_DEPTH"]
    assert both["errors"]["n"] == 40
    assert both["errors"]["position_m"] == pytest.approx({"mean": 1.0, "median": 1.0, "p95": 1.0, "max": 1.0})
    assert both["errors"]["rotation_deg"]["max"] < 1e-5
    assert both["nees"]["mean"] == pytest.approx(4.0)
    assert report["modes"]["DEPTH_ONLY"] == {"errors": None, "no_pose": {"too dark": 40}}
    assert report["retrieval"] is None


def test_a_missing_modality_is_counted_in_the_modes_that_need_it() -> None:
    report = evaluate(Offset(), drive(40), MODES, [{Modality.DEPTH: 2}]).report()
    assert report["modes"]["RGB_DEPTH"]["no_pose"] == {"a sensor of this mode is absent": 40}
    assert report["modes"]["RGB_ONLY"]["errors"]["n"] == 40


def test_nothing_to_evaluate_on() -> None:
    with pytest.raises(DatasetError, match="no frame"):
        evaluate(Offset(), iter([]), MODES)


def test_retrieval_finds_its_own_images_and_the_nearest(tmp_path: Path) -> None:
    store, _ = build(tmp_path / "cache", tiny_config(), 40)
    path = tmp_path / "retrieval.safetensors"
    assert write_retrieval(path, store, np.arange(0, 40, 4)) == 10
    retrieval = Retrieval(path)
    assert len(retrieval) == 10
    for frame, T, _ in list(drive(40))[::4]:
        assert frame.rgb is not None
        assert np.allclose(retrieval.nearest(frame.rgb), T, atol=1e-9)
        darker = (0.6 * frame.rgb).astype(np.uint8)
        assert np.allclose(retrieval.nearest(darker), T, atol=1e-9)
    result = evaluate(Offset(), drive(40), [Mode.RGB_DEPTH], retrieval=retrieval)
    report = result.report()
    assert report["retrieval"]["errors"]["n"] == 40
    assert report["retrieval"]["errors"]["position_m"]["max"] < 0.5
    assert report["modes"]["RGB_DEPTH"]["beats_retrieval"] == 0.0  # always a metre off
    assert (
        evaluate(Offset(), drive(40), [Mode.RGB_DEPTH], [{Modality.RGB: 2}], retrieval).report()["retrieval"]["errors"]
        is None
    )


def test_retrieval_files_are_checked(tmp_path: Path) -> None:
    store, _ = build(tmp_path / "cache", tiny_config(), 10)
    path = tmp_path / "retrieval.safetensors"
    write_retrieval(path, store, np.arange(10))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="truncated"):
        Retrieval(path)
    with pytest.raises(CheckpointError, match="cannot be read"):
        Retrieval(tmp_path / "none")
    assert write_retrieval(tmp_path / "empty", store, np.arange(0)) == 0
    assert not (tmp_path / "empty").exists()


def test_constant_thumbnails_are_finite() -> None:
    assert np.array_equal(normalised(np.full((1, 12, 16, 3), 7, np.uint8)), np.zeros((1, 576), np.float32))


@settings(max_examples=30)
@given(st.integers(0, 10**18), st.integers(0, 3), st.sampled_from(list(Modality)))
def test_the_mask_of_table_4(stamp_ns: int, seed: int, modality: Modality) -> None:
    frame = frame_at(0.3, stamp_ns)
    masked = corrupted(frame, {modality: 1}, seed)
    again = corrupted(frame, {modality: 1}, seed)
    name = "rgb" if modality is Modality.RGB else "depth_m"
    other = "depth_m" if modality is Modality.RGB else "rgb"
    before, after = getattr(frame, name), getattr(masked, name)
    assert np.array_equal(after, getattr(again, name))
    assert getattr(masked, other) is getattr(frame, other)
    changed = before != after
    rows, columns = np.nonzero(changed if changed.ndim == 2 else changed.any(axis=2))
    assert 20 <= np.ptp(rows) + 1 <= 24  # half of 48; the border may have been zero already
    assert 20 <= np.ptp(columns) + 1 <= 24
    assert (after[changed] == 0).all()


def test_corruption_levels() -> None:
    assert parse_corruption(["rgb:1", "depth:2"]) == {Modality.RGB: 1, Modality.DEPTH: 2}
    for text in ("rgb", "rgb:3", "lidar:1", "rgb:"):
        with pytest.raises(ConfigError, match="--corrupt"):
            parse_corruption([text])
    frame = frame_at(0.3, 5)
    gone = corrupted(frame, {Modality.RGB: 2})
    assert gone.rgb is None
    assert "on purpose" in gone.absent[Modality.RGB]
    assert corrupted(frame, {Modality.RGB: 0}) is frame


def test_modes_of_modalities() -> None:
    assert modes_for(CARD, ["rgb", "depth"]) == MODES
    assert modes_for(CARD, ["depth"]) == [Mode.DEPTH_ONLY]
    with pytest.raises(ConfigError, match="sonar"):
        modes_for(CARD, ["sonar"])
    with pytest.raises(ConfigError, match="empty"):
        modes_for(CARD, [])
    assert only(frame_at(0.1, 5, ("rgb",)), Mode.RGB_DEPTH) is None
    shown = only(frame_at(0.1, 5), Mode.DEPTH_ONLY)
    assert shown is not None
    assert shown.rgb is None


def test_frames_are_built_as_in_training() -> None:
    assert frame_config(CARD).projection == CARD.projection


def test_error_summary_and_pose_errors() -> None:
    T = np.stack([pose_at(s) for s in (0.0, 0.5, 1.0)])
    d = np.array([0.3, 0.0, 0.4, 0.0, np.deg2rad(2.0), 0.0])
    tangent, position, rotation = pose_errors(T, T @ exp_se3(d))
    assert np.allclose(tangent, d)
    assert rotation == pytest.approx([2.0] * 3)
    assert position == pytest.approx([0.5] * 3, abs=0.01)
    summary = error_summary(np.array([1.0, 2.0, 6.0]), np.array([0.0, 0.0, 3.0]))
    assert summary["n"] == 3
    assert summary["position_m"] == pytest.approx({"mean": 3.0, "median": 2.0, "p95": 5.6, "max": 6.0})
