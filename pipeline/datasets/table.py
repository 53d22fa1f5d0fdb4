"""Anyone's CSV, TSV, JSONL or Parquet as a corpus.

Every value is read as text: "nan" and "NA" are words, not gaps; only an empty cell is one. A field
is found under its own name or under the column that `columns` maps it to; `a.b` reaches into JSON
objects (`custom.emotion`). Without a split column the table is split by group (dialogue, else
speaker), never through the middle of one.
"""

from __future__ import annotations

import csv
import json
import math
import os
import random
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mer.pipeline.datasets.corpora import CorpusInfo
from mer.pipeline.datasets.files import MEDIA, hidden, look, place
from mer.pipeline.datasets.findings import Report
from mer.pipeline.errors import DataError
from mer.pipeline.manifest import TASKS, Manifest, Utterance

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
DELIMITERS = {".csv": ",", ".tsv": "\t"}
SUFFIXES = (*DELIMITERS, ".jsonl", ".ndjson", ".parquet")
SPLITS = {
    "train": "train",
    "training": "train",
    "dev": "dev",
    "valid": "dev",
    "validation": "dev",
    "val": "dev",
    "development": "dev",
    "test": "test",
    "testing": "test",
    "": "",
}
SHARES = {"train": 0.7, "dev": 0.15, "test": 0.15}  # of the utterances, when the table has no split
MANY_LABELS = 50  # more classes than this look like numbers or free text

Columns = dict[str, list[str | None]]  # field -> a value a row


def prepare(
    source: Path,
    *,
    audio_dir: Path | None = None,
    columns: dict[str, str] | None = None,
    labels: str | None = None,
    task: str = "single",
    split: str = "auto",
    seed: int = 0,
    name: str | None = None,
    language: str = "en",
) -> tuple[Manifest, Report]:
    """`labels`: comma-separated classes in order (default: sorted).

    `split`: `auto` or `none` (left open, for folds). `audio_dir` (default: the table's folder) is
    what audio paths are relative to; a name without its extension is looked up there.
    """
    source = Path(source)
    columns = columns or {}
    if task not in TASKS or split not in ("auto", "none"):
        raise DataError(
            f"table: task '{task}', split '{split}'; a task is one of {', '.join(TASKS)}, a split "
            "auto or none"
        )
    if wrong := [field for field in columns if field not in FIELDS]:
        raise DataError(
            f"table: --column {wrong[0]}={columns[wrong[0]]}: no such field; fields: "
            f"{', '.join(FIELDS)}"
        )
    report = Report(name or source.stem)
    data = read(source, columns, report)
    if not data and source.read_bytes().strip():
        raise DataError(
            f"{source}: no column is called {', '.join(FIELDS)}; name yours with --column "
            "FIELD=NAME"
        )
    n = len(next(iter(data.values()), []))
    if not n:
        raise DataError(f"{source}: no rows")
    if "audio" not in data and "text" not in data:
        raise DataError(
            f"{source}: neither audio nor text; map one with --column audio=NAME or --column "
            "text=NAME"
        )
    name = name or source.stem
    root = Path(audio_dir) if audio_dir is not None else source.parent
    if "audio" in data and not root.is_dir():
        raise DataError(f"{root}: no such folder (--audio-dir)")

    ids = data.get("id")
    if ids is None:
        ids = [f"row{i + 1}" for i in range(n)]
        report.warnings.append("no id column (--column id=NAME): ids are row1, row2, …")
    for field in ("audio", "text"):
        if field not in data:
            report.warnings.append(
                f"no {field} column (--column {field}=NAME): the utterances have no {field}"
            )
    order, label, targets = _labels(data.get("label"), n, labels, task, source, columns, report)
    times = _times(data, n, source)
    splits = _splits(data, n, split, seed, source, report)
    empty: list[str | None] = [None] * n
    audio = _audio(data["audio"], root, source) if "audio" in data else empty
    rows = [
        Utterance(
            id=ids[i] or "",
            audio=audio[i],
            text=text,
            split=splits[i],
            label=label[i],
            targets=targets[i],
            speaker=speaker,
            dialogue=dialogue,
            session=session,
            start=times[i][0],
            end=times[i][1],
        )
        for i, (text, speaker, dialogue, session) in enumerate(
            zip(
                *(data.get(field, empty) for field in ("text", "speaker", "dialogue", "session")),
                strict=True,
            )
        )
    ]
    for i, row_id in enumerate(ids):
        if not row_id:
            raise DataError(f"{source}: {place(source, i)} has an empty id")
    if (double := Counter(ids).most_common(1)[0])[1] > 1:
        first, second = [i for i, row_id in enumerate(ids) if row_id == double[0]][:2]
        where = f"{double[1]:,} times, first on {place(source, first)} and {place(source, second)}"
        raise DataError(f"{source}: id '{double[0]}' is there {where}; ids must be unique")
    rows = look(rows, root, _info(name, language), report)
    made = {"table": source.name, "columns": columns, "split": split, "seed": seed}
    return Manifest(name, task, order, tuple(rows), root, language, made), report


