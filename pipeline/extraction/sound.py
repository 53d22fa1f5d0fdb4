"""Whether shards that are already there can be relied on."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mer.pipeline.errors import MerError, StoreError
from mer.pipeline.extraction.plan import Settings
from mer.pipeline.media.stages import AGAIN, STAGES, Stage
from mer.pipeline.store import Shard
from mer.pipeline.store.schema import demand


@dataclass(frozen=True)
class Unsound:
    """A shard that is there but cannot be used, and why."""

    path: Path
    reason: str


def check_failures(shard: Shard, kind: type) -> None:
    """Raise StoreError unless a shard lists its failures as extraction does: (row or id, stage,
    reason), the first being of `kind`.
    """
    failures = shard.meta.get("failures")
    if not isinstance(failures, list) or not all(_is_failure(one, kind) for one in failures):
        raise StoreError(f"{shard.path}: its list of failures is not one of mer's")


def _is_failure(failure: object, kind: type) -> bool:
    if not isinstance(failure, list) or len(failure) != 3:
        return False
    what, stage, reason = failure
    return type(what) is kind and isinstance(reason, str) and _is_stage(stage)


def _is_stage(stage: object) -> bool:
    return isinstance(stage, str) and stage in STAGES


def contents_of(shard: Shard) -> list[str]:
    """The keys of what a shard's utterances were made from. Raises StoreError when it does not say
    as extraction does.
    """
    contents = shard.meta.get("contents")
    if isinstance(contents, list) and len(contents) == len(shard):
        if all(isinstance(content, str) for content in contents):
            return contents
    raise StoreError(f"{shard.path}: does not say what its utterances were made from")


def check_sound(shard: Shard) -> None:
    """Raise StoreError for a shard whose frames differ from their checksums, that does not say what
    is in it as extraction does, or in which a decoder ran out of time or was killed.
    """
    contents_of(shard)
    check_failures(shard, str)
    for modality in shard.modalities:
        if is_damaged(shard, modality):
            raise StoreError(f"{shard.path}: {modality} differs from its checksums")
    again = [stage for _, stage, _ in shard.meta["failures"] if stage in AGAIN]
    if again:
        what = "ran out of time" if again[0] == Stage.TIMEOUT else "was killed"
        raise StoreError(f"{shard.path}: a decoder {what}")


def is_damaged(shard: Shard, modality: str) -> bool:
    """Whether any of a modality's frames or layer means differ from their checksums."""
    if next(shard.mismatches(modality), None) is not None:
        return True
    if modality not in shard.layers_crc32:
        return False
    return next(shard.differing_layer_means(modality, range(len(shard))), None) is not None


def read_row(shard: Shard, modality: str, at: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Frames (T, D) of one utterance of a shard, and its layer means (L, width), None where it has
    none; as stored. Raises ValueError where they differ from their checksums.
    """
    frames = shard.frames(modality, at, at + 1)
    sound = next(shard.differing(modality, frames, at, at + 1), None) is None
    if modality not in shard.layers_crc32 or not len(frames):
        demand(sound, f"{modality} differs from its checksum")
        return frames, None
    sound = sound and next(shard.differing_layer_means(modality, [at]), None) is None
    demand(sound, f"{modality} differs from its checksum")
    return frames, shard.layer_means(modality)[at]


def copied(
    shard: Shard, at: int, modalities: Sequence[str], content: str
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], int]:
    """Features, layer means and flags of one utterance of an older shard.

    Raises StoreError unless its content is `content` and all match their checksums: written again
    they would get new ones, and nobody could tell.
    """
    contents = shard.meta.get("contents")
    there = contents if isinstance(contents, list) and len(contents) == len(shard) else []
    if at >= len(there) or there[at] != content:
        raise StoreError(
            f"{shard.path}: changed while it was being copied from; run the same command again"
        )
    frames, means = {}, {}
    for m in modalities:
        try:
            frames[m], mean = read_row(shard, m, at)
        except ValueError:
            raise StoreError(
                f"{shard.path}: {m} of '{shard.ids[at]}' does not match its checksum; run the same "
                "command again"
            ) from None
        if mean is not None:
            means[m] = mean
    return frames, means, int(shard.flags[at])


def unsound_sources(
    folder: Path,
    settings: Settings,
    modalities: Sequence[str],
    contents: Callable[[tuple[str, ...]], Sequence[str]],
) -> str | None:
    """Why a stored plan cannot be followed any more: what is wrong with the first older shard that
    it takes features from; None if nothing is.

    The plan has nothing else to make those features from. `contents` gives the keys of the rows, as
    a store with these modalities has them.
    """
    taken: dict[str, list[tuple[int, int]]] = {name: [] for name in settings.kept}
    for row, copy in settings.reused.items():
        taken.setdefault(copy.shard, []).append((row, copy.at))
    for name, places in sorted(taken.items()):
        held = tuple(settings.holds.get(name, modalities))
        try:
            shard = Shard(folder / name)
            check_sound(shard)
        except MerError as error:
            return str(error).partition("; ")[0]
        if list(shard.modalities) != list(held):
            return f"{shard.path}: holds {', '.join(shard.modalities)}"
        there, expected = shard.meta["contents"], contents(held)
        if not all(at < len(shard) and there[at] == expected[row] for row, at in places):
            return f"{shard.path}: does not hold what the plan of an unfinished run takes from it"
    return None


def existing(
    folder: Path,
    recipe_keys: Collection[str],
    recorded: Mapping[str, str],
    sha256: Callable[[Path], str],
) -> Iterator[Shard | Unsound]:
    """The shards of these recipes in the folder; in place of a shard that is not sound, the reason.

    `recorded` are the sha256 of shards by name, as a head file has them.
    """
    for path in sorted(folder.glob("shard-*.h5")) if folder.is_dir() else ():
        try:
            shard = Shard(path)
            if shard.meta.get("recipe") not in recipe_keys:
                continue
            check_sound(shard)
            if path.name in recorded and sha256(path) != recorded[path.name]:
                raise StoreError(f"{path}: its bytes differ from the recorded sha256")
            yield shard
        except MerError as error:
            yield Unsound(path, str(error))
