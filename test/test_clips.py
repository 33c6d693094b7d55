"""Clips: frames of one recording, in order, without a gap, and never one that may not be shown."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pictures import START_NS, STEP_NS, drive, frame_at, pose_at, tiny_config

from vmloc_ros.batches import Batch, BatchMaker, Part, measure_normalisation
from vmloc_ros.clips import Clips, predecessors
from vmloc_ros.errors import TrainingError
from vmloc_ros.samples import SampleStore, build_store
from vmloc_ros.training_config import ClipConfig

MAX_GAP_S = 0.25


def times(stamps_ns: list[int], recordings: list[int]) -> SampleStore:
    """A store of which only the times are known."""

    class Times(SimpleNamespace):
        def __len__(self) -> int:
            return len(self.stamps_ns)

    return cast(SampleStore, Times(stamps_ns=np.array(stamps_ns), recording_of=np.array(recordings)))


@st.composite
def drives(draw: st.DrawFn) -> tuple[SampleStore, np.ndarray]:
    """One to three drives with gaps, stored in any order, and the samples of them that may be shown."""
    stamps, recordings = list[int](), list[int]()
    for recording in range(draw(st.integers(1, 3))):
        steps = draw(st.lists(st.sampled_from([0.1, 0.1, 0.1, 0.2, 0.25, 0.26, 3.0]), min_size=1, max_size=30))
        stamps += (START_NS + np.round(np.cumsum(steps) * 1e9).astype(np.int64)).tolist()
        recordings += [recording] * len(steps)
    order = draw(st.permutations(range(len(stamps))))
    store = times([stamps[k] for k in order], [recordings[k] for k in order])
    shown = draw(st.lists(st.booleans(), min_size=len(stamps), max_size=len(stamps)))
    return store, np.flatnonzero(shown)


@given(drives(), st.integers(2, 4), st.integers(1, 3), st.integers(0, 5), st.integers(0, 99))
def test_a_clip_is_a_stretch_of_one_drive(
    world: tuple[SampleStore, np.ndarray], frames: int, spacing: int, wider: int, seed: int
) -> None:
    """Against what the words say, counted out one by one."""
    store, samples = world
    config = ClipConfig(frames=frames, spacing=spacing, max_spacing=spacing + wider, max_gap_s=MAX_GAP_S)
    runs = expected_runs(store, samples)
    long_enough = {k for run in runs for k in run[spacing * (frames - 1) :]}
    if not long_enough:
        with pytest.raises(TrainingError, match="clip"):
            Clips(store, samples, config)
        return
    clips = Clips(store, samples, config)
    assert set(clips.usable.tolist()) == long_enough
    rows = clips.rows(clips.usable, np.random.default_rng(seed))
    assert rows.shape == (len(clips.usable), frames)
    assert rows[:, -1].tolist() == clips.usable.tolist()
    for row in rows.tolist():
        (run,) = [run for run in runs if row[-1] in run]
        places = [run.index(k) for k in row]  # none is of another drive, beyond a gap, or not to be shown
        (apart,) = set(np.diff(places).tolist())
        assert spacing <= apart <= spacing + wider
    again = clips.rows(clips.usable, np.random.default_rng(seed))
    assert (again == rows).all()


@given(drives())
def test_the_predecessor_is_the_frame_before(world: tuple[SampleStore, np.ndarray]) -> None:
    store, samples = world
    expected = dict.fromkeys(samples.tolist(), -1)
    for run in expected_runs(store, samples):
        expected |= dict(zip(run[1:], run, strict=False))
    assert predecessors(store, samples, MAX_GAP_S).tolist() == [expected[k] for k in samples.tolist()]


def expected_runs(store: SampleStore, samples: np.ndarray) -> list[list[int]]:
    """The samples that may be shown, in stretches without a gap, each in order of time."""
    runs = list[list[int]]()
    for k in sorted(samples.tolist(), key=lambda k: (store.recording_of[k], store.stamps_ns[k])):
        last = runs[-1][-1] if runs else None
        follows = last is not None and store.recording_of[last] == store.recording_of[k]
        if follows and store.stamps_ns[k] - store.stamps_ns[last] <= MAX_GAP_S * 1e9:
            runs[-1].append(k)
        else:
            runs.append([k])
    return runs


def test_every_spacing_of_the_range_is_drawn() -> None:
    store = times([START_NS + k * STEP_NS for k in range(100)], [0] * 100)
    clips = Clips(store, np.arange(100), ClipConfig(frames=3, spacing=2, max_spacing=5))
    late = np.full(400, 99)
    apart = np.diff(clips.rows(late, np.random.default_rng(0)), axis=1)[:, 0]
    assert np.bincount(apart, minlength=7)[2:6].min() > 60
    assert set(apart.tolist()) == {2, 3, 4, 5}
    narrow = np.diff(clips.rows(np.full(50, 4), np.random.default_rng(0)), axis=1)  # only two frames apart fit there
    assert (narrow == 2).all()


# ------------------------------------------------------------------------------------------------------------- batches


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> SampleStore:
    """Two drives of twelve frames, every third frame of the second without depth."""
    frames = [*drive(12, "one"), *drive(12, "two", START_NS + 10**12)]
    for k in range(12, 24, 3):
        frames[k] = (frame_at((k - 12) / 11, frames[k][0].stamp_ns, ("rgb",)), frames[k][1], "two")
    folder: Path = tmp_path_factory.mktemp("clips") / "cache"
    return build_store(folder, iter(frames), *tiny_config().stored_size(), "key")


def made(store: SampleStore, part: Part | None = None, seed: int = 5, **changes: Any) -> Batch:
    """A batch of the five first clips."""
    config = tiny_config(objective={"clip": {"frames": 3, "spacing": 2}, "presence_as": "weighted"}, **changes)
    samples = np.arange(len(store))
    clips = Clips(store, samples, config.objective.clip)
    maker = BatchMaker(store, config, measure_normalisation(store, samples), part, clips)
    return maker.make(clips.usable[:5], (seed,))


def test_parts_of_a_batch_of_clips_are_the_batch(store: SampleStore) -> None:
    """Whole clips, in the whole's places, with the same pictures and targets."""
    whole = made(store)
    assert (whole.clip, whole.first, whole.size, len(whole.samples)) == (3, 0, 15, 15)
    parts = [made(store, Part(number, 2)) for number in range(2)]
    assert [(part.first, len(part.samples), part.size) for part in parts] == [(0, 6, 15), (6, 9, 15)]
    assert np.concatenate([part.samples for part in parts]).tolist() == whole.samples.tolist()
    for part in parts:
        own = slice(part.first, part.first + len(part.samples))
        assert (part.position_B3 == whole.position_B3[own]).all()
        assert (part.log_quat_B3 == whole.log_quat_B3[own]).all()
        for name, present in part.inputs.items():
            rows = whole.inputs[name].rows_N.numpy()
            here = (rows >= own.start) & (rows < own.stop)
            assert (present.rows_N.numpy() + own.start).tolist() == rows[here].tolist()
            assert (present.images_NCHW == whole.inputs[name].images_NCHW[here]).all()


