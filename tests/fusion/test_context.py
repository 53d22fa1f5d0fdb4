"""Conversation context, from the store to the prediction: who is a neighbour, that nobody else is
ever seen, what is refused, and what is said of it.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner

from mer.cli import main
from mer.fusion import config, report
from mer.fusion.batch import OTHER, SAME, UNKNOWN, ContextSpec
from mer.fusion.data import context, feature_sets, sources
from mer.fusion.data.splits import assign, targets
from mer.fusion.evaluation import answering, evaluate
from mer.fusion.models import REGISTRY, baselines
from mer.fusion.models.base import FusionModel
from mer.fusion.runs import checkpoint, run_rows, runs_columns, runs_table
from mer.fusion.runs.checkpoint import Run
from mer.fusion.runtime import files
from mer.fusion.training import experiment, resume, train
from mer.pipeline.errors import DataError
from mer.pipeline.store import FeatureStore, ShardWriter, build_index

from tests.fusion.models import SMALL
from tests.fusion.stores import quiet

WIDTH = {"audio": 5, "text": 4}
LABELS = ("calm", "glad")


def turns(parts=("train", "train", "train", "dev", "test"), size: int = 6) -> list[dict]:
    """The table of one dialogue of `size` turns per part, two speakers in turn, labels in pairs."""
    rows = []
    for d, split in enumerate(parts):
        for t in range(size):
            rows.append(
                {
                    "id": f"d{d}t{t}",
                    "split": split,
                    "dialogue": f"d{d}",
                    "position": t,
                    "speaker": f"s{d}{t % 2}",
                    "session": f"S{d}",
                    "label": LABELS[(t // 2 + d) % 2],
                }
            )
    return rows


def features(name: str) -> dict[str, np.ndarray]:
    """Of one utterance, by its id alone."""
    rng = np.random.default_rng(list(name.encode()))
    return {m: rng.normal(size=(int(rng.integers(2, 6)), width)) for m, width in WIDTH.items()}


def store_of(folder: Path, rows: list[dict], changed: dict | None = None, labels=LABELS):
    """A store of these rows; `changed` has other features for some ids."""
    folder.mkdir(parents=True, exist_ok=True)
    shard = folder / "feats.shards" / "shard-00000.h5"
    with ShardWriter(shard, WIDTH, dtype="float32") as writer:
        for row in rows:
            writer.add(row["id"], {**features(row["id"]), **(changed or {}).get(row["id"], {})})
    return build_index(
        folder / "feats.h5", [shard], rows, dataset="talk", task="single", labels=labels
    )


def settings(model: str = "concat", kind: str = "both", *sets: str) -> config.TrainConfig:
    small = [
        f"model_args.{k}={','.join(map(str, v)) if isinstance(v, tuple) else v}"
        for k, v in SMALL.get(model, {"hidden": 8}).items()
    ]
    usual = ["train.epochs=2", "train.batch_size=8", "optim.lr=0.01", "data.context_width=2"]
    return config.load(model=model, sets=[*small, *usual, f"data.context={kind}", *sets])


def fitted(store, folder: Path, *args, said: list | None = None, **options) -> Run:
    note = quiet if said is None else said.append
    return experiment.train(store, settings(*args), folder, note=note, **options)


def around(store, rows, pool=None, kind="both", width=2) -> list[list[str | None]]:
    """The ids in the slots of each row."""
    ids = store.table()["id"].to_pylist()
    pool = np.arange(len(ids)) if pool is None else np.asarray(pool)
    found = context.neighbours(store.table(), np.asarray(rows), pool, ContextSpec(kind, width))
    return [[ids[pool[p]] if p >= 0 else None for p in places] for places in found.place.tolist()]


# ---- Who is a neighbour


def test_neighbours_by_hand(tmp_path):
    store = store_of(tmp_path, turns())
    assert around(store, [0, 2, 5]) == [
        [None, None, "d0t1", "d0t2"],
        ["d0t0", "d0t1", "d0t3", "d0t4"],
        ["d0t3", "d0t4", None, None],
    ]
    assert around(store, [0, 2, 6], kind="past") == [
        [None, None],
        ["d0t0", "d0t1"],
        [None, None],  # of another dialogue
    ]
    # the pool is of one part: the dialogue of the row may go on in another
    assert around(store, [2], pool=[0, 2, 3]) == [["d0t0", None, "d0t3", None]]


def test_neighbours_against_a_plain_loop(tmp_path):
    rng = np.random.default_rng(1)
    rows = turns(size=9)
    rows = [rows[i] for i in rng.permutation(len(rows))]  # in no order
    for i in rng.choice(len(rows), 12, replace=False):
        rows[i]["dialogue"] = rows[i]["dialogue"] if i % 3 else None
        rows[i]["speaker"] = None
    rows = [row for i, row in enumerate(rows) if i % 5]  # and with gaps
    store = store_of(tmp_path, rows)
    pool = np.sort(rng.choice(len(rows), 25, replace=False))
    asked = ContextSpec("both", 4)
    found = context.neighbours(store.table(), pool, pool, asked)
    for row, places, said in zip(pool, found.place, found.speaker, strict=True):
        own = rows[row]
        for offset, place, speaker in zip(asked.offsets, places, said, strict=True):
            expected, who = [], UNKNOWN
            for k, other in enumerate(pool):
                same = own["dialogue"] is not None and rows[other]["dialogue"] == own["dialogue"]
                if same and rows[other]["position"] == own["position"] + offset:
                    expected.append(k)
            if expected and own["speaker"] and rows[pool[expected[0]]]["speaker"]:
                other = rows[pool[expected[0]]]["speaker"]
                who = SAME if other == own["speaker"] else OTHER
            assert [p for p in [place] if p >= 0] == expected and speaker == who


def test_a_missing_turn_is_an_empty_slot_and_moves_no_other(tmp_path):
    rows = [row for row in turns() if row["id"] != "d0t3"]  # its clip has failed
    store = store_of(tmp_path, rows)
    ids = [row["id"] for row in rows]
    assert around(store, [ids.index("d0t4")]) == [["d0t2", None, "d0t5", None]]
    assert around(store, [ids.index("d0t2")]) == [["d0t0", "d0t1", None, "d0t4"]]
    batch = source(store, rows, "concat").batch(np.array([ids.index("d0t4")]))
    assert batch.context.there["text"].tolist() == [[True, False, True, False]]
    assert batch.context.offset.tolist() == [[-2, -1, 1, 2]]


def test_turns_in_another_order_of_rows_are_the_same(tmp_path):
    rows = turns()
    straight, back = store_of(tmp_path / "a", rows), store_of(tmp_path / "b", rows[::-1])
    for kind in ("past", "both"):
        first = around(straight, np.arange(len(rows)), kind=kind)
        assert around(back, np.arange(len(rows)), kind=kind) == first[::-1]


def test_two_unknown_speakers_are_unknown_not_the_same(tmp_path):
    rows = turns()
    for row in rows[:6]:
        row["speaker"] = None
    rows[7]["speaker"] = ""
    found = context.neighbours(
        store_of(tmp_path, rows).table(),
        np.arange(12),
        np.arange(12),
        ContextSpec("both", 1),
    )
    assert (found.speaker[:6] == UNKNOWN).all()
    # d1: t0 known, t1 not, t2 and t3 known
    assert found.speaker[6:9].tolist() == [[0, 0], [0, 0], [0, OTHER]]
    assert "9 with turns of an unknown speaker" in context.note(
        found, ContextSpec("both", 1), "train"
    )


def test_a_dialogue_of_one_turn_has_an_empty_mask_and_works(tmp_path):
    rows = turns(("train",) * 4 + ("dev", "dev", "test", "test"), size=1)
    for number, row in enumerate(rows):
        row["label"] = LABELS[number % 2]
    store = store_of(tmp_path, rows)
    said: list[str] = []
    run = fitted(store, tmp_path / "run", said=said)
    assert any("4 of 4 utterances without any" in line for line in said)
    assert evaluate.evaluate(run, note=quiet).metrics.n == 2


def source(store, rows, model: str, kind="both", where="device") -> sources.BatchSource:
    chosen = settings(model, kind, f"data.residence={where}").data
    summary = model == "concat"
    every = targets(store.table(), "single", store.header.labels)
    spec = feature_sets.spec(store, chosen, summary=summary)
    part = np.arange(len(rows))
    return sources.batch_source(store, spec, chosen, part, every, device="cpu", summary=summary)


@pytest.mark.parametrize("model", ["concat", "fusion"])
def test_what_is_shown_of_a_neighbour_by_hand(tmp_path, model):
    rows = turns()
    store = store_of(tmp_path, rows)
    for where in ("device", "stream"):
        part = source(store, rows, model, where=where)
        assert part.resident == (where == "device")
        [batch] = list(part.batches([np.array([1, 13])]))
        for row, name in ((0, "d0t0"), (1, "d2t0")):
            for m in WIDTH:
                x = features(name)[m].astype(np.float32)
                expected = x.mean(0)
                if model == "concat":
                    expected = np.concatenate([expected, np.sqrt(x.var(0) + 1e-8)])
                assert not batch.context.there[m][row, 0]  # two turns back there is nobody
                assert np.allclose(batch.context.x[m][row, 1], expected, atol=1e-5)
        assert batch.context.speaker[0].tolist() == [UNKNOWN, OTHER, OTHER, SAME]
        assert part.nbytes() > sum(4 * part.n[m].sum() * part.width(m) for m in WIDTH)


def test_pooled_batches_come_with_their_own_neighbours(tmp_path):
    """Batches of one step each are gathered several at a time."""
    rows = turns()
    part = source(store_of(tmp_path, rows), rows, "concat")
    order = [np.array([3, 1]), np.array([20]), np.array([7, 8, 9])]
    for index, batch in zip(order, part.batches(order), strict=True):
        alone = part.batch(index)
        assert torch.equal(batch.context.speaker, alone.context.speaker)
        for m in WIDTH:
            assert torch.equal(batch.context.x[m], alone.context.x[m])
            assert torch.equal(batch.context.there[m], alone.context.there[m])


def test_an_absent_modality_of_a_neighbour_is_not_there(tmp_path):
    rows = turns()
    store = store_of(tmp_path, rows, {"d0t1": {"audio": np.zeros((0, WIDTH["audio"]))}})
    batch = source(store, rows, "fusion").batch(np.array([0]))
    assert not batch.context.there["audio"][0, 2] and batch.context.there["text"][0, 2]


# ---- Nobody else is ever seen


def predictions(run: Run, split: str = "test") -> dict[str, list[float]]:
    stem = "" if split == "test" else f"-{split}"
    evaluate.evaluate(run, split=split, note=quiet)
    table = pq.read_table(run.path / f"predictions{stem}.parquet").to_pylist()
    return {row["id"]: [row[f"p_{name}"] for name in LABELS] for row in table}


@pytest.mark.parametrize("model", ["concat", "drkf", "dmd"])
def test_leak_only_turns_of_the_same_dialogue_and_part_change_a_prediction(tmp_path, model):
    """Features of one turn at a time become others, in a store that the run was not trained on."""
    rows = turns()
    # a dialogue that is in two parts: its test turns are not to see its training turns
    for row in rows[12:18]:
        row["split"] = "test" if row["position"] >= 3 else "train"
    run = fitted(store_of(tmp_path / "a", rows), tmp_path / "run", model)
    before = predictions(run)
    assert set(before) == {"d2t3", "d2t4", "d2t5", *(f"d4t{t}" for t in range(6))}

    def moved(name: str) -> set[str]:
        other = {name: {m: 9.0 + x for m, x in features(name).items()}}
        store = store_of(tmp_path / f"{name}", rows, other)
        table = run_on(run, store)
        return {
            one for one, shares in table.items() if not np.allclose(shares, before[one], atol=1e-7)
        }

    assert moved("d2t2") == set()  # same dialogue, another part
    assert moved("d0t0") == set() and moved("d3t0") == set()
    assert moved("d2t3") == {"d2t3", "d2t4", "d2t5"}  # and not d4, of the same part
    assert moved("d4t0") == {"d4t0", "d4t1", "d4t2"}  # not farther than two turns


def run_on(run: Run, store: FeatureStore) -> dict[str, list[float]]:
    """Predictions of the test part of another store."""
    rows = np.flatnonzero(np.array(store.table()["split"].to_pylist()) == "test")
    table = answering.predict_rows(run, store, rows).to_pylist()
    return {row["id"]: [row[f"p_{name}"] for name in LABELS] for row in table}


@pytest.mark.parametrize("model", ["text", "fusion"])
def test_past_never_depends_on_later_turns(tmp_path, model):
    rows = turns()
    run = fitted(store_of(tmp_path / "a", rows), tmp_path / "run", model, "past")
    before = predictions(run)
    other = {"d4t3": {m: 9.0 + x for m, x in features("d4t3").items()}}
    after = run_on(run, store_of(tmp_path / "b", rows, other))
    moved = {one for one in before if not np.allclose(before[one], after[one], atol=1e-7)}
    assert moved == {"d4t3", "d4t4", "d4t5"}


def test_what_is_learnt_does_not_depend_on_rows_of_other_parts(tmp_path):
    rows = turns()
    other = {f"d4t{t}": {m: 9 + x for m, x in features(f"d4t{t}").items()} for t in range(6)}
    first = fitted(store_of(tmp_path / "a", rows), tmp_path / "run-a")
    second = fitted(store_of(tmp_path / "b", rows, other), tmp_path / "run-b")
    a, b = (checkpoint.load_tensors(run.path / "model.safetensors")[0] for run in (first, second))
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_unlabelled_turns_are_seen_and_neither_trained_on_nor_scored(tmp_path):
    rows = turns()
    for row in rows:
        if row["position"] in (1, 4):
            row["label"] = None
    store = store_of(tmp_path / "a", rows)
    run = fitted(store, tmp_path / "run")
    assert run.info.counts == {"train": 12, "dev": 4}
    found = evaluate.evaluate(run, note=quiet)
    assert (found.metrics.n, found.unlabelled) == (4, 2)
    before = run_on(run, store)
    other = {"d4t1": {m: 9 + x for m, x in features("d4t1").items()}}
    after = run_on(run, store_of(tmp_path / "b", rows, other))
    moved = {one for one in before if not np.allclose(before[one], after[one], atol=1e-7)}
    assert moved == {"d4t0", "d4t1", "d4t2", "d4t3"}


def test_unlabelled_turns_go_with_their_group_when_dev_is_carved(tmp_path):
    rows = turns(("train",) * 4)
    for row in rows:
        row["label"] = None if row["position"] == 1 else row["label"]
    table = store_of(tmp_path, rows).table()
    target = targets(table, "single", LABELS)
    for by, together in (("dialogue", 6), ("utterance", 0)):
        split = assign(table, target, config.DataConfig(dev_by=by, dev_share=0.3))
        pools = (split.train_pool, split.dev_pool)
        assert not set(pools[0]) & set(pools[1])
        for rows_, pool in zip((split.train, split.dev), pools, strict=True):
            assert set(rows_) <= set(pool)
            if together:
                assert len(pool) % together == 0
        assert len(np.concatenate(pools)) == (24 if together else 20)


def test_folds_have_the_context_of_their_own_part(tmp_path):
    rows = turns(("",) * 5)
    store = store_of(tmp_path / "a", rows)
    run = fitted(store, tmp_path / "run", folds="session")
    evaluate.evaluate(run, note=quiet)
    table = pq.read_table(run.path / "predictions.parquet").to_pylist()
    assert {row["turns"] for row in table if row["position"] in (0, 5)} == {2}
    assert {row["turns"] for row in table if row["position"] in (2, 3)} == {4}


# ---- None is what it was


def test_without_context_nothing_of_it_is_written(tmp_path):
    """Neither in the files of a run nor in its key, so that runs of an earlier mer are the same."""
    rows = turns()
    store = store_of(tmp_path, rows)
    chosen = settings("concat", "none")
    assert "context" not in config.to_toml(replace(chosen, data=config.DataConfig()))
    run = experiment.train(
        store, replace(chosen, data=config.DataConfig()), tmp_path / "run", note=quiet
    )
    assert "context" not in (run.path / "config.toml").read_text()
    told = json.loads((run.path / "run.json").read_text())
    assert "turns_key" not in told and "context" not in told["spec"]
    evaluate.evaluate(run, note=quiet)
    table = pq.read_table(run.path / "predictions.parquet")
    assert table["turns"].null_count == len(table)
    assert table["position"].to_pylist() == list(range(6))


def test_the_order_of_turns_belongs_to_the_key_of_runs_with_context_alone(tmp_path):
    rows = turns()
    store = store_of(tmp_path / "a", rows)
    alone = fitted(store, tmp_path / "alone", "concat", "none")
    past = fitted(store, tmp_path / "past", "concat", "past")
    swapped = [{**row, "position": (row["position"] + 1) % 6} for row in rows]
    other = store_of(tmp_path / "b", swapped)
    assert checkpoint.store_key(other) == checkpoint.store_key(store)
    assert checkpoint.same_rows(alone, other) and not checkpoint.same_rows(past, other)
    assert checkpoint.same_rows(past, store)
    # the same command does nothing on the same order, and is refused on another
    said: list[str] = []
    fitted(store, tmp_path / "past", "concat", "past", said=said)
    assert any("already trained" in line for line in said)
    with pytest.raises(DataError, match="holds another run"):
        fitted(other, tmp_path / "past", "concat", "past")
    assert fitted(other, tmp_path / "alone", "concat", "none").finished


def test_a_resumed_run_with_context_is_the_uninterrupted_one(tmp_path, monkeypatch):
    store = store_of(tmp_path, turns())
    whole = fitted(store, tmp_path / "whole", "drkf", "past", "train.epochs=3")
    kept = train._one_epoch

    def killed(training, keeper, parts, progress):
        if progress.epoch == 2:
            raise KeyboardInterrupt
        return kept(training, keeper, parts, progress)

    monkeypatch.setattr(train, "_one_epoch", killed)
    monkeypatch.setattr(resume, "SAVE_SECONDS", 0.0)
    with pytest.raises(KeyboardInterrupt):
        fitted(store, tmp_path / "cut", "drkf", "past", "train.epochs=3")
    monkeypatch.setattr(train, "_one_epoch", kept)
    again = fitted(store, tmp_path / "cut", "drkf", "past", "train.epochs=3")
    a, b = (checkpoint.load_tensors(run.path / "model.safetensors")[0] for run in (whole, again))
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("name", sorted(set(REGISTRY) - {"vision"}))
def test_every_model_trains_with_context_and_is_scored(tmp_path, name):
    run = fitted(store_of(tmp_path, turns()), tmp_path / "run", name, "both", "train.epochs=1")
    assert run.spec.context == ContextSpec("both", 2)
    found = evaluate.evaluate(run, note=quiet)
    assert found.context == "both 2" and found.metrics.n == 6


# ---- What is refused, in one line


def refused(tmp_path, rows, *sets: str) -> str:
    """What `mer train` says of it."""
    store = store_of(tmp_path, rows)
    asked = [part for one in ("data.context=past", *sets) for part in ("--set", one)]
    out = tmp_path / "run"
    result = CliRunner().invoke(
        main, ["train", str(store.path), "--model", "concat", "--out", str(out), *asked]
    )
    assert result.exit_code == 1 and "Traceback" not in result.output, result.output
    assert not out.exists()  # nothing is begun
    [line] = result.stderr.strip().splitlines()
    assert len(line) <= 300
    return line


def test_refused_a_store_without_dialogues(tmp_path):
    rows = [{**row, "dialogue": None, "position": None} for row in turns()]
    assert "names no dialogues" in refused(tmp_path, rows)


def test_refused_positions_that_are_missing(tmp_path):
    rows = turns()
    rows[3]["position"] = rows[8]["position"] = None
    line = refused(tmp_path, rows)
    assert "2 utterances of dialogues have no position (first: d0t3)" in line


def test_refused_positions_below_zero(tmp_path):
    """A script may write -1 for a place that it does not know."""
    rows = turns()
    rows[3]["position"] = -1
    assert "d0t3 has position -1; positions count from 0" in refused(tmp_path, rows)
    rows[3]["dialogue"] = None  # of no dialogue, it has no place there
    fitted(store_of(tmp_path / "other", rows), tmp_path / "run")


def test_refused_positions_that_are_there_twice(tmp_path):
    rows = turns()
    rows[3]["position"] = 1
    line = refused(tmp_path, rows)
    assert "d0t1 and d0t3 both have position 1 of dialogue d0" in line


def test_dialogues_are_numbered_anew_in_each_split(tmp_path):
    """As in MELD: dialogue 0 of train is not dialogue 0 of test."""
    rows = [{**row, "dialogue": "0"} for row in turns(("train", "dev", "test"))]
    run = fitted(store_of(tmp_path, rows), tmp_path / "run")
    assert evaluate.evaluate(run, note=quiet).metrics.n == 6
    with pytest.raises(DataError, match="both have position 0 of dialogue 0"):
        context.neighbours(
            FeatureStore(tmp_path / "feats.h5").table(),
            np.arange(18),
            np.arange(18),
            ContextSpec("past", 1),
        )


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ("data.context=future", "expected one of none, past, both"),
        ("data.context_width=0", "at least 1 and at most 256"),
        ("data.context_width=257", "at least 1 and at most 256"),
        ("data.context_width=2.5", "expected a whole number"),
        ("data.contxt=past", "did you mean 'context'"),
    ],
)
def test_refused_settings(tmp_path, asked, says):
    assert says in refused(tmp_path, turns(), asked)


def test_refused_a_model_that_reads_no_neighbours(tmp_path, monkeypatch):
    class Deaf(FusionModel):
        def __init__(self, config, spec):
            super().__init__(config, spec)

    monkeypatch.setattr(baselines, "Concat", Deaf)
    assert "concat reads no neighbours" in refused(tmp_path, turns())


def test_evaluating_on_a_store_without_an_order_is_refused(tmp_path):
    run = fitted(store_of(tmp_path / "a", turns()), tmp_path / "run")
    rows = [{**row, "position": None} for row in turns()]
    other = store_of(tmp_path / "b", rows)
    with pytest.raises(DataError, match="no position") as caught:
        evaluate.evaluate(run, other.path, note=quiet)
    # what a run is trained with can no longer be left out
    assert "take a run that was trained without context" in str(caught.value)
    assert "data.context out" not in str(caught.value)


# ---- What is said of it


def test_every_table_names_the_kind(tmp_path, capsys):
    store = store_of(tmp_path, turns())
    made = {}
    for kind in ("none", "past", "both"):
        made[kind] = fitted(store, tmp_path / "runs" / kind, "concat", kind)
        found = evaluate.evaluate(made[kind], note=quiet)
        title = report.tables(found)[0].title
        words = "without context" if kind == "none" else f"context {kind} 2"
        assert title == f"concat on talk test, 6 utterances, {words}"
        assert words in report.dev_table(made[kind]).title
        report.show(found, terminal=True)
        assert words in capsys.readouterr().out
    gap = report.compare(made["none"], made["past"])
    assert gap.contexts == ("none", "past 2")
    assert report.comparison_table(gap).title.endswith("context past 2 against none")
    same = report.comparison_table(report.compare(made["both"], made["both"]))
    assert same.title.endswith(", context both 2")
    page = report.page([made[kind] for kind in made])
    assert page.count("past 2") >= 2 and page.count("both 2") >= 2
    rows = run_rows.find([tmp_path / "runs"])
    names = runs_table.columns(rows)
    assert "data.context" in names and {
        runs_columns.cell(row, "data.context") for row in rows
    } == set(made)
    common = runs_table.common(rows[:1] * 2, runs_table.columns(rows[:1] * 2))
    assert "context both, context_width 2" in common


def test_a_group_over_seeds_names_it_too(tmp_path):
    store = store_of(tmp_path, turns())
    run = fitted(store, tmp_path / "run", "concat", "past", seeds=2)
    found = evaluate.evaluate(run, note=quiet)
    assert found.context == "past 2" and "context past 2" in report.tables(found)[0].title
    again = fitted(store, tmp_path / "run", "concat", "past", seeds=2)
    assert again.finished and files.read_json(run.path / "metrics.json", dict, "")["context"]
