"""`vmloc track`: a localizer and the filter over drives, beside the network alone and the odometry alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from vmloc_ros import files
from vmloc_ros.checkpoint import ModelCard
from vmloc_ros.commands.compare_targets import SampleFolders, model_config
from vmloc_ros.commands.drives import drives_of, filter_of, in_order
from vmloc_ros.commands.track_tables import print_track
from vmloc_ros.comparison import stored_frames
from vmloc_ros.config import FilterConfig, ModelConfig
from vmloc_ros.datasets.base import Recording
from vmloc_ros.errors import ConfigError
from vmloc_ros.evaluation import Answers, modes_for
from vmloc_ros.following import Following, OdometryKind, Start, follow, start_from
from vmloc_ros.localizer import load_localizer
from vmloc_ros.localizers.base import Localizer, Remembering
from vmloc_ros.odometry_drift import (
    BEGINNING_S,
    Stretch,
    held_velocity_drift,
    lengths_for,
    mean_motion_drift,
    mean_twist,
    odometry_drift,
)
from vmloc_ros.progress import progress_bar
from vmloc_ros.recordings import open_any
from vmloc_ros.run_log import trajectory_of
from vmloc_ros.samples import SampleStore
from vmloc_ros.split import in_blocks, positions_of
from vmloc_ros.training_config import TrainingConfig, parse_range
from vmloc_ros.trajectory import write_tum
from vmloc_ros.types import Mode

PreviousPose = Literal["filter", "own", "none"]
SETTLED = 50
"""A start that was off is judged by the frames of each stretch after so many (Generative Map, section 4.2.1)."""
REPORT, FIGURE = "report.json", "tracking.png"


@dataclass(frozen=True)
class Tracked:
    """What one run was told.

    Attributes:
        odometry: what drives the filter.
        mode: the sensors that are shown; None: all.
        config: of the filter.
    """

    odometry: OdometryKind
    mode: Mode | None
    config: FilterConfig


def run_track(
    model: Path,
    source: Path,
    format: str,
    recordings: Sequence[str] = (),
    blocks: Sequence[str] = (),
    odometry: OdometryKind = "recording",
    previous_pose: PreviousPose = "filter",
    deviation_m: float = 0.0,
    deviation_entries: float = 0.0,
    modalities: Sequence[str] = (),
    observations: bool = True,
    options: Mapping[str, Any] | None = None,
    config: Path | None = None,
    samples: Path | None = None,
    device: str = "auto",
    json: Path | None = None,
    out: Path | None = None,
) -> dict[str, Any]:
    """Follows a model over recordings and prints tables; returns the report.

    Args:
        model: its folder.
        source, format, recordings, options: as for `vmloc evaluate`.
        blocks: parts of the recordings, as in `data.hold_out`; empty: all.
        odometry: what drives the filter.
        previous_pose: what a network that takes it is given.
        deviation_m, deviation_entries: the filter starts at the true pose moved by so much along each axis, or in each
            of the six entries of the camera's state; both 0: from the network's answers.
        modalities: which sensors are there; empty: all that the model has experts for.
        observations: False: the filter takes a map's poses instead of its observations.
        config: a parameter file for the filter; None: that of the training.
        samples: receives a folder of prepared frames, to be used again; None: they are made and thrown away. It is not
            the folder of a training's samples.
        json: where the report is written.
        out: folder that receives the report, trajectories T_map_base (TUM) and a figure.

    Raises:
        CheckpointError, ConfigError, DatasetError: with the file or the argument.
    """
    console = Console(stderr=True)
    start = start_from(deviation_m, deviation_entries)
    driver: Literal["topic", "network"] = "network" if odometry == "network" else "topic"
    chosen = ModelConfig(path=str(model), device=device, runtime="auto", previous_pose=previous_pose, odometry=driver)
    localizer = load_localizer(model, chosen)
    if odometry == "network" and localizer.card.motion is None:
        raise ConfigError(f"--odometry network: the card of {model} knows no motion; give recording or none")
    mode = modes_for(localizer.card, list(modalities) or list(localizer.card.network.modalities))[0]
    tracked = Tracked(odometry, mode, filter_of(model, config, observations))
    with ExitStack() as stack:
        folder = samples or Path(stack.enter_context(TemporaryDirectory(prefix="vmloc_track_")))
        given = model_config(model, localizer.card, format, recordings, dict(options or {}))
        store = SampleFolders(source, folder, console).of(given).store
        indices = chosen_frames(store, given, blocks)
        recorded = odometry == "recording"
        drives = drives_of(store, indices, recordings_of(given, source, recorded), recorded)
        localizer.warm_up()
        start_given = start if deviation_m or deviation_entries else None
        with progress_bar(console) as bar:
            task = bar.add_task("tracking frame", total=len(indices) * (1 if start_given is None else 2))

            def run(begin: Start | None) -> Following:
                frames = stored_frames(store, indices)
                return follow(
                    *(localizer, frames, drives, odometry, tracked.config, given.localizer.frames, begin, mode),
                    advance=lambda: bar.advance(task),
                )

            following = run(start_given)
            undeviated = run(start_from(0.0, 0.0)) if start_given is not None else None
    report = {
        **about(localizer, following, mode),
        "blocks": list(blocks),
        "previous_pose": previous_pose,
        "observations": observations,
        "deviation": None if start_given is None else start_given.deviation_6.tolist(),
        **track_report(following, undeviated),
    }
    print_track(report)
    if json is not None:
        files.write_json(json, report)
        console.print(f"wrote {json}", soft_wrap=True, highlight=False)
    if out is not None:
        console.print(f"wrote {out}: {', '.join(write_track(out, following, report))}", soft_wrap=True, highlight=False)
    return report


def chosen_frames(store: SampleStore, config: TrainingConfig, blocks: Sequence[str]) -> NDArray[np.int64]:
    """The samples of the blocks, recording by recording in order of stamp.

    Raises:
        ConfigError: a block that is none, or that holds no frame.
    """
    for text in blocks:
        try:
            parse_range(text)
        except ValueError as error:
            raise ConfigError(f"--blocks: {error}") from error
    indices = np.arange(len(store))
    if blocks:
        indices = np.flatnonzero(in_blocks(positions_of(store, config.data), blocks))
    return in_order(store, indices)


def recordings_of(config: TrainingConfig, source: Path, with_odometry: bool) -> list[Recording]:
    """All recordings; those of 7-Scenes have an odometry only where it is computed from their depth images."""
    options = dict(config.data.options)
    if config.data.format == "sevenscenes" and with_odometry:
        options["odometry"] = "rgbd"
    settings = config.localizer
    return open_any(config.data.format, source, settings.topics, options, settings.frames.base)


# ------------------------------------------------------------------------------------------------------------- report


def about(localizer: Localizer, following: Following, mode: Mode) -> dict[str, Any]:
    """What was followed."""
    card: ModelCard = localizer.card
    return {
        "model": card.name,
        "sha256": card.sha256,
        "recordings": list(dict.fromkeys(frame.recording for frame in following.frames)),
        "frames": len(following.frames),
        "stretches": len({frame.stretch for frame in following.frames}),
        "mode": mode.value,
        "odometry": following.odometry,
        "counters": following.counters | (localizer.counters() if isinstance(localizer, Remembering) else {}),
    }


def track_report(following: Following, undeviated: Following | None = None) -> dict[str, Any]:
    """The numbers; see docs/reading-a-run.md.

    Args:
        undeviated: the same from the true pose, where the start was moved.
    """
    report: dict[str, Any] = {
        "network": following.network().report(),
        "dead_reckoning": following.dead_reckoning().report(),
        "fused": following.fused().report(),
        "odometry_drift": drift_report(following.motion_stretches()),
    }
    if undeviated is not None:
        report["undeviated"] = {"fused": undeviated.fused().report(), "network": undeviated.network().report()}
        settled = (following.fused(from_place=SETTLED), undeviated.fused(from_place=SETTLED))
        report["settled"] = settled_report(*settled)
    return report


def settled_report(deviated: Answers, undeviated: Answers) -> dict[str, Any]:
    """Fused errors after the first frames of every stretch, and how much larger the deviated run's are."""
    one, other = deviated.report()["errors"], undeviated.report()["errors"]
    result: dict[str, Any] = {"after_frames": SETTLED, "deviated": one, "undeviated": other, "ratio": None}
    if one is not None and other is not None:
        result["ratio"] = {
            name: one[name]["mean"] / other[name]["mean"] if other[name]["mean"] > 0.0 else None
            for name in ("position_m", "rotation_deg")
        }
    return result


