"""Reasons that a frame has no pose, so that they can be counted: most name a number that is another in every frame."""

from __future__ import annotations

import re

_NUMBER = re.compile(r"[-+]?\d+(\.\d+)?")


def without_numbers(reason: str) -> str:
    """The reason with `#` for every number and its sign: `3 % of the cells agree` and `12 % of ...` are one reason."""
    return _NUMBER.sub("#", reason)
