"""The filter against a batch solution: the last pose of a whole drive and its covariance, as GTSAM finds them.

A filter sees a drive step by step and linearises where it then is; a batch solution has the whole drive at once and
linearises at the optimum. For white Gaussian noise that is small both are the same estimate (the last marginal of the
smoother is the filter's), so this holds every part of the filter to somebody else's code: its side of the perturbation,
transport, process noise, update, the history, and the order of arrival.

GTSAM (F. Dellaert and GTSAM contributors, https://github.com/borglab/gtsam) orders rotation first. Its `Pose3` has the
perturbation on the right, by the full exponential map, and `PriorFactorPose3` and `BetweenFactorPose3` measure by the
full logarithm with exact Jacobians: the first test here holds it to that, for it depends on how GTSAM was compiled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
from differences import jacobian
from filter_events import START_NS, Event, feed

from vmloc_ros.config import FilterConfig, FrameNames
from vmloc_ros.fusion import Fusion
from vmloc_ros.geometry import Array, adjoint, exp_se3, inverse, log_se3, right_jacobian_inverse_se3
from vmloc_ros.increments import Segment
from vmloc_ros.odometry_model import corrected, prior_variances
from vmloc_ros.trajectory import NANOSECONDS
from vmloc_ros.types import InitialPose, OdometrySample, PoseMeasurement, Verdict

gtsam = pytest.importorskip("gtsam", reason="GTSAM is not installed: pip install -e .[batch]", exc_type=ImportError)

PROBLEMS, CALIBRATING_PROBLEMS = 100, 30
STEP_NS = NANOSECONDS // 10
MAX_DELAY_S, MAX_ODOMETRY_DELAY_S = 2.5, 0.3
"""Together less than the filter's window of 3 s; the second less than its `future_tolerance_s`, for measurements may
overtake the odometry of their stamp."""
ROTATION_FIRST = np.array([3, 4, 5, 0, 1, 2])
"""From our order (translation, rotation) to GTSAM's; its own inverse."""

LARGE = 10.0
"""Times the small noise, which is 1.5-5 cm and 0.2-0.5 deg per increment, 4-10 cm and 0.4-1.2 deg per measurement."""
MODEL = 1_000_000
"""GTSAM's key of the odometry's model; those of the poses count from 0."""
SIGMAS_LIMIT, VARIANCE_LIMIT = 0.01, 0.02
"""How far the two may be apart where the noise is small: in standard deviations, and as a share of any variance."""


# ------------------------------------------------------------------------------------------------------------ problems


@dataclass(frozen=True)
class Problem:
    """A drive to be estimated: what a filter and a batch solution are given.

    Attributes:
        config: the filter's parameters, white and Gaussian.
        prior: `T_map_base` at the first odometry sample, and its covariance.
        odometry: samples; the increments between them are what is measured.
        measurements: absolute poses at stamps of odometry samples, each with a full covariance of its own.
    """

    config: FilterConfig
    prior: InitialPose
    odometry: list[OdometrySample]
    measurements: list[PoseMeasurement]

    def segments(self) -> list[Segment]:
        """The increments with the filter's own noise."""
        return [Segment(begin, end, self.config) for begin, end in pairwise(self.odometry)]


def white_config(rng: np.random.Generator, scale: float, calibrates: bool) -> FilterConfig:
    """All that departs from white Gaussian noise switched off; odometry noise of every kind on. If it `calibrates`,
    scale, heading and yaw bias of the odometry are constants to be estimated, known to 1 %, 0.01 rad and 4e-4 rad/m."""
    settings: dict[str, float | int | bool] = {
        "noise_m_per_m": scale * rng.uniform(0.02, 0.06),
        "noise_m_per_s": scale * rng.uniform(0.02, 0.06),
        "noise_rad_per_m": scale * rng.uniform(0.004, 0.01),
        "noise_rad_per_rad": scale * rng.uniform(0.004, 0.01),
        "noise_rad_per_s": scale * rng.uniform(0.004, 0.01),
        "measurement_inflation": 1.0,
        "measurement_correlation_s": 0.0,
        "student_t_dof": 0.0,
        "gate_probability": 1.0 - 1e-12,
        "divergence_window_s": 0.0,
        "scale_deviation": 0.01,
        "heading_deviation_rad": 0.01,
        "yaw_bias_deviation_rad_per_m": 4e-4,
        "odometry_model_walk": 0.0,
    }
    states = dict.fromkeys(("estimate_scale", "estimate_heading", "estimate_yaw_bias"), calibrates)
    return FilterConfig(**settings, **states)


