"""Which rows train, which choose (dev), which report (test).

Whole groups go to one side, never single utterances.

The trainer calls `assign`, which knows of no test rows; only evaluation/opening_rows.py calls
`held_out`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from mer.fusion.config import DataConfig
from mer.pipeline.errors import DataError
from mer.pipeline.runtime.terminal import plural, shown
from mer.pipeline.runtime.terms import PUBLISHED, SPLITS, fold_of, targets_of

GROUPS = ("dialogue", "speaker", "session")
FOLDS = ("session", "speaker", "dialogue")  # the one to suggest first
FEWEST_FOLDS = 3  # one group each for train, dev and test
MOST_FOLDS = 20  # more groups than this are bundled ...
BUNDLES = 10  # ... into this many folds
MOST_DIGITS = 20  # of the number that a published fold is called by
SHARES_WITHIN = 1e-3  # shares of raters, rounded by whoever wrote them, sum to 1 as nearly as this
# of a single target, either way: the scales of MOSI, SIMS, MSP-Podcast and MER2023 are within it
LARGEST_AS_STORED = 10.0
CARVINGS = 64  # candidate dev sets, of which the one with the most train-like labels is taken


@dataclass(frozen=True)
class Fold:
    """Leave-out fold: `held` are the values of column `by` that form its test part. Of a published
    fold, `by` is PUBLISHED and `held` its name: the rows say what they are in it.
    """

    name: str
    by: str
    held: tuple[str, ...]


@dataclass(frozen=True)
class Split:
    """Store rows (int64) to train on and to choose with; `notes` say how they came about and what
    was left out. `train_pool` and `dev_pool` are all rows of these parts, also those without a
    label: neighbours in a dialogue are among them.
    """

    train: np.ndarray
    dev: np.ndarray
    notes: tuple[str, ...]
    train_pool: np.ndarray
    dev_pool: np.ndarray


def targets(table: pa.Table, task: str, labels: Sequence[str]) -> np.ndarray:
    """single: (N,) int64 class, -1 unlabelled; multi: (N, C) float32; regression: (N, K) float32
    of K targets; NaN unlabelled.
    """
    if task == "single":
        return _classes(table["label"].to_pylist(), labels)
    width = targets_of(task, labels)
    out = np.full((len(table), width), np.nan, dtype=np.float32)
    for row, value in enumerate(table["targets"].to_pylist()):
        if value is not None:
            if len(value) != width:
                raise DataError(
                    f"row {row + 1} of the store's table has {plural(len(value), 'target')}, "
                    f"its header says {width}"
                )
            out[row] = value
    return out


def _classes(column: list[str | None], labels: Sequence[str]) -> np.ndarray:
    """(N,) int64 class of each label, -1 for None."""
    index: dict[str | None, int] = {name: c for c, name in enumerate(labels)}
    unknown = sorted({v for v in column if v is not None and v not in index})
    if unknown:
        raise DataError(
            f"the store's table has label '{unknown[0]}', which its header does not name "
            f"({', '.join(labels)})"
        )
    index[None] = -1
    return np.array([index[v] for v in column], dtype=np.int64)


def soft(table: pa.Table, task: str, labels: Sequence[str]) -> np.ndarray | None:
    """The shares of the raters who chose each class: (N, C) float32, NaN where a row has none; None
    where the table's targets are not shares.
    """
    if task != "single" or len(labels) < 2:
        return None
    out = np.full((len(table), len(labels)), np.nan, dtype=np.float32)
    for row, value in enumerate(table["targets"].to_pylist()):
        if value is not None:
            if len(value) != len(labels) or not min(value) >= 0:
                return None
            if not abs(sum(value) - 1) <= SHARES_WITHIN:
                return None
            out[row] = np.array(value) / sum(value)
    return None if np.isnan(out).all() else out


def labelled(target: np.ndarray) -> np.ndarray:
    """(N,) bool."""
    return target >= 0 if target.ndim == 1 else ~np.isnan(target).any(1)


def check_any(taught: np.ndarray) -> None:
    """Raise DataError where no row of a store is `taught` (N,), whatever part it is in."""
    if not taught.any():
        raise DataError(
            "the store has no labelled training rows, nor others: none of its "
            f"{plural(len(taught), 'row')} has a label; give the table or manifest that it was "
            "made from labels, and run the same `mer extract` (which then encodes nothing) or "
            "`mer import` again"
        )


def taught_rows(table: pa.Table, target: np.ndarray, config: DataConfig) -> np.ndarray:
    """(N,) bool: whether training can learn from a row of the store, by its label or its shares."""
    known = labelled(target)
    if config.soft_labels:  # a row whose raters are split evenly has shares to learn, and no label
        return known | table["targets"].is_valid().to_numpy()
    return known


def scale(target: np.ndarray, task: str) -> tuple[tuple[float, float], ...]:
    """(mean, deviation) of each of several targets over their labelled rows, and of a single one
    that goes beyond `LARGEST_AS_STORED`: from there no model finds the scale by itself within its
    epochs. () of anything else.

    A target that does not vary has the deviation 1.
    """
    if task != "regression":
        return ()
    known = target[labelled(target)].astype(np.float64)
    if not len(known):
        return ()
    if known.shape[1] == 1 and np.abs(known).max() <= LARGEST_AS_STORED:
        return ()
    # by their range: of equal numbers a deviation is not always exactly 0
    return tuple((float(x.mean()), float(x.std()) if np.ptp(x) else 1.0) for x in known.T)


def label_counts(target: np.ndarray, task: str, labels: Sequence[str]) -> dict[str, int]:
    """How many of the rows of `target` have each label; of a regression nothing is counted."""
    if task == "regression":
        return {}
    indicator = target[:, None] == np.arange(len(labels)) if task == "single" else target > 0.5
    return dict(zip(labels, indicator.sum(0).tolist(), strict=True))


def assign(
    table: pa.Table,
    target: np.ndarray,
    config: DataConfig,
    fold: Fold | None = None,
    *,
    labels: Sequence[str] = (),
    task: str = "",
) -> Split:
    """Which rows train and which choose: the stored splits, or in a fold everything outside its
    test part. Dev is carved by group where there is none.

    Args:
        table: The store's.
        target: Of all its rows, as `targets` gives it.
        config: How dev is carved.
        fold: The fold whose test part is held out.
        labels: With them the notes also say what of them cannot be learnt.
        task: What they are: of a regression several are targets, else several are labels.

    Returns:
        The rows, and how they came about.

    Raises:
        DataError: There is nothing to train on, or nothing to carve dev by.
    """
    if fold is None:
        train, dev, notes = _stored(table)
    elif fold.by == PUBLISHED:
        train, dev, notes = _published(table, fold)
    else:
        train, dev, notes = _outside(table, fold)
    known = labelled(target)
    taught = taught_rows(table, target, config)
    unlabelled = int((~taught[train]).sum() + (~known[dev]).sum())
    if unlabelled:
        notes.append(f"{plural(unlabelled, 'row')} without a label left out of train and dev")
    train_pool, dev_pool = train, dev
    train, dev = train[taught[train]], dev[known[dev]]
    if not len(train):
        check_any(taught)
        raise DataError(
            "the store has no labelled training rows: none of the "
            f"{plural(len(train_pool), 'row')} to train on has a label; give its table labels "
            "there, or train with --folds"
        )
    if not len(dev):
        by = _carve_by(table, train, config, fold)
        train, dev, note = _carve(table, train, target, by, config)
        notes.append(note)
        if len(dev) > known[dev].sum():
            unknown = plural(len(dev) - int(known[dev].sum()), "row")
            notes.append(f"{unknown} of dev with shares of raters and no label left out")
        dev = dev[known[dev]]
        if not len(dev):
            raise DataError(
                f"the dev part that was carved by {by} has no labelled row, only shares of raters; "
                "take more with --set data.dev_share, or give the store a dev part"
            )
        train_pool, dev_pool = _pools(table, train_pool, train, dev, by)
    if labels:
        notes += label_notes(target, train, dev, labels, task)
    return Split(train, dev, tuple(notes), train_pool, dev_pool)


def _pools(
    table: pa.Table, rows: np.ndarray, train: np.ndarray, dev: np.ndarray, by: str
) -> tuple[np.ndarray, np.ndarray]:
    """All of `rows` that go with the training rows and with dev, which was carved from them: an
    unlabelled one goes with its group. Where single utterances were carved it goes with neither.
    """
    if by == "utterance":
        return train, dev
    value = _values(table, by)
    groups = {value[row] for row in dev}
    chosen = np.array([value[row] in groups for row in rows], dtype=bool)
    return rows[~chosen], rows[chosen]


def _stored(table: pa.Table) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Training and dev rows by the store's own splits, and notes."""
    split = np.array(table["split"].to_pylist(), dtype=object)
    train, dev = np.flatnonzero(split == "train"), np.flatnonzero(split == "dev")
    if not len(train):
        by = group_column(table, np.arange(len(table)), FOLDS)
        by = PUBLISHED if published(table) else by
        remedy = f"train with --folds {by}" if by else "give its table a split column"
        raise DataError(f"the store has no training rows (its splits: {_counts(split)}); {remedy}")
    undecided = int((~np.isin(split, [name for name in SPLITS if name])).sum())
    left_out = f"{plural(undecided, 'row')} without a split left out"
    return train, dev, [left_out] if undecided else []


