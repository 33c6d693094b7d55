"""What is wrong with the set-up, and a cure for each: `vmloc doctor`."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement

from vmloc_ros.errors import VmlocError

OLDEST_PYTHON = (3, 11)
IMPORT_TIMEOUT_S = 60
MIN_SEGMENT_BYTES = 8 << 20  # a 1280x960 colour image has 3.7 MB, and a few must fit
MIN_SHARED_MEMORY_BYTES = 256 << 20  # segments of some participants, with room to spare
MIN_UDP_BUFFER_BYTES = 4 << 20
LARGEST_SAFE_DOMAIN = 101
PROFILE_VARIABLES = ("FASTDDS_DEFAULT_PROFILES_FILE", "FASTRTPS_DEFAULT_PROFILES_FILE")
DISCOVERY_RANGES = ("", "SUBNET", "LOCALHOST", "OFF", "SYSTEM_DEFAULT")
SOURCE_CURE = "`make setup && source .venv/ros_env.sh`, or `source /opt/ros/DISTRO/setup.bash` on a ROS 2 distribution"
BUILD_CURE = "`make setup && source .venv/ros_env.sh`, or `colcon build` and `source install/setup.bash`"
STANDARD_MESSAGES = ("builtin_interfaces", "diagnostic_msgs", "geometry_msgs", "nav_msgs", "sensor_msgs", "std_msgs")
OWN_MESSAGES = ("tf2_msgs", "vmloc_msgs")


class Level(StrEnum):
    OK = "ok"
    NOTE = "note"  # works, but is worth knowing
    WARNING = "warning"  # works worse than it could
    ERROR = "error"  # does not work


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report; `cure` is empty only where nothing has to be done."""

    level: Level
    what: str
    cure: str = ""


def run_doctor(model: Path | None = None, out: Callable[[str], None] = print) -> int:
    """Prints what it finds, a line each, the cure below it.

    Args:
        model: a model's folder to try to load as well.
        out: takes the lines.

    Returns:
        0 when nothing is broken (warnings may be left), 1 otherwise.
    """
    environment = dict(os.environ)
    parts: list[Callable[[], Iterator[Finding]]] = [
        lambda: check_python(sys.version_info[:3]),
        lambda: check_requirements(_own_requirements()),
        lambda: check_ros(environment, failed_imports),
        lambda: check_graph(environment),
        lambda: check_dds_profile(environment),
        lambda: check_shared_memory(Path("/dev/shm")),
        lambda: check_udp_buffers(Path("/proc/sys/net/core/rmem_max")),
        check_device,
        lambda: check_cores(available_cores(), os.getloadavg()[0]),
    ]
    if model is not None:
        parts.append(lambda: check_model(model))
    counts = dict.fromkeys(Level, 0)
    for part in parts:
        for finding in part():
            counts[finding.level] += 1
            out(f"{finding.level.value:<8}{finding.what}")
            if finding.cure:
                out(f"{'':8}-> {finding.cure}")
    out(f"{counts[Level.ERROR]} errors, {counts[Level.WARNING]} warnings")
    return 1 if counts[Level.ERROR] else 0


# ------------------------------------------------------------------------------------------------------------- Python


def check_python(version: tuple[int, int, int]) -> Iterator[Finding]:
    text = ".".join(map(str, version))
    if version[:2] >= OLDEST_PYTHON:
        yield Finding(Level.OK, f"Python {text} ({sys.executable})")
    else:
        wanted = ".".join(map(str, OLDEST_PYTHON))
        yield Finding(Level.ERROR, f"Python {text} is too old", f"use Python {wanted} or newer")


def _own_requirements() -> list[str]:
    try:
        return importlib.metadata.requires("vmloc_ros") or []
    except importlib.metadata.PackageNotFoundError:
        return []


