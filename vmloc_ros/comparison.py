"""Comparing systems: the plan of a comparison, what is measured on every model, and what its seeds say together."""

from __future__ import annotations

import difflib
import re
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from vmloc_ros.config import LocalizerConfig, StrictModel, parse, read_yaml
from vmloc_ros.corruption import MISSING, TABLE_4, Levels, condition_name, corrupted
from vmloc_ros.errors import ConfigError
from vmloc_ros.evaluation import SENSORS, Answers, only
from vmloc_ros.following import Drive, Following, OdometryKind, follow
from vmloc_ros.localizer import Localizer, modes_of
from vmloc_ros.localizers.streams import Streams
from vmloc_ros.retrieval import Retrieval
from vmloc_ros.samples import Labelled, SampleStore
from vmloc_ros.training_config import DataConfig, TrainingConfig
from vmloc_ros.types import Frame, FrameKey, Mode

CORRUPTIONS: dict[str, Levels] = {condition_name(levels): levels for levels in TABLE_4}
"""The rows of the paper's Table 4, by name: masked (1) and missing (2)."""
INTACT = condition_name({})
RETRIEVAL_NAME = "retrieval"
NUMBERS: dict[str, tuple[str, ...]] = {
    "mean_m": ("errors", "position_m", "mean"),
    "mean_deg": ("errors", "rotation_deg", "mean"),
    "median_m": ("errors", "position_m", "median"),
    "median_deg": ("errors", "rotation_deg", "median"),
    "nees": ("nees", "mean"),
    "fused_m": ("fused", "errors", "position_m", "mean"),
    "fused_deg": ("fused", "errors", "rotation_deg", "mean"),
    "fused_nees": ("fused", "nees", "mean"),
    "no_pose": ("no_pose",),
}
"""Where a number of the tables stands in the report of `Answers`."""
FRAME_FREE = ("lidar", "odometry")
"""Options of a reader that change neither which frames there are nor where they are."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")

Scores = dict[str, dict[str, dict[str, dict[str, Any]]]]
"""By set of frames, mode and corruption: the report of `Answers`."""


# --------------------------------------------------------------------------------------------------------------- plan


class PlanFile(StrictModel):
    """A plan as it stands in its file."""

    base: str | None = Field(None, description="A training configuration, relative to the plan's folder.")
    common: dict[str, Any] = Field(default_factory=dict, description="Changes of the base for every variant.")
    variants: dict[str, dict[str, Any] | None] = Field(
        min_length=1, description="By name: further changes of the base, `seeds`, and `config`: a base of its own."
    )


@dataclass(frozen=True)
class Run:
    """One training of a comparison."""

    variant: str
    seed: int
    config: TrainingConfig

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.variant}_{self.seed}"


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The base with the changes laid over it: mappings are merged key by key, everything else is replaced."""
    result = dict(base)
    for key, value in changes.items():
        inner = result.get(key)
        result[key] = merge(inner, value) if isinstance(inner, Mapping) and isinstance(value, Mapping) else value
    return result


def load_plan(path: Path, names: Sequence[str] = ()) -> list[Run]:
    """The trainings of a plan, in its order.

    Args:
        path: YAML, see `PlanFile`.
        names: of the variants to take; empty: all.

    Raises:
        ConfigError: a plan or a variant that is malformed, an unknown key (with the nearest name) or variant, or a
            variant that would be judged on other frames than the rest.
    """
    plan = parse(PlanFile, read_yaml(path), str(path))
    base = None if plan.base is None else read_yaml(path.parent / plan.base)
    for name in names:
        if name not in plan.variants:
            nearest = difflib.get_close_matches(name, list(plan.variants), n=1, cutoff=0.0)[0]
            raise ConfigError(f"{path}: there is no variant {name!r} (did you mean {nearest!r}?)")
    runs: list[Run] = []
    for name, changes in plan.variants.items():
        if not NAME.fullmatch(name) or name == RETRIEVAL_NAME:
            raise ConfigError(f"{path}: a variant cannot be named {name!r}; letters, digits, _ and - make a folder")
        own = dict(changes or {})
        seeds = own.pop("seeds", [1])
        if not isinstance(seeds, list) or not seeds or len(set(map(str, seeds))) < len(seeds):
            raise ConfigError(f"{path}: variant {name}: seeds must be a list such as [1, 2, 3], not {seeds!r}")
        if "seed" in own:
            raise ConfigError(f"{path}: variant {name}: give seeds, a list, instead of seed")
        ground = read_yaml(path.parent / str(own.pop("config"))) if "config" in own else base
        if ground is None:
            raise ConfigError(f"{path}: variant {name} has no configuration: give the plan a base, or it a config")
        for seed in seeds:
            values = merge(merge(ground, plan.common), own)
            values |= {"name": f"{values.get('name', path.stem)}_{name}", "seed": seed}
            run = Run(name, seed, parse(TrainingConfig, values, f"{path}: variant {name}"))
            runs.append(run)
            agree_on_data(runs[0], run, str(path))
    return [run for run in runs if not names or run.variant in names]


