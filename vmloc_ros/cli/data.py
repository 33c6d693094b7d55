"""Commands that make data and models, and measure these: town, convert, train, evaluate, track, compare, ..."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from vmloc_ros.cli.options import (
    Config,
    DatasetFormat,
    Grey,
    Json,
    OfficialData,
    PreviousPose,
    RecordingFormat,
    TrackOdometry,
    parsed_options,
    say_wrote,
)


def town(
    out: Annotated[Path, typer.Argument(help="Folder to write.")],
    seed: Annotated[int, typer.Option(min=0, help="Everything follows from it.")] = 1,
    traversals: Annotated[int, typer.Option(min=1, help="How many drives.")] = 5,
    first: Annotated[int, typer.Option(min=0, help="Number of the first drive.")] = 0,
    loop_m: Annotated[float, typer.Option(help="Length of the closed road.")] = 350.0,
    laps: Annotated[float, typer.Option(help="How often a drive goes round.")] = 1.1,
    worse_drift: Annotated[
        bool, typer.Option("--worse-drift", help="Visual odometry as bad as on RobotCar's LOOP.")
    ] = False,
) -> None:
    """Write a synthetic town in RobotCar's own on-disk format.

    Example: vmloc town out/town --seed 1 --traversals 5
    """
    from vmloc_ros.commands.town import run_town
    from vmloc_ros.datasets.town_drive import LOOP_DRIFT

    drift = LOOP_DRIFT if worse_drift else None
    result = run_town(out, seed, traversals, loop_m, laps, drift, first=first)
    print(f"wrote {result.folder}: {len(result.traversals)} traversals, {result.facades} facades, {result.files} files")


def convert(
    format: Annotated[DatasetFormat, typer.Argument(help="Whose layout SRC has.")],
    source: Annotated[Path, typer.Argument(metavar="SRC", help="One recording, as its publishers ship it.")],
    bag: Annotated[Path, typer.Argument(help="Folder to write (MCAP).")],
    odometry: Annotated[
        str | None, typer.Option(help="vo, oxts, kiss-icp, rgbd or none; by default the format's first.")
    ] = None,
    lidar: Annotated[
        str | None, typer.Option(help="RobotCar: velodyne_left, velodyne_right, ldmrs, lms_front, lms_rear or none.")
    ] = None,
    camera: Annotated[str | None, typer.Option(help="RobotCar: stereo/centre, mono_left, ...")] = None,
    frames: Annotated[
        str | None, typer.Option(help="7-Scenes: which frames, such as 600-649 or 0-149,200-349.")
    ] = None,
    extrinsics: Annotated[Path | None, typer.Option(help="RobotCar: folder of the mountings.")] = None,
    models: Annotated[Path | None, typer.Option(help="RobotCar: folder of the camera models.")] = None,
    calibration: Annotated[Path | None, typer.Option(help="KITTI: folder of the calib_*.txt files.")] = None,
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

    given = {"lidar": lidar, "camera": camera, "frames": frames, "extrinsics": extrinsics}
    given |= {"models": models, "calibration": calibration}
    options: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    result = run_convert(format.value, source, bag, odometry, start, duration, compressed, overwrite, **options)
    for note in result.notes:
        print(f"note: {note}")
    for reason, count in sorted(result.skipped.items()):
        print(f"skipped {count}: {reason}")
    counts = ", ".join(f"{topic} {count}" for topic, count in result.written.items())
    print(f"wrote {bag}: {result.duration_s:.1f} s, {result.bytes / 1e6:.0f} MB; {counts}")
    say_wrote(json, result.as_dict())


def train(
    config: Annotated[Path, typer.Argument(help="Training configuration (YAML); see models/*.yaml.")],
    data: Annotated[Path, typer.Option(metavar="SRC", help="The dataset's folder as its publishers ship it.")],
    out: Annotated[Path, typer.Option(help="The model's folder.")],
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in OUT.")] = False,
    samples: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Prepared samples, to be shared by several trainings.")
    ] = None,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Train although more than 1 % of the files are missing or unusable.")
    ] = False,
) -> None:
    """Train a model.

    Example: vmloc train models/town.yaml --data out/town --out models/town
    """
    from vmloc_ros.commands.train import run_train

    run_train(config, data, out, resume, samples, allow_missing)


def evaluate(
    model: Annotated[Path, typer.Argument(help="Folder of a trained model.")],
    source: Annotated[
        Path, typer.Argument(metavar="SRC", help="The dataset's folder as its publishers ship it, or a bag.")
    ],
    format: Annotated[RecordingFormat, typer.Option(help="Whose layout SRC has.")],
    modalities: Annotated[str, typer.Option(help="Sensors that are there: rgb, depth or rgb,depth.")] = "",
    corrupt: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODALITY:LEVEL|all",
            help="rgb:1 masks, depth:2 removes; several are applied together. all: the paper's Table 4 in one pass.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the masks' places.")] = 0,
    split: Annotated[
        str | None,
        typer.Option(help="Only the recordings that the publishers name: test (7-Scenes, Cambridge), loop, full."),
    ] = None,
    recording: Annotated[list[str] | None, typer.Option(help="Only this one; may be repeated.")] = None,
    frames: Annotated[str | None, typer.Option(help="7-Scenes: which frames, such as 600-649.")] = None,
    lidar: Annotated[str | None, typer.Option(help="RobotCar: as for convert; by default the training's.")] = None,
    camera: Annotated[str | None, typer.Option(help="RobotCar: as for convert; by default the training's.")] = None,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Go on although more than 1 % of the files are missing.")
    ] = False,
    truth_topic: Annotated[
        str | None, typer.Option(help="Bags: Odometry or poses to measure against; by default the training's.")
    ] = None,
    option: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="Of the reader, as in the recipe's data.options.")
    ] = None,
    config: Config = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda:n.")] = "auto",
    out: Annotated[Path | None, typer.Option(help="Folder for report, trajectories and figures.")] = None,
    json: Json = None,
) -> None:
    """Measure the network alone, per modality and corruption, beside the retrieval baseline.

    Example: vmloc evaluate models/town out/town --format town --corrupt all --out out/evaluation
    """
    from vmloc_ros.commands.evaluate import run_evaluate

    chosen = [name.strip() for name in modalities.split(",") if name.strip()]
    given = {"split": split, "frames": frames, "lidar": lidar, "camera": camera, "truth_topic": truth_topic}
    options = parsed_options(option or ())
    options |= {name: value for name, value in given.items() if value is not None}
    names, layout = recording or (), format.value
    run_evaluate(
        model, source, layout, chosen, corrupt or (), json, names, options, device, out, seed, allow_missing, config
    )


def track(
    model: Annotated[Path, typer.Argument(help="Folder of a trained model.")],
    source: Annotated[
        Path, typer.Argument(metavar="SRC", help="The dataset's folder as its publishers ship it, or a bag.")
    ],
    format: Annotated[RecordingFormat, typer.Option(help="Whose layout SRC has.")],
    recording: Annotated[list[str] | None, typer.Option(help="Only this one; may be repeated.")] = None,
    blocks: Annotated[
        str, typer.Option(help="Only these: frames (7-Scenes) or seconds, such as 600-649 or 0-10,30-40.")
    ] = "",
    odometry: Annotated[TrackOdometry, typer.Option(help="What drives the filter.")] = TrackOdometry.recording,
    previous_pose: Annotated[
        PreviousPose, typer.Option(help="What a network that takes the previous pose is given.")
    ] = PreviousPose.filter,
    deviation_m: Annotated[
        float, typer.Option(help="Start the filter so far from the true pose along each axis.")
    ] = 0.0,
    deviation_entries: Annotated[
        float, typer.Option(help="The same in all six entries of the state: metres and log-quaternion.")
    ] = 0.0,
    modalities: Annotated[str, typer.Option(help="Sensors that are there: rgb, depth or rgb,depth.")] = "",
    observations: Annotated[
        bool, typer.Option("--observations/--no-observations", help="Fuse what a map observes, or its poses.")
    ] = True,
    lidar: Annotated[str | None, typer.Option(help="RobotCar: as for convert; by default the training's.")] = None,
    option: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="Of the reader, as in the recipe's data.options.")
    ] = None,
    samples: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Keep prepared frames in a folder inside, for the next time.")
    ] = None,
    config: Config = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda:n.")] = "auto",
    out: Annotated[Path | None, typer.Option(help="Folder for report, trajectories and figure.")] = None,
    json: Json = None,
) -> None:
    """Follow a drive: network alone, with the filter, and the odometry alone, side by side.

    Example: vmloc track models/town out/town --format town --recording traversal_09 --deviation-m 1
    """
    from vmloc_ros.commands.track import run_track

    options = parsed_options(option or ()) | ({"lidar": lidar} if lidar is not None else {})
    run_track(
        *(model, source, format.value, recording or ()),
        blocks=[text.strip() for text in blocks.split(",") if text.strip()],
        odometry=odometry.value,
        previous_pose=previous_pose.value,
        deviation_m=deviation_m,
        deviation_entries=deviation_entries,
        modalities=[name.strip() for name in modalities.split(",") if name.strip()],
        observations=observations,
        options=options,
        config=config,
        samples=samples,
        device=device,
        json=json,
        out=out,
    )


def strangers(
    model: Annotated[Path, typer.Argument(help="Folder of a trained model.")],
    source: Annotated[
        list[str] | None,
        typer.Option(metavar="FORMAT:PATH", help="Another place, as for evaluate; may be repeated."),
    ] = None,
    own: Annotated[
        str | None, typer.Option(metavar="FORMAT:PATH", help="The model's own place, to be shown behind a black box.")
    ] = None,
    noise: Annotated[int, typer.Option(min=0, help="Frames of noise.")] = 100,
    masked: Annotated[int, typer.Option(min=0, help="Masked frames of --own.")] = 100,
    frames: Annotated[int, typer.Option(min=1, help="Of each source at most so many, evenly.")] = 100,
    seed: Annotated[int, typer.Option(min=0, help="Of noise and masks.")] = 1,
    option: Annotated[
        list[str] | None,
        typer.Option(metavar="[FORMAT:]NAME=VALUE", help="Of the readers, or of the one of a format."),
    ] = None,
    config: Config = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda:n.")] = "auto",
    json: Json = None,
) -> None:
    """Count how often a model claims a pose of what it cannot know: other places, noise, a covered camera.

    Example: vmloc strangers models/town --source kitti:2011_09_26_drive_0009_sync --own town:out/town/traversal_09
    """
    from vmloc_ros.commands.strangers import run_strangers

    run_strangers(
        *(model, source or (), own, noise, masked, frames, seed),
        options=parsed_options(option or ()),
        config=config,
        device=device,
        json=json,
    )


def calibrate(
    model: Annotated[Path, typer.Argument(help="Folder of a trained or imported model; its card is rewritten.")],
    source: Annotated[
        Path, typer.Argument(metavar="SRC", help="The dataset's folder as its publishers ship it, or a bag.")
    ],
    format: Annotated[RecordingFormat, typer.Option(help="Whose layout SRC has.")],
    recording: Annotated[
        list[str] | None, typer.Option(help="Calibrate on this one; may be repeated. By default all others.")
    ] = None,
    trained_on: Annotated[
        list[str] | None,
        typer.Option(help="A recording of SRC that the model was trained on, to measure its latents; may be repeated."),
    ] = None,
    frames: Annotated[str | None, typer.Option(help="7-Scenes: which frames, such as 600-649.")] = None,
    option: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="Of the reader, as in the recipe's data.options.")
    ] = None,
    config: Config = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda:n.")] = "auto",
) -> None:
    """Measure how sure a model may be, on data it was not trained on.

    Example: vmloc calibrate models/town out/town --format town --recording traversal_08 --recording traversal_10
    """
    from vmloc_ros.commands.calibrate import run_calibrate

    options = parsed_options(option or ()) | ({"frames": frames} if frames is not None else {})
    run_calibrate(model, source, format.value, recording or (), trained_on or (), options, device, config)


def compare(
    targets: Annotated[
        list[Path], typer.Argument(metavar="PLAN|MODEL...", help="A plan (models/ablation_*.yaml), or trained models.")
    ],
    data: Annotated[Path, typer.Option(metavar="SRC", help="The dataset's folder as its publishers ship it.")],
    out: Annotated[Path, typer.Option(help="Folder for the runs, the samples and the table.")],
    only: Annotated[str, typer.Option(metavar="NAMES", help="Variants of the plan to take, with commas.")] = "",
    jobs: Annotated[int, typer.Option(min=1, help="Trainings at a time; they share the cores.")] = 1,
    format: Annotated[RecordingFormat | None, typer.Option(help="Models: whose layout SRC has.")] = None,
    recording: Annotated[list[str] | None, typer.Option(help="Models: only this one; may be repeated.")] = None,
    split: Annotated[str | None, typer.Option(help="Models: as for evaluate.")] = None,
    frames: Annotated[str | None, typer.Option(help="Models, 7-Scenes: which frames, such as 600-649.")] = None,
    option: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="Models: of the reader; may be repeated.")
    ] = None,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Go on although more than 1 % of the files are missing.")
    ] = False,
    json: Json = None,
) -> None:
    """Train the variants of a plan, or take trained models, and print one table of all on the same frames.

    What is trained already is not trained again. Exit status 1 when a variant failed.

    Example: vmloc compare models/ablation_town.yaml --data out/town --out out/ablation --jobs 2
    """
    from vmloc_ros.commands.compare import run_compare

    names = [name.strip() for name in only.split(",") if name.strip()]
    options = parsed_options(option or ())
    options |= {name: value for name, value in {"split": split, "frames": frames}.items() if value is not None}
    layout = format.value if format is not None else None
    report = run_compare(targets, data, out, names, jobs, json, layout, recording or (), options, allow_missing)
    if report["failed"]:
        raise typer.Exit(1)


def import_vmloc(
    checkpoint: Annotated[Path, typer.Argument(metavar="FILE", help="Of the authors' code, mode vmloc (*.pth.tar).")],
    out: Annotated[Path, typer.Option(help="The model's folder to write.")],
    data: Annotated[OfficialData, typer.Option(help="What it was trained on.")],
    pose_stats: Annotated[Path, typer.Option(metavar="FILE", help="pose_stats.txt of its training.")],
    image_stats: Annotated[Path, typer.Option(metavar="FILE", help="stats.txt of its training.")],
    camera: Annotated[
        str, typer.Option(metavar="'W H FX FY CX CY'", help="7-Scenes: of the pictures; by default the official one.")
    ] = "",
    sdk: Annotated[Path | None, typer.Option(help="RobotCar: folder with extrinsics/ and models/.")] = None,
    depth_white_m: Annotated[
        float | None, typer.Option(help="Metres that are white in its depth pictures; 7-Scenes: 0.255.")
    ] = None,
    depth_empty: Annotated[
        Grey | None, typer.Option(help="A pixel without return in them; 7-Scenes: white, RobotCar: black.")
    ] = None,
    name: Annotated[str, typer.Option(help="For the card; by default the file's.")] = "",
) -> None:
    """Convert a checkpoint of the authors' VMLoc code; nothing in it is executed.

    The model has no calibration: measure one with `vmloc calibrate` before it can localize.

    Example: vmloc import-vmloc a.pth.tar --data sevenscenes --pose-stats p.txt --image-stats s.txt --out out/official
    """
    from vmloc_ros.commands.import_vmloc import run_import

    card = run_import(
        checkpoint,
        out,
        data.value,
        pose_stats,
        image_stats,
        camera,
        sdk,
        depth_white_m,
        depth_empty.value if depth_empty is not None else None,
        name,
    )
    print(f"wrote {out}: {card.name}; next: vmloc calibrate {out} SRC --format F")


def export(
    model: Annotated[Path, typer.Argument(help="Folder of a trained model: VMLoc, or over scene coordinates.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder to write, a model again; by default `onnx` inside MODEL.")
    ] = None,
    modalities: Annotated[
        str, typer.Option(help="What the written model knows: rgb, depth, or both with a comma; by default all.")
    ] = "",
    json: Json = None,
) -> None:
    """Write a model's network as ONNX, for ONNX Runtime: faster on a CPU, the same answers.

    Checked against PyTorch before anything is written. Run the folder with `model.runtime: onnx`.

    Example: vmloc export models/town --out out/town_onnx
    """
    from vmloc_ros.commands.export import run_export

    written = run_export(model, out, [name.strip() for name in modalities.split(",") if name.strip()])
    for name, megabytes in written.megabytes.items():
        print(f"{name}: {megabytes:.1f} MB, at most {written.differences[name]:.1e} network units from PyTorch")
    say_wrote(json, {"megabytes": written.megabytes, "difference": written.differences})
    print(f"wrote {written.folder}; run it with model.runtime: onnx")
