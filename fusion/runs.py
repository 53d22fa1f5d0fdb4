"""Every run below some folders as one row: what `mer runs` lists, filters and sorts.

Free of torch, and of a run folder only the small files are read: run.json, config.toml,
metrics.json, test_log.jsonl. What is unfinished or damaged is a row with a word for it, never an
error.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import re
import stat
import statistics
import tomllib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, get_args

from mer.fusion import files, metrics, typed
from mer.fusion.config import DataConfig, left_out
from mer.fusion.tables import PLAIN, Table, glossary, number, plain
from mer.pipeline.errors import DataError
from mer.pipeline.runtime.cells import guarded
from mer.pipeline.runtime.hold import busy
from mer.pipeline.runtime.limits import CONFIG_BYTES
from mer.pipeline.runtime.terminal import amount, did_you_mean, escape, listed, plural, shown

DEPTH = 8  # folders within folders that are looked through for runs
BESIDE = ".shards"  # ends the name of a folder of a store, where no run is
FORMAT, VERSION = "mer-run", 1  # of run.json, as in records.py, which imports torch
Figures = dict[str, float | None]
State = Literal["finished", "training", "unfinished", "damaged"]
# columns that are shown whatever they hold, and those that are shown where they differ
ALWAYS = ("run", "state", "date", "model", "dev", "test", "size")
MOVE_AWAY = "move it away"  # a log of openings that cannot be read
WHERE_THEY_DIFFER = ("store", "key", "seeds", "folds", "opened", "mer", "device")
COLUMNS = (*ALWAYS[:4], *WHERE_THEY_DIFFER, *ALWAYS[4:], "epoch", "parameters", "command")
TO_THE_LEFT = frozenset({"run", "state", "date", "model", "store", "command"})
LARGEST_FIRST = ("date", "size", "parameters")
KEY_CHARACTERS = 8  # of a store's key: enough to tell those of one path apart
CONTEXT, WIDTH = "data.context", "data.context_width"  # settings that every table names
SHORTEST_COMMAND = 20  # characters of a terminal's line that are worth a beginning of the command


# ---- What is read of a run folder


@dataclass(frozen=True, kw_only=True)
class ToldStore:
    """What a row says of the store."""

    dataset: str
    task: str


@dataclass(frozen=True, kw_only=True)
class Told:
    """The part of a run.json that a row shows; the whole of it is in records.py."""

    kind: Literal["single", "group"]
    model: str
    features: str
    finished: bool
    store: ToldStore
    store_key: str
    date: str = ""
    command: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    # of a group
    seeds: int | None = None
    folds: str | None = None
    children: tuple[str, ...] = ()
    # of one training
    seed: int | None = None
    select_metric: str = ""
    config_sha256: str | None = None
    counts: dict[str, int] = field(default_factory=dict)
    parameters: int | None = None
    device: str = ""
    best_epoch: int | None = None
    epochs: int | None = None
    dev: dict[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class RunRow:
    """One run folder. `dev` and `test` are the figures of metrics.py by name, as they are in the
    files; of a group their means, with the deviations beside them.
    """

    run: str
    state: State
    why: str = ""  # of a run that is not finished
    kind: str = ""
    model: str = ""
    dataset: str = ""
    task: str = ""
    store: str = ""
    store_key: str = ""
    seeds: tuple[int, ...] = ()
    folds: str | None = None
    date: str = ""
    # whether run.json has the date; an earlier mer did not write it, then it is that of the file
    date_recorded: bool = False
    command: str = ""
    mer: str = ""
    device: str = ""
    parameters: int | None = None
    select_metric: str = ""
    best_epoch: int | None = None
    epochs: int | None = None
    dev: Figures = field(default_factory=dict)
    dev_sd: Figures = field(default_factory=dict)
    test: Figures = field(default_factory=dict)
    test_sd: Figures = field(default_factory=dict)
    opened: int = 0  # how often the test part was
    size: int = 0  # bytes on disk
    spare: int = 0  # bytes of `size` that `mer prune` would free
    settings: dict[str, Any] = field(default_factory=dict)


def find(folders: Iterable[Path], *, each: bool = False) -> list[RunRow]:
    """A row for every run in or below some folders.

    Args:
        folders: Run folders, or folders of such.
        each: The runs of a group over seeds or folds instead of the group.

    Returns:
        The rows, by the names of their folders; each folder once.

    Raises:
        DataError: One of `folders` is not there, or no folder.
    """
    seen: set[tuple[int, int]] = set()
    rows: list[RunRow] = []
    for folder in folders:
        if not folder.is_dir():
            what = "not a folder" if folder.exists() else "no such folder"
            raise DataError(f"{folder}: {what}; name a run folder or a folder of runs")
        for path in _run_folders(folder, seen, DEPTH):
            rows += _of_each(path) if each else [read(path)]
    return rows


def _run_folders(folder: Path, seen: set[tuple[int, int]], depth: int) -> Iterator[Path]:
    """Folders at or below `folder` that training has begun in; links are followed once."""
    try:
        status = folder.stat()
        entries = sorted(os.scandir(folder), key=lambda entry: _natural(entry.name))
    except OSError:
        yield folder  # a row that says why
        return
    if (status.st_dev, status.st_ino) in seen:
        return
    seen.add((status.st_dev, status.st_ino))
    names = {entry.name for entry in entries}
    if files.INFO in names or {files.CONFIG, files.SPLIT} <= names:
        yield folder
        return
    for name in _names_of_folders(entries) if depth else ():
        yield from _run_folders(folder / name, seen, depth - 1)


def _names_of_folders(entries: Iterable[os.DirEntry]) -> Iterator[str]:
    """Folders that may have runs in them: neither hidden nor of a store's shards."""
    for entry in entries:
        try:
            folder = entry.is_dir()
        except OSError:
            continue  # a link to itself
        if folder and not entry.name.startswith(".") and not entry.name.endswith(BESIDE):
            yield entry.name


