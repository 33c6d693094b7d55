"""Makes the environment that the Makefile's targets run in; needs nothing but Python's standard library.

Two kinds:

* `wheels`: a bare machine. A virtual environment gets the pinned packages, the ROS 2 client library from wheels and the
  message packages, built by CMake. It becomes an ament prefix; `.venv/ros_env.sh` is its `setup.bash`.
* `distribution`: a ROS 2 distribution is sourced. A virtual environment on top of the system's Python packages gets
  what has no system package; colcon builds the packages into `install/`.

The work is a list of steps (`steps.py`): a run that was interrupted goes on where it stopped, a second run has nothing
to do, and a change of a pin, a message or the metadata redoes the steps from there on.
"""

from __future__ import annotations

import argparse
import fcntl
import importlib.metadata
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import FrameType

from environment import (
    ENVIRONMENT_SCRIPT,
    build_environment,
    call,
    pip_install,
    venv_paths,
    venv_python,
    write_distribution_script,
    write_wheels_script,
)
from progress import CommandError
from steps import ROOT, VENV, Step, files_in, run_steps

OLDEST_PYTHON = (3, 11)
NEWEST_WHEELS_PYTHON = (3, 14)
NEEDED_DISK_GB = 12  # 7 for the environment, the rest for pip's downloads on the way
MESSAGE_PACKAGES = {"tf2_msgs": ROOT / "bootstrap" / "tf2_msgs", "vmloc_msgs": ROOT / "msg"}
SHARED_FOLDERS = tuple(ROOT / name for name in ("launch", "config", "rviz", "models"))


class SetupError(Exception):
    """Something that the user has to mend; the message says what and how."""


# ---------------------------------------------------------------------------------------------- steps of both kinds


def check_python(newest: tuple[int, int] | None) -> None:
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info < OLDEST_PYTHON or (newest and sys.version_info[:2] > newest):
        wanted = f"{OLDEST_PYTHON[0]}.{OLDEST_PYTHON[1]}" + (f" to {newest[0]}.{newest[1]}" if newest else " or newer")
        raise SetupError(f"Python {wanted} is needed, and this is {version}: `make setup PYTHON=/path/to/python3`")
    if not (Path(sysconfig.get_paths()["include"]) / "Python.h").is_file():
        raise SetupError(
            f"Python {version} has no C headers ({sysconfig.get_paths()['include']}/Python.h), which the message "
            "packages need: install python3-dev (Debian, Ubuntu) or python3-devel (Fedora)"
        )


def check_compiler() -> None:
    if not any(shutil.which(name) for name in (os.environ.get("CXX", ""), "c++", "g++", "clang++") if name):
        raise SetupError("no C++ compiler found: install g++ (Debian, Ubuntu: build-essential) or set CXX")


def check_disk() -> None:
    free_gb = shutil.disk_usage(ROOT).free / 1e9
    if free_gb < NEEDED_DISK_GB:
        raise SetupError(f"{ROOT} has {free_gb:.1f} GB left on its disk, and the environment needs {NEEDED_DISK_GB} GB")


def make_venv(*options: str, setuptools: str = "setuptools") -> None:
    """A fresh virtual environment; what an earlier one left under the same name is removed."""
    for item in list(VENV.iterdir()) if VENV.is_dir() else []:
        if item.is_dir() and not item.is_symlink():
            shutil.rmtree(item)
        else:
            item.unlink()
    VENV.mkdir(exist_ok=True)
    (VENV / "COLCON_IGNORE").touch()
    try:
        call(sys.executable, "-m", "venv", *options, VENV, environment=dict(os.environ))
    except CommandError as error:
        raise SetupError(f"{error}\nOn Debian and Ubuntu, `python3 -m venv` needs the package python3-venv.") from None
    constraint = () if options else ("--constraint", ROOT / "constraints.txt")
    pip_install("--quiet", *constraint, setuptools)


def remove_half_installed() -> None:
    """Removes packages that a killed pip left half: it writes RECORD last, and believes the rest to be whole."""
    for info in Path(venv_paths()["purelib"]).glob("*.dist-info"):
        if not (info / "RECORD").is_file():
            shutil.rmtree(info)


def install_packages(extras: str, constraints: Path) -> None:
    remove_half_installed()
    pip_install("--constraint", constraints, "--no-build-isolation", "--editable", f".[{extras}]")


