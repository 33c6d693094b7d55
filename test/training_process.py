"""One process of a training, for tests: `training_process.py JOB.json`; the launcher's variables say which one it is.

The job names the prepared samples, what to train (a configuration per folder), when the last process dies, and
how much memory there is beyond what the process has at its start.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from pathlib import Path

import numpy as np
import torch
from lightning_fabric import Fabric
from safetensors.torch import save_file

from vmloc_ros.batches import measure_normalisation
from vmloc_ros.errors import VmlocError
from vmloc_ros.machines import start
from vmloc_ros.samples import open_store
from vmloc_ros.training import Row, train
from vmloc_ros.training_config import TrainingConfig

LOSSES, WEIGHTS = "losses.json", "weights.safetensors"


def main(job_file: Path) -> None:
    """Trains what the job lists, one after the other; the first process writes every step's loss and the weights."""
    job = json.loads(job_file.read_text())
    torch.set_num_threads(1)
    store = open_store(Path(job["store"]), "key")
    assert store is not None
    if "memory_mb" in job:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + job["memory_mb"] * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for folder, values in job["trainings"].items():
        losses = list[float]()
        fabric = start(TrainingConfig.model_validate(values))

        def tell(step: int, row: Row, losses: list[float] = losses, fabric: Fabric = fabric) -> None:
            if step == job["die_at"] and fabric.global_rank == fabric.world_size - 1:
                os.kill(os.getpid(), signal.SIGKILL)
            losses.append(float(row["loss"]))

        config, out, samples = TrainingConfig.model_validate(values), Path(folder), np.arange(len(store))
        normalisation = measure_normalisation(store, samples)
        trained = train(config, store, samples, samples, normalisation, out, "key", job["resume"], tell, fabric)
        if fabric.is_global_zero:
            save_file(trained.tensors, out / WEIGHTS)
            (out / LOSSES).write_text(json.dumps(losses))
        else:
            assert not trained.tensors, "only the first process keeps the best weights"


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]))
    except VmlocError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
