"""The node's and the pipeline's configuration: one typed default per knob, and its explanation.

`config/localizer.yaml` and the ROS parameters are generated from these classes. Unknown keys are refused with the
nearest name that exists.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, Literal, Self, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from vmloc_ros.errors import ConfigError


class StrictModel(BaseModel):
    """A section: immutable, no unknown keys, no NaN, no silent conversion from text to number."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, strict=True)


class FrameNames(StrictModel):
    map: str = Field("map", description="Fixed frame of the model's map.")
    odom: str = Field("odom", description="Frame of the odometry; what `map -> odom` is published to.")
    base: str = Field("base_link", description="The robot's body; the odometry's child frame must be this one.")
    camera: str = Field(
        "", description="Optical frame of the camera; empty: the image's own frame_id (or camera_info's)."
    )


class TopicNames(StrictModel):
    """Names in bags (`vmloc localize`) and of the node's relative subscriptions, which can be remapped as well."""

    image: str = Field("image", description="sensor_msgs/Image or, if it ends in /compressed, CompressedImage.")
    camera_info: str = Field("camera_info", description="sensor_msgs/CameraInfo of that image.")
    depth: str = Field("depth", description="sensor_msgs/Image 16UC1 (mm) or 32FC1 (m), registered to the image.")
    points: str = Field("points", description="sensor_msgs/PointCloud2 of the lidar.")
    scan: str = Field("scan", description="sensor_msgs/LaserScan of a planar (push-broom) scanner.")
    odom: str = Field("odom", description="nav_msgs/Odometry.")
    ground_truth: str = Field("ground_truth", description="nav_msgs/Odometry in the map, if a bag has it: for reports.")


class InputConfig(StrictModel):
    use_image: bool = Field(True, description="Subscribe to the camera.")
    depth_source: Literal["points", "scan", "depth", "none"] = Field(
        "points", description="Where depth comes from: a 3-D lidar, a planar scanner, a depth camera, or nowhere."
    )
    image_rectified: bool = Field(
        True, description="True: images are rectified, use P and no distortion. False: use K and D and undistort."
    )
    constant_image_deviation: float = Field(
        1.0, ge=0.0, description="An image whose grey values deviate less than this (of 255) counts as absent."
    )
    min_depth_returns: int = Field(30, ge=1, description="A depth image with fewer returns than this counts as absent.")


class PairingConfig(StrictModel):
    overdue_s: float = Field(
        0.25, gt=0.0, description="A partner that is this late (on data time) is not waited for any longer."
    )
    tolerance_s: float = Field(
        0.02, ge=0.0, description="Image and depth image closer than this are of the same instant."
    )


class ProjectionConfig(StrictModel):
    kind: Literal["pinhole", "cylindrical"] = Field(
        "pinhole", description="Into the camera's own view, or the paper's cylindrical image around the lidar."
    )
    width: int = Field(256, ge=8, le=4096, description="Columns of the depth image made from points.")
    height: int = Field(192, ge=8, le=4096, description="Rows of the depth image made from points.")
    azimuth_deg: float = Field(
        360.0, gt=0.0, le=360.0, description="cylindrical: width of the view, centred straight ahead of the lidar."
    )
    lowest_deg: float = Field(-30.0, ge=-90.0, le=90.0, description="cylindrical: elevation of the lowest row.")
    highest_deg: float = Field(15.0, ge=-90.0, le=90.0, description="cylindrical: elevation of the highest row.")
    min_range_m: float = Field(0.5, ge=0.0, description="Nearer returns (the robot itself) are dropped.")
    max_range_m: float = Field(80.0, gt=0.0, description="Farther returns are dropped.")
    accumulate: Literal["past", "around"] = Field(
        "past", description="Clouds before the image only, or on both sides (push-broom; holds the frame back)."
    )
    window_s: float = Field(
        0.15, gt=0.0, description="How far from the image clouds are taken; `around`: on each side."
    )
    max_points: int = Field(500_000, ge=1, description="More accumulated points than this: the oldest are dropped.")
    motion_compensation: bool = Field(
        True, description="Move every cloud to the image's instant by the odometry. False: use points as they are."
    )
    point_times: bool = Field(
        True, description="De-skew clouds that have a time per point. False: all points are at the cloud's stamp."
    )

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.lowest_deg >= self.highest_deg:
            raise ValueError("projection.lowest_deg must be below projection.highest_deg")
        if self.min_range_m >= self.max_range_m:
            raise ValueError("projection.min_range_m must be below projection.max_range_m")
        return self


