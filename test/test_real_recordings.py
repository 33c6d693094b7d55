"""Real sensors, the whole chain: train, convert, play over DDS past the node, report.

The numbers that these tests print (`pytest -s`) are of a minute's training; docs/real_recordings.md has those of
longer ones.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

pytest.importorskip("rclpy", reason="needs a ROS 2 client library")
pytest.importorskip("vmloc_msgs", reason="needs the message package vmloc_msgs")

from vmloc_ros.bags import SENSOR_KINDS, BagReader, BagWriter
from vmloc_ros.commands.convert import run_convert
from vmloc_ros.commands.demo import INPUT, DemoPlan, Steps, node_config, read_log, run_graph
from vmloc_ros.commands.train import run_train
from vmloc_ros.config import LocalizerConfig
from vmloc_ros.files import write_yaml
from vmloc_ros.geometry import inverse, rotation_angle
from vmloc_ros.report import Report, write_run
from vmloc_ros.run_log import RunLog
from vmloc_ros.types import Event, EventKind, InitialPose, Modality, Mode, Verdict

HELD_OUT = "600-649"
NETWORK = {"width": 80, "height": 60, "channels": [16, 32, 48, 64], "reduced": 16, "latent": 128, "hidden": 128}


@pytest.fixture(scope="module")
def redkitchen_model(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network for the kitchen, trained for a minute on everything but the held-out block."""
    folder = tmp_path_factory.mktemp("redkitchen")
    config = {
        "name": "redkitchen_quick",
        "seed": 1,
        "data": {"format": "sevenscenes", "options": {"odometry": "none"}, "hold_out": [HELD_OUT], "frame_stride": 2},
        "localizer": {"input": {"depth_source": "depth"}},
        "network": {**NETWORK, "dropout": 0.1},
        "optimizer": {"epochs": 24, "batch_size": 32, "validate_every": 12},
    }
    write_yaml(folder / "config.yaml", config)
    return run_train(folder / "config.yaml", shared_data / "sevenscenes_redkitchen", folder / "model")


def through_the_node(out: Path, model: Path, config: LocalizerConfig, rate: float = 1.0) -> tuple[RunLog, Report]:
    """Plays `out/input` past a node in a process of its own; what it said, and how good it was."""
    plan = DemoPlan(outages=(), rate=rate)
    published = run_graph(out, config, plan, Steps(Console(quiet=True)))
    log = read_log(out, model, config, plan, published)
    return log, write_run(log, out)


def test_redkitchen_held_out_block_through_the_node(shared_data: Path, redkitchen_model: Path, tmp_path: Path) -> None:
    run_convert(
        "sevenscenes", shared_data / "sevenscenes_redkitchen", tmp_path / INPUT, frames=HELD_OUT, progress=False
    )
    _, report = through_the_node(tmp_path, redkitchen_model, node_config(redkitchen_model), rate=0.5)
    assert report.frames.received == report.frames.published == 50
    assert report.frames.stale == 0
    assert report.network is not None
    assert report.fused is not None
    assert report.retrieval is not None
    print(
        f"redkitchen {HELD_OUT}: network {report.network.position_m.median:.3f} m "
        f"{report.network.rotation_deg.median:.2f} deg, fused {report.fused.position_m.median:.3f} m, "
        f"retrieval {report.retrieval.position_m.median:.3f} m (medians)"
    )
    assert report.network.n == 50
    assert report.network.position_m.median < 0.5, "the block's own extent is larger than that"
    assert report.fused.position_m.median < 0.5
    assert report.verdicts["fused"] > 40


