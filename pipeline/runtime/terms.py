"""The words that manifests, stores, imports and exports share: tasks, splits, and what a row may
say of itself.
"""

from __future__ import annotations

from collections.abc import Sequence

from mer.pipeline.errors import DataError
from mer.pipeline.runtime.terminal import listed, shown

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
    task: a known split; for `single` a label of `labels`; for `multi` as many targets as labels;
    for `regression` as many as it names, at least one.
    """
    if split not in SPLITS:
        raise DataError(
            f"{where}: {shown(id)} has split '{shown(split)}'; expected train, dev or test"
        )
    if task == "single" and label is not None and label not in labels:
        raise DataError(
            f"{where}: {shown(id)} has unknown label '{shown(label)}'; known: {listed(labels)}"
        )
    wanted = targets_of(task, labels)
    if task != "single" and targets is not None and len(targets) != wanted:
        raise DataError(f"{where}: {shown(id)} has {len(targets)} targets, expected {wanted}")
