"""The bytes of a sensor message, without copying them, and only as many as the message promised."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from vmloc_ros.errors import MessageError


def byte_view(data: Any, what: str) -> NDArray[np.uint8]:
    """The message's bytes as a flat uint8 array that shares their memory (it may be read-only).

    Takes whatever a message library stores: bytes, bytearray, memoryview, array.array or a numpy array.

    Raises:
        MessageError: `data` is not a contiguous buffer; `what` names the message.
    """
    try:
        return np.frombuffer(data, dtype=np.uint8)
    except (TypeError, ValueError, BufferError) as error:
        # numpy refuses an empty buffer with a ValueError as well: that one is for the caller's size check to name.
        if _is_empty(data):
            return np.empty(0, dtype=np.uint8)
        raise MessageError(f"{what}: data is a {type(data).__name__}, not a contiguous buffer of bytes") from error


def _is_empty(data: Any) -> bool:
    try:
        return len(data) == 0
    except TypeError:
        return False


def require_size(data: NDArray[np.uint8], expected: int, what: str, law: str) -> None:
    """Checks a message's size before anything in it is touched.

    Raises:
        MessageError: `data` has not exactly `expected` bytes; says how many, and by which law.
    """
    if len(data) != expected:
        fault = "truncated" if len(data) < expected else "too long"
        raise MessageError(f"{what}: {fault}, has {len(data)} bytes instead of {expected} ({law})")


def byte_order(is_bigendian: bool) -> str:
    """numpy's sign for a message's byte order."""
    return ">" if is_bigendian else "<"
