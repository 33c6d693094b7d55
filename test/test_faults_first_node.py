"""Numbers that are none in the first messages that a node ever gets, and in scans and depth images; over DDS."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs a ROS 2 client library")
pytest.importorskip("vmloc_msgs", reason="needs the message package vmloc_msgs")

from bad_numbers import BAD, HUGE_FLOAT32, message_of, spoiled_messages
from fault_bench import Extra, FaultBench, fault_bench
from fault_outcome import Outcome
from faulty_world import Faults, seconds_of, without
from worlds import HEIGHT, RADIUS_M, SPEED_M_PER_S, START_NS, WIDTH, camera_info, drive, mountings, odometry

from vmloc_ros.types import Event, EventKind, InitialPose, RawImage, RawScan

GOOD_M = 2.0
RAYS = 400
SCAN_PLACES = ("angle_min", "angle_increment", "time_increment", "range_min", "range_max", "ranges[0]", "ranges[7]")


def finish(bench: FaultBench, fault: str, from_s: float = 1.0) -> Outcome:
    """Everything that was sent is accounted for, and the node never lost its way."""
    outcome = bench.end()
    outcome.check_outputs()
    outcome.check_counters()
    assert outcome.worst_m(from_s) < GOOD_M
    outcome.tell(fault, from_s, GOOD_M, within_s=0.3)
    return outcome


def first_messages() -> list[Extra]:
    """Every input once for every number that it holds, before anything good."""
    pose = Event(EventKind.INITIAL_POSE, START_NS, InitialPose(START_NS, "map", np.eye(4), np.eye(6)))
    sources = [(event, lambda place: True) for event in (*mountings(), camera_info(START_NS))]
    sources += [(odometry(START_NS, np.eye(4)), lambda place: place.startswith("pose.pose."))]
    sources += [(pose, lambda place: place.startswith("pose.pose.") or place.endswith(("[0]", "[35]")))]
    extras = []
    for event, chosen in sources:
        message = message_of(event)
        if event.kind is EventKind.STATIC_TRANSFORM:
            spoiled = [type(message)(transforms=[m]) for _, m in spoiled_messages(message.transforms[0])]
        else:
            spoiled = [m for _, m in spoiled_messages(message, chosen)]
        extras += [(event.kind, m) for m in spoiled]
    return [Extra(0.02 * (k - len(extras)) - 0.5, kind, m) for k, (kind, m) in enumerate(extras)]


def test_first_messages(tmp_path: Path) -> None:
    """Nothing of them is taken, and the drive after them is as any other."""
    extras = first_messages()
    good = [Extra(-0.4, event.kind, message_of(event)) for event in mountings()]
    spoiled = tuple((round(0.1 * k, 1), "pose", str(value)) for k, value in enumerate(BAD))
    events = [with_bad_points(e) if e.kind is EventKind.CLOUD and seconds_of(e) < 0.5 else e for e in drive(6.0)]
    with fault_bench(tmp_path, mounted=False) as bench:
        bench.begin(Faults(spoiled=spoiled))
        bench.play(events, extras=[*extras, *good])
        bench.say("camera", "rejected.camera_info_not_finite", "not finite")
        outcome = finish(bench, "a bad number in every first message", from_s=1.2)
    sent = {kind: sum(extra.kind is kind for extra in extras) for kind in {extra.kind for extra in extras}}
    assert outcome.counted["rejected.tf_static_not_finite"] == sent[EventKind.STATIC_TRANSFORM] == 4 * 14
    assert outcome.counted["rejected.camera_info_not_finite"] == 3 * 35
    assert outcome.counted["rejected.odom_not_finite"] == sent[EventKind.ODOMETRY] == 4 * 7
    assert outcome.total("rejected.initialpose_") == sent[EventKind.INITIAL_POSE] == 4 * 9
    assert outcome.counted["verdict.not_finite"] == len(spoiled)
    assert "not finite" in outcome.log


def with_bad_points(event: Event) -> Event:
    return replace(event, payload=replace(event.payload, data=np.full(6000, np.nan, np.float32).tobytes()))


def test_scans(tmp_path: Path) -> None:
    """Bad ranges are no returns; a scan whose angles are bad is refused."""
    events: list[Event] = []
    for event in drive(6.0):
        if event.kind is EventKind.CLOUD:
            scan = RawScan(event.stamp_ns, "lidar", -1.0, 2.0 / RAYS, 0.0, 0.1, 50.0, np.full(RAYS, 8.0, np.float32))
            event = Event(EventKind.SCAN, event.stamp_ns, scan)
        events.append(event)
    extras = []
    for event in (e for e in events if e.kind is EventKind.SCAN and 2.0 <= seconds_of(e) < 5.0):
        spoiled = list(spoiled_messages(message_of(event), SCAN_PLACES.__contains__))
        _, message = spoiled[len(extras) % len(spoiled)]
        extras.append(Extra(seconds_of(event), EventKind.SCAN, message))
    times = {extra.at_s for extra in extras}
    kept = [e for e in events if e.kind is not EventKind.SCAN or seconds_of(e) not in times]
    with fault_bench(tmp_path, {"input": {"depth_source": "scan"}}) as bench:
        bench.begin()
        bench.play(kept, extras=extras)
        outcome = finish(bench, "a bad number in every scan for 3 s")
    assert len(extras) == 30
    assert outcome.counted["rejected.scan_not_finite"] >= 12
    assert outcome.counted["verdict.fused"] == 60
    assert {s.mode for s in outcome.frames[10:20]} == {"RGB_DEPTH"}


def with_depth_images(events: list[Event], everywhere: bool) -> list[Event]:
    """The drive with depth images instead of clouds; for two seconds all pixels, or every other one, are bad."""
    changed = []
    for event in (e for e in events if e.kind is not EventKind.CLOUD):
        changed.append(event)
        if event.kind is EventKind.IMAGE:
            second = seconds_of(event)
            depth_m = np.full(HEIGHT * WIDTH, 5.0, np.float32)
            if 2.0 <= second < 4.0:
                depth_m[:: 1 if everywhere else 2] = np.float32((*BAD[:3], HUGE_FLOAT32)[round(10 * second) % 4])
            size = (HEIGHT, WIDTH, "32FC1", 4 * WIDTH, False)
            image = RawImage(event.stamp_ns, "camera_optical", *size, depth_m.tobytes())
            changed.append(Event(EventKind.DEPTH, event.stamp_ns, image))
    return changed


def test_depth_images(tmp_path: Path) -> None:
    """A pixel that is no number is no return; an image without returns is absent."""
    with fault_bench(tmp_path, {"input": {"depth_source": "depth"}}) as bench:
        for everywhere in (True, False):
            bench.begin()
            bench.play(with_depth_images(drive(6.0), everywhere))
            outcome = finish(bench, f"bad numbers in {'all' if everywhere else 'half of the'} pixels of depth for 2 s")
            assert outcome.counted["rejected.depth_empty"] == (20 if everywhere else 0)
            assert outcome.counted["verdict.fused"] == 60
            modes = {status.mode for status in outcome.frames[10:]}
            assert modes == ({"RGB_DEPTH", "RGB_ONLY"} if everywhere else {"RGB_DEPTH"})


def test_covariance_all_zero(tmp_path: Path) -> None:
    """A twist covariance of zeros means "not known", not "exact": without the network the uncertainty grows."""
    twist_6 = np.array([SPEED_M_PER_S, 0.0, 0.0, 0.0, 0.0, SPEED_M_PER_S / RADIUS_M])
    events = [
        replace(e, payload=replace(e.payload, twist_6=twist_6, twist_cov_66=np.zeros((6, 6))))
        if e.kind is EventKind.ODOMETRY
        else e
        for e in without(drive(14.0), (EventKind.IMAGE, EventKind.CLOUD), 5.0, 10.0)
    ]
    with fault_bench(tmp_path, {"filter": {"use_twist_covariance": True}}) as bench:
        bench.begin()
        bench.play(events)
        outcome = finish(bench, "odometry with a covariance of zeros")
    before, after = (outcome.covariance_near(second) for second in (4.9, 9.9))
    assert np.trace(after[:2, :2]) > 1.5 * np.trace(before[:2, :2])
    assert outcome.counted["verdict.fused"] == 90
