"""Anyone's CSV, TSV, JSON Lines or Parquet as a corpus.

A field is found under its own name or under the column that the user names for it; blanks at the
ends of names are cut and counted. Without a split column the table is split by group (dialogue,
else speaker), never through the middle of one.
"""

from __future__ import annotations

import math
import os
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mer.pipeline.datasets.corpora import CorpusInfo
from mer.pipeline.datasets.files import hidden, look
from mer.pipeline.datasets.findings import Findings
from mer.pipeline.datasets.folds import check_speakers, counted, from_columns, from_json
from mer.pipeline.datasets.pattern import MEDIA
from mer.pipeline.datasets.tablefile import DECIMAL_COMMA, FIELDS, TIMES, VIDEO_TIMES, Table, read
from mer.pipeline.datasets.unimodal import columns_of as unimodal_columns
from mer.pipeline.errors import DataError
from mer.pipeline.manifest import Manifest, Utterance
from mer.pipeline.runtime.cells import GAP_WORDS, strip, text_cell, warn_gap_words
from mer.pipeline.runtime.delimited import SEPARATORS
from mer.pipeline.runtime.terminal import listed, plural, shown
from mer.pipeline.runtime.terms import SPLIT_ALIASES, TASKS
from mer.pipeline.runtime.unimodal import check_task, entry

SHARES = {"train": 0.7, "dev": 0.15, "test": 0.15}  # of the utterances, when the table has no split
MANY_LABELS = 50  # more classes than this look like numbers or free text
SHOWN_FIELDS = 6  # in a message that a table has none of them
MINUS_SIGNS = ("\u2010", "\u2011", "\u2012", "\u2013", "\u2014", "\u2212", "\ufe63", "\uff0d")
CLOCK = re.compile(r"\d+:\d\d(:\d\d)?([.,]\d+)?|[\d.]+ ?(s|sec|ms)", re.ASCII)
UNIMODAL = "unimodal "  # a column of --unimodal is the field of this and its modality
TARGET = "target "  # a column of --targets is the field of this and its name
POSITION = re.compile(r"\d{1,9}(?:\.0*)?", re.ASCII)  # a number of a turn; 3.0 as Excel has it
NUMBER_CHARACTERS = 400  # of a time or target; float() takes longer by the square of them
# float() takes "1_0" and "infinity" as well.
NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)


