"""What all tests share: few threads, a ROS graph of their own, the shared recordings."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys
import tempfile
from pathlib import Path
from typing import IO

import pytest
from hypothesis import settings

PROJECT = Path(__file__).resolve().parents[1]
SHARED_DATA = PROJECT / "../shared/data"

# Before numpy, torch and OpenCV are imported: on two cores more threads only make the tests wait for each other.
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OPENCV_FOR_THREADS_NUM"):
    os.environ.setdefault(_name, "1")
os.environ.setdefault("MPLBACKEND", "Agg")

# The same examples in every run: a failure found by chance belongs into the law's own examples, not into somebody
# else's build. Time limits are pytest's business.
settings.register_profile("vmloc", deadline=None, derandomize=True, database=None, print_blob=False)
settings.load_profile("vmloc")

_domain_lock: IO[bytes] | None = None


def _claim_domain() -> int:
    """A ROS domain that no other test session on this machine uses, held by a file lock until the process ends.

    Domains up to 101 are safe on Linux: the ports of higher ones lie among those that the kernel hands out.
    """
    global _domain_lock
    folder = Path(tempfile.gettempdir()) / f"vmloc_ros_domains_{os.getuid()}"
    folder.mkdir(exist_ok=True)
    for domain in range(1, 102):
        lock = (folder / str(domain)).open("ab")
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _domain_lock = lock
            return domain
        lock.close()
    raise pytest.UsageError(f"all ROS domains are taken by other test sessions ({folder})")


def pytest_configure(config: pytest.Config) -> None:
    """Gives this session, and the processes it starts, a ROS graph that nobody else sees."""
    os.environ["ROS_DOMAIN_ID"] = str(_claim_domain())
    os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
    for name in ("ROS_STATIC_PEERS", "ROS_LOCALHOST_ONLY", "ROS_NAMESPACE"):
        os.environ.pop(name, None)
    os.environ.setdefault("ROS_LOG_DIR", tempfile.mkdtemp(prefix="vmloc_ros_log_"))
    profile = PROJECT / "config" / "fastdds.xml"
    if profile.is_file():
        os.environ.setdefault("FASTDDS_DEFAULT_PROFILES_FILE", str(profile))
    if (Path(sys.prefix) / "share" / "ament_index").is_dir():  # pytest was started without the environment script
        os.environ.setdefault("AMENT_PREFIX_PATH", sys.prefix)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Gives the domain back."""
    if _domain_lock is not None:
        _domain_lock.close()


@pytest.fixture(scope="session", autouse=True)
def _few_threads() -> None:
    """OpenCV does not read OMP_NUM_THREADS in every build; torch does."""
    import cv2

    cv2.setNumThreads(1)


@pytest.fixture(scope="session")
def project_root() -> Path:
    """The checkout's root."""
    return PROJECT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of shared recordings beside the checkout; tests that need it are skipped where it is not."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"the shared recordings are not here: {SHARED_DATA}")
    return SHARED_DATA
