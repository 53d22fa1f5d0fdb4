"""Step 1, `request`: what was asked for, checked and hashed, and where it is to run."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from mer.pipeline.encoders.modality import Rows
from mer.pipeline.errors import DataError
from mer.pipeline.extraction.fingerprint import Keys, keys, part_of
from mer.pipeline.extraction.memory import FileMemory, memory_path, spelled
from mer.pipeline.extraction.options import ExtractOptions
from mer.pipeline.extraction.outcome import Failure
from mer.pipeline.manifest import Manifest
from mer.pipeline.media.stages import Problem
from mer.pipeline.runtime.files import refuse_link
from mer.pipeline.runtime.progress import Advance, Silent
from mer.pipeline.runtime.signals import Stop
from mer.pipeline.runtime.terminal import amount, plural
from mer.pipeline.store import refuse_twin, shards_of

HASHING_TOLD_BYTES = 1 << 28  # less than this is hashed without a word


@dataclass(frozen=True)
class Here:
    """In this process.

    `lock` False, here and below: on a file system without locks, where the caller sees to it that
    no other run works at the same output.
    """

    lock: bool = True


@dataclass(frozen=True)
class Workers:
    """In `count` local processes."""

    count: int
    lock: bool = True


@dataclass(frozen=True)
class Scheduler:
    """In the workers of the Dask scheduler at `address`."""

    address: str
    lock: bool = True


@dataclass(frozen=True)
class Share:
    """In this process, every `count`-th part from number `index` (from 1); other runs at the same
    output do the others. The run that finds all parts there writes the store.
    """

    index: int
    count: int
    lock: bool = True

    def __post_init__(self):
        name = f"--shard {self.index}/{self.count}"
        if not 1 <= self.index <= self.count:
            raise DataError(f"{name}: expected i/n with i from 1 to n")
        if not self.lock:
            raise DataError(
                f"{name}: shares of a run need locks; without them, run one `mer extract` alone"
            )


# where the work is done: the bytes are the same everywhere
Where = Here | Workers | Scheduler | Share


@dataclass(frozen=True)
class Place:
    """Where a store is: its head file, and beside it the folder of its shards."""

    out: Path

    @property
    def folder(self) -> Path:
        return shards_of(self.out)

    @property
    def parts(self) -> Path:
        """The folder of the plan and the parts while the store is not complete."""
        return self.folder / ".work"

    @property
    def plan(self) -> Path:
        return self.parts / "plan.json"

    @property
    def failures(self) -> Path:
        return self.folder / "failures.jsonl"


@dataclass(frozen=True)
class Company:
    """What a run talks to: the user, the memory of files, and whoever asks it to stop.

    `confirm` is told the bytes about to be written and may raise.
    """

    progress: Silent
    memory: FileMemory
    stop: Stop
    confirm: Callable[[int], None]


@dataclass(frozen=True)
class Request:
    """What was asked for. `source` is the manifest's own file, if it has one."""

    manifest: Manifest
    place: Place
    options: ExtractOptions
    source: Path | None
    keys: Keys

    @property
    def modalities(self) -> tuple[str, ...]:
        return tuple(choice.name for choice in self.keys.chosen)

    def part(self, names: Collection[str]) -> Keys:
        """The keys of a store that has these of the modalities only."""
        return part_of(self.keys, self.manifest, names)

    def rows(self, memory: FileMemory) -> Rows:
        """The manifest's rows, with what their files looked like when they were hashed."""
        return Rows(self.manifest.rows, self.manifest.root, dict(memory.seen))

    def failure(self, row: int, problem: Problem) -> Failure:
        u = self.manifest.rows[row]
        return Failure(
            u.id, u.audio or u.video, problem.stage, problem.reason, u.known_bad is not None
        )


def check_place(out: Path) -> Place:
    """Where a store named `out` lies. Raises DataError for a name that cannot be one."""
    if out.exists() and not out.is_file():
        what = "directory" if out.is_dir() else "device or pipe"
        raise DataError(f"{out}: is a {what}; --out names the head file, e.g. feats.h5")
    if spelled(out.name) != out.name:
        raise DataError(f"{spelled(out)}: the name of a store must be UTF-8; choose another --out")
    refuse_twin(out)
    place = Place(out)
    for path in (out, place.folder, place.parts):
        refuse_link(path)
    return place


def remember_files(source: Path | None, place: Place) -> FileMemory:
    """What is remembered of media files, beside the manifest or in the store's folder."""
    return FileMemory(memory_path(source) or place.folder / ".mer-files.parquet")


def make_request(
    manifest: Manifest,
    place: Place,
    options: ExtractOptions,
    source: str | os.PathLike | None,
    company: Company,
) -> Request:
    """Hash what is asked for. Raises EncoderError and DataError."""

    def cold(files: int, size: int) -> AbstractContextManager[Advance]:
        if size > HASHING_TOLD_BYTES:
            what = f"{plural(files, 'file')}, {amount(size)}"
            company.progress.note(f"hashing {what}; remembered for the next time")
        return company.progress.task("hashing", files, "files", brief=True)

    # for workers that were started elsewhere
    manifest = manifest.with_root(manifest.root.absolute())
    try:
        found = keys(manifest, options, company.memory, cold=cold)
    except BaseException:
        company.memory.save()  # what has been hashed need not be hashed again, also after Ctrl-C
        raise
    return Request(manifest, place, options, Path(source) if source else None, found)
