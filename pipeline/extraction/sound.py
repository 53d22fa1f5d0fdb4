"""Whether shards that are already there can be relied on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from mer.pipeline.errors import MerError, StoreError
from mer.pipeline.media.stages import AGAIN, Stage
from mer.pipeline.store import Shard


@dataclass(frozen=True)
class Unsound:
    """A shard that is there but cannot be used, and why."""

    path: Path
    reason: str


def check_sound(shard: Shard) -> None:
    """Raise StoreError for a shard whose frames differ from their checksums, or in which a decoder
    ran out of time or was killed.
    """
    for modality in shard.modalities:
        if next(shard.mismatches(modality), None) is not None:
            raise StoreError(f"{shard.path}: {modality} differs from its checksums")
    again = [stage for _, stage, _ in shard.meta["failures"] if stage in AGAIN]
    if again:
        what = "ran out of time" if again[0] == Stage.TIMEOUT else "was killed"
        raise StoreError(f"{shard.path}: a decoder {what}")


def existing(
    folder: Path, recipe_key: str, recorded: Mapping[str, str], sha256: Callable[[Path], str]
) -> Iterator[Shard | Unsound]:
    """Shards of this recipe in the folder; for those that are not sound, the reason instead.

    `recorded` are the sha256 that a head file knows by name.
    """
    for path in sorted(folder.glob("shard-*.h5")) if folder.is_dir() else ():
        try:
            shard = Shard(path)
            if shard.meta.get("recipe") != recipe_key:
                continue
            check_sound(shard)
            if path.name in recorded and sha256(path) != recorded[path.name]:
                raise StoreError(f"{path}: its bytes differ from the recorded sha256")
            yield shard
        except MerError as error:
            yield Unsound(path, str(error))
