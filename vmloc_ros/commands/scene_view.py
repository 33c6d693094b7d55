"""`vmloc scene-view`: what a model over scene coordinates says of frames, for whoever wants to know why a pose is good,
or refused.

Poses are `T_map_camera`: the camera's optical frame (x right, y down, z forward) in the map.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from vmloc_ros import files
from vmloc_ros.assembly import LabelledFrame, labelled_frames
from vmloc_ros.commands.evaluate import choose, reader_options, settings_of
from vmloc_ros.commands.scene_look import Scene, look_at, open_scene, read, restricted
from vmloc_ros.commands.scene_view_tables import print_views
from vmloc_ros.datasets.base import Recording
from vmloc_ros.errors import ConfigError
from vmloc_ros.evaluation import modes_for
from vmloc_ros.geometry import Array
from vmloc_ros.localizers.inputs import Pictures
from vmloc_ros.plots_scene import KnownMap, SceneFrame, mean_colours, plot_scene_frame, plot_scene_map, up_of
from vmloc_ros.progress import progress_bar
from vmloc_ros.recordings import open_any
from vmloc_ros.trajectory import NANOSECONDS
from vmloc_ros.types import Mode, NoPose

MAP, REPORT = "map.png", "report.json"
MAP_FRAMES = 60
"""So many frames of the drive make the picture of the map, spread evenly; up to twice as many."""
SPREAD = (0.25, 0.5, 0.75)
"""Where in a drive the frames lie that are shown if none is asked for."""
MOST_FRAMES = 6
"""As many surroundings fit beside the map."""
LATE_S = 1.0
"""A frame this far from the time that was asked for is not the one that was meant."""


@dataclass(frozen=True)
class Wanted:
    """Which frames: numbers from 0, and seconds since the first one. None of both: three, spread over the drive."""

    numbers: tuple[int, ...] = ()
    seconds: tuple[float, ...] = ()


def run_scene_view(
    model: Path,
    source: Path,
    format: str,
    out: Path,
    recording: str = "",
    wanted: Wanted | None = None,
    modalities: Sequence[str] = (),
    options: dict[str, Any] | None = None,
    json: Path | None = None,
    device: str = "auto",
) -> dict[str, Any]:
    """Writes a figure per frame and one of the map into `out`, prints a table, and returns the report.

    Args:
        model: its folder.
        source, format, options: recordings, as for `vmloc evaluate`.
        recording: name; may be empty where there is only one.
        wanted: which of its frames.
        modalities: which sensors are there; empty: all that the model has experts for.
        json: where the report is written besides.

    Raises:
        CheckpointError, ConfigError, DatasetError: with the argument or the file.
    """
    console = Console(stderr=True)
    wanted = wanted or Wanted()
    if len(wanted.numbers) + len(wanted.seconds) > MOST_FRAMES:
        raise ConfigError(f"{len(wanted.numbers) + len(wanted.seconds)} frames were asked for, at most {MOST_FRAMES}")
    scene = open_scene(model, device)
    modes = modes_for(scene.localizer.card, list(modalities) or list(scene.localizer.card.network.modalities))
    settings = settings_of(model, scene.localizer.card, None)
    given = reader_options(model, format, options or {})
    chosen = choose(
        open_any(format, source, settings.topics, given, settings.frames.base), source, [recording] if recording else []
    )
    if len(chosen) > 1:
        raise ConfigError(f"{source} has several recordings; give --recording: {', '.join(r.name for r in chosen)}")
    scene.localizer.warm_up()
    with progress_bar(console) as bar:
        task = bar.add_task("looking at frame", total=None)
        found = gather(labelled_frames(chosen[0], settings), wanted, chosen[0], scene, lambda: bar.advance(task))
    shown, entries = list[SceneFrame](), list[dict[str, Any]]()
    for number, item in found.wanted.items():
        frame, entry = look_at(scene, item, modes, number, found.first_ns)
        entries.append(entry)
        if frame is not None:
            shown.append(frame)
            plot_scene_frame(out / f"frame_{number:05d}.png", frame)
    report = {
        "model": scene.localizer.card.name,
        "sha256": scene.localizer.card.sha256,
        "recording": chosen[0].name,
        "map_frames": len(found.thinned),
        "frames": entries,
    }
    plot_scene_map(out / MAP, known_map(scene, found, modes), shown)
    files.write_json(out / REPORT, report)
    if json is not None:
        files.write_json(json, report)
    print_views(report)
    names = [MAP, *(f"frame_{entry['number']:05d}.png" for entry in entries if entry["modes"]), REPORT]
    console.print(f"wrote {out}: {', '.join(names)}", soft_wrap=True, highlight=False)
    return report


# ------------------------------------------------------------------------------------------------------ the drive, once


@dataclass(frozen=True, eq=False)
class Found:
    """What was kept of a drive.

    Attributes:
        wanted: the frames that were asked for, by their number.
        thinned: pictures and true poses of frames spread evenly over the drive.
        first_ns: stamp of the first frame.
    """

    wanted: dict[int, LabelledFrame]
    thinned: list[tuple[Pictures, Array]]
    first_ns: int


def gather(
    frames: Iterator[LabelledFrame], wanted: Wanted, recording: Recording, scene: Scene, advance: Callable[[], None]
) -> Found:
    """Walks the drive once.

    Raises:
        ConfigError: there is no frame, or not the one that was asked for.
    """
    kept: dict[int, LabelledFrame] = {}
    nearest: dict[int, tuple[int, int, LabelledFrame]] = {}  # by target: how far, number, frame
    thinned: list[tuple[Pictures, Array]] = []
    targets_ns: list[int] = []
    first_ns = last_ns = 0
    stride, count = 1, 0
    for number, item in enumerate(frames):
        advance()
        stamp_ns = item.frame.stamp_ns
        if number == 0:
            first_ns, targets_ns = stamp_ns, _targets(wanted, recording, stamp_ns)
        last_ns, count = stamp_ns, number + 1
        if number in wanted.numbers:
            kept[number] = item
        for index, target_ns in enumerate(targets_ns):
            apart = abs(stamp_ns - target_ns)
            if index not in nearest or apart < nearest[index][0]:
                nearest[index] = apart, number, item
        if number % stride == 0:
            seen = scene.inputs.of(item.frame)
            if not isinstance(seen, NoPose):
                thinned.append((seen, item.T_map_camera))
            if len(thinned) >= 2 * MAP_FRAMES:
                thinned, stride = thinned[::2], 2 * stride
    if not count:
        raise ConfigError(f"{recording.name}: no frame with a true pose")
    missing = [number for number in wanted.numbers if number not in kept]
    if missing:
        raise ConfigError(f"--frame {missing[0]}: {recording.name} has frames 0 to {count - 1}")
    for index, (apart, number, item) in nearest.items():
        if wanted.seconds and apart > LATE_S * NANOSECONDS:
            span_s = (last_ns - first_ns) / NANOSECONDS
            raise ConfigError(
                f"--at {wanted.seconds[index]:g}: {recording.name} has no frame near; it has {count} from 0 to "
                f"{span_s:.1f} s"
            )
        kept[number] = item
    return Found(dict(sorted(kept.items())), thinned, first_ns)


def _targets(wanted: Wanted, recording: Recording, first_ns: int) -> list[int]:
    """Stamps that frames are looked for near to."""
    if wanted.seconds or wanted.numbers:
        return [first_ns + round(seconds * NANOSECONDS) for seconds in wanted.seconds]
    last_ns = int(recording.truth().stamps_ns[-1])
    return [first_ns + round(share * (last_ns - first_ns)) for share in SPREAD]


def known_map(scene: Scene, found: Found, modes: Sequence[Mode]) -> KnownMap:
    """Points of the cells that agree with their frame's pose, over the thinned drive."""
    points, colours = list[Array](), list[Array]()
    for seen, _ in found.thinned:
        reading = read(scene.runtime, restricted(seen, modes))
        agrees_N = reading.alignment.inliers_BN[0].cpu().numpy()
        points.append(reading.cells.points_BN3[0].double().cpu().numpy()[agrees_N])
        colours.append(
            mean_colours(None if seen.rgb_1HW3 is None else seen.rgb_1HW3[0], scene.runtime.config.grid)[agrees_N]
        )
    poses_K44 = np.array([T for _, T in found.thinned])
    return KnownMap(np.concatenate(points), np.concatenate(colours), poses_K44[:, :3, 3], up_of(poses_K44))
