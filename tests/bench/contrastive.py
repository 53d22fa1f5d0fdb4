"""`python -m tests.bench contrastive`: time and memory of the contrastive losses against their
peers (contrastive_peers), measured as contrastive_timing says, over a grid of sizes.

Rows already in the CSV stay, unless they are measured anew: a grid may be run in slices, and
`--minutes` and `--missing` cut and continue one.

A peer that fails costs no other's figures: it gets a row "failed" with the reason. On a GPU the
measuring process is a child, as a kernel that faults takes its process with it and one that hangs
must be killed; the size is then measured again without that peer.
"""

from __future__ import annotations

import argparse
import csv
import gc
import json
import math
import os
import time
from pathlib import Path

import torch

from tests.bench.child import Child
from tests.bench.contrastive_peers import WORKLOADS
from tests.bench.contrastive_plot import plot
from tests.bench.contrastive_timing import measure
from tests.bench.machine import RESULTS, describe, save

CPU_GRID = [
    (4, 256),
    (32, 256),
    (128, 256),
    (512, 64),
    (512, 256),
    (512, 1024),
    (2048, 256),
    (8192, 256),
]
GPU_GRID = [
    (b, d)
    for d in (256, 1024, 64)
    for b in (4, 16, 32, 64, 128, 512, 1024, 4096, 16384, 65536, 131072)
]
KEYS = ("workload", "B", "D", "dtype", "peer", "what")
Task = tuple[str, int, int]  # workload, B, D


def merged(path: Path, new: list[dict]) -> list[dict]:
    """Rows of an earlier run's JSON, with what was measured anew in their place."""
    old = json.loads(path.read_text())["rows"] if path.exists() else []
    taken = {tuple(row[key] for key in KEYS[:4]) for row in new}  # a size is measured as a whole
    rows = [row for row in old if tuple(row[key] for key in KEYS[:4]) not in taken] + new
    return sorted(
        rows,
        key=lambda row: (list(WORKLOADS).index(row["workload"]), row["D"], row["B"], row["dtype"]),
    )


def write_csv(path: Path, rows: list[dict]) -> None:
    fields = list(dict.fromkeys(key for row in rows for key in row))
    fields.sort(key=lambda key: key in ("machine", "torch", "commit", "load"))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fields)
        writer.writeheader()
        writer.writerows(rows)


def main(argv: list[str]) -> None:
    options = parsed(argv)
    if options.plot:
        for path in sorted(options.out.glob("contrastive_*.csv")):
            plot(path, Path("docs") / f"{path.stem}.svg")
        return
    device = torch.device(options.device)
    cuda = device.type == "cuda"
    if not cuda:
        torch.set_num_threads(1)
    path = options.out / f"contrastive_{'gpu' if cuda else 'cpu'}.json"
    machine, begin = describe(), time.monotonic()
    late, broken = [], []
    child = Child(measure)
    run = child if cuda else measure
    try:
        for task in tasks(options, path, cuda=cuda):
            workload, b, d = task
            if time.monotonic() - begin > 60 * options.minutes:
                late.append(f"{workload} {b}x{d}")
                continue
            more = settings(options, b, d, cuda=cuda)
            new = run(workload, b, d, device, getattr(torch, options.dtype), **more)
            for row in new:
                row |= {
                    "machine": machine["gpu"] or machine["cpu"],
                    "torch": machine["versions"]["torch"],
                    "commit": machine["commit"],
                    "load": round(os.getloadavg()[0], 2),
                }
                broken += print_row(task, row)
            if not cuda:  # the child does so itself
                gc.collect()
                torch._dynamo.reset()
            rows = merged(path, new)  # after every size: an interrupted run keeps what it has
            save(path.stem, rows, command="python -m tests.bench contrastive", folder=options.out)
            write_csv(path.with_suffix(".csv"), rows)
    finally:
        child.close()
    if late:
        print(
            f"not begun within {options.minutes:g} minutes (--missing continues): {', '.join(late)}"
        )
    print(f"wrote {path} and {path.with_suffix('.csv').name}")
    if broken:
        raise SystemExit("not measured: " + "; ".join(" ".join(place.split()) for place in broken))


def parsed(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench contrastive", description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    parser.add_argument(
        "--size", action="append", metavar="BxD", help="instead of the whole grid; may be repeated"
    )
    parser.add_argument("--workload", choices=list(WORKLOADS), action="append")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument(
        "--compile-everywhere",
        action="store_true",
        help="on a GPU torch.compile is measured at D = 256 alone, else",
    )
    parser.add_argument(
        "--paths", action="store_true", help="on a GPU: ours on each of its paths, too"
    )
    parser.add_argument(
        "--tile", action="append", default=[], metavar="PATH:BMxBNxBKxBDxWARPSxSTAGES",
        help="on a GPU: ours with these tiles, too (mid:..., large:...); may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--minutes", type=float, default=math.inf, help="begin no size after this time"
    )
    parser.add_argument(
        "--missing", action="store_true", help="only sizes that the CSV does not have"
    )
    parser.add_argument(
        "--out", type=Path, default=RESULTS, help="folder for contrastive_{cpu,gpu}.csv and .json"
    )
    parser.add_argument(
        "--plot", action="store_true", help="only redraw docs/contrastive_*.svg from the CSV files"
    )
    return parser.parse_args(argv)


def tasks(options: argparse.Namespace, path: Path, *, cuda: bool) -> list[Task]:
    """What is measured, in this order."""
    grid = GPU_GRID if cuda else CPU_GRID
    if options.size:
        grid = [tuple(map(int, size.split("x"))) for size in options.size]
    wanted = [(name, b, d) for name in options.workload or list(WORKLOADS) for b, d in grid]
    if cuda and not options.size:  # D = 256 of all workloads first
        wanted.sort(key=lambda task: [d for _, d in GPU_GRID].index(task[2]))
    if options.missing:
        have = {tuple(row[key] for key in KEYS[:4]) for row in merged(path, [])}
        wanted = [task for task in wanted if (*task, options.dtype) not in have]
    return wanted


def settings(options: argparse.Namespace, b: int, d: int, *, cuda: bool) -> dict:
    """How many rounds a size gets on this kind of machine, and which peers."""
    rounds, compiled = options.rounds, d == 256 or options.compile_everywhere
    if not cuda:
        few = max(2, min(rounds, int(2e9 / (b * b * d + 1)) + 2))
        rounds, compiled = 20 * rounds if b <= 128 else few, b <= 512
    return {
        "rounds": rounds,
        "compile_peers": compiled and not options.no_compile,
        "paths": options.paths,
        "tiles": tuple(options.tile),
    }


def print_row(task: Task, row: dict) -> list[str]:
    """Print a row; returns what of ours was not measured, to be named at the end."""
    workload, b, d = task
    place = f"{workload:8} B={b:<6} D={d:<5} {row['peer']:32}"
    if row["what"] == "failed":
        print(f"{place} failed: {row['failure']}", flush=True)
        return [place] if row["peer"].startswith("mer") or row["peer"] == "start" else []
    if row["what"] == "forward+backward":
        ratio = f"{row['times_eager']:6.2f} x eager" if row["times_eager"] else ""
        print(f"{place} {row['min_ms']:12.3f} ms {ratio}", flush=True)
    return []
