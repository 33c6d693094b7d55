"""The set-up's bookkeeping: what is done is not done again, what was interrupted is, and half never counts as whole."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

BOOTSTRAP = Path(__file__).resolve().parents[1] / "bootstrap"


@pytest.fixture
def setup_module_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The set-up script, working in an empty folder."""
    monkeypatch.syspath_prepend(str(BOOTSTRAP))
    modules = [importlib.import_module(name) for name in ("steps", "environment", "setup_environment")]
    for name, path in (("ROOT", ""), ("VENV", ".venv"), ("STATE", ".venv/state.json"), ("LOG", ".venv/setup.log")):
        for module in modules:
            if hasattr(module, name):
                monkeypatch.setattr(module, name, tmp_path / path)
    (tmp_path / ".venv").mkdir()
    return modules[-1]


class Work:
    """Three steps that only write down that they ran; `fails` names one that breaks off."""

    def __init__(self, module: ModuleType, root: Path) -> None:
        self.module, self.root, self.ran, self.fails = module, root, [], ""
        self.ran: list[str] = []
        for name in ("pins", "messages", "links"):
            (root / name).write_text("1")

    def steps(self) -> list[object]:
        def step(name: str) -> None:
            self.ran.append(name)
            if name == self.fails:
                raise KeyboardInterrupt

        return [self.module.Step(n, n, lambda n=n: step(n), (self.root / n,)) for n in ("pins", "messages", "links")]

    def run(self) -> list[str]:
        """Which steps ran."""
        self.ran = []
        self.module.run_steps(self.steps())
        return self.ran


@pytest.fixture
def work(setup_module_in: ModuleType, tmp_path: Path) -> Work:
    return Work(importlib.import_module("steps"), tmp_path)


def test_a_second_run_does_nothing(work: Work) -> None:
    assert work.run() == ["pins", "messages", "links"]
    assert work.run() == []


def test_an_interrupted_run_goes_on_where_it_stopped(work: Work) -> None:
    work.fails = "messages"
    with pytest.raises(KeyboardInterrupt):
        work.run()
    work.fails = ""
    assert work.run() == ["messages", "links"]


def test_a_change_redoes_the_steps_from_there_on(work: Work) -> None:
    work.run()
    (work.root / "messages").write_text("2")
    assert work.run() == ["messages", "links"]
    assert work.run() == []


def test_while_a_step_is_redone_neither_it_nor_those_after_it_count_as_done(work: Work) -> None:
    work.run()
    (work.root / "pins").write_text("2")
    work.fails = "pins"
    with pytest.raises(KeyboardInterrupt):
        work.run()
    (work.root / "pins").write_text("1")  # the change is taken back, but what the run left is unknown
    work.fails = ""
    assert work.run() == ["pins", "messages", "links"]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pins": 3}'])
def test_a_broken_state_file_means_starting_over(work: Work, content: str) -> None:
    work.run()
    work.module.STATE.write_text(content)
    assert work.run() == ["pins", "messages", "links"]


def test_keys_depend_on_names_and_contents_of_folders(work: Work) -> None:
    folder = work.root / "folder"
    folder.mkdir()
    (folder / "a").write_text("x")
    step = [work.module.Step("s", "s", lambda: None, (folder,))]
    before = work.module.step_keys(step)
    (folder / "a").rename(folder / "b")
    assert work.module.step_keys(step) != before
    (folder / "b").rename(folder / "a")
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__" / "a.pyc").write_text("x")
    assert work.module.step_keys(step) == before


