"""What goes to /tf, and what never does: a stamp repeated, going backwards or from the future; a number that is not
finite.

The TFMessage is published directly (tf2_ros does no more in Python), so the node is the same where tf2_ros is missing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
from geometry_msgs.msg import TransformStamped
from tf2_msgs.msg import TFMessage

from vmloc_ros.config import LocalizerConfig
from vmloc_ros.geometry import Array
from vmloc_ros.map_odom_limit import MapOdomLimit
from vmloc_ros.ros.conversions import transform_message
from vmloc_ros.types import FusedState, OdometrySample

NANOSECONDS = 1_000_000_000
LATE_NS = NANOSECONDS // 2
"""After a reset a stamp that is older by no more than this is a message that came late, not a clock that was set back:
the clocks of the pipeline and of the filter start over from seconds earlier only."""


class TransformSender:
    """Sends map -> odom (or map -> base) with the odometry's stamps, and odom -> base where it is asked for.

    Attributes:
        withheld: transforms that were not sent, by reason (`not_finite`, `stamp`, `future`).
        limit: what holds back the corrections of `map -> odom`.
    """

    def __init__(
        self, publish: Callable[[TFMessage], None], config: LocalizerConfig, now_ns: Callable[[], int]
    ) -> None:
        """
        Args:
            publish: publishes on /tf.
            config: frames, and what is to be sent.
            now_ns: the node's clock (/clock under `use_sim_time`); 0 as long as it does not run.
        """
        self._publish = publish
        self._frames = config.frames
        self._output = config.output
        self._now_ns = now_ns
        self._future_ns = round(config.output.future_tolerance_s * NANOSECONDS)
        self._last_ns: dict[str, int] = {}
        self._starting_over: set[str] = set()
        self._interrupted = False
        self.withheld: Counter[str] = Counter()
        self.limit = MapOdomLimit(
            config.output.max_correction_m_per_s,
            config.output.max_correction_rad_per_s,
            config.filter.lost_odometry_gap_s,
        )

    def clear(self) -> None:
        """The localization starts over: the first pose is shown at once, and its stamp may be one from long ago."""
        self._starting_over = set(self._last_ns)
        self.interrupt()

    def interrupt(self) -> None:
        """The robot is lost, and nothing is sent: the next pose is shown at once. May be called from any thread."""
        self._interrupted = True

    def send(self, states: list[FusedState], sample: OdometrySample | None = None, bridged: bool = False) -> None:
        """Sends what an odometry sample has given: the fused state, and the sample itself if it is to be broadcast.

        A transform of a frame is withheld while its stamp does not advance: tf2 would warn of repeated data.

        Args:
            states: the filter's.
            sample: the odometry, where odom -> base is asked for.
            bridged: the filter did not believe the increment that led to the states (`Outputs.bridged`).
        """
        if states and self._interrupted:
            self._interrupted = False
            self.limit.reset()
        transforms: list[TransformStamped] = []
        frames, kind = self._frames, self._output.publish_tf
        if kind != "none":
            child = frames.odom if kind == "map_odom" else frames.base
            for state in states:
                if self._fit(state.stamp_ns, child, state.T_map_odom, state.T_map_base):
                    shown = self.limit.follow(state, bridged)
                    T = shown.T_map_odom if kind == "map_odom" else shown.T_map_base
                    transforms.append(self._message(state.stamp_ns, frames.map, child, T))
        if sample is not None and self._output.publish_odom_tf and kind != "map_base":
            ours = sample.frame_id == frames.odom and sample.child_frame_id == frames.base
            if ours and self._fit(sample.stamp_ns, frames.base, sample.T_odom_base):
                transforms.append(self._message(sample.stamp_ns, frames.odom, frames.base, sample.T_odom_base))
        if transforms:
            self._publish(TFMessage(transforms=transforms))

    def values(self) -> dict[str, str]:
        """For diagnostics: how far what is sent is from the filter's; empty where corrections are not limited."""
        if not (self._output.max_correction_m_per_s or self._output.max_correction_rad_per_s):
            return {}
        return {
            "correction_pending_m": f"{self.limit.pending_m:.3f}",
            "correction_pending_rad": f"{self.limit.pending_rad:.4f}",
            "corrections_at_once": str(self.limit.at_once),
        }

    def _fit(self, stamp_ns: int, child: str, *poses: Array) -> bool:
        """Whether a frame's transform may be sent; counts why not."""
        now_ns = self._now_ns()
        if not all(np.isfinite(T).all() for T in poses):
            self.withheld["not_finite"] += 1
        elif not self._advances(stamp_ns, child):
            self.withheld["stamp"] += 1
        elif now_ns > 0 and stamp_ns > now_ns + self._future_ns:
            self.withheld["future"] += 1
        else:
            return True
        return False

    def _advances(self, stamp_ns: int, child: str) -> bool:
        last_ns = self._last_ns.get(child, 0)
        return stamp_ns > last_ns or (child in self._starting_over and 0 < stamp_ns < last_ns - LATE_NS)

    def _message(self, stamp_ns: int, parent: str, child: str, T: Array) -> TransformStamped:
        self._last_ns[child] = stamp_ns
        self._starting_over.discard(child)
        return transform_message(stamp_ns, parent, child, T)
