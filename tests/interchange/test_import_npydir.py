"""Import of a folder of npy files with a csv beside them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mer.pipeline.errors import DataError
from mer.pipeline.interchange import indexcsv, npydir
from mer.pipeline.interchange.foreign import ImportOptions
from mer.pipeline.store import FeatureStore

from tests.interchange.doors import imported, mer


def folder_of_arrays(
    folder: Path, csv: bytes | str = "name,emotion,split\nu1,joy,train\nu2,fear,test\n"
) -> Path:
    """As MERBench leaves it: a folder an encoder, an array an utterance."""
    for name, shape in (("wav2vec", (5, 4)), ("roberta", (3,))):
        (folder / name).mkdir(parents=True)
        for k, id in enumerate(("u1", "u2")):
            np.save(folder / name / f"{id}.npy", np.full(shape, k + 1.0))
    (folder / "labels.csv").write_bytes(csv if isinstance(csv, bytes) else csv.encode())
    return folder


def test_npy_folder_of_another_hand(tmp_path):
    folder_of_arrays(
        tmp_path / "x", "\ufeffname,emotion,split\nu1,joy,train\nu2,fear,test\nu3,joy,test\n"
    )
    options = ["--feature", "audio=wav2vec", "--feature", "text=roberta"]
    code, _, err = mer("import", "npy-dir", tmp_path / "x", "--out", tmp_path / "f.h5", *options)
    assert code == 0 and "audio: absent in 1 utterance\n" in err, err
    store = FeatureStore(tmp_path / "f.h5")
    assert store.lengths("audio").tolist() == [5, 5, 0] and store.lengths("text").tolist() == [
        1,
        1,
        0,
    ]
    assert store.features("audio", 1).tolist() == [[2.0] * 4] * 5 and store.table()[
        "label"
    ].to_pylist() == ["joy", "fear", "joy"]


@pytest.mark.parametrize(
    ("labels", "names", "expected", "classes"),
    [
        (["1", "0"], ("sad", "glad"), ["glad", "sad"], ("sad", "glad")),
        (["-1", "2"], ("sad", "so", "glad"), [None, "glad"], ("sad", "so", "glad")),
        (["10", "2"], (), ["10", "2"], ("2", "10")),
        (["2", "1"], ("1", "2"), ["2", "1"], ("1", "2")),
        (["", "joy"], (), [None, "joy"], ("joy",)),
    ],
)
def test_labels_of_a_csv(tmp_path, labels, names, expected, classes):
    folder_of_arrays(tmp_path / "x", f"name,sentiment\nu1,{labels[0]}\nu2,{labels[1]}\n")
    store = imported(
        npydir, tmp_path / "x", tmp_path / "f.h5", features={"audio": "wav2vec"}, labels=names
    )
    assert (
        store.table()["label"].to_pylist() == expected
        and store.header.labels == classes
        and store.header.task == "single"
    )


@pytest.mark.parametrize(
    ("csv", "message"),
    [
        (b"name,emotion\nu1,tr\xe8s\n", r"not UTF-8 \(byte 0xe8 at 18\); save it as UTF-8"),
        ("name,emotion\nu1,joy\n".encode("utf-16"), "not UTF-8"),
        (b"name,emotion\nu1,joy,more\n", "line 2 has 3 cells, the header 2"),
        (b"name,name\nu1,joy\n", "two columns of the same name"),
        (b"name,emotion\n", "no rows"),
        (b"", "no rows"),
        (b'name,emotion\n"u1,joy\n', "line 2"),
        (
            b"name,emotion\n../../secret,joy\n",
            r"'\.\./\.\./secret' leads out of the folder; refused",
        ),
        (b"name,emotion\n/etc/passwd,joy\n", "'/etc/passwd' leads out of the folder; refused"),
        (b"name,emotion\nu1\x00,joy\n", "leads out of the folder; refused"),
        (b"name,emotion\nnobody,joy\n", "no file of wav2vec for audio belongs to a row"),
        (b"name,split\nu1,somewhere\n", "u1 has split 'somewhere'"),
    ],
)
def test_odd_csv_is_one_line(tmp_path, csv, message):
    np.save(tmp_path / "secret.npy", np.ones(4))
    folder_of_arrays(tmp_path / "x", csv)
    with pytest.raises(DataError, match=message) as caught:
        imported(npydir, tmp_path / "x", tmp_path / "feats.h5", features={"audio": "wav2vec"})
    assert "\n" not in str(caught.value) and not (tmp_path / "feats.h5").exists()


def test_link_that_leads_out_of_the_folder_is_refused(tmp_path):
    folder_of_arrays(tmp_path / "x")
    np.save(tmp_path / "secret.npy", np.ones(4))
    (tmp_path / "x/wav2vec/u1.npy").unlink()
    (tmp_path / "x/wav2vec/u1.npy").symlink_to(tmp_path / "secret.npy")
    with pytest.raises(DataError, match="'u1' leads out of the folder"):
        imported(npydir, tmp_path / "x", tmp_path / "feats.h5", features={"audio": "wav2vec"})


@pytest.mark.parametrize("kind", ["pickled", "truncated", "garbage", "claims"])
def test_npy_file_that_is_not_an_array(tmp_path, kind):
    path = folder_of_arrays(tmp_path / "x") / "wav2vec/u1.npy"
    if kind == "pickled":
        np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    elif kind == "claims":
        with open(path, "wb") as file:
            np.lib.format.write_array_header_1_0(
                file, {"descr": "<f4", "fortran_order": False, "shape": (10**10, 4)}
            )
    else:
        path.write_bytes({"truncated": path.read_bytes()[:40], "garbage": b"hello"}[kind])
    with pytest.raises(
        DataError, match=r"u1\.npy: (not a readable array|holds object|claims shape|a |an )"
    ):
        imported(npydir, tmp_path / "x", tmp_path / "feats.h5", features={"audio": "wav2vec"})


@pytest.mark.slow
def test_a_million_rows(tmp_path):
    from mer.pipeline.interchange.rows import interpret

    with open(tmp_path / "index.csv", "w") as file:
        file.write(
            "id,label,split\n"
            + "".join(f"u{i},{('joy', 'fear')[i % 2]},train\n" for i in range(1_000_000))
        )
    columns = indexcsv.read_csv(tmp_path / "index.csv")
    found = interpret(tmp_path, columns, ImportOptions())
    assert len(found.rows) == 1_000_000
    assert found.labels == ("fear", "joy") and found.task == "single"
