"""`vmloc localize`: the whole pipeline over a bag, without ROS, as fast as it goes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from vmloc_ros import files
from vmloc_ros.bags import SENSOR_KINDS, BagReader, BagWriter
from vmloc_ros.checkpoint import RETRIEVAL
from vmloc_ros.config import LocalizerConfig, load_config
from vmloc_ros.errors import BagError
from vmloc_ros.geometry import Array, inverse
from vmloc_ros.localizer import load_localizer
from vmloc_ros.outputs import Outputs
from vmloc_ros.pipeline import Pipeline
from vmloc_ros.plots import plot_run
from vmloc_ros.progress import progress_bar
from vmloc_ros.report import Report, write_run
from vmloc_ros.retrieval import Retrieval
from vmloc_ros.run_log import RunCollector, read_frames_csv, trajectory_of
from vmloc_ros.trajectory import Trajectory
from vmloc_ros.types import Event, EventKind, Frame, FrameKey

OUTPUTS = "outputs"
CONFIG = "config.yaml"


@dataclass(frozen=True)
class LocalizeResult:
    """What was written."""

    report: Report
    out: Path
    counters: dict[str, int]
    rejected: dict[str, int]


def run_localize(
    bag: Path,
    model: Path,
    out: Path,
    config: Path | None = None,
    use_stamps: Path | None = None,
    plots: bool = True,
    progress: bool = True,
) -> LocalizeResult:
    """Writes `report.json`, trajectories (TUM), `frames.csv`, figures, the resolved configuration, `outputs/` (MCAP).

    Args:
        bag: sensor data, in MCAP or sqlite3.
        model: folder of a trained model.
        out: folder to write into.
        config: a parameter file as the node takes it; what it does not say of the sensors is as the model's card says.
        use_stamps: folder of an earlier run (or its `frames.csv`, or the bag of a node's outputs): exactly its frames
            are used.

    Raises:
        BagError, CheckpointError, ConfigError: what is given cannot be used.
    """
    given = load_config(config) if config is not None else LocalizerConfig()
    localizer = load_localizer(model, given.model)
    settings = given.as_trained(localizer.card.input, localizer.card.projection)
    reader = BagReader(bag, settings.topics)
    if settings.input.use_image:
        reader.require(EventKind.IMAGE)
    pipeline = Pipeline(settings, localizer, _recorded_frames(use_stamps) if use_stamps else None)
    retrieval = _Baseline(model, pipeline)
    collector = RunCollector(settings.model.odometry == "network")
    localizer.warm_up()
    out.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        outputs_bag = stack.enter_context(BagWriter(out / OUTPUTS, overwrite=True))
        bar = stack.enter_context(progress_bar(shown=progress))
        task = bar.add_task(f"localize {bag.name}", total=reader.count(SENSOR_KINDS))
        writer = _OutputWriter(outputs_bag, settings)
        for event, outputs in _run(pipeline, reader):
            if event is not None:
                collector.add_event(event)
                bar.advance(task)
            collector.add_outputs(outputs.statuses, outputs.states)
            collector.add_vo(pose.sample for pose in outputs.vo)
            writer.write(outputs)
            for frame in outputs.frames:
                retrieval.add(frame)
        writer.finish()
    log = collector.finish(retrieval=retrieval.trajectory())
    report = write_run(log, out)
    files.write_yaml(out / CONFIG, settings.model_dump(mode="json"))
    if plots:
        plot_run(out)
    return LocalizeResult(report, out, pipeline.counters(), dict(reader.rejected))


def _run(pipeline: Pipeline, reader: BagReader) -> Iterator[tuple[Event | None, Outputs]]:
    """Every event of the bag in order of arrival, with what came of it; the last, without an event, is the end."""
    transforms = reader.static_transforms()
    for transform in transforms:
        pipeline.add(Event(EventKind.STATIC_TRANSFORM, 0, transform))
    for event in reader.events(SENSOR_KINDS):
        outputs = pipeline.add(event)
        outputs.extend(pipeline.drain())
        yield event, outputs
    for what, count in reader.rejected.items():
        for _ in range(count):
            pipeline.count_rejection("message", what)
    yield None, pipeline.finish()


def _recorded_frames(run: Path) -> list[FrameKey]:
    """The frames of an earlier run: of its `frames.csv`, or of a node's recorded status messages."""
    if (run / "frames.csv").is_file() or run.suffix == ".csv":
        return read_frames_csv(run)
    for bag in (run, run / OUTPUTS):
        if (bag / "metadata.yaml").is_file() or bag.suffix in (".mcap", ".db3"):
            return BagReader(bag).frame_keys()
    raise BagError(f"{run}: neither frames.csv nor a bag with recorded statuses; give the folder that a run wrote")


class _Baseline:
    """The baseline: the pose of the training image that looks most like the frame's."""

    def __init__(self, model: Path, pipeline: Pipeline) -> None:
        path = (model if model.is_dir() else model.parent) / RETRIEVAL
        self._index = Retrieval(path) if path.is_file() else None
        self._pipeline = pipeline
        self._poses: list[tuple[int, Array]] = []

    def add(self, frame: Frame) -> None:
        T_base_camera = self._pipeline.T_base_camera()
        if self._index is None or frame.rgb is None or T_base_camera is None:
            return
        self._poses.append((frame.stamp_ns, self._index.nearest(frame.rgb) @ inverse(T_base_camera)))

    def trajectory(self) -> Trajectory | None:
        return trajectory_of(self._poses) if self._poses else None


class _OutputWriter:
    """The topics that the node publishes, as a bag that RViz can play."""

    def __init__(self, bag: BagWriter, config: LocalizerConfig) -> None:
        self._bag = bag
        self._frames = config.frames
        self._path: list[tuple[int, Array]] = []
        self._length = config.output.path_length
        self._by_network = config.model.odometry == "network"

    def write(self, outputs: Outputs) -> None:
        for state in outputs.states:
            self._bag.write_transform(state.stamp_ns, self._frames.map, self._frames.odom, state.T_map_odom)
            self._bag.write_pose("/localizer/pose", state.stamp_ns, self._frames.map, state.T_map_base, state.cov_66)
        for pose in outputs.vo:
            sample = pose.sample
            self._bag.write_odometry("/localizer/vo", sample, pose.cov_66)
            if self._by_network:  # the bag that goes in has no odom -> base of this odometry
                self._bag.write_transform(sample.stamp_ns, self._frames.odom, self._frames.base, sample.T_odom_base)
        for status in outputs.statuses:
            self._bag.write_status("/localizer/status", status, self._frames.map)
            if status.state is not None:
                self._path.append((status.state.stamp_ns, status.state.T_map_base))
            seen = status.measurement
            if seen is not None:
                self._bag.write_pose(
                    "/localizer/network_pose", seen.stamp_ns, self._frames.map, seen.T_map_base, seen.cov_66
                )

    def finish(self) -> None:
        if self._path:
            kept = self._path[-self._length :]
            self._bag.write_path("/localizer/path", kept[-1][0], self._frames.map, kept)
