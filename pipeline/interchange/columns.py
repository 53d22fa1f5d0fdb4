"""The table of a foreign file: which of its columns is what, and labels, splits and targets in the
store's terms."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from dataclasses import field as field_
from pathlib import Path

import numpy as np

from mer.pipeline.errors import DataError
from mer.pipeline.interchange.write import Options
from mer.pipeline.runtime.cells import name_cell, strip, text_cell, warn_near_duplicates
from mer.pipeline.runtime.limits import IMPORT_ROWS
from mer.pipeline.runtime.terminal import listed as some
from mer.pipeline.runtime.terminal import shown
from mer.pipeline.runtime.terms import SPLIT_ALIASES
from mer.pipeline.store import Header

# field of the store -> names it goes by elsewhere, in order of preference
FIELDS = {
    "id": ("id", "ids", "key", "name", "file", "filename"),
    "split": ("split", "partition", "subset"),
    "label": ("label", "labels", "emotion", "annotation", "sentiment"),
    "targets": ("targets", "target", "label_reg", "regression_labels", "valence"),
    "text": ("transcript", "raw_text", "sentence", "text"),
    "speaker": ("speaker", "speaker_id", "spk"),
    "dialogue": ("dialogue", "dialogue_id", "video_id", "conversation"),
    "session": ("session",),
    "position": ("position", "segment"),
    "duration": ("duration",),
    "tags": ("tags",),
}
MODALITIES = {
    "audio": ("audio", "speech", "acoustic"),
    "text": ("text", "language"),
    "vision": ("vision", "video", "visual"),
}
SPLIT_NAMES = SPLIT_ALIASES | {
    "trn": "train",
    "devel": "dev",
    "tst": "test",
    "eval": "test",
    "none": "",
}
# A number of a class, as text: a csv of pandas has 1.0 where some cells are empty.
WHOLE = r"[-+]?\d{1,9}(\.0{1,9})?"
MANY_NAMES = 40  # of what was left aside, in one line
MANY_CLASSES = 10_000  # numbers above are no classes


def find_columns(path: Path, names: Sequence[str], options: Options) -> dict[str, str]:
    """field -> name in the file: what the user named, else the usual names that are there."""
    for field, name in options.columns.items():
        if field not in FIELDS:
            raise DataError(
                f"--column {field}={name}: no such field; fields are {', '.join(FIELDS)}"
            )
        if name not in names:
            raise DataError(
                f"{path}: no column '{shown(name, 40)}' for {field}; it has {some(names)}"
            )
    found = {field: next((n for n in usual if n in names), None) for field, usual in FIELDS.items()}
    found = {field: name for field, name in found.items() if name is not None} | dict(
        options.columns
    )
    if "id" not in found:
        raise DataError(
            f"{path}: no column that names the utterances; say which with --column id=NAME (it has "
            f"{some(names)})"
        )
    return found


def find_features(
    path: Path, names: Sequence[str], options: Options, header: Header | None = None
) -> dict[str, str]:
    """modality -> name in the file: the user's, else those of the exported header, else the usual
    names; audio, text, vision first."""
    for modality, name in options.features.items():
        if name not in names:
            raise DataError(
                f"{path}: no features '{shown(name, 40)}' for {modality}; it has "
                f"{some(names) or 'none'}"
            )
    wanted = {m: (m,) for m in header.modalities} if header else MODALITIES
    usual = {
        m: next((n for name in known for n in (name, f"{name}_features") if n in names), None)
        for m, known in wanted.items()
    }
    found = dict(options.features) or {m: n for m, n in usual.items() if n is not None}
    if not found:
        raise DataError(
            f"{path}: no features found; name them with --feature audio=NAME (it has "
            f"{some(names) or 'none'})"
        )
    return {m: found[m] for m in [*MODALITIES, *found] if m in found}


def account(
    names: Mapping[str, str], features: Mapping[str, str], task: str, there: Mapping[str, str]
) -> str:
    """One line for the user: which column and which features became what, and what of the file
    (`there`: name -> what it is) was left aside."""
    aside = {"targets"} if task == "single" else {"label"} if "targets" in names else set()
    used = {f"{field} = {name}": name for field, name in names.items() if field not in aside}
    used |= {f"{m} features = {name}": name for m, name in features.items()}
    rest = {name: said for name, said in there.items() if name not in used.values()}
    return ", ".join(used) + (f"; not used: {aside_line(rest)}" if rest else "")


def aside_line(there: Mapping[str, str]) -> str:
    """What was left aside: every name with what it is, up to a number that can be read."""
    said = [f"{shown(name, 40)} {what}".strip() for name, what in there.items()]
    more = f" and {len(said) - MANY_NAMES:,} more" if len(said) > MANY_NAMES else ""
    return ", ".join(said[:MANY_NAMES]) + more


@dataclass
class Rows:
    """A file's table in the store's terms."""

    task: str
    labels: tuple[str, ...]
    rows: list[dict]
    notes: list[str] = field_(default_factory=list)


def interpret(
    path: Path, columns: Mapping[str, Sequence], options: Options, header: Header | None = None
) -> Rows:
    """Task, labels and rows from columns by field. The user's word goes before the exported header,
    that before a guess."""
    n = len(columns["id"])
    if n > IMPORT_ROWS:
        raise DataError(f"{path}: {n:,} utterances, more than {IMPORT_ROWS:,}; import it in parts")
    for name, values in columns.items():
        if len(values) != n:
            raise DataError(f"{path}: {name} has {len(values)} values for {n} utterances")
    guess = "regression" if "targets" in columns and "label" not in columns else "single"
    task = options.task or (header.task if header else guess)
    if task not in ("single", "multi", "regression"):
        raise DataError(f"--task {task}: not one of single, multi, regression")
    names = tuple(options.labels) or (header.labels if header and header.task == task else ())
    rows = [
        {"id": cell(path, f"row {i + 1}", "id", value, name_cell)}
        for i, value in enumerate(columns["id"])
    ]
    for i, row in enumerate(rows):
        if row["id"] is None:
            raise DataError(f"{path}: row {i + 1} has an empty id; every utterance needs one")

    double = next(
        (id for id, times in Counter(row["id"] for row in rows).items() if times > 1), None
    )
    if double is not None:
        raise DataError(f"{path}: id '{shown(double, 40)}' twice; ids must be unique")

    def cells(name: str, kind: Callable = name_cell) -> Iterator[tuple[dict, str | None]]:
        for row, value in zip(rows, columns.get(name, [None] * n), strict=True):
            yield row, cell(path, row["id"], name, value, kind)

    for row, split in cells("split"):
        given = (split or "").lower()
        if given not in SPLIT_NAMES:
            known = ", ".join(filter(None, SPLIT_NAMES))
            raise DataError(
                f"{path}: {shown(row['id'], 40)} has split '{shown(given, 40)}'; known names are "
                f"{known}"
            )
        row["split"] = SPLIT_NAMES[given]
    notes: list[str] = []
    for name, kind in (
        ("text", text_cell),
        ("speaker", name_cell),
        ("dialogue", name_cell),
        ("session", name_cell),
    ):
        for row, value in cells(name, kind):
            row[name] = value
        if name != "text":
            notes += warn_near_duplicates((row[name] for row in rows), f"{name}s")
    for row, value in zip(rows, columns.get("tags", ()), strict=False):
        tags = [cell(path, row["id"], "tags", tag, name_cell) for tag in listed(path, value)]
        row["tags"] = [tag for tag in tags if tag is not None]
    for name, kind in (("position", int), ("duration", float)):
        for row, value in zip(rows, columns.get(name, ()), strict=False):
            if text_cell_or_none(value) is not None:
                row[name] = number(path, row["id"], name, value, kind)
    if task == "single":
        given = [value for _, value in cells("label")]
        spelled = all(isinstance(v, str | bytes | None) for v in columns.get("label", ()))
        names = _classes(path, rows, given, names, options.unlabelled, spelled, notes)
    else:
        names = _targets(path, rows, columns, task, names, notes)
    key = "label" if task == "single" else "targets"
    unlabelled = sum(row[key] is None for row in rows)
    if unlabelled:
        notes.append(f"unlabelled: {unlabelled:,} of {n:,} utterances")
    return Rows(task, names, rows, notes)


def _targets(
    path: Path,
    rows: list[dict],
    columns: Mapping[str, Sequence],
    task: str,
    names: tuple[str, ...],
    notes: list[str],
) -> tuple[str, ...]:
    """Set each row's targets, null where there are none; returns the names of the labels."""
    source = columns.get("targets", columns.get("label"))
    if source is None:
        raise DataError(
            f"{path}: a {task} task needs targets; say where they are with --column targets=NAME"
        )
    for row, value in zip(rows, source, strict=True):
        values = [number(path, row["id"], "targets", v, float) for v in listed(path, value)]
        row["targets"] = None if not values or all(math.isnan(v) for v in values) else values
    given = [row["targets"] for row in rows if row["targets"]]
    for row in rows:
        if row["targets"] and any(math.isnan(v) for v in row["targets"]):
            raise DataError(
                f"{path}: {shown(row['id'], 40)} has targets of which some are missing; give all "
                "of them, or none"
            )
    width = max(map(len, given), default=1)
    if task == "regression":
        if width != 1:
            raise DataError(
                f"{path}: targets have {width} values each; a regression task has one, a multi "
                "task one per label"
            )
        if given:
            notes.append(f"targets from {min(map(min, given)):g} to {max(map(max, given)):g}")
        return names or ("sentiment",)
    uneven = next(
        (row for row in rows if row["targets"] and len(row["targets"]) != (len(names) or width)),
        None,
    )
    if uneven is not None:
        found = f"{shown(uneven['id'], 40)} has {len(uneven['targets'])} targets"
        raise DataError(f"{path}: {found}, expected {len(names) or width}: one per label")
    if any(
        0 in values for values in given
    ):  # beside 0 and 1, nothing but -1 means that nobody has said
        for row in rows:
            if row["targets"] and all(v == -1 for v in row["targets"]):
                row["targets"] = None
    for row in rows:
        wrong = next((v for v in row["targets"] or () if not 0 <= v <= 1), None)
        if wrong is not None:
            raise DataError(
                f"{path}: {shown(row['id'], 40)} has target {wrong:g}; a multi task takes 0 or 1 "
                "for each label"
            )
    return names or tuple(f"label{i}" for i in range(width))


