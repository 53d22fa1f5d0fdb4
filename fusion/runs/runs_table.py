"""How `mer runs` shows its rows: the table and the lines below it, JSON and csv."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, get_args

from mer.fusion.measures import metrics
from mer.fusion.measures.tables import Table, glossary, plain
from mer.fusion.runs.run_rows import CONTEXT, WIDTH, RunRow, State, leaves
from mer.fusion.runs.runs_columns import (
    ALWAYS,
    WHERE_THEY_DIFFER,
    cell,
    metric_of,
    resolve,
    spelled,
    value_of,
)
from mer.fusion.runtime import files, typed
from mer.pipeline.runtime.cells import guarded
from mer.pipeline.runtime.terminal import amount, escape, listed, plural, shown

TO_THE_LEFT = frozenset({"run", "state", "date", "model", "store", "command"})
MOST_TWINS = 3  # runs that are named as copies of others, in a line
SHORTEST_COMMAND = 20  # characters of a terminal's line that are worth a beginning of the command


def differing(rows: Sequence[RunRow]) -> list[str]:
    """The settings in which runs differ; a model's own, only where runs of that model differ."""
    keys = dict.fromkeys(key for row in rows for key in row.settings)
    found = []
    for key in keys:
        groups: dict[str, set[str]] = {}
        models = {row.model for row in rows if key in row.settings}
        of_model = key.startswith("model_args.")
        for row in rows:
            # a row of the model without it has the default, which config.toml leaves out
            if key in row.settings or (of_model and row.settings and row.model in models):
                value = spelled(row.settings[key]) if key in row.settings else ""
                groups.setdefault(row.model if of_model else "", set()).add(value)
        if key != "train.seed" and any(len(values) > 1 for values in groups.values()):
            found.append(key)
    return found


def columns(
    rows: Sequence[RunRow], asked: Sequence[str] = (), *, among: Sequence[RunRow] = ()
) -> list[str]:
    """The columns of the table: those asked for, else what is always shown and what differs; the
    command where nothing does, as else it says what the columns say. `among`: runs beside `rows`
    whose settings can be asked for, too.
    """
    if asked:
        return [resolve(name, [*rows, *among], "--columns") for name in asked]
    differ = [
        name for name in WHERE_THEY_DIFFER if len({cell(row, name) for row in rows if row.kind}) > 1
    ]
    paths = {row.store for row in rows if row.kind}
    keys = {(row.store, row.store_key) for row in rows if row.kind}
    if len(paths) == len(keys):  # then a path says which store it is
        differ = [name for name in differ if name != "key"]
    settings = differing(rows)
    alike = not (differ or settings) and len({row.model for row in rows}) == 1
    command = ["command"] if alike and any(row.command for row in rows) else []
    return [*ALWAYS[:4], *differ, *settings, *ALWAYS[4:], *command]


def table(
    rows: Sequence[RunRow],
    names: Sequence[str],
    title: str,
    metric: str | None = None,
    width: int | None = None,
) -> str:
    """The rows as aligned text.

    Args:
        rows: What to show, in this order.
        names: The columns, of `columns`.
        title: The first line.
        metric: The figure that dev and test stand for.
        width: Characters of a line, to which the command is cut; None: it is whole.

    Returns:
        The text, its values escaped.
    """
    heads = [_head(name, names, rows, metric) for name in names]
    mixed = {part: _mixed(rows, part, metric) for part in ("dev", "test")}
    cells = []
    for row in rows:
        line = []
        for name in names:
            said = cell(row, name, metric)
            if said and mixed.get(name):
                said += f" {metrics.title(metric_of(row, name, metric))}"
            line.append(said or "–")
        cells.append(tuple(line))
    left = {head for head, name in zip(heads, names, strict=True) if name in TO_THE_LEFT}
    if width is not None and "command" in names[-1:]:
        without = plain(Table("", tuple(heads[:-1]), tuple(line[:-1] for line in cells)), left=left)
        room = width - max(map(len, without.splitlines())) - 2
        if room < SHORTEST_COMMAND:
            heads, cells = heads[:-1], [line[:-1] for line in cells]
        else:
            cells = [(*line[:-1], shown(line[-1], room)) for line in cells]
    return plain(Table(title, tuple(heads), tuple(cells)), left=left)


def _mixed(rows: Sequence[RunRow], part: str, metric: str | None) -> bool:
    """Whether rows have other figures in one column."""
    return len({metric_of(row, part, metric) for row in rows if cell(row, part, metric)}) > 1


def _head(name: str, names: Collection[str], rows: Sequence[RunRow], metric: str | None) -> str:
    """The head of a column: the shortest end of a setting's name that no other column has."""
    if name in ("dev", "test"):
        of = {metric_of(row, name, metric) for row in rows if cell(row, name, metric)}
        return f"{name} {metrics.title(of.pop())}" if len(of) == 1 else name
    short = name.rpartition(".")[2]
    alike = [other for other in names if other.rpartition(".")[2] == short]
    return short if len(alike) == 1 else name


def common(rows: Sequence[RunRow], names: Collection[str]) -> str:
    """What all rows share and no column says, as one line; empty where there is nothing."""
    said = []
    for name in ("store", CONTEXT, WIDTH, "mer", "seeds", "folds", "device"):
        values = {cell(row, name) for row in rows if row.kind}
        if name not in names and len(values) == 1 and (value := values.pop()):
            said.append(f"{name.rpartition('.')[2]} {value}")
    return f"the same in all: {', '.join(said)}" if said and len(rows) > 1 else ""


