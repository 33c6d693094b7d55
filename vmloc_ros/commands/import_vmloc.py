"""`vmloc import-vmloc`: a checkpoint of the authors' own code becomes a model of this project."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from vmloc_ros import __version__
from vmloc_ros.checkpoint import CARD, WEIGHTS, CameraCard, ModelCard, save_model
from vmloc_ros.config import InputConfig, ProjectionConfig
from vmloc_ros.errors import CheckpointError, ConfigError
from vmloc_ros.networks.inputs import fit_intrinsics
from vmloc_ros.official import (
    MILLIMETRES_IN_8_BIT_M,
    SIZE,
    Convention,
    DepthEmpty,
    OfficialCheckpoint,
    convert,
    official_network,
    read_checkpoint,
    read_statistics,
    robotcar_convention,
    seven_scenes_convention,
)
from vmloc_ros.types import PinholeIntrinsics

Source = Literal["sevenscenes", "robotcar"]
SEVEN_SCENES_CAMERA = "640 480 585 585 320 240"
"""The camera that 7-Scenes states."""
LICENCE = "of the authors' weights: their repository states none; of the data: its publishers'"


def run_import(
    path: Path,
    out: Path,
    source: Source,
    pose_stats: Path,
    image_stats: Path,
    camera: str = "",
    sdk: Path | None = None,
    depth_white_m: float | None = None,
    depth_empty: DepthEmpty | None = None,
    name: str = "",
) -> ModelCard:
    """Converts a checkpoint and writes model.safetensors and card.yaml; returns the card, which has no calibration.

    Args:
        path: the authors' checkpoint, mode `vmloc`.
        out: the model's folder; it must not hold a model.
        source: the data set that it was trained on: which frames and axes its poses have.
        pose_stats, image_stats: the authors' `pose_stats.txt` and `stats.txt` of that training.
        camera: sevenscenes: `width height fx fy cx cy` of the pictures; by default the data set's.
        sdk: robotcar: the publishers' development kit (`extrinsics/`, `models/`), for camera and mounting.
        depth_white_m: metres that were white in the depth pictures; by default that of their reader of 7-Scenes.
        depth_empty: what a pixel without return was in them; by default what it is on 7-Scenes, else black.
        name: for the card; by default the file's.

    Raises:
        CheckpointError: the checkpoint is unusable (see `read_checkpoint`), or `out` holds a model.
        ConfigError: an option is missing, superfluous or malformed.
        DatasetError: a file of statistics or of the development kit is unusable.
    """
    if (out / WEIGHTS).exists() or (out / CARD).exists():
        raise CheckpointError(f"{out}: holds a model already; give another --out")
    convention = _convention(source, camera, sdk)
    white_m, empty = _depth(source, depth_white_m, depth_empty)
    pose_23, image_23 = read_statistics(pose_stats, "pose statistics"), read_statistics(image_stats, "image statistics")
    checkpoint = read_checkpoint(path)
    tensors, normalisation = convert(checkpoint, convention, pose_23, image_23)
    network = official_network(checkpoint.latent, white_m, empty)
    fitted = fit_intrinsics(convention.camera, SIZE, SIZE)
    card = ModelCard(
        name=name or path.name.partition(".")[0],
        network=network,
        normalisation=normalisation,
        training_camera=CameraCard(**asdict(fitted)),
        crop_margin=0.0,
        frames={"map": "map", "camera": "camera optical frame (x right, y down, z forward)", "dataset": source},
        input=InputConfig(depth_source="depth" if source == "sevenscenes" else "points"),
        projection=ProjectionConfig(),
        calibration={},
        training=_provenance(path, checkpoint),
        licence=LICENCE,
    )
    return save_model(out, tensors, card, "float32")


def _convention(source: Source, camera: str, sdk: Path | None) -> Convention:
    """What the data set's poses are, and its camera."""
    if source == "robotcar":
        if camera:
            raise ConfigError("--camera is for sevenscenes; with robotcar the camera comes from --sdk")
        if sdk is None:
            raise ConfigError(
                "--sdk is missing: robotcar's poses are of the INS, and where the camera is on it stands in the "
                "development kit (a folder with extrinsics/ and models/)"
            )
        return robotcar_convention(sdk)
    if sdk is not None:
        raise ConfigError("--sdk is for robotcar; 7-Scenes' poses are the camera's own")
    try:
        width, height, fx, fy, cx, cy = [float(word) for word in (camera or SEVEN_SCENES_CAMERA).split()]
    except ValueError:
        raise ConfigError(f"--camera: {camera!r} is not six numbers WIDTH HEIGHT FX FY CX CY") from None
    if min(width, height, fx, fy) < 1.0:
        raise ConfigError(f"--camera: {camera!r} has a size or focal length below one pixel")
    return seven_scenes_convention(PinholeIntrinsics(round(width), round(height), fx, fy, cx, cy))


def _depth(source: Source, white_m: float | None, empty: DepthEmpty | None) -> tuple[float, DepthEmpty]:
    """What depth looked like in their pictures."""
    if white_m is None and source == "robotcar":
        raise ConfigError(
            "--depth-white-m is missing: the authors' depth pictures of RobotCar were made by a script that was never "
            "published; give the depth in metres that is white (255) in the ones that the checkpoint was trained with"
        )
    if white_m is not None and not 0.0 < white_m < float("inf"):
        raise ConfigError(f"--depth-white-m: {white_m} is not a depth in metres")
    default: DepthEmpty = "white" if source == "sevenscenes" else "black"  # 65535, no return, is clipped to white
    return white_m or MILLIMETRES_IN_8_BIT_M, empty or default


def _provenance(path: Path, checkpoint: OfficialCheckpoint) -> dict[str, Any]:
    """Where the weights come from."""
    return {
        "imported_from": path.name,
        "sha256_of_it": hashlib.sha256(path.read_bytes()).hexdigest(),
        "code": "github.com/kaichen-z/VMLoc, mode vmloc",
        "epoch": checkpoint.epoch,
        "beta": checkpoint.beta,
        "gamma": checkpoint.gamma,
        "vmloc_ros": __version__,
    }
