"""The trainings of a comparison, as processes: several at a time, resumed, never repeated without need."""

from __future__ import annotations

import os
import re
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from vmloc_ros import files
from vmloc_ros.checkpoint import load_card
from vmloc_ros.commands.processes import Child, Processes
from vmloc_ros.comparison import Run, same_training
from vmloc_ros.config import parse, read_yaml
from vmloc_ros.errors import CheckpointError, ConfigError
from vmloc_ros.training_config import TrainingConfig
from vmloc_ros.training_state import STATE

MARK = "run.yaml"
"""In a run's folder: which configuration and samples it is of, and whether it is finished."""
CONFIGS, LOGS = "configs", "logs"
ERROR_PREFIX = "vmloc: error: "
POLL_S = 0.2
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True)
class Mark:
    """What is known of a run's folder."""

    variant: str
    config: TrainingConfig
    samples: str
    finished: bool

    def fits(self, run: Run, samples: str) -> bool:
        """Whether the folder is of this training on these samples."""
        return self.samples == samples and same_training(run.config, self.config)


@dataclass(frozen=True)
class Job:
    """One training to do.

    Attributes:
        samples: key of its prepared samples.
        prepared: their folder.
        threads: of its process.
        resume: whether there is a checkpoint of the same training to go on from.
    """

    run: Run
    samples: str
    prepared: Path
    threads: int
    resume: bool


def read_mark(folder: Path) -> Mark | None:
    """The mark of a run's folder; None where there is none that can be understood."""
    path = folder / MARK
    try:
        content = read_yaml(path)
        config = parse(TrainingConfig, content["config"], str(path))
        return Mark(str(content["variant"]), config, str(content["samples"]), content["finished"] is True)
    except (ConfigError, KeyError):
        return None


def write_mark(folder: Path, job: Job, finished: bool) -> None:
    """Writes it, atomically."""
    config = job.run.config.model_copy(update={"threads": job.threads}).model_dump(mode="json")
    about = {"finished": finished, "variant": job.run.variant, "samples": job.samples, "config": config}
    files.write_yaml(folder / MARK, about)


def is_finished(run: Run, samples: str, folder: Path) -> bool:
    """Whether a run's folder holds the finished model of this very training."""
    mark = read_mark(folder)
    if mark is None or not mark.finished or not mark.fits(run, samples):
        return False
    try:
        load_card(folder)
    except CheckpointError:
        return False
    return True


def plan_job(run: Run, samples: str, prepared: Path, folder: Path, jobs: int) -> Job:
    """How a run that is not finished is trained: from its checkpoint where there is one of the same training.

    The cores are shared by the jobs. A training that goes on keeps its number of threads, which its result depends on.
    """
    threads = run.config.threads or max(1, len(os.sched_getaffinity(0)) // jobs)
    mark = read_mark(folder)
    resume = mark is not None and mark.fits(run, samples) and (folder / STATE).is_file()
    return Job(run, samples, prepared, mark.config.threads if mark is not None and resume else threads, resume)


def start(job: Job, data: Path, out: Path, children: Processes, options: Sequence[str]) -> Child:
    """Starts the process of a training: `vmloc train` on a configuration of its own."""
    name = job.run.name
    folder, config = out / name, out / CONFIGS / f"{name}.yaml"
    values: dict[str, Any] = job.run.config.model_copy(update={"threads": job.threads}).model_dump(mode="json")
    files.write_yaml(config, values)
    write_mark(folder, job, finished=False)
    arguments = [
        "train",
        str(config),
        "--data",
        str(data),
        "--out",
        str(folder),
        "--samples",
        str(job.prepared),
        *options,
    ]
    return children.start(name, [*arguments, "--resume"] if job.resume else arguments)


def reason_of(child: Child, status: int) -> str:
    """Why a training failed, from what it said last."""
    lines = [line.strip() for line in child.text().splitlines() if line.strip()]
    told = [line.removeprefix(ERROR_PREFIX) for line in lines if line.startswith(ERROR_PREFIX)]
    if told:
        return told[-1]
    if status < 0:
        return f"ended by signal {-status} (9: killed, perhaps for lack of memory); see {LOGS}/{child.log.name}"
    last = re.sub(r"\s+", " ", lines[-1]) if lines else "it said nothing"
    return f"exit status {status}: {last}; see {LOGS}/{child.log.name}"


def train_all(
    todo: Sequence[Job], data: Path, out: Path, jobs: int, console: Console, options: Sequence[str] = ()
) -> dict[str, str]:
    """Trains, `jobs` at a time, each in a process of its own; says when one starts and ends, and the time left.

    Args:
        options: further ones of `vmloc train`.

    Returns:
        By name of the run, why it failed; empty where all went well. Leaving early ends the processes; what they have
        written stays, and the next comparison goes on from there.
    """
    waiting, running = deque(todo), dict[str, tuple[Job, Child, float]]()
    failures: dict[str, str] = {}
    took_s: list[float] = []
    threads = str(max((job.threads for job in todo), default=1))
    environment = {**os.environ, **dict.fromkeys(THREAD_VARIABLES, threads)}
    with Processes(out / LOGS, environment) as children:
        while waiting or running:
            while waiting and len(running) < jobs:
                job = waiting.popleft()
                running[job.run.name] = job, start(job, data, out, children, options), time.monotonic()
                how = "going on with" if job.resume else "started"
                console.print(
                    f"{how} {job.run.name} ({len(todo) - len(waiting)} of {len(todo)}), {job.threads} threads"
                )
            time.sleep(POLL_S)
            for name, (job, child, started) in list(running.items()):
                status = child.process.poll()
                if status is None:
                    continue
                del running[name]
                took_s.append(time.monotonic() - started)
                if status == 0:
                    write_mark(out / name, job, finished=True)
                    console.print(f"finished {name} in {duration(took_s[-1])}; {left(took_s, running, waiting, jobs)}")
                else:
                    failures[name] = reason_of(child, status)
                    console.print(f"FAILED {name}: {failures[name]}", soft_wrap=True)
    return failures


def left(
    took_s: Sequence[float], running: dict[str, tuple[Job, Child, float]], waiting: Sequence[Job], jobs: int
) -> str:
    """The time that the rest will take, if every training takes as long as those before it."""
    usual_s = sum(took_s) / len(took_s)
    now = time.monotonic()
    work_s = usual_s * len(waiting) + sum(max(0.0, usual_s - (now - started)) for _, _, started in running.values())
    if not waiting and not running:
        return "that was the last"
    return f"{len(waiting) + len(running)} to go, about {duration(work_s / jobs)} left"


def duration(seconds: float) -> str:
    """`3 min 20 s`; `45 s`; `2 h 5 min`."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
