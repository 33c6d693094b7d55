"""`vmloc export`: a trained network as ONNX files, which ONNX Runtime runs without PyTorch's networks.

Every file is run on made-up frames beside PyTorch before anything is written: an exporter that leaves out an operation
says nothing about it.
"""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vmloc_ros import files
from vmloc_ros.checkpoint import CARD, CONFIG, NEIGHBOURS, RETRIEVAL, ExportCard, ModelCard, fill_network, load_model
from vmloc_ros.errors import CheckpointError, ConfigError
from vmloc_ros.localizer import modes_of
from vmloc_ros.networks.build import build_network
from vmloc_ros.networks.inputs_config import InputShape, ModalityName
from vmloc_ros.networks.scene_coordinates import SceneCoordinates
from vmloc_ros.networks.vmloc import VMLoc
from vmloc_ros.runtimes.graphs import CellsGraph, PosesGraph, ask
from vmloc_ros.runtimes.onnx import CELLS_KEY, file_of, load_library, open_session, run_graph
from vmloc_ros.types import Modality

FOLDER = "onnx"
"""Inside the model's folder, where no other is asked for."""
OPSET = 17
TOLERANCE = 1e-4
"""Largest difference from PyTorch that is accepted, in network units (positions and points: of the map's scale); of an
output that has numbers beyond 1, as a share of the largest."""
STRAY_CELLS = 0.005
"""Of the cells over anchors so many may differ by more: where two anchors are equally likely, the last bit decides."""
COMPANIONS = (NEIGHBOURS, CONFIG, RETRIEVAL)
"""What else of a model's folder the exported one needs."""


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        folder: the exported model's.
        card: its card.
        megabytes: by file.
        differences: by file, largest from PyTorch on made-up frames, network units.
    """

    folder: Path
    card: ModelCard
    megabytes: dict[str, float]
    differences: dict[str, float]


class _AveragePool(nn.Module):
    """`nn.AdaptiveAvgPool2d` as two products with matrices: ONNX has none whose windows differ in size."""

    def __init__(self, replaced: nn.AdaptiveAvgPool2d) -> None:
        super().__init__()
        self._size: Any = replaced.output_size  # of networks here always (rows, columns)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, rows, columns)."""
        down, across = (window_means(int(n), out) for n, out in zip(x_NCHW.shape[2:], self._size, strict=True))
        return torch.matmul(torch.matmul(down, x_NCHW), across.T)


def window_means(inputs: int, outputs: int) -> Tensor:
    """(outputs, inputs): each row averages the window that adaptive pooling gives to an output."""
    means = torch.zeros(outputs, inputs)
    for row in range(outputs):
        first, end = row * inputs // outputs, -(-(row + 1) * inputs // outputs)
        means[row, first:end] = 1.0 / (end - first)
    return means


