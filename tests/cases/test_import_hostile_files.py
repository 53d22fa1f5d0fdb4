"""Files that ended in an internal error, a hang, a crash or without a bound: hostile npz, npy,
pickles and Parquet.

A fifo given as a file hung; a list nested 60 deep and shared took for ever; Parquet with dates,
durations, time zones and duplicate columns were internal errors; NumPy maps an array of negative
size into a floating-point exception. Each bound of pipeline/runtime/limits.py that an import knows
is hit once.
"""

from __future__ import annotations

import datetime
import decimal
import io
import json
import os
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mer.pipeline.errors import DataError
from mer.pipeline.interchange import importing, indexcsv, npz, parquet, pickles, rows, source
from mer.pipeline.runtime import limits

from tests.cases.imports import imported, split_of

pytestmark = pytest.mark.timeout(60)
ROOM = 300  # characters of a message beside the path


def refused(kind: str, path: Path, message: str, **options) -> None:
    """One line that says `message`, and nothing left behind."""
    before = sorted(path.parent.rglob("*"))
    with pytest.raises(DataError, match=message) as caught:
        imported(kind, path, path.parent / "new" / "f.h5", **options)
    assert (
        "\n" not in str(caught.value)
        and len(str(caught.value).replace(str(path.parent), "")) <= ROOM
    )
    assert sorted(path.parent.rglob("*")) == before


def npy(x: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, x)
    return file.getvalue()


def header(
    descr: str, shape: str, *, body: bytes = b"", extra: str = "", version: tuple[int, int] = (1, 0)
) -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, {extra}}}\n".encode()
    return (
        b"\x93NUMPY"
        + bytes(version)
        + struct.pack("<H" if version == (1, 0) else "<I", len(text))
        + text
        + body
    )


def archive(path: Path, **members: bytes) -> Path:
    common = {"id": npy(np.array(["a", "b", "c"])), "label": npy(np.array(["x", "y", "x"]))}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, raw in (common | members).items():
            file.writestr(f"{name}.npy", raw)
    return path


# --------------------------------------------------------------------------------------------------
# --- no file at all

