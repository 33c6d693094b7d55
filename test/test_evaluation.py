"""Evaluation in every mode and condition, what it says of covariances, and the retrieval baseline."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from counting import Counting
from drawn_poses import SHARES, SIGMAS, DrawnPoses, two_drives
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import NORMALISATION, TINY, build, card_of, drive, frame_at, pose_at, tiny_config

from vmloc_ros.checkpoint import ModelCard
from vmloc_ros.config import parse
from vmloc_ros.corruption import TABLE_4, condition_name
from vmloc_ros.errors import CheckpointError, ConfigError, DatasetError
from vmloc_ros.evaluation import evaluate, frame_config, modes_for, only
from vmloc_ros.geometry import exp_se3
from vmloc_ros.networks.config import NetworkConfig
from vmloc_ros.retrieval import Retrieval, normalised, write_retrieval
from vmloc_ros.types import CameraPrior, Frame, Modality, Mode, NoPose, PoseEstimate
from vmloc_ros.validation import error_summary, pose_errors

CARD = card_of(parse(NetworkConfig, TINY["network"], "test"), NORMALISATION)
MODES = [Mode.RGB_DEPTH, Mode.RGB_ONLY, Mode.DEPTH_ONLY]


class Offset:
    """Answers the truth moved by one metre along the camera's x axis; says it is sure to half a metre."""

    card: ModelCard = CARD
    device = "cpu"
    fallback = ""

    def localize(self, frame: Frame, prior: CameraPrior | None = None) -> PoseEstimate | NoPose:
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


def test_a_localizer_with_a_memory_sees_every_case_in_order() -> None:
    frames = two_drives(8)
    asked = Counting()
    report = evaluate(asked, frames, MODES, [{}, {Modality.RGB: 1}]).report()
    for condition in report["corruptions"].values():
        for mode in condition["modes"].values():
            assert mode["errors"]["n"] == 16
            assert mode["errors"]["position_m"]["max"] < 1e-9  # it errs where a frame is not the one after the last
    assert not asked.seen
    assert len(asked.forks) == 5  # a masked image is nothing new to depth alone
    for fork in asked.forks:
        assert [frame.key for frame in fork.seen] == [frame.key for frame, _, _ in frames]


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


# ---------------------------------------------------------------------------------------------- conditions in one pass


def test_one_pass_over_table_4_says_what_five_passes_say(tmp_path: Path) -> None:
    frames = two_drives(12)
    store, _ = build(tmp_path / "cache", tiny_config(), 40)
    write_retrieval(tmp_path / "retrieval", store, np.arange(0, 40, 3))
    retrieval = Retrieval(tmp_path / "retrieval")
    localizer = DrawnPoses(frames)
    together = evaluate(localizer, frames, MODES, TABLE_4, retrieval, seed=3).report()
    assert len(localizer.shown) == 7 * len(frames)  # what the conditions share is asked once
    assert list(together["corruptions"]) == ["none", "rgb:1", "rgb:2", "depth:1", "depth:2"]
    for levels in TABLE_4:
        alone = evaluate(DrawnPoses(frames), frames, MODES, [levels], retrieval, seed=3).report()
        assert together["corruptions"][condition_name(levels)] == {
            k: alone[k] for k in ("corrupt", "modes", "retrieval")
        }
        assert "corruptions" not in alone
    first = together["corruptions"]["none"]
    assert {key: together[key] for key in first} == first


def test_an_absent_modality_equals_one_that_was_never_sent() -> None:
    frames = two_drives(8)
    removed = evaluate(DrawnPoses(frames), frames, MODES, [{Modality.RGB: 2}]).report()
    sent = [(replace(frame, rgb=None), T, name) for frame, T, name in frames]
    never_sent = evaluate(DrawnPoses(sent), sent, MODES).report()
    assert removed["modes"] == never_sent["modes"]


def test_recordings_with_the_same_stamps_are_kept_apart(tmp_path: Path) -> None:
    store, _ = build(tmp_path / "cache", tiny_config(), 40)
    write_retrieval(tmp_path / "retrieval", store, np.arange(40))
    retrieval = Retrieval(tmp_path / "retrieval")
    report = evaluate(DrawnPoses(two_drives()), two_drives(), MODES, retrieval=retrieval).report()
    assert report["frames"] == 80
    assert report["retrieval"]["errors"]["position_m"]["max"] < 1e-9  # all are training images
    assert report["nearest_pose"]["errors"]["rotation_deg"]["max"] < 1e-5
    for mode in MODES:  # nobody is nearer than the truth itself
        assert report["modes"][mode]["beats_retrieval"] == 0.0
        assert report["modes"][mode]["beats_retrieval_rotation"] == 0.0


def test_the_share_of_frames_on_which_retrieval_is_beaten(tmp_path: Path) -> None:
    store, _ = build(tmp_path / "cache", tiny_config(), 40)
    write_retrieval(tmp_path / "retrieval", store, np.arange(0, 40, 4))
    perfect = DrawnPoses(two_drives(), errors=0.0)
    report = evaluate(perfect, two_drives(), MODES, retrieval=Retrieval(tmp_path / "retrieval")).report()
    assert report["modes"]["RGB_ONLY"]["beats_retrieval"] == 0.75  # on the ten of forty it is as good, not better


