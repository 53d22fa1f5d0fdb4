"""A blank behind a cell makes no other class, speaker or file.

Reported as apple/turicreate#1531 ('Stilettos ' and 'Stilettos' are two labels),
ccpem/affinity-vae#156, fastai/fastai#937.
"""

from __future__ import annotations

import json

import pyarrow.parquet as pq
import pytest

from mer.pipeline.datasets import complete, prepare
from mer.pipeline.datasets.corpora import CorpusInfo
from mer.pipeline.datasets.files import look
from mer.pipeline.datasets.findings import Findings
from mer.pipeline.errors import DataError
from mer.pipeline.manifest import NAMES, Manifest, Utterance
from mer.pipeline.runtime.cells import BLANKS

from tests.datasets.trees import write_wav

TABLE = """id,audio,text,label,speaker,split
u1,a.wav,hello,joy,s1,train
u2 ,a.wav,no way,anger,s2,train
u3,a.wav\u00a0,fine,joy ,s1 ,dev
u4,a.wav,oh,Anger,S2, test
u5,a.wav,well, ,s2\ufeff,test
"""
INFO = CorpusInfo("x", "x", "en", licence="", obtain="", size="", label_sets={})


def test_a_table(tmp_path):
    write_wav(tmp_path / "a.wav")
    (tmp_path / "t.csv").write_text(TABLE, encoding="utf-8")
    manifest, report = prepare("table", source=tmp_path / "t.csv")
    assert [u.id for u in manifest.rows] == ["u1", "u2", "u3", "u4", "u5"] and not report.missing
    assert manifest.labels == ("Anger", "anger", "joy")
    assert [u.label for u in manifest.rows] == ["joy", "anger", "joy", "Anger", None]
    assert [u.speaker for u in manifest.rows] == ["s1", "s2", "s1", "S2", "s2"]
    assert [u.split for u in manifest.rows] == ["train", "train", "dev", "test", "test"]
    assert (
        report.overlaps["train/dev"]["speakers"] == report.overlaps["train/test"]["speakers"] == 1
    )
    assert {what: len(rows) for what, rows in report.repairs.items()} == {
        f"blanks at an end of {field}, cut off": n
        for field, n in {"id": 1, "audio": 1, "label": 1, "speaker": 2, "split": 1}.items()
    }
    said = "\n".join(report.warnings)
    assert "labels that differ only by case: 'Anger' and 'anger'" in said
    assert "speakers that differ only by case: 'S2' and 's2'" in said
    assert "train has no utterance of class Anger (test)" in said


@pytest.mark.parametrize("blank", BLANKS, ids=lambda c: f"U+{ord(c):04X}")
def test_every_blank_in_json(tmp_path, blank):
    rows = [
        {
            "id": f"{blank}{i}{blank}",
            "text": f"{blank}x",
            "label": f"a{blank}",
            "speaker": f"{blank}s",
        }
        for i in range(2)
    ]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    manifest, _ = prepare("table", source=tmp_path / "t.jsonl", split="none")
    assert [(u.id, u.label, u.speaker) for u in manifest.rows] == [("0", "a", "s"), ("1", "a", "s")]
    assert manifest.rows[0].text == f"{blank}x"  # a transcript stays as it is


def test_any_corpus(tmp_path):
    """Every corpus's rows go through `look`, which leaves no blank at the end of a name."""
    report = Findings("x")
    rows = look(
        [Utterance("a ", None, " x", "", " l", None, "s\u200b", "d ", " e")], tmp_path, INFO, report
    )
    assert rows == [Utterance("a", None, " x", "", "l", None, "s", "d", "e")]
    assert sum(map(len, report.repairs.values())) == 5


@pytest.mark.parametrize("name", NAMES)
def test_an_old_manifest_is_to_be_prepared_again(tmp_path, name):
    manifest = Manifest(
        "m",
        "single",
        ("l", "k"),
        (Utterance("1", "a.wav", "x", "", "l", None, "s", "d", "e", video="f.mp4"),),
        tmp_path,
    )
    manifest.write(tmp_path / "m.parquet")
    table = pq.read_table(tmp_path / "m.parquet")
    at = table.column_names.index(name)
    old = [f"{value} " for value in table.column(name).to_pylist()]
    meta = json.loads(table.schema.metadata[b"mer"]) | {
        "labels": ["l ", "k"] if name == "label" else ["l", "k"]
    }
    table = table.set_column(at, table.schema.field(name), [old]).replace_schema_metadata(
        {"mer": json.dumps(meta)}
    )
    pq.write_table(table, tmp_path / "m.parquet")
    with pytest.raises(
        DataError, match=rf"m.parquet: .*{name} '.* ' has blanks at an end.*run `mer prepare` again"
    ):
        Manifest.read(tmp_path / "m.parquet")


def test_classes_that_cannot_be_learnt_are_named(tmp_path):
    def warnings(rows, labels=("a", "b")):
        return complete(Manifest("m", "single", labels, tuple(rows), tmp_path), Findings("m"))[
            1
        ].warnings

    train, dev = (Utterance(split, split=split, label="a") for split in ("train", "dev"))
    assert warnings([train, Utterance("2", split="dev", label="b")]) == [
        "train has no utterance of class b (dev): a model cannot learn it"
    ]
    rare = Utterance("2", split="train", label="b")
    test = Utterance("3", split="test", label="a")
    assert warnings([train, rare, dev, test]) == [
        "dev has no utterance of class b: no epoch is chosen by it",
        "test has no utterance of class b: no figure is of it",
    ]
    assert not warnings([train, rare, Utterance("4", split="test")]), "without labels there"
    assert warnings([train, dev]) == [
        "a single class: all 2 labelled utterances are 'a', so there is nothing to learn"
    ]
    assert warnings([train, Utterance("2", split="train", label="b")], ("a", "b", "c")) == [
        "no utterance is of class c"
    ]