def test_packages_that_a_killed_pip_left_half_are_removed(
    setup_module_in: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(setup_module_in, "venv_paths", lambda: {"purelib": str(tmp_path)})
    for name, whole in (("whole-1.dist-info", True), ("half-1.dist-info", False)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "METADATA").touch()
        if whole:
            (tmp_path / name / "RECORD").touch()
    setup_module_in.remove_half_installed()
    assert (tmp_path / "whole-1.dist-info").is_dir()
    assert not (tmp_path / "half-1.dist-info").exists()


def test_cmake_files_of_the_wheels_are_pointed_here(
    setup_module_in: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import numpy as np

    file = tmp_path / ".venv" / "share" / "some_msgs" / "export.cmake"
    file.parent.mkdir(parents=True)
    prefix = "/opt/python/cp311-cp311"
    folders = f"{prefix}/include/python3.11;{prefix}/lib/python3.11/site-packages/numpy/_core/include"
    file.write_text(f'INCLUDES "{folders}"\n')
    monkeypatch.setattr(setup_module_in, "venv_python", lambda: Path(sys.executable))
    monkeypatch.setattr(setup_module_in, "build_environment", lambda: dict(os.environ))
    for _ in range(2):  # a second time changes nothing
        setup_module_in.rewrite_cmake_paths()
        python_include = setup_module_in.sysconfig.get_paths()["include"]
        assert file.read_text() == f'INCLUDES "{python_include};{np.get_include()}"\n'


def test_the_environment_script_can_be_sourced_twice_and_keeps_what_was_set(
    setup_module_in: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / ".venv" / "ros_env.sh"
    environment_module = importlib.import_module("environment")
    monkeypatch.setattr(environment_module, "ENVIRONMENT_SCRIPT", script)
    monkeypatch.setattr(environment_module, "DDS_PROFILE", tmp_path / "fastdds.xml")
    (tmp_path / "fastdds.xml").touch()
    setup_module_in.write_wheels_script()
    command = f". {script}; . {script}; env"

    def variables(**given: str) -> dict[str, str]:
        environment = {"PATH": "/usr/bin:/bin", **given}
        output = subprocess.run(
            ["sh", "-c", command], env=environment, capture_output=True, text=True, check=True
        ).stdout
        return dict(line.split("=", 1) for line in output.splitlines() if "=" in line)

    venv = tmp_path / ".venv"
    found = variables(AMENT_PREFIX_PATH="/opt/other")
    assert found["PATH"] == f"{venv}/bin:/usr/bin:/bin"
    assert found["AMENT_PREFIX_PATH"] == f"{venv}:/opt/other"
    assert found["LD_LIBRARY_PATH"].startswith(f"{venv}/lib")
    assert found["FASTDDS_DEFAULT_PROFILES_FILE"] == str(tmp_path / "fastdds.xml")
    assert variables(FASTDDS_DEFAULT_PROFILES_FILE="/own.xml")["FASTDDS_DEFAULT_PROFILES_FILE"] == "/own.xml"


def test_a_command_that_fails_is_quoted_with_what_it_said(setup_module_in: ModuleType, tmp_path: Path) -> None:
    program = "print('half of it'); print('no space left'); raise SystemExit(3)"
    with pytest.raises(setup_module_in.CommandError, match=r"failed \(3\)(?s:.*)no space left"):
        setup_module_in.call(sys.executable, "-c", program, environment=dict(os.environ))
    assert "half of it" in (tmp_path / ".venv" / "setup.log").read_text()
    with pytest.raises(setup_module_in.CommandError, match="cannot be run"):
        setup_module_in.call(tmp_path / "nothing", environment={})


def test_an_old_python_is_refused_by_name(setup_module_in: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup_module_in.sys, "version_info", (3, 10, 4))
    with pytest.raises(setup_module_in.SetupError, match=r"Python 3\.11 to 3\.14 is needed, and this is 3\.10\.4"):
        setup_module_in.check_python((3, 14))


def test_a_python_is_found_and_can_be_missing(tmp_path: Path) -> None:
    script = str(BOOTSTRAP / "find_python.sh")
    shell = "/bin/sh"
    (tmp_path / "python3").symlink_to(sys.executable)
    found = subprocess.run([shell, script], env={"PATH": str(tmp_path)}, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == str(tmp_path / "python3")
    (tmp_path / "python3").unlink()
    missing = subprocess.run([shell, script], env={"PATH": str(tmp_path)}, capture_output=True, text=True, check=False)
    assert missing.returncode == 1
    assert "Python 3.11 or newer is needed" in missing.stderr


def test_state_is_json_of_step_keys(work: Work) -> None:
    work.run()
    assert json.loads(work.module.STATE.read_text()) == work.module.step_keys(work.steps())
