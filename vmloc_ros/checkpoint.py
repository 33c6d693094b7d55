"""Trained models on disk: safetensors and a card, loaded strictly, never unpickled.

A model's folder holds `model.safetensors`, `card.yaml`, `config.yaml`, `metrics.csv`, maybe `retrieval.safetensors`
and `neighbours.safetensors`.
The card carries everything that is needed to use the weights: architecture, normalisation, camera, calibration, hash.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field, field_validator
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn

from vmloc_ros import files
from vmloc_ros.config import InputConfig, ProjectionConfig, StrictModel, parse, read_yaml
from vmloc_ros.errors import CheckpointError, ConfigError
from vmloc_ros.networks.config import AnyNetwork, Normalisation
from vmloc_ros.networks.generative_map_config import MapCard
from vmloc_ros.networks.scene_coordinates_config import SceneCard
from vmloc_ros.networks.vlocnet_config import MotionCard
from vmloc_ros.pose_graph_config import PoseGraphConfig
from vmloc_ros.types import Mode, PinholeIntrinsics
from vmloc_ros.uncertainty import Calibration

WEIGHTS = "model.safetensors"
CARD = "card.yaml"
CONFIG = "config.yaml"
METRICS = "metrics.csv"
RETRIEVAL = "retrieval.safetensors"
NEIGHBOURS = "neighbours.safetensors"
MAX_HEADER_BYTES = 100_000_000
SCALE = ":scale"
"""After the name of a matrix that is stored in bytes: its scales."""
StorageName = Literal["float32", "float16", "int8"]


class CameraCard(StrictModel):
    """The ideal camera that the network was trained with, at the size that inputs are resized to (before the crop)."""

    width: int
    height: int
    fx: float
    fy: float
    cx: float
    cy: float


class Judgement(StrictModel):
    """How true covariances were on frames they were not calibrated on."""

    blocks: int = Field(ge=1, description="Stretches of data, each judged by what was fitted without it.")
    frames: int = Field(ge=1)
    nees: float = Field(ge=0.0, description="Mean NEES over its expectation, 6: 1 is true, more is overconfident.")
    coverage: dict[str, float] = Field(description="Share of the frames in the ellipsoids of 50, 90 and 95 %.")
    log_likelihood: float = Field(description="Per frame, natural logarithm, metres and radians.")
    constant: float = Field(description="The same of the best constant covariance of the calibration frames.")
    own_constant: float = Field(description="The same of the best constant covariance of the judged frames themselves.")


class ModeCalibration(StrictModel):
    """How sure the model is with one set of modalities, measured on validation frames; see `uncertainty.Calibration`.

    With neighbours the evidence of a frame is where the training frames nearest to it in the latent space were taken
    (`neighbours.safetensors`), else the scatter of the pose over latent samples.
    """

    base_66: list[list[float]] = Field(description="Covariance of (x, y, z, rot x, rot y, rot z) in camera axes.")
    exponent: float = Field(0.0, ge=0.0, description="How strongly the latent scatter's size scales it.")
    spread_median: float = Field(gt=0.0, description="Median latent scatter on the validation frames.")
    spread_p95: float = Field(gt=0.0, description="Its 95th percentile; beyond it the health score falls.")
    limit: float = Field(30.0, ge=1.0, description="Largest ratio of scatters that is believed.")
    frames: int = Field(ge=0, description="Validation frames behind these numbers.")
    evidence: Literal["none", "scatter", "neighbours"] = Field("none", description="What the fields below are of.")
    share: float = Field(0.0, ge=0.0, description="Of the evidence's covariance, added to base_66.")
    distance_median: float = Field(1.0, gt=0.0, description="Median distance to the nearest training latent.")
    distance_exponent: float = Field(0.0, ge=0.0, description="How strongly that distance scales the covariance.")
    distance_p95: float | None = Field(None, gt=0.0, description="Its 95th percentile; beyond it the health falls.")
    disagreement_median: float = Field(1.0, gt=0.0, description="Median size of the evidence in metres.")
    disagreement_exponent: float = Field(0.0, ge=0.0, description="How strongly that size scales the covariance.")
    constant_66: list[list[float]] | None = Field(
        None, description="Best constant covariance of the calibration frames: what the numbers above must beat."
    )
    judged: Judgement | None = Field(None, description="Leave one block out; none where it could not be done.")
    unverified: str = Field("", description="Why these numbers were not judged on other data.")

    @field_validator("base_66", "constant_66")
    @classmethod
    def _square(cls, value: list[list[float]] | None) -> list[list[float]] | None:
        if value is not None and (len(value) != 6 or any(len(row) != 6 for row in value)):
            raise ValueError("must be 6 rows of 6 numbers")
        return value

    def rule(self) -> Calibration:
        """What turns evidence into covariances."""
        return Calibration(
            np.array(self.base_66),
            self.exponent,
            self.spread_median,
            self.spread_p95,
            self.limit,
            self.share,
            self.distance_median,
            self.distance_exponent,
            np.inf if self.distance_p95 is None else self.distance_p95,
            self.disagreement_median,
            self.disagreement_exponent,
        )


class ExportCard(StrictModel):
    """The ONNX files that stand in the place of weights; see `runtimes.onnx`."""

    sha256: dict[str, str] = Field(min_length=1, description="By file.")
    difference: dict[str, float] = Field(description="By file, largest from PyTorch on made-up frames, network units.")
    made_with: dict[str, str] = Field(default_factory=dict, description="Versions.")


class ModelCard(StrictModel):
    """What a trained model is and how it may be used."""

    name: str
    format_version: Literal[1] = 1
    network: AnyNetwork
    normalisation: Normalisation
    training_camera: CameraCard
    crop_margin: float = Field(
        0.0, ge=0.0, description="Inputs are resized this much larger, then cut to the network's."
    )
    frames: dict[str, str] = Field(description="`map` and `camera`: what T_map_camera is between; and notes on them.")
    input: InputConfig = Field(description="With which sensors the frames were built.")
    projection: ProjectionConfig = Field(description="How points became depth images (accumulate: past or around).")
    latent_samples: int = Field(16, ge=2)
    calibration: dict[Mode, ModeCalibration]
    motion: MotionCard | None = Field(None, description="Of the network's own odometry, where it has one.")
    map: MapCard | None = Field(None, description="Of a map that can be looked at.")
    scene: SceneCard | None = Field(None, description="When answers over scene coordinates are believed.")
    pose_graph: PoseGraphConfig | None = Field(None, description="The poses go through this before they are given out.")
    scores: dict[str, Any] = Field(default_factory=dict, description="On validation data, per mode.")
    training: dict[str, Any] = Field(default_factory=dict, description="Data, seed, versions, duration.")
    licence: str = Field("", description="Of the data that the weights were learnt from.")
    sha256: str = Field("", description=f"Of {WEIGHTS}.")
    neighbours_sha256: str = Field("", description=f"Of {NEIGHBOURS}; empty where there is none.")
    exported: ExportCard | None = Field(None, description="Of a folder that `vmloc export` wrote: it has no weights.")

    @field_validator("calibration", mode="before")
    @classmethod
    def _modes(cls, value: Any) -> Any:
        return {Mode(key): item for key, item in value.items()} if isinstance(value, dict) else value

    @property
    def camera(self) -> PinholeIntrinsics:
        """The training camera: the view of a whole input, before the crop."""
        return PinholeIntrinsics(**self.training_camera.model_dump())


def save_model(folder: Path, tensors: Mapping[str, Tensor], card: ModelCard, storage: StorageName) -> ModelCard:
    """Writes weights and card, each atomically; returns the card with the weights' hash.

    With `float16` the matrices (two dimensions and more) are stored in half precision, with `int8` in bytes and a scale
    for each row; vectors in single.
    """
    kept: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        kept[name] = stored(tensor, storage)
        if storage == "int8" and is_matrix(tensor):
            kept[name], kept[name + SCALE] = in_bytes(tensor)
    content = save_safetensors(kept, metadata={"architecture": card.network.architecture})
    card = card.model_copy(update={"sha256": hashlib.sha256(content).hexdigest()})
    files.write_bytes(folder / WEIGHTS, content)
    files.write_yaml(folder / CARD, card.model_dump(mode="json"))
    return card


def stored(tensor: Tensor, storage: StorageName) -> Tensor:
    """A tensor with the numbers that the file holds; with `int8` as what they are read as, in single precision."""
    tensor = tensor.detach().cpu().contiguous()
    if storage == "float32" or not is_matrix(tensor):
        return tensor
    return tensor.half() if storage == "float16" else from_bytes(*in_bytes(tensor))


def is_matrix(tensor: Tensor) -> bool:
    """Whether a tensor is stored in fewer bits: kernels and matrices, not vectors and counts."""
    return tensor.is_floating_point() and tensor.ndim >= 2


def in_bytes(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """A matrix as whole numbers from -127 to 127 and a scale for each row (of the first dimension).

    What was read from bytes gives the same bytes again.
    """
    rows = tensor.detach().cpu().float().contiguous()
    scale = rows.flatten(1).abs().amax(dim=1).clamp_min(1e-30) / 127.0
    whole = torch.round(rows / scale.reshape(-1, *[1] * (rows.ndim - 1))).clamp(-127.0, 127.0)
    return whole.to(torch.int8), scale


def from_bytes(whole: Tensor, scale: Tensor) -> Tensor:
    """The matrix again, in single precision."""
    return whole.float() * scale.reshape(-1, *[1] * (whole.ndim - 1))


def _restored(tensors: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The tensors of a file in single precision, whatever they were stored in.

    Raises:
        CheckpointError: bytes without a scale, or with one of another size.
    """
    result = {}
    for name, tensor in tensors.items():
        if name.endswith(SCALE):
            continue
        if tensor.dtype is torch.int8:
            scale = tensors.get(name + SCALE)
            if scale is None or scale.shape != tensor.shape[:1]:
                raise CheckpointError(
                    f"{path}: {name!r} is stored in bytes, but has no scale for each row; copy it again"
                )
            tensor = from_bytes(tensor, scale)
        result[name] = tensor.float() if tensor.dtype is torch.float16 else tensor
    return result


