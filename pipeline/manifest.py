"""A corpus as a table: one `Utterance` a row, written as Parquet with its provenance in the file's
metadata.

Schema (version 1; docs/manifest.md): see `SCHEMA`. The metadata key `mer` holds a JSON object with
`format`, `version`, `dataset`, `task`, `labels`, `language`, `root` and `source`.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from operator import attrgetter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from mer.pipeline.errors import DataError

VERSION = 1
TASKS = ("single", "multi", "regression")
TABLES = (".csv", ".tsv", ".jsonl", ".json", ".txt")
SPLITS = ("train", "dev", "test", "")

SCHEMA = pa.schema(
    [
        # unique; names that repeat across splits are prefixed with the split
        pa.field("id", pa.string(), nullable=False),
        pa.field("audio", pa.string()),  # path relative to `root`; null: no audio
        pa.field("text", pa.string()),  # transcript as given to the text encoder; null: no text
        # train | dev | test | "" (decided at training, by fold or group)
        pa.field("split", pa.string(), nullable=False),
        pa.field("label", pa.string()),  # task single: one of `labels`; null: unlabelled
        # task multi: 0/1 a label; task regression: one value
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
    ]
)


@dataclass(frozen=True, slots=True)
class Utterance:
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


@dataclass(frozen=True)
class Manifest:
    """`rows` in corpus order. `root` is the folder that `Utterance.audio` is relative to."""

    dataset: str
    task: str
    labels: tuple[str, ...]
    rows: tuple[Utterance, ...]
    root: Path
    language: str = "en"
    # how it was made: options, file hashes, counts; never used in the hash
    source: dict = field(default_factory=dict)

    def __post_init__(self):
        object.__setattr__(self, "root", Path(self.root))
        if self.task not in TASKS:
            raise DataError(
                f"manifest of {self.dataset}: task '{self.task}' is not one of {', '.join(TASKS)}"
            )
        seen: set[str] = set()
        known = set(self.labels)
        for u in self.rows:
            if not u.id or u.id in seen:
                raise DataError(
                    f"manifest of {self.dataset}: {'duplicate' if u.id else 'empty'} id '{u.id}'; "
                    "ids must be unique"
                )
            seen.add(u.id)
            if u.split not in SPLITS:
                raise DataError(
                    f"manifest of {self.dataset}: {u.id} has split '{u.split}'; expected train, "
                    "dev or test"
                )
            if self.task == "single" and u.label is not None and u.label not in known:
                raise DataError(
                    f"manifest of {self.dataset}: {u.id} has unknown label '{u.label}'; known: "
                    f"{', '.join(self.labels)}"
                )
            wanted = len(self.labels) if self.task == "multi" else 1
            if self.task != "single" and u.targets is not None and len(u.targets) != wanted:
                raise DataError(
                    f"manifest of {self.dataset}: {u.id} has {len(u.targets)} targets, expected "
                    f"{wanted}"
                )

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def hash(self) -> str:
        """sha256 over everything that names the data (not `root`, not `source`): the same rows
        anywhere hash the same.
        """
        h = hashlib.sha256()
        h.update(
            json.dumps(
                [self.dataset, self.task, self.labels, self.language], ensure_ascii=False
            ).encode()
        )
        values = attrgetter(*SCHEMA.names)
        for u in self.rows:
            h.update(json.dumps(values(u), ensure_ascii=False).encode())
        return h.hexdigest()

    def with_root(self, root: str | os.PathLike) -> Manifest:
        return replace(self, root=Path(root))

    def write(self, path: str | os.PathLike) -> None:
        """Write atomically.

        A `root` inside the manifest's own folder is stored relative to it, so that the folder can
        move.
        """
        path = Path(path)
        root = self.root.resolve()
        if root.is_relative_to(path.resolve().parent):
            root = root.relative_to(path.resolve().parent)
        meta = {
            "format": "mer-manifest",
            "version": VERSION,
            "dataset": self.dataset,
            "task": self.task,
            "labels": list(self.labels),
            "language": self.language,
            "root": str(root),
            "source": self.source,
        }
        try:
            table = pa.table(
                [[getattr(u, name) for u in self.rows] for name in SCHEMA.names], schema=SCHEMA
            )
        except UnicodeEncodeError as error:
            raise DataError(
                f"{path}: {error.object!r} is not UTF-8; rename that file, then run the command "
                "again"
            ) from None
        table = table.replace_schema_metadata({"mer": json.dumps(meta)})
        from mer.pipeline.store.arrays import temporary_for

        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = temporary_for(path)
        try:
            with temporary.open("wb") as file:  # Arrow itself takes no path that is not UTF-8
                pq.write_table(table, file, compression="zstd")
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    @classmethod
    def read(cls, path: str | os.PathLike) -> Manifest:
        """Raises DataError when the file is absent, not Parquet, or not a manifest of a version
        this mer reads.
        """
        path = Path(path)
        try:
            with path.open("rb") as file:
                table = pq.read_table(file)
        except FileNotFoundError:
            raise DataError(f"{path}: no such manifest; make one with `mer prepare`") from None
        except (pa.ArrowException, OSError) as error:
            if path.suffix.lower() in TABLES:
                raise DataError(
                    f"{path}: a table, not a manifest; make one with `mer prepare table --from "
                    f"{path}`"
                ) from None
            raise DataError(
                f"{path}: not a readable Parquet file ({str(error).splitlines()[0]}); run `mer "
                "prepare` again"
            ) from None
        raw = (table.schema.metadata or {}).get(b"mer")
        if raw is None:
            raise DataError(
                f"{path}: Parquet, but not a mer manifest; turn a table into one with `mer "
                f"prepare table --from {path}`"
            )
        try:
            meta = json.loads(raw)
            if meta.get("format") != "mer-manifest" or meta.get("version") != VERSION:
                raise DataError(
                    f"{path}: manifest version {meta.get('version')}, this mer reads {VERSION}; "
                    "run `mer prepare` again"
                )
            rows = table.select(SCHEMA.names).cast(SCHEMA).to_pylist()
            return cls(
                dataset=meta["dataset"],
                task=meta["task"],
                labels=tuple(meta["labels"]),
                rows=tuple(_utterances(rows)),
                root=path.resolve().parent / meta["root"],
                language=meta["language"],
                source=meta["source"],
            )
        # ArrowInvalid is a ValueError
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise DataError(
                f"{path}: not a manifest of version {VERSION} ({str(error).splitlines()[0]}); see "
                "docs/manifest.md"
            ) from None


def _utterances(rows: Iterable[dict]) -> Iterable[Utterance]:
    for row in rows:
        row["targets"] = None if row["targets"] is None else tuple(row["targets"])
        row["tags"] = tuple(row["tags"] or ())
        yield Utterance(**row)
