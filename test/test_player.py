"""Playing and recording over real DDS, each in a process of its own: nothing is lost, reordered or re-encoded."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs a ROS 2 client library")
pytest.importorskip("vmloc_msgs", reason="needs the message package vmloc_msgs")

from nav_msgs.msg import Odometry
from ros_graph import PATIENCE_S, PROJECT, TEST, Graph, wait_until
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import Image, PointCloud2
from std_msgs.msg import String
from tf2_msgs.msg import TFMessage
from worlds import SECOND, START_NS, cloud, drive, image, mountings, odometry, true_pose

from vmloc_ros.bag_writer import BagWriter
from vmloc_ros.bags import BagReader
from vmloc_ros.errors import BagError, ConfigError
from vmloc_ros.messages import stamp_ns
from vmloc_ros.ros import qos
from vmloc_ros.ros.player import Drop, run_play
from vmloc_ros.ros.profile import profile_setting
from vmloc_ros.types import Event, EventKind, RawImage

COUNT = 240


@pytest.fixture
def graph() -> Iterator[Graph]:
    graph = Graph()
    yield graph
    graph.close()


@pytest.fixture(scope="module")
def camera_bag(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """240 different 640x480 images at 60 Hz, 40 clouds of 60,000 points, odometry at 100 Hz."""
    path = tmp_path_factory.mktemp("bags") / "camera"
    pixels = np.random.default_rng(0).integers(0, 256, 640 * 480 * 3, np.uint8)
    with BagWriter(path) as writer:
        writer.write_static_transforms([event.payload for event in mountings()], START_NS)
        events = [cloud(START_NS + k * SECOND // 10, 60_000) for k in range(COUNT // 6)]
        events += [odometry(s, true_pose(s)) for s in (START_NS + k * SECOND // 100 for k in range(400))]
        for k in range(COUNT):
            pixels[:4] = np.frombuffer(np.uint32(k).tobytes(), np.uint8)
            stamp = START_NS + k * SECOND // 60
            raw = RawImage(stamp, "camera_optical", 480, 640, "rgb8", 1920, False, pixels.tobytes())
            events.append(Event(EventKind.IMAGE, stamp, raw))
        for event in sorted(events, key=lambda e: e.stamp_ns):
            writer.write(event)
    return path


@pytest.fixture(scope="module")
def drive_bag(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seconds of the test world."""
    path = tmp_path_factory.mktemp("bags") / "drive"
    events = drive(2.0)
    with BagWriter(path) as writer:
        writer.write_static_transforms([event.payload for event in mountings()], START_NS)
        for event in events:
            if event.kind is not EventKind.STATIC_TRANSFORM:
                writer.write(event)
    return path


class Process:
    """A play or record in a process of its own."""

    def __init__(self, code: str, log: Path) -> None:
        self.log = log
        with log.open("wb") as stream:
            self.process = subprocess.Popen(
                [sys.executable, "-c", code],
                stdout=stream,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONPATH": f"{PROJECT}:{TEST}", "PYTHONUNBUFFERED": "1"},
            )

    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def wait(self) -> int:
        return self.process.wait(timeout=PATIENCE_S)


@contextlib.contextmanager
def playing(bag: Path, folder: Path, **options: Any) -> Iterator[Process]:
    code = (
        "from pathlib import Path; from vmloc_ros.ros.player import run_play; "
        f"run_play(Path({str(bag)!r}), **{options!r})"
    )
    process = Process(code, folder / "play.log")
    try:
        yield process
    finally:
        process.process.kill()
        process.process.wait()


@contextlib.contextmanager
def recording(bag: Path, folder: Path, **options: Any) -> Iterator[Process]:
    code = (
        "from pathlib import Path; from vmloc_ros.ros.recorder import run_record; "
        f"run_record(Path({str(bag)!r}), started=lambda: print('listening'), **{options!r})"
    )
    process = Process(code, folder / "record.log")
    try:
        wait_until(lambda: "listening" in process.output(), "the recorder", PATIENCE_S)
        yield process
    finally:
        process.process.kill()
        process.process.wait()


