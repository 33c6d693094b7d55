"""Walks the imports: a file imports only from its own layer or lower ones, and some libraries have only one door."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[1]
PACKAGE = PROJECT / "vmloc_ros"

# By a module's name, or its folder's.
LAYERS = {
    0: "errors geometry config types files reasons",
    1: "buffers camera images clouds fitting resampling projection novel_views accumulation trajectory odometry "
    "increments odometry_model filter consistency relocalization moment replay history fusion saved_pose "
    "monitor metrics messages pairing clock extrinsics parameter_file uncertainty neighbours covariance_fit "
    "corruption correlation heavy_tails error_model map_odom_limit latent odometry_drift",
    2: "datasets networks losses scene_hypotheses scene_alignment",
    3: "checkpoint training training_config training_state machines weight_average augmentation trunk_weights "
    "official validation calibration neighbour_file split samples batches objective clips learning objectives "
    "vlocnet_objective generative_objective scene_objective scene_cells scene_camera scene_belief "
    "scene_limits pose_graph_config localizer localizers runtimes pose_graph following network_odometry "
    "frame_source frame_queue assembly outputs diary pose_keeper pipeline bags bag_messages bag_writer "
    "bag_recording recordings sample_pieces piece_workers division preparation progress evaluation run_log "
    "run_outputs report retrieval comparison comparison_tables plots plots_evaluation plots_reliability "
    "plots_worst plots_comparison plots_tracking plots_scene",
    4: "commands cli ros",
}
LAYER_OF = {name: layer for layer, names in LAYERS.items() for name in names.split()}

# Libraries, and how the names of the modules begin that may import them.
DOORS = {"rosbags": ("bags", "bag_messages", "bag_writer"), "matplotlib": ("plots",), "typer": ("cli",)}
NEVER = {"pickle", "dill", "joblib", "cloudpickle", "shelve", "marshal"}


def module_name(path: Path) -> str:
    """`datasets.base` for vmloc_ros/datasets/base.py; empty for the package itself."""
    parts = list(path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_names(tree: ast.AST, inside: str) -> Iterator[tuple[str, bool]]:
    """(absolute dotted name, whether it is imported when the module is) of every import in a module's tree.

    Names imported from a package are followed: `from vmloc_ros import geometry` is an import of vmloc_ros.geometry.
    """
    lazy = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node not in lazy) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = ["vmloc_ros", *inside.split(".")][: -node.level]
                base = ".".join([*above, base] if base else above)
            for alias in node.names:
                is_module = (PROJECT / (base.replace(".", "/") + "/" + alias.name + ".py")).is_file()
                yield (f"{base}.{alias.name}" if is_module else base), node not in lazy


def layer_of(module: str) -> int:
    """The layer; a module without one stands on top of all, and fails its own test."""
    return LAYER_OF.get(module.split(".")[0], max(LAYERS) + 1)


MODULES = {module_name(p): p for p in sorted(PACKAGE.rglob("*.py")) if p.name != "__init__.py"}
IMPORTS = {
    name: list(imported_names(ast.parse(path.read_text("utf-8")), name)) for name, path in MODULES.items()
}  # fmt: skip


def own_imports(module: str) -> list[tuple[str, bool]]:
    """What a module imports from this package, without the package's name in front."""
    return [(n.removeprefix("vmloc_ros."), now) for n, now in IMPORTS[module] if n.startswith("vmloc_ros.")]


def test_every_module_has_a_layer() -> None:
    unknown = sorted(name for name in MODULES if name.split(".")[0] not in LAYER_OF)
    assert not unknown, f"add to LAYERS, and to docs/architecture.md: {unknown}"


