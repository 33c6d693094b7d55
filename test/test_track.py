"""`vmloc track`: a model's folder in, tables, report, trajectories and a figure out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import build, card_of, tiny_config
from tiny_datasets import FOCAL, HEIGHT, WIDTH, camera_pose, write_sequence
from typer.testing import CliRunner

from vmloc_ros import cli
from vmloc_ros.checkpoint import CONFIG, CameraCard, save_model
from vmloc_ros.commands.drives import filter_of
from vmloc_ros.commands.track import drift_report, run_track, settled_report
from vmloc_ros.errors import ConfigError
from vmloc_ros.evaluation import Answers
from vmloc_ros.geometry import exp_se3
from vmloc_ros.networks.vmloc import VMLoc
from vmloc_ros.odometry_drift import Stretch
from vmloc_ros.trajectory import read_tum


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sequence(tmp_path_factory.mktemp("scene"), range(30))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained network whose camera is the scene's."""
    folder = tmp_path_factory.mktemp("world")
    config = tiny_config()
    _, normalisation = build(folder / "samples", config, 12)
    torch.manual_seed(0)
    card = card_of(config.network, normalisation)
    rows, columns = config.stored_size()
    scale = columns / WIDTH
    camera = CameraCard(
        width=columns, height=rows, fx=FOCAL * scale, fy=FOCAL * rows / HEIGHT, cx=columns / 2, cy=rows / 2
    )
    card = card.model_copy(
        update={"training_camera": camera, "input": card.input.model_copy(update={"depth_source": "depth"})}
    )
    save_model(folder / "model", VMLoc(config.network).state_dict(), card, "float32")
    return folder / "model"


def test_a_drive_with_its_own_odometry_from_a_start_that_is_off(scene: Path, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    report = run_track(model, scene, "sevenscenes", deviation_m=0.5, out=out, json=tmp_path / "copy.json")
    assert (report["frames"], report["stretches"], report["odometry"]) == (30, 1, "recording")
    assert report["deviation"] == [0.5, 0.5, 0.5, 0.0, 0.0, 0.0]
    assert report["network"]["errors"]["n"] == 30
    dead = report["dead_reckoning"]["errors"]["position_m"]
    assert dead["mean"] == pytest.approx(0.5 * np.sqrt(3.0), abs=0.05)  # the RGB-D odometry is good, the start is not
    assert report["undeviated"]["fused"]["errors"]["position_m"]["mean"] < dead["mean"]
    assert report["settled"]["ratio"] is None  # 30 frames are fewer than 50
    assert report["odometry_drift"] is None  # the network has none
    assert json.loads((out / "report.json").read_text()) == json.loads((tmp_path / "copy.json").read_text())
    assert (out / "tracking.png").read_bytes().startswith(b"\x89PNG")
    assert {path.name for path in out.glob("*.tum")} == {"truth.tum", "network.tum", "fused.tum", "dead_reckoning.tum"}
    truth = read_tum(out / "truth.tum")
    assert len(truth) == 30
    assert truth.poses_N44[0][:3, 3] == pytest.approx(camera_pose(0)[:3, 3], abs=1e-6)  # the base is at the camera


def test_blocks_are_stretches_and_prepared_frames_are_used_again(scene: Path, model: Path, tmp_path: Path) -> None:
    arguments = [
        "track",
        str(model),
        str(scene),
        "--format",
        "sevenscenes",
        "--odometry",
        "none",
        "--modalities",
        "rgb",
    ]
    arguments += ["--blocks", "0-4,10-24", "--samples", str(tmp_path / "samples")]
    first = CliRunner().invoke(cli.app, [*arguments, "--json", str(tmp_path / "one.json")])
    assert first.exit_code == 0, first.output
    again = CliRunner().invoke(cli.app, [*arguments, "--json", str(tmp_path / "two.json")])
    assert "using 30 prepared samples" in again.stderr
    one = json.loads((tmp_path / "one.json").read_text())
    assert one == json.loads((tmp_path / "two.json").read_text())
    assert (one["frames"], one["mode"], one["odometry"]) == (20, "RGB_ONLY", "none")
    assert "dead reckoning" in first.stdout


def test_what_cannot_be_tracked_is_said_in_one_line(scene: Path, model: Path) -> None:
    with pytest.raises(ConfigError, match="--blocks"):
        run_track(model, scene, "sevenscenes", blocks=["9-2"])
    with pytest.raises(ConfigError, match="sonar"):
        run_track(model, scene, "sevenscenes", modalities=["sonar"])
    with pytest.raises(ConfigError, match="not both"):
        run_track(model, scene, "sevenscenes", deviation_m=1.0, deviation_entries=1.0)
    result = CliRunner().invoke(
        cli.app, ["track", str(model), str(scene), "--format", "sevenscenes", "--odometry", "network"]
    )
    assert result.exit_code == 1
    assert "odometry" in result.stderr
    assert "network" in result.stderr


def test_the_filter_is_that_of_the_training_unless_it_is_given(tmp_path: Path) -> None:
    (tmp_path / CONFIG).write_text("localizer: {filter: {noise_m_per_m: 0.25}}\n")
    assert filter_of(tmp_path).noise_m_per_m == 0.25
    given = tmp_path / "given.yaml"
    given.write_text("filter: {noise_m_per_m: 0.5}\n")
    assert filter_of(tmp_path, given).noise_m_per_m == 0.5
    assert filter_of(tmp_path / "none").noise_m_per_m == 0.05


def answers(error_m: float) -> Answers:
    result = Answers()
    for k in range(4):
        result.add(k, k, np.eye(4), exp_se3([error_m, 0, 0, 0, 0, 0.01]))
    return result


def test_a_settled_start_is_a_ratio_of_one() -> None:
    settled = settled_report(answers(1.1), answers(1.0))
    assert settled["ratio"]["position_m"] == pytest.approx(1.1, rel=1e-3)
    assert settled["ratio"]["rotation_deg"] == pytest.approx(1.0)
    assert settled_report(answers(1.0), Answers())["ratio"] is None


def test_drift_stands_beside_both_guesses_and_needs_a_motion() -> None:
    poses = np.array([exp_se3([0.5 * k, 0, 0, 0, 0, 0.01 * k]) for k in range(60)])
    report = drift_report([Stretch(100_000_000 * np.arange(60), poses, poses)])
    assert report is not None
    assert report["network"]["translation_percent"] == pytest.approx(0.0, abs=1e-9)
    for guess in ("mean_motion", "held_velocity"):
        assert report[guess]["segments"] == report["network"]["segments"] > 0
    assert drift_report([]) is None
    still = np.tile(np.eye(4), (3, 1, 1))
    assert drift_report([Stretch(np.arange(3), still, still)]) is None
