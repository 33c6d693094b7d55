"""`vmloc params`: the parameter file with every parameter, its default and its meaning."""

from __future__ import annotations

from pathlib import Path

from vmloc_ros.files import write_text
from vmloc_ros.parameter_file import render


def run_params(out: Path | None = None) -> str:
    """The file's text; written to `out` where that is given."""
    text = render()
    if out is not None:
        write_text(out, text)
    return text