def _info(name: str, language: str) -> CorpusInfo:
    return CorpusInfo(
        name,
        name,
        language,
        licence="",
        obtain="",
        size="",
        label_sets={},
        audio_encoder="",
        text_encoder="",
    )


# --- reading


def read(source: Path, columns: dict[str, str], report: Report) -> Columns:
    """The fields that the table has.

    Raises DataError naming the columns found when a mapped one is absent.
    """
    suffix = source.suffix.lower()
    if suffix not in SUFFIXES:
        raise DataError(
            f"{source}: not a table that can be read; its name must end in {', '.join(SUFFIXES)}"
        )
    if not source.is_file():
        raise DataError(f"{source}: no such file")
    wanted = {field: columns.get(field, field) for field in FIELDS}
    if suffix in DELIMITERS:
        found, get = _read_delimited(source, DELIMITERS[suffix], wanted, report)
    elif suffix == ".parquet":
        found, get = _read_parquet(source, wanted)
    else:
        found, get = _read_jsonl(source, wanted)
    for field, column in columns.items():
        if column not in get:
            raise DataError(
                f"{source}: no column '{column}' (for {field}); found {', '.join(found)}"
            )
    return {field: get[column] for field, column in wanted.items() if column in get}


def _read_delimited(
    source: Path, delimiter: str, wanted: dict[str, str], report: Report
) -> tuple[list[str], Columns]:
    from pyarrow import csv as arrow

    header = _header(source, delimiter)
    if double := [
        name for name, times in Counter(header).items() if times > 1 and name in wanted.values()
    ]:
        raise DataError(f"{source}: column '{double[0]}' is there twice")
    keep = [name for name in dict.fromkeys(wanted.values()) if name in header]
    try:
        table = arrow.read_csv(
            source,
            read_options=arrow.ReadOptions(
                column_names=header, skip_rows=0, block_size=1 << 24, use_threads=False
            ),
            parse_options=arrow.ParseOptions(delimiter=delimiter, newlines_in_values=True),
            convert_options=arrow.ConvertOptions(
                column_types=dict.fromkeys(keep, pa.string()),
                include_columns=keep,
                strings_can_be_null=False,
                check_utf8=True,
            ),
        )
    except pa.ArrowInvalid as error:
        tabs = (
            "; its header has tabs: name the file .tsv"
            if delimiter == "," and "\t" in header[0]
            else "; mend that line"
        )
        said = re.sub(
            r"^CSV parse error: |Row #(\d+)",
            lambda m: place(source, int(m[1]) - 2) if m[1] else "",
            _one_line(error),
        )
        raise DataError(f"{source}: {said}{tabs}") from None  # Arrow counts the header as row 1
    for name in keep:
        breaks = np.flatnonzero(pc.match_substring(table.column(name), "\n"))
        if len(breaks):
            first = (
                f"{len(breaks):,} cells of {name} hold a line break, the first on "
                f"{place(source, int(breaks[0]) - 1)}"
            )
            report.warnings.append(f"{first}: if that is not meant, a quote is not closed")
    # row 0 is the header
    return header, {
        name: [value or None for value in table.column(name).to_pylist()[1:]] for name in keep
    }


def _header(source: Path, delimiter: str) -> list[str]:
    try:
        with source.open(encoding="utf-8-sig", newline="") as file:
            header = next(filter(None, csv.reader(file, delimiter=delimiter)), None)
    except UnicodeDecodeError as error:
        raise DataError(
            f"{source}: not UTF-8 (byte 0x{error.object[error.start]:02x}); save it as UTF-8"
        ) from None
    except csv.Error as error:
        raise DataError(f"{source}: {error}") from None
    if not header:
        raise DataError(f"{source}: empty file")
    return header


