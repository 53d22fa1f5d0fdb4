"""Pictures of odd films: the frames that ffmpeg shows at those moments, in its colours."""

from __future__ import annotations

import math
import subprocess
from pathlib import Path

import numpy as np
import pytest

from mer.pipeline.errors import DataError
from mer.pipeline.extraction.options import ExtractOptions
from mer.pipeline.media import pictures, readers
from mer.pipeline.media.readers import MediaError
from mer.pipeline.media.stages import Stage
from mer.pipeline.runtime.limits import MEDIA_FPS, MEDIA_FPS_LEAST

from tests.media import films

FPS = 4.0


def expected(shown: films.Shown, times: list[float]) -> list[int]:
    """By hand: the last frame that is not after a moment, else the first."""
    stamps = np.array(shown.times)
    return [max(0, int((stamps <= time + 1e-6).sum()) - 1) for time in times]


def compare(path: Path, shown: films.Shown, fps: float, **span: float) -> list[pictures.Picture]:
    found = list(pictures.load(path, fps=fps, **span))
    assert len(found) == pictures.probe(path, fps=fps, **span).count
    chosen = expected(shown, [picture.time for picture in found])
    for picture, number in zip(found, chosen, strict=True):
        assert picture.shown == pytest.approx(shown.times[number], abs=2e-3)
        reference = shown.frames[number].astype(float)
        assert picture.pixels.shape == reference.shape
        assert np.abs(picture.pixels - reference).mean() <= 2.0
    return found


@pytest.mark.parametrize("name", films.ODD)
def test_frames_are_those_of_ffmpeg(name, tmp_path):
    suffix, make = films.ODD[name]
    path = make(tmp_path / f"film.{suffix}")
    shown = films.by_ffmpeg(path)
    found = compare(path, shown, FPS)
    # the middle of every interval that lies within the picture
    wanted = [k / FPS + 0.5 / FPS for k in range(100) if k / FPS + 0.5 / FPS < shown.end - 1e-6]
    if len(shown.times) > 1:
        assert [picture.time for picture in found] == pytest.approx(wanted)
    else:
        assert len(found) == 1
    compare(path, shown, 30.0)


def test_the_comparison_can_fail(tmp_path):
    """A wrong matrix is further off than what is allowed."""
    import av
    from av.video.reformatter import ColorRange, Colorspace

    path = films.wide(tmp_path / "film.mp4")
    reference = films.ffmpeg(
        "-i", path, "-frames:v", "1", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"
    )
    first = np.frombuffer(reference, np.uint8).reshape(120, 160, 3).astype(float)
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
    wrong = {"src_colorspace": Colorspace.ITU601, "dst_color_range": ColorRange.JPEG}
    pixels = frame.reformat(format="rgb24", **wrong).to_ndarray()
    assert np.abs(pixels - first).mean() > 2.0


def test_a_part_has_the_pictures_of_the_whole(tmp_path):
    """Also behind a jump, at moments of its own."""
    for name, path in (
        ("mp4", films.plain(tmp_path / "long.mp4", seconds=14)),
        ("mkv", films.plain(tmp_path / "long.mkv", seconds=14)),
        ("ts", films.broadcast(tmp_path / "short.ts")),
        ("avi", films.avi(tmp_path / "short.avi")),
    ):
        shown = films.by_ffmpeg(path)
        start = 7.3 if name in ("mp4", "mkv") else 0.7
        found = compare(path, shown, FPS, start=start, end=start + 1.1)
        assert [picture.time for picture in found] == pytest.approx(
            [start + 0.125, start + 0.375, start + 0.625, start + 0.875]
        )
        later = list(pictures.load(path, fps=FPS, start=start, end=start + 1.1, first=2, most=1))
        assert [picture.time for picture in later] == [found[2].time]
        assert np.array_equal(later[0].pixels, found[2].pixels)


