"""Anything that can be trained on or evaluated on: a dataset's folder, or one's own bags."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vmloc_ros.bag_recording import BagRecording
from vmloc_ros.config import TopicNames
from vmloc_ros.datasets.base import Recording
from vmloc_ros.datasets.open import open_recordings
from vmloc_ros.errors import DatasetError

BAG = "bag"
TOPIC_OPTIONS = {f"{name}_topic": name for name in TopicNames.model_fields if name != "ground_truth"} | {
    "truth_topic": "ground_truth"
}
"""Options of a bag that name a topic, and the field of `TopicNames` that each sets."""
LABEL_OPTIONS = ("truth_frame", "base_to_truth", "truth_max_gap_s")
BAG_OPTIONS = ("start_s", "duration_s", *LABEL_OPTIONS)
"""Further options of a bag: see `BagRecording`."""


def open_any(
    format: str, source: Path, topics: TopicNames, options: dict[str, Any], base: str = "base_link"
) -> list[Recording]:
    """Recordings of a dataset (`datasets.open`), or of format `bag`: one bag, or all bags in a folder, by name.

    Args:
        topics: names in a bag.
        options: of the dataset's reader; for bags `TOPIC_OPTIONS` and `BAG_OPTIONS`.
        base: frame of the robot's body, in a bag.

    Raises:
        DatasetError, BagError: nothing usable, or an unknown option.
    """
    if format != BAG:
        return open_recordings(format, source, **options)
    return [_open_bag(path, topics, dict(options), base) for path in _bags(source)]


def _bags(source: Path) -> list[Path]:
    if source.is_file() or (source / "metadata.yaml").is_file():
        return [source]
    if not source.is_dir():
        raise DatasetError(f"{source}: there is no such bag, and no such folder of bags")
    bags = sorted(
        path for path in source.iterdir() if path.suffix in (".mcap", ".db3") or (path / "metadata.yaml").is_file()
    )
    if not bags:
        raise DatasetError(f"{source}: holds no bag (a folder with metadata.yaml, or a .mcap or .db3 file)")
    return bags


def _open_bag(path: Path, topics: TopicNames, options: dict[str, Any], base: str) -> BagRecording:
    known = (*TOPIC_OPTIONS, *BAG_OPTIONS)
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise DatasetError(f"{path}: a bag has no option {unknown[0]!r}; it has {', '.join(known)}")
    names = {field: options.pop(option) for option, field in TOPIC_OPTIONS.items() if option in options}
    for field, name in names.items():
        if not isinstance(name, str) or not name.strip("/"):
            raise DatasetError(f"{path}: the option for the topic {field} must be a topic's name, not {name!r}")
    return BagRecording(path, topics.model_copy(update=names), base=base, **options)
