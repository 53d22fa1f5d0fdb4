"""Whether a harder augmentation keeps DRKF's self-MI from saturating, and its worth on dev:
`python -m tests.bench augmentation --out OUT`.

The preset `drkf` on the synthetic corpus with more noise before its autoencoders, and with rows of
the same label left out of the negatives. Three seeds each, none of those whose test figures are
reported; the test part is not opened. What is in OUT already is not made or trained again.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from statistics import fmean

from tests.bench.machine import save
from tests.bench.synthetic import extracted
from tests.bench.trimodal import Refused, mer

SETTINGS = {
    "drkf": (),
    "ae_noise 0.3": ("ae_noise=0.3",),
    "ae_noise 0.5": ("ae_noise=0.5",),
    "mi_negatives other": ("mi_negatives=other",),
}
SEEDS = (101, 102, 103)  # not among the reported ones
GENERATOR = 0  # seed of the corpus
HALF = 7  # an epoch in the middle of the 14 of the preset
MODALITIES = ("audio", "text")
COLUMNS = (
    *("setting", "seeds", f"self-MI after {HALF} epochs, of its cap", "at the end"),
    *("cosine of the views", "dev WF1"),
)


def trained(setting: str, seed: int, out: Path) -> dict:
    """What the log of a training says."""
    folder = out / "runs" / f"{setting.replace(' ', '-')}-{seed}"
    chosen = [f"model_args.{one}" for one in SETTINGS[setting]]
    sets = ["data.layers=stored", f"train.seed={seed}", *chosen]
    asked = [text for one in sets for text in ("--set", one)]
    started = time.perf_counter()
    mer(
        "train", out / "feats.h5", "--out", folder, "--model", "drkf", *asked,
        "--no-test", "--device", "cpu",
    )  # fmt: skip
    print(f"{folder.name}: {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    best = json.loads((folder / "run.json").read_text())["best_epoch"]
    return {
        "setting": setting,
        "settings": sets,
        "seed": seed,
        "epochs": len(log),
        "epoch": best,
        "mi_share": [share(log[min(at, len(log)) - 1]["diagnostics"]) for at in (HALF, len(log))],
        "cosine": fmean(log[-1]["diagnostics"][f"cosine_{m}"] for m in MODALITIES),
        "wf1": log[best - 1]["dev"]["wf1"],
    }


def share(told: dict[str, float]) -> float | None:
    """The bound on self-MI of an epoch, as a part of its cap; None: the term is no bound."""
    names = [f"mi_bound_{m}" for m in MODALITIES]
    if not all(name in told for name in names):
        return None
    return fmean(told[name] for name in names) / told["mi_cap_nt_xent"]


def summaries(rows: list[dict]) -> list[list[str]]:
    """Rows of COLUMNS, means over the seeds, WF1 in percent with each seed."""
    found = []
    for setting in SETTINGS:
        same = [row for row in rows if row["setting"] == setting]
        scores = [100 * row["wf1"] for row in same]
        found.append(
            [
                setting,
                ", ".join(str(row["seed"]) for row in same),
                *(mean_share([row["mi_share"][at] for row in same]) for at in (0, 1)),
                f"{fmean(row['cosine'] for row in same):.2f}",
                f"{fmean(scores):.1f} ({', '.join(f'{score:.1f}' for score in scores)})",
            ]
        )
    return found


def mean_share(values: list[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{fmean(known):.2f}" if known else "no bound"


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench augmentation", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time")
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    extracted(args.out, GENERATOR)
    asked = [(setting, seed) for setting in SETTINGS for seed in SEEDS]
    with ThreadPoolExecutor(args.jobs) as pool:
        try:
            rows = list(pool.map(partial(trained, out=args.out), *zip(*asked, strict=True)))
        except Refused as error:
            sys.exit(f"augmentation: {error}")
    for cells in summaries(rows):
        print(*cells, sep=" | ")
    print(save("augmentation", rows, command="python -m tests.bench augmentation --out OUT"))


if __name__ == "__main__":
    main(sys.argv[1:])
