"""The main job in short: a drive of the town through node, recorder and player as processes over a real ROS graph."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

pytest.importorskip("rclpy", reason="needs a ROS 2 client library")
pytest.importorskip("vmloc_msgs", reason="needs the message package vmloc_msgs")

from vmloc_ros.bags import BagReader
from vmloc_ros.commands.demo import DEMO_MODEL, DemoPlan, DemoResult, prepare_folder, run_demo
from vmloc_ros.commands.live_view import LiveView
from vmloc_ros.commands.localize import run_localize
from vmloc_ros.commands.processes import Child
from vmloc_ros.errors import ConfigError, VmlocError
from vmloc_ros.geometry import rotation_angle
from vmloc_ros.report import read_report
from vmloc_ros.run_log import Outage, read_frames_csv, trajectory_of
from vmloc_ros.trajectory import NANOSECONDS, read_tum

PLAN = DemoPlan(
    laps=0.4,
    outages=(Outage(3.0, 6.0, "rgb"), Outage(7.5, 10.5, "depth"), Outage(12.0, 13.5, "rgb+depth")),
)


@pytest.fixture(scope="module")
def model(project_root: Path) -> Path:
    return project_root / "models" / DEMO_MODEL


@pytest.fixture(scope="module")
def demo(model: Path, tmp_path_factory: pytest.TempPathFactory) -> DemoResult:
    console = Console(record=True, width=100)
    result = run_demo(tmp_path_factory.mktemp("demo") / "out", model, PLAN, console)
    (result.out / "console.txt").write_text(console.export_text())
    return result


def test_every_frame_arrives_and_none_is_stale(demo: DemoResult) -> None:
    frames = demo.report.frames
    assert frames.published is not None
    assert frames.published > 50
    assert frames.received == frames.published
    assert frames.stale == 0
    assert frames.inferred == frames.paired
    assert demo.report.verdicts["fused"] > 50


def test_the_outages_are_those_that_were_made(demo: DemoResult) -> None:
    assert [(o.from_s, o.to_s, o.missing) for o in demo.report.outages] == [
        (o.from_s, o.to_s, o.missing) for o in PLAN.outages
    ]
    assert set(demo.report.by_mode) >= {"RGB_DEPTH", "RGB_ONLY", "DEPTH_ONLY"}
    for outage in demo.report.outages:
        assert outage.fused is not None, "the filter has a pose also where a sensor is missing"
        assert outage.odometry is not None


def test_the_filter_is_better_than_the_network(demo: DemoResult) -> None:
    assert demo.report.network is not None
    assert demo.report.fused is not None
    assert demo.report.fused.position_m.mean < demo.report.network.position_m.mean
    assert demo.report.fused.position_m.max < demo.report.network.position_m.max


def test_the_demos_limits(demo: DemoResult) -> None:
    """What the whole demo promises, as far as a third of it can show it."""
    assert demo.report.network is not None
    assert demo.report.network.position_m.mean < 2.0
    for outage in demo.report.outages:
        assert outage.fused is not None
        assert outage.fused.position_m.max < 2.0, outage


def test_everything_is_written(demo: DemoResult) -> None:
    assert read_report(demo.out) == demo.report
    for name in ("truth", "odometry", "network", "fused", "live", "retrieval"):
        assert len(read_tum(demo.out / f"{name}.tum")) > 50
    assert [path.name for path in demo.figures] == [
        "trajectories.png", "errors.png", "error_curves.png", "overview.png",
    ]  # fmt: skip
    recorded = {topic.name: topic.count for topic in BagReader(demo.out / "outputs").topics}
    assert recorded["/tf"] > 50
    assert recorded["/localizer/pose"] > 50
    assert recorded["/localizer/path"] > 5
    text = (demo.out / "console.txt").read_text()
    assert "fused" in text
    assert str(demo.out / "overview.png") in text


def test_the_truth_is_not_on_the_graph(demo: DemoResult) -> None:
    played = json.loads((demo.out / "played.json").read_text())
    assert "/ground_truth" not in played["published"]
    assert played["dropped"]["/image"] > 0
    assert played["dropped"]["/points"] > 0


def test_processes_ended_by_themselves(demo: DemoResult) -> None:
    node = (demo.out / "logs" / "node.log").read_text()
    assert "inactive;" in node
    assert "Traceback" not in node
    assert "ERROR" not in node


def test_localize_gives_the_node_s_trajectory(demo: DemoResult, model: Path, tmp_path: Path) -> None:
    """The same frames through the same pipeline without ROS."""
    run_localize(demo.out / "input", model, tmp_path, use_stamps=demo.out, plots=False, progress=False)
    assert read_frames_csv(tmp_path) == read_frames_csv(demo.out)
    node, here = read_tum(demo.out / "fused.tum"), read_tum(tmp_path / "fused.tum")
    frames = {key.stamp_ns for key in read_frames_csv(demo.out)}
    common = sorted(frames & set(node.stamps_ns.tolist()) & set(here.stamps_ns.tolist()))
    assert len(common) > 0.95 * len(frames)
    a = trajectory_of((stamp, node.interpolate(stamp)) for stamp in common).poses_N44
    b = trajectory_of((stamp, here.interpolate(stamp)) for stamp in common).poses_N44
    assert np.linalg.norm(a[:, :3, 3] - b[:, :3, 3], axis=1).max() < 0.01
    assert max(math.degrees(rotation_angle(p[:3, :3], q[:3, :3])) for p, q in zip(a, b, strict=True)) < 0.1


# ----------------------------------------------------------------------------------------------- without a ROS graph


def test_a_folder_with_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match="is no earlier demo"):
        prepare_folder(tmp_path, PLAN, tmp_path)
    assert (tmp_path / "thesis.tex").is_file()


def test_an_earlier_demo_is_replaced(tmp_path: Path) -> None:
    prepare_folder(tmp_path / "out", PLAN, tmp_path)
    (tmp_path / "out" / "report.json").write_text("{}")
    prepare_folder(tmp_path / "out", PLAN, tmp_path)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["demo.yaml"]


def test_a_missing_model_is_said_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(VmlocError, match="nothing"):
        run_demo(tmp_path / "out", tmp_path / "nothing", PLAN, Console(quiet=True))
    assert not (tmp_path / "out").exists()


def test_the_live_line_follows_the_node(tmp_path: Path) -> None:
    """Lines that are still being written wait; words that are no status are passed over."""
    log = tmp_path / "watch.log"
    child = Child("watch", None, log)  # type: ignore[arg-type]
    truth = trajectory_of((second * NANOSECONDS, np.eye(4)) for second in range(1, 60))
    view = LiveView(truth, NANOSECONDS, 50.0, (Outage(30.0, 40.0, "rgb+depth"),))
    console = Console(record=True, width=120)

    def line(second: int, x_m: float | None) -> str:
        seen = {
            "stamp_ns": second * NANOSECONDS,
            "mode": "RGB_DEPTH",
            "x_m": x_m,
            "y_m": 0.0,
            "z_m": 0.0,
            "sigma_m": 0.5,
        }
        return json.dumps(seen)

    with view.shown(console):
        log.write_text("[INFO] a log line\n" + line(2, None) + "\n" + line(15, 3.0)[:20])
        view.update(child)
        assert "no pose yet" in console.export_text(clear=False)
        assert "error" not in console.export_text(clear=False)
        log.write_text("[INFO] a log line\n" + line(2, None) + "\n" + line(15, 3.0) + "\n" + line(36, 1.0) + "\n")
        view.update(child)
    text = console.export_text()
    assert "error  3.00 m" in text
    assert "mean 2.00 m" in text
    assert "neither" in text
