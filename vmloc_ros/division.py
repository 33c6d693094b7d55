"""Where a recording is cut into parts that can be walked through one by one, with the frames of one walk."""

from __future__ import annotations

import numpy as np

from vmloc_ros.assembly import BUILT_BEFORE_NS
from vmloc_ros.config import LocalizerConfig
from vmloc_ros.datasets.base import Recording
from vmloc_ros.datasets.parts import WHOLE, Part
from vmloc_ros.pairing import NANOSECONDS, SILENT_FACTOR
from vmloc_ros.types import EventKind

PART_NS = 30 * NANOSECONDS
"""Length of a part: short enough that a preparation that is killed loses little."""
PART_LEADS = 10
"""A part is at least so many times as long as what is read around it."""
UNUSUAL_GAP = 3.0
"""A stream with a gap of so many times its usual interval is not cut there."""


def divide(recording: Recording, config: LocalizerConfig) -> list[Part]:
    """Parts of about `PART_NS`, cut only where every stream runs evenly, so that a walk that begins there is soon in
    the state of one from the start. One part where the recording cannot be walked in parts or has no images."""
    timeline = recording.timeline()
    images = timeline.get(EventKind.IMAGE, np.empty(0, dtype=np.int64))
    if not len(images) or not config.input.use_image:
        return [WHOLE]
    window_s, overdue_s = config.projection.window_s, config.pairing.overdue_s
    lead_ns = round((2.0 * (window_s + overdue_s) + SILENT_FACTOR * overdue_s) * NANOSECONDS) + BUILT_BEFORE_NS
    trail_ns = round((window_s + 2.0 * overdue_s) * NANOSECONDS)
    part_ns = max(PART_NS, PART_LEADS * (lead_ns + trail_ns))
    streams = [
        (stamps, max(overdue_s * NANOSECONDS, UNUSUAL_GAP * float(np.median(np.diff(stamps)))))
        for stamps in timeline.values()
        if len(stamps) > 1
    ]

    def even(cut_ns: int) -> bool:
        for stamps, gap_ns in streams:
            first = int(np.searchsorted(stamps, cut_ns - lead_ns)) - 1
            last = int(np.searchsorted(stamps, cut_ns + trail_ns)) + 1
            if first < 0 or last > len(stamps) or float(np.diff(stamps[first:last]).max(initial=0)) > gap_ns:
                return False
        return True

    cuts = [int(images[0])]
    for stamp_ns in images.tolist():
        if stamp_ns >= cuts[-1] + part_ns and even(stamp_ns):
            cuts.append(stamp_ns)
    begins, ends = [WHOLE.begin_ns, *cuts[1:]], [*cuts[1:], WHOLE.end_ns]
    return [Part(begin, end, lead_ns, trail_ns) for begin, end in zip(begins, ends, strict=True)]
