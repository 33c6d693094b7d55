"""Bags: what goes in comes out, what is broken is refused or counted, what is killed leaves nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
from rosbags.rosbag2 import StoragePlugin, Writer

from vmloc_ros.bag_messages import STATUS_DEFINITION
from vmloc_ros.bag_recording import BagRecording
from vmloc_ros.bag_writer import typestore
from vmloc_ros.bags import BagReader, BagWriter
from vmloc_ros.config import TopicNames
from vmloc_ros.errors import BagError, DatasetError
from vmloc_ros.geometry import exp_se3
from vmloc_ros.types import (
    CameraInfo,
    EncodedImage,
    Event,
    EventKind,
    FrameKey,
    FusedState,
    InitialPose,
    Mode,
    OdometrySample,
    PointField,
    PoseMeasurement,
    RawCloud,
    RawImage,
    RawScan,
    StaticTransform,
    Status,
    Verdict,
)

START_NS = 1_700_000_000_123_456_789
MOUNTS = [
    StaticTransform("base_link", "camera_optical", exp_se3([1.0, 0.2, 1.5, -1.2, 1.2, -1.2])),
    StaticTransform("base_link", "lidar", exp_se3([0.5, 0.0, 2.0, 0.0, 0.0, 0.1])),
]


def odometry(stamp_ns: int, kind: EventKind = EventKind.ODOMETRY, twist: bool = True) -> Event:
    frames = ("map", "base_link") if kind is EventKind.TRUTH else ("odom", "base_link")
    seconds = (stamp_ns - START_NS) / 1e9
    T = exp_se3([seconds * 5.0, 0.3, 0.0, 0.01, 0.0, 0.4 * seconds])
    twist_6 = np.array([5.0, 0.0, 0.0, 0.0, 0.0, 0.4]) if twist else None
    cov_66 = np.diag([0.1, 0.2, 0.3, 0.01, 0.02, 0.03]) if twist else None
    return Event(kind, stamp_ns, OdometrySample(stamp_ns, *frames, T, twist_6, cov_66))


def sensor_events() -> list[Event]:
    """One second of everything, in order of stamp."""
    rng = np.random.default_rng(1)
    K = np.array([[300.0, 0.0, 20.0], [0.0, 300.0, 15.0], [0.0, 0.0, 1.0]])
    fields = tuple(PointField(name, 4 * i, 7, 1) for i, name in enumerate(("x", "y", "z", "time")))
    events = []
    for index in range(10):
        stamp = START_NS + index * 100_000_000
        pixels = rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)
        depth_mm = rng.integers(0, 9000, (30, 40)).astype("<u2")
        points = rng.normal(size=(50, 4)).astype("<f4")
        image = RawImage(stamp, "camera_optical", 30, 40, "rgb8", 120, False, pixels.tobytes())
        depth = RawImage(stamp, "camera_optical", 30, 40, "16UC1", 80, False, depth_mm.tobytes())
        cloud = RawCloud(stamp, "lidar", 1, 50, fields, False, 16, 800, points.tobytes())
        scan = RawScan(stamp, "lidar", -1.5, 0.25, 0.0009765625, 0.5, 50.0, rng.uniform(0, 50, 13).astype("<f4"))
        info = CameraInfo(
            stamp, "camera_optical", 30, 40, "plumb_bob", (0.1, -0.2, 0.0, 0.0, 0.0), K, np.eye(3),
            np.hstack([K, np.zeros((3, 1))]), 1, 1, (2, 3, 30, 20),
        )  # fmt: skip
        events += [
            odometry(stamp, twist=index % 2 == 0), odometry(stamp, EventKind.TRUTH),
            Event(EventKind.CAMERA_INFO, stamp, info), Event(EventKind.IMAGE, stamp, image),
            Event(EventKind.DEPTH, stamp, depth), Event(EventKind.CLOUD, stamp, cloud),
            Event(EventKind.SCAN, stamp, scan),
        ]  # fmt: skip
    pose = InitialPose(START_NS + 950_000_000, "map", exp_se3([1, 2, 0, 0, 0, 1]), np.diag([1.0, 2, 3, 0.1, 0.2, 0.3]))
    return [*events, Event(EventKind.INITIAL_POSE, pose.stamp_ns, pose)]


def as_plain(value: object) -> object:
    """A payload as comparable data: every number, exactly, buffers as bytes."""
    if isinstance(value, np.ndarray | bytes | memoryview):
        return bytes(np.ascontiguousarray(value).data) if not isinstance(value, bytes) else value
    if hasattr(value, "__slots__"):
        return {name: as_plain(getattr(value, name)) for name in value.__slots__}
    return value


def assert_same(written: Event, read: Event) -> None:
    assert (written.kind, written.stamp_ns) == (read.kind, read.stamp_ns)
    for name in written.payload.__slots__:
        one, other = getattr(written.payload, name), getattr(read.payload, name)
        if name.startswith(("T_", "cov_", "twist_")) and one is not None:  # through a quaternion and back
            assert np.allclose(one, other, rtol=0.0, atol=1e-12), name
        else:
            assert as_plain(one) == as_plain(other), name


def write_bag(path: Path, events: Iterable[Event], mounts: list[StaticTransform] = MOUNTS) -> Path:
    with BagWriter(path) as writer:
        writer.write_static_transforms(mounts, START_NS)
        for event in events:
            writer.write(event)
    return path


@pytest.fixture(scope="module")
def bag(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bag(tmp_path_factory.mktemp("bags") / "drive", sensor_events())


def write_raw(path: Path, topic: str, msgtype: str, payloads: list[bytes], storage: StoragePlugin) -> Path:
    with Writer(path, version=8, storage_plugin=storage) as writer:
        connection = writer.add_connection(topic, msgtype, typestore=typestore())
        for index, data in enumerate(payloads):
            writer.write(connection, START_NS + index, data)
    return path


def test_events_come_back_equal(bag: Path) -> None:
    reader = BagReader(bag)
    read = list(reader.events())
    written = sensor_events()
    assert len(read) == len(written) == 71
    key = {kind: i for i, kind in enumerate(EventKind)}
    for one, other in zip(
        sorted(written, key=lambda e: (e.stamp_ns, key[e.kind])),
        sorted(read, key=lambda e: (e.stamp_ns, key[e.kind])),
        strict=True,
    ):
        assert_same(one, other)
    assert [event.stamp_ns for event in read] == sorted(event.stamp_ns for event in written)
    assert reader.rejected == {}
    assert (reader.start_ns, reader.end_ns) == (START_NS, START_NS + 950_000_000)
    assert reader.count([EventKind.IMAGE, EventKind.ODOMETRY]) == 20


def test_static_transforms_truth_and_latching(bag: Path) -> None:
    reader = BagReader(bag)
    for written, read in zip(MOUNTS, reader.static_transforms(), strict=True):
        assert (written.parent, written.child) == (read.parent, read.child)
        assert np.allclose(written.T_parent_child, read.T_parent_child, atol=1e-12)
    truth = reader.truth()
    assert len(truth) == 10
    assert truth.stamps_ns[0] == START_NS
    assert [topic.name for topic in reader.topics if topic.latched] == ["/tf_static"]
    assert EventKind.STATIC_TRANSFORM not in {event.kind for event in reader.events()}


def test_a_single_file_and_a_part_of_it(bag: Path) -> None:
    reader = BagReader(bag / "drive.mcap")
    some = list(reader.events([EventKind.ODOMETRY], START_NS + 300_000_000, START_NS + 600_000_000))
    assert [event.stamp_ns - START_NS for event in some] == [300_000_000, 400_000_000, 500_000_000]


def test_serialized_messages_pass_unchanged(bag: Path, tmp_path: Path) -> None:
    with BagWriter(tmp_path / "copy") as writer:
        for message in BagReader(bag).messages():
            writer.write_raw(message.topic, message.msgtype, message.data, message.log_ns)
    assert list(BagReader(tmp_path / "copy").messages()) == list(BagReader(bag).messages())
    only = list(BagReader(bag).messages(["odom"]))
    assert {message.topic for message in only} == {"/odom"}
    with pytest.raises(BagError, match=r"no topic /nothing; it holds .*/camera_info"):
        list(BagReader(bag).messages(["nothing"]))


def test_other_topic_names_and_sqlite(tmp_path: Path) -> None:
    """A bag that somebody else made: sqlite3, other names, a compressed image."""
    store = typestore()
    source = write_bag(tmp_path / "source", sensor_events())
    with Writer(tmp_path / "other", version=8, storage_plugin=StoragePlugin.SQLITE3) as writer:
        names = {"/image": "/front/camera/image_raw", "/odom": "/wheel/odometry", "/points": "/os1/points"}
        connections = {}
        for message in BagReader(source).messages(list(names)):
            if message.topic not in connections:
                connections[message.topic] = writer.add_connection(
                    names[message.topic], message.msgtype, typestore=store
                )
            writer.write(connections[message.topic], message.log_ns, message.data)
    topics = TopicNames(image="front/camera/image_raw", odom="/wheel/odometry", points="os1/points")
    reader = BagReader(tmp_path / "other", topics)
    kinds = [event.kind for event in reader.events()]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {
        EventKind.IMAGE: 10,
        EventKind.ODOMETRY: 10,
        EventKind.CLOUD: 10,
    }
    assert not reader.has(EventKind.CAMERA_INFO)
    assert reader.static_transforms() == []
    with pytest.raises(BagError, match=r"/camera_info .*it holds .*/os1/points \[sensor_msgs/msg/PointCloud2\] x10"):
        reader.require(EventKind.IMAGE, EventKind.CAMERA_INFO)
    with pytest.raises(BagError, match="none of the topics"):
        list(BagReader(tmp_path / "other").events())


def test_compressed_images_stand_in_for_the_image_topic(tmp_path: Path) -> None:
    image = EncodedImage(START_NS, "camera_optical", "jpeg", b"\xff\xd8\xff\xd9")
    path = write_bag(tmp_path / "bag", [Event(EventKind.IMAGE, START_NS, image)])
    reader = BagReader(path)
    assert reader.topic_of(EventKind.IMAGE) == "/image/compressed"
    (event,) = reader.events()
    assert_same(Event(EventKind.IMAGE, START_NS, image), event)
    (same,) = BagReader(path, TopicNames(image="image/compressed")).events()
    assert_same(event, same)


def test_a_topic_of_another_type_is_named(bag: Path) -> None:
    with pytest.raises(BagError, match=r"/odom holds nav_msgs/msg/Odometry, but the role 'image' needs sensor_msgs"):
        BagReader(bag, TopicNames(image="odom"))


@pytest.mark.parametrize("storage", [StoragePlugin.MCAP, StoragePlugin.SQLITE3])
def test_unusable_messages_are_counted_and_the_rest_is_read(bag: Path, tmp_path: Path, storage: StoragePlugin) -> None:
    good = [message.data for message in BagReader(bag).messages(["odom"])]
    zero_quaternion = bytearray(good[1])
    at = good[1].index(b"base_link\0") + 12 + 24  # the text with its padding, then the position
    at += -(at - 4) % 8
    zero_quaternion[at : at + 32] = bytes(32)
    payloads = [good[0], good[1][:40], b"", b"\x00\x01\x00\x00", bytes(zero_quaternion), good[2]]
    path = write_raw(tmp_path / "bad", "/odom", "nav_msgs/msg/Odometry", payloads, storage)
    reader = BagReader(path)
    assert [event.stamp_ns for event in reader.events()] == [START_NS, START_NS + 200_000_000]
    assert reader.rejected == {"/odom: serialization": 3, "/odom: zero_quaternion": 1}
    assert "quaternion is zero" in reader.first_rejected["/odom: zero_quaternion"]


def test_what_is_no_bag(tmp_path: Path) -> None:
    with pytest.raises(BagError, match="no such bag"):
        BagReader(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BagError, match=r"no metadata\.yaml; it is not a bag"):
        BagReader(tmp_path / "empty")
    (tmp_path / "text.mcap").write_text("not a bag")
    with pytest.raises(BagError, match="cannot be read"):
        BagReader(tmp_path / "text.mcap")
    (tmp_path / "drive.bag").write_bytes(b"#ROSBAG V2.0\n")
    with pytest.raises(BagError, match="storage format"):
        BagReader(tmp_path / "drive.bag")
    unknown = write_bag(tmp_path / "unknown", sensor_events()[:3])
    metadata = unknown / "metadata.yaml"
    metadata.write_text(metadata.read_text().replace("storage_identifier: mcap", "storage_identifier: tape"))
    with pytest.raises(BagError, match="tape"):
        BagReader(unknown)
    metadata.unlink()
    with pytest.raises(BagError, match=r"reindex.*unknown\.mcap"):
        BagReader(unknown)


@pytest.mark.parametrize("suffix", [".mcap", ".db3"])
def test_damaged_bags_raise_nothing_but_bag_errors(bag: Path, tmp_path: Path, suffix: str) -> None:
    """Truncated at and flipped in random places: what can be read is read, the rest is a BagError."""
    messages = [message.data for message in BagReader(bag).messages(["image"])]
    storage = StoragePlugin.MCAP if suffix == ".mcap" else StoragePlugin.SQLITE3
    whole = write_raw(tmp_path / "whole", "/image", "sensor_msgs/msg/Image", messages, storage)
    content = (whole / f"whole{suffix}").read_bytes()
    rng = np.random.default_rng(3)
    failures = []
    for trial in range(60):
        damaged = bytearray(content)
        if trial % 2:
            del damaged[int(rng.integers(0, len(content))) :]
        else:
            for place in rng.integers(0, len(content), 20):
                damaged[place] ^= int(rng.integers(1, 256))
        path = tmp_path / f"damaged{suffix}"
        path.write_bytes(damaged)
        try:
            reader = BagReader(path)
            assert len(list(reader.events())) <= 10
        except BagError as error:
            failures.append(str(error))
    assert len(failures) > 20
    assert all(f"damaged{suffix}" in text for text in failures)


def test_an_error_while_writing_leaves_nothing(tmp_path: Path) -> None:
    def events() -> Iterator[Event]:
        yield odometry(START_NS)
        raise DatasetError("the dataset broke")

    with pytest.raises(DatasetError):
        write_bag(tmp_path / "half", events())
    assert list(tmp_path.iterdir()) == []


def test_a_killed_writer_leaves_no_bag_under_the_name(tmp_path: Path) -> None:
    script = f"""
        import os, signal, sys
        from pathlib import Path
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from test_bags import START_NS, odometry
        from vmloc_ros.bags import BagWriter
        with BagWriter(Path({str(tmp_path / "drive")!r})) as writer:
            for index in range(1000):
                writer.write(odometry(START_NS + index))
            os.kill(os.getpid(), signal.SIGKILL)
    """
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    run = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], env=environment, check=False, timeout=120)
    assert run.returncode == -signal.SIGKILL
    assert [item.name for item in tmp_path.iterdir()] == ["drive.part"]
    write_bag(tmp_path / "drive", [odometry(START_NS)])
    assert [item.name for item in tmp_path.iterdir()] == ["drive"]
    assert len(list(BagReader(tmp_path / "drive").events())) == 1


def test_nothing_is_overwritten_unasked(tmp_path: Path) -> None:
    path = write_bag(tmp_path / "bag", [odometry(START_NS)])
    with pytest.raises(BagError, match="exists already"):
        BagWriter(path)
    with BagWriter(path, overwrite=True) as writer:
        writer.write(odometry(START_NS))
        writer.write(odometry(START_NS + 1))
    assert BagReader(path).message_count == 2
    precious = tmp_path / "photos"
    precious.mkdir()
    (precious / "cat.jpg").write_bytes(b"cat")
    with pytest.raises(BagError, match="not a bag"):
        BagWriter(precious, overwrite=True)
    with pytest.raises(BagError, match="a bag is a folder"):
        BagWriter(tmp_path / "drive.mcap")


def test_types_that_do_not_fit(tmp_path: Path) -> None:
    with BagWriter(tmp_path / "bag") as writer:
        with pytest.raises(BagError, match="acme_msgs/msg/Thing"):
            writer.write_raw("/thing", "acme_msgs/msg/Thing", b"\x00\x01\x00\x00\x07\x00\x00\x00", START_NS)
        writer.register("acme_msgs/msg/Thing", "int32 number\n")
        writer.write_raw("/thing", "acme_msgs/msg/Thing", b"\x00\x01\x00\x00\x07\x00\x00\x00", START_NS)
        with pytest.raises(BagError, match="cannot hold"):
            writer.write_raw("/thing", "std_msgs/msg/String", b"", START_NS)
        with pytest.raises(BagError, match="cannot be used"):
            writer.register("acme_msgs/msg/Bad", "string[ name\n")
    with pytest.raises(BagError, match="not open"):
        writer.write_raw("/thing", "std_msgs/msg/String", b"", START_NS)
    assert [topic.msgtype for topic in BagReader(tmp_path / "bag").topics] == ["acme_msgs/msg/Thing"]


def status(stamp_ns: int, is_frame: bool) -> Status:
    T = exp_se3([1.0, 2.0, 0.0, 0.0, 0.0, 0.5])
    key = FrameKey(stamp_ns, stamp_ns, (stamp_ns - 5, stamp_ns + 7)) if is_frame else None
    measurement = PoseMeasurement(stamp_ns, T, np.eye(6)) if is_frame else None
    return Status(
        stamp_ns, Mode.RGB_DEPTH, Verdict.FUSED, "", key, FusedState(stamp_ns, T, np.eye(6), T), measurement,
        {"rgb": 0.5, "depth": 0.3, "prior": 0.2}, 0.9, 3.2, 6, 41.5, {}, {"frames.paired": 7},
    )  # fmt: skip


def test_outputs_of_a_run(tmp_path: Path) -> None:
    T, cov_66 = exp_se3([1.0, 2.0, 0.0, 0.0, 0.0, 0.5]), np.diag([1.0, 4.0, 9.0, 0.1, 0.2, 0.3])
    with BagWriter(tmp_path / "run") as writer:
        writer.write_status("/localizer/status", status(START_NS, True), "map")
        writer.write_status("/localizer/status", status(START_NS + 10, False), "map")
        writer.write_pose("/localizer/pose", START_NS, "map", T, cov_66)
        writer.write_path("/localizer/path", START_NS, "map", [(START_NS - 1, T), (START_NS, T)])
        writer.write_transform(START_NS, "map", "odom", T)
        writer.write_diagnostics(START_NS, [("localizer: camera", 1, "silent for 3 s", {"received": 12})])
    reader = BagReader(tmp_path / "run", TopicNames(odom="unused"))
    assert reader.frame_keys() == [FrameKey(START_NS, START_NS, (START_NS - 5, START_NS + 7))]
    assert {topic.name: topic.count for topic in reader.topics} == {
        "/diagnostics": 1, "/localizer/path": 1, "/localizer/pose": 1, "/localizer/status": 2, "/tf": 1,
    }  # fmt: skip
    stored = {m.topic: typestore().deserialize_cdr(m.data, m.msgtype) for m in reader.messages()}
    wire = np.array(stored["/localizer/pose"].pose.covariance).reshape(6, 6)  # type: ignore[attr-defined]
    R = T[:3, :3]
    assert np.allclose(wire[:3, :3], R @ cov_66[:3, :3] @ R.T)
    with pytest.raises(BagError, match="LocalizationStatus"):
        BagReader(write_bag(tmp_path / "other", [odometry(START_NS)])).frame_keys()


def test_the_status_definition_is_that_of_the_interface_package() -> None:
    text = (Path(__file__).resolve().parents[1] / "msg" / "LocalizationStatus.msg").read_text()
    lines = [line.split("#")[0].strip() for line in text.splitlines()]
    assert [line for line in lines if line] == STATUS_DEFINITION.splitlines()


def test_a_bag_is_a_recording_sorted_by_stamp(tmp_path: Path) -> None:
    events = [event for event in sensor_events() if event.kind in (EventKind.ODOMETRY, EventKind.CLOUD)]
    with BagWriter(tmp_path / "late") as writer:
        for event in events:  # the clouds arrive 150 ms late, and one very late
            late_ns = 150_000_000 if event.kind is EventKind.CLOUD else 0
            writer.write(event, event.stamp_ns + late_ns)
        for index in range(30):
            stamp = START_NS + 1_000_000_000 + index * 100_000_000
            writer.write(odometry(stamp), stamp)
        writer.write(events[3], START_NS + 3_900_000_000)
    recording = BagRecording(tmp_path / "late")
    stamps = [event.stamp_ns for event in recording.events()]
    assert stamps == sorted(stamps)
    assert len(stamps) == len(events) + 30
    late = f"{events[3].kind.value} arrived too late to be sorted (first: stamp {events[3].stamp_ns})"
    assert recording.skipped == {late: 1}
    assert recording.event_count() == len(events) + 31
    with pytest.raises(DatasetError, match="ground_truth"):
        recording.truth()
    part = BagRecording(tmp_path / "late", start_s=1.0, duration_s=0.5)
    assert 5 <= len(list(part.events())) <= 7


def test_a_recording_needs_a_sensor(tmp_path: Path) -> None:
    with BagWriter(tmp_path / "bag") as writer:
        writer.write_transform(START_NS, "map", "odom", np.eye(4))
    with pytest.raises(BagError, match=r"none of the configured sensor topics; it holds /tf"):
        BagRecording(tmp_path / "bag")
