"""`report.json`: how far a run was from the truth, by modality and by outage, and the run's files.

Errors are of `T_map_base` at the frames' stamps (heartbeats included for what needs no frame) against the
interpolated truth, without any alignment. What cannot be computed is null, never NaN.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vmloc_ros import files, metrics
from vmloc_ros.errors import TrajectoryError
from vmloc_ros.geometry import Array
from vmloc_ros.reasons import without_numbers
from vmloc_ros.run_log import Outage, RunLog, trajectory_of, write_frames_csv
from vmloc_ros.trajectory import NANOSECONDS, Trajectory, write_tum
from vmloc_ros.types import EventKind, Modality, Mode, Status, Verdict

REPORT_NAME = "report.json"
TRAJECTORY_NAMES = ("truth", "odometry", "network", "fused", "live", "retrieval")


class ReportModel(BaseModel):
    """A section of the report: no unknown keys, no NaN."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Spread(ReportModel):
    mean: float
    median: float
    p95: float
    max: float


class ErrorSummary(ReportModel):
    """E of the design: errors of `n` poses, metres and degrees."""

    position_m: Spread
    rotation_deg: Spread
    n: int = Field(ge=1)


class ModeErrors(ReportModel):
    network: ErrorSummary | None
    fused: ErrorSummary | None


class OutageErrors(ReportModel):
    """Errors inside an outage; seconds count from the run's first stamp."""

    from_s: float
    to_s: float
    missing: str
    odometry: ErrorSummary | None
    fused: ErrorSummary | None


class Percentiles(ReportModel):
    p50: float | None
    p95: float | None
    p99: float | None


class FrameCounts(ReportModel):
    """`published` and `received` count images (depth messages where a run has no images); the others count frames.

    A frame may be made of depth alone, so `paired` can exceed `received`. null: the run did not count it.
    """

    published: int | None
    received: int | None
    paired: int | None
    inferred: int | None
    stale: int | None
    no_pose: int | None


class Nees(ReportModel):
    """Mean normalised estimation error squared, 6 degrees of freedom: 6 when the covariances are honest."""

    network_by_mode: dict[str, float | None]
    fused: float | None


class Report(ReportModel):
    """The whole of `report.json`. `start_ns` is the stamp that the outages' seconds count from."""

    start_ns: int
    network: ErrorSummary | None
    odometry: ErrorSummary | None
    fused: ErrorSummary | None
    fused_live: ErrorSummary | None
    retrieval: ErrorSummary | None
    by_mode: dict[str, ModeErrors]
    outages: list[OutageErrors]
    latency_ms: Percentiles
    frames: FrameCounts
    no_pose: dict[str, int] = Field(default_factory=dict, description="Frames without a pose, by reason (# a number).")
    verdicts: dict[str, int]
    nees: Nees


def build_report(log: RunLog) -> Report:
    """Every number that the run's log allows."""
    fused, dead_reckoning = log.fused(), log.dead_reckoning()
    stamps_ns = sorted({status.stamp_ns for status in log.statuses})
    at_stamps = sample(dead_reckoning, stamps_ns) if dead_reckoning is not None else None
    return Report(
        start_ns=log.start_ns,
        network=errors(log.network(), log.truth),
        odometry=errors(at_stamps, log.truth),
        fused=errors(fused, log.truth),
        fused_live=errors(log.live, log.truth),
        retrieval=errors(log.retrieval, log.truth),
        by_mode={mode.value: _mode_errors(log, mode) for mode in Mode if _has_mode(log, mode)},
        outages=[_outage_errors(outage, log, fused, at_stamps) for outage in log.outages],
        latency_ms=_latency(log.frames),
        frames=frame_counts(log),
        no_pose=refusals(log),
        verdicts=verdict_counts(log),
        nees=_nees(log),
    )


def errors(estimates: Trajectory | None, truth: Trajectory | None) -> ErrorSummary | None:
    """Errors of the estimates whose stamps the truth covers; None where there are none."""
    if estimates is None or truth is None:
        return None
    covered = metrics.covered(estimates, truth)
    if len(covered) == 0:
        return None
    return ErrorSummary.model_validate(metrics.error_summary(covered, truth))


def sample(trajectory: Trajectory, stamps_ns: Sequence[int]) -> Trajectory:
    """The trajectory at those of the stamps that it covers."""
    return trajectory_of((stamp, trajectory.interpolate(stamp)) for stamp in stamps_ns if trajectory.covers(stamp))


def frame_mode(status: Status) -> Mode:
    """The modalities that a frame had, whatever the filter then made of its pose."""
    if status.key is None:
        return status.mode
    rgb = status.key.image_stamp_ns is not None and Modality.RGB not in status.absent
    depth = bool(status.key.depth_stamps_ns) and Modality.DEPTH not in status.absent
    if rgb:
        return Mode.RGB_DEPTH if depth else Mode.RGB_ONLY
    return Mode.DEPTH_ONLY if depth else Mode.DEAD_RECKONING


def _has_mode(log: RunLog, mode: Mode) -> bool:
    return any(status.mode is mode for status in log.statuses) or any(frame_mode(s) is mode for s in log.frames)


def _mode_errors(log: RunLog, mode: Mode) -> ModeErrors:
    """The network's errors by what the frame held, the filter's by what its pose rests on."""
    network = trajectory_of(
        (s.stamp_ns, s.measurement.T_map_base)
        for s in log.frames
        if s.measurement is not None and frame_mode(s) is mode
    )
    fused = trajectory_of(
        (s.state.stamp_ns, s.state.T_map_base) for s in log.statuses if s.state is not None and s.mode is mode
    )
    return ModeErrors(network=errors(network, log.truth), fused=errors(fused, log.truth))


