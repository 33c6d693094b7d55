"""Anything that can be trained on or evaluated on: a dataset's folder, or one's own bags."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vmloc_ros.bags import BagRecording
from vmloc_ros.config import TopicNames
from vmloc_ros.datasets.base import Recording
from vmloc_ros.datasets.open import open_recordings
from vmloc_ros.errors import DatasetError

BAG = "bag"


def open_any(format: str, source: Path, topics: TopicNames, options: dict[str, Any]) -> list[Recording]:
    """Recordings of a dataset (`datasets.open`), or of format `bag`: one bag, or all bags in a folder, by name.

    Args:
        topics: names in a bag.
        options: of the dataset's reader; for bags `start_s` and `duration_s`.

    Raises:
        DatasetError, BagError: nothing usable, or an unknown option.
    """
    if format != BAG:
        return open_recordings(format, source, **options)
    unknown = set(options) - {"start_s", "duration_s"}
    if unknown:
        raise DatasetError(f"{source}: a bag has no option {sorted(unknown)[0]!r}; it has start_s, duration_s")
    if source.is_file() or (source / "metadata.yaml").is_file():
        return [BagRecording(source, topics, **options)]
    if not source.is_dir():
        raise DatasetError(f"{source}: there is no such bag, and no such folder of bags")
    bags = sorted(
        path for path in source.iterdir() if path.suffix in (".mcap", ".db3") or (path / "metadata.yaml").is_file()
    )
    if not bags:
        raise DatasetError(f"{source}: holds no bag (a folder with metadata.yaml, or a .mcap or .db3 file)")
    return [BagRecording(path, topics, **options) for path in bags]
