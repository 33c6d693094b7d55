"""The sliding window: what it keeps, when it begins anew, and that it claims no more than it knows."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from pictures import NORMALISATION, card_of, frame_at, pose_at, tiny_config

from vmloc_ros import pose_graph
from vmloc_ros.checkpoint import load_card, save_model
from vmloc_ros.config import ModelConfig, parse
from vmloc_ros.errors import ConfigError, SetupError
from vmloc_ros.geometry import Array, exp_se3, inverse, log_se3
from vmloc_ros.localizer import load_localizer
from vmloc_ros.localizers.base import Localizer, Remembering
from vmloc_ros.localizers.pose_graph import PoseGraphLocalizer
from vmloc_ros.networks.vmloc import VMLoc
from vmloc_ros.pose_graph_config import PoseGraphConfig
from vmloc_ros.training_config import TrainingConfig
from vmloc_ros.trajectory import NANOSECONDS
from vmloc_ros.types import CameraPrior, Frame, FrameKey, Mode, NoPose, PoseEstimate

pytest.importorskip("gtsam", reason="GTSAM is not installed: pip install -e .[batch]", exc_type=ImportError)

START_NS, STEP_NS = 1_700_000_000 * NANOSECONDS, NANOSECONDS // 10
SIGMAS = np.array([1.0, 1.0, 0.3, 0.01, 0.01, 0.03])
COV_66 = np.diag(SIGMAS**2)
T_MAP_ODOM = exp_se3([20.0, -5.0, 1.0, 0.1, 0.0, 2.0])


class Told:
    """A localizer that says what it is told; without it, that it has no pose."""

    card, device, fallback = SimpleNamespace(pose_graph=None), "cpu", ""

    def __init__(self) -> None:
        self.T_map_camera: Array | None = None
        self.resets = 0

    def localize(self, frame: Frame, prior: CameraPrior | None = None) -> PoseEstimate | NoPose:
        if self.T_map_camera is None:
            return NoPose(frame.stamp_ns, "nothing told")
        return PoseEstimate(frame.stamp_ns, self.T_map_camera, COV_66, {"rgb": 1.0}, Mode.RGB_ONLY, 0.7)

    def warm_up(self) -> None: ...

    def reset(self) -> None:
        self.resets += 1


class Drive:
    """A camera that drives a bend at 8 m/s, and a window over what the network says of it."""

    def __init__(self, **config: Any) -> None:
        self.inner = Told()
        self.localizer = PoseGraphLocalizer(cast(Localizer, self.inner), PoseGraphConfig(**config))
        self.T_odom_camera, self.T_jump, self.stamp_ns = np.eye(4), np.eye(4), START_NS

    @property
    def truth(self) -> Array:
        return T_MAP_ODOM @ self.T_odom_camera

    def answer(self, error_6: Array | None = None, odometry: bool = True) -> PoseEstimate | NoPose:
        """Of the present frame, for which the network is wrong by so much."""
        self.inner.T_map_camera = None if error_6 is None else self.truth @ exp_se3(error_6)
        prior = CameraPrior(self.stamp_ns, self.truth, COV_66, self.T_jump @ self.T_odom_camera) if odometry else None
        return self.localizer.localize(
            Frame(FrameKey(self.stamp_ns, self.stamp_ns), cast(Any, None), None, None), prior
        )

    def on(self, seconds: float = 0.1) -> None:
        self.stamp_ns += round(seconds * NANOSECONDS)
        self.T_odom_camera = self.T_odom_camera @ exp_se3(seconds * np.array([0.0, 0.0, 8.0, 0.0, 0.3, 0.0]))

    def counted(self) -> dict[str, int]:
        """What is not zero, without the prefix."""
        return {name.removeprefix("graph."): n for name, n in self.localizer.counters().items() if n}


def off(answer: PoseEstimate | NoPose, truth: Array) -> Array:
    assert isinstance(answer, PoseEstimate)
    return log_se3(inverse(answer.T_map_camera) @ truth)


def test_many_independent_answers_are_better_than_one() -> None:
    drive, rng, errors = Drive(spacing_s=0.0, correlation_s=0.0), np.random.default_rng(0), []
    for _ in range(120):
        error = SIGMAS * rng.normal(size=6)
        errors.append([np.linalg.norm(off(drive.answer(error), drive.truth)[:3]), np.linalg.norm(error[:3])])
        drive.on()
    smoothed, network = np.array(errors[10:]).mean(axis=0)
    assert smoothed < 0.6 * network
    assert drive.counted() == {"smoothed": 119}


def test_it_claims_no_more_than_the_network_and_is_not_overconfident() -> None:
    """Errors that last: correlated over 1.75 s, as the configuration says. Claims hold on the average, and never exceed
    the network's."""
    drive, rng, values = Drive(), np.random.default_rng(1), []
    error, keep = SIGMAS * rng.normal(size=6), np.exp(-0.1 / 1.75)
    for k in range(400):
        answer = drive.answer(error)
        assert isinstance(answer, PoseEstimate)
        assert np.linalg.eigvalsh((answer.cov_66 - COV_66) / np.outer(SIGMAS, SIGMAS)).min() > -1e-6
        if k > 60:
            d = off(answer, drive.truth)
            values.append(float(d @ np.linalg.solve(answer.cov_66, d)))
        error = keep * error + np.sqrt(1.0 - keep**2) * SIGMAS * rng.normal(size=6)
        drive.on()
    print(f"NEES / 6: {np.mean(values) / 6.0:.2f}")
    assert np.mean(values) < 6.0 * 1.1


