"""The one tree of errors. Every message names the file, topic or field and says what to do."""

from __future__ import annotations


class VmlocError(Exception):
    """Base of all errors that this package raises on purpose; commands turn it into one line and exit status 1."""


class ConfigError(VmlocError):
    """A configuration file or parameter is missing, unknown, of the wrong type or contradicts another."""


class GeometryError(VmlocError):
    """A pose, rotation or covariance that is not finite, not normalisable or of the wrong shape."""


class MessageError(VmlocError):
    """A sensor message whose sizes disagree, whose encoding is unknown, or that is truncated or empty.

    `reason` is a short key for counters (`empty`, `sizes`, `not_finite`, ...).
    """

    def __init__(self, message: str, reason: str = "malformed") -> None:
        super().__init__(message)
        self.reason = reason


class CameraError(VmlocError):
    """A camera calibration that is unusable or does not fit the image."""


class SavedPoseError(VmlocError):
    """A saved pose that cannot be used: malformed, of another model or frame, too old, from the future.

    `reason` is a short key (`unreadable`, `malformed`, `model`, `frames`, `too_old`, `future`).
    """

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class TransformError(VmlocError):
    """An extrinsic transform between two named frames is missing or contradictory."""


class TrajectoryError(VmlocError):
    """A trajectory file is malformed, or a pose was asked for outside the trajectory's time."""


class DatasetError(VmlocError):
    """A dataset folder or one of its files is missing, truncated or malformed."""


class BagError(VmlocError):
    """A bag is missing, truncated, of an unknown storage, or lacks the topics that are needed."""


class CheckpointError(VmlocError):
    """A model file is missing, truncated, not safetensors, or of another architecture."""


class ModelInputError(VmlocError):
    """A frame that a model cannot take: wrong kind, wrong shape, no modality."""


class TrainingError(VmlocError):
    """Training cannot start or go on (no samples, a loss that is not finite, a disk that is full)."""


class SetupError(VmlocError):
    """The machine lacks something that the command needs (a ROS 2 client library, a device, a compiler)."""