def _natural(name: str) -> list[tuple[int, str]]:
    """Sorts `run-10` behind `run-9`."""
    return [(int(part[:18]), "") if part.isdecimal() else (-1, part) for part in _PARTS.split(name)]


_PARTS = re.compile(r"([0-9]+)")


def _of_each(path: Path) -> list[RunRow]:
    """The rows of the runs of a group that are there; of a single run its own."""
    try:
        told = _told(path)
    except (DataError, OSError):
        return [read(path)]  # which says why
    children = [path / name for name in told.children if (path / name).is_dir()]
    return [read(child, within=True) for child in children] or [read(path, told=told)]


def read(path: Path, *, within: bool = False, told: Told | None = None) -> RunRow:
    """The row of one run folder; what is wrong with it is in the row. `within` a group there are
    single runs only. `told`: what its run.json says, where that was read already.
    """
    size, spare = _sizes(path)
    row = RunRow(run=str(path), state="damaged", size=size, spare=spare)
    try:
        row = replace(row, date=_written(path))
        if not (path / files.INFO).exists():
            begun = not (path / files.MODEL).exists() and not (path / files.LAST).exists()
            why = "killed before its first epoch" if begun else f"no {files.INFO}"
            state: State = "unfinished" if begun else "damaged"
            return replace(row, state=state, why=why)
        told = told or _told(path)
        if within and told.kind == "group":
            raise DataError(f"{path / files.INFO}: a group within a group")
        row = _described(row, told)
        row = _of_group(row, told, path) if told.kind == "group" else _of_one(row, told, path)
        test, deviations = _test(path, told)
        return replace(row, test=test, test_sd=deviations, opened=_openings(path, told))
    except DataError as error:
        return replace(row, state="damaged", why=_without(str(error), path))
    except OSError as error:
        return replace(row, state="damaged", why=str(error.strerror or error))


def _told(path: Path) -> Told:
    """What run.json says; raises DataError for what it cannot say."""
    where = path / files.INFO
    value = files.read_json(where, dict, files.AGAIN)
    if value.get("format") != FORMAT or value.get("version") != VERSION:
        raise DataError(f"{where}: of another version of mer")
    try:
        told: Told = typed.convert(Told, value)
    except typed.Misfit as error:
        raise files.damaged(where, error, files.AGAIN) from None
    odd = [name for name in told.children if name in ("", ".", "..") or "/" in name or "\0" in name]
    if odd or (told.kind == "group") != bool(told.children):
        raise files.damaged(where, f"children are {odd or 'none'}", files.AGAIN)
    return told


