"""When a map's view is rendered and sent, and when that would be wasted or wrong."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("vmloc_msgs", reason="needs a ROS 2 client library and vmloc_msgs")

from worlds import START_NS, T_BASE_CAMERA, MovingLocalizer, ScriptedLocalizer, true_pose

from vmloc_ros.messages import stamp_ns
from vmloc_ros.ros.predicted_view import PredictedView
from vmloc_ros.types import FrameKey, FusedState, Mode, Status, Verdict


class Listeners:
    """A publisher, and how many listen to it."""

    def __init__(self, count: int = 1) -> None:
        self.count = count
        self.sent: list[Any] = []

    def get_subscription_count(self) -> int:
        return self.count

    def publish(self, message: Any) -> None:
        self.sent.append(message)


def status(stamp: int, located: bool = True) -> Status:
    state = FusedState(stamp, true_pose(stamp), np.eye(6), np.eye(4)) if located else None
    key = FrameKey(stamp, stamp)
    return Status(stamp, Mode.RGB_ONLY, Verdict.FUSED, "", key, state, None, {}, 1.0, None, 0, 0.0, {}, {})


def test_the_view_is_that_of_the_camera_at_the_newest_frame() -> None:
    listeners, later = Listeners(), START_NS + 2_000_000_000
    view = PredictedView(MovingLocalizer(), rate_hz=2.0)  # type: ignore[arg-type]
    assert view.show([status(START_NS), status(later)], T_BASE_CAMERA, listeners, "camera")  # type: ignore[arg-type]
    (message,) = listeners.sent
    assert (stamp_ns(message.header.stamp), message.header.frame_id, message.encoding) == (later, "camera", "rgb8")
    assert message.step * message.height == len(message.data)
    camera = (true_pose(later) @ T_BASE_CAMERA)[:3, 3]
    np.testing.assert_array_equal(list(message.data[:3]), np.round(camera) + 100.0)


def test_views_come_no_more_often_than_asked_for() -> None:
    listeners, now_s = Listeners(), [0.0]
    view = PredictedView(MovingLocalizer(), rate_hz=2.0, clock=lambda: now_s[0])  # type: ignore[arg-type]
    shown = []
    for frame in range(40):  # 10 Hz for 4 s
        now_s[0] = 100.0 + 0.1 * frame
        shown.append(view.show([status(START_NS + frame)], T_BASE_CAMERA, listeners, "c"))  # type: ignore[arg-type]
    assert sum(shown) == len(listeners.sent) == 8
    assert shown[0]


@pytest.mark.parametrize("why", ["nobody listens", "lost", "no mounting", "no map", "no frame"])
def test_nothing_is_rendered_for_nothing(why: str) -> None:
    class Asked(MovingLocalizer):
        def view(self, T_map_camera: Any) -> Any:
            raise AssertionError("rendered in vain")

    localizer = ScriptedLocalizer() if why == "no map" else Asked()
    listeners = Listeners(0 if why == "nobody listens" else 1)
    seen = replace(status(START_NS, why != "lost"), key=None) if why == "no frame" else status(START_NS, why != "lost")
    view = PredictedView(localizer, rate_hz=2.0)  # type: ignore[arg-type]
    mounting = None if why == "no mounting" else T_BASE_CAMERA
    assert not view.show([seen], mounting, listeners, "camera")  # type: ignore[arg-type]
    assert listeners.sent == []
