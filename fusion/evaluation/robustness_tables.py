"""What `mer evaluate --robustness` prints and `mer report` shows of a `Robustness`, as tables."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from mer.fusion.evaluation.robustness import Altered, Heads, Robustness
from mer.fusion.measures import metrics
from mer.fusion.measures.tables import Table, context_words, number
from mer.pipeline.runtime.terminal import plural, shown

NAMES = {"without": "without", "swapped": "another utterance's", "noise": "noise on"}
MOST_SPEAKERS = 5  # in a table, those with the worst figures
MOST_CONFUSIONS = 8  # in a table


def tables(measured: Robustness) -> list[Table]:
    """What the terminal and the page show of it."""
    made = [_heads_table(measured), _calibration_table(measured)]
    made += [_speakers_table(measured), _confused_table(measured)]
    if measured.split != "test":  # on a page they stand below those of test
        made = [replace(table, title=f"{table.title}, {measured.split}") for table in made]
    return [table for table in (_altered_table(measured), *made) if table.rows]


def _altered_table(measured: Robustness) -> Table:
    metric = measured.metric
    as_it_is = ("as it is", number(metric, measured.value), "", "", "", f"{measured.n:,}")
    rows: list[tuple[str, ...]] = [as_it_is]
    for entry in measured.altered:
        name = f"{NAMES[entry.what]} {entry.modality}"
        if entry.level is not None:
            name += f", {entry.level:g} sd"
        rows.append((name, *_cells(metric, entry), f"{entry.n:,}"))
    part = f"{measured.dataset} {measured.split}"
    seen = context_words(measured.context)
    title = f"{measured.model} on {part}, when a modality fails, {seen}"
    groups = plural(measured.bootstrap.groups, measured.bootstrap.unit)
    heads = ("", metrics.title(metric), "difference", f"95 % interval ({groups})", "p (Holm)", "n")
    return Table(title, heads, tuple(rows) if measured.altered else ())


def _cells(metric: str, entry: Altered | Heads) -> tuple[str, ...]:
    """The figure, its difference, the interval of that and its p."""
    bounds = "–"  # also of an interval without width, which is no certainty
    if entry.interval and None not in entry.interval and len(set(entry.interval)) > 1:
        bounds = " … ".join(number(metric, end, signed=True) for end in entry.interval)
    p = "–"
    if entry.p_holm is not None:
        p = f"{entry.p_holm:.3f}" if entry.p_holm >= 0.0005 else "< 0.001"
    figure = number(metric, entry.value)
    return figure, number(metric, entry.difference, signed=True), bounds, p


def _heads_table(measured: Robustness) -> Table:
    rows = []
    for entry in measured.heads:
        what = "unimodal labels" if entry.labels else "heads"
        name = f"{what} {'agree' if entry.agree else 'disagree'}"
        cells = _cells(measured.metric, entry)
        cells = cells if measured.against else cells[:1]
        rows.append((name, *cells, f"{entry.n:,}"))
    title = "where the unimodal heads agree and disagree"
    if any(entry.labels for entry in measured.heads):
        title = "where the unimodal heads, and the unimodal labels, agree and disagree"
    heads: tuple[str, ...] = ("", metrics.title(measured.metric), "n")
    if measured.against:
        title += f", minus {shown(Path(measured.against).name, 60)}"
        heads = ("", metrics.title(measured.metric), "difference", "95 % interval", "p (Holm)", "n")
    return Table(title, heads, tuple(rows))


def _calibration_table(measured: Robustness) -> Table:
    rows = []
    for bin in measured.calibration:
        name = f"{100 * bin.low:.0f} to {100 * bin.high:.0f} %"
        shares = (number("share", bin.confidence), number("share", bin.right))
        rows.append((name, *shares, f"{bin.n:,}"))
    together = ", answers of all seeds together" if measured.seeds > 1 else ""
    title = f"calibration, expected error {number('ece', measured.ece)} (15 bins{together})"
    seeds = f" ({measured.seeds} seeds)" if measured.seeds > 1 else ""
    heads = ("probability of the answer", "mean", "right, %", f"answers{seeds}")
    return Table(title, heads, tuple(rows))


def _speakers_table(measured: Robustness) -> Table:
    speakers = measured.speakers
    if not speakers:
        return Table("", (), ())
    values = np.array([speaker.value for speaker in speakers if speaker.value is not None])
    rows = []
    for speaker in speakers:
        rows.append((speaker.name, number(measured.metric, speaker.value), f"{speaker.n:,}"))
    if len(rows) > MOST_SPEAKERS + 1:
        rows = [*rows[:MOST_SPEAKERS], rows[-1]]
    spread = number(measured.metric, float(np.std(values, ddof=1)) if len(values) > 1 else None)
    title = f"{plural(len(speakers), 'speaker')}, the worst and the best; deviation {spread}"
    return Table(title, ("speaker", metrics.title(measured.metric), "n"), tuple(rows))


def _confused_table(measured: Robustness) -> Table:
    rows = []
    for pair in measured.confused[:MOST_CONFUSIONS]:
        rows.append((pair.reference, pair.answer, number("share", pair.share), f"{pair.n:.1f}"))
    heads = ("reference", "taken for", "% of the reference", "utterances")
    return Table("what is confused", heads, tuple(rows))
