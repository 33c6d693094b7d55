"""Qualities of service: what is subscribed and published how (REP-2003)."""

from __future__ import annotations

from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy


def sensor(depth: int = 20) -> QoSProfile:
    """Best effort, volatile: matches every publisher, reliable or not."""
    return QoSProfile(history=HistoryPolicy.KEEP_LAST, depth=depth, reliability=ReliabilityPolicy.BEST_EFFORT)


def reliable(depth: int = 10) -> QoSProfile:
    """Reliable, volatile: matches every subscriber that does not ask for history."""
    return QoSProfile(history=HistoryPolicy.KEEP_LAST, depth=depth, reliability=ReliabilityPolicy.RELIABLE)


def latched(depth: int = 1) -> QoSProfile:
    """Reliable and transient local: who comes late still gets the last `depth` messages."""
    return QoSProfile(
        history=HistoryPolicy.KEEP_LAST,
        depth=depth,
        reliability=ReliabilityPolicy.RELIABLE,
        durability=DurabilityPolicy.TRANSIENT_LOCAL,
    )


ODOMETRY_DEPTH = 500
"""Odometry is small and every increment counts: a second of it at 500 Hz may wait."""
