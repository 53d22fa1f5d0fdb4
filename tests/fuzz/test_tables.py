"""Tables and manifests put together from nasty cells, then damaged: read, or refused in one line;
what is read comes back from the manifest as it went in. `MER_FUZZ_TABLES` (default 80) changes how
many inputs of each kind.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mer.pipeline.datasets import prepare
from mer.pipeline.errors import MerError
from mer.pipeline.manifest import SCHEMA, Manifest, Utterance

INPUTS = int(os.environ.get("MER_FUZZ_TABLES", "80"))
LINE = 400  # characters of a message without its path
FIELDS = (
    "id",
    "audio",
    "text",
    "label",
    "split",
    "speaker",
    "dialogue",
    "session",
    "start",
    "end",
    "duration",
)
WORDS = (
    "joy",
    "Joy",
    "joy ",
    "\u00a0x",
    "\u200b",
    "",
    "nan",
    "..\\a.wav",
    "\x1b[31m",
    "a\0b",
    "\U0001f600",
    "e\u0301",
    "train",
    "0,5",
    "-1",
    "1e400",
    "x" * 300,
    "a\nb",
    '"',
    "';",
    "\t",
    "\u202eabc",
    "=1+1",
    "../../etc/passwd",
    "C:\\a.wav",
    "\ufeffid",
    "a/" * 2_100,
)
VALUES = (
    None,
    math.nan,
    math.inf,
    True,
    -3,
    0.25,
    10**400,
    [],
    ["a"],
    [["a"]],
    {},
    {"a": 1},
    "\ud83d",
)
TYPES = (
    pa.string(),
    pa.binary(),
    pa.int8(),
    pa.float64(),
    pa.bool_(),
    pa.null(),
    pa.list_(pa.string()),
    pa.list_(pa.float32()),
    pa.date32(),
    pa.timestamp("ns", "Europe/Berlin"),
    pa.duration("ns"),
    pa.time64("ns"),
    pa.dictionary(pa.int32(), pa.string()),
    pa.struct([("path", pa.string())]),
    pa.decimal128(10, 2),
)


def rows(rng: random.Random) -> list[dict]:
    names = rng.sample(FIELDS, rng.randint(3, len(FIELDS)))
    out = []
    for i in range(rng.randint(0, 4)):
        usual = {
            "id": f"u{i}",
            "split": "train",
            "start": 0.5 * i,
            "end": 9.0,
            "duration": 1.0,
            "speaker": f"s{i}",
        }
        row = {name: usual.get(name, "a") for name in names}
        if rng.random() < 0.6:
            row[rng.choice(names)] = rng.choice(WORDS + VALUES)
        out.append(row)
    return out


def damaged(raw: bytes, rng: random.Random) -> bytes:
    out = bytearray(raw)
    for _ in range(rng.choice((0, 0, 0, 0, 1, 2))):
        at = rng.randrange(len(out) + 1)
        match rng.randrange(4):
            case 0 if at < len(out):
                out[at] ^= 1 << rng.randrange(8)
            case 1:
                del out[at : at + rng.randint(1, 8)]
            case 2:
                out[at:at] = rng.choice(
                    (b'"', b"\0", b"\r\n", b";", b"\xff", b"sep=;\n", b"{", b"[", b"\\u")
                )
            case 3:
                del out[at:]
    return bytes(out)


def as_csv(rng: random.Random) -> bytes:
    made = rows(rng)
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=rng.choice(",;\t|"))
    writer.writerows(
        [list(made[0]) if made else ["id", "text"], *(map(str, row.values()) for row in made)]
    )
    return text.getvalue().encode("utf-8", "replace")


def as_jsonl(rng: random.Random) -> bytes:
    return "\n".join(map(json.dumps, rows(rng))).encode()


def column(kind: pa.DataType, rng: random.Random) -> pa.Array:
    usual = {
        pa.string(): "a",
        pa.binary(): b"\xff",
        pa.int8(): 1,
        pa.float64(): math.nan,
        pa.bool_(): True,
    }
    usual |= {
        pa.list_(pa.string()): ["a"],
        pa.list_(pa.float32()): [1.0],
        pa.struct([("path", pa.string())]): {"path": "a"},
    }
    value = usual.get(
        kind, "a" if pa.types.is_dictionary(kind) else None if pa.types.is_null(kind) else 1
    )
    return pa.array([value, None][: rng.randint(1, 2)] * 2, kind)[:2]


def as_parquet(rng: random.Random) -> bytes:
    names = ["text", *rng.sample(("id", "audio", "label", "speaker", "start"), rng.randint(1, 3))]
    columns = {
        name: pa.array(["0.5", "2"]) if name == "start" else pa.array(["a", "b"]) for name in names
    }
    columns["split"] = pa.array(["train", "dev"])
    if rng.random() < 0.6:
        columns[rng.choice(names)] = column(rng.choice(TYPES), rng)
    out = io.BytesIO()
    pq.write_table(pa.table(columns), out)
    return out.getvalue()


def as_manifest(rng: random.Random) -> bytes:
    usual = {
        "id": ["1", "2"],
        "split": ["train", "dev"],
        "label": ["a", "a"],
        "tags": [["x"], []],
        "position": [0, 1],
    }
    columns = {}
    for field in SCHEMA:
        columns[field.name] = pa.array(usual.get(field.name, [None, None]), field.type)
    if rng.random() < 0.6:
        columns[rng.choice(SCHEMA.names)] = column(rng.choice(TYPES), rng)
    meta = {
        "format": "mer-manifest",
        "version": 1,
        "dataset": "d",
        "task": "single",
        "labels": ["a"],
        "language": "en",
        "root": ".",
    }
    meta["source"] = {}
    if rng.random() < 0.3:
        meta[rng.choice(list(meta))] = rng.choice(WORDS + VALUES)
    out = io.BytesIO()
    pq.write_table(pa.table(columns).replace_schema_metadata({"mer": json.dumps(meta)}), out)
    return out.getvalue()


@pytest.mark.parametrize(
    ("make", "suffix"),
    [(as_csv, "csv"), (as_jsonl, "jsonl"), (as_parquet, "parquet"), (as_manifest, "manifest")],
)
def test_read_or_refused_in_one_line(tmp_path, make, suffix):
    read = refused = 0
    for seed in range(INPUTS):
        rng = random.Random(f"{suffix} {seed}")
        path = tmp_path / ("t.parquet" if suffix == "manifest" else f"t.{suffix}")
        path.write_bytes(damaged(make(rng), rng))
        try:
            if suffix == "manifest":
                manifest = Manifest.read(path)
            else:
                task = rng.choice(("single", "multi", "regression"))
                manifest, report = prepare(
                    "table", source=path, task=task, split=rng.choice(("auto", "none"))
                )
                assert all(report.lines()) and json.dumps(report.to_dict())
            manifest.write(tmp_path / "m.parquet")
            assert Manifest.read(tmp_path / "m.parquet").hash == manifest.hash, seed
            assert all(
                "b'" not in (value or "")
                for u in manifest.rows
                for value in (u.id, u.text, u.label, u.speaker)
            ), seed
            read += 1
        except MerError as error:
            said = str(error).replace(str(tmp_path), "")
            assert "\n" not in said and len(said) <= LINE, (seed, said)
            refused += 1
    assert read > INPUTS // 20 and refused > INPUTS // 20


def test_rows_come_back(tmp_path):
    rng = random.Random(0)
    words = [word for word in WORDS if "\0" not in word]
    made = tuple(Utterance(f"u{i}", text=rng.choice(words), label="a") for i in range(50))
    manifest = Manifest("d", "single", ("a",), made, tmp_path)
    manifest.write(tmp_path / "m.parquet")
    assert Manifest.read(tmp_path / "m.parquet").rows == made
