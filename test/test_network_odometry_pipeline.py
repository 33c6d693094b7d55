"""The network's odometry through the whole pipeline: beside a robot's own, and in its place."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from worlds import (
    SECOND,
    START_NS,
    T_BASE_CAMERA,
    MovingLocalizer,
    ScriptedLocalizer,
    drive,
    mountings,
    repeated,
    true_pose,
)

from vmloc_ros.bag_writer import BagWriter
from vmloc_ros.bags import BagReader
from vmloc_ros.commands import localize
from vmloc_ros.config import InputConfig, LocalizerConfig, ModelConfig, SavedPoseConfig
from vmloc_ros.geometry import inverse
from vmloc_ros.outputs import Outputs
from vmloc_ros.pipeline import Pipeline
from vmloc_ros.run_outputs import log_of_node_run, read_vo
from vmloc_ros.types import Event, EventKind, Modality, Mode, NoPose, Verdict

BY_NETWORK = LocalizerConfig(model=ModelConfig(odometry="network"), input=InputConfig(depth_source="none"))


def blind_drive(duration_s: float = 10.0, start_ns: int = START_NS) -> list[Event]:
    """A camera alone: neither wheels nor lidar."""
    kinds = (EventKind.ODOMETRY, EventKind.CLOUD)
    return [event for event in drive(duration_s, start_ns) if event.kind not in kinds]


def run(
    events: list[Event], config: LocalizerConfig = BY_NETWORK, localizer: ScriptedLocalizer | None = None
) -> tuple[Pipeline, Outputs]:
    pipeline, total = Pipeline(config, localizer or MovingLocalizer()), Outputs()
    for outputs in pipeline.run(events):
        total.extend(outputs)
    return pipeline, total


def camera_off(events: list[Event], from_s: float, to_s: float) -> list[Event]:
    return [e for e in events if e.kind is not EventKind.IMAGE or not from_s <= (e.stamp_ns - START_NS) / SECOND < to_s]


def errors_m(outputs: Outputs) -> list[float]:
    return [float(np.linalg.norm(s.T_map_base[:3, 3] - true_pose(s.stamp_ns)[:3, 3])) for s in outputs.states]


def longest_step_m(outputs: Outputs) -> float:
    places = [pose.sample.T_odom_base[:3, 3] for pose in outputs.vo]
    return max(float(np.linalg.norm(after - before)) for before, after in pairwise(places))


def test_beside_a_robots_odometry_it_is_given_out_and_changes_nothing() -> None:
    config = LocalizerConfig()
    pipeline, moving = run(drive(3.0), config, MovingLocalizer())
    _, plain = run(drive(3.0), config, ScriptedLocalizer())
    assert len(moving.vo) == 30
    assert plain.vo == []
    assert [s.stamp_ns for s in moving.states] == [s.stamp_ns for s in plain.states]
    for one, other in zip(moving.states, plain.states, strict=True):
        np.testing.assert_array_equal(one.T_map_base, other.T_map_base)
    assert pipeline.counters()["vo.motions"] == 29
    assert pipeline.counters()["motion.gaps"] == 0
    assert "vo.motions" not in run(drive(1.0), config, ScriptedLocalizer())[0].counters()


def test_the_chain_is_the_product_of_the_motions_in_the_bases_axes() -> None:
    localizer = MovingLocalizer(exact=True)
    _, outputs = run(blind_drive(4.0), localizer=localizer)
    first_ns = outputs.vo[0].sample.stamp_ns
    assert len(outputs.vo) == 40
    for pose in outputs.vo:
        expected = inverse(true_pose(first_ns)) @ true_pose(pose.sample.stamp_ns)
        np.testing.assert_allclose(pose.sample.T_odom_base, expected, atol=1e-9)


def test_a_camera_alone_is_localized_better_than_by_the_networks_poses() -> None:
    pipeline, outputs = run(blind_drive(20.0))
    network = [
        np.linalg.norm(s.measurement.T_map_base[:3, 3] - true_pose(s.stamp_ns)[:3, 3])
        for s in outputs.statuses
        if s.measurement is not None
    ]
    late = errors_m(outputs)[30:]
    assert len(late) > 160
    assert np.mean(late) < 0.6 * np.mean(network)
    assert pipeline.counters()["odometry.used"] == 200
    assert {s.mode for s in outputs.statuses[10:]} == {Mode.RGB_ONLY}
    by_stamp = {pose.sample.stamp_ns: pose.sample.T_odom_base for pose in outputs.vo}
    for state in outputs.states:
        np.testing.assert_allclose(state.T_map_odom @ by_stamp[state.stamp_ns], state.T_map_base, atol=1e-9)


def test_the_live_pose_has_seen_its_own_frame() -> None:
    """Odometry and measurement come with one frame: the pose that goes out then is after both."""
    _, outputs = run(blind_drive(4.0))
    after = {s.stamp_ns: s.state for s in outputs.statuses if s.verdict is Verdict.FUSED}
    compared = [(state, after[state.stamp_ns]) for state in outputs.states if state.stamp_ns in after]
    assert len(compared) > 30
    for live, status in compared:
        assert status is not None
        np.testing.assert_array_equal(live.T_map_base, status.T_map_base)


def test_the_topics_odometry_is_ignored_and_counted() -> None:
    with_topic = [e for e in drive(6.0) if e.kind is not EventKind.CLOUD]
    pipeline, outputs = run(with_topic)
    _, alone = run(blind_drive(6.0))
    assert pipeline.counters()["odometry.ignored"] == 120
    assert pipeline.counters()["odometry.used"] == 60
    assert len(outputs.states) == len(alone.states) > 50
    for one, other in zip(outputs.states, alone.states, strict=True):
        np.testing.assert_array_equal(one.T_map_base, other.T_map_base)


def test_frames_that_come_late_never_break_the_chain() -> None:
    events = blind_drive(8.0)
    images = [k for k, e in enumerate(events) if e.kind is EventKind.IMAGE]
    for k in (10, 25, 26, 40, 61):  # each changes places with the one after it
        one, other = images[k], images[k + 1]
        events[one], events[other] = events[other], events[one]
    pipeline, outputs = run(events, localizer=MovingLocalizer(exact=True))
    stamps = [pose.sample.stamp_ns for pose in outputs.vo]
    assert stamps == sorted(set(stamps))
    counters = pipeline.counters()
    assert counters["vo.gaps"] == 0
    assert counters["motion.gaps"] > 0
    last = outputs.vo[-1].sample
    expected = inverse(true_pose(stamps[0])) @ true_pose(last.stamp_ns)
    np.testing.assert_allclose(last.T_odom_base, expected, atol=1e-9)
    assert max(errors_m(outputs)[20:]) < 1.5


def test_frames_that_come_twice_never_break_the_chain() -> None:
    twice = [e for event in blind_drive(4.0) for e in ([event] * (2 if event.kind is EventKind.IMAGE else 1))]
    _, outputs = run(twice, localizer=MovingLocalizer(exact=True))
    _, once = run(blind_drive(4.0), localizer=MovingLocalizer(exact=True))
    np.testing.assert_array_equal(outputs.vo[-1].sample.T_odom_base, once.vo[-1].sample.T_odom_base)


def test_a_camera_that_is_off_for_seconds_is_a_gap_without_a_jump_and_it_finds_itself_again() -> None:
    pipeline, outputs = run(camera_off(blind_drive(16.0), 6.0, 8.0))
    counters = pipeline.counters()
    assert counters["vo.gaps"] == counters["motion.gaps"] == 1
    assert longest_step_m(outputs) < 1.0, "8 m/s at 10 Hz"
    assert errors_m(outputs)[-1] < 1.5
    assert max(e for e, s in zip(errors_m(outputs), outputs.states, strict=True) if s.stamp_ns > last_seconds()) < 2.0
    assert counters["odometry.gap"] == 1


def last_seconds() -> int:
    return START_NS + 11 * SECOND


@pytest.mark.parametrize(("every", "compared"), [(3, True), (6, False)])
def test_frames_that_went_stale_make_longer_motions_or_gaps(every: int, compared: bool) -> None:
    """One frame of three reaches the network: motions over 0.3 s. One of six is more than it was trained for."""
    model = ModelConfig(odometry="network", max_pending_frames=1)
    pipeline = Pipeline(BY_NETWORK.model_copy(update={"model": model}), MovingLocalizer(exact=True))
    total, images = Outputs(), 0
    for event in blind_drive(6.0):
        total.extend(pipeline.add(event))
        images += event.kind is EventKind.IMAGE
        if images == every:
            images = 0
            total.extend(pipeline.drain())
    assert pipeline.counters()["frames.stale"] == 60 - 60 // every
    assert (pipeline.counters()["motion.gaps"] == 0) is compared
    assert bool(total.vo) is compared
    if compared:
        first, last = total.vo[0].sample, total.vo[-1].sample
        expected = inverse(true_pose(first.stamp_ns)) @ true_pose(last.stamp_ns)
        np.testing.assert_allclose(last.T_odom_base, expected, atol=1e-9)


def test_a_bag_that_loops_starts_over_and_the_chain_goes_on_from_its_pose() -> None:
    localizer = MovingLocalizer()
    pipeline, outputs = run(list(repeated(blind_drive(8.0), 3)), localizer=localizer)
    assert pipeline.counters()["resets"] == len(outputs.resets) == localizer.resets == 2
    assert longest_step_m(outputs) < 1.0
    assert max(errors_m(outputs)[-5:]) < 2.0
    assert outputs.statuses[-2].mode is Mode.RGB_ONLY


def test_a_short_jump_back_is_told_by_the_motions() -> None:
    """Shorter than what the data's clock takes for a jump, longer than the filter's window."""
    rounds = [*blind_drive(4.6), *blind_drive(4.6, START_NS + 7_000_000)]
    pipeline, outputs = run(rounds)
    assert pipeline.counters()["resets"] == len(outputs.resets) == 1
    assert longest_step_m(outputs) < 1.0
    assert max(errors_m(outputs)[-5:]) < 2.0
    assert outputs.states[-1].stamp_ns == START_NS + 7_000_000 + round(4.5 * SECOND)


def test_a_reset_by_hand_forgets_the_pose_in_the_map_and_not_that_in_odom() -> None:
    pipeline, total = Pipeline(BY_NETWORK, MovingLocalizer()), Outputs()
    events = blind_drive(8.0)
    for k, event in enumerate(events):
        total.extend(pipeline.add(event))
        total.extend(pipeline.drain())
        if k == len(events) // 2:
            total.extend(pipeline.reset("asked for"))
    assert total.resets == ["asked for"]
    assert longest_step_m(total) < 1.0
    assert errors_m(total)[-1] < 1.5
    assert pipeline.counters()["vo.gaps"] == 0


def test_two_frames_tell_a_motion_where_the_network_has_no_pose() -> None:
    class Motions(MovingLocalizer):
        def localize(self, frame, prior=None):  # type: ignore[no-untyped-def]
            estimate = super().localize(frame, prior)
            if frame.stamp_ns < START_NS + 4 * SECOND:
                return estimate
            return NoPose(frame.stamp_ns, "nothing that it knows", estimate.motion)

    pipeline, outputs = run(blind_drive(6.0), localizer=Motions())
    assert len(outputs.vo) == 60
    assert pipeline.counters()["frames.no_pose"] == 20
    assert outputs.states[-1].stamp_ns == outputs.vo[-1].sample.stamp_ns
    assert outputs.statuses[-2].mode is Mode.DEAD_RECKONING
    assert errors_m(outputs)[-1] < 1.5


def test_without_motions_it_is_lost_and_the_reason_names_the_network() -> None:
    pipeline, reasons = Pipeline(BY_NETWORK, MovingLocalizer()), []
    for event in camera_off(blind_drive(14.0), 5.0, 11.0):
        pipeline.add(event)
        pipeline.drain()
        reasons.append(pipeline.current_problems().get("lost", ""))
    assert any("neither a motion of the network (model.odometry: network)" in reason for reason in reasons)
    assert reasons[-1] == ""


def test_clouds_are_moved_by_it_and_frames_do_not_wait_for_a_topic() -> None:
    """The cloud before an image is carried to it along the chain and a little ahead; nothing waits for `odom`."""
    config = LocalizerConfig(model=ModelConfig(odometry="network"))
    pipeline, total, waited = Pipeline(config, MovingLocalizer(exact=True)), Outputs(), []
    for event in [e for e in drive(6.0) if e.kind is not EventKind.ODOMETRY]:
        outputs = pipeline.add(event)
        outputs.extend(pipeline.drain())
        waited += [(event.stamp_ns - f.stamp_ns) / SECOND for f in outputs.frames]
        total.extend(outputs)
    assert max(waited[10:]) <= 0.1, "longer than until the next cloud"
    late = total.frames[3:]
    assert all(frame.depth_m is not None for frame in late)
    ranges = [float(np.median(f.depth_m[f.depth_m > 0])) for f in late if f.depth_m is not None]
    # the wall stands 10 m before the lidar 70 ms before the image: meanwhile 0.56 m nearer, and the camera 1 m ahead
    expected = 10.0 - 0.07 * 8.0 - (T_BASE_CAMERA[0, 3] - 0.5)
    assert np.median(ranges) == pytest.approx(expected, abs=0.05)
    assert Modality.DEPTH in total.frames[0].absent


def test_motions_without_a_mounting_are_not_believed() -> None:
    events = [e for e in blind_drive(3.0) if e.kind is not EventKind.STATIC_TRANSFORM]
    _, outputs = run(events)
    assert outputs.vo == []
    assert outputs.states == []


def test_the_frames_of_a_run_give_the_same_trajectory_again() -> None:
    """What a node used, whatever it dropped, `vmloc localize --use-stamps` turns into the same poses."""
    _, whole = run(blind_drive(6.0))
    keys = [s.key for s in whole.statuses if s.key is not None]
    used = [key for k, key in enumerate(keys) if k % 7 not in (3, 4)]
    first, again = Pipeline(BY_NETWORK, MovingLocalizer(), used), Pipeline(BY_NETWORK, MovingLocalizer(), used)
    events = blind_drive(6.0)
    one = [state for outputs in first.run(events) for state in outputs.states]
    for event in events:  # every frame at the end, as by a worker that was far behind
        again.add(event)
    other = again.finish().states
    assert [s.stamp_ns for s in one] == [s.stamp_ns for s in other]
    for a, b in zip(one, other, strict=True):
        np.testing.assert_allclose(a.T_map_base, b.T_map_base, atol=1e-9)


def test_a_node_that_is_started_again_goes_on_where_it_was(tmp_path: Path) -> None:
    class NoPoses(MovingLocalizer):
        def localize(self, frame, prior=None):  # type: ignore[no-untyped-def]
            return NoPose(frame.stamp_ns, "nothing that it knows", super().localize(frame, prior).motion)

    config = BY_NETWORK.model_copy(update={"saved_pose": SavedPoseConfig(path=str(tmp_path / "pose.json"))})
    run(blind_drive(8.0), config)
    later = [e for e in blind_drive(12.0) if e.stamp_ns == 0 or e.stamp_ns >= START_NS + 8 * SECOND]
    pipeline, outputs = run(later, config, NoPoses())
    assert pipeline.counters()["saved_pose.used"] == 1
    assert outputs.states[0].stamp_ns == START_NS + 8 * SECOND + SECOND // 10
    assert errors_m(outputs)[0] < 2.5, "the last pose, and 0.2 s at 8 m/s of which nobody has told"


def test_localize_writes_it_into_its_bag_and_takes_it_for_the_runs_odometry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(localize, "load_localizer", lambda path, config: MovingLocalizer())
    with BagWriter(tmp_path / "bag") as bag:
        bag.write_static_transforms([e.payload for e in mountings()], START_NS)
        for event in blind_drive(4.0):
            if event.kind is not EventKind.STATIC_TRANSFORM:
                bag.write(event)
    parameters = tmp_path / "robot.yaml"
    parameters.write_text("model: {odometry: network}\ninput: {depth_source: none}\n")
    out = tmp_path / "run"
    localize.run_localize(tmp_path / "bag", tmp_path / "model", out, parameters, plots=False, progress=False)
    samples = read_vo(out / "outputs")
    assert len(samples) == 40
    assert samples[0].twist_6 is None
    assert samples[1].twist_cov_66 is not None
    reader = BagReader(out / "outputs")
    moved = [t for _, message in reader.decoded(["/tf"]) for t in message.transforms]
    frames = Counter((t.header.frame_id, t.child_frame_id) for t in moved)
    assert frames["odom", "base_link"] == 40
    assert frames["map", "odom"] > 30
    log = log_of_node_run(out / "outputs", tmp_path / "bag")
    assert log.odometry is not None
    np.testing.assert_allclose(log.odometry.poses_N44[-1], samples[-1].T_odom_base, atol=1e-12)
    (last,) = [message for _, message in reader.decoded(["/localizer/vo"])][-1:]
    assert np.linalg.eigvalsh(np.reshape(last.pose.covariance, (6, 6))).min() > 0.0