def prepare(
    source: Path,
    *,
    audio_dir: str | os.PathLike | None = None,
    columns: Mapping[str, str] | None = None,
    labels: str | None = None,
    targets: str | None = None,
    soft_labels: str | None = None,
    unimodal: Sequence[str] = (),
    task: str | None = None,
    split: str = "auto",
    seed: int = 0,
    name: str | None = None,
    language: str = "en",
    folds: Sequence[str] = (),
    fold_lists: str | os.PathLike | None = None,
    speaker_independent: bool = False,
    folder_option: str = "--audio-dir",
    fields: Sequence[str] = FIELDS,
) -> tuple[Manifest, Findings]:
    """The manifest of a table.

    Args:
        source: The table.
        audio_dir: What audio paths are relative to, by default the table's folder; a name without
            its extension is looked up there.
        columns: Field -> column, where that is not called like the field.
        labels: Comma-separated classes in order, by default those that are there, sorted.
        targets: Comma-separated columns of numbers, which are the targets of a regression.
        soft_labels: Comma-separated columns, one for each class, of the votes of raters or their
            shares; the label is the class with most of them, the targets are the shares.
        unimodal: `MODALITY=COLUMN,…`, one or several: what each modality says by itself, a class
            or number as the common label.
        task: single (None, without targets), multi or regression.
        split: auto (the table's, else one by group) or none (left open, for folds).
        seed: Of the split by group.
        name: Of the corpus, by default the table's.
        language: Code, for the default encoders.
        folds: The columns that name folds; none: `fold`, if there is one.
        fold_lists: A JSON file of folds instead, as of `folds.from_json`.
        speaker_independent: Refuse folds in which a speaker is trained on and tested.
        folder_option: What messages call `audio_dir`.
        fields: Those that messages name.

    Returns:
        The manifest, and what was found.

    Raises:
        DataError: The table cannot be read, or a cell is not what its field needs; the line is
            named.
    """
    source = Path(source)
    columns = columns or {}
    names = _target_names(targets, task, labels, columns)
    voted = _voted_names(soft_labels, targets, task, labels, columns)
    task = task or ("regression" if names else "single")
    _check_options(task, split, columns, fields)
    name = strip(name if name is not None else source.stem) or "table"
    for what, value in (
        ("--name", name),
        ("--language", language),
        ("--labels", labels),
        ("--targets", targets),
        ("--soft-labels", soft_labels),
        *(("--unimodal", pairs) for pairs in unimodal),
    ):
        _check_option(what, value)
    if folds and fold_lists is not None:
        raise DataError("table: folds by --column fold=… and by --fold-lists; give one of them")
    findings = Findings(name)
    read_from = {**columns, **{f"{TARGET}{one}": one for one in (*names, *voted)}}
    alone = unimodal_columns(unimodal)
    read_from |= {f"{UNIMODAL}{modality}": column for modality, column in alone.items()}
    kind = {"several": task == "multi", "number": task == "regression"}
    table = read(source, read_from, findings, folds=folds, **kind)
    root = _Root(Path(audio_dir) if audio_dir is not None else source.parent, folder_option)
    _check_content(table, root, fields)
    ids = _ids(table, findings)
    _warn_of_gaps(table, findings)
    if names:
        labelling = _of_targets(table, names, findings)
    elif voted:
        labelling = _of_votes(table, voted, findings)
    else:
        labelling = _labels(table, labels, task, findings)
    said = _unimodal(table, alone, labelling, task, findings)
    times = _times(table)
    _check_ids(table, ids)
    entries = _folds(table, ids, fold_lists)
    splits = _splits(table, "none" if entries and not _has_split(table) else split, seed, findings)
    audio = _media(table, "audio", ids, root, findings)
    video = _media(table, "video", ids, root, findings)
    seen = _video_times(table)
    turns = enumerate(table.column("position"))
    positions = [_position(table, i, value) for i, value in turns]
    named = [table.column(field) for field in ("text", "speaker", "dialogue", "session")]
    rows = []
    for i, (text, speaker, dialogue, session) in enumerate(zip(*named, strict=True)):
        start, end = times[i]
        rows.append(
            Utterance(
                id=ids[i] or "",
                audio=audio[i],
                text=text,
                split=splits[i],
                label=labelling.label[i],
                targets=labelling.targets[i],
                speaker=speaker,
                dialogue=dialogue,
                session=session,
                position=positions[i],
                start=start,
                end=end,
                video=video[i],
                video_start=seen[i][0],
                video_end=seen[i][1],
                folds=entries.get(ids[i] or "", ()),
                unimodal=said[i],
            )
        )
    if speaker_independent:
        check_speakers(str(source), counted(rows))
    rows = look(rows, root.folder, _info(name, language), findings)
    made = {"table": source.name, "columns": dict(columns), "split": split, "seed": seed}
    manifest = Manifest(name, task, labelling.names, tuple(rows), root.folder, language, made)
    return manifest, findings


# --- options


def _check_options(
    task: str, split: str, columns: Mapping[str, str], fields: Sequence[str]
) -> None:
    if task not in TASKS or split not in ("auto", "none"):
        raise DataError(
            f"table: task '{task}', split '{split}'; a task is one of {', '.join(TASKS)}, a split "
            "auto or none"
        )
    for field, column in columns.items():
        if field not in FIELDS:
            raise DataError(
                f"table: --column {field}={column}: no such field; fields: {', '.join(fields)}"
            )


def _check_option(what: str, value: str | None) -> None:
    try:
        text_cell(value)
    except DataError as error:
        raise DataError(f"table: {what} {error}") from None


def _info(name: str, language: str) -> CorpusInfo:
    """A corpus of which nothing is known."""
    return CorpusInfo(
        name,
        name,
        language,
        licence="",
        obtain="",
        size="",
        label_sets={},
    )


