"""The figures of one run on one split, as metrics.json has them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from mer.fusion.data import splits
from mer.fusion.data.unimodal import unlabelled
from mer.fusion.evaluation import inconsistency
from mer.fusion.evaluation.crosscorpus import LabelMap
from mer.fusion.evaluation.discrimination import discrimination
from mer.fusion.measures import calibration, intervals, metrics
from mer.fusion.measures.calibration import Scaling
from mer.fusion.measures.intervals import Sampled
from mer.fusion.runs.checkpoint import Run
from mer.fusion.runs.prediction_table import Predicted, decisions, from_table, unit
from mer.fusion.runs.records import (
    Bootstrap,
    Calibration,
    Figures,
    FinishedInfo,
    HeadScores,
    OwnScores,
    SingleMetrics,
    SoftScores,
    Subset,
    TwoWay,
    defined,
)
from mer.fusion.training.training_setup import measures_of
from mer.pipeline.store import FeatureStore

FEW_GROUPS = 25  # below this an interval is rough, however it is widened
RESAMPLES = 1000
UNEQUAL = "inconsistent"  # the tag of utterances whose voice and words are known to disagree


@dataclass(frozen=True)
class Head:
    """What the head of one modality answers: `pred` as of `infer.decide`, on the rows `there` (N,)
    bool, which have the modality; elsewhere it says nothing.
    """

    pred: np.ndarray
    there: np.ndarray


def describe(
    run: Run,
    table: pa.Table,
    split: str,
    *,
    device: torch.device | str,
    store: FeatureStore,
    together: bool = False,
    labels: LabelMap | None = None,
) -> SingleMetrics:
    """The content of metrics.json for one run, or where it stands `together` with others whose
    predictions these are the mean of: then without what its model alone would be asked. `labels`
    says how those of another corpus are read, which `store` shows as the run's.
    """
    spec, info = run.spec, run.result
    every = splits.targets(store.table(), spec.task, spec.labels)
    measures = measures_of(store, every)
    among = None if labels is None else labels.scored
    p = from_table(table, spec.task, spec.labels, measures, among)
    name, groups = unit(p.table)
    stored = store.header.modalities
    heads = _heads(p, spec.modalities)
    agree, disagree = _where_heads_agree(p, heads)
    answered = p.table["disagreement"].null_count < len(p.table) and not together
    untrained = [name for name in spec.sources if not stored[name].trained]
    alone: dict[str, HeadScores] = {}
    for m, head in heads.items():
        n, figures = int(head.there.sum()), replace(p, pred=head.pred).figures(head.there)
        alone[m] = HeadScores(n=n, without=len(head.there) - n, figures={**figures})
    return defined(
        SingleMetrics(
            run=run.path.name,
            model=info.model,
            dataset=store.header.dataset,
            split=split,
            task=info.store.task,
            labels=spec.labels,
            select_metric=info.select_metric,
            modalities=tuple(spec.modalities),
            fold=info.fold,
            seed=info.seed,
            untrained_encoders=tuple(untrained),
            unlabelled=len(table) - len(p.table),
            metrics=p.scores(),
            interval=intervals_of([p], groups),
            bootstrap=bootstrap_of(name, groups),
            thresholds=info.thresholds,
            unseen=unlearnt(info, p),
            context=spec.context.title if spec.context is not None else None,
            measures=measures if spec.task == "regression" else None,
            unimodal=alone or None,
            **_by_own_labels(p, heads),
            heads_agree=agree,
            heads_disagree=disagree,
            attention=_attention(p, table, spec.modalities),
            discrimination=discrimination(run, p, store, device) if answered else None,
            inconsistent=_inconsistent(p),
            calibration=_calibration(p, None if together else info.scaling),
            soft=_soft_scores(table, spec.score_columns),
        )
    )


def intervals_of(by_seed: Sequence[Predicted], groups: np.ndarray) -> dict[str, Any]:
    """95 % interval of every figure, averaged over the seeds."""
    found = {}
    for name, one in sampled(by_seed, groups).items():
        # draws of seeds reach beyond the seeds there are, to where no figure can be
        low, high = metrics.ends(name)
        found[name] = np.clip(intervals.interval(one), low, high).tolist()
    return found


def sampled(by_seed: Sequence[Predicted], groups: np.ndarray) -> dict[str, Sampled]:
    """Every figure of every seed, and its draws: the same for all that share their groups, so that
    the draws of two runs on the same rows are paired.

    Args:
        by_seed: The predictions of each seed, their rows in the same order.
        groups: (N,) that of each row.
    """
    count = intervals.effective(groups)
    values = [p.figures() for p in by_seed]
    draws = [_drawn(p, groups) for p in by_seed]
    found = {}
    for name in values[0]:
        each = np.array([one[name] for one in values])
        found[name] = Sampled(each, np.stack([one[name] for one in draws], axis=1), count)
    return found


def _drawn(p: Predicted, groups: np.ndarray) -> dict[str, np.ndarray]:
    """(resamples,) every figure of one seed under each draw of whole groups."""
    if p.task == "single":
        return metrics.resampled_classification(
            p.true, p.pred, len(p.labels), groups, resamples=RESAMPLES, among=p.among
        )
    drawn = metrics.resampled(p.figures, groups, resamples=RESAMPLES)
    return dict(zip(p.figures(), drawn.T, strict=True))


def bootstrap_of(unit_name: str, groups: np.ndarray) -> Bootstrap:
    """What the intervals resample: `groups` (N,) names the one of each utterance."""
    return Bootstrap(unit_name, len(np.unique(groups)), RESAMPLES, 0.95)


def unlearnt(info: FinishedInfo, p: Predicted) -> tuple[str, ...]:
    """Labels that some of these utterances have and none that trained had."""
    learnt = info.label_counts or {}
    there = splits.label_counts(p.true, p.task, p.labels)
    return tuple(name for name, count in there.items() if count and not learnt.get(name, 1))


def _heads(p: Predicted, modalities: Iterable[str]) -> dict[str, Head]:
    """What each modality's own head answers, where the model has such heads."""
    found = {}
    for m in modalities:
        if f"pred_{m}" in p.table.column_names:
            column = p.table[f"pred_{m}"]
            there = np.asarray(column.is_valid())
            answers = decisions(column.drop_null(), p.task, p.labels)
            pred = np.zeros((len(there), *answers.shape[1:]), answers.dtype)
            pred[there] = answers
            found[m] = Head(pred, there)
    return found


