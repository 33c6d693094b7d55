"""Modality cases and their scales in the training objective."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import START_NS, drive, frame_at, tiny_config

from vmloc_ros.batches import Batch, BatchMaker, measure_normalisation
from vmloc_ros.networks.vmloc import VMLoc
from vmloc_ros.objective import CASES, Objective
from vmloc_ros.samples import SampleStore, build_store
from vmloc_ros.training_config import TrainingConfig
from vmloc_ros.types import Mode


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> SampleStore:
    """Eight frames; the first has no depth, the second no image."""
    frames = list(drive(8))
    frames[0] = (frame_at(0.0, START_NS, ("rgb",)), frames[0][1], "drive")
    frames[1] = (frame_at(0.1, START_NS + 1, ("depth",)), frames[1][1], "drive")
    folder: Path = tmp_path_factory.mktemp("store") / "cache"
    return build_store(folder, iter(frames), *tiny_config().stored_size(), "key")


def prepared(store: SampleStore, config: TrainingConfig) -> tuple[Objective, Batch]:
    torch.manual_seed(0)
    indices = np.arange(len(store))
    batch = BatchMaker(store, config, measure_normalisation(store, indices)).make(indices, (3,))
    return Objective(VMLoc(config.network), config.objective), batch


def test_weighted_cases_are_the_expectation_of_drawn_ones(store: SampleStore) -> None:
    config = tiny_config(objective={"presence_as": "weighted", "presence": [0.5, 0.3, 0.2]})
    objective, batch = prepared(store, config)
    rows = objective._rows(objective.network.encode(batch.inputs), 8, 8)
    shares = torch.stack([share for _, share, _ in rows])
    assert shares.sum().item() == pytest.approx(1.0)
    assert torch.allclose(8 * shares[:, 0], torch.tensor([0.0, 1.0, 0.0]))  # it has only its image
    assert torch.allclose(8 * shares[:, 1], torch.tensor([0.0, 0.0, 1.0]))
    assert torch.allclose(8 * shares[:, 5], torch.tensor([0.5, 0.3, 0.2]))
    assert [set(subset) for subset, _, _ in rows] == [{"rgb", "depth"}, {"rgb"}, {"depth"}]


def test_drawn_cases_are_what_each_sample_shows(store: SampleStore) -> None:
    objective, batch = prepared(store, tiny_config())
    ((_, share, case),) = objective._rows(objective.network.encode(batch.inputs), 8, 8)
    assert torch.allclose(share, torch.full((8,), 0.125))
    for row in range(8):
        shows = tuple(row in batch.inputs[name].rows_N.tolist() for name in ("rgb", "depth"))
        mode = {(True, True): Mode.RGB_DEPTH, (True, False): Mode.RGB_ONLY, (False, True): Mode.DEPTH_ONLY}[shows]
        assert CASES[case[row]] is mode


@pytest.mark.parametrize("presence_as", ["drawn", "weighted"])
def test_each_case_trains_its_own_scales(store: SampleStore, presence_as: str) -> None:
    objective, batch = prepared(store, tiny_config(objective={"scales": "per_case", "presence_as": presence_as}))
    assert objective.beta.shape == objective.gamma.shape == (3,)
    only_rgb = batch._replace(inputs={"rgb": batch.inputs["rgb"]})
    objective(only_rgb)[0].backward()
    assert objective.beta.grad is not None
    assert objective.beta.grad[CASES.index(Mode.RGB_DEPTH)] == 0


def test_one_pair_of_scales_is_the_papers(store: SampleStore) -> None:
    objective, batch = prepared(store, tiny_config())
    assert objective.beta.shape == (1,)
    loss, bound = objective(batch)
    loss.backward()
    assert torch.isfinite(loss)
    assert not bound.requires_grad
    assert all(p.grad is None or bool(torch.isfinite(p.grad).all()) for p in objective.parameters())


def test_importance_sharpens_the_bound_not_the_other_way(store: SampleStore) -> None:
    """The importance-weighted bound is never below the mean of single-sample ones on the same samples."""
    config = tiny_config(objective={"samples": 8, "latent_weight": 0.1}, network={"dropout": 0.0})
    objective, batch = prepared(store, config)
    objective.eval()
    torch.manual_seed(1)
    elbo, bound = objective(batch, importance=False)
    torch.manual_seed(1)
    _, same_bound = objective(batch, importance=True)
    assert bound.item() == pytest.approx(same_bound.item(), rel=1e-5)
    assert bound.item() >= -elbo.item()