def _classes(
    path: Path,
    rows: list[dict],
    values: list[str | None],
    names: tuple[str, ...],
    unlabelled: str | None,
    spelled: bool,
    notes: list[str],
) -> tuple[str, ...]:
    """Set each row's label; returns the names of the classes.

    Whole numbers, `spelled` as text or not, count through `names` from 0. -1 beside non-negative
    numbers means unlabelled where it cannot be a class; other negative numbers are classes, in the
    order of the numbers, or an error. `unlabelled` is the user's word for "no label", or "none"
    where every label is a class.
    """
    if unlabelled not in (None, "none"):
        nothing = {unlabelled} | (
            {str(int(float(unlabelled)))} if re.fullmatch(WHOLE, unlabelled) else set()
        )
        values = [None if v is None or v in nothing or _whole(v) in nothing else v for v in values]
    texts = {v for v in values if v is not None}
    notes += warn_near_duplicates([*texts, *names])
    if not texts <= set(names) and texts and all(re.fullmatch(WHOLE, v) for v in texts):
        numbers = [None if v is None else int(_whole(v)) for v in values]
        there = {v for v in numbers if v is not None}
        order = _order_of_numbers(path, there, names, unlabelled)
        if spelled and not names:
            order = [
                v for v in order if v in there
            ]  # a word that is a number is a word: no class between two of them
        names = names or tuple(str(v) for v in order)
        name_of = dict(zip(order, names, strict=False))
        if min(there) < 0:
            classes = ", ".join(f"{v} = {name_of[v]}" for v in order if v in there)
            notes.append(
                f"labels are numbers: {classes}"
                + ("; -1 = unlabelled" if -1 not in name_of and -1 in there else "")
            )
        for row, v in zip(rows, numbers, strict=True):
            row["label"] = name_of.get(v)
        idle = [name for v, name in name_of.items() if v not in there]
        if idle:
            notes.append(f"no utterance has label {some(idle)}")
        return names
    if names and texts - set(names):
        raise DataError(
            f"{path}: label '{shown(min(texts - set(names)), 40)}' is not among {some(names)}"
        )
    if not names and texts and all(_fraction(v) for v in texts):
        raise DataError(f"{path}: labels are not whole numbers; import them with --task regression")
    if len(texts) > MANY_CLASSES:
        raise DataError(f"{path}: {len(texts):,} different labels; these are not classes")
    for row, value in zip(rows, values, strict=True):
        row["label"] = value
    return names or tuple(sorted(texts))


