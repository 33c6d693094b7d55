"""The filter's history: events of a sliding window in order of stamp, and what the filter knew after each.

An event may be inserted anywhere in the window; everything after it is then stepped through again.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable
from dataclasses import dataclass

from vmloc_ros.config import FilterConfig
from vmloc_ros.increments import OdometryVerdict, Segment
from vmloc_ros.moment import Key, Moment
from vmloc_ros.replay import Replay
from vmloc_ros.trajectory import NANOSECONDS
from vmloc_ros.types import InitialPose, MeasurementResult, OdometrySample, PoseMeasurement, Verdict

MAX_EVENTS = 20_000
"""A flood of events (a sensor at 10 kHz) shortens the window rather than filling the memory."""

ODOMETRY, MEASUREMENT, POSE = 0, 1, 2
"""Ranks: at the same stamp odometry comes first, so that a measurement updates the state at that sample; a pose
set by hand has the last word."""


@dataclass(slots=True, eq=False)
class Node:
    """An event and what the filter knew after it.

    Attributes:
        key: (stamp, rank, source, content): the order of events.
        event: the payload.
        after: the moment after the event.
        segment: for odometry, the increment from the sample before.
        result: for a measurement, what became of it.
        adopted: keys of earlier measurements that this one brought in (start, re-localization).
        adopter: the node that brought this one in.
        final: its verdict has been counted.
        started_over: it came with a clock that had jumped.
    """

    key: Key
    stamp_ns: int
    event: OdometrySample | InitialPose | PoseMeasurement
    after: Moment | None = None
    segment: Segment | None = None
    result: MeasurementResult | None = None
    adopted: tuple[Node, ...] = ()
    adopter: Node | None = None
    final: bool = False
    started_over: bool = False

    @property
    def odometry_verdict(self) -> OdometryVerdict:
        """What became of the increment that leads to an odometry sample."""
        if self.started_over:
            return OdometryVerdict.CLOCK_RESET
        if self.segment is None or self.after is None:
            return OdometryVerdict.USED
        return self.after.verdict

    @property
    def verdict(self) -> Verdict:
        """What became of a measurement; one that never found enough others to start from was as good as gated."""
        if self.adopter is not None:
            return Verdict.FUSED
        verdict = self.result.verdict if self.result else Verdict.PENDING
        return Verdict.GATED if verdict is Verdict.PENDING else verdict


class History:
    """Sorted events of the last `window_s` seconds; the first one may be older and only carries the state."""

    def __init__(self, config: FilterConfig, finalise: Callable[[Node], None]) -> None:
        """
        Args:
            config: the window's length and the filter's parameters.
            finalise: told every event that leaves the window.
        """
        self._window_ns = round(config.window_s * NANOSECONDS)
        self._config = config
        self._replay = Replay(config)
        self._finalise = finalise
        self._nodes: list[Node] = []
        self._keys: list[Key] = []

    def __len__(self) -> int:
        return len(self._nodes)

    @property
    def newest_ns(self) -> int | None:
        return self._nodes[-1].stamp_ns if self._nodes else None

    @property
    def window_begin_ns(self) -> int | None:
        """Events older than this are too old."""
        if not self._nodes:
            return None
        begin_ns = self._nodes[-1].stamp_ns - self._window_ns
        anchor = self._nodes[0]
        return max(begin_ns, anchor.stamp_ns + 1) if anchor.final else begin_ns

    def newest(self) -> Moment | None:
        """What is known after everything."""
        return self._nodes[-1].after if self._nodes else None

    def newest_odometry(self) -> Moment | None:
        """What is known at the newest odometry sample, after the measurements of the same stamp."""
        latest: Node | None = None
        for node in reversed(self._nodes):
            if latest is None or node.stamp_ns < latest.stamp_ns:
                latest = node
            if node.key[1] == ODOMETRY:
                return latest.after
        return None

    def find(self, key: Key) -> Node | None:
        """The event of this key."""
        index = bisect.bisect_left(self._keys, key)
        return self._nodes[index] if index < len(self._keys) and self._keys[index] == key else None

    def odometry_at(self, stamp_ns: int) -> Node | None:
        """The odometry sample of exactly this stamp."""
        return self.find((stamp_ns, ODOMETRY, "", b""))

    def insert(self, node: Node) -> None:
        """Puts an event in its place and steps through everything after it. It must be neither too old nor known."""
        keys = self._keys
        if not keys or node.key > keys[-1]:
            index = len(keys)
            keys.append(node.key)
            self._nodes.append(node)
        else:
            index = bisect.bisect_left(keys, node.key)
            keys.insert(index, node.key)
            self._nodes.insert(index, node)
        self._step_from(self._affected(index))
        self._trim()

    def replace_sample(self, node: Node, sample: OdometrySample) -> None:
        """Gives an odometry node another content."""
        node.event, node.segment = sample, None
        index = bisect.bisect_left(self._keys, node.key)
        for later in self._nodes[index + 1 :]:
            if later.key[1] == ODOMETRY:
                later.segment = None
                break
        self._step_from(self._affected(index))

    def _affected(self, index: int) -> int:
        """A new odometry sample also changes the measurements since the sample before: they interpolate to it."""
        if self._nodes[index].key[1] == ODOMETRY:
            while index > 0 and self._nodes[index - 1].key[1] != ODOMETRY and not self._nodes[index - 1].final:
                index -= 1
        return index

    def _step_from(self, start: int) -> None:
        nodes, replay = self._nodes, self._replay
        moment = nodes[start - 1].after if start else Moment(nodes[0].stamp_ns, still_ns=nodes[0].stamp_ns)
        assert moment is not None
        upcoming = start - 1  # the next odometry node after the one at hand
        for k in range(start, len(nodes)):
            node = nodes[k]
            event = node.event
            if isinstance(event, OdometrySample):
                moment = replay.odometry(moment, event, self._segment(node, moment.sample))
            else:
                if upcoming < k:
                    upcoming = self._next_odometry(k)
                segment = self._segment(nodes[upcoming], moment.sample) if upcoming < len(nodes) else None
                moment = self._measure(node, replay.advance(moment, node.stamp_ns, segment))
            node.after = moment

    def _next_odometry(self, index: int) -> int:
        for k in range(index + 1, len(self._nodes)):
            if self._nodes[k].key[1] == ODOMETRY:
                return k
        return len(self._nodes)

    def _segment(self, node: Node, begin: OdometrySample | None) -> Segment | None:
        """The increment from the sample before to the one of this node, made once as long as neither changes."""
        if begin is None:
            node.segment = None
        elif node.segment is None or node.segment.begin is not begin:
            assert isinstance(node.event, OdometrySample)
            node.segment = Segment(begin, node.event, self._config)
        return node.segment

    def _measure(self, node: Node, moment: Moment) -> Moment:
        for other in node.adopted:
            if other.adopter is node:  # else one that comes earlier has just taken it
                other.adopter = None
        node.adopted = ()
        if isinstance(node.event, InitialPose):
            node.result = MeasurementResult(Verdict.FUSED, "set by hand")
            return self._replay.set_pose(moment, node.event)
        assert isinstance(node.event, PoseMeasurement)
        moment, node.result, keys = self._replay.measure(moment, node.event, node.key)
        if keys:
            node.adopted = tuple(other for other in map(self.find, keys) if other is not None and not other.final)
            for other in node.adopted:
                other.adopter = node
        return moment

    def _trim(self) -> None:
        """Finalises what has left the window, and forgets it but for the last one, which carries the state."""
        nodes = self._nodes
        begin_ns = nodes[-1].stamp_ns - self._window_ns
        if len(nodes) > 1 and (nodes[1].stamp_ns < begin_ns or len(nodes) > MAX_EVENTS):
            last = bisect.bisect_left(self._keys, (begin_ns,)) - 1
            self._drop(max(last, len(nodes) - MAX_EVENTS))
        elif nodes[0].stamp_ns < begin_ns and not nodes[0].final:
            self._drop(0)

    def _drop(self, last: int) -> None:
        for node in self._nodes[: last + 1]:
            if not node.final:
                node.final = True
                self._finalise(node)
        del self._nodes[:last], self._keys[:last]

    def flush(self) -> None:
        """Finalises everything; the state stays."""
        if self._nodes:
            self._drop(len(self._nodes) - 1)

    def clear(self) -> None:
        """Finalises everything and forgets it."""
        self.flush()
        self._nodes.clear()
        self._keys.clear()

    def at(self, stamp_ns: int) -> Moment | None:
        """What is known at a stamp after everything up to it (coasting at the end); None before the window."""
        index = bisect.bisect_left(self._keys, (stamp_ns + 1,)) - 1
        if index < 0:
            return None
        moment = self._nodes[index].after
        assert moment is not None
        if moment.stamp_ns == stamp_ns:
            return moment
        upcoming = self._next_odometry(index)
        segment = self._segment(self._nodes[upcoming], moment.sample) if upcoming < len(self._nodes) else None
        return self._replay.advance(moment, stamp_ns, segment)
