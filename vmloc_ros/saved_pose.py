"""The last pose on disk, for a node that is started again: the file, whether it fits, and the pose that it gives.

The file is JSON, written atomically, never unpickled. What is read is checked before it is used: sizes, finiteness,
rigid poses, a positive definite covariance; the hash of the model whose map it is in; the frames; its age.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal, NoReturn

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from vmloc_ros import files
from vmloc_ros.config import FilterConfig, FrameNames, SavedPoseConfig, StrictModel, parse
from vmloc_ros.errors import ConfigError, GeometryError, SavedPoseError
from vmloc_ros.filter import checked_covariance, checked_pose, predict_covariance, transport
from vmloc_ros.geometry import inverse, rotation_angle
from vmloc_ros.increments import JUMP_TOLERANCE_RAD, Segment
from vmloc_ros.trajectory import NANOSECONDS
from vmloc_ros.types import FusedState, InitialPose, OdometrySample

Array = NDArray[np.float64]

MAX_BYTES = 64 * 1024
"""A file larger than this is none of ours."""
AT_ORIGIN_M = 0.1
"""Odometry nearer to its origin than this may have just been restarted there."""
MAX_WIDENING_M, MAX_WIDENING_RAD = 30.0, 1.0
"""Deviations that an unknown motion adds at most. A wider rotation is not what the filter's linearisation is for; and a
robot that was carried further than the gate of this is found by the streak of measurements that agree."""

Row4 = Annotated[list[float], Field(min_length=4, max_length=4)]
Row6 = Annotated[list[float], Field(min_length=6, max_length=6)]
Matrix44 = Annotated[list[Row4], Field(min_length=4, max_length=4)]
Matrix66 = Annotated[list[Row6], Field(min_length=6, max_length=6)]
Name = Annotated[str, Field(max_length=512)]


class SavedPose(StrictModel):
    """The file's content. `T_odom_base` is the odometry's own pose at the same stamp."""

    format_version: Literal[1] = 1
    model_sha256: Name
    map_frame: Name
    odom_frame: Name
    base_frame: Name
    stamp_ns: int = Field(gt=0, lt=2**63)
    T_map_base: Matrix44
    cov_66: Matrix66
    covariance_is: Literal["right perturbation of T_map_base in body axes: x, y, z (m), rotation x, y, z (rad)"] = (
        "right perturbation of T_map_base in body axes: x, y, z (m), rotation x, y, z (rad)"
    )
    T_odom_base: Matrix44


def saved_pose(state: FusedState, T_odom_base: Array, model_sha256: str, frames: FrameNames) -> SavedPose:
    """What is kept of a state of the filter.

    Raises:
        GeometryError: a pose or the covariance (6, 6) is not one.
        ValueError: a name or the stamp is beyond what the file can hold.
    """
    return SavedPose(
        model_sha256=model_sha256,
        map_frame=frames.map,
        odom_frame=frames.odom,
        base_frame=frames.base,
        stamp_ns=state.stamp_ns,
        T_map_base=checked_pose(state.T_map_base).tolist(),
        cov_66=checked_covariance(state.cov_66).tolist(),
        T_odom_base=checked_pose(T_odom_base).tolist(),
    )


def write_saved_pose(path: Path, saved: SavedPose) -> None:
    """Writes the file atomically; its folder is made.

    Raises:
        OSError: the disk is full, the folder read-only, ...
    """
    files.write_json(path, saved.model_dump(mode="json"))


def read_saved_pose(path: Path) -> SavedPose | None:
    """Reads the file; None where there is none.

    Raises:
        SavedPoseError: `unreadable` (not a file that can be read), `malformed` (truncated, not JSON, another format, a
            number that is not finite, a matrix that is no pose or covariance).
    """
    try:
        if path.exists() and not path.is_file():
            raise OSError(0, "it is not a file")
        with path.open("rb") as stream:
            content = stream.read(MAX_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise SavedPoseError(
            f"{path}: cannot be read ({error.strerror}); set saved_pose.path to a file of this node's own", "unreadable"
        ) from error
    if len(content) > MAX_BYTES:
        raise SavedPoseError(
            f"{path}: is larger than {MAX_BYTES} bytes and so not a saved pose; set saved_pose.path to another file",
            "malformed",
        )
    try:
        values = json.loads(content.decode("utf-8"), parse_constant=_refuse_constant)
        if not isinstance(values, dict):
            raise SavedPoseError(_malformed(path, f"holds a {type(values).__name__}"), "malformed")
        saved = parse(SavedPose, values, str(path))
        checked_pose(saved.T_map_base)
        checked_pose(saved.T_odom_base)
        checked_covariance(saved.cov_66)
    except (ValueError, RecursionError, ConfigError, GeometryError) as error:
        raise SavedPoseError(_malformed(path, " ".join(str(error).split())[:300]), "malformed") from error
    return saved


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


def _malformed(path: Path, what: str) -> str:
    return f"{path}: not a saved pose, or one cut short ({what}); delete it, it is written anew"


def check_origin(saved: SavedPose, model_sha256: str, frames: FrameNames, path: Path) -> None:
    """Whether a saved pose is of this map and this body.

    Raises:
        SavedPoseError: `model` (another model's map), `frames` (another map's or body's frame).
    """
    if saved.model_sha256 != model_sha256:
        raise SavedPoseError(
            f"{path}: was saved with another model (sha256 {saved.model_sha256[:12]}..., this one's is "
            f"{model_sha256[:12]}...), whose map may be another; give every model its own saved_pose.path",
            "model",
        )
    for name, theirs, ours in (("map", saved.map_frame, frames.map), ("base", saved.base_frame, frames.base)):
        if theirs != ours:
            raise SavedPoseError(
                f"{path}: its {name} frame is {theirs!r}, this node's (frames.{name}) is {ours!r}", "frames"
            )


def check_age(saved: SavedPose, stamp_ns: int, config: SavedPoseConfig, path: Path) -> float:
    """The age in seconds at the first data's stamp.

    Raises:
        SavedPoseError: `future` (of a bag that starts over, or of another clock), `too_old`.
    """
    age_s = (stamp_ns - saved.stamp_ns) / NANOSECONDS
    if age_s < 0.0:
        raise SavedPoseError(
            f"{path}: was saved {-age_s:.1f} s after the first odometry; the data starts over, or its clock is another",
            "future",
        )
    if age_s > config.max_age_s:
        raise SavedPoseError(
            f"{path}: is {age_s:.1f} s older than the first odometry (saved_pose.max_age_s is {config.max_age_s:g})",
            "too_old",
        )
    return age_s


def ran_on(saved: SavedPose, sample: OdometrySample, config: FilterConfig) -> bool:
    """Whether the odometry evidently went on in the same frame since the pose was saved.

    The motion since then must be possible (`max_speed_m_per_s`, `max_turn_rad_per_s`), and less than the motion that
    an odometry restarted at its origin would have had. What can be either is not evident.
    """
    elapsed_s = (sample.stamp_ns - saved.stamp_ns) / NANOSECONDS
    T_odom_before = np.array(saved.T_odom_base)
    T_motion = inverse(T_odom_before) @ sample.T_odom_base
    metres, radians = _size(T_motion)
    possible = (
        metres <= config.max_speed_m_per_s * elapsed_s + config.jump_tolerance_m
        and radians <= config.max_turn_rad_per_s * elapsed_s + JUMP_TOLERANCE_RAD
    )
    from_origin = sum(_size(sample.T_odom_base))
    return saved.odom_frame == sample.frame_id and possible and from_origin > max(metres + radians, AT_ORIGIN_M)


def _size(T: Array) -> tuple[float, float]:
    return float(np.linalg.norm(T[:3, 3])), rotation_angle(np.eye(3), T[:3, :3])


def continued(saved: SavedPose, sample: OdometrySample, config: FilterConfig) -> tuple[InitialPose, str]:
    """The saved pose at the first odometry sample, and in words how it was carried there.

    Where the odometry ran on, its motion is added and the covariance grows by the filter's noise for that motion
    (`increments.Segment`; of the way that was driven only its ends are known). Else the pose stays and every
    deviation grows by `gap_noise_*` times the time elapsed, at most 30 m and 1 rad.
    """
    T_saved, P_saved = np.array(saved.T_map_base), np.array(saved.cov_66)
    elapsed_s = (sample.stamp_ns - saved.stamp_ns) / NANOSECONDS
    if ran_on(saved, sample, config):
        then = OdometrySample(saved.stamp_ns, saved.odom_frame, saved.base_frame, np.array(saved.T_odom_base))
        segment = Segment(then, sample, config)
        T = T_saved @ segment.T
        noise = np.repeat([segment.metres2, segment.radians2], 3)
        P = predict_covariance(P_saved, transport(segment.T), noise)
        how = f"the odometry ran on: its motion of {segment.metres:.1f} m is added"
    else:
        metres = min(config.gap_noise_m_per_s * elapsed_s, MAX_WIDENING_M)
        radians = min(config.gap_noise_rad_per_s * elapsed_s, MAX_WIDENING_RAD)
        T, P = T_saved, P_saved + np.diag(np.repeat([metres**2, radians**2], 3))
        how = (
            f"that the odometry ran on is not evident: {metres:.1f} m and {radians:.2f} rad are added to its deviations"
        )
    return InitialPose(sample.stamp_ns, saved.map_frame, T, P), how
