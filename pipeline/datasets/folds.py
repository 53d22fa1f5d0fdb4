"""Published folds: what a row is in each of them, from columns of a table or from a JSON file, and
what they hold, fold by fold.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mer.pipeline.datasets.jsonfile import read_json
from mer.pipeline.errors import DataError
from mer.pipeline.manifest import Utterance
from mer.pipeline.runtime.cells import strip
from mer.pipeline.runtime.terminal import listed, plural, shown
from mer.pipeline.runtime.terms import PARTS, SPLIT_ALIASES, fold_entry, fold_of

MOST_FOLDS = 1000
SHOWN_FOLDS = 10  # that have a line of their own in a report

# id -> what the row is in each fold, as `Utterance.folds` has it
Entries = dict[str, tuple[str, ...]]


@dataclass(frozen=True)
class FoldCounts:
    """What one fold holds: rows by part, and the speakers that both its train and its test have,
    with the test rows that are theirs.
    """

    rows: Mapping[str, int]
    speakers: tuple[str, ...]
    shared_rows: int

    def line(self) -> str:
        """For people."""
        text = ", ".join(f"{self.rows[part]:,} {part}" for part in PARTS if self.rows.get(part))
        if self.speakers:
            both = plural(len(self.speakers), "speaker")
            text += f"; {both} of its test ({plural(self.shared_rows, 'row')}) in train, too"
        return text


def counted(rows: Iterable[Utterance]) -> dict[str, FoldCounts]:
    """Fold -> what it holds, in the order in which the folds are met."""
    parts: dict[str, Counter[str]] = defaultdict(Counter)
    speakers: dict[str, dict[str, Counter[str]]] = defaultdict(lambda: defaultdict(Counter))
    for u in rows:
        for entry in u.folds:
            name, part = fold_of(entry)
            parts[name][part] += 1
            if u.speaker:
                speakers[name][part][u.speaker] += 1
    counts = {}
    for name in sorted(parts, key=_in_order):
        test, trained = speakers[name]["test"], speakers[name]["train"] | speakers[name]["dev"]
        both = tuple(sorted(test.keys() & trained.keys()))
        counts[name] = FoldCounts(dict(parts[name]), both, sum(test[who] for who in both))
    return counts


def _in_order(name: str) -> tuple[bool, int, str]:
    """Numbers in their order, then names."""
    number = name.isdecimal() and len(name) < len(str(MOST_FOLDS))
    return not number, int(name) if number else 0, name


def lines(folds: Mapping[str, FoldCounts]) -> list[str]:
    """What a report says of the folds."""
    if not folds:
        return []
    report = [f"published folds: {len(folds):,}, for `mer train --folds published`"]
    for name, fold in list(folds.items())[:SHOWN_FOLDS]:
        report.append(f"  {shown(name, 60)}: {fold.line()}")
    if len(folds) > SHOWN_FOLDS:
        report.append(f"  and {len(folds) - SHOWN_FOLDS:,} more (all with --json)")
    return report


def check_speakers(where: str, folds: Mapping[str, FoldCounts]) -> None:
    """Raise DataError for folds in which a speaker is trained on and tested."""
    wrong = {name: fold for name, fold in folds.items() if fold.speakers}
    if wrong:
        name, fold = next(iter(wrong.items()))
        raise DataError(
            f"{where}: {len(wrong):,} of {plural(len(folds), 'fold')} not speaker-independent: in "
            f"fold '{shown(name, 40)}' {plural(len(fold.speakers), 'speaker')} of test "
            f"({listed(fold.speakers, 3)}; {plural(fold.shared_rows, 'row')}) in train, too; mend "
            "them, or leave out --speaker-independent"
        )


# --- columns of a table


def from_columns(
    where: str, ids: Sequence[str], columns: Mapping[str, Sequence[str | None]]
) -> Entries:
    """What each row is in the folds that columns of a table name.

    A column of train, dev and test is one fold, called as the column. Any other names for each row
    the fold that tests it: the row is in train of the others. Several such columns, of a repeated
    cross-validation, give folds `COLUMN.NAME`. A row with an empty cell is in none of them.

    Args:
        where: The table, to begin messages with.
        ids: (N,) of the rows.
        columns: Name -> (N,) cells.

    Raises:
        DataError: A column has one value only, or a name cannot be a fold's.
    """
    entries: dict[str, list[str]] = {id: [] for id in ids}
    for column, cells in columns.items():
        given = [cell for cell in cells if cell]
        if given and all(cell.lower() in SPLIT_ALIASES for cell in given):
            for id, cell in zip(ids, cells, strict=True):
                if cell:
                    entries[id].append(fold_entry(column, SPLIT_ALIASES[cell.lower()]))
            continue
        names = sorted(set(given), key=_in_order)
        if len(names) < 2:
            what = f"one fold, '{shown(names[0], 40)}'" if names else "no fold"
            raise DataError(f"{where}: column '{shown(column, 40)}' names {what}; two are needed")
        _check_count(where, len(names))
        called = {name: f"{column}.{name}" if len(columns) > 1 else name for name in names}
        for id, cell in zip(ids, cells, strict=True):
            if cell:
                parts = (fold_entry(called[n], "test" if n == cell else "train") for n in names)
                entries[id].extend(parts)
    return {id: tuple(found) for id, found in entries.items()}


def _check_count(where: str, count: int) -> None:
    if count > MOST_FOLDS:
        raise DataError(
            f"{where}: {count:,} folds, more than {MOST_FOLDS:,}; is this a column of folds?"
        )


# --- JSON


def from_json(path: Path, ids: Iterable[str]) -> Entries:
    """What each row is in the folds of a JSON file: an object of folds by name or a list of them;
    each an object of lists of ids, `{"train": […], "dev": […], "test": […]}`, or one list, the test
    part. Where there is no train list, all rows outside the others are it.

    Args:
        path: The file.
        ids: Of all rows.

    Raises:
        DataError: It is not such a file, or a fold names ids that no row has, one id twice, or
            nothing to test.
    """
    value = read_json(path, pairs=_once)
    if isinstance(value, list):
        value = {str(number): fold for number, fold in enumerate(value, start=1)}
    if not isinstance(value, dict) or not value:
        raise DataError(f"{path}: expected an object or a list of folds")
    _check_count(str(path), len(value))
    known = dict.fromkeys(ids)
    entries: dict[str, list[str]] = {id: [] for id in known}
    for name, fold in value.items():
        parts = _parts(path, strip(name), fold)
        _check_ids(path, name, parts, known)
        inside = {id: part for part, those in parts.items() for id in those}
        if "train" not in parts:
            inside = {id: inside.get(id, "train") for id in known}
        for id, part in inside.items():
            entries[id].append(fold_entry(strip(name), part))
    return {id: tuple(found) for id, found in entries.items()}


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON. Raises ValueError where a name occurs twice, as only the last of its
    values would be kept.
    """
    made = dict(pairs)
    if len(made) < len(pairs):
        counts = Counter(name for name, _ in pairs)
        twice = next(name for name, times in counts.items() if times > 1)
        raise ValueError(f"'{shown(twice, 40)}' is there twice")
    return made


