"""Anyone's CSV, TSV, JSONL or Parquet as a corpus.

Every value is read as text: "nan" and "NA" are words, not gaps; an empty cell is one, and so are
null and the number NaN. What is no text (a date, a list, a struct) is an error. Blanks at the ends
of names are cut and counted. A field is found under its own name or under the column that `columns`
maps it to; `a.b` reaches into JSON objects (`custom.emotion`). Without a split column the table is
split by group (dialogue, else speaker), never through the middle of one.
"""

from __future__ import annotations

import csv
import json
import math
import os
import random
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import pyarrow as pa

from mer.pipeline.datasets.corpora import CorpusInfo
from mer.pipeline.datasets.files import (
    EXPECTED,
    MEDIA,
    SEPARATORS,
    Dialect,
    bounded,
    dialect,
    hidden,
    instead,
    look,
    not_utf8,
    place,
)  # fmt: skip
from mer.pipeline.datasets.findings import Report
from mer.pipeline.errors import DataError
from mer.pipeline.manifest import NAMES, Manifest, Utterance
from mer.pipeline.runtime.cells import strip, text_cell
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
from mer.pipeline.runtime.limits import TABLE_BYTES, TABLE_COLUMNS, TABLE_ROWS
from mer.pipeline.runtime.terminal import listed, shown
from mer.pipeline.runtime.terms import SPLIT_ALIASES, TASKS

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
SUFFIXES = (*EXPECTED, ".jsonl", ".ndjson", ".parquet")
SHARES = {"train": 0.7, "dev": 0.15, "test": 0.15}  # of the utterances, when the table has no split
BLOCK_BYTES = 1 << 24  # of a csv, read at a time; a record must fit
MANY_LABELS = 50  # more classes than this look like numbers or free text

# float() takes "1_0" and "infinity" as well
NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+", re.ASCII)

# field -> a value a row: text or None; a list of text where a label is several
Columns = dict[str, list]


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
    name = strip(name if name is not None else source.stem) or "table"
    for what, value in (("--name", name), ("--language", language), ("--labels", labels)):
        _check_option(what, value)
    report = Report(name)
    found, data = read(source, columns, report, several=task == "multi")
    n = len(next(iter(data.values()), []))
    if not data and found:
        what = f"no column is called {', '.join(FIELDS)}"
        raise DataError(
            f"{source}: {what}; name yours with --column FIELD=NAME (found "
            f"{listed(found)}{_near(found, columns)})"
        )
    if not n:
        raise DataError(f"{source}: no rows")
    if "audio" not in data and "text" not in data:
        remedy = "map one with --column audio=NAME or --column text=NAME"
        raise DataError(
            f"{source}: neither audio nor text; {remedy} (found "
            f"{listed(found)}{_near(found, columns)})"
        )
    root = Path(audio_dir) if audio_dir is not None else source.parent
    if "audio" in data and not root.is_dir():
        raise DataError(f"{root}: no such folder (--audio-dir)")

    ids = data.get("id")
    if ids is None:
        ids = [f"row{i + 1}" for i in range(n)]
        report.warnings.append("no id column (--column id=NAME): ids are row1, row2, …")
    for field in ("audio", "text"):
        if field not in data:
            remedy = f"--column {field}={_other_case(field, found) or 'NAME'}"
            report.warnings.append(f"no {field} column ({remedy}): the utterances have no {field}")
    for field in ("audio", "text", "speaker", "dialogue", "session"):
        gaps = [i for i, value in enumerate(data.get(field, ())) if value is None]
        if gaps:
            report.warnings.append(
                f"{len(gaps):,} rows have no {field}, the first on {place(source, gaps[0])}"
            )
    order, label, targets = _labels(data.get("label"), n, labels, task, source, columns, report)
    times = _times(data, n, source)
    splits = _splits(data, n, split, seed, source, report)
    empty: list[str | None] = [None] * n
    audio = _audio(data["audio"], ids, root, source, report) if "audio" in data else empty
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
        raise DataError(f"{source}: id '{shown(double[0])}' is there {where}; ids must be unique")
    rows = look(rows, root, _info(name, language), report)
    made = {"table": source.name, "columns": columns, "split": split, "seed": seed}
    return Manifest(name, task, order, tuple(rows), root, language, made), report


