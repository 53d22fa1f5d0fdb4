"""The table of a foreign file: which of its columns is what, and labels, splits and targets in the
store's terms.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from mer.pipeline.errors import DataError
from mer.pipeline.interchange.write import Options
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
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "trn": "train",
    "dev": "dev",
    "valid": "dev",
    "val": "dev",
    "validation": "dev",
    "devel": "dev",
    "development": "dev",
    "test": "test",
    "testing": "test",
    "tst": "test",
    "eval": "test",
    "": "",
    "none": "",
}


def find_columns(path: Path, names: Sequence[str], options: Options) -> dict[str, str]:
    """field -> name in the file: what the user named, else the usual names that are there."""
    for field, name in options.columns.items():
        if field not in FIELDS:
            raise DataError(
                f"--column {field}={name}: no such field; fields are {', '.join(FIELDS)}"
            )
        if name not in names:
            raise DataError(f"{path}: no column '{name}' for {field}; it has {', '.join(names)}")
    found = {field: next((n for n in usual if n in names), None) for field, usual in FIELDS.items()}
    found = {field: name for field, name in found.items() if name is not None} | dict(
        options.columns
    )
    if "id" not in found:
        raise DataError(
            f"{path}: no column that names the utterances; say which with --column id=NAME (it "
            f"has {', '.join(names)})"
        )
    return found


def find_features(
    path: Path, names: Sequence[str], options: Options, header: Header | None = None
) -> dict[str, str]:
    """modality -> name in the file: the user's, else those of the exported header, else the usual
    names; audio, text, vision first.
    """
    for modality, name in options.features.items():
        if name not in names:
            raise DataError(
                f"{path}: no features '{name}' for {modality}; it has {', '.join(names) or 'none'}"
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
            f"{', '.join(names) or 'none'})"
        )
    return {m: found[m] for m in [*MODALITIES, *found] if m in found}


def account(
    names: Mapping[str, str], features: Mapping[str, str], task: str, there: Sequence[str]
) -> str:
    """One line for the user: which column and which features became what, and what of the file was
    left aside.
    """
    aside = {"targets"} if task == "single" else {"label"} if "targets" in names else set()
    used = {f"{field} = {name}": name for field, name in names.items() if field not in aside}
    used |= {f"{m} features = {name}": name for m, name in features.items()}
    rest = [name for name in there if name not in used.values()]
    return ", ".join(used) + (f"; not used: {', '.join(rest)}" if rest else "")


def interpret(
    path: Path, columns: Mapping[str, Sequence], options: Options, header: Header | None = None
) -> tuple[str, tuple[str, ...], list[dict]]:
    """(task, labels, rows) from columns by field.

    The user's word goes before the exported header, that before a guess.
    """
    n = len(columns["id"])
    for field, values in columns.items():
        if len(values) != n:
            raise DataError(f"{path}: {field} has {len(values)} values for {n} utterances")
    guess = "regression" if "targets" in columns and "label" not in columns else "single"
    task = options.task or (header.task if header else guess)
    if task not in ("single", "multi", "regression"):
        raise DataError(f"--task {task}: not one of single, multi, regression")
    names = tuple(options.labels) or (header.labels if header and header.task == task else ())
    rows = [{"id": plain(v)} for v in columns["id"]]
    for row, split in zip(rows, columns.get("split", [""] * n), strict=True):
        given = plain(split).strip().lower()
        if given not in SPLIT_NAMES:
            raise DataError(
                f"{path}: {row['id']} has split '{given}'; known names are "
                f"{', '.join(filter(None, SPLIT_NAMES))}"
            )
        row["split"] = SPLIT_NAMES[given]

    def cells(field: str):
        return zip(rows, columns[field], strict=True) if field in columns else ()

    for field in ("text", "speaker", "dialogue", "session"):
        for row, value in cells(field):
            row[field] = plain(value) or None
    for row, value in cells("tags"):
        row["tags"] = [str(t) for t in listed(path, value)]
    for field, kind in (("position", int), ("duration", float)):
        for row, value in cells(field):
            if plain(value) != "":
                row[field] = number(path, row["id"], field, value, kind)
    if task == "single":
        names = _classes(path, rows, columns.get("label", [None] * n), names)
    else:
        source = columns.get("targets", columns.get("label"))
        if source is None:
            raise DataError(
                f"{path}: a {task} task needs targets; say where they are with --column "
                "targets=NAME"
            )
        for row, value in zip(rows, source, strict=True):
            values = [number(path, row["id"], "targets", v, float) for v in listed(path, value)]
            row["targets"] = None if not values or all(math.isnan(v) for v in values) else values
        width = max((len(r["targets"]) for r in rows if r["targets"]), default=1)
        names = names or (
            ("sentiment",) if task == "regression" else tuple(f"label{i}" for i in range(width))
        )
    return task, names, rows


def _classes(
    path: Path, rows: list[dict], given: Sequence, names: tuple[str, ...]
) -> tuple[str, ...]:
    """Set each row's label; returns the names of the classes.

    Numbers count through `names`; -1 and nothing mean unlabelled.
    """
    values = [None if v is None or v != v or v == "" else v for v in given]
    texts = {plain(v) for v in values} - {""}
    whole = all(re.fullmatch(r"-?\d{1,9}", t) for t in texts)
    if names and whole and not texts <= set(names):
        values = [None if v is None else int(v) for v in values]  # a csv has numbers as text
    if all(isinstance(v, int | float | None) for v in values):
        if any(v is not None and (not math.isfinite(v) or v != int(v)) for v in values):
            raise DataError(
                f"{path}: labels are not whole numbers; import them with --task regression"
            )
        count = int(max((v for v in values if v is not None), default=-1)) + 1
        if names and count > len(names):
            raise DataError(f"{path}: labels go up to {count - 1}, --labels names {len(names)}")
        if count > 10_000:
            raise DataError(f"{path}: labels go up to {count - 1}; these are not classes")
        names = names or tuple(str(i) for i in range(count))
        for row, v in zip(rows, values, strict=True):
            row["label"] = None if v is None or v < 0 else names[int(v)]
        return names
    for row, value in zip(rows, values, strict=True):
        row["label"] = plain(value) or None
    if names and texts - set(names):
        raise DataError(
            f"{path}: label '{min(texts - set(names))}' is not among {', '.join(names)}"
        )
    return names or tuple(sorted(texts, key=int if whole else str))


def plain(value) -> str:
    """Text of a cell: bytes decoded, numbers spelled, nothing as ''."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return str(value)


def listed(path: Path, value) -> list:
    """A cell of several values: a sequence as it is, JSON text, or one value."""
    if value is None or (isinstance(value, str) and not value):
        return []
    if isinstance(value, str) and value[0] == "[":
        try:
            return list(json.loads(value))
        except (ValueError, RecursionError):
            raise DataError(f"{path}: '{value[:40]}' is not a JSON list") from None
    return (
        list(value) if isinstance(value, list | tuple | np.ndarray) and np.ndim(value) else [value]
    )


def number(path: Path, id: str, field: str, value, kind: type):
    try:
        return kind(value)
    except (TypeError, ValueError, OverflowError):
        raise DataError(f"{path}: {id}: {field} is '{plain(value)[:40]}', not a number") from None
