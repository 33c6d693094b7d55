"""Numerical differentiation for tests."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from vmloc_ros.geometry import Array


def jacobian(function: Callable[[Array], Array], size: int = 6, step: float = 1e-6) -> Array:
    """The derivative of a function of `size` numbers at zero, by central differences; one column per number."""
    return np.stack([(function(d) - function(-d)) / (2.0 * step) for d in step * np.eye(size)], axis=1)
