"""The saved pose: what is written is read, what does not fit is refused by name, and how it is carried to the data."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from saved_poses import FRAMES, MODEL, content
from worlds import SECOND, START_NS

from vmloc_ros.config import FilterConfig, FrameNames, SavedPoseConfig
from vmloc_ros.errors import SavedPoseError
from vmloc_ros.geometry import Array, exp_se3, make_pose
from vmloc_ros.saved_pose import (
    MAX_WIDENING_M,
    MAX_WIDENING_RAD,
    SavedPose,
    check_age,
    check_origin,
    continued,
    ran_on,
    read_saved_pose,
    write_saved_pose,
)
from vmloc_ros.types import OdometrySample

tangents = st.lists(st.floats(-3.0, 3.0), min_size=6, max_size=6)


def example() -> SavedPose:
    return content(exp_se3([5, 2, 0, 0, 0, 0.4]), exp_se3([30, 1, 0, 0, 0, 0.1]), START_NS)


def sample(stamp_ns: int, T_odom_base: Array) -> OdometrySample:
    return OdometrySample(stamp_ns, "odom", "base_link", T_odom_base)


# ------------------------------------------------------------------------------------------------------------- the file


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(tangents, tangents, st.integers(1, 2**62), st.integers(0, 100))
def test_what_is_written_is_read_to_the_last_bit(
    tmp_path: Path, pose: list[float], odom: list[float], stamp_ns: int, seed: int
) -> None:
    path, saved = tmp_path / "folder" / "pose.json", content(exp_se3(pose), exp_se3(odom), stamp_ns, seed)
    write_saved_pose(path, saved)
    assert read_saved_pose(path) == saved
    assert [p.name for p in path.parent.iterdir()] == ["pose.json"]


def test_no_file_is_no_pose_and_no_error(tmp_path: Path) -> None:
    assert read_saved_pose(tmp_path / "none.json") is None


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.data())
def test_a_file_cut_short_or_filled_with_anything_is_refused(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "pose.json"
    write_saved_pose(path, example())
    whole = path.read_bytes()
    end = data.draw(st.integers(0, len(whole) - 3))
    path.write_bytes(whole[:end] + data.draw(st.sampled_from([b"", b"\x00" * 40, b"\xff\xfe", b"garbage"])))
    with pytest.raises(SavedPoseError) as error:
        read_saved_pose(path)
    assert error.value.reason == "malformed"
    assert str(path) in str(error.value)


def changed(**changes: object) -> str:
    return json.dumps(example().model_dump(mode="json") | changes)


BAD_CONTENTS = {
    "a list": "[1, 2]",
    "deep": "[" * 30_000,
    "huge": " " * 100_000,
    "a pickle": "\x80\x04\x95",
    "another version": changed(format_version=2),
    "an unknown key": changed(surprise=1),
    "no stamp": changed(stamp_ns=0),
    "a stamp beyond any": changed(stamp_ns=10**30),
    "a stamp as text": changed(stamp_ns="1700000000000000000"),
    "three rows": changed(T_map_base=np.eye(4).tolist()[:3]),
    "NaN": changed(T_map_base=np.full((4, 4), np.nan).tolist()),
    "infinity": changed(cov_66=np.full((6, 6), np.inf).tolist()),
    "1e999": changed(T_map_base=make_pose(np.eye(3), [77.0, 0.0, 0.0]).tolist()).replace("77.0", "1e999"),
    "1e308": changed(T_odom_base=np.full((4, 4), 1e308).tolist()),
    "no rotation": changed(T_map_base=np.diag([2.0, 2.0, 2.0, 1.0]).tolist()),
    "a reflection": changed(T_odom_base=np.diag([1.0, 1.0, -1.0, 1.0]).tolist()),
    "zero variances": changed(cov_66=np.zeros((6, 6)).tolist()),
    "negative variances": changed(cov_66=(-np.eye(6)).tolist()),
    "not symmetric": changed(cov_66=(np.eye(6) + np.triu(np.full((6, 6), 0.2), 1)).tolist()),
    "5x6": changed(cov_66=np.eye(6).tolist()[:5]),
    "another convention": changed(covariance_is="fixed axes"),
}


@pytest.mark.parametrize("name", BAD_CONTENTS)
def test_a_content_that_is_wrong_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "pose.json"
    path.write_text(BAD_CONTENTS[name], encoding="latin-1")
    with pytest.raises(SavedPoseError) as error:
        read_saved_pose(path)
    assert error.value.reason == "malformed"
    assert len(str(error.value)) < 1000


def test_a_folder_in_its_place_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SavedPoseError, match="not a file") as error:
        read_saved_pose(tmp_path)
    assert error.value.reason == "unreadable"


def test_another_model_map_or_body_is_refused_by_name(tmp_path: Path) -> None:
    check_origin(example(), MODEL, FRAMES, tmp_path)
    for reason, word, model, frames in (
        ("model", "a7a7", "a7" * 32, FRAMES),
        ("frames", "frames.map", MODEL, FrameNames(map="site")),
        ("frames", "frames.base", MODEL, FrameNames(base="base_footprint")),
    ):
        with pytest.raises(SavedPoseError, match=word) as error:
            check_origin(example(), model, frames, tmp_path)
        assert error.value.reason == reason


@given(st.integers(-(10**13), 10**13))
def test_only_an_age_between_nothing_and_the_limit_is_taken(age_ns: int) -> None:
    config = SavedPoseConfig(max_age_s=300.0)
    if 0 <= age_ns <= 300 * SECOND:
        assert check_age(example(), START_NS + age_ns, config, Path()) == pytest.approx(age_ns / SECOND)
        return
    with pytest.raises(SavedPoseError) as error:
        check_age(example(), START_NS + age_ns, config, Path())
    assert error.value.reason == ("future" if age_ns < 0 else "too_old")


# -------------------------------------------------------------------------------------------- carried to the first data


@given(tangents, tangents, tangents, st.floats(0.1, 100.0))
def test_the_motion_of_an_odometry_that_ran_on_is_added_whatever_its_frame(
    pose: list[float], odom: list[float], motion: list[float], elapsed_s: float
) -> None:
    far = make_pose(np.eye(3), [500.0, 0.0, 0.0])  # so far from its origin that it cannot have been restarted
    T_odom, T_motion = far @ exp_se3(odom), exp_se3(np.array(motion) * min(elapsed_s, 1.0))
    saved = content(exp_se3(pose), T_odom, START_NS)
    first = sample(START_NS + round(elapsed_s * SECOND), T_odom @ T_motion)
    assert ran_on(saved, first, FilterConfig())
    start, _ = continued(saved, first, FilterConfig())
    np.testing.assert_allclose(start.T_map_base, exp_se3(pose) @ T_motion, atol=1e-9)
    assert (start.stamp_ns, start.frame_id) == (first.stamp_ns, "map")
    # As uncertain as before and more: in the map's axes no direction has become surer.
    turn = start.T_map_base[:3, :3]
    grown = turn @ start.cov_66[3:, 3:] @ turn.T - exp_se3(pose)[:3, :3] @ np.array(saved.cov_66)[3:, 3:] @ (
        exp_se3(pose)[:3, :3].T
    )
    assert np.linalg.eigvalsh(grown).min() > 0.0


def test_a_longer_way_adds_more_noise() -> None:
    T_odom = make_pose(np.eye(3), [500.0, 0.0, 0.0])
    saved = content(np.eye(4), T_odom, START_NS)
    traces = []
    for metres in (0.0, 5.0, 50.0):
        first = sample(START_NS + 10 * SECOND, T_odom @ make_pose(np.eye(3), [metres, 0.0, 0.0]))
        start, how = continued(saved, first, FilterConfig())
        assert f"{metres:.1f} m" in how
        traces.append(float(start.cov_66[:3, :3].trace()))
    assert traces[0] < traces[1] < traces[2]
    noise = FilterConfig().noise_m_per_m
    assert traces[1] - traces[0] > 3 * noise**2 * 5.0 * 0.99


@pytest.mark.parametrize(
    ("before", "after", "elapsed_s", "evident"),
    [
        ([60, 0, 0, 0, 0, 1.0], [62, 0, 0, 0, 0, 1.0], 2.0, True),
        ([60, 0, 0, 0, 0, 1.0], [60, 0, 0, 0, 0, 1.0], 2.0, True),  # it stood
        ([60, 0, 0, 0, 0, 1.0], [0, 0, 0, 0, 0, 0], 2.0, False),  # restarted
        ([60, 0, 0, 0, 0, 1.0], [5, 0, 0, 0, 0, 0.1], 2.0, False),  # restarted, and driven since
        ([60, 0, 0, 0, 0, 1.0], [900, 0, 0, 0, 0, 1.0], 2.0, False),  # 420 m/s
        ([60, 0, 0, 0, 0, 0.0], [60, 0, 0, 0, 0, 3.0], 0.1, False),  # 30 rad/s
        ([0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0], 2.0, False),  # it may have stood, or been restarted
        ([0, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0], 2.0, False),
    ],
)
def test_only_an_odometry_that_evidently_ran_on_is_followed(
    before: list[float], after: list[float], elapsed_s: float, evident: bool
) -> None:
    saved = content(exp_se3([1, 2, 0, 0, 0, 0.3]), exp_se3(before), START_NS)
    first = sample(START_NS + round(elapsed_s * SECOND), exp_se3(after))
    assert ran_on(saved, first, FilterConfig()) is evident
    assert not ran_on(saved, replace(first, frame_id="odom_visual"), FilterConfig())
    start, how = continued(saved, first, FilterConfig())
    assert ("not evident" in how) is not evident
    if not evident:
        config = FilterConfig()
        np.testing.assert_array_equal(start.T_map_base, np.array(saved.T_map_base))
        added = np.sqrt((start.cov_66 - np.array(saved.cov_66)).diagonal())
        np.testing.assert_allclose(added[:3], config.gap_noise_m_per_s * elapsed_s)
        np.testing.assert_allclose(added[3:], config.gap_noise_rad_per_s * elapsed_s)


def test_the_widening_has_a_limit() -> None:
    saved = content(np.eye(4), exp_se3([60, 0, 0, 0, 0, 0]), START_NS)
    start, _ = continued(saved, sample(START_NS + 299 * SECOND, np.eye(4)), FilterConfig())
    added = np.sqrt((start.cov_66 - np.array(saved.cov_66)).diagonal())
    np.testing.assert_allclose(added, [MAX_WIDENING_M] * 3 + [MAX_WIDENING_RAD] * 3)