def agree_on_data(first: Run, run: Run, source: str) -> None:
    """Checks that two runs are trained and judged on the same frames, whichever sensors they use.

    Raises:
        ConfigError: they are not; names the key.
    """
    one, other = (_frames_of(each.config.data) for each in (first, run))
    for key in one:
        if one[key] != other[key]:
            raise ConfigError(
                f"{source}: variant {run.variant} changes data: data.{key} is {other[key]!r}, that of {first.variant} "
                f"is {one[key]!r}; all must be judged on the same frames: use common"
            )


def _frames_of(data: DataConfig) -> dict[str, Any]:
    values = data.model_dump(exclude={"workers"})
    values["options"] = {name: value for name, value in data.options.items() if name not in FRAME_FREE}
    return values


def same_training(one: TrainingConfig, other: TrainingConfig) -> bool:
    """Whether two configurations mean the same training; on how many threads and processes it runs does not count."""
    data = other.data.model_copy(update={"workers": one.data.workers})
    return one == other.model_copy(update={"threads": one.threads, "data": data})


# ------------------------------------------------------------------------------------------------------------ measure


@dataclass(frozen=True)
class Judged:
    """A model's answers by mode and corruption, the milliseconds of each intact frame with all its sensors, and by mode
    what the filter makes of them."""

    answers: dict[Mode, dict[str, Answers]]
    latencies_ms: list[float]
    fused: dict[Mode, Following] = field(default_factory=dict)

    def scores(self) -> dict[str, dict[str, dict[str, Any]]]:
        """The reports, by mode and corruption; what the filter made of the intact frames is `fused` there."""
        scores = {mode.value: {name: a.report() for name, a in by.items()} for mode, by in self.answers.items()}
        for mode, following in self.fused.items():
            entry = scores.get(mode.value, {}).get(INTACT)
            if entry is not None:
                entry["fused"] = {"odometry": following.odometry, **following.fused(camera=True).report()}
        return scores


def stored_frames(store: SampleStore, samples: NDArray[np.int64]) -> Iterator[Labelled]:
    """Prepared samples as frames again: a localizer of the same stored size takes them as they are."""
    for index in samples:
        stamp_ns = int(store.stamps_ns[index])
        rgb = np.array(store.rgb[index]) if store.has_rgb[index] else None
        depth_m = store.depth_m[index].astype(np.float32) if store.has_depth[index] else None
        frame = Frame(FrameKey(stamp_ns, stamp_ns if rgb is not None else None), store.camera, rgb, depth_m)
        yield frame, store.T_map_camera[index], store.recordings[int(store.recording_of[index])]


def cases(modes: Iterable[Mode]) -> list[tuple[Mode, str]]:
    """Every mode, the sensors a robot has, with every corruption that touches them and leaves something to see."""
    return [
        (mode, name)
        for mode in modes
        for name, levels in CORRUPTIONS.items()
        if set(levels) <= set(SENSORS[mode]) and any(levels.get(sensor, 0) < MISSING for sensor in SENSORS[mode])
    ]


def judge(localizer: Localizer, frames: Iterable[Labelled], advance: Callable[[], None] = lambda: None) -> Judged:
    """Runs a localizer on labelled frames, in every mode it has and with every corruption of Table 4.

    A frame that lacks a sensor of a mode is left out of that mode. Each frame is corrupted at the same place for every
    model (see `evaluation.corrupted`). A localizer with a memory sees every mode and corruption as a stream of its own.
    """
    modes, streams = modes_of(localizer.card), Streams(localizer)
    answers: dict[Mode, dict[str, Answers]] = {mode: {} for mode in modes}
    latencies_ms: list[float] = []
    for index, (frame, T_map_camera, recording) in enumerate(frames):
        advance()
        streams.enter(recording)
        for mode, name in cases(modes):
            shown = only(frame, mode)
            if shown is None:
                continue
            seen, asked = corrupted(shown, CORRUPTIONS[name]), streams.of((mode, name))
            started = time.perf_counter()
            estimate = asked.localize(seen)
            if mode is modes[0] and name == INTACT:
                latencies_ms.append(1e3 * (time.perf_counter() - started))
            answers[mode].setdefault(name, Answers()).add(index, frame.stamp_ns, T_map_camera, estimate)
    return Judged({mode: by for mode, by in answers.items() if by}, latencies_ms)


def judge_fused(
    localizer: Localizer,
    frames: Callable[[], Iterable[Labelled]],
    drives: Mapping[str, Drive],
    config: LocalizerConfig,
) -> dict[Mode, Following]:
    """Runs a localizer with the filter, in every mode it has.

    The filter is driven by the recordings' odometry where all have one, else by the network's own, else by nothing.

    Args:
        frames: gives them from the beginning; those of a recording in order of stamp.
        drives: of their recordings.
        config: of the filter.
    """
    kind: OdometryKind = "network" if localizer.card.motion is not None else "none"
    if all(drive.odometry for drive in drives.values()):
        kind = "recording"
    result: dict[Mode, Following] = {}
    for mode in modes_of(localizer.card):
        shown = (item for item in frames() if only(item[0], mode) is not None)
        following = follow(localizer, shown, drives, kind, config.filter, config.frames, mode=mode)
        if following.frames:
            result[mode] = following
    return result


