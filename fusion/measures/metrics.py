"""Metrics by their definitions, in NumPy.

An undefined figure (no sample, one class, constant input) is NaN here and null in files.

WA    weighted accuracy: correct / N.
UA    unweighted accuracy: mean recall over the classes present in the reference.
WF1   sum_c n_c/N F1_c, with n_c the reference count. macro_f1: mean F1 over the classes present in
      reference or prediction.
      (The same conventions as scikit-learn's accuracy, balanced accuracy and f1_score.)

Regression has three conventions, the first two as MMSA defines them (`measures_of` says which is
whose).

"mosi", for [-3, 3] (CMU-MOSI, MOSEI): acc2_has0 compares >= 0 with >= 0 on all samples; acc2_non0
compares > 0 with > 0 where the reference is not 0; acc7 and acc5 clip to +-3 and +-2, round half to
even and compare; F1 is WF1 of the two.

"sims", for [-1, 1] (CH-SIMS): reference and prediction are clipped to +-1 for every figure, MAE and
Pearson among them. sims_acc2, sims_acc3 and sims_acc5 compare the bins that end, each with its
upper end, at 0 (so that 0 counts as negative), at -0.1 and 0.1, and at -0.7, -0.1, 0.1 and 0.7; the
ends are compared in float32, in which labels are stored. sims_f1 is WF1 of the two of sims_acc2.

"ccc", for dimensions such as valence, arousal and dominance on whatever scale: of each target the
concordance correlation coefficient (Lin 1989), Pearson's and the mean absolute error, as
ccc_valence, pearson_valence and mae_valence; ccc, pearson and mae are their means over the targets.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from mer.fusion.measures import intervals

Measures = Literal["mosi", "sims", "ccc"]
NAN = float("nan")
TITLES = {  # as printed, in this order
    "wa": "WA",
    "ua": "UA",
    "wf1": "WF1",
    "macro_f1": "macro-F1",
    "subset_accuracy": "subset accuracy",
    "micro_f1": "micro-F1",
    "weighted_f1": "weighted F1",
    "ccc": "CCC",
    "mae": "MAE",
    "pearson": "Pearson",
    "acc2_has0": "Acc-2 (has 0)",
    "f1_has0": "F1 (has 0)",
    "acc2_non0": "Acc-2 (non 0)",
    "f1_non0": "F1 (non 0)",
    "acc5": "Acc-5",
    "acc7": "Acc-7",
    "sims_acc2": "Acc-2 (SIMS)",
    "sims_f1": "F1 (SIMS)",
    "sims_acc3": "Acc-3 (SIMS)",
    "sims_acc5": "Acc-5 (SIMS)",
    "ece": "ECE",
    "auc": "AUC",
    "balanced_accuracy": "balanced accuracy",
}
# what the short ones stand for, said once under what shows them
MEANINGS = {
    "wa": "WA: weighted accuracy, the share of right answers",
    "ua": "UA: unweighted accuracy, the recall averaged over the classes",
    "wf1": "WF1: F1 averaged over the classes by their size",
    "macro_f1": "macro-F1: F1 averaged over the classes, each alike",
    "micro_f1": "micro-F1: F1 of all labels counted together",
    "weighted_f1": "weighted F1: F1 averaged over the labels by their size",
    "ccc": "CCC: concordance correlation coefficient, 1 where answers equal the targets",
    "mae": "MAE: mean absolute error",
    "acc2_has0": "Acc-2 (has 0): on the same side of 0, which counts as above",
    "acc2_non0": "Acc-2 (non 0): likewise, without targets of 0",
    "acc5": "Acc-5: equal when rounded to whole numbers within ±2",
    "acc7": "Acc-7: likewise within ±3",
    "sims_acc2": "Acc-2 (SIMS): on the same side of 0, which counts as below",
    "sims_acc3": "Acc-3 (SIMS): in the same of three parts of [-1, 1]",
    "sims_acc5": "Acc-5 (SIMS): in the same of five parts of [-1, 1]",
}
# the figure that chooses an epoch, decides a comparison and is pictured, unless another is named
HEADLINE = {"single": "wf1", "multi": "weighted_f1", "regression": "mae"}
# what decides where there is such a figure, whatever the task
DECIDES = "ccc"
CORPUS = {"mosi": "CMU-MOSI", "sims": "CH-SIMS"}  # whose measures they are
MOSI_LIMIT = 3  # of the ratings of CMU-MOSI and MOSEI, either way
OF_EACH_TARGET = ("ccc", "pearson", "mae")
SIMS_ENDS = {2: (0.0,), 3: (-0.1, 0.1), 5: (-0.7, -0.1, 0.1, 0.7)}  # inner ends of the bins
_LOWER_IS_BETTER = frozenset({"mae", "ece", "loss"})


def headline(task: str, known: Collection[str]) -> str:
    """The figure that chooses an epoch, decides a comparison and is pictured, unless another is
    named.

    Args:
        task: single, multi or regression.
        known: The figures that there are.

    Returns:
        Its name.
    """
    return DECIDES if DECIDES in known else HEADLINE[task]


def kind_of(name: str) -> str:
    """What a figure is, without the target that it is of.

    >>> kind_of("ccc_valence"), kind_of("mae"), kind_of("acc2_has0")
    ('ccc', 'mae', 'acc2_has0')
    """
    kind, _, target = name.partition("_")
    return kind if target and kind in OF_EACH_TARGET else name


def ends(name: str) -> tuple[float, float]:
    """The lowest and the highest that a figure can be.

    >>> ends("wf1"), ends("ccc_valence"), ends("mae")
    ((0.0, 1.0), (-1.0, 1.0), (0.0, inf))
    """
    kind = kind_of(name)
    if kind in ("mae", "loss"):
        return 0.0, float("inf")
    return (-1.0 if kind in ("ccc", "pearson") else 0.0), 1.0


def title(name: str) -> str:
    """A figure as it is printed.

    >>> title("ua"), title("ccc_valence")
    ('UA', 'CCC of valence')
    """
    kind = kind_of(name)
    if kind == name:
        return TITLES.get(name, name)
    return f"{TITLES[kind]} of {name.removeprefix(f'{kind}_')}"


def in_order(known: Collection[str]) -> list[str]:
    """The figures that have a title, in the order of print: a mean before the figures that it is
    the mean of.
    """
    there = sorted(known, key=lambda name: name not in TITLES)
    return [name for kind in TITLES for name in there if kind_of(name) == kind]


def lower_is_better(name: str) -> bool:
    """Whether less of a figure is better."""
    return kind_of(name) in _LOWER_IS_BETTER


def confusion(true: np.ndarray, pred: np.ndarray, classes: int) -> np.ndarray:
    """(C, C) counts, one row per reference class, one column per predicted one."""
    return np.bincount(
        np.asarray(true) * classes + np.asarray(pred), minlength=classes * classes
    ).reshape(classes, classes)


def from_confusion(matrix: np.ndarray, among: Collection[int] | None = None) -> dict[str, float]:
    """WA, UA, WF1 and macro-F1 of a confusion matrix.

    Args:
        matrix: (C, C) as of `confusion`.
        among: Numbers of the classes that a reference may have; None: of all. A class beside them
            is a wrong answer like any other, and has no F1 in the mean.

    >>> from_confusion(np.array([[2, 0], [1, 1]]))
    {'wa': 0.75, 'ua': 0.75, 'wf1': 0.7333333333333334, 'macro_f1': 0.7333333333333334}
    """
    hit, reference, predicted = np.diag(matrix).astype(float), matrix.sum(1), matrix.sum(0)
    n = reference.sum()
    if n == 0:
        return {"wa": NAN, "ua": NAN, "wf1": NAN, "macro_f1": NAN}
    f1 = 2 * hit / np.maximum(reference + predicted, 1)
    present = reference > 0
    return {
        "wa": float(hit.sum() / n),
        "ua": float((hit[present] / reference[present]).mean()),
        "wf1": float((reference * f1).sum() / n),
        "macro_f1": float(f1[(present | (predicted > 0)) & _inside(len(f1), among)].mean()),
    }


def _inside(classes: int, among: Collection[int] | None) -> np.ndarray:
    """(C,) bool, which of the classes are `among` those that a reference may have."""
    return np.isin(np.arange(classes), list(range(classes) if among is None else among))


def chance(reference: Sequence[float], learnt: Sequence[float]) -> dict[str, float]:
    """What answers get that look at nothing: for each figure the better of always naming the class
    most frequent in training, and of naming classes as often as training has them.

    Args:
        reference: How many of each class are scored.
        learnt: How many of each class trained.

    Returns:
        The figures of `from_confusion`.

    >>> chance([6, 2], [30, 10])["wa"], chance([6, 2], [30, 10])["ua"]
    (0.75, 0.5)
    """
    counts, share = np.array(reference, dtype=float), np.array(learnt, dtype=float)
    if not share.sum():
        return {name: NAN for name in from_confusion(np.zeros((1, 1)))}
    always = np.eye(len(share))[share.argmax()]
    of_always = from_confusion(np.outer(counts, always))
    of_shares = from_confusion(np.outer(counts, share / share.sum()))
    return {name: max(of_always[name], of_shares[name]) for name in of_always}


def classification(
    true: np.ndarray,
    pred: np.ndarray,
    labels: Sequence[str],
    among: Collection[int] | None = None,
) -> dict[str, Any]:
    """Single-label metrics, `per_class` precision, recall, F1 and support, and the confusion
    matrix. `true`, `pred` (N,) int; `among` as of `from_confusion`, the classes of `per_class`.
    """
    matrix = confusion(true, pred, len(labels))
    return {
        "n": int(matrix.sum()),
        **from_confusion(matrix, among),
        "per_class": {
            name: _prf(matrix[c, c], matrix[c].sum(), matrix[:, c].sum())
            for c, name in enumerate(labels)
            if among is None or c in among
        },
        "confusion": matrix.tolist(),
    }


def _prf(hit: int, reference: int, predicted: int) -> dict[str, float]:
    return {
        "precision": float(hit / predicted) if predicted else NAN,
        "recall": float(hit / reference) if reference else NAN,
        "f1": float(2 * hit / (reference + predicted)) if reference + predicted else NAN,
        "support": int(reference),
    }


def multilabel(
    true: np.ndarray, scores: np.ndarray, labels: Sequence[str], thresholds: Sequence[float]
) -> dict[str, Any]:
    """Subset accuracy and micro, macro, weighted F1.

    `true` (N, C) 0/1, `scores` (N, C); a label holds where score >= threshold.

    A label that is neither in the reference nor predicted has F1 0 in the mean, as in scikit-learn
    with zero_division=0.
    """
    true, pred = np.asarray(true) > 0.5, np.asarray(scores) >= np.asarray(thresholds)
    hit, reference, predicted = (true & pred).sum(0), true.sum(0), pred.sum(0)
    f1 = 2 * hit / np.maximum(reference + predicted, 1)
    n = len(true)
    return {
        "n": n,
        "subset_accuracy": float((true == pred).all(1).mean()) if n else NAN,
        "micro_f1": float(2 * hit.sum() / max(reference.sum() + predicted.sum(), 1)) if n else NAN,
        "macro_f1": float(f1.mean()) if n else NAN,
        "weighted_f1": float((reference * f1).sum() / reference.sum()) if reference.sum() else NAN,
        "per_class": {
            name: _prf(hit[c], reference[c], predicted[c]) for c, name in enumerate(labels)
        },
    }


def choose_thresholds(true: np.ndarray, scores: np.ndarray) -> list[float]:
    """Per label the threshold with the best F1; among equals the one nearest to 0.5, which is also
    the choice for an absent label.
    """
    chosen = []
    for y, s in zip(np.asarray(true).T > 0.5, np.asarray(scores, dtype=float).T, strict=True):
        if not y.any():
            chosen.append(0.5)
            continue
        order = np.argsort(-s, kind="stable")
        ranked = s[order]
        hits = np.cumsum(y[order])
        f1 = 2 * hits / (np.arange(1, len(s) + 1) + y.sum())
        # a threshold can only fall between different scores
        last = np.append(ranked[1:] < ranked[:-1], True)
        middle = np.append((ranked[1:] + ranked[:-1]) / 2, ranked[-1] / 2)
        best = np.flatnonzero(last & (f1 >= f1[last].max() - 1e-12))
        chosen.append(float(min(middle[best], key=lambda t: abs(t - 0.5))))
    return chosen


def regression(true: np.ndarray, pred: np.ndarray) -> dict[str, Any]:
    """`true`, `pred` (N,) in [-3, 3]; predictions may go beyond."""
    true, pred = (
        np.asarray(true, dtype=np.float64).reshape(-1),
        np.asarray(pred, dtype=np.float64).reshape(-1),
    )
    non0 = true != 0
    has0, non0 = _two_way(true >= 0, pred >= 0), _two_way(true[non0] > 0, pred[non0] > 0)
    return {
        "n": len(true),
        "mae": float(np.abs(true - pred).mean()) if len(true) else NAN,
        "pearson": pearson(true, pred),
        "acc2_has0": has0["wa"],
        "f1_has0": has0["wf1"],
        "acc2_non0": non0["wa"],
        "f1_non0": non0["wf1"],
        "acc5": _graded(true, pred, 2),
        "acc7": _graded(true, pred, 3),
    }


def sims(true: np.ndarray, pred: np.ndarray) -> dict[str, Any]:
    """The measures of CH-SIMS. `true`, `pred` (N,) in [-1, 1]; what goes beyond is clipped.

    >>> found = sims(np.array([0.0, -0.1, 0.8, 0.2]), np.array([-0.5, 0.1, 0.7, 3.0]))
    >>> found["sims_acc2"], found["sims_acc3"], found["sims_acc5"]
    (0.75, 0.5, 0.0)
    """
    true = np.clip(np.asarray(true, dtype=np.float64).reshape(-1), -1, 1)
    pred = np.clip(np.asarray(pred, dtype=np.float64).reshape(-1), -1, 1)
    bins = {k: (_bins(true, ends), _bins(pred, ends)) for k, ends in SIMS_ENDS.items()}
    two = from_confusion(confusion(*bins[2], 2))
    share = {k: float((a == b).mean()) if len(a) else NAN for k, (a, b) in bins.items()}
    return {
        "n": len(true),
        "mae": float(np.abs(true - pred).mean()) if len(true) else NAN,
        "pearson": pearson(true, pred),
        "sims_acc2": share[2],
        "sims_f1": two["wf1"],
        "sims_acc3": share[3],
        "sims_acc5": share[5],
    }


def dimensional(true: np.ndarray, pred: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    """CCC, Pearson and mean absolute error of each target, and their means over the targets.

    Args:
        true: (N, K), or (N,) for one target.
        pred: Of the same shape.
        names: Of the K targets.

    Returns:
        `n`, the means, and where there are several targets the figures of each.
    """
    shape = (-1, len(names))
    true = np.asarray(true, dtype=np.float64).reshape(shape)
    pred = np.asarray(pred, dtype=np.float64).reshape(shape)
    pairs = list(zip(true.T, pred.T, strict=True))
    of_each = {
        "ccc": [ccc(x, y) for x, y in pairs],
        "pearson": [pearson(x, y) for x, y in pairs],
        "mae": [float(np.abs(x - y).mean()) if len(x) else NAN for x, y in pairs],
    }
    found: dict[str, Any] = {"n": len(true)}
    found.update({kind: float(np.mean(values)) for kind, values in of_each.items()})
    if len(names) > 1:
        for kind, values in of_each.items():
            found.update({f"{kind}_{name}": v for name, v in zip(names, values, strict=True)})
    return found


def ccc(x: np.ndarray, y: np.ndarray) -> float:
    """Lin's concordance correlation coefficient (Biometrics 45, 1989), with moments over N:
    2 cov(x, y) / (var x + var y + (mean x - mean y)^2). NaN for fewer than two samples, and where
    both are the same constant.

    >>> round(ccc(np.array([1.0, 2.0, 3.0]), np.array([2.0, 3.0, 4.0])), 4)  # 4/7
    0.5714
    """
    if len(x) < 2:
        return NAN
    if np.ptp(x) == 0 or np.ptp(y) == 0:  # of equal numbers a covariance is not always exactly 0
        return NAN if np.array_equal(x, y) else 0.0
    dx, dy = x - x.mean(), y - y.mean()
    whole = float((dx @ dx + dy @ dy) / len(x) + (x.mean() - y.mean()) ** 2)
    return float(2 * (dx @ dy) / len(x) / whole)


def _bins(values: np.ndarray, ends: Sequence[float]) -> np.ndarray:
    """(N,) number of the bin; a value at an end belongs to the bin below it."""
    return np.searchsorted(np.array(ends, np.float32), values.astype(np.float32), side="left")


def measures_of(dataset: str, target: np.ndarray | None, labels: Sequence[str] = ()) -> Measures:
    """By whose definitions a corpus of regression targets is scored: "ccc", "sims" or "mosi".

    Several targets are scored by CCC. A corpus that is named after MOSI, MOSEI or SIMS has its
    measures; SIMS only if its targets are within [-1, 1]. Of another name, targets within [-1, 1]
    on both sides of 0 are scored as SIMS's, and targets beyond [-3, 3] by CCC.

    Args:
        dataset: The name of the corpus.
        target: All its targets, NaN where there is none; None: unknown.
        labels: Names of its targets.

    Returns:
        Whose measures.
    """
    name = dataset.lower()
    if len(labels) > 1:
        return "ccc"
    known = np.zeros(0) if target is None else target[np.isfinite(target)]
    within = not len(known) or np.abs(known).max() <= 1
    if "sims" in name:
        return "sims" if within else "mosi"
    if "mosi" in name or "mosei" in name or not len(known):
        return "mosi"
    if np.abs(known).max() > MOSI_LIMIT:
        return "ccc"
    return "sims" if within and known.min() < 0 else "mosi"


REGRESSIONS = {"mosi": regression, "sims": sims}


def _two_way(true: np.ndarray, pred: np.ndarray) -> dict[str, float]:
    return from_confusion(confusion(true.astype(np.int64), pred.astype(np.int64), 2))


def _graded(true: np.ndarray, pred: np.ndarray, limit: int) -> float:
    if not len(true):
        return NAN
    return float(
        (np.round(np.clip(true, -limit, limit)) == np.round(np.clip(pred, -limit, limit))).mean()
    )


def jensen_shannon(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Jensen-Shannon divergence of two distributions in bits, 0 where they are equal and 1 where
    they have no class in common: the mean of the Kullback-Leibler divergences of both from their
    mean (Lin 1991), with 0 log 0 = 0.

    Args:
        p: (N, C) rows that sum to 1.
        q: Likewise.

    Returns:
        (N,).

    >>> jensen_shannon(np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]]))
    array([1.])
    """
    p, q = np.asarray(p, dtype=np.float64), np.asarray(q, dtype=np.float64)
    middle = (p + q) / 2
    return (_divergence(p, middle) + _divergence(q, middle)) / 2