def _check_option(what: str, value: str | None) -> None:
    try:
        text_cell(value)
    except DataError as error:
        raise DataError(f"table: {what} {error}") from None


def _other_case(field: str, found: Sequence[str]) -> str | None:
    """A column that is called like the field but for case and blanks."""
    return next((name for name in found if name != field and strip(name).casefold() == field), None)


def _near(found: Sequence[str], columns: dict[str, str]) -> str:
    """The options that would take columns which differ from a field by case only."""
    named = {field: _other_case(field, found) for field in FIELDS if field not in columns}
    options = [f"--column {field}={shown(name, 40)}" for field, name in named.items() if name]
    return f"; case counts: {' '.join(options)}" if options else ""


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


def read(
    source: Path, columns: dict[str, str], report: Report, *, several: bool = False
) -> tuple[Sequence[str], Columns]:
    """(names of all columns, the fields that the table has). `several`: a label may be a list.

    Raises DataError naming the columns found when a mapped one is absent, and the line of a cell
    that is no text.
    """
    suffix = source.suffix.lower()
    if not source.exists() and suffix in SUFFIXES:
        raise DataError(f"{shown(source, 200)}: no such file")
    other = instead(source) if source.exists() else None
    if other and not (suffix == ".parquet" and "this is Parquet" in other):
        raise DataError(f"{source}: {other}")
    if suffix not in SUFFIXES:
        raise DataError(
            f"{source}: not a table that can be read; its name must end in {', '.join(SUFFIXES)}"
        )
    if suffix != ".parquet" and (size := source.stat().st_size) > TABLE_BYTES:
        raise DataError(
            f"{source}: {size:,} bytes, more than {TABLE_BYTES:,}; write it as Parquet, or split it"
        )
    wanted = {field: columns.get(field, field) for field in FIELDS}
    if suffix in EXPECTED:
        found, raw = _read_delimited(source, EXPECTED[suffix], wanted, report)
    elif suffix == ".parquet":
        found, raw = _read_parquet(source, wanted, several)
    else:
        found, raw = _read_jsonl(source, wanted, several)
    for field, column in columns.items():
        if column not in raw:
            raise DataError(
                f"{source}: no column '{shown(column)}' (for {field}); found {listed(found)}"
            )
    data = {field: raw[column] for field, column in wanted.items() if column in raw}
    return found, _without_blanks(data, report)


def _without_blanks(data: Columns, report: Report) -> Columns:
    """Names without blanks at their ends. What is cut is counted, by the row's id."""
    ids = data.get("id") or []
    out = dict(data)
    for field in (*NAMES, "split", "start", "end", "duration"):
        if field not in data:
            continue
        out[field] = [strip(value) if isinstance(value, str) else value for value in data[field]]
        cut = [i for i, (a, b) in enumerate(zip(data[field], out[field], strict=True)) if a != b]
        if cut:
            names = [shown(strip(ids[i])) if ids and ids[i] else f"row{i + 1}" for i in cut]
            report.repairs[f"blanks at an end of {field}, cut off"] += names
    return out