def random_covariance(rng: np.random.Generator, scale: float) -> Array:
    """A full covariance: deviations of 4-10 cm and 0.4-1.2 deg times `scale`, correlated at random."""
    sigma = scale * np.concatenate([rng.uniform(0.04, 0.1, 3), np.radians(rng.uniform(0.4, 1.2, 3))])
    A = rng.normal(size=(6, 6))
    S = A @ A.T + 0.5 * np.eye(6)
    spread = np.sqrt(S.diagonal())
    cov: Array = S * np.outer(sigma / spread, sigma / spread)
    return 0.5 * (cov + cov.T)


def drawn(rng: np.random.Generator, cov_66: Array) -> Array:
    """A perturbation from its covariance (by Cholesky's factor, which is the same on every processor)."""
    return np.linalg.cholesky(cov_66) @ rng.normal(size=6)


def draw(seed: int, scale: float = 1.0, calibrates: bool = False) -> Problem:
    """A drive of 30-60 increments at 10 Hz in which all six degrees of freedom move, and 5-15 measurements of it.

    Odometry and prior are drawn first and the truth around them (`T_now = T_prev T_prev_now Exp(w)`), so the noise is
    exactly what the estimators are told.
    """
    rng = np.random.default_rng(seed)
    config = white_config(rng, scale, calibrates)
    T_odom_base, odometry = exp_se3(rng.normal(size=6)), []
    for k in range(int(rng.integers(30, 61)) + 1):
        odometry.append(OdometrySample(START_NS + k * STEP_NS, "odom", "base_link", T_odom_base))
        speed = rng.normal([5.0, 0.0, 0.0, 0.0, 0.0, 0.3], [1.0, 1.0, 1.0, 0.5, 0.5, 0.5])
        T_odom_base = T_odom_base @ exp_se3(speed * STEP_NS / NANOSECONDS)

    P = random_covariance(rng, scale)
    T_prior = exp_se3(np.concatenate([rng.uniform(-100.0, 100.0, 3), rng.uniform(-1.5, 1.5, 3)]))
    prior = InitialPose(START_NS, "map", T_prior, P)
    truth = [T_prior @ exp_se3(drawn(rng, P))]
    model = np.random.default_rng([seed, 1]).normal(size=3) * np.sqrt(prior_variances(config))
    problem = Problem(config, prior, odometry, [])
    for segment in problem.segments():
        noise = drawn(rng, np.diag(variances(segment)))
        step, _ = corrected(segment.T, segment.metres, model)
        truth.append(truth[-1] @ step @ exp_se3(noise))

    count = int(rng.integers(5, 16))
    for k in np.sort(rng.choice(np.arange(1, len(odometry)), count, replace=False)):
        R = random_covariance(rng, scale)
        Z = truth[k] @ exp_se3(-drawn(rng, R))
        problem.measurements.append(PoseMeasurement(odometry[k].stamp_ns, Z, R))
    return problem


def variances(segment: Segment) -> Array:
    """Of an increment's right perturbation, (translation, rotation)."""
    return np.repeat([segment.metres2, segment.radians2], 3)


# ---------------------------------------------------------------------------------------------------- the two estimates


@dataclass(frozen=True)
class Estimate:
    """The last pose of a drive and the covariance of its right perturbation, (translation, rotation)."""

    T: Array
    cov_66: Array


def in_order(problem: Problem) -> list[Event]:
    """As they were taken; a measurement after the odometry of its stamp."""
    return sorted([*problem.odometry, *problem.measurements], key=lambda event: event.stamp_ns)


def filtered(problem: Problem, events: Sequence[Event]) -> Estimate:
    """What the filter makes of the events in this order of arrival; every one of them must have been used."""
    fusion = Fusion(problem.config, FrameNames())
    assert fusion.set_pose(problem.prior).verdict is Verdict.FUSED
    feed(fusion, list(events))
    state = fusion.state()
    assert state is not None
    assert state.stamp_ns == problem.odometry[-1].stamp_ns
    fusion.flush()
    counted = {name: count for name, count in fusion.counters().items() if count}
    assert counted == {"odometry.used": len(problem.odometry), "verdict.fused": len(problem.measurements)}
    return Estimate(state.T_map_base, state.cov_66)