def _outage_errors(outage: Outage, log: RunLog, fused: Trajectory, dead_reckoning: Trajectory | None) -> OutageErrors:
    begin = log.start_ns + round(outage.from_s * NANOSECONDS)
    end = log.start_ns + round(outage.to_s * NANOSECONDS)
    return OutageErrors(
        from_s=outage.from_s,
        to_s=outage.to_s,
        missing=outage.missing,
        odometry=errors(_between(dead_reckoning, begin, end), log.truth),
        fused=errors(_between(fused, begin, end), log.truth),
    )


def _between(trajectory: Trajectory | None, begin_ns: int, end_ns: int) -> Trajectory | None:
    if trajectory is None:
        return None
    kept = (trajectory.stamps_ns >= begin_ns) & (trajectory.stamps_ns <= end_ns)
    return Trajectory(trajectory.stamps_ns[kept], trajectory.poses_N44[kept], trajectory.max_gap_s)


def _latency(frames: Sequence[Status]) -> Percentiles:
    values = np.array([status.latency_ms for status in frames], dtype=float)
    values = values[np.isfinite(values)]
    if len(values) == 0:
        return Percentiles(p50=None, p95=None, p99=None)
    p50, p95, p99 = (float(v) for v in np.percentile(values, [50, 95, 99]))
    return Percentiles(p50=p50, p95=p95, p99=p99)


def frame_counts(log: RunLog) -> FrameCounts:
    """What became of the messages that were sent."""
    counters = log.counters
    kinds = {EventKind.IMAGE: "images"}
    if log.published and not log.published.get(EventKind.IMAGE.value):
        kinds = {EventKind.DEPTH: "depths", EventKind.CLOUD: "clouds", EventKind.SCAN: "scans"}
    received = [counters[f"{name}.received"] for name in kinds.values() if f"{name}.received" in counters]
    return FrameCounts(
        published=sum(log.published.get(kind.value, 0) for kind in kinds) if log.published else None,
        received=sum(received) if received else None,
        paired=counters.get("frames.paired"),
        inferred=counters.get("frames.inferred"),
        stale=counters.get("frames.stale"),
        no_pose=counters.get("frames.no_pose"),
    )


def refusals(log: RunLog) -> dict[str, int]:
    """Frames of the diary that gave no pose, by reason without its numbers; the commonest first."""
    reasons = (status.reason for status in log.frames if status.verdict is Verdict.NO_POSE)
    return dict(Counter(without_numbers(reason) for reason in reasons).most_common())


def verdict_counts(log: RunLog) -> dict[str, int]:
    """Final verdicts from the localizer's counters; the diary's provisional ones where it gave no counters."""
    final = {name.removeprefix("verdict."): n for name, n in log.counters.items() if name.startswith("verdict.")}
    if final:
        return final
    provisional: dict[str, int] = {}
    for status in log.frames:
        provisional[status.verdict.value] = provisional.get(status.verdict.value, 0) + 1
    return provisional


def _nees(log: RunLog) -> Nees:
    by_mode: dict[str, list[float]] = {}
    fused: list[float] = []
    for status in log.statuses:
        if status.measurement is not None and status.key is not None:
            value = _nees_of(status.measurement.T_map_base, status.measurement.cov_66, log, status.stamp_ns)
            by_mode.setdefault(frame_mode(status).value, []).extend(value)
        if status.state is not None:
            fused += _nees_of(status.state.T_map_base, status.state.cov_66, log, status.state.stamp_ns)
    return Nees(
        network_by_mode={mode: float(np.mean(values)) if values else None for mode, values in by_mode.items()},
        fused=float(np.mean(fused)) if fused else None,
    )


def _nees_of(T_map_base: Array, cov_66: Array, log: RunLog, stamp_ns: int) -> list[float]:
    """None or one value: no truth at that stamp, or a covariance that cannot be inverted, gives none."""
    if log.truth is None or not log.truth.covers(stamp_ns):
        return []
    try:
        value = metrics.nees(T_map_base, cov_66, log.truth.interpolate(stamp_ns))
    except np.linalg.LinAlgError:
        return []
    return [value] if np.isfinite(value) else []


def write_run(log: RunLog, out: Path) -> Report:
    """Writes `report.json`, the trajectories as TUM files and `frames.csv` into the folder `out`.

    A trajectory that the run does not have leaves no file (an old one of that name is removed).
    """
    report = build_report(log)
    out.mkdir(parents=True, exist_ok=True)
    trajectories = {
        "truth": log.truth,
        "odometry": log.dead_reckoning(),
        "network": log.network(),
        "fused": log.fused(),
        "live": log.live,
        "retrieval": log.retrieval,
    }
    for name in TRAJECTORY_NAMES:
        trajectory = trajectories[name]
        if trajectory is None or len(trajectory) == 0:
            (out / f"{name}.tum").unlink(missing_ok=True)
        else:
            write_tum(out / f"{name}.tum", trajectory)
    write_frames_csv(out / "frames.csv", log.frames)
    files.write_json(out / REPORT_NAME, report.model_dump(mode="json"))
    return report


def read_report(folder: Path) -> Report:
    """The report of a run's folder.

    Raises:
        TrajectoryError: missing, not JSON, or not a report (the first wrong field is named).
    """
    path = folder / REPORT_NAME if folder.is_dir() else folder
    try:
        return Report.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise TrajectoryError(f"{path}: cannot be read as a report ({error})") from error
    except ValidationError as error:
        first = cast(dict[str, object], error.errors()[0])
        where = ".".join(str(part) for part in cast(tuple[object, ...], first["loc"]))
        raise TrajectoryError(f"{path}: not a report: {where}: {first['msg']}") from error
