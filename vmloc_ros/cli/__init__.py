"""The command `vmloc`; see `entry`."""

from vmloc_ros.cli.entry import app, main

__all__ = ["app", "main"]
