"""What `vmloc scene-view` prints, and writes into its figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

NAMES = {"rgb_depth": "both", "rgb_only": "RGB alone", "depth_only": "depth alone"}
SHORT = {"rgb_depth": "both", "rgb_only": "RGB", "depth_only": "depth"}
POSE_COLUMNS = (
    "agree\n%", "resi-\ndual", "error\nm", "error\ndeg", "sigma\nm", "sigma\ndeg", "net\nms", "solver\nms"
)  # fmt: skip
CELL_COLUMNS = ("cells", "re-\nturns", "stated\nm", "off\nm", "near\ntruth %", "weight\nRGB", "weight\ndepth")


def print_views(report: Mapping[str, Any], console: Console | None = None) -> None:
    """A row for each frame and set of modalities, and below why there is no pose."""
    console = console or Console()
    console.print(f"{report['model']}: frames of {report['recording']}", soft_wrap=True, highlight=False)
    poses, cells = _table("poses", POSE_COLUMNS), _table("their cells, medians", CELL_COLUMNS)
    for entry in report["frames"]:
        for place, (mode, numbers) in enumerate(entry["modes"].items()):
            which = [str(entry["number"]), f"{entry['seconds']:.1f}"] if place == 0 else ["", ""]
            poses.add_row(*which, SHORT[mode], *_pose_cells(numbers))
            cells.add_row(*which, SHORT[mode], *_cell_cells(numbers))
    for table in (poses, cells):
        if table.row_count:
            console.print(table)
    console.print(
        "agree: cells that speak for the pose; residual: 1 = they scatter as the network states; error: of the pose "
        "that was found, whether it is believed or not; sigma: of one that is; stated, off: how far from the truth "
        "points are by the network's word, and really",
        soft_wrap=True,
        highlight=False,
    )
    for where, reason in refusals(report):
        console.print(f"{where}: no pose: {reason}", soft_wrap=True, highlight=False)


def refusals(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Which frames, and sets of modalities, get no pose, and why."""
    found = []
    for entry in report["frames"]:
        if "reason" in entry:
            found.append((f"frame {entry['number']}", entry["reason"]))
        for mode, numbers in entry["modes"].items():
            if "reason" in numbers:
                found.append((f"frame {entry['number']}, {NAMES[mode]}", numbers["reason"]))
    return found


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(
        "frame", "at\ns", "", *columns, box=SIMPLE_HEAD, title=title, title_justify="left", collapse_padding=True
    )
    for column in (table.columns[1], *table.columns[3:]):
        column.justify = "right"
    return table


def _pose_cells(numbers: Mapping[str, Any]) -> list[str]:
    """What is not there is a dash."""
    digits = (("residual", 2), ("position_m", 3), ("rotation_deg", 2), ("sigma_m", 3), ("sigma_deg", 1))
    times = (("network_ms", 0), ("solver_ms", 1))
    return [f"{100.0 * numbers['share']:.0f}", *(_number(numbers, *column) for column in (*digits, *times))]


def _cell_cells(numbers: Mapping[str, Any]) -> list[str]:
    weights = numbers["expert_weights"]
    return [
        str(numbers["cells"]),
        str(numbers["returns"]),
        f"{numbers['stated_m']:.3f}",
        f"{numbers['apart_m']:.3f}",
        f"{100.0 * numbers['share_near_truth']:.0f}",
        _number(weights, "rgb", 2),
        _number(weights, "depth", 2),
    ]


def _number(numbers: Mapping[str, Any], name: str, digits: int) -> str:
    return f"{numbers[name]:.{digits}f}" if name in numbers else "-"


def notes_of(modes: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The numbers of a frame's sets of modalities in words, for its figure; short lines."""
    lines = list[str]()
    for mode, numbers in modes.items():
        agree, agree_true = (f"{100 * numbers[name]:.0f} %" for name in ("share", "share_near_truth"))
        weights = ", ".join(f"{name} {weight:.2f}" for name, weight in numbers["expert_weights"].items())
        lines += [
            f"{NAMES[mode]}: {numbers['cells']} cells, {numbers['returns']} with a return",
            f"   {agree} speak for the pose, {agree_true} are near the truth",
            f"   precision: {weights}; residual {_number(numbers, 'residual', 2)}",
            f"   network {numbers['network_ms']:.1f} ms, solver {numbers['solver_ms']:.1f} ms",
        ]
    return lines
