"""The command `vmloc`: parses, calls a plain function of `commands` or `ros`, and turns known errors into one line.

Exit status: 0, 1 for a known error, 2 for wrong usage, 130 after Ctrl-C. Everything heavy is imported by the command
that needs it, so that `vmloc --help` is there at once.
"""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from vmloc_ros import __version__
from vmloc_ros.errors import VmlocError

if TYPE_CHECKING:
    from vmloc_ros.report import Report

INTERRUPTED = 130
ROS_PACKAGES = {
    "rclpy", "vmloc_msgs", "tf2_msgs", "geometry_msgs", "sensor_msgs", "nav_msgs", "std_msgs", "std_srvs",
    "diagnostic_msgs", "lifecycle_msgs", "rosgraph_msgs", "rcl_interfaces", "builtin_interfaces",
}  # fmt: skip
"""What the commands on the ROS graph need, and a plain Python does not have."""


class Funnel(TyperGroup):
    """All commands' errors end here."""

    def invoke(self, ctx: Any) -> Any:
        """Runs the command; a known error becomes one line on standard error and exit status 1."""
        try:
            return super().invoke(ctx)
        except VmlocError as error:
            detail = getattr(error, "detail", "")
            if detail:
                print(detail, file=sys.stderr)
            _fail(str(error))
        except ModuleNotFoundError as error:
            package = (error.name or "").partition(".")[0]
            if package not in ROS_PACKAGES:
                raise
            _fail(
                f"the ROS 2 package {package} is not here: `make setup && source .venv/ros_env.sh`, or source your ROS 2 "
                "distribution and its workspace; `vmloc doctor` says more"
            )
        except KeyboardInterrupt:
            print("vmloc: interrupted", file=sys.stderr)
            raise typer.Exit(INTERRUPTED) from None
        except BrokenPipeError:
            raise  # of `vmloc ... | head`: nobody is left to be told
        except OSError as error:
            if error.filename is None:
                raise
            _fail(f"{error.filename}: {error.strerror}")


def _fail(message: str) -> None:
    print(f"vmloc: error: {' '.join(message.split())}", file=sys.stderr)
    raise typer.Exit(1)


app = typer.Typer(
    name="vmloc",
    cls=Funnel,
    help="Where a robot is, from a camera or a lidar, with odometry, and how sure that is.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # an unknown error is a bug: its plain traceback is what a report of it needs
    context_settings={"help_option_names": ["-h", "--help"]},
)

Json = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Also write the numbers as JSON.")]
Config = Annotated[
    Path | None, typer.Option("--config", "--params", metavar="FILE", help="Parameters, as for the node.")
]


class BagFormat(StrEnum):
    robotcar = "robotcar"
    town = "town"
    kitti = "kitti"
    sevenscenes = "sevenscenes"