def counted(rows: Sequence[RunRow]) -> str:
    """`3 runs: 2 finished, 1 damaged`."""
    counts = {state: sum(row.state == state for row in rows) for state in get_args(State)}
    parts = ", ".join(f"{count:,} {state}" for state, count in counts.items() if count)
    return f"{plural(len(rows), 'run')}{': ' if parts else ''}{parts}"


def heading(rows: Sequence[RunRow], matching: Sequence[RunRow], found: Sequence[RunRow]) -> str:
    """How many runs are shown, of those that match, of all."""
    others = [f"{len(matching):,} match"] if len(rows) < len(matching) < len(found) else []
    others += [f"{len(found):,} in all"] if len(rows) < len(found) else []
    return counted(rows) + (f" ({', '.join(others)})" if others else "")


def tied(
    matching: Sequence[RunRow],
    count: int,
    by: str,
    metric: str | None = None,
    *,
    among: Sequence[RunRow] = (),
) -> str:
    """That runs beyond the first `count` of the sorted ones have what the last shown has, as one
    line; empty where they have not. `among` as in `runs_columns.ordered`.
    """
    if not 0 < count < len(matching):
        return ""
    name = resolve(by, [*matching, *among], "--sort")

    def value(row: RunRow) -> tuple[str, str]:
        of = metric_of(row, name, metric) if name in ("dev", "test") else ""
        return of, value_of(row, name, metric)

    last = value(matching[count - 1])
    if not last[1] or value(matching[count]) != last:
        return ""
    alike = sum(value(row) == last for row in matching)
    here = sum(value(row) == last for row in matching[:count])
    said = f"{_head(name, [name], matching[:count], metric)} {cell(matching[count], name, metric)}"
    return f"{plural(alike, 'run')} have {said}, of which {here:,} shown, by name"


def trials(rows: Sequence[RunRow]) -> str:
    """How many of the rows shown are trials of a search, as one line; empty where none is."""
    count = sum(_is_trial(Path(row.run).absolute()) for row in rows)
    if not count:
        return ""
    are = "is a trial" if count == 1 else "are trials"
    return (
        f"{count:,} of {plural(len(rows), 'run')} shown {are} of `mer tune`: the dev figure of the "
        "best of many flatters"
    )


def twins(rows: Sequence[RunRow]) -> str:
    """Which runs are the same training as one above them, as one line; empty where none is."""
    first: dict[str, str] = {}
    found = []
    for row in rows:
        if row.state != "finished" or not row.weights:
            continue
        training = json.dumps([row.weights, row.settings, row.dev], sort_keys=True)
        twin = first.setdefault(training, row.run)
        if twin != row.run:
            found.append(f"{row.run} (as {twin})")
    if not found:
        return ""
    are = plural(len(found), "run is the training of another", "runs are the training of another")
    return f"{are}, copied or made twice: {listed(found, MOST_TWINS)}"


def _is_trial(path: Path) -> bool:
    """Whether a run, or the group that it is in, is a trial of a search."""
    for folder in (path, path.parent):
        if folder.name.startswith(files.TRIAL):
            return (folder.parent.parent / files.SEARCH).exists()
    return False


def meaning(rows: Sequence[RunRow], metric: str | None = None) -> str:
    """What the figures under dev and test stand for, as one line."""
    names = (metric_of(row, part, metric) for row in rows for part in ("dev", "test"))
    return glossary(names)


def could_go(rows: Sequence[RunRow]) -> str:
    """What `mer prune` would free of these runs, as one line; empty where it is nothing."""
    spare = sum(row.spare for row in rows if row.state == "finished")
    whole = sum(row.size for row in rows)
    if not spare:
        return ""
    return (
        f"`mer prune` would free {amount(spare)} of {amount(whole)} in {plural(len(rows), 'run')}"
    )


def troubles(rows: Sequence[RunRow]) -> list[str]:
    """A line for every damaged run, and one for those that are too many to name."""
    damaged = [row for row in rows if row.state == "damaged"]
    lines = [f"{row.run}: damaged: {shown(row.why, 160)}" for row in damaged[:12]]
    if len(damaged) > 12:
        lines.append(f"and {len(damaged) - 12:,} more that are damaged; --where state=damaged")
    return lines


def as_json(row: RunRow) -> dict[str, Any]:
    """A row as a JSON object: every figure as it is in the files, sizes in bytes."""
    tree: dict[str, Any] = typed.tree(row)
    tree["size_bytes"], tree["spare_bytes"] = tree.pop("size"), tree.pop("spare")
    return tree


def as_csv(rows: Sequence[RunRow]) -> str:
    """All rows as a csv: figures as they are in the files, every setting a column."""
    flat = []
    for row in rows:
        tree = as_json(row)
        settings = {key: spelled(value) for key, value in tree.pop("settings").items()}
        known = dict(leaves(tree))
        known["seeds"] = ",".join(map(str, row.seeds))
        known["weights"] = ",".join(row.weights)
        flat.append({**known, **settings})
    heads = list(dict.fromkeys(key for one in flat for key in one))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(heads)
    for one in flat:
        values = (one.get(head) for head in heads)
        # numbers stay numbers, also negative ones; text is kept from being run as a formula
        cells = [guarded(escape(value)) if isinstance(value, str) else value for value in values]
        writer.writerow("" if value is None else value for value in cells)
    return out.getvalue()