@pytest.mark.parametrize("name", films.ODD)
def test_packets_that_were_kept_give_what_a_file_read_twice_does(name, tmp_path, monkeypatch):
    suffix, make = films.ODD[name]
    path = make(tmp_path / f"film.{suffix}")
    kept = list(pictures.load(path, fps=30.0))
    monkeypatch.setattr(pictures, "KEPT_BYTES", 0)
    again = list(pictures.load(path, fps=30.0))
    assert [one.shown for one in kept] == [one.shown for one in again]
    assert all(np.array_equal(a.pixels, b.pixels) for a, b in zip(kept, again, strict=True))


def test_a_clip_is_opened_once_and_closed(tmp_path, monkeypatch):
    path = films.plain(tmp_path / "film.mp4")
    opened = []

    def counted(*args):
        opened.append(readers.open_container(*args))
        return opened[-1]

    monkeypatch.setattr(pictures, "open_container", counted)
    found, total, flags = pictures.take(path, pictures.Wanted(FPS), start=None, end=None)
    assert len(found) == total > 1 and flags == () and len(opened) == 1
    with pytest.raises(AssertionError, match="not open"):
        next(opened[0].demux(video=0))


@pytest.mark.parametrize(
    ("make", "suffix", "kept_bytes"),
    [(films.avi, "avi", pictures.KEPT_BYTES), (films.plain, "mp4", 0)],
)
def test_a_film_of_many_rows_is_read_whole_once(make, suffix, kept_bytes, tmp_path, monkeypatch):
    """One without an index, and one that is too large for its packets to be kept."""
    monkeypatch.setattr(pictures, "KEPT_BYTES", kept_bytes)
    path = make(tmp_path / f"film.{suffix}")
    read = []
    whole = pictures._Film.read_extent

    def counted(film):
        read.append(film.path)
        return whole(film)

    monkeypatch.setattr(pictures._Film, "read_extent", counted)
    shown = films.by_ffmpeg(path)
    for start in (0.0, 0.25, 0.5, 1.0):
        assert pictures.probe(path, fps=FPS, start=start, end=start + 1.0).count == 4
        compare(path, shown, FPS, start=start, end=start + 1.0)
        pieces = [pictures.Wanted(FPS, first, 2) for first in (0, 2)]
        for piece in pieces:
            found, total, _ = pictures.take(path, piece, start=start, end=start + 1.0)
            assert (len(found), total) == (2, 4)
    assert read == [path]
    films.plain(path, seconds=1)  # another film in its place
    assert pictures.probe(path, fps=FPS).count == 4
    assert read == [path, path]


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_a_display_matrix_turns_the_picture(degrees, tmp_path):
    path = films.rotated(tmp_path / "film.mp4", degrees)
    compare(path, films.by_ffmpeg(path), FPS)


@pytest.mark.parametrize("matrix", [(-1, 0, 0, 1), (1, 0, 0, -1), (0, 1, 1, 0), (0, -1, -1, 0)])
def test_a_display_matrix_may_mirror(matrix):
    """A point (x, y) goes to (ax + cy, bx + dy), by hand."""
    pixels = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    a, b, c, d = matrix
    places = {(a * x + c * y, b * x + d * y): pixels[y, x] for x in range(3) for y in range(2)}
    left, top = min(x for x, _ in places), min(y for _, y in places)
    turned = pictures._turned(pixels, matrix)
    for (x, y), colour in places.items():
        assert np.array_equal(turned[y - top, x - left], colour)


@pytest.mark.parametrize(
    ("seconds", "fps", "moments"),
    [
        (1.0, 4, 4),
        (0.9, 4, 4),
        (0.875, 4, 3),
        (0.1, 4, 1),
        (0.01, 4, 1),
        (10.0, 0.5, 5),
        (2 / 3, 3, 2),
    ],
)
def test_moments_are_the_middles_of_intervals(seconds, fps, moments):
    assert pictures.count(seconds, fps) == moments
    times = pictures.moments(0.0, seconds, fps, moments)
    assert all(0 < time < seconds + 1e-9 for time in times)


