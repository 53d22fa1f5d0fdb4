"""`mer evaluate --map`: a run on another corpus, whose labels are others. Figures are held against
scikit-learn's, from the store's own labels and the answers in predictions.parquet.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from sklearn import metrics as reference

from mer.cli import main
from mer.fusion import infer, report
from mer.fusion.evaluation import crosscorpus
from mer.fusion.evaluation.evaluate import evaluate
from mer.fusion.measures import metrics
from mer.fusion.runs import ledger
from mer.fusion.runs.records import GroupMetrics, SingleMetrics
from mer.fusion.runtime.files import read_json
from mer.fusion.training import experiment
from mer.pipeline.errors import DataError, KeyMismatchError
from mer.pipeline.store import FeatureStore

from tests.fusion.stores import LABELS, make_store, quiet, with_rows
from tests.fusion.test_train import settings

pytestmark = pytest.mark.usefixtures("few_resamples")

THERE = ("happy", "joyful", "boring")
MAPPING = ["happy=glad,joyful=glad,boring=sad"]
READ = {"happy": "glad", "joyful": "glad", "boring": "sad"}


@pytest.fixture(scope="module")
def there(tmp_path_factory):
    """A run over calm, glad and sad, and one over seeds and one over folds, all evaluated."""
    folder = tmp_path_factory.mktemp("here")
    store = make_store(folder)
    runs = {}
    for name, more in (("run", {}), ("seeds", {"seeds": 2}), ("folds", {"folds": "session"})):
        made = settings("train.epochs=1")
        runs[name] = experiment.train(store, made, folder / name, note=quiet, **more)
        evaluate(runs[name], note=quiet)
    return runs


def other(folder: Path, *, labels=THERE, prefix: str = "o", **given) -> FeatureStore:
    """Another corpus of the same features, its ids no other's."""
    return make_store(folder, n=40, dataset="other", labels=labels, seed=3, prefix=prefix, **given)


def renamed(store: FeatureStore, change) -> FeatureStore:
    """The same features under rows that `change` makes of its own."""
    return with_rows(store, [change(row) for row in store.table().to_pylist()])


def numbered(row: dict) -> dict:
    """A row with its place in its dialogue of four turns."""
    return {**row, "position": int(row["id"][1:]) % 4}


def refused(run, store, mapping, kind=DataError, **more) -> str:
    with pytest.raises(kind) as caught:
        evaluate(run, store.path, mapping=mapping, note=quiet, **more)
    said = str(caught.value)
    assert "\n" not in said and len(said) <= 300 + len(str(store.path))
    return said


def figures_of(path: Path, store: FeatureStore, read: dict[str, str]) -> dict[str, float]:
    """WA, UA, WF1 and macro-F1 by scikit-learn, over the labels that are mapped."""
    own = dict(zip(*(store.table()[name].to_pylist() for name in ("id", "label")), strict=True))
    table = pq.read_table(path)
    true = [read[own[name]] for name in table["id"].to_pylist()]
    pred = table["pred"].to_pylist()
    meant = sorted(set(read.values()))
    shares = reference.recall_score(true, pred, labels=meant, average=None, zero_division=0)
    f1 = {"labels": meant, "zero_division": 0}
    return {
        "wa": reference.accuracy_score(true, pred),
        "ua": float(np.mean(shares)),
        "wf1": reference.f1_score(true, pred, average="weighted", **f1),
        "macro_f1": reference.f1_score(true, pred, average="macro", **f1),
    }


def test_figures_over_the_mapped_labels(tmp_path, there):
    run, store = there["run"], other(tmp_path)
    before = {path.name: path.read_bytes() for path in run.path.iterdir()}
    found = evaluate(run, store.path, mapping=MAPPING, note=quiet)
    assert found.split == "test" and found.dataset == "other"
    path = run.path / "predictions-test-other.parquet"
    wanted = figures_of(path, store, READ)
    assert {name: found.metrics[name] for name in wanted} == pytest.approx(wanted)
    assert len(pq.read_table(path)) == 8 == found.metrics.n
    # calm, which no label stands for, may be answered: it is wrong, and counted
    answers = pq.read_table(path)["pred"].to_pylist()
    assert found.mapped.unmet == {"calm": answers.count("calm")}
    assert found.mapped.labels == READ and found.mapped.left_out == {}
    assert set(found.metrics.per_class) == {"glad", "sad"}
    assert [sum(row) for row in found.metrics.confusion] == [
        0,
        *([READ[label] for label in _test_labels(store)].count(name) for name in ("glad", "sad")),
    ]
    written = read_json(run.path / "metrics-test-other.json", SingleMetrics, "")
    assert written.mapped == found.mapped
    for name, raw in before.items():
        if name not in ("metrics-test-other.json", "test_log.jsonl", path.name):
            assert (run.path / name).read_bytes() == raw, name


