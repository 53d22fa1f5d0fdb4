"""What DRKF's emotion discrimination (ED) learns under which settings, chosen on dev:
`python -m tests.bench discrimination --out OUT`.

The score is the AUC on re-paired dev utterances (`mer evaluate --split dev`, "telling apart what
disagrees"), beside the WF1 of dev that chooses the epoch. Every setting of SCREENED with one seed
on the synthetic corpus, those of KEPT with three; the seeds are none of those whose test figures
are reported elsewhere. When all is trained and chosen, the runs of KEPT are scored on test, too.
What is in OUT already is not made or trained again.

`agreement` is what the run's unimodal heads know of the same pairs without ED: the AUC of
1 - sum_c p_c q_c, with p the posterior of the voice and q that of the words.
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

import numpy as np

from tests.bench.machine import save
from tests.bench.synthetic import extracted
from tests.bench.trimodal import Refused, mer

PRESET, ALL_PAIRS = "drkf", "drkf-ed"
SCREENED = {
    PRESET: (),
    "drkf, w_ed 1": ("w_ed=1",),
    ALL_PAIRS: ("ed_anchors=1", "w_ed=1"),
}
KEPT = (PRESET, ALL_PAIRS)
# of the table
COLUMNS = (
    *("setting", "seeds"),
    *("dev: AUC of ED", "of the heads", "WF1"),
    *("test: AUC of ED", "of the heads", "WF1"),
)
SEEDS = (101, 102, 103)  # not among the reported ones
GENERATOR = 0  # seed of the corpus


@dataclass(frozen=True)
class Trial:
    """One training."""

    setting: str
    seed: int

    def folder(self, out: Path) -> Path:
        name = self.setting.replace(",", "").replace(" ", "-")
        return out / "runs" / f"{name}-{self.seed}"


def trials() -> list[Trial]:
    """All of them, each once."""
    screened = [Trial(setting, SEEDS[0]) for setting in SCREENED]
    kept = [Trial(setting, seed) for setting in KEPT for seed in SEEDS]
    return list(dict.fromkeys((*screened, *kept)))


def trained(trial: Trial, out: Path) -> dict:
    """What was trained, and dev's figures."""
    head, folder = out / "feats.h5", trial.folder(out)
    chosen = [f"model_args.{one}" for one in SCREENED[trial.setting]]
    sets = ("data.layers=stored", f"train.seed={trial.seed}", *chosen)
    asked = [text for one in sets for text in ("--set", one)]
    started = time.perf_counter()
    mer("train", head, "--out", folder, "--model", "drkf", *asked, "--no-test", "--device", "cpu")
    dev = scored(folder, head, "dev")
    print(f"{folder.name}: {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
    return {
        "setting": trial.setting,
        "settings": list(sets),
        "seed": trial.seed,
        "epoch": json.loads((folder / "run.json").read_text())["best_epoch"],
        "dev": dev,
    }


def scored(folder: Path, head: Path, split: str) -> dict:
    """WF1, and how well ED tells re-paired utterances apart."""
    found = json.loads(mer("evaluate", folder, "--split", split, "--device", "cpu", "--json"))
    told = found["discrimination"]["audio-text"]
    return {
        "wf1": found["metrics"]["wf1"],
        "ed_auc": told["auc"],
        "pairs": told["pairs"],
        "agreement": agreement(folder, head, split),
    }


def agreement(folder: Path, head: Path, split: str) -> float:
    """The AUC of the unimodal heads on the pairs on which ED is scored."""
    import torch

    from mer.fusion.evaluation.answering import part_of
    from mer.fusion.evaluation.discrimination import PAIR_SEED, re_paired
    from mer.fusion.measures import metrics
    from mer.fusion.runs.checkpoint import Run
    from mer.pipeline.store import FeatureStore

    run = Run.open(folder)
    with FeatureStore(head) as store:
        table = store.table()
        rows = np.flatnonzero(np.array(table["split"].to_pylist()) == split)
        label = np.array(table["label"].to_pylist())[rows]
        part = part_of(run, store, rows, "cpu", pool=np.zeros(0, dtype=np.int64))
        with torch.inference_mode():
            heads = run.model("cpu")(part.batch(np.arange(len(rows)))).unimodal
    p, q = (heads[m].softmax(1).numpy() for m in ("audio", "text"))
    rng = np.random.default_rng(PAIR_SEED)
    first, second, differs = re_paired(label[:, None] == label, rng)
    return metrics.auc(differs, 1 - (p[first] * q[second]).sum(1))


def summaries(rows: list[dict]) -> list[list[str]]:
    """Rows of COLUMNS, each figure with those of its seeds; WF1 is in percent."""
    found = []
    for setting in dict.fromkeys(row["setting"] for row in rows):
        same = [row for row in rows if row["setting"] == setting]
        cells = [setting, ", ".join(str(row["seed"]) for row in same)]
        for split in ("dev", "test"):
            there = [row[split] for row in same if split in row]
            cells += [mean_and_each([one["ed_auc"] for one in there], 2)]
            cells += [f"{fmean(one['agreement'] for one in there):.2f}" if there else ""]
            cells += [mean_and_each([100 * one["wf1"] for one in there], 1)]
        found.append(cells)
    return found


def paired(out: Path) -> dict:
    """The difference of the settings of KEPT in WF1 on test, seeds and dialogues drawn together, as
    `mer compare` has it for runs over seeds.
    """
    from mer.fusion.evaluation import scoring
    from mer.fusion.measures import intervals
    from mer.fusion.runs import prediction_table, result_files
    from mer.fusion.runs.checkpoint import Run

    drawn = []
    for setting in KEPT:
        runs = [Run.open(Trial(setting, seed).folder(out)) for seed in SEEDS]
        by_seed = [result_files.read_predictions(run) for run in runs]
        _, groups = prediction_table.unit(by_seed[0].table)
        drawn.append(scoring.sampled(by_seed, groups)["wf1"])
    gap = intervals.difference(*drawn)
    return {
        "what": f"{KEPT[1]} minus {KEPT[0]}",
        "difference": gap.difference,
        "interval": [gap.low, gap.high],
        "p": gap.p,
    }


def mean_and_each(values: list[float], decimals: int) -> str:
    """`0.81 (0.81, 0.82)`; nothing of nothing."""
    if not values:
        return ""
    each = ", ".join(f"{value:.{decimals}f}" for value in values)
    return f"{fmean(values):.{decimals}f} ({each})"


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench discrimination", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time")
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    head = extracted(args.out, GENERATOR)
    with ThreadPoolExecutor(args.jobs) as pool:
        try:
            rows = list(pool.map(partial(trained, out=args.out), trials()))
            for trial, row in zip(trials(), rows, strict=True):
                if trial.setting in KEPT:
                    row["test"] = scored(trial.folder(args.out), head, "test")
        except Refused as error:
            sys.exit(f"discrimination: {error}")
    for cells in summaries(rows):
        print(*cells, sep=" | ")
    gap = paired(args.out)
    low, high = gap["interval"]
    print(f"WF1 on test, {gap['what']}: {gap['difference']:+.3f} [{low:+.3f}, {high:+.3f}]")
    command = "python -m tests.bench discrimination --out OUT"
    print(save("discrimination", [*rows, gap], command=command))


if __name__ == "__main__":
    main(sys.argv[1:])