def test_the_document_names_every_module() -> None:
    """In the row of its layer; `datasets/*` stands for a folder, `plots*` for what begins alike."""
    named: dict[int, set[str]] = {layer: set() for layer in LAYERS}
    for line in (PROJECT / "docs" / "architecture.md").read_text("utf-8").splitlines():
        if found := re.match(r"\| (\d) \|([^|]*)\|", line):
            named[int(found[1])].update(re.findall(r"[a-z0-9_]+", " ".join(re.findall("`([^`]*)`", found[2]))))
    for layer, names in LAYERS.items():
        expected = {name for name in names.split() if not name.startswith("plots_")}
        assert named[layer] == expected, f"layer {layer} of docs/architecture.md"


@pytest.mark.parametrize("module", MODULES)
def test_imports_only_its_own_layer_or_lower_ones(module: str) -> None:
    layer = layer_of(module)
    wrong = [name for name, _ in own_imports(module) if layer_of(name) > layer]
    assert not wrong, f"{module} (layer {layer}) imports {wrong} from above"


def test_imports_have_no_cycle() -> None:
    """Every module can be loaded after those that it imports at its top."""
    waiting = {name: {n for n, now in own_imports(name) if now and n in MODULES} for name in MODULES}
    while ready := {name for name, needs in waiting.items() if not needs & waiting.keys()}:
        waiting = {name: needs for name, needs in waiting.items() if name not in ready}
    assert not waiting, f"these import each other: {sorted(waiting)}"


def test_ros_stays_under_ros() -> None:
    wrong = [
        (module, name)
        for module, names in IMPORTS.items()
        for name, _ in names
        if is_ros(name.split(".")[0]) and module.split(".")[0] != "ros"
    ]
    assert not wrong, f"rclpy and message packages only under ros/: {wrong}"


def is_ros(library: str) -> bool:
    return library in {
        "rclpy",
        "tf2_ros",
        "cv_bridge",
        "tf_transformations",
        "launch",
        "launch_ros",
    } or library.endswith(("_msgs", "_interfaces", "_srvs"))


def test_layers_0_and_1_do_not_import_torch() -> None:
    wrong = [
        (module, name)
        for module, names in IMPORTS.items()
        for name, _ in names
        if name.split(".")[0] in {"torch", "torchvision", "lightning", "lightning_fabric"} and layer_of(module) <= 1
    ]
    assert not wrong


@pytest.mark.parametrize("library", DOORS)
def test_libraries_with_one_door(library: str) -> None:
    wrong = [
        module
        for module, names in IMPORTS.items()
        if not module.startswith(DOORS[library]) and any(name.split(".")[0] == library for name, _ in names)
    ]
    assert not wrong, f"{library} is only for {DOORS[library]}"


def test_nothing_is_unpickled() -> None:
    wrong = [(m, name) for m, names in IMPORTS.items() for name, _ in names if name.split(".")[0] in NEVER]
    assert not wrong


def test_datasets_and_networks_do_not_know_each_other() -> None:
    for one, other in (("datasets", "networks"), ("networks", "datasets")):
        wrong = [m for m in MODULES if m.startswith(one + ".") for n, _ in own_imports(m) if n.startswith(other)]
        assert not wrong, f"{one} imports {other}: {wrong}"


def test_nobody_imports_the_command_line() -> None:
    assert not [m for m in MODULES for n, _ in own_imports(m) if n.split(".")[0] == "cli" and m.split(".")[0] != "cli"]


def test_only_the_command_line_imports_ros_and_only_when_asked() -> None:
    wrong = [
        (module, name)
        for module in MODULES
        for name, now in own_imports(module)
        if name.split(".")[0] == "ros" and module.split(".")[0] != "ros" and (module.split(".")[0] != "cli" or now)
    ]
    assert not wrong


def test_the_walk_sees_what_it_has_to() -> None:
    """The walker itself: relative, nested and from-package imports."""
    code = "from ..types import Frame\nfrom vmloc_ros import geometry\ndef f():\n    import torch.nn\n"
    found = set(imported_names(ast.parse(code), "datasets.base"))
    assert found == {("vmloc_ros.types", True), ("vmloc_ros.geometry", True), ("torch.nn", False)}
