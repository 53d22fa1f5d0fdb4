"""A file behind a file of the same kind, which no decoder reads, is counted; and what a container
says of its own size tells that the file is cut off. Siblings of libsndfile/libsndfile#277 and #809.
"""

from __future__ import annotations

import struct

import pytest

from mer.pipeline.media import audio as media

from tests.media.forms import RATE, SAMPLES, made, piped, sound, sphere, sweep

WAVE_44 = {"rate": 44_100, "wave": sweep(104_517, 44_100)}
SECONDS = SAMPLES / RATE


def svx() -> bytes:
    """An Amiga IFF of 8-bit samples."""
    samples = (sweep() * 127).astype("i1").tobytes()
    voice = struct.pack(">IIIHBBI", SAMPLES, 0, 0, RATE, 1, 0, 0x10000)
    chunks = b"VHDR" + struct.pack(">I", len(voice)) + voice
    chunks += b"BODY" + struct.pack(">I", len(samples)) + samples
    return b"FORM" + struct.pack(">I", 4 + len(chunks)) + b"8SVX" + chunks


NOT_READ = {
    "m4a": lambda: made("aac", "ipod"),
    "mov": lambda: made("pcm_s16le", "mov"),
    "aiff": lambda: sound("AIFF", "PCM_16"),
    "caf": lambda: sound("CAF", "PCM_16"),
    "wma": lambda: made("wmav2", "asf", **WAVE_44),
    "flv": lambda: made("aac", "flv", **WAVE_44),
    "tta": lambda: made("tta", "tta"),
    "voc": lambda: made("pcm_s16le", "voc"),
    "8svx": svx,
}


@pytest.mark.parametrize("suffix", NOT_READ)
def test_a_second_file_is_counted(tmp_path, suffix):
    content = NOT_READ[suffix]()
    for count in (1, 2):
        path = tmp_path / f"{count}.{suffix}"
        path.write_bytes(count * content)
        clip = media.load(path)
        assert clip.seconds == pytest.approx(SECONDS, abs=0.1)
        assert len(clip.waveform) == media.probe(path).samples
        assert ("trailing" in clip.flags) == (count == 2)


def test_fragments_that_follow_are_read(tmp_path):
    """Each is a file of its own to a writer of streams."""
    options = {"movflags": "frag_keyframe+empty_moov", "frag_duration": "300000"}
    (tmp_path / "a.mp4").write_bytes(2 * piped("aac", "mp4", options=options))
    clip = media.load(tmp_path / "a.mp4")
    assert clip.seconds > 1.5 * SECONDS and "trailing" not in clip.flags


def test_more_than_a_sphere_header_counts(tmp_path):
    """It has no end that could be told; the decoder goes on to the end of the file."""
    (tmp_path / "a.sph").write_bytes(sphere() + bytes(2 * RATE))
    clip = media.load(tmp_path / "a.sph")
    assert clip.seconds == pytest.approx(SECONDS + 1, abs=0.01) and "unsized" in clip.flags


CUT = {
    "mp2": lambda: made("mp2", "mp2"),
    "8svx": svx,
    "flv": lambda: made("aac", "flv", **WAVE_44),
}


@pytest.mark.parametrize("suffix", CUT)
@pytest.mark.parametrize("share", [0.4, 0.8])
def test_what_is_cut_off_is_refused(tmp_path, suffix, share):
    content = CUT[suffix]()
    (tmp_path / f"a.{suffix}").write_bytes(content)
    assert media.load(tmp_path / f"a.{suffix}").seconds == pytest.approx(SECONDS, abs=0.1)
    (tmp_path / f"a.{suffix}").write_bytes(content[: int(share * len(content)) - 1])
    with pytest.raises(media.MediaError, match="truncated") as error:
        media.load(tmp_path / f"a.{suffix}")
    assert error.value.stage == "truncated"


@pytest.mark.parametrize("bytes_of_head", range(1, 11))
def test_flv_that_ends_within_the_head_of_a_tag(tmp_path, bytes_of_head):
    content = CUT["flv"]()
    at = struct.unpack(">I", content[5:9])[0] + 4
    for _ in range(9):
        at += 15 + int.from_bytes(content[at + 1 : at + 4], "big")
    (tmp_path / "a.flv").write_bytes(content[: at + bytes_of_head])
    with pytest.raises(media.MediaError, match="its last tag is not complete"):
        media.load(tmp_path / "a.flv")


@pytest.mark.parametrize("suffix", ["mp3", "mp2"])
@pytest.mark.parametrize("zeros", [0, 1, 20])
def test_zeros_at_the_end_of_a_frame_are_the_frames(tmp_path, suffix, zeros):
    """Encoders fill a frame up with them; behind a frame they are padding."""
    options = {"write_xing": "0", "id3v2_version": "0"} if suffix == "mp3" else {}
    codec = {"mp3": "libmp3lame", "mp2": "mp2"}[suffix]
    content = made(codec, suffix, options=options)
    content = content[: len(content) - zeros] + bytes(zeros)
    path = tmp_path / f"a.{suffix}"
    for more in (0, 1, 500):
        path.write_bytes(content + bytes(more))
        assert media.load(path).seconds == pytest.approx(SECONDS, abs=0.15)
    path.write_bytes(content[:-30])
    with pytest.raises(media.MediaError, match="truncated"):
        media.load(path)
