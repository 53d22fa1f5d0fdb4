"""What an extraction was asked for, and what is already at its output."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

from mer.pipeline.errors import DataError, KeyMismatchError, MerError, StoreError
from mer.pipeline.extraction.fingerprint import (
    ExtractOptions,
    FileMemory,
    Keys,
    differences,
    keys,
    memory_path,
    recipe_key,
    spelled,
)
from mer.pipeline.extraction.outcome import Failure
from mer.pipeline.extraction.parts import FLAGS
from mer.pipeline.manifest import Manifest
from mer.pipeline.media.workers import AGAIN
from mer.pipeline.runtime.progress import Silent
from mer.pipeline.runtime.signals import Stop
from mer.pipeline.store import FeatureStore
from mer.pipeline.store.arrays import refuse_link


@dataclass
class State:
    """What was asked for, and what is already there."""

    manifest: Manifest
    out: Path
    options: ExtractOptions
    source: Path | None
    progress: Silent
    stop: Stop = field(default_factory=Stop)
    started: float = field(default_factory=time.monotonic)
    head: FeatureStore | None = None  # the store at `out`, if its recipe is the one asked for
    complete: bool = False  # its features are all there
    labels_changed: bool = False
    leaving: int = 0  # utterances of the store at `out` that the manifest does not have

    def __post_init__(self):
        if self.out.exists() and not self.out.is_file():
            what = "directory" if self.out.is_dir() else "device or pipe"
            raise DataError(f"{self.out}: is a {what}; --out names the head file, e.g. feats.h5")
        if spelled(self.out.name) != self.out.name:
            raise DataError(
                f"{spelled(self.out)}: the name of a store must be UTF-8; choose another --out"
            )
        refuse_link(self.out)
        self.folder = self.out.with_name(self.out.name.removesuffix(".h5") + ".shards")
        self.work = self.folder / ".work"
        refuse_link(self.folder)
        refuse_link(self.work)
        self.failures_path = self.folder / "failures.jsonl"
        self.memory = FileMemory(memory_path(self.source) or self.folder / ".mer-files.parquet")
        try:
            self.keys: Keys = keys(self.manifest, self.options, self.memory, cold=self._cold)
        except BaseException:
            self.memory.save()  # what has been hashed need not be hashed again, also after Ctrl-C
            raise
        self.recipe_key = recipe_key(self.keys.recipe)

    def _cold(self, files: int, size: int) -> None:
        if size > 1 << 28:
            self.progress.note(
                f"hashing {files:,} files, {size / 1e9:.1f} GB; remembered for the next time"
            )

    def look(self) -> None:
        """Compare what is at `out` with what is asked for. Raises KeyMismatchError."""
        self.head, self.complete, self.labels_changed, self.leaving = None, False, False, 0
        if not self.out.exists():
            return
        try:
            head = FeatureStore(self.out, check=False)
        except MerError:
            if self.options.force:
                return
            raise
        if head.header.recipe != self.keys.recipe:
            was, now = head.header.modalities, self.keys.checkpoints
            names = {m: (was[m].encoder, now[m].name) for m in was.keys() & now.keys()}
            what = "; ".join(differences(head.header.recipe, self.keys.recipe, names))
            if not self.options.force:
                raise KeyMismatchError(
                    f"{self.out}: made by another recipe ({what}); choose another --out, or "
                    "replace it with --force"
                )
            self.progress.note(f"replacing {self.out} ({what})")
            return
        self.head = head
        made = made_here(head)
        if head.header.fingerprint != self.keys.fingerprint or any(
            failure["stage"] in AGAIN for failure in made["failures"]
        ):
            self._keep_another_corpus(head)
            return
        try:
            FeatureStore(self.out)
        except StoreError as error:
            self.progress.note(f"{str(error).partition('; ')[0]}; extracting it again")
            return
        self.complete, self.labels_changed = True, made["manifest_hash"] != self.manifest.hash

    def _keep_another_corpus(self, head: FeatureStore) -> None:
        """Count what would leave the store.

        Raises KeyMismatchError when it is of another corpus: the recipe may be the same.
        """
        ours, there = {u.id for u in self.manifest.rows}, head.table()["id"].to_pylist()
        self.leaving = sum(name not in ours for name in there)
        if self.options.force or (
            head.header.dataset == self.manifest.dataset and self.leaving < len(there)
        ):
            return
        raise KeyMismatchError(
            f"{self.out}: holds {len(there):,} utterances of {head.header.dataset}, of which this "
            f"manifest of {self.manifest.dataset} has "
            f"{len(there) - self.leaving:,}; choose another --out, or replace it with --force"
        )

    def failure(self, row: int, stage: str, reason: str) -> Failure:
        u = self.manifest.rows[row]
        return Failure(u.id, u.audio, stage, reason, u.known_bad is not None)

    def untrained(self) -> list[str]:
        return [m for m, point in self.keys.checkpoints.items() if not point.trained]


def made_here(head: FeatureStore) -> dict:
    """What an extraction noted in the head file.

    Raises StoreError when it is not as `mer extract` writes it.
    """
    made = head.header.provenance.get("extract")
    kinds = {
        "manifest_hash": str,
        "options": dict,
        "failures": list,
        "padding": dict,
        "self_test": dict,
        "counts": dict,
        "audio_seconds": (int, float),
    }
    sound = (
        isinstance(made, dict)
        and "manifest" in made
        and all(isinstance(made.get(name), kind) for name, kind in kinds.items())
    )
    if sound:
        texts = ("id", "stage", "reason")
        sound = all(
            isinstance(f, dict) and all(isinstance(f.get(name), str) for name in texts)
            for f in made["failures"]
        )
    if sound:
        sound = set(made["counts"]) <= FLAGS.keys() and isinstance(made["manifest"], str | None)
    if not sound:
        raise StoreError(
            f"{head.path}: what it says of its making is damaged; `mer extract --force` makes it "
            "again, sound shards kept"
        )
    return made
