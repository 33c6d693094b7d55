"""A node to try faults on, and everything that it publishes meanwhile.

Several tests share one node. Between them the reset service makes it forget everything but its calibration, and the
totals of before are subtracted.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray
from fault_outcome import RECEIVED, Outcome, totals
from faulty_world import Faults, seconds_of
from geometry_msgs.msg import PoseWithCovarianceStamped
from nav_msgs.msg import Path as PathMessage
from ros_graph import INPUT_TOPICS, Graph, NodeProcess, running_node, wait_until
from sensor_msgs.msg import Image
from std_srvs.srv import Trigger
from tf2_msgs.msg import TFMessage
from vmloc_msgs.msg import LocalizationStatus
from worlds import SECOND, START_NS, mountings, odometry

from vmloc_ros.messages import stamp_ns
from vmloc_ros.ros import qos
from vmloc_ros.types import Event, EventKind

SPEED = 5.0
AHEAD_S = 0.4
"""The sender is at most so much data ahead of the node."""
STATUS_NS = 700_000_000
"""A status is never older than this (`output.heartbeat_s` is 0.5 s) where the node keeps up."""
PROBE_NS = START_NS - 100_000 * SECOND


@dataclass(frozen=True)
class Extra:
    """A message to send at a time of the drive."""

    at_s: float
    kind: EventKind
    message: Any


@dataclass
class FaultBench:
    """A running node, and everything it publishes."""

    graph: Graph
    node: NodeProcess
    folder: Path
    faults: Faults = field(default_factory=Faults)

    def __post_init__(self) -> None:
        collect = self.graph.collect
        self.poses = collect(PoseWithCovarianceStamped, "/localizer/pose")
        self.network = collect(PoseWithCovarianceStamped, "/localizer/network_pose")
        self.tf = collect(TFMessage, "/tf")
        self.statuses = collect(LocalizationStatus, "/localizer/status")
        self.paths = collect(PathMessage, "/localizer/path", qos.latched())
        self.depths = collect(Image, "/localizer/projected_depth")
        self.diagnostics = collect(DiagnosticArray, "/diagnostics")
        self._before: Counter[str] = Counter()
        self._sent: Counter[EventKind] = Counter()
        self._log_begin = self._reports = 0
        self._probes = 0

    def begin(self, faults: Faults | None = None) -> None:
        """A new fault on a node that knows nothing but its calibration."""
        self.faults = faults or Faults()
        self.faults.write(self.folder)
        self._before = self._probe()
        for received in (self.poses, self.network, self.tf, self.statuses, self.paths, self.depths):
            received.clear()
        self._sent.clear()
        self._log_begin = len(self.node.output())
        self._reports = len(self.diagnostics)

    def play(
        self, events: Iterable[Event], speed: float = SPEED, extras: Iterable[Extra] = (), ahead_s: float = AHEAD_S
    ) -> None:
        """Sends a drive (without its mountings, which the node has), and messages that no event can express.

        Args:
            events: in order of arrival.
            speed: a multiple of the drive's own pace.
            extras: sent in between, before the first event that is later.
            ahead_s: of data: the sender waits for a node that is further behind, for a machine that is busy with
                something else makes topics overtake each other, which is not the fault to be tried.
        """
        events = [event for event in events if event.kind is not EventKind.STATIC_TRANSFORM]
        waiting = deque(sorted(extras, key=lambda extra: extra.at_s))
        self._sent.update(item.kind for item in (*events, *waiting))
        self.graph.prepare(events)
        for topic in {INPUT_TOPICS[extra.kind]: extra for extra in waiting}.values():
            self.graph.publisher(type(topic.message), INPUT_TOPICS[topic.kind])
        begin_s = min([seconds_of(events[0]), *(extra.at_s for extra in waiting)])
        started_s = time.monotonic()
        heard_ns = odometry_ns = events[0].stamp_ns
        for event in events:
            while waiting and waiting[0].at_s <= seconds_of(event):
                extra = waiting.popleft()
                time.sleep(max((extra.at_s - begin_s) / speed - (time.monotonic() - started_s), 0.0))
                self.graph.publisher(type(extra.message), INPUT_TOPICS[extra.kind]).publish(extra.message)
            time.sleep(max((seconds_of(event) - begin_s) / speed - (time.monotonic() - started_s), 0.0))
            if event.stamp_ns - heard_ns > ahead_s * SECOND:
                heard_ns = event.stamp_ns
                self._wait_for(self.statuses, event.stamp_ns - STATUS_NS, 3.0)
                self._wait_for(self.poses, odometry_ns - round(ahead_s * SECOND), 0.3)
            if event.kind is EventKind.ODOMETRY:
                odometry_ns = event.stamp_ns
            self.graph.send([event])
        assert not waiting, "an extra is later than the drive"

    @staticmethod
    def _wait_for(outputs: list[Any], stamp: int, patience_s: float) -> None:
        """Until the node has come so far; not for ever, for a fault may silence it."""
        deadline = time.monotonic() + patience_s
        while time.monotonic() < deadline and not (outputs and stamp_ns(outputs[-1].header.stamp) >= stamp):
            time.sleep(0.002)

    def end(self) -> Outcome:
        """Waits until every message was seen and every frame processed, and takes the final counters."""
        mark = len(self.statuses)
        with contextlib.suppress(AssertionError):  # what is missing says more
            wait_until(lambda: self._missing(self.statuses[mark:]) == "", "the end of the work")
        missing = self._missing(self.statuses[mark:])
        assert not missing, missing
        published = [list(x) for x in (self.poses, self.network, self.tf, self.statuses, self.paths, self.depths)]
        after = self._probe()
        after.subtract(self._before)
        after.subtract({"resets": 2, "odometry.wrong_frame": 2})  # the probe's own
        log = self.node.output()[self._log_begin :]
        return Outcome(self.faults, *published, after, Counter(self._sent), log)

    def _missing(self, statuses: list[LocalizationStatus]) -> str:
        """What the node still has to do, by a status that it gives when every input is silent; empty: nothing."""
        silent = [s for s in statuses if s.reason == "every input is silent"]
        if not silent:
            return "a status in the silence after the drive"
        now = totals(silent[-1])
        now.subtract(self._before)
        seen = [now[f"{name}.received"] + now[f"rejected.{kind.value}_not_finite"] for kind, name in RECEIVED.items()]
        sent = [self._sent[kind] for kind in RECEIVED]
        frames = len([s for s in self.statuses if s.is_frame])
        done = now["frames.inferred"] + now["frames.stale"]
        if seen == sent and done == now["frames.paired"] and frames == now["frames.inferred"]:
            return ""
        return f"received {seen} of {sent}, frames {frames}: {dict(now)}"

    def say(self, part: str, counter: str, text: str = "") -> Any:
        """Waits for a line of /diagnostics with a counter that has grown; with `text` it must warn in these words."""

        def found() -> list[Any]:
            grown = [line for line in lines(self.diagnostics, part) if self._grown(line, counter)]
            return [line for line in grown if not text or (line.level[0] in (1, 2) and text in line.message)]

        wait_until(lambda: bool(found()), f"{counter} and {text!r} in the diagnostics of {part}")
        return found()[-1]

    def warn(self, part: str, text: str) -> None:
        """Waits for a line of /diagnostics, since the fault began, that warns in these words."""

        def found() -> bool:
            since = lines(self.diagnostics[self._reports :], part)
            return any(line.level[0] in (1, 2) and text in line.message for line in since)

        wait_until(found, f"{text!r} in the diagnostics of {part}")

    def _grown(self, line: Any, counter: str) -> bool:
        values = {value.key: value.value for value in line.values}
        return int(values.get(counter, 0)) > self._before[counter]

    def _probe(self) -> Counter[str]:
        """The totals with every verdict final.

        A reset makes them final. Two samples of odometry, of a frame that is refused at once, then lead to a heartbeat.
        """
        self._reset()
        self._probes += 1
        stamp = PROBE_NS + self._probes * 10 * SECOND
        stray = [odometry(stamp + k * SECOND, np.eye(4), frame_id="probe") for k in range(2)]
        self.graph.send(stray)

        def answers() -> list[LocalizationStatus]:
            return [
                s for s in self.statuses if s.reason == "no frame" and stamp_ns(s.header.stamp) == stray[1].stamp_ns
            ]

        wait_until(lambda: bool(answers()), "a heartbeat")
        counted = totals(answers()[-1])
        self._reset()
        return counted

    def _reset(self) -> None:
        answer = self.graph.call(Trigger, "/localizer/reset", Trigger.Request())
        assert answer.success, answer.message


def lines(arrays: Iterable[DiagnosticArray], part: str) -> list[Any]:
    """All lines of a part."""
    return [line for array in list(arrays) for line in array.status if line.name == f"localizer: {part}"]


@contextmanager
def fault_bench(folder: Path, parameters: dict[str, Any] | None = None, mounted: bool = True) -> Iterator[FaultBench]:
    """A node in a faulty world, with its mountings unless the test sends them; it must end in order."""
    graph = Graph()
    Faults().write(folder)
    parameters = dict(parameters or {})
    parameters["model"] = {"path": str(folder / "faulty"), **parameters.get("model", {})}
    try:
        with running_node(folder, parameters) as node:
            bench = FaultBench(graph, node, folder)
            node.wait_for("active;")
            if mounted:
                graph.send(mountings())
            yield bench
            assert node.end() == 0, node.output()
            assert "Traceback" not in node.output()
    finally:
        graph.close()