def batch(problem: Problem) -> Estimate:
    """The last pose of the most likely drive and its marginal covariance, by GTSAM."""
    graph, guess = gtsam.NonlinearFactorGraph(), gtsam.Values()
    graph.add(gtsam.PriorFactorPose3(0, gtsam.Pose3(problem.prior.T_map_base), gaussian(problem.prior.cov_66)))
    T = problem.prior.T_map_base
    guess.insert(0, gtsam.Pose3(T))
    for k, segment in enumerate(problem.segments(), 1):
        noise = gaussian(np.diag(variances(segment)))
        if problem.config.estimate_scale:
            graph.add(calibrating_factor(k, segment, noise))
        else:
            graph.add(gtsam.BetweenFactorPose3(k - 1, k, gtsam.Pose3(segment.T), noise))
        T = T @ segment.T
        guess.insert(k, gtsam.Pose3(T))
    index = {sample.stamp_ns: k for k, sample in enumerate(problem.odometry)}
    for z in problem.measurements:
        graph.add(gtsam.PriorFactorPose3(index[z.stamp_ns], gtsam.Pose3(z.T_map_base), gaussian(z.cov_66)))
    if problem.config.estimate_scale:
        deviations = gtsam.noiseModel.Diagonal.Variances(prior_variances(problem.config))
        graph.add(gtsam.PriorFactorVector(MODEL, np.zeros(3), deviations))
        guess.insert(MODEL, np.zeros(3))
    parameters = gtsam.LevenbergMarquardtParams()
    parameters.setRelativeErrorTol(0.0)
    parameters.setAbsoluteErrorTol(1e-12)
    best = gtsam.LevenbergMarquardtOptimizer(graph, guess, parameters).optimize()
    last = len(problem.odometry) - 1
    cov_66 = gtsam.Marginals(graph, best).marginalCovariance(last)
    return Estimate(best.atPose3(last).matrix(), reordered(cov_66))


def calibrating_factor(k: int, segment: Segment, noise: object) -> object:
    """A factor of GTSAM between two poses and the odometry's model: `Log(X(model)^-1 T_prev^-1 T_now)`.

    Its derivatives (J. Sola et al., arXiv:1812.01537, section II-G): by the present pose `J_r^-1`, by the previous one
    the same after `-Ad(T_now^-1 T_prev)`, by the model `-J_l^-1` after that of the increment.
    """

    def residual(_: object, values: gtsam.Values, jacobians: list[Array] | None) -> Array:
        moved = inverse(values.atPose3(k - 1).matrix()) @ values.atPose3(k).matrix()
        step, F = corrected(segment.T, segment.metres, values.atVector(MODEL))
        r = log_se3(inverse(step) @ moved)
        if jacobians is not None:
            by_pose = right_jacobian_inverse_se3(r)
            jacobians[0] = reordered(-by_pose @ adjoint(inverse(moved)))
            jacobians[1] = reordered(by_pose)
            jacobians[2] = (-right_jacobian_inverse_se3(-r) @ F[:6, 6:])[ROTATION_FIRST]
        return r[ROTATION_FIRST]

    return gtsam.CustomFactor(noise, [k - 1, k, MODEL], residual)


def gaussian(cov_66: Array) -> object:
    """GTSAM's noise model of one of our covariances."""
    return gtsam.noiseModel.Gaussian.Covariance(reordered(cov_66))


def reordered(S_66: Array) -> Array:
    """Between (translation, rotation) and (rotation, translation)."""
    return S_66[np.ix_(ROTATION_FIRST, ROTATION_FIRST)]


def disagreement(estimate: Estimate, reference: Estimate) -> tuple[float, float]:
    """How far two estimates are apart, whitened by the covariance of the second.

    Returns:
        The largest component of the difference of the poses, in standard deviations; and the largest relative
        difference of the variance of any linear combination of the six components.
    """
    whitening = np.linalg.inv(np.linalg.cholesky(reference.cov_66))
    difference = whitening @ log_se3(inverse(reference.T) @ estimate.T)
    ratios = np.linalg.eigvalsh(whitening @ estimate.cov_66 @ whitening.T)
    return float(np.abs(difference).max()), float(np.abs(ratios - 1.0).max())


# --------------------------------------------------------------------------------------------------------------- tests


