"""Which sets of features a modality is read from, and how many steps they make.

`spec` settles it for a store and `data.modalities`: `text,audio+audio.egemaps` reads text from its
own set and joins two sets of audio, side by side in each step. A set of one step per utterance is
repeated over the others' steps; otherwise the steps of sets that are joined must agree. What reads
them is sources.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Literal

import numpy as np

from mer.fusion.batch import DataSpec, FeatureSet
from mer.fusion.config import DataConfig
from mer.fusion.data import context
from mer.pipeline.errors import DataError
from mer.pipeline.runtime.terminal import did_you_mean, plural, shown
from mer.pipeline.store import FeatureStore, ModalityInfo

ORDER = ("audio", "text", "vision")


def spec(store: FeatureStore, config: DataConfig, *, summary: bool = False) -> DataSpec:
    """What the model is built for: the chosen modalities, what each is read from, and their frame
    rates after pooling.

    Args:
        store: The features.
        config: Which of them, and how layers are used.
        summary: The model looks at nothing but mean and deviation of a sequence.

    Returns:
        The spec, without scales of the targets, which depend on the rows that train.

    Raises:
        DataError: There are no such features, they cannot be joined, or there are no layers to mix.
    """
    header = store.header
    chosen = _chosen(list(header.modalities), config.modalities)
    mixes = layers_of(store, config, summary=summary) == "mix"
    widths, rates, sets = {}, {}, {}
    for m, names in chosen.items():
        feature_sets = tuple(
            _feature_set(header.modalities[name], name, mixes, summary) for name in names
        )
        if feature_sets != (FeatureSet(m, feature_sets[0].width),):
            sets[m] = feature_sets
        widths[m] = sum(feature_set.width for feature_set in feature_sets)
        rates[m] = _rate(store, names, config)
    labels, around = tuple(header.labels), context.spec(config)
    made = DataSpec(widths, rates, header.task, labels, sets, context=around)
    for m in made.modalities:
        steps(store, made, config, m, summary=summary)
    return made


def layers_of(
    store: FeatureStore, config: DataConfig, *, summary: bool
) -> Literal["auto", "stored", "mix"]:
    """How the layers of a store are used: `data.layers`, decided where it is auto; it stays auto
    where the store has one layer of everything.

    Raises:
        DataError: They are to be mixed, and there are none.
    """
    stored = store.header.modalities
    chosen = chain.from_iterable(_chosen(list(stored), config.modalities).values())
    mixable = any(_several(stored[name], summary) for name in chosen)
    if config.layers == "mix" and not mixable:
        what = "layer means" if summary else "layers side by side"
        remedy = "--layer-means" if summary else "--audio-layer stack:A-B (or --text-layer)"
        remedy += " --force"
        raise DataError(
            f"data.layers = mix: {store.path} has no {what} of what this model reads; extract "
            f"again with {remedy}, or leave data.layers out"
        )
    return "mix" if config.layers == "auto" and mixable else config.layers


def _several(info: ModalityInfo, summary: bool) -> bool:
    """Whether a model of this kind can mix layers of a feature set."""
    return len(info.stack) > 1 or (summary and info.layers > 1)


def _feature_set(info: ModalityInfo, name: str, mixes: bool, summary: bool) -> FeatureSet:
    if not (mixes and _several(info, summary)):
        return FeatureSet(name, info.dim)
    stack = tuple(info.stack) if len(info.stack) > 1 else ()
    means = info.layers if summary and info.layers > 1 else 0
    return FeatureSet(name, info.dim // max(len(stack), 1), means, stack)


def _chosen(stored: list[str], wanted: str | tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """Modality -> the feature sets of the store that the setting `wanted` reads it from, in the
    fixed order.
    """
    text = wanted if isinstance(wanted, str) else ",".join(wanted)
    tokens = [token.strip(" []\"'") for token in text.split(",")]
    if tokens == ["all"]:
        return _every(stored)
    found: dict[str, tuple[str, ...]] = {}
    for token in dict.fromkeys(filter(None, tokens)):
        names = tuple(name.strip() for name in token.split("+"))
        if len(names) == 1 and names[0] in map(modality_of, stored):
            names = _own(names[0], stored)
        if not set(names) <= set(stored):
            raise _no_such(text, stored)
        stems = {modality_of(name) for name in names}
        if len(stems) > 1 or len(set(names)) < len(names):
            raise DataError(
                f"data.modalities: {shown(token, 80)} joins what is not several feature sets of "
                "one modality; write for example text,audio+audio.egemaps"
            )
        m = stems.pop()
        if m in found:
            raise DataError(
                f"data.modalities names {m} twice; to join feature sets write "
                f"{shown('+'.join((*found[m], *names)), 80)}"
            )
        found[m] = names
    if not found:
        raise _no_such(text, stored)
    return {m: found[m] for m in _in_order(found)}


def _no_such(wanted: str, stored: list[str]) -> DataError:
    known = shown(", ".join(_in_order(stored)), 120)
    asked = shown(wanted, 60)
    words = (word.strip() for token in wanted.split(",") for word in token.split("+"))
    odd = next((word for word in words if word not in stored), "")
    guess = did_you_mean(odd, stored)
    return DataError(f"data.modalities = {asked!r}: no such features; the store has {known}{guess}")


def _every(stored: list[str]) -> dict[str, tuple[str, ...]]:
    """Each modality from its own features; further feature sets are only read where they are
    named.
    """
    found = dict.fromkeys(map(modality_of, stored))
    return {m: _own(m, stored) for m in _in_order(found)}


def _own(modality: str, stored: list[str]) -> tuple[str, ...]:
    """The feature set of the modality's own name, else the only one that it has."""
    names = [name for name in stored if modality_of(name) == modality]
    if modality in names:
        return (modality,)
    if len(names) > 1:
        raise DataError(
            f"the store has {shown(', '.join(names), 120)} and no {modality}: say which with --set "
            f"data.modalities={shown(names[0], 40)}, or join them with +"
        )
    return tuple(names)


