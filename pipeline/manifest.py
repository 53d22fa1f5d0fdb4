"""A corpus as a table: one `Utterance` per row, written as Parquet with its provenance in the
file's metadata.

Schema (version 3; docs/manifest.md): see `SCHEMA`. The metadata key `mer` holds a JSON object with
`format`, `version`, `dataset`, `task`, `labels`, `language`, `root` and `source`.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from operator import attrgetter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from mer.pipeline.errors import DataError
from mer.pipeline.runtime.cells import strip
from mer.pipeline.runtime.columnar import (
    FAILURES,
    LISTS,
    NUMBERS,
    TEXTS,
    holds,
    open_by_dictionary,
    read_columns,
    reason,
    require_regular,
    to_list,
)
from mer.pipeline.runtime.files import near, publishing
from mer.pipeline.runtime.limits import MANIFEST_METADATA_BYTES
from mer.pipeline.runtime.terminal import listed, plural, shown
from mer.pipeline.runtime.terms import MANIFEST_FORMAT, check_folds, check_labelling, check_task
from mer.pipeline.runtime.unimodal import check_unimodal

VERSION = 3  # as it is written where a row has unimodal labels
FOLDS_VERSION = 2  # where a row has published folds; version 1 has neither column
VERSIONS = (1, 2, 3)  # as they are read
BYTES = (
    pa.types.is_binary,
    pa.types.is_large_binary,
    pa.types.is_binary_view,
    pa.types.is_fixed_size_binary,
)
TABLES = (".csv", ".tsv", ".jsonl", ".json", ".txt")
# Columns that name something: no blanks at their ends.
NAMES = ("id", "audio", "label", "speaker", "dialogue", "session", "video")

SCHEMA = pa.schema(
    [
        # unique; names that repeat across splits are prefixed with the split
        pa.field("id", pa.string(), nullable=False),
        pa.field("audio", pa.string()),  # path relative to `root`; null: no audio
        pa.field("text", pa.string()),  # transcript as given to the text encoder; null: no text
        # train | dev | test | "" (decided at training, by fold or group)
        pa.field("split", pa.string(), nullable=False),
        pa.field("label", pa.string()),  # task single: one of `labels`; null: unlabelled
        # task multi: 0 or 1 per label; task regression: one value
        pa.field("targets", pa.list_(pa.float32())),
        pa.field("speaker", pa.string()),
        pa.field("dialogue", pa.string()),
        pa.field("session", pa.string()),
        pa.field("position", pa.int32()),  # place in the dialogue, from 0
        pa.field("start", pa.float64()),  # seconds into `audio`; null: whole file
        pa.field("end", pa.float64()),
        # why this clip is known to be unusable; such failures do not fail a run
        pa.field("known_bad", pa.string()),
        # free flags of the corpus, e.g. "improvised", "inconsistent"
        pa.field("tags", pa.list_(pa.string())),
        # where the picture is, relative to `root`, if not in `audio`'s own file
        pa.field("video", pa.string()),
        # seconds into `video`; both null: `start` and `end` hold there, too
        pa.field("video_start", pa.float64()),
        pa.field("video_end", pa.float64()),
        # published folds, "1=train": the fold's name and what the row is in it (train, dev, test)
        pa.field("folds", pa.list_(pa.string())),
        # what one modality says by itself, "text=-0.4" (regression) or "text=anger" (single)
        pa.field("unimodal", pa.list_(pa.string())),
    ]
)
# Columns that came later: a manifest in which no row has one is written, and hashed, as before.
LATER = ("video", "video_start", "video_end", "folds", "unimodal")
TOGETHER = {"video", "video_start", "video_end", "folds"}  # where a row has one, all are written
LISTED = ("tags", "folds", "unimodal")  # null and empty are the same


@dataclass(frozen=True, slots=True)
class Utterance:
    """One row: what is said, by whom, where its sound is, and how it is labelled. The fields are
    the columns of `SCHEMA`, which says what each of them means.
    """

    id: str
    audio: str | None = None
    text: str | None = None
    split: str = ""
    label: str | None = None
    targets: tuple[float, ...] | None = None
    speaker: str | None = None
    dialogue: str | None = None
    session: str | None = None
    position: int | None = None
    start: float | None = None
    end: float | None = None
    known_bad: str | None = None
    tags: tuple[str, ...] = ()
    video: str | None = None
    video_start: float | None = None
    video_end: float | None = None
    folds: tuple[str, ...] = ()
    unimodal: tuple[str, ...] = ()


@dataclass(frozen=True)
class Manifest:
    """A corpus, its rows in its own order. `root` is the folder that `Utterance.audio` and `video`
    are relative to. Raises DataError, when it is made, for rows that promise what cannot be.
    """

    dataset: str
    task: str
    labels: tuple[str, ...]
    rows: tuple[Utterance, ...]
    root: Path
    language: str = "en"
    # how it was made: options, file hashes, counts; never used in the hash
    source: dict = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "root", Path(self.root))
        where = f"manifest of {shown(self.dataset, 40)}"
        check_task(where, self.task)
        seen: set[str] = set()
        for u in self.rows:
            if not u.id or u.id in seen:
                what = "duplicate" if u.id else "empty"
                raise DataError(f"{where}: {what} id '{shown(u.id)}'; ids must be unique")
            seen.add(u.id)
            check_labelling(
                where, u.id, u.split, u.label, u.targets, task=self.task, labels=self.labels
            )
            _check_values(where, u, self.task)
            check_folds(where, u.id, u.folds)
            check_unimodal(where, u.id, u.unimodal, task=self.task, labels=self.labels)
        if self.task == "regression":
            _check_as_many(where, self.rows)

    def check_names(self) -> None:
        """Raises DataError for labels that are empty or there twice, and for names with blanks at
        their ends. What is read from a file or written to one passes it; clips for a model of older
        days need not.
        """
        where = f"manifest of {shown(self.dataset, 40)}"
        if len(set(self.labels)) < len(self.labels) or "" in self.labels:
            raise DataError(f"{where}: a label is empty or there twice: {listed(self.labels)}")
        _check_blanks(where, "label", self.labels)
        for name in NAMES:
            _check_blanks(where, name, {getattr(u, name) for u in self.rows})

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def hash(self) -> str:
        """sha256 over everything that names the data (not `root`, not `source`): the same rows
        anywhere hash the same.
        """
        digest = hashlib.sha256()
        meaning = [self.dataset, self.task, self.labels, self.language]
        digest.update(json.dumps(meaning, ensure_ascii=False).encode())
        values = attrgetter(*self._columns)
        for u in self.rows:
            digest.update(json.dumps(values(u), ensure_ascii=False).encode())
        return digest.hexdigest()

    @property
    def _columns(self) -> list[str]:
        """The columns that it is written with."""
        used = {name for name in LATER for u in self.rows if getattr(u, name) not in (None, ())}
        if used & TOGETHER:
            used |= TOGETHER
        return [name for name in SCHEMA.names if name not in LATER or name in used]

    @property
    def _version(self) -> int:
        """The first that has all of the columns."""
        columns = self._columns
        if "unimodal" in columns:
            return VERSION
        return FOLDS_VERSION if "folds" in columns else 1

    def with_root(self, root: str | os.PathLike) -> Manifest:
        """The same corpus with its media in another folder."""
        return replace(self, root=Path(root))

    def write(self, path: str | os.PathLike) -> None:
        """Write atomically. A `root` inside the manifest's own folder is stored relative to it, so
        that the folder can move.

        Args:
            path: The file; its folder is made.

        Raises:
            DataError: A name or path cannot be written.
            OSError: The disk is full, the folder cannot be written, …
        """
        self.check_names()
        path = Path(path)
        table = self._table(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except RecursionError:
            raise DataError(
                f"{shown(path, 200)}: too many folders inside each other; name another place"
            ) from None
        # Arrow itself takes no path that is not UTF-8.
        with publishing(path) as temporary, temporary.open("wb") as file:
            pq.write_table(table, file, compression="zstd")

    def _table(self, path: Path) -> pa.Table:
        """What is written to `path`."""
        root = self.root.resolve()
        if root.is_relative_to(path.resolve().parent):
            root = root.relative_to(path.resolve().parent)
        meta = {
            "format": MANIFEST_FORMAT,
            "version": self._version,
            "dataset": self.dataset,
            "task": self.task,
            "labels": list(self.labels),
            "language": self.language,
            "root": str(root),
            "source": self.source,
        }
        try:
            names = self._columns
            columns = [list(map(attrgetter(name), self.rows)) for name in names]
            table = pa.table(columns, schema=pa.schema([SCHEMA.field(name) for name in names]))
        except UnicodeEncodeError as error:
            paths = {path for u in self.rows for path in (u.audio, u.video)}
            remedy = "rename that file" if error.object in paths else "mend that value"
            what = f"'{shown(ascii(error.object)[1:-1])}' is not UTF-8"
            raise DataError(f"{path}: {what}; {remedy}, then run the command again") from None
        return table.replace_schema_metadata({"mer": json.dumps(meta)})

    @classmethod
    def read(cls, path: str | os.PathLike) -> Manifest:
        """Read what `write` wrote.

        Args:
            path: The file.

        Returns:
            The manifest, its root where it lies now.

        Raises:
            DataError: The file is absent, not Parquet, not a manifest of a version that this mer
                reads, or promises what cannot be: unknown labels and splits, spans that end before
                they start, names with blanks at their ends.
        """
        path = Path(path)
        if not path.exists():
            raise DataError(
                f"{shown(path, 200)}: no such manifest{near(path)}; make one with `mer prepare`"
            )
        require_regular(path, "manifest")
        try:
            with path.open("rb") as file:
                parquet = open_by_dictionary(file, path)
                meta = _metadata((parquet.schema_arrow.metadata or {}).get(b"mer"), path)
                table = read_columns(parquet, path, SCHEMA.names)
        except FAILURES as error:
            if path.suffix.lower() in TABLES:
                remedy = f"make one with `mer prepare table --from {path}`"
                raise DataError(f"{path}: a table, not a manifest; {remedy}") from None
            raise DataError(
                f"{path}: not a readable Parquet file ({reason(error)}); run `mer prepare` again"
            ) from None
        try:
            columns = [_column(table, wanted) for wanted in SCHEMA]
            manifest = cls(
                dataset=meta["dataset"],
                task=meta["task"],
                labels=tuple(meta["labels"]),
                rows=tuple(_utterances(columns)),
                root=path.resolve().parent / meta["root"],
                language=meta["language"],
                source=meta["source"],
            )
            manifest.check_names()
            return manifest
        except DataError as error:
            said = str(error)
            raise DataError(f"{path}: {said}" if said.startswith("manifest of") else said) from None
        except FAILURES as error:
            raise DataError(
                f"{path}: not a manifest of version 1 to {VERSION} ({reason(error)}); see "
                "docs/manifest.md"
            ) from None


def _check_blanks(where: str, name: str, values: Iterable[str | None]) -> None:
    for value in values:
        if value is not None and strip(value) != value:
            raise DataError(
                f"{where}: {name} '{shown(value)}' has blanks at an end, which are no part of a "
                "name any more; run `mer prepare` again"
            )


def _check_as_many(where: str, rows: Iterable[Utterance]) -> None:
    """Raise DataError where some rows have one target and others have one per name: a single target
    under several names is allowed only if every row has just one.
    """
    first: dict[int, str] = {}  # number of targets -> the first row that has so many
    for u in rows:
        if u.targets is not None:
            first.setdefault(len(u.targets), u.id)
    if len(first) > 1:
        (few, id), (many, other) = sorted(first.items())
        raise DataError(
            f"{where}: {shown(id, 60)} has {plural(few, 'target')} and {shown(other, 60)} has "
            f"{many}; give every row as many"
        )


def _check_values(where: str, u: Utterance, task: str) -> None:
    """Raise DataError for targets, times, a position or a path that cannot be."""
    if u.targets is not None:
        if not all(map(math.isfinite, u.targets)):
            raise DataError(
                f"{where}: {shown(u.id)} has a target that is not a finite number; null is "
                "unlabelled"
            )
        if task == "multi" and not all(0 <= target <= 1 for target in u.targets):
            raise DataError(
                f"{where}: {shown(u.id)} has targets outside 0 … 1, which a multi task needs"
            )
    _check_span(where, u.id, "start", u.start, u.end)
    _check_span(where, u.id, "video_start", u.video_start, u.video_end)
    if u.position is not None and u.position < 0:
        raise DataError(f"{where}: {shown(u.id)} has position {u.position}; positions count from 0")
    for name, path in (("audio", u.audio), ("video", u.video)):
        if path is not None and (not path or "\0" in path):
            raise DataError(
                f"{where}: {shown(u.id)} has {name} '{shown(path)}', which no file can be called"
            )
    if u.video is None and (u.video_start is not None or u.video_end is not None):
        raise DataError(f"{where}: {shown(u.id)} has a video_start or video_end without a video")


def _check_span(where: str, id: str, name: str, start: float | None, end: float | None) -> None:
    """Raise DataError for times that cannot be; `name` is the first one's."""
    for column, value in ((name, start), (name.replace("start", "end"), end)):
        if value is not None and not (math.isfinite(value) and value >= 0):
            raise DataError(
                f"{where}: {shown(id)} has {column} {value:g}, expected seconds from 0 on; null "
                "is none"
            )
    if end is not None and end <= (start or 0.0):
        what = "ends" if name == "start" else "has a video that ends"
        raise DataError(
            f"{where}: {shown(id)} {what} at {end:g} s, not after its start at {start or 0:g} s"
        )


