"""The table that comes with a corpus's files: transcripts, labels, splits, by the rules of a TOML
(`[table]`).
"""

from __future__ import annotations

import json
import os
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

from mer.pipeline.datasets.corpora import CorpusInfo, LabelSet, TableRules
from mer.pipeline.datasets.files import elsewhere, folders
from mer.pipeline.datasets.findings import Findings
from mer.pipeline.datasets.jsonfile import read_json
from mer.pipeline.datasets.pattern import MEDIA, fields_of, fill
from mer.pipeline.datasets.textfiles import place, read_csv, without_header
from mer.pipeline.errors import DataError
from mer.pipeline.manifest import Utterance
from mer.pipeline.runtime.cells import strip
from mer.pipeline.runtime.terminal import listed, plural, shown
from mer.pipeline.runtime.terms import SPLIT_ALIASES
from mer.pipeline.runtime.unimodal import entry, number_of

DEPTH = 4  # folders below the root
LEADING_ZEROS = re.compile(r"(?<![0-9])0+(?=[0-9])")


@dataclass(frozen=True)
class Line:
    """One row of a table: its cells by column, and where it stands."""

    id: str
    cells: Mapping[str, str]
    source: Path
    row: int

    @property
    def at(self) -> str:
        """The file and the line, to begin a message with."""
        return f"{self.source}: {place(self.source, self.row)}"

    def cell(self, column: str) -> str:
        """A cell without blanks at its ends; empty where no column is meant."""
        return strip(self.cells[column]) if column else ""


def read_lines(
    root: Path, info: CorpusInfo, chosen: LabelSet, findings: Findings
) -> dict[str, Line] | None:
    """id -> line of the tables of a corpus.

    Args:
        root: The corpus's folder; the tables lie in it or a few folders below.
        info: The corpus, with rules for its table.
        chosen: The label set, whose column has to be there.
        findings: Told when there is no table and it can do without, or that of a part is absent.

    Returns:
        The lines in their order; None where an optional table is absent.

    Raises:
        DataError: The table is absent, lacks a column, or names an utterance twice.
    """
    rules = info.table
    assert rules is not None
    sources = find_tables(root, rules.names)
    if not sources and rules.optional:
        names = " or ".join(rules.names)
        findings.warnings.append(f"no {names} below {root}: the utterances have no text")
        return None
    if not sources:
        tell_absent(root, info, rules.names)
    there = {source.name for source in sources}
    if absent := [name for name in rules.names if name in rules.splits and name not in there]:
        findings.warnings.append(f"no {listed(absent)} below {root}: without these utterances")
    lines: dict[str, Line] = {}  # by what an utterance and its file have in common
    for source in sources:
        first_row = -1 if without_header(source, rules.header) else 0
        cells_of_rows = _read(source, _columns(rules, chosen), rules.header)
        for row, cells in enumerate(cells_of_rows, start=first_row):
            line = Line(_id(rules.id, cells), cells, source, row)
            first = lines.setdefault(_key(line.id, rules), line)
            if first is not line:
                raise DataError(
                    f"{line.at}: '{shown(line.id, 60)}' is there twice, first in "
                    f"{first.source.name}, {place(first.source, first.row)}"
                )
    return {line.id: line for line in lines.values()}


def with_lines(
    rows: Sequence[Utterance],
    lines: Mapping[str, Line],
    info: CorpusInfo,
    chosen: LabelSet,
    findings: Findings,
    *,
    undecided: str | None = None,
) -> list[Utterance]:
    """A row for each line, with what its file's name says where the line does not.

    Args:
        rows: What the names of the files say, labels as the corpus has them.
        lines: Of the tables.
        info: The corpus, with rules for its table.
        chosen: The label set.
        findings: Files without a line, and lines of other labels, are added to these; that a line
            has no file is found by `look`.
        undecided: The label that a line without a majority has, which is kept without a label.

    Returns:
        The rows in the order of the lines.

    Raises:
        DataError: A line may be of several files, or a value is no number, or out of its scale.
    """
    rules = info.table
    assert rules is not None
    files: dict[str, list[Utterance]] = defaultdict(list)
    for u in rows:
        files[_key(u.id, rules)].append(u)
    findings.warnings += _absent_unimodal(lines, rules)
    columns = _of_labels(rules, chosen)
    out, taken, partly = [], set(), []
    for line in lines.values():
        base = _file_of(line, files.get(_key(line.id, rules), ()))
        if base is None:
            base = Utterance(line.id, audio=fill(rules.missing or rules.id, line.cells))
        taken.add(base.id)
        u = replace(
            base,
            text=(line.cells[rules.text] or None) if rules.text else base.text,
            speaker=_speaker(line, rules) or base.speaker,
            dialogue=line.cell(rules.dialogue) or base.dialogue,
            session=line.cell(rules.session) or base.session,
            split=_split(line, rules) if rules.split or rules.splits else base.split,
        )
        if chosen.task == "regression":
            known = _targets(line, columns, rules)
            targets = known if len(known) == len(columns) else None
            if known and targets is None:
                partly.append(shown(u.id))
            out.append(replace(u, label=None, targets=targets, unimodal=_unimodal(line, rules)))
            continue
        label = line.cell(columns[0]) if columns[0] else (u.label or "")
        if label in chosen.source:
            out.append(replace(u, label=chosen.source[label]))
        elif label == undecided:
            out.append(replace(u, label=None))
        else:
            findings.dropped[f"label {shown(label, 40) or '(none)'}"].append(shown(u.id))
    findings.orphans += [u.audio or u.id for u in rows if u.id not in taken]
    if partly:
        findings.warnings.append(
            f"{plural(len(partly), 'utterance')} with some of {', '.join(columns)} only: "
            f"unlabelled, {listed(partly, 3)}"
        )
    return out


