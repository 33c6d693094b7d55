"""What `vmloc train` can be told: one typed default per knob; unknown and contradictory keys are refused."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from vmloc_ros.config import LocalizerConfig, StrictModel, parse, read_yaml
from vmloc_ros.losses import Distance, EncoderGradient
from vmloc_ros.networks.config import AnyNetwork, NetworkConfig
from vmloc_ros.networks.generative_map_config import GenerativeMapConfig, GenerativeMapObjective
from vmloc_ros.networks.scene_coordinates_config import SceneCoordinatesConfig, SceneLoss
from vmloc_ros.networks.vlocnet_config import VLocNetConfig, VLocNetObjective
from vmloc_ros.pose_graph_config import PoseGraphConfig

FRAME_NUMBERS_FORMAT = "sevenscenes"


def parse_range(text: str) -> tuple[float, float]:
    """`600-649` as (600, 649), ends included.

    Raises:
        ValueError: not two numbers, or the wrong way round.
    """
    first, separator, last = text.partition("-")
    try:
        bounds = float(first), float(last)
    except ValueError:
        bounds = 1.0, 0.0
    if not separator or bounds[0] > bounds[1]:
        raise ValueError(f"{text!r} is not a range such as 600-649")
    return bounds


class DataConfig(StrictModel):
    format: Literal["robotcar", "town", "kitti", "sevenscenes", "cambridge", "bag"] = Field(
        "town", description="Layout of the folder given by --data, as its publishers ship it."
    )
    options: dict[str, Any] = Field(
        default_factory=dict, description="Further arguments of the reader (for robotcar: lidar, camera, ...)."
    )
    train: list[str] = Field(
        default_factory=list, description="Names of the recordings to train on; empty: all not named elsewhere."
    )
    validation: list[str] = Field(
        default_factory=list, description="Names of whole recordings that choose the best weights and calibrate."
    )
    test: list[str] = Field(
        default_factory=list,
        description="Names of whole recordings that are prepared but never trained, chosen or calibrated on: after the "
        "training the errors on them go into the card.",
    )
    test_blocks: list[str] = Field(
        default_factory=list, description="Blocks of the training recordings, as in hold_out, used like `test`."
    )
    ignore: list[str] = Field(default_factory=list, description="Names of recordings that are never read.")
    hold_out: list[str] = Field(
        default_factory=list,
        description="Blocks of the training recordings used for validation only: for sevenscenes frame numbers "
        "('600-649'), else seconds since the recording's first frame ('40-55').",
    )
    discard: list[str] = Field(
        default_factory=list, description="Blocks, as in hold_out, that are neither trained nor validated on."
    )
    frame_stride: int = Field(1, ge=1, description="Use every n-th frame.")
    workers: int = Field(
        0, ge=0, description="Processes that prepare samples; 0: one per core. The result does not depend on it."
    )

    @field_validator("hold_out", "discard", "test_blocks")
    @classmethod
    def _ranges(cls, value: list[str]) -> list[str]:
        for text in value:
            parse_range(text)
        return value

    @model_validator(mode="after")
    def _disjoint(self) -> DataConfig:
        for one, other in combinations(("train", "validation", "test", "ignore"), 2):
            both = set(getattr(self, one)) & set(getattr(self, other))
            if both:
                raise ValueError(f"{', '.join(sorted(both))} stands in both {one} and {other}")
        return self


class ClipConfig(StrictModel):
    """Frames that are shown together: one frame is one clip, unless the network or the objective asks for more."""

    frames: int = Field(1, ge=1, le=16, description="Frames of a clip.")
    spacing: int = Field(1, ge=1, description="Every n-th frame of the drive is taken.")
    max_spacing: int = Field(
        0, ge=0, description="Draw the spacing of each clip from `spacing` to this; 0: always `spacing`."
    )
    max_gap_s: float = Field(
        0.5, gt=0.0, description="A drive is cut where two of its frames lie further apart than this."
    )

    @property
    def largest_spacing(self) -> int:
        """The upper end of the range of spacings."""
        return max(self.spacing, self.max_spacing)

    @model_validator(mode="after")
    def _ordered(self) -> ClipConfig:
        if 0 < self.max_spacing < self.spacing:
            raise ValueError("clip.max_spacing is below clip.spacing")
        return self


class RelativeConfig(StrictModel):
    """MapNet's second term (S. Brahmbhatt et al., CVPR 2018): the motion between neighbouring poses of a clip."""

    weight: float = Field(0.0, ge=0.0, description="Of that term beside the poses' own; 0: off (the paper: 1).")
    frame: Literal["map", "camera"] = Field(
        "map",
        description="map: differences of positions and of log-quaternions, as published. camera: the motion itself, in "
        "the axes of the earlier camera.",
    )
    scales: Literal["own", "shared"] = Field(
        "own",
        description="own: beta and gamma of its own (the published code). shared: the poses' (the paper's text).",
    )
    beta_0: float = Field(0.0, description="Initial weight of its position term; only with scales `own`.")
    gamma_0: float = Field(-3.0, description="Initial weight of its rotation term; only with scales `own`.")