def _in_order(names: Iterable[str]) -> list[str]:
    """The known modalities first, each with its feature sets; the others as they come."""
    given = list(names)
    known = [name for m in ORDER for name in given if modality_of(name) == m]
    return known + [name for name in given if name not in known]


def modality_of(feature_set: str) -> str:
    """The modality that a feature set belongs to.

    >>> modality_of("audio.egemaps"), modality_of("audio")
    ('audio', 'audio')
    """
    return feature_set.partition(".")[0]


def unread(store: FeatureStore, spec: DataSpec) -> list[str]:
    """The store's feature sets of the same modalities that the model does not read."""
    read = spec.sources
    stored = store.header.modalities
    return [m for m in stored if m not in read and modality_of(m) in spec.modalities]


def _rate(store: FeatureStore, names: Sequence[str], config: DataConfig) -> float | None:
    """Steps per second after pooling, of the first set that has such a rate."""
    for name in names:
        rate = store.header.modalities[name].frame_rate
        if rate is not None:
            return rate / pool_factor(rate, config.pool_hz)
    return None


def steps(
    store: FeatureStore, spec: DataSpec, config: DataConfig, modality: str, *, summary: bool
) -> np.ndarray:
    """Steps of each utterance of the store after pooling and joining: (N,) int64.

    Where several feature sets are joined the modality is there only where all of them are.

    Raises:
        DataError: Their steps cannot be joined.
    """
    by_set: dict[str, np.ndarray] = {}
    for feature_set in spec.read_from(modality):
        if lacks(store, feature_set):
            by_set[feature_set.name] = np.zeros(len(store), dtype=np.int64)
            continue
        factor = pool_factor(store.header.modalities[feature_set.name].frame_rate, config.pool_hz)
        n = -(-np.asarray(store.lengths(feature_set.name), dtype=np.int64) // factor)
        by_set[feature_set.name] = np.minimum(n, 1) if summary else n
    present = np.all([n > 0 for n in by_set.values()], axis=0)
    sequences = {name: n for name, n in by_set.items() if n.max(initial=0) > 1}
    first = next(iter(sequences), None)
    for name, n in sequences.items():
        differs = np.flatnonzero(present & (n != sequences[str(first)]))
        if len(differs):
            row = int(differs[0])
            utterance = shown(store.table()["id"][row].as_py(), 60)
            raise DataError(
                f"{first} and {name} cannot be joined: of {plural(len(differs), 'utterance')} the "
                f"steps differ (first: {utterance}, {sequences[str(first)][row]} and {n[row]}); "
                "name one of them in data.modalities"
            )
    joined = np.max(list(by_set.values()), axis=0)
    return np.where(present, joined, 0)


def lacks(store: FeatureStore, feature_set: FeatureSet) -> bool:
    """Whether a store has nothing of a set of features, which is then absent in every row: so are
    the stores of new clips. Those that a run is evaluated on are checked beforehand
    (`mer.fusion.runs.checkpoint.check_store`).
    """
    return feature_set.name not in store.header.modalities


def join_notes(store: FeatureStore, spec: DataSpec, rows: np.ndarray) -> list[str]:
    """Lines that count the utterances in which a joined modality is absent although some of its
    feature sets are there.
    """
    notes = []
    lack = ("utterance lacks one of them and counts", "utterances lack one of them and count")
    for m, sets in spec.sets.items():
        present = np.array([store.lengths(feature_set.name)[rows] > 0 for feature_set in sets])
        partly = int((present.any(0) & ~present.all(0)).sum())
        if partly:
            names = " + ".join(feature_set.name for feature_set in sets)
            notes.append(f"{m} ({names}): {partly:,} of {plural(len(rows), *lack)} as without")
    return notes


def present(store: FeatureStore, spec: DataSpec, modality: str) -> np.ndarray:
    """(N,) bool: which utterances of the store have all that a modality is read from."""
    return np.all([store.lengths(one.name) > 0 for one in spec.read_from(modality)], axis=0)


def absent_notes(store: FeatureStore, spec: DataSpec, rows: np.ndarray, what: str) -> list[str]:
    """Of how many rows each modality that a model reads is absent, and of how many all of them:
    what is answered there says nothing of them.

    Args:
        store: The features.
        spec: What the model reads.
        rows: Of the store.
        what: These rows, in words.
    """
    notes = []
    there = []
    for m in spec.modalities:
        there.append(present(store, spec, m)[rows])
        missing = int((~there[-1]).sum())
        if missing:
            notes.append(f"{m}: absent in {missing:,} of {plural(len(rows), what)}")
    nothing = int((~np.any(there, axis=0)).sum())
    if nothing and len(there) > 1:
        has = plural(nothing, "row has", "rows have")
        notes.append(f"{has} no features at all: the answer there is the same for each")
    return notes


def pool_factor(frame_rate: float | None, pool_hz: float) -> int:
    """How many steps become one.

    Tokens, utterance-level vectors and stores at or below `pool_hz` stay as they are.

    >>> pool_factor(50.0, 12.5), pool_factor(12.5, 12.5), pool_factor(None, 12.5)
    (4, 1, 1)
    """
    if frame_rate is None or not np.isfinite(pool_hz):
        return 1
    return max(1, round(frame_rate / pool_hz))
