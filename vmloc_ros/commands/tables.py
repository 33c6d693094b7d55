"""A report as a table in the terminal."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from vmloc_ros.report import ErrorSummary, Report

REASONS = 5
"""So many reasons of frames without a pose are printed; the report has all."""
MISSING = {"rgb": "no camera", "depth": "no depth", "rgb+depth": "neither"}


def print_report(report: Report, console: Console | None = None) -> None:
    """Errors of the whole run and inside the outages, and what became of the frames."""
    console = console or Console()
    table = Table("", "n", "mean", "median", "p95", "max", "rotation", box=SIMPLE_HEAD, title_justify="left")
    table.title = "error against the truth: position (m), and mean rotation (deg)"
    for column in table.columns[1:]:
        column.justify = "right"
    rows = (
        ("network, frame by frame", report.network),
        ("nearest training image", report.retrieval),
        ("odometry alone", report.odometry),
        ("fused", report.fused),
        ("fused, live", report.fused_live),
    )
    for name, errors in rows:
        if errors is not None:
            table.add_row(name, *_cells(errors), style="bold" if name == "fused" else "")
    for outage in report.outages:
        if outage.fused is not None and outage.odometry is not None:
            table.add_section()
            table.add_row(f"{MISSING.get(outage.missing, outage.missing)}, {outage.from_s:.0f} to {outage.to_s:.0f} s:")
            table.add_row("  odometry alone", *_cells(outage.odometry))
            table.add_row("  fused", *_cells(outage.fused), style="bold")
    if table.row_count:
        console.print(table)
    console.print(frames_line(report), soft_wrap=True, highlight=False)
    for reason, count in list(report.no_pose.items())[:REASONS]:
        console.print(f"no pose in {count} frames: {reason}", soft_wrap=True, highlight=False)


def _cells(errors: ErrorSummary) -> list[str]:
    position = errors.position_m
    metres = [f"{value:.2f}" for value in (position.mean, position.median, position.p95, position.max)]
    return [str(errors.n), *metres, f"{errors.rotation_deg.mean:.2f}"]


def frames_line(report: Report) -> str:
    """What became of the messages, in one line."""
    counts = [f"{name} {count}" for name, count in report.frames.model_dump().items() if count is not None]
    verdicts = [f"{name} {count}" for name, count in report.verdicts.items() if count]
    latency = report.latency_ms
    parts = ["frames: " + ", ".join(counts)] if counts else []
    parts += ["measurements: " + ", ".join(verdicts)] if verdicts else []
    if latency.p50 is not None and latency.p99 is not None:
        parts.append(f"latency: median {latency.p50:.0f} ms, p99 {latency.p99:.0f} ms")
    return "; ".join(parts) or "no frame was localized"
