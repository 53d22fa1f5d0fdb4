"""Unimodal labels of a corpus: from columns of a table, and counted for the report."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from mer.pipeline.errors import DataError
from mer.pipeline.manifest import Manifest
from mer.pipeline.runtime.cells import strip
from mer.pipeline.runtime.terminal import did_you_mean, listed, plural, shown
from mer.pipeline.runtime.unimodal import label_of

MODALITIES = ("text", "audio", "vision")  # what a table has features of, later
NEXT = re.compile(r",(?=[^,=]*=)")  # between two pairs; a column may have a comma in its name


@dataclass(frozen=True)
class UnimodalCounts:
    """The unimodal labels of one modality: of how many rows, how many of the rows with a common
    label lack one, how many different ones, and for numbers the least and the largest.
    """

    rows: int
    without: int
    different: int
    least: float | None = None
    largest: float | None = None

    def line(self, modality: str) -> str:
        """For people."""
        text = f"{modality} {self.rows:,}"
        if self.without:
            text += f" ({self.without:,} labelled {_rows(self.without)} without)"
        return text


def columns_of(given: Sequence[str]) -> dict[str, str]:
    """Modality -> column, as `--unimodal text=label_T,audio=label_A` names them, once or several
    times.

    Raises:
        DataError: It names none, one of them twice, or what is no modality of a table.
    """
    columns: dict[str, str] = {}
    for pairs in given:
        where = f"table: --unimodal {shown(pairs)}"
        for part in NEXT.split(pairs):
            modality, mark, column = (strip(word) for word in part.partition("="))
            if not mark or not column or not modality:
                raise DataError(
                    f"{where}: expected MODALITY=COLUMN,…, as text=label_T,audio=label_A"
                )
            if modality not in MODALITIES:
                guess = did_you_mean(modality, MODALITIES)
                raise DataError(
                    f"{where}: no modality {shown(modality, 40)}{guess}; there are "
                    f"{listed(MODALITIES)}"
                )
            if modality in columns or column in columns.values():
                raise DataError(f"{where}: a modality or a column is there twice")
            columns[modality] = column
    return columns


def counted(manifest: Manifest) -> dict[str, UnimodalCounts]:
    """Modality -> what is known of its unimodal labels, in the order in which they are met."""
    values: dict[str, list[str]] = {}
    for u in manifest.rows:
        for modality, value in map(label_of, u.unimodal):
            values.setdefault(modality, []).append(value)
    counts = {}
    for modality, labels in values.items():
        without = 0
        for u in manifest.rows:
            labelled = u.label is not None or u.targets is not None
            without += labelled and modality not in dict(map(label_of, u.unimodal))
        numbers = list(map(float, labels)) if manifest.task == "regression" else []
        counts[modality] = UnimodalCounts(
            len(labels),
            without,
            len(set(numbers or labels)),
            min(numbers, default=None),
            max(numbers, default=None),
        )
    return counts


def lines(counts: Mapping[str, UnimodalCounts]) -> list[str]:
    """One line on all of them; none where there are none."""
    parts = [count.line(modality) for modality, count in counts.items()]
    return [f"unimodal labels: {', '.join(parts)}"] if parts else []


def warnings(counts: Mapping[str, UnimodalCounts], manifest: Manifest) -> Iterable[str]:
    """Lines on unimodal labels that little can be learnt from: all of one value, or on another
    scale than the common label.
    """
    for modality, count in counts.items():
        if count.different == 1:
            yield f"all unimodal labels of {modality} are the same: there is nothing to learn"
    targets = [u.targets[0] for u in manifest.rows if u.targets and manifest.task == "regression"]
    if not targets:
        return
    least, largest = min(targets), max(targets)
    reach = max(abs(least), abs(largest))
    for modality, count in counts.items():
        if count.least is not None and count.largest is not None:
            if max(abs(count.least), abs(count.largest)) > 2 * reach:
                yield (
                    f"unimodal labels of {modality} go from {count.least:g} to {count.largest:g}, "
                    f"the common ones from {least:g} to {largest:g}: are they on one scale?"
                )


def _rows(count: int) -> str:
    return plural(count, "row").partition(" ")[2]
