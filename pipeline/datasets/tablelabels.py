"""What the rows of a table are labelled with: classes, targets, raters' votes, unimodal labels."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from mer.pipeline.datasets.findings import Findings
from mer.pipeline.datasets.tablefile import Table, other_case
from mer.pipeline.datasets.tablevalues import NUMBER, number, warn_of_gap
from mer.pipeline.errors import DataError
from mer.pipeline.runtime.cells import strip, warn_gap_words
from mer.pipeline.runtime.terminal import did_you_mean, listed, plural, shown
from mer.pipeline.runtime.unimodal import check_task, entry

MANY_LABELS = 50  # more classes than this look like numbers or free text
UNIMODAL = "unimodal "  # a column of --unimodal is the field of this and its modality
TARGET = "target "  # a column of --targets is the field of this and its name
# A list of labels as text, as pandas writes one into a csv, and the labels in quotes within.
LIST = re.compile(r"\[(.*)\]|\((.*)\)|\{(.*)\}", re.DOTALL)
QUOTED = re.compile(r"""'([^'\\]*)'|"([^"\\]*)\"""")


@dataclass(frozen=True)
class Labelling:
    """Class names in order, and a label or targets per row."""

    names: tuple[str, ...]
    label: Sequence[str | None]
    targets: Sequence[tuple[float, ...] | None]


# --- what options name


def given_names(where: str, given: str | None) -> tuple[str, ...]:
    """The classes of --labels; none where it was not given. Raises DataError."""
    return _names(where, "--labels", given, "label") if given else ()


def target_names(
    targets: str | None, task: str | None, labels: str | None, columns: Mapping[str, str]
) -> tuple[str, ...]:
    """The columns of --targets; raises DataError where other options contradict it."""
    if targets is None:
        return ()
    names = _names("table", "--targets", targets, "column")
    if task not in (None, "regression"):
        raise DataError(
            f"table: --targets are numbers, of --task regression; --task {task} has labels"
        )
    if labels is not None or "label" in columns:
        raise DataError(
            "table: --targets names the columns to learn; leave out --labels and --column label="
        )
    return names


def voted_names(
    soft_labels: str | None,
    targets: str | None,
    task: str | None,
    labels: str | None,
    columns: Mapping[str, str],
) -> tuple[str, ...]:
    """The columns of --soft-labels; raises DataError where other options contradict it."""
    if soft_labels is None:
        return ()
    names = _names("table", "--soft-labels", soft_labels, "column")
    if len(names) < 2:
        raise DataError(
            f"table: --soft-labels {shown(soft_labels)}: expected a column for each of two classes "
            "or more"
        )
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


def _names(where: str, option: str, given: str, what: str) -> tuple[str, ...]:
    """The names between the commas of an option; raises DataError for an empty or a double one."""
    names = tuple(map(strip, given.split(",")))
    if len(set(names)) != len(names) or "" in names:
        raise DataError(f"{where}: {option} {shown(given)}: a {what} is empty or there twice")
    return names


# --- numbers to learn, and votes of raters


def labelled_by_votes(table: Table, names: tuple[str, ...], findings: Findings) -> Labelling:
    """The shares of the columns of --soft-labels, and the class of most votes. An empty cell beside
    others is no vote; a row without any vote is unlabelled, one with a tie has shares alone.
    """
    labels: list[str | None] = []
    shares: list[tuple[float, ...] | None] = []
    without, gaps, ties = [], [], []  # rows
    for i in range(len(table)):
        given = _numbers(table, names, i)
        votes = [value or 0.0 for value in given]
        if min(votes) < 0:
            name = names[votes.index(min(votes))]
            raise DataError(
                f"{table.at(i)} has {min(votes):g} votes for {name}, expected 0 or more"
            )
        most = max(votes)
        if not most:
            without.append(i)
            labels.append(None)
            shares.append(None)
            continue
        if None in given:
            gaps.append(i)
        scaled = [value / most for value in votes]
        shares.append(tuple(value / sum(scaled) for value in scaled))
        first = [name for name, value in zip(names, scaled, strict=True) if math.isclose(value, 1)]
        labels.append(first[0] if len(first) == 1 else None)
        if len(first) > 1:
            ties.append(i)
    for rows, what in (
        (without, "without a vote, unlabelled"),
        (gaps, "with empty cells among the votes, which count as 0"),
        (ties, "where several classes have most votes: shares, but no label"),
    ):
        if rows:
            findings.warnings.append(
                f"{plural(len(rows), 'row')} {what}, the first on {table.place(rows[0])}"
            )
    return Labelling(names, labels, shares)


def labelled_by_targets(table: Table, names: tuple[str, ...], findings: Findings) -> Labelling:
    """The numbers of the columns of --targets. A row that lacks one of them is unlabelled; a label
    column is left aside.
    """
    rows: list[tuple[float, ...] | None] = []
    partly = 0
    for i in range(len(table)):
        known = tuple(value for value in _numbers(table, names, i) if value is not None)
        rows.append(known if len(known) == len(names) else None)
        partly += 0 < len(known) < len(names)
    gaps = [i for i, row in enumerate(rows) if row is None]
    if gaps:
        some = f" ({partly:,} of them with some of these)" if partly else ""
        lacking = f"{plural(len(gaps), 'row')} without {' and '.join(names)}{some}"
        findings.warnings.append(f"{lacking}, unlabelled, the first on {table.place(gaps[0])}")
    if "label" in table.data:
        findings.warnings.append("the label column is left aside, as --targets names what to learn")
    return Labelling(names, [None] * len(table), rows)


