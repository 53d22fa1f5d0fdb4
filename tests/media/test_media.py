"""Reading media: what comes out is right, and what cannot be read says why in one line."""

from __future__ import annotations

import os
import pickle
import struct
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torchaudio.functional import resample

from mer.pipeline.media import audio as media
from mer.pipeline.media import readers
from mer.pipeline.media.audio import MediaError, load, probe, resampled_length

from tests.media.clips import surround, tone, write_aac


def rms(waveform: np.ndarray) -> float:
    return float(np.sqrt(np.mean(waveform**2)))


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(-0.5, 0.5, shape).astype(np.float32)


# --- what comes out


def test_wav_at_16_khz_passes_unchanged(tmp_path):
    wave = noise(5000)
    soundfile.write(tmp_path / "a.wav", wave, 16_000, subtype="FLOAT")
    clip = load(tmp_path / "a.wav")
    assert clip.waveform.dtype == np.float32 and np.array_equal(clip.waveform, wave)
    assert (clip.source_rate, clip.channels, clip.flags, clip.seconds) == (
        16_000,
        1,
        (),
        5000 / 16_000,
    )


@pytest.mark.parametrize("rate", [8_000, 22_050, 24_000, 44_100, 48_000])
def test_resampling_is_torchaudios(tmp_path, rate):
    wave = noise(rate // 3)
    soundfile.write(tmp_path / "a.wav", wave, rate, subtype="FLOAT")
    clip = load(tmp_path / "a.wav")
    expected = resample(torch.from_numpy(wave), rate, 16_000).numpy()
    assert np.array_equal(clip.waveform, expected)
    assert clip.flags == ("resampled",)
    assert probe(tmp_path / "a.wav").samples == len(expected) == resampled_length(len(wave), rate)


def test_a_rate_whose_kernel_would_fill_memory_is_rounded_and_flagged(tmp_path):
    soundfile.write(tmp_path / "a.wav", tone(44_101, rate=44_101), 44_101)
    clip = load(tmp_path / "a.wav")
    assert clip.flags == ("resampled", "rate_rounded")
    assert (
        probe(tmp_path / "a.wav").samples == len(clip.waveform)
        and abs(len(clip.waveform) - 16_000) <= 1
    )


@pytest.mark.parametrize(
    ("suffix", "exact"), [("wav", True), ("flac", True), ("ogg", False), ("mp3", False)]
)
def test_formats_of_libsndfile(tmp_path, suffix, exact):
    soundfile.write(
        tmp_path / f"a.{suffix}", np.stack([tone(44_100, rate=44_100)] * 2, axis=1), 44_100
    )
    clip = load(tmp_path / f"a.{suffix}")
    assert len(clip.waveform) == probe(tmp_path / f"a.{suffix}").samples
    assert rms(clip.waveform) == pytest.approx(0.5 / np.sqrt(2), rel=0.02)
    assert not exact or len(clip.waveform) == 16_000


def test_centre_of_surround_aac_is_found_and_the_front_pair_is_silent(tmp_path):
    path = write_aac(tmp_path / "a.mp4", surround(96_000))
    loud, front = load(path), load(path, channel="0")
    assert (loud.channel, loud.channels, loud.source_rate) == ("FC", 6, 48_000)
    assert rms(loud.waveform) == pytest.approx(0.5 / np.sqrt(2), rel=0.05)
    assert rms(front.waveform) < 1e-4 and "silent" in front.flags
    assert rms(load(path, channel="mix").waveform) == pytest.approx(
        rms(loud.waveform) / 6, rel=0.05
    )
    assert np.array_equal(load(path, channel="centre").waveform, loud.waveform)
    assert len(loud.waveform) == probe(path).samples >= 32_000


def test_a_clip_of_64_ms(tmp_path):
    path = write_aac(tmp_path / "a.mp4", surround(3072))
    assert len(load(path).waveform) == probe(path).samples == 1024


def test_channel_policies_on_stereo(tmp_path):
    wave = noise(800, 2)
    soundfile.write(tmp_path / "a.wav", wave, 16_000, subtype="FLOAT")
    assert np.allclose(load(tmp_path / "a.wav").waveform, wave.mean(axis=1), atol=1e-7)
    assert np.array_equal(load(tmp_path / "a.wav", channel="1").waveform, wave[:, 1])
    with pytest.raises(MediaError, match="no centre channel among 2"):
        load(tmp_path / "a.wav", channel="centre")
    with pytest.raises(MediaError, match="channel 2 asked for, the file has 2"):
        load(tmp_path / "a.wav", channel="2")
    with pytest.raises(MediaError, match="'left' is not one of"):
        load(tmp_path / "a.wav", channel="left")


def test_six_channel_flac_has_its_centre_third(tmp_path):
    wave = np.zeros((4000, 6), dtype=np.float32)
    wave[:, 2] = tone(4000, rate=16_000)
    soundfile.write(tmp_path / "a.flac", wave, 16_000)
    assert rms(load(tmp_path / "a.flac").waveform) == pytest.approx(0.5 / np.sqrt(2), rel=0.01)


@pytest.mark.parametrize(
    ("start", "end"), [(0.25, 0.5), (0.5, None), (None, 0.125), (0.99, 5.0), (-1.0, 0.5)]
)
@pytest.mark.parametrize("container", ["wav", "mp4"])
def test_pieces_are_cut_where_asked(tmp_path, container, start, end):
    path = tmp_path / f"a.{container}"
    if container == "wav":
        soundfile.write(path, noise(48_000), 48_000, subtype="FLOAT")
    else:
        write_aac(path, noise(1, 48_000), layout="mono")
    whole = load(path)
    clip = load(path, start=start, end=end)
    assert len(clip.waveform) == probe(path, start=start, end=end).samples
    a = round(max(0.0, start or 0.0) * 16_000)
    b = min(len(whole.waveform), round(end * 16_000) if end else len(whole.waveform))
    assert len(clip.waveform) == b - a
    middle = slice(a + 50, b - 50)  # the resampling filter sees other neighbours at the ends
    assert np.allclose(clip.waveform[50:-50], whole.waveform[middle], atol=1e-4)
    assert ("start_clipped" in clip.flags) == (start == -1.0) and ("end_beyond" in clip.flags) == (
        end == 5.0
    )


def test_flags_for_clipped_and_silent(tmp_path):
    soundfile.write(tmp_path / "loud.wav", np.clip(noise(4000) * 10, -1, 1), 16_000)
    soundfile.write(tmp_path / "still.wav", np.zeros(4000), 16_000)
    assert load(tmp_path / "loud.wav").flags == ("clipped",) and load(
        tmp_path / "still.wav"
    ).flags == ("silent",)


def test_the_container_is_told_by_content_not_by_name(tmp_path):
    write_aac(tmp_path / "a.mp4", noise(1, 9600), layout="mono").rename(tmp_path / "a.wav")
    assert len(load(tmp_path / "a.wav").waveform) == probe(tmp_path / "a.wav").samples > 3000


@pytest.mark.parametrize(
    "name",
    [
        "-a.wav",
        "file:a.wav",
        "https:a.mp4",
        "a b'\"$.wav",
        "名前.wav",
        "concat:a.mp4",
        "caf\udce9.wav",
        "\udcff.mp4",
    ],
)
def test_odd_names(tmp_path, name):
    path = tmp_path / name
    if name.endswith("mp4"):
        write_aac(tmp_path / "x.mp4", noise(1, 9600), layout="mono").rename(path)
    else:
        soundfile.write(tmp_path / "x.wav", noise(100), 16_000)
        (tmp_path / "x.wav").rename(path)
    assert len(load(path).waveform) == probe(path).samples >= 100


def test_worker_processes_give_the_same_and_pass_errors_on(tmp_path):
    # at another rate the worker would spend seconds importing torch
    soundfile.write(tmp_path / "a.wav", noise(4800), 16_000)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        assert np.array_equal(
            pool.submit(load, tmp_path / "a.wav").result().waveform,
            load(tmp_path / "a.wav").waveform,
        )
        with pytest.raises(MediaError, match="No such file") as error:
            pool.submit(load, tmp_path / "b.wav").result()
    assert error.value.stage == "open"
    assert pickle.loads(pickle.dumps(MediaError("x", "nan"))).stage == "nan"


# --- what cannot be read


def bad_files(folder) -> dict[str, tuple]:
    """name -> (path, stage, part of the message)."""
    wave = noise(20_000)
    soundfile.write(folder / "whole.wav", wave, 16_000)
    soundfile.write(folder / "whole.flac", wave, 16_000)
    soundfile.write(folder / "whole.mp3", wave, 16_000)
    write_aac(folder / "whole.mp4", noise(1, 48_000), layout="mono")
    write_aac(folder / "whole.mkv", noise(1, 480_000), layout="mono")
    out = {}

    def add(name: str, content: bytes, stage: str, part: str):
        (folder / name).write_bytes(content)
        out[name] = (folder / name, stage, part)

    add("text.wav", b"this is a text\n" * 50, "open", "it is a text file")
    add("text.mp4", b"this is a text\n" * 50, "open", "it is a text file")
    add(
        "playlist.wav",
        b"#EXTM3U\n#EXTINF:5,\n" + bytes(folder / "whole.wav") + b"\n#EXT-X-ENDLIST\n",
        "open",
        "not a media file",
    )
    add("concat.mp4", b"ffconcat version 1.0\nfile whole.wav\n", "open", "not a media file")
    add("empty.wav", b"", "empty", "empty file")
    add("empty.mp4", b"", "empty", "empty file")
    add("zeros.mp4", bytes(5000), "open", "it is only zero bytes")
    add(
        "cut.wav", (folder / "whole.wav").read_bytes()[:9000], "truncated", "31,044 of 40,000 bytes"
    )
    add(
        "cut.flac",
        (folder / "whole.flac").read_bytes()[:9000],
        "truncated",
        "of 20,000 samples are there",
    )
    content = (folder / "whole.mp3").read_bytes()
    add("cut.mp3", content[: len(content) // 2], "truncated", "of 37 frames are there")
    add(
        "cut.mp4",
        (folder / "whole.mp4").read_bytes()[:4000],
        "truncated",
        "bytes of its mdat box are missing",
    )
    content = (folder / "whole.mkv").read_bytes()
    add("cut.mkv", content[: len(content) // 2], "truncated", "bytes are missing")
    wrong_rate = bytearray((folder / "whole.wav").read_bytes())
    wrong_rate[24:28] = struct.pack("<I", 3)
    add("rate.wav", bytes(wrong_rate), "rate", "claims 3 Hz")
    soundfile.write(folder / "none.wav", np.zeros(0), 16_000)
    out["none.wav"] = (folder / "none.wav", "empty", "no audio samples")
    (folder / "folder.wav").mkdir()
    out["folder.wav"] = (folder / "folder.wav", "open", "a directory")
    out["absent.wav"] = (folder / "absent.wav", "open", "No such file")
    os.mkfifo(folder / "pipe.wav")
    out["pipe.wav"] = (folder / "pipe.wav", "open", "not a regular file")
    return out


NAMES = [
    "text.wav",
    "text.mp4",
    "playlist.wav",
    "concat.mp4",
    "empty.wav",
    "empty.mp4",
    "zeros.mp4",
    "cut.wav",
    "cut.flac",
    "cut.mp3",
    "cut.mp4",
    "cut.mkv",
    "rate.wav",
    "none.wav",
    "folder.wav",
    "absent.wav",
    "pipe.wav",
]


@pytest.fixture(scope="module")
def bad(tmp_path_factory):
    return bad_files(tmp_path_factory.mktemp("bad"))


@pytest.mark.parametrize("name", NAMES)
def test_bad_files_give_one_line_and_a_stage(bad, name):
    path, stage, part = bad[name]
    for read in (load, probe):
        with pytest.raises(MediaError, match=part) as error:
            read(path)
        assert (
            error.value.stage == stage
            and str(path) in str(error.value)
            and "\n" not in str(error.value)
        )


def test_every_bad_file_is_tried(bad):
    assert sorted(NAMES) == sorted(bad)


def test_video_without_sound(tmp_path):
    import av

    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=10, width=16, height=16)
        frame = av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), dtype=np.uint8), format="rgb24")
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(MediaError, match="no audio stream") as error:
        load(tmp_path / "a.mp4")
    assert error.value.stage == "empty"


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_samples_that_are_no_numbers(tmp_path, value):
    wave = noise(100)
    wave[[3, 7]] = value
    soundfile.write(tmp_path / "a.wav", wave, 16_000, subtype="FLOAT")
    with pytest.raises(MediaError, match="2 of 100 samples are NaN or infinite") as error:
        load(tmp_path / "a.wav")
    assert error.value.stage == "nan"


@pytest.mark.parametrize(
    ("start", "end", "part"),
    [(1.0, 0.5, "not after"), (5.0, None, "nothing at 5 s"), (np.nan, None, "start is nan")],
)
def test_times_that_make_no_sense(tmp_path, start, end, part):
    soundfile.write(tmp_path / "a.wav", noise(16_000), 16_000)
    for read in (load, probe):
        with pytest.raises(MediaError, match=part) as error:
            read(tmp_path / "a.wav", start=start, end=end)
        assert error.value.stage == "times"


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_damaged_bytes_end_in_a_clip_or_one_line(tmp_path, data):
    """Whatever the bytes, `load` and `probe` agree on the length or raise MediaError; nothing else
    escapes.
    """
    suffix = data.draw(st.sampled_from(["wav", "flac", "mp4"]))
    path = tmp_path / f"whole.{suffix}"
    if not path.exists():
        write_aac(path, noise(1, 4800), layout="mono") if suffix == "mp4" else soundfile.write(
            path, noise(800), 16_000
        )
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    damaged = tmp_path / f"damaged.{suffix}"
    damaged.write_bytes(content[: data.draw(st.integers(1, len(content)))])
    lengths = []
    for read in (load, probe):
        try:
            lengths.append(len(read(damaged).waveform) if read is load else read(damaged).samples)
        except MediaError as error:
            assert "\n" not in str(error)
    assert len(set(lengths)) <= 1


def test_memory_is_bounded_whatever_the_file_holds(tmp_path, monkeypatch):
    monkeypatch.setattr(media, "MEDIA_SAMPLES", 1000)
    monkeypatch.setattr(readers, "BLOCK_SAMPLES", 256)
    soundfile.write(tmp_path / "a.wav", noise(5000), 16_000)
    for read in (load, probe):
        with pytest.raises(MediaError, match="give start and end") as error:
            read(tmp_path / "a.wav")
        assert error.value.stage == "too_long"
    assert len(load(tmp_path / "a.wav", start=0.1, end=0.15).waveform) == 800


def test_a_wav_header_that_claims_4_gb_is_no_reason_to_refuse_a_stream(tmp_path):
    soundfile.write(tmp_path / "a.wav", noise(1000), 16_000)
    content = bytearray((tmp_path / "a.wav").read_bytes())
    content[40:44] = b"\xff\xff\xff\xff"  # what a writer to a pipe leaves
    (tmp_path / "a.wav").write_bytes(content)
    assert len(load(tmp_path / "a.wav").waveform) == 1000


def test_a_recording_may_be_called_raw(tmp_path):
    """By that ending soundfile takes any file for bare samples, of which it wants the rate."""
    wave = noise(4000)
    soundfile.write(tmp_path / "a.wav", wave, 16_000, subtype="FLOAT")
    (tmp_path / "a.wav").rename(tmp_path / "a.raw")
    assert np.array_equal(load(tmp_path / "a.raw").waveform, wave)
    assert probe(tmp_path / "a.raw").samples == 4000
    (tmp_path / "b.raw").write_bytes(np.random.default_rng(0).bytes(4000))
    with pytest.raises(MediaError, match="not a media file that can be read"):
        load(tmp_path / "b.raw")
