"""`vmloc town`: a synthetic town in RobotCar's on-disk format."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from vmloc_ros.config import parse
from vmloc_ros.datasets.town import TownConfig, drive_numbers, traversal_name, write_town
from vmloc_ros.datasets.town_drive import VoDrift
from vmloc_ros.errors import DatasetError
from vmloc_ros.files import whole_folder, write_yaml
from vmloc_ros.progress import progress_bar


@dataclass(frozen=True)
class TownResult:
    """What was written."""

    folder: Path
    traversals: list[Path]
    facades: int
    files: int


def run_town(
    out: Path,
    seed: int = 1,
    traversals: int = 5,
    loop_m: float = 350.0,
    laps: float = 1.1,
    drift: VoDrift | None = None,
    workers: int | None = None,
    progress: bool = True,
    **options: int | float,
) -> TownResult:
    """Writes `out/traversal_00`, ... with `out/extrinsics`, `out/models` and `out/town.yaml` (the whole configuration).

    Args:
        drift: errors of the visual odometry (`town_drive.LOOP_DRIFT` is as bad as RobotCar's LOOP).
        workers: processes; by default one per core, at most eight. The result does not depend on it. They are
            spawned, so a script that calls this needs its `if __name__ == "__main__":`.
        options: further fields of `TownConfig`.

    Raises:
        DatasetError: `out` exists and is not an earlier town, or cannot be written.
        ConfigError: an option is unknown or out of its range.
    """
    out = Path(out)
    if out.exists() and not (out / "town.yaml").is_file() and (not out.is_dir() or any(out.iterdir())):
        raise DatasetError(f"{out}: exists and is no town; give another folder")
    values = {"seed": seed, "traversals": traversals, "loop_m": loop_m, "laps": laps, "drift": drift or VoDrift()}
    config = parse(TownConfig, {**values, **options}, "town")
    workers = min(8, len(os.sched_getaffinity(0))) if workers is None else workers
    try:
        with whole_folder(out) as folder, progress_bar(shown=progress) as bar:
            task = bar.add_task("town", total=None)
            files = 0

            def done(so_far: int, total: int) -> None:
                nonlocal files
                files = total
                bar.update(task, completed=so_far, total=total)

            scene = write_town(folder, config, workers, done)
            write_yaml(folder / "town.yaml", config.model_dump())
    except OSError as error:
        raise DatasetError(f"{out}: cannot be written ({error})") from error
    paths = [out / traversal_name(number) for number in drive_numbers(config)]
    return TownResult(out, paths, scene.facades, files)