def _read_delimited(
    source: Path, delimiter: str, wanted: dict[str, str], report: Report
) -> tuple[Sequence[str], Columns]:
    from pyarrow import csv as arrow

    form = dialect(source, delimiter)
    header = form.header
    if header[0].startswith('{"'):
        raise DataError(f"{source}: this is JSON Lines; give it a name that ends in .jsonl")
    if len(header) > TABLE_COLUMNS:
        raise DataError(
            f"{source}: {len(header):,} columns, more than {TABLE_COLUMNS:,}; keep those that are "
            "needed"
        )
    if form.delimiter != delimiter or form.skipped:
        seen = "its first line names them" if form.skipped else "as the header shows"
        report.warnings.append(f"columns are separated by {SEPARATORS[form.delimiter]}, {seen}")
    if double := [
        name for name, times in Counter(header).items() if times > 1 and name in wanted.values()
    ]:
        raise DataError(f"{source}: column '{shown(double[0])}' is there twice")
    keep = [name for name in dict.fromkeys(wanted.values()) if name in header]
    if form.spaced:
        report.warnings.append(
            "a blank follows each separator of the header; blanks before cells are left out"
        )
        cells = _read_spaced(source, form, keep)
    else:
        try:
            reader = arrow.open_csv(
                source,
                read_options=arrow.ReadOptions(
                    column_names=header,
                    skip_rows=form.skipped,
                    block_size=BLOCK_BYTES,
                    use_threads=False,
                ),
                parse_options=arrow.ParseOptions(delimiter=form.delimiter, newlines_in_values=True),
                convert_options=arrow.ConvertOptions(
                    column_types=dict.fromkeys(keep, pa.string()),
                    include_columns=keep,
                    strings_can_be_null=False,
                    check_utf8=True,
                ),
            )
            cells = {name: [] for name in keep}
            rows = -1  # the header
            for batch in reader:
                rows += batch.num_rows
                if rows > TABLE_ROWS:
                    raise DataError(
                        f"{source}: more than {TABLE_ROWS:,} rows; split it into several corpora"
                    )
                for name, column in cells.items():
                    column += batch.column(name).to_pylist()
            cells = {name: column[1:] for name, column in cells.items()}
        except pa.ArrowInvalid as error:
            raise DataError(f"{source}: {_said(error, source, form)}; mend that line") from None
    for name, values in cells.items():
        breaks = [i for i, value in enumerate(values) if "\n" in value]
        if breaks:
            first = (
                f"{len(breaks):,} cells of {shown(name)} hold a line break, the first on "
                f"{place(source, breaks[0])}"
            )
            report.warnings.append(f"{first}: if that is not meant, a quote is not closed")
    fields = _fields(wanted)
    cells = {
        name: [_cell(v, i, fields[name], source) for i, v in enumerate(values)]
        for name, values in cells.items()
    }
    if form.delimiter == ";":
        _decimal_points(cells, wanted, report)
    return header, cells


def _fields(wanted: dict[str, str]) -> dict[str, str]:
    """Column -> the field it is read for, for messages."""
    return {column: field for field, column in wanted.items()}


def _cell(value, row: int, field: str, source: Path, several: bool = False):
    """A cell as text or None, for the label of a multi task as a list where it is one; DataError
    names the line.
    """
    if several and field == "label" and isinstance(value, list | tuple):
        return [_cell(part, row, "label", source) for part in value] or None
    try:
        return text_cell(value)
    except DataError as error:
        hints = {
            list: "; several labels? then --task multi",
            dict: f"; name a part of it: --column {field}=NAME.PART",
        }
        hint = (
            hints.get(type(value), "; mend that cell")
            if field == "label" or type(value) is not list
            else "; mend that cell"
        )
        raise DataError(f"{source}: {place(source, row)}: {field} {error}{hint}") from None


def _read_spaced(source: Path, form: Dialect, keep: list[str]) -> Columns:
    """A csv with a blank behind each separator, which Arrow takes for a part of the cell."""
    at = {name: form.header.index(name) for name in keep}
    out: Columns = {name: [] for name in keep}
    try:
        with source.open(encoding="utf-8-sig", newline="") as file:
            rows = form.rows(bounded(file, source))
            next(rows)
            for i, row in enumerate(rows):
                if len(row) != len(form.header):
                    where = place(source, i)
                    raise DataError(
                        f"{source}: {where}: Expected {len(form.header)} columns, got {len(row)}; "
                        "mend that line"
                    )
                for name, column in out.items():
                    column.append(row[at[name]])
    except UnicodeDecodeError as error:
        raise not_utf8(source, error) from None
    except csv.Error as error:
        raise DataError(f"{source}: {error}") from None
    return out


def _decimal_points(cells: Columns, wanted: dict[str, str], report: Report) -> None:
    """In a table with semicolons, where Excel writes a comma for the point: numbers of times with
    points.
    """
    for field in ("start", "end", "duration"):
        column = cells.get(wanted[field])
        commas = [
            i
            for i, value in enumerate(column or ())
            if value and DECIMAL_COMMA.fullmatch(strip(value))
        ]
        if commas and not any("." in value for value in column if value):
            for i in commas:
                column[i] = column[i].replace(",", ".")
            report.warnings.append(
                f"{len(commas):,} cells of {field} have a decimal comma, read as a point"
            )


