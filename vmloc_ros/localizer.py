"""A localizer turns frames into poses; this is where every kind of network meets the pipeline.

Room for four kinds: pose regression from one frame (VMLoc); two frames and the previous pose (VLocNet: keeps its last
frame, takes `prior`); a latent observation model (Generative Map: takes `prior`); scene coordinates solved by geometry.
All answer with a `PoseEstimate` (with covariance, expert weights and health score), or with `NoPose` and a reason.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from vmloc_ros.checkpoint import ModelCard, fill_network, load_model
from vmloc_ros.config import ModelConfig
from vmloc_ros.errors import CheckpointError, ConfigError, ModelInputError
from vmloc_ros.neighbour_file import evidence_for, read_neighbours
from vmloc_ros.neighbours import Neighbours
from vmloc_ros.networks.inputs import centre_crop, fit_depth, fit_intrinsics, fit_rgb
from vmloc_ros.networks.vmloc import VMLoc
from vmloc_ros.runtimes.torch import Runtime, TorchRuntime
from vmloc_ros.types import Frame, FusedState, Modality, Mode, NoPose, PinholeIntrinsics, PoseEstimate

MAX_FOCAL_RATIO = 1.15
"""A camera whose view is narrower or wider than the training camera's by more than this shows another world."""


class Localizer(Protocol):
    """What the pipeline needs.

    Attributes:
        card: of the model.
        device: where it runs (`cpu`, `cuda:0`).
        fallback: why it does not run where it was asked to; empty when it does.
    """

    card: ModelCard
    device: str
    fallback: str

    def localize(self, frame: Frame, prior: FusedState | None = None) -> PoseEstimate | NoPose:
        """The pose of the frame's camera in the map. `prior` is the filter's pose at the frame's stamp.

        Deterministic: the same frames since `reset` give the same answers. Any thread, one at a time.
        """
        ...

    def warm_up(self) -> None:
        """Runs once on made-up input in every mode, so that the first real frame is not slower than the rest."""
        ...

    def reset(self) -> None:
        """Forgets earlier frames."""
        ...


class VMLocLocalizer:
    """Pose regression from a single frame by VMLoc; it has no memory."""

    def __init__(
        self,
        card: ModelCard,
        runtime: Runtime,
        fallback: str = "",
        neighbours: Mapping[Mode, Neighbours] | None = None,
    ) -> None:
        self.card = card
        self.device = runtime.device
        self.fallback = fallback
        self._runtime = runtime
        self._lock = threading.Lock()
        network = card.network
        self._rows = round(network.height * (1.0 + card.crop_margin))
        self._columns = round(network.width * (1.0 + card.crop_margin))
        self._crop = centre_crop(self._rows, self._columns, network.height, network.width)
        self._calibrations = {mode: calibration.rule() for mode, calibration in card.calibration.items()}
        self._neighbours = neighbours or {}

    def localize(self, frame: Frame, prior: FusedState | None = None) -> PoseEstimate | NoPose:
        """See `Localizer`; `prior` is not used."""
        rgb = frame.rgb if self.card.network.has(Modality.RGB) else None
        depth = frame.depth_m if self.card.network.has(Modality.DEPTH) else None
        if rgb is None and depth is None:
            reasons = ", ".join(f"{name}: {reason}" for name, reason in frame.absent.items())
            return NoPose(
                frame.stamp_ns, "no modality that the model has an expert for" + (f" ({reasons})" if reasons else "")
            )
        mismatch = self._camera_mismatch(frame.intrinsics)
        if mismatch:
            return NoPose(frame.stamp_ns, mismatch)
        mode = {(True, True): Mode.RGB_DEPTH, (True, False): Mode.RGB_ONLY}.get(
            (rgb is not None, depth is not None), Mode.DEPTH_ONLY
        )
        calibration = self._calibrations.get(mode)
        if calibration is None:
            return NoPose(frame.stamp_ns, f"the model's card has no calibration for {mode}")
        try:
            rgb_batch = None if rgb is None else fit_rgb(rgb, self._rows, self._columns)[self._crop][None]
            depth_batch = None if depth is None else fit_depth(depth, self._rows, self._columns)[self._crop][None]
        except ModelInputError as error:
            return NoPose(frame.stamp_ns, str(error))
        with self._lock:
            raw = self._runtime.infer(rgb_batch, depth_batch)
        T, scatter = raw.T_map_camera[0], raw.scatter_N66[0]
        if not (np.isfinite(T).all() and np.isfinite(scatter).all()):
            return NoPose(frame.stamp_ns, "the network's output is not finite")
        evidence = evidence_for(self.card.calibration[mode].evidence, self._neighbours.get(mode), raw)
        return PoseEstimate(
            stamp_ns=frame.stamp_ns,
            T_map_camera=T,
            cov_66=calibration.covariance(scatter, evidence),
            expert_weights={name: float(share[0]) for name, share in raw.shares.items()},
            mode=mode,
            health=calibration.health(scatter, evidence),
        )

    def _camera_mismatch(self, camera: PinholeIntrinsics) -> str:
        """Why this camera's pictures are not what the network was trained on; empty if they are."""
        if camera.width <= 1:
            return ""  # no calibration has come: nothing to compare
        seen, trained = fit_intrinsics(camera, self._rows, self._columns), self.card.camera
        for name, one, other in (("wide", seen.fx, trained.fx), ("high", seen.fy, trained.fy)):
            if not 1.0 / MAX_FOCAL_RATIO < one / other < MAX_FOCAL_RATIO:
                return (
                    f"the camera's view does not fit the model's: it is {other / one:.2f} times as {name} as the "
                    "training camera's after cutting to the model's aspect ratio; use a model trained with this camera"
                )
        return ""

    def warm_up(self) -> None:
        """See `Localizer`."""
        network = self.card.network
        rgb = np.zeros((1, network.height, network.width, 3), np.uint8) if network.has(Modality.RGB) else None
        depth = np.ones((1, network.height, network.width), np.float32) if network.has(Modality.DEPTH) else None
        with self._lock:
            for inputs in {(rgb is not None, depth is not None), (rgb is not None, False), (False, depth is not None)}:
                if any(inputs):
                    self._runtime.infer(rgb if inputs[0] else None, depth if inputs[1] else None)

    def reset(self) -> None:
        """See `Localizer`."""


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

    Raises:
        CheckpointError: the folder or one of its files is missing, malformed or of another training.
        ConfigError: an unknown device.
    """
    device, fallback = choose_device(config.device)
    card, tensors = load_model(path)
    network = VMLoc(card.network)
    fill_network(network, tensors, path)
    missing = [mode for mode in modes_of(card) if mode not in card.calibration]
    if missing:
        raise CheckpointError(
            f"{path}: the card has no calibration for {', '.join(missing)}; measure it with "
            f"`vmloc calibrate {path} SRC --format F`"
        )
    use_threads(config.threads)
    runtime = TorchRuntime(network, card.normalisation, card.latent_samples, device)
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
