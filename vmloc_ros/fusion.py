"""The filter as the pipeline sees it: odometry and measurements in any order in, poses and verdicts out.

Which stamps are taken: measurements and odometry of the last `window_s` seconds, in any order; measurements up to
`future_tolerance_s` ahead of the newest data (they are fused at once, on a pose that coasts with the last believed
velocity, and again when the odometry around them has come). Stamps outside this are refused, unless several in a row
bear each other out and nothing else arrives between them: then the clock has jumped (a bag that loops) and the filter
starts over.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from vmloc_ros.config import FilterConfig, FrameNames
from vmloc_ros.errors import GeometryError
from vmloc_ros.filter import checked_covariance, checked_pose, six_by_six
from vmloc_ros.geometry import inverse
from vmloc_ros.history import MEASUREMENT, ODOMETRY, POSE, History, Node
from vmloc_ros.increments import OdometryVerdict
from vmloc_ros.latent import Remembered
from vmloc_ros.moment import Moment
from vmloc_ros.odometry import OdometryBuffer
from vmloc_ros.odometry_model import UNCALIBRATED, prior_variances
from vmloc_ros.replay import AS_POSE, WIDENED
from vmloc_ros.trajectory import NANOSECONDS
from vmloc_ros.types import FusedState, InitialPose, MeasurementResult, OdometrySample, PoseMeasurement, Verdict

Array = NDArray[np.float64]

__all__ = ["Fusion", "OdometryVerdict"]

CONFIRMATIONS = {ODOMETRY: 2, MEASUREMENT: 3}
"""So many samples in a row with stamps out of range, each after the one before, make a clock jump."""
UNKNOWN_M, UNKNOWN_RAD = 5.0, 0.2
"""Deviations that a pose set by hand gets where its sender left the variance at zero (RViz: z, roll and pitch)."""
COUNTED = tuple(v for v in Verdict if v not in (Verdict.NO_POSE, Verdict.PENDING))


class Fusion:
    """Error-state Kalman filter with a history. Not safe for two threads at once.

    Attributes:
        odometry: the odometry of the window as it came (it starts anew after a jump).
        epoch: how often the filter has started over (`reset`, or a clock that jumped).
        reset_reason: why it last did.
    """

    def __init__(self, config: FilterConfig, frames: FrameNames) -> None:
        self._config = config
        self._frames = frames
        self._history = History(config, self._count)
        self._counts: Counter[str] = Counter()
        self._odd_stamps: dict[int, list[int]] = {ODOMETRY: [], MEASUREMENT: []}
        self._waiting_pose: InitialPose | None = None
        self._window_ns = round(config.window_s * NANOSECONDS)
        self._future_ns = round(config.future_tolerance_s * NANOSECONDS)
        self.odometry = OdometryBuffer(config.window_s)
        self.epoch = 0
        self.reset_reason = ""

    # -------------------------------------------------------------------------------------------------------- odometry

    def add_odometry(self, sample: OdometrySample) -> OdometryVerdict:
        """Takes an odometry sample of any stamp in the window.

        The verdict is provisional (a later arrival may change it); the counters hold the final one. After `CLOCK_RESET`
        the filter has started over with this sample.
        """
        if sample.frame_id != self._frames.odom or sample.child_frame_id != self._frames.base:
            return self._refuse_odometry(OdometryVerdict.WRONG_FRAME)
        try:
            T_odom_base = checked_pose(sample.T_odom_base)
        except GeometryError:
            return self._refuse_odometry(OdometryVerdict.NOT_FINITE)
        if T_odom_base is not sample.T_odom_base:
            sample = replace(sample, T_odom_base=T_odom_base)
        stamp_ns, started_over = int(sample.stamp_ns), False
        newest_ns, begin_ns = self._history.newest_ns, self._history.window_begin_ns
        if newest_ns is not None and begin_ns is not None:
            if not begin_ns <= stamp_ns <= newest_ns + self._window_ns:
                latest_ns = self.odometry.newest_ns
                if latest_ns is not None and latest_ns < stamp_ns < begin_ns:
                    # it goes on from the sample before: a backlog behind newer measurements, not a clock set back
                    return self._refuse_odometry(OdometryVerdict.TOO_OLD)
                if not self._clock_jumped(ODOMETRY, stamp_ns):
                    late = stamp_ns < begin_ns
                    return self._refuse_odometry(OdometryVerdict.TOO_OLD if late else OdometryVerdict.FUTURE)
                if stamp_ns < begin_ns or stamp_ns - newest_ns > self._config.lost_after_s * NANOSECONDS:
                    started_over = True
                    self.reset("the odometry's clock has jumped")
            elif (node := self._history.odometry_at(stamp_ns)) is not None:
                return self._repeated(node, sample)
        self._accepted(stamp_ns)
        node = Node((stamp_ns, ODOMETRY, "", b""), stamp_ns, sample, started_over=started_over)
        self._history.insert(node)
        verdict = node.odometry_verdict
        if verdict is OdometryVerdict.JUMP:
            self.odometry.forget_before(stamp_ns)
        self.odometry.insert_checked(stamp_ns, sample.T_odom_base)
        return verdict

    def _refuse_odometry(self, verdict: OdometryVerdict) -> OdometryVerdict:
        self._counts[f"odometry.{verdict.value}"] += 1
        return verdict

    def _repeated(self, node: Node, sample: OdometrySample) -> OdometryVerdict:
        """Two samples of one stamp: the one whose bytes come first counts, whichever arrived first."""
        assert isinstance(node.event, OdometrySample)
        if not node.final and sample.T_odom_base.tobytes() < node.event.T_odom_base.tobytes():
            self._history.replace_sample(node, sample)
        return self._refuse_odometry(OdometryVerdict.DUPLICATE)

    # ---------------------------------------------------------------------------------------------------- measurements

    def add_measurement(self, measurement: PoseMeasurement) -> MeasurementResult:
        """Takes a measurement of any stamp in the window. Its verdict is provisional; the counters hold the final.

        An observation that came with it is asked at its pose first: an answer that cannot be used is `NOT_FINITE`.
        """
        if measurement.frame_id != self._frames.map:
            return self._refuse(
                Verdict.WRONG_FRAME, f"frame is {measurement.frame_id!r}; the map is {self._frames.map!r}"
            )
        try:
            T, cov_66 = checked_pose(measurement.T_map_base), checked_covariance(measurement.cov_66)
        except GeometryError as error:
            return self._refuse(Verdict.NOT_FINITE, str(error))
        stamp_ns = int(measurement.stamp_ns)
        refused = self._out_of_time(stamp_ns)
        if refused is not None:
            return refused
        clean = replace(measurement, stamp_ns=stamp_ns, T_map_base=T, cov_66=cov_66, observation=None)
        key = (stamp_ns, MEASUREMENT, clean.source, T.tobytes() + cov_66.tobytes())
        node = Node(key, stamp_ns, clean)
        if self._history.find(node.key) is not None:
            return self._refuse(Verdict.DUPLICATE, f"the same measurement of {stamp_ns / NANOSECONDS:.3f} s is known")
        if measurement.observation is not None and self._config.use_observations:
            observation = Remembered(measurement.observation)
            try:
                observation.at(T)
            except GeometryError as error:
                return self._refuse(Verdict.NOT_FINITE, str(error))
            node.event = replace(clean, observation=observation)
        self._accepted(stamp_ns)
        self._history.insert(node)
        assert node.result is not None
        return node.result

    def _out_of_time(self, stamp_ns: int) -> MeasurementResult | None:
        """Why a measurement's stamp cannot be taken; starts over where the clock has jumped."""
        newest_ns, begin_ns = self._history.newest_ns, self._history.window_begin_ns
        if newest_ns is None or begin_ns is None or begin_ns <= stamp_ns <= newest_ns + self._future_ns:
            return None
        late = stamp_ns < begin_ns
        # Where there is odometry it is the odometry that tells of a clock set back: measurements may just be late.
        if (not late or len(self.odometry) == 0) and self._clock_jumped(MEASUREMENT, stamp_ns):
            if late or stamp_ns - newest_ns > self._config.lost_after_s * NANOSECONDS:
                self.reset("the measurements' clock has jumped")
            return None
        if late:
            age_s = (newest_ns - stamp_ns) / NANOSECONDS
            reason = f"{age_s:.3f} s older than the newest data; the history holds {self._config.window_s:g} s"
            return self._refuse(Verdict.TOO_OLD, reason)
        ahead_s = (stamp_ns - newest_ns) / NANOSECONDS
        reason = f"{ahead_s:.3f} s ahead of the newest data; {self._config.future_tolerance_s:g} s are allowed"
        return self._refuse(Verdict.FUTURE, reason)

    def _refuse(self, verdict: Verdict, reason: str) -> MeasurementResult:
        self._counts[f"verdict.{verdict.value}"] += 1
        return MeasurementResult(verdict, reason)

    def set_pose(self, pose: InitialPose) -> MeasurementResult:
        """Sets the pose by hand, at its stamp (0: now). Before any data it waits for the first odometry or measurement.

        Zero variances, as RViz leaves them for z, roll and pitch, are taken as unknown: 5 m, 0.2 rad. Not counted as a
        measurement.
        """
        if pose.frame_id != self._frames.map:
            reason = f"frame is {pose.frame_id!r}; the map is {self._frames.map!r}"
            return MeasurementResult(Verdict.WRONG_FRAME, reason)
        try:
            cov_66, filled = _with_unknowns(pose.cov_66)
            clean = replace(pose, T_map_base=checked_pose(pose.T_map_base), cov_66=checked_covariance(cov_66))
        except GeometryError as error:
            return MeasurementResult(Verdict.NOT_FINITE, str(error))
        note = f"; {filled} zero variances taken as unknown" if filled else ""
        newest_ns, begin_ns = self._history.newest_ns, self._history.window_begin_ns
        if newest_ns is None or begin_ns is None:
            self._waiting_pose = clean
            return MeasurementResult(Verdict.FUSED, f"kept for the first odometry or measurement{note}")
        stamp_ns = int(pose.stamp_ns) or newest_ns
        if stamp_ns < begin_ns or stamp_ns > newest_ns + self._future_ns:
            verdict = Verdict.TOO_OLD if stamp_ns < begin_ns else Verdict.FUTURE
            offset_s = (stamp_ns - newest_ns) / NANOSECONDS
            return MeasurementResult(verdict, f"{offset_s:+.3f} s off the newest data: does the sender use sim time?")
        self._insert_pose(clean, stamp_ns)
        return MeasurementResult(Verdict.FUSED, f"set by hand{note}")

    def _insert_pose(self, pose: InitialPose, stamp_ns: int) -> None:
        node = Node((stamp_ns, POSE, "", pose.T_map_base.tobytes() + pose.cov_66.tobytes()), stamp_ns, pose)
        if self._history.find(node.key) is None:
            self._history.insert(node)

    # ----------------------------------------------------------------------------------------------------------- clock

    def _clock_jumped(self, kind: int, stamp_ns: int) -> bool:
        """Whether a stamp out of range is one of several in a row that go on from each other."""
        newest_ns, odd = self._history.newest_ns, self._odd_stamps[kind]
        assert newest_ns is not None
        if odd and not 0 < stamp_ns - odd[-1] < abs(stamp_ns - newest_ns):
            odd.clear()
        odd.append(stamp_ns)
        return len(odd) >= CONFIRMATIONS[kind]

    def _accepted(self, stamp_ns: int) -> None:
        """Something arrived whose stamp is in range: stamps out of range before it were strays."""
        for odd in self._odd_stamps.values():
            odd.clear()
        if self._waiting_pose is not None:
            pose, self._waiting_pose = self._waiting_pose, None
            self._insert_pose(pose, stamp_ns)

    def reset(self, reason: str) -> None:
        """Forgets state, history and odometry; counters stay. The events of the window get their final verdicts."""
        self._history.clear()
        self.odometry.clear()
        self._accepted_nothing()
        self._counts["resets"] += 1
        self.epoch += 1
        self.reset_reason = reason

    def _accepted_nothing(self) -> None:
        for odd in self._odd_stamps.values():
            odd.clear()
        self._waiting_pose = None

    # ---------------------------------------------------------------------------------------------------------- answers

    @property
    def newest_ns(self) -> int | None:
        """Stamp of the newest accepted event."""
        return self._history.newest_ns

    def state(self) -> FusedState | None:
        """The pose at the newest odometry sample, or at the newest event where odometry has been silent for long."""
        moment, newest = self._history.newest_odometry(), self._history.newest()
        if newest is not None:
            silent_ns = round(self._config.max_odometry_gap_s * NANOSECONDS)
            if moment is None or newest.stamp_ns - moment.stamp_ns > silent_ns:
                moment = newest
        return _state(moment)

    def state_at(self, stamp_ns: int) -> FusedState | None:
        """The filter's posterior at a stamp with everything up to it; None without a pose or outside the window.

        Up to `future_tolerance_s` beyond the newest event it coasts with the last believed velocity.
        """
        newest_ns = self._history.newest_ns
        if newest_ns is None or stamp_ns > newest_ns + self._future_ns:
            return None
        return _state(self._history.at(stamp_ns))

    def odometry_model(self) -> tuple[Array, Array]:
        """What the odometry does wrong, as far as is known: log scale, heading (rad), yaw bias (rad/m), and their
        standard deviations: those of the prior before there is a pose, zero where one is not estimated."""
        newest = self._history.newest()
        if newest is None or newest.cov_99 is None:
            return UNCALIBRATED.copy(), np.sqrt(prior_variances(self._config))
        return newest.model_3.copy(), np.sqrt(newest.cov_99.diagonal()[6:])

    def seconds_since_fused(self, now_ns: int) -> float | None:
        """Time since the last fused measurement (or pose set by hand); None where there has been none."""
        newest = self._history.newest()
        if newest is None or newest.memory.fused_ns is None:
            return None
        return (now_ns - newest.memory.fused_ns) / NANOSECONDS

    def is_lost(self, now_ns: int) -> bool:
        """No pose; or nothing fused for `lost_after_s`; or neither odometry nor a fused measurement for
        `lost_odometry_gap_s`. The next fused measurement ends it; odometry that comes back ends a silence, whose length
        has widened the covariance."""
        newest, since_s = self._history.newest(), self.seconds_since_fused(now_ns)
        if newest is None or newest.T_map_base is None or since_s is None or since_s > self._config.lost_after_s:
            return True
        if since_s <= self._config.lost_odometry_gap_s:
            return False
        sample = newest.sample
        return sample is None or (now_ns - sample.stamp_ns) / NANOSECONDS > self._config.lost_odometry_gap_s

    # --------------------------------------------------------------------------------------------------------- counting

    def _count(self, node: Node) -> None:
        if isinstance(node.event, OdometrySample):
            self._counts[f"odometry.{node.odometry_verdict.value}"] += 1
        elif isinstance(node.event, PoseMeasurement):
            self._counts[f"verdict.{node.verdict.value}"] += 1
            if node.result is not None and node.result.reason.startswith("re-localized"):
                self._counts["relocalizations"] += 1
            if node.result is not None and node.result.reason.startswith(WIDENED):
                self._counts["widenings"] += 1
            if node.result is not None and AS_POSE in node.result.reason:
                self._counts["observations_as_poses"] += 1

    def counters(self) -> dict[str, int]:
        """Totals since the start, of final verdicts: `verdict.*`, `odometry.*`, `relocalizations`, `widenings`,
        `resets`, `observations_as_poses` (none: absent)."""
        totals = {f"verdict.{verdict.value}": 0 for verdict in COUNTED}
        totals |= {f"odometry.{verdict.value}": 0 for verdict in OdometryVerdict}
        return totals | {"relocalizations": 0, "widenings": 0, "resets": 0} | dict(self._counts)

    def flush(self) -> None:
        """The data has ended: everything in the window gets its final verdict. The state stays."""
        self._history.flush()


def _state(moment: Moment | None) -> FusedState | None:
    if moment is None or moment.T_map_base is None or moment.cov_99 is None:
        return None
    T_map_odom = moment.T_map_base @ inverse(moment.T_odom_base)
    return FusedState(moment.stamp_ns, moment.T_map_base.copy(), moment.cov_99[:6, :6].copy(), T_map_odom)


def _with_unknowns(cov_66: Array) -> tuple[Array, int]:
    """A covariance whose zero variances are replaced by those of not knowing, and how many these were."""
    cov = six_by_six(cov_66)
    variances = cov.diagonal().copy()
    zero = variances == 0.0
    unknown = np.array([UNKNOWN_M] * 3 + [UNKNOWN_RAD] * 3) ** 2
    cov[np.diag_indices(6)] = np.where(zero, unknown, variances)
    return cov, int(zero.sum())