def check_requirements(requirements: list[str]) -> Iterator[Finding]:
    """Compares what is installed with the ranges in setup.py; extras are left out."""
    wrong: list[Finding] = []
    count = 0
    for text in requirements:
        try:
            requirement = Requirement(text)
        except InvalidRequirement:
            continue
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        count += 1
        installed = _installed_version(requirement.name)
        if installed is None:
            wrong.append(Finding(Level.ERROR, f"{requirement.name} is missing", f"pip install '{requirement}'"))
        elif not requirement.specifier.contains(installed, prereleases=True):
            what = f"{requirement.name} {installed} is outside the range {requirement.specifier}"
            wrong.append(Finding(Level.WARNING, what, f"pip install '{requirement}'"))
    if not count:
        yield Finding(Level.WARNING, "vmloc_ros is not installed, only importable", f"{SOURCE_CURE}")
    elif not wrong:
        yield Finding(Level.OK, f"all {count} required Python packages are installed")
    yield from wrong


def _installed_version(name: str) -> str | None:
    """The version; OpenCV counts in each of its three packagings (the third is Debian's `opencv`)."""
    names = ("opencv-python", "opencv-python-headless", "opencv") if name == "opencv-python" else (name,)
    for candidate in names:
        try:
            return importlib.metadata.version(candidate)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


# ---------------------------------------------------------------------------------------------------------------- ROS


