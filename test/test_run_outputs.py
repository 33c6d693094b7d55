"""A diary that went through a bag is the diary that was written."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from synthetic_run import OUTAGES, make_log

from vmloc_ros.bag_writer import BagWriter
from vmloc_ros.errors import BagError
from vmloc_ros.report import build_report
from vmloc_ros.run_log import RunLog, trajectory_of
from vmloc_ros.run_outputs import read_outputs
from vmloc_ros.types import Modality, Mode, Status, Verdict


def written(tmp_path: Path, log: RunLog, statuses: list[Status]) -> Path:
    bag = tmp_path / "outputs"
    with BagWriter(bag) as writer:
        for status in statuses:
            writer.write_status("/localizer/status", status, "map")
        for stamp_ns, pose in zip(log.live.stamps_ns.tolist(), log.live.poses_N44, strict=True):
            writer.write_pose("/localizer/pose", stamp_ns, "map", pose, np.eye(6))
    return bag


def test_statuses_survive(tmp_path: Path) -> None:
    log = make_log()
    again, live = read_outputs(written(tmp_path, log, list(log.statuses)))
    assert len(again) == len(log.statuses)
    for seen, made in zip(again, log.statuses, strict=True):
        assert (seen.stamp_ns, seen.mode, seen.verdict, seen.key) == (made.stamp_ns, made.mode, made.verdict, made.key)
        assert (seen.nis, seen.dof, seen.counters) == (made.nis, made.dof, made.counters)
        assert dict(seen.absent) == dict(made.absent)
        assert dict(seen.expert_weights) == dict(made.expert_weights)
        assert (seen.measurement is None) == (made.measurement is None)
        if seen.measurement is not None and made.measurement is not None:
            assert np.allclose(seen.measurement.T_map_base, made.measurement.T_map_base, atol=1e-9)
            assert np.allclose(seen.measurement.cov_66, made.measurement.cov_66, atol=1e-12)
        assert seen.state is not None
        assert made.state is not None
        assert np.allclose(seen.state.T_map_base, made.state.T_map_base, atol=1e-9)
    recovered = trajectory_of((state.stamp_ns, state.T_map_base) for state in live)
    assert np.allclose(recovered.poses_N44, log.live.poses_N44, atol=1e-9)


def test_the_report_of_a_recorded_run_is_that_of_the_run(tmp_path: Path) -> None:
    log = make_log()
    statuses, live = read_outputs(written(tmp_path, log, list(log.statuses)))
    recorded = dataclasses.replace(
        log, statuses=statuses, live=trajectory_of((state.stamp_ns, state.T_map_base) for state in live)
    )
    ours, theirs = build_report(log).model_dump(), build_report(recorded).model_dump()
    assert theirs["outages"][0]["missing"] == OUTAGES[0].missing
    assert theirs["frames"] == ours["frames"]
    assert theirs["verdicts"] == ours["verdicts"]
    for name in ("network", "fused", "fused_live", "odometry"):
        assert theirs[name]["position_m"]["mean"] == pytest.approx(ours[name]["position_m"]["mean"], abs=1e-6)
    assert theirs["nees"]["fused"] == pytest.approx(ours["nees"]["fused"], rel=1e-6)


def test_a_lost_localizer_has_no_pose(tmp_path: Path) -> None:
    log = make_log()
    lost = dataclasses.replace(
        log.statuses[0], mode=Mode.LOST, verdict=Verdict.NO_POSE, state=None, measurement=None, nis=None, dof=0,
        absent={Modality.RGB: "image is constant"}, counters={},
    )  # fmt: skip
    (again,), _ = read_outputs(written(tmp_path, log, [lost]))
    assert again.state is None
    assert again.measurement is None
    assert again.nis is None
    assert again.absent == {Modality.RGB: "image is constant"}


def test_bags_without_a_diary_are_named(tmp_path: Path) -> None:
    with pytest.raises(BagError, match="nowhere"):
        read_outputs(tmp_path / "nowhere")
    with BagWriter(tmp_path / "outputs") as writer:
        writer.write_pose("/localizer/pose", 1, "map", np.eye(4), np.eye(6))
    with pytest.raises(BagError, match=r"needs one topic of type vmloc_msgs/msg/LocalizationStatus.*/localizer/pose"):
        read_outputs(tmp_path / "outputs")
