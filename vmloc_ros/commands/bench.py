"""`vmloc bench`: how fast the parts are, each beside a reference that is timed in the same run on the same data.

Absolute times depend on the machine; the ratios hardly do.
"""

from __future__ import annotations

import platform
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from vmloc_ros import files
from vmloc_ros.commands.bench_latent import LATENT, LatentCode, MapCode, latent_code
from vmloc_ros.commands.bench_projection import bench_projection
from vmloc_ros.commands.demo import packaged_model
from vmloc_ros.config import FilterConfig, FrameNames, LocalizerConfig
from vmloc_ros.fusion import Fusion
from vmloc_ros.geometry import Array, adjoint, exp_se3, inverse, make_pose, orthonormalise
from vmloc_ros.images import decode_image
from vmloc_ros.localizer import Localizer, load_localizer
from vmloc_ros.pipeline import Pipeline
from vmloc_ros.types import (
    CameraInfo,
    Event,
    EventKind,
    Frame,
    FrameKey,
    MeasurementResult,
    Observation,
    OdometrySample,
    PinholeIntrinsics,
    PointField,
    PoseMeasurement,
    RawCloud,
    RawImage,
)

ODOMETRY_NS = 10_000_000
SENSOR_NS = 100_000_000
TURN_SAMPLES = 100
"""Odometry samples that are timed at once."""
LATE_SAMPLES, BETWEEN_POSES = 100, 20
"""How many odometry samples have come since a late pose was measured, and come between two such poses."""
ODOMETRY_LIMIT_MS, LATE_LIMIT_MS, LATENT_LIMIT_MS, ALIGNMENT_LIMIT_MS = 0.04, 2.5, 2.0, 3.0
DRIVE_CENTRE_M, DRIVE_RADIUS_M = np.array([0.0, 40.0, 0.0]), 40.0
LATE_DEVIATIONS = np.array([0.1] * 3 + [0.01] * 3)
T_BASE_CAMERA = make_pose([[0, 0, 1], [-1, 0, 0], [0, -1, 0]], [0.5, 0.0, 1.5])


@dataclass(frozen=True, slots=True)
class Row:
    """One line: medians in milliseconds, `ratio` = reference_ms / ms (more is better), `limit_ms` what `ms` should be
    below on one core of an ordinary machine."""

    part: str
    name: str
    ms: float
    reference: str
    reference_ms: float
    ratio: float
    limit_ms: float | None = None


def run_bench(
    model: Path | None = None, quick: bool = False, json: Path | None = None, console: Console | None = None
) -> list[Row]:
    """Times everything, prints a table, and returns its rows.

    Args:
        model: folder of the model to time; by default the demo's.
        quick: a tenth of the repetitions.
        json: where the rows are written.
        console: where the table is printed.

    Raises:
        CheckpointError, SetupError: the model is unusable or missing.
    """
    console, share = console or Console(), 0.1 if quick else 1.0
    folder = model if model is not None else packaged_model()
    rows: list[Row] = []
    with console.status("timing") as status:
        for what, bench in (
            ("projection", lambda: projection_rows(share)),
            ("image decoding", lambda: image_rows(share)),
            ("filter", lambda: filter_rows(share)),
            ("scene alignment", lambda: scene_rows(share)),
            ("network", lambda: network_rows(folder, share)),
            ("scene coordinates", lambda: scene_network_rows(share)),
            ("pipeline", lambda: pipeline_rows(folder, share)),
        ):
            status.update(f"timing: {what}")
            rows += bench()
    table = Table("", "ms", "limit", "reference", "ms", "ratio", box=SIMPLE_HEAD)
    for column in (1, 2, 4, 5):
        table.columns[column].justify = "right"
    for row in rows:
        limit = "" if row.limit_ms is None else f"{row.limit_ms:g}"
        reference_ms = f"{row.reference_ms:.3g}"
        table.add_row(row.name, f"{row.ms:.3g}", limit, row.reference, reference_ms, f"{row.ratio:.2f}")
    console.print(table)
    if json is not None:
        files.write_json(json, {"machine": platform.machine(), "rows": [asdict(row) for row in rows]})
        console.print(f"wrote {json}", soft_wrap=True)
    return rows


def timed(
    part: str,
    name: str,
    ours: Callable[[], object],
    reference: str,
    theirs: Callable[[], object],
    repeats: int,
    before: Callable[[], object] | None = None,
) -> Row:
    """Both sides alternately, so that what else the machine does hits both; the first turn only warms up.

    `before` prepares every turn and is not timed.
    """
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(max(3, repeats) + 1):
        if before is not None:
            before()
        for work, spent in zip((ours, theirs), times, strict=True):
            start_s = time.perf_counter()
            work()
            if turn:
                spent.append(1e3 * (time.perf_counter() - start_s))
    ms, reference_ms = statistics.median(times[0]), statistics.median(times[1])
    return Row(part, name, ms, reference, reference_ms, reference_ms / ms)


