"""A wavy wall whose colour says where in the map it is: a network that reads the colours knows every cell's place.

What it says is computed from the pixels that it is shown, so frames that are cut wrongly, mirrored or made up give it
wrong places, as they would a trained network.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pictures import NORMALISATION, START_NS, STEP_NS
from torch import Tensor

from vmloc_ros.calibration import calibrate_mode, calibration_frames
from vmloc_ros.checkpoint import CameraCard, ModelCard
from vmloc_ros.config import InputConfig, ProjectionConfig
from vmloc_ros.fitting import fit_intrinsics
from vmloc_ros.geometry import Array, exp_se3
from vmloc_ros.localizers.scene_coordinates import SceneLocalizer
from vmloc_ros.networks.scene_coordinates_config import SceneCard, SceneCoordinatesConfig
from vmloc_ros.runtimes.scene_coordinates import SceneRuntime
from vmloc_ros.samples import SampleStore, build_store
from vmloc_ros.scene_limits import measure_scene
from vmloc_ros.types import Frame, FrameKey, Modality, Mode, PinholeIntrinsics
from vmloc_ros.validation import validate

CAMERA = PinholeIntrinsics(200, 150, 166.0, 166.0, 101.0, 73.0)
CONFIG = SceneCoordinatesConfig(
    modalities=["rgb"], width=120, height=96, channels=[4, 4, 4], context=0, hidden=[8], context_channels=[]
)
MARGIN = 0.1
LOW, SIZE = np.array([-4.0, -3.0, 1.0]), np.array([8.0, 6.0, 4.0])
"""The part of the map that colours can name: red is x, green y, blue z."""
SIGMA_M = 0.03


def pose_at(share: float) -> Array:
    """T_map_camera along a walk before the wall."""
    return exp_se3([1.6 * share - 0.8, 0.3 * np.sin(6.0 * share), -0.4 * share, 0.08 * share, 0.3 - 0.6 * share, 0.03])


def wall_z(x: Array, y: Array) -> Array:
    """The wall's z in the map."""
    return 3.0 + 0.5 * np.sin(1.3 * x + 0.4) * np.cos(1.1 * y) + 0.25 * x


def shown(T_map_camera: Array, camera: PinholeIntrinsics = CAMERA) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Colour and depth of the wall from a pose."""
    v, u = np.mgrid[0 : camera.height, 0 : camera.width].astype(float)
    rays = np.stack([(u - camera.cx) / camera.fx, (v - camera.cy) / camera.fy, np.ones_like(u)], axis=-1)
    directions, origin = rays @ T_map_camera[:3, :3].T, T_map_camera[:3, 3]
    depth = np.full(u.shape, 3.0)
    for _ in range(16):
        x, y = (origin[k] + depth * directions[..., k] for k in (0, 1))
        depth = (wall_z(x, y) - origin[2]) / directions[..., 2]
    points = origin + depth[..., None] * directions
    return np.clip(255.0 * (points - LOW) / SIZE, 0, 255).astype(np.uint8), depth.astype(np.float32)


def frame_of(T_map_camera: Array, modalities: tuple[str, ...] = ("rgb", "depth"), stamp_ns: int = START_NS) -> Frame:
    """A frame from a pose."""
    rgb, depth = shown(T_map_camera)
    absent = {m: "not sent" for m in Modality if m.value not in modalities}
    key = FrameKey(stamp_ns, stamp_ns if "rgb" in modalities else None)
    return Frame(key, CAMERA, rgb if "rgb" in modalities else None, depth if "depth" in modalities else None, absent)


def walk(count: int) -> Iterator[tuple[Frame, Array, str]]:
    """Labelled frames."""
    for index in range(count):
        T = pose_at(index / max(1, count - 1))
        yield frame_of(T, stamp_ns=START_NS + index * STEP_NS), T, "walk"


def store_of(folder: Path, count: int) -> SampleStore:
    """Prepared samples of the walk."""
    rows, columns = round(CONFIG.height * (1.0 + MARGIN)), round(CONFIG.width * (1.0 + MARGIN))
    return build_store(folder, walk(count), rows, columns, "key")


class ColourReader:
    """Reads every cell's place from the mean of its colours. Implements `CellNetwork`.

    Attributes:
        broken: cells whose answer is not finite.
        lost: answers that have nothing to do with the picture.
        noise_m: of its answers, always the same for a picture; what it claims is SIGMA_M.
    """

    device = "cpu"
    config = CONFIG
    scale_m = 2.0

    def __init__(self, camera: PinholeIntrinsics) -> None:
        """`camera` is of the network's input."""
        rows, columns = CONFIG.grid
        half = 0.5 * (CONFIG.cell - 1)
        u = (torch.arange(columns) * CONFIG.cell + half - camera.cx) / camera.fx
        v = (torch.arange(rows) * CONFIG.cell + half - camera.cy) / camera.fy
        self.rays_12hw = torch.stack([u[None, :].expand(rows, -1), v[:, None].expand(-1, columns)])[None].float()
        self.broken, self.lost, self.noise_m = 0, False, 0.02

    def ask(self, pictures: Mapping[str, NDArray[np.generic]]) -> Mapping[str, Tensor]:
        """See `CellNetwork`."""
        # Depth says nothing of colours: without a picture every cell is taken for the same grey place.
        picture = pictures["rgb"] if "rgb" in pictures else np.full((*pictures["depth"].shape, 3), 90, np.uint8)
        colours = torch.from_numpy(np.array(picture)).double() + 0.5
        rows, columns = CONFIG.grid
        cells = colours.unflatten(2, (columns, -1)).unflatten(1, (rows, -1)).mean(dim=(2, 4)).flatten(1, 2)
        points = torch.from_numpy(LOW) + torch.from_numpy(SIZE) * cells / 255.0
        noise = np.random.default_rng(3).normal(size=points.shape[1:])
        points = points + self.noise_m * torch.from_numpy(noise) * (1.0 + torch.sin(40.0 * points))
        if self.lost:
            points = torch.from_numpy(np.random.default_rng(4).uniform(-3.0, 3.0, points.shape))
        points[:, : self.broken] = torch.nan
        shares = {f"share_{name}": torch.full((len(points),), 0.5) for name in pictures}
        variance = torch.full_like(points, SIGMA_M**2)
        return {"points": points.float(), "variance": variance.float(), "context": points[:, 0].float()} | shares


