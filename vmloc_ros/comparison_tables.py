"""The tables of a comparison, as rows of text: for the terminal and for Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vmloc_ros.comparison import CORRUPTIONS, INTACT, NUMBERS, Across, Variant, across
from vmloc_ros.types import Mode

MODE_NAMES = {Mode.RGB_DEPTH.value: "both", Mode.RGB_ONLY.value: "RGB alone", Mode.DEPTH_ONLY.value: "depth alone"}
NOT_MEASURED = "-"
ERRORS = {"mean_m": "mean (m)", "mean_deg": "mean (deg)", "median_m": "median (m)", "median_deg": "median (deg)"}
FUSED = {"fused_m": "fused (m)", "fused_deg": "fused (deg)", "fused_nees": "fused NEES / 6"}
NO_POSE = "no pose"
COSTS = ("frame (ms)", "params (M)", "training (s)")
FORMATS = {
    **dict.fromkeys(("mean_m", "median_m", "fused_m"), "{:.3f}"),
    "no_pose": "{:.1%}",
    **dict.fromkeys(("mean_deg", "median_deg", "fused_deg", "nees", "fused_nees"), "{:.2f}"),
}


@dataclass(frozen=True)
class Table:
    """A title, column heads, and rows of the same length."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def shown(value: Across | None, form: str) -> str:
    """`1.23 ± 0.05` over two or more seeds, `1.23` of one, `-` of none."""
    if value is None:
        return NOT_MEASURED
    text = form.format(value.mean)
    return text if value.spread is None else f"{text} ± {form.format(value.spread)}"


def seeds(variant: Variant) -> str:
    """`1, 2, 3`; `failed` where none is left."""
    if variant.results and not variant.finished:
        return "failed"
    return ", ".join(NOT_MEASURED if result.seed is None else str(result.seed) for result in variant.finished)


def error_table(variants: Sequence[Variant], frames: str, count: int, costs: bool = True) -> Table:
    """Errors of intact frames by variant and mode, with and without the filter, and what a variant costs; one that
    failed keeps its row.

    Args:
        costs: whether the columns of cost are there.
    """
    rows: list[tuple[str, ...]] = []
    names = ("no_pose", *ERRORS, "nees", *FUSED)
    for variant in variants:
        first, cost = True, cost_cells(variant) if costs else ()
        for mode in MODE_NAMES:
            numbers = {name: variant.number(frames, mode, INTACT, name) for name in NUMBERS}
            if all(value is None for value in numbers.values()):
                continue
            cells = [shown(numbers[name], FORMATS[name]) for name in names]
            about = (variant.name, seeds(variant)) if first else ("", "")
            driven = variant.odometry(frames, mode) or NOT_MEASURED
            rows.append((*about, MODE_NAMES[mode], *cells, driven, *(cost if first else [""] * len(cost))))
            first = False
        if first:
            rows.append((variant.name, seeds(variant), *[NOT_MEASURED] * (len(names) + 2), *cost))
    head = ("variant", "seeds", "sensors", NO_POSE, *ERRORS.values(), "NEES / 6", *FUSED.values(), "odometry")
    return Table(
        f"Errors of T_map_camera on the {count} {frames} frames, the network alone (mean, median) and fused with the "
        "filter (mean); ±: deviation over seeds",
        (*head, *(COSTS if costs else ())),
        tuple(rows),
    )


def cost_cells(variant: Variant) -> tuple[str, ...]:
    """Milliseconds of one frame, millions of parameters, seconds of training."""
    parameters = across(result.parameters for result in variant.finished)
    return (
        shown(across(result.latency_ms for result in variant.finished), "{:.1f}"),
        NOT_MEASURED if parameters is None else f"{parameters.mean / 1e6:.2f}",
        shown(across(result.training_s for result in variant.finished), "{:.0f}"),
    )


def corruption_table(variants: Sequence[Variant], frames: str) -> Table:
    """Table 4: errors by corruption with all the sensors that a variant has."""
    rows: list[tuple[str, ...]] = []
    for variant in variants:
        modes = [mode for mode in MODE_NAMES if variant.number(frames, mode, INTACT, "mean_m") is not None]
        for corruption in CORRUPTIONS:
            names = ("no_pose", *ERRORS)
            cells = [shown(variant.number(frames, modes[0], corruption, n), FORMATS[n]) for n in names] if modes else []
            if any(cell != NOT_MEASURED for cell in cells):
                rows.append((variant.name if corruption == INTACT else "", corruption, *cells))
    head = ("variant", "corruption", NO_POSE, *ERRORS.values())
    return Table(
        "Corrupted input, all sensors of the variant (1: half of the shorter side masked, 2: missing)",
        head,
        tuple(rows),
    )


def failure_table(variants: Sequence[Variant]) -> Table:
    """What failed, and why."""
    failed = [result for variant in variants for result in variant.results if result.failure]
    rows = [(r.variant, NOT_MEASURED if r.seed is None else str(r.seed), r.failure) for r in failed]
    return Table("Failed", ("variant", "seed", "reason"), tuple(rows))


def all_tables(variants: Sequence[Variant], counts: dict[str, int]) -> list[Table]:
    """Every table that has a row.

    Args:
        counts: frames by set; the first set is the one that corruptions are shown of.
    """
    tables = [error_table(variants, name, count, place == 0) for place, (name, count) in enumerate(counts.items())]
    tables += [corruption_table(variants, next(iter(counts)))] if counts else []
    tables.append(failure_table(variants))
    return [table for table in tables if table.rows]


def markdown(tables: Sequence[Table]) -> str:
    """The tables as Markdown; a bar inside a cell is escaped."""
    parts = []
    for table in tables:
        lines = [table.head, tuple("---" for _ in table.head), *table.rows]
        body = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
        parts.append(f"### {table.title}\n\n{body}\n")
    return "\n".join(parts)
