"""A clip without a modality got the answer of that modality's head to nothing (found by a user),
and `mer evaluate` scored each head on rows without its modality, too.
"""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest

from mer.commands import predicting
from mer.fusion import report
from mer.fusion.evaluation import answer_text, means, robustness
from mer.fusion.evaluation.evaluate import evaluate
from mer.fusion.report import pictures
from mer.fusion.runs import result_files
from mer.fusion.runs.checkpoint import Run
from mer.fusion.runs.records import HeadScores
from mer.fusion.runtime import typed
from mer.fusion.training import experiment

from tests.fusion.stores import make_store, quiet
from tests.fusion.test_crosscorpus import renamed
from tests.fusion.test_train import settings
from tests.fusion.test_unimodal import own

pytestmark = pytest.mark.usefixtures("few_resamples")

WITHOUT_TEXT, WHOLE = "u000", "u001"
TASKS = ("single", "multi", "regression")


def predicted(tmp_path, task: str, ids, *, seeds: int = 1):
    """What `mer predict` makes of some clips whose features are those of a store's rows."""
    store = make_store(tmp_path, n=60, task=task, absent={"text": [0]})
    config = settings("train.epochs=1", model="drkf")
    run = experiment.train(store, config, tmp_path / "run", seeds=seeds, note=quiet)
    clips = [predicting.Utterance(id=name, audio="a.wav") for name in ids]
    rows = predicting._rows(run.children, store, clips, {}, "cpu", predicting.SILENT)
    return rows, run.children[0].spec


def cells(rows, spec) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(answer_text.as_csv(rows, spec))))


@pytest.mark.parametrize("task", TASKS)
def test_a_head_says_nothing_of_a_modality_that_the_clip_lacks(tmp_path, task):
    rows, spec = predicted(tmp_path, task, [WITHOUT_TEXT, WHOLE])
    without, whole = rows
    assert without["missing"] == ["text"] and whole["missing"] == []
    assert without["pred_text"] is None and without["pred_audio"] is not None
    assert whole["pred_text"] is not None and whole["pred_audio"] is not None
    said = [line for line in answer_text.prediction_lines(without, spec) if "each alone" in line]
    assert len(said) == 1 and said[0].endswith("  text –") and "audio –" not in said[0]
    assert "–" not in "".join(
        line for line in answer_text.prediction_lines(whole, spec) if "each alone" in line
    )
    assert cells(rows, spec)[0]["pred_text"] == ""
    # alone, too: the model has the head, so the column is there
    assert cells(rows[:1], spec)[0]["pred_text"] == ""


def test_a_mean_over_seeds_has_no_answers_of_heads(tmp_path):
    rows, spec = predicted(tmp_path, "single", [WITHOUT_TEXT], seeds=2)
    assert not any(name.startswith("pred_") for name in rows[0])
    lines = answer_text.prediction_lines(rows[0], spec)
    assert not any("each alone" in line for line in lines)


# ---- Figures of heads

THREE = {"audio": 6, "text": 5, "vision": 4}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """By task, a run of three modalities on rows of which some lack one or two."""
    absent = {"audio": [16, 17, 18], "text": [17, 38], "vision": range(36, 40)}
    made = {}
    for task in TASKS:
        folder = tmp_path_factory.mktemp(task)
        store = make_store(folder, n=60, task=task, absent=absent, modalities=THREE)
        config = settings("train.epochs=1", model="drkf")
        made[task] = store, experiment.train(store, config, folder / "run", note=quiet)
    return made


def by_hand(store, table) -> list[dict]:
    """The rows of predictions.parquet, each with the modalities that the store has of it."""
    place = {name: row for row, name in enumerate(store.table()["id"].to_pylist())}
    rows = table.to_pylist()
    for row in rows:
        row["there"] = {m for m in THREE if store.lengths(m)[place[row["id"]]] > 0}
    return rows


def alike(task: str, a, b) -> bool:
    """Whether two heads say the same: of numbers whether they are on one side of 0."""
    return (a > 0) == (b > 0) if task == "regression" else a == b


@pytest.mark.parametrize("task", TASKS)
def test_a_head_is_scored_on_the_rows_that_have_its_modality(runs, task):
    store, run = runs[task]
    found = evaluate(run, note=quiet)
    rows = by_hand(store, pq.read_table(run.path / "predictions.parquet"))
    assert len(rows) == 12 and sum(len(row["there"]) for row in rows) == 12 * 3 - 9
    for m, lack in (("audio", 3), ("text", 2), ("vision", 4)):
        there = [row for row in rows if m in row["there"]]
        assert all((row[f"pred_{m}"] is None) == (m not in row["there"]) for row in rows)
        head = found.unimodal[m]
        assert (head.n, head.without) == (12 - lack, lack) == (len(there), 12 - len(there))
        if task == "single":
            right = np.mean([row["label"] == row[f"pred_{m}"] for row in there])
            assert head["wa"] == pytest.approx(right)
        if task == "regression":
            # within [-1, 1], as CH-SIMS scores such targets
            said = np.clip([row[f"pred_{m}"] for row in there], -1, 1)
            errors = np.abs(said - [row["targets"][0] for row in there])
            assert head["mae"] == pytest.approx(errors.mean())