def _order_of_numbers(
    path: Path, there: set[int], names: tuple[str, ...], unlabelled: str | None
) -> list[int]:
    """The numbers of the classes in order, which may be more than are there; DataError when it
    cannot be told what they mean."""
    low, high = min(there), max(there)
    if high >= MANY_CLASSES or low <= -MANY_CLASSES:
        raise DataError(f"{path}: labels go from {low} to {high}; these are not classes")
    if low >= 0 or (
        high >= 0
        and low == -1
        and -2 not in there
        and unlabelled is None
        and _none_fits(there, names)
    ):
        if names and high >= len(names):
            raise DataError(
                f"{path}: labels go up to {high}, --labels names {len(names)} (the first is 0)"
            )
        return list(range(len(names) or high + 1))
    order, every = sorted(there), set(range(low, high + 1))
    in_a_row = len(there) > 1 and there in (every, every - {0})
    sure = unlabelled is not None or low < -1  # that the negative ones are classes
    if names and len(names) == len(there) and in_a_row and (sure or there == {-1, 0, 1}):
        return order
    if not names and in_a_row and (sure or there in ({-1, 1}, {-1, 0})):
        return order
    what = f"{len(names)} names of --labels do not say which" if names else "nothing says which"
    raise DataError(
        f"{path}: labels are the numbers {some(order)}, where {low} may be a class or mean none, "
        f"and {what}; give --labels a name for each "
        "class, and --unlabelled=-1 if -1 means none or --unlabelled=none if every number is a "
        "class"
    )


