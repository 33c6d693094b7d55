"""A drive of KITTI raw (synchronised and rectified), in the folders that its publishers ship, as a `Recording`.

base_link is the Velodyne (x forward, y left, z up), camera 02 is the camera. The map is east, north, up, with its
origin at the drive's first OXTS packet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vmloc_ros.datasets.base import Timeline
from vmloc_ros.datasets.kitti_files import (
    NO_STAMP,
    OxtsPacket,
    T_map_imu,
    imu_from_velo,
    read_calibration,
    read_oxts,
    read_scan,
    read_timestamps,
    turn_fraction,
)
from vmloc_ros.datasets.parts import WHOLE, Part
from vmloc_ros.datasets.scan_matching import ScanMatcher
from vmloc_ros.datasets.skips import Skips
from vmloc_ros.errors import DatasetError
from vmloc_ros.geometry import Array, adjoint, exp_se3, inverse
from vmloc_ros.trajectory import NANOSECONDS, Trajectory
from vmloc_ros.types import (
    CameraInfo,
    EncodedImage,
    Event,
    EventKind,
    OdometrySample,
    PointField,
    RawCloud,
    StaticTransform,
)

MAP, ODOM, BASE, CAMERA, LIDAR = "map", "odom", "base_link", "camera_optical", "lidar"
ODOMETRIES = ("oxts", "kiss-icp", "none")
FIELDS = tuple(PointField(name, 4 * k, 7, 1) for k, name in enumerate(("x", "y", "z", "intensity", "time")))
INTEGRATED_GAP_S = 1.0
"""Between OXTS packets further apart the velocity is not integrated: the odometry is silent, and stands still."""
TRUTH_GAP_S = 0.5


class KittiRecording:
    """One drive: `KittiRecording(folder)` implements `datasets.base.Recording`.

    Images pass as the files are (PNG). Points carry a time from the scanner's azimuth and the turn's beginning and end,
    so that they can be de-skewed; a cloud's stamp is when the scanner looked forward. Odometry "oxts" integrates the
    inertial system's velocities and turn rates (not its positions): it is smooth and drifts, as wheels and a gyroscope
    do. "kiss-icp" registers the scans (library `kiss-icp`), each pose at its scan's end.

    Args:
        folder: `2011_09_26_drive_0009_sync`.
        odometry: one of `ODOMETRIES`.
        calibration: folder of the calib_*.txt; by default the drive's parent.
        start_s, duration_s: what part to read, in seconds from the drive's first image or scan.
        point_times: give points their times.
        origin: latitude (deg), longitude (deg), altitude (m) of the map's origin, to put several drives into one map.

    Raises:
        DatasetError: no such folder, no calibration, or neither images nor scans.
    """

    def __init__(
        self,
        folder: Path,
        odometry: str = "oxts",
        calibration: Path | None = None,
        start_s: float = 0.0,
        duration_s: float | None = None,
        point_times: bool = True,
        origin: tuple[float, float, float] | None = None,
    ) -> None:
        self._again = partial(KittiRecording, folder, odometry, calibration, start_s, duration_s, point_times)
        self.folder = Path(folder)
        self.name = self.folder.resolve().name
        if odometry not in ODOMETRIES:
            raise DatasetError(f"odometry {odometry!r} is not one of {', '.join(ODOMETRIES)} (KITTI)")
        if not self.folder.is_dir():
            raise DatasetError(f"{self.folder}: is not a folder; give a drive, such as 2011_09_26_drive_0009_sync")
        self.odometry = odometry
        self.skips = Skips(str(self.folder))
        self._promised = 0
        self._calibration = read_calibration(calibration or self.folder.resolve().parent)
        self._images = self._list("image_02", ".png")
        self._scans = self._list("velodyne_points", ".bin")
        self._turns = self._read_turns() if point_times or odometry == "kiss-icp" else {}
        self._point_times = point_times
        packets = self._read_packets()
        first = next(iter(packets.values()), None)
        self.origin = origin or ((first.lat_deg, first.lon_deg, first.alt_m) if first else None)
        self._truth = self._place(packets)
        self._cut(start_s, duration_s)
        self._oxts = self._integrate({s: p for s, p in packets.items() if self._begin_ns <= s <= self._end_ns})
        self._matched: dict[int, Array] = {}
        self.skips.keep()

    # ------------------------------------------------------------------------------------------------- the protocol

    @property
    def skipped(self) -> dict[str, int]:
        """What was left out, by reason."""
        return self.skips.by_reason()

    def static_transforms(self) -> list[StaticTransform]:
        """Camera 02 (rectified, its own optical centre) and the lidar, which is the base itself."""
        T_base_camera = inverse(self._calibration.T_camera_velo)
        return [StaticTransform(BASE, CAMERA, T_base_camera), StaticTransform(BASE, LIDAR, np.eye(4))]

    def events(self, part: Part = WHOLE) -> Iterator[Event]:
        """Odometry, clouds, camera_info and images, sorted by stamp; files are read when their turn comes."""
        self.skips.restart(part)
        queue: list[tuple[int, int, int]] = [(stamp, 1, index) for index, stamp in self._scans.items()]
        queue += [(stamp, 2, index) for index, stamp in self._images.items()]
        if self.odometry == "oxts":
            queue += [(stamp, 0, k) for k, (stamp, _, _) in enumerate(self._oxts)]
        elif self.odometry == "kiss-icp":
            queue += [(self._turn(index)[1], 3, index) for index in self._scans]
        match = self._matcher() if self.odometry == "kiss-icp" else None
        for stamp_ns, kind, index in sorted(entry for entry in queue if part.reads(entry[0])):
            if kind == 0:
                _, T_odom_base, twist_6 = self._oxts[index]
                sample = OdometrySample(stamp_ns, ODOM, BASE, T_odom_base, twist_6)
                yield Event(EventKind.ODOMETRY, stamp_ns, sample)
            elif kind == 1:
                yield from self._cloud(stamp_ns, index)
            elif kind == 2:
                yield from self._image(stamp_ns, index)
            elif match is not None and (pose := match(index)) is not None:
                yield Event(EventKind.ODOMETRY, stamp_ns, OdometrySample(stamp_ns, ODOM, BASE, pose))

    def event_count(self) -> int:
        """How many events `events` gives at most."""
        odometry = {"oxts": len(self._oxts), "kiss-icp": len(self._scans), "none": 0}[self.odometry]
        return odometry + len(self._scans) + 2 * len(self._images)

    def timeline(self) -> Timeline:
        """Stamps of images, scans and integrated odometry; empty for scan matching, which must see every scan."""
        if self.odometry == "kiss-icp":
            return {}
        return {
            EventKind.IMAGE: np.array(list(self._images.values()), dtype=np.int64),
            EventKind.CLOUD: np.array(list(self._scans.values()), dtype=np.int64),
            EventKind.ODOMETRY: np.array(
                [stamp for stamp, _, _ in self._oxts] if self.odometry == "oxts" else [], dtype=np.int64
            ),
        }

    def file_count(self) -> int:
        """Images, scans and OXTS packets, of the whole drive."""
        return self._promised

    def again(self) -> Callable[[], KittiRecording]:
        """Opens the same recording once more, in the same map."""
        return partial(self._again, origin=self.origin)

    def truth(self) -> Trajectory:
        """`T_map_base` (the Velodyne) of the OXTS packets of the whole drive.

        Raises:
            DatasetError: not one usable packet.
        """
        if self._truth is None:
            raise DatasetError(f"{self.folder / 'oxts'}: holds no usable packet")
        return self._truth

    def card(self) -> dict[str, object]:
        """Origin, axes, odometry, licence."""
        lat, lon, alt = self.origin or (None, None, None)
        return {
            "dataset": "KITTI raw",
            "drive": self.name,
            "origin": {"latitude_deg": lat, "longitude_deg": lon, "altitude_m": alt},
            "axes": "map: east, north, up (Mercator at the origin); base_link: Velodyne, x forward, y left, z up",
            "gravity_aligned": True,
            "odometry": {
                "oxts": "integrated OXTS velocities and turn rates",
                "kiss-icp": "KISS-ICP on the Velodyne scans",
                "none": "none",
            }[self.odometry],
            "licence": "KITTI: CC BY-NC-SA 3.0",
        }

    # ------------------------------------------------------------------------------------------------- construction

    def _list(self, part: str, suffix: str) -> dict[int, int]:
        """Index to stamp of the files that are both promised by timestamps.txt and there."""
        folder = self.folder / part
        if not folder.is_dir():
            self.skips.add("parts of the drive missing", part)
            return {}
        stamps = read_timestamps(folder / "timestamps.txt").tolist()
        found = {int(p.stem) for p in (folder / "data").glob(f"*{suffix}") if p.stem.isdigit()}
        dated = {index for index, stamp in enumerate(stamps) if stamp != NO_STAMP}
        self._promised += len(found | set(range(len(stamps))))
        if missing := sorted(set(range(len(stamps))) - (found & dated)):
            self.skips.add(f"{part} files missing", f"{missing[0]:010d}{suffix}", len(missing), broken=True)
        if undated := sorted(found - dated):
            self.skips.add(f"{part} files without a timestamp", f"{undated[0]:010d}{suffix}", len(undated), broken=True)
        return {index: stamps[index] for index in sorted(found & dated)}

    def _file(self, part: str, index: int, suffix: str) -> Path:
        return self.folder / part / "data" / f"{index:010d}{suffix}"

    def _read_turns(self) -> dict[int, tuple[int, int]]:
        """Beginning and end of every turn of the scanner."""
        folder = self.folder / "velodyne_points"
        if not self._scans:
            return {}
        try:
            starts = read_timestamps(folder / "timestamps_start.txt").tolist()
            ends = read_timestamps(folder / "timestamps_end.txt").tolist()
        except DatasetError as error:
            self.skips.add("times of points missing", str(error))
            return {}
        turns = enumerate(zip(starts, ends, strict=False))
        return {i: (start, end) for i, (start, end) in turns if NO_STAMP < start < end}

    def _turn(self, index: int) -> tuple[int, int]:
        return self._turns.get(index, (self._scans[index], self._scans[index]))

    def _read_packets(self) -> dict[int, OxtsPacket]:
        packets: dict[int, OxtsPacket] = {}
        newest_ns = -1
        for index, stamp_ns in self._list("oxts", ".txt").items():
            try:
                packet = read_oxts(self._file("oxts", index, ".txt"))
            except DatasetError as error:
                self.skips.add("oxts packets unusable", str(error), broken=True)
                continue
            if stamp_ns <= newest_ns:
                self.skips.add("oxts packets out of order", f"{index:010d}.txt")
                continue
            newest_ns = stamp_ns
            packets[stamp_ns] = packet
        return packets

    def _place(self, packets: dict[int, OxtsPacket]) -> Trajectory | None:
        if not packets or self.origin is None:
            return None
        T_imu_velo = imu_from_velo(self._calibration)
        poses = np.array([T_map_imu(packet, self.origin) @ T_imu_velo for packet in packets.values()])
        return Trajectory(np.array(list(packets), dtype=np.int64), poses, TRUTH_GAP_S)

    def _integrate(self, packets: dict[int, OxtsPacket]) -> list[tuple[int, Array, Array]]:
        """(stamp, `T_odom_base`, twist of the base) by the mean twist between neighbours."""
        T_velo_imu, T_imu_velo = self._calibration.T_velo_imu, imu_from_velo(self._calibration)
        to_base = adjoint(T_velo_imu)
        T_odom_imu = np.eye(4)
        samples: list[tuple[int, Array, Array]] = []
        last: tuple[int, OxtsPacket] | None = None
        for stamp_ns, packet in packets.items():
            if last is not None:
                seconds = (stamp_ns - last[0]) / NANOSECONDS
                if seconds <= INTEGRATED_GAP_S:
                    mean_6 = 0.5 * (last[1].twist_imu_6 + packet.twist_imu_6)
                    T_odom_imu = T_odom_imu @ exp_se3(seconds * mean_6)
            samples.append((stamp_ns, T_velo_imu @ T_odom_imu @ T_imu_velo, to_base @ packet.twist_imu_6))
            last = stamp_ns, packet
        return samples

    def _cut(self, start_s: float, duration_s: float | None) -> None:
        stamps = [*self._images.values(), *self._scans.values()]
        if not stamps:
            raise DatasetError(f"{self.folder}: has neither images (image_02) nor scans (velodyne_points)")
        self._begin_ns = min(stamps) + round(start_s * NANOSECONDS)
        self._end_ns = max(stamps) if duration_s is None else self._begin_ns + round(duration_s * NANOSECONDS)
        self._images = {i: s for i, s in self._images.items() if self._begin_ns <= s <= self._end_ns}
        self._scans = {i: s for i, s in self._scans.items() if self._begin_ns <= s <= self._end_ns}
        if not self._images and not self._scans:
            raise DatasetError(f"{self.folder}: no image and no scan in the chosen part")
        if start_s == 0.0:  # the packet just before the first image lets poses at that image be interpolated
            self._begin_ns -= NANOSECONDS // 5
        if duration_s is None:
            self._end_ns += NANOSECONDS // 5

    # --------------------------------------------------------------------------------------------------- the payloads

    def _cloud(self, stamp_ns: int, index: int) -> Iterator[Event]:
        try:
            points = read_scan(self._file("velodyne_points", index, ".bin"))
        except DatasetError as error:
            self.skips.add("scans unusable", str(error), broken=True, stamp_ns=stamp_ns)
            return
        fields, step = FIELDS[:4], 16
        if self._point_times and index in self._turns:
            points = np.column_stack([points, self._times_s(points, index, stamp_ns)])
            fields, step = FIELDS, 20
        count = len(points)
        cloud = RawCloud(stamp_ns, LIDAR, 1, count, fields, False, step, step * count, points.astype("<f4").tobytes())
        yield Event(EventKind.CLOUD, stamp_ns, cloud)

    def _times_s(self, points: NDArray[np.float32], index: int, stamp_ns: int) -> NDArray[np.float32]:
        """Seconds from the cloud's stamp (N,)."""
        start, end = self._turns[index]
        times = (start - stamp_ns + turn_fraction(points[:, :3]).astype(np.float64) * (end - start)) / NANOSECONDS
        return times.astype(np.float32)

    def _image(self, stamp_ns: int, index: int) -> Iterator[Event]:
        path = self._file("image_02", index, ".png")
        try:
            content = path.read_bytes()
        except OSError as error:
            self.skips.add("images unreadable", f"{path.name} ({error})", broken=True, stamp_ns=stamp_ns)
            return
        if not content:
            self.skips.add("images empty", path.name, broken=True, stamp_ns=stamp_ns)
            return
        K, size = self._calibration.K_33, (self._calibration.height, self._calibration.width)
        P = np.column_stack([K, np.zeros(3)])
        info = CameraInfo(stamp_ns, CAMERA, *size, "plumb_bob", (0.0,) * 5, K, np.eye(3), P)
        yield Event(EventKind.CAMERA_INFO, stamp_ns, info)
        yield Event(EventKind.IMAGE, stamp_ns, EncodedImage(stamp_ns, CAMERA, "png", content))

    def _matcher(self) -> Callable[[int], Array | None]:
        """A function from a scan's index to `T_odom_base` at the scan's end; what was matched once is remembered."""
        order = list(self._scans)
        matcher: ScanMatcher | None = None
        fed = 0

        def pose(index: int) -> Array | None:
            nonlocal matcher, fed
            if index in self._matched:
                return self._matched[index]
            if matcher is None:
                matcher = ScanMatcher([scan for scan in map(self._scan_to_match, order[:2]) if scan])
            for earlier in order[fed : order.index(index) + 1]:
                fed += 1
                scan = self._scan_to_match(earlier)
                if scan is not None:
                    self._matched[earlier] = matcher.add(*scan)
            return self._matched.get(index)

        return pose

    def _scan_to_match(self, index: int) -> tuple[NDArray[np.float32], NDArray[np.float32] | None] | None:
        try:
            xyz_N3 = read_scan(self._file("velodyne_points", index, ".bin"))[:, :3]
        except DatasetError:
            return None  # counted where the cloud is given
        return xyz_N3, turn_fraction(xyz_N3) if index in self._turns else None