def _where_heads_agree(
    p: Predicted, heads: Mapping[str, Head]
) -> tuple[Subset | None, Subset | None]:
    """The model where the unimodal heads agree, and where they do not, of the rows of which two
    heads answer; None without two heads.
    """
    if len(heads) < 2:
        return None, None
    differ, several = _differ(p, heads), _several(heads)
    of = int(several.sum())
    found = []
    for rows in (several & ~differ, differ):
        n = int(rows.sum())
        share = n / of if of else float("nan")
        found.append(Subset(n=n, of=of, share=share, figures={**p.figures(rows)}))
    return found[0], found[1]


def where_heads_differ(p: Predicted, modalities: Iterable[str]) -> np.ndarray | None:
    """(N,) bool: not all unimodal heads of a row say the same; None for a model without two."""
    heads = _heads(p, modalities)
    return _differ(p, heads) if len(heads) > 1 else None


def where_heads_answer(p: Predicted, modalities: Iterable[str]) -> np.ndarray:
    """(N,) bool: the rows of which two unimodal heads or more answer, so that they can differ."""
    return _several(_heads(p, modalities))


def _several(heads: Mapping[str, Head]) -> np.ndarray:
    return np.sum([head.there for head in heads.values()], axis=0) > 1


def _differ(p: Predicted, heads: Mapping[str, Head]) -> np.ndarray:
    """`heads_differ`, by the middle of the targets where those are dimensions."""
    of_dimensions = p.measures == "ccc" and len(p.true)
    middle = p.true.mean(0) if of_dimensions else 0.0
    answers = [head.pred for head in heads.values()]
    return heads_differ(answers, p.task, middle, there=[head.there for head in heads.values()])


