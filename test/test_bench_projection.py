"""The benchmark times two ways to the same result; a fast wrong answer would be no feat."""

from __future__ import annotations

import numpy as np

from vmloc_ros.accumulation import accumulate
from vmloc_ros.clouds import Cloud
from vmloc_ros.commands import bench_projection as bench
from vmloc_ros.config import ProjectionConfig
from vmloc_ros.projection import project_cylindrical, project_pinhole

RNG = np.random.default_rng(4)


def test_references_agree_with_what_is_timed() -> None:
    optical = RNG.uniform([-30, -20, 1], [30, 20, 60], (5000, 3)).astype(np.float32)
    ours = project_pinhole(optical, bench.CAMERA, 0.5, 80.0)
    assert (ours == bench.pinhole_reference(optical, bench.CAMERA, 0.5, 80.0)).mean() > 0.9999
    around = RNG.uniform([-40, -40, -3], [40, 40, 3], (5000, 3)).astype(np.float32)
    difference = project_cylindrical(around, 256, 32) - bench.cylindrical_reference(around, 256, 32)
    assert (np.abs(difference) < 1e-4).mean() > 0.999  # but for rounding on a pixel's edge
    cloud = Cloud(0, "lidar", around, np.sort(RNG.integers(0, bench.SWEEP_NS, 5000)))
    moved = accumulate([cloud], 30_000_000, bench._odometry(), np.eye(4), ProjectionConfig()).xyz_base_N3
    np.testing.assert_allclose(moved, bench.deskew_reference(cloud, 30_000_000, bench._odometry()), atol=1e-3)


def test_rows_say_what_was_measured() -> None:
    rows = bench.bench_projection(points=500, repeats=2)
    assert len({row.name for row in rows}) == len(rows) == 3
    for row in rows:
        assert row.ms > 0
        assert row.reference_ms > 0
        assert row.ratio == row.reference_ms / row.ms
