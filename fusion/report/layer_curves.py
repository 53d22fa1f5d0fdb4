"""The curves of `mer layers`, drawn: a panel for each encoder."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mer.fusion.data.feature_sets import modality_of
from mer.fusion.evaluation.layers import Curve, lines, meaning, option_of
from mer.fusion.measures import metrics
from mer.fusion.report import figures as pictures
from mer.fusion.runtime import files
from mer.pipeline.errors import DataError
from mer.pipeline.runtime.terminal import escape, shown

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMS = (".png", ".svg", ".html")


def draw(curves: Sequence[Curve]) -> Figure:
    """Every curve in a panel of its own, intervals shaded."""
    figure, axes = pictures.new(5.6, 0.8 + 2.6 * len(curves), nrows=len(curves), squeeze=False)
    for axis, curve in zip(axes[:, 0], curves, strict=True):
        colour = pictures.COLOURS.get(modality_of(curve.name), "#7f7f7f")
        at = [one.layer for one in curve.layers]
        low, high = zip(*(one.interval for one in curve.layers), strict=True)
        axis.fill_between(at, low, high, color=colour, alpha=0.15, linewidth=0)
        axis.plot(at, [one.figure for one in curve.layers], ".-", color=colour)
        axis.axvspan(curve.first - 0.3, curve.last + 0.3, color="#7f7f7f", alpha=0.1, linewidth=0)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.set_ylabel(f"dev {metrics.title(curve.metric)}")
        axis.set_title(f"{curve.name}: best {curve.best}", loc="left", fontsize=9)
    axes[-1, 0].set_xlabel("layer")
    figure.suptitle("linear probe on the utterance means of each layer")
    return figure


def check_name(path: Path) -> None:
    """Raise DataError for a picture of another form than those that `write` knows."""
    if path.suffix.lower() not in FORMS:
        raise DataError(f"--out {shown(path, 120)}: name a file ending in {', '.join(FORMS)}")


def write(curves: Sequence[Curve], path: Path) -> None:
    """Draw into a PNG, an SVG, or an HTML page that has the figures as text, too."""
    check_name(path)
    kind = path.suffix.lower().removeprefix(".")
    if kind != "html":
        with pictures.style():
            files.write_bytes(path, pictures.drawn_as(draw(curves), kind))
        return
    with pictures.style(**{"svg.fonttype": "none"}):
        picture = pictures.element(draw(curves))
    told = ["\n".join(lines(curve, option_of(curve.name))) for curve in curves]
    text = "\n\n".join([*told, meaning(curves)])
    head = "<!doctype html>\n<html lang=en><meta charset=utf-8><title>mer layers</title>\n"
    page = f"{head}{picture}\n<pre>{html.escape(text)}</pre>\n</html>\n"
    files.write_text(path, escape(page, breaks=True))