def _outside(table: pa.Table, fold: Fold) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """The rows outside a fold's test part, no dev rows, and notes."""
    value = _values(table, fold.by)
    inside = [v is not None and v not in fold.held for v in value]
    missing = sum(v is None for v in value)
    notes = [f"{plural(missing, 'row')} without a {fold.by} left out"] if missing else []
    return np.flatnonzero(np.array(inside)), np.array([], dtype=np.int64), notes


def _published(table: pa.Table, fold: Fold) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """The train and dev rows of a published fold, and notes: who of its speakers is tested, too."""
    parts = _parts(table, fold.name)
    train, dev, test = (np.flatnonzero(parts == part) for part in ("train", "dev", "test"))
    notes = []
    if outside := int((parts == "").sum()):
        notes.append(f"{plural(outside, 'row')} in no part of fold {fold.name} left out")
    speaker = np.array(_values(table, "speaker"), dtype=object)
    known = {*speaker[train], *speaker[dev]} - {None}
    shared = known & set(speaker[test])
    if shared:
        count = int(np.isin(speaker[test], list(shared)).sum())
        notes.append(
            f"fold {fold.name} is not speaker-independent: {plural(len(shared), 'speaker')} of its "
            f"test part ({plural(count, 'row')}) are in train, too"
        )
    return train, dev, notes