def _described(row: RunRow, told: Told) -> RunRow:
    """What run.json says of any run."""
    return replace(
        row,
        kind=told.kind,
        model=told.model,
        dataset=told.store.dataset,
        task=told.store.task,
        store=told.features,
        store_key=told.store_key,
        folds=told.folds,
        date=told.date or row.date,
        date_recorded=bool(told.date),
        command=told.command,
        mer=told.versions.get("mer", ""),
    )


def _of_one(row: RunRow, told: Told, path: Path) -> RunRow:
    """The row of one training."""
    row = replace(
        row,
        seeds=() if told.seed is None else (told.seed,),
        device=told.device,
        parameters=told.parameters,
        select_metric=told.select_metric,
        best_epoch=told.best_epoch,
        epochs=told.epochs,
        dev=told.dev,
        settings=_settings(path, told),
    )
    if told.finished:
        missing = not (path / files.MODEL).is_file()
        why = f"no {files.MODEL}" if missing else ""
        return replace(row, state="damaged" if missing else "finished", why=why)
    epochs = _lines(path / files.LOG)
    row = replace(row, epochs=epochs)
    if busy(path / files.HOLD):
        return replace(row, state="training", why=f"{plural(epochs, 'epoch')} so far")
    goes_on = f"{plural(epochs, 'epoch')} so far; the same `mer train` goes on with it"
    return replace(row, state="unfinished", why=goes_on)


def _of_group(row: RunRow, told: Told, path: Path) -> RunRow:
    """The row of a run over seeds or folds, from those of its children."""
    folders = [path / name for name in told.children]
    there = [read(folder, within=True) for folder in folders if folder.is_dir()]
    done = [child for child in there if child.state == "finished"]
    first = (done or there or [row])[0]
    dev, deviations = _mean([child.dev for child in done])
    settings = {key: value for key, value in first.settings.items() if key != "train.seed"}
    seeds = sorted({seed for child in there for seed in child.seeds})
    row = replace(
        row,
        seeds=tuple(seeds),
        device=first.device,
        parameters=first.parameters,
        select_metric=first.select_metric,
        dev=dev,
        dev_sd=deviations,
        settings=settings,
    )
    damaged = [child for child in there if child.state == "damaged"]
    count = f"{len(done):,} of {plural(len(told.children), 'run is', 'runs are')} finished"
    if damaged:
        why = f"{Path(damaged[0].run).name}: {damaged[0].why}"
        return replace(row, state="damaged", why=why)
    if len(done) == len(told.children) and told.finished:
        return replace(row, state="finished")
    if busy(path / files.HOLD):
        return replace(row, state="training", why=count)
    if told.finished:
        return replace(row, state="damaged", why=count)
    return replace(row, state="unfinished", why=count)


def _settings(path: Path, told: Told) -> dict[str, Any]:
    """config.toml with its tables laid flat, `optim.lr`; held against the checksum of run.json."""
    where = path / files.CONFIG
    text = files.read_text(where, files.AGAIN, most=CONFIG_BYTES)
    if told.config_sha256 not in (None, sha256(text.encode()).hexdigest()):
        raise DataError(f"{where}: not the configuration that this training wrote")
    try:
        tree = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise files.damaged(where, error, files.AGAIN) from None
    settings = {key: _of_json(value) for key, value in _leaves(tree) if key != "model"}
    defaults = {key: _of_json(value) for key, value in left_out().items()}
    del defaults[WIDTH]
    return {**defaults, **settings, **_context(settings)}


