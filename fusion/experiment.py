"""What `mer train` runs: one training, or the same one over seeds and folds, each in its own
folder.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from mer.fusion import checkpoint, files, splits
from mer.fusion.checkpoint import Run
from mer.fusion.config import TrainConfig
from mer.fusion.parallel import ALONE, Processes
from mer.fusion.splits import Fold
from mer.fusion.train import Note, check, check_folder, explain, fit, identity
from mer.pipeline.errors import DataError
from mer.pipeline.runtime.hold import hold
from mer.pipeline.store import FeatureStore

MOST_SEEDS = 10_000


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
) -> Run:
    """Train into `folder` (None: a new `runs/<dataset>-<model>-<n>`, or the one that this very
    command began before).

    `seeds` N trains with seeds s, s+1, ... s+N-1 (s is `train.seed`); `folds` leaves one session,
    speaker or dialogue out in turn, with a dev part carved from the rest. What is finished is not
    trained again. `lock` as in `mer.pipeline.runtime.hold.hold`.
    """
    if not 1 <= seeds <= MOST_SEEDS:
        raise DataError(f"--seeds {seeds}: expected at least 1 and at most {MOST_SEEDS:,}")
    check(store, config)
    table = store.table()
    target = splits.targets(table, store.header.task, store.header.labels)
    parts: list[Fold | None] = [None]
    if folds is not None:
        parts, notes = splits.folds(table, target, folds, seed=config.data.split_seed)
        for n in notes:
            note(n)
    key = checkpoint.store_key(store)
    grouped = seeds > 1 or folds is not None
    wanted = identity(config, key, seeds, folds) if grouped else identity(config, key, None)
    stem = f"{store.header.dataset}-{config.model}"
    folder = folder or processes.agree(lambda: _default_folder(runs, stem, wanted, note))
    for m, info in store.header.modalities.items():
        if not info.trained:
            note(
                f"{m}: features of an UNTRAINED encoder ({info.encoder}); figures say nothing "
                "about a real one"
            )
    if not grouped:
        plan = splits.plan(table, target, config.data, labels=store.header.labels)
        processes.agree(lambda: check_folder(folder, config, key, wanted))
        with _alone_in(folder, processes, note, lock):
            return fit(
                store, config, folder, plan=plan, device=device, note=note, processes=processes
            )

    children: list[tuple[str, Fold | None, TrainConfig]] = []
    for f in parts:
        for seed in range(config.train.seed, config.train.seed + seeds):
            name = "-".join(
                [
                    *([f"fold-{_plain(f.name)}"] if f else []),
                    *([f"seed-{seed}"] if seeds > 1 else []),
                ]
            )
            children.append((name, f, replace(config, train=replace(config.train, seed=seed))))
    if len({name for name, _, _ in children}) < len(children):
        raise DataError(
            f"--folds {folds}: two groups have the same name once written as a folder name; "
            "rename them"
        )
    info = {
        "format": "mer-run",
        "version": checkpoint.VERSION,
        "kind": "group",
        "identity": wanted,
        "store_key": key,
        "model": config.model,
        "seeds": seeds,
        "folds": folds,
        "children": [name for name, _, _ in children],
        "features": str(Path(store.path).resolve()),
        "store": checkpoint.describe_store(store),
        "finished": False,
    }
    processes.agree(lambda: _check_group(folder, info, config))
    with _alone_in(folder, processes, note, lock):
        # again: another one may just have begun
        there = processes.agree(lambda: _check_group(folder, info, config))
        if processes.first and there is None:
            files.write_json(folder / checkpoint.INFO, info)
        for k, (name, fold, one) in enumerate(children):
            note(f"[{k + 1}/{len(children)}] {name}")
            plan = splits.plan(table, target, one.data, fold, labels=store.header.labels)
            if (folder / name).is_symlink():
                raise DataError(f"{folder / name}: a link where a run folder should be; remove it")
            with _alone_in(folder / name, processes, note, lock):
                fit(
                    store,
                    one,
                    folder / name,
                    plan=plan,
                    fold=fold,
                    device=device,
                    note=note,
                    processes=processes,
                )
        info["finished"] = True
        if processes.first and not (there and there.finished):
            files.write_json(folder / checkpoint.INFO, info)
    return Run(folder, info)


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


def _check_group(folder: Path, info: dict, config: TrainConfig) -> Run | None:
    """The group of this identity that `folder` holds, None if it is free; anything else there is
    left alone (DataError).
    """
    if (folder / checkpoint.INFO).exists():
        there = Run.open(folder)
        if there.info["identity"] != info["identity"]:
            single = there.info["kind"] == "single"
            reason = (
                explain(there, info["store_key"], config)
                if single
                else "other configuration, seeds, folds or store"
            )
            raise DataError(f"{folder}: holds another run ({reason}); choose another --out")
        return there
    if checkpoint.strangers(folder):
        raise DataError(f"{folder}: not empty and not a run folder; choose another --out")
    return None


def _default_folder(runs: Path, stem: str, wanted: str, note: Note) -> Path:
    stem = _plain(stem)
    taken = {
        int(m[1]): p
        for p in runs.glob(f"{stem}-*")
        if (m := re.fullmatch(re.escape(stem) + r"-(\d+)", p.name))
    }
    for path in taken.values():
        try:
            if (path / checkpoint.INFO).exists() and Run.open(path).info["identity"] == wanted:
                return path
        except DataError as error:  # of another training, perhaps
            note(f"{error} (left aside)")
    return runs / f"{stem}-{max(taken, default=0) + 1}"


def _plain(name: str) -> str:
    """A name that is safe as a folder's."""
    return re.sub(r"[^A-Za-z0-9_.+]+", "-", name).strip("-.") or "x"
