"""Run + store -> robustness.json: where a model holds, and where it does not.

A finished run is scored on one part, dev or test, in these ways:
- without each modality that it reads, with the modality of another utterance in its place, and with
  noise on it at three levels (`alterations`);
- where its unimodal heads agree and where they disagree, also against another run: what ED does for
  DRKF is the difference from the same run with `model_args.w_ed=0`;
- how well its probabilities are calibrated, how it does on each speaker, and which classes it takes
  for which others.

On test all of this is an opening that the ledger records. In a run with context the neighbours keep
what they have, except that a modality that is taken away is taken from them as well.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from mer.fusion.data import splits
from mer.fusion.evaluation import answering, evaluate, inconsistency, opening_rows, scoring
from mer.fusion.evaluation.alterations import Change, Kind, Moments, alterations, unchanged
from mer.fusion.evaluation.scoring import sampled
from mer.fusion.measures import intervals, metrics
from mer.fusion.measures.intervals import Paired
from mer.fusion.measures.metrics import headline, lower_is_better
from mer.fusion.models import reads_summary
from mer.fusion.runs import ledger, prediction_table
from mer.fusion.runs.checkpoint import Run, check_store
from mer.fusion.runs.identity import same
from mer.fusion.runs.prediction_table import Predicted, unit
from mer.fusion.runs.records import Bootstrap, defined
from mer.fusion.runtime import files, typed
from mer.fusion.runtime.notes import Note, Once
from mer.fusion.runtime.typed import optional
from mer.fusion.training.training_setup import measures_of
from mer.pipeline.errors import DataError
from mer.pipeline.runtime.progress import SILENT, Silent
from mer.pipeline.runtime.terminal import shown
from mer.pipeline.store import FeatureStore

BINS = 10  # of the calibration curve
FEWEST_OF_A_SPEAKER = 5  # utterances from which a speaker has a figure


@dataclass(frozen=True, kw_only=True)
class Altered:
    """The headline figure of altered rows, and its paired difference from that of the same rows as
    they are. `n` rows, those with something left to read; `p_holm` over all such entries.
    """

    what: Kind
    modality: str
    level: float | None = optional()
    n: int
    value: float | None
    difference: float | None
    interval: tuple[float | None, ...]
    p: float | None
    p_holm: float | None


@dataclass(frozen=True, kw_only=True)
class Heads:
    """Rows where the unimodal heads agree, or disagree, in most seeds, of those that have two
    modalities or more; or, by `labels`, where the unimodal labels do. Against another run the
    paired difference, this one minus that one, by Holm over all kinds of rows.
    """

    agree: bool
    labels: bool | None = optional()
    n: int
    value: float | None
    difference: float | None = optional()
    interval: tuple[float | None, ...] | None = optional()
    p_holm: float | None = optional()


@dataclass(frozen=True)
class Bin:
    """Answers whose probability is above `low` and at most `high`: how many, the mean probability,
    and the share that is right.
    """

    low: float
    high: float
    n: int
    confidence: float | None
    right: float | None


@dataclass(frozen=True)
class Speaker:
    """The headline figure of a speaker's `n` utterances."""

    name: str
    n: int
    value: float | None


@dataclass(frozen=True)
class Confused:
    """`share` of the reference's utterances that were taken for another class, `n` of them."""

    reference: str
    answer: str
    n: float
    share: float


@dataclass(frozen=True, kw_only=True)
class Robustness:
    """What robustness.json holds. `weights` are the sha256 of the models it is of; figures are
    means over seeds.
    """

    format: str = "mer-robustness"
    version: int = 1
    run: str
    model: str
    dataset: str
    split: str
    task: str
    metric: str
    context: str = "none"
    n: int
    seeds: int
    value: float | None
    bootstrap: Bootstrap
    weights: tuple[str | None, ...]
    altered: tuple[Altered, ...]
    heads: tuple[Heads, ...]
    against: str | None = optional()
    calibration: tuple[Bin, ...]
    ece: float | None
    speakers: tuple[Speaker, ...]
    confused: tuple[Confused, ...]


# ---- Measuring


@dataclass(frozen=True)
class Measured:
    """A run on some rows of a store: of each child the rows, and those among which they find
    neighbours.
    """

    run: Run
    store: FeatureStore
    rows: list[np.ndarray]
    pools: list[np.ndarray]
    device: torch.device | str
    progress: Silent

    def predict(self, changes: Sequence[Change]) -> list[Predicted]:
        """The predictions by seed, each child's batches altered by its change."""
        tables = []
        for place, child in enumerate(self.run.children):
            tables.append(
                answering.predict_rows(
                    child,
                    self.store,
                    self.rows[place],
                    device=self.device,
                    progress=self.progress,
                    change=changes[place],
                    pool=self.pools[place],
                )
            )
        target = splits.targets(
            self.store.table(), self.store.header.task, self.store.header.labels
        )
        return prediction_table.of_children(self.run, tables, measures_of(self.store, target))