def drift_report(stretches: Sequence[Stretch]) -> dict[str, Any] | None:
    """Table III of the network's motions, beside the guesses of constant velocity; None where there are none, or
    nothing has moved."""
    if not stretches or max(float(stretch.way_m()[-1]) for stretch in stretches) <= 0.0:
        return None
    lengths = lengths_for(stretches)
    return {
        "network": odometry_drift(stretches, lengths).report(),
        "mean_motion": mean_motion_drift(stretches, mean_twist(stretches, BEGINNING_S), lengths).report(),
        "held_velocity": held_velocity_drift(stretches, lengths).report(),
    }


def write_track(out: Path, following: Following, report: Mapping[str, Any]) -> list[str]:
    """Writes report, trajectories (of several recordings each has a folder) and figure; returns what it wrote."""
    from vmloc_ros.plots_tracking import plot_tracking

    files.write_json(out / REPORT, report)
    names = list(dict.fromkeys(frame.recording for frame in following.frames))
    stamps = [frame.stamp_ns for frame in following.frames]
    for recording in names:
        folder = out / recording.replace("/", "_") if len(names) > 1 else out
        inside = [frame for frame in following.frames if frame.recording == recording]
        write_tum(folder / "truth.tum", trajectory_of((frame.stamp_ns, frame.T_map_base) for frame in inside))
        for name, answers in answered(following).items():
            poses = [
                (stamps[k], T)
                for k, T in zip(answers.frames, answers.estimates, strict=True)
                if following.frames[k].recording == recording
            ]
            if poses:
                write_tum(folder / f"{name}.tum", trajectory_of(poses))
    plot_tracking(out / FIGURE, following)
    return [REPORT, "trajectories", FIGURE]


def answered(following: Following) -> dict[str, Answers]:
    """The three ways to a pose, by name of the file."""
    return {
        "network": following.network(),
        "dead_reckoning": following.dead_reckoning(),
        "fused": following.fused(),
    }
