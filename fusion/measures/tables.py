"""A table, its numbers, and how both are printed: free of torch, so that `mer runs` is quick."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from mer.fusion.measures.metrics import MEANINGS, kind_of
from mer.pipeline.runtime.terminal import escape

# printed as they are; everything else as a percentage
PLAIN = frozenset({"ccc", "mae", "pearson", "ece", "loss"})


@dataclass(frozen=True)
class Table:
    """A title, the heads of the columns, and rows of as many cells."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def context_words(title: str | None) -> str:
    """The kind of conversation context in the title of a table.

    >>> context_words(None), context_words("past 8")
    ('without context', 'context past 8')
    """
    return "without context" if title in (None, "none") else f"context {title}"


def glossary(names: Iterable[str]) -> str:
    """What the short names of figures stand for, as one line; empty where none needs it.

    >>> glossary(["wa", "pearson", "mae"])
    'WA: weighted accuracy, the share of right answers; MAE: mean absolute error.'
    """
    meanings = [MEANINGS[name] for name in dict.fromkeys(map(kind_of, names)) if name in MEANINGS]
    return f"{'; '.join(meanings)}." if meanings else ""


# Loss terms of the log, by the part of their name before a modality. Drawings and messages show
# these; the log keeps the names of the papers.
LOSSES = {
    "total": "sum of all",
    "ec": "emotion classification",
    "uni": "classification from one modality",
    "mi": "mutual information",
    "rec": "reconstruction",
    "kl": "KL divergence",
    "ed": "emotion discrimination",
    "task": "task",
    "shared": "task, shared parts alone",
    "homo": "task, shared space",
    "hetero": "task, specific space",
    "reconstruction": "reconstruction",
    "cycle": "cycle reconstruction",
    "orthogonality": "orthogonality",
    "margin": "margin",
    "homo_logit": "distillation of answers, shared space",
    "homo_edges": "distillation edges, shared space",
    "homo_representation": "distillation of features, shared space",
    "hetero_logit": "distillation of answers, specific space",
    "hetero_edges": "distillation edges, specific space",
    "hetero_representation": "distillation of features, specific space",
    "homo_dictionary": "dictionary, shared space",
    "homo_activation": "activation, shared space",
    "hetero_dictionary": "dictionary, specific space",
    "hetero_activation": "activation, specific space",
}


def loss_title(name: str) -> str:
    """A loss term in words.

    >>> loss_title("ec"), loss_title("mi_audio_text"), loss_title("another")
    ('emotion classification', 'mutual information: audio, text', 'another')
    """
    if name in LOSSES:
        return LOSSES[name]
    kind, _, modalities = name.partition("_")
    if kind not in LOSSES or not modalities:
        return name
    return f"{LOSSES[kind]}: {modalities.replace('_', ', ')}"


def number(name: str, value: float | None, *, signed: bool = False) -> str:
    """As it is printed: percentages with one decimal; CCC, MAE, Pearson, ECE and losses with three;
    an undefined figure is a dash.
    """
    if value is None or not math.isfinite(value):
        return "–"
    sign = "+" if signed else ""
    return f"{value:{sign}.3f}" if kind_of(name) in PLAIN else f"{100 * value:{sign}.1f}"


def plain(table: Table, *, left: Collection[str] = ()) -> str:
    """Aligned text: the first column and those named in `left` to the left, others to the right."""
    cells = [tuple(map(escape, row)) for row in (table.columns, *table.rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    to_left = [place == 0 or name in left for place, name in enumerate(table.columns)]
    lines = [escape(table.title)]
    for row in cells:
        aligned = []
        for cell, width, first in zip(row, widths, to_left, strict=True):
            aligned.append(cell.ljust(width) if first else cell.rjust(width))
        lines.append("  ".join(aligned).rstrip())
    return "\n".join(lines)
