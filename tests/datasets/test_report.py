"""Counts, overlaps and what people read of them."""

from __future__ import annotations

import json
from pathlib import Path

from mer.pipeline.datasets.findings import Findings, count, overlaps
from mer.pipeline.manifest import Manifest, Utterance


def manifest(rows, task="single", labels=("a", "b")) -> Manifest:
    return Manifest("m", task, labels, tuple(rows), Path("."))


def test_counts_by_task():
    single = [
        Utterance("1", split="train", label="b"),
        Utterance("2", split="train"),
        Utterance("3", split="test", label="a"),
    ]
    assert count(manifest(single)) == {"train": {"b": 1, "(none)": 1}, "test": {"a": 1}}
    multi = [Utterance("1", targets=(1.0, 1.0)), Utterance("2", targets=(0.0, 0.0))]
    assert count(manifest(multi, "multi")) == {"": {"a": 1, "b": 1, "(none)": 1}}
    values = [Utterance(str(v), targets=(v,)) for v in (-1.0, 0.0, 2.0, 3.0)]
    assert count(manifest(values, "regression", ("x",)))[""] == {
        "negative": 1,
        "positive": 2,
        "zero": 1,
    }


def test_overlaps_ignore_case_and_spaces_and_count_words():
    rows = [
        Utterance("1", split="train", text="I  am so glad ", speaker="x"),
        Utterance("2", split="train", text="Okay."),
        Utterance("3", split="test", text="i am so glad", speaker="x"),
        Utterance("4", split="test", text="okay.", speaker="y"),
        Utterance("5", split="test", text="okay."),
        Utterance("6", split="test", text=None),
    ]
    assert overlaps(rows) == {"train/test": {"texts": 3, "long_texts": 1, "speakers": 1}}
    chinese = [
        Utterance("1", split="train", text="我很高兴"),
        Utterance("2", split="dev", text="我很高兴"),
    ]
    assert (
        overlaps(chinese, language="zh")["train/dev"]["long_texts"] == 1
        and overlaps(chinese)["train/dev"]["long_texts"] == 0
    )


def test_differences_from_the_expected_counts_go_both_ways():
    report = Findings(
        "m",
        counts={"train": {"a": 3, "c": 1}},
        expected={"train": {"a": 2, "b": 5}, "test": {"a": 1}},
    )
    assert report.unexpected == [
        "train a: 3 found, 2 expected",
        "train b: 0 found, 5 expected",
        "train c: 1 found, 0 expected",
        "test a: 0 found, 1 expected",
    ]


def test_long_lists_are_cut_for_people_and_whole_for_machines():
    report = Findings(
        "m",
        counts={"train": {"a": 20}},
        missing=[f"u{i}" for i in range(20)],
        repairs={"text": ["a", "b"]},
        dropped={"no majority": [f"x{i}" for i in range(9)]},
    )
    text = "\n".join(report.lines())
    assert "files missing: 20: u0, " in text and "and 12 more" in text and "u19" not in text
    assert (
        "repaired: text: 2: a, b\n" in text
        and "left out: no majority: 9: x0, " in text
        and "x7 and 1 more" in text
    )
    assert "the whole lists: the same command with --json" in text
    assert "--json" not in "\n".join(Findings("m", repairs={"text": ["a"]}).lines())
    assert json.loads(json.dumps(report.to_dict()))["missing"][-1] == "u19"
