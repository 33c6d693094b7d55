"""Where the sensors are mounted: a tree of rigid transforms between named frames."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vmloc_ros.errors import ConfigError, GeometryError, TransformError
from vmloc_ros.geometry import Array, adjoint, inverse, is_pose, pose_from_quaternion
from vmloc_ros.types import (
    CameraPrior,
    FusedState,
    Information,
    Observation,
    PoseEstimate,
    PoseMeasurement,
    StaticTransform,
)


def pose_from_list(values: Sequence[float], name: str) -> Array:
    """4x4 pose of a parameter `x y z qx qy qz qw`.

    Raises:
        ConfigError: not seven numbers, or a zero quaternion; names the parameter.
    """
    if len(values) != 7:
        raise ConfigError(f"{name}: needs 7 numbers `x y z qx qy qz qw`, has {len(values)}")
    try:
        return pose_from_quaternion(values[:3], values[3:])
    except GeometryError as error:
        raise ConfigError(f"{name}: {error}") from error


class Mounted:
    """An observation of the camera's pose as one of the base's.

    `T_map_base Exp(d) T_base_camera = T_map_camera Exp(A d)` with `A = Ad(T_base_camera^-1)`: the gradient becomes
    `A' b` and the information `A' L A` (J. Sola et al., arXiv:1812.01537, section II-F).
    """

    def __init__(self, observation: Observation, T_base_camera: Array) -> None:
        self._observation = observation
        self._T_base_camera = T_base_camera
        self._A = adjoint(inverse(T_base_camera))

    def at(self, T_map_body: Array) -> Information:
        """How it fits a pose of the base."""
        seen = self._observation.at(T_map_body @ self._T_base_camera)
        with np.errstate(invalid="ignore", over="ignore"):  # what is not finite is refused by the filter, and counted
            gradient_6 = self._A.T @ seen.gradient_6
            information_66 = self._A.T @ seen.information_66 @ self._A
        return Information(gradient_6, information_66, seen.cost, seen.dof)


def measured_base(estimate: PoseEstimate, T_base_camera: Array, map_frame: str) -> PoseMeasurement:
    """`T_map_base` of a camera's pose with covariance and observation: camera to body axes by the mounting."""
    turn = adjoint(T_base_camera)
    with np.errstate(invalid="ignore", over="ignore"):  # what is not finite is refused by the filter, and counted
        T_map_base = estimate.T_map_camera @ inverse(T_base_camera)
        cov_66 = turn @ estimate.cov_66 @ turn.T
    seen = None if estimate.observation is None else Mounted(estimate.observation, T_base_camera)
    return PoseMeasurement(estimate.stamp_ns, T_map_base, cov_66, frame_id=map_frame, observation=seen)


def camera_prior(state: FusedState, T_base_camera: Array) -> CameraPrior:
    """The filter's pose as that of the camera: the inverse of what `measured_base` does."""
    turn = adjoint(inverse(T_base_camera))
    T_map_camera = state.T_map_base @ T_base_camera
    T_odom_camera = inverse(state.T_map_odom) @ T_map_camera
    return CameraPrior(state.stamp_ns, T_map_camera, turn @ state.cov_66 @ turn.T, T_odom_camera)


class Extrinsics:
    """Static transforms as they come from /tf_static or parameters; what is set by hand wins over what arrives."""

    def __init__(self) -> None:
        self._T_parent_child: dict[tuple[str, str], Array] = {}
        self._fixed: dict[tuple[str, str], Array] = {}

    def add(self, transform: StaticTransform) -> None:
        """Stores a transform; a later one of the same two frames replaces it.

        Raises:
            TransformError: not a rigid transform, or a frame that is mounted on itself.
        """
        if transform.parent == transform.child or not is_pose(transform.T_parent_child, 1e-3):
            raise TransformError(
                f"static transform {transform.parent} -> {transform.child} is not a rigid transform of two frames"
            )
        self._T_parent_child[transform.parent, transform.child] = np.asarray(transform.T_parent_child, dtype=float)

    def fix(self, target: str, source: str, T_target_source: Array) -> None:
        """Sets a transform by hand: it is used whatever /tf_static says."""
        self._fixed[target, source] = T_target_source

    def lookup(self, target: str, source: str) -> Array:
        """`T_target_source` along the tree, in any direction.

        Raises:
            TransformError: the two frames are not connected; says which frames are known.
        """
        if target == source:
            return np.eye(4)
        if (target, source) in self._fixed:
            return self._fixed[target, source]
        found = self._walk(target, source)
        if found is None:
            known = sorted({name for pair in self._T_parent_child for name in pair})
            raise TransformError(
                f"no transform {target} -> {source}: publish it on /tf_static or set extrinsics.*; "
                f"known frames: {', '.join(known) or 'none'}"
            )
        return found

    def _walk(self, target: str, source: str) -> Array | None:
        neighbours: dict[str, list[tuple[str, Array]]] = {}
        for (parent, child), pose in self._T_parent_child.items():
            neighbours.setdefault(parent, []).append((child, pose))
            neighbours.setdefault(child, []).append((parent, inverse(pose)))
        reached = {target: np.eye(4)}
        front = [target]
        while front:
            frame = front.pop()
            for neighbour, pose in neighbours.get(frame, []):
                if neighbour not in reached:
                    reached[neighbour] = reached[frame] @ pose
                    if neighbour == source:
                        return reached[neighbour]
                    front.append(neighbour)
        return None