def _divergence(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """(N,) Kullback-Leibler divergence of p from q in bits; q is above 0 wherever p is."""
    there = p > 0
    ratio = np.where(there, p, 1) / np.where(there, q, 1)
    return (p * np.log2(ratio)).sum(1)


def pearson(x: np.ndarray, y: np.ndarray) -> float:
    """Pearson's correlation; NaN for fewer than two samples and for constant input."""
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return NAN
    x, y = x - x.mean(), y - y.mean()
    return float((x @ y) / np.sqrt((x @ x) * (y @ y)))


def auc(true: np.ndarray, score: np.ndarray) -> float:
    """Area under the ROC curve of a 0/1 reference: the share of (positive, negative) pairs in the
    right order, ties a half.
    """
    true, score = np.asarray(true).astype(bool), np.asarray(score, dtype=float)
    positive, negative = int(true.sum()), int((~true).sum())
    if not positive or not negative:
        return NAN
    _, inverse, counts = np.unique(score, return_inverse=True, return_counts=True)
    rank = np.cumsum(counts) - (counts - 1) / 2  # mean rank of each distinct score
    return float(
        (rank[inverse][true].sum() - positive * (positive + 1) / 2) / (positive * negative)
    )


def balanced_accuracy(true: np.ndarray, pred: np.ndarray) -> float:
    """Mean recall of a two-way decision; NaN when the reference holds one class only."""
    true, pred = np.asarray(true).astype(bool), np.asarray(pred).astype(bool)
    if true.all() or not true.any():
        return NAN
    return float((pred[true].mean() + (~pred[~true]).mean()) / 2)


def ece(confidence: np.ndarray, correct: np.ndarray, *, bins: int = 15) -> float:
    """Expected calibration error: |confidence - accuracy| averaged over equal-width bins, weighted
    by their counts (Naeini et al. 2015).
    """
    if not len(confidence):
        return NAN
    place = np.clip(np.ceil(np.asarray(confidence) * bins).astype(int) - 1, 0, bins - 1)
    gap = np.bincount(place, np.asarray(confidence, dtype=float), bins) - np.bincount(
        place, np.asarray(correct, dtype=float), bins
    )
    return float(np.abs(gap).sum() / len(confidence))


Statistic = Callable[[np.ndarray], Mapping[str, float]]


def bootstrap(
    statistic: Statistic,
    groups: np.ndarray,
    *,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, list[float]]:
    """Interval of every figure of `statistic(index)` under resampling of whole groups with
    replacement: percentiles, widened for few groups (`mer.fusion.measures.intervals`).

    `groups` (N,) holds the group (dialogue) of every sample; utterances of one dialogue are not
    independent, so the dialogue is the unit. A figure that is undefined in a resample is left out
    of its quantiles; with fewer than two groups all are NaN.
    """
    names = list(statistic(np.arange(len(groups))))
    drawn = resampled(statistic, groups, resamples=resamples, seed=seed)
    count = intervals.effective(groups)
    return {
        name: intervals.bounds(column, count, level)
        for name, column in zip(names, drawn.T, strict=True)
    }


def resampled(
    statistic: Statistic, groups: np.ndarray, *, resamples: int = 1000, seed: int = 0
) -> np.ndarray:
    """(resamples, figures) every figure of `statistic(index)` under each draw of whole groups, as
    `bootstrap` has it; with fewer than two groups one row of NaN.
    """
    names = list(statistic(np.arange(len(groups))))
    _, code = np.unique(groups, return_inverse=True)
    size = np.bincount(code)
    if len(size) < 2:
        return np.full((1, len(names)), NAN)
    member = np.argsort(code, kind="stable")
    start = np.cumsum(size) - size
    drawn = np.empty((resamples, len(names)))
    for r, pick in enumerate(_picks(len(size), resamples, seed)):
        n = size[pick]
        inside = np.arange(n.sum()) - np.repeat(np.cumsum(n) - n, n)
        values = statistic(member[np.repeat(start[pick], n) + inside])
        drawn[r] = [values[name] for name in names]
    return drawn


def _picks(groups: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """For each resample the numbers of as many groups, drawn with replacement."""
    rng = np.random.default_rng(seed)
    for _ in range(resamples):
        yield rng.integers(groups, size=groups)


def resampled_classification(
    true: np.ndarray,
    pred: np.ndarray,
    classes: int,
    groups: np.ndarray,
    *,
    resamples: int = 1000,
    seed: int = 0,
    among: Collection[int] | None = None,
) -> dict[str, np.ndarray]:
    """(resamples,) each figure of `from_confusion` in the draws that `resampled` makes.

    Confusion matrices of groups add up, so that a draw is a sum and not a scoring of all
    utterances: for comparisons of many runs. With fewer than two groups one NaN.
    """
    _, code = np.unique(groups, return_inverse=True)
    count, cells = int(code.max(initial=-1)) + 1, classes * classes
    if count < 2:
        return {name: np.full(1, NAN) for name in from_confusion(np.zeros((1, 1)))}
    place = code * cells + np.asarray(true) * classes + np.asarray(pred)
    of_groups = np.bincount(place, minlength=count * cells).reshape(count, cells).astype(float)
    picks = _picks(count, resamples, seed)
    times = np.array([np.bincount(pick, minlength=count) for pick in picks], dtype=float)
    matrices = (times @ of_groups).reshape(resamples, classes, classes)
    hit = np.diagonal(matrices, axis1=1, axis2=2)
    reference, predicted = matrices.sum(2), matrices.sum(1)
    n, f1 = reference.sum(1), 2 * hit / np.maximum(reference + predicted, 1)
    there = reference > 0
    named = (there | (predicted > 0)) & _inside(classes, among)
    recall = hit / np.maximum(reference, 1)
    return {
        "wa": hit.sum(1) / n,
        "ua": (recall * there).sum(1) / there.sum(1),
        "wf1": (reference * f1).sum(1) / n,
        "macro_f1": (f1 * named).sum(1) / named.sum(1),
    }


def jsonable(value: Any) -> Any:
    """NaN -> null, NumPy -> Python, so that the JSON is valid and says "undefined" where it is."""
    if isinstance(value, Mapping):
        return {str(k): jsonable(v) for k, v in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [jsonable(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not np.isfinite(value) else value
