"""Degraded input as in VMLoc's Table 4: a modality that is intact (0), masked (1) or missing (2)."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from vmloc_ros.errors import ConfigError
from vmloc_ros.types import Frame, Modality

Levels = Mapping[Modality, int]
"""Level by modality; one that is not named is intact."""

INTACT, MASKED, MISSING = 0, 1, 2
MASK_SHARE = 0.5
"""Table 4's mask is 128x128 pixels of an image whose shorter side is 256: half of it."""
ALL = "all"
TABLE_4: tuple[Levels, ...] = (
    {},
    {Modality.RGB: MASKED},
    {Modality.RGB: MISSING},
    {Modality.DEPTH: MASKED},
    {Modality.DEPTH: MISSING},
)


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
                f"--corrupt {text}: must be rgb or depth, a colon, and 0 (intact), 1 (masked) or 2 (missing); "
                f"or {ALL} for the whole of Table 4"
            )
        levels[Modality(name)] = int(level)
    return levels


def parse_conditions(texts: Sequence[str], modalities: Iterable[str]) -> list[Levels]:
    """What is to be measured: one condition that all the texts make up together, or for `all` those of Table 4.

    Args:
        texts: of `--corrupt`.
        modalities: that are used; the rows of Table 4 about others are left out.

    Raises:
        ConfigError: not of that form, or `all` beside another.
    """
    if ALL not in texts:
        return [parse_corruption(texts)]
    if len(texts) > 1:
        raise ConfigError(f"--corrupt {ALL} already holds the others; give it alone")
    used = set(modalities)
    return [levels for levels in TABLE_4 if all(modality.value in used for modality in levels)]


def condition_name(levels: Levels) -> str:
    """`none`, `rgb:1`, `rgb:1 depth:2`."""
    return " ".join(f"{m.value}:{levels[m]}" for m in Modality if levels.get(m, INTACT)) or "none"


def touched(levels: Mapping[Modality, int], sensors: Sequence[Modality]) -> bool:
    """Whether a mode of these sensors shows something corrupted that is still there, or all that is left.

    Where it does not, its answers are those of the intact frames (or there are none).
    """
    left = {modality for modality in Modality if levels.get(modality, INTACT) < MISSING}
    shown = [levels.get(modality, INTACT) for modality in sensors]
    return max(shown) == MASKED or set(sensors) == left


def corrupted(frame: Frame, levels: Levels, seed: int = 0) -> Frame:
    """The frame with a black square of half the shorter side (depth: no return) at level 1, without the modality at 2.

    The square's place is drawn from seed, stamp and modality alone: the same in every run, whatever else is corrupted.
    """
    changes: dict[str, Any] = {}
    absent = dict(frame.absent)
    for modality, attribute in ((Modality.RGB, "rgb"), (Modality.DEPTH, "depth_m")):
        image, level = getattr(frame, attribute), levels.get(modality, INTACT)
        if image is None or level == INTACT:
            continue
        if level == MISSING:
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
