"""Checkpoints of the authors' own code (github.com/kaichen-z/VMLoc, mode `vmloc`), read safely and converted.

Their network is this project's with another configuration, and three differences that are folded into the weights:
positions are scaled by axis, the attention's map is transposed, and RobotCar's poses are of the INS in (northing,
easting, altitude) with a north-east-down rotation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from vmloc_ros.datasets.robotcar_files import (
    AXES,
    ENU_FROM_NED,
    OXFORD_ORIGIN_UTM,
    base_from_stereo,
    read_camera_model,
    read_extrinsics,
)
from vmloc_ros.errors import CheckpointError, DatasetError
from vmloc_ros.geometry import Array, inverse, quaternion_from_pose
from vmloc_ros.networks.config import NetworkConfig, Normalisation
from vmloc_ros.networks.vmloc import VMLoc
from vmloc_ros.types import PinholeIntrinsics

DepthEmpty = Literal["black", "white"]

SIZE = 256
"""Rows and columns of their pictures."""
STATE, EPOCH, CRITERION = "model_state_dict", "epoch", "criterion_state_dict"
LATENT = "feature_extractor.image_encoder.fc1.weight"
"""Its rows are the dimensions of the latent space."""
PARTS = {
    "feature_extractor.image_encoder.feature_extractor": "encoders.rgb.trunk",
    "feature_extractor.image_encoder.fc1": "encoders.rgb.mean",
    "feature_extractor.image_encoder.fc2": "encoders.rgb.variance",
    "feature_extractor.depth_encoders.feature_extractor": "encoders.depth.trunk",
    "feature_extractor.depth_encoders.fc1": "encoders.depth.mean",
    "feature_extractor.depth_encoders.fc2": "encoders.depth.variance",
    "att.g": "attention.g",
    "att.theta": "attention.phi",
    "att.phi": "attention.theta",
    "att.W": "attention.alpha",
    "fc_xyz1": "position.0",
    "fc_wpqr1": "rotation.0",
}
"""Their names of the parts, and ours. Their map is softmax(phi theta^T), the paper's softmax(theta phi^T)."""
VARIANCE_FLOOR = 1e-6 + 1e-8
"""Theirs: log(softplus(raw) + 1e-6), and 1e-8 more on its exponential in the product of experts."""
MILLIMETRES_IN_8_BIT_M = 0.255
"""Their reader of 7-Scenes turns 16-bit millimetres into 8 bit by clipping: from here on everything is white."""


@dataclass(frozen=True, eq=False)
class OfficialCheckpoint:
    """What one of their files holds.

    Attributes:
        tensors: float32, under their names; every name and shape has been checked.
        latent: dimensions of the latent space.
        epoch: of the training; None where the file does not say.
        beta, gamma: the learned weights of position and rotation (their `sax`, `saq`); None likewise.
    """

    tensors: dict[str, Tensor]
    latent: int
    epoch: int | None
    beta: float | None
    gamma: float | None


@dataclass(frozen=True, eq=False)
class Convention:
    """How the numbers of a data set's network become `T_map_camera`.

    Attributes:
        axes_33: their position axes in the map's, p_map = axes_33 p - origin_3.
        origin_3: the map's origin, metres.
        rotation_33: from the frame that their rotations are measured in to the map.
        T_output_camera: the camera in the body whose pose they learn.
        camera: of their pictures, before resizing.
    """

    axes_33: Array
    origin_3: Array
    rotation_33: Array
    T_output_camera: Array
    camera: PinholeIntrinsics


def seven_scenes_convention(camera: PinholeIntrinsics) -> Convention:
    """7-Scenes: the pose files' own `T_map_camera`."""
    return Convention(np.eye(3), np.zeros(3), np.eye(3), np.eye(4), camera)


def robotcar_convention(sdk: Path) -> Convention:
    """RobotCar's `stereo/centre`: poses of the INS, positions (northing, easting, altitude), rotations north-east-down.

    The map is this project's: east, north, up from `OXFORD_ORIGIN_UTM`.

    Args:
        sdk: the publishers' development kit, with `extrinsics/` and `models/`.

    Raises:
        DatasetError: one of its files is missing or malformed.
    """
    model = read_camera_model(sdk / "models" / "stereo_narrow_left.txt")
    T_camera_vehicle = read_extrinsics(sdk / "extrinsics" / "stereo.txt")
    T_base_stereo = base_from_stereo(read_extrinsics(sdk / "extrinsics" / "ins.txt"))
    T_base_camera = T_base_stereo @ AXES @ inverse(T_camera_vehicle) @ model.T_camera_optical
    camera = PinholeIntrinsics(1280, 960, model.fx, model.fy, model.cx, model.cy)
    axes = np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    return Convention(axes, np.array(OXFORD_ORIGIN_UTM), ENU_FROM_NED[:3, :3], AXES @ T_base_camera, camera)


def official_network(latent: int, depth_white_m: float, depth_empty: DepthEmpty) -> NetworkConfig:
    """Their network as a configuration of ours; the dimensions of the latent space are a multiple of 8."""
    return NetworkConfig(
        width=SIZE,
        height=SIZE,
        trunk="resnet34",
        reduced=0,
        grid_rows=1,
        grid_columns=1,
        depth_encoding="image",
        depth_image_white_m=depth_white_m,
        depth_image_empty=depth_empty,
        latent=latent,
        variance_floor=VARIANCE_FLOOR,
        latent_deviation="published",
        latent_activation="tanh",
        attention=True,
        attention_divisor=8,
        hidden=0,
        dropout=0.5,
    )


