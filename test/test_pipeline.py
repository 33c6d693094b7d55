"""The pipeline around the network: frames, verdicts, absences, resets, and the same trajectory however it is run."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections import Counter

import numpy as np
import pytest
from worlds import (
    SECOND,
    START_NS,
    T_BASE_CAMERA,
    ScriptedLocalizer,
    camera_info,
    cloud,
    drive,
    image,
    mountings,
    odometry,
    repeated,
    true_pose,
)

from vmloc_ros.assembly import sensor_mismatches
from vmloc_ros.config import FilterConfig, FrameNames, InputConfig, LocalizerConfig, ProjectionConfig
from vmloc_ros.geometry import Array, exp_se3, inverse, make_pose
from vmloc_ros.outputs import Outputs
from vmloc_ros.pipeline import Pipeline
from vmloc_ros.types import (
    CameraPrior,
    Event,
    EventKind,
    Frame,
    InitialPose,
    Modality,
    Mode,
    NoPose,
    PoseEstimate,
    RawScan,
    StaticTransform,
    Verdict,
)

CONFIG = LocalizerConfig()


def run(events: list[Event], config: LocalizerConfig = CONFIG, **options: object) -> tuple[Pipeline, Outputs]:
    pipeline = Pipeline(config, ScriptedLocalizer(), **options)  # type: ignore[arg-type]
    total = Outputs()
    for outputs in pipeline.run(events):
        total.extend(outputs)
    return pipeline, total


def position_errors(outputs: Outputs) -> Array:
    return np.array(
        [
            np.linalg.norm(s.state.T_map_base[:3, 3] - true_pose(s.state.stamp_ns)[:3, 3])
            for s in outputs.statuses
            if s.state is not None
        ]
    )


def test_a_drive_is_localized_better_than_the_network_and_every_frame_is_accounted_for() -> None:
    white = LocalizerConfig(filter=FilterConfig(measurement_correlation_s=0.0))  # what the scripted errors are
    pipeline, outputs = run(drive(20.0), white)
    frames = [s for s in outputs.statuses if s.key is not None]
    assert len(frames) == 200
    counters = pipeline.counters()
    assert counters["images.received"] == counters["frames.paired"] == counters["frames.inferred"] == 200
    assert counters["frames.stale"] == counters["frames.no_pose"] == 0
    assert sum(n for name, n in counters.items() if name.startswith("verdict.")) == 200
    network = [
        np.linalg.norm(s.measurement.T_map_base[:3, 3] - true_pose(s.stamp_ns)[:3, 3]) for s in frames if s.measurement
    ]
    errors = position_errors(outputs)[20:]
    assert errors.mean() < 0.6 * np.mean(network)
    assert frames[-10].mode is Mode.RGB_DEPTH
    assert frames[-10].verdict is Verdict.FUSED
    assert {s.key.depth_stamps_ns for s in frames[5:10] if s.key} != {()}


def test_the_estimate_is_moved_from_the_camera_to_the_base() -> None:
    localizer = ScriptedLocalizer(sigma_m=1e-6, sigma_rad=1e-7)
    statuses = [s for o in Pipeline(CONFIG, localizer).run(drive(2.0)) for s in o.statuses if s.measurement]
    assert statuses
    for status in statuses:
        np.testing.assert_allclose(status.measurement.T_map_base, true_pose(status.stamp_ns), atol=1e-4)
    adjoint_lever = statuses[0].measurement.cov_66[:3, :3]
    lever = T_BASE_CAMERA[:3, 3]
    assert adjoint_lever.trace() == pytest.approx(3e-12 + 2e-14 * lever @ lever, rel=1e-6)


def test_the_frames_of_a_run_give_the_same_trajectory_again() -> None:
    events = drive(10.0)
    _, first = run(events)
    keys = [s.key for s in first.statuses if s.key is not None][::2]
    _, second = run(events, only=keys)
    _, third = run(events, only=keys)
    assert [s.key for s in second.statuses if s.key is not None] == keys
    for a, b in zip(second.statuses, third.statuses, strict=True):
        assert a.stamp_ns == b.stamp_ns
        if a.state and b.state:
            np.testing.assert_allclose(a.state.T_map_base, b.state.T_map_base, atol=1e-9)


def test_a_worker_thread_gives_the_trajectory_of_one_thread() -> None:
    events = drive(8.0)
    pipeline = Pipeline(CONFIG, ScriptedLocalizer())
    total, done = Outputs(), threading.Event()

    def work() -> None:
        while not done.is_set():
            key = pipeline.take()
            if key is None:
                time.sleep(0.0005)
                continue
            total.extend(pipeline.process(key))

    worker = threading.Thread(target=work)
    worker.start()
    for event in events:
        pipeline.add(event)
        deadline = time.monotonic() + 5.0
        while pipeline.take() is not None and time.monotonic() < deadline:
            time.sleep(0.0002)  # a drive is slower than the network: let the worker keep up, as it does on a robot
    done.set()
    worker.join()
    total.extend(pipeline.finish())
    frames = {s.stamp_ns: s for s in total.statuses if s.key is not None}
    _, alone = run(events)
    compared = 0
    for status in alone.statuses:
        if status.key is not None and status.state is not None and frames[status.stamp_ns].state is not None:
            other = frames[status.stamp_ns].state
            assert other is not None
            np.testing.assert_allclose(other.T_map_base, status.state.T_map_base, atol=1e-6)
            compared += 1
    assert compared > 60
    assert pipeline.counters()["frames.stale"] == 0


def test_an_absent_modality_is_named_and_the_mode_follows() -> None:
    def kept(event: Event) -> bool:
        second = (event.stamp_ns - START_NS) / SECOND
        if event.kind is EventKind.IMAGE:
            return not 4.0 <= second < 7.0 and not 12.0 <= second < 15.0
        if event.kind is EventKind.CLOUD:
            return not 8.0 <= second < 11.0 and not 12.0 <= second < 15.0
        return True

    pipeline, outputs = run([e for e in drive(20.0) if kept(e)])

    def modes(start: float, end: float) -> set[Mode]:
        return {s.mode for s in outputs.statuses if start <= (s.stamp_ns - START_NS) / SECOND < end}

    assert modes(2.0, 3.5) == {Mode.RGB_DEPTH}
    assert modes(4.5, 6.5) == {Mode.DEPTH_ONLY}
    assert modes(8.5, 10.5) == {Mode.RGB_ONLY}
    assert modes(13.6, 14.9) == {Mode.DEAD_RECKONING}
    assert modes(16.0, 19.0) == {Mode.RGB_DEPTH}
    lone = next(s for s in outputs.statuses if s.mode is Mode.DEPTH_ONLY)
    assert Modality.RGB in lone.absent
    assert position_errors(outputs)[20:].max() < 2.0
    assert pipeline.counters()["frames.stale"] == 0


def test_a_dead_camera_that_still_publishes_counts_as_absent() -> None:
    events = [image(e.stamp_ns, constant=True) if e.kind is EventKind.IMAGE else e for e in drive(3.0)]
    pipeline, outputs = run(events)
    assert pipeline.counters()["rejected.image_constant"] == 30
    frames = [s for s in outputs.statuses if s.key is not None]
    assert "constant" in frames[-5].absent[Modality.RGB]
    assert frames[-5].mode is Mode.DEPTH_ONLY


def test_a_frozen_camera_counts_as_absent_once_the_robot_has_moved() -> None:
    def frozen(event: Event, since_s: float) -> Event:
        if event.kind is not EventKind.IMAGE or event.stamp_ns < START_NS + since_s * SECOND:
            return event
        return dataclasses.replace(event, payload=dataclasses.replace(event.payload, data=picture.payload.data))

    picture = image(START_NS)
    pipeline, outputs = run([frozen(e, 2.0) for e in drive(5.0)])
    frames = [s for s in outputs.statuses if s.key is not None]
    assert {s.mode for s in frames[10:20]} == {Mode.RGB_DEPTH}
    assert {s.mode for s in frames[25:]} == {Mode.DEPTH_ONLY}
    assert "the same picture" in frames[-1].absent[Modality.RGB]
    assert pipeline.counters()["rejected.image_frozen"] == 28
    standing = [
        dataclasses.replace(e, payload=dataclasses.replace(e.payload, T_odom_base=np.eye(4)))
        if e.kind is EventKind.ODOMETRY
        else e
        for e in drive(3.0)
    ]
    pipeline, _ = run([frozen(e, 0.0) for e in standing])
    assert "rejected.image_frozen" not in pipeline.counters(), "a simulated camera that stands still shows one picture"


def test_an_empty_cloud_counts_as_absent_and_both_absent_give_no_pose() -> None:
    events = [cloud(e.stamp_ns, points=5) if e.kind is EventKind.CLOUD else e for e in drive(3.0)]
    _, outputs = run(events)
    assert {s.mode for s in outputs.statuses[10:] if s.key} == {Mode.RGB_ONLY}
    events = [image(e.stamp_ns, constant=True) if e.kind is EventKind.IMAGE else e for e in events]
    pipeline, outputs = run(events)
    frames = [s for s in outputs.statuses if s.key is not None]
    assert {s.verdict for s in frames} == {Verdict.NO_POSE}
    assert all(s.measurement is None and s.state is None and s.mode is Mode.LOST for s in frames)
    assert "rgb: image is constant" in frames[5].reason
    assert pipeline.counters()["frames.no_pose"] == len(frames) == 30


def test_a_network_that_sometimes_refuses_is_told_of_and_the_drive_goes_on() -> None:
    class Choosy(ScriptedLocalizer):
        def localize(self, frame: Frame, prior: CameraPrior | None = None) -> PoseEstimate | NoPose:
            tenths = (frame.stamp_ns - START_NS) // (SECOND // 10)
            refused = tenths % 3 == 1
            return NoPose(frame.stamp_ns, f"{tenths} % agree") if refused else super().localize(frame, prior)

    pipeline, total = Pipeline(CONFIG, Choosy()), Outputs()
    for outputs in pipeline.run(drive(6.0)):
        total.extend(outputs)
    frames = [s for s in total.statuses if s.key is not None]
    refused = [s for s in frames if s.verdict is Verdict.NO_POSE]
    assert pipeline.counters()["frames.no_pose"] == len(refused) == 20
    assert all(s.reason.endswith("% agree") and s.measurement is None and s.health == 0.0 for s in refused)
    assert all(s.state is not None for s in refused[5:]), (
        "the filter carries the pose over the frames without an answer"
    )
    assert (
        pipeline.current_problems()["network"] == refused[-1].reason
    )  # the diagnostics ask only while some are refused
    assert position_errors(total)[20:].max() < 1.0


def test_bad_messages_are_counted_and_never_stop_the_drive() -> None:
    events: list[Event] = []
    seen: Counter[EventKind] = Counter()
    for event in drive(6.0):
        events.append(event)
        k = seen[event.kind]
        seen[event.kind] += 1
        if event.kind is EventKind.IMAGE and k % 5 == 0:
            raw = event.payload
            events[-1] = dataclasses.replace(event, payload=dataclasses.replace(raw, encoding="yuv999"))
        if event.kind is EventKind.CLOUD and k % 3 == 0:
            raw = event.payload
            events[-1] = dataclasses.replace(event, payload=dataclasses.replace(raw, data=raw.data[:100]))
        if event.kind is EventKind.ODOMETRY and k % 7 == 0:
            bad = event.payload.T_odom_base.copy()
            bad[0, 3] = np.nan
            events[-1] = dataclasses.replace(event, payload=dataclasses.replace(event.payload, T_odom_base=bad))
    pipeline, outputs = run(events)
    counters = pipeline.counters()
    assert counters["rejected.image"] >= 5
    assert counters["rejected.depth"] >= 5
    assert any("yuv999" in s.absent.get(Modality.RGB, "") for s in outputs.statuses)
    for status in outputs.statuses:
        if status.state is not None:
            assert np.isfinite(status.state.T_map_base).all()
            assert np.isfinite(status.state.cov_66).all()
    assert position_errors(outputs)[20:].max() < 2.0


def test_odd_stamps_are_counted() -> None:
    events = drive(3.0)
    odd = [image(0), image(START_NS + 4000 * SECOND), image(START_NS - 4000 * SECOND)]
    pipeline, outputs = run(events[:80] + odd + events[80:])
    counters = pipeline.counters()
    assert counters["rejected.stamp_zero"] == 1
    assert counters["rejected.stamp_from_the_future"] == 1
    assert counters["rejected.stamp_backwards"] == 1
    assert len([s for s in outputs.statuses if s.key is not None]) == 30
    assert outputs.resets == []


def test_missing_mountings_are_named() -> None:
    pipeline, outputs = run([e for e in drive(2.0) if e.kind is not EventKind.STATIC_TRANSFORM])
    frames = [s for s in outputs.statuses if s.key is not None]
    assert all(s.verdict is Verdict.NO_POSE for s in frames)
    assert "base_link -> camera_optical" in frames[-1].reason
    assert "base_link -> lidar" in frames[-1].absent[Modality.DEPTH]
    assert "transforms" in pipeline.current_problems()


def test_a_bag_that_loops_starts_over_and_localizes_again() -> None:
    pipeline, outputs = run(list(repeated(drive(12.0), 3)))
    assert len(outputs.resets) == 2
    assert pipeline.counters()["resets"] == 2
    last = [s for s in outputs.statuses if s.key is not None][-50:]
    assert all(s.mode is Mode.RGB_DEPTH for s in last)
    assert position_errors(Outputs(statuses=last)).max() < 1.5


def test_a_pose_by_hand_starts_the_filter_and_a_wrong_frame_does_not() -> None:
    pipeline = Pipeline(CONFIG, ScriptedLocalizer())
    for event in [*mountings(), odometry(START_NS, np.eye(4))]:
        assert pipeline.add(event).states == []
    cov = np.diag([0.1] * 6)
    wrong = InitialPose(START_NS, "odom", np.eye(4), cov)
    pipeline.add(Event(EventKind.INITIAL_POSE, START_NS, wrong))
    assert pipeline.counters()["rejected.initialpose_wrong_frame"] == 1
    pose = exp_se3([1.0, 2.0, 0.0, 0.0, 0.0, 0.5])
    pipeline.add(Event(EventKind.INITIAL_POSE, START_NS, InitialPose(START_NS, "map", pose, cov)))
    move = exp_se3([0.3, 0.0, 0.0, 0.0, 0.0, 0.0])
    (state,) = pipeline.add(odometry(START_NS + SECOND // 20, move)).states
    np.testing.assert_allclose(state.T_map_base, pose @ move, atol=1e-9)
    np.testing.assert_allclose(state.T_map_odom, pose, atol=1e-9)


def test_odometry_of_a_frame_it_was_not_told_of_is_refused() -> None:
    config = LocalizerConfig(frames=FrameNames(odom="odom_wheel"))
    pipeline, outputs = run(drive(2.0), config)
    assert outputs.states == []
    assert pipeline.counters()["odometry.wrong_frame"] == 40


def test_a_camera_without_depth_needs_no_odometry_to_be_fused() -> None:
    config = LocalizerConfig(input=InputConfig(depth_source="none"))
    _, outputs = run(drive(3.0), config)
    assert {s.mode for s in outputs.statuses[5:] if s.key} == {Mode.RGB_ONLY}
    assert all(s.key.depth_stamps_ns == () for s in outputs.statuses if s.key)


def test_a_short_jump_back_without_odometry_starts_over_wholly() -> None:
    """Shorter than what the data clock takes for a jump: the filter notices by the measurements, and says so."""
    config = LocalizerConfig(input=InputConfig(depth_source="none"))
    rounds = [drive(4.6), drive(4.6, START_NS + 7_000_000)]
    events = [event for part in rounds for event in part if event.kind is not EventKind.ODOMETRY]
    pipeline, outputs = run(events, config)
    assert outputs.resets == ["the measurements' clock has jumped"]
    assert pipeline.counters()["resets"] == 1
    last = [s for s in outputs.statuses if s.key is not None][-10:]
    assert {s.mode for s in last} == {Mode.RGB_ONLY}
    assert last[-1].stamp_ns < START_NS + 5 * SECOND


def test_stale_frames_are_dropped_oldest_first_and_counted() -> None:
    pipeline = Pipeline(CONFIG, ScriptedLocalizer())
    for event in drive(3.0):
        pipeline.add(event)  # no worker takes anything
    counters = pipeline.counters()
    assert counters["frames.stale"] == counters["frames.paired"] - CONFIG.model.max_pending_frames
    newest = pipeline.take()
    assert newest is not None
    assert newest.stamp_ns > START_NS + 2 * SECOND


def test_silence_of_every_input_releases_what_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = Pipeline(CONFIG, ScriptedLocalizer())
    for event in [*mountings(), camera_info(START_NS), odometry(START_NS, np.eye(4)), image(START_NS + 1)]:
        pipeline.add(event)
    assert pipeline.take() is None
    assert pipeline.tick().statuses == []
    later = time.monotonic() + 5.0
    monkeypatch.setattr(time, "monotonic", lambda: later)
    (status,) = pipeline.tick().statuses
    assert status.reason == "every input is silent"
    assert status.mode is Mode.LOST
    key = pipeline.take()
    assert key is not None
    (frame_status,) = pipeline.process(key).statuses
    assert frame_status.measurement is not None
    np.testing.assert_allclose(
        frame_status.measurement.T_map_base @ inverse(true_pose(START_NS + 1)), np.eye(4), atol=3.0
    )


def test_reset_forgets_the_pose_and_the_drive_goes_on() -> None:
    events = drive(12.0)
    pipeline = Pipeline(CONFIG, ScriptedLocalizer())
    total = Outputs()
    for k, event in enumerate(events):
        total.extend(pipeline.add(event))
        while (key := pipeline.take()) is not None:
            total.extend(pipeline.process(key))
        if k == len(events) // 2:
            assert pipeline.reset("asked for").resets == ["asked for"]
            assert pipeline.take() is None
    assert [s.mode for s in total.statuses][-1] is Mode.RGB_DEPTH


def scan(stamp_ns: int) -> Event:
    """A push-broom scanner that looks to the left: a wall 6 m beside the road."""
    angles = np.deg2rad(np.arange(-45.0, 46.0))
    ranges = (6.0 / np.cos(angles)).astype(np.float32)
    raw = RawScan(stamp_ns, "scanner", float(angles[0]), float(np.deg2rad(1.0)), 0.0, 0.1, 50.0, ranges)
    return Event(EventKind.SCAN, stamp_ns, raw)


def test_a_push_broom_scanner_sees_what_the_camera_saw_only_around_the_image() -> None:
    """Straight road: what is beside the vehicle now was never in view of a camera that looks ahead *before*."""
    sideways = make_pose(np.array([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]), [0.0, 0.0, 1.0])
    stamps = [START_NS + k * SECOND // 20 for k in range(120)]
    events = [Event(EventKind.STATIC_TRANSFORM, 0, StaticTransform("base_link", "scanner", sideways))]
    events += mountings()
    for k, stamp in enumerate(stamps):
        events += [odometry(stamp, make_pose(np.eye(3), [0.4 * k, 0.0, 0.0])), scan(stamp)]
        if k % 10 == 0:
            events += [camera_info(stamp), image(stamp)]
    returns = {}
    for accumulate in ("past", "around"):
        config = LocalizerConfig(
            input=InputConfig(depth_source="scan"),
            projection=ProjectionConfig(accumulate=accumulate, window_s=2.5, width=64, height=48),  # type: ignore[arg-type]
        )
        pipeline, outputs = run(events, config)
        middle = [f for f in outputs.frames if START_NS + 2 * SECOND < f.stamp_ns < START_NS + 4 * SECOND]
        assert middle
        returns[accumulate] = [0 if f.depth_m is None else int(np.count_nonzero(f.depth_m)) for f in middle]
        if accumulate == "past":
            assert "projection.accumulate: around" in middle[0].absent[Modality.DEPTH]
        assert pipeline.current_problems()["sensors"].startswith("input.depth_source is scan")
    assert max(returns["past"]) == 0
    assert min(returns["around"]) > 100


def test_another_window_of_the_lidar_than_the_training_is_said() -> None:
    trained = ProjectionConfig(window_s=0.45)
    config = LocalizerConfig(projection=ProjectionConfig(window_s=0.15))
    (said,) = sensor_mismatches(config, config.input, trained)
    assert said.startswith("projection.window_s is 0.15, but the model was trained with 0.45")
    assert not sensor_mismatches(config.model_copy(update={"projection": trained}), config.input, trained)


def test_odometry_that_comes_twice_gives_one_pose() -> None:
    events = [e for event in drive(4.0) for e in ([event] * (2 if event.kind is EventKind.ODOMETRY else 1))]
    pipeline, outputs = run(events)
    stamps = [s.stamp_ns for s in outputs.states]
    assert len(stamps) == len(set(stamps)) > 60
    assert pipeline.counters()["odometry.duplicate"] == 80


def test_the_monitor_shows_a_correction_and_not_a_jump_of_the_odometry() -> None:
    pipeline = Pipeline(CONFIG, ScriptedLocalizer(sigma_m=0.01, sigma_rad=0.001))
    jump, seen = exp_se3([30, 0, 0, 0, 0, 1]), []
    corrected_ns = START_NS + 10 * SECOND
    for event in drive(10.5, drift=0.0):
        if event.stamp_ns == corrected_ns and event.kind is EventKind.ODOMETRY:
            before = pipeline.difference()
            moved = true_pose(corrected_ns)
            moved[:2, 3] += 3.0, 4.0
            by_hand = InitialPose(corrected_ns - 1, "map", moved, 0.01 * np.eye(6))
            pipeline.add(Event(EventKind.INITIAL_POSE, by_hand.stamp_ns, by_hand))
        if event.kind is EventKind.ODOMETRY and event.stamp_ns >= START_NS + 5 * SECOND:
            jumped = dataclasses.replace(event.payload, T_odom_base=jump @ event.payload.T_odom_base)
            event = dataclasses.replace(event, payload=jumped)
        pipeline.add(event)
        pipeline.drain()
        if (difference := pipeline.difference()) is not None:
            seen.append((event.stamp_ns, difference))
    assert pipeline.counters()["odometry.jump"] == 1
    assert before is not None
    assert before.span_s == pytest.approx(CONFIG.monitor.window_s, abs=0.1)
    assert max(d.metres for stamp_ns, d in seen if stamp_ns < corrected_ns) < 1.0
    assert max(d.metres for _, d in seen) == pytest.approx(5.0, abs=1.0)
    assert pipeline.counters()["monitor.exceeded"] == 1