def projection_rows(share: float) -> list[Row]:
    """Lidar points to a depth image."""
    rows = bench_projection(repeats=max(3, round(30 * share)))
    return [Row("projection", row.name, row.ms, "plain numpy", row.reference_ms, row.ratio) for row in rows]


# ------------------------------------------------------------------------------------------------------------- images


def image_rows(share: float) -> list[Row]:
    """Messages to RGB arrays, 1280x960."""
    rng = np.random.default_rng(0)
    height, width, repeats = 960, 1280, max(3, round(40 * share))
    colour = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    mosaic = np.ascontiguousarray(colour[:, :, 0])
    bgr = RawImage(1, "camera_optical", height, width, "bgr8", 3 * width, False, colour.tobytes())
    rgb = RawImage(1, "camera_optical", height, width, "rgb8", 3 * width, False, colour.tobytes())
    bayer = RawImage(1, "camera_optical", height, width, "bayer_gbrg8", width, False, mosaic.tobytes())
    size = f"{width}x{height}"
    return [
        timed(
            "image", f"rgb8 {size}", lambda: decode_image(rgb), "a copy of the array", lambda: colour.copy(), repeats
        ),
        timed(
            "image",
            f"bgr8 {size}",
            lambda: decode_image(bgr),
            "reversed channels in numpy",
            lambda: np.ascontiguousarray(colour[:, :, ::-1]),
            repeats,
        ),
        timed(
            "image",
            f"bayer_gbrg8 {size}",
            lambda: decode_image(bayer),
            "edge-aware demosaicing in OpenCV",
            lambda: cv2.cvtColor(mosaic, cv2.COLOR_BayerGR2RGB_EA),
            repeats,
        ),
    ]


# ------------------------------------------------------------------------------------------------------------- filter


def filter_rows(share: float) -> list[Row]:
    """The filter with its default parameters: an odometry sample, and a pose that comes a second late.

    The reference is the same for both: pose and covariance of nine states carried on, in plain numpy, once for every
    sample that the filter steps through.
    """
    repeats = max(10, round(400 * share))
    drive, plain = _Drive(), _PlainPrediction()
    odometry = timed(
        "filter",
        "an odometry sample",
        drive.run_prepared,
        "a prediction in plain numpy",
        lambda: plain.advance(TURN_SAMPLES),
        repeats,
        before=drive.prepare,
    )
    late = _Drive()
    pose = timed(
        "filter",
        f"a pose {LATE_SAMPLES * ODOMETRY_NS / 1e9:g} s late, {LATE_SAMPLES} samples again",
        late.measure_late,
        f"{LATE_SAMPLES} predictions in plain numpy",
        lambda: plain.advance(LATE_SAMPLES),
        repeats // 2,
        before=late.advance,
    )
    ms, reference_ms = odometry.ms / TURN_SAMPLES, odometry.reference_ms / TURN_SAMPLES
    return [
        replace(odometry, ms=ms, reference_ms=reference_ms, limit_ms=ODOMETRY_LIMIT_MS),
        replace(pose, limit_ms=LATE_LIMIT_MS),
        *latent_rows(repeats),
    ]


def latent_rows(repeats: int) -> list[Row]:
    """Measurements that are latent codes, with all that the filter does about them, beside the paper's eqs. 6-8.

    Once with a Jacobian that is there, and once with a Generative Map's, which is computed at every working point.
    """
    textbook = f"the same in latent space, with a {LATENT}x{LATENT} inverse"
    rows = []
    for name, code in (
        (f"latent update, {LATENT} dimensions", latent_code(LATE_DEVIATIONS, np.random.default_rng(0))),
        (f"latent update, {LATENT} dimensions, by a map's network", MapCode(DRIVE_CENTRE_M, DRIVE_RADIUS_M)),
    ):
        drive = _Drive(code)
        row = timed("filter", name, drive.measure_latent, textbook, drive.textbook_update, repeats, drive.look)
        rows.append(replace(row, limit_ms=LATENT_LIMIT_MS))
    return rows


