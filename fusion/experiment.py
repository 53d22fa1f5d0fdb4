"""What `mer train` runs: one training, or the same one over seeds and folds, each in its own
folder.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from mer.fusion import checkpoint, files, sinks, splits, typed
from mer.fusion.checkpoint import Run
from mer.fusion.config import TrainConfig
from mer.fusion.parallel import ALONE, Processes
from mer.fusion.records import GroupInfo
from mer.fusion.splits import Fold
from mer.fusion.train import (
    Note,
    beginning,
    beginning_of,
    check_config,
    check_folder,
    explain,
    fit,
    identity,
    settled,
    turns_key,
)
from mer.fusion.watch import Watch
from mer.pipeline.errors import DataError
from mer.pipeline.runtime.hold import hold
from mer.pipeline.runtime.progress import Silent
from mer.pipeline.store import FeatureStore

MOST_SEEDS = 10_000


@dataclass(frozen=True)
class Job:
    """One training of a group: the name of its folder, its fold and its configuration."""

    name: str
    fold: Fold | None
    config: TrainConfig


def train(
    store: FeatureStore,
    config: TrainConfig,
    folder: Path | None = None,
    *,
    seeds: int = 1,
    folds: str | None = None,
    runs: Path = Path("runs"),
    device: torch.device | str = "cpu",
    note: Note = print,
    processes: Processes = ALONE,
    lock: bool = True,
    command: str | None = None,
    progress: Silent | None = None,
    warn: bool = True,
    log: Sequence[str] = (),
) -> Run:
    """Train one model, or one for every seed and fold. What is finished is not trained again.

    Args:
        store: The features.
        config: The model and how it is trained.
        folder: The run folder; None: a new `runs/<dataset>-<model>-<n>`, or the one that this very
            command began before.
        seeds: How many, from `train.seed` on: s, s + 1, ...
        folds: session, speaker or dialogue: leave one of them out in turn, with a dev part carved
            from the rest.
        runs: Where new run folders go.
        device: Where to train.
        note: Told what the user should know, line by line.
        processes: Those that train together.
        lock: As in `mer.pipeline.runtime.hold.hold`.
        command: What was typed, for run.json.
        progress: Shows how far each training is; None: `note` is told every epoch.
        warn: Say which features come from encoders that nobody trained; the tables of
            mer.fusion.report say it, too.
        log: Names of `mer.fusion.sinks` that are told every epoch of every training.

    Returns:
        The finished run.

    Raises:
        DataError: The folder holds another run, the options do not fit the store, or a training
            failed.
        DependencyError: A package that `log` needs is missing.
    """
    sinks.check(log)
    if not 1 <= seeds <= MOST_SEEDS:
        raise DataError(f"--seeds {seeds}: expected at least 1 and at most {MOST_SEEDS:,}")
    config = settled(store, config)
    check_config(store, config)
    table = store.table()
    target = splits.targets(table, store.header.task, store.header.labels)
    parts: list[Fold | None] = [None]
    if folds is not None:
        made, notes = splits.folds(table, target, folds, seed=config.data.split_seed)
        parts = list(made)
        for line in notes:
            note(line)
    key = checkpoint.store_key(store)
    grouped = seeds > 1 or folds is not None
    turns = turns_key(store, config)
    if grouped:
        wanted = identity(config, key, seeds, folds, *turns)
    else:
        wanted = identity(config, key, None, *turns)
    stem = f"{store.header.dataset}-{config.model}"
    folder = folder or processes.agree(lambda: _default_folder(runs, stem, wanted, note))
    if warn:
        _name_untrained(store, note)

    def fit_into(place: Path, one: TrainConfig, fold: Fold | None) -> Run:
        split = splits.assign(table, target, one.data, fold, labels=store.header.labels)
        if grouped and place.is_symlink():
            raise DataError(f"{place}: a link where a run folder should be; remove it")
        if not grouped:
            processes.agree(lambda: check_folder(place, one, key, wanted))
        with _alone_in(place, processes, note, lock):
            return fit(
                store,
                one,
                place,
                split=split,
                fold=fold,
                device=device,
                note=note,
                processes=processes,
                command=command,
                watch=Watch(note, progress),
                log=log,
            )

    if not grouped:
        return fit_into(folder, config, None)
    jobs = _jobs(config, seeds, parts)
    info = GroupInfo(
        identity=wanted,
        store_key=key,
        model=config.model,
        seeds=seeds,
        folds=folds,
        children=tuple(job.name for job in jobs),
        features=str(Path(store.path).resolve()),
        store=checkpoint.describe_store(store),
        turns_key=next(iter(turns), None),
        finished=False,
        **beginning(command),
    )
    processes.agree(lambda: _check_group(folder, info, config))
    with _alone_in(folder, processes, note, lock):
        # again: another one may just have begun
        there = processes.agree(lambda: _check_group(folder, info, config))
        if processes.first and there is None:
            files.write_json(folder / checkpoint.INFO, typed.tree(info))
        if there is not None:
            info = replace(info, **beginning_of(there))
        for number, job in enumerate(jobs, start=1):
            note(f"[{number}/{len(jobs)}] {job.name}")
            fit_into(folder / job.name, job.config, job.fold)
        done = replace(info, finished=True)
        if processes.first and not (there and there.finished):
            files.write_json(folder / checkpoint.INFO, typed.tree(done))
    return Run(folder, done)


def _name_untrained(store: FeatureStore, note: Note) -> None:
    """Say which features come from encoders that nobody trained."""
    there = {m: info for m, info in store.header.modalities.items() if not info.trained}
    if there:
        names = ", ".join(dict.fromkeys(str(info.encoder) for info in there.values()))
        note(
            f"{' and '.join(there)}: features of UNTRAINED encoders ({names}); figures say nothing "
            "about real ones"
        )


def _jobs(config: TrainConfig, seeds: int, folds: Sequence[Fold | None]) -> list[Job]:
    """Every fold with every seed."""
    jobs = []
    for fold in folds:
        for seed in range(config.train.seed, config.train.seed + seeds):
            name = [f"fold-{plain_name(fold.name)}"] if fold else []
            name += [f"seed-{seed}"] if seeds > 1 else []
            one = replace(config, train=replace(config.train, seed=seed))
            jobs.append(Job("-".join(name), fold, one))
    if len({job.name for job in jobs}) < len(jobs):
        by = next(fold.by for fold in folds if fold)
        raise DataError(
            f"--folds {by}: two groups have the same name once written as a folder name; rename "
            "them"
        )
    return jobs


@contextmanager
def _alone_in(folder: Path, processes: Processes, note: Note, lock: bool) -> Iterator[None]:
    """Hold a run folder, so that a second training into it is refused; a finished run is only
    looked at.
    """
    with ExitStack() as stack:

        def enter() -> str | None:
            done = (folder / checkpoint.INFO).exists() and Run.open(folder).finished
            if done:
                return None
            left_behind = stack.enter_context(hold(folder / checkpoint.HOLD, lock=lock))
            files.tidy(folder)
            return left_behind

        left_behind = processes.agree(enter)
        if left_behind:
            note(f"{folder}: {left_behind}")
        yield


def _check_group(folder: Path, info: GroupInfo, config: TrainConfig) -> Run | None:
    """The group of this identity that `folder` holds, None if it is free; anything else there is
    left alone (DataError).
    """
    if (folder / checkpoint.INFO).exists():
        there = Run.open(folder)
        if there.info.identity != info.identity:
            reason = (
                explain(there, info.store_key, config)
                if not isinstance(there.info, GroupInfo)
                else "other configuration, seeds, folds or store"
            )
            raise DataError(f"{folder}: holds another run ({reason}); choose another --out")
        return there
    if checkpoint.strangers(folder):
        raise DataError(f"{folder}: not empty and not a run folder; choose another --out")
    return None


def _default_folder(runs: Path, stem: str, wanted: str, note: Note) -> Path:
    stem = plain_name(stem)
    numbered = re.compile(re.escape(stem) + r"-(\d+)")
    matches = ((path, numbered.fullmatch(path.name)) for path in runs.glob(f"{stem}-*"))
    taken = {int(found[1]): path for path, found in matches if found}
    for path in taken.values():
        try:
            if (path / checkpoint.INFO).exists() and Run.open(path).info.identity == wanted:
                return path
        except DataError as error:  # of another training, perhaps
            note(f"{error} (left aside)")
    return runs / f"{stem}-{max(taken, default=0) + 1}"


def plain_name(name: str) -> str:
    """A name that is safe as a folder's."""
    return re.sub(r"[^A-Za-z0-9_.+]+", "-", name).strip("-.") or "x"
