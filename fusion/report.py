"""metrics.json and log.jsonl -> tables for the terminal, one self-contained HTML page, and paired
comparisons.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mer.fusion import evaluate, metrics
from mer.fusion import figures as pictures
from mer.fusion.checkpoint import AGAIN, CONFIG, Run
from mer.fusion.files import read_text
from mer.fusion.infer import headline
from mer.fusion.metrics import TITLES
from mer.fusion.shapes import brief, spelled
from mer.pipeline.errors import DataError
from mer.pipeline.runtime.terminal import escape

PLAIN = frozenset({"mae", "pearson", "ece"})  # printed as they are; everything else as a percentage


@dataclass(frozen=True)
class Table:
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


# ---- Figures as tables


def number(name: str, value: float | None, *, signed: bool = False) -> str:
    """As it is printed: percentages with one decimal, MAE, Pearson and ECE with three; an undefined
    figure is a dash.
    """
    if value is None or not np.isfinite(value):
        return "–"
    sign = "+" if signed else ""
    return f"{value:{sign}.3f}" if name in PLAIN else f"{100 * value:{sign}.1f}"


def _interval(name: str, bounds: Sequence[float | None] | None) -> str:
    return (
        "–"
        if not bounds or len(bounds) != 2 or None in bounds
        else f"{number(name, bounds[0])} … {number(name, bounds[1])}"
    )


def tables(found: dict[str, Any]) -> list[Table]:
    """The content of a metrics.json, most important first."""
    figures = [k for k in TITLES if k in found["metrics"]]
    group = found["kind"] == "group"
    where = (
        f"{found['model']} on {found['dataset']} {found['split']}, "
        f"{found['n'] if group else found['metrics']['n']} utterances"
    )
    if "measures" in found:
        where += f", measures of {metrics.CORPUS[found['measures']]}"
    unit = found["bootstrap"]
    spread = f"95 % interval ({unit['groups']} {unit['unit']}s)"
    if not group:
        rows = [
            (TITLES[k], number(k, found["metrics"][k]), _interval(k, found["interval"].get(k)))
            for k in figures
        ]
        made = [Table(where, ("", "value", spread), tuple(rows))]
    else:
        count = len(found["folds"]) or len(found["seeds"])
        seeds = (
            f", {len(found['seeds'])} seeds each"
            if found["folds"] and len(found["seeds"]) > 1
            else ""
        )
        columns = [
            "",
            f"mean ± sd over {count} {found['over']}{seeds}",
            *(["pooled"] if found["pooled"] else []),
            spread,
        ]
        rows = []
        for k in figures:
            row = [TITLES[k], f"{number(k, found['metrics'][k])} ± {number(k, found['sd'].get(k))}"]
            row += [number(k, found["pooled"].get(k))] if found["pooled"] else []
            rows.append((*row, _interval(k, found["interval"].get(k))))
        made = [Table(where, tuple(columns), tuple(rows))]
        made.append(
            Table(
                "runs",
                ("run", "epoch", *(TITLES[k] for k in figures)),
                tuple(
                    (
                        r["run"],
                        str(r["best_epoch"]),
                        *(number(k, r["metrics"].get(k)) for k in figures),
                    )
                    for r in found["runs"]
                ),
            )
        )
    if per_class := found["metrics"].get("per_class"):
        cells = [
            (
                name,
                number("f1", c["precision"]),
                number("f1", c["recall"]),
                number("f1", c["f1"]),
                str(c["support"]),
            )
            for name, c in per_class.items()
        ]
        made.append(Table("per class", ("", "precision", "recall", "F1", "n"), tuple(cells)))
    parts = [(f"{m} alone", None, found["unimodal"][m]) for m in found.get("unimodal", {})]
    parts += [
        (name.replace("_", " "), found[name]["share"], found[name])
        for name in ("heads_agree", "heads_disagree")
        if name in found
    ]
    if parts:
        made.append(
            Table(
                "unimodal heads, and the model where they agree and disagree",
                ("", "share", *(TITLES[k] for k in figures)),
                tuple(
                    (name, number("share", share), *(number(k, f.get(k)) for k in figures))
                    for name, share, f in parts
                ),
            )
        )
    told = [(f"re-paired {pair}", d) for pair, d in found.get("discrimination", {}).items()]
    told += [("tagged inconsistent", found["inconsistent"])] if "inconsistent" in found else []
    if told:
        rows = [
            (name, number("auc", d["auc"]), number("auc", d["balanced_accuracy"]))
            for name, d in told
        ]
        made.append(
            Table("telling apart what disagrees", ("", "AUC", "balanced accuracy"), tuple(rows))
        )
    other = [
        (f"[CLS] attention on {m}", number("share", v))
        for m, v in found.get("attention", {}).items()
    ]
    other += (
        [("calibration error (ECE)", number("ece", found["calibration"]["ece"]))]
        if "calibration" in found
        else []
    )
    if other:
        made.append(Table("more", ("", "value"), tuple(other)))
    return made


def dev_table(run: Run) -> Table:
    """What the trainer knows: the dev figures of the chosen epoch of every child."""
    runs = run.children
    figures = [k for k in TITLES if k in runs[0].info["dev"]]
    rows = [
        (
            c.path.name,
            str(c.info["best_epoch"]),
            *(number(k, c.info["dev"].get(k)) for k in figures),
        )
        for c in runs
    ]
    return Table(
        "dev (it chose the epoch, so it flatters)",
        ("run", "epoch", *(TITLES[k] for k in figures)),
        tuple(rows),
    )


def remarks(found: dict[str, Any]) -> list[str]:
    """What a reader must know before quoting the figures."""
    said = []
    if found["untrained_encoders"]:
        names = " and ".join(found["untrained_encoders"])
        said.append(
            f"UNTRAINED ENCODERS ({names}: random weights): the figures say nothing about real "
            "ones."
        )
    if found["unlabelled"]:
        said.append(f"{found['unlabelled']} utterances without a label are not counted.")
    if unseen := found.get("unseen"):
        said.append(
            f"Training had no utterance of {brief(', '.join(unseen))}: whatever has that label "
            "here is missed."
        )
    if one := _only_class(found):
        said.append(
            f"Every labelled utterance here is {brief(one)}: WA and UA of 100 % are what a "
            "constant answer gets."
        )
    if found["bootstrap"]["unit"] == "utterance":
        fewest = f"fewer than {evaluate.FEWEST_UNITS} dialogues, sessions or speakers are known"
        said.append(f"The interval resamples single utterances, as {fewest}: it may be too narrow.")
    for part in ("heads_agree", "heads_disagree"):
        if without := found.get(part, {}).get("without"):
            what = (
                f"{without} of {len(found['runs'])} runs have no utterances where the "
                f"{part.replace('_', ' ')}"
            )
            said.append(f"{what}; that row leaves them out.")
    return said


def _only_class(found: dict[str, Any]) -> str | None:
    """The class that all the reference has, if it is one."""
    matrix = found.get("confusion") or found["metrics"].get("confusion") or []
    there = [name for name, row in zip(found["labels"], matrix, strict=False) if sum(row)]
    return there[0] if len(there) == 1 and len(found["labels"]) > 1 else None


def plain(table: Table) -> str:
    """Aligned text, first column to the left."""
    cells = [tuple(map(escape, row)) for row in (table.columns, *table.rows)]
    width = [max(len(row[c]) for row in cells) for c in range(len(table.columns))]
    lines = [
        "  ".join(
            [row[0].ljust(width[0]), *(v.rjust(w) for v, w in zip(row[1:], width[1:], strict=True))]
        )
        for row in cells
    ]
    return "\n".join([escape(table.title), *lines])


def show(found: dict[str, Any], *, terminal: bool) -> None:
    """Print the tables to stdout: with rich on a terminal, else as aligned text."""
    if not terminal:
        print("\n\n".join([*map(plain, tables(found)), *map(escape, remarks(found))]))
        return
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    console = Console()
    for table in tables(found):
        drawn = RichTable(title=Text(escape(table.title)), title_justify="left")
        for c, name in enumerate(table.columns):
            drawn.add_column(Text(escape(name)), justify="left" if c == 0 else "right")
        for row in table.rows:
            drawn.add_row(*(Text(escape(cell)) for cell in row))
        console.print(drawn)
    for line in remarks(found):
        console.print(Text(escape(line)))


# ---- Comparison


def compare(first: Run, second: Run, *, metric: str | None = None) -> dict[str, Any]:
    """Second minus first on the same test rows: every metric (mean over seeds), its difference, and
    the paired interval of that.

    Resamples groups (dialogues) and scores both runs on the same draw, so that what is hard for
    both cancels. `verdict` is of `metric` (None: the task's own): better or worse when the interval
    leaves out 0, else undecided.
    """
    a, b = _predictions(first), _predictions(second)
    if a[0].task != b[0].task or a[0].labels != b[0].labels:
        raise DataError(
            f"{first.path} and {second.path} have other tasks or labels; only the same test rows "
            "can be compared"
        )
    if a[0].measures != b[0].measures:
        raise DataError(
            f"{first.path} and {second.path} are scored by other measures; run `mer evaluate` on "
            "both again"
        )
    ids = [q[0].table["id"].to_pylist() for q in (a, b)]
    if ids[0] != ids[1] or not np.array_equal(a[0].true, b[0].true):
        common = len(set(ids[0]) & set(ids[1]))
        rows = f"{len(ids[0])} and {len(ids[1])}, {common} in common"
        raise DataError(
            f"{first.path} and {second.path} were not tested on the same rows and labels ({rows})"
        )
    unit, groups = evaluate.unit(a[0].table)
    left, right = evaluate.mean_figures(a), evaluate.mean_figures(b)

    def difference(index: np.ndarray) -> dict[str, float]:
        x, y = evaluate.mean_figures(a, index), evaluate.mean_figures(b, index)
        return {k: y[k] - x[k] for k in x}

    metric = metric or headline(a[0].task)
    if metric not in left:
        raise DataError(f"--metric {metric}: known are {', '.join(left)}")
    interval = metrics.bootstrap(difference, groups, resamples=evaluate.RESAMPLES)
    found = {
        "first": str(first.path),
        "second": str(second.path),
        "n": len(ids[0]),
        "seeds": [len(a), len(b)],
        "metric": metric,
        "bootstrap": {
            "unit": unit,
            "groups": len(np.unique(groups)),
            "resamples": evaluate.RESAMPLES,
            "level": 0.95,
        },
        "metrics": {
            k: {
                "first": left[k],
                "second": right[k],
                "difference": right[k] - left[k],
                "interval": interval[k],
            }
            for k in left
        },
    }
    low, high = interval[metric]
    gains, losses = (
        (high < 0, low > 0) if metric in metrics.LOWER_IS_BETTER else (low > 0, high < 0)
    )
    found["verdict"] = "better" if gains else "worse" if losses else "undecided"
    return metrics.jsonable(found)


def comparison_table(found: dict[str, Any]) -> Table:
    unit = found["bootstrap"]
    rows = []
    for k, f in found["metrics"].items():
        figures = (
            number(k, f["first"]),
            number(k, f["second"]),
            number(k, f["difference"], signed=True),
        )
        rows.append((TITLES.get(k, k), *figures, _interval(k, f["interval"])))
    columns = (
        "",
        Path(found["first"]).name,
        Path(found["second"]).name,
        "difference",
        f"95 % interval ({unit['groups']} {unit['unit']}s)",
    )
    return Table(
        f"{found['second']} minus {found['first']}, {found['n']} utterances", columns, tuple(rows)
    )


def _predictions(run: Run) -> list[evaluate.Predicted]:
    return [_sorted(q) for q in evaluate.seeds_of(evaluate.read_predictions(run.trained()))]


def _sorted(p: evaluate.Predicted) -> evaluate.Predicted:
    order = np.argsort(np.array(p.table["id"].to_pylist()), kind="stable")
    return evaluate.Predicted(
        p.table.take(order), p.true[order], p.pred[order], p.task, p.labels, p.measures
    )


# ---- HTML


def page(runs: Sequence[Run]) -> str:
    """One HTML page without any outside reference: a summary of all runs, then tables and pictures
    of each.
    """
    found = []
    for run in runs:
        figures = evaluate.stored_metrics(run.trained())
        if figures is None:
            raise DataError(
                f"{run.path}: no test figures yet; run `mer evaluate {run.path}` first, or leave "
                "it out"
            )
        found.append(figures)
    body = ["<h1>mer report</h1>", _html_table(_summary(runs, found))]
    for run, figures in zip(runs, found, strict=True):
        body.append(f"<h2>{html.escape(str(run.path))}</h2>")
        body += [f"<p class=note>{html.escape(line)}</p>" for line in remarks(figures)]
        body += [_html_table(t) for t in tables(figures)]
        body.append('<div class="row">')
        body += pictures.inline(run, figures)
        body.append("</div>")
        config = read_text(run.children[0].path / CONFIG, AGAIN)
        body.append(
            f"<details><summary>configuration</summary><pre>{html.escape(config)}</pre></details>"
        )
    head = (
        "<!doctype html>\n<html lang=en><meta charset=utf-8><title>mer "
        f"report</title><style>{STYLE}</style>\n"
    )
    return spelled(head + "\n".join(body) + "\n</html>\n")


def _summary(runs: Sequence[Run], found: Sequence[dict[str, Any]]) -> Table:
    figures = [k for k in TITLES if any(k in f["metrics"] for f in found)]
    rows = []
    for run, f in zip(runs, found, strict=True):
        cells = [
            f"{number(k, f['metrics'].get(k))}"
            + (f" ± {number(k, f['sd'].get(k))}" if f["kind"] == "group" else "")
            for k in figures
        ]
        rows.append((run.path.name, f["model"], f"{f['dataset']} {f['split']}", *cells))
    return Table(
        "all runs", ("run", "model", "test part", *(TITLES[k] for k in figures)), tuple(rows)
    )


def _html_table(table: Table) -> str:
    head = "".join(f"<th>{html.escape(c)}</th>" for c in table.columns)
    rows = "".join(
        "<tr>" + "".join(f"<td>{html.escape(c)}</td>" for c in row) + "</tr>" for row in table.rows
    )
    return f"<table><caption>{html.escape(table.title)}</caption><tr>{head}</tr>{rows}</table>"


STYLE = (
    "body{font:15px/1.45 sans-serif;max-width:1100px;margin:2em auto;padding:0 "
    "1em}table{border-collapse:collapse;margin:1em 0}"
    "caption{text-align:left;font-weight:bold;padding:.3em 0}td,th{border-bottom:1px solid "
    "#ddd;padding:.2em .8em;text-align:right}"
    "td:first-child,th:first-child{text-align:left}"
    ".row{display:flex;flex-wrap:wrap;gap:1em;align-items:flex-start}.note{color:#a33}"
    "pre{background:#f6f6f6;padding:1em}"
)
