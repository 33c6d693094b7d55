"""The package's metadata agrees with itself: package.xml, setup.py, pins, messages, licence, what is installed."""

from __future__ import annotations

import ast
import itertools
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

PROJECT = Path(__file__).resolve().parents[1]
MAX_FILE_BYTES = 5 << 20

# rosdep keys by the names on PyPI; what is not here has no system package and comes from PyPI only.
ROSDEP_KEYS = {
    "matplotlib": "python3-matplotlib",
    "numpy": "python3-numpy",
    "opencv-python": "python3-opencv",
    "packaging": "python3-packaging",
    "pydantic": "python3-pydantic",
    "PyYAML": "python3-yaml",
    "scipy": "python3-scipy",
}


@pytest.fixture(scope="module")
def metadata() -> dict[str, Any]:
    """What setup.py hands to setuptools."""
    with mock.patch("setuptools.setup") as setup, mock.patch.object(sys, "argv", ["setup.py"]):
        code = compile((PROJECT / "setup.py").read_text("utf-8"), str(PROJECT / "setup.py"), "exec")
        exec(code, {"__file__": str(PROJECT / "setup.py"), "__name__": "__main__"})  # noqa: S102
    return dict(setup.call_args.kwargs)


def package_xml(folder: str = ".") -> ElementTree.Element:
    return ElementTree.parse(PROJECT / folder / "package.xml").getroot()


def dependencies(root: ElementTree.Element, *kinds: str) -> set[str]:
    return {element.text or "" for kind in kinds for element in root.iter(kind)}


