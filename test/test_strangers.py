"""`vmloc strangers`: frames without a place, what is counted as a false pose, and what a filter makes of such poses."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pictures import NORMALISATION, build, card_of, drive, frame_at, tiny_config
from tiny_datasets import FOCAL, HEIGHT, WIDTH, write_drive, write_sequence
from typer.testing import CliRunner

from vmloc_ros import cli
from vmloc_ros.checkpoint import CameraCard, ModelCard, save_model
from vmloc_ros.commands.strangers import options_for, run_strangers, split_source
from vmloc_ros.commands.strangers_asked import MODEL_CAMERA, NOISE, Asked, Robot, ask, is_false
from vmloc_ros.commands.strangers_frames import (
    NOISES,
    NOTHING_LEFT,
    SHOWN_EVERY_NS,
    Stranger,
    as_by_model,
    at_place,
    evenly,
    masked_frames,
    noise_frames,
    thinned,
    without_unusable,
)
from vmloc_ros.config import FilterConfig, FrameNames, InputConfig, LocalizerConfig
from vmloc_ros.errors import ConfigError, DatasetError
from vmloc_ros.fitting import centre_crop
from vmloc_ros.geometry import Array, exp_se3
from vmloc_ros.localizers.inputs import FrameInputs, Pictures
from vmloc_ros.networks.vmloc import VMLoc
from vmloc_ros.reasons import without_numbers
from vmloc_ros.types import CameraPrior, Frame, Mode, NoPose, PinholeIntrinsics, PoseEstimate

PLACE = exp_se3([2.0, 0.5, 0.1, 0.0, 0.3, 0.0])
COV_66 = np.diag([0.01] * 3 + [0.0004] * 3)


@pytest.fixture(scope="module")
def card() -> ModelCard:
    return card_of(tiny_config().network, NORMALISATION)


# -------------------------------------------------------------------------------------------------------------- frames


@given(st.integers(0, 200), st.integers(1, 30))
def test_few_of_many_are_spread_evenly_over_them(many: int, count: int) -> None:
    for kept in (thinned(range(many), count), evenly(range(many), count)):
        assert len(kept) <= count
        assert kept == sorted(set(kept))
        if many <= count:
            assert kept == list(range(many))
        gaps = [after - before for before, after in pairwise(kept)]
        assert not gaps or max(gaps) <= max(1.0, 4 * many / count)  # nowhere is a long part left out


def test_noise_is_drawn_from_the_seed_and_is_no_constant_picture(card: ModelCard) -> None:
    ours, again, other = noise_frames(card, 10, 1), noise_frames(card, 10, 1), noise_frames(card, 10, 2)
    assert {stranger.kind for stranger in ours} == set(NOISES)
    for one, same, different in zip(ours, again, other, strict=True):
        assert one.T_map_camera is None
        assert np.array_equal(one.frame.rgb, same.frame.rgb)
        assert np.array_equal(one.frame.depth_m, same.frame.depth_m)
        assert not np.array_equal(one.frame.rgb, different.frame.rgb)
        assert one.frame.intrinsics == card.camera
        assert without_unusable(one.frame, InputConfig()).mode is Mode.RGB_DEPTH  # the network has to refuse it


def test_a_black_box_leaves_a_fifth_at_most_and_hides_both_sensors_alike(card: ModelCard) -> None:
    known = [Stranger(frame, name, T_map_camera) for frame, T_map_camera, name in drive(20)]
    strangers = masked_frames(known, card, seed=3)
    crop = centre_crop(card.camera.height, card.camera.width, card.network.height, card.network.width)
    assert sum(stranger.kind == NOTHING_LEFT for stranger in strangers) >= 4
    for stranger, one in zip(strangers, known, strict=True):
        rgb, depth_m = stranger.frame.rgb, stranger.frame.depth_m
        whole = as_by_model(one.frame, card)
        assert rgb is not None
        assert depth_m is not None
        assert whole.rgb is not None
        assert whole.depth_m is not None
        left = rgb.any(axis=2)
        assert left[crop].mean() <= 0.25  # 20 %, and rounding to the pixels of a tiny picture
        assert left.sum() == left[crop].sum()  # what the network is not shown would not matter
        assert np.array_equal(rgb[left], whole.rgb[left])
        assert not depth_m[~left & whole.rgb.any(axis=2)].any()
        assert (stranger.T_map_camera is None) == (not left.any()) == (stranger.kind == NOTHING_LEFT)
        if stranger.T_map_camera is None:
            assert without_unusable(stranger.frame, InputConfig()).mode is Mode.LOST


def test_a_foreign_camera_is_replaced_and_its_picture_is_not(card: ModelCard) -> None:
    foreign = replace(frame_at(0.3, 1), intrinsics=PinholeIntrinsics(64, 48, 20.0, 20.0, 31.5, 23.5))
    inputs = FrameInputs(card)
    refused, shown = inputs.of(foreign), inputs.of(as_by_model(foreign, card))
    assert isinstance(refused, NoPose)
    assert "the camera's view" in refused.reason
    assert isinstance(shown, Pictures)
    known = inputs.of(frame_at(0.3, 1))
    assert isinstance(known, Pictures)
    assert np.array_equal(shown.rgb_1HW3, known.rgb_1HW3)
    assert np.array_equal(shown.depth_1HW, known.depth_1HW)


def test_frames_are_shown_at_an_even_pace_with_the_sensors_that_they_have() -> None:
    shown = [at_place(frame_at(0.1, 7, ("rgb",)), place) for place in range(3)]
    assert [b.stamp_ns - a.stamp_ns for a, b in pairwise(shown)] == [SHOWN_EVERY_NS] * 2
    assert shown[0].key.image_stamp_ns == shown[0].stamp_ns
    assert shown[0].key.depth_stamps_ns == ()


# ------------------------------------------------------------------------------------------------------------- answers


class Scripted:
    """A localizer that says what a function of the frame's number says."""

    device, fallback = "cpu", ""

    def __init__(self, card: ModelCard, pose: Callable[[int], Array | None]) -> None:
        self.card = card
        self._pose = pose
        self._place = 0

    def localize(self, frame: Frame, prior: CameraPrior | None = None) -> PoseEstimate | NoPose:
        T = self._pose(self._place)
        self._place += 1
        if T is None:
            return NoPose(frame.stamp_ns, f"{self._place} % of the cells agree")
        return PoseEstimate(frame.stamp_ns, T, COV_66, {"rgb": 1.0}, frame.mode)

    def warm_up(self) -> None: ...

    def reset(self) -> None: ...


