"""FLAC files whose comment says which channels they have, as ffmpeg writes it for every layout but
the usual one of that number: the third of 2.1 is the bass, not the centre."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest

from mer.pipeline.extraction import memory as memories
from mer.pipeline.extraction.memory import FileMemory
from mer.pipeline.media import audio as media

RATE, SECONDS, LEVEL = 16_000, 1, 0.1


def hertz(channel: int) -> int:
    return 200 * (channel + 1)


def write(path: Path, layout: str, names: list[str]) -> Path:
    """A tone of its own in each channel."""
    t = np.arange(RATE * SECONDS) / RATE
    planes = [LEVEL * np.sin(2 * np.pi * hertz(channel) * t) for channel in range(len(names))]
    whole = np.round(np.stack(planes) * 2**15).astype(np.int16)
    with av.open(str(path), "w") as out:
        stream = out.add_stream("flac", rate=RATE, layout=layout)
        assert [channel.name for channel in stream.layout.channels] == names
        step = 4096
        for at in range(0, whole.shape[1], step):
            piece = np.ascontiguousarray(whole[:, at : at + step].T).reshape(1, -1)
            frame = av.AudioFrame.from_ndarray(piece, format="s16", layout=layout)
            frame.sample_rate, frame.pts = RATE, at
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


def levels(waveform: np.ndarray, channels: int) -> list[float]:
    """Of the tone of each channel."""
    found = np.abs(np.fft.rfft(waveform)) * 2 / len(waveform)
    return [round(float(found[hertz(channel) * SECONDS]), 3) for channel in range(channels)]


@pytest.mark.parametrize(
    ("layout", "names", "centre"),
    [
        ("2.1", ["FL", "FR", "LFE"], None),
        ("3.0(back)", ["FL", "FR", "BC"], None),
        ("4.0", ["FL", "FR", "FC", "BC"], 2),
        ("3.0", ["FL", "FR", "FC"], 2),  # the usual one of three: no comment
        ("quad", ["FL", "FR", "BL", "BR"], None),  # and of four
    ],
)
def test_the_centre_is_taken_where_there_is_one(tmp_path, layout, names, centre):
    path = write(tmp_path / "a.flac", layout, names)
    clip, count = media.load(path), len(names)
    if centre is None:
        expected = [round(LEVEL / count, 3)] * count
    else:
        expected = [LEVEL * (channel == centre) for channel in range(count)]
    assert (clip.channel, clip.channels) == ("mix" if centre is None else "FC", count)
    assert levels(clip.waveform, count) == pytest.approx(expected, abs=2e-3)
    assert media.probe(path).samples == len(clip.waveform) == RATE * SECONDS
    for channel in range(count):
        alone = media.load(path, channel=str(channel)).waveform
        assert levels(alone, count)[channel] == pytest.approx(LEVEL, abs=2e-3)


def test_old_stores_decode_them_again(tmp_path, monkeypatch):
    """What an earlier version remembered of such a file, that it is like others, is forgotten."""
    path = write(tmp_path / "a.flac", "2.1", ["FL", "FR", "LFE"])
    assert media.changed(path) == "channels that the file names itself"
    assert media.changed(write(tmp_path / "b.flac", "3.0", ["FL", "FR", "FC"])) is None
    memory = FileMemory(tmp_path / "memory.parquet")
    memory.kinds["of a"], memory.changed = "", True
    with monkeypatch.context() as earlier:
        earlier.setattr(memories, "LOOK_VERSION", 1)
        memory.save()
    assert not FileMemory(tmp_path / "memory.parquet").kinds
