"""The synthetic town: the same for a seed, true to its own truth, and read by RobotCar's own reader."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmloc_ros.clouds import decode_cloud
from vmloc_ros.commands.town import run_town
from vmloc_ros.datasets.robotcar import RobotCarRecording
from vmloc_ros.datasets.robotcar_files import AXES
from vmloc_ros.datasets.town import OPTICAL, TownConfig, Traversal, lidar_rays, mosaic, plan_traversal
from vmloc_ros.datasets.town_drive import LOOP_DRIFT, VoDrift, mounting, visual_odometry
from vmloc_ros.datasets.town_layout import build_scene
from vmloc_ros.datasets.town_render import Renderer
from vmloc_ros.datasets.town_scene import Loop, Scene
from vmloc_ros.datasets.town_textures import STYLES
from vmloc_ros.errors import ConfigError, DatasetError
from vmloc_ros.geometry import Array, inverse, rotation_angle
from vmloc_ros.images import decode_image
from vmloc_ros.projection import project_pinhole
from vmloc_ros.types import EventKind, RawImage

LAPS = 0.02
"""Seven metres: a second of driving."""


@pytest.fixture(scope="module")
def scene() -> Scene:
    return build_scene(1, 350.0)


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two drives of a second."""
    out = tmp_path_factory.mktemp("town") / "town"
    run_town(out, seed=1, traversals=2, laps=LAPS, workers=1, progress=False)
    return out


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_a_seed_gives_the_same_bytes_whoever_renders_them(town: Path, tmp_path: Path) -> None:
    again = run_town(tmp_path / "again", seed=1, traversals=2, laps=LAPS, workers=2, progress=False)
    assert digests(again.folder) == digests(town)
    later = run_town(tmp_path / "later", seed=1, traversals=1, first=1, laps=LAPS, workers=1, progress=False)
    assert digests(later.folder / "traversal_01") == digests(town / "traversal_01")
    other = run_town(tmp_path / "other", seed=2, traversals=1, laps=LAPS, workers=1, progress=False)
    assert set(digests(other.folder).values()).isdisjoint(
        value for name, value in digests(town).items() if "stereo/" in name or "velodyne_left/" in name
    )


def test_the_reader_of_real_traversals_reads_it_whole(town: Path) -> None:
    for name in ("traversal_00", "traversal_01"):
        for lidar in ("velodyne_left", "lms_front"):
            recording = RobotCarRecording(town / name, lidar=lidar)
            events = list(recording.events())
            assert recording.skipped == {}
            assert len(events) == recording.event_count()
            assert {event.kind for event in events} == {
                EventKind.IMAGE, EventKind.CAMERA_INFO, EventKind.CLOUD, EventKind.ODOMETRY
            }  # fmt: skip
            assert recording.card()["images_undistorted"] is True
            stamps = {kind: {e.stamp_ns for e in events if e.kind is kind} for kind in EventKind}
            assert stamps[EventKind.IMAGE] == stamps[EventKind.ODOMETRY]
            assert not stamps[EventKind.IMAGE] & stamps[EventKind.CLOUD]  # out of phase


def test_truth_is_the_pose_that_was_rendered(town: Path, scene: Scene) -> None:
    config = TownConfig(traversals=2, laps=LAPS)
    for number in range(2):
        plan = plan_traversal(config, scene, number)
        truth = RobotCarRecording(town / f"traversal_{number:02d}").truth()
        for sensor in ("stereo", "velodyne_left", "lms_front"):
            stamps = plan.stamps_us[sensor]
            for stamp, pose in zip(stamps.tolist(), plan.poses(stamps), strict=True):
                told = truth.interpolate(stamp * 1000)
                assert np.linalg.norm(told[:3, 3] - pose[:3, 3]) < 2e-4
                assert rotation_angle(told[:3, :3], pose[:3, :3]) < 1e-4