class ObjectiveConfig(StrictModel):
    samples: int = Field(4, ge=1, description="k, latent samples per frame (the paper: 10).")
    latent_weight: float = Field(1e-4, ge=0.0, description="lambda of eq. 15 (the published code: 1e-6).")
    encoder_gradient: EncoderGradient = Field(
        "unbiased", description="plain (eq. 8), paper (eq. 13) or unbiased ((1 - lambda) w~ + lambda w~^2)."
    )
    importance_after: float = Field(
        0.0,
        ge=0.0,
        le=1.0,
        description="For this share of the training the samples count alike (the ELBO), then by importance (eq. 7). "
        "Importance rewards the luckiest of k samples: a modality that knows nothing yet learns to guess widely, and "
        "may stay there.",
    )
    beta_0: float = Field(0.0, description="Initial weight of the position term.")
    gamma_0: float = Field(-3.0, description="Initial weight of the rotation term.")
    scales: Literal["shared", "per_case"] = Field(
        "shared",
        description="One beta and gamma (the paper), or a pair for each of both, RGB alone and depth alone: then a "
        "weak modality's large errors do not drown the strong one's.",
    )
    distance: Distance = Field("l2", description="Norm of the position and rotation errors in eq. 11.")
    presence: list[float] = Field(
        default_factory=lambda: [0.6, 0.2, 0.2],
        min_length=3,
        max_length=3,
        description="Chances that a training sample shows both modalities, RGB alone, depth alone (eq. 18).",
    )
    presence_as: Literal["drawn", "weighted"] = Field(
        "drawn",
        description="drawn: one of the three cases per sample and step (eq. 18; saves the absent modality's encoder). "
        "weighted: the expectation of that, all three cases of a sample with its chances as weights, from one "
        "encoding: a quarter more work per step, and much more signal for a modality alone.",
    )

    clip: ClipConfig = Field(default_factory=ClipConfig, description="How many frames a training sample has.")
    relative: RelativeConfig = Field(default_factory=RelativeConfig)
    vlocnet: VLocNetObjective = Field(default_factory=VLocNetObjective)
    generative_map: GenerativeMapObjective = Field(default_factory=GenerativeMapObjective)
    scene: SceneLoss = Field(default_factory=SceneLoss)

    @field_validator("presence")
    @classmethod
    def _distribution(cls, value: list[float]) -> list[float]:
        if min(value) < 0.0 or abs(sum(value) - 1.0) > 1e-6:
            raise ValueError("presence must be three chances that sum to 1")
        return value

    @model_validator(mode="after")
    def _pairs(self) -> ObjectiveConfig:
        if self.relative.weight > 0.0 and self.clip.frames < 2:
            raise ValueError(
                "objective.relative.weight compares frames of one clip: set objective.clip.frames to 2 or more"
            )
        return self


class AugmentationConfig(StrictModel):
    margin: float = Field(
        0.125,
        ge=0.0,
        le=0.5,
        description="Stored images are larger than the network's by this share; crops shift in it.",
    )
    turn_labels: bool = Field(
        True,
        description="A shifted crop is what a slightly turned camera sees: turn the label with it. (Scene coordinates "
        "do not need it: their cells bring the rays of the shifted crop.)",
    )
    move_chance: float = Field(
        0.0,
        ge=0.0,
        le=1.0,
        description="Chance that a sample is shown from a pose nearby, its pixels moved by their own depth. For dense "
        "depth; with move_m 0 the camera is only turned, which needs no depth.",
    )
    move_m: float = Field(0.15, ge=0.0, description="Such a pose is up to this far away along each axis.")
    move_deg: float = Field(
        8.0,
        ge=0.0,
        le=45.0,
        description="And turned by up to this much about each axis; where depth is a cylindrical image, the vehicle is "
        "turned about its vertical axis alone, camera and lidar together.",
    )
    brightness: float = Field(0.2, ge=0.0, lt=1.0, description="Colour is multiplied by up to 1 +- this.")
    contrast: float = Field(0.2, ge=0.0, lt=1.0, description="Contrast about the image's mean, up to 1 +- this.")
    colour: float = Field(0.05, ge=0.0, lt=1.0, description="Each channel is multiplied by up to 1 +- this.")
    noise: float = Field(0.02, ge=0.0, lt=1.0, description="Standard deviation of pixel noise, of 1 = white.")
    erase_chance: float = Field(0.3, ge=0.0, le=1.0, description="Chance, per modality, that a box is erased.")
    erase_share: float = Field(0.4, ge=0.0, le=1.0, description="Largest side of that box, as a share of the image's.")
    depth_noise: float = Field(0.01, ge=0.0, lt=1.0, description="Relative standard deviation of depth noise.")
    depth_dropout: float = Field(0.1, ge=0.0, lt=1.0, description="Up to this share of the returns is dropped.")


