"""An encoder that was named while no row has anything of its modality was left out without a word,
and so was a modality that a whole split, or every row with a label, lacks.
"""

from __future__ import annotations

from mer.pipeline.extraction.coverage import gaps
from mer.pipeline.extraction.options import ExtractOptions
from mer.pipeline.manifest import Manifest, Utterance

from tests.whole_way.mer import TINY, mer, refused

OPTIONS = ExtractOptions(audio_encoder="a", text_encoder="b")


def corpus(*rows: Utterance) -> Manifest:
    return Manifest("mine", "single", ("no", "yes"), rows, ".")


def row(name: str, split: str = "train", **what) -> Utterance:
    return Utterance(name, split=split, **{"label": "yes", **what})


def test_a_named_encoder_that_nothing_needs_is_told():
    manifest = corpus(row("a", text="yes"), row("b", text="no"))
    assert gaps(manifest, OPTIONS, ["audio"]) == [
        "audio: no row of mine has it; --audio-encoder a is not used"
    ]
    assert gaps(manifest, OPTIONS, []) == []  # by default: a corpus of words has no sound
    none = ExtractOptions(audio_encoder="none", text_encoder="b")
    assert gaps(manifest, none, ["audio", "text"]) == []


def test_a_split_without_it_is_told():
    rows = [row("a", text="yes"), row("b", "dev", audio="b.wav"), row("c", "test", audio="c.wav")]
    rows += [row("d", "dev", text="yes", audio="d.wav"), row("e", "", audio="e.wav")]
    assert gaps(corpus(*rows), OPTIONS, []) == [
        "audio: 4 of 5 rows have it, none of train",
        "text: 2 of 5 rows have it, none of test",
    ]
    assert gaps(corpus(row("a", text="yes"), *rows[1:3]), OPTIONS, [])[1] == (
        "text: 1 of 3 rows have it, none of dev and test"
    )


def test_only_rows_without_a_label_have_it():
    rows = [row("a", audio="a.wav"), row("b", audio="b.wav", text="yes", label=None)]
    assert gaps(corpus(*rows), OPTIONS, []) == [
        "text: 1 of 2 rows have it, none of those with a label"
    ]
    unlabelled = [row(name, text="yes", label=None) for name in "ab"]
    assert gaps(corpus(*unlabelled, row("c", audio="c.wav", label=None)), OPTIONS, []) == []


def test_a_row_here_and_there_without_it_is_no_gap():
    rows = [row("a", text="yes", audio="a.wav"), row("b", audio="b.wav"), row("c", text="no")]
    assert gaps(corpus(*rows), OPTIONS, []) == []


def test_the_commands_say_it(tmp_path):
    words = tmp_path / "words.csv"
    words.write_text("id,text,label,split\na,yes indeed,x,train\nb,no,y,dev\n")
    mer("prepare", "table", "--from", words, "--out", tmp_path / "m.parquet")
    asked = ("--manifest", tmp_path / "m.parquet", "--offline", *TINY)
    line = "audio: no row of words has it; --audio-encoder builtin:tiny-wav2vec2 is not used"
    assert mer("fingerprint", *asked).err.count(line) == 1
    sound = asked[:3] + TINY[:2] + ("--text-encoder", "none")
    refused("extract", *sound, "--out", tmp_path / "x.h5", says=["nothing to extract"])
