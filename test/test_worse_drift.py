"""The demo's drive and outages with odometry as bad as RobotCar's LOOP: 4 % over 100 m, 0.25 mrad per metre.

States what the filter gets (`pytest -s`). Without ROS: `vmloc localize` is the node's own pipeline, see test_demo.
"""

from __future__ import annotations

from pathlib import Path

from vmloc_ros.bags import BagReader, BagWriter
from vmloc_ros.commands.convert import run_convert
from vmloc_ros.commands.demo import DEMO_MODEL, DemoPlan
from vmloc_ros.commands.localize import run_localize
from vmloc_ros.commands.town import run_town
from vmloc_ros.datasets.town_drive import LOOP_DRIFT
from vmloc_ros.run_log import Outage

SILENCED = {"rgb": ("/image", "/camera_info"), "depth": ("/points",)}


def without(bag: Path, out: Path, outages: tuple[Outage, ...]) -> Path:
    """The bag as it would have been recorded had the sensors failed."""
    reader = BagReader(bag)
    spans = [
        (topic, reader.start_ns + round(o.from_s * 1e9), reader.start_ns + round(o.to_s * 1e9))
        for o in outages
        for name in o.missing.split("+")
        for topic in SILENCED[name]
    ]
    with BagWriter(out) as writer:
        for message in reader.messages():
            if not any(topic == message.topic and a <= message.log_ns < b for topic, a, b in spans):
                writer.write_raw(message.topic, message.msgtype, message.data, message.log_ns)
    return out


def test_the_main_job_with_the_odometry_of_loop(project_root: Path, tmp_path: Path) -> None:
    plan = DemoPlan()
    run_town(
        tmp_path / "town",
        seed=plan.seed,
        traversals=1,
        first=plan.traversal,
        laps=plan.laps,
        drift=LOOP_DRIFT,
        progress=False,
    )
    run_convert("town", tmp_path / "town", tmp_path / "whole", progress=False)
    bag = without(tmp_path / "whole", tmp_path / "bag", plan.outages)
    model = project_root / "models" / DEMO_MODEL
    report = run_localize(bag, model, tmp_path / "run", plots=False, progress=False).report
    assert report.network is not None
    assert report.odometry is not None
    assert report.fused is not None
    network, odometry, fused = (e.position_m.mean for e in (report.network, report.odometry, report.fused))
    worst = [(o.missing, round(o.fused.position_m.max, 2)) for o in report.outages if o.fused is not None]
    print(
        f"LOOP's drift: network {network:.2f} m, odometry {odometry:.2f} m, fused {fused:.2f} m (means); worst {worst}"
    )
    assert odometry > 2.0, "the drift is not what this test is about"
    assert len(worst) == 3
    assert fused < 0.5
    assert fused < network
    assert fused < 0.15 * odometry
    assert max(error for _, error in worst) < 1.5
