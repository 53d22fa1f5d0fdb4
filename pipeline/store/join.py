"""Several stores of the same utterances under one head, by id: what it says, where they agree.

Nothing is copied: the head names the head files of the stores, its members, by paths relative to
its own folder, and reading goes through them.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from mer.pipeline.errors import DataError, MerError
from mer.pipeline.runtime.files import folders_for, refuse_link
from mer.pipeline.runtime.terminal import did_you_mean, plural, shown
from mer.pipeline.runtime.unimodal import check_unimodal
from mer.pipeline.store import arrays
from mer.pipeline.store.head import Head, MemberRecord, compose_join, content, content_of
from mer.pipeline.store.reader import FeatureStore
from mer.pipeline.store.schema import (
    COLUMNS,
    EVERY,
    LATER,
    Header,
    ModalityInfo,
    canonical,
    columns_of,
    is_modality,
)

# Durations of one clip from two decoders differ by the padding of its codec.
DURATION_SECONDS = 0.5
# What decides training and testing; in all else `keep_first` may leave it to the first store.
DECISIVE = ("id", "split", "label", "targets")
KEEPABLE = (*(name for name in COLUMNS.names if name not in DECISIVE), "duration")


@dataclass
class Plan:
    """What a joined store is to hold, and what to tell the user."""

    head: Head
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Sources:
    """The stores that are joined, and the row of each utterance in each of them, -1 where it has
    none: (stores, N).
    """

    stores: list[FeatureStore]
    ids: list[str]
    rows: np.ndarray

    def column(self, number: int, name: str) -> list:
        """A column of one store for each of the N utterances; None where it has no such row or says
        nothing.
        """
        table = self.stores[number].table()
        if name not in table.column_names:
            return [None] * len(self.ids)
        values = table[name].to_pylist()
        return [
            None if row < 0 or _unknown(values[row]) else values[row] for row in self.rows[number]
        ]

    def path(self, number: int) -> Path:
        return self.stores[number].path


def plan(
    stores: Sequence[FeatureStore],
    renamed: Mapping[tuple[int, str], str] | None = None,
    *,
    require_all: bool = False,
    keep_first: Sequence[str] = (),
    allow_disjoint: bool = False,
) -> Plan:
    """What joining stores gives.

    Utterances stand in the order of the first store, those that only later ones have behind them.
    What one store knows of an utterance and another does not is taken; what two know must agree.
    Task, label names, dataset and language are those of the first store that has labels.

    Args:
        stores: One or more, open. A joined one counts as its members.
        renamed: For the number of a store and a modality there, its name in the joined store; ""
            leaves it out.
        require_all: Refuse an utterance that one of the stores does not have.
        keep_first: Columns, of KEEPABLE, in which the first store that knows one is believed.
        allow_disjoint: Take a store none of whose utterances is in another one.

    Returns:
        The head of the joined store, and how many utterances are absent where.

    Raises:
        DataError: The stores have no common ids, contradict each other, or two give the same
            modality; a line that says where and what helps.
        StoreError: A store is damaged.
    """
    for name in keep_first:
        if name not in KEEPABLE:
            raise DataError(
                f"--keep-first {shown(name)}: known are {', '.join(KEEPABLE)}"
                f"{did_you_mean(name, KEEPABLE)}; what decides training and testing must agree"
            )
    names = _names(stores, renamed or {})
    sources = _aligned(stores, allow_disjoint)
    notes = _absences(sources, require_all)
    columns: dict[str, list] = {"id": sources.ids}
    known = columns_of({name for store in stores for name in store.table().column_names})
    for name in known:
        if name != "id":
            columns[name] = _merged(sources, name, name in keep_first, notes)
    columns["split"] = [split or "" for split in columns["split"]]
    for name in ("tags", *LATER.names):
        if name in columns:
            columns[name] = [entries or [] for entries in columns[name]]
    durations = _durations(sources, "duration" in keep_first, notes)
    members, infos, lengths = _members(sources, names)
    header = _header(sources, members, infos, notes)
    for id, entries in zip(sources.ids, columns.get("unimodal", ()), strict=False):
        check_unimodal("join", id, entries, task=header.task, labels=header.labels)
    flags = np.zeros(len(sources.ids), np.uint32)
    for store, rows in zip(stores, sources.rows, strict=True):
        if store.flags_known:  # else its bits mean something else
            flags[rows >= 0] |= store.flags[rows[rows >= 0]]
    table = pa.table(
        {
            **{name: pa.array(columns[name], EVERY.field(name).type) for name in known},
            "duration": pa.array(durations),
            **{f"n_{name}": pa.array(steps) for name, steps in lengths.items()},
        }
    )
    return Plan(Head(header, table, [], members, flags), notes)


def write(head: Head, out: Path, *, force: bool = False) -> bool:
    """Publish the head file of a joined store.

    Args:
        head: What `plan` gave.
        out: Where it goes; the paths of the members are relative to its folder.
        force: Replace what is at `out`.

    Returns:
        Whether anything was written: False where this very store is at `out`.

    Raises:
        DataError: Something else is at `out`, or a path cannot be written down.
        OSError: The disk is full, the folder cannot be written, …
    """
    refuse_link(out)
    folder = out.resolve().parent
    names = []
    for record in head.members:
        name = Path(os.path.relpath(record.path.resolve(), folder)).as_posix()
        try:
            name.encode()
        except UnicodeEncodeError:
            raise DataError(f"{name!r}: no name in UTF-8; rename the store") from None
        names.append(name)
    columns = {"duration": head.table["duration"].to_numpy(), "flags": head.flags}
    for modality in head.header.modalities:
        columns[f"n_{modality}"] = head.table[f"n_{modality}"].to_numpy()
    rows = head.table.select(columns_of(head.table.column_names))
    attrs, data = compose_join(head.header, rows, columns, names, head.members)
    if os.path.lexists(out) and _is_there(out, content(head.header, data), force):
        return False
    # For other tools, as a store's links to its shards are.
    links = {f"stores/{number:05d}": name for number, name in enumerate(names)}
    with folders_for(out):
        arrays.write(out, attrs={"/": attrs}, arrays=data, links=links)
    return True


def _is_there(out: Path, wanted: str, force: bool) -> bool:
    """Whether this very store is at `out`; DataError for anything else, unless `force`."""
    try:
        found = content_of(out)
    except MerError:
        found = ""
    if found != wanted and not force:
        raise DataError(
            f"{out}: exists already, and is not this join of these stores; name another --out, or "
            "replace it with --force"
        )
    return found == wanted


def _unknown(value: object) -> bool:
    """Whether a cell says nothing: null, an empty text or list."""
    return value is None or value == "" or value == []


def _names(
    stores: Sequence[FeatureStore], renamed: Mapping[tuple[int, str], str]
) -> list[dict[str, str]]:
    """For each store, name in the joined store -> name there. Raises DataError for a name that is
    none, or that two stores give.
    """
    for (number, modality), name in renamed.items():
        known = stores[number].header.modalities
        if modality not in known:
            raise DataError(
                f"--as: {stores[number].path} has no modality '{shown(modality, 40)}'"
                f"{did_you_mean(modality, known)}; it has {', '.join(known)}"
            )
        if name and not is_modality(name):
            raise DataError(
                f"--as: '{shown(name, 40)}' cannot name a modality; use lower-case letters, digits "
                "and '_', e.g. audio or audio.egemaps"
            )
    out: list[dict[str, str]] = []
    taken: dict[str, Path] = {}
    for number, store in enumerate(stores):
        here = {}
        for modality in store.header.modalities:
            name = renamed.get((number, modality), modality)
            if name in taken:
                raise DataError(
                    f"{store.path}: has {name}, as {taken[name]} has; give it another name with "
                    f"--as {store.path.name}:{modality}={name.partition('.')[0]}.other, or leave "
                    f"it out with --as {store.path.name}:{modality}="
                )
            if name:
                taken[name] = store.path
                here[name] = modality
        out.append(here)
    if not taken:
        raise DataError("--as: leaves out every modality; keep one")
    return out


def _aligned(stores: Sequence[FeatureStore], allow_disjoint: bool) -> _Sources:
    """The utterances of all stores by id. Raises DataError for a store that shares none, unless
    that is allowed.
    """
    listed = [store.table()["id"].to_pylist() for store in stores]
    ids = list(dict.fromkeys(name for names in listed for name in names))
    for number, names in enumerate(listed):
        others = {name for other in listed[:number] + listed[number + 1 :] for name in other}
        if not allow_disjoint and others.isdisjoint(names):
            first = next((name for name in ids if name in others), "")
            raise DataError(
                f"{stores[number].path}: none of its {plural(len(names), 'id')} is in the other "
                f"stores: it has '{shown(names[0] if names else '', 40)}', they have "
                f"'{shown(first, 40)}'; make it with the same ids"
            )
    place = {name: at for at, name in enumerate(ids)}
    rows = np.full((len(stores), len(ids)), -1, np.int64)
    for number, names in enumerate(listed):
        rows[number, [place[name] for name in names]] = np.arange(len(names))
    return _Sources(list(stores), ids, rows)


def _absences(sources: _Sources, require_all: bool) -> list[str]:
    """A line for each store that does not have every utterance; DataError with `require_all`."""
    notes = []
    are = ("utterance is", "utterances are")
    for number, rows in enumerate(sources.rows):
        missing = np.flatnonzero(rows < 0)
        if not len(missing):
            continue
        line = (
            f"{sources.path(number)}: {len(missing):,} of {plural(len(rows), *are)} not in it, "
            f"first '{shown(sources.ids[missing[0]], 40)}'"
        )
        if require_all:
            raise DataError(f"{line}; without --require-all they are absent there")
        notes.append(f"{line}; absent there")
    return notes


def _merged(sources: _Sources, name: str, keep_first: bool, notes: list[str]) -> list:
    """A column of the joined store. Raises DataError where two stores contradict each other."""
    merged = sources.column(0, name)
    known_by = [0] * len(merged)
    for number in range(1, len(sources.stores)):
        odd = []
        for at, value in enumerate(sources.column(number, name)):
            if merged[at] is None and value is not None:
                merged[at], known_by[at] = value, number
            # Targets that are NaN differ from themselves.
            elif value is not None and repr(value) != repr(merged[at]):
                odd.append((at, value))
        if odd and keep_first:
            notes.append(_kept(sources.path(number), name, len(odd)))
        elif odd:
            at, value = odd[0]
            raise _conflict(
                sources, at, name, (known_by[at], merged[at]), (number, value), len(odd)
            )
    return merged


def _conflict(
    sources: _Sources,
    at: int,
    name: str,
    first: tuple[int, object],
    other: tuple[int, object],
    count: int,
) -> DataError:
    """The error that two stores contradict each other in a column. `first` and `other` are the
    number of a store and the value it has.
    """
    keep = f", or keep the first with --keep-first {name}" if name in KEEPABLE else ""
    more = f" ({count:,} such)" if count > 1 else ""
    return DataError(
        f"{sources.path(other[0])}: '{shown(sources.ids[at], 40)}' has {name} "
        f"'{shown(str(other[1]), 40)}', in {sources.path(first[0])} '{shown(str(first[1]), 40)}'"
        f"{more}; make them agree{keep}"
    )


def _kept(path: Path, name: str, count: int) -> str:
    have = plural(count, "utterance has", "utterances have")
    return f"{path}: {have} another {name}; the first store's is kept"


def _durations(sources: _Sources, keep_first: bool, notes: list[str]) -> np.ndarray:
    """(N,) seconds, NaN where no store knows; DataError where two are too far apart."""
    merged = np.full(len(sources.ids), np.nan)
    known_by = np.zeros(len(sources.ids), np.int64)
    for number, store in enumerate(sources.stores):
        there = sources.rows[number] >= 0
        value = np.full(len(merged), np.nan)
        value[there] = store.table()["duration"].to_numpy()[sources.rows[number][there]]
        # A comparison with NaN is False.
        odd = np.flatnonzero(np.abs(value - merged) > DURATION_SECONDS)
        if len(odd) and not keep_first:
            at = int(odd[0])
            first = int(known_by[at]), f"{merged[at]:g} s"
            other = number, f"{value[at]:g} s"
            raise _conflict(sources, at, "duration", first, other, len(odd))
        if len(odd):
            notes.append(_kept(store.path, "duration", len(odd)))
        new = np.isnan(merged) & ~np.isnan(value)
        merged[new], known_by[new] = value[new], number
    return merged


def _members(
    sources: _Sources, names: list[dict[str, str]]
) -> tuple[list[MemberRecord], dict[str, ModalityInfo], dict[str, np.ndarray]]:
    """The members, each with shards of its own; and for each modality its entry in the header and
    its lengths, (N,) int64.
    """
    members: list[MemberRecord] = []
    infos: dict[str, ModalityInfo] = {}
    lengths: dict[str, np.ndarray] = {}
    for store, rows, given in zip(sources.stores, sources.rows, names, strict=True):
        there = rows >= 0
        for name, modality in given.items():
            infos[name] = store.header.modalities[modality]
            lengths[name] = np.zeros(len(rows), np.int64)
            lengths[name][there] = store.lengths(modality)[rows[there]]
        if not store.members:
            members.append(MemberRecord(store.path, store.content(), given, rows))
        for inner in store.members:
            held = {
                name: inner.modalities[modality]
                for name, modality in given.items()
                if modality in inner.modalities
            }
            deeper = np.full(len(rows), -1, np.int64)
            deeper[there] = inner.rows[rows[there]]
            members.append(replace(inner, modalities=held, rows=deeper))
    return [member for member in members if member.modalities], infos, lengths


def _header(
    sources: _Sources,
    members: list[MemberRecord],
    infos: dict[str, ModalityInfo],
    notes: list[str],
) -> Header:
    """What the joined store says of itself; its fingerprint depends on what the members hold."""
    labelled = [store for store in sources.stores if _has_labels(store)]
    first = (labelled or sources.stores)[0].header
    path = (labelled or sources.stores)[0].path
    labels = first.labels
    for store in labelled[1:]:
        header = store.header
        if header.task != first.task:
            raise DataError(
                f"{store.path}: task {header.task}, {path} has {first.task}; make them agree"
            )
        labels = _label_names(path, labels, store)
        if header.dataset != first.dataset:
            notes.append(
                f"{store.path}: of dataset {shown(header.dataset, 40)}; "
                f"{shown(first.dataset, 40)} is kept"
            )
    made = [[member.content, member.modalities, _digest(member.rows)] for member in members]
    return Header(
        dataset=first.dataset,
        task=first.task,
        labels=labels,
        language=first.language,
        modalities=infos,
        fingerprint=hashlib.sha256(canonical(["join", made]).encode()).hexdigest(),
        provenance={"joined": [str(store.path) for store in sources.stores]},
    )


def _digest(rows: np.ndarray) -> str:
    return hashlib.sha256(rows.astype("<i8").tobytes()).hexdigest()


def _has_labels(store: FeatureStore) -> bool:
    """Whether an utterance of the store has a label or targets."""
    table = store.table()
    return any(table[name].null_count < len(table) for name in ("label", "targets"))


def _label_names(path: Path, labels: tuple[str, ...], store: FeatureStore) -> tuple[str, ...]:
    """The label names of two stores: those of the one that has all of the other's. Targets have no
    names but their order, which must be the same.
    """
    others = store.header.labels
    if store.header.task != "single":
        if others != labels:
            raise DataError(
                f"{store.path}: targets {shown(', '.join(others))}, {path} has "
                f"{shown(', '.join(labels))}; make them agree"
            )
        return labels
    if set(others) <= set(labels):
        return labels
    if set(labels) <= set(others):
        return others
    odd = next(label for label in others if label not in labels)
    raise DataError(
        f"{store.path}: label '{shown(odd, 40)}' is none of {path}: {shown(', '.join(labels))}; "
        "make them agree"
    )
