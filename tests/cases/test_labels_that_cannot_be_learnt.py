"""A class that train lacks, a label that nobody has, a store or part of one class: said in one line
each, before anybody quotes a figure."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from mer.fusion import report
from mer.fusion.config import DataConfig
from mer.fusion.data import splits
from mer.fusion.evaluation import layers
from mer.fusion.evaluation.evaluate import evaluate
from mer.fusion.training import experiment
from mer.pipeline.errors import DataError
from mer.pipeline.store import FeatureStore, ModalityInfo, ShardWriter, build_index

from tests.fusion.stores import make_store, quiet
from tests.fusion.test_train import settings

LABELS = ("joy", "anger", "fear")


def notes(train: str, dev: str, test: str, labels=LABELS) -> tuple[str, ...]:
    """Of parts whose labels are given by their first letters."""
    letters = train + dev + test
    parts = ["train"] * len(train) + ["dev"] * len(dev) + ["test"] * len(test)
    table = pa.table({"split": parts, "dialogue": [f"d{i}" for i in range(len(parts))]})
    target = np.array([[name[0] for name in LABELS].index(c) for c in letters])
    return splits.assign(table, target, DataConfig(), labels=labels).notes


@pytest.mark.parametrize(
    ("train", "dev", "test", "said"),
    [
        ("jajafj", "jaf", "jaf", ()),
        (
            "jajaja",
            "jaf",
            "ff",
            ("train has no utterance of fear (dev 1, elsewhere 2): it cannot be learnt",),
        ),
        ("jajaja", "ja", "ja", ("no utterance of the store is labelled fear",)),
        (
            "jjjj",
            "ja",
            "f",
            (
                "train has no utterance of anger (dev 1, elsewhere 0), fear (dev 0, elsewhere 1): "
                "it cannot be learnt",
                "train has one class, joy: there is nothing to learn, and a WA of 100 % is no "
                "success",
            ),
        ),
        (
            "jafj",
            "aa",
            "j",
            (
                "dev has one class, anger: it says little about which epoch is best, and a WA of "
                "100 % is no success",
            ),
        ),
    ],
)
def test_parts_of_a_single_label_store(train, dev, test, said):
    assert notes(train, dev, test) == said


def test_many_names_and_hostile_ones_stay_one_line():
    labels = [f"{'x' * 500}\x1b{i}" for i in range(50)]
    target = np.zeros(4, np.int64)
    for line in splits.label_notes(target, np.array([0, 1]), np.array([2]), labels):
        assert len(line) <= 450 and line.isprintable()


def test_labels_of_multi_label_and_equal_targets():
    multi = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    said = splits.label_notes(multi, np.array([0, 1]), np.array([2]), ("joy", "anger"))
    assert said == ["train has no utterance of anger (dev 1, elsewhere 0): it cannot be learnt"]
    scores = np.array([[0.5], [0.5], [1.0]])
    assert splits.label_notes(scores, np.array([0, 1]), np.array([2, 2]), ("y",)) == [
        "all train targets are 0.5", "all dev targets are 1",
    ]  # fmt: skip


def one_class(folder, letters: str) -> FeatureStore:
    shard = folder / "s.shards" / "shard-00000.h5"
    shard.parent.mkdir(parents=True)
    rng = np.random.default_rng(0)
    rows = []
    with ShardWriter(shard, {"text": 2}) as writer:
        for i, c in enumerate(letters):
            writer.add(f"u{i}", {"text": rng.normal(size=(1, 2))}, duration=1.0)
            label = next(name for name in LABELS if name[0] == c)
            rows.append(
                {
                    "id": f"u{i}",
                    "split": ("train", "train", "dev", "test")[i % 4],
                    "label": label,
                    "dialogue": f"d{i}",
                }
            )
    info = {"text": ModalityInfo(2, None, encoder="t")}
    return build_index(
        folder / "s.h5", [shard], rows, dataset="toy", task="single", labels=LABELS, modalities=info
    )


def test_a_test_part_of_a_class_that_train_lacks(tmp_path):
    store = one_class(tmp_path, "jajf" * 8)
    run = experiment.train(store, settings("train.epochs=1"), tmp_path / "run", note=quiet)
    found = evaluate(run, note=quiet)
    assert found.unseen == ("fear",)
    said = report.remarks(found)
    assert "Training had no utterance of fear: whatever has that label here is missed." in said
    assert (
        "Every labelled utterance here is fear: WA and UA of 100 % are what a constant answer gets."
        in said
    )


@pytest.mark.parametrize("options", [{}, {"seeds": 2}], ids=["single", "group"])
def test_a_store_of_one_class(tmp_path, options):
    store, said = one_class(tmp_path, "j" * 32), []
    run = experiment.train(
        store, settings("train.epochs=1"), tmp_path / "run", note=said.append, **options
    )
    assert any("train has one class, joy" in line for line in said)
    assert any(
        "Every labelled utterance here is joy" in line
        for line in report.remarks(evaluate(run, note=quiet))
    )


@pytest.mark.parametrize(
    ("task", "names"), [("single", LABELS), ("single", ()), ("regression", LABELS)]
)
@pytest.mark.parametrize("folds", [None, "speaker", "published"])
def test_a_store_without_labels_is_refused_before_a_model_is_built(tmp_path, task, names, folds):
    """PyTorch warned of a layer without outputs, and `--folds` was named, which needs labels."""
    store = make_store(tmp_path, n=60, task=task, labels=names, unlabelled=60)
    with pytest.raises(DataError, match="none of its 60 rows has a label") as caught:
        experiment.train(store, settings(), tmp_path / "run", folds=folds, note=quiet)
    assert "--folds" not in str(caught.value) and len(str(caught.value)) <= 300


@pytest.mark.parametrize("folds", [None, "speaker"])
def test_probes_of_layers_need_labels_too(tmp_path, folds):
    store = make_store(tmp_path, n=60, unlabelled=60, means={"audio": 3})
    with pytest.raises(DataError, match="none of its 60 rows has a label"):
        layers.probe(store, folds=folds)


def test_where_another_part_has_labels_folds_are_named(tmp_path):
    store = make_store(tmp_path, n=60)
    table = store.table()
    target = splits.targets(table, "single", store.header.labels)
    train = np.array(table["split"].to_pylist()) == "train"
    with pytest.raises(DataError, match="no labelled training rows.*--folds"):
        splits.assign(table, np.where(train, -1, target), DataConfig())
