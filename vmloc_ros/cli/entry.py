"""The command `vmloc`: parses, calls a plain function of `commands` or `ros`, and turns known errors into one line.

Exit status: 0, 1 for a known error, 2 for wrong usage, 130 after Ctrl-C. Everything heavy is imported by the command
that needs it, so that `vmloc --help` is there at once.
"""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from vmloc_ros import __version__
from vmloc_ros.cli import data, graph, work
from vmloc_ros.errors import VmlocError

INTERRUPTED = 130
ROS_PACKAGES = {
    "rclpy", "vmloc_msgs", "tf2_msgs", "geometry_msgs", "sensor_msgs", "nav_msgs", "std_msgs", "std_srvs",
    "diagnostic_msgs", "lifecycle_msgs", "rosgraph_msgs", "rcl_interfaces", "builtin_interfaces",
}  # fmt: skip
"""What the commands on the ROS graph need, and a plain Python does not have."""


class Funnel(TyperGroup):
    """All commands' errors end here."""

    def invoke(self, ctx: Any) -> Any:
        """Runs the command; a known error becomes one line on standard error and exit status 1."""
        try:
            return super().invoke(ctx)
        except VmlocError as error:
            detail = getattr(error, "detail", "")
            if detail:
                print(detail, file=sys.stderr)
            _fail(str(error))
        except ModuleNotFoundError as error:
            package = (error.name or "").partition(".")[0]
            if package not in ROS_PACKAGES:
                raise
            _fail(
                f"the ROS 2 package {package} is not here: `make setup && source .venv/ros_env.sh`, or source your "
                "ROS 2 distribution and its workspace; `vmloc doctor` says more"
            )
        except KeyboardInterrupt:
            print("vmloc: interrupted", file=sys.stderr)
            raise typer.Exit(INTERRUPTED) from None
        except BrokenPipeError:
            raise  # of `vmloc ... | head`: nobody is left to be told
        except OSError as error:
            if error.filename is None:
                raise
            _fail(f"{error.filename}: {error.strerror}")


def _fail(message: str) -> None:
    print(f"vmloc: error: {' '.join(message.split())}", file=sys.stderr)
    raise typer.Exit(1)


app = typer.Typer(
    name="vmloc",
    cls=Funnel,
    help="Where a robot is, from a camera or a lidar, with odometry, and how sure that is.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # an unknown error is a bug: its plain traceback is what a report of it needs
    context_settings={"help_option_names": ["-h", "--help"]},
)

for _command in (
    *(work.demo, work.localize, work.fuse, work.smooth, work.error_model),
    *(data.town, data.convert, data.train, data.evaluate, data.track, data.strangers, data.calibrate, data.compare),
    *(data.import_vmloc, data.export),
    *(graph.play, graph.record, graph.watch),
    *(work.plot, work.map_view, work.scene_view, work.bench, work.soak, work.doctor, work.params),
):
    app.command()(_command)
app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(graph.node)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"vmloc_ros {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    """Where a robot is, from a camera or a lidar, with odometry, and how sure that is."""


def main() -> None:
    """The console script."""
    app(prog_name="vmloc")
