"""Starts the localization node, and on demand RViz and a bag.

    ros2 launch vmloc_ros localize.launch.py model:=models/town bag:=drive use_sim_time:=true rviz:=true

Arguments: namespace, params_file, model, use_sim_time, autostart, rviz, bag, log_level. Topics are remapped in the
parameter file (`topics.*`). With a namespace, /tf, /tf_static and /initialpose become the robot's own.
"""

import os
import sys
from pathlib import Path

from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity
from launch.actions import (
    DeclareLaunchArgument,
    EmitEvent,
    ExecuteProcess,
    OpaqueFunction,
    RegisterEventHandler,
    SetEnvironmentVariable,
)
from launch.event_handlers import OnProcessExit
from launch.events import Shutdown
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

from vmloc_ros.bags import BagReader
from vmloc_ros.ros.profile import profile_setting, shared_file
from vmloc_ros.ros.signals import EXIT_WITH_PARENT

ARGUMENTS = {
    "namespace": ("", "Namespace of the node and of its relative topics (one robot of several)."),
    "params_file": ("", "Parameter file; by default every parameter has its default. See config/localizer.yaml."),
    "model": ("", "Folder of a trained model; overrides model.path of the parameter file."),
    "use_sim_time": ("false", "Take the time from /clock. With a bag: the bag is played with --clock."),
    "autostart": ("true", "The node configures and activates itself; false: a lifecycle manager does."),
    "rviz": ("false", "Start RViz with rviz/localize.rviz."),
    "bag": ("", "A bag to play, by vmloc play."),
    "log_level": ("info", "debug, info, warn, error or fatal."),
}


def launch_setup(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    """The processes, now that the arguments are known."""
    given = {name: LaunchConfiguration(name).perform(context) for name in ARGUMENTS}
    use_sim_time = ParameterValue(given["use_sim_time"].lower() == "true", value_type=bool)
    remappings = [(f"/{name}", name) for name in ("tf", "tf_static", "initialpose")] if given["namespace"] else []
    overrides: dict = {
        "use_sim_time": use_sim_time,
        "autostart": ParameterValue(given["autostart"].lower() == "true", value_type=bool),
    }
    if given["model"]:
        overrides["model.path"] = ParameterValue(given["model"], value_type=str)
    localizer = Node(
        package="vmloc_ros",
        executable="localizer",
        name="localizer",
        namespace=given["namespace"],
        parameters=[*([given["params_file"]] if given["params_file"] else []), overrides],
        remappings=remappings,
        ros_arguments=["--log-level", f"localizer:={given['log_level']}"],
        additional_env={EXIT_WITH_PARENT: "1"},
        output="screen",
    )
    # Without its node the rest is of no use; launch then ends with the others.
    end = OnProcessExit(target_action=localizer, on_exit=[EmitEvent(event=Shutdown(reason="the localizer has ended"))])
    actions: list[LaunchDescriptionEntity] = [*_dds_profile(), localizer, RegisterEventHandler(end)]
    if given["rviz"].lower() == "true":
        actions.append(
            Node(
                package="rviz2",
                executable="rviz2",
                namespace=given["namespace"],
                arguments=["-d", str(shared_file("rviz/localize.rviz"))],
                parameters=[{"use_sim_time": use_sim_time}],
                remappings=remappings,
            )
        )
    if given["bag"]:
        actions.append(_player(given))
    return actions


def _dds_profile() -> list[LaunchDescriptionEntity]:
    """The profile that does not lose images, for everything that is started here; the user's own comes first."""
    return [SetEnvironmentVariable(name, value) for name, value in profile_setting(os.environ).items()]


def _player(given: dict[str, str]) -> ExecuteProcess:
    command = [sys.executable, "-m", "vmloc_ros.cli", "play", given["bag"], "--wait", "30"]
    if given["namespace"]:
        for topic in BagReader(Path(given["bag"])).topics:
            command += ["--remap", f"{topic.name}:=/{given['namespace'].strip('/')}{topic.name}"]
    if given["use_sim_time"].lower() == "true":
        command.append("--clock")
    return ExecuteProcess(cmd=command, name="player", additional_env={EXIT_WITH_PARENT: "1"}, output="screen")


def generate_launch_description() -> LaunchDescription:
    """What `ros2 launch` asks for."""
    declared = [
        DeclareLaunchArgument(name, default_value=default, description=description)
        for name, (default, description) in ARGUMENTS.items()
    ]
    return LaunchDescription([*declared, OpaqueFunction(function=launch_setup)])
