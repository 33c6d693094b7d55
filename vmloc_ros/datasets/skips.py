"""What a recording left out: counted by reason, with the first of each named."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vmloc_ros.datasets.parts import WHOLE, Part
from vmloc_ros.errors import DatasetError

log = logging.getLogger(__name__)

NAMED = 3
"""So many of a reason are named, the others only counted."""
MAX_BROKEN_SHARE = 0.01
"""More files that are missing or unusable are not data to learn from or to judge by."""


@dataclass(frozen=True, slots=True)
class Skip:
    """What was left out for one reason.

    Attributes:
        count: how many.
        names: the first of them, at most `NAMED`.
        broken: whether these are files (in a bag, messages) that are missing or unusable. Frames without truth, INS
            rows of an outage and the like are not.
    """

    count: int
    names: tuple[str, ...]
    broken: bool = False

    def and_then(self, later: Skip) -> Skip:
        """Both together."""
        return Skip(self.count + later.count, (*self.names, *later.names)[:NAMED], self.broken or later.broken)


class Skips:
    """Counts by reason. Reasons met while the folder is listed stay; those of one walk are forgotten by `restart`."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._part = WHOLE
        self._logged: set[str] = set()
        self._kept: dict[str, Skip] = {}
        self._walked: dict[str, Skip] = {}

    def add(self, reason: str, name: str, count: int = 1, *, broken: bool = False, stamp_ns: int | None = None) -> None:
        """Counts; `name` is logged when the reason is new.

        Args:
            reason: the same words for all that are counted together.
            name: of the first, so that somebody can look at it.
            broken: see `Skip`.
            stamp_ns: what lies outside the part that is walked through is not counted: it is another part's.
        """
        if stamp_ns is not None and not self._part.holds(stamp_ns):
            return
        if reason not in self._logged:
            self._logged.add(reason)
            log.warning("%s: %s: %s; more are only counted", self._source, reason, name)
        self.take({reason: Skip(count, (name,), broken)})

    def take(self, skips: Mapping[str, Skip]) -> None:
        """Counts what another walk, through a later part, has left out."""
        for reason, skip in skips.items():
            known = self._walked.get(reason)
            self._walked[reason] = skip if known is None else known.and_then(skip)

    def keep(self) -> None:
        """What was counted so far belongs to the folder, not to a walk through it."""
        self._kept = self.everything()
        self._walked = {}

    def restart(self, part: Part = WHOLE) -> None:
        """A new walk begins, through a part of the recording."""
        self._part = part
        self._walked = {}

    def walked(self) -> dict[str, Skip]:
        """What the walk left out, by reason."""
        return dict(self._walked)

    def everything(self) -> dict[str, Skip]:
        """What the listing and the walk left out, by reason."""
        result = dict(self._kept)
        for reason, skip in self._walked.items():
            result[reason] = result[reason].and_then(skip) if reason in result else skip
        return result

    def by_reason(self) -> dict[str, int]:
        """`{"<reason> (first: <name>)": count}`."""
        return {f"{reason} (first: {skip.names[0]})": skip.count for reason, skip in self.everything().items()}


@dataclass(frozen=True, slots=True)
class LeftOut:
    """What a recording left out, and how many files (in a bag, messages) it promises."""

    recording: str
    files: int
    skips: dict[str, Skip]


def too_broken(recordings: Sequence[LeftOut]) -> bool:
    """Whether more than `MAX_BROKEN_SHARE` of all files are missing or unusable."""
    broken, total = _broken_and_all(recordings)
    return broken > MAX_BROKEN_SHARE * total


def _broken_and_all(recordings: Sequence[LeftOut]) -> tuple[int, int]:
    broken = sum(skip.count for item in recordings for skip in item.skips.values() if skip.broken)
    return broken, sum(item.files for item in recordings)


def refuse_broken(recordings: Sequence[LeftOut], allow: bool) -> None:
    """Refuses recordings with too many broken files.

    Args:
        allow: say nothing.

    Raises:
        DatasetError: over `MAX_BROKEN_SHARE` of all files are missing or unusable; counts them and names the first.
    """
    if allow or not too_broken(recordings):
        return
    broken, total = _broken_and_all(recordings)
    parts = [
        f"{item.recording}: {skip.count} {reason} ({', '.join(skip.names)}{', ...' * (skip.count > len(skip.names))})"
        for item in recordings
        for reason, skip in item.skips.items()
        if skip.broken
    ]
    raise DatasetError(
        f"{broken} of {total} files are missing or unusable ({100.0 * broken / max(total, 1):.1f} %, allowed is "
        f"{100.0 * MAX_BROKEN_SHARE:g} %): {'; '.join(parts)}; restore them, or go on without them by --allow-missing"
    )