def _parts(table: pa.Table, name: str) -> np.ndarray:
    """(N,) what each row is in a published fold: train, dev, test or ""."""
    if "folds" not in table.column_names:
        return np.full(len(table), "", dtype=object)
    parts = []
    for entries in table["folds"].to_pylist():
        mine = dict(map(fold_of, entries))
        parts.append(mine.get(name, ""))
    return np.array(parts, dtype=object)


def published(table: pa.Table) -> list[str]:
    """The names of the folds that came with the corpus, numbers in their order."""
    if "folds" not in table.column_names:
        return []
    names: set[str] = set()
    for entries in table["folds"].to_pylist():
        names.update(fold_of(entry)[0] for entry in entries)
    return sorted(names, key=lambda name: (not name.isdecimal(), name.zfill(MOST_DIGITS), name))


def label_notes(
    target: np.ndarray,
    train: np.ndarray,
    dev: np.ndarray,
    labels: Sequence[str],
    task: str = "",
) -> list[str]:
    """What the labels of the rows do not allow: to learn a class, to choose an epoch, to call a
    high accuracy a success. `target` has all rows; `train` and `dev` are indices into it.
    """
    parts = {"train": target[train], "dev": target[dev]}
    if task == "regression" or (target.ndim == 2 and target.shape[1] == 1):
        return _equal_targets(parts, labels)
    task = "single" if target.ndim == 1 else "multi"
    counts = {name: label_counts(values, task, labels) for name, values in parts.items()}
    notes = _unlearnt(label_counts(target, task, labels), counts["train"], counts["dev"])
    return notes + (_constant(counts) if task == "single" else [])