# ---------------------------------------------------------------------------------------------------------- uncertainty


def test_true_covariances_are_told_from_overconfident_ones() -> None:
    frames = two_drives(300)
    true = evaluate(DrawnPoses(frames), frames, [Mode.RGB_DEPTH]).report()["modes"]["RGB_DEPTH"]
    assert 5.5 < true["nees"]["mean"] < 6.5
    for level, low, high in (("50", 0.44, 0.56), ("90", 0.86, 0.94), ("95", 0.92, 0.98)):
        assert low < true["coverage"][level] < high
    assert true["log_likelihood"]["model"] > true["log_likelihood"]["own_constant"] + 1.0
    bold = evaluate(DrawnPoses(frames, overconfidence=2.0), frames, [Mode.RGB_DEPTH]).report()["modes"]["RGB_DEPTH"]
    assert bold["nees"]["mean"] == pytest.approx(4.0 * true["nees"]["mean"])
    assert bold["coverage"]["90"] < 0.5
    assert bold["log_likelihood"]["own_constant"] == pytest.approx(true["log_likelihood"]["own_constant"])
    assert bold["log_likelihood"]["model"] < true["log_likelihood"]["model"]


def test_nobody_beats_the_best_constant_when_all_frames_are_alike() -> None:
    frames = two_drives(100)
    entry = evaluate(DrawnPoses(frames, varied=False), frames, [Mode.RGB_DEPTH]).report()["modes"]["RGB_DEPTH"]
    assert entry["log_likelihood"]["model"] < entry["log_likelihood"]["own_constant"]


def test_expert_weights_are_averaged_per_mode() -> None:
    frames = two_drives(5)
    report = evaluate(DrawnPoses(frames), frames, MODES).report()
    for mode in MODES:
        assert report["modes"][mode]["expert_weights"] == pytest.approx(SHARES[mode])


# --------------------------------------------------------------------------------------------------------- worst frames


def test_the_worst_frames_are_those_of_the_largest_errors(tmp_path: Path) -> None:
    frames = two_drives()
    store, _ = build(tmp_path / "cache", tiny_config(), 40)
    write_retrieval(tmp_path / "retrieval", store, np.arange(0, 40, 4))
    result = evaluate(DrawnPoses(frames), frames, MODES, TABLE_4, Retrieval(tmp_path / "retrieval"))
    errors = result.conditions[0].modes[Mode.RGB_DEPTH].errors()
    order = np.argsort(-errors.position_m)[:10]
    assert [worst.index for worst in result.worst] == order.tolist()
    report = result.report()["worst"]
    assert [entry["position_m"] for entry in report] == pytest.approx(errors.position_m[order])
    assert [entry["rotation_deg"] for entry in report] == pytest.approx(errors.rotation_deg[order])
    nees = result.conditions[0].modes[Mode.RGB_DEPTH].nees()
    for entry, worst in zip(report, result.worst, strict=True):
        assert entry["recording"] == frames[worst.index][2]
        assert entry["stamp_ns"] == frames[worst.index][0].stamp_ns
        assert entry["mode"] == "RGB_DEPTH"
        assert entry["nees"] == pytest.approx(nees[worst.index])
        assert entry["sigma_m"] / entry["sigma_deg"] == pytest.approx(
            np.linalg.norm(SIGMAS[:3]) / np.rad2deg(np.linalg.norm(SIGMAS[3:]))
        )
        assert entry["nearest_pose_m"] <= entry["retrieval_m"] + 1e-9
        assert worst.shown.rgb is frames[worst.index][0].rgb


def test_a_frame_s_worst_answer_is_that_of_all_its_sensors() -> None:
    frames = two_drives(6)
    result = evaluate(DrawnPoses(frames), frames, MODES, [{Modality.RGB: 2}])
    assert len(result.worst) == 10
    assert {worst.estimate.mode for worst in result.worst} == {Mode.DEPTH_ONLY}
    assert all(worst.shown.rgb is None for worst in result.worst)


# -------------------------------------------------------------------------------------------------------- nearest pose


@settings(max_examples=40)
@given(st.floats(-0.2, 1.2))
def test_no_training_pose_is_nearer_than_the_nearest(share: float) -> None:
    T = pose_at(share) @ exp_se3([0.05, -0.1, 0.02, 0.02, -0.05, 0.01])
    poses = np.stack([pose_at(k / 39) for k in range(0, 40, 4)])
    distances = np.linalg.norm(poses[:, :3, 3] - T[:3, 3], axis=1)
    nearest = every_fourth().nearest_pose(T)
    assert np.linalg.norm(nearest[:3, 3] - T[:3, 3]) == pytest.approx(distances.min(), abs=1e-9)
    assert np.allclose(nearest, poses[distances.argmin()], atol=1e-9)


@cache
def every_fourth() -> Retrieval:
    """Of the bend."""
    with TemporaryDirectory() as folder:
        store, _ = build(Path(folder) / "cache", tiny_config(), 40)
        write_retrieval(Path(folder) / "retrieval", store, np.arange(0, 40, 4))
        return Retrieval(Path(folder) / "retrieval")
