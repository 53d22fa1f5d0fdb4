"""Where the store of a run is now: the folder that both were in may have moved.

run.json has the path that the store had. Where nothing is there any more, or another store is, the
store is looked for beside the run: in each folder that the run is in, at what that path ended in.
It is told by its key, so that no other store of that name is taken for it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from mer.fusion.data import context
from mer.fusion.runs import checkpoint
from mer.fusion.runs.checkpoint import Run
from mer.fusion.runtime.notes import Note
from mer.pipeline.errors import DataError, MerError
from mer.pipeline.runtime.files import identity
from mer.pipeline.runtime.terminal import shown
from mer.pipeline.store import FeatureStore

KEYS_REMEMBERED = 64  # stores; a report asks for each of its runs
PATH_CHARACTERS = 100  # of each of two paths in an error
MOST_NAMES = 64  # that a path ends in


@dataclass(frozen=True)
class Whereabouts:
    """Where the store of a run is: at `path`, None where it is not found; `other` is a store at the
    same place beside the run that is not the one it was trained on.
    """

    path: Path | None
    other: Path | None = None


def find(run: Run) -> Whereabouts:
    """Where the store is that a run was trained on.

    Args:
        run: A run, or one over seeds or folds.

    Returns:
        The recorded path while it is the run's store or nothing beside the run is; else the path
        beside the run. A store that has been changed where it was is there still: what is scored
        on it says so.
    """
    recorded = Path(run.info.features)
    is_there = os.path.isfile(recorded)
    near = [path for path in beside(run) if os.path.isfile(path)]
    if is_there:
        near = [path for path in near if not path.samefile(recorded)]
    if is_there and (not near or _is_of(run, recorded)):
        return Whereabouts(recorded)
    found = next((path for path in near if _is_of(run, path)), None)
    if found is None and is_there:
        found = recorded
    return Whereabouts(found, other=next(iter(near), None) if found is None else None)


def store_of(run: Run, note: Note) -> Path:
    """The store that a run was trained on, to be read now.

    Args:
        run: A run, or one over seeds or folds.
        note: Told where the store is, where that is not where it was.

    Returns:
        Its path.

    Raises:
        DataError: It is not there.
    """
    found = find(run)
    if found.path is None:
        recorded = shown(run.info.features, PATH_CHARACTERS)
        what = "no such store, nor beside the run"
        if found.other is not None:
            there = shown(found.other, PATH_CHARACTERS)
            what = f"no such store, and {there} is not the one that the run was trained on"
        raise DataError(f"{recorded}: {what}; name the one to evaluate on with --features")
    if found.path != Path(run.info.features):
        gone = "is another store now" if os.path.exists(run.info.features) else "is gone"
        note(f"{run.info.features} {gone}; the store that the run was trained on is {found.path}")
    return found.path


def beside(run: Run) -> Iterator[Path]:
    """Where the store of a run is if the folder that both were in has moved: the nearest folder
    first, and in it the shortest of the names that the recorded path ends in.
    """
    recorded = Path(run.info.features)
    names = recorded.parts[bool(recorded.anchor) :][-MOST_NAMES:]
    folders = [*Path(os.path.abspath(run.path)).parents, *run.path.resolve().parents]
    for folder in dict.fromkeys(folders):
        for count in range(1, len(names) + 1):
            yield folder.joinpath(*names[-count:])


def _is_of(run: Run, path: Path) -> bool:
    """Whether a store is the one that a run was trained on; one that cannot be read is not."""
    try:
        version = identity(path)
        if _store_key(path, version) != run.info.store_key:
            return False
        turns = run.info.turns_key
        return turns is None or turns == _turns_key(path, version)
    except (MerError, OSError):
        return False


# `version` is the `identity` of the head file, which is never changed in place.


@lru_cache(maxsize=KEYS_REMEMBERED)
def _store_key(path: Path, version: tuple[int, int, int]) -> str:
    with FeatureStore(path, check=False) as store:
        return checkpoint.store_key(store)


@lru_cache(maxsize=KEYS_REMEMBERED)
def _turns_key(path: Path, version: tuple[int, int, int]) -> str:
    with FeatureStore(path, check=False) as store:
        return context.key(store.table())
