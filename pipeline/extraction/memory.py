"""What is remembered of media files between runs: their hashes, and how long their spans are."""

from __future__ import annotations

import errno
import os
import time
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from mer.pipeline.media.containers import DECODER, LOOK_VERSION
from mer.pipeline.media.stages import STAGES, Problem, Stage
from mer.pipeline.runtime.columnar import read_small
from mer.pipeline.runtime.files import identity, publishing, sha256_file, sweep

EXTRACTOR = 1  # raise it when the same recipe would give other features
# a file changed this shortly before it was hashed may change again within a tick of the clock: not
# remembered
SETTLED_NS = 2_000_000_000


class FileMemory:
    """Remembers file hashes by (inode, size, mtime_ns), and of hashed content how many samples a
    span decodes to, in a Parquet file.

    Losing the file costs time only. `path` None: remember for this process.
    """

    SCHEMA = pa.schema(
        [
            ("path", pa.string()),
            ("inode", pa.int64()),
            ("size", pa.int64()),
            ("mtime_ns", pa.int64()),
            ("sha256", pa.string()),
            ("span", pa.string()),
            ("samples", pa.int64()),
            ("stage", pa.string()),
            ("reason", pa.string()),
            ("decoder", pa.string()),
        ]
    )

    def __init__(self, path: Path | None = None):
        self.path = path
        self.files: dict[str, tuple[int, int, int, str]] = {}
        # (sha256, span) → samples, or why they cannot be read
        self.spans: dict[tuple[str, str], int | Problem] = {}
        self.seen: dict[str, tuple[int, int, int]] = {}  # what each file looked like in this run
        # sha256 → why this version decodes the file otherwise than the first; "": it does not
        self.kinds: dict[str, str] = {}
        self.changed = False
        if path is not None and path.is_file():
            self._read(path)

    def _read(self, path: Path) -> None:
        try:
            with path.open("rb") as file:
                stored = read_small(file, page_checksum_verification=True)
            table = self._fitted(stored)
        except (pa.ArrowException, OSError, ValueError):
            return  # damaged or of another version: start afresh
        metadata = stored.schema.metadata or {}
        if metadata.get(b"mer", str(EXTRACTOR).encode()) != str(EXTRACTOR).encode():
            return
        same_decoder = metadata.get(b"decoder") == _decoder().encode()
        for row in table.to_pylist():
            self._take(row, same_decoder=same_decoder)

    def _fitted(self, stored: pa.Table) -> pa.Table:
        """The columns that are known, empty where another version had none. Raises
        ArrowException.
        """
        columns = []
        for field in self.SCHEMA:
            at = stored.schema.get_field_index(field.name)
            there = stored.column(at).cast(field.type) if at >= 0 else None
            columns.append(pa.nulls(len(stored), field.type) if there is None else there)
        return pa.table(columns, schema=self.SCHEMA)

    def _take(self, row: dict, *, same_decoder: bool) -> None:
        if row["path"] is not None:
            identity_then = row["inode"], row["size"], row["mtime_ns"]
            self.files[row["path"]] = *identity_then, row["sha256"]
        if row["decoder"] is not None and same_decoder:
            self.kinds[row["sha256"]] = row["decoder"]
        if row["span"] is None:
            return
        where = row["sha256"], row["span"]
        if row["stage"] is None:
            self.spans[where] = row["samples"]
        # what another version could not read this one tries
        elif same_decoder and row["stage"] in STAGES:
            self.spans[where] = Problem(Stage(row["stage"]), row["reason"] or "")

    def save(self) -> None:
        """Write what was learnt, atomically; a folder that cannot be written is no error."""
        if self.path is None:
            return
        with suppress(OSError):
            sweep(self.path.parent, self.path.name)  # of a run that was killed while it wrote
        if not self.changed:
            return
        rows = [self._file_row(name, *entry) for name, entry in self.files.items()]
        rows += [self._span_row(*where, found) for where, found in self.spans.items()]
        rows += [{"sha256": digest, "decoder": why} for digest, why in self.kinds.items()]
        table = pa.Table.from_pylist(rows, schema=self.SCHEMA)
        marked = table.replace_schema_metadata({"mer": str(EXTRACTOR), "decoder": _decoder()})
        try:
            with publishing(self.path) as temporary, temporary.open("wb") as file:
                pq.write_table(marked, file, compression="zstd", write_page_checksum=True)
        except PermissionError:
            return
        except OSError as error:
            if error.errno != errno.EROFS:
                raise
        self.changed = False

    @staticmethod
    def _file_row(name: str, inode: int, size: int, mtime_ns: int, digest: str) -> dict:
        seen = {"inode": inode, "size": size, "mtime_ns": mtime_ns}
        return {"path": name, **seen, "sha256": digest}

    @staticmethod
    def _span_row(digest: str, span: str, found: int | Problem) -> dict:
        row = {"sha256": digest, "span": span}
        if isinstance(found, Problem):
            return row | {"samples": 0, "stage": found.stage, "reason": found.reason}
        return row | {"samples": found}

    def known(self, path: Path) -> str | None:
        """The remembered hash, if the file looks unchanged.

        Raises OSError when it cannot be looked at.
        """
        self.seen[str(path)] = now = identity(path)
        entry = self.files.get(spelled(path))
        return entry[3] if entry and entry[:3] == now else None

    def sha256(self, path: Path) -> str:
        """The file's hash, from memory if it looks unchanged. Raises OSError."""
        digest = self.known(path)
        if digest is None:
            self.seen[str(path)] = before = identity(path)
            digest = sha256_file(path)
            if before[2] < time.time_ns() - SETTLED_NS:
                self.files[spelled(path)] = *before, digest
                self.changed = True
        return digest

    def remember(self, digest: str, span: str, found: int | Problem) -> None:
        """The samples of a span of hashed content, or why they cannot be read, whatever its file is
        called.
        """
        if isinstance(found, Problem):
            found = Problem(found.stage, spelled(found.reason))
        self.spans[digest, span] = found
        self.changed = True


def _decoder() -> str:
    """What is remembered beside the kinds of files and the problems that were met: others may be
    met by another decoder.
    """
    return f"{DECODER}.{LOOK_VERSION}"


def spelled(text: str | Path) -> str:
    r"""`text` with bytes of a file name that are no UTF-8 as \udcXX, which Parquet can hold."""
    return str(text).encode("utf-8", "backslashreplace").decode()


def memory_path(source: Path | None) -> Path | None:
    """Where hashes are remembered: in the folder of the manifest's file, for all manifests there,
    if that folder can be written.
    """
    if source is None or not os.access(source.parent, os.W_OK):
        return None
    return source.with_name(".mer-files.parquet")
