"""The corpus TOMLs agree with themselves and with the registry."""

from __future__ import annotations

import re

import pytest

from mer.pipeline.datasets import DATASETS, corpora
from mer.pipeline.errors import DataError
from mer.pipeline.runtime.terms import TASKS

CORPORA = corpora.names()


def test_registry_and_tomls_name_the_same_corpora():
    assert sorted(DATASETS) == sorted(CORPORA)


@pytest.mark.parametrize("name", CORPORA)
def test_a_toml_is_consistent(name):
    info = corpora.corpus(name)
    assert (
        info.title
        and info.licence
        and info.obtain
        and info.size
        and re.fullmatch("[a-z]{2}", info.language)
    )
    assert info.label_sets and info.label_set() is info.label_set(next(iter(info.label_sets)))
    for labels in info.label_sets.values():
        assert labels.task in TASKS and len(set(labels.labels)) == len(labels.labels) > 0
        assert set(labels.source.values()) <= set(labels.labels)
        for counts in labels.expected.values():
            assert labels.task != "single" or set(counts) <= set(labels.labels)
    assert info.encoders.keys() >= {"audio", "text"}
    for encoder in info.encoders.values():
        assert re.fullmatch(r"builtin:[\w-]+|[\w.-]+(/[\w.-]+)?(@[0-9a-f]{40})?", encoder)
    assert info.layers.keys() <= info.encoders.keys()
    for layer in info.layers.values():
        assert re.fullmatch(r"\d+|(mean|stack):\d+-\d+(:\d+)?", layer)
    assert set(info.folds) <= {"session", "speaker", "dialogue"}


@pytest.mark.parametrize("split", ["train", "dev", "test"])
def test_expected_counts_of_meld_add_up(split):
    info = corpora.corpus("meld")
    sums = {sum(s.expected[split].values()) for s in info.label_sets.values()}
    assert sums == {info.expected_files[split]}


def test_unknown_names_say_what_is_known():
    with pytest.raises(
        DataError, match=r"'melt' is not known \(did you mean 'meld'\?\); known: .*meld"
    ):
        corpora.corpus("melt")
    with pytest.raises(DataError, match="--labels sentimental: meld has emotion, sentiment"):
        corpora.corpus("meld").label_set("sentimental")


@pytest.mark.parametrize("name", ["../meld", "", "meld.toml", "."])
def test_a_name_is_no_path(name):
    with pytest.raises(DataError, match="is not known"):
        corpora.corpus(name)


@pytest.mark.parametrize(
    "extra",
    [
        {"licenze": "x"},
        {"encoders": {"audio": "a"}},
        {"encoders": {"audio": "a", "text": "t", "vision_layer": "3"}},
        {"encoders": {"audio": "a", "text": "t", "audio_layer": 3}},
    ],
)
def test_a_misspelt_or_missing_key_is_an_error(extra):
    good = {
        "title": "t",
        "language": "en",
        "licence": "l",
        "obtain": "o",
        "size": "s",
        "encoders": {"audio": "a", "text": "b"},
        "labels": {"emotion": {"order": ["x"]}},
    }
    assert corpora.parse("mine", good).label_set().source == {"x": "x"}
    with pytest.raises(DataError, match="manifests/mine.toml"):
        corpora.parse("mine", good | extra)
