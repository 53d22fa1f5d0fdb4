"""Runs: runs, prune."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import click

from mer.commands.group import command
from mer.commands.options import RUNS
from mer.commands.output import agreed, note, say, say_json, say_laid_out, somebody_is_there
from mer.pipeline.errors import DataError
from mer.pipeline.runtime.terminal import amount, plural, terminal_columns


@command()
@click.argument("folders", metavar="[FOLDER]...", nargs=-1, type=click.Path(path_type=Path))
@click.option(
    "--where",
    "conditions",
    multiple=True,
    metavar="COLUMN=VALUE",
    help="Only runs like that; also != < <= > >=, and ~ for a part of the text. Figures as "
    "printed: dev>80; date>=2026-11. Repeatable: all must hold.",
)
@click.option(
    "--sort",
    metavar="COLUMN",
    help="Figures: best first; date and size: largest first. [default: by the folder's name]",
)
@click.option("--reverse", is_flag=True, help="The other way round.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Only the first N.")
@click.option(
    "--metric",
    metavar="NAME",
    help="The figure under dev and test, e.g. ua; by default what chose the epoch.",
)
@click.option(
    "--columns",
    metavar="A,B,…",
    help="Only these, e.g. run,dev,optim.lr; by default also every setting that differs.",
)
@click.option("--each", is_flag=True, help="The runs of a group over seeds or folds, one by one.")
@click.option("--csv", "as_csv", is_flag=True, help="Everything that is known, as a csv.")
@click.option("--json", "as_json", is_flag=True, help="Likewise, one JSON object per run.")
def runs(folders, conditions, sort, reverse, limit, metric, columns, each, as_csv, as_json):
    """Every run as a row, with the settings in which they differ; by default of the folder runs.

    What is unfinished or damaged is named as such.
    """
    from mer.fusion.runs import runs_columns, runs_table
    from mer.fusion.runs.run_rows import find

    if not folders and not Path("runs").exists():
        note("no folder runs here; `mer train` puts runs there, `mer runs FOLDER` looks elsewhere")
        return
    found = find(folders or [Path("runs")], each=each)
    if again := _named_again(folders):
        note(f"{plural(again, 'folder')} named twice or within another one, counted once")
    if metric is not None:
        metric = runs_columns.known_metric(metric, found)
    if not found:  # of no run nothing is known, settings neither
        for text in conditions:
            runs_columns.parts_of(text)
        conditions = ()
    rows = runs_columns.matching(found, conditions, metric)
    for line in runs_columns.unmet(found, conditions, metric):
        note(line)
    if found and (sort is not None or reverse):
        rows = runs_columns.ordered(rows, sort or "run", metric, reverse=reverse, among=found)
    matching, rows = rows, rows[:limit]
    if as_json:
        for row in rows:
            say_json(runs_table.as_json(row))
        return
    if as_csv:
        say_laid_out(runs_table.as_csv(rows).rstrip("\n"))
        return
    # of all that match, so that the best one has its settings beside it
    asked = [name.strip() for name in (columns or "").split(",") if name]
    names = runs_table.columns(matching, asked if found else (), among=found)
    title = runs_table.heading(rows, matching, found)
    width = terminal_columns(sys.stdout)
    say_laid_out(runs_table.table(rows, names, title, metric, width) if rows else title)
    ties = ""
    if sort is not None:
        ties = runs_table.tied(matching, len(rows), sort, metric, among=found)
    for line in (
        ties,
        runs_table.common(rows, names),
        runs_table.trials(rows),
        runs_table.twins(rows),
        runs_table.meaning(rows, metric),
        runs_table.could_go(matching),
    ):
        if line:
            note(line)
    for line in runs_table.troubles(rows):
        note(line)


def _named_again(folders: Sequence[Path]) -> int:
    """How many of the folders are another one of them, or within one, by whatever path."""
    places = [folder.resolve() for folder in folders]
    within = [place for place in places if not {*place.parents}.isdisjoint(places)]
    alike = len(places) - len({*places})
    return len({*within}) + alike


@command()
@RUNS
@click.option("--dry-run", is_flag=True, help="Say what would go; remove nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def prune(runs, dry_run, yes):
    """Remove what finished runs no longer need: the optimizer's state, most of a run's size.

    They are evaluated, reported and predicted with as before. Runs that are not finished or not
    sound are left as they are, and named.
    """
    from mer.fusion.runs import prune as pruning

    found, refused = pruning.sort_out(runs)
    if len(runs) == len(refused) == 1:
        raise DataError(refused[0])
    for line in refused:
        note(line)
    files, size = sum(len(one.files) for one in found), sum(one.size for one in found)
    for one in found:
        if one.files:
            say(f"{one.run}: {', '.join(path.name for path in one.files)}, {amount(one.size)}")
    if not files and not found:
        raise DataError("no run of which anything could go, for the reasons above")
    if not files:
        note("nothing to remove")
    elif dry_run:
        note(f"would free {amount(size)}; nothing was removed")
    else:
        question = f"this removes {plural(files, 'file')}, {amount(size)}, for good"
        if not yes and not somebody_is_there():
            raise click.UsageError(f"{question}; say --yes")
        if yes or agreed(question):
            pruning.remove(found)
            note(f"freed {amount(size)}")
        else:
            note("nothing was removed")
    if refused:
        left = plural(len(runs), "run left as it is", "runs left as they are")
        raise DataError(f"{len(refused):,} of {left}, for the reasons above")