def row_of(card: ModelCard, pose: Callable[[int], Array | None], truth: Array | None = None) -> dict[str, Any]:
    """What is counted of 30 frames."""
    strangers = [Stranger(frame_at(0.5, 1), "a", truth) for _ in range(30)]
    robot = Robot(Scripted(card, pose), PLACE, FilterConfig(), FrameNames(), LocalizerConfig())
    return ask(robot, Asked(NOISE, NOISE, MODEL_CAMERA, strangers), Mode.RGB_DEPTH)


def counts(row: dict[str, Any]) -> tuple[int, ...]:
    return tuple(row[name] for name in ("claimed", "false", "fused", "relocalizations", "fused_from_nothing"))


def test_who_refuses_everything_fools_nobody(card: ModelCard) -> None:
    row = row_of(card, lambda place: None)
    assert counts(row) == (0, 0, 0, 0, 0)
    assert row["moved_m"] < 1e-6
    assert row["reasons"] == {"# % of the cells agree": 30}
    assert row["refused_by_camera"] == 0


def test_a_false_pose_at_the_robots_place_is_fused(card: ModelCard) -> None:
    row = row_of(card, lambda place: PLACE)
    assert row["claimed"] == row["false"] == row["fused"] == 30
    assert row["false_by_kind"] == {"a": {"frames": 30, "false": 30}}


def test_false_poses_far_away_are_gated_unless_they_agree(card: ModelCard) -> None:
    scattered = np.random.default_rng(1).uniform(-80.0, 80.0, (30, 3))
    row = row_of(card, lambda place: exp_se3([*scattered[place], 0.0, 0.0, 0.0]))
    assert counts(row) == (30, 30, 0, 0, 0)
    assert row["moved_m"] < 1e-6
    row = row_of(card, lambda place: PLACE @ exp_se3([30.0, 0.0, 0.0, 0.0, 0.0, 0.0]))
    assert row["relocalizations"] == 1
    assert row["fused"] > 15
    assert row["moved_m"] == pytest.approx(30.0, abs=0.1)
    assert row["fused_from_nothing"] == 30
    assert row_of(card, lambda place: PLACE @ exp_se3([30.0, 0, 0, 0, 0, 0]) if place < 7 else None)["fused"] == 0


def test_a_pose_that_is_right_by_what_is_left_is_not_blamed(card: ModelCard) -> None:
    row = row_of(card, lambda place: PLACE, truth=PLACE @ exp_se3([0.1, 0.0, 0.0, 0.0, 0.0, 0.01]))
    assert counts(row) == (30, 0, 0, 0, 0)
    assert row["reasons"] == {}


@given(st.lists(st.floats(-3.0, 3.0), min_size=6, max_size=6))
def test_whether_a_pose_is_false_is_a_question_of_its_own_covariance(direction: list[float]) -> None:
    step_6 = np.linalg.cholesky(COV_66) @ np.array(direction)
    truth = PLACE @ exp_se3(step_6)
    size2 = float(np.square(direction).sum())
    frame = frame_at(0.5, 1)
    answer = PoseEstimate(1, PLACE, COV_66, {}, Mode.RGB_DEPTH)
    if abs(size2 - 22.458) > 0.01:  # chi-square of 6 degrees, 99.9 %
        assert is_false(answer, Stranger(frame, "", truth)) == (size2 > 22.458)
    assert is_false(answer, Stranger(frame, ""))