KINDS = {"mmsa": "x.pkl", "npz": "x.npz", "parquet": "x.parquet"}
OTHERS = {
    "empty": (b"", "an empty file"),
    "zeros": (bytes(5000), "nothing but zero bytes"),
    "lfs": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 1\n",
        "a Git LFS pointer.*git lfs pull",
    ),
    "html": (b"\n<!DOCTYPE html><html><title>Virus scan warning</title>", "a web page"),
    "gzip": (b"\x1f\x8b\x08\x00" + bytes(30), "a gzip archive.*unpack"),
    "bzip2": (b"BZh9" + bytes(30), "a bzip2 archive"),
    "xz": (b"\xfd7zXZ\x00" + bytes(30), "an xz archive"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(30), "an HDF5 file"),
    "npy": (npy(np.ones(3)), r"a single \.npy array"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("other", OTHERS)
def test_another_kind_of_file_is_named(tmp_path, kind, other):
    raw, message = OTHERS[other]
    (tmp_path / KINDS[kind]).write_bytes(raw)
    refused(kind, tmp_path / KINDS[kind], message)


def test_zips_are_told_apart(tmp_path):
    for name, member, message in (
        ("t", "archive/data.pkl", "a PyTorch checkpoint"),
        ("n", "a.npy", "an npz.*mer import npz"),
        ("z", "a.txt", "a zip archive"),
    ):
        with zipfile.ZipFile(tmp_path / f"{name}.pkl", "w") as file:
            file.writestr(member, b"x")
        refused("mmsa", tmp_path / f"{name}.pkl", message)


@pytest.mark.parametrize("kind", KINDS)
def test_a_pipe_is_no_file(tmp_path, kind):
    os.mkfifo(tmp_path / KINDS[kind])
    refused(kind, tmp_path / KINDS[kind], "a pipe, socket or device")


@pytest.mark.parametrize("place", ["index.csv", "header.json", "audio/u1.npy"])
def test_a_pipe_in_a_folder_is_no_file(tmp_path, place):
    folder = tmp_path / "x"
    (folder / "audio").mkdir(parents=True)
    (folder / "index.csv").write_text("id,label\nu1,x\n")
    np.save(folder / "audio/u1.npy", np.ones((2, 3)))
    (folder / place).unlink(missing_ok=True)
    os.mkfifo(folder / place)
    refused("npy-dir", folder, "a pipe, socket or device|expected index.csv")


def test_forms_of_pickles_that_are_not_read_say_which_they_are(tmp_path):
    sample = ((["word"], np.ones((1, 47)), np.ones((1, 74))), np.array([[1.0]]), "video[0]")
    (tmp_path / "m.pkl").write_bytes(
        pickle.dumps({"train": [sample], "dev": [sample], "test": [sample]})
    )
    refused("mmsa", tmp_path / "m.pkl", "the form of MAG-BERT and MISA")
    (tmp_path / "t.pkl").write_bytes(b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n.")
    refused("mmsa", tmp_path / "t.pkl", r"PyTorch tensors.*\.numpy\(\)")
    (tmp_path / "p.pkl").write_bytes(b"\x80\x02cpandas.core.frame\nDataFrame\n.")
    refused("mmsa", tmp_path / "p.pkl", "a pandas table.*to_parquet")
    (tmp_path / "d.pkl").write_bytes(pickle.dumps({"X": np.ones((3, 2)), "y": [1, 2, 3]}))
    refused("mmsa", tmp_path / "d.pkl", r"this has X \(3, 2\) float64, y \(list of 3 int\)")


# --------------------------------------------------------------------------------------------------
# --- pickles


def shared(depth: int) -> list:
    out: list = []
    for _ in range(depth):
        out = [out, out]
    return out


@pytest.mark.parametrize(
    "key",
    [
        "id",
        "audio",
        "audio_lengths",
        "raw_text",
        "annotations",
        "regression_labels",
        "text_bert",
        "extra",
    ],
)
@pytest.mark.parametrize("depth", [40, 60])
def test_what_is_shared_is_not_visited_each_time(tmp_path, key, depth):
    (tmp_path / "x.pkl").write_bytes(
        pickle.dumps({"train": split_of("train") | {key: shared(depth)}})
    )
    refused("mmsa", tmp_path / "x.pkl", "because parts are shared|deep inside each other")


def test_one_array_many_times_is_more_than_its_file(tmp_path, monkeypatch):
    monkeypatch.setattr(pickles, "PICKLE_SHARED_FREE_BYTES", 1 << 20)
    x = np.ones((100, 5), np.float32)
    part = {
        "id": [f"u{i}" for i in range(2000)],
        "audio": [x] * 2000,
        "regression_labels": np.ones(2000),
    }
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"train": part}))
    assert 2000 * x.nbytes > limits.PICKLE_SHARED_RATIO * (tmp_path / "x.pkl").stat().st_size
    refused("mmsa", tmp_path / "x.pkl", "because parts are shared")


def test_lists_within_lists_and_within_themselves(tmp_path, monkeypatch):
    monkeypatch.setattr(pickles, "PICKLE_DEPTH", 10)
    nested: list = []
    for _ in range(12):
        nested = [nested]
    (tmp_path / "d.pkl").write_bytes(pickle.dumps({"train": split_of("train") | {"audio": nested}}))
    refused("mmsa", tmp_path / "d.pkl", "more than 10 deep")
    circle: list = []
    circle.append(circle)
    (tmp_path / "c.pkl").write_bytes(pickle.dumps({"train": {"id": circle}}))
    refused("mmsa", tmp_path / "c.pkl", "contains itself")


