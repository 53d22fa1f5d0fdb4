"""The README's table: every model on the synthetic corpus, by the commands a user has.

`python -m tests.bench synthetic --out DIR [--seed N] [--models drkf,concat,...]` extracts the
corpus of generator seed N into DIR, trains each model with its own preset and 5 seeds as `mer train
--model M --seeds 5 --set data.layers=stored` does (untrained encoders have no layer that is better
than another), and compares each with the better single modality (the one with the
higher dev UA), and with `concat`, on the same test rows. What is in DIR already is not made again.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from tests.bench.machine import save

if TYPE_CHECKING:
    from mer.fusion.records import Comparison

SINGLE = ("audio", "text")


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench synthetic", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0, help="of the generator")
    parser.add_argument("--models", default="concat,drkf", help="beside audio and text")
    args = parser.parse_args(argv)

    from mer.fusion import config, experiment, report
    from mer.fusion.evaluate import evaluate
    from mer.fusion.result_files import stored_metrics
    from mer.fusion.typed import tree
    from mer.pipeline.datasets import prepare
    from mer.pipeline.extraction import extract
    from mer.pipeline.extraction.options import ExtractOptions
    from mer.pipeline.store import FeatureStore

    manifest, _ = prepare("synthetic", args.out / "synthetic", seed=args.seed)
    head = args.out / "feats.h5"
    extract(
        manifest,
        head,
        ExtractOptions(audio_encoder="builtin:tiny-wav2vec2", text_encoder="builtin:tiny-roberta"),
    )
    runs, rows = {}, []
    with FeatureStore(head) as store:
        for model in (*SINGLE, *args.models.split(",")):
            runs[model] = experiment.train(
                store,
                config.load(model=model, sets=["data.layers=stored"]),
                args.out / "runs" / model,
                seeds=5,
                note=lambda line: None,
            )
    better = max(SINGLE, key=lambda m: sum(child.info.dev["ua"] for child in runs[m].children))
    found = {
        m: tree(stored_metrics(run) or evaluate(run, note=lambda line: None))
        for m, run in runs.items()
    }
    for model, run in runs.items():
        f = found[model]
        row = {
            "model": model,
            "generator_seed": args.seed,
            "n": f["n"],
            "bootstrap": f["bootstrap"],
        }
        row |= {
            k: {"mean": f["metrics"][k], "sd": f["sd"][k], "interval": f["interval"][k]}
            for k in ("ua", "wf1")
        }
        if model not in SINGLE:
            row["minus_better_single"] = gap(report.compare(runs[better], run, metric="ua"), better)
            if model != "concat" and "concat" in runs:
                paired = report.compare(runs["concat"], run, metric="ua")
                row["minus_concat"] = gap(paired, "concat")
        rows.append(row)
        print(line(row))
    name = "synthetic" if args.seed == 0 else f"synthetic-seed{args.seed}"
    print(
        save(
            name,
            rows,
            command=f"python -m tests.bench synthetic --out DIR --seed {args.seed} --models "
            f"{args.models}",
        )
    )


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