@dataclass(frozen=True)
class _Root:
    """What the paths of a table are relative to, and the option that says so."""

    folder: Path
    option: str


# --- what the table has and lacks


def _check_content(table: Table, root: _Root, fields: Sequence[str]) -> None:
    """Raises DataError for a table without a field, a row, or anything to encode."""
    source = table.source
    if not table.data and table.names:
        alone = len(table.names) == 1
        known = f"; columns are separated by {', '.join(SEPARATORS.values())}" if alone else ""
        raise DataError(
            f"{source}: no column is called {', '.join(fields[:SHOWN_FIELDS])}, …; name yours with "
            f"--column FIELD=NAME (found {listed(table.names)}{_near(table)}){known}"
        )
    if not len(table):
        raise DataError(f"{source}: no rows")
    _check_rows(table)
    if not {"audio", "text", "video"} & set(table.data):
        remedy = "map one with --column audio=NAME or --column text=NAME"
        raise DataError(
            f"{source}: neither audio nor text; {remedy} (found "
            f"{listed(table.names)}{_near(table)})"
        )
    if {"audio", "video"} & set(table.data) and not root.folder.is_dir():
        raise DataError(f"{root.folder}: no such folder ({root.option})")


def _check_rows(table: Table) -> None:
    """Raises DataError for a row that is the header again, as where tables were joined, or that is
    empty but for its separators.
    """
    names = {field: table.mapped.get(field, field) for field in FIELDS if field in table.data}
    for i in range(len(table)):
        cells = {field: table.data[field][i] for field in names}
        if len(names) > 1 and cells == names:
            raise DataError(f"{table.at(i)} is the header again; leave it out")
        if not any(cells.values()):
            raise DataError(f"{table.at(i)} has nothing in any column that is read; leave it out")


def _other_case(field: str, names: Sequence[str]) -> str | None:
    """A column that is called like the field but for case and blanks."""
    return next((name for name in names if name != field and strip(name).casefold() == field), None)


def _near(table: Table) -> str:
    """The options that would take columns which differ from a field by case only."""
    options = []
    for field in FIELDS:
        name = _other_case(field, table.names)
        if name and field not in table.mapped:
            options.append(f"--column {field}={shown(name, 40)}")
    return f"; case counts: {' '.join(options)}" if options else ""


def _ids(table: Table, findings: Findings) -> list[str | None]:
    if "id" in table.data:
        return table.data["id"]
    near = _other_case("id", table.names) or "NAME"
    findings.warnings.append(f"no id column (--column id={shown(near, 40)}): ids are row1, row2, …")
    return [f"row{i + 1}" for i in range(len(table))]


def _check_ids(table: Table, ids: list[str | None]) -> None:
    for i, row_id in enumerate(ids):
        if not row_id:
            raise DataError(f"{table.at(i)} has an empty id")
    double, times = Counter(ids).most_common(1)[0]
    if times > 1:
        first, second, *_ = (i for i, row_id in enumerate(ids) if row_id == double)
        raise DataError(
            f"{table.source}: id '{shown(double)}' is there {times:,} times, first on "
            f"{table.place(first)} and {table.place(second)}; ids must be unique"
        )


def _warn_of_gaps(table: Table, findings: Findings) -> None:
    for field in ("audio", "text"):
        if field not in table.data:
            remedy = f"--column {field}={_other_case(field, table.names) or 'NAME'}"
            findings.warnings.append(
                f"no {field} column ({remedy}): the utterances have no {field}"
            )
    for field in ("audio", "text", "speaker", "dialogue", "session"):
        _warn_of_gap(table, field, findings)
    for field in ("text", "speaker", "dialogue", "session"):
        what = "transcripts" if field == "text" else f"{field}s"
        findings.warnings += warn_gap_words(table.data.get(field, ()), what)


