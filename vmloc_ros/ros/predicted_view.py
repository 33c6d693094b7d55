"""`~/predicted_view`: what a readable map expects to see from where the filter has the robot."""

from __future__ import annotations

import time
from collections.abc import Callable

from rclpy.lifecycle import LifecyclePublisher

from vmloc_ros.geometry import Array
from vmloc_ros.localizers.base import Localizer, ReadableMap
from vmloc_ros.ros.conversions import colour_image
from vmloc_ros.types import Status


class PredictedView:
    """Renders and publishes views, for the worker's thread: it takes as long as a network does.

    Where the map cannot be looked at, where nobody listens, while the robot is lost, or sooner than `rate_hz` allows,
    it does nothing.
    """

    def __init__(self, localizer: Localizer, rate_hz: float, clock: Callable[[], float] = time.monotonic) -> None:
        """
        Args:
            localizer: the loaded model.
            rate_hz: views come at most so often.
            clock: seconds; the processor's time is what is saved, so it is not the data's.
        """
        self._map = localizer if isinstance(localizer, ReadableMap) else None
        self._period_s = 1.0 / rate_hz
        self._clock = clock
        self._last_s: float | None = None

    def show(
        self, statuses: list[Status], T_base_camera: Array | None, publisher: LifecyclePublisher, camera_frame: str
    ) -> bool:
        """The view from the filter's pose at the newest frame of these statuses; whether there is one.

        Args:
            statuses: of the frames that have just been processed.
            T_base_camera: mounting of the camera, None where it is not known.
            publisher: of ~/predicted_view.
            camera_frame: the message's frame_id.
        """
        poses = [status.state for status in statuses if status.key is not None and status.state is not None]
        if self._map is None or not poses or T_base_camera is None or publisher.get_subscription_count() == 0:
            return False
        now_s = self._clock()
        if self._last_s is not None and now_s - self._last_s < self._period_s:
            return False
        self._last_s = now_s
        newest = poses[-1]
        rgb_HW3 = self._map.view(newest.T_map_base @ T_base_camera)
        publisher.publish(colour_image(newest.stamp_ns, camera_frame, rgb_HW3))
        return True
