"""The table of a foreign file as rows of a store: one dict per utterance."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mer.pipeline.errors import DataError
from mer.pipeline.interchange.foreign import ImportOptions
from mer.pipeline.interchange.labelling import set_classes, set_targets
from mer.pipeline.interchange.values import cell, listed_values, number, spelled_number
from mer.pipeline.runtime.cells import name_cell, text_cell, warn_gap_words, warn_near_duplicates
from mer.pipeline.runtime.limits import IMPORT_ROWS
from mer.pipeline.runtime.terminal import did_you_mean, plural, shown
from mer.pipeline.runtime.terms import SPLIT_ALIASES, TASKS, check_folds
from mer.pipeline.runtime.unimodal import check_unimodal
from mer.pipeline.store import Header

# What foreign files call the splits, beside what corpora and tables call them.
SPLIT_NAMES = SPLIT_ALIASES | {
    "trn": "train",
    "devel": "dev",
    "tst": "test",
    "eval": "test",
    "none": "",
}


@dataclass
class Rows:
    """A file's table in the store's terms; `notes` are lines for the user."""

    task: str
    labels: tuple[str, ...]
    rows: list[dict]
    notes: list[str] = field(default_factory=list)


def interpret(
    path: Path,
    columns: Mapping[str, Sequence],
    options: ImportOptions,
    header: Header | None = None,
) -> Rows:
    """Task, labels and rows from a table. The user's word goes before the exported header, that
    before a guess.

    Args:
        path: The file, for messages.
        columns: The table by field (`columns.FIELDS`), each (N,); `id` must be there.
        options: What the user says of the file.
        header: That of the store which was exported to this file, if one was.

    Returns:
        The rows in the order of the table.

    Raises:
        DataError: A cell, a label or an id is not what it must be; the row is named.
    """
    _check_lengths(path, columns)
    task = _task(columns, options, header)
    names = tuple(options.labels)
    if not names and header is not None and header.task == task:
        names = header.labels
    table = _Table(path, columns, _named(path, columns["id"]))
    table.set_splits()
    notes = table.set_names()
    table.set_tags()
    notes += table.set_folds()
    table.set_numbers()
    rows = table.rows
    if task == "single":
        values = [value for _, value in table.cells("label", name_cell)]
        spelled = all(isinstance(v, str | bytes | None) for v in columns.get("label", ()))
        names = set_classes(path, rows, values, names, options.unlabelled, spelled, notes)
    else:
        names = set_targets(path, rows, columns, task, names, options.unlabelled, notes)
    notes += table.set_unimodal(task, names)
    key = "label" if task == "single" else "targets"
    unlabelled = sum(row[key] is None for row in rows)
    if unlabelled:
        notes.append(f"unlabelled: {unlabelled:,} of {plural(len(rows), 'utterance')}")
    return Rows(task, names, rows, notes)


def _check_lengths(path: Path, columns: Mapping[str, Sequence]) -> None:
    count = len(columns["id"])
    if count > IMPORT_ROWS:
        raise DataError(
            f"{path}: {count:,} utterances, more than {IMPORT_ROWS:,}; import it in parts"
        )
    for name, values in columns.items():
        if len(values) != count:
            raise DataError(
                f"{path}: {name} has {plural(len(values), 'value')} for "
                f"{plural(count, 'utterance')}"
            )


def _task(columns: Mapping[str, Sequence], options: ImportOptions, header: Header | None) -> str:
    task = options.task
    if not task and header is not None:
        task = header.task
    if not task:
        task = "regression" if "targets" in columns and "label" not in columns else "single"
    if task not in TASKS:
        raise DataError(f"--task {task}: not one of {', '.join(TASKS)}{did_you_mean(task, TASKS)}")
    return task


def _named(path: Path, values: Sequence) -> list[dict]:
    """A row for each id; DataError for an empty id and for one that is there twice."""
    ids = [cell(path, f"row {i}", "id", value, name_cell) for i, value in enumerate(values, 1)]
    if None in ids:
        raise DataError(
            f"{path}: row {ids.index(None) + 1} has an empty id; every utterance needs one"
        )
    double = next((row_id for row_id, times in Counter(ids).items() if times > 1), None)
    if double is not None:
        raise DataError(f"{path}: id '{shown(double, 40)}' twice; ids must be unique")
    return [{"id": row_id} for row_id in ids]


@dataclass(frozen=True)
class _Table:
    """A foreign table and the rows that are made of it."""

    path: Path
    columns: Mapping[str, Sequence]
    rows: list[dict]

    def cells(
        self, name: str, kind: Callable[[object], str | None]
    ) -> Iterator[tuple[dict, str | None]]:
        """Each row with its cell of a column; None where there is no such column."""
        values = self.columns.get(name, [None] * len(self.rows))
        for row, value in zip(self.rows, values, strict=True):
            yield row, cell(self.path, row["id"], name, value, kind)

    def given(self, name: str) -> Iterator[tuple[dict, object]]:
        """Each row with its value as the reader found it; nothing where there is no such column."""
        if name in self.columns:
            yield from zip(self.rows, self.columns[name], strict=True)

    def set_splits(self) -> None:
        for row, split in self.cells("split", name_cell):
            given = (split or "").lower()
            if given not in SPLIT_NAMES:
                known = ", ".join(filter(None, SPLIT_NAMES))
                raise DataError(
                    f"{self.path}: {shown(row['id'], 40)} has split '{shown(given, 40)}'; known "
                    f"names are {known}{did_you_mean(given, filter(None, SPLIT_NAMES))}"
                )
            row["split"] = SPLIT_NAMES[given]

    def set_names(self) -> list[str]:
        """Set transcripts and what names a group; returns lines on names that look alike."""
        notes = []
        for row, text in self.cells("text", text_cell):
            row["text"] = text
        notes += warn_gap_words((row["text"] for row in self.rows), "transcripts")
        for name in ("speaker", "dialogue", "session"):
            for row, value in self.cells(name, name_cell):
                row[name] = value
            notes += warn_near_duplicates((row[name] for row in self.rows), f"{name}s")
            notes += warn_gap_words((row[name] for row in self.rows), f"{name}s")
        return notes

    def set_tags(self) -> None:
        for row, entries in self._lists("tags"):
            row["tags"] = entries

    def set_folds(self) -> list[str]:
        """Set published folds; a column of something else is left aside, which a line says."""
        found = list(self._lists("folds"))
        try:
            for row, entries in found:
                check_folds(str(self.path), row["id"], entries)
        except DataError as error:
            return [f"folds left aside: {error}"]
        for row, entries in found:
            row["folds"] = entries
        return []

    def set_unimodal(self, task: str, labels: Sequence[str]) -> list[str]:
        """Set unimodal labels; a column of something else is left aside, which a line says."""
        found = list(self._lists("unimodal"))
        try:
            for row, entries in found:
                check_unimodal(str(self.path), row["id"], entries, task=task, labels=labels)
        except DataError as error:
            return [f"unimodal labels left aside: {error}"]
        for row, entries in found:
            row["unimodal"] = entries
        return []

    def _lists(self, name: str) -> Iterator[tuple[dict, list[str]]]:
        """Each row with the entries of its cell of a column; nothing where there is none."""
        for row, value in self.given(name):
            entries = []
            for entry in listed_values(self.path, value):
                entries.append(cell(self.path, row["id"], name, entry, name_cell))
            yield row, [entry for entry in entries if entry is not None]

    def set_numbers(self) -> None:
        for row, value in self.given("position"):
            if spelled_number(value) is not None:
                row["position"] = number(self.path, row["id"], "position", value, int)
        for row, value in self.given("duration"):
            if spelled_number(value) is not None:
                row["duration"] = number(self.path, row["id"], "duration", value, float)
