"""The parameter file and the node's parameters are the typed configuration, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vmloc_ros.config import (
    FilterConfig,
    InputConfig,
    LocalizerConfig,
    ProjectionConfig,
    flat_names,
    load_config,
    parse,
)
from vmloc_ros.errors import ConfigError
from vmloc_ros.parameter_file import parameters, render


def test_the_committed_parameter_file_is_the_generated_one(project_root: Path) -> None:
    committed = (project_root / "config" / "localizer.yaml").read_text(encoding="utf-8")
    assert committed == render(), "run `vmloc params --out config/localizer.yaml`"


def test_the_parameter_file_holds_the_defaults_and_explains_every_one(tmp_path: Path) -> None:
    file = tmp_path / "localizer.yaml"
    file.write_text(render())
    assert load_config(file) == LocalizerConfig()
    text = " ".join(line.strip().removeprefix("# ") for line in render().splitlines())
    for parameter in parameters():
        assert parameter.description, parameter.name
        assert parameter.description.split(".")[0] in text, parameter.name
    assert [parameter.name for parameter in parameters()] == flat_names(LocalizerConfig)


def test_limits_are_told_in_words() -> None:
    limits = {parameter.name: parameter.limits for parameter in parameters()}
    assert limits["projection.width"] == ">= 8 and <= 4096"
    assert limits["output.publish_tf"] == "one of map_odom, map_base, none"
    assert limits["frames.map"] == ""
    assert {parameter.name: parameter.kind for parameter in parameters(FilterConfig)}["window_s"] is float


@pytest.fixture
def make_node() -> Iterator[Any]:
    """Builds a node in this process from ROS arguments; it is never put on an executor."""
    pytest.importorskip("vmloc_msgs", reason="needs a ROS 2 client library and vmloc_msgs")
    import rclpy
    from rclpy.context import Context
    from scripted_node import load

    from vmloc_ros.ros.localizer_node import LocalizerNode

    context = Context()
    rclpy.init(args=[], context=context, signal_handler_options=rclpy.SignalHandlerOptions.NO)
    nodes = []

    def make(*values: str) -> LocalizerNode:
        words = [word for value in ("model.path:=scripted", *values) for word in ("-p", value)]
        nodes.append(LocalizerNode(load, context=context, cli_args=["--ros-args", *words]))
        return nodes[-1]

    yield make
    for node in nodes:
        node.destroy_node()
    context.try_shutdown()


def test_parameters_become_the_configuration(make_node: Any) -> None:
    node = make_node(
        "filter.window_s:=4",
        "frames.map:=world",
        "extrinsics.base_to_camera:=[0, 0, 0, 0, 0, 0, 1]",
        "use_sim_time:=true",
        "qos_overrides./image.subscription.reliability:=reliable",
    )
    config = node.parameters.config()
    assert (config.filter.window_s, config.frames.map) == (4.0, "world")
    assert config.extrinsics.base_to_camera == [0.0] * 6 + [1.0]
    rest = LocalizerConfig().model_dump()
    assert config.model_dump()["projection"] == rest["projection"]
    assert node.parameters.autostart
    described = node.describe_parameter("filter.window_s")
    assert described.description == "History kept for late measurements."
    assert described.additional_constraints == "> 0"


def test_what_is_not_given_of_the_sensors_is_as_in_the_training() -> None:
    trained_input = InputConfig(depth_source="scan", min_depth_returns=7)
    trained = ProjectionConfig(kind="cylindrical", width=192, window_s=0.45)
    config = parse(LocalizerConfig, {"projection": {"width": 200}, "filter": {"window_s": 4.0}}, "test")
    used = config.as_trained(trained_input, trained)
    assert used.input == trained_input
    assert used.projection == trained.model_copy(update={"width": 200})
    assert used.filter == config.filter
    assert LocalizerConfig().as_trained(trained_input, trained).projection == trained
    given = LocalizerConfig.model_validate(LocalizerConfig().model_dump())
    assert given.as_trained(trained_input, trained) == LocalizerConfig()  # all of it was given


def test_the_node_shows_what_it_took_from_the_model(make_node: Any) -> None:
    """Again and again: what one model's training has said is no wish of the user's when another model comes."""
    from rclpy.parameter import Parameter

    node = make_node("projection.width:=200", "model.path:=cylindrical")
    for path, kind in (("cylindrical", "cylindrical"), ("scripted", "pinhole"), ("cylindrical", "cylindrical")):
        node.set_parameters([Parameter("model.path", value=path)])
        assert node.start()
        assert node.get_parameter("projection.kind").value == kind
        assert node.get_parameter("projection.width").value == 200
        node.trigger_deactivate()
        node.trigger_cleanup()


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        (["model.path:=''"], "model.path is not set"),
        (["filter.windows_s:=3.0"], "did you mean 'filter.window_s'"),
        (["filters.window_s:=3.0"], "unknown key 'filters'"),
        (["filter.window_s:=long"], "filter.window_s"),
        (["filter.window_s:=.nan"], "filter.window_s"),
        (["projection.width:=2"], "projection.width"),
        (["projection.width:=200.5"], "projection.width"),
        (["output.publish_tf:=map_base", "output.publish_odom_tf:=true"], "two parents"),
        (["extrinsics.base_to_camera:=[0.0, 1.0]"], "extrinsics.base_to_camera"),
        (["extrinsics.base_to_camera:=[0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]"], "extrinsics.base_to_camera"),
    ],
)
def test_a_bad_parameter_fails_the_configuration_and_is_named(
    make_node: Any, values: list[str], complaint: str, capfd: pytest.CaptureFixture[str]
) -> None:
    node = make_node(*values)
    assert not node.start()
    assert node.state == "unconfigured"
    said = "".join(capfd.readouterr())
    assert complaint in said
    assert "Traceback" not in said


def test_a_parameter_file_may_hold_the_sections_alone(tmp_path: Path) -> None:
    pytest.importorskip("vmloc_msgs", reason="needs a ROS 2 client library and vmloc_msgs")
    from vmloc_ros.ros.node import file_arguments

    file = tmp_path / "sections.yaml"
    file.write_text("filter: {window_s: 4.0}\nframes: {map: world}\nextrinsics: {base_to_camera: []}\n")
    words = file_arguments(file)
    assert words == ["--ros-args", "-p", "filter.window_s:=4.0", "-p", "frames.map:=world", "--"]
    with pytest.raises(ConfigError, match=r"nowhere\.yaml"):
        file_arguments(tmp_path / "nowhere.yaml")