def _metadata(raw: bytes | None, path: Path) -> dict:
    """The manifest's own metadata, every value of its type."""
    if raw is None:
        remedy = f"turn a table into one with `mer prepare table --from {path}`"
        raise DataError(f"{path}: Parquet, but not a mer manifest; {remedy}")
    if len(raw) > MANIFEST_METADATA_BYTES:
        raise DataError(
            f"{path}: metadata of {len(raw):,} bytes, more than {MANIFEST_METADATA_BYTES:,}"
        )
    try:
        meta = json.loads(raw)
        _check_version(meta, path)
        _check_metadata(meta)
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise DataError(
            f"{path}: not a manifest of version 1 to {VERSION} ({reason(error)}); see "
            "docs/manifest.md"
        ) from None
    return meta


def _check_version(meta: dict, path: Path) -> None:
    """Raises DataError for another format or version of it."""
    if meta.get("format") != MANIFEST_FORMAT:
        what = f"format '{shown(meta.get('format'), 20)}', expected '{MANIFEST_FORMAT}'"
        raise DataError(f"{path}: {what}; run `mer prepare` again")
    if meta.get("version") not in VERSIONS:
        found = shown(meta.get("version"), 20)
        known = " and ".join(map(str, VERSIONS))
        raise DataError(
            f"{path}: manifest version {found}, this mer reads {known}; run `mer prepare` again"
        )


