"""`vmloc error-model`: the filter's parameters for a network's errors, from drives whose truth is known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from vmloc_ros import files
from vmloc_ros.commands.fuse import read_measurements
from vmloc_ros.config import FilterConfig, parse
from vmloc_ros.error_model import ErrorModel, ErrorSeries, Estimate, errors_of, estimate
from vmloc_ros.errors import ConfigError, TrajectoryError
from vmloc_ros.heavy_tails import Weighting
from vmloc_ros.run_outputs import read_outputs
from vmloc_ros.trajectory import read_tum


def run_error_model(
    estimates: Sequence[Path],
    truths: Sequence[Path] = (),
    gap_s: float = 5.0,
    sigma_m: float | None = None,
    sigma_deg: float | None = None,
    out: Path | None = None,
    json: Path | None = None,
    config: FilterConfig | None = None,
    console: Console | None = None,
) -> ErrorModel:
    """Estimates the model, prints it, and writes the filter's parameters.

    Args:
        estimates: TUM files of `T_map_base` with six more columns of standard deviations, as `vmloc fuse` reads them,
            or folders that `vmloc localize` or `vmloc demo` wrote: the network's own poses and covariances.
        truths: a TUM file of the true `T_map_base` for each of the files, in their order. Folders have their own.
        gap_s: a longer time without an estimate parts a drive in two.
        sigma_m: standard deviation of the files' positions per axis, in place of their columns.
        sigma_deg: the same of the rotations, in degrees.
        out: a parameter file to write, in the node's layout.
        json: where to write the whole model.
        config: the filter that the parameters are for: the form of its robust weight; the defaults if None.
        console: where to print.

    Raises:
        ConfigError: not one truth for each file, a file without deviations, an option that cannot be used, or an
            estimate that the node would refuse.
        TrajectoryError, BagError: a file cannot be read, or the data is too little for a model.
        GeometryError: covariances that are not positive definite.
    """
    config = config or FilterConfig()
    weighting = Weighting(config.robust_power, config.max_robust_weight)
    model = estimate(_read_drives(estimates, truths, sigma_m, sigma_deg), gap_s, weighting)
    text = parameter_text(model)
    console = console or Console()
    _print(model, console)
    console.print(text, end="", markup=False, highlight=False, soft_wrap=True)
    if out is not None:
        files.write_text(out, text)
    if json is not None:
        files.write_json(json, model.as_dict())
    return model


def _read_drives(
    estimates: Sequence[Path], truths: Sequence[Path], sigma_m: float | None, sigma_deg: float | None
) -> list[ErrorSeries]:
    tables = [path for path in estimates if not path.is_dir()]
    if len(tables) != len(truths):
        raise ConfigError(
            f"{len(tables)} files of estimates and {len(truths)} of the truth: give --truth once for each file, in the "
            "same order (the folder of a run has its own)"
        )
    truth_of = dict(zip(tables, truths, strict=True))
    if len(truth_of) != len(tables):
        raise ConfigError("the same file of estimates is given twice")
    drives = []
    for path in estimates:
        if path.is_dir():
            statuses, _ = read_outputs(path / "outputs")
            measurements = [status.measurement for status in statuses if status.measurement is not None]
            truth = path / "truth.tum"
        else:
            if sigma_m is None or sigma_deg is None:
                _need_deviations(path)
            measurements, truth = read_measurements(path, sigma_m, sigma_deg), truth_of[path]
        try:
            drives.append(errors_of(measurements, read_tum(truth)))
        except TrajectoryError as error:
            raise TrajectoryError(f"{path}: {error}") from error
    return drives


def _need_deviations(path: Path) -> None:
    """A file without deviations claims nothing that could be judged; `read_measurements` would fill in its defaults."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise TrajectoryError(f"{path}: cannot be read ({error})") from error
    words = next((line.split() for line in lines if line.strip() and not line.lstrip().startswith("#")), [])
    if len(words) == 8:
        raise ConfigError(f"{path}: has no standard deviations to judge (columns 9 to 14); give --sigma-m, --sigma-deg")


def parameter_text(model: ErrorModel) -> str:
    """A parameter file in the layout of ROS 2, to be merged into the node's.

    Raises:
        ConfigError: a value that the node does not take.
    """
    values = model.parameters()
    parse(FilterConfig, values, "the estimated parameters")
    content: dict[str, Any] = {"/**": {"ros__parameters": {"filter": values}}}
    head = f"# Estimated by `vmloc error-model` from {model.samples} poses in {model.duration_s:.0f} s of driving.\n"
    return head + yaml.safe_dump(content, sort_keys=False)


def _print(model: ErrorModel, console: Console) -> None:
    groups = list(model.groups.values())
    table = Table("", *model.groups, box=SIMPLE_HEAD, title_justify="left")
    table.title = "errors against their covariances (95 % intervals)"
    for column in table.columns[1:]:
        column.justify = "right"
    table.add_row("NEES / dof", *(f"{group.nees_ratio:.2f}" for group in groups))
    table.add_row("offset", *(f"{100.0 * group.offset_share:.0f} %" for group in groups))
    table.add_row("Student t: v", *(_dof(group.dof) for group in groups))
    table.add_row("scale s^2", *(_interval(group.scale2) for group in groups))
    table.add_row("inflation", *(_interval(group.inflation) for group in groups))
    table.add_row("correlation, s", *(_interval(group.correlation_s) for group in groups))
    console.print(table)
    console.print(
        f"{model.samples} poses, {model.step_s:.3g} s apart, {model.duration_s:.0f} s in {model.segments} segments; "
        f"intervals from {model.blocks} blocks",
        highlight=False,
        soft_wrap=True,
    )


def _interval(part: Estimate) -> str:
    return f"{part.value:.2f} ({part.low:.2f}, {part.high:.2f})"


def _dof(part: Estimate) -> str:
    """The value 0 and infinite ends stand for the Gaussian."""
    value = f"{part.value:.1f}" if part.value > 0.0 else "Gaussian"
    if math.isinf(part.low):
        return value
    return f"{value} (> {part.low:.1f})" if math.isinf(part.high) else f"{value} ({part.low:.1f}, {part.high:.1f})"
