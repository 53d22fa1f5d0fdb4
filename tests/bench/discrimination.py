"""What DRKF's emotion discrimination (ED) learns under which settings, on dev alone:
`python -m tests.bench discrimination --out OUT`.

The score is the AUC on re-paired dev utterances (`mer evaluate --split dev`, "telling apart what
disagrees"), beside the WF1 of dev that chooses the epoch. First every setting of SCREENED with one
seed on the synthetic corpus of generator seed 0; then the settings of KEPT with three seeds on
those of generator seeds 0 and 1. Test is never opened, and the seeds are none of those whose test
figures are reported. What is in OUT already is not made or trained again.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean

from tests.bench.machine import save
from tests.bench.synthetic import extracted
from tests.bench.trimodal import Refused, mer

PRESET, ALL_PAIRS = "preset", "all anchors, w_ed 1"
MANY = ("ed_anchors=1", "w_ed=1")
SCREENED = {
    PRESET: (),
    "w_ed 1": ("w_ed=1",),
    "all anchors, w_ed 0.5": ("ed_anchors=1", "w_ed=0.5"),
    ALL_PAIRS: MANY,
    "and negatives of other emotions": (*MANY, "mi_negatives=other"),
    "and KL by classes": (*MANY, "kl_reduction=classes"),
    "and augmentation with noise 0.3": (*MANY, "ae_noise=0.3"),
}
KEPT = (PRESET, ALL_PAIRS)
SEEDS = (101, 102, 103)  # not among the reported ones
CORPORA = (0, 1)  # seeds of the generator


@dataclass(frozen=True)
class Trial:
    """One training."""

    corpus: int
    setting: str
    seed: int

    def folder(self, out: Path) -> Path:
        name = self.setting.replace(",", "").replace(" ", "-")
        return out / f"synthetic{self.corpus}" / "runs" / f"{name}-{self.seed}"


def trials() -> list[Trial]:
    """All of them, each once."""
    screened = [Trial(CORPORA[0], setting, SEEDS[0]) for setting in SCREENED]
    kept = [Trial(corpus, name, seed) for corpus in CORPORA for name in KEPT for seed in SEEDS]
    return list(dict.fromkeys((*screened, *kept)))


def result(trial: Trial, out: Path) -> dict:
    """Dev's figures of one training."""
    head, folder = out / f"synthetic{trial.corpus}" / "feats.h5", trial.folder(out)
    chosen = [f"model_args.{one}" for one in SCREENED[trial.setting]]
    sets = ("data.layers=stored", f"train.seed={trial.seed}", *chosen)
    asked = [text for one in sets for text in ("--set", one)]
    started = time.perf_counter()
    mer("train", head, "--out", folder, "--model", "drkf", *asked, "--no-test", "--device", "cpu")
    found = json.loads(mer("evaluate", folder, "--split", "dev", "--device", "cpu", "--json"))
    print(f"{folder.name}: {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
    told = found["discrimination"]["audio-text"]
    return {
        "corpus": f"synthetic{trial.corpus}",
        "setting": trial.setting,
        "settings": list(sets),
        "seed": trial.seed,
        "epoch": json.loads((folder / "run.json").read_text())["best_epoch"],
        "wf1": found["metrics"]["wf1"],
        "ed_auc": told["auc"],
        "pairs": told["pairs"],
    }


def summaries(rows: list[dict]) -> list[str]:
    """Rows of the table in docs/papers/drkf.md: a setting on a corpus over its seeds, in percent
    but for the AUC.
    """
    found = []
    for corpus, setting in dict.fromkeys((row["corpus"], row["setting"]) for row in rows):
        same = [row for row in rows if (row["corpus"], row["setting"]) == (corpus, setting)]
        auc = [row["ed_auc"] for row in same]
        wf1 = [100 * row["wf1"] for row in same]
        each = ", ".join(f"{value:.2f}" for value in auc)
        shown = ", ".join(f"{value:.1f}" for value in wf1)
        cells = (corpus, setting, f"{fmean(auc):.3f} ({each})", f"{fmean(wf1):.1f} ({shown})")
        found.append(f"| {' | '.join(cells)} |")
    return found


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench discrimination", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time")
    args = parser.parse_args(argv)
    for corpus in CORPORA:
        extracted(args.out / f"synthetic{corpus}", corpus)
    with ThreadPoolExecutor(args.jobs) as pool:
        try:
            rows = list(pool.map(partial(result, out=args.out), trials()))
        except Refused as error:
            sys.exit(f"discrimination: {error}")
    for text in summaries(rows):
        print(text)
    print(save("discrimination", rows, command="python -m tests.bench discrimination --out OUT"))


if __name__ == "__main__":
    main(sys.argv[1:])