def test_an_outlier_is_outvoted() -> None:
    drive = Drive(spacing_s=0.0)
    for _ in range(10):
        drive.answer(np.zeros(6))
        drive.on()
    wrong = drive.answer(np.array([40.0, 0.0, 0.0, 0.0, 1.0, 0.0]))
    assert np.linalg.norm(off(wrong, drive.truth)[:3]) < 2.0


def test_the_window_is_spaced_and_holds_the_newest() -> None:
    drive = Drive(window=4, spacing_s=0.5)
    for k in range(40):
        drive.answer(np.zeros(6))
        stamps = [seen.stamp_ns for seen in drive.localizer._window]
        assert stamps[-1] == drive.stamp_ns
        assert len(stamps) <= 4
        assert all(later - earlier >= 0.5 * NANOSECONDS for earlier, later in pairwise(stamps[:-1]))
        if k > 30:
            assert len(stamps) == 4
        drive.on()


@pytest.mark.parametrize(
    ("event", "counted"),
    [
        ("gap", "gaps"),
        ("jump", "jumps"),
        ("backwards", "backwards"),
        ("same stamp", "backwards"),
        ("silent", "no_odometry"),
        ("still", "still"),
    ],
)
def test_a_new_window_where_the_odometry_cannot_join(event: str, counted: str) -> None:
    """The network's answer as it is, with its own covariance, and the frames before forgotten."""
    drive = Drive(spacing_s=0.0)
    for _ in range(5):
        drive.answer(np.zeros(6))
        last = drive.T_odom_camera
        drive.on()
    if event == "still":
        drive.T_odom_camera = last
    if event == "gap":
        drive.on(2.0)
    elif event == "jump":
        drive.T_jump = exp_se3([100.0, 0.0, 0.0, 0.0, 0.0, 1.0])
    elif event in ("backwards", "same stamp"):
        drive.stamp_ns -= (10 if event == "backwards" else 1) * STEP_NS
    error = np.array([1.0, 2.0, 0.1, 0.0, 0.0, 0.05])
    answer = drive.answer(error, odometry=event != "silent")
    assert isinstance(answer, PoseEstimate)
    np.testing.assert_array_equal(answer.T_map_camera, drive.truth @ exp_se3(error))
    np.testing.assert_array_equal(answer.cov_66, COV_66)
    assert drive.counted() == {"smoothed": 4, counted: 1}
    drive.on()
    assert isinstance(drive.answer(error), PoseEstimate)
    assert drive.counted()["smoothed"] == (4 if event == "silent" else 5)


def test_a_frame_without_a_pose_stays_one_and_the_window_stays() -> None:
    drive = Drive()
    drive.answer(np.zeros(6))
    drive.on()
    assert isinstance(drive.answer(None), NoPose)
    drive.on()
    answer = drive.answer(SIGMAS)
    assert isinstance(answer, PoseEstimate)
    assert drive.counted() == {"smoothed": 1}
    assert (answer.mode, answer.health, answer.expert_weights) == (Mode.RGB_ONLY, 0.7, {"rgb": 1.0})


def test_the_same_frames_since_a_reset_give_the_same_answers() -> None:
    rng = np.random.default_rng(2)
    errors = SIGMAS * rng.normal(size=(8, 6))
    drive, answers = Drive(spacing_s=0.0), list[list[Array]]()
    for _ in range(2):
        drive.T_odom_camera, drive.stamp_ns = np.eye(4), START_NS
        poses = []
        for error in errors:
            answer = drive.answer(error)
            assert isinstance(answer, PoseEstimate)
            poses.append(answer.T_map_camera)
            drive.on()
        answers.append(poses)
        drive.localizer.reset()
    np.testing.assert_array_equal(*answers)
    assert drive.inner.resets == 2
    assert drive.counted() == {"smoothed": 14}  # counters are totals


def test_a_fork_has_a_memory_of_its_own() -> None:
    drive = Drive()
    drive.answer(np.zeros(6))
    other = drive.localizer.fork()
    assert isinstance(other, Remembering)
    assert not other._window
    assert set(other.counters().values()) == {0}
    assert len(drive.localizer._window) == 1


# ---------------------------------------------------------------------------------------------------------- from a card


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model's folder, never trained, whose card has a pose graph."""
    folder: Path = tmp_path_factory.mktemp("model")
    network = tiny_config().network
    torch.manual_seed(0)
    card = card_of(network, NORMALISATION).model_copy(update={"pose_graph": PoseGraphConfig(window=3)})
    save_model(folder, VMLoc(network).state_dict(), card, "float32")
    return folder


def test_a_card_with_a_pose_graph_gives_such_a_localizer(model: Path) -> None:
    localizer = load_localizer(model, ModelConfig(device="cpu", threads=1))
    assert isinstance(localizer, PoseGraphLocalizer)
    assert load_card(model).pose_graph == PoseGraphConfig(window=3)
    localizer.warm_up()
    for k in range(4):
        frame = frame_at(0.1 * k, START_NS + k * STEP_NS)
        prior = CameraPrior(frame.stamp_ns, pose_at(0.1 * k), COV_66, pose_at(0.1 * k))
        assert isinstance(localizer.localize(frame, prior), PoseEstimate)
    assert localizer.counters()["graph.smoothed"] == 3


def test_without_gtsam_such_a_model_is_refused_when_it_is_loaded(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(pose_graph.importlib, "import_module", missing)
    with pytest.raises(SetupError, match=r"vmloc_ros\[batch\]"):
        load_localizer(model, ModelConfig(device="cpu", threads=1))


def test_a_map_that_observes_no_pose_is_not_smoothed() -> None:
    values = {"network": {"architecture": "generative_map"}, "pose_graph": {"window": 5}}
    with pytest.raises(ConfigError, match="pose_graph"):
        parse(TrainingConfig, values, "test")
