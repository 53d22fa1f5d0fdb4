"""Rows of predictions as text: one in words, many as a table or csv."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from mer.fusion.batch import DataSpec
from mer.fusion.measures.tables import Table, plain
from mer.pipeline.runtime.cells import guarded
from mer.pipeline.runtime.terminal import plural, shown

BETWEEN = ";"  # several labels, or modalities, in a cell of a csv
DIGITS = 6  # of a number in a csv, as many as single precision is good for
ID_CHARACTERS = 60  # of a name in the table; the csv has all
# What stands in a csv before and behind the scores.
BEFORE = ("id", "file", "pred")
BEHIND = ("modalities", "missing", "text_from", "text")
LAST = ("label", "targets", "model", "seed")


def prediction_lines(row: Mapping[str, Any], spec: DataSpec) -> list[str]:
    """What `mer predict` prints for a clip.

    Args:
        row: Of the table that `answering.predict_rows` makes, perhaps with `modalities`, `missing`,
            `noted` and `text_from`.
        spec: What the model answers.

    Returns:
        The decision, every score, what each modality alone says, the [CLS] attention share, the
        disagreement, and what the clip had, as far as that is known; one line each.
    """
    lines = [f"{row['id']}: {_decision(row['pred'], ', ', spec) or 'none'}"]
    if spec.task != "regression":
        ranked = sorted(((row[f"p_{name}"], name) for name in spec.labels), reverse=True)
        lines.append("  probability    " + "  ".join(f"{name} {p:.3f}" for p, name in ranked))
    if row.get("temperature") is not None:
        lines.append(f"  calibrated     on dev, temperature {_temperature(row['temperature'])}")
    if row.get("seed", 0) is None:
        lines.append(f"  ensemble       {row['model']}")
    alone = {m: row[f"pred_{m}"] for m in spec.modalities if f"pred_{m}" in row}
    if alone:
        said = (f"{m} {_alone(pred, spec)}" for m, pred in alone.items())
        lines.append("  each alone     " + "  ".join(said))
    share = _known(row, "attention_", spec)
    if share:
        dominant = max(share, key=lambda m: share[m])
        said = (f"{m} {value:.2f}" for m, value in share.items())
        lines.append("  attention      " + "  ".join(said) + f"  (dominant: {dominant})")
    if row.get("disagreement") is not None:
        lines.append(f"  disagreement   {row['disagreement']:.3f}")
    if row.get("missing"):
        lines.append(
            f"  missing        {', '.join(row['missing'])}; predicted from "
            f"{' and '.join(row['modalities'])} alone"
        )
    if row.get("noted"):
        lines.append(f"  noted          {', '.join(row['noted'])}: the answer may say little")
    if row.get("text_from"):
        lines.append(f"  words          {row['text_from']}: {row['text']}")
    return lines


def table(rows: Sequence[Mapping[str, Any]], spec: DataSpec, width: int | None) -> str:
    """Many predictions as aligned text.

    Args:
        rows: As `prediction_lines` takes them.
        spec: What the model answers.
        width: Of the terminal; None: of none. Where the score of every class does not fit, the
            highest stands alone.

    Returns:
        The table.
    """
    whole = _table(rows, spec, tuple(spec.labels) if spec.task != "regression" else ())
    if width is None or max(map(len, whole.splitlines())) <= width or spec.task == "regression":
        return whole
    return _table(rows, spec, ()) + "\nthe scores of all classes: --csv or --json"


def _table(rows: Sequence[Mapping[str, Any]], spec: DataSpec, labels: tuple[str, ...]) -> str:
    highest = () if labels or spec.task == "regression" else ("p",)
    words = any(row["text_from"] for row in rows)
    noted = any(row.get("noted") for row in rows)
    columns = ["id", "predicted", *highest, *labels, "from"]
    columns += ["words"] * words + ["noted"] * noted
    cells = []
    for row in rows:
        scores = [row[f"p_{name}"] for name in labels]
        if highest:
            scores = [max(row[f"p_{name}"] for name in spec.labels)]
        cells.append(
            (
                shown(row["id"], ID_CHARACTERS),
                _decision(row["pred"], ", ", spec) or "none",
                *(f"{score:.3f}" for score in scores),
                "+".join(row["modalities"]),
                *((row["text_from"] or "–",) if words else ()),
                *((", ".join(row.get("noted") or ()) or "–",) if noted else ()),
            )
        )
    left = {"predicted", "from", "words", "noted"} - set(labels)
    return plain(Table(plural(len(rows), "clip"), tuple(columns), tuple(cells)), left=left)


def as_csv(rows: Sequence[Mapping[str, Any]], spec: DataSpec) -> str:
    """Predictions as a csv with a header: numbers to six digits (JSON has all of them), several
    labels with ; between.
    """
    scores = spec.score_columns
    known = (*BEFORE, *scores, *BEHIND)
    others = []
    for name in rows[0] if rows else ():
        kept = name.startswith("attention_") or name in (
            "disagreement",
            "turns",
            "noted",
            "temperature",
        )
        answered = kept and any(row[name] not in (None, []) for row in rows)
        # that of a head stays where every clip lacks its modality: the model has the head
        if answered or name.startswith("pred_"):
            others.append(name)
    last = [name for name in LAST if not rows or name in rows[0]]
    heads = [*known, *others, *last]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(map(guarded, heads))
    for row in rows:
        writer.writerow(_cell(row[name]) for name in heads)
    return out.getvalue()


def _cell(value: Any) -> Any:
    """A cell of a csv: text is kept from being run as a formula."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.{DIGITS}g}"
    if isinstance(value, list | tuple):
        value = BETWEEN.join(map(str, value))
    return guarded(value) if isinstance(value, str) else value


def missing_lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """How many clips lack which modality, and from what they are predicted."""
    kinds = Counter((tuple(row["missing"]), tuple(row["modalities"])) for row in rows)
    lines = []
    for (missing, there), count in kinds.items():
        if missing:
            first = next(row["id"] for row in rows if tuple(row["missing"]) == missing)
            lines.append(
                f"{count:,} of {plural(len(rows), 'clip')} without {' and '.join(missing)}, "
                f"predicted from {' and '.join(there)} alone (first: {shown(first, 80)})"
            )
    return lines


def _known(row: Mapping[str, Any], prefix: str, spec: DataSpec) -> dict[str, Any]:
    """The columns `prefix` + modality that the model has an answer for, by modality."""
    values = {m: row.get(f"{prefix}{m}") for m in spec.modalities}
    return {m: value for m, value in values.items() if value is not None}


def _alone(pred: Any, spec: DataSpec) -> str:
    """What a modality's own head decides; of one that the clip lacks it decides nothing."""
    return "–" if pred is None else _decision(pred, ",", spec)


def _temperature(value: float | str) -> str:
    return f"{value:.2f}" if isinstance(value, float) else value


def _decision(pred: Any, between: str, spec: DataSpec) -> str:
    """A class, labels, a value, or the values of several targets."""
    if isinstance(pred, float):
        return f"{pred:+.2f}"
    if spec.task == "regression":
        pairs = zip(spec.labels, pred, strict=True)
        return between.join(f"{name} {value:+.2f}" for name, value in pairs)
    return between.join(pred) if isinstance(pred, list) else pred
