"""Every model on voice, words and drawn face, and on each pair of them, by the commands a user has:
`python -m tests.bench trimodal --out DIR`.

`mer prepare synthetic --vision`, `mer extract` with the built-in encoders, then `mer train` for
every model and set of modalities with the model's own preset, and `mer compare` of the three
modalities with each pair. Epochs are chosen on dev, test is scored once a run. Intervals resample
dialogues. A model that refuses a set has its own words in the table. What is in DIR already is not
made or trained again, and a run that was cut short goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.bench.machine import save

MODELS = ("concat", "fusion", "drkf", "dmd", "dhmd")
THREE = "audio,text,vision"
SETS = (THREE, "audio,text", "audio,vision", "text,vision")
ENCODERS = {
    "audio": "builtin:tiny-wav2vec2",
    "text": "builtin:tiny-roberta",
    "vision": "builtin:tiny-vit",
}
SHOWN = ("ua", "wf1")
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


class Refused(Exception):
    """A command of mer ended with an error: its last line."""


def mer(*args: str | Path | int) -> str:
    """Standard output of one `mer` command, one thread."""
    texts = [str(arg) for arg in args]
    command = [sys.executable, "-m", "mer.cli", *texts]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | ONE_THREAD)
    if done.returncode < 0:
        sys.exit(f"mer {shlex.join(texts)}: ended by signal {-done.returncode}")
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit {done.returncode}"]
        raise Refused(said[-1])
    return done.stdout


def subsets(text: str) -> tuple[str, ...]:
    """`audio+text,audio+vision` as sets of modalities, each in the order of the names."""
    found = []
    for part in text.split(","):
        names = part.split("+")
        unknown = set(names) - set(ENCODERS)
        if unknown:
            raise argparse.ArgumentTypeError(f"{part!r}: expected for example audio+vision")
        found.append(",".join(sorted(set(names))))
    return tuple(found)


def arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench trimodal",
        description=__doc__.split("\n\n")[0],
        allow_abbrev=False,
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--size", type=int, default=300, help="utterances")
    parser.add_argument("--seed", type=int, default=0, help="of the generator")
    parser.add_argument("--seeds", type=int, default=5, help="of training")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time")
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument(
        "--sets",
        type=subsets,
        default=SETS,
        help="of modalities, e.g. audio+text,audio+text+vision",
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="TABLE.KEY=VALUE", help="for every model"
    )
    return parser.parse_args(argv)


def extracted(folder: Path, size: int, seed: int) -> Path:
    """The store, made unless it is there."""
    head, corpus = folder / "feats.h5", folder / "synthetic"
    if head.exists():
        return head
    generated = ["--root", corpus, "--size", size, "--seed", seed, "--vision"]
    mer("prepare", "synthetic", *generated, "--out", corpus / "manifest.parquet")
    chosen = [text for name, one in ENCODERS.items() for text in (f"--{name}-encoder", one)]
    source = ["--manifest", corpus / "manifest.parquet", "--root", corpus]
    mer("extract", *source, *chosen, "--out", head, "--device", "cpu")
    return head


def train(head: Path, out: Path, subset: str, args: argparse.Namespace) -> dict:
    """What `mer train` says of one group of runs; `refused` where it ends with an error."""
    sets = [text for s in (*args.set, f"data.modalities={subset}") for text in ("--set", s)]
    model = out.name.split("-")[0]
    started = time.perf_counter()
    try:
        said = mer(
            "train", head, "--out", out, "--model", model, *sets,
            "--seeds", args.seeds, "--device", "cpu", "--json",
        )  # fmt: skip
    except Refused as error:
        print(f"{out.name}: {error}", file=sys.stderr)
        return {"refused": str(error)}
    print(f"{out.name}: {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
    return json.loads(said)


def difference(pair: Path, three: Path) -> dict:
    """Three modalities minus a pair, with its paired interval."""
    told = json.loads(mer("compare", pair, three, "--json"))["metrics"]
    return {name: {k: told[name][k] for k in ("difference", "interval")} for name in SHOWN}


def row(found: dict, model: str, subset: str) -> dict:
    told: dict = {"model": model, "modalities": subset}
    if "refused" in found:
        return told | found
    told |= {"n": found["n"], "bootstrap": found["bootstrap"]}
    for name in SHOWN:
        told[name] = {
            "mean": found["metrics"][name],
            "sd": found["sd"][name],
            "interval": found["interval"][name],
        }
    return told


def main(argv: list[str]) -> None:
    args = arguments(argv)
    folder = args.out / f"size{args.size}-seed{args.seed}"
    folder.mkdir(parents=True, exist_ok=True)
    head = extracted(folder, args.size, args.seed)
    models = args.models.split(",")
    jobs = [(model, subset) for model in models for subset in args.sets]

    def place(model: str, subset: str) -> Path:
        return folder / "runs" / "-".join([model, *subset.split(",")])

    with ThreadPoolExecutor(args.jobs) as pool:
        told = pool.map(lambda job: train(head, place(*job), job[1], args), jobs)
        found = dict(zip(jobs, told, strict=True))
    rows = [row(found[job], *job) for job in jobs]
    print(*heading(), sep="\n")
    for one in rows:
        model, subset = one["model"], one["modalities"]
        both = subset != THREE and (model, THREE) in found
        if both and not any("refused" in found[model, s] for s in (subset, THREE)):
            one["three minus this"] = difference(place(model, subset), place(model, THREE))
        print(line(one))
    command = (
        f"python -m tests.bench trimodal --out DIR --size {args.size} --seed {args.seed} "
        f"--seeds {args.seeds} --models {args.models} --sets "
        f"{','.join(subset.replace(',', '+') for subset in args.sets)}"
    )
    print(save("trimodal", rows, command=command + "".join(f" --set {s}" for s in args.set)))


def heading() -> tuple[str, str]:
    return (
        "| model | modalities | UA % | WF1 % | three minus this, UA points |",
        "|---|---|---|---|---|",
    )


def percent(values: list[float], sign: str = "") -> list[str]:
    return [f"{100 * value:{sign}.1f}" for value in values]


def line(told: dict) -> str:
    """A row of a table, to read while it runs."""
    names = told["modalities"].replace(",", " + ")
    if "refused" in told:
        return f"| {told['model']} | {names} | refused: {told['refused']} | | |"
    cells = []
    for name in SHOWN:
        f = told[name]
        mean, sd, low, high = percent([f["mean"], f["sd"], *f["interval"]])
        cells.append(f"{mean} ± {sd} [{low}, {high}]")
    gap = ""
    if "three minus this" in told:
        of = told["three minus this"]["ua"]
        middle, low, high = percent([of["difference"], *of["interval"]], "+")
        gap = f"{middle} [{low}, {high}]"
    return f"| {told['model']} | {names} | {' | '.join(cells)} | {gap} |"


if __name__ == "__main__":
    main(sys.argv[1:])
