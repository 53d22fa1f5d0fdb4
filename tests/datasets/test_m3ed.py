"""M3ED: Chinese text, lists of series, several labels, clips shorter than a frame."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mer.pipeline.datasets import prepare
from mer.pipeline.errors import DataError
from mer.pipeline.media import audio as media

from tests.datasets.trees import write_m3ed
from tests.fuzz.jsons import wrong_values


@pytest.fixture
def root(tmp_path) -> Path:
    return write_m3ed(tmp_path / "m3ed")


def test_rows(root):
    manifest, report = prepare("m3ed", root)
    assert [u.id for u in manifest.rows] == [
        "shaonianpai_1_1",
        "shaonianpai_1_2",
        "shaonianpai_1_10",
        "zhengyang_7_31",
        "third_1_1",
    ]
    assert [u.split for u in manifest.rows] == ["train"] * 3 + ["dev", "test"]
    assert [u.label for u in manifest.rows] == ["neutral", "happy", "sad", "fear", "anger"]
    first = manifest.rows[0]
    assert (first.text, first.speaker, first.session, first.dialogue) == (
        "钟点工阿姨",
        "shaonianpai/王",
        "shaonianpai",
        "shaonianpai_1",
    )
    assert first.start is None and manifest.language == "zh"
    assert report.missing == ["shaonianpai_1_2"] and report.orphans == [
        "modality_speech/A_nobody_1_1.wav"
    ]
    assert report.dropped == {"series unlisted, in none of the lists": ["unlisted_1_1"]}
    assert report.overlaps["train/test"] == {"texts": 1, "long_texts": 1, "speakers": 0}
    assert len(media.load(manifest.root / manifest.rows[3].audio).waveform) == 112


def test_several_labels(root):
    manifest, report = prepare("m3ed", root, labels="multi")
    sad, anger = manifest.labels.index("sad"), manifest.labels.index("anger")
    targets = {u.id: u.targets for u in manifest.rows}["shaonianpai_1_10"]
    assert (
        manifest.task == "multi" and targets[sad] == targets[anger] == 1.0 and sum(targets) == 2.0
    )
    assert report.counts["train"] == {"happy": 1, "neutral": 1, "sad": 1, "anger": 1}


def test_the_lists_decide_and_counts_only_warn(root):
    _, report = prepare("m3ed", root)
    assert "train neutral: 1 found, 7,126 expected" in report.unexpected


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda r: (r / "annotation.json").unlink(), "no annotation.json .*AIM3-RUC"),
        (lambda r: (r / "splitInfo" / "movie_list_val.txt").unlink(), "no movie_list_val.txt"),
        (
            lambda r: (r / "splitInfo" / "movie_list_val.txt").write_text("third"),
            "third is in two splits",
        ),
        (lambda r: (r / "annotation.json").write_text("{"), "not JSON"),
        (lambda r: (r / "annotation.json").write_text("[]"), "expected an object of series"),
        (
            lambda r: (r / "annotation.json").write_text(
                '{"third": {"third_1": {"Dialog": {"x_1": {}}}}}'
            ),
            "third_1 is not as published",
        ),
    ],
)
def test_damaged_annotation_is_one_line(root, change, part):
    change(root)
    with pytest.raises(DataError, match=part):
        prepare("m3ed", root)


def test_an_unknown_label_is_named(root):
    data = json.loads((root / "annotation.json").read_text())
    data["third"]["third_1"]["Dialog"]["third_1_1"]["EmoAnnotation"]["final_main_emo"] = "Bliss"
    (root / "annotation.json").write_text(json.dumps(data))
    with pytest.raises(DataError, match="third_1 is not as published .*'bliss'"):
        prepare("m3ed", root)


@pytest.mark.parametrize("lists", ["as published", "without a series"])
def test_a_wrong_value_anywhere_is_named_or_does_no_harm(root, lists):
    if lists != "as published":
        (root / "splitInfo" / "movie_list_val.txt").write_text("")
    path, refused = root / "annotation.json", 0
    for where, value in wrong_values(json.loads(path.read_text())):
        path.write_text(json.dumps(value))
        try:
            prepare("m3ed", root)
        except DataError as error:
            assert "\n" not in str(error), where
            refused += 1
    assert refused > 50