def test_opcodes_and_digits_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(pickles, "PICKLE_OPCODES", 1000)
    (tmp_path / "o.pkl").write_bytes(pickle.dumps(list(range(2000))))
    refused("mmsa", tmp_path / "o.pkl", "more than 1,000 objects")
    (tmp_path / "d.pkl").write_bytes(b"I" + b"9" * (limits.PICKLE_NUMBER_DIGITS + 1) + b"\n.")
    refused("mmsa", tmp_path / "d.pkl", "a number of 4,001 digits")


# --------------------------------------------------------------------------------------------------
# --- npz and npy

ODD_HEADERS = {
    "a negative size": header("'<f4'", "(3, -4)"),
    "elements of no size": header("'<U0'", "(-1,)"),
    "more than there is": header("'<f4'", "(225000000,)"),
    "no numbers": header("'<f4'", "('a', 4)"),
    "nested without end": header("'<f4'", "(3, 4)", extra="'x': " + "(" * 3000),
    "no type": header("'garbage'", "(3, 4)"),
    "a list of nothing": header("[]", "(3, 4)"),
    "objects": npy(np.array([{"a": 1}] * 3, object)),
    "records": npy(np.zeros((3, 2), "f4,i4")),
    "complex": npy(np.ones((3, 2), complex)),
    "times": npy(np.zeros((3, 2), "M8[s]")),
    "version 9": header("'<f4'", "(3, 4)", body=bytes(48), version=(9, 9)),
    "no header": b"\x93NUMPY",
    "text": b"hello",
    "seventy dimensions": header("'<f4'", str((1,) * 70), body=bytes(4)),
}


@pytest.mark.parametrize("odd", ODD_HEADERS)
def test_odd_arrays_in_an_npz_are_one_line(tmp_path, odd):
    refused(
        "npz",
        archive(tmp_path / "x.npz", audio=ODD_HEADERS[odd]),
        "x.npz",
        features={"audio": "audio"},
    )


@pytest.mark.parametrize("odd", ODD_HEADERS)
def test_odd_arrays_in_a_folder_are_one_line(tmp_path, odd):
    folder = tmp_path / "x"
    (folder / "audio").mkdir(parents=True)
    (folder / "index.csv").write_text("id,label\nu1,x\nu2,y\n")
    np.save(folder / "audio/u1.npy", np.ones((2, 4)))
    (folder / "audio/u2.npy").write_bytes(ODD_HEADERS[odd])
    refused("npy-dir", folder, r"u2")


@pytest.mark.parametrize(
    "x",
    [
        np.asfortranarray(np.arange(12.0).reshape(3, 4)),
        np.arange(12.0).reshape(3, 4).astype(">f8"),
        np.arange(12).reshape(3, 4),
        np.arange(12).reshape(3, 4).astype(np.float16),
        np.arange(12).reshape(3, 4).astype(np.longdouble),
        np.eye(3, 4, dtype=bool),
    ],
)
def test_unusual_but_good_arrays_are_read(tmp_path, x):
    store = imported("npz", archive(tmp_path / "x.npz", audio=npy(x)), tmp_path / "f.h5")
    np.testing.assert_array_equal(store.packed("audio")[0], x.astype(np.float32))


@pytest.mark.parametrize(
    ("field", "x"),
    [
        ("label", np.zeros(3, "M8[ns]")),
        ("label", np.array(5)),
        ("id", np.array("a")),
        ("id", np.ones((3, 2))),
        ("label", np.zeros(3, "f4,i4")),
        ("label", np.zeros(3, complex)),
        ("id", np.array([b"\xff", b"a", b"b"])),
        ("id", np.array(["a", " ", "b"])),
    ],
)
def test_columns_of_an_npz_that_are_no_columns(tmp_path, field, x):
    refused(
        "npz",
        archive(tmp_path / "x.npz", audio=npy(np.ones((3, 2))), **{field: npy(x)}),
        "x.npz",
        columns={field: field},
    )


