"""docs/benchmarks.md: every command in it is understood, every plan it names says what its table says."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer

from vmloc_ros import cli
from vmloc_ros.comparison import Run, load_plan
from vmloc_ros.config import read_yaml
from vmloc_ros.datasets.open import ROBOTCAR_SPLITS
from vmloc_ros.networks.config import NetworkConfig
from vmloc_ros.networks.retrieval_config import RetrievalConfig
from vmloc_ros.networks.vlocnet_config import VLocNetConfig
from vmloc_ros.training_config import TrainingConfig, load_training_config

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
    names = ("paper_sevenscenes", "paper_loop", "paper_full", "ablation_town", "ablation_redkitchen")
    papers = (
        "generative_map_paper",
        "posenet17_paper",
        "atloc_paper",
        "mapnet_paper",
        "paper_vlocnet",
        "paper_baselines",
    )
    for name in (*names, *papers, "cambridge_vlocnet", "cambridge_posenet17"):
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


def is_plan(path: Path) -> bool:
    return "variants" in read_yaml(path)


@pytest.mark.parametrize("path", sorted(MODELS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_and_plan_can_be_loaded(path: Path) -> None:
    if is_plan(path):
        assert load_plan(path)
    else:
        assert load_training_config(path).name == path.stem


def recipe(name: str) -> TrainingConfig:
    return load_training_config(MODELS / f"{name}.yaml")


@pytest.mark.parametrize("name", ["cambridge_vlocnet", "cambridge_posenet17"])
def test_cambridge_recipes_never_see_the_test_list(name: str) -> None:
    data = recipe(name).data
    assert data.format == "cambridge"
    assert data.options["split"] == "train"
    assert data.hold_out
    assert recipe(name).stored_size() == (256, 256)


def test_vlocnet_on_cambridge_starts_as_its_paper_says() -> None:
    config = recipe("cambridge_vlocnet")
    assert (config.objective.beta_0, config.objective.gamma_0) == (-3.0, -6.5)
    assert config.objective.clip.max_gap_s > 0.5  # pictures come twice a second
    seven = recipe("vlocnet_paper")
    assert isinstance(config.network, VLocNetConfig)
    assert config.network == seven.network
    assert config.objective.clip.frames == 2


def test_posenet17_on_cambridge_is_the_network_of_robotcar() -> None:
    config, robotcar = recipe("cambridge_posenet17"), recipe("posenet17_paper")
    assert isinstance(config.network, NetworkConfig)
    size = {"width": robotcar.network.width, "height": robotcar.network.height}
    assert config.network.model_copy(update=size) == robotcar.network
    assert (config.objective.beta_0, config.objective.gamma_0, config.objective.distance) == (0.0, -3.0, "l1")


def test_the_plan_of_the_baselines_is_their_recipes_on_another_data_set() -> None:
    runs = {run.variant: run.config for run in load_plan(MODELS / "paper_baselines.yaml")}
    assert tuple(runs) == ("posenet17", "atloc", "mapnet")
    for name, config in runs.items():
        own = recipe(f"{name}_paper")
        assert config.data.format == "sevenscenes"
        assert config.data.options == {"split": "train", "odometry": "none", "lidar": None}
        assert (config.network, config.objective) == (own.network, own.objective)
        assert config.optimizer == own.optimizer


def test_the_plan_of_vlocnet_is_its_papers_tables() -> None:
    runs = {run.variant: run.config for run in load_plan(MODELS / "paper_vlocnet.yaml")}
    networks = {name: config.network for name, config in runs.items()}
    own = {name: config.objective.vlocnet for name, config in runs.items()}
    assert all(isinstance(network, VLocNetConfig) and network.trunk == "resnet50" for network in networks.values())
    assert [networks[f"res{stage}"].shared_stages for stage in (2, 3, 4)] == [2, 3, 4]
    for name, activation, previous, weights in (
        ("m1", "relu", False, "fixed"),
        ("m2", "elu", False, "fixed"),
        ("m3", "elu", True, "fixed"),
        ("m4", "elu", True, "learned"),
    ):
        network = networks[name]
        assert isinstance(network, VLocNetConfig)
        assert (network.activation, network.previous_pose, network.odometry) == (activation, previous, False)
        assert (own[name].weights, own[name].geometric_consistency) == (weights, previous)


@pytest.mark.parametrize("scene", ["town", "redkitchen"])
def test_retrieval_is_judged_as_the_others(scene: str) -> None:
    config, learnt = recipe(f"retrieval_{scene}"), recipe(f"posenet17_{scene}")
    assert isinstance(config.network, RetrievalConfig)
    assert config.data == learnt.data
    assert config.localizer == learnt.localizer
    assert config.stored_size() == learnt.stored_size()  # so that the samples can be shared
