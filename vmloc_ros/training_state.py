"""The state of an unfinished training, as one safetensors file that is either whole or not there."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn

from vmloc_ros import files
from vmloc_ros.checkpoint import fill_network, read_tensors
from vmloc_ros.errors import CheckpointError

WORK = "work"
"""Inside a training's folder: prepared samples and the state to resume from; not part of the model."""
STATE = f"{WORK}/training_state.safetensors"


@dataclass
class Progress:
    """How far a training has come.

    Attributes:
        epoch: epochs that are done.
        best_score: of the best validation so far (smaller is better); None before the first.
        best_epoch: when that was.
        seconds: spent so far.
        unimproved: validations since the best one.
    """

    epoch: int = 0
    best_score: float | None = None
    best_epoch: int = 0
    seconds: float = 0.0
    unimproved: int = 0


@dataclass(frozen=True, eq=False)
class State:
    """What belongs to a training besides the model, its average and the optimizer.

    Attributes:
        progress: how far it is.
        best: the best weights so far.
        precision: what mixed precision remembers (the scale of the loss in 16-mixed), as Fabric gives it.
    """

    progress: Progress
    best: dict[str, Tensor]
    precision: dict[str, float]


def save_state(
    folder: Path,
    key: str,
    model: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    state: State,
    average: nn.Module | None = None,
) -> None:
    """Writes model, optimizers, the weights' average and the rest of the state, atomically."""
    tensors = {f"model/{name}": tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    tensors |= {f"best/{name}": tensor.detach().cpu().contiguous() for name, tensor in state.best.items()}
    if average is not None:
        tensors |= {f"average/{name}": tensor.cpu().contiguous() for name, tensor in average.state_dict().items()}
    for number, optimizer in enumerate(optimizers):
        for index, entries in optimizer.state_dict()["state"].items():
            tensors |= {
                f"optimizer/{number}/{index}/{name}": torch.as_tensor(value).cpu().contiguous()
                for name, value in entries.items()
            }
    about = {"key": key, "progress": json.dumps(vars(state.progress)), "precision": json.dumps(state.precision)}
    files.write_bytes(folder / STATE, save_safetensors(tensors, metadata=about))


def load_state(
    folder: Path,
    key: str,
    model: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    average: nn.Module | None = None,
) -> State:
    """Restores model, optimizers and the weights' average in place; returns the rest of the state.

    Raises:
        CheckpointError: no state, a broken one, or one of another configuration or other data.
    """
    path = folder / STATE
    if not path.is_file():
        raise CheckpointError(f"{path}: missing, there is nothing to resume; start without --resume")
    tensors, content = read_tensors(path)
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    about = header.get("__metadata__", {})
    if about.get("key") != key:
        raise CheckpointError(
            f"{path}: of another configuration or other data; resume with the same ones, or start anew"
        )
    parameters = [[parameter for group in item.param_groups for parameter in group["params"]] for item in optimizers]
    parts: dict[str, dict[str, Tensor]] = {"model": {}, "best": {}, "average": {}}
    moments: list[dict[int, dict[str, Tensor]]] = [{} for _ in optimizers]
    for name, tensor in tensors.items():
        part, _, rest = name.partition("/")
        if part == "optimizer":
            number, index, entry = rest.split("/", 2)
            parameter = parameters[int(number)][int(index)]
            same_layout = torch.empty_like(parameter).copy_(tensor) if tensor.ndim else tensor
            moments[int(number)].setdefault(int(index), {})[entry] = same_layout
        else:
            parts[part][rest] = tensor
    fill_network(model, parts["model"], path)
    if average is not None:
        fill_network(average, parts["average"], path)
    for optimizer, state in zip(optimizers, moments, strict=True):
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": state, "param_groups": groups})
    return State(Progress(**json.loads(about["progress"])), parts["best"], json.loads(about.get("precision", "{}")))
