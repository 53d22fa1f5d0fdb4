"""Films and sound that ffmpeg reads and mer refused: GIF, as a file and as a codec, of which no
container marks the key frames; and channels in an order of the file's own, whose layout PyAV gave
back twice, so that the decoder died.
"""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest

from mer.pipeline.media import pictures
from mer.pipeline.media.readers import MediaError
from mer.pipeline.media.stages import Stage

FFMPEG = shutil.which("ffmpeg")
WIDTH, HEIGHT, RATE_HZ, FRAMES = 64, 48, 10, 20


@pytest.mark.skipif(FFMPEG is None, reason="ffmpeg is not installed")
@pytest.mark.parametrize("words", [["a.gif"], ["-c:v", "gif", "a.mkv"], ["-c:v", "gif", "a.nut"]])
def test_a_gif_is_the_film_that_ffmpeg_shows(tmp_path, words):
    path = tmp_path / words[-1]
    source = f"testsrc=size={WIDTH}x{HEIGHT}:rate={RATE_HZ}:duration={FRAMES / RATE_HZ}"
    ffmpeg = (str(FFMPEG), "-v", "error", "-y")
    subprocess.run([*ffmpeg, "-f", "lavfi", "-i", source, *words[:-1], path], check=True)
    raw = [*ffmpeg, "-i", path, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    shown = subprocess.run(raw, check=True, capture_output=True).stdout
    expected = np.frombuffer(shown, np.uint8).reshape(FRAMES, HEIGHT, WIDTH, 3)
    found = list(pictures.load(path, fps=RATE_HZ))
    assert len(found) in (FRAMES - 1, FRAMES)  # Matroska does not say how long the last one is
    assert all((one.pixels == picture).all() for one, picture in zip(found, expected, strict=False))
    # each is drawn onto the one before, so that a part is not entered in the middle
    late = list(pictures.load(path, fps=RATE_HZ, start=1.2, end=1.5))
    assert [round(one.shown * RATE_HZ) for one in late] == [12, 13, 14]
    assert all((one.pixels == expected[12 + k]).all() for k, one in enumerate(late))


@pytest.mark.skipif(FFMPEG is None, reason="ffmpeg is not installed")
def test_a_gif_far_from_its_beginning_is_drawn_whole(tmp_path):
    """Beyond the seconds from which a film is entered at a key frame."""
    path, second = tmp_path / "a.mkv", pictures.JUMP_SECONDS + 2
    source = f"testsrc=size={WIDTH}x{HEIGHT}:rate=2:duration={second + 1}"
    ffmpeg = (str(FFMPEG), "-v", "error", "-y")
    subprocess.run([*ffmpeg, "-f", "lavfi", "-i", source, "-c:v", "gif", path], check=True)
    (late,) = pictures.load(path, fps=2, start=second, end=second + 0.5)
    *_, whole = pictures.load(path, fps=2, end=second + 0.5)
    assert late.shown == whole.shown and (late.pixels == whole.pixels).all()


def test_what_begins_like_a_gif_and_is_none_is_refused(tmp_path):
    (tmp_path / "a.gif").write_bytes(b"GIF89a" + bytes(range(256)))
    with pytest.raises(MediaError) as refused:
        list(pictures.load(tmp_path / "a.gif", fps=4))
    assert refused.value.stage in (Stage.OPEN, Stage.DECODE, Stage.EMPTY)


# --- channels

LEFT, RIGHT, CENTRE, BASS, LEFT_SIDE, RIGHT_SIDE, UNUSED = 1, 2, 3, 4, 5, 6, 100  # of Core Audio


def caf(path: Path, labels: list[int], samples: np.ndarray) -> Path:
    """A CAF file of 16-bit samples (n, channels) at 16 kHz that lists its channels."""
    count = len(labels)
    head = struct.pack(">d4sIIIII", 16_000, b"lpcm", 0, 2 * count, 1, count, 16)
    listed = [struct.pack(">II3f", label, 0, 0, 0, 0) for label in labels]
    layout = struct.pack(">III", 0, 0, count) + b"".join(listed)
    sound = bytes(4) + samples.astype(">i2").tobytes()
    whole = b"caff" + struct.pack(">HH", 1, 0)
    for name, content in ((b"desc", head), (b"chan", layout), (b"data", sound)):
        whole += name + struct.pack(">q", len(content)) + content
    path.write_bytes(whole)
    return path


LOADED = """
import sys
import numpy as np
from mer.pipeline.media import audio
for _ in range(5):
    for channel in sys.argv[2:]:
        clip = audio.load(sys.argv[1], channel=channel)
        length = audio.probe(sys.argv[1]).samples
print(clip.channel, clip.channels, length)
np.save(sys.argv[1] + ".npy", clip.waveform)
"""


@pytest.mark.parametrize(
    ("labels", "channel", "expected"),
    [
        ([CENTRE, LEFT, RIGHT, LEFT_SIDE, RIGHT_SIDE, BASS], "auto", 0),
        ([LEFT, RIGHT, LEFT_SIDE, RIGHT_SIDE, BASS, CENTRE], "centre", 5),
        ([LEFT, RIGHT, CENTRE, BASS, LEFT_SIDE, RIGHT_SIDE], "auto", 2),  # FFmpeg's own order
        ([CENTRE, LEFT, RIGHT], "2", 2),
        ([RIGHT, LEFT, BASS], "auto", None),
        ([UNUSED, UNUSED, CENTRE], "auto", 2),
    ],
)
def test_channels_in_an_order_of_the_files_own(tmp_path, forks, labels, channel, expected):
    samples = np.random.default_rng(0).integers(-9000, 9000, (4000, len(labels)))
    path = caf(tmp_path / "a.caf", labels, samples)
    done = forks.run(LOADED, path, channel)
    assert done.returncode == 0, done.stderr  # the layouts, given back twice, ended it by a signal
    name = {None: "mix", 2: "2" if channel == "2" else "FC"}.get(expected, "FC")
    assert done.stdout.split() == [name, str(len(labels)), "4000"]
    wanted = samples.mean(axis=1) if expected is None else samples[:, expected]
    np.testing.assert_allclose(np.load(f"{path}.npy"), wanted / 2**15, atol=1e-6)
