"""What the pose graph over a sliding window can be told."""

from __future__ import annotations

from pydantic import Field

from vmloc_ros.config import StrictModel


class PoseGraphConfig(StrictModel):
    """A graph of the last poses of a network, joined by odometry (MapNet+PGO, S. Brahmbhatt et al., CVPR 2018)."""

    window: int = Field(7, ge=2, le=200, description="Frames in the graph (the paper: 7).")
    spacing_s: float = Field(
        0.6,
        ge=0.0,
        description="Frames are kept at least so far apart, beside the newest (the paper: 10 frames, 0.6 s).",
    )
    max_gap_s: float = Field(
        2.0, gt=0.0, description="A longer silence between two frames begins a new window: odometry may have drifted."
    )
    max_speed_m_per_s: float = Field(
        60.0, gt=0.0, description="Odometry that moves faster has been reset, and begins a new window."
    )
    correlation_s: float = Field(
        1.75,
        ge=0.0,
        description="Correlation time of the network's errors, see filter.measurement_correlation_s: frames closer in "
        "time inform less. 0: independent errors.",
    )
    kernel: float = Field(
        3.0,
        ge=0.0,
        description="A pose r deviations (all six together) off counts 1 / (1 + (r / kernel)^2); 0: all alike.",
    )
    noise_m_per_m: float = Field(0.05, ge=0.0, description="Odometry position deviation per sqrt(metre) driven.")
    noise_m_per_s: float = Field(0.02, ge=0.0, description="Position deviation per sqrt(second), also when standing.")
    noise_rad_per_m: float = Field(0.005, ge=0.0, description="Odometry rotation deviation per sqrt(metre).")
    noise_rad_per_rad: float = Field(0.03, ge=0.0, description="Odometry rotation deviation per sqrt(radian) turned.")
    noise_rad_per_s: float = Field(0.002, ge=0.0, description="Rotation deviation per sqrt(second).")