class OptimizerConfig(StrictModel):
    epochs: int = Field(60, ge=1, description="Passes over the training samples.")
    batch_size: int = Field(48, ge=1, description="Samples per step.")
    algorithm: Literal["adamw", "adam"] = Field(
        "adamw", description="adamw: weight decay apart from the gradient. adam: added to it (the paper)."
    )
    peak_learning_rate: float = Field(
        2e-3, gt=0.0, description="Top of the one-cycle schedule; of `constant`, all of it."
    )
    schedule: Literal["one_cycle", "constant"] = Field(
        "one_cycle", description="How the learning rate goes; the paper's is constant."
    )
    warm_up: float = Field(0.15, gt=0.0, lt=1.0, description="Share of the steps that the rate rises.")
    weight_decay: float = Field(1e-4, ge=0.0, description="Of matrices and kernels.")
    clip_norm: float = Field(5.0, gt=0.0, description="Gradients longer than this are shortened.")
    validate_every: int = Field(5, ge=1, description="Epochs between validations and checkpoints.")
    patience: int = Field(
        0, ge=0, description="Stop after this many validations in a row without a better score; 0: never."
    )
    ema: float = Field(
        0.0,
        ge=0.0,
        lt=1.0,
        description="Decay per step of the weights' moving average, which is then validated and stored (0.999 averages "
        "about a thousand steps); 0: the weights themselves.",
    )


class CalibrationConfig(StrictModel):
    latent_samples: int = Field(16, ge=2, description="Latent samples behind every covariance, with a fixed seed.")
    min_frames: int = Field(20, ge=7, description="Fewer validation frames than this cannot calibrate: refused.")
    on_training: bool = Field(
        False,
        description="No validation data: calibrate on the training frames (the card says so) and multiply by "
        "`training_inflation`. For demonstrations; such a model does not know how wrong it is elsewhere.",
    )
    training_inflation: float = Field(9.0, ge=1.0, description="What such a covariance is multiplied by.")
    neighbours: bool = Field(
        True,
        description="Keep the latents of up to 2048 training frames beside the weights: the distance to them tells how "
        "unfamiliar a frame is. Without them the scatter of the latent samples has to do.",
    )
    folds: list[list[str]] = Field(
        default_factory=list,
        description="Cross-fitting, for little data: for each of these lists of blocks (as in data.hold_out) one more "
        "network is trained without them, and its errors on them calibrate the model together with those of hold_out.",
    )
    fold_epochs: int = Field(0, ge=0, description="Passes of these trainings; 0: as many as the model's.")

    @field_validator("folds")
    @classmethod
    def _ranges(cls, value: list[list[str]]) -> list[list[str]]:
        for blocks in value:
            if not blocks:
                raise ValueError("a fold must name at least one block, such as 50-99")
            for text in blocks:
                parse_range(text)
        return value