class _Flat(nn.Module):
    """A graph with arguments and results in a row, and without modules that ONNX does not know."""

    def __init__(self, graph: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.graph = copy.deepcopy(graph)
        for module in list(self.graph.modules()):
            for name, child in module.named_children():
                if isinstance(child, nn.AdaptiveAvgPool2d):
                    setattr(module, name, _AveragePool(child))
        self._names = tuple(names)

    def forward(self, *pictures: Tensor) -> tuple[Tensor, ...]:
        """The values of what the graph says, in its order."""
        return tuple(self.graph(dict(zip(self._names, pictures, strict=True))).values())


def run_export(model: Path, out: Path | None = None, modalities: Sequence[str] = ()) -> Exported:
    """Writes a model's network as ONNX, one file per set of modalities, into a folder that is a model again.

    Args:
        model: folder of a trained model.
        out: folder to write, which is replaced whole; by default `onnx` inside the model's.
        modalities: the exported model knows only these; by default all that the model knows.

    Raises:
        CheckpointError: the model is unusable, or its export does not say the same.
        ConfigError: an architecture that cannot be exported, modalities that the model does not know, or a folder that
            holds something else.
        SetupError: onnx or onnxruntime is not installed.
    """
    load_library("onnx")
    load_library("onnxruntime")
    card, tensors = load_model(model)
    network = build_network(card.network)
    graph: nn.Module
    if isinstance(network, VMLoc):
        fill_network(network, tensors, model)
        graph = PosesGraph(network, card.normalisation, card.latent_samples)
    elif isinstance(network, SceneCoordinates):
        fill_network(network, tensors, model)
        graph = CellsGraph(network, card.normalisation)
    else:
        raise ConfigError(
            f"{model}: a model of architecture {card.network.architecture} cannot be exported, only vmloc and "
            "scene_coordinates; run it with model.runtime: torch"
        )
    known = _restricted(card, modalities)
    folder = model / FOLDER if out is None else out
    _refuse_other_content(folder, model)
    graph = graph.to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    contents: dict[str, bytes] = {}
    differences: dict[str, float] = {}
    for names in _sets(known.network.modalities):
        name = file_of(names)
        contents[name] = _onnx_bytes(graph, names, known.network)
        differences[name] = difference(contents[name], graph, names, known.network, f"{model} as {name}")
    made_with = {name: load_library(name).__version__ for name in ("onnx", "onnxruntime")}
    made_with |= {"torch": torch.__version__, "opset": str(OPSET)}
    sha256 = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    known = known.model_copy(
        update={"exported": ExportCard(sha256=sha256, difference=differences, made_with=made_with)}
    )
    with files.whole_folder(folder) as partial:
        for name, content in contents.items():
            files.write_bytes(partial / name, content)
        for name in COMPANIONS:
            if (model / name).is_file():
                shutil.copyfile(model / name, partial / name)
        files.write_yaml(partial / CARD, known.model_dump(mode="json"))
    return Exported(folder, known, {name: len(content) / 1e6 for name, content in contents.items()}, differences)


def _restricted(card: ModelCard, modalities: Sequence[str]) -> ModelCard:
    """The card of the same model with some of its modalities."""
    own = card.network.modalities
    unknown = [name for name in modalities if name not in own]
    if unknown:
        raise ConfigError(f"--modalities {unknown[0]}: the model has no expert for it, only for {', '.join(own)}")
    kept: list[ModalityName] = [name for name in own if not modalities or name in modalities]
    card = card.model_copy(update={"network": card.network.model_copy(update={"modalities": kept})})
    modes = modes_of(card)
    update: dict[str, Any] = {"calibration": {mode: part for mode, part in card.calibration.items() if mode in modes}}
    if card.scene is not None:
        limits = {name: limit for name, limit in card.scene.limits.items() if name in modes}
        update["scene"] = card.scene.model_copy(update={"limits": limits})
    return card.model_copy(update=update)


def _sets(modalities: Sequence[str]) -> list[tuple[str, ...]]:
    """Every set of modalities, colour first."""
    ordered = [modality.value for modality in Modality if modality.value in modalities]
    return [names for size in range(len(ordered), 0, -1) for names in combinations(ordered, size)]


def _refuse_other_content(folder: Path, model: Path) -> None:
    """The folder is replaced whole, so it must be an earlier export, or empty, or not there."""
    if folder.resolve() == model.resolve():
        raise ConfigError(f"--out {folder}: is the model itself; give another folder, or none for {model / FOLDER}")
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--out {folder}: is a file; give a folder")
    is_export = any(folder.glob("*.onnx")) and (folder / CARD).is_file()
    if folder.is_dir() and any(folder.iterdir()) and not is_export:
        raise ConfigError(f"--out {folder}: holds something other than an exported model; give another folder")


def _onnx_bytes(graph: nn.Module, names: Sequence[str], network: InputShape) -> bytes:
    """The graph for one frame of a set of modalities."""
    pictures = {name: torch.from_numpy(array[:1]) for name, array in made_up(network, 1).items() if name in names}
    with torch.inference_mode():
        outputs = list(graph(pictures))
    with tempfile.TemporaryDirectory() as place, warnings.catch_warnings(), torch.no_grad():
        path = Path(place) / file_of(names)
        # It warns that PyTorch has a newer exporter (2.15's leaves an expert out of VMLoc's product, without a word),
        # and that sizes become constants (they are).
        warnings.simplefilter("ignore")
        torch.onnx.export(
            _Flat(graph, names).eval(),
            tuple(pictures[name] for name in names),
            path,
            input_names=list(names),
            output_names=outputs,
            opset_version=OPSET,
            dynamo=False,
        )
        content = path.read_bytes()
    if not isinstance(graph, CellsGraph):
        return content
    onnx = load_library("onnx")
    written = onnx.load_model_from_string(content)
    known = {"rays_12hw": graph.rays_12hw.tolist(), "scale_m": float(graph.network.scale)}
    onnx.helper.set_model_props(written, {CELLS_KEY: json.dumps(known)})
    return bytes(written.SerializeToString())


def difference(content: bytes, graph: nn.Module, names: Sequence[str], network: InputShape, source: str) -> float:
    """How far what an exported graph says is from PyTorch, at most, on made-up frames; in network units.

    Args:
        content: the ONNX file.
        graph: run by PyTorch.
        names: the modalities that are shown.
        network: gives the pictures' size.
        source: names the export in errors.

    Raises:
        CheckpointError: it is more than `TOLERANCE`.
    """
    pictures = {name: array for name, array in made_up(network).items() if name in names}
    wanted = {name: tensor.cpu().numpy() for name, tensor in ask(graph, pictures, "cpu").items()}
    said = run_graph(open_session(content, torch.get_num_threads(), source), pictures)
    cells = isinstance(graph, CellsGraph)
    worst = 0.0
    for name, want in wanted.items():
        unit = float(graph.network.scale) if cells else 1.0  # type: ignore[union-attr, arg-type]
        unit = {"points": unit, "variance": unit**2}.get(name, 1.0)
        largest_number = np.max(np.abs(want), initial=0.0, where=np.isfinite(want)) / unit
        apart = _apart(np.asarray(said[name], dtype=float), want.astype(float)) / unit / max(1.0, largest_number)
        if cells and name in ("points", "variance"):
            apart = np.quantile(apart.max(axis=2), 1.0 - STRAY_CELLS, method="lower")
        largest = float(np.max(apart, initial=0.0))
        if largest > TOLERANCE:
            raise CheckpointError(
                f"{source}: ONNX Runtime and PyTorch disagree on `{name}` by {largest:.1e} network units, "
                f"{TOLERANCE:g} are accepted; nothing was written: run the model with model.runtime: torch"
            )
        worst = max(worst, largest)
    return worst


def _apart(one: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    """Distances, number by number; what is not finite must be so in both."""
    if one.shape != other.shape:
        return np.array([np.inf])
    same = (one == other) | (np.isnan(one) & np.isnan(other))
    return np.where(same, 0.0, np.nan_to_num(np.abs(one - other), nan=np.inf))


def made_up(network: InputShape, seed: int = 0) -> dict[str, NDArray[np.generic]]:
    """Frames by modality: noise, waves before a slope with holes, and nothing at all."""
    rng = np.random.default_rng(seed)
    height, width = network.height, network.width
    y, x = np.meshgrid(np.linspace(0.0, 1.0, height), np.linspace(0.0, 1.0, width), indexing="ij")
    waves = np.stack([127.5 + 120.0 * np.sin((5 + k) * x + 3 * k) * np.cos((4 - k) * y) for k in range(3)], axis=-1)
    noise = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    rgb = np.stack([noise, waves.astype(np.uint8), np.zeros_like(noise)])
    far = np.exp(rng.uniform(np.log(0.3), np.log(60.0), (height, width)))
    far[rng.random((height, width)) < 0.4] = 0.0
    slope = 2.0 + 6.0 * x + 3.0 * y
    slope[::3, ::2] = 0.0
    depth = np.stack([far, slope, np.zeros_like(far)]).astype(np.float32)
    return {Modality.RGB.value: rgb, Modality.DEPTH.value: depth}
