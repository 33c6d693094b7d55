"""ROS parameters from the typed configuration: declared from its list, read back through its checks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from rcl_interfaces.msg import ParameterDescriptor, SetParametersResult
from rclpy.exceptions import ParameterUninitializedException
from rclpy.node import Node
from rclpy.parameter import Parameter as RosParameter

from vmloc_ros.config import LocalizerConfig, parse
from vmloc_ros.errors import ConfigError
from vmloc_ros.parameter_file import AUTOSTART, Parameter, parameters

NOT_OURS = ("use_sim_time", "start_type_description_service")
NOT_OURS_PREFIX = "qos_overrides."
SOURCE = "parameters of the node"


class NodeParameters:
    """The node's parameters.

    The node must have been created with `automatically_declare_parameters_from_overrides=True`: that is how a name that
    does not exist (a typing error in a parameter file) becomes known at all.
    """

    def __init__(self, node: Node, is_configured: Callable[[], bool]) -> None:
        """
        Args:
            node: what the parameters are declared on.
            is_configured: whether the configuration has been read already; then no parameter may change.
        """
        self._node = node
        self._is_configured = is_configured
        self._parameters = {parameter.name: parameter for parameter in parameters()}
        given = {name: value.value for name, value in node.get_parameters_by_prefix("").items()}
        self._unknown = [name for name in given if not self._is_known(name)]
        self._given = set(given) & self._parameters.keys()
        self._showing = False
        for parameter in self._parameters.values():
            self._declare(parameter, given)
        autostart = Parameter(AUTOSTART, bool, True, "The node configures and activates itself.", "")
        self._declare(autostart, given)
        node.add_on_set_parameters_callback(self._on_set)

    def _is_known(self, name: str) -> bool:
        ours = name in self._parameters or name == AUTOSTART
        return ours or name in NOT_OURS or name.startswith(NOT_OURS_PREFIX)

    def _declare(self, parameter: Parameter, given: dict[str, Any]) -> None:
        descriptor = ParameterDescriptor(description=parameter.description, additional_constraints=parameter.limits)
        value: Any = parameter.default
        if parameter.name in given:
            value = _as_kind(parameter, given[parameter.name])
            self._node.undeclare_parameter(parameter.name)
        if parameter.kind is list and not value:  # an empty list has no type of its own: declared, but not set
            value = RosParameter.Type.DOUBLE_ARRAY
        self._node.declare_parameter(parameter.name, value, descriptor, ignore_override=True)

    @property
    def autostart(self) -> bool:
        """Whether the node configures and activates itself."""
        return bool(self._node.get_parameter(AUTOSTART).value)

    def config(self) -> LocalizerConfig:
        """The configuration as it has been given; what has not been given is left to the defaults of the classes.

        Raises:
            ConfigError: a name that does not exist, a value of the wrong type or outside its limits.
        """
        parameters = {name: self._parameters[name] for name in sorted(self._given)}
        flat = {name: _as_kind(parameter, self._value(parameter)) for name, parameter in parameters.items()}
        for name in self._unknown:
            flat[name] = self._node.get_parameter(name).value
        return parse(LocalizerConfig, nested(flat), SOURCE)

    def show(self, config: LocalizerConfig) -> None:
        """Sets the parameters to what is used, so that `ros2 param get` tells it, where they were not given."""
        values = flat_values(config)
        names = [n for n, p in self._parameters.items() if n not in self._given and p.kind is not list]
        self._showing = True
        try:
            self._node.set_parameters([RosParameter(name, value=values[name]) for name in names])
        finally:
            self._showing = False

    def _value(self, parameter: Parameter) -> Any:
        try:
            return self._node.get_parameter(parameter.name).value
        except ParameterUninitializedException:
            return parameter.default

    def _on_set(self, changes: Iterable[RosParameter[Any]]) -> SetParametersResult:
        ours = {change.name: change.value for change in changes if change.name in self._parameters}
        if not ours or self._showing:
            return SetParametersResult(successful=True)
        if self._is_configured():
            names = ", ".join(sorted(ours))
            reason = f"{names}: read when the node is configured; deactivate and clean it up, then set it"
            return SetParametersResult(successful=False, reason=reason)
        try:
            parse(LocalizerConfig, nested({n: _as_kind(self._parameters[n], v) for n, v in ours.items()}), SOURCE)
        except ConfigError as error:
            return SetParametersResult(successful=False, reason=str(error))
        self._given |= ours.keys()
        return SetParametersResult(successful=True)


def _as_kind(parameter: Parameter, value: Any) -> Any:
    """ROS knows no difference that matters here between 3 and 3.0: whole numbers do where numbers are asked for."""
    if parameter.kind is float and type(value) is int:
        return float(value)
    if parameter.kind is list and not isinstance(value, str | bytes):
        return [float(number) if type(number) is int else number for number in (value if value is not None else [])]
    return value


def flat_values(config: LocalizerConfig) -> dict[str, Any]:
    """Values by dotted names."""
    return {f"{section}.{name}": value for section, inner in config for name, value in inner}


def nested(flat: dict[str, Any]) -> dict[str, Any]:
    """Sections from dotted names; of a name that is both a section and a value the check refuses what is left over."""
    tree: dict[str, Any] = {}
    for name, value in flat.items():
        *sections, leaf = name.split(".")
        inner = tree
        for depth, section in enumerate(sections):
            below = inner.setdefault(section, {})
            if not isinstance(below, dict):
                leaf = ".".join([section, *sections[depth + 1 :], leaf])
                break
            inner = below
        inner[leaf] = value
    return tree
