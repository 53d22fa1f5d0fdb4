"""The two keys of a store, without loading torch.

The *recipe* says how features are computed: for each modality the encoder by the hash of its files
and what else decides a feature (layer, pooling, channel, cutting), then dtype, precision and the
version of the extractor. The *content* says of what: for each utterance the sha256 of its media
file, its span and its transcript. The fingerprint is both. Labels and splits are in neither:
changing them never computes a feature again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path

from mer.pipeline.encoders import MODALITIES, configured
from mer.pipeline.encoders.loading import Checkpoint
from mer.pipeline.encoders.modality import Modality
from mer.pipeline.errors import DataError
from mer.pipeline.extraction.decoding import decoded_otherwise
from mer.pipeline.extraction.memory import EXTRACTOR, FileMemory
from mer.pipeline.extraction.options import ExtractOptions
from mer.pipeline.manifest import Manifest, Utterance
from mer.pipeline.media.containers import DECODER
from mer.pipeline.runtime.machine import cores
from mer.pipeline.runtime.progress import SILENT, Advance

HASHED_AT_A_TIME = 8  # files; hashing lets go of the interpreter's lock
CONTENT_CHARACTERS = 32  # of the sha256 that is kept as the key of a content
# told the number and the bytes of the files that have to be read; gives what is told of each
Cold = Callable[[int, int], AbstractContextManager[Advance]]


def untold(files: int, size: int) -> AbstractContextManager[Advance]:
    """Says nothing of what has to be read."""
    return SILENT.task("hashing", files, "files")


class Unreadable(StrEnum):
    """Why a media file cannot be hashed. The word stands for the hash in the key of the content."""

    MISSING = "!missing"
    UNREADABLE = "!unreadable"
    ENCODING = "!encoding"

    @property
    def reason(self) -> str:
        return {
            Unreadable.MISSING: "no such file",
            Unreadable.UNREADABLE: "cannot be read",
            Unreadable.ENCODING: "its name cannot be expressed in this locale; set PYTHONUTF8=1, "
            "or LC_ALL=C.UTF-8",
        }[self]


@dataclass(frozen=True)
class Digest:
    """What a media file's bytes hash to, or why they cannot be hashed.

    `otherwise` says why this version of the sound decoder reads them otherwise than the first.
    """

    sha256: str = ""
    unreadable: Unreadable | None = None
    otherwise: str = ""

    def key(self, *, sound: bool) -> str:
        """What stands for the bytes in the key of a content; `sound`: they are decoded as sound."""
        if self.unreadable is not None:
            return self.unreadable.value
        return f"{self.sha256}+{DECODER}" if sound and self.otherwise else self.sha256


@dataclass(frozen=True)
class Chosen:
    """A modality that is extracted, and the files of its encoder."""

    modality: Modality
    checkpoint: Checkpoint

    @property
    def name(self) -> str:
        return self.modality.name


@dataclass(frozen=True)
class Keys:
    """What decides the features that `extract` would make.

    `contents[row]` is the key of a row's content. `digests` maps each media file, by its name in
    the manifest, to the hash of its bytes. `older`, for rows that an earlier decoder read
    otherwise: the key that their content had then, and the reason.
    """

    recipe: dict
    contents: tuple[str, ...]
    digests: Mapping[str, Digest]
    fingerprint: str
    chosen: tuple[Chosen, ...]
    older: Mapping[int, tuple[str, str]] = field(default_factory=dict)

    @property
    def recipe_key(self) -> str:
        return recipe_key(self.recipe)

    @property
    def untrained(self) -> list[str]:
        """Modalities whose encoder carries no knowledge."""
        return [choice.name for choice in self.chosen if not choice.checkpoint.trained]


def keys(
    manifest: Manifest,
    options: ExtractOptions,
    memory: FileMemory,
    *,
    cold: Cold = untold,
) -> Keys:
    """Recipe, content and fingerprint of what `extract` would make; nothing is decoded or computed.

    Raises EncoderError and DataError.
    """
    chosen = find_encoders(manifest, options, memory)
    recipe = make_recipe(options, chosen)
    plain = hash_files(manifest, chosen, memory, cold)
    digests = plain | _read_otherwise(plain, manifest, chosen, options, memory)
    contents = _contents(manifest, chosen, digests)
    older = _older(manifest, chosen, digests)
    h = hashlib.sha256(recipe_key(recipe).encode())
    for u, content in zip(manifest.rows, contents, strict=True):
        h.update(f"{json.dumps(u.id)} {content}\n".encode())
    return Keys(recipe, contents, digests, h.hexdigest(), chosen, older)


def part_of(found: Keys, manifest: Manifest, names: Collection[str]) -> Keys:
    """The keys of a store that has only the modalities `names` of those in `found`."""
    chosen = tuple(choice for choice in found.chosen if choice.name in names)
    left_out = {choice.name for choice in found.chosen} - set(names)
    recipe = {name: part for name, part in found.recipe.items() if name not in left_out}
    contents = _contents(manifest, chosen, found.digests)
    older = _older(manifest, chosen, found.digests)
    return replace(
        found, recipe=recipe, contents=contents, fingerprint="", chosen=chosen, older=older
    )


def _contents(
    manifest: Manifest, chosen: Sequence[Chosen], digests: Mapping[str, Digest]
) -> tuple[str, ...]:
    """The key of each row's content, as far as the chosen modalities see it."""
    wanted = {choice.name: choice.modality for choice in chosen}
    asked = [wanted.get(name, kind.absent) for name, kind in MODALITIES.items()]
    return tuple(content_key(u, asked, digests) for u in manifest.rows)


