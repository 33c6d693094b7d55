"""Pairing never waits for ever, never makes a frame twice, and decides on data time alone."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from vmloc_ros.config import InputConfig, LocalizerConfig, ProjectionConfig
from vmloc_ros.pairing import Pairing
from vmloc_ros.types import FrameKey

MS = 1_000_000


def config(
    source: str = "points", accumulate: str = "past", window_s: float = 0.15, use_image: bool = True
) -> LocalizerConfig:
    return LocalizerConfig(
        input=InputConfig(depth_source=source, use_image=use_image),  # type: ignore[arg-type]
        projection=ProjectionConfig(accumulate=accumulate, window_s=window_s),  # type: ignore[arg-type]
    )


def feed(pairing: Pairing, messages: list[tuple[str, int]]) -> list[tuple[int, FrameKey]]:
    """Messages ("i"mage, "d"epth, "o"dometry; stamp in ms) in order; gives (data time, key) of every frame."""
    now, odometry, out = 0, None, []
    for kind, stamp_ms in messages:
        stamp = stamp_ms * MS
        now = max(now, stamp)
        if kind == "i":
            pairing.add_image(stamp)
        elif kind == "d":
            pairing.add_depth(stamp)
        else:
            odometry = stamp if odometry is None else max(odometry, stamp)
        out += [(now // MS, key) for key in pairing.ready(now, odometry)]
    return out


def test_a_frame_goes_out_when_cloud_and_odometry_have_passed_it() -> None:
    frames = feed(Pairing(config()), [("o", 990), ("d", 960), ("i", 1000), ("o", 1000), ("d", 1060), ("o", 1060)])
    assert frames == [(1060, FrameKey(1000 * MS, 1000 * MS, (960 * MS,)))]


def test_a_partner_that_is_overdue_is_not_waited_for() -> None:
    frames = feed(Pairing(config("depth")), [("d", 900), ("i", 1000), ("o", 1100), ("o", 1249), ("o", 1250)])
    assert frames[0] == (1250, FrameKey(1000 * MS, 1000 * MS))
    assert [key.image_stamp_ns for _, key in frames] == [1000 * MS]


def test_depth_images_pair_by_the_instant() -> None:
    frames = feed(Pairing(config("depth")), [("i", 1000), ("d", 1010), ("d", 1100), ("i", 1100)])
    assert [key for _, key in frames] == [
        FrameKey(1000 * MS, 1000 * MS, (1010 * MS,)),
        FrameKey(1100 * MS, 1100 * MS, (1100 * MS,)),
    ]
    assert [now for now, _ in frames] == [1010, 1100]


def test_a_lost_depth_image_is_noticed_with_the_next_one() -> None:
    frames = feed(Pairing(config("depth")), [("i", 1000), ("d", 1100)])
    assert frames == [(1100, FrameKey(1000 * MS, 1000 * MS))]


def test_a_dead_camera_leaves_frames_of_depth_alone() -> None:
    messages = [(kind, t) for t in range(1000, 3000, 100) for kind in ("d", "o")]
    frames = feed(Pairing(config()), messages)
    assert [key.image_stamp_ns for _, key in frames] == [None] * len(frames)
    assert frames[0][1] == FrameKey(1000 * MS, None, (1000 * MS,))
    assert len(frames) == 17  # the last three are not overdue yet
    assert frames[3][1].depth_stamps_ns == (1200 * MS, 1300 * MS)


def test_a_dead_lidar_is_waited_for_only_at_first() -> None:
    messages = [("d", 1000), *[(kind, t) for t in range(1050, 4000, 50) for kind in ("i", "o")]]
    waits = [now - key.stamp_ns // MS for now, key in feed(Pairing(config()), messages)]
    assert max(waits) == 250
    assert waits[-1] == 0
    assert waits.count(0) > 30


def test_around_holds_the_frame_until_the_window_has_passed() -> None:
    messages = [("o", t) for t in range(0, 500, 100)] + [
        ("d", 700),
        ("i", 1000),
        ("d", 1300),
        ("o", 1500),
        ("d", 1500),
        ("d", 2001),
    ]
    (only,) = feed(Pairing(config("scan", "around", 1.0)), messages)
    assert only == (2001, FrameKey(1000 * MS, 1000 * MS, (700 * MS, 1300 * MS, 1500 * MS)))


def test_without_a_camera_depth_goes_out_at_once() -> None:
    frames = feed(Pairing(config(use_image=False)), [("d", 1000), ("o", 1000)])
    assert frames == [(1000, FrameKey(1000 * MS, None, (1000 * MS,)))]


def test_repeated_stamps_make_one_frame_and_the_end_releases_everything() -> None:
    pairing = Pairing(config())
    assert pairing.add_image(5 * MS)
    assert not pairing.add_image(5 * MS)
    assert pairing.waiting
    assert pairing.ready(5 * MS, None) == []
    assert pairing.ready(5 * MS, None, everything=True) == [FrameKey(5 * MS, 5 * MS)]
    assert pairing.ready(5 * MS, None, everything=True) == []
    assert not pairing.waiting


@given(
    st.lists(st.tuples(st.sampled_from("ido"), st.integers(1, 3000)), max_size=60),
    st.sampled_from(["points", "depth", "none"]),
)
@settings(deadline=None, max_examples=150)
def test_every_image_becomes_exactly_one_frame(messages: list[tuple[str, int]], source: str) -> None:
    pairing = Pairing(config(source))
    frames = feed(pairing, messages)
    keys = [key for _, key in frames] + pairing.ready(4000 * MS, None, everything=True)
    images = [key.image_stamp_ns for key in keys if key.image_stamp_ns is not None]
    assert sorted(images) == sorted({t * MS for kind, t in messages if kind == "i"})
    for now, key in frames:
        assert key.stamp_ns // MS <= now
        assert all(0 <= key.stamp_ns - d <= 150 * MS for d in key.depth_stamps_ns) or source == "depth"


def test_what_comes_twice_and_what_a_reset_forgets_is_counted() -> None:
    pairing = Pairing(config("depth"))
    feed(pairing, [("i", 1000), ("i", 1000), ("d", 1500), ("d", 1500), ("d", 1500)])
    assert (pairing.repeated, pairing.forgotten) == (3, 0)
    waiting = len(pairing._waiting_images) + len(pairing._waiting_depths)
    assert waiting > 0
    pairing.clear()
    assert (pairing.repeated, pairing.forgotten) == (3, waiting)
    pairing.clear()
    assert pairing.forgotten == waiting
    assert pairing.add_image(1000 * MS)  # the stamps of the time before are known no more
