"""The network alone against the truth, per modality mode and corruption, as the papers compare (T_map_camera)."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from vmloc_ros.checkpoint import ModelCard
from vmloc_ros.config import LocalizerConfig
from vmloc_ros.errors import ConfigError, DatasetError
from vmloc_ros.geometry import Array
from vmloc_ros.localizer import Localizer
from vmloc_ros.retrieval import Retrieval
from vmloc_ros.samples import Labelled
from vmloc_ros.types import Frame, Modality, Mode, NoPose
from vmloc_ros.validation import error_summary, pose_errors

MASK_SHARE = 0.5
"""Table 4's mask is 128x128 pixels of an image whose shorter side is 256: half of it."""


@dataclass
class Answers:
    """A method's poses and what was true, gathered frame by frame."""

    estimates: list[Array] = field(default_factory=list)
    truths: list[Array] = field(default_factory=list)
    covariances: list[Array] = field(default_factory=list)
    stamps_ns: list[int] = field(default_factory=list)
    no_pose: Counter[str] = field(default_factory=Counter)

    def report(self) -> dict[str, Any]:
        """Errors, NEES (expected: 6) where there are covariances, and the frames without a pose, by reason."""
        result: dict[str, Any] = {"errors": None, "no_pose": dict(self.no_pose)}
        if self.estimates:
            tangent, position, rotation = pose_errors(np.array(self.estimates), np.array(self.truths))
            result["errors"] = error_summary(position, rotation)
            if self.covariances:
                nees = [float(d @ np.linalg.solve(S, d)) for d, S in zip(tangent, self.covariances, strict=True)]
                result["nees"] = {"mean": float(np.mean(nees)), "median": float(np.median(nees)), "dof": 6}
        return result


@dataclass(frozen=True)
class Evaluation:
    """Per mode the model's answers, and the retrieval baseline's on the same (corrupted) images."""

    modes: dict[Mode, Answers]
    retrieval: Answers | None

    def report(self) -> dict[str, Any]:
        """As JSON: `{"modes": {MODE: ...}, "retrieval": ...}`; the share of frames on which a mode beats retrieval."""
        modes = {mode.value: answers.report() for mode, answers in self.modes.items()}
        baseline = self.retrieval.report() if self.retrieval is not None else None
        if self.retrieval is not None and self.retrieval.estimates:
            looked_up = dict(zip(self.retrieval.stamps_ns, self.retrieval.estimates, strict=True))
            for mode, answers in self.modes.items():
                better = [
                    np.linalg.norm(T_hat[:3, 3] - T[:3, 3]) < np.linalg.norm(looked_up[stamp][:3, 3] - T[:3, 3])
                    for stamp, T_hat, T in zip(answers.stamps_ns, answers.estimates, answers.truths, strict=True)
                    if stamp in looked_up
                ]
                modes[mode.value]["beats_retrieval"] = float(np.mean(better)) if better else None
        return {"modes": modes, "retrieval": baseline}


def parse_corruption(texts: Sequence[str]) -> dict[Modality, int]:
    """`["rgb:1", "depth:2"]` as levels by modality.

    Raises:
        ConfigError: not of that form.
    """
    levels: dict[Modality, int] = {}
    for text in texts:
        name, _, level = text.partition(":")
        if name not in {m.value for m in Modality} or level not in ("0", "1", "2"):
            raise ConfigError(
                f"--corrupt {text}: must be rgb or depth, a colon, and 0 (intact), 1 (masked) or 2 (missing)"
            )
        levels[Modality(name)] = int(level)
    return levels