def _numbers(table: Table, names: Sequence[str], row: int) -> list[float | None]:
    """What a row has in the columns of --targets or --soft-labels."""
    return [number(table, table.data[f"{TARGET}{name}"][row], row, name) for name in names]


# --- labels


def labelled_by_labels(table: Table, given: str | None, task: str, findings: Findings) -> Labelling:
    """The classes, or the values, of the label column."""
    names = given_names("table", given)
    none = [None] * len(table)
    if "label" not in table.data:
        near = other_case("label", table.names) or "NAME"
        findings.warnings.append(
            f"no label column (--column label={shown(near, 40)}): the rows are unlabelled, good "
            "for `mer predict` only"
        )
        return Labelling(names, none, none)
    values = table.data["label"]
    warn_of_gap(table, "label", findings)
    if task == "regression":
        if len(names) > 1:
            raise DataError(
                f"table: --labels {shown(given)}: a regression on one column has one name; several "
                "columns of numbers: --targets"
            )
        numbers = [number(table, value, i, "label") for i, value in enumerate(values)]
        targets = [None if value is None else (value,) for value in numbers]
        return Labelling(names or (table.mapped.get("label", "label"),), none, targets)
    if task == "multi":
        values = _unpacked(table, values, findings)
    parts = [_parts(value, task) for value in values]
    if not names:
        said = (part for row in parts for part in row or ())
        findings.warnings += warn_gap_words(said, "labels")
    names = names or _names_among(parts)
    _check_known(table, parts, names)
    if task == "multi":
        return Labelling(names, none, [_indicators(row, names) for row in parts])
    findings.warnings += _of_another_task([row[0] for row in parts if row])
    return Labelling(names, values, none)


def _unpacked(
    table: Table, values: Sequence[str | list | None], findings: Findings
) -> list[str | list | None]:
    """The cells, with lists in the place of lists as text; an empty one says nothing. How many
    there are is told.
    """
    cells: list[str | list | None] = []
    rows = []
    for i, value in enumerate(values):
        found = _list_in(value) if isinstance(value, str) else None
        cells.append(value if found is None else found or None)
        if found is not None:
            rows.append(i)
    if rows:
        findings.warnings.append(
            f"{plural(len(rows), 'cell')} of label with a list as text, read as its labels, the "
            f"first on {table.place(rows[0])}: {shown(values[rows[0]], 60)}"
        )
    return cells


def _list_in(text: str) -> list[str] | None:
    """The labels of a list that is written as text; None for any other text.

    >>> _list_in("['joy', 'sad']"), _list_in("[joy; sad]"), _list_in("[]"), _list_in("(joy)")
    (['joy', 'sad'], ['joy', 'sad'], [], None)
    """
    found = LIST.fullmatch(strip(text))
    if found is None:
        return None
    inner = next(part for part in found.groups() if part is not None)
    if "'" not in inner and '"' not in inner:
        return _parts(inner, "multi") if found[1] is not None or not strip(inner) else None
    if QUOTED.sub("", inner).strip(", \t\r\n"):
        return None
    return [single or double for single, double in QUOTED.findall(inner)]


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
        many = plural(len(different), "different label")
        yield f"{many}; numbers are meant? then --task regression"
    words = [label for label in different if label not in values]
    several = [label for label in words if len(_parts(label, "multi") or ()) > 1]
    if several:
        yield (
            f"labels such as '{shown(several[0], 60)}' are taken whole; if that is several labels "
            "of one utterance, say --task multi"
        )


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
                    f"{table.at(i)} has label '{shown(part)}'{did_you_mean(part, names)}, which is "
                    f"not among --labels {listed(names).replace(', ', ',')}"
                )


def _indicators(row: list[str] | None, names: tuple[str, ...]) -> tuple[float, ...] | None:
    """1 for each class that a row has, 0 for the others; None where it is unlabelled."""
    return None if row is None else tuple(float(name in row) for name in names)


# --- unimodal labels


def unimodal_labels(
    table: Table,
    columns: Mapping[str, str],
    labelling: Labelling,
    task: str,
    findings: Findings,
) -> list[tuple[str, ...]]:
    """What each modality says by itself, per row; an empty cell says nothing.

    Args:
        table: The table.
        columns: Modality -> column, as --unimodal names them.
        labelling: The common labels, whose classes those of a modality must be among.
        task: What kind of labels they are.
        findings: Told of columns that are empty.

    Returns:
        (N,) the entries of each row, as the manifest holds them.

    Raises:
        DataError: There is no common label, or a cell has no class or number of its kind.
    """
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
            value = _unimodal_value(table, cell, i, column, labelling.names, task) if cell else None
            if value is not None:
                entries.append(entry(modality, value))
        rows.append(tuple(entries))
    return rows


def _unimodal_value(
    table: Table, cell: str, row: int, column: str, names: Sequence[str], task: str
) -> float | str | None:
    """The number or class of a cell; raises DataError for a class that is not among `names`."""
    if task == "regression":
        return number(table, cell, row, column)
    value = _class_of(cell, names)
    if value is None:
        raise DataError(
            f"{table.at(row)} has {column} '{shown(cell)}', which is not among the labels "
            f"{listed(names)}"
        )
    return value


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