def measure(
    run: Run | str | os.PathLike,
    features: str | os.PathLike | None = None,
    split: str = "test",
    *,
    against: Run | str | os.PathLike | None = None,
    device: torch.device | str = "cpu",
    note: Note = print,
    progress: Silent = SILENT,
) -> Robustness:
    """Measure where a run holds, and write robustness.json into its folder; of another part, or a
    store with other clips, it is robustness-dev.json or robustness-test-<dataset>.json.

    Args:
        run: A finished run, or its folder.
        features: The store; None: the one it was trained on.
        split: train, dev or test; each opening of test is noted in the run folder and the ledger.
        against: Another run on the same rows, from which this one's difference is taken where the
            unimodal heads agree and where they disagree.
        device: Where to predict.
        note: Told what the user should know, line by line.
        progress: Shows how far it is.

    Returns:
        What the file holds.

    Raises:
        DataError: A run is not finished or damaged, there are no such rows, both runs were not
            tested on the same ones, or both are one.
        KeyMismatchError: The store is of another recipe or of other labels.
    """
    run = (run if isinstance(run, Run) else Run.open(run)).trained()
    path = opening_rows.scored_store(run, features, note)
    other = None if against is None else other_of(run, against)
    with FeatureStore(path) as store:
        measured = _opened(run, store, split, device, note, progress)
        moments = [Moments() for _ in run.children]
        whole = measured.predict([each.count for each in moments])
        theirs = None
        if other is not None:
            check_store(other.children[0], store)
            _check_has_heads(run, whole[0], other)
            as_they_are = [unchanged] * len(other.children)
            theirs = _opened(other, store, split, device, note, progress).predict(as_they_are)
            _check_same(run, other, whole[0], theirs[0])
        found = _found(measured, whole, moments, split)
        if other is not None:
            found = replace(found, against=str(other.path))
        found = replace(found, heads=_heads(run, whole, theirs, found.metric))
        stem = evaluate.stem_of(run, store, split)
    found = defined(found)
    files.write_json(run.path / f"robustness{stem}.json", typed.tree(found))
    return found


def other_of(run: Run, against: Run | str | os.PathLike) -> Run:
    """The run that a run's heads are held against.

    Raises:
        DataError: It is not finished or damaged, or the same run.
    """
    other = (against if isinstance(against, Run) else Run.open(against)).trained()
    if alike := same(run.trained(), other):
        raise DataError(
            f"--against {shown(other.path, 100)}: it and {shown(run.path, 100)} are {alike}, so "
            "that nothing differs; name another run"
        )
    return other


def stored(run: Run, split: str = "test") -> Robustness | None:
    """What an earlier `measure` wrote, if it did.

    Raises:
        DataError: It is damaged, or of other weights than the run has.
    """
    path = run.path / ("robustness.json" if split == "test" else f"robustness-{split}.json")
    if not path.exists():
        return None
    of = "" if split == "test" else f" --split {split}"
    remedy = f"run `mer evaluate {run.path} --robustness{of}` again, or delete it"
    found = files.read_json(path, Robustness, remedy)
    if found.format != Robustness.format or found.version != Robustness.version:
        raise files.damaged(path, "of another version of mer", remedy)
    if found.weights != _weights(run):
        raise files.damaged(path, "of other weights than the run has", remedy)
    return found


def _weights(run: Run) -> tuple[str | None, ...]:
    return tuple(child.result.model_sha256 for child in run.children)


def _opened(
    run: Run,
    store: FeatureStore,
    split: str,
    device: torch.device | str,
    note: Note,
    progress: Silent,
) -> Measured:
    """A run and its rows; an opening of test is noted first."""
    for line in check_store(run.children[0], store):
        note(line)
    rows, pools, tell = [], [], Once(note)
    for child in run.children:
        mine, pool = opening_rows.opened_rows(child, store, split, tell, ledger.ROBUSTNESS)
        rows.append(mine)
        pools.append(pool)
    return Measured(run, store, rows, pools, device, progress)


def _check_has_heads(run: Run, answers: Predicted, other: Run) -> None:
    """Raise DataError where no unimodal heads can be held against those of another run."""
    modalities = run.children[0].spec.modalities
    if scoring.where_heads_differ(answers, modalities) is None:
        raise DataError(
            f"{run.path}: {run.children[0].config.model} has no heads of single modalities that "
            f"agree or disagree; leave out {other.path}"
        )