def judge_retrieval(retrieval: Retrieval, frames: Iterable[Labelled]) -> Judged:
    """The same for the nearest training image: it has a camera alone, and no covariance."""
    answers: dict[str, Answers] = {}
    latencies_ms: list[float] = []
    for index, (frame, T_map_camera, _) in enumerate(frames):
        for mode, name in cases([Mode.RGB_ONLY]):
            shown = only(frame, mode)
            if shown is None:
                continue
            seen = corrupted(shown, CORRUPTIONS[name])
            assert seen.rgb is not None  # `cases` leaves something to see
            started = time.perf_counter()
            T_nearest = retrieval.nearest(seen.rgb)
            if name == INTACT:
                latencies_ms.append(1e3 * (time.perf_counter() - started))
            answers.setdefault(name, Answers()).add(index, frame.stamp_ns, T_map_camera, T_nearest)
    return Judged({Mode.RGB_ONLY: answers} if answers else {}, latencies_ms)


# ------------------------------------------------------------------------------------------------------------ results


@dataclass(frozen=True)
class Result:
    """What is known of one run.

    Attributes:
        variant, seed: which; a model that was given as a folder has no seed.
        failure: why there are no scores; empty otherwise.
        parameters: how many the network learns.
        training_s: seconds of training, as its card says.
        latency_ms: median over frames with all sensors of the model, on `threads` CPU threads.
    """

    variant: str
    seed: int | None = None
    failure: str = ""
    parameters: int | None = None
    training_s: float | None = None
    best_epoch: int | None = None
    latency_ms: float | None = None
    threads: int | None = None
    device: str = ""
    sha256: str = ""
    scores: Scores = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Of its folder."""
        return self.variant if self.seed is None else f"{self.variant}_{self.seed}"

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)

    def number(self, frames: str, mode: str, corruption: str, name: str) -> float | None:
        """One of `NUMBERS`, NEES divided by its expectation 6, `no_pose` as a share; None where it was not measured."""
        value: Any = self.scores.get(frames, {}).get(mode, {}).get(corruption)
        if name == "no_pose":
            return _without_pose(value)
        for key in NUMBERS[name]:
            value = value.get(key) if isinstance(value, Mapping) else None
        if not isinstance(value, (int, float)):
            return None
        return float(value) / 6.0 if name.endswith("nees") else float(value)


def _without_pose(report: Any) -> float | None:
    """Of the frames that were shown, the share that got no pose; None where that is not in the report."""
    if not isinstance(report, Mapping) or not isinstance(report.get("no_pose"), Mapping):
        return None
    refused = sum(report["no_pose"].values())
    total = refused + int((report.get("errors") or {}).get("n", 0))
    return refused / total if total else None


@dataclass(frozen=True)
class Across:
    """A number over seeds: its mean, and the sample standard deviation where there are two or more."""

    mean: float
    spread: float | None
    values: tuple[float, ...]


def across(values: Iterable[float | None]) -> Across | None:
    """Over the values that there are; None where there is none."""
    there = tuple(float(value) for value in values if value is not None)
    if not there:
        return None
    return Across(statistics.fmean(there), statistics.stdev(there) if len(there) > 1 else None, there)


@dataclass(frozen=True)
class Variant:
    """The runs of a variant together."""

    name: str
    results: tuple[Result, ...]

    @property
    def finished(self) -> tuple[Result, ...]:
        """Those that have scores."""
        return tuple(result for result in self.results if not result.failure)

    def number(self, frames: str, mode: str, corruption: str, name: str) -> Across | None:
        """One of `NUMBERS` over the seeds."""
        return across(result.number(frames, mode, corruption, name) for result in self.finished)

    def odometry(self, frames: str, mode: str) -> str:
        """What drove the filter (recording, network, none); empty where there was no filter."""
        entries = (result.scores.get(frames, {}).get(mode, {}).get(INTACT, {}) for result in self.finished)
        found = dict.fromkeys(str(entry["fused"]["odometry"]) for entry in entries if "fused" in entry)
        return ", ".join(found)

    def as_dict(self) -> dict[str, Any]:
        """As JSON: seeds, and every number over them by set of frames, mode and corruption."""
        numbers: dict[str, Any] = {}
        for result in self.finished:
            for frames, by_mode in result.scores.items():
                for mode, by_corruption in by_mode.items():
                    for corruption in by_corruption:
                        found = {n: self.number(frames, mode, corruption, n) for n in NUMBERS}
                        place = numbers.setdefault(frames, {}).setdefault(mode, {})
                        place[corruption] = {n: asdict(value) for n, value in found.items() if value is not None}
        return {
            "name": self.name,
            "seeds": [result.seed for result in self.finished],
            "failed": [{"seed": r.seed, "reason": r.failure} for r in self.results if r.failure],
            "numbers": numbers,
        }


def by_variant(results: Sequence[Result]) -> list[Variant]:
    """The results grouped, in the order of their first appearance."""
    names = dict.fromkeys(result.variant for result in results)
    return [Variant(name, tuple(r for r in results if r.variant == name)) for name in names]
