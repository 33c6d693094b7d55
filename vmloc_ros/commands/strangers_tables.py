"""What a model said to strangers, as a table of at most 80 columns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from vmloc_ros.commands.evaluate_tables import METHODS

Report = Mapping[str, Any]

HEADERS = ("frames", "refused\ncamera", "refused\nother", "poses", "false", "fused\nknown", "moved\nm", "fused\nlost")
NAME_WIDTH = 22
REASONS = 3
"""So many reasons are printed of each section; the report has all."""


def print_strangers(report: Report, console: Console | None = None) -> None:
    """The counts by source, camera and mode, the commonest reasons, and the sums."""
    console = console or Console()
    console.print(f"{report['model']} ({report['architecture']})", soft_wrap=True, highlight=False)
    console.print(strangers_table(report))
    for line in (*reason_lines(report), *total_lines(report)):
        console.print(line, soft_wrap=True, highlight=False)


def strangers_table(report: Report) -> Table:
    """One row for each source, camera and mode."""
    title = "poses where none can be known; fused by a filter that is localized, or lost"
    table = Table("", box=SIMPLE_HEAD, title=title, title_justify="left", pad_edge=False, padding=0)
    table.columns[0].width, table.columns[0].overflow = NAME_WIDTH, "fold"
    for header in HEADERS:
        table.add_column(header, justify="right", no_wrap=True)
    section = ""
    for row in report["rows"]:
        name = section_of(row)
        if name != section:
            table.add_section()
            table.add_row(name, style="bold")
            section = name
        refused = row["frames"] - row["claimed"] - row["refused_by_camera"]
        counts = (row["frames"], row["refused_by_camera"], refused, row["claimed"], row["false"], row["fused"])
        moved, lost = f"{row['moved_m']:.2f}", str(row["fused_from_nothing"])
        table.add_row(f"  {METHODS[row['mode']]}", *map(str, counts), moved, lost)
    return table


def section_of(row: Mapping[str, Any]) -> str:
    """What is shown, how, and with which camera."""
    words = [row["source"]]
    if row["kind"] not in (row["source"], "other place"):
        words.append(row["kind"])
    return ", ".join(words) + ("" if row["kind"] != "other place" else f", {row['camera']}")


def reason_lines(report: Report) -> list[str]:
    """Why the frames of each section were refused, the commonest reason first."""
    counts: dict[str, dict[str, dict[str, int]]] = {}
    for row in report["rows"]:
        for reason, count in row["reasons"].items():
            counts.setdefault(section_of(row), {}).setdefault(reason, {})[METHODS[row["mode"]]] = count
    lines = []
    for section, reasons in counts.items():
        commonest = sorted(reasons.items(), key=lambda item: -sum(item[1].values()))
        for reason, modes in commonest[:REASONS]:
            parts = ", ".join(f"{mode} {count}" for mode, count in modes.items())
            lines.append(f"refused, {section}: {parts}: {reason}")
    return lines


def total_lines(report: Report) -> list[str]:
    """How much of all that should be refused was not."""
    return [
        f"{METHODS[mode]}: of {entry['frames']} frames in the model's camera {entry['false']} poses are false, "
        f"{entry['fused']} would be fused ({100.0 * entry['fused'] / entry['frames']:.1f} %)"
        for mode, entry in report["totals"].items()
    ]