def _said(error: Exception, source: Path, form: Dialect) -> str:
    """Arrow's words with the line as an editor counts it; Arrow counts the header as row 1."""
    words = str(error).splitlines()[0].removeprefix("CSV parse error: ")
    if "straddling" in words:
        return f"a record of more than {BLOCK_BYTES:,} bytes (a quote that is not closed?)"
    words = re.sub(
        r"Row #(\d+)", lambda match: place(source, int(match[1]) - 2 - form.skipped), words
    )
    return shown(words, 160)


def _read_parquet(
    source: Path, wanted: dict[str, str], several: bool
) -> tuple[Sequence[str], Columns]:
    require_regular(source)
    try:
        with source.open("rb") as file:
            parquet = open_by_dictionary(file, source)
            found = parquet.schema_arrow.names
            table = read_columns(parquet, source, wanted.values())
        fields = _fields(wanted)
        for name in table.column_names:
            _check_type(table.schema.field(name).type, name, fields[name], source, several)
        lists = {name: to_list(table.column(name)) for name in table.column_names}
    except FAILURES as error:
        if _is_text(source):
            remedy = "give it a name that ends in .csv, .tsv or .jsonl"
            raise DataError(
                f"{source}: this is text, not a readable Parquet file; {remedy}"
            ) from None
        raise DataError(
            f"{source}: not a readable Parquet file ({reason(error)}); write it again"
        ) from None
    cells = {
        name: [_cell(value, i, fields[name], source, several) for i, value in enumerate(values)]
        for name, values in lists.items()
    }
    return found, cells


def _is_text(source: Path) -> bool:
    with source.open("rb") as file:
        head = file.read(64)
    return (
        bool(head)
        and not head.startswith(b"PAR1")
        and all(byte >= 32 or byte in b"\t\r\n" for byte in head)
    )


def _check_type(kind: pa.DataType, name: str, field: str, source: Path, several: bool) -> None:
    """Raises DataError for a column whose values are no text, before it is unpacked."""
    if isinstance(kind, pa.ExtensionType):
        kind = kind.storage_type
    fits = holds(kind, *TEXTS, *NUMBERS, pa.types.is_null)
    if several and field == "label" and holds(kind, *LISTS):
        fits = holds(kind.value_type, *TEXTS, *NUMBERS, pa.types.is_null)
    if not fits:
        hint = (
            "; several labels? then --task multi"
            if field == "label" and holds(kind, *LISTS)
            else ""
        )
        what = (
            f"column '{shown(name)}' (for {field}) holds {shown(kind, 60)}, expected text or "
            "numbers"
        )
        raise DataError(f"{source}: {what}{hint or '; write it as text'}")


def _read_jsonl(
    source: Path, wanted: dict[str, str], several: bool
) -> tuple[Sequence[str], Columns]:
    found: dict[str, None] = {}
    fields = _fields(wanted)
    values: Columns = {name: [] for name in wanted.values()}
    present = set()
    number = rows = 0
    try:
        with source.open(encoding="utf-8-sig", newline="\n") as file:
            for number, line in enumerate(bounded(file, source), start=1):
                if not line.strip():
                    continue
                row = json.loads(line, object_pairs_hook=_object)
                if not isinstance(row, dict):
                    hint = (
                        "; a JSON array? write one object a line" if isinstance(row, list) else ""
                    )
                    raise DataError(f"{source}: line {number} is not a JSON object{hint}")
                found.update(dict.fromkeys(row))
                rows += 1
                if len(found) > TABLE_COLUMNS or rows > TABLE_ROWS:
                    what = (
                        f"{TABLE_COLUMNS:,} columns"
                        if len(found) > TABLE_COLUMNS
                        else f"{TABLE_ROWS:,} rows"
                    )
                    raise DataError(
                        f"{source}: more than {what}, at line {number}; keep those that are needed"
                    )
                for name, column in values.items():
                    value = _reach(row, name)
                    if value is not None:
                        present.add(name)
                    column.append(_cell(value, rows - 1, fields[name], source, several))
    except UnicodeDecodeError as error:
        raise not_utf8(source, error) from None
    # json's own error is a ValueError, and so is a number of 5,000 digits
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{source}: line {number} is not JSON ({reason(error)}); mend that line"
        ) from None
    return list(found), {
        name: column for name, column in values.items() if name in present or name in found
    }


