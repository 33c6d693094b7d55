"""What a model's card says beyond poses: of the network's own odometry, and of a map that can be looked at."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from vmloc_ros.localizers.generative_map import measure_map
from vmloc_ros.networks.config import AnyNetwork
from vmloc_ros.runtimes.generative_map import MapRuntime
from vmloc_ros.runtimes.scene_coordinates import SceneRuntime
from vmloc_ros.runtimes.torch import Runtime
from vmloc_ros.runtimes.vlocnet import VLocNetRuntime
from vmloc_ros.samples import SampleStore
from vmloc_ros.scene_limits import measure_scene
from vmloc_ros.validation import motion_card, validate_motions


def measure_belief(runtime: Runtime, store: SampleStore, samples: NDArray[np.int64]) -> None:
    """Before anything is scored or calibrated: a runtime that can refuse frames learns when to, and keeps that.

    Raises:
        TrainingError: it cannot be measured.
    """
    if isinstance(runtime, SceneRuntime):
        runtime.scene = measure_scene(runtime, store, samples)


def card_parts(
    network: AnyNetwork, runtime: Runtime, store: SampleStore, judged_samples: NDArray[np.int64]
) -> dict[str, Any]:
    """Fields of the card that depend on the kind of network.

    Args:
        network: its configuration.
        runtime: runs the weights as they are stored.
        store: of the samples.
        judged_samples: what the covariances are calibrated on.
    """
    parts: dict[str, Any] = {}
    if isinstance(runtime, MapRuntime):
        parts["map"] = measure_map(runtime, store, judged_samples)
    if isinstance(runtime, VLocNetRuntime) and runtime.has_odometry:
        parts["motion"] = motion_card(validate_motions(runtime, network, store, judged_samples), runtime.max_gap_s)
    if isinstance(runtime, SceneRuntime):
        parts["scene"] = runtime.scene
    return parts
