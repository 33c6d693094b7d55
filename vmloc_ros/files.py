"""Files that are either whole or not there: everything is written beside its name and then moved onto it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file atomically; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with partial.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, content: str) -> None:
    """Writes a UTF-8 text file atomically."""
    write_bytes(path, content.encode())


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes JSON atomically; NaN and infinity are refused (they are not JSON)."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def write_yaml(path: Path, content: Mapping[str, Any]) -> None:
    """Writes YAML atomically, keys in the order given."""
    write_text(path, yaml.safe_dump(dict(content), sort_keys=False, width=110))


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A folder to fill, which takes the place of `path` only when the block ends without an error.

    A killed run leaves at most a `.part` folder, which the next run removes.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".part")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    if path.exists():
        old = path.with_name(path.name + ".old")
        shutil.rmtree(old, ignore_errors=True)
        os.replace(path, old)
        os.replace(partial, path)
        shutil.rmtree(old, ignore_errors=True)
    else:
        os.replace(partial, path)
