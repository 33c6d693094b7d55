"""`vmloc compare`: trains what is not trained, takes what is, and judges all on the same frames in one table."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table as RichTable

from vmloc_ros import __version__, files
from vmloc_ros.checkpoint import RETRIEVAL, ModelCard, load_card
from vmloc_ros.commands.compare_targets import (
    Entry,
    Prepared,
    SampleFolders,
    model_entries,
    options_for_models,
    read_targets,
)
from vmloc_ros.commands.compare_training import is_finished, plan_job, train_all
from vmloc_ros.commands.drives import drives_of, filter_of, in_order
from vmloc_ros.comparison import (
    INTACT,
    RETRIEVAL_NAME,
    Judged,
    Result,
    Run,
    Scores,
    Variant,
    by_variant,
    judge,
    judge_fused,
    judge_retrieval,
    stored_frames,
)
from vmloc_ros.comparison_tables import Table, all_tables, markdown
from vmloc_ros.config import ModelConfig
from vmloc_ros.errors import CheckpointError, ConfigError, VmlocError
from vmloc_ros.following import Drive
from vmloc_ros.localizer import load_localizer
from vmloc_ros.networks.build import build_network
from vmloc_ros.networks.inputs_config import InputShape
from vmloc_ros.retrieval import Retrieval
from vmloc_ros.samples import SampleStore
from vmloc_ros.split import scored_samples, split
from vmloc_ros.training_config import TrainingConfig

SAMPLES = "samples"
JSON, MARKDOWN, FIGURE = "comparison.json", "comparison.md", "comparison.png"
GIVEN = "given"
"""The name of the frames that models are judged on which were not trained here."""
PIPED_WIDTH = 160

FrameSets = dict[str, NDArray[np.int64]]


def run_compare(
    targets: Sequence[Path],
    data: Path,
    out: Path,
    only: Sequence[str] = (),
    jobs: int = 1,
    json: Path | None = None,
    format: str | None = None,
    recordings: Sequence[str] = (),
    options: Mapping[str, Any] | None = None,
    allow_missing: bool = False,
) -> dict[str, Any]:
    """Trains what is not trained yet, judges all on the same frames, writes and prints the table; returns the report.

    Args:
        targets: plans and training configurations (files), and folders of trained models, in any mixture.
        data: the recordings' folder as its publishers ship it.
        out: receives a folder per run, samples, configs, logs, comparison.json, comparison.md and comparison.png.
        only: variants of the plans to take.
        jobs: trainings at a time.
        json: a further copy of the report.
        format, recordings, options: for models alone: the layout of `data`, which recordings to judge on (empty: all),
            and further arguments of the reader. Beside a plan or a configuration models are judged on its frames.
        allow_missing: go on although more than 1 % of the recordings' files are missing or unusable.

    Returns:
        The report; `failed` names the runs that have no result.

    Raises:
        ConfigError: a target or argument that cannot be; DatasetError, TrainingError: samples cannot be prepared.
    """
    console = Console(stderr=True)
    folders = SampleFolders(data, out / SAMPLES, console, allow_missing)
    chosen = read_targets(targets, only)
    if chosen.runs:
        if format is not None or recordings or options:
            raise ConfigError(
                "a plan or a configuration says itself what it is judged on; --format, --recording, --option and the "
                "like are for models alone"
            )
        reference = chosen.runs[0].config
        samples = folders.of(reference)
        sets = frame_sets(reference, samples.store)
        judged = sorted({samples.store.recordings[n] for i in sets.values() for n in samples.store.recording_of[i]})
        layout, shared = reference.data.format, options_for_models(reference)
        models = model_entries(chosen.models, layout, judged, shared, chosen.runs)
        entries = [*train_plan(chosen.runs, data, out, folders, jobs, console, allow_missing), *models]
    else:
        if format is None or only:
            raise ConfigError("models need --format, and know no --only; or give a plan or a configuration (YAML)")
        entries = model_entries(chosen.models, format, recordings, dict(options or {}))
        known = next((entry.config for entry in entries if entry.config is not None), None)
        if known is None:
            raise CheckpointError(entries[0].failure if entries else "there is no model to compare")
        samples = folders.of(known)
        sets = {GIVEN: np.arange(len(samples.store))}
    results = judge_all(entries, folders, sets, samples, console)
    report = report_of(targets, results, sets, samples.store)
    write_comparison(out, report, by_variant(results), {name: len(indices) for name, indices in sets.items()})
    if json is not None:
        files.write_json(json, report)
    written = [name for name in (JSON, MARKDOWN, FIGURE) if (out / name).is_file()]
    console.print(f"wrote {', '.join(written)} in {out}", soft_wrap=True)
    return report


def frame_sets(config: TrainingConfig, store: SampleStore) -> FrameSets:
    """The samples that every variant of a plan is judged on, by name; the first set is the one of the figure.

    Test frames come first where the plan names some: nothing chose its weights by them.

    Raises:
        ConfigError: the plan trains on everything.
    """
    both = InputShape()
    _, validation = split(store, config.data, both)
    sets = {"test": scored_samples(store, config.data, both), "validation": validation}
    sets = {name: indices for name, indices in sets.items() if len(indices)}
    if not sets:
        raise ConfigError("no frame is left to judge on: name recordings in data.validation or blocks in data.hold_out")
    return sets


def train_plan(
    runs: Sequence[Run],
    data: Path,
    out: Path,
    folders: SampleFolders,
    jobs: int,
    console: Console,
    allow_missing: bool = False,
) -> list[Entry]:
    """Trains what is not finished; every run becomes an entry, those that failed with their reason."""
    todo, unprepared = [], dict[str, str]()
    for run in runs:
        try:
            prepared = folders.of(run.config)
        except VmlocError as error:
            unprepared[run.name] = str(error)
            console.print(f"FAILED {run.name}: {error}", soft_wrap=True)
            continue
        if is_finished(run, prepared.key, out / run.name):
            console.print(f"{run.name} is trained already")
        else:
            todo.append(plan_job(run, prepared.key, prepared.folder, out / run.name, jobs))
    failures = unprepared | train_all(todo, data, out, jobs, console, ["--allow-missing"] if allow_missing else [])
    return [Entry(run.variant, run.seed, out / run.name, run.config, failures.get(run.name, "")) for run in runs]


def judge_all(
    entries: Sequence[Entry], folders: SampleFolders, sets: FrameSets, reference: Prepared, console: Console
) -> list[Result]:
    """A result for every entry, and for the nearest training image where a model has such an index."""
    results = []
    baseline: Result | None = None
    everything = np.unique(np.concatenate(list(sets.values())))
    drives = drives_of(reference.store, everything, reference.recordings)
    for number, entry in enumerate(entries, 1):
        result = Result(entry.variant, entry.seed, entry.failure)
        if not entry.failure and entry.config is not None:
            console.print(f"judging {entry.folder.name} ({number} of {len(entries)})")
            try:
                store = folders.of(entry.config).store
                chosen = {name: same_frames(reference.store, indices, store) for name, indices in sets.items()}
                result = judge_model(entry, store, chosen, drives)
                if baseline is None and (entry.folder / RETRIEVAL).is_file():
                    retrieval = Retrieval(entry.folder / RETRIEVAL)
                    judged = {n: judge_retrieval(retrieval, stored_frames(store, i)) for n, i in chosen.items()}
                    baseline = _scored(Result(RETRIEVAL_NAME), judged)
            except VmlocError as error:
                result = replace(result, failure=str(error))
        results.append(result)
    return [*results, *([baseline] if baseline is not None else [])]


def same_frames(reference: SampleStore, indices: NDArray[np.int64], store: SampleStore) -> NDArray[np.int64]:
    """Where the frames of one store lie in another, by recording and stamp; frames that it lacks are left out."""
    if store is reference:
        return indices
    places = {store.name(index): index for index in range(len(store))}
    names = [reference.name(int(index)) for index in indices]
    return np.array([places[name] for name in names if name in places], dtype=np.int64)


def judge_model(entry: Entry, store: SampleStore, sets: FrameSets, drives: Mapping[str, Drive]) -> Result:
    """Scores of one model, alone and with the filter. Raises CheckpointError where it cannot be loaded.

    A network that takes the previous pose is given its own last answer where it is alone, and the filter's pose where
    there is a filter (unless its configuration says otherwise). The answers of a pose graph, which is nothing without
    odometry, are those that the filter was given.
    """
    card = load_card(entry.folder)
    assert entry.config is not None
    asked = entry.config.localizer.model
    settings = entry.config.localizer.model_copy(update={"filter": filter_of(entry.folder)})
    alone = "own" if asked.previous_pose == "filter" else asked.previous_pose
    localizer = load_localizer(entry.folder, ModelConfig(path=str(entry.folder), previous_pose=alone))
    told = load_localizer(entry.folder, ModelConfig(path=str(entry.folder), previous_pose=asked.previous_pose))
    localizer.warm_up()
    judged = {}
    for name, indices in sets.items():
        ordered = in_order(store, indices)
        there = {store.recordings[number]: drives[store.recordings[number]] for number in store.recording_of[ordered]}
        judged[name] = replace(
            judge(localizer, stored_frames(store, ordered)),
            fused=judge_fused(told, partial(stored_frames, store, ordered), there, settings),
        )
        if card.pose_graph is not None:
            for mode, following in judged[name].fused.items():
                judged[name].answers[mode][INTACT] = following.network(camera=True)
    seconds, best = card.training.get("seconds"), card.training.get("best_epoch")
    result = Result(
        variant=entry.variant,
        seed=entry.seed,
        parameters=learnt(card),
        training_s=float(seconds) if isinstance(seconds, (int, float)) else None,
        best_epoch=best if isinstance(best, int) else None,
        threads=torch.get_num_threads(),
        device=localizer.device,
        sha256=card.sha256,
    )
    return _scored(result, judged)


def _scored(result: Result, judged: Mapping[str, Judged]) -> Result:
    scores: Scores = {name: one.scores() for name, one in judged.items()}
    latencies_ms = [ms for one in judged.values() for ms in one.latencies_ms]
    return replace(result, scores=scores, latency_ms=statistics.median(latencies_ms) if latencies_ms else None)


def learnt(card: ModelCard) -> int:
    """How many numbers a network learns: neither statistics nor what it keeps of the training images."""
    return sum(parameter.numel() for parameter in build_network(card.network).parameters())


def report_of(
    targets: Sequence[Path], results: Sequence[Result], sets: FrameSets, store: SampleStore
) -> dict[str, Any]:
    """comparison.json: what was judged on what, every run, the variants over their seeds, and what failed."""
    frames = {
        name: {
            "frames": len(indices),
            "recordings": sorted({store.recordings[int(i)] for i in store.recording_of[indices]}),
        }
        for name, indices in sets.items()
    }
    return {
        "compared": [target.name for target in targets],
        "judged_on": frames,
        "runs": [result.as_dict() for result in results],
        "variants": [variant.as_dict() for variant in by_variant(results)],
        "failed": [result.name for result in results if result.failure],
        "vmloc_ros": __version__,
    }


def write_comparison(out: Path, report: Mapping[str, Any], variants: Sequence[Variant], counts: dict[str, int]) -> None:
    """Writes comparison.json, comparison.md and, where any run has finished, comparison.png; prints the tables."""
    tables = all_tables(variants, counts)
    files.write_json(out / JSON, report)
    files.write_text(out / MARKDOWN, markdown(tables))
    (out / FIGURE).unlink(missing_ok=True)  # of an earlier comparison
    console = Console()
    if not console.is_terminal:
        console = Console(width=PIPED_WIDTH)
    for table in tables:
        console.print(_rich(table))
    if any(variant.finished for variant in variants):
        from vmloc_ros.plots_comparison import plot_comparison

        plot_comparison(out / FIGURE, variants, next(iter(counts)))


def _rich(table: Table) -> RichTable:
    result = RichTable(*table.head, box=SIMPLE_HEAD, title=table.title, title_justify="left", padding=(0, 1, 0, 0))
    result.columns[0].no_wrap = True
    for row in table.rows:
        result.add_row(*row)
    return result
