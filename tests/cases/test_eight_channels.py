"""Sound of eight channels, each in a plane of its own as most codecs give it: what lies behind the
planes was read as a ninth, which ended the decoder or went into the mean."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest

from mer.pipeline.media import audio as media

RATE, LEVEL = 48_000, 0.3
LAYOUTS = {"5.1": 6, "7.1": 8}


def hertz(channel: int) -> int:
    return 300 * (channel + 1)


def write(path: Path, layout: str) -> Path:
    """A second of a tone of its own in each channel but the bass, which encoders filter."""
    t = np.arange(RATE) / RATE
    count = LAYOUTS[layout]
    planes = [LEVEL * np.sin(2 * np.pi * hertz(channel) * t) for channel in range(count)]
    whole = np.stack(planes).astype(np.float32)
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libopus", rate=RATE, layout=layout)
        stream.bit_rate = 64_000 * count
        for at in range(0, RATE, 960):
            piece = np.ascontiguousarray(whole[:, at : at + 960].T).reshape(1, -1)
            frame = av.AudioFrame.from_ndarray(piece, format="flt", layout=layout)
            frame.sample_rate, frame.pts = RATE, at
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_channel_is_itself(tmp_path, layout):
    path, count = write(tmp_path / "a.mka", layout), LAYOUTS[layout]
    for channel in range(count):
        clip = media.load(path, channel=str(channel))
        assert clip.channels == count and len(clip.waveform) == media.probe(path).samples
        if channel != 3:  # the bass
            spectrum = np.abs(np.fft.rfft(clip.waveform[:16_000])) * 2 / 16_000
            assert int(spectrum.argmax()) == hertz(channel)
            assert float(spectrum.max()) == pytest.approx(LEVEL, rel=0.1)
    alone = [media.load(path, channel=str(channel)).waveform for channel in range(count)]
    mean = np.mean(alone, axis=0)
    assert np.allclose(media.load(path, channel="mix").waveform, mean, atol=1e-5)
    assert np.array_equal(media.load(path).waveform, alone[2])
