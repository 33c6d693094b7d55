"""`vmloc demo`: the embedded main job, end to end, as separate processes over a real ROS 2 graph.

town -> bag -> node, recorder and player, with sensors failing on the way -> report and figures.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from vmloc_ros import files
from vmloc_ros.bags import BagReader
from vmloc_ros.commands.live_view import LiveView
from vmloc_ros.commands.processes import Processes, private_graph
from vmloc_ros.commands.tables import print_report
from vmloc_ros.config import LocalizerConfig, TopicNames
from vmloc_ros.errors import ConfigError, SetupError
from vmloc_ros.report import Report, write_run
from vmloc_ros.run_log import Outage, RunLog
from vmloc_ros.trajectory import NANOSECONDS
from vmloc_ros.types import EventKind

INPUT, OUTPUTS, TOWN, LOGS = "input", "outputs", "town", "logs"
DEMO_MODEL = "town_scene"
PLAN, PARAMS, PLAYED = "demo.yaml", "localizer.yaml", "played.json"
TOPICS = ("/localizer/status", "/localizer/pose", "/localizer/network_pose", "/localizer/path", "/tf", "/tf_static",
          "/diagnostics", "/odom")  # fmt: skip
STARTED_S, ACTIVE_S, SETTLE_S = 40.0, 90.0, 1.0
SLOW_S = 30.0
"""A player that takes so much longer than its bag has died or starves."""


@dataclass(frozen=True)
class DemoPlan:
    """What is driven, and what fails.

    Attributes:
        seed, traversal: of the town; a drive that the model was not trained on.
        laps: how often the drive goes round.
        worse_drift: odometry as bad as RobotCar's LOOP (4 % over 100 m, 0.25 mrad per metre).
        outages: seconds from the bag's start; `missing` as in the report.
        rate: of the playback.
        town: further fields of `TownConfig`.
    """

    seed: int = 1
    traversal: int = 9
    laps: float = 1.5
    worse_drift: bool = False
    outages: tuple[Outage, ...] = (
        Outage(12.0, 22.0, "rgb"),
        Outage(28.0, 38.0, "depth"),
        Outage(46.0, 51.0, "rgb+depth"),
    )
    town: dict[str, Any] = field(default_factory=dict)
    rate: float = 1.0


@dataclass(frozen=True)
class DemoResult:
    """What came of it."""

    report: Report
    out: Path
    figures: list[Path]


def run_demo(
    out: Path, model: Path | None = None, plan: DemoPlan | None = None, console: Console | None = None
) -> DemoResult:
    """Runs the whole chain; see the module's docstring.

    Args:
        out: folder to write; an earlier demo in it is replaced.
        model: folder of a model trained on the town; by default the one that the package ships.
        plan: what is driven, and what fails.
        console: where to say what goes on.

    Raises:
        VmlocError: a part failed; a `ProcessError` carries the last lines of the process that did.
    """
    plan, steps = plan or DemoPlan(), Steps(console or Console())
    model = model if model is not None else packaged_model()
    config = node_config(model)  # a model that cannot be used is said now, not after the drive
    prepare_folder(out, plan, model)
    with steps.step("a drive through the town that the model has not seen", live=True):
        write_drive(out, plan, steps.console.is_terminal)
    with steps.step("its sensor data as a bag", live=True):
        convert_drive(out, steps.console.is_terminal)
        check_outages(out, plan)
    with steps.step("node, recorder and player, separate processes on a ROS graph", live=True):
        published = run_graph(out, config, plan, steps)
    with steps.step("report and figures"):
        log = read_log(out, model, config, plan, published)
        report = write_run(log, out)
        figures = draw(out, config)
    steps.console.print()
    print_report(report, steps.console)
    steps.console.print(f"[{steps.elapsed_s:.0f} s] wrote {out}: report.json, trajectories, {OUTPUTS}/ (MCAP) and")
    for figure in figures:
        steps.console.print(f"  {figure}", highlight=False, soft_wrap=True)
    return DemoResult(report, out, figures)


class Steps:
    """Says what is being done, and how long it took."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._begin_s = time.monotonic()

    @property
    def elapsed_s(self) -> float:
        """Since the start."""
        return time.monotonic() - self._begin_s

    @contextmanager
    def step(self, what: str, live: bool = False) -> Iterator[None]:
        """One step; a spinner while it lasts where nothing else is `live`."""
        begin_s = time.monotonic()
        if live or not self.console.is_terminal:
            self.console.print(f"... {what}")
            yield
        else:
            with self.console.status(what):
                yield
        self.console.print(f"[green]done[/green] {what} ({time.monotonic() - begin_s:.1f} s)")


