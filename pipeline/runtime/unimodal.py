"""Unimodal labels: what one modality of an utterance says by itself, where raters were shown only
that (CH-SIMS rates words, voice and face apart). A row keeps them as `text=-0.4` or `text=anger`,
on the scale, or of the classes, of its common label.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from mer.pipeline.errors import DataError
from mer.pipeline.runtime.terminal import did_you_mean, listed, shown

COLUMN = "unimodal"  # of a manifest and of a store's table
BETWEEN = "="  # the modality and what it says
MODALITY = re.compile(r"[a-z][a-z0-9_]{0,31}")


def entry(modality: str, value: float | str) -> str:
    """What a row's `unimodal` says of one modality.

    >>> entry("text", -0.4), entry("audio", "anger")
    ('text=-0.4', 'audio=anger')
    """
    return f"{modality}{BETWEEN}{value if isinstance(value, str) else repr(float(value))}"


def label_of(entry: str) -> tuple[str, str]:
    """(modality, what it says) of one entry of a row's `unimodal`."""
    modality, _, value = entry.partition(BETWEEN)
    return modality, value


def check_task(where: str, task: str, labels: Sequence[str]) -> None:
    """Raise DataError, beginning with `where`, for a task that has no unimodal labels: they are one
    class or one number for each utterance and modality.
    """
    if task == "multi" or (task == "regression" and len(labels) > 1):
        what = "several labels" if task == "multi" else f"{len(labels)} targets"
        raise DataError(
            f"{where}: unimodal labels are one class or one number for each utterance; here it has "
            f"{what}"
        )


def check_unimodal(
    where: str, id: str, entries: Sequence[str], *, task: str, labels: Sequence[str]
) -> None:
    """Raise DataError, beginning with `where`, unless a row's `unimodal` names each modality once
    and says a class of `labels`, or of a regression a finite number.
    """
    if not entries:
        return
    check_task(where, task, labels)
    named = set()
    for entry in entries:
        modality, value = label_of(entry)
        if not MODALITY.fullmatch(modality) or BETWEEN not in entry:
            raise DataError(
                f"{where}: {shown(id)} has unimodal label '{shown(entry, 60)}'; expected "
                "MODALITY=LABEL, as text=-0.4"
            )
        if modality in named:
            raise DataError(f"{where}: {shown(id)} has two unimodal labels of {modality}")
        named.add(modality)
        if task == "single" and value not in labels:
            raise DataError(
                f"{where}: {shown(id)} has unknown unimodal label '{shown(value, 60)}' of "
                f"{modality}{did_you_mean(value, labels)}; known: {listed(labels)}"
            )
        if task == "regression" and number_of(value) is None:
            raise DataError(
                f"{where}: {shown(id)} has unimodal label '{shown(value, 60)}' of {modality}, "
                "expected a number"
            )


def number_of(value: str) -> float | None:
    """The finite number that an entry of a regression says; None for anything else.

    >>> number_of("-0.4"), number_of("nan"), number_of("glad")
    (-0.4, None, None)
    """
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