class TrainingConfig(StrictModel):
    """Everything a training depends on, besides the data itself."""

    name: str = Field("vmloc", description="For the card.")
    seed: int = Field(0, ge=0, description="Same seed, same machine, same thread count: same weights.")
    device: str = Field("cpu", description="cpu, cuda or auto (Lightning Fabric's accelerator).")
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = Field("32-true", description="Lightning Fabric's.")
    threads: int = Field(0, ge=0, description="CPU threads; 0: all cores.")
    storage: Literal["float32", "float16", "int8"] = Field(
        "float16",
        description="How the model's matrices are stored, int8 with a scale for each row; scores and calibration are "
        "of the stored numbers.",
    )
    data: DataConfig = Field(default_factory=DataConfig)
    localizer: LocalizerConfig = Field(
        default_factory=LocalizerConfig,
        description="How sensor messages become frames: exactly what the node will do with this model.",
    )
    network: AnyNetwork = Field(default_factory=NetworkConfig)
    pose_graph: PoseGraphConfig | None = Field(
        None, description="Smooth the poses over a sliding window of odometry before they are given out (MapNet+PGO)."
    )
    trunk_weights: str = Field(
        "none",
        min_length=1,
        description="What ResNet trunks start from: none; imagenet (torchvision downloads it once); or the path of a "
        "safetensors file with torchvision's names.",
    )
    objective: ObjectiveConfig = Field(default_factory=ObjectiveConfig)
    augmentation: AugmentationConfig = Field(default_factory=AugmentationConfig)
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig)
    calibration: CalibrationConfig = Field(default_factory=CalibrationConfig)

    def stored_size(self) -> tuple[int, int]:
        """Rows and columns of the cached samples: the network's, and the margin to crop from."""
        grow = 1.0 + self.augmentation.margin
        return round(self.network.height * grow), round(self.network.width * grow)

    @model_validator(mode="after")
    def _agree(self) -> TrainingConfig:
        if isinstance(self.network, SceneCoordinatesConfig):
            self._check_scene(self.network)
        depth = self.localizer.input.depth_source != "none"
        if "depth" in self.network.modalities and not depth:
            raise ValueError("network.modalities has depth, but localizer.input.depth_source is none")
        if self.calibration.on_training and (self.data.validation or self.data.hold_out):
            raise ValueError("calibration.on_training is for data without validation or hold_out")
        from_lidar = self.localizer.input.depth_source in ("points", "scan")
        cylinder = "depth" in self.network.modalities and self.localizer.projection.kind == "cylindrical"
        turns = self.augmentation.margin > 0.0 and self.augmentation.turn_labels
        moves = self.augmentation.move_chance > 0.0 and self.augmentation.move_m > 0.0
        if from_lidar and cylinder and (turns or moves):
            raise ValueError(
                "with projection.kind cylindrical the depth image is the lidar's, which can be turned, but not shifted "
                "or moved with the camera: set augmentation.margin to 0 (or turn_labels to false) and move_m to 0"
            )
        if self.calibration.on_training and self.calibration.folds:
            raise ValueError("calibration.on_training is for trainings without calibration.folds")
        if "rgb" in self.network.modalities and not self.localizer.input.use_image:
            raise ValueError("network.modalities has rgb, but localizer.input.use_image is false")
        if self.objective.relative.weight > 0.0 and not isinstance(self.network, NetworkConfig):
            raise ValueError(f"objective.relative is for architecture vmloc, not {self.network.architecture}")
        if isinstance(self.network, VLocNetConfig):
            self._check_vlocnet(self.network)
        if self.pose_graph is not None and isinstance(self.network, GenerativeMapConfig):
            raise ValueError("pose_graph smooths poses, but generative_map gives the filter something else: remove it")
        if self.trunk_weights != "none" and not hasattr(self.network, "trunk"):
            raise ValueError(
                f"trunk_weights is {self.trunk_weights}, but {self.network.architecture} has no ResNet trunk: remove it"
            )
        if self.trunk_weights != "none" and getattr(self.network, "trunk", "small") == "small":
            raise ValueError(f"trunk_weights is {self.trunk_weights}, but network.trunk small has none; take a resnet")
        return self

    def _check_scene(self, network: SceneCoordinatesConfig) -> None:
        """Raises ValueError where cells could not learn where they lie."""
        source, projection = self.localizer.input.depth_source, self.localizer.projection
        if source == "none":
            raise ValueError(
                "network.architecture scene_coordinates learns where things are from depth, even if its modalities are "
                "[rgb]: localizer.input.depth_source must not be none"
            )
        if source in ("points", "scan") and projection.kind != "pinhole":
            raise ValueError(
                "network.architecture scene_coordinates takes every cell's colour and depth to lie on one ray: "
                f"localizer.projection.kind must be pinhole, it is {projection.kind}"
            )
        if self.objective.clip.frames != 1:
            raise ValueError(
                "network.architecture scene_coordinates learns from single frames: objective.clip.frames must be 1, it "
                f"is {self.objective.clip.frames}"
            )
        if self.objective.scene.likelihood == "variational" and network.anchors > 1:
            raise ValueError(
                "objective.scene.likelihood variational samples one Gaussian per cell: network.anchors must be 1, it "
                f"is {network.anchors} (or set the likelihood to robust)"
            )

    def _check_vlocnet(self, network: VLocNetConfig) -> None:
        """Raises ValueError where VLocNet could not learn, or not start."""
        own = self.objective.vlocnet
        if self.objective.clip.frames != 2:
            raise ValueError(
                f"network.architecture vlocnet learns from pairs of frames: objective.clip.frames must be 2, it is "
                f"{self.objective.clip.frames}"
            )
        if network.previous_pose and own.previous_absent == 0.0 and own.earlier_weight == 0.0:
            raise ValueError(
                "with objective.vlocnet.previous_absent 0 and earlier_weight 0 the network never sees a frame without "
                "a previous pose, and could not start: raise one of them, or set network.previous_pose to false"
            )


def load_training_config(path: Path) -> TrainingConfig:
    """Reads a training configuration.

    Raises:
        ConfigError: missing, not YAML, unknown or contradictory keys (with the nearest valid name).
    """
    return parse(TrainingConfig, read_yaml(path), str(path))
