"""Frames that a model cannot know: other places, noise, and its own place behind a black box."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from vmloc_ros.assembly import Assembler
from vmloc_ros.checkpoint import ModelCard
from vmloc_ros.clock import ClockVerdict
from vmloc_ros.config import ExtrinsicsConfig, FrameNames, InputConfig, LocalizerConfig
from vmloc_ros.datasets.base import Recording
from vmloc_ros.fitting import centre_crop, fit_depth, fit_rgb
from vmloc_ros.frame_source import FrameSource
from vmloc_ros.geometry import Array
from vmloc_ros.recordings import BAG
from vmloc_ros.trajectory import NANOSECONDS, Trajectory
from vmloc_ros.types import EventKind, Frame, FrameKey, Modality, Mode

T = TypeVar("T")

FIRST_NS = 1_000 * NANOSECONDS
SHOWN_EVERY_NS = NANOSECONDS // 2
"""Frames are shown twice a second, whenever they were taken: then the eight answers in a row that make a filter start
over last longer than `filter.relocalize_span_s`, and a source of a dozen frames can deceive it too."""
NOISES = ("white noise", "blurred noise", "flat with noise", "blocks")
LEAST_MASK = 0.8
ALL_MASKED_EVERY = 5
"""Of the masked frames every fifth is black altogether."""
SOME_LEFT, NOTHING_LEFT = "something left", "nothing left"
STEP = 4
"""Every so many pixels are looked at for a constant image, as when a frame is built."""


@dataclass(frozen=True, slots=True, eq=False)
class Stranger:
    """A frame to be refused.

    Attributes:
        kind: what of, in a word or two.
        T_map_camera: the right answer, where something is left to see that would allow it; None: every pose is false.
    """

    frame: Frame
    kind: str
    T_map_camera: Array | None = None


# -------------------------------------------------------------------------------------------------------- other places


def settings_for(given: LocalizerConfig, recording: Recording, format: str) -> LocalizerConfig:
    """How frames of a recording are built for a model: with the depth that the recording has, in its own mounting.

    Args:
        given: as for the model's own data.
        format: of the recording; bags keep the names and mountings of the model's training.
    """
    there = recording.timeline()
    source = given.input.depth_source
    if there and source != "none":
        kinds = (EventKind(source), EventKind.DEPTH, EventKind.CLOUD, EventKind.SCAN)
        found = (kind.value for kind in kinds if len(there.get(kind, ())))
        source = next(found, "none")  # type: ignore[arg-type]
    changes: dict[str, object] = {"input": given.input.model_copy(update={"depth_source": source})}
    if format != BAG:
        changes |= {"extrinsics": ExtrinsicsConfig(), "frames": FrameNames()}
    return given.model_copy(update=changes)


def frames_of(
    recordings: Sequence[Recording], given: LocalizerConfig, format: str, count: int, with_truth: bool = False
) -> list[Stranger]:
    """At most `count` frames, evenly over all recordings, as the node would build them.

    Args:
        given: how frames of the model's own data are built.
        with_truth: of the model's own place: frames that have a true pose, with it.
    """
    each = -(-count // len(recordings))
    kept: list[Stranger] = []
    for recording in recordings:
        settings = given if with_truth else settings_for(given, recording, format)
        stride = max(1, len(recording.timeline().get(EventKind.IMAGE, ())) // each)
        kept += thinned(_built(recording, settings, stride, recording.truth() if with_truth else None), each)
    return evenly(kept, count)


def _built(recording: Recording, config: LocalizerConfig, stride: int, truth: Trajectory | None) -> Iterator[Stranger]:
    """Every so many frames of a recording; where the truth is asked for, of those that it covers."""
    source = FrameSource(config)
    for transform in recording.static_transforms():
        source.extrinsics.add(transform)
    assembler, place = Assembler(config, source.extrinsics, None), 0
    for event in chain(recording.events(), (None,)):
        if event is not None and source.add(event) is ClockVerdict.OK and event.kind is EventKind.ODOMETRY:
            source.odometry.insert(event.stamp_ns, event.payload.T_odom_base)
        for key in source.ready(everything=event is None):
            if truth is not None and not truth.covers(key.stamp_ns):
                continue
            if place % stride == 0:
                parts, true = source.gather(key), None
                if truth is not None:
                    true = truth.interpolate(key.stamp_ns) @ assembler.T_base_camera(parts)
                frame = assembler.build(parts)
                if frame.mode is not Mode.LOST:
                    yield Stranger(frame, recording.name, true)
            place += 1


def thinned(items: Iterable[T], count: int) -> list[T]:
    """At most `count` of many, evenly; never more than twice as many are held."""
    stride, kept = 1, list[T]()
    for index, item in enumerate(items):
        if index % stride:
            continue
        kept.append(item)
        if len(kept) > 2 * count:
            kept, stride = kept[::2], 2 * stride
    return evenly(kept, count)


def evenly(items: Sequence[T], count: int) -> list[T]:
    """At most `count` of them, the first and the last among these."""
    if len(items) <= count:
        return list(items)
    return [items[int(index)] for index in np.linspace(0, len(items) - 1, count).round()]


# ------------------------------------------------------------------------------------------------------------- made up


def noise_frames(card: ModelCard, count: int, seed: int) -> list[Stranger]:
    """Frames of the training camera's size without a place: a quarter of each of `NOISES`, colour and depth apart."""
    return [
        Stranger(_noise_frame(card, kind, np.random.default_rng((seed, index))), kind)
        for index, kind in enumerate(sorted((NOISES[k % len(NOISES)] for k in range(count)), key=NOISES.index))
    ]


