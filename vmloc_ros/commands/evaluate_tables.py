"""An evaluation's report as tables of at most 80 columns, in a terminal and in a file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from vmloc_ros.corruption import MASKED, MISSING, Levels, touched
from vmloc_ros.evaluation import SENSORS
from vmloc_ros.types import Modality, Mode

Report = Mapping[str, Any]

METHODS = {
    "RGB_DEPTH": "both",
    "RGB_ONLY": "RGB alone",
    "DEPTH_ONLY": "depth alone",
    "retrieval": "nearest image",
    "nearest_pose": "nearest pose",
}
LEVELS = {MASKED: "masked", MISSING: "missing"}


def print_evaluation(report: Report, console: Console | None = None) -> None:
    """Errors beside the baselines, what the covariances and the experts said, and what was left out."""
    console = console or Console()
    names = ", ".join(report["recordings"])
    console.print(
        f"{report['model']}: {report['frames']} frames with truth of {names}", soft_wrap=True, highlight=False
    )
    console.print(error_table(report))
    if any("nees" in entry for _, _, entry in _rows(report)):
        console.print(uncertainty_table(report))
    for line in note_lines(report):
        console.print(line, soft_wrap=True, highlight=False)


def error_table(report: Report) -> Table:
    """Median, mean and 95th percentile of position and rotation; on which share a mode is nearer than retrieval."""
    headers = ("frames", "median\nm", "mean\nm", "p95\nm", "median\ndeg", "mean\ndeg", "p95\ndeg", "beats\nimage %")
    table = _table("errors of T_map_camera; beats image: in position/in rotation", headers)
    for section, name, entry in _rows(report):
        if section:
            table.add_row(section, style="bold")
        errors = entry["errors"]
        if errors is None:
            table.add_row(name, "0", *["-"] * 7)
            continue
        numbers = [
            number(errors[what][how]) for what in ("position_m", "rotation_deg") for how in ("median", "mean", "p95")
        ]
        shares = [entry.get(key) for key in ("beats_retrieval", "beats_retrieval_rotation")]
        better = "-" if None in shares else "/".join(f"{100.0 * share:.0f}" for share in shares if share is not None)
        table.add_row(name, str(errors["n"]), *numbers, better)
    return table


def uncertainty_table(report: Report) -> Table:
    """NEES, coverage and likelihood of the covariances, and the experts' shares of the precision.

    The likelihood stands beside that of the best constant covariance of the calibration frames, and of these frames.
    """
    headers = ("NEES\n/ 6", "in\n50 %", "in\n90 %", "in\n95 %", "log-l.\nmodel", "log-l.\nconst.", "log-l.\nown c.")
    experts = ("rgb\n%", "depth\n%")
    title = "covariances: frames inside, log-likelihood; weight of the experts"
    table = _table(title, (*headers, *experts))
    for section, name, entry in _rows(report):
        if "nees" not in entry:
            continue
        if section:
            table.add_row(section, style="bold")
        coverage = [f"{100.0 * entry['coverage'][level]:.0f}" for level in ("50", "90", "95")]
        values = [entry["log_likelihood"][key] for key in ("model", "constant", "own_constant")]
        likelihood = ["-" if value is None else number(value) for value in values]
        weights = entry.get("expert_weights", {})
        shares = [f"{100.0 * weights[n]:.0f}" if n in weights else "-" for n in ("rgb", "depth")]
        table.add_row(name, number(entry["nees"]["mean"] / 6.0), *coverage, *likelihood, *shares)
    return table


def note_lines(report: Report) -> list[str]:
    """Frames without an answer, files and frames that were left out."""
    lines = []
    for name, entry in report["modes"].items():
        lines += [f"without a pose, {METHODS[name]}: {count} ({reason})" for reason, count in entry["no_pose"].items()]
    for recording, reasons in report["skipped"].items():
        lines += [f"left out, {recording}: {count} ({reason})" for reason, count in reasons.items()]
    return lines


def number(value: float) -> str:
    """Three digits after the point for small numbers, fewer for large ones."""
    digits = 3 if abs(value) < 9.9995 else 2 if abs(value) < 99.995 else 1  # where rounding adds a digit in front
    return f"{value:.{digits}f}"


def _table(title: str, headers: tuple[str, ...]) -> Table:
    table = Table("", box=SIMPLE_HEAD, title=title, title_justify="left", title_style="bold", pad_edge=False)
    table.padding = (0, 1, 0, 0)
    table.columns[0].no_wrap = True
    for header in headers:
        table.add_column(header, justify="right", no_wrap=True)
    return table


def _rows(report: Report) -> Iterator[tuple[str, str, Report]]:
    """(section's title where one begins, name, entry) of every row; what a corruption does not touch is left out."""
    conditions: Sequence[Report] = list((report.get("corruptions") or {"": report}).values())
    for index, condition in enumerate(conditions):
        levels = {Modality(name): level for name, level in condition["corrupt"].items()}
        section = _title(levels) if any(levels.values()) or len(conditions) > 1 else ""
        entries = {
            mode: entry
            for mode, entry in condition["modes"].items()
            if index == 0 or touched(levels, SENSORS[Mode(mode)])
        }
        if section:
            entries = {mode: entry for mode, entry in entries.items() if entry["errors"] is not None}
        retrieval = condition["retrieval"]
        if retrieval is not None and retrieval["errors"] is not None and (index == 0 or levels.get(Modality.RGB)):
            entries["retrieval"] = retrieval
        if index == 0 and report["nearest_pose"] is not None:
            entries["nearest_pose"] = report["nearest_pose"]
        if not entries:
            yield section, "  no answer", {"errors": None}
        indent = "  " if section else ""
        for name, entry in entries.items():
            yield section, indent + METHODS[name], entry
            section = ""


def _title(levels: Levels) -> str:
    """`rgb:1 masked`."""
    return ", ".join(f"{name.value}:{level} {LEVELS[level]}" for name, level in levels.items() if level) or "none"