def reader() -> ColourReader:
    """For the training camera's view, cut out of the stored one."""
    rows, columns = round(CONFIG.height * (1.0 + MARGIN)), round(CONFIG.width * (1.0 + MARGIN))
    camera = fit_intrinsics(CAMERA, rows, columns)
    left, top = (columns - CONFIG.width) // 2, (rows - CONFIG.height) // 2
    return ColourReader(camera.cropped(left, top, CONFIG.width, CONFIG.height))


def localizer_of(network: ColourReader, store: SampleStore) -> SceneLocalizer:
    """Measured and calibrated on a store, as a training does; also with depth, which then serves the solver."""
    runtime = SceneRuntime(network, NORMALISATION)
    scene = measure_scene(runtime, store, np.arange(len(store)))
    errors = validate(runtime, CONFIG, store, np.arange(len(store)))
    frames = calibration_frames(errors, {}, np.arange(len(store)) // 8)[Mode.RGB_ONLY]
    calibration = calibrate_mode(frames)
    limits = scene.limits[Mode.RGB_ONLY.value]
    # With returns the cells' distances count in three dimensions instead of two.
    with_depth = limits.model_copy(update={"inlier_m": 1.5 * limits.inlier_m, "least_share": 0.45})
    config = CONFIG.model_copy(update={"modalities": ["rgb", "depth"]})
    names = ("width", "height", "fx", "fy", "cx", "cy")
    card = ModelCard(
        name="painted",
        network=config,
        normalisation=NORMALISATION,
        training_camera=CameraCard(**{name: getattr(store.camera, name) for name in names}),
        crop_margin=MARGIN,
        frames={"map": "map", "camera": "camera_optical"},
        input=InputConfig(),
        projection=ProjectionConfig(),
        calibration={Mode.RGB_ONLY: calibration, Mode.RGB_DEPTH: calibration, Mode.DEPTH_ONLY: calibration},
        scene=SceneCard(
            limits={"RGB_ONLY": limits, "RGB_DEPTH": with_depth, "DEPTH_ONLY": with_depth},
            depth_low_m=scene.depth_low_m,
            depth_high_m=scene.depth_high_m,
        ),
    )
    return SceneLocalizer(card, runtime)