def test_members_over_each_other_are_refused(tmp_path):
    """Two names for the same bytes: what zip bombs are made of."""
    path = archive(tmp_path / "x.npz", audio=npy(np.ones((3, 2))), text=npy(np.ones((3, 2))))
    raw = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as file:
        a, b = file.getinfo("audio.npy"), file.getinfo("text.npy")
    at = raw.rfind(b"text.npy") - 46  # its entry in the directory
    assert (
        raw[at : at + 4] == b"PK\x01\x02"
        and struct.unpack("<I", raw[at + 42 : at + 46])[0] == b.header_offset
    )
    raw[at + 42 : at + 46] = struct.pack("<I", a.header_offset)
    path.write_bytes(raw)
    refused("npz", path, "lies over another array|overlap|differ")


def test_bounds_of_npz(tmp_path, monkeypatch):
    path = archive(tmp_path / "x.npz", audio=npy(np.zeros((3, 100_000))))
    monkeypatch.setattr(npz, "UNPACKED_FREE_BYTES", 1 << 20)
    refused("npz", path, f"more than {limits.UNPACKED_RATIO} times")
    monkeypatch.undo()
    monkeypatch.setattr(npz, "IMPORT_MEMBERS", 2)
    refused("npz", path, "3 arrays, more than 2")
    monkeypatch.undo()
    monkeypatch.setattr(npz, "IMPORT_TABLE_BYTES", 100)
    refused("npz", path, "its columns unpack to .* more than 100")
    monkeypatch.undo()
    monkeypatch.setattr(npz, "IMPORT_ROWS", 2)
    refused("npz", path, "3 utterances, more than 2")
    monkeypatch.undo()
    monkeypatch.setattr(rows, "IMPORT_ROWS", 2)
    refused("npz", path, "3 utterances, more than 2")
    monkeypatch.undo()
    monkeypatch.setattr(importing, "IMPORT_UTTERANCE_BYTES", 1000)
    refused("npz", path, "audio of 'a' has shape .* for one utterance")


def test_an_array_file_of_a_terabyte_of_nothing_is_refused(tmp_path):
    folder = tmp_path / "x"
    (folder / "audio").mkdir(parents=True)
    (folder / "index.csv").write_text("id,label\nu1,x\n")
    with open(folder / "audio/u1.npy", "wb") as file:
        file.write(header("'<f4'", "(62500000000, 4)"))
        file.truncate(10**12 + 200)  # a sparse file: it takes no room
    refused("npy-dir", folder, "for one utterance")


def test_bounds_of_a_folder(tmp_path, monkeypatch):
    folder = tmp_path / "x"
    (folder / "audio").mkdir(parents=True)
    (folder / "index.csv").write_text("id,label\nu1,x\nu2,y\n")
    np.save(folder / "audio/u1.npy", np.ones((2, 4)))
    for name, value, message in (
        ("TABLE_BYTES", 10, "import it in parts"),
        ("TABLE_COLUMNS", 1, "2 columns, more than 1"),
        ("IMPORT_ROWS", 1, "more than 1 rows"),
    ):
        monkeypatch.setattr(indexcsv, name, value)
        refused("npy-dir", folder, message)
        monkeypatch.undo()


# --------------------------------------------------------------------------------------------------
# --- headers


ODD_JSON = [
    "{}",
    "[]",
    '"x"',
    "[" * 100_000,
    '{"a":' * 50_000,
    "9" * 10_000,
    "nonsense",
    '{"modalities": {}}',
    *(
        json.dumps(
            {
                "dataset": "d",
                "task": "single",
                "labels": ["x", "y"],
                "language": "en",
                "modalities": {"audio": {"dim": 4}},
            }
            | odd
        )
        for odd in (
            {"dataset": 1},
            {"task": "other"},
            {"labels": "xy"},
            {"labels": [1]},
            {"language": None},
            {"provenance": []},
            {"recipe": 3},
            {"modalities": {"audio": {"dim": "4"}}},
            {"modalities": {"audio": {"dim": 4, "frame_rate": "x"}}},
            {"modalities": {"audio": 4}},
            {"modalities": {"audio": {"dim": 4, "colour": 1}}},
            {"modalities": {"audio": {"dim": 4, "dtype": 1}}},
            {"more": 1},
        )
    ),
]


