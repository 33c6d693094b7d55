"""Which frames belong together: a frame and those before it, for networks that learn from more than one at a time."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vmloc_ros.errors import TrainingError
from vmloc_ros.samples import SampleStore
from vmloc_ros.training_config import ClipConfig


class Clips:
    """Clips of some samples: all of a recording, in order of time, with no gap longer than the configuration allows.

    Attributes:
        usable: the samples that have a whole clip before them.
    """

    def __init__(self, store: SampleStore, samples: NDArray[np.int64], config: ClipConfig) -> None:
        """
        Args:
            store: of the frames.
            samples: those that may be shown.
            config: how many frames a clip has, and how far they may lie apart.

        Raises:
            TrainingError: no sample has a whole clip.
        """
        self._config = config
        before, place = chains(store, samples, config.max_gap_s).T
        self._whole = np.zeros(len(store), dtype=np.int64)  # the widest spacing that fits; 0: none
        for spacing in range(config.spacing, config.largest_spacing + 1):
            able = before >= spacing * (config.frames - 1)
            self._whole[able] = spacing
        self.usable = samples[self._whole[samples] > 0]
        self._place = place
        self._by_place = in_order(store, samples)
        if not len(self.usable):
            raise TrainingError(
                f"no frame has {config.frames - 1} others before it, {config.spacing} frames apart without a gap of "
                f"more than {config.max_gap_s:g} s; check objective.clip and data.frame_stride"
            )

    def rows(self, samples: NDArray[np.int64], generator: np.random.Generator) -> NDArray[np.int64]:
        """Sample numbers (B, frames) of one clip that ends at each of B usable samples, oldest first; where the
        configuration gives a range of spacings one is drawn for each clip, as wide as the clip's drive allows."""
        config = self._config
        drawn = generator.integers(config.spacing, config.largest_spacing + 1, len(samples))
        spacing = np.minimum(drawn, self._whole[samples])
        steps = np.arange(config.frames - 1, -1, -1)
        places = self._place[samples][:, None] - spacing[:, None] * steps
        return self._by_place[places]


def in_order(store: SampleStore, samples: NDArray[np.int64]) -> NDArray[np.int64]:
    """The samples sorted by recording, and by time within one."""
    return samples[np.lexsort((store.stamps_ns[samples], store.recording_of[samples]))]


def chains(store: SampleStore, samples: NDArray[np.int64], max_gap_s: float) -> NDArray[np.int64]:
    """For every sample of the store (N, 2): how many of `samples` lead up to it without a gap, and its place among
    `samples` sorted by recording and time (-1 for the others)."""
    result = np.full((len(store), 2), -1, dtype=np.int64)
    order = in_order(store, samples)
    before = 0
    for place, index in enumerate(order):
        previous = order[place - 1]
        follows = (
            place > 0
            and store.recording_of[previous] == store.recording_of[index]
            and 0 < store.stamps_ns[index] - store.stamps_ns[previous] <= max_gap_s * 1e9
        )
        before = before + 1 if follows else 0
        result[index] = before, place
    return result


def predecessors(store: SampleStore, samples: NDArray[np.int64], max_gap_s: float) -> NDArray[np.int64]:
    """For each of `samples` the one before it in its recording, -1 where none is at most `max_gap_s` older."""
    known = chains(store, samples, max_gap_s)
    order = in_order(store, samples)
    places = known[samples, 1]
    return np.where(known[samples, 0] > 0, order[places - 1], -1)
