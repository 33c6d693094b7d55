"""The Fast DDS profile that does not lose images (`config/fastdds.xml`), and setting it before a node starts."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from vmloc_ros.errors import BagError, SetupError

PACKAGE = "vmloc_ros"
VARIABLES = ("FASTDDS_DEFAULT_PROFILES_FILE", "FASTRTPS_DEFAULT_PROFILES_FILE")
"""The variable of Fast DDS 3 and the one of Fast DDS 2, of which Fast DDS 3 warns."""
FAST_DDS_2 = ("humble", "iron", "jazzy")


def _prefixes() -> list[Path]:
    """Where packages are installed: the sourced workspaces, and the environment of this Python."""
    named = [prefix for prefix in os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep) if prefix]
    return [Path(prefix) for prefix in (*named, sys.prefix)]


def shared_file(relative: str) -> Path:
    """A file of the package's share folder: beside the source tree, or where colcon or pip installed it.

    Raises:
        SetupError: it is in none of them.
    """
    beside_source = Path(__file__).resolve().parents[2] / relative
    if beside_source.is_file():
        return beside_source
    for prefix in _prefixes():
        installed = prefix / "share" / PACKAGE / relative
        if installed.is_file():
            return installed
    raise SetupError(f"{relative}: not found in the share folder of {PACKAGE}; build and source the workspace again")


def dds_profile() -> Path:
    """The profile's path.

    Raises:
        SetupError: the package is installed without it.
    """
    return shared_file("config/fastdds.xml")


def profile_setting(environment: Mapping[str, str]) -> dict[str, str]:
    """The variable to add to an environment; none where the user has set a profile.

    Raises:
        SetupError: the package is installed without the profile.
    """
    if any(environment.get(name) for name in VARIABLES):
        return {}
    return {VARIABLES[environment.get("ROS_DISTRO") in FAST_DDS_2]: str(dds_profile())}


def use_dds_profile() -> None:
    """Sets the profile for this process unless the user has set one; call it before rclpy is initialised."""
    os.environ.update(profile_setting(os.environ))


def interface_file(msgtype: str) -> Path:
    """The .msg file of `package/msg/Name`, where the environment has it installed.

    Raises:
        BagError: it is not installed.
    """
    package, _, name = msgtype.split("/")
    for prefix in _prefixes():
        installed = prefix / "share" / package / "msg" / f"{name}.msg"
        if installed.is_file():
            return installed
    raise BagError(f"{msgtype}: its definition is not installed (share/{package}/msg/{name}.msg)")
