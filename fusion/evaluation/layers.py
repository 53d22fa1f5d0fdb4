"""Where in a frozen encoder the emotion is: a linear probe on the utterance means of every layer,
fitted on train, scored on dev, without training a model.

Dev is found as the trainer finds it (`splits.assign`): the store's own dev part, one carved by
group where there is none, and with folds the one of each fold. No test row is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from mer.fusion import infer
from mer.fusion.config import DataConfig
from mer.fusion.data import splits
from mer.fusion.data.feature_sets import modality_of
from mer.fusion.losses.supervised import task_loss
from mer.fusion.measures import intervals, metrics
from mer.fusion.measures.tables import glossary, number
from mer.fusion.runs.prediction_table import unit
from mer.fusion.training import optim
from mer.fusion.training.training_setup import measures_of
from mer.pipeline.errors import DataError
from mer.pipeline.runtime.progress import Silent
from mer.pipeline.runtime.terminal import did_you_mean, plural, shown
from mer.pipeline.runtime.terms import targets_of
from mer.pipeline.store import FeatureStore

# Of the squared weights beside the mean loss. One for all layers, the one with the best mean of
# their dev figures: chosen layer by layer it would flatter each by another amount.
STRENGTHS = (1.0, 0.1, 0.01)
STEPS = 40  # of L-BFGS for each strength, which begins where the stronger one ended
RESAMPLES = 500
FEW_ROWS = 50  # of dev: the interval of a figure in the middle is then wider than 25 points
BAR_CHARACTERS = 30  # of the largest figure


@dataclass(frozen=True)
class Layer:
    """The probe of one layer: its dev figure, and the 95 % interval of that."""

    layer: int
    figure: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class Curve:
    """The probes of one feature set.

    `first` to `last` are the layers around the best one that are within the noise of it: less than
    one standard error of the paired difference behind.
    """

    name: str
    metric: str
    unit: str
    groups: int
    train: int
    dev: int
    absent: int
    strength: float
    layers: tuple[Layer, ...]
    best: int
    first: int
    last: int

    @property
    def settings(self) -> tuple[str, ...]:
        """What to extract: the best layer, and the mean of those around it if there are some."""
        mean = (f"mean:{self.first}-{self.last}",) if self.last > self.first else ()
        return (str(self.best), *mean)

    @property
    def doubt(self) -> str:
        """Why the figures do not tell which layer is the best; "" where they may."""
        if self.dev < FEW_ROWS:
            return f"too few rows to tell: {plural(self.dev, 'dev row')}"
        lows, highs = zip(*(one.interval for one in self.layers), strict=True)
        if max(lows) <= min(highs):
            return "too few rows to tell: the intervals of all layers overlap"
        return ""


@dataclass(frozen=True)
class Answers:
    """What the probes of all layers and strengths say of the dev rows: (strengths, layers, N, C),
    and the true targets.
    """

    scores: np.ndarray
    target: np.ndarray
    rows: np.ndarray


def probe(
    store: FeatureStore,
    modalities: Sequence[str] = (),
    *,
    folds: str | None = None,
    progress: Silent | None = None,
) -> tuple[list[Curve], list[str]]:
    """Fit a linear probe on every layer.

    Args:
        store: With layer means.
        modalities: Which feature sets; none named: all that have layer means.
        folds: session, speaker, dialogue or published: as `mer train --folds` would, on the dev
            part of each fold together.
        progress: Is told how far it is.

    Returns:
        A curve for each feature set, and notes on how dev came about.

    Raises:
        DataError: There are no layer means, or nothing to fit or score on.
    """
    names = _named(store, modalities)
    table, header = store.table(), store.header
    target = splits.targets(table, header.task, header.labels)
    config = DataConfig()
    parts: list[splits.Fold | None] = [None]
    notes: list[str] = []
    if folds is not None:
        made, said = splits.folds(table, target, folds, seed=config.split_seed)
        parts, notes = list(made), list(said)
    split = partial(splits.assign, table, target, config, labels=header.labels, task=header.task)
    found = [split(fold) for fold in parts]
    notes += dict.fromkeys(note for split in found for note in split.notes)
    progress = progress or Silent()
    return [_curve(store, name, target, found, progress) for name in names], notes


def _named(store: FeatureStore, wanted: Sequence[str]) -> list[str]:
    """The feature sets to probe; DataError for one without layer means."""
    stored = store.header.modalities
    there = [name for name, info in stored.items() if info.layers > 1]
    odd = next((name for name in wanted if name not in there), None)
    if odd is not None and odd not in stored:
        guess = did_you_mean(odd, stored)
        raise DataError(
            f"--modality {shown(odd, 60)}: the store has {shown(', '.join(stored), 99)}{guess}"
        )
    if odd is not None or not there:
        what = odd or "its features"
        raise DataError(
            f"{store.path}: has no layer means of {what}; extract it again with --layer-means "
            "--force (imported features and single-layer encoders have none)"
        )
    return list(dict.fromkeys(wanted)) or there


def _curve(
    store: FeatureStore,
    name: str,
    target: np.ndarray,
    found: Sequence[splits.Split],
    progress: Silent,
) -> Curve:
    header = store.header
    there = store.lengths(name) > 0
    parts = [(one.train[there[one.train]], one.dev[there[one.dev]]) for one in found]
    absent = sum(int((~there[one.train]).sum() + (~there[one.dev]).sum()) for one in found)
    if not all(len(train) and len(dev) for train, dev in parts):
        raise DataError(f"{store.path}: no train or no dev rows have {name}")
    count = header.modalities[name].layers
    with progress.task(f"{name}: layers", count * len(parts), "layers") as advance:
        answers = [_fitted(store, name, target, *part, advance) for part in parts]
    rows = np.concatenate([one.rows for one in answers])
    truth = np.concatenate([one.target for one in answers])
    scores = np.concatenate([one.scores for one in answers], axis=2)
    measures = measures_of(store, target)
    known = infer.names_of_figures(header.task, header.labels, measures)
    metric = metrics.headline(header.task, known)
    sign = -1 if metrics.lower_is_better(metric) else 1

    def figure(pred: np.ndarray, index: np.ndarray | slice = slice(None)) -> float:
        all_ = infer.figures(pred[index], truth[index], header.task, header.labels, measures)
        return all_[metric]

    decided = [[_decided(layer, header.task) for layer in of] for of in scores]
    dev = np.array([[figure(pred) for pred in of] for of in decided])
    if np.isnan(dev).any():
        raise DataError(f"{store.path}: {metric} of the dev rows with {name} is undefined")
    strongest = int(np.argmax(sign * dev.mean(1)))
    best = int(np.argmax(sign * dev[strongest]))
    by, groups = unit(store.table().take(rows))

    def each(index: np.ndarray) -> dict[str, float]:
        return {str(k): figure(pred, index) for k, pred in enumerate(decided[strongest])}

    drawn = metrics.resampled(each, groups, resamples=RESAMPLES)
    behind = sign * (drawn[:, [best]] - drawn)  # of each draw, how far behind the best
    error = behind.std(axis=0)  # NaN, and no layer within the noise, where a draw is undefined
    gap = sign * (dev[strongest, best] - dev[strongest])
    first, last = _around(best, gap <= error)
    made = []
    for layer, value in enumerate(dev[strongest].tolist()):
        low, high = intervals.bounds(drawn[:, layer], intervals.effective(groups))
        made.append(Layer(layer, value, (low, high)))
    return Curve(
        name=name,
        metric=metric,
        unit=by,
        groups=len(np.unique(groups)),
        train=len(parts[0][0]) if len(parts) == 1 else sum(len(train) for train, _ in parts),
        dev=len(rows),
        absent=absent,
        strength=STRENGTHS[strongest],
        layers=tuple(made),
        best=best,
        first=first,
        last=last,
    )


def _around(best: int, within: np.ndarray) -> tuple[int, int]:
    """The first and the last of the layers without a gap around the best one that are within the
    noise.
    """
    first = last = best
    while first > 0 and within[first - 1]:
        first -= 1
    while last + 1 < len(within) and within[last + 1]:
        last += 1
    return first, last


def _fitted(
    store: FeatureStore,
    name: str,
    target: np.ndarray,
    train: np.ndarray,
    dev: np.ndarray,
    advance,
) -> Answers:
    """Probes of every layer and strength, fitted on `train`, and what they say of `dev`."""
    task = store.header.task
    there = store.layer_means(name, np.concatenate([train, dev]))
    y = torch.from_numpy(target[train])
    said = []
    for place in range(there.shape[1]):
        layer = torch.from_numpy(there[:, place].copy())
        fitted, shown_to = layer[: len(train)], layer[len(train) :]
        mean, std = fitted.mean(0), fitted.std(0, correction=0)
        std = std.where(std > 1e-4 * mean.abs() + 1e-8, 1)
        said.append(_scores((fitted - mean) / std, y, (shown_to - mean) / std, task, store))
        advance(1)
    scores = np.stack(said, axis=1)
    return Answers(scores, target[dev], dev)


def _scores(x: Tensor, y: Tensor, seen: Tensor, task: str, store: FeatureStore) -> np.ndarray:
    """(strengths, N, C): the answers of a linear model for each strength of its penalty."""
    outputs = targets_of(task, store.header.labels)
    weight = torch.zeros(x.shape[1], outputs, requires_grad=True)
    bias = torch.zeros(outputs, requires_grad=True)
    if task == "regression":
        bias.data += y.mean(0)
    answers = []
    for strength in STRENGTHS:
        _minimise(x, y, weight, bias, task, strength)
        with torch.no_grad():
            answers.append((seen @ weight + bias).numpy())
    return np.stack(answers)


def _minimise(
    x: Tensor, y: Tensor, weight: Tensor, bias: Tensor, task: str, strength: float
) -> None:
    """Fit weight (D, C) and bias (C,), from where they are; the loss is convex."""
    optimizer = optim.LBFGS(
        [weight, bias],
        max_iter=STEPS,
        history_size=10,
        line_search_fn="strong_wolfe",
        tolerance_change=1e-7,
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = task_loss(x @ weight + bias, y, task=task, regression="mse")
        loss = loss + 0.5 * strength * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)


def _decided(scores: np.ndarray, task: str) -> np.ndarray:
    """Decisions for logits: the class, each label that is more likely than not, or the value."""
    return infer.decide(scores, task, [0.0] * scores.shape[1])


# ---- Told


def lines(curve: Curve, option: str) -> list[str]:
    """The curve as text, and what to extract."""
    title = metrics.title(curve.metric)
    made = [
        f"{curve.name}: dev {title} of a linear probe on the utterance means of each layer "
        f"({curve.train:,} train, {curve.dev:,} dev; 95 % interval over "
        f"{plural(curve.groups, curve.unit)}; bars begin at 0)"
    ]
    if curve.absent:
        have, are = ("has", "is") if curve.absent == 1 else ("have", "are")
        without = plural(curve.absent, "utterance")
        made.append(f"  {without} {have} no {curve.name} and {are} left out")
    highest = max(one.figure for one in curve.layers) or 1.0
    for one in curve.layers:
        bar = "#" * round(BAR_CHARACTERS * one.figure / highest)
        bounds = " … ".join(number(curve.metric, bound) for bound in one.interval)
        mark = " <" if one.layer == curve.best else ""
        value = number(curve.metric, one.figure)
        made.append(f"  {one.layer:3d}  {value:>6}  [{bounds}]  {bar}{mark}")
    said = f"  best: {option} {curve.settings[0]}"
    if len(curve.settings) > 1:
        said += f"; within the noise of it: {option} {curve.settings[1]}"
    return [*made, said, *([f"  {curve.doubt}"] if curve.doubt else [])]


def meaning(curves: Sequence[Curve]) -> str:
    """What the figure of the curves stands for, as one line; empty where none needs it."""
    return glossary(curve.metric for curve in curves)


def option_of(name: str) -> str:
    """The option of `mer extract` that sets the layer of a feature set."""
    return f"--{modality_of(name)}-layer"