def _file_of(line: Line, files: Sequence[Utterance]) -> Utterance | None:
    """What the name of a line's file says; None without a file. Of several whose names differ by
    zeros only it is the one of just that name.
    """
    if len(files) < 2:
        return files[0] if files else None
    exact = [u for u in files if u.id == line.id]
    if not exact:
        paths = [u.audio or u.id for u in files]
        raise DataError(
            f"{line.at}: '{shown(line.id, 60)}' may be {listed(paths, 2)}; keep one of them"
        )
    return exact[0]


def find_tables(root: Path, names: Sequence[str]) -> list[Path]:
    """The shallowest file of each of these names that is there."""
    found: dict[str, Path] = {}
    for folder in folders(root, DEPTH):
        for name in names:
            if name not in found and (folder / name).is_file():
                found[name] = folder / name
    return [found[name] for name in names if name in found]


def tell_absent(root: Path, info: CorpusInfo, names: Sequence[str]) -> NoReturn:
    """Raise DataError: none of these tables is there, without which the corpus is nothing."""
    hint = elsewhere(root, names) or f"; to get it: {info.obtain}"
    where = f"{DEPTH} levels of {shown(root.absolute(), 100)}"
    raise DataError(f"{info.name}: no {' or '.join(names)} within {where}{hint}")


def _of_labels(rules: TableRules, chosen: LabelSet) -> tuple[str, ...]:
    """The columns with the labels; one of no name where the table has none."""
    return chosen.columns or (rules.label,)


def _columns(rules: TableRules, chosen: LabelSet) -> list[str]:
    """The columns that have to be there."""
    named = (rules.text, rules.dialogue, rules.session, rules.split, *_of_labels(rules, chosen))
    of_templates = (*fields_of(rules.id), *fields_of(rules.speaker))
    return list(dict.fromkeys([*of_templates, *filter(None, named)]))


def _read(source: Path, columns: Sequence[str], header: Sequence[str]) -> list[dict[str, str]]:
    """The rows of a csv; or of JSON, an object of objects by id, whose column `id` that is."""
    if source.suffix.lower() != ".json":
        return read_csv(source, columns, header)
    value = read_json(source)
    if not isinstance(value, dict) or not all(isinstance(row, dict) for row in value.values()):
        raise DataError(f"{source}: expected an object of objects")
    rows = []
    for id, row in value.items():
        cells = {name: _cell(cell) for name, cell in row.items() if not isinstance(cell, list)}
        cells["id"] = id
        if absent := [name for name in columns if name not in cells]:
            raise DataError(f"{source}: {shown(id, 60)} has no {', '.join(absent)}")
        rows.append(cells)
    return rows


def _cell(value: object) -> str:
    """A value of JSON as text, as JSON spells it; null is empty."""
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value)


def _id(template: str, cells: Mapping[str, str]) -> str:
    """The id of a line; the ending of a media file is no part of it."""
    id = strip(fill(template, cells))
    stem, suffix = os.path.splitext(id)
    return stem if suffix.lower() in MEDIA else id


def _key(id: str, rules: TableRules) -> str:
    """By what a line and a file are held to be of one utterance."""
    return id if rules.zeros else LEADING_ZEROS.sub("", id)


def _speaker(line: Line, rules: TableRules) -> str:
    speaker = strip(fill(rules.speaker, line.cells))
    return "" if speaker in rules.nobody else speaker


def _split(line: Line, rules: TableRules) -> str:
    word = line.cell(rules.split) if rules.split else line.source.name
    split = rules.splits.get(word, word).lower()
    if split not in SPLIT_ALIASES:
        raise DataError(f"{line.at} has split '{shown(word)}', expected train, dev or test")
    return SPLIT_ALIASES[split]


def _number(line: Line, column: str, rules: TableRules, *, alone: bool = False) -> float | None:
    """A number on the scale of the labels; None for an empty cell. `alone`: there is no other such
    column, which needs no name then.
    """
    cell = strip(line.cells.get(column) or "")
    if not cell:
        return None
    value = number_of(cell)
    if value is None:
        named = "" if alone else f"{column} "
        raise DataError(f"{line.at} has {named}'{shown(cell, 40)}' where a number belongs")
    if rules.scale and not rules.scale[0] <= value <= rules.scale[1]:
        low, high = rules.scale
        raise DataError(
            f"{line.at} has {column} {value:g}, expected a number from {low:g} to {high:g}"
        )
    return value


def _targets(line: Line, columns: Sequence[str], rules: TableRules) -> tuple[float, ...]:
    """Those of the columns of targets that a line has a number in."""
    alone = len(columns) == 1
    values = [_number(line, column, rules, alone=alone) for column in columns]
    return tuple(value for value in values if value is not None)


def _unimodal(line: Line, rules: TableRules) -> tuple[str, ...]:
    """The unimodal labels of a line, for the modalities that it has one for."""
    found = []
    for modality, column in rules.unimodal.items():
        value = _number(line, column, rules)
        if value is not None:
            found.append(entry(modality, value))
    return tuple(found)


def _absent_unimodal(lines: Mapping[str, Line], rules: TableRules) -> list[str]:
    """A line where some columns of unimodal labels are not there."""
    there = {name for line in lines.values() for name in line.cells}
    absent = [column for column in rules.unimodal.values() if column not in there]
    return [f"no column {', '.join(absent)}: no such unimodal labels"] if absent else []
