"""The steps of a set-up: what is done, what has to be done again, and how that is remembered.

Each step has a key: a hash of what it reads, chained to the step before. A key is written only after its step has
ended, so a run that was interrupted goes on where it stopped, a second run has nothing to do, and a change of what a
step reads redoes the steps from there on.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
STATE = VENV / "setup_state.json"
LOG = VENV / "setup.log"


@dataclass(frozen=True)
class Step:
    """One part of the set-up. `inputs` are the files and folders whose content decides whether it is still valid."""

    name: str
    title: str
    run: Callable[[], None]
    inputs: tuple[Path, ...] = ()
    values: tuple[str, ...] = field(default=())


def files_in(paths: tuple[Path, ...]) -> Iterator[Path]:
    for path in paths:
        if path.is_dir():
            yield from (p for p in sorted(path.rglob("*")) if p.is_file() and "__pycache__" not in p.parts)
        elif path.is_file():
            yield path


def step_keys(steps: list[Step]) -> dict[str, str]:
    """The key of every step: a digest of the steps up to it and of their inputs."""
    digest = hashlib.sha256()
    keys: dict[str, str] = {}
    for step in steps:
        digest.update("\0".join((step.name, *step.values)).encode())
        for path in files_in(step.inputs):
            digest.update(str(path.relative_to(ROOT)).encode() + b"\0")
            digest.update(hashlib.sha256(path.read_bytes()).digest())
        keys[step.name] = digest.copy().hexdigest()
    return keys


def read_state() -> dict[str, str]:
    """Keys of the steps that are done; empty where there is no environment or the file is not readable."""
    try:
        state = json.loads(STATE.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return state if isinstance(state, dict) else {}


def write_state(state: Mapping[str, str]) -> None:
    partial = STATE.with_suffix(".part")
    partial.write_text(json.dumps(state, indent=1), encoding="utf-8")
    os.replace(partial, STATE)


def run_steps(steps: list[Step]) -> None:
    """Runs the steps whose keys differ from the recorded ones, and every step after the first such."""
    keys = step_keys(steps)
    state = read_state()
    first = next((k for k, step in enumerate(steps) if state.get(step.name) != keys[step.name]), None)
    if first is None:
        return
    started = time.monotonic()
    print(f"Setting up the environment in {VENV.relative_to(ROOT)} (details: {LOG.relative_to(ROOT)})", flush=True)
    done = {step.name: keys[step.name] for step in steps[:first]}
    if VENV.is_dir():
        write_state(done)  # what comes now is not valid until it has ended
    for number, step in enumerate(steps[first:], first + 1):
        print(f"[{number}/{len(steps)}] {step.title}", flush=True)
        step.run()
        done[step.name] = keys[step.name]
        write_state(done)
    print(f"The environment is ready ({time.monotonic() - started:.0f} s).", flush=True)
