"""The beginning of a part of an MP3: its first frames need bits of frames before it, without which
they were silent or noise for up to a tenth of a second."""

from __future__ import annotations

from contextlib import closing

import numpy as np
import pytest
import soundfile

from mer.pipeline.media import audio as media

RATE = 44_100


@pytest.fixture(scope="module")
def mp3(tmp_path_factory):
    """Ten seconds of bursts of noise at a low and variable rate, which makes much of that."""
    rng = np.random.default_rng(0)
    loud = np.repeat(rng.uniform(0.0, 0.5, 50), RATE // 5)
    path = tmp_path_factory.mktemp("mp3") / "a.mp3"
    wave = (loud * rng.standard_normal(len(loud)) * 0.3).astype(np.float32)
    with soundfile.SoundFile(
        path, "w", RATE, 1, "MPEG_LAYER_III", format="MP3",
        compression_level=0.99, bitrate_mode="VARIABLE",
    ) as out:  # fmt: skip
        out.write(wave)
    return path


def test_a_part_is_that_part_of_the_whole(mp3):
    whole, _ = soundfile.read(mp3, dtype="float32")
    for start in np.arange(0.5, 8.0, 0.37):
        first, last = round(start * RATE), round((start + 1) * RATE)
        source = media._source(mp3, "auto")
        assert source.header is not None and source.header.format == "MP3"
        with closing(media._cut(source, float(start), float(start + 1))) as pieces:
            part = np.concatenate([piece.samples[0] for piece in pieces])
        assert np.abs(part - whole[first:last]).max() < 1e-6
