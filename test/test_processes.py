"""Children are watched, end together, and leave nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from vmloc_ros.commands.processes import Child, ProcessError, Processes, private_graph

READY = "ready"


@pytest.fixture
def scripts(tmp_path: Path) -> dict[str, str]:
    """An environment in which small modules can be started by name."""
    programs = {
        "steady": """
            import time
            print("ready", flush=True)
            try:
                time.sleep(60)
            except KeyboardInterrupt:
                print("bye")
        """,
        "stubborn": """
            import signal, time
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            print("ready", flush=True)
            time.sleep(60)
        """,
        "broken": "import sys\nprint('first')\nprint('the reason', file=sys.stderr)\nsys.exit(3)",
        "silent": "import time\ntime.sleep(60)",
    }
    for name, text in programs.items():
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(text))
    return {**os.environ, "PYTHONPATH": str(tmp_path)}


def ready(child: Child) -> bool:
    return READY in child.text()


def test_a_child_runs_until_it_is_stopped(tmp_path: Path, scripts: dict[str, str]) -> None:
    with Processes(tmp_path / "logs", scripts) as processes:
        child = processes.start("node", [], "steady")
        processes.wait_for("node", ready, READY, 20.0)
        processes.check("node")
        processes.stop("node")
        assert child.process.returncode == 0
        assert child.text().splitlines() == ["ready", "bye"]


def test_a_child_can_be_stopped_where_its_parent_ignores_interrupts(tmp_path: Path, scripts: dict[str, str]) -> None:
    """As in a script that runs `make demo &`."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Processes(tmp_path / "logs", scripts) as processes:
            child = processes.start("node", [], "steady")
            processes.wait_for("node", ready, READY, 20.0)
            processes.stop("node")
    finally:
        signal.signal(signal.SIGINT, before)
    assert child.process.returncode == 0


def test_an_early_end_is_an_error_with_the_last_lines(tmp_path: Path, scripts: dict[str, str]) -> None:
    with Processes(tmp_path / "logs", scripts) as processes:
        processes.start("node", [], "broken")
        with pytest.raises(ProcessError, match="the node ended early with exit status 3") as caught:
            processes.wait_for("node", ready, READY, 20.0)
        assert "node| the reason" in caught.value.detail


def test_another_child_s_end_is_noticed_while_waiting(tmp_path: Path, scripts: dict[str, str]) -> None:
    with Processes(tmp_path / "logs", scripts) as processes:
        processes.start("recorder", [], "broken")
        processes.start("node", [], "silent")
        with pytest.raises(ProcessError, match="the recorder ended early"):
            processes.wait_for("node", ready, READY, 20.0)


def test_waiting_has_an_end(tmp_path: Path, scripts: dict[str, str]) -> None:
    with Processes(tmp_path / "logs", scripts) as processes:
        child = processes.start("node", [], "silent")
        with pytest.raises(ProcessError, match="the node was not ready within 0 s") as caught:
            processes.wait_for("node", ready, READY, 0.3)
        assert "it said nothing" in caught.value.detail
    assert child.process.returncode is not None, "leaving the block ends it"


def test_who_does_not_stop_is_killed_and_reported(tmp_path: Path, scripts: dict[str, str]) -> None:
    with Processes(tmp_path / "logs", scripts, grace_s=0.5) as processes:
        child = processes.start("node", [], "stubborn")
        processes.wait_for("node", ready, READY, 20.0)
        with pytest.raises(ProcessError, match="did not end within"):
            processes.stop("node")
        assert child.process.returncode == -signal.SIGKILL


def test_leaving_by_an_error_ends_all(tmp_path: Path, scripts: dict[str, str]) -> None:
    children: list[Child] = []

    def interrupted() -> None:
        with Processes(tmp_path / "logs", scripts, grace_s=1.0) as processes:
            for name, module in (("a", "steady"), ("b", "stubborn")):
                children.append(processes.start(name, [], module))
                processes.wait_for(name, ready, READY, 20.0)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [child.process.returncode for child in children] == [0, -signal.SIGKILL]


@pytest.mark.skipif(sys.platform != "linux", reason="asks the Linux kernel")
def test_children_die_with_a_parent_that_is_killed(tmp_path: Path, scripts: dict[str, str]) -> None:
    parent = tmp_path / "parent.py"
    parent.write_text(
        "import os, time\nfrom pathlib import Path\nfrom vmloc_ros.commands.processes import Processes\n"
        f"processes = Processes(Path({str(tmp_path / 'logs')!r}), os.environ)\n"
        "print(processes.start('node', [], 'silent').process.pid, flush=True)\ntime.sleep(60)\n"
    )
    project = str(Path(__file__).resolve().parents[1])
    environment = {**scripts, "PYTHONPATH": os.pathsep.join([str(tmp_path), project])}
    with subprocess.Popen([sys.executable, str(parent)], env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        process.kill()
    deadline = time.monotonic() + 20.0
    while is_running(child):
        assert time.monotonic() < deadline, "the child outlived its parent"
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    """Whether a process does something (a dead one that nobody has waited for does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_two_graphs_at_once_do_not_share_a_domain() -> None:
    with private_graph() as one, private_graph() as other:
        assert one["ROS_DOMAIN_ID"] != other["ROS_DOMAIN_ID"]
        assert one["ROS_AUTOMATIC_DISCOVERY_RANGE"] == "LOCALHOST"
        assert 1 <= int(one["ROS_DOMAIN_ID"]) <= 101