def _check_same(run: Run, other: Run, mine: Predicted, theirs: Predicted) -> None:
    same = mine.table["id"].to_pylist() == theirs.table["id"].to_pylist()
    if mine.task != theirs.task or not same or not np.array_equal(mine.true, theirs.true):
        raise DataError(
            f"--against {other.path}: not tested on the same rows and labels as {run.path}"
        )


def _found(
    measured: Measured, whole: list[Predicted], moments: Sequence[Moments], split: str
) -> Robustness:
    """All but what is said of the heads."""
    run, header, first = measured.run, measured.store.header, whole[0]
    metric = headline(first.task, first.figures())
    name, groups = unit(first.table)
    confidence, right = _confidence(whole)
    return Robustness(
        run=run.path.name,
        model=run.info.model,
        dataset=header.dataset,
        split=split,
        task=first.task,
        metric=metric,
        context=_context(run),
        n=len(first.true),
        seeds=len(whole),
        value=_value(whole, metric),
        bootstrap=scoring.bootstrap_of(name, groups),
        weights=_weights(run),
        altered=_altered(measured, whole, moments, metric),
        heads=(),
        calibration=_curve(confidence, right),
        ece=metrics.ece(confidence, right) if len(confidence) else None,
        speakers=_speakers(whole, metric),
        confused=_confused(whole),
    )


def _context(run: Run) -> str:
    """The kind of conversation context, as tables name it."""
    asked = run.children[0].spec.context
    return "none" if asked is None else asked.title


def _value(by_seed: Sequence[Predicted], metric: str) -> float:
    return float(np.mean([p.figures()[metric] for p in by_seed]))


# ---- When a modality fails


def _altered(
    measured: Measured, whole: list[Predicted], moments: Sequence[Moments], metric: str
) -> tuple[Altered, ...]:
    """The figure under every alteration beside that of the same rows as they are."""
    reads = measured.run.children[0].reads
    readable = _readable_without(measured, reads)
    _, groups = unit(whole[0].table)
    entries: list[Altered] = []
    p_values: list[float] = []
    for alteration in alterations(reads, moments, _numbers_of_means(measured.run, reads)):
        plain, altered, of_rows = whole, measured.predict(alteration.changes), groups
        if alteration.what == "without":
            kept = _rows_with(whole[0], readable[alteration.modality])
            if not len(kept):
                continue
            plain = [p.take(kept) for p in whole]
            altered, of_rows = [p.take(kept) for p in altered], groups[kept]
        value, pair = _paired(plain, altered, metric, of_rows)
        p_values.append(pair.p)
        entry = Altered(
            what=alteration.what,
            modality=alteration.modality,
            level=alteration.level,
            n=len(plain[0].true),
            value=value,
            difference=pair.difference,
            interval=(pair.low, pair.high),
            p=pair.p,
            p_holm=None,
        )
        entries.append(entry)
    corrected = intervals.holm(p_values)
    return tuple(replace(e, p_holm=p) for e, p in zip(entries, corrected, strict=True))


def _numbers_of_means(run: Run, reads: Sequence[str]) -> dict[str, int]:
    """For each modality how many numbers of a step are steps or their means, not deviations."""
    child = run.children[0]
    summary = reads_summary(child.config.model, child.config.model_args)
    return {m: child.spec.numbers_of_means(m, summary=summary) for m in reads}


def _readable_without(measured: Measured, reads: Sequence[str]) -> dict[str, set[str]]:
    """For each modality the ids of the rows that have another one that the run reads."""
    ids = measured.store.table()["id"].to_pylist()
    readable: dict[str, set[str]] = {m: set() for m in reads}
    for child, rows in zip(measured.run.children, measured.rows, strict=True):
        there = answering.modalities_of(child, measured.store, rows)
        for row, has in zip(rows.tolist(), there, strict=True):
            for m in reads:
                if set(has) - {m}:
                    readable[m].add(ids[row])
    return readable


def _rows_with(p: Predicted, ids: set[str]) -> np.ndarray:
    return np.flatnonzero(np.array([id in ids for id in p.table["id"].to_pylist()], dtype=bool))


def _paired(
    plain: Sequence[Predicted], altered: Sequence[Predicted], metric: str, groups: np.ndarray
) -> tuple[float, Paired]:
    """The figure of the altered rows, and its difference from the plain ones, `groups` (N,) drawn.
    The seeds are the same on both sides, so that each seed's own difference is what is drawn.
    """
    first, second = sampled(plain, groups)[metric], sampled(altered, groups)[metric]
    gap = replace(first, values=second.values - first.values, draws=second.draws - first.draws)
    return float(np.mean(second.values)), intervals.from_zero(gap)


# ---- Heads, calibration, speakers, confusions


