"""`terminate called without an active exception` after the right answer: a thread of Arrow's read
from a Python file while the interpreter ended (found by a new user in `mer fingerprint`).
"""

from __future__ import annotations

import io
import re
import threading
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

import mer
from mer.pipeline.extraction.memory import FileMemory
from mer.pipeline.runtime.columnar import open_by_dictionary, read_columns, read_small

TABLE = pa.table({"id": ["a", "b"], "n": [1, 2]})


class Watched(io.BytesIO):
    """A file that tells which threads read it."""

    def __init__(self, raw: bytes):
        super().__init__(raw)
        self.readers: set[int] = set()

    def read(self, *given):
        self.readers.add(threading.get_ident())
        return super().read(*given)


def file() -> Watched:
    made = io.BytesIO()
    pq.write_table(TABLE, made)
    return Watched(made.getvalue())


def test_this_thread_alone_reads_a_python_file():
    known = file()
    assert pq.read_table(known).equals(TABLE)
    assert known.readers != {threading.get_ident()}, "the cause: nothing else is to be avoided"
    small = file()
    assert read_small(small).equals(TABLE)
    assert small.readers == {threading.get_ident()}
    bounded = file()
    read = read_columns(open_by_dictionary(bounded, Path("t.parquet")), Path("t.parquet"), ["id"])
    assert read["id"].to_pylist() == ["a", "b"]
    assert bounded.readers == {threading.get_ident()}


def test_no_code_reads_by_the_function_that_starts_threads():
    root = Path(mer.__file__).parent
    sources = [
        *(root / "pipeline").rglob("*.py"),
        *(root / "fusion").rglob("*.py"),
        *(root / "commands").rglob("*.py"),
        root / "cli.py",
    ]
    assert len(sources) > 50
    called = re.compile(r"\b(pq|parquet)\.read_(table|pandas)\(|\bpyarrow\.dataset\b")
    assert not [path for path in sources if called.search(path.read_text(encoding="utf-8"))]


def test_the_memory_of_files_of_another_version_is_read(tmp_path):
    """One without a column that came later, as the reader of before filled it in."""
    path = tmp_path / ".mer-files.parquet"
    row = {"path": "/a.wav", "inode": 1, "size": 2, "mtime_ns": 3, "sha256": "ab"}
    columns = [field for field in FileMemory.SCHEMA if field.name != "decoder"]
    table = pa.Table.from_pylist([row], schema=pa.schema(columns))
    pq.write_table(table, path)
    assert FileMemory(path).files == {"/a.wav": (1, 2, 3, "ab")}
    pq.write_table(pa.table({"path": ["/a.wav"], "inode": ["no number"]}), path)
    assert FileMemory(path).files == {}
