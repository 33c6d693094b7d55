"""Keeps the last good pose on disk, and starts the filter from it: `saved_pose` as the pipeline uses it.

The file is written by a thread of its own, so that neither odometry nor the network ever waits for a disk. What cannot
be written or used is said and counted, and localization goes on.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

from vmloc_ros.config import LocalizerConfig
from vmloc_ros.errors import GeometryError, SavedPoseError
from vmloc_ros.fusion import Fusion
from vmloc_ros.geometry import Array
from vmloc_ros.outputs import Note
from vmloc_ros.saved_pose import (
    SavedPose,
    check_age,
    check_origin,
    continued,
    read_saved_pose,
    saved_pose,
    write_saved_pose,
)
from vmloc_ros.trajectory import NANOSECONDS
from vmloc_ros.types import FusedState, OdometrySample, Verdict

PATIENCE_S = 2.0
"""At the end a disk that does not answer is waited for so long."""
COUNTED = ("used", "refused", "written", "failed")


class PoseKeeper:
    """See the module's docstring. Without `saved_pose.path` it does nothing.

    One thread at a time may call it (the pipeline holds its lock); the disk's thread is its own.

    Attributes:
        waiting: a pose was read and waits for the first odometry.
        refusal: why the saved pose was not used; empty where it was, or where there was none.
        failure: why the last writing failed; empty when it did not.
    """

    def __init__(self, config: LocalizerConfig, model_sha256: str, tell: Callable[[Note], None]) -> None:
        """
        Args:
            config: everything that can be told.
            model_sha256: of the model's weights: the map is theirs.
            tell: takes notes for the log, from any thread.
        """
        self._config = config
        self._path = Path(config.saved_pose.path).expanduser() if config.saved_pose.path else None
        self._model_sha256 = model_sha256
        self._tell = tell
        self._counts = Counter(dict.fromkeys(COUNTED, 0))
        self._every_ns = round(config.saved_pose.every_s * NANOSECONDS)
        self._latest: tuple[FusedState, Array] | None = None
        self._handed_ns: int | None = None
        self._wake = threading.Condition()
        self._task: Callable[[], None] | None = None
        self._stopping = False
        self._thread: threading.Thread | None = None
        self._saved: SavedPose | None = None
        self.used_ns: int | None = None
        self.refusal = ""
        self.failure = ""
        if self._path is not None:
            self._read(self._path)

    @property
    def waiting(self) -> bool:
        return self._saved is not None

    def counters(self) -> dict[str, int]:
        """`saved_pose.used`, `.refused`, `.written`, `.failed`; empty where no pose is kept."""
        return {} if self._path is None else {f"saved_pose.{name}": self._counts[name] for name in COUNTED}

    def problems(self) -> dict[str, str]:
        """`saved_pose_refused`, `saved_pose_failed`, where there is something to say."""
        both = {"saved_pose_refused": self.refusal, "saved_pose_failed": self.failure}
        return {name: text for name, text in both.items() if text}

    # ------------------------------------------------------------------------------------------------------- the start

    def _read(self, path: Path) -> None:
        try:
            saved = read_saved_pose(path)
            if saved is not None:
                check_origin(saved, self._model_sha256, self._config.frames, path)
            self._saved = saved
        except SavedPoseError as error:
            self._refuse(str(error))

    def _refuse(self, reason: str) -> None:
        self._saved = None
        self._counts["refused"] += 1
        self.refusal = f"saved pose not used: {reason}"
        self._tell(Note(self.refusal, warning=True))

    def resume(self, sample: OdometrySample, fusion: Fusion) -> None:
        """Starts the filter from the saved pose, at its first odometry sample, which it has just taken.

        A pose that is there already, set by hand or measured, wins over the saved one.
        """
        saved, self._saved = self._saved, None
        if saved is None or self._path is None:
            return
        if fusion.state() is not None:
            self._tell(Note("saved pose not needed: there is a newer one"))
            return
        try:
            age_s = check_age(saved, sample.stamp_ns, self._config.saved_pose, self._path)
        except SavedPoseError as error:
            self._refuse(str(error))
            return
        pose, how = continued(saved, sample, self._config.filter)
        result = fusion.set_pose(pose)
        if result.verdict is not Verdict.FUSED:
            self._refuse(f"{self._path}: {result.verdict.value}: {result.reason}")
            return
        self._counts["used"] += 1
        self.used_ns = sample.stamp_ns
        self._tell(Note(f"saved pose of {age_s:.1f} s ago used; {how}"))

    # --------------------------------------------------------------------------------------------------- while it runs

    def offer(self, state: FusedState, T_odom_base: Array) -> None:
        """A good pose, and the odometry's at the same stamp; it is written when the last one is `every_s` of data old.

        Neither array may be changed afterwards.
        """
        if self._path is None:
            return
        self._latest = (state, T_odom_base)
        if self._handed_ns is None or not 0 <= state.stamp_ns - self._handed_ns < self._every_ns:
            self._hand_over(self._path, state, T_odom_base)

    def _hand_over(self, path: Path, state: FusedState, T_odom_base: Array) -> None:
        self._handed_ns = state.stamp_ns
        self._give(partial(self._write, path, state, T_odom_base))

    def forget(self) -> None:
        """The pose was given up by hand (`~/reset`): a start must not bring it back."""
        self._saved = self._latest = self._handed_ns = None
        if self._path is not None:
            self._give(partial(self._remove, self._path))

    def finish(self) -> None:
        """Writes the last good pose and ends the thread; a disk that hangs is not waited for for ever.

        Nothing is written afterwards.
        """
        if self._path is not None and self._latest is not None and self._latest[0].stamp_ns != self._handed_ns:
            self._hand_over(self._path, *self._latest)
        with self._wake:
            self._stopping = True
            self._wake.notify()
        if self._thread is None:
            return
        self._thread.join(PATIENCE_S)
        if self._thread.is_alive():
            self._failed(f"saved pose: {self._path} was not written within {PATIENCE_S:g} s; the disk does not answer")

    # --------------------------------------------------------------------------------------------------- its own thread

    def _give(self, task: Callable[[], None]) -> None:
        """Hands the thread its next task; one that it has not begun gives way."""
        with self._wake:
            if self._stopping:
                return
            self._task = task
            self._wake.notify()
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="saved pose", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while True:
            with self._wake:
                while self._task is None and not self._stopping:
                    self._wake.wait()
                task, self._task = self._task, None
            if task is None:
                return
            task()

    def _write(self, path: Path, state: FusedState, T_odom_base: Array) -> None:
        try:
            write_saved_pose(path, saved_pose(state, T_odom_base, self._model_sha256, self._config.frames))
        except (GeometryError, ValueError) as error:
            why = " ".join(str(error).split())
            self._failed(f"saved pose: that of {state.stamp_ns / NANOSECONDS:.3f} s is not good enough to keep: {why}")
            return
        except OSError as error:
            self._failed(
                f"saved pose: {path} cannot be written ({error.strerror or error}); free the disk, make the folder "
                "writable, or set saved_pose.path elsewhere"
            )
            return
        with self._wake:
            self._counts["written"] += 1
            self.failure = ""

    def _remove(self, path: Path) -> None:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            self._failed(f"saved pose: {path} cannot be removed ({error.strerror or error}); delete it by hand")

    def _failed(self, failure: str) -> None:
        """Counts every failure, and says it when it is the first in a row."""
        with self._wake:
            self._counts["failed"] += 1
            first, self.failure = not self.failure, failure
        if first:
            self._tell(Note(failure, warning=True))