def _heads(
    run: Run, whole: Sequence[Predicted], theirs: Sequence[Predicted] | None, metric: str
) -> tuple[Heads, ...]:
    """The figure where the heads agree and where they disagree, likewise for unimodal labels where
    the store has some; with the difference from another run, if one is given.
    """
    entries: list[Heads] = []
    pairs: list[Paired | None] = []
    # of some rows, too, what is drawn is what it is of all: a few of them may be of few dialogues
    _, groups = unit(whole[0].table)
    for agree, labels, among in _agreements(run, whole):
        rows = np.flatnonzero(among)
        mine = [p.take(rows) for p in whole]
        pair = None
        if theirs is not None and len(rows):
            other = [p.take(rows) for p in theirs]
            theirs_drawn = sampled(other, groups[rows])[metric]
            pair = intervals.difference(theirs_drawn, sampled(mine, groups[rows])[metric])
        pairs.append(pair)
        value = _value(mine, metric) if len(rows) else math.nan
        entries.append(Heads(agree=agree, labels=labels, n=len(rows), value=value))
    if theirs is None:
        return tuple(entries)
    corrected = intervals.holm([math.nan if pair is None else pair.p for pair in pairs])
    return tuple(map(_with_difference, entries, pairs, corrected))


def _agreements(
    run: Run, whole: Sequence[Predicted]
) -> Iterator[tuple[bool, bool | None, np.ndarray]]:
    """(whether they agree, whether unimodal labels are meant, (N,) which rows) for the heads, in
    most seeds, and for the unimodal labels.
    """
    modalities = run.children[0].spec.modalities
    by_seed = [scoring.where_heads_differ(p, modalities) for p in whole]
    with_heads = [differs for differs in by_seed if differs is not None]
    if len(with_heads) == len(whole):
        # which modalities a row has depends on no seed
        several = scoring.where_heads_answer(whole[0], modalities)
        differ = np.mean(with_heads, axis=0) > 0.5
        yield True, None, several & ~differ
        yield False, None, differ
    labels = inconsistency.truth(whole[0].table, whole[0].task, whole[0].labels)
    if len(labels) > 1:
        differ, known = inconsistency.inconsistent(labels)
        yield True, True, known & ~differ
        yield False, True, differ


def _with_difference(entry: Heads, pair: Paired | None, p_holm: float) -> Heads:
    """The entry with its difference from another run; a pair is missing where no row is left."""
    if pair is None:
        return entry
    return replace(entry, difference=pair.difference, interval=(pair.low, pair.high), p_holm=p_holm)


def _confidence(whole: Sequence[Predicted]) -> tuple[np.ndarray, np.ndarray]:
    """(probability of the answer, whether it is right) of all seeds; empty where the task has no
    single answer.
    """
    if whole[0].task != "single":
        return np.zeros(0), np.zeros(0)
    confidence, right = [], []
    for p in whole:
        scores = np.stack([p.table[f"p_{label}"].to_numpy() for label in p.labels], axis=1)
        confidence.append(scores.max(1, initial=0))
        right.append(p.pred == p.true)
    return np.concatenate(confidence), np.concatenate(right)


def _curve(confidence: np.ndarray, right: np.ndarray) -> tuple[Bin, ...]:
    """The calibration curve: bins of equal width that have answers."""
    place = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    found = []
    for k in range(BINS):
        inside = place == k
        if inside.any():
            mean, share = float(confidence[inside].mean()), float(right[inside].mean())
            found.append(Bin(k / BINS, (k + 1) / BINS, int(inside.sum()), mean, share))
    return tuple(found)


def _speakers(whole: Sequence[Predicted], metric: str) -> tuple[Speaker, ...]:
    """Every speaker with enough utterances, the worst first."""
    names = np.array([name or "" for name in whole[0].table["speaker"].to_pylist()], dtype=object)
    found = []
    for name in dict.fromkeys(names.tolist()):
        rows = np.flatnonzero(names == name)
        if name and len(rows) >= FEWEST_OF_A_SPEAKER:
            value = float(np.mean([p.figures(rows)[metric] for p in whole]))
            found.append(Speaker(name, len(rows), value))
    if len(found) < 2:
        return ()
    sign = -1 if lower_is_better(metric) else 1
    return tuple(sorted(found, key=lambda speaker: (sign * (speaker.value or 0), speaker.name)))


def _confused(whole: Sequence[Predicted]) -> tuple[Confused, ...]:
    """Classes that are taken for others, by the share of their utterances, the largest first."""
    if whole[0].task != "single":
        return ()
    labels = whole[0].labels
    each = [metrics.confusion(p.true, p.pred, len(labels)) for p in whole]
    matrix = np.mean(each, axis=0)
    sizes = matrix.sum(1)
    pairs = []
    for (row, column), n in np.ndenumerate(matrix):
        if row != column and n:
            pairs.append(Confused(labels[row], labels[column], float(n), float(n / sizes[row])))
    return tuple(sorted(pairs, key=lambda pair: -pair.share))
