"""Exported networks run by ONNX Runtime, on the CPU: what `vmloc export` wrote, without PyTorch's networks.

Every graph takes one frame of one set of modalities: `rgb` (1, H, W, 3) uint8, `depth` (1, H, W) float32 metres. What
it gives has the names and shapes of `graphs.PosesGraph` and `graphs.CellsGraph`.
"""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vmloc_ros.checkpoint import CARD, ModelCard
from vmloc_ros.errors import CheckpointError, ModelInputError, SetupError
from vmloc_ros.networks.config import Normalisation
from vmloc_ros.networks.inputs_config import InputShape
from vmloc_ros.networks.scene_coordinates_config import SceneCoordinatesConfig
from vmloc_ros.runtimes.graphs import named_pictures
from vmloc_ros.runtimes.scene_coordinates import SceneRuntime
from vmloc_ros.runtimes.torch import RawPoses, Runtime, raw_poses
from vmloc_ros.types import Modality

TYPES = {Modality.RGB.value: np.uint8, Modality.DEPTH.value: np.float32}
FRAME_AXIS = {"position": 1, "log_quat": 1}
"""Which axis of an output counts the frames, where it is not the first."""
CELLS_KEY = "vmloc_ros.cells"
"""Of a graph over scene coordinates: `rays_12hw` and `scale_m` as JSON, see `CellNetwork`."""


def load_library(name: str) -> Any:
    """onnxruntime, or onnx.

    Raises:
        SetupError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise SetupError(f"exported models need {name}: pip install 'vmloc_ros[onnx]' ({error})") from error


def file_of(modalities: Iterable[str]) -> str:
    """The name of the graph for a set of modalities, colour first."""
    return f"{'_'.join(modalities)}.onnx"


def open_session(content: bytes, threads: int, source: str) -> Any:
    """A graph, ready to run. Deterministic.

    Args:
        content: of the ONNX file.
        threads: of the CPU.
        source: names the file in errors.

    Raises:
        SetupError: ONNX Runtime is not installed, or cannot run the file.
    """
    library = load_library("onnxruntime")
    options = library.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.use_deterministic_compute = True
    # Threads that wait for work would otherwise keep the cores busy that the node's callbacks need.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    native = library.capi.onnxruntime_pybind11_state
    try:
        return library.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except (native.Fail, native.InvalidGraph, native.InvalidProtobuf, native.NotImplemented) as error:
        raise SetupError(
            f"{source}: ONNX Runtime {library.__version__} cannot run it ({str(error).splitlines()[0]}); export the "
            "model again on this machine, or install a newer onnxruntime"
        ) from error


def run_graph(session: Any, pictures: Mapping[str, NDArray[np.generic]]) -> dict[str, NDArray[np.generic]]:
    """What a graph says of N frames, which it is asked about one by one."""
    names = [output.name for output in session.get_outputs()]
    inputs = {name: np.ascontiguousarray(array, TYPES[name]) for name, array in pictures.items()}
    count = len(next(iter(inputs.values())))
    said = [session.run(names, {name: array[k : k + 1] for name, array in inputs.items()}) for k in range(count)]
    parts = dict(zip(names, zip(*said, strict=True), strict=True))
    return {name: np.concatenate(part, axis=FRAME_AXIS.get(name, 0)) for name, part in parts.items()}


class OnnxNetwork:
    """What was exported of a network."""

    def __init__(self, folder: Path, card: ModelCard, threads: int) -> None:
        """
        Args:
            folder: of the exported model.
            card: of it.
            threads: of the CPU.

        Raises:
            CheckpointError: not an exported model, or a file is missing or is not the card's.
            SetupError: ONNX Runtime is not installed.
        """
        if card.exported is None:
            raise CheckpointError(f"{folder}: {CARD} names no ONNX files; write them with `vmloc export {folder}`")
        load_library("onnxruntime")
        self._sessions: dict[str, Any] = {}
        for name, sha256 in card.exported.sha256.items():
            path = folder / name
            try:
                content = path.read_bytes()
            except OSError as error:
                raise CheckpointError(f"{path}: cannot be read ({error.strerror}); copy the folder whole") from error
            if hashlib.sha256(content).hexdigest() != sha256:
                raise CheckpointError(f"{path}: its sha256 is not the one in {CARD}; copy the folder whole")
            self._sessions[name] = open_session(content, threads, str(path))

    def metadata(self, key: str) -> str:
        """What the graphs carry besides; empty where they do not."""
        first = next(iter(self._sessions.values()))
        return str(first.get_modelmeta().custom_metadata_map.get(key, ""))

    def ask(self, pictures: Mapping[str, NDArray[np.generic]]) -> dict[str, Tensor]:
        """What it says of N frames.

        Raises:
            ModelInputError: no graph of these modalities.
        """
        session = self._sessions.get(file_of(pictures))
        if session is None:
            raise ModelInputError(
                f"this model was exported without a graph for {' and '.join(pictures)}: it has "
                f"{', '.join(self._sessions)}"
            )
        return {name: torch.from_numpy(array) for name, array in run_graph(session, pictures).items()}


class OnnxRuntime:
    """Poses from an exported network. Deterministic. Implements `Runtime`."""

    def __init__(self, network: OnnxNetwork, config: InputShape, normalisation: Normalisation) -> None:
        self.device = "cpu"
        self._network = network
        self._config = config
        self._normalisation = normalisation

    def infer(self, rgb_NHW3: NDArray[np.uint8] | None, depth_NHW: NDArray[np.floating] | None) -> RawPoses:
        """See `Runtime`.

        Raises:
            ModelInputError: no modality, sizes that disagree, or modalities without a graph.
        """
        pictures = named_pictures(self._config, rgb_NHW3, depth_NHW)
        return raw_poses(self._network.ask(pictures), self._normalisation)


class OnnxCells:
    """Scene coordinates from an exported network. Implements `CellNetwork`."""

    def __init__(self, network: OnnxNetwork, config: SceneCoordinatesConfig) -> None:
        known = json.loads(network.metadata(CELLS_KEY))
        self.device, self.config = "cpu", config
        self.rays_12hw, self.scale_m = torch.tensor(known["rays_12hw"]), float(known["scale_m"])
        self._network = network

    def ask(self, pictures: Mapping[str, NDArray[np.generic]]) -> Mapping[str, Tensor]:
        """See `CellNetwork`."""
        return self._network.ask(pictures)


def open_exported(folder: Path, card: ModelCard, threads: int) -> Runtime:
    """What runs an exported model. Raises as `OnnxNetwork`."""
    network, config = OnnxNetwork(folder, card, threads), card.network
    if isinstance(config, SceneCoordinatesConfig):
        return SceneRuntime(OnnxCells(network, config), card.normalisation)
    return OnnxRuntime(network, config, card.normalisation)