def _warn_of_gap(table: Table, field: str, findings: Findings) -> None:
    gaps = [i for i, value in enumerate(table.data.get(field, ())) if value is None]
    if gaps:
        findings.warnings.append(
            f"{plural(len(gaps), 'row has', 'rows have')} no {field}, "
            f"the first on {table.place(gaps[0])}"
        )


# --- labels


@dataclass(frozen=True)
class _Labelling:
    """Class names in order, and a label or targets per row."""

    names: tuple[str, ...]
    label: Sequence[str | None]
    targets: Sequence[tuple[float, ...] | None]


def _target_names(
    targets: str | None, task: str | None, labels: str | None, columns: Mapping[str, str]
) -> tuple[str, ...]:
    """The columns of --targets; raises DataError where other options contradict it."""
    if targets is None:
        return ()
    names = tuple(map(strip, targets.split(",")))
    if len(set(names)) != len(names) or "" in names:
        raise DataError(f"table: --targets {shown(targets)}: a column is empty or there twice")
    if task not in (None, "regression"):
        raise DataError(
            f"table: --targets are numbers, of --task regression; --task {task} has labels"
        )
    if labels is not None or "label" in columns:
        raise DataError(
            "table: --targets names the columns to learn; leave out --labels and --column label="
        )
    return names


def _voted_names(
    soft_labels: str | None,
    targets: str | None,
    task: str | None,
    labels: str | None,
    columns: Mapping[str, str],
) -> tuple[str, ...]:
    """The columns of --soft-labels; raises DataError where other options contradict it."""
    if soft_labels is None:
        return ()
    names = tuple(map(strip, soft_labels.split(",")))
    said = f"table: --soft-labels {shown(soft_labels)}"
    if len(set(names)) != len(names) or "" in names:
        raise DataError(f"{said}: a column is empty or there twice")
    if len(names) < 2:
        raise DataError(f"{said}: expected a column for each of two classes or more")
    if task not in (None, "single"):
        raise DataError(
            f"table: --soft-labels are of --task single, one class of several; not of {task}"
        )
    if labels is not None or targets is not None or "label" in columns:
        raise DataError(
            "table: --soft-labels names the classes and gives the label; leave out --labels, "
            "--targets and --column label="
        )
    return names


def _of_votes(table: Table, names: tuple[str, ...], findings: Findings) -> _Labelling:
    """The shares of the columns of --soft-labels, and the class of most votes. An empty cell beside
    others is no vote; a row without any vote is unlabelled, one with a tie has shares alone.
    """
    label: list[str | None] = []
    shares: list[tuple[float, ...] | None] = []
    found: dict[str, list[int]] = {"gap": [], "none": [], "tie": []}
    for i in range(len(table)):
        cells = [table.data[f"{TARGET}{name}"][i] for name in names]
        given = [_number(table, cell, i, name) for cell, name in zip(cells, names, strict=True)]
        votes = [value or 0.0 for value in given]
        if min(votes) < 0:
            name = names[votes.index(min(votes))]
            raise DataError(
                f"{table.at(i)} has {min(votes):g} votes for {name}, expected 0 or more"
            )
        most = max(votes)
        if not most:
            found["none"].append(i)
            label.append(None)
            shares.append(None)
            continue
        if None in given:
            found["gap"].append(i)
        scaled = [value / most for value in votes]
        shares.append(tuple(value / sum(scaled) for value in scaled))
        first = [name for name, value in zip(names, scaled, strict=True) if math.isclose(value, 1)]
        label.append(first[0] if len(first) == 1 else None)
        if len(first) > 1:
            found["tie"].append(i)
    for kind, what in (
        ("none", "without a vote, unlabelled"),
        ("gap", "with empty cells among the votes, which count as 0"),
        ("tie", "where several classes have most votes: shares, but no label"),
    ):
        if rows := found[kind]:
            findings.warnings.append(
                f"{plural(len(rows), 'row')} {what}, the first on {table.place(rows[0])}"
            )
    return _Labelling(names, label, shares)


