"""vmloc_ros: where a robot is, from a camera or a lidar, with odometry, and how sure that is."""

__version__ = "0.1.0"
