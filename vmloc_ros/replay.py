"""One step of the filter's history: what the filter knows after one more event.

Every function here is pure: a `Moment` and an event give the next `Moment` and the event's result. So running through
the sorted events again gives the same state whatever the order in which they arrived.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import chi2

from vmloc_ros import relocalization
from vmloc_ros.config import FilterConfig
from vmloc_ros.consistency import Watch
from vmloc_ros.errors import GeometryError
from vmloc_ros.filter import (
    PLANE,
    Innovation,
    correlation_inflation,
    flattened,
    hedged,
    innovate,
    predict_covariance,
    robust_weight,
    tidy,
    update,
)
from vmloc_ros.increments import (
    ERRATIC_ABOVE,
    OdometryVerdict,
    Segment,
    Step,
    coasting,
    count_jumps,
    judge,
    widened,
)
from vmloc_ros.latent import compress
from vmloc_ros.moment import Key, Memory, Moment
from vmloc_ros.odometry_model import STATES, corrected, prior_variances
from vmloc_ros.relocalization import Candidate
from vmloc_ros.trajectory import NANOSECONDS
from vmloc_ros.types import InitialPose, MeasurementResult, OdometrySample, PoseMeasurement, Verdict

Array = NDArray[np.float64]
DOF = 6
AS_POSE = "compared by its pose: the observation fits nowhere near the state"
WIDENED = "the state was widened: the measurements have pulled one way"
IN_PLANE_VARIANCE = 1e-9
"""Of z, roll and pitch (m^2, rad^2) in planar mode: zero, but for those who invert the covariance."""


Outcome = tuple[Moment, MeasurementResult, tuple[Key, ...]]
"""After a measurement: the next moment, what became of it, and the keys of earlier measurements that it brought in."""


class Compared(NamedTuple):
    """A measurement as the pose that is compared with the state: its own, or the one that its observation amounts to.

    `cov_66` is inflated, `dof` says in how many directions it tells anything, `note` why the observation was not used.
    """

    T_map_base: Array
    cov_66: Array
    innovation: Innovation
    dof: int
    note: str


class Replay:
    """The steps, with the limits that the configuration gives."""

    def __init__(self, config: FilterConfig) -> None:
        self.config = config
        self.dof = len(PLANE) if config.planar else DOF
        self._gates = [0.0] + [float(chi2.ppf(config.gate_probability, dof)) for dof in range(1, DOF + 1)]
        self.gate = self._gates[self.dof]
        self._watch = Watch(config)
        self._outlier_share = config.outlier_share if config.student_t_dof > 0.0 else 0.0
        self.candidate_gate = self._gates[DOF]
        self._prior = prior_variances(config)
        self._walk = self._prior * config.odometry_model_walk**2

    # -------------------------------------------------------------------------------------------------------- odometry

    def advance(self, moment: Moment, stamp_ns: int, segment: Segment | None) -> Moment:
        """To a later stamp, along the segment of odometry around it; without one the robot coasts (see `coasting`)."""
        if stamp_ns == moment.stamp_ns:
            return moment
        config, verdict = self.config, OdometryVerdict.GAP
        if segment is not None:
            if moment.segment is segment:
                verdict = moment.verdict
            else:
                still_s = (segment.begin.stamp_ns - moment.still_ns) / NANOSECONDS
                verdict = judge(segment, moment.motion, still_s, config, moment.verdict)
                if verdict is OdometryVerdict.USED and moment.jumps > ERRATIC_ABOVE:
                    verdict = OdometryVerdict.ERRATIC
        step, blind_s = self._step(moment, stamp_ns, segment, verdict)
        T, P = moment.T_map_base, moment.cov_99
        if T is not None and P is not None:
            way = flattened(step.T, 0.0) if self.config.planar else step.T
            X, F = corrected(way, step.metres, moment.model_3)
            m2, r2 = step.metres2, step.radians2
            a, b, c = (self._walk * step.metres).tolist()
            noise = (m2, m2, 0.0, 0.0, 0.0, r2, a, b, c) if self.config.planar else (m2, m2, m2, r2, r2, r2, a, b, c)
            T = T @ X
            P = predict_covariance(P, F, np.array(noise))
            if self.config.planar:
                _pin(P)
        return Moment(
            stamp_ns,
            T,
            moment.model_3,
            P,
            moment.T_start_base @ step.T,
            moment.metres2 + step.metres2,
            moment.radians2 + step.radians2,
            moment.sample,
            moment.T_start_sample,
            moment.motion,
            moment.still_ns,
            blind_s,
            moment.jumps,
            segment,
            verdict,
            moment.memory,
        )

    def _step(
        self, moment: Moment, stamp_ns: int, segment: Segment | None, verdict: OdometryVerdict
    ) -> tuple[Step, float]:
        if segment is not None and verdict is OdometryVerdict.USED:
            return segment.part(moment.stamp_ns, stamp_ns), 0.0
        if segment is not None and verdict is OdometryVerdict.TWIST_ONLY:
            if moment.segment is segment or moment.verdict is OdometryVerdict.TWIST_ONLY:
                return segment.by_twist(moment.stamp_ns, stamp_ns, self.config), 0.0
            # The first time also the standstill before, which was believed until the twist had said enough; what
            # measurements have made good of it already is driven twice, so it is widened.
            still_s = (moment.stamp_ns - moment.still_ns) / NANOSECONDS
            return widened(segment.by_twist(moment.still_ns, stamp_ns, self.config), 0.0, still_s, self.config), 0.0
        if segment is not None and verdict is OdometryVerdict.GAP:
            step = segment.part(moment.stamp_ns, stamp_ns)
        else:
            held = verdict in (OdometryVerdict.FROZEN, OdometryVerdict.ERRATIC) or moment.jumps > ERRATIC_ABOVE
            motion = None if held else moment.motion
            step = coasting(motion, moment.stamp_ns, stamp_ns, self.config)
        blind_s = moment.blind_s + (stamp_ns - moment.stamp_ns) / NANOSECONDS
        if segment is not None and verdict is OdometryVerdict.FROZEN and moment.blind_s == 0.0:
            # it was frozen before that showed: the standstill that has been believed is made good for here
            blind_s += (segment.begin.stamp_ns - moment.still_ns) / NANOSECONDS
        return widened(step, moment.blind_s, blind_s, self.config), blind_s

    def odometry(self, moment: Moment, sample: OdometrySample, segment: Segment | None) -> Moment:
        """To an odometry sample, at the end of its segment."""
        after = self.advance(moment, sample.stamp_ns, segment)
        if after is moment:  # the very first event, or a sample at the stamp where history begins
            after = moment.copied()
        after.sample = sample
        after.T_start_sample = after.T_start_base
        if segment is not None and (after.jumps > 0.0 or after.verdict is OdometryVerdict.JUMP):
            after.jumps = count_jumps(after.jumps, segment.dt_s, after.verdict is OdometryVerdict.JUMP)
        if segment is None or after.verdict is OdometryVerdict.JUMP:
            after.still_ns = sample.stamp_ns
            if segment is not None and after.jumps > ERRATIC_ABOVE:
                # among jumps the next increment is compared with this one: two that are alike are a first calm
                after.motion = segment.motion(0.0)
        elif after.verdict is OdometryVerdict.GAP:  # a mean over a long time says little of the velocity now
            after.motion, after.still_ns = None, sample.stamp_ns
        elif after.verdict is OdometryVerdict.TWIST_ONLY:
            # what the pose catches up with when it comes alive has been driven already: it will be a jump
            after.motion, after.still_ns = segment.motion_by_twist(), sample.stamp_ns
        elif after.verdict in (OdometryVerdict.USED, OdometryVerdict.ERRATIC):
            still_s = (segment.begin.stamp_ns - moment.still_ns) / NANOSECONDS
            if not segment.repeated:
                after.motion, after.still_ns = segment.motion(still_s), sample.stamp_ns
            elif still_s > self.config.max_odometry_gap_s or (moment.motion and not any(moment.motion.velocity)):
                # too long for a source that is merely slow: the robot stands
                after.motion, after.still_ns = segment.motion(0.0), sample.stamp_ns
        return after

    # ---------------------------------------------------------------------------------------------------- measurements

    def measure(self, moment: Moment, z: PoseMeasurement, key: Key) -> Outcome:
        """A measurement at the moment's stamp."""
        R = z.cov_66 * self.config.measurement_inflation
        if moment.T_map_base is None or moment.cov_99 is None:
            return self._start(moment, z, R, key)
        before = moment
        try:
            seen = self._compared(moment, z, R)
            moment, widened, level = self._watched(moment, z.source, seen)
            assert moment.T_map_base is not None
            assert moment.cov_99 is not None
            if widened:
                seen = self._compared(moment, z, R)
            nis, dof = seen.innovation.nis, seen.dof
            notes = [note for note in (WIDENED if widened else "", seen.note) if note]
            if nis > self._gates[dof]:
                after, result, keys = self._gated(moment, z, R, key, nis, dof)
                if notes and result.verdict is Verdict.GATED:
                    result = replace(result, reason="; ".join((*notes, result.reason)))
                return after, result, keys
            factor = self._correlation(moment, z) / self._weight(max(nis, level * dof), dof)
            planar = self.config.planar
            posterior = update(
                moment.T_map_base, moment.cov_99, seen.T_map_base, seen.cov_66 * factor, seen.innovation, planar
            )
            T, P, shift = posterior
            if self._outlier_share > 0.0:
                P = hedged(moment.cov_99, moment.T_map_base, posterior, self._outlier_share)
        except np.linalg.LinAlgError:
            return before, MeasurementResult(Verdict.NOT_FINITE, "covariance is numerically singular"), ()
        except GeometryError as error:
            return before, MeasurementResult(Verdict.NOT_FINITE, str(error)), ()
        if not (np.isfinite(T).all() and np.isfinite(P).all() and P.diagonal()[:6].min() > 0.0):
            return before, MeasurementResult(Verdict.NOT_FINITE, "the update would not be finite"), ()
        after = self._corrected(moment, T, P, z.source)
        after.model_3 = moment.model_3 + shift
        return after, MeasurementResult(Verdict.FUSED, "; ".join(notes), nis, dof), ()

    def _compared(self, moment: Moment, z: PoseMeasurement, R: Array) -> Compared:
        """A measurement against the state: by its observation where it has one that fits near the state.

        Raises:
            GeometryError: what the observation answers cannot be used.
        """
        config, T, P = self.config, moment.T_map_base, moment.cov_99
        assert T is not None
        assert P is not None
        Z = flattened(z.T_map_base, config.planar_height_m) if config.planar else z.T_map_base
        dof, excess, note = self.dof, 0.0, ""
        if z.observation is not None:
            correlation = self._correlation(moment, z)
            near = compress(
                z.observation, Z, T, P[:6, :6], config.measurement_inflation, correlation, self.gate, config.planar
            )
            if near is None:
                note = AS_POSE
            else:
                Z, R, dof, excess = near.T_map_base, near.cov_66, near.rank, near.excess
        innovation = innovate(T, P, Z, R, config.planar)
        if excess > 0.0:
            innovation = replace(innovation, nis=innovation.nis + excess)
        return Compared(Z, R, innovation, dof, note)

    def _weight(self, nis: float, dof: int) -> float:
        config = self.config
        return robust_weight(nis, config.student_t_dof, dof, config.robust_power, config.max_robust_weight)

    def _watched(self, moment: Moment, source: str, seen: Compared) -> tuple[Moment, bool, float]:
        """Notes how a measurement fits; widens the state where its source's have long pulled one way.

        Returns:
            The moment with the source's trend, whether its state was widened, and the source's noise level.
        """
        T, P = moment.T_map_base, moment.cov_99
        assert T is not None
        assert P is not None
        trends = moment.memory.trends
        before = next((trend for name, trend in trends if name == source), None)
        trend, pull_6 = self._watch.note(before, moment.stamp_ns, T, P, seen.cov_66, seen.innovation, seen.dof)
        after = moment.copied()
        others = [item for item in trends if item[0] != source][-15:]
        after.memory = replace(moment.memory, trends=(*others, (source, trend)))
        if pull_6 is not None:
            after.cov_99 = self._widened(P, pull_6)
        return after, pull_6 is not None, trend.level

    def _widened(self, P: Array, pull_6: Array) -> Array:
        """The covariance with the unexplained pull as further uncertainty, and nothing known of the odometry."""
        wide = np.zeros_like(P)
        wide[:6, :6] = P[:6, :6] + np.outer(pull_6, pull_6)
        wide[6:, 6:] = np.diag(np.maximum(self._prior, P.diagonal()[6:]))
        return wide

    def set_pose(self, moment: Moment, pose: InitialPose) -> Moment:
        """A pose given by hand replaces the state; what is known of the odometry stays."""
        return self._placed(moment, pose.T_map_base, pose.cov_66, None)

    def _placed(self, moment: Moment, T: Array, P_66: Array, source: str | None) -> Moment:
        """The moment with another pose that has nothing to do with the one before."""
        P = np.zeros((STATES, STATES))
        P[:6, :6] = P_66
        P[6:, 6:] = np.diag(self._prior) if moment.cov_99 is None else moment.cov_99[6:, 6:]
        if self.config.planar:
            T = flattened(T, self.config.planar_height_m)
            _pin(P)
        after = self._corrected(moment, T, P, source)
        forgotten = tuple((name, trend.without_pull()) for name, trend in moment.memory.trends)
        after.memory = replace(after.memory, trends=forgotten)
        return after

    def _correlation(self, moment: Moment, z: PoseMeasurement) -> float:
        for source, stamp_ns in moment.memory.by_source:
            if source == z.source:
                elapsed_s = (moment.stamp_ns - stamp_ns) / NANOSECONDS
                return correlation_inflation(elapsed_s, self.config.measurement_correlation_s)
        return 1.0

    def _corrected(self, moment: Moment, T: Array, P: Array, source: str | None) -> Moment:
        after = moment.copied()
        by_source = moment.memory.by_source
        if source is not None:
            by_source = (*[item for item in by_source if item[0] != source][-15:], (source, moment.stamp_ns))
        after.T_map_base, after.cov_99 = T, P
        after.memory = Memory(moment.stamp_ns, by_source, (), moment.memory.trends)
        after.T_start_base = tidy(moment.T_start_base)
        return after

    def _start(self, moment: Moment, z: PoseMeasurement, R: Array, key: Key) -> Outcome:
        """No pose yet: collects measurements until enough of them agree."""
        needed = self.config.initialize_after
        candidates = self._join(moment, z, R, key, 3 * needed)
        chosen = relocalization.agreeing(candidates)
        if len(chosen) >= needed:
            return self._adopt(moment, z, chosen, f"started from {len(chosen)} measurements that agree", None)
        after = moment.copied()
        after.memory = Memory(None, (), candidates)
        reason = f"no pose yet: {len(chosen)} of {needed} measurements agree"
        return after, MeasurementResult(Verdict.PENDING, reason), ()

    def _gated(self, moment: Moment, z: PoseMeasurement, R: Array, key: Key, nis: float, dof: int) -> Outcome:
        """Too far from the state. When enough of such agree among themselves, it is the state that is wrong."""
        config, memory = self.config, moment.memory
        result = MeasurementResult(
            Verdict.GATED, f"squared Mahalanobis distance {nis:.1f} is above {self._gates[dof]:.1f}", nis, dof
        )
        spacing_ns = round(config.relocalize_span_s * NANOSECONDS) // config.relocalize_after
        if memory.candidates and moment.stamp_ns - memory.candidates[-1].stamp_ns < spacing_ns:
            return moment, result, ()  # errors in quick succession are alike: one of them will do
        candidates = self._join(moment, z, R, key, 3 * config.relocalize_after)
        chosen = relocalization.agreeing(candidates)
        span_ns = chosen[-1].stamp_ns - chosen[0].stamp_ns
        enough_ns = spacing_ns * (config.relocalize_after - 1)
        if len(chosen) >= config.relocalize_after and span_ns >= enough_ns:
            reason = f"re-localized: {len(chosen)} refused measurements agree over {span_ns / NANOSECONDS:.2f} s"
            return self._adopt(moment, z, chosen, reason, nis)
        after = moment.copied()
        after.memory = replace(memory, candidates=candidates)
        return after, result, ()

    def _join(self, moment: Moment, z: PoseMeasurement, R: Array, key: Key, limit: int) -> tuple[Candidate, ...]:
        new = Candidate(moment.stamp_ns, key, z.T_map_base, R, moment.T_start_base, moment.metres2, moment.radians2)
        return relocalization.join(moment.memory.candidates, new, self.candidate_gate, limit)

    def _adopt(
        self, moment: Moment, z: PoseMeasurement, chosen: tuple[Candidate, ...], reason: str, nis: float | None
    ) -> Outcome:
        try:
            T, P = relocalization.fused(chosen, self.config.measurement_correlation_s)
        except np.linalg.LinAlgError:
            T = P = np.full((6, 6), np.nan)
        if not (np.isfinite(T).all() and np.isfinite(P).all() and P.diagonal().min() > 0.0):
            return moment, MeasurementResult(Verdict.NOT_FINITE, "covariances are numerically singular"), ()
        after = self._placed(moment, tidy(T), P, z.source)
        return after, MeasurementResult(Verdict.FUSED, reason, nis, self.dof), tuple(c.key for c in chosen[:-1])


def _pin(P: Array) -> None:
    """Takes z, roll and pitch out of a covariance, in place: in planar mode they are known."""
    P[2:5], P[:, 2:5] = 0.0, 0.0
    P[range(2, 5), range(2, 5)] = IN_PLANE_VARIANCE
