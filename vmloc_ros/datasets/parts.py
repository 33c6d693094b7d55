"""A part of a recording's time, with what has to be read around it so that its frames come out as in one walk."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Part:
    """Frames stamped from `begin_ns` up to, but not including, `end_ns`.

    Attributes:
        begin_ns, end_ns: whose frames, and whose faults, belong to the part.
        lead_ns, trail_ns: what is read before and after: windows of clouds, odometry, partners that come late.
    """

    begin_ns: int = -(2**63)
    end_ns: int = 2**63
    lead_ns: int = 0
    trail_ns: int = 0

    def holds(self, stamp_ns: int) -> bool:
        """Whether something of this stamp belongs to the part."""
        return self.begin_ns <= stamp_ns < self.end_ns

    def reads(self, stamp_ns: int) -> bool:
        """Whether a walk through the part meets it."""
        return self.begin_ns - self.lead_ns <= stamp_ns < self.end_ns + self.trail_ns


WHOLE = Part()