def tracked_files() -> list[Path]:
    """The files under version control, or all that are not hidden where there is no git."""
    try:
        listing = subprocess.run(
            ["git", "ls-files", "-z"], cwd=PROJECT, capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    return [path for name in listing.split("\0") if name and (path := PROJECT / name).is_file()]


# ------------------------------------------------------------------------------------------------------------ metadata


def test_versions_are_the_same_everywhere(metadata: dict[str, Any]) -> None:
    version = metadata["version"]
    assert package_xml().findtext("version") == version
    assert package_xml("msg").findtext("version") == version
    assert f"## [{version}]" in (PROJECT / "CHANGELOG.md").read_text("utf-8")
    import vmloc_ros

    assert vmloc_ros.__version__ == version


def test_names_maintainers_and_licences_agree(metadata: dict[str, Any]) -> None:
    root = package_xml()
    assert root.get("format") == "3"
    assert root.findtext("name") == metadata["name"]
    assert root.findtext("maintainer") == metadata["maintainer"]
    assert root.find("maintainer").get("email") == metadata["maintainer_email"]  # type: ignore[union-attr]
    licences = {package_xml(folder).findtext("license") for folder in (".", "msg", "bootstrap/tf2_msgs")}
    assert licences == {metadata["license"]} == {"Apache-2.0"}
    text = (PROJECT / "LICENSE").read_text("utf-8")
    assert "Apache License" in text
    assert "Version 2.0, January 2004" in text


def test_rosdep_keys_match_the_python_requirements(metadata: dict[str, Any]) -> None:
    required = {Requirement(text).name for text in metadata["install_requires"]}
    wanted = {key for name, key in ROSDEP_KEYS.items() if name in required}
    listed = {key for key in dependencies(package_xml(), "exec_depend", "depend") if key.startswith("python3-")}
    assert listed == wanted


def test_every_ros_package_that_is_imported_is_a_dependency() -> None:
    listed = dependencies(package_xml(), "exec_depend", "depend")
    imported: set[str] = set()
    for path in [*(PROJECT / "vmloc_ros" / "ros").rglob("*.py"), *(PROJECT / "launch").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                imported.add((node.module or "").split(".")[0])
    ros = {
        name
        for name in imported
        if name.endswith(("_msgs", "_interfaces", "_srvs")) or name in {"rclpy", "launch", "launch_ros", "cv_bridge"}
    }
    assert ros, "the search found nothing"
    assert ros <= listed, f"add to package.xml: {sorted(ros - listed)}"
    assert {"cv_bridge", "tf_transformations", "vmloc_msgs", "launch_ros", "rviz2"} <= listed


def test_pins_lie_in_the_ranges(metadata: dict[str, Any]) -> None:
    pins: dict[str, str] = {}
    for line in (PROJECT / "constraints.txt").read_text("utf-8").splitlines():
        if line and not line.startswith("#"):
            name, version = line.split("==")
            pins[name.lower().replace("_", "-")] = version
    for text in itertools.chain(metadata["install_requires"], *metadata["extras_require"].values()):
        requirement = Requirement(text)
        pin = pins.get(requirement.name.lower().replace("_", "-"))
        assert pin is not None, f"{requirement.name} is not pinned in constraints.txt"
        assert requirement.specifier.contains(Version(pin)), f"{requirement} excludes its pin {pin}"


def test_colcon_test_finds_pytest(metadata: dict[str, Any]) -> None:
    """colcon runs pytest only for a package whose `test` extra names it."""
    assert any(Requirement(text).name == "pytest" for text in metadata["extras_require"]["test"])
    assert "python3-pytest" in dependencies(package_xml(), "test_depend")


def test_colcon_looks_for_both_packages() -> None:
    defaults = yaml.safe_load((PROJECT / "colcon_defaults.yaml").read_text("utf-8"))
    assert {verb: set(options["base-paths"]) for verb, options in defaults.items()} == {
        verb: {".", "msg"} for verb in ("list", "build", "test")
    }


# ----------------------------------------------------------------------------------------------- what gets installed


def test_everything_a_user_needs_is_installed(metadata: dict[str, Any]) -> None:
    installed = {str(Path(folder) / Path(f).name) for folder, names in metadata["data_files"] for f in names}
    share = "share/vmloc_ros"
    wanted = {f"{share}/package.xml", "share/ament_index/resource_index/packages/vmloc_ros"}
    for folder in ("launch", "config", "rviz", "models"):
        wanted |= {f"{share}/{p.relative_to(PROJECT)}" for p in tracked_files() if (PROJECT / folder) in p.parents}
    assert f"{share}/config/fastdds.xml" in wanted
    assert f"{share}/config/localizer.yaml" in wanted
    assert f"{share}/launch/localize.launch.py" in wanted
    assert wanted <= installed
    assert all((PROJECT / f).is_file() for _, names in metadata["data_files"] for f in names)


def test_all_subpackages_are_installed_and_nothing_else(metadata: dict[str, Any]) -> None:
    folders = {
        ".".join(p.parent.relative_to(PROJECT).parts) for p in tracked_files() if (PROJECT / "vmloc_ros") in p.parents
        if p.suffix == ".py"
    }  # fmt: skip
    assert set(metadata["packages"]) == folders


def test_executables_exist(metadata: dict[str, Any]) -> None:
    for script in metadata["entry_points"]["console_scripts"]:
        module, function = re.fullmatch(r"\w+ = ([\w.]+):(\w+)", script).groups()  # type: ignore[union-attr]
        base = PROJECT / module.replace(".", "/")
        path = base / "__init__.py" if base.is_dir() else base.with_suffix(".py")
        body = ast.parse(path.read_text("utf-8")).body
        names = {node.name for node in body if isinstance(node, ast.FunctionDef)}
        names |= {
            alias.asname or alias.name for node in body if isinstance(node, ast.ImportFrom) for alias in node.names
        }
        assert function in names, f"{script}: {path} has no such function"


# ------------------------------------------------------------------------------------------------------------ messages


def test_messages_parse_and_are_built() -> None:
    """Every .msg parses, names only packages that msg/package.xml depends on, and is listed for the generator."""
    from rosbags.typesys import get_types_from_msg

    cmake = (PROJECT / "msg" / "CMakeLists.txt").read_text("utf-8")
    depends = dependencies(package_xml("msg"), "depend")
    files = sorted((PROJECT / "msg").glob("*.msg"))
    assert files
    for path in files:
        assert f"msg/{path.name}" in cmake
        types = get_types_from_msg(path.read_text("utf-8"), f"vmloc_msgs/msg/{path.stem}")
        assert list(types) == [f"vmloc_msgs/msg/{path.stem}"]
        assert set(re.findall(r"'(\w+)/msg/", str(types))) - {"vmloc_msgs"} <= depends


def test_status_has_what_the_design_asks_for() -> None:
    from rosbags.typesys import get_types_from_msg

    text = (PROJECT / "msg" / "LocalizationStatus.msg").read_text("utf-8")
    _, fields = get_types_from_msg(text, "vmloc_msgs/msg/LocalizationStatus")["vmloc_msgs/msg/LocalizationStatus"]
    names = {name for name, _ in fields}
    assert {"header", "mode", "verdict", "weight_rgb", "weight_depth", "weight_prior", "nis", "dof"} <= names
    assert {"latency_ms", "counter_names", "counter_values", "image_stamp", "depth_stamps"} <= names


# ---------------------------------------------------------------------------------------------------------- repository


def test_no_file_is_large() -> None:
    large = {
        str(p.relative_to(PROJECT)): p.stat().st_size for p in tracked_files() if p.stat().st_size > MAX_FILE_BYTES
    }
    assert not large


def test_no_path_of_one_machine_is_committed() -> None:
    """A home folder or this checkout's own path in a text file works on one machine only."""
    forbidden = re.compile(rf"/root/|/home/\w|{re.escape(str(PROJECT))}/")
    found = []
    for path in tracked_files():
        if path.suffix in {".py", ".md", ".yaml", ".yml", ".toml", ".cfg", ".xml", ".txt", ".sh", ".msg", ".rviz"}:
            for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
                if forbidden.search(line) and path != Path(__file__).resolve():
                    found.append(f"{path.relative_to(PROJECT)}:{number}: {line.strip()}")
    assert not found


def test_continuous_integration_runs_the_test_command() -> None:
    script = PROJECT / ".ci" / "run"
    assert script.stat().st_mode & 0o111, f"{script} is not executable"
    assert "make test" in script.read_text("utf-8")
