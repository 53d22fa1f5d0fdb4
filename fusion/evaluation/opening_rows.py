"""Which rows are scored, and who has seen them: every opening of a test part is noted before it is
read.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from mer.fusion.config import to_tree
from mer.fusion.data import splits
from mer.fusion.evaluation.answering import predict_rows
from mer.fusion.evaluation.crosscorpus import WHOLE
from mer.fusion.runs import checkpoint, ledger, moved
from mer.fusion.runs.checkpoint import Run
from mer.fusion.runs.prediction_table import Predicted, seeds_of
from mer.fusion.runs.records import SplitIds
from mer.fusion.runtime import files
from mer.fusion.runtime.files import TEST_LOG
from mer.fusion.runtime.notes import Note
from mer.pipeline.errors import DataError
from mer.pipeline.runtime.files import near
from mer.pipeline.runtime.limits import SPLIT_JSON_BYTES
from mer.pipeline.runtime.progress import Silent
from mer.pipeline.runtime.terminal import plural, shown
from mer.pipeline.store import FeatureStore

OPENED = ("test", WHOLE)  # what nobody may have chosen by: every opening is noted


def scored_store(run: Run, features: str | os.PathLike | None, note: Note) -> Path:
    """The store that a run is scored on: `features`, or the one that it was trained on.

    Args:
        run: A run, or one over seeds or folds.
        features: The store; None: the one that the run was trained on.
        note: Told where that is, where it has moved.

    Returns:
        Its path.

    Raises:
        DataError: It is not there.
    """
    if features is None:
        return moved.store_of(run, note)
    path = Path(features)
    if not path.exists():
        raise DataError(
            f"{path}: no such store{near(path)}; name the one to evaluate on with --features"
        )
    return path


def predict_split(
    run: Run,
    store: FeatureStore,
    split: str,
    device: torch.device | str,
    progress: Silent,
    note: Note,
    seen_by: str | None = None,
) -> pa.Table:
    """What a run answers of a split, as `predict_rows` describes it; `seen_by` as for
    `note_opening`.
    """
    rows, pool = opened_rows(run, store, split, note, seen_by=seen_by)
    return predict_rows(run, store, rows, device=device, progress=progress, pool=pool)


def opened_rows(
    run: Run,
    store: FeatureStore,
    split: str,
    note: Note,
    what: str = ledger.FIGURES,
    *,
    mapped: bool = False,
    seen_by: str | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """As `rows_of`; that the test part is opened is noted first, as `note_opening` does."""
    rows, pool = rows_of(run, store, split, mapped=mapped)
    if split in OPENED:
        check_unseen(run, store, rows, split, note)
        note_opening(run, store, rows, note, what, seen_by)
    elif split == "dev":
        check_unseen(run, store, rows, split, note)
    return rows, pool


def rows_of(
    run: Run, store: FeatureStore, split: str, *, mapped: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """The rows of a part, and those among which they find neighbours; DataError where there are
    none. Of another corpus, whose labels are `mapped`, the parts are those it stores.
    """
    table = store.table()
    if split == WHOLE:
        rows = pool = np.arange(len(table))
    elif mapped:
        rows = pool = np.flatnonzero(np.array(table["split"].to_pylist(), dtype=object) == split)
    elif split == "test":
        rows = pool = splits.held_out(table, run.fold)
    else:
        target = splits.targets(table, run.spec.task, run.spec.labels)
        assigned = splits.assign(table, target, run.config.data, run.fold)
        training = split == "train"
        rows = assigned.train if training else assigned.dev
        pool = assigned.train_pool if training else assigned.dev_pool
    if not len(rows):
        remedy = "; evaluate another split, or train with --folds" if split == "test" else ""
        remedy = "; --split all scores every row of another corpus" if mapped else remedy
        raise DataError(f"{store.path}: no {split} rows{remedy}")
    return rows, pool


def check_unseen(run: Run, store: FeatureStore, rows: np.ndarray, split: str, note: Note) -> None:
    """Raise DataError when test rows were used in training, or dev rows trained: of another store
    dev may be carved anew. Of a corpus of another name only tell that there are such ids: they may
    be other clips.
    """
    path = run.verified(checkpoint.SPLIT)
    used = files.read_json(path, SplitIds, checkpoint.AGAIN, most=SPLIT_JSON_BYTES)
    ids = store.table()["id"].to_pylist()
    known = used.train if split == "dev" else (*used.train, *used.dev)
    leaked = {ids[row] for row in rows} & set(known)
    if leaked and store.header.dataset != run.info.store.dataset:
        some = f"{plural(len(leaked), 'row')} (first: {shown(min(leaked), 60)})"
        note(
            f"{store.path}: {some} have ids that training {run.path.name} had, too; if they are "
            f"the same clips, these are no {split} figures"
        )
    elif leaked and split == WHOLE:
        raise DataError(
            f"{store.path}: {run.path} was trained on {len(leaked):,} of its rows (first: "
            f"{shown(min(leaked), 60)}); --split all is for a corpus that it has not seen"
        )
    elif leaked and split == "dev":
        some = f"{plural(len(leaked), 'row')} of its dev part (first: {shown(min(leaked), 60)})"
        raise DataError(
            f"{store.path}: {some} trained {run.path}; score dev on the store that it was trained "
            "on, or give this one the same dev part"
        )
    elif leaked:
        some = f"{plural(len(leaked), 'test row')} (first: {min(leaked)})"
        were = "was" if len(leaked) == 1 else "were"
        raise DataError(
            f"{store.path}: {some} {were} used in training {run.path}; train again on the splits "
            "as they are now"
        )


def note_opening(
    run: Run,
    store: FeatureStore,
    rows: np.ndarray,
    note: Note,
    what: str = ledger.FIGURES,
    seen_by: str | None = None,
) -> None:
    """Note in the run's log and in the ledger that the test part is opened, before it is read; how
    often that was is part of the result. `seen_by` is the configuration that the figures are of,
    where that is not the run's own.
    """
    header = store.header
    opening = ledger.Opening(
        id=ledger.new_id(),
        time=datetime.now(UTC).isoformat(timespec="seconds"),
        store=str(Path(store.path).resolve()),
        fingerprint=header.fingerprint,
        rows=len(rows),
        content=content_of_rows(store, rows),
        configuration=seen_by or configuration(run),
        training=run.info.identity,
        run=str(run.path.resolve()),
        model=run.info.model,
        dataset=header.dataset,
        seed=run.single.seed,
        fold=None if run.fold is None else run.fold.name,
        what=what,
    )
    ledger.record(opening, log=run.path / TEST_LOG, store=Path(store.path).resolve(), note=note)


def content_of_rows(store: FeatureStore, rows: np.ndarray) -> str:
    """What stands for the rows."""
    header = store.header
    table = store.table().take(pa.array(rows))
    labelled = _labelled(table, header.task, header.labels)
    return ledger.content_of(header.task, header.labels, *labelled)


def _labelled(table: pa.Table, task: str, labels: Sequence[str]) -> tuple[list[str], list[Any]]:
    """(ids, references) of the rows that have one."""
    kept = pa.array(splits.labelled(splits.targets(table, task, labels)))
    table = table.filter(kept)
    truth = table["label" if task == "single" else "targets"]
    return table["id"].to_pylist(), truth.to_pylist()


def configuration(run: Run) -> str:
    """What stands for what was tried: a sha256 of the settings without the seed, and of the store
    that they were trained on.
    """
    settings = to_tree(run.config)
    settings["train"].pop("seed")
    text = json.dumps([settings, run.info.store_key], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def ensemble_configuration(runs: Iterable[Run]) -> str:
    """What stands for the mean of some trainings, which is something else that was tried."""
    each = sorted(map(configuration, runs))
    return hashlib.sha256(json.dumps(["ensemble", each]).encode()).hexdigest()


def seen(
    children: Sequence[Run],
    p: Predicted,
    seen_by: str | None = None,
    others: Iterable[Predicted] = (),
) -> ledger.Seen:
    """Who has seen the rows on which evaluated runs were tested.

    Args:
        children: Single trainings, those of groups among them, that share their test rows.
        p: The test predictions of one of them, or of its group.
        seen_by: The configuration that is shown of all of them together, an ensemble's; None: that
            of each.
        others: Those of runs over other folds with the same rows, which ledgers have fold by fold.

    Returns:
        The counts, by the ledgers of all stores on which these runs are known to be evaluated.
    """
    stores: list[Path] = []
    for child in children:
        stores += [_store_or_place(child)] if ledger.is_path(child.info.features) else []
        stores += ledger.stores_of(child.path / TEST_LOG)
    shown_here = tried(children)
    if seen_by is not None:
        shown_here = [(seen_by, training) for _, training in shown_here]
    contents = chain.from_iterable(map(_contents, (p, *others)))
    return ledger.seen(contents, len(seeds_of(p)[0].true), stores, shown_here)


def _store_or_place(run: Run) -> Path:
    """The store of a run; where it is gone the place that it had, beside which a ledger may be."""
    return moved.find(run).path or Path(run.info.features)


def tried(children: Iterable[Run]) -> list[tuple[str, str]]:
    """(configuration, training) of each."""
    return [(configuration(child), child.info.identity) for child in children]


def _contents(p: Predicted) -> list[str]:
    """What stands for the rows of a predictions table; of a run over folds, for those of each."""
    folds = [None] * len(p.table)
    if "fold" in p.table.column_names:
        folds = p.table["fold"].to_pylist()
    first = np.full(len(p.table), True)
    if "seed" in p.table.column_names:
        seed = p.table["seed"].to_numpy()
        first = seed == seed.min(initial=seed[0] if len(seed) else 0)
    found = []
    for fold in dict.fromkeys(folds):
        rows = first & np.array([one == fold for one in folds], dtype=bool)
        part = p.table.filter(pa.array(rows))
        found.append(ledger.content_of(p.task, p.labels, *_labelled(part, p.task, p.labels)))
    return found
