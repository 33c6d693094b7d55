"""What the pose graph over a sliding window can be told."""

from __future__ import annotations

from pydantic import Field

from vmloc_ros.config import StrictModel


class PoseGraphConfig(StrictModel):
    """A graph of the last poses of a network, joined by odometry (MapNet+PGO, S. Brahmbhatt et al., CVPR 2018)."""

    window: int = Field(7, ge=2, le=200, description="Frames in the graph (the paper: 7).")
