"""Which training a run folder holds: two commands with the same identity ask for the same run."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mer.fusion.config import TrainConfig, differences, to_tree
from mer.fusion.data import context
from mer.fusion.runs import checkpoint
from mer.fusion.runs.checkpoint import Run
from mer.fusion.runs.records import GroupInfo, RunInfo
from mer.fusion.runtime import files
from mer.pipeline.errors import DataError
from mer.pipeline.runtime.machine import installed_version
from mer.pipeline.runtime.terminal import plural
from mer.pipeline.store import FeatureStore

OTHER_STORE = "trained on another store, or on other labels or splits of it"


def identity(config: TrainConfig, key: str, *more: Any) -> str:
    """Two commands with the same identity ask for the same run."""
    return hashlib.sha256(
        json.dumps([to_tree(config), key, *more], sort_keys=True).encode()
    ).hexdigest()


def turns_key(store: FeatureStore, config: TrainConfig) -> list[str]:
    """What belongs to the identity of a run with context beside the key of its store; nothing for
    others, which no order of turns changes.
    """
    return [] if config.data.context == "none" else [context.key(store.table())]


def check_folder(folder: Path, config: TrainConfig, key: str, wanted: str) -> Run | None:
    """The run of this identity that `folder` holds, None if it is free; anything else there is left
    alone (DataError).
    """
    if not (folder / checkpoint.INFO).exists():
        if checkpoint.strangers(folder, checkpoint.CONFIG, checkpoint.SPLIT):
            raise DataError(f"{folder}: not empty and not a run folder; choose another --out")
        return None
    there = Run.open(folder)
    if there.info.identity != wanted:
        raise DataError(
            f"{folder}: holds another run ({explain(there, key, config)}); choose another --out"
        )
    _ = there.config  # raises where it is damaged
    return there


def explain(there: Run, key: str, config: TrainConfig) -> str:
    """Why a run folder is not the one training asked for."""
    if isinstance(there.info, GroupInfo):
        return "one over seeds or folds"
    reasons = differences(to_tree(there.config), to_tree(config))[:3]
    if there.info.store_key != key:
        reasons.append(OTHER_STORE)
    labels = ", or other unimodal labels" if config.data.unimodal_labels else ""
    return "; ".join(reasons) or f"another fold{labels}"


def explain_group(there: Run, asked: GroupInfo, config: TrainConfig) -> str:
    """Why a run folder is not the run over seeds or folds asked for."""
    found, reasons = there.info, []
    if _extent(found) != _extent(asked):
        reasons.append(f"{_extent(found)}; asked for: {_extent(asked)}")
    with suppress(DataError):  # a run that is damaged, or not begun, says nothing of its settings
        first = there.path / found.children[0] if isinstance(found, GroupInfo) else there.path
        reasons += differences(to_tree(Run.open(first).config), to_tree(config))[:3]
    if found.store_key != asked.store_key:
        reasons.append(OTHER_STORE)
    return "; ".join(reasons) or "other unimodal labels, or turns in another order"


def outcome(run: Run) -> tuple[str, ...]:
    """What a finished run has come to, a text for each of its trainings: the configuration, the
    weights, and the dev figures by which they were chosen. A copy of a run has the same, and so has
    the same training made again.
    """
    return tuple(sorted(map(_came_to, run.children)))


def _came_to(run: Run) -> str:
    done = run.result
    weights = done.model_sha256 or files.digest(run.path / files.MODEL, files.AGAIN)
    return json.dumps([done.config_sha256, weights, done.dev], sort_keys=True)


def same(first: Run, second: Run) -> str | None:
    """What two finished runs are that are one, in words; None: they are two."""
    if os.path.samefile(first.path, second.path):
        return "one run folder"
    if outcome(first) == outcome(second):
        return "one training, copied or made twice"
    return None


def _extent(info: RunInfo) -> str:
    """Over what a run goes, in words."""
    if not isinstance(info, GroupInfo):
        return "one training"
    folds = "" if info.folds is None else f", --folds {info.folds}"
    return f"{plural(info.seeds, 'seed')}{folds}"


def beginning(command: str | None) -> dict[str, Any]:
    """What run.json says of when and by what a run was begun."""
    versions = {name: installed_version(name) for name in ("mer", "torch", "numpy")}
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        "versions": {"python": platform.python_version(), **versions},
    }


def beginning_of(there: Run) -> dict[str, Any]:
    """The same of a run that goes on."""
    return {name: getattr(there.info, name) for name in ("date", "command", "versions")}
