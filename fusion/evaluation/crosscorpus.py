"""A run scored on another corpus, whose labels are others: which of them stand for which of the
run's.

`LabelMap` says so, and shows a store with the run's labels in place of its own; nothing that reads
a store needs to know of it. Only single labels are mapped. What cannot be scored is counted, never
guessed: rows of a label that stands for none of the run's are left out, and an answer that the
other corpus has no label for is wrong.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from mer.fusion.runs.records import Mapped
from mer.pipeline.errors import DataError
from mer.pipeline.runtime.terminal import did_you_mean, listed, plural, shown
from mer.pipeline.runtime.unimodal import COLUMN
from mer.pipeline.store import FeatureStore
from mer.pipeline.store.head import Head

WHOLE = "all"  # how `--split` calls every row of a corpus
SINGLE = "single"  # the task whose labels can be mapped
NAME_CHARACTERS = 60  # of a label, in a message


@dataclass(frozen=True)
class LabelMap:
    """`names` maps labels of a store, those that are scored, to labels of a run; `answers` are all
    of the run's, in their order.
    """

    names: dict[str, str]
    answers: tuple[str, ...]

    @property
    def scored(self) -> tuple[int, ...]:
        """The numbers of the run's classes that some label stands for.

        >>> LabelMap({"joy": "glad", "fun": "glad"}, ("calm", "glad", "sad")).scored
        (1,)
        """
        meant = set(self.names.values())
        return tuple(c for c, name in enumerate(self.answers) if name in meant)

    def show(self, store: FeatureStore) -> FeatureStore:
        """The same store with the run's labels; rows that are left out have none there."""
        table = store.table()
        place = table.column_names.index("label")
        read = [self.names.get(label) for label in table["label"].to_pylist()]
        table = table.set_column(place, "label", pa.array(read, pa.string()))
        # shares of raters are of the corpus's own labels
        place = table.column_names.index("targets")
        kind = table.schema.field("targets").type
        table = table.set_column(place, "targets", pa.nulls(len(table), kind))
        if COLUMN in table.column_names:  # likewise
            table = table.drop_columns([COLUMN])
        header = replace(store.header, labels=self.answers)
        head = Head(header, table, store.shards, store.members, store.flags)
        return FeatureStore(store.path, head=head)

    def kept(self, store: FeatureStore, rows: np.ndarray) -> np.ndarray:
        """Those of `rows` that are predicted: of a label that is scored, or of none at all.

        Raises:
            DataError: None of them has a label that is scored.
        """
        labels = _labels_of(store, rows)
        if not any(label in self.names for label in labels):
            there = listed(f"{name} ({count})" for name, count in self._left_out(labels).items())
            raise DataError(
                f"{store.path}: of {plural(len(rows), 'row')} none has a label that is mapped; "
                f"there are {there or 'no labels'}"
            )
        keep = [label is None or label in self.names for label in labels]
        return rows[np.array(keep, dtype=bool)]

    def _left_out(self, labels: Iterable[str | None]) -> dict[str, int]:
        """How many rows of each label that is not scored."""
        counts = Counter(label for label in labels if label is not None)
        return {name: counts[name] for name in sorted(counts) if name not in self.names}

    def record(self, store: FeatureStore, rows: np.ndarray, answers: Sequence[str]) -> Mapped:
        """What metrics.json says of it.

        Args:
            store: The other corpus, with its own labels.
            rows: All that the part has.
            answers: What the run answers of those of them that are scored.
        """
        said = Counter(answers)
        unmet = [name for c, name in enumerate(self.answers) if c not in self.scored]
        return Mapped(
            labels=self.names,
            left_out=self._left_out(_labels_of(store, rows)),
            unmet={name: said[name] for name in unmet},
        )


def label_map(
    given: Sequence[str], store: FeatureStore, task: str, answers: Sequence[str]
) -> LabelMap:
    """How the labels of a store are read.

    Args:
        given: LABEL=ANSWER, separated by commas or one by one: a label of the store, and the run's
            label that it stands for; LABEL= leaves that one out. Labels that are not named stand
            for those of the same name.
        store: The other corpus.
        task: The run's.
        answers: The run's labels.

    Raises:
        DataError: The task is another one or has no single labels, a name is unknown, a label is
            named twice, or none is mapped.
    """
    there = store.header.labels
    if task != SINGLE or store.header.task != SINGLE:
        raise DataError(
            f"{store.path}: --map is for single labels; its task is {store.header.task}, that of "
            f"the run is {task}"
        )
    named: dict[str, str] = {}
    for label, answer in _pairs(given, there, answers):
        _check_pair(label, answer, store, answers)
        if label in named:
            raise DataError(
                f"--map: {shown(label, NAME_CHARACTERS)} is mapped twice; each label of "
                f"{store.path} stands for one of the run's"
            )
        named[label] = answer
    names = {}
    for label in there:
        answer = named.get(label, label)
        if answer in answers:
            names[label] = answer
    if not names:
        raise DataError(
            f"{store.path}: no label is mapped; its labels are {listed(there)}, the run's are "
            f"{listed(answers)}: name pairs with --map LABEL=ANSWER"
        )
    return LabelMap(names, tuple(answers))


def _pairs(
    given: Sequence[str], there: Sequence[str], answers: Sequence[str]
) -> list[tuple[str, str]]:
    """(label, answer) of each pair; a pair whose names are known is taken whole, whatever commas
    and equals signs are in them.
    """
    found = []
    for text in given:
        whole = _known_pair(text, there, answers)
        pieces = [text] if whole else [piece for piece in text.split(",") if piece.strip()]
        for piece in pieces:
            pair = _known_pair(piece.strip(), there, answers)
            label, equals, answer = piece.partition("=")
            if not equals:
                raise DataError(
                    f"--map {shown(piece, NAME_CHARACTERS)}: expected LABEL=ANSWER, a label of the "
                    "store and the run's label that it stands for"
                )
            found.append(pair or (label.strip(), answer.strip()))
    return found


def _known_pair(text: str, there: Sequence[str], answers: Sequence[str]) -> tuple[str, str] | None:
    """The two names of a pair, if both are known; the answer may be empty."""
    for place, character in enumerate(text):
        label, answer = text[:place], text[place + 1 :]
        if character == "=" and label in there and answer in ("", *answers):
            return label, answer
    return None


def _check_pair(label: str, answer: str, store: FeatureStore, answers: Sequence[str]) -> None:
    """Raise DataError unless the store has the label, and the run the answer."""
    there = store.header.labels
    said = shown(f"{label}={answer}", NAME_CHARACTERS)
    if label in there and answer in ("", *answers):
        return
    if label in answers and answer in there:
        raise DataError(
            f"--map {said}: the label of the store comes first, the run's behind it: "
            f"{shown(answer, NAME_CHARACTERS)}={shown(label, NAME_CHARACTERS)}"
        )
    if label not in there:
        guess = did_you_mean(label, there)
        raise DataError(f"--map {said}: {store.path} has no such label{guess or _known(there)}")
    guess = did_you_mean(answer, answers)
    raise DataError(
        f"--map {said}: the run has no label {shown(answer, NAME_CHARACTERS)}"
        f"{guess or _known(answers)}"
    )


def _known(names: Sequence[str]) -> str:
    return f"; known are {listed(names)}"


def _labels_of(store: FeatureStore, rows: np.ndarray) -> list[str | None]:
    return store.table()["label"].take(pa.array(rows)).to_pylist()
