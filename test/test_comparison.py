"""`vmloc compare`: plans, what is measured, the seeds together, and a comparison that is killed, repeated or fails."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from counting import FRAMES, Counting
from drawn_poses import DrawnPoses, two_drives
from hypothesis import given
from hypothesis import strategies as st
from pictures import TINY, build, card_of, tiny_config
from tiny_datasets import write_sequence
from typer.testing import CliRunner

from vmloc_ros import cli
from vmloc_ros.checkpoint import RETRIEVAL, WEIGHTS, save_model
from vmloc_ros.commands.compare import run_compare, same_frames
from vmloc_ros.commands.compare_targets import read_targets
from vmloc_ros.commands.compare_training import MARK, Job, is_finished, plan_job, read_mark, write_mark
from vmloc_ros.comparison import (
    CORRUPTIONS,
    INTACT,
    RETRIEVAL_NAME,
    SENSORS,
    Result,
    Run,
    across,
    by_variant,
    cases,
    judge,
    judge_fused,
    judge_retrieval,
    load_plan,
    merge,
    same_training,
    stored_frames,
)
from vmloc_ros.comparison_tables import all_tables, markdown
from vmloc_ros.config import LocalizerConfig, ModelConfig
from vmloc_ros.errors import CheckpointError, ConfigError
from vmloc_ros.following import Drive
from vmloc_ros.localizer import load_localizer
from vmloc_ros.networks.vlocnet_config import MotionCard
from vmloc_ros.networks.vmloc import VMLoc
from vmloc_ros.plots_comparison import plot_comparison
from vmloc_ros.retrieval import Retrieval, write_retrieval
from vmloc_ros.samples import SampleStore
from vmloc_ros.training_config import load_training_config
from vmloc_ros.training_state import STATE
from vmloc_ros.types import Mode, OdometrySample
from vmloc_ros.validation import validate

# --------------------------------------------------------------------------------------------------------------- plan

NAMES = st.sampled_from(["a", "b", "c"])
SETTINGS = st.recursive(st.integers(), lambda inner: st.dictionaries(NAMES, inner, max_size=3), max_leaves=8)
MAPPINGS = st.dictionaries(NAMES, SETTINGS, max_size=3)


@given(MAPPINGS, MAPPINGS)
def test_merging_is_laying_over(base: dict[str, Any], changes: dict[str, Any]) -> None:
    merged = merge(base, changes)
    assert merge(base, {}) == base
    assert merge({}, changes) == changes
    assert merge(merged, changes) == merged
    assert set(merged) == set(base) | set(changes)
    for key, value in changes.items():
        if not isinstance(value, dict):
            assert merged[key] == value
    for key in set(base) - set(changes):
        assert merged[key] == base[key]


def test_merging_leaves_its_arguments_alone() -> None:
    base, changes = {"a": {"b": 1, "c": [1, 2]}}, {"a": {"b": 2}}
    assert merge(base, changes) == {"a": {"b": 2, "c": [1, 2]}}
    assert base == {"a": {"b": 1, "c": [1, 2]}}
    assert changes == {"a": {"b": 2}}


def write_plan(folder: Path, variants: dict[str, Any], **base: Any) -> Path:
    (folder / "base.yaml").write_text(yaml.safe_dump(merge({**TINY, "data": {"validation": ["v"]}}, base)))
    plan = folder / "plan.yaml"
    plan.write_text(yaml.safe_dump({"base": "base.yaml", "variants": variants}, sort_keys=False))
    return plan


def test_a_plan_becomes_runs(tmp_path: Path) -> None:
    plan = write_plan(tmp_path, {"poe": {"objective": {"samples": 1}, "seeds": [3, 1]}, "vmloc": None})
    runs = load_plan(plan)
    assert [run.name for run in runs] == ["poe_3", "poe_1", "vmloc_1"]
    base = load_training_config(tmp_path / "base.yaml")
    for run in runs:
        assert run.config.seed == run.seed
        assert run.config.network == base.network
        assert run.config.objective.samples == (1 if run.variant == "poe" else base.objective.samples)
    assert [run.name for run in load_plan(plan, ["vmloc"])] == ["vmloc_1"]


@pytest.mark.parametrize(
    ("variants", "message"),
    [
        (
            {"poe": {"objective": {"sampels": 1}}},
            r"variant poe: .*objective\.sampels.*did you mean 'objective\.samples'",
        ),
        ({"poe": {"seeds": 1}}, "seeds must be a list"),
        ({"poe": {"seeds": []}}, "seeds must be a list"),
        ({"poe": {"seeds": [1, 1]}}, "seeds must be a list"),
        ({"poe": {"seeds": [-1]}}, "seed"),
        ({"poe": {"seed": 2}}, "give seeds"),
        ({"a/b": {}}, "cannot be named 'a/b'"),
        ({RETRIEVAL_NAME: {}}, "cannot be named"),
        ({"one": {}, "two": {"data": {"validation": ["w"]}}}, "two changes data"),
        ({}, "variants"),
    ],
)
def test_plans_that_cannot_be(tmp_path: Path, variants: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_plan(write_plan(tmp_path, variants))


def test_a_variant_may_have_a_configuration_of_its_own(tmp_path: Path) -> None:
    plan = write_plan(tmp_path, {"one": {"network": {"latent": 8}}, "two": {"config": "other.yaml", "seeds": [1, 2]}})
    other = merge(TINY, {"name": "other", "network": {"latent": 24}, "data": {"options": {"lidar": "velodyne_left"}}})
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(merge(other, {"data": {"validation": ["v"]}})))
    runs = load_plan(plan)
    assert [run.name for run in runs] == ["one_1", "two_1", "two_2"]
    assert [run.config.network.model_dump()["latent"] for run in runs] == [8, 24, 24]
    assert runs[1].config.name == "other_two"  # and its lidar changes no frame
    alone = tmp_path / "alone.yaml"
    alone.write_text(yaml.safe_dump({"common": {"seed": 0}, "variants": {"two": {"config": "other.yaml"}, "one": {}}}))
    with pytest.raises(ConfigError, match="variant one has no configuration"):
        load_plan(alone)
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(merge(other, {"data": {"validation": ["w"]}})))
    with pytest.raises(ConfigError, match=r"variant two changes data: data\.validation is \['w'\]"):
        load_plan(plan)


def test_targets_are_sorted_out(tmp_path: Path) -> None:
    plan = write_plan(tmp_path, {"poe": {}, "vmloc": {"seeds": [1, 2]}})
    folder = tmp_path / "model"
    found = read_targets([plan, folder, tmp_path / "base.yaml"], [])
    assert [run.name for run in found.runs] == ["poe_1", "vmloc_1", "vmloc_2", "base_0"]
    assert found.models == (folder,)
    with pytest.raises(ConfigError, match="no such plan"):
        read_targets([folder, tmp_path / "pllan.yaml"], [])
    with pytest.raises(ConfigError, match="base_0 is given twice"):
        read_targets([tmp_path / "base.yaml", tmp_path / "base.yaml"], [])
    (tmp_path / "other.yaml").write_text(yaml.safe_dump({**TINY, "data": {"validation": ["w"]}}))
    with pytest.raises(ConfigError, match=r"variant other changes data: data\.validation"):
        read_targets([plan, tmp_path / "other.yaml"], [])


def test_an_unknown_variant_is_told_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no variant 'vmlok' \(did you mean 'vmloc'"):
        load_plan(write_plan(tmp_path, {"vmloc": {}, "poe": {}}), ["vmlok"])


@pytest.mark.parametrize("plan", ["ablation_town", "ablation_redkitchen"])
def test_the_shipped_plans_are_the_papers_table(project_root: Path, plan: str) -> None:
    runs = load_plan(project_root / "models" / f"{plan}.yaml")
    by_name = {run.variant: run.config for run in runs}
    assert set(by_name) >= {"image", "depth", "attention", "poe", "vmloc"}
    assert [run.seed for run in runs if run.variant == "vmloc"] == [1, 2, 3]
    assert [run.seed for run in runs if run.variant == "poe"] == [1, 2, 3]
    assert by_name["image"].network.modalities == ["rgb"]
    assert by_name["depth"].network.modalities == ["depth"]
    assert by_name["attention"].network.fusion == "concatenation"
    assert by_name["poe"].objective.samples == 1
    assert by_name["vmloc"].objective.importance_after == 0.0 < by_name["vmloc_late"].objective.importance_after < 1.0
    for run in runs:  # so that all share their samples
        assert run.config.localizer == runs[0].config.localizer
        assert run.config.stored_size() == runs[0].config.stored_size()


# ------------------------------------------------------------------------------------------------------------ measure


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[SampleStore, Path]:
    """Stored samples, and the folder of an untrained model of them."""
    folder = tmp_path_factory.mktemp("world")
    config = tiny_config()
    store, normalisation = build(folder / "samples", config)
    network = VMLoc(config.network)
    save_model(folder / "model", network.state_dict(), card_of(config.network, normalisation), "float32")
    write_retrieval(folder / "model" / RETRIEVAL, store, np.arange(len(store)))
    return store, folder / "model"


def test_every_case_leaves_something_to_see_and_changes_something() -> None:
    for mode, name in cases(SENSORS):
        levels = CORRUPTIONS[name]
        assert any(levels.get(sensor, 0) < 2 for sensor in SENSORS[mode])
        assert name == INTACT or any(levels.get(sensor, 0) > 0 for sensor in SENSORS[mode])
    assert {name for mode, name in cases([Mode.RGB_DEPTH])} == set(CORRUPTIONS)


def test_stored_frames_are_judged_as_in_validation(world: tuple[SampleStore, Path]) -> None:
    store, model = world
    samples = np.arange(5, 25)
    localizer = load_localizer(model, ModelConfig(device="cpu", threads=1))
    judged = judge(localizer, stored_frames(store, samples))
    expected = validate(localizer._runtime, localizer.card.network, store, samples)  # type: ignore[attr-defined]
    scores = judged.scores()
    assert set(scores) == {mode.value for mode in expected}
    for mode, errors in expected.items():
        found = scores[mode.value][INTACT]["errors"]
        assert found["n"] == len(samples)
        assert found["position_m"]["mean"] == pytest.approx(errors.position_m.mean(), rel=1e-5)
        assert found["rotation_deg"]["median"] == pytest.approx(np.median(errors.rotation_deg), rel=1e-5)
        assert scores[mode.value][INTACT]["nees"]["mean"] > 0.0
    assert len(judged.latencies_ms) == len(samples)


def test_missing_equals_never_sent_and_a_mask_is_seen(world: tuple[SampleStore, Path]) -> None:
    store, model = world
    localizer = load_localizer(model, ModelConfig(device="cpu", threads=1))
    scores = judge(localizer, stored_frames(store, np.arange(12))).scores()
    both = scores["RGB_DEPTH"]
    assert both["rgb:2"] == scores["DEPTH_ONLY"][INTACT]
    assert both["depth:2"] == scores["RGB_ONLY"][INTACT]
    for mode, name in (("RGB_DEPTH", "rgb:1"), ("RGB_DEPTH", "depth:1"), ("RGB_ONLY", "rgb:1")):
        assert scores[mode][name]["errors"] != scores[mode][INTACT]["errors"]


def test_a_localizer_with_a_memory_is_judged_case_by_case() -> None:
    asked, frames = Counting(), two_drives(FRAMES)
    scores = judge(asked, frames).scores()
    shuffled = judge(Counting(), [*frames[FRAMES:], *frames[:FRAMES]]).scores()  # the order of the recordings
    for mode, by_corruption in scores.items():
        for corruption, entry in by_corruption.items():
            assert entry["errors"]["position_m"]["max"] < 1e-9
            assert entry["errors"]["n"] == 2 * FRAMES
            assert shuffled[mode][corruption]["errors"]["position_m"]["max"] < 1e-9
    assert not asked.seen


def test_retrieval_finds_its_own_images(world: tuple[SampleStore, Path]) -> None:
    store, model = world
    scores = judge_retrieval(Retrieval(model / RETRIEVAL), stored_frames(store, np.arange(10))).scores()
    assert set(scores) == {"RGB_ONLY"}
    assert scores["RGB_ONLY"][INTACT]["errors"]["position_m"]["max"] < 1e-6
    assert scores["RGB_ONLY"]["rgb:1"]["errors"]["position_m"]["max"] > 0.0


def test_same_frames_are_found_by_recording_and_stamp(world: tuple[SampleStore, Path]) -> None:
    store, _ = world
    order = np.random.default_rng(0).permutation(len(store))[:-3]
    fields = ("rgb", "depth_m", "has_rgb", "has_depth", "T_map_camera", "stamps_ns", "recording_of")
    other = replace(store, **{name: getattr(store, name)[order] for name in fields})
    found = same_frames(store, np.arange(len(store)), other)
    assert len(found) == len(order)
    assert other.stamps_ns[found].tolist() == sorted(other.stamps_ns.tolist())
    assert same_frames(store, np.array([3, 1]), store).tolist() == [3, 1]


# ----------------------------------------------------------------------------------------------------- seeds and tables


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=6))
def test_seeds_together(values: list[float]) -> None:
    result = across([None, *values])
    assert result is not None
    assert result.mean == pytest.approx(np.mean(values), abs=1e-9)
    assert (result.spread is None) == (len(values) == 1)
    if result.spread is not None:
        assert result.spread == pytest.approx(np.std(values, ddof=1), abs=1e-6)
    assert across([None]) is None


def made_up(variant: str, seed: int, mean_m: float, modes: tuple[str, ...] = ("RGB_DEPTH", "RGB_ONLY")) -> Result:
    error = {
        "position_m": {"mean": mean_m, "median": 0.5 * mean_m},
        "rotation_deg": {"mean": 2.0, "median": 1.0},
        "n": 3,
    }
    fused = {"errors": {"position_m": {"mean": 0.25 * mean_m}, "rotation_deg": {"mean": 0.5}}, "nees": {"mean": 3.0}}
    fused["odometry"] = "network"
    entry = {"errors": error, "nees": {"mean": 9.0}, "fused": fused, "no_pose": {"strange": 1}}
    scores = {"validation": {mode: {INTACT: entry} for mode in modes}}
    return Result(variant, seed, parameters=1_500_000, training_s=60.0, latency_ms=5.0, scores=scores)


def test_the_table_says_everything() -> None:
    results = [made_up("poe", 1, 1.0), made_up("poe", 2, 3.0), Result("bad", 1, "no memory | sorry")]
    variants = by_variant([*results, made_up("image", 1, 4.0, ("RGB_ONLY",))])
    tables = all_tables(variants, {"validation": 7})
    text = markdown(tables)
    both = "| poe | 1, 2 | both | 25.0% ± 0.0% | 2.000 ± 1.414 | 2.00 ± 0.00 | "
    both += "1.000 ± 0.707 | 1.00 ± 0.00 | 1.50 ± 0.00 | "
    assert both + "0.500 ± 0.354 | 0.50 ± 0.00 | 0.50 ± 0.00 | network | 5.0 ± 0.0 | 1.50 | 60 ± 0 |" in text
    image = "| image | 1 | RGB alone | 25.0% | 4.000 | 2.00 | 2.000 | 1.00 | 1.50 | "
    assert image + "1.000 | 0.50 | 0.50 | network | 5.0 | 1.50 |" in text
    assert "| bad | failed |" in text
    assert "| bad | 1 | no memory \\| sorry |" in text
    assert "7 validation frames" in text
    for table in tables:
        assert all(len(row) == len(table.head) for row in table.rows)


def test_a_variant_that_refuses_every_frame_keeps_its_row() -> None:
    scores = {"validation": {"RGB_ONLY": {INTACT: {"errors": None, "no_pose": {"strange": 7}}}}}
    table = all_tables(by_variant([Result("shy", 1, scores=scores)]), {"validation": 7})[0]
    assert table.rows[0][:5] == ("shy", "1", "RGB alone", "100.0%", "-")


def test_a_variant_with_one_failed_seed_keeps_the_others() -> None:
    (variant,) = by_variant([made_up("poe", 1, 1.0), Result("poe", 2, "killed")])
    number = variant.number("validation", "RGB_DEPTH", INTACT, "mean_m")
    assert number is not None
    assert number.values == (1.0,)
    assert variant.as_dict()["failed"] == [{"seed": 2, "reason": "killed"}]
    assert variant.as_dict()["seeds"] == [1]


def test_the_figure_is_drawn(tmp_path: Path) -> None:
    variants = by_variant(
        [made_up("poe", 1, 1.0), made_up("poe", 2, 3.0), Result("bad", 1, "why"), made_up("a", 1, 2.0)]
    )
    assert plot_comparison(tmp_path / "c.png", variants, "validation").read_bytes().startswith(b"\x89PNG")


# ---------------------------------------------------------------------------------------------------------- trainings


def test_what_is_finished_and_what_goes_on(world: tuple[SampleStore, Path], tmp_path: Path) -> None:
    run = Run("poe", 1, tiny_config(threads=0))
    job = plan_job(run, "key", tmp_path / "samples", tmp_path, jobs=10_000)
    assert (job.threads, job.resume) == (1, False)
    write_mark(tmp_path, Job(run, "key", tmp_path / "samples", 3, False), finished=True)
    assert not is_finished(run, "key", tmp_path)  # there is no model
    for name in ("card.yaml", WEIGHTS):
        (tmp_path / name).write_bytes((world[1] / name).read_bytes())
    assert is_finished(run, "key", tmp_path)
    assert not is_finished(run, "other samples", tmp_path)
    assert not is_finished(Run("poe", 1, tiny_config(objective={"samples": 5})), "key", tmp_path)
    write_mark(tmp_path, Job(run, "key", tmp_path / "samples", 3, False), finished=False)
    assert not is_finished(run, "key", tmp_path)
    assert not plan_job(run, "key", tmp_path / "samples", tmp_path, 1).resume  # there is no checkpoint
    (tmp_path / STATE).parent.mkdir()
    (tmp_path / STATE).write_bytes(b"")
    resumed = plan_job(run, "key", tmp_path / "samples", tmp_path, 1)
    assert (resumed.threads, resumed.resume) == (3, True)  # the weights depend on the number of threads
    assert not plan_job(run, "other samples", tmp_path / "samples", tmp_path, 1).resume
    (tmp_path / MARK).write_text("- not a mark")
    assert not plan_job(run, "key", tmp_path / "samples", tmp_path, 1).resume


def test_threads_do_not_make_another_training() -> None:
    assert same_training(tiny_config(threads=1), tiny_config(threads=2))
    assert not same_training(tiny_config(seed=1), tiny_config(seed=2))


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sequence(tmp_path_factory.mktemp("scene"), range(40))


def test_a_comparison_from_plan_to_table(scene: Path, tmp_path: Path) -> None:
    """One variant that trains, one that fails; then it is repeated, goes on, and its model is compared by itself."""
    data = {"format": "sevenscenes", "options": {"odometry": "none"}, "validation": [], "hold_out": ["30-39"]}
    changes = {"bad": {"optimizer": {"peak_learning_rate": 1e30}}, "good": {"network": {"modalities": ["rgb"]}}}
    plan = write_plan(tmp_path, changes, data=data, localizer={"input": {"depth_source": "depth"}})
    out = tmp_path / "out"
    arguments = ["compare", str(plan), "--data", str(scene), "--out", str(out)]
    first = CliRunner().invoke(cli.app, [*arguments, "--jobs", "2"])
    assert first.exit_code == 1, first.output
    assert "FAILED bad_1: the loss is not finite" in first.stderr
    report = json.loads((out / "comparison.json").read_text())
    assert report["failed"] == ["bad_1"]
    assert report["judged_on"]["validation"]["frames"] == 10
    assert [variant["name"] for variant in report["variants"]] == ["bad", "good", RETRIEVAL_NAME]
    assert (out / "comparison.png").is_file()
    assert "bad" in first.stdout
    weights = (out / "good_1" / WEIGHTS).read_bytes()

    again = CliRunner().invoke(cli.app, [*arguments, "--only", "good", "--json", str(tmp_path / "copy.json")])
    assert again.exit_code == 0, again.output
    assert "good_1 is trained already" in again.stderr
    assert "started" not in again.stderr
    assert json.loads((tmp_path / "copy.json").read_text())["failed"] == []

    mark = out / "good_1" / MARK
    mark.write_text(mark.read_text().replace("finished: true", "finished: false"))
    (out / "good_1" / WEIGHTS).unlink()
    report = run_compare([plan], scene, out, only=["good"])
    assert report["failed"] == []
    assert (out / "good_1" / WEIGHTS).read_bytes() == weights

    options = {"frames": "30-39"}
    alone = run_compare([out / "good_1"], scene, tmp_path / "alone", format="sevenscenes", options=options)
    assert [variant["name"] for variant in alone["variants"]] == ["good", RETRIEVAL_NAME]
    assert alone["variants"][0]["seeds"] == [1]
    fused = report["runs"][0]["scores"]["validation"]["RGB_ONLY"][INTACT]["fused"]
    assert fused["odometry"] == "none"
    assert fused["errors"]["n"] + sum(fused["no_pose"].values()) == 10
    given_mean = alone["runs"][0]["scores"]["given"]["RGB_ONLY"][INTACT]["errors"]["position_m"]["mean"]
    judged_mean = report["runs"][0]["scores"]["validation"]["RGB_ONLY"][INTACT]["errors"]["position_m"]["mean"]
    assert given_mean == pytest.approx(judged_mean)

    mixture = mixed(out, tmp_path, scene)
    by_name = {variant["name"]: variant for variant in mixture["variants"]}
    assert list(by_name) == ["good", "copied", "missing", RETRIEVAL_NAME]
    assert by_name["good"]["numbers"] == by_name["copied"]["numbers"]  # the same weights on the same frames
    assert mixture["failed"] == ["missing"]
    assert "no such model folder" in by_name["missing"]["failed"][0]["reason"]
    assert mixture["judged_on"]["validation"]["frames"] == 10


def mixed(out: Path, tmp_path: Path, scene: Path) -> dict[str, Any]:
    """A configuration that is trained already, a model's folder of another name, and one that is not there."""
    mark = read_mark(out / "good_1")
    assert mark is not None
    config = tmp_path / "good.yaml"
    config.write_text(yaml.safe_dump(mark.config.model_dump(mode="json")))
    shutil.copytree(out / "good_1", tmp_path / "copied")
    (tmp_path / "copied" / MARK).unlink()
    return run_compare([config, tmp_path / "copied", tmp_path / "missing"], scene, out)


