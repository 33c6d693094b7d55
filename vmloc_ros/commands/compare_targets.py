"""What `vmloc compare` compares: plans, training configurations and trained models, and the samples of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from vmloc_ros.checkpoint import ModelCard, load_card
from vmloc_ros.commands.compare_training import read_mark
from vmloc_ros.commands.evaluate import reader_options, settings_of
from vmloc_ros.commands.train import choose_recordings
from vmloc_ros.comparison import FRAME_FREE, NAME, RETRIEVAL_NAME, Run, agree_on_data, load_plan
from vmloc_ros.config import parse, read_yaml
from vmloc_ros.datasets.base import Recording
from vmloc_ros.errors import CheckpointError, ConfigError
from vmloc_ros.preparation import prepare, store_key
from vmloc_ros.recordings import open_any
from vmloc_ros.samples import SampleStore
from vmloc_ros.training_config import TrainingConfig, load_training_config

PLAN_KEY = "variants"
"""Only a plan has it, and every plan does."""


@dataclass(frozen=True)
class Prepared:
    """Samples of one kind, the key that tells the kinds apart, and the recordings that they are of."""

    key: str
    folder: Path
    store: SampleStore
    recordings: tuple[Recording, ...]


@dataclass(frozen=True)
class Entry:
    """A model to judge: its folder, how its frames are made (None: not known), and why there is none (empty if there
    is one)."""

    variant: str
    seed: int | None
    folder: Path
    config: TrainingConfig | None
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
            self._known[about] = Prepared(key, folder, store, tuple(recordings))
        return self._known[about]


@dataclass(frozen=True)
class Targets:
    """What is to be trained, and the folders of what is trained already."""

    runs: tuple[Run, ...]
    models: tuple[Path, ...]


def read_targets(targets: Sequence[Path], only: Sequence[str]) -> Targets:
    """Sorts out the targets: a file with `variants` is a plan, any other file a training configuration, the rest are
    folders of models.

    Args:
        only: of the plans' variants; empty: all.

    Raises:
        ConfigError: a file that is neither, a name that is given twice, or runs that would be judged on other frames.
    """
    runs: list[Run] = []
    for target in targets:
        if target.suffix in (".yaml", ".yml") and not target.is_file():
            raise ConfigError(f"{target}: there is no such plan or training configuration")
    files = [target for target in targets if target.is_file()]
    for path in files:
        if PLAN_KEY in read_yaml(path):
            runs += load_plan(path, only)
        else:
            config = load_training_config(path)
            if not NAME.fullmatch(path.stem) or path.stem == RETRIEVAL_NAME:
                raise ConfigError(f"{path}: a system cannot be named {path.stem!r}; rename the file")
            runs.append(Run(path.stem, config.seed, config))
    for number, run in enumerate(runs):
        if run.name in [other.name for other in runs[:number]]:
            raise ConfigError(f"{run.name} is given twice; a variant or a file needs another name")
        agree_on_data(runs[0], run, ", ".join(path.name for path in files))
    return Targets(tuple(runs), tuple(target for target in targets if not target.is_file()))


def model_entries(
    folders: Sequence[Path],
    format: str,
    recordings: Sequence[str],
    options: dict[str, Any],
    taken: Sequence[Run] = (),
) -> list[Entry]:
    """Trained models as entries: those of an earlier comparison by variant and seed, others named like their folders.
    One that is not there, or not whole, keeps its place with the reason.

    Args:
        taken: names that they must not have.

    Raises:
        ConfigError: two of the same name.
    """
    entries: list[Entry] = []
    names: list[tuple[str, int | None]] = [(run.variant, run.seed) for run in taken]
    for folder in folders:
        mark = read_mark(folder)
        name, seed = (mark.variant, mark.config.seed) if mark is not None else (folder.resolve().name, None)
        if name == RETRIEVAL_NAME or (name, seed) in names:
            raise ConfigError(f"{folder}: the name {name!r} is taken; models are named like their folders: rename it")
        names.append((name, seed))
        try:
            config = model_config(folder, load_card(folder), format, recordings, options)
        except CheckpointError as error:
            entries.append(Entry(name, seed, folder, None, str(error)))
            continue
        entries.append(Entry(name, seed, folder, config))
    return entries


def model_config(
    folder: Path, card: ModelCard, format: str, recordings: Sequence[str], options: Mapping[str, Any]
) -> TrainingConfig:
    """How a trained model's frames are made, as `vmloc evaluate` does, as the configuration that samples are prepared
    with: of the network only its inputs stand in it, for nothing is trained."""
    values = {
        "name": card.name,
        "data": {"format": format, "train": list(recordings), "options": reader_options(folder, format, dict(options))},
        "localizer": settings_of(folder, card, None).model_dump(),
        "network": card.network.model_dump(include={"modalities", "width", "height"}),
        "augmentation": {"margin": card.crop_margin},
    }
    return parse(TrainingConfig, values, str(folder))


def options_for_models(config: TrainingConfig) -> dict[str, Any]:
    """The reader's options of a configuration that a model which is judged beside it shares: a model has its own
    sensors."""
    return {name: value for name, value in config.data.options.items() if name not in FRAME_FREE}