class ExtrinsicsConfig(StrictModel):
    """Mountings given by hand, as `x y z qx qy qz qw`; empty: from /tf_static."""

    base_to_camera: list[float] = Field(
        default_factory=list, description="T_base_camera (optical frame) as x y z qx qy qz qw; empty: /tf_static."
    )
    base_to_lidar: list[float] = Field(
        default_factory=list, description="T_base_lidar as x y z qx qy qz qw; empty: /tf_static."
    )


class ModelConfig(StrictModel):
    path: str = Field("", description="Folder of the trained model (model.safetensors, card.yaml). Required.")
    device: str = Field("auto", description="auto, cpu or cuda:n.", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    threads: int = Field(
        0, ge=0, description="CPU threads of the network; 0: all cores less one, which the callbacks need."
    )
    runtime: Literal["torch", "onnx", "auto"] = Field(
        "torch",
        description="torch: the weights, by PyTorch. onnx: what `vmloc export` wrote, by ONNX Runtime, on the CPU. "
        "auto: as the folder is, exported or not.",
    )
    max_pending_frames: int = Field(
        4, ge=1, description="Frames that wait for the network; a further one drops the oldest as stale."
    )
    previous_pose: Literal["filter", "own", "none"] = Field(
        "filter",
        description="What a network that takes the previous pose (VLocNet) is given: the filter's, its own last "
        "answer, or none. Other networks ignore it.",
    )
    odometry: Literal["topic", "network"] = Field(
        "topic",
        description="Where the filter's odometry comes from: the topic, or, on a robot that has none, the network's "
        "own (VLocNet), which is published on ~/vo either way.",
    )


class FilterConfig(StrictModel):
    window_s: float = Field(3.0, gt=0.0, description="History kept for late measurements.")
    planar: bool = Field(
        False, description="The robot drives in a plane: z is `planar_height_m`, roll and pitch are zero, always."
    )
    planar_height_m: float = Field(0.0, description="planar: z of the base in the map.")
    noise_m_per_m: float = Field(
        0.05, ge=0.0, description="Odometry position deviation per metre driven (white, per sqrt(m))."
    )
    noise_rad_per_m: float = Field(0.005, ge=0.0, description="Odometry rotation deviation per sqrt(metre).")
    noise_rad_per_rad: float = Field(0.03, ge=0.0, description="Odometry rotation deviation per sqrt(radian) turned.")
    noise_m_per_s: float = Field(0.005, ge=0.0, description="Position deviation per sqrt(second), also when standing.")
    noise_rad_per_s: float = Field(0.001, ge=0.0, description="Rotation deviation per sqrt(second).")
    estimate_scale: bool = Field(True, description="Estimate by which factor the odometry's way is too long or short.")
    scale_deviation: float = Field(
        0.03, gt=0.0, description="Deviation of that factor from 1 before anything is known."
    )
    estimate_heading: bool = Field(
        True, description="Estimate by which angle the odometry drives to one side of where the base looks."
    )
    heading_deviation_rad: float = Field(0.03, gt=0.0, description="Deviation of that angle before anything is known.")
    estimate_yaw_bias: bool = Field(True, description="Estimate by how much the odometry turns too far per metre.")
    yaw_bias_deviation_rad_per_m: float = Field(
        3e-4, gt=0.0, description="Deviation of that bias before anything is known."
    )
    odometry_model_walk: float = Field(
        0.01,
        ge=0.0,
        description="Scale, heading and yaw bias wander by this share of their deviations per sqrt(metre): 0.01 "
        "forgets them over 10 km. 0: they are constants.",
    )
    use_twist_covariance: bool = Field(
        False, description="Take increment noise from the twist covariance x dt where it is given and positive."
    )
    use_observations: bool = Field(
        True,
        description="Where a network observed something else than a pose (a latent code), compare that with what the "
        "state makes one expect. false: compare the poses.",
    )
    measurement_inflation: float = Field(
        1.3, gt=0.0, le=1e6, description="Multiplies the measurements' covariance, see `vmloc error-model`."
    )
    measurement_correlation_s: float = Field(
        1.75,
        ge=0.0,
        description="Correlation time of the measurements' errors: measurements closer in time than this inform less. "
        "0: independent errors.",
    )
    student_t_dof: float = Field(
        2.0, ge=0.0, description="Degrees of freedom of the robust Student-t weight inside the gate; 0: off (Gaussian)."
    )
    robust_power: float = Field(
        2.0,
        gt=0.0,
        description="Power of that weight: 1 is Student's t; 2 redescends, so that far measurements lose their pull.",
    )
    max_robust_weight: float = Field(
        4.0,
        ge=1.0,
        description="Measurements that fit better than they claim count up to so many times their precision.",
    )
    outlier_share: float = Field(
        0.1,
        ge=0.0,
        lt=0.5,
        description="So often an answer is wrong unseen: keeps one answer alone from making a wide state certain. Off "
        "where `student_t_dof` is 0.",
    )
    noise_level_s: float = Field(
        2.0,
        ge=0.0,
        description="The weight goes by the running mean of a source's squared distances over so long where that is "
        "larger than the measurement's own: bad stretches last. 0: by its own alone.",
    )
    divergence_window_s: float = Field(
        4.0,
        ge=0.0,
        description="Innovations whose mean over so long the filter's covariance cannot explain widen the state: the "
        "odometry has failed unseen. 0: off.",
    )
    gate_probability: float = Field(
        0.9999, gt=0.5, lt=1.0, description="A measurement outside this share of its distribution is gated."
    )
    relocalize_after: int = Field(
        8, ge=2, description="So many gated measurements in a row that agree among themselves re-initialise the filter."
    )
    relocalize_span_s: float = Field(
        3.0, ge=0.0, description="Such a streak must last at least so long: errors in quick succession are alike."
    )
    initialize_after: int = Field(
        3, ge=1, description="So many measurements that agree among themselves start the filter."
    )
    future_tolerance_s: float = Field(
        0.5, ge=0.0, description="A measurement further than this ahead of the newest data is refused."
    )
    max_odometry_gap_s: float = Field(
        0.5, gt=0.0, description="A longer silence of the odometry is bridged with `gap_noise_m_per_s`, and counted."
    )
    gap_noise_m_per_s: float = Field(3.0, ge=0.0, description="Position deviation per second of an odometry gap.")
    gap_noise_rad_per_s: float = Field(0.3, ge=0.0, description="Rotation deviation per second of an odometry gap.")
    max_speed_m_per_s: float = Field(
        60.0, gt=0.0, description="An odometry increment faster than this is a jump: refused and counted."
    )
    max_turn_rad_per_s: float = Field(
        10.0, gt=0.0, description="An odometry increment that turns faster than this is a jump: refused and counted."
    )
    max_acceleration_m_per_s2: float = Field(
        20.0, gt=0.0, description="An odometry increment that changes the velocity faster than this is a jump."
    )
    jump_tolerance_m: float = Field(
        1.0,
        ge=0.0,
        description="Increments may exceed the limits of speed and acceleration by so much (jitter of stamps).",
    )
    dead_reckoning_after_s: float = Field(
        1.0, gt=0.0, description="No fused measurement for so long: the mode is DEAD_RECKONING."
    )
    lost_after_s: float = Field(
        60.0,
        gt=0.0,
        description="No fused measurement for so long, whatever the odometry says: LOST.",
    )
    lost_odometry_gap_s: float = Field(
        3.0, gt=0.0, description="No odometry and no fused measurement for so long: LOST, and the TF stops."
    )


class OutputConfig(StrictModel):
    publish_tf: Literal["map_odom", "map_base", "none"] = Field(
        "map_odom", description="map_odom (REP-105), map_base (only where nobody publishes odom -> base_link) or none."
    )
    publish_odom_tf: bool = Field(
        False,
        description="Also broadcast odom -> base_link from the odometry, for bags that carry none; with "
        "`model.odometry: network` it must be on.",
    )
    max_correction_m_per_s: float = Field(
        0.0,
        ge=0.0,
        description="map -> odom moves at most so fast towards the filter's, for controllers that follow the TF; it "
        "limits the TF alone, ~/pose is the filter's. 0: at once.",
    )
    max_correction_rad_per_s: float = Field(0.0, ge=0.0, description="The same of its rotation. 0: at once.")
    future_tolerance_s: float = Field(
        1.0, ge=0.0, description="A transform stamped further than this ahead of the node's clock is withheld."
    )
    path_length: int = Field(2000, ge=1, description="Poses kept in ~/path.")
    path_rate_hz: float = Field(1.0, gt=0.0, description="How often ~/path is published.")
    heartbeat_s: float = Field(0.5, gt=0.0, description="A status is published at least so often (data time).")
    publish_projected_depth: bool = Field(True, description="Publish ~/projected_depth where somebody listens.")
    predicted_view_rate_hz: float = Field(
        2.0,
        gt=0.0,
        description="~/predicted_view, what a readable map expects to see, comes at most so often, where somebody "
        "listens.",
    )


class SavedPoseConfig(StrictModel):
    path: str = Field(
        "", description="File that keeps the last pose, for a node that is started again. Empty: none is kept or used."
    )
    every_s: float = Field(1.0, gt=0.0, description="How often it is written, in seconds of data.")
    max_age_s: float = Field(
        300.0, gt=0.0, description="A saved pose older than this, by the first data's stamp, is refused."
    )


class MonitorConfig(StrictModel):
    """Compares the filter's motion with dead reckoning's over a sliding window, for diagnostics."""

    window_s: float = Field(5.0, gt=0.0, description="Over so long the two motions are compared.")
    max_difference_m: float = Field(3.0, gt=0.0, description="A larger difference of position is a warning.")
    max_difference_rad: float = Field(0.2, gt=0.0, description="A larger difference of rotation is a warning.")


class LocalizerConfig(StrictModel):
    """Everything the pipeline and the node can be told."""

    frames: FrameNames = Field(default_factory=FrameNames)
    topics: TopicNames = Field(default_factory=TopicNames)
    input: InputConfig = Field(default_factory=InputConfig)
    pairing: PairingConfig = Field(default_factory=PairingConfig)
    projection: ProjectionConfig = Field(default_factory=ProjectionConfig)
    extrinsics: ExtrinsicsConfig = Field(default_factory=ExtrinsicsConfig)
    model: ModelConfig = Field(default_factory=ModelConfig)
    filter: FilterConfig = Field(default_factory=FilterConfig)
    output: OutputConfig = Field(default_factory=OutputConfig)
    saved_pose: SavedPoseConfig = Field(default_factory=SavedPoseConfig)
    monitor: MonitorConfig = Field(default_factory=MonitorConfig)

    def as_trained(self, input: InputConfig, projection: ProjectionConfig) -> LocalizerConfig:
        """The same with everything of the sections `input` and `projection` that was not given as the model's training
        had it."""
        ours = {"input": (self.input, input), "projection": (self.projection, projection)}
        merged = {
            name: type(given).model_validate(trained.model_dump() | given.model_dump(include=given.model_fields_set))
            for name, (given, trained) in ours.items()
        }
        return self.model_copy(update=merged)


Model = TypeVar("Model", bound=BaseModel)


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file's mapping, by `safe_load`.

    Raises:
        ConfigError: missing, not YAML, or not a mapping.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read as YAML ({' '.join(str(error).split())})") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: must hold a mapping of names to values, not a {type(content).__name__}")
    return content