class _Drive:
    """A filter that has been driving at 100 Hz; every 0.2 s a pose comes that belongs to a second ago."""

    def __init__(self, code: LatentCode | MapCode | None = None) -> None:
        self._rng = np.random.default_rng(0)
        self._plain_code = latent_code(LATE_DEVIATIONS, np.random.default_rng(0))
        self._code = code or self._plain_code
        self._seen: Observation = self._plain_code
        self._step = exp_se3([0.08, 0.0, 0.0, 0.0, 0.0, 0.002])
        self._poses: deque[tuple[int, Array]] = deque(maxlen=LATE_SAMPLES + 1)
        self._stamp_ns, self._pose = 1_000_000_000, np.eye(4)
        self._prepared: list[OdometrySample] = []
        self.fusion = Fusion(FilterConfig(), FrameNames())
        self.advance(2 * LATE_SAMPLES)
        for _ in range(20):  # three that agree start the filter
            self.measure_late()
            self.advance()

    def prepare(self, samples: int = TURN_SAMPLES) -> None:
        """Odometry samples that `run_prepared` will give to the filter."""
        for _ in range(samples):
            self._stamp_ns += ODOMETRY_NS
            self._pose = orthonormalise(self._pose @ self._step)  # as a message's quaternion gives it
            self._poses.append((self._stamp_ns, self._pose))
            self._prepared.append(OdometrySample(self._stamp_ns, "odom", "base_link", self._pose))

    def run_prepared(self) -> None:
        """The samples through the filter."""
        for sample in self._prepared:
            self.fusion.add_odometry(sample)
        self._prepared.clear()

    def advance(self, samples: int = BETWEEN_POSES) -> None:
        """So many odometry samples."""
        self.prepare(samples)
        self.run_prepared()

    def measure_late(self) -> MeasurementResult:
        """A pose of the oldest of the last `LATE_SAMPLES` samples, with noise of its covariance."""
        stamp_ns, pose = self._poses[0]
        noise = exp_se3(self._rng.normal(0.0, LATE_DEVIATIONS))
        return self.fusion.add_measurement(PoseMeasurement(stamp_ns, pose @ noise, np.diag(LATE_DEVIATIONS**2)))

    def look(self) -> None:
        """Drives on, and prepares the latent code of the newest sample's pose."""
        self.advance()
        self._seen = self._code.seen(self._pose, self._rng)

    def measure_latent(self) -> MeasurementResult:
        """The code through the filter."""
        offered = PoseMeasurement(
            self._stamp_ns, self._pose, np.diag(LATE_DEVIATIONS**2), "map", observation=self._seen
        )
        return self.fusion.add_measurement(offered)

    def textbook_update(self) -> None:
        """The same with nothing but the textbook's formulas."""
        state = self.fusion.state()
        assert state is not None
        self._plain_code.textbook_update(state.cov_66)


class _PlainPrediction:
    """What an odometry sample costs at least: `T = T X` and `P = F P F' + Q` for nine states."""

    def __init__(self) -> None:
        self._X = exp_se3([0.08, 0.0, 0.0, 0.0, 0.0, 0.002])
        self._F, self._Q = np.eye(9), np.eye(9) * 1e-6
        self._F[:6, :6] = adjoint(inverse(self._X))
        self._T, self._P = np.eye(4), np.eye(9) * 0.01

    def advance(self, samples: int) -> None:
        """So many predictions."""
        for _ in range(samples):
            self._T = self._T @ self._X
            self._P = self._F @ self._P @ self._F.T + self._Q


def scene_rows(share: float) -> list[Row]:
    """A camera's pose and its information from 300 cells with known places, on one thread."""
    import torch

    from vmloc_ros.commands.bench_scene import SceneFrame
    from vmloc_ros.scene_alignment import align

    seen, blind = SceneFrame(depth=True), SceneFrame(depth=False)
    threads, repeats = torch.get_num_threads(), max(3, round(100 * share))
    torch.set_num_threads(1)
    try:
        rows = [
            timed(
                "scene alignment", "scene alignment, 300 cells with depth", lambda: align(seen.cells, seen.settings),
                "RANSAC in plain numpy, the pose alone", seen.numpy_ransac, repeats,
            ),
            timed(
                "scene alignment", "scene alignment, 300 cells without", lambda: align(blind.cells, blind.settings),
                "PnP with RANSAC in OpenCV, the pose alone", blind.opencv_pnp, repeats,
            ),
        ]  # fmt: skip
    finally:
        torch.set_num_threads(threads)
    return [replace(row, limit_ms=ALIGNMENT_LIMIT_MS) for row in rows]


# ------------------------------------------------------------------------------------------------ network and pipeline


def network_rows(folder: Path, share: float) -> list[Row]:
    """One frame through the network, beside the trunks of the paper's own code (two ResNet-34 at 256x256)."""
    import torch
    from torchvision.models import resnet34

    localizer = load_localizer(folder, LocalizerConfig().model)
    localizer.warm_up()
    frame, trunk = _frame(localizer), resnet34().eval()
    image = torch.zeros(1, 3, 256, 256)

    def trunks() -> None:
        with torch.inference_mode():
            trunk(image)
            trunk(image)

    words = "two ResNet-34 at 256x256, on the CPU"
    name = f"network, image and depth ({localizer.card.name}, {localizer.device})"
    return [timed("network", name, lambda: localizer.localize(frame), words, trunks, max(3, round(40 * share)))]


