"""What the JSON files of a run folder must hold, so that a damaged or hand-made one is named
instead of failing somewhere later.

A shape is a type; None; text (exactly that); a tuple of shapes, one of which fits; `[shape]`, a
list of such; or an object: `{"key": shape}` must have the key, `{"key?": shape}` may, `{str:
shape}` says what its other keys hold (unsaid: anything).
"""

from __future__ import annotations

import json
from typing import Any

TASK = ("single", "multi", "regression")
MEASURES = ("mosi", "sims")  # by whose definitions a regression is scored: fusion.metrics
FIGURES = {str: (float, None)}
FOLD = {"name": str, "by": ("session", "speaker", "dialogue"), "held": [str]}
STORE = {
    "dataset": str,
    "task": TASK,
    "labels": [str],
    "language": str,
    "modalities": {str: {"dim": int}},
    "recipe": dict,
}
SPEC = {"modalities": {str: int}, "frame_rates": FIGURES, "task": TASK, "labels": [str]}

RUN = {
    "identity": str,
    "store_key": str,
    "model": str,
    "features": str,
    "store": STORE,
    "finished": bool,
}
GROUP = {**RUN, "kind": "group", "seeds": int, "folds": (str, None), "children": [str]}
SINGLE = {
    **RUN,
    "kind": "single",
    "seed": int,
    "select_metric": str,
    "fold": (FOLD, None),
    "spec": SPEC,
    "config_sha256?": (str, None),
    "split_sha256?": str,
    "measures?": MEASURES,
    "label_counts?": {str: int},
}
FINISHED = {
    **SINGLE,
    "best_epoch": int,
    "dev": FIGURES,
    "thresholds": ([float], None),
    "model_sha256?": (str, None),
    "log_sha256?": str,
}

SPLIT = {"train": [str], "dev": [str]}
EPOCH = {"epoch": int, "train": FIGURES, "dev": FIGURES, "diagnostics?": FIGURES, "seconds": float}
PROGRESS = {
    "epoch": int,
    "step": int,
    "best_epoch": int,
    "best_rank": [float],
    "best": FIGURES,
    "thresholds": ([float], None),
    "log": [EPOCH],
    "identity?": str,
    "model_sha256?": str,
}

CLASS = {"precision": (float, None), "recall": (float, None), "f1": (float, None), "support": float}
PAIR = {"auc": (float, None), "balanced_accuracy": (float, None)}
METRICS = {
    "model": str,
    "dataset": str,
    "split": str,
    "task": TASK,
    "labels": [str],
    "select_metric": str,
    "untrained_encoders": [str],
    "unlabelled": int,
    "interval": {str: ([(float, None)], None)},
    "bootstrap": {"unit": str, "groups": int},
    "metrics": {"per_class?": {str: CLASS}, "confusion?": [[float]], str: (float, None)},
    "unimodal?": {str: FIGURES},
    "heads_agree?": {"share": (float, None), str: (float, None)},
    "heads_disagree?": {"share": (float, None), str: (float, None)},
    "discrimination?": {str: PAIR},
    "inconsistent?": PAIR,
    "attention?": FIGURES,
    "calibration?": {"ece": (float, None)},
    "measures?": MEASURES,
    "unseen?": [str],
    "predictions_sha256?": str,
}
METRICS_OF_ONE = {**METRICS, "kind": "single"}
METRICS_OF_GROUP = {
    **METRICS,
    "kind": "group",
    "over": str,
    "seeds": [int],
    "folds": [str],
    "n": int,
    "sd": FIGURES,
    "pooled": (FIGURES, None),
    "runs": [{"run": str, "best_epoch": int, "metrics": FIGURES}],
    "confusion?": [[float]],
}


def fault(value: Any, shape: Any, where: str = "") -> str | None:
    """Why `value` is not of `shape`, and where; None when it is.

    >>> fault({"a": [1, "x"]}, {"a": [int]}), fault({}, {"a": int}), fault({"a": None}, {"a?": (int,
        None)})
    ('a[1] is "x"', 'it has no a', None)
    """
    if isinstance(shape, dict) and isinstance(value, dict):
        if (
            missing := next(
                (k for k in shape if k is not str and not k.endswith("?") and k not in value), None
            )
        ) is not None:
            return f"{where or 'it'} has no {missing}"
        dot = f"{where}." if where else ""
        shapes = {k: shape.get(k, shape.get(f"{k}?", shape.get(str, object))) for k in value}
        return next(
            (found for k, v in value.items() if (found := fault(v, shapes[k], f"{dot}{k}"))), None
        )
    if isinstance(shape, list) and isinstance(value, list):
        return next(
            (found for i, v in enumerate(value) if (found := fault(v, shape[0], f"{where}[{i}]"))),
            None,
        )
    if isinstance(shape, tuple):
        fits = any(fault(value, one) is None for one in shape)
    elif isinstance(shape, type):
        number = (int, float) if shape is float else shape
        fits = isinstance(value, number) and (
            shape in (bool, object) or not isinstance(value, bool)
        )
    else:
        fits = value == shape and type(value) is type(shape) and not isinstance(shape, dict | list)
    return None if fits else f"{where or 'it'} is {json.dumps(value)[:40]}"


def spelled(text: str) -> str:
    r"""`text` with control characters written out, which no page or picture may have; lines are
    kept.

    >>> spelled("a\x1b[31m") == r"a\x1b[31m"
    True
    """
    odd = {c for c in text if not c.isprintable() and c not in " \n\t" and ord(c) < 0xA0}
    return text.translate({ord(c): c.encode("unicode_escape").decode() for c in odd})


def brief(value: Any, most: int = 100) -> str:
    r"""One line of at most about `most` characters that shows `value`, whatever it is.

    >>> brief("x" * 200, 10), brief(ValueError("one\ntwo"))
    ('xxxxxxxxxx… (200 characters)', 'one two')
    """
    try:
        text = " ".join(str(value).split())
    except (ValueError, RecursionError):  # a whole number of thousands of digits; nested too deep
        return f"a {type(value).__name__} too large to show"
    size, text = len(text), text[:most]
    # Also what a terminal would obey, and halves of surrogate pairs.
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return text if size <= most else f"{text}… ({size:,} characters)"
