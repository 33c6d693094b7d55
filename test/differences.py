"""Numerical differentiation for tests."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from vmloc_ros.geometry import Array


def jacobian(function: Callable[[Array], Array], step: float = 1e-6) -> Array:
    """The derivative of a function of a perturbation (6,) at zero, by central differences; one column per component."""
    return np.stack([(function(d) - function(-d)) / (2.0 * step) for d in step * np.eye(6)], axis=1)
