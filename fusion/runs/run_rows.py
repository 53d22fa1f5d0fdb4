"""Every run below some folders as one row, read from its folder.

Free of torch, and of a run folder only the small files are read: run.json, config.toml,
metrics.json, test_log.jsonl. What is unfinished or damaged is a row with a word for it, never an
error.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
import statistics
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

from mer.fusion.config import DataConfig, left_out
from mer.fusion.runtime import files, typed
from mer.pipeline.errors import DataError
from mer.pipeline.runtime.files import near
from mer.pipeline.runtime.hold import busy
from mer.pipeline.runtime.limits import CONFIG_BYTES
from mer.pipeline.runtime.terminal import plural

DEPTH = 8  # folders within folders that are looked through for runs
BESIDE = ".shards"  # ends the name of a folder of a store, where no run is
CONTEXT, WIDTH = "data.context", "data.context_width"  # settings that every table names
FORMAT, VERSION = "mer-run", 1  # of run.json, as in records.py, which imports torch
Figures = dict[str, float | None]
State = Literal["finished", "training", "unfinished", "damaged"]
MOVE_AWAY = "move it away"  # a log of openings that cannot be read


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
    model_sha256: str | None = None


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
    weights: tuple[str, ...] = ()  # sha256 of the model of each training, as far as it is known
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
            what = "not a folder" if folder.exists() else f"no such folder{near(folder, 'folder')}"
            raise DataError(f"{folder}: {what}; name a run folder or a folder of runs")
        for path in _run_folders(folder, seen, DEPTH):
            rows += _of_each(path) if each else [read(path)]
    return rows


def _run_folders(folder: Path, seen: set[tuple[int, int]], depth: int) -> Iterator[Path]:
    """Folders at or below `folder` that training has begun in; links are followed once."""
    try:
        status = folder.stat()
        entries = sorted(os.scandir(folder), key=lambda entry: natural(entry.name))
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


def natural(name: str) -> list[tuple[int, str]]:
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
        weights=() if told.model_sha256 is None else (told.model_sha256,),
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
        weights=tuple(sorted(one for child in there for one in child.weights)),
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
    settings = {key: _of_json(value) for key, value in leaves(tree) if key != "model"}
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


def leaves(tree: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{before}{key}.")
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
