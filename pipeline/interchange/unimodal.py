"""Unimodal labels in MMSA's pickles: `regression_labels_T`, `classification_labels_A` and so on
beside the common ones, as CH-SIMS has them. A number of a class means the class that the common
labels call by it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa

from mer.pipeline.errors import DataError
from mer.pipeline.interchange.ragged import NUMBERS, described
from mer.pipeline.interchange.rows import Rows
from mer.pipeline.runtime.terminal import listed, plural, shown
from mer.pipeline.runtime.terms import targets_of
from mer.pipeline.runtime.unimodal import check_unimodal, entry, label_of

LETTERS = {"T": "text", "A": "audio", "V": "vision"}  # behind a stem: regression_labels_T
STEMS = {"regression": "regression_labels", "single": "classification_labels"}
UNKNOWN_CLASS = -1  # as `mer export` writes it


class Part(Protocol):
    """What is needed of a split: its content by key, and its utterances."""

    name: str
    content: dict

    def __len__(self) -> int: ...


def keys_of(parts: Sequence[Part], task: str) -> dict[str, str]:
    """Modality -> the key of its own labels, where some split has one."""
    if task not in STEMS:
        return {}
    found = {}
    for letter, modality in LETTERS.items():
        key = f"{STEMS[task]}_{letter}"
        if any(key in part.content for part in parts):
            found[modality] = key
    return found


def set_rows(path: Path, parts: Sequence[Part], keys: Mapping[str, str], found: Rows) -> list[str]:
    """Set each row's `unimodal`, where its modalities are labelled.

    Args:
        path: The file, for messages.
        parts: Its splits, whose utterances are the rows one after the other.
        keys: As of `keys_of`.
        found: The table, its common labels set.

    Returns:
        Lines for the user.

    Raises:
        DataError: They are not one number for each utterance, or a class that there is not.
    """
    if not keys or not found.rows:
        return []
    if found.task == "regression" and targets_of(found.task, found.labels) > 1:
        return [f"labels of single modalities left aside: there are {len(found.labels)} targets"]
    entries: list[list[str]] = [[] for _ in found.rows]
    counts = {}
    name_of = _names_of_numbers(parts, found) if found.task == "single" else {}
    for modality, key in keys.items():
        values = _values(path, parts, key)
        known = 0
        for row, value, said in zip(found.rows, values, entries, strict=True):
            if found.task == "single" and value == UNKNOWN_CLASS and value not in name_of:
                value = None
            if value is None:
                continue
            if found.task == "single" and value not in name_of:
                raise DataError(
                    f"{path}: {shown(row['id'], 40)} has {key} {value:g}, a class that no common "
                    f"label is; known: {listed([f'{number:g}' for number in name_of])}"
                )
            said.append(entry(modality, name_of[value] if found.task == "single" else value))
            known += 1
        counts[modality] = known
    for row, said in zip(found.rows, entries, strict=True):
        check_unimodal(str(path), row["id"], said, task=found.task, labels=found.labels)
        if said:
            row["unimodal"] = said
    return list(_notes(counts, keys, len(found.rows)))


def _notes(counts: Mapping[str, int], keys: Mapping[str, str], rows: int) -> Iterator[str]:
    """What was read as unimodal labels, and what is missing of it."""
    parts = []
    for modality, count in counts.items():
        lacking = f" (of {plural(rows - count, 'utterance')} none)" if count < rows else ""
        parts.append(f"{modality} = {keys[modality]}{lacking}")
    yield f"unimodal labels: {', '.join(parts)}"
    absent = [modality for modality in LETTERS.values() if modality not in keys]
    if absent:
        yield f"no unimodal labels of {' and '.join(absent)}"


def _values(path: Path, parts: Sequence[Part], key: str) -> list[float | None]:
    """A number for each utterance of all splits; None where the file has none."""
    numbers: list[float | None] = []
    for part in parts:
        given = part.content.get(key)
        if given is None:
            numbers += [None] * len(part)
            continue
        values = np.asarray(given)
        if values.size != len(part) or (values.size and values.dtype.kind not in NUMBERS):
            raise DataError(
                f"{path}: {part.name}: {key} should be a number for each of "
                f"{plural(len(part), 'utterance')}, is {described(given)}"
            )
        # by their shortest text, which is what was rated: -0.4 and not -0.4000000059604645
        for value in (float(str(item)) for item in values.reshape(-1)):
            if np.isinf(value):
                raise DataError(f"{path}: {part.name}: {key} has a number that is not finite")
            numbers.append(None if np.isnan(value) else value)
    return numbers


def _names_of_numbers(parts: Sequence[Part], found: Rows) -> dict[float, str]:
    """Number -> the class that common labels call by it; where these are no numbers, or some
    numbers are not met among them, by the order of the classes.
    """
    name_of = {float(number): name for number, name in enumerate(found.labels)}
    at = 0
    met: dict[float, str] = {}
    for part in parts:
        rows = found.rows[at : at + len(part)]
        at += len(part)
        numbers = np.asarray(part.content.get(STEMS["single"], ()))
        if numbers.dtype.kind not in NUMBERS or numbers.size != len(part):
            continue
        for row, number in zip(rows, numbers.reshape(-1).astype(float).tolist(), strict=True):
            if row["label"] is not None:
                met[number] = row["label"]
    return name_of if met.items() <= name_of.items() else met


def written(table: pa.Table, task: str, labels: Sequence[str]) -> dict[str, np.ndarray]:
    """The unimodal labels of a table by their keys; nothing where it has none."""
    if "unimodal" not in table.column_names or task not in STEMS:
        return {}
    rows = [dict(map(label_of, entries)) for entries in table["unimodal"].to_pylist()]
    number_of = {name: number for number, name in enumerate(labels)}
    content = {}
    for letter, modality in LETTERS.items():
        labels_of = [row.get(modality) for row in rows]
        if not any(value is not None for value in labels_of):
            continue
        key = f"{STEMS[task]}_{letter}"
        if task == "single":
            numbers = [UNKNOWN_CLASS if value is None else number_of[value] for value in labels_of]
            content[key] = np.array(numbers, np.int64)
        else:
            values = [np.nan if value is None else float(value) for value in labels_of]
            content[key] = np.array(values, np.float32)
    return content
