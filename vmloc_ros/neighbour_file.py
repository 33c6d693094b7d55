"""The training latents of a model on disk, and the evidence that a calibration asks for."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save as save_safetensors

from vmloc_ros import files
from vmloc_ros.checkpoint import NEIGHBOURS, ModelCard, read_tensors
from vmloc_ros.errors import CheckpointError
from vmloc_ros.neighbours import Evidence, Neighbours, scatter_evidence
from vmloc_ros.networks.inputs_config import InputShape
from vmloc_ros.runtimes.scene_coordinates import SceneRuntime
from vmloc_ros.runtimes.torch import RawPoses, Runtime
from vmloc_ros.samples import SampleStore
from vmloc_ros.types import Mode
from vmloc_ros.validation import validate

MAX_FRAMES = 2048
"""More training frames are thinned out evenly. Half of the town's 3843 ranked errors nearly as well as all."""


def measure_neighbours(
    runtime: Runtime, config: InputShape, store: SampleStore, samples: NDArray[np.int64]
) -> dict[Mode, Neighbours]:
    """The latents of training samples at half precision, as in the file; of modes with two frames and more.

    Nothing where the covariance comes from the geometry of each frame (scene coordinates).
    """
    if isinstance(runtime, SceneRuntime):
        return {}
    samples = samples[:: max(1, -(-len(samples) // MAX_FRAMES))]
    return {
        mode: Neighbours(found.latents_ND.astype(np.float16).astype(np.float32), store.T_map_camera[found.samples_N])
        for mode, found in validate(runtime, config, store, samples).items()
        if len(found.samples_N) >= 2
    }


def write_neighbours(folder: Path, neighbours: Mapping[Mode, Neighbours]) -> str:
    """Writes them into a model's folder, atomically; returns the file's sha256 for the card."""
    tensors = {}
    for mode, known in neighbours.items():
        tensors[f"{mode.value}.latents"] = torch.from_numpy(known.latents_MD.astype(np.float16))
        tensors[f"{mode.value}.T_map_camera"] = torch.from_numpy(np.ascontiguousarray(known.T_map_camera, np.float64))
    content = save_safetensors(tensors)
    files.write_bytes(folder / NEIGHBOURS, content)
    return hashlib.sha256(content).hexdigest()


def read_neighbours(folder: Path, card: ModelCard) -> dict[Mode, Neighbours]:
    """The training latents that a card names, by mode; nothing where it names none.

    Raises:
        CheckpointError: the file is missing, damaged, of another training or lacks a mode that the card needs.
    """
    if not card.neighbours_sha256:
        return {}
    path = folder / NEIGHBOURS
    tensors, content = read_tensors(path)
    if hashlib.sha256(content).hexdigest() != card.neighbours_sha256:
        raise CheckpointError(f"{path}: its sha256 is not the one in the card; copy the model's folder whole")
    result = {}
    for mode in Mode:
        latents, poses = tensors.get(f"{mode.value}.latents"), tensors.get(f"{mode.value}.T_map_camera")
        if latents is not None and poses is not None:
            result[mode] = Neighbours(latents.float().numpy(), poses.double().numpy())
    missing = [mode for mode, item in card.calibration.items() if item.evidence == "neighbours" and mode not in result]
    if missing:
        raise CheckpointError(f"{path}: holds no latents for {missing[0]}; copy the model's folder whole")
    return result


def evidence_for(
    kind: Literal["none", "scatter", "neighbours"], neighbours: Neighbours | None, raw: RawPoses
) -> Evidence | None:
    """What a calibration wants to know of some frames; None where it wants nothing.

    Raises:
        CheckpointError: it wants training latents, and there are none.
    """
    if kind == "none":
        return None
    if kind == "scatter":
        return scatter_evidence(raw.scatter_N66)
    if neighbours is None:
        raise CheckpointError(f"the model's calibration needs {NEIGHBOURS}; load the model from its folder")
    return neighbours.evidence(raw.latents_ND, raw.T_map_camera)
