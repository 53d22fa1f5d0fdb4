"""Finished runs for people: tables for the terminal, paired comparisons, and the page of
`mer report` with what papers need of it.

results.py     figures as tables of text; the comparison of two runs
comparison.py  many runs against one
gathering.py   which runs a report can be made of, and what it reads of each
page.py        the page, written by templates/; page_parts.py: what it is made of,
               page_comparison.py: how runs of one test part compare
drawing.py     pictures (mer.fusion.report.pictures) as shapes of an SVG
export.py      every table as CSV and LaTeX, every picture as PNG, SVG and PDF
"""

from mer.fusion.measures.tables import Table, glossary, number, plain
from mer.fusion.report.export import write_figures, write_tables
from mer.fusion.report.gathering import LeftOut, ReadRun, gather, read_run
from mer.fusion.report.page import made_now, page, prepared, rendered
from mer.fusion.report.page_parts import Report
from mer.fusion.report.results import (
    caveats,
    compare,
    comparison_table,
    dev_table,
    dev_text,
    remarks,
    show,
    tables,
    untrained,
)

__all__ = [
    "LeftOut",
    "ReadRun",
    "Report",
    "Table",
    "caveats",
    "compare",
    "comparison_table",
    "dev_table",
    "dev_text",
    "gather",
    "glossary",
    "made_now",
    "number",
    "page",
    "plain",
    "prepared",
    "read_run",
    "remarks",
    "rendered",
    "show",
    "tables",
    "untrained",
    "write_figures",
    "write_tables",
]