def scene_network_rows(share: float) -> list[Row]:
    """Scene coordinates at 160x120 with both modalities, network and solver: at most the time of the paper's VMLoc."""
    from vmloc_ros.commands.bench_scene_network import PublishedFromPictures, SceneFromPictures

    ours, theirs = SceneFromPictures(), PublishedFromPictures()
    name, words = "scene coordinates: network and solver, one frame", "ResNet-34 VMLoc at 256 px, eager"
    return [timed("network", name, ours.read, words, theirs.infer, max(3, round(40 * share)))]


def _camera(localizer: Localizer) -> PinholeIntrinsics:
    """The camera of the model's training (another one would be refused)."""
    camera = localizer.card.camera
    return camera if camera is not None else PinholeIntrinsics(320, 240, 240.0, 240.0, 159.5, 119.5)


def _frame(localizer: Localizer) -> Frame:
    rng, camera = np.random.default_rng(0), _camera(localizer)
    rgb = rng.integers(0, 256, (camera.height, camera.width, 3), dtype=np.uint8)
    depth_m = rng.uniform(2.0, 60.0, (192, 256)).astype(np.float32)
    return Frame(FrameKey(1, 1, (1,)), camera, rgb, depth_m)


def pipeline_rows(folder: Path, share: float) -> list[Row]:
    """Everything between a message and a pose, per image: 100 Hz odometry, 10 Hz images and clouds of 8000 points."""
    localizer = load_localizer(folder, LocalizerConfig().model)
    localizer.warm_up()
    config = LocalizerConfig(input=localizer.card.input, projection=localizer.card.projection)
    config = config.model_copy(update={"input": config.input.model_copy(update={"depth_source": "points"})})
    pipeline = Pipeline(config, localizer)
    pipeline.set_extrinsic("base_link", "camera_optical", T_BASE_CAMERA)
    pipeline.set_extrinsic("base_link", "lidar", make_pose(np.eye(3), [0.5, 0.0, 1.6]))
    times_ms = []
    for events in _seconds(_camera(localizer), max(2, round(10 * share)), rate=10):
        start_s = time.perf_counter()
        for event in events:
            pipeline.add(event)
        pipeline.drain()
        times_ms.append(1e3 * (time.perf_counter() - start_s))
    ms, period_ms = statistics.median(times_ms[1:]), SENSOR_NS * 1e-6
    return [Row("pipeline", "message to pose, per image", ms, "images at 10 Hz", period_ms, period_ms / ms)]


def _seconds(camera: PinholeIntrinsics, seconds: int, rate: int) -> Iterator[list[Event]]:
    """Lists of events, one for each image: its calibration, the cloud before it, and the odometry since the last."""
    rng, stamp_ns, pose = np.random.default_rng(0), 1_000_000_000, np.eye(4)
    step = exp_se3([0.08, 0.0, 0.0, 0.0, 0.0, 0.002])
    K = camera.matrix()
    for _ in range(seconds * rate):
        events = []
        for _ in range(SENSOR_NS // ODOMETRY_NS):
            stamp_ns, pose = stamp_ns + ODOMETRY_NS, pose @ step
            sample = OdometrySample(stamp_ns, "odom", "base_link", pose)
            events.append(Event(EventKind.ODOMETRY, stamp_ns, sample))
        image_ns = stamp_ns - ODOMETRY_NS
        info = CameraInfo(
            image_ns, "camera_optical", camera.height, camera.width, "plumb_bob", (0.0,) * 5, K, np.eye(3),
            np.column_stack([K, np.zeros(3)]),
        )  # fmt: skip
        pixels = rng.integers(0, 256, (camera.height, camera.width, 3), dtype=np.uint8)
        image = RawImage(
            image_ns, "camera_optical", camera.height, camera.width, "rgb8", 3 * camera.width, False, pixels.tobytes()
        )
        events.insert(0, Event(EventKind.CAMERA_INFO, image_ns, info))
        events.append(Event(EventKind.CLOUD, image_ns - 2 * ODOMETRY_NS, _cloud(rng, image_ns - 2 * ODOMETRY_NS)))
        events.append(Event(EventKind.IMAGE, image_ns, image))
        yield events


def _cloud(rng: np.random.Generator, stamp_ns: int, points: int = 8000) -> RawCloud:
    """Points in front of the vehicle."""
    xyz = rng.uniform([3.0, -15.0, -1.5], [50.0, 15.0, 6.0], (points, 3)).astype(np.float32)
    fields = tuple(PointField(name, 4 * index, 7, 1) for index, name in enumerate("xyz"))
    return RawCloud(stamp_ns, "lidar", 1, points, fields, False, 12, 12 * points, xyz.tobytes())