def test_lidar_agrees_with_the_camera(town: Path, scene: Scene) -> None:
    """Sweeps, read and projected by the project's own code, meet the depth that the camera's rays find.

    The depth is cast at five times the image's resolution: what is left is the lidar's noise and the parallax at edges.
    """
    config = TownConfig(traversals=2, laps=LAPS)
    camera = config.camera()
    fine = camera.resized(5 * camera.width, 5 * camera.height)
    recording = RobotCarRecording(town / "traversal_00")
    mountings = {transform.child: transform.T_parent_child for transform in recording.static_transforms()}
    renderer = Renderer(scene, plan_traversal(config, scene, 0).light)
    events = [event for event in recording.events() if event.kind is EventKind.CLOUD]
    for event in events[:: len(events) - 1]:
        T_map_base = recording.truth().interpolate(event.stamp_ns)
        _, depth = renderer.image(T_map_base @ mountings["camera_optical"], fine)
        T_camera_lidar = inverse(mountings["camera_optical"]) @ mountings["lidar"]
        xyz = decode_cloud(event.payload).xyz_N3 @ T_camera_lidar[:3, :3].T + T_camera_lidar[:3, 3]
        seen = project_pinhole(xyz.astype(np.float32), fine, 0.5, 80.0)
        assert (project_pinhole(xyz.astype(np.float32), camera, 0.5, 80.0) > 0.0).sum() > 3000
        hits = seen > 0.0
        error = np.abs(seen[hits] - depth[hits])
        assert (error < 0.1).mean() > 0.95
        assert np.median(error) < 0.03


def test_two_ways_of_casting_rays_agree(scene: Scene) -> None:
    """The camera's z-buffer over bounding boxes against each ray with each rectangle."""
    config = TownConfig(width=64, height=48)
    plan = plan_traversal(config, scene, 0)
    renderer = Renderer(scene, plan.light)
    camera = config.camera()
    columns, rows = np.meshgrid(np.arange(camera.width), np.arange(camera.height))
    rays = np.stack([(columns - camera.cx) / camera.fx, (rows - camera.cy) / camera.fy, np.ones_like(columns)], axis=-1)
    lengths = np.linalg.norm(rays, axis=-1)
    for pose in plan.poses(plan.stamps_us["stereo"][::120]):
        T = pose @ AXES @ inverse(mounting("ins")) @ OPTICAL
        _, depth = renderer.image(T, camera)
        units = (rays / lengths[..., None]).reshape(-1, 3) @ T[:3, :3].T
        ranges, _ = renderer.ranges(T[:3, 3], units, 300.0)
        grouped, _ = renderer.ranges(T[:3, 3], units, 300.0, groups=24)
        assert (ranges == grouped).all()
        cast = np.where(np.isfinite(ranges), ranges, 0.0).reshape(depth.shape) / lengths
        near = (cast < 200.0) & (depth < 200.0)
        assert (np.abs(cast - depth)[near] < 1e-2 + 1e-4 * cast[near]).mean() > 0.998  # but for rays along an edge


def test_scanner_returns_lie_on_surfaces(town: Path, scene: Scene) -> None:
    recording = RobotCarRecording(town / "traversal_01", lidar="lms_front")
    T_base_lidar = next(t for t in recording.static_transforms() if t.child == "lidar").T_parent_child
    renderer = Renderer(scene, plan_traversal(TownConfig(traversals=2, laps=LAPS), scene, 1).light)
    event = next(event for event in recording.events() if event.kind is EventKind.CLOUD)
    xyz = decode_cloud(event.payload).xyz_N3.astype(float)
    assert len(xyz) > 200
    assert (xyz[:, 2] == 0.0).all()
    T = recording.truth().interpolate(event.stamp_ns) @ T_base_lidar
    distance = np.linalg.norm(xyz, axis=1)
    ranges, _ = renderer.ranges(T[:3, 3], (xyz / distance[:, None]) @ T[:3, :3].T, 80.0)
    assert (np.abs(ranges - distance) < 0.1).mean() > 0.97


def test_the_town_has_many_houses_of_few_kinds(scene: Scene) -> None:
    assert scene.facades >= 60
    assert len(STYLES) < scene.facades / 3
    flat = scene.origin_Q3[:, :2]
    assert len(np.unique(flat.round(3), axis=0)) > scene.facades


@settings(max_examples=20)
@given(st.integers(0, 10_000), st.floats(300.0, 400.0))
def test_the_road_is_a_closed_smooth_curve_of_the_asked_length(seed: int, length_m: float) -> None:
    loop = Loop(np.random.default_rng(seed), length_m)
    s = np.linspace(0.0, length_m, 2001)
    points = loop.point(s)
    assert np.linalg.norm(np.diff(points, axis=0), axis=1).sum() == pytest.approx(length_m, rel=1e-3)
    assert np.allclose(points[0], points[-1], atol=1e-9)
    headings = np.unwrap(np.arctan2(*loop.tangent(s).T[::-1]))
    assert headings[-1] - headings[0] == pytest.approx(2.0 * np.pi, abs=1e-6)  # once round, anticlockwise
    assert max(abs(loop.curvature(float(at))) for at in s[::20]) < 1.0 / 8.0


