"""Starting the node as a process: `ros2 run vmloc_ros localizer` and `vmloc node --params FILE`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rclpy
import yaml
from rclpy.context import Context
from rclpy.exceptions import ROSInterruptException
from rclpy.executors import SingleThreadedExecutor
from rclpy.signals import SignalHandlerOptions

from vmloc_ros.config import ModelConfig, read_yaml
from vmloc_ros.errors import SetupError, VmlocError
from vmloc_ros.ros.localizer_node import Load, LocalizerNode
from vmloc_ros.ros.profile import use_dds_profile
from vmloc_ros.ros.signals import StopRequest

if TYPE_CHECKING:
    from vmloc_ros.localizer import Localizer

SPIN_S = 0.1


def run_node(params_file: Path | None = None, arguments: Sequence[str] = (), load: Load | None = None) -> int:
    """Runs the node until SIGINT, SIGTERM or a lifecycle shutdown.

    Args:
        params_file: parameters, in ROS 2's layout or the configuration's sections alone.
        arguments: further arguments in ROS 2's own syntax (`--ros-args -r image:=/camera/image -p model.path:=...`).
        load: gives the localizer for a model's folder; None: `localizer.load_localizer`.

    Returns:
        The exit status: 0 after a clean end; 1 when the node was to start by itself and could not (the log says why).

    Raises:
        VmlocError: the parameter file cannot be read, or an argument is malformed.
    """
    use_dds_profile()
    context = Context()
    with StopRequest() as stop:
        try:
            rclpy.init(
                args=[*file_arguments(params_file), *arguments],
                context=context,
                signal_handler_options=SignalHandlerOptions.NO,
            )
        except RuntimeError as error:
            raise SetupError(f"ROS 2 refuses the arguments: {' '.join(str(error).split())}") from error
        try:
            return _spin(context, stop, load or _load_model)
        finally:
            context.try_shutdown()


def _spin(context: Context, stop: StopRequest, load: Load) -> int:
    node = LocalizerNode(load, context=context)
    executor = SingleThreadedExecutor(context=context)
    try:
        executor.add_node(node)
        if node.parameters.autostart and not node.start():
            return 1
        while not stop.is_set() and node.state != "finalized":
            executor.spin_once(timeout_sec=SPIN_S)
        node.stop()
        return 0
    except ROSInterruptException:
        return 0
    finally:
        executor.shutdown()
        node.destroy_node()


def _load_model(path: Path, config: ModelConfig) -> Localizer:
    from vmloc_ros.localizer import (
        load_localizer,  # PyTorch takes seconds to import: not for a parameter file with an error
    )

    return load_localizer(path, config)


def file_arguments(params_file: Path | None) -> list[str]:
    """ROS arguments that give a parameter file to the node.

    Raises:
        ConfigError: missing, or not YAML.
    """
    if params_file is None:
        return []
    content = read_yaml(params_file)
    if any(isinstance(value, dict) and "ros__parameters" in value for value in content.values()):
        return ["--ros-args", "--params-file", str(params_file), "--"]
    words = ["--ros-args"]
    for name, value in _leaves(content):
        words += ["-p", f"{name}:={yaml.safe_dump(value, default_flow_style=True, width=10_000).splitlines()[0]}"]
    return [*words, "--"]


def _leaves(content: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name, value in content.items():
        if isinstance(value, dict):
            found += _leaves(value, f"{prefix}{name}.")
        elif value not in ([], None):  # ROS 2 cannot hold them; both mean the default
            found.append((prefix + name, value))
    return found


def main() -> None:
    """`ros2 run vmloc_ros localizer`."""
    try:
        status = run_node(None, sys.argv[1:])
    except VmlocError as error:
        print(f"localizer: {error}", file=sys.stderr)
        status = 1
    sys.exit(status)


if __name__ == "__main__":
    main()