def test_every_published_message_arrives_in_order_best_effort(graph: Graph, camera_bag: Path, tmp_path: Path) -> None:
    images: list[tuple[int, int]] = []

    def on_image(message: Image) -> None:
        images.append((stamp_ns(message.header.stamp), int(np.frombuffer(message.data[:4], np.uint32)[0])))

    graph.node.create_subscription(Image, "/image", on_image, qos.sensor(10))
    clouds = graph.collect(PointCloud2, "/points", qos.sensor(10))
    samples = graph.collect(Odometry, "/odom", qos.sensor(200))
    static = graph.collect(TFMessage, "/tf_static", qos.latched(10))
    wait_topics = ["/image", "points", "/odom"]
    options = {"wait_for_subscribers_s": PATIENCE_S, "wait_topics": wait_topics}
    with playing(camera_bag, tmp_path, **options) as process:
        assert process.wait() == 0, process.output()
        wait_until(lambda: len(images) == COUNT and len(clouds) == 40 and len(samples) == 400, "every message")
    assert [number for _, number in images] == list(range(COUNT))
    assert [stamp for stamp, _ in images] == [START_NS + k * SECOND // 60 for k in range(COUNT)]
    assert [len(message.transforms) for message in static] == [2]


def test_the_summary_says_what_was_played_and_dropped(graph: Graph, drive_bag: Path, tmp_path: Path) -> None:
    images = graph.collect(Image, "/image")
    file = tmp_path / "summary.json"
    summary = run_play(
        drive_bag,
        rate=4.0,
        drop=[Drop("image", 0.5, 1.0), ("/points", 0.0, 100.0)],
        wait_for_subscribers_s=PATIENCE_S,
        wait_topics=["image"],
        json_file=file,
    )
    wait_until(lambda: len(images) == 15, "the images that were not dropped")
    written = json.loads(file.read_text())
    assert written["published"] == summary.published
    assert summary.published["/image"] == 15
    assert summary.dropped == {"/image": 5, "/points": 20}
    assert summary.published["/points"] == 0
    seconds = [(stamp_ns(message.header.stamp) - START_NS) / SECOND for message in images]
    assert not [s for s in seconds if 0.5 <= s < 1.0]
    assert summary.wall_s >= 1.9 / 4.0
    assert summary.duration_s == pytest.approx(1.95)
    assert summary.start_ns == START_NS


def test_rate_topics_start_and_duration(graph: Graph, drive_bag: Path) -> None:
    static = graph.collect(TFMessage, "/tf_static", qos.latched(10))
    clock = graph.collect(Clock, "/clock")
    summary = run_play(
        drive_bag, rate=2.0, clock=True, start_s=0.8, duration_s=0.6, topics=["odom", "/tf_static"],
        wait_for_subscribers_s=PATIENCE_S, wait_topics=["/tf_static"],
    )  # fmt: skip
    assert summary.published == {"/odom": 12, "/tf_static": 1}
    wait_until(lambda: len(static) == 1, "what was latched before the start")
    assert summary.wall_s >= 0.25
    assert clock
    times = [message.clock.sec * SECOND + message.clock.nanosec for message in clock]
    assert times == sorted(times)
    assert times[0] >= START_NS + 0.8 * SECOND
    assert times[-1] <= START_NS + 1.4 * SECOND


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_loop_starts_over_and_a_signal_ends_it(graph: Graph, drive_bag: Path, tmp_path: Path, number: int) -> None:
    samples = graph.collect(Odometry, "/odom")
    with playing(drive_bag, tmp_path, rate=10.0, loop=True, wait_for_subscribers_s=PATIENCE_S) as process:
        wait_until(lambda: len(samples) > 90, "the third round")
        process.process.send_signal(number)
        assert process.wait() == 0, process.output()
    stamps = [stamp_ns(message.header.stamp) for message in samples]
    assert stamps[:40] == stamps[40:80]


def test_a_round_through_the_recorder_keeps_every_byte(graph: Graph, drive_bag: Path, tmp_path: Path) -> None:
    bag = tmp_path / "again"
    with recording(bag, tmp_path, regex="/(image|points|odom|tf_static|camera_info|ground_truth)") as recorder:
        run_play(
            drive_bag,
            rate=4.0,
            wait_for_subscribers_s=PATIENCE_S,
            wait_topics=["image", "points", "odom", "camera_info"],
        )
        time.sleep(0.3)
        assert not bag.exists()
        recorder.process.send_signal(signal.SIGINT)
        time.sleep(0.02)
        recorder.process.send_signal(signal.SIGINT)
        assert recorder.wait() == 0, recorder.output()
    before, after = BagReader(drive_bag), BagReader(bag)
    assert {(t.name, t.msgtype, t.count, t.latched) for t in before.topics} == {
        (t.name, t.msgtype, t.count, t.latched) for t in after.topics
    }
    for topic in before.topics:
        for sent, got in zip(before.messages([topic.name]), after.messages([topic.name]), strict=True):
            assert got.data[: len(sent.data)] == sent.data
            assert len(got.data) - len(sent.data) < 4, "DDS may fill up to a multiple of four, no more"


def test_the_recorder_takes_what_it_is_told_to_and_leaves_nothing_half_done(graph: Graph, tmp_path: Path) -> None:
    bag = tmp_path / "told"
    with recording(bag, tmp_path, topics=["chatter"]) as recorder:
        publisher = graph.publisher(String, "/chatter")
        graph.node.create_publisher(String, "/silence", 1)
        for k in range(5):
            publisher.publish(String(data=f"line {k}"))
        time.sleep(0.2)
        recorder.process.send_signal(signal.SIGTERM)
        assert recorder.wait() == 0, recorder.output()
        assert [(t.name, t.count) for t in BagReader(bag).topics] == [("/chatter", 5)]
    with recording(tmp_path / "killed", tmp_path, topics=["chatter"]) as recorder:
        graph.publisher(String, "/chatter").publish(String(data="late"))
    assert not (tmp_path / "killed").exists()


def test_what_cannot_be_played_is_named(drive_bag: Path, tmp_path: Path) -> None:
    with pytest.raises(BagError, match="nothing"):
        run_play(tmp_path / "nothing")
    with pytest.raises(BagError, match="/imagination"):
        run_play(drive_bag, topics=["imagination"])
    with pytest.raises(BagError, match="/radar"):
        run_play(drive_bag, drop=[("radar", 0.0, 1.0)])
    for options in ({"rate": 0.0}, {"start_s": -1.0}, {"start_s": 99.0}, {"duration_s": 0.0}):
        with pytest.raises(ConfigError):
            run_play(drive_bag, **options)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="no time"):
        run_play(drive_bag, drop=[("image", 2.0, 1.0)])


def test_a_message_type_that_is_not_installed_is_left_out_with_the_reason(tmp_path: Path) -> None:
    with BagWriter(tmp_path / "strange") as writer:
        writer.register("strange_msgs/msg/Strange", "int32 number\n")
        writer.write_raw("/strange", "strange_msgs/msg/Strange", b"\x00\x01\x00\x00\x01\x00\x00\x00", START_NS)
        writer.write(image(START_NS))
    summary = run_play(tmp_path / "strange", linger_s=0.0)
    assert "strange_msgs" in summary.skipped["/strange"]
    assert summary.published == {"/image": 1}


def test_the_dds_profile_is_used_unless_the_user_has_one() -> None:
    setting = profile_setting({"ROS_DISTRO": "kilted"})
    assert list(setting) == ["FASTDDS_DEFAULT_PROFILES_FILE"]
    assert Path(setting["FASTDDS_DEFAULT_PROFILES_FILE"]).read_text().count("33554432") == 1
    assert list(profile_setting({"ROS_DISTRO": "jazzy"})) == ["FASTRTPS_DEFAULT_PROFILES_FILE"]
    assert profile_setting({"FASTRTPS_DEFAULT_PROFILES_FILE": "own.xml"}) == {}
