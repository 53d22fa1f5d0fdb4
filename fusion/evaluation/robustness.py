"""Run + store -> robustness.json: where a model holds, and where it does not.

Without each modality it reads; with that of another utterance in its place; with noise on each, at
three levels; where its unimodal heads agree and where they disagree, also against another run (what
ED does for DRKF is the difference from the same run with `model_args.w_ed=0`); how well its
probabilities are calibrated; by speaker; and what it confuses. All of it is of one part, test or
dev; on test it is an opening that the ledger knows.

Noise is an offset of the utterance, the same on all its steps: normal, with a deviation of so many
of each number's own over the utterance means of the part. So a model that reads steps cannot
average it out, and one that reads means and deviations sees as much of it. Of a run with context
the neighbours keep theirs, but when a modality is missing, which they then lack as well.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from mer.fusion.batch import Batch
from mer.fusion.data import splits
from mer.fusion.evaluation import answering, evaluate, inconsistency, opening_rows, scoring
from mer.fusion.evaluation.scoring import sampled
from mer.fusion.measures import intervals, metrics
from mer.fusion.measures.intervals import Paired
from mer.fusion.measures.metrics import headline, lower_is_better
from mer.fusion.measures.tables import Table, context_words, number
from mer.fusion.runs import ledger, prediction_table
from mer.fusion.runs.checkpoint import Run, check_store
from mer.fusion.runs.prediction_table import Predicted, unit
from mer.fusion.runs.records import Bootstrap, defined
from mer.fusion.runtime import files, typed
from mer.fusion.runtime.notes import Note, Once
from mer.fusion.runtime.typed import optional
from mer.fusion.training.training_setup import measures_of
from mer.pipeline.errors import DataError
from mer.pipeline.runtime.progress import SILENT, Silent
from mer.pipeline.runtime.terminal import plural, shown
from mer.pipeline.store import FeatureStore

LEVELS = (0.25, 0.5, 1.0)  # of noise, in deviations of each number
SEED = 0  # of what is drawn
BINS = 10  # of the calibration curve
NAMES = {"without": "without", "swapped": "another utterance's", "noise": "noise on"}
FEWEST_OF_A_SPEAKER = 5  # utterances from which a speaker has a figure
MOST_SPEAKERS = 5  # in a table, those with the worst figures
MOST_CONFUSIONS = 8  # in a table


@dataclass(frozen=True, kw_only=True)
class Altered:
    """The headline figure of altered rows, and its paired difference from that of the same rows as
    they are. `n` rows, those with something left to read; `p_holm` over all such entries.
    """

    what: Literal["without", "swapped", "noise"]
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
    """Rows where the unimodal heads agree, or disagree, in most seeds, or, by `labels`, where the
    unimodal labels do; against another run the paired difference, this one minus that one, by Holm
    over all kinds of rows.
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

    def predict(self, change: Callable[[int], Callable[[Batch], Batch]]) -> list[Predicted]:
        """By seed, under a change for each child."""
        tables = []
        for place, child in enumerate(self.run.children):
            tables.append(
                answering.predict_rows(
                    child,
                    self.store,
                    self.rows[place],
                    device=self.device,
                    progress=self.progress,
                    change=change(place),
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
        DataError: A run is not finished or damaged, there are no such rows, or both runs were not
            tested on the same ones.
        KeyMismatchError: The store is of another recipe or of other labels.
    """
    run = (run if isinstance(run, Run) else Run.open(run)).trained()
    path = Path(features if features is not None else run.info.features)
    if not path.exists():
        raise DataError(f"{path}: no such store; name the one to evaluate on with --features")
    other = None
    if against is not None:
        other = (against if isinstance(against, Run) else Run.open(against)).trained()
    with FeatureStore(path) as store:
        measured = _opened(run, store, split, device, note, progress)
        moments = [Moments() for _ in run.children]
        whole = measured.predict(lambda place: moments[place].seen)
        theirs = None
        if other is not None:
            check_store(other.children[0], store)
            modalities = run.children[0].spec.modalities
            if scoring.where_heads_differ(whole[0], modalities) is None:
                raise DataError(
                    f"{run.path}: {run.children[0].config.model} has no heads of single modalities "
                    f"that agree or disagree; leave out {other.path}"
                )
            theirs = _opened(other, store, split, device, note, progress).predict(_as_it_is)
            _check_same(run, other, whole[0], theirs[0])
        found = _found(measured, whole, moments, split)
        if other is not None:
            found = replace(found, against=str(other.path))
        found = replace(found, heads=_heads(run, whole, theirs, found.metric))
        stem = evaluate.stem_of(run, store, split)
    found = defined(found)
    files.write_json(run.path / f"robustness{stem}.json", typed.tree(found))
    return found


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


# ---- Without a modality, and with noise


class Moments:
    """Mean and deviation of every number of each modality, over the utterances of the batches."""

    def __init__(self) -> None:
        self.sums: dict[str, tuple[float, Tensor | float, Tensor | float]] = {}

    def seen(self, batch: Batch) -> Batch:
        """Count a batch; it stays as it is."""
        for m, x in batch.x.items():
            there = batch.lengths[m] > 0
            mask = batch.mask(m)[there, :, None]
            steps = torch.where(mask, x[there], 0).double()
            mean = steps.sum(1) / mask.sum(1).clamp(min=1)
            n, total, squares = self.sums.get(m, (0.0, 0.0, 0.0))
            self.sums[m] = (n + len(mean), total + mean.sum(0), squares + (mean**2).sum(0))
        return batch

    def deviation(self, modality: str) -> Tensor:
        """(D,)"""
        n, total, squares = self.sums[modality]
        n = max(n, 1.0)
        variance = torch.as_tensor(squares / n - (total / n) ** 2)
        return variance.clamp(min=0).sqrt()


def _as_it_is(place: int) -> Callable[[Batch], Batch]:
    return lambda batch: batch


def without(modality: str) -> Callable[[Batch], Batch]:
    """A change that takes a modality away, as if no utterance had it, nor any of its neighbours."""

    def change(batch: Batch) -> Batch:
        x = batch.x | {modality: batch.x[modality][:, :1] * 0}
        lengths = batch.lengths | {modality: batch.lengths[modality] * 0}
        turns = batch.context
        if turns is not None and modality in turns.there:
            nobody = turns.there | {modality: torch.zeros_like(turns.there[modality])}
            turns = replace(turns, there=nobody)
        return replace(batch, x=x, lengths=lengths, context=turns)

    return change


def swapped(modality: str) -> Callable[[Batch], Batch]:
    """A change that gives every utterance a modality of another one of its batch, which is of about
    the same length; one without it stays without.
    """

    def change(batch: Batch) -> Batch:
        there = torch.nonzero(batch.lengths[modality] > 0).flatten().cpu().numpy()
        drawn = np.random.default_rng(SEED).permutation(there)
        partner = np.arange(len(batch))
        partner[drawn] = np.roll(drawn, 1)  # one cycle: nobody keeps its own, but in a batch of one
        index = torch.from_numpy(partner).to(batch.row.device)
        x = batch.x | {modality: batch.x[modality][index]}
        lengths = batch.lengths | {modality: batch.lengths[modality][index]}
        return replace(batch, x=x, lengths=lengths)

    return change


def noisy(modality: str, level: float, deviation: Tensor, seed: int) -> Callable[[Batch], Batch]:
    """A change that moves every utterance by an offset of its own, which follows from its row."""

    def change(batch: Batch) -> Batch:
        x = batch.x[modality]
        offsets = []
        for row in batch.row.tolist():
            offsets.append(np.random.default_rng((seed, row)).normal(size=x.shape[2]))
        drawn = torch.from_numpy(np.array(offsets).reshape(len(batch), x.shape[2]))
        offset = (level * deviation.cpu() * drawn).to(x)
        moved = torch.where(batch.mask(modality)[..., None], x + offset[:, None], x)
        return replace(batch, x=batch.x | {modality: moved})

    return change


def _altered(
    measured: Measured, whole: list[Predicted], moments: Sequence[Moments], metric: str
) -> tuple[Altered, ...]:
    """Without each modality, and with noise of each level on each."""
    reads = measured.run.children[0].reads
    left = _what_is_left(measured, reads)
    made: list[tuple[str, str, float | None, int, float, Paired]] = []
    for m in reads if len(reads) > 1 else ():
        altered = measured.predict(lambda place, m=m: without(m))  # type: ignore[misc]
        kept = _rows_with(whole[0], left[m])
        if len(kept):
            some = [[p.take(kept) for p in each] for each in (whole, altered)]
            made.append(("without", m, None, len(kept), *_paired(some[0], some[1], metric)))
    for m in reads:
        altered = measured.predict(lambda place, m=m: swapped(m))  # type: ignore[misc]
        n = len(whole[0].true)
        made.append(("swapped", m, None, n, *_paired(whole, altered, metric)))
    for number_, m in enumerate(reads):
        for level in LEVELS:
            seed = SEED + number_

            def change(place: int, m=m, level=level, seed=seed) -> Callable[[Batch], Batch]:
                return noisy(m, level, moments[place].deviation(m), seed)

            altered = measured.predict(change)
            made.append(("noise", m, level, n, *_paired(whole, altered, metric)))
    together = intervals.holm([pair.p for *_, pair in made])
    return tuple(
        Altered(
            what=what,  # type: ignore[arg-type]
            modality=m,
            level=level,
            n=n,
            value=value,
            difference=pair.difference,
            interval=(pair.low, pair.high),
            p=pair.p,
            p_holm=p_holm,
        )
        for (what, m, level, n, value, pair), p_holm in zip(made, together, strict=True)
    )


def _what_is_left(measured: Measured, reads: Sequence[str]) -> dict[str, set[str]]:
    """For each modality the ids of the rows that have another one."""
    ids = measured.store.table()["id"].to_pylist()
    found: dict[str, set[str]] = {m: set() for m in reads}
    for child, rows in zip(measured.run.children, measured.rows, strict=True):
        there = answering.modalities_of(child, measured.store, rows)
        for row, has in zip(rows.tolist(), there, strict=True):
            for m in reads:
                if set(has) - {m}:
                    found[m].add(ids[row])
    return found


def _rows_with(p: Predicted, ids: set[str]) -> np.ndarray:
    return np.flatnonzero(np.array([one in ids for one in p.table["id"].to_pylist()], dtype=bool))


def _paired(
    plain: Sequence[Predicted], altered: Sequence[Predicted], metric: str
) -> tuple[float, Paired]:
    """The figure of the altered rows, and its difference from the plain ones. The seeds are the
    same on both sides, so that each seed's own difference is what is drawn.
    """
    _, groups = unit(plain[0].table)
    first, second = sampled(plain, groups)[metric], sampled(altered, groups)[metric]
    gap = replace(first, values=second.values - first.values, draws=second.draws - first.draws)
    return float(np.mean(second.values)), intervals.from_zero(gap)


# ---- Heads, calibration, speakers, confusions


def _heads(
    run: Run, whole: Sequence[Predicted], theirs: Sequence[Predicted] | None, metric: str
) -> tuple[Heads, ...]:
    """Where the heads agree and where they do not, in most seeds; the same of unimodal labels,
    where there are such.
    """
    modalities = run.children[0].spec.modalities
    each = [scoring.where_heads_differ(p, modalities) for p in whole]
    there = [one for one in each if one is not None]
    kinds: list[tuple[bool, bool | None, np.ndarray]] = []  # agree, by labels, rows
    if len(there) == len(whole):
        differ = np.mean(there, axis=0) > 0.5
        kinds += [(True, None, ~differ), (False, None, differ)]
    own = inconsistency.truth(whole[0].table, whole[0].task, whole[0].labels)
    if len(own) > 1:
        differ, known = inconsistency.inconsistent(own)
        kinds += [(True, True, known & ~differ), (False, True, differ)]
    found: list[Heads] = []
    pairs: list[Paired | None] = []
    for agree, labels, among in kinds:
        rows = np.flatnonzero(among)
        mine = [p.take(rows) for p in whole]
        pair = None
        if theirs is not None and len(rows):
            other = [p.take(rows) for p in theirs]
            _, groups = unit(mine[0].table)
            pair = intervals.difference(
                sampled(other, groups)[metric], sampled(mine, groups)[metric]
            )
        pairs.append(pair)
        value = _value(mine, metric) if len(rows) else float("nan")
        found.append(Heads(agree=agree, labels=labels, n=len(rows), value=value))
    if theirs is None:
        return tuple(found)
    undefined = float("nan")
    together = intervals.holm([undefined if pair is None else pair.p for pair in pairs])
    return tuple(
        _against(one, pair, p) for one, pair, p in zip(found, pairs, together, strict=True)
    )


def _against(one: Heads, pair: Paired | None, p: float) -> Heads:
    if pair is None:
        return one
    return replace(one, difference=pair.difference, interval=(pair.low, pair.high), p_holm=p)


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
    return tuple(sorted(found, key=lambda one: (sign * (one.value or 0), one.name)))


def _confused(whole: Sequence[Predicted]) -> tuple[Confused, ...]:
    """Classes that are taken for others, by the share of their utterances, the largest first."""
    if whole[0].task != "single":
        return ()
    labels = whole[0].labels
    each = [metrics.confusion(p.true, p.pred, len(labels)) for p in whole]
    matrix = np.mean(each, axis=0)
    sizes = matrix.sum(1)
    found = []
    for (row, column), n in np.ndenumerate(matrix):
        if row != column and n:
            found.append(Confused(labels[row], labels[column], float(n), float(n / sizes[row])))
    return tuple(sorted(found, key=lambda one: -one.share))


# ---- As tables


def tables(found: Robustness) -> list[Table]:
    """What the terminal and the page show of it."""
    made = [_heads_table(found), _calibration_table(found)]
    made += [_speakers_table(found), _confused_table(found)]
    if found.split != "test":  # on a page they stand below those of test
        made = [replace(table, title=f"{table.title}, {found.split}") for table in made]
    return [table for table in (_altered_table(found), *made) if table.rows]


def _altered_table(found: Robustness) -> Table:
    metric = found.metric
    rows = [("as it is", number(metric, found.value), "", "", "", f"{found.n:,}")]
    for one in found.altered:
        name = f"{NAMES[one.what]} {one.modality}"
        if one.level is not None:
            name += f", {one.level:g} sd"
        rows.append((name, *_cells(metric, one), f"{one.n:,}"))
    seen = context_words(found.context)
    title = f"{found.model} on {found.dataset} {found.split}, when a modality fails, {seen}"
    groups = f"{found.bootstrap.groups} {found.bootstrap.unit}s"
    heads = ("", metrics.title(metric), "difference", f"95 % interval ({groups})", "p (Holm)", "n")
    return Table(title, heads, tuple(rows) if found.altered else ())


def _cells(metric: str, one: Altered | Heads) -> tuple[str, str, str, str]:
    bounds = "–"  # also of an interval without width, which is no certainty
    if one.interval and None not in one.interval and len(set(one.interval)) > 1:
        bounds = " … ".join(number(metric, end, signed=True) for end in one.interval)
    p = "–" if one.p_holm is None else f"{one.p_holm:.3f}"
    return (
        number(metric, one.value),
        number(metric, one.difference, signed=True),
        bounds,
        p if one.p_holm is None or one.p_holm >= 0.0005 else "< 0.001",
    )


def _heads_table(found: Robustness) -> Table:
    rows = []
    for one in found.heads:
        what = "unimodal labels" if one.labels else "heads"
        name = f"{what} {'agree' if one.agree else 'disagree'}"
        cells = _cells(found.metric, one) if found.against else _cells(found.metric, one)[:1]
        rows.append((name, *cells, f"{one.n:,}"))
    title = "where the unimodal heads agree and disagree"
    if any(one.labels for one in found.heads):
        title = "where the unimodal heads, and the unimodal labels, agree and disagree"
    heads: tuple[str, ...] = ("", metrics.title(found.metric), "n")
    if found.against:
        title += f", minus {shown(Path(found.against).name, 60)}"
        heads = ("", metrics.title(found.metric), "difference", "95 % interval", "p (Holm)", "n")
    return Table(title, heads, tuple(rows))


def _calibration_table(found: Robustness) -> Table:
    rows = []
    for one in found.calibration:
        name = f"{100 * one.low:.0f} to {100 * one.high:.0f} %"
        shares = (number("share", one.confidence), number("share", one.right))
        rows.append((name, *shares, f"{one.n:,}"))
    together = ", answers of all seeds together" if found.seeds > 1 else ""
    title = f"calibration, expected error {number('ece', found.ece)} (15 bins{together})"
    seeds = f" ({found.seeds} seeds)" if found.seeds > 1 else ""
    heads = ("probability of the answer", "mean", "right, %", f"answers{seeds}")
    return Table(title, heads, tuple(rows))


def _speakers_table(found: Robustness) -> Table:
    some = found.speakers
    if not some:
        return Table("", (), ())
    values = np.array([one.value for one in some if one.value is not None])
    rows = [(one.name, number(found.metric, one.value), f"{one.n:,}") for one in some]
    if len(rows) > MOST_SPEAKERS + 1:
        rows = [*rows[:MOST_SPEAKERS], rows[-1]]
    spread = number(found.metric, float(np.std(values, ddof=1)) if len(values) > 1 else None)
    title = f"{plural(len(some), 'speaker')}, the worst and the best; deviation {spread}"
    return Table(title, ("speaker", metrics.title(found.metric), "n"), tuple(rows))


def _confused_table(found: Robustness) -> Table:
    rows = []
    for one in found.confused[:MOST_CONFUSIONS]:
        rows.append((one.reference, one.answer, number("share", one.share), f"{one.n:.1f}"))
    heads = ("reference", "taken for", "% of the reference", "utterances")
    return Table("what is confused", heads, tuple(rows))
