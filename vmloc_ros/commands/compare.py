"""`vmloc compare`: trains the variants of a plan, or takes trained models, and judges all on the same frames."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table as RichTable
from torch import Tensor

from vmloc_ros import __version__, files
from vmloc_ros.checkpoint import RETRIEVAL, ModelCard, load_card, load_model
from vmloc_ros.commands.compare_training import is_finished, plan_job, read_mark, train_all
from vmloc_ros.commands.evaluate import reader_options, settings_of
from vmloc_ros.commands.train import choose_recordings
from vmloc_ros.comparison import (
    RETRIEVAL_NAME,
    Judged,
    Result,
    Run,
    Scores,
    Variant,
    by_variant,
    judge,
    judge_retrieval,
    load_plan,
    stored_frames,
)
from vmloc_ros.comparison_tables import Table, all_tables, markdown
from vmloc_ros.config import ModelConfig, parse
from vmloc_ros.errors import ConfigError, VmlocError
from vmloc_ros.localizer import load_localizer
from vmloc_ros.networks.inputs_config import InputShape
from vmloc_ros.preparation import prepare, store_key
from vmloc_ros.recordings import open_any
from vmloc_ros.retrieval import Retrieval
from vmloc_ros.samples import SampleStore
from vmloc_ros.split import scored_samples, split
from vmloc_ros.training_config import TrainingConfig

SAMPLES = "samples"
JSON, MARKDOWN, FIGURE = "comparison.json", "comparison.md", "comparison.png"
GIVEN = "given"
"""The name of the frames that models are judged on which were not trained here."""
PIPED_WIDTH = 120
NOT_LEARNT = ("running_mean", "running_var", "num_batches_tracked")

FrameSets = dict[str, NDArray[np.int64]]


@dataclass(frozen=True)
class Prepared:
    """Samples of one kind, and the key that tells the kinds apart."""

    key: str
    folder: Path
    store: SampleStore


@dataclass(frozen=True)
class Entry:
    """A model to judge: its folder, how its frames are made, and why there is none (empty if there is one)."""

    variant: str
    seed: int | None
    folder: Path
    config: TrainingConfig
    failure: str = ""


class SampleFolders:
    """Prepared samples, made once for all models that see the world alike."""

    def __init__(self, data: Path, out: Path, console: Console, allow_missing: bool = False) -> None:
        self._data = data
        self._out = out
        self._console = console
        self._allow_missing = allow_missing
        self._known: dict[str, Prepared] = {}

    def of(self, config: TrainingConfig) -> Prepared:
        """The samples of a configuration. Raises as `vmloc train` does."""
        about = config.model_dump_json(include={"localizer", "data"}) + str(config.stored_size())
        if about not in self._known:
            topics, base = config.localizer.topics, config.localizer.frames.base
            opened = open_any(config.data.format, self._data, topics, config.data.options, base)
            recordings = choose_recordings(opened, config.data)
            key = store_key(config, recordings)
            folder = self._out / key
            store = prepare(config, recordings, folder, self._console, self._allow_missing)
            self._known[about] = Prepared(key, folder, store)
        return self._known[about]


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
    """Trains what is not trained yet, judges all on the same frames, writes and prints the tables; returns the report.

    Args:
        targets: one plan (a file), or folders of trained models.
        data: the recordings' folder as its publishers ship it.
        out: receives a folder per run, samples, configs, logs, comparison.json, comparison.md and comparison.png.
        only: variants of the plan to take.
        jobs: trainings at a time.
        json: a further copy of the report.
        format, recordings, options: for models: the layout of `data`, which recordings to judge on (empty: all), and
            further arguments of the reader.
        allow_missing: go on although more than 1 % of the recordings' files are missing or unusable.

    Returns:
        The report; `failed` names the runs that have no result.

    Raises:
        ConfigError: a plan or argument that cannot be; DatasetError, TrainingError: samples cannot be prepared.
    """
    console = Console(stderr=True)
    folders = SampleFolders(data, out / SAMPLES, console, allow_missing)
    if len(targets) == 1 and targets[0].is_file():
        if format is not None or recordings or options:
            raise ConfigError(
                "a plan says itself what it is judged on; --format, --recording, --option and the like are for models"
            )
        runs = load_plan(targets[0], only)
        samples = folders.of(runs[0].config)
        sets = frame_sets(runs[0].config, samples.store)
        entries = train_plan(runs, data, out, folders, jobs, console, allow_missing)
    else:
        if format is None or only:
            raise ConfigError("models need --format, and know no --only; or give one plan (a YAML file)")
        entries = model_entries(targets, format, recordings, dict(options or {}))
        samples = folders.of(entries[0].config)
        sets = {GIVEN: np.arange(len(samples.store))}
    results = judge_all(entries, folders, sets, samples.store, console)
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
    todo = []
    for run in runs:
        prepared = folders.of(run.config)
        if is_finished(run, prepared.key, out / run.name):
            console.print(f"{run.name} is trained already")
        else:
            todo.append(plan_job(run, prepared.key, prepared.folder, out / run.name, jobs))
    failures = train_all(todo, data, out, jobs, console, ["--allow-missing"] if allow_missing else [])
    return [Entry(run.variant, run.seed, out / run.name, run.config, failures.get(run.name, "")) for run in runs]


def model_entries(
    folders: Sequence[Path], format: str, recordings: Sequence[str], options: dict[str, Any]
) -> list[Entry]:
    """Trained models as entries: those of an earlier comparison by variant and seed, others named like their folders.

    Raises:
        ConfigError: two of the same name; CheckpointError: no model there.
    """
    entries: list[Entry] = []
    for folder in folders:
        mark = read_mark(folder)
        name, seed = (mark.variant, mark.config.seed) if mark is not None else (folder.resolve().name, None)
        if name == RETRIEVAL_NAME or (name, seed) in [(entry.variant, entry.seed) for entry in entries]:
            raise ConfigError(f"{folder}: the name {name!r} is taken; models are named like their folders: rename it")
        config = model_config(folder, load_card(folder), format, recordings, options)
        entries.append(Entry(name, seed, folder, config))
    return entries


def model_config(
    folder: Path, card: ModelCard, format: str, recordings: Sequence[str], options: dict[str, Any]
) -> TrainingConfig:
    """How a trained model's frames are made, as `vmloc evaluate` does, as the configuration that samples are prepared
    with."""
    values = {
        "name": card.name,
        "data": {"format": format, "train": list(recordings), "options": reader_options(folder, format, options)},
        "localizer": settings_of(folder, card, None).model_dump(),
        "network": card.network.model_dump(),
        "augmentation": {"margin": card.crop_margin},
    }
    return parse(TrainingConfig, values, str(folder))


def judge_all(
    entries: Sequence[Entry], folders: SampleFolders, sets: FrameSets, reference: SampleStore, console: Console
) -> list[Result]:
    """A result for every entry, and for the nearest training image where a model has such an index."""
    results = []
    baseline: Result | None = None
    for number, entry in enumerate(entries, 1):
        result = Result(entry.variant, entry.seed, entry.failure)
        if not entry.failure:
            console.print(f"judging {entry.folder.name} ({number} of {len(entries)})")
            try:
                store = folders.of(entry.config).store
                chosen = {name: same_frames(reference, indices, store) for name, indices in sets.items()}
                result = judge_model(entry, store, chosen)
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


def judge_model(entry: Entry, store: SampleStore, sets: FrameSets) -> Result:
    """Scores of one model. Raises CheckpointError where it cannot be loaded."""
    card, tensors = load_model(entry.folder)
    localizer = load_localizer(entry.folder, ModelConfig(path=str(entry.folder), device="auto"))
    localizer.warm_up()
    judged = {name: judge(localizer, stored_frames(store, indices)) for name, indices in sets.items()}
    seconds, best = card.training.get("seconds"), card.training.get("best_epoch")
    result = Result(
        variant=entry.variant,
        seed=entry.seed,
        parameters=learnt(tensors),
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


def learnt(tensors: Mapping[str, Tensor]) -> int:
    """How many numbers a network learns: all but the running statistics of its normalisation layers."""
    return sum(tensor.numel() for name, tensor in tensors.items() if not name.endswith(NOT_LEARNT))


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
    result = RichTable(*table.head, box=SIMPLE_HEAD, title=table.title, title_justify="left")
    for row in table.rows:
        result.add_row(*row)
    return result