def _of_targets(table: Table, names: tuple[str, ...], findings: Findings) -> _Labelling:
    """The numbers of the columns of --targets. A row that lacks one of them is unlabelled; a label
    column is left aside.
    """
    rows: list[tuple[float, ...] | None] = []
    partly = 0
    for i in range(len(table)):
        cells = [table.data[f"{TARGET}{name}"][i] for name in names]
        values = [_number(table, cell, i, name) for cell, name in zip(cells, names, strict=True)]
        known = tuple(value for value in values if value is not None)
        rows.append(known if len(known) == len(names) else None)
        partly += 0 < len(known) < len(names)
    gaps = [i for i, row in enumerate(rows) if row is None]
    if gaps:
        some = f" ({partly:,} of them with some of these)" if partly else ""
        lacking = f"{plural(len(gaps), 'row')} without {' and '.join(names)}{some}"
        findings.warnings.append(f"{lacking}, unlabelled, the first on {table.place(gaps[0])}")
    if "label" in table.data:
        findings.warnings.append("the label column is left aside, as --targets names what to learn")
    return _Labelling(names, [None] * len(table), rows)


def _labels(table: Table, given: str | None, task: str, findings: Findings) -> _Labelling:
    names = given_names("table", given)
    none = [None] * len(table)
    if "label" not in table.data:
        near = _other_case("label", table.names) or "NAME"
        findings.warnings.append(
            f"no label column (--column label={shown(near, 40)}): the rows are unlabelled, good "
            "for `mer predict` only"
        )
        return _Labelling(names, none, none)
    values = table.data["label"]
    _warn_of_gap(table, "label", findings)
    if task == "regression":
        if len(names) > 1:
            raise DataError(
                f"table: --labels {shown(given)}: a regression on one column has one name; several "
                "columns of numbers: --targets"
            )
        numbers = [_number(table, value, i, "label") for i, value in enumerate(values)]
        targets = [None if number is None else (number,) for number in numbers]
        return _Labelling(names or (table.mapped.get("label", "label"),), none, targets)
    parts = [_parts(value, task) for value in values]
    if not names:
        said = (part for row in parts for part in row or ())
        findings.warnings += warn_gap_words(said, "labels")
    names = names or _names_among(parts)
    _check_known(table, parts, names)
    if task == "multi":
        return _Labelling(names, none, [_indicators(row, names) for row in parts])
    findings.warnings += _of_another_task([row[0] for row in parts if row])
    return _Labelling(names, values, none)


def _unimodal(
    table: Table,
    columns: Mapping[str, str],
    labelling: _Labelling,
    task: str,
    findings: Findings,
) -> list[tuple[str, ...]]:
    """What each modality says by itself, per row; an empty cell says nothing."""
    if not columns:
        return [()] * len(table)
    if not labelling.names or not any((*labelling.label, *labelling.targets)):
        raise DataError(
            f"{table.source}: --unimodal stands beside a common label, and there is none; name it "
            "with --column label=NAME"
        )
    check_task(str(table.source), task, labelling.names)
    for modality, column in columns.items():
        if not any(table.data[f"{UNIMODAL}{modality}"]):
            findings.warnings.append(
                f"all cells of {column} are empty: no unimodal labels of {modality}"
            )
    rows = []
    for i in range(len(table)):
        entries = []
        for modality, column in columns.items():
            cell = table.data[f"{UNIMODAL}{modality}"][i]
            if not cell:
                continue
            value: float | str | None = cell
            if task == "regression":
                value = _number(table, cell, i, column)
            else:
                value = _class_of(cell, labelling.names)
                if value is None:
                    raise DataError(
                        f"{table.at(i)} has {column} '{shown(cell)}', which is not among the "
                        f"labels {listed(labelling.names)}"
                    )
            if value is not None:
                entries.append(entry(modality, value))
        rows.append(tuple(entries))
    return rows


def _class_of(cell: str, names: Sequence[str]) -> str | None:
    """The class that a cell says: of its name, else of its number, as a column of whole numbers
    with gaps is often written with decimals.

    >>> _class_of("1.0", ("0", "1")), _class_of("1.0", ("1", "1.0")), _class_of("2", ("0", "1"))
    ('1', '1.0', None)
    """
    if cell in names or not NUMBER.fullmatch(cell):
        return cell if cell in names else None
    same = [name for name in names if NUMBER.fullmatch(name) and float(name) == float(cell)]
    return same[0] if len(same) == 1 else None


