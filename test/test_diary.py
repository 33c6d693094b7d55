"""The diary: why localization is lost, that it then gives no pose, and that it ends."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from worlds import SECOND, START_NS, ScriptedLocalizer, drive, odometry, true_pose

from vmloc_ros.config import FilterConfig, LocalizerConfig
from vmloc_ros.outputs import Outputs
from vmloc_ros.pipeline import Pipeline
from vmloc_ros.types import CameraPrior, Event, EventKind, Frame, Mode, NoPose, PoseEstimate, Verdict

SENSORS = (EventKind.IMAGE, EventKind.CLOUD)


def run_into(total: Outputs, pipeline: Pipeline, event: Event) -> None:
    total.extend(pipeline.add(event))
    total.extend(pipeline.drain())


def test_before_the_first_pose_it_says_what_is_needed() -> None:
    pipeline, total = Pipeline(LocalizerConfig(), ScriptedLocalizer()), Outputs()
    for k in range(30):
        run_into(total, pipeline, odometry(START_NS + k * SECOND // 20, np.eye(4)))
    assert {s.mode for s in total.statuses} == {Mode.LOST}
    assert pipeline.current_problems()["lost"].startswith("no pose yet; 3 measurements that agree")
    assert total.states == []
    assert total.notes == [], "nothing was lost: it was never found"


def test_without_measurements_it_is_lost_says_why_gives_no_pose_and_ends_with_the_next_ones() -> None:
    def kept(event: Event) -> bool:
        return event.kind not in SENSORS or not 5.0 <= (event.stamp_ns - START_NS) / SECOND < 12.0

    config = LocalizerConfig(filter=FilterConfig(lost_after_s=3.0))
    pipeline = Pipeline(config, ScriptedLocalizer())
    total, reasons = Outputs(), []
    for event in drive(16.0):
        if kept(event):
            run_into(total, pipeline, event)
            reasons.append(pipeline.current_problems().get("lost", ""))
    assert any("no measurement has been fused for 3." in r and "/initialpose" in r for r in reasons)
    assert reasons[-1] == ""
    stamps_s = np.array([(s.stamp_ns - START_NS) / SECOND for s in total.states])
    assert not ((stamps_s > 8.1) & (stamps_s < 12.0)).any(), "a pose while lost"
    assert (stamps_s > 13.0).sum() == 60 - 1, "no poses after it"
    by_mode = {m: [(s.stamp_ns - START_NS) / SECOND for s in total.statuses if s.mode is m] for m in Mode}
    assert any(8.0 < t < 12.0 for t in by_mode[Mode.LOST])
    assert not any(t > 12.5 for t in by_mode[Mode.LOST])
    assert all(s.state is None for s in total.statuses if s.mode is Mode.LOST)
    notes = [n.text.split(":")[0].split(" at ")[0] for n in total.notes]
    assert notes == ["localized", "lost", "localized"]
    assert [n.warning for n in total.notes] == [False, True, False]


def test_without_anything_it_is_lost_and_the_drive_goes_on_when_the_sensors_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    events, silence = drive(12.0), [START_NS + s * SECOND for s in (5, 9)]
    pipeline, total = Pipeline(LocalizerConfig(), ScriptedLocalizer()), Outputs()
    for event in (e for e in events if e.stamp_ns < silence[0]):
        run_into(total, pipeline, event)
    later = time.monotonic() + 4.0
    with monkeypatch.context() as patch:
        patch.setattr(time, "monotonic", lambda: later)
        pipeline.tick()
        pipeline.drain()
        (status,) = pipeline.tick().statuses
    assert status.mode is Mode.LOST
    assert "odometry's topic" in pipeline.current_problems()["lost"]
    assert pipeline.difference() is None
    for event in (e for e in events if e.stamp_ns >= silence[1]):
        run_into(total, pipeline, event)
    assert "lost" not in pipeline.current_problems()
    assert total.statuses[-1].mode is Mode.RGB_DEPTH
    state = total.states[-1]
    assert np.linalg.norm(state.T_map_base[:3, 3] - true_pose(state.stamp_ns)[:3, 3]) < 2.0


class Interrupted(ScriptedLocalizer):
    """A network that takes so long that the data starts over meanwhile."""

    meanwhile: Callable[[], None] = staticmethod(lambda: None)

    def localize(self, frame: Frame, prior: CameraPrior | None = None) -> PoseEstimate | NoPose:
        if len(self.seen) == 20:
            self.meanwhile()
        return super().localize(frame, prior)


def test_a_frame_of_the_time_before_a_reset_does_not_silence_the_heartbeat() -> None:
    localizer = Interrupted()
    pipeline, total = Pipeline(LocalizerConfig(), localizer), Outputs()
    again = [odometry(START_NS - 100 * SECOND + k * SECOND // 20, np.eye(4)) for k in range(60)]

    def loop() -> None:
        for event in again[:3]:
            total.extend(pipeline.add(event))

    localizer.meanwhile = loop  # type: ignore[method-assign]
    for event in drive(5.0):
        run_into(total, pipeline, event)
        if total.resets:
            break
    assert "started over" in total.statuses[-1].reason
    assert total.statuses[-1].mode is Mode.LOST
    assert not [n for n in total.notes if "lost" in n.text], "the reset has said it"
    before = len(total.statuses)
    for event in again[3:]:
        run_into(total, pipeline, event)
    assert [s.reason for s in total.statuses[before:]] == ["no frame"] * 5


@pytest.mark.parametrize("number", [np.nan, 1e308])
def test_an_answer_that_is_not_finite_is_said_and_does_not_go_on(number: float) -> None:
    class NotFinite(ScriptedLocalizer):
        def localize(self, frame: Frame, prior: CameraPrior | None = None) -> PoseEstimate | NoPose:
            answer = super().localize(frame, prior)
            assert isinstance(answer, PoseEstimate)
            return replace(answer, cov_66=number * np.eye(6))

    pipeline, total = Pipeline(LocalizerConfig(), NotFinite()), Outputs()
    with np.errstate(over="ignore"):
        for event in drive(2.0):
            run_into(total, pipeline, event)
    frames = [s for s in total.statuses if s.key is not None]
    assert {s.verdict for s in frames} == {Verdict.NOT_FINITE}
    assert all(s.measurement is None for s in frames)
    assert len(frames) == pipeline.counters()["verdict.not_finite"] > 10