@pytest.mark.parametrize("task", TASKS)
def test_heads_agree_or_not_where_two_of_them_answer(runs, task):
    """Row 17 has vision alone, row 38 sound alone: there is nothing to agree with."""
    store, run = runs[task]
    found = evaluate(run, note=quiet)
    agree, differ = [], []
    for row in by_hand(store, pq.read_table(run.path / "predictions.parquet")):
        said = [row[f"pred_{m}"] for m in sorted(row["there"])]
        if len(said) > 1:
            same = all(alike(task, one, other) for one in said for other in said)
            (agree if same else differ).append(row)
    assert len(agree) + len(differ) == 10
    for subset, kept in ((found.heads_agree, agree), (found.heads_disagree, differ)):
        assert (subset.n, subset.of) == (len(kept), 10)
        assert subset.share == pytest.approx(len(kept) / 10)
        if kept and task == "single":
            right = np.mean([row["label"] == row["pred"] for row in kept])
            assert subset["wa"] == pytest.approx(right)
    measured = robustness.measure(run, note=quiet)
    assert [one.n for one in measured.heads] == [len(agree), len(differ)]


def test_tables_say_on_how_many_rows_each_head_was_scored(runs):
    _, run = runs["single"]
    found = evaluate(run, note=quiet)
    assert replace(result_files.stored_metrics(run), predictions_sha256=None) == found
    table = next(one for one in report.tables(found) if "unimodal heads" in one.title)
    counts = {row[0]: row[-1] for row in table.rows}
    assert table.columns[-1] == "n"
    assert [counts[f"{m} alone"] for m in THREE] == ["9", "10", "8"]
    assert int(counts["heads agree"]) + int(counts["heads disagree"]) == 10
    assert any("on the n utterances that have its modality" in x for x in report.remarks(found))
    assert "on the utterances that have it" in pictures.unimodal(found).title
    # where nobody lacks anything n is that of the run, and stands in its title
    whole = {m: replace(head, n=12, without=0) for m, head in found.unimodal.items()}
    whole = replace(found, unimodal=whole)
    table = next(one for one in report.tables(whole) if "unimodal heads" in one.title)
    assert "n" not in table.columns and {len(row) for row in table.rows} == {len(table.columns)}
    assert not any("its modality" in line for line in report.remarks(whole))


def test_figures_of_an_earlier_mer_are_read_as_they_are(runs):
    _, run = runs["single"]
    found = evaluate(run, note=quiet)
    path = run.path / "metrics.json"
    tree = json.loads(path.read_text())
    tree.pop("sha256")
    for one in (*tree["unimodal"].values(), tree["heads_agree"], tree["heads_disagree"]):
        for key in ("n", "without", "of"):
            one.pop(key, None)
    path.write_text(json.dumps(tree))
    old = result_files.stored_metrics(Run.open(run.path))
    assert old.unimodal["text"].n is None
    assert old.unimodal["text"].figures == found.unimodal["text"].figures
    table = next(one for one in report.tables(old) if "unimodal heads" in one.title)
    assert "n" not in table.columns
    assert typed.tree(old) == {key: value for key, value in tree.items()}


def test_labels_of_its_own_count_where_the_modality_is_there(tmp_path):
    """A head has nothing to go by where its modality is absent, whatever the raters said of it."""
    made = make_store(tmp_path, n=60, absent={"text": [16, 17]})
    store = renamed(made, lambda row: {**row, "unimodal": own(row)})
    run = experiment.train(
        store, settings("train.epochs=1", model="drkf"), tmp_path / "run", note=quiet
    )
    found = evaluate(run, note=quiet)
    table = pq.read_table(run.path / "predictions.parquet").to_pylist()
    kept = [row for row in table if row["unimodal_text"] is not None and row["pred_text"]]
    rated = sum(row["unimodal_text"] is not None for row in table)
    assert len(kept) == rated - 2 == found.own_labels["text"].n
    assert found.own_labels["text"].without == 12 - len(kept)
    right = np.mean([row["unimodal_text"] == row["pred_text"] for row in kept])
    assert found.own_labels["text"]["wa"] == pytest.approx(right)
    assert found.unlike_heads.of == len(kept)


def test_a_fold_without_a_modality_does_not_blank_the_head_of_the_others(tmp_path):
    """Three folds, by session; no utterance of the first has words."""
    dialogues = np.arange(60) // 4
    absent = {"text": np.flatnonzero(dialogues % 3 == 0).tolist()}
    store = make_store(tmp_path, n=60, absent=absent)
    config = settings("train.epochs=1", model="drkf")
    run = experiment.train(store, config, tmp_path / "run", folds="session", note=quiet)
    found = evaluate(run, note=quiet)
    children = [result_files.stored_metrics(child).unimodal["text"] for child in run.children]
    with_words = [one for one in children if one.n]
    head = found.unimodal["text"]
    assert [one.n for one in children].count(0) == head.runs_without == 1
    assert head["wa"] == pytest.approx(np.mean([one["wa"] for one in with_words]))
    assert head.n == pytest.approx(np.mean([one.n for one in children]))
    said = "1 of 3 runs have no utterances with text; the row of its head leaves them out."
    assert said in report.remarks(found)


def test_a_label_that_one_fold_lacks_is_not_lost_with_the_others():
    """Of three runs the first knows nothing of audio."""

    class Scored:
        own_labels = heads_agree = heads_disagree = discrimination = inconsistent = None
        unlike_labels = unlike_heads = attention = calibration = soft = None

        def __init__(self, **heads):
            self.unimodal = heads

    text = HeadScores(n=4, without=0, figures={"wa": 0.5})
    few, more = (HeadScores(n=n, without=1, figures={"wa": n / 10}) for n in (2, 6))
    parts = means.mean_parts([Scored(text=text), Scored(audio=few), Scored(audio=more)])
    audio = parts["unimodal"]["audio"]
    assert (audio.n, audio["wa"], audio.runs_without) == (4, pytest.approx(0.4), 1)
