"""The configuration as a flat list of parameters, and the YAML file that explains them all.

`config/localizer.yaml` is what `render` returns; the node declares its ROS parameters from the same list.
"""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

import annotated_types
import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from vmloc_ros.config import LocalizerConfig

WIDTH = 110
AUTOSTART = "autostart"
"""The node's own parameter, which the pipeline knows nothing of."""

HEADER = """\
Parameters of the node `localizer` and of `vmloc localize`.
GENERATED from vmloc_ros/config.py by `vmloc params`: every parameter, its default, its meaning.

Copy this file and keep the lines that you change. What is left out of `input` and `projection` is as in the model's
training, everything else has its default; a name that does not exist is refused. Give it with one of
    vmloc node --params FILE
    ros2 launch vmloc_ros localize.launch.py params_file:=FILE
    ros2 run vmloc_ros localizer --ros-args --params-file FILE
Parameters are read when the node is configured; to change one: deactivate, clean up, set it, configure, activate.
`/**` means: whatever the node's name and namespace are."""


@dataclass(frozen=True)
class Parameter:
    """One knob.

    Attributes:
        name: sections joined by dots.
        kind: bool, int, float, str or list (of floats).
        limits: what values are allowed, in words; empty: any of its kind.
    """

    name: str
    kind: type
    default: Any
    description: str
    limits: str


def parameters(model: type[BaseModel] = LocalizerConfig, prefix: str = "") -> list[Parameter]:
    """All parameters of a configuration class, in the order of the file."""
    found: list[Parameter] = []
    for name, info in model.model_fields.items():
        section = _section(info)
        if section is not None:
            found += parameters(section, f"{prefix}{name}.")
        else:
            default = info.get_default(call_default_factory=True)
            found.append(Parameter(prefix + name, type(default), default, info.description or "", _limits(info)))
    return found


def _section(info: FieldInfo) -> type[BaseModel] | None:
    inner = info.annotation
    return inner if isinstance(inner, type) and issubclass(inner, BaseModel) else None


def _limits(info: FieldInfo) -> str:
    if get_origin(info.annotation) is Literal:
        return "one of " + ", ".join(str(choice) for choice in get_args(info.annotation))
    words = []
    for item in info.metadata:
        for kind, sign, attribute in (
            (annotated_types.Gt, ">", "gt"),
            (annotated_types.Ge, ">=", "ge"),
            (annotated_types.Lt, "<", "lt"),
            (annotated_types.Le, "<=", "le"),
        ):
            if isinstance(item, kind):
                words.append(f"{sign} {getattr(item, attribute):g}")
    return " and ".join(words)


def render(model: type[BaseModel] = LocalizerConfig) -> str:
    """The parameter file, in the layout of ROS 2."""
    lines = [f"# {line}".rstrip() for line in HEADER.splitlines()]
    lines += ["/**:", "  ros__parameters:"]
    lines += _comment("The node configures and activates itself; false: a lifecycle manager does.", "", 4)
    lines += [f"    {AUTOSTART}: true"]
    return "\n".join([*lines, *_section_lines(model, 4)]) + "\n"


def _section_lines(model: type[BaseModel], indent: int) -> Iterator[str]:
    pad = " " * indent
    for name, info in model.model_fields.items():
        section = _section(info)
        if section is not None:
            yield ""
            if section.__doc__ and section.__doc__ != (section.__base__ or object).__doc__:
                yield from _comment(inspect.cleandoc(section.__doc__).split("\n\n")[0].replace("\n", " "), "", indent)
            inner = list(_section_lines(section, indent + 2))
            empty = all(line.lstrip().startswith("#") for line in inner)  # a section without a line would be null
            yield f"{pad}{'# ' if empty else ''}{name}:"
            yield from inner
            continue
        default = info.get_default(call_default_factory=True)
        yield from _comment(info.description or "", _limits(info), indent)
        if default == []:  # ROS 2 parameter files cannot hold an empty list
            yield f"{pad}# {name}: [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0]"
        else:
            yield f"{pad}{name}: {_scalar(default)}"


def _comment(text: str, limits: str, indent: int) -> list[str]:
    pad = " " * indent + "# "
    whole = text + (f" [{limits}]".replace(" ", "\0").replace("\0[", " [") if limits else "")  # limits stay on one line
    lines = textwrap.wrap(whole, WIDTH, initial_indent=pad, subsequent_indent=pad, break_on_hyphens=False)
    return [line.replace("\0", " ") for line in lines]


def _scalar(value: Any) -> str:
    """A YAML scalar that YAML 1.1 and rcl read with the right type."""
    if isinstance(value, float):
        text = repr(value)
        return text if "." in text or "e" not in text else text.replace("e", ".0e")
    return yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("\n").removesuffix("...").strip()