def _check_metadata(meta: dict) -> None:
    """Raises ValueError for a value that is absent or not of its type."""
    texts = ("dataset", "task", "language", "root")
    for key in (*texts, "labels", "source"):
        if key not in meta:
            raise ValueError(f"no '{key}' in its metadata")
    if not isinstance(meta["labels"], list) or not isinstance(meta["source"], dict):
        raise ValueError("labels or source are not what they should be")
    words = [*(meta[key] for key in texts), *meta["labels"]]
    if not all(isinstance(word, str) for word in words):
        raise ValueError("dataset, task, labels, language or root are no text")
    "".join(words).encode()  # half a surrogate pair is no text either
    if "\0" in meta["root"]:
        raise ValueError("its root holds a zero byte")


def _column(table: pa.Table, wanted: pa.Field) -> list:
    """A column's values as the schema has them.

    Only what loses nothing is converted: text is never made of numbers or dates, where a NaN would
    become the word.
    """
    if wanted.name not in table.column_names and wanted.name in LATER:
        return [None] * len(table)
    if wanted.name not in table.column_names:
        raise ValueError(f"no column '{wanted.name}'")
    column = table.column(wanted.name)
    kind, target = column.type, wanted.type
    if kind != target and not _fits(kind, target):
        raise ValueError(f"column '{wanted.name}' is {shown(kind, 60)}, expected {target}")
    if not wanted.nullable and column.null_count:
        row = to_list(column).index(None) + 1
        raise ValueError(f"column '{wanted.name}' has a null in row {row}")
    if not holds(kind, *TEXTS):
        return column.cast(target).to_pylist()
    values = to_list(column)
    if holds(kind, *BYTES):
        return [None if value is None else value.decode() for value in values]
    return values


def _fits(kind: pa.DataType, target: pa.DataType) -> bool:
    """Whether a column's type can be read as the schema's."""
    if holds(kind, pa.types.is_null):
        return True
    if pa.types.is_list(target):
        return holds(kind, *LISTS) and holds(kind.value_type, *_alike(target.value_type))
    return holds(kind, *_alike(target))


def _alike(target: pa.DataType) -> tuple:
    return TEXTS if pa.types.is_string(target) else NUMBERS


def _utterances(columns: list[list]) -> Iterable[Utterance]:
    """Columns in the schema's order as rows."""
    targets = SCHEMA.names.index("targets")
    listed = [SCHEMA.names.index(name) for name in LISTED]
    for values in zip(*columns, strict=True):
        row = list(values)
        row[targets] = None if row[targets] is None else tuple(row[targets])
        for at in listed:
            row[at] = tuple(row[at] or ())
        yield Utterance(*row)
