"""The words that manifests, stores, imports and exports share: tasks, splits, what a row may say of
itself, and what such a file calls itself.
"""

from __future__ import annotations

from collections.abc import Sequence

from mer.pipeline.errors import DataError
from mer.pipeline.runtime.terminal import did_you_mean, listed, shown

MANIFEST_FORMAT = "mer-manifest"
STORE_FORMAT = "mer-feats"
TASKS = ("single", "multi", "regression")
# "": decided at training, by fold or group
SPLITS = ("train", "dev", "test", "")
# what corpora, tables and foreign formats call the splits
SPLIT_ALIASES = {
    "train": "train",
    "training": "train",
    "dev": "dev",
    "development": "dev",
    "valid": "dev",
    "validation": "dev",
    "val": "dev",
    "test": "test",
    "testing": "test",
    "": "",
}

PARTS = ("train", "dev", "test")  # what a row may be in a published fold
PUBLISHED = "published"  # how `--folds` calls the folds that came with a corpus
BETWEEN = "="  # the name of a fold and the row's part in it: "1=test"


def fold_entry(name: str, part: str) -> str:
    """What a row's `folds` says of one fold."""
    return f"{name}{BETWEEN}{part}"


def fold_of(entry: str) -> tuple[str, str]:
    """(name of the fold, the row's part in it) of one entry of a row's `folds`."""
    name, _, part = entry.rpartition(BETWEEN)
    return name, part


def check_folds(where: str, id: str, entries: Sequence[str]) -> None:
    """Raise DataError, beginning with `where`, unless a row's `folds` names each fold once, by a
    name without blanks at its ends, and a part in it.
    """
    names = set()
    for entry in entries:
        name, part = fold_of(entry)
        if not name or name != name.strip() or part not in PARTS:
            raise DataError(
                f"{where}: {shown(id)} has fold '{shown(entry, 60)}'; expected NAME=train, "
                "NAME=dev or NAME=test"
            )
        if name in names:
            raise DataError(f"{where}: {shown(id)} is twice in fold '{shown(name, 60)}'")
        names.add(name)


def check_task(where: str, task: str) -> None:
    """Raise DataError, beginning with `where`, unless `task` is one of TASKS."""
    if task not in TASKS:
        raise DataError(f"{where}: task '{shown(task)}' is not one of {', '.join(TASKS)}")


def targets_of(task: str, labels: Sequence[str]) -> int:
    """How many numbers a model answers: one for each class, label, or target of a regression,
    which has at least one.
    """
    return max(len(labels), 1) if task == "regression" else len(labels)


def check_labelling(
    where: str,
    id: str,
    split: str,
    label: str | None,
    targets: Sequence[float] | None,
    *,
    task: str,
    labels: Sequence[str],
) -> None:
    """Raise DataError, beginning with `where`, unless a row's split, label and targets fit the
    task: a known split; for `single` a label of `labels`; for `multi` one target per label; for
    `regression` one target per name, and at least one.
    """
    if split not in SPLITS:
        raise DataError(
            f"{where}: {shown(id)} has split '{shown(split)}'; expected train, dev or test"
        )
    if task == "single" and label is not None and label not in labels:
        raise DataError(
            f"{where}: {shown(id)} has unknown label '{shown(label)}'"
            f"{did_you_mean(label, labels)}; known: {listed(labels)}"
        )
    wanted = targets_of(task, labels)
    if task == "regression" and targets is not None and len(targets) == 1:
        return  # a single target goes by the first name, even where there are more names
    if task != "single" and targets is not None and len(targets) != wanted:
        raise DataError(f"{where}: {shown(id)} has {len(targets)} targets, expected {wanted}")
