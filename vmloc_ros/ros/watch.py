"""`vmloc watch`: the localizer's diary in the terminal, as it is written."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from rclpy.executors import SingleThreadedExecutor
from vmloc_msgs.msg import LocalizationStatus

from vmloc_ros.errors import ConfigError, MessageError
from vmloc_ros.ros import qos
from vmloc_ros.ros.player import ros_node
from vmloc_ros.ros.profile import use_dds_profile
from vmloc_ros.ros.signals import StopRequest
from vmloc_ros.run_outputs import status_from_message
from vmloc_ros.trajectory import NANOSECONDS
from vmloc_ros.types import Status

DEPTH = 200
SPIN_S = 0.1


@dataclass(frozen=True)
class Sight:
    """One status in a few numbers; position in the map (m), heading (deg), `sigma_m` the largest position deviation."""

    stamp_ns: int
    mode: str
    verdict: str
    is_frame: bool
    x_m: float | None
    y_m: float | None
    z_m: float | None
    heading_deg: float | None
    sigma_m: float | None
    latency_ms: float

    def line(self) -> str:
        """For a person."""
        head = f"{self.stamp_ns / NANOSECONDS:.3f}  {self.mode:14s} {self.verdict:9s}"
        if self.x_m is None or self.y_m is None or self.heading_deg is None:
            return f"{head} no pose"
        return (
            f"{head} x {self.x_m:8.2f} m  y {self.y_m:8.2f} m  heading {self.heading_deg:6.1f} deg  "
            f"sigma {self.sigma_m:5.2f} m  latency {self.latency_ms:4.0f} ms"
        )

    def json(self) -> str:
        """For a program: one line."""
        return json.dumps({name: getattr(self, name) for name in self.__dataclass_fields__}, allow_nan=False)


def sight(status: Status) -> Sight:
    """The few numbers of a status."""
    x = y = z = heading_deg = sigma_m = None
    if status.state is not None:
        x, y, z = (float(value) for value in status.state.T_map_base[:3, 3])
        forward = status.state.T_map_base[:3, 0]
        heading_deg = math.degrees(math.atan2(float(forward[1]), float(forward[0])))
        sigma_m = math.sqrt(max(0.0, float(np.linalg.eigvalsh(status.state.cov_66[:3, :3]).max())))
    return Sight(
        status.stamp_ns,
        status.mode.value,
        status.verdict.value,
        status.key is not None,
        x,
        y,
        z,
        heading_deg,
        sigma_m,
        status.latency_ms,
    )


def run_watch(
    topic: str = "/localizer/status",
    as_json: bool = False,
    duration_s: float | None = None,
    tell: Callable[[str], None] = print,
) -> int:
    """Prints a line for every status until SIGINT or SIGTERM (or for `duration_s`); returns how many.

    Args:
        topic: of type vmloc_msgs/LocalizationStatus.
        as_json: one JSON object per line instead of words.
        duration_s: how long; None: until a signal.
        tell: takes the lines.

    Raises:
        ConfigError: the duration is not positive.
    """
    if duration_s is not None and duration_s <= 0.0:
        raise ConfigError(f"duration: must be positive, not {duration_s} s")
    use_dds_profile()
    count = 0

    def on_status(message: LocalizationStatus) -> None:
        nonlocal count
        try:
            seen = sight(status_from_message(message))
        except (MessageError, ValueError) as error:
            tell(f"a status cannot be read: {error}")
            return
        count += 1
        tell(seen.json() if as_json else seen.line())

    with StopRequest() as stop, ros_node("vmloc_watch") as node:
        node.create_subscription(LocalizationStatus, topic, on_status, qos.reliable(DEPTH))
        executor = SingleThreadedExecutor(context=node.context)
        executor.add_node(node)
        deadline_s = math.inf if duration_s is None else time.monotonic() + duration_s
        while not stop.is_set() and time.monotonic() < deadline_s:
            executor.spin_once(timeout_sec=SPIN_S)
        executor.shutdown()
    return count