def load_card(folder: Path) -> ModelCard:
    """Reads a model's card.

    Raises:
        CheckpointError: no such folder, no card, or a card that is malformed.
    """
    if not folder.is_dir():
        raise CheckpointError(
            f"{folder}: no such model folder; give the --out folder of `vmloc train` or one in models/"
        )
    path = folder / CARD
    if not path.is_file():
        raise CheckpointError(
            f"{path}: missing; a model's folder holds {CARD} and {WEIGHTS} as `vmloc train` wrote them"
        )
    try:
        return parse(ModelCard, read_yaml(path), str(path))
    except ConfigError as error:
        raise CheckpointError(f"{error}; take the card that `vmloc train` wrote beside the weights") from error


def read_tensors(path: Path) -> tuple[dict[str, Tensor], bytes]:
    """All tensors of a safetensors file, and its bytes.

    Raises:
        CheckpointError: missing, empty, truncated, a pickle (which is never opened), or not safetensors.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}); copy the model's folder whole") from error
    is_header = content[8:9] == b"{"  # of safetensors, whose first byte may be a pickle's: it is part of a length
    if content[:4] == b"PK\x03\x04" or (content[:1] == b"\x80" and not is_header):
        raise CheckpointError(
            f"{path}: is a pickle (torch.save), which can run code and is never loaded; use safetensors"
        )
    length = int.from_bytes(content[:8], "little")
    if len(content) < 10 or (is_header and length < MAX_HEADER_BYTES and len(content) < 8 + length):
        raise CheckpointError(f"{path}: truncated ({len(content)} bytes); copy it again")
    try:
        return load_safetensors(content), content
    except (SafetensorError, ValueError, KeyError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: truncated or not a safetensors file ({error}); copy it again") from error


def load_model(folder: Path) -> tuple[ModelCard, dict[str, Tensor]]:
    """Card and float32 weights of a trained model, checked against the card's hash.

    Raises:
        CheckpointError: names the file and the cure.
    """
    card = load_card(folder)
    path = folder / WEIGHTS
    if card.exported is not None and not path.exists():
        raise CheckpointError(
            f"{folder}: is an exported model, without weights: set model.runtime to onnx, or give the folder of the "
            "model that was exported"
        )
    tensors, content = read_tensors(path)
    if hashlib.sha256(content).hexdigest() != card.sha256:
        raise CheckpointError(
            f"{path}: its sha256 is not the one in {CARD}; they are of different trainings: copy both again"
        )
    return card, _restored(tensors, path)


def fill_network(network: nn.Module, tensors: Mapping[str, Tensor], source: Path) -> None:
    """Loads weights into a network, every name and shape exactly.

    Raises:
        CheckpointError: another architecture (names the first tensor that is missing, superfluous or of another shape).
    """
    expected = network.state_dict()
    for name, tensor in expected.items():
        if name not in tensors:
            raise CheckpointError(
                f"{source}: of another architecture: {name!r} is missing; use the card of these weights"
            )
        if tensors[name].shape != tensor.shape:
            raise CheckpointError(
                f"{source}: of another architecture: {name!r} is {tuple(tensors[name].shape)}, "
                f"the card's network has {tuple(tensor.shape)}; use the card of these weights"
            )
    superfluous = sorted(set(tensors) - set(expected))
    if superfluous:
        raise CheckpointError(f"{source}: of another architecture: {superfluous[0]!r} is not in the card's network")
    not_finite = next((name for name, tensor in tensors.items() if not bool(torch.isfinite(tensor).all())), None)
    if not_finite is not None:
        raise CheckpointError(
            f"{source}: {not_finite!r} holds NaN or infinity; train again from the last good checkpoint"
        )
    network.load_state_dict(dict(tensors))