def _of_another_task(labels: Sequence[str]) -> Iterator[str]:
    """A line where labels look like values, or like several in one cell."""
    different = dict.fromkeys(labels)
    values = [label for label in different if NUMBER.fullmatch(label.replace(",", "."))]
    fractions = any(re.search("[.,-]", value) for value in values)
    if len(values) > len(different) / 2 and (fractions or len(values) > MANY_LABELS):
        of_all = plural(
            len(different), "different label is a number", "different labels are numbers"
        )
        yield (
            f"{len(values):,} of {of_all} ({listed(values, 2)}), taken as names of classes; if "
            "they are values, say --task regression"
        )
    elif values and len(values) < len(different):
        names = [label for label in different if label not in values]
        some = plural(len(values), "is a number", "are numbers")
        yield (
            f"of the labels {some} ({listed(values, 2)}), others are not ({listed(names, 2)}): all "
            "are taken as names of classes; is another column meant? then --column label=NAME"
        )
    elif len(different) > MANY_LABELS:
        number = plural(len(different), "different label")
        yield f"{number}; numbers are meant? then --task regression"
    words = [label for label in different if label not in values]
    several = [label for label in words if len(_parts(label, "multi") or ()) > 1]
    if several:
        yield (
            f"labels such as '{shown(several[0], 60)}' are taken whole; if that is several labels "
            "of one utterance, say --task multi"
        )


def given_names(where: str, given: str | None) -> tuple[str, ...]:
    """The classes of --labels; none where it was not given. Raises DataError."""
    names = tuple(map(strip, given.split(","))) if given else ()
    if len(set(names)) != len(names) or "" in names:
        raise DataError(f"{where}: --labels {shown(given)}: a label is empty or there twice")
    return names


def _parts(value: str | list | None, task: str) -> list[str] | None:
    """The labels of a cell."""
    if value is None:
        return None
    if task != "multi":
        return [str(value)]
    found = value if isinstance(value, list) else re.split(r"[,;|]", value)
    return [strip(part) for part in found if part and strip(part)]


def _names_among(parts: Iterable[list[str] | None]) -> tuple[str, ...]:
    names: set[str] = set()
    for row in parts:
        names.update(row or ())
    return tuple(sorted(names))


def _check_known(table: Table, parts: Iterable[list[str] | None], names: tuple[str, ...]) -> None:
    known = set(names)
    for i, row in enumerate(parts):
        for part in row or ():
            if part not in known:
                raise DataError(
                    f"{table.at(i)} has label '{shown(part)}', which is not among --labels "
                    f"{listed(names).replace(', ', ',')}"
                )


def _indicators(row: list[str] | None, names: tuple[str, ...]) -> tuple[float, ...] | None:
    """1 for each class that a row has, 0 for the others; None where it is unlabelled."""
    return None if row is None else tuple(float(name in row) for name in names)


def _number(table: Table, value: str | None, row: int, field: str) -> float | None:
    if value is None:
        return None
    text = strip(value)
    number = math.nan
    if NUMBER.fullmatch(text) and len(text) < NUMBER_CHARACTERS:
        number = float(text)
    if not math.isfinite(number):
        raise DataError(
            f"{table.at(row)} has {field} '{shown(text)}', expected a number{_number_hint(text)}"
        )
    return number


def _number_hint(text: str) -> str:
    """What may be meant by text that is no number."""
    if DECIMAL_COMMA.fullmatch(text):
        return "; a decimal comma? write a point"
    if text in GAP_WORDS:
        return "; where there is none, leave the cell empty"
    if text[:1] in MINUS_SIGNS:
        return f"; a minus sign of another kind (U+{ord(text[0]):04X})? write -"
    return "; write seconds" if CLOCK.fullmatch(text) else ""


