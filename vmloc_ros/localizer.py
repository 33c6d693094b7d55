"""A localizer turns frames into poses; this is where a model's folder becomes one, whatever its network is.

Five kinds: pose regression from one frame (VMLoc, PoseNet17, AtLoc, MapNet); two frames and the previous pose (VLocNet:
keeps its last frame, takes `prior`); a latent observation model (Generative Map: gives the filter an `observation`);
training images that are looked up (retrieval). And scene coordinates: where every cell lies, solved by geometry.
All answer with a `PoseEstimate` (with covariance, expert weights and health score), or with `NoPose` and a reason.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch

from vmloc_ros.checkpoint import ModelCard, fill_network, load_card, load_model
from vmloc_ros.config import ModelConfig
from vmloc_ros.errors import CheckpointError, ConfigError
from vmloc_ros.localizers.base import Localizer
from vmloc_ros.localizers.generative_map import MapLocalizer
from vmloc_ros.localizers.pose_graph import PoseGraphLocalizer
from vmloc_ros.localizers.retrieval import RetrievalLocalizer
from vmloc_ros.localizers.scene_coordinates import SceneLocalizer
from vmloc_ros.localizers.single_frame import VMLocLocalizer
from vmloc_ros.localizers.vlocnet import VLocNetLocalizer
from vmloc_ros.neighbour_file import read_neighbours
from vmloc_ros.networks.build import build_network
from vmloc_ros.pose_graph import load_gtsam
from vmloc_ros.runtimes.build import build_runtime
from vmloc_ros.runtimes.generative_map import MapRuntime
from vmloc_ros.runtimes.onnx import open_exported
from vmloc_ros.runtimes.retrieval import RetrievalRuntime
from vmloc_ros.runtimes.scene_coordinates import SceneRuntime
from vmloc_ros.runtimes.torch import Runtime
from vmloc_ros.runtimes.vlocnet import VLocNetRuntime
from vmloc_ros.types import Modality, Mode

__all__ = ["Localizer", "VMLocLocalizer", "choose_device", "load_localizer", "modes_of", "use_threads"]


def choose_device(asked: str) -> tuple[str, str]:
    """The device to use, and why it is not the one asked for (empty if it is).

    Raises:
        ConfigError: not auto, cpu or cuda:n.
    """
    if asked == "cpu":
        return "cpu", ""
    if asked == "auto":
        return ("cuda:0", "") if torch.cuda.is_available() else ("cpu", "")
    if not asked.startswith("cuda"):
        raise ConfigError(f"model.device: {asked!r} is not auto, cpu or cuda:n")
    index = int(asked.partition(":")[2] or 0)
    if not torch.cuda.is_available():
        return "cpu", f"{asked} was asked for, but PyTorch finds no CUDA device: running on the CPU"
    if index >= torch.cuda.device_count():
        return "cpu", f"{asked} was asked for, but there are only {torch.cuda.device_count()} GPUs: running on the CPU"
    return f"cuda:{index}", ""


def use_threads(asked: int) -> int:
    """Sets the network's CPU threads (0: all cores less one) and returns them."""
    cores = len(os.sched_getaffinity(0))
    threads = asked if asked > 0 else max(1, cores - 1)
    torch.set_num_threads(threads)
    return threads


def load_localizer(path: Path, config: ModelConfig) -> Localizer:
    """Loads a trained model and gets it ready (call `warm_up` before the first frame that matters).

    Where its card has a pose graph, its answers go through that (`localizers.pose_graph`).

    Raises:
        CheckpointError: the folder or one of its files is missing, malformed or of another training.
        ConfigError: an unknown device, or something the model cannot do (an odometry of its own).
        SetupError: the card has a pose graph, and GTSAM is not installed; or the model was exported, and ONNX Runtime
            is not.
    """
    device, fallback = choose_device(config.device)
    card = load_card(path)
    if card.pose_graph is not None:
        load_gtsam()  # before the seconds that a network takes
    if config.odometry == "network" and card.motion is None:
        raise ConfigError(
            f"model.odometry is network, but {path} ({card.network.architecture}) tells no motion between frames: set "
            "it to topic, or take a model with an odometry of its own (VLocNet)"
        )
    threads = use_threads(config.threads)
    exported = config.runtime == "onnx" or (config.runtime == "auto" and card.exported is not None)
    if exported:
        runtime = open_exported(path, card, threads)
        is_elsewhere = config.device.startswith("cuda")
        fallback = f"{config.device} was asked for, but exported models run on the CPU" if is_elsewhere else ""
    else:
        card, tensors = load_model(path)
        network = build_network(card.network)
        fill_network(network, tensors, path)
        runtime = build_runtime(network, card.normalisation, card.latent_samples, device)
    missing = [mode for mode in modes_of(card) if mode not in card.calibration]
    if missing:
        raise CheckpointError(
            f"{path}: the card has no calibration for {', '.join(missing)}; measure it with "
            f"`vmloc calibrate {path} SRC --format F`"
        )
    localizer = _localizer_of(path, card, runtime, config, fallback)
    return localizer if card.pose_graph is None else PoseGraphLocalizer(localizer, card.pose_graph)


def _localizer_of(path: Path, card: ModelCard, runtime: Runtime, config: ModelConfig, fallback: str) -> Localizer:
    """The localizer of a network's kind."""
    if isinstance(runtime, MapRuntime):
        return MapLocalizer(card, runtime, fallback, read_neighbours(path, card))
    if isinstance(runtime, VLocNetRuntime):
        return VLocNetLocalizer(card, runtime, config.previous_pose, fallback, read_neighbours(path, card))
    if isinstance(runtime, RetrievalRuntime):
        return RetrievalLocalizer(card, runtime, fallback, read_neighbours(path, card))
    if isinstance(runtime, SceneRuntime):
        return SceneLocalizer(card, runtime, fallback)
    return VMLocLocalizer(card, runtime, fallback, read_neighbours(path, card))


def modes_of(card: ModelCard) -> list[Mode]:
    """The modes that a model can answer in."""
    rgb, depth = card.network.has(Modality.RGB), card.network.has(Modality.DEPTH)
    return [
        mode
        for mode, possible in (
            (Mode.RGB_DEPTH, rgb and depth),
            (Mode.RGB_ONLY, rgb),
            (Mode.DEPTH_ONLY, depth),
        )
        if possible
    ]