def test_arguments_that_do_not_fit(world: tuple[SampleStore, Path], scene: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="models need --format"):
        run_compare([world[1]], scene, tmp_path)
    with pytest.raises(ConfigError, match="the name 'model' is taken"):
        run_compare([world[1], world[1]], scene, tmp_path, format="sevenscenes")
    plan = write_plan(tmp_path, {"poe": {}})
    with pytest.raises(CheckpointError, match="no such model folder"):
        run_compare([tmp_path / "nowhere"], scene, tmp_path, format="sevenscenes")
    with pytest.raises(ConfigError, match="are for models"):
        run_compare([plan], scene, tmp_path, format="sevenscenes")


# ---------------------------------------------------------------------------------------------------------- the filter

MOTION = MotionCard(max_gap_s=0.5, cov_66=(1e-4 * np.eye(6)).tolist())


def test_what_drives_the_filter_is_the_best_there_is() -> None:
    frames = two_drives(20)
    at_rest = {"forwards": Drive(np.eye(4)), "backwards": Drive(np.eye(4))}
    driven = {
        name: Drive(
            np.eye(4),
            tuple(OdometrySample(f.stamp_ns, "odom", "base_link", T) for f, T, drive in frames if drive == name),
        )
        for name in at_rest
    }
    localizer = DrawnPoses(frames)
    kinds = {}
    for name, drives, card in (
        ("recording", driven, localizer.card),
        ("none", at_rest, localizer.card),
        ("network", at_rest, localizer.card.model_copy(update={"motion": MOTION})),
        ("partly", {**driven, "backwards": at_rest["backwards"]}, localizer.card),
    ):
        asked = replace(localizer, card=card)
        kinds[name] = judge_fused(asked, lambda: iter(frames), drives, LocalizerConfig())
    assert {name: found[Mode.RGB_DEPTH].odometry for name, found in kinds.items()} == {
        "recording": "recording",
        "none": "none",
        "network": "network",
        "partly": "none",
    }
    assert set(kinds["recording"]) == {Mode.RGB_DEPTH, Mode.RGB_ONLY, Mode.DEPTH_ONLY}
    fused = kinds["recording"][Mode.RGB_DEPTH]
    assert {frame.stretch for frame in fused.frames} == {0, 1}
    alone = fused.network().errors().position_m
    assert fused.fused(camera=True).errors().position_m.mean() < 0.8 * alone.mean()  # a perfect odometry helps
