"""`mer tune`: the same budget of trials for every model, drawn at random or by TPE, scored on dev.

    OUT/tune.json                  what is searched, and how
    OUT/MODEL/trial-000/           the run of a trial, or its runs over seeds
    OUT/MODEL/trial-000.json       its settings and dev figures: written last, it says it is done
    OUT/MODEL.toml                 the configuration with the best dev figure, as a preset

A trial is an `experiment.train`, which knows no function that gives the test rows. The settings of
a random trial follow from the seed of the search and its number alone, so that a search can be
killed at any moment, goes on with the same trials, and can be given more of them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch

from mer.fusion import config as configs
from mer.fusion.config import TrainConfig
from mer.fusion.data import splits, unimodal
from mer.fusion.measures import metrics
from mer.fusion.measures.tables import number
from mer.fusion.runs import checkpoint, prune
from mer.fusion.runs.identity import identity, turns_key
from mer.fusion.runtime import files, typed
from mer.fusion.runtime.notes import Note
from mer.fusion.runtime.pool import Pool, Tell
from mer.fusion.training import tpe
from mer.fusion.training import trials as trial_files
from mer.fusion.training.experiment import MOST_SEEDS, train
from mer.fusion.training.one_epoch import DivergedError
from mer.fusion.training.space import Settings, Space
from mer.fusion.training.training_setup import check_config
from mer.fusion.training.trials import Method, Search, SearchResult, Trial
from mer.fusion.training.tuning_results import result_of
from mer.pipeline.errors import DataError
from mer.pipeline.runtime.hold import hold
from mer.pipeline.runtime.machine import cores
from mer.pipeline.runtime.progress import SILENT, Silent
from mer.pipeline.runtime.terminal import plural, shown
from mer.pipeline.store import FeatureStore

FORMAT, VERSION = "mer-tune", 1
MOST_TRIALS = 10_000
MOST_NAMED = 3  # differences between two searches, in a message
DIFFERENCE_CHARACTERS = 60  # of each
ELSEWHERE = "choose another --out"
REMEDY = "delete it and run the same command again"


@dataclass(frozen=True, kw_only=True)
class Head:
    """What tune.json says: `identity` names everything but how many trials there are. The fields
    behind `spaces` say in words what goes into it (None: an earlier mer): the base configuration of
    each model, the store and its key, and what of it is read besides.
    """

    format: str = FORMAT
    version: int = VERSION
    identity: str
    models: tuple[str, ...]
    seeds: int
    folds: str | None
    method: Method
    seed: int
    spaces: tuple[dict[str, Any], ...]
    settings: tuple[dict[str, str], ...] | None = typed.optional()
    store: str | None = typed.optional()
    store_key: str | None = typed.optional()
    further: tuple[str, ...] | None = typed.optional()


@dataclass(frozen=True)
class TrialOptions:
    """How every trial is trained: `runs` over seeds and folds, where, and with what in run.json."""

    seeds: int
    folds: str | None
    runs: int
    device: str
    lock: bool
    command: str | None


@dataclass(frozen=True)
class Task:
    """One trial to be trained; what another process needs to know of it."""

    features: str
    config: str
    folder: Path
    number: int
    options: TrialOptions


@dataclass(frozen=True)
class TrialResult:
    """How a trial ended: the dev figures and epochs of its runs, or why it has none."""

    figures: tuple[float, ...]
    epochs: tuple[int, ...]
    failed: str | None = None


def tune(
    store: FeatureStore,
    bases: Sequence[TrainConfig],
    spaces: Sequence[Space],
    folder: Path,
    *,
    trials: int,
    seeds: int = 1,
    folds: str | None = None,
    method: Method = "random",
    seed: int = 0,
    processes: int = 1,
    device: torch.device | str = "cpu",
    note: Note = print,
    progress: Silent = SILENT,
    lock: bool = True,
    command: str | None = None,
) -> list[SearchResult]:
    """Search over configurations of some models, each with the same budget. What is done is not
    done again.

    Args:
        store: The features. Only training and dev rows of them are read.
        bases: A configuration of each model, for what its space does not name.
        spaces: The space of each.
        folder: Where trials and presets go: new, or of this very search.
        trials: Of each model. Where more are there, these are the first of them, and the presets
            stay those of the best of all.
        seeds: Runs per trial, as `experiment.train` counts them; a trial's figure is their mean.
        folds: As there; a trial's figure is the mean over folds.
        method: `random`, or `tpe` (Bergstra et al. 2011), which needs Optuna.
        seed: Of the search.
        processes: Trials that are trained at the same time.
        device: Where to train.
        note: Told what the user should know, line by line.
        progress: Shows how far it is.
        lock: As in `mer.pipeline.runtime.hold.hold`.
        command: What was typed, for the run.json of the trials.

    Returns:
        What was found, by model.

    Raises:
        DataError: An option makes no sense, or the folder holds something else.
        DependencyError: Optuna is missing.
    """
    _check(trials, seeds, processes, seed, method)
    searches = []
    for base, space in zip(bases, spaces, strict=True):
        if store.header.task == "regression":  # which has no classes to weigh
            space = space.without(["train.class_weight"])
        space.check_drawn()
        _, metric = check_config(store, base)
        place = folder / space.model
        searches.append(Search(space, base, metric, place, trials, method, seed))
    _check_one_metric(searches)
    head = _head(store, searches, seeds, folds)
    _check_folder(folder, head)
    for search in searches:
        for number_ in range(trials):
            if search.drawn_at_random(number_):
                _checked(store, search, number_)
    parts = 1
    if folds is not None:
        target = splits.targets(store.table(), store.header.task, store.header.labels)
        made, _ = splits.folds(store.table(), target, folds, seed=bases[0].data.split_seed)
        parts = len(made)
        note(
            "dev parts of folds are test parts of other folds: say that the configuration was "
            "chosen on them when you quote figures of these folds"
        )
    options = TrialOptions(seeds, folds, seeds * parts, str(device), lock, command)
    with hold(folder / checkpoint.HOLD, lock=lock) as left_behind:
        if left_behind:
            note(f"{folder}: {left_behind}")
        _check_folder(folder, head)  # another one may just have begun
        files.tidy(folder)
        files.write_json(folder / files.SEARCH, trial_files.written(typed.tree(head)))
        for search in searches:
            search.folder.mkdir(exist_ok=True)
            _read_done(search)
            if search.beyond:
                are = plural(search.there, "trial is", "trials are")
                note(
                    f"{search.space.model}: {are} there and {trials:,} asked for: the table is of "
                    "these, the preset of the best of all"
                )
        tasks = _Tasks(store, searches, options, note)
        with progress.follow(trials * len(searches)) as show:
            tasks.show = show
            if processes == 1:
                while (task := tasks.ready()) is not None:
                    tasks.done(task, _trained(task, partial(tasks.heard, task)))
            else:
                threads = max(cores() // processes, 1)
                pool = Pool(_trained, tasks.name, jobs=processes, threads=threads)
                pool.run(tasks.ready, tasks.heard, tasks.done)
        return [result_of(search) for search in searches]


def _check_one_metric(searches: Sequence[Search]) -> None:
    """Raise DataError for models that choose by different figures, which cannot be compared."""
    names = {search.metric for search in searches}
    if len(names) > 1:
        raise DataError(
            f"the models choose by different dev figures ({', '.join(sorted(names))}); give one "
            "with --set train.select_metric=NAME"
        )


def _head(store: FeatureStore, searches: Sequence[Search], seeds: int, folds: str | None) -> Head:
    """What tune.json says of this search."""
    bases = [search.base for search in searches]
    method, seed = searches[0].method, searches[0].seed
    key = checkpoint.store_key(store)
    further = [part for base in bases for part in turns_key(store, base)]
    further += [part for base in bases for part in unimodal.key(store, base)]
    further += [part for search in searches for part in _read_by_trials(store, search)]
    asked = [[configs.to_tree(search.base), search.space.tree()] for search in searches]
    return Head(
        identity=identity(bases[0], key, asked, seeds, folds, method, seed, *further),
        models=tuple(search.space.model for search in searches),
        seeds=seeds,
        folds=folds,
        method=method,
        seed=seed,
        spaces=tuple(search.space.tree() for search in searches),
        settings=tuple(_spelled(base) for base in bases),
        store=str(Path(store.path).resolve()),
        store_key=key,
        further=tuple(further),
    )


def _spelled(config: TrainConfig) -> dict[str, str]:
    """Every setting of a configuration by its name, as text."""
    found = {}
    for table in configs.TABLES:
        values = getattr(config, table)
        for one in fields(values):
            found[f"{table}.{one.name}"] = str(getattr(values, one.name))
    return found


def _read_by_trials(store: FeatureStore, search: Search) -> list[str]:
    """What belongs to the identity of a search beside its base configuration: the order of turns
    and unimodal labels, where its space itself has trials that read them.
    """
    space, found = search.space, []
    for setting, key in (("data.context", turns_key), ("data.unimodal_labels", unimodal.key)):
        for value in space.values(setting):
            found += key(store, space.applied(search.base, {setting: value}))
    return list(dict.fromkeys(found))


def _check(trials: int, seeds: int, processes: int, seed: int, method: str) -> None:
    """Raise DataError for numbers that make no sense, DependencyError without Optuna."""
    counts = (
        ("--trials", trials, MOST_TRIALS),
        ("--seeds", seeds, MOST_SEEDS),
        ("--jobs", processes, max(cores(), 1)),
    )
    for name, value, most in counts:
        if not 1 <= value <= most:
            why = " (the cores of this machine)" if name == "--jobs" else ""
            raise DataError(f"{name} {value}: expected at least 1 and at most {most:,}{why}")
    if not 0 <= seed < configs.SEEDS:
        raise DataError(f"--seed {seed}: expected at least 0 and below 2^62")
    if method == "tpe":
        tpe.optuna_package()


def _checked(store: FeatureStore, search: Search, number_: int) -> tuple[Settings, TrainConfig]:
    """The settings and configuration of a trial; DataError when no model can be built of it."""
    settings = search.settings(number_)
    try:
        config = search.space.applied(search.base, settings)
        check_config(store, config)
    except DataError as error:
        said = str(error).removeprefix(f"{search.space.where}: ")
        raise DataError(f"{search.space.where}, trial {number_}: {shown(said, 200)}") from None
    return settings, config


def _check_folder(folder: Path, head: Head) -> None:
    """Raise DataError for a folder that holds something else."""
    path = folder / files.SEARCH
    if path.exists():
        there = files.read_json(path, Head, ELSEWHERE)
        if there.identity == head.identity:
            return
        found = _differences(there, head)
        more = f" and {len(found) - MOST_NAMED:,} more" if len(found) > MOST_NAMED else ""
        why = "; ".join(shown(one, DIFFERENCE_CHARACTERS) for one in found[:MOST_NAMED]) + more
        raise DataError(
            f"{shown(folder, 50)}: holds another search ({why or 'of an earlier mer'}); {ELSEWHERE}"
        )
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{folder}: a file where a folder should be; {ELSEWHERE}")
    if checkpoint.strangers(folder):
        raise DataError(f"{folder}: not empty and not a search of mer's; {ELSEWHERE}")


def _differences(there: Head, asked: Head) -> list[str]:
    """In what two searches differ, each difference with what is there and what is asked for: how is
    searched, the spaces, the configurations beside them, and the store.
    """
    found = []
    for name in ("models", "seeds", "folds", "method", "seed"):
        known, wanted = typed.tree(getattr(there, name)), typed.tree(getattr(asked, name))
        found += configs.differences({name: known}, {name: wanted})
    if there.models == asked.models:
        spaces, settings = (there.spaces, asked.spaces), (there.settings, asked.settings)
        for what, (known, wanted) in (("space", spaces), ("configuration", settings)):
            if known is None or wanted is None:
                continue
            for model, one, other in zip(there.models, known, wanted, strict=False):
                spelled = (trial_files.written(typed.tree(each)) for each in (one, other))
                differ = configs.differences(*spelled)
                found += [f"{what} of {model}: {line.removeprefix('drawn.')}" for line in differ]
    if there.store_key is None:
        return found or ["another store or configuration"]
    if there.store_key != asked.store_key:
        found.append(f"store: {_apart(str(there.store), str(asked.store))}")
    elif there.further != asked.further:
        found.append("store: the order of turns, or unimodal labels")
    return found


def _apart(first: str, second: str) -> str:
    """Two paths from where they part.

    >>> _apart("/data/a/feats.h5", "/data/b/feats.h5")
    'a/feats.h5 -> b/feats.h5'
    """
    if first == second:
        return "other features, labels or splits than before"
    common = os.path.commonpath([first, second])
    return " -> ".join(os.path.relpath(path, common) for path in (first, second))


def _read_done(search: Search) -> None:
    """Take over the trials that an earlier call has finished, also those beyond what is asked for
    now.
    """
    for number_ in range(search.trials):
        path = search.path(number_)
        if not path.exists():
            continue
        search.done[number_] = trial_files.read(path, REMEDY)
    for path in sorted(search.folder.glob(f"{files.TRIAL}*.json")):
        digits = path.stem.removeprefix(files.TRIAL)
        if digits.isdecimal() and path == search.path(int(digits)) and int(digits) >= search.trials:
            search.beyond[int(digits)] = trial_files.read(path, REMEDY)
    for number_, trial in (*search.done.items(), *search.beyond.items()):
        if search.drawn_at_random(number_):
            drawn = typed.tree(search.settings(number_))
            if typed.tree(trial.settings) != drawn:
                path = search.path(number_)
                raise DataError(f"{path}: not the settings of this trial; {REMEDY}")


class _Tasks:
    """Hands out the trials of all models, and writes down what has come of them."""

    def __init__(
        self,
        store: FeatureStore,
        searches: Sequence[Search],
        options: TrialOptions,
        note: Note,
    ) -> None:
        self.store, self.searches, self.options, self.note = store, searches, options, note
        self.show: Callable[..., None] = lambda done, text, told=False: None
        self._running: dict[Path, tuple[Search, int, Settings]] = {}
        self._share: dict[Path, float] = {}
        before = sum(len(search.done) for search in searches)
        if before:
            note(f"{plural(before, 'trial')} done before")

    def ready(self) -> Task | None:
        """The next trial: the models in turn, so that after any time all have had as many."""
        ready = [search for search in self.searches if search.next is not None]
        if not ready:
            return None
        search = min(ready, key=lambda search: len(search.begun | search.done.keys()))
        number_ = search.next
        assert number_ is not None
        search.begun.add(number_)
        settings, config = _checked(self.store, search, number_)
        folder = search.folder / f"{files.TRIAL}{number_:03d}"
        self._running[folder] = (search, number_, settings)
        config_text = configs.to_toml(config)
        return Task(str(self.store.path), config_text, folder, number_, self.options)

    def name(self, task: Task) -> str:
        """The name of a trial that is being trained."""
        search, number_, _ = self._running[task.folder]
        return self._name(search, number_)

    def heard(self, task: Task, said: tuple[float, str]) -> None:
        """Show how far a trial is, as it tells it: (share done, text)."""
        self._share[task.folder], text = said
        self.show(self._far(), f"{self.name(task)}: {text}")

    def done(self, task: Task, result: TrialResult) -> None:
        """Write down what a trial has come to, and remove what only its training needed."""
        search, number_, settings = self._running.pop(task.folder)
        self._share.pop(task.folder, None)
        trial = Trial(
            model=search.space.model,
            number=number_,
            settings=settings,
            figures=result.figures,
            epochs=result.epochs,
            failed=result.failed,
        )
        if result.failed is None:
            prune.remove([prune.spare(task.folder)])
        files.write_json(search.path(number_), trial_files.written(typed.tree(trial)))
        search.done[number_] = trial
        if result.failed is not None:
            self.note(f"{self._name(search, number_)} failed: {result.failed}")
        best = search.best()
        title = metrics.title(search.metric)
        said = f"dev {title} {number(search.metric, trial.score)}"
        if best is not None:
            said += f" (best {number(search.metric, best.score)}, trial {best.number})"
        self.show(self._far(), f"{self._name(search, number_)}: {said}", told=True)

    def _far(self) -> float:
        return sum(len(search.done) for search in self.searches) + sum(self._share.values())

    @staticmethod
    def _name(search: Search, number_: int) -> str:
        return f"{search.space.model}, trial {number_} of {search.trials}"


def _trained(task: Task, tell: Tell) -> TrialResult:
    """Train a trial. A loss that is no longer finite makes a failed trial, not an error."""
    config = configs.from_toml(task.config, f"trial {task.number}")
    options = task.options
    with FeatureStore(task.features) as store:
        try:
            run = train(
                store,
                config,
                task.folder,
                seeds=options.seeds,
                folds=options.folds,
                device=options.device,
                note=lambda line: None,
                lock=options.lock,
                command=options.command,
                progress=_Relay(tell, options.runs),
                warn=False,
            )
        except DivergedError as error:
            return TrialResult((), (), str(error))
    results = [child.result for child in run.children]
    figures = [result.dev[result.select_metric] for result in results]
    epochs = tuple(result.epochs or 0 for result in results)
    known = tuple(figure for figure in figures if figure is not None)
    if len(known) < len(figures):
        return TrialResult((), epochs, "its dev figure is undefined")
    return TrialResult(known, epochs)


class _Relay(Silent):
    """Progress of the runs of a trial, handed on as the share of the trial and words."""

    def __init__(self, tell: Tell, runs: int) -> None:
        self.tell, self.runs, self.begun = tell, runs, 0

    def follow(self, total: float) -> Any:
        """See `Silent.follow`."""
        last, before = -1.0, self.begun
        self.begun += 1

        def show(done: float, text: str, told: bool = False) -> None:
            nonlocal last
            share = done / total
            if told or share - last >= 0.01:  # a hundred messages a run at most
                last = share
                self.tell(((before + share) / self.runs, text))

        return nullcontext(show)
