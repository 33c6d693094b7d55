"""`vmloc evaluate`: the network alone, per modality mode and corruption, beside the retrieval baseline."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from vmloc_ros import files
from vmloc_ros.assembly import labelled_frames
from vmloc_ros.checkpoint import RETRIEVAL
from vmloc_ros.config import LocalizerConfig, ModelConfig, TopicNames
from vmloc_ros.datasets.base import Recording
from vmloc_ros.errors import ConfigError
from vmloc_ros.evaluation import Evaluation, evaluate, frame_config, modes_for, parse_corruption
from vmloc_ros.localizer import load_localizer
from vmloc_ros.recordings import open_any
from vmloc_ros.retrieval import Retrieval
from vmloc_ros.run_log import trajectory_of
from vmloc_ros.samples import Labelled
from vmloc_ros.trajectory import write_tum


def run_evaluate(
    model: Path,
    source: Path,
    format: str,
    modalities: Sequence[str] = (),
    corrupt: Sequence[str] = (),
    json: Path | None = None,
    recordings: Sequence[str] = (),
    options: dict[str, Any] | None = None,
    device: str = "auto",
    out: Path | None = None,
) -> dict[str, Any]:
    """Evaluates a model on recordings and prints a table; returns the report.

    Args:
        model: its folder.
        source, format: the recordings, as for `vmloc train`.
        modalities: which sensors are there (`rgb`, `depth`); empty: all that the model has experts for.
        corrupt: `rgb:1` (masked), `depth:2` (missing), as in the paper's Table 4.
        json: where the report is written.
        recordings: names; empty: all.
        options: further arguments of the dataset's reader.
        out: folder that receives `report.json`, trajectories T_map_camera (TUM) of every mode, and figures.

    Raises:
        CheckpointError, ConfigError, DatasetError: with the file or the argument.
    """
    console = Console(stderr=True)
    levels = parse_corruption(corrupt)
    localizer = load_localizer(model, ModelConfig(path=str(model), device=device))
    if localizer.fallback:
        console.print(localizer.fallback)
    modes = modes_for(localizer.card, list(modalities) or list(localizer.card.network.modalities))
    opened = open_any(format, source, TopicNames(), options or {})
    chosen = [recording for recording in opened if not recordings or recording.name in recordings]
    unknown = sorted(set(recordings) - {recording.name for recording in opened})
    if unknown:
        names = ", ".join(recording.name for recording in opened)
        raise ConfigError(f"there is no recording {unknown[0]!r} in {source}; there are {names}")
    retrieval = Retrieval(model / RETRIEVAL) if (model / RETRIEVAL).is_file() else None
    localizer.warm_up()
    with Progress(console=console) as bar:
        task = bar.add_task("evaluating", total=None)
        frames = _frames(chosen, frame_config(localizer.card))
        result = evaluate(localizer, frames, modes, levels, retrieval, lambda: bar.advance(task))
    report = {
        "model": localizer.card.name,
        "sha256": localizer.card.sha256,
        "recordings": [recording.name for recording in chosen],
        "corrupt": {modality.value: level for modality, level in levels.items()},
        "skipped": {recording.name: dict(recording.skipped) for recording in chosen if recording.skipped},
        **result.report(),
    }
    Console().print(_table(result))
    if json is not None:
        files.write_json(json, report)
        console.print(f"wrote {json}")
    if out is not None:
        write_evaluation(out, result, report)
        console.print(f"wrote {out}: report.json, trajectories, trajectories.png, errors.png")
    return report


def write_evaluation(out: Path, result: Evaluation, report: dict[str, Any]) -> None:
    """Writes the report, `truth.tum`, a TUM file per mode and for the retrieval baseline, and the figures."""
    from vmloc_ros.plots_evaluation import plot_evaluation

    answers = {mode.value.lower(): answers for mode, answers in result.modes.items()}
    if result.retrieval is not None:
        answers["retrieval"] = result.retrieval
    truths = {stamp: T for a in answers.values() for stamp, T in zip(a.stamps_ns, a.truths, strict=True)}
    truth = trajectory_of(truths.items())
    estimates = {
        name: trajectory_of(zip(a.stamps_ns, a.estimates, strict=True)) for name, a in answers.items() if a.estimates
    }
    files.write_json(out / "report.json", report)
    for name, trajectory in {"truth": truth, **estimates}.items():
        if len(trajectory):
            write_tum(out / f"{name}.tum", trajectory)
    if estimates:
        plot_evaluation(out, truth, estimates)


def _frames(recordings: Sequence[Recording], config: LocalizerConfig) -> Iterator[Labelled]:
    for recording in recordings:
        for item in labelled_frames(recording, config):
            yield item.frame, item.T_map_camera, item.recording


def _table(result: Evaluation) -> Table:
    table = Table("", "frames", "mean", "median", "p95", "NEES / 6", "beats retrieval", title="errors of T_map_camera")
    report = result.report()
    rows = list(report["modes"].items())
    if report["retrieval"] is not None:
        rows.append(("retrieval", report["retrieval"]))
    for name, entry in rows:
        error = entry["errors"]
        if error is None:
            table.add_row(name, "0", "-", "-", "-", "-", "-")
            continue
        cells = [
            f"{error['position_m'][what]:.3f} m {error['rotation_deg'][what]:.2f} deg"
            for what in ("mean", "median", "p95")
        ]
        nees = f"{entry['nees']['mean'] / 6.0:.2f}" if "nees" in entry else "-"
        share = entry.get("beats_retrieval")
        table.add_row(name, str(error["n"]), *cells, nees, "-" if share is None else f"{100 * share:.0f} %")
    return table
