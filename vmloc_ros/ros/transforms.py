"""What goes to /tf, and what never does: a repeated stamp, a stamp that goes backwards, a number that is not finite.

The TFMessage is published directly (tf2_ros does no more in Python), so the node is the same where tf2_ros is missing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
from geometry_msgs.msg import TransformStamped
from tf2_msgs.msg import TFMessage

from vmloc_ros.config import FrameNames, OutputConfig
from vmloc_ros.geometry import Array
from vmloc_ros.ros.conversions import transform_message
from vmloc_ros.types import FusedState, OdometrySample


class TransformSender:
    """Sends map -> odom (or map -> base) with the odometry's stamps, and odom -> base where it is asked for.

    Attributes:
        withheld: transforms that were not sent, by reason (`not_finite`, `stamp`).
    """

    def __init__(self, publish: Callable[[TFMessage], None], frames: FrameNames, output: OutputConfig) -> None:
        self._publish = publish
        self._frames = frames
        self._output = output
        self._last_ns: dict[str, int] = {}
        self.withheld: Counter[str] = Counter()

    def clear(self) -> None:
        """Forgets the stamps: the data's clock has started over."""
        self._last_ns.clear()

    def send(self, states: list[FusedState], sample: OdometrySample | None = None) -> None:
        """Sends what an odometry sample has given: the fused state, and the sample itself if it is to be broadcast.

        A transform of a frame is withheld while its stamp does not advance: tf2 would warn of repeated data.
        """
        transforms: list[TransformStamped] = []
        frames, kind = self._frames, self._output.publish_tf
        for state in states:
            if kind == "map_odom":
                self._append(transforms, state.stamp_ns, frames.map, frames.odom, state.T_map_odom)
            elif kind == "map_base":
                self._append(transforms, state.stamp_ns, frames.map, frames.base, state.T_map_base)
        if sample is not None and self._output.publish_odom_tf and kind != "map_base":
            ours = sample.frame_id == frames.odom and sample.child_frame_id == frames.base
            if ours:
                self._append(transforms, sample.stamp_ns, frames.odom, frames.base, sample.T_odom_base)
        if transforms:
            self._publish(TFMessage(transforms=transforms))

    def _append(self, transforms: list[TransformStamped], stamp_ns: int, parent: str, child: str, T: Array) -> None:
        if not np.isfinite(T).all():
            self.withheld["not_finite"] += 1
        elif stamp_ns <= self._last_ns.get(child, 0):
            self.withheld["stamp"] += 1
        else:
            self._last_ns[child] = stamp_ns
            transforms.append(transform_message(stamp_ns, parent, child, T))