def _context(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of the context. Where there is none its width is no setting, elsewhere
    config.toml leaves it out at its default.
    """
    kind = settings.get(CONTEXT, DataConfig.context)
    width = {WIDTH: settings.get(WIDTH, DataConfig.context_width)} if kind != "none" else {}
    return {CONTEXT: kind, **width}


def _of_json(value: Any) -> Any:
    """A value of TOML as JSON has it: `inf`, dates and times as text."""
    if isinstance(value, list):
        return [_of_json(one) for one in value]
    known = isinstance(value, bool | int | str) or (
        isinstance(value, float) and math.isfinite(value)
    )
    return value if known else str(value)


def _leaves(tree: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", value


def _test(path: Path, told: Told) -> tuple[Figures, Figures]:
    """(test figures, their deviations over seeds or folds) where the run was evaluated."""
    where = path / files.METRICS
    if not where.exists():
        return {}, {}
    value = files.read_json(where, dict, f"run `mer evaluate {path}` again")
    found, sd = value.get("metrics"), value.get("sd")
    if not isinstance(found, dict) or value.get("kind") != told.kind:
        raise files.damaged(where, "no figures", f"run `mer evaluate {path}` again")
    return _figures(found), _figures(sd) if isinstance(sd, dict) else {}


def _figures(found: Mapping[str, Any]) -> Figures:
    """Those entries that are one number; how many utterances there were is none of them."""
    kept = {name: value for name, value in found.items() if name not in ("n", "share")}
    return {
        name: value
        for name, value in kept.items()
        if value is None or (isinstance(value, int | float) and not isinstance(value, bool))
    }


def _openings(path: Path, told: Told) -> int:
    """How often the test part was opened; of a group, the most of its runs."""
    logs = [path / name / files.TEST_LOG for name in told.children] or [path / files.TEST_LOG]
    return max(map(_lines, logs))


def _lines(path: Path) -> int:
    """Lines of a log that are not empty, each a JSON object; 0 where there is no such file."""
    if not path.is_file():
        return 0
    found = 0
    for place, line in enumerate(files.read_text(path, MOVE_AWAY).splitlines(), 1):
        if not line.strip():
            continue
        try:
            sound = isinstance(json.loads(line), dict)
        except (ValueError, RecursionError):
            sound = False
        if not sound:
            raise DataError(f"{path}: line {place} is damaged; {MOVE_AWAY}")
        found += 1
    return found


def _mean(figures: Sequence[Figures]) -> tuple[Figures, Figures]:
    """(means, sample deviations) of the figures that all have."""
    means: Figures = {}
    deviations: Figures = {}
    for name in figures[0] if figures else ():
        values = [one.get(name) for one in figures]
        known = [value for value in values if value is not None]
        whole = len(known) == len(values)
        means[name] = statistics.fmean(known) if whole else None
        if whole and len(known) > 1:
            deviations[name] = statistics.stdev(known)
    return means, deviations


def _sizes(path: Path) -> tuple[int, int]:
    """(bytes of all files below, bytes of them that only a resume needs)."""
    size = spare = 0
    folders = [path]
    while folders:
        try:
            entries = list(os.scandir(folders.pop()))
        except OSError:
            continue
        for entry in entries:
            try:
                status = entry.stat(follow_symlinks=False)
            except OSError:
                continue  # a temporary file, just gone
            if stat.S_ISDIR(status.st_mode):
                folders.append(Path(entry.path))
            else:
                size += status.st_size
                spare += status.st_size if entry.name == files.LAST else 0
    return size, spare


def _written(path: Path) -> str:
    """When the newest of what every run has was written: the date of a run that has none."""
    for name in (files.INFO, files.CONFIG):
        if (path / name).exists():
            return datetime.fromtimestamp((path / name).stat().st_mtime).astimezone().isoformat()
    return ""


def _without(message: str, path: Path) -> str:
    """A message about a file of a run folder, without the folder."""
    return message.removeprefix(f"{path}/")


# ---- Filter and sort


CONDITION = re.compile(r"\s*([\w.]+)\s*(!=|>=|<=|==|=|>|<|~)\s*(.*?)\s*", re.DOTALL)
TESTS: dict[str, Callable[[Any, Any], bool]] = {
    "=": lambda a, b: a == b,
    "==": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
    ">": lambda a, b: a > b,
    "<": lambda a, b: a < b,
    ">=": lambda a, b: a >= b,
    "<=": lambda a, b: a <= b,
}


def cell(row: RunRow, name: str, metric: str | None = None) -> str:
    """One cell as it is printed; empty where nothing is known."""
    if name in ("dev", "test"):
        of = metric_of(row, name, metric)
        figures, deviations = getattr(row, name), getattr(row, f"{name}_sd")
        if of not in figures:
            return ""
        deviation = f" ± {number(of, deviations[of])}" if deviations.get(of) is not None else ""
        return f"{number(of, figures[of])}{deviation}"
    if name == "size":
        return amount(row.size)
    if name == "date":
        return _day(row)
    if name == "seeds":
        return _ranges(row.seeds)
    if name == "epoch":
        return "" if row.best_epoch is None else f"{row.best_epoch} of {row.epochs or '?'}"
    if name == "opened":
        return str(row.opened)
    if name == "key":
        return row.store_key[:KEY_CHARACTERS]
    if name in COLUMNS:
        value = getattr(row, name)
        return "" if value is None else str(value)
    return spelled(row.settings[name]) if name in row.settings else ""


def metric_of(row: RunRow, part: str, metric: str | None = None) -> str:
    """The figure that stands for a run: the one that chose the epoch, where test has it, too."""
    if metric is not None:
        return metric
    chosen = row.select_metric
    if part == "test" and chosen not in row.test:
        known = row.task if row.task in metrics.HEADLINE else "single"
        return metrics.headline(known, row.test)
    return chosen


def _day(row: RunRow) -> str:
    try:
        local = datetime.fromisoformat(row.date).astimezone()
    except (ValueError, OverflowError, OSError):
        return shown(row.date, 25)
    return f"{'' if row.date_recorded else '~'}{local:%Y-%m-%d %H:%M}"


def _instant(row: RunRow) -> float:
    """The date in seconds; one that cannot be read is before all others."""
    try:
        return datetime.fromisoformat(row.date).astimezone().timestamp()
    except (ValueError, OverflowError, OSError):
        return -math.inf


def _ranges(numbers: Sequence[int]) -> str:
    """`0-4`, or `0,2,7`.

    >>> _ranges((0, 1, 2)), _ranges((0, 2)), _ranges((3,))
    ('0-2', '0,2', '3')
    """
    whole = len(numbers) > 1 and list(numbers) == list(range(numbers[0], numbers[-1] + 1))
    return f"{numbers[0]}-{numbers[-1]}" if whole else ",".join(map(str, numbers))


def spelled(value: Any) -> str:
    """A setting as `--set` takes it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return ",".join(map(spelled, value)) if isinstance(value, list) else str(value)


def resolve(name: str, rows: Sequence[RunRow], option: str) -> str:
    """The column or setting that somebody names: whole (`optim.lr`), or by its last part (`lr`).

    Raises:
        DataError: There is none, or there are several.
    """
    known = dict.fromkeys((*COLUMNS, *(key for row in rows for key in row.settings)))
    if name in known:
        return name
    ends = [key for key in known if key.endswith(f".{name}")]
    if len(ends) == 1:
        return ends[0]
    if ends:
        raise DataError(f"{option} {name}: could be {' or '.join(ends)}; name the whole of it")
    guess = did_you_mean(name, [*known, *(key.rpartition(".")[2] for key in known)])
    raise DataError(
        f"{option} {shown(name, 40)}: no such column{guess}; known: {', '.join(COLUMNS)}, and "
        "every setting of these runs, e.g. optim.lr"
    )


def matching(
    rows: Sequence[RunRow], conditions: Iterable[str], metric: str | None = None
) -> list[RunRow]:
    """The rows for which all conditions hold.

    Args:
        rows: Of any runs.
        conditions: `COLUMN=VALUE`, with `!=`, `<`, `<=`, `>`, `>=`, or `~` for a part of the text;
            figures as they are printed, so percentages. What is unknown fulfils none.
        metric: The figure that dev and test stand for.

    Returns:
        The rows, in their order.

    Raises:
        DataError: A condition is none, or there is no such column.
    """
    kept = list(rows)
    for text in conditions:
        found = CONDITION.fullmatch(text)
        if found is None:
            raise DataError(
                f"--where '{shown(text, 60)}': expected COLUMN=VALUE (or != < <= > >= ~), e.g. "
                "model=drkf, optim.lr<1e-3, dev>80"
            )
        name, sign, wanted = resolve(found[1], rows, "--where"), found[2], found[3]
        values = [value for row in rows if (value := _value(row, name, metric))]
        numbers = values and all(_number(value) is not None for value in values)
        if sign in ("<", "<=", ">", ">=") and numbers and _number(wanted) is None:
            raise DataError(
                f"--where '{shown(text, 60)}': {name} is a number, which '{shown(wanted, 40)}' is "
                "not"
            )
        kept = [row for row in kept if _holds(_value(row, name, metric), sign, wanted)]
    return kept


def _value(row: RunRow, name: str, metric: str | None) -> str:
    """A cell as it is compared: figures without their deviation, megabytes without their unit."""
    if name == "size":
        return str(row.size / 1e6)
    if name in ("dev", "test"):
        value = _figure(row, name, metric)
        return "" if value is None else str(value)
    if name == "epoch":
        return "" if row.best_epoch is None else str(row.best_epoch)
    return cell(row, name, metric).removeprefix("~")


def _figure(row: RunRow, part: str, metric: str | None) -> float | None:
    """A figure in the unit in which it is printed."""
    name = metric_of(row, part, metric)
    value = getattr(row, part).get(name)
    return value if value is None or name in PLAIN else 100 * value


def _holds(value: str, sign: str, wanted: str) -> bool:
    if not value:
        return False
    if sign == "~":
        return wanted.casefold() in value.casefold()
    a, b = _number(value), _number(wanted)
    if a is None or b is None:
        return TESTS[sign](value, wanted)
    return TESTS[sign](a, b)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def ordered(
    rows: Sequence[RunRow], by: str, metric: str | None = None, *, reverse: bool = False
) -> list[RunRow]:
    """Rows sorted by a column: figures with the best first, dates and sizes with the largest first,
    everything else upwards; what is unknown comes last.

    Raises:
        DataError: There is no such column.
    """
    name = resolve(by, rows, "--sort")
    known = [row for row in rows if _value(row, name, metric)]
    unknown = [row for row in rows if not _value(row, name, metric)]
    if name in ("dev", "test"):
        return sorted(known, key=lambda row: _worse(row, name, metric), reverse=reverse) + unknown
    downwards = (name in LARGEST_FIRST) != reverse
    if name == "date":
        return sorted(known, key=_instant, reverse=downwards) + unknown
    return sorted(known, key=lambda row: _key(row, name, metric), reverse=downwards) + unknown


def _worse(row: RunRow, part: str, metric: str | None) -> tuple[str, float]:
    """Small for a good figure; figures of one name stay together."""
    name, value = metric_of(row, part, metric), _figure(row, part, metric)
    assert value is not None
    return name, value if metrics.lower_is_better(name) else -value


def _key(row: RunRow, name: str, metric: str | None) -> tuple[float, list[tuple[int, str]]]:
    text = _value(row, name, metric)
    value = _number(text)
    return math.inf if value is None or math.isnan(value) else value, _natural(text)


# ---- How it is shown


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


def columns(rows: Sequence[RunRow], asked: Sequence[str] = ()) -> list[str]:
    """The columns of the table: those asked for, else what is always shown and what differs; the
    command where nothing does, as else it says what the columns say.
    """
    if asked:
        return [resolve(name, rows, "--columns") for name in asked]
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


def tied(matching: Sequence[RunRow], count: int, by: str, metric: str | None = None) -> str:
    """That runs beyond the first `count` of the sorted ones have what the last shown has, as one
    line; empty where they have not.
    """
    if not 0 < count < len(matching):
        return ""
    name = resolve(by, matching, "--sort")

    def value(row: RunRow) -> tuple[str, str]:
        of = metric_of(row, name, metric) if name in ("dev", "test") else ""
        return of, _value(row, name, metric)

    last = value(matching[count - 1])
    if not last[1] or value(matching[count]) != last:
        return ""
    alike = sum(value(row) == last for row in matching)
    here = sum(value(row) == last for row in matching[:count])
    said = f"{_head(name, [name], matching[:count], metric)} {cell(matching[count], name, metric)}"
    return f"{plural(alike, 'run')} have {said}, of which {here:,} shown, by name"


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
        leaves = dict(_leaves(tree))
        leaves["seeds"] = ",".join(map(str, row.seeds))
        flat.append({**leaves, **settings})
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


def known_metric(name: str, rows: Sequence[RunRow]) -> str:
    """A figure that some run has.

    Raises:
        DataError: None has it.
    """
    known = dict.fromkeys(key for row in rows for key in (*row.dev, *row.test))
    if name not in known:
        raise DataError(
            f"--metric {shown(name, 40)}: no run has it{did_you_mean(name, known)}; known: "
            f"{listed(known) or 'none'}"
        )
    return name
