"""What a model takes from each modality: its figures with that modality missing from every row, and
with that of another row in its place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
import torch

from mer.fusion import evaluate, files, infer, metrics, splits, typed
from mer.fusion.batch import Batch
from mer.fusion.checkpoint import Run
from mer.fusion.data import BatchSource
from mer.fusion.records import Bootstrap, Figures
from mer.fusion.tables import Table, number
from mer.fusion.train import measures_of
from mer.pipeline.errors import DataError
from mer.pipeline.runtime.progress import SILENT, Silent
from mer.pipeline.store import FeatureStore

FILE = "robustness"
WHOLE = "as it is"
SEED = 0  # of the rows that exchange a modality
Change = Callable[[Batch, np.ndarray], Batch]


@dataclass(frozen=True, kw_only=True)
class Robustness:
    """What robustness.json holds. `figures` are those of each condition, means over the seeds of a
    run; `drop` is the figure `metric` of a condition minus that of the rows as they are, with its
    95 % interval over resampled groups.
    """

    format: str = "mer-robustness"
    version: int = 1
    run: str
    split: str
    metric: str
    n: int
    bootstrap: Bootstrap
    figures: dict[str, Figures]
    drop: dict[str, float | None] = field(default_factory=dict)
    interval: dict[str, tuple[float | None, ...] | None] = field(default_factory=dict)


class Altered:
    """A part whose batches are changed before a model sees them; `mer.fusion.infer` asks for no
    more of a part than this has.
    """

    def __init__(self, part: BatchSource, change: Change) -> None:
        self.part, self.change = part, change
        self.spec, self.rows, self.target = part.spec, part.rows, part.target

    def in_order(self, size: int) -> list[np.ndarray]:
        return self.part.in_order(size)

    def batches(self, order: Iterable[np.ndarray]) -> Iterator[Batch]:
        for index in order:
            yield self.change(self.part.batch(index), index)


def without(modality: str) -> Change:
    """The modality is missing from every row, and from its neighbours in a dialogue."""

    def change(batch: Batch, index: np.ndarray) -> Batch:
        x = {**batch.x, modality: batch.x[modality] * 0}
        lengths = {**batch.lengths, modality: batch.lengths[modality] * 0}
        context = batch.context
        if context is not None:
            there = {**context.there, modality: torch.zeros_like(context.there[modality])}
            context = replace(context, there=there)
        return replace(batch, x=x, lengths=lengths, context=context)

    return change


def of_another(part: BatchSource, modality: str) -> Change:
    """The modality is that of another row; rows without it stay without."""
    partner = np.arange(len(part))
    there = np.flatnonzero(np.asarray(part.n[modality]) > 0)
    order = np.random.default_rng(SEED).permutation(there)
    partner[order] = np.roll(order, 1)  # one cycle: nobody keeps its own

    def change(batch: Batch, index: np.ndarray) -> Batch:
        other = part.batch(partner[index])
        x = {**batch.x, modality: other.x[modality]}
        lengths = {**batch.lengths, modality: other.lengths[modality]}
        return replace(batch, x=x, lengths=lengths)

    return change


def robustness(
    run: Run,
    features: str,
    split: str = "test",
    *,
    device: torch.device | str = "cpu",
    progress: Silent = SILENT,
) -> Robustness:
    """Score a split as it is, without each modality, and with each of another row.

    Args:
        run: One finished training, or one over seeds.
        features: The store.
        split: train, dev or test; every opening of the test part is logged.
        device: Where to predict.
        progress: Shows how far it is.

    Returns:
        The figures; they are written into the run folder, too.

    Raises:
        DataError: The run is over folds or damaged, or there are no such rows.
    """
    there = run.trained().children
    if len({one.fold for one in there}) > 1:
        raise DataError(f"{run.path}: --robustness of a run over folds: name one of its runs")
    with FeatureStore(features) as store:
        found = [_decided(one, store, split, device, progress) for one in there]
        target, decided = found[0][0], [one[1] for one in found]
        spec, metric = there[0].spec, there[0].single.select_metric
        every = splits.targets(store.table(), spec.task, spec.labels)
        measures = measures_of(store, every)
        table = store.table().take(found[0][2])
    if metric not in infer.names_of_figures(spec.task, spec.labels, measures):
        metric = metrics.HEADLINE[spec.task]

    def figures(name: str, index: np.ndarray | slice) -> dict[str, float]:
        seeds = []
        for one in decided:
            pred = one[name][index]
            seeds.append(infer.figures(pred, target[index], spec.task, spec.labels, measures))
        return {key: float(np.mean([seed[key] for seed in seeds])) for key in seeds[0]}

    conditions = list(decided[0])

    def drops(index: np.ndarray | slice) -> dict[str, float]:
        whole = figures(WHOLE, index)[metric]
        return {name: figures(name, index)[metric] - whole for name in conditions[1:]}

    name, groups = evaluate.unit(table)
    drawn = metrics.bootstrap(drops, groups, resamples=evaluate.RESAMPLES)
    made = Robustness(
        run=run.path.name,
        split=split,
        metric=metric,
        n=len(target),
        bootstrap=evaluate.bootstrap_of(name, groups),
        figures={name: {**figures(name, slice(None))} for name in conditions},
        drop={**drops(slice(None))},
        interval={key: tuple(bounds) for key, bounds in drawn.items()},
    )
    told = metrics.jsonable(typed.tree(made))
    stem = "" if split == "test" else f"-{split}"
    files.write_json(run.path / f"{FILE}{stem}.json", told)
    return typed.convert(Robustness, told)


def _decided(
    run: Run, store: FeatureStore, split: str, device: torch.device | str, progress: Silent
) -> tuple[np.ndarray, dict[str, np.ndarray], np.ndarray]:
    """(targets of the labelled rows, what the model decides in every condition, their rows)."""
    part = evaluate.part_of(run, store, split, device)
    model = run.model(device)
    reads = [m for m in part.spec.modalities if m in model.core.modalities]
    changes: dict[str, Change] = {WHOLE: lambda batch, index: batch}
    if len(reads) > 1:
        changes |= {f"without {m}": without(m) for m in reads}
    changes |= {f"{m} of another row": of_another(part, m) for m in reads}
    target = splits.targets(store.table(), part.spec.task, part.spec.labels)[part.rows]
    known = splits.labelled(target)
    decided = {}
    with progress.task(f"{run.path.name}: conditions", len(changes), "conditions") as advance:
        for name, change in changes.items():
            out = infer.infer(model, cast(Any, Altered(part, change)))
            pred = infer.decide(out.scores, part.spec.task, run.result.thresholds)
            decided[name] = pred[known]
            advance(1)
    return target[known], decided, part.rows[known]


def table(found: Robustness) -> Table:
    """The figures, a row per condition."""
    metric = found.metric
    names = [metric, *(name for name in metrics.TITLES if name in found.figures[WHOLE])]
    names = [name for name in dict.fromkeys(names)][:4]
    rows = []
    for name, figures in found.figures.items():
        change = "–"
        if name in found.drop:
            low, high = found.interval.get(name) or (None, None)
            bounds = [number(metric, one, signed=True) for one in (low, high)]
            change = f"{number(metric, found.drop[name], signed=True)} [{', '.join(bounds)}]"
        rows.append((name, *(number(one, figures[one]) for one in names), change))
    titles = [metrics.TITLES[one] for one in names]
    unit = f"{found.bootstrap.groups} {found.bootstrap.unit}s"
    return Table(
        f"robustness, {found.split}, {found.n} utterances (95 % intervals resample {unit})",
        ("", *titles, f"change of {metrics.TITLES[metric]}"),
        tuple(rows),
    )
