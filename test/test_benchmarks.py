"""docs/benchmarks.md: every command in it is understood, every plan it names says what its table says."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer

from vmloc_ros import cli
from vmloc_ros.comparison import Run, load_plan
from vmloc_ros.datasets.open import ROBOTCAR_SPLITS

PAGE = Path(__file__).resolve().parents[1] / "docs" / "benchmarks.md"
MODELS = PAGE.parents[1] / "models"
ABLATIONS = ("image", "depth", "attention", "poe", "vmloc")


def commands() -> list[str]:
    """The lines of the page's blocks that call vmloc."""
    blocks = re.findall(r"^```\n(.*?)^```", PAGE.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    lines = [line.strip().partition(" #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line.startswith("vmloc ")]


def test_there_are_commands_for_every_table() -> None:
    text = " ".join(commands())
    for name in ("paper_sevenscenes", "paper_loop", "paper_full", "ablation_town", "ablation_redkitchen"):
        assert f"models/{name}.yaml" in text
    assert "--corrupt all" in text


@pytest.mark.parametrize("line", commands())
def test_every_command_is_understood_and_names_files_that_exist(line: str) -> None:
    _, name, *words = shlex.split(line)
    command = typer.main.get_command(cli.app).commands[name]  # type: ignore[attr-defined]
    command.make_context(name, list(words), resilient_parsing=False)  # raises what a user would see
    for word in words:
        if word.startswith("models/"):
            assert (MODELS.parent / word).exists(), word


@pytest.mark.parametrize("plan", ["paper_loop", "paper_full"])
def test_the_plans_of_robotcar_are_the_papers_ablations(plan: str) -> None:
    runs = {run.variant: run for run in load_plan(MODELS / f"{plan}.yaml")}
    assert tuple(runs) == ABLATIONS
    split = plan.removeprefix("paper_")
    assert split in ROBOTCAR_SPLITS
    for run in runs.values():
        data = run.config.data
        assert data.options["split"] == split
        assert data.hold_out
        assert data.train + data.ignore == []  # the split says which
        assert "part" not in data.options  # the train part
        holds_the_paper(run)
    assert runs["image"].config.network.modalities == ["rgb"]
    assert runs["depth"].config.network.modalities == ["depth"]
    assert runs["attention"].config.network.fusion == "concatenation"
    assert runs["poe"].config.objective.samples == 1
    assert runs["vmloc"].config.objective.samples == 10


def test_the_plan_of_7_scenes_trains_on_the_official_split() -> None:
    (run,) = load_plan(MODELS / "paper_sevenscenes.yaml")
    assert run.config.data.format == "sevenscenes"
    assert run.config.data.options["split"] == "train"
    assert run.config.localizer.input.depth_source == "depth"
    holds_the_paper(run)


def holds_the_paper(run: Run) -> None:
    """What the paper states of every experiment."""
    config = run.config
    assert (config.network.trunk, config.network.latent, config.network.dropout) == ("resnet34", 1024, 0.5)
    assert (config.optimizer.batch_size, config.optimizer.peak_learning_rate) == (64, 5e-5)
    assert config.optimizer.weight_decay == 5e-5
    assert config.objective.presence == [0.6, 0.2, 0.2]
    assert (config.objective.beta_0, config.objective.gamma_0) == (-3.0, 0.0)
