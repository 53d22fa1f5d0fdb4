"""What only a GPU can show, in one go: `python -m tests.bench gpu --out DIR --minutes 8`.

Most telling first, each part in a process of its own with its own share of the time; what a part
leaves goes to those behind it. `DIR/summary.md` and `summary.json` are written after every part, so
that a machine may be taken away at any time; `DIR/<part>.log` is what it printed.

- `parity`: the GPU tests of the kernels and of the extraction (pytest -m gpu);
- `sanitizer`: one small case of each kernel path under compute-sanitizer, where that is installed;
- `extraction`: wav2vec2-large and roberta-large of random weights over lengths like MELD's, from
  generated waveforms and tokens, against a loop of transformers in fp16, with the device's share of
  busy time;
- `drkf`: 30 epochs and 5 seeds on features of MELD's shape;
- `contrastive`: the loss against eager, compiled and CUDA-graphed peers;
- `tiles`: the launcher's tiles and paths against their neighbours.

It needs PyTorch and the pinned packages; a part that lacks one says so. It runs from a plain copy
of the tree: no git (MER_COMMIT names the commit), no pip, and nothing of what only decoding and the
command line need. `--tiny` is a dry run on the CPU, for its own tests.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.bench.machine import describe

ROOT = Path(__file__).parents[2]
END_SECONDS = 3  # what a part is given to end by itself, after its own time
LEAST_SECONDS = 5  # with less a part is not begun
LOG_BYTES = 4000  # of a part that failed, in the summary


@dataclass(frozen=True)
class Part:
    """`share` of the minutes; those of all parts are 1."""

    name: str
    share: float


PARTS = (
    Part("parity", 0.20),
    Part("sanitizer", 0.08),
    Part("extraction", 0.26),
    Part("drkf", 0.20),
    Part("contrastive", 0.20),
    Part("tiles", 0.06),
)


# ---- The parent: starts the parts and writes down what came of them


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--parts", default=",".join(part.name for part in PARTS))
    parser.add_argument("--tiny", action="store_true", help="a dry run on the CPU")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    options.out = options.out.resolve()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.part:
        from tests.bench import gpu_parts

        gpu_parts.run(options.part, options.out, options.seconds, tiny=options.tiny)
        return
    wanted = options.parts.split(",")
    if unknown := sorted(set(wanted) - {part.name for part in PARTS}):
        raise SystemExit(f"no such part: {', '.join(unknown)}")
    if not options.tiny and not has_gpu():
        raise SystemExit("no CUDA device here; --tiny is a dry run on the CPU")
    parts = [part for part in PARTS if part.name in wanted]
    run_all(parts, options.out, 60 * options.minutes, tiny=options.tiny, command=" ".join(argv))


def has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def run_all(parts: list[Part], out: Path, seconds: float, *, tiny: bool, command: str) -> None:
    begun, told = time.monotonic(), []
    head = {"command": f"python -m tests.bench gpu {command}", "machine": describe()}
    with import_name() as paths:
        for number, part in enumerate(parts):
            # by its place among all, so that what others left over is used
            spent = time.monotonic() - begun
            weight = part.share / sum(other.share for other in parts[number:])
            limit = (seconds - spent) * weight
            told.append(one(part, out, limit, tiny, paths) | {"limit_s": round(limit, 1)})
            write_summary(out, {**head, "parts": told})
            print(line(told[-1]), flush=True)
    print(f"wrote {out / 'summary.md'}")


def one(part: Part, out: Path, limit: float, tiny: bool, paths: str) -> dict:
    """Run a part for at most `limit` seconds; what it had written by then stays."""
    said = {"part": part.name}
    if limit < LEAST_SECONDS:
        return said | {"ended": "not begun: no time left", "seconds": 0.0}
    (out / f"{part.name}.json").unlink(missing_ok=True)
    command = [sys.executable, "-m", "tests.bench", "gpu", "--out", str(out)]
    command += ["--part", part.name, "--seconds", str(limit - END_SECONDS)]
    command += ["--tiny"] if tiny else []
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


# ---- The summary


def line(said: dict) -> str:
    rows = len(said.get("rows", []))
    return f"{said['part']:12} {said['seconds']:6.1f} s  {said['ended']}, {rows} rows"


def write_summary(out: Path, found: dict) -> None:
    replace(out / "summary.json", json.dumps(found, indent=1) + "\n")
    machine = found["machine"]
    text = [
        f"# {machine['gpu'] or 'dry run on the CPU: no figures of a GPU'}",
        "",
        f"`{found['command']}` at {machine['commit']}; "
        + ", ".join(f"{name} {version}" for name, version in machine["versions"].items()),
    ]
    for said in found["parts"]:
        text += ["", f"## {said['part']}", "", f"{said['ended']}, {said['seconds']} s"]
        rows = said.get("rows", [])
        for kind in dict.fromkeys(tuple(row) for row in rows):
            text += ["", *table([row for row in rows if tuple(row) == kind])]
        if "log" in said:
            text += ["", "```text", said["log"].strip(), "```"]
    replace(out / "summary.md", "\n".join(text) + "\n")


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
