"""Modality cases and their scales in the training objective."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pictures import START_NS, drive, frame_at, tiny_config
from torch import Tensor

from vmloc_ros.batches import Batch, BatchMaker, Part, measure_normalisation
from vmloc_ros.clips import Clips
from vmloc_ros.config import parse
from vmloc_ros.errors import ConfigError
from vmloc_ros.networks.vmloc import VMLoc
from vmloc_ros.objective import CASES, Objective
from vmloc_ros.samples import SampleStore, build_store
from vmloc_ros.training import train
from vmloc_ros.training_config import OptimizerConfig, RelativeConfig, TrainingConfig
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


# ----------------------------------------------------------------------------------------------- MapNet's second term

CLIP = {"frames": 3, "spacing": 1}


@pytest.fixture(scope="module")
def drives(tmp_path_factory: pytest.TempPathFactory) -> SampleStore:
    """Twelve frames, of which one has no depth and one no image."""
    frames = list(drive(12))
    frames[3] = (frame_at(3 / 11, frames[3][0].stamp_ns, ("rgb",)), frames[3][1], "drive")
    frames[8] = (frame_at(8 / 11, frames[8][0].stamp_ns, ("depth",)), frames[8][1], "drive")
    folder: Path = tmp_path_factory.mktemp("clips") / "cache"
    return build_store(folder, iter(frames), *tiny_config().stored_size(), "key")


def clips_config(relative: dict[str, Any], **objective: Any) -> TrainingConfig:
    return tiny_config(objective={"clip": CLIP, "relative": relative, **objective}, network={"dropout": 0.0})


def of_clips(store: SampleStore, config: TrainingConfig, part: Part | None = None) -> tuple[Objective, Batch]:
    """The same weights and batch for every part."""
    torch.manual_seed(0)
    samples = np.arange(len(store))
    normalisation = measure_normalisation(store, samples)
    clips = Clips(store, samples, config.objective.clip)
    batch = BatchMaker(store, config, normalisation, part, clips).make(clips.usable, (3,))
    objective = Objective(VMLoc(config.network), config.objective)
    objective.begin(store, samples, normalisation)
    return objective.eval(), batch


def loss_of(objective: Objective, batch: Batch) -> Tensor:
    torch.manual_seed(1)
    return objective(batch)[0]


@pytest.mark.parametrize("frame", ["map", "camera"])
@pytest.mark.parametrize("presence_as", ["drawn", "weighted"])
def test_losses_of_parts_add_up(drives: SampleStore, frame: str, presence_as: str) -> None:
    """And so do their gradients, those of the motion's own weights as well."""
    config = clips_config({"weight": 1.0, "frame": frame}, presence_as=presence_as, scales="per_case")
    objective, batch = of_clips(drives, config)
    whole = loss_of(objective, batch)
    whole.backward()
    total, gradients = 0.0, list[list[Tensor]]()
    for number in range(3):
        alike, part = of_clips(drives, config, Part(number, 3))
        loss = loss_of(alike, part)
        loss.backward()
        total += loss.item()
        gradients.append([torch.zeros_like(p) if p.grad is None else p.grad for p in alike.parameters()])
    assert total == pytest.approx(whole.item(), rel=1e-5)
    for parameter, *parts in zip(objective.parameters(), *gradients, strict=True):
        expected = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        assert torch.allclose(sum(parts, torch.zeros_like(expected)), expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("frame", ["map", "camera"])
@pytest.mark.parametrize("scales", ["own", "shared"])
def test_a_true_motion_costs_only_its_weights(
    drives: SampleStore, frame: str, scales: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network that gives the true poses: what the term adds is beta + gamma of the motion, whatever the clip."""
    relative = {"frame": frame, "scales": scales, "beta_0": 0.25, "gamma_0": -2.0}
    losses = []
    for weight in (0.0, 2.0):
        config = clips_config(relative | {"weight": weight}, distance="l1", samples=1, latent_weight=0.0)
        objective, batch = of_clips(drives, config)
        true = batch.position_B3, batch.log_quat_B3
        monkeypatch.setattr(
            objective.network, "decode", lambda z, keep, true=true: tuple(0.0 * z[..., :3] + t for t in true)
        )
        losses.append(loss_of(objective, batch).item())
    own = (
        relative["beta_0"] + relative["gamma_0"]
        if scales == "own"
        else config.objective.beta_0 + objective.gamma.item()
    )
    assert losses[1] - losses[0] == pytest.approx(2.0 * own, abs=1e-4)


def test_the_motion_is_told_apart_from_the_place(drives: SampleStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Poses that are all off alike: the term adds nothing for it; poses that scatter: it does."""
    config = clips_config({"weight": 1.0, "beta_0": 0.0, "gamma_0": 0.0}, distance="l1", samples=1, latent_weight=0.0)
    objective, batch = of_clips(drives, config)
    true = batch.position_B3, batch.log_quat_B3
    losses = {}
    for name, error in (
        ("offset", torch.ones(len(batch.samples), 1)),
        ("scatter", torch.arange(len(true[0]))[:, None] % 2),
    ):
        monkeypatch.setattr(
            objective.network,
            "decode",
            lambda z, keep, error=error: (0.0 * z[..., :3] + true[0] + error, 0.0 * z[..., :3] + true[1]),
        )
        off = config.objective.model_copy(update={"relative": RelativeConfig()})
        without = Objective(objective.network, off).eval()
        losses[name] = loss_of(objective, batch).item() - loss_of(without, batch).item()
    assert losses["offset"] == pytest.approx(0.0, abs=1e-4)
    assert losses["scatter"] == pytest.approx(3.0, abs=1e-4)  # by one along three axes, from every frame to the next


def test_a_frame_that_does_not_show_a_modality_has_no_motion_in_it(drives: SampleStore) -> None:
    """Weighted cases: of depth alone, frame 3 tells nothing, and so do not the pairs that it is in."""
    config = clips_config({"weight": 1.0}, presence_as="weighted")
    objective, batch = of_clips(drives, config)
    rows = len(batch.samples)
    poses = (*(torch.zeros(1, rows, 3) for _ in range(2)), *(torch.zeros(rows, 3) for _ in range(2)))
    counts = torch.from_numpy(drives.has_depth[batch.samples])
    term = objective._motion_loss(poses, torch.zeros(rows).long(), counts, 3)[0].detach()
    expected = [
        k % 3 > 0 and 3 not in batch.samples[k - 1 : k + 1].tolist() for k in range(rows)
    ]  # the first of a clip has no pair
    assert (term != 0.0).tolist() == expected


def test_the_reference_of_camera_axes_is_kept_with_the_state(drives: SampleStore) -> None:
    """A training that goes on is not told the samples again."""
    objective, _ = of_clips(drives, clips_config({"weight": 1.0, "frame": "camera"}))
    reference = measure_normalisation(drives, np.arange(len(drives))).rotation_reference_xyzw
    assert objective.state_dict()["reference_xyzw"].tolist() == pytest.approx(reference, abs=1e-6)


@pytest.mark.parametrize(
    ("objective", "words"),
    [
        ({"relative": {"weight": 1.0}}, "objective.clip.frames"),
        ({"relative": {"weight": 1.0}, "clip": {"frames": 1}}, "objective.clip.frames"),
        ({"relative": {"weight": -1.0}, "clip": {"frames": 2}}, "weight"),
    ],
)
def test_motion_needs_clips(objective: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        tiny_config(objective=objective)


def test_motion_is_for_this_network_alone() -> None:
    with pytest.raises(ConfigError, match="architecture vmloc"):
        parse(
            TrainingConfig,
            {
                "network": {"architecture": "retrieval"},
                "objective": {"relative": {"weight": 1.0}, "clip": {"frames": 3}},
            },
            "test",
        )


def test_training_by_motion_goes_on_where_it_was(drives: SampleStore, tmp_path: Path) -> None:
    """The same weights whether interrupted or not, and another training than without the term."""
    samples = np.arange(len(drives))
    normalisation = measure_normalisation(drives, samples)

    class PowerCutError(Exception):
        pass

    def cut(step: int, row: object) -> None:
        if step == 5:  # checkpoints are after the second epoch of two steps
            raise PowerCutError

    def run(name: str, weight: float = 1.0, **more: Any) -> dict[str, Tensor]:
        config = clips_config({"weight": weight, "frame": "camera"})
        config = config.model_copy(update={"optimizer": OptimizerConfig(epochs=4, batch_size=5, validate_every=2)})
        nothing = np.empty(0, dtype=np.int64)
        return train(config, drives, samples, nothing, normalisation, tmp_path / name, "key", **more).tensors

    whole = run("whole")
    with pytest.raises(PowerCutError):
        run("cut", tell=cut)
    resumed, without = run("cut", resume=True), run("without", 0.0)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert not all(torch.equal(whole[name], without[name]) for name in whole)