@pytest.mark.parametrize("text", ODD_JSON, ids=lambda text: text[:60])
def test_an_odd_header_is_one_line_or_none(tmp_path, text):
    folder = tmp_path / "x"
    (folder / "audio").mkdir(parents=True)
    (folder / "index.csv").write_text("id,label\nu1,x\n")
    np.save(folder / "audio/u1.npy", np.ones((2, 4)))
    (folder / "header.json").write_text(text)
    refused("npy-dir", folder, "not a header of `mer export`.*remove it")
    table = pa.table(
        {"id": ["u1"], "label": ["x"], "audio": pa.array([[1.0, 2.0]])}
    ).replace_schema_metadata({"mer": text})
    pq.write_table(table, tmp_path / "x.parquet")
    assert (
        len(imported("parquet", tmp_path / "x.parquet", tmp_path / "p.h5")) == 1
    )  # anybody may call their metadata "mer"
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"train": split_of("train"), "mer": text}))
    assert len(imported("mmsa", tmp_path / "x.pkl", tmp_path / "m.h5")) == 4


def test_a_header_of_many_bytes_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(source, "HEADER_BYTES", 10)
    with pytest.raises(ValueError, match="a header of 20 bytes, more than 10"):
        source.exported_header(" " * 20)


# --------------------------------------------------------------------------------------------------
# --- Parquet

DAY = datetime.datetime(2020, 1, 1)
ODD_COLUMNS = {
    "dates": pa.array([DAY.date()] * 3),
    "timestamps": pa.array([DAY] * 3, pa.timestamp("ns")),
    "a time zone that is none": pa.array([DAY] * 3, pa.timestamp("us", "Europe/Nowhere")),
    "a date beyond Python's": pa.array([2**62] * 3, pa.timestamp("ms")),
    "durations": pa.array([datetime.timedelta(1)] * 3),
    "durations beyond Python's": pa.array([2**62] * 3, pa.duration("s")),
    "times": pa.array([datetime.time(1)] * 3),
    "structs": pa.array([{"a": 1}] * 3),
    "maps": pa.array([[("a", 1)]] * 3, pa.map_(pa.string(), pa.int64())),
    "bytes that are no text": pa.array([b"\xff"] * 3),
}


@pytest.mark.parametrize(
    "field", ["id", "label", "split", "text", "speaker", "targets", "position", "duration"]
)
@pytest.mark.parametrize("odd", ODD_COLUMNS)
def test_odd_columns_of_parquet_are_one_line(tmp_path, field, odd):
    table = {
        "id": ["a", "b", "c"],
        "audio": pa.array([[1.0, 2.0]] * 3),
        "label": ["x", "y", "x"],
    } | {field: ODD_COLUMNS[odd]}
    pq.write_table(pa.table(table), tmp_path / "x.parquet")
    task = "regression" if field == "targets" else None
    refused("parquet", tmp_path / "x.parquet", "x.parquet", task=task, columns={field: field})


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        (pa.array([decimal.Decimal("1"), decimal.Decimal("0"), None]), ["1", "0", None]),
        (pa.array([b"x", b" y", None]), ["x", "y", None]),
        (pa.array(["x ", "y", " "]), ["x", "y", None]),
        (pa.array(["x", None, "x"]).dictionary_encode(), ["x", None, "x"]),
        (pa.array([1.0, float("nan"), 0.0]), ["1", None, "0"]),
    ],
)
def test_cells_that_are_missing_or_have_blanks(tmp_path, label, expected):
    pq.write_table(
        pa.table({"id": ["a ", "b", "c"], "audio": pa.array([[1.0, 2.0]] * 3), "label": label}),
        tmp_path / "x.parquet",
    )
    store = imported("parquet", tmp_path / "x.parquet", tmp_path / "f.h5")
    assert store.table()["label"].to_pylist() == expected and store.table()["id"].to_pylist() == [
        "a",
        "b",
        "c",
    ]


