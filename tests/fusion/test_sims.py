"""The measures of CH-SIMS against an implementation in plain loops, written from the definitions of
Yu et al. 2020 (ACL) and of thuiar/MMSA's `eval_sims_regression`: clip to ±1; two classes [-1, 0]
and (0, 1]; three, [-1, -0.1], (-0.1, 0.1], (0.1, 1]; five, ends -0.7, -0.1, 0.1, 0.7; labels in
float32.
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner

from mer.cli import main
from mer.fusion import report
from mer.fusion.evaluation.evaluate import evaluate
from mer.fusion.measures import metrics
from mer.fusion.training import experiment
from mer.pipeline.store import FeatureStore, ModalityInfo, ShardWriter, build_index

from tests.fusion.stores import make_store, quiet
from tests.fusion.test_train import settings

ENDS = {2: [-1.01, 0.0, 1.01], 3: [-1.01, -0.1, 0.1, 1.01], 5: [-1.01, -0.7, -0.1, 0.1, 0.7, 1.01]}
GRID = [round(0.2 * k - 1, 1) for k in range(11)]  # the labels of CH-SIMS


def single(x: float) -> float:
    """`x` as float32 has it."""
    return struct.unpack("f", struct.pack("f", x))[0]


def bin_of(x: float, ends: list[float]) -> int:
    for number in range(len(ends) - 1):
        if single(ends[number]) < single(x) <= single(ends[number + 1]):
            return number
    raise AssertionError(x)


def in_loops(true: list[float], pred: list[float]) -> dict[str, float]:
    true = [min(max(x, -1.0), 1.0) for x in true]
    pred = [min(max(x, -1.0), 1.0) for x in pred]
    n = len(true)
    found = {"n": n, "mae": sum(abs(a - b) for a, b in zip(true, pred, strict=True)) / n}
    for classes, ends in ENDS.items():
        hits = 0
        for a, b in zip(true, pred, strict=True):
            hits += bin_of(a, ends) == bin_of(b, ends)
        found[f"sims_acc{classes}"] = hits / n
    f1 = 0.0
    for c in (0, 1):
        reference = [bin_of(a, ENDS[2]) == c for a in true]
        predicted = [bin_of(b, ENDS[2]) == c for b in pred]
        hit = sum(a and b for a, b in zip(reference, predicted, strict=True))
        if sum(reference):
            f1 += sum(reference) / n * 2 * hit / (sum(reference) + sum(predicted))
    found["sims_f1"] = f1
    a, b = sum(true) / n, sum(pred) / n
    both = sum((x - a) * (y - b) for x, y in zip(true, pred, strict=True))
    spread = math.sqrt(sum((x - a) ** 2 for x in true) * sum((y - b) ** 2 for y in pred))
    constant = len(set(true)) == 1 or len(set(pred)) == 1
    found["pearson"] = math.nan if constant else both / spread
    return found


@pytest.mark.parametrize("seed", range(200))
def test_measures_equal_plain_loops(seed):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 60))
    true = rng.choice(GRID, n).astype(np.float32)
    pred = rng.normal(0, 0.7, n).astype(np.float32)  # a tenth of them beyond ±1
    edges = rng.random(n) < 0.3
    pred[edges] = rng.choice([0.0, -0.0, -0.1, 0.1, -0.7, 0.7, -1.0, 1.0, 1.5, -1.01], edges.sum())
    if seed % 10 == 0:
        pred[:] = true  # ties all along
    if seed % 10 == 1:
        true[:] = 0.0
    found = metrics.sims(true, pred)
    assert found == pytest.approx(in_loops(true.tolist(), pred.tolist()), abs=1e-12, nan_ok=True)


def test_ends_by_hand():
    """0 is negative; -0.1 is negative of three, 0.1 is neutral; ±0.7 belong to the bin below."""
    places = [-1.0, -0.7, -0.69, -0.1, -0.09, 0.0, 0.1, 0.11, 0.7, 0.71, 1.0]
    bins = {
        k: metrics._bins(np.array(places), ends).tolist() for k, ends in metrics.SIMS_ENDS.items()
    }
    assert bins[2] == [0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1]
    assert bins[3] == [0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 2]
    assert bins[5] == [0, 0, 1, 1, 2, 2, 2, 3, 3, 4, 4]


def test_nothing_gives_nothing():
    found = metrics.sims(np.zeros(0), np.zeros(0))
    assert found["n"] == 0 and all(math.isnan(v) for k, v in found.items() if k != "n")


@pytest.mark.parametrize(
    ("name", "target", "whose"),
    [
        ("sims", [-1.0, 0.4], "sims"),
        ("CH-SIMS", [0.2], "sims"),
        ("chsimsv2", [0.0, 1.0], "sims"),
        ("simsv2s", [-0.2], "sims"),
        ("sims", [-3.0, 1.0], "mosi"),  # of another range than the name says
        ("mosi", [-1.0, 1.0], "mosi"),
        ("CMU-MOSEI", [-0.3, 0.3], "mosi"),
        ("unaligned_39", [-1.0, 0.8], "sims"),
        ("unaligned_39", [-1.0, 1.2], "mosi"),
        ("unaligned_50", [0.0, 1.0], "mosi"),
        ("mine", [float("nan"), -0.2], "sims"),
        ("mine", [float("nan")], "mosi"),
    ],
)
def test_whose_measures(name, target, whose):
    assert metrics.measures_of(name, np.array(target)[:, None]) == whose


def sims_store(folder, dataset="sims") -> FeatureStore:
    """Sixty utterances whose one feature is the label, so that a model can learn it."""
    rng = np.random.default_rng(0)
    shard = folder / "s.shards" / "shard-00000.h5"
    shard.parent.mkdir(parents=True)
    labels = rng.choice(GRID, 60)
    with ShardWriter(shard, {"text": 2}) as writer:
        for i, y in enumerate(labels):
            writer.add(f"u{i}", {"text": np.full((1, 2), y, np.float32)}, duration=1.0)
    rows = []
    for i, y in enumerate(labels):
        rows.append(
            {
                "id": f"u{i}",
                "split": ("train", "train", "dev", "test")[i % 4],
                "targets": [float(y)],
                "dialogue": f"d{i}",
            }
        )
    info = {"text": ModalityInfo(2, None, encoder="t")}
    return build_index(
        folder / "s.h5",
        [shard],
        rows,
        dataset=dataset,
        task="regression",
        labels=("sentiment",),
        modalities=info,
    )


def test_a_run_on_sims_is_scored_and_named_so(tmp_path):
    store, said = sims_store(tmp_path), []
    config = settings("train.epochs=2", "train.select_metric=sims_acc3")
    run = experiment.train(store, config, tmp_path / "run", note=said.append)
    assert any("measures of CH-SIMS" in line for line in said)
    found = evaluate(run, note=quiet)
    assert found.measures == "sims" and "acc7" not in found.metrics.figures
    assert report.tables(found)[0].title.endswith("measures of CH-SIMS")
    shown = CliRunner().invoke(
        main,
        [
            "train",
            "--features",
            str(store.path),
            "--out",
            str(tmp_path / "run"),
            "--model",
            "concat",
            *[a for s in config_sets() for a in ("--set", s)],
        ],
    )
    assert shown.exit_code == 0, shown.output
    for title in (
        "Acc-2 (SIMS)",
        "F1 (SIMS)",
        "Acc-3 (SIMS)",
        "Acc-5 (SIMS)",
        "MAE",
        "Pearson",
        "measures of CH-SIMS",
    ):
        assert title in shown.stdout, title
    assert "Acc-7" not in shown.stdout
    same = report.compare(run, run)
    assert set(same.metrics) == {
        "mae",
        "pearson",
        "sims_acc2",
        "sims_f1",
        "sims_acc3",
        "sims_acc5",
    }
    figures = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert figures["measures"] == "sims"


def config_sets() -> list[str]:
    from tests.fusion.test_train import SMALL

    return [*SMALL, "train.epochs=2", "train.select_metric=sims_acc3"]


def test_mosi_keeps_its_own(tmp_path):
    store = make_store(tmp_path, task="regression", dataset="mosi")
    run = experiment.train(store, settings("train.epochs=1"), tmp_path / "run", note=quiet)
    found = evaluate(run, note=quiet)
    assert found.measures == "mosi" and {"acc7", "acc2_has0"} <= found.metrics.figures.keys()
    assert report.tables(found)[0].title.endswith("measures of CMU-MOSI")
    assert not any("Scored by" in line for line in report.remarks(found))
    another = report.remarks(replace(found, dataset="own"))
    assert any("measures of CMU-MOSI, as all targets are within [-3, 3]" in x for x in another)
    told = report.glossary(found.metrics.figures)
    assert "Acc-7: likewise within ±3" in told and "Acc-2 (non 0)" in told
