"""Which stored samples are trained on and which choose the best weights and calibrate."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vmloc_ros.errors import ConfigError
from vmloc_ros.networks.inputs_config import InputShape
from vmloc_ros.samples import SampleStore
from vmloc_ros.training_config import FRAME_NUMBERS_FORMAT, DataConfig, parse_range
from vmloc_ros.types import Modality

SEVENSCENES_RATE_HZ = 30.0
SEVENSCENES_START_NS = 1_000_000_000_000_000_000
"""7-Scenes has no time: frame n is stamped 1e9 s + n / 30 s."""


def positions_of(store: SampleStore, data: DataConfig) -> NDArray[np.float64]:
    """What the blocks of `hold_out` count: frame numbers (7-Scenes), else seconds since the recording's first frame."""
    if data.format == FRAME_NUMBERS_FORMAT:
        return np.rint((store.stamps_ns - SEVENSCENES_START_NS) / 1e9 * SEVENSCENES_RATE_HZ)
    first = np.zeros(len(store.recordings), dtype=np.int64)
    for index in range(len(first)):
        first[index] = store.stamps_ns[store.recording_of == index].min()
    return np.asarray((store.stamps_ns - first[store.recording_of]) / 1e9)


def in_blocks(positions: NDArray[np.float64], blocks: Sequence[str]) -> NDArray[np.bool_]:
    """Whether each position lies in one of the blocks, ends included."""
    inside = np.zeros(len(positions), dtype=bool)
    for text in blocks:
        first, last = parse_range(text)
        block = (positions >= first) & (positions <= last)
        if not block.any():
            raise ConfigError(
                f"data: no frame lies in the block {text!r}; frames run {positions.min():g}-{positions.max():g}"
            )
        inside |= block
    return inside


def usable_samples(store: SampleStore, data: DataConfig, network: InputShape) -> NDArray[np.bool_]:
    """Which samples have a modality of the network and are not discarded (N,)."""
    usable = np.zeros(len(store), dtype=bool)
    if network.has(Modality.RGB):
        usable |= store.has_rgb
    if network.has(Modality.DEPTH):
        usable |= store.has_depth
    return usable & ~in_blocks(positions_of(store, data), data.discard)


def in_recordings(store: SampleStore, names: Sequence[str]) -> NDArray[np.bool_]:
    """Whether each sample is of one of the recordings (N,)."""
    return np.array([name in names for name in store.recordings], dtype=bool)[store.recording_of]


def split(store: SampleStore, data: DataConfig, network: InputShape) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices of the training and of the validation samples; those without a modality of the network are left out.

    Raises:
        ConfigError: a recording or block that does not exist.
    """
    usable = usable_samples(store, data, network) & ~_tested(store, data)
    held_out = in_recordings(store, data.validation) | in_blocks(positions_of(store, data), data.hold_out)
    return np.flatnonzero(usable & ~held_out), np.flatnonzero(usable & held_out)


def scored_samples(store: SampleStore, data: DataConfig, network: InputShape) -> NDArray[np.int64]:
    """Indices of the samples that are only ever tested on; none where nothing is named.

    Raises:
        ConfigError: a block that does not exist.
    """
    return np.flatnonzero(usable_samples(store, data, network) & _tested(store, data))


def _tested(store: SampleStore, data: DataConfig) -> NDArray[np.bool_]:
    return in_recordings(store, data.test) | in_blocks(positions_of(store, data), data.test_blocks)


def block_numbers(store: SampleStore, data: DataConfig, blocks: Sequence[str]) -> NDArray[np.int64]:
    """The block that each sample lies in (N,): each recording's part of each of the named blocks is one, and what lies
    in none of them is one more per recording.

    Raises:
        ConfigError: a block that does not exist.
    """
    positions = positions_of(store, data)
    within = np.zeros(len(store), dtype=np.int64)
    for number, text in enumerate(blocks):
        within[in_blocks(positions, [text])] = number + 1
    return store.recording_of * (len(blocks) + 1) + within
