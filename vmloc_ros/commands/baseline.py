"""The retrieval baseline over a bag: what the nearest training image would have said."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vmloc_ros.assembly import labelled_frames
from vmloc_ros.bag_recording import BagRecording
from vmloc_ros.checkpoint import RETRIEVAL
from vmloc_ros.config import LocalizerConfig
from vmloc_ros.geometry import inverse
from vmloc_ros.retrieval import Retrieval
from vmloc_ros.run_log import trajectory_of
from vmloc_ros.trajectory import Trajectory
from vmloc_ros.types import Status


def retrieval_poses(bag: Path, model: Path, config: LocalizerConfig, frames: Sequence[Status]) -> Trajectory | None:
    """`T_map_base` of the training image nearest to each of the frames that had an image; None without such an index.

    Args:
        bag: the images, with the truth (which only places the camera on the vehicle).
        model: its folder, with retrieval.safetensors.
        config: how the bag's images become frames.
        frames: of the run that the baseline is to be compared with.

    Raises:
        BagError, DatasetError: the bag is unreadable or has no truth.
        CheckpointError: the index is damaged.
    """
    if not (model / RETRIEVAL).is_file():
        return None
    index = Retrieval(model / RETRIEVAL)
    wanted = {status.key.image_stamp_ns for status in frames if status.key is not None}
    alone = config.model_copy(update={"input": config.input.model_copy(update={"depth_source": "none"})})
    recording = BagRecording(bag, config.topics)
    truth = recording.truth()
    poses = []
    for labelled in labelled_frames(recording, alone):
        frame = labelled.frame
        if frame.rgb is not None and frame.stamp_ns in wanted:
            T_camera_base = inverse(labelled.T_map_camera) @ truth.interpolate(frame.stamp_ns)
            poses.append((frame.stamp_ns, index.nearest(frame.rgb) @ T_camera_base))
    return trajectory_of(poses) if poses else None
