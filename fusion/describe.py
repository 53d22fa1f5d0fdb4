"""One row of predictions as text."""

from __future__ import annotations

from mer.fusion.batch import DataSpec


def prediction_lines(row: dict, spec: DataSpec) -> list[str]:
    """What `mer predict` prints for a clip: the decision, every score, the [CLS] attention share,
    the disagreement.
    """
    pred = row["pred"]
    pred = (
        ", ".join(pred) or "none"
        if isinstance(pred, list)
        else f"{pred:+.2f}"
        if isinstance(pred, float)
        else pred
    )
    lines = [f"{row['id']}: {pred}"]
    if spec.task != "regression":
        ranked = sorted(((row[f"p_{name}"], name) for name in spec.labels), reverse=True)
        lines.append("  probability    " + "  ".join(f"{name} {p:.3f}" for p, name in ranked))
    alone = [
        f"{m} {_short(row[f'pred_{m}'])}"
        for m in spec.modalities
        if row.get(f"pred_{m}") is not None
    ]
    if alone:
        lines.append("  each alone     " + "  ".join(alone))
    share = {
        m: row[f"attention_{m}"] for m in spec.modalities if row.get(f"attention_{m}") is not None
    }
    if share:
        dominant = max(share, key=share.get)
        lines.append(
            "  attention      "
            + "  ".join(f"{m} {v:.2f}" for m, v in share.items())
            + f"  (dominant: {dominant})"
        )
    if row.get("disagreement") is not None:
        lines.append(f"  disagreement   {row['disagreement']:.3f}")
    return lines


def _short(value) -> str:
    return (
        f"{value:+.2f}"
        if isinstance(value, float)
        else ",".join(value)
        if isinstance(value, list)
        else value
    )
