"""Which messages make up a frame, and when to stop waiting for the rest.

A frame goes out when its partner has come, or when the partner is overdue, with what there is. All waiting is measured
on data time (the newest stamp of any topic), so that a replay at any speed, or without a clock, decides the same.
"""

from __future__ import annotations

from bisect import bisect_left, insort

from vmloc_ros.config import LocalizerConfig
from vmloc_ros.types import FrameKey

NANOSECONDS = 1_000_000_000
MEMORY_NS = 30 * NANOSECONDS
"""How long stamps are remembered; longer than any window that makes sense."""
DEPTH_ONLY_INTERVAL_NS = 90_000_000
"""Frames without an image are at least this far apart: a planar scanner sends 50 scans a second."""

SILENT_FACTOR = 4
"""A depth topic that is silent for so many times `overdue_s` is not waited for at all, until it speaks again."""


def _nanoseconds(seconds: float) -> int:
    return round(seconds * NANOSECONDS)


class Pairing:
    """Turns the stamps of images and depth messages into frame keys.

    `depth_source` points or scan: a frame takes every cloud within the window before (`past`) or on both sides of
    (`around`) the image. depth: it takes the depth image of the same instant. An image alone, or depth alone, is a
    frame as well.
    """

    def __init__(self, config: LocalizerConfig) -> None:
        self._clouds = config.input.depth_source in ("points", "scan")
        self._has_depth = config.input.depth_source != "none"
        self._has_image = config.input.use_image
        self._around = self._clouds and config.projection.accumulate == "around"
        self._window_ns = _nanoseconds(config.projection.window_s)
        self._overdue_ns = _nanoseconds(config.pairing.overdue_s)
        self._tolerance_ns = _nanoseconds(config.pairing.tolerance_s)
        self._needs_odometry = self._clouds and config.projection.motion_compensation
        self._images: list[int] = []
        self._depths: list[int] = []
        self._waiting_images: list[int] = []
        self._waiting_depths: list[int] = []
        self._last_depth_only_ns: int | None = None
        self._first_ns: int | None = None
        self.repeated = 0
        self.forgotten = 0

    def clear(self) -> None:
        """Forgets everything (a reset of the clock) but the counts."""
        self.forgotten += len(self._waiting_images) + len(self._waiting_depths)
        for stamps in (self._images, self._depths, self._waiting_images, self._waiting_depths):
            stamps.clear()
        self._last_depth_only_ns = self._first_ns = None

    @property
    def waiting(self) -> bool:
        """Whether an image still waits for its partner."""
        return bool(self._waiting_images)

    def add_image(self, stamp_ns: int) -> bool:
        """Registers an image; False if one of this stamp was there already."""
        return self._add(self._images, self._waiting_images, stamp_ns)

    def add_depth(self, stamp_ns: int) -> bool:
        """Registers a cloud, scan or depth image; False if one of this stamp was there already."""
        return self._add(self._depths, self._waiting_depths, stamp_ns)

    def _add(self, known: list[int], waiting: list[int], stamp_ns: int) -> bool:
        place = bisect_left(known, stamp_ns)
        if place < len(known) and known[place] == stamp_ns:
            self.repeated += 1
            return False
        known.insert(place, stamp_ns)
        insort(waiting, stamp_ns)
        return True

    def ready(self, now_ns: int, odometry_ns: int | None, everything: bool = False) -> list[FrameKey]:
        """The frames to go out now, in order of stamp.

        Args:
            now_ns: data time.
            odometry_ns: the newest odometry, None if there is none.
            everything: the data has ended or a timer says that every input is silent: wait no longer.
        """
        keys = []
        for stamp_ns in list(self._waiting_images):
            key = self._image_key(stamp_ns, now_ns, odometry_ns, everything)
            if key is not None:
                self._waiting_images.remove(stamp_ns)
                keys.append(key)
        keys += self._depth_only(now_ns, odometry_ns, everything)
        self._forget(now_ns)
        return sorted(keys, key=lambda key: key.stamp_ns)

    def _image_key(self, stamp_ns: int, now_ns: int, odometry_ns: int | None, everything: bool) -> FrameKey | None:
        partners = self._partners(stamp_ns)
        hold_ns = self._window_ns if self._around else 0
        overdue = everything or now_ns >= stamp_ns + hold_ns + self._overdue_ns
        if not overdue and self._has_depth and not self._depth_complete(stamp_ns, partners, now_ns):
            return None
        if not overdue and not self._covered(stamp_ns, odometry_ns):
            return None
        return FrameKey(stamp_ns, stamp_ns, partners)

    def _covered(self, stamp_ns: int, odometry_ns: int | None) -> bool:
        """Whether the odometry that moves the clouds to this instant is there."""
        return not self._needs_odometry or (odometry_ns is not None and odometry_ns >= stamp_ns)

    def _partners(self, stamp_ns: int) -> tuple[int, ...]:
        if not self._has_depth:
            return ()
        if self._clouds:
            ahead = self._window_ns if self._around else 0
            first = bisect_left(self._depths, stamp_ns - self._window_ns)
            last = bisect_left(self._depths, stamp_ns + ahead + 1)
            return tuple(self._depths[first:last])
        near = [d for d in self._depths if abs(d - stamp_ns) <= self._tolerance_ns]
        return (min(near, key=lambda d: (abs(d - stamp_ns), d)),) if near else ()

    def _depth_complete(self, stamp_ns: int, partners: tuple[int, ...], now_ns: int) -> bool:
        """Whether no further partner is to be expected: each topic arrives in order, or this one has fallen silent."""
        self._first_ns = now_ns if self._first_ns is None else self._first_ns
        newest = self._depths[-1] if self._depths else self._first_ns
        if now_ns - newest > SILENT_FACTOR * self._overdue_ns:
            return True
        if not self._depths:
            return False
        if not self._clouds:
            return bool(partners) or newest > stamp_ns + self._tolerance_ns
        return newest >= stamp_ns + (self._window_ns if self._around else 0)

    def _depth_only(self, now_ns: int, odometry_ns: int | None, everything: bool) -> list[FrameKey]:
        """Depth messages that no image has come near: frames of their own."""
        keys: list[FrameKey] = []
        hold_ns = self._window_ns if self._around else 0
        near_ns = max(self._overdue_ns, self._window_ns if self._clouds else 0)
        for stamp_ns in list(self._waiting_depths):
            overdue = everything or now_ns >= stamp_ns + hold_ns + self._overdue_ns
            unaccompanied = not self._has_image and now_ns >= stamp_ns + hold_ns
            if not overdue and not (unaccompanied and self._covered(stamp_ns, odometry_ns)):
                continue
            self._waiting_depths.remove(stamp_ns)
            image = bisect_left(self._images, stamp_ns - near_ns)
            accompanied = image < len(self._images) and self._images[image] <= stamp_ns + near_ns
            last = self._last_depth_only_ns
            if accompanied or (last is not None and abs(stamp_ns - last) < DEPTH_ONLY_INTERVAL_NS):
                continue
            self._last_depth_only_ns = stamp_ns
            keys.append(FrameKey(stamp_ns, None, self._partners(stamp_ns) if self._clouds else (stamp_ns,)))
        return keys

    def _forget(self, now_ns: int) -> None:
        for known in (self._images, self._depths):
            del known[: bisect_left(known, now_ns - MEMORY_NS)]