def read_checkpoint(path: Path) -> OfficialCheckpoint:
    """Reads one of their files without executing anything in it, and checks every name and shape.

    This is the one place where `torch.load` is allowed: with `weights_only=True` it builds tensors, numbers and plain
    containers, and refuses whatever else the file asks for.

    Raises:
        CheckpointError: missing, not a checkpoint, one that wants to run code, or another network's (names the first
            tensor that is wrong).
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; give one of the authors' checkpoints (*.pth.tar)")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler's errors have no common base, and `pickle` is never imported here
        first = str(error).strip().partition("\n")[0]
        raise CheckpointError(
            f"{path}: is not a checkpoint of tensors alone, and nothing else is ever unpickled ({first})"
        ) from error
    if not isinstance(content, Mapping) or not isinstance(content.get(STATE), Mapping):
        raise CheckpointError(f"{path}: holds no {STATE!r}; give a checkpoint that the authors' training.py saved")
    tensors = {str(name).removeprefix("module."): value for name, value in content[STATE].items()}
    latent = check_tensors(tensors, path)
    criterion = content.get(CRITERION)
    weights = criterion if isinstance(criterion, Mapping) else {}
    epoch = content.get(EPOCH)
    return OfficialCheckpoint(
        {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()},
        latent,
        epoch if isinstance(epoch, int) else None,
        _number(weights.get("sax")),
        _number(weights.get("saq")),
    )


def _number(value: Any) -> float | None:
    """The number in a tensor of one element."""
    return float(value) if isinstance(value, Tensor) and value.numel() == 1 else None


def our_name(name: str) -> str:
    """Our name of one of their tensors; a name that they do not have stays."""
    for part, ours in PARTS.items():
        if name.startswith(part + "."):
            return ours + name[len(part) :]
    return name


def official_name(name: str) -> str:
    """Their name of one of our tensors."""
    for part, ours in PARTS.items():
        if name.startswith(ours + "."):
            return part + name[len(ours) :]
    return name


def check_tensors(tensors: Mapping[str, Any], path: Path) -> int:
    """Every name and shape of their network, exactly; returns the dimensions of the latent space."""
    first = tensors.get(LATENT)
    if not isinstance(first, Tensor) or first.ndim != 2 or first.shape[0] % 8:
        raise CheckpointError(
            f"{path}: of another network: {LATENT!r} is missing or not (latent, 512); only the authors' mode `vmloc` "
            "with ResNet-34 can be converted"
        )
    latent = first.shape[0]
    with torch.device("meta"):
        expected = VMLoc(official_network(latent, 1.0, "black")).state_dict()
    for ours, like in expected.items():
        name = official_name(ours)
        tensor = tensors.get(name)
        if not isinstance(tensor, Tensor) or tensor.shape != like.shape:
            found = f"is {tuple(tensor.shape)}" if isinstance(tensor, Tensor) else "is missing"
            raise CheckpointError(f"{path}: of another network: {name!r} {found}, not {tuple(like.shape)}")
        if not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(f"{path}: {name!r} holds NaN or infinity; take another epoch's checkpoint")
    superfluous = sorted(name for name in tensors if our_name(name) not in expected)
    if superfluous:
        raise CheckpointError(f"{path}: of another network: {superfluous[0]!r} has no place in it")
    return latent


def read_statistics(path: Path, what: str) -> Array:
    """Two rows of three numbers: means, and then deviations or variances, which must be positive.

    Raises:
        DatasetError: missing or malformed.
    """
    try:
        values = np.array([float(word) for word in path.read_text(encoding="utf-8").split()])
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise DatasetError(f"{path}: cannot be read as {what} ({error})") from error
    if values.shape != (6,) or not np.isfinite(values).all() or not (values[3:] > 0.0).all():
        raise DatasetError(f"{path}: {what} are two rows of three numbers, the second positive; has {values.tolist()}")
    return values.reshape(2, 3)


def convert(
    checkpoint: OfficialCheckpoint, convention: Convention, pose_23: Array, image_23: Array
) -> tuple[dict[str, Tensor], Normalisation]:
    """Their weights under our names, and what brings pictures and poses into the network's range.

    Their position is mean + deviation * output by axis. Ours has one scale, the largest of their deviations s; the rest
    goes into the last layer: W' = A W, b' = A b with A = axes diag(deviation) / s.

    Args:
        checkpoint: as `read_checkpoint` gives it.
        convention: of the data set.
        pose_23: mean and standard deviation of the training positions (their `pose_stats.txt`).
        image_23: mean and *variance* of the training pictures in 0..1 (their `stats.txt`); they normalise depth with
            the same numbers.
    """
    tensors = {our_name(name): tensor.clone() for name, tensor in checkpoint.tensors.items()}
    scale = float(pose_23[1].max())
    fold = torch.from_numpy(convention.axes_33 @ np.diag(pose_23[1]) / scale)
    for name in ("position.0.weight", "position.0.bias"):
        tensors[name] = (fold @ tensors[name].double()).float()
    mean, std = image_23[0].tolist(), np.sqrt(image_23[1]).tolist()
    reference = Rotation.from_matrix(convention.rotation_33).as_quat(canonical=True)
    T = convention.T_output_camera
    normalisation = Normalisation(
        rgb_mean=mean,
        rgb_std=std,
        depth_log_mean=0.0,  # not used: depth enters as a picture
        depth_log_std=1.0,
        depth_image_mean=mean,
        depth_image_std=std,
        position_mean_m=(convention.axes_33 @ pose_23[0] - convention.origin_3).tolist(),
        position_scale_m=scale,
        rotation_reference_xyzw=reference.tolist(),
        mounting=[*T[:3, 3].tolist(), *quaternion_from_pose(T).tolist()],
    )
    return tensors, normalisation
