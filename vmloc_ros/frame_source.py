"""Recent messages, which of them make up a frame, and when it goes out."""

from __future__ import annotations

from dataclasses import dataclass

from vmloc_ros.clock import ClockVerdict, DataClock
from vmloc_ros.config import LocalizerConfig
from vmloc_ros.extrinsics import Extrinsics
from vmloc_ros.odometry import OdometryBuffer
from vmloc_ros.pairing import Pairing
from vmloc_ros.types import CameraInfo, EncodedImage, Event, EventKind, FrameKey, RawCloud, RawImage, RawScan

KEPT_MESSAGES = 64
"""Images kept while their frames wait; at 30 Hz two seconds."""
KEPT_NS = 25_000_000_000
"""How long clouds are kept: longer than the longest window around an image."""


@dataclass(frozen=True, slots=True)
class FrameParts:
    """The messages of one frame, taken out of the store so that they can be decoded without holding its lock."""

    key: FrameKey
    image: RawImage | EncodedImage | None
    depths: tuple[RawImage | EncodedImage | RawCloud | RawScan, ...]
    info: CameraInfo | None
    odometry: OdometryBuffer


class Store:
    """Recent messages by stamp, bounded."""

    def __init__(self) -> None:
        self._images: dict[int, RawImage | EncodedImage] = {}
        self._depths: dict[int, RawImage | EncodedImage | RawCloud | RawScan] = {}
        self.info: CameraInfo | None = None

    def clear(self) -> None:
        """Drops the messages; the calibration stays."""
        self._images.clear()
        self._depths.clear()

    def add_image(self, payload: RawImage | EncodedImage) -> None:
        self._images[payload.stamp_ns] = payload
        while len(self._images) > KEPT_MESSAGES:
            del self._images[min(self._images)]

    def add_depth(self, payload: RawImage | EncodedImage | RawCloud | RawScan, keep_ns: int) -> None:
        self._depths[payload.stamp_ns] = payload
        oldest = max(self._depths) - keep_ns
        for stamp_ns in [stamp for stamp in self._depths if stamp < oldest]:
            del self._depths[stamp_ns]

    def gather(self, key: FrameKey, odometry: OdometryBuffer) -> FrameParts:
        """The messages of a frame; those that have been dropped meanwhile are simply not there."""
        image = None if key.image_stamp_ns is None else self._images.get(key.image_stamp_ns)
        depths = tuple(self._depths[stamp] for stamp in key.depth_stamps_ns if stamp in self._depths)
        return FrameParts(key, image, depths, self.info, odometry)


class FrameSource:
    """Events in, frame keys out: the store, the pairing, the clock and the odometry that moves the clouds."""

    def __init__(self, config: LocalizerConfig) -> None:
        self._config = config
        self.clock = DataClock()
        self.store = Store()
        self.pairing = Pairing(config)
        self.extrinsics = Extrinsics()
        held_s = config.projection.window_s + config.pairing.overdue_s
        self.odometry = OdometryBuffer(max(config.filter.window_s, 2.0 * held_s) + 1.0)
        self._odometry_by_network = config.model.odometry == "network"
        self._keep_ns = min(KEPT_NS, round((2.0 * held_s + config.filter.window_s + 1.0) * 1e9))

    def add(self, event: Event) -> ClockVerdict:
        """Stores a sensor event; the verdict says whether its stamp was believed.

        Odometry only moves the clock: whoever checks it inserts it into `odometry` when it is good. After `RESET`
        everything older has been forgotten and the event is stored.
        """
        if event.kind is EventKind.CAMERA_INFO:
            self.store.info = event.payload
            return ClockVerdict.OK
        verdict = self.clock.observe(event.stamp_ns)
        if verdict is ClockVerdict.RESET:
            self.clear(keep_clock=True)
        elif verdict is not ClockVerdict.OK:
            return verdict
        if event.kind is EventKind.IMAGE and self._config.input.use_image:
            self.store.add_image(event.payload)
            self.pairing.add_image(event.stamp_ns)
        elif event.kind.value == self._config.input.depth_source:
            self.store.add_depth(event.payload, self._keep_ns)
            self.pairing.add_depth(event.stamp_ns)
        return verdict

    def ready(self, everything: bool = False) -> list[FrameKey]:
        """The frames that wait no longer."""
        now_ns = self.clock.now_ns
        # the network's odometry comes out of the frame itself: there is nothing to wait for
        odometry_ns = now_ns if self._odometry_by_network else self.odometry.newest_ns
        return [] if now_ns is None else self.pairing.ready(now_ns, odometry_ns, everything)

    def gather(self, key: FrameKey) -> FrameParts:
        """The messages of a frame, with an odometry that another thread may read."""
        return self.store.gather(key, self.odometry.snapshot())

    def clear(self, keep_clock: bool = False) -> None:
        """Forgets everything but calibration and mountings."""
        self.store.clear()
        self.pairing.clear()
        self.odometry.clear()
        if not keep_clock:
            self.clock.clear()
