"""Mutated files of every kind, read by mer: `python -m tests.fuzz --minutes 30 --out FILE`.

`--kind K` (again and again) takes only these; `--count N` ends after N inputs of each kind;
`--replay KIND:SEED` makes one input again, reads it, and leaves it in `--folder`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # a process with more threads cannot be forked
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from tests.bench.machine import describe  # noqa: E402
from tests.fuzz import pool  # noqa: E402
from tests.fuzz.kinds import KINDS  # noqa: E402
from tests.fuzz.stock import Stock  # noqa: E402


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0, help="of the first input of each kind")
    parser.add_argument("--count", type=int, help="inputs of each kind; instead of --minutes")
    parser.add_argument("--kind", action="append", choices=sorted(KINDS), help="default: all")
    parser.add_argument("--out", type=Path, help="where the summary goes, as JSON")
    parser.add_argument("--replay", metavar="KIND:SEED")
    parser.add_argument("--folder", type=Path, help="where to work; kept when it is given")
    parser.add_argument("--log", type=Path, help="one JSON line an input")
    return parser.parse_args(argv)


def main(argv: list[str]) -> int:
    asked = parse(argv)
    with tempfile.TemporaryDirectory(prefix="mer-fuzz-") as made:
        folder = (asked.folder or Path(made)).absolute()
        pool.prepare()
        stock = Stock(folder / "stock")
        if asked.replay:
            kind, _, seed = asked.replay.partition(":")
            print(json.dumps(vars(pool.run(kind, int(seed), stock, folder / "input")), indent=1))
            return 0
        summary = fuzz(asked, stock, folder)
    text = json.dumps(summary, indent=1, ensure_ascii=False) + "\n"
    if asked.out:
        asked.out.write_text(text, encoding="utf-8")
    print(text)
    bad = sum(summary["classes"][name] for name in pool.CLASSES[2:])
    return 1 if bad else 0


def fuzz(asked: argparse.Namespace, stock: Stock, folder: Path) -> dict:
    kinds = asked.kind or list(KINDS)
    turns = [name for name in kinds for _ in range(1 if asked.count else KINDS[name].weight)]
    counts = {name: Counter() for name in kinds}
    seeds = dict.fromkeys(kinds, asked.seed)
    failures, slowest, largest = [], None, None
    began = time.monotonic()
    log = asked.log.open("w", encoding="utf-8") if asked.log else None
    turn = 0
    while not done(asked, turn, len(turns), time.monotonic() - began):
        name = turns[turn % len(turns)]
        found = pool.run(name, seeds[name], stock, folder / "input")
        seeds[name] += 1
        turn += 1
        counts[name][found.outcome] += 1
        if log:
            print(pool.record(found), file=log, flush=True)
        if pool.CLASSES.index(found.outcome) >= 2:
            failures.append(vars(found))
            print(f"{found.outcome}: {name}:{found.seed}: {found.detail[:300]}", file=sys.stderr)
        if found.outcome != "hang":
            slowest = max(slowest or found, found, key=lambda o: o.seconds)
            largest = max(largest or found, found, key=lambda o: o.mebibytes)
    length = f"--count {asked.count}" if asked.count else f"--minutes {asked.minutes:g}"
    totals = {c: sum(counts[name][c] for name in kinds) for c in pool.CLASSES}
    return {
        "command": f"python -m tests.fuzz {length} --seed {asked.seed}",
        "machine": describe(),
        "minutes": round((time.monotonic() - began) / 60, 1),
        "seed": asked.seed,
        "inputs": turn,
        "classes": totals,
        "kinds": {name: dict(sorted(counts[name].items())) for name in kinds},
        "limits": {
            "cpu_seconds": pool.CPU_SECONDS,
            "wall_seconds": pool.WALL_SECONDS,
            "memory_bytes": pool.MEMORY,
            "message_characters": pool.LINE,
        },
        "slowest": brief(slowest),
        "largest": brief(largest),
        "failures": failures,
    }


def done(asked: argparse.Namespace, turn: int, turns: int, seconds: float) -> bool:
    if asked.count:
        return turn >= asked.count * turns
    return seconds >= 60 * asked.minutes


def brief(found: pool.Outcome | None) -> dict | None:
    if found is None:
        return None
    return {
        "input": f"{found.kind}:{found.seed}",
        "seconds": found.seconds,
        "mebibytes": found.mebibytes,
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