def _equal_targets(parts: dict[str, np.ndarray], labels: Sequence[str]) -> list[str]:
    """Parts in which a target does not vary; each part has the (N, K) targets of its rows."""
    notes = []
    for part, values in parts.items():
        width = values.shape[1]
        for column in range(width):
            if np.ptp(values[:, column]) == 0:
                of = f" of {shown(labels[column], 60)}" if width > 1 else ""
                notes.append(f"all {part} targets{of} are {values[0, column]:g}")
    return notes


def _unlearnt(anywhere: dict[str, int], train: dict[str, int], dev: dict[str, int]) -> list[str]:
    """Labels that nobody has, or that train lacks; each is a count by label."""
    notes = []
    if nowhere := [name for name, count in anywhere.items() if not count]:
        notes.append(f"no utterance of the store is labelled {_listed(nowhere)}")
    unseen = [name for name, count in anywhere.items() if count and not train[name]]
    if unseen:
        where = [f"{n} (dev {dev[n]}, elsewhere {anywhere[n] - dev[n]})" for n in unseen]
        notes.append(f"train has no utterance of {_listed(where)}: it cannot be learnt")
    return notes


def _constant(counts: dict[str, dict[str, int]]) -> list[str]:
    """Parts of one class only."""
    notes = []
    for part, why in (
        ("train", "there is nothing to learn"),
        ("dev", "it says little about which epoch is best"),
    ):
        there = [name for name, count in counts[part].items() if count]
        if len(there) == 1:
            notes.append(
                f"{part} has one class, {shown(there[0])}: {why}, and a WA of 100 % is no success"
            )
    return notes


def _listed(names: Sequence[str], most: int = 5) -> str:
    text = ", ".join(shown(name, 60) for name in names[:most])
    return f"{text} and {len(names) - most} more" if len(names) > most else text


def held_out(table: pa.Table, fold: Fold | None = None) -> np.ndarray:
    """The test rows, labelled or not."""
    if fold is None:
        return np.flatnonzero(np.array(table["split"].to_pylist(), dtype=object) == "test")
    if fold.by == PUBLISHED:
        return np.flatnonzero(_parts(table, fold.name) == "test")
    return np.flatnonzero(np.isin(np.array(_values(table, fold.by), dtype=object), list(fold.held)))