def _test_labels(store: FeatureStore) -> list[str]:
    rows = store.table().to_pylist()
    return [row["label"] for row in rows if row["split"] == "test"]


def test_a_model_that_answers_what_nobody_is(tmp_path, there, monkeypatch):
    """By hand: every answer is calm, which no label of the corpus stands for."""
    store = other(tmp_path)
    real = infer.decide
    monkeypatch.setattr(infer, "decide", lambda *given: real(*given) * 0)
    found = evaluate(there["run"], store.path, mapping=MAPPING, note=quiet)
    assert [found.metrics[name] for name in ("wa", "ua", "wf1", "macro_f1")] == [0, 0, 0, 0]
    assert found.mapped.unmet == {"calm": 8}


def test_labels_that_stand_for_none_are_left_out_and_counted(tmp_path, there):
    run, store = there["run"], other(tmp_path, unlabelled=2)
    found = evaluate(run, store.path, "all", mapping=["happy=glad", "boring="], note=quiet)
    labels = store.table()["label"].to_pylist()
    left_out = {"boring": labels.count("boring"), "joyful": labels.count("joyful")}
    assert found.mapped.left_out == left_out
    assert found.unlabelled == 2 and found.metrics.n == labels.count("happy")
    table = pq.read_table(run.path / "predictions-all-other.parquet")
    kept = [name for name in labels if name in ("happy", None)]
    assert table["label"].to_pylist() == [name and "glad" for name in kept]
    assert list(found.mapped.unmet) == ["calm", "sad"]
    said = "\n".join(report.remarks(found))
    assert f"boring ({left_out['boring']} utterances), joyful ({left_out['joyful']}" in said
    assert "happy = glad" in said and "No label of other stands for the run's calm (" in said
    assert found.metrics["ua"] == found.metrics["wa"]  # one class


def test_same_names_stand_for_each_other(tmp_path, there):
    store = other(tmp_path, labels=("sad", "happy", "glad"))
    found = evaluate(there["run"], store.path, mapping=["happy=calm"], note=quiet)
    assert found.mapped.labels == {"sad": "sad", "happy": "calm", "glad": "glad"}
    assert found.mapped.unmet == {} and "No label of" not in "\n".join(report.remarks(found))
    found = evaluate(there["run"], store.path, mapping=[""], note=quiet)
    assert found.mapped.labels == {"sad": "sad", "glad": "glad"}
    found = evaluate(there["run"], store.path, mapping=["sad="], note=quiet)
    assert found.mapped.labels == {"glad": "glad"}


def test_one_corpus_under_two_orders_of_its_labels(tmp_path, there):
    """Mapped by name, the same clips have the same answers and figures as without a map."""
    run = there["run"]
    same = make_store(tmp_path / "same", dataset="again", seed=5)
    plain = evaluate(run, same.path, note=quiet)
    turned = make_store(tmp_path / "turned", dataset="turned", seed=5)
    turned = with_rows(turned, turned.table().to_pylist(), labels=LABELS[::-1])
    said = refused(run, turned, None, KeyMismatchError)
    assert "--map LABEL=ANSWER" in said
    found = evaluate(run, turned.path, mapping=[""], note=quiet)
    assert found.metrics == plain.metrics


def test_a_corpus_without_a_test_part_is_scored_whole(tmp_path, there):
    store = other(tmp_path, splits=False)
    found = evaluate(there["run"], store.path, mapping=MAPPING, note=quiet)
    assert found.split == "all" and found.metrics.n == 40
    assert "on other as a whole" in report.tables(found)[0].title
    store = other(tmp_path / "split")
    assert evaluate(there["run"], store.path, "all", mapping=MAPPING, note=quiet).metrics.n == 40
    assert evaluate(there["run"], store.path, "dev", mapping=MAPPING, note=quiet).metrics.n == 8
    # of the same labels, a whole corpus needs no map
    same = other(tmp_path / "same", labels=LABELS)
    assert evaluate(there["run"], same.path, "all", note=quiet).metrics.n == 40