def _parts(path: Path, name: str, fold: Any) -> dict[str, list[str]]:
    """Part -> ids of one fold of a file."""
    what = f"{path}: fold '{shown(name, 40)}'"
    lists = {"test": fold} if isinstance(fold, list) else fold
    if not isinstance(lists, dict):
        raise DataError(f"{what} is not a list of ids, nor an object of train, dev and test lists")
    parts: dict[str, list[str]] = {}
    for word, ids in lists.items():
        part = SPLIT_ALIASES.get(word.strip().lower(), "")
        if not part or part in parts:
            raise DataError(
                f"{what} has a part '{shown(word, 40)}'; expected train, dev and test, each once"
            )
        if not isinstance(ids, list) or not all(isinstance(id, str | int) for id in ids):
            raise DataError(f"{what}: its {part} is not a list of ids")
        parts[part] = [strip(str(id)) for id in ids]
    if not parts.get("test"):
        raise DataError(f"{what} has nothing to test")
    return parts


def _check_ids(
    path: Path, name: str, parts: Mapping[str, Sequence[str]], known: Mapping[str, None]
) -> None:
    """Raise DataError for ids that no row has, or that a fold has twice."""
    what = f"{path}: fold '{shown(name, 40)}'"
    given = [id for ids in parts.values() for id in ids]
    if unknown := [id for id in given if id not in known]:
        raise DataError(
            f"{what} names {len(unknown):,} of its {plural(len(given), 'id')} that no row has: "
            f"{listed(unknown, 3)}"
        )
    twice = [id for id, times in Counter(given).items() if times > 1]
    if twice:
        raise DataError(f"{what} has {plural(len(twice), 'id')} twice: {listed(twice, 3)}")
