"""The command line: every command explains itself, and every error leaves in one line with the right exit status."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from synthetic_run import make_log
from typer.testing import CliRunner

from vmloc_ros import __version__, cli
from vmloc_ros.commands.processes import ProcessError
from vmloc_ros.errors import DatasetError
from vmloc_ros.parameter_file import render
from vmloc_ros.report import write_run
from vmloc_ros.trajectory import write_tum

COMMANDS = sorted(typer.main.get_command(cli.app).commands)  # type: ignore[attr-defined]
PROMISED = {
    "demo", "town", "convert", "train", "evaluate", "localize", "fuse", "play", "record", "node", "bench", "plot",
    "doctor", "params",
}  # fmt: skip


def run(*arguments: str | Path) -> tuple[int, str, str]:
    """(exit status, standard output, standard error) in this process."""
    result = CliRunner().invoke(cli.app, [str(word) for word in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def test_all_promised_commands_are_there() -> None:
    assert set(COMMANDS) >= PROMISED


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_with_an_example(command: str) -> None:
    status, text, _ = run(command, "--help")
    assert status == 0
    assert re.search(rf"Example: +vmloc {command}\b", text), text


def test_every_example_is_understood_by_its_own_parser() -> None:
    """Examples name only options that exist."""
    group = typer.main.get_command(cli.app)
    for name in COMMANDS:
        command = group.commands[name]  # type: ignore[attr-defined]
        example = re.search(rf"Example: vmloc {name}(.*)", command.help or "")
        assert example is not None
        known = {option for parameter in command.params for option in parameter.opts}
        ours = example[1].partition("--ros-args")[0]
        for option in re.findall(r"(?<!\S)--[a-z-]+", ours):
            assert option in known, f"{name}: {option}"


def test_start_up_imports_nothing_heavy() -> None:
    code = (
        "import sys, vmloc_ros.cli\n"
        "heavy = {'torch', 'matplotlib', 'numpy', 'scipy', 'cv2', 'rclpy', 'rosbags', 'pydantic'} & set(sys.modules)\n"
        "sys.exit(f'imported at start-up: {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_version() -> None:
    assert run("--version") == (0, f"vmloc_ros {__version__}\n", "")


def test_known_errors_are_one_line_and_exit_1(tmp_path: Path) -> None:
    status, _, error = run("plot", tmp_path / "nothing")
    assert status == 1
    assert error.startswith("vmloc: error: ")
    assert str(tmp_path / "nothing") in error
    assert error.count("\n") == 1


def test_messages_of_several_lines_become_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise DatasetError("first\n   second")

    monkeypatch.setattr("vmloc_ros.commands.plot.run_plot", fail)
    assert run("plot", "x") == (1, "", "vmloc: error: first second\n")


def test_a_failed_process_shows_its_last_lines_first(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ProcessError("the node ended early with exit status 3", "  node| no such model")

    monkeypatch.setattr("vmloc_ros.commands.plot.run_plot", fail)
    status, _, error = run("plot", "x")
    assert status == 1
    assert error == "  node| no such model\nvmloc: error: the node ended early with exit status 3\n"


def test_the_system_s_errors_name_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", "/somewhere/report.json")

    monkeypatch.setattr("vmloc_ros.commands.plot.run_plot", fail)
    assert run("plot", "x") == (1, "", "vmloc: error: /somewhere/report.json: Permission denied\n")


def test_a_missing_ros_is_said_with_its_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ModuleNotFoundError("No module named 'rclpy.executors'", name="rclpy.executors")

    monkeypatch.setattr("vmloc_ros.commands.plot.run_plot", fail)
    status, _, error = run("plot", "x")
    assert status == 1
    assert re.fullmatch(r"vmloc: error: the ROS 2 package rclpy is not here: .*make setup.*\n", error)


def test_ctrl_c_is_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("vmloc_ros.commands.plot.run_plot", interrupt)
    assert run("plot", "x") == (130, "", "vmloc: interrupted\n")


def test_bugs_are_not_disguised(monkeypatch: pytest.MonkeyPatch) -> None:
    def bug(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("vmloc_ros.commands.plot.run_plot", bug)
    with pytest.raises(ZeroDivisionError):
        run("plot", "x")


@pytest.mark.parametrize(
    "arguments",
    [
        ("no-such-command",),
        ("plot",),
        ("plot", "x", "--no-such-option"),
        ("convert", "unheard-of", "a", "b"),
        ("play", "bag", "--drop", "/image:10"),
        ("play", "bag", "--rate", "fast"),
        ("fuse", "a", "b", "--out", "c", "--odometry-extrinsics", "0 0 zero"),
    ],
)
def test_wrong_usage_is_2(arguments: tuple[str, ...]) -> None:
    status, _, error = run(*arguments)
    assert status == 2
    assert "vmloc" in error


def test_as_a_process(tmp_path: Path) -> None:
    """The exit status and the line reach a shell."""
    done = subprocess.run(
        [sys.executable, "-m", "vmloc_ros.cli", "plot", str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.startswith("vmloc: error: ")
    assert "Traceback" not in done.stderr


def test_plot_says_what_it_wrote(tmp_path: Path) -> None:
    write_run(make_log(), tmp_path)
    status, text, _ = run("plot", tmp_path)
    assert status == 0
    for name in ("trajectories.png", "errors.png", "error_curves.png"):
        assert f"wrote {tmp_path / name}" in text
        assert (tmp_path / name).is_file()


def test_fuse_through_the_command_line(tmp_path: Path) -> None:
    log = make_log()
    assert log.odometry is not None
    assert log.truth is not None
    for name, trajectory in (("odometry", log.odometry), ("poses", log.network()), ("truth", log.truth)):
        write_tum(tmp_path / f"{name}.tum", trajectory)
    files = [tmp_path / f"{name}.tum" for name in ("odometry", "poses")]
    status, text, _ = run(
        "fuse", *files, "--out", tmp_path / "fused.tum", "--sigma-m", "1", "--sigma-deg", "2",
        "--truth", tmp_path / "truth.tum", "--json", tmp_path / "fused.json",
    )  # fmt: skip
    assert status == 0
    assert f"wrote {tmp_path / 'fused.tum'}" in text
    means = {name: float(value) for name, value in re.findall(r"(\w+): .*mean error (\S+) m", text)}
    assert means["fused"] < min(means["poses"], means["odometry"])
    assert (tmp_path / "fused.json").is_file()


def test_params_prints_the_parameter_file(tmp_path: Path) -> None:
    status, text, _ = run("params")
    assert (status, text) == (0, render())
    assert run("params", "--out", tmp_path / "p.yaml")[0] == 0
    assert (tmp_path / "p.yaml").read_text() == render()
