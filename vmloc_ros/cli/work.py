"""Commands that localize, show what came of it, and try what is there.

demo, localize, fuse, error-model, plot, map-view, scene-view, bench, soak, doctor, params.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from vmloc_ros.cli.options import Config, Json, RecordingFormat, parsed_options, say_wrote


def demo(
    out: Annotated[Path, typer.Option(help="Folder to write.")] = Path("out/demo"),
    model: Annotated[Path | None, typer.Option(help="Trained model; by default models/town_scene.")] = None,
    worse_drift: Annotated[bool, typer.Option(help="Odometry as bad as RobotCar's LOOP.")] = False,
    json: Json = None,
) -> None:
    """Watch the node find its way: a town's unseen drive, over a real ROS 2 graph, with sensors failing on the way.

    Example: vmloc demo --out out/demo
    """
    from vmloc_ros.commands.demo import DemoPlan, run_demo

    report = run_demo(out, model, DemoPlan(worse_drift=worse_drift)).report
    say_wrote(json, report.model_dump(mode="json"))


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
    say_wrote(json, result.report.model_dump(mode="json"))
    print(f"wrote {out}")


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
    _print_tracks(result, ("odometry", "poses", "fused"))
    model = (
        f"{name} {found['value']:.5f} +- {found['deviation']:.5f}" for name, found in result["odometry_model"].items()
    )
    print(f"odometry's model: {', '.join(model)}")
    print(f"wrote {out}")


def smooth(
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
    """Find the most likely whole drive, from files: what `vmloc fuse` would say if it knew what comes later.

    Example: vmloc smooth vo.csv poses.tum --out smoothed.tum --sigma-m 3 --sigma-deg 2
    """
    from vmloc_ros.commands.smooth import run_smooth
    from vmloc_ros.config import load_config

    extrinsics = [_number(word) for word in odometry_extrinsics.split()] or None
    settings = load_config(config).filter if config is not None else None
    result = run_smooth(odometry, poses, out, sigma_m, sigma_deg, extrinsics, truth, json, settings)
    _print_tracks(result, ("odometry", "poses", "fused", "smoothed"))
    if "nees" in result:
        shares = (f"{name} {found['mean'] / found['dof']:.2f}" for name, found in result["nees"].items())
        print(f"NEES / dof: {', '.join(shares)}")
    model = (f"{name} {value:.5f}" for name, value in result["odometry_model"].items())
    print(f"odometry's model: {', '.join(model)}")
    print(f"wrote {out}")


def _print_tracks(result: dict[str, Any], names: Iterable[str]) -> None:
    """One line for each trajectory of a result: samples, and errors where they are known."""
    for name in names:
        words = [f"{result[name]['samples']} samples"]
        if "position_m" in result[name]:
            position, rotation = result[name]["position_m"], result[name]["rotation_deg"]
            words.append(f"mean error {position['mean']:.2f} m {rotation['mean']:.2f} deg, max {position['max']:.2f} m")
        print(f"{name}: {', '.join(words)}")


def error_model(
    estimates: Annotated[
        list[Path], typer.Argument(help="TUM files with 6 more columns of deviations, or folders of runs.")
    ],
    truth: Annotated[
        list[Path] | None, typer.Option(help="TUM file; once for each file of estimates. Folders have their own.")
    ] = None,
    gap_s: Annotated[float, typer.Option(help="Errors further apart are not taken for correlated.")] = 5.0,
    sigma_m: Annotated[float | None, typer.Option(help="Position deviation, in place of the files' own.")] = None,
    sigma_deg: Annotated[float | None, typer.Option(help="Rotation deviation, in place of the files' own.")] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Parameter file to write.")] = None,
    config: Config = None,
    json: Json = None,
) -> None:
    """Estimate how heavy-tailed and how lasting a network's errors are: three parameters of the filter.

    Example: vmloc error-model poses.tum --truth truth.tum --out filter.yaml
    """
    from vmloc_ros.commands.error_model import run_error_model
    from vmloc_ros.config import load_config

    settings = load_config(config).filter if config is not None else None
    run_error_model(estimates, truth or (), gap_s, sigma_m, sigma_deg, out, json, settings)
    for path in (out, json):
        if path is not None:
            print(f"wrote {path}")


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


def map_view(
    model: Annotated[Path, typer.Argument(help="Folder of a trained Generative Map.")],
    out: Annotated[Path | None, typer.Option(help="PNG to write.")] = None,
    pose: Annotated[
        str | None,
        typer.Option(metavar="'X Y Z QX QY QZ QW'", help="Draw the view from here: the camera's optical frame in map."),
    ] = None,
    path: Annotated[
        Path | None, typer.Option(metavar="FILE.tum", help="Draw views along this trajectory of the camera.")
    ] = None,
    score: Annotated[
        Path | None, typer.Option(metavar="SRC", help="Draw and count how well views fit the frames of a drive.")
    ] = None,
    like: Annotated[Path | None, typer.Option(metavar="SRC", help="With --pose: the nearest frame beside it.")] = None,
    mounting: Annotated[
        str, typer.Option(metavar="'X Y Z QX QY QZ QW'", help="T_base_camera, where --path is the base's.")
    ] = "",
    format: Annotated[RecordingFormat, typer.Option(help="Whose layout SRC has.")] = RecordingFormat.town,
    recording: Annotated[list[str] | None, typer.Option(help="Of SRC only this one; may be repeated.")] = None,
    option: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="Of the reader, as in the recipe's data.options.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda:n.")] = "auto",
    json: Json = None,
) -> None:
    """Look at a Generative Map: from one pose, along a path, or beside what a drive really saw.

    Example: vmloc map-view out/map --score out/town --format town --recording traversal_09 --out out/views.png
    """
    from vmloc_ros.commands.map_view import run_path, run_score, run_view

    if sum(given is not None for given in (pose, path, score)) != 1:
        raise typer.BadParameter("give one of --pose, --path and --score")
    options, names = parsed_options(option or ()), recording or ()
    if score is not None:
        result = run_score(model, score, format.value, names, options, out, json, device)
        for name, words in (("psnr_db", "as they are"), ("psnr_db_in_its_light", "in the drive's light")):
            found = result[name]
            print(
                f"PSNR of {result['frames']} views, {words}: {found['view']:.2f} dB, of the mean training picture "
                f"{found['mean_picture']:.2f} dB: {found['gain']:+.2f} dB"
            )
        print(f"mismatch: median {result['mismatch']['median']:.3f}, 95 % below {result['mismatch']['p95']:.3f}")
        for written in (out, json):
            if written is not None:
                print(f"wrote {written}")
        return
    if out is None:
        raise typer.BadParameter("--out is needed: the PNG to write")
    if pose is not None:
        print(run_view(model, pose, out, like, format.value, names, options, device))
    elif path is not None:
        print(run_path(model, path, out, mounting, device=device))


def scene_view(
    model: Annotated[Path, typer.Argument(help="Folder of a trained scene_coordinates model.")],
    source: Annotated[Path, typer.Argument(metavar="SRC", help="Recordings, as for `vmloc evaluate`.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder that receives the figures and report.json.")],
    format: Annotated[RecordingFormat, typer.Option(help="Whose layout SRC has.")] = RecordingFormat.town,
    recording: Annotated[str, typer.Option(help="Which one; may be left out where SRC has only one.")] = "",
    at: Annotated[
        list[float] | None, typer.Option(metavar="SECONDS", help="Since the first frame; may be repeated.")
    ] = None,
    frame: Annotated[list[int] | None, typer.Option(metavar="N", help="By number, from 0; may be repeated.")] = None,
    modalities: Annotated[str, typer.Option(help="rgb,depth, or one; by default all that the model knows.")] = "",
    option: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="Of the reader, as in the recipe's data.options.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda:n.")] = "auto",
    json: Json = None,
) -> None:
    """See what every cell of a frame says about the map, which agree with the pose, and why a pose is refused.

    Without --at and --frame: three frames, spread over the recording.

    Example: vmloc scene-view out/scene out/town --recording traversal_09 --at 12.5 --out out/view
    """
    from vmloc_ros.commands.scene_view import Wanted, run_scene_view

    wanted = Wanted(tuple(frame or ()), tuple(at or ()))
    names = [name.strip() for name in modalities.split(",") if name.strip()]
    options = parsed_options(option or ())
    run_scene_view(model, source, format.value, out, recording, wanted, names, options, json, device)


def bench(
    model: Annotated[Path | None, typer.Option(help="Trained model; by default the town's own.")] = None,
    training: Annotated[
        bool, typer.Option("--training", help="Time training steps of the paper's network instead (minutes).")
    ] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer repetitions.")] = False,
    json: Json = None,
) -> None:
    """Measure how fast the parts are, each beside a reference timed in the same run.

    Example: vmloc bench --json out/bench.json
    """
    if training:
        from vmloc_ros.commands.bench_training import run_bench_training

        run_bench_training(quick, json)
        return
    from vmloc_ros.commands.bench import run_bench

    run_bench(model, quick, json)


def soak(
    odometry: Annotated[int, typer.Option(min=100, help="At least so many odometry messages.")] = 1_000_000,
    poses: Annotated[int, typer.Option(min=1, help="At least so many frames with an answer.")] = 100_000,
    seed: Annotated[int, typer.Option(min=0, help="Of the drive, its faults and the network's errors.")] = 0,
    json: Json = None,
) -> None:
    """Drive for three hours of data, with faults, through the pipeline: is memory flat, do the counters add up?

    Exit status 1 where one of them does not. Needs Linux.

    Example: vmloc soak --json out/soak.json
    """
    from vmloc_ros.commands.soak import run_soak

    raise typer.Exit(1 if run_soak(odometry, poses, seed, json).failures else 0)


def doctor(
    model: Annotated[Path | None, typer.Option(help="A model's folder to try as well.")] = None,
) -> None:
    """Say what is wrong with this machine's set-up, and what to do about it.

    Example: vmloc doctor --model models/town
    """
    from vmloc_ros.commands.doctor import run_doctor

    raise typer.Exit(run_doctor(model))


def params(
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write them there instead of printing.")] = None,
) -> None:
    """Print every parameter of the node, with its default and its meaning.

    Example: vmloc params --out localizer.yaml
    """
    from vmloc_ros.commands.params import run_params

    text = run_params(out)
    print(text if out is None else f"wrote {out}\n", end="")


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a number") from None
