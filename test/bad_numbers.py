"""Messages with one number that is none, at every place where a message holds a number."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

from rclpy.serialization import deserialize_message

from vmloc_ros.bag_messages import MessageBuilder
from vmloc_ros.bag_writer import typestore
from vmloc_ros.ros.player import message_class
from vmloc_ros.types import Event, EventKind

BAD = (float("nan"), float("inf"), float("-inf"), 1e308)
HUGE_FLOAT32 = 3e38


def message_of(event: Event) -> Any:
    """The message of an event, as rclpy has it; a mounting is the only one of its TFMessage."""
    build = MessageBuilder(typestore().types)
    if event.kind is EventKind.STATIC_TRANSFORM:
        name, content = build.transforms(event.stamp_ns, [event.payload])
    else:
        name, content = build.event(event)
    return deserialize_message(bytes(typestore().serialize_cdr(content, name)), message_class(name))


def spoiled_messages(message: Any, chosen: Callable[[str], bool] = lambda place: True) -> Iterator[tuple[str, Any]]:
    """Copies of a message with one bad number each, with its place (`pose.pose.position.x`, `k[3]`).

    Args:
        message: a good one.
        chosen: whether a place is wanted.
    """
    for place in places(message):
        if chosen(place):
            for value in BAD:
                spoiled = copy.deepcopy(message)
                put(spoiled, place, value)
                yield f"{place}={value}", spoiled


def places(message: Any, prefix: str = "") -> Iterator[str]:
    """Where a message holds floating point numbers."""
    for name, kind in message.get_fields_and_field_types().items():
        value = getattr(message, name)
        if kind in ("double", "float"):
            yield prefix + name
        elif kind.startswith(("double[", "float[", "sequence<double", "sequence<float")):
            yield from (f"{prefix}{name}[{index}]" for index in range(len(value)))
        elif hasattr(value, "get_fields_and_field_types"):
            yield from places(value, f"{prefix}{name}.")


def put(message: Any, place: str, value: float) -> None:
    """Sets the number at a place; a float32 gets the largest that it can hold."""
    *path, last = place.split(".")
    for name in path:
        message = getattr(message, name)
    name, _, index = last.partition("[")
    if "float" in message.get_fields_and_field_types()[name] and value == BAD[-1]:
        value = HUGE_FLOAT32
    if index:
        getattr(message, name)[int(index[:-1])] = value
    else:
        setattr(message, name, value)
