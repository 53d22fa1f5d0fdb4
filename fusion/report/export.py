"""What a paper needs of a report: every table as CSV and LaTeX, every picture as PNG of 300 dots an
inch, SVG and PDF.
"""

from __future__ import annotations

import base64
import csv
import io
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mer.fusion.measures.tables import Table
from mer.fusion.report import pictures
from mer.fusion.report.page_parts import PagePicture, PageTable
from mer.fusion.runtime import files
from mer.pipeline.errors import DataError
from mer.pipeline.runtime.cells import guarded
from mer.pipeline.runtime.progress import SILENT, Silent
from mer.pipeline.runtime.terminal import escape

KINDS = ("png", "svg", "pdf")
DPI = 300
CACHE = "pictures.json"  # in a run folder: its pictures by what they show
LOOK = 1  # changes when figures.py draws the same content otherwise
# cells that begin as a formula of a spreadsheet would, and are numbers: +1.2, -0.5 … 1.3
NUMBERS = re.compile(r"[+-]?[\d.,]+( (…|±) ([+-]?[\d.,]+|–))*")
# What TeX takes for something else, and what its usual fonts lack.
TEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "±": r"$\pm$",
    "…": r"\ldots{}",
    "–": "--",
    "→": r"$\rightarrow$",
}
_TEX = str.maketrans(TEX)


# ---- Tables


def as_csv(table: Table) -> str:
    """A table as CSV; what a spreadsheet would run as a formula is kept from it."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    for row in (table.columns, *table.rows):
        writer.writerow(_cell(escape(cell)) for cell in row)
    return out.getvalue()


def _cell(cell: str) -> str:
    return cell if NUMBERS.fullmatch(cell) else guarded(cell)


def tex(text: str) -> str:
    r"""Text as LaTeX sets it.

    >>> tex("50 % of a_b ± 1")
    '50 \\% of a\\_b $\\pm$ 1'
    """
    return escape(text).translate(_TEX)


def as_latex(table: Table) -> str:
    """A table as LaTeX, with the rules of the package booktabs."""
    columns = "l" + "r" * (len(table.columns) - 1)
    rows = [" & ".join(map(tex, row)) + r" \\" for row in (table.columns, *table.rows)]
    lines = [
        f"% {escape(table.title)}; needs \\usepackage{{booktabs}}",
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        rows[0],
        r"\midrule",
        *rows[1:],
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join(lines) + "\n"


def write_tables(tables: Iterable[PageTable], folder: Path) -> list[Path]:
    """Write every table as NAME.csv and NAME.tex.

    Args:
        tables: Those of a report.
        folder: Where they go.

    Returns:
        The files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for one in tables:
        for ending, text in (("csv", as_csv(one.table)), ("tex", as_latex(one.table))):
            path = folder / f"{one.name}.{ending}"
            files.write_bytes(path, text.encode("utf-8", "backslashreplace"))
            written.append(path)
    return written


# ---- Pictures


def write_figures(
    given: Iterable[PagePicture], folder: Path, *, progress: Silent = SILENT
) -> list[Path]:
    """Write every picture as NAME.png, NAME.svg and NAME.pdf.

    Those of a run are kept in its folder, and taken from there while they show the same.

    Args:
        given: Those of a report.
        folder: Where they go.
        progress: Shows how far it is.

    Returns:
        The files.
    """
    from mer.fusion.report import figures

    some = list(given)
    by_run: dict[Path | None, list[PagePicture]] = {}
    for one in some:
        by_run.setdefault(one.run, []).append(one)
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    with progress.task("drawing for paper", len(some), "pictures") as advance, figures.style():
        for run, group in by_run.items():
            kept = {} if run is None else _kept(run / CACHE)
            now: dict[str, dict[str, str]] = {}
            for one in group:
                key = f"{LOOK}-{pictures.key(one.picture)}"
                now[key] = kept.get(key) or _drawn(one, figures)
                for kind in KINDS:
                    path = folder / f"{one.name}.{kind}"
                    files.write_bytes(path, base64.b64decode(now[key][kind]))
                    written.append(path)
                advance(1, fresh=key not in kept)
            if run is not None and now.keys() - kept.keys():
                _keep(run / CACHE, now)
    return written


def _drawn(one: PagePicture, figures: Any) -> dict[str, str]:
    """A picture in every kind, as text for JSON."""
    figure = figures.draw(one.picture)
    made = {}
    for kind in KINDS:
        made[kind] = base64.b64encode(figures.drawn_as(figure, kind, dpi=DPI)).decode()
    return made


def _kept(path: Path) -> dict[str, dict[str, str]]:
    """The pictures that an earlier report left beside a run; none where they are not as it wrote
    them.
    """
    if not path.is_file():
        return {}
    try:
        return files.read_json(path, dict[str, dict[str, str]], "")
    except (DataError, OSError):
        return {}


def _keep(path: Path, pictures_: dict[str, dict[str, str]]) -> None:
    """Leave the pictures beside the run. They are drawn again where that cannot be: a run folder
    may be somebody else's, or on a full disk.
    """
    try:
        files.write_json(path, dict(pictures_))
    except (DataError, OSError):
        return
