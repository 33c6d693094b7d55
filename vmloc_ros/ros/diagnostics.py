"""What `/diagnostics` says: one line per part of the localizer, with numbers and, where something is wrong, a cure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue

from vmloc_ros.config import FilterConfig, LocalizerConfig, MonitorConfig
from vmloc_ros.geometry import Array
from vmloc_ros.monitor import Difference
from vmloc_ros.odometry_model import prior_variances
from vmloc_ros.ros.conversions import header
from vmloc_ros.ros.flow import FlowReport
from vmloc_ros.types import EventKind, Mode, Status

SILENT_S = 2.0
LOST_SHARE = 0.7
"""A smaller share of what was sent is worth a warning."""
RECENT_REPORTS = 5
"""A rejection stays visible for so many reports (seconds)."""

DEPTH_KINDS = {"points": EventKind.CLOUD, "scan": EventKind.SCAN, "depth": EventKind.DEPTH}
CURE = (
    "the transport loses messages: set FASTDDS_DEFAULT_PROFILES_FILE to vmloc_ros' config/fastdds.xml "
    "in the environment of the *publisher*"
)

AHEAD = (
    "the odometry's stamps are ahead of this node's clock: synchronise the machines' clocks, or set use_sim_time "
    "on all nodes that share a /clock"
)


class Level(IntEnum):
    OK = 0
    WARN = 1
    ERROR = 2
    STALE = 3


@dataclass
class Part:
    """One line: the worst of what was found, and its values."""

    name: str
    level: Level = Level.OK
    message: str = ""
    values: dict[str, str] = field(default_factory=dict)

    def raise_to(self, level: Level, message: str) -> None:
        """Makes the line at least as bad; messages are joined, the worst first."""
        worse = level > self.level
        self.level = max(self.level, level)
        parts = [message, self.message] if worse else [self.message, message]
        self.message = "; ".join(part for part in parts if part)


@dataclass(frozen=True)
class Snapshot:
    """Everything that diagnostics are made of, at one moment.

    Attributes:
        lifecycle: the state's label; `error` is why the last transition failed.
        flows: per input; empty while the node is not active.
        topics: resolved names of the inputs.
        publishers: how many publishers the inputs' topics have.
        difference: of the filter's motion from dead reckoning's, over the monitor's window.
        network: device and the like, in words; `fallback` is why the CPU is used although it was not asked for.
        odometry_model: log scale, heading (rad), yaw bias (rad/m) of the odometry, and their deviations.
        transforms: how far what goes to /tf is from the filter's, where corrections are limited.
        vo: how regularly the network's own odometry comes; None where the node is not active.
    """

    lifecycle: str
    error: str = ""
    flows: Mapping[EventKind, FlowReport] = field(default_factory=dict)
    topics: Mapping[EventKind, str] = field(default_factory=dict)
    publishers: Mapping[EventKind, int] = field(default_factory=dict)
    counters: Mapping[str, int] = field(default_factory=dict)
    problems: Mapping[str, str] = field(default_factory=dict)
    last_status: Status | None = None
    difference: Difference | None = None
    network: Mapping[str, str] = field(default_factory=dict)
    fallback: str | None = None
    latencies_ms: Sequence[float] = ()
    failures: int = 0
    withheld: Mapping[str, int] = field(default_factory=dict)
    odometry_model: tuple[Array, Array] | None = None
    transforms: Mapping[str, str] = field(default_factory=dict)
    vo: FlowReport | None = None


class Diagnostics:
    """Makes the reports; it remembers the last few counters, to tell what goes wrong *now* from what once did."""

    def __init__(self, node_name: str) -> None:
        self._node = node_name
        self._history: list[Mapping[str, int]] = []

    def report(self, snapshot: Snapshot, config: LocalizerConfig | None, stamp_ns: int) -> DiagnosticArray:
        """The message. Without a configuration (not configured yet) there is only the line on the life cycle."""
        parts = [_lifecycle(snapshot)]
        if snapshot.flows and config is not None:
            withheld = {f"withheld.{name}": count for name, count in snapshot.withheld.items()}
            recent = self._recent(dict(snapshot.counters) | withheld | {"worker.failures": snapshot.failures})
            parts += [
                _camera(snapshot, config, recent),
                _depth(snapshot, config, recent),
                _odometry(snapshot, config, recent),
                _network(snapshot, config, recent),
                _filter(snapshot, recent),
                _monitor(snapshot, config.monitor),
                _saved_pose(snapshot, config, recent),
                _transforms(snapshot, recent),
            ]
        else:
            self._history.clear()
        return DiagnosticArray(header=header(stamp_ns, ""), status=[self._message(part) for part in parts])

    def _recent(self, counters: Mapping[str, int]) -> dict[str, int]:
        """How much every counter has grown during the last reports."""
        self._history.append(dict(counters))
        del self._history[: -RECENT_REPORTS - 1]
        before = self._history[0] if len(self._history) > RECENT_REPORTS else {}
        return {name: count - before.get(name, 0) for name, count in counters.items()}

    def _message(self, part: Part) -> DiagnosticStatus:
        return DiagnosticStatus(
            level=bytes([part.level]),
            name=f"{self._node}: {part.name}",
            message=part.message or "ok",
            hardware_id=self._node,
            values=[KeyValue(key=key, value=value) for key, value in part.values.items()],
        )


def _lifecycle(snapshot: Snapshot) -> Part:
    part = Part("lifecycle", message=snapshot.lifecycle, values={"state": snapshot.lifecycle})
    if snapshot.error:
        part.raise_to(Level.ERROR, snapshot.error)
    elif not snapshot.flows:
        part.level = Level.STALE
    return part


def _flow(part: Part, snapshot: Snapshot, kind: EventKind, prefix: str = "", missing: Level = Level.STALE) -> None:
    """Values and level of one input; `missing` is the level when nothing comes."""
    flow, topic = snapshot.flows[kind], snapshot.topics.get(kind, kind.value)
    part.values[f"{prefix}topic"] = topic
    part.values[f"{prefix}received"] = str(flow.count)
    part.values[f"{prefix}rate_hz"] = f"{flow.rate_hz:.2f}"
    if flow.sent_hz is not None:
        part.values[f"{prefix}rate_by_stamps_hz"] = f"{flow.sent_hz:.2f}"
    if flow.delivered is not None:
        part.values[f"{prefix}delivered"] = f"{flow.delivered:.3f}"
    if flow.silent_s is None:
        publishers = snapshot.publishers.get(kind, 0)
        why = f"has {publishers} publisher(s); check QoS and network" if publishers else "has no publisher; remap it"
        part.raise_to(missing, f"nothing has come on {topic}, which {why}")
    elif flow.silent_s > max(SILENT_S, 5.0 / flow.sent_hz if flow.sent_hz else 0.0):
        part.raise_to(missing, f"{topic} has been silent for {flow.silent_s:.1f} s")
    elif flow.delivered is not None and flow.delivered < LOST_SHARE:
        part.raise_to(Level.WARN, f"only {100.0 * flow.delivered:.0f} % of the messages on {topic} arrive: {CURE}")


def _rejections(part: Part, snapshot: Snapshot, recent: Mapping[str, int], prefixes: tuple[str, ...]) -> None:
    """Counted refusals whose names start with one of the prefixes; those of the last seconds raise the level."""
    for name, count in snapshot.counters.items():
        what = name.removeprefix("rejected.")
        if name == what or not what.startswith(prefixes):
            continue
        part.values[name] = str(count)
        if recent.get(name, 0) > 0:
            part.raise_to(Level.WARN, _problem(snapshot.problems, what) or f"{recent[name]} x {what}")


def _problem(problems: Mapping[str, str], what: str) -> str:
    """The words for a counter: of its own name, or of the part that its name begins with."""
    named = (text for part, text in problems.items() if what == part or what.startswith(f"{part}_"))
    return problems.get(what) or next(named, "")


def _camera(snapshot: Snapshot, config: LocalizerConfig, recent: Mapping[str, int]) -> Part:
    part = Part("camera")
    if not config.input.use_image:
        part.message = "not used (input.use_image is off)"
    else:
        _flow(part, snapshot, EventKind.IMAGE)
        _flow(part, snapshot, EventKind.CAMERA_INFO, "camera_info.", Level.WARN)
    _rejections(part, snapshot, recent, ("image", "camera_info"))
    return part


def _depth(snapshot: Snapshot, config: LocalizerConfig, recent: Mapping[str, int]) -> Part:
    part = Part("depth")
    kind = DEPTH_KINDS.get(config.input.depth_source)
    if kind is None:
        part.message = "not used (input.depth_source is none)"
    else:
        _flow(part, snapshot, kind)
    _rejections(part, snapshot, recent, ("depth", "points", "scan"))
    return part


def _odometry(snapshot: Snapshot, config: LocalizerConfig, recent: Mapping[str, int]) -> Part:
    part = Part("odometry", values={"source": config.model.odometry})
    if config.model.odometry == "network":
        _motions(part, snapshot, recent)
    else:
        _flow(part, snapshot, EventKind.ODOMETRY)
        _rejections(part, snapshot, recent, ("odom",))
    for name, count in snapshot.counters.items():
        kind = name.removeprefix("odometry.")
        if kind == name:
            continue
        part.values[name] = str(count)
        if kind != "used" and recent.get(name, 0) > 0:
            part.raise_to(Level.WARN, snapshot.problems.get("odometry", f"{recent[name]} x {kind}"))
    if snapshot.odometry_model is not None:
        _model_of_odometry(part, *snapshot.odometry_model, config.filter)
    return part


def _motions(part: Part, snapshot: Snapshot, recent: Mapping[str, int]) -> None:
    """The network's own odometry, where it is the filter's: its rate, and the holes in it."""
    _motion_counts(part, snapshot)
    silent_s = snapshot.vo.silent_s if snapshot.vo is not None else None
    if silent_s is None:
        part.raise_to(Level.STALE, "the network has told no motion yet: it needs two frames close in time")
    elif silent_s > SILENT_S:
        part.raise_to(Level.STALE, f"the network has told no motion for {silent_s:.1f} s: see camera and network")
    if gaps := recent.get("vo.gaps", 0):
        part.raise_to(
            Level.WARN, f"{gaps} gaps: frames too far apart for the network to compare, or too few for its speed"
        )
    if recent.get("vo.refused", 0) > 0:
        part.raise_to(Level.WARN, snapshot.problems.get("vo") or f"{recent['vo.refused']} motions refused")


def _motion_counts(part: Part, snapshot: Snapshot) -> None:
    """Rate and totals of ~/vo; nothing where the model gives no motions."""
    counts = {name: str(count) for name, count in snapshot.counters.items() if name.startswith(("vo.", "motion."))}
    if snapshot.vo is not None and snapshot.vo.count:
        counts["vo.rate_hz"] = f"{snapshot.vo.rate_hz:.2f}"
    part.values |= counts


def _model_of_odometry(part: Part, model_3: Array, deviations_3: Array, config: FilterConfig) -> None:
    """What the filter has found to be wrong with the odometry all the time; a warning where that is a lot."""
    scale, heading, bias = model_3.tolist()
    scale_sigma, heading_sigma, bias_sigma = deviations_3.tolist()
    part.values |= {
        "scale": f"{math.exp(scale):.4f} +- {scale_sigma:.4f}",
        "heading_deg": f"{math.degrees(heading):.2f} +- {math.degrees(heading_sigma):.2f}",
        "yaw_bias_deg_per_m": f"{math.degrees(bias):.4f} +- {math.degrees(bias_sigma):.4f}",
    }
    priors = np.sqrt(prior_variances(config))
    causes = ("scale: wheel radius, baseline", "heading: mounting of the sensor", "yaw bias: gyroscope, wheel track")
    for value, prior, cause in zip(model_3, priors, causes, strict=True):
        if prior > 0.0 and abs(value) > 3.0 * prior:
            part.raise_to(Level.WARN, f"the odometry is far from what was allowed for ({cause})")


def _network(snapshot: Snapshot, config: LocalizerConfig, recent: Mapping[str, int]) -> Part:
    part = Part("network", values=dict(snapshot.network))
    for name, count in snapshot.counters.items():
        if name.startswith("frames."):
            part.values[name] = str(count)
    if config.model.odometry == "topic":  # else it is the filter's odometry, and stands there
        _motion_counts(part, snapshot)
    if snapshot.latencies_ms:
        p50, p95 = np.percentile(np.array(snapshot.latencies_ms), [50, 95])
        part.values |= {"latency_p50_ms": f"{p50:.1f}", "latency_p95_ms": f"{p95:.1f}"}
    if snapshot.fallback:
        part.raise_to(Level.WARN, f"runs on the CPU: {snapshot.fallback}")
    if "sensors" in snapshot.problems:
        part.raise_to(Level.WARN, snapshot.problems["sensors"])
    if recent.get("frames.stale", 0) > 0:
        part.raise_to(Level.WARN, f"{recent['frames.stale']} frames dropped: the network is slower than the camera")
    if recent.get("frames.no_pose", 0) > 0:
        why = snapshot.problems.get("network") or (snapshot.last_status.reason if snapshot.last_status else "")
        part.raise_to(Level.WARN, f"{recent['frames.no_pose']} frames gave no pose: {why}")
    part.values["failures"] = str(snapshot.failures)
    if recent.get("worker.failures", 0) > 0:
        part.raise_to(Level.ERROR, "processing a frame failed unexpectedly: see the log")
    return part


def _filter(snapshot: Snapshot, recent: Mapping[str, int]) -> Part:
    part = Part("filter")
    status = snapshot.last_status
    mode = status.mode if status is not None else Mode.LOST
    part.values["mode"] = mode.value
    if status is not None:
        part.values["verdict"] = status.verdict.value
    for name, count in [*snapshot.counters.items(), *((f"withheld.{n}", c) for n, c in snapshot.withheld.items())]:
        if name.startswith(("verdict.", "withheld.", "resets", "relocalizations", "widenings", "initialpose")):
            part.values[name] = str(count)
    if mode is Mode.LOST:
        why = snapshot.problems.get("lost", "no pose")
        part.raise_to(*((Level.ERROR, f"lost: {why}") if status is not None else (Level.WARN, "not initialised yet")))
    elif mode is Mode.DEAD_RECKONING:
        part.raise_to(Level.WARN, "dead reckoning: no measurement has been fused lately")
    _rejections(part, snapshot, recent, ("stamp_", "initialpose"))
    if recent.get("relocalizations", 0) > 0:
        part.raise_to(Level.WARN, "re-localized: measurements that agree have moved the pose to another place")
    if recent.get("widenings", 0) > 0:
        part.raise_to(Level.WARN, "widened: the measurements pulled one way for seconds, so the odometry must be wrong")
    if recent.get("verdict.gated", 0) > recent.get("verdict.fused", 0):
        part.raise_to(Level.WARN, "more measurements are gated than fused")
    return part


def _monitor(snapshot: Snapshot, config: MonitorConfig) -> Part:
    part = Part("monitor", values={"exceeded": str(snapshot.counters.get("monitor.exceeded", 0))})
    seen = snapshot.difference
    if seen is None:
        part.message = "nothing to compare yet: it needs a pose and odometry"
        return part
    part.values |= {
        "difference_m": f"{seen.metres:.2f}",
        "difference_rad": f"{seen.radians:.3f}",
        "window_s": f"{seen.span_s:.2f}",
    }
    if seen.metres > config.max_difference_m or seen.radians > config.max_difference_rad:
        part.raise_to(
            Level.WARN,
            f"in {seen.span_s:.1f} s the pose moved {seen.metres:.1f} m and {seen.radians:.2f} rad otherwise than the "
            f"odometry ({config.max_difference_m:g} m and {config.max_difference_rad:g} rad are allowed): measurements "
            "or the odometry are wrong, or it has just been found",
        )
    return part


def _saved_pose(snapshot: Snapshot, config: LocalizerConfig, recent: Mapping[str, int]) -> Part:
    part = Part("saved pose")
    if not config.saved_pose.path:
        part.message = "not used (saved_pose.path is empty)"
        return part
    part.values["path"] = config.saved_pose.path
    for name, count in snapshot.counters.items():
        if name.startswith("saved_pose."):
            part.values[name.removeprefix("saved_pose.")] = str(count)
    for kind, word in (("refused", "refusal"), ("failed", "failure")):
        text = snapshot.problems.get(f"saved_pose_{kind}", "")
        if text:
            part.values[word] = text
        if recent.get(f"saved_pose.{kind}", 0) > 0:
            part.raise_to(Level.WARN, text or f"{recent[f'saved_pose.{kind}']} x {kind}")
    return part


def _transforms(snapshot: Snapshot, recent: Mapping[str, int]) -> Part:
    part = Part("transforms", values=dict(snapshot.transforms))
    if ahead := recent.get("withheld.future", 0):
        part.raise_to(Level.WARN, f"{ahead} transforms withheld: {AHEAD}")
    for text in _transform_problems(snapshot.problems):
        part.raise_to(Level.ERROR, text)
    _rejections(part, snapshot, recent, ("static_transform", "tf_static"))
    return part


def _transform_problems(problems: Mapping[str, str]) -> Iterator[str]:
    if "transforms" in problems:
        yield problems["transforms"]
    elif problems.get("depth", "").startswith("no transform"):
        yield problems["depth"]
