"""Benches of several parts, each in a process of its own with its own share of the time: one that
hangs or fails costs its share, and what it had written by then is kept.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
END_SECONDS = 3  # what a part is given to end by itself, after its own time
LEAST_SECONDS = 5  # with less a part is not begun
LOG_BYTES = 4000  # of a part that failed, in what is told


@dataclass(frozen=True)
class Part:
    """A part of a bench by its name; its share of the time, beside those of the others."""

    name: str
    share: float


def run_all(
    bench: str,
    parts: Sequence[Part],
    out: Path,
    seconds: float,
    tell: Callable[[list[dict]], None],
    *flags: str,
) -> None:
    """Run the parts within the seconds; what one leaves goes to those behind it.

    Args:
        bench: The `python -m tests.bench` that runs a part with `--part NAME --seconds S`.
        parts: In this order.
        out: The folder for `<part>.json`, a list of rows, and `<part>.log`.
        seconds: For all of them.
        tell: Is told after every part what came of those so far.
        flags: More words for every part.
    """
    begun, told = time.monotonic(), []
    with import_name() as paths:
        for number, part in enumerate(parts):
            spent = time.monotonic() - begun
            weight = part.share / sum(other.share for other in parts[number:])
            limit = (seconds - spent) * weight
            said = one(bench, part, out, limit, paths, *flags)
            told.append(said | {"limit_s": round(limit, 1)})
            tell(told)
            rows = len(said.get("rows", []))
            print(
                f"{part.name:12} {said['seconds']:6.1f} s  {said['ended']}, {rows} rows", flush=True
            )


def one(bench: str, part: Part, out: Path, limit: float, paths: str, *flags: str) -> dict:
    """Run a part for at most `limit` seconds."""
    said = {"part": part.name}
    if limit < LEAST_SECONDS:
        return said | {"ended": "not begun: no time left", "seconds": 0.0}
    (out / f"{part.name}.json").unlink(missing_ok=True)
    command = [sys.executable, "-m", "tests.bench", bench, "--out", str(out)]
    command += ["--part", part.name, "--seconds", str(limit - END_SECONDS), *flags]
    begun, log = time.monotonic(), out / f"{part.name}.log"
    environment = {**os.environ, "PYTHONPATH": paths, "PYTHONUNBUFFERED": "1"}
    environment |= {"HF_HUB_OFFLINE": "1", "MPLBACKEND": "svg"}
    with log.open("wb") as file:
        child = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = child.wait(limit)
            ended = "done" if code == 0 else f"failed (exit {code})"
        except subprocess.TimeoutExpired:
            ended = f"stopped after {limit:.0f} s; what it had written is kept"
        finally:
            end(child)
    said |= {"ended": ended, "seconds": round(time.monotonic() - begun, 1)}
    if ended.startswith("failed"):
        said["log"] = log.read_text(errors="replace")[-LOG_BYTES:]
    path = out / f"{part.name}.json"
    return said | {"rows": json.loads(path.read_text()) if path.exists() else []}


def end(child: subprocess.Popen) -> None:
    """End the part and all that it has started."""
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    child.wait()


@contextmanager
def import_name() -> Iterator[str]:
    """A search path on which this tree is called `mer`, with the version that it would have when it
    is installed.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    folder = Path(tempfile.mkdtemp(prefix="mer-name-"))
    try:
        (folder / "mer").symlink_to(ROOT, target_is_directory=True)
        about = folder / f"mer-{project['version']}.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: mer\nVersion: {project['version']}\n"
        )
        others = [path for path in [os.environ.get("PYTHONPATH", "")] if path]
        yield os.pathsep.join([str(folder), str(ROOT), *others])
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def table(rows: list[dict]) -> list[str]:
    """A table of rows that have the same columns."""
    cells = [[str(value).replace("|", "\\|") for value in row.values()] for row in rows]
    names = list(rows[0])
    lines = [names, ["---"] * len(names), *cells]
    return [" ".join(f"| {' | '.join(line)} |".split()) for line in lines]


def replace(path: Path, text: str) -> None:
    """Write a file so that it is never half there."""
    half = path.with_name(f".{path.name}.half")
    half.write_text(text, encoding="utf-8")
    os.replace(half, path)


def keeper(path: Path) -> Callable[[dict], None]:
    """Tells rows to whoever runs a part, one by one: they are kept if it is ended."""
    rows: list[dict] = []

    def keep(row: dict) -> None:
        rows.append(row)
        print("  ".join(f"{name}={value}" for name, value in row.items()), flush=True)
        replace(path, json.dumps(rows))

    return keep