def heads_differ(
    heads: Sequence[np.ndarray],
    task: str,
    middle: np.ndarray | float = 0.0,
    there: Sequence[np.ndarray] | None = None,
) -> np.ndarray:
    """(N,) bool: not all unimodal heads that answer say the same. Regression: they are not on one
    side of the `middle`, which is 0, or of dimensions the mean target. `there`: (N,) bool for each
    head, of which rows it answers; None: of all.
    """
    sides = [h > middle for h in heads] if task == "regression" else list(heads)
    answers = [np.ones(len(h), dtype=bool) for h in heads] if there is None else there
    differ = np.zeros(len(sides[0]), dtype=bool)
    for a, b in combinations(range(len(sides)), 2):
        unlike = sides[a] != sides[b]
        unlike = unlike if unlike.ndim == 1 else unlike.any(1)
        differ |= unlike & answers[a] & answers[b]
    return differ


def _by_own_labels(p: Predicted, heads: Mapping[str, Head]) -> dict[str, Any]:
    """What metrics.json says by unimodal labels, by its keys: each head against those of its own
    modality, and how well the model and its heads tell where these differ. The label of a modality
    that a row lacks counts as none.
    """
    own = inconsistency.truth(p.table, p.task, p.labels)
    found = {}
    for m, head in heads.items():
        if m in own:
            own[m][~head.there] = unlabelled(1, p.task)  # nothing there that could be told
            rows = splits.labelled(own[m])
            figures = replace(p, pred=head.pred, true=own[m]).figures(rows)
            found[m] = OwnScores(n=int(rows.sum()), without=int((~rows).sum()), figures={**figures})
    told: dict[str, Any] = {"own_labels": found or None}
    told["unlike_labels"] = inconsistency.told_by(p.table["disagreement"].to_pylist(), own)
    among = {m: heads[m] for m in own if m in heads}
    if len(among) > 1:
        differ = np.where(_several(among), _differ(p, among), np.nan)
        told["unlike_heads"] = inconsistency.told_by(differ.tolist(), own)
    return told


def _attention(p: Predicted, every: pa.Table, modalities: Iterable[str]) -> Figures | None:
    """The mean share of [CLS] attention of each modality over the labelled rows; None: the model
    has no such thing, of `every` row that was predicted.
    """
    columns = {m: p.table[f"attention_{m}"] for m in modalities}
    if any(every[f"attention_{m}"].null_count for m in modalities):
        return None
    if not len(p.table):
        return dict.fromkeys(columns)
    return {m: float(np.mean(column.to_numpy())) for m, column in columns.items()}


def _calibration(p: Predicted, scaling: Scaling | None) -> Calibration | None:
    """How well the probability of the chosen class is calibrated."""
    if p.task != "single":
        return None
    scores = np.stack([p.table[f"p_{label}"].to_numpy() for label in p.labels], axis=1)
    right = p.pred == p.true
    before = None
    if scaling is not None:  # 1 / T undoes what T has done
        plain = calibration.scaled(scores, 1 / scaling.temperature)
        before = metrics.ece(plain.max(1, initial=0), right)
    return Calibration(metrics.ece(scores.max(1, initial=0), right), before)


def _soft_scores(table: pa.Table, scores: Sequence[str]) -> SoftScores | None:
    """How far the probabilities of a predictions table are from the shares of the raters, those
    without a label among them.
    """
    if "shares" not in table.column_names:
        return None
    table = table.filter(table["shares"].is_valid())
    if not len(table):
        return None
    shares = np.array(table["shares"].to_pylist())
    answers = np.stack([table[name].to_numpy() for name in scores], axis=1)
    js = metrics.jensen_shannon(shares, answers).mean()
    return SoftScores(n=len(table), ties=table["label"].null_count, js=float(js))


def _inconsistent(p: Predicted) -> TwoWay | None:
    """How well the model's disagreement tells utterances that are tagged as inconsistent; None
    without such utterances, or such a model.
    """
    tagged = np.array([UNEQUAL in (tags or ()) for tags in p.table["tags"].to_pylist()], dtype=bool)
    column = p.table["disagreement"].to_pylist()
    said = np.array([np.nan if v is None else v for v in column], dtype=float)
    known = ~np.isnan(said)
    if not tagged[known].any():
        return None
    return TwoWay(
        n=int(tagged[known].sum()),
        auc=metrics.auc(tagged[known], said[known]),
        balanced_accuracy=metrics.balanced_accuracy(tagged[known], said[known] > 0.5),
    )