def test_no_picture_is_an_answer(tmp_path):
    films.ffmpeg(*films.sound(), tmp_path / "a.wav")
    films.ffmpeg(*films.sound(), *films.AAC, tmp_path / "a.m4a")
    films.ffmpeg(*films.scene(0.1), "-frames:v", "1", tmp_path / "cover.png")
    cover = ["-map", "0", "-map", "1", "-c:v", "copy", "-disposition:v:0", "attached_pic"]
    films.ffmpeg("-i", tmp_path / "a.m4a", "-i", tmp_path / "cover.png", *cover, tmp_path / "c.m4a")
    for name in ("a.wav", "a.m4a", "c.m4a"):
        assert pictures.probe(tmp_path / name, fps=FPS).count == 0
        assert list(pictures.load(tmp_path / name, fps=FPS)) == []
    film = films.plain(tmp_path / "film.mp4")
    assert pictures.probe(film, fps=FPS, start=2.5, end=3).count == 0


def refused(path: Path, **asked) -> MediaError:
    with pytest.raises(MediaError) as caught:
        list(pictures.load(path, **{"fps": FPS, **asked}))
    assert "\n" not in str(caught.value) and str(caught.value).startswith(str(path))
    return caught.value


def test_what_is_cut_off_is_named(tmp_path):
    whole = films.plain(tmp_path / "film.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    assert refused(tmp_path / "cut.mp4").stage in (Stage.TRUNCATED, Stage.OPEN)
    whole = films.plain(tmp_path / "film.mkv").read_bytes()
    (tmp_path / "cut.mkv").write_bytes(whole[: len(whole) // 2])
    assert refused(tmp_path / "cut.mkv").stage == Stage.TRUNCATED


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi"])
def test_a_damaged_picture_is_named(suffix, tmp_path):
    path = films.plain(tmp_path / f"film.{suffix}", size="320x240")
    content = bytearray(path.read_bytes())
    probing = [
        "-v",
        "error",
        "-select_streams",
        "v",
        "-show_entries",
        "packet=pos,size",
        "-of",
        "csv=p=0",
    ]
    told = subprocess.run(["ffprobe", *probing, str(path)], check=True, capture_output=True).stdout
    size, position = map(int, told.decode().splitlines()[12].strip(",").split(",")[:2])
    middle = position + size // 2
    content[middle : middle + 40] = bytes(range(40))
    path.write_bytes(content)
    error = refused(path)
    assert error.stage == Stage.DECODE and "damaged picture" in str(error)


def test_other_files_and_spans(tmp_path):
    (tmp_path / "text.mp4").write_text("no film at all, " * 100)
    assert refused(tmp_path / "text.mp4").stage == Stage.OPEN
    assert refused(tmp_path / "none.mp4").stage == Stage.OPEN
    film = films.plain(tmp_path / "film.mp4")
    assert refused(film, start=1.0, end=1.0).stage == Stage.TIMES


@pytest.mark.parametrize("fps", [0, -1, math.nan, MEDIA_FPS * 1.01])
def test_rates_out_of_bounds_are_refused(fps):
    with pytest.raises(DataError, match="--vision-fps .* is not above 0 and at most 1000"):
        ExtractOptions(vision_encoder="builtin:tiny-vit", vision_fps=fps)


def test_a_rate_of_next_to_nothing_is_refused():
    """A picture would stand for longer than any clip, and the clip for as long."""
    assert ExtractOptions(vision_fps=MEDIA_FPS_LEAST).vision_fps
    for fps in (0.99 * MEDIA_FPS_LEAST, 1e-9, 5e-324):
        with pytest.raises(DataError, match=f"--vision-fps {fps} is less than a picture an hour"):
            ExtractOptions(vision_encoder="builtin:tiny-vit", vision_fps=fps)


def test_pictures_beyond_the_budget_are_refused(tmp_path, monkeypatch):
    film = films.plain(tmp_path / "film.mp4")
    monkeypatch.setattr(pictures, "MEDIA_FRAME_PIXELS", 10_000)
    assert "10,000 pixels" in str(refused(film))
    monkeypatch.undo()
    monkeypatch.setattr(pictures, "MEDIA_FRAMES", 7)
    assert refused(film).stage == Stage.TOO_LONG