def corrupted(frame: Frame, levels: Mapping[Modality, int], seed: int = 0) -> Frame:
    """Table 4's corruption: 1 blacks out a square of half the shorter side (depth: no return) at a place drawn from
    seed and stamp, 2 removes the modality."""
    changes: dict[str, Any] = {}
    absent = dict(frame.absent)
    for modality, attribute in ((Modality.RGB, "rgb"), (Modality.DEPTH, "depth_m")):
        image, level = getattr(frame, attribute), levels.get(modality, 0)
        if image is None or level == 0:
            continue
        if level == 2:
            changes[attribute] = None
            absent[modality] = "removed on purpose"
            continue
        side = round(MASK_SHARE * min(image.shape[:2]))
        place = np.random.default_rng((seed, frame.stamp_ns, zlib.crc32(modality.encode()))).random(2)
        y, x = (int(p * (size - side + 1)) for p, size in zip(place, image.shape[:2], strict=True))
        image = image.copy()
        image[y : y + side, x : x + side] = 0
        changes[attribute] = image
    return replace(frame, absent=absent, **changes) if changes else frame


def only(frame: Frame, mode: Mode) -> Frame | None:
    """The frame as a robot that has only this mode's sensors sees it; None where it lacks one of them."""
    rgb = frame.rgb if mode is not Mode.DEPTH_ONLY else None
    depth = frame.depth_m if mode is not Mode.RGB_ONLY else None
    shown = Frame(frame.key, frame.intrinsics, rgb, depth, frame.absent)
    return shown if shown.mode is mode else None


def modes_for(card: ModelCard, modalities: Sequence[str]) -> list[Mode]:
    """The modes that can be evaluated with some modalities.

    Raises:
        ConfigError: one that the model has no expert for, or none.
    """
    for name in modalities:
        if name not in card.network.modalities:
            raise ConfigError(f"--modalities {name}: the model has experts for {', '.join(card.network.modalities)}")
    rgb, depth = Modality.RGB.value in modalities, Modality.DEPTH.value in modalities
    modes = [(Mode.RGB_DEPTH, rgb and depth), (Mode.RGB_ONLY, rgb), (Mode.DEPTH_ONLY, depth)]
    chosen = [mode for mode, possible in modes if possible]
    if not chosen:
        raise ConfigError("--modalities is empty; give rgb, depth or both")
    return chosen


def evaluate(
    localizer: Localizer,
    frames: Iterable[Labelled],
    modes: Sequence[Mode],
    corruption: Mapping[Modality, int] | None = None,
    retrieval: Retrieval | None = None,
    advance: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Runs a localizer on labelled frames, once per mode.

    Args:
        frames: (frame, T_map_camera, recording) as `samples.Labelled`.
        modes: a frame that lacks a mode's sensors is left out of that mode.
        corruption: applied before.
        advance: called once per frame.

    Raises:
        DatasetError: there was no frame at all.
    """
    answers = {mode: Answers() for mode in modes}
    looked_up = Answers() if retrieval is not None else None
    count = 0
    for frame, T_map_camera, _ in frames:
        count += 1
        advance()
        seen = corrupted(frame, corruption or {})
        for mode, answer in answers.items():
            shown = only(seen, mode)
            if shown is None:
                answer.no_pose["a sensor of this mode is absent"] += 1
                continue
            estimate = localizer.localize(shown)
            if isinstance(estimate, NoPose):
                answer.no_pose[estimate.reason] += 1
                continue
            answer.estimates.append(estimate.T_map_camera)
            answer.truths.append(T_map_camera)
            answer.covariances.append(estimate.cov_66)
            answer.stamps_ns.append(frame.stamp_ns)
        if retrieval is not None and looked_up is not None and seen.rgb is not None:
            looked_up.estimates.append(retrieval.nearest(seen.rgb))
            looked_up.truths.append(T_map_camera)
            looked_up.stamps_ns.append(frame.stamp_ns)
    if count == 0:
        raise DatasetError("there was no frame with a true pose to evaluate on; check the source and the sensors")
    return Evaluation(answers, looked_up)


def frame_config(card: ModelCard) -> LocalizerConfig:
    """How frames are built for a model: as in its training."""
    return LocalizerConfig(input=card.input, projection=card.projection)
