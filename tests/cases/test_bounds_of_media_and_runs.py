"""Bounds on media, messages, run folders and presets: what lies at each is read, what lies beyond
is not. The bounds of stores, tables and imports have tests of their own; docs/store.md names all.
"""

from __future__ import annotations

import io
import os

import numpy as np
import pytest
import soundfile

from mer.fusion import config
from mer.fusion.runtime import files
from mer.pipeline.errors import DataError
from mer.pipeline.media import audio, containers, readers, soundframes
from mer.pipeline.media.audio import MediaError
from mer.pipeline.runtime import limits, terminal

# --- Media


@pytest.mark.parametrize("beyond", [limits.MEDIA_RATES_HZ[0] - 1, limits.MEDIA_RATES_HZ[1] + 1])
def test_sample_rates(tmp_path, beyond):
    soundfile.write(tmp_path / "a.wav", np.zeros(2000), beyond)
    with pytest.raises(MediaError, match=f"claims {beyond} Hz") as raised:
        audio.load(tmp_path / "a.wav")
    assert raised.value.stage == "rate"
    within = min(max(beyond, limits.MEDIA_RATES_HZ[0]), limits.MEDIA_RATES_HZ[1])
    soundfile.write(tmp_path / "b.wav", np.zeros(2000), within)
    assert audio.load(tmp_path / "b.wav").source_rate == within


def test_level(tmp_path):
    for level, fits in ((limits.MEDIA_LEVEL, True), (limits.MEDIA_LEVEL * 1.01, False)):
        wave = np.full(1600, level, np.float32)
        soundfile.write(tmp_path / "a.wav", wave, 16_000, subtype="FLOAT")
        if fits:
            assert audio.load(tmp_path / "a.wav").waveform[0] == np.float32(level)
            continue
        with pytest.raises(MediaError, match="full scale is 1"):
            audio.load(tmp_path / "a.wav")


def test_a_gap_beyond_the_bound_is_another_clock():
    for seconds, silence in ((limits.MEDIA_GAP_SECONDS, 24 * 3600 * 16_000), (1e5, 0), (1e300, 0)):
        line = readers.TimeLine(0.0, False, begun=True)
        assert line.silence(16_000, seconds) == silence


def test_a_decoder_that_always_asks_to_be_called_again():
    class Container:
        asked = 0

        def demux(self, stream):
            self.asked += 1
            raise BlockingIOError

    container = Container()
    assert list(readers.packets_of(container, None)) == []
    assert container.asked == limits.MEDIA_RETRIES


def test_chunks_without_end():
    many = io.BytesIO(b"JUNK\0\0\0\0" * (limits.MEDIA_CHUNKS + 5))
    assert len(list(containers._chunks(many, 0, many.getbuffer().nbytes, "<4sI"))) == (
        limits.MEDIA_CHUNKS
    )


@pytest.mark.parametrize("form", ["MP3", "FLAC"])
def test_a_file_beyond_the_bound_is_decoded_to_learn_its_length(tmp_path, monkeypatch, form):
    """`MEDIA_SCANNED_BYTES`"""
    path = tmp_path / f"a.{form.lower()}"
    soundfile.write(path, np.sin(np.arange(32_000) / 9), 16_000, format=form)
    assert containers.look(path).exact
    for module in (containers, soundframes):
        monkeypatch.setattr(module, "MEDIA_SCANNED_BYTES", path.stat().st_size - 1)
    assert not containers.look(path).exact
    assert audio.probe(path).samples == len(audio.load(path).waveform) == 32_000


# --- Messages


def test_values_and_lists_are_cut():
    most = limits.SHOWN_CHARACTERS
    assert terminal.shown("x" * most) == "x" * most
    assert terminal.shown("x" * (most + 1)) == "x" * (most - 1) + "…"
    names = [f"n{i}" for i in range(limits.SHOWN_NAMES + 3)]
    assert terminal.listed(names[:-3]) == ", ".join(names[:-3])
    assert terminal.listed(names) == ", ".join(names[:-3]) + " and 3 more"


# --- Run folders and presets


def test_a_preset_of_many_bytes(tmp_path):
    text = config.to_toml(config.load(model="concat"))
    filled = text + "#" + "x" * (limits.CONFIG_BYTES - len(text) - 1)
    (tmp_path / "p.toml").write_text(filled)
    config.load(preset=str(tmp_path / "p.toml"))
    (tmp_path / "p.toml").write_text(filled + "x")
    with pytest.raises(DataError, match="has more than 65,536 bytes"):
        config.load(preset=str(tmp_path / "p.toml"))


@pytest.mark.parametrize(
    ("within", "beyond", "words"),
    [
        (
            ".".join("a" * limits.CONFIG_LEVELS) + " = 1",
            ".".join("a" * (limits.CONFIG_LEVELS + 1)) + " = 1",
            "more than 8 tables within each other",
        ),
        (
            f"a = '{'.' * limits.CONFIG_DOTS}'",
            ".".join("a" * (limits.CONFIG_DOTS + 2)) + " = 1",
            "a key of more than 32 parts",
        ),
        (
            f"a = {[0] * limits.CONFIG_LIST_ITEMS}",
            f"a = {[0] * (limits.CONFIG_LIST_ITEMS + 1)}",
            "a list of 1,025 items",
        ),
        (f"a = {2**63 - 1}", f"a = {2**63}", "a whole number beyond 64 bits"),
    ],
)
def test_toml(within, beyond, words):
    config.parse(within, "p.toml")
    with pytest.raises(DataError, match=words):
        config.parse(beyond, "p.toml")


@pytest.mark.parametrize("most", [limits.RUN_JSON_BYTES, limits.SPLIT_JSON_BYTES])
def test_a_file_of_many_bytes(tmp_path, most):
    path = tmp_path / "run.json"
    path.touch()
    os.truncate(path, most + 1)
    with pytest.raises(DataError, match=f"more than {most:,} bytes"):
        files.read_json(path, object, "remedy", most=most)


def test_digits_of_a_number(tmp_path):
    path = tmp_path / "run.json"
    path.write_text(f'{{"a": {2**63 - 1}}}')
    assert files.read_json(path, dict[str, int], "remedy") == {"a": 2**63 - 1}
    path.write_text(f'{{"a": {"9" * (limits.JSON_NUMBER_DIGITS + 1)}}}')
    with pytest.raises(DataError, match="a whole number of 26 digits"):
        files.read_json(path, dict[str, int], "remedy")
