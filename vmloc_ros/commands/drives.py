"""What following a model needs besides its frames: mountings, odometry and the filter's parameters."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vmloc_ros.checkpoint import CONFIG
from vmloc_ros.config import FilterConfig, LocalizerConfig, load_config, parse, read_yaml
from vmloc_ros.datasets.base import Recording
from vmloc_ros.following import Drive, drive_of
from vmloc_ros.samples import SampleStore


def filter_of(model: Path, config: Path | None = None, observations: bool = True) -> FilterConfig:
    """The filter's parameters: of a parameter file, or of the model's training.

    Args:
        observations: False: it takes a map's poses instead of its observations.

    Raises:
        ConfigError: a file that cannot be used.
    """
    settings = LocalizerConfig()
    if config is not None:
        settings = load_config(config)
    elif (model / CONFIG).is_file():
        settings = parse(LocalizerConfig, read_yaml(model / CONFIG).get("localizer") or {}, str(model / CONFIG))
    if observations or "use_observations" not in FilterConfig.model_fields:
        return settings.filter
    return settings.filter.model_copy(update={"use_observations": False})


def in_order(store: SampleStore, indices: NDArray[np.int64]) -> NDArray[np.int64]:
    """Samples recording by recording, each in order of stamp."""
    return indices[np.lexsort((store.stamps_ns[indices], store.recording_of[indices]))]


def drives_of(
    store: SampleStore, indices: NDArray[np.int64], recordings: Sequence[Recording], with_odometry: bool = True
) -> dict[str, Drive]:
    """The mountings, and the odometry where it is asked for and there is one, of the recordings of some samples.

    Raises:
        DatasetError: the truth of a recording is not known where its first sample has a label.
    """
    by_name = {recording.name: recording for recording in recordings}
    drives = {}
    for number in dict.fromkeys(store.recording_of[indices].tolist()):
        first = indices[store.recording_of[indices] == number][0]
        name, stamp_ns = store.recordings[number], int(store.stamps_ns[first])
        drives[name] = drive_of(by_name[name], stamp_ns, store.T_map_camera[first], with_odometry)
    return drives
