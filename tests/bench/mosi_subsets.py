"""Every subset of modalities of CMU-MOSI, as classification and as regression, by the commands a
user has: `MER_TEST_DATA=DIR python -m tests.bench mosi_subsets --out DIR`.

`mer import npz` twice (once a task), `mer train` for every model, task and subset, `mer compare` of
the three modalities with text alone. Settings are fixed: for each model the most regularised
configuration of `tests/bench/mosi.py`, dev videos carved from the training videos by `mer train`,
epoch chosen on dev, test scored once a run. Intervals resample the 31 test videos. What is in DIR
already is not trained again.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.bench.machine import save
from tests.bench.mosi import LABELS, settings

SUBSETS = (
    "text",
    "audio",
    "vision",
    "text,audio",
    "text,vision",
    "audio,vision",
    "text,audio,vision",
)
TASKS = {
    "single": ["--column", "split=split_bclstm", "--labels", ",".join(LABELS)],
    "regression": ["--column", "split=split_bclstm", "--task", "regression"],
}
SHOWN = {
    "single": ("wa", "wf1"),
    "regression": ("acc2_has0", "f1_has0", "acc2_non0", "f1_non0", "acc7", "mae", "pearson"),
}
# of `mosi`, which is a classification; here each task has its own default
TASK_OF_BENCH = "train.select_metric=wa"


def mer(*args: str | Path) -> str:
    """Standard output of one `mer` command, one thread."""
    command = [sys.executable, "-m", "mer.cli", *map(str, args)]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    if done.returncode:
        sys.exit(f"mer {shlex.join(map(str, args))}: {done.stderr.strip().splitlines()[-1]}")
    return done.stdout


def train(out: Path, task: str, model: str, subset: str, seeds: int) -> dict:
    """The content of metrics.json of one group of runs."""
    sets = [*(s for s in settings(model)[0] if s != TASK_OF_BENCH), f"data.modalities={subset}"]
    options = [text for s in sets for text in ("--set", s)]
    where = ["--features", out / f"{task}.h5", "--out", folder(out, task, model, subset)]
    return json.loads(
        mer(
            "train",
            *where,
            "--model",
            model,
            *options,
            "--seeds",
            seeds,
            "--device",
            "cpu",
            "--json",
        )
    )


def folder(out: Path, task: str, model: str, subset: str) -> Path:
    return out / "runs" / "-".join([task, model, *subset.split(",")])


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench mosi_subsets", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument(
        "--data",
        type=Path,
        default=os.environ.get("MER_TEST_DATA"),
        help="folder with mosi/mosi_utt.npz",
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--models", default="concat,fusion,drkf")
    args = parser.parse_args(argv)
    if args.data is None:
        sys.exit("mosi_subsets: name the folder with mosi/mosi_utt.npz by --data or MER_TEST_DATA")

    args.out.mkdir(parents=True, exist_ok=True)
    for task, options in TASKS.items():
        if not (args.out / f"{task}.h5").exists():
            mer(
                "import",
                "npz",
                args.data / "mosi" / "mosi_utt.npz",
                "--out",
                args.out / f"{task}.h5",
                "--dataset",
                "mosi",
                *options,
            )
    models = args.models.split(",")
    jobs = [(task, model, subset) for task in TASKS for model in models for subset in SUBSETS]
    with ThreadPoolExecutor(args.jobs) as pool:
        found = dict(
            zip(jobs, pool.map(lambda job: train(args.out, *job, args.seeds), jobs), strict=True)
        )
    rows = []
    for (task, model, subset), f in found.items():
        figures = {
            k: {"mean": f["metrics"][k], "sd": f["sd"][k], "interval": f["interval"][k]}
            for k in SHOWN[task]
        }
        rows.append(
            {
                "task": task,
                "model": model,
                "modalities": subset,
                "n": f["n"],
                "bootstrap": f["bootstrap"],
                **figures,
            }
        )
        if subset == SUBSETS[-1]:
            gap = json.loads(
                mer(
                    "compare",
                    folder(args.out, task, model, "text"),
                    folder(args.out, task, model, subset),
                    "--json",
                )
            )
            rows[-1]["minus text"] = {
                k: {x: gap["metrics"][k][x] for x in ("difference", "interval")}
                for k in SHOWN[task]
            }
        print(line(rows[-1]))
    command = (
        f"python -m tests.bench mosi_subsets --out DIR --seeds {args.seeds} --models {args.models}"
    )
    print(save("mosi_subsets", rows, command=command))


def line(row: dict) -> str:
    """A row of a table, to read while it runs."""

    def cell(name: str) -> str:
        f, plain = row[name], name in ("mae", "pearson")
        mean, sd, *interval = (
            f"{v:.3f}" if plain else f"{100 * v:.1f}" for v in (f["mean"], f["sd"], *f["interval"])
        )
        return f"{mean} ± {sd} [{', '.join(interval)}]"

    return " | ".join(
        [
            "",
            row["model"],
            row["modalities"].replace(",", " + "),
            *map(cell, SHOWN[row["task"]]),
            "",
        ]
    ).strip()
