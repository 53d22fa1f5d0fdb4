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

import math
import shlex
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from mer.fusion import config as configs
from mer.fusion.config import TrainConfig
from mer.fusion.data import context, splits, unimodal
from mer.fusion.measures import metrics
from mer.fusion.measures.tables import Table, context_words, number
from mer.fusion.runs import checkpoint, prune
from mer.fusion.runs.identity import identity, turns_key
from mer.fusion.runtime import files, typed
from mer.fusion.runtime.notes import Note
from mer.fusion.runtime.pool import Pool, Tell
from mer.fusion.training.experiment import MOST_SEEDS, train
from mer.fusion.training.one_epoch import DivergedError
from mer.fusion.training.space import Between, Choice, Settings, Space
from mer.fusion.training.training_setup import check_config
from mer.pipeline.errors import DataError, DependencyError
from mer.pipeline.runtime.hold import hold
from mer.pipeline.runtime.machine import cores
from mer.pipeline.runtime.progress import SILENT, Silent
from mer.pipeline.runtime.terminal import plural, shown
from mer.pipeline.store import FeatureStore

Method = Literal["random", "tpe"]
HEAD = "tune.json"
FORMAT, VERSION = "mer-tune", 1
MOST_TRIALS = 10_000
AT_RANDOM = 10  # trials before TPE has something to go by, as in Optuna
BUDGETS = (1, 2, 5, 10, 20, 50, 100, 200, 500)  # of the columns of the table
ELSEWHERE = "choose another --out"
REMEDY = "delete it and run the same command again"