def test_reasons_are_counted_without_their_numbers() -> None:
    assert (
        without_numbers("3 % of 12 cells, 0.25 m") == without_numbers("41 % of 9 cells, 1 m") == "# % of # cells, # m"
    )


# ------------------------------------------------------------------------------------------------------------- command


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained network whose camera is that of the tiny 7-Scenes sequence."""
    folder = tmp_path_factory.mktemp("strangers")
    config = tiny_config()
    _, normalisation = build(folder / "samples", config, 12)
    torch.manual_seed(0)
    rows, columns = config.stored_size()
    across = columns / WIDTH
    camera = CameraCard(
        width=columns, height=rows, fx=FOCAL * across, fy=FOCAL * rows / HEIGHT, cx=columns / 2, cy=rows / 2
    )
    card = card_of(config.network, normalisation)
    card = card.model_copy(
        update={"training_camera": camera, "input": card.input.model_copy(update={"depth_source": "depth"})}
    )
    save_model(folder / "model", VMLoc(config.network).state_dict(), card, "float32")
    return folder / "model"


def test_other_places_noise_and_masks_in_one_report(model: Path, tmp_path: Path) -> None:
    kitchen = write_sequence(tmp_path / "kitchen", range(12))
    street = write_drive(tmp_path / "street")
    sources = [f"sevenscenes:{kitchen}", f"kitti:{street}"]

    def run(seed: int) -> dict[str, Any]:
        out = tmp_path / "report.json"
        report = run_strangers(model, sources, sources[0], 8, 10, 5, seed, device="cpu", json=out)
        assert json.loads(out.read_text()) == report
        return report

    report = run(1)
    rows = {(row["source"], row["kind"], row["camera"], row["mode"]): row for row in report["rows"]}
    for row in rows.values():
        assert row["claimed"] + sum(row["reasons"].values()) == row["frames"]
        assert row["fused"] <= row["false"] <= row["claimed"]
    both = Mode.RGB_DEPTH.value
    drive = "kitti 2011_09_26_drive_0001_sync"
    assert rows[drive, "other place", "own camera", "DEPTH_ONLY"]["refused_by_camera"] > 0  # its pictures are constant
    assert rows[drive, "other place", "the model's camera", "DEPTH_ONLY"]["refused_by_camera"] == 0
    assert rows["sevenscenes seq-01", "other place", "own camera", both]["claimed"] == 5  # VMLoc refuses no scene
    assert rows["noise", "noise", "the model's camera", both]["false"] == 8
    masked = rows["sevenscenes seq-01", "masked", "the model's camera", both]
    assert masked["frames"] == 10
    assert masked["false_by_kind"][NOTHING_LEFT]["false"] == 0  # the node takes a black picture for none
    total = sum(row["frames"] for (_, kind, camera, mode), row in rows.items()
                if kind != "intact" and camera == MODEL_CAMERA and mode == both)  # fmt: skip
    assert report["totals"][both]["frames"] == total
    assert run(1) == report
    assert run(2) != report


def test_the_command_prints_a_table_and_says_what_is_wrong_in_one_line(model: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(cli.app, ["strangers", str(model), "--noise", "4", "--device", "cpu"])
    assert done.exit_code == 0, done.output
    assert "RGB alone: of 4 frames in the model's camera 4 poses are false" in done.stdout
    table = done.stdout.partition("both: of")[0]
    assert "…" not in table  # it fits 80 columns
    assert max(len(line) for line in table.splitlines()) <= 80
    for arguments in (["--noise", "0"], ["--source", "nowhere"], ["--source", f"town:{tmp_path}/none"]):
        done = CliRunner().invoke(cli.app, ["strangers", str(model), *arguments])
        assert done.exit_code == 1
        assert len(done.stderr.splitlines()) == 1


def test_sources_and_options_name_their_format() -> None:
    assert split_source("town:a:b") == ("town", Path("a:b"))
    for wrong in ("town", "town:", "photos:x"):
        with pytest.raises(ConfigError, match="FORMAT:PATH"):
            split_source(wrong)
    given_options = {"odometry": "none", "town:lidar": "ldmrs", "kitti:odometry": "oxts"}
    assert options_for("town", given_options) == {"odometry": "none", "lidar": "ldmrs"}
    assert options_for("kitti", given_options) == {"odometry": "oxts"}


def test_a_source_without_frames_is_said(model: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="empty"):
        run_strangers(model, [f"sevenscenes:{write_sequence(tmp_path / 'empty', [])}"], device="cpu")