def _position(table: Table, row: int, value: str | None) -> int | None:
    """The place of a row in its dialogue."""
    if value is None:
        return None
    text = strip(value)
    if not POSITION.fullmatch(text):
        raise DataError(
            f"{table.at(row)} has position '{shown(text)}', expected the number of a turn in its "
            "dialogue: 0, 1, 2, …"
        )
    return int(text.partition(".")[0])


# --- times, in seconds


def _times(table: Table) -> list[tuple[float | None, float | None]]:
    """(start, end) per row."""
    if not set(TIMES) & set(table.data):
        return [(None, None)] * len(table)
    columns = [table.column(field) for field in TIMES]
    return [_span(table, i, values) for i, values in enumerate(zip(*columns, strict=True))]


def _span(
    table: Table, row: int, values: Sequence[str | None]
) -> tuple[float | None, float | None]:
    start, end, duration = (
        _number(table, value, row, field) for field, value in zip(TIMES, values, strict=True)
    )
    if start is not None and start < 0:
        raise DataError(
            f"{table.at(row)} starts at {start:g} s, before its file; times count from 0"
        )
    begin = start or 0.0
    if end is None and duration is not None:
        end = begin + duration
    if end is not None and end <= begin:
        raise DataError(f"{table.at(row)} ends at {end:g} s, not after its start at {begin:g} s")
    return start, end


def _video_times(table: Table) -> list[tuple[float | None, float | None]]:
    """(video_start, video_end) per row."""
    columns = [table.column(field) for field in VIDEO_TIMES]
    found = []
    for i, values in enumerate(zip(*columns, strict=True)):
        start, end = (
            _number(table, value, i, field)
            for field, value in zip(VIDEO_TIMES, values, strict=True)
        )
        if (start is not None or end is not None) and table.column("video")[i] is None:
            raise DataError(
                f"{table.at(i)} has a {VIDEO_TIMES[0]} or {VIDEO_TIMES[1]}, and no video"
            )
        found.append((start, end))
    return found


# --- media


def _media(
    table: Table, field: str, ids: list[str | None], root: _Root, findings: Findings
) -> list[str | None]:
    """Paths of the field, audio or video, relative to `root`, which they may not leave.

    A name without an extension is looked up among the media files there. Backslashes of Windows are
    read as slashes where only that names a file, which is counted.
    """
    folders = _Folders(os.path.abspath(root.folder))
    out: list[str | None] = []
    for i, value in enumerate(table.column(field)):
        if value is None:
            out.append(None)
            continue
        if "\\" in value and not folders.has(value) and folders.has(value.replace("\\", "/")):
            value = value.replace("\\", "/")
            findings.repairs[f"backslashes in {field} read as /"].append(
                shown(ids[i] or f"row{i + 1}")
            )
        found = folders.find(value)
        if not found:
            raise DataError(
                f"{table.at(i)} has {field} '{shown(value)}', which is not a file within "
                f"{folders.base} ({root.option})"
            )
        if len(found) > 1:
            names = [os.path.basename(path) for path in found[:4]]
            raise DataError(
                f"{table.at(i)} has {field} '{shown(value)}', which may be {' or '.join(names)}; "
                "give the extension"
            )
        out.append(found[0])
    return out


class _Folders:
    """The media files below a folder, each folder listed once."""

    def __init__(self, base: str):
        self.base = base
        # As written -> (relative to the base, file name or stem -> files); "" is outside of it.
        self._known: dict[str, tuple[str, dict[str, list[str]]]] = {}

    def has(self, value: str) -> bool:
        """Whether a file of that name, with or without its extension, lies there."""
        path = os.path.join(self.base, value)
        return os.path.exists(path) or any(os.path.exists(path + suffix) for suffix in MEDIA)

    def find(self, value: str) -> list[str]:
        """The files that a name may mean, relative to the base; none when it leads out of it. A
        file that is not there is taken by its name.
        """
        folder, slash, name = value.rpartition("/")
        folder += slash  # "/" stays the root
        if folder not in self._known:
            self._known[folder] = self._open(folder)
        relative, stems = self._known[folder]
        if not relative or name in ("", ".", "..") or "\0" in name:
            return []
        files = stems.get(name, [name])
        return files if relative == "." else [f"{relative}/{file}" for file in files]

    def _open(self, folder: str) -> tuple[str, dict[str, list[str]]]:
        full = os.path.normpath(os.path.join(self.base, folder))
        below = self.base.rstrip(os.sep) + os.sep
        if "\0" in folder or (full != self.base and not full.startswith(below)):
            return "", {}
        return os.path.relpath(full, self.base), _listing(full)


