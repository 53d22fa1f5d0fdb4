"""OpenCV's YuNet, on a network with its input and outputs whose answers are known by hand."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mer.pipeline.errors import DataError
from mer.pipeline.extraction import extract
from mer.pipeline.manifest import Manifest, Utterance
from mer.pipeline.media import faces
from mer.pipeline.media.faces import Crop, cut
from mer.pipeline.media.readers import MediaError
from mer.pipeline.media.stages import Flag
from mer.pipeline.runtime.limits import DETECTOR_BYTES
from mer.pipeline.store import FeatureStore

from tests.extract import corpus
from tests.media import yunet

pytest.importorskip("cv2", reason="needs OpenCV: pip install 'mer[faces]'")
pytest.importorskip("onnx", reason="needs the package onnx, to write a network")

WIDTH, HEIGHT = 160, 128
BOX, SQUARE = 32, 48  # pixels: a face, and what is cut out around it
FILE = Path("film.mp4")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return str(yunet.save(tmp_path_factory.mktemp("yunet") / "yunet.onnx"))


def picture(*cells: tuple[int, int], channel: int = 0) -> np.ndarray:
    """Dark noise, with one channel full in cells (column, row) of 32 pixels."""
    pixels = np.random.default_rng(7).integers(0, 90, (HEIGHT, WIDTH, 3), np.uint8)
    for column, row in cells:
        top, left = BOX * row, BOX * column
        pixels[top : top + BOX, left : left + BOX, channel] = 255
    return pixels


@pytest.mark.parametrize(("column", "left"), [(0, 0), (1, 24), (3, 88), (4, WIDTH - SQUARE)])
def test_a_face_becomes_a_square_around_it(column, left, model):
    pixels = picture((column, 1))
    seen, is_there = cut(FILE, pixels, 0, Crop("detector", model=model))
    assert is_there and np.array_equal(seen, pixels[24 : 24 + SQUARE, left : left + SQUARE])


@pytest.mark.parametrize("pixels", [picture(), picture((2, 1), channel=2)])
def test_without_a_face_what_was_asked_for(pixels, model):
    """Blue is none: pictures go to the detector as blue, green, red."""
    seen, is_there = cut(FILE, pixels, 0, Crop("detector", model=model))
    assert not is_there and np.array_equal(seen, pixels[:, 16 : 16 + HEIGHT])
    with pytest.raises(MediaError, match=r"no face at 1\.50 s"):
        cut(FILE, pixels, 1.5, Crop("detector", fallback="fail", model=model))


@pytest.mark.parametrize("size", [(1, 1), (33, 47), (720, 1280)])
def test_pictures_of_any_size(size, model):
    pixels = np.zeros((*size, 3), np.uint8)
    assert not cut(FILE, pixels, 0, Crop("detector", model=model))[1]


@pytest.mark.parametrize("kind", ["other network", "noise", "empty", "odd name"])
def test_what_is_no_model_is_one_line_before_anything_is_decoded(kind, tmp_path, capfd):
    path = tmp_path / "yunet.onnx"
    if kind == "other network":
        yunet.save_other(path)
    elif kind == "odd name":
        path = yunet.save_other(path).rename(tmp_path / "yunet\udc80.onnx")
    else:
        path.write_bytes(b"onnx" * 100 if kind == "noise" else b"")
    with pytest.raises(DataError, match="not a YuNet model") as caught:
        faces.yunet(str(path))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300
    assert capfd.readouterr() == ("", "")


def test_a_file_that_is_too_large_is_not_read(tmp_path):
    with open(tmp_path / "yunet.onnx", "wb") as file:
        file.truncate(DETECTOR_BYTES + 1)
    with pytest.raises(DataError, match=r"not a YuNet model \(more than 67\.1 MB\)"):
        faces.yunet(str(tmp_path / "yunet.onnx"))


def test_a_file_of_any_name_is_read(model, tmp_path):
    """OpenCV goes by the ending, and is ended by a name that is no UTF-8."""
    path = tmp_path / "yunet\udc80.model"
    path.write_bytes(Path(model).read_bytes())
    assert cut(FILE, picture((2, 1)), 0, Crop("detector", model=str(path)))[1]


def test_another_model_in_the_same_place_is_read(tmp_path):
    path = yunet.save(tmp_path / "yunet.onnx")
    faces.yunet(str(path))
    yunet.save_other(path)
    with pytest.raises(DataError, match="not a YuNet model"):
        faces.yunet(str(path))


def test_the_store_is_that_of_a_table_with_the_same_boxes(tmp_path, model):
    """In decoding processes, a picture a second; two of eight have no face."""
    columns = [0, 1, None, 3, 4, None, 2, 1]
    shown = [picture() if column is None else picture((column, 1)) for column in columns]
    raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{WIDTH}x{HEIGHT}", "-r", "1"]
    coded = ["-c:v", "ffv1", "-pix_fmt", "bgr0", str(tmp_path / "film.mkv")]
    command = ["ffmpeg", "-v", "error", *raw, "-i", "-", *coded]
    subprocess.run(command, input=np.stack(shown).tobytes(), check=True)
    lines = ["id,time,x,y,w,h"]
    for second, column in enumerate(columns):
        if column is not None:
            lines.append(f"u,{second + 0.5},{BOX * column},{BOX},{BOX},{BOX}")
    (tmp_path / "boxes.csv").write_text("\n".join(lines) + "\n")
    rows = (Utterance("u", None, "words", "train", "a", video="film.mkv"),)
    manifest = Manifest("toy", "single", ("a",), rows, tmp_path)
    given = {"vision_encoder": "builtin:tiny-vit", "vision_fps": 1.0, "vision_crop": "faces"}
    found = []
    for name, told in {
        "detector": {"vision_faces": model, "decoders": 2},
        "table": {"vision_boxes": str(tmp_path / "boxes.csv")},
    }.items():
        options = corpus.options(audio_encoder="none", **given, **told)
        report = extract(manifest, tmp_path / f"{name}.h5", options)
        assert report.failures == [] and report.counts["no_face"] == 1
        with FeatureStore(tmp_path / f"{name}.h5") as store:
            assert store.flags[0] & Flag.no_face
            found.append(store.features("vision", 0))
    assert len(found[0]) == 8 and np.array_equal(*found)


def test_opencv_leaves_the_cores_to_the_other_decoders(model):
    code = "import sys, cv2; from mer.pipeline.media import faces; faces.yunet(sys.argv[1]); "
    command = [sys.executable, "-c", code + "print(cv2.getNumThreads())", model]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "1\n"
