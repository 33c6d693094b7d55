"""What a recording left out: counted by reason, with the first of each named."""

from __future__ import annotations

import logging

log = logging.getLogger(__name__)


class Skips:
    """Counts by reason. Reasons met while the folder is listed stay; those of one walk are forgotten by `restart`."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._first: dict[str, str] = {}
        self._counts: dict[str, int] = {}
        self._kept: dict[str, int] = {}

    def add(self, reason: str, first: str, count: int = 1) -> None:
        """Counts; `first` is named (and logged) when the reason is new."""
        if reason not in self._first:
            self._first[reason] = first
            log.warning("%s: %s: %s; more are only counted", self._source, reason, first)
        self._counts[reason] = self._counts.get(reason, 0) + count

    def keep(self) -> None:
        """What was counted so far belongs to the folder, not to a walk through it."""
        self._kept = dict(self._counts)

    def restart(self) -> None:
        """A new walk begins."""
        self._counts = dict(self._kept)

    def by_reason(self) -> dict[str, int]:
        """`{"<reason> (first: <name>)": count}`."""
        return {f"{reason} (first: {self._first[reason]})": count for reason, count in self._counts.items()}