# ------------------------------------------------------------------------------------------------------------- before


def packaged_model() -> Path:
    """The demo's model, beside the source tree or in the installed package's share folder.

    Raises:
        SetupError: it is in neither.
    """
    prefixes = [prefix for prefix in os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep) if prefix]
    folders = [Path(__file__).resolve().parents[2], *(Path(prefix) / "share" / "vmloc_ros" for prefix in prefixes)]
    for folder in folders:
        if (folder / "models" / DEMO_MODEL / "card.yaml").is_file():
            return folder / "models" / DEMO_MODEL
    raise SetupError(
        f"models/{DEMO_MODEL}: the demo's model is not there; train it (docs/models.md) or give one with --model"
    )


def prepare_folder(out: Path, plan: DemoPlan, model: Path) -> None:
    """Empties the folder of an earlier demo and writes down what is going to be done.

    Raises:
        ConfigError: the folder holds something else.
    """
    if out.is_dir() and any(out.iterdir()) and not (out / PLAN).is_file():
        raise ConfigError(f"{out}: exists and is no earlier demo; give another folder")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    files.write_yaml(out / PLAN, {"model": str(model), **_plain(asdict(plan))})


def _plain(content: dict[str, Any]) -> dict[str, Any]:
    return dict(json.loads(json.dumps(content)))


def write_drive(out: Path, plan: DemoPlan, progress: bool) -> None:
    """One drive of the town, in RobotCar's own on-disk format."""
    from vmloc_ros.commands.town import run_town
    from vmloc_ros.datasets.town_drive import LOOP_DRIFT

    run_town(
        out / TOWN, seed=plan.seed, traversals=1, first=plan.traversal, laps=plan.laps,
        drift=LOOP_DRIFT if plan.worse_drift else None, progress=progress, **plan.town,
    )  # fmt: skip


def convert_drive(out: Path, progress: bool) -> None:
    """The drive as a bag."""
    from vmloc_ros.commands.convert import run_convert

    run_convert("town", out / TOWN, out / INPUT, progress=progress)


def check_outages(out: Path, plan: DemoPlan) -> None:
    """Raises:
    ConfigError: an outage ends after the drive does.
    """
    reader = BagReader(out / INPUT)
    length_s = (reader.end_ns - reader.start_ns) / NANOSECONDS
    for outage in plan.outages:
        if outage.to_s > length_s:
            raise ConfigError(
                f"the outage until {outage.to_s:.0f} s ends after the drive, which takes {length_s:.0f} s"
            )


def node_config(model: Path) -> LocalizerConfig:
    """The node's configuration: sensors as in the model's training, everything else as by default."""
    from vmloc_ros.checkpoint import load_card

    card = load_card(model)
    given = LocalizerConfig().model.model_copy(update={"path": str(model.resolve())})
    return LocalizerConfig(input=card.input, projection=card.projection, model=given)


# ---------------------------------------------------------------------------------------------------------- the graph


def run_graph(out: Path, config: LocalizerConfig, plan: DemoPlan, steps: Steps) -> dict[str, int]:
    """Plays the bag `out/input` past a node and records what it says; returns the messages that were sent, by role."""
    files.write_yaml(out / PARAMS, config.model_dump(mode="json", exclude_defaults=True))
    with private_graph() as environment, Processes(out / LOGS, environment) as processes:
        processes.start("node", ["node", "--params", str(out / PARAMS)])
        processes.start("recorder", ["record", str(out / OUTPUTS), *_repeated("--topics", TOPICS)])
        processes.start("watch", ["watch", "--json-lines"])
        processes.wait_for("recorder", lambda child: "recording" in child.text(), "ready", STARTED_S)
        processes.wait_for("node", lambda child: "active;" in child.text(), "active", ACTIVE_S)
        _play(out, plan, config.topics, processes, steps)
        time.sleep(SETTLE_S)  # the last frames are still being localized
        processes.stop("node")
        time.sleep(SETTLE_S)  # its last words are still on their way
        processes.stop("watch")
        processes.stop("recorder")
    return published_by_role(out, config.topics)