def failed_imports(modules: tuple[str, ...]) -> dict[str, str]:
    """Which modules a fresh Python cannot import, and what it says.

    In a process of its own: a ROS environment that is half sourced fails in the loader, or crashes.
    """
    program = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]:\n"
        "    try:\n"
        "        importlib.import_module(name)\n"
        "    except Exception as error:\n"
        "        print(name, str(error).split('\\n')[0], sep='\\t')\n"
        "print('end')\n"
    )
    try:
        result = subprocess.run(
            [sys.executable, "-c", program, *modules],
            capture_output=True, text=True, timeout=IMPORT_TIMEOUT_S, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return dict.fromkeys(modules, f"importing took longer than {IMPORT_TIMEOUT_S} s")
    lines = result.stdout.splitlines()
    if "end" not in lines:
        return dict.fromkeys(modules, f"Python ended with status {result.returncode} while importing")
    return {name: message for name, tab, message in (line.partition("\t") for line in lines) if tab}


def check_ros(
    environment: Mapping[str, str], failures: Callable[[tuple[str, ...]], dict[str, str]]
) -> Iterator[Finding]:
    """The client library and the message packages; `failures` is `failed_imports` or a test's own."""
    failed = failures(("rclpy", *(f"{name}.msg" for name in (*STANDARD_MESSAGES, *OWN_MESSAGES))))
    distribution = environment.get("ROS_DISTRO", "")
    if "rclpy" in failed:
        yield Finding(Level.ERROR, f"the ROS 2 client library does not load: {failed['rclpy']}", SOURCE_CURE)
        return
    if distribution:
        yield Finding(Level.OK, f"ROS 2 {distribution}")
    else:
        yield Finding(
            Level.WARNING, "rclpy loads, but ROS_DISTRO is not set: no ROS environment is sourced", SOURCE_CURE
        )
    for name in (*STANDARD_MESSAGES, *OWN_MESSAGES):
        if f"{name}.msg" in failed:
            cure = BUILD_CURE if name in OWN_MESSAGES else SOURCE_CURE
            yield Finding(Level.ERROR, f"messages of {name} do not load: {failed[f'{name}.msg']}", cure)
    if not failed:
        yield Finding(Level.OK, "all message packages load")


def check_graph(environment: Mapping[str, str]) -> Iterator[Finding]:
    """The variables that decide who sees whom."""
    domain = environment.get("ROS_DOMAIN_ID", "0") or "0"
    if not domain.isdecimal() or int(domain) > LARGEST_SAFE_DOMAIN:
        cure = f"export ROS_DOMAIN_ID=0 (to {LARGEST_SAFE_DOMAIN})"
        yield Finding(Level.ERROR, f"ROS_DOMAIN_ID is {domain!r}, not a number up to {LARGEST_SAFE_DOMAIN}", cure)
    else:
        yield Finding(Level.OK, f"ROS domain {domain}")
    reach = environment.get("ROS_AUTOMATIC_DISCOVERY_RANGE", "")
    if reach not in DISCOVERY_RANGES:
        choices = ", ".join(DISCOVERY_RANGES[1:])
        yield Finding(Level.ERROR, f"ROS_AUTOMATIC_DISCOVERY_RANGE is {reach!r}", f"set it to one of {choices}")
    elif reach == "OFF":
        yield Finding(
            Level.WARNING, "ROS_AUTOMATIC_DISCOVERY_RANGE is OFF: nodes find nobody", "unset it, or LOCALHOST"
        )
    implementation = environment.get("RMW_IMPLEMENTATION", "")
    if implementation not in ("", "rmw_fastrtps_cpp", "rmw_fastrtps_dynamic_cpp"):
        yield Finding(
            Level.NOTE,
            f"RMW_IMPLEMENTATION is {implementation}: config/fastdds.xml does not apply to it",
            "give it large buffers in its own way, or unset RMW_IMPLEMENTATION",
        )


# ---------------------------------------------------------------------------------------------------------------- DDS


def check_dds_profile(environment: Mapping[str, str]) -> Iterator[Finding]:
    """Whether processes started from this shell publish images without losing them."""
    chosen = next((environment[name] for name in PROFILE_VARIABLES if environment.get(name)), None)
    cure = f"export {PROFILE_VARIABLES[0]}=/path/to/config/fastdds.xml of this package (make's environment script does)"
    if chosen is None:
        what = "no Fast DDS profile is set: a camera driver started from this shell loses most of its images"
        yield Finding(Level.WARNING, what, cure)
        return
    path = Path(chosen)
    if not path.is_file():
        yield Finding(Level.ERROR, f"the Fast DDS profile {path} does not exist", cure)
        return
    try:
        sizes = shared_memory_segments(path)
    except ElementTree.ParseError as error:
        yield Finding(Level.ERROR, f"the Fast DDS profile {path} is not XML ({error})", cure)
        return
    if not sizes or max(sizes) < MIN_SEGMENT_BYTES:
        what = f"the Fast DDS profile {path} gives shared memory less than {MIN_SEGMENT_BYTES >> 20} MiB"
        yield Finding(Level.WARNING, what, cure)
    else:
        yield Finding(Level.OK, f"Fast DDS profile {path} (shared memory segment {max(sizes) >> 20} MiB)")


def shared_memory_segments(profile: Path) -> list[int]:
    """Sizes in bytes of the shared memory segments that a Fast DDS profile describes.

    Raises:
        xml.etree.ElementTree.ParseError: it is not XML.
    """
    sizes = []
    for element in ElementTree.parse(profile).iter():
        if element.tag.rpartition("}")[2] == "segment_size" and (element.text or "").strip().isdecimal():
            sizes.append(int(element.text or "0"))
    return sizes


def check_shared_memory(folder: Path) -> Iterator[Finding]:
    """The file system that Fast DDS puts its segments on; containers get 64 MiB of it by default."""
    if not os.access(folder, os.W_OK):
        cure = f"mount a tmpfs there: mount -t tmpfs -o size=512m tmpfs {folder}"
        yield Finding(Level.ERROR, f"{folder} does not exist or cannot be written: no shared memory transport", cure)
        return
    free = shutil.disk_usage(folder).free
    if free < MIN_SHARED_MEMORY_BYTES:
        cure = "start the container with --shm-size=512m or --ipc=host; elsewhere remove stale fastrtps_* files there"
        what = f"{folder} has {free >> 20} MiB left, and {MIN_SHARED_MEMORY_BYTES >> 20} MiB are needed for images"
        yield Finding(Level.WARNING, what, cure)
    else:
        yield Finding(Level.OK, f"{folder} has {free >> 20} MiB left")


def check_udp_buffers(limit_file: Path) -> Iterator[Finding]:
    """The kernel's limit on receive buffers; it matters only between machines."""
    try:
        limit = int(limit_file.read_text("ascii"))
    except (OSError, ValueError):
        return
    if limit < MIN_UDP_BUFFER_BYTES:
        what = f"UDP buffers are limited to {limit >> 10} KiB: images from *other machines* may be lost"
        yield Finding(Level.NOTE, what, f"sudo sysctl -w net.core.rmem_max={MIN_UDP_BUFFER_BYTES}")


# ------------------------------------------------------------------------------------------------------------ compute


def check_device() -> Iterator[Finding]:
    """Where the network runs with `device: auto`."""
    try:
        import torch
    except (ImportError, OSError) as error:
        yield Finding(Level.ERROR, f"PyTorch does not load: {error}", "`make setup`, or pip install torch torchvision")
        return
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count())]
        yield Finding(Level.OK, f"PyTorch {torch.__version__} runs on {', '.join(names)}")
    elif Path("/dev/nvidiactl").exists():
        what = f"there is an NVIDIA driver, but PyTorch {torch.__version__} cannot use it: the network runs on the CPU"
        yield Finding(Level.WARNING, what, "update the driver, or install the PyTorch build for its CUDA version")
    else:
        yield Finding(Level.OK, f"PyTorch {torch.__version__} runs on the CPU (no CUDA device here)")


