"""What `vmloc track` prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from vmloc_ros.odometry_drift import BEGINNING_S

GUESSES = {
    "network": "network's odometry",
    "mean_motion": f"mean motion of the first {BEGINNING_S:g} s",
    "held_velocity": "true velocity, held",
}


def print_track(report: Mapping[str, Any], console: Console | None = None) -> None:
    """Errors of the three, what became of the frames, and the drift of the network's odometry."""
    console = console or Console()
    names = ", ".join(report["recordings"])
    console.print(
        f"{report['model']}: {report['frames']} frames of {names} in {report['stretches']} stretches, "
        f"{report['mode']}; odometry: {report['odometry']}",
        soft_wrap=True,
        highlight=False,
    )
    console.print(error_table(report))
    if report.get("settled") is not None:
        console.print(settled_line(report["settled"]), soft_wrap=True, highlight=False)
    for name in ("network", "fused"):
        for reason, count in report[name]["no_pose"].items():
            console.print(f"{name}: no pose in {count} frames ({reason})", soft_wrap=True, highlight=False)
    counts = {name: count for name, count in report["counters"].items() if count}
    console.print(", ".join(f"{name} {count}" for name, count in sorted(counts.items())), soft_wrap=True)
    if report["odometry_drift"] is not None:
        console.print(drift_table(report["odometry_drift"]))


def error_table(report: Mapping[str, Any]) -> Table:
    """Position and rotation errors of T_map_base, and NEES."""
    table = _table(
        "errors of T_map_base",
        ("frames", "median\nm", "mean\nm", "p95\nm", "max\nm", "median\ndeg", "mean\ndeg", "NEES\n/ 6"),
    )
    rows = [("network alone", report["network"]), ("dead reckoning", report["dead_reckoning"])]
    rows.append(("fused", report["fused"]))
    if "undeviated" in report:
        rows.append(("fused, not deviated", report["undeviated"]["fused"]))
    for name, entry in rows:
        errors = entry["errors"]
        if errors is None:
            table.add_row(name, "0", *["-"] * 7)
            continue
        numbers = [errors["position_m"][how] for how in ("median", "mean", "p95", "max")]
        numbers += [errors["rotation_deg"][how] for how in ("median", "mean")]
        nees = f"{entry['nees']['mean'] / 6.0:.2f}" if "nees" in entry else "-"
        table.add_row(name, str(errors["n"]), *(f"{value:.3f}" for value in numbers), nees)
    return table


def settled_line(settled: Mapping[str, Any]) -> str:
    """How far a start that was off still shows."""
    if settled["ratio"] is None:
        return f"no stretch has a fused pose after {settled['after_frames']} frames"
    one, other = settled["deviated"], settled["undeviated"]
    parts = []
    for name, unit in (("position_m", "m"), ("rotation_deg", "deg")):
        ratio = settled["ratio"][name]
        times = "" if ratio is None else f" ({ratio:.2f} times)"
        parts.append(f"{one[name]['mean']:.3f} {unit} against {other[name]['mean']:.3f} {unit} undeviated{times}")
    return f"fused, after {settled['after_frames']} frames: {'; '.join(parts)}"


def drift_table(drift: Mapping[str, Any]) -> Table:
    """Percent and degrees per metre by length of segment, and over all."""
    lengths = [entry["length_m"] for entry in drift["network"]["by_length"]]
    title = "drift of odometry: translation % over rotation deg/m, by length of segment in metres (VLocNet, Table III)"
    table = _table(title, [*(f"{length:.4g}" for length in lengths), "all"])
    for key, name in GUESSES.items():
        entries = [*drift[key]["by_length"], drift[key]]
        table.add_row(name, *(_drift_cell(entry) for entry in entries))
    return table


def _drift_cell(entry: Mapping[str, Any]) -> str:
    if entry["translation_percent"] is None:
        return "-"
    percent, degrees = entry["translation_percent"], entry["rotation_deg_per_m"]
    return f"{percent:.{1 if percent < 100.0 else 0}f}\n{degrees:.{2 if degrees < 10.0 else 1}f}"


def _table(title: str, headers: Sequence[str]) -> Table:
    table = Table("", box=SIMPLE_HEAD, title=title, title_justify="left", padding=0)
    table.columns[0].no_wrap = True
    for header in headers:
        table.add_column(header, justify="right")
    return table