def lateral_m(scene: Scene, plan: Traversal) -> Array:
    """Distance to the left of the lane's middle, along a drive."""
    t = np.arange(0.0, plan.drive.duration_s, 0.5)
    s = plan.drive.start_m + plan.drive.driven(t)
    away = plan.drive.poses(t)[:, :2, 3] - scene.loop.point(s)
    return np.sum(away * scene.loop.normal(s), axis=1) - 1.5


def test_drives_differ_in_start_speed_light_and_lane(scene: Scene) -> None:
    plans = [plan_traversal(TownConfig(), scene, number) for number in range(5)]
    assert len({round(plan.drive.start_m) for plan in plans}) == 5
    assert len({plan.light for plan in plans}) == 5
    assert len({plan.light.sky for plan in plans}) == 3
    for plan in plans:
        t = np.arange(0.0, plan.drive.duration_s, 0.05)
        speed = np.diff(plan.drive.driven(t)) / 0.05
        assert speed.min() > 5.9
        assert speed.max() < 10.1
        assert 0.3 < np.abs(lateral_m(scene, plan)).max() < 1.21
        assert plan.drive.driven(np.array(plan.drive.duration_s)) == pytest.approx(1.1 * 350.0)


def drift_over(poses_N44: Array, steps: Array, length_m: float) -> float:
    """Mean error of relative poses over a length, as a share of it."""
    odometry = [np.eye(4)]
    for step in steps:
        odometry.append(odometry[-1] @ step)
    stereo = poses_N44 @ (AXES @ inverse(mounting("ins")))
    driven = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(stereo[:, :3, 3], axis=0), axis=1))])
    errors = []
    for i in range(0, len(driven), 5):
        j = int(np.searchsorted(driven, driven[i] + length_m))
        if j < len(driven):
            wrong = inverse(inverse(stereo[i]) @ stereo[j]) @ (inverse(odometry[i]) @ odometry[j])
            errors.append(float(np.linalg.norm(wrong[:3, 3])) / length_m)
    return float(np.mean(errors))


def test_odometry_drifts_as_asked(scene: Scene) -> None:
    plan = plan_traversal(TownConfig(), scene, 0)
    poses = plan.poses(plan.stamps_us["stereo"])

    def mean_drift(drift: VoDrift) -> float:
        return float(
            np.mean([
                drift_over(poses, visual_odometry(np.random.default_rng(k), poses, mounting("ins"), drift), 100.0)
                for k in range(6)
            ])
        )  # fmt: skip

    assert mean_drift(VoDrift(scale=0.0, yaw_rad_per_m=0.0, noise_m=0.0, noise_rad=0.0)) < 1e-9
    assert 0.01 < mean_drift(VoDrift()) < 0.02
    assert 0.035 < mean_drift(LOOP_DRIFT) < 0.045


def test_bayer_samples_demosaic_to_their_colours() -> None:
    rgb = np.empty((16, 16, 3), dtype=np.uint8)
    rgb[:] = (200, 100, 30)
    raw = mosaic(rgb).astype(np.uint8)
    image = RawImage(0, "camera", 16, 16, "bayer_gbrg8", 16, False, raw.tobytes())
    assert (decode_image(image) == rgb).all()


def test_images_are_rich_and_differ_between_drives(town: Path) -> None:
    looks = []
    for name in ("traversal_00", "traversal_01"):
        events = RobotCarRecording(town / name, lidar="none").events()
        image = decode_image(next(event.payload for event in events if event.kind is EventKind.IMAGE)).astype(float)
        assert image.shape == (240, 320, 3)
        assert image.std() > 25.0
        looks.append(image.mean(axis=(0, 1)))
    assert np.abs(looks[0] - looks[1]).max() > 3.0


def test_lidar_looks_forward() -> None:
    rays = lidar_rays(TownConfig())
    assert rays.shape == (32 * 200, 3)
    assert np.allclose(np.linalg.norm(rays, axis=1), 1.0)
    assert (rays[:, 0] > 0.5).all()


def test_bad_requests_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    full = tmp_path / "mine"
    full.mkdir()
    (full / "thesis.tex").write_text("years of work")
    with pytest.raises(DatasetError, match="is no town"):
        run_town(full, progress=False)
    with pytest.raises(ConfigError, match="traversals"):
        run_town(tmp_path / "new", traversals=0, progress=False)
    with pytest.raises(ConfigError, match="did you mean 'rings'"):
        run_town(tmp_path / "new", ring=3, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    assert (full / "thesis.tex").read_text() == "years of work"
    with pytest.raises(DatasetError, match="cannot be written"):
        run_town(full / "thesis.tex" / "town", laps=LAPS, workers=1, progress=False)
