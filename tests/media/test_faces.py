"""Which part of a picture is kept: squares around boxes, halves, and what is told of the rest."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from mer.pipeline.errors import DataError
from mer.pipeline.media import faces, pictures
from mer.pipeline.media.faces import Box, Crop, cut
from mer.pipeline.media.readers import MediaError

from tests.media import films

FILE = Path("film.mp4")


def picture(width: int = 40, height: int = 30) -> np.ndarray:
    """Red says the column, green the row."""
    rows, columns = np.indices((height, width))
    return np.stack([columns, rows, np.zeros_like(rows)], 2).astype(np.uint8)


def place(part: np.ndarray) -> tuple[int, int, int, int]:
    """(left, top, width, height) of a part of `picture`."""
    return int(part[0, 0, 0]), int(part[0, 0, 1]), part.shape[1], part.shape[0]


@pytest.mark.parametrize(
    ("crop", "expected"),
    [
        (Crop(), (0, 0, 40, 30)),
        (Crop("centre"), (5, 0, 30, 30)),
        (Crop("left"), (0, 0, 20, 30)),
        (Crop("right"), (20, 0, 20, 30)),
        # a side of 8 with a quarter of it on each side: 12
        (Crop("boxes", (Box(1.0, 10, 10, 8, 6),)), (8, 7, 12, 12)),
        # moved into the picture
        (Crop("boxes", (Box(1.0, -3, 26, 8, 8),)), (0, 18, 12, 12)),
        # larger than the picture
        (Crop("boxes", (Box(1.0, 0, 0, 40, 30),)), (5, 0, 30, 30)),
    ],
)
def test_parts(crop, expected):
    part, there = cut(FILE, picture(), 1.0, crop)
    assert there and place(part) == expected


def test_the_nearest_box_counts_and_of_several_the_largest():
    boxes = (Box(0.0, 0, 0, 4, 4), Box(1.0, 4, 4, 4, 4), Box(1.0, 20, 10, 8, 8))
    crop = Crop("boxes", boxes)
    assert place(cut(FILE, picture(), 0.4, crop)[0]) == (0, 0, 6, 6)
    assert place(cut(FILE, picture(), 0.6, crop)[0]) == (18, 8, 12, 12)
    part, there = cut(FILE, picture(), 1.6, crop)
    assert not there and place(part) == (5, 0, 30, 30)
    assert crop.between(0.0, 0.1).boxes == boxes[:1]


def test_without_a_face():
    assert place(cut(FILE, picture(), 0, Crop("boxes", fallback="whole"))[0]) == (0, 0, 40, 30)
    with pytest.raises(MediaError, match=r"film.mp4: no face at 0.00 s"):
        cut(FILE, picture(), 0, Crop("boxes", fallback="fail"))


@pytest.mark.parametrize("at", [(40, 0), (0, 30), (-8, 0), (0, -8)])
def test_a_box_outside_the_picture_is_named(at):
    with pytest.raises(MediaError, match="outside the picture of 40 x 30"):
        cut(FILE, picture(), 0, Crop("boxes", (Box(0, *at, 8, 8),)))


def test_boxes_of_a_table(tmp_path):
    table = tmp_path / "boxes.csv"
    table.write_text(
        'h,id,time,x,y,w,note\n4,"a, b",1.5,1,2,3,x\n4,"a, b",0.5,1,2,3,x\n1,c,0,0,0,1,\n'
    )
    expected = (Box(0.5, 1, 2, 3, 4), Box(1.5, 1, 2, 3, 4))
    assert faces.boxes_for(str(table), "a, b", "film.mp4") == expected
    assert faces.boxes_for(str(table), "none", "film.mp4") == ()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("id,time,x,y,w\na,0,0,0,1\n", "no column h"),
        ("id,time,x,y,w,h\na,0,0,0,1,0\n", "line 2: no box"),
        ("id,time,x,y,w,h\na,0,0,0,1,1\na,-1,0,0,1,1\n", "line 3: no box"),
        ("id,time,x,y,w,h\na,0,0,0,1,nan\n", "line 2: no box"),
        ("id,time,x,y,w,h\n\na,0,0,0,1,1\n\r\na,0,0,0,1,-1\n", "line 5: no box"),
        ("id,time,x,y,w,h\n\n\na,0,0,0,1,?\n", "line 4: time, x, y, w or h is no number"),
        ("id,time,x,y,w,h,h\na,0,0,0,1,2,3\n", "two columns are called h"),
        ("id,time,x,y,w,h\na,0,zero,0,1,1\n", "line 2: time, x, y, w or h is no number"),
        ("id,time,x,y,w,h\na,0\n", "not a readable table"),
        ("", "no column id"),
    ],
)
def test_tables_that_are_none(content, said, tmp_path):
    table = tmp_path / "boxes.csv"
    table.write_text(content)
    with pytest.raises(DataError, match=said) as caught:
        faces.boxes_for(str(table), "a", "film.mp4")
    assert "\n" not in str(caught.value) and len(str(caught.value)) <= 300 + len(str(table))


def test_boxes_of_openface(tmp_path):
    """As FeatureExtraction writes them: blanks behind commas, the box around the landmarks."""
    names = [f"{axis}_{n}" for axis in "xy" for n in range(68)]
    header = ", ".join(["frame", "face_id", "timestamp", "confidence", "success", *names])
    xs, ys = [100 + n for n in range(68)], [50 + 2 * n for n in range(68)]
    line = ", ".join(map(str, [1, 0, 0.04, 0.98, 1, *xs, *ys]))
    lost = ", ".join(map(str, [2, 0, 0.08, 0.1, 0, *xs, *ys]))
    (tmp_path / "clip.csv").write_text(f"{header}\n{line}\n{lost}\n")
    expected = (Box(0.04, 100, 50, 67, 134),)
    assert faces.boxes_for(str(tmp_path), "u1", "some/clip.mp4") == expected
    assert faces.boxes_for(str(tmp_path), "clip", "other.mp4") == expected
    assert faces.boxes_for(str(tmp_path), "u1", "other.mp4") == ()


@pytest.mark.parametrize("films_of_openface", [False, True])
def test_boxes_are_spelled_out_once_for_many_rows_of_a_film(
    films_of_openface, tmp_path, monkeypatch
):
    """The digest is in content keys of stores: that of their list of plain tuples."""
    if films_of_openface:
        names = [f"{axis}_{n}" for axis in "xy" for n in range(68)]
        lines = [",".join(["timestamp", "success", *names])]
        lines += [",".join(map(str, [t / 10, 1, *range(136)])) for t in range(20)]
        (tmp_path / "film.csv").write_text("\n".join(lines) + "\n")
        source = str(tmp_path)
    else:
        lines = [f"film,{t / 10},{t},2,3,4" for t in range(20)]
        (tmp_path / "boxes.csv").write_text("\n".join(["id,time,x,y,w,h", *lines]) + "\n")
        source = str(tmp_path / "boxes.csv")
    plain = [tuple(box) for box in faces.boxes_for(source, "u", "film.mp4")]
    assert len(plain) == 20
    expected = hashlib.sha256(repr(plain).encode()).hexdigest()
    hashed, sha256 = [], hashlib.sha256

    def counted(data: bytes):
        hashed.append(data)
        return sha256(data)

    monkeypatch.setattr(faces.hashlib, "sha256", counted)
    found = {faces.boxes_digest(source, f"u{row}", "film.mp4") for row in range(50)}
    assert found == {expected} and len(hashed) == 1
    monkeypatch.undo()
    none = hashlib.sha256(b"[]").hexdigest()
    assert faces.boxes_digest(source, "u", "other.mp4") == none


@pytest.mark.parametrize("fps", [0.1, 0.7, 3.0, 4.0, 29.97])
def test_a_piece_is_sent_the_boxes_that_its_pictures_can_take(fps, tmp_path):
    """Every picture of a piece has the box that it has among all of them, at the edges, too."""
    times = sorted({k / 8 for k in range(80)} | {(k + 0.5) / fps + 0.5 for k in range(8)})
    crop = Crop("boxes", tuple(Box(time, *4 * [1]) for time in times if not 3 < time < 5))
    for begin, first, end in [(0.0, 0, 3), (0.0, 3, 6), (1.3, 0, 1), (1.3, 5, 7)]:
        sent = crop.between(begin + first / fps, begin + end / fps)
        for k in range(first, end):
            moment = begin + (k + 0.5) / fps
            assert faces._nearest(sent.boxes, moment) == faces._nearest(crop.boxes, moment)
        low, high = begin + first / fps - 0.5, begin + end / fps + 0.5
        assert all(low <= box.time <= high for box in sent.boxes)


def test_a_detector_needs_opencv_and_a_model(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "cv2", None)
    with pytest.raises(DataError, match=r"mer\[faces\]"):
        cut(FILE, picture(), 0, Crop("detector", model=str(tmp_path / "yunet.onnx")))


def test_pictures_are_cropped_and_finished(tmp_path):
    film = films.plain(tmp_path / "film.mp4")
    boxes = tuple(Box(k / 4, 10, 10, 40, 40) for k in range(6))
    wanted = pictures.Wanted(4.0, 2, 4, Crop("boxes", boxes), finish=np.fliplr)
    found, total, flags = pictures.take(film, wanted, start=None, end=None)
    whole = list(pictures.load(film, fps=4.0))[2:6]
    assert (total, found.shape, flags) == (8, (4, 60, 60, 3), ())
    assert np.array_equal(found[1], whole[1].pixels[0:60, 0:60][:, ::-1])


def test_a_box_over_the_edge_is_moved_in_and_one_outside_fails():
    """Detectors round, and faces leave the picture: a square of 1.5 boxes, within the picture."""
    pixels = np.arange(100 * 80 * 3, dtype=np.uint32).reshape(80, 100, 3)

    def seen(x: float, y: float) -> np.ndarray:
        return cut(FILE, pixels, 0, Crop("boxes", (Box(0, x, y, 20, 20),)))[0]

    assert np.array_equal(seen(90, 70), pixels[50:80, 70:100])
    assert np.array_equal(seen(-10, -10), pixels[:30, :30])
    for x, y in ((100, 10), (10, 80), (-20, 10), (10, -20)):
        with pytest.raises(faces.MediaError, match="outside the picture of 100 x 80"):
            seen(x, y)