def folds(
    table: pa.Table, target: np.ndarray, by: str, *, seed: int = 0
) -> tuple[list[Fold], tuple[str, ...]]:
    """Leave one group out for every value of a column; many groups are bundled into ten folds of
    even size.

    Args:
        table: The store's.
        target: Of all its rows, as `targets` gives it.
        by: session, speaker or dialogue; or PUBLISHED, the folds that came with the corpus.
        seed: Draws the bundles.

    Returns:
        The folds, and notes.

    Raises:
        DataError: There are fewer than three labelled groups, or no published folds; one of these
            has nothing to train on or to test.
    """
    if by == PUBLISHED:
        return _published_folds(table, target), ()
    size = _sizes(table, target, by)
    if len(size) < FEWEST_FOLDS:
        check_any(labelled(target))
        enough = (g for g in FOLDS if g != by and len(_sizes(table, target, g)) >= FEWEST_FOLDS)
        other = next(enough, None)
        remedy = f"; by {other} there are enough: --folds {other}" if other else ""
        raise DataError(
            f"--folds {by}: the store has {plural(len(size), 'labelled group')}; at least "
            f"{FEWEST_FOLDS} are needed (train, dev, test){remedy}"
        )
    notes = []
    if stored := set(table["split"].to_pylist()) - {"", None}:
        names = ", ".join(sorted(stored))
        notes.append(f"the stored splits ({names}) are not used: --folds {by} makes its own")
    if len(size) <= MOST_FOLDS:
        return [Fold(v, by, (v,)) for v in sorted(size)], tuple(notes)
    notes.append(f"{len(size)} {by} groups bundled into {BUNDLES} folds (seed {seed})")
    bundles = _bundles(size, seed)
    made = [Fold(f"{k:02d}", by, tuple(sorted(held))) for k, held in enumerate(bundles, start=1)]
    return made, tuple(notes)


def untested(table: pa.Table, target: np.ndarray, by: str, tested: np.ndarray) -> dict[str, int]:
    """How many rows no fold tests, by what they lack.

    Args:
        table: The store's.
        target: Of all its rows, as `targets` gives it.
        by: As for `folds`.
        tested: The rows that the folds test.

    Returns:
        Counts under `by` (rows without such a group), "label" (those of groups without a labelled
        row, which are no folds) and "fold" (others); none that is 0.
    """
    outside = np.full(len(table), True)
    outside[tested] = False
    lacks_group = np.full(len(table), False)
    if by != PUBLISHED:
        lacks_group = np.array([value is None for value in _values(table, by)], dtype=bool)
    lacks_label = ~lacks_group & ~labelled(target)
    parts = {by: lacks_group, "label": lacks_label, "fold": ~lacks_group & ~lacks_label}
    counts = {name: int((outside & part).sum()) for name, part in parts.items()}
    return {name: count for name, count in counts.items() if count}


def _published_folds(table: pa.Table, target: np.ndarray) -> list[Fold]:
    names = published(table)
    if not names:
        by = group_column(table, np.arange(len(table)), FOLDS)
        remedy = f", or --folds {by} makes some" if by else ""
        raise DataError(
            "--folds published: the store has none; they come with a table's fold column (`mer "
            f"prepare table --help`) or `mer prepare emobox`{remedy}"
        )
    known = labelled(target)
    check_any(known)
    for name in names:
        parts = _parts(table, name)
        for part in ("train", "test"):
            if not known[parts == part].any():
                raise DataError(
                    f"--folds published: fold '{shown(name, 60)}' has no labelled {part} rows in "
                    "the store; prepare it again, or leave that fold out"
                )
    return [Fold(name, PUBLISHED, (name,)) for name in names]


def _bundles(size: dict[str, int], seed: int) -> list[list[str]]:
    """Groups of these sizes in bundles of about as many rows: the largest first into the emptiest
    bundle, equals in an order drawn with `seed`.
    """
    order = sorted(size)
    np.random.default_rng(seed).shuffle(order)
    bundles: list[list[str]] = [[] for _ in range(BUNDLES)]
    load = [0] * BUNDLES
    for v in sorted(order, key=lambda v: -size[v]):
        emptiest = load.index(min(load))
        bundles[emptiest].append(v)
        load[emptiest] += size[v]
    return bundles


def _sizes(table: pa.Table, target: np.ndarray, by: str) -> dict[str, int]:
    """Labelled rows of every group."""
    pairs = zip(_values(table, by), labelled(target), strict=True)
    return Counter(v for v, known in pairs if v is not None and known)


def group_column(table: pa.Table, rows: np.ndarray, among: Sequence[str] = GROUPS) -> str | None:
    """The first of the group columns that every one of `rows` has a value in; None when there is no
    such column.
    """
    return next((g for g in among if _complete(table, g, rows)), None)


