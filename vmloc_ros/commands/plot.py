"""`vmloc plot`: the figures of a folder that a run or a training wrote."""

from __future__ import annotations

from pathlib import Path

from vmloc_ros.config import LocalizerConfig
from vmloc_ros.errors import ConfigError, DatasetError
from vmloc_ros.types import Frame


def run_plot(
    folder: Path, bag: Path | None = None, at_s: float | None = None, config: LocalizerConfig | None = None
) -> list[Path]:
    """Draws what the folder holds: a run's `report.json`, a training's `metrics.csv`, or both.

    Args:
        folder: of a run or a training.
        bag: the run's input; if given, `overview.png` shows its camera image and projected depth beside the map.
        at_s: which image, in seconds from the bag's first frame; by default the middle one of the run.
        config: topics, frames and projection of that bag.

    Returns:
        The figures written.

    Raises:
        ConfigError: the folder holds neither, or a bag is given without a run.
        DatasetError: the bag has no frame with an image (and depth, where it is used) at that time.
    """
    from vmloc_ros import plots

    is_run, is_training = (folder / "report.json").is_file(), (folder / "metrics.csv").is_file()
    if not (is_run or is_training):
        raise ConfigError(f"{folder}: holds neither report.json (of a run) nor metrics.csv (of a training)")
    written = plots.plot_run(folder) if is_run else []
    if is_training:
        written.append(plots.plot_training(folder / "metrics.csv"))
    if bag is not None:
        if not is_run:
            raise ConfigError(f"{folder}: holds no report.json; --bag needs the folder of a run")
        frame = frame_of_bag(bag, at_s, in_the_image(config or LocalizerConfig()))
        assert frame.rgb is not None
        written.append(plots.plot_overview(folder / "overview.png", folder, frame.rgb, frame.depth_m))
    return written


def in_the_image(config: LocalizerConfig) -> LocalizerConfig:
    """The same sensors with the lidar projected into the camera's own view, which is what the figure lays over it."""
    pinhole = config.projection.model_copy(update={"kind": "pinhole"})
    return config.model_copy(update={"projection": pinhole})


def frame_of_bag(bag: Path, at_s: float | None, config: LocalizerConfig) -> Frame:
    """The first frame with an image, and depth where that is used, as the node would build it, `at_s` seconds into the
    bag.

    Raises:
        DatasetError: there is none.
    """
    from vmloc_ros.assembly import labelled_frames
    from vmloc_ros.bag_recording import BagRecording

    recording = BagRecording(bag, config.topics)
    first_ns: int | None = None
    with_depth = config.input.depth_source != "none"
    if at_s is None:
        truth = recording.truth()
        at_s = 0.5e-9 * float(truth.stamps_ns[-1] - truth.stamps_ns[0])
    for labelled in labelled_frames(recording, config):
        frame = labelled.frame
        first_ns = frame.stamp_ns if first_ns is None else first_ns
        late_enough = frame.stamp_ns - first_ns >= at_s * 1e9
        if late_enough and frame.rgb is not None and (frame.depth_m is not None or not with_depth):
            return frame
    wanted = "an image and depth" if with_depth else "an image"
    raise DatasetError(f"{bag}: no frame with {wanted} {at_s:.1f} s after its first one")