@dataclass(frozen=True, kw_only=True)
class Head:
    """What tune.json says: `identity` names everything but how many trials there are."""

    format: str = FORMAT
    version: int = VERSION
    identity: str
    models: tuple[str, ...]
    seeds: int
    folds: str | None
    method: Method
    seed: int
    spaces: tuple[dict[str, Any], ...]


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What a trial has come to. `figures` are the dev figures of its runs; there are none where it
    failed.
    """

    model: str
    number: int
    settings: Settings
    figures: tuple[float, ...]
    epochs: tuple[int, ...] = ()
    failed: str | None = typed.optional()

    @property
    def score(self) -> float | None:
        """The mean over its runs."""
        return float(np.mean(self.figures)) if self.figures else None


@dataclass(frozen=True, kw_only=True)
class Found:
    """The trials of a model, and the one that dev prefers (None: all failed). `contexts` are the
    kinds of conversation context of its trials, as tables name them.
    """

    model: str
    metric: str
    trials: tuple[Trial, ...]
    best: Trial | None
    contexts: tuple[str | None, ...] = (None,)
    expected: dict[int, float] = field(default_factory=dict)
    preset: str | None = None


@dataclass(frozen=True)
class Task:
    """One trial to be trained; what another process needs to know of it."""

    features: str
    config: str
    folder: Path
    seeds: int
    folds: str | None
    device: str
    lock: bool
    command: str | None
    number: int
    runs: int  # over seeds and folds


@dataclass(frozen=True)
class Told:
    """How a trial ended: the dev figures and epochs of its runs, or why it has none."""

    figures: tuple[float, ...]
    epochs: tuple[int, ...]
    failed: str | None = None


@dataclass
class Search:
    """The trials of one model while they are made."""

    space: Space
    base: TrainConfig
    metric: str
    folder: Path
    trials: int
    method: Method
    seed: int
    done: dict[int, Trial] = field(default_factory=dict)
    begun: set[int] = field(default_factory=set)

    def path(self, number: int) -> Path:
        """The file that says a trial is done."""
        return self.folder / f"trial-{number:03d}.json"

    @property
    def next(self) -> int | None:
        """A trial that can begin; by TPE one follows from those before it."""
        left = (n for n in range(self.trials) if n not in self.begun and n not in self.done)
        number = next(left, None)
        waits = self.method == "tpe" and number is not None and len(self.done) < number
        return None if waits else number

    def settings(self, number: int) -> Settings:
        """Those of a trial."""
        if self.method == "random" or number < AT_RANDOM:
            return self.space.draw(self.seed, number)
        earlier = [self.done[n] for n in range(number)]
        return _by_tpe(self.space, self.seed, earlier, lower=self.lower)

    @property
    def lower(self) -> bool:
        """Whether a lower figure is better."""
        return metrics.lower_is_better(self.metric)

    def best(self) -> Trial | None:
        """The trial that dev prefers; of equals the first."""
        there = [one for _, one in sorted(self.done.items()) if one.score is not None]
        sign = 1 if self.lower else -1
        return min(there, key=lambda one: sign * float(one.score or 0), default=None)


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
) -> list[Found]:
    """Search over configurations of some models, each with the same budget. What is done is not
    done again.

    Args:
        store: The features. Only training and dev rows of them are read.
        bases: A configuration of each model, for what its space does not name.
        spaces: The space of each.
        folder: Where trials and presets go: new, or of this very search.
        trials: Of each model.
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
    if store.header.task == "regression":  # which has no classes to weigh
        spaces = [space.without(["train.class_weight"]) for space in spaces]
    for space in spaces:
        space.check_drawn()
    searches = []
    for base, space in zip(bases, spaces, strict=True):
        _, metric = check_config(store, base)
        place = folder / space.model
        searches.append(Search(space, base, metric, place, trials, method, seed))
    names = {search.metric for search in searches}
    if len(names) > 1:
        raise DataError(
            f"the models choose by different dev figures ({', '.join(sorted(names))}); give one "
            "with --set train.select_metric=NAME"
        )
    key = checkpoint.store_key(store)
    turns = [key for base in bases for key in turns_key(store, base)]
    turns += [key for base in bases for key in unimodal.key(store, base)]
    turns += [key for one in searches for key in _read_by_trials(store, one)]
    asked = [[configs.to_tree(one.base), one.space.tree()] for one in searches]
    head = Head(
        identity=identity(bases[0], key, asked, seeds, folds, method, seed, *turns),
        models=tuple(space.model for space in spaces),
        seeds=seeds,
        folds=folds,
        method=method,
        seed=seed,
        spaces=tuple(space.tree() for space in spaces),
    )
    _check_folder(folder, head)
    for search in searches:
        for number_ in range(trials):
            if method == "random" or number_ < AT_RANDOM:
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
    with hold(folder / checkpoint.HOLD, lock=lock) as left_behind:
        if left_behind:
            note(f"{folder}: {left_behind}")
        _check_folder(folder, head)  # another one may just have begun
        files.tidy(folder)
        files.write_json(folder / HEAD, typed.tree(head))
        for search in searches:
            search.folder.mkdir(exist_ok=True)
            _read_done(search)
        runs = seeds * parts
        task = _Tasks(store, searches, seeds, folds, runs, str(device), lock, command, note)
        with progress.follow(trials * len(searches)) as show:
            task.show = show
            if processes == 1:
                while (one := task.ready()) is not None:
                    task.done(one, _trained(one, partial(task.heard, one)))
            else:
                threads = max(cores() // processes, 1)
                pool = Pool(_trained, task.name, jobs=processes, threads=threads)
                pool.run(task.ready, task.heard, task.done)
        return [_found(search) for search in searches]


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
        _optuna()


def _read_by_trials(store: FeatureStore, search: Search) -> list[str]:
    """What belongs to the identity of a search beside its base configuration: the order of turns
    and unimodal labels, where its space itself has trials that read them.
    """
    space, found = search.space, []
    for setting, key in (("data.context", turns_key), ("data.unimodal_labels", unimodal.key)):
        for value in space.values(setting):
            found += key(store, space.applied(search.base, {setting: value}))
    return list(dict.fromkeys(found))


def _optuna() -> Any:
    """The package, quiet."""
    try:
        import optuna
    except ImportError:
        raise DependencyError(
            "--search tpe needs Optuna; run `pip install mer[tune]`, or search at random"
        ) from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


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
    path = folder / HEAD
    if path.exists():
        there = files.read_json(path, Head, ELSEWHERE)
        if there.identity == head.identity:
            return
        known, wanted = typed.tree(there), typed.tree(head)
        for one in (known, wanted):
            del one["identity"], one["spaces"]
        found = configs.differences(known, wanted)
        why = "; ".join(found[:3]) or "another store, space or configuration"
        raise DataError(f"{folder}: holds another search ({shown(why, 160)}); {ELSEWHERE}")
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{folder}: a file where a folder should be; {ELSEWHERE}")
    if checkpoint.strangers(folder):
        raise DataError(f"{folder}: not empty and not a search of mer's; {ELSEWHERE}")


def _read_done(search: Search) -> None:
    """Take over the trials that an earlier call has finished."""
    for number_ in range(search.trials):
        path = search.path(number_)
        if not path.exists():
            continue
        trial = files.read_json(path, Trial, REMEDY)
        search.done[number_] = trial
    for number_, trial in search.done.items():
        if search.method == "random" or number_ < AT_RANDOM:
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
        seeds: int,
        folds: str | None,
        runs: int,
        device: str,
        lock: bool,
        command: str | None,
        note: Note,
    ) -> None:
        self.store, self.searches, self.seeds, self.folds = store, searches, seeds, folds
        self.runs = runs
        self.device, self.lock, self.command, self.note = device, lock, command, note
        self.show: Callable[..., None] = lambda done, text, told=False: None
        self._running: dict[Path, tuple[Search, int, Settings]] = {}
        self._share: dict[Path, float] = {}
        before = sum(len(search.done) for search in searches)
        if before:
            note(f"{plural(before, 'trial')} done before")

    def ready(self) -> Task | None:
        """The next trial: the models in turn, so that after any time all have had as many."""
        open_ = [search for search in self.searches if search.next is not None]
        if not open_:
            return None
        search = min(open_, key=lambda one: len(one.begun | one.done.keys()))
        number_ = search.next
        assert number_ is not None
        search.begun.add(number_)
        settings, config = _checked(self.store, search, number_)
        folder = search.folder / f"trial-{number_:03d}"
        self._running[folder] = (search, number_, settings)
        return Task(
            str(self.store.path),
            configs.to_toml(config),
            folder,
            self.seeds,
            self.folds,
            self.device,
            self.lock,
            self.command,
            number_,
            self.runs,
        )

    def name(self, task: Task) -> str:
        """What a trial that is trained is called."""
        search, number_, _ = self._running[task.folder]
        return self._name(search, number_)

    def heard(self, task: Task, said: tuple[float, str]) -> None:
        """A trial is so far, and says so."""
        self._share[task.folder], text = said
        self.show(self._far(), f"{self.name(task)}: {text}")

    def done(self, task: Task, told: Told) -> None:
        """Write down what a trial has come to, and remove what only its training needed."""
        search, number_, settings = self._running.pop(task.folder)
        self._share.pop(task.folder, None)
        trial = Trial(
            model=search.space.model,
            number=number_,
            settings=settings,
            figures=told.figures,
            epochs=told.epochs,
            failed=told.failed,
        )
        if told.failed is None:
            prune.remove([prune.spare(task.folder)])
        files.write_json(search.path(number_), typed.tree(trial))
        search.done[number_] = trial
        if told.failed is not None:
            self.note(f"{self._name(search, number_)} failed: {told.failed}")
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


