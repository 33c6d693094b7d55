"""`vmloc evaluate` as a user runs it, on two sequences in the layout of 7-Scenes, with an untrained network."""

from __future__ import annotations

import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from pictures import NORMALISATION, TINY, card_of
from rich.console import Console
from tiny_datasets import FOCAL, HEIGHT, WIDTH, write_sequence
from typer.testing import CliRunner

from vmloc_ros import cli
from vmloc_ros.assembly import labelled_frames
from vmloc_ros.checkpoint import CONFIG, RETRIEVAL, CameraCard, save_model
from vmloc_ros.commands.evaluate import reader_options, run_evaluate
from vmloc_ros.commands.evaluate_tables import METHODS, number, print_evaluation
from vmloc_ros.config import InputConfig, parse
from vmloc_ros.datasets.open import open_recordings
from vmloc_ros.errors import ConfigError, DatasetError
from vmloc_ros.evaluation import frame_config
from vmloc_ros.metrics import error_summary
from vmloc_ros.networks.config import NetworkConfig
from vmloc_ros.networks.vmloc import VMLoc
from vmloc_ros.retrieval import write_retrieval
from vmloc_ros.samples import build_store
from vmloc_ros.trajectory import read_tum

FRAMES = 12
ROWS, COLUMNS = 27, 36


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sequences whose frames have the same stamps, and the split files."""
    folder = tmp_path_factory.mktemp("scenes") / "wall"
    shutil.move(write_sequence(folder, range(FRAMES)), folder / "seq-02")
    shutil.move(write_sequence(folder, range(10, 10 + FRAMES)), folder / "seq-01")
    for path in sorted((folder / "seq-01").iterdir()):  # later frames under the same numbers
        index = int(path.name[6:12]) - 10
        path.rename(path.with_name(f"frame-{index:06d}{path.name[12:]}"))
    (folder / "TrainSplit.txt").write_text("sequence1\n")
    (folder / "TestSplit.txt").write_text("sequence2\n")
    return folder


@pytest.fixture(scope="module")
def model(scene: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights, and the first sequence to look up."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    network = parse(NetworkConfig, TINY["network"], "test")
    scale = COLUMNS / WIDTH
    camera = CameraCard(
        width=COLUMNS, height=ROWS, fx=scale * FOCAL, fy=scale * FOCAL, cx=scale * WIDTH / 2, cy=scale * HEIGHT / 2
    )
    changes = {"training_camera": camera, "input": InputConfig(depth_source="depth")}
    card = card_of(network, NORMALISATION).model_copy(update=changes)
    save_model(folder, VMLoc(network).state_dict(), card, "float32")
    recording = open_recordings("sevenscenes", scene, split="train", odometry="none")[0]
    frames = (
        (item.frame, item.T_map_camera, item.recording) for item in labelled_frames(recording, frame_config(card))
    )
    store = build_store(folder / "samples", frames, ROWS, COLUMNS, "key")
    write_retrieval(folder / RETRIEVAL, store, np.arange(len(store)))
    return folder


def run(*arguments: str | Path) -> tuple[int, str, str]:
    """(exit status, standard output, standard error) of `vmloc evaluate`."""
    words = ["evaluate", *(str(word) for word in arguments), "--device", "cpu"]
    result = CliRunner().invoke(cli.app, words, env={"COLUMNS": "80"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def test_table_4_of_two_sequences(model: Path, scene: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    status, text, _ = run(
        model, scene, "--format", "sevenscenes", "--corrupt", "all", "--out", out, "--json", tmp_path / "all.json"
    )
    assert status == 0
    assert max(len(line) for line in text.splitlines()) <= 80
    report = json.loads((out / "report.json").read_text())
    assert json.loads((tmp_path / "all.json").read_text()) == report
    assert report["recordings"] == ["wall/seq-01", "wall/seq-02"]
    assert report["frames"] == 2 * FRAMES
    assert list(report["corruptions"]) == ["none", "rgb:1", "rgb:2", "depth:1", "depth:2"]
    words = text.split()
    for name in ("none", "rgb:1", "rgb:2", "depth:1", "depth:2"):
        assert words.count(name) == 2  # in the table of errors, and in that of covariances
    for entry in (report["modes"]["RGB_DEPTH"], report["corruptions"]["depth:1"]["modes"]["DEPTH_ONLY"]):
        assert number(entry["errors"]["position_m"]["median"]) in words
        assert number(entry["errors"]["rotation_deg"]["p95"]) in words
        assert number(entry["log_likelihood"]["model"]) in words
    assert len(report["worst"]) == 10
    for folder in (out / "wall_seq-01", out / "wall_seq-02"):
        truth = read_tum(folder / "truth.tum")
        assert len(truth) == FRAMES
        assert len(read_tum(folder / "depth_only.tum")) == FRAMES
    figures = {path.name for path in out.glob("*.png")}
    assert figures == {f"{name}.png" for name in ("trajectories", "errors", "error_curves", "reliability",
                                                  "corruptions", "worst")}  # fmt: skip


def test_retrieval_and_the_nearest_pose_know_the_training_sequence(model: Path, scene: Path, tmp_path: Path) -> None:
    seen = run_evaluate(model, scene, "sevenscenes", options={"split": "train"}, device="cpu")
    assert seen["retrieval"]["errors"]["position_m"]["max"] < 1e-6
    assert seen["nearest_pose"]["errors"]["position_m"]["max"] < 1e-6
    out = tmp_path / "out"
    unseen = run_evaluate(model, scene, "sevenscenes", options={"split": "test"}, device="cpu", out=out)
    assert unseen["recordings"] == ["wall/seq-02"]
    nearest, found = (unseen[name]["errors"]["position_m"]["mean"] for name in ("nearest_pose", "retrieval"))
    assert 0.0 < nearest <= found
    truth = read_tum(out / "truth.tum")
    for name, entry in (("rgb_only", unseen["modes"]["RGB_ONLY"]), ("retrieval", unseen["retrieval"])):
        errors = error_summary(read_tum(out / f"{name}.tum"), truth)
        assert errors["position_m"]["mean"] == pytest.approx(entry["errors"]["position_m"]["mean"])
        assert errors["rotation_deg"]["p95"] == pytest.approx(entry["errors"]["rotation_deg"]["p95"], abs=1e-4)


def test_the_same_seed_gives_the_same_numbers(model: Path, scene: Path) -> None:
    first, again, other = (
        run_evaluate(model, scene, "sevenscenes", corrupt=["rgb:1"], options={"split": "test"}, device="cpu", seed=seed)
        for seed in (5, 5, 6)
    )
    assert first == again
    assert first["corrupt"] == {"rgb": 1}
    assert first["modes"]["RGB_ONLY"] != other["modes"]["RGB_ONLY"]
    assert first["modes"]["DEPTH_ONLY"] == other["modes"]["DEPTH_ONLY"]


def test_what_is_left_out_is_printed_and_reported(model: Path, scene: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(scene, tmp_path / "wall"))
    sequence = copy / "seq-02"
    (sequence / "frame-000003.depth.png").write_bytes(b"")
    (sequence / "frame-000011.pose.txt").unlink()
    arguments = (model, copy, "--format", "sevenscenes", "--split", "test")
    assert run(*arguments)[0] == 1
    status, text, _ = run(*arguments, "--allow-missing", "--json", tmp_path / "report.json")
    assert status == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["frames"] == FRAMES - 1
    reasons = report["skipped"]["wall/seq-02"]
    for words in ("pose files missing", "no truth", "depth files"):
        assert [count for reason, count in reasons.items() if words in reason] == [1], words
        assert words in text
    assert report["modes"]["DEPTH_ONLY"]["no_pose"] == {"a sensor of this mode is absent": 1}
    assert "without a pose, depth alone: 1" in text


def test_one_sensor_and_no_training_poses_give_fewer_rows(model: Path, scene: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(model, tmp_path / "model"))
    (copy / RETRIEVAL).unlink()
    report = run_evaluate(copy, scene, "sevenscenes", ["depth"], ["all"], options={"split": "test"}, device="cpu")
    assert list(report["corruptions"]) == ["none", "depth:1", "depth:2"]
    assert report["retrieval"] is None
    assert report["nearest_pose"] is None
    console = Console(width=80, record=True, file=io.StringIO())
    print_evaluation(report, console)
    text = console.export_text()
    assert METHODS["DEPTH_ONLY"] in text
    assert not any(METHODS[name] in text for name in ("RGB_DEPTH", "RGB_ONLY", "retrieval", "nearest_pose"))
    assert re.search(r"depth:2 missing *\n *no answer +0", text)


def test_sensors_are_those_of_the_training_unless_told_otherwise(tmp_path: Path) -> None:
    data = {"format": "robotcar", "options": {"lidar": "ldmrs", "start_s": 3.0, "split": "loop"}}
    (tmp_path / CONFIG).write_text(yaml.safe_dump({"data": data}))
    assert reader_options(tmp_path, "robotcar", {})["lidar"] == "ldmrs"
    assert "start_s" not in reader_options(tmp_path, "robotcar", {})
    assert reader_options(tmp_path, "robotcar", {"lidar": "lms_front"})["lidar"] == "lms_front"
    assert "lidar" not in reader_options(tmp_path, "town", {})
    assert reader_options(tmp_path / "none", "sevenscenes", {})["odometry"] == "none"


def test_arguments_that_cannot_be(model: Path, scene: Path) -> None:
    for arguments, error, message in (
        ({"corrupt": ["all", "rgb:1"]}, ConfigError, "alone"),
        ({"corrupt": ["rgb:7"]}, ConfigError, "--corrupt rgb:7"),
        ({"modalities": ["sonar"]}, ConfigError, "sonar"),
        ({"recordings": ["wall/seq-09"]}, ConfigError, "wall/seq-09"),
        ({"options": {"split": "validation"}}, DatasetError, "validation"),
    ):
        with pytest.raises(error, match=message):
            run_evaluate(model, scene, "sevenscenes", device="cpu", **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, "0.000"), (9.9994, "9.999"), (9.99951, "10.00"), (99.996, "100.0"), (-917.77, "-917.8")]
)
def test_numbers_take_five_places_as_long_as_they_can(value: float, text: str) -> None:
    assert number(value) == text
