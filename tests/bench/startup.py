"""What a command costs before it does anything: processor seconds of whole processes beside those
of `python -c 'import torch'`, by turns, the least of each: `python -m tests.bench startup`.

The corpus is twelve clips of the synthetic one, the run a `concat` of one epoch. Processor time is
that of all threads; OMP_NUM_THREADS=1, as more threads spin without work to do.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.bench.machine import save

TORCH = [sys.executable, "-c", "import torch"]
QUICK = ("--model", "concat", "--set", "train.epochs=1")
# command -> the most seconds beyond `import torch` that are aimed at; None: no aim
AIMS = {
    "--help": None,
    "inspect feats.h5": None,
    "evaluate run": 1.0,
    "train feats.h5 --out new": None,
    "predict run CLIP --text hello": 1.5,
    "extract --dataset synthetic --size 12 --out new.h5": None,
}


def seconds(command: list[str], folder: Path) -> float:
    """Processor seconds of a process and all it has started."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()[-300:]}")
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def mer(*words: str) -> list[str]:
    return [sys.executable, "-m", "mer.cli", *words]


def words_of(command: str, clip: Path) -> list[str]:
    words = [str(clip) if word == "CLIP" else word for word in command.split()]
    return mer(*words, *(QUICK if words[0] == "train" else ()))


def rows(rounds: int) -> list[dict]:
    """A row for each command; the first round warms the disk's cache and does not count."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        asked = ("extract", "--dataset", "synthetic", "--size", "12", "--out", "feats.h5")
        seconds(mer(*asked), folder)
        seconds(mer("train", "feats.h5", *QUICK, "--out", "run"), folder)
        clip = sorted((folder / "data").rglob("*.wav"))[0]
        spent: dict[str, list[float]] = {"import torch": [], **{command: [] for command in AIMS}}
        for _ in range(rounds + 1):
            spent["import torch"].append(seconds(TORCH, folder))
            for command in AIMS:
                shutil.rmtree(folder / "new", ignore_errors=True)
                shutil.rmtree(folder / "new.shards", ignore_errors=True)
                (folder / "new.h5").unlink(missing_ok=True)
                spent[command].append(seconds(words_of(command, clip), folder))
    least = {command: min(times[1:]) for command, times in spent.items()}
    torch = least.pop("import torch")
    return [
        {
            "command": f"mer {command}",
            "cpu_s": round(took, 2),
            "import_torch_cpu_s": round(torch, 2),
            "beyond_torch_s": round(took - torch, 2),
            "aim_s": AIMS[command],
        }
        for command, took in least.items()
    ]


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench startup", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--save", action="store_true", help="write results/startup.json")
    args = parser.parse_args(argv)
    found = rows(args.rounds)
    for row in found:
        print("  ".join(f"{name}={value}" for name, value in row.items()), flush=True)
    if args.save:
        print(save("startup", found, command=" ".join(["python -m tests.bench startup", *argv])))