def _trained(task: Task, tell: Tell) -> Told:
    """Train a trial; that its loss is no longer finite is its result."""
    config = configs.from_toml(task.config, f"trial {task.number}")
    with FeatureStore(task.features) as store:
        try:
            run = train(
                store,
                config,
                task.folder,
                seeds=task.seeds,
                folds=task.folds,
                device=task.device,
                note=lambda line: None,
                lock=task.lock,
                command=task.command,
                progress=_Relay(tell, task.runs),
                warn=False,
            )
        except DivergedError as error:
            return Told((), (), str(error))
    there = [child.result for child in run.children]
    figures = [one.dev[one.select_metric] for one in there]
    epochs = tuple(one.epochs or 0 for one in there)
    known = tuple(figure for figure in figures if figure is not None)
    if len(known) < len(figures):
        return Told((), epochs, "its dev figure is undefined")
    return Told(known, epochs)


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


def _by_tpe(space: Space, seed: int, earlier: Sequence[Trial], *, lower: bool) -> Settings:
    """Settings that the tree-structured Parzen estimator proposes after some trials."""
    optuna = _optuna()
    named = {key: space.drawn[key] for key in sorted(space.drawn)}
    kinds = {key: _distribution(optuna, one) for key, one in named.items()}
    entropy = np.random.SeedSequence([seed, len(earlier), *space.model.encode()])
    sampler = optuna.samplers.TPESampler(
        seed=int(entropy.generate_state(1)[0]), n_startup_trials=0, multivariate=False
    )
    direction = "minimize" if lower else "maximize"
    study = optuna.create_study(sampler=sampler, direction=direction)
    known = [one.score for one in earlier if one.score is not None]
    worst = (max(known) if lower else min(known)) if known else 0.0
    for trial in earlier:
        params = {key: _encoded(one, trial.settings[key]) for key, one in named.items()}
        value = worst if trial.score is None else trial.score
        made = optuna.trial.create_trial(params=params, distributions=kinds, value=value)
        study.add_trial(made)
    asked = study.ask(kinds).params
    return {key: _decoded(one, asked[key]) for key, one in named.items()}