def _read_parquet(source: Path, wanted: dict[str, str]) -> tuple[list[str], Columns]:
    try:
        found = pq.read_schema(source).names
        table = pq.read_table(
            source, columns=[name for name in dict.fromkeys(wanted.values()) if name in found]
        )
        table.validate(full=True)  # Parquet does not check that text is UTF-8
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{source}: not a readable Parquet file ({_one_line(error)})") from None
    return found, {
        name: [_text(value) for value in table.column(name).to_pylist()]
        for name in table.column_names
    }


def _read_jsonl(source: Path, wanted: dict[str, str]) -> tuple[list[str], Columns]:
    found: dict[str, None] = {}
    values: dict[str, list[str | None]] = {name: [] for name in wanted.values()}
    present = set()
    try:
        with source.open(encoding="utf-8-sig", newline="\n") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise DataError(f"{source}: line {number} is not a JSON object")
                found.update(dict.fromkeys(row))
                for name, column in values.items():
                    value = _reach(row, name)
                    if value is not None:
                        present.add(name)
                    column.append(_text(value))
    except UnicodeDecodeError as error:
        raise DataError(
            f"{source}: not UTF-8 (byte 0x{error.object[error.start]:02x}); save it as UTF-8"
        ) from None
    except (json.JSONDecodeError, RecursionError) as error:
        raise DataError(f"{source}: line {number} is not JSON ({_one_line(error)})") from None
    return list(found), {
        name: column for name, column in values.items() if name in present or name in found
    }


def _reach(row: dict, name: str):
    if name in row:
        return row[name]
    for part in name.split("."):
        if not isinstance(row, dict) or part not in row:
            return None
        row = row[part]
    return row


def _text(value) -> str | None:
    """A cell as text: lists joined by commas (several labels), an empty string as a gap."""
    if isinstance(value, list | tuple):
        return ",".join(map(str, value)) or None
    return None if value is None else str(value) or None


def _one_line(error: Exception) -> str:
    return str(error).splitlines()[0][:200]


# --- meaning


def _labels(
    values,
    n: int,
    given: str | None,
    task: str,
    source: Path,
    columns: dict[str, str],
    report: Report,
):
    """(class names in order, label a row, targets a row)."""
    none = [None] * n
    names = tuple(name.strip() for name in given.split(",")) if given else ()
    if len(set(names)) != len(names) or "" in names:
        raise DataError(f"table: --labels {given}: a label is empty or there twice")
    if values is None:
        report.warnings.append(
            "no label column (--column label=NAME): the rows are unlabelled, good for `mer "
            "predict` only"
        )
        return names, none, none
    gaps = [i for i, value in enumerate(values) if value is None]
    if gaps:
        report.warnings.append(
            f"{len(gaps):,} rows have no label, the first on {place(source, gaps[0])}"
        )
    if task == "regression":
        return (
            names or (columns.get("label", "label"),),
            none,
            [_number(v, i, "label", source, wrap=True) for i, v in enumerate(values)],
        )
    parts = [
        None
        if v is None
        else [p.strip() for p in re.split(r"[,;|]", v) if p.strip()]
        if task == "multi"
        else [v]
        for v in values
    ]
    names = names or tuple(sorted({p for row in parts if row for p in row}))
    index = {name: i for i, name in enumerate(names)}
    for i, row in enumerate(parts):
        for part in row or ():
            if part not in index:
                raise DataError(
                    f"{source}: {place(source, i)} has label '{part}', which is not among "
                    f"--labels {','.join(names)}"
                )
    if task == "multi":
        return (
            names,
            none,
            [None if row is None else tuple(float(name in row) for name in names) for row in parts],
        )
    if len(names) > MANY_LABELS:
        report.warnings.append(
            f"{len(names):,} different labels; numbers are meant? then --task regression"
        )
    if len(names) < 2:
        report.warnings.append("a single class: nothing to learn")
    return names, values, none


def _number(value: str | None, row: int, field: str, source: Path, *, wrap: bool = False):
    if value is None:
        return None
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise DataError(f"{source}: {place(source, row)} has {field} '{value}', expected a number")
    return (number,) if wrap else number


