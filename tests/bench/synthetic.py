"""Every model on the synthetic corpus, two modalities, by the commands a user has.

`python -m tests.bench synthetic --out DIR` extracts the corpora of two generator seeds into DIR,
trains each model with its own preset and 5 seeds as `mer train --model M --seeds 5 --set
data.layers=stored` does (untrained encoders have no layer that is better than another), and
compares each with the better single modality (the one with the higher dev UA), and with `concat`,
on the same test rows. What is in DIR already is not made again. The table is in docs/results.md, a
part of it in the README.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tests.bench.machine import save

if TYPE_CHECKING:
    from mer.fusion.runs.checkpoint import Run
    from mer.fusion.runs.records import Comparison

SINGLE = ("audio", "text")
MODELS = ("concat", "fusion", "drkf", "dmd", "dhmd")


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench synthetic", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", default="0,1", help="of the generator, one or more")
    parser.add_argument("--models", default=",".join(MODELS), help="beside audio and text")
    parser.add_argument("--jobs", type=int, help="trainings at a time; by default as mer train")
    args = parser.parse_args(argv)
    models = args.models.split(",")
    rows = []
    for seed in map(int, args.seed.split(",")):
        rows += corpus(args.out / f"seed{seed}", seed, models, args.jobs)
    command = f"python -m tests.bench synthetic --out DIR --seed {args.seed} --models {args.models}"
    print(save("synthetic", rows, command=command))


def corpus(folder: Path, seed: int, models: list[str], jobs: int | None) -> list[dict]:
    """The rows of one corpus."""
    from mer.fusion import config
    from mer.fusion.evaluation.evaluate import evaluate
    from mer.fusion.runs.result_files import stored_metrics
    from mer.fusion.runtime.typed import tree
    from mer.fusion.training import experiment
    from mer.pipeline.store import FeatureStore

    head = extracted(folder, seed)
    runs, rows = {}, []
    with FeatureStore(head) as store:
        for model in (*SINGLE, *models):
            started = time.perf_counter()
            runs[model] = experiment.train(
                store,
                config.load(model=model, sets=["data.layers=stored"]),
                folder / "runs" / model,
                seeds=5,
                note=lambda line: None,
                jobs=jobs,
            )
            print(f"seed {seed}, {model}: {time.perf_counter() - started:.0f} s", flush=True)
    for model, run in runs.items():
        found = tree(stored_metrics(run) or evaluate(run, note=lambda line: None))
        rows.append(row(found, model, seed) | gaps(runs, model))
        print(line(rows[-1]), flush=True)
    return rows


def row(found: dict, model: str, seed: int) -> dict:
    """What every row has."""
    told = {"model": model, "generator_seed": seed, "n": found["n"]}
    told["bootstrap"] = found["bootstrap"]
    for k in ("ua", "wf1"):
        told[k] = {
            "mean": found["metrics"][k],
            "sd": found["sd"][k],
            "interval": found["interval"][k],
        }
    return told


def gaps(runs: dict[str, Run], model: str) -> dict:
    """The paired differences of a model from the better single modality, and from `concat`."""
    from mer.fusion import report

    better = max(SINGLE, key=lambda m: sum(child.info.dev["ua"] for child in runs[m].children))
    others = {"minus_better_single": better, "minus_concat": "concat"}
    return {
        name: gap(report.compare(runs[other], runs[model], metric="ua"), other)
        for name, other in others.items()
        if model not in (*SINGLE, other) and other in runs
    }


def extracted(folder: Path, seed: int) -> Path:
    """The store of the corpus of a generator seed; what is there is not made again."""
    from mer.pipeline.datasets import prepare
    from mer.pipeline.extraction import extract
    from mer.pipeline.extraction.options import ExtractOptions

    manifest, _ = prepare("synthetic", folder / "synthetic", seed=seed)
    head = folder / "feats.h5"
    encoders = ("builtin:tiny-wav2vec2", "builtin:tiny-roberta")
    extract(manifest, head, ExtractOptions(audio_encoder=encoders[0], text_encoder=encoders[1]))
    return head


def gap(found: Comparison, other: str) -> dict:
    """The paired difference in UA from the model `other`."""
    one = found.metrics["ua"]
    return {"model": other, "ua": one.difference, "interval": one.interval, "p": one.p}


def line(row: dict) -> str:
    def span(values: list[float]) -> str:
        return f"[{100 * values[0]:.1f}, {100 * values[1]:.1f}]"

    ua = row["ua"]
    text = (
        f"{row['model']:8} UA {100 * ua['mean']:.1f} ± {100 * ua['sd']:.1f} {span(ua['interval'])}"
    )
    for name in ("minus_better_single", "minus_concat"):
        if one := row.get(name):
            text += f"  minus {one['model']} {100 * one['ua']:+.1f} {span(one['interval'])}"
    return text