def _distribution(optuna: Any, one: Choice | Between) -> Any:
    """What Optuna draws from. Values to choose from, which may be lists, are named by place."""
    if isinstance(one, Choice):
        return optuna.distributions.CategoricalDistribution(tuple(range(len(one.values))))
    if one.whole:
        return optuna.distributions.IntDistribution(int(one.low), int(one.high), log=one.log)
    return optuna.distributions.FloatDistribution(one.low, one.high, log=one.log)


def _encoded(one: Choice | Between, value: Any) -> Any:
    if isinstance(one, Choice):
        return [typed.tree(known) for known in one.values].index(typed.tree(value))
    return value


def _decoded(one: Choice | Between, value: Any) -> Any:
    return one.values[value] if isinstance(one, Choice) else one.rounded(value)


# ---- What was found


def _found(search: Search) -> Found:
    """The trials of a model; writes the winner's preset."""
    trials = tuple(search.done[n] for n in range(search.trials))
    best = search.best()
    expected: dict[int, float] = {}
    if search.method == "random" and best is not None:
        scores = [one.score for one in trials]
        expected = {
            n: expected_best(scores, n, lower=search.lower) for n in range(1, len(trials) + 1)
        }
    preset = None
    if best is not None:
        path = search.folder.parent / f"{search.space.model}.toml"
        files.write_text(path, _preset(search, best))
        preset = str(path)
    return Found(
        model=search.space.model,
        metric=search.metric,
        trials=trials,
        best=best,
        contexts=_contexts(search, trials),
        expected=expected,
        preset=preset,
    )


def _contexts(search: Search, trials: Sequence[Trial]) -> tuple[str | None, ...]:
    """The kinds of conversation context that the trials were trained with, each once."""
    found = []
    for trial in trials:
        asked = context.spec(search.space.applied(search.base, trial.settings).data)
        found.append(None if asked is None else asked.title)
    return tuple(dict.fromkeys(found))


def _preset(search: Search, best: Trial) -> str:
    """The configuration of the best trial as TOML."""
    title = metrics.title(search.metric)
    figure = number(search.metric, best.score)
    runs = plural(len(best.figures), "run")
    lines = (
        f"# Trial {best.number} of {search.trials}, {search.method} search, seed {search.seed}: "
        f"dev {title} {figure}, mean of {runs}.",
        "# Drawn: " + ", ".join(sorted(search.space.drawn)) + ".",
    )
    config = search.space.applied(search.base, best.settings)
    return "\n".join(lines) + "\n" + configs.to_toml(config)


