"""A world of pictures for tests of networks: where the camera stands decides what it sees, in colour and in depth."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from vmloc_ros.batches import measure_normalisation
from vmloc_ros.checkpoint import CameraCard, ModeCalibration, ModelCard
from vmloc_ros.config import InputConfig, ProjectionConfig, parse
from vmloc_ros.geometry import Array, exp_se3
from vmloc_ros.networks.config import NetworkConfig, Normalisation
from vmloc_ros.samples import Labelled, SampleStore, build_store
from vmloc_ros.training_config import TrainingConfig
from vmloc_ros.types import Frame, FrameKey, Modality, Mode, PinholeIntrinsics

CAMERA = PinholeIntrinsics(64, 48, 50.0, 50.0, 31.5, 23.5)
START_NS = 1_700_000_000_000_000_000
STEP_NS = 100_000_000

TINY: dict[str, Any] = {
    "name": "tiny",
    "threads": 1,
    "network": {
        "width": 32,
        "height": 24,
        "channels": [8, 12],
        "reduced": 0,
        "grid_rows": 2,
        "grid_columns": 3,
        "latent": 16,
        "hidden": 24,
        "dropout": 0.1,
    },
    "objective": {"samples": 2},
    "optimizer": {"epochs": 4, "batch_size": 8, "validate_every": 2},
    "calibration": {"latent_samples": 4, "min_frames": 8},
}


def tiny_config(**changes: Any) -> TrainingConfig:
    """The tiny configuration; a section given as a mapping changes only the keys it names."""
    values = dict(TINY)
    for key, value in changes.items():
        values[key] = {**values.get(key, {}), **value} if isinstance(value, dict) else value
    return parse(TrainingConfig, values, "test")


def pose_at(share: float) -> Array:
    """T_map_camera: along a bend."""
    return exp_se3([4.0 * share, 1.0 * share, 0.0, 0.1 * share, 0.8 * share, 0.0])


def frame_at(share: float, stamp_ns: int, modalities: tuple[str, ...] = ("rgb", "depth")) -> Frame:
    """What a camera sees after a share of the way: a pattern that moves, and a wall that comes nearer."""
    x = np.linspace(0.0, 1.0, CAMERA.width)[None, :]
    y = np.linspace(0.0, 1.0, CAMERA.height)[:, None]
    waves = [np.sin(4.0 * (x + share) + k) * np.cos(3.0 * (y - 0.5 * share) + 2.0 * k) for k in range(3)]
    rgb = (127.5 + 100.0 * np.stack(waves, axis=2)).astype(np.uint8)
    depth = (9.0 - 5.0 * share + 2.0 * np.sin(6.0 * (x + 2.0 * share)) * y).astype(np.float32)
    depth[::5] = 0.0
    absent = {m: "not sent" for m in Modality if m.value not in modalities}
    key = FrameKey(stamp_ns, stamp_ns if "rgb" in modalities else None)
    return Frame(key, CAMERA, rgb if "rgb" in modalities else None, depth if "depth" in modalities else None, absent)


def drive(count: int = 40, recording: str = "drive", first_ns: int = START_NS) -> Iterator[Labelled]:
    """Labelled frames along the bend."""
    for index in range(count):
        share = index / max(1, count - 1)
        yield frame_at(share, first_ns + index * STEP_NS), pose_at(share), recording


def build(folder: Path, config: TrainingConfig, count: int = 40) -> tuple[SampleStore, Normalisation]:
    """A store of one drive, and its normalisation."""
    store = build_store(folder, drive(count), *config.stored_size(), "key")
    return store, measure_normalisation(store, np.arange(len(store)))


def card_of(network: NetworkConfig, normalisation: Normalisation, margin: float = 0.125) -> ModelCard:
    """A card with a made-up calibration, for a network that was never trained."""
    rows, columns = round(network.height * (1 + margin)), round(network.width * (1 + margin))
    camera = replace(CAMERA.resized(columns, rows))
    calibration = ModeCalibration(
        base_66=np.diag([0.1, 0.2, 0.3, 0.01, 0.02, 0.03]).tolist(),
        exponent=1.0,
        spread_median=0.5,
        spread_p95=1.0,
        limit=30.0,
        frames=40,
    )
    return ModelCard(
        name="made up",
        network=network,
        normalisation=normalisation,
        training_camera=CameraCard(**{k: getattr(camera, k) for k in ("width", "height", "fx", "fy", "cx", "cy")}),
        crop_margin=margin,
        frames={"map": "map", "camera": "camera_optical"},
        input=InputConfig(),
        projection=ProjectionConfig(),
        latent_samples=6,
        calibration=dict.fromkeys((Mode.RGB_DEPTH, Mode.RGB_ONLY, Mode.DEPTH_ONLY), calibration),
    )


NORMALISATION = Normalisation(
    rgb_mean=[0.5, 0.5, 0.5],
    rgb_std=[0.25, 0.25, 0.25],
    depth_log_mean=1.5,
    depth_log_std=0.5,
    position_mean_m=[1.0, 2.0, 3.0],
    position_scale_m=4.0,
    rotation_reference_xyzw=[0.0, 0.0, 0.0, 1.0],
)