def _repeated(option: str, values: tuple[str, ...]) -> list[str]:
    return [word for value in values for word in (option, value)]


def _play(out: Path, plan: DemoPlan, topics: TopicNames, processes: Processes, steps: Steps) -> None:
    """Starts the player and shows where the node believes to be until the bag is over."""
    reader = BagReader(out / INPUT, topics)
    length_s = (reader.end_ns - reader.start_ns) / NANOSECONDS
    sent = [topic.name for topic in reader.topics if topic.name != reader.topic_of(EventKind.TRUTH)]
    waited = tuple(
        name for kind in (EventKind.IMAGE, EventKind.CLOUD, EventKind.ODOMETRY) if (name := reader.topic_of(kind))
    )
    drops = tuple(f"{name}:{o.from_s}:{o.to_s}" for o in plan.outages for name in _silenced(reader, o.missing))
    arguments = ["play", str(out / INPUT), "--json", str(out / PLAYED), "--wait", "20", "--rate", str(plan.rate)]
    arguments += [*_repeated("--topics", tuple(sent)), *_repeated("--wait-topic", waited), *_repeated("--drop", drops)]
    processes.start("player", arguments)
    view = LiveView(reader.truth(), reader.start_ns, length_s, plan.outages)
    deadline_s = time.monotonic() + length_s / plan.rate + SLOW_S
    with view.shown(steps.console):
        while processes.children["player"].process.poll() is None and time.monotonic() < deadline_s:
            processes.check("node", "recorder", "watch")
            view.update(processes.children["watch"])
            time.sleep(0.1)
    processes.finished("player", 1.0)


def _silenced(reader: BagReader, missing: str) -> list[str]:
    """The topics that an outage silences: a camera that fails sends no calibration either."""
    kinds: list[EventKind] = []
    if "rgb" in missing.split("+"):
        kinds += [EventKind.IMAGE, EventKind.CAMERA_INFO]
    if "depth" in missing.split("+"):
        kinds += [EventKind.CLOUD, EventKind.SCAN, EventKind.DEPTH]
    return [name for kind in kinds if (name := reader.topic_of(kind)) is not None]


def published_by_role(out: Path, topics: TopicNames) -> dict[str, int]:
    """What the player says it sent, by `EventKind` value.

    Raises:
        SetupError: it left no summary.
    """
    reader = BagReader(out / INPUT, topics)
    try:
        counts = json.loads((out / PLAYED).read_text(encoding="utf-8"))["published"]
    except (OSError, ValueError, KeyError) as error:
        raise SetupError(f"{out / PLAYED}: the player left no summary ({error})") from error
    return {kind.value: counts[name] for kind in EventKind if (name := reader.topic_of(kind)) in counts}


# -------------------------------------------------------------------------------------------------------------- after


def read_log(out: Path, model: Path, config: LocalizerConfig, plan: DemoPlan, published: dict[str, int]) -> RunLog:
    """What the recorder wrote, beside what was played."""
    from dataclasses import replace

    from vmloc_ros.commands.baseline import retrieval_poses
    from vmloc_ros.run_outputs import log_of_node_run

    log = log_of_node_run(out / OUTPUTS, out / INPUT, config.topics, plan.outages, published)
    return replace(log, retrieval=retrieval_poses(out / INPUT, model, config, log.frames))


def draw(out: Path, config: LocalizerConfig) -> list[Path]:
    """The figures, with one image of the drive."""
    from vmloc_ros.commands.plot import run_plot

    return run_plot(out, out / INPUT, 5.0, config)