STILL = {
    "brightness": 0.0,
    "contrast": 0.0,
    "colour": 0.0,
    "noise": 0.0,
    "erase_chance": 0.0,
    "depth_noise": 0.0,
    "depth_dropout": 0.0,
    "margin": 0.25,
}
QUIET = STILL | {"brightness": 0.5, "contrast": 0.5, "colour": 0.3, "erase_chance": 1.0}


@pytest.fixture(scope="module")
def standing(tmp_path_factory: pytest.TempPathFactory) -> SampleStore:
    """A camera that stands: all that differs between its frames is augmentation."""
    frames = [(frame_at(0.5, START_NS + k * STEP_NS), pose_at(0.5), "still") for k in range(12)]
    folder: Path = tmp_path_factory.mktemp("still") / "cache"
    return build_store(folder, iter(frames), *tiny_config(augmentation=STILL).stored_size(), "key")


@pytest.mark.parametrize("moves", [{}, {"move_chance": 0.5, "move_m": 0.3, "move_deg": 8.0}])
def test_frames_of_a_clip_are_changed_alike(standing: SampleStore, moves: dict[str, float]) -> None:
    batch = made(standing, augmentation=QUIET | moves)
    poses = np.hstack([batch.position_B3.numpy(), batch.log_quat_B3.numpy()]).reshape(5, 3, 6)
    assert (poses == poses[:, :1]).all()
    assert len(np.unique(poses[:, 0].round(6), axis=0)) > 1
    for present in batch.inputs.values():
        clips = present.images_NCHW.numpy().reshape(5, 3, -1)
        assert (clips == clips[:, :1]).all()
        assert len(np.unique(clips[:, 0], axis=0)) == 5


def test_noise_does_not_stand_still(standing: SampleStore) -> None:
    noisy = made(standing, augmentation=STILL | {"noise": 0.1, "depth_dropout": 0.9})
    for present in noisy.inputs.values():
        assert len(np.unique(present.images_NCHW.numpy().reshape(15, -1), axis=0)) == 15


def test_a_clip_is_moved_only_where_all_its_frames_have_depth(store: SampleStore) -> None:
    batch = made(store, augmentation=STILL | {"margin": 0.125, "turn_labels": False, "move_chance": 1.0, "move_m": 0.5})
    plain = made(store, augmentation=STILL | {"margin": 0.125, "turn_labels": False})
    assert batch.samples.tolist() == plain.samples.tolist()
    dense = store.has_depth[batch.samples].reshape(-1, 3).all(axis=1)
    moved = (batch.position_B3 != plain.position_B3).any(dim=1).numpy().reshape(-1, 3)
    assert (moved == dense[:, None]).all()
