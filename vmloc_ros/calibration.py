"""Calibrates a model's covariances by blocks of frames, and judges them on the blocks that were left out.

Frames that follow each other err alike. So data is calibrated on in blocks, each a stretch of time, and what is said of
the covariances' truth is measured on a block that the numbers were not fitted to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vmloc_ros.checkpoint import Judgement, ModeCalibration
from vmloc_ros.covariance_fit import fit_covariance
from vmloc_ros.geometry import Array
from vmloc_ros.neighbours import Evidence, Neighbours, scatter_evidence
from vmloc_ros.types import Mode
from vmloc_ros.uncertainty import best_constant, coverage, gaussian_log_likelihood, nees, spread
from vmloc_ros.validation import ModeErrors

EXPONENTS: dict[str, tuple[tuple[float, float], ...]] = {
    "neighbours": ((1.0, 0.5), (1.0, 0.0), (2.0, 0.5)),
    "scatter": ((0.5, 0.0), (0.0, 0.0), (1.0, 0.0)),
}
"""Of distance and disagreement. The first is used where there are too few blocks to choose by. With neighbours the
exponent of the distance is never below 1: within a block it looks smaller than it is between blocks."""
MIN_BLOCKS = 3
"""Fewer cannot choose exponents: one is judged, and the fit needs two."""
WANTED_BLOCKS = 4
PART_S = 5.0
"""Where there are fewer blocks they are cut into parts, none shorter than this."""


@dataclass(frozen=True, eq=False)
class CalibrationFrames:
    """What a mode is calibrated on.

    Attributes:
        errors_N6: right perturbations in camera axes (m, rad), in order of time within a block.
        scatters_N66: of the latent samples.
        evidence: `neighbours` or `scatter`, see `kind`.
        blocks_N: number of the block that each frame lies in.
        kind: what the evidence is of.
    """

    errors_N6: Array
    scatters_N66: Array
    evidence: Evidence
    blocks_N: NDArray[np.int64]
    kind: str

    def __len__(self) -> int:
        return len(self.errors_N6)

    def only(self, chosen_N: NDArray[np.bool_]) -> CalibrationFrames:
        """Some of the frames."""
        return CalibrationFrames(
            self.errors_N6[chosen_N],
            self.scatters_N66[chosen_N],
            self.evidence[chosen_N],
            self.blocks_N[chosen_N],
            self.kind,
        )


def calibration_frames(
    errors: Mapping[Mode, ModeErrors], neighbours: Mapping[Mode, Neighbours], blocks_of: NDArray[np.int64]
) -> dict[Mode, CalibrationFrames]:
    """Errors with their evidence. A mode without training latents has the scatter of its latent samples.

    Args:
        blocks_of: block of every sample of the store.
    """
    result = {}
    for mode, error in errors.items():
        known = neighbours.get(mode)
        evidence = (
            scatter_evidence(error.scatters_N66) if known is None else known.evidence(error.latents_ND, error.T_hat_N44)
        )
        kind = "scatter" if known is None else "neighbours"
        blocks = blocks_of[error.samples_N]
        result[mode] = CalibrationFrames(error.tangent_N6, error.scatters_N66, evidence, blocks, kind)
    return result


def pooled(parts: Sequence[Mapping[Mode, CalibrationFrames]]) -> dict[Mode, CalibrationFrames]:
    """Frames of several networks or sources together, by mode; blocks of different parts stay different.

    Only frames whose evidence is of the first part's kind are taken.
    """
    gathered: dict[Mode, list[CalibrationFrames]] = {}
    first_free = 0
    for part in parts:
        for mode, frames in part.items():
            moved = CalibrationFrames(
                frames.errors_N6, frames.scatters_N66, frames.evidence, frames.blocks_N + first_free, frames.kind
            )
            gathered.setdefault(mode, []).append(moved)
        first_free += 1 + max((int(frames.blocks_N.max(initial=0)) for frames in part.values()), default=0)
    return {mode: _joined([item for item in items if item.kind == items[0].kind]) for mode, items in gathered.items()}


def _joined(items: list[CalibrationFrames]) -> CalibrationFrames:
    evidence = Evidence(
        np.concatenate([item.evidence.shape_N66 for item in items]),
        np.concatenate([item.evidence.distance_N for item in items]),
    )
    return CalibrationFrames(
        np.concatenate([item.errors_N6 for item in items]),
        np.concatenate([item.scatters_N66 for item in items]),
        evidence,
        np.concatenate([item.blocks_N for item in items]),
        items[0].kind,
    )


def cut_blocks(blocks_N: NDArray[np.int64], seconds_N: Array) -> NDArray[np.int64]:
    """Blocks cut into equal parts of time, so that there are WANTED_BLOCKS; none shorter than PART_S.

    Args:
        blocks_N: numbers of the blocks.
        seconds_N: time of each frame.
    """
    numbers = np.unique(blocks_N)
    if len(numbers) >= WANTED_BLOCKS or not len(numbers):
        return blocks_N
    parts = -(-WANTED_BLOCKS // len(numbers))
    result, free = np.zeros_like(blocks_N), 0
    for number in numbers:
        inside = blocks_N == number
        seconds = seconds_N[inside] - seconds_N[inside].min()
        duration = float(seconds.max())
        count = int(np.clip(duration // PART_S, 1, parts))
        result[inside] = free + np.minimum((seconds / max(duration, 1e-9) * count).astype(np.int64), count - 1)
        free += count
    return result


def judge(judged: CalibrationFrames, calibration: ModeCalibration, known_errors_N6: Array) -> Judgement:
    """How true a model's covariances are on frames it was not calibrated on, as the localizer computes them.

    Args:
        known_errors_N6: some that it was calibrated on, for the constant that it is compared with.
    """
    rule = calibration.rule()
    covariances = np.array(
        [
            rule.covariance(scatter, judged.evidence[np.array([index])])
            for index, scatter in enumerate(judged.scatters_N66)
        ]
    )
    parts = measured(judged.errors_N6, covariances, known_errors_N6)
    return _judgement([parts], len(np.unique(judged.blocks_N)))


def measured(errors_N6: Array, covariances_N66: Array, known_errors_N6: Array) -> tuple[Array, ...]:
    """Per frame: NEES, log-likelihood, that of the known errors' best constant, that of the errors' own."""
    constants = [
        gaussian_log_likelihood(errors_N6, np.broadcast_to(best_constant(of), covariances_N66.shape))
        for of in (known_errors_N6, errors_N6)
    ]
    likelihood = gaussian_log_likelihood(errors_N6, covariances_N66)
    return nees(errors_N6, covariances_N66), likelihood, *constants


def _judgement(parts: Sequence[tuple[Array, ...]], blocks: int) -> Judgement:
    distance, likelihood, constant, own = (np.concatenate(items) for items in zip(*parts, strict=True))
    return Judgement(
        blocks=blocks,
        frames=len(distance),
        nees=float(distance.mean() / 6.0),
        coverage=coverage(distance),
        log_likelihood=float(likelihood.mean()),
        constant=float(constant.mean()),
        own_constant=float(own.mean()),
    )


def leave_one_out(frames: CalibrationFrames, exponents: tuple[float, float]) -> Judgement:
    """Every block judged by a model fitted to the others.

    Raises:
        GeometryError: fewer than two blocks.
    """
    parts = []
    numbers = np.unique(frames.blocks_N)
    for number in numbers:
        inside = frames.blocks_N == number
        known = frames.only(~inside)
        model = fit_covariance(known.errors_N6, known.evidence, known.blocks_N, exponents)
        judged = frames.only(inside)
        parts.append(measured(judged.errors_N6, model.covariances(judged.evidence), known.errors_N6))
    return _judgement(parts, len(numbers))


def calibrate_mode(frames: CalibrationFrames) -> ModeCalibration:
    """The calibration of a mode on all its blocks, and its judgement with one of them left out at a time.

    With MIN_BLOCKS and more the exponents are those of the highest likelihood on the blocks left out (three candidates,
    so the judgement is hardly flattered); with two the first candidate is judged; a single block is not judged.

    Raises:
        GeometryError: too few frames, or numbers that are not finite.
    """
    blocks, candidates = len(np.unique(frames.blocks_N)), EXPONENTS[frames.kind]
    exponents, judged = candidates[0], None
    if blocks >= 2:
        judged = leave_one_out(frames, exponents)
    if blocks >= MIN_BLOCKS and judged is not None:
        for candidate in candidates[1:]:
            other = leave_one_out(frames, candidate)
            if other.log_likelihood > judged.log_likelihood:
                exponents, judged = candidate, other
    model = fit_covariance(frames.errors_N6, frames.evidence, frames.blocks_N, exponents)
    spreads = np.array([spread(scatter, model.base_66) for scatter in frames.scatters_N66])
    return ModeCalibration(
        base_66=model.base_66.tolist(),
        spread_median=float(np.median(spreads)),
        spread_p95=float(np.percentile(spreads, 95.0)),
        frames=len(frames),
        evidence="neighbours" if frames.kind == "neighbours" else "scatter",
        share=model.share,
        distance_median=model.distance_median,
        distance_exponent=model.distance_exponent,
        distance_p95=float(np.percentile(frames.evidence.distance_N, 95.0)),
        disagreement_median=model.disagreement_median,
        disagreement_exponent=model.disagreement_exponent,
        constant_66=best_constant(frames.errors_N6).tolist(),
        judged=judged,
        unverified="" if judged else f"one block of {len(frames)} frames: nothing was left to judge on",
    )


def inflated(calibration: ModeCalibration, factor: float) -> ModeCalibration:
    """For calibration on training frames: covariances multiplied by a factor, and the card says why."""
    return calibration.model_copy(
        update={
            "base_66": (factor * np.array(calibration.base_66)).tolist(),
            "share": factor * calibration.share,
            "spread_median": calibration.spread_median / factor**0.5,  # the spread is measured in units of the base
            "spread_p95": calibration.spread_p95 / factor**0.5,
            "constant_66": None,
            "judged": None,
            "unverified": f"calibrated on the training frames, times {factor:g}",
        }
    )


def calibration_lines(calibrations: Mapping[Mode, ModeCalibration]) -> list[str]:
    """What was judged out of sample, as text, one line per mode; one warning for all that was not."""
    lines = []
    for mode, item in calibrations.items():
        if item.judged is not None:
            lines.append(f"  {mode.value:10s} {judgement_text(item.judged)}")
    if lines:
        lines.insert(0, "covariances on blocks they were not fitted to:")
    unverified = [mode for mode, item in calibrations.items() if item.unverified]
    if unverified:
        reason = calibrations[unverified[0]].unverified
        lines.append(f"warning: covariances of {', '.join(unverified)} are not verified ({reason})")
    return lines


def judgement_text(judged: Judgement) -> str:
    """One line of numbers."""
    covered = " ".join(f"{100.0 * value:.0f}" for value in judged.coverage.values())
    return (
        f"NEES/6 {judged.nees:.2f}, coverage {covered} % (of {' '.join(judged.coverage)}), log-likelihood "
        f"{judged.log_likelihood:.2f} (best constant {judged.constant:.2f}, its own {judged.own_constant:.2f}), "
        f"{judged.frames} frames in {judged.blocks} blocks"
    )
