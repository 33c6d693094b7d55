"""What a model's card says beyond poses: of the network's own odometry, and of a map that can be looked at."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from vmloc_ros.localizers.generative_map import measure_map
from vmloc_ros.runtimes.generative_map import MapRuntime
from vmloc_ros.runtimes.torch import Runtime
from vmloc_ros.runtimes.vlocnet import VLocNetRuntime
from vmloc_ros.samples import SampleStore
from vmloc_ros.training_config import TrainingConfig
from vmloc_ros.validation import motion_card, validate_motions


def card_parts(
    config: TrainingConfig,
    runtime: Runtime,
    store: SampleStore,
    train_samples: NDArray[np.int64],
    judged_samples: NDArray[np.int64],
) -> dict[str, Any]:
    """Fields of the card that depend on the kind of network.

    Args:
        config: of the training.
        runtime: runs the weights as they are stored.
        store: of the samples.
        train_samples: what was trained on.
        judged_samples: what the covariances are calibrated on.
    """
    parts: dict[str, Any] = {"pose_graph": config.pose_graph}
    if isinstance(runtime, MapRuntime):
        parts["map"] = measure_map(runtime, store, judged_samples)
    if isinstance(runtime, VLocNetRuntime) and runtime.has_odometry:
        motions = validate_motions(runtime, config.network, store, judged_samples)
        parts["motion"] = motion_card(motions, runtime.max_gap_s)
    return parts
