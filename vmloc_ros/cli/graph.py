"""Commands on the ROS graph: node, play, record, watch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vmloc_ros.cli.options import Json


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


def _drop(text: str) -> tuple[str, float, float]:
    """`/image:10:20` as (topic, from, to)."""
    topic, _, seconds = text.partition(":")
    begin, _, end = seconds.partition(":")
    try:
        return topic, float(begin), float(end)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not TOPIC:FROM:TO, such as /image:10:20") from None
