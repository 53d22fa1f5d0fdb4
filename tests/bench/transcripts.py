"""Token states of MELD's transcripts by all-MiniLM-L6-v2, from start to end: `mer extract` against
sentence-transformers' `encode(output_value="token_embeddings")`.

Each side is a process of its own, in turns: it starts, imports, loads the weights, tokenises and
encodes the same lines on a CPU with all cores, in fp32; the peer also with one thread, whose
processor seconds are fewer, since no core waits for another. It keeps what it makes in memory;
ours also reads a manifest, tests itself, writes a store and hashes what it writes, and encodes
equal lines once. Wall seconds, and processor seconds of all threads; the best of the rounds counts.

`python -m tests.bench extract` has these rows, too; here they are alone.

The lines and the weights are real and not part of the project: the folder `MER_TEST_DATA` has them
(`meld/*_sent_emo.csv`, `encoders/all-MiniLM-L6-v2`). sentence-transformers is timed where it is
installed (`pip install sentence-transformers`); what is absent gives a row that says so.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from mer.pipeline.manifest import Manifest, Utterance

from tests.bench.machine import save

PEER = """
import json, sys, torch
from sentence_transformers import SentenceTransformer
folder, file, *threads = sys.argv[1:]
for number in threads:
    torch.set_num_threads(int(number))
lines = json.load(open(file, encoding="utf-8"))
model = SentenceTransformer(folder, device="cpu", local_files_only=True).float()
states = model.encode(lines, output_value="token_embeddings", show_progress_bar=False)
print(sum(len(x) for x in states))
"""
TABLES = ("train", "dev", "test")


class Took(NamedTuple):
    """Wall seconds, and processor seconds of all threads."""

    wall: float
    cpu: float


def meld_lines(folder: Path, count: int | None) -> list[str]:
    """`count` of MELD's 13,708 transcripts, evenly spread; None: all."""
    lines = []
    for name in TABLES:
        with open(folder / f"{name}_sent_emo.csv", encoding="utf-8", newline="") as file:
            lines += [row["Utterance"] for row in csv.DictReader(file)]
    if count is None or count >= len(lines):
        return lines
    return [lines[at * len(lines) // count] for at in range(count)]


def timed(command: list[str]) -> Took:
    """How long a process takes. Raises RuntimeError with its last line when it fails."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    wall = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit {done.returncode}"]
        raise RuntimeError(said[-1][:200])
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Took(wall, cpu)


def ours(manifest: Path, encoder: Path, folder: Path, *more: str) -> Took:
    """`mer extract` to a new store."""
    out = folder / "feats.h5"
    shutil.rmtree(folder / "feats.shards", ignore_errors=True)
    out.unlink(missing_ok=True)
    command = [sys.executable, "-m", "mer.cli", "extract", "--manifest", str(manifest)]
    command += ["--audio-encoder", "none", "--text-encoder", str(encoder), "--out", str(out)]
    return timed([*command, "--offline", *more])


def race(lines: list[str], encoder: Path, rounds: int) -> list[dict]:
    """A row for each side."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        texts, manifest = folder / "lines.json", folder / "manifest.parquet"
        texts.write_text(json.dumps(lines), encoding="utf-8")
        utterances = tuple(
            Utterance(id=f"u{number}", text=line, label="none") for number, line in enumerate(lines)
        )
        Manifest("lines", "single", ("none", "some"), utterances, folder, "en").write(manifest)
        peer = [sys.executable, "-c", PEER, str(encoder), str(texts)]
        sides: dict[str, Callable[[], Took]] = {
            "mer, with layer means": lambda: ours(manifest, encoder, folder),
            "mer, --no-layer-means": lambda: ours(manifest, encoder, folder, "--no-layer-means"),
        }
        if importlib.util.find_spec("sentence_transformers") is not None:
            sides["sentence-transformers"] = lambda: timed(peer)
            sides["sentence-transformers, 1 thread"] = lambda: timed([*peer, "1"])
        found: dict[str, list[Took]] = {side: [] for side in sides}
        for _ in range(rounds):
            for side, run in sides.items():
                found[side].append(run())
    best = {
        side: Took(min(t.wall for t in took), min(t.cpu for t in took))
        for side, took in found.items()
    }
    return [_row(side, took, best, len(lines)) for side, took in best.items()]


def _row(side: str, took: Took, best: dict[str, Took], lines: int) -> dict:
    row = {"encoder": "all-MiniLM-L6-v2", "modality": "text", "side": side, "items": lines}
    row |= {"wall_s": round(took.wall, 2), "cpu_s": round(took.cpu, 2)}
    peers = [took for name, took in best.items() if name.startswith("sentence-transformers")]
    if not peers:
        return row | {"absent": "sentence-transformers is not installed"}
    peer = Took(min(took.wall for took in peers), min(took.cpu for took in peers))
    ratios = {"wall": round(peer.wall / took.wall, 2), "cpu": round(peer.cpu / took.cpu, 2)}
    return row | {f"times_as_fast_{name}": ratio for name, ratio in ratios.items()}


def rows(lines: int | None, rounds: int) -> list[dict]:
    """The rows of this comparison, or one that says what is absent; `lines` as for `meld_lines`."""
    root = os.environ.get("MER_TEST_DATA")
    absent = {"encoder": "all-MiniLM-L6-v2", "modality": "text"}
    if not root:
        return [absent | {"absent": "MER_TEST_DATA names no folder with the lines and weights"}]
    meld, encoder = Path(root) / "meld", Path(root) / "encoders" / "all-MiniLM-L6-v2"
    for folder in (meld, encoder):
        if not folder.is_dir():
            return [absent | {"absent": f"MER_TEST_DATA has no {folder.relative_to(root)}"}]
    return race(meld_lines(meld, lines), encoder, rounds)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench transcripts", description=__doc__)
    parser.add_argument("--lines", type=int, help="how many of the lines (default: all)")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--save", action="store_true", help="write results/transcripts.json")
    args = parser.parse_args(argv)
    found = rows(args.lines, args.rounds)
    for row in found:
        print(row, flush=True)
    if args.save:
        command = "python -m tests.bench transcripts " + " ".join(argv)
        print(save("transcripts", found, command=command))
