"""metrics.json and log.jsonl -> tables of text, for the terminal and the page, and the paired
comparison of two runs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from mer.fusion.evaluation import crosscorpus, opening_rows, scoring
from mer.fusion.measures import intervals, metrics
from mer.fusion.measures.metrics import headline, in_order, lower_is_better
from mer.fusion.measures.tables import Table, context_words, glossary, number, plain
from mer.fusion.runs import identity, prediction_table, result_files
from mer.fusion.runs.checkpoint import Run
from mer.fusion.runs.records import (
    Bootstrap,
    Comparison,
    Difference,
    Figures,
    GroupMetrics,
    Metrics,
    SingleMetrics,
    TwoWay,
    defined,
)
from mer.pipeline.errors import DataError
from mer.pipeline.runtime.terminal import did_you_mean, escape, listed, plural, shown

MOST_LABELS = 20  # of a corpus, in a remark

ROUNDING = 1e-9  # of a figure, within which two are the same

# ---- Figures as tables


def interval_text(name: str, bounds: Sequence[float | None] | None) -> str:
    """The bounds of an interval; a dash where they are not known or equal. Equal bounds mean that
    every draw gave the same figure, for example because every answer was right; they say nothing
    about other utterances.
    """
    if not bounds or len(bounds) != 2 or None in bounds or _without_width(bounds):
        return "–"
    return f"{number(name, bounds[0])} … {number(name, bounds[1])}"


def _without_width(bounds: Sequence[float | None] | None) -> bool:
    """Whether an interval is a single figure, but for rounding."""
    low, high = bounds if bounds and len(bounds) == 2 else (None, None)
    return low is not None and high is not None and abs(high - low) < ROUNDING


def interval_head(bootstrap: Bootstrap) -> str:
    """The head of a column of intervals."""
    return f"95 % interval ({plural(bootstrap.groups, bootstrap.unit)})"


def tables(scores: SingleMetrics | GroupMetrics) -> list[Table]:
    """The content of a metrics.json, most important first."""
    names = in_order(scores.metrics.figures)
    if isinstance(scores, GroupMetrics):
        main = [_group_table(scores, names), _runs_table(scores, names)]
    else:
        main = [_single_table(scores, names)]
    others = (
        _per_class(scores),
        _heads(scores, names),
        _own_labels(scores, names),
        _told_apart(scores),
        _more(scores),
    )
    return main + [table for table in others if table.rows]


def _title(scores: Metrics, utterances: float | None) -> str:
    counted = (
        "an unknown number of utterances" if utterances is None else plural(utterances, "utterance")
    )
    rows = "as a whole" if scores.split == crosscorpus.WHOLE else scores.split
    title = f"{scores.model} on {scores.dataset} {rows}, {counted}, "
    title += context_words(scores.context)
    if scores.measures in metrics.CORPUS:
        title += f", measures of {metrics.CORPUS[scores.measures]}"
    return title


def _single_table(scores: SingleMetrics, names: Sequence[str]) -> Table:
    rows = []
    for name in names:
        interval = interval_text(name, scores.interval.get(name))
        rows.append((metrics.title(name), number(name, scores.metrics[name]), interval))
    columns = ("", "value", interval_head(scores.bootstrap))
    return Table(_title(scores, scores.metrics.n), columns, tuple(rows))


def _group_table(scores: GroupMetrics, names: Sequence[str]) -> Table:
    count = len(scores.folds) or len(scores.seeds)
    several = scores.folds and len(scores.seeds) > 1
    seeds = f", {plural(len(scores.seeds), 'seed')} each" if several else ""
    rows = []
    for name in names:
        mean, sd = number(name, scores.metrics[name]), number(name, scores.sd.get(name))
        pooled = [number(name, scores.pooled.get(name))] if scores.pooled else []
        interval = interval_text(name, scores.interval.get(name))
        rows.append((metrics.title(name), f"{mean} ± {sd}", *pooled, interval))
    columns = (
        "",
        f"mean ± sd over {count} {scores.over}{seeds}",
        *(["pooled"] if scores.pooled else []),
        interval_head(scores.bootstrap),
    )
    return Table(_title(scores, scores.n), columns, tuple(rows))


def _runs_table(scores: GroupMetrics, names: Sequence[str]) -> Table:
    rows = [(run.run, str(run.best_epoch), *numbers(run.metrics, names)) for run in scores.runs]
    return Table("runs", ("run", "epoch", *_titles(names)), tuple(rows))


def _per_class(scores: Metrics) -> Table:
    rows = []
    for name, figures in (scores.metrics.per_class or {}).items():
        shares = [number("f1", share) for share in (figures.precision, figures.recall, figures.f1)]
        rows.append((name, *shares, str(figures.support)))
    return Table("per class", ("", "precision", "recall", "F1", "n"), tuple(rows))


def _heads(scores: Metrics, names: Sequence[str]) -> Table:
    rows: list[tuple[str, ...]] = []
    for m, head in (scores.unimodal or {}).items():
        figures = numbers(head.figures, names)
        rows.append((f"{m} alone", number("share", None), *figures, _rounded(head.n)))
    for name, subset in (
        ("heads agree", scores.heads_agree),
        ("heads disagree", scores.heads_disagree),
    ):
        if subset is not None:
            share = number("share", subset.share)
            rows.append((name, share, *numbers(subset.figures, names), _rounded(subset.n)))
    title = "unimodal heads, and the model where they agree and disagree"
    columns = ("", "share", *_titles(names), "n")
    if not lack_modalities(scores):  # then each head has answered on all utterances
        columns, rows = columns[:-1], [row[:-1] for row in rows]
    return Table(title, columns, tuple(rows))


def lack_modalities(scores: Metrics) -> bool:
    """Whether some utterance lacks a modality that a unimodal head answers of."""
    return any(head.without for head in (scores.unimodal or {}).values())


def _rounded(count: float | None) -> str:
    """A count, or its mean over the runs of a group."""
    return "–" if count is None else f"{count:,.0f}"


def _own_labels(scores: Metrics, names: Sequence[str]) -> Table:
    rows = []
    for m, own in (scores.own_labels or {}).items():
        rows.append((m, *numbers(own.figures, names), _rounded(own.n), _rounded(own.without)))
    title = "each unimodal head against the labels of its own modality"
    return Table(title, ("", *_titles(names), "n", "without"), tuple(rows))


def _told_apart(scores: Metrics) -> Table:
    by_name = {
        f"re-paired {pair}": two_way for pair, two_way in (scores.discrimination or {}).items()
    }
    if scores.inconsistent is not None:
        by_name["tagged inconsistent"] = scores.inconsistent
    if scores.unlike_labels is not None:
        by_name[f"unimodal labels differ ({_share(scores.unlike_labels)})"] = scores.unlike_labels
    if scores.unlike_heads is not None:
        by_name[f"… by the heads' answers ({_share(scores.unlike_heads)})"] = scores.unlike_heads
    rows = []
    for name, two_way in by_name.items():
        rows.append((name, number("auc", two_way.auc), number("auc", two_way.balanced_accuracy)))
    columns = ("", "AUC", "balanced accuracy")
    return Table("telling apart what disagrees", columns, tuple(rows))


def _share(two_way: TwoWay) -> str:
    """How many of how many utterances disagree; means over the runs of a group."""
    return f"{two_way.n or 0:,.0f} of {two_way.of or 0:,.0f}"


def _more(scores: Metrics) -> Table:
    rows = []
    for m, share in (scores.attention or {}).items():
        rows.append((f"[CLS] attention on {m}", number("share", share)))
    if scores.calibration is not None:
        rows.append(("calibration error (ECE)", number("ece", scores.calibration.ece)))
        if scores.calibration.uncalibrated is not None:
            uncalibrated = number("ece", scores.calibration.uncalibrated)
            rows.append(("… without the temperature", uncalibrated))
    if scores.soft is not None:
        js = "–" if scores.soft.js is None else f"{scores.soft.js:.3f}"
        rows.append(("Jensen-Shannon divergence from the raters, bits", js))
    return Table("more", ("", "value"), tuple(rows))


def _titles(names: Sequence[str]) -> list[str]:
    return [metrics.title(name) for name in names]


def numbers(figures: Figures, names: Sequence[str]) -> list[str]:
    return [number(name, figures.get(name)) for name in names]


def dev_table(run: Run) -> Table:
    """What the trainer knows: the dev figures of the chosen epoch of every child."""
    children = run.children
    names = in_order(children[0].result.dev)
    rows = []
    for child in children:
        info = child.result
        rows.append((child.path.name, str(info.best_epoch), *numbers(info.dev, names)))
    asked = children[0].spec.context
    seen = context_words(None if asked is None else asked.title)
    title = f"dev (it chose the epoch, so it flatters), {seen}"
    return Table(title, ("run", "epoch", *_titles(names)), tuple(rows))


def dev_text(run: Run) -> str:
    """The dev table, and what must be known of it."""
    table, stored = dev_table(run), run.info.store.modalities
    names = [m for m in run.children[0].spec.modalities if m in stored and not stored[m].trained]
    remarks_below = [untrained(names)] if names else []
    remarks_below.append(glossary(run.children[0].result.dev))
    return "\n\n".join([plain(table), *map(escape, filter(None, remarks_below))])


def untrained(names: Sequence[str]) -> str:
    """What must be known of figures from untrained encoders."""
    return (
        f"UNTRAINED ENCODERS ({' and '.join(names)}: random weights): the figures say nothing "
        "about real ones."
    )


def _not_counted(scores: SingleMetrics | GroupMetrics) -> str:
    """How many utterances are in no figure, and what they lack; empty where there are none."""
    untested = (scores.untested or {}) if isinstance(scores, GroupMetrics) else {}
    counts = {"without a label": scores.unlabelled + untested.get("label", 0)}
    for name, count in untested.items():
        if name not in ("label", "fold"):
            counts[f"without a {name}, so of no fold"] = count
    counts["of no fold's test part"] = untested.get("fold", 0)
    said = [f"{plural(count, 'utterance')} {why}" for why, count in counts.items() if count]
    return f"Not counted: {'; '.join(said)}." if said else ""


def remarks(scores: SingleMetrics | GroupMetrics) -> list[str]:
    """What a reader must know before quoting the figures."""
    lines = []
    if isinstance(scores, SingleMetrics) and scores.members:
        answers = "values" if scores.task == "regression" else "probabilities"
        members = plural(len(scores.members), "run")
        lines.append(f"An ensemble: the mean of the {answers} of {members}.")
    if scores.untrained_encoders:
        lines.append(untrained(scores.untrained_encoders))
    if measured_alike := _measures_of_another(scores):
        lines.append(measured_alike)
    if not_counted := _not_counted(scores):
        lines.append(not_counted)
    lines += read_as(scores)
    if scores.soft is not None:
        ties = plural(round(scores.soft.ties), "row")
        are = "is" if round(scores.soft.ties) == 1 else "are"
        of_folds = isinstance(scores, GroupMetrics) and scores.over == "folds"
        each = " of each fold, on average" if of_folds else ""
        lines.append(
            f"The divergence is the mean over {plural(round(scores.soft.n), 'row')} with shares of "
            f"raters{each}; {ties} of these without a majority {are} in no other figure."
        )
    if scores.unseen:
        lines.append(
            f"Training had no utterance of {shown(', '.join(scores.unseen))}: whatever has that "
            "label here is missed."
        )
    if only_class := _only_class(scores):
        lines.append(
            f"Every labelled utterance here is {shown(only_class)}: WA and UA of 100 % are what a "
            "constant answer gets."
        )
    if scores.bootstrap.unit == "utterance" and scores.bootstrap.groups > 1:
        fewest = (
            f"fewer than {prediction_table.FEWEST_UNITS} dialogues, sessions or speakers are known"
        )
        lines.append(
            f"The interval resamples single utterances, as {fewest}: it may be too narrow."
        )
    lines += (f"{line[0].upper()}{line[1:]}." for line in few_groups(scores.bootstrap))
    if one_figure := _without_spread(scores):
        lines.append(
            f"No interval (–) of {shown(', '.join(one_figure), 120)}: every draw gives the same "
            "figure, which is no certainty; more utterances would tell."
        )
    runs = len(scores.runs) if isinstance(scores, GroupMetrics) else 1
    if lack_modalities(scores):
        lines.append(
            "A unimodal head is scored on the n utterances that have its modality; where heads "
            "agree and disagree, the model on those with two or more, of which share is a part."
        )
    for m, lacking in _runs_without(scores):
        what = f"{lacking:g} of {runs} runs have no utterances with {m}"
        lines.append(f"{what}; the row of its head leaves them out.")
    for name, subset in (("agree", scores.heads_agree), ("disagree", scores.heads_disagree)):
        if subset is not None and subset.without:
            what = f"{subset.without} of {runs} runs have no utterances where the heads {name}"
            lines.append(f"{what}; that row leaves them out.")
    return lines


def _runs_without(scores: Metrics) -> Iterator[tuple[str, float]]:
    """(what utterances of some runs lack, so that a head has nothing to answer of; of how many)."""
    for m, head in (scores.unimodal or {}).items():
        if head.runs_without:
            yield m, head.runs_without
    for m, own in (scores.own_labels or {}).items():
        if own.runs_without:
            yield f"a label of {m} alone", own.runs_without


def _measures_of_another(scores: SingleMetrics | GroupMetrics) -> str:
    """Why a corpus is scored by the measures of another one; empty where it is not."""
    scale = {"mosi": "[-3, 3]", "sims": "[-1, 1]"}.get(scores.measures or "")
    its_own = any(name in scores.dataset.lower() for name in ("mosi", "mosei", "sims"))
    if scores.task != "regression" or scale is None or its_own:
        return ""
    return (
        f"Scored by the measures of {metrics.CORPUS[scores.measures or '']}, as all targets are "
        f"within {scale}; its accuracies say little of another scale, MAE and Pearson hold on any."
    )


def _without_spread(scores: SingleMetrics | GroupMetrics) -> list[str]:
    """The figures that are the same in every draw of the bootstrap."""
    same = []
    for name in in_order(scores.metrics.figures):
        if _without_width(scores.interval.get(name)):
            same.append(metrics.title(name))
    return same


def read_as(scores: Metrics) -> list[str]:
    """How the labels of another corpus were read, and what of both sides has no counterpart."""
    if scores.mapped is None:
        return []
    mapped = scores.mapped
    pairs = listed((f"{there} = {here}" for there, here in mapped.labels.items()), MOST_LABELS)
    lines = [f"Labels of {shown(scores.dataset)} read as the run's: {pairs}."]
    if mapped.left_out:
        each = (f"{name} ({plural(n, 'utterance')})" for name, n in mapped.left_out.items())
        lines.append(f"Left out, as the run has no such label: {listed(each, MOST_LABELS)}.")
    if mapped.unmet:
        each = (f"{name} ({round(count, 1):,g})" for name, count in mapped.unmet.items())
        lines.append(
            f"No label of {shown(scores.dataset)} stands for the run's "
            f"{listed(each, MOST_LABELS)}: such an answer is wrong (how often it was "
            "given). UA and macro-F1 are means over the other labels."
        )
    return lines


def _only_class(scores: SingleMetrics | GroupMetrics) -> str | None:
    """The class that all the reference has, if it is one."""
    matrix = result_files.reference_by_answer(scores) or ()
    present = [name for name, row in zip(scores.labels, matrix, strict=False) if sum(row)]
    return present[0] if len(present) == 1 and len(scores.labels) > 1 else None


def show(scores: SingleMetrics | GroupMetrics, *, terminal: bool) -> None:
    """Print the tables to stdout: with rich on a terminal, else as aligned text."""
    if not terminal:
        lines = [*remarks(scores), glossary(scores.metrics.figures)]
        print("\n\n".join([*map(plain, tables(scores)), *map(escape, filter(None, lines))]))
        return
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    console = Console()
    for table in tables(scores):
        drawn = RichTable(title=Text(escape(table.title)), title_justify="left")
        for c, name in enumerate(table.columns):
            drawn.add_column(Text(escape(name)), justify="left" if c == 0 else "right")
        for row in table.rows:
            drawn.add_row(*(Text(escape(cell)) for cell in row))
        console.print(drawn)
    for line in filter(None, [*remarks(scores), glossary(scores.metrics.figures)]):
        console.print(Text(escape(line)))


# ---- Comparison


def compare(first: Run, second: Run, *, metric: str | None = None) -> Comparison:
    """Second minus first on the same test rows, with a paired bootstrap.

    Resamples groups (dialogues) and scores both runs on the same draw, so that what is hard for
    both cancels; the seeds of each run are drawn along.

    Args:
        first: An evaluated run.
        second: Another one.
        metric: The figure that decides; None: the task's own.

    Returns:
        Every metric (mean over seeds), its difference, the interval of that and its p value, alone
        and by Holm over all metrics. The verdict is better or worse when the interval leaves out 0,
        else undecided. Whether both are one run is said, too.

    Raises:
        DataError: They were not tested on the same rows and labels by the same measures, or there
            are no predictions of them.
    """
    a, b = predictions(first), predictions(second)
    _check_comparable(first, second, a[0], b[0])
    unit, groups = prediction_table.unit(a[0].table)
    left, right = scoring.sampled(a, groups), scoring.sampled(b, groups)
    metric = metric or headline(a[0].task, left)
    if metric not in left:
        guess = did_you_mean(metric, left)
        raise DataError(f"--metric {metric}: known are {', '.join(left)}{guess}")
    found = {name: intervals.difference(one, right[name]) for name, one in left.items()}
    together = intervals.holm([one.p for one in found.values()])
    alike = identity.same(first, second)
    shared = 0
    if alike is None:
        shared = len({*identity.outcome(first)} & {*identity.outcome(second)})
    differences = {}
    for (name, one), corrected in zip(found.items(), together, strict=True):
        differences[name] = Difference(
            first=float(np.mean(left[name].values)),
            second=float(np.mean(right[name].values)),
            difference=one.difference,
            interval=(one.low, one.high),
            p=one.p,
            p_holm=corrected,
        )
    return defined(
        Comparison(
            first=str(first.path),
            second=str(second.path),
            n=len(a[0].true),
            seeds=(len(a), len(b)),
            metric=metric,
            bootstrap=scoring.bootstrap_of(unit, groups),
            metrics=differences,
            verdict=_verdict(metric, found[metric].low, found[metric].high),
            seen=opening_rows.seen([*first.children, *second.children], a[0], others=[b[0]]),
            contexts=(context_of(first), context_of(second)),
            same=alike,
            shared=shared or None,
        )
    )


def context_of(run: Run) -> str:
    """The kind of context that a run has seen, as tables name it."""
    asked = run.children[0].spec.context
    return "none" if asked is None else asked.title


def _check_comparable(
    first: Run, second: Run, a: prediction_table.Predicted, b: prediction_table.Predicted
) -> None:
    """Raise DataError unless both were tested on the same rows and labels by the same measures."""
    both = f"{first.path} and {second.path}"
    if a.task != b.task or a.labels != b.labels:
        raise DataError(
            f"{both} have other tasks or labels; only the same test rows can be compared"
        )
    if a.measures != b.measures:
        raise DataError(f"{both} are scored by other measures; run `mer evaluate` on both again")
    mine, others = a.table["id"].to_pylist(), b.table["id"].to_pylist()
    if mine != others or not np.array_equal(a.true, b.true):
        common = len(set(mine) & set(others))
        rows = f"{len(mine)} and {len(others)}, {common} in common"
        raise DataError(
            f"{both} were not tested on the same rows and labels ({rows}); train both on the same "
            "store, both with the same --folds or both without"
        )


def _verdict(metric: str, low: float, high: float) -> str:
    """What the interval of a difference says."""
    if lower_is_better(metric):
        low, high = -high, -low
    if low > 0:
        return "better"
    return "worse" if high < 0 else "undecided"


def comparison_table(comparison: Comparison) -> Table:
    """Every metric of both runs, the difference and its interval."""
    rows = []
    for name, figure in comparison.metrics.items():
        figures = (number(name, figure.first), number(name, figure.second))
        difference = number(name, figure.difference, signed=True)
        interval = interval_text(name, figure.interval)
        p = (p_text(figure.p), p_text(figure.p_holm))
        rows.append((metrics.title(name), *figures, difference, interval, *p))
    names = (Path(comparison.first).name, Path(comparison.second).name)
    columns = ("", *names, "difference", interval_head(comparison.bootstrap), "p", "p (Holm)")
    title = f"{comparison.second} minus {comparison.first}, {plural(comparison.n, 'utterance')}, "
    if len(set(comparison.contexts)) > 1:  # two tasks, as a model that sees more has it easier
        title += f"context {comparison.contexts[1]} against {comparison.contexts[0]}"
    else:
        title += context_words(comparison.contexts[0])
    return Table(title, columns, tuple(rows))


def p_text(value: float | None) -> str:
    """A p value with three decimals.

    >>> p_text(0.0312), p_text(0.0), p_text(None)
    ('0.031', '< 0.001', '–')
    """
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:.3f}" if value >= 0.0005 else "< 0.001"


def caveats(comparison: Comparison) -> list[str]:
    """What a comparison cannot show, and by whom its rows have been seen."""
    lines = list(few_groups(comparison.bootstrap))
    if line := one_seed(comparison.seeds):
        lines.append(line)
    if comparison.shared:
        are = plural(comparison.shared, "training is", "trainings are")
        lines.append(f"{are} in both runs, which the interval takes for independent")
    return [*lines, comparison.seen.line()]


def one_seed(seeds: Sequence[int]) -> str:
    """What single seeds cannot show; empty where there are several of each."""
    if min(seeds) > 1:
        return ""
    which = "one seed each" if max(seeds) == 1 else "one seed of one of them"
    return (
        f"{which}: this is about these trainings, not about their settings; how much another seed "
        "changes is not in the interval (--seeds 5)"
    )


def few_groups(bootstrap: Bootstrap) -> list[str]:
    """A warning where the interval rests on few groups."""
    if not 0 < bootstrap.groups < scoring.FEW_GROUPS:  # of none there is no interval
        return []
    what = plural(bootstrap.groups, bootstrap.unit)
    if bootstrap.groups == 1:
        return [f"{what} has no interval: that takes two at least"]
    return [f"{what} are few: the interval is widened for that, and rough"]


def predictions(run: Run) -> list[prediction_table.Predicted]:
    """The test predictions of each seed, in the order of their ids.

    Raises:
        DataError: There are none, or they are damaged.
    """
    return [
        _sorted(p) for p in prediction_table.seeds_of(result_files.read_predictions(run.trained()))
    ]


def _sorted(p: prediction_table.Predicted) -> prediction_table.Predicted:
    return p.take(np.argsort(np.array(p.table["id"].to_pylist()), kind="stable"))