def _values(table: pa.Table, by: str) -> list[str | None]:
    if by not in table.column_names:
        return [None] * len(table)
    return [v or None for v in table[by].to_pylist()]


def _complete(table: pa.Table, by: str, rows: np.ndarray) -> bool:
    value = _values(table, by)
    inside = {value[r] for r in rows}
    return None not in inside and len(inside) >= 2


def _counts(split: np.ndarray) -> str:
    names, counts = np.unique([s or "none" for s in split], return_counts=True)
    return ", ".join(f"{n} {c}" for n, c in zip(names, counts, strict=True)) or "empty"


def _carve_by(table: pa.Table, train: np.ndarray, config: DataConfig, fold: Fold | None) -> str:
    """The unit dev is carved by.

    In speaker folds, and published ones, that is the speaker: dev then measures what test will, a
    voice never heard. Where a published fold has no groups at all it is the utterance.
    """
    if config.dev_by != "auto":
        if config.dev_by != "utterance" and not _complete(table, config.dev_by, train):
            raise DataError(
                f"data.dev_by = {config.dev_by}: not every training row has a {config.dev_by}, or "
                "there is only one"
            )
        return config.dev_by
    speakers_first = fold is not None and fold.by in ("speaker", PUBLISHED)
    by = group_column(table, train, ("speaker", *GROUPS) if speakers_first else GROUPS)
    if by is None and fold is not None and fold.by == PUBLISHED:
        return "utterance"
    if by is None:
        raise DataError(
            "the store has no dev split, and no dialogue, speaker or session column of two groups "
            "or more to carve one by; add one, or say that its utterances are independent: --set "
            "data.dev_by=utterance"
        )
    return by


def _carve(
    table: pa.Table, train: np.ndarray, target: np.ndarray, by: str, config: DataConfig
) -> tuple[np.ndarray, np.ndarray, str]:
    """Move whole groups from train to dev until dev has its share; of several seeded draws the one
    with the most train-like labels.
    """
    column = train if by == "utterance" else np.array(_values(table, by), dtype=object)[train]
    names, code = np.unique(column.astype(str), return_inverse=True)
    if len(names) < 2:
        raise DataError(
            f"dev cannot be carved by {by}: there is one group only; give the store more rows to "
            "train on, or a dev part"
        )
    size = np.bincount(code)
    wanted = config.dev_share * len(train)
    classes = _histogram(target)[train]
    whole = classes.mean(0)
    rng = np.random.default_rng(config.split_seed)
    best, best_distance, groups = np.zeros(len(train), dtype=bool), np.inf, 0
    for _ in range(CARVINGS):
        order = rng.permutation(len(names))
        filled = np.cumsum(size[order])
        count = min(int(np.argmin(np.abs(filled - wanted))) + 1, len(names) - 1)
        inside = np.isin(code, order[:count])
        distance = np.abs(classes[inside].mean(0) - whole).sum()
        distance += abs(inside.sum() - wanted) / len(train)
        if distance < best_distance:
            best, best_distance, groups = inside, distance, count
    dev = int(best.sum())
    share = f"{groups} of {plural(len(names), 'group')}, {plural(dev, 'row')}"
    rest = plural(len(train) - dev, "row remains", "rows remain")
    note = f"dev carved from train by {by}: {share}; {rest} (seed {config.split_seed})"
    if by == "utterance":
        note += "; a voice may be in both"
    return train[~best], train[best], note


def _histogram(target: np.ndarray) -> np.ndarray:
    """(N, K) indicator of what should be spread evenly: the class, the labels, or the sign of a
    regression target.
    """
    if target.ndim == 1:
        return (target[:, None] == np.arange(max(int(target.max(initial=0)) + 1, 1))).astype(float)
    if target.shape[1] == 1:
        return np.concatenate([target < 0, target > 0], axis=1).astype(float)
    return np.nan_to_num(target).astype(float)
