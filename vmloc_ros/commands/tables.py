"""A report as a table in the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from vmloc_ros.report import ErrorSummary, Report

MISSING = {"rgb": "no camera", "depth": "no depth", "rgb+depth": "neither"}


def print_report(report: Report, console: Console | None = None) -> None:
    """Errors of the whole run and inside the outages, and what became of the frames."""
    console = console or Console()
    table = Table("", "poses", "mean", "median", "p95", "max", title="errors against the truth", title_justify="left")
    rows = (
        ("network, frame by frame", report.network),
        ("nearest training image", report.retrieval),
        ("odometry alone", report.odometry),
        ("fused", report.fused),
        ("fused, live at every odometry", report.fused_live),
    )
    for name, errors in rows:
        if errors is not None:
            table.add_row(name, str(errors.n), *_cells(errors), style="bold" if name == "fused" else "")
    if any(errors is not None for _, errors in rows):
        for outage in report.outages:
            span = f"{outage.from_s:.0f}-{outage.to_s:.0f} s, {MISSING.get(outage.missing, outage.missing)}"
            for name, errors in (("odometry", outage.odometry), ("fused", outage.fused)):
                if errors is not None:
                    table.add_row(f"{span}: {name}", str(errors.n), *_cells(errors))
        console.print(table)
    console.print(frames_line(report))


def _cells(errors: ErrorSummary) -> list[str]:
    position, rotation = errors.position_m, errors.rotation_deg
    return [f"{getattr(position, w):.2f} m {getattr(rotation, w):.1f} deg" for w in ("mean", "median", "p95", "max")]


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
