"""What `mer train` runs: one training, or the same one over seeds and folds, each in its own
folder.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import chain, count
from pathlib import Path

import torch

from mer.fusion.config import TrainConfig
from mer.fusion.data import splits, unimodal
from mer.fusion.data.splits import Fold
from mer.fusion.models import build, model_class
from mer.fusion.runs import checkpoint
from mer.fusion.runs.checkpoint import Run
from mer.fusion.runs.identity import (
    beginning,
    beginning_of,
    check_folder,
    explain,
    identity,
    turns_key,
)
from mer.fusion.runs.records import GroupInfo
from mer.fusion.runtime import files, typed
from mer.fusion.runtime.notes import Note, Once
from mer.fusion.runtime.parallel import ALONE, Processes
from mer.fusion.training import sinks
from mer.fusion.training.members import (
    Member,
    Setting,
    alone_in,
    finished,
    train_at_once,
    train_member,
)
from mer.fusion.training.training_setup import check_config, settled, spec_of
from mer.pipeline.errors import DataError
from mer.pipeline.runtime.progress import Silent
from mer.pipeline.store import FeatureStore

MOST_SEEDS = 10_000
MOST_JOBS = 1_000
# Multiplications and additions of a training: two of each weight for a step of a sequence, forward
# and twice backward; what a core does of them in half a minute, against which seconds to start a
# process are little.
PASSES = 6
SEQUENCE_STEPS = 32
OPERATIONS_THAT_PAY = 1e12


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
    jobs: int | None = None,
) -> Run:
    """Train one model, or one for every seed and fold. What is finished is not trained again.

    Args:
        store: The features.
        config: The model and how it is trained.
        folder: The run folder; None: a new `runs/<dataset>-<model>-<n>`, or the one that this very
            command began before.
        seeds: How many, from `train.seed` on: s, s + 1, ...
        folds: session, speaker or dialogue: leave one of them out in turn, with a dev part carved
            from the rest. published: the folds that came with the corpus; dev is carved where
            they have none.
        runs: Where new run folders go.
        device: Where to train.
        note: Told what the user should know, line by line.
        processes: Those that train together.
        lock: As in `mer.pipeline.runtime.hold.hold`.
        command: What was typed, for run.json.
        progress: Shows how far each training is; None: `note` is told every epoch.
        warn: Say which features come from encoders that nobody trained; the tables of
            mer.fusion.report say it, too.
        log: Names of `mer.fusion.training.sinks` that are told every epoch of every training.
        jobs: How many runs over seeds and folds train at a time, each in a process; None: as many
            as the processor has cores where that pays (`jobs_that_pay`).

    Returns:
        The finished run.

    Raises:
        DataError: The folder holds another run, the options do not fit the store, or a training
            failed.
        DependencyError: A package that `log` needs is missing.
    """
    sinks.check(log)
    grouped = seeds > 1 or folds is not None
    if jobs is not None:
        _check_jobs(jobs, grouped, processes)
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
    turns = turns_key(store, config)
    alone = unimodal.key(store, config)
    if grouped:
        wanted = identity(config, key, seeds, folds, *turns, *alone)
    else:
        wanted = identity(config, key, None, *turns, *alone)
    stem = f"{store.header.dataset}-{config.model}"
    folder = folder or processes.agree(lambda: _default_folder(runs, stem, wanted, note))
    if warn:
        _name_untrained(store, note)

    setting = Setting(device=str(device), command=command, log=tuple(log), lock=lock)

    train_into = partial(
        train_member,
        store,
        setting=setting,
        note=note,
        progress=progress,
        processes=processes,
        remark=Once(note),
    )
    if not grouped:
        processes.agree(lambda: check_folder(folder, config, key, wanted))
        return train_into(Member("", None, config), folder)
    members = _members(config, seeds, parts)
    if jobs is None:
        jobs = 1 if processes.size > 1 else jobs_that_pay(store, members, torch.device(device))
    jobs = min(jobs, len(members))
    info = GroupInfo(
        identity=wanted,
        store_key=key,
        model=config.model,
        seeds=seeds,
        folds=folds,
        children=tuple(member.name for member in members),
        features=str(Path(store.path).resolve()),
        store=checkpoint.describe_store(store),
        turns_key=next(iter(turns), None),
        finished=False,
        **beginning(command),
    )
    processes.agree(lambda: _check_group(folder, info, config))
    with alone_in(folder, processes, note, lock):
        # again: another one may just have begun
        there = processes.agree(lambda: _check_group(folder, info, config))
        if processes.first and there is None:
            files.write_json(folder / checkpoint.INFO, typed.tree(info))
        if there is not None:
            info = replace(info, **beginning_of(there))
        left = _left(members, folder) if jobs > 1 else []
        for number, member in enumerate(members, start=1):
            if member not in left:
                note(f"[{number}/{len(members)}] {member.name}")
                train_into(member, _no_link(folder / member.name))
        if left:
            path = Path(store.path).resolve()
            train_at_once(path, left, folder, setting, jobs=jobs, note=note, progress=progress)
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


def _check_jobs(jobs: int, grouped: bool, processes: Processes) -> None:
    """Raise DataError for a `--jobs` that cannot be meant."""
    if not 1 <= jobs <= MOST_JOBS:
        raise DataError(f"--jobs {jobs}: expected at least 1 and at most {MOST_JOBS:,}")
    if jobs > 1 and processes.size > 1:
        raise DataError(
            f"--jobs {jobs}: under torchrun all processes train one run; leave out one of the two"
        )
    if jobs > 1 and not grouped:
        raise DataError(f"--jobs {jobs}: there is one run to train; add --seeds or --folds")


def jobs_that_pay(store: FeatureStore, members: Sequence[Member], device: torch.device) -> int:
    """How many runs to train at a time: on a CPU as many as there are cores, where training them
    takes far longer than starting as many processes. It follows from the store, the configuration
    and the machine, not from how long anything takes here: the number of threads rounds.
    """
    cores = torch.get_num_threads()
    if device.type != "cpu" or cores == 1:
        return 1
    config = members[0].config
    kind, arguments = model_class(config.model)[0], config.model_args
    model = build(config.model, arguments, spec_of(store, config))
    size = sum(p.numel() for p in model.parameters())
    steps = 1 if kind.summary else SEQUENCE_STEPS
    epochs = len(members) * config.train.epochs * len(store)
    return cores if PASSES * size * steps * epochs >= OPERATIONS_THAT_PAY else 1


def _members(config: TrainConfig, seeds: int, folds: Sequence[Fold | None]) -> list[Member]:
    """Every fold with every seed."""
    found = []
    for fold, called in zip(folds, _fold_folders(folds), strict=True):
        for seed in range(config.train.seed, config.train.seed + seeds):
            name = [called] if called else []
            name += [f"seed-{seed}"] if seeds > 1 else []
            one = replace(config, train=replace(config.train, seed=seed))
            found.append(Member("-".join(name), fold, one))
    return found


def _fold_folders(folds: Sequence[Fold | None]) -> list[str]:
    """The folder of each fold; those whose names are written alike, as all of Chinese letters are,
    are numbered.
    """
    taken: set[str] = set()
    found = []
    for fold in folds:
        stem = f"fold-{plain_name(fold.name)}" if fold else ""
        numbers = (f"{stem}-{number}" for number in count(2))
        name = next(name for name in chain([stem], numbers) if name not in taken)
        taken.add(name)
        found.append(name)
    return found


def _left(members: Sequence[Member], folder: Path) -> list[Member]:
    """The members that are not trained yet."""
    return [one for one in members if not finished(_no_link(folder / one.name))]


def _no_link(place: Path) -> Path:
    """The folder of a run of a group, which must not lead elsewhere."""
    if place.is_symlink():
        raise DataError(f"{place}: a link where a run folder should be; remove it")
    return place


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