def available_cores(quota_file: Path = Path("/sys/fs/cgroup/cpu.max")) -> float:
    """Cores that this process may use: its affinity, less what a container's quota takes away."""
    cores = float(len(os.sched_getaffinity(0)))
    try:
        quota, period = quota_file.read_text("ascii").split()
        return min(cores, float(quota) / float(period))
    except (OSError, ValueError):  # no such file, or "max": no quota
        return cores


def check_cores(cores: float, load: float) -> Iterator[Finding]:
    """The network takes all cores but one; the callbacks need that one."""
    if cores < 2:
        what = f"{cores:g} core: odometry waits while the network computes"
        yield Finding(Level.WARNING, what, "give the node two cores (docker: --cpus=2), or run the network on a GPU")
    elif cores - load < 1:
        what = f"{cores:g} cores, and the load is {load:.1f} already: no core is free for the node"
        yield Finding(Level.WARNING, what, "stop other work on this machine, or expect late poses and stale frames")
    else:
        yield Finding(Level.OK, f"{cores:g} cores, load {load:.1f}")


def check_model(folder: Path) -> Iterator[Finding]:
    """Whether the model loads and gives an answer in every mode it was trained for."""
    try:
        from vmloc_ros.config import ModelConfig
        from vmloc_ros.localizer import load_localizer
        from vmloc_ros.localizers.base import ReadableMap

        localizer = load_localizer(folder, ModelConfig(path=str(folder), runtime="auto"))
        localizer.warm_up()
    except (VmlocError, ImportError) as error:
        yield Finding(Level.ERROR, f"the model does not load: {error}", "`vmloc train` writes one; models/ has one")
        return
    modes = ", ".join(sorted(mode.value for mode in localizer.card.calibration))
    yield Finding(Level.OK, f"model {localizer.card.name} from {folder} on {localizer.device} ({modes})")
    if localizer.card.motion is not None:
        what = (
            f"it has an odometry of its own (~/vo) between frames at most {localizer.card.motion.max_gap_s:g} s apart"
        )
        yield Finding(Level.NOTE, what, "on a robot without another set model.odometry: network")
    if isinstance(localizer, ReadableMap):
        yield Finding(Level.NOTE, "its map can be looked at: ~/predicted_view, `vmloc map-view`")
    if localizer.fallback:
        yield Finding(Level.WARNING, localizer.fallback, "set model.device to what the machine has")
