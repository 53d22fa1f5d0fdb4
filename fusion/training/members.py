"""The runs of a group over seeds or folds, each trained on its own: one after the other, or several
at a time in processes (pool.py).

A process trains one run after the other, as `train_member` does here. Nothing but rounding can
depend on how many there are, and that only through the number of threads.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mer.fusion.config import TrainConfig
from mer.fusion.data import splits
from mer.fusion.data.splits import Fold
from mer.fusion.runs import checkpoint
from mer.fusion.runs.checkpoint import Run
from mer.fusion.runtime import files
from mer.fusion.runtime.notes import Note, Once
from mer.fusion.runtime.parallel import ALONE, Processes
from mer.fusion.runtime.pool import Pool, Tell
from mer.fusion.training.one_epoch import DivergedError
from mer.fusion.training.train import fit
from mer.fusion.training.watch import Watch
from mer.pipeline.errors import DataError, MerError
from mer.pipeline.runtime.hold import hold
from mer.pipeline.runtime.progress import Show, Silent
from mer.pipeline.runtime.terminal import plural
from mer.pipeline.store import FeatureStore

SHOW_SECONDS = 0.2  # between two words of a process about how far it is


@dataclass(frozen=True)
class Member:
    """One training: the name of its folder, its fold and its configuration."""

    name: str
    fold: Fold | None
    config: TrainConfig


@dataclass(frozen=True)
class Setting:
    """What the trainings of a group have in common; the fields are arguments of `fit`.

    Attributes:
        lock: As in `mer.pipeline.runtime.hold.hold`.
    """

    device: str
    command: str | None = None
    log: tuple[str, ...] = ()
    lock: bool = True


def train_member(
    store: FeatureStore,
    member: Member,
    folder: Path,
    setting: Setting,
    *,
    note: Note,
    progress: Silent | None,
    processes: Processes = ALONE,
    among: int = 1,
    remark: Note | None = None,
) -> Run:
    """Train one run into its folder, which is held meanwhile.

    Args:
        store: The features.
        member: What is trained.
        folder: The run folder.
        setting: What it has in common with others.
        note: Told what the user should know, line by line.
        progress: Shows how far it is; None: `note` is told every epoch.
        processes: Those that train together.
        among: As for `fit`.
        remark: As for `fit`.

    Returns:
        The finished run.

    Raises:
        DataError: As `fit`, or somebody else holds the folder.
    """
    table = store.table()
    target = splits.targets(table, store.header.task, store.header.labels)
    config, fold = member.config, member.fold
    labels, task = store.header.labels, store.header.task
    split = splits.assign(table, target, config.data, fold, labels=labels, task=task)
    with alone_in(folder, processes, note, setting.lock):
        return fit(
            store,
            config,
            folder,
            split=split,
            fold=fold,
            device=setting.device,
            note=note,
            processes=processes,
            command=setting.command,
            watch=Watch(note, progress),
            log=setting.log,
            among=among,
            remark=remark,
        )


@contextmanager
def alone_in(folder: Path, processes: Processes, note: Note, lock: bool) -> Iterator[None]:
    """Hold a run folder, so that a second training into it is refused; a finished run is only
    looked at.
    """
    with ExitStack() as stack:

        def enter() -> str | None:
            if finished(folder):
                return None
            left_behind = stack.enter_context(hold(folder / checkpoint.HOLD, lock=lock))
            files.tidy(folder)
            return left_behind

        left_behind = processes.agree(enter)
        if left_behind:
            note(f"{folder}: {left_behind}")
        yield


def finished(folder: Path) -> bool:
    """Whether there is a finished run."""
    return (folder / checkpoint.INFO).exists() and Run.open(folder).finished


def train_at_once(
    store: Path,
    members: Sequence[Member],
    folder: Path,
    setting: Setting,
    *,
    jobs: int,
    note: Note,
    progress: Silent | None,
) -> None:
    """Train several runs into folders of their names, `jobs` at a time.

    Args:
        store: The features.
        members: What is trained.
        folder: Of the group.
        setting: What they have in common.
        jobs: How many processes, which share this one's threads; a run's figures follow from
            their number to rounding, so it is the same for those of a group that are left.
        note: Told what the user should know, line by line.
        progress: Shows how far they are; None: `note` is told every epoch.

    Raises:
        DataError: One of them failed, which ends the others; they go on where they were.
    """
    threads, started = max(torch.get_num_threads() // jobs, 1), min(jobs, len(members))
    note(
        f"{plural(len(members), 'run')} in {plural(started, 'process', 'processes')} of "
        f"{plural(threads, 'thread')} (--jobs {jobs})"
    )
    shown = progress or Silent()
    waiting = [
        _Task(store, member, folder, setting, jobs, progress is not None)
        for member in reversed(members)
    ]
    remark = Once(note)
    with shown.follow(len(members)) as show:
        board = _Board([member.name for member in members], show)

        def heard(task: _Task, said: tuple[str, Any]) -> None:
            kind, what = said
            if kind == "note":
                note(f"{task.member.name}: {what}")
            elif kind == "remark":
                remark(what, of=task.member.name)
            else:
                board.at(task.member.name, *what)

        pool = Pool(_trained, lambda task: task.member.name, jobs=jobs, threads=threads)
        pool.run(
            lambda: waiting.pop() if waiting else None,
            heard,
            lambda task, nothing: board.done(task.member.name),
        )


@dataclass(frozen=True)
class _Task:
    """What a process is sent; `followed`: somebody shows progress."""

    store: Path
    member: Member
    folder: Path
    setting: Setting
    among: int
    followed: bool


class _Board:
    """How far the trainings are, on one bar."""

    def __init__(self, names: Sequence[str], show: Show) -> None:
        self.share = dict.fromkeys(names, 0.0)
        self.show, self.finished = show, 0

    def at(self, name: str, share: float, text: str, told: bool) -> None:
        """One training has done this share of its epochs."""
        self.share[name] = share
        self.say(f"{name}: {text}", told)

    def done(self, name: str) -> None:
        """One training has ended; dev may have stopped it early."""
        self.share[name] = 1.0
        self.finished += 1
        self.say(f"{name}: done", True)

    def say(self, text: str, told: bool) -> None:
        so_far = f"{self.finished} of {plural(len(self.share), 'run')} done  "
        self.show(sum(self.share.values()), so_far + text, told=told)


# ---- In such a process


class _Told(Silent):
    """Passes on how far the training is."""

    def __init__(self, tell: Tell) -> None:
        self.tell = tell

    @contextmanager
    def follow(self, total: float) -> Iterator[Show]:
        last = 0.0

        def show(done: float, text: str, told: bool = False) -> None:
            nonlocal last
            now = time.monotonic()
            if told or now - last >= SHOW_SECONDS:
                last = now
                self.tell(("show", (done / total, text, told)))

        yield show


def _trained(task: _Task, tell: Tell) -> None:
    """Train one of them."""
    name = task.member.name
    try:
        with FeatureStore(task.store) as store:
            train_member(
                store,
                task.member,
                task.folder / name,
                task.setting,
                note=lambda text: tell(("note", text)),
                remark=lambda text: tell(("remark", text)),
                progress=_Told(tell) if task.followed else None,
                among=task.among,
            )
    except MerError as error:
        kind = DivergedError if isinstance(error, DivergedError) else DataError
        failed = kind(f"{name}: {error}")
        failed.exit_code = error.exit_code
        raise failed from None