def _older(
    manifest: Manifest, chosen: Sequence[Chosen], digests: Mapping[str, Digest]
) -> dict[int, tuple[str, str]]:
    """Rows that an earlier decoder read otherwise: the key of their content then, and why."""
    if not any(digest.otherwise for digest in digests.values()):
        return {}
    wanted = {choice.name: choice.modality for choice in chosen}
    asked = [wanted.get(name, kind.absent) for name, kind in MODALITIES.items()]
    plain = {name: replace(digest, otherwise="") for name, digest in digests.items()}
    found = {}
    for row, u in enumerate(manifest.rows):
        reasons = _reasons(u, wanted, digests)
        if reasons:
            found[row] = content_key(u, asked, plain), reasons[0]
    return found


def find_encoders(
    manifest: Manifest, options: ExtractOptions, memory: FileMemory
) -> tuple[Chosen, ...]:
    """The modalities that the manifest has and the options want, with the files of their encoders,
    in the order of the registry.
    """
    asked = (modality for modality in configured(options) if modality.wanted)
    wanted = [modality for modality in asked if any(map(modality.has, manifest.rows))]
    if not wanted:
        raise DataError(
            f"{manifest.dataset}: nothing to extract; the manifest has no {' or '.join(MODALITIES)}"
            " that an encoder was named for"
        )
    chosen = []
    for modality in wanted:
        checkpoint = modality.resolve(
            modality.encoder, offline=options.offline, sha256=memory.sha256
        )
        chosen.append(Chosen(modality, checkpoint))
    for choice in chosen:
        choice.modality.check(choice.checkpoint)
    return tuple(chosen)


def make_recipe(options: ExtractOptions, chosen: Sequence[Chosen]) -> dict:
    """Everything that decides a feature, given its content."""
    recipe: dict = {"extractor": EXTRACTOR, "dtype": options.dtype, "precision": options.precision}
    for choice in chosen:
        recipe[choice.name] = choice.modality.recipe(choice.checkpoint)
    return recipe


def recipe_key(recipe: dict) -> str:
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()


def content_key(
    u: Utterance, asked: Sequence[Modality | tuple[str, ...]], digests: Mapping[str, Digest]
) -> str:
    """The key of what an utterance's features are made from, given the recipe.

    `asked` has every registered modality in order, or what stands for one that is not wanted.
    """
    texts: list[str] = []
    for modality in asked:
        if isinstance(modality, tuple):
            texts += modality
            continue
        file = modality.file(u)
        texts += modality.content(u, digests[file].key(sound=modality.sound) if file else "")
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:CONTENT_CHARACTERS]


def _reasons(
    u: Utterance, wanted: Mapping[str, Modality], digests: Mapping[str, Digest]
) -> list[str]:
    """Why an utterance is decoded otherwise than by the first version, if it is."""
    files = (modality.file(u) for modality in wanted.values() if modality.sound)
    return [digests[file].otherwise for file in files if file and digests[file].otherwise]


def hash_files(
    manifest: Manifest, chosen: Sequence[Chosen], memory: FileMemory, cold: Cold
) -> dict[str, Digest]:
    """The digest of each media file that a chosen modality is read from, by its name."""
    named = (choice.modality.file(u) for choice in chosen for u in manifest.rows)
    found: dict[str, Digest] = {}
    unknown: list[str] = []
    size = 0
    for name in dict.fromkeys(filter(None, named)):
        path = manifest.root / name
        try:
            digest = memory.known(path)
            if digest is None:
                size += path.stat().st_size
                unknown.append(name)
            else:
                found[name] = Digest(digest)
        except UnicodeEncodeError:
            found[name] = Digest(unreadable=Unreadable.ENCODING)
        except (FileNotFoundError, NotADirectoryError, ValueError):
            found[name] = Digest(unreadable=Unreadable.MISSING)
        except OSError:
            found[name] = Digest(unreadable=Unreadable.UNREADABLE)
    if unknown:
        workers = ThreadPoolExecutor(min(HASHED_AT_A_TIME, cores()))
        with cold(len(unknown), size) as advance, workers as pool:
            hashed = pool.map(lambda name: _digest(manifest.root / name, memory), unknown)
            for name, read in zip(unknown, hashed, strict=True):
                found[name] = read
                advance(1)
    return found


def _read_otherwise(
    digests: Mapping[str, Digest],
    manifest: Manifest,
    chosen: Sequence[Chosen],
    options: ExtractOptions,
    memory: FileMemory,
) -> dict[str, Digest]:
    """The digests of sound files that an earlier decoder read otherwise, with the reason."""
    sound = [choice.modality for choice in chosen if choice.modality.sound]
    named = dict.fromkeys(modality.file(u) for modality in sound for u in manifest.rows)
    files = [name for name in named if name and digests[name].unreadable is None]
    paths: dict[str, str] = {}
    for name in files:
        paths.setdefault(digests[name].sha256, str(manifest.root / name))
    reasons = decoded_otherwise(paths, options, memory)
    return {
        name: replace(digests[name], otherwise=reasons[digests[name].sha256])
        for name in files
        if digests[name].sha256 in reasons
    }


def _digest(path: Path, memory: FileMemory) -> Digest:
    try:
        return Digest(memory.sha256(path))
    except OSError:
        return Digest(unreadable=Unreadable.UNREADABLE)


def fingerprint(
    manifest: Manifest,
    options: ExtractOptions,
    *,
    memory: FileMemory | None = None,
    cold: Cold = untold,
) -> str:
    """The cache key that `extract` with these options would give its store.

    Nothing is decoded or computed. Raises EncoderError and DataError.
    """
    memory = memory or FileMemory()
    found = keys(manifest, options, memory, cold=cold).fingerprint
    memory.save()
    return found