def expected_best(scores: Sequence[float | None], n: int, *, lower: bool = False) -> float:
    """The expected best of `n` trials at random (Dodge et al. 2019, equation 7), by the empirical
    distribution of those that were made: sum over i of s_i (P(S <= s_i)^n - P(S < s_i)^n).

    Args:
        scores: Of all trials; None: one that failed counts as the worst of the others.
        n: Trials, at most as many as there are.
        lower: Whether the lowest figure is the best.

    Returns:
        The expectation; NaN where every trial failed.

    >>> [expected_best([1.0, 2.0, 3.0], n) for n in (1, 2)]
    [2.0, 2.4444444444444446]
    """
    sign = -1.0 if lower else 1.0
    known = [sign * one for one in scores if one is not None]
    if not known:
        return math.nan
    all_ = sorted([*known, *[min(known)] * (len(scores) - len(known))])
    shares = (np.arange(len(all_) + 1) / len(all_)) ** n
    return sign * float(np.dot(np.diff(shares), all_))


def table(found: Sequence[Found], seeds: int) -> Table:
    """What was found, a row per model; the expected best of n trials where they were drawn at
    random.
    """
    metric = found[0].metric
    most = len(found[0].trials)
    drawn = any(one.expected for one in found)
    budgets = [n for n in BUDGETS if n < most] + [most] if drawn else []
    title = metrics.title(metric)
    rows = []
    for one in found:
        failed = sum(trial.failed is not None for trial in one.trials)
        figures = () if one.best is None else one.best.figures
        deviation = float(np.std(figures, ddof=1)) if len(figures) > 1 else None
        score = number(metric, None if one.best is None else one.best.score)
        said = score if deviation is None else f"{score} ± {number(metric, deviation)}"
        trial = "–" if one.best is None else str(one.best.number)
        expected = [number(metric, one.expected.get(n)) for n in budgets]
        rows.append((one.model, str(most), str(failed), said, trial, *expected))
    of = f", mean of {plural(seeds, 'seed')}" if seeds > 1 else ""
    heads = [f"best of {n}" for n in budgets]
    kinds = dict.fromkeys(kind for one in found for kind in one.contexts)
    seen = " or ".join(map(context_words, kinds))
    words = "; best of n: expected over draws of n trials (Dodge et al. 2019)" if drawn else ""
    return Table(
        f"dev {title}{of}, {seen}{words}",
        ("model", "trials", "failed", f"dev {title}", "trial", *heads),
        tuple(rows),
    )


def lines(found: Sequence[Found], features: Path, folds: str | None = None) -> list[str]:
    """What the best trials drew, and how they are trained, over the same folds."""
    made = []
    over = f" --folds {folds}" if folds is not None else ""
    for one in found:
        if one.best is None:
            made.append(f"{one.model}: every trial failed")
            continue
        drawn = ", ".join(f"{key}={value}" for key, value in sorted(one.best.settings.items()))
        made.append(f"{one.model}: {drawn}")
        store, preset = shlex.quote(str(features)), shlex.quote(one.preset or "")
        made.append(f"  mer train {store} --preset {preset}{over}")
    return made


def check_found(found: Sequence[Found]) -> None:
    """Raise DataError where a model has no trial that succeeded, so no preset."""
    lost = [one.model for one in found if one.best is None]
    if lost:
        count = len(found[0].trials)
        which = f"all {count:,} trials" if count > 1 else "the only trial"
        failed = (one.failed for each in found if each.best is None for one in each.trials)
        why = next(filter(None, failed), "")
        raise DataError(
            f"{which} of {' and '.join(lost)} failed ({shown(why, 120)}); "
            "change the space, or what --set fixes"
        )


def as_json(found: Sequence[Found]) -> list[dict[str, Any]]:
    """The same for a program."""
    made = []
    for one in found:
        told = typed.tree(one)
        told["expected"] = {str(n): value for n, value in one.expected.items()}
        told["best"] = None if one.best is None else one.best.number
        made.append(metrics.jsonable(told))
    return made