def parse(model: type[Model], values: dict[str, Any], source: str) -> Model:
    """Values checked against a configuration class.

    Raises:
        ConfigError: names the source, the key and, for an unknown key, the nearest that exists.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        problems, tags = [], _tags(model)
        for item in error.errors():
            key = ".".join(str(part) for part in item["loc"] if part not in tags)
            if item["type"] == "extra_forbidden":
                nearest = difflib.get_close_matches(key, sorted(flat_names(model)), n=1, cutoff=0.5)
                problems.append(f"unknown key {key!r}" + (f" (did you mean {nearest[0]!r}?)" if nearest else ""))
            else:
                problems.append(f"{key}: {item['msg']} (got {item.get('input')!r})")
        raise ConfigError(f"{source}: " + "; ".join(problems)) from error


def flat_names(model: type[BaseModel], prefix: str = "") -> list[str]:
    """All leaf keys of a configuration class, sections joined by dots."""
    names: list[str] = []
    for name, info in model.model_fields.items():
        inner = [kind for kind in _kinds(info.annotation) if isinstance(kind, type) and issubclass(kind, BaseModel)]
        for kind in inner:
            names += [key for key in flat_names(kind, f"{prefix}{name}.") if key not in names]
        if not inner:
            names.append(prefix + name)
    return names


def _kinds(annotation: Any) -> list[Any]:
    """The classes that an annotation allows: itself, or those of a union."""
    if isinstance(annotation, type):
        return [annotation]
    return [kind for inner in get_args(annotation) for kind in _kinds(inner)]


def _tags(model: type[BaseModel]) -> set[str]:
    """What pydantic calls the kinds of a section that may be of several; no key of a file."""
    tags = set()
    for info in model.model_fields.values():
        for kind in _kinds(info.annotation):
            if isinstance(kind, type) and issubclass(kind, BaseModel) and "architecture" in kind.model_fields:
                tags.add(str(kind.model_fields["architecture"].default))
    return tags


def load_config(path: Path) -> LocalizerConfig:
    """Reads a parameter file: ROS 2's layout (`node: ros__parameters: ...`) or the sections alone."""
    return parse(LocalizerConfig, ros_parameters(read_yaml(path), str(path)), str(path))


def ros_parameters(content: dict[str, Any], source: str) -> dict[str, Any]:
    """The sections inside a ROS 2 parameter file, or the content itself where it is not one."""
    holders = [v for v in content.values() if isinstance(v, dict) and "ros__parameters" in v]
    if not holders:
        return content
    if len(holders) > 1:
        raise ConfigError(f"{source}: holds parameters of several nodes; give a file with one")
    parameters = dict(holders[0]["ros__parameters"])
    for own in ("use_sim_time", "autostart"):  # rclpy's and the node's own
        parameters.pop(own, None)
    return parameters