def _noise_frame(card: ModelCard, kind: str, rng: np.random.Generator) -> Frame:
    """Distances have the spread of the training's."""
    camera, known = card.camera, card.normalisation
    rows, columns = camera.height, camera.width
    pattern = _noise(kind, rows, columns, 4, rng)
    rgb = (255.0 * pattern[..., :3]).round().astype(np.uint8)
    metres = np.exp(known.depth_log_mean + 2.0 * known.depth_log_std * (2.0 * pattern[..., 3] - 1.0))
    metres = np.clip(metres, card.projection.min_range_m, card.projection.max_range_m).astype(np.float32)
    metres[rng.random((rows, columns)) < rng.uniform(0.0, 0.9)] = 0.0  # lidar images are sparse
    return Frame(FrameKey(0, 0, (0,)), camera, rgb, metres)


def _noise(kind: str, rows: int, columns: int, channels: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """(rows, columns, channels) from 0 to 1."""
    if kind == "flat with noise":
        flat = rng.uniform(0.1, 0.9, channels) + rng.normal(0.0, 0.03, (rows, columns, channels))
        return np.clip(flat, 0.0, 1.0)
    if kind == "blocks":
        blocks = np.broadcast_to(rng.random(channels), (rows, columns, channels)).copy()
        for _ in range(int(rng.integers(10, 60))):
            y, x = int(rng.integers(rows)), int(rng.integers(columns))
            height, width = int(rng.integers(2, max(3, rows // 2))), int(rng.integers(2, max(3, columns // 2)))
            blocks[y : y + height, x : x + width] = rng.random(channels)
        return blocks
    white = rng.random((rows, columns, channels))
    if kind == "white noise":
        return white
    blurred = np.asarray(cv2.GaussianBlur(white, (0, 0), float(rng.uniform(1.0, max(2.0, rows / 12.0)))))
    low, high = blurred.min(axis=(0, 1)), blurred.max(axis=(0, 1))
    return np.asarray((blurred - low) / np.maximum(high - low, 1e-9), dtype=float)


# -------------------------------------------------------------------------------------------------------------- masked


def masked_frames(frames: Sequence[Stranger], card: ModelCard, seed: int) -> list[Stranger]:
    """The model's own place behind one black box of 80 to 100 % of what it would see; depth has no return there.

    What lies outside the part that the network is shown is masked too. Every fifth frame is black altogether; of these
    any pose is false. Of the others a pose may be right by what is left, and is judged by the truth.
    """
    strangers = []
    for index, known in enumerate(frames):
        rng = np.random.default_rng((seed, index))
        share = 1.0 if index % ALL_MASKED_EVERY == ALL_MASKED_EVERY - 1 else float(rng.uniform(LEAST_MASK, 1.0))
        frame = as_by_model(known.frame, card)
        kept = _kept(card, share, rng)
        changes = {
            name: np.where(kept if image.ndim == 2 else kept[..., None], image, 0).astype(image.dtype)
            for name, image in (("rgb", frame.rgb), ("depth_m", frame.depth_m))
            if image is not None
        }
        truth = known.T_map_camera if kept.any() else None
        kind = NOTHING_LEFT if truth is None else SOME_LEFT
        strangers.append(Stranger(replace(frame, **changes), kind, truth))  # type: ignore[arg-type]
    return strangers


def _kept(card: ModelCard, share: float, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Which pixels of the training camera's picture are left."""
    rows, columns = card.camera.height, card.camera.width
    crop = centre_crop(rows, columns, card.network.height, card.network.width)
    kept = np.zeros((rows, columns), dtype=bool)
    inside = np.ones((card.network.height, card.network.width), dtype=bool)
    height, width = (min(size, round(size * share**0.5)) for size in inside.shape)
    y, x = (int(rng.integers(size - box + 1)) for size, box in zip(inside.shape, (height, width), strict=True))
    inside[y : y + height, x : x + width] = False
    kept[crop] = inside
    return kept


# --------------------------------------------------------------------------------------------------- how they are shown


def as_by_model(frame: Frame, card: ModelCard) -> Frame:
    """The frame's pictures as if the model's own camera had taken them: only the scene can give it away."""
    camera = card.camera
    rgb = None if frame.rgb is None else fit_rgb(frame.rgb, camera.height, camera.width)
    depth_m = None if frame.depth_m is None else fit_depth(frame.depth_m, camera.height, camera.width)
    return Frame(frame.key, camera, rgb, depth_m, frame.absent)


def at_place(frame: Frame, place: int) -> Frame:
    """The frame with the stamp at which it is shown."""
    stamp_ns = FIRST_NS + place * SHOWN_EVERY_NS
    image_ns = None if frame.rgb is None else stamp_ns
    return replace(frame, key=FrameKey(stamp_ns, image_ns, () if frame.depth_m is None else (stamp_ns,)))


def without_unusable(frame: Frame, limits: InputConfig) -> Frame:
    """The frame without what the node would not have taken for a picture: constant colour, too few returns."""
    absent, rgb, depth_m = dict(frame.absent), frame.rgb, frame.depth_m
    if rgb is not None and float(rgb[::STEP, ::STEP].mean(axis=2).std()) < limits.constant_image_deviation:
        rgb, absent[Modality.RGB] = None, "image is constant"
    if depth_m is not None and int(np.count_nonzero(depth_m)) < limits.min_depth_returns:
        depth_m, absent[Modality.DEPTH] = None, "depth is empty"
    return replace(frame, rgb=rgb, depth_m=depth_m, absent=absent)


def kinds_of(strangers: Iterable[Stranger]) -> Iterator[str]:
    """Each once, in their order."""
    yield from dict.fromkeys(stranger.kind for stranger in strangers)
