"""Old stores: only clips that an earlier version read otherwise are decoded again, and the
output says how many and why."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import soundfile

from mer.pipeline.extraction import decoding, extract, fingerprint
from mer.pipeline.extraction import memory as memories
from mer.pipeline.extraction.memory import FileMemory
from mer.pipeline.media import audio as media
from mer.pipeline.media.stages import Problem, Stage
from mer.pipeline.runtime.progress import Silent

from tests.extract import corpus
from tests.media.forms import encode, made


class Notes(Silent):
    def __init__(self):
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture
def mixed(tmp_path):
    """A WAV, a FLAC, an MP4 whose sound begins at 0, an MP3 without a length, an MP4 whose sound
    is late."""
    manifest, _ = corpus.make(tmp_path / "c", 5)
    names = ("clip0.wav", "clip1.flac", "clip2.mp4", "clip3.mp3", "clip4.mp4")
    soundfile.write(
        manifest.root / names[1], np.random.default_rng(1).uniform(-0.3, 0.3, 16_000), 16_000
    )
    encode(str(manifest.root / names[2]), "aac", "mp4", video=True)
    (manifest.root / names[3]).write_bytes(made("libmp3lame", "mp3", options={"write_xing": "0"}))
    encode(str(manifest.root / names[4]), "aac", "mp4", video=True, late=0.5)
    rows = [
        dataclasses.replace(u, audio=name) for u, name in zip(manifest.rows, names, strict=True)
    ]
    return dataclasses.replace(manifest, rows=tuple(rows))


def test_only_clips_that_were_read_otherwise_are_decoded_again(tmp_path, mixed, monkeypatch):
    out = tmp_path / "f.h5"
    with monkeypatch.context() as earlier:
        earlier.setattr(fingerprint, "decoded_otherwise", lambda *_: {})
        first = extract(mixed, out, corpus.options())
    assert first.extracted == 5
    notes = Notes()
    second = extract(mixed, out, corpus.options(), progress=notes)
    assert (second.extracted, second.reused) == (2, 3)
    said = next(text for text in notes.said if "decoded again" in text)
    assert (
        said.startswith("2 utterances")
        and "1 for a header without its true length" in said
        and "1 for sound that begins late" in said
    )
    assert extract(mixed, out, corpus.options()).action == "nothing"


def test_a_store_of_plain_files_stays_as_it_is(tmp_path, mixed, monkeypatch):
    plain = dataclasses.replace(mixed, rows=mixed.rows[:3])
    with monkeypatch.context() as earlier:
        earlier.setattr(fingerprint, "decoded_otherwise", lambda *_: {})
        extract(plain, tmp_path / "f.h5", corpus.options())
        key = fingerprint.fingerprint(plain, corpus.options())
    assert fingerprint.fingerprint(plain, corpus.options()) == key
    assert extract(plain, tmp_path / "f.h5", corpus.options()).action == "nothing"


def test_what_was_found_is_remembered(tmp_path, mixed, monkeypatch):
    path = tmp_path / "memory.parquet"
    key = fingerprint.fingerprint(mixed, corpus.options(), memory=FileMemory(path))
    monkeypatch.setattr(decoding, "_told_by_bytes", lambda path: pytest.fail(f"looked at {path}"))
    assert fingerprint.fingerprint(mixed, corpus.options(), memory=FileMemory(path)) == key


def test_what_an_earlier_version_could_not_read_is_tried(tmp_path, monkeypatch):
    path = tmp_path / "memory.parquet"
    memory = FileMemory(path)
    memory.remember("good", ":", 16_000)
    memory.remember("bad", ":", Problem(Stage.TRUNCATED, "whole, in truth"))
    with monkeypatch.context() as earlier:
        earlier.setattr(memories, "DECODER", 1)
        memory.save()
    assert set(FileMemory(path).spans) == {("good", ":")}


def test_reasons_are_told_by_content(mixed):
    reasons = [media.changed(mixed.root / u.audio) for u in mixed.rows]
    assert [bool(why) for why in reasons] == [False, False, False, True, True]
