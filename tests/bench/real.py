"""The figures of docs/results.md on real features, by the commands a user has:
`MER_TEST_DATA=DIR python -m tests.bench real --out OUT`.

MELD's transcripts through all-MiniLM-L6-v2, nEMO's clips through Whisper-base (leave one speaker
out) and CMU-MOSI's vectors. `mer prepare`, `mer extract` or `mer import`, then `mer train` and `mer
compare` for each configuration. Dev chooses the epoch, test is scored once a run. What is in OUT
already is not made again, and a run that was cut short goes on; each part writes its own file of
results as soon as it is done.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from tests.bench import real_parts as parts
from tests.bench.machine import save
from tests.bench.mosi import MODELS

# Part: its file of results and what makes the rows.
PARTS = {
    "layers": ("real", parts.layers),
    "context": ("real-context", parts.meld_context),
    "sentiment": ("real-sentiment", parts.meld_sentiment),
    "models": ("real-models", parts.meld_models),
    "mosi": ("real-mosi", parts.mosi_contexts),
}


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench real", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument(
        "--data",
        type=Path,
        default=os.environ.get("MER_TEST_DATA"),
        help="folder with encoders, meld, nemo-mini and mosi",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for stores and runs")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, help="trainings at a time; by default as mer train")
    parser.add_argument("--only", choices=PARTS, help="this part alone")
    parser.add_argument("--models", default=",".join(MODELS), help="of the part mosi")
    args = parser.parse_args(argv)
    if args.data is None:
        sys.exit("real: name the folder of the data by --data or MER_TEST_DATA")
    args.out.mkdir(parents=True, exist_ok=True)
    models = tuple(args.models.split(","))
    bench = parts.Bench(args.data, args.out, args.seeds, args.jobs, models)
    for name in [args.only] if args.only else PARTS:
        results, rows = PARTS[name]
        command = f"python -m tests.bench real --out OUT --seeds {args.seeds} --only {name}"
        if name == "mosi" and models != MODELS:
            command += f" --models {args.models}"
        print(save(results, rows(bench), command=command))


if __name__ == "__main__":
    main(sys.argv[1:])