def test_runs_over_seeds_and_folds_are_means_over_the_same_rows(tmp_path, there):
    store = other(tmp_path)
    for name, count in (("seeds", 2), ("folds", 3)):
        run = there[name]
        own = (run.path / "metrics.json").read_bytes()
        found = evaluate(run, store.path, "all", mapping=MAPPING, note=quiet)
        assert (run.path / "metrics.json").read_bytes() == own
        assert isinstance(found, GroupMetrics) and len(run.children) == count
        each = []
        for child in run.children:
            each.append(figures_of(child.path / "predictions-all-other.parquet", store, READ))
        for figure, value in found.metrics.figures.items():
            values = [one[figure] for one in each]
            assert value == pytest.approx(np.mean(values))
            assert found.sd[figure] == pytest.approx(np.std(values, ddof=1))
        assert (found.n, found.unlabelled, found.pooled) == (40, 0, None)
        assert np.sum(found.confusion) == pytest.approx(40)
        answers = [
            pq.read_table(child.path / "predictions-all-other.parquet")["pred"].to_pylist()
            for child in run.children
        ]
        calm = np.mean([said.count("calm") for said in answers])
        assert found.mapped.unmet == {"calm": pytest.approx(calm)}
        written = read_json(run.path / "metrics-all-other.json", GroupMetrics, "")
        assert written.mapped == found.mapped


def test_openings_are_noted_by_the_corpus_own_labels(tmp_path, there):
    """So that whoever trained on that corpus has seen the same test part."""
    store, lines = other(tmp_path, unlabelled=2), []
    evaluate(there["run"], store.path, mapping=["happy=glad"], note=lines.append)
    rows = [row for row in store.table().to_pylist() if row["split"] == "test" and row["label"]]
    pairs = [row["id"] for row in rows], [row["label"] for row in rows]
    (line,) = (tmp_path / "feats.ledger.jsonl").read_text().splitlines()
    assert json.loads(line)["content"] == ledger.content_of("single", THERE, *pairs)
    assert "test part: 8 rows, seen by 1 configuration (1 training)" in lines
    evaluate(there["run"], store.path, "dev", mapping=MAPPING, note=quiet)
    assert len((tmp_path / "feats.ledger.jsonl").read_text().splitlines()) == 1
    evaluate(there["run"], store.path, "all", mapping=["happy=glad"], note=quiet)
    assert len((tmp_path / "feats.ledger.jsonl").read_text().splitlines()) == 2


def test_rows_that_trained_the_run(tmp_path, there):
    run = there["run"]
    with pytest.raises(DataError, match="96 of its rows .*not seen"):
        evaluate(run, split="all", note=quiet)
    lines = []
    evaluate(run, other(tmp_path, prefix="u").path, mapping=MAPPING, note=lines.append)
    assert "have ids that training" not in "\n".join(lines)
    evaluate(run, other(tmp_path, prefix="u").path, "all", mapping=MAPPING, note=lines.append)
    assert "32 rows (first: u000) have ids that training run had" in "\n".join(lines)


def test_neighbours_in_a_dialogue_are_there_though_their_labels_are_left_out(tmp_path):
    store = renamed(make_store(tmp_path / "here"), numbered)
    asked = settings("train.epochs=1", "data.context=past", "data.context_width=3")
    run = experiment.train(store, asked, tmp_path / "run", note=quiet)
    there = renamed(other(tmp_path), numbered)
    evaluate(run, there.path, "all", mapping=["happy=glad"], note=quiet)
    table = pq.read_table(run.path / "predictions-all-other.parquet").to_pylist()
    assert [row["turns"] for row in table] == [row["position"] for row in table]
    assert len(table) < 40


@pytest.mark.parametrize(
    "mapping, said",
    [
        (["hapy=glad"], "has no such label (did you mean 'happy'?)"),
        (["happy=gladd"], "the run has no label gladd (did you mean 'glad'?)"),
        (["fear=glad"], "has no such label; known are happy, joyful, boring"),
        (["happy=fear"], "the run has no label fear; known are calm, glad, sad"),
        (["glad=happy"], "the label of the store comes first, the run's behind it: happy=glad"),
        (["happy=glad,happy=sad"], "happy is mapped twice"),
        (["happy=glad", "happy=glad"], "happy is mapped twice"),
        (["happy"], "expected LABEL=ANSWER"),
        (["happy=glad,joyful"], "--map joyful: expected LABEL=ANSWER"),
        (["=glad"], "has no such label"),
        (["happy="], "no label is mapped; its labels are happy, joyful, boring"),
        ([""], "no label is mapped"),
        ([",,"], "no label is mapped"),
        (["happy=glad\x1b[31m"], "the run has no label glad\\x1b"),
        (["x" * 5000 + "=glad"], "has no such label"),
    ],
)
def test_a_map_that_does_not_fit(tmp_path, there, mapping, said):
    assert said in refused(there["run"], other(tmp_path), mapping)