@pytest.fixture(scope="module")
def kitti_bag(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shared KITTI drive as a bag, with an initial pose: the truth at the first odometry."""
    drive = shared_data / "kitti_raw" / "2011_09_26" / "2011_09_26_drive_0009_sync"
    plain = tmp_path_factory.mktemp("kitti") / "plain"
    run_convert("kitti", drive, plain, progress=False)
    reader = BagReader(plain)
    bag = plain.with_name("with_pose")
    kinds = [*SENSOR_KINDS]
    with BagWriter(bag) as writer:
        writer.write_static_transforms(reader.static_transforms(), reader.start_ns)
        given = False
        for event, log_ns in reader.timed_events(kinds):
            writer.write(event, log_ns)
            if event.kind is EventKind.ODOMETRY and not given:
                given = True
                pose = InitialPose(event.stamp_ns, "map", reader.truth().interpolate(event.stamp_ns), np.eye(6) * 1e-4)
                writer.write(Event(EventKind.INITIAL_POSE, event.stamp_ns, pose), log_ns + 1)
    return bag


def placed(bag: Path, folder: Path) -> Path:
    (folder / INPUT).symlink_to(bag, target_is_directory=True)
    return folder


def test_kitti_with_a_model_of_another_place_follows_the_odometry(
    kitti_bag: Path, redkitchen_model: Path, tmp_path: Path
) -> None:
    """A street is not a kitchen: no pose of the network is believed, and the pose follows the odometry alone."""
    config = LocalizerConfig(model=node_config(redkitchen_model).model)
    log, report = through_the_node(placed(kitti_bag, tmp_path), redkitchen_model, config)
    frames = list(log.frames)
    assert len(frames) >= 18
    for status in frames:
        assert status.verdict in (Verdict.NO_POSE, Verdict.GATED), status
        assert status.reason
    assert report.verdicts["fused"] <= 1, "at most the pose that was set by hand"
    assert log.odometry is not None
    live = log.live
    assert len(live) >= 18
    first = live.stamps_ns.tolist()[0]
    T_map_odom = live.interpolate(first) @ inverse(log.odometry.interpolate(first))
    for stamp in live.stamps_ns.tolist():
        expected, seen = T_map_odom @ log.odometry.interpolate(stamp), live.interpolate(stamp)
        assert np.linalg.norm(expected[:3, 3] - seen[:3, 3]) < 1e-3
        assert rotation_angle(expected[:3, :3], seen[:3, :3]) < 1e-4


def test_kitti_with_a_model_fitted_to_these_very_frames(kitti_bag: Path, shared_data: Path, tmp_path: Path) -> None:
    """The chain from a car's camera and Velodyne to a pose. The model has seen these frames: no accuracy is claimed."""
    config = {
        "name": "kitti_fitted",
        "seed": 1,
        "data": {"format": "kitti", "options": {"odometry": "oxts"}},
        "network": {**NETWORK, "width": 128, "height": 40, "dropout": 0.0},
        "augmentation": {"margin": 0.0, "erase_chance": 0.0},
        "optimizer": {"epochs": 150, "batch_size": 10, "validate_every": 75},
        "calibration": {"on_training": True},
    }
    write_yaml(tmp_path / "config.yaml", config)
    drive = shared_data / "kitti_raw" / "2011_09_26" / "2011_09_26_drive_0009_sync"
    model = run_train(tmp_path / "config.yaml", drive, tmp_path / "model", allow_missing=True)  # an excerpt
    (tmp_path / "run").mkdir()
    log, report = through_the_node(placed(kitti_bag, tmp_path / "run"), model, node_config(model), rate=0.5)
    assert report.network is not None
    assert report.fused is not None
    network, fused = report.network.position_m.mean, report.fused.position_m.mean
    print(f"kitti, fitted: network {network:.2f} m, fused {fused:.2f} m (means)")
    assert report.frames.stale == 0
    assert {status.mode for status in log.frames[3:]} == {Mode.RGB_DEPTH}
    assert all(Modality.DEPTH not in status.absent for status in log.frames[1:])
    assert report.network.position_m.mean < 3.0, "of a drive of 22 m"
    assert report.fused.position_m.mean < 2.0
