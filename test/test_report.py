"""The report says what is known of a made-up run, and null where nothing is known."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from synthetic_run import (
    DURATION_S,
    FUSED_OFFSET_M,
    NETWORK_SIGMA_M,
    OUTAGES,
    START_NS,
    drifting_odometry,
    make_log,
    stamp,
    true_pose,
    true_trajectory,
)

from vmloc_ros.commands.tables import print_report
from vmloc_ros.errors import TrajectoryError
from vmloc_ros.report import Report, build_report, read_report, write_run
from vmloc_ros.run_log import RunCollector, RunLog, detect_outages, read_frames_csv, trajectory_of
from vmloc_ros.trajectory import read_tum
from vmloc_ros.types import Event, EventKind, FrameKey, FusedState, Mode, OdometrySample, Verdict


@pytest.fixture(scope="module")
def log() -> RunLog:
    return make_log()


@pytest.fixture(scope="module")
def report(log: RunLog) -> Report:
    return build_report(log)


def test_a_constant_offset_is_the_error_everywhere(report: Report) -> None:
    for summary in (report.fused, report.fused_live):
        assert summary is not None
        for value in (summary.position_m.mean, summary.position_m.median, summary.position_m.p95):
            assert value == pytest.approx(FUSED_OFFSET_M, abs=1e-9)
        assert summary.rotation_deg.max == pytest.approx(0.0, abs=1e-5)


def test_network_errors_are_those_of_its_noise(report: Report) -> None:
    assert report.network is not None
    maxwell_mean = NETWORK_SIGMA_M * math.sqrt(8.0 / math.pi)  # of the length of three Gaussians
    assert report.network.position_m.mean == pytest.approx(maxwell_mean, rel=0.08)
    assert report.network.position_m.median < report.network.position_m.p95 < report.network.position_m.max


def test_dead_reckoning_starts_at_the_truth_and_drifts(log: RunLog, report: Report) -> None:
    path = log.dead_reckoning()
    assert path is not None
    assert np.allclose(path.poses_N44[0], true_pose(0.0), atol=1e-9)
    assert report.odometry is not None
    assert report.odometry.n == len({status.stamp_ns for status in log.statuses})
    assert report.odometry.position_m.max > 2.0


def test_dead_reckoning_of_perfect_odometry_is_the_truth(log: RunLog) -> None:
    perfect = build_report(dataclasses.replace(log, odometry=drifting_odometry_free(log)))
    assert perfect.odometry is not None
    assert perfect.odometry.position_m.max < 0.05  # what interpolating a curve at 20 Hz costs
    assert perfect.odometry.rotation_deg.max < 0.2


def drifting_odometry_free(log: RunLog):
    assert log.truth is not None
    return log.truth.transformed(T_left=np.linalg.inv(true_pose(17.0)))


def test_modes_hold_their_own_frames(log: RunLog, report: Report) -> None:
    assert set(report.by_mode) == {"RGB_DEPTH", "RGB_ONLY", "DEPTH_ONLY", "DEAD_RECKONING"}
    counts = {mode: (errors.network.n if errors.network else 0) for mode, errors in report.by_mode.items()}
    assert counts["DEAD_RECKONING"] == 0
    assert report.by_mode["DEAD_RECKONING"].network is None
    assert sum(counts.values()) == len(log.frames)
    for mode in (Mode.RGB_ONLY, Mode.DEPTH_ONLY):
        assert counts[mode] == sum(status.mode is mode for status in log.statuses)
    fused = sum(errors.fused.n for errors in report.by_mode.values() if errors.fused)
    assert fused == len(log.statuses)


def test_outages_hold_errors_of_their_time(log: RunLog, report: Report) -> None:
    assert [(o.from_s, o.to_s, o.missing) for o in report.outages] == [(o.from_s, o.to_s, o.missing) for o in OUTAGES]
    for outage in report.outages:
        assert outage.fused is not None
        assert outage.odometry is not None
        begin, end = (START_NS + round(second * 1e9) for second in (outage.from_s, outage.to_s))
        assert outage.fused.n == sum(begin <= status.stamp_ns <= end for status in log.statuses)
        assert outage.fused.position_m.max == pytest.approx(FUSED_OFFSET_M, abs=1e-9)


def test_nees_of_honest_noise_is_six(report: Report) -> None:
    for mode in ("RGB_DEPTH", "RGB_ONLY", "DEPTH_ONLY"):
        value = report.nees.network_by_mode[mode]
        assert value == pytest.approx(6.0, abs=1.2)
    assert report.nees.fused == pytest.approx(FUSED_OFFSET_M**2 / 0.09, rel=1e-6)


def test_counts_and_latency_come_from_the_diary(log: RunLog, report: Report) -> None:
    assert report.frames.published == len(log.statuses)
    assert report.frames.received == log.counters["images.received"]
    assert report.frames.stale == 0
    assert report.verdicts == {"fused": log.counters["verdict.fused"]}
    latencies = [status.latency_ms for status in log.frames]
    assert report.latency_ms.p50 == pytest.approx(np.median(latencies))
    assert report.latency_ms.p50 <= report.latency_ms.p95 <= report.latency_ms.p99


def test_refusals_are_counted_by_reason_and_numbers_do_not_tell_them_apart(log: RunLog, report: Report) -> None:
    assert report.no_pose == {}
    reasons = ["too dark", *(f"{share} % of the cells agree" for share in (3, 12, 7.5))]
    refused = [
        dataclasses.replace(status, verdict=Verdict.NO_POSE, reason=reason, measurement=None)
        for status, reason in zip(log.frames, reasons, strict=False)
    ]
    heartbeat = dataclasses.replace(refused[0], key=None)
    statuses = [*refused, *log.frames[len(refused) :], heartbeat]
    counted = build_report(dataclasses.replace(log, statuses=statuses))
    assert list(counted.no_pose.items()) == [("# % of the cells agree", 3), ("too dark", 1)]
    printed = Console(record=True, width=80)
    print_report(counted, printed)
    assert "no pose in 3 frames: # % of the cells agree" in printed.export_text()


def test_a_report_of_an_earlier_version_is_read(report: Report, tmp_path: Path) -> None:
    content = report.model_dump(mode="json")
    del content["no_pose"]
    (tmp_path / "report.json").write_text(json.dumps(content))
    assert read_report(tmp_path) == report


def test_without_truth_or_frames_everything_is_null(log: RunLog) -> None:
    blind = build_report(dataclasses.replace(log, truth=None))
    assert blind.network is blind.odometry is blind.fused is blind.fused_live is None
    assert blind.nees.fused is None
    empty = RunLog([], trajectory_of([]), None, None, 0)
    nothing = build_report(empty)
    assert nothing.latency_ms.p50 is None
    assert nothing.frames.published is None
    assert "NaN" not in json.dumps(nothing.model_dump(mode="json"), allow_nan=False)


def test_depth_only_runs_count_depth_messages(log: RunLog) -> None:
    last = dataclasses.replace(log.statuses[-1], counters={"clouds.received": 7, "depths.received": 0})
    counted = build_report(dataclasses.replace(log, statuses=[last], published={"points": 8, "odom": 50}))
    assert (counted.frames.published, counted.frames.received) == (8, 7)


def test_provisional_verdicts_where_nothing_was_counted(log: RunLog) -> None:
    statuses = [dataclasses.replace(status, counters={}) for status in log.statuses]
    gated = dataclasses.replace(statuses[0], verdict=Verdict.GATED)
    counted = build_report(dataclasses.replace(log, statuses=[gated, *statuses[1:]]))
    assert counted.verdicts == {"gated": 1, "fused": len(log.frames) - 1}


def test_files_are_read_back_as_written(log: RunLog, tmp_path: Path) -> None:
    written = write_run(log, tmp_path)
    assert read_report(tmp_path) == written
    assert json.loads((tmp_path / "report.json").read_text())["fused"]["n"] == len(log.statuses)
    fused = read_tum(tmp_path / "fused.tum")
    assert np.array_equal(fused.stamps_ns, log.fused().stamps_ns)
    assert np.allclose(fused.poses_N44, log.fused().poses_N44, atol=1e-7)
    assert {path.name for path in tmp_path.glob("*.tum")} == {
        "truth.tum", "odometry.tum", "network.tum", "fused.tum", "live.tum",
    }  # fmt: skip
    assert read_frames_csv(tmp_path) == [status.key for status in log.frames]
    write_run(dataclasses.replace(log, truth=None), tmp_path)
    assert not (tmp_path / "truth.tum").exists(), "an old run's truth must not stay beside the new report"


def test_frames_without_image_or_depth_survive_the_table(log: RunLog, tmp_path: Path) -> None:
    keys = [FrameKey(1, None, (2, 3)), FrameKey(4, 4, ())]
    statuses = [dataclasses.replace(log.statuses[0], key=key) for key in keys]
    write_run(dataclasses.replace(log, statuses=statuses), tmp_path)
    assert read_frames_csv(tmp_path / "frames.csv") == keys


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("stamp_ns,image_stamp_ns,depth_stamps_ns\n1,x,\n", "frames.csv:2"),
        ("other,columns\n1,2\n", "frames.csv:2"),
        ("stamp_ns,image_stamp_ns,depth_stamps_ns\n", "holds no frame"),
        (None, "cannot be read"),
    ],
)
def test_bad_frame_tables_are_named(tmp_path: Path, content: str | None, words: str) -> None:
    if content is not None:
        (tmp_path / "frames.csv").write_text(content)
    with pytest.raises(TrajectoryError, match=words):
        read_frames_csv(tmp_path)


def test_bad_reports_are_named(tmp_path: Path, log: RunLog) -> None:
    with pytest.raises(TrajectoryError, match=r"report\.json"):
        read_report(tmp_path)
    write_run(log, tmp_path)
    content = json.loads((tmp_path / "report.json").read_text())
    content["fused"]["position_m"]["mean"] = "low"
    (tmp_path / "report.json").write_text(json.dumps(content))
    with pytest.raises(TrajectoryError, match=r"fused\.position_m\.mean"):
        read_report(tmp_path)


def test_outages_are_found_in_the_diary(log: RunLog) -> None:
    found = detect_outages(log.statuses, START_NS)
    assert [outage.missing for outage in found] == [outage.missing for outage in OUTAGES]
    for seen, made in zip(found, OUTAGES, strict=True):
        assert seen.from_s == pytest.approx(made.from_s, abs=0.2)
        assert seen.to_s == pytest.approx(made.to_s, abs=0.2)


def test_a_modality_that_never_was_is_no_outage(log: RunLog) -> None:
    blind = [
        dataclasses.replace(status, key=FrameKey(status.stamp_ns, None, (status.stamp_ns,)), absent={})
        for status in log.statuses
    ]
    assert detect_outages(blind, START_NS) == []
    assert detect_outages([], START_NS) == []


def test_the_collector_makes_the_same_log(log: RunLog, report: Report) -> None:
    collector = RunCollector()
    truth = true_trajectory()
    for kind, path in ((EventKind.ODOMETRY, drifting_odometry(truth)), (EventKind.TRUTH, truth)):
        for stamp_ns, pose in zip(path.stamps_ns.tolist(), path.poses_N44, strict=True):
            collector.add_event(Event(kind, stamp_ns, OdometrySample(stamp_ns, "odom", "base_link", pose)))
    broken = OdometrySample(stamp(DURATION_S) + 1, "odom", "base_link", np.full((4, 4), np.nan))
    collector.add_event(Event(EventKind.ODOMETRY, broken.stamp_ns, broken))
    live = [
        FusedState(stamp_ns, pose, np.eye(6), np.eye(4))
        for stamp_ns, pose in zip(log.live.stamps_ns.tolist(), log.live.poses_N44, strict=True)
    ]
    collector.add_outputs(log.statuses, live)
    again = collector.finish(outages=OUTAGES, published=log.published)
    assert build_report(again) == report