def test_gtsam_has_the_same_perturbation_and_residuals() -> None:
    """Retraction, residuals and Jacobians of GTSAM as it was compiled, but for the order: those of `test_batch`."""
    rng = np.random.default_rng(0)
    unit = gtsam.noiseModel.Unit.Create(6)
    for _ in range(20):
        A, B, M = (exp_se3(rng.normal(size=6)) for _ in range(3))
        d = rng.normal(size=6)
        moved = gtsam.Pose3(A).retract(d[ROTATION_FIRST]).matrix()
        np.testing.assert_allclose(moved, A @ exp_se3(d), atol=1e-12)
        values = gtsam.Values()
        values.insert(0, gtsam.Pose3(A))
        values.insert(1, gtsam.Pose3(B))

        prior = gtsam.PriorFactorPose3(0, gtsam.Pose3(M), unit)
        at_a = jacobian(lambda d, A=A, M=M: log_se3(inverse(M) @ A @ exp_se3(d)))
        np.testing.assert_allclose(prior.unwhitenedError(values)[ROTATION_FIRST], log_se3(inverse(M) @ A), atol=1e-12)
        np.testing.assert_allclose(reordered(prior.linearize(values).jacobian()[0]), at_a, atol=1e-6)

        between = gtsam.BetweenFactorPose3(0, 1, gtsam.Pose3(M), unit)
        residual = log_se3(inverse(M) @ inverse(A) @ B)
        at_a = jacobian(lambda d, A=A, B=B, M=M: log_se3(inverse(M) @ inverse(A @ exp_se3(d)) @ B))
        at_b = jacobian(lambda d, A=A, B=B, M=M: log_se3(inverse(M) @ inverse(A) @ B @ exp_se3(d)))
        np.testing.assert_allclose(between.unwhitenedError(values)[ROTATION_FIRST], residual, atol=1e-12)
        both = between.linearize(values).jacobian()[0]
        np.testing.assert_allclose(reordered(both[:, :6]), at_a, atol=1e-6)
        np.testing.assert_allclose(reordered(both[:, 6:]), at_b, atol=1e-6)


def disagreements(scale: float, count: int = PROBLEMS, calibrates: bool = False) -> Array:
    """(count, 2): `disagreement` of the filter with the batch solution on every problem."""
    problems = [draw(seed, scale, calibrates) for seed in range(count)]
    return np.array([disagreement(filtered(problem, in_order(problem)), batch(problem)) for problem in problems])


@pytest.fixture(scope="module")
def where_noise_is_small() -> Array:
    return disagreements(1.0)


def test_small_noise_agrees_with_the_batch_solution(where_noise_is_small: Array) -> None:
    """On every problem, in every direction of the six-dimensional error."""
    sigmas, variance = where_noise_is_small.max(axis=0)
    print(f"largest of {PROBLEMS} problems: {sigmas:.4f} standard deviations, {variance:.4f} of a variance")
    assert sigmas < SIGMAS_LIMIT
    assert variance < VARIANCE_LIMIT


def test_what_is_left_is_linearisation(where_noise_is_small: Array) -> None:
    """The residue of linearising at the filtered instead of the smoothed pose is of second order in the noise: measured
    in deviations it grows as they do. An error of first order would not care how large the noise is."""
    where_noise_is_large = disagreements(LARGE)
    sigmas, variance = where_noise_is_large.max(axis=0)
    print(f"{LARGE:g} times the noise: at most {sigmas:.4f} standard deviations, {variance:.4f} of a variance")
    growth = np.median(where_noise_is_large, axis=0) / np.median(where_noise_is_small, axis=0)
    print(f"{LARGE:g} times the noise: medians grow {growth[0]:.1f} and {growth[1]:.1f} times")
    assert (growth > 0.5 * LARGE).all()
    assert (growth < 2.0 * LARGE).all()
    assert sigmas < LARGE * SIGMAS_LIMIT
    assert variance < LARGE * VARIANCE_LIMIT


def test_estimating_the_odometrys_faults_agrees_with_the_batch_solution() -> None:
    """With scale, heading and yaw bias as states, which GTSAM finds as one variable that all increments share."""
    sigmas, variance = disagreements(1.0, CALIBRATING_PROBLEMS, calibrates=True).max(axis=0)
    print(f"largest of {CALIBRATING_PROBLEMS} problems: {sigmas:.4f} standard deviations, {variance:.4f} of a variance")
    assert sigmas < SIGMAS_LIMIT
    assert variance < VARIANCE_LIMIT


def late(problem: Problem, rng: np.random.Generator) -> list[Event]:
    """The events as they arrive: measurements up to `MAX_DELAY_S` late, odometry up to `MAX_ODOMETRY_DELAY_S`."""
    first, *rest = in_order(problem)
    arrivals = []
    for event in rest:
        delay_s = MAX_DELAY_S if isinstance(event, PoseMeasurement) else MAX_ODOMETRY_DELAY_S
        arrivals.append(event.stamp_ns + rng.uniform(0.0, delay_s) * NANOSECONDS)
    return [first, *(rest[k] for k in np.argsort(arrivals))]


def test_late_and_shuffled_arrival_gives_the_same_estimate() -> None:
    for seed in range(PROBLEMS):
        problem = draw(seed)
        arrived = late(problem, np.random.default_rng(seed))
        stamps = [event.stamp_ns for event in arrived]
        assert stamps != sorted(stamps)
        expected, found = filtered(problem, in_order(problem)), filtered(problem, arrived)
        np.testing.assert_allclose(found.T, expected.T, rtol=0.0, atol=1e-9)
        np.testing.assert_allclose(found.cov_66, expected.cov_66, rtol=0.0, atol=1e-9)