def _none_fits(there: set[int], names: tuple[str, ...]) -> bool:
    """Whether -1 can only mean "none": with it the classes are more than the names. Without names,
    where 0, 1 and 2 are not -1, 0 and 1."""
    if names:
        return max(there) >= len(names) - 1 and there != {-1, 1}
    return 0 in there and max(there) >= 2


def _whole(text: str) -> str | None:
    return str(int(float(text))) if re.fullmatch(WHOLE, text) else None


def _fraction(text: str) -> bool:
    try:
        return text.lower() not in ("nan", "inf", "-inf", "infinity") and math.isfinite(float(text))
    except ValueError:
        return False


def cell(path: Path, where: str, name: str, value, kind: Callable):
    """`kind(value)`, with the place in its complaint."""
    try:
        return kind(value)
    except DataError as error:
        raise DataError(f"{path}: {shown(where, 40)}: {name} {error}") from None


def text_cell_or_none(value) -> str | None:
    """Text of a cell that should be a number; what is no cell at all is left to `number`."""
    try:
        return text_cell(value)
    except DataError:
        return type(value).__name__


def listed(path: Path, value) -> list:
    """A cell of several values: a sequence as it is, JSON text, or one value."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if value is None or (isinstance(value, str) and not strip(value)):
        return []
    if isinstance(value, str) and strip(value)[0] == "[":
        try:
            return list(json.loads(value))
        except (ValueError, RecursionError):
            raise DataError(f"{path}: '{shown(value, 40)}' is not a JSON list") from None
    several = isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and value.ndim > 0)
    return list(value) if several else [value]


def number(path: Path, id: str, name: str, value, kind: type):
    """`kind(value)`: a finite number, or NaN for a missing float."""
    spelled = text_cell_or_none(value)
    try:
        if spelled is None and kind is float:
            return math.nan
        if isinstance(value, bool | np.bool_) and kind is not float or "_" in (spelled or ""):
            raise ValueError
        found = float(spelled)
        if math.isinf(found) or (kind is int and (found != int(found) or abs(found) >= 2**31)):
            raise ValueError
        return kind(found)
    except (TypeError, ValueError, OverflowError):
        what = "a whole number" if kind is int else "a number"
        raise DataError(
            f"{path}: {shown(id, 40)}: {name} is '{shown(spelled, 40)}', not {what}"
        ) from None