def _listing(folder: str) -> dict[str, list[str]]:
    """File name or stem -> the media files that it may mean."""
    try:
        names = sorted(name for name in os.listdir(folder) if not hidden(name))
    except OSError:
        return {}
    stems: dict[str, list[str]] = {}
    for name in names:
        stem, suffix = os.path.splitext(name)
        if suffix.lower() in MEDIA:
            stems.setdefault(stem, []).append(name)
    return stems | {name: [name] for name in names}


# --- splits and folds


def _has_split(table: Table) -> bool:
    return any(table.column("split"))


def _folds(
    table: Table, ids: Sequence[str | None], lists: str | os.PathLike | None
) -> dict[str, tuple[str, ...]]:
    """What each row is in the published folds; nothing where there are none."""
    names = [id or "" for id in ids]
    if lists is not None:
        return from_json(Path(lists), names)
    return from_columns(str(table.source), names, table.folds) if table.folds else {}


def _splits(table: Table, split: str, seed: int, findings: Findings) -> list[str]:
    """A split per row: none, the table's, or one by group."""
    if split == "none":
        return [""] * len(table)
    given = table.column("split")
    if any(given):
        return _given_splits(table, given, findings)
    field = _group_field(table)
    if field is None:
        why = "no split, and no dialogue or speaker on every row (--column speaker=NAME)"
        findings.warnings.append(f"{why}: each utterance is its own group (seed {seed})")
        return split_groups(map(str, range(len(table))), seed)
    groups = table.data[field]
    count = len(set(groups))
    if count < len(SHARES):
        raise DataError(
            f"{table.source}: no split column and only {count} {field}s, too few for train, dev "
            "and test; add a split column, or --split none and train with --folds"
        )
    findings.warnings.append(
        f"no split column: split by {field} with seed {seed} ({count:,} {field}s)"
    )
    return split_groups(groups, seed)


def _group_field(table: Table) -> str | None:
    """What the rows are grouped by: the first field that every row has."""
    for field in ("dialogue", "speaker"):
        if field in table.data and all(table.data[field]):
            return field
    return None


def _given_splits(table: Table, given: list[str | None], findings: Findings) -> list[str]:
    splits = []
    for i, value in enumerate(given):
        name = (value or "").strip().lower()
        if name not in SPLIT_ALIASES:
            hint = ", or an empty cell for none" if value in GAP_WORDS or name == "none" else ""
            raise DataError(
                f"{table.at(i)} has split '{shown(value)}', expected train, dev (or valid) or test"
                f"{hint}"
            )
        splits.append(SPLIT_ALIASES[name])
    if "train" in splits and "dev" not in splits:
        findings.warnings.append("no dev split: training takes one from train, by group")
    return splits


def split_groups(groups: Iterable[str], seed: int) -> list[str]:
    """A split for each row so that no group is in two: groups in seeded random order, each to the
    split that lacks most of its share.

    Args:
        groups: (N,) the group of each row.
        seed: Of the order.

    Returns:
        (N,) train, dev or test; each has a group where there are as many.
    """
    groups = list(groups)
    sizes = Counter(groups)
    order = sorted(sizes)
    random.Random(seed).shuffle(order)
    lack = {split: share * len(groups) for split, share in SHARES.items()}
    # One group each, whatever the sizes.
    chosen = dict(zip(order, ("test", "dev", "train"), strict=False))
    for group in order:
        split = chosen.setdefault(group, max(lack, key=lambda name: lack[name]))
        lack[split] -= sizes[group]
    return [chosen[group] for group in groups]