def test_names_with_commas_and_equals_signs(tmp_path, there):
    labels = ("glad, or so", "a=b", "boring")
    store = other(tmp_path, labels=labels)
    given = ["glad, or so=glad", "a=b=calm,boring=sad"]
    found = evaluate(there["run"], store.path, mapping=given, note=quiet)
    assert found.mapped.labels == dict(zip(labels, ("glad", "calm", "sad"), strict=True))


def test_another_kind_of_store(tmp_path, there):
    run = there["run"]
    said = refused(run, other(tmp_path / "multi", task="multi", labels=LABELS), [""])
    assert "--map is for single labels; its task is multi" in said
    said = refused(run, other(tmp_path / "r", task="regression"), ["happy=glad"])
    assert "its task is regression, that of the run is single" in said
    bare = other(tmp_path / "bare", modalities={"audio": 8})
    assert "has no text" in refused(run, bare, MAPPING, KeyMismatchError)
    wide = other(tmp_path / "wide", modalities={"audio": 8, "text": 7})
    assert "text.dim" in refused(run, wide, MAPPING, KeyMismatchError)
    one = other(tmp_path / "one")
    kept = renamed(one, lambda row: {**row, "label": "boring"})
    assert "none has a label that is mapped; there are boring (8)" in refused(
        run, kept, ["happy=glad"]
    )
    assert not (tmp_path / "one" / "feats.ledger.jsonl").exists()
    bare = renamed(one, lambda row: {**row, "label": None})
    assert "there are no labels" in refused(run, bare, ["happy=glad"])
    none = renamed(one, lambda row: {**row, "split": "test"})
    said = refused(run, none, MAPPING, split="dev")
    assert "no dev rows; --split all scores every row" in said


def test_the_command_line(tmp_path, there):
    run, store = there["run"], other(tmp_path)

    def mer(*given):
        return CliRunner().invoke(main, ["evaluate", str(run.path), *map(str, given)])

    asked = ("--features", store.path, "--map", MAPPING[0])
    outcome = mer(*asked, "--json")
    assert outcome.exit_code == 0, outcome.output
    assert json.loads(outcome.stdout)["mapped"]["labels"] == READ
    outcome = mer(*asked)
    assert "happy = glad, joyful = glad, boring = sad" in outcome.stdout
    assert mer("--map", MAPPING[0]).exit_code == 2
    for flag in ("--ensemble", "--robustness"):
        assert mer(*asked, flag).exit_code == 2
    wrong = mer("--features", store.path, "--map", "happy=fear")
    assert wrong.exit_code == 1 and wrong.stderr.strip().count("\n") == 0


def test_macro_f1_among_some_classes_equals_scikit_learns():
    """200 random cases, classes without a reference and empty rows among them; and the draws of
    the bootstrap are those of scoring every utterance.
    """
    rng = np.random.default_rng(0)
    for _ in range(200):
        classes = int(rng.integers(2, 7))
        among = sorted(rng.choice(classes, size=rng.integers(1, classes), replace=False).tolist())
        true = rng.choice(among, size=rng.integers(1, 30))
        pred = rng.integers(classes, size=len(true))
        found = metrics.classification(true, pred, [str(c) for c in range(classes)], among)
        there = [c for c in among if c in true or c in pred]
        wanted = reference.f1_score(true, pred, labels=there, average="macro", zero_division=0)
        assert found["macro_f1"] == pytest.approx(wanted)
        assert list(found["per_class"]) == [str(c) for c in among]
    groups = np.arange(len(true)) % 5
    quick = metrics.resampled_classification(true, pred, classes, groups, resamples=20, among=among)
    slow = metrics.resampled(
        lambda i: metrics.from_confusion(metrics.confusion(true[i], pred[i], classes), among),
        groups,
        resamples=20,
    )
    np.testing.assert_allclose(quick["macro_f1"], slow[:, 3])


def test_a_store_shows_the_runs_labels_and_keeps_its_own(tmp_path):
    store = other(tmp_path, unlabelled=1)
    read = crosscorpus.LabelMap({"happy": "glad"}, LABELS).show(store)
    assert read.header.labels == LABELS and store.header.labels == THERE
    wanted = [name and {"happy": "glad"}.get(name) for name in store.table()["label"].to_pylist()]
    assert read.table()["label"].to_pylist() == wanted
    assert read.table().drop_columns("label").equals(store.table().drop_columns("label"))
    assert pa.types.is_string(read.table().schema.field("label").type)
    x, n = read.batch("audio", [3, 1])
    y, m = store.batch("audio", [3, 1])
    np.testing.assert_array_equal(x, y)
    np.testing.assert_array_equal(n, m)