def use_opencv_without_windows_if_needed() -> None:
    """Exchanges opencv-python for its headless twin where the machine lacks the libraries of a desktop.

    opencv-python links against libGL and GLib, which a server or a container often lacks. The headless package is
    the same library without windows, and nothing here opens one.
    """
    environment = build_environment()
    check = [str(venv_python()), "-c", "import cv2"]
    if subprocess.run(check, env=environment, capture_output=True, check=False).returncode == 0:
        return
    print("      this machine lacks the desktop libraries of opencv-python: taking opencv-python-headless", flush=True)
    call(venv_python(), "-m", "pip", "uninstall", "--yes", "--quiet", "opencv-python")
    pip_install("--constraint", ROOT / "constraints.txt", "--force-reinstall", "--no-deps", "opencv-python-headless")
    call(*check)


def link(target: Path, place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    place.unlink(missing_ok=True)
    place.symlink_to(target)


def link_project() -> None:
    """Puts the package into the environment's ament prefix as `colcon build --symlink-install` would.

    pip's editable install covers the Python code and the commands; the rest are links into the checkout.
    """
    share = VENV / "share" / "vmloc_ros"
    shutil.rmtree(share, ignore_errors=True)
    for path in files_in((ROOT / "package.xml", *SHARED_FOLDERS)):  # files, for `ros2 launch` follows no linked folders
        link(path, share / path.relative_to(ROOT))
    index = VENV / "share" / "ament_index" / "resource_index" / "packages"
    link(ROOT / "resource" / "vmloc_ros", index / "vmloc_ros")
    for name in ("localizer", "vmloc"):
        link(VENV / "bin" / name, VENV / "lib" / "vmloc_ros" / name)


# ------------------------------------------------------------------------------------------- steps of the wheels kind


def rewrite_cmake_paths() -> None:
    """Points the wheels' exported CMake targets to this machine's Python and numpy headers.

    The files name the include folders of the machine that built them, and CMake refuses targets whose folders do not
    exist.
    """
    command = [str(venv_python()), "-c", "import numpy; print(numpy.get_include())"]
    result = subprocess.run(command, env=build_environment(), capture_output=True, text=True, check=True)
    replacements = (
        (re.compile(r'/opt/python/[^;"\s>]*/numpy/(?:_core|core)/include'), result.stdout.strip()),
        (re.compile(r'/opt/python/[^;"\s>]*/include/python3\.\d+t?'), sysconfig.get_paths()["include"]),
    )
    for path in (VENV / "share").rglob("*.cmake"):
        before = after = path.read_text("utf-8")
        for pattern, value in replacements:
            after = pattern.sub(lambda _, value=value: value, after)  # type: ignore[misc]
        if after != before:
            path.write_text(after, encoding="utf-8")


def build_messages() -> None:
    for name, source in MESSAGE_PACKAGES.items():
        build = VENV / "build" / name
        shutil.rmtree(build, ignore_errors=True)
        cmake = VENV / "bin" / "cmake"
        call(
            cmake, "-S", source, "-B", build, "-G", "Ninja", f"-DCMAKE_INSTALL_PREFIX={VENV}",
            f"-DCMAKE_MAKE_PROGRAM={VENV / 'bin' / 'ninja'}", "-DCMAKE_BUILD_TYPE=Release", "-DBUILD_TESTING=OFF",
            f"-DPython3_EXECUTABLE={venv_python()}", "-DPython3_FIND_VIRTUALENV=ONLY",
        )  # fmt: skip
        call(cmake, "--build", build)
        call(cmake, "--install", build)
        shutil.rmtree(build)


def check_environment() -> None:
    """Imports what everything rests on, from a shell that sourced the script, as the user's own will be."""
    statement = "import cv2, rclpy, torch, torchvision, rosbags, tf2_msgs.msg, vmloc_msgs.msg, vmloc_ros"
    call("sh", "-c", f'. "$0" && python -c "{statement}"', ENVIRONMENT_SCRIPT, environment=dict(os.environ))


def wheels_steps() -> list[Step]:
    check_python(NEWEST_WHEELS_PYTHON)
    check_compiler()
    if sys.platform != "linux" or platform.machine() != "x86_64":
        raise SetupError(
            f"the ROS 2 wheels are for Linux on x86-64, and this is {sys.platform} on {platform.machine()}: install "
            "and source a ROS 2 distribution (Jazzy, Kilted or newer), and run make again"
        )
    own = tuple(ROOT / "bootstrap" / name for name in ("setup_environment.py", "environment.py", "steps.py"))
    constraints = ROOT / "constraints.txt"
    metadata = (ROOT / "setup.py", ROOT / "setup.cfg", ROOT / "vmloc_ros" / "__init__.py")

    def venv() -> None:
        check_disk()
        make_venv()

    def packages() -> None:
        install_packages("batch,lidar,onnx,ros,test", constraints)
        use_opencv_without_windows_if_needed()

    return [
        Step("venv", "A virtual environment", venv, values=("wheels", str(VENV), sys.version)),
        Step("packages", "Python packages and the ROS 2 client library (2-3 minutes, 7 GB)", packages,
             (constraints, *metadata)),
        Step("cmake", "CMake files of the ROS 2 wheels", rewrite_cmake_paths, own),
        Step("messages", "Message packages (20 s)", build_messages, tuple(MESSAGE_PACKAGES.values())),
        Step("script", "Environment script", write_wheels_script, own),
        Step("check", "A check of it all", check_environment),
        Step("links", "Links to launch files, configuration and models", link_project, SHARED_FOLDERS),
    ]  # fmt: skip


# ------------------------------------------------------------------------------------- steps of the distribution kind


def write_system_constraints() -> Path:
    """Constraints that keep the distribution's numpy: its cv_bridge is compiled against it."""
    path = VENV / "system_constraints.txt"
    try:
        path.write_text(f"numpy=={importlib.metadata.version('numpy')}\n", encoding="utf-8")
    except importlib.metadata.PackageNotFoundError:
        path.write_text("", encoding="utf-8")
    return path


def colcon_build() -> None:
    if shutil.which("colcon") is None:
        raise SetupError("colcon is missing: install python3-colcon-common-extensions, or `pip install "
                          "colcon-common-extensions`")  # fmt: skip
    environment = os.environ | {"COLCON_DEFAULTS_FILE": str(ROOT / "colcon_defaults.yaml")}
    call("colcon", "build", "--cmake-clean-cache", "--event-handlers", "console_cohesion+", environment=environment)


def distribution_steps() -> list[Step]:
    check_python(None)
    check_compiler()
    distribution = os.environ.get("ROS_DISTRO", "")
    metadata = tuple(ROOT / name for name in ("setup.py", "setup.cfg", "package.xml", "resource", "vmloc_ros"))
    return [
        Step("venv", "A virtual environment on top of the system's packages",
             lambda: make_venv("--system-site-packages", setuptools="setuptools>=70.1"),  # builds wheels itself
             values=(distribution, str(VENV), sys.version)),
        Step("packages", "Python packages without a system package",
             lambda: install_packages("lidar,test", write_system_constraints()), (ROOT / "setup.py",)),
        Step("colcon", "colcon build", colcon_build, (*metadata, ROOT / "msg", *SHARED_FOLDERS)),
        Step("script", "Environment script", write_distribution_script),
        Step("check", "A check of it all", check_environment),
    ]  # fmt: skip


# --------------------------------------------------------------------------------------------------------------- main


def _stop(number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt(number)


def leave_virtual_environment() -> None:
    """Starts over with the Python below an activated virtual environment: it may be the one to be replaced."""
    if sys.prefix != sys.base_prefix:
        python = Path(sys.base_prefix) / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}"
        os.execv(python, [str(python), *sys.argv])


def main() -> int:
    leave_virtual_environment()
    parser = argparse.ArgumentParser(description="Make the environment that the Makefile's targets run in.")
    parser.add_argument("kind", choices=("wheels", "distribution"))
    kind = parser.parse_args().kind
    signal.signal(signal.SIGTERM, _stop)
    try:
        with Path(__file__).open("rb") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print("Waiting for another set-up in this checkout to end ...", flush=True)
                fcntl.flock(lock, fcntl.LOCK_EX)
            os.set_inheritable(lock.fileno(), True)  # a pip or CMake that outlives us keeps the lock
            run_steps(wheels_steps() if kind == "wheels" else distribution_steps())
    except (SetupError, CommandError) as error:
        print(f"setup: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nsetup: interrupted; the next run goes on from here", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