def test_two_columns_of_a_name_are_one_line(tmp_path):
    arrays = [pa.array(["a"]), pa.array([[1.0]]), pa.array(["x"]), pa.array(["y"])]
    pq.write_table(
        pa.Table.from_arrays(arrays, names=["id", "audio", "label", "label"]),
        tmp_path / "x.parquet",
    )
    refused("parquet", tmp_path / "x.parquet", "column 'label' is there twice")


@pytest.mark.parametrize("shape", [(), (2, 3), (1, 2, 4), (3,)])
def test_an_array_of_another_width_is_named_by_the_input(tmp_path, shape):
    """The message named a shard that was being written, not the file that was read."""
    folder = tmp_path / "x"
    (folder / "audio").mkdir(parents=True)
    (folder / "index.csv").write_text("id,label\nu1,x\nu2,y\n")
    np.save(folder / "audio/u1.npy", np.ones((2, 4), np.float32))
    np.save(folder / "audio/u2.npy", np.ones(shape, np.float32))
    words = rf"^{folder}: u2: audio has shape .*, expected \(T, 4\) or \(4,\)"
    refused("npy-dir", folder, words)


@pytest.mark.parametrize("share", [2, 1_000])
def test_rows_are_unpacked_a_bounded_number_of_bytes_at_a_time(tmp_path, monkeypatch, share):
    """Two rows at a time, or one where a row alone is beyond the bound; the same store."""
    table = {
        "id": list("abcde"),
        "label": list("xyxyx"),
        "audio": [[float(i)] * 8 for i in range(5)],
    }
    pq.write_table(pa.table(table), tmp_path / "x.parquet")
    monkeypatch.setattr(parquet, "PARQUET_BATCH_BYTES", 2 * 8 * 8 * 2 // share)
    asked, whole = [], pq.ParquetFile.iter_batches

    def counted(file, rows, columns):
        asked.append((columns, rows))
        return whole(file, rows, columns=columns)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", counted)
    store = imported("parquet", tmp_path / "x.parquet", tmp_path / "f.h5")
    assert (["audio"], 2 if share == 2 else 1) in asked
    assert [store.features("audio", i)[0, 0] for i in range(5)] == [0, 1, 2, 3, 4]


def test_run_lengths_and_dictionaries_are_bounded(tmp_path, monkeypatch):
    """5 million numbers, and 2,000 long words, in a few kB."""
    one = pa.ListArray.from_arrays(
        pa.array([0, 5_000_000], pa.int32()), pa.array(np.zeros(5_000_000, np.float32))
    )
    pq.write_table(
        pa.table({"id": ["a"], "label": ["x"], "audio": one}),
        tmp_path / "x.parquet",
        compression="zstd",
    )
    assert (tmp_path / "x.parquet").stat().st_size < 40_000
    monkeypatch.setattr(parquet, "UNPACKED_FREE_BYTES", 1 << 20)
    refused("parquet", tmp_path / "x.parquet", "that hold 5,000,000 numbers; more than 200 times")
    n = 2000
    words = {
        "id": [f"u{i}" for i in range(n)],
        "label": ["x" * 10_000] * n,
        "audio": pa.array([[1.0]] * n),
    }
    pq.write_table(pa.table(words), tmp_path / "y.parquet")
    monkeypatch.setattr(parquet, "IMPORT_TABLE_BYTES", 1 << 20)
    refused("parquet", tmp_path / "y.parquet", "its columns unpack to more than 1,048,576 bytes")
    monkeypatch.setattr(parquet, "IMPORT_ROWS", 1999)
    refused("parquet", tmp_path / "y.parquet", "2,000 rows; import at most 1,999")
    monkeypatch.setattr(parquet, "IMPORT_ROWS", 2000)
    monkeypatch.setattr(parquet, "IMPORT_MEMBERS", 2)
    refused("parquet", tmp_path / "y.parquet", "3 columns, more than 2")