def _version(wanted: bool) -> None:
    if wanted:
        print(f"vmloc_ros {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    """Where a robot is, from a camera or a lidar, with odometry, and how sure that is."""


# ----------------------------------------------------------------------------------------------------- the main job


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder to write.")] = Path("out/demo"),
    model: Annotated[Path | None, typer.Option(help="Trained model; by default the town's own, models/town.")] = None,
    worse_drift: Annotated[bool, typer.Option(help="Odometry as bad as RobotCar's LOOP.")] = False,
    json: Json = None,
) -> None:
    """Watch the node find its way: a town's unseen drive, over a real ROS 2 graph, with sensors failing on the way.

    Example: vmloc demo --out out/demo
    """
    from vmloc_ros.commands.demo import DemoPlan, run_demo

    report = run_demo(out, model, DemoPlan(worse_drift=worse_drift)).report
    _write_json(json, report)


@app.command()
def localize(
    bag: Annotated[Path, typer.Argument(help="Sensor data: MCAP or sqlite3.")],
    model: Annotated[Path, typer.Option(help="Folder of a trained model.")],
    out: Annotated[Path, typer.Option(help="Folder to write.")] = Path("out/localize"),
    config: Config = None,
    use_stamps: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Use exactly the frames of this earlier run.")
    ] = None,
    plots: Annotated[bool, typer.Option(help="Draw figures.")] = True,
    json: Json = None,
) -> None:
    """Run the whole pipeline over a bag, without ROS, as fast as it goes.

    Example: vmloc localize drive/ --model models/town --out out/drive
    """
    from vmloc_ros.commands.localize import run_localize
    from vmloc_ros.commands.tables import print_report

    result = run_localize(bag, model, out, config, use_stamps, plots)
    print_report(result.report)
    for what, count in sorted(result.rejected.items()):
        print(f"rejected {count}: {what}")
    _write_json(json, result.report)
    print(f"wrote {out}")


@app.command()
def fuse(
    odometry: Annotated[Path, typer.Argument(help="TUM file, or RobotCar's vo.csv.")],
    poses: Annotated[Path, typer.Argument(help="TUM file of measured poses; 6 more columns are deviations.")],
    out: Annotated[Path, typer.Option(help="TUM file to write.")],
    sigma_m: Annotated[float | None, typer.Option(help="Position deviation where the file gives none.")] = None,
    sigma_deg: Annotated[float | None, typer.Option(help="Rotation deviation where the file gives none.")] = None,
    truth: Annotated[Path | None, typer.Option(help="TUM file or ins.csv to measure against.")] = None,
    odometry_extrinsics: Annotated[
        str, typer.Option(metavar="'X Y Z QX QY QZ QW'", help="T_base_odometry; by default none, or RobotCar's.")
    ] = "",
    config: Config = None,
    json: Json = None,
) -> None:
    """Run the filter alone, on files.

    Example: vmloc fuse vo.csv poses.tum --out fused.tum --sigma-m 3 --sigma-deg 2
    """
    from vmloc_ros.commands.fuse import run_fuse
    from vmloc_ros.config import load_config

    extrinsics = [_number(word) for word in odometry_extrinsics.split()] or None
    settings = load_config(config).filter if config is not None else None
    result = run_fuse(odometry, poses, out, sigma_m, sigma_deg, extrinsics, truth, json, settings)
    for name in ("odometry", "poses", "fused"):
        words = [f"{result[name]['samples']} samples"]
        if "position_m" in result[name]:
            position, rotation = result[name]["position_m"], result[name]["rotation_deg"]
            words.append(f"mean error {position['mean']:.2f} m {rotation['mean']:.2f} deg, max {position['max']:.2f} m")
        print(f"{name}: {', '.join(words)}")
    print(f"wrote {out}")


# ------------------------------------------------------------------------------------------------- data and models


@app.command()
def town(
    out: Annotated[Path, typer.Argument(help="Folder to write.")],
    seed: Annotated[int, typer.Option(min=0, help="Everything follows from it.")] = 1,
    traversals: Annotated[int, typer.Option(min=1, help="How many drives.")] = 5,
    first: Annotated[int, typer.Option(min=0, help="Number of the first drive.")] = 0,
    loop_m: Annotated[float, typer.Option(help="Length of the closed road.")] = 350.0,
    laps: Annotated[float, typer.Option(help="How often a drive goes round.")] = 1.1,
) -> None:
    """Write a synthetic town in RobotCar's own on-disk format.

    Example: vmloc town out/town --seed 1 --traversals 5
    """
    from vmloc_ros.commands.town import run_town

    result = run_town(out, seed, traversals, loop_m, laps, first=first)
    print(f"wrote {result.folder}: {len(result.traversals)} traversals, {result.facades} facades, {result.files} files")


@app.command()
def convert(
    format: Annotated[BagFormat, typer.Argument(help="Whose layout SRC has.")],
    source: Annotated[Path, typer.Argument(metavar="SRC", help="One recording, as its publishers ship it.")],
    bag: Annotated[Path, typer.Argument(help="Folder to write (MCAP).")],
    odometry: Annotated[
        str | None, typer.Option(help="vo, oxts, kiss-icp, rgbd or none; by default the format's first.")
    ] = None,
    lidar: Annotated[
        str | None, typer.Option(help="RobotCar: velodyne_left, velodyne_right, ldmrs, lms_front, lms_rear or none.")
    ] = None,
    start: Annotated[float, typer.Option(help="Seconds to leave out at the beginning.")] = 0.0,
    duration: Annotated[float | None, typer.Option(help="Seconds to convert.")] = None,
    compressed: Annotated[bool, typer.Option("--compressed", help="Keep JPEG and PNG images as they are.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a bag of this name.")] = False,
    json: Json = None,
) -> None:
    """Turn a dataset's recording into a rosbag2.

    Example: vmloc convert robotcar 2014-06-26-09-24-58/ drive/ --lidar ldmrs --start 60 --duration 120
    """
    from vmloc_ros.commands.convert import run_convert
    from vmloc_ros.files import write_json

    options: dict[str, Any] = {"lidar": lidar} if lidar is not None else {}
    result = run_convert(format.value, source, bag, odometry, start, duration, compressed, overwrite, **options)
    for note in result.notes:
        print(f"note: {note}")
    for reason, count in sorted(result.skipped.items()):
        print(f"skipped {count}: {reason}")
    counts = ", ".join(f"{topic} {count}" for topic, count in result.written.items())
    print(f"wrote {bag}: {result.duration_s:.1f} s, {result.bytes / 1e6:.0f} MB; {counts}")
    if json is not None:
        write_json(json, result.as_dict())
        print(f"wrote {json}")


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help="Training configuration (YAML); see models/*.yaml.")],
    data: Annotated[Path, typer.Option(metavar="SRC", help="The dataset's folder as its publishers ship it.")],
    out: Annotated[Path, typer.Option(help="The model's folder.")],
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in OUT.")] = False,
) -> None:
    """Train a model.

    Example: vmloc train models/town.yaml --data out/town --out models/town
    """
    from vmloc_ros.commands.train import run_train

    run_train(config, data, out, resume)


@app.command()
def evaluate(
    model: Annotated[Path, typer.Argument(help="Folder of a trained model.")],
    source: Annotated[Path, typer.Argument(metavar="SRC", help="The dataset's folder as its publishers ship it.")],
    format: Annotated[BagFormat, typer.Option(help="Whose layout SRC has.")],
    modalities: Annotated[str, typer.Option(help="Sensors that are there: rgb, depth or rgb,depth.")] = "",
    corrupt: Annotated[
        list[str] | None, typer.Option(metavar="MODALITY:LEVEL", help="As the paper's Table 4; may be repeated.")
    ] = None,
    recording: Annotated[list[str] | None, typer.Option(help="Only this one; may be repeated.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda:n.")] = "auto",
    json: Json = None,
) -> None:
    """Measure the network alone, per modality and corruption, beside the retrieval baseline.

    Example: vmloc evaluate models/town out/town --format town --modalities rgb,depth --corrupt rgb:1
    """
    from vmloc_ros.commands.evaluate import run_evaluate

    chosen = [name.strip() for name in modalities.split(",") if name.strip()]
    run_evaluate(model, source, format.value, chosen, corrupt or (), json, recording or (), device=device)


# ------------------------------------------------------------------------------------------------------ the ROS graph


@app.command()
def play(
    bag: Annotated[Path, typer.Argument(help="MCAP or sqlite3.")],
    rate: Annotated[float, typer.Option(help="Speed; 2 is twice as fast as recorded.")] = 1.0,
    clock: Annotated[bool, typer.Option("--clock", help="Publish /clock with the bag's time.")] = False,
    loop: Annotated[bool, typer.Option("--loop", help="Begin again at the end, until Ctrl-C.")] = False,
    start: Annotated[float, typer.Option(help="Seconds of the bag to leave out at its beginning.")] = 0.0,
    duration: Annotated[float | None, typer.Option(help="Seconds of the bag to play.")] = None,
    topics: Annotated[list[str] | None, typer.Option(help="Only this one; may be repeated.")] = None,
    drop: Annotated[
        list[str] | None,
        typer.Option(metavar="TOPIC:FROM:TO", help="Leave a topic out for these seconds of the bag; may be repeated."),
    ] = None,
    remap: Annotated[list[str] | None, typer.Option(metavar="FROM:=TO", help="May be repeated.")] = None,
    wait: Annotated[float, typer.Option(help="Seconds to wait for subscribers, at most.")] = 0.0,
    wait_topic: Annotated[list[str] | None, typer.Option(help="That must have one; may be repeated.")] = None,
    json: Json = None,
) -> None:
    """Replay a bag on the ROS graph, messages serialized as they were recorded.

    Example: vmloc play drive/ --rate 2 --clock --remap /camera/image:=/image
    """
    from vmloc_ros.ros.player import run_play

    summary = run_play(
        bag, rate, clock, loop, start, duration, topics, [_drop(text) for text in drop or ()],
        wait_for_subscribers_s=wait, wait_topics=wait_topic, remap=remap or (), json_file=json,
    )  # fmt: skip
    print(f"played {summary.total} messages, {summary.duration_s:.1f} s of data in {summary.wall_s:.1f} s")


@app.command()
def record(
    bag: Annotated[Path, typer.Argument(help="Folder to write (MCAP).")],
    topics: Annotated[list[str] | None, typer.Option(help="Only this one; may be repeated.")] = None,
    regex: Annotated[str | None, typer.Option(help="Topics that match it wholly, as well.")] = None,
    duration: Annotated[float | None, typer.Option(help="Seconds; by default until Ctrl-C.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a bag of this name.")] = False,
    json: Json = None,
) -> None:
    """Record topics of the ROS graph.

    Example: vmloc record out/run --topics /localizer/status --topics /localizer/pose
    """
    from vmloc_ros.ros.recorder import run_record

    summary = run_record(
        bag, topics, regex, duration, overwrite, json, started=lambda: print("recording; Ctrl-C to stop", flush=True)
    )
    print(f"wrote {bag}: {summary.total} messages in {summary.duration_s:.1f} s")


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def node(
    context: typer.Context,
    params: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Parameters; see `vmloc params` for all of them.")
    ] = None,
    model: Annotated[Path | None, typer.Option(help="Folder of a trained model (model.path).")] = None,
) -> None:
    """Run the localization node; further arguments are ROS 2's own.

    Example: vmloc node --params localizer.yaml --model models/town --ros-args -r image:=/camera/image
    """
    from vmloc_ros.ros.node import run_node

    ours = ["--ros-args", "-p", f"model.path:={model}", "--"] if model is not None else []
    raise typer.Exit(run_node(params, [*ours, *context.args]))


@app.command()
def watch(
    topic: Annotated[str, typer.Option(help="Of type vmloc_msgs/LocalizationStatus.")] = "/localizer/status",
    duration: Annotated[float | None, typer.Option(help="Seconds; by default until Ctrl-C.")] = None,
    json_lines: Annotated[bool, typer.Option("--json-lines", help="One JSON object per line.")] = False,
) -> None:
    """Print the localizer's diary as it is written: mode, verdict, pose, how sure.

    Example: vmloc watch
    """
    from vmloc_ros.ros.watch import run_watch

    run_watch(topic, json_lines, duration, lambda line: print(line, flush=True))


# -------------------------------------------------------------------------------------------------------- the rest


@app.command()
def plot(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="That a run or a training wrote.")],
    bag: Annotated[Path | None, typer.Option(help="The run's input, for overview.png: camera, lidar and map.")] = None,
    at: Annotated[float | None, typer.Option(help="Which image of the bag, in seconds.")] = None,
    config: Config = None,
) -> None:
    """Draw the figures of a run or a training again.

    Example: vmloc plot out/demo --bag out/demo/input --at 5
    """
    from vmloc_ros.commands.plot import run_plot
    from vmloc_ros.config import load_config

    for path in run_plot(folder, bag, at, load_config(config) if config is not None else None):
        print(f"wrote {path}")


@app.command()
def bench(
    model: Annotated[Path | None, typer.Option(help="Trained model; by default the town's own.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer repetitions.")] = False,
    json: Json = None,
) -> None:
    """Measure how fast the parts are, each beside a reference timed in the same run.

    Example: vmloc bench --json out/bench.json
    """
    from vmloc_ros.commands.bench import run_bench

    run_bench(model, quick, json)


@app.command()
def doctor(
    model: Annotated[Path | None, typer.Option(help="A model's folder to try as well.")] = None,
) -> None:
    """Say what is wrong with this machine's set-up, and what to do about it.

    Example: vmloc doctor --model models/town
    """
    from vmloc_ros.commands.doctor import run_doctor

    raise typer.Exit(run_doctor(model))


@app.command()
def params(
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write them there instead of printing.")] = None,
) -> None:
    """Print every parameter of the node, with its default and its meaning.

    Example: vmloc params --out localizer.yaml
    """
    from vmloc_ros.files import write_text
    from vmloc_ros.parameter_file import render

    if out is None:
        print(render(), end="")
        return
    write_text(out, render())
    print(f"wrote {out}")


def _drop(text: str) -> tuple[str, float, float]:
    """`/image:10:20` as (topic, from, to)."""
    topic, _, seconds = text.partition(":")
    begin, _, end = seconds.partition(":")
    try:
        return topic, float(begin), float(end)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not TOPIC:FROM:TO, such as /image:10:20") from None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a number") from None


def _write_json(path: Path | None, report: Report) -> None:
    if path is not None:
        from vmloc_ros.files import write_json

        write_json(path, report.model_dump(mode="json"))
        print(f"wrote {path}")


def main() -> None:
    """The console script."""
    app(prog_name="vmloc")


if __name__ == "__main__":
    main()
