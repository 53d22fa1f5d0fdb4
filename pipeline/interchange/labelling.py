"""Labels and targets of a foreign table in the store's terms: which numbers are classes, which of
them mean that nobody has said, and which targets belong to which label.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from mer.pipeline.errors import DataError
from mer.pipeline.interchange.values import listed_values, number, spelled_number
from mer.pipeline.runtime.cells import warn_gap_words, warn_near_duplicates
from mer.pipeline.runtime.terminal import did_you_mean, listed, plural, shown

# A number of a class, as text: a csv of pandas has 1.0 where some cells are empty.
WHOLE = r"[-+]?\d{1,9}(\.0{1,9})?"
MANY_CLASSES = 10_000  # numbers above are no classes
FAR_FROM_CLASSES = -9  # a number below is somebody's word for "none", such as -99
EVERY_LABEL = "none"  # of --unlabelled: every label is a class
NO_LABEL = -1  # what many files write beside the numbers of classes where there is no label


class _Nothing:
    """The user's word for a label that is none, and whether it was met; without one, and for
    "none", nothing is.
    """

    def __init__(self, word: str | None) -> None:
        self._word = None if word in (None, EVERY_LABEL) else word
        self._number = _as_number(self._word)
        self._met = False

    def is_meant(self, value: str | None) -> bool:
        """Whether a label is that word, or another spelling of the same number."""
        if self._word is None or value is None:
            return False
        same = self._number is not None and _as_number(value) == self._number
        if value == self._word or same:
            self._met = True
            return True
        return False

    def notes(self) -> list[str]:
        """A line where there was such a word, and no label was it."""
        if self._word is None or self._met:
            return []
        return [f"no utterance has '{shown(self._word, 40)}', which --unlabelled names"]


def _as_number(text: str | None) -> float | None:
    return float(text) if text is not None and _is_finite_number(text) else None


# --- targets


def set_targets(
    path: Path,
    rows: list[dict],
    columns: Mapping[str, Sequence],
    task: str,
    names: tuple[str, ...],
    unlabelled: str | None,
    notes: list[str],
) -> tuple[str, ...]:
    """Set each row's `targets`, None where there are none.

    Args:
        path: The file, for messages.
        rows: The utterances, with their ids.
        columns: The table by field; targets are in `targets`, else in `label`.
        task: multi or regression.
        names: Names of the labels that the user or the exported header gave, or ().
        unlabelled: The user's word for "no target", or "none".
        notes: Lines for the user are added to these.

    Returns:
        The names of the labels.

    Raises:
        DataError: There are no targets, or they do not fit the task.
    """
    source = columns.get("targets", columns.get("label"))
    if source is None:
        raise DataError(
            f"{path}: a {task} task needs targets; say where they are with --column targets=NAME"
        )
    nothing = _Nothing(unlabelled)
    for row, value in zip(rows, source, strict=True):
        row["targets"] = _targets_of(path, row["id"], value, nothing)
    notes += nothing.notes()
    given = [row for row in rows if row["targets"]]
    for row in given:
        if any(map(math.isnan, row["targets"])):
            raise DataError(
                f"{path}: {shown(row['id'], 40)} has targets of which some are missing; give all "
                "of them, or none"
            )
    if task == "regression":
        return _check_targets(path, given, names, notes)
    return _check_target_per_label(path, given, names)


def _targets_of(path: Path, row_id: str, value: object, nothing: _Nothing) -> list[float] | None:
    values = []
    for one in listed_values(path, value):
        said = None if nothing.is_meant(spelled_number(one)) else one
        values.append(number(path, row_id, "targets", said, float))
    return None if all(map(math.isnan, values)) else values


def _check_targets(
    path: Path, given: list[dict], names: tuple[str, ...], notes: list[str]
) -> tuple[str, ...]:
    """The names of one target, or of several that --labels or an exported header names."""
    width = len(names) or 1
    widths = {len(row["targets"]) for row in given}
    if len(widths) == 1 and not names and width not in widths:
        raise DataError(
            f"{path}: targets have {widths.pop()} values each; name each of them with --labels "
            "(valence,arousal)"
        )
    for row in given:
        if len(row["targets"]) != width:
            found = f"{shown(row['id'], 40)} has {plural(len(row['targets']), 'target')}"
            raise DataError(f"{path}: {found}, expected {width}")
    for place, name in enumerate(names or ("targets",)):
        values = [row["targets"][place] for row in given]
        if values:
            notes.append(f"{shown(name, 40)} from {min(values):g} to {max(values):g}")
    return names or ("sentiment",)


def _check_target_per_label(
    path: Path, given: list[dict], names: tuple[str, ...]
) -> tuple[str, ...]:
    width = len(names) or max((len(row["targets"]) for row in given), default=1)
    for row in given:
        if len(row["targets"]) != width:
            found = f"{shown(row['id'], 40)} has {len(row['targets'])} targets"
            raise DataError(f"{path}: {found}, expected {width}: one per label")
    _unset_unlabelled(given)
    for row in given:
        wrong = next((value for value in row["targets"] or () if not 0 <= value <= 1), None)
        if wrong is not None:
            raise DataError(
                f"{path}: {shown(row['id'], 40)} has target {wrong:g}; a multi task takes 0 or 1 "
                "for each label"
            )
    return names or tuple(f"label{i}" for i in range(width))


def _unset_unlabelled(given: list[dict]) -> None:
    """Beside 0 and 1, targets that are all -1 mean that nobody has said."""
    if any(0 in row["targets"] for row in given):
        for row in given:
            if set(row["targets"]) == {NO_LABEL}:
                row["targets"] = None


# --- classes


def set_classes(
    path: Path,
    rows: list[dict],
    values: Sequence[str | None],
    names: tuple[str, ...],
    unlabelled: str | None,
    spelled: bool,
    notes: list[str],
) -> tuple[str, ...]:
    """Set each row's `label`, None where there is none.

    Whole numbers, spelled as text or not, count through `names` from 0. -1 beside non-negative
    numbers means unlabelled where it cannot be a class; other negative numbers are classes, in the
    order of the numbers, or an error.

    Args:
        path: The file, for messages.
        rows: The utterances.
        values: (N,) their labels as text.
        names: Names of the classes that the user or the exported header gave, or ().
        unlabelled: The user's word for "no label", or "none" where every label is a class.
        spelled: Whether the file has the labels as text, not as numbers.
        notes: Lines for the user are added to these.

    Returns:
        The names of the classes.

    Raises:
        DataError: A label is not among `names`, or it cannot be told what the numbers mean.
    """
    nothing = _Nothing(unlabelled)
    values = [None if nothing.is_meant(given) else given for given in values]
    notes += nothing.notes()
    texts = {value for value in values if value is not None}
    if unlabelled is None:
        others = (value for value in values if value not in names)
        notes += warn_gap_words(others, "labels", "say --unlabelled='WORD'")
    notes += warn_near_duplicates([*texts, *names])
    if texts and not texts <= set(names) and all(re.fullmatch(WHOLE, text) for text in texts):
        return _set_numbered(path, rows, values, names, unlabelled, spelled, notes)
    _check_words(path, texts, names)
    for row, value in zip(rows, values, strict=True):
        row["label"] = value
    return names or tuple(sorted(texts))


def whole_number(text: str | None) -> int | None:
    """The number of a class, None for any other text."""
    return int(float(text)) if text is not None and re.fullmatch(WHOLE, text) else None


def _check_words(path: Path, texts: set[str], names: tuple[str, ...]) -> None:
    if names and texts - set(names):
        odd = min(texts - set(names))
        raise DataError(
            f"{path}: label '{shown(odd, 40)}' is not among {listed(names)}"
            f"{did_you_mean(odd, names)}"
        )
    if not names and texts and all(map(_is_finite_number, texts)):
        raise DataError(f"{path}: labels are not whole numbers; import them with --task regression")
    if len(texts) > MANY_CLASSES:
        raise DataError(f"{path}: {len(texts):,} different labels; these are not classes")


def _is_finite_number(text: str) -> bool:
    try:
        return text.lower() not in ("nan", "inf", "-inf", "infinity") and math.isfinite(float(text))
    except ValueError:
        return False


def _set_numbered(
    path: Path,
    rows: list[dict],
    values: Sequence[str | None],
    names: tuple[str, ...],
    unlabelled: str | None,
    spelled: bool,
    notes: list[str],
) -> tuple[str, ...]:
    """`set_classes` for labels that are all whole numbers."""
    numbers = [whole_number(value) for value in values]
    there = {value for value in numbers if value is not None}
    order = _order_of_numbers(path, there, names, unlabelled)
    if spelled and not names:
        # A word that is a number is a word: there is no class between two of them.
        order = [value for value in order if value in there]
    names = names or tuple(map(str, order))
    name_of: dict[int | None, str] = dict(zip(order, names, strict=False))
    for row, value in zip(rows, numbers, strict=True):
        row["label"] = name_of.get(value)
    notes += _told_numbers(name_of, there)
    return names


def _told_numbers(name_of: Mapping[int | None, str], there: set[int]) -> list[str]:
    """Lines on what the numbers were taken for, where that was a choice, and on classes that no
    utterance has.
    """
    notes = []
    if min(there) < 0:
        classes = ", ".join(f"{value} = {name_of[value]}" for value in name_of if value in there)
        none = "; -1 = unlabelled" if NO_LABEL in there and NO_LABEL not in name_of else ""
        notes.append(f"labels are numbers: {classes}{none}")
    idle = [name for value, name in name_of.items() if value not in there]
    if idle:
        notes.append(f"no utterance has label {listed(idle)}")
    return notes


def _order_of_numbers(
    path: Path, there: set[int], names: tuple[str, ...], unlabelled: str | None
) -> list[int]:
    """The numbers of the classes in order, which may be more than are there; DataError when it
    cannot be told what they mean.
    """
    low, high = min(there), max(there)
    if high >= MANY_CLASSES or low <= -MANY_CLASSES:
        raise DataError(f"{path}: labels go from {low} to {high}; these are not classes")
    if low >= 0 or _minus_one_is_none(there, names, unlabelled):
        if names and high >= len(names):
            raise DataError(
                f"{path}: labels go up to {high}, --labels names {len(names)} (the first is 0)"
            )
        return list(range(len(names) or high + 1))
    if _negative_ones_are_classes(there, names, unlabelled):
        return sorted(there)
    none = low if low < FAR_FROM_CLASSES else NO_LABEL
    what = (
        f"{plural(len(names), 'name')} in --labels cannot say which"
        if names
        else "nothing says which"
    )
    raise DataError(
        f"{path}: labels are the numbers {listed(sorted(there))}, where {low} may be a class or "
        f"mean none, and {what}; give --labels a name for each class, and --unlabelled={none} if "
        f"{none} means none or --unlabelled=none if every number is a class"
    )


def _minus_one_is_none(there: set[int], names: tuple[str, ...], unlabelled: str | None) -> bool:
    """Whether -1 can only mean "none": with it the classes are more than the names. Without names,
    where 0, 1 and 2 are not -1, 0 and 1.
    """
    high = max(there)
    if min(there) != NO_LABEL or high < 0 or unlabelled is not None:
        return False
    if names:
        return high >= len(names) - 1 and there != {-1, 1}
    return 0 in there and high >= 2


def _negative_ones_are_classes(
    there: set[int], names: tuple[str, ...], unlabelled: str | None
) -> bool:
    """Whether negative numbers are classes like the others: the numbers follow one another (0 may
    be left out), and nothing but -1 could mean "none", or the user has said what does.
    """
    low, high = min(there), max(there)
    every = set(range(low, high + 1))
    if len(there) < 2 or there not in (every, every - {0}):
        return False
    sure = unlabelled is not None or low < NO_LABEL
    if names:
        return len(names) == len(there) and (sure or there == {-1, 0, 1})
    return sure or there in ({-1, 1}, {-1, 0})