def _object(pairs: list[tuple[str, object]]) -> dict:
    row = dict(pairs)
    if len(row) < len(pairs):
        double = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"'{shown(double, 40)}' is there twice in one object")
    return row


def _reach(row: dict, name: str):
    if name in row:
        return row[name]
    for part in name.split("."):
        if not isinstance(row, dict) or part not in row:
            return None
        row = row[part]
    return row


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
    names = tuple(strip(name) for name in given.split(",")) if given else ()
    if len(set(names)) != len(names) or "" in names:
        raise DataError(f"table: --labels {shown(given)}: a label is empty or there twice")
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
    parts = [_parts(value, task) for value in values]
    names = names or tuple(sorted({p for row in parts if row for p in row}))
    index = {name: i for i, name in enumerate(names)}
    for i, row in enumerate(parts):
        for part in row or ():
            if part not in index:
                known = listed(names).replace(", ", ",")
                raise DataError(
                    f"{source}: {place(source, i)} has label '{shown(part)}', which is not among "
                    f"--labels {known}"
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
    return names, values, none


def _parts(value: str | list | None, task: str) -> list[str] | None:
    """The labels of a cell."""
    if value is None:
        return None
    if task != "multi":
        return [value]
    found = value if isinstance(value, list) else re.split(r"[,;|]", value)
    return [strip(part) for part in found if part and strip(part)]


def _number(value: str | None, row: int, field: str, source: Path, *, wrap: bool = False):
    if value is None:
        return None
    value = strip(value)
    number = float(value) if NUMBER.fullmatch(value) and len(value) < 400 else math.nan
    if not math.isfinite(number):
        hint = "; a decimal comma? write a point" if DECIMAL_COMMA.fullmatch(value) else ""
        raise DataError(
            f"{source}: {place(source, row)} has {field} '{shown(value)}', expected a number{hint}"
        )
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
        if start is not None and start < 0:
            raise DataError(
                f"{source}: {place(source, i)} starts at {start:g} s, before its file; times "
                "count from 0"
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


def _audio(
    values: list[str | None], ids: list[str | None], root: Path, source: Path, report: Report
) -> list[str | None]:
    """Paths relative to `root`, which they may not leave.

    A name without an extension is looked up among the media files there. Backslashes of Windows are
    read as slashes where only that names a file, which is counted.
    """
    base = os.path.abspath(root)
    # as written -> (relative to root, file name or stem -> files)
    folders: dict[str, tuple[str, dict[str, list[str]]]] = {}
    out: list[str | None] = []
    for i, value in enumerate(values):
        if value is None:
            out.append(None)
            continue
        if "\\" in value and not _there(base, value) and _there(base, value.replace("\\", "/")):
            value = value.replace("\\", "/")
            report.repairs["backslashes in audio read as /"].append(shown(ids[i] or f"row{i + 1}"))
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
                f"{source}: {place(source, i)} has audio '{shown(value)}', which is not a file "
                f"within {base} (--audio-dir)"
            )
        files = stems.get(name, (name,))
        if len(files) > 1:
            which = " or ".join(files[:4])
            where = f"{source}: {place(source, i)}"
            raise DataError(
                f"{where} has audio '{shown(value)}', which may be {which}; give the extension"
            )
        out.append(files[0] if relative == "." else f"{relative}/{files[0]}")
    return out


def _there(base: str, value: str) -> bool:
    """Whether a file of that name, with or without its extension, lies there."""
    path = os.path.join(base, value)
    return os.path.exists(path) or any(os.path.exists(path + suffix) for suffix in MEDIA)


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
            if (value or "").strip().lower() not in SPLIT_ALIASES:
                raise DataError(
                    f"{source}: {place(source, i)} has split '{shown(value)}', expected train, "
                    "dev (or valid) or test"
                )
            out.append(SPLIT_ALIASES[(value or "").strip().lower()])
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