def _times(data: Columns, n: int, source: Path) -> list[tuple[float | None, float | None]]:
    if not {"start", "end", "duration"} & set(data):
        return [(None, None)] * n
    gap = [None] * n
    out = []
    for i, values in enumerate(
        zip(data.get("start", gap), data.get("end", gap), data.get("duration", gap), strict=True)
    ):
        start, end, duration = (
            _number(v, i, f, source)
            for f, v in zip(("start", "end", "duration"), values, strict=True)
        )
        if end is None and duration is not None:
            end = (start or 0.0) + duration
        if end is not None and end <= max(0.0, start or 0.0):
            raise DataError(
                f"{source}: {place(source, i)} ends at {end:g} s, not after its start at "
                f"{start or 0:g} s"
            )
        out.append((start, end))
    return out


def _audio(values: list[str | None], root: Path, source: Path) -> list[str | None]:
    """Paths relative to `root`, which they may not leave.

    A name without an extension is looked up among the media files there.
    """
    base = os.path.abspath(root)
    # as written -> (relative to root, file name or stem -> files)
    folders: dict[str, tuple[str, dict[str, list[str]]]] = {}
    out: list[str | None] = []
    for i, value in enumerate(values):
        if value is None:
            out.append(None)
            continue
        folder, slash, name = value.rpartition("/")
        folder += slash  # "/" stays the root
        if folder not in folders:
            full = os.path.normpath(os.path.join(base, folder))
            inside = "\0" not in folder and (
                full == base or full.startswith(base.rstrip(os.sep) + os.sep)
            )
            folders[folder] = (os.path.relpath(full, base), _listing(full)) if inside else ("", {})
        relative, stems = folders[folder]
        if not relative or name in ("", ".", "..") or "\0" in name:
            raise DataError(
                f"{source}: {place(source, i)} has audio '{value[:200]}', which is not a file "
                f"within {base} (--audio-dir)"
            )
        files = stems.get(name, (name,))
        if len(files) > 1:
            raise DataError(
                f"{source}: {place(source, i)} has audio '{value}', which may be "
                f"{' or '.join(files)}; give the extension"
            )
        out.append(files[0] if relative == "." else f"{relative}/{files[0]}")
    return out


def _listing(folder: str) -> dict[str, list[str]]:
    try:
        names = [name for name in os.listdir(folder) if not hidden(name)]
    except OSError:
        return {}
    stems: dict[str, list[str]] = {}
    for name in sorted(names):
        stem, suffix = os.path.splitext(name)
        if suffix.lower() in MEDIA:
            stems.setdefault(stem, []).append(name)
    return stems | {name: [name] for name in names}


def _splits(
    data: Columns, n: int, split: str, seed: int, source: Path, report: Report
) -> list[str]:
    if split == "none":
        return [""] * n
    given = data.get("split")
    if given is not None and any(given):
        out = []
        for i, value in enumerate(given):
            if (value or "").strip().lower() not in SPLITS:
                raise DataError(
                    f"{source}: {place(source, i)} has split '{value}', expected train, dev (or "
                    "valid) or test"
                )
            out.append(SPLITS[(value or "").strip().lower()])
        if "train" in out and "dev" not in out:
            report.warnings.append("no dev split: training takes one from train, by group")
        return out
    field = next((f for f in ("dialogue", "speaker") if data.get(f) and all(data[f])), None)
    if field is None:
        why = "no split, and no dialogue or speaker on every row (--column speaker=NAME)"
        report.warnings.append(f"{why}: each utterance is its own group (seed {seed})")
        return split_groups(map(str, range(n)), seed)
    groups = data[field]
    if len(set(groups)) < len(SHARES):
        raise DataError(
            f"{source}: no split column and only {len(set(groups))} {field}s, too few for train, "
            "dev and test; "
            "add a split column, or --split none and train with --folds"
        )
    report.warnings.append(
        f"no split column: split by {field} with seed {seed} ({len(set(groups)):,} {field}s)"
    )
    return split_groups(groups, seed)


def split_groups(groups: Iterable[str], seed: int) -> list[str]:
    """A split for each row so that no group is in two: groups in seeded random order, each to the
    split that lacks most of its share.
    """
    groups = list(groups)
    sizes = Counter(groups)
    order = sorted(sizes)
    random.Random(seed).shuffle(order)
    lack = {split: share * len(groups) for split, share in SHARES.items()}
    # one group each, whatever the sizes
    chosen = dict(zip(order, ("test", "dev", "train"), strict=False))
    for group in order:
        split = chosen.setdefault(group, max(lack, key=lack.get))
        lack[split] -= sizes[group]
    return [chosen[group] for group in groups]
