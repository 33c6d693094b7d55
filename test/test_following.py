"""A localizer and the filter over labelled drives: laws of following, whichever the odometry."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
import pytest
from drawn_poses import CARD, DrawnPoses
from pictures import START_NS, STEP_NS, frame_at

from vmloc_ros.checkpoint import ModelCard
from vmloc_ros.errors import ConfigError
from vmloc_ros.following import Drive, Following, follow, start_from
from vmloc_ros.geometry import Array, exp_se3, inverse, log_quaternion, make_pose
from vmloc_ros.odometry_drift import odometry_drift
from vmloc_ros.samples import Labelled
from vmloc_ros.types import CameraMotion, CameraPrior, Frame, Mode, NoPose, OdometrySample, PoseEstimate

T_BASE_CAMERA = make_pose([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]], [1.2, 0.1, 1.5])
VELOCITY_6 = np.array([5.0, 0.0, 0.0, 0.0, 0.0, 0.2])


def base_pose(stamp_ns: int) -> Array:
    """T_map_base: a bend, driven at 5 m/s."""
    return exp_se3([3.0, -2.0, 0.5, 0.0, 0.0, 0.7]) @ exp_se3((stamp_ns - START_NS) / 1e9 * VELOCITY_6)


def labelled(count: int, recording: str = "drive", first: int = 0, step_ns: int = STEP_NS) -> list[Labelled]:
    stamps = [START_NS + (first + k) * step_ns for k in range(count)]
    return [(frame_at(0.5, stamp), base_pose(stamp) @ T_BASE_CAMERA, recording) for stamp in stamps]


def wheels(count: int, scale: float = 1.0, first: int = -2) -> Drive:
    """Odometry at 20 Hz of the true motion in a frame of its own, whose way may be too long."""
    stamps = [START_NS + (first + k) * STEP_NS // 2 for k in range(count)]
    way = np.array([scale, 1, 1, 1, 1, 1]) * VELOCITY_6
    return Drive(
        T_BASE_CAMERA,
        tuple(OdometrySample(s, "odom", "base_link", exp_se3((s - START_NS) / 1e9 * way)) for s in stamps),
    )


@dataclass
class Scripted:
    """Answers the truth moved by an error, with the motion from its last frame where it has one.

    Attributes:
        error: T_true^-1 T_hat of every answer.
        silent: it never answers, but still tells motions.
        scale: what its motions are multiplied by.
        remembers: whether it compares frames.
        priors: what it was told.
    """

    error: Array = field(default_factory=lambda: np.eye(4))
    silent: bool = False
    scale: float = 1.0
    remembers: bool = True
    sigma: float = 0.05
    card: ModelCard = CARD
    device: str = "cpu"
    fallback: str = ""
    priors: list[CameraPrior | None] = field(default_factory=list)
    resets: int = 0
    _last_ns: int | None = None

    def localize(self, frame: Frame, prior: CameraPrior | None = None) -> PoseEstimate | NoPose:
        self.priors.append(prior)
        last_ns, self._last_ns, motion = self._last_ns, frame.stamp_ns, None
        T = base_pose(frame.stamp_ns) @ T_BASE_CAMERA
        if last_ns is not None and self.remembers:
            T_begin_end = inverse(base_pose(last_ns) @ T_BASE_CAMERA) @ T
            T_begin_end[:3, 3] *= self.scale
            motion = CameraMotion(last_ns, frame.stamp_ns, T_begin_end, 1e-4 * np.eye(6))
        if self.silent:
            return NoPose(frame.stamp_ns, "silent", motion)
        cov_66 = self.sigma**2 * np.eye(6)
        return PoseEstimate(frame.stamp_ns, T @ self.error, cov_66, {}, frame.mode, motion=motion)

    def warm_up(self) -> None:
        return

    def reset(self) -> None:
        self.resets += 1
        self._last_ns = None


def worst_m(following: Following, from_place: int = 0) -> float:
    answers = following.fused(from_place=from_place)
    assert answers.estimates
    return float(answers.errors().position_m.max())


@pytest.mark.parametrize("odometry", ["recording", "network"])
@pytest.mark.parametrize("camera", [False, True])
def test_a_perfect_localizer_has_no_error(odometry: str, camera: bool) -> None:
    following = follow(Scripted(), labelled(30), {"drive": wheels(70)}, odometry)  # type: ignore[arg-type]
    fused = following.fused(camera)
    assert len(fused.estimates) >= 27  # the filter starts from three
    assert fused.errors().position_m.max() < 1e-6
    assert fused.errors().rotation_deg.max() < 1e-4
    assert following.network(camera).errors().position_m.max() < 1e-9
    assert following.dead_reckoning().errors().position_m.max() < 1e-9
    assert len(following.dead_reckoning().estimates) == 30


@pytest.mark.parametrize("odometry", ["recording", "network"])
def test_a_true_start_and_a_true_odometry_need_no_network(odometry: str) -> None:
    following = follow(
        Scripted(silent=True),
        labelled(30),
        {"drive": wheels(70)},
        odometry,
        start=start_from(0.0, 0.0),  # type: ignore[arg-type]
    )
    assert worst_m(following) < 1e-6
    unknown = 0 if odometry == "recording" else 1  # the network's odometry starts with the second frame
    assert sum(following.fused().no_pose.values()) == unknown
    assert following.dead_reckoning().errors().position_m.max() < 1e-9
    assert following.network().no_pose == {"silent": 30}


def test_without_odometry_the_pose_is_held_and_the_answers_move_it() -> None:
    still = [(frame, base_pose(START_NS) @ T_BASE_CAMERA, name) for frame, _, name in labelled(30, step_ns=33_333_333)]

    @dataclass
    class Still(Scripted):
        def localize(self, frame: Frame, prior: CameraPrior | None = None) -> PoseEstimate | NoPose:
            T = base_pose(START_NS) @ T_BASE_CAMERA
            return PoseEstimate(frame.stamp_ns, T, 0.01 * np.eye(6), {}, frame.mode)

    following = follow(Still(), still, {"drive": Drive(T_BASE_CAMERA)}, "none")
    assert worst_m(following) < 1e-6
    assert following.dead_reckoning().errors().position_m.max() < 1e-9
    moving = follow(Scripted(), labelled(30, step_ns=33_333_333), {"drive": Drive(T_BASE_CAMERA)}, "none")
    assert worst_m(moving, 10) < 1.0  # 5 m/s, 30 Hz: held poses lag, but follow
    assert moving.dead_reckoning().errors().position_m.max() > 4.0


def test_dead_reckoning_drifts_as_its_odometry() -> None:
    following = follow(Scripted(), labelled(41), {"drive": wheels(90, scale=1.1)})
    straight = np.linalg.norm(base_pose(START_NS + 40 * STEP_NS)[:3, 3] - base_pose(START_NS)[:3, 3])
    assert following.dead_reckoning().errors().position_m[-1] == pytest.approx(0.1 * straight, rel=0.15)
    assert worst_m(following) < 0.3


def test_the_network_is_told_what_the_filter_knows_before_its_answer() -> None:
    localizer = Scripted(error=exp_se3([0.3, 0, 0, 0, 0, 0]))
    following = follow(localizer, labelled(20), {"drive": wheels(50)}, start=start_from(0.0, 0.0))
    first = localizer.priors[0]
    assert first is not None
    assert np.allclose(first.T_map_camera, base_pose(START_NS) @ T_BASE_CAMERA)
    for frame, prior in zip(following.frames, localizer.priors, strict=True):
        assert prior is not None
        assert frame.before is not None
        assert prior.stamp_ns == frame.stamp_ns
        assert np.allclose(prior.T_map_camera, frame.before.T_map_base @ T_BASE_CAMERA)


def test_gaps_and_recordings_start_a_new_filter() -> None:
    frames = [*labelled(10), *labelled(10, first=25), *labelled(10, "other")]
    localizer = Scripted()
    following = follow(localizer, frames, {"drive": wheels(100), "other": wheels(60)})
    assert [frame.stretch for frame in following.frames] == [0] * 10 + [1] * 10 + [2] * 10
    assert [frame.place for frame in following.frames] == [*range(10)] * 3
    assert localizer.resets == 3
    assert [k for k, prior in enumerate(localizer.priors) if prior is None][:3] == [0, 1, 2]
    assert localizer.priors[10] is None
    assert len(following.motion_stretches()) == 3


def test_the_order_of_the_sets_changes_nothing() -> None:
    parts = [labelled(12), labelled(12, first=30), labelled(12, "other")]
    drives = {"drive": wheels(120, 1.05), "other": wheels(60, 0.95)}
    noisy = DrawnPoses([frame for part in parts for frame in part if frame[2] == "drive"], errors=0.2)
    for localizer in (Scripted(error=exp_se3([0.2, 0, 0, 0, 0.01, 0])), noisy):
        chosen = parts if localizer is not noisy else parts[:2]
        forwards = follow(localizer, [f for part in chosen for f in part], drives)
        backwards = follow(localizer, [f for part in reversed(chosen) for f in part], drives)
        known = {(f.recording, f.stamp_ns): f for f in backwards.frames}
        for frame in forwards.frames:
            other = known[frame.recording, frame.stamp_ns]
            assert (frame.after is None) == (other.after is None)
            if frame.after is not None and other.after is not None:
                assert np.array_equal(frame.after.T_map_base, other.after.T_map_base)


def test_a_deviation_is_added_to_the_state_and_is_recovered_from() -> None:
    start = start_from(0.0, 0.3)
    T = base_pose(START_NS) @ T_BASE_CAMERA
    moved = start.pose(T)
    assert moved[:3, 3] - T[:3, 3] == pytest.approx([0.3] * 3)
    assert log_quaternion(moved[:3, :3]) - log_quaternion(T[:3, :3]) == pytest.approx([0.3] * 3)
    in_metres = start_from(1.0, 0.0).pose(T)
    assert np.allclose(in_metres[:3, :3], T[:3, :3])
    assert in_metres[:3, 3] - T[:3, 3] == pytest.approx([1.0] * 3)
    drives = {"drive": wheels(150)}
    following = follow(Scripted(), labelled(60), drives, start=start_from(1.0, 0.0))
    first = following.frames[0].before
    assert first is not None
    assert np.linalg.norm(first.T_map_base[:3, 3] - base_pose(START_NS)[:3, 3]) == pytest.approx(np.sqrt(3.0))
    assert worst_m(following, 30) < 0.05
    assert following.dead_reckoning().errors().position_m.min() == pytest.approx(np.sqrt(3.0), rel=1e-6)


def test_the_motions_are_measured_as_an_odometry() -> None:
    following = follow(Scripted(scale=1.1), labelled(60), {"drive": wheels(140)})
    (stretch,) = following.motion_stretches()
    assert len(stretch.stamps_ns) == 60
    drift = odometry_drift([stretch], (0.4,))  # one frame's way: nearly straight
    assert drift.translation_percent == pytest.approx(10.0, rel=0.02)
    assert drift.rotation_deg_per_m == pytest.approx(0.0, abs=1e-4)
    assert follow(Scripted(remembers=False), labelled(9), {"drive": wheels(40)}).motion_stretches() == []


def test_motions_over_a_dropped_frame_are_chained_all_the_same() -> None:
    frames = labelled(20)
    dark = [replace(f, rgb=None) if k in (7, 8) else f for k, (f, _, _) in enumerate(frames)]
    shown = [(frame, T, name) for frame, (_, T, name) in zip(dark, frames, strict=True)]
    following = follow(Scripted(), shown, {"drive": wheels(60)}, mode=Mode.RGB_ONLY)
    (stretch,) = following.motion_stretches()
    assert len(stretch.stamps_ns) == 18
    assert max(b - a for a, b in pairwise(stretch.stamps_ns.tolist())) == 3 * STEP_NS
    assert following.network().no_pose == {"a sensor of this mode is absent": 2}


def test_what_cannot_be_followed_is_refused() -> None:
    with pytest.raises(ConfigError, match="mounting is not known"):
        follow(Scripted(), labelled(3), {"other": wheels(10)})
    with pytest.raises(ConfigError, match="has no odometry"):
        follow(Scripted(), labelled(3), {"drive": Drive(T_BASE_CAMERA)})
    with pytest.raises(ConfigError, match="not both"):
        start_from(1.0, 1.0)
    with pytest.raises(ConfigError, match="finite"):
        start_from(float("nan"), 0.0)
    assert follow(Scripted(), [], {}).frames == []
