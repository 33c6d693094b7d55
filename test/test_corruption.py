"""Table 4's corruption: what is changed, where, and which modes it touches."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import frame_at

from vmloc_ros.corruption import (
    INTACT,
    MISSING,
    TABLE_4,
    condition_name,
    corrupted,
    parse_conditions,
    parse_corruption,
    touched,
)
from vmloc_ros.errors import ConfigError
from vmloc_ros.types import Modality

BOTH = (Modality.RGB, Modality.DEPTH)
LEVELS = st.dictionaries(st.sampled_from(BOTH), st.integers(0, 2))


@settings(max_examples=30)
@given(st.integers(0, 10**18), st.integers(0, 3), st.sampled_from(BOTH))
def test_the_mask_of_table_4(stamp_ns: int, seed: int, modality: Modality) -> None:
    frame = frame_at(0.3, stamp_ns)
    masked = corrupted(frame, {modality: 1}, seed)
    again = corrupted(frame, {modality: 1}, seed)
    name, other = ("rgb", "depth_m") if modality is Modality.RGB else ("depth_m", "rgb")
    before, after = getattr(frame, name), getattr(masked, name)
    assert np.array_equal(after, getattr(again, name))
    assert getattr(masked, other) is getattr(frame, other)
    changed = before != after
    rows, columns = np.nonzero(changed if changed.ndim == 2 else changed.any(axis=2))
    assert 20 <= np.ptp(rows) + 1 <= 24  # half of 48; the border may have been zero already
    assert 20 <= np.ptp(columns) + 1 <= 24
    assert (after[changed] == 0).all()


@given(LEVELS, st.integers(0, 3))
def test_corrupting_one_modality_does_not_move_the_mask_of_the_other(levels: dict[Modality, int], seed: int) -> None:
    frame = frame_at(0.7, 1_234_567)
    together = corrupted(frame, levels, seed)
    for modality, name in ((Modality.RGB, "rgb"), (Modality.DEPTH, "depth_m")):
        alone = getattr(corrupted(frame, {modality: levels.get(modality, INTACT)}, seed), name)
        seen = getattr(together, name)
        assert (seen is None) == (alone is None) == (levels.get(modality, INTACT) == MISSING)
        assert seen is None or np.array_equal(seen, alone)


def test_seeds_and_stamps_move_the_mask() -> None:
    frames = [frame_at(0.3, stamp_ns) for stamp_ns in range(5)]
    by_seed = {corrupted(frames[0], {Modality.RGB: 1}, seed).rgb.tobytes() for seed in range(5)}  # type: ignore[union-attr]
    by_stamp = {corrupted(frame, {Modality.RGB: 1}).rgb.tobytes() for frame in frames}  # type: ignore[union-attr]
    assert len(by_seed) > 1
    assert len(by_stamp) > 1


def test_corruption_levels() -> None:
    assert parse_corruption(["rgb:1", "depth:2"]) == {Modality.RGB: 1, Modality.DEPTH: 2}
    for text in ("rgb", "rgb:3", "lidar:1", "rgb:", "All"):
        with pytest.raises(ConfigError, match="--corrupt"):
            parse_corruption([text])
    frame = frame_at(0.3, 5)
    gone = corrupted(frame, {Modality.RGB: 2})
    assert gone.rgb is None
    assert "on purpose" in gone.absent[Modality.RGB]
    assert corrupted(frame, {Modality.RGB: 0}) is frame


def test_all_is_table_4_as_far_as_the_sensors_go() -> None:
    assert parse_conditions(["all"], ["rgb", "depth"]) == list(TABLE_4)
    assert [condition_name(c) for c in TABLE_4] == ["none", "rgb:1", "rgb:2", "depth:1", "depth:2"]
    assert [condition_name(c) for c in parse_conditions(["all"], ["depth"])] == ["none", "depth:1", "depth:2"]
    assert parse_conditions([], ["rgb"]) == [{}]
    assert parse_conditions(["rgb:1", "depth:2"], ["rgb"]) == [{Modality.RGB: 1, Modality.DEPTH: 2}]
    with pytest.raises(ConfigError, match="alone"):
        parse_conditions(["all", "rgb:1"], ["rgb"])


@given(LEVELS)
def test_names_of_conditions_are_read_back(levels: dict[Modality, int]) -> None:
    name = condition_name(levels)
    kept = {modality: level for modality, level in levels.items() if level != INTACT}
    assert (parse_corruption(name.split()) if kept else {}) == kept
    assert (name == "none") == (not kept)


@given(LEVELS)
def test_modes_that_are_not_touched_show_intact_frames_or_lack_a_sensor(levels: dict[Modality, int]) -> None:
    for sensors in ((Modality.RGB,), (Modality.DEPTH,), BOTH):
        shown = [levels.get(sensor, INTACT) for sensor in sensors]
        if not touched(levels, sensors):
            assert MISSING in shown or set(shown) == {INTACT}
        else:
            assert MISSING not in shown  # there is an answer to show
