"""One row of predictions as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mer.fusion.batch import DataSpec


def prediction_lines(row: Mapping[str, Any], spec: DataSpec) -> list[str]:
    """What `mer predict` prints for a clip.

    Args:
        row: Of the table that `mer.fusion.evaluate.predict_rows` makes.
        spec: What the model answers.

    Returns:
        The decision, every score, what each modality alone says, the [CLS] attention share and the
        disagreement, as far as the model has them; one line each.
    """
    lines = [f"{row['id']}: {_decision(row['pred'], ', ') or 'none'}"]
    if spec.task != "regression":
        ranked = sorted(((row[f"p_{name}"], name) for name in spec.labels), reverse=True)
        lines.append("  probability    " + "  ".join(f"{name} {p:.3f}" for p, name in ranked))
    alone = _known(row, "pred_", spec)
    if alone:
        said = (f"{m} {_decision(pred, ',')}" for m, pred in alone.items())
        lines.append("  each alone     " + "  ".join(said))
    share = _known(row, "attention_", spec)
    if share:
        dominant = max(share, key=lambda m: share[m])
        said = (f"{m} {value:.2f}" for m, value in share.items())
        lines.append("  attention      " + "  ".join(said) + f"  (dominant: {dominant})")
    if row.get("disagreement") is not None:
        lines.append(f"  disagreement   {row['disagreement']:.3f}")
    return lines


def _known(row: Mapping[str, Any], prefix: str, spec: DataSpec) -> dict[str, Any]:
    """The columns `prefix` + modality that the model has an answer for, by modality."""
    values = {m: row.get(f"{prefix}{m}") for m in spec.modalities}
    return {m: value for m, value in values.items() if value is not None}


def _decision(pred: Any, between: str) -> str:
    """A class, labels, or a value."""
    if isinstance(pred, float):
        return f"{pred:+.2f}"
    return between.join(pred) if isinstance(pred, list) else pred
